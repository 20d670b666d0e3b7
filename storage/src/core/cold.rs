//! What the engine decides about the cold tier: when full WAL segments are sorted, when they may be used again, which cold
//! segments there are. The work is done elsewhere (`cold/job.rs`); here one job at a time is handed out, and what came of it is
//! written into the manifest.
//!
//! The manifest is metadata under reserved keys, so it is changed by an append like any other ([`Edit`]), which shares a frame
//! with what happens to wait. Only when that frame is durable do readers see the new segments, is the WAL free to be used again,
//! are files removed. A crash before that leaves files without a name, which the first job of the next life removes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::volumes::{MendWhy, Upkeep, volumes_to_clean};
use super::{Engine, Life, Output};
use crate::cold::job::{Compact, Done, Files, Job, JobError};
use crate::cold::manifest::{
    FLUSHED_KEY, Flushed, ManifestEntry, NUMBER_KEY, NextNumber, VolumeEntry, cold_key, parse_cold_key, parse_volume_key,
};
use crate::cold::wal::WalSegment;
use crate::cold::{Packing, Promotion};
use crate::config::{ClassPolicy, ColdConfig};
use crate::disk::{DiskError, FileId};
use crate::format::BLOCK;
use crate::types::{Append, ClassId, MetaOp, PartitionId, PartitionOp};
use crate::view::ColdPlace;

/// First byte of the keys that belong to the log.
pub(super) const RESERVED_KEY: u8 = 0;
/// WAL segments sorted by one job: where the WAL is at its bound, producers wait for one.
pub(crate) const SEGMENTS_PER_SORT: usize = 2;
/// Wait before a job that failed is tried again.
const JOB_RETRY: Duration = Duration::from_secs(1);

/// Key and value of a promoted segment in the manifest, and what they take in memory beside.
const MANIFEST_ENTRY_BYTES: usize = 128;

/// Files of promoted segments kept to be used again: retention takes out several at once, and what is removed is made anew with zeros.
const REUSABLE_MAX: usize = 8;

/// What needs no news to become due: age, and space that somebody else took.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The engine's side of the cold tier.
#[derive(Debug)]
pub(super) struct Cold {
    config: ColdConfig,
    /// WAL segments up to this sequence are in cold segments, durably.
    pub(super) flushed: u64,
    number_next: u32,
    /// What the sorter is at.
    running: Option<Running>,
    edit: Option<Edit>,
    /// How classes are kept; one that is not here is kept for ever.
    pub(super) policies: BTreeMap<ClassId, ClassPolicy>,
    /// Not merged: damaged, until they are found whole or leave. Their neighbours are merged without them.
    pub(super) unsound: BTreeSet<u32>,
    /// Not merged with one another: a partition was in another class between them.
    apart: BTreeSet<(u32, u32)>,
    /// By segment, up to where partitions are compacted that want another pass.
    clean_to: BTreeMap<u32, BTreeMap<PartitionId, i64>>,
    /// Out of the manifest, or not needed on these volumes any more; their files go next.
    pub(super) leaving: Vec<(u32, Files)>,
    /// Promoted segments that are out of the manifest: their files may be WAL segments again, then they go.
    reusable: VecDeque<(u32, Files)>,
    /// Sequences of WAL segments whose files are promoted segments as well.
    pub(super) linked: BTreeSet<u64>,
    /// Volumes on which there may be files that no manifest names.
    pub(super) to_clean: BTreeSet<u8>,
    pub(super) upkeep: Upkeep,
    retry_at: Option<Duration>,
    /// When the last segment was full; none since the start.
    pub(super) filled_ms: Option<u64>,
    /// Nothing was to do: not looked at again before this, unless something happens.
    look_at: Duration,
    /// The last job failed for want of space.
    pub(super) disk_full: bool,
    /// Or for another reason, and none has gone well since.
    failing: Option<String>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Running {
    Clean,
    /// Up to this sequence.
    Sort(u64),
    /// These become one.
    Merge {
        inputs: Vec<u32>,
        compacts: bool,
    },
    /// Its partitions' ends are wanted before it goes.
    Spans {
        number: u32,
        why: Why,
    },
    Remove(Vec<(u32, Files)>),
    /// Copies of the WAL segment with this sequence are looked at.
    ScrubWal(u64),
    /// Its copies are looked at; when that went well these hold it.
    Mend {
        number: u32,
        after: Vec<u8>,
        why: MendWhy,
    },
}

impl Running {
    /// For people.
    fn is_about(&self) -> &'static str {
        match self {
            Running::Clean => "tidied up",
            Running::Sort(_) => "sorted",
            Running::Merge { compacts: false, .. } => "merged",
            Running::Merge { compacts: true, .. } => "compacted",
            Running::Spans { .. } | Running::Remove(_) => "let segments go",
            Running::ScrubWal(_) | Running::Mend { .. } => "looked at copies",
        }
    }
}

/// Why a segment goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// Its class keeps records for so long, or so many bytes.
    Retention,
    /// The disk is full, and its class gives way.
    Space,
}

/// A change of the manifest: appends that go into the log one after another.
#[derive(Debug)]
struct Edit {
    appends: VecDeque<Append>,
    /// Whether the first of them is on its way.
    submitted: bool,
}

impl Cold {
    /// From the metadata that recovery found.
    pub(super) fn new(config: ColdConfig, meta: &BTreeMap<Vec<u8>, Vec<u8>>, first_sequence: u64) -> Cold {
        let places = named_segments(meta).expect("recovery has read them");
        let promoted = places.iter().filter_map(|place| place.entry.promoted);
        let linked = promoted.map(|wal| wal.sequence).filter(|sequence| *sequence >= first_sequence).collect();
        let flushed = meta.get(FLUSHED_KEY).and_then(|value| Flushed::decode(value).ok());
        let number = meta.get(NUMBER_KEY).and_then(|value| NextNumber::decode(value).ok());
        Cold {
            config,
            flushed: flushed.map_or(0, |flushed| flushed.0),
            number_next: number.map_or(1, |number| number.0),
            running: None,
            edit: None,
            policies: BTreeMap::new(),
            unsound: BTreeSet::new(),
            apart: BTreeSet::new(),
            clean_to: BTreeMap::new(),
            leaving: Vec::new(),
            reusable: VecDeque::new(),
            linked,
            to_clean: BTreeSet::from([0]),
            upkeep: Upkeep::default(),
            retry_at: None,
            filled_ms: None,
            look_at: Duration::ZERO,
            disk_full: false,
            failing: None,
        }
    }

    /// Most WAL segments there may be.
    pub(super) fn wal_segments_max(&self, segment_bytes: u64) -> usize {
        // Fewer than four could not be sorted and written at the same time.
        (self.config.wal_bytes_max / segment_bytes).max(4) as usize
    }

    pub(super) fn config(&self) -> &ColdConfig {
        &self.config
    }

    /// Whether one segment may be made of these.
    pub(super) fn may_merge(&self, segments: &[&Arc<ColdPlace>]) -> bool {
        let holds = |number: u32| segments.iter().any(|place| place.number == number);
        segments.iter().all(|place| !self.unsound.contains(&place.number))
            && !self.apart.iter().any(|(before, after)| holds(*before) && holds(*after))
    }

    /// Of a class, segments that follow one another and of which one may be made, as many as there are each time. What cannot be
    /// merged with any is left out.
    pub(super) fn parts_to_merge<'a>(&self, segments: &'a [&'a Arc<ColdPlace>]) -> Vec<&'a [&'a Arc<ColdPlace>]> {
        if self.may_merge(segments) {
            return vec![segments];
        }
        let mut parts = Vec::new();
        let mut from = 0;
        for at in 0..segments.len() {
            if !self.may_merge(&segments[from..=at]) {
                parts.push(&segments[from..at]);
                from = at + usize::from(!self.may_merge(&segments[at..=at]));
            }
        }
        parts.push(&segments[from..]);
        parts.retain(|part| !part.is_empty());
        parts
    }

    /// Where the compaction that made this segment stopped, if it is to go on.
    pub(super) fn clean_to(&self, number: u32) -> BTreeMap<PartitionId, i64> {
        self.clean_to.get(&number).cloned().unwrap_or_default()
    }

    fn is_idle(&self) -> bool {
        self.running.is_none() && self.edit.is_none()
    }

    /// Several, one after another, behind what is being changed already.
    pub(super) fn change_in_turn(&mut self, appends: VecDeque<Append>) {
        match &mut self.edit {
            Some(edit) => edit.appends.extend(appends),
            edit => *edit = Some(Edit { appends, submitted: false }).filter(|edit| !edit.appends.is_empty()),
        }
    }

    pub(super) fn is_changing(&self) -> bool {
        self.edit.is_some()
    }

    /// One change of the manifest.
    pub(super) fn change(&mut self, meta: Vec<MetaOp>) {
        self.change_in_turn(VecDeque::from([Append { meta, ..Append::default() }]));
    }
}

impl<T> Engine<T> {
    /// A job is done, or failed.
    pub fn job_done(&mut self, result: Result<Done, JobError>) {
        self.cold_has_news();
        let Some(cold) = &mut self.cold else { return };
        let running = cold.running.take().expect("one job at a time, and each is answered once");
        let done = match result {
            Ok(done) => done,
            Err(error) => return self.job_failed(running, &error),
        };
        cold.retry_at = None;
        // That of a mere look says nothing of the room there is.
        let looked = matches!(running, Running::Mend { .. } | Running::ScrubWal(_));
        cold.disk_full &= looked;
        cold.failing.take_if(|_| !looked);
        match (running, done) {
            (Running::Clean, Done::Cleaned { volumes, missing }) => self.volumes_cleaned(&volumes, &missing),
            (Running::Sort(to), Done::Made { segments, damaged, read_bytes }) => {
                self.counters.sorted_from_bytes += read_bytes;
                self.counters.damaged_frames += damaged;
                self.segments_made(&segments, to);
            }
            (Running::Merge { inputs, .. }, Done::Merged { segment, read_bytes, kept_bytes, clean_to, records_removed }) => {
                self.counters.merged_from_bytes += read_bytes;
                self.counters.merged_kept_bytes += kept_bytes;
                self.counters.merged_to_bytes += segment.map_or(0, |(_, entry)| entry.file_bytes);
                self.counters.records_compacted += records_removed;
                if let Some((number, _)) = segment.filter(|_| !clean_to.is_empty()) {
                    cold.clean_to.insert(number, clean_to);
                }
                self.segments_merged(&inputs, segment);
            }
            (Running::Spans { number, why }, Done::Spans { ends }) => self.segment_leaves(number, &ends, why),
            (Running::Remove(_), Done::Removed) => {}
            (Running::ScrubWal(sequence), done @ Done::WalScrubbed { .. }) => self.wal_scrubbed(sequence, done),
            (Running::Mend { number, after, why }, done @ Done::Mended { .. }) => self.segment_mended(number, &after, why, done),
            (running, done) => panic!("{running:?} was answered with {done:?}"),
        }
    }

    fn job_failed(&mut self, running: Running, error: &JobError) {
        let now = self.now.monotonic;
        let cold = self.cold.as_mut().expect("only then are there jobs");
        match (&running, error) {
            (
                Running::Merge { inputs, .. },
                JobError::Cold(_) | JobError::Overlap(_) | JobError::Hole { .. } | JobError::Panicked(_),
            ) => {
                tracing::error!(%error, ?inputs, "cold segments are not merged: one is damaged");
                let culprits = culprits(inputs, error);
                cold.unsound.extend(&culprits);
                if matches!(error, JobError::Cold(_)) {
                    let mut volumes = self.view.volumes();
                    culprits.iter().for_each(|number| volumes.doubt(*number));
                }
                return;
            }
            (Running::Merge { inputs, .. }, JobError::Disk(disk)) if disk.is_of_reading() => {
                tracing::error!(%error, ?inputs, "cold segments are not merged: one cannot be read");
                let culprits = culprits(inputs, error);
                cold.unsound.extend(&culprits);
                let mut volumes = self.view.volumes();
                culprits.iter().for_each(|number| volumes.doubt(*number));
                return;
            }
            (Running::Merge { .. }, JobError::GaveWay) => return,
            (Running::Merge { .. }, JobError::Apart { before, after }) => {
                cold.apart.insert((*before, *after));
                return;
            }
            (Running::ScrubWal(sequence), _) => {
                tracing::warn!(%error, segment = sequence, "the copies of a log segment could not be looked at");
                return;
            }
            (Running::Mend { number, .. }, _) => {
                tracing::warn!(%error, number, "the copies of a cold segment could not be looked at");
                self.mend_later(*number);
                return;
            }
            _ => {}
        }
        if cold.retry_at.is_none() {
            tracing::warn!(%error, while_it = running.is_about(), "the cold tier could not go on; trying again");
        }
        cold.disk_full = error.is_full();
        cold.failing = Some(error.to_string()).filter(|_| !error.is_full());
        cold.retry_at = Some(now + JOB_RETRY);
        if let Running::Remove(files) = running {
            cold.leaving.extend(files);
        }
        if matches!(error, JobError::Disk(disk) if disk.is_of_writing()) {
            // A disk that takes no writes fails the sorter's first, while the log at its bound has none to make: it is asked at once.
            self.superblock_dirty = true;
        }
        self.publish_stats();
    }

    /// Why appends wait and go on waiting: there is no room before something is sorted, and that fails.
    pub(super) fn stalled(&self) -> Option<String> {
        let failing = self.cold.as_ref()?.failing.as_ref()?;
        let bound = self.spares.len() <= self.spares_of_own() && self.wal_is_at_its_bound();
        bound.then(|| format!("the log is at its bound, and what is in it cannot be sorted: {failing}"))
    }

    /// New segments and how far the WAL is free: one change.
    fn segments_made(&mut self, segments: &[(u32, ManifestEntry)], flushed: u64) {
        let cold = self.cold.as_mut().expect("only then are there jobs");
        let mut meta: Vec<MetaOp> = segments.iter().map(|(number, entry)| put(&cold_key(*number), &entry.encode())).collect();
        let next = segments.last().map_or(cold.number_next, |(number, _)| number + 1);
        cold.number_next = next;
        meta.push(put(NUMBER_KEY, &NextNumber(next).encode()));
        meta.push(put(FLUSHED_KEY, &Flushed(flushed).encode()));
        for (_, entry) in segments {
            self.counters.sorted_to_bytes += entry.file_bytes;
            self.counters.sorted_batch_bytes += entry.batch_bytes;
            if entry.promoted.is_some() {
                self.counters.segments_promoted += 1;
                self.counters.promoted_batch_bytes += entry.batch_bytes;
                self.counters.promoted_in_haste += u64::from(entry.is_in_haste());
            }
        }
        cold.change(meta);
    }

    /// One in, several out: one change.
    fn segments_merged(&mut self, inputs: &[u32], segment: Option<(u32, ManifestEntry)>) {
        let cold = self.cold.as_mut().expect("only then are there jobs");
        let mut meta: Vec<MetaOp> = inputs.iter().map(|number| delete(&cold_key(*number))).collect();
        cold.number_next += 1;
        meta.push(put(NUMBER_KEY, &NextNumber(cold.number_next).encode()));
        meta.extend(segment.map(|(number, entry)| put(&cold_key(number), &entry.encode())));
        cold.change(meta);
    }

    /// Starts rise first, in as many frames as it takes; with the last of them the segment is out, so damage to one frame takes both or
    /// neither. A crash between leaves starts that are too high by nothing that could be read.
    fn segment_leaves(&mut self, number: u32, ends: &[(PartitionId, i64)], why: Why) {
        match why {
            Why::Retention => self.counters.segments_expired += 1,
            Why::Space => self.counters.segments_dropped_for_space += 1,
        }
        let per_append = self.limits.frame_bytes_max / 2 / super::change::CHANGE_BYTES;
        let raise = |ends: &[(PartitionId, i64)]| Append {
            partitions: ends.iter().map(|(id, end)| PartitionOp::RaiseStart(*id, *end)).collect(),
            ..Append::default()
        };
        let mut appends: VecDeque<Append> = ends.chunks(per_append).map(raise).collect();
        let mut last = appends.pop_back().unwrap_or_default();
        last.meta.push(delete(&cold_key(number)));
        appends.push_back(last);
        self.cold.as_mut().expect("only then are there jobs").change_in_turn(appends);
    }

    /// Puts the next append of an edit into the log, as soon as one can go.
    pub(super) fn submit_edit(&mut self) {
        if !self.is_at_work() {
            return;
        }
        let Some(edit) = self.cold.as_mut().and_then(|cold| cold.edit.as_mut()) else { return };
        if edit.submitted {
            return;
        }
        edit.submitted = true;
        let append = edit.appends.front().expect("an edit is not empty").clone();
        self.submit_own(append);
    }

    /// An append of the log's own is durable.
    pub(super) fn own_durable(&mut self) {
        let Some(cold) = &mut self.cold else { return };
        let edit = cold.edit.as_mut().expect("it was submitted from there");
        edit.appends.pop_front();
        edit.submitted = false;
        if edit.appends.is_empty() {
            cold.edit = None;
            cold.upkeep.table_written();
            cold.look_at = Duration::ZERO;
        }
    }

    /// The disk is full: it goes again when there is room.
    pub(super) fn own_refused(&mut self) {
        if let Some(edit) = self.cold.as_mut().and_then(|cold| cold.edit.as_mut()) {
            edit.submitted = false;
        }
    }

    /// A reserved key is durable: readers and retention see what it says.
    pub(super) fn own_key_changed(&mut self, op: &MetaOp) {
        let Some(cold) = &mut self.cold else { return };
        match op {
            MetaOp::Put { key, value } if key == FLUSHED_KEY => {
                cold.flushed = Flushed::decode(value).expect("encoded here").0;
            }
            MetaOp::Put { key, value } => {
                if let Some(number) = parse_cold_key(key) {
                    let entry = ManifestEntry::decode(number, value).expect("encoded here");
                    let mut tables = self.view.tables_mut();
                    let mut gone = tables.cold_place(number).map(|place| Files::new(&place.entry));
                    if gone.is_none() {
                        cold.linked.extend(entry.promoted.map(|wal| wal.sequence));
                    }
                    if let Some(gone) = &mut gone {
                        gone.volumes.retain(|volume| !entry.holders().contains(volume));
                    }
                    cold.leaving.extend(gone.filter(|gone| !gone.volumes.is_empty()).map(|gone| (number, gone)));
                    tables.add_cold(ColdPlace { number, entry });
                } else if let Some(number) = parse_volume_key(key) {
                    let entry = VolumeEntry::decode(number, value).expect("encoded here");
                    self.view.volumes().known(number, &entry);
                }
            }
            MetaOp::Delete { key } => {
                if let Some(number) = parse_cold_key(key) {
                    let mut tables = self.view.tables_mut();
                    let files = tables.cold_place(number).map(|place| Files::new(&place.entry));
                    tables.remove_cold(number);
                    // What was kept from being merged for its sake may be merged now.
                    cold.unsound.remove(&number);
                    cold.apart.retain(|(before, after)| *before != number && *after != number);
                    cold.clean_to.remove(&number);
                    match files {
                        // More would only take up space.
                        Some(files) if files.promoted && cold.reusable.len() < REUSABLE_MAX.max(self.limits.spare_segments) => {
                            cold.reusable.push_back((number, files));
                        }
                        files => cold.leaving.extend(files.map(|files| (number, files))),
                    }
                }
            }
        }
    }

    /// The promoted segment whose file is the next to be a WAL segment again.
    pub(super) fn next_reuse(&self, cold: &Cold) -> Option<usize> {
        cold.reusable.iter().position(|(number, _)| !self.pin_holds_cold(*number))
    }

    pub(super) fn take_reuse(&mut self) -> Option<(u32, Files)> {
        let at = self.next_reuse(self.cold.as_ref()?)?;
        self.cold.as_mut()?.reusable.remove(at)
    }

    /// Whether it was of use or not, what is left of the segment goes.
    pub(super) fn reuse_done(&mut self, reuse: Option<(u32, Files)>) {
        if let (Some(cold), Some(reuse)) = (&mut self.cold, reuse) {
            cold.leaving.push(reuse);
            cold.look_at = Duration::ZERO;
        }
    }

    /// Where space is short nothing is kept for later.
    fn let_go_of_reusable(&mut self) {
        if self.disk_is_full()
            && let Some(cold) = &mut self.cold
        {
            cold.leaving.extend(cold.reusable.drain(..));
        }
    }

    /// Which WAL segments may stay as they are. Not while the disk is full: they would be missing in the WAL. Nor when the manifest has grown so
    /// long by them that there is no room for their like: merged segments take less of it.
    fn promotion(&self) -> Option<Promotion> {
        let cold = self.cold.as_ref()?;
        let rules = cold.config.promote.clone()?;
        let tables = self.view.tables();
        if self.disk_is_full() || tables.cold.len() * MANIFEST_ENTRY_BYTES > self.limits.meta_bytes_max / 4 {
            return None;
        }
        let in_haste = (rules.in_burst && self.in_burst()).then_some(tables.cold_unsorted_bytes);
        let compacted = cold.policies.iter().filter(|(_, policy)| policy.compact).map(|(class, _)| *class).collect();
        Some(Promotion { rules, segment_bytes: self.limits.segment_bytes, compacted, in_haste })
    }

    /// Something has happened that may have made a job due.
    pub(super) fn cold_has_news(&mut self) {
        if let Some(cold) = &mut self.cold {
            cold.look_at = Duration::ZERO;
        }
    }

    /// Half of what may wait to be sorted does so: a job that can wait gives way.
    fn tell_hurry(&self) {
        let Some(cold) = &self.cold else { return };
        let newest = self.sealed.back().map_or(0, |newest| newest.sequence);
        let waiting = newest.saturating_sub(cold.flushed).min(self.sealed.len() as u64);
        self.view.hurry(waiting * 2 >= cold.wal_segments_max(self.limits.segment_bytes) as u64);
    }

    /// Hands out the next job, if there is one to do.
    pub(super) fn next_job(&mut self, out: &mut Output<T>) {
        self.tell_hurry();
        let (now, at_work) = (self.now.monotonic, self.is_at_work());
        if at_work {
            self.table_changes();
        }
        let Some(cold) = &mut self.cold else { return };
        if !cold.is_idle() || !at_work || cold.retry_at.is_some_and(|at| now < at) || now < cold.look_at {
            return;
        }
        self.let_go_of_reusable();
        let Some(cold) = &mut self.cold else { return };
        let (running, job) = if let Some(volumes) = volumes_to_clean(cold, &self.view) {
            let tables = self.view.tables();
            let named = tables.cold.iter().map(|place| (place.number, Files::new(&place.entry))).collect();
            (Running::Clean, Job::Clean { volumes, named })
        } else if let Some(files) = self.take_removable() {
            (Running::Remove(files.clone()), Job::Remove { files })
        } else if let Some((place, why)) = self.segment_to_go() {
            (Running::Spans { number: place.number, why }, Job::Spans { place })
        } else if let Some((to, job)) = self.sort_job() {
            (Running::Sort(to), job)
        } else if let Some((inputs, compact)) = self.segments_to_merge() {
            self.merge_job(inputs, compact)
        } else if let Some((running, job)) = self.mend_job() {
            (running, job)
        } else {
            self.cold.as_mut().expect("looked at before").look_at = now + LOOK_EVERY;
            return;
        };
        self.cold.as_mut().expect("looked at before").running = Some(running);
        out.jobs.push(job);
        self.publish_stats();
    }

    fn merge_job(&self, inputs: Vec<ColdPlace>, compact: Option<Compact>) -> (Running, Job) {
        let number = self.cold.as_ref().expect("only then are there jobs").number_next;
        let numbers = inputs.iter().map(|place| place.number).collect();
        let running = Running::Merge { inputs: numbers, compacts: compact.is_some() };
        let packing = if self.in_burst() { Packing::Quick } else { Packing::Well };
        (running, Job::Merge { inputs, number, compact, packing, plan: self.write_plan() })
    }

    /// Whether producers fill segments one after the other.
    pub(super) fn in_burst(&self) -> bool {
        let Some(cold) = &self.cold else { return false };
        let filled_ms = cold.filled_ms.or_else(|| self.sealed.back().map(|newest| newest.last_written_ms));
        filled_ms.is_some_and(|filled_ms| is_burst(&cold.config, filled_ms, self.now.wall_ms))
    }

    /// While stopping only what somebody waits for is done.
    pub(super) fn is_at_work(&self) -> bool {
        self.life == Life::Running || (self.life == Life::Draining && !self.groups.is_empty())
    }

    /// Full segments are sorted when there are enough of them, when they are old, or when the log is short of segments.
    fn sort_job(&self) -> Option<(u64, Job)> {
        let cold = self.cold.as_ref()?;
        let mut waiting = self.sealed.iter().filter(|segment| segment.sequence > cold.flushed).peekable();
        let newest_ms = waiting.clone().last()?.last_written_ms;
        let oldest = waiting.peek()?;
        let old = oldest.last_written_ms.saturating_add(millis(cold.config.sort_age)) <= self.now.wall_ms;
        let bytes = waiting.clone().count() as u64 * self.limits.segment_bytes;
        let short = self.is_short_of_segments() || self.index_is_large();
        let bound = cold.wal_segments_max(self.limits.segment_bytes) as u64 * self.limits.segment_bytes;
        let burst = is_burst(&cold.config, newest_ms, self.now.wall_ms);
        let enough = sort_from(&cold.config, bound, burst);
        let packing = match () {
            // Half of what may wait beyond it has come in since: the sorter does not keep up.
            () if bytes >= bound / 4 * 3 => Packing::None,
            () if burst => Packing::Quick,
            () => Packing::Well,
        };
        if !old && bytes < enough && !short {
            return None;
        }
        let tables = self.view.tables();
        let segments: Vec<WalSegment> = waiting
            .take(SEGMENTS_PER_SORT)
            .map(|segment| {
                let place = tables.segment(segment.sequence as u32).expect("sealed segments are shown");
                WalSegment { file: segment.file, sequence: segment.sequence, end_block: place.end_block }
            })
            .collect();
        let to = segments.last()?.sequence;
        drop(tables);
        let (number, promotion, plan) = (cold.number_next, self.promotion(), self.write_plan());
        Some((to, Job::Sort { segments, number, packing, promotion, plan }))
    }

    fn is_short_of_segments(&self) -> bool {
        let bound = self.wal_is_at_its_bound() && self.spares.len() <= self.spares_of_own();
        self.spares.is_empty() || self.zero_retry_at.is_some() || bound
    }

    fn index_is_large(&self) -> bool {
        self.view.tables().index_entries > self.limits.index_entries_max / 2
    }

    /// The active segment holds records that are old enough to be sorted, which only full segments are.
    pub(super) fn wants_early_roll(&self) -> bool {
        let Some(cold) = &self.cold else { return false };
        let Some(active) = &self.active else { return false };
        let old =
            active.first_data_ms.is_some_and(|first| first.saturating_add(millis(cold.config.sort_age)) <= self.now.wall_ms);
        old && self.groups.is_empty() && self.life == Life::Running && !self.spares.is_empty()
    }

    /// When the cold tier wants the engine to be called again.
    pub(super) fn cold_wake(&self) -> Option<Duration> {
        let cold = self.cold.as_ref()?;
        let nothing = self.sealed.is_empty() && self.view.tables().cold.is_empty();
        if cold.is_idle()
            && cold.to_clean.is_empty()
            && nothing
            && self.active.as_ref().is_none_or(|active| active.first_data_ms.is_none())
        {
            return None;
        }
        Some(cold.retry_at.unwrap_or(self.retention_check_at))
    }

    /// Whether a job or a change of the manifest is under way.
    pub(super) fn cold_is_busy(&self) -> bool {
        self.cold.as_ref().is_some_and(|cold| !cold.is_idle())
    }

    /// Room that only the log itself may use while the disk is full, so that the space it sets free can be noted down.
    pub(super) fn own_room(&self) -> u64 {
        if self.cold.is_some() { (self.limits.segment_bytes / 8).max(4 * BLOCK as u64) } else { 0 }
    }
}

/// Segments that fill one after the other leave the sorter no processor of its own: what it takes, producers lack.
fn is_burst(config: &ColdConfig, newest_ms: u64, now_ms: u64) -> bool {
    config.burst_bytes > 0 && newest_ms.saturating_add(millis(config.burst_segment)) > now_ms
}

/// Bytes of full segments from which they are sorted. Never so much waits that the WAL's bound holds up appends before the sorter has begun.
fn sort_from(config: &ColdConfig, wal_bound: u64, burst: bool) -> u64 {
    config.sort_bytes.max(if burst { config.burst_bytes.min(wal_bound / 2) } else { 0 })
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Which inputs a merge failed for: the others are merged without them. Where the error does not say it may be any of them.
fn culprits(inputs: &[u32], error: &JobError) -> Vec<u32> {
    let named = match error {
        JobError::Cold(error) => Some(error.number()),
        JobError::Hole { number, .. } => Some(*number),
        JobError::Disk(
            DiskError::Missing { file, .. }
            | DiskError::Io { file, .. }
            | DiskError::Short { file, .. }
            | DiskError::Hangs { file, .. },
        ) => match file {
            FileId::Cold(number) | FileId::Promoted(number) => Some(*number),
            _ => None,
        },
        _ => None,
    };
    match named.filter(|number| inputs.contains(number)) {
        Some(number) => vec![number],
        None => inputs.to_vec(),
    }
}

fn delete(key: &[u8]) -> MetaOp {
    MetaOp::Delete { key: key.to_vec() }
}

pub(super) fn put(key: &[u8], value: &[u8]) -> MetaOp {
    MetaOp::Put { key: key.to_vec(), value: value.to_vec() }
}

/// The segments that the metadata names.
pub(crate) fn named_segments(
    meta: &BTreeMap<Vec<u8>, Vec<u8>>,
) -> Result<Vec<Arc<ColdPlace>>, crate::cold::manifest::ManifestError> {
    let mut places = Vec::new();
    for (key, value) in meta {
        if let Some(number) = parse_cold_key(key) {
            places.push(Arc::new(ColdPlace { number, entry: ManifestEntry::decode(number, value)? }));
        }
    }
    Ok(places)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sorting_waits_for_a_quiet_second_but_not_for_the_bound_of_the_wal() {
        let config =
            ColdConfig { sort_bytes: 64, burst_bytes: 500, burst_segment: Duration::from_secs(1), ..ColdConfig::default() };
        assert!(is_burst(&config, 10_000, 10_999), "a segment was filled within this second");
        assert!(!is_burst(&config, 10_000, 11_000));
        assert!(!is_burst(&ColdConfig { burst_bytes: 0, ..config.clone() }, 10_000, 10_999), "not asked for");
        assert_eq!((sort_from(&config, 2000, true), sort_from(&config, 2000, false)), (500, 64));
        assert_eq!(sort_from(&config, 600, true), 300, "half of what the WAL may take");
        assert_eq!(sort_from(&config, 100, true), 64);
    }
}
