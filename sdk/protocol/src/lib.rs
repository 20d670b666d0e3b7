//! `weir/1`, the native protocol, without sockets: bytes and `now` come in, frames and decisions come out.
//!
//! A frame ([`frame`]) carries one typed message ([`hello`], [`lane`], [`ack`], [`publish`], [`fetch`], [`admin`], [`notice`]); every number a
//! refusal can have is a [`Code`]. Both ends share the rules that need memory: [`lane::LaneReceiver`] and [`lane::LaneSender`] own a lane's
//! sequence, [`fetch::CreditBalance`] and [`fetch::CreditReturn`] a subscription's credit. The layouts are tables in `FORMAT.md`.
//!
//! Nothing here panics on a peer's bytes, and nothing is allocated from a length the peer merely claimed.
#![forbid(unsafe_code)]

pub mod ack;
pub mod admin;
mod codes;
mod error;
pub mod fetch;
pub mod frame;
pub mod hello;
pub mod lane;
pub mod notice;
pub mod publish;
mod wire;

pub use ack::{AckCode, AckItem, Acks, NackItem, Nacks};
pub use admin::{Answer, Operation, Request, RequestFrame, ResponseFrame};
pub use codes::{Code, WhoseTurn};
pub use error::ProtocolError;
pub use fetch::{Credit, Data, End, Start, Subscribe};
pub use frame::{Frame, FrameDecoder, Kind, Message};
pub use hello::{Hello, Welcome};
pub use lane::{Batch, LaneOpen, LaneReady};
pub use notice::{ErrorNotice, GoAway};
pub use publish::Publish;

/// The protocol's name in the TLS handshake.
pub const ALPN: &[u8] = b"weir/1";
/// The version HELLO and WELCOME carry.
pub const VERSION: u16 = 1;
/// What a frame may have, header included, unless WELCOME says otherwise.
pub const FRAME_BYTES_MAX_DEFAULT: u32 = 1 << 20;
/// The smallest limit a server may announce: every answer of bounded size fits.
pub const FRAME_BYTES_MAX_FLOOR: u32 = 16 << 10;
/// What a server takes as a stream's first frame on a connection that has not said HELLO, unless it is a PUBLISH.
pub const FIRST_FRAME_BYTES_MAX: u32 = 4 << 10;
/// What BATCH, PUBLISH and DATA put around a record batch, at most: `batch_bytes_max + FRAME_OVERHEAD_BYTES_MAX <= frame_bytes_max`.
pub const FRAME_OVERHEAD_BYTES_MAX: u32 = 512;
/// The largest record batch that fits a default frame.
pub const BATCH_BYTES_MAX_DEFAULT: u32 = FRAME_BYTES_MAX_DEFAULT - FRAME_OVERHEAD_BYTES_MAX;
/// Longest topic name, as in Kafka.
pub const TOPIC_BYTES_MAX: usize = 249;
/// Longest sentence in NACK, RESPONSE, ERROR and GO_AWAY; the encoder cuts at it.
pub const MESSAGE_BYTES_MAX: usize = 1024;

const _: () = assert!(TOPIC_BYTES_MAX + 64 <= FRAME_OVERHEAD_BYTES_MAX as usize);
const _: () = assert!(FRAME_BYTES_MAX_FLOOR > FIRST_FRAME_BYTES_MAX + FRAME_OVERHEAD_BYTES_MAX);
