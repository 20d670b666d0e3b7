//! How an append enters: checked completely, then given offsets and a place in a group. Nothing is changed by one that is refused.

use std::collections::VecDeque;

use super::cold::RESERVED_KEY;
use super::{Engine, Group, Life, Output, Pending, Producer, RECORDS_PER_FRAME_MAX, Undo, change};
use crate::format::frame::{frame_bytes, header_bytes};
use crate::format::snapshot::{GAP_BYTES, META_BYTES, PARTITION_BYTES, PRODUCER_BYTES_MAX, REMEMBERED_MAX, Remembered};
use crate::table::PARTITION_ID_MAX;
use crate::types::{Append, AppendEntry, AppendError, BaseOffsets, MetaOp, Outcome, PartitionId, PartitionOp, ProducerMark};
use crate::view::GAPS_MAX;

/// What an append takes in a frame.
#[derive(Clone, Copy)]
struct Size {
    entries: usize,
    payload_bytes: usize,
    records: u32,
}

/// What the sequence of an append says about it.
enum Sequence {
    Next,
    /// Stored before, in this group.
    Duplicate(Outcome, u64),
}

impl<T> Engine<T> {
    /// Takes an append; its answer comes with this or a later output.
    pub fn submit(&mut self, append: Append, ticket: T, out: &mut Output<T>) {
        match self.admit(&append) {
            Ok((Sequence::Next, size)) => self.enter(append, Some(ticket), size),
            Ok((Sequence::Duplicate(outcome, group), _)) => self.answer_duplicate(ticket, outcome, group, out),
            Err(error) => {
                self.counters.refused += 1;
                out.outcomes.push((ticket, Outcome::Refused(error)));
            }
        }
    }

    /// Takes an append of the log's own: nothing of it can be refused.
    pub(super) fn submit_own(&mut self, append: Append) {
        let size = size_of_append(&append).expect("it has no record batches");
        assert!(frame_bytes(size.entries, size.payload_bytes) <= self.limits.frame_bytes_max, "it was cut to fit a frame");
        self.enter(append, None, size);
        self.groups.back_mut().expect("it is in there").own = true;
    }

    fn admit(&self, append: &Append) -> Result<(Sequence, Size), AppendError> {
        if let Some(reason) = &self.failed {
            return Err(AppendError::LogFailed { reason: reason.clone() });
        }
        if self.life != Life::Running {
            return Err(AppendError::ShuttingDown);
        }
        let size = size_of_append(append)?;
        if let Some(mark) = &append.mark
            && let Some((outcome, group)) = self.check_sequence(mark)?
        {
            return Ok((Sequence::Duplicate(outcome, group), size));
        }
        let max = self.limits.frame_bytes_max;
        let bytes = frame_bytes(size.entries, size.payload_bytes);
        if bytes > max || size.records > RECORDS_PER_FRAME_MAX {
            return Err(AppendError::TooLarge {
                bytes: (header_bytes(size.entries) + size.payload_bytes) as u64,
                max: max as u64,
            });
        }
        if let Some(op_bytes) = append.meta.iter().map(super::build::meta_op_bytes).find(|bytes| *bytes > max / 2) {
            // A snapshot part must hold it, with its own overhead.
            return Err(AppendError::TooLarge { bytes: op_bytes as u64, max: max as u64 / 2 });
        }
        let key =
            |op: &MetaOp| matches!(op, MetaOp::Put { key, .. } | MetaOp::Delete { key } if key.first() == Some(&RESERVED_KEY));
        if append.meta.iter().any(key) {
            return Err(AppendError::ReservedKey);
        }
        self.check_partitions(append)?;
        self.check_state_fits(append)?;
        if self.has_no_room_for(append, size) {
            return Err(AppendError::Full);
        }
        Ok((Sequence::Next, size))
    }

    /// `None`: go on. Otherwise it is a duplicate, with the group its original is in (0: durable for long).
    fn check_sequence(&self, mark: &ProducerMark) -> Result<Option<(Outcome, u64)>, AppendError> {
        let Some(producer) = self.producers.get(&mark.key) else {
            let fresh = mark.base_sequence == 0 || self.sequences_lost;
            return if fresh { Ok(None) } else { Err(AppendError::SequenceGap { expected: 0 }) };
        };
        if mark.epoch < producer.epoch {
            return Err(AppendError::Fenced { current_epoch: producer.epoch });
        }
        let expected = producer.next_sequence;
        if mark.base_sequence == expected || (mark.base_sequence > expected && self.sequences_lost) {
            return Ok(None);
        }
        let end = mark.base_sequence.saturating_add(u64::from(mark.sequence_count));
        if end > expected {
            return Err(AppendError::SequenceGap { expected });
        }
        let mut batch_end = expected;
        for (batch, group) in producer.batches.iter().rev() {
            let batch_start = batch_end - u64::from(batch.count);
            if batch_start <= mark.base_sequence {
                let same = batch_start == mark.base_sequence && batch.count == mark.sequence_count;
                let (base_offset, record_count) = if same { (batch.base_offset, batch.count) } else { (-1, 0) };
                // A resend cut differently may reach into later batches: wait for the latest of them.
                let group = if same { *group } else { producer.batches.back().map_or(0, |(_, group)| *group) };
                return Ok(Some((Outcome::Duplicate { base_offset, record_count }, group)));
            }
            batch_end = batch_start;
        }
        Ok(Some((Outcome::Duplicate { base_offset: -1, record_count: 0 }, 0)))
    }

    fn check_partitions(&self, append: &Append) -> Result<(), AppendError> {
        for op in &append.partitions {
            match op {
                PartitionOp::Open(id) if id.0 >= PARTITION_ID_MAX => {
                    let (bytes, max) = (u64::from(id.0), u64::from(PARTITION_ID_MAX));
                    return Err(AppendError::MetaFull { what: "partition numbers", bytes, max });
                }
                PartitionOp::Drop(id) | PartitionOp::RaiseStart(id, _) | PartitionOp::SetClass(id, _)
                    if !self.will_be_open(*id, append) =>
                {
                    return Err(AppendError::UnknownPartition(*id));
                }
                _ => {}
            }
        }
        match append.entries.iter().find(|entry| !self.will_be_open(entry.partition, append)) {
            Some(entry) => Err(AppendError::UnknownPartition(entry.partition)),
            None => Ok(()),
        }
    }

    fn will_be_open(&self, id: PartitionId, append: &Append) -> bool {
        self.partitions.get(id).is_some() || append.partitions.contains(&PartitionOp::Open(id))
    }

    /// Every segment begins with a copy of the state, so the state must stay well below a segment.
    fn check_state_fits(&self, append: &Append) -> Result<(), AppendError> {
        if append.meta.is_empty() && append.partitions.is_empty() && append.mark.is_none() {
            return Ok(());
        }
        let (grown, keys) = self.meta_growth(&append.meta);
        let meta_bytes = self.meta_bytes.saturating_add_signed(grown);
        if grown > 0 && meta_bytes > self.limits.meta_bytes_max {
            let (bytes, max) = (meta_bytes as u64, self.limits.meta_bytes_max as u64);
            return Err(AppendError::MetaFull { what: "metadata", bytes, max });
        }
        let opens =
            append.partitions.iter().filter(|op| matches!(op, PartitionOp::Open(id) if self.partitions.get(*id).is_none()));
        let partitions = opens.count();
        let producers = usize::from(append.mark.is_some_and(|mark| !self.producers.contains_key(&mark.key)))
            .min(self.limits.producers_max.saturating_sub(self.producers.len()));
        let more = grown.max(0) as usize + keys * META_BYTES + partitions * PARTITION_BYTES + producers * PRODUCER_BYTES_MAX;
        let (bytes, max) = (self.state_bytes() + more, self.limits.state_bytes_max());
        if more > 0 && bytes > max {
            let what = if producers > 0 {
                "producers"
            } else if partitions > 0 {
                "partitions"
            } else {
                "metadata"
            };
            return Err(AppendError::MetaFull { what, bytes: bytes as u64, max: max as u64 });
        }
        Ok(())
    }

    /// Upper bound of a snapshot of the assigned state.
    fn state_bytes(&self) -> usize {
        self.partitions.len() * PARTITION_BYTES
            + self.producers.len() * PRODUCER_BYTES_MAX
            + self.meta_bytes
            + self.meta_count * META_BYTES
            + (self.limits.state_bytes_max() / 8).min(GAPS_MAX * GAP_BYTES)
    }

    /// Bytes and keys by which the metadata may grow; for one key changed twice an upper bound.
    fn meta_growth(&self, ops: &[MetaOp]) -> (isize, usize) {
        let (mut bytes, mut keys) = (0, 0);
        for op in ops {
            if let MetaOp::Put { key, value } = op {
                match self.meta_len(key) {
                    Some(old) => bytes += value.len() as isize - old as isize,
                    None => {
                        bytes += (key.len() + value.len()) as isize;
                        keys += 1;
                    }
                }
            }
        }
        (bytes, keys)
    }

    /// Length of the assigned value of a key.
    fn meta_len(&self, key: &[u8]) -> Option<usize> {
        match self.meta_pending.get(key) {
            Some((len, _)) => *len,
            None => self.view.meta().get(key).map(Vec::len),
        }
    }

    /// No spare can be made, and the active segment is spoken for. What lets go of something may have the log's own spare, and half
    /// of its own room behind that.
    fn has_no_room_for(&self, append: &Append, size: Size) -> bool {
        let lets_go = append.lets_go();
        if !self.disk_is_full() || self.spares.len() > self.spares_of_own() || (lets_go && !self.spares.is_empty()) {
            return false;
        }
        let Some(active) = &self.active else { return true };
        let own = if lets_go { self.own_room() / 2 } else { self.own_room() };
        let left = (self.limits.segment_bytes - active.at).saturating_sub(own);
        let waiting: usize = self.groups.iter().map(Group::frame_bytes).sum();
        (waiting + frame_bytes(size.entries, size.payload_bytes)) as u64 > left
    }

    fn answer_duplicate(&mut self, ticket: T, outcome: Outcome, group: u64, out: &mut Output<T>) {
        self.counters.duplicates += 1;
        if group <= self.group_durable {
            out.outcomes.push((ticket, outcome));
            return;
        }
        let in_flight = self.in_flight.iter_mut().filter_map(|frame| match &mut frame.what {
            super::Writing::Data { group, .. } => Some(group),
            super::Writing::Snapshot { .. } | super::Writing::Watermark => None,
        });
        let unanswered = in_flight.chain(&mut self.groups).find(|unanswered| unanswered.number == group);
        unanswered.expect("a group is durable, in flight or waiting").duplicates.push((ticket, outcome));
    }

    fn enter(&mut self, append: Append, ticket: Option<T>, size: Size) {
        let number = self.group_for(size);
        let mut undo = Undo::default();
        for op in &append.partitions {
            if let PartitionOp::Open(id) = op
                && self.partitions.get(*id).is_none()
            {
                self.partitions.insert(*id, 0);
                undo.opened.push(*id);
            }
        }
        let mut base_offsets = BaseOffsets::with_capacity(append.entries.len());
        let mut told = -1;
        for entry in &append.entries {
            let next = self.partitions.get_mut(entry.partition).expect("checked on entry");
            base_offsets.push(*next);
            if told < 0 && append.mark.is_some_and(|mark| mark.partition == entry.partition) {
                told = *next;
            }
            *next += i64::from(entry.record_count);
        }
        for op in &append.partitions {
            if let PartitionOp::Drop(id) = op
                && let Some(next) = self.partitions.remove(*id)
            {
                undo.dropped.push((*id, next));
            }
        }
        if let Some(mark) = &append.mark {
            self.consume_sequence(mark, told, number, &mut undo);
        }
        append.meta.iter().for_each(|op| self.assign_meta(op, number));
        let group = self.groups.back_mut().expect("group_for made one");
        group.lets_go |= append.lets_go();
        group.appends.push(Pending { append, ticket, base_offsets, told, undo });
        self.waiting += 1;
    }

    /// The group an append of this size goes into, made if need be.
    fn group_for(&mut self, size: Size) -> u64 {
        let max = self.limits.frame_bytes_max;
        let fits = |group: &Group<T>| {
            group.body.is_none()
                && frame_bytes(group.entries + size.entries, group.payload_bytes + size.payload_bytes) <= max
                && group.records + size.records <= RECORDS_PER_FRAME_MAX
        };
        if !self.groups.back().is_some_and(fits) {
            let number = self.group_next;
            self.group_next += 1;
            let appends = Vec::with_capacity(self.groups.back().map_or(0, |group| group.appends.len()));
            self.groups.push_back(Group {
                number,
                appends,
                entries: 0,
                payload_bytes: 0,
                records: 0,
                duplicates: Vec::new(),
                body: None,
                own: false,
                lets_go: false,
            });
        }
        let group = self.groups.back_mut().expect("just made");
        group.entries += size.entries;
        group.payload_bytes += size.payload_bytes;
        group.records += size.records;
        group.number
    }

    fn consume_sequence(&mut self, mark: &ProducerMark, told: i64, group: u64, undo: &mut Undo) {
        if !self.producers.contains_key(&mark.key) {
            self.forget_idle_producers();
            undo.producer_is_new = true;
            let fresh = Producer { next_sequence: mark.base_sequence, epoch: mark.epoch, ..Producer::default() };
            self.producers.insert(mark.key, fresh);
        }
        let group_durable = self.group_durable;
        let producer = self.producers.get_mut(&mark.key).expect("just made");
        undo.producer = Some((producer.epoch, producer.next_sequence));
        producer.epoch = mark.epoch;
        if mark.base_sequence != producer.next_sequence {
            // Only after damage: what was remembered does not reach up to here.
            producer.batches.clear();
        }
        producer.next_sequence = mark.base_sequence + u64::from(mark.sequence_count);
        producer.last_lsn = self.lsn_last + 1;
        if mark.sequence_count > 0 {
            producer.batches.push_back((Remembered { count: mark.sequence_count, base_offset: told }, group));
        }
        // Keep as many durable ones, so that a snapshot never holds what is not on disk.
        while producer.batches.get(REMEMBERED_MAX).is_some_and(|(_, group)| *group <= group_durable) {
            producer.batches.pop_front();
        }
    }

    /// At the limit the longest idle sixteenth is forgotten: a scan, but a rare one.
    fn forget_idle_producers(&mut self) {
        if self.producers.len() < self.limits.producers_max {
            return;
        }
        let durable = self.group_durable;
        let idle = |producer: &Producer| producer.batches.back().is_none_or(|(_, group)| *group <= durable);
        let mut lanes: Vec<_> = self
            .producers
            .iter()
            .filter(|(_, producer)| idle(producer))
            .map(|(key, producer)| (producer.last_lsn, *key))
            .collect();
        lanes.sort_unstable();
        lanes.truncate((self.limits.producers_max / 16).max(1));
        let mut shown = self.view.producers_mut();
        for (_, key) in lanes {
            self.producers.remove(&key);
            shown.remove(&key);
        }
    }

    fn assign_meta(&mut self, op: &MetaOp, group: u64) {
        let (key, new) = match op {
            MetaOp::Put { key, value } => (key, Some(value.len())),
            MetaOp::Delete { key } => (key, None),
        };
        if let Some(old) = self.meta_len(key) {
            self.meta_bytes -= key.len() + old;
            self.meta_count -= 1;
        }
        if let Some(new) = new {
            self.meta_bytes += key.len() + new;
            self.meta_count += 1;
        }
        self.meta_pending.insert(key.clone(), (new, group));
    }

    /// The disk is full and no segment is left: everything that waits is refused and taken back, latest first.
    pub(super) fn refuse_waiting(&mut self, out: &mut Output<T>) {
        let groups: VecDeque<Group<T>> = std::mem::take(&mut self.groups);
        let first = out.outcomes.len();
        for group in groups.into_iter().rev() {
            for (ticket, _) in group.duplicates.into_iter().rev() {
                out.outcomes.push((ticket, Outcome::Refused(AppendError::Full)));
            }
            for pending in group.appends.into_iter().rev() {
                self.take_back(&pending);
                let Some(ticket) = pending.ticket else {
                    self.own_refused();
                    continue;
                };
                self.counters.refused += 1;
                out.outcomes.push((ticket, Outcome::Refused(AppendError::Full)));
            }
        }
        out.outcomes[first..].reverse();
        self.waiting = 0;
        // Nothing is in flight here, so what is assigned is what is durable.
        self.meta_pending.clear();
        let meta = self.view.meta();
        self.meta_bytes = meta.iter().map(|(key, value)| key.len() + value.len()).sum();
        self.meta_count = meta.len();
    }

    fn take_back(&mut self, pending: &Pending<T>) {
        let Pending { append, base_offsets, undo, .. } = pending;
        for (id, next) in undo.dropped.iter().rev() {
            self.partitions.insert(*id, *next);
        }
        for (entry, base_offset) in append.entries.iter().zip(base_offsets.iter()).rev() {
            *self.partitions.get_mut(entry.partition).expect("was open") = *base_offset;
        }
        for id in &undo.opened {
            self.partitions.remove(*id);
        }
        let Some(mark) = &append.mark else { return };
        if undo.producer_is_new {
            self.producers.remove(&mark.key);
        } else if let Some(producer) = self.producers.get_mut(&mark.key) {
            (producer.epoch, producer.next_sequence) = undo.producer.expect("noted on entry");
            if mark.sequence_count > 0 {
                producer.batches.pop_back();
            }
        }
    }
}

fn size_of_append(append: &Append) -> Result<Size, AppendError> {
    let mut payload_bytes = 0;
    let mut records = 0_u32;
    for entry in &append.entries {
        check_batches(entry).map_err(|reason| AppendError::BadBatches { reason })?;
        payload_bytes += entry.batches.len();
        records = records.saturating_add(entry.record_count);
    }
    payload_bytes += super::build::meta_ops_bytes(&append.meta) + change::stored_bytes(&append.partitions);
    let changes = change::count(&append.partitions);
    let others = usize::from(append.mark.is_some()) + usize::from(!append.meta.is_empty()) + usize::from(changes > 0);
    Ok(Size { entries: append.entries.len() + append.partitions.len() - changes + others, payload_bytes, records })
}

/// Walks the batch headers: their lengths must add up to the entry's bytes and their records to its count, or readers would lose
/// their way in it.
fn check_batches(entry: &AppendEntry) -> Result<(), &'static str> {
    let mut records = 0_u64;
    for batch in crate::batches::split(&entry.batches) {
        records += u64::from(batch.ok_or("a batch is cut off or has a bad length")?.offsets);
    }
    if records == 0 {
        return Err("it has no records");
    }
    if records != u64::from(entry.record_count) {
        return Err("the record count is another");
    }
    Ok(())
}
