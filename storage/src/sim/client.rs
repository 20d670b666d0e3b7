//! What the simulated producers do: lanes that resend what they have no answer for, plain appends over several partitions,
//! partitions opened and dropped, metadata.

use bytes::Bytes;
use fastrand::Rng;
use weir_batch::{BatchBuilder, Codec};

use super::model::{Model, State};
use super::{COMPACTED, Tally};
use crate::core::Engine;
use crate::types::*;

/// Partitions that are always open; lanes write to these.
const FIXED: u32 = 6;
const LANES: usize = 4;
/// In wide histories all records of these have keys.
pub(super) const KEYED: [PartitionId; 2] = [PartitionId(4), PartitionId(5)];

/// One batch of a lane, sent as often as it takes.
struct LaneBatch {
    sequence: u64,
    count: u32,
    partition: PartitionId,
    /// The attempt that is durable, or the latest.
    attempt: usize,
}

struct Lane {
    key: ProducerKey,
    epoch: i16,
    batches: Vec<LaneBatch>,
    /// The next of them to send.
    cursor: usize,
}

/// Stretches in which nothing comes but large records of one or two partitions: enough to fill whole segments.
struct Fat {
    rng: Rng,
    /// Appends of this stretch.
    left: u32,
    partitions: Vec<PartitionId>,
    /// Whether its values shrink.
    noise: bool,
}

pub(super) struct Client {
    rng: Rng,
    lanes: Vec<Lane>,
    partition_next: u32,
    /// What a wide history draws from.
    wide: Option<Rng>,
    /// What a history with fat records draws from.
    fat: Option<Fat>,
    /// Records with keys carry it.
    pub(super) wall_ms: u64,
}

impl Client {
    pub(super) fn new(seed: u64) -> Client {
        let lane = |n: usize| Lane {
            key: ProducerKey { id: 100 + n as i64 / 2, lane: n as u32 % 2 },
            epoch: 0,
            batches: Vec::new(),
            cursor: 0,
        };
        Client {
            rng: Rng::with_seed(seed),
            lanes: (0..LANES).map(lane).collect(),
            partition_next: FIXED,
            wide: None,
            fat: None,
            wall_ms: 0,
        }
    }

    /// From now on there are records with keys.
    pub(super) fn widen(&mut self, seed: u64) {
        self.wide = Some(Rng::with_seed(seed));
    }

    /// From now on there are fat stretches.
    pub(super) fn fatten(&mut self, seed: u64) {
        self.fat = Some(Fat { rng: Rng::with_seed(seed), left: 0, partitions: Vec::new(), noise: true });
    }

    /// Nothing comes but large records of one partition.
    #[cfg(test)]
    pub(super) fn only_fat(&mut self, seed: u64, noise: bool) {
        self.fat = Some(Fat { rng: Rng::with_seed(seed), left: u32::MAX, partitions: vec![PartitionId(1)], noise });
    }

    fn fat_append(&mut self, model: &mut Model) -> Option<(Append, usize)> {
        let fat = self.fat.as_mut()?;
        if fat.left == 0 {
            if fat.rng.u32(0..12) > 0 {
                return None;
            }
            fat.left = fat.rng.u32(20..90);
            let first = fat.rng.u32(0..KEYED[0].0);
            let second = (first + fat.rng.u32(1..KEYED[0].0)) % KEYED[0].0;
            fat.partitions = [first, second][..fat.rng.usize(1..3)].iter().map(|id| PartitionId(*id)).collect();
            fat.noise = fat.rng.u32(0..4) > 0;
        }
        fat.left -= 1;
        let attempt = model.attempts.len();
        let entries = (0..).zip(&fat.partitions).map(|(n, id)| fat_entry(&mut fat.rng, fat.noise, (attempt, n), *id)).collect();
        let append = Append { entries, ..Append::default() };
        model.attempted(append.clone(), None);
        Some((append, attempt))
    }

    /// What only wide histories do.
    fn wide_append(&mut self, model: &mut Model) -> Option<(Append, usize)> {
        let rng = self.wide.as_mut()?;
        let keyed = KEYED[rng.usize(0..KEYED.len())];
        match rng.u32(0..60) {
            // More keys than a small map holds.
            0..4 => Some(self.plain_of(model, &[keyed], Vec::new(), true)),
            4..8 => Some(self.plain(model, &[keyed], Vec::new())),
            8..10 => Some(self.plain(model, &[PartitionId(0)], vec![PartitionOp::SetClass(keyed, COMPACTED)])),
            10 => {
                let id = PartitionId(rng.u32(0..FIXED));
                let to = model.some_base(id, rng)?;
                Some(self.plain(model, &[PartitionId(0)], vec![PartitionOp::RaiseStart(id, to)]))
            }
            _ => None,
        }
    }

    /// The next append and its ticket: the number of the attempt.
    pub(super) fn next(&mut self, model: &mut Model) -> (Append, usize) {
        if let Some(closed) = (0..FIXED).map(PartitionId).find(|id| !model.believes_open(*id)) {
            let ops = vec![PartitionOp::Open(closed)];
            return self.plain(model, &[closed], ops);
        }
        if let Some(append) = self.fat_append(model) {
            return append;
        }
        if let Some(append) = self.wide_append(model) {
            return append;
        }
        match self.rng.u32(0..100) {
            0..50 => self.lane_batch(model),
            50..60 => self.resend(model),
            60..90 => {
                let partitions: Vec<PartitionId> = (0..self.rng.usize(1..5)).map(|_| self.any_partition(model)).collect();
                self.plain(model, &partitions, Vec::new())
            }
            90..92 => {
                let (id, class) = (self.any_partition(model), ClassId(self.rng.u32(0..3)));
                self.plain(model, &[PartitionId(0)], vec![PartitionOp::SetClass(id, class)])
            }
            92..96 => {
                let id = PartitionId(self.partition_next);
                self.partition_next += 1;
                self.plain(model, &[id], vec![PartitionOp::Open(id)])
            }
            _ => {
                let id = self.any_partition(model);
                let ops = if id.0 >= FIXED { vec![PartitionOp::Drop(id)] } else { Vec::new() };
                self.plain(model, &[PartitionId(0)], ops)
            }
        }
    }

    fn any_partition(&mut self, model: &Model) -> PartitionId {
        let open = model.believed_open();
        if self.rng.bool() { PartitionId(self.rng.u32(0..FIXED)) } else { open[self.rng.usize(0..open.len())] }
    }

    fn plain(&mut self, model: &mut Model, partitions: &[PartitionId], ops: Vec<PartitionOp>) -> (Append, usize) {
        self.plain_of(model, partitions, ops, false)
    }

    fn plain_of(&mut self, model: &mut Model, partitions: &[PartitionId], ops: Vec<PartitionOp>, many: bool) -> (Append, usize) {
        let attempt = model.attempts.len();
        let entries = partitions.iter().enumerate().map(|(n, id)| self.entry_of(attempt, n, *id, many)).collect();
        let meta = (0..self.rng.usize(0..3)).map(|_| self.meta_op(attempt)).collect();
        let append = Append { entries, mark: None, meta, partitions: ops };
        model.attempted(append.clone(), None);
        (append, attempt)
    }

    fn meta_op(&mut self, attempt: usize) -> MetaOp {
        let key = format!("key/{}", self.rng.u32(0..20)).into_bytes();
        if self.rng.u32(0..4) == 0 {
            MetaOp::Delete { key }
        } else {
            MetaOp::Put { key, value: vec![attempt as u8; self.rng.usize(0..60)] }
        }
    }

    /// What the lane has to send again, or something new.
    fn lane_batch(&mut self, model: &mut Model) -> (Append, usize) {
        let at = self.rng.usize(0..LANES);
        if self.rng.u32(0..30) == 0 {
            self.lanes[at].epoch += 1;
        }
        if self.lanes[at].cursor == self.lanes[at].batches.len() {
            let (count, partition) = (self.rng.u32(1..6), PartitionId(self.rng.u32(0..FIXED)));
            let lane = &mut self.lanes[at];
            let sequence = lane.batches.last().map_or(0, |last| last.sequence + u64::from(last.count));
            lane.batches.push(LaneBatch { sequence, count, partition, attempt: usize::MAX });
        }
        let cursor = self.lanes[at].cursor;
        self.lanes[at].cursor += 1;
        self.send(model, at, cursor, false)
    }

    /// Something that was sent before, whatever became of it.
    fn resend(&mut self, model: &mut Model) -> (Append, usize) {
        let at = self.rng.usize(0..LANES);
        let sent = self.lanes[at].cursor;
        if sent == 0 {
            return self.lane_batch(model);
        }
        let back = if self.rng.bool() { 3 } else { 60 };
        let n = self.rng.usize(sent.saturating_sub(back)..sent);
        self.send(model, at, n, true)
    }

    fn send(&mut self, model: &mut Model, at: usize, n: usize, again: bool) -> (Append, usize) {
        let attempt = model.attempts.len();
        let LaneBatch { sequence, count, partition, .. } = self.lanes[at].batches[n];
        // A pipeline may store fewer records, or put some into another partition.
        let mut entries = vec![self.entry(attempt, 0, partition)];
        if self.rng.u32(0..4) == 0 {
            let other = PartitionId(self.rng.u32(0..FIXED));
            entries.push(self.entry(attempt, 1, other));
        }
        let (key, epoch) = (self.lanes[at].key, self.lanes[at].epoch);
        let mark = ProducerMark { key, epoch, base_sequence: sequence, sequence_count: count, partition };
        let append = Append { entries, mark: Some(mark), ..Append::default() };
        let original = again.then_some(self.lanes[at].batches[n].attempt);
        model.attempted(append.clone(), original);
        if !again {
            self.lanes[at].batches[n].attempt = attempt;
        }
        (append, attempt)
    }

    fn entry(&mut self, attempt: usize, n: usize, partition: PartitionId) -> AppendEntry {
        self.entry_of(attempt, n, partition, false)
    }

    fn entry_of(&mut self, attempt: usize, n: usize, partition: PartitionId, many: bool) -> AppendEntry {
        if let Some(rng) = self.wide.as_mut().filter(|_| KEYED.contains(&partition)) {
            return keyed_entry(rng, self.wall_ms, (attempt, n), partition, many);
        }
        let mut builder = BatchBuilder::new(Codec::None);
        let records = self.rng.u32(1..5);
        for record in 0..records {
            let mut value = Vec::with_capacity(64);
            value.extend_from_slice(&(attempt as u64).to_le_bytes());
            value.extend_from_slice(&(n as u32).to_le_bytes());
            value.extend_from_slice(&record.to_le_bytes());
            let size = if self.rng.u32(0..12) == 0 { self.rng.usize(0..3000) } else { self.rng.usize(0..200) };
            let noise = self.rng.bool();
            value.extend((0..size).map(|i| if noise { ((i * i * (attempt + 3)) >> 3) as u8 } else { b'x' }));
            builder.push(attempt as i64, None, Some(&value), &[]);
        }
        let batches = Bytes::from(builder.finish().expect("small batches fit"));
        AppendEntry { partition, batches, record_count: records, max_timestamp: attempt as i64 }
    }

    pub(super) fn answered(
        &mut self,
        attempt: usize,
        outcome: &Outcome,
        model: &mut Model,
        tally: &mut Tally,
    ) -> Result<(), String> {
        match outcome {
            Outcome::Committed { base_offsets, .. } => model.committed(attempt, base_offsets, tally),
            Outcome::Duplicate { base_offset, .. } => model.was_duplicate(attempt, *base_offset),
            Outcome::Refused(AppendError::LogFailed { .. }) => Ok(()),
            Outcome::Refused(error) => {
                self.step_back(attempt, model);
                model.refused(attempt, error)
            }
        }
    }

    /// The lane sends again from what was refused.
    fn step_back(&mut self, attempt: usize, model: &Model) {
        let Some(mark) = model.attempts[attempt].append.mark else { return };
        if let Some(lane) = self.lanes.iter_mut().find(|lane| lane.key == mark.key)
            && let Ok(n) = lane.batches.binary_search_by_key(&mark.base_sequence, |batch| batch.sequence)
            && lane.batches[n].attempt == attempt
        {
            lane.cursor = lane.cursor.min(n);
        }
    }

    /// After a crash each lane asks where to go on.
    pub(super) fn recovered(&mut self, engine: &Engine<usize>, model: &mut Model) {
        let producers = engine.view().producers();
        for lane in &mut self.lanes {
            let next = producers.get(&lane.key).map_or(0, |state| state.next_sequence);
            lane.cursor = lane.batches.partition_point(|batch| batch.sequence < next);
            if let Some(state) = producers.get(&lane.key) {
                lane.epoch = lane.epoch.max(state.epoch);
            }
            debug_assert!(lane.batches.get(lane.cursor).is_none_or(|batch| batch.sequence == next), "cut between batches");
        }
        model.attempts.iter().for_each(|attempt| debug_assert!(attempt.state != State::Pending));
    }
}

/// Values and tombstones of a few keys, or of many. A header says whose they are, since a tombstone has no room for that.
fn keyed_entry(rng: &mut Rng, wall_ms: u64, (attempt, n): (usize, usize), partition: PartitionId, many: bool) -> AppendEntry {
    let mut builder = BatchBuilder::new(if rng.bool() { Codec::None } else { Codec::Zstd(1) });
    let (records, first) = if many { (rng.u32(100..400), rng.u32(0..1500)) } else { (rng.u32(1..6), 0) };
    // Clocks of producers differ.
    let late = if rng.u32(0..4) == 0 { rng.u64(0..400_000) } else { 0 };
    let timestamp = wall_ms.saturating_sub(late).cast_signed();
    for record in 0..records {
        let key = format!("k{}", if many { first + record } else { rng.u32(0..12) });
        let mut id = [0; 16];
        id[..8].copy_from_slice(&(attempt as u64).to_le_bytes());
        id[8..12].copy_from_slice(&(n as u32).to_le_bytes());
        id[12..].copy_from_slice(&record.to_le_bytes());
        let value = (rng.u32(0..6) > 0).then(|| vec![attempt as u8; if many { 3 } else { rng.usize(0..200) }]);
        builder.push(timestamp, Some(key.as_bytes()), value.as_deref(), &[(b"id", Some(&id))]);
    }
    let batches = Bytes::from(builder.finish().expect("small batches fit"));
    AppendEntry { partition, batches, record_count: records, max_timestamp: timestamp }
}

/// Some thousand bytes.
fn fat_entry(rng: &mut Rng, noise: bool, (attempt, n): (usize, u32), partition: PartitionId) -> AppendEntry {
    let mut builder = BatchBuilder::new(Codec::None);
    let records = rng.u32(1..4);
    for record in 0..records {
        let mut value = vec![b'x'; rng.usize(500..4_000)];
        if noise {
            rng.fill(&mut value);
        }
        value[..8].copy_from_slice(&(attempt as u64).to_le_bytes());
        value[8..12].copy_from_slice(&n.to_le_bytes());
        value[12..16].copy_from_slice(&record.to_le_bytes());
        builder.push(attempt as i64, None, Some(&value), &[]);
    }
    let batches = Bytes::from(builder.finish().expect("small batches fit"));
    AppendEntry { partition, batches, record_count: records, max_timestamp: attempt as i64 }
}
