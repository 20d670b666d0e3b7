//! Kafka's RecordBatch v2, as it travels and as it is stored: one format from the device's socket to the disk and out to
//! the consumer. `../FORMAT.md` is the table of its bytes.
//!
//! A producer fills a [`BatchBuilder`]; the server calls [`RecordBatch::verify`] (one CRC over the raw bytes, then the
//! header), walks the records once with [`RecordBatch::check_records`], patches offset and leader epoch in place
//! ([`patch_base_offset`], [`patch_leader_epoch`]; the CRC does not cover them) and stores the bytes as they are; a consumer
//! iterates over [`Record`]s that borrow from them. Nothing here does I/O, and no bytes of a peer can make it panic.
//!
//! Cost of the server's path for a batch of b bytes and n records: one pass of CRC over b, 61 bytes of header, about n × 7
//! varints; no allocation, no copy, unless a codec must be undone.
#![forbid(unsafe_code)]

mod build;
mod codec;
mod error;
mod header;
mod murmur2;
mod records;
mod retain;
mod varint;
mod view;

pub use build::BatchBuilder;
pub use codec::{Codec, DECOMPRESSED_BYTES_MAX, ZSTD_LEVEL_DEFAULT};
pub use error::BatchError;
pub use header::{BatchHeader, HEADER_BYTES, patch_base_offset, patch_leader_epoch};
pub use murmur2::{murmur2, partition_for_key};
pub use records::{
    EncodedRecord, EncodedRecords, HeaderIter, Headers, MarkedRecords, PLACE_NULL, Record, RecordMark, RecordPlace, Records,
};
pub use retain::{Retained, Retainer, emptied};
pub use view::{RecordBatch, split_batches};
