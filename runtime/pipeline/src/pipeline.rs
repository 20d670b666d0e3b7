//! A pipeline: the plugins attached to a topic, in order, at one revision.
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::breaker::Breaker;
use crate::error::PluginError;
use crate::host::{HostShared, Plugin, PluginHost};
use crate::instance::Instance;
use crate::limits::STAGES_MAX;
use crate::stats::{SnapshotOf, StageSnapshot, StageStats};
use crate::suggest::did_you_mean;

/// What becomes of a record that a plugin fails on or rejects.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum FailurePolicy {
    /// The whole batch is refused; the producer learns why.
    #[default]
    Fail,
    /// The record goes on as it came into the stage.
    Pass,
    /// The record ends here.
    Drop,
    /// The record goes to this topic, with headers that say why.
    DeadLetter {
        /// The topic.
        topic: String,
    },
}

/// One plugin of a pipeline and how it is used.
#[derive(Debug, Clone)]
pub struct Stage {
    /// The plugin.
    pub plugin: Arc<Plugin>,
    /// Its configuration, JSON, handed to `init`.
    pub config: Vec<u8>,
    /// Topic of each output its manifest names.
    pub outputs: BTreeMap<String, String>,
    /// What becomes of records it fails on.
    pub on_failure: FailurePolicy,
}

/// A producer's batch on its way to storage.
#[derive(Debug, Clone)]
pub struct Input {
    /// Its topic.
    pub topic: Arc<str>,
    /// Its partition.
    pub partition: u32,
    /// One whole record batch, verified.
    pub batch: Bytes,
    /// The node's clock, ms since 1970: the only time that plugins and circuit breakers know.
    pub now_ms: i64,
}

/// Good batches in a row after which a pipeline leaves the penalty thread.
const PENALTY_GOOD_BATCHES: u32 = 32;

/// The plugins attached to a topic. Immutable: a change makes a new one with a higher revision.
pub struct Pipeline {
    id: u64,
    revision: u64,
    pub(crate) stages: Vec<StageState>,
    /// Topics records may be routed to, dead-letter topics included.
    pub(crate) topics: Vec<Arc<str>>,
    pub(crate) host: Arc<HostShared>,
    penalised: AtomicBool,
    penalty_pending: AtomicUsize,
    in_flight: AtomicUsize,
    good_batches: AtomicU32,
}

pub(crate) struct StageState {
    pub(crate) plugin: Arc<Plugin>,
    pub(crate) config: Vec<u8>,
    /// Index into the pipeline's topics, by output number - 1.
    pub(crate) output_topics: Vec<usize>,
    pub(crate) policy: Policy,
    breaker: Mutex<Breaker>,
    pub(crate) stats: StageStats,
}

/// The policy with its topic as an index into the pipeline's topics.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Policy {
    Fail,
    Pass,
    Drop,
    DeadLetter(usize),
}

impl StageState {
    /// A poisoned lock only says that a thread panicked between two plain stores.
    pub(crate) fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stages: Vec<_> = self.stages.iter().map(|s| format!("{} {}", s.plugin.name(), s.plugin.version())).collect();
        f.debug_struct("Pipeline").field("revision", &self.revision).field("stages", &stages).finish_non_exhaustive()
    }
}

impl Pipeline {
    /// Checks the stages and calls `init` of each once, so that a bad configuration is refused when it is attached.
    ///
    /// # Errors
    /// [`PluginError`] names the plugin and what to correct.
    pub fn new(revision: u64, stages: Vec<Stage>, host: &PluginHost) -> Result<Arc<Self>, PluginError> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        if stages.is_empty() || stages.len() > STAGES_MAX {
            return Err(PluginError::Stages { stages: stages.len(), max: STAGES_MAX });
        }
        let mut topics = Vec::new();
        let stages = stages.into_iter().map(|stage| StageState::new(stage, host, &mut topics)).collect::<Result<Vec<_>, _>>()?;
        Ok(Arc::new(Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            revision,
            stages,
            topics,
            host: host.shared(),
            penalised: AtomicBool::new(false),
            penalty_pending: AtomicUsize::new(0),
            in_flight: AtomicUsize::new(0),
            good_batches: AtomicU32::new(0),
        }))
    }

    /// The revision it was made with.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Topics it may route records to, dead-letter topics included.
    #[must_use]
    pub fn topics(&self) -> &[Arc<str>] {
        &self.topics
    }

    /// Counters of each stage.
    #[must_use]
    pub fn stats(&self) -> Vec<StageSnapshot> {
        let snapshot = |stage: &StageState| {
            let (circuit, circuit_opened) = {
                let breaker = stage.breaker();
                (breaker.state(), breaker.opened_count())
            };
            let manifest = stage.plugin.manifest();
            let (plugin, version, metrics) = (&manifest.name, &manifest.version, &manifest.metrics[..]);
            stage.stats.snapshot(SnapshotOf { plugin, version, metrics, circuit, circuit_opened })
        };
        self.stages.iter().map(snapshot).collect()
    }

    /// Whether its batches run on the penalty thread, because one took too long.
    #[must_use]
    pub fn is_penalised(&self) -> bool {
        self.penalised.load(Ordering::SeqCst)
    }

    /// Distinguishes pipelines of the same revision.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn penalise(&self) {
        self.good_batches.store(0, Ordering::SeqCst);
        self.penalised.store(true, Ordering::SeqCst);
    }

    /// A batch ran on the penalty thread; enough good ones in a row end the penalty.
    pub(crate) fn served_penalty(&self, good: bool) {
        if !good {
            self.good_batches.store(0, Ordering::SeqCst);
        } else if self.good_batches.fetch_add(1, Ordering::SeqCst) + 1 >= PENALTY_GOOD_BATCHES {
            self.penalised.store(false, Ordering::SeqCst);
        }
    }

    /// Batches submitted and not answered.
    pub(crate) fn in_flight(&self) -> &AtomicUsize {
        &self.in_flight
    }

    /// Batches waiting for or running on the penalty thread.
    pub(crate) fn penalty_pending(&self) -> &AtomicUsize {
        &self.penalty_pending
    }
}

impl StageState {
    fn new(stage: Stage, host: &PluginHost, topics: &mut Vec<Arc<str>>) -> Result<Self, PluginError> {
        let Stage { plugin, config, outputs, on_failure } = stage;
        let output_topics = resolve_outputs(&plugin, &outputs, topics)?;
        let policy = match on_failure {
            FailurePolicy::Fail => Policy::Fail,
            FailurePolicy::Pass => Policy::Pass,
            FailurePolicy::Drop => Policy::Drop,
            FailurePolicy::DeadLetter { topic } => Policy::DeadLetter(topic_index(topics, &topic)),
        };
        drop(Instance::start(&plugin, &config).map_err(|error| error.into_plugin_error(&plugin))?);
        let stats = StageStats::new(plugin.manifest().metrics.len());
        let breaker = Mutex::new(Breaker::new(host.config().breaker));
        Ok(Self { plugin, config, output_topics, policy, breaker, stats })
    }
}

/// Every output the manifest names has a topic, and no other is given one.
fn resolve_outputs(
    plugin: &Plugin,
    outputs: &BTreeMap<String, String>,
    topics: &mut Vec<Arc<str>>,
) -> Result<Vec<usize>, PluginError> {
    let declared = &plugin.manifest().outputs;
    let error = |message: String| PluginError::Outputs {
        plugin: Arc::clone(plugin.name()),
        version: Arc::clone(plugin.version()),
        message,
    };
    if let Some(unknown) = outputs.keys().find(|name| !declared.contains(name)) {
        let hint = did_you_mean(unknown, declared.iter().map(String::as_str));
        return Err(error(format!("it has no output `{unknown}`: {hint}")));
    }
    let topic_of = |name: &String| {
        let topic = outputs.get(name).filter(|topic| !topic.is_empty());
        let topic = topic.ok_or_else(|| {
            error(format!("its output `{name}` has no topic; add \"outputs\": {{\"{name}\": \"<topic>\"}} to the stage"))
        })?;
        Ok(topic_index(topics, topic))
    };
    declared.iter().map(topic_of).collect()
}

fn topic_index(topics: &mut Vec<Arc<str>>, topic: &str) -> usize {
    topics.iter().position(|known| **known == *topic).unwrap_or_else(|| {
        topics.push(topic.into());
        topics.len() - 1
    })
}
