//! Records cut out of stored batches: slices of the bytes that arrived, not copies.

use std::collections::VecDeque;

use bytes::Bytes;
use weir_batch::{BatchError, Codec, HEADER_BYTES, Headers, RecordBatch};

/// A record as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConsumerRecord {
    /// Its partition.
    pub partition: u32,
    /// Its offset.
    pub offset: i64,
    /// Milliseconds since 1970.
    pub timestamp: i64,
    /// What chose the partition.
    pub key: Option<Bytes>,
    /// The content.
    pub value: Option<Bytes>,
    headers: Bytes,
}

impl ConsumerRecord {
    /// Names and values beside it.
    pub fn headers(&self) -> Headers<'_> {
        Headers::parse(&self.headers).unwrap_or(Headers::NONE) // they parsed when the record was read
    }
}

/// Appends the records of whole batches from `wanted` on to `records`. Answers the offset after the last batch.
pub(crate) fn slice_records(
    partition: u32,
    mut batches: Bytes,
    wanted: i64,
    records: &mut VecDeque<ConsumerRecord>,
) -> Result<i64, BatchError> {
    let mut next_offset = wanted;
    while !batches.is_empty() {
        let batch = RecordBatch::verify(&batches)?;
        let bytes = batch.bytes().len();
        next_offset = next_offset.max(batch.next_offset());
        if !batch.header().is_control() && batch.next_offset() > wanted {
            slice_batch(partition, &batches, &batch, wanted, records)?;
        }
        batches = batches.slice(bytes..);
    }
    Ok(next_offset)
}

fn slice_batch(
    partition: u32,
    whole: &Bytes,
    batch: &RecordBatch<'_>,
    wanted: i64,
    out: &mut VecDeque<ConsumerRecord>,
) -> Result<(), BatchError> {
    if batch.codec() == Codec::None {
        let mut unused = Vec::new();
        for record in batch.records(&mut unused)? {
            let record = record?;
            if record.offset >= wanted {
                out.push_back(owned(partition, &record, |part| whole.slice_ref(part)));
            }
        }
        return Ok(());
    }
    // Decompressed once into memory that the records then share. A first pass undoes the codec, a second one slices.
    let mut plain = Vec::new();
    batch.records(&mut plain)?;
    let plain = Bytes::from(plain);
    let mut header = whole[..HEADER_BYTES].to_vec();
    let codec_bits = 0x07;
    header[22] &= !codec_bits;
    let length = (HEADER_BYTES - 12 + plain.len()) as i32;
    header[8..12].copy_from_slice(&length.to_be_bytes());
    let rebuilt = Bytes::from([&header[..], &plain[..]].concat());
    let mut unused = Vec::new();
    for record in RecordBatch::trusted(&rebuilt)?.records(&mut unused)? {
        let record = record?;
        if record.offset >= wanted {
            out.push_back(owned(partition, &record, |part| rebuilt.slice_ref(part)));
        }
    }
    Ok(())
}

fn owned(partition: u32, record: &weir_batch::Record<'_>, slice: impl Fn(&[u8]) -> Bytes) -> ConsumerRecord {
    ConsumerRecord {
        partition,
        offset: record.offset,
        timestamp: record.timestamp,
        key: record.key.map(&slice),
        value: record.value.map(&slice),
        headers: slice(record.headers.raw()),
    }
}

#[cfg(test)]
mod tests {
    use weir_batch::{BatchBuilder, ZSTD_LEVEL_DEFAULT, patch_base_offset};

    use super::*;

    fn batch(codec: Codec, base_offset: i64, values: &[&str]) -> Vec<u8> {
        let mut builder = BatchBuilder::new(codec);
        for value in values {
            builder.push(7, Some(b"key"), Some(value.as_bytes()), &[(b"name", Some(b"content"))]);
        }
        let mut batch = builder.finish().unwrap();
        patch_base_offset(&mut batch, base_offset);
        batch
    }

    #[test]
    fn records_below_the_wanted_offset_are_skipped_in_either_codec() {
        let long = "x".repeat(500);
        for codec in [Codec::None, Codec::Zstd(ZSTD_LEVEL_DEFAULT)] {
            let bytes = [batch(codec, 10, &["a", &long]), batch(codec, 12, &["b", &long, "c"])].concat();
            let mut records = VecDeque::new();
            assert_eq!(slice_records(3, bytes.into(), 11, &mut records).unwrap(), 15);
            let found: Vec<_> = records.iter().map(|record| (record.offset, record.value.as_ref().unwrap().len())).collect();
            assert_eq!(found, [(11, 500), (12, 1), (13, 500), (14, 1)]);
            let first = &records[0];
            assert_eq!((first.partition, first.timestamp, first.key.as_deref()), (3, 7, Some(&b"key"[..])));
            assert_eq!(first.headers().iter().collect::<Vec<_>>(), [(&b"name"[..], Some(&b"content"[..]))]);
        }
    }

    #[test]
    fn a_damaged_batch_is_an_error() {
        let mut bytes = batch(Codec::None, 0, &["a"]);
        *bytes.last_mut().unwrap() ^= 1;
        assert!(matches!(slice_records(0, bytes.into(), 0, &mut VecDeque::new()), Err(BatchError::BadCrc { .. })));
    }
}
