//! Where the blocks and partition pages of a segment lie: what a reader keeps of it in memory.

use std::ops::Range;

use bytes::Bytes;

use super::block::{Packer, unpack};
use super::{ColdError, Footer, Part, crc_with_number};
use crate::format::{BLOCK, i64_at, put, u32_at, u64_at};
use crate::types::PartitionId;

const MAGIC: &[u8; 4] = b"WCI1";
const HEAD_BYTES: usize = 16;
const BLOCK_ENTRY_BYTES: usize = 40;
const PAGE_ENTRY_BYTES: usize = 16;
/// No index is larger than this, whatever a footer claims: four million blocks are 256 GiB of records in one segment.
const RAW_BYTES_MAX: usize = 256 << 20;

/// Where a block lies and what is in it. In the index of a promoted WAL segment: a frame of the `.wal` file, and one
/// partition in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockPlace {
    /// Offset in the file.
    pub at: u64,
    /// Offset of its first batch.
    pub first_offset: i64,
    /// Highest record timestamp in it, ms.
    pub max_timestamp: i64,
    /// Partition of its first run.
    pub partition: PartitionId,
    /// Partition of its last run.
    pub last_partition: PartitionId,
    /// Its length in the file, head included.
    pub bytes: u32,
}

impl BlockPlace {
    fn encode(&self, out: &mut [u8]) {
        put(out, 0, &self.partition.0.to_le_bytes());
        put(out, 4, &self.bytes.to_le_bytes());
        put(out, 8, &self.first_offset.to_le_bytes());
        put(out, 16, &self.at.to_le_bytes());
        put(out, 24, &self.max_timestamp.to_le_bytes());
        put(out, 32, &self.last_partition.0.to_le_bytes());
    }

    fn decode(bytes: &[u8]) -> BlockPlace {
        BlockPlace {
            at: u64_at(bytes, 16),
            first_offset: i64_at(bytes, 8),
            max_timestamp: i64_at(bytes, 24),
            partition: PartitionId(u32_at(bytes, 0)),
            last_partition: PartitionId(u32_at(bytes, 32)),
            bytes: u32_at(bytes, 4),
        }
    }

    fn first(&self) -> (PartitionId, i64) {
        (self.partition, self.first_offset)
    }
}

/// Where a partition page lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagePlace {
    /// Offset in the file.
    pub at: u64,
    /// Its length, head included.
    pub bytes: u32,
    /// First partition on it.
    pub partition: PartitionId,
    /// Its ordinal.
    pub page: u32,
}

/// What a reader keeps of one segment in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColdIndex {
    number: u32,
    blocks: Box<[BlockPlace]>,
    pages: Box<[PagePlace]>,
}

pub(super) fn encode_index(number: u32, blocks: &[BlockPlace], pages: &[PagePlace], packer: &mut Packer) -> Vec<u8> {
    let mut raw = vec![0; raw_bytes(blocks.len(), pages.len())];
    assert!(raw.len() <= RAW_BYTES_MAX, "a segment has so many blocks at most");
    let (block_bytes, page_bytes) = raw.split_at_mut(blocks.len() * BLOCK_ENTRY_BYTES);
    for (block, out) in blocks.iter().zip(block_bytes.chunks_exact_mut(BLOCK_ENTRY_BYTES)) {
        block.encode(out);
    }
    for (page, out) in pages.iter().zip(page_bytes.chunks_exact_mut(PAGE_ENTRY_BYTES)) {
        put(out, 0, &page.partition.0.to_le_bytes());
        put(out, 4, &page.bytes.to_le_bytes());
        put(out, 8, &page.at.to_le_bytes());
    }
    let (stored, flags) = packer.pack(&raw);
    let mut index = vec![0; HEAD_BYTES];
    put(&mut index, 0, MAGIC);
    put(&mut index, 8, &(stored.len() as u32).to_le_bytes());
    put(&mut index, 12, &flags.to_le_bytes());
    index.extend_from_slice(stored);
    let crc = crc_with_number(number, &index[8..]);
    put(&mut index, 4, &crc.to_le_bytes());
    index
}

const fn raw_bytes(blocks: usize, pages: usize) -> usize {
    blocks * BLOCK_ENTRY_BYTES + pages * PAGE_ENTRY_BYTES
}

impl ColdIndex {
    /// Where the footer of a file of this length starts.
    pub fn footer_at(file_bytes: u64) -> u64 {
        file_bytes.saturating_sub(BLOCK as u64)
    }

    /// Verifies and reads the index; `stored` is exactly what the footer names.
    pub fn decode(footer: &Footer, stored: &[u8]) -> Result<ColdIndex, ColdError> {
        let number = footer.number;
        let damaged = |reason| ColdError::Damaged { number, part: Part::Index, reason };
        if stored.len() < HEAD_BYTES || &stored[..4] != MAGIC {
            return Err(damaged("there is no index"));
        }
        if u32_at(stored, 4) != crc_with_number(number, &stored[8..]) {
            return Err(damaged("its CRC does not match"));
        }
        let block_bytes = footer.blocks as usize * BLOCK_ENTRY_BYTES;
        let raw_bytes = raw_bytes(footer.blocks as usize, footer.pages as usize);
        if u32_at(stored, 8) as usize != stored.len() - HEAD_BYTES || raw_bytes > RAW_BYTES_MAX {
            return Err(damaged("its lengths contradict each other"));
        }
        let flags = u32_at(stored, 12);
        let raw = unpack(Bytes::copy_from_slice(&stored[HEAD_BYTES..]), flags, raw_bytes).map_err(damaged)?;
        let blocks: Box<[_]> = raw[..block_bytes].chunks_exact(BLOCK_ENTRY_BYTES).map(BlockPlace::decode).collect();
        let pages: Box<[_]> = (0..)
            .zip(raw[block_bytes..].chunks_exact(PAGE_ENTRY_BYTES))
            .map(|(page, b)| PagePlace { at: u64_at(b, 8), bytes: u32_at(b, 4), partition: PartitionId(u32_at(b, 0)), page })
            .collect();
        let sorted = blocks.is_sorted_by(|a, b| a.first() < b.first() && a.last_partition <= b.partition)
            && pages.is_sorted_by(|a, b| a.partition < b.partition);
        if sorted { Ok(ColdIndex { number, blocks, pages }) } else { Err(damaged("its entries are out of order")) }
    }

    /// Number of the segment.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// The block that may hold the partition's batch at `offset`, or the first one after it. What is asked for may lie behind
    /// that block's end, where offsets are missing; then it is the first batch of the partition in the next one.
    pub fn locate(&self, partition: PartitionId, offset: i64) -> Option<usize> {
        let next = self.blocks.partition_point(|block| block.first() <= (partition, offset));
        if let Some(at) = next.checked_sub(1)
            && self.blocks[at].last_partition >= partition
        {
            return Some(at);
        }
        self.blocks.get(next).filter(|block| block.partition == partition).map(|_| next)
    }

    /// The blocks that may hold batches of the partition.
    pub fn blocks_of(&self, partition: PartitionId) -> Range<usize> {
        let start = self.blocks.partition_point(|block| block.last_partition < partition);
        let end = self.blocks.partition_point(|block| block.partition <= partition);
        start..end.max(start)
    }

    /// A block by its ordinal, which is below [`ColdIndex::len`].
    pub fn block(&self, block: usize) -> BlockPlace {
        self.blocks[block]
    }

    /// All blocks in their order.
    pub fn blocks(&self) -> &[BlockPlace] {
        &self.blocks
    }

    /// How many blocks there are.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// All partition pages in their order.
    pub fn pages(&self) -> &[PagePlace] {
        &self.pages
    }

    /// The page that names the partition, if it is in this segment.
    pub fn page_of(&self, partition: PartitionId) -> Option<PagePlace> {
        let next = self.pages.partition_point(|page| page.partition <= partition);
        Some(self.pages[next.checked_sub(1)?])
    }

    /// Bytes of memory it holds.
    pub fn memory_bytes(&self) -> usize {
        size_of::<ColdIndex>() + size_of_val(&*self.blocks) + size_of_val(&*self.pages)
    }
}
