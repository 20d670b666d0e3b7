//! What a frame's own CRC does not vouch for: that what was put into it makes sense.

use std::collections::HashMap;

use weir_batch::{BatchError, RecordBatch};

use crate::core::decode_meta_ops;
use crate::format::frame::{Entry, EntryKind, FrameHeader};
use crate::report::Gap;
use crate::types::PartitionId;

/// Problems of one segment that are told one by one.
const PROBLEMS_MAX: usize = 1000;

/// Counts what is good in a segment's frames, and names what is not.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) batches: u64,
    pub(super) records: u64,
    pub(super) bytes: u64,
    /// Where in the file, and what.
    pub(super) problems: Vec<(u64, String)>,
    pub(super) problems_total: u64,
    pub(super) lost: Vec<Gap>,
    pub(super) meta_lost: bool,
    /// Of each partition in this segment.
    next: HashMap<u32, i64>,
}

impl Contents {
    /// A frame whose CRCs hold.
    pub(super) fn frame(&mut self, header: &FrameHeader, entries: &[Entry], payload: Option<&[u8]>, at: u64) {
        self.bytes += header.frame_bytes() as u64;
        let Some(payload) = payload else { return };
        let mut end = 0;
        for entry in entries {
            if !entry.range().is_empty() && entry.range().start != end {
                self.problem(at, "its directory leaves bytes out, or names some twice".to_owned());
            }
            end = end.max(entry.range().end);
            let bytes = &payload[entry.range()];
            match entry.kind {
                EntryKind::Batches => self.batches(entry, bytes, at),
                EntryKind::Meta if decode_meta_ops(bytes).is_none() => {
                    self.meta_lost = true;
                    self.problem(at, "its metadata makes no sense".to_owned());
                }
                // Its number may be opened again, from offset 0.
                EntryKind::Dropped => drop(self.next.remove(&entry.partition)),
                EntryKind::Opened if entry.begins => drop(self.next.remove(&entry.partition)),
                _ => {}
            }
        }
        if end != payload.len() {
            self.problem(at, "its payload is longer than its directory says".to_owned());
        }
    }

    fn batches(&mut self, entry: &Entry, bytes: &[u8], at: u64) {
        let partition = entry.partition;
        let next = self.next.insert(partition, entry.next_offset());
        if next.is_some_and(|next| entry.base_offset < next) {
            let base = entry.base_offset;
            self.problem(at, format!("offset {base} of partition {partition} is given out a second time"));
        }
        if let Err(reason) = self.verify_batches(entry, bytes) {
            let (from, to) = (entry.base_offset, entry.next_offset());
            self.lost.push(Gap { partition: PartitionId(partition), from, to });
            self.problem(at, format!("record batches {from}..{to} of partition {partition}: {reason}"));
        }
    }

    /// Batches lie one behind the other, and together they are what the entry says.
    fn verify_batches(&mut self, entry: &Entry, bytes: &[u8]) -> Result<(), String> {
        let (mut rest, mut offset) = (bytes, entry.base_offset);
        while !rest.is_empty() {
            let batch = RecordBatch::verify(rest).map_err(reason)?;
            if batch.base_offset() != offset {
                return Err(format!("a batch begins at {} where {offset} is next", batch.base_offset()));
            }
            offset = batch.next_offset();
            rest = &rest[batch.bytes().len()..];
            self.batches += 1;
            self.records += u64::from(batch.record_count());
        }
        if offset != entry.next_offset() {
            return Err(format!("they end at {offset}"));
        }
        Ok(())
    }

    fn problem(&mut self, at: u64, what: String) {
        self.problems_total += 1;
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push((at, what));
        }
    }
}

/// The error's own sentence tells a producer what to do; here nobody can send anything again.
fn reason(error: BatchError) -> String {
    match error {
        BatchError::BadCrc { .. } => "the CRC of a batch does not match".to_owned(),
        BatchError::Truncated { .. } | BatchError::BadLength { .. } => "the length of a batch makes no sense".to_owned(),
        _ => "the header of a batch makes no sense".to_owned(),
    }
}
