//! How a consumer's read finds its batches: in memory at the tail, else frame by frame from the disk.
//!
//! The index names the last frame at or below the offset; from there the read walks forward. A frame that comes from the disk is
//! verified again (header CRC, volume, life of the segment, payload CRC), since its segment may have been recycled meanwhile; then
//! the answer is out-of-range, never somebody else's bytes.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::batches;
use crate::cold::read::{Answer, ColdReads};
use crate::core::slice_of;
use crate::disk::{DiskRead, FileId, Reader};
use crate::format::frame::{self, EntryKind, FrameHeader};
use crate::format::{BLOCK, Uuid};
use crate::types::{PartitionId, ReadChunk, ReadError, ReadRequest};
use crate::view::{CachedFrame, FrameCache, IndexEntry, Position, SegmentPlace, Tables, View};

/// What a read answers with.
pub type ReadReply = Box<dyn FnOnce(Result<ReadChunk, ReadError>) + Send>;
/// What a search by time answers with: offset and timestamp of the first record that is not older.
pub type TimestampReply = Box<dyn FnOnce(Result<Option<(i64, i64)>, ReadError>) + Send>;

/// Bytes read at once: frames behind the one wanted are kept for the next read.
const READ_AHEAD: usize = 256 << 10;
/// Frames from the disk kept for the next read of the same consumer.
const COLD_CACHE_BYTES: usize = 32 << 20;
/// Frames one read looks at in memory.
const INLINE_FRAMES_MAX: usize = 64;
/// Index entries a search by time chooses from.
const SAMPLES_MAX: usize = 4096;

/// Why a frame could not be fetched.
enum FetchError {
    /// The segment was recycled.
    Gone,
    /// What lies there is no intact frame.
    Damaged,
    Busy,
    Io(String),
}

type Fetched = Result<Arc<CachedFrame>, FetchError>;

/// The way to stored frames, shared by all handles.
pub(crate) struct ReadPath {
    view: Arc<View>,
    reader: Arc<dyn Reader>,
    volume_id: Uuid,
    cold: Mutex<FrameCache>,
    tier: ColdReads,
}

impl ReadPath {
    pub(crate) fn new(view: Arc<View>, reader: Arc<dyn Reader>, volume_id: Uuid) -> ReadPath {
        let tier = ColdReads::new(Arc::clone(&view), Arc::clone(&reader), volume_id);
        ReadPath { view, reader, volume_id, cold: Mutex::new(FrameCache::new(COLD_CACHE_BYTES)), tier }
    }

    /// Answers inline where memory can, else from the reader's thread.
    pub(crate) fn read(self: &Arc<Self>, request: ReadRequest, reply: ReadReply) {
        let walk = Walk::begin(&self.view.tables(), &request);
        let walk = match walk {
            Ok(walk) => walk,
            Err(Begin::Answer(answer)) => return reply(answer),
            Err(Begin::Cold) => return self.read_cold(request, reply),
        };
        let (mut walk, positions) = walk;
        {
            let tail = self.view.tail();
            for position in positions {
                let Some(frame) = tail.get(position) else { break };
                if walk.is_skipped_by(frame) {
                    // The index was thinned, or there is a gap: only a walk frame by frame can tell.
                    break;
                }
                walk.position = Position { block: position.block + frame.blocks, ..position };
                if walk.add(frame) == Next::Stop {
                    break;
                }
            }
        }
        if walk.is_done() {
            self.view.reads.from_memory.fetch_add(1, Ordering::Relaxed);
            return reply(walk.answer());
        }
        self.view.reads.from_disk.fetch_add(1, Ordering::Relaxed);
        self.drive(walk, None, reply);
    }

    /// What has left the WAL.
    fn read_cold(self: &Arc<Self>, request: ReadRequest, reply: ReadReply) {
        self.view.reads.from_disk.fetch_add(1, Ordering::Relaxed);
        let path = Arc::clone(self);
        crate::task::run(async move {
            match path.tier.read(&request).await {
                Answer::Done(answer) => reply(answer),
                Answer::GoOnAt(offset) => path.read(ReadRequest { offset, ..request }, reply),
            }
        });
    }

    /// A segment has left the WAL, and will not come back under this name.
    pub(crate) fn forget_wal(&self, file: FileId) {
        self.reader.forget(file);
    }

    /// Frames in memory: what is read now comes from the disk.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn forget_frames(&self) {
        self.view.tail_mut().clear();
        self.cold.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// A cold segment's file is gone.
    pub(crate) fn forget_cold(&self, number: u32) {
        self.tier.forget(number);
    }

    /// Walks on until the chunk is full, the next frame would have to be waited for, or the log ends.
    fn drive(self: &Arc<Self>, mut walk: Walk, mut fetched: Option<Arc<CachedFrame>>, reply: ReadReply) {
        loop {
            let place = match self.place(&mut walk.position) {
                Ok(place) => place,
                Err(End::Gone) => return self.answer_gone(walk, reply),
                Err(End::OfLog) => {
                    let to = walk.high_watermark;
                    return reply(walk.answer_or_gap(to));
                }
            };
            let Some(frame) = fetched.take().or_else(|| self.cached(walk.position)) else {
                if walk.is_done() {
                    return reply(walk.answer());
                }
                return self.fetch_for(walk, place, reply);
            };
            walk.position.block += frame.blocks;
            if walk.add(&frame) == Next::Stop {
                return reply(walk.answer());
            }
        }
    }

    /// The segment has left the WAL: its records are in cold segments now, or out of range.
    fn answer_gone(self: &Arc<Self>, walk: Walk, reply: ReadReply) {
        if self.view.tables().tiered && walk.batches.is_empty() {
            let request = ReadRequest { partition: walk.partition, offset: walk.offset, bytes_max: walk.bytes_max };
            return self.read(request, reply);
        }
        reply(walk.answer_gone(&self.view));
    }

    fn fetch_for(self: &Arc<Self>, walk: Walk, place: SegmentPlace, reply: ReadReply) {
        let path = Arc::clone(self);
        let position = walk.position;
        self.fetch(
            position,
            place,
            READ_AHEAD,
            None,
            Box::new(move |fetched| match fetched {
                Ok(frame) => path.drive(walk, Some(frame), reply),
                Err(FetchError::Gone) => path.answer_gone(walk, reply),
                Err(FetchError::Damaged) => {
                    let behind = behind_damage(&path.view.tables(), walk.partition, position);
                    let to = behind.unwrap_or(walk.high_watermark);
                    reply(walk.answer_or_gap(to));
                }
                Err(FetchError::Busy) => reply(Err(ReadError::Busy)),
                Err(FetchError::Io(reason)) => reply(Err(ReadError::Io(reason))),
            }),
        );
    }

    /// The segment a position lies in; a position at the end of one moves on to the next.
    fn place(&self, position: &mut Position) -> Result<SegmentPlace, End> {
        let tables = self.view.tables();
        loop {
            if position.sequence < tables.first_sequence() {
                return Err(End::Gone);
            }
            let place = tables.segment(position.sequence).ok_or(End::OfLog)?;
            if position.block < place.end_block {
                return Ok(place);
            }
            *position = Position { sequence: position.sequence + 1, block: 1 };
        }
    }

    fn cached(&self, position: Position) -> Option<Arc<CachedFrame>> {
        if let Some(frame) = self.view.tail().get(position) {
            return Some(Arc::clone(frame));
        }
        self.cold.lock().unwrap_or_else(PoisonError::into_inner).get(position).cloned()
    }

    /// Reads the frame at a position, and what lies behind it within `bytes`: from the first copy, or from the other one where
    /// the first has failed already.
    fn fetch(
        self: &Arc<Self>,
        position: Position,
        place: SegmentPlace,
        bytes: usize,
        failed: Option<FetchError>,
        then: Box<dyn FnOnce(Fetched) + Send>,
    ) {
        let path = Arc::clone(self);
        let at = u64::from(position.block) * BLOCK as u64;
        let left = (place.end_block - position.block) as usize * BLOCK;
        // The request comes back when the queue is full, and the continuation with it.
        let then = Arc::new(Mutex::new(Some(then)));
        let answer = Arc::clone(&then);
        let bytes = bytes.min(left);
        let other = failed.is_some();
        let reply = Box::new(move |result: Result<Bytes, crate::disk::DiskError>| {
            let Some(then) = take(&answer) else { return };
            match result {
                Ok(data) => path.fetched(position, place, &data, left, failed, then),
                Err(error) => path.fetch_failed(position, place, failed, FetchError::Io(error.to_string()), then),
            }
        });
        let request = DiskRead { file: FileId::Segment(place.file), at, bytes, reply };
        let queued = if other { self.reader.read_other(request) } else { self.reader.read(request) };
        if queued.is_err()
            && let Some(then) = take(&then)
        {
            then(Err(FetchError::Busy));
        }
    }

    /// One copy could not give the frame: the other one may, unless it was asked already.
    fn fetch_failed(
        self: &Arc<Self>,
        position: Position,
        place: SegmentPlace,
        before: Option<FetchError>,
        error: FetchError,
        then: Box<dyn FnOnce(Fetched) + Send>,
    ) {
        match before {
            None if self.reader.has_other() => self.fetch(position, place, READ_AHEAD, Some(error), then),
            None => then(Err(error)),
            // What the first copy had to say is as good.
            Some(first) => then(Err(first)),
        }
    }

    fn fetched(
        self: &Arc<Self>,
        mut position: Position,
        place: SegmentPlace,
        data: &Bytes,
        left: usize,
        failed: Option<FetchError>,
        then: Box<dyn FnOnce(Fetched) + Send>,
    ) {
        let first = match self.parse(position, data) {
            Parsed::Frame(frame) => frame,
            Parsed::Longer(bytes) if bytes <= left && bytes > data.len() => {
                return self.fetch(position, place, bytes, failed, then);
            }
            _ => {
                let gone = position.sequence < self.view.tables().first_sequence();
                if gone {
                    return then(Err(FetchError::Gone));
                }
                return self.fetch_failed(position, place, failed, FetchError::Damaged, then);
            }
        };
        let mut frames = vec![(position, Arc::clone(&first))];
        let mut rest = data.slice(first.blocks as usize * BLOCK..);
        position.block += first.blocks;
        while let Parsed::Frame(frame) = self.parse(position, &rest) {
            rest = rest.slice(frame.blocks as usize * BLOCK..);
            let blocks = frame.blocks;
            frames.push((position, frame));
            position.block += blocks;
        }
        let mut cold = self.cold.lock().unwrap_or_else(PoisonError::into_inner);
        frames.into_iter().for_each(|(position, frame)| cold.insert(position, frame));
        drop(cold);
        then(Ok(first));
    }

    fn parse(&self, position: Position, data: &Bytes) -> Parsed {
        let Some(header_bytes) = frame::peek_header_bytes(data) else { return Parsed::Nothing };
        if header_bytes > data.len() {
            return Parsed::Longer(header_bytes.next_multiple_of(BLOCK));
        }
        let Ok(header) = frame::decode_header(data) else { return Parsed::Nothing };
        let its = header.volume_id == self.volume_id && header.segment_sequence == u64::from(position.sequence);
        if !its || !header.lies_at(u64::from(position.block) * BLOCK as u64) {
            return Parsed::Nothing;
        }
        if header.frame_bytes() > data.len() {
            return Parsed::Longer(header.frame_bytes());
        }
        parse_payload(&header, data).map_or(Parsed::Nothing, |frame| Parsed::Frame(Arc::new(frame)))
    }

    /// Offset and timestamp of the first record that is not older than `timestamp`: cold segments first, they are older.
    pub(crate) fn offset_for_timestamp(self: &Arc<Self>, partition: PartitionId, timestamp: i64, reply: TimestampReply) {
        if self.view.tables().cold.is_empty() {
            return self.search_wal(partition, timestamp, reply);
        }
        let path = Arc::clone(self);
        crate::task::run(async move {
            match path.tier.offset_for_timestamp(partition, timestamp).await {
                Ok(None) => path.search_wal(partition, timestamp, reply),
                answer => reply(answer),
            }
        });
    }

    /// A search among frames, then a walk.
    fn search_wal(self: &Arc<Self>, partition: PartitionId, timestamp: i64, reply: TimestampReply) {
        let (samples, start, high_watermark) = {
            let tables = self.view.tables();
            let Some(found) = tables.partitions.get(partition) else { return reply(Err(ReadError::UnknownPartition)) };
            let live = found.live(tables.first_sequence());
            let step = live.len().div_ceil(SAMPLES_MAX).max(1);
            let samples = live.iter().step_by(step).copied().collect::<Vec<IndexEntry>>();
            (samples, tables.start_of(found), found.next)
        };
        let Some(first) = samples.first() else { return reply(Ok(None)) };
        let position = first.position;
        let to = samples.len();
        let search = Search { partition, timestamp, start, high_watermark, samples, from: 0, to, position, walking: false };
        self.drive_search(search, None, reply);
    }

    fn drive_search(self: &Arc<Self>, mut search: Search, mut fetched: Option<Arc<CachedFrame>>, reply: TimestampReply) {
        loop {
            let place = match self.place(search.aim()) {
                Ok(place) => place,
                Err(End::Gone) => return reply(Err(ReadError::Busy)),
                Err(End::OfLog) => return reply(Ok(None)),
            };
            let Some(frame) = fetched.take().or_else(|| self.cached(search.position)) else {
                let path = Arc::clone(self);
                let position = search.position;
                let then = Box::new(move |fetched: Fetched| match fetched {
                    Ok(frame) => path.drive_search(search, Some(frame), reply),
                    Err(FetchError::Io(reason)) => reply(Err(ReadError::Io(reason))),
                    Err(FetchError::Damaged) => {
                        reply(Err(ReadError::Io("a frame on the way is damaged: search by offset instead".to_owned())));
                    }
                    Err(FetchError::Gone | FetchError::Busy) => reply(Err(ReadError::Busy)),
                });
                return self.fetch(position, place, READ_AHEAD, None, then);
            };
            if let Some(found) = search.look(&frame) {
                return reply(Ok(Some(found)));
            }
        }
    }
}

fn take<T>(slot: &Mutex<Option<T>>) -> Option<T> {
    slot.lock().unwrap_or_else(PoisonError::into_inner).take()
}

enum End {
    Gone,
    OfLog,
}

enum Parsed {
    Frame(Arc<CachedFrame>),
    /// Needs this many bytes.
    Longer(usize),
    Nothing,
}

fn parse_payload(header: &FrameHeader, data: &Bytes) -> Option<CachedFrame> {
    let entries = header.directory(data).ok()?;
    let stored = header.verified_payload(data).ok()?;
    let payload = if header.zstd { Bytes::from(header.raw_payload(stored).ok()?) } else { data.slice_ref(stored) };
    let batches = entries.iter().filter(|entry| entry.kind == EntryKind::Batches);
    Some(CachedFrame::new(payload, batches.map(slice_of).collect(), (header.frame_bytes() / BLOCK) as u32))
}

/// First offset the index knows behind a damaged frame.
fn behind_damage(tables: &Tables, partition: PartitionId, damaged: Position) -> Option<i64> {
    let live = tables.partitions.get(partition)?.live(tables.first_sequence());
    let at = live.partition_point(|entry| entry.position <= damaged);
    live.get(at).map(|entry| entry.base_offset)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Frame,
    Stop,
}

/// Why a read does not begin in the WAL.
enum Begin {
    /// There is nothing to walk.
    Answer(Result<ReadChunk, ReadError>),
    /// The offset has left the WAL.
    Cold,
}

/// A read under way.
struct Walk {
    partition: PartitionId,
    bytes_max: usize,
    /// Offset wanted next.
    offset: i64,
    high_watermark: i64,
    /// Where a known gap begins, or the end: a misdirected write may have left a whole frame inside a gap, and what the log has
    /// declared lost must not come back.
    stop_at: i64,
    position: Position,
    batches: Vec<Bytes>,
    bytes: usize,
    gap_to: Option<i64>,
}

impl Walk {
    /// Where to begin, and the frames the index names from there; or the answer, where there is nothing to walk.
    fn begin(tables: &Tables, request: &ReadRequest) -> Result<(Walk, Vec<Position>), Begin> {
        let ReadRequest { partition, offset, bytes_max } = *request;
        let error = |error| Begin::Answer(Err(error));
        let found = tables.partitions.get(partition).ok_or(error(ReadError::UnknownPartition))?;
        let (start, high_watermark) = (tables.start_of(found), found.next);
        if offset < start || offset > high_watermark {
            return Err(error(ReadError::OutOfRange { start, high_watermark }));
        }
        if offset == high_watermark {
            return Err(Begin::Answer(Ok(ReadChunk { batches: Vec::new(), next_offset: offset, high_watermark })));
        }
        if let Some(gap) = tables.gap_at(partition, offset) {
            return Err(error(ReadError::Gap { from: gap.from, to: gap.to }));
        }
        if tables.tiered && offset < found.wal_start(tables.first_sequence()) {
            return Err(Begin::Cold);
        }
        let live = found.live(tables.first_sequence());
        let at = live.partition_point(|entry| entry.base_offset <= offset);
        let from = at.saturating_sub(1);
        let Some(first) = live.get(from) else {
            return Err(error(ReadError::Gap { from: offset, to: high_watermark }));
        };
        let positions = live[from..].iter().take(INLINE_FRAMES_MAX).map(|entry| entry.position).collect();
        let walk = Walk {
            partition,
            bytes_max,
            offset,
            high_watermark,
            stop_at: tables.next_gap(partition, offset).unwrap_or(high_watermark).min(high_watermark),
            position: first.position,
            batches: Vec::new(),
            bytes: 0,
            gap_to: None,
        };
        Ok((walk, positions))
    }

    fn is_done(&self) -> bool {
        !self.batches.is_empty() || self.gap_to.is_some()
    }

    /// Whether the frame begins behind the offset wanted.
    fn is_skipped_by(&self, frame: &CachedFrame) -> bool {
        frame.of_partition(self.partition).first().is_some_and(|slice| slice.base_offset > self.offset)
    }

    /// Takes what the frame has for this read.
    fn add(&mut self, frame: &CachedFrame) -> Next {
        for slice in frame.of_partition(self.partition) {
            if slice.next_offset <= self.offset {
                continue;
            }
            if slice.base_offset > self.offset {
                if self.batches.is_empty() {
                    self.gap_to = Some(slice.base_offset);
                }
                return Next::Stop;
            }
            let stored = frame.bytes(slice);
            for span in batches::split(&stored).flatten() {
                let batch = stored.slice(span.at..span.at + span.bytes);
                let next = batches::base_offset(&batch) + i64::from(span.offsets);
                if next <= self.offset {
                    continue;
                }
                if self.offset >= self.stop_at {
                    return Next::Stop;
                }
                if !self.batches.is_empty() && self.bytes + batch.len() > self.bytes_max {
                    return Next::Stop;
                }
                self.bytes += batch.len();
                self.offset = next;
                self.batches.push(batch);
            }
        }
        if self.bytes >= self.bytes_max && !self.batches.is_empty() || self.offset >= self.stop_at {
            return Next::Stop;
        }
        Next::Frame
    }

    fn answer(self) -> Result<ReadChunk, ReadError> {
        match self.gap_to {
            Some(to) if self.batches.is_empty() => Err(ReadError::Gap { from: self.offset, to }),
            _ => Ok(ReadChunk { batches: self.batches, next_offset: self.offset, high_watermark: self.high_watermark }),
        }
    }

    fn answer_or_gap(mut self, to: i64) -> Result<ReadChunk, ReadError> {
        self.gap_to = Some(to.max(self.offset + 1));
        self.answer()
    }

    fn answer_gone(self, view: &View) -> Result<ReadChunk, ReadError> {
        if !self.batches.is_empty() {
            return self.answer();
        }
        let bounds = view.tables().bounds(self.partition).ok_or(ReadError::UnknownPartition)?;
        Err(ReadError::OutOfRange { start: bounds.start, high_watermark: bounds.high_watermark })
    }
}

/// A search by time under way: first among samples of the index, then frame by frame.
struct Search {
    partition: PartitionId,
    timestamp: i64,
    start: i64,
    high_watermark: i64,
    samples: Vec<IndexEntry>,
    from: usize,
    to: usize,
    position: Position,
    walking: bool,
}

impl Search {
    fn middle(&self) -> usize {
        self.from + (self.to - self.from) / 2
    }

    /// The frame to look at next.
    fn aim(&mut self) -> &mut Position {
        if !self.walking {
            if self.from < self.to {
                self.position = self.samples[self.middle()].position;
            } else {
                // All samples before `from` are older; the record may lie between the last of them and the next.
                self.walking = true;
                self.position = self.samples[self.from.saturating_sub(1)].position;
            }
        }
        &mut self.position
    }

    fn look(&mut self, frame: &CachedFrame) -> Option<(i64, i64)> {
        let slices = frame.of_partition(self.partition);
        if !self.walking {
            let middle = self.middle();
            if slices.iter().all(|slice| slice.max_timestamp < self.timestamp) {
                self.from = middle + 1;
            } else {
                self.to = middle;
            }
            return None;
        }
        self.position.block += frame.blocks;
        let young =
            slices.iter().filter(|slice| slice.max_timestamp >= self.timestamp && slice.base_offset < self.high_watermark);
        young.filter_map(|slice| first_record_from(&frame.bytes(slice), self.timestamp, self.start)).next()
    }
}

/// The first record from `start` on that is not older. Of a batch whose codec is unknown here: its first offset, so that nothing is skipped.
pub(crate) fn first_record_from(stored: &[u8], timestamp: i64, start: i64) -> Option<(i64, i64)> {
    let mut scratch = Vec::new();
    for batch in weir_batch::split_batches(stored) {
        let batch = batch.ok()?;
        if batch.max_timestamp() < timestamp || batch.next_offset() <= start {
            continue;
        }
        let Ok(mut records) = batch.records(&mut scratch) else { return Some((batch.base_offset(), batch.max_timestamp())) };
        if let Some(record) =
            records.find_map(|record| record.ok().filter(|record| record.timestamp >= timestamp && record.offset >= start))
        {
            return Some((record.offset, record.timestamp));
        }
    }
    None
}
