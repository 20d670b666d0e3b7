//! The cold tier: every byte that a CRC covers, and whether what the manifest names, what the files say of themselves and what is in
//! them agree. What is missing between segments, and between them and the WAL, is lost unless compaction may have left it out.

use std::collections::BTreeMap;
use std::fs::File;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use weir_batch::RecordBatch;

use super::report::{CheckReport, CheckedVolume};
use super::{JOBS_MAX, Meter};
use crate::cold::job::Files;
use crate::cold::manifest::{VolumeEntry, VolumeUse};
use crate::cold::{
    ColdEntry, ColdError, ColdIndex, Footer, FramesOf, PartitionSpan, SegmentHead, decode_block, decode_frame, decode_page,
};
use crate::core::{Opening, named_volumes};
use crate::disk::FileId;
use crate::format::volume::{Identity, NoIdentity};
use crate::format::{BLOCK, Uuid, uuid_text};
use crate::report::Gap;
use crate::types::PartitionId;
use crate::view::{ColdPlace, Tables};

/// Problems of one segment that are told one by one.
const PROBLEMS_MAX: usize = 1000;

/// What one segment holds.
#[derive(Debug, Default)]
struct Segment {
    spans: Vec<PartitionSpan>,
    problems: Vec<(Option<u64>, String)>,
    problems_total: u64,
    lost: Vec<Gap>,
    batches: u64,
    records: u64,
}

impl Segment {
    fn problem(&mut self, at: Option<u64>, what: impl Into<String>) {
        self.problems_total += 1;
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push((at, what.into()));
        }
    }
}

/// The directories that are looked at, by the number of their volume.
pub(super) type Dirs = BTreeMap<u8, PathBuf>;

/// Which of these is which volume. The first is the one whose WAL was read.
pub(super) fn volumes(dirs: &[PathBuf], log_id: &Uuid, opening: &Opening, report: &mut CheckReport) -> Dirs {
    let table = named_volumes(&opening.view.meta()).unwrap_or_default();
    let mut found = Dirs::new();
    if table.is_empty() {
        // As long as nothing else is written down everything is here.
        found.extend(dirs.first().map(|dir| (0, dir.clone())));
        return found;
    }
    for (n, dir) in dirs.iter().enumerate() {
        let file = label(dirs, n, "volume");
        let identity = std::fs::read(dir.join("volume")).map(|bytes| Identity::decode(&bytes));
        let number = match identity {
            Err(error) => Err(format!("it cannot be read ({error}), so nobody can tell which volume this is")),
            Ok(Err(NoIdentity::Damaged)) => Err("it is damaged, so nobody can tell which volume this is".to_owned()),
            Ok(Err(NoIdentity::Newer(major))) => Err(format!("it has format {major}: use the newer weir that wrote it")),
            Ok(Ok(identity)) if identity.log_id != *log_id => Err("it is a volume of another log".to_owned()),
            Ok(Ok(identity)) => {
                let known = table.iter().find(|(_, entry)| entry.uuid == identity.volume && entry.usage != VolumeUse::Gone);
                known
                    .map(|(number, _)| *number)
                    .ok_or_else(|| "the log does not know this volume, or has let go of it".to_owned())
            }
        };
        match number {
            Ok(number) => drop(found.insert(number, dir.clone())),
            Err(what) => report.damage(file, None, what),
        }
    }
    list(&table, &found, opening, report);
    found
}

/// All volumes that count, and what is not seen without those that were not given.
fn list(table: &[(u8, VolumeEntry)], found: &Dirs, opening: &Opening, report: &mut CheckReport) {
    let tables = opening.view.tables();
    for (number, entry) in table.iter().filter(|(_, entry)| entry.usage != VolumeUse::Gone) {
        let on = || tables.cold.iter().filter(|place| place.entry.holders().contains(number));
        let unseen = on().filter(|place| !place.entry.holders().iter().any(|volume| found.contains_key(volume))).count() as u64;
        let dir = found.get(number).cloned();
        if dir.is_none() {
            let (uuid, segments) = (uuid_text(&entry.uuid), on().count());
            let what = format!(
                "volume {number} ({uuid}) was not looked at; it has {segments} cold segments, {unseen} of them on no volume that was"
            );
            report.note("volume", what);
        }
        report.volumes.push(CheckedVolume { number: *number, uuid: entry.uuid, dir, segments: on().count() as u64, unseen });
    }
}

/// A file of the first directory by its name there, of others by its path.
fn label(dirs: &[PathBuf], n: usize, name: &str) -> String {
    if n == 0 { name.to_owned() } else { dirs[n].join(name).display().to_string() }
}

/// Bytes that the manifest names on these volumes.
pub(super) fn bytes(dirs: &Dirs, opening: &Opening) -> u64 {
    let copies = |place: &ColdPlace| place.entry.holders().iter().filter(|volume| dirs.contains_key(volume)).count() as u64;
    opening.view.tables().cold.iter().map(|place| place.entry.stored_bytes() * copies(place)).sum()
}

/// Checks all copies of all that the manifest names, as far as they are in these directories, several segments at a time.
pub(super) fn check(
    main: &Path,
    dirs: &Dirs,
    log_id: &Uuid,
    opening: &Opening,
    jobs: NonZeroUsize,
    meter: &Meter<'_>,
    report: &mut CheckReport,
) {
    let tables = opening.view.tables();
    let places = &tables.cold;
    let name = |dir: &Path, name: String| if dir == main { name } else { dir.join(name).display().to_string() };
    for (volume, dir) in dirs {
        let named = places.iter().filter(|place| place.entry.holders().contains(volume));
        let files = named.flat_map(|place| Files::new(&place.entry).of(place.number));
        strangers(dir, &|file| name(dir, file), files, report);
    }
    let next = AtomicUsize::new(0);
    let read: Mutex<BTreeMap<usize, Vec<(&Path, Segment)>>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..jobs.get().min(JOBS_MAX).min(places.len()) {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(place) = places.get(at) else { return };
                    let here = place.entry.holders().iter().filter_map(|volume| dirs.get(volume));
                    let copies: Vec<_> = here.map(|dir| (dir.as_path(), segment(dir, log_id, place))).collect();
                    meter.add(place.entry.stored_bytes() * copies.len() as u64);
                    read.lock().unwrap_or_else(PoisonError::into_inner).insert(at, copies);
                }
            });
        }
    });
    let read = read.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut spans: BTreeMap<PartitionId, Vec<(PartitionSpan, ColdPlace)>> = BTreeMap::new();
    report.cold_segments = places.len() as u64;
    let mut elsewhere = 0;
    for (at, copies) in read {
        let place = **places.get(at).expect("read above");
        let file = FileId::Cold(place.number).to_string();
        let whole = copies.iter().any(|(_, copy)| copy.problems_total == 0);
        for (dir, copy) in &copies {
            report.damage_total += copy.problems_total - copy.problems.len() as u64;
            let other = if whole { "; another copy is whole" } else { "" };
            copy.problems.iter().for_each(|(at, what)| report.damage(name(dir, file.clone()), *at, format!("{what}{other}")));
        }
        let Some(best) = best_of(copies.into_iter().map(|(_, copy)| copy).collect()) else {
            elsewhere += 1;
            continue;
        };
        report.lost.extend(best.lost);
        report.cold_batches += best.batches;
        report.cold_records += best.records;
        best.spans.into_iter().for_each(|span| spans.entry(span.partition).or_default().push((span, place)));
    }
    if elsewhere > 0 {
        let what = format!(
            "{elsewhere} cold segments lie on volumes that were not looked at, so nobody can tell what is missing between others"
        );
        return report.note("cold", what);
    }
    joints(&tables, spans, report);
}

/// What readers get of a segment: what any of its copies has. `None`: there is none here.
fn best_of(mut copies: Vec<Segment>) -> Option<Segment> {
    copies.sort_by_key(|copy| (copy.problems_total, std::cmp::Reverse(copy.spans.len())));
    let mut copies = copies.into_iter();
    let mut best = copies.next()?;
    // Without its index a copy has nothing to give.
    for other in copies.filter(|copy| !copy.spans.is_empty()) {
        best.lost = super::merge::in_both(&best.lost, &other.lost);
    }
    Some(best)
}

/// Files that the manifest does not name.
fn strangers(dir: &Path, label: &dyn Fn(String) -> String, named: impl Iterator<Item = FileId>, report: &mut CheckReport) {
    let named: Vec<String> = named.map(|file| file.to_string()).collect();
    super::files::names(&dir.join("cold"), &mut |name| {
        let name = format!("cold/{name}");
        if !named.contains(&name) {
            report.note(
                label(name),
                "the manifest does not name it: what a job left behind that was cut off; the next start removes it",
            );
        }
    });
}

fn segment(dir: &Path, log_id: &Uuid, place: &ColdPlace) -> Segment {
    let mut segment = Segment::default();
    let id = FileId::Cold(place.number);
    let opened = File::open(dir.join(id.relative_path())).and_then(|file| Ok((file.metadata()?.len(), file)));
    match opened {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            segment.problem(None, "the manifest names it and it is missing: all its records are lost");
        }
        Err(error) => segment.problem(None, format!("it cannot be read: {error}")),
        Ok((bytes, _)) if bytes != place.entry.file_bytes => {
            segment.problem(None, format!("it is {bytes} bytes long, and {} in the manifest", place.entry.file_bytes));
        }
        Ok((_, file)) => {
            let frames = File::open(dir.join(FileId::Promoted(place.number).relative_path())).ok();
            let reader = Reader { file, frames, place };
            if let Err((at, error)) = reader.read(log_id, &mut segment) {
                segment.problem(Some(at), error);
            }
        }
    }
    segment
}

/// Where in the file, and what is wrong.
type Bad = (u64, String);

struct Reader<'a> {
    file: File,
    /// Of a promoted segment.
    frames: Option<File>,
    place: &'a ColdPlace,
}

impl Reader<'_> {
    fn bytes(&self, at: u64, bytes: usize) -> Result<Bytes, Bad> {
        if at.saturating_add(bytes as u64) > self.place.entry.file_bytes {
            return Err((at, "what should lie here reaches beyond the file".to_owned()));
        }
        let mut data = vec![0; bytes];
        self.file.read_exact_at(&mut data, at).map_err(|error| (at, format!("it cannot be read: {error}")))?;
        Ok(data.into())
    }

    fn read(&self, log_id: &Uuid, segment: &mut Segment) -> Result<(), Bad> {
        let (number, entry) = (self.place.number, &self.place.entry);
        match SegmentHead::decode(number, log_id, &self.bytes(0, BLOCK)?) {
            Err(error) => segment.problem(Some(0), reason(&error)),
            Ok(head) => {
                let told = (head.class, head.first_lsn, head.last_lsn, head.compacted, head.promoted);
                let promoted = entry.promoted.is_some();
                if told != (entry.class, entry.first_lsn, entry.last_lsn, entry.compacted, promoted) {
                    segment.problem(Some(0), "its header and the manifest contradict each other");
                }
            }
        }
        let footer_at = ColdIndex::footer_at(entry.file_bytes);
        let at = |at: u64| move |error: ColdError| (at, reason(&error));
        let footer = Footer::decode(number, entry.file_bytes, &self.bytes(footer_at, BLOCK)?).map_err(at(footer_at))?;
        let told = (footer.records, footer.batch_bytes, footer.partitions, footer.blocks);
        if told != (entry.records, entry.batch_bytes, entry.partitions, entry.blocks) {
            segment.problem(Some(footer_at), "its footer and the manifest contradict each other");
        }
        let index = self.bytes(footer.index_at, footer.index_bytes as usize)?;
        let index = ColdIndex::decode(&footer, &index).map_err(at(footer.index_at))?;
        let mut pages_bad = false;
        for page in index.pages() {
            let spans = self
                .bytes(page.at, page.bytes as usize)
                .and_then(|stored| decode_page(number, page, stored).map_err(at(page.at)));
            match spans {
                Ok(spans) => segment.spans.extend(spans),
                Err((at, error)) => {
                    pages_bad = true;
                    segment.problem(Some(at), error);
                }
            }
        }
        match entry.promoted {
            Some(wal) => self.frames(&index, &FramesOf { number, log_id: *log_id, sequence: wal.sequence }, pages_bad, segment),
            None => self.blocks(&index, pages_bad, segment),
        }
        Ok(())
    }

    /// Every block, and whether together they are what the pages say.
    fn blocks(&self, index: &ColdIndex, pages_bad: bool, segment: &mut Segment) {
        let number = self.place.number;
        let mut found = Found::default();
        let mut blocks_bad = false;
        for (ordinal, place) in index.blocks().iter().enumerate() {
            let stored = self.bytes(place.at, place.bytes as usize);
            let block = stored
                .and_then(|stored| decode_block(number, ordinal as u32, stored).map_err(|error| (place.at, reason(&error))));
            let runs = match block {
                Ok(block) => block.runs(),
                Err((at, error)) => {
                    blocks_bad = true;
                    found.broken_at.push(segment.spans.len());
                    segment.problem(Some(at), error);
                    let until = index.blocks().get(ordinal + 1).map(|next| (next.partition, next.first_offset));
                    lost_with(segment, (place.partition, place.first_offset), place.last_partition, until);
                    continue;
                }
            };
            let mut first = true;
            for run in runs {
                if first && (run.partition, run.base_offset) != (place.partition, place.first_offset) {
                    segment.problem(Some(place.at), "the index says that other records begin here");
                }
                first = false;
                self.run(&run, place.at, &mut found, segment);
            }
        }
        if !blocks_bad && !pages_bad {
            self.compare(&found.spans, index, segment);
        }
    }

    /// Every frame that the index names, and whether together they are what the pages say. Where they lie in the `.wal` file is told, for that
    /// is where they are to be looked for.
    fn frames(&self, index: &ColdIndex, of: &FramesOf, pages_bad: bool, segment: &mut Segment) {
        let name = FileId::Promoted(of.number);
        let Some(frames) = &self.frames else {
            return segment.problem(None, format!("{name} is missing: all its records are lost"));
        };
        let mut found = Found::default();
        let mut frames_bad = false;
        for (ordinal, place) in index.blocks().iter().enumerate() {
            let mut stored = vec![0; place.bytes as usize];
            let frame = match frames.read_exact_at(&mut stored, place.at) {
                Ok(()) => decode_frame(of, ordinal as u32, place, &stored.into()).map_err(|error| reason(&error)),
                Err(error) => Err(format!("it cannot be read: {error}")),
            };
            match frame {
                Ok(frame) => {
                    let counts = |run: &ColdEntry| run.partition == place.partition && run.base_offset >= place.first_offset;
                    frame.runs().filter(counts).for_each(|run| self.run(&run, place.at, &mut found, segment));
                }
                Err(error) => {
                    frames_bad = true;
                    found.broken_at.push(segment.spans.len());
                    segment.problem(Some(place.at), format!("{name}: {error}"));
                    let until = index.blocks().get(ordinal + 1).map(|next| (next.partition, next.first_offset));
                    lost_with(segment, (place.partition, place.first_offset), place.last_partition, until);
                }
            }
        }
        if !frames_bad && !pages_bad {
            self.compare(&found.spans, index, segment);
        }
    }

    fn run(&self, run: &ColdEntry, at: u64, found: &mut Found, segment: &mut Segment) {
        let holes = self.place.entry.compacted;
        let (mut rest, mut offset) = (&run.batches[..], run.base_offset);
        let mut records = 0;
        let bad = loop {
            if rest.is_empty() {
                let short = offset != run.next_offset;
                break short.then(|| format!("they end at {offset}"));
            }
            let Ok(batch) = RecordBatch::verify(rest) else {
                break Some("the CRC or length of a batch does not match".to_owned());
            };
            let base = batch.base_offset();
            if base < offset || (base > offset && !holes) {
                break Some(format!("a batch begins at {base} where {offset} is next"));
            }
            offset = batch.next_offset();
            rest = &rest[batch.bytes().len()..];
            segment.batches += 1;
            records += u64::from(batch.record_count());
        };
        segment.records += records;
        if let Some(bad) = bad {
            let ColdEntry { partition, base_offset: from, next_offset: to, .. } = *run;
            segment.problem(
                Some(at),
                format!("the block is intact but record batches {from}..{to} of partition {partition}: {bad}"),
            );
            segment.lost.push(Gap { partition, from, to });
        }
        found.add(run, records, holes, segment);
    }

    fn compare(&self, found: &[PartitionSpan], index: &ColdIndex, segment: &mut Segment) {
        let at = index.pages().first().map(|page| page.at);
        for n in 0..found.len().max(segment.spans.len()) {
            if found.get(n) != segment.spans.get(n) {
                let which = found.get(n).or(segment.spans.get(n)).map_or(PartitionId(0), |span| span.partition);
                return segment
                    .problem(at, format!("the blocks and the pages contradict each other, at partition {which} first"));
            }
        }
    }
}

/// What the good blocks hold, partition by partition.
#[derive(Default)]
struct Found {
    spans: Vec<PartitionSpan>,
    /// After so many of them a block was damaged.
    broken_at: Vec<usize>,
}

impl Found {
    fn add(&mut self, run: &ColdEntry, records: u64, holes: bool, segment: &mut Segment) {
        let after_damage = !self.broken_at.is_empty();
        self.broken_at.clear();
        match self.spans.last_mut().filter(|span| span.partition == run.partition) {
            Some(span) => {
                let (from, to) = (span.next_offset, run.base_offset);
                if to < from {
                    segment.problem(None, format!("offset {to} of partition {} stands here a second time", run.partition));
                } else if to > from && !holes && !after_damage {
                    segment.lost.push(Gap { partition: run.partition, from, to });
                }
                span.next_offset = run.next_offset;
                span.max_timestamp = span.max_timestamp.max(run.max_timestamp);
                span.batch_bytes += run.batches.len() as u64;
                span.records += records;
            }
            None => self.spans.push(PartitionSpan {
                partition: run.partition,
                first_offset: run.base_offset,
                next_offset: run.next_offset,
                max_timestamp: run.max_timestamp,
                batch_bytes: run.batches.len() as u64,
                records,
            }),
        }
    }
}

/// What a damaged block takes along, as far as index and pages tell.
fn lost_with(segment: &mut Segment, first: (PartitionId, i64), last: PartitionId, until: Option<(PartitionId, i64)>) {
    for span in segment.spans.iter().filter(|span| span.partition >= first.0 && span.partition <= last) {
        let from = if span.partition == first.0 { first.1 } else { span.first_offset };
        let to = until.filter(|until| until.0 == span.partition).map_or(span.next_offset, |until| until.1);
        if from < to {
            segment.lost.push(Gap { partition: span.partition, from, to });
        }
    }
}

/// Offsets rise over the segments of a class, and go on in the WAL.
fn joints(tables: &Tables, spans: BTreeMap<PartitionId, Vec<(PartitionSpan, ColdPlace)>>, report: &mut CheckReport) {
    let mut holes: Vec<(Option<u32>, Gap)> = Vec::new();
    let mut claim = |number, partition, from: i64, to: i64| {
        let known = tables.gaps.range((partition, i64::MIN)..=(partition, from)).next_back().is_some_and(|(_, end)| *end >= to);
        if from < to && !known {
            holes.push((number, Gap { partition, from, to }));
        }
    };
    let mut disorder = Vec::new();
    for (id, partition) in tables.partitions.iter() {
        let mut all = spans.get(&id).cloned().unwrap_or_default();
        for (n, (span, place)) in all.iter().enumerate() {
            let before = all[..n].iter().rev().find(|(_, before)| before.entry.class == place.entry.class);
            if before.is_some_and(|(before, _)| before.next_offset > span.first_offset) {
                disorder.push((place.number, id, span.first_offset));
            }
        }
        all.sort_by_key(|(span, _)| span.first_offset);
        let wal_start = partition.wal_start(tables.first_sequence());
        let (mut next, mut compacted) = (partition.start, false);
        for (span, place) in &all {
            if !place.entry.compacted {
                claim(Some(place.number), id, next, span.first_offset.min(wal_start));
            }
            (next, compacted) = (next.max(span.next_offset), place.entry.compacted);
        }
        if !compacted {
            claim(None, id, next, wal_start);
        }
    }
    for (number, id, offset) in disorder {
        let what = format!("offset {offset} of partition {id} is in an older segment of its class as well");
        report.damage(FileId::Cold(number).to_string(), None, what);
    }
    for (number, gap) in holes {
        let Gap { partition, from, to } = gap;
        let file = number.map_or_else(String::new, |number| FileId::Cold(number).to_string());
        report.damage(file, None, format!("records {from}..{to} of partition {partition} are missing before it"));
        report.lost.push(gap);
    }
}

/// The error's own sentence says to run a check.
fn reason(error: &ColdError) -> String {
    match error {
        ColdError::Damaged { part, reason, .. } => format!("{part} is damaged: {reason}"),
        ColdError::Misplaced { part, found, .. } => format!("{part} is that of segment {found}"),
        other => other.to_string(),
    }
}
