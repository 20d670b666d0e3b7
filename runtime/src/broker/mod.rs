//! The broker: what a topic, a producer, a group and a pipeline are, and who may use them. It knows no socket.
//!
//! A record comes in through [`ingest::Lane`] and goes to the log; a consumer comes through [`Broker::read`]. Everything
//! durable beside the records themselves lives in the log's metadata (`meta`, `runtime/FORMAT.md`). Changes of topics,
//! plugins and pipelines happen one at a time under one lock and are durable before they take effect; nothing on a
//! record's way takes that lock. Front doors (`door`) turn bytes into calls and [`Refusal`]s into their codes.

mod acl;
mod admin;
mod backup;
mod classes;
mod disks;
mod fetch;
mod groups;
pub mod ingest;
mod meta;
mod numbers;
mod outbox;
mod pipelines;
mod plugins;
mod producers;
mod refusal;
mod routing;
mod settings;
mod topics;
mod writer;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use weir_pipeline::{HostConfig, HostError, PluginHost, ShardPool};
use weir_storage::{AppendError, ClassPolicy, LogHandle, PartitionBounds, ReadChunk, RecoveryReport};

pub use acl::{Acl, Identity, IdentityError};
pub use admin::TopicInfo;
pub(crate) use backup::report_json;
pub(crate) use disks::disks_json;
pub use fetch::Tail;
pub use groups::Position;
pub use ingest::{Checked, Lane};
pub use meta::MetaError;
pub use outbox::{BatchId, Decision, Mailroom, Outbox, Stored};
pub use pipelines::PipelineInfo;
pub use plugins::{PluginInfo, PluginsError};
pub use producers::Producer;
pub use refusal::Refusal;
pub use topics::Topic;
pub(crate) use writer::lock;

use crate::config::{Config, LogSection, PipelineConfig, Right};
use crate::metrics::Metrics;
use backup::Backups;
use classes::Classes;
use fetch::Tails;
use groups::Groups;
use ingest::{Budget, Ingest};
use pipelines::Slot;
use plugins::Plugins;
use producers::Producers;
use topics::Topics;
use writer::LogWriter;

/// Positions of one consumer group.
const POSITIONS_OF_GROUP_MAX: usize = 100_000;

/// The broker of one node.
pub struct Broker {
    log: LogHandle,
    writer: LogWriter,
    topics: Arc<Topics>,
    classes: Classes,
    producers: Producers,
    groups: Groups,
    plugins: Arc<Plugins>,
    acl: Acl,
    ingest: Arc<Ingest>,
    tails: Arc<Tails>,
    metrics: Arc<Metrics>,
    backups: Backups,
    /// Held by whoever changes topics, plugins or pipelines.
    admin: tokio::sync::Mutex<()>,
    topic_default_partitions: u32,
    create_topics_automatically: bool,
}

impl std::fmt::Debug for Broker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Broker").field("topics", &self.topics).finish_non_exhaustive()
    }
}

/// Why the broker cannot start on a log.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BrokerError {
    /// Stored state cannot be understood.
    #[error("the state stored in the log cannot be read: {0}")]
    Meta(#[from] MetaError),
    /// Damage took counters, and the log does not take new ones.
    #[error(
        "damage has taken metadata of the log, and numbers that cannot have been given out yet cannot be stored: {0}; where the disk is full, make room and start again"
    )]
    Numbers(AppendError),
    /// The plugins' folder is unusable.
    #[error(transparent)]
    Plugins(#[from] PluginsError),
    /// The Wasm host does not start.
    #[error("the plugin host does not start: {0}; check [pipeline] in the configuration")]
    Host(#[from] HostError),
}

/// A batch that comes without a lane of its own.
#[derive(Debug)]
pub struct Single<'a> {
    /// Id and epoch of an earlier connection.
    pub producer: (i64, i16),
    /// The lane whose sequences it counts in.
    pub lane: u32,
    /// Where it goes.
    pub topic: &'a str,
    /// The same.
    pub partition: u32,
    /// Of its first record.
    pub base_sequence: u64,
    /// As received.
    pub batch: Bytes,
}

impl Broker {
    /// Reads the state of topics, producers, groups, plugins and pipelines from the log. Blocks: pipelines are compiled.
    pub fn open(
        (log, report): (LogHandle, &RecoveryReport),
        config: &Config,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Broker>, BrokerError> {
        let limits = &config.limits;
        let (topics_max, partitions_max) = (limits.topics_max as usize, u64::from(limits.partitions_max));
        let topics = Arc::new(Topics::load(&log, &metrics, topics_max, partitions_max)?);
        numbers::leap(&log, &topics, report)?;
        let classes = Classes::load(&log, default_policy(&config.log), config.cold.enabled, &topics.all())?;
        let producers = Producers::load(&log, limits.producers_max as usize)?;
        let groups = Groups::load(&log, limits.groups_max as usize, POSITIONS_OF_GROUP_MAX)?;
        let host = Arc::new(PluginHost::new(host_config(&config.pipeline))?);
        let data_dir = &config.node.data_dir;
        let plugins = Arc::new(Plugins::load(&log, data_dir, host, config.pipeline.plugin_bytes_max)?);
        pipelines::load(&log, &topics, &plugins)?;
        let tails = Arc::new(Tails::default());
        let heard = tails.clone();
        log.on_commit(Box::new(move |partitions| heard.committed(partitions)));
        let ingest = Ingest {
            log: log.clone(),
            pool: ShardPool::new(pipeline_threads(&config.pipeline), config.pipeline.queue_batches as usize)?,
            budget: Budget::new(limits.ingest_bytes_in_flight),
            batch_bytes_max: limits.batch_bytes_max,
            draining: AtomicBool::new(false),
        };
        Ok(Arc::new(Broker {
            writer: LogWriter::new(log.clone()),
            topics,
            classes,
            producers,
            groups,
            plugins,
            acl: Acl::new(config.acl.clone()),
            ingest: Arc::new(ingest),
            tails,
            metrics,
            backups: Backups::new(&config.backup, data_dir),
            admin: tokio::sync::Mutex::new(()),
            topic_default_partitions: limits.topic_default_partitions,
            create_topics_automatically: limits.create_topics_automatically,
            log,
        }))
    }

    /// What the node counts.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// The log below.
    pub fn log(&self) -> &LogHandle {
        &self.log
    }

    /// What carries the batches of one thread's connections to the log, and its decisions back.
    pub fn mailroom(&self) -> Arc<Mailroom> {
        Mailroom::new(self.log.clone(), self.metrics.clone())
    }

    /// A connection says its producer name. See [`Producer`].
    pub async fn register_producer(&self, principal: &Arc<str>, name: &str) -> Result<(Arc<Producer>, i16), Refusal> {
        self.producers.register(&self.writer, principal, name).await
    }

    /// Opens a lane; its decisions arrive in `outbox`.
    pub async fn open_lane(
        &self,
        principal: &str,
        topic: &str,
        lane: u32,
        producer: (&Arc<Producer>, i16),
        outbox: &Arc<Outbox>,
    ) -> Result<Lane, Refusal> {
        self.acl.check(principal, Right::Produce, topic)?;
        let topic = match self.topics.get(topic) {
            Err(Refusal::UnknownTopic { .. }) if self.create_topics_automatically => self.create_or_get(topic).await?,
            found => found?,
        };
        let (producer, epoch) = producer;
        // Only to learn that a newer connection has the name before a batch is sent in vain.
        drop(producer.enter(epoch)?);
        Ok(Lane::new(&self.ingest, outbox, topic, lane, producer.clone(), epoch))
    }

    /// One batch with an identity of an earlier connection: what a replayed first flight may contain, because sending
    /// it twice changes nothing.
    pub async fn publish(&self, principal: &str, single: Single<'_>, mailroom: &Arc<Mailroom>) -> Result<Decision, Refusal> {
        let Single { producer: (id, epoch), lane, topic, partition, base_sequence, batch } = single;
        let producer = self.producers.of_principal(principal, id)?;
        let outbox = Outbox::new(mailroom);
        let lane = self.open_lane(principal, topic, lane, (&producer, epoch), &outbox).await?;
        let checked = lane.check(partition, base_sequence, batch)?;
        lane.submit(checked).await;
        let mut decisions = Vec::new();
        outbox.take(&mut decisions).await;
        decisions.pop().ok_or(Refusal::Internal { reason: "a decision without content".into() })
    }

    /// Whether the ingest budget is nearly taken.
    pub fn is_tight(&self) -> bool {
        self.ingest.budget.is_tight()
    }

    /// A topic a principal may consume.
    pub fn consumable(&self, principal: &str, topic: &str) -> Result<Arc<Topic>, Refusal> {
        self.acl.check(principal, Right::Consume, topic)?;
        self.topics.get(topic)
    }

    /// Durable range of a partition.
    pub fn bounds(&self, topic: &Topic, partition: u32) -> Result<PartitionBounds, Refusal> {
        let number = topic.partition(partition)?;
        self.log.bounds(number).ok_or_else(|| Refusal::UnknownTopic { topic: topic.name.to_string() })
    }

    /// Stored batches from `offset` on, as they lie in the log.
    pub async fn read(&self, topic: &Topic, partition: u32, offset: i64, bytes_max: usize) -> Result<ReadChunk, Refusal> {
        fetch::read(&self.log, topic, partition, offset, bytes_max).await
    }

    /// Hears when the partitions grow.
    pub fn watch(&self, topic: &Topic, partitions: &[u32]) -> Result<Tail, Refusal> {
        let numbers = partitions.iter().map(|partition| topic.partition(*partition));
        Ok(self.tails.watch(numbers.collect::<Result<_, _>>()?))
    }

    /// Refuses new batches and waits until the log has decided all others.
    pub async fn drain(&self) {
        self.backups.stop();
        self.ingest.draining.store(true, Ordering::Release);
        self.ingest.budget.drain().await;
    }

    /// Brings the gauges up to date before they are read.
    pub fn refresh_levels(&self) {
        let levels = &self.metrics.levels;
        let topics = self.topics.all();
        levels.topics.set(topics.len() as u64);
        levels.partitions.set(topics.iter().map(|topic| u64::from(topic.partition_count())).sum());
        levels.producers.set(self.producers.count() as u64);
        levels.ingest_bytes_in_flight.set(self.ingest.budget.bytes_in_flight());
        let stats = self.log.stats();
        levels.log_fenced.set(u64::from(stats.failed.is_some()));
        levels.log_stalled.set(u64::from(stats.stalled.is_some()));
        levels.log_disk_full.set(u64::from(stats.disk_full));
        levels.log_durable_lsn.set(stats.durable_lsn);
        levels.log_frames.set(stats.frames);
        levels.log_bytes.set(stats.written_bytes);
        levels.log_queue_appends.set(stats.queue_depth);
        levels.log_segments.set(stats.segments);
        levels.set_cold(&stats);
        let mut stages = Vec::new();
        for topic in &topics {
            if let Slot::Through(attached) = topic.slot() {
                stages.extend(attached.pipeline.stats().into_iter().map(|stage| (topic.name.clone(), stage)));
            }
        }
        self.metrics.set_stages(stages.iter().map(|(topic, stage)| (&**topic, stage)));
    }
}

/// How topics are kept that say nothing about it.
fn default_policy(config: &LogSection) -> ClassPolicy {
    ClassPolicy {
        retention_ms: Some(config.retention_ms).filter(|ms| *ms > 0),
        retention_bytes: Some(config.retention_bytes).filter(|bytes| *bytes > 0),
        ..ClassPolicy::default()
    }
}

fn host_config(config: &PipelineConfig) -> HostConfig {
    let mut host = HostConfig::default();
    host.memory_bytes_max = config.memory_bytes_max as usize;
    host.memory_bytes_default = host.memory_bytes_default.min(host.memory_bytes_max);
    host.batch_time_max = Duration::from_millis(config.batch_ms_max);
    host.batch_time_default = host.batch_time_default.min(host.batch_time_max);
    host.output_bytes_max = config.output_bytes_max as usize;
    host.output_records_max = config.output_records_max as usize;
    host.instances_max = config.instances_max;
    host.component_bytes_max = config.plugin_bytes_max as usize;
    host
}

fn pipeline_threads(config: &PipelineConfig) -> usize {
    match config.threads {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        threads => threads as usize,
    }
}
