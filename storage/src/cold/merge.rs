//! One sorted stream out of several: what the sorter, the merge of cold segments and retention are made of.
//!
//! A [`BlockScan`] walks a segment's blocks front to back, about 1 MiB a read; a [`Merge`] takes the smallest run of up to 16
//! such sources, leaves out what retention has given up, and pushes the rest into a [`SegmentWriter`]. In memory are one
//! window and one block a source.

use std::sync::Arc;

use bytes::Bytes;

use super::block::StoredBlock;
use super::{BlockPlace, ColdEntry, ColdError, ColdIndex, Runs, SegmentHead, SegmentWriter, timestamp_of_batches};
use crate::batches;
use crate::types::PartitionId;

/// Sources that one merge takes at most: each holds a window of [`READ_AHEAD_BYTES`].
pub const FAN_IN_MAX: usize = 16;
/// Bytes that a scan fetches at once, unless one block is larger.
pub const READ_AHEAD_BYTES: usize = 1 << 20;

/// Runs in (partition, offset) order.
pub trait RunSource {
    /// Why it could not go on.
    type Error;

    /// The next run; `None` at the end. After an error the source is of no more use.
    fn next(&mut self) -> Result<Option<ColdEntry>, Self::Error>;
}

impl<S: RunSource + ?Sized> RunSource for Box<S> {
    type Error = S::Error;
    fn next(&mut self) -> Result<Option<ColdEntry>, S::Error> {
        (**self).next()
    }
}

/// Why a merge stopped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MergeError<E> {
    /// A source could not be read.
    #[error("{0}")]
    Source(E),
    /// Two sources hold the same offsets, or one is not sorted: nothing may be made of them.
    #[error("two cold segments both claim offset {offset} of partition {partition}: run `weir check`")]
    Overlap {
        /// Whose.
        partition: PartitionId,
        /// First offset that was there already.
        offset: i64,
    },
}

/// A merge under way.
pub struct Merge<S, K> {
    /// Each with its next run.
    sources: Vec<(S, Option<ColdEntry>)>,
    keep: K,
    /// End of what came last.
    last: (PartitionId, i64),
    dropped_bytes: u64,
}

impl<S: RunSource, K: FnMut(PartitionId, i64) -> Option<i64>> Merge<S, K> {
    /// Merges these. `keep` is asked of each run, by its partition and next offset, from which offset on the partition still
    /// counts; `None`: it was dropped. Only whole batches are left out.
    ///
    /// # Panics
    /// With more than [`FAN_IN_MAX`] sources.
    pub fn new(sources: impl IntoIterator<Item = S>, keep: K) -> Result<Merge<S, K>, MergeError<S::Error>> {
        let sources = sources.into_iter().map(|mut source| {
            let head = source.next().map_err(MergeError::Source)?;
            Ok((source, head))
        });
        let sources: Vec<_> = sources.collect::<Result<_, _>>()?;
        assert!(sources.len() <= FAN_IN_MAX, "the caller merges in several steps");
        Ok(Merge { sources, keep, last: (PartitionId(0), i64::MIN), dropped_bytes: 0 })
    }

    /// Pushes one more run into the writer; false at the end. Take what is ready from the writer after each step: it is not
    /// bounded here.
    pub fn step(&mut self, writer: &mut SegmentWriter) -> Result<bool, MergeError<S::Error>> {
        let entry = self.next()?;
        if let Some(entry) = &entry {
            writer.push(entry);
        }
        Ok(entry.is_some())
    }

    /// Bytes of batches left out so far.
    pub fn dropped_bytes(&self) -> u64 {
        self.dropped_bytes
    }

    fn next_of_all(&mut self) -> Result<Option<ColdEntry>, MergeError<S::Error>> {
        let heads = self.sources.iter_mut().filter(|(_, head)| head.is_some());
        let first = heads.min_by_key(|(_, head)| head.as_ref().map(|entry| (entry.partition, entry.base_offset)));
        let Some((source, head)) = first else { return Ok(None) };
        let next = source.next().map_err(MergeError::Source)?;
        let Some(entry) = std::mem::replace(head, next) else { return Ok(None) };
        if (entry.partition, entry.base_offset) < self.last {
            return Err(MergeError::Overlap { partition: entry.partition, offset: entry.base_offset });
        }
        self.last = (entry.partition, entry.next_offset);
        Ok(Some(entry))
    }
}

impl<S: RunSource, K: FnMut(PartitionId, i64) -> Option<i64>> RunSource for Merge<S, K> {
    type Error = MergeError<S::Error>;

    fn next(&mut self) -> Result<Option<ColdEntry>, Self::Error> {
        while let Some(entry) = self.next_of_all()? {
            let before = entry.batches.len();
            let kept = (self.keep)(entry.partition, entry.next_offset).and_then(|start| above(entry, start));
            self.dropped_bytes += (before - kept.as_ref().map_or(0, |entry| entry.batches.len())) as u64;
            if kept.is_some() {
                return Ok(kept);
            }
        }
        Ok(None)
    }
}

/// The entry without its batches that end at or below `start`.
pub(super) fn above(mut entry: ColdEntry, start: i64) -> Option<ColdEntry> {
    if entry.next_offset <= start {
        return None;
    }
    if entry.base_offset >= start {
        return Some(entry);
    }
    // What makes no sense as a batch stays: nothing is lost here.
    let below =
        |span: &batches::Span| batches::base_offset(&entry.batches[span.at..]).saturating_add(span.offsets.into()) <= start;
    let cut = batches::split(&entry.batches).map_while(|span| span.filter(below)).last();
    if let Some(cut) = cut {
        entry.batches = entry.batches.slice(cut.at + cut.bytes..);
        let base_offset = entry.batches.get(..8).map_or(start, batches::base_offset);
        entry.base_offset = base_offset.clamp(entry.base_offset, entry.next_offset - 1);
        entry.max_timestamp = timestamp_of_batches(&entry.batches).unwrap_or(entry.max_timestamp);
    }
    Some(entry).filter(|entry| !entry.batches.is_empty())
}

/// A block that could not be read, and what is lost with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DamagedBlock {
    /// What is wrong with it.
    pub error: ColdError,
    /// From which partition and offset on, and to which partition, as the index has it.
    pub place: BlockPlace,
    /// Where the next block goes on; none behind the last.
    pub until: Option<(PartitionId, i64)>,
}

/// Walks all blocks of a segment in their order.
pub struct BlockScan<F, D> {
    index: Arc<ColdIndex>,
    next: usize,
    runs: Runs,
    window: Bytes,
    window_at: u64,
    fetch: F,
    damaged: D,
}

impl<F, D: FnMut(DamagedBlock)> BlockScan<F, D> {
    /// Scans the segment with this header and index. `fetch` gives bytes of its file, from an offset on and so many; where it
    /// gives fewer, the block alone is asked for, and if that is short too it counts as damaged. Each damaged block is told to
    /// `damaged` and then left out.
    ///
    /// # Panics
    /// When it is the index of a promoted WAL segment, which has no blocks.
    pub fn new(head: &SegmentHead, index: Arc<ColdIndex>, fetch: F, damaged: D) -> BlockScan<F, D> {
        assert!(!head.promoted, "frames of a promoted segment are no blocks");
        BlockScan { index, next: 0, runs: Runs::default(), window: Bytes::new(), window_at: 0, fetch, damaged }
    }

    fn in_window(&self, place: &BlockPlace) -> Option<Bytes> {
        let from = usize::try_from(place.at.checked_sub(self.window_at)?).ok()?;
        let end = from.checked_add(place.bytes as usize)?;
        (end <= self.window.len()).then(|| self.window.slice(from..end))
    }

    /// Bytes of this block and of those behind it that fit `ahead`.
    fn window_bytes(&self, ahead: usize) -> usize {
        let start = self.index.block(self.next).at;
        let mut bytes = self.index.block(self.next).bytes as usize;
        for place in &self.index.blocks()[self.next + 1..] {
            if place.at != start + bytes as u64 || bytes + place.bytes as usize > ahead {
                break;
            }
            bytes += place.bytes as usize;
        }
        bytes
    }
}

impl<E, F: FnMut(u64, usize) -> Result<Bytes, E>, D: FnMut(DamagedBlock)> BlockScan<F, D> {
    /// The next block as it is stored; too short where the file is.
    fn stored(&mut self) -> Result<Bytes, E> {
        let place = self.index.block(self.next);
        if let Some(stored) = self.in_window(&place) {
            return Ok(stored);
        }
        // The second time without read-ahead: one bad sector must not take the blocks around it along.
        for ahead in [READ_AHEAD_BYTES, 0] {
            let wanted = self.window_bytes(ahead);
            self.window = Bytes::new();
            self.window = (self.fetch)(place.at, wanted)?;
            self.window_at = place.at;
            if let Some(stored) = self.in_window(&place) {
                return Ok(stored);
            }
        }
        Ok(self.window.clone())
    }
}

impl<E, F: FnMut(u64, usize) -> Result<Bytes, E>, D: FnMut(DamagedBlock)> BlockScan<F, D> {
    /// Where the next block lies, and what it holds, as the index has it.
    pub(super) fn next_place(&self) -> Option<&BlockPlace> {
        self.index.blocks().get(self.next)
    }

    /// Leaves the next block out.
    pub(super) fn skip(&mut self) {
        self.next += 1;
    }

    /// The next block, verified; in its stead what is wrong with it.
    pub(super) fn next_stored(&mut self) -> Result<Option<Result<StoredBlock, ColdError>>, E> {
        if self.next == self.index.len() {
            return Ok(None);
        }
        let stored = self.stored()?;
        let block = self.next;
        self.next += 1;
        Ok(Some(StoredBlock::verify(self.index.number(), block as u32, &stored)))
    }
}

impl<E, F: FnMut(u64, usize) -> Result<Bytes, E>, D: FnMut(DamagedBlock)> RunSource for BlockScan<F, D> {
    type Error = E;

    fn next(&mut self) -> Result<Option<ColdEntry>, E> {
        loop {
            if let Some(run) = self.runs.next() {
                return Ok(Some(run));
            }
            let block = self.next;
            let Some(stored) = self.next_stored()? else { return Ok(None) };
            match stored.and_then(StoredBlock::unpack) {
                Ok(block) => self.runs = block.runs(),
                Err(error) => {
                    let until = self.next_place().map(|next| (next.partition, next.first_offset));
                    (self.damaged)(DamagedBlock { error, place: self.index.block(block), until });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;
    use crate::cold::tests::{Plan, entries, flat, head, open, plan, read, write};
    use crate::cold::{BLOCK_RAW_BYTES, Part};

    struct Listed(std::vec::IntoIter<ColdEntry>);

    impl RunSource for Listed {
        type Error = Infallible;
        fn next(&mut self) -> Result<Option<ColdEntry>, Infallible> {
            Ok(self.0.next())
        }
    }

    fn all<S: RunSource>(source: &mut S) -> Result<Vec<ColdEntry>, S::Error> {
        let mut all = Vec::new();
        while let Some(entry) = source.next()? {
            all.push(entry);
        }
        Ok(all)
    }

    /// Dealt to so many sources, each sorted.
    fn deal(entries: &[ColdEntry], to: &[usize], sources: usize) -> Vec<Listed> {
        let mut dealt = vec![Vec::new(); sources];
        entries.iter().zip(to.iter().cycle()).for_each(|(entry, to)| dealt[to % sources].push(entry.clone()));
        dealt.into_iter().map(|list| Listed(list.into_iter())).collect()
    }

    fn fetch_from(file: &[u8]) -> impl FnMut(u64, usize) -> Result<Bytes, Infallible> + '_ {
        |at, bytes| {
            let from = (at as usize).min(file.len());
            Ok(Bytes::copy_from_slice(&file[from..(from + bytes).min(file.len())]))
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_merge_is_the_sorted_whole_without_what_is_given_up(plans in proptest::collection::vec(plan(), 1..20), to in proptest::collection::vec(0..16_usize, 1..20), sources in 1..=FAN_IN_MAX, starts in proptest::collection::vec(proptest::option::of(0..1500_i64), 60)) {
            let entries = entries(&plans);
            let start = |partition: PartitionId| starts[partition.0 as usize % starts.len()];
            let mut merge = Merge::new(deal(&entries, &to, sources), |partition, _| start(partition)).unwrap();
            let mut writer = SegmentWriter::new(head());
            while merge.step(&mut writer).unwrap() {}
            let dropped_bytes = merge.dropped_bytes();
            let mut file: Vec<u8> = std::iter::from_fn(|| writer.take_ready()).flat_map(|(_, piece)| piece.to_vec()).collect();
            let (rest, summary) = writer.finish();
            rest.iter().for_each(|(_, piece)| file.extend_from_slice(piece));
            let runs = read(&file).unwrap().3;
            let expected: Vec<_> = flat(&entries).into_iter()
                .filter(|(partition, base, batch)| start(*partition).is_some_and(|start| base + i64::from(batches::record_count(batch)) > start))
                .collect();
            prop_assert_eq!(flat(&runs), expected);
            prop_assert_eq!(dropped_bytes + summary.batch_bytes, entries.iter().map(|entry| entry.batches.len() as u64).sum::<u64>());
            for run in &runs {
                prop_assert_eq!(run.base_offset, batches::base_offset(&run.batches));
                prop_assert_eq!(Some(run.max_timestamp), timestamp_of_batches(&run.batches));
            }
        }

        #[test]
        fn a_scan_finds_every_run_in_few_reads(plans in proptest::collection::vec(plan(), 0..20)) {
            let entries = entries(&plans);
            let (file, _) = write(head(), &entries);
            let (_, _, index) = open(&file).unwrap();
            let (blocks_bytes, largest) = index.blocks().iter().fold((0, 0), |(all, most), place| (all + place.bytes as usize, most.max(place.bytes as usize)));
            let mut reads = Vec::new();
            let mut fetch = fetch_from(&file);
            let counted = |at, bytes| {
                reads.push(bytes);
                fetch(at, bytes)
            };
            let runs = all(&mut BlockScan::new(&head(), Arc::new(index), counted, |damage| panic!("{damage:?}"))).unwrap();
            prop_assert_eq!(flat(&runs), flat(&entries));
            prop_assert_eq!(reads.iter().sum::<usize>(), blocks_bytes, "no byte is read twice");
            prop_assert!(reads.iter().all(|bytes| *bytes <= READ_AHEAD_BYTES.max(largest)));
            prop_assert!(reads.windows(2).all(|two| two[0] + two[1] > READ_AHEAD_BYTES), "as much as fits: {reads:?}");
        }
    }

    /// 40 blocks of one batch each.
    fn forty_blocks() -> (Vec<u8>, Arc<ColdIndex>, Vec<ColdEntry>) {
        let plan = Plan { partition_step: 1, hole: 0, batches: vec![(10, BLOCK_RAW_BYTES - 200); 20], compressible: false };
        let entries = entries(&[plan.clone(), plan]);
        let (file, summary) = write(head(), &entries);
        assert_eq!(summary.blocks, 40);
        let (_, _, index) = open(&file).unwrap();
        (file, Arc::new(index), entries)
    }

    #[test]
    fn a_damaged_block_is_told_of_and_costs_only_itself() {
        let (mut file, index, entries) = forty_blocks();
        for block in [7, 19, 39] {
            file[index.block(block).at as usize + 1000] ^= 1;
        }
        let damage = RefCell::new(Vec::new());
        let told = |block| damage.borrow_mut().push(block);
        let runs = all(&mut BlockScan::new(&head(), Arc::clone(&index), fetch_from(&file), told)).unwrap();
        let expected: Vec<_> =
            flat(&entries).into_iter().enumerate().filter(|(n, _)| ![7, 19, 39].contains(n)).map(|(_, b)| b).collect();
        assert_eq!(flat(&runs), expected);
        let damage = damage.into_inner();
        let parts: Vec<_> = damage.iter().map(|block| block.error).collect();
        assert!(
            parts.iter().zip([7, 19, 39]).all(|(e, n)| matches!(e, ColdError::Damaged { part: Part::Block(b), .. } if *b == n))
        );
        assert_eq!((damage[0].place.partition, damage[0].place.first_offset), (PartitionId(1), 1070));
        assert_eq!(damage[0].until, Some((PartitionId(1), 1080)));
        assert_eq!(damage[1].until, Some((PartitionId(2), 1000)), "all of partition 1 behind it");
        assert_eq!(damage[2].until, None);
    }

    #[test]
    fn a_sector_that_cannot_be_read_does_not_take_the_read_ahead_along() {
        let (file, index, entries) = forty_blocks();
        let bad = index.block(3).at as usize + 5000;
        // A read over the bad sector gives nothing at all.
        let fetch = |at: u64, bytes: usize| {
            let (from, to) = (at as usize, at as usize + bytes);
            let to = if (from..to).contains(&bad) { from } else { to };
            Ok::<_, Infallible>(Bytes::copy_from_slice(&file[from..to]))
        };
        let damage = RefCell::new(Vec::new());
        let told = |block: DamagedBlock| damage.borrow_mut().push(block.place);
        let runs = all(&mut BlockScan::new(&head(), Arc::clone(&index), fetch, told)).unwrap();
        assert_eq!(flat(&runs).len(), flat(&entries).len() - 1);
        assert_eq!(damage.into_inner(), [index.block(3)]);
    }

    #[test]
    fn a_failed_read_ends_the_merge() {
        let (file, index, _) = forty_blocks();
        let end = index.block(30).at;
        let fetch = |at: u64, bytes: usize| {
            if at > end { Err("the disk is gone") } else { Ok(Bytes::copy_from_slice(&file[at as usize..at as usize + bytes])) }
        };
        let scan = BlockScan::new(&head(), index, fetch, |damage| panic!("{damage:?}"));
        let mut merge = Merge::new([scan], |_, _| Some(0)).unwrap();
        assert_eq!(all(&mut merge), Err(MergeError::Source("the disk is gone")));
    }

    #[test]
    fn segments_that_claim_the_same_offsets_are_not_merged() {
        let entries = entries(&[Plan { partition_step: 1, hole: 0, batches: vec![(10, 10)], compressible: false }]);
        let twice = [entries.clone(), entries].map(|list| Listed(list.into_iter()));
        let mut merge = Merge::new(twice, |_, _| Some(0)).unwrap();
        assert_eq!(all(&mut merge), Err(MergeError::Overlap { partition: PartitionId(1), offset: 1000 }));
    }

    #[test]
    #[should_panic(expected = "in several steps")]
    fn more_than_16_sources_are_our_own_mistake() {
        let _ = Merge::new((0..=FAN_IN_MAX).map(|_| Listed(Vec::new().into_iter())), |_, _| Some(0));
    }
}
