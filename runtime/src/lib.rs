//! The `weir` node and its command line as a library: tests, benchmarks and the quick start run the same code as `main`.
#![forbid(unsafe_code)]

pub mod broker;
pub mod cert;
pub mod child;
pub mod cli;
pub mod config;
pub mod door;
mod http;
pub mod logs;
pub mod metrics;
pub mod quickstart;
pub mod serve;
pub mod status;
