//! The backup directory, one step at a time: what a crash leaves of it depends on which of these have happened. The order is kept
//! in `run.rs`; here is only how each is done on a real disk.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, FlockOperation, flock};

use super::BackupError;

/// End of the name of a file that is being written.
pub(super) const PART: &str = ".part";
/// Dirty pages of one file at most: a slow disk must not fill the memory that the node's own writes go through.
const DIRTY_BYTES_MAX: u64 = 8 << 20;

/// The two folders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Folder {
    Files,
    Generations,
}

impl Folder {
    fn name(self) -> &'static str {
        match self {
            Folder::Files => "files",
            Folder::Generations => "generations",
        }
    }
}

/// A backup directory.
pub(crate) trait Vault {
    /// Names and sizes, unfinished files included.
    fn list(&mut self, folder: Folder) -> Result<Vec<(String, u64)>, BackupError>;
    /// An empty file, written to from now on.
    fn create(&mut self, folder: Folder, name: &str) -> Result<(), BackupError>;
    /// Adds to that file.
    fn append(&mut self, bytes: &[u8]) -> Result<(), BackupError>;
    /// Makes that file's bytes durable and closes it.
    fn sync(&mut self) -> Result<(), BackupError>;
    /// Gives a file its name.
    fn rename(&mut self, folder: Folder, from: &str, to: &str) -> Result<(), BackupError>;
    /// Removes a file.
    fn remove(&mut self, folder: Folder, name: &str) -> Result<(), BackupError>;
    /// Makes the folder's names durable.
    fn sync_folder(&mut self, folder: Folder) -> Result<(), BackupError>;
    /// Fills `buf` from `at` on as far as the file goes.
    fn read(&mut self, folder: Folder, name: &str, at: u64, buf: &mut [u8]) -> Result<usize, BackupError>;
    /// Bytes that are free, where that is known.
    fn room(&mut self) -> Option<u64>;
}

/// A directory of a real machine.
#[derive(Debug)]
pub(crate) struct DirVault {
    root: PathBuf,
    writing: Option<(PathBuf, File, u64)>,
    reading: Option<(PathBuf, File)>,
    _lock: Option<File>,
}

impl DirVault {
    /// To write to. Made where it is missing; refused where something else lies there.
    pub(crate) fn open(root: &Path) -> Result<DirVault, BackupError> {
        let vault = DirVault { root: root.to_owned(), writing: None, reading: None, _lock: None };
        std::fs::create_dir_all(root).map_err(error("making", root))?;
        if !root.join(Folder::Generations.name()).is_dir() {
            for entry in std::fs::read_dir(root).map_err(error("listing", root))? {
                let name = entry.map_err(error("listing", root))?.file_name();
                // A file system's own, at the root of a freshly made one, and what a first backup was cut off at.
                if !["lost+found", "LOCK", "files"].contains(&&*name.to_string_lossy()) {
                    return Err(BackupError::NotABackup { path: root.to_owned(), holds: name.to_string_lossy().into_owned() });
                }
            }
        }
        let path = root.join("LOCK");
        let lock = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let lock = lock.map_err(error("opening", &path))?;
        held(flock(&lock, FlockOperation::NonBlockingLockExclusive), root)?;
        for folder in [Folder::Files, Folder::Generations] {
            let path = root.join(folder.name());
            std::fs::create_dir_all(&path).map_err(error("making", &path))?;
        }
        sync_dir(root)?;
        Ok(DirVault { _lock: Some(lock), ..vault })
    }

    /// To read from: also from a disk that is mounted read-only.
    pub(crate) fn open_read(root: &Path) -> Result<DirVault, BackupError> {
        if !root.join(Folder::Generations.name()).is_dir() {
            return Err(BackupError::NoBackup(root.to_owned()));
        }
        let lock = File::open(root.join("LOCK")).ok();
        if let Some(lock) = &lock {
            held(flock(lock, FlockOperation::NonBlockingLockShared), root)?;
        }
        Ok(DirVault { root: root.to_owned(), writing: None, reading: None, _lock: lock })
    }

    fn path(&self, folder: Folder, name: &str) -> PathBuf {
        self.root.join(folder.name()).join(name)
    }
}

fn held(result: rustix::io::Result<()>, root: &Path) -> Result<(), BackupError> {
    match result {
        Err(rustix::io::Errno::WOULDBLOCK) => Err(BackupError::Locked(root.to_owned())),
        // Some network file systems have no locks; then nothing but the operator keeps two apart.
        Ok(()) | Err(_) => Ok(()),
    }
}

pub(super) fn error(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> BackupError + use<> {
    let path = path.to_owned();
    move |source| BackupError::Io { what, path, source }
}

/// Makes a directory's entries durable.
pub(super) fn sync_dir(path: &Path) -> Result<(), BackupError> {
    match File::open(path).and_then(|dir| dir.sync_all()) {
        // File systems that cannot do that (network, FUSE) say so like this; they have no better way.
        Err(unable) if unable.kind() == ErrorKind::InvalidInput => Ok(()),
        synced => synced.map_err(error("syncing", path)),
    }
}

/// What was written stays on the disk, and leaves the page cache to others.
pub(super) fn flush_out(file: &File, path: &Path) -> Result<(), BackupError> {
    file.sync_data().map_err(error("syncing", path))?;
    forget(file);
    Ok(())
}

fn forget(file: &File) {
    // Advice: where it is not taken, nothing is wrong.
    let _ = rustix::fs::fadvise(file, 0, None, Advice::DontNeed);
}

/// Fills `buf` from `at` on as far as the file goes.
pub(super) fn read_up_to(file: &File, path: &Path, at: u64, buf: &mut [u8]) -> Result<usize, BackupError> {
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(&mut buf[done..], at + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(interrupted) if interrupted.kind() == ErrorKind::Interrupted => {}
            Err(failed) => return Err(error("reading", path)(failed)),
        }
    }
    let length = std::num::NonZeroU64::new(done as u64);
    let _ = length.map(|length| rustix::fs::fadvise(file, at, Some(length), Advice::DontNeed));
    Ok(done)
}

impl Vault for DirVault {
    fn list(&mut self, folder: Folder) -> Result<Vec<(String, u64)>, BackupError> {
        let path = self.root.join(folder.name());
        let mut found = Vec::new();
        let entries = match std::fs::read_dir(&path) {
            Err(missing) if missing.kind() == ErrorKind::NotFound => return Ok(found),
            entries => entries.map_err(error("listing", &path))?,
        };
        for entry in entries {
            let entry = entry.map_err(error("listing", &path))?;
            let metadata = entry.metadata().map_err(error("looking at", &entry.path()))?;
            if let (true, Ok(name)) = (metadata.is_file(), entry.file_name().into_string()) {
                found.push((name, metadata.len()));
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    fn create(&mut self, folder: Folder, name: &str) -> Result<(), BackupError> {
        let path = self.path(folder, name);
        let file = File::create(&path).map_err(error("making", &path))?;
        self.writing = Some((path, file, 0));
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), BackupError> {
        let (path, file, dirty) = self.writing.as_mut().expect("created before");
        file.write_all(bytes).map_err(error("writing", path))?;
        *dirty += bytes.len() as u64;
        if *dirty >= DIRTY_BYTES_MAX {
            flush_out(file, path)?;
            *dirty = 0;
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), BackupError> {
        let (path, file, _) = self.writing.take().expect("created before");
        file.sync_all().map_err(error("syncing", &path))?;
        forget(&file);
        Ok(())
    }

    fn rename(&mut self, folder: Folder, from: &str, to: &str) -> Result<(), BackupError> {
        let path = self.path(folder, from);
        std::fs::rename(&path, self.path(folder, to)).map_err(error("renaming", &path))
    }

    fn remove(&mut self, folder: Folder, name: &str) -> Result<(), BackupError> {
        let path = self.path(folder, name);
        match std::fs::remove_file(&path) {
            Err(missing) if missing.kind() == ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(error("removing", &path)),
        }
    }

    fn sync_folder(&mut self, folder: Folder) -> Result<(), BackupError> {
        sync_dir(&self.root.join(folder.name()))
    }

    fn read(&mut self, folder: Folder, name: &str, at: u64, buf: &mut [u8]) -> Result<usize, BackupError> {
        let path = self.path(folder, name);
        if self.reading.as_ref().is_none_or(|(open, _)| *open != path) {
            let file = File::open(&path).map_err(error("opening", &path))?;
            self.reading = Some((path, file));
        }
        let (path, file) = self.reading.as_ref().expect("opened above");
        read_up_to(file, path, at, buf)
    }

    fn room(&mut self) -> Option<u64> {
        let stat = rustix::fs::statvfs(&self.root).ok()?;
        Some(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}
