//! Several cold segments become one without being unpacked more than it takes. What a partition has in one of them follows what it has in
//! the one before, so large blocks of one partition are taken over as they are; small ones, and those of several partitions, are
//! unpacked and gathered anew.
//!
//! What nobody can read any more stays behind, as it was when the job began: partitions that were dropped, records below the start of
//! theirs. Memory: a window and a block an input.

use std::sync::Arc;

use bytes::Bytes;

use super::block::{Keep, StoredBlock};
use super::job::JobError;
use super::merge::{BlockScan, DamagedBlock, above};
use super::rewrite::{Extent, Extents};
use super::{BlockPlace, ColdEntry, ColdError, ColdIndex, Part, Runs, SegmentHead, SegmentWriter};
use crate::disk::DiskError;
use crate::types::PartitionId;

/// The segment that is being made.
pub(super) trait Sink {
    /// Adds something, and takes from the writer what is ready.
    fn add(&mut self, add: impl FnOnce(&mut SegmentWriter)) -> Result<(), DiskError>;

    /// Whether the rest has to wait.
    fn gives_way(&self) -> bool;

    /// Adds a block as it is.
    fn take_over(&mut self, block: &StoredBlock, place: &BlockPlace) -> Result<(), DiskError>;
}

/// What becomes of a partition.
enum Fate<'a> {
    /// Everything stays.
    Whole(&'a Extent),
    /// What lies from this offset on.
    From(i64),
    Gone,
}

impl Fate<'_> {
    fn of(extent: &Extent) -> Fate<'_> {
        match extent.start {
            Some(start) if start <= extent.span.first_offset => Fate::Whole(extent),
            Some(start) if start < extent.span.next_offset => Fate::From(start),
            _ => Fate::Gone,
        }
    }
}

/// One of the segments.
pub(super) struct Source<F> {
    number: u32,
    scan: BlockScan<F, fn(DamagedBlock)>,
    runs: Runs,
    run: Option<ColdEntry>,
}

impl<F: FnMut(u64, usize) -> Result<Bytes, DiskError>> Source<F> {
    pub(super) fn new(head: &SegmentHead, index: Arc<ColdIndex>, fetch: F) -> Source<F> {
        Source { number: head.number, scan: BlockScan::new(head, index, fetch, |_| {}), runs: Runs::default(), run: None }
    }

    fn partition(&self) -> Option<PartitionId> {
        let run = self.run.as_ref().map(|run| run.partition);
        run.or_else(|| self.scan.next_place().map(|place| place.partition))
    }

    /// What comes next goes where its partition's fate wants it; where it begins and, if that is known, ends.
    fn step(&mut self, fate: &Fate<'_>, keep: Keep, out: &mut impl Sink) -> Result<(i64, i64), JobError> {
        if let Some(run) = self.run.take() {
            self.run = self.runs.next();
            let reach = (run.base_offset, run.next_offset);
            match fate {
                Fate::Whole(_) => out.add(|writer| writer.gather(&run))?,
                Fate::From(start) => above(run, *start).map_or(Ok(()), |run| out.add(|writer| writer.push(&run)))?,
                Fate::Gone => {}
            }
            return Ok(reach);
        }
        let place = *self.scan.next_place().expect("the caller has seen its partition");
        let reach = (place.first_offset, place.first_offset);
        let alone = place.partition == place.last_partition;
        if alone && matches!(fate, Fate::Gone) {
            self.scan.skip();
            return Ok(reach);
        }
        let block = self.scan.next_stored()?.expect("the same")?;
        if alone && matches!(fate, Fate::Whole(_)) && block.is_good_as_it_is(keep) {
            out.take_over(&block, &place)?;
        } else {
            self.runs = block.unpack()?.runs();
            self.run = self.runs.next();
        }
        Ok(reach)
    }
}

/// Writes what counts of these, in order of their frames.
pub(super) fn join<F: FnMut(u64, usize) -> Result<Bytes, DiskError>>(
    mut sources: Vec<Source<F>>,
    extents: &Extents,
    keep: Keep,
    out: &mut impl Sink,
) -> Result<(), JobError> {
    while let Some(partition) = sources.iter().filter_map(Source::partition).min() {
        let fate = Fate::of(extents.get(&partition).ok_or_else(|| unnamed(&sources, partition))?);
        if let Fate::Whole(extent) = &fate {
            out.add(|writer| writer.announce(extent.span, extent.min_timestamp))?;
        }
        let mut end = i64::MIN;
        for source in &mut sources {
            while source.partition() == Some(partition) {
                if out.gives_way() {
                    return Err(JobError::GaveWay);
                }
                let (from, to) = source.step(&fate, keep, out)?;
                if from < end {
                    return Err(JobError::Overlap(format!(
                        "two cold segments both claim offset {from} of partition {partition}: run `weir check`"
                    )));
                }
                end = to;
            }
        }
    }
    Ok(())
}

/// Nothing may be left out because a page says nothing of it.
fn unnamed<F: FnMut(u64, usize) -> Result<Bytes, DiskError>>(sources: &[Source<F>], partition: PartitionId) -> JobError {
    let holder = sources.iter().find(|source| source.partition() == Some(partition));
    let number = holder.map_or(0, |source| source.number);
    JobError::Cold(ColdError::Damaged { number, part: Part::Index, reason: "a block's partition is on none of its pages" })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::batches;
    use crate::cold::tests::{Plan, entries, flat, head, open, plan, read};
    use crate::cold::{BLOCK_RAW_BYTES, Packing, PartitionSpan};

    const KEEP: Keep = Keep { bytes: BLOCK_RAW_BYTES / 2, haste: false };

    struct Made {
        writer: SegmentWriter,
        file: Vec<u8>,
        taken_over: usize,
    }

    impl Sink for Made {
        fn add(&mut self, add: impl FnOnce(&mut SegmentWriter)) -> Result<(), DiskError> {
            add(&mut self.writer);
            while let Some((_, piece)) = self.writer.take_ready() {
                self.file.extend_from_slice(&piece);
            }
            Ok(())
        }

        fn gives_way(&self) -> bool {
            false
        }

        fn take_over(&mut self, block: &StoredBlock, place: &BlockPlace) -> Result<(), DiskError> {
            self.taken_over += 1;
            self.add(|writer| writer.take_over(block, place))
        }
    }

    impl Made {
        fn new(packing: Packing) -> Made {
            Made { writer: SegmentWriter::with_packing(head(), packing), file: Vec::new(), taken_over: 0 }
        }

        fn finish(self) -> Vec<u8> {
            let Made { writer, mut file, .. } = self;
            writer.finish().0.iter().for_each(|(_, piece)| file.extend_from_slice(piece));
            file
        }
    }

    fn written(entries: &[ColdEntry], packing: Packing) -> Vec<u8> {
        let mut made = Made::new(packing);
        entries.iter().for_each(|entry| made.add(|writer| writer.push(entry)).unwrap());
        made.finish()
    }

    /// What each partition has is cut into so many parts, one a segment.
    fn dealt(entries: &[ColdEntry], segments: usize) -> Vec<Vec<ColdEntry>> {
        let mut dealt = vec![Vec::new(); segments];
        for of_one in entries.chunk_by(|a, b| a.partition == b.partition) {
            for (n, entry) in of_one.iter().enumerate() {
                dealt[n * segments / of_one.len()].push(entry.clone());
            }
        }
        dealt
    }

    fn extents_of(files: &[Vec<u8>], start: impl Fn(PartitionId) -> Option<i64>) -> Extents {
        let mut extents: Extents = HashMap::new();
        for (number, file) in (0..).zip(files) {
            let (_, footer, spans, _) = read(file).unwrap();
            for span in spans {
                let start = start(span.partition);
                let new =
                    Extent { span, min_timestamp: footer.min_timestamp, start, begins_in: (number, false), ends_in: number };
                extents.entry(span.partition).and_modify(|known| known.span.extend(&span)).or_insert(new);
            }
        }
        extents
    }

    fn fetch_from(file: &[u8]) -> impl FnMut(u64, usize) -> Result<Bytes, DiskError> + '_ {
        |at, bytes| {
            let from = (at as usize).min(file.len());
            Ok(Bytes::copy_from_slice(&file[from..(from + bytes).min(file.len())]))
        }
    }

    fn joined(files: &[Vec<u8>], extents: &Extents, keep: Keep) -> Result<Made, JobError> {
        let source = |file| Source::new(&head(), Arc::new(open(file).unwrap().2), fetch_from(file));
        let mut made = Made::new(Packing::Well);
        join(files.iter().map(|file| source(file.as_slice())).collect(), extents, keep, &mut made)?;
        Ok(made)
    }

    fn spans_of(batches_of: &[(PartitionId, i64, Bytes)]) -> Vec<(PartitionId, u64, u64)> {
        let one = |of_one: &[(PartitionId, i64, Bytes)]| {
            let bytes = of_one.iter().map(|(.., batch)| batch.len() as u64).sum();
            let records = of_one.iter().map(|(.., batch)| u64::from(batches::record_count(batch))).sum();
            (of_one[0].0, bytes, records)
        };
        batches_of.chunk_by(|a, b| a.0 == b.0).map(one).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_is_joined_is_the_whole_without_what_is_given_up(plans in proptest::collection::vec(plan(), 1..20), segments in 1..6_usize, starts in proptest::collection::vec(proptest::option::weighted(0.9, 0..1500_i64), 60), packing in prop_oneof![Just(Packing::Well), Just(Packing::Quick), Just(Packing::None)], keep in 100..100_000_usize) {
            let entries = entries(&plans);
            let start = |partition: PartitionId| starts[partition.0 as usize % starts.len()];
            let files: Vec<_> = dealt(&entries, segments).iter().filter(|part| !part.is_empty()).map(|part| written(part, packing)).collect();
            let extents = extents_of(&files, start);
            let file = joined(&files, &extents, Keep { bytes: keep, haste: false }).unwrap().finish();
            let expected: Vec<_> = flat(&entries).into_iter()
                .filter(|(partition, base, batch)| start(*partition).is_some_and(|start| base + i64::from(batches::record_count(batch)) > start))
                .collect();
            let (_, footer, spans, runs) = read(&file).unwrap();
            prop_assert_eq!(flat(&runs), &expected[..]);
            let said = |span: &PartitionSpan| (span.partition, span.batch_bytes, span.records);
            prop_assert_eq!(spans.iter().map(said).collect::<Vec<_>>(), spans_of(&expected));
            prop_assert_eq!(footer.max_timestamp, runs.iter().map(|run| run.max_timestamp).max().unwrap_or_default());
            prop_assert!(footer.min_timestamp <= footer.max_timestamp);
        }
    }

    /// Two partitions of 20 large batches each, in two segments.
    fn two_segments(packing: Packing) -> (Vec<ColdEntry>, Vec<Vec<u8>>) {
        let plan =
            |step| Plan { partition_step: step, hole: 0, batches: vec![(10, BLOCK_RAW_BYTES - 200); 10], compressible: true };
        let entries = entries(&[plan(1), plan(0), plan(1), plan(0)]);
        let files = dealt(&entries, 2).iter().map(|part| written(part, packing)).collect();
        (entries, files)
    }

    #[test]
    fn large_blocks_are_taken_over_and_those_packed_in_haste_are_packed_anew() {
        for (packing, keep_haste, taken_over) in
            [(Packing::Well, false, 40), (Packing::Quick, false, 0), (Packing::None, false, 0), (Packing::Quick, true, 40)]
        {
            let (entries, files) = two_segments(packing);
            let keep = Keep { haste: keep_haste, ..KEEP };
            let made = joined(&files, &extents_of(&files, |_| Some(0)), keep).unwrap();
            assert_eq!(made.taken_over, taken_over);
            assert_eq!(flat(&read(&made.finish()).unwrap().3), flat(&entries));
        }
    }

    #[test]
    fn a_damaged_block_ends_it_even_where_it_is_not_unpacked() {
        let (_, mut files) = two_segments(Packing::Well);
        let extents = extents_of(&files, |_| Some(0));
        let at = open(&files[1]).unwrap().2.block(3).at as usize;
        files[1][at + 100] ^= 1;
        let error = joined(&files, &extents, KEEP).err();
        assert!(matches!(error, Some(JobError::Cold(ColdError::Damaged { part: Part::Block(3), .. }))), "{error:?}");
    }

    #[test]
    fn offsets_that_two_segments_claim_and_partitions_without_a_page_end_it() {
        let (_, files) = two_segments(Packing::Well);
        let extents = extents_of(&files, |_| Some(0));
        let twice = [files[0].clone(), files[0].clone()];
        assert!(matches!(joined(&twice, &extents, KEEP).err(), Some(JobError::Overlap(_))));
        let mut fewer = extents_of(&files, |_| Some(0));
        fewer.remove(&PartitionId(2));
        let error = joined(&files, &fewer, KEEP).err();
        assert!(matches!(error, Some(JobError::Cold(ColdError::Damaged { part: Part::Index, .. }))), "{error:?}");
    }

    #[test]
    fn what_is_gone_is_not_even_read() {
        let (_, files) = two_segments(Packing::Well);
        let extents = extents_of(&files, |_| None);
        let index = Arc::new(open(&files[0]).unwrap().2);
        let source = Source::new(&head(), index, |_, _| panic!("nobody asked for it"));
        let mut made = Made::new(Packing::Well);
        join(vec![source], &extents, KEEP, &mut made).unwrap();
        assert_eq!(made.file.len(), 0);
    }
}
