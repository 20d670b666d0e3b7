//! The cold tier's files: read and written in large pieces for the sorter by a thread of the volume's own (`attended.rs`), through tokio-uring where io_uring is allowed.
//!
//! It shares the disk with the log and must not hold it up: one request of at most 256 KiB at a time, so that a log write waits
//! for one of them at most, and a limit on bytes a second if the operator sets one. In a hurry requests are larger: the log waits longer
//! for what is not sorted than for them. Reads and writes go around the page cache where the file system allows it.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::io::Errno;
use tokio_uring::buf::BoundedBuf;
use tokio_uring::fs::File;

use super::files::{DataDir, OpenFiles, read_exact, write_all};
use super::reader::{Target, blocks_around, cut, read_into};
use super::{AlignedBuf, BLOCK_BYTES, BufPool, ColdPace, ColdStore, DiskError, DiskVerb, FileId};

/// One request to the disk: large enough for throughput, small enough for a log write to slip in between.
const REQUEST_BYTES: usize = 256 << 10;
/// The same in a hurry: each request costs the wait for a processor once more.
const HURRIED_REQUEST_BYTES: usize = 1 << 20;
/// Read buffers kept for use again during a job: most come back at once, when what was read has been sorted.
const POOL_BYTES: usize = 48 << 20;
/// Inputs of a merge, and the WAL segment that is being sorted.
const FILES_OPEN_MAX: usize = 20;

/// See the module.
pub(super) struct ColdFiles {
    dir: DataDir,
    ring: Option<tokio_uring::Runtime>,
    reading: OpenFiles<Arc<OwnedFd>>,
    writing: Option<(FileId, Arc<OwnedFd>)>,
    /// Windows of scans are alike.
    pool: BufPool,
    limiter: Limiter,
    request_bytes: usize,
    stop: Arc<AtomicBool>,
}

impl ColdFiles {
    /// To be called on the thread that will use it: the ring belongs to one.
    pub(super) fn open(dir: DataDir, uring: bool, pace: ColdPace, stop: Arc<AtomicBool>) -> ColdFiles {
        let ring = uring.then(|| tokio_uring::Runtime::new(&tokio_uring::builder()));
        if let Some(Err(error)) = &ring {
            tracing::warn!(%error, "the sorter gets no io_uring; it uses plain system calls");
        }
        let ring = ring.and_then(Result::ok);
        ColdFiles {
            dir,
            ring,
            reading: OpenFiles::new(FILES_OPEN_MAX),
            writing: None,
            pool: BufPool::new(POOL_BYTES),
            limiter: Limiter::new(pace.bytes_per_second),
            request_bytes: if pace.in_hurry { HURRIED_REQUEST_BYTES } else { REQUEST_BYTES },
            stop,
        }
    }

    /// A job that is cut off fails at its next step.
    fn go_on(&self, verb: DiskVerb, file: FileId) -> Result<(), DiskError> {
        if self.stop.load(Ordering::Relaxed) { Err(DiskError::Closed { verb, file }) } else { Ok(()) }
    }

    fn writing(&mut self, file: FileId) -> Result<Arc<OwnedFd>, DiskError> {
        match &self.writing {
            Some((open, fd)) if *open == file => Ok(Arc::clone(fd)),
            _ => Err(DiskError::Closed { verb: DiskVerb::Write, file }),
        }
    }
}

impl ColdStore for ColdFiles {
    fn read(&mut self, file: FileId, at: u64, bytes: usize) -> Result<Bytes, DiskError> {
        self.go_on(DiskVerb::Read, file)?;
        let fd = self.reading.get(file, || self.dir.open_read(file).map(Arc::new))?;
        let (from, whole) = blocks_around(file, at, bytes)?;
        let mut buf = self.pool.take(whole);
        let (limiter, most) = (&mut self.limiter, self.request_bytes);
        match &self.ring {
            None => {
                for (n, piece) in buf.chunks_mut(most).enumerate() {
                    limiter.pass(piece.len());
                    read_exact(&fd, file, from + (n * most) as u64, piece)?;
                }
            }
            Some(ring) => {
                let work =
                    async |ring_file: &File| read_into(ring_file, file, from, buf, most, |bytes| limiter.pass(bytes)).await;
                buf = ring.block_on(with_file(&fd, file, DiskVerb::Read, work))?;
            }
        }
        Ok(cut(at, bytes, buf))
    }

    fn rest(&mut self) {
        self.pool = BufPool::new(POOL_BYTES);
    }

    fn create(&mut self, file: FileId) -> Result<(), DiskError> {
        self.go_on(DiskVerb::Create, file)?;
        self.dir.prepare_cold()?;
        self.dir.remove(file)?;
        let (fd, _) = self.dir.open_bulk(file)?;
        self.writing = Some((file, Arc::new(fd)));
        Ok(())
    }

    fn write(&mut self, file: FileId, at: u64, data: AlignedBuf) -> Result<(), DiskError> {
        self.go_on(DiskVerb::Write, file)?;
        let fd = self.writing(file)?;
        let bytes = data.len();
        let mut target = Target(data);
        let mut done = 0;
        while done < bytes {
            let to = (done + self.request_bytes).min(bytes);
            self.limiter.pass(to - done);
            match &self.ring {
                None => {
                    write_all(&fd, DiskVerb::Write, file, at + done as u64, &target.0[done..to], None)?;
                    done = to;
                }
                Some(ring) => {
                    let (written, back) = ring.block_on(write_some(&fd, file, at + done as u64, target, done..to));
                    target = back;
                    done += written?;
                }
            }
        }
        Ok(())
    }

    fn seal(&mut self, file: FileId) -> Result<(), DiskError> {
        let fd = self.writing(file)?;
        rustix::fs::fsync(&*fd).map_err(|errno| DiskError::from_errno(DiskVerb::Sync, file, errno))?;
        self.writing = None;
        self.dir.sync_entry(file)
    }

    fn overwrite(&mut self, file: FileId, at: u64, data: AlignedBuf) -> Result<(), DiskError> {
        self.go_on(DiskVerb::Write, file)?;
        self.limiter.pass(data.len());
        let fd = self.dir.open(file)?;
        write_all(&fd, DiskVerb::Write, file, at, &data, None)?;
        rustix::fs::fdatasync(&fd).map_err(|errno| DiskError::from_errno(DiskVerb::Sync, file, errno))
    }

    fn rename(&mut self, from: FileId, to: FileId) -> Result<(), DiskError> {
        self.dir.prepare_cold()?;
        self.reading.close(from);
        self.reading.close(to);
        self.dir.rename(from, to)
    }

    fn link(&mut self, from: FileId, to: FileId) -> Result<(), DiskError> {
        self.go_on(DiskVerb::Link, from)?;
        self.dir.prepare_cold()?;
        // It may leave the WAL any time from now on.
        self.reading.close(from);
        self.reading.close(to);
        self.dir.link(from, to)
    }

    fn remove(&mut self, file: FileId) -> Result<(), DiskError> {
        self.reading.close(file);
        self.dir.remove(file)
    }

    fn list(&mut self) -> Result<Vec<FileId>, DiskError> {
        self.dir.list_cold()
    }

    fn free_bytes(&mut self) -> Option<u64> {
        self.dir.free_bytes()
    }
}

/// Hands a file to the ring for the time of one request. The ring closes what it is given, so it gets a descriptor of its own.
async fn with_file<R>(
    fd: &OwnedFd,
    id: FileId,
    verb: DiskVerb,
    work: impl AsyncFnOnce(&File) -> Result<R, DiskError>,
) -> Result<R, DiskError> {
    let own = fd.try_clone().map_err(|error| DiskError::from_io(verb, id, &error))?;
    let file = File::from_std(std::fs::File::from(own));
    let result = work(&file).await;
    // Nothing is lost if closing a second descriptor fails.
    let _ = file.close().await;
    result
}

/// Writes what the kernel takes at once of a range of the buffer.
async fn write_some(
    fd: &OwnedFd,
    id: FileId,
    at: u64,
    target: Target,
    range: std::ops::Range<usize>,
) -> (Result<usize, DiskError>, Target) {
    let wanted = range.len() as u64;
    let own = match fd.try_clone() {
        Ok(own) => own,
        Err(error) => return (Err(DiskError::from_io(DiskVerb::Write, id, &error)), target),
    };
    let file = File::from_std(std::fs::File::from(own));
    let (result, slice) = file.write_at(target.slice(range), at).submit().await;
    let _ = file.close().await;
    let written = match result {
        Ok(written) if written == 0 || !written.is_multiple_of(BLOCK_BYTES) => {
            Err(DiskError::Short { verb: DiskVerb::Write, file: id, at, wanted, done: written as u64 })
        }
        Ok(written) => Ok(written),
        Err(error) if error.raw_os_error() == Some(Errno::INTR.raw_os_error()) => Ok(0),
        Err(error) => Err(DiskError::from_io(DiskVerb::Write, id, &error)),
    };
    (written, slice.into_inner())
}

/// Lets so many bytes a second pass, and sleeps for the rest.
pub(crate) struct Limiter {
    bytes_per_second: Option<u64>,
    free_at: Instant,
}

impl Limiter {
    pub(crate) fn new(bytes_per_second: Option<u64>) -> Limiter {
        Limiter { bytes_per_second: bytes_per_second.filter(|rate| *rate > 0), free_at: Instant::now() }
    }

    pub(crate) fn pass(&mut self, bytes: usize) {
        let Some(rate) = self.bytes_per_second else { return };
        let now = Instant::now();
        if self.free_at > now {
            std::thread::sleep(self.free_at - now);
        }
        // What was not used up to now is lost: no bursts.
        self.free_at = self.free_at.max(now) + Duration::from_nanos((bytes as u64).saturating_mul(1_000_000_000) / rate);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{BackendChoice, OpenedDisk};

    fn pattern(bytes: usize) -> AlignedBuf {
        let mut buf = AlignedBuf::zeroed(bytes);
        buf.iter_mut().enumerate().for_each(|(n, byte)| *byte = (n / 7) as u8);
        buf
    }

    fn round_trip(choice: BackendChoice, pace: ColdPace) {
        let dir = tempfile::tempdir().unwrap();
        let OpenedDisk { cold, .. } = crate::disk::open(dir.path(), choice).unwrap();
        let mut store = (*cold)(pace, Arc::default());
        assert_eq!(store.list().unwrap(), []);
        let (file, bytes) = (FileId::Cold(7), HURRIED_REQUEST_BYTES + 3 * BLOCK_BYTES);
        store.create(file).unwrap();
        store.write(file, 0, pattern(bytes)).unwrap();
        store.write(file, bytes as u64, pattern(BLOCK_BYTES)).unwrap();
        store.seal(file).unwrap();
        assert_eq!(store.read(file, 5, bytes - 5).unwrap(), &pattern(bytes)[5..]);
        assert!(matches!(store.read(file, bytes as u64, 2 * BLOCK_BYTES), Err(DiskError::Short { .. })));
        // What a crash left behind is written over, and shorter.
        store.create(file).unwrap();
        store.write(file, 0, pattern(BLOCK_BYTES)).unwrap();
        store.seal(file).unwrap();
        store.rename(file, FileId::Promoted(9)).unwrap();
        assert_eq!(store.list().unwrap(), [FileId::Promoted(9)]);
        assert_eq!(store.read(FileId::Promoted(9), 0, BLOCK_BYTES).unwrap(), &pattern(BLOCK_BYTES)[..]);
        assert!(matches!(store.read(file, 0, 1), Err(DiskError::Missing { .. })));
        store.remove(FileId::Promoted(9)).unwrap();
        store.remove(FileId::Promoted(9)).unwrap();
        assert_eq!(store.list().unwrap(), []);
    }

    #[test]
    fn files_are_written_once_and_read_back() {
        for pace in
            [ColdPace { bytes_per_second: Some(1 << 30), in_hurry: false }, ColdPace { in_hurry: true, ..ColdPace::default() }]
        {
            round_trip(BackendChoice::Auto, pace);
            round_trip(BackendChoice::Plain, pace);
        }
    }
}
