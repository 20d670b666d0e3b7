//! Drives the real `weir` binary as an operator would: certificates made by `weir cert`, a node as a child process,
//! SIGKILL, restart. The crash rounds (`weir-crash`), the power cuts (`weir-powercut`) and the end-to-end tests stand on it.

#![forbid(unsafe_code)]

pub mod disk;
pub mod ledger;
pub mod load;
pub mod node;
