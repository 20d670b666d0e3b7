//! What the host allows any plugin, whatever its manifest asks for. Every number stands next to its reason.
use std::time::Duration;

use crate::breaker::BreakerConfig;

const MIB: usize = 1 << 20;

/// Limits of the host. [`HostConfig::default`] suits a small appliance.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct HostConfig {
    /// Linear memory of one instance; a manifest may ask for less, never more. 64 MiB holds a batch of a few MiB four
    /// times over, which is what a transforming guest needs.
    pub memory_bytes_max: usize,
    /// Memory of a plugin whose manifest is silent.
    pub memory_bytes_default: usize,
    /// Time one batch may take in one stage; a manifest may ask for less. It bounds how long a looping plugin keeps a
    /// thread from other topics.
    pub batch_time_max: Duration,
    /// Time of a plugin whose manifest is silent.
    pub batch_time_default: Duration,
    /// Time `init` may take: it parses a configuration, once an instance.
    pub init_time_max: Duration,
    /// Bytes one batch may be when laid out for a guest, and bytes the host takes apart when it undoes compression.
    pub input_bytes_max: usize,
    /// Bytes of arena a stage may emit for one batch.
    pub output_bytes_max: usize,
    /// Verdicts a stage may give for one batch beyond one a record.
    pub output_records_max: usize,
    /// Instances alive at once: stages × (shards + 1), twice over while a pipeline is replaced.
    pub instances_max: u32,
    /// Size of a plugin file. Compiling takes about 0.5 s a MiB on one core.
    pub component_bytes_max: usize,
    /// Runs of sub-batches the host pays to find the records that make a plugin fail. Finding one in a batch of n takes
    /// about 2 log2 n: 24 for 4,096 records; 64 finds several.
    pub reruns_max: u32,
    /// How many of them may end in a time-out: each costs the full batch time. 12 find one record in 2,048.
    pub timeouts_max: u32,
    /// When to stop trying.
    pub breaker: BreakerConfig,
}

impl Default for HostConfig {
    fn default() -> Self {
        Self {
            memory_bytes_max: 64 * MIB,
            memory_bytes_default: 16 * MIB,
            batch_time_max: Duration::from_millis(100),
            batch_time_default: Duration::from_millis(20),
            init_time_max: Duration::from_millis(500),
            input_bytes_max: 32 * MIB,
            output_bytes_max: 32 * MIB,
            output_records_max: 1 << 17,
            instances_max: 128,
            component_bytes_max: 16 * MIB,
            reruns_max: 64,
            timeouts_max: 12,
            breaker: BreakerConfig::default(),
        }
    }
}

/// Stages one pipeline may have: each costs a call and an instance a shard.
pub(crate) const STAGES_MAX: usize = 8;
/// Named outputs one plugin may have.
pub(crate) const OUTPUTS_MAX: usize = 64;
/// Counters one plugin may have.
pub(crate) const METRICS_MAX: usize = 64;
/// Failures listed in one [`crate::Output`]; further ones are only counted.
pub(crate) const FAILURES_LISTED_MAX: usize = 32;
/// Longest message taken from a plugin, in bytes.
pub(crate) const MESSAGE_BYTES_MAX: usize = 1024;
/// Calls of `emit` beyond one a record: a call costs the host some bookkeeping.
pub(crate) const EMIT_CALLS_EXTRA: usize = 1024;
/// Arena a stage may emit however small the batch: the output ratio starts to count above this.
pub(crate) const OUTPUT_BYTES_FLOOR: usize = 64 << 10;
/// Core instances in one component: the packer makes three (shim, main, fix-up).
pub(crate) const CORE_INSTANCES_PER_PLUGIN: u32 = 6;
/// Tables in one component: the guest's own and the shim's.
pub(crate) const TABLES_PER_PLUGIN: u32 = 4;
/// Functions in a table: far above what a Rust guest has.
pub(crate) const TABLE_ELEMENTS_MAX: usize = 20_000;
/// Stack of a guest. A shard thread's own stack is larger by what the host needs, see `shard`.
pub(crate) const WASM_STACK_BYTES: usize = 512 << 10;
