//! What passes between the host and a plugin: a flat batch of records in, verdicts out.
//!
//! `FORMAT.md` beside this crate is the layout; this crate is the only code that reads or writes it, on both sides of
//! the wall, so host and guest cannot drift. A record comes from a Kafka record batch, is written into a flat batch by
//! [`BatchWriter`] (host), read by [`BatchView`] (guest), judged with [`VerdictWriter`] (guest), and the judgement read
//! by [`VerdictView`] and held to the rules by [`VerdictRules`] (host, and native tests of plugins).
//!
//! Nothing here panics on bytes from the other side, and nothing allocates in proportion to a count that was not
//! checked against the bytes that are really there.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod batch;
mod headers;
mod verdict;

pub use batch::{BatchError, BatchMeta, BatchView, BatchWriter, Entries, Entry, EntryMut, Places, WriteError};
pub use headers::{Header, HeaderError, Headers};
pub use verdict::{Action, Key, Verdict, VerdictError, VerdictRules, VerdictView, VerdictWriter, Verdicts};

/// The first four bytes of a batch.
pub const BATCH_MAGIC: [u8; 4] = *b"WPB1";
/// Minor version of the layout written by this crate; a reader ignores what a higher one adds.
pub const ABI_MINOR: u16 = 0;
/// Size of the batch header as written; a reader steps by the size the header names.
pub const BATCH_HEADER_BYTES: usize = 64;
/// Size of an index entry as written; a reader steps by the size the header names.
pub const ENTRY_BYTES: usize = 32;
/// Size of a verdict.
pub const VERDICT_BYTES: usize = 32;
/// A start position that means "null".
pub const NULL: u32 = u32::MAX;
/// Output 0: the stream itself, on to the next stage and then the topic.
pub const OUTPUT_STREAM: u16 = 0;
/// A batch's `base_offset` where offsets are not assigned yet.
pub const OFFSET_UNKNOWN: i64 = -1;
/// A verdict's timestamp that stands for the source's.
pub const TIMESTAMP_OF_SOURCE: i64 = -1;

/// The verdict carries a key.
pub const FLAG_KEY: u8 = 1;
/// The verdict carries a value.
pub const FLAG_VALUE: u8 = 2;
/// The record keeps its source's key; the key range is ignored.
pub const FLAG_KEY_OF_SOURCE: u8 = 4;

/// The WIT world of this ABI, as text, for tools that pack a plugin.
pub const WIT: &str = include_str!("../weir.wit");
/// The world a plugin is built for.
pub const WORLD: &str = "transform";
/// The name of the custom section that holds a plugin's manifest.
pub const MANIFEST_SECTION: &str = "weir-plugin";

// A header's size travels in 16 bits, and entries are read at fixed places within themselves.
const _: () = assert!(BATCH_HEADER_BYTES <= u16::MAX as usize);
const _: () = assert!(ENTRY_BYTES.is_multiple_of(8) && VERDICT_BYTES.is_multiple_of(8));

/// Little-endian reads at a fixed place; `None` where the bytes end before.
pub(crate) mod le {
    pub(crate) fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
        let end = at.checked_add(N)?;
        bytes.get(at..end)?.try_into().ok()
    }
    pub(crate) fn u16(bytes: &[u8], at: usize) -> Option<u16> {
        array(bytes, at).map(u16::from_le_bytes)
    }
    pub(crate) fn u32(bytes: &[u8], at: usize) -> Option<u32> {
        array(bytes, at).map(u32::from_le_bytes)
    }
    pub(crate) fn i64(bytes: &[u8], at: usize) -> Option<i64> {
        array(bytes, at).map(i64::from_le_bytes)
    }
}
