//! What is durable, as readers see it. The log thread changes it once per commit; readers hold its locks for a look-up.
//!
//! The index has one 16-byte entry per (partition, frame): first offset and where the frame lies. An entry may be missing (old
//! segments are thinned when the index is full), so a read starts at the last entry at or below its offset and walks forward.
//! Entries of recycled segments are dead; they are cut off when their partition is next touched.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;

use crate::cold::manifest::ManifestEntry;
use crate::report::Gap;
use crate::stats::{LogStats, ReadCounters};
use crate::table::{NumberMap, PartitionMap};
use crate::types::{ClassId, PartitionBounds, PartitionId, ProducerKey, ProducerState};
use crate::volumes::Volumes;

/// Gaps remembered at most; the oldest are forgotten.
pub const GAPS_MAX: usize = 4096;

/// Where a frame lies. Ordered as the log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Sequence of the segment; 32 bits are 2^58 bytes at the default size.
    pub sequence: u32,
    /// Block in its file.
    pub block: u32,
}

/// One entry of the index: the first offset a partition has in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// Offset.
    pub base_offset: i64,
    /// Frame.
    pub position: Position,
}

const _: () = assert!(size_of::<IndexEntry>() == 16 && size_of::<Option<Partition>>() == 48);

/// A partition's durable side.
#[derive(Debug, Default)]
pub struct Partition {
    /// First offset kept, as far as known; without a cold tier dead index entries may raise it.
    pub start: i64,
    /// One past the last durable record.
    pub next: i64,
    /// Frames of the WAL that hold its records.
    pub index: Vec<IndexEntry>,
    /// By which rules it is kept.
    pub class: ClassId,
}

impl Partition {
    /// Index entries of segments that still exist.
    pub fn live(&self, first_sequence: u32) -> &[IndexEntry] {
        &self.index[self.dead(first_sequence)..]
    }

    fn dead(&self, first_sequence: u32) -> usize {
        match self.index.first() {
            Some(first) if first.position.sequence < first_sequence => {
                self.index.partition_point(|entry| entry.position.sequence < first_sequence)
            }
            _ => 0,
        }
    }

    /// First offset in the WAL.
    pub fn wal_start(&self, first_sequence: u32) -> i64 {
        self.index.get(self.dead(first_sequence)).map_or(self.next, |entry| entry.base_offset)
    }

    /// First offset kept where there is nothing but the WAL.
    fn start_without_cold(&self, first_sequence: u32) -> i64 {
        let dead = self.dead(first_sequence);
        if dead == 0 { self.start } else { self.start.max(self.wal_start(first_sequence)) }
    }

    /// Cuts dead entries off; returns how many. Without a cold tier their records are gone.
    fn trim(&mut self, first_sequence: u32, tiered: bool) -> usize {
        let dead = self.dead(first_sequence);
        if dead > 0 {
            if !tiered {
                self.start = self.start_without_cold(first_sequence);
            }
            self.index.drain(..dead);
            if self.index.capacity() > 16 && self.index.len() < self.index.capacity() / 4 {
                self.index.shrink_to(self.index.len() * 2);
            }
        }
        dead
    }

    fn push(&mut self, entry: IndexEntry) {
        // Thin partitions are many: grow from one entry, not from four.
        if self.index.len() == self.index.capacity() {
            self.index.reserve_exact(self.index.len().max(1));
        }
        self.index.push(entry);
    }
}

/// A segment readers may walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentPlace {
    /// Sequence.
    pub sequence: u32,
    /// File number.
    pub file: u32,
    /// First block behind its durable frames.
    pub end_block: u32,
}

/// A cold segment that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ColdPlace {
    /// Its number.
    pub number: u32,
    /// What the manifest says of it.
    pub entry: ManifestEntry,
}

/// Partitions, segments and gaps: what one commit changes together.
#[derive(Debug, Default)]
pub struct Tables {
    /// Partitions that are open.
    pub partitions: PartitionMap<Partition>,
    /// Segments with frames, oldest first, without holes.
    pub segments: VecDeque<SegmentPlace>,
    /// Index entries of all partitions, dead ones included.
    pub index_entries: usize,
    /// Known gaps: (partition, first offset lost) to first offset behind.
    pub gaps: BTreeMap<(PartitionId, i64), i64>,
    /// Partitions of which the WAL may hold an earlier life, known only since damage is whole again: frames before this one tell of that.
    pub begun: BTreeMap<PartitionId, u64>,
    /// Whether segments that have left the WAL live on in cold ones: then only retention raises a start.
    pub tiered: bool,
    /// Cold segments, in order of their frames. Readers take a copy of the pointer.
    pub cold: Arc<Vec<Arc<ColdPlace>>>,
    /// Bytes of their files.
    pub cold_bytes: u64,
    /// Bytes of the record batches in them, before compression.
    pub cold_batch_bytes: u64,
    /// Bytes of the files of those that were promoted in haste.
    pub cold_unsorted_bytes: u64,
}

impl Tables {
    /// Oldest segment kept.
    pub fn first_sequence(&self) -> u32 {
        self.segments.front().map_or(0, |segment| segment.sequence)
    }

    /// The segment with this sequence.
    pub fn segment(&self, sequence: u32) -> Option<SegmentPlace> {
        let at = sequence.checked_sub(self.first_sequence())?;
        self.segments.get(at as usize).copied()
    }

    /// Valid offsets of a partition.
    pub fn bounds(&self, id: PartitionId) -> Option<PartitionBounds> {
        let partition = self.partitions.get(id)?;
        Some(PartitionBounds { start: self.start_of(partition), high_watermark: partition.next })
    }

    /// First offset kept of a partition.
    pub fn start_of(&self, partition: &Partition) -> i64 {
        if self.tiered { partition.start } else { partition.start_without_cold(self.first_sequence()) }
    }

    /// A cold segment.
    pub fn cold_place(&self, number: u32) -> Option<&Arc<ColdPlace>> {
        self.cold.iter().find(|place| place.number == number)
    }

    /// A cold segment counts from now on.
    pub fn add_cold(&mut self, place: ColdPlace) {
        if let Some(old) = Arc::make_mut(&mut self.cold).iter_mut().find(|other| other.number == place.number) {
            // Its copies lie elsewhere now; nothing else of it ever changes.
            *old = Arc::new(place);
            return;
        }
        let key = |place: &ColdPlace| (place.entry.first_lsn, place.number);
        self.cold_bytes += place.entry.stored_bytes();
        self.cold_batch_bytes += place.entry.batch_bytes;
        self.cold_unsorted_bytes += place.entry.unsorted_bytes();
        let cold = Arc::make_mut(&mut self.cold);
        let at = cold.partition_point(|other| key(other) < key(&place));
        cold.insert(at, Arc::new(place));
    }

    /// It counts no more.
    pub fn remove_cold(&mut self, number: u32) {
        Arc::make_mut(&mut self.cold).retain(|place| place.number != number);
        self.cold_bytes = self.cold.iter().map(|place| place.entry.stored_bytes()).sum();
        self.cold_batch_bytes = self.cold.iter().map(|place| place.entry.batch_bytes).sum();
        self.cold_unsorted_bytes = self.cold.iter().map(|place| place.entry.unsorted_bytes()).sum();
    }

    /// Raises the first offset kept; never beyond the end, never back.
    pub fn raise_start(&mut self, id: PartitionId, start: i64) {
        if let Some(partition) = self.partitions.get_mut(id) {
            partition.start = partition.start.max(start.min(partition.next));
        }
    }

    /// Other rules hold for this partition from now on.
    pub fn set_class(&mut self, id: PartitionId, class: ClassId) {
        if let Some(partition) = self.partitions.get_mut(id) {
            partition.class = class;
        }
    }

    /// Records of one directory entry became durable. Returns whether this is the partition's first entry of the frame.
    pub fn extend(&mut self, id: PartitionId, base_offset: i64, next: i64, position: Position) -> bool {
        let (first_sequence, tiered) = (self.first_sequence(), self.tiered);
        let Some(partition) = self.partitions.get_mut(id) else { return false };
        debug_assert!(partition.next <= base_offset && base_offset <= next, "offsets only grow");
        if partition.index.last().is_some_and(|last| last.position == position) {
            partition.next = next;
            return false;
        }
        // Before the end moves: where every entry is dead, the start is the end that was, and not behind the new records.
        self.index_entries -= partition.trim(first_sequence, tiered);
        partition.next = next;
        partition.push(IndexEntry { base_offset, position });
        self.index_entries += 1;
        true
    }

    /// Opens a partition at offset 0, unless it is open.
    pub fn open(&mut self, id: PartitionId) {
        if self.partitions.get(id).is_none() {
            self.partitions.insert(id, Partition::default());
        }
    }

    /// Forgets a partition.
    pub fn drop_partition(&mut self, id: PartitionId) {
        if let Some(partition) = self.partitions.remove(id) {
            self.index_entries -= partition.index.len();
        }
        self.begun.remove(&id);
        self.gaps.retain(|(partition, _), _| *partition != id);
    }

    /// Whether what this frame holds of a partition is of an earlier life of its number.
    pub fn is_former(&self, id: PartitionId, lsn: u64) -> bool {
        self.begun.get(&id).is_some_and(|begun| lsn < *begun)
    }

    /// Remembers records as lost.
    pub fn add_gap(&mut self, gap: Gap) {
        if gap.from < gap.to {
            let to = self.gaps.entry((gap.partition, gap.from)).or_insert(gap.to);
            *to = (*to).max(gap.to);
        }
        while self.gaps.len() > GAPS_MAX {
            self.gaps.pop_first();
        }
    }

    /// The known gap that holds this offset.
    pub fn gap_at(&self, id: PartitionId, offset: i64) -> Option<Gap> {
        let (&(partition, from), &to) = self.gaps.range(..=(id, offset)).next_back()?;
        (partition == id && offset < to).then_some(Gap { partition, from, to })
    }

    /// Where the next known gap behind this offset begins.
    pub fn next_gap(&self, id: PartitionId, offset: i64) -> Option<i64> {
        let (&(partition, from), _) = self.gaps.range((id, offset + 1)..).next()?;
        (partition == id).then_some(from)
    }

    /// Cuts dead entries off every partition, and gaps below every start.
    pub fn trim_all(&mut self) {
        let (first_sequence, tiered) = (self.first_sequence(), self.tiered);
        let dead: usize = self.partitions.iter_mut().map(|(_, partition)| partition.trim(first_sequence, tiered)).sum();
        self.index_entries -= dead;
        // What a partition starts with now: trimmed, it is the same with and without a cold tier.
        let partitions = &self.partitions;
        self.gaps.retain(|(id, _), to| partitions.get(*id).is_some_and(|partition| *to > partition.start));
    }

    /// Leaves one entry per (partition, segment) in segments older than `below`.
    pub fn thin(&mut self, below: u32) {
        let mut left = 0;
        for (_, partition) in self.partitions.iter_mut() {
            partition
                .index
                .dedup_by(|entry, kept| entry.position.sequence < below && entry.position.sequence == kept.position.sequence);
            partition.index.shrink_to_fit();
            left += partition.index.len();
        }
        self.index_entries = left;
    }
}

/// Where one entry of a frame lies in its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Partition.
    pub partition: PartitionId,
    /// First offset.
    pub base_offset: i64,
    /// Offset behind the last.
    pub next_offset: i64,
    /// Highest timestamp.
    pub max_timestamp: i64,
    /// Start in the payload.
    pub byte_start: u32,
    /// Length in the payload.
    pub byte_count: u32,
}

/// A frame's payload in memory, with what is needed to find a partition's batches in it.
#[derive(Debug)]
pub struct CachedFrame {
    payload: Bytes,
    /// In order of partition and offset.
    slices: Box<[Slice]>,
    /// Blocks of the whole frame on disk: where the next one starts.
    pub blocks: u32,
}

impl CachedFrame {
    /// Takes the slices in any order.
    pub fn new(payload: Bytes, mut slices: Vec<Slice>, blocks: u32) -> CachedFrame {
        slices.sort_unstable_by_key(|slice| (slice.partition, slice.base_offset));
        CachedFrame { payload, slices: slices.into_boxed_slice(), blocks }
    }

    /// A partition's entries, in order of their offsets.
    pub fn of_partition(&self, id: PartitionId) -> &[Slice] {
        let from = self.slices.partition_point(|slice| slice.partition < id);
        let to = from + self.slices[from..].partition_point(|slice| slice.partition == id);
        &self.slices[from..to]
    }

    /// The bytes of one entry.
    pub fn bytes(&self, slice: &Slice) -> Bytes {
        let from = slice.byte_start as usize;
        self.payload.slice(from..from + slice.byte_count as usize)
    }

    /// Memory it holds.
    pub fn cost(&self) -> usize {
        self.payload.len() + self.slices.len() * size_of::<Slice>() + 128
    }
}

/// Frames in memory, bounded by bytes; the oldest go first.
#[derive(Debug)]
pub struct FrameCache {
    frames: NumberMap<Position, Arc<CachedFrame>>,
    order: VecDeque<Position>,
    bytes: usize,
    bytes_max: usize,
}

impl FrameCache {
    /// An empty cache.
    pub fn new(bytes_max: usize) -> FrameCache {
        FrameCache { frames: NumberMap::default(), order: VecDeque::new(), bytes: 0, bytes_max }
    }

    /// Adds a frame and drops the oldest beyond the bound.
    pub fn insert(&mut self, position: Position, frame: Arc<CachedFrame>) {
        self.bytes += frame.cost();
        if let Some(old) = self.frames.insert(position, frame) {
            self.bytes -= old.cost();
        } else {
            self.order.push_back(position);
        }
        while self.bytes > self.bytes_max {
            let Some(oldest) = self.order.pop_front() else { break };
            if let Some(frame) = self.frames.remove(&oldest) {
                self.bytes -= frame.cost();
            }
        }
    }

    /// Forgets all.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn clear(&mut self) {
        *self = FrameCache::new(self.bytes_max);
    }

    /// Looks one up.
    pub fn get(&self, position: Position) -> Option<&Arc<CachedFrame>> {
        self.frames.get(&position)
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// The durable state and recent frames, shared between the log thread and readers.
#[derive(Debug)]
pub struct View {
    tables: RwLock<Tables>,
    producers: RwLock<NumberMap<ProducerKey, ProducerState>>,
    meta: RwLock<BTreeMap<Vec<u8>, Vec<u8>>>,
    tail: RwLock<FrameCache>,
    stats: Mutex<LogStats>,
    volumes: Mutex<Volumes>,
    /// Sorting is due: a job that can wait gives way.
    hurry: AtomicBool,
    pub(crate) reads: ReadCounters,
}

impl View {
    /// What recovery found.
    pub fn new(
        tables: Tables,
        producers: NumberMap<ProducerKey, ProducerState>,
        meta: BTreeMap<Vec<u8>, Vec<u8>>,
        tail_cache_bytes: usize,
    ) -> View {
        View {
            tables: RwLock::new(tables),
            producers: RwLock::new(producers),
            meta: RwLock::new(meta),
            tail: RwLock::new(FrameCache::new(tail_cache_bytes)),
            stats: Mutex::default(),
            volumes: Mutex::default(),
            hurry: AtomicBool::new(false),
            reads: ReadCounters::default(),
        }
    }

    // Nobody panics with one of these held, so a poisoned lock still guards a sound table.
    /// Partitions, segments, gaps.
    pub fn tables(&self) -> RwLockReadGuard<'_, Tables> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }
    pub(crate) fn tables_mut(&self) -> RwLockWriteGuard<'_, Tables> {
        self.tables.write().unwrap_or_else(PoisonError::into_inner)
    }
    /// Producers' durable states.
    pub fn producers(&self) -> RwLockReadGuard<'_, NumberMap<ProducerKey, ProducerState>> {
        self.producers.read().unwrap_or_else(PoisonError::into_inner)
    }
    pub(crate) fn producers_mut(&self) -> RwLockWriteGuard<'_, NumberMap<ProducerKey, ProducerState>> {
        self.producers.write().unwrap_or_else(PoisonError::into_inner)
    }
    /// Metadata.
    pub fn meta(&self) -> RwLockReadGuard<'_, BTreeMap<Vec<u8>, Vec<u8>>> {
        self.meta.read().unwrap_or_else(PoisonError::into_inner)
    }
    pub(crate) fn meta_mut(&self) -> RwLockWriteGuard<'_, BTreeMap<Vec<u8>, Vec<u8>>> {
        self.meta.write().unwrap_or_else(PoisonError::into_inner)
    }
    /// Recent frames.
    pub fn tail(&self) -> RwLockReadGuard<'_, FrameCache> {
        self.tail.read().unwrap_or_else(PoisonError::into_inner)
    }
    pub(crate) fn tail_mut(&self) -> RwLockWriteGuard<'_, FrameCache> {
        self.tail.write().unwrap_or_else(PoisonError::into_inner)
    }
    /// The volumes of the cold tier. Nothing else is locked while this is.
    pub fn volumes(&self) -> MutexGuard<'_, Volumes> {
        self.volumes.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// Whether a job that can wait gives way to sorting.
    pub(crate) fn hurry(&self, hurry: bool) {
        self.hurry.store(hurry, Ordering::Relaxed);
    }

    pub(crate) fn is_in_hurry(&self) -> bool {
        self.hurry.load(Ordering::Relaxed)
    }

    pub(crate) fn stats_mut(&self) -> MutexGuard<'_, LogStats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: PartitionId = PartitionId(3);

    fn at(sequence: u32, block: u32) -> Position {
        Position { sequence, block }
    }

    fn tables() -> Tables {
        let mut tables = Tables::default();
        tables.segments.extend((1..=3).map(|sequence| SegmentPlace { sequence, file: sequence, end_block: 9 }));
        tables.open(P);
        for (n, position) in [at(1, 1), at(1, 2), at(2, 1), at(3, 1), at(3, 2)].into_iter().enumerate() {
            let base = n as i64 * 10;
            assert!(tables.extend(P, base, base + 5, position));
            assert!(!tables.extend(P, base + 5, base + 10, position), "one entry a frame");
        }
        tables
    }

    #[test]
    fn start_rises_with_each_recycled_segment_and_reaches_the_high_watermark() {
        let mut tables = tables();
        assert_eq!(tables.bounds(P), Some(PartitionBounds { start: 0, high_watermark: 50 }));
        tables.segments.pop_front();
        assert_eq!(tables.bounds(P).unwrap().start, 20);
        tables.segments.pop_front();
        tables.segments.pop_front();
        tables.segments.push_back(SegmentPlace { sequence: 4, file: 1, end_block: 1 });
        assert_eq!(tables.bounds(P).unwrap().start, 50);
        tables.trim_all();
        assert_eq!(tables.bounds(P), Some(PartitionBounds { start: 50, high_watermark: 50 }));
        assert_eq!(tables.index_entries, 0);
    }

    #[test]
    fn records_after_all_older_ones_were_recycled_are_within_the_valid_range() {
        let mut tables = tables();
        tables.segments = [SegmentPlace { sequence: 4, file: 1, end_block: 9 }].into();
        assert!(tables.extend(P, 50, 55, at(4, 1)));
        assert_eq!(tables.bounds(P), Some(PartitionBounds { start: 50, high_watermark: 55 }));
    }

    #[test]
    fn thinning_keeps_the_first_entry_of_each_segment() {
        let mut tables = tables();
        tables.thin(3);
        let bases: Vec<i64> = tables.partitions.get(P).unwrap().index.iter().map(|entry| entry.base_offset).collect();
        assert_eq!(bases, [0, 20, 30, 40]);
        assert_eq!(tables.index_entries, 4);
    }

    #[test]
    fn gaps_are_found_by_any_offset_inside() {
        let mut tables = tables();
        tables.add_gap(Gap { partition: P, from: 7, to: 12 });
        assert_eq!(tables.gap_at(P, 6), None);
        assert_eq!(tables.gap_at(P, 11).unwrap().from, 7);
        assert_eq!(tables.gap_at(P, 12), None);
        assert_eq!(tables.gap_at(PartitionId(4), 11), None);
        assert_eq!(tables.next_gap(P, 6), Some(7));
        assert_eq!(tables.next_gap(P, 7), None);
        assert_eq!(tables.next_gap(PartitionId(2), 0), None);
    }

    #[test]
    fn the_frame_cache_stays_within_its_bytes() {
        let mut cache = FrameCache::new(5000);
        for block in 0..100 {
            cache.insert(at(1, block), Arc::new(CachedFrame::new(Bytes::from(vec![0; 1000]), Vec::new(), 1)));
            assert!(cache.bytes() <= 5000);
        }
        assert!(cache.get(at(1, 99)).is_some() && cache.get(at(1, 0)).is_none());
    }
}
