//! The records inside a batch, borrowed from its bytes.

use crate::error::BatchError;
use crate::header::BatchHeader;
use std::ops::Range;

use crate::varint::{Cursor, SECOND_BYTE, short_at, short_length, short_signed};

/// A record takes at least this: its length and six fields of one byte.
pub(crate) const RECORD_BYTES_MIN: usize = 7;

/// One record, borrowed from its batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Offset in the partition.
    pub offset: i64,
    /// Milliseconds since 1970.
    pub timestamp: i64,
    /// What chooses the partition.
    pub key: Option<&'a [u8]>,
    /// The content.
    pub value: Option<&'a [u8]>,
    /// Names and values beside it.
    pub headers: Headers<'a>,
}

/// The headers of a record, checked and still encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers<'a> {
    raw: &'a [u8],
    entries: &'a [u8],
    count: u32,
}

impl<'a> Headers<'a> {
    /// No headers.
    pub const NONE: Headers<'static> = Headers { raw: &[0], entries: &[], count: 0 };

    /// Checks encoded headers: their count and then each, nothing behind them.
    pub fn parse(raw: &'a [u8]) -> Result<Self, BatchError> {
        Self::walk(raw).map_err(|reason| BatchError::BadRecord { index: 0, reason })
    }

    fn walk(raw: &'a [u8]) -> Result<Self, &'static str> {
        let mut cursor = Cursor::new(raw);
        let count = cursor.int().ok_or("its header count is malformed")?;
        let count = u32::try_from(count).map_err(|_| "its header count is negative")?;
        let entries = cursor.rest;
        for _ in 0..count {
            next_header(&mut cursor).ok_or("a header of it is malformed")?;
        }
        if !cursor.rest.is_empty() {
            return Err("bytes follow its last header");
        }
        Ok(Self { raw, entries, count })
    }

    /// As they stand in the record, the count first: what [`crate::BatchBuilder::push_raw_headers`] takes.
    #[must_use]
    #[inline]
    pub fn raw(&self) -> &'a [u8] {
        self.raw
    }

    /// How many there are.
    #[must_use]
    #[inline]
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether there are none.
    #[must_use]
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Name and value of each.
    #[must_use]
    pub fn iter(&self) -> HeaderIter<'a> {
        HeaderIter { cursor: Cursor::new(self.entries) }
    }
}

impl<'a> IntoIterator for Headers<'a> {
    type Item = (&'a [u8], Option<&'a [u8]>);
    type IntoIter = HeaderIter<'a>;
    fn into_iter(self) -> HeaderIter<'a> {
        self.iter()
    }
}

/// Iterates over the headers of a record.
#[derive(Clone, Debug)]
pub struct HeaderIter<'a> {
    cursor: Cursor<'a>,
}

impl<'a> Iterator for HeaderIter<'a> {
    type Item = (&'a [u8], Option<&'a [u8]>);
    fn next(&mut self) -> Option<Self::Item> {
        next_header(&mut self.cursor)
    }
}

/// A header's name is never null.
fn next_header<'a>(cursor: &mut Cursor<'a>) -> Option<(&'a [u8], Option<&'a [u8]>)> {
    let name = cursor.nullable()??;
    Some((name, cursor.nullable()?))
}

/// A start and a length that stand for null.
pub const PLACE_NULL: (u32, u32) = (u32::MAX, 0);

/// Where the parts of a record lie: start and length of each, or [`PLACE_NULL`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordPlace {
    /// Offset in the partition, from the batch's first.
    pub offset_delta: i32,
    /// Milliseconds since 1970.
    pub timestamp: i64,
    /// The key.
    pub key: (u32, u32),
    /// The value.
    pub value: (u32, u32),
    /// Its headers, their count first; null where there are none.
    pub headers: (u32, u32),
    /// Where its offset delta stands.
    pub offset_at: u32,
    /// Where it ends.
    pub end: u32,
}

impl RecordPlace {
    /// What of it is needed to copy the record.
    #[must_use]
    #[inline]
    pub fn mark(&self) -> RecordMark {
        RecordMark { timestamp: self.timestamp, offset_at: self.offset_at, end: self.end }
    }
}

/// What is kept of a record that may be copied as it is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordMark {
    pub(crate) timestamp: i64,
    pub(crate) offset_at: u32,
    pub(crate) end: u32,
}

/// The encoded records of a batch with the marks of all of them: what [`crate::BatchBuilder::push_run`] copies from.
#[derive(Clone, Copy, Debug)]
pub struct MarkedRecords<'a> {
    pub(crate) encoded: &'a [u8],
    marks: &'a [RecordMark],
    pub(crate) base_timestamp: i64,
}

impl<'a> MarkedRecords<'a> {
    /// Of a batch with this header; the run is what [`Records::rest`] gives, and the marks are those of its places.
    #[must_use]
    pub fn new(header: &BatchHeader, run: &'a [u8], marks: &'a [RecordMark]) -> Self {
        Self { encoded: run, marks, base_timestamp: header.base_timestamp }
    }

    /// Where some of the records start, and their marks.
    pub(crate) fn of(&self, run: Range<u32>) -> Option<(usize, &'a [RecordMark])> {
        let (from, to) = (run.start as usize, run.end as usize);
        let start = match from.checked_sub(1) {
            Some(before) => self.marks.get(before)?.end as usize,
            None => 0,
        };
        Some((start, self.marks.get(from..to)?))
    }
}

/// What must be known of a batch to find the parts of its plain records: those whose numbers are short and that have no
/// headers, nearly all there are.
#[derive(Clone, Copy)]
struct PlainRecords {
    base_timestamp: i64,
    last_offset_delta: u32,
    /// The shape of the record before, mostly that of the next one.
    shape: &'static Shape,
}

impl PlainRecords {
    /// `None` where timestamps are not those of the records.
    fn of(header: &BatchHeader) -> Option<Self> {
        let last_offset_delta = u32::try_from(header.last_offset_delta).ok()?;
        let plain = Self { base_timestamp: header.base_timestamp, last_offset_delta, shape: &SHAPES[0] };
        (!header.is_log_append_time()).then_some(plain)
    }

    /// The record at `start`, and where it ends; `None` for one that is not plain, a malformed one included.
    #[inline(always)]
    fn place(&mut self, run: &[u8], start: usize) -> Option<(RecordPlace, usize)> {
        // All that stands before the key fits one word, and the value's length stands right behind it where there is no key.
        let front: &[u8; 16] = run.get(start..)?.first_chunk()?;
        let word = u64::from_le_bytes(*front.first_chunk()?);
        if !self.shape.is_of(word) {
            self.shape = Shape::of(word)?;
        }
        let shape = self.shape;
        let end = start + usize::from(shape.length_bytes) + short_length(word as u32, shape.length_mask) as usize;
        let timestamp_delta = short_signed((word >> shape.time_at) as u32, shape.time_mask);
        let offset_delta = short_length((word >> shape.offset_at) as u32, shape.offset_mask);
        let key_at = usize::from(shape.key_bytes & 7);
        let no_key = front[key_at] == 1;
        let (key, (value, at)) = if no_key {
            (PLACE_NULL, part_of([front[key_at + 1], front[key_at + 2]], start + key_at + 1)?)
        } else {
            let (key, value_at) = part_at(run, start + key_at)?;
            (key, part_at(run, value_at)?)
        };
        let timestamp = self.base_timestamp.checked_add(timestamp_delta.into())?;
        let plain = at + 1 == end && offset_delta <= self.last_offset_delta && *run.get(at)? == 0;
        let offset_delta = offset_delta.cast_signed();
        let (offset_at, end_at) = ((start + usize::from(shape.offset_bytes)) as u32, end as u32);
        let place = RecordPlace { offset_delta, timestamp, key, value, headers: PLACE_NULL, offset_at, end: end_at };
        plain.then_some((place, end))
    }
}

/// How many bytes the three numbers before a record's key take, one or two each, and what to do with a word that begins with
/// them. Places are in bits; the attributes, which nobody looks at, are one byte.
struct Shape {
    /// Bits that are the same in all words of this shape: those that end a number or do not, and the sign of two of them.
    mask: u64,
    bits: u64,
    length_bytes: u8,
    time_at: u8,
    offset_at: u8,
    /// What stands before the offset delta, and before the key.
    offset_bytes: u8,
    key_bytes: u8,
    length_mask: u32,
    time_mask: u32,
    offset_mask: u32,
}

/// By whether length (1), timestamp (2) and offset (4) take two bytes.
static SHAPES: [Shape; 8] = [
    Shape::new(0, 0, 0),
    Shape::new(1, 0, 0),
    Shape::new(0, 1, 0),
    Shape::new(1, 1, 0),
    Shape::new(0, 0, 1),
    Shape::new(1, 0, 1),
    Shape::new(0, 1, 1),
    Shape::new(1, 1, 1),
];

impl Shape {
    const fn new(length_more: u8, time_more: u8, offset_more: u8) -> Self {
        /// Bits of a number that are fixed: the highest of each byte.
        const fn ends(more: u8) -> (u64, u64) {
            if more == 0 { (0x80, 0) } else { (0x8080, 0x80) }
        }
        let time_at = 16 + 8 * length_more;
        let offset_at = time_at + 8 + 8 * time_more;
        let ((length_mask, length), (time_mask, time)) = (ends(length_more), ends(time_more));
        let (offset_mask, offset) = ends(offset_more);
        Self {
            // The lowest bit of a number is its sign.
            mask: length_mask | 1 | time_mask << time_at | (offset_mask | 1) << offset_at,
            bits: length | time << time_at | offset << offset_at,
            length_bytes: 1 + length_more,
            time_at,
            offset_at,
            offset_bytes: offset_at / 8,
            key_bytes: offset_at / 8 + 1 + offset_more,
            length_mask: SECOND_BYTE * length_more as u32,
            time_mask: SECOND_BYTE * time_more as u32,
            offset_mask: SECOND_BYTE * offset_more as u32,
        }
    }

    #[inline(always)]
    fn is_of(&self, word: u64) -> bool {
        word & self.mask == self.bits
    }

    /// The shape of a record; `None` if a number is longer, or one negative that must not be.
    #[inline]
    fn of(word: u64) -> Option<&'static Self> {
        // Whether the byte at a place, in bits, goes on with the next one.
        let goes_on = |at: u64| word >> (at + 7) & 1;
        let length = goes_on(0);
        let time = goes_on(16 + 8 * length);
        let offset = goes_on(24 + 8 * (length + time));
        SHAPES.get((length | time << 1 | offset << 2) as usize).filter(|shape| shape.is_of(word))
    }
}

/// A key or value whose length is short, and where it ends. Something always follows it.
#[inline(always)]
fn part_at(run: &[u8], at: usize) -> Option<((u32, u32), usize)> {
    part_of(*run.get(at..)?.first_chunk()?, at)
}

/// The same, given the two bytes there.
#[inline(always)]
fn part_of(two: [u8; 2], at: usize) -> Option<((u32, u32), usize)> {
    let two = u32::from(u16::from_le_bytes(two));
    let (length, start) = match two {
        _ if two & 0x8081 == 0x80 => (short_length(two, SECOND_BYTE), at + 2),
        _ if two & 0x81 == 0 => (short_length(two, 0), at + 1),
        _ if two & 0xff == 1 => return Some((PLACE_NULL, at + 1)),
        _ => return None,
    };
    Some(((start as u32, length), start + length as usize))
}

/// Iterates over the records of a batch. After an error it ends.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    cursor: Cursor<'a>,
    header: BatchHeader,
    index: u32,
}

impl<'a> Records<'a> {
    pub(crate) fn new(header: BatchHeader, bytes: &'a [u8]) -> Self {
        Self { cursor: Cursor::new(bytes), header, index: 0 }
    }

    /// The run of bytes that has not been read yet: before the first record, all records as they are encoded.
    #[must_use]
    #[inline]
    pub fn rest(&self) -> &'a [u8] {
        self.cursor.rest
    }

    /// Reads all that is left, telling of each record where its parts lie in [`Records::rest`] as it was before.
    ///
    /// Faster than iterating: nothing but numbers passes.
    #[inline]
    pub fn places(&mut self, mut each: impl FnMut(RecordPlace)) -> Result<(), BatchError> {
        let run = self.cursor.rest;
        let mut plain = PlainRecords::of(&self.header);
        let (mut at, mut index) = (0, self.index);
        while index < self.header.record_count {
            // Told in both arms: in the first the compiler knows that there are no headers.
            if let Some((place, end)) = plain.as_mut().and_then(|plain| plain.place(run, at)) {
                at = end;
                each(place);
            } else {
                self.index = index;
                let (place, end) = self.place_any(run, at)?;
                at = end;
                each(place);
            }
            index += 1;
        }
        self.index = index;
        self.cursor.rest = &run[at..];
        if self.cursor.rest.is_empty() { Ok(()) } else { Err(self.fail("bytes follow the last record")) }
    }

    /// Any record, in full.
    #[cold]
    fn place_any(&mut self, run: &'a [u8], start: usize) -> Result<(RecordPlace, usize), BatchError> {
        self.cursor = Cursor::new(&run[start..]);
        let record = self.read().map_err(|reason| self.fail(reason))?;
        let end = run.len() - self.cursor.rest.len();
        // It was just read, so it has a frame.
        let offset_at = frame_any(&run[start..]).map_or(0, |frame| frame.offset_at);
        // The parts are slices of `run`, so their distance from its start is their place.
        let place = |part: &[u8]| ((part.as_ptr().addr() - run.as_ptr().addr()) as u32, part.len() as u32);
        let place_or_null = |part: Option<&[u8]>| part.map_or(PLACE_NULL, place);
        let place = RecordPlace {
            offset_delta: (record.offset - self.header.base_offset) as i32,
            timestamp: record.timestamp,
            key: place_or_null(record.key),
            value: place_or_null(record.value),
            headers: if record.headers.is_empty() { PLACE_NULL } else { place(record.headers.raw()) },
            offset_at: (start + offset_at) as u32,
            end: end as u32,
        };
        Ok((place, end))
    }

    #[inline]
    fn read(&mut self) -> Result<Record<'a>, &'static str> {
        let length = self.cursor.int().ok_or("its length is malformed")?;
        let length = usize::try_from(length).map_err(|_| "its length is negative")?;
        let body = self.cursor.take(length).ok_or("it is longer than the batch")?;
        self.parse(Cursor::new(body))
    }

    #[inline]
    fn parse(&self, mut body: Cursor<'a>) -> Result<Record<'a>, &'static str> {
        // Kafka defines no attribute of a record; like Kafka, we do not look at them.
        body.byte().ok_or("it is empty")?;
        let timestamp_delta = body.long().ok_or("its timestamp is malformed")?;
        let offset_delta = body.int().ok_or("its offset is malformed")?;
        let key = body.nullable().ok_or("its key is malformed")?;
        let value = body.nullable().ok_or("its value is malformed")?;
        let headers = if body.rest == [0] { Headers { raw: body.rest, ..Headers::NONE } } else { Headers::walk(body.rest)? };
        if offset_delta < 0 || offset_delta > self.header.last_offset_delta {
            return Err("its offset is outside the batch");
        }
        let timestamp = if self.header.is_log_append_time() {
            self.header.max_timestamp
        } else {
            self.header.base_timestamp.checked_add(timestamp_delta).ok_or("its timestamp overflows")?
        };
        // No overflow: the header's check keeps the base offset 2^32 below the largest.
        Ok(Record { offset: self.header.base_offset + i64::from(offset_delta), timestamp, key, value, headers })
    }

    #[cold]
    fn fail(&mut self, reason: &'static str) -> BatchError {
        let index = self.index;
        self.index = self.header.record_count;
        self.cursor.rest = &[];
        BatchError::BadRecord { index, reason }
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, BatchError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.index == self.header.record_count {
            return if self.cursor.rest.is_empty() { None } else { Some(Err(self.fail("bytes follow the last record"))) };
        }
        match self.read() {
            Ok(record) => {
                self.index += 1;
                Some(Ok(record))
            }
            Err(reason) => Some(Err(self.fail(reason))),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        // What is left cannot hold more records than this, whatever the header claims; one error may come on top.
        let left = (self.header.record_count - self.index) as usize;
        (0, Some(left.min(self.cursor.rest.len() / RECORD_BYTES_MIN) + 1))
    }
}

/// Key, value and headers of a record, still encoded: what [`crate::BatchBuilder::push_encoded`] puts into another batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncodedRecord<'a> {
    content: &'a [u8],
}

impl<'a> EncodedRecord<'a> {
    pub(crate) fn new(content: &'a [u8]) -> Self {
        Self { content }
    }

    #[inline]
    pub(crate) fn content(&self) -> &'a [u8] {
        self.content
    }
}

/// Walks the encoded records of a batch that was read before, without reading what is in them.
#[derive(Clone, Debug)]
pub struct EncodedRecords<'a> {
    cursor: Cursor<'a>,
    next: u32,
}

/// Where the numbers of an encoded record lie.
#[derive(Clone, Copy)]
pub(crate) struct Frame<'a> {
    /// The whole record, its length included.
    pub(crate) bytes: &'a [u8],
    /// The offset delta's place in the record, and how many bytes it has there.
    pub(crate) offset_at: usize,
    pub(crate) offset_len: usize,
}

impl<'a> EncodedRecords<'a> {
    /// The run is what [`Records::rest`] gives.
    #[must_use]
    pub fn new(run: &'a [u8]) -> Self {
        Self { cursor: Cursor::new(run), next: 0 }
    }

    /// The content of the record at `index`; `None` where that lies behind, or is not there.
    #[inline]
    pub fn seek(&mut self, index: u32) -> Option<EncodedRecord<'a>> {
        self.skip_to(index)?;
        let frame = self.frame()?;
        Some(EncodedRecord { content: &frame.bytes[frame.offset_at + frame.offset_len..] })
    }

    #[inline]
    pub(crate) fn skip_to(&mut self, index: u32) -> Option<()> {
        if index < self.next {
            return None;
        }
        while self.next < index {
            let length = usize::try_from(self.cursor.int()?).ok()?;
            self.cursor.take(length)?;
            self.next += 1;
        }
        Some(())
    }

    #[inline]
    pub(crate) fn frame(&mut self) -> Option<Frame<'a>> {
        let run = self.cursor.rest;
        let frame = frame_short(run).or_else(|| frame_any(run))?;
        self.cursor.rest = &run[frame.bytes.len()..];
        self.next += 1;
        Some(frame)
    }
}

#[inline]
fn frame_short(run: &[u8]) -> Option<Frame<'_>> {
    let (length, at) = short_at(run, 0)?;
    let bytes = run.get(..at + usize::try_from(length).ok()?)?;
    let (_, offset_at) = short_at(bytes, at + 1)?;
    let (_, offset_end) = short_at(bytes, offset_at)?;
    Some(Frame { bytes, offset_at, offset_len: offset_end - offset_at })
}

#[cold]
fn frame_any(run: &[u8]) -> Option<Frame<'_>> {
    let mut cursor = Cursor::new(run);
    let length = usize::try_from(cursor.int()?).ok()?;
    let mut body = Cursor::new(cursor.take(length)?);
    let bytes = &run[..run.len() - cursor.rest.len()];
    body.byte()?;
    body.long()?;
    let offset_at = bytes.len() - body.rest.len();
    body.int()?;
    let offset_len = bytes.len() - body.rest.len() - offset_at;
    Some(Frame { bytes, offset_at, offset_len })
}

/// Walks all records of a producer's batch: what a server does before it stores them.
pub(crate) fn check(header: BatchHeader, bytes: &[u8]) -> Result<(), BatchError> {
    let mut timestamp_max = i64::MIN;
    let mut index = 0u32;
    let mut bad = None;
    Records::new(header, bytes).places(|record| {
        let reason = if record.offset_delta.cast_unsigned() != index {
            "its offset does not follow the one before"
        } else if record.timestamp < -1 {
            "its timestamp is negative"
        } else if record.timestamp > header.max_timestamp {
            "its timestamp is later than the batch's max_timestamp"
        } else {
            timestamp_max = timestamp_max.max(record.timestamp);
            index += 1;
            return;
        };
        bad.get_or_insert((index, reason));
        index += 1;
    })?;
    if let Some((index, reason)) = bad {
        return Err(BatchError::BadRecord { index, reason });
    }
    // A max_timestamp beyond every record would make the search by time skip what it looks for.
    if timestamp_max == header.max_timestamp {
        Ok(())
    } else {
        Err(BatchError::BadField { field: "max_timestamp", value: header.max_timestamp })
    }
}
