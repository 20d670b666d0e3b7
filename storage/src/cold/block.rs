//! The block: runs of record batches of one or more partitions, compressed together. The unit of a cold read.

use std::sync::Arc;

use bytes::Bytes;
use zstd::bulk::Compressor;

use super::{ColdEntry, ColdError, Part};
use crate::format::frame::FRAME_BYTES_LIMIT;
use crate::format::{i64_at, put, u32_at};
use crate::inflate::inflate;
use crate::types::PartitionId;

/// Raw bytes of a block, unless one record batch is larger.
pub const BLOCK_RAW_BYTES: usize = 64 << 10;

/// A block that has so much ends where its partition does: whoever reads the next one is not given what others wrote. From
/// here on zstd gains little by a larger block, and the disk less by a larger read.
const BLOCK_OF_ITS_OWN_BYTES: usize = 16 << 10;

pub(super) const BLOCK_HEAD_BYTES: usize = 32;
const RUN_HEAD_BYTES: usize = 32;
/// A batch came out of a frame, so no block is larger than this, whatever its head claims.
const RAW_BYTES_MAX: usize = FRAME_BYTES_LIMIT;
const MAGIC: &[u8; 4] = b"WCB1";
pub(super) const FLAG_ZSTD: u32 = 1;
/// On sensor JSON level 1 shrinks nearly as well as 3 in half the time.
const ZSTD_LEVEL: i32 = 1;
/// For segments that a merge will write once more, while the sorter cannot keep up.
const ZSTD_LEVEL_HASTE: i32 = -5;
/// Blocks stored as they are after one that did not shrink.
const PAUSE: u32 = 15;
/// In what readers need not know: packed in haste, so that a merge does it again.
const HINT_HASTE: u32 = 1;

const _: () =
    assert!(BLOCK_OF_ITS_OWN_BYTES < BLOCK_RAW_BYTES && BLOCK_RAW_BYTES < RAW_BYTES_MAX && RAW_BYTES_MAX < u32::MAX as usize);

/// zstd with its memory kept from one part of the file to the next.
pub(super) struct Packer {
    zstd: Option<Compressor<'static>>,
    packed: Vec<u8>,
    pause: u32,
    packing: Packing,
}

/// How much work goes into making blocks smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// As much as pays in the long run.
    Well,
    /// A fraction of it: producers want the processor.
    Quick,
    /// None: the log is about to hold up its producers.
    None,
}

impl Packer {
    pub(super) fn new(packing: Packing) -> Packer {
        let level = if packing == Packing::Well { ZSTD_LEVEL } else { ZSTD_LEVEL_HASTE };
        // Without a context (no memory) everything is stored as it is.
        Packer { zstd: Compressor::new(level).ok(), packed: Vec::new(), pause: 0, packing }
    }

    /// The bytes to store and their flags: compressed where that makes them fewer.
    pub(super) fn pack<'a>(&'a mut self, raw: &'a [u8]) -> (&'a [u8], u32) {
        match self.compress(raw) {
            Some(bytes) => (&self.packed[..bytes], FLAG_ZSTD),
            None => (raw, 0),
        }
    }

    /// The same, trying only now and then as long as blocks do not shrink.
    fn pack_block<'a>(&'a mut self, raw: &'a [u8]) -> (&'a [u8], u32) {
        if self.packing == Packing::None {
            return (raw, 0);
        }
        if self.pause > 0 {
            self.pause -= 1;
            return (raw, 0);
        }
        match self.compress(raw) {
            Some(bytes) => (&self.packed[..bytes], FLAG_ZSTD),
            None => {
                self.pause = PAUSE;
                (raw, 0)
            }
        }
    }

    fn compress(&mut self, raw: &[u8]) -> Option<usize> {
        let room = raw.len().checked_sub(1)?;
        if self.packed.len() < room {
            self.packed.resize(room, 0);
        }
        // Too little room is zstd's error for what does not shrink.
        self.zstd.as_mut()?.compress_to_buffer(raw, &mut self.packed[..room]).ok()
    }
}

/// Undoes [`Packer`]. `raw_bytes` was vouched for by a CRC and is bounded by the caller.
pub(super) fn unpack(stored: Bytes, flags: u32, raw_bytes: usize) -> Result<Bytes, &'static str> {
    if flags & !FLAG_ZSTD != 0 {
        return Err("it has a flag that this version does not know");
    }
    let raw =
        if flags & FLAG_ZSTD == 0 { stored } else { Bytes::from(inflate(&stored, raw_bytes).ok_or("it does not decompress")?) };
    if raw.len() == raw_bytes { Ok(raw) } else { Err("it decompresses to another length") }
}

/// What the index tells of a block.
#[derive(Clone, Copy, Debug)]
pub(super) struct BlockContent {
    pub(super) partition: PartitionId,
    pub(super) first_offset: i64,
    pub(super) last_partition: PartitionId,
    pub(super) max_timestamp: i64,
}

/// Gathers runs for one block after the other.
pub(super) struct BlockBuilder {
    raw: Vec<u8>,
    content: Option<BlockContent>,
    run: Run,
    /// In a compacted segment holes between the offsets of a run mean nothing.
    holes: bool,
}

/// The last run of the block being gathered.
#[derive(Clone, Copy, Default)]
struct Run {
    at: usize,
    byte_count: u32,
    next_offset: i64,
    max_timestamp: i64,
}

impl BlockBuilder {
    pub(super) fn new(holes: bool) -> BlockBuilder {
        BlockBuilder { raw: Vec::with_capacity(BLOCK_RAW_BYTES), content: None, run: Run::default(), holes }
    }

    fn is_empty(&self) -> bool {
        self.content.is_none()
    }

    fn joins(&self, entry: &ColdEntry) -> bool {
        self.content.is_some_and(|content| content.last_partition == entry.partition)
            && (self.holes || self.run.next_offset == entry.base_offset)
    }

    /// Whether the block stays within its size with this entry, and is not better closed before it.
    pub(super) fn fits(&self, entry: &ColdEntry) -> bool {
        let other = self.content.is_some_and(|content| content.last_partition != entry.partition);
        if other && self.raw.len() >= BLOCK_OF_ITS_OWN_BYTES {
            return false;
        }
        let head = if self.joins(entry) { 0 } else { RUN_HEAD_BYTES };
        self.raw.len() + head + entry.batches.len() <= BLOCK_RAW_BYTES
    }

    pub(super) fn add(&mut self, entry: &ColdEntry) {
        debug_assert!(self.is_empty() || self.fits(entry), "the writer closes a block before it overflows");
        if self.joins(entry) {
            self.run.max_timestamp = self.run.max_timestamp.max(entry.max_timestamp);
        } else {
            self.run = Run { at: self.raw.len(), max_timestamp: entry.max_timestamp, ..Run::default() };
            self.raw.extend_from_slice(&[0; RUN_HEAD_BYTES]);
            put(&mut self.raw, self.run.at, &entry.partition.0.to_le_bytes());
            put(&mut self.raw, self.run.at + 8, &entry.base_offset.to_le_bytes());
        }
        self.run.byte_count += entry.batches.len() as u32;
        self.run.next_offset = entry.next_offset;
        self.raw.extend_from_slice(&entry.batches);
        put(&mut self.raw, self.run.at + 4, &self.run.byte_count.to_le_bytes());
        put(&mut self.raw, self.run.at + 16, &self.run.next_offset.to_le_bytes());
        put(&mut self.raw, self.run.at + 24, &self.run.max_timestamp.to_le_bytes());
        let content = self.content.get_or_insert(BlockContent {
            partition: entry.partition,
            first_offset: entry.base_offset,
            last_partition: entry.partition,
            max_timestamp: entry.max_timestamp,
        });
        content.last_partition = entry.partition;
        content.max_timestamp = content.max_timestamp.max(entry.max_timestamp);
    }

    /// Ends the block: its head, its stored bytes and what the index says of it. Nothing where it is empty.
    pub(super) fn close<'a>(
        &'a mut self,
        number: u32,
        block: u32,
        packer: &'a mut Packer,
        write: impl FnOnce(&[u8], &[u8], BlockContent),
    ) {
        let Some(content) = self.content.take() else { return };
        assert!(self.raw.len() <= RAW_BYTES_MAX, "a record batch fits a frame");
        let hint = if packer.packing == Packing::Well { 0 } else { HINT_HASTE };
        let (stored, flags) = packer.pack_block(&self.raw);
        let head = seal(number, block, &BlockHead { raw_bytes: self.raw.len() as u32, flags, hint }, stored);
        write(&head, stored, content);
        self.raw.clear();
    }
}

/// What a block's head says beside its place and length.
#[derive(Clone, Copy, Debug)]
struct BlockHead {
    raw_bytes: u32,
    flags: u32,
    hint: u32,
}

/// The head in front of the stored bytes.
fn seal(number: u32, block: u32, says: &BlockHead, stored: &[u8]) -> [u8; BLOCK_HEAD_BYTES] {
    let mut head = [0; BLOCK_HEAD_BYTES];
    put(&mut head, 0, MAGIC);
    put(&mut head, 8, &number.to_le_bytes());
    put(&mut head, 12, &block.to_le_bytes());
    put(&mut head, 16, &(stored.len() as u32).to_le_bytes());
    put(&mut head, 20, &says.raw_bytes.to_le_bytes());
    put(&mut head, 24, &says.flags.to_le_bytes());
    put(&mut head, 28, &says.hint.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&head[8..]), stored);
    put(&mut head, 4, &crc.to_le_bytes());
    head
}

/// A verified, decompressed block.
#[derive(Clone, Debug)]
pub struct Block {
    runs: Runs,
    bytes: usize,
}

/// Which blocks of one partition a merge takes over as they are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keep {
    /// From this size on.
    pub(super) bytes: usize,
    /// Those packed in haste as well.
    pub(super) haste: bool,
}

/// A verified block, its runs still as they are stored.
#[derive(Clone, Debug)]
pub(super) struct StoredBlock {
    number: u32,
    block: u32,
    head: BlockHead,
    stored: Bytes,
}

impl StoredBlock {
    /// Verifies the block with this ordinal of segment `number`; `stored` is exactly what the index names.
    pub(super) fn verify(number: u32, block: u32, stored: &Bytes) -> Result<StoredBlock, ColdError> {
        let part = Part::Block(block);
        let damaged = |reason| ColdError::Damaged { number, part, reason };
        if stored.len() < BLOCK_HEAD_BYTES || &stored[..4] != MAGIC {
            return Err(damaged("there is no block"));
        }
        if u32_at(stored, 4) != crc32c::crc32c(&stored[8..]) {
            return Err(damaged("its CRC does not match"));
        }
        if u32_at(stored, 8) != number {
            return Err(ColdError::Misplaced { number, part, found: u32_at(stored, 8) });
        }
        let stored_bytes = u32_at(stored, 16) as usize;
        let head = BlockHead { raw_bytes: u32_at(stored, 20), flags: u32_at(stored, 24), hint: u32_at(stored, 28) };
        if u32_at(stored, 12) != block
            || stored_bytes != stored.len() - BLOCK_HEAD_BYTES
            || head.raw_bytes as usize > RAW_BYTES_MAX
        {
            return Err(damaged("it is not the block that the index names"));
        }
        Ok(StoredBlock { number, block, head, stored: stored.slice(BLOCK_HEAD_BYTES..) })
    }

    /// Whether nothing is gained by making it anew: it is large, and packed as well as it can be.
    pub(super) fn is_good_as_it_is(&self, keep: Keep) -> bool {
        let packed_well = keep.haste || self.head.hint & HINT_HASTE == 0;
        self.head.raw_bytes as usize >= keep.bytes && packed_well && self.head.flags & !FLAG_ZSTD == 0
    }

    pub(super) fn unpack(self) -> Result<Block, ColdError> {
        let damaged = |reason| ColdError::Damaged { number: self.number, part: Part::Block(self.block), reason };
        let raw = unpack(self.stored, self.head.flags, self.head.raw_bytes as usize).map_err(damaged)?;
        let mut rest = &raw[..];
        while !rest.is_empty() {
            rest = run_bytes(rest).and_then(|bytes| rest.get(bytes..)).ok_or(damaged("its runs do not fit it"))?;
        }
        Ok(Block { bytes: raw.len(), runs: Runs { rest: raw, ..Runs::default() } })
    }

    /// As a block of another segment: its head and what is behind it.
    pub(super) fn moved(&self, number: u32, block: u32) -> ([u8; BLOCK_HEAD_BYTES], &[u8]) {
        (seal(number, block, &self.head, &self.stored), &self.stored)
    }
}

/// Verifies and decompresses the block with this ordinal of segment `number`; `stored` is exactly what the index names.
pub fn decode_block(number: u32, block: u32, stored: Bytes) -> Result<Block, ColdError> {
    StoredBlock::verify(number, block, &stored)?.unpack()
}

/// Bytes of the run at the front, its head included; `None` where no writer would have made it so.
fn run_bytes(raw: &[u8]) -> Option<usize> {
    if raw.len() < RUN_HEAD_BYTES || u32_at(raw, 4) == 0 || i64_at(raw, 8) >= i64_at(raw, 16) {
        return None;
    }
    Some(RUN_HEAD_BYTES + u32_at(raw, 4) as usize)
}

impl Block {
    /// Of a frame's runs, which share its memory.
    pub(super) fn of_frame(runs: Vec<ColdEntry>) -> Block {
        let bytes = runs.iter().map(|run| run.batches.len() + size_of::<ColdEntry>()).sum();
        Block { runs: Runs { entries: runs.into(), ..Runs::default() }, bytes }
    }

    /// Its runs, in (partition, offset) order; the batches are slices of the block's memory.
    pub fn runs(&self) -> Runs {
        self.runs.clone()
    }

    /// Bytes of memory it holds.
    pub fn memory_bytes(&self) -> usize {
        self.bytes
    }
}

/// The runs of a block.
#[derive(Clone, Debug, Default)]
pub struct Runs {
    /// As a block stores them.
    rest: Bytes,
    /// Of a frame.
    entries: Arc<[ColdEntry]>,
    next: usize,
}

impl Iterator for Runs {
    type Item = ColdEntry;
    fn next(&mut self) -> Option<ColdEntry> {
        if let Some(entry) = self.entries.get(self.next) {
            self.next += 1;
            return Some(entry.clone());
        }
        let run = self.rest.split_to(run_bytes(&self.rest)?);
        Some(ColdEntry {
            partition: PartitionId(u32_at(&run, 0)),
            base_offset: i64_at(&run, 8),
            next_offset: i64_at(&run, 16),
            max_timestamp: i64_at(&run, 24),
            batches: run.slice(RUN_HEAD_BYTES..),
        })
    }
}
