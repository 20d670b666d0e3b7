//! What the engine decides about volumes: which directory gets which number, where new segments go, which copies are owed, what
//! is looked at next.
//!
//! A segment should lie on as many active volumes as its class wants copies. A volume that is away counts for a while (it may come
//! back), one that is drained does not. Where there are too few and another volume can take one, a job makes it; then the manifest
//! names it; then what is not needed any more is removed. So at no time has a segment fewer copies than before.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::Engine;
use super::cold::{Cold, Running, put};
use super::scrub::WalRound;
use crate::cold::job::{Done, Job};
use crate::cold::manifest::{ManifestError, VolumeEntry, VolumeUse, cold_key, parse_volume_key, volume_key};
use crate::cold::stores::WritePlan;
use crate::format::Uuid;
use crate::types::{Append, ClassId, MetaOp};
use crate::view::{ColdPlace, View};
use crate::volumes::{Health, Volume, Volumes};

/// Wait before the copies of a segment are looked at again where that did not go well.
const MEND_RETRY: Duration = Duration::from_secs(60);
/// A volume that was full is tried again.
const FULL_RETRY: Duration = Duration::from_secs(30);

/// A change of one entry of the manifest, at most: key, value and their heads.
const GATHER_OP_BYTES: usize = 256;

/// Why a volume cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VolumeError {
    /// The log has no cold tier, so nothing lies on volumes.
    #[error("the log has no cold tier: open it with one, volumes hold its segments")]
    NoColdTier,
    /// All 256 have been given out.
    #[error("the log has had 256 volumes, and no number is given out twice: it can take no more")]
    NoNumberLeft,
    /// It was let go of for good.
    #[error("the directory is volume {0} of this log, which was detached for good: empty it to attach it as a new one")]
    Gone(u8),
    /// There is no such volume.
    #[error("the log has no volume {0}")]
    Unknown(u8),
    /// Segments have a copy only there.
    #[error(
        "volume {number} holds the only copy of {segments} cold segments: drain it first, or detach it by force and lose them"
    )]
    OnlyCopy {
        /// Of the volume.
        number: u8,
        /// How many.
        segments: usize,
    },
    /// Nothing would be left.
    #[error("volume {0} is the only one that takes new segments: attach another one first")]
    LastOne(u8),
}

/// Why the copies of a segment are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MendWhy {
    /// A copy was found damaged.
    Doubt,
    /// It has not the copies it should have, or has them in the wrong place.
    Owed,
    /// It was its turn.
    Scrub,
}

/// What is to do to volumes and copies.
#[derive(Debug, Default)]
pub(super) struct Upkeep {
    /// Changes of the table that wait for their turn.
    table: VecDeque<(u8, VolumeEntry)>,
    /// Some are on their way into the log.
    table_in_change: bool,
    /// Not looked at before this.
    later: BTreeMap<u32, Duration>,
    /// Since when a volume is away.
    away: BTreeMap<u8, Duration>,
    /// Since when a volume is full.
    full: BTreeMap<u8, Duration>,
    /// Something of these is lost on every copy; that is reported.
    lost: BTreeSet<u32>,
    /// The scrub has done all up to this one.
    scrubbed_to: u32,
    pub(super) scrub_at: Duration,
    /// And of the WAL.
    pub(super) wal: WalRound,
    /// What is owed, at the last look.
    owed: (u64, u64),
}

impl Upkeep {
    /// What was on its way into the log is durable.
    pub(super) fn table_written(&mut self) {
        self.table_in_change = false;
    }
}

/// The volumes that the metadata names.
pub fn named_volumes(meta: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<Vec<(u8, VolumeEntry)>, ManifestError> {
    let number = |key: &Vec<u8>| parse_volume_key(key);
    meta.iter()
        .filter_map(|(key, value)| Some((number(key)?, value)))
        .map(|(number, value)| Ok((number, VolumeEntry::decode(number, value)?)))
        .collect()
}

/// Volumes that have not been cleaned and can be.
pub(super) fn volumes_to_clean(cold: &Cold, view: &View) -> Option<Vec<u8>> {
    let volumes = view.volumes();
    let due: Vec<u8> = cold.to_clean.iter().copied().filter(|number| volumes.takes_changes(*number)).collect();
    (!due.is_empty()).then_some(due)
}

impl<T> Engine<T> {
    /// A directory with this identity is there: at start, or attached now. Returns its number.
    pub fn volume_found(&mut self, uuid: Uuid, name: &str) -> Result<u8, VolumeError> {
        let Some(cold) = &mut self.cold else { return Err(VolumeError::NoColdTier) };
        let mut volumes = self.view.volumes();
        let number = match volumes.number_of(&uuid) {
            Some(number) if volumes.get(number).is_some_and(|volume| volume.usage == VolumeUse::Gone) => {
                return Err(VolumeError::Gone(number));
            }
            Some(number) => number,
            None => {
                let next = volumes.iter().last().map_or(Some(0), |(last, _)| last.checked_add(1));
                let number = next.ok_or(VolumeError::NoNumberLeft)?;
                let entry = VolumeEntry { usage: VolumeUse::Active, uuid, created_ms: self.now.wall_ms };
                volumes.joins(number, &entry);
                cold.upkeep.table.push_back((number, entry));
                number
            }
        };
        volumes.found(number, name);
        drop(volumes);
        cold.to_clean.insert(number);
        cold.unsound.clear();
        cold.upkeep.later.clear();
        cold.upkeep.away.remove(&number);
        cold.upkeep.full.remove(&number);
        self.cold_has_news();
        Ok(number)
    }

    /// A volume is not there any more.
    pub fn volume_lost(&mut self, number: u8, reason: &str) {
        self.view.volumes().lost(number, reason);
        self.cold_has_news();
    }

    /// The volume takes no new segments, and those it has move to others; or, taken back, it takes some again.
    pub fn volume_drain(&mut self, number: u8, drain: bool) -> Result<(), VolumeError> {
        if drain && !self.others_take_writes(number) {
            return Err(VolumeError::LastOne(number));
        }
        self.change_volume(number, if drain { VolumeUse::Draining } else { VolumeUse::Active })
    }

    /// Forgets a volume for good. Unless by force only when no segment is left without a copy.
    pub fn volume_forget(&mut self, number: u8, force: bool) -> Result<(), VolumeError> {
        if self.cold.is_none() {
            return Err(VolumeError::NoColdTier);
        }
        if !self.others_take_writes(number) {
            return Err(VolumeError::LastOne(number));
        }
        let only = self.only_on(number);
        if only > 0 && !force {
            return Err(VolumeError::OnlyCopy { number, segments: only });
        }
        self.change_volume(number, VolumeUse::Gone)?;
        // Its directory must not be taken back while that waits to be written: it would be used, and refused at the next start.
        self.view.volumes().forgotten(number);
        self.volume_lost(number, "it was detached for good");
        Ok(())
    }

    /// Every cold segment lies on this volume from now on, and there is no other one: what was restored from several disks into one
    /// directory. Done when [`Engine::is_gathering`] says no.
    pub(crate) fn gather(&mut self, number: u8) {
        let mut ops: Vec<MetaOp> = Vec::new();
        for (other, entry) in named_volumes(&self.view.meta()).expect("recovery has read them") {
            let usage = if other == number { VolumeUse::Active } else { VolumeUse::Gone };
            if entry.usage != usage {
                ops.push(put(&volume_key(other), &VolumeEntry { usage, ..entry }.encode()));
            }
        }
        for place in self.view.tables().cold.iter().filter(|place| place.entry.holders() != [number]) {
            ops.push(put(&cold_key(place.number), &place.entry.on(&[number]).encode()));
        }
        let per_append = (self.limits.frame_bytes_max / 2 / GATHER_OP_BYTES).max(1);
        let appends = ops.chunks(per_append).map(|ops| Append { meta: ops.to_vec(), ..Append::default() }).collect();
        if let Some(cold) = &mut self.cold {
            cold.change_in_turn(appends);
        }
    }

    /// Whether that is not durable yet.
    pub(crate) fn is_gathering(&self) -> bool {
        self.cold.as_ref().is_some_and(Cold::is_changing)
    }

    fn only_on(&self, number: u8) -> usize {
        let places = std::sync::Arc::clone(&self.view.tables().cold);
        let volumes = self.view.volumes();
        let only = |holders: &[u8]| {
            holders.contains(&number) && !holders.iter().any(|other| *other != number && volumes.is_online(*other))
        };
        places.iter().filter(|place| only(place.entry.holders())).count()
    }

    fn others_take_writes(&self, number: u8) -> bool {
        let volumes = self.view.volumes();
        volumes
            .iter()
            .any(|(other, volume)| other != number && volume.usage == VolumeUse::Active && volume.health != Health::Offline)
    }

    fn change_volume(&mut self, number: u8, usage: VolumeUse) -> Result<(), VolumeError> {
        let Some(cold) = &mut self.cold else { return Err(VolumeError::NoColdTier) };
        let volumes = self.view.volumes();
        let volume = volumes.get(number).filter(|volume| volume.usage != VolumeUse::Gone).ok_or(VolumeError::Unknown(number))?;
        // As the table has it, or will have it when what waits is done.
        let waiting = cold.upkeep.table.iter().rev().find(|(other, _)| *other == number).map(|(_, entry)| entry.created_ms);
        let stored = self.view.meta().get(&volume_key(number)[..]).and_then(|value| VolumeEntry::decode(number, value).ok());
        let created_ms = waiting.or(stored.map(|entry| entry.created_ms)).unwrap_or(self.now.wall_ms);
        cold.upkeep.table.push_back((number, VolumeEntry { usage, uuid: volume.uuid, created_ms }));
        drop(volumes);
        self.cold_has_news();
        Ok(())
    }

    /// Writes down what waits to be written into the table, whatever the sorter is at: it uses only volumes that are in it.
    pub(super) fn table_changes(&mut self) {
        let Some(cold) = &mut self.cold else { return };
        if cold.upkeep.table.is_empty() {
            return;
        }
        let changes = std::mem::take(&mut cold.upkeep.table);
        cold.upkeep.table_in_change = true;
        cold.change(changes.into_iter().map(|(number, entry)| put(&volume_key(number), &entry.encode())).collect());
    }

    /// Whether everything that was ordered for volumes is durable.
    pub fn volumes_are_written(&self) -> bool {
        self.cold.as_ref().is_none_or(|cold| cold.upkeep.table.is_empty() && !cold.upkeep.table_in_change)
    }

    /// Where new segments go: where there is most room.
    pub(super) fn write_plan(&self) -> WritePlan {
        let mut used: BTreeMap<u8, u64> = BTreeMap::new();
        for place in self.view.tables().cold.iter() {
            place.entry.holders().iter().for_each(|volume| *used.entry(*volume).or_default() += place.entry.stored_bytes());
        }
        let volumes = self.view.volumes();
        if volumes.is_implicit() {
            return WritePlan { volumes: vec![0], ..WritePlan::default() };
        }
        let mut takers: Vec<u8> =
            volumes.iter().map(|(number, _)| number).filter(|number| volumes.takes_writes(*number)).collect();
        // Better on a doubtful disk than nowhere, or on one that is to be emptied: without sorting the log would stand still.
        for usage in [VolumeUse::Active, VolumeUse::Draining] {
            let usable = |volume: &Volume| volume.named && volume.usage == usage && !volume.no_writes;
            if takers.is_empty() {
                let online = volumes.iter().filter(|(number, volume)| volumes.is_online(*number) && usable(volume));
                takers = online.map(|(number, _)| number).collect();
            }
        }
        takers.sort_by_key(|number| {
            let volume = volumes.get(*number).expect("listed");
            (volume.full, std::cmp::Reverse(volume.free_bytes.unwrap_or(0)), used.get(number).copied().unwrap_or(0))
        });
        // One failure puts a volume out, and what is left may fail all the time.
        let usable = |number: u8, volume: &Volume| volume.named && volume.no_writes && volumes.is_online(number);
        let last_resort = volumes.iter().filter(|(number, volume)| usable(*number, volume)).map(|(number, _)| number).collect();
        let policies = self.cold.iter().flat_map(|cold| &cold.policies);
        let single = policies.filter(|(_, policy)| policy.copies == Some(1)).map(|(class, _)| *class).collect();
        WritePlan { volumes: takers, last_resort, single }
    }

    pub(super) fn volumes_cleaned(&mut self, cleaned: &[u8], missing: &[(u32, u8)]) {
        let cold = self.cold.as_mut().expect("only then are there jobs");
        cold.to_clean.retain(|volume| !cleaned.contains(volume));
        let tables = self.view.tables();
        let mut volumes = self.view.volumes();
        for (number, volume) in missing {
            let holders = tables.cold_place(*number).map_or(Vec::new(), |place| place.entry.holders().to_vec());
            if holders.len() > 1 {
                tracing::error!(number, volume, "a copy of a cold segment is missing: it will be made anew from the other one");
                volumes.copy_bad(*volume, *number);
            } else {
                tracing::error!(
                    number,
                    volume,
                    "the file of a cold segment is missing: what it held is lost, unless its disk comes back"
                );
            }
        }
    }

    /// The next segment whose copies want looking at.
    pub(super) fn mend_job(&mut self) -> Option<(Running, Job)> {
        self.note_times();
        let owed = self.owed_job();
        let (place, from, to, after, why) = match self.doubtful_job().or(owed) {
            Some(urgent) => urgent,
            None => match self.wal_scrub_job() {
                Some(job) => return Some(job),
                None => self.scrub_job()?,
            },
        };
        Some((Running::Mend { number: place.number, after, why }, Job::Mend { place, from, to }))
    }

    /// Since when volumes are away or full.
    fn note_times(&mut self) {
        let now = self.now.monotonic;
        let Some(cold) = &mut self.cold else { return };
        let mut volumes = self.view.volumes();
        let numbers: Vec<u8> = volumes.iter().map(|(number, _)| number).collect();
        for number in numbers {
            if volumes.is_online(number) {
                cold.upkeep.away.remove(&number);
            } else {
                cold.upkeep.away.entry(number).or_insert(now);
            }
            if volumes.get(number).is_some_and(|volume| volume.full) {
                let since = *cold.upkeep.full.entry(number).or_insert(now);
                if now >= since + FULL_RETRY {
                    volumes.has_room(number);
                    cold.upkeep.full.remove(&number);
                }
            } else {
                cold.upkeep.full.remove(&number);
            }
        }
        cold.upkeep.later.retain(|_, at| now < *at);
    }

    fn doubtful_job(&self) -> Option<MendPlan> {
        let cold = self.cold.as_ref()?;
        let tables = self.view.tables();
        let mut volumes = self.view.volumes();
        let doubtful: Vec<u32> = volumes.doubtful().collect();
        for number in doubtful {
            let Some(place) = tables.cold_place(number) else {
                volumes.is_settled(number);
                continue;
            };
            let from = volumes.readable(place.entry.holders());
            // One copy alone cannot be mended; the scrub comes by to say what is lost.
            if from.len() > 1 && !cold.upkeep.later.contains_key(&number) {
                return Some((**place, from, Vec::new(), place.entry.holders().to_vec(), MendWhy::Doubt));
            }
        }
        None
    }

    /// The first segment that has too few copies, or one on a volume that is to be rid of it. Counts all that is owed.
    fn owed_job(&mut self) -> Option<MendPlan> {
        let places = std::sync::Arc::clone(&self.view.tables().cold);
        let takers = self.write_plan().volumes;
        let cold = self.cold.as_mut()?;
        let volumes = self.view.volumes();
        if volumes.is_implicit() {
            return None;
        }
        let takers: Vec<u8> = takers.into_iter().filter(|number| volumes.takes_writes(*number)).collect();
        let patience = cold.config().missing_patience;
        let mut owed = (0, 0);
        let mut first = None;
        for place in places.iter() {
            let plan = plan_for(place, &volumes, &takers, cold, patience, self.now.monotonic);
            let Some((from, to, after)) = plan else { continue };
            if !to.is_empty() {
                owed = (owed.0 + 1, owed.1 + place.entry.stored_bytes());
            }
            let may = first.is_none()
                && !cold.upkeep.later.contains_key(&place.number)
                && to.iter().all(|number| volumes.get(*number).is_some_and(|volume| !volume.full));
            if may {
                first = Some((**place, from, to, after, MendWhy::Owed));
            }
        }
        cold.upkeep.owed = owed;
        (self.counters.cold_copies_owed, self.counters.cold_bytes_owed) = owed;
        first
    }

    fn scrub_job(&mut self) -> Option<MendPlan> {
        let now = self.now.monotonic;
        let tables = self.view.tables();
        let cold = self.cold.as_mut()?;
        let rate = cold.config().scrub_bytes_per_s.filter(|rate| *rate > 0)?;
        if now < cold.upkeep.scrub_at {
            return None;
        }
        let volumes = self.view.volumes();
        let due = tables.cold.iter().filter(|place| place.number > cold.upkeep.scrubbed_to);
        let due = due.filter(|place| !volumes.readable(place.entry.holders()).is_empty()).min_by_key(|place| place.number);
        let Some(place) = due else {
            cold.upkeep.scrubbed_to = 0;
            cold.upkeep.wal.ends();
            cold.upkeep.scrub_at = now + cold.config().scrub_every;
            return None;
        };
        let from = volumes.readable(place.entry.holders());
        let bytes = place.entry.stored_bytes() * from.len() as u64;
        cold.upkeep.scrubbed_to = place.number;
        cold.upkeep.scrub_at = now + Duration::from_micros(bytes.saturating_mul(1_000_000) / rate);
        Some((**place, from, Vec::new(), place.entry.holders().to_vec(), MendWhy::Scrub))
    }

    pub(super) fn mend_later(&mut self, number: u32) {
        let at = self.now.monotonic + MEND_RETRY;
        self.cold.as_mut().expect("only then are there jobs").upkeep.later.insert(number, at);
    }

    /// What came of it.
    pub(super) fn segment_mended(&mut self, number: u32, after: &[u8], why: MendWhy, done: Done) {
        let Done::Mended { whole, made, damaged, lost, read_bytes, made_bytes } = done else {
            unreachable!("asked for nothing else")
        };
        self.counters.scrubbed_bytes += read_bytes;
        self.counters.cold_copies_made += made.len() as u64;
        self.counters.cold_copied_bytes += made_bytes;
        self.counters.cold_copies_damaged += damaged.len() as u64;
        let cold = self.cold.as_mut().expect("only then are there jobs");
        if let Some(what) = &lost {
            if cold.upkeep.lost.insert(number) {
                self.counters.cold_segments_lost += 1;
                tracing::error!(number, what, "a cold segment is damaged: readers meet a gap there");
            }
        } else {
            cold.unsound.remove(&number);
        }
        for volume in &damaged {
            tracing::error!(number, volume, rewritten = made.contains(volume), "a copy of a cold segment was damaged or missing");
        }
        let holds = |volume: &u8| whole.contains(volume) || made.contains(volume);
        let good = after.iter().all(holds);
        if good || lost.is_some() {
            self.view.volumes().is_settled(number);
        }
        let place = self.view.tables().cold_place(number).map(|place| **place);
        let changes = place.filter(|place| place.entry.holders() != after);
        match changes {
            // A copy that was made now has whatever could still be read anywhere.
            Some(place) if good || (lost.is_some() && after.iter().any(|volume| made.contains(volume))) => {
                let cold = self.cold.as_mut().expect("only then are there jobs");
                cold.change(vec![put(&cold_key(number), &place.entry.on(after).encode())]);
            }
            None if good || why == MendWhy::Scrub => {}
            _ => self.mend_later(number),
        }
    }
}

/// Segment, where it is read, where it is to be made, who holds it then, and why.
type MendPlan = (ColdPlace, Vec<u8>, Vec<u8>, Vec<u8>, MendWhy);

/// What is to do so that a segment lies where it should: where it is read, where it is made, who holds it then.
fn plan_for(
    place: &ColdPlace,
    volumes: &Volumes,
    takers: &[u8],
    cold: &Cold,
    patience: Duration,
    now: Duration,
) -> Option<(Vec<u8>, Vec<u8>, Vec<u8>)> {
    let holders = place.entry.holders();
    let from = volumes.readable(holders);
    if from.is_empty() {
        return None;
    }
    let may_come_back = |number: &u8| cold.upkeep.away.get(number).is_none_or(|since| now < *since + patience);
    let counts = |number: &u8| {
        let active = volumes.get(*number).is_some_and(|volume| volume.usage == VolumeUse::Active);
        let fails = volumes.get(*number).is_some_and(|volume| volume.no_writes);
        active && !fails && (volumes.is_online(*number) || may_come_back(number))
    };
    let mut stay: Vec<u8> = holders.iter().copied().filter(counts).collect();
    let policy = cold.policies.get(&ClassId(place.entry.class));
    let single = policy.is_some_and(|policy| policy.copies == Some(1));
    let wanted = if single { 1 } else { 2 };
    if stay.len() < wanted
        && let Some(target) = takers.iter().find(|number| !holders.contains(number))
    {
        stay.push(*target);
        return Some((from, vec![*target], stay));
    }
    if stay.len() > wanted {
        // The one that is there, if only one is.
        stay.sort_by_key(|number| !from.contains(number));
        stay.truncate(wanted);
        return Some((from, Vec::new(), stay));
    }
    let leaves = |number: &u8| volumes.get(*number).is_some_and(|volume| volume.usage != VolumeUse::Active);
    if !stay.is_empty() && stay.iter().any(|number| from.contains(number)) && holders.iter().any(leaves) {
        stay.retain(|number| from.contains(number));
        return Some((from, Vec::new(), stay));
    }
    None
}
