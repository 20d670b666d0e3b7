#![doc = include_str!("../../../docs/PIPELINES.md")]
//!
//! # Inside
//!
//! This crate is the Wasm host. It may know neither the log nor the network: a batch comes in as bytes, what becomes of it
//! goes out as a value, and time is a number in the input.
//!
//! A record's way: [`ShardPool::submit`] queues a batch on one of a few threads (`shard`); there the batch is laid out
//! flat, once (`items`), and each stage runs over it (`run`) in an instance that lives long (`instance`); the verdicts make
//! the list for the next stage (`verdicts`); the last list is the [`Output`]. When a plugin fails, `run` looks for the
//! record that is to blame, applies the [`FailurePolicy`] to it, and a `breaker` ends the search where it never pays.
//!
//! Cost of a batch of n records and b bytes, one stage: one walk over the records, b + 32 n bytes written flat, the same
//! copied into the guest, 32 bytes for each verdict read back; a keep moves no payload and needs no verdict. If records are
//! dropped and nothing else happens, the rest is copied in runs and gets a CRC. A list of records (56 bytes each) is made only
//! for verdicts that say more. Nothing is allocated per record.
//!
//! Unsafe code is denied but for one module: the types of the WIT world, where wasmtime's derive writes it.
#![deny(unsafe_code)]

mod breaker;
mod error;
mod host;
mod instance;
mod items;
mod limits;
mod manifest;
mod offline;
mod output;
mod pack;
mod pipeline;
mod run;
mod section;
mod shard;
mod spec;
mod stats;
mod suggest;
mod ticker;
mod types;
mod verdicts;

pub use breaker::{BreakerConfig, BreakerState};
pub use error::{Failure, FailureKind, HostError, PackError, PluginError, RunError};
pub use host::{Plugin, PluginHost};
pub use limits::HostConfig;
pub use manifest::{LogGrant, LogLevel, Manifest, ManifestError};
pub use offline::{Beside, OfflineOutcome, OfflineRecord, OfflineReport, OfflineRun, run_offline};
pub use output::{Counts, Main, Output, Routed, RoutedRecord, RoutedRecords};
pub use pack::{manifest_of, pack};
pub use pipeline::{FailurePolicy, Input, Pipeline, Stage};
pub use shard::{Busy, Done, ShardPool, ShardPoolStats};
pub use spec::{OnFailure, PipelineSpec, SpecError, StageSpec};
pub use stats::StageSnapshot;
