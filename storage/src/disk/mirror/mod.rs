//! One disk made of two: the same bytes at the same places, a write done when both have it.
//!
//! The log above sees one [`Disk`] and knows nothing of copies. What it must never see happens in here: a copy that fails a write,
//! or answers long after the other, is **thrown out for good** (nothing more is written to it in this run, and its content is never
//! believed again until it has been filled anew), and from then on every completion is held back until the survivor's superblock
//! says durably that it is the survivor. So nothing is ever acknowledged that a stale copy could take back. The last copy
//! is never thrown out: its errors are the log's, as without a mirror.
//!
//! Bytes 112..160 of the superblock and its generation are this file's; the rest is the log's, whose superblock writes are
//! taken apart and put together again for each copy. Only one superblock write is under way at a time.
//!
//! Life of a copy: *healthy* → *suspect* (a write is overdue) → *offline* (thrown out) → *filling* (`resilver.rs`, after it came
//! back or another disk came in its place) → *healthy*.
//!
//! Cost beside a single disk: a second submission, a second look for completions, and the slower of two writes.

mod resilver;
mod status;

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::time::Duration;

use super::{AlignedBuf, Disk, DiskCompletion, DiskError, DiskOp, DiskVerb, FileId, Reader, Wake, Waker};
use crate::format::superblock::{Peer, SLOTS, Slot, Superblock};
use crate::format::{BLOCK, Uuid};

use resilver::Resilver;
pub use resilver::prepare_target;
use status::Command;
pub use status::{CopyState, CopyStatus, MirrorControl, MirrorReader, MirrorStatus};

/// How long a zero-fill, or anything a copy that is being filled does, may take longer than the other copy.
const SLOW_PATIENCE: Duration = Duration::from_secs(30);
/// Copied at once where a whole file is missing.
const RESTORE_PIECE: usize = 1 << 20;
/// While a write is with both disks, how long to sleep on one before looking at the other. Usually neither takes that long.
const SLICE: Duration = Duration::from_millis(10);

/// One copy, as it joins.
pub struct Member {
    /// Its disk.
    pub disk: Box<dyn Disk>,
    /// Its reader of old frames.
    pub reader: Arc<dyn Reader>,
    /// Who it is.
    pub copy_id: Uuid,
    /// For messages.
    pub name: String,
    /// Held until the disk is done with: the lock of its directory.
    pub keep: Box<dyn Any + Send>,
}

/// What a mirror may do, and how it tells the time.
pub struct MirrorOptions {
    /// How much later than the other a copy may answer.
    pub patience: Duration,
    /// Filling a copy reads and writes this much a second at most.
    pub fill_bytes_per_s: u64,
    /// Time since some moment that stays the same.
    pub clock: Box<dyn Fn() -> Duration + Send>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    InStep,
    Filling,
}

struct Side {
    member: Member,
    role: Role,
}

/// What an operation is, once it is with the disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Write {
        file: FileId,
        at: u64,
        bytes: u64,
    },
    Zero(FileId),
    Discard,
    /// `settles`: everything thrown out or joined before it is in it.
    Superblock {
        settles: bool,
    },
    Fill,
}

#[derive(Debug)]
struct Op {
    /// The log's number for it, until it is answered.
    outer: Option<u64>,
    what: What,
    /// Copies that got it and are still there.
    to: [bool; 2],
    /// Copies that have not answered.
    left: [bool; 2],
    /// Copies whose answer the log waits for.
    needs: [bool; 2],
    failed: Option<DiskError>,
    /// From here on the others are waited for with patience.
    since: Option<Duration>,
}

/// Two disks as one.
pub struct MirrorDisk {
    sides: [Option<Side>; 2],
    /// The copy that is read first.
    first: usize,
    /// The other copy's id where it is out or missing; `None`: there never was one.
    peer_gone: Option<Uuid>,
    /// What both had at least when it went.
    peer_lsn: u64,
    options: MirrorOptions,
    image: Option<Superblock>,
    generation: u64,
    ops: BTreeMap<u64, Op>,
    op_next: u64,
    /// Completions that wait for a superblock to say who the survivor is.
    held: Vec<DiskCompletion>,
    must_mark: bool,
    /// One copy's newest slot is torn: the next write must go there, and not over its only good one.
    lags: bool,
    /// Superblock writes due without the log asking.
    marks_wanted: u32,
    /// A filled copy is about to count: the survivor's superblock says so first, and it may still fail alone.
    announced: bool,
    /// The filled copy counts, but its superblock does not say so yet.
    joining: bool,
    /// A write of the mirror's own failed on the last copy: the log's next write is told.
    broken: Option<DiskError>,
    /// Who waits for the next copy that goes to be let go of.
    farewell: Option<Sender<bool>>,
    superblock_op: Option<u64>,
    superblock_waiting: Option<(u64, Superblock)>,
    answers: Vec<DiskCompletion>,
    resilver: Option<Resilver>,
    control: Arc<MirrorControl>,
    wake: Arc<MirrorWake>,
    waker: Waker,
}

struct MirrorWake {
    notified: AtomicBool,
    control: Arc<MirrorControl>,
}

impl Wake for MirrorWake {
    fn wake(&self) {
        self.notified.store(true, Ordering::SeqCst);
        self.control.wake_sides();
    }
}

/// How the copies stand when the mirror begins, as `recovery/pair.rs` found it.
pub struct MirrorPlan {
    /// Copies in step; the first of them has the newest superblock.
    pub in_step: Vec<Member>,
    /// The other copy's id where it is not in step.
    pub peer_gone: Option<Uuid>,
    /// Why, for the status.
    pub gone_reason: Option<String>,
    /// The newest superblock, where there is one.
    pub superblock: Option<Superblock>,
    /// The second copy in step has not got it: its write was cut short there.
    pub lags: bool,
}

impl MirrorDisk {
    /// Begins with one copy or with two in step.
    pub fn new(plan: MirrorPlan, options: MirrorOptions) -> MirrorDisk {
        let MirrorPlan { in_step, peer_gone, gone_reason, superblock, lags } = plan;
        assert!((1..=2).contains(&in_step.len()), "a mirror has one copy or two");
        assert!(in_step.len() == 1 || peer_gone.is_none(), "nobody is missing from a whole pair");
        let mut members = in_step.into_iter().map(|member| Side { member, role: Role::InStep });
        let control = Arc::new(MirrorControl::default());
        let wake = Arc::new(MirrorWake { notified: AtomicBool::new(false), control: Arc::clone(&control) });
        let mirror = MirrorDisk {
            sides: [members.next(), members.next()],
            first: 0,
            peer_gone,
            peer_lsn: superblock.map_or(0, |superblock| match superblock.peer {
                Peer::Out => superblock.peer_lsn,
                _ => superblock.durable_lsn,
            }),
            options,
            image: superblock,
            generation: superblock.map_or(0, |superblock| superblock.generation),
            ops: BTreeMap::new(),
            op_next: 1,
            held: Vec::new(),
            must_mark: false,
            lags,
            marks_wanted: 0,
            announced: false,
            joining: false,
            broken: None,
            farewell: None,
            superblock_op: None,
            superblock_waiting: None,
            answers: Vec::new(),
            resilver: None,
            control,
            waker: Waker::new(Arc::<MirrorWake>::clone(&wake)),
            wake,
        };
        if let Some(reason) = gone_reason {
            mirror.control.gone(1, peer_gone.unwrap_or_default(), reason);
        }
        mirror.show();
        mirror
    }

    /// For those who ask how the copies are, and attach and detach them.
    pub fn control(&self) -> Arc<MirrorControl> {
        Arc::clone(&self.control)
    }

    /// When the mirror has something to do although no disk answers.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.ops.values().filter_map(|op| self.overdue_at(op).map(|(_, at)| at)).min()
    }

    /// The log's latest superblock, with the newest generation.
    pub fn superblock(&self) -> Option<Superblock> {
        self.image.map(|image| Superblock { generation: self.generation, ..image })
    }

    /// Begins to fill a copy whose superblock says so already (see `prepare_target`).
    pub fn fill(&mut self, member: Member, generation: u64) {
        let side = self.sides.iter().position(Option::is_none).expect("only a missing copy is filled");
        tracing::info!(copy = member.name, "filling this copy of the log");
        // The survivor's slots go on in turn, whatever the other copy's are.
        let behind = generation.saturating_sub(self.generation);
        self.generation += behind.next_multiple_of(SLOTS);
        self.peer_gone = Some(member.copy_id);
        self.sides[side] = Some(Side { member, role: Role::Filling });
        self.resilver = Some(Resilver::new(side, self.now()));
        // The survivor's superblock names who is being filled.
        self.marks_wanted = 1;
        self.show();
    }

    /// Copies segment files that only one of two copies in step has whole, where `needed` says so of their first block.
    pub fn restore_files(&mut self, needed: &mut dyn FnMut(&[u8]) -> bool) -> Result<u64, DiskError> {
        let mut restored = 0;
        if !self.both_in_step() {
            return Ok(0);
        }
        if let Some(image) = self.image.filter(|_| std::mem::take(&mut self.lags)) {
            let side = 1 - self.first;
            let block = self.for_copy(side, &image);
            if let Err(error) = self.disk(side).write_now(FileId::Superblock, block.slot_at(), &block.encode(), BLOCK) {
                self.failed_now(side, error)?;
                return Ok(0);
            }
        }
        for number in self.list_segments()? {
            let file = FileId::Segment(number);
            let sizes = [self.disk(0).size(file)?.unwrap_or(0), self.disk(1).size(file)?.unwrap_or(0)];
            let from = usize::from(sizes[1] > sizes[0]);
            let bytes = sizes[from];
            if sizes[0] == sizes[1] || bytes < BLOCK as u64 || !bytes.is_multiple_of(BLOCK as u64) {
                continue;
            }
            let mut piece = AlignedBuf::zeroed(RESTORE_PIECE);
            let whole = self.disk(from).read(file, 0, &mut piece, BLOCK).is_ok() && needed(&piece[..BLOCK]);
            if !whole {
                continue;
            }
            let mut at = 0;
            while at < bytes {
                let length = (bytes - at).min(RESTORE_PIECE as u64) as usize;
                self.disk(from).read(file, at, &mut piece, length)?;
                if let Err(error) = self.disk(1 - from).write_now(file, at, &piece, length) {
                    self.failed_now(1 - from, error)?;
                    return Ok(restored);
                }
                at += length as u64;
            }
            restored += 1;
        }
        Ok(restored)
    }

    fn now(&self) -> Duration {
        (self.options.clock)()
    }

    fn is_in_step(&self, side: usize) -> bool {
        self.sides[side].as_ref().is_some_and(|side| side.role == Role::InStep)
    }

    fn both_in_step(&self) -> bool {
        self.is_in_step(0) && self.is_in_step(1)
    }

    /// Copies in step, the one to read first in front.
    fn in_step(&self) -> impl Iterator<Item = usize> + use<> {
        let here = [self.is_in_step(0), self.is_in_step(1)];
        [self.first, 1 - self.first].into_iter().filter(move |side| here[*side])
    }

    fn disk(&mut self, side: usize) -> &mut dyn Disk {
        self.sides[side].as_mut().expect("only copies that are there are used").member.disk.as_mut()
    }

    /// The superblock as it belongs on one copy in step.
    fn for_copy(&self, side: usize, superblock: &Superblock) -> Superblock {
        let copy_id = self.sides[side].as_ref().map_or([0; 16], |side| side.member.copy_id);
        let other = self.sides[1 - side].as_ref().filter(|other| other.role == Role::InStep || self.announced);
        let (peer, peer_id) = match (other, self.peer_gone) {
            (Some(other), _) => (Peer::InStep, other.member.copy_id),
            (None, Some(gone)) => (Peer::Out, gone),
            (None, None) => (Peer::None, [0; 16]),
        };
        let peer_lsn = if peer == Peer::Out { self.peer_lsn } else { 0 };
        Superblock { generation: self.generation, copy_id, peer, peer_id, peer_lsn, ..*superblock }
    }

    /// Remembers what is being written, so that the next one goes on from there.
    fn keep_image(&mut self, superblock: &Superblock) {
        let side = self.in_step().next().expect("there is always one copy");
        let image = self.for_copy(side, superblock);
        self.image = Some(image);
        self.control.keep(image);
    }

    fn submit_op(&mut self, outer: Option<u64>, what: What, op: &DiskOp, to: [bool; 2], needs: [bool; 2]) -> u64 {
        let id = self.op_next;
        self.op_next += 1;
        let only_filling = !(0..2).any(|side| to[side] && self.is_in_step(side));
        let since = only_filling.then(|| self.now());
        self.ops.insert(id, Op { outer, what, to, left: to, needs, failed: None, since });
        for side in (0..2).filter(|side| to[*side]) {
            self.disk(side).submit(id, op.clone());
        }
        id
    }

    /// The next superblock write, if one is due and none is under way.
    fn start_superblock(&mut self) {
        if self.superblock_op.is_some() {
            return;
        }
        let (outer, superblock) = match (self.superblock_waiting.take(), self.image) {
            (Some((outer, superblock)), _) => (Some(outer), superblock),
            (None, Some(image)) if self.marks_wanted > 0 => (None, image),
            _ => return,
        };
        self.marks_wanted = self.marks_wanted.saturating_sub(1);
        self.generation += 1;
        self.keep_image(&superblock);
        let id = self.op_next;
        self.op_next += 1;
        let to = [self.is_in_step(0), self.is_in_step(1)];
        let what = What::Superblock { settles: self.must_mark || self.joining || self.announced };
        self.ops.insert(id, Op { outer, what, to, left: to, needs: to, failed: None, since: None });
        self.superblock_op = Some(id);
        let image = self.image.expect("just kept");
        for side in (0..2).filter(|side| to[*side]) {
            let block = self.for_copy(side, &image);
            let data = Arc::new(block.encode());
            let write = DiskOp::Write { file: FileId::Superblock, at: block.slot_at(), data, bytes: BLOCK };
            self.disk(side).submit(id, write);
        }
    }

    fn completed(&mut self, side: usize, completion: DiskCompletion) {
        let now = self.now();
        let filling = !self.is_in_step(side);
        let last = !filling && self.in_step().all(|other| other == side);
        let Some(op) = self.ops.get_mut(&completion.id).filter(|op| op.left[side]) else { return };
        op.left[side] = false;
        if !filling {
            op.since.get_or_insert(now);
        }
        match completion.result {
            Ok(()) => {}
            // No room for one more spare is no fault of the disk: the log tries again.
            Err(error) if matches!(op.what, What::Zero(_)) && error.is_full() => op.failed = Some(error),
            Err(error) if last => op.failed = Some(error),
            Err(error) => self.throw_out(side, &error.to_string()),
        }
        self.settle(completion.id);
    }

    /// Answers an operation when everybody has answered whose answer counts.
    fn settle(&mut self, id: u64) {
        let Some(op) = self.ops.get_mut(&id) else { return };
        if (0..2).any(|side| op.left[side] && op.needs[side]) {
            return;
        }
        let result = op.failed.map_or(Ok(()), Err);
        let (outer, what, to, done) = (op.outer.take(), op.what, op.to, op.left == [false, false]);
        if done {
            self.ops.remove(&id);
            self.settled(id, what, to, result);
        }
        if let Some(outer) = outer {
            let answer = DiskCompletion { id: outer, result };
            if self.must_mark { self.held.push(answer) } else { self.answers.push(answer) }
        }
    }

    fn settled(&mut self, id: u64, what: What, to: [bool; 2], result: Result<(), DiskError>) {
        match what {
            What::Superblock { settles } => {
                self.superblock_op = None;
                self.superblock_written(settles, result);
                self.start_superblock();
            }
            What::Zero(file) => {
                // One that was under way when filling began did not make the file on the new copy.
                if let (Some(resilver), Ok(())) = (&mut self.resilver, result) {
                    resilver.zeroed(file, to);
                }
                self.fill_op_done(id);
            }
            What::Fill => self.fill_op_done(id),
            What::Write { .. } | What::Discard => {}
        }
    }

    fn superblock_written(&mut self, settles: bool, result: Result<(), DiskError>) {
        if let Err(error) = result {
            // That slot may hold anything now: the next write goes there again, and not over the only good one.
            self.generation += SLOTS - 1;
            self.must_mark = false;
            self.broken = Some(error);
            // Nobody may believe that these are durable: nothing says where.
            let held = std::mem::take(&mut self.held);
            self.answers.extend(held.into_iter().map(|answer| DiskCompletion { id: answer.id, result: Err(error) }));
        } else if settles {
            self.must_mark = false;
            self.joining = false;
            if std::mem::take(&mut self.announced) {
                return self.join();
            }
            self.answers.append(&mut self.held);
            self.control.settled(true);
            self.show();
        }
    }

    /// From now on the other copy is the log. Never for the last copy in step.
    fn throw_out(&mut self, side: usize, reason: &str) {
        let was_in_step = self.remove_side(side, reason);
        self.must_mark |= was_in_step;
        // One for each slot, so that damage to one of them does not make the pair look whole again.
        self.marks_wanted = 2;
        let ids: Vec<u64> = self.ops.keys().copied().collect();
        for id in ids {
            let Some(op) = self.ops.get_mut(&id) else { continue };
            if let What::Superblock { settles } = &mut op.what {
                // What is under way may say that both are in step.
                *settles = false;
            }
            op.to[side] = false;
            if op.left[side] {
                (op.left[side], op.needs[side]) = (false, false);
                self.settle(id);
            }
        }
        self.start_superblock();
    }

    /// Returns whether the copy was in step.
    fn remove_side(&mut self, side: usize, reason: &str) -> bool {
        let Some(gone) = self.sides[side].take() else { return false };
        tracing::error!(copy = gone.member.name, reason, "this copy of the log is out: it takes no more and must be filled anew");
        self.peer_gone = Some(gone.member.copy_id);
        if gone.role == Role::InStep {
            self.peer_lsn = self.image.map_or(0, |image| image.durable_lsn);
        }
        self.resilver = None;
        (self.announced, self.joining) = (false, false);
        self.first = 1 - side;
        assert!(self.is_in_step(self.first), "the last copy is never thrown out");
        if gone.role == Role::InStep {
            self.control.settled(false);
        }
        self.control.gone(side, gone.member.copy_id, reason.to_owned());
        bury(gone.member, self.farewell.take());
        self.show();
        gone.role == Role::InStep
    }

    /// Who keeps an operation waiting, and until when that is borne.
    fn overdue_at(&self, op: &Op) -> Option<(usize, Duration)> {
        let since = op.since?;
        let side = (0..2).find(|side| op.left[*side])?;
        if self.in_step().all(|other| other == side) {
            return None;
        }
        let fast = self.is_in_step(side) && !matches!(op.what, What::Zero(_) | What::Discard);
        Some((side, since + if fast { self.options.patience } else { SLOW_PATIENCE }))
    }

    /// Throws out who is too late. Called right after every disk was asked.
    fn check_overdue(&mut self) {
        let now = self.now();
        let mut suspect = [false; 2];
        let mut late = None;
        for op in self.ops.values() {
            if let Some((side, at)) = self.overdue_at(op) {
                suspect[side] |= now + self.options.patience / 2 >= at;
                late = late.or((now >= at).then_some(side));
            }
        }
        self.control.suspect(suspect);
        if let Some(side) = late {
            let reason = format!("it answered more than {:?} later than the other copy", self.options.patience);
            self.throw_out(side, &reason);
        }
    }

    /// Asks both disks, without waiting.
    fn reap(&mut self) {
        let mut completions = Vec::new();
        for side in 0..2 {
            if let Some(there) = &mut self.sides[side] {
                there.member.disk.poll(Some(Duration::ZERO), &mut completions);
                completions.drain(..).for_each(|completion| self.completed(side, completion));
            }
        }
    }

    fn take_commands(&mut self) {
        for command in self.control.take_commands() {
            match command {
                Command::Attach { member, generation, answer } => {
                    let free = self.sides.iter().any(Option::is_none);
                    if free {
                        self.fill(*member, generation);
                    }
                    // Whoever asked may have given up waiting.
                    let _ = answer.send(free);
                }
                Command::Detach { copy_id, answer } => {
                    // Not while the one that is to stay keeps the log waiting.
                    let late = [0, 1].map(|side| self.ops.values().any(|op| op.since.is_some() && op.left[side]));
                    let side = (0..2).find(|side| {
                        self.sides[*side].as_ref().is_some_and(|side| side.member.copy_id == copy_id)
                            && self.in_step().any(|other| other != *side && !late[other])
                    });
                    match side {
                        Some(side) => {
                            self.farewell = Some(answer);
                            self.throw_out(side, "it was detached");
                        }
                        None => drop(answer.send(false)),
                    }
                }
            }
        }
    }

    fn show(&self) {
        let sides = [0, 1].map(|side| {
            self.sides[side].as_ref().map(|there| {
                let counts = there.role == Role::InStep && !(self.joining && side != self.first);
                (
                    there.member.copy_id,
                    there.member.name.clone(),
                    counts,
                    Arc::clone(&there.member.reader),
                    there.member.disk.waker(),
                )
            })
        });
        self.control.show(sides, self.first, self.image);
    }

    /// Sleeps on the disk that has most to say, for at most `wait`.
    fn sleep(&mut self, wait: Option<Duration>) {
        let busy = |side: usize| self.ops.values().any(|op| op.left[side]);
        let side = self.in_step().find(|side| busy(*side)).or((0..2).find(|side| busy(*side)));
        let wait = match (side, &self.resilver) {
            (None, None) => wait,
            _ => Some(wait.map_or(SLICE, |wait| wait.min(SLICE))),
        };
        let side = side.unwrap_or(self.first);
        let mut completions = Vec::new();
        self.disk(side).poll(wait, &mut completions);
        completions.into_iter().for_each(|completion| self.completed(side, completion));
    }

    /// A synchronous write of recovery, to every copy in step.
    fn write_all_now(
        &mut self,
        file: FileId,
        each: &mut dyn FnMut(&MirrorDisk, usize) -> (u64, AlignedBuf, usize),
    ) -> Result<(), DiskError> {
        let sides: Vec<usize> = self.in_step().collect();
        for side in sides {
            let (at, data, bytes) = each(self, side);
            if let Err(error) = self.disk(side).write_now(file, at, &data, bytes) {
                self.failed_now(side, error)?;
            }
        }
        Ok(())
    }

    /// A synchronous operation failed: the other copy goes on, once its superblock says so.
    fn failed_now(&mut self, side: usize, error: DiskError) -> Result<(), DiskError> {
        // `Closed` is no answer of the disk: everything ends here.
        if self.in_step().all(|other| other == side) || matches!(error, DiskError::Closed { .. }) {
            return Err(error);
        }
        self.remove_side(side, &error.to_string());
        self.mark_now()
    }

    /// Both slots of every copy in step say how the copies stand.
    pub fn mark_now(&mut self) -> Result<(), DiskError> {
        let Some(image) = self.image else { return Ok(()) };
        for _ in 0..SLOTS {
            self.superblock_now(&image)?;
        }
        Ok(())
    }

    fn superblock_now(&mut self, superblock: &Superblock) -> Result<(), DiskError> {
        assert!(self.superblock_op.is_none(), "one superblock write at a time");
        self.generation += 1;
        self.keep_image(superblock);
        let superblock = *superblock;
        self.write_all_now(FileId::Superblock, &mut |mirror, side| {
            let block = mirror.for_copy(side, &superblock);
            (block.slot_at(), block.encode(), BLOCK)
        })?;
        self.control.settled(true);
        Ok(())
    }
}

fn superblock_of(data: &[u8]) -> Superblock {
    match Superblock::decode(&data[..BLOCK]) {
        Slot::Good(superblock) => superblock,
        other => panic!("the log writes sound superblocks only, not {other:?}"),
    }
}

/// Lets go of a disk that may hang: whoever waits for its last answers, it is not the log.
fn bury(member: Member, farewell: Option<Sender<bool>>) {
    let let_go = move || {
        drop(member);
        // Whoever asked may have given up waiting.
        if let Some(farewell) = farewell {
            let _ = farewell.send(true);
        }
    };
    let spawned = std::thread::Builder::new().name("weir-bury".into()).spawn(let_go);
    if let Err(error) = spawned {
        tracing::warn!(%error, "no thread to let go of a disk in; done on the log's");
    }
}

impl Disk for MirrorDisk {
    fn submit(&mut self, id: u64, op: DiskOp) {
        let in_step = [self.is_in_step(0), self.is_in_step(1)];
        let there = [self.sides[0].is_some(), self.sides[1].is_some()];
        let is_superblock = matches!(op, DiskOp::Write { file: FileId::Superblock, .. });
        if let Some(error) = self.broken.filter(|_| !is_superblock) {
            return self.answers.push(DiskCompletion { id, result: Err(error) });
        }
        match &op {
            DiskOp::Write { file: FileId::Superblock, data, .. } => {
                assert!(self.superblock_waiting.is_none(), "one superblock write at a time");
                self.superblock_waiting = Some((id, superblock_of(data)));
                self.start_superblock();
            }
            DiskOp::Write { file, at, bytes, .. } => {
                let (file, at, bytes) = (*file, *at, *bytes as u64);
                let (follows, waits) =
                    self.resilver.as_mut().map_or((false, false), |resilver| resilver.written(file, at, bytes));
                let to = [0, 1].map(|side| there[side] && (in_step[side] || follows));
                let needs = [0, 1].map(|side| to[side] && (in_step[side] || waits));
                self.submit_op(Some(id), What::Write { file, at, bytes }, &op, to, needs);
            }
            DiskOp::Zero { file, .. } => {
                let file = *file;
                if let Some(resilver) = &mut self.resilver {
                    resilver.zeroing(file);
                }
                // The log writes there once it is told: the copy being filled must be done with it by then.
                self.submit_op(Some(id), What::Zero(file), &op, there, there);
            }
            DiskOp::Discard { file } => {
                if let Some(resilver) = &mut self.resilver {
                    // There is nothing to copy of it any more.
                    resilver.zeroing(*file);
                }
                self.submit_op(Some(id), What::Discard, &op, there, in_step);
            }
        }
    }

    fn poll(&mut self, wait: Option<Duration>, out: &mut Vec<DiskCompletion>) {
        let started = self.now();
        loop {
            self.reap();
            self.take_commands();
            self.check_overdue();
            self.drive_resilver();
            out.append(&mut self.answers);
            let left = wait.map(|wait| wait.saturating_sub(self.now().saturating_sub(started)));
            if self.wake.notified.swap(false, Ordering::SeqCst) || !out.is_empty() || left == Some(Duration::ZERO) {
                return;
            }
            self.sleep(left);
        }
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }

    fn list_segments(&mut self) -> Result<Vec<u32>, DiskError> {
        let mut all = Vec::new();
        let sides: Vec<usize> = self.in_step().collect();
        for side in sides {
            match self.disk(side).list_segments() {
                Ok(files) => all.extend(files),
                Err(error) => self.failed_now(side, error)?,
            }
        }
        all.sort_unstable();
        all.dedup();
        Ok(all)
    }

    /// The smaller one: a file that is not whole on both copies is not whole.
    fn size(&mut self, file: FileId) -> Result<Option<u64>, DiskError> {
        if file == FileId::Superblock {
            let first = self.first;
            return self.disk(first).size(file);
        }
        let mut sizes = Vec::new();
        let sides: Vec<usize> = self.in_step().collect();
        for side in sides {
            match self.disk(side).size(file) {
                Ok(size) => sizes.push(size),
                Err(error) => self.failed_now(side, error)?,
            }
        }
        if sizes.iter().all(Option::is_none) {
            return Ok(None);
        }
        Ok(sizes.into_iter().map(Option::unwrap_or_default).min())
    }

    fn links(&mut self, file: FileId) -> Result<u64, DiskError> {
        let mut most = 0;
        let sides: Vec<usize> = self.in_step().collect();
        for side in sides {
            match self.disk(side).links(file) {
                Ok(links) => most = most.max(links),
                Err(error) => self.failed_now(side, error)?,
            }
        }
        Ok(most)
    }

    fn read(&mut self, file: FileId, at: u64, buf: &mut AlignedBuf, bytes: usize) -> Result<(), DiskError> {
        let mut result = Err(DiskError::Closed { verb: DiskVerb::Read, file });
        let sides: Vec<usize> = self.in_step().collect();
        for side in sides {
            result = self.disk(side).read(file, at, buf, bytes);
            if result.is_ok() || file == FileId::Superblock {
                break;
            }
        }
        result
    }

    fn write_now(&mut self, file: FileId, at: u64, data: &AlignedBuf, bytes: usize) -> Result<(), DiskError> {
        if file == FileId::Superblock {
            return self.superblock_now(&superblock_of(data));
        }
        self.write_all_now(file, &mut |_, _| (at, AlignedBuf::copy_of(&data[..bytes]), bytes))
    }

    fn remove(&mut self, file: FileId) -> Result<(), DiskError> {
        let sides: Vec<usize> = self.in_step().collect();
        for side in sides {
            if let Err(error) = self.disk(side).remove(file) {
                self.failed_now(side, error)?;
            }
        }
        Ok(())
    }

    fn copies(&self) -> usize {
        self.in_step().count()
    }

    fn durable_copies(&self) -> usize {
        if self.both_in_step() && !self.joining && !self.must_mark { 2 } else { 1 }
    }

    fn read_copy(&mut self, copy: usize, file: FileId, at: u64, buf: &mut AlignedBuf, bytes: usize) -> Result<(), DiskError> {
        let Some(side) = self.in_step().nth(copy) else { return Err(DiskError::Closed { verb: DiskVerb::Read, file }) };
        self.disk(side).read(file, at, buf, bytes)
    }

    fn scan_bytes(&self) -> usize {
        let sides = self.sides.iter().flatten();
        sides.map(|side| side.member.disk.scan_bytes()).min().unwrap_or(super::SCAN_BYTES)
    }

    fn read_ahead(&mut self, copy: usize, file: FileId, at: u64, bytes: usize) {
        if let Some(side) = self.in_step().nth(copy) {
            self.disk(side).read_ahead(0, file, at, bytes);
        }
    }

    fn read_chain(&mut self, copy: usize, chain: super::Chain) {
        if let Some(side) = self.in_step().nth(copy) {
            self.disk(side).read_chain(0, chain);
        }
    }

    fn end_read_ahead(&mut self) {
        let sides: Vec<usize> = self.in_step().collect();
        sides.into_iter().for_each(|side| self.disk(side).end_read_ahead());
    }

    fn mend(&mut self, copy: usize, file: FileId, at: u64, data: &AlignedBuf, bytes: usize) -> Result<(), DiskError> {
        let Some(side) = self.in_step().nth(copy) else { return Ok(()) };
        tracing::warn!(%file, at, bytes, copy = self.sides[side].as_ref().map(|side| &*side.member.name), "mended from the other copy");
        match self.disk(side).write_now(file, at, data, bytes) {
            Ok(()) => Ok(()),
            Err(error) => self.failed_now(side, error),
        }
    }
}

#[cfg(test)]
mod tests;
