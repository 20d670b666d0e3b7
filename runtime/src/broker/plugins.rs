//! Uploaded plugins: files beside the log, known by name and version, written durably before anybody is told.
//!
//! `<data>/plugins/<name>-<version>-<digest>.wasm` holds the component, `w<name><version>` in the log's metadata says that it
//! counts. The file comes first (written, flushed, renamed, directory flushed), the entry second; a deletion goes the
//! other way. So an entry always has its file unless the disk was tampered with, and a file without an entry is rubbish.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use serde::Serialize;
use weir_pipeline::{Plugin, PluginHost};
use weir_storage::{LogHandle, MetaOp};

use super::Refusal;
use super::meta::{self, MetaError, Reader, Writer, check_name};
use super::writer::{LogWriter, lock};

/// Bytes of a plugin's name and of its version.
const NAME_BYTES_MAX: usize = 100;
/// Name and version of a plugin.
pub(crate) type PluginKey = (String, String);

/// A stored plugin.
#[derive(Debug, Clone)]
struct Stored {
    /// Hexadecimal digest of the component: part of the file's name.
    digest: String,
    bytes: u64,
    /// Compiled on first use.
    compiled: Option<Arc<Plugin>>,
}

/// What `list_plugins` tells.
#[derive(Debug, Clone, Serialize)]
pub struct PluginInfo {
    /// Name in its manifest.
    pub name: String,
    /// Version in its manifest.
    pub version: String,
    /// Digest of the component.
    pub digest: String,
    /// Its size.
    pub bytes: u64,
    /// Topics whose pipeline uses it.
    pub attached_to: Vec<String>,
}

/// All plugins of the node.
pub(crate) struct Plugins {
    dir: PathBuf,
    host: Arc<PluginHost>,
    stored: Mutex<BTreeMap<PluginKey, Stored>>,
    bytes_max: u64,
}

impl std::fmt::Debug for Plugins {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plugins").field("dir", &self.dir).finish_non_exhaustive()
    }
}

/// Plugins beyond this are refused: each may cost a compilation at start.
const PLUGINS_MAX: usize = 1_000;

impl Plugins {
    /// Reads which plugins count, and removes files that do not.
    pub(crate) fn load(log: &LogHandle, data_dir: &Path, host: Arc<PluginHost>, bytes_max: u64) -> Result<Plugins, PluginsError> {
        let mut stored = BTreeMap::new();
        for (key, value) in log.meta_scan(meta::PLUGINS) {
            let (plugin, entry) = decode(&key, &value)?;
            stored.insert(plugin, entry);
        }
        let dir = data_dir.join("plugins");
        fs::create_dir_all(&dir).map_err(|source| PluginsError::Directory { dir: dir.clone(), source })?;
        sync_dir(data_dir).map_err(|source| PluginsError::Directory { dir: data_dir.to_owned(), source })?;
        remove_rubbish(&dir, &stored);
        Ok(Plugins { dir, host, stored: Mutex::new(stored), bytes_max })
    }

    /// The host that runs them.
    pub(crate) fn host(&self) -> &Arc<PluginHost> {
        &self.host
    }

    /// Stores a component; durable when it returns. The same bytes again change nothing. The caller holds the admin lock.
    pub(crate) async fn put(&self, writer: &LogWriter, component: Bytes) -> Result<PluginKey, Refusal> {
        let bytes = component.len() as u64;
        if bytes > self.bytes_max {
            let problem = format!("{bytes} bytes, at most {}", self.bytes_max);
            return Err(Refusal::InvalidArgument { field: "component", problem });
        }
        let host = self.host.clone();
        let compiled = blocking(move || {
            let plugin = host.compile(&component);
            plugin.map(|plugin| (plugin, component)).map_err(|error| Refusal::PluginInvalid { reason: error.to_string() })
        });
        let (plugin, component) = compiled.await?;
        let key = (plugin.name().to_string(), plugin.version().to_string());
        check_name("plugin name", &key.0, NAME_BYTES_MAX)?;
        check_name("plugin version", &key.1, NAME_BYTES_MAX)?;
        let digest = plugin.digest().to_owned();
        let known = lock(&self.stored).get(&key).cloned();
        if let Some(known) = known {
            if known.digest == digest && self.is_same(&key, &digest, component).await {
                return Ok(key);
            }
            let reason = format!("{} {} is on this node with other bytes; raise its version", key.0, key.1);
            return Err(Refusal::PluginInvalid { reason });
        }
        if lock(&self.stored).len() >= PLUGINS_MAX {
            return Err(Refusal::Quota { what: format!("the node holds {PLUGINS_MAX} plugins at most") });
        }
        let path = self.path(&key, &digest);
        blocking(move || write_durably(&path, &component).map_err(io_refusal)).await?;
        let stored = Stored { digest, bytes, compiled: Some(plugin) };
        let put = MetaOp::Put { key: meta_key(&key), value: encode(&stored) };
        writer.submit_meta(vec![put]).durable().await?;
        lock(&self.stored).insert(key.clone(), stored);
        Ok(key)
    }

    /// Deletes a plugin; durable when it returns. The caller holds the admin lock and knows that no pipeline uses it.
    pub(crate) async fn delete(&self, writer: &LogWriter, key: &PluginKey) -> Result<(), Refusal> {
        let stored = lock(&self.stored).get(key).cloned().ok_or_else(|| unknown(key))?;
        writer.submit_meta(vec![MetaOp::Delete { key: meta_key(key) }]).durable().await?;
        lock(&self.stored).remove(key);
        let (path, dir) = (self.path(key, &stored.digest), self.dir.clone());
        let removed = blocking(move || fs::remove_file(&path).and_then(|()| sync_dir(&dir)).map_err(io_refusal));
        if let Err(error) = removed.await {
            // It no longer counts; the next start removes the file.
            tracing::warn!(plugin = key.0, version = key.1, %error, "the deleted plugin's file could not be removed");
        }
        Ok(())
    }

    /// The latest stored version of a plugin.
    pub(crate) fn latest_version(&self, name: &str) -> Option<String> {
        let stored = lock(&self.stored);
        let versions = stored.keys().filter(|(stored, _)| stored == name).map(|(_, version)| version);
        versions.max_by_key(|version| numbers_of(version)).cloned()
    }

    /// Names of all plugins.
    pub(crate) fn names(&self) -> Vec<String> {
        lock(&self.stored).keys().map(|(name, _)| name.clone()).collect()
    }

    /// Whether the stored file holds exactly these bytes: the digest alone could be met by chance.
    async fn is_same(&self, key: &PluginKey, digest: &str, component: Bytes) -> bool {
        let path = self.path(key, digest);
        let same = blocking(move || fs::read(path).map(|stored| stored == component).map_err(io_refusal));
        same.await.unwrap_or(false)
    }

    /// The plugin, compiled. Blocks: reads and compiles its file the first time.
    pub(crate) fn compiled(&self, key: &PluginKey) -> Result<Arc<Plugin>, Refusal> {
        let stored = lock(&self.stored).get(key).cloned().ok_or_else(|| unknown(key))?;
        if let Some(plugin) = stored.compiled {
            return Ok(plugin);
        }
        let path = self.path(key, &stored.digest);
        let component = fs::read(&path).map_err(|error| Refusal::PluginInvalid {
            reason: format!("its file {} cannot be read ({error})", file_name(&path)),
        })?;
        let plugin = self.host.compile(&component).map_err(|error| Refusal::PluginInvalid { reason: error.to_string() })?;
        if plugin.digest() != stored.digest {
            let reason = format!("its file {} is damaged: the digest differs", file_name(&path));
            return Err(Refusal::PluginInvalid { reason });
        }
        if let Some(entry) = lock(&self.stored).get_mut(key) {
            entry.compiled = Some(plugin.clone());
        }
        Ok(plugin)
    }

    /// All plugins, without where they are attached.
    pub(crate) fn list(&self) -> Vec<PluginInfo> {
        let info = |(key, stored): (&PluginKey, &Stored)| PluginInfo {
            name: key.0.clone(),
            version: key.1.clone(),
            digest: stored.digest.clone(),
            bytes: stored.bytes,
            attached_to: Vec::new(),
        };
        lock(&self.stored).iter().map(info).collect()
    }

    fn path(&self, key: &PluginKey, digest: &str) -> PathBuf {
        self.dir.join(format!("{}-{}-{digest}.wasm", key.0, key.1))
    }
}

/// Why the plugins of a node cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PluginsError {
    /// The folder cannot be made or flushed.
    #[error("the plugin folder {} cannot be prepared ({source}); check its owner and rights", dir.display())]
    Directory {
        /// The folder.
        dir: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A stored entry cannot be understood.
    #[error(transparent)]
    Meta(#[from] MetaError),
}

/// `major.minor.patch` as numbers, so that 1.10.0 is later than 1.9.0.
fn numbers_of(version: &str) -> Vec<u64> {
    version.split('.').map(|part| part.parse().unwrap_or(0)).collect()
}

/// Runs what may block on a thread for it.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Refusal::Internal { reason: error.to_string() }),
    }
}

fn unknown(key: &PluginKey) -> Refusal {
    Refusal::UnknownPlugin { name: key.0.clone(), version: key.1.clone() }
}

fn io_refusal(error: std::io::Error) -> Refusal {
    match error.kind() {
        std::io::ErrorKind::StorageFull => Refusal::StorageFull,
        _ => Refusal::StorageFailed { reason: format!("writing the plugin's file: {error}") },
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// After this returns the file survives a power cut under its name.
fn write_durably(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&temporary, path)?;
    sync_dir(path.parent().unwrap_or(Path::new(".")))
}

fn sync_dir(dir: &Path) -> std::io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Files that no entry names: an upload that a crash cut off, or a deletion.
fn remove_rubbish(dir: &Path, stored: &BTreeMap<PluginKey, Stored>) {
    let Ok(files) = fs::read_dir(dir) else { return };
    for file in files.flatten() {
        let name = file.file_name().to_string_lossy().into_owned();
        let wanted = stored.iter().any(|(key, entry)| name == format!("{}-{}-{}.wasm", key.0, key.1, entry.digest));
        if !wanted && (name.ends_with(".wasm") || name.ends_with(".tmp")) {
            tracing::info!(file = name, "removing a plugin file that no entry names");
            let _ = fs::remove_file(file.path());
        }
    }
}

fn meta_key(key: &PluginKey) -> Vec<u8> {
    Writer::key(meta::PLUGINS).text(&key.0).text(&key.1).done()
}

fn encode(stored: &Stored) -> Vec<u8> {
    Writer::value().text(&stored.digest).u64(stored.bytes).done()
}

fn decode(key: &[u8], value: &[u8]) -> Result<(PluginKey, Stored), MetaError> {
    let mut reader = Reader::key(meta::PLUGINS, key)?;
    let plugin = (reader.text()?.to_owned(), reader.text()?.to_owned());
    reader.end()?;
    let mut reader = Reader::value(value)?;
    let stored = Stored { digest: reader.text()?.to_owned(), bytes: reader.u64()?, compiled: None };
    reader.end()?;
    Ok((plugin, stored))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_comes_back() {
        let key = ("tpms-alert".to_owned(), "1.2.0".to_owned());
        let stored = Stored { digest: "ab12".into(), bytes: 77, compiled: None };
        let (read_key, read) = decode(&meta_key(&key), &encode(&stored)).unwrap();
        assert_eq!((read_key, read.digest, read.bytes), (key, "ab12".to_owned(), 77));
    }

    #[test]
    fn versions_are_ordered_by_number() {
        assert!(numbers_of("1.10.0") > numbers_of("1.9.3"));
    }

    #[test]
    fn files_without_an_entry_go_and_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let key = ("a".to_owned(), "1".to_owned());
        let stored = BTreeMap::from([(key, Stored { digest: "d1".into(), bytes: 1, compiled: None })]);
        write_durably(&dir.path().join("a-1-d1.wasm"), b"x").unwrap();
        write_durably(&dir.path().join("a-1-d2.wasm"), b"x").unwrap();
        fs::write(dir.path().join("notes.txt"), b"x").unwrap();
        remove_rubbish(dir.path(), &stored);
        let mut names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|file| file_name(&file.unwrap().path())).collect();
        names.sort();
        assert_eq!(names, ["a-1-d1.wasm", "notes.txt"]);
    }
}
