//! Where frames go: rolling to a spare, making spares, recycling the oldest segment.
//!
//! A segment leaves in two steps: the superblock says durably that it is no longer the first, and only then do starts rise, and
//! only then may its file be written again. So a start offset that was shown never goes back, and needs no space to rise.

use super::{Active, Departed, Engine, Output, Sealed, Zeroing};
use crate::disk::{DiskError, DiskOp, FileId};
use crate::format::BLOCK;
use crate::format::segment::SegmentHeader;
use crate::format::snapshot::{Item, REMEMBERED_MAX};
use crate::report::Gap;

impl<T> Engine<T> {
    /// The next frame needs a new segment: header and snapshot first.
    pub(super) fn roll(&mut self, out: &mut Output<T>) {
        assert_eq!(self.lsn_durable, self.lsn_last, "nothing is in flight, so the view is the state up to here");
        self.cold_has_news();
        let full = self.disk_is_full();
        let own_waits = self.groups.is_empty() || self.groups.iter().any(|group| group.own || (full && group.lets_go));
        let of_own = if own_waits { 0 } else { self.spares_of_own() };
        let short = full || self.wal_is_at_its_bound();
        let spare = if short && self.spares.len() <= of_own { None } else { self.spares.pop_front() };
        let Some(file) = spare else {
            if full && self.nothing_leaves() {
                self.refuse_waiting(out);
            }
            return;
        };
        if let Some(full) = self.active.take() {
            self.sealed.push_back(Sealed { file: full.file, sequence: full.sequence, last_written_ms: full.last_written_ms });
            if let Some(cold) = &mut self.cold {
                cold.filled_ms = Some(full.last_written_ms);
            }
        }
        let sequence = self.sequence_next;
        assert!(sequence < u64::from(u32::MAX), "2^32 segments are more than any disk writes in its life");
        self.sequence_next += 1;
        let header = SegmentHeader {
            volume_id: self.superblock.volume_id,
            sequence,
            epoch: self.superblock.epoch,
            first_lsn: self.lsn_last + 1,
            prev_crc: self.crc_last,
            durable_lsn: self.lsn_durable,
            opened_ms: self.now.wall_ms,
            file: Some(file),
        };
        self.active = Some(Active { file, sequence, at: 0, last_written_ms: self.now.wall_ms, first_data_ms: None });
        self.cut_snapshot();
        let first = self.snapshot_parts.pop_front().expect("a snapshot has at least one part");
        self.write_segment_start(&header, &first, out);
    }

    /// The durable state in parts that each fit a frame.
    fn cut_snapshot(&mut self) {
        let part_max = self.limits.frame_bytes_max - BLOCK;
        let view = std::sync::Arc::clone(&self.view);
        let mut parts = vec![Vec::new()];
        let mut add = |item: Item| {
            let part = parts.last_mut().expect("never empty");
            let before = part.len();
            item.encode(part);
            if part.len() > part_max && before > 0 {
                let moved = part.split_off(before);
                parts.push(moved);
            }
        };
        let mut tables = view.tables_mut();
        tables.trim_all();
        for (id, partition) in tables.partitions.iter() {
            add(Item::Partition { id, class: partition.class, start: tables.start_of(partition), next: partition.next });
        }
        for (&(partition, from), &to) in &tables.gaps {
            add(Item::Gap(Gap { partition, from, to }));
        }
        drop(tables);
        let shown = view.producers();
        for (key, producer) in &self.producers {
            let Some(durable) = shown.get(key) else { continue };
            let kept = producer.batches.iter().filter(|(_, group)| *group <= self.group_durable);
            let skip = kept.clone().count().saturating_sub(REMEMBERED_MAX);
            add(Item::Producer {
                key: *key,
                epoch: durable.epoch,
                next_sequence: durable.next_sequence,
                last_lsn: producer.last_lsn.min(self.lsn_durable),
                batches: kept.skip(skip).map(|(batch, _)| *batch).collect(),
            });
        }
        for (key, value) in view.meta().iter() {
            add(Item::Meta { key: key.clone(), value: value.clone() });
        }
        if self.sequences_lost {
            add(Item::SequencesLost);
        }
        self.snapshot_parts = parts.into();
    }

    /// No spare can be made, or no cold segment: appends are refused when what is left is used up.
    pub(super) fn disk_is_full(&self) -> bool {
        self.zero_retry_at.is_some() || self.cold.as_ref().is_some_and(|cold| cold.disk_full)
    }

    /// Spares that appends may not have while the disk is full: the log needs them to note what it has set free.
    pub(super) fn spares_of_own(&self) -> usize {
        usize::from(self.cold.is_some())
    }

    /// With a cold tier the WAL has a bound; beyond it appends wait for the sorter.
    pub(super) fn wal_is_at_its_bound(&self) -> bool {
        let departed = self.departed.files.iter().filter(|file| matches!(file, Departed::Spare(_))).count();
        let waiting = self.leaving.len() + departed + self.spares.len();
        let segments = self.sealed.len() + waiting + usize::from(self.active.is_some());
        self.cold.as_ref().is_some_and(|cold| segments >= cold.wal_segments_max(self.limits.segment_bytes))
    }

    /// Keeps enough zero-filled files ready; one at a time.
    pub(super) fn make_spare(&mut self, out: &mut Output<T>) {
        let reuse_waits = self.cold.as_ref().is_some_and(|cold| self.next_reuse(cold).is_some());
        let retry_later = self.zero_retry_at.is_some_and(|at| self.now.monotonic < at) && !reuse_waits;
        if self.spares.len() >= self.limits.spare_segments
            || self.zeroing.is_some()
            || retry_later
            || (self.wal_is_at_its_bound() && self.spares.len() >= self.spares_of_own())
            || !self.is_at_work()
        {
            return;
        }
        let file = self.unfinished.pop().unwrap_or_else(|| {
            self.file_next += 1;
            self.file_next - 1
        });
        let op = self.next_op();
        let reuse = self.take_reuse();
        let from = reuse.as_ref().map(|(number, _)| FileId::Promoted(*number));
        self.zeroing = Some(Zeroing { op, file, reuse });
        out.ops.push((op, DiskOp::Zero { file: FileId::Segment(file), bytes: self.limits.segment_bytes, reuse: from }));
    }

    /// Takes the name in the WAL from a segment that is a promoted one; one at a time.
    pub(super) fn discard_next(&mut self, out: &mut Output<T>) {
        if self.departed.discarding.is_some() || !self.is_at_work() {
            return;
        }
        let Some(Departed::Promoted(file)) = self.departed.files.pop_front_if(|file| matches!(file, Departed::Promoted(_)))
        else {
            return;
        };
        let op = self.next_op();
        self.departed.discarding = Some(op);
        out.ops.push((op, DiskOp::Discard { file: FileId::Segment(file) }));
    }

    /// A full disk is no failure of the log: what is stored stays stored, and retention needs no space. Nor is one zero-fill that
    /// fails otherwise; but when all of them do and the log has no spare left, it has no disk any more.
    pub(super) fn spare_made(&mut self, file: u32, result: Result<(), DiskError>, out: &mut Output<T>) {
        match result {
            Ok(()) => {
                self.spare_failures = 0;
                self.spares.push_back(file);
                self.zero_retry_at = None;
            }
            Err(error) => {
                if self.zero_retry_at.is_none() {
                    tracing::warn!(%error, "no spare segment could be made; trying again");
                }
                self.cold_has_news();
                self.unfinished.push(file);
                self.zero_retry_at = Some(self.now.monotonic + super::SPARE_RETRY);
                self.spare_failures = if error.is_full() { 0 } else { self.spare_failures + 1 };
                let no_spare = self.spares.is_empty() && self.nothing_leaves();
                if no_spare && self.spare_failures >= super::SPARE_FAILURES_MAX {
                    self.fail(error.to_string(), out);
                }
            }
        }
    }

    /// Whole oldest segments go when there are too many bytes of them or they are too old. Never the active one, and never one
    /// before the newest whole snapshot.
    pub(super) fn retain(&mut self) {
        if self.now.monotonic >= self.retention_check_at {
            self.retention_check_at = self.now.monotonic + super::RETENTION_CHECK;
        }
        while self.is_due_to_go() && !self.pin_holds_oldest() {
            self.recycle_oldest();
        }
    }

    /// Whether the oldest segment is not wanted any more.
    pub(super) fn is_due_to_go(&self) -> bool {
        self.may_recycle() && (self.cold.is_some() || self.too_many_bytes() || self.too_old())
    }

    /// With a cold tier: only what is in it.
    fn may_recycle(&self) -> bool {
        let flushed = self.cold.as_ref().map_or(u64::MAX, |cold| cold.flushed);
        self.sealed.front().is_some_and(|oldest| oldest.sequence < self.snapshot_sequence && oldest.sequence <= flushed)
    }

    fn too_many_bytes(&self) -> bool {
        // When no spare can be made, the segment that is needed next counts too: it can only come from retention.
        let next = self.spares.is_empty() && self.nothing_leaves() && self.zero_retry_at.is_some();
        let segments = self.sealed.len() as u64 + u64::from(self.active.is_some()) + u64::from(next);
        self.limits.retention_bytes.is_some_and(|max| segments * self.limits.segment_bytes > max)
    }

    fn too_old(&self) -> bool {
        let Some(age) = self.limits.retention_age_ms else { return false };
        self.sealed.front().is_some_and(|oldest| oldest.last_written_ms.saturating_add(age) < self.now.wall_ms)
    }

    fn recycle_oldest(&mut self) {
        let oldest = self.sealed.pop_front().expect("may_recycle");
        self.superblock.first_sequence = oldest.sequence + 1;
        self.superblock_dirty = true;
        self.leaving.push_back(oldest);
    }

    /// The superblock says durably where the log begins now: what is older may be seen no more and be written again.
    pub(super) fn recycled_up_to(&mut self, first_sequence: u64) {
        while let Some(gone) = self.leaving.pop_front_if(|segment| segment.sequence < first_sequence) {
            let mut tables = self.view.tables_mut();
            let shown = tables.segments.pop_front().expect("shown since it was written");
            assert_eq!(u64::from(shown.sequence), gone.sequence, "segments leave in order");
            drop(tables);
            // The file of a promoted one is a cold segment as well: never a spare.
            let promoted = self.cold.as_mut().is_some_and(|cold| cold.linked.remove(&gone.sequence));
            self.counters.recycled += u64::from(!promoted);
            self.departed.files.push_back(if promoted { Departed::Promoted(gone.file) } else { Departed::Spare(gone.file) });
        }
        self.take_spares();
    }

    /// No file is on its way to become a spare.
    fn nothing_leaves(&self) -> bool {
        self.leaving.is_empty() && !self.departed.files.iter().any(|file| matches!(file, Departed::Spare(_)))
    }

    /// What has left the WAL is a spare when everything that left before it is out of the way.
    pub(super) fn take_spares(&mut self) {
        while self.departed.discarding.is_none()
            && let Some(Departed::Spare(file)) = self.departed.files.front()
        {
            self.spares.push_back(*file);
            self.departed.files.pop_front();
            self.zero_retry_at = None;
        }
    }

    /// The index has a bound: first older segments keep one entry a partition, then the oldest segment goes.
    pub(super) fn bound_index(&mut self) {
        let max = self.limits.index_entries_max;
        if self.view.tables().index_entries <= max {
            return;
        }
        let newest = self.active.as_ref().map_or(0, |active| active.sequence as u32);
        let mut tables = self.view.tables_mut();
        tables.trim_all();
        tables.thin(newest);
        let still_full = tables.index_entries > max / 4 * 3;
        drop(tables);
        if still_full && self.leaving.is_empty() && self.may_recycle() {
            if self.pin_holds_oldest() {
                self.lose_pin(super::PinLost::IndexFull);
            }
            self.counters.recycled_for_index += 1;
            self.recycle_oldest();
        }
    }
}
