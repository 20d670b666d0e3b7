//! A batch whose bytes have been verified, and how a run of batches is split.

use crate::codec::{self, Codec, DECOMPRESSED_BYTES_MAX};
use crate::error::BatchError;
use crate::header::{self, BatchHeader, HEADER_BYTES};
use crate::records::{self, RECORD_BYTES_MIN, Records};

/// A view over the bytes of exactly one batch.
#[derive(Clone, Copy, Debug)]
pub struct RecordBatch<'a> {
    header: BatchHeader,
    codec: Codec,
    bytes: &'a [u8],
}

impl<'a> RecordBatch<'a> {
    /// Verifies the batch at the front of `bytes`: its CRC over the raw bytes first, then its header.
    ///
    /// More may follow it: `batch.bytes().len()` says how long it was. Its records are not looked at.
    pub fn verify(bytes: &'a [u8]) -> Result<Self, BatchError> {
        let batch = header::frame(bytes)?;
        header::check_crc(batch)?;
        Self::parse(batch)
    }

    /// The same without the CRC, for bytes that another checksum vouches for (a frame of the log).
    pub fn trusted(bytes: &'a [u8]) -> Result<Self, BatchError> {
        Self::parse(header::frame(bytes)?)
    }

    fn parse(bytes: &'a [u8]) -> Result<Self, BatchError> {
        let header = BatchHeader::parse(bytes)?;
        let codec = Codec::from_attributes(header.attributes)?;
        let records_max = (bytes.len() - HEADER_BYTES) / RECORD_BYTES_MIN;
        if codec == Codec::None && header.record_count as usize > records_max {
            return Err(header.bad_count());
        }
        Ok(Self { header, codec, bytes })
    }

    /// The header's fields.
    #[must_use]
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// The whole batch, header included.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// How its records are compressed.
    #[must_use]
    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// How many records it holds.
    #[must_use]
    pub fn record_count(&self) -> u32 {
        self.header.record_count
    }

    /// Offset of the first record.
    #[must_use]
    pub fn base_offset(&self) -> i64 {
        self.header.base_offset
    }

    /// Offset of the first record after the batch.
    #[must_use]
    pub fn next_offset(&self) -> i64 {
        // No overflow: the header's check keeps the base offset 2^32 below the largest.
        self.header.base_offset + i64::from(self.header.last_offset_delta) + 1
    }

    /// Latest timestamp of its records, in ms.
    #[must_use]
    pub fn max_timestamp(&self) -> i64 {
        self.header.max_timestamp
    }

    /// Checks a producer's new batch to the last record: counts, offsets 0, 1, 2 …, lengths, timestamps, nothing left over,
    /// no transaction, no control record. Allocates nothing unless a codec must be undone.
    pub fn check_records(&self) -> Result<(), BatchError> {
        self.check_records_with(&mut Vec::new(), DECOMPRESSED_BYTES_MAX)
    }

    /// The same with the caller's memory and limit for decompression.
    pub fn check_records_with(&self, scratch: &mut Vec<u8>, decompressed_bytes_max: usize) -> Result<(), BatchError> {
        self.header.check_produced()?;
        let records = self.plain_records(scratch, decompressed_bytes_max)?;
        records::check(self.header, records)
    }

    /// Iterates over the records. `scratch` is only used where a codec must be undone, and then holds at most
    /// [`DECOMPRESSED_BYTES_MAX`] bytes; keep it for the next batch.
    pub fn records<'s>(&'s self, scratch: &'s mut Vec<u8>) -> Result<Records<'s>, BatchError> {
        self.records_with(scratch, DECOMPRESSED_BYTES_MAX)
    }

    /// The same with the caller's limit for decompression.
    pub fn records_with<'s>(
        &'s self,
        scratch: &'s mut Vec<u8>,
        decompressed_bytes_max: usize,
    ) -> Result<Records<'s>, BatchError> {
        Ok(Records::new(self.header, self.plain_records(scratch, decompressed_bytes_max)?))
    }

    /// The records as one run of bytes, their codec undone.
    fn plain_records<'s>(&'s self, scratch: &'s mut Vec<u8>, bytes_max: usize) -> Result<&'s [u8], BatchError> {
        let stored = &self.bytes[HEADER_BYTES..];
        match self.codec {
            Codec::None => Ok(stored),
            Codec::Zstd(_) => {
                codec::decompress(stored, scratch, bytes_max)?;
                Ok(scratch)
            }
        }
    }
}

/// Iterates over batches that lie one after the other, without checking CRCs (see [`RecordBatch::trusted`]). After an error
/// it ends.
pub fn split_batches(bytes: &[u8]) -> impl Iterator<Item = Result<RecordBatch<'_>, BatchError>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let batch = RecordBatch::trusted(rest);
        rest = batch.as_ref().map_or(&[][..], |batch| &rest[batch.bytes().len()..]);
        Some(batch)
    })
}
