//! The log as its users hold it, and the thread that drives the core over a disk.
//!
//! [`LogHandle::submit`] pushes into a queue and wakes the thread only if that gains something. The thread takes the whole queue at once, lets
//! the core work, hands its operations to the disk, and answers each sink once per commit.

use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::cold::job::{Done, JobError};
use crate::cold::manifest::VolumeUse;
use crate::config::{ClassPolicy, ColdConfig, LogConfig};
use crate::core::{Engine, Now, Output, PIN_LEASE, PinDone, PinLost, PinTaken, Pinned, VolumeError};
use crate::disk::mirror::{CopyState, MirrorReader, MirrorStatus};
use crate::disk::volumes::{VolumeDisks, VolumeReader};
use crate::disk::{Disk, DiskCompletion, DiskProbe, Reader, Waker};
use crate::format::Uuid;
use crate::format::superblock::Peer;
use crate::mirror::{self, Mirror};
use crate::read::{ReadPath, ReadReply, TimestampReply};
use crate::recovery::pair::restore_files;
use crate::recovery::recover_timed;
use crate::replace::{self, Newcomer};
use crate::report::{LogError, OpenError, RecoveryReport};
use crate::sorter::{Sorter, Tools};
use crate::stats::LogStats;
use crate::table::NumberMap;
use crate::types::*;
use crate::view::View;
use crate::volume_dir::{self, Ordered, VolumeDir, VolumeOrder, VolumeSet, VolumeStatus};
use crate::volumes::Health;

/// Told which partitions' high watermark rose.
pub type CommitListener = Box<dyn Fn(&[PartitionId]) + Send + Sync>;

type Sink = Arc<dyn CompletionSink>;

/// What the thread answers to.
struct Ticket {
    sink: Sink,
    tag: u64,
}

struct Waiting {
    append: Append,
    ticket: Ticket,
}

/// Shared between handles and the log thread.
struct Shared {
    queue: Mutex<Queue>,
    /// What the thread sleeps for, if it sleeps or is about to.
    sleep: AtomicU8,
    waker: Waker,
    view: Arc<View>,
    reads: Arc<ReadPath>,
    listeners: RwLock<Vec<CommitListener>>,
    probe: DiskProbe,
    mirror: Mirror,
    volumes: VolumeSet,
    /// There is a cold tier, so there are volumes.
    tiered: bool,
}

/// The thread works, and looks into the queue before it sleeps.
const AWAKE: u8 = 0;
/// A write is with the disk, and its completion wakes the thread: only a queue that is worth the work meanwhile does so earlier.
const WRITING: u8 = 1;
/// Nothing is under way: the first append wakes it.
const IDLE: u8 = 2;

/// What makes it worth waking the thread in mid-write: checking and copying these would hold up the next frame.
const WORTH_APPENDS: usize = 64;
const WORTH_BYTES: usize = 64 << 10;

#[derive(Default)]
struct Queue {
    appends: Vec<Waiting>,
    bytes: usize,
    /// Classes that are kept by other rules from now on.
    policies: Vec<(ClassId, ClassPolicy)>,
    /// What is to be done to volumes.
    volume_orders: Vec<Ordered>,
    /// Who waits for the sorter to let go of disks.
    let_go: Vec<Sender<()>>,
    /// What came of the sorter's job.
    job_done: Option<Result<Done, JobError>>,
    /// What a backup wants; whoever asks waits for the answer, so they are few.
    pins: Vec<PinOrder>,
    stopping: bool,
    closed: bool,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Nothing in here panics half-way, so a poisoned lock still guards a sound queue.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// After a push; `worth` tells whether the queue was worth the work then.
    fn wake(&self, worth: bool) {
        let sleep = self.sleep.load(Ordering::SeqCst);
        let wake = sleep == IDLE || (sleep == WRITING && worth);
        if wake && self.sleep.swap(AWAKE, Ordering::SeqCst) != AWAKE {
            self.waker.wake();
        }
    }
}

impl Queue {
    fn push(&mut self, append: Append, ticket: Ticket) {
        self.bytes += append.entries.iter().map(|entry| entry.batches.len()).sum::<usize>();
        self.appends.push(Waiting { append, ticket });
    }

    fn is_worth_waking(&self) -> bool {
        self.appends.len() >= WORTH_APPENDS || self.bytes >= WORTH_BYTES
    }
}

/// What a backup asks of the log thread.
enum PinOrder {
    Take(SyncSender<Result<Pinned, PinTaken>>),
    Done(u64, PinDone, SyncSender<Result<bool, PinLost>>),
}

/// Name of the thread that owns the log: when it panics, nothing more is answered.
pub const LOG_THREAD: &str = "weir-log";

/// Owns the log thread and the background reader. Dropping it shuts down like [`Log::shutdown`], but only logs an error.
pub struct Log {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<(), LogError>>>,
}

impl Log {
    /// Opens or makes the volume in `config.dir`, recovers it and starts the log thread.
    pub fn open(config: LogConfig) -> Result<(Log, RecoveryReport), OpenError> {
        let clock = Clock::new();
        let opened = mirror::open(&config, clock.start)?;
        let (mut disk, probe, target) = (opened.disk, opened.probe, opened.target);
        let restored = restore_files(&mut disk)?;
        let fresh_ids = [mirror::fresh_id(), mirror::fresh_id()];
        let (limits, opening, mut report) = recover_timed(&mut disk, &config, clock.now(), fresh_ids, stopwatch)?;
        report.files_restored = restored;
        target.fill(&mut disk)?;
        log_report(&report);
        let control = disk.control();
        let mut engine = Engine::new(limits, opening).with_stopwatch(stopwatch);
        let view = Arc::clone(engine.view());
        let disks = Arc::<VolumeDisks>::default();
        if config.cold.is_some() {
            report.volume_problems = find_volumes(&mut engine, opened.dirs, &config, &disks, &report.volume_id)?;
        }
        let wal = Arc::new(MirrorReader(Arc::clone(&control)));
        let reader = Arc::new(VolumeReader { wal, disks: Arc::clone(&disks), view: Arc::clone(&view) });
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            sleep: AtomicU8::new(AWAKE),
            waker: disk.waker(),
            reads: Arc::new(ReadPath::new(Arc::clone(&view), reader, report.volume_id)),
            view,
            listeners: RwLock::default(),
            probe,
            mirror: Mirror { control, dir: config.dir.clone(), backend: config.backend, headroom: mirror::headroom(&config) },
            volumes: VolumeSet { disks, log_id: report.volume_id, backend: config.backend },
            tiered: config.cold.is_some(),
        });
        let sorter = config.cold.map(|cold| start_sorter(&shared, cold, report.volume_id)).transpose()?;
        let disk: Box<dyn Disk> = Box::new(disk);
        let sinks = Grouped::default();
        let shared_with = Arc::clone(&shared);
        let driver = Driver { sorter, engine, disk, shared: shared_with, clock, sinks, copies: 0, volume_answers: Vec::new() };
        let spawned = std::thread::Builder::new().name(LOG_THREAD.to_owned()).spawn(move || driver.run());
        let thread =
            spawned.map_err(|source| OpenError::Directory { what: "starting the log thread for", path: config.dir, source })?;
        Ok((Log { shared, thread: Some(thread) }, report))
    }

    /// For everybody who appends or reads.
    pub fn handle(&self) -> LogHandle {
        LogHandle { shared: Arc::clone(&self.shared) }
    }

    /// Drains what was submitted, makes the last frame provable, marks the volume as closed.
    pub fn shutdown(mut self) -> Result<(), LogError> {
        self.stop()
    }

    fn stop(&mut self) -> Result<(), LogError> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        self.shared.queue().stopping = true;
        self.shared.waker.wake();
        thread.join().unwrap_or(Err(LogError::Panicked))
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            tracing::error!(%error, "the log did not shut down cleanly");
        }
    }
}

/// Tells the engine which volumes are there. Returns what is wrong with others.
fn find_volumes(
    engine: &mut Engine<Ticket>,
    dirs: Vec<VolumeDir>,
    config: &LogConfig,
    disks: &VolumeDisks,
    log_id: &Uuid,
) -> Result<Vec<String>, OpenError> {
    let view = Arc::clone(engine.view());
    let mut problems = Vec::new();
    let mut add = |dir: VolumeDir| -> Result<(), OpenError> {
        let uuid = volume_dir::identify(&dir, log_id, &view, false)?;
        let number = engine.volume_found(uuid, &dir.path.display().to_string())?;
        disks.add(number, dir.disk);
        Ok(())
    };
    // The sorter reads the WAL where it is a volume: one such directory there must be.
    let mut refused = Vec::new();
    let with_wal = dirs.len();
    for dir in dirs {
        refused.extend(add(dir).err());
    }
    if refused.len() == with_wal {
        return Err(refused.swap_remove(0));
    }
    problems.extend(refused.iter().map(ToString::to_string));
    // Those that are known first: only then is it clear which are missing.
    let mut cold_dirs: Vec<_> = config.cold_dirs.iter().collect();
    cold_dirs.sort_by_key(|dir| !volume_dir::has_identity(dir));
    for dir in cold_dirs {
        match volume_dir::open_cold_dir(dir, config.backend, None).and_then(&mut add) {
            Ok(()) => {}
            Err(error @ OpenError::InUse { .. }) => return Err(error),
            Err(error) => problems.push(error.to_string()),
        }
    }
    for (number, volume) in view.volumes().iter().filter(|(_, volume)| volume.usage != VolumeUse::Gone) {
        if volume.health == Health::Offline {
            let id = crate::format::uuid_text(&volume.uuid);
            problems.push(format!("volume {number} ({id}) is missing: what only it holds cannot be read until its disk is back"));
        }
    }
    problems.iter().for_each(|problem| tracing::error!("{problem}"));
    Ok(problems)
}

fn start_sorter(shared: &Arc<Shared>, config: ColdConfig, log_id: Uuid) -> Result<Sorter, OpenError> {
    let waiting = Arc::clone(shared);
    let done = Box::new(move |result| {
        waiting.queue().job_done = Some(result);
        waiting.wake(true);
    });
    let (view, reads) = (Arc::clone(&shared.view), Arc::downgrade(&shared.reads));
    let (disks, wal) = (Arc::clone(&shared.volumes.disks), Arc::clone(&shared.mirror.control));
    Sorter::start(Tools { disks, wal, view, reads, log_id, config, done })
}

fn log_report(report: &RecoveryReport) {
    tracing::info!(
        epoch = report.epoch,
        last_lsn = report.last_lsn.0,
        segments = report.segments,
        frames = report.frames,
        partitions = report.partitions,
        clean = report.clean,
        torn_tail = report.torn_tail,
        "log recovered"
    );
    for gap in &report.gaps {
        tracing::error!(partition = gap.partition.0, from = gap.from, to = gap.to, "records were damaged on disk and are lost");
    }
}

/// A way to the log, cheap to clone.
#[derive(Clone)]
pub struct LogHandle {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for LogHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogHandle").finish_non_exhaustive()
    }
}

impl LogHandle {
    /// Queues an append. Never blocks: the caller bounds its bytes in flight. The answer goes to `sink` with `tag`.
    pub fn submit(&self, append: Append, tag: u64, sink: &Arc<dyn CompletionSink>) {
        let mut queue = self.shared.queue();
        if queue.closed || queue.stopping {
            drop(queue);
            return sink.complete(&mut vec![(tag, Outcome::Refused(AppendError::ShuttingDown))]);
        }
        queue.push(append, Ticket { sink: Arc::clone(sink), tag });
        let worth = queue.is_worth_waking();
        drop(queue);
        self.shared.wake(worth);
    }

    /// Queues all of `appends`, in order, with one lock and one wake-up; they tend to share a commit.
    pub fn submit_all(&self, appends: &mut Vec<(Append, u64)>, sink: &Arc<dyn CompletionSink>) {
        if appends.is_empty() {
            return;
        }
        let mut queue = self.shared.queue();
        if queue.closed || queue.stopping {
            drop(queue);
            let refused = |(_, tag)| (tag, Outcome::Refused(AppendError::ShuttingDown));
            return sink.complete(&mut appends.drain(..).map(refused).collect());
        }
        for (append, tag) in appends.drain(..) {
            queue.push(append, Ticket { sink: Arc::clone(sink), tag });
        }
        let worth = queue.is_worth_waking();
        drop(queue);
        self.shared.wake(worth);
    }

    /// Appends and waits. Not for executor threads.
    pub fn append_blocking(&self, append: Append) -> Outcome {
        let once = Arc::new(Once::default());
        let sink: Sink = Arc::<Once>::clone(&once);
        self.submit(append, 0, &sink);
        once.wait()
    }

    /// Durable offsets of a partition.
    pub fn bounds(&self, partition: PartitionId) -> Option<PartitionBounds> {
        self.shared.view.tables().bounds(partition)
    }

    /// Reads: inline from memory at the tail, else by the background reader.
    pub fn read(&self, request: ReadRequest, reply: ReadReply) {
        self.shared.reads.read(request, reply);
    }

    /// Offset and timestamp of the first record at or after `timestamp_ms`.
    pub fn offset_for_timestamp(&self, partition: PartitionId, timestamp_ms: i64, reply: TimestampReply) {
        self.shared.reads.offset_for_timestamp(partition, timestamp_ms, reply);
    }

    /// Durable state of a producer's lane.
    pub fn producer(&self, key: ProducerKey) -> Option<ProducerState> {
        self.shared.view.producers().get(&key).copied()
    }

    /// Durable value of a metadata key.
    pub fn meta(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.shared.view.meta().get(key).cloned()
    }

    /// All durable metadata whose key starts with `prefix`, in order of the keys.
    pub fn meta_scan(&self, prefix: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
        let meta = self.shared.view.meta();
        let from = meta.range(prefix.to_vec()..).take_while(|(key, _)| key.starts_with(prefix));
        from.map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    /// From now on the partitions of a class are kept by these rules. Not stored: to be said again after each start, before that
    /// nothing of the class goes.
    pub fn set_class_policy(&self, class: ClassId, policy: ClassPolicy) {
        self.shared.queue().policies.push((class, policy));
        self.shared.wake(true);
    }

    /// Classes that have cold segments, in order.
    pub fn cold_classes(&self) -> Vec<ClassId> {
        let places = Arc::clone(&self.shared.view.tables().cold);
        let classes: std::collections::BTreeSet<ClassId> = places.iter().map(|place| ClassId(place.entry.class)).collect();
        classes.into_iter().collect()
    }

    /// Calls `listener` from the log thread after each commit, with the partitions that grew.
    pub fn on_commit(&self, listener: CommitListener) {
        self.shared.listeners.write().unwrap_or_else(PoisonError::into_inner).push(listener);
    }

    /// Counters.
    pub fn stats(&self) -> LogStats {
        let mut stats = self.shared.view.stats_mut().clone();
        self.shared.view.reads.add_to(&mut stats);
        let mirror = self.mirror_status();
        stats.copies = mirror.in_step() as u64;
        stats.resilver_done_bytes = mirror.resilver_done_bytes;
        stats.resilver_total_bytes = mirror.resilver_total_bytes;
        stats
    }

    /// How the copies of the log are.
    pub fn mirror_status(&self) -> MirrorStatus {
        self.shared.mirror.control.status()
    }

    /// Makes the volume in `dir` the second copy: empty, or a former copy of this log. Returns when filling has begun;
    /// [`LogHandle::mirror_status`] tells how far it is. Blocks; not for executor threads.
    pub fn mirror_attach(&self, dir: &Path) -> Result<(), OpenError> {
        let held = self.shared.volumes.of_dir(dir, &self.shared.view).map(|(_, disk)| disk);
        if self.shared.tiered {
            self.shared.volumes.may_join(dir, &self.shared.view, true)?;
        }
        let volume = self.shared.mirror.attach(dir, held)?;
        if self.shared.tiered {
            self.shared.volumes.join(volume, &self.shared.view, &|order| self.order(order))?;
        }
        Ok(())
    }

    /// Lets go of a copy, if the other one can do without it; to take its disk out. Blocks for a moment.
    pub fn mirror_detach(&self, copy_id: [u8; 16]) -> Result<(), OpenError> {
        self.shared.mirror.detach(copy_id)
    }

    /// Holds everything that is durable now, for a backup. `None`: the log has stopped. Blocks for a moment.
    pub(crate) fn pin(&self) -> Option<Result<Pinned, PinTaken>> {
        self.order_pin(PinOrder::Take)
    }

    /// Lets go of a part of it; whether the rest is wanted back soon. `None`: the log has stopped.
    pub(crate) fn pin_done(&self, token: u64, done: PinDone) -> Option<Result<bool, PinLost>> {
        self.order_pin(|answer| PinOrder::Done(token, done, answer))
    }

    fn order_pin<T>(&self, order: impl FnOnce(SyncSender<T>) -> PinOrder) -> Option<T> {
        let (sender, answer) = sync_channel(1);
        let mut queue = self.shared.queue();
        if queue.closed {
            return None;
        }
        queue.pins.push(order(sender));
        drop(queue);
        self.shared.wake(true);
        // A log thread that a dead disk holds longer than that will not miss the pin.
        answer.recv_timeout(PIN_LEASE).ok()
    }

    /// Reads old frames.
    pub(crate) fn reader(&self) -> Arc<dyn Reader> {
        Arc::new(MirrorReader(Arc::clone(&self.shared.mirror.control)))
    }

    /// Where cold segments lie.
    pub(crate) fn volume_disks(&self) -> Arc<VolumeDisks> {
        Arc::clone(&self.shared.volumes.disks)
    }

    /// The directory it lies in.
    pub(crate) fn dir(&self) -> &std::path::Path {
        &self.shared.mirror.dir
    }

    /// How the volumes of the cold tier are, in order of their numbers; none for a log without one. What is owed and how far that is
    /// made good stands in [`LogHandle::stats`].
    pub fn volumes(&self) -> Vec<VolumeStatus> {
        VolumeSet::status(&self.shared.mirror.control, &self.shared.view)
    }

    /// Makes a directory a volume: an empty one a new volume, a former one of this log the one it was. If a copy of the WAL is
    /// missing it becomes that, too. Returns its number. Blocks; not for executor threads.
    pub fn volume_attach(&self, dir: &Path) -> Result<u8, OpenError> {
        let shared = &self.shared;
        if !shared.tiered {
            return Err(VolumeError::NoColdTier.into());
        }
        let held = shared.volumes.of_dir(dir, &shared.view).map(|(_, disk)| disk);
        let wanted = shared.mirror.control.survivor().is_some_and(|survivor| survivor.peer != Peer::None);
        shared.volumes.may_join(dir, &shared.view, wanted)?;
        let volume = if wanted {
            shared.mirror.attach(dir, held)?
        } else if let Some(disk) = held {
            VolumeDir { path: dir.to_owned(), disk, has_wal: false }
        } else {
            volume_dir::open_cold_dir(dir, shared.volumes.backend, None)?
        };
        shared.volumes.join(volume, &shared.view, &|order| self.order(order))
    }

    /// From now on the volume takes no new segments, and those it has move to others; `drain = false` takes that back. When
    /// [`VolumeStatus::segments`] is 0 it can be detached and forgotten without loss.
    pub fn volume_drain(&self, number: u8, drain: bool) -> Result<(), OpenError> {
        self.answered(VolumeOrder::Drain { number, drain })
    }

    /// Lets go of a volume's disk, its copy of the WAL included if the other one is whole, so that it can be taken out. It may be
    /// attached again; until then what only it holds cannot be read. Blocks.
    pub fn volume_detach(&self, number: u8) -> Result<(), OpenError> {
        let shared = &self.shared;
        let let_go = || {
            let (done, answer) = std::sync::mpsc::channel();
            shared.queue().let_go.push(done);
            shared.wake(true);
            answer
        };
        shared.volumes.detach(number, &shared.mirror.control, &|order| self.order(order), &let_go, &shared.view)
    }

    /// Puts `dir` in the place of volume `number`, its copy of the WAL included, and forgets that one. The directory is looked at and
    /// opened first: if it is refused, nothing has changed. Refused as well while the old one holds the only copy of a segment, unless
    /// by `force`. Returns the new one's number; its segments follow from the others. Blocks; not for executor threads.
    pub fn volume_replace(&self, number: u8, dir: &Path, force: bool) -> Result<u8, OpenError> {
        let shared = &self.shared;
        if !shared.tiered {
            return Err(VolumeError::NoColdTier.into());
        }
        let old = self.volumes().into_iter().find(|volume| volume.number == number && volume.usage != VolumeUse::Gone);
        let old = old.ok_or(VolumeError::Unknown(number))?;
        if old.only_copies > 0 && !force {
            return Err(VolumeError::OnlyCopy { number, segments: old.only_copies as usize }.into());
        }
        let newcomer = replace::accept(number, dir, &shared.volumes, &shared.mirror, &shared.view)?;
        self.volume_detach(number)?;
        let joined = self.join_newcomer(newcomer).map_err(|error| OpenError::ReplaceCutShort {
            number,
            path: dir.to_owned(),
            source: Box::new(error),
        })?;
        self.volume_forget(number, force)?;
        Ok(joined)
    }

    fn join_newcomer(&self, newcomer: Newcomer) -> Result<u8, OpenError> {
        if let Some((member, generation)) = newcomer.copy {
            replace::settled(&self.shared.mirror.control)?;
            self.shared.mirror.fill(member, generation)?;
        }
        self.shared.volumes.join(newcomer.volume, &self.shared.view, &|order| self.order(order))
    }

    /// Forgets a volume for good: its disk was replaced, or is lost. Its segments get their second copies elsewhere. Refused while
    /// it holds the only copy of a segment, unless by `force`: those are lost then.
    pub fn volume_forget(&self, number: u8, force: bool) -> Result<(), OpenError> {
        if self.volumes().iter().any(|volume| volume.number == number && volume.wal.is_some_and(|wal| wal != CopyState::Offline))
        {
            return Err(OpenError::MirrorBusy("this volume has a copy of the WAL in use: detach it first".to_owned()));
        }
        self.answered(VolumeOrder::Forget { number, force })
    }

    fn order(&self, order: VolumeOrder) -> Receiver<Result<u8, VolumeError>> {
        let answer = volume_dir::order(order, |ordered| self.shared.queue().volume_orders.push(ordered));
        self.shared.wake(true);
        answer
    }

    fn answered(&self, order: VolumeOrder) -> Result<(), OpenError> {
        volume_dir::answered(&self.order(order)).map(drop)
    }

    /// What the disk and the kernel offer.
    pub fn probe(&self) -> &DiskProbe {
        &self.shared.probe
    }
}

/// The sink of one blocking append.
#[derive(Default)]
struct Once {
    outcome: Mutex<Option<Outcome>>,
    arrived: Condvar,
}

impl Once {
    fn wait(&self) -> Outcome {
        let mut outcome = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(outcome) = outcome.take() {
                return outcome;
            }
            outcome = self.arrived.wait(outcome).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl CompletionSink for Once {
    fn complete(&self, outcomes: &mut Vec<(u64, Outcome)>) {
        if let Some((_, outcome)) = outcomes.pop() {
            *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
            self.arrived.notify_all();
        }
    }
}

/// Time within a step. Only differences count.
fn stopwatch() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::new(now.tv_sec.cast_unsigned(), now.tv_nsec as u32)
}

/// The two clocks of the core.
struct Clock {
    start: Instant,
}

impl Clock {
    fn new() -> Clock {
        Clock { start: Instant::now() }
    }

    fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { monotonic: self.start.elapsed(), wall_ms: u64::try_from(wall.as_millis()).unwrap_or(u64::MAX) }
    }
}

/// The log thread.
struct Driver {
    /// Before the disk, which holds the lock: its thread has ended when another may open the directory.
    sorter: Option<Sorter>,
    engine: Engine<Ticket>,
    disk: Box<dyn Disk>,
    shared: Arc<Shared>,
    clock: Clock,
    sinks: Grouped,
    /// Of the WAL that were durable when that was last looked at.
    copies: usize,
    /// Whoever changed a volume, until that is durable.
    volume_answers: Vec<(u8, Sender<Result<u8, VolumeError>>)>,
}

impl Driver {
    fn run(mut self) -> Result<(), LogError> {
        // However this thread ends, nobody may wait for it in vain.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.serve()));
        let left = {
            let mut queue = self.shared.queue();
            queue.closed = true;
            queue.pins.clear();
            std::mem::take(&mut queue.appends)
        };
        for Waiting { ticket, .. } in left {
            ticket.sink.complete(&mut vec![(ticket.tag, Outcome::Refused(AppendError::ShuttingDown))]);
        }
        // Another may open the directories when this thread has ended.
        self.sorter = None;
        self.shared.volumes.disks.unlock();
        match result {
            Ok(()) => self.engine.failed().map_or(Ok(()), |reason| Err(LogError::Failed(reason.to_owned()))),
            Err(_) => Err(LogError::Panicked),
        }
    }

    fn serve(&mut self) {
        let mut appends = Vec::new();
        let mut completions: Vec<DiskCompletion> = Vec::new();
        let mut out = Output::default();
        while !self.engine.is_closed() || !self.shared.queue().stopping {
            let (stopping, job_done, policies, pins) = self.take_queue(&mut appends);
            self.take_volume_orders();
            for (class, policy) in policies {
                self.engine.set_policy(class, policy);
            }
            if let Some(result) = job_done {
                self.engine.job_done(result);
            }
            for order in pins {
                self.pin(order);
            }
            for Waiting { append, ticket } in appends.drain(..) {
                self.engine.submit(append, ticket, &mut out);
            }
            if stopping {
                self.engine.begin_shutdown();
            }
            self.engine.step(self.clock.now(), &mut completions, &mut out);
            for (id, op) in out.ops.drain(..) {
                if let crate::disk::DiskOp::Discard { file } = op {
                    // Readers that have it open would keep its space.
                    self.shared.reads.forget_wal(file);
                }
                self.disk.submit(id, op);
            }
            for (job, sorter) in out.jobs.drain(..).zip(&self.sorter) {
                sorter.submit(job);
            }
            self.deliver(&mut out);
            if self.engine.volumes_are_written() {
                self.volume_answers.drain(..).for_each(|(number, answer)| drop(answer.send(Ok(number))));
            }
            if self.engine.prepare() {
                continue;
            }
            if !self.engine.is_closed() || !stopping {
                self.sleep(&mut completions);
            }
        }
    }

    fn take_queue(&self, appends: &mut Vec<Waiting>) -> Orders {
        let mut queue = self.shared.queue();
        std::mem::swap(&mut queue.appends, appends);
        queue.bytes = 0;
        (queue.stopping, queue.job_done.take(), std::mem::take(&mut queue.policies), std::mem::take(&mut queue.pins))
    }

    fn pin(&mut self, order: PinOrder) {
        let now = self.clock.now();
        // Whoever asked may have given up waiting; the lease ends what was taken for it.
        match order {
            PinOrder::Take(answer) => drop(answer.try_send(self.engine.pin(now))),
            PinOrder::Done(token, done, answer) => drop(answer.try_send(self.engine.pin_done(now, token, done))),
        }
    }

    fn take_volume_orders(&mut self) {
        let (orders, let_go) = {
            let mut queue = self.shared.queue();
            (std::mem::take(&mut queue.volume_orders), std::mem::take(&mut queue.let_go))
        };
        for (order, answer) in orders {
            let result = match order {
                VolumeOrder::Found { uuid, name } => self.engine.volume_found(uuid, &name),
                VolumeOrder::Lost { number } => {
                    self.engine.volume_lost(number, "it was detached");
                    Ok(number)
                }
                VolumeOrder::Drain { number, drain } => self.engine.volume_drain(number, drain).map(|()| number),
                VolumeOrder::Forget { number, force } => self.engine.volume_forget(number, force).map(|()| number),
            };
            match result {
                Ok(number) => self.volume_answers.push((number, answer)),
                // Whoever asked may have given up waiting.
                Err(_) => drop(answer.send(result)),
            }
        }
        for (done, sorter) in let_go.into_iter().zip(&self.sorter) {
            sorter.let_go(&done);
        }
    }

    fn deliver(&mut self, out: &mut Output<Ticket>) {
        if !out.risen.is_empty() {
            for listener in self.shared.listeners.read().unwrap_or_else(PoisonError::into_inner).iter() {
                listener(&out.risen);
            }
            out.risen.clear();
        }
        for (ticket, outcome) in out.outcomes.drain(..) {
            self.sinks.add(ticket, outcome);
        }
        self.sinks.complete_all();
    }

    /// Waits for the disk, a submission, or the moment the core wants to be called again.
    fn sleep(&mut self, completions: &mut Vec<DiskCompletion>) {
        let wake_in = self.engine.next_wake().map(|at| at.saturating_sub(self.clock.start.elapsed()));
        let sleep = if self.engine.is_writing() { WRITING } else { IDLE };
        self.shared.sleep.store(sleep, Ordering::SeqCst);
        // A push before that was seen did not wake: look once more.
        let queue = self.shared.queue();
        let nothing = if sleep == WRITING { !queue.is_worth_waking() } else { queue.appends.is_empty() };
        let no_orders = queue.job_done.is_none() && queue.policies.is_empty() && queue.pins.is_empty();
        let no_orders = no_orders && queue.volume_orders.is_empty() && queue.let_go.is_empty();
        let wait = if nothing && no_orders && !queue.stopping { wake_in } else { Some(Duration::ZERO) };
        drop(queue);
        self.disk.poll(wait, completions);
        let copies = self.disk.durable_copies();
        self.engine.set_durable_copies(copies);
        if copies != self.copies {
            self.copies = copies;
            let (_, out) = self.shared.mirror.control.names();
            self.shared.view.volumes().wal_out(&out);
        }
        self.shared.sleep.store(AWAKE, Ordering::SeqCst);
    }
}

/// Whether to stop, what came of a job, new policies, what a backup wants.
type Orders = (bool, Option<Result<Done, JobError>>, Vec<(ClassId, ClassPolicy)>, Vec<PinOrder>);

/// A sink and what it gets.
type SinkGroup = (Option<Sink>, Vec<(u64, Outcome)>);

/// Outcomes of one step, by sink, so that each is called once. The vectors are used again.
#[derive(Default)]
struct Grouped {
    by_sink: NumberMap<usize, usize>,
    groups: Vec<SinkGroup>,
    used: usize,
}

impl Grouped {
    fn add(&mut self, ticket: Ticket, outcome: Outcome) {
        let address = Arc::as_ptr(&ticket.sink).cast::<()>().addr();
        let at = *self.by_sink.entry(address).or_insert(self.used);
        if at == self.used {
            self.used += 1;
            if self.groups.len() < self.used {
                self.groups.push((None, Vec::new()));
            }
            self.groups[at].0 = Some(ticket.sink);
        }
        self.groups[at].1.push((ticket.tag, outcome));
    }

    fn complete_all(&mut self) {
        self.by_sink.clear();
        for (sink, outcomes) in &mut self.groups[..self.used] {
            if let Some(sink) = sink.take() {
                sink.complete(outcomes);
            }
            outcomes.clear();
        }
        self.used = 0;
    }
}
