//! The bytes on the disk, one layout a file; `FORMAT.md` has the tables. Each is verified by one CRC-32C over its raw bytes
//! before a field of it is believed. Nothing here does I/O.

pub mod frame;
pub mod segment;
pub mod snapshot;
pub mod superblock;
pub mod volume;

/// Everything on disk starts and ends on a multiple of this.
pub const BLOCK: usize = crate::disk::BLOCK_BYTES;

/// A UUID as its 16 bytes.
pub type Uuid = [u8; 16];

/// A UUID as people write it.
pub fn uuid_text(id: &Uuid) -> String {
    uuid::Uuid::from_bytes(*id).to_string()
}

// Fixed offsets into slices whose length was checked before: a miss is our own mistake.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, at))
}
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}
pub(crate) fn i64_at(bytes: &[u8], at: usize) -> i64 {
    i64::from_le_bytes(array_at(bytes, at))
}
pub(crate) fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

/// A file's number as headers have it: one more, since zero says nothing.
pub(crate) fn number_or_zero(number: Option<u32>) -> u32 {
    number.map_or(0, |number| number.saturating_add(1))
}

pub(crate) fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}
