//! The cold tier's files: immutable, sorted by partition and offset, compressed. `FORMAT.md` beside this has every byte.
//!
//! The sorter turns WAL segments into a stream of [`ColdEntry`]s in (partition, offset) order and pushes them into a
//! [`SegmentWriter`], which hands out the pieces of the file as they fill. A reader keeps a segment's [`ColdIndex`], asks it for
//! the block that may hold an offset, fetches those bytes and gets the batches out of [`decode_block`] without a copy. What
//! segments there are stands in the log's metadata ([`manifest`]). [`merge`] makes one segment out of several, and
//! [`compact`] takes out what a newer record with the same key replaces.
//!
//! Cost of a stored record batch: one copy into its block, one pass of zstd and CRC over the block; 40 bytes of index a
//! block, 48 bytes a partition. Nothing here does I/O, keeps time or starts a thread.

mod ahead;
mod block;
pub mod compact;
mod frames;
mod header;
mod index;
pub mod job;
mod join;
pub mod manifest;
mod mend;
pub mod merge;
mod pages;
mod promote;
pub(crate) mod read;
mod rewrite;
mod scrub;
pub mod stores;
pub mod wal;
mod writer;

#[cfg(test)]
mod tests;

use std::fmt;

use bytes::Bytes;

use crate::types::PartitionId;

pub use block::{BLOCK_RAW_BYTES, Block, Packing, Runs, decode_block};
pub use frames::{FramesOf, decode_frame};
pub use header::{Footer, SegmentHead};
pub use index::{BlockPlace, ColdIndex, PagePlace};
pub use pages::{PartitionSpan, decode_page};
pub use promote::Promotion;
pub use writer::{ColdSummary, FramePlace, SegmentWriter};

/// One or more whole record batches of one partition, in offset order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColdEntry {
    /// Whose.
    pub partition: PartitionId,
    /// Offset of the first batch.
    pub base_offset: i64,
    /// One past the last offset; within a compacted segment there may be holes between the two.
    pub next_offset: i64,
    /// Highest record timestamp, ms.
    pub max_timestamp: i64,
    /// The batches, base offsets set.
    pub batches: Bytes,
}

/// CRC of a page or an index: over what lies behind it, and the segment's number, so that another segment's does not pass.
pub(crate) fn crc_with_number(number: u32, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&number.to_le_bytes()), bytes)
}

/// Highest timestamp that the batches name, ms.
fn timestamp_of_batches(bytes: &[u8]) -> Option<i64> {
    crate::batches::split(bytes).map_while(|span| crate::batches::max_timestamp(&bytes[span?.at..])).max()
}

/// A part of a cold segment's file, as an error names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Its first 4096 bytes.
    Header,
    /// Its last 4096 bytes.
    Footer,
    /// Where blocks and pages lie.
    Index,
    /// A block, by its ordinal.
    Block(u32),
    /// A partition page, by its ordinal.
    Page(u32),
    /// A frame of the `.wal` file, by the ordinal of an index entry that names it.
    Frame(u32),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Part::Header => f.write_str("its header"),
            Part::Footer => f.write_str("its footer"),
            Part::Index => f.write_str("its index"),
            Part::Block(block) => write!(f, "block {block}"),
            Part::Page(page) => write!(f, "partition page {page}"),
            Part::Frame(entry) => write!(f, "the frame of index entry {entry}"),
        }
    }
}

impl ColdError {
    /// Of the segment that it is about.
    pub fn number(&self) -> u32 {
        match self {
            ColdError::Damaged { number, .. }
            | ColdError::Misplaced { number, .. }
            | ColdError::Foreign { number }
            | ColdError::Newer { number, .. } => *number,
        }
    }
}

/// What is wrong with a cold segment. Always the operator's turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ColdError {
    /// The bytes are not those that were written.
    #[error("cold segment {number}: {part} is damaged ({reason}): run `weir check` to see what is lost")]
    Damaged {
        /// Of the segment.
        number: u32,
        /// Which part of its file.
        part: Part,
        /// What does not fit.
        reason: &'static str,
    },
    /// Intact, but another segment's: the file was moved or a read went astray.
    #[error(
        "cold segment {number}: {part} is that of segment {found}: put each file back under its own name, then run `weir check`"
    )]
    Misplaced {
        /// Of the segment asked for.
        number: u32,
        /// Which part of its file.
        part: Part,
        /// Number that stands there.
        found: u32,
    },
    /// Intact, but of another log.
    #[error("cold segment {number} belongs to another log: put the volume's own disk back")]
    Foreign {
        /// Of the segment.
        number: u32,
    },
    /// Intact, of a newer format.
    #[error("cold segment {number} has format {major}, this program reads up to {known}: start the newer weir that wrote it")]
    Newer {
        /// Of the segment.
        number: u32,
        /// Its format's major version.
        major: u16,
        /// The newest one known.
        known: u16,
    },
}
