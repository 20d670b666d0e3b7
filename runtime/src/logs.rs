//! What the node says about itself: one subscriber for all crates, text for people, JSON for collectors.
//!
//! Lines go to standard error, so that standard output stays free for what a command prints.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::{TraceConfig, TraceFormat};

/// Starts logging for the life of the process. A second call (tests) changes nothing.
///
/// The level comes from the configuration; its filter syntax was checked there.
pub fn init(trace: &TraceConfig) {
    let filter = EnvFilter::try_new(&trace.level).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match trace.format {
        TraceFormat::Json => builder.json().flatten_event(true).try_init(),
        TraceFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).with_target(false).try_init(),
    };
    if started.is_err() {
        tracing::debug!("logging was started before");
    }
}

/// Logging for client commands: warnings only, unless `-v` was given.
pub fn init_client(verbosity: u8) {
    let level = match verbosity {
        0 => "warn,quinn=error",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    init(&TraceConfig { level: level.to_owned(), format: TraceFormat::Text });
}
