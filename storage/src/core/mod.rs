//! The engine: decides everything and touches nothing. Appends, the time and the disk's completions come in as arguments; disk
//! operations and answers come out in [`Output`]. The log thread (`log.rs`) and the simulator drive the same code.
//!
//! An append is checked and gets its offsets when it enters (`entry.rs`) and waits in a *group*; when the last write has completed,
//! the oldest group becomes a frame (`build.rs`). A large one does not wait for that: it is laid out while the disk is busy, and written beside
//! the frame before it. When a frame and all before it are durable it is shown to readers and answered (`commit.rs`). So the
//! *assigned* state here runs ahead of the *durable* state in the [`View`], and only the latter is ever written into snapshots or
//! shown. Segments are rolled to, made and recycled in `segments.rs`.
//!
//! Cost of an append of one batch: one table look-up for its partition on entry and one on commit, one hash look-up for its
//! producer on each, one copy and one CRC pass over its bytes.

mod build;
mod change;
mod cold;
mod commit;
mod compress;
mod entry;
mod pin;
mod retention;
mod scrub;
mod segments;
mod volumes;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::cold::job::{Files, Job};
use crate::config::{ClassPolicy, ColdConfig, LogConfig};
use crate::disk::{BufPool, DiskCompletion, DiskError, DiskOp, FileId};
use crate::format::BLOCK;
use crate::format::frame::frame_bytes;
use crate::format::snapshot::Remembered;
use crate::format::superblock::{SLOTS, Superblock, VolumeState};
use crate::report::OpenError;
use crate::stats::LogStats;
use crate::table::{NumberMap, PartitionMap};
use crate::types::{Append, AppendError, BaseOffsets, ClassId, Durability, Outcome, PartitionId, ProducerKey};
use crate::view::{Position, Slice, View};
use compress::{Effort, FrameCompressor};

pub(crate) use build::{decode_meta_ops, slice_of};
pub(crate) use change::{Change, decode_changes};
pub(crate) use cold::{SEGMENTS_PER_SORT, named_segments};
pub(crate) use pin::copied;
pub use pin::{PIN_LEASE, PinDone, PinLost, PinTaken, Pinned};
pub use volumes::{VolumeError, named_volumes};

/// Records in one frame at most. Recovery skips this many offsets for each frame it has lost without a trace, so that no offset
/// is ever given out twice.
pub const RECORDS_PER_FRAME_MAX: u32 = 1 << 24;
/// Wait before a failed zero-fill is tried again.
const SPARE_RETRY: Duration = Duration::from_secs(1);
/// Zero-fills in a row that fail otherwise than for want of space, until a log without a spare is fenced: a file system that has
/// shut itself down fails everything for ever, and nobody must be told to free space then.
const SPARE_FAILURES_MAX: u32 = 5;
/// How often segments are checked for age.
const RETENTION_CHECK: Duration = Duration::from_secs(1);

/// The time, twice: for intervals, and for what is stored.
#[derive(Clone, Copy, Debug, Default)]
pub struct Now {
    /// Since some moment that stays the same.
    pub monotonic: Duration,
    /// Unix time.
    pub wall_ms: u64,
}

/// Limits of the engine, checked against each other.
#[derive(Clone, Debug)]
pub struct Limits {
    pub(crate) segment_bytes: u64,
    pub(crate) spare_segments: usize,
    pub(crate) frame_bytes_max: usize,
    pub(crate) compress_from_bytes: Option<usize>,
    /// Groups from this size on are closed and laid out while the frame before them is being written. Smaller ones wait open:
    /// what joins them costs no write of its own.
    pub(crate) prepare_from_bytes: usize,
    /// Groups from this size on are written beside the frame before them: the disk does both in less time than one after the other.
    pub(crate) beside_from_bytes: usize,
    pub(crate) idle_watermark: Duration,
    pub(crate) retention_bytes: Option<u64>,
    pub(crate) retention_age_ms: Option<u64>,
    pub(crate) meta_bytes_max: usize,
    pub(crate) index_entries_max: usize,
    pub(crate) producers_max: usize,
    pub(crate) cold: Option<ColdConfig>,
}

impl Limits {
    /// Takes them from the configuration. `segment_bytes` is the volume's, once it exists.
    pub fn new(config: &LogConfig, segment_bytes: u64) -> Result<Limits, OpenError> {
        let bad = |reason: &str| Err(OpenError::BadConfig(reason.to_owned()));
        if segment_bytes < SEGMENT_BYTES_MIN || !segment_bytes.is_multiple_of(BLOCK as u64) || segment_bytes > SEGMENT_BYTES_LIMIT
        {
            return bad("segment_bytes must be a multiple of 4096 from 128 KiB to 4 GiB");
        }
        if config.spare_segments == 0 {
            return bad("spare_segments must be at least 1: the log rolls to a spare at every start");
        }
        let frame_bytes_max = u64::from(config.frame_bytes_max).min(segment_bytes / 4).min(FRAME_BYTES_MAX) as usize;
        if frame_bytes_max < 4 * BLOCK {
            return bad("frame_bytes_max must be at least 16 KiB");
        }
        Ok(Limits {
            segment_bytes,
            spare_segments: config.spare_segments as usize,
            frame_bytes_max: frame_bytes_max / BLOCK * BLOCK,
            compress_from_bytes: config.compress_from_bytes.map(|bytes| bytes as usize),
            prepare_from_bytes: frame_bytes_max / 8,
            beside_from_bytes: BESIDE_FROM_BYTES.min(frame_bytes_max / 8),
            idle_watermark: config.idle_watermark,
            retention_bytes: config.retention_bytes,
            retention_age_ms: config.retention_age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
            meta_bytes_max: config.meta_bytes_max,
            index_entries_max: config.index_entries_max.max(1024),
            producers_max: config.producers_max.max(1),
            cold: config.cold.clone(),
        })
    }

    /// Bytes of state that every segment begins with, at most: three eighths of a segment leave room for the largest frame.
    fn state_bytes_max(&self) -> usize {
        (self.segment_bytes / 8 * 3) as usize
    }
}

/// Larger groups do not wait for one another. Measured with 256 waiting producers of 1 KiB and with frames of half a MiB: from 64 KiB
/// on two writes at a time gain a third, and smaller frames would cost more processor than they save time.
const BESIDE_FROM_BYTES: usize = 64 << 10;

const SEGMENT_BYTES_MIN: u64 = 128 << 10;
/// Directory entries and block numbers are 32 bits wide; nothing near it is sensible.
const SEGMENT_BYTES_LIMIT: u64 = 4 << 30;
const FRAME_BYTES_MAX: u64 = (crate::format::frame::FRAME_BYTES_LIMIT / 2) as u64;

/// What a step asks for and answers.
#[derive(Debug)]
pub struct Output<T> {
    /// For the disk, with their ids.
    pub ops: Vec<(u64, DiskOp)>,
    /// Answers, in order.
    pub outcomes: Vec<(T, Outcome)>,
    /// Partitions whose high watermark rose.
    pub risen: Vec<PartitionId>,
    /// For the sorter: one at a time, each answered by [`Engine::job_done`].
    pub jobs: Vec<Job>,
}

impl<T> Default for Output<T> {
    fn default() -> Self {
        Output { ops: Vec::new(), outcomes: Vec::new(), risen: Vec::new(), jobs: Vec::new() }
    }
}

/// What recovery found, for the engine to go on from.
#[derive(Debug)]
pub struct Opening {
    /// As durable on disk, with the epoch of this opening.
    pub superblock: Superblock,
    /// Last good frame.
    pub last_lsn: u64,
    /// And its header CRC.
    pub last_crc: u32,
    /// Segments with frames, oldest first.
    pub segments: VecDeque<Sealed>,
    /// Newest segment whose snapshot is whole.
    pub snapshot_sequence: u64,
    /// Sequence for the next segment.
    pub next_sequence: u64,
    /// Files ready to be rolled to.
    pub spares: VecDeque<u32>,
    /// Files whose zero-fill was cut short.
    pub unfinished: Vec<u32>,
    /// First file number that is free.
    pub next_file: u32,
    /// Lanes.
    pub producers: NumberMap<ProducerKey, Producer>,
    /// Damage took marks with it: lanes may skip ahead.
    pub sequences_lost: bool,
    /// The durable state.
    pub view: Arc<View>,
}

/// A lane's assigned state. `batches` end at `next_sequence`.
#[derive(Clone, Debug, Default)]
pub struct Producer {
    pub(crate) epoch: i16,
    pub(crate) next_sequence: u64,
    pub(crate) last_lsn: u64,
    /// Each with the group that carries it.
    pub(crate) batches: VecDeque<(Remembered, u64)>,
}

/// A segment that takes no more frames.
#[derive(Clone, Copy, Debug)]
pub struct Sealed {
    /// File number.
    pub file: u32,
    /// Sequence.
    pub sequence: u64,
    /// Time of its last frame.
    pub last_written_ms: u64,
}

/// A file that has left the WAL. A file of a younger life is not written again while an older one is there: a start with the superblock before
/// this one finds lives without a hole.
#[derive(Clone, Copy, Debug)]
enum Departed {
    /// It lives on as a promoted segment: its name in the WAL goes.
    Promoted(u32),
    Spare(u32),
}

#[derive(Debug, Default)]
struct Departures {
    files: VecDeque<Departed>,
    /// The removal of a name that is with the disk.
    discarding: Option<u64>,
}

/// A spare that is being made.
#[derive(Debug)]
struct Zeroing {
    op: u64,
    file: u32,
    /// The cold segment whose file may become it.
    reuse: Option<(u32, Files)>,
}

/// The segment that is being written.
#[derive(Clone, Copy, Debug)]
struct Active {
    file: u32,
    sequence: u64,
    /// Where the next frame goes.
    at: u64,
    last_written_ms: u64,
    /// When its first records came.
    first_data_ms: Option<u64>,
}

/// Appends that will share a frame.
#[derive(Debug)]
struct Group<T> {
    number: u64,
    appends: Vec<Pending<T>>,
    entries: usize,
    payload_bytes: usize,
    records: u32,
    /// Resent batches whose original is in this group.
    duplicates: Vec<(T, Outcome)>,
    /// Its bytes, once it is closed.
    body: Option<Box<build::Body>>,
    /// Whether an append of the log's own is in it.
    own: bool,
    /// Whether one is in it that lets go of something.
    lets_go: bool,
}

impl<T> Group<T> {
    fn frame_bytes(&self) -> usize {
        frame_bytes(self.entries, self.payload_bytes)
    }
}

/// An append with its offsets.
#[derive(Debug)]
struct Pending<T> {
    append: Append,
    /// `None`: the log's own.
    ticket: Option<T>,
    base_offsets: BaseOffsets,
    /// What its producer is told.
    told: i64,
    undo: Undo,
}

/// What entering changed beyond offsets and sequence, to take it back when the disk turns out to be full.
#[derive(Debug, Default)]
struct Undo {
    producer: Option<(i16, u64)>,
    producer_is_new: bool,
    opened: Vec<PartitionId>,
    dropped: Vec<(PartitionId, i64)>,
}

/// A frame that is being written.
#[derive(Debug)]
struct InFlight<T> {
    op: u64,
    /// On disk, but a frame before it is not.
    landed: bool,
    lsn: u64,
    /// Durable when it was built: what this frame proves.
    proves_lsn: u64,
    position: Position,
    bytes: usize,
    submitted: Duration,
    effort: Effort,
    what: Writing<T>,
}

#[derive(Debug)]
enum Writing<T> {
    /// Segment header and first part of the snapshot, or a later part.
    Snapshot {
        last: bool,
    },
    Watermark,
    Data {
        group: Group<T>,
        payload: Bytes,
        slices: Vec<Slice>,
    },
}

/// Where stopping stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Running,
    Draining,
    Closing,
    Closed,
}

/// The log engine; `T` is what the caller wants back with each answer.
pub struct Engine<T> {
    limits: Limits,
    /// Measures work within a step, where `now` stands still.
    stopwatch: fn() -> Duration,
    view: Arc<View>,
    pool: BufPool,
    compressor: FrameCompressor,
    now: Now,
    life: Life,
    failed: Option<String>,
    op_next: u64,

    // The chain of frames.
    /// First one of this opening.
    epoch_lsn: u64,
    lsn_last: u64,
    crc_last: u32,
    lsn_durable: u64,
    /// Known to be durable by what is on disk.
    lsn_proven: u64,
    lsn_data_last: u64,
    last_commit: Duration,
    /// In the order of their numbers; they become durable in that order as well.
    in_flight: VecDeque<InFlight<T>>,
    /// Writes behind one that failed, still with the disk: whatever they did, nobody will read it.
    given_up: Vec<u64>,

    // What waits.
    groups: VecDeque<Group<T>>,
    group_next: u64,
    group_durable: u64,
    waiting: usize,

    // Assigned state.
    partitions: PartitionMap<i64>,
    producers: NumberMap<ProducerKey, Producer>,
    sequences_lost: bool,
    meta_pending: std::collections::HashMap<Vec<u8>, (Option<usize>, u64)>,
    meta_bytes: usize,
    meta_count: usize,

    // Segments.
    active: Option<Active>,
    snapshot_parts: VecDeque<Vec<u8>>,
    /// Newest segment whose snapshot is whole and durable: those before it may go.
    snapshot_sequence: u64,
    sealed: VecDeque<Sealed>,
    leaving: VecDeque<Sealed>,
    spares: VecDeque<u32>,
    unfinished: Vec<u32>,
    zeroing: Option<Zeroing>,
    /// Files that have left the WAL behind one whose name has to go, in the order of their lives.
    departed: Departures,
    zero_retry_at: Option<Duration>,
    /// Zero-fills that failed in a row, those on a full disk left out.
    spare_failures: u32,
    file_next: u32,
    sequence_next: u64,
    retention_check_at: Duration,
    cold: Option<cold::Cold>,
    /// What a backup holds back.
    pin: Option<pin::Pin>,
    pin_lost: Option<(u64, PinLost)>,
    pin_next: u64,

    // Superblock.
    superblock: Superblock,
    superblock_dirty: bool,
    superblock_op: Option<(u64, Superblock)>,
    counters: LogStats,
    /// What a write that completes now has reached.
    durable: Durability,
}

impl<T> Engine<T> {
    /// Goes on from what recovery found.
    pub fn new(limits: Limits, opening: Opening) -> Engine<T> {
        let view = opening.view;
        let mut partitions = PartitionMap::default();
        for (id, partition) in view.tables().partitions.iter() {
            partitions.insert(id, partition.next);
        }
        let (meta_bytes, meta_count) = {
            let meta = view.meta();
            (meta.iter().map(|(key, value)| key.len() + value.len()).sum(), meta.len())
        };
        let cold = limits.cold.clone().map(|config| cold::Cold::new(config, &view.meta(), opening.superblock.first_sequence));
        for (number, entry) in named_volumes(&view.meta()).expect("recovery has read them") {
            view.volumes().known(number, &entry);
        }
        let counters = LogStats { segment_bytes: limits.segment_bytes, epoch: opening.superblock.epoch, ..LogStats::default() };
        let engine = Engine {
            // Evicted frames come back one by one as new ones are built: more than this would only lie idle.
            pool: BufPool::new(2 * limits.frame_bytes_max),
            compressor: FrameCompressor::new(),
            limits,
            stopwatch: || Duration::ZERO,
            now: Now::default(),
            life: Life::Running,
            failed: None,
            op_next: 1,
            epoch_lsn: opening.last_lsn + 1,
            lsn_last: opening.last_lsn,
            crc_last: opening.last_crc,
            lsn_durable: opening.last_lsn,
            lsn_proven: opening.superblock.durable_lsn,
            lsn_data_last: 0,
            last_commit: Duration::ZERO,
            in_flight: VecDeque::new(),
            given_up: Vec::new(),
            groups: VecDeque::new(),
            group_next: 1,
            group_durable: 0,
            waiting: 0,
            partitions,
            producers: opening.producers,
            sequences_lost: opening.sequences_lost,
            meta_pending: std::collections::HashMap::new(),
            meta_bytes,
            meta_count,
            active: None,
            snapshot_parts: VecDeque::new(),
            snapshot_sequence: opening.snapshot_sequence,
            sealed: opening.segments,
            leaving: VecDeque::new(),
            spares: opening.spares,
            unfinished: opening.unfinished,
            zeroing: None,
            departed: Departures::default(),
            zero_retry_at: None,
            spare_failures: 0,
            file_next: opening.next_file,
            sequence_next: opening.next_sequence,
            retention_check_at: Duration::ZERO,
            cold,
            pin: None,
            pin_lost: None,
            pin_next: 1,
            superblock: opening.superblock,
            superblock_dirty: false,
            superblock_op: None,
            counters,
            durable: Durability::OneCopy,
            view,
        };
        assert!(engine.superblock.durable_lsn <= engine.lsn_durable, "the superblock knows no more than recovery found");
        engine.publish_stats();
        engine
    }

    /// Gives it a clock to time compression with; without one compression counts as free.
    #[must_use]
    pub fn with_stopwatch(mut self, stopwatch: fn() -> Duration) -> Engine<T> {
        self.stopwatch = stopwatch;
        self
    }

    /// Copies that the completions of the next step are durable on: what the disk says after they came out of it.
    pub fn set_durable_copies(&mut self, copies: usize) {
        self.durable = if copies > 1 { Durability::TwoCopies } else { Durability::OneCopy };
    }

    /// The durable state.
    pub fn view(&self) -> &Arc<View> {
        &self.view
    }

    /// Why the log takes no more, if it has stopped.
    pub fn failed(&self) -> Option<&str> {
        self.failed.as_deref()
    }

    /// Takes completions, starts what can be started.
    pub fn step(&mut self, now: Now, completions: &mut Vec<DiskCompletion>, out: &mut Output<T>) {
        self.now = now;
        let news = !completions.is_empty();
        for completion in completions.drain(..) {
            self.completed(completion, out);
        }
        if self.failed.is_none() {
            self.submit_edit();
            self.write_next(out);
            self.make_spare(out);
            self.discard_next(out);
            self.review_pin();
            self.retain();
            self.next_job(out);
            self.wind_down();
        }
        self.write_superblock(out);
        // The last job may end without a frame: then nobody else would say that all is done.
        if news || self.cold_is_busy() || self.view.stats_mut().cold_busy {
            self.publish_stats();
        }
    }

    /// Whether a frame is with the disk: its completion comes, and the next frame waits for it.
    pub fn is_writing(&self) -> bool {
        !self.in_flight.is_empty()
    }

    /// From now on a class is kept by these rules.
    pub fn set_policy(&mut self, class: ClassId, policy: ClassPolicy) {
        if let Some(cold) = &mut self.cold {
            cold.policies.insert(class, policy);
        }
        self.cold_has_news();
    }

    /// When `step` wants to be called again although nothing happened.
    pub fn next_wake(&self) -> Option<Duration> {
        if self.failed.is_some() {
            return None;
        }
        let idle = self.wants_watermark().then(|| self.last_commit + self.limits.idle_watermark);
        let age = self.limits.retention_age_ms.filter(|_| !self.sealed.is_empty()).map(|_| self.retention_check_at);
        let lease = self.pin.as_ref().map(pin::Pin::ends_at);
        [idle, age, self.zero_retry_at, self.cold_wake(), lease].into_iter().flatten().min()
    }

    /// Refuses what comes from now on; `is_closed` says when all that came before is done with.
    pub fn begin_shutdown(&mut self) {
        if self.life == Life::Running {
            self.life = Life::Draining;
        }
    }

    /// Whether shutting down is done.
    pub fn is_closed(&self) -> bool {
        let writes = self.in_flight.len() + self.given_up.len();
        let quiet = self.superblock_op.is_none() && !self.superblock_dirty && writes == 0;
        self.life == Life::Closed || (self.failed.is_some() && quiet)
    }

    fn wind_down(&mut self) {
        let idle = self.in_flight.is_empty() && self.groups.is_empty() && self.snapshot_parts.is_empty();
        if self.life == Life::Draining && idle && self.superblock_op.is_none() {
            self.life = Life::Closing;
            self.superblock.state = VolumeState::Closed;
            self.superblock_dirty = true;
        }
    }

    fn completed(&mut self, completion: DiskCompletion, out: &mut Output<T>) {
        let DiskCompletion { id, result } = completion;
        if let Some(at) = self.in_flight.iter().position(|frame| frame.op == id) {
            match result {
                Ok(()) => self.frame_landed(at, out),
                Err(error) => self.frame_failed(at, &error, out),
            }
        } else if let Some(at) = self.given_up.iter().position(|op| *op == id) {
            self.given_up.swap_remove(at);
        } else if self.superblock_op.as_ref().is_some_and(|(op, _)| *op == id) {
            let (_, written) = self.superblock_op.take().expect("just looked at");
            match result {
                Ok(()) => self.superblock_durable(&written),
                Err(error) => {
                    // That slot may hold anything now: the next write goes there again, and not over the only good one.
                    self.superblock.generation += SLOTS - 1;
                    self.fail(error.to_string(), out);
                }
            }
        } else if let Some(Zeroing { file, reuse, .. }) = self.zeroing.take_if(|zeroing| zeroing.op == id) {
            match &reuse {
                Some(_) => self.counters.segments_reused += 1,
                None if result.is_ok() => self.counters.zero_filled_bytes += self.limits.segment_bytes,
                None => {}
            }
            self.reuse_done(reuse);
            self.spare_made(file, result, out);
        } else if self.departed.discarding.take_if(|op| *op == id).is_some() {
            if let Err(error) = result {
                // With two names it is never written to; the next start takes this one away.
                tracing::warn!(%error, "the name of a promoted segment in the WAL could not be removed");
            }
            self.take_spares();
        } else {
            panic!("completion {id} belongs to no operation");
        }
    }

    /// The last write completed: snapshot parts first, then whatever waits, then the watermark.
    fn write_next(&mut self, out: &mut Output<T>) {
        if !self.in_flight.is_empty() {
            if self.may_overtake() {
                self.write_group(out);
            }
            return;
        }
        if let Some(part) = self.snapshot_parts.pop_front() {
            self.write_snapshot_part(&part, out);
        } else if !self.groups.is_empty() {
            self.write_group(out);
        } else if self.wants_early_roll() {
            self.roll(out);
        } else if self.wants_watermark() && self.watermark_due() {
            self.write_watermark(out);
        }
    }

    fn wants_watermark(&self) -> bool {
        self.in_flight.is_empty() && self.groups.is_empty() && self.lsn_data_last > self.lsn_proven && !self.superblock_dirty
    }

    fn watermark_due(&self) -> bool {
        self.life != Life::Running || self.now.monotonic >= self.last_commit + self.limits.idle_watermark
    }

    /// Frames become durable in the order of their numbers, in whatever order the disk is done with them: recovery stops at the
    /// first that is missing.
    fn frame_landed(&mut self, at: usize, out: &mut Output<T>) {
        self.in_flight[at].landed = true;
        while let Some(frame) = self.in_flight.pop_front_if(|frame| frame.landed) {
            self.frame_durable(frame, out);
        }
    }

    /// Nor is a frame behind one that failed: recovery does not get there. Those before it may still become durable.
    fn frame_failed(&mut self, at: usize, error: &DiskError, out: &mut Output<T>) {
        for (behind, frame) in self.in_flight.drain(at..).enumerate().collect::<Vec<_>>().into_iter().rev() {
            if behind > 0 && !frame.landed {
                self.given_up.push(frame.op);
            }
            if let Writing::Data { group, .. } = frame.what {
                self.groups.push_front(group);
            }
        }
        self.fail(error.to_string(), out);
    }

    /// Nothing is written any more but the note of it in the superblock.
    fn fail(&mut self, reason: String, out: &mut Output<T>) {
        let first = self.failed.is_none();
        let reason = self.failed.get_or_insert(reason).clone();
        if first {
            tracing::error!(%reason, "a write failed and fenced the log: it takes no more; what was acknowledged is safe");
        }
        let refusal = AppendError::LogFailed { reason };
        for group in std::mem::take(&mut self.groups) {
            for ticket in group.appends.into_iter().filter_map(|pending| pending.ticket) {
                out.outcomes.push((ticket, Outcome::Refused(refusal.clone())));
            }
            for (ticket, _) in group.duplicates {
                out.outcomes.push((ticket, Outcome::Refused(refusal.clone())));
            }
        }
        self.waiting = 0;
        if first {
            self.superblock.state = VolumeState::Fenced;
            self.superblock_dirty = true;
        }
    }

    /// Only ever one superblock write is under way, so that one of the two slots is always whole.
    fn write_superblock(&mut self, out: &mut Output<T>) {
        if !self.superblock_dirty || self.superblock_op.is_some() {
            return;
        }
        self.superblock_dirty = false;
        self.superblock.generation += 1;
        self.superblock.durable_lsn = self.lsn_durable;
        let op = self.next_op();
        self.superblock_op = Some((op, self.superblock));
        let write = DiskOp::Write {
            file: FileId::Superblock,
            at: self.superblock.slot_at(),
            data: Arc::new(self.superblock.encode()),
            bytes: BLOCK,
        };
        out.ops.push((op, write));
    }

    fn superblock_durable(&mut self, written: &Superblock) {
        self.lsn_proven = self.lsn_proven.max(written.durable_lsn);
        self.recycled_up_to(written.first_sequence);
        if written.state == VolumeState::Closed {
            self.life = Life::Closed;
        }
    }

    fn next_op(&mut self) -> u64 {
        self.op_next += 1;
        self.op_next - 1
    }

    fn publish_stats(&self) {
        let (partitions, index_entries) = {
            let tables = self.view.tables();
            (tables.partitions.len() as u64, tables.index_entries as u64)
        };
        let tail_cache_bytes = self.view.tail().bytes() as u64;
        let mut stats = self.view.stats_mut();
        stats.clone_from(&self.counters);
        stats.queue_depth = self.waiting as u64;
        stats.segments = (self.sealed.len() + self.leaving.len() + usize::from(self.active.is_some())) as u64;
        stats.spares = self.spares.len() as u64;
        stats.durable_lsn = self.lsn_durable;
        stats.partitions = partitions;
        stats.producers = self.producers.len() as u64;
        stats.index_entries = index_entries;
        stats.meta_bytes = self.meta_bytes as u64;
        stats.tail_cache_bytes = tail_cache_bytes;
        (stats.cold_segments, stats.cold_bytes, stats.cold_batch_bytes) = {
            let tables = self.view.tables();
            (tables.cold.len() as u64, tables.cold_bytes, tables.cold_batch_bytes)
        };
        stats.cold_unsorted_bytes = self.view.tables().cold_unsorted_bytes;
        stats.cold_busy = self.cold_is_busy();
        stats.disk_full = self.disk_is_full();
        stats.stalled = self.stalled();
        stats.failed.clone_from(&self.failed);
    }
}

#[cfg(test)]
mod tests;
