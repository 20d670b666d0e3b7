//! Partition pages: what each partition has in a segment, 512 to a page.

use bytes::Bytes;

use super::block::{FLAG_ZSTD, Packer, unpack};
use super::{ColdError, PagePlace, Part, crc_with_number};
use crate::format::{i64_at, put, u16_at, u32_at, u64_at};
use crate::types::PartitionId;

/// Partitions to a page.
pub(super) const PAGE_SPANS: usize = 512;

const MAGIC: &[u8; 4] = b"WCP1";
const HEAD_BYTES: usize = 16;
const SPAN_BYTES: usize = 48;

/// What one partition has in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionSpan {
    /// Which.
    pub partition: PartitionId,
    /// Of its first batch.
    pub first_offset: i64,
    /// One past its last record.
    pub next_offset: i64,
    /// Highest record timestamp, ms.
    pub max_timestamp: i64,
    /// Bytes of its batches before compression.
    pub batch_bytes: u64,
    /// Its records.
    pub records: u64,
}

impl PartitionSpan {
    /// What it has behind that in another segment, or further on in the same one.
    pub(super) fn extend(&mut self, next: &PartitionSpan) {
        self.next_offset = next.next_offset;
        self.max_timestamp = self.max_timestamp.max(next.max_timestamp);
        self.batch_bytes += next.batch_bytes;
        self.records += next.records;
    }

    fn encode(&self, out: &mut [u8]) {
        put(out, 0, &self.partition.0.to_le_bytes());
        put(out, 8, &self.first_offset.to_le_bytes());
        put(out, 16, &self.next_offset.to_le_bytes());
        put(out, 24, &self.max_timestamp.to_le_bytes());
        put(out, 32, &self.batch_bytes.to_le_bytes());
        put(out, 40, &self.records.to_le_bytes());
    }

    fn decode(bytes: &[u8]) -> PartitionSpan {
        PartitionSpan {
            partition: PartitionId(u32_at(bytes, 0)),
            first_offset: i64_at(bytes, 8),
            next_offset: i64_at(bytes, 16),
            max_timestamp: i64_at(bytes, 24),
            batch_bytes: u64_at(bytes, 32),
            records: u64_at(bytes, 40),
        }
    }
}

/// One page, head included.
pub(super) fn encode_page(number: u32, spans: &[PartitionSpan], packer: &mut Packer) -> Vec<u8> {
    assert!((1..=PAGE_SPANS).contains(&spans.len()), "a page has room for so many");
    let mut raw = vec![0; spans.len() * SPAN_BYTES];
    for (span, out) in spans.iter().zip(raw.chunks_exact_mut(SPAN_BYTES)) {
        span.encode(out);
    }
    let (stored, flags) = packer.pack(&raw);
    let mut page = vec![0; HEAD_BYTES];
    put(&mut page, 0, MAGIC);
    put(&mut page, 8, &(stored.len() as u32).to_le_bytes());
    put(&mut page, 12, &(spans.len() as u16).to_le_bytes());
    put(&mut page, 14, &(flags as u16).to_le_bytes());
    page.extend_from_slice(stored);
    let crc = crc_with_number(number, &page[8..]);
    put(&mut page, 4, &crc.to_le_bytes());
    page
}

/// Verifies and reads a page of segment `number`; `stored` is exactly what its place names. Sorted by partition.
pub fn decode_page(number: u32, place: &PagePlace, stored: Bytes) -> Result<Vec<PartitionSpan>, ColdError> {
    let damaged = |reason| ColdError::Damaged { number, part: Part::Page(place.page), reason };
    if stored.len() < HEAD_BYTES || &stored[..4] != MAGIC {
        return Err(damaged("there is no page"));
    }
    if u32_at(&stored, 4) != crc_with_number(number, &stored[8..]) {
        return Err(damaged("its CRC does not match"));
    }
    let spans = usize::from(u16_at(&stored, 12));
    if u32_at(&stored, 8) as usize != stored.len() - HEAD_BYTES || !(1..=PAGE_SPANS).contains(&spans) {
        return Err(damaged("its lengths contradict each other"));
    }
    let raw = unpack(stored.slice(HEAD_BYTES..), u32::from(u16_at(&stored, 14)), spans * SPAN_BYTES).map_err(damaged)?;
    let spans: Vec<PartitionSpan> = raw.chunks_exact(SPAN_BYTES).map(PartitionSpan::decode).collect();
    if spans[0].partition != place.partition || !spans.is_sorted_by(|a, b| a.partition < b.partition) {
        return Err(damaged("it is not the page that the index names"));
    }
    Ok(spans)
}

const _: () = assert!(PAGE_SPANS <= u16::MAX as usize && FLAG_ZSTD <= u16::MAX as u32);
