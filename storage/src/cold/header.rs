//! First and last block of a cold segment: whose it is, and where its index lies.

use super::{ColdError, Part};
use crate::format::{BLOCK, Uuid, array_at, i64_at, put, u16_at, u32_at, u64_at};

const HEADER_MAGIC: &[u8; 8] = b"WEIRCLD1";
const FOOTER_MAGIC: &[u8; 8] = b"WEIRCLF1";
const FORMAT_MAJOR: u16 = 1;
const FORMAT_MINOR: u16 = 0;
const FLAG_PROMOTED: u32 = 1;
const FLAG_COMPACTED: u32 = 2;

/// Header of a cold segment: what is known before its first block is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHead {
    /// Volume id in the frames of the log it was made from.
    pub log_id: Uuid,
    /// Number of the segment, never given out twice.
    pub number: u32,
    /// Retention class of its partitions.
    pub class: u32,
    /// Oldest frame that records in it may come from.
    pub first_lsn: u64,
    /// Youngest.
    pub last_lsn: u64,
    /// When it was made, Unix time.
    pub created_ms: u64,
    /// Whether offsets may be missing.
    pub compacted: bool,
    /// Whether it is the index of a WAL segment.
    pub promoted: bool,
}

impl SegmentHead {
    /// Into the first block of a file.
    pub fn encode(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        put(&mut block, 0, HEADER_MAGIC);
        put(&mut block, 12, &FORMAT_MAJOR.to_le_bytes());
        put(&mut block, 14, &FORMAT_MINOR.to_le_bytes());
        put(&mut block, 16, &self.log_id);
        put(&mut block, 32, &self.number.to_le_bytes());
        put(&mut block, 36, &self.class.to_le_bytes());
        put(&mut block, 40, &self.first_lsn.to_le_bytes());
        put(&mut block, 48, &self.last_lsn.to_le_bytes());
        put(&mut block, 56, &self.created_ms.to_le_bytes());
        put(&mut block, 64, &flags(self.promoted, self.compacted).to_le_bytes());
        seal(&mut block);
        block
    }

    /// Reads the first block of the file that should be segment `number` of the log `log_id`.
    pub fn decode(number: u32, log_id: &Uuid, block: &[u8]) -> Result<SegmentHead, ColdError> {
        let block = verified(number, Part::Header, HEADER_MAGIC, block)?;
        let major = u16_at(block, 12);
        if major != FORMAT_MAJOR {
            return Err(ColdError::Newer { number, major, known: FORMAT_MAJOR });
        }
        if array_at::<16>(block, 16) != *log_id {
            return Err(ColdError::Foreign { number });
        }
        let flags = u32_at(block, 64);
        let head = SegmentHead {
            log_id: *log_id,
            number: u32_at(block, 32),
            class: u32_at(block, 36),
            first_lsn: u64_at(block, 40),
            last_lsn: u64_at(block, 48),
            created_ms: u64_at(block, 56),
            compacted: flags & FLAG_COMPACTED != 0,
            promoted: flags & FLAG_PROMOTED != 0,
        };
        if head.number != number {
            return Err(ColdError::Misplaced { number, part: Part::Header, found: head.number });
        }
        Ok(head)
    }
}

/// Footer of a cold segment: the way to everything in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footer {
    /// Number of the segment.
    pub number: u32,
    /// Where the index starts in the file.
    pub index_at: u64,
    /// And how long it is, its head included.
    pub index_bytes: u64,
    /// Blocks; in the index of a promoted WAL segment, its entries.
    pub blocks: u32,
    /// Partition pages.
    pub pages: u32,
    /// Partitions.
    pub partitions: u32,
    /// Records.
    pub records: u64,
    /// Bytes of their batches before compression.
    pub batch_bytes: u64,
    /// Smallest `max_timestamp` of what went in, ms.
    pub min_timestamp: i64,
    /// Highest, ms.
    pub max_timestamp: i64,
    /// Of the file.
    pub file_bytes: u64,
}

impl Footer {
    pub(super) fn encode(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        put(&mut block, 0, FOOTER_MAGIC);
        put(&mut block, 12, &self.number.to_le_bytes());
        put(&mut block, 16, &self.index_at.to_le_bytes());
        put(&mut block, 24, &self.index_bytes.to_le_bytes());
        put(&mut block, 32, &self.blocks.to_le_bytes());
        put(&mut block, 36, &self.pages.to_le_bytes());
        put(&mut block, 40, &self.partitions.to_le_bytes());
        put(&mut block, 48, &self.records.to_le_bytes());
        put(&mut block, 56, &self.batch_bytes.to_le_bytes());
        put(&mut block, 64, &self.min_timestamp.to_le_bytes());
        put(&mut block, 72, &self.max_timestamp.to_le_bytes());
        put(&mut block, 80, &self.file_bytes.to_le_bytes());
        seal(&mut block);
        block
    }

    /// Reads the last block of the file that should be segment `number` and is `file_bytes` long.
    pub fn decode(number: u32, file_bytes: u64, block: &[u8]) -> Result<Footer, ColdError> {
        let block = verified(number, Part::Footer, FOOTER_MAGIC, block)?;
        let footer = Footer {
            number: u32_at(block, 12),
            index_at: u64_at(block, 16),
            index_bytes: u64_at(block, 24),
            blocks: u32_at(block, 32),
            pages: u32_at(block, 36),
            partitions: u32_at(block, 40),
            records: u64_at(block, 48),
            batch_bytes: u64_at(block, 56),
            min_timestamp: i64_at(block, 64),
            max_timestamp: i64_at(block, 72),
            file_bytes: u64_at(block, 80),
        };
        if footer.number != number {
            return Err(ColdError::Misplaced { number, part: Part::Footer, found: footer.number });
        }
        let reason = if footer.file_bytes != file_bytes {
            "the file is not as long as it says"
        } else if footer.index_at.checked_add(footer.index_bytes).is_none_or(|end| end > file_bytes - BLOCK as u64) {
            "it points outside the file"
        } else {
            return Ok(footer);
        };
        Err(ColdError::Damaged { number, part: Part::Footer, reason })
    }
}

pub(super) fn flags(promoted: bool, compacted: bool) -> u32 {
    u32::from(promoted) * FLAG_PROMOTED + u32::from(compacted) * FLAG_COMPACTED
}

pub(super) fn flags_of(flags: u8) -> (bool, bool) {
    (u32::from(flags) & FLAG_PROMOTED != 0, u32::from(flags) & FLAG_COMPACTED != 0)
}

fn seal(block: &mut [u8; BLOCK]) {
    let crc = crc32c::crc32c(&block[12..]);
    put(block, 8, &crc.to_le_bytes());
}

fn verified<'a>(number: u32, part: Part, magic: &[u8; 8], block: &'a [u8]) -> Result<&'a [u8], ColdError> {
    let reason = if block.len() != BLOCK {
        "it is cut short"
    } else if &block[..8] != magic {
        "its magic is missing"
    } else if u32_at(block, 8) != crc32c::crc32c(&block[12..]) {
        "its CRC does not match"
    } else {
        return Ok(block);
    };
    Err(ColdError::Damaged { number, part, reason })
}
