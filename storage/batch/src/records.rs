//! The records inside a batch, borrowed from its bytes.

use crate::error::BatchError;
use crate::header::BatchHeader;
use crate::varint::Cursor;

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
    pub fn raw(&self) -> &'a [u8] {
        self.raw
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether there are none.
    #[must_use]
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

    fn read(&mut self) -> Result<Record<'a>, &'static str> {
        let length = self.cursor.int().ok_or("its length is malformed")?;
        let length = usize::try_from(length).map_err(|_| "its length is negative")?;
        let body = self.cursor.take(length).ok_or("it is longer than the batch")?;
        self.parse(Cursor::new(body))
    }

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

    fn fail(&mut self, reason: &'static str) -> BatchError {
        let index = self.index;
        self.index = self.header.record_count;
        self.cursor.rest = &[];
        BatchError::BadRecord { index, reason }
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, BatchError>;

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

/// Walks all records of a producer's batch: what a server does before it stores them.
pub(crate) fn check(header: BatchHeader, bytes: &[u8]) -> Result<(), BatchError> {
    let mut timestamp_max = i64::MIN;
    for (index, record) in Records::new(header, bytes).enumerate() {
        let record = record?;
        let bad = |reason| Err(BatchError::BadRecord { index: index as u32, reason });
        if record.offset != header.base_offset + index as i64 {
            return bad("its offset does not follow the one before");
        }
        if record.timestamp < -1 {
            return bad("its timestamp is negative");
        }
        if record.timestamp > header.max_timestamp {
            return bad("its timestamp is later than the batch's max_timestamp");
        }
        timestamp_max = timestamp_max.max(record.timestamp);
    }
    // A max_timestamp beyond every record would make the search by time skip what it looks for.
    if timestamp_max == header.max_timestamp {
        Ok(())
    } else {
        Err(BatchError::BadField { field: "max_timestamp", value: header.max_timestamp })
    }
}
