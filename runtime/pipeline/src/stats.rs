//! Counters of a stage, over all shards; read as a snapshot for metrics and status.
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::breaker::BreakerState;
use crate::error::FailureKind;

const KINDS: usize = FailureKind::ALL.len();

/// What a stage has done since its pipeline was attached.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StageSnapshot {
    /// The plugin.
    pub plugin: Arc<str>,
    /// Its version.
    pub version: Arc<str>,
    /// Batches that got through.
    pub batches: u64,
    /// Records of those batches.
    pub records_in: u64,
    /// Kept on the stream, said or unsaid.
    pub kept: u64,
    /// Dropped.
    pub dropped: u64,
    /// Replaced.
    pub replaced: u64,
    /// Emitted beside their source, to the stream or another output.
    pub emitted: u64,
    /// Sent to another output and not kept.
    pub moved: u64,
    /// Records a failure policy was applied to, by kind; rejects are among them.
    pub failed: Vec<(FailureKind, u64)>,
    /// Runs spent on looking for the record to blame.
    pub reruns: u64,
    /// Instances thrown away.
    pub instances_replaced: u64,
    /// Time spent in the plugin.
    pub nanos: u64,
    /// Largest memory of an instance so far.
    pub memory_bytes_max: u64,
    /// The plugin's own counters.
    pub metrics: Vec<(String, u64)>,
    /// Where the circuit stands.
    pub circuit: BreakerState,
    /// How often it opened.
    pub circuit_opened: u64,
}

/// What one run of one stage adds.
#[derive(Debug, Default)]
pub(crate) struct StageDelta {
    pub(crate) ran: bool,
    pub(crate) records_in: u64,
    pub(crate) kept: u64,
    pub(crate) dropped: u64,
    pub(crate) replaced: u64,
    pub(crate) emitted: u64,
    pub(crate) moved: u64,
    pub(crate) failed: [u64; KINDS],
    pub(crate) reruns: u64,
    /// Runs that ended at a time or memory limit.
    pub(crate) slow: u64,
    pub(crate) instances_replaced: u64,
    pub(crate) nanos: u64,
    pub(crate) memory_bytes: u64,
    pub(crate) metrics: Vec<u64>,
}

impl StageDelta {
    pub(crate) fn clear(&mut self) {
        let mut metrics = std::mem::take(&mut self.metrics);
        metrics.clear();
        *self = Self { metrics, ..Self::default() };
    }

    pub(crate) fn add_metrics(&mut self, counts: &[u64]) {
        self.metrics.resize(counts.len(), 0);
        for (sum, n) in self.metrics.iter_mut().zip(counts) {
            *sum = sum.saturating_add(*n);
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct StageStats {
    batches: AtomicU64,
    records_in: AtomicU64,
    kept: AtomicU64,
    dropped: AtomicU64,
    replaced: AtomicU64,
    emitted: AtomicU64,
    moved: AtomicU64,
    failed: [AtomicU64; KINDS],
    reruns: AtomicU64,
    slow: AtomicU64,
    instances_replaced: AtomicU64,
    nanos: AtomicU64,
    memory_bytes_max: AtomicU64,
    metrics: Vec<AtomicU64>,
}

impl StageStats {
    pub(crate) fn new(metrics: usize) -> Self {
        Self { metrics: (0..metrics).map(|_| AtomicU64::new(0)).collect(), ..Self::default() }
    }

    /// Adds a run. What a refused batch would have kept or dropped does not count; what it cost and how it failed does.
    pub(crate) fn add(&self, delta: &StageDelta, refused: bool) {
        if !delta.ran {
            return;
        }
        let add = |counter: &AtomicU64, n: u64| {
            if n > 0 {
                counter.fetch_add(n, Ordering::Relaxed);
            }
        };
        for (counter, n) in self.failed.iter().zip(delta.failed) {
            add(counter, n);
        }
        add(&self.reruns, delta.reruns);
        add(&self.slow, delta.slow);
        add(&self.instances_replaced, delta.instances_replaced);
        add(&self.nanos, delta.nanos);
        self.memory_bytes_max.fetch_max(delta.memory_bytes, Ordering::Relaxed);
        if refused {
            return;
        }
        add(&self.batches, 1);
        add(&self.records_in, delta.records_in);
        add(&self.kept, delta.kept);
        add(&self.dropped, delta.dropped);
        add(&self.replaced, delta.replaced);
        add(&self.emitted, delta.emitted);
        add(&self.moved, delta.moved);
        for (counter, n) in self.metrics.iter().zip(&delta.metrics) {
            add(counter, *n);
        }
    }

    /// Runs that ended at a limit, and records spared that by an open circuit: what keeps a pipeline on the penalty thread.
    pub(crate) fn slow(&self) -> u64 {
        self.slow.load(Ordering::Relaxed) + self.failed[FailureKind::CircuitOpen.index()].load(Ordering::Relaxed)
    }

    pub(crate) fn snapshot(&self, of: SnapshotOf<'_>) -> StageSnapshot {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let failed = FailureKind::ALL.iter().map(|kind| (*kind, get(&self.failed[kind.index()]))).collect();
        let metrics = of.metrics.iter().zip(&self.metrics).map(|(name, n)| (name.clone(), get(n))).collect();
        StageSnapshot {
            plugin: Arc::clone(of.plugin),
            version: Arc::clone(of.version),
            batches: get(&self.batches),
            records_in: get(&self.records_in),
            kept: get(&self.kept),
            dropped: get(&self.dropped),
            replaced: get(&self.replaced),
            emitted: get(&self.emitted),
            moved: get(&self.moved),
            failed,
            reruns: get(&self.reruns),
            instances_replaced: get(&self.instances_replaced),
            nanos: get(&self.nanos),
            memory_bytes_max: get(&self.memory_bytes_max),
            metrics,
            circuit: of.circuit,
            circuit_opened: of.circuit_opened,
        }
    }
}

/// What a snapshot says beside the counters.
pub(crate) struct SnapshotOf<'a> {
    pub(crate) plugin: &'a Arc<str>,
    pub(crate) version: &'a Arc<str>,
    pub(crate) metrics: &'a [String],
    pub(crate) circuit: BreakerState,
    pub(crate) circuit_opened: u64,
}
