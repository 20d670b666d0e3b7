//! What can be wrong with the bytes of a batch. Always the sender's turn, so each sentence tells the sender.

/// Why bytes are not a record batch that this crate reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BatchError {
    /// Fewer bytes than the batch claims or its header needs.
    #[error("batch is cut short: {got} of {wanted} bytes; send the whole batch")]
    Truncated {
        /// Bytes needed.
        wanted: usize,
        /// Bytes there.
        got: usize,
    },
    /// More bytes than a limit allows, before or after decompression.
    #[error("batch holds more than {max} bytes; send smaller batches")]
    TooLarge {
        /// The limit, in bytes.
        max: usize,
    },
    /// Not magic 2.
    #[error("batch has magic {magic}; only magic 2 (Kafka 0.11 and later) is read: update the client")]
    BadMagic {
        /// What stands there instead.
        magic: i8,
    },
    /// The bytes are not those that were sent.
    #[error("batch has CRC {actual:#010x} but says {expected:#010x}; it was damaged on its way: send it again")]
    BadCrc {
        /// Read from the header.
        expected: u32,
        /// Computed over the bytes.
        actual: u32,
    },
    /// A length that no batch can have.
    #[error(
        "batch says it is {batch_length} bytes long; at least 49 are needed: the stream is out of step or not Kafka's format"
    )]
    BadLength {
        /// Read from the header.
        batch_length: i32,
    },
    /// A record count that does not fit the offsets or the bytes.
    #[error(
        "batch says {record_count} records with last offset delta {last_offset_delta}; they do not fit each other or its bytes: fix the producer"
    )]
    BadCount {
        /// Read from the header.
        record_count: i32,
        /// Read from the header.
        last_offset_delta: i32,
    },
    /// A header field that no producer may send.
    #[error("batch has {field} {value}, which is not allowed: fix the producer")]
    BadField {
        /// Its name in FORMAT.md.
        field: &'static str,
        /// What it holds.
        value: i64,
    },
    /// A codec that is known by name but not read here.
    #[error("batch is compressed with {codec}; send it with zstd or uncompressed")]
    UnsupportedCodec {
        /// Its name.
        codec: &'static str,
    },
    /// A record inside is malformed.
    #[error("record {index} of the batch is malformed: {reason}; fix the producer")]
    BadRecord {
        /// Its place in the batch, from 0.
        index: u32,
        /// What is wrong.
        reason: &'static str,
    },
    /// The compressed bytes are not a zstd stream.
    #[error("batch does not decompress: {reason}; fix the producer")]
    Decompress {
        /// What zstd says.
        reason: &'static str,
    },
    /// zstd could not compress what was built.
    #[error("batch does not compress: {reason}; use another level or none")]
    Compress {
        /// What zstd says.
        reason: &'static str,
    },
    /// A batch of no records was asked for.
    #[error("a batch needs at least one record; push one before finishing it")]
    Empty,
}
