//! The fallback where io_uring is refused, as in many containers: the same files and the same durability through
//! `pwritev2`, on a thread of its own so that the log thread never blocks in a write.
//!
//! One write is at the disk at a time. It costs two hand-offs between threads more than the ring, some microseconds a commit.

use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::files::{DataDir, Files, assert_blocks, write_all};
use super::zero::ZeroFiller;
use super::{AlignedBuf, Disk, DiskCompletion, DiskError, DiskOp, DiskVerb, FileId, IN_FLIGHT_MAX, Wake, Waker};

/// A disk under plain system calls.
pub(super) struct PlainDisk {
    files: Files,
    zero: ZeroFiller,
    writes: Option<SyncSender<Write>>,
    writer: Option<JoinHandle<()>>,
    mailbox: Arc<Mailbox>,
}

struct Write {
    id: u64,
    file: FileId,
    fd: Arc<OwnedFd>,
    at: u64,
    data: Arc<AlignedBuf>,
    bytes: usize,
}

/// Where the threads put their answers and `poll` waits for them.
#[derive(Default)]
struct Mailbox {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    completions: Vec<DiskCompletion>,
    notified: bool,
    sleeping: bool,
}

impl Mailbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics half-way, so a poisoned lock still guards a sound state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn deliver(&self, completion: DiskCompletion) {
        self.change(|state| state.completions.push(completion));
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        // A condition variable costs a system call even when nobody waits.
        if state.sleeping {
            self.changed.notify_one();
        }
    }
}

impl Wake for Mailbox {
    fn wake(&self) {
        self.change(|state| state.notified = true);
    }
}

impl PlainDisk {
    pub(super) fn open(dir: DataDir) -> Result<Self, DiskError> {
        let mailbox = Arc::new(Mailbox::default());
        let (writes, queue) = sync_channel(IN_FLIGHT_MAX);
        let (writer_dir, answers) = (dir.clone(), Arc::clone(&mailbox));
        let writer = std::thread::Builder::new()
            .name("weir-disk".into())
            .spawn(move || run(&writer_dir, &queue, &answers))
            .map_err(|error| DiskError::directory_io(DiskVerb::Thread, &error))?;
        let answers = Arc::clone(&mailbox);
        let zero = ZeroFiller::start(dir.clone(), move |completion| answers.deliver(completion))?;
        Ok(Self { files: Files::new(dir), zero, writes: Some(writes), writer: Some(writer), mailbox })
    }

    fn start_write(&mut self, write: Write) -> Result<(), DiskError> {
        let closed = DiskError::Closed { verb: DiskVerb::Write, file: write.file };
        // The caller's bound on operations in flight is the queue's length, so this is never full.
        self.writes.as_ref().ok_or(closed)?.try_send(write).map_err(|_| closed)
    }
}

fn run(dir: &DataDir, queue: &Receiver<Write>, mailbox: &Mailbox) {
    while let Ok(Write { id, file, fd, at, data, bytes }) = queue.recv() {
        let result = write_all(&fd, DiskVerb::Write, file, at, &data[..bytes], Some(dir.sync_mode()));
        drop(data);
        mailbox.deliver(DiskCompletion { id, result });
    }
}

impl Disk for PlainDisk {
    fn submit(&mut self, id: u64, op: DiskOp) {
        let result = match op {
            DiskOp::Write { file, at, data, bytes } => {
                assert_blocks(at, bytes, data.len());
                self.files.get(file).and_then(|fd| self.start_write(Write { id, file, fd, at, data, bytes }))
            }
            DiskOp::Zero { file, bytes, reuse } => self.zero.fill(id, file, bytes, reuse),
            DiskOp::Discard { file } => {
                self.files.close(file);
                self.zero.discard(id, file)
            }
        };
        if let Err(error) = result {
            self.mailbox.deliver(DiskCompletion { id, result: Err(error) });
        }
    }

    fn poll(&mut self, wait: Option<Duration>, out: &mut Vec<DiskCompletion>) {
        let deadline = wait.and_then(|wait| Instant::now().checked_add(wait));
        let before = out.len();
        let mut state = self.mailbox.lock();
        loop {
            out.append(&mut state.completions);
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if std::mem::take(&mut state.notified) || out.len() > before || left == Some(Duration::ZERO) {
                return;
            }
            state.sleeping = true;
            let changed = &self.mailbox.changed;
            state = match left {
                Some(left) => changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
                None => changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
            state.sleeping = false;
        }
    }

    fn waker(&self) -> Waker {
        Waker::new(Arc::clone(&self.mailbox) as Arc<dyn Wake>)
    }

    fn list_segments(&mut self) -> Result<Vec<u32>, DiskError> {
        self.files.dir.list_segments()
    }

    fn size(&mut self, file: FileId) -> Result<Option<u64>, DiskError> {
        self.files.dir.size(file)
    }

    fn links(&mut self, file: FileId) -> Result<u64, DiskError> {
        self.files.dir.links(file)
    }

    fn read(&mut self, file: FileId, at: u64, buf: &mut AlignedBuf, bytes: usize) -> Result<(), DiskError> {
        self.files.read(file, at, buf, bytes)
    }

    fn read_ahead(&mut self, _copy: usize, file: FileId, at: u64, bytes: usize) {
        self.files.read_ahead(file, at, bytes);
    }

    fn read_chain(&mut self, _copy: usize, chain: super::Chain) {
        self.files.read_chain(chain);
    }

    fn end_read_ahead(&mut self) {
        self.files.end_read_ahead();
    }

    fn write_now(&mut self, file: FileId, at: u64, data: &AlignedBuf, bytes: usize) -> Result<(), DiskError> {
        self.files.write_now(file, at, data, bytes)
    }

    fn remove(&mut self, file: FileId) -> Result<(), DiskError> {
        self.files.remove(file)
    }
}

impl Drop for PlainDisk {
    fn drop(&mut self) {
        // The writer finishes what is queued, then ends.
        self.writes = None;
        if let Some(writer) = self.writer.take() {
            // A panic of the thread has been reported by it.
            let _ = writer.join();
        }
    }
}
