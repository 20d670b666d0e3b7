//! Read-ahead for recovery: while the log thread verifies one piece of a segment, a thread of this module reads the next.
//!
//! A hint costs nothing where it was wrong but the read itself, and changes nothing of what a read gives: whatever was not
//! read ahead, or failed, is read once more by whoever asks for it, and so are errors told. Buffers change hands, no byte is
//! copied. At most [`PIECES_MAX`] pieces are under way, so that is the memory it takes; all of it goes with the thread.
//!
//! Where only directories are wanted, each read says where the next one is, so no two of a file can be under way at once. Then
//! the files are: each thread follows a [`Chain`], ahead of the scan that comes file by file. No thread waits for the scan: a chain
//! with [`CHAIN_BYTES_MAX`] in store ends there, and the scan reads the rest itself.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::files::read_exact;
use super::{AlignedBuf, BLOCK_BYTES, Chain, DiskError, DiskVerb, FileId};

/// Pieces read ahead at once, each by a thread of its own: one request of some megabytes does not keep every disk busy.
pub(super) const PIECES_MAX: usize = 4;

/// Chains held: of the file that the scan is in, and one that each thread follows.
const CHAINS_MAX: usize = PIECES_MAX + 1;
/// In store of one chain: a block each for 512 frames, as many as a segment of 64 MiB has that are worth hopping over.
const CHAIN_BYTES_MAX: usize = 2 << 20;

/// What was asked for. A read of other bytes is not served by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stretch {
    file: FileId,
    at: u64,
    bytes: usize,
}

struct Ask {
    fd: Arc<OwnedFd>,
    what: What,
}

enum What {
    /// If the round rose since it was asked for, nobody wants it any more.
    Piece { stretch: Stretch, buf: AlignedBuf, round: u64, reply: SyncSender<Answer> },
    /// Wanted as long as somebody would receive it.
    Chain { chain: Chain, links: SyncSender<Link> },
}

/// One read of a chain, where it was good.
struct Link {
    at: u64,
    buf: AlignedBuf,
}

/// What is in store of a chain.
struct Following {
    file: FileId,
    links: Receiver<Link>,
    /// The next one, if the scan did not want it yet.
    first: Option<Link>,
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
    chains: VecDeque<Following>,
    spare: Vec<AlignedBuf>,
    round: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl ReadAhead {
    /// These bytes are probably read next. Does nothing where enough is under way, or no thread can be had.
    pub(super) fn hint(&mut self, fd: Arc<OwnedFd>, file: FileId, at: u64, bytes: usize) {
        self.running.get_or_insert_with(Running::start).hint(fd, Stretch { file, at, bytes });
    }

    /// These reads are probably next, when the scan comes to this file.
    pub(super) fn chain(&mut self, fd: Arc<OwnedFd>, chain: Chain) {
        self.running.get_or_insert_with(Running::start).chain(fd, chain);
    }

    /// Puts these bytes into the start of `buf` if they were read ahead; `buf` may become another buffer, no smaller.
    pub(super) fn take(&mut self, file: FileId, at: u64, buf: &mut AlignedBuf, bytes: usize) -> bool {
        let Some(running) = self.running.as_mut() else { return false };
        running.take_link(file, at, &mut buf[..bytes]) || running.take(Stretch { file, at, bytes }, buf)
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
        let Ok(Ask { fd, what }) = next else { return };
        match what {
            What::Piece { stretch: Stretch { file, at, bytes }, mut buf, round, reply } => {
                let result = if round == now.load(Ordering::Relaxed) {
                    read_exact(&fd, file, at, &mut buf[..bytes])
                } else {
                    Err(DiskError::Closed { verb: DiskVerb::Read, file })
                };
                // Whoever asked may have gone.
                let _ = reply.send((buf, result));
            }
            What::Chain { chain, links } => follow(&fd, &chain, &links),
        }
    }
}

/// Until the chain ends, or a read fails, or nobody wants it.
fn follow(fd: &OwnedFd, chain: &Chain, links: &SyncSender<Link>) {
    let mut at = chain.at;
    while at + chain.bytes as u64 <= chain.end {
        let mut buf = AlignedBuf::zeroed(chain.bytes);
        if read_exact(fd, chain.file, at, &mut buf[..chain.bytes]).is_err() {
            return;
        }
        let next = (chain.next)(&buf[..chain.bytes]);
        // Full, or given up: the rest is read by whoever asks for it.
        if links.try_send(Link { at, buf }).is_err() {
            return;
        }
        let Some(next) = next.filter(|next| *next > 0) else { return };
        at += next as u64;
    }
}

impl Running {
    fn start() -> Running {
        let (asks, queue) = sync_channel::<Ask>(PIECES_MAX + CHAINS_MAX);
        let (queue, round) = (Arc::new(Mutex::new(queue)), Arc::new(AtomicU64::new(0)));
        let threads = (0..PIECES_MAX).map_while(|_| {
            let (queue, round) = (Arc::clone(&queue), Arc::clone(&round));
            std::thread::Builder::new().name("weir-ahead".into()).spawn(move || work(&queue, &round)).ok()
        });
        let threads: Vec<_> = threads.collect();
        // Without a thread recovery is slower, no more.
        let asks = (!threads.is_empty()).then_some(asks);
        let (pending, chains) = (VecDeque::with_capacity(PIECES_MAX), VecDeque::with_capacity(CHAINS_MAX));
        Running { asks, pending, chains, spare: Vec::new(), round, threads }
    }

    fn hint(&mut self, fd: Arc<OwnedFd>, stretch: Stretch) {
        let Some(asks) = &self.asks else { return };
        if self.pending.len() == PIECES_MAX || self.pending.iter().any(|(pending, _)| *pending == stretch) {
            return;
        }
        let large = self.spare.iter().position(|buf| buf.len() >= stretch.bytes);
        let buf = large.map_or_else(|| AlignedBuf::zeroed(stretch.bytes), |at| self.spare.swap_remove(at));
        let (reply, answer) = sync_channel(1);
        let what = What::Piece { stretch, buf, round: self.round.load(Ordering::Relaxed), reply };
        if asks.try_send(Ask { fd, what }).is_ok() {
            self.pending.push_back((stretch, answer));
        }
    }

    fn chain(&mut self, fd: Arc<OwnedFd>, chain: Chain) {
        let Some(asks) = &self.asks else { return };
        if self.chains.iter().any(|following| following.file == chain.file) {
            return;
        }
        if self.chains.len() == CHAINS_MAX {
            // The scan has gone past it: it goes through files in the order of the hints.
            self.chains.pop_front();
        }
        let (file, (links, followed)) = (chain.file, sync_channel(CHAIN_BYTES_MAX / chain.bytes.max(BLOCK_BYTES)));
        if asks.try_send(Ask { fd, what: What::Chain { chain, links } }).is_ok() {
            self.chains.push_back(Following { file, links: followed, first: None });
        }
    }

    /// Whether a chain of this file has these bytes in store, or will.
    fn take_link(&mut self, file: FileId, at: u64, out: &mut [u8]) -> bool {
        let Some(following) = self.chains.iter_mut().find(|following| following.file == file) else { return false };
        while let Some(link) = following.first.take().or_else(|| following.links.recv().ok()) {
            if link.at < at {
                continue;
            }
            let found = link.at == at && out.len() <= link.buf.len();
            if found {
                out.copy_from_slice(&link.buf[..out.len()]);
            }
            // More of the same may be asked for, or it comes later.
            following.first = Some(link);
            return found;
        }
        // It has ended.
        self.chains.retain(|following| following.file != file);
        false
    }

    fn take(&mut self, wanted: Stretch, buf: &mut AlignedBuf) -> bool {
        if !self.pending.iter().any(|(pending, _)| *pending == wanted) {
            // The scan has gone elsewhere.
            self.forget_pieces();
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
        self.chains.clear();
        self.forget_pieces();
    }

    fn forget_pieces(&mut self) {
        if self.pending.is_empty() {
            return;
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: FileId = FileId::Segment(1);
    const OTHER: FileId = FileId::Segment(2);

    /// Blocks that each begin with the distance to the next one of the chain, in blocks.
    fn blocks(steps: &[u8]) -> (tempfile::NamedTempFile, Arc<OwnedFd>) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut bytes = vec![0; steps.len() * BLOCK_BYTES];
        steps.iter().zip(bytes.chunks_mut(BLOCK_BYTES)).for_each(|(step, block)| block[..2].copy_from_slice(&[*step, 7]));
        std::fs::write(file.path(), bytes).unwrap();
        let fd = std::fs::File::open(file.path()).unwrap().into();
        (file, Arc::new(fd))
    }

    fn chain(file: FileId, blocks: u64) -> Chain {
        let next = |block: &[u8]| (block[0] > 0).then_some(block[0] as usize * BLOCK_BYTES);
        Chain { file, at: 0, end: blocks * BLOCK_BYTES as u64, bytes: BLOCK_BYTES, next }
    }

    fn takes(ahead: &mut ReadAhead, file: FileId, block: u64) -> bool {
        let mut buf = AlignedBuf::zeroed(BLOCK_BYTES);
        let taken = ahead.take(file, block * BLOCK_BYTES as u64, &mut buf, BLOCK_BYTES);
        assert_eq!(buf[1], if taken { 7 } else { 0 });
        taken
    }

    #[test]
    fn a_chain_is_followed_to_its_end_and_serves_nothing_else() {
        let (_file, fd) = blocks(&[2, 1, 3, 1, 1, 2, 0, 0, 1]);
        let mut ahead = ReadAhead::default();
        ahead.chain(Arc::clone(&fd), chain(FILE, 9));
        ahead.chain(fd, chain(OTHER, 5));
        for (block, there) in [(0, true), (0, true), (1, false), (2, true), (5, true), (2, false), (7, true), (8, false)] {
            assert_eq!(takes(&mut ahead, FILE, block), there, "block {block}");
        }
        // It goes on at block 5, where its file ends.
        assert!(takes(&mut ahead, OTHER, 2) && !takes(&mut ahead, OTHER, 5));
    }

    #[test]
    fn what_was_read_before_a_write_is_not_taken() {
        let (_file, fd) = blocks(&[1, 1, 1, 0]);
        let mut ahead = ReadAhead::default();
        ahead.chain(Arc::clone(&fd), chain(FILE, 4));
        assert!(takes(&mut ahead, FILE, 0));
        ahead.forget();
        assert!(!takes(&mut ahead, FILE, 1));
        ahead.chain(fd, chain(FILE, 4));
        assert!(takes(&mut ahead, FILE, 1));
    }
}
