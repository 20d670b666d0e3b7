//! Zero-filling of segment files on a thread of its own, so that no system call of it ever holds up an acknowledgement.
//!
//! The file gets its size first (so a full disk is noticed before anything is written), then zeros in small pieces, one at a
//! time: a log write never waits behind more than one of them. A file left half filled by a crash has its full size
//! and reads as zeros; it is only slower to write to.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::files::{DataDir, write_all};
use super::{AlignedBuf, BLOCK_BYTES, DiskCompletion, DiskError, DiskVerb, FileId, IN_FLIGHT_MAX};

/// A quarter of a millisecond on a disk of 1 GB/s.
const PIECE_BYTES: usize = 256 << 10;

struct Job {
    id: u64,
    file: FileId,
    work: Work,
}

enum Work {
    Fill { bytes: u64, reuse: Option<FileId> },
    Discard,
}

/// The thread that zero-fills. Dropping it stops it after the current piece.
pub(super) struct ZeroFiller {
    jobs: Option<SyncSender<Job>>,
    closing: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl ZeroFiller {
    /// `deliver` is called on the filler's thread, once for each job.
    pub(super) fn start(dir: DataDir, deliver: impl Fn(DiskCompletion) + Send + 'static) -> Result<Self, DiskError> {
        let (jobs, queue) = sync_channel(IN_FLIGHT_MAX);
        let closing = Arc::new(AtomicBool::new(false));
        let filler = Filler { dir, closing: Arc::clone(&closing), zeros: AlignedBuf::zeroed(PIECE_BYTES) };
        let thread = std::thread::Builder::new()
            .name("weir-zero".into())
            .spawn(move || filler.run(&queue, deliver))
            .map_err(|error| DiskError::directory_io(DiskVerb::Thread, &error))?;
        Ok(Self { jobs: Some(jobs), closing, thread: Some(thread) })
    }

    /// Queues a job. The caller's bound on operations in flight is the queue's length, so this never blocks.
    pub(super) fn fill(&self, id: u64, file: FileId, bytes: u64, reuse: Option<FileId>) -> Result<(), DiskError> {
        assert!(bytes > 0 && bytes.is_multiple_of(BLOCK_BYTES as u64), "files are whole blocks");
        self.submit(Job { id, file, work: Work::Fill { bytes, reuse } })
    }

    /// Queues the removal of a file's name; in the order of the jobs.
    pub(super) fn discard(&self, id: u64, file: FileId) -> Result<(), DiskError> {
        self.submit(Job { id, file, work: Work::Discard })
    }

    fn submit(&self, job: Job) -> Result<(), DiskError> {
        let closed = DiskError::Closed { verb: DiskVerb::ZeroFill, file: job.file };
        let jobs = self.jobs.as_ref().ok_or(closed)?;
        jobs.try_send(job).map_err(|_| closed)
    }
}

impl Drop for ZeroFiller {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::Relaxed);
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported by it.
            let _ = thread.join();
        }
    }
}

struct Filler {
    dir: DataDir,
    closing: Arc<AtomicBool>,
    zeros: AlignedBuf,
}

impl Filler {
    fn run(&self, queue: &Receiver<Job>, deliver: impl Fn(DiskCompletion)) {
        while let Ok(Job { id, file, work }) = queue.recv() {
            let result = match work {
                Work::Fill { bytes, reuse: Some(reuse) } if self.reuse(reuse, file, bytes) => Ok(()),
                Work::Fill { bytes, .. } => self.fill(file, bytes),
                Work::Discard => self.dir.remove(file),
            };
            deliver(DiskCompletion { id, result });
        }
    }

    /// A file that is out of use takes this name, if nobody else has it.
    fn reuse(&self, from: FileId, to: FileId, bytes: u64) -> bool {
        let fits = matches!(self.dir.size(from), Ok(Some(size)) if size == bytes)
            && matches!(self.dir.links(from), Ok(1))
            && matches!(self.dir.size(to), Ok(None));
        // Without the header of its last life it is no segment to anybody, whatever a start believes to be the first.
        let blank = || {
            let (fd, _) = self.dir.open_bulk(from)?;
            write_all(&fd, DiskVerb::ZeroFill, from, 0, &self.zeros[..BLOCK_BYTES], None)?;
            rustix::fs::fsync(&fd).map_err(|errno| DiskError::from_errno(DiskVerb::Sync, from, errno))
        };
        fits && match blank().and_then(|()| self.dir.rename(from, to)) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%error, "a file that is out of use could not be used again; another one is made");
                // Renamed or not, what has the name now is made anew.
                let _ = self.dir.remove(to);
                false
            }
        }
    }

    fn fill(&self, file: FileId, bytes: u64) -> Result<(), DiskError> {
        if self.dir.links(file)? > 1 {
            // A promoted segment: only its name here goes.
            self.dir.remove(file)?;
        }
        let (fd, created) = self.dir.open_bulk(file)?;
        if created && !self.dir.has_room_for(bytes) {
            let _ = self.dir.remove(file);
            return Err(DiskError::Full { verb: DiskVerb::ZeroFill, file });
        }
        let result = self.fill_open(&fd, file, bytes);
        if result.is_err() && created && !self.closing.load(Ordering::Relaxed) {
            // Gives back the space of a file that is of no use. That it failed is what matters, not whether this works.
            let _ = self.dir.remove(file);
        }
        result
    }

    fn fill_open(&self, fd: &OwnedFd, file: FileId, bytes: u64) -> Result<(), DiskError> {
        let failed = |errno| DiskError::from_errno(DiskVerb::ZeroFill, file, errno);
        rustix::fs::ftruncate(fd, bytes).map_err(failed)?;
        match rustix::fs::fallocate(fd, FallocateFlags::empty(), 0, bytes) {
            // Not every file system reserves; there, the writes below find out.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {}
            Err(errno) => return Err(failed(errno)),
        }
        let mut at = 0;
        while at < bytes {
            if self.closing.load(Ordering::Relaxed) {
                return Err(DiskError::Closed { verb: DiskVerb::ZeroFill, file });
            }
            let piece = (bytes - at).min(PIECE_BYTES as u64) as usize;
            write_all(fd, DiskVerb::ZeroFill, file, at, &self.zeros[..piece], None)?;
            at += piece as u64;
        }
        rustix::fs::fsync(fd).map_err(|errno| DiskError::from_errno(DiskVerb::Sync, file, errno))?;
        self.dir.sync_entry(file)
    }
}
