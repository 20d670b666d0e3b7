//! The `weir` node and its command line as a library: tests, benchmarks and the quick start run the same code as `main`.
#![forbid(unsafe_code)]

pub mod cert;
pub mod config;
pub mod logs;
