//! One node per directory: `LOCK` is held with flock(2) for as long as the log is open, and names its holder.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use crate::report::OpenError;

/// Holds the directory; lets go when dropped.
#[derive(Debug)]
pub(crate) struct DirLock(#[expect(dead_code, reason = "held, not used")] File);

impl DirLock {
    /// Makes the directory if it is missing and takes its lock.
    pub(crate) fn acquire(dir: &Path) -> Result<DirLock, OpenError> {
        let error = |what, path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Directory { what, path, source }
        };
        std::fs::create_dir_all(dir).map_err(error("making the directory", dir))?;
        let path = dir.join("LOCK");
        let mut file =
            File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(error("opening", &path))?;
        if let Err(errno) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
            if errno != rustix::io::Errno::WOULDBLOCK {
                return Err(error("locking", &path)(errno.into()));
            }
            let mut pid = String::new();
            // Only for the message: an unreadable pid must not hide that the directory is taken.
            let _ = file.read_to_string(&mut pid);
            return Err(OpenError::InUse { path: dir.to_owned(), pid: pid.trim().to_owned() });
        }
        let written = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
        if let Err(source) = written {
            // On a full disk the lock holds all the same.
            tracing::warn!(%source, path = %path.display(), "the process id could not be written into LOCK");
        }
        Ok(DirLock(file))
    }

    /// Keeps nodes out while the directory is read, without writing anything; several may do so at once. A directory without a LOCK
    /// (a copy) has no node: `None`.
    pub(crate) fn share(dir: &Path) -> Result<Option<DirLock>, OpenError> {
        let path = dir.join("LOCK");
        let error = |what| {
            let path = path.clone();
            move |source| OpenError::Directory { what, path, source }
        };
        let mut file = match File::open(&path) {
            Err(missing) if missing.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(error("opening"))?,
        };
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(Some(DirLock(file))),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                let _ = file.read_to_string(&mut pid);
                Err(OpenError::InUse { path: dir.to_owned(), pid: pid.trim().to_owned() })
            }
            Err(errno) => Err(error("locking")(errno.into())),
        }
    }
}

/// Makes everything a killed process left in the page cache durable, before recovery believes any of it.
pub(crate) fn sync_files(dir: &Path) -> Result<(), OpenError> {
    let error = |path: &Path| {
        let path = path.to_owned();
        move |source| OpenError::Directory { what: "syncing", path, source }
    };
    let wal = dir.join("wal");
    let mut paths = vec![dir.join("superblock")];
    if wal.exists() {
        for entry in std::fs::read_dir(&wal).map_err(error(&wal))? {
            paths.push(entry.map_err(error(&wal))?.path());
        }
    }
    for path in paths.iter().filter(|path| path.is_file()) {
        File::open(path).and_then(|file| file.sync_all()).map_err(error(path))?;
    }
    Ok(())
}
