//! Several cold segments become one without being unpacked more than it takes. What a partition has in one of them follows what it has in
//! the one before, so large blocks of one partition are taken over as they are; small ones, and those of several partitions, are
//! unpacked and gathered anew.
//!
//! What nobody can read any more stays behind, as it was when the job began: partitions that were dropped, records below the start of
//! theirs. Memory: a window and a block an input.

use std::sync::Arc;

use bytes::Bytes;

use super::block::Keep;
use super::job::JobError;
use super::merge::{BlockScan, DamagedBlock, above};
use super::rewrite::{Extent, Extents, Out};
use super::{ColdEntry, ColdError, ColdIndex, Part, Runs, SegmentHead};
use crate::disk::DiskError;
use crate::types::PartitionId;

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
    fn step(&mut self, fate: &Fate<'_>, keep: Keep, out: &mut Out<'_, '_>) -> Result<(i64, i64), JobError> {
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
    out: &mut Out<'_, '_>,
) -> Result<(), JobError> {
    while let Some(partition) = sources.iter().filter_map(Source::partition).min() {
        let fate = Fate::of(extents.get(&partition).ok_or_else(|| unnamed(&sources, partition))?);
        if let Fate::Whole(extent) = &fate {
            out.add(|writer| writer.announce(extent.span, extent.min_timestamp))?;
        }
        let mut end = i64::MIN;
        for source in &mut sources {
            while source.partition() == Some(partition) {
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
