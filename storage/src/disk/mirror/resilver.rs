//! Filling a copy: every segment file of the survivor, piece by piece, while the log goes on.
//!
//! Bytes are copied, not frames, so what is damaged on the survivor is damaged on both (the scrub names it). What the log writes
//! meanwhile goes to both where the piece is already copied, and only to the survivor where it is not: it will be copied. A
//! write into the very piece that is under way makes it be copied again; a piece is read only when no write to it is.
//!
//! When all is copied the log's writes wait for both; when those from before have reached the new copy, the survivor's superblock
//! says that both are in step, and only then the new copy's. (The other way round a survivor that failed in between would be left
//! saying that it is alone, as would the new copy later on, and nobody could tell which is right.) Cut short by a crash, it begins
//! again from nothing: until its own superblock says otherwise the new copy is worth nothing.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use super::{MirrorDisk, Role, What};
use crate::disk::{AlignedBuf, BLOCK_BYTES, Disk, DiskError, DiskOp, DiskRead, FileId};
use crate::format::superblock::{Peer, SLOTS, Superblock};
use crate::format::{BLOCK, Uuid};

/// Copied at once. On a hard disk it is a few milliseconds, so a commit waits no longer behind it.
const PIECE: u64 = 256 << 10;
/// What may be caught up with when the log was busy.
const CREDIT_MAX: u64 = 4 * PIECE;

/// Makes a disk say, durably and in both slots, that its content is worth nothing until it has been filled from the survivor.
/// Returns the generation it has now.
pub fn prepare_target(disk: &mut dyn Disk, survivor: &Superblock, copy_id: Uuid, generation: u64) -> Result<u64, DiskError> {
    // The first write must not go over the only good slot.
    let newest = generation.max(survivor.generation);
    let skip = u64::from((newest + 1) % SLOTS == generation % SLOTS);
    let mut superblock = Superblock {
        copy_id,
        peer_id: survivor.copy_id,
        peer: Peer::Filling,
        peer_lsn: 0,
        generation: newest + skip,
        ..*survivor
    };
    for _ in 0..SLOTS {
        superblock.generation += 1;
        disk.write_now(FileId::Superblock, superblock.slot_at(), &superblock.encode(), BLOCK)?;
    }
    Ok(superblock.generation)
}

type ReadSlot = Arc<Mutex<Option<Result<Bytes, DiskError>>>>;

#[derive(Debug)]
enum Step {
    Idle,
    /// The file gets its size on the new copy.
    Sizing(u64),
    Reading(ReadSlot),
    Writing(u64),
}

/// The file being copied.
#[derive(Debug)]
struct Current {
    file: u32,
    bytes: u64,
    /// Copied up to here.
    at: u64,
    piece: u64,
    step: Step,
    /// The log wrote into the piece under way.
    dirty: bool,
}

impl Current {
    fn piece_end(&self) -> u64 {
        (self.at + self.piece).min(self.bytes)
    }
}

pub(super) struct Resilver {
    side: usize,
    listed: bool,
    queue: VecDeque<u32>,
    /// Files whose every byte is on the new copy.
    followed: BTreeSet<u32>,
    current: Option<Current>,
    credit: u64,
    credited_at: Duration,
    began_at: Duration,
    done: u64,
    total: u64,
    unreadable: u64,
    /// All is copied; operations before this number may still be on their way to the new copy.
    barrier: Option<u64>,
}

impl Resilver {
    pub(super) fn new(side: usize, now: Duration) -> Resilver {
        Resilver {
            side,
            listed: false,
            queue: VecDeque::new(),
            followed: BTreeSet::new(),
            current: None,
            credit: PIECE,
            credited_at: now,
            began_at: now,
            done: 0,
            total: 0,
            unreadable: 0,
            barrier: None,
        }
    }

    /// The log writes: whether the new copy gets it too, and whether the log waits for it there.
    pub(super) fn written(&mut self, file: FileId, at: u64, bytes: u64) -> (bool, bool) {
        let FileId::Segment(file) = file else { return (false, false) };
        let waits = self.barrier.is_some();
        if self.followed.contains(&file) {
            return (true, waits);
        }
        let Some(current) = self.current.as_mut().filter(|current| current.file == file) else { return (false, false) };
        let under_way = matches!(current.step, Step::Reading(_) | Step::Writing(_));
        current.dirty |= under_way && at < current.piece_end() && current.at < at + bytes;
        (at < current.at, false)
    }

    /// The log makes a file anew: there is nothing to copy of it.
    pub(super) fn zeroing(&mut self, file: FileId) {
        let FileId::Segment(file) = file else { return };
        self.followed.remove(&file);
        self.queue.retain(|queued| *queued != file);
        self.current.take_if(|current| current.file == file);
    }

    pub(super) fn zeroed(&mut self, file: FileId, on: [bool; 2]) {
        if let (FileId::Segment(file), true) = (file, on[self.side]) {
            self.followed.insert(file);
        }
    }

    fn earn(&mut self, now: Duration, bytes_per_s: u64) {
        let earned = (now.saturating_sub(self.credited_at).as_micros() * u128::from(bytes_per_s) / 1_000_000) as u64;
        if earned > 0 {
            self.credit = (self.credit + earned).min(CREDIT_MAX);
            self.credited_at = now;
        }
    }
}

impl MirrorDisk {
    /// Does what can be done of filling a copy without waiting.
    pub(super) fn drive_resilver(&mut self) {
        let (now, rate) = (self.now(), self.options.fill_bytes_per_s);
        if let Some(resilver) = &mut self.resilver {
            resilver.earn(now, rate);
        }
        while self.resilver_step() {}
        if let Some(resilver) = &self.resilver {
            self.control.progress(Some((resilver.done, resilver.total, resilver.unreadable)));
        } else {
            self.control.progress(None);
        }
    }

    /// Whether there is more to do at once.
    fn resilver_step(&mut self) -> bool {
        let Some(resilver) = &self.resilver else { return false };
        if !resilver.listed {
            return self.list_for_fill();
        }
        match &resilver.current {
            Some(Current { step: Step::Idle, .. }) => self.read_piece(),
            Some(Current { step: Step::Reading(_), .. }) => self.piece_read(),
            Some(_) => false,
            None if resilver.queue.is_empty() => self.finish_fill(),
            None => self.next_file(),
        }
    }

    /// Which files there are to copy. Not while the survivor's superblock still has to say that it is alone, and not while a
    /// file is being made that the new copy knows nothing of.
    fn list_for_fill(&mut self) -> bool {
        if self.must_mark
            || self.superblock_op.is_some()
            || self.ops.values().any(|op| matches!(op.what, What::Zero(_) | What::Discard))
        {
            return false;
        }
        let (source, target) = (self.first, self.resilver.as_ref().expect("listing for it").side);
        let listed = self.disk(source).list_segments().and_then(|files| {
            let mut total = 0;
            let mut whole = Vec::new();
            for file in &files {
                let size = self.disk(source).size(FileId::Segment(*file))?.unwrap_or(0);
                // What is not whole blocks is an unfinished zero-fill, and will be made anew.
                if size > 0 && size.is_multiple_of(BLOCK as u64) {
                    whole.push(*file);
                    total += size;
                }
            }
            for file in self.disk(target).list_segments()? {
                if !whole.contains(&file) {
                    self.disk(target).remove(FileId::Segment(file))?;
                }
            }
            Ok((whole, total))
        });
        match listed {
            Ok((files, total)) => {
                let resilver = self.resilver.as_mut().expect("listing for it");
                // What was made on both meanwhile is there already; an old piece of it must not go over what is new.
                resilver.queue = files.into_iter().filter(|file| !resilver.followed.contains(file)).collect();
                (resilver.total, resilver.listed) = (total, true);
                true
            }
            Err(error) => self.give_up_filling(&error),
        }
    }

    fn give_up_filling(&mut self, error: &DiskError) -> bool {
        if let Some(side) = self.resilver.as_ref().map(|resilver| resilver.side) {
            self.throw_out(side, &format!("it could not be filled: {error}"));
        }
        false
    }

    fn next_file(&mut self) -> bool {
        let resilver = self.resilver.as_mut().expect("filling");
        let (source, target) = (self.first, resilver.side);
        let file = resilver.queue.pop_front().expect("looked at before");
        let id = FileId::Segment(file);
        let sizes = self.disk(source).size(id).and_then(|from| {
            if self.disk(target).links(id)? > 1 {
                // A promoted segment on the copy, which is no part of the WAL any more: only its name here goes.
                self.disk(target).remove(id)?;
            }
            Ok((from.unwrap_or(0), self.disk(target).size(id)?))
        });
        let (bytes, there) = match sizes {
            Ok(sizes) => sizes,
            Err(error) => return self.give_up_filling(&error),
        };
        let step = if there == Some(bytes) {
            Step::Idle
        } else {
            let to = [target == 0, target == 1];
            Step::Sizing(self.submit_op(None, What::Fill, &DiskOp::Zero { file: id, bytes, reuse: None }, to, [false; 2]))
        };
        let resilver = self.resilver.as_mut().expect("filling");
        resilver.current = Some(Current { file, bytes, at: 0, piece: PIECE, step, dirty: false });
        true
    }

    fn read_piece(&mut self) -> bool {
        let resilver = self.resilver.as_mut().expect("filling");
        let current = resilver.current.as_mut().expect("a file is being copied");
        let (file, at, end) = (FileId::Segment(current.file), current.at, current.piece_end());
        let being_written = self.ops.values().any(|op| {
            op.left[self.first]
                && matches!(op.what, What::Write { file: other, at: from, bytes } if other == file && from < end && at < from + bytes)
        });
        if being_written || resilver.credit < end - at {
            return false;
        }
        let slot = ReadSlot::default();
        let answer = Arc::clone(&slot);
        let waker = self.waker.clone();
        let reply = Box::new(move |result| {
            *answer.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
            waker.wake();
        });
        let reader = Arc::clone(&self.sides[self.first].as_ref().expect("the survivor").member.reader);
        if reader.read(DiskRead { file, at, bytes: (end - at) as usize, reply }).is_err() {
            // Its queue is full: consumers come first.
            return false;
        }
        resilver.credit -= end - at;
        (current.step, current.dirty) = (Step::Reading(slot), false);
        true
    }

    fn piece_read(&mut self) -> bool {
        let resilver = self.resilver.as_mut().expect("filling");
        let current = resilver.current.as_mut().expect("a file is being copied");
        let Step::Reading(slot) = &current.step else { return false };
        let Some(result) = slot.lock().unwrap_or_else(PoisonError::into_inner).take() else { return false };
        if current.dirty {
            current.step = Step::Idle;
            return true;
        }
        let data = match result {
            Ok(data) => AlignedBuf::copy_of(&data),
            Err(_) if current.piece > BLOCK_BYTES as u64 => {
                // Block by block, so that a bad sector takes nothing else with it.
                (current.piece, current.step) = (BLOCK_BYTES as u64, Step::Idle);
                return true;
            }
            Err(error) => {
                tracing::error!(%error, at = current.at, "the survivor cannot be read here: the new copy has a hole in the same place");
                resilver.unreadable += 1;
                AlignedBuf::zeroed(BLOCK_BYTES)
            }
        };
        let (file, at, bytes) = (FileId::Segment(current.file), current.at, (current.piece_end() - current.at) as usize);
        let side = resilver.side;
        let op = DiskOp::Write { file, at, data: Arc::new(data), bytes };
        let id = self.submit_op(None, What::Fill, &op, [side == 0, side == 1], [false; 2]);
        self.resilver.as_mut().and_then(|resilver| resilver.current.as_mut()).expect("a file is being copied").step =
            Step::Writing(id);
        false
    }

    /// A write or a zero-fill that only the new copy had is done.
    pub(super) fn fill_op_done(&mut self, id: u64) {
        let Some(resilver) = &mut self.resilver else { return };
        let Some(current) = &mut resilver.current else { return };
        match current.step {
            Step::Sizing(op) if op == id => current.step = Step::Idle,
            Step::Writing(op) if op == id => {
                current.step = Step::Idle;
                if current.dirty {
                    return;
                }
                resilver.done += current.piece_end() - current.at;
                current.at = current.piece_end();
                if current.at.is_multiple_of(PIECE) {
                    current.piece = PIECE;
                }
                if current.at == current.bytes {
                    resilver.followed.insert(current.file);
                    resilver.current = None;
                }
            }
            _ => {}
        }
    }

    /// Everything is copied: from now on the log waits for both, and when the new copy has what came before, it is in step.
    fn finish_fill(&mut self) -> bool {
        let barrier_now = self.op_next;
        let resilver = self.resilver.as_mut().expect("filling");
        let side = resilver.side;
        let barrier = *resilver.barrier.get_or_insert(barrier_now);
        if self.ops.iter().any(|(id, op)| *id < barrier && op.left[side]) || self.must_mark {
            return false;
        }
        if !self.announced {
            // The survivor says so first: then it can never claim to be alone once the new copy counts.
            self.announced = true;
            self.marks_wanted = 1;
            self.control.settled(false);
            self.start_superblock();
        }
        false
    }

    /// The survivor's superblock says that both are in step, and from here on they are. The new copy's follows.
    pub(super) fn join(&mut self) {
        let Some(resilver) = self.resilver.take() else { return };
        let took = self.now().saturating_sub(resilver.began_at);
        let bytes_per_second = (resilver.done as f64 / took.as_secs_f64().max(0.001)) as u64;
        let (bytes, unreadable, took_ms) = (resilver.done, resilver.unreadable, took.as_millis());
        tracing::info!(bytes, took_ms, bytes_per_second, unreadable, "the copy is filled and in step");
        self.peer_gone = None;
        self.joining = true;
        self.marks_wanted = 1;
        self.sides[resilver.side].as_mut().expect("it was filled").role = Role::InStep;
        self.show();
        // What was submitted since the barrier is waited for on both already.
        self.start_superblock();
    }
}
