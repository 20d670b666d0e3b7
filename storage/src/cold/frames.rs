//! Frames of a promoted WAL segment as a cold reader sees them: verified by their own CRCs, and by the log and the WAL sequence that
//! the manifest names. What of them counts the index says; the rest of the file means nothing.

use std::collections::HashMap;
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
    let runs = frame_runs(of, place, stored)?;
    wanted(&runs, place).map(drop)?;
    Ok(runs)
}

/// All of a frame, in order.
fn frame_runs(of: &FramesOf, place: &BlockPlace, stored: &Bytes) -> Result<Vec<ColdEntry>, &'static str> {
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
    Ok(runs)
}

/// What an index entry names of its frame. What it leaves out was below its partition's start.
fn wanted<'a>(runs: &'a [ColdEntry], place: &BlockPlace) -> Result<impl Iterator<Item = &'a ColdEntry>, &'static str> {
    let named = runs.binary_search_by_key(&(place.partition, place.first_offset), |run| (run.partition, run.base_offset));
    let from = named.map_err(|_| "it has not the records that the index names")?;
    let partition = place.partition;
    Ok(runs[from..].iter().take_while(move |run| run.partition == partition))
}

/// Walks a promoted segment in the order of its index. What a frame holds of several partitions is wanted in several places, so as many index
/// entries as memory has room for are looked up together, each of their frames once: a segment is read as often as its records fill that memory,
/// or as it has partitions, whichever is less.
pub(super) struct FrameScan<F, D> {
    of: FramesOf,
    index: Arc<ColdIndex>,
    next: usize,
    runs: std::vec::IntoIter<ColdEntry>,
    fetch: F,
    damaged: D,
    memory_bytes: usize,
    /// Entries that lead to a frame, by where it lies.
    sharing: HashMap<u64, usize>,
}

impl<F, D> FrameScan<F, D> {
    /// As [`super::merge::BlockScan::new`], but `fetch` reads the `.wal` file.
    pub(super) fn new(of: FramesOf, index: Arc<ColdIndex>, (fetch, damaged): (F, D), memory_bytes: usize) -> FrameScan<F, D> {
        let mut sharing = HashMap::new();
        index.blocks().iter().for_each(|place| *sharing.entry(place.at).or_default() += 1);
        FrameScan { of, index, next: 0, runs: Vec::new().into_iter(), fetch, damaged, memory_bytes, sharing }
    }

    /// So many of the next entries as fill the memory, if frames are not compressed and share alike; at least one.
    fn together(&self) -> usize {
        let mut bytes = 0;
        let fits = |place: &&BlockPlace| {
            bytes += place.bytes as usize / self.sharing[&place.at];
            bytes <= self.memory_bytes
        };
        self.index.blocks()[self.next..].iter().take_while(fits).count().max(1)
    }
}

impl<E, F: FnMut(u64, usize) -> Result<Bytes, E>, D: FnMut(DamagedBlock)> FrameScan<F, D> {
    /// The runs of the next `count` entries, in their order; `None` where that is much more than there is memory for.
    fn collect(&mut self, count: usize) -> Result<Option<Vec<ColdEntry>>, E> {
        let index = Arc::clone(&self.index);
        let mut ordinals: Vec<usize> = (self.next..self.next + count).collect();
        ordinals.sort_by_key(|ordinal| index.block(*ordinal).at);
        let (mut found, mut bytes) = (Vec::new(), 0);
        for of_frame in ordinals.chunk_by(|one, other| index.block(*one).at == index.block(*other).at) {
            let place = index.block(of_frame[0]);
            let stored = (self.fetch)(place.at, place.bytes as usize)?;
            let frame = frame_runs(&self.of, &place, &stored);
            for &ordinal in of_frame {
                let place = index.block(ordinal);
                match frame.as_ref().map_err(|reason| *reason).and_then(|runs| wanted(runs, &place)) {
                    // A copy, where the rest of the frame is not wanted for long.
                    Ok(runs) => found.extend(runs.map(|run| {
                        bytes += run.batches.len();
                        let batches = if count > 1 { Bytes::copy_from_slice(&run.batches) } else { run.batches.clone() };
                        ColdEntry { batches, ..run.clone() }
                    })),
                    Err(reason) => {
                        let until = index.blocks().get(ordinal + 1).map(|next| (next.partition, next.first_offset));
                        let error = ColdError::Damaged { number: self.of.number, part: Part::Frame(ordinal as u32), reason };
                        (self.damaged)(DamagedBlock { error, place, until });
                    }
                }
            }
            if count > 1 && bytes > 2 * self.memory_bytes {
                return Ok(None);
            }
        }
        found.sort_by_key(|run| (run.partition, run.base_offset));
        Ok(Some(found))
    }
}

impl<E, F: FnMut(u64, usize) -> Result<Bytes, E>, D: FnMut(DamagedBlock)> RunSource for FrameScan<F, D> {
    type Error = E;

    fn next(&mut self) -> Result<Option<ColdEntry>, E> {
        loop {
            if let Some(run) = self.runs.next() {
                return Ok(Some(run));
            }
            if self.next == self.index.len() {
                return Ok(None);
            }
            let mut count = self.together();
            let found = loop {
                match self.collect(count)? {
                    Some(found) => break found,
                    // Compressed frames hold more than they take on the disk.
                    None => count = count.div_ceil(2),
                }
            };
            self.next += count;
            self.runs = found.into_iter();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::super::{Footer, FramePlace, SegmentHead, SegmentWriter};
    use super::*;
    use crate::format::BLOCK;
    use crate::format::frame::{Entry, FrameKind};

    const PARTITIONS: u32 = 12;
    const FRAMES: u32 = 20;
    const OF: FramesOf = FramesOf { number: 5, log_id: [9; 16], sequence: 3 };

    fn header(lsn: u32, payload: &[u8]) -> FrameHeader {
        let payload_bytes = payload.len() as u32;
        FrameHeader {
            header_crc: 0,
            kind: FrameKind::Data,
            zstd: false,
            epoch: 1,
            lsn: u64::from(lsn),
            segment_sequence: OF.sequence,
            durable_lsn: 0,
            prev_crc: 0,
            entries: PARTITIONS,
            payload_bytes,
            payload_raw_bytes: payload_bytes,
            payload_crc: crc32c::crc32c(payload),
            written_ms: 0,
            volume_id: OF.log_id,
            block: 0,
            file: None,
            epoch_lsn: 0,
        }
    }

    /// 100 bytes of each partition in each frame, of which all are one.
    fn run(partition: u32, frame: u32) -> ColdEntry {
        let base_offset = i64::from(frame) * 10;
        let batches = Bytes::from(vec![(partition * FRAMES + frame) as u8; 100]);
        ColdEntry { partition: PartitionId(partition), base_offset, next_offset: base_offset + 10, max_timestamp: 7, batches }
    }

    /// The frames one behind the other, and the index of all that is in them.
    fn segment() -> (Vec<u8>, Arc<ColdIndex>) {
        let head = SegmentHead {
            log_id: OF.log_id,
            number: OF.number,
            class: 0,
            first_lsn: 1,
            last_lsn: 20,
            created_ms: 0,
            compacted: false,
            promoted: true,
        };
        let (mut file, mut writer) = (Vec::new(), SegmentWriter::new(head));
        for number in 0..FRAMES {
            let runs: Vec<ColdEntry> = (0..PARTITIONS).map(|partition| run(partition, number)).collect();
            let payload: Vec<u8> = runs.iter().flat_map(|run| run.batches.to_vec()).collect();
            let mut frame = vec![0; frame::frame_bytes(runs.len(), payload.len())];
            let (at, bytes) = (file.len() as u64, frame.len() as u32);
            for (n, run) in runs.iter().enumerate() {
                let (byte_start, byte_count) = (n as u32 * 100, 100);
                let entry = Entry {
                    base_offset: run.base_offset,
                    record_count: 10,
                    max_timestamp: 7,
                    byte_start,
                    byte_count,
                    ..Entry::of(EntryKind::Batches, run.partition.0)
                };
                entry.encode(&mut frame[frame::header_bytes(n)..frame::header_bytes(n + 1)]);
                writer.push_frame(FramePlace {
                    partition: run.partition,
                    first_offset: run.base_offset,
                    next_offset: run.next_offset,
                    max_timestamp: 7,
                    records: 10,
                    batch_bytes: 100,
                    at,
                    bytes,
                });
            }
            frame[frame::header_bytes(runs.len())..][..payload.len()].copy_from_slice(&payload);
            frame::seal(&header(number + 1, &payload), &mut frame);
            file.extend(frame);
        }
        let (pieces, _) = writer.finish();
        let cold: Vec<u8> = pieces.iter().flat_map(|(_, piece)| piece.to_vec()).collect();
        let footer = Footer::decode(OF.number, cold.len() as u64, &Bytes::copy_from_slice(&cold[cold.len() - BLOCK..])).unwrap();
        let stored = &cold[footer.index_at as usize..][..footer.index_bytes as usize];
        (file, Arc::new(ColdIndex::decode(&footer, &Bytes::copy_from_slice(stored)).unwrap()))
    }

    /// What a scan gives, how often it read a frame, and what it found damaged.
    fn scan(file: &[u8], index: &Arc<ColdIndex>, memory_bytes: usize) -> (Vec<ColdEntry>, usize, Vec<ColdError>) {
        let (reads, mut damaged) = (Cell::new(0), Vec::new());
        let fetch = |at: u64, bytes: usize| {
            reads.set(reads.get() + 1);
            Ok::<_, Infallible>(Bytes::copy_from_slice(&file[at as usize..at as usize + bytes]))
        };
        let mut scan =
            FrameScan::new(OF, Arc::clone(index), (fetch, |block: DamagedBlock| damaged.push(block.error)), memory_bytes);
        let runs = std::iter::from_fn(|| scan.next().unwrap()).collect();
        drop(scan);
        (runs, reads.get(), damaged)
    }

    fn all() -> Vec<ColdEntry> {
        (0..PARTITIONS).flat_map(|partition| (0..FRAMES).map(move |frame| run(partition, frame))).collect()
    }

    #[test]
    fn a_frame_of_many_partitions_is_read_once_where_there_is_memory_for_all() {
        let (file, index) = segment();
        assert_eq!(scan(&file, &index, 1 << 20), (all(), FRAMES as usize, vec![]));
        let (runs, reads, _) = scan(&file, &index, 0);
        assert!(runs == all() && reads == (FRAMES * PARTITIONS) as usize, "{reads} reads");
        let (runs, reads, _) = scan(&file, &index, file.len() / 4);
        assert!(runs == all() && reads <= 5 * FRAMES as usize, "{reads} reads");
    }

    proptest! {
        #[test]
        fn every_memory_gives_the_same_runs_and_the_same_damage(memory_bytes in 0..200_000_usize, lost in 0..FRAMES) {
            let (mut file, index) = segment();
            let bytes = file.len() / FRAMES as usize;
            file[lost as usize * bytes + frame::header_bytes(PARTITIONS as usize)] ^= 1;
            let (runs, _, damaged) = scan(&file, &index, memory_bytes);
            let whole: Vec<ColdEntry> = all().into_iter().filter(|run| run.base_offset != i64::from(lost) * 10).collect();
            prop_assert_eq!(runs, whole);
            prop_assert_eq!(damaged.len(), PARTITIONS as usize);
        }
    }
}
