//! One node's life: open the log, recover, bring up topics and pipelines, listen; and the way back.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use weir_storage::{BackendChoice, ColdConfig, Log, LogConfig, OpenError, PromoteConfig, RecoveryReport};

use crate::broker::{Broker, BrokerError};
use crate::config::{Backend, ColdSection, Config};
use crate::door::native::{DoorError, NativeDoor};
use crate::http::{Health, HttpServer};
use crate::metrics::Metrics;
use crate::status::NodeStatus;

/// Why a node does not start. The operator's turn; each sentence says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The log.
    #[error("the log in {} does not open: {source}", dir.display())]
    Log {
        /// The data directory.
        dir: std::path::PathBuf,
        /// Why.
        source: OpenError,
    },
    /// Topics, plugins, pipelines.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// The QUIC listener.
    #[error(transparent)]
    Door(#[from] DoorError),
    /// The HTTP listener.
    #[error("http.listen = {listen}: {source}; choose a free address and port, or \"\" to turn it off")]
    Http {
        /// The setting.
        listen: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Our mistake.
    #[error("the node failed while starting: {0}; report it with the node's log")]
    Internal(String),
}

/// A running node.
pub struct Node {
    log: Log,
    broker: Arc<Broker>,
    status: Arc<NodeStatus>,
    door: Arc<NativeDoor>,
    http: Option<HttpServer>,
    health: Arc<Health>,
    reloading: Option<JoinHandle<()>>,
    drain_max: Duration,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("address", &self.addr()).finish_non_exhaustive()
    }
}

/// Starts a node; it serves when this returns.
pub async fn start(config: Config) -> Result<Node, StartError> {
    let began = Instant::now();
    let health = Arc::new(Health::default());
    // First, so that probes see a node that recovers instead of none.
    let http = listen_http(&config, &health).await?;
    let settings = config.clone();
    let opened = tokio::task::spawn_blocking(move || open(&settings));
    let (log, report, broker) = opened.await.map_err(|error| StartError::Internal(error.to_string()))??;
    let status = Arc::new(NodeStatus::new(&config, &report, broker.clone()));
    let plugin_bytes_max = config.pipeline.plugin_bytes_max;
    let listening = NativeDoor::listen(broker.clone(), status.clone(), config.quic, config.limits, plugin_bytes_max);
    let door = match listening {
        Ok(door) => Arc::new(door),
        Err(error) => {
            close_log(log).await;
            return Err(error.into());
        }
    };
    health.serving(broker.clone());
    say_started(&door, http.as_ref(), &report, began);
    let reloading = reload_on_hangup(&door);
    let drain_max = Duration::from_millis(config.node.drain_ms_max);
    Ok(Node { log, broker, status, door, http, health, reloading, drain_max })
}

impl Node {
    /// Where the native protocol is served.
    pub fn addr(&self) -> SocketAddr {
        self.door.address()
    }

    /// Where metrics and probes are served, if they are.
    pub fn http_addr(&self) -> Option<SocketAddr> {
        self.http.as_ref().map(|http| http.address)
    }

    /// The broker, for a node that runs inside another program.
    pub fn broker(&self) -> &Arc<Broker> {
        &self.broker
    }

    /// What `weir status` shows.
    pub fn status(&self) -> serde_json::Value {
        self.status.json()
    }

    /// Reads certificates, key and CAs again, as SIGHUP does.
    pub fn reload_certificates(&self) -> Result<(), DoorError> {
        Ok(self.door.reload_certificates()?)
    }

    /// Stops: no new connections, GO_AWAY, what is in flight is decided and acknowledged, the log is sealed. Bounded by
    /// `node.drain_ms_max`; what was acknowledged is safe however it ends.
    pub async fn shutdown(self) {
        let began = Instant::now();
        self.health.draining();
        if let Some(reloading) = &self.reloading {
            reloading.abort();
            // Its share of the door ends with it.
            if let Some(reloading) = self.reloading {
                let _ = reloading.await;
            }
        }
        self.door.start_draining();
        if tokio::time::timeout(self.drain_max, self.broker.drain()).await.is_err() {
            tracing::warn!("batches were still in flight when the drain time was over; they are not acknowledged");
        }
        let left = self.drain_max.saturating_sub(began.elapsed()).max(Duration::from_millis(200));
        if let Some(door) = Arc::into_inner(self.door) {
            door.close(left).await;
        }
        drop(self.http);
        close_log(self.log).await;
        tracing::info!(took_ms = began.elapsed().as_millis() as u64, "stopped");
    }
}

async fn listen_http(config: &Config, health: &Arc<Health>) -> Result<Option<HttpServer>, StartError> {
    let listen = &config.http.listen;
    if listen.is_empty() {
        return Ok(None);
    }
    match HttpServer::listen(listen, health.clone()).await {
        Ok(server) => Ok(Some(server)),
        Err(source) => Err(StartError::Http { listen: listen.clone(), source }),
    }
}

/// Opens and recovers the log and everything that lives in it. Blocks.
fn open(config: &Config) -> Result<(Log, RecoveryReport, Arc<Broker>), StartError> {
    let dir = &config.node.data_dir;
    let (log, report) = Log::open(log_config(config)).map_err(|source| StartError::Log { dir: dir.clone(), source })?;
    let broker = Broker::open((log.handle(), &report), config, Arc::new(Metrics::new()));
    match broker {
        Ok(broker) => Ok((log, report, broker)),
        Err(error) => {
            let _ = log.shutdown();
            Err(error.into())
        }
    }
}

/// The log's part of the configuration.
pub(crate) fn log_config(config: &Config) -> LogConfig {
    let section = &config.log;
    let mut log = LogConfig::new(&config.node.data_dir);
    log.segment_bytes = section.segment_bytes;
    log.spare_segments = section.spare_segments;
    log.frame_bytes_max = section.frame_bytes_max;
    log.compress_from_bytes = Some(section.compress_from_bytes).filter(|bytes| *bytes > 0);
    log.tail_cache_bytes = section.tail_cache_bytes as usize;
    log.idle_watermark = Duration::from_millis(section.idle_watermark_ms);
    log.backend = match section.backend {
        Backend::Auto => BackendChoice::Auto,
        Backend::Uring => BackendChoice::Uring,
        Backend::Plain => BackendChoice::Plain,
    };
    log.accept_fenced = section.accept_fenced;
    log.accept_degraded = section.accept_degraded;
    log.mirror_patience = Duration::from_millis(section.copy_patience_ms);
    log.mirror_fill_bytes_per_s = section.fill_bytes_max;
    let mut dirs = config.volume.iter().map(|volume| volume.dir.clone());
    log.mirror_dir = dirs.next();
    log.cold_dirs = dirs.collect();
    log.cold = cold_config(&config.cold);
    // With a cold tier retention is a matter of classes: see `broker/classes.rs`.
    if log.cold.is_none() {
        log.retention_bytes = Some(section.retention_bytes).filter(|bytes| *bytes > 0);
        log.retention_age = Some(section.retention_ms).filter(|ms| *ms > 0).map(Duration::from_millis);
    }
    log.meta_bytes_max = section.metadata_bytes_max as usize;
    log.index_entries_max = section.index_entries_max as usize;
    log.node_id = uuid::Uuid::parse_str(&config.node.id).ok().map(uuid::Uuid::into_bytes);
    log.producers_max = config.limits.producers_max as usize;
    log
}

fn cold_config(section: &ColdSection) -> Option<ColdConfig> {
    section.enabled.then(|| ColdConfig {
        sort_bytes: section.sort_bytes,
        sort_age: Duration::from_millis(section.sort_age_ms),
        sort_memory_bytes: section.sort_memory_bytes as usize,
        promote: section.promote.then(PromoteConfig::default),
        wal_bytes_max: section.log_bytes_max,
        key_map_bytes_max: section.key_map_bytes_max as usize,
        bandwidth_bytes_max: Some(section.bandwidth_bytes_max).filter(|bytes| *bytes > 0),
        scrub_bytes_per_s: Some(section.scrub_bytes_max).filter(|bytes| *bytes > 0),
        scrub_every: Duration::from_millis(section.scrub_every_ms),
        missing_patience: Duration::from_millis(section.missing_patience_ms),
        ..ColdConfig::default()
    })
}

fn say_started(door: &NativeDoor, http: Option<&HttpServer>, report: &RecoveryReport, began: Instant) {
    if report.torn_tail {
        tracing::info!("the log's end was torn by a crash; nothing acknowledged was in it");
    }
    if report.gaps_total > 0 || report.meta_damaged {
        tracing::error!(gaps = report.gaps_total, metadata = report.meta_damaged, "parts of the log are damaged");
    }
    tracing::info!(
        address = %door.address(),
        http = http.map(|http| http.address.to_string()),
        frames = report.frames,
        partitions = report.partitions,
        took_ms = began.elapsed().as_millis() as u64,
        "serving"
    );
}

/// SIGHUP reads the certificates again. Without signals (they cannot be had) only a restart does.
fn reload_on_hangup(door: &Arc<NativeDoor>) -> Option<JoinHandle<()>> {
    let mut hangups = signal(SignalKind::hangup()).ok()?;
    let door = Arc::downgrade(door);
    Some(tokio::spawn(async move {
        while hangups.recv().await.is_some() {
            let Some(door) = door.upgrade() else { return };
            match door.reload_certificates() {
                Ok(()) => tracing::info!("certificates were read again"),
                Err(error) => tracing::error!(%error, "the old certificates stay in use"),
            }
        }
    }))
}

async fn close_log(log: Log) {
    match tokio::task::spawn_blocking(move || log.shutdown()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(%error, "the log did not close cleanly"),
        Err(error) => tracing::error!(%error, "the log did not close cleanly"),
    }
}
