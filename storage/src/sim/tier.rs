//! The cold tier of a pair: each disk is a volume, and in some histories there is a third one that holds cold segments only.
//!
//! Jobs run to their end between two steps, or until the power goes in the middle; disks fail writes, rot, fill up, die and are
//! replaced meanwhile. The harness takes away no disk that holds the only copy of a segment: which these are it knows from the
//! manifest, and from what jobs have made that no manifest names yet.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use super::SEGMENT_BYTES;
use super::pair::{Life, PairWorld, Shared};
use crate::cold::job::{Done, Job, JobError, Workshop};
use crate::cold::manifest::VolumeUse;
use crate::cold::stores::{StoreMap, Stores};
use crate::config::{ClassPolicy, ColdConfig};
use crate::disk::mirror::CopyState;
use crate::disk::volumes::{VolumeDisk, VolumeDisks};
use crate::disk::{ColdStore, DiskError};
use crate::types::ClassId;
use crate::volumes::Health;

/// Sets the generator of tiered histories apart.
const TIERED: u64 = 0x7469_6572;
/// Index of the disk without a WAL.
pub(super) const THIRD: usize = 2;

pub(super) struct Tier {
    pub(super) rng: fastrand::Rng,
    /// The third volume.
    pub(super) third: Option<Shared>,
    /// Who the disks are.
    pub(super) uuids: [[u8; 16]; 3],
    /// Cold files rot on this disk only.
    pub(super) rotten: Option<usize>,
    job: Option<Job>,
    /// The power went while a job was at work.
    pub(super) dark: bool,
    /// Where a job of this life has put something, whether or not a manifest names it yet.
    fresh: Vec<Vec<u8>>,
    /// Disks that hold the only copy of something.
    pub(super) only: [bool; 3],
    /// A disk with a WAL that was no volume at the last opening.
    refused: Option<usize>,
    policies: Vec<(ClassId, ClassPolicy)>,
}

/// The tier of one life.
#[derive(Default)]
pub(super) struct TierLife {
    pub(super) disks: Arc<VolumeDisks>,
    /// Number of each disk, while it is there.
    pub(super) numbers: [Option<u8>; 3],
}

impl Tier {
    pub(super) fn new(seed: u64, rotten: Option<usize>) -> Tier {
        let mut rng = fastrand::Rng::with_seed(seed ^ TIERED);
        let mut uuid = || {
            let mut id = [0; 16];
            rng.fill(&mut id);
            id
        };
        let uuids = [uuid(), uuid(), uuid()];
        let mut policies = Vec::new();
        for class in 0..2 {
            let policy = ClassPolicy {
                retention_ms: (rng.u32(0..5) == 0).then(|| rng.u64(200_000..2_000_000)),
                retention_bytes: (rng.u32(0..4) == 0).then(|| rng.u64(50..500) << 10),
                copies: (rng.u32(0..8) == 0 && rotten.is_none()).then_some(1),
                ..ClassPolicy::default()
            };
            policies.push((ClassId(class), policy));
        }
        Tier {
            rng,
            third: None,
            uuids,
            rotten: None,
            job: None,
            dark: false,
            fresh: Vec::new(),
            only: [false; 3],
            refused: None,
            policies,
        }
    }

    pub(super) fn config(&mut self) -> ColdConfig {
        let rng = &mut self.rng;
        ColdConfig {
            sort_bytes: rng.u64(1..4) * SEGMENT_BYTES,
            sort_age: std::time::Duration::from_secs(300),
            sort_memory_bytes: rng.usize(8..100) << 10,
            wal_bytes_max: rng.u64(4..10) * SEGMENT_BYTES,
            merge_fan_in: rng.usize(2..5),
            merged_bytes: rng.u64(50..1000) << 10,
            scrub_bytes_per_s: rng.bool().then_some(1 << 30),
            scrub_every: std::time::Duration::from_secs(10),
            promote: None,
            missing_patience: std::time::Duration::from_secs(rng.u64(0..3)),
            ..ColdConfig::default()
        }
    }

    pub(super) fn fresh_uuid(&mut self, disk: usize) {
        self.refused.take_if(|refused| *refused == disk);
        self.rng.fill(&mut self.uuids[disk]);
    }

    pub(super) fn takes(&mut self, job: Job) -> Result<(), String> {
        if self.job.replace(job).is_some() { Err("a second job was handed out".to_owned()) } else { Ok(()) }
    }

    pub(super) fn crash(&mut self) {
        self.job = None;
        self.dark = false;
    }
}

impl PairWorld {
    fn volume_disk(&self, n: usize) -> Option<Shared> {
        if n < THIRD { Some(self.disks[n].clone()) } else { self.tier.as_ref()?.third.clone() }
    }

    /// Tells the engine which volumes are there, in this order.
    pub(super) fn find_volumes(&mut self, life: &mut Life, order: &[usize]) -> Result<(), String> {
        let Some(tier) = &self.tier else { return Ok(()) };
        for (class, policy) in &tier.policies {
            life.engine.set_policy(*class, policy.clone());
        }
        for n in order {
            // One that was let go of for good is no volume any more, and may not hold the WAL either.
            if let Err(error) = self.find_volume(life, *n)
                && *n < THIRD
            {
                self.tier.as_mut().expect("it is there").refused = Some(*n);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Which disk with a WAL was refused as a volume just now.
    pub(super) fn refused_disk(&mut self) -> Option<usize> {
        self.tier.as_mut()?.refused
    }

    /// Whether a disk was let go of for good: then it comes back empty only.
    pub(super) fn is_forgotten(&self, life: &Life, n: usize) -> bool {
        let Some(tier) = &self.tier else { return false };
        let volumes = life.engine.view().volumes();
        let number = volumes.number_of(&tier.uuids[n]);
        number.and_then(|number| volumes.get(number)).is_some_and(|volume| volume.usage == VolumeUse::Gone)
    }

    pub(super) fn find_volume(&mut self, life: &mut Life, n: usize) -> Result<(), String> {
        let (Some(tier), Some(disk)) = (&self.tier, self.volume_disk(n)) else { return Ok(()) };
        let number = life.engine.volume_found(tier.uuids[n], &n.to_string()).map_err(|error| error.to_string())?;
        let reader = disk.get().reader();
        life.tier.disks.add(number, VolumeDisk { reader, open: None, keep: Arc::new(()), wal: Weak::new() });
        life.tier.numbers[n] = Some(number);
        Ok(())
    }

    /// Its disk was taken out.
    pub(super) fn lose_volume(&self, life: &mut Life, n: usize) {
        if let Some(number) = life.tier.numbers[n].take() {
            life.engine.volume_lost(number, "it was taken out");
            life.tier.disks.remove(number);
        }
    }

    /// Which disks hold the only copy of something, as far as anybody can tell.
    pub(super) fn look_at_volumes(&mut self, life: &Life) {
        let alive: Vec<u8> = (0..3)
            .filter(|n| self.rotten != Some(*n) && self.volume_disk(*n).is_some_and(|disk| !disk.get().is_dead()))
            .filter_map(|n| life.tier.numbers[n])
            .collect();
        let places = Arc::clone(&life.engine.view().tables().cold);
        let Some(tier) = &mut self.tier else { return };
        for n in 0..3 {
            let number = life.tier.numbers[n];
            let only = |holders: &[u8]| {
                number.is_some_and(|number| {
                    holders.contains(&number) && !holders.iter().any(|other| *other != number && alive.contains(other))
                })
            };
            tier.only[n] =
                places.iter().any(|place| only(place.entry.holders())) || tier.fresh.iter().any(|holders| only(holders));
        }
    }

    pub(super) fn life_begins(&mut self) {
        if let Some(tier) = &mut self.tier {
            tier.fresh.clear();
        }
    }

    /// Whether a disk may be taken away as far as cold segments go.
    pub(super) fn can_spare(&self, n: usize) -> bool {
        self.tier.as_ref().is_none_or(|tier| !tier.only[n])
    }

    /// The sorter does what it was asked for, unless the power goes meanwhile.
    pub(super) fn work(&mut self, life: &mut Life, may_cut: bool) -> Result<(), String> {
        let (_, out) = life.control.names();
        life.engine.view().volumes().wal_out(&out);
        let Some(tier) = &mut self.tier else { return Ok(()) };
        let Some(job) = tier.job.take() else { return Ok(()) };
        let cut = (may_cut && tier.rng.u32(0..6) == 0).then(|| (tier.rng.usize(0..3), tier.rng.u32(0..14)));
        let fails = (tier.rng.u32(0..8) == 0).then(|| tier.rng.usize(0..3));
        let mut stores = StoreMap::new();
        for n in 0..3 {
            let (Some(number), Some(disk)) = (life.tier.numbers[n], self.volume_disk(n)) else { continue };
            let mut store = disk.get().cold(cut.filter(|(at, _)| *at == n).map(|(_, ops)| ops));
            if fails == Some(n) && self.rotten.is_none_or(|rotten| rotten == n) {
                store.write_error = 0.1;
            }
            stores.insert(number, Box::new(store) as Box<dyn ColdStore>);
        }
        let (whole, _) = life.control.names();
        let view = Arc::clone(life.engine.view());
        let wal: Vec<u8> = whole.iter().filter_map(|name| life.tier.numbers[name.parse::<usize>().ok()?]).collect();
        let mut store = Stores::new(&mut stores, &view, wal);
        let sort_memory_bytes = self.config.cold.as_ref().map_or(0, |cold| cold.sort_memory_bytes);
        // Batches are small here: of a few thousand bytes, so that many blocks are.
        let keep_block_bytes = sort_memory_bytes / 16;
        let (log_id, now_ms) = (life.report.volume_id, self.now.wall_ms);
        view.hurry(matches!(job, Job::Merge { .. }) && self.now.monotonic.subsec_micros().is_multiple_of(8));
        let result = Workshop { store: &mut store, view: &view, log_id, sort_memory_bytes, keep_block_bytes, now_ms }.run(&job);
        // What a dying disk does not read comes to nothing: nothing more is written on it either.
        let sound = whole.iter().any(|name| name.parse().is_ok_and(|n: usize| !self.disks[n].get().is_dead()));
        self.note_job(&job, &result, sound)?;
        if matches!(result, Err(JobError::Disk(DiskError::Closed { .. }))) {
            self.tier.as_mut().expect("it is there").dark = true;
            self.tally.jobs_cut += 1;
            return Ok(());
        }
        match (&job, &result) {
            (Job::Remove { files }, _) => files.iter().for_each(|(number, _)| life.reads.forget_cold(*number)),
            (Job::Mend { place, .. }, Ok(_)) => life.reads.forget_cold(place.number),
            _ => {}
        }
        life.engine.job_done(result);
        self.look_at_volumes(life);
        self.pump(life)
    }

    /// What the harness must know of it.
    fn note_job(&mut self, job: &Job, result: &Result<Done, JobError>, sound: bool) -> Result<(), String> {
        let tier = self.tier.as_mut().expect("it is there");
        let mut made = BTreeMap::new();
        match result {
            Ok(Done::Made { segments, damaged, .. }) => {
                if *damaged > 0 && sound {
                    return Err("the sorter left records out that one copy had".to_owned());
                }
                made.extend(segments.iter().copied());
            }
            Ok(Done::Merged { segment, .. }) => made.extend(*segment),
            Ok(Done::WalScrubbed { mended, lost_at, damaged, .. }) => {
                self.tally.wal_scrubs += 1;
                self.tally.wal_mended += mended;
                if !lost_at.is_empty() && sound {
                    return Err(format!("the scrub found frames on no copy that one copy had: {job:?} at {lost_at:?}"));
                }
                if !damaged.is_empty() && sound && self.rotten.is_none() && self.disks.iter().all(|disk| !disk.get().is_dead()) {
                    return Err(format!("the WAL has rotted on sound disks: {job:?} on {damaged:?}"));
                }
            }
            Ok(Done::Mended { made, lost, .. }) => {
                self.tally.copied += made.len() as u64;
                if let (Some(lost), Job::Mend { place, from, .. }) = (lost, job)
                    && from.len() == place.entry.holders().len()
                    && self.rotten.is_none()
                {
                    return Err(format!("segment {} has rotted on sound disks: {lost}", place.number));
                }
                // A change of its copies may be durable before anybody says so.
                if let Job::Mend { place, to, .. } = job {
                    tier.fresh.extend(place.entry.holders().iter().chain(to).map(|number| vec![*number]));
                }
            }
            _ => {}
        }
        for entry in made.values() {
            tier.fresh.push(entry.holders().to_vec());
            if entry.copies == 1 {
                self.tally.single += 1;
            } else {
                self.tally.doubled += 1;
            }
        }
        Ok(())
    }

    /// What befalls volumes.
    pub(super) fn disturb_volumes(&mut self, life: &mut Life) -> Result<(), String> {
        self.look_at_volumes(life);
        let Some(tier) = &mut self.tier else { return Ok(()) };
        match tier.rng.u32(0..6) {
            0 | 1 => {
                // Somebody frees space, or takes it.
                let n = tier.rng.usize(0..3);
                let room = if tier.rng.bool() { usize::MAX } else { tier.rng.usize(20..2000) << 10 };
                if let Some(disk) = self.volume_disk(n).filter(|_| self.rotten.is_none_or(|rotten| rotten == n)) {
                    disk.get().cold_bytes_max = room;
                }
            }
            // Where one disk rots the other must keep what it has.
            2 if self.rotten.is_none() => {
                let number = life.tier.numbers[tier.rng.usize(0..3)];
                let drain = tier.rng.u32(0..3) == 0;
                if let Some(number) = number {
                    // It may be the only one.
                    let _ = life.engine.volume_drain(number, drain);
                }
            }
            3 => {
                let missing: Vec<u8> = {
                    let volumes = life.engine.view().volumes();
                    let gone = volumes.iter().filter(|(_, volume)| volume.health == Health::Offline);
                    // As `LogHandle::volume_forget` does, a copy that is being filled included.
                    let copies = life.control.status().copies;
                    let in_use = |name: &str| copies.iter().any(|copy| copy.name == name && copy.state != CopyState::Offline);
                    gone.filter(|(_, volume)| !in_use(&volume.name)).map(|(number, _)| number).collect()
                };
                for number in missing {
                    let _ = life.engine.volume_forget(number, false);
                }
            }
            4 if tier.third.is_some() && !tier.only[THIRD] && self.rotten.is_none() => {
                let disk = self.volume_disk(THIRD).expect("it is there");
                disk.get().die();
                self.tally.died += 1;
            }
            5 => {
                if let Some(rotten) = self.rotten {
                    self.disks[rotten].get().rot_now();
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Between two lives: the third disk may be replaced.
    pub(super) fn renew_third(&mut self) {
        let seed = self.tier.as_mut().map_or(0, |tier| tier.rng.u64(..));
        let dead = self.volume_disk(THIRD).is_some_and(|disk| disk.get().is_dead());
        let Some(tier) = &mut self.tier else { return };
        if tier.third.is_some() && !tier.only[THIRD] && (dead || tier.rng.u32(0..12) == 0) {
            tier.third = Some(Shared::new(seed, self.faults[0]));
            tier.fresh_uuid(THIRD);
            // What the others have may be all there is now.
            tier.only = [true; 3];
            self.tally.replaced += 1;
        }
    }
}
