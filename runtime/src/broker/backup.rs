//! Backups of the running node: one at a time, on a thread of its own, into a directory below `backup.dir`. The log does the work
//! (`storage/src/backup`); here is who may ask for it, where it may go, and what is told of it.

use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use weir_storage::backup::{BackupError, BackupOptions, BackupReport};

use super::{Broker, Refusal, lock};
use crate::config::{BackupSection, Right};

/// It gets what producers and consumers leave of the processor.
const NICE: i32 = 10;

/// The node's backups.
#[derive(Debug)]
pub(super) struct Backups {
    root: PathBuf,
    data_dir: PathBuf,
    bandwidth_bytes_max: Option<u64>,
    latest: Mutex<Option<Arc<Run>>>,
}

/// One backup, under way or over.
#[derive(Debug)]
struct Run {
    number: u64,
    dir: PathBuf,
    started_ms: u64,
    started: Instant,
    stop: AtomicBool,
    bytes_done: AtomicU64,
    bytes_total: AtomicU64,
    result: Mutex<Option<(Result<BackupReport, String>, u64)>>,
}

impl Backups {
    pub(super) fn new(section: &BackupSection, data_dir: &Path) -> Backups {
        Backups {
            root: section.dir.clone(),
            data_dir: data_dir.to_owned(),
            bandwidth_bytes_max: Some(section.bandwidth_bytes_max).filter(|bytes| *bytes > 0),
            latest: Mutex::default(),
        }
    }

    /// Asks the running one to stop.
    pub(super) fn stop(&self) {
        if let Some(run) = &*lock(&self.latest) {
            run.stop.store(true, Ordering::Relaxed);
        }
    }

    fn json(&self) -> Value {
        lock(&self.latest).as_ref().map_or_else(|| json!({ "state": "none" }), |run| run.json())
    }
}

impl Run {
    fn is_over(&self) -> bool {
        lock(&self.result).is_some()
    }

    fn json(&self) -> Value {
        let mut value = json!({
            "number": self.number,
            "dir": self.dir.display().to_string(),
            "started_ms": self.started_ms,
            "bytes_done": self.bytes_done.load(Ordering::Relaxed),
            "bytes_total": self.bytes_total.load(Ordering::Relaxed),
        });
        match &*lock(&self.result) {
            None => value["state"] = "running".into(),
            Some((Ok(report), took_ms)) => {
                value["state"] = "done".into();
                value["took_ms"] = (*took_ms).into();
                value["report"] = report_json(report);
            }
            Some((Err(error), took_ms)) => {
                value["state"] = "failed".into();
                value["took_ms"] = (*took_ms).into();
                value["error"] = error.clone().into();
            }
        }
        value
    }
}

/// The same fields wherever a backup is told of.
pub(crate) fn report_json(report: &BackupReport) -> Value {
    json!({
        "generation": report.generation,
        "last_lsn": report.lsn,
        "files": report.files,
        "bytes": report.bytes,
        "copied_files": report.copied_files,
        "copied_bytes": report.copied_bytes,
        "generations_removed": report.generations_removed,
        "files_removed": report.files_removed,
        "bytes_removed": report.bytes_removed,
        "damaged_generations": report.damaged,
        "source_damage": report.source_damage,
    })
}

impl Broker {
    /// Starts a backup into a directory below `backup.dir`, of which `keep` generations stay (0: all). Answers what
    /// [`Broker::backup_status`] does.
    pub fn start_backup(self: &Arc<Self>, principal: &str, dir: &str, keep: u32) -> Result<Value, Refusal> {
        self.acl.check_node(principal, Right::Admin)?;
        let problem = |problem: String| Refusal::InvalidArgument { field: "dir", problem };
        let dir = resolve(&self.backups.root, &self.backups.data_dir, dir).map_err(problem)?;
        let mut latest = lock(&self.backups.latest);
        if latest.as_ref().is_some_and(|run| !run.is_over()) {
            return Err(Refusal::Quota { what: "one backup of a node at a time".to_owned() });
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let run = Arc::new(Run {
            number: latest.as_ref().map_or(1, |run| run.number + 1),
            dir,
            started_ms: now.as_millis() as u64,
            started: Instant::now(),
            stop: AtomicBool::new(false),
            bytes_done: AtomicU64::new(0),
            bytes_total: AtomicU64::new(0),
            result: Mutex::default(),
        });
        let (broker, working) = (self.clone(), run.clone());
        let spawned = std::thread::Builder::new().name("weir-backup".to_owned()).spawn(move || broker.back_up(&working, keep));
        spawned.map_err(|error| Refusal::Internal { reason: format!("no thread for the backup: {error}") })?;
        tracing::info!(dir = %run.dir.display(), principal, "backup started");
        let value = run.json();
        *latest = Some(run);
        Ok(value)
    }

    /// How far the running backup is, or what came of the last one.
    pub fn backup_status(&self, principal: &str) -> Result<Value, Refusal> {
        self.acl.check_node(principal, Right::Admin)?;
        Ok(self.backups.json())
    }

    /// Stops the running backup.
    pub fn stop_backup(&self, principal: &str) -> Result<Value, Refusal> {
        self.acl.check_node(principal, Right::Admin)?;
        self.backups.stop();
        Ok(self.backups.json())
    }

    /// For the status.
    pub(crate) fn backup_json(&self) -> Value {
        self.backups.json()
    }

    /// The thread's work.
    fn back_up(&self, run: &Run, keep: u32) {
        if let Err(error) = rustix::process::setpriority_process(None, NICE) {
            tracing::warn!(%error, "the backup runs at the priority of everything else");
        }
        // However it ends, it is not "running" any more.
        let made = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.copy(run, keep)));
        let result = match made {
            Ok(result) => result.map_err(|error| error.to_string()),
            Err(_) => Err("it panicked: this is a bug; the generations made before are whole".to_owned()),
        };
        match &result {
            Ok(report) => tracing::info!(
                dir = %run.dir.display(),
                generation = report.generation,
                bytes = report.bytes,
                copied_bytes = report.copied_bytes,
                "backup made"
            ),
            Err(error) => tracing::error!(dir = %run.dir.display(), error, "no backup was made"),
        }
        *lock(&run.result) = Some((result, run.started.elapsed().as_millis() as u64));
    }

    fn copy(&self, run: &Run, keep: u32) -> Result<BackupReport, BackupError> {
        let options = BackupOptions {
            keep: Some(u64::from(keep)).filter(|keep| *keep > 0),
            bandwidth_bytes_max: self.backups.bandwidth_bytes_max,
        };
        // No plugin comes or goes between the log's state and the copies of their files.
        let mut admin = Some(self.admin.blocking_lock());
        self.log.backup(&run.dir, options, &run.stop, &mut || drop(admin.take()), &mut |progress| {
            run.bytes_total.store(progress.bytes_total, Ordering::Relaxed);
            run.bytes_done.store(progress.bytes_done, Ordering::Relaxed);
        })
    }
}

/// Where a backup that was asked for over the network may go: below the directory that the operator has set, whatever links lie there.
fn resolve(root: &Path, data_dir: &Path, asked: &str) -> Result<PathBuf, String> {
    if root.as_os_str().is_empty() {
        return Err("this node makes no backups while it runs: set backup.dir in its configuration, or stop it and name its data directory with --data".to_owned());
    }
    let real = root
        .canonicalize()
        .map_err(|error| format!("backup.dir {} on the node: {error}; is its disk mounted?", root.display()))?;
    let asked = Path::new(asked);
    let below = if asked.is_absolute() { asked.strip_prefix(root).or_else(|_| asked.strip_prefix(&real)) } else { Ok(asked) };
    let outside = || format!("{} does not lie below the node's backup.dir, {}", asked.display(), root.display());
    let below = below.map_err(|_| outside())?;
    let mut path = real.clone();
    for part in below.components() {
        match part {
            Component::Normal(part) => path.push(part),
            Component::CurDir => {}
            _ => return Err(outside()),
        }
        if path.is_symlink() {
            path = path.canonicalize().ok().filter(|path| path.starts_with(&real)).ok_or_else(outside)?;
        }
    }
    if data_dir.canonicalize().is_ok_and(|data| path.starts_with(data)) {
        return Err(format!("{} lies in the node's data directory: a backup belongs on another disk", path.display()));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backups_go_below_their_directory_and_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let (root, data) = (dir.path().join("backups"), dir.path().join("data"));
        std::fs::create_dir_all(root.join("inside")).unwrap();
        std::fs::create_dir_all(&data).unwrap();
        std::os::unix::fs::symlink("/", root.join("out")).unwrap();
        std::os::unix::fs::symlink("inside", root.join("in")).unwrap();
        let root = root.canonicalize().unwrap();
        let absolute = root.join("a/b").display().to_string();
        for (asked, found) in
            [("node-1", "node-1"), ("a/b", "a/b"), (&absolute, "a/b"), ("in", "inside"), (".", ""), ("in/x", "inside/x")]
        {
            assert_eq!(resolve(&root, &data, asked).unwrap(), root.join(found), "{asked}");
        }
        for asked in ["/etc", "..", "../data", "a/../../data", "out", "out/etc", "/"] {
            assert!(resolve(&root, &data, asked).unwrap_err().contains("does not lie below"), "{asked}");
        }
        assert!(resolve(Path::new(""), &data, "x").unwrap_err().contains("backup.dir"));
        assert!(resolve(&dir.path().join("unmounted"), &data, "x").unwrap_err().contains("mounted"));
        assert!(resolve(&data, &data, "x").unwrap_err().contains("data directory"));
    }
}
