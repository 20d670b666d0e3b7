//! The 61 bytes before the records, and the two fields of them that a server may patch.

use crate::error::BatchError;

/// Bytes before the records.
pub const HEADER_BYTES: usize = 61;

/// `batch_length` counts the bytes after itself.
pub(crate) const LENGTH_END: usize = 12;
/// The CRC covers everything from here on.
pub(crate) const CRC_FROM: usize = 21;
/// A batch without records has this `batch_length`.
const BATCH_LENGTH_MIN: i32 = (HEADER_BYTES - LENGTH_END) as i32;
const MAGIC: i8 = 2;

const MAGIC_AT: usize = 16;
const CRC_AT: usize = 17;

pub(crate) const ATTRIBUTE_CODEC: i16 = 0b111;
pub(crate) const ATTRIBUTE_LOG_APPEND_TIME: i16 = 1 << 3;
const ATTRIBUTE_TRANSACTIONAL: i16 = 1 << 4;
const ATTRIBUTE_CONTROL: i16 = 1 << 5;

/// The header's fields, in their order on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "FORMAT.md says what each field is")]
pub struct BatchHeader {
    pub base_offset: i64,
    pub batch_length: i32,
    pub partition_leader_epoch: i32,
    pub magic: i8,
    pub crc: u32,
    pub attributes: i16,
    pub last_offset_delta: i32,
    pub base_timestamp: i64,
    pub max_timestamp: i64,
    pub producer_id: i64,
    pub producer_epoch: i16,
    pub base_sequence: i32,
    pub record_count: u32,
}

impl BatchHeader {
    /// Bytes of the whole batch, this header included.
    #[must_use]
    pub fn total_bytes(&self) -> usize {
        LENGTH_END + usize::try_from(self.batch_length).unwrap_or(0)
    }

    /// Whether the timestamps of the records are the time of appending.
    #[must_use]
    #[inline]
    pub fn is_log_append_time(&self) -> bool {
        self.attributes & ATTRIBUTE_LOG_APPEND_TIME != 0
    }

    /// Whether the batch belongs to a transaction.
    #[must_use]
    pub fn is_transactional(&self) -> bool {
        self.attributes & ATTRIBUTE_TRANSACTIONAL != 0
    }

    /// Whether the batch holds Kafka's own markers instead of records.
    #[must_use]
    pub fn is_control(&self) -> bool {
        self.attributes & ATTRIBUTE_CONTROL != 0
    }

    /// Reads the fields from bytes that [`frame`] has measured.
    pub(crate) fn parse(batch: &[u8]) -> Result<Self, BatchError> {
        let raw: &[u8; HEADER_BYTES] = batch.first_chunk().ok_or_else(|| cut(batch))?;
        let (record_count, last_offset_delta) = (i32_at(raw, 57), i32_at(raw, 23));
        let header = Self {
            base_offset: i64_at(raw, 0),
            batch_length: i32_at(raw, 8),
            partition_leader_epoch: i32_at(raw, 12),
            magic: raw[MAGIC_AT].cast_signed(),
            crc: crc_of(raw),
            attributes: i16_at(raw, 21),
            last_offset_delta,
            base_timestamp: i64_at(raw, 27),
            max_timestamp: i64_at(raw, 35),
            producer_id: i64_at(raw, 43),
            producer_epoch: i16_at(raw, 51),
            base_sequence: i32_at(raw, 53),
            record_count: u32::try_from(record_count).map_err(|_| BatchError::BadCount { record_count, last_offset_delta })?,
        };
        header.check()?;
        Ok(header)
    }

    /// What every batch must hold to, stored or sent. Gaps in the offsets (a compacted batch) are allowed here.
    fn check(&self) -> Result<(), BatchError> {
        if self.last_offset_delta < 0 || i64::from(self.record_count) > i64::from(self.last_offset_delta) + 1 {
            return Err(self.bad_count());
        }
        // `next_offset` must be a number, whatever a peer or a disk put here.
        if self.base_offset < 0 || self.base_offset > i64::MAX - (1 << 32) {
            return Err(BatchError::BadField { field: "base_offset", value: self.base_offset });
        }
        Ok(())
    }

    /// What a producer's new batch must hold to on top.
    pub(crate) fn check_produced(&self) -> Result<(), BatchError> {
        if self.record_count == 0 || i64::from(self.record_count) != i64::from(self.last_offset_delta) + 1 {
            return Err(self.bad_count());
        }
        let known = ATTRIBUTE_CODEC | ATTRIBUTE_LOG_APPEND_TIME;
        if self.attributes & !known != 0 || self.is_log_append_time() {
            return Err(BatchError::BadField { field: "attributes", value: self.attributes.into() });
        }
        if self.producer_id < -1 {
            return Err(BatchError::BadField { field: "producer_id", value: self.producer_id });
        }
        if self.producer_id >= 0 && self.producer_epoch < 0 {
            return Err(BatchError::BadField { field: "producer_epoch", value: self.producer_epoch.into() });
        }
        if self.producer_id >= 0 && self.base_sequence < 0 {
            return Err(BatchError::BadField { field: "base_sequence", value: self.base_sequence.into() });
        }
        Ok(())
    }

    pub(crate) fn bad_count(&self) -> BatchError {
        BatchError::BadCount { record_count: self.record_count.cast_signed(), last_offset_delta: self.last_offset_delta }
    }

    /// Writes the fields over the first bytes of `batch`, then the CRC of all that follows it.
    pub(crate) fn seal(&self, batch: &mut [u8]) {
        batch[0..8].copy_from_slice(&self.base_offset.to_be_bytes());
        batch[8..12].copy_from_slice(&self.batch_length.to_be_bytes());
        batch[12..16].copy_from_slice(&self.partition_leader_epoch.to_be_bytes());
        batch[MAGIC_AT] = MAGIC.cast_unsigned();
        batch[21..23].copy_from_slice(&self.attributes.to_be_bytes());
        batch[23..27].copy_from_slice(&self.last_offset_delta.to_be_bytes());
        batch[27..35].copy_from_slice(&self.base_timestamp.to_be_bytes());
        batch[35..43].copy_from_slice(&self.max_timestamp.to_be_bytes());
        batch[43..51].copy_from_slice(&self.producer_id.to_be_bytes());
        batch[51..53].copy_from_slice(&self.producer_epoch.to_be_bytes());
        batch[53..57].copy_from_slice(&self.base_sequence.to_be_bytes());
        batch[57..61].copy_from_slice(&self.record_count.to_be_bytes());
        let crc = crc32c::crc32c(&batch[CRC_FROM..]);
        batch[CRC_AT..CRC_FROM].copy_from_slice(&crc.to_be_bytes());
    }
}

/// Cuts exactly one batch off the front of `bytes`. The only fields believed before the CRC are the two it needs:
/// length and magic.
pub(crate) fn frame(bytes: &[u8]) -> Result<&[u8], BatchError> {
    let raw: &[u8; HEADER_BYTES] = bytes.first_chunk().ok_or_else(|| cut(bytes))?;
    let magic = raw[MAGIC_AT].cast_signed();
    if magic != MAGIC {
        return Err(BatchError::BadMagic { magic });
    }
    let batch_length = i32_at(raw, 8);
    let length = match usize::try_from(batch_length) {
        Ok(length) if batch_length >= BATCH_LENGTH_MIN => length,
        _ => return Err(BatchError::BadLength { batch_length }),
    };
    let wanted = LENGTH_END + length;
    bytes.get(..wanted).ok_or(BatchError::Truncated { wanted, got: bytes.len() })
}

/// Compares the CRC of a framed batch with its bytes.
pub(crate) fn check_crc(batch: &[u8]) -> Result<(), BatchError> {
    let raw: &[u8; HEADER_BYTES] = batch.first_chunk().ok_or_else(|| cut(batch))?;
    let (expected, actual) = (crc_of(raw), crc32c::crc32c(&batch[CRC_FROM..]));
    if expected == actual { Ok(()) } else { Err(BatchError::BadCrc { expected, actual }) }
}

fn cut(bytes: &[u8]) -> BatchError {
    BatchError::Truncated { wanted: HEADER_BYTES, got: bytes.len() }
}

fn crc_of(raw: &[u8; HEADER_BYTES]) -> u32 {
    i32_at(raw, CRC_AT).cast_unsigned()
}

// With a constant `at` the bounds are known when compiling: each of these is one load and a byte swap.
fn i16_at(raw: &[u8; HEADER_BYTES], at: usize) -> i16 {
    i16::from_be_bytes([raw[at], raw[at + 1]])
}

fn i32_at(raw: &[u8; HEADER_BYTES], at: usize) -> i32 {
    i32::from_be_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]])
}

fn i64_at(raw: &[u8; HEADER_BYTES], at: usize) -> i64 {
    let high = i64::from(i32_at(raw, at));
    let low = i64::from(i32_at(raw, at + 4).cast_unsigned());
    high << 32 | low
}

/// Sets the offset of the first record. The CRC does not cover it.
///
/// # Panics
/// When `batch` is shorter than a header.
pub fn patch_base_offset(batch: &mut [u8], offset: i64) {
    assert!(batch.len() >= HEADER_BYTES, "only whole batches are patched");
    batch[0..8].copy_from_slice(&offset.to_be_bytes());
}

/// Sets the leader epoch. The CRC does not cover it.
///
/// # Panics
/// When `batch` is shorter than a header.
pub fn patch_leader_epoch(batch: &mut [u8], epoch: i32) {
    assert!(batch.len() >= HEADER_BYTES, "only whole batches are patched");
    batch[12..16].copy_from_slice(&epoch.to_be_bytes());
}

const _: () = assert!(BATCH_LENGTH_MIN == 49);
