//! Frames of a promoted WAL segment as a cold reader sees them: verified by their own CRCs, and by the log and the WAL sequence that
//! the manifest names. What of them counts the index says; the rest of the file means nothing.

use std::sync::Arc;

use bytes::Bytes;

use super::merge::{DamagedBlock, RunSource};
use super::{Block, BlockPlace, ColdEntry, ColdError, ColdIndex, Part};
use crate::format::Uuid;
use crate::format::frame::{self, EntryKind, FrameHeader};
use crate::types::PartitionId;

/// Whose frames they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FramesOf {
    /// The cold segment.
    pub number: u32,
    /// Volume id in them.
    pub log_id: Uuid,
    /// The life of the WAL segment.
    pub sequence: u64,
}

/// The frame that this index entry names, its payload still as it is stored.
fn verified<'a>(of: &FramesOf, place: &BlockPlace, stored: &'a Bytes) -> Result<(FrameHeader, &'a [u8]), &'static str> {
    let header = frame::decode_header(stored)?;
    if header.volume_id != of.log_id || header.segment_sequence != of.sequence {
        return Err("it is a frame of another log, or of another life of the segment");
    }
    if header.frame_bytes() != place.bytes as usize || stored.len() != place.bytes as usize {
        return Err("it is not the frame that the index names");
    }
    let payload = header.verified_payload(stored)?;
    Ok((header, payload))
}

/// Whether a frame is as it was written; `stored` is exactly what the index names.
pub(super) fn is_intact(of: &FramesOf, place: &BlockPlace, stored: &Bytes) -> bool {
    verified(of, place, stored).is_ok()
}

/// Verifies and decompresses the frame of an index entry with this ordinal; `stored` is exactly what the index names. Its runs are those of
/// all its partitions.
pub fn decode_frame(of: &FramesOf, ordinal: u32, place: &BlockPlace, stored: &Bytes) -> Result<Block, ColdError> {
    let runs = runs_of(of, place, stored);
    runs.map(Block::of_frame).map_err(|reason| ColdError::Damaged { number: of.number, part: Part::Frame(ordinal), reason })
}

fn runs_of(of: &FramesOf, place: &BlockPlace, stored: &Bytes) -> Result<Vec<ColdEntry>, &'static str> {
    let (header, payload) = verified(of, place, stored)?;
    let entries = header.directory(stored)?;
    let raw = if header.zstd { Bytes::from(header.raw_payload(payload)?) } else { stored.slice_ref(payload) };
    let mut runs: Vec<ColdEntry> = entries
        .iter()
        .filter(|entry| entry.kind == EntryKind::Batches)
        .map(|entry| ColdEntry {
            partition: PartitionId(entry.partition),
            base_offset: entry.base_offset,
            next_offset: entry.next_offset(),
            max_timestamp: entry.max_timestamp,
            batches: raw.slice(entry.range()),
        })
        .collect();
    runs.sort_by_key(|run| (run.partition, run.base_offset));
    let named = runs.binary_search_by_key(&(place.partition, place.first_offset), |run| (run.partition, run.base_offset));
    if named.is_err() { Err("it has not the records that the index names") } else { Ok(runs) }
}

/// Walks a promoted segment in the order of its index: partition by partition, so a frame of several is read as often.
pub(super) struct FrameScan<F, D> {
    of: FramesOf,
    index: Arc<ColdIndex>,
    next: usize,
    runs: std::vec::IntoIter<ColdEntry>,
    fetch: F,
    damaged: D,
}

impl<F, D> FrameScan<F, D> {
    /// As [`super::merge::BlockScan::new`], but `fetch` reads the `.wal` file.
    pub(super) fn new(of: FramesOf, index: Arc<ColdIndex>, fetch: F, damaged: D) -> FrameScan<F, D> {
        FrameScan { of, index, next: 0, runs: Vec::new().into_iter(), fetch, damaged }
    }
}

impl<E, F: FnMut(u64, usize) -> Result<Bytes, E>, D: FnMut(DamagedBlock)> RunSource for FrameScan<F, D> {
    type Error = E;

    fn next(&mut self) -> Result<Option<ColdEntry>, E> {
        loop {
            if let Some(run) = self.runs.next() {
                return Ok(Some(run));
            }
            let Some(place) = self.index.blocks().get(self.next).copied() else { return Ok(None) };
            let stored = (self.fetch)(place.at, place.bytes as usize)?;
            let ordinal = self.next as u32;
            self.next += 1;
            match decode_frame(&self.of, ordinal, &place, &stored) {
                Ok(frame) => {
                    // What the index leaves out was below its partition's start.
                    let counts = |run: &ColdEntry| run.partition == place.partition && run.base_offset >= place.first_offset;
                    self.runs = frame.runs().filter(counts).collect::<Vec<_>>().into_iter();
                }
                Err(error) => {
                    let next = self.index.blocks().get(self.next);
                    let until = next.map(|next| (next.partition, next.first_offset));
                    (self.damaged)(DamagedBlock { error, place, until });
                }
            }
        }
    }
}
