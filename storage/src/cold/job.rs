//! The work of the cold tier: what the engine asks for, done on the sorter's thread over a [`ColdStore`], and what came of it.
//!
//! A job changes nothing that readers or recovery believe in: it makes files that no manifest names yet, or removes files that
//! none names any more. The engine decides, and writes the manifest. So a job may be cut off anywhere and begun again.
//!
//! Sorting reads each WAL byte once and writes each record once, compressed. Memory: the records of one cold segment, which is
//! what bounds its size.

use super::manifest::ManifestEntry;
use super::wal::{WalFrame, WalScan, WalSegment};
use super::{ColdEntry, SegmentHead, SegmentWriter};
use crate::disk::{ColdStore, DiskError, FileId};
use crate::format::Uuid;
use crate::format::frame::EntryKind;
use crate::types::{ClassId, PartitionId};
use crate::view::View;

/// What the engine wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Job {
    /// Remove what no manifest names; say what is named and missing.
    Clean {
        /// Numbers in the manifest.
        named: Vec<u32>,
    },
    /// Make cold segments of these WAL segments.
    Sort {
        /// In order.
        segments: Vec<WalSegment>,
        /// Number of the first cold segment to make.
        number: u32,
    },
    /// Remove the files of cold segments that are out of the manifest.
    Remove {
        /// Their numbers.
        numbers: Vec<u32>,
    },
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// Named segments whose file is missing.
    Cleaned {
        /// Their numbers.
        missing: Vec<u32>,
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
    /// The files are gone.
    Removed,
}

/// Why a job failed; it may be tried again.
#[derive(Clone, Debug, thiserror::Error)]
pub enum JobError {
    /// The disk said no.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl JobError {
    /// Whether space set free is the cure.
    pub fn is_full(&self) -> bool {
        match self {
            JobError::Disk(error) => error.is_full(),
        }
    }
}

/// What all jobs know.
pub struct Workshop<'a> {
    /// The files.
    pub store: &'a mut dyn ColdStore,
    /// Which partitions there are, and where they start.
    pub view: &'a View,
    /// Which log.
    pub log_id: Uuid,
    /// Records held in memory while sorting.
    pub sort_memory_bytes: usize,
    /// Unix time.
    pub now_ms: u64,
}

impl Workshop<'_> {
    /// Does a job.
    pub fn run(&mut self, job: &Job) -> Result<Done, JobError> {
        match job {
            Job::Clean { named } => self.clean(named),
            Job::Sort { segments, number } => self.sort(segments, *number),
            Job::Remove { numbers } => {
                for number in numbers {
                    self.store.remove(FileId::Cold(*number))?;
                }
                Ok(Done::Removed)
            }
        }
    }

    fn clean(&mut self, named: &[u32]) -> Result<Done, JobError> {
        let mut found = Vec::new();
        for file in self.store.list()? {
            match file {
                FileId::Cold(number) if named.contains(&number) => found.push(number),
                file => self.store.remove(file)?,
            }
        }
        Ok(Done::Cleaned { missing: named.iter().copied().filter(|number| !found.contains(number)).collect() })
    }

    fn sort(&mut self, segments: &[WalSegment], number: u32) -> Result<Done, JobError> {
        let mut made = Vec::new();
        let mut chunk = Chunk::default();
        let (mut damaged, mut read_bytes) = (0, 0);
        for segment in segments {
            let mut scan = WalScan::new(*segment, self.log_id);
            while let Some(frame) = scan.next(self.store)? {
                read_bytes += frame.header.frame_bytes() as u64;
                chunk.add(&frame);
                if chunk.bytes >= self.sort_memory_bytes {
                    self.write_chunk(std::mem::take(&mut chunk), number, &mut made)?;
                }
            }
            damaged += scan.damaged;
        }
        self.write_chunk(chunk, number, &mut made)?;
        Ok(Done::Made { segments: made, damaged, read_bytes })
    }

    /// One cold segment a class.
    fn write_chunk(&mut self, chunk: Chunk, first_number: u32, made: &mut Vec<(u32, ManifestEntry)>) -> Result<(), JobError> {
        let Chunk { entries, first_lsn, last_lsn, .. } = chunk;
        let mut sorted = self.classify(entries);
        sorted.sort_unstable_by_key(|(class, entry)| (*class, entry.partition, entry.base_offset));
        let mut rest = &sorted[..];
        while let Some((class, _)) = rest.first() {
            let (run, others) = rest.split_at(rest.partition_point(|(other, _)| other <= class));
            rest = others;
            let number = first_number + made.len() as u32;
            let head = self.head(number, *class, first_lsn, last_lsn);
            let mut file = NewFile::create(self.store, head)?;
            for (_, entry) in run {
                file.push(self.store, entry)?;
            }
            made.push((number, file.finish(self.store)?));
        }
        Ok(())
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
    fn add(&mut self, frame: &WalFrame) {
        if self.entries.is_empty() {
            self.first_lsn = frame.header.lsn;
        }
        let before = self.entries.len();
        for entry in frame.entries.iter().filter(|entry| entry.kind == EntryKind::Batches) {
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
struct NewFile {
    file: FileId,
    head: SegmentHead,
    writer: SegmentWriter,
}

impl NewFile {
    fn create(store: &mut dyn ColdStore, head: SegmentHead) -> Result<NewFile, DiskError> {
        let file = FileId::Cold(head.number);
        store.create(file)?;
        Ok(NewFile { file, writer: SegmentWriter::new(head), head })
    }

    fn push(&mut self, store: &mut dyn ColdStore, entry: &ColdEntry) -> Result<(), DiskError> {
        self.writer.push(entry);
        while let Some((at, data)) = self.writer.take_ready() {
            store.write(self.file, at, data)?;
        }
        Ok(())
    }

    /// Durable when it returns.
    fn finish(self, store: &mut dyn ColdStore) -> Result<ManifestEntry, DiskError> {
        let (rest, summary) = self.writer.finish();
        for (at, data) in rest {
            store.write(self.file, at, data)?;
        }
        store.seal(self.file)?;
        Ok(ManifestEntry::new(&self.head, &summary, 0))
    }
}
