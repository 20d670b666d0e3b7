//! Drives the real `weir` binary as an operator would: certificates made by `weir cert`, a node as a child process,
//! SIGKILL, restart. The crash rounds (`weir-crash`) and the end-to-end tests stand on it.

#![forbid(unsafe_code)]

pub mod ledger;
pub mod node;
