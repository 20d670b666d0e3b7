//! The log's ring: io_uring from one thread, O_DIRECT, each write durable by itself.
//!
//! `submit` puts a write into the ring and enters the kernel at once, so that the disk works while the log thread builds the
//! next frame; `poll` reaps, and sleeps in `io_uring_enter` with a timeout. An eventfd in the ring ends that sleep early; a
//! thread that wakes while the log thread is awake pays an atomic swap and no system call. No SQPOLL (20 times slower on two
//! cores) and no registered buffers (they gained nothing).
//!
//! A short write goes on with its rest; the error of the rest tells why it was short. A failed write is never tried again.
//!
//! **Memory**: the kernel reads a buffer until the completion of its write is reaped. So each write lives in a slot, which
//! owns its buffer and file, from before the ring learns of it until after its last completion; and a ring that goes away waits
//! for its slots, or leaks them when the kernel no longer answers.
#![allow(unsafe_code, reason = "handing addresses of buffers to the kernel")]

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use io_uring::types::{Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, Probe, opcode, squeue};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{Errno, ReadWriteFlags};

use super::files::{DataDir, DsyncMode, Files, assert_blocks};
use super::zero::ZeroFiller;
use super::{AlignedBuf, BLOCK_BYTES, Disk, DiskCompletion, DiskError, DiskOp, DiskVerb, FileId, IN_FLIGHT_MAX, Wake, Waker};

/// Each operation takes at most two entries (a write and its fdatasync), the wake-up one more.
const RING_ENTRIES: u32 = (4 * IN_FLIGHT_MAX) as u32;
const _: () = assert!(RING_ENTRIES as usize > 2 * IN_FLIGHT_MAX);

/// `POLLIN` of `poll(2)`.
const POLL_IN: u32 = 0x1;

/// `user_data` of the wake-up; a slot's is its index, with this bit for the fdatasync behind its write.
const USER_WAKE: u64 = u64::MAX;
const USER_SYNC: u64 = 1 << 32;

/// A disk under io_uring. Used from one thread at a time.
pub(super) struct UringDisk {
    ring: IoUring,
    slots: Vec<Option<Write>>,
    free: Vec<usize>,
    files: Files,
    zero: ZeroFiller,
    wake: Arc<UringWake>,
    wake_armed: bool,
    /// Answers that need no kernel: work that could not be started.
    ready: Vec<DiskCompletion>,
    /// The kernel stopped answering; buffers of unanswered writes must never be freed.
    broken: Option<Errno>,
}

/// A write that the kernel may be reading from.
struct Write {
    id: u64,
    file: FileId,
    fd: Arc<OwnedFd>,
    data: Arc<AlignedBuf>,
    at: u64,
    bytes: usize,
    done: usize,
    /// Completions of this slot still to come.
    pending: u8,
    failed: Option<DiskError>,
}

/// What other threads may touch: it outlives the disk through its `Arc`.
struct UringWake {
    event: OwnedFd,
    sleeping: AtomicBool,
    notified: AtomicBool,
    zeroed: Mutex<Vec<DiskCompletion>>,
}

impl Wake for UringWake {
    fn wake(&self) {
        // Either the sleeper sees `notified` after it set `sleeping`, or we see `sleeping` after we set `notified`: both
        // sides write one flag before they read the other, sequentially consistent.
        if !self.notified.swap(true, Ordering::SeqCst) && self.sleeping.load(Ordering::SeqCst) {
            // The counter cannot overflow (it is read whenever it fires), so this cannot fail in a way that matters.
            let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
        }
    }
}

/// Makes a ring that can do what the log needs, or says why not.
fn new_ring() -> Result<IoUring, &'static str> {
    let ring = IoUring::new(RING_ENTRIES).map_err(|error| match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOSYS) => "the kernel has no io_uring",
        Some(Errno::PERM | Errno::ACCESS) => "the kernel or the container's seccomp profile forbids it",
        Some(Errno::NOMEM) => "the limit of locked memory is too low for its rings",
        Some(Errno::MFILE | Errno::NFILE) => "no file descriptor is left",
        _ => "its set-up failed",
    })?;
    let params = ring.params();
    if !params.is_feature_ext_arg() || !params.is_feature_nodrop() {
        return Err("the kernel is older than 5.11");
    }
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).map_err(|_| "the kernel does not say what its io_uring can do")?;
    let needed = [opcode::Write::CODE, opcode::Fsync::CODE, opcode::PollAdd::CODE];
    if needed.iter().all(|&code| probe.is_supported(code)) { Ok(ring) } else { Err("its io_uring lacks an operation") }
}

/// Why io_uring cannot be used here, if so.
pub(super) fn refused() -> Option<&'static str> {
    new_ring().err()
}

impl UringDisk {
    pub(super) fn open(dir: DataDir) -> Result<Self, DiskError> {
        let ring = new_ring().map_err(|reason| DiskError::NoUring { reason })?;
        let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)
            .map_err(|errno| DiskError::Directory { verb: DiskVerb::Open, errno })?;
        let wake = Arc::new(UringWake {
            event,
            sleeping: AtomicBool::new(false),
            notified: AtomicBool::new(false),
            zeroed: Mutex::default(),
        });
        let mailbox = Arc::clone(&wake);
        let zero = ZeroFiller::start(dir.clone(), move |completion| {
            mailbox.zeroed.lock().unwrap_or_else(PoisonError::into_inner).push(completion);
            mailbox.wake();
        })?;
        Ok(Self {
            ring,
            slots: (0..IN_FLIGHT_MAX).map(|_| None).collect(),
            free: (0..IN_FLIGHT_MAX).rev().collect(),
            files: Files::new(dir),
            zero,
            wake,
            wake_armed: false,
            ready: Vec::new(),
            broken: None,
        })
    }

    fn start_write(&mut self, id: u64, file: FileId, at: u64, data: Arc<AlignedBuf>, bytes: usize) {
        assert_blocks(at, bytes, data.len());
        let fd = match (self.broken, self.files.get(file)) {
            (None, Ok(fd)) => fd,
            (Some(errno), _) => return self.refuse(id, DiskError::from_errno(DiskVerb::Write, file, errno)),
            (None, Err(error)) => return self.refuse(id, error),
        };
        let index = self.free.pop().expect("at most IN_FLIGHT_MAX operations are in flight");
        self.slots[index] = Some(Write { id, file, fd, data, at, bytes, done: 0, pending: 0, failed: None });
        self.push_write(index);
        self.enter(0, None);
    }

    fn refuse(&mut self, id: u64, error: DiskError) {
        self.ready.push(DiskCompletion { id, result: Err(error) });
    }

    /// Puts the write of a slot, or what is left of it, into the ring.
    fn push_write(&mut self, index: usize) {
        let write = self.slots[index].as_mut().expect("only taken slots are written");
        let mode = self.files.dir.sync_mode();
        let rest = &write.data[write.done..write.bytes];
        let fd = Fd(write.fd.as_raw_fd());
        // A frame is far below 4 GiB: `assert_blocks` and the frame limit keep it so.
        let length = u32::try_from(rest.len()).expect("one write is below 4 GiB");
        let mut entry = opcode::Write::new(fd, rest.as_ptr(), length)
            .offset(write.at + write.done as u64)
            .rw_flags(write_flags(mode))
            .build()
            .user_data(index as u64);
        write.pending = 1;
        if mode == DsyncMode::Fdatasync {
            entry = entry.flags(squeue::Flags::IO_LINK);
            write.pending = 2;
        }
        // SAFETY: the entry's address points into `write.data[done..bytes]`, which `rest` bounds. The memory of an
        // `AlignedBuf` is a boxed slice that is never moved or resized, and the slot holds an `Arc` of it, so nobody can get
        // `&mut` to it. The slot is emptied only in `finish`, after `pending` completions were reaped, that is, when the
        // kernel is done with it; or it is leaked (`break_down`, `drop`). The same holds for the file descriptor.
        unsafe { push(&mut self.ring, &entry) };
        if mode == DsyncMode::Fdatasync {
            let sync = opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build().user_data(index as u64 | USER_SYNC);
            // SAFETY: the entry carries no address, only the file descriptor that the slot keeps open as said above.
            unsafe { push(&mut self.ring, &sync) };
        }
    }

    fn arm_wake(&mut self) {
        if !self.wake_armed && self.broken.is_none() {
            let entry = opcode::PollAdd::new(Fd(self.wake.event.as_raw_fd()), POLL_IN).build().user_data(USER_WAKE);
            // SAFETY: the entry carries no address. The eventfd is open as long as `self.wake`, which is dropped after
            // `drop` has run; a poll that outlives it in the kernel holds its own reference to the file.
            unsafe { push(&mut self.ring, &entry) };
            self.wake_armed = true;
        }
    }

    /// Enters the kernel: submits what is queued and waits for `want` completions, at most for `wait`.
    fn enter(&mut self, want: usize, wait: Option<Duration>) {
        let result = match wait {
            Some(wait) => {
                let timeout = Timespec::new().sec(wait.as_secs()).nsec(wait.subsec_nanos());
                self.ring.submitter().submit_with_args(want, &SubmitArgs::new().timespec(&timeout))
            }
            None => self.ring.submit_and_wait(want),
        };
        let Err(error) = result else { return };
        match error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error) {
            // Timed out; interrupted; or the kernel is short of memory or has completions to reap first: the entries stay
            // in the ring, and the next entry submits them.
            Errno::TIME | Errno::INTR => {}
            Errno::AGAIN | Errno::BUSY => std::thread::yield_now(),
            errno => self.break_down(errno),
        }
    }

    /// The ring itself failed: every write in flight is answered with an error, and its buffer is never freed, since the
    /// kernel may still read it.
    fn break_down(&mut self, errno: Errno) {
        tracing::error!(%errno, "io_uring stopped working; the log takes no more writes until the node is restarted");
        self.broken = Some(errno);
        for write in self.slots.iter_mut().filter_map(Option::take) {
            let error = DiskError::from_errno(DiskVerb::Write, write.file, errno);
            self.ready.push(DiskCompletion { id: write.id, result: Err(error) });
            std::mem::forget(write);
        }
        self.free.clear();
    }

    /// Takes everything that has completed.
    fn reap(&mut self, out: &mut Vec<DiskCompletion>) {
        out.append(&mut self.ready);
        loop {
            let Some(entry) = self.ring.completion().next() else { break };
            let result = entry.result();
            match entry.user_data() {
                USER_WAKE => {
                    self.wake_armed = false;
                    let mut count = [0; 8];
                    // Sets the counter back; if it is zero already, there is nothing to set back.
                    let _ = rustix::io::read(&self.wake.event, &mut count);
                }
                user => self.complete((user & !USER_SYNC) as usize, user & USER_SYNC != 0, result, out),
            }
        }
        if self.broken.is_none() && !self.ring.submission().is_empty() {
            self.enter(0, None);
        }
    }

    /// One completion of a slot: of its write, or of the fdatasync behind it.
    fn complete(&mut self, index: usize, is_sync: bool, result: i32, out: &mut Vec<DiskCompletion>) {
        // After a breakdown completions may still come; their slots are gone.
        let Some(write) = self.slots.get_mut(index).and_then(Option::as_mut) else { return };
        assert!(write.pending > 0, "no more completions than entries");
        write.pending -= 1;
        match usize::try_from(result) {
            Ok(_) if is_sync => {}
            Ok(bytes) => write.progress(bytes),
            Err(_) => write.fail(is_sync, Errno::from_raw_os_error(-result)),
        }
        if write.pending > 0 {
            return;
        }
        if write.failed.is_none() && write.done < write.bytes {
            self.push_write(index);
        } else {
            self.finish(index, out);
        }
    }

    /// Empties a slot whose completions are all in.
    fn finish(&mut self, index: usize, out: &mut Vec<DiskCompletion>) {
        let write = self.slots[index].take().expect("only taken slots finish");
        self.free.push(index);
        out.push(DiskCompletion { id: write.id, result: write.failed.map_or(Ok(()), Err) });
    }

    /// Sleeps until something happens or `wait` has passed, unless something has happened already.
    fn sleep(&mut self, wait: Option<Duration>) {
        self.arm_wake();
        self.wake.sleeping.store(true, Ordering::SeqCst);
        if !self.wake.notified.load(Ordering::SeqCst) {
            self.enter(1, wait);
        }
        self.wake.sleeping.store(false, Ordering::SeqCst);
    }

    fn in_flight(&self) -> bool {
        self.slots.iter().any(Option::is_some)
    }
}

impl Write {
    /// Counts bytes that the kernel took.
    fn progress(&mut self, bytes: usize) {
        self.done += bytes;
        // What O_DIRECT wrote short of a block cannot be continued; nothing at all would go on for ever.
        let stuck = bytes == 0 || !self.done.is_multiple_of(BLOCK_BYTES) || self.done > self.bytes;
        if stuck {
            let (wanted, done) = (self.bytes as u64, self.done as u64);
            self.failed = Some(DiskError::Short { verb: DiskVerb::Write, file: self.file, at: self.at, wanted, done });
        }
    }

    fn fail(&mut self, is_sync: bool, errno: Errno) {
        let verb = match (is_sync, errno) {
            // The write before it failed or was short, which cuts the link: the write's own answer counts.
            (true, Errno::CANCELED) => return,
            (true, _) => DiskVerb::Sync,
            // Interrupted before it wrote anything, which is no failure: it is put into the ring once more.
            (false, Errno::INTR) => return,
            (false, _) => DiskVerb::Write,
        };
        self.failed = self.failed.or(Some(DiskError::from_errno(verb, self.file, errno)));
    }
}

/// The flags that make a write durable by itself, where the mode asks for that.
fn write_flags(mode: DsyncMode) -> i32 {
    let flags = if mode == DsyncMode::RwfDsync { ReadWriteFlags::DSYNC } else { ReadWriteFlags::empty() };
    flags.bits().cast_signed()
}

/// Adds an entry to the submission queue.
///
/// # Safety
/// What the entry points to must stay valid, and must not be written to, until its completion is reaped.
unsafe fn push(ring: &mut IoUring, entry: &squeue::Entry) {
    // SAFETY: passed on to the caller of this function.
    let pushed = unsafe { ring.submission().push(entry) };
    // `RING_ENTRIES` is larger than all slots and the wake-up can queue.
    pushed.expect("the ring has room for every operation in flight");
}

impl Disk for UringDisk {
    fn submit(&mut self, id: u64, op: DiskOp) {
        match op {
            DiskOp::Write { file, at, data, bytes } => self.start_write(id, file, at, data, bytes),
            DiskOp::Zero { file, bytes, reuse } => {
                if let Err(error) = self.zero.fill(id, file, bytes, reuse) {
                    self.refuse(id, error);
                }
            }
            DiskOp::Discard { file } => {
                self.files.close(file);
                if let Err(error) = self.zero.discard(id, file) {
                    self.refuse(id, error);
                }
            }
        }
    }

    fn poll(&mut self, wait: Option<Duration>, out: &mut Vec<DiskCompletion>) {
        let deadline = wait.and_then(|wait| Instant::now().checked_add(wait));
        let before = out.len();
        loop {
            self.reap(out);
            let woken = self.wake.notified.swap(false, Ordering::SeqCst);
            if woken {
                out.append(&mut self.wake.zeroed.lock().unwrap_or_else(PoisonError::into_inner));
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if out.len() > before || woken || left == Some(Duration::ZERO) {
                return;
            }
            if self.broken.is_some() {
                // No sleep in a broken ring; a short one outside it, for the zero-filler's sake.
                std::thread::sleep(left.unwrap_or(BROKEN_POLL).min(BROKEN_POLL));
            } else {
                self.sleep(left);
            }
        }
    }

    fn waker(&self) -> Waker {
        Waker::new(Arc::clone(&self.wake) as Arc<dyn Wake>)
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

const BROKEN_POLL: Duration = Duration::from_millis(10);

impl Drop for UringDisk {
    fn drop(&mut self) {
        // The kernel may be reading the buffers of unfinished writes: wait for them. A write to a file always completes,
        // if only with an error. If the ring itself fails meanwhile, `break_down` leaks what is left.
        let mut answers = Vec::new();
        while self.in_flight() {
            self.enter(1, None);
            self.reap(&mut answers);
        }
        debug_assert!(!self.in_flight(), "no buffer is freed while the kernel may read it");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk with one write of three blocks that the kernel has not been told of.
    fn with_write() -> Option<(tempfile::TempDir, UringDisk, Arc<AlignedBuf>)> {
        let root = tempfile::tempdir().unwrap();
        DataDir::prepare(root.path()).unwrap();
        let mut disk = match UringDisk::open(DataDir::new(root.path(), false, DsyncMode::RwfDsync)) {
            Ok(disk) => disk,
            Err(error) => {
                eprintln!("SKIPPED: {error}");
                return None;
            }
        };
        let file = FileId::Segment(0);
        disk.write_now(file, 0, &AlignedBuf::zeroed(3 * BLOCK_BYTES), 3 * BLOCK_BYTES).unwrap();
        let content: Vec<u8> = (1..=3).flat_map(|block| [block; BLOCK_BYTES]).collect();
        let data = Arc::new(AlignedBuf::copy_of(&content));
        let fd = disk.files.get(file).unwrap();
        let index = disk.free.pop().unwrap();
        let bytes = data.len();
        let write = Write { id: 5, file, fd, data: Arc::clone(&data), at: 0, bytes, done: 0, pending: 1, failed: None };
        assert_eq!(index, 0);
        disk.slots[index] = Some(write);
        Some((root, disk, data))
    }

    #[test]
    fn a_short_write_goes_on_with_its_rest() {
        let Some((_root, mut disk, data)) = with_write() else { return };
        let mut out = Vec::new();
        disk.complete(0, false, BLOCK_BYTES as i32, &mut out);
        assert!(out.is_empty(), "two blocks are still to be written");
        while out.is_empty() {
            disk.poll(None, &mut out);
        }
        assert_eq!((out[0].id, out[0].result), (5, Ok(())));
        let mut back = AlignedBuf::zeroed(3 * BLOCK_BYTES);
        disk.read(FileId::Segment(0), 0, &mut back, 3 * BLOCK_BYTES).unwrap();
        assert!(back[..BLOCK_BYTES].iter().all(|&b| b == 0), "the kernel was said to have written this already");
        assert!(back[BLOCK_BYTES..] == data[BLOCK_BYTES..]);
    }

    #[test]
    fn writes_are_durable_by_themselves_only_where_the_mode_says_so() {
        assert_eq!(write_flags(DsyncMode::RwfDsync), 2, "RWF_DSYNC of linux/fs.h");
        assert_eq!((write_flags(DsyncMode::ODsync), write_flags(DsyncMode::Fdatasync)), (0, 0));
    }

    #[test]
    fn a_wake_between_the_last_look_and_the_sleep_is_not_lost() {
        let Some((_root, mut disk, _)) = with_write() else { return };
        disk.wake.wake();
        let (slept, woke) = std::sync::mpsc::channel();
        // Left running where it hangs; the write that was never submitted keeps the disk from being dropped.
        std::thread::spawn(move || {
            disk.sleep(None);
            disk.slots[0] = None;
            slept.send(()).unwrap();
        });
        woke.recv_timeout(Duration::from_secs(60)).expect("the sleep ends at once");
    }

    #[test]
    fn a_write_without_progress_or_inside_a_block_is_an_error() {
        for result in [0, 100, 4 * BLOCK_BYTES as i32] {
            let Some((_root, mut disk, data)) = with_write() else { return };
            let mut out = Vec::new();
            disk.complete(0, false, result, &mut out);
            assert!(matches!(out[0].result, Err(DiskError::Short { .. })), "{result}: {out:?}");
            assert_eq!(Arc::strong_count(&data), 1, "the slot is empty");
        }
    }

    #[test]
    fn a_failed_write_is_an_error_and_never_tried_again() {
        let Some((_root, mut disk, _)) = with_write() else { return };
        let mut out = Vec::new();
        disk.complete(0, false, -5, &mut out);
        let failed = DiskError::Io { verb: DiskVerb::Write, file: FileId::Segment(0), errno: Errno::IO };
        assert_eq!((out.len(), out[0].result), (1, Err(failed)));
        assert!(!disk.in_flight() && disk.ring.submission().is_empty());
    }

    #[test]
    fn a_broken_ring_answers_everything_and_frees_no_buffer() {
        let Some((_root, mut disk, data)) = with_write() else { return };
        disk.break_down(Errno::BADF);
        disk.submit(6, DiskOp::Write { file: FileId::Segment(0), at: 0, data: Arc::clone(&data), bytes: BLOCK_BYTES });
        let mut out = Vec::new();
        disk.poll(Some(Duration::from_secs(60)), &mut out);
        assert_eq!(
            out.iter().map(|completion| (completion.id, completion.result.is_err())).collect::<Vec<_>>(),
            [(5, true), (6, true)]
        );
        disk.poll(Some(Duration::from_millis(1)), &mut out);
        drop(disk);
        assert_eq!(Arc::strong_count(&data), 2, "the write's buffer outlives the disk");
    }
}
