//! The types of the WIT world as wasmtime sees them.
#![allow(unsafe_code, reason = "wasmtime's derive writes the unsafe impls; nothing here is written by hand")]
#![allow(unreachable_pub, reason = "written by the same derive")]

use std::sync::Arc;

use wasmtime::component::{ComponentType, Lift, TypedFunc};

/// What `process` says it did; the verdicts are the truth, so the host does not read it.
#[derive(Debug, Clone, Copy, ComponentType, Lift)]
#[component(record)]
pub(crate) struct ProcessOutcome {
    /// Records looked at.
    #[allow(dead_code, reason = "part of the type, not of what the host believes")]
    processed: u32,
    /// Records rejected.
    #[allow(dead_code, reason = "part of the type, not of what the host believes")]
    rejected: u32,
}

/// The whole batch failed.
#[derive(Debug, Clone, ComponentType, Lift)]
#[component(variant)]
pub(crate) enum BatchError {
    #[component(name = "retry")]
    Retry(String),
    #[component(name = "fatal")]
    Fatal(String),
}

/// `init` refuses.
#[derive(Debug, Clone, ComponentType, Lift)]
#[component(variant)]
pub(crate) enum InitError {
    #[component(name = "config")]
    Config(String),
    #[component(name = "unsupported")]
    Unsupported(String),
}

/// Level of a log line.
#[derive(Debug, Clone, Copy, ComponentType, Lift)]
#[component(enum)]
#[repr(u8)]
#[allow(dead_code, reason = "made by the derive, from the number the guest gives")]
pub(crate) enum Level {
    #[component(name = "debug")]
    Debug,
    #[component(name = "info")]
    Info,
    #[component(name = "warn")]
    Warn,
    #[component(name = "error")]
    Error,
}

/// `init(config, outputs)`.
pub(crate) type InitFunc = TypedFunc<(Vec<u8>, Vec<String>), (Result<(), InitError>,)>;

/// `process(batch)`. An `Arc` so that the buffer can be lent to a call without a copy and taken back.
pub(crate) type ProcessFunc = TypedFunc<(Arc<Vec<u8>>,), (Result<ProcessOutcome, BatchError>,)>;
