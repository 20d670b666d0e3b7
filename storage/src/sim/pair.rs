//! Two simulated disks under one mirror: each with faults of its own, power for both from one plug.
//!
//! Beside what one disk does, a disk of a pair may fail a write (and be thrown out), hang past the mirror's patience, die for good,
//! be away for some openings and come back stale, be replaced by an empty one, be filled while the log works, and be cut off in
//! the middle of any of it. As long as one copy is whole, nothing may be lost and no gap may appear. The harness knows which copy
//! is whole (the one the mirror named last), and takes away only the other; the operator's `accept_degraded` is given only
//! when a copy that the log asks for is really gone.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::client::Client;
use super::model::Model;
use super::tier::{THIRD, Tier, TierLife};
use super::{CRASHES_PER_SEED, FAT, Mode, SEGMENT_BYTES, Tally, fat_rules, hasten, outcome_hash};
use crate::config::LogConfig;
use crate::core::{Engine, Now, Output};
use crate::disk::mirror::{CopyState, Member, MirrorControl, MirrorDisk, MirrorOptions, MirrorReader, prepare_target};
use crate::disk::sim::{Faults, SimDisk};
use crate::disk::volumes::VolumeReader;
use crate::disk::{AlignedBuf, Disk, DiskCompletion, DiskError, DiskOp, FileId, Reader, Waker};
use crate::read::ReadPath;
use crate::recovery::pair::{Candidate, may_be_filled, pair, restore_files};
use crate::recovery::recover;
use crate::report::{OpenError, RecoveryReport};
use crate::types::{AppendError, Durability, Outcome};

const PATIENCE: Duration = Duration::from_millis(500);

/// A simulated disk that mirror and harness share.
#[derive(Clone, Debug)]
pub(crate) struct Shared(Arc<Mutex<SimDisk>>);

impl Shared {
    pub(crate) fn new(seed: u64, faults: Faults) -> Shared {
        Shared(Arc::new(Mutex::new(SimDisk::new(seed, faults))))
    }

    pub(crate) fn get(&self) -> MutexGuard<'_, SimDisk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disk for Shared {
    fn submit(&mut self, id: u64, op: DiskOp) {
        self.get().submit(id, op);
    }
    fn poll(&mut self, wait: Option<Duration>, out: &mut Vec<DiskCompletion>) {
        self.get().poll(wait, out);
    }
    fn waker(&self) -> Waker {
        Waker::noop()
    }
    fn list_segments(&mut self) -> Result<Vec<u32>, DiskError> {
        self.get().list_segments()
    }
    fn size(&mut self, file: FileId) -> Result<Option<u64>, DiskError> {
        self.get().size(file)
    }
    fn links(&mut self, file: FileId) -> Result<u64, DiskError> {
        self.get().links(file)
    }
    fn read(&mut self, file: FileId, at: u64, buf: &mut AlignedBuf, bytes: usize) -> Result<(), DiskError> {
        self.get().read(file, at, buf, bytes)
    }
    fn scan_bytes(&self) -> usize {
        self.get().scan_bytes()
    }
    fn write_now(&mut self, file: FileId, at: u64, data: &AlignedBuf, bytes: usize) -> Result<(), DiskError> {
        self.get().write_now(file, at, data, bytes)
    }
    fn remove(&mut self, file: FileId) -> Result<(), DiskError> {
        self.get().remove(file)
    }
}

pub(super) struct PairWorld {
    mode: Mode,
    rng: fastrand::Rng,
    pub(super) disks: [Shared; 2],
    pub(super) faults: [Faults; 2],
    pub(super) config: LogConfig,
    pub(super) now: Now,
    clock: Arc<AtomicU64>,
    model: Model,
    client: Client,
    pub(super) tally: Tally,
    ids: u8,
    /// There is a log.
    opened: bool,
    /// The copy that may lack something: the only one that may be taken away.
    behind: Option<usize>,
    /// The power went before the other copy's superblock said that it counts: then both are needed to tell which one does.
    untold: bool,
    /// The disk that has rot, in runs with rot: the other one stays whole.
    pub(super) rotten: Option<usize>,
    /// Two histories of three have a cold tier; it draws from a generator of its own.
    pub(super) tier: Option<Tier>,
}

/// One opened log.
pub(super) struct Life {
    pub(super) engine: Engine<usize>,
    mirror: MirrorDisk,
    pub(super) control: Arc<MirrorControl>,
    pub(super) reads: Arc<ReadPath>,
    pub(super) report: RecoveryReport,
    pub(super) tier: TierLife,
}

impl PairWorld {
    pub(super) fn new(seed: u64, mode: Mode, tiered: bool) -> PairWorld {
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
            ..LogConfig::new("simulated")
        };
        let plain = Faults { stall: 0.02, garbage: 0.1, ..Faults::default() };
        let rotten = (mode == Mode::MirrorRot).then(|| rng.usize(0..2));
        let mut faults = [plain; 2];
        if let Some(rotten) = rotten {
            faults[rotten] = Faults { rot: 0.5, unreadable: 0.2, misdirect: 0.003, ..plain };
        }
        if mode == Mode::MirrorLying {
            faults = [Faults { lie: 0.1, ..plain }; 2];
        }
        let disks = [0, 1].map(|side| Shared::new(rng.u64(..), faults[side]));
        if rng.u32(0..4) == 0 {
            disks[rng.usize(0..2)].get().files_max = segments as usize + 1;
        }
        let client = Client::new(rng.u64(..));
        let mut world = PairWorld {
            mode,
            rng,
            disks,
            faults,
            config,
            now: Now::default(),
            clock: Arc::default(),
            model: Model::new(false),
            client,
            tally: Tally::default(),
            ids: 10,
            opened: false,
            behind: None,
            untold: false,
            rotten,
            tier: None,
        };
        if tiered && matches!(mode, Mode::Mirror | Mode::MirrorRot) {
            world.add_tier(seed);
        }
        world
    }

    fn add_tier(&mut self, seed: u64) {
        let mut tier = Tier::new(seed, self.rotten);
        self.config.cold = Some(tier.config());
        if tier.rng.bool() {
            tier.third = Some(Shared::new(tier.rng.u64(..), Faults::default()));
        }
        if let Some(rotten) = self.rotten {
            self.disks[rotten].get().cold_rots = true;
        }
        self.tier = Some(tier);
    }

    /// Adds stretches whose segments are promoted.
    pub(super) fn fatten(&mut self, seed: u64) {
        let mut rng = fastrand::Rng::with_seed(seed ^ FAT);
        if let Some(cold) = &mut self.config.cold {
            cold.promote = Some(fat_rules(&mut rng));
            if seed % 4 == 3 {
                hasten(cold, seed);
            }
            self.client.fatten(rng.u64(..));
        }
    }

    pub(super) fn history(&mut self) -> Result<(), String> {
        while self.tally.crashes < CRASHES_PER_SEED {
            self.renew_third();
            let Some(mut life) = self.open()? else { return Ok(()) };
            self.life_begins();
            self.model.check(&life.engine, &life.reads, &life.report, &mut self.tally)?;
            self.client.recovered(&life.engine, &mut self.model);
            self.tally.torn_tails += u64::from(life.report.torn_tail);
            self.tally.mended += life.report.mended + life.report.files_restored;
            for side in 0..2 {
                let may_fail = self.rotten.is_none_or(|rotten| rotten == side);
                self.disks[side].get().faults.write_error = if may_fail && self.rng.u32(0..6) == 0 { 0.01 } else { 0.0 };
            }
            let actions = if self.rng.u32(0..5) == 0 { 0 } else { self.rng.u32(1..160) };
            if self.rng.bool() {
                self.let_it_fill(&mut life)?;
            }
            for _ in 0..actions {
                self.act(&mut life)?;
                if self.is_dark() {
                    break;
                }
            }
            if !self.is_dark() && self.rng.u32(0..8) == 0 {
                // Everything that rot has left must be readable while the log works, too.
                self.check_reads(&mut life)?;
            }
            if !self.is_dark() && self.rng.u32(0..10) == 0 {
                life.engine.begin_shutdown();
                self.settle(&mut life)?;
            }
            self.tally.recycled += life.engine.view().stats_mut().recycled;
            self.tally.fenced += u64::from(life.engine.failed().is_some());
            self.look(&life);
            self.look_at_volumes(&life);
            {
                let stats = life.engine.view().stats_mut();
                self.tally.promoted += stats.segments_promoted;
                self.tally.hasty += stats.promoted_in_haste;
                self.tally.merged += stats.merged_from_bytes;
                self.tally.kept += stats.merged_kept_bytes;
                self.tally.expired += stats.segments_expired;
                self.tally.rescued += life.engine.view().reads.rescued.load(Ordering::Relaxed);
            }
            self.tally.sorted += life.engine.view().tables().cold.len() as u64;
            drop(life);
            self.crash();
        }
        Ok(())
    }

    /// Which copy is whole, before the mirror's word on it is lost.
    fn look(&mut self, life: &Life) {
        let states: Vec<CopyState> = [0, 1].map(|side| self.state_of(life, side)).into();
        self.behind = (0..2).find(|side| matches!(states[*side], CopyState::Offline | CopyState::Filling));
        self.untold = states.contains(&CopyState::Offline) && life.control.survivor().is_none();
        self.tally.filled += u64::from(self.behind.is_none());
    }

    fn state_of(&self, life: &Life, side: usize) -> CopyState {
        let status = life.control.status();
        let name = side.to_string();
        status.copies.iter().rev().find(|copy| copy.name == name).map_or(CopyState::Offline, |copy| copy.state)
    }

    fn crash(&mut self) {
        self.tally.crashes += 1;
        if let Some(tier) = &mut self.tier {
            tier.crash();
            if let Some(third) = &tier.third {
                third.get().power_cut();
            }
        }
        for disk in &self.disks {
            disk.get().power_cut();
            let fingerprint = disk.get().fingerprint();
            self.tally.note(u64::from(fingerprint));
        }
    }

    fn fresh_id(&mut self) -> [u8; 16] {
        self.ids = self.ids.wrapping_add(1);
        let mut id = [self.ids; 16];
        id[0] = self.rng.u8(..);
        id
    }

    fn member(&self, side: usize) -> Member {
        let disk = self.disks[side].clone();
        let reader = disk.get().reader();
        Member { disk: Box::new(disk), reader, copy_id: [0; 16], name: side.to_string(), keep: Box::new(()) }
    }

    /// A new disk in the place of one that may go.
    fn replace(&mut self, side: usize) {
        self.disks[side] = Shared::new(self.rng.u64(..), self.faults[side]);
        self.disks[side].get().advance(self.now.monotonic);
        if let Some(tier) = &mut self.tier {
            tier.fresh_uuid(side);
            self.disks[side].get().cold_rots = tier.rotten == Some(side);
        }
    }

    /// Which copy is not there for this opening, if any. The whole one always is.
    fn take_away(&mut self) -> Option<usize> {
        // A disk dies only while the other is whole, and never says anything again.
        let dead = (0..2).find(|side| self.disks[*side].get().is_dead());
        let side = dead.or(self.behind).or(self.rotten).unwrap_or_else(|| self.rng.usize(0..2));
        if dead.is_none() && self.untold && self.mode != Mode::MirrorStale {
            return None;
        }
        if self.mode == Mode::MirrorStale
            && let Some(behind) = self.behind
        {
            // The control: the wrong disk is taken away, and the operator insists.
            return Some(1 - behind);
        }
        if self.disks[side].get().is_dead() && self.rng.bool() {
            self.replace(side);
            self.behind = Some(side);
        }
        let spare = self.can_spare(side);
        if self.disks[side].get().is_dead() || (self.rng.u32(0..6) == 0 && spare) {
            return Some(side);
        }
        if self.rng.u32(0..12) == 0 && spare {
            self.replace(side);
            self.tally.replaced += 1;
            self.behind = Some(side);
        }
        None
    }

    /// `None`: the control has taken away the only copy there is, and was refused.
    fn open(&mut self) -> Result<Option<Life>, String> {
        let away = if self.opened { self.take_away() } else { None };
        if self.rng.u32(0..3) == 0 {
            let side = self.rng.usize(0..2);
            self.disks[side].get().writes_until_cut = Some(self.rng.u32(0..8));
        }
        let mut accept = self.mode == Mode::MirrorStale;
        loop {
            match self.try_open(away, accept) {
                Ok(life) => {
                    self.opened = true;
                    self.disks.iter().for_each(|disk| disk.get().writes_until_cut = None);
                    self.tally.degraded_opens += u64::from(life.control.status().in_step() < 2);
                    return Ok(Some(life));
                }
                Err(OpenError::Disk(DiskError::Closed { .. })) => self.crash(),
                Err(OpenError::MirrorMissing { .. }) if !accept && (away.is_some() || self.behind.is_some()) => accept = true,
                // As the operator does where a directory is refused because its volume was let go of for good: it comes back empty.
                Err(OpenError::BadConfig(_)) if self.refused_disk().is_some() => {
                    let side = self.refused_disk().expect("just looked");
                    self.replace(side);
                    self.behind = Some(side);
                }
                Err(OpenError::MirrorIncomplete) if self.mode == Mode::MirrorStale => return Ok(None),
                Err(error) => return Err(format!("the log could not be opened: {error}")),
            }
        }
    }

    fn try_open(&mut self, away: Option<usize>, accept: bool) -> Result<Life, OpenError> {
        let candidate = |world: &PairWorld, side: usize| Candidate {
            name: side.to_string(),
            member: if away == Some(side) { Err("it is away".to_owned()) } else { Ok(world.member(side)) },
        };
        let fresh = [self.fresh_id(), self.fresh_id()];
        // The directories may be given in either order.
        let order = if self.rng.bool() { [0, 1] } else { [1, 0] };
        let paired = pair(candidate(self, order[0]), Some(candidate(self, order[1])), accept, fresh)?;
        let (plan, target) = paired.into_parts();
        let clock = Arc::clone(&self.clock);
        let options = MirrorOptions {
            patience: PATIENCE,
            fill_bytes_per_s: [16 << 20, 64 << 20, 1 << 30][self.rng.usize(0..3)],
            clock: Box::new(move || Duration::from_nanos(clock.load(Ordering::Relaxed))),
        };
        self.advance();
        // The one whose WAL counts in front.
        let mut volumes: Vec<usize> = plan.in_step.iter().filter_map(|member| member.name.parse().ok()).collect();
        volumes.extend([0, 1, THIRD].into_iter().filter(|n| !volumes.contains(n) && away != Some(*n)).collect::<Vec<_>>());
        let mut mirror = MirrorDisk::new(plan, options);
        let restored = restore_files(&mut mirror)?;
        let (limits, opening, mut report) = recover(&mut mirror, &self.config, self.now, [[1; 16], [2; 16]])?;
        report.files_restored = restored;
        target.fill(&mut mirror)?;
        let control = mirror.control();
        let engine = Engine::new(limits, opening);
        let tier = TierLife::default();
        let wal = Arc::new(MirrorReader(Arc::clone(&control)));
        let reader = Arc::new(VolumeReader { wal, disks: Arc::clone(&tier.disks), view: Arc::clone(engine.view()) });
        let reads = Arc::new(ReadPath::new(Arc::clone(engine.view()), reader as Arc<dyn Reader>, report.volume_id));
        let mut life = Life { engine, mirror, control, reads, report, tier };
        self.find_volumes(&mut life, &volumes).map_err(OpenError::BadConfig)?;
        Ok(life)
    }

    fn is_dark(&self) -> bool {
        self.tier.as_ref().is_some_and(|tier| tier.dark)
    }

    fn act(&mut self, life: &mut Life) -> Result<(), String> {
        match self.tier.as_mut().map_or(9, |tier| tier.rng.u32(0..40)) {
            0..8 => self.work(life, true)?,
            8 => self.disturb_volumes(life)?,
            _ => {}
        }
        if self.is_dark() {
            return Ok(());
        }
        match self.rng.u32(0..200) {
            0..140 => {
                let (append, ticket) = self.client.next(&mut self.model);
                self.tally.appends += 1;
                let mut out = Output::default();
                life.engine.submit(append, ticket, &mut out);
                self.deliver(life, out)?;
            }
            140..180 => self.now.monotonic += Duration::from_micros(self.rng.u64(0..400)),
            180..190 => self.now.monotonic += Duration::from_millis(self.rng.u64(0..60)),
            190..192 => {
                self.now.monotonic += Duration::from_secs(2);
                self.now.wall_ms += self.rng.u64(0..600_000);
            }
            192..194 => {
                let disk = &self.disks[self.rng.usize(0..2)];
                if disk.get().files_max < usize::MAX {
                    disk.get().files_max = self.rng.usize(2..12);
                }
            }
            194..196 => self.disturb(life),
            196 => self.let_go(life),
            _ => self.attach(life)?,
        }
        self.pump(life)
    }

    /// One of two copies hangs, dies or comes to; the last one stays as it is.
    fn disturb(&mut self, life: &Life) {
        self.look_at_volumes(life);
        let side = self.rotten.unwrap_or_else(|| self.rng.usize(0..2));
        let spared = life.control.status().in_step() < 2 && self.state_of(life, side) != CopyState::Filling;
        let spare = self.can_spare(side);
        let mut disk = self.disks[side].get();
        if disk.hangs {
            disk.hangs = false;
        } else if !spared && self.disks[1 - side].0.lock().is_ok_and(|other| !other.hangs && !other.is_dead()) {
            if self.rng.u32(0..4) == 0 && spare {
                disk.die();
                self.tally.died += 1;
            } else {
                disk.hangs = true;
            }
        }
    }

    fn let_go(&mut self, life: &mut Life) {
        let status = life.control.status();
        let side = self.rotten.unwrap_or_else(|| self.rng.usize(0..2));
        if let Some(copy) = status.copies.iter().find(|copy| copy.name == side.to_string()) {
            drop(life.control.detach(copy.copy_id));
        }
    }

    /// A copy that is out comes back, as it is or as a new disk. As behind a lock: not before its old operations are over.
    fn attach(&mut self, life: &mut Life) -> Result<(), String> {
        let Some(side) = (0..2).find(|side| self.state_of(life, *side) == CopyState::Offline) else { return Ok(()) };
        let Some(survivor) = life.control.survivor() else { return Ok(()) };
        self.advance();
        self.look_at_volumes(life);
        let forgotten = self.is_forgotten(life, side);
        if self.disks[side].get().is_dead() || forgotten || (self.rng.u32(0..3) == 0 && self.can_spare(side)) {
            self.replace(side);
            self.lose_volume(life, side);
            self.tally.replaced += 1;
        }
        {
            let mut disk = self.disks[side].get();
            disk.hangs = false;
            disk.poll(Some(Duration::ZERO), &mut Vec::new());
            if !disk.is_idle() {
                return Ok(());
            }
        }
        let mut member = self.member(side);
        // A copy that was declared behind but never told so may claim to be the log when its peer is not marked: refused then.
        let Ok(generation) = may_be_filled(member.disk.as_mut(), &survivor, &member.name) else { return Ok(()) };
        member.copy_id = self.fresh_id();
        if let Ok(generation) = prepare_target(member.disk.as_mut(), &survivor, member.copy_id, generation) {
            drop(life.control.attach(member, generation));
        }
        self.find_volume(life, side)
    }

    fn advance(&self) {
        self.clock.store(self.now.monotonic.as_nanos() as u64, Ordering::Relaxed);
        self.disks.iter().for_each(|disk| disk.get().advance(self.now.monotonic));
    }

    /// Everything that is due.
    pub(super) fn pump(&mut self, life: &mut Life) -> Result<(), String> {
        self.advance();
        loop {
            let mut completions = Vec::new();
            life.mirror.poll(Some(Duration::ZERO), &mut completions);
            life.engine.set_durable_copies(life.mirror.durable_copies());
            let more = !completions.is_empty();
            let mut out = Output::default();
            life.engine.step(self.now, &mut completions, &mut out);
            self.deliver(life, out)?;
            life.engine.prepare();
            if !more {
                return Ok(());
            }
        }
    }

    fn check_reads(&mut self, life: &mut Life) -> Result<(), String> {
        // Until everything is answered, so that the model knows what there is.
        for _ in 0..10_000 {
            if !life.engine.is_writing() && self.model.is_settled() {
                break;
            }
            self.pass_time(life)?;
        }
        if life.engine.failed().is_some() || !self.model.is_settled() {
            return Ok(());
        }
        self.model.check(&life.engine, &life.reads, &life.report, &mut self.tally)
    }

    /// Time for a copy to be filled with nothing else to do.
    fn let_it_fill(&mut self, life: &mut Life) -> Result<(), String> {
        for _ in 0..self.rng.u32(0..2_000) {
            if [0, 1].iter().all(|side| self.state_of(life, *side) != CopyState::Filling) {
                break;
            }
            self.pass_time(life)?;
        }
        Ok(())
    }

    fn pass_time(&mut self, life: &mut Life) -> Result<(), String> {
        let disks = self.disks.iter().filter(|disk| !disk.get().hangs).filter_map(|disk| disk.get().next_due());
        // What is overdue is with a disk that nobody asks any more.
        let now = self.now.monotonic;
        let due = disks.filter(|due| *due > now).chain(life.mirror.next_deadline()).min().or(life.engine.next_wake());
        let next = now + Duration::from_millis(1);
        self.now.monotonic = due.unwrap_or(next).clamp(now + Duration::from_micros(1), next);
        self.pump(life)
    }

    /// Until the log is closed.
    fn settle(&mut self, life: &mut Life) -> Result<(), String> {
        for _ in 0..100_000 {
            // A copy that is alone may hang like any disk; not for ever.
            self.disks.iter().for_each(|disk| disk.get().hangs = false);
            if life.engine.is_closed() {
                return Ok(());
            }
            self.work(life, false)?;
            self.pass_time(life)?;
        }
        Err("the log does not shut down".to_owned())
    }

    fn deliver(&mut self, life: &mut Life, out: Output<usize>) -> Result<(), String> {
        for (id, op) in out.ops {
            self.tally.note(id);
            life.mirror.submit(id, op);
        }
        for job in out.jobs {
            self.tally.note(42);
            self.tier.as_mut().ok_or("a job without a cold tier")?.takes(job)?;
        }
        for (ticket, outcome) in out.outcomes {
            self.tally.note(ticket as u64 ^ outcome_hash(&outcome));
            self.tally.full += u64::from(outcome == Outcome::Refused(AppendError::Full));
            self.tally.resent += u64::from(matches!(outcome, Outcome::Duplicate { .. }));
            self.tally.two_copies += u64::from(matches!(outcome, Outcome::Committed { durable: Durability::TwoCopies, .. }));
            self.client.answered(ticket, &outcome, &mut self.model, &mut self.tally)?;
        }
        Ok(())
    }
}
