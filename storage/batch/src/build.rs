//! Building a batch, record by record, in one buffer.

use std::ops::Range;

use zstd::bulk::Compressor;
use zstd::zstd_safe;

use crate::codec::Codec;
use crate::error::BatchError;
use crate::header::{BatchHeader, HEADER_BYTES, LENGTH_END};
use crate::records::{EncodedRecord, Headers, MarkedRecords, RecordMark};
use crate::varint::{Cursor, len_at, nullable_len, overwrite_signed, put_nullable, put_signed, signed_len};

/// No batch is built larger than this. Servers take far less.
const BATCH_BYTES_MAX: usize = i32::MAX as usize;

/// Collects records and makes a batch of them. Used again after each [`BatchBuilder::finish`].
///
/// Records are encoded as they come, behind room for the header: a push copies key, value and headers once and allocates
/// nothing but the buffer's growth.
pub struct BatchBuilder {
    codec: Codec,
    compressor: Option<Compressor<'static>>,
    /// Room for the header, then the encoded records.
    buffer: Vec<u8>,
    record_count: u32,
    base_timestamp: i64,
    max_timestamp: i64,
    producer: Producer,
    /// Size of the last batch, the best guess for the next.
    bytes_before: usize,
}

#[derive(Clone, Copy)]
struct Producer {
    id: i64,
    epoch: i16,
    base_sequence: i32,
}

const NO_PRODUCER: Producer = Producer { id: -1, epoch: -1, base_sequence: -1 };

impl BatchBuilder {
    /// An empty builder. With [`Codec::Zstd`], a batch that zstd cannot shrink is stored uncompressed.
    #[must_use]
    pub fn new(codec: Codec) -> Self {
        Self {
            codec,
            compressor: None,
            buffer: Vec::new(),
            record_count: 0,
            base_timestamp: 0,
            max_timestamp: 0,
            producer: NO_PRODUCER,
            bytes_before: 0,
        }
    }

    /// An empty builder with room for records of so many bytes.
    #[must_use]
    pub fn with_capacity(codec: Codec, records_bytes: usize) -> Self {
        Self { bytes_before: HEADER_BYTES + records_bytes.min(BATCH_BYTES_MAX - HEADER_BYTES), ..Self::new(codec) }
    }

    /// Adds a record. `timestamp` is in ms; the first record's is the batch's base.
    #[inline]
    pub fn push(&mut self, timestamp: i64, key: Option<&[u8]>, value: Option<&[u8]>, headers: &[(&[u8], Option<&[u8]>)]) {
        let mut headers_len = signed_len(headers.len() as i64);
        for &(name, value) in headers {
            headers_len += nullable_len(Some(name)) + nullable_len(value);
        }
        self.begin(timestamp, key, value, headers_len);
        put_signed(&mut self.buffer, headers.len() as i64);
        for &(name, value) in headers {
            put_nullable(&mut self.buffer, Some(name));
            put_nullable(&mut self.buffer, value);
        }
    }

    /// Adds a record whose headers are already encoded, count first, as [`Headers::raw`] gives them. Nothing is added where
    /// they are malformed.
    pub fn push_raw_headers(
        &mut self,
        timestamp: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers_raw: &[u8],
    ) -> Result<(), BatchError> {
        let index = self.record_count;
        Headers::parse(headers_raw).map_err(|error| match error {
            BatchError::BadRecord { reason, .. } => BatchError::BadRecord { index, reason },
            other => other,
        })?;
        self.begin(timestamp, key, value, headers_raw.len());
        self.buffer.extend_from_slice(headers_raw);
        Ok(())
    }

    /// Adds records of another batch as they are encoded there: one copy, and each record's new place written over its old
    /// one. Timestamps keep the base they have there, so an empty builder takes it over.
    ///
    /// # Errors
    /// [`BatchError::BadRecord`] if that batch has fewer records.
    pub fn push_run(&mut self, records: &MarkedRecords<'_>, run: Range<u32>) -> Result<(), BatchError> {
        let index = run.start;
        self.copy_run(records, run).ok_or(BatchError::BadRecord { index, reason: "it is not there" })
    }

    fn copy_run(&mut self, records: &MarkedRecords<'_>, run: Range<u32>) -> Option<()> {
        let (mut start, mut marks) = records.of(run)?;
        if self.record_count == 0 && !marks.is_empty() {
            self.start(records.base_timestamp);
            self.max_timestamp = i64::MIN;
        }
        let same_base = records.base_timestamp == self.base_timestamp;
        while let [first, ..] = marks {
            let fitting = if same_base { self.fitting(records.encoded, marks) } else { 0 };
            let (copied, rest) = marks.split_at(fitting.max(1));
            let end = copied.last()?.end as usize;
            if fitting > 0 {
                self.copy_fitting(records.encoded.get(start..end)?, start, copied)?;
            } else {
                // The number takes more or fewer bytes than before, so the record's length changes.
                let mut content = Cursor::new(records.encoded.get(first.offset_at as usize..end)?);
                content.int()?;
                self.push_encoded(first.timestamp, EncodedRecord::new(content.rest));
            }
            (start, marks) = (end, rest);
        }
        Some(())
    }

    /// How many records from the front have their number in as many bytes as their new one takes.
    fn fitting(&self, encoded: &[u8], marks: &[RecordMark]) -> usize {
        let length = signed_len(self.record_count.into());
        // A number of so many bytes has a bit less than 7 of each for its size, the other one being its sign.
        let same_length = (1u64 << (7 * length - 1)) - u64::from(self.record_count);
        let fits = |mark: &&RecordMark| len_at(encoded, mark.offset_at as usize) == Some(length);
        marks.iter().take(same_length as usize).take_while(fits).count()
    }

    /// Copies whole records, which begin at `start` of where they come from, and writes their new places.
    fn copy_fitting(&mut self, encoded: &[u8], start: usize, marks: &[RecordMark]) -> Option<()> {
        let copied_from = self.buffer.len();
        self.buffer.extend_from_slice(encoded);
        let copied = &mut self.buffer[copied_from..];
        let mut max_timestamp = self.max_timestamp;
        for (mark, offset_delta) in marks.iter().zip(self.record_count..) {
            overwrite_signed(copied.get_mut((mark.offset_at as usize).checked_sub(start)?..)?, offset_delta.into());
            max_timestamp = max_timestamp.max(mark.timestamp);
        }
        self.max_timestamp = max_timestamp;
        self.record_count += marks.len() as u32;
        Some(())
    }

    /// Latest timestamp of the records so far.
    #[must_use]
    pub fn max_timestamp(&self) -> i64 {
        self.max_timestamp
    }

    /// Adds a record of another batch as it is encoded there.
    #[inline]
    pub fn push_encoded(&mut self, timestamp: i64, record: EncodedRecord<'_>) {
        self.begin_with(timestamp, record.content().len());
        self.buffer.extend_from_slice(record.content());
    }

    /// Writes a record up to its headers.
    #[inline]
    fn begin(&mut self, timestamp: i64, key: Option<&[u8]>, value: Option<&[u8]>, headers_len: usize) {
        self.begin_with(timestamp, nullable_len(key) + nullable_len(value) + headers_len);
        put_nullable(&mut self.buffer, key);
        put_nullable(&mut self.buffer, value);
    }

    /// Writes a record up to its key; from there on it has so many bytes.
    #[inline]
    fn begin_with(&mut self, timestamp: i64, content_len: usize) {
        if self.record_count == 0 {
            self.start(timestamp);
        }
        let timestamp_delta = timestamp.wrapping_sub(self.base_timestamp);
        let offset_delta = i64::from(self.record_count);
        let length = 1 + signed_len(timestamp_delta) + signed_len(offset_delta) + content_len;
        let out = &mut self.buffer;
        out.reserve(length + 5);
        put_signed(out, length as i64);
        out.push(0);
        put_signed(out, timestamp_delta);
        put_signed(out, offset_delta);
        self.record_count += 1;
        self.max_timestamp = self.max_timestamp.max(timestamp);
    }

    fn start(&mut self, timestamp: i64) {
        self.buffer.clear();
        self.buffer.reserve(self.bytes_before.max(HEADER_BYTES));
        self.buffer.resize(HEADER_BYTES, 0);
        self.base_timestamp = timestamp;
        self.max_timestamp = timestamp;
    }

    /// Records so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.record_count as usize
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.record_count == 0
    }

    /// Bytes of the batch if it were finished now, before compression.
    #[must_use]
    pub fn bytes_estimate(&self) -> usize {
        if self.is_empty() { HEADER_BYTES } else { self.buffer.len() }
    }

    /// Stamps the batch being built, and only it, with its producer.
    pub fn set_producer(&mut self, id: i64, epoch: i16, base_sequence: i32) {
        self.producer = Producer { id, epoch, base_sequence };
    }

    /// Makes the batch, with base offset 0, and empties the builder for the next one, also after an error.
    pub fn finish(&mut self) -> Result<Vec<u8>, BatchError> {
        if self.is_empty() {
            return Err(BatchError::Empty);
        }
        let record_count = std::mem::take(&mut self.record_count);
        let producer = std::mem::replace(&mut self.producer, NO_PRODUCER);
        if self.buffer.len() > BATCH_BYTES_MAX {
            self.buffer = Vec::new();
            return Err(BatchError::TooLarge { max: BATCH_BYTES_MAX });
        }
        self.bytes_before = self.buffer.len();
        let (mut batch, codec) = match self.compressed()? {
            Some(batch) => (batch, self.codec),
            None => (std::mem::take(&mut self.buffer), Codec::None),
        };
        let header = BatchHeader {
            base_offset: 0,
            batch_length: (batch.len() - LENGTH_END) as i32,
            partition_leader_epoch: -1,
            magic: 2,
            crc: 0,
            attributes: codec.attributes(),
            last_offset_delta: (record_count - 1).cast_signed(),
            base_timestamp: self.base_timestamp,
            max_timestamp: self.max_timestamp,
            producer_id: producer.id,
            producer_epoch: producer.epoch,
            base_sequence: producer.base_sequence,
            record_count,
        };
        header.seal(&mut batch);
        Ok(batch)
    }

    /// The batch with its records compressed and its header still blank, if that makes it smaller.
    fn compressed(&mut self) -> Result<Option<Vec<u8>>, BatchError> {
        let Codec::Zstd(level) = self.codec else { return Ok(None) };
        let compressor = match &mut self.compressor {
            Some(compressor) => compressor,
            none => none.insert(
                Compressor::new(level.clamp(1, 19))
                    .map_err(|_| BatchError::Compress { reason: "zstd has no memory or does not know the level" })?,
            ),
        };
        let records = &self.buffer[HEADER_BYTES..];
        let mut batch = vec![0; HEADER_BYTES + zstd_safe::compress_bound(records.len())];
        let written = compressor
            .compress_to_buffer(records, &mut batch[HEADER_BYTES..])
            .map_err(|_| BatchError::Compress { reason: "zstd failed" })?;
        if written >= records.len() {
            return Ok(None);
        }
        batch.truncate(HEADER_BYTES + written);
        // The bound is somewhat more than the records were: what is handed out should not carry that along.
        batch.shrink_to_fit();
        Ok(Some(batch))
    }
}

impl std::fmt::Debug for BatchBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BatchBuilder({} records, {} bytes, {:?})", self.len(), self.bytes_estimate(), self.codec)
    }
}
