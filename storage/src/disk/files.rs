//! The data directory and its open files: what both backends do with plain system calls, off the ack path.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, ReadWriteFlags};

use super::ahead::ReadAhead;
use super::{AlignedBuf, BLOCK_BYTES, Chain, DiskError, DiskVerb, FileId};

/// How a write is made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DsyncMode {
    /// `RWF_DSYNC` on the write itself: cheapest, and the error belongs to the write.
    RwfDsync,
    /// Files opened with `O_DSYNC`: the same for every write of the file.
    ODsync,
    /// `fdatasync` behind each write.
    Fdatasync,
}

impl std::fmt::Display for DsyncMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::RwfDsync => "RWF_DSYNC",
            Self::ODsync => "O_DSYNC",
            Self::Fdatasync => "fdatasync",
        })
    }
}

/// Where the files are and how they are opened.
#[derive(Clone, Debug)]
pub(super) struct DataDir {
    root: PathBuf,
    direct: bool,
    sync: DsyncMode,
    headroom_bytes: u64,
}

const WAL: &str = "wal";
const COLD: &str = "cold";

impl DataDir {
    pub(super) fn new(root: &Path, direct: bool, sync: DsyncMode) -> Self {
        Self { root: root.to_owned(), direct, sync, headroom_bytes: 0 }
    }

    pub(super) fn with_headroom(self, headroom_bytes: u64) -> Self {
        Self { headroom_bytes, ..self }
    }

    /// Whether a new file of so many bytes leaves the headroom free. Where the file system does not say, it does.
    pub(super) fn has_room_for(&self, bytes: u64) -> bool {
        let Ok(stat) = rustix::fs::statvfs(&self.root) else { return true };
        self.headroom_bytes == 0 || stat.f_bavail.saturating_mul(stat.f_frsize) >= bytes.saturating_add(self.headroom_bytes)
    }

    /// Bytes free for this user, where the file system says.
    pub(super) fn free_bytes(&self) -> Option<u64> {
        rustix::fs::statvfs(&self.root).ok().map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    pub(super) fn sync_mode(&self) -> DsyncMode {
        self.sync
    }

    /// Makes the directories, and makes them and what is in them durable: a process that died may have created something
    /// and not come to sync its entry.
    pub(super) fn prepare(root: &Path) -> Result<(), DiskError> {
        let wal = root.join(WAL);
        std::fs::create_dir_all(&wal).map_err(|error| DiskError::directory_io(DiskVerb::Create, &error))?;
        sync_directory(&wal)?;
        sync_directory(root)?;
        // The parent holds the entry of root. `/` has none, and one that we may not read is the operator's to look after.
        match root.parent().filter(|parent| !parent.as_os_str().is_empty()).map(sync_directory) {
            None | Some(Ok(()) | Err(DiskError::Directory { errno: Errno::ACCESS | Errno::PERM, .. })) => Ok(()),
            Some(failed) => failed,
        }
    }

    fn path(&self, file: FileId) -> PathBuf {
        self.root.join(file.relative_path())
    }

    fn flags(&self) -> OFlags {
        let direct = if self.direct { OFlags::DIRECT } else { OFlags::empty() };
        direct | OFlags::CLOEXEC
    }

    /// For durable writes to an existing file.
    pub(super) fn open(&self, file: FileId) -> Result<OwnedFd, DiskError> {
        self.open_with(DiskVerb::Open, file, self.flags() | OFlags::RDWR | self.dsync_flag())
    }

    /// For reading only.
    pub(super) fn open_read(&self, file: FileId) -> Result<OwnedFd, DiskError> {
        self.open_with(DiskVerb::Open, file, self.flags() | OFlags::RDONLY)
    }

    /// For durable writes, and whether the file was made just now.
    fn open_or_create(&self, file: FileId) -> Result<(OwnedFd, bool), DiskError> {
        self.create_with(file, self.flags() | OFlags::RDWR | self.dsync_flag())
    }

    /// For writes that one sync at their end makes durable, and whether the file was made just now.
    pub(super) fn open_bulk(&self, file: FileId) -> Result<(OwnedFd, bool), DiskError> {
        self.create_with(file, self.flags() | OFlags::RDWR)
    }

    fn create_with(&self, file: FileId, flags: OFlags) -> Result<(OwnedFd, bool), DiskError> {
        match rustix::fs::open(self.path(file), flags | OFlags::CREATE | OFlags::EXCL, Mode::RUSR | Mode::WUSR) {
            Ok(fd) => Ok((fd, true)),
            Err(Errno::EXIST) => Ok((self.open_with(DiskVerb::Open, file, flags)?, false)),
            Err(errno) => Err(DiskError::from_errno(DiskVerb::Create, file, errno)),
        }
    }

    fn open_with(&self, verb: DiskVerb, file: FileId, flags: OFlags) -> Result<OwnedFd, DiskError> {
        rustix::fs::open(self.path(file), flags, Mode::empty()).map_err(|errno| DiskError::from_errno(verb, file, errno))
    }

    fn dsync_flag(&self) -> OFlags {
        if self.sync == DsyncMode::ODsync { OFlags::DSYNC } else { OFlags::empty() }
    }

    /// Makes the directory entry of a file durable.
    pub(super) fn sync_entry(&self, file: FileId) -> Result<(), DiskError> {
        match file {
            FileId::Superblock => sync_directory(&self.root),
            FileId::Segment(_) => sync_directory(&self.root.join(WAL)),
            FileId::Cold(_) | FileId::Promoted(_) | FileId::Remade(_) => sync_directory(&self.root.join(COLD)),
        }
    }

    /// Makes `cold/`, durably; a log without a cold tier has none.
    pub(super) fn prepare_cold(&self) -> Result<(), DiskError> {
        std::fs::create_dir_all(self.root.join(COLD)).map_err(|error| DiskError::directory_io(DiskVerb::Create, &error))?;
        sync_directory(&self.root)
    }

    pub(super) fn list_cold(&self) -> Result<Vec<FileId>, DiskError> {
        let failed = |error: std::io::Error| DiskError::directory_io(DiskVerb::List, &error);
        let entries = match std::fs::read_dir(self.root.join(COLD)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let mut files = Vec::new();
        for entry in entries {
            files.extend(entry.map_err(failed)?.file_name().to_str().and_then(FileId::cold_file));
        }
        files.sort_unstable();
        Ok(files)
    }

    /// Gives a file another name, durably.
    pub(super) fn rename(&self, from: FileId, to: FileId) -> Result<(), DiskError> {
        rustix::fs::rename(self.path(from), self.path(to))
            .map_err(|errno| DiskError::from_errno(DiskVerb::Rename, from, errno))?;
        self.sync_entry(to)?;
        self.sync_entry(from)
    }

    /// Gives a file a second name, durably.
    pub(super) fn link(&self, from: FileId, to: FileId) -> Result<(), DiskError> {
        self.remove(to)?;
        rustix::fs::link(self.path(from), self.path(to)).map_err(|errno| DiskError::from_errno(DiskVerb::Link, from, errno))?;
        self.sync_entry(to)
    }

    /// Names of a file; 0 where there is none.
    pub(super) fn links(&self, file: FileId) -> Result<u64, DiskError> {
        match rustix::fs::stat(self.path(file)) {
            #[allow(clippy::unnecessary_cast, reason = "the field's width differs between architectures")]
            Ok(stat) => Ok(stat.st_nlink as u64),
            Err(Errno::NOENT) => Ok(0),
            Err(errno) => Err(DiskError::from_errno(DiskVerb::Stat, file, errno)),
        }
    }

    pub(super) fn list_segments(&self) -> Result<Vec<u32>, DiskError> {
        let failed = |error: std::io::Error| DiskError::directory_io(DiskVerb::List, &error);
        let mut numbers = Vec::new();
        for entry in std::fs::read_dir(self.root.join(WAL)).map_err(failed)? {
            numbers.extend(entry.map_err(failed)?.file_name().to_str().and_then(FileId::segment_number));
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    pub(super) fn size(&self, file: FileId) -> Result<Option<u64>, DiskError> {
        match rustix::fs::stat(self.path(file)) {
            Ok(stat) => Ok(Some(u64::try_from(stat.st_size).unwrap_or(0))),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(DiskError::from_errno(DiskVerb::Stat, file, errno)),
        }
    }

    /// Removes a file, durably. One that is not there counts as removed.
    pub(super) fn remove(&self, file: FileId) -> Result<(), DiskError> {
        match rustix::fs::unlink(self.path(file)) {
            Ok(()) | Err(Errno::NOENT) => self.sync_entry(file),
            Err(errno) => Err(DiskError::from_errno(DiskVerb::Remove, file, errno)),
        }
    }
}

fn sync_directory(path: &Path) -> Result<(), DiskError> {
    let failed = |errno| DiskError::Directory { verb: DiskVerb::Sync, errno };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(failed)?;
    rustix::fs::fsync(fd).map_err(failed)
}

/// Reads until `out` is full.
pub(super) fn read_exact(fd: &OwnedFd, file: FileId, at: u64, out: &mut [u8]) -> Result<(), DiskError> {
    let (wanted, mut done) = (out.len(), 0);
    while done < wanted {
        match rustix::io::preadv(fd, &mut [IoSliceMut::new(&mut out[done..])], at + done as u64) {
            // A read that stops inside a block has met the end of the file.
            Ok(read) if read == 0 || (done + read < wanted && !read.is_multiple_of(BLOCK_BYTES)) => {
                let (wanted, done) = (wanted as u64, (done + read) as u64);
                return Err(DiskError::Short { verb: DiskVerb::Read, file, at, wanted, done });
            }
            Ok(read) => done += read,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(DiskError::from_errno(DiskVerb::Read, file, errno)),
        }
    }
    Ok(())
}

/// Writes all of `data`; with a sync mode, durably. A short write goes on with the rest, whose error tells why.
pub(super) fn write_all(
    fd: &OwnedFd,
    verb: DiskVerb,
    file: FileId,
    at: u64,
    data: &[u8],
    sync: Option<DsyncMode>,
) -> Result<(), DiskError> {
    let flags = if sync == Some(DsyncMode::RwfDsync) { ReadWriteFlags::DSYNC } else { ReadWriteFlags::empty() };
    let mut done = 0;
    while done < data.len() {
        match rustix::io::pwritev2(fd, &[IoSlice::new(&data[done..])], at + done as u64, flags) {
            Ok(written) if written == 0 || !written.is_multiple_of(BLOCK_BYTES) => {
                let (wanted, done) = (data.len() as u64, (done + written) as u64);
                return Err(DiskError::Short { verb, file, at, wanted, done });
            }
            Ok(written) => done += written,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(DiskError::from_errno(verb, file, errno)),
        }
    }
    if sync == Some(DsyncMode::Fdatasync) {
        rustix::fs::fdatasync(fd).map_err(|errno| DiskError::from_errno(DiskVerb::Sync, file, errno))?;
    }
    Ok(())
}

/// Checks that a request is whole blocks within its buffer. A breach is our own mistake.
pub(super) fn assert_blocks(at: u64, bytes: usize, held: usize) {
    assert!(at.is_multiple_of(BLOCK_BYTES as u64) && bytes.is_multiple_of(BLOCK_BYTES), "the disk takes whole blocks");
    assert!(bytes > 0 && bytes <= held, "a request lies within its buffer");
}

/// Files kept open, the least recently used closed first. A file in use stays open through its `Arc`.
pub(super) struct OpenFiles<F> {
    /// Oldest use first.
    files: Vec<(FileId, F)>,
    max: usize,
}

impl<F: Clone> OpenFiles<F> {
    pub(super) fn new(max: usize) -> Self {
        Self { files: Vec::with_capacity(max), max }
    }

    /// The open file, opened now if needed.
    pub(super) fn get<E>(&mut self, file: FileId, open: impl FnOnce() -> Result<F, E>) -> Result<F, E> {
        let entry = match self.files.iter().position(|(id, _)| *id == file) {
            Some(at) => self.files.remove(at),
            None => (file, open()?),
        };
        if self.files.len() == self.max {
            self.files.remove(0);
        }
        let found = entry.1.clone();
        self.files.push(entry);
        Ok(found)
    }

    pub(super) fn close(&mut self, file: FileId) {
        self.files.retain(|(id, _)| *id != file);
    }
}

/// What every backend does synchronously, with its open files.
pub(super) struct Files {
    pub(super) dir: DataDir,
    open: OpenFiles<Arc<OwnedFd>>,
    ahead: ReadAhead,
}

/// The superblock, the segments being written and zero-filled, and some for recovery.
const FILES_OPEN_MAX: usize = 16;

impl Files {
    pub(super) fn new(dir: DataDir) -> Self {
        Self { dir, open: OpenFiles::new(FILES_OPEN_MAX), ahead: ReadAhead::default() }
    }

    /// An existing file, for durable writes.
    pub(super) fn get(&mut self, file: FileId) -> Result<Arc<OwnedFd>, DiskError> {
        self.open.get(file, || self.dir.open(file).map(Arc::new))
    }

    pub(super) fn read(&mut self, file: FileId, at: u64, buf: &mut AlignedBuf, bytes: usize) -> Result<(), DiskError> {
        assert_blocks(at, bytes, buf.len());
        if self.ahead.take(file, at, buf, bytes) {
            return Ok(());
        }
        read_exact(&*self.get(file)?, file, at, &mut buf[..bytes])
    }

    /// Begins to read what will probably be asked for next. An error is told when it is.
    pub(super) fn read_ahead(&mut self, file: FileId, at: u64, bytes: usize) {
        if let Ok(fd) = self.get(file) {
            self.ahead.hint(fd, file, at, bytes);
        }
    }

    /// The same for reads that each say where the next one is.
    pub(super) fn read_chain(&mut self, chain: Chain) {
        if let Ok(fd) = self.get(chain.file) {
            self.ahead.chain(fd, chain);
        }
    }

    pub(super) fn end_read_ahead(&mut self) {
        self.ahead.end();
    }

    pub(super) fn write_now(&mut self, file: FileId, at: u64, data: &AlignedBuf, bytes: usize) -> Result<(), DiskError> {
        assert_blocks(at, bytes, data.len());
        self.ahead.forget();
        let mut created = false;
        let dir = &self.dir;
        let fd = self.open.get(file, || {
            let (fd, new) = dir.open_or_create(file)?;
            created = new;
            Ok::<_, DiskError>(Arc::new(fd))
        })?;
        write_all(&fd, DiskVerb::Write, file, at, &data[..bytes], Some(self.dir.sync))?;
        if created { self.dir.sync_entry(file) } else { Ok(()) }
    }

    /// Lets go of a file that nobody writes to any more.
    pub(super) fn close(&mut self, file: FileId) {
        self.open.close(file);
    }

    pub(super) fn remove(&mut self, file: FileId) -> Result<(), DiskError> {
        self.ahead.forget();
        self.open.close(file);
        self.dir.remove(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_file_is_closed_first() {
        let mut files = OpenFiles::new(2);
        let mut opened = Vec::new();
        for number in [1, 2, 1, 3, 1, 2] {
            let got: Result<u32, ()> = files.get(FileId::Segment(number), || {
                opened.push(number);
                Ok(number)
            });
            assert_eq!(got, Ok(number));
        }
        assert_eq!(opened, [1, 2, 3, 2], "3 pushed out 2, since 1 was used after it");
        files.close(FileId::Segment(2));
        assert_eq!(files.get(FileId::Segment(2), || Err(7)), Err(7));
        assert_eq!(files.files.len(), 1);
    }
}
