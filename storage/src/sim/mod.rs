//! The simulator: the core, recovery and read path that ship, over a disk that misbehaves, against a model that does not.
//!
//! One seed is one history: lives of random work, each ended by a power cut. After each the log is recovered (perhaps with another
//! power cut in the middle) and everything in it is compared with the model (`model.rs`):
//!
//! - what was acknowledged is there, at its offset, byte for byte;
//! - what was not acknowledged is there as a prefix of the order of submission, each append wholly or not at all;
//! - what a recovery has not found never comes back;
//! - no offset is given out twice, no sequence stored twice;
//! - metadata, lanes and open partitions agree; starts never go back.
//!
//! Wide histories (two seeds of three) also have keyed partitions in a class that is compacted, look at everything during a life,
//! search by timestamp, raise starts, and in runs with damage let cold files rot; those with two disks have a cold tier (`tier.rs`).
//! They draw from a generator of their own, so the narrow ones stay what they were.
//!
//! One history of two with a cold tier has stretches of large records of one or two partitions, and promotes the WAL segments that they
//! fill; it draws from a generator of its own as well. With some of these, what they hold shrinks, and they are sorted.
//!
//! One wide history of two also makes backups, which must hold what was acknowledged when they began (`backup.rs`).
//!
//! Runs with damage (rot, unreadable sectors, misdirected writes) may lose records, but only within gaps that the log names, or at
//! the very end, where one copy cannot prove what it has lost. The two controls break the disk's contract and must be caught.

mod backup;
mod client;
mod keyed;
mod model;
pub(crate) mod pair;
mod parsed;
mod tier;

use std::sync::Arc;
use std::time::Duration;

use crate::cold::job::{Job, JobError, Workshop};
use crate::cold::stores::{StoreMap, Stores};
use crate::config::{ClassPolicy, ColdConfig, LogConfig, PromoteConfig};
use crate::core::{Engine, Now, Output};
use crate::disk::sim::{Faults, SimDisk};
use crate::disk::{ColdStore, Disk, DiskError};
use crate::read::ReadPath;
use crate::recovery::recover;
use crate::report::{OpenError, RecoveryReport};
use crate::types::{AppendError, ClassId, Outcome};
use crate::view::ColdPlace;

use client::Client;
use model::Model;

/// What a run is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Power cuts, failing and slow writes, a full disk: nothing may be lost.
    Power,
    /// Damage as well: losses must be named.
    Damage,
    /// Control: writes complete before they are durable.
    AckWithoutSync,
    /// Control: some writes are lost by a power cut although they were flushed.
    LyingDisk,
    /// Two copies: power cuts, failing, hanging, dying, stale and replaced disks: nothing may be lost.
    Mirror,
    /// Two copies, one of them with rot, unreadable sectors and misdirected writes as well: nothing may be lost, no gap appear.
    MirrorRot,
    /// Control: the whole copy is taken away and the stale one opened by force.
    MirrorStale,
    /// Control: both disks lie.
    MirrorLying,
}

/// What a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Seeds run.
    pub seeds: u64,
    /// Power cuts, those during recovery included.
    pub crashes: u64,
    /// Appends submitted.
    pub appends: u64,
    /// Of these acknowledged.
    pub acknowledged: u64,
    /// Acknowledged and gone without a gap.
    pub lost: u64,
    /// Stored more than once.
    pub duplicated: u64,
    /// Back although a recovery had not found it.
    pub resurrected: u64,
    /// Entries lost within gaps that the log named.
    pub in_gaps: u64,
    /// Entries lost at an end that nothing proves.
    pub unprovable: u64,
    /// Openings refused with a named error, after damage.
    pub refused_opens: u64,
    /// Recoveries that found a torn tail.
    pub torn_tails: u64,
    /// Segments recycled.
    pub recycled: u64,
    /// Appends refused because the disk was full.
    pub full: u64,
    /// Resent batches recognised.
    pub resent: u64,
    /// Cold segments made.
    pub sorted: u64,
    /// Of the cold segments made: WAL segments as they are.
    pub promoted: u64,
    /// Of these, in haste.
    pub hasty: u64,
    /// Cold segments that left by retention or for space.
    pub expired: u64,
    /// Bytes of cold segments that were merged.
    pub merged: u64,
    /// And those of blocks that merges took over as they were.
    pub kept: u64,
    /// Records that compaction left out.
    pub compacted: u64,
    /// Compactions that went on where the key map of the one before was full.
    pub passes: u64,
    /// Of the compactions, those that left segments of their class aside: damaged ones, or what lies behind one.
    pub in_parts: u64,
    /// Times that everything was read in the middle of a life.
    pub rereads: u64,
    /// Searches by timestamp.
    pub searches: u64,
    /// Jobs of the cold tier that a power cut ended.
    pub jobs_cut: u64,
    /// Lives that ended with a failed write.
    pub fenced: u64,
    /// Of the acknowledged: on two copies.
    pub two_copies: u64,
    /// Frames, headers and files that one copy had lost and the other gave back at an opening.
    pub mended: u64,
    /// Openings with one copy, or with one to be filled.
    pub degraded_opens: u64,
    /// Lives that ended with both copies in step.
    pub filled: u64,
    /// Disks replaced by empty ones.
    pub replaced: u64,
    /// Disks that died.
    pub died: u64,
    /// Backups made and restored.
    pub backups: u64,
    /// Of them, with files of an earlier one.
    pub backups_reused: u64,
    /// Backups given up, or cut off by the end of a life.
    pub backups_given_up: u64,
    /// Cold segments made with one copy, where there are volumes.
    pub single: u64,
    /// And with two.
    pub doubled: u64,
    /// Copies of cold segments made afterwards.
    pub copied: u64,
    /// Looks at segments of the WAL.
    pub wal_scrubs: u64,
    /// Frames of the WAL that the scrub wrote anew.
    pub wal_mended: u64,
    /// Reads that the second copy of a cold segment answered.
    pub rescued: u64,
    /// Hash of everything that happened: equal for equal seeds.
    pub trace: u64,
}

impl Tally {
    /// Adds another run.
    pub fn add(&mut self, other: &Tally) {
        self.seeds += other.seeds;
        self.crashes += other.crashes;
        self.appends += other.appends;
        self.acknowledged += other.acknowledged;
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.resurrected += other.resurrected;
        self.in_gaps += other.in_gaps;
        self.unprovable += other.unprovable;
        self.refused_opens += other.refused_opens;
        self.torn_tails += other.torn_tails;
        self.recycled += other.recycled;
        self.full += other.full;
        self.resent += other.resent;
        self.sorted += other.sorted;
        self.promoted += other.promoted;
        self.hasty += other.hasty;
        self.expired += other.expired;
        self.merged += other.merged;
        self.kept += other.kept;
        self.compacted += other.compacted;
        self.passes += other.passes;
        self.in_parts += other.in_parts;
        self.rereads += other.rereads;
        self.searches += other.searches;
        self.jobs_cut += other.jobs_cut;
        self.fenced += other.fenced;
        self.two_copies += other.two_copies;
        self.mended += other.mended;
        self.degraded_opens += other.degraded_opens;
        self.filled += other.filled;
        self.replaced += other.replaced;
        self.died += other.died;
        self.backups += other.backups;
        self.backups_reused += other.backups_reused;
        self.backups_given_up += other.backups_given_up;
        self.single += other.single;
        self.doubled += other.doubled;
        self.copied += other.copied;
        self.wal_scrubs += other.wal_scrubs;
        self.wal_mended += other.wal_mended;
        self.rescued += other.rescued;
        self.note(other.trace);
    }

    fn note(&mut self, number: u64) {
        self.trace = (self.trace ^ number).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(17);
    }
}

/// The first broken promise of a run.
#[derive(Clone, Debug, thiserror::Error)]
#[error("seed {seed}, crash {crash}: {what}")]
pub struct Violation {
    /// Repeats it.
    pub seed: u64,
    /// After this power cut.
    pub crash: u64,
    /// What was broken.
    pub what: String,
    /// Up to there.
    pub tally: Box<Tally>,
}

/// Power cuts a seed goes through, about.
pub const CRASHES_PER_SEED: u64 = 25;

const SEGMENT_BYTES: u64 = 128 << 10;
/// The class that wide histories compact.
const COMPACTED: ClassId = ClassId(3);
/// Sets the generator of wide histories apart.
const WIDE: u64 = 0x7769_6465;
/// And that of histories with fat stretches.
const FAT: u64 = 0x6661_7400;
/// And that of histories with backups.
const BACKUPS: u64 = 0x6261_636b;

/// Runs one seed.
pub fn run(seed: u64, mode: Mode) -> Result<Tally, Violation> {
    let with = With { wide: is_wide(seed), backups: is_wide(seed) && seed.is_multiple_of(2), fat: is_fat(seed) };
    run_with(seed, mode, with)
}

/// What a history has beside the narrow ones.
#[derive(Clone, Copy)]
struct With {
    wide: bool,
    backups: bool,
    fat: bool,
}

fn is_fat(seed: u64) -> bool {
    (seed / 3) % 2 == 1
}

fn is_wide(seed: u64) -> bool {
    !seed.is_multiple_of(3)
}

/// Without backups and fat stretches, as seeds were run before there were any.
#[cfg(test)]
fn run_as(seed: u64, mode: Mode, wide: bool) -> Result<Tally, Violation> {
    run_with(seed, mode, With { wide, backups: false, fat: false })
}

fn run_with(seed: u64, mode: Mode, with: With) -> Result<Tally, Violation> {
    let (result, mut tally) = match mode {
        Mode::Mirror | Mode::MirrorRot | Mode::MirrorStale | Mode::MirrorLying => {
            let mut world = pair::PairWorld::new(seed, mode, with.wide);
            if with.fat {
                world.fatten(seed);
            }
            (world.history(), world.tally)
        }
        _ => {
            let mut world = World::new(seed, mode, with.wide);
            if with.fat {
                world.fatten(seed);
            }
            world.backups = with.backups.then(|| fastrand::Rng::with_seed(seed ^ BACKUPS));
            (world.history(), world.tally)
        }
    };
    tally.seeds = 1;
    match result {
        Ok(()) => Ok(tally),
        Err(what) => Err(Violation { seed, crash: tally.crashes, what, tally: Box::new(tally) }),
    }
}

struct World {
    mode: Mode,
    rng: fastrand::Rng,
    disk: SimDisk,
    config: LogConfig,
    now: Now,
    model: Model,
    client: Client,
    tally: Tally,
    /// What the sorter has to do.
    job: Option<Job>,
    /// It was at work when the power went.
    dark: bool,
    policies: Vec<(ClassId, ClassPolicy)>,
    /// What a wide history draws from.
    wide: Option<fastrand::Rng>,
    /// What a history with backups draws from.
    backups: Option<fastrand::Rng>,
    /// Where they go.
    vault: crate::backup::memory::MemVault,
    backing_up: bool,
    /// From this power cut on the log has a table of volumes.
    volumes_from: u64,
    /// What tests do to it.
    #[cfg(test)]
    probe: Probe,
}

/// What tests do to a world, and see of it.
#[cfg(test)]
#[derive(Default)]
struct Probe {
    /// Looks at the disk as each power cut leaves it.
    after_crash: Option<fn(&SimDisk)>,
    /// Where the power goes in the next job that may be cut.
    cut_next: Option<u32>,
    /// Whether a file that was to be used again could be.
    reused: Option<bool>,
}

/// One opened log.
struct Life {
    engine: Engine<usize>,
    reads: Arc<ReadPath>,
    report: RecoveryReport,
}

impl World {
    fn new(seed: u64, mode: Mode, wide: bool) -> World {
        let mut rng = fastrand::Rng::with_seed(seed);
        let segments = rng.u64(3..7);
        let config = LogConfig {
            segment_bytes: SEGMENT_BYTES,
            frame_bytes_max: 32 << 10,
            spare_segments: rng.u32(1..3),
            compress_from_bytes: [None, Some(1 << 10), Some(8 << 10)][rng.usize(0..3)],
            tail_cache_bytes: 64 << 10,
            retention_bytes: rng.bool().then_some(segments * SEGMENT_BYTES),
            retention_age: (rng.u32(0..4) == 0).then_some(Duration::from_secs(600)),
            index_entries_max: if rng.bool() { 1024 } else { 1 << 20 },
            producers_max: 64,
            accept_fenced: true,
            cold: (rng.u32(0..3) > 0).then(|| ColdConfig {
                sort_bytes: rng.u64(1..4) * SEGMENT_BYTES,
                sort_age: Duration::from_secs(300),
                sort_memory_bytes: rng.usize(8..100) << 10,
                burst_bytes: seed % 5 * SEGMENT_BYTES,
                burst_segment: Duration::from_millis(5 << (seed % 7)),
                wal_bytes_max: rng.u64(4..10) * SEGMENT_BYTES,
                merge_fan_in: rng.usize(2..5),
                merged_bytes: rng.u64(50..1000) << 10,
                scrub_bytes_per_s: None,
                promote: None,
                ..ColdConfig::default()
            }),
            ..LogConfig::new("simulated")
        };
        let mut faults = Faults { write_error: 0.002, stall: 0.02, garbage: 0.1, ..Faults::default() };
        match mode {
            Mode::Power | Mode::Mirror | Mode::MirrorRot | Mode::MirrorStale | Mode::MirrorLying => {}
            Mode::Damage => faults = Faults { rot: 0.3, unreadable: 0.1, misdirect: 0.003, ..faults },
            Mode::AckWithoutSync => faults.lie = 1.0,
            Mode::LyingDisk => faults.lie = 0.1,
        }
        let mut disk = SimDisk::new(rng.u64(..), faults);
        if rng.u32(0..4) == 0 {
            disk.files_max = segments as usize + 1;
        }
        if rng.u32(0..6) == 0 {
            disk.cold_bytes_max = rng.usize(20..400) << 10;
        }
        let policies = random_policies(&mut rng);
        let model = Model::new(mode == Mode::Damage);
        let client = Client::new(rng.u64(..));
        let mut world = World {
            mode,
            rng,
            disk,
            config,
            now: Now::default(),
            model,
            client,
            tally: Tally::default(),
            job: None,
            dark: false,
            policies,
            wide: None,
            backups: None,
            vault: crate::backup::memory::MemVault::default(),
            backing_up: false,
            volumes_from: u64::MAX,
            #[cfg(test)]
            probe: Probe::default(),
        };
        if wide {
            world.widen(fastrand::Rng::with_seed(seed ^ WIDE));
        }
        world
    }

    /// Adds stretches whose segments are promoted.
    fn fatten(&mut self, seed: u64) {
        let mut rng = fastrand::Rng::with_seed(seed ^ FAT);
        if let Some(cold) = &mut self.config.cold {
            cold.promote = Some(fat_rules(&mut rng));
            if seed % 4 == 3 {
                hasten(cold, seed);
            }
            self.client.fatten(rng.u64(..));
        }
    }

    /// Adds what narrow histories do without.
    fn widen(&mut self, mut rng: fastrand::Rng) {
        let cold = self.config.cold.get_or_insert_with(|| ColdConfig {
            sort_bytes: SEGMENT_BYTES,
            sort_age: Duration::from_secs(200),
            sort_memory_bytes: 30 << 10,
            wal_bytes_max: 6 * SEGMENT_BYTES,
            merge_fan_in: 3,
            scrub_bytes_per_s: None,
            promote: None,
            ..ColdConfig::default()
        });
        cold.merged_bytes = rng.u64(4..60) << 10;
        cold.key_map_bytes_max = rng.usize(24..50) << 10;
        if rng.u32(0..3) == 0 {
            self.config.index_entries_max = 64;
        }
        let delete = rng.bool();
        let policy = ClassPolicy {
            compact: true,
            delete,
            retention_ms: (rng.u32(0..3) == 0).then(|| rng.u64(100_000..2_000_000)),
            retention_bytes: (rng.u32(0..6) == 0).then(|| rng.u64(50..200) << 10),
            delete_retention_ms: [0, 300_000, 3_000_000][rng.usize(0..3)],
            drop_oldest: rng.u32(0..3) == 0,
            copies: None,
        };
        self.policies.push((COMPACTED, policy.clone()));
        self.disk.cold_rots = true;
        let expire = |policy: &ClassPolicy| {
            policy.drop_oldest || policy.delete && (policy.retention_ms.is_some() || policy.retention_bytes.is_some())
        };
        let expires = self.config.retention_bytes.is_some()
            || self.config.retention_age.is_some()
            || self.policies.iter().any(|(_, policy)| expire(policy));
        self.model.widen(policy, expires);
        self.client.widen(rng.u64(..));
        self.wide = Some(rng);
    }

    fn history(&mut self) -> Result<(), String> {
        while self.tally.crashes < CRASHES_PER_SEED {
            let Some(mut life) = self.open()? else { return Ok(()) };
            self.model.now_ms = self.now.wall_ms;
            self.model.check(&life.engine, &life.reads, &life.report, &mut self.tally)?;
            self.client.recovered(&life.engine, &mut self.model);
            self.tally.torn_tails += u64::from(life.report.torn_tail);
            self.disk.faults.write_error = if self.rng.u32(0..4) == 0 { 0.01 } else { 0.0 };
            // Now and then two power cuts with nothing between: recovery must come to the same end.
            let actions = if self.rng.u32(0..5) == 0 { 0 } else { self.rng.u32(1..120) };
            for _ in 0..actions {
                self.act(&mut life)?;
                if self.dark {
                    break;
                }
            }
            if !self.dark && self.rng.u32(0..10) == 0 {
                life.engine.begin_shutdown();
                self.settle(&mut life)?;
            }
            {
                let stats = life.engine.view().stats_mut();
                self.tally.promoted += stats.segments_promoted;
                self.tally.hasty += stats.promoted_in_haste;
                self.tally.recycled += stats.recycled;
                self.tally.expired += stats.segments_expired + stats.segments_dropped_for_space;
                self.tally.merged += stats.merged_from_bytes;
                self.tally.kept += stats.merged_kept_bytes;
                self.tally.compacted += stats.records_compacted;
            }
            self.tally.sorted += life.engine.view().tables().cold.len() as u64;
            self.tally.fenced += u64::from(life.engine.failed().is_some());
            self.crash();
        }
        Ok(())
    }

    fn crash(&mut self) {
        self.tally.crashes += 1;
        self.job = None;
        self.dark = false;
        self.disk.power_cut();
        let fingerprint = self.disk.fingerprint();
        self.tally.note(u64::from(fingerprint));
        #[cfg(test)]
        if let Some(after_crash) = self.probe.after_crash {
            after_crash(&self.disk);
        }
    }

    /// Recovers, perhaps in more than one attempt. `None`: refused by name after damage, which ends the history.
    fn open(&mut self) -> Result<Option<Life>, String> {
        if self.rng.u32(0..3) == 0 {
            self.disk.writes_until_cut = Some(self.rng.u32(0..3));
        }
        loop {
            let fresh_ids = [[1; 16], [2; 16]];
            match recover(&mut self.disk, &self.config, self.now, fresh_ids) {
                Ok((limits, opening, report)) => {
                    self.disk.writes_until_cut = None;
                    let mut engine = Engine::new(limits, opening);
                    for (class, policy) in &self.policies {
                        engine.set_policy(*class, policy.clone());
                    }
                    if self.tally.crashes >= self.volumes_from {
                        engine.volume_found([7; 16], "simulated").map_err(|error| error.to_string())?;
                    }
                    let reads = Arc::new(ReadPath::new(Arc::clone(engine.view()), self.disk.reader(), report.volume_id));
                    return Ok(Some(Life { engine, reads, report }));
                }
                Err(OpenError::Disk(DiskError::Closed { .. })) => self.crash(),
                Err(_) if self.mode == Mode::Damage && self.disk.damages > 0 => {
                    self.tally.refused_opens += 1;
                    return Ok(None);
                }
                Err(error) => return Err(format!("the log could not be opened: {error}")),
            }
        }
    }

    fn act(&mut self, life: &mut Life) -> Result<(), String> {
        self.client.wall_ms = self.now.wall_ms;
        if !self.backing_up && self.backups.as_mut().is_some_and(|rng| rng.u32(0..60) == 0) {
            self.backing_up = true;
            self.back_up(life)?;
            self.backing_up = false;
            if self.dark {
                return Ok(());
            }
        }
        if self.wide.as_mut().is_some_and(|rng| rng.u32(0..12) == 0) {
            self.work(life, true)?;
            if self.dark {
                return Ok(());
            }
        }
        match self.rng.u32(0..100) {
            0..70 => {
                let (append, ticket) = self.client.next(&mut self.model);
                self.tally.appends += 1;
                let mut out = Output::default();
                life.engine.submit(append, ticket, &mut out);
                self.deliver(out)?;
            }
            70..74 => self.work(life, true)?,
            74..95 => self.now.monotonic += Duration::from_micros(self.rng.u64(0..400)),
            95..98 => self.now.monotonic += Duration::from_millis(self.rng.u64(0..60)),
            98 => {
                self.now.monotonic += Duration::from_secs(2);
                self.now.wall_ms += self.rng.u64(0..600_000);
            }
            _ => {
                if self.disk.files_max < usize::MAX {
                    // Somebody frees space, or takes it.
                    self.disk.files_max = self.rng.usize(2..12);
                }
                if self.disk.cold_bytes_max < usize::MAX {
                    self.disk.cold_bytes_max = self.rng.usize(20..2000) << 10;
                }
            }
        }
        self.pump(life)
    }

    /// The sorter does what it was asked for, unless the power goes meanwhile.
    fn work(&mut self, life: &mut Life, may_cut: bool) -> Result<(), String> {
        let Some(job) = self.job.take() else { return Ok(()) };
        let cut = (may_cut && self.rng.u32(0..6) == 0).then(|| self.rng.u32(0..12));
        #[cfg(test)]
        let cut = self.probe.cut_next.take().filter(|_| may_cut).or(cut);
        let view = Arc::clone(life.engine.view());
        let mut stores = StoreMap::from([(0, Box::new(self.disk.cold(cut)) as Box<dyn ColdStore>)]);
        let mut store = Stores::new(&mut stores, &view, vec![0]);
        let sort_memory_bytes = self.config.cold.as_ref().map_or(0, |cold| cold.sort_memory_bytes);
        // Batches are small here: of a few thousand bytes, so that many blocks are.
        let keep_block_bytes = sort_memory_bytes / 16;
        let mut shop = Workshop {
            store: &mut store,
            view: &view,
            log_id: life.report.volume_id,
            sort_memory_bytes,
            keep_block_bytes,
            now_ms: self.now.wall_ms,
        };
        let mut in_part = false;
        if let Job::Merge { inputs, compact: Some(compact), .. } = &job {
            self.tally.passes += u64::from(!compact.clean_to.is_empty());
            let of_class = |place: &&Arc<ColdPlace>| place.entry.class == inputs[0].entry.class;
            in_part = view.tables().cold.iter().filter(of_class).count() > inputs.len();
        }
        // Now and then a merge is told to give way.
        let hurry = matches!(job, Job::Merge { .. }) && self.now.monotonic.subsec_micros().is_multiple_of(8);
        view.hurry(hurry);
        let result = shop.run(&job);
        self.tally.in_parts += u64::from(in_part && result.is_ok());
        if matches!(result, Err(JobError::Disk(DiskError::Closed { .. }))) {
            self.dark = true;
            self.tally.jobs_cut += 1;
            return Ok(());
        }
        if let Job::Remove { files } = &job {
            files.iter().for_each(|(number, _)| life.reads.forget_cold(*number));
        }
        life.engine.job_done(result);
        self.pump(life)?;
        self.look(life)
    }

    /// Reads everything, now and then, while the log is in use.
    fn look(&mut self, life: &mut Life) -> Result<(), String> {
        let Some(rng) = &mut self.wide else { return Ok(()) };
        if rng.u32(0..3) > 0 {
            return Ok(());
        }
        self.tally.rereads += 1;
        self.model.now_ms = self.now.wall_ms;
        self.model.look(&life.engine, &life.reads, rng, &mut self.tally)
    }

    /// Everything that is due.
    fn pump(&mut self, life: &mut Life) -> Result<(), String> {
        self.disk.advance(self.now.monotonic);
        loop {
            let mut completions = Vec::new();
            self.disk.poll(Some(Duration::ZERO), &mut completions);
            let more = !completions.is_empty();
            let mut out = Output::default();
            life.engine.step(self.now, &mut completions, &mut out);
            self.deliver(out)?;
            life.engine.prepare();
            if !more {
                return Ok(());
            }
        }
    }

    /// Until the log is closed.
    fn settle(&mut self, life: &mut Life) -> Result<(), String> {
        for _ in 0..10_000 {
            if life.engine.is_closed() {
                return Ok(());
            }
            self.work(life, false)?;
            let due = self.disk.next_due().or(life.engine.next_wake());
            self.now.monotonic = self.now.monotonic.max(due.unwrap_or(self.now.monotonic + Duration::from_millis(1)));
            self.pump(life)?;
        }
        Err("the log does not shut down".to_owned())
    }

    fn deliver(&mut self, out: Output<usize>) -> Result<(), String> {
        for (id, op) in out.ops {
            self.tally.note(id);
            #[cfg(test)]
            if let crate::disk::DiskOp::Zero { reuse: Some(from), .. } = op {
                self.probe.reused = Some(self.disk.links(from) == Ok(1));
            }
            self.disk.submit(id, op);
        }
        for job in out.jobs {
            self.tally.note(42);
            if self.job.replace(job).is_some() {
                return Err("a second job was handed out".to_owned());
            }
        }
        for (ticket, outcome) in out.outcomes {
            self.tally.note(ticket as u64 ^ outcome_hash(&outcome));
            self.tally.full += u64::from(outcome == Outcome::Refused(AppendError::Full));
            self.tally.resent += u64::from(matches!(outcome, Outcome::Duplicate { .. }));
            self.client.answered(ticket, &outcome, &mut self.model, &mut self.tally)?;
        }
        Ok(())
    }
}

fn random_policies(rng: &mut fastrand::Rng) -> Vec<(ClassId, ClassPolicy)> {
    let policy = |rng: &mut fastrand::Rng| ClassPolicy {
        retention_ms: (rng.u32(0..4) == 0).then(|| rng.u64(100_000..2_000_000)),
        retention_bytes: (rng.u32(0..3) == 0).then(|| rng.u64(10..500) << 10),
        drop_oldest: rng.bool(),
        ..ClassPolicy::default()
    };
    (0..3).map(|class| (ClassId(class), policy(rng))).collect()
}

/// What is fat among segments of 128 KiB.
fn fat_rules(rng: &mut fastrand::Rng) -> PromoteConfig {
    PromoteConfig {
        run_bytes: rng.u64(256..4096),
        read_factor: rng.u64(2..20),
        saving_percent: if rng.bool() { 10 } else { 100 },
        waste_percent: rng.u64(50..90),
        in_burst: false,
    }
}

/// Bursts, in which segments are promoted that are sorted when they are over.
fn hasten(cold: &mut ColdConfig, seed: u64) {
    cold.burst_bytes = SEGMENT_BYTES;
    cold.burst_segment = Duration::from_millis(100 << (seed / 4 % 8));
    if let Some(rules) = &mut cold.promote {
        (rules.in_burst, rules.saving_percent) = (true, 10);
    }
}

fn outcome_hash(outcome: &Outcome) -> u64 {
    match outcome {
        Outcome::Committed { lsn, base_offsets, .. } => {
            base_offsets.iter().fold(lsn.0, |hash, offset| hash * 31 + offset.cast_unsigned())
        }
        Outcome::Duplicate { base_offset, .. } => base_offset.cast_unsigned() << 20,
        Outcome::Refused(_) => u64::MAX,
    }
}

#[cfg(test)]
mod tests;
