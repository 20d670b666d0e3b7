//! The floors: what the same machine does without Weir.

mod disk;
mod quic;

pub use disk::{DiskFloor, durable_writes};
pub use quic::{QuicFloor, Transport, raw_quic};
