//! The disk as the log sees it: blocks written durably, files zero-filled, and what went wrong with either.
//!
//! The log thread owns one `Disk` and is the only one that touches it: it submits writes, polls for completions, and
//! sleeps in `poll` until one arrives or a `Waker` says that appends are waiting. Catch-up reads of old frames go through
//! a `Reader` on a thread of its own, so that they never stand in the way of an acknowledgement.
//!
//! Backends: `uring` (io_uring, O_DIRECT and RWF_DSYNC), `plain` (pwritev2 on helper threads, where io_uring is refused), the
//! simulated disk of the tests, and `mirror`, which makes one disk of two. `probe` finds out which of the first two this machine
//! allows and what one durable write costs. A completed write is durable: there is no separate flush that could fail after the acknowledgement.

mod ahead;
mod attended;
pub mod buf;
mod cold;
mod files;
pub mod mirror;
mod plain;
mod probe;
mod reader;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
mod uring;
pub mod volumes;
mod zero;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::Bytes;
use rustix::io::Errno;

pub(crate) use cold::Limiter;

pub use buf::{AlignedBuf, BLOCK_BYTES, BufPool, blocks_up};
pub use files::DsyncMode;
pub use probe::{Backend, DiskProbe};

/// A file of the data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FileId {
    /// `superblock`
    Superblock,
    /// `wal/00000.wal` and so on, by number of the file.
    Segment(u32),
    /// `cold/00000001.cold` and so on, by number of the cold segment.
    Cold(u32),
    /// `cold/00000001.wal`: a WAL segment that has become the cold segment of this number as it is.
    Promoted(u32),
    /// `cold/00000001.new`: a copy of the cold segment of this number that is being made anew.
    Remade(u32),
}

impl FileId {
    /// Where the file lies below the data directory.
    #[must_use]
    pub fn relative_path(self) -> PathBuf {
        PathBuf::from(self.to_string())
    }

    /// The file with this name inside `cold/`, if it is one of ours.
    #[must_use]
    pub fn cold_file(name: &str) -> Option<Self> {
        let (digits, kind) = name.rsplit_once('.')?;
        let number: u32 = digits.parse().ok()?;
        let file = match kind {
            "cold" => Self::Cold(number),
            "new" => Self::Remade(number),
            _ => Self::Promoted(number),
        };
        (file.to_string().strip_prefix("cold/") == Some(name)).then_some(file)
    }

    /// The number of the segment file with this name inside `wal/`, if it is one.
    #[must_use]
    pub fn segment_number(name: &str) -> Option<u32> {
        let digits = name.strip_suffix(".wal")?;
        let number: u32 = digits.parse().ok()?;
        // Only the one spelling counts, so that two names can never mean one file.
        (format!("{number:05}") == digits).then_some(number)
    }
}

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Superblock => f.write_str("superblock"),
            Self::Segment(number) => write!(f, "wal/{number:05}.wal"),
            Self::Cold(number) => write!(f, "cold/{number:08}.cold"),
            Self::Promoted(number) => write!(f, "cold/{number:08}.wal"),
            Self::Remade(number) => write!(f, "cold/{number:08}.new"),
        }
    }
}

/// Work for the disk. Offsets and lengths are multiples of 4096.
#[derive(Debug, Clone)]
pub enum DiskOp {
    /// Writes the first `bytes` bytes of `data` at `at` of an existing file; durable when it completes.
    ///
    /// Data must already be allocated on disk (zero-filled) for the cost to be one write; elsewhere it is correct but slow.
    Write {
        /// Which file.
        file: FileId,
        /// Byte offset in it.
        at: u64,
        /// The bytes; kept alive by the disk until the completion is out.
        data: Arc<AlignedBuf>,
        /// How many of them.
        bytes: usize,
    },
    /// Creates the file if needed, fills its first `bytes` bytes with zeros, cuts it to that size, and makes file and
    /// directory entry durable. Runs in the background, in pieces, behind the writes.
    Zero {
        /// Which file.
        file: FileId,
        /// Its size from now on.
        bytes: u64,
        /// A file that nobody needs any more: if it has this size and no other name it becomes the file by a rename, with whatever is
        /// in it behind its first block, which saves the zeros.
        reuse: Option<FileId>,
    },
    /// Takes a file's name away, durably. What is in it lives on if it has another one. Runs in the background.
    Discard {
        /// Which file.
        file: FileId,
    },
}

/// What became of the operation that was submitted under `id`.
#[derive(Debug)]
pub struct DiskCompletion {
    /// As given to `Disk::submit`.
    pub id: u64,
    /// `Ok` means durable.
    pub result: Result<(), DiskError>,
}

/// What was being done to a file when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is the verb in the error's sentence")]
pub enum DiskVerb {
    Open,
    Create,
    Read,
    Write,
    Sync,
    ZeroFill,
    Rename,
    Link,
    Remove,
    List,
    Stat,
    Probe,
    Thread,
}

impl fmt::Display for DiskVerb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "opening",
            Self::Create => "creating",
            Self::Read => "reading",
            Self::Write => "writing",
            Self::Sync => "syncing",
            Self::ZeroFill => "zero-filling",
            Self::Rename => "renaming",
            Self::Link => "giving another name to",
            Self::Remove => "removing",
            Self::List => "listing",
            Self::Stat => "looking at",
            Self::Probe => "probing",
            Self::Thread => "starting a thread for",
        })
    }
}

/// A failure of the disk. Small and copyable, since the log keeps the one that fenced it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// No space or no quota is left; told by the error number, never by its text.
    #[error("the disk is full: {verb} {file} found no space; free some space or let retention keep less")]
    Full {
        /// What was being done.
        verb: DiskVerb,
        /// To which file.
        file: FileId,
    },
    /// The file is not there.
    #[error("{verb} {file} failed: the file is missing; put it back from where it went, or look for the disk that holds it")]
    Missing {
        /// What was being done.
        verb: DiskVerb,
        /// To which file.
        file: FileId,
    },
    /// The kernel said no.
    #[error("{verb} {file} failed: {errno}; {}", advice(*.errno))]
    Io {
        /// What was being done.
        verb: DiskVerb,
        /// To which file.
        file: FileId,
        /// The kernel's reason.
        errno: Errno,
    },
    /// Nothing came back, for too long. That says nothing about what is stored there.
    #[error("{verb} {file} takes too long: the disk does not answer; look at its cable and at the kernel log, or replace it")]
    Hangs {
        /// What was being done.
        verb: DiskVerb,
        /// To which file.
        file: FileId,
    },
    /// The kernel said no to something about the directory itself.
    #[error("{verb} the data directory failed: {errno}; {}", advice(*.errno))]
    Directory {
        /// What was being done.
        verb: DiskVerb,
        /// The kernel's reason.
        errno: Errno,
    },
    /// io_uring was asked for by name but this machine does not allow it.
    #[error("io_uring is not to be had here: {reason}; allow it, or choose the backend \"auto\" or \"plain\"")]
    NoUring {
        /// Why.
        reason: &'static str,
    },
    /// Fewer bytes than asked for, and the kernel gave no reason: the file ends early, or a write made no progress.
    #[error("{verb} {file} at {at}: {done} of {wanted} bytes; the file is shorter than the log believes")]
    Short {
        /// What was being done.
        verb: DiskVerb,
        /// To which file.
        file: FileId,
        /// Offset of the request.
        at: u64,
        /// Bytes asked for.
        wanted: u64,
        /// Bytes done.
        done: u64,
    },
    /// The backend is shutting down or its thread is gone.
    #[error("{verb} {file}: the disk is closed; restart the node")]
    Closed {
        /// What was being done.
        verb: DiskVerb,
        /// To which file.
        file: FileId,
    },
}

impl DiskError {
    /// Sorts an error number into the kind that tells who can act.
    #[must_use]
    pub fn from_errno(verb: DiskVerb, file: FileId, errno: Errno) -> Self {
        match errno {
            Errno::NOSPC | Errno::DQUOT => Self::Full { verb, file },
            Errno::NOENT => Self::Missing { verb, file },
            errno => Self::Io { verb, file, errno },
        }
    }

    /// The same for a `std::io::Error`.
    #[must_use]
    pub fn from_io(verb: DiskVerb, file: FileId, error: &std::io::Error) -> Self {
        let errno = error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error);
        Self::from_errno(verb, file, errno)
    }

    fn directory_io(verb: DiskVerb, error: &std::io::Error) -> Self {
        Self::Directory { verb, errno: error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error) }
    }

    /// Whether the disk is full, so that space set free is the cure.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::Directory { errno: Errno::NOSPC | Errno::DQUOT, .. })
    }
}

impl DiskError {
    /// Whether something could not be written, made or removed, though there is room.
    #[must_use]
    pub fn is_of_writing(&self) -> bool {
        matches!(self, Self::Io { .. } | Self::Short { .. } | Self::Directory { .. }) && !self.is_of_reading() && !self.is_full()
    }

    /// Whether it was a read that failed, or what is to be read is not there.
    #[must_use]
    pub fn is_of_reading(&self) -> bool {
        match self {
            Self::Missing { verb, .. } | Self::Io { verb, .. } | Self::Short { verb, .. } => {
                matches!(verb, DiskVerb::Read | DiskVerb::Open)
            }
            _ => false,
        }
    }
}

fn advice(errno: Errno) -> &'static str {
    match errno {
        Errno::ACCESS | Errno::PERM => "give the node's user write access to the data directory",
        Errno::ROFS => "remount the file system writable; the kernel also does this itself after disk errors: see its log",
        Errno::MFILE | Errno::NFILE => "raise the limit of open files",
        Errno::FBIG => "raise the file size limit or lower segment_bytes",
        Errno::NOSPC | Errno::DQUOT => "the disk is full: free some space",
        Errno::NOTDIR => "point the configuration at a directory",
        Errno::NOMEM => "give the node more memory",
        _ => "look at the kernel log for what the disk reported",
    }
}

/// The disk under one log. Used from the log thread only.
///
/// Offsets, lengths and buffers are multiples of 4096: a breach is our own mistake and panics.
pub trait Disk: Send {
    /// Takes work under a number of the caller's choice; the answer comes out of `poll`. Never blocks, never answers inline.
    ///
    /// Writes may complete in any order; the caller bounds how many are in flight (`IN_FLIGHT_MAX`).
    fn submit(&mut self, id: u64, op: DiskOp);

    /// Appends completions to `out`. Waits for the first of them, for the waker or for `wait` to pass, whichever comes
    /// first; `None` waits for as long as it takes, `Some(Duration::ZERO)` only looks.
    fn poll(&mut self, wait: Option<Duration>, out: &mut Vec<DiskCompletion>);

    /// A handle that ends a `poll` early from any thread. A wake that comes before the `poll` ends the next one.
    fn waker(&self) -> Waker;

    /// Numbers of all segment files, ascending.
    fn list_segments(&mut self) -> Result<Vec<u32>, DiskError>;

    /// Size of a file, `None` where there is no such file.
    fn size(&mut self, file: FileId) -> Result<Option<u64>, DiskError>;

    /// Names of a file, on the copy where it has most; 0 where there is no such file. One with two must not be written to: it is a
    /// promoted segment as well.
    fn links(&mut self, file: FileId) -> Result<u64, DiskError>;

    /// Reads `bytes` bytes at `at` into the start of `buf`, which may become another buffer that is no smaller. Synchronous: for
    /// recovery only.
    fn read(&mut self, file: FileId, at: u64, buf: &mut AlignedBuf, bytes: usize) -> Result<(), DiskError>;

    /// Writes durably, creating the file (and its durable directory entry) where it is missing. Synchronous: for recovery only.
    fn write_now(&mut self, file: FileId, at: u64, data: &AlignedBuf, bytes: usize) -> Result<(), DiskError>;

    /// Removes a file, durably. Nothing of it may be in flight.
    fn remove(&mut self, file: FileId) -> Result<(), DiskError>;

    /// Copies that recovery can choose from, each with everything: two for a mirror in step.
    fn copies(&self) -> usize {
        1
    }

    /// Copies that a write completed now is durable on.
    fn durable_copies(&self) -> usize {
        1
    }

    /// `read` from one of the copies.
    fn read_copy(&mut self, copy: usize, file: FileId, at: u64, buf: &mut AlignedBuf, bytes: usize) -> Result<(), DiskError> {
        assert_eq!(copy, 0, "there is only one copy");
        self.read(file, at, buf, bytes)
    }

    /// Bytes of a read that a scan of whole files does best with.
    fn scan_bytes(&self) -> usize {
        SCAN_BYTES
    }

    /// A hint: these bytes of a copy are probably read next. Changes nothing of what a read gives.
    fn read_ahead(&mut self, _copy: usize, _file: FileId, _at: u64, _bytes: usize) {}

    /// A hint: short reads of a copy will probably follow, each where the one before says. Changes nothing either.
    fn read_chain(&mut self, _copy: usize, _chain: Chain) {}

    /// No read that a hint was about will follow.
    fn end_read_ahead(&mut self) {}

    /// `write_now` to one of the copies, which the other one showed to be wrong there.
    fn mend(&mut self, copy: usize, file: FileId, at: u64, data: &AlignedBuf, bytes: usize) -> Result<(), DiskError> {
        assert_eq!(copy, 0, "there is only one copy");
        self.write_now(file, at, data, bytes)
    }
}

/// Short reads of a file, of which each says where the next one is.
pub struct Chain {
    /// Of this file.
    pub file: FileId,
    /// The first is here.
    pub at: u64,
    /// None goes beyond.
    pub end: u64,
    /// Of each.
    pub bytes: usize,
    /// How far behind a read the next one is. `None`: there is none.
    pub next: fn(&[u8]) -> Option<usize>,
}

/// Reads of 1 MiB and more are alike on the disks that were measured; two of these hold most frames whole.
const SCAN_BYTES: usize = 1 << 20;

/// Operations that may be in flight at once. The log keeps one or two writes and one zero-fill there; a breach panics.
pub const IN_FLIGHT_MAX: usize = 64;

/// Ends another thread's `Disk::poll` early. Cheap when that thread is awake: no system call.
#[derive(Clone)]
pub struct Waker(Arc<dyn Wake>);

/// What a backend does to end its `poll`.
pub trait Wake: Send + Sync {
    /// Ends the running `poll`, or the next.
    fn wake(&self);
}

impl Waker {
    /// Wraps a backend's way of waking.
    #[must_use]
    pub fn new(wake: Arc<dyn Wake>) -> Self {
        Self(wake)
    }

    /// For disks that never sleep, such as the simulated one.
    #[must_use]
    pub fn noop() -> Self {
        struct Noop;
        impl Wake for Noop {
            fn wake(&self) {}
        }
        Self(Arc::new(Noop))
    }

    /// Ends the running `poll`, or the next.
    pub fn wake(&self) {
        self.0.wake();
    }
}

impl fmt::Debug for Waker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Waker")
    }
}

/// A read of old frames, answered on the reader's thread: the reply must be short and must not block.
pub struct DiskRead {
    /// Which file.
    pub file: FileId,
    /// First byte wanted; any number.
    pub at: u64,
    /// How many bytes; any number. 64 KiB and more make the best of the disk.
    pub bytes: usize,
    /// Gets exactly `bytes` bytes, or the reason why not.
    pub reply: Box<dyn FnOnce(Result<Bytes, DiskError>) + Send>,
}

impl fmt::Debug for DiskRead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DiskRead({} bytes of {} at {})", self.bytes, self.file, self.at)
    }
}

/// Random reads of old frames from any thread, off the ack path.
pub trait Reader: Send + Sync {
    /// Queues a read. Never blocks: a full (or closed) queue hands the request back.
    fn read(&self, request: DiskRead) -> Result<(), DiskRead>;

    /// The same from the other copy, when what the first one gave was an error or damaged; without one, or with a full
    /// queue, the request comes back.
    fn read_other(&self, request: DiskRead) -> Result<(), DiskRead> {
        Err(request)
    }

    /// Whether there is another copy to read from.
    fn has_other(&self) -> bool {
        false
    }

    /// Which copy of a file of the cold tier is the best to begin with.
    fn first_copy(&self, _file: FileId) -> usize {
        0
    }

    /// Queues a read of one of the copies of a file of the cold tier, 0 or 1. `Ok(false)`: there is no such copy now.
    fn read_copy(&self, copy: usize, request: DiskRead) -> Result<bool, DiskRead> {
        if copy == 0 { self.read(request).map(|()| true) } else { Ok(false) }
    }

    /// Lets go of a file that is about to be removed.
    fn forget(&self, file: FileId);
}

/// The files of the cold tier, and the WAL segments they are made from: for the sorter's thread alone, which may wait.
///
/// A file is made, written from its beginning in large pieces, sealed, and never changed again.
pub trait ColdStore {
    /// Exactly these bytes.
    fn read(&mut self, file: FileId, at: u64, bytes: usize) -> Result<Bytes, DiskError>;

    /// Copies of a file that can be read.
    fn copies(&mut self, _file: FileId) -> usize {
        1
    }

    /// The same from one of the copies, counted from 0.
    fn read_copy(&mut self, _copy: usize, file: FileId, at: u64, bytes: usize) -> Result<Bytes, DiskError> {
        self.read(file, at, bytes)
    }

    /// The same will probably be read next: it may be fetched meanwhile.
    fn will_read(&mut self, _copy: usize, _file: FileId, _at: u64, _bytes: usize) {}

    /// A job is done: memory that was kept for the next read may go.
    fn rest(&mut self) {}

    /// Bytes free on its file system, where it says.
    fn free_bytes(&mut self) -> Option<u64> {
        None
    }

    /// Of which class the next file is: that tells how many copies of it there will be.
    fn place(&mut self, _class: crate::types::ClassId) {}

    /// An empty file to write to; one of that name is the remains of a crash and goes.
    fn create(&mut self, file: FileId) -> Result<(), DiskError>;

    /// Writes whole blocks at `at`, a multiple of 4096. Not durable yet.
    fn write(&mut self, file: FileId, at: u64, data: AlignedBuf) -> Result<(), DiskError>;

    /// Makes the file and its directory entry durable.
    fn seal(&mut self, file: FileId) -> Result<(), DiskError>;

    /// Writes whole blocks over those of a WAL segment, durably. The caller knows that nobody else writes there.
    fn overwrite(&mut self, file: FileId, at: u64, data: AlignedBuf) -> Result<(), DiskError>;

    /// Gives a file another name, durably.
    fn rename(&mut self, from: FileId, to: FileId) -> Result<(), DiskError>;

    /// Gives a file a second name, durably; what has that name now loses it.
    fn link(&mut self, from: FileId, to: FileId) -> Result<(), DiskError>;

    /// Removes a file, durably. One that is not there counts as removed.
    fn remove(&mut self, file: FileId) -> Result<(), DiskError>;

    /// All files of the cold tier, in order.
    fn list(&mut self) -> Result<Vec<FileId>, DiskError>;
}

/// Which backend the operator asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackendChoice {
    /// io_uring where the kernel allows it, else plain.
    #[default]
    Auto,
    /// io_uring or an error.
    Uring,
    /// Plain system calls on helper threads.
    Plain,
}

/// What `open` gives the log.
pub struct OpenedDisk {
    /// For the log thread.
    pub disk: Box<dyn Disk>,
    /// For everybody who reads old frames.
    pub reader: Arc<dyn Reader>,
    /// Makes the store of the cold tier, on the thread that will use it.
    pub cold: ColdOpener,
    /// What was found out about the machine.
    pub probe: DiskProbe,
}

/// How a cold store uses its disk, which is the log's disk as well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ColdPace {
    /// Most bytes a second, if there is a limit.
    pub bytes_per_second: Option<u64>,
    /// Producers wait for what is done, or soon will: a log write may wait for a larger request.
    pub in_hurry: bool,
}

/// Makes a cold store that fails everything once the flag says so.
pub type ColdOpener = Arc<dyn Fn(ColdPace, Arc<AtomicBool>) -> Box<dyn ColdStore> + Send + Sync>;

/// Makes the data directory where it is missing, finds out what disk and kernel offer, says so in the log, and opens the
/// backend that fits. The caller holds the directory's lock.
pub fn open(root: &Path, choice: BackendChoice) -> Result<OpenedDisk, DiskError> {
    open_with_headroom(root, choice, 0)
}

/// The same. New segment files are refused as if the disk were full while they would leave less than `headroom_bytes` of it: the
/// cold tier needs that much to make room.
pub fn open_with_headroom(root: &Path, choice: BackendChoice, headroom_bytes: u64) -> Result<OpenedDisk, DiskError> {
    files::DataDir::prepare(root)?;
    let probe = probe::run(root, choice)?;
    let dir = files::DataDir::new(root, probe.direct, probe.dsync_mode).with_headroom(headroom_bytes);
    let uring = probe.backend == Backend::Uring;
    let disk: Box<dyn Disk> =
        if uring { Box::new(uring::UringDisk::open(dir.clone())?) } else { Box::new(plain::PlainDisk::open(dir.clone())?) };
    let reader = Arc::new(reader::BackgroundReader::start(dir.clone(), uring)?);
    let cold = cold_opener(dir, uring);
    if probe.uring_refused.is_some() {
        tracing::warn!("{probe}: acknowledgements cost some microseconds more without io_uring");
    } else {
        tracing::info!("{probe}");
    }
    Ok(OpenedDisk { disk, reader, cold, probe })
}

/// Opens a directory that holds cold segments only. The caller holds its lock.
pub fn open_cold(root: &Path, choice: BackendChoice) -> Result<(Arc<dyn Reader>, ColdOpener), DiskError> {
    let probe = probe::run(root, choice)?;
    let dir = files::DataDir::new(root, probe.direct, probe.dsync_mode);
    let uring = probe.backend == Backend::Uring;
    let reader = Arc::new(reader::BackgroundReader::start(dir.clone(), uring)?);
    Ok((reader, cold_opener(dir, uring)))
}

fn cold_opener(dir: files::DataDir, uring: bool) -> ColdOpener {
    let late = Arc::default();
    Arc::new(move |pace, stop| Box::new(attended::Attended::start(dir.clone(), uring, pace, stop, Arc::clone(&late))))
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod names {
    use super::*;

    #[test]
    fn segment_names_round_trip_and_only_the_canonical_counts() {
        for number in [0, 7, 99_999, 100_000, u32::MAX] {
            let name = FileId::Segment(number).to_string();
            assert_eq!(FileId::segment_number(name.strip_prefix("wal/").unwrap()), Some(number));
        }
        for name in ["1.wal", "000001.wal", "+0001.wal", "00001", "00001.tmp", "4294967296.wal", ".wal", "-0001.wal"] {
            assert_eq!(FileId::segment_number(name), None, "{name}");
        }
    }

    #[test]
    fn a_full_disk_is_told_by_its_number() {
        let full = DiskError::from_errno(DiskVerb::Write, FileId::Segment(3), Errno::NOSPC);
        assert!(full.is_full());
        assert!(full.to_string().contains("wal/00003.wal"));
        assert!(DiskError::from_errno(DiskVerb::ZeroFill, FileId::Segment(3), Errno::DQUOT).is_full());
        let io = std::io::Error::from_raw_os_error(28);
        assert!(DiskError::from_io(DiskVerb::Write, FileId::Superblock, &io).is_full());
        assert!(!DiskError::from_errno(DiskVerb::Write, FileId::Superblock, Errno::IO).is_full());
    }
}
