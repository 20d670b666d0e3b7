//! Cold segments out of cold segments: several become one, and of a compacted class only the last value of each key stays.
//!
//! Both stream through the inputs in (partition, offset) order. Compaction goes through them twice, side by side: for each
//! partition the first pass notes its keys, the second writes what stays. Memory: a window an input and pass, and the keys of
//! one partition.
//!
//! Nothing is made of a damaged segment: the job fails, and is tried again without it. It stays as it is, so that what is damaged can
//! still be told from what was left out.

use std::cell::RefCell;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::block::{Keep, Packing, StoredBlock};
use super::compact::{CompactRules, KeyMap, Rewrite, Survey};
use super::frames::FrameScan;
use super::job::{Compact, Done, JobError, NewFile, Workshop, each_span, open_index};
use super::join::{Sink, Source};
use super::merge::{BlockScan, DamagedBlock, Merge, MergeError, RunSource};
use super::{BlockPlace, ColdEntry, ColdIndex, FramesOf, PartitionSpan, SegmentHead, SegmentWriter};
use crate::disk::{ColdStore, DiskError, FileId};
use crate::format::Uuid;
use crate::types::PartitionId;
use crate::view::{ColdPlace, View};

/// What a partition has in the inputs.
pub(super) struct Extent {
    /// In all of them.
    pub(super) span: PartitionSpan,
    /// Of the oldest record there, or older.
    pub(super) min_timestamp: i64,
    /// Where the partition begins, as the job found it; none where it was dropped.
    pub(super) start: Option<i64>,
    /// The first input that has it, and whether that one is compacted.
    pub(super) begins_in: (u32, bool),
    /// The last that has it.
    pub(super) ends_in: u32,
}

pub(super) type Extents = HashMap<PartitionId, Extent>;
type Store<'s> = RefCell<&'s mut dyn ColdStore>;

/// Does the job.
pub(super) fn merge(
    shop: &mut Workshop<'_, '_>,
    inputs: &[ColdPlace],
    compact: Option<&Compact>,
    (number, packing): (u32, Packing),
) -> Result<Done, JobError> {
    let head = head_of(shop, inputs, number, compact.is_some());
    let indexes: Vec<Arc<ColdIndex>> =
        inputs.iter().map(|place| open_index(shop.store, place).map(Arc::new)).collect::<Result<_, _>>()?;
    let extents = check_joints(shop, inputs, &indexes)?;
    let elsewhere = head.compacted.then(|| elsewhere(shop, inputs, &extents)).transpose()?;
    let mut file = NewFile::create(shop.store, head, packing)?;
    let store: Store<'_> = RefCell::new(&mut *shop.store);
    let (view, log_id, holes) = (shop.view, shop.log_id, head.compacted);
    // Compaction goes through them twice.
    let memory_bytes = shop.sort_memory_bytes / inputs.len() / if compact.is_some() { 2 } else { 1 };
    let mut read = Inputs { places: inputs, indexes: &indexes, store: &store, view, log_id, holes, memory_bytes };
    let mut out = Out { file: &mut file, store: &store, view, any: false, kept_bytes: 0 };
    let (clean_to, records_removed) = match compact {
        None => {
            if inputs.iter().any(|place| place.entry.compacted || place.entry.promoted.is_some()) {
                let mut source = read.open()?;
                while let Some(entry) = source.next()? {
                    out.push(&entry)?;
                }
            } else {
                let keep = Keep { bytes: shop.keep_block_bytes, haste: packing != Packing::Well };
                super::join::join(read.sources(), &extents, keep, &mut out)?;
            }
            (BTreeMap::new(), 0)
        }
        Some(rules) => {
            let elsewhere = elsewhere.expect("asked for when compacting");
            compacted(&mut read, rules, &elsewhere, shop.now_ms, &mut out)?
        }
    };
    let (any, kept_bytes) = (out.any, out.kept_bytes);
    // A segment without records has no place in the manifest: what is left of the file goes at the next start.
    let segment = if any { Some((number, file.finish(shop.store, None)?)) } else { None };
    let read_bytes = inputs.iter().map(|place| place.entry.stored_bytes()).sum();
    Ok(Done::Merged { segment, read_bytes, kept_bytes, clean_to, records_removed })
}

/// Offsets that no input has, before a compacted one.
struct LeftOut {
    offsets: Range<i64>,
    before: u32,
    after: u32,
}

/// What a partition has in one input must go on where the one before ended.
fn check_joints(shop: &mut Workshop<'_, '_>, inputs: &[ColdPlace], indexes: &[Arc<ColdIndex>]) -> Result<Extents, JobError> {
    let mut extents = Extents::new();
    let mut left_out: HashMap<PartitionId, Vec<LeftOut>> = HashMap::new();
    let view = shop.view;
    for (place, index) in inputs.iter().zip(indexes) {
        let mut apart = None;
        each_span(shop.store, place, index, |span| {
            let min_timestamp = place.entry.min_timestamp;
            match extents.entry(span.partition) {
                Entry::Vacant(free) => {
                    let start = view.tables().partitions.get(span.partition).map(|partition| partition.start);
                    let begins_in = (place.number, place.entry.compacted);
                    free.insert(Extent { span: *span, min_timestamp, start, begins_in, ends_in: place.number });
                }
                Entry::Occupied(mut known) => {
                    let known = known.get_mut();
                    let offsets = known.span.next_offset..span.first_offset;
                    if !joins(view, span.partition, offsets.start, offsets.end) {
                        if place.entry.compacted && !offsets.is_empty() {
                            let here = LeftOut { offsets, before: known.ends_in, after: place.number };
                            left_out.entry(span.partition).or_default().push(here);
                        } else {
                            apart.get_or_insert(known.ends_in);
                        }
                    }
                    known.span.extend(span);
                    known.min_timestamp = known.min_timestamp.min(min_timestamp);
                    known.ends_in = place.number;
                }
            }
        })?;
        if let Some(before) = apart {
            return Err(JobError::Apart { before, after: place.number });
        }
    }
    check_left_out(shop, inputs, &left_out)?;
    Ok(extents)
}

/// A compacted segment was made when nothing was missing before it: what is, compaction left out, unless another segment has it.
fn check_left_out(
    shop: &mut Workshop<'_, '_>,
    inputs: &[ColdPlace],
    left_out: &HashMap<PartitionId, Vec<LeftOut>>,
) -> Result<(), JobError> {
    let Some(any) = left_out.values().flatten().next() else { return Ok(()) };
    let mut apart = None;
    for place in others(shop.view, inputs) {
        let looked = open_index(shop.store, &place).and_then(|index| {
            each_span(shop.store, &place, &index, |span| {
                let known = left_out.get(&span.partition).into_iter().flatten();
                let has = |hole: &&LeftOut| span.first_offset < hole.offsets.end && hole.offsets.start < span.next_offset;
                apart = apart.or(known.into_iter().find(has).map(|hole| (hole.before, hole.after)));
            })
        });
        if let Err(error) = looked {
            tracing::warn!(%error, "a cold segment cannot be read: segments beside it are not merged as long as it is there");
            apart = apart.or(Some((any.before, any.after)));
        }
        if let Some((before, after)) = apart {
            return Err(JobError::Apart { before, after });
        }
    }
    Ok(())
}

/// All segments but the inputs.
fn others(view: &View, inputs: &[ColdPlace]) -> Vec<Arc<ColdPlace>> {
    let is_input = |place: &Arc<ColdPlace>| inputs.iter().any(|input| input.number == place.number);
    view.tables().cold.iter().filter(|place| !is_input(place)).cloned().collect()
}

/// Whether nothing that counts is missing between the two: what lies below a partition's start is not even sorted.
fn joins(view: &View, partition: PartitionId, end: i64, next: i64) -> bool {
    let below_start = || view.tables().partitions.get(partition).is_none_or(|partition| next <= partition.start);
    end == next || (end < next && below_start())
}

/// Partitions that have older records where this compaction does not reach them, in segments of another class or in one that is
/// damaged: a tombstone may be all that hides one of these. Before a partition's first record nothing may be missing: once compacted,
/// nobody could tell.
fn elsewhere(shop: &mut Workshop<'_, '_>, inputs: &[ColdPlace], extents: &Extents) -> Result<HashSet<PartitionId>, JobError> {
    let mut found = HashSet::new();
    let mut joined = HashSet::new();
    for place in others(shop.view, inputs) {
        let looked = open_index(shop.store, &place).and_then(|index| {
            each_span(shop.store, &place, &index, |span| {
                let Some(extent) = extents.get(&span.partition).filter(|extent| span.first_offset < extent.span.next_offset)
                else {
                    return;
                };
                found.insert(span.partition);
                if span.next_offset == extent.span.first_offset {
                    joined.insert(span.partition);
                }
            })
        });
        if let Err(error) = looked {
            tracing::warn!(%error, "a cold segment cannot be read: tombstones stay as long as it is there");
            found = extents.keys().copied().collect();
        }
    }
    for (&partition, extent) in extents {
        let (number, compacted) = extent.begins_in;
        let first = extent.span.first_offset;
        let start = shop.view.tables().partitions.get(partition).map_or(first, |partition| partition.start);
        if !compacted && first > start && !joined.contains(&partition) {
            return Err(JobError::Hole { number, partition, offset: start });
        }
    }
    Ok(found)
}

fn head_of(shop: &Workshop<'_, '_>, inputs: &[ColdPlace], number: u32, compacting: bool) -> SegmentHead {
    let (first, last) = (inputs.first().expect("there is something to merge"), inputs.last().expect("the same"));
    SegmentHead {
        log_id: shop.log_id,
        number,
        class: first.entry.class,
        first_lsn: first.entry.first_lsn,
        last_lsn: last.entry.last_lsn,
        created_ms: shop.now_ms,
        compacted: compacting || inputs.iter().any(|place| place.entry.compacted),
        promoted: false,
    }
}

struct Inputs<'a, 's> {
    places: &'a [ColdPlace],
    indexes: &'a [Arc<ColdIndex>],
    store: &'a Store<'s>,
    view: &'a View,
    log_id: Uuid,
    /// What is made of them may lack offsets.
    holes: bool,
    /// For the records of each that are wanted in another order.
    memory_bytes: usize,
}

impl<'a> Inputs<'a, '_> {
    /// All blocks of all inputs, none of which is promoted.
    fn sources(&self) -> Vec<Source<impl FnMut(u64, usize) -> Result<Bytes, DiskError> + 'a>> {
        let inputs = self.places.iter().zip(self.indexes);
        let source = |(place, index): (&ColdPlace, &Arc<ColdIndex>)| {
            Source::new(&head_of_input(place), Arc::clone(index), fetch(self.store, FileId::Cold(place.number)))
        };
        inputs.map(source).collect()
    }

    /// All runs of all inputs in order, without what nobody can read any more.
    fn open(&mut self) -> Result<impl RunSource<Error = JobError> + 'a, JobError> {
        let (store, view, log_id, holes) = (self.store, self.view, self.log_id, self.holes);
        let memory_bytes = self.memory_bytes;
        let scans = self.places.iter().zip(self.indexes).map(|(place, index)| {
            let number = place.number;
            let promoted = place.entry.promoted;
            let file = if promoted.is_some() { FileId::Promoted(number) } else { FileId::Cold(number) };
            let fetch = fetch(store, file);
            let damage = Arc::new(std::sync::Mutex::new(None));
            let noted = Arc::clone(&damage);
            let note = move |block: DamagedBlock| {
                noted.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(block.error);
            };
            let scan: Scan<'a> = match promoted {
                None => Box::new(BlockScan::new(&head_of_input(place), Arc::clone(index), fetch, note)),
                Some(wal) => {
                    let of = FramesOf { number, log_id, sequence: wal.sequence };
                    Box::new(FrameScan::new(of, Arc::clone(index), (fetch, note), memory_bytes))
                }
            };
            let whole = (holes && !place.entry.compacted).then_some((place.number, view));
            Sound { scan, damage, whole, last: (PartitionId(0), i64::MIN) }
        });
        let keep = move |id: PartitionId, _: i64| view.tables().partitions.get(id).map(|partition| partition.start);
        Ok(Plain(Merge::new(scans, keep).map_err(plain)?))
    }
}

/// Bytes of a file; none where they cannot be read, which counts as damage of what lies there.
fn fetch<'a>(store: &'a Store<'_>, file: FileId) -> impl FnMut(u64, usize) -> Result<Bytes, DiskError> + 'a {
    move |at, bytes| match store.borrow_mut().read(file, at, bytes) {
        Err(DiskError::Io { .. } | DiskError::Short { .. } | DiskError::Missing { .. }) => Ok(Bytes::new()),
        read => read,
    }
}

/// Blocks or frames of one input.
type Scan<'a> = Box<dyn RunSource<Error = DiskError> + 'a>;

/// Only what a scan must know of its input.
fn head_of_input(place: &ColdPlace) -> SegmentHead {
    SegmentHead {
        log_id: [0; 16],
        number: place.number,
        class: place.entry.class,
        first_lsn: place.entry.first_lsn,
        last_lsn: place.entry.last_lsn,
        created_ms: place.entry.created_ms,
        compacted: place.entry.compacted,
        promoted: place.entry.promoted.is_some(),
    }
}

/// A source that ends with an error at the first damaged block, and where records are missing that no compaction left out: the sorter
/// met damage in the WAL there. In a compacted segment nothing could tell that from what was left out.
struct Sound<'a, S> {
    scan: S,
    damage: Arc<std::sync::Mutex<Option<super::ColdError>>>,
    /// Its number, if nothing may be missing.
    whole: Option<(u32, &'a View)>,
    last: (PartitionId, i64),
}

impl<S: RunSource<Error = DiskError>> RunSource for Sound<'_, S> {
    type Error = JobError;
    fn next(&mut self) -> Result<Option<ColdEntry>, JobError> {
        let entry = self.scan.next()?;
        if let Some(error) = self.damage.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take() {
            return Err(error.into());
        }
        if let (Some(entry), Some((number, view))) = (&entry, self.whole) {
            let (partition, end) = std::mem::replace(&mut self.last, (entry.partition, entry.next_offset));
            if partition == entry.partition && end > i64::MIN && !joins(view, partition, end, entry.base_offset) {
                return Err(JobError::Hole { number, partition, offset: end });
            }
        }
        Ok(entry)
    }
}

/// A merge whose errors are those of its job.
struct Plain<S>(S);

impl<S: RunSource<Error = MergeError<JobError>>> RunSource for Plain<S> {
    type Error = JobError;
    fn next(&mut self) -> Result<Option<ColdEntry>, JobError> {
        self.0.next().map_err(plain)
    }
}

fn plain(error: MergeError<JobError>) -> JobError {
    match error {
        MergeError::Source(error) => error,
        overlap @ MergeError::Overlap { .. } => JobError::Overlap(overlap.to_string()),
    }
}

struct Out<'a, 's> {
    file: &'a mut NewFile,
    store: &'a Store<'s>,
    view: &'a View,
    any: bool,
    kept_bytes: u64,
}

impl Out<'_, '_> {
    fn push(&mut self, entry: &ColdEntry) -> Result<(), DiskError> {
        self.add(|writer| writer.push(entry))
    }
}

impl Sink for Out<'_, '_> {
    fn add(&mut self, add: impl FnOnce(&mut SegmentWriter)) -> Result<(), DiskError> {
        self.any = true;
        self.file.add(&mut **self.store.borrow_mut(), add)
    }

    fn gives_way(&self) -> bool {
        self.view.is_in_hurry()
    }

    fn take_over(&mut self, block: &StoredBlock, place: &BlockPlace) -> Result<(), DiskError> {
        self.kept_bytes += u64::from(place.bytes);
        self.add(|writer| writer.take_over(block, place))
    }
}

/// A source whose next run can be looked at.
struct Peek<S> {
    source: S,
    next: Option<ColdEntry>,
}

impl<S: RunSource> Peek<S> {
    fn new(mut source: S) -> Result<Peek<S>, S::Error> {
        let next = source.next()?;
        Ok(Peek { source, next })
    }

    fn partition(&self) -> Option<PartitionId> {
        self.next.as_ref().map(|entry| entry.partition)
    }

    /// The next run, if it is of this partition.
    fn take(&mut self, partition: PartitionId) -> Result<Option<ColdEntry>, S::Error> {
        if self.partition() != Some(partition) {
            return Ok(None);
        }
        let next = self.source.next()?;
        Ok(std::mem::replace(&mut self.next, next))
    }
}

/// Two passes side by side, partition by partition.
fn compacted(
    inputs: &mut Inputs<'_, '_>,
    rules: &Compact,
    elsewhere: &HashSet<PartitionId>,
    now_ms: u64,
    out: &mut Out<'_, '_>,
) -> Result<(BTreeMap<PartitionId, i64>, u64), JobError> {
    let mut first = Peek::new(inputs.open()?)?;
    let mut second = Peek::new(inputs.open()?)?;
    let mut map = KeyMap::new(rules.key_map_bytes_max);
    let mut clean_to = BTreeMap::new();
    let mut removed = 0;
    let oldest = rules.retention_ms.map_or(i64::MIN, |age| i64::try_from(now_ms.saturating_sub(age)).unwrap_or(i64::MAX));
    while let Some(partition) = first.partition() {
        let known = rules.clean_to.get(&partition).copied().unwrap_or(0);
        let compact_rules = CompactRules {
            clean_to: known,
            upto: i64::MAX,
            from_start: !elsewhere.contains(&partition),
            now_ms: i64::try_from(now_ms).unwrap_or(i64::MAX),
            delete_retention_ms: i64::try_from(rules.delete_retention_ms).unwrap_or(i64::MAX),
        };
        let mut survey = Survey::new(map, compact_rules);
        let mut end = 0;
        while let Some(entry) = first.take(partition)? {
            end = entry.next_offset;
            if entry.next_offset > known {
                survey.feed(&entry);
            }
        }
        let mut rewrite = survey.finish();
        while let Some(entry) = second.take(partition)? {
            // What goes by its age must leave nothing older of its keys behind: neither elsewhere nor where the map was full.
            let stays = rewrite.covered() < end || elsewhere.contains(&partition);
            let young = |entry: &ColdEntry| stays || entry.max_timestamp >= oldest || entry.next_offset >= end;
            let kept = rewrite.rewrite(&entry).filter(young);
            if let Some(entry) = kept {
                out.push(&entry)?;
            }
        }
        if rewrite.covered() < end {
            clean_to.insert(partition, rewrite.covered());
        }
        let stats = rewrite.stats();
        removed += stats.superseded + stats.tombstones + stats.keyless;
        map = Rewrite::into_map(rewrite);
    }
    Ok((clean_to, removed))
}
