//! What can be wrong with a peer's bytes, or with a message that is to be sent.

use crate::{Code, Kind};

/// Bytes that are not this protocol, or a message that does not fit it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// A frame's kind is not in the table.
    #[error("frame kind {kind} does not exist in weir/1; check that the peer speaks this protocol")]
    UnknownKind {
        /// The byte found.
        kind: u8,
    },
    /// A frame sets flags its kind does not have.
    #[error("frame {kind} sets unknown flags {flags:#04x}; the peer's software is newer or broken")]
    UnknownFlags {
        /// The frame's kind.
        kind: Kind,
        /// The flags found.
        flags: u8,
    },
    /// The two reserved bytes of a frame header are not zero.
    #[error("the reserved bytes of a {kind} frame are not zero; the peer's software is newer or broken")]
    ReservedNotZero {
        /// The frame's kind.
        kind: Kind,
    },
    /// A frame is over the limit of the connection.
    #[error("a {kind} frame of {bytes} bytes is over the limit of {max}; send smaller batches or messages")]
    FrameTooLarge {
        /// The frame's kind.
        kind: Kind,
        /// Its size with header.
        bytes: u64,
        /// The limit.
        max: u32,
    },
    /// A frame arrived where another was due.
    #[error("a {found} frame arrived where {wanted} is due; the peer does not follow the protocol")]
    UnexpectedKind {
        /// What arrived.
        found: Kind,
        /// What would have been right.
        wanted: &'static str,
    },
    /// A body ends before its field does.
    #[error("{field} is cut short: {wanted} bytes are due, {left} are left; the peer does not follow the protocol")]
    Truncated {
        /// The field being read.
        field: &'static str,
        /// Bytes it needs.
        wanted: u64,
        /// Bytes there are.
        left: u64,
    },
    /// A body goes on after its last field.
    #[error("{left} bytes follow the last field of {message}; the peer does not follow the protocol")]
    TrailingBytes {
        /// The message being read.
        message: &'static str,
        /// How many are too many.
        left: usize,
    },
    /// Text is not UTF-8.
    #[error("{field} is not UTF-8; the peer does not follow the protocol")]
    NotUtf8 {
        /// The field being read.
        field: &'static str,
    },
    /// A field's value is out of its range.
    #[error("{field} cannot be {value}; the peer does not follow the protocol")]
    BadValue {
        /// The field being read.
        field: &'static str,
        /// Its value.
        value: i128,
    },
    /// A text is too long for its field; found when encoding.
    #[error("{field} has {bytes} bytes, the most is {max}; shorten it")]
    TooLong {
        /// The field being written.
        field: &'static str,
        /// Its size.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The peer speaks another version.
    #[error("the peer speaks version {found} of the protocol, this side version {ours}; upgrade the older one")]
    UnsupportedVersion {
        /// The peer's version.
        found: u16,
        /// Ours.
        ours: u16,
    },
    /// A lane's client sent more than it may.
    #[error("lane {lane} has {used} of {max} {what} unacknowledged; wait for acknowledgements before sending more")]
    OverLimit {
        /// The lane.
        lane: u32,
        /// What there is too much of.
        what: &'static str,
        /// How much there would be.
        used: u64,
        /// The limit.
        max: u64,
    },
}

impl ProtocolError {
    /// The code that tells the peer.
    pub fn code(&self) -> Code {
        match self {
            ProtocolError::FrameTooLarge { .. } => Code::FrameTooLarge,
            ProtocolError::UnsupportedVersion { .. } => Code::UnsupportedVersion,
            ProtocolError::TooLong { .. } => Code::InvalidArgument,
            _ => Code::Malformed,
        }
    }
}
