//! The node's configuration: one TOML file of defaults, and the three layers that may change it.
//!
//! `weir.toml` beside this file *is* the defaults: it is parsed at start, and its keys and their types are the schema that
//! the operator's file, the environment and `--set` are checked against (`layers`). What comes out is a [`Config`] whose
//! values have been checked alone (`units`) and against each other (`check`). `serve` takes it from there.

mod check;
mod layers;
mod lists;
mod memory;
#[cfg(test)]
mod tests;
mod units;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use layers::{ConfigError, Origin, Sources};
pub use units::{format_bytes, parse_bytes, parse_duration_ms};

/// The defaults with their comments, as `weir serve --print-config` shows them.
pub const DEFAULT_TOML: &str = include_str!("weir.toml");

/// Everything an operator can set. Field names are the keys of the file; `…_bytes` are bytes, `…_ms` milliseconds.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // each key is explained in weir.toml, the text operators read
pub struct Config {
    pub node: NodeConfig,
    pub quic: QuicConfig,
    pub http: HttpConfig,
    pub log: LogSection,
    pub cold: ColdSection,
    pub backup: BackupSection,
    pub pipeline: PipelineConfig,
    pub limits: LimitsConfig,
    pub trace: TraceConfig,
    pub acl: Vec<AclRule>,
    pub volume: Vec<VolumeSection>,
}

/// `[node]`
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct NodeConfig {
    pub name: String,
    pub id: String,
    pub data_dir: PathBuf,
    pub drain_ms_max: u64,
    pub memory_bytes_max: u64,
}

/// `[quic]`
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct QuicConfig {
    pub listen: String,
    pub cert: PathBuf,
    pub key: PathBuf,
    pub client_ca: PathBuf,
    pub zero_rtt: bool,
    pub ingest_threads: u32,
    pub idle_timeout_ms: u64,
    pub handshake_timeout_ms: u64,
    pub connections_max: u32,
    pub connections_per_address_max: u32,
    pub retry_above_connections: u32,
    pub streams_per_connection_max: u32,
    pub connection_window_bytes: u64,
    pub stream_window_bytes: u64,
    pub send_window_bytes: u64,
    pub mtu_bytes_max: u16,
}

/// `[http]`
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct HttpConfig {
    pub listen: String,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct LogSection {
    pub backend: Backend,
    pub segment_bytes: u64,
    pub spare_segments: u32,
    pub frame_bytes_max: u32,
    pub compress_from_bytes: u32,
    pub tail_cache_bytes: u64,
    pub idle_watermark_ms: u64,
    pub retention_bytes: u64,
    pub retention_ms: u64,
    pub metadata_bytes_max: u64,
    pub index_entries_max: u64,
    pub accept_fenced: bool,
    pub accept_degraded: bool,
    pub copy_patience_ms: u64,
    pub fill_bytes_max: u64,
}

/// `[cold]`
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct ColdSection {
    pub enabled: bool,
    pub sort_bytes: u64,
    pub sort_age_ms: u64,
    pub sort_memory_bytes: u64,
    pub promote: bool,
    pub key_map_bytes_max: u64,
    pub log_bytes_max: u64,
    pub bandwidth_bytes_max: u64,
    pub scrub_bytes_max: u64,
    pub scrub_every_ms: u64,
    pub missing_patience_ms: u64,
}

/// `[backup]`
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct BackupSection {
    pub dir: PathBuf,
    pub bandwidth_bytes_max: u64,
}

/// `[[volume]]`: a further disk.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct VolumeSection {
    pub dir: PathBuf,
}

/// How the log talks to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Backend {
    Auto,
    Uring,
    Plain,
}

/// `[pipeline]`
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct PipelineConfig {
    pub threads: u32,
    pub queue_batches: u32,
    pub memory_bytes_max: u64,
    pub batch_ms_max: u64,
    pub output_bytes_max: u64,
    pub output_records_max: u32,
    pub instances_max: u32,
    pub plugin_bytes_max: u64,
}

/// `[limits]`
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct LimitsConfig {
    pub ingest_bytes_in_flight: u64,
    pub frame_bytes_max: u32,
    pub batch_bytes_max: u32,
    pub lane_credit_bytes: u32,
    pub batches_in_flight_max: u16,
    pub lanes_max: u16,
    pub topics_max: u32,
    pub partitions_max: u32,
    pub producers_max: u32,
    pub groups_max: u32,
    pub topic_default_partitions: u32,
    pub create_topics_automatically: bool,
}

/// `[trace]`
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct TraceConfig {
    pub level: String,
    pub format: TraceFormat,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum TraceFormat {
    Text,
    Json,
}

/// One `[[acl]]` rule: these principals may do this on these topics.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct AclRule {
    /// A principal's name, or a prefix with `*` at its end.
    pub principal: String,
    /// A topic's name, or a prefix with `*` at its end.
    #[serde(default = "every")]
    pub topic: String,
    /// What is allowed.
    pub allow: Vec<Right>,
}

/// What a rule can allow. `admin` covers topics, plugins, pipelines, groups and status; it does not imply the other two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Right {
    Produce,
    Consume,
    Admin,
}

impl Right {
    /// The word used in the file and in error messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Right::Produce => "produce",
            Right::Consume => "consume",
            Right::Admin => "admin",
        }
    }
}

impl AclRule {
    /// Whether this rule gives `principal` the right on `topic`.
    pub fn permits(&self, principal: &str, right: Right, topic: &str) -> bool {
        self.allow.contains(&right) && matches_pattern(&self.principal, principal) && matches_pattern(&self.topic, topic)
    }
}

/// An exact name, or a prefix with `*` at its end.
pub fn matches_pattern(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => pattern == name,
    }
}

fn every() -> String {
    "*".to_owned()
}

impl Config {
    /// The built-in defaults alone.
    pub fn defaults() -> Config {
        Config::load(&Sources::default()).expect("the embedded defaults are valid; a test loads them")
    }

    /// Defaults, then the file, then the environment, then `--set`; checked.
    pub fn load(sources: &Sources) -> Result<Config, ConfigError> {
        let (mut config, origins) = layers::merge(sources)?;
        check::memory(&config, &origins)?;
        memory::fit(&mut config, &origins, sources.memory_allowed);
        check::relations(&config, &origins)?;
        Ok(config)
    }

    /// Whether any rule gives `principal` the right on `topic`.
    pub fn permits(&self, principal: &str, right: Right, topic: &str) -> bool {
        self.acl.iter().any(|rule| rule.permits(principal, right, topic))
    }

    /// The effective values as TOML, without comments.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("every field has a TOML form; a test renders the defaults")
    }
}
