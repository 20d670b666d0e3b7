//! Catch-up reads of old frames, on a thread of its own: tokio-uring where io_uring is allowed, plain `pread` elsewhere.
//!
//! Requests come from any thread through a bounded queue; a full queue hands a request back, and that is where back-pressure
//! to consumers starts. Reads go around the page cache where the file system allows it (a consumer that catches up must not
//! push out what others need), so they are widened to whole blocks; the reply gets exactly what was asked for.
//!
//! Cost of a read: one request to the disk, one hand-off there and one back, no copy. Requests of 64 KiB and more come
//! within a few percent of the raw ring.
#![allow(unsafe_code, reason = "telling tokio-uring that an aligned buffer stays where it is")]

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, ThreadId};

use bytes::Bytes;
use rustix::io::Errno;
use tokio::sync::{Semaphore, mpsc};
use tokio_uring::buf::{BoundedBuf, IoBuf, IoBufMut};
use tokio_uring::fs::File;

use super::files::{DataDir, OpenFiles, read_exact};
use super::{AlignedBuf, BLOCK_BYTES, BufPool, DiskError, DiskRead, DiskVerb, FileId, Reader, blocks_up};

/// Requests that may wait.
const QUEUE_MAX: usize = 256;
/// Requests at the disk at once: enough to keep a solid-state disk busy, few enough to leave it to the log's writes.
const READS_IN_FLIGHT_MAX: usize = 8;
/// One request. More is our own mistake and answered with an error.
const READ_BYTES_MAX: usize = 64 << 20;
/// Segment files kept open.
const FILES_OPEN_MAX: usize = 32;
/// Read buffers kept for use again.
const POOL_BYTES: usize = 16 << 20;

/// The reader's handle. Dropping it answers what is queued and then ends the thread.
pub(super) struct BackgroundReader {
    requests: Option<mpsc::Sender<DiskRead>>,
    forgotten: Arc<Mutex<Vec<FileId>>>,
    thread: Option<JoinHandle<()>>,
    thread_id: ThreadId,
}

impl BackgroundReader {
    /// Starts the thread, with io_uring if `uring` says so and the thread can set it up.
    pub(super) fn start(dir: DataDir, uring: bool) -> Result<Self, DiskError> {
        let (requests, queue) = mpsc::channel(QUEUE_MAX);
        let forgotten = Arc::new(Mutex::new(Vec::new()));
        let shelf = Shelf { dir, forgotten: Arc::clone(&forgotten), pool: BufPool::new(POOL_BYTES) };
        let thread = std::thread::Builder::new()
            .name("weir-read".into())
            .spawn(move || run(shelf, queue, uring))
            .map_err(|error| DiskError::directory_io(DiskVerb::Thread, &error))?;
        let thread_id = thread.thread().id();
        Ok(Self { requests: Some(requests), forgotten, thread: Some(thread), thread_id })
    }
}

impl Reader for BackgroundReader {
    fn read(&self, request: DiskRead) -> Result<(), DiskRead> {
        match &self.requests {
            Some(requests) => requests.try_send(request).map_err(|error| match error {
                mpsc::error::TrySendError::Full(request) | mpsc::error::TrySendError::Closed(request) => request,
            }),
            None => Err(request),
        }
    }

    fn forget(&self, file: FileId) {
        let mut forgotten = self.forgotten.lock().unwrap_or_else(PoisonError::into_inner);
        if !forgotten.contains(&file) {
            forgotten.push(file);
        }
    }
}

impl Drop for BackgroundReader {
    fn drop(&mut self) {
        self.requests = None;
        // The last handle may be dropped by a reply, on the reader's own thread, which then ends by itself.
        if let Some(thread) = self.thread.take()
            && std::thread::current().id() != self.thread_id
        {
            // A panic of the thread has been reported by it.
            let _ = thread.join();
        }
    }
}

/// What both ways of reading share.
struct Shelf {
    dir: DataDir,
    forgotten: Arc<Mutex<Vec<FileId>>>,
    pool: BufPool,
}

fn run(shelf: Shelf, queue: mpsc::Receiver<DiskRead>, uring: bool) {
    if uring {
        match tokio_uring::Runtime::new(&tokio_uring::builder()) {
            Ok(runtime) => return runtime.block_on(run_uring(shelf, queue)),
            Err(error) => tracing::warn!(%error, "the background reader gets no io_uring; it reads with plain system calls"),
        }
    }
    run_plain(&shelf, queue);
}

/// Where the whole blocks around a request begin, and how many bytes they are.
pub(super) fn blocks_around(file: FileId, at: u64, bytes: usize) -> Result<(u64, usize), DiskError> {
    let lead = (at % BLOCK_BYTES as u64) as usize;
    if bytes > READ_BYTES_MAX || at.checked_add((bytes + 2 * BLOCK_BYTES) as u64).is_none() {
        return Err(DiskError::from_errno(DiskVerb::Read, file, Errno::INVAL));
    }
    Ok((at - lead as u64, blocks_up(lead + bytes)))
}

/// Cuts what was asked for out of the blocks around it.
pub(super) fn cut(at: u64, bytes: usize, buf: AlignedBuf) -> Bytes {
    let lead = (at % BLOCK_BYTES as u64) as usize;
    buf.into_bytes().slice(lead..lead + bytes)
}

impl Shelf {
    fn close_forgotten<F: Clone>(&self, open: &mut OpenFiles<F>) {
        for file in self.forgotten.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            open.close(file);
        }
    }
}

fn run_plain(shelf: &Shelf, mut queue: mpsc::Receiver<DiskRead>) {
    let mut open = OpenFiles::new(FILES_OPEN_MAX);
    while let Some(request) = queue.blocking_recv() {
        shelf.close_forgotten(&mut open);
        let result = blocks_around(request.file, request.at, request.bytes).and_then(|(at, bytes)| {
            let fd = open.get(request.file, || shelf.dir.open_read(request.file).map(Arc::new))?;
            let mut buf = shelf.pool.take(bytes);
            read_exact(&fd, request.file, at, &mut buf)?;
            Ok(cut(request.at, request.bytes, buf))
        });
        (request.reply)(result);
    }
}

async fn run_uring(shelf: Shelf, mut queue: mpsc::Receiver<DiskRead>) {
    let shelf = Rc::new(shelf);
    let open = Rc::new(RefCell::new(OpenFiles::new(FILES_OPEN_MAX)));
    let slots = Arc::new(Semaphore::new(READS_IN_FLIGHT_MAX));
    while let Some(request) = queue.recv().await {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { break };
        let (shelf, open) = (Rc::clone(&shelf), Rc::clone(&open));
        tokio_uring::spawn(async move {
            let result = read_one(&shelf, &open, &request).await;
            (request.reply)(result);
            drop(slot);
        });
    }
    // All slots free means that all replies are out.
    let _ = slots.acquire_many(READS_IN_FLIGHT_MAX as u32).await;
}

async fn read_one(shelf: &Shelf, open: &RefCell<OpenFiles<Rc<File>>>, request: &DiskRead) -> Result<Bytes, DiskError> {
    let (at, bytes) = blocks_around(request.file, request.at, request.bytes)?;
    let file = {
        let mut open = open.borrow_mut();
        shelf.close_forgotten(&mut open);
        open.get(request.file, || shelf.dir.open_read(request.file).map(|fd| Rc::new(File::from_std(std::fs::File::from(fd)))))?
    };
    let target = read_into(&file, request.file, at, shelf.pool.take(bytes), usize::MAX, |_| {}).await?;
    Ok(cut(request.at, request.bytes, target))
}

/// Fills the whole buffer, with requests of at most `piece_bytes_max`, each announced to `before`.
pub(super) async fn read_into(
    file: &File,
    id: FileId,
    at: u64,
    buf: AlignedBuf,
    piece_bytes_max: usize,
    mut before: impl FnMut(usize),
) -> Result<AlignedBuf, DiskError> {
    let bytes = buf.len();
    let mut target = Target(buf);
    let mut done = 0;
    while done < bytes {
        let to = bytes.min(done.saturating_add(piece_bytes_max));
        before(to - done);
        let (result, slice) = file.read_at(target.slice(done..to), at + done as u64).await;
        target = slice.into_inner();
        match result {
            // A read that stops inside a block has met the end of the file.
            Ok(read) if read == 0 || (done + read < to && !read.is_multiple_of(BLOCK_BYTES)) => {
                let (wanted, done) = (bytes as u64, (done + read) as u64);
                return Err(DiskError::Short { verb: DiskVerb::Read, file: id, at, wanted, done });
            }
            Ok(read) => done += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(DiskError::from_io(DiskVerb::Read, id, &error)),
        }
    }
    Ok(target.0)
}

/// An aligned buffer that tokio-uring reads into or writes from.
pub(super) struct Target(pub(super) AlignedBuf);

// SAFETY: the bytes of an `AlignedBuf` are a boxed slice, which stays where it is when the `Target` is moved, and is neither
// freed nor resized while tokio-uring owns it. `bytes_init` and `bytes_total` are its length, all of it initialised.
unsafe impl IoBuf for Target {
    fn stable_ptr(&self) -> *const u8 {
        self.0.as_ptr()
    }

    fn bytes_init(&self) -> usize {
        self.0.len()
    }

    fn bytes_total(&self) -> usize {
        self.0.len()
    }
}

// SAFETY: as for `IoBuf`; the pointer comes from `&mut`, and whoever owns the `Target` is its only user.
unsafe impl IoBufMut for Target {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.0.as_mut_ptr()
    }

    unsafe fn set_init(&mut self, _: usize) {
        // All bytes of an `AlignedBuf` are initialised from the start.
    }
}
