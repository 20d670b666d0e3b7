//! The work of the cold tier: what the engine asks for, done on the sorter's thread over a [`ColdStore`], and what came of it.
//!
//! A job changes nothing that readers or recovery believe in: it makes files that no manifest names yet, or removes files that
//! none names any more. The engine decides, and writes the manifest. So a job may be cut off anywhere and begun again.
//!
//! Sorting reads each WAL byte once and writes each record once, compressed. Memory: the records of one cold segment, which is
//! what bounds its size. A WAL segment that gains nothing by that stays as it is (`promote.rs`).

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;

use super::manifest::{ManifestEntry, PromotedWal};
use super::promote::{self, Promotion};
use super::stores::{Stores, WritePlan};
use super::wal::{WalFrame, WalScan, WalSegment};
use super::{
    ColdEntry, ColdError, ColdIndex, Footer, FramePlace, Packing, PartitionSpan, SegmentHead, SegmentWriter, decode_page,
};
use crate::disk::{ColdStore, DiskError, DiskVerb, FileId};
use crate::format::frame::EntryKind;
use crate::format::{BLOCK, Uuid};
use crate::types::{ClassId, PartitionId};
use crate::view::{ColdPlace, Position, Tables, View};

/// What the engine wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Job {
    /// Remove what no manifest names; say what is named and missing.
    Clean {
        /// On these volumes.
        volumes: Vec<u8>,
        /// What the manifest names, by number.
        named: BTreeMap<u32, Files>,
    },
    /// Make cold segments of these WAL segments.
    Sort {
        /// In order.
        segments: Vec<WalSegment>,
        /// Number of the first cold segment to make.
        number: u32,
        /// What the WAL's filling leaves time for.
        packing: Packing,
        /// Which of them become cold segments as they are.
        promotion: Option<Promotion>,
        /// Where they go.
        plan: WritePlan,
    },
    /// Make one cold segment of several that follow one another and share a class.
    Merge {
        /// In order of their frames.
        inputs: Vec<ColdPlace>,
        /// Number of the segment to make.
        number: u32,
        /// Keep only the last value of each key. Unless one is damaged the inputs are then all that the class has.
        compact: Option<Compact>,
        /// Unless it packs well, what was packed in haste stays so.
        packing: Packing,
        /// Where it goes.
        plan: WritePlan,
    },
    /// Say where the partitions of a cold segment end in it.
    Spans {
        /// Which.
        place: ColdPlace,
    },
    /// Remove the files of cold segments that are out of the manifest, or are not needed on a volume any more.
    Remove {
        /// By number.
        files: Vec<(u32, Files)>,
    },
    /// Look at all copies of a WAL segment that is full and not sorted, and write anew what one of them has lost.
    ScrubWal {
        /// Which.
        segment: WalSegment,
    },
    /// Look at the copies of a segment, repair what can be repaired, make copies elsewhere.
    Mend {
        /// Which.
        place: ColdPlace,
        /// Volumes that are to hold it already.
        from: Vec<u8>,
        /// Volumes that get it.
        to: Vec<u8>,
    },
}

/// The files of a cold segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// Where they are.
    pub volumes: Vec<u8>,
    /// Whether there are two: index and frames.
    pub promoted: bool,
}

impl Files {
    /// Those of a copy.
    pub fn of(&self, number: u32) -> impl Iterator<Item = FileId> + use<> {
        let frames = self.promoted.then_some(FileId::Promoted(number));
        std::iter::once(FileId::Cold(number)).chain(frames)
    }

    /// As the manifest has them.
    pub fn new(entry: &ManifestEntry) -> Files {
        Files { volumes: entry.holders().to_vec(), promoted: entry.promoted.is_some() }
    }
}

/// How a class is compacted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compact {
    /// How long a tombstone can be read.
    pub delete_retention_ms: u64,
    /// Batches whose newest record is older go as well.
    pub retention_ms: Option<u64>,
    /// Memory for the keys of one partition.
    pub key_map_bytes_max: usize,
    /// Up to where partitions are compacted, where the last time the map was too small.
    pub clean_to: BTreeMap<PartitionId, i64>,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// Nothing is left there that no manifest names.
    Cleaned {
        /// Volumes for which that was found out.
        volumes: Vec<u8>,
        /// Named segments whose file is missing, and on which volume.
        missing: Vec<(u32, u8)>,
    },
    /// New cold segments, durable but not named yet.
    Made {
        /// With their numbers.
        segments: Vec<(u32, ManifestEntry)>,
        /// Stretches of the input that were damaged.
        damaged: u64,
        /// Bytes read.
        read_bytes: u64,
    },
    /// One segment in the place of several; none where nothing of them is left.
    Merged {
        /// With its number.
        segment: Option<(u32, ManifestEntry)>,
        /// Bytes read.
        read_bytes: u64,
        /// Bytes of blocks that were taken over as they were.
        kept_bytes: u64,
        /// Partitions that want another pass, and from where.
        clean_to: BTreeMap<PartitionId, i64>,
        /// Records left out by compaction.
        records_removed: u64,
    },
    /// One past the last offset of each partition of the segment; empty where that cannot be read any more.
    Spans {
        /// In order.
        ends: Vec<(PartitionId, i64)>,
    },
    /// The files are gone from those volumes that are there.
    Removed,
    /// How the copies of a WAL segment are.
    WalScrubbed {
        /// Frames that were damaged or unreadable, by the volume of the copy.
        damaged: Vec<(u8, u64)>,
        /// Of these, written anew.
        mended: u64,
        /// Where stretches begin that no copy has.
        lost_at: Vec<u64>,
        /// Bytes read.
        read_bytes: u64,
    },
    /// How the copies of a segment are.
    Mended {
        /// Volumes that hold a whole copy.
        whole: Vec<u8>,
        /// Volumes that got a new copy: as good as it gets.
        made: Vec<u8>,
        /// Volumes whose copy was damaged or missing.
        damaged: Vec<u8>,
        /// What no copy has intact, if anything.
        lost: Option<String>,
        /// Bytes read.
        read_bytes: u64,
        /// And written.
        made_bytes: u64,
    },
}

/// Why a job failed; it may be tried again.
#[derive(Clone, Debug, thiserror::Error)]
pub enum JobError {
    /// The disk said no.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A cold segment is damaged: it stays as it is, for nothing may be made of it.
    #[error(transparent)]
    Cold(#[from] ColdError),
    /// Two cold segments hold the same offsets.
    #[error("{0}")]
    Overlap(String),
    /// Records are missing that were damaged before they were sorted: compacted, the hole could not be told from what was left out.
    #[error("cold segment {number} lacks records of partition {partition} from offset {offset} on")]
    Hole {
        /// Of the segment.
        number: u32,
        /// Whose.
        partition: PartitionId,
        /// First that is missing.
        offset: i64,
    },
    /// A partition has records in between that are in a segment of another class: merged, its offsets would no longer rise from
    /// segment to segment.
    #[error("cold segments {before} and {after} have a partition whose records in between are elsewhere")]
    Apart {
        /// Number of the segment before the hole.
        before: u32,
        /// And behind it.
        after: u32,
    },
    /// Sorting is due, and a merge can wait.
    #[error("the merge gave way to sorting; it is begun again later")]
    GaveWay,
    /// A bug.
    #[error("the cold tier's job panicked ({0}); what it was to do waits, nothing is lost: report this")]
    Panicked(String),
}

impl JobError {
    /// Whether space set free is the cure.
    pub fn is_full(&self) -> bool {
        match self {
            JobError::Disk(error) => error.is_full(),
            JobError::Cold(_)
            | JobError::Overlap(_)
            | JobError::Hole { .. }
            | JobError::Apart { .. }
            | JobError::GaveWay
            | JobError::Panicked(_) => false,
        }
    }
}

/// A panic as the job's error. It must not end the sorter's thread: producers would wait for it for ever once the WAL is at its bound.
pub(crate) fn guarded(work: impl FnOnce() -> Result<Done, JobError>) -> Result<Done, JobError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        Err(JobError::Panicked(text.unwrap_or("no message").to_owned()))
    })
}

/// What all jobs know.
pub struct Workshop<'a, 's> {
    /// The files.
    pub store: &'a mut Stores<'s>,
    /// Which partitions there are, and where they start.
    pub view: &'a View,
    /// Which log.
    pub log_id: Uuid,
    /// Records held in memory while sorting.
    pub sort_memory_bytes: usize,
    /// A block of one partition from so many bytes on is not packed anew by a merge.
    pub keep_block_bytes: usize,
    /// Unix time.
    pub now_ms: u64,
}

impl Workshop<'_, '_> {
    /// Does a job.
    pub fn run(&mut self, job: &Job) -> Result<Done, JobError> {
        match job {
            Job::Clean { volumes, named } => self.clean(volumes, named),
            Job::Sort { segments, number, packing, promotion, plan } => {
                self.store.plan(plan);
                self.sort(segments, promotion.as_ref(), (*number, *packing))
            }
            Job::Merge { inputs, number, compact, packing, plan } => {
                self.store.plan(plan);
                super::rewrite::merge(self, inputs, compact.as_ref(), (*number, *packing))
            }
            Job::Spans { place } => self.spans(place),
            Job::Remove { files } => self.remove(files),
            Job::ScrubWal { segment } => super::scrub::scrub(self.store, self.view, &self.log_id, segment),
            Job::Mend { place, from, to } => super::mend::mend(self.store, &self.log_id, place, from, to),
        }
    }

    /// What cannot be removed now goes when its volume is cleaned the next time.
    fn remove(&mut self, all: &[(u32, Files)]) -> Result<Done, JobError> {
        for (number, files) in all {
            for volume in &files.volumes {
                match self.store.change_on(*volume, |store| files.of(*number).try_for_each(|file| store.remove(file))) {
                    Err(error @ DiskError::Closed { .. }) => return Err(error.into()),
                    Ok(()) => self.view.volumes().has_room(*volume),
                    Err(_) => {}
                }
            }
        }
        Ok(Done::Removed)
    }

    fn clean(&mut self, volumes: &[u8], named: &BTreeMap<u32, Files>) -> Result<Done, JobError> {
        let (mut cleaned, mut missing) = (Vec::new(), Vec::new());
        for volume in volumes {
            let mut found = Vec::new();
            let swept = self.store.change_on(*volume, |store| {
                for file in store.list()? {
                    let here = |number: &u32| {
                        named
                            .get(number)
                            .is_some_and(|on| on.volumes.contains(volume) && on.of(*number).any(|other| other == file))
                    };
                    match file {
                        FileId::Cold(number) | FileId::Promoted(number) if here(&number) => found.push(file),
                        file => store.remove(file)?,
                    }
                }
                Ok(())
            });
            match swept {
                Ok(()) => {}
                Err(error @ DiskError::Closed { .. }) => return Err(error.into()),
                // It is tried again, unless the volume is out now.
                Err(error) if self.view.volumes().takes_changes(*volume) => return Err(error.into()),
                Err(_) => continue,
            }
            cleaned.push(*volume);
            let here = named.iter().filter(|(_, on)| on.volumes.contains(volume));
            let incomplete = here.filter(|(number, on)| on.of(**number).any(|file| !found.contains(&file)));
            missing.extend(incomplete.map(|(number, _)| (*number, *volume)));
        }
        Ok(Done::Cleaned { volumes: cleaned, missing })
    }

    fn spans(&mut self, place: &ColdPlace) -> Result<Done, JobError> {
        let ends = match self.read_spans(place) {
            Ok(ends) => ends,
            // Whoever reads there meets a gap; that must not keep the rest of the disk from being freed.
            Err(
                error @ (JobError::Cold(_)
                | JobError::Disk(DiskError::Io { .. } | DiskError::Missing { .. } | DiskError::Short { .. })),
            ) => {
                tracing::error!(%error, "a cold segment leaves by retention; not all its partitions start behind it");
                self.spans_unsaid(place)?
            }
            Err(error) => return Err(error),
        };
        Ok(Done::Spans { ends })
    }

    /// Where partitions may begin in the place of a segment that cannot say where they end in it: what is left of them begins in a compacted
    /// segment, so nobody could tell that something is missing before it. What is missing elsewhere shows.
    fn spans_unsaid(&mut self, gone: &ColdPlace) -> Result<Vec<(PartitionId, i64)>, JobError> {
        let places = Arc::clone(&self.view.tables().cold);
        let mut first: BTreeMap<PartitionId, (i64, bool)> = BTreeMap::new();
        for place in places.iter().filter(|place| place.number != gone.number) {
            let compacted = place.entry.compacted;
            let read = open_index(self.store, place).and_then(|index| {
                each_span(self.store, place, &index, |span| {
                    let known = first.entry(span.partition).or_insert((span.first_offset, compacted));
                    *known = (span.first_offset, compacted).min(*known);
                })
            });
            match read {
                Ok(()) => {}
                Err(JobError::Disk(error @ DiskError::Closed { .. })) => return Err(error.into()),
                // It may have what would be given up.
                Err(_) => return Ok(Vec::new()),
            }
        }
        let tables = self.view.tables();
        let before = |id: PartitionId, first: i64| {
            let partition = tables.partitions.get(id)?;
            let in_log = partition.live(tables.first_sequence()).first().map_or(i64::MAX, |entry| entry.base_offset);
            (partition.start < first && first <= in_log).then_some((id, first))
        };
        Ok(first.iter().filter(|(_, (_, compacted))| *compacted).filter_map(|(id, (first, _))| before(*id, *first)).collect())
    }

    fn read_spans(&mut self, place: &ColdPlace) -> Result<Vec<(PartitionId, i64)>, JobError> {
        let index = open_index(self.store, place)?;
        let mut ends = Vec::with_capacity(place.entry.partitions as usize);
        each_span(self.store, place, &index, |span| ends.push((span.partition, span.next_offset)))?;
        Ok(ends)
    }

    fn sort(
        &mut self,
        segments: &[WalSegment],
        promotion: Option<&Promotion>,
        (number, packing): (u32, Packing),
    ) -> Result<Done, JobError> {
        let mut made = Vec::new();
        let mut chunk = Chunk::default();
        let (mut damaged, mut read_bytes) = (0, 0);
        for segment in segments {
            let surveyed = promotion.map(|promotion| promote::survey(self, promotion, segment)).transpose()?;
            let (survey, survey_bytes) = surveyed.unwrap_or((None, 0));
            read_bytes += survey_bytes;
            if let Some(survey) = survey {
                // What came before it is a segment of its own: records rise from one to the next.
                self.write_chunk(std::mem::take(&mut chunk), (number, packing), &mut made)?;
                let next = number + made.len() as u32;
                if let Some(entry) = promote::make(self, survey, segment, next)? {
                    made.push((next, entry));
                    continue;
                }
            }
            let mut scan = WalScan::new(*segment, self.log_id, self.sort_memory_bytes);
            while let Some(frame) = scan.next(self.store)? {
                read_bytes += frame.header.frame_bytes() as u64;
                if scan.damaged > 0 && !self.is_in_its_place(&frame, segment) {
                    tracing::error!(lsn = frame.header.lsn, file = %FileId::Segment(segment.file), "a frame is where it was never put");
                    continue;
                }
                chunk.add(&self.view.tables(), &frame);
                if chunk.bytes >= self.sort_memory_bytes {
                    self.write_chunk(std::mem::take(&mut chunk), (number, packing), &mut made)?;
                }
            }
            damaged += scan.damaged;
        }
        self.write_chunk(chunk, (number, packing), &mut made)?;
        Ok(Done::Made { segments: made, damaged, read_bytes })
    }

    /// One cold segment a class.
    fn write_chunk(
        &mut self,
        chunk: Chunk,
        (first_number, packing): (u32, Packing),
        made: &mut Vec<(u32, ManifestEntry)>,
    ) -> Result<(), JobError> {
        let Chunk { entries, first_lsn, last_lsn, .. } = chunk;
        let mut sorted = self.classify(entries);
        sorted.sort_unstable_by_key(|(class, entry)| (*class, entry.partition, entry.base_offset));
        sorted.dedup_by(|(_, entry), (_, before)| {
            let twice = entry.partition == before.partition && entry.base_offset < before.next_offset;
            if twice {
                tracing::error!(partition = %entry.partition, offset = entry.base_offset, "the log has this offset twice: one is left out");
            }
            twice
        });
        let mut rest = &sorted[..];
        while let Some((class, _)) = rest.first() {
            let (run, others) = rest.split_at(rest.partition_point(|(other, _)| other <= class));
            rest = others;
            let number = first_number + made.len() as u32;
            let head = self.head(number, *class, first_lsn, last_lsn);
            let mut file = NewFile::create(self.store, head, packing)?;
            for (_, entry) in run {
                file.push(self.store, entry)?;
            }
            made.push((number, file.finish(self.store, None)?));
        }
        Ok(())
    }

    /// Behind damage a frame that is good in itself may be one that went astray, or that was given up: it counts where the index
    /// has it, unless that is thinned there, and nowhere within a gap.
    fn is_in_its_place(&self, frame: &WalFrame, segment: &WalSegment) -> bool {
        let tables = self.view.tables();
        let position = Position { sequence: segment.sequence as u32, block: frame.block };
        frame.entries.iter().filter(|entry| entry.kind == EntryKind::Batches).all(|entry| {
            let id = PartitionId(entry.partition);
            let Some(partition) = tables.partitions.get(id) else { return true };
            let found = partition.index.binary_search_by_key(&entry.base_offset, |known| known.base_offset);
            found.is_ok_and(|at| partition.index[at].position == position)
                || (found.is_err() && tables.gap_at(id, entry.base_offset).is_none())
        })
    }

    fn head(&self, number: u32, class: ClassId, first_lsn: u64, last_lsn: u64) -> SegmentHead {
        SegmentHead {
            log_id: self.log_id,
            number,
            class: class.0,
            first_lsn,
            last_lsn,
            created_ms: self.now_ms,
            compacted: false,
            promoted: false,
        }
    }

    /// Leaves out what nobody can read any more: partitions that were dropped, records below the start of theirs.
    fn classify(&self, entries: Vec<ColdEntry>) -> Vec<(ClassId, ColdEntry)> {
        let tables = self.view.tables();
        let classify = |entry: ColdEntry| {
            let partition = tables.partitions.get(entry.partition)?;
            (entry.next_offset > partition.start).then_some((partition.class, entry))
        };
        entries.into_iter().filter_map(classify).collect()
    }
}

/// Reads all partition pages of a segment.
pub(super) fn each_span(
    store: &mut dyn ColdStore,
    place: &ColdPlace,
    index: &ColdIndex,
    mut each: impl FnMut(&PartitionSpan),
) -> Result<(), JobError> {
    for page in index.pages() {
        let file = FileId::Cold(place.number);
        let spans = sound(store, file, page.at, page.bytes as usize, |stored| decode_page(place.number, page, stored))?;
        spans.iter().for_each(&mut each);
    }
    Ok(())
}

/// What one copy has lost the other one may have.
fn sound<T>(
    store: &mut dyn ColdStore,
    file: FileId,
    at: u64,
    bytes: usize,
    decode: impl Fn(Bytes) -> Result<T, ColdError>,
) -> Result<T, JobError> {
    let mut failed = None;
    for copy in 0..store.copies(file).max(1) {
        match store.read_copy(copy, file, at, bytes) {
            Ok(stored) => match decode(stored) {
                Ok(found) => return Ok(found),
                Err(error) => failed = failed.or(Some(JobError::Cold(error))),
            },
            Err(error @ DiskError::Closed { .. }) => return Err(error.into()),
            Err(error) => failed = failed.or(Some(JobError::Disk(error))),
        }
    }
    Err(failed.unwrap_or(JobError::Disk(DiskError::Missing { verb: DiskVerb::Read, file })))
}

/// What the footer of a segment leads to.
pub(super) fn open_index(store: &mut dyn ColdStore, place: &ColdPlace) -> Result<ColdIndex, JobError> {
    let (file, bytes) = (FileId::Cold(place.number), place.entry.file_bytes);
    let footer = sound(store, file, ColdIndex::footer_at(bytes), BLOCK, |footer| Footer::decode(place.number, bytes, &footer))?;
    sound(store, file, footer.index_at, footer.index_bytes as usize, |index| ColdIndex::decode(&footer, &index))
}

/// Records on their way from WAL frames to a cold segment.
#[derive(Default)]
struct Chunk {
    entries: Vec<ColdEntry>,
    /// Memory held.
    bytes: usize,
    first_lsn: u64,
    last_lsn: u64,
}

impl Chunk {
    fn add(&mut self, tables: &Tables, frame: &WalFrame) {
        if self.entries.is_empty() {
            self.first_lsn = frame.header.lsn;
        }
        let before = self.entries.len();
        for entry in frame.entries.iter().filter(|entry| entry.kind == EntryKind::Batches) {
            if tables.is_former(PartitionId(entry.partition), frame.header.lsn) {
                continue;
            }
            self.entries.push(ColdEntry {
                partition: PartitionId(entry.partition),
                base_offset: entry.base_offset,
                next_offset: entry.next_offset(),
                max_timestamp: entry.max_timestamp,
                batches: frame.payload.slice(entry.range()),
            });
        }
        if self.entries.len() > before {
            self.last_lsn = frame.header.lsn;
            self.bytes += frame.payload.len() + (self.entries.len() - before) * size_of::<ColdEntry>();
        }
    }
}

/// A cold segment that is being written.
pub(super) struct NewFile {
    file: FileId,
    head: SegmentHead,
    writer: SegmentWriter,
}

impl NewFile {
    pub(super) fn create(store: &mut dyn ColdStore, head: SegmentHead, packing: Packing) -> Result<NewFile, DiskError> {
        let file = FileId::Cold(head.number);
        store.place(ClassId(head.class));
        store.create(file)?;
        Ok(NewFile { file, writer: SegmentWriter::with_packing(head, packing), head })
    }

    pub(super) fn push(&mut self, store: &mut dyn ColdStore, entry: &ColdEntry) -> Result<(), DiskError> {
        self.add(store, |writer| writer.push(entry))
    }

    pub(super) fn add(&mut self, store: &mut dyn ColdStore, add: impl FnOnce(&mut SegmentWriter)) -> Result<(), DiskError> {
        add(&mut self.writer);
        while let Some((at, data)) = self.writer.take_ready() {
            store.write(self.file, at, data)?;
        }
        Ok(())
    }

    /// Adds to the index of a promoted WAL segment.
    pub(super) fn push_frame(&mut self, frame: FramePlace) {
        self.writer.push_frame(frame);
    }

    /// Durable when it returns, on as many volumes as it could be.
    pub(super) fn finish(self, store: &mut Stores<'_>, promoted: Option<PromotedWal>) -> Result<ManifestEntry, DiskError> {
        let (rest, summary) = self.writer.finish();
        for (at, data) in rest {
            store.write(self.file, at, data)?;
        }
        store.seal(self.file)?;
        Ok(ManifestEntry::new(&self.head, &summary, store.holders(), promoted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_the_error_of_its_job_and_nothing_more() {
        let panicked = guarded(|| panic!("offset {} twice", 7));
        assert!(matches!(&panicked, Err(JobError::Panicked(text)) if text == "offset 7 twice"), "{panicked:?}");
        assert_eq!(guarded(|| Ok(Done::Removed)).ok(), Some(Done::Removed));
    }
}
