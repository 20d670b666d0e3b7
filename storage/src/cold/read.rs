//! Reads of cold segments: which segment holds an offset, which block, and then few, large requests.
//!
//! A partition's offsets rise from segment to segment, so the segment is found by halving; a segment says what it has of a
//! partition on one small page. A consumer that goes on where it stopped is spared that ([`Hint`]). Blocks of one partition adjoin
//! in the file and are fetched together, and those of several segments at once (`ahead.rs`). What was damaged or is missing is passed over and named as a gap, never silently.
//!
//! Memory: the indexes of recently used segments, their pages and blocks, each bounded by bytes.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::ahead::{Ahead, BLOCKS_AHEAD, Fetched, SEGMENTS_AHEAD, Seats};
use super::{
    Block, ColdEntry, ColdError, ColdIndex, Footer, FramesOf, Part, PartitionSpan, decode_block, decode_frame, decode_page,
};
use crate::batches;
use crate::disk::{DiskRead, FileId, Reader};
use crate::format::{BLOCK, Uuid};
use crate::types::{PartitionId, ReadChunk, ReadError, ReadRequest};
use crate::view::{ColdPlace, Tables, View};

/// Indexes in memory: forty bytes a block.
const INDEX_CACHE_BYTES: usize = 32 << 20;
/// Decompressed blocks, for consumers that stop in the middle of one and for thin partitions that share one.
const BLOCK_CACHE_BYTES: usize = 16 << 20;
/// Decompressed frames of promoted segments: larger than blocks, and often of several partitions.
const FRAME_CACHE_BYTES: usize = 32 << 20;
const PAGE_CACHE_BYTES: usize = 8 << 20;
/// Partitions whose last place is remembered.
const HINTS_MAX: usize = 16 << 10;
/// One request for blocks.
const REQUEST_BYTES_MAX: usize = 1 << 20;
/// What lies between two frames of a promoted segment is read along with them where it is no more than this.
const FRAME_GAP_MAX: u64 = 64 << 10;
/// A segment's last bytes: footer, and as a rule the index before it.
const END_BYTES: usize = 64 << 10;

/// Why a part of a segment could not be had.
#[derive(Debug)]
enum Miss {
    /// Damaged, or its file is gone: what it holds is lost to this read.
    Lost,
    /// The read may be tried again.
    Later(ReadError),
}

/// What one copy gave.
enum Tried {
    Bytes(Bytes),
    /// An error of its disk.
    Failed,
    /// There are not so many copies.
    NoCopy,
}

/// What a read of the cold tier came to.
pub(crate) enum Answer {
    /// Batches, or an error.
    Done(Result<ReadChunk, ReadError>),
    /// There is nothing more up to this offset, from which on the WAL has it.
    GoOnAt(i64),
}

/// Where a consumer stopped.
#[derive(Clone, Copy, Debug)]
struct Hint {
    offset: i64,
    segment: u32,
}

/// The way to cold segments.
pub(crate) struct ColdReads {
    view: Arc<View>,
    reader: Arc<dyn Reader>,
    indexes: Mutex<Cache<u32, ColdIndex>>,
    pages: Mutex<Cache<(u32, u32), Vec<PartitionSpan>>>,
    blocks: Mutex<Cache<(u32, u32), Block>>,
    /// By segment and block of the file: index entries of several partitions share them.
    frames: Mutex<Cache<(u32, u64), Block>>,
    log_id: Uuid,
    hints: Mutex<HashMap<PartitionId, Hint>>,
    seats: Seats,
}

/// A read under way.
struct Catch {
    request: ReadRequest,
    offset: i64,
    high_watermark: i64,
    /// First offset that the WAL has.
    wal_start: i64,
    /// Where a known gap begins.
    stop_at: i64,
    batches: Vec<Bytes>,
    bytes: usize,
    /// Its class now.
    class: u32,
    /// Something on the way was damaged, so a hole is a loss.
    lost: bool,
    /// Segments that are of no more use to this read.
    passed: Vec<u32>,
}

enum Step {
    More,
    Full,
    /// A hole up to this offset, where there should be none.
    Gap(i64),
}

impl Catch {
    fn begin(tables: &Tables, request: &ReadRequest) -> Option<Catch> {
        let partition = tables.partitions.get(request.partition)?;
        let wal_start = partition.wal_start(tables.first_sequence());
        let (offset, high_watermark) = (request.offset, partition.next);
        let stop_at = tables.next_gap(request.partition, offset).unwrap_or(high_watermark).min(wal_start);
        Some(Catch {
            request: *request,
            offset,
            high_watermark,
            wal_start,
            stop_at,
            batches: Vec::new(),
            bytes: 0,
            class: partition.class.0,
            lost: false,
            passed: Vec::new(),
        })
    }

    /// This segment is of no more use; what it may have had is lost to this read.
    fn pass_over(&mut self, number: u32) {
        self.lost = true;
        self.passed.push(number);
    }

    /// Takes what a run has for this read. `holes`: offsets may be missing.
    fn add(&mut self, run: &ColdEntry, holes: bool) -> Step {
        if run.partition != self.request.partition || run.next_offset <= self.offset {
            return Step::More;
        }
        if run.base_offset > self.offset && (!holes || self.lost) {
            return if self.batches.is_empty() { Step::Gap(run.base_offset) } else { Step::Full };
        }
        for span in batches::split(&run.batches).flatten() {
            let batch = run.batches.slice(span.at..span.at + span.bytes);
            let next = batches::base_offset(&batch) + i64::from(span.offsets);
            if next <= self.offset {
                continue;
            }
            let full = !self.batches.is_empty() && self.bytes + batch.len() > self.request.bytes_max;
            if full || self.offset >= self.stop_at {
                return Step::Full;
            }
            self.bytes += batch.len();
            self.offset = next;
            self.batches.push(batch);
        }
        if self.bytes >= self.request.bytes_max { Step::Full } else { Step::More }
    }

    fn chunk(self) -> Answer {
        Answer::Done(Ok(ReadChunk { batches: self.batches, next_offset: self.offset, high_watermark: self.high_watermark }))
    }
}

impl ColdReads {
    pub(crate) fn new(view: Arc<View>, reader: Arc<dyn Reader>, log_id: Uuid) -> ColdReads {
        ColdReads {
            view,
            reader,
            indexes: Mutex::new(Cache::new(INDEX_CACHE_BYTES)),
            pages: Mutex::new(Cache::new(PAGE_CACHE_BYTES)),
            blocks: Mutex::new(Cache::new(BLOCK_CACHE_BYTES)),
            frames: Mutex::new(Cache::new(FRAME_CACHE_BYTES)),
            log_id,
            hints: Mutex::default(),
            seats: Seats::default(),
        }
    }

    /// Reads what lies before the WAL.
    pub(crate) async fn read(&self, request: &ReadRequest) -> Answer {
        let (catch, segments) = {
            let tables = self.view.tables();
            (Catch::begin(&tables, request), Arc::clone(&tables.cold))
        };
        let Some(catch) = catch else { return Answer::Done(Err(ReadError::UnknownPartition)) };
        let mut ahead = Ahead::new(&self.seats);
        let answer = self.catch_up(catch, &segments, &mut ahead).await;
        let is_promoted = |number| segments.iter().any(|place| place.number == number && place.entry.promoted.is_some());
        for (key, block) in ahead.rest().filter(|((number, _), _)| !is_promoted(*number)) {
            // The consumer probably comes for it next.
            lock(&self.blocks).insert(key, &block, block.memory_bytes());
        }
        answer.unwrap_or_else(|error| Answer::Done(Err(error)))
    }

    async fn catch_up<'a>(
        &'a self,
        mut catch: Catch,
        segments: &[Arc<ColdPlace>],
        ahead: &mut Ahead<'a>,
    ) -> Result<Answer, ReadError> {
        let partition = catch.request.partition;
        let mut near = self.hinted(segments, &catch);
        if near.is_none() {
            self.pages_at_once(segments, &catch).await;
        }
        while let Some(place) = self.segment_for(segments, near, &mut catch).await? {
            self.look_ahead(segments, &place, &catch, ahead);
            ahead.ready(place.number).await;
            let (before, holes) = (catch.offset, place.entry.compacted);
            match self.of_segment(&place, &mut catch, ahead).await {
                Ok(Step::More) => {}
                Ok(Step::Full) => {
                    self.remember(partition, catch.offset, place.number);
                    return Ok(catch.chunk());
                }
                Ok(Step::Gap(to)) => return Ok(Answer::Done(Err(ReadError::Gap { from: catch.offset, to }))),
                // What was read so far is good; the consumer comes again for the rest.
                Err(_) if !catch.batches.is_empty() => return Ok(catch.chunk()),
                Err(Miss::Lost) => catch.pass_over(place.number),
                Err(Miss::Later(error)) => return Err(error),
            }
            if catch.offset == before {
                // Its page promised more than its blocks had.
                catch.passed.push(place.number);
                catch.lost |= !holes;
            }
            near = following(segments, &place).next();
            if let Some(near) = near {
                ahead.ready(near.number).await;
            }
        }
        Ok(match catch {
            Catch { ref batches, .. } if !batches.is_empty() => catch.chunk(),
            // Compaction keeps each partition's end, so there is no other reason for this.
            Catch { offset, wal_start, .. } if offset < wal_start => {
                Answer::Done(Err(ReadError::Gap { from: offset, to: wal_start }))
            }
            Catch { wal_start, .. } => Answer::GoOnAt(wal_start),
        })
    }

    /// Where the consumer stopped the last time.
    fn hinted<'s>(&self, segments: &'s [Arc<ColdPlace>], catch: &Catch) -> Option<&'s Arc<ColdPlace>> {
        let hint = self.hints().get(&catch.request.partition).copied().filter(|hint| hint.offset == catch.offset)?;
        segments.iter().find(|place| place.number == hint.segment)
    }

    /// Of a class of few segments all pages are needed sooner or later: they are asked for at once.
    async fn pages_at_once(&self, segments: &[Arc<ColdPlace>], catch: &Catch) {
        let of_class = || segments.iter().filter(|place| place.entry.class == catch.class);
        if of_class().count() > SEGMENTS_AHEAD {
            return;
        }
        let partition = catch.request.partition;
        let mut pages: Vec<_> = of_class().map(|place| Box::pin(self.span(place, partition))).collect();
        std::future::poll_fn(|context| {
            // What could not be had is met once more, and told, when it is its turn.
            pages.retain_mut(|page| page.as_mut().poll(context).is_pending());
            if pages.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Begins to fetch from this segment and from those behind it, if the read wants more than this one has.
    fn look_ahead<'a>(&'a self, segments: &[Arc<ColdPlace>], place: &Arc<ColdPlace>, catch: &Catch, ahead: &mut Ahead<'a>) {
        let (partition, offset) = (catch.request.partition, catch.offset);
        let run_bytes = |place: &ColdPlace| (place.entry.batch_bytes / u64::from(place.entry.partitions.max(1))) as usize;
        let mut wanted = catch.request.bytes_max.saturating_sub(catch.bytes);
        if !ahead.may() || wanted <= run_bytes(place) {
            return;
        }
        for place in std::iter::once(place).chain(following(segments, place)).take(SEGMENTS_AHEAD) {
            if !ahead.has_begun(place.number) {
                let place = Arc::clone(place);
                ahead.begin(place.number, async move { self.fetch_ahead(&place, partition, offset).await });
            }
            wanted = wanted.saturating_sub(run_bytes(place));
            if wanted == 0 {
                return;
            }
        }
    }

    /// The first blocks that a segment may have of the partition, and meanwhile the page that says what it has.
    async fn fetch_ahead(&self, place: &ColdPlace, partition: PartitionId, offset: i64) -> Fetched {
        // Whatever fails here is met once more, and told, when it is its turn.
        let Ok(index) = self.index(place).await else { return Vec::new() };
        let Some(first) = index.locate(partition, offset) else { return Vec::new() };
        let mut end = index.blocks_of(partition).end.min(first + BLOCKS_AHEAD);
        if place.entry.promoted.is_some() {
            // Frames may be a hundred times as large as blocks.
            end = if index.block(first).bytes as usize > REQUEST_BYTES_MAX { first } else { end.min(first + 1) };
        }
        let (_, blocks) = tokio::join!(self.span(place, partition), self.blocks(place, &index, first..end, usize::MAX));
        (first as u32..).zip(blocks.unwrap_or_default()).collect()
    }

    /// The segment that holds the partition's next offset, or the first one behind a hole. `near` is looked at first.
    ///
    /// Within a class offsets rise from segment to segment. A partition that was moved between classes has segments in several:
    /// they are looked through only where its own class lacks the offset.
    async fn segment_for(
        &self,
        segments: &[Arc<ColdPlace>],
        near: Option<&Arc<ColdPlace>>,
        catch: &mut Catch,
    ) -> Result<Option<Arc<ColdPlace>>, ReadError> {
        let offset = catch.offset;
        if offset >= catch.stop_at {
            return Ok(None);
        }
        if let Some(place) = near.filter(|place| !catch.passed.contains(&place.number))
            && self.span_of(place, catch).await?.is_some_and(|span| span.first_offset <= offset && offset < span.next_offset)
        {
            return Ok(Some(Arc::clone(place)));
        }
        let mut classes: Vec<u32> = segments.iter().map(|place| place.entry.class).collect();
        classes.sort_unstable();
        classes.dedup();
        // Its own class first.
        classes.sort_by_key(|class| *class != catch.class);
        let mut best: Option<(PartitionSpan, Arc<ColdPlace>)> = None;
        for class in classes {
            let of_class: Vec<&Arc<ColdPlace>> =
                segments.iter().filter(|place| place.entry.class == class && !catch.passed.contains(&place.number)).collect();
            let Some((span, place)) = self.first_behind(&of_class, catch).await? else { continue };
            if span.first_offset <= offset {
                return Ok(Some(place));
            }
            if best.as_ref().is_none_or(|(other, _)| span.first_offset < other.first_offset) {
                best = Some((span, place));
            }
        }
        Ok(best.map(|(_, place)| place))
    }

    /// Of segments of one class the first that holds something of the partition at or behind the offset.
    async fn first_behind(
        &self,
        segments: &[&Arc<ColdPlace>],
        catch: &mut Catch,
    ) -> Result<Option<(PartitionSpan, Arc<ColdPlace>)>, ReadError> {
        let (mut low, mut high) = (0, segments.len());
        let mut found = None;
        while low < high {
            let middle = low + (high - low) / 2;
            // The next one that knows the partition decides.
            let mut at = middle;
            let mut span = None;
            while at < high && span.is_none() {
                span = self.span_of(segments[at], catch).await?;
                at += 1;
            }
            match span {
                Some(span) if span.next_offset <= catch.offset => low = at,
                Some(span) => {
                    found = Some((span, Arc::clone(segments[at - 1])));
                    high = middle;
                }
                None => high = middle,
            }
        }
        Ok(found)
    }

    /// What a segment has of the partition; nothing if that cannot be read.
    async fn span_of(&self, place: &Arc<ColdPlace>, catch: &mut Catch) -> Result<Option<PartitionSpan>, ReadError> {
        match self.span(place, catch.request.partition).await {
            Ok(span) => Ok(span),
            Err(Miss::Lost) => {
                catch.lost = true;
                Ok(None)
            }
            Err(Miss::Later(error)) => Err(error),
        }
    }

    async fn of_segment(&self, place: &ColdPlace, catch: &mut Catch, ahead: &mut Ahead<'_>) -> Result<Step, Miss> {
        let index = self.index(place).await?;
        let partition = catch.request.partition;
        let Some(first) = index.locate(partition, catch.offset) else { return Ok(Step::More) };
        let end = index.blocks_of(partition).end;
        let mut at = first;
        while at < end {
            let wanted = catch.request.bytes_max.saturating_sub(catch.bytes);
            let blocks = match ahead.take(place.number, at as u32) {
                Some(block) => vec![block],
                None => match self.blocks(place, &index, at..end, wanted).await {
                    // What lies behind the damage is as good as ever.
                    Err(Miss::Lost) if catch.batches.is_empty() && at + 1 < end => {
                        return Ok(Step::Gap(index.block(at + 1).first_offset.min(catch.wal_start)));
                    }
                    blocks => blocks?,
                },
            };
            for block in blocks {
                at += 1;
                for run in block.runs() {
                    match catch.add(&run, place.entry.compacted) {
                        Step::More => {}
                        step => return Ok(step),
                    }
                }
            }
        }
        Ok(Step::More)
    }

    /// Offset and timestamp of the first record from `start` on that is not older, if a cold segment has it.
    pub(crate) async fn offset_for_timestamp(
        &self,
        partition: PartitionId,
        timestamp: i64,
    ) -> Result<Option<(i64, i64)>, ReadError> {
        let (segments, start) = {
            let tables = self.view.tables();
            let Some(found) = tables.partitions.get(partition) else { return Err(ReadError::UnknownPartition) };
            (Arc::clone(&tables.cold), tables.start_of(found))
        };
        let mut best: Option<(i64, i64)> = None;
        let mut last_lsn = u64::MAX;
        // Segments are in order of their oldest frames. A merged one of another class may begin before this and still have what came
        // behind it, so the first that answers need not be right; one that begins behind its last frame has nothing older.
        for place in segments.iter() {
            if place.entry.first_lsn > last_lsn {
                break;
            }
            if place.entry.max_timestamp < timestamp {
                continue;
            }
            match self.search(place, partition, timestamp, start).await {
                Ok(found) => {
                    if found.is_some() && best.is_none_or(|best| found < Some(best)) {
                        best = found;
                        last_lsn = last_lsn.min(place.entry.last_lsn);
                    }
                }
                Err(Miss::Lost) => {
                    return Err(ReadError::Io("a cold segment on the way is damaged: search by offset instead".to_owned()));
                }
                Err(Miss::Later(error)) => return Err(error),
            }
        }
        Ok(best)
    }

    async fn search(
        &self,
        place: &ColdPlace,
        partition: PartitionId,
        timestamp: i64,
        start: i64,
    ) -> Result<Option<(i64, i64)>, Miss> {
        match self.span(place, partition).await? {
            Some(span) if span.max_timestamp >= timestamp && span.next_offset > start => {}
            _ => return Ok(None),
        }
        let index = self.index(place).await?;
        for at in index.blocks_of(partition).filter(|at| index.block(*at).max_timestamp >= timestamp) {
            for block in self.blocks(place, &index, at..at + 1, 0).await? {
                let runs = block.runs().filter(|run| run.partition == partition && run.max_timestamp >= timestamp);
                let found = runs.filter_map(|run| crate::read::first_record_from(&run.batches, timestamp, start)).next();
                if found.is_some() {
                    return Ok(found);
                }
            }
        }
        Ok(None)
    }

    /// What a segment has of a partition.
    async fn span(&self, place: &ColdPlace, partition: PartitionId) -> Result<Option<PartitionSpan>, Miss> {
        let index = self.index(place).await?;
        let Some(page) = index.page_of(partition) else { return Ok(None) };
        let key = (place.number, page.page);
        let cached = lock(&self.pages).get(&key);
        let spans = match cached {
            Some(spans) => spans,
            None => {
                let decode = |stored| decode_page(place.number, &page, stored);
                let spans = Arc::new(self.sound(FileId::Cold(place.number), page.at, page.bytes as usize, decode).await?);
                let cost = spans.len() * size_of::<PartitionSpan>() + 64;
                lock(&self.pages).insert(key, &spans, cost);
                spans
            }
        };
        let at = spans.binary_search_by_key(&partition, |span| span.partition);
        Ok(at.ok().map(|at| spans[at]))
    }

    async fn index(&self, place: &ColdPlace) -> Result<Arc<ColdIndex>, Miss> {
        let cached = lock(&self.indexes).get(&place.number);
        if let Some(index) = cached {
            return Ok(index);
        }
        let (number, file_bytes) = (place.number, place.entry.file_bytes);
        let end_at = file_bytes.saturating_sub(END_BYTES as u64);
        if file_bytes < BLOCK as u64 {
            return Err(Miss::Lost);
        }
        let decode = |end: Bytes| Footer::decode(number, file_bytes, &end[end.len() - BLOCK..]).map(|footer| (footer, end));
        let (footer, end) = self.sound(FileId::Cold(number), end_at, (file_bytes - end_at) as usize, decode).await?;
        let near = footer.index_at.checked_sub(end_at).map(|from| from as usize..(from + footer.index_bytes) as usize);
        let index = match near.and_then(|near| ColdIndex::decode(&footer, &end[near]).ok()) {
            Some(index) => index,
            None => {
                let decode = |stored: Bytes| ColdIndex::decode(&footer, &stored);
                self.sound(FileId::Cold(number), footer.index_at, footer.index_bytes as usize, decode).await?
            }
        };
        let index = Arc::new(index);
        lock(&self.indexes).insert(number, &index, index.memory_bytes());
        Ok(index)
    }

    /// The first of these blocks, and those behind it that are worth fetching with it for so many bytes.
    async fn blocks(
        &self,
        place: &ColdPlace,
        index: &ColdIndex,
        range: std::ops::Range<usize>,
        wanted: usize,
    ) -> Result<Vec<Arc<Block>>, Miss> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        if let Some(wal) = &place.entry.promoted {
            let of = FramesOf { number: place.number, log_id: self.log_id, sequence: wal.sequence };
            return self.frames(&of, index, range, wanted).await;
        }
        let (number, first) = (place.number, range.start);
        let cached = lock(&self.blocks).get(&(number, first as u32));
        if let Some(block) = cached {
            return Ok(vec![block]);
        }
        let (mut end, mut bytes) = (first, 0);
        while end < range.end {
            let place = index.block(end);
            let enough = (end - first) * super::BLOCK_RAW_BYTES >= wanted || bytes + place.bytes as usize > REQUEST_BYTES_MAX;
            if end > first && enough {
                break;
            }
            bytes += place.bytes as usize;
            end += 1;
        }
        let start = index.block(first).at;
        let decode =
            |stored: Bytes| decode_parts(number, index, first..end, &stored, |at, bytes| decode_block(number, at as u32, bytes));
        let blocks = self.sound(FileId::Cold(number), start, bytes, decode).await?;
        if let Some(last) = blocks.last() {
            let key = (number, (first + blocks.len() - 1) as u32);
            lock(&self.blocks).insert(key, last, last.memory_bytes());
        }
        Ok(blocks)
    }

    /// The same of a promoted segment: its frames, where they lie close to one another.
    async fn frames(
        &self,
        of: &FramesOf,
        index: &ColdIndex,
        range: std::ops::Range<usize>,
        wanted: usize,
    ) -> Result<Vec<Arc<Block>>, Miss> {
        let first = range.start;
        let key = |at: usize| (of.number, index.block(at).at);
        let cached = lock(&self.frames).get(&key(first));
        if let Some(frame) = cached {
            return Ok(vec![frame]);
        }
        let start = index.block(first).at;
        let mut end = first + 1;
        let mut to = start + u64::from(index.block(first).bytes);
        while end < range.end && to - start < wanted as u64 {
            let next = index.block(end);
            let next_to = next.at + u64::from(next.bytes);
            if next.at < to || next.at - to > FRAME_GAP_MAX || next_to - start > REQUEST_BYTES_MAX as u64 {
                break;
            }
            (end, to) = (end + 1, next_to);
        }
        let decode = |stored: Bytes| {
            decode_parts(of.number, index, first..end, &stored, |at, bytes| decode_frame(of, at as u32, &index.block(at), &bytes))
        };
        let frames = self.sound(FileId::Promoted(of.number), start, (to - start) as usize, decode).await?;
        let mut cache = lock(&self.frames);
        for (at, frame) in (first..).zip(&frames) {
            cache.insert(key(at), frame, frame.memory_bytes());
        }
        drop(cache);
        Ok(frames)
    }

    /// What one copy cannot give the other one may.
    async fn sound<T>(
        &self,
        file: FileId,
        at: u64,
        bytes: usize,
        decode: impl Fn(Bytes) -> Result<T, ColdError>,
    ) -> Result<T, Miss> {
        let (FileId::Cold(number) | FileId::Promoted(number)) = file else { return Err(Miss::Lost) };
        let first = self.reader.first_copy(file);
        let mut failed = 0;
        for copy in [first, 1 - first] {
            match self.fetch(file, number, copy, at, bytes).await? {
                Tried::NoCopy => continue,
                Tried::Failed => {}
                Tried::Bytes(stored) => match decode(stored) {
                    Ok(found) => {
                        self.view.reads.rescued.fetch_add(failed, Ordering::Relaxed);
                        return Ok(found);
                    }
                    // It went meanwhile, and its file is another one by now.
                    Err(_) if self.view.tables().cold_place(number).is_none() => return Err(Miss::Later(ReadError::Busy)),
                    Err(error) => tracing::error!(%error, copy, "a cold segment is damaged"),
                },
            }
            failed = 1;
            self.view.volumes().doubt(number);
        }
        Err(Miss::Lost)
    }

    async fn fetch(&self, file: FileId, number: u32, copy: usize, at: u64, bytes: usize) -> Result<Tried, Miss> {
        let (reply, answer) = oneshot::channel();
        let reply = Box::new(move |result| drop(reply.send(result)));
        match self.reader.read_copy(copy, DiskRead { file, at, bytes, reply }) {
            Ok(true) => {}
            Ok(false) => return Ok(Tried::NoCopy),
            Err(_) => return Err(Miss::Later(ReadError::Busy)),
        }
        match answer.await {
            Ok(Ok(bytes)) => Ok(Tried::Bytes(bytes)),
            Ok(Err(error)) => {
                // A segment that was merged away meanwhile: the next try sees the new one.
                if self.view.tables().cold_place(number).is_none() {
                    return Err(Miss::Later(ReadError::Busy));
                }
                tracing::error!(%error, copy, "a cold segment cannot be read");
                Ok(Tried::Failed)
            }
            Err(_) => Err(Miss::Later(ReadError::Busy)),
        }
    }

    fn remember(&self, partition: PartitionId, offset: i64, segment: u32) {
        let mut hints = self.hints();
        if hints.len() >= HINTS_MAX && !hints.contains_key(&partition) {
            // Rare enough to begin anew.
            hints.clear();
        }
        hints.insert(partition, Hint { offset, segment });
    }

    fn hints(&self) -> MutexGuard<'_, HashMap<PartitionId, Hint>> {
        self.hints.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets a segment whose file is gone.
    pub(crate) fn forget(&self, number: u32) {
        self.reader.forget(FileId::Cold(number));
        self.reader.forget(FileId::Promoted(number));
        lock(&self.indexes).entries.remove(&number);
    }
}

/// Segments of the same class behind this one.
fn following<'s>(segments: &'s [Arc<ColdPlace>], place: &ColdPlace) -> impl Iterator<Item = &'s Arc<ColdPlace>> {
    let (number, class) = (place.number, place.entry.class);
    segments.iter().skip_while(move |other| other.number != number).skip(1).filter(move |other| other.entry.class == class)
}

/// As many of these parts as are good; at least the first.
fn decode_parts(
    number: u32,
    index: &ColdIndex,
    range: std::ops::Range<usize>,
    stored: &Bytes,
    decode: impl Fn(usize, Bytes) -> Result<Block, ColdError>,
) -> Result<Vec<Arc<Block>>, ColdError> {
    let start = index.block(range.start).at;
    let mut blocks = Vec::with_capacity(range.len());
    for at in range {
        let place = index.block(at);
        let misplaced = ColdError::Damaged { number, part: Part::Index, reason: "its blocks do not follow one another" };
        let from = place.at.checked_sub(start).ok_or(misplaced)? as usize;
        let to = from + place.bytes as usize;
        let bytes = if to <= stored.len() { stored.slice(from..to) } else { return Err(misplaced) };
        match decode(at, bytes) {
            Ok(block) => blocks.push(Arc::new(block)),
            Err(error) if blocks.is_empty() => return Err(error),
            Err(_) => break,
        }
    }
    Ok(blocks)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Things by key, bounded by bytes; the oldest go first.
struct Cache<K, V> {
    entries: HashMap<K, (Arc<V>, usize)>,
    order: std::collections::VecDeque<K>,
    bytes: usize,
    bytes_max: usize,
}

impl<K: Copy + Eq + Hash, V> Cache<K, V> {
    fn new(bytes_max: usize) -> Cache<K, V> {
        Cache { entries: HashMap::new(), order: std::collections::VecDeque::new(), bytes: 0, bytes_max }
    }

    fn get(&self, key: &K) -> Option<Arc<V>> {
        self.entries.get(key).map(|(value, _)| Arc::clone(value))
    }

    fn insert(&mut self, key: K, value: &Arc<V>, cost: usize) {
        self.bytes += cost;
        match self.entries.insert(key, (Arc::clone(value), cost)) {
            Some((_, old)) => self.bytes -= old,
            None => self.order.push_back(key),
        }
        while self.bytes > self.bytes_max {
            let Some(oldest) = self.order.pop_front() else { break };
            self.bytes -= self.entries.remove(&oldest).map_or(0, |(_, cost)| cost);
        }
    }
}
