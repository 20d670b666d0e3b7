//! The pipeline through its public verbs, with guests written as WebAssembly text: no Wasm toolchain is needed.

mod breaker;
mod failures;
mod guests;
mod limits;
mod offline;
mod plugins;
mod rules;
mod shards;
mod verdicts;
