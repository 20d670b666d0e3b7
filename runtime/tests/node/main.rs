//! The node from outside: over real QUIC, real TLS and a real directory, one process.

#[path = "../common/mod.rs"]
#[allow(dead_code, unreachable_pub)]
mod common;
/// The pipeline's own test guests.
#[path = "../../pipeline/tests/pipeline/guests.rs"]
#[allow(dead_code)]
mod guests;

mod addresses;
mod admin;
mod bench;
mod damage;
mod disks;
mod ends;
mod pipelines;
mod produce;
mod refusals;
mod topics;
mod zero_rtt;
