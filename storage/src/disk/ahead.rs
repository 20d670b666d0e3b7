//! Read-ahead for recovery: while the log thread verifies one piece of a segment, a thread of this module reads the next.
//!
//! A hint costs nothing where it was wrong but the read itself, and changes nothing of what a read gives: whatever was not
//! read ahead, or failed, is read once more by whoever asks for it, and so are errors told. Buffers change hands, no byte is
//! copied. At most [`PIECES_MAX`] pieces are under way, so that is the memory it takes; all of it goes with the thread.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::files::read_exact;
use super::{AlignedBuf, DiskError, DiskVerb, FileId};

/// Pieces read ahead at once, each by a thread of its own: one request of some megabytes does not keep every disk busy.
pub(super) const PIECES_MAX: usize = 4;

/// What was asked for. A read of other bytes is not served by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stretch {
    file: FileId,
    at: u64,
    bytes: usize,
}

struct Ask {
    stretch: Stretch,
    fd: Arc<OwnedFd>,
    buf: AlignedBuf,
    /// Asked for before this rose: nobody wants it any more.
    round: u64,
    reply: SyncSender<Answer>,
}

type Answer = (AlignedBuf, Result<(), DiskError>);

/// The threads' handle; they start with the first hint.
#[derive(Default)]
pub(super) struct ReadAhead {
    running: Option<Running>,
}

struct Running {
    asks: Option<SyncSender<Ask>>,
    pending: VecDeque<(Stretch, Receiver<Answer>)>,
    spare: Vec<AlignedBuf>,
    round: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl ReadAhead {
    /// These bytes are probably read next. Does nothing where enough is under way, or no thread can be had.
    pub(super) fn hint(&mut self, fd: Arc<OwnedFd>, file: FileId, at: u64, bytes: usize) {
        self.running.get_or_insert_with(Running::start).hint(fd, Stretch { file, at, bytes });
    }

    /// Puts these bytes into the start of `buf` if they were read ahead; `buf` may become another buffer, no smaller.
    pub(super) fn take(&mut self, file: FileId, at: u64, buf: &mut AlignedBuf, bytes: usize) -> bool {
        let Some(running) = self.running.as_mut().filter(|running| !running.pending.is_empty()) else { return false };
        running.take(Stretch { file, at, bytes }, buf)
    }

    /// Something was written: what was read ahead may be older.
    pub(super) fn forget(&mut self) {
        self.running.iter_mut().for_each(Running::forget);
    }

    /// Ends the threads and frees their buffers.
    pub(super) fn end(&mut self) {
        self.running = None;
    }
}

fn work(queue: &Mutex<Receiver<Ask>>, now: &AtomicU64) {
    loop {
        // Nothing in here panics, so a poisoned lock still guards a sound queue.
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Ask { stretch: Stretch { file, at, bytes }, fd, mut buf, round, reply }) = next else { return };
        let result = if round == now.load(Ordering::Relaxed) {
            read_exact(&fd, file, at, &mut buf[..bytes])
        } else {
            Err(DiskError::Closed { verb: DiskVerb::Read, file })
        };
        // Whoever asked may have gone.
        let _ = reply.send((buf, result));
    }
}

impl Running {
    fn start() -> Running {
        let (asks, queue) = sync_channel::<Ask>(PIECES_MAX);
        let (queue, round) = (Arc::new(Mutex::new(queue)), Arc::new(AtomicU64::new(0)));
        let threads = (0..PIECES_MAX).map_while(|_| {
            let (queue, round) = (Arc::clone(&queue), Arc::clone(&round));
            std::thread::Builder::new().name("weir-ahead".into()).spawn(move || work(&queue, &round)).ok()
        });
        let threads: Vec<_> = threads.collect();
        // Without a thread recovery is slower, no more.
        let asks = (!threads.is_empty()).then_some(asks);
        Running { asks, pending: VecDeque::with_capacity(PIECES_MAX), spare: Vec::new(), round, threads }
    }

    fn hint(&mut self, fd: Arc<OwnedFd>, stretch: Stretch) {
        let Some(asks) = &self.asks else { return };
        if self.pending.len() == PIECES_MAX || self.pending.iter().any(|(pending, _)| *pending == stretch) {
            return;
        }
        let large = self.spare.iter().position(|buf| buf.len() >= stretch.bytes);
        let buf = large.map_or_else(|| AlignedBuf::zeroed(stretch.bytes), |at| self.spare.swap_remove(at));
        let (reply, answer) = sync_channel(1);
        if asks.try_send(Ask { stretch, fd, buf, round: self.round.load(Ordering::Relaxed), reply }).is_ok() {
            self.pending.push_back((stretch, answer));
        }
    }

    fn take(&mut self, wanted: Stretch, buf: &mut AlignedBuf) -> bool {
        if !self.pending.iter().any(|(pending, _)| *pending == wanted) {
            // The scan has gone elsewhere.
            self.forget();
            return false;
        }
        while let Some((stretch, answer)) = self.pending.pop_front() {
            let Ok((mut read, result)) = answer.recv() else { return false };
            let found = stretch == wanted;
            if found && result.is_ok() {
                if read.len() >= buf.len() {
                    std::mem::swap(&mut read, buf);
                } else {
                    buf[..wanted.bytes].copy_from_slice(&read[..wanted.bytes]);
                }
            }
            self.keep(read);
            if found {
                return result.is_ok();
            }
        }
        false
    }

    fn forget(&mut self) {
        self.round.fetch_add(1, Ordering::Relaxed);
        while let Some((_, answer)) = self.pending.pop_front() {
            if let Ok((read, _)) = answer.recv() {
                self.keep(read);
            }
        }
    }

    fn keep(&mut self, buf: AlignedBuf) {
        if self.spare.len() < PIECES_MAX {
            self.spare.push(buf);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.forget();
        self.asks = None;
        for thread in self.threads.drain(..) {
            // A panic of the thread has been reported by it.
            let _ = thread.join();
        }
    }
}
