//! What the frames add up to: index, partitions, lanes, metadata, and the gaps that damage has left.
//!
//! Offsets of a partition follow one another without a hole, so a hole between two entries *is* a gap. Behind damage without a
//! later entry the end of a partition is unknown: it is moved up by more than the lost frames can have held, so that no offset is
//! given out twice.

use std::collections::{BTreeMap, HashSet};

use crate::cold::manifest::{FLUSHED_KEY, Flushed};
use crate::config::LogConfig;
use crate::core::{Change, Producer, RECORDS_PER_FRAME_MAX, decode_changes, decode_meta_ops, named_segments, named_volumes};
use crate::format::frame::{Entry, EntryKind, FrameHeader};
use crate::format::snapshot::{Item, REMEMBERED_MAX, Remembered};
use crate::report::{Gap, OpenError, RecoveryReport};
use crate::table::{NumberMap, PARTITION_ID_MAX, PartitionMap};
use crate::types::{ClassId, MetaOp, PartitionId, ProducerKey, ProducerState};
use crate::view::{IndexEntry, Partition, Position, SegmentPlace, Tables, View};

const GAPS_LISTED_MAX: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Replay {
    partitions: PartitionMap<Partition>,
    /// Whether records live on in cold segments when they leave the WAL: then only retention raises a start.
    tiered: bool,
    /// Partitions of the state snapshot, until it is merged.
    state: PartitionMap<(i64, i64, ClassId)>,
    producers: NumberMap<ProducerKey, Producer>,
    meta: BTreeMap<Vec<u8>, Vec<u8>>,
    /// With the segment they were found in; those of a snapshot with the highest there can be.
    gaps: Vec<(Gap, u64)>,
    /// The segment that is being read.
    sequence: u64,
    sequences_lost: bool,
    /// Frames lost without a trace since the state snapshot.
    frames_lost: u64,
    /// Partitions with an entry behind the last of them: their ends are known.
    end_known: HashSet<PartitionId>,
    /// Partitions of which an earlier life is known that the log had lost sight of: frames before this one tell of that.
    begun: BTreeMap<PartitionId, u64>,
}

impl Replay {
    /// Nothing read yet.
    pub(super) fn new(tiered: bool) -> Replay {
        Replay { tiered, ..Replay::default() }
    }

    /// The frames that follow lie in this segment.
    pub(super) fn segment_begins(&mut self, sequence: u64) {
        self.sequence = sequence;
    }

    /// A record of the oldest segment's snapshot: what lies before is gone.
    pub(super) fn oldest_item(&mut self, item: Item) {
        if let Item::Partition { id, next, .. } = item
            && id.0 < PARTITION_ID_MAX
        {
            self.partitions.insert(id, Partition { start: next, next, ..Partition::default() });
        }
    }

    /// That snapshot is damaged: partitions begin where their first entry does.
    pub(super) fn oldest_unknown(&mut self) {
        self.partitions = PartitionMap::default();
    }

    /// The newest whole snapshot is about to be read.
    pub(super) fn state_begins(&mut self) {
        assert_eq!(self.state.len(), 0, "there is one state snapshot");
    }

    pub(super) fn state_item(&mut self, item: Item) {
        match item {
            Item::Partition { id, class, start, next } if id.0 < PARTITION_ID_MAX => {
                self.state.insert(id, (start, next, class));
            }
            Item::Partition { .. } => {}
            Item::Producer { key, epoch, next_sequence, last_lsn, batches } => {
                let batches = batches.into_iter().map(|batch| (batch, 0)).collect();
                self.producers.insert(key, Producer { epoch, next_sequence, last_lsn, batches });
            }
            Item::Meta { key, value } => {
                self.meta.insert(key, value);
            }
            Item::Gap(gap) => self.gaps.push((gap, u64::MAX)),
            Item::SequencesLost => self.sequences_lost = true,
        }
    }

    /// The snapshot was written from memory, so it is right where frames before it are damaged, or were and are whole again.
    pub(super) fn state_read(&mut self, is_oldest: bool, first_lsn: u64, report: &mut RecoveryReport) {
        let mut seen = std::mem::take(&mut self.partitions);
        let state = std::mem::take(&mut self.state);
        for (id, &(start, next, class)) in state.iter() {
            let partition = match seen.remove(id).filter(|_| !is_oldest) {
                None => Partition { start: if self.tiered { start } else { next }, next, class, index: Vec::new() },
                Some(mut partition) => {
                    self.gap(id, partition.next, next, report);
                    partition.class = class;
                    partition.start = if self.tiered { start } else { partition.start.max(start.min(next)) };
                    partition.index.retain(|entry| entry.base_offset < next);
                    partition.next = next;
                    partition
                }
            };
            self.partitions.insert(id, partition);
        }
        if !is_oldest {
            self.begun.extend(seen.iter().map(|(id, _)| (id, first_lsn)));
        }
    }

    /// A good data frame. Lanes and metadata count only where the state is being replayed.
    pub(super) fn frame(
        &mut self,
        header: &FrameHeader,
        entries: &[Entry],
        payload: Option<&[u8]>,
        position: Position,
        in_state: bool,
        report: &mut RecoveryReport,
    ) {
        for entry in entries {
            match entry.kind {
                EntryKind::Batches => self.batches(entry, Some(position), in_state, report),
                EntryKind::Meta if in_state => {
                    let ops = payload.and_then(|payload| decode_meta_ops(&payload[entry.range()]));
                    report.meta_damaged |= ops.is_none();
                    ops.into_iter().flatten().for_each(|op| self.meta_op(op));
                }
                EntryKind::Changes if in_state => {
                    let changes = payload.and_then(|payload| decode_changes(&payload[entry.range()]));
                    report.meta_damaged |= changes.is_none();
                    changes.into_iter().flatten().for_each(|change| self.change(change));
                }
                _ => self.other(header, entry, in_state),
            }
        }
    }

    /// The directory of a frame whose payload is damaged: everything is known but the bytes.
    pub(super) fn lost_payload(&mut self, header: &FrameHeader, entries: &[Entry], in_state: bool, report: &mut RecoveryReport) {
        for entry in entries {
            match entry.kind {
                EntryKind::Batches => self.batches(entry, None, in_state, report),
                EntryKind::Meta | EntryKind::Changes => report.meta_damaged |= in_state,
                _ => self.other(header, entry, in_state),
            }
        }
    }

    /// Frames of which nothing is left.
    pub(super) fn lost_frames(&mut self, frames: u64, report: &mut RecoveryReport) {
        self.frames_lost += frames;
        self.end_known.clear();
        self.sequences_lost = true;
        report.meta_damaged = true;
    }

    fn batches(&mut self, entry: &Entry, position: Option<Position>, in_state: bool, report: &mut RecoveryReport) {
        let id = PartitionId(entry.partition);
        if id.0 >= PARTITION_ID_MAX {
            return;
        }
        if self.partitions.get(id).is_none() {
            // Opened in a frame that was lost, or before the oldest segment when its snapshot is damaged.
            let start = if in_state { 0 } else { entry.base_offset };
            self.partitions.insert(id, Partition { start, next: start, ..Partition::default() });
        }
        let partition = self.partitions.get_mut(id).expect("just made");
        let before = partition.next;
        if entry.base_offset < before {
            return;
        }
        partition.next = entry.next_offset();
        if let Some(position) = position
            && partition.index.last().is_none_or(|last| last.position != position)
        {
            partition.index.push(IndexEntry { base_offset: entry.base_offset, position });
        }
        if in_state && self.frames_lost > 0 {
            self.end_known.insert(id);
        }
        let lost_to = if position.is_some() { entry.base_offset } else { entry.next_offset() };
        self.gap(id, before, lost_to, report);
    }

    fn other(&mut self, header: &FrameHeader, entry: &Entry, in_state: bool) {
        let id = PartitionId(entry.partition);
        match entry.kind {
            EntryKind::Opened if id.0 < PARTITION_ID_MAX => self.opened(header, id, entry.begins, in_state),
            EntryKind::Dropped => {
                self.begun.remove(&id);
                self.forget(id);
            }
            EntryKind::Mark if in_state => self.mark(header, entry),
            _ => {}
        }
    }

    /// The frame that opened a partition may have been lost when its number was given again, and be back now: what lies before
    /// the later beginning is of another life.
    fn opened(&mut self, header: &FrameHeader, id: PartitionId, begins: bool, in_state: bool) {
        let known = self.partitions.get(id).is_some();
        if known && begins {
            self.begun.insert(id, header.lsn);
            self.forget(id);
        }
        if begins || !known {
            self.partitions.insert(id, Partition::default());
        }
        if begins && in_state && self.frames_lost > 0 {
            self.end_known.insert(id);
        }
    }

    fn forget(&mut self, id: PartitionId) {
        self.partitions.remove(id);
        self.gaps.retain(|(gap, _)| gap.partition != id);
    }

    fn mark(&mut self, header: &FrameHeader, entry: &Entry) {
        let key = ProducerKey { id: entry.producer_id, lane: entry.lane };
        let producer = self.producers.entry(key).or_default();
        if producer.next_sequence != entry.base_sequence {
            producer.batches.clear();
        }
        producer.epoch = entry.producer_epoch;
        producer.next_sequence = entry.base_sequence + u64::from(entry.sequence_count);
        producer.last_lsn = header.lsn;
        if entry.sequence_count > 0 {
            producer.batches.push_back((Remembered { count: entry.sequence_count, base_offset: entry.base_offset }, 0));
        }
        while producer.batches.len() > REMEMBERED_MAX {
            producer.batches.pop_front();
        }
    }

    fn change(&mut self, change: Change) {
        match change {
            Change::Start(id, start) => {
                if let Some(partition) = self.partitions.get_mut(id) {
                    partition.start = partition.start.max(start.min(partition.next));
                }
            }
            Change::Class(id, class) => {
                if let Some(partition) = self.partitions.get_mut(id) {
                    partition.class = class;
                }
            }
        }
    }

    fn meta_op(&mut self, op: MetaOp) {
        match op {
            MetaOp::Put { key, value } => self.meta.insert(key, value),
            MetaOp::Delete { key } => self.meta.remove(&key),
        };
    }

    fn gap(&mut self, partition: PartitionId, from: i64, to: i64, report: &mut RecoveryReport) {
        if from >= to {
            return;
        }
        self.gaps.push((Gap { partition, from, to }, self.sequence));
        report.gaps_total += 1;
    }

    /// Records missing so far, those that a snapshot knows of included.
    pub(super) fn gaps(&self) -> impl Iterator<Item = Gap> {
        self.gaps.iter().map(|(gap, _)| *gap)
    }

    /// How the snapshot that follows contradicts what the frames before it add up to. Lanes may be missing there: idle ones are
    /// forgotten.
    pub(super) fn disagrees(&self, snapshot: Vec<Item>) -> Option<String> {
        let (mut partitions, mut keys) = (0, 0);
        for item in snapshot {
            let wrong = match item {
                Item::Partition { id, next, .. } => {
                    partitions += 1;
                    let here = self.partitions.get(id).map(|partition| partition.next);
                    (here != Some(next)).then(|| format!("partition {id} goes on at {next}, its frames end at {here:?}"))
                }
                Item::Producer { key, epoch, next_sequence, .. } => {
                    let here = self.producers.get(&key).map(|lane| (lane.epoch, lane.next_sequence));
                    let same = here == Some((epoch, next_sequence));
                    (!same).then(|| format!("lane {} of producer {} is not where its marks leave it", key.lane, key.id))
                }
                Item::Meta { key, value } => {
                    keys += 1;
                    (self.meta.get(&key) != Some(&value)).then(|| format!("metadata of key \"{}\" differs", key.escape_ascii()))
                }
                Item::Gap(_) | Item::SequencesLost => None,
            };
            if wrong.is_some() {
                return wrong;
            }
        }
        if (partitions, keys) != (self.partitions.len(), self.meta.len()) {
            return Some("partitions or metadata are missing from it".to_owned());
        }
        None
    }

    /// The view, and what the engine keeps of the lanes.
    pub(super) fn finish(
        mut self,
        config: &LogConfig,
        segments: impl Iterator<Item = SegmentPlace>,
        report: &mut RecoveryReport,
    ) -> Result<(View, NumberMap<ProducerKey, Producer>, bool), OpenError> {
        self.move_unknown_ends(report);
        let mut tables = Tables { segments: segments.collect(), tiered: self.tiered, begun: self.begun, ..Tables::default() };
        for (_, partition) in self.partitions.iter_mut() {
            partition.index.shrink_to_fit();
            tables.index_entries += partition.index.len();
        }
        tables.partitions = self.partitions;
        named_volumes(&self.meta)?;
        for place in named_segments(&self.meta)? {
            tables.add_cold(*place);
        }
        if !self.tiered && !tables.cold.is_empty() {
            return Err(OpenError::BadConfig("the log has cold segments: open it with a cold tier".to_owned()));
        }
        // What is in cold segments is not lost with the WAL they were made from.
        let flushed = self.meta.get(FLUSHED_KEY).and_then(|value| Flushed::decode(value).ok()).map_or(0, |flushed| flushed.0);
        self.gaps.into_iter().filter(|(_, sequence)| *sequence > flushed).for_each(|(gap, _)| tables.add_gap(gap));
        tables.trim_all();
        report.gaps =
            tables.gaps.iter().map(|(&(partition, from), &to)| Gap { partition, from, to }).take(GAPS_LISTED_MAX).collect();
        report.partitions = tables.partitions.len() as u64;
        report.producers = self.producers.len() as u64;
        let shown = self.producers.iter();
        let shown =
            shown.map(|(key, lane)| (*key, ProducerState { epoch: lane.epoch, next_sequence: lane.next_sequence })).collect();
        Ok((View::new(tables, shown, self.meta, config.tail_cache_bytes), self.producers, self.sequences_lost))
    }

    fn move_unknown_ends(&mut self, report: &mut RecoveryReport) {
        if self.frames_lost == 0 {
            return;
        }
        let skip = i64::try_from(self.frames_lost.saturating_mul(u64::from(RECORDS_PER_FRAME_MAX))).unwrap_or(i64::MAX / 4);
        let mut gaps = Vec::new();
        for (id, partition) in self.partitions.iter_mut() {
            if !self.end_known.contains(&id) {
                let to = partition.next.saturating_add(skip);
                gaps.push(Gap { partition: id, from: partition.next, to });
                partition.next = to;
            }
        }
        report.gaps_total += gaps.len() as u64;
        self.gaps.extend(gaps.into_iter().map(|gap| (gap, u64::MAX)));
    }
}
