//! What happens when a frame is durable: readers see it, its appends are answered, the next one may go.

use std::sync::Arc;

use super::cold::RESERVED_KEY;
use super::{Engine, Group, InFlight, Output, Pending, Writing};
use crate::format::BLOCK;
use crate::types::{Lsn, MetaOp, Outcome, PartitionOp, ProducerState};
use crate::view::{CachedFrame, Position, SegmentPlace, Tables};

impl<T> Engine<T> {
    pub(super) fn frame_durable(&mut self, frame: InFlight<T>, out: &mut Output<T>) {
        assert_eq!(frame.lsn, self.lsn_durable + 1, "frames become durable in order");
        self.lsn_durable = frame.lsn;
        self.lsn_proven = self.lsn_proven.max(frame.proves_lsn);
        // Beside another frame: what it took longer than that one.
        let alone_since = frame.submitted.max(self.last_commit);
        self.compressor.learn(frame.effort, self.now.monotonic.saturating_sub(alone_since));
        self.last_commit = self.now.monotonic;
        self.counters.frames += 1;
        self.counters.written_bytes += frame.bytes as u64;
        self.counters.write_latency.record(self.now.monotonic.saturating_sub(frame.submitted));
        let end_block = frame.position.block + (frame.bytes / BLOCK) as u32;
        match frame.what {
            Writing::Snapshot { last } => self.snapshot_durable(end_block, last),
            Writing::Watermark => self.grow_segment(&mut self.view.tables_mut(), end_block),
            Writing::Data { group, payload, slices } => {
                // In the cache before the index names it, so that a reader at the tail never goes to the disk for it.
                let cached = Arc::new(CachedFrame::new(payload, slices, (frame.bytes / BLOCK) as u32));
                self.view.tail_mut().insert(frame.position, cached);
                self.show(&group, frame.position, end_block, out);
                self.answer(group, frame.lsn, out);
                self.bound_index();
            }
        }
    }

    fn snapshot_durable(&mut self, end_block: u32, last: bool) {
        let active = self.active.as_ref().expect("the snapshot is in it");
        let place = SegmentPlace { sequence: active.sequence as u32, file: active.file, end_block };
        let mut tables = self.view.tables_mut();
        match tables.segments.back_mut().filter(|segment| segment.sequence == place.sequence) {
            Some(segment) => *segment = place,
            None => tables.segments.push_back(place),
        }
        drop(tables);
        if last {
            self.snapshot_sequence = u64::from(place.sequence);
            self.superblock.last_sequence = self.snapshot_sequence;
            // Says for certain that this segment exists and all before it is durable.
            self.superblock_dirty = true;
        }
    }

    fn grow_segment(&self, tables: &mut Tables, end_block: u32) {
        tables.segments.back_mut().expect("the active segment").end_block = end_block;
    }

    /// Applies a group to the durable state, in the order in which recovery would read it from the directory.
    fn show(&mut self, group: &Group<T>, position: Position, end_block: u32, out: &mut Output<T>) {
        let mut tables = self.view.tables_mut();
        self.grow_segment(&mut tables, end_block);
        for Pending { append, base_offsets, .. } in &group.appends {
            for op in &append.partitions {
                match op {
                    PartitionOp::Open(id) => tables.open(*id),
                    PartitionOp::RaiseStart(id, start) => tables.raise_start(*id, *start),
                    PartitionOp::SetClass(id, class) => tables.set_class(*id, *class),
                    PartitionOp::Drop(_) => {}
                }
            }
            for (entry, base_offset) in append.entries.iter().zip(base_offsets.iter()) {
                let next = base_offset + i64::from(entry.record_count);
                if tables.extend(entry.partition, *base_offset, next, position) {
                    out.risen.push(entry.partition);
                }
                self.counters.records += u64::from(entry.record_count);
                self.counters.batch_bytes += entry.batches.len() as u64;
            }
            for op in &append.partitions {
                if let PartitionOp::Drop(id) = op {
                    tables.drop_partition(*id);
                }
            }
        }
        drop(tables);
        self.show_producers(group);
        self.show_meta(group);
    }

    fn show_producers(&self, group: &Group<T>) {
        if group.appends.iter().all(|pending| pending.append.mark.is_none()) {
            return;
        }
        let mut producers = self.view.producers_mut();
        for mark in group.appends.iter().filter_map(|pending| pending.append.mark.as_ref()) {
            let next_sequence = mark.base_sequence + u64::from(mark.sequence_count);
            producers.insert(mark.key, ProducerState { epoch: mark.epoch, next_sequence });
        }
    }

    fn show_meta(&mut self, group: &Group<T>) {
        if group.appends.iter().all(|pending| pending.append.meta.is_empty()) {
            return;
        }
        for op in group.appends.iter().flat_map(|pending| &pending.append.meta) {
            let key = match op {
                MetaOp::Put { key, value } => {
                    self.view.meta_mut().insert(key.clone(), value.clone());
                    key
                }
                MetaOp::Delete { key } => {
                    self.view.meta_mut().remove(key);
                    key
                }
            };
            if self.meta_pending.get(key).is_some_and(|(_, pending)| *pending == group.number) {
                self.meta_pending.remove(key);
            }
            if key.first() == Some(&RESERVED_KEY) {
                self.own_key_changed(op);
            }
        }
    }

    fn answer(&mut self, group: Group<T>, lsn: u64, out: &mut Output<T>) {
        self.group_durable = group.number;
        self.counters.appends += group.appends.len() as u64;
        let durable = self.durable;
        out.outcomes.reserve(group.appends.len() + group.duplicates.len());
        for Pending { ticket, base_offsets, .. } in group.appends {
            let Some(ticket) = ticket else {
                self.own_durable();
                continue;
            };
            out.outcomes.push((ticket, Outcome::Committed { lsn: Lsn(lsn), base_offsets, durable }));
        }
        out.outcomes.extend(group.duplicates);
    }
}
