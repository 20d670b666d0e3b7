//! What can go wrong, grouped by who can act: operator (host), plugin author, producer.
use std::fmt;
use std::sync::Arc;

use thiserror::Error;

use crate::manifest::ManifestError;

/// The host could not be set up: the operator's turn.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HostError {
    /// wasmtime refused the settings or the address space.
    #[error(
        "the Wasm engine could not start ({reason}); lower pipeline.instances_max or pipeline.memory_mib_max, or raise the process's address space limit"
    )]
    Engine {
        /// What wasmtime said.
        reason: String,
    },
    /// A thread could not be started.
    #[error("a pipeline thread could not be started ({0}); raise the process's thread limit")]
    Thread(#[from] std::io::Error),
    /// A limit contradicts another.
    #[error("{0}")]
    Limits(&'static str),
}

/// A plugin cannot be used: its author's or the attaching operator's turn.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PluginError {
    /// The file is too large.
    #[error("the plugin file has {bytes} bytes, the limit is {max}; build it with opt-level \"s\" and strip = true")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// Not WebAssembly.
    #[error("this is not a WebAssembly file; give the file that `weir plugin build` wrote")]
    NotWasm,
    /// A core module.
    #[error("this is a core WebAssembly module, not a component; pack it with `weir plugin build`")]
    CoreModule,
    /// No or a bad manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// wasmtime refuses it.
    #[error("the component is not valid: {reason}; rebuild it, with wasm features limited to the WebAssembly 2.0 set")]
    Invalid {
        /// What wasmtime said.
        reason: String,
    },
    /// It wants something that is not there, or not granted.
    #[error("the plugin imports `{import}`, {advice}")]
    Import {
        /// The import's name.
        import: String,
        /// What to do.
        advice: String,
    },
    /// It does not offer what the world says.
    #[error(
        "the plugin does not export `{export}` as world weir:plugin/transform@1.0.0 says ({reason}); build it with this version's SDK"
    )]
    Export {
        /// The export.
        export: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// It needs more than it may have.
    #[error(
        "plugin {plugin} {version} cannot be instantiated: {reason}; raise [limits] memory_mib in its manifest (the host allows {memory_mib_max} MiB)"
    )]
    Instantiate {
        /// The plugin's name.
        plugin: Arc<str>,
        /// Its version.
        version: Arc<str>,
        /// What wasmtime said.
        reason: String,
        /// The host's limit.
        memory_mib_max: usize,
    },
    /// All instances are in use.
    #[error("all {max} plugin instances are in use; detach a pipeline or raise pipeline.instances_max")]
    InstancesExhausted {
        /// The limit.
        max: u32,
    },
    /// `init` refused the configuration.
    #[error("plugin {plugin} {version} refuses its configuration: {message}; correct \"config\" in the pipeline")]
    Config {
        /// The plugin's name.
        plugin: Arc<str>,
        /// Its version.
        version: Arc<str>,
        /// What it said.
        message: String,
    },
    /// `init` trapped or took too long.
    #[error("plugin {plugin} {version} fails in init ({kind}): {message}; its author has to correct it")]
    Init {
        /// The plugin's name.
        plugin: Arc<str>,
        /// Its version.
        version: Arc<str>,
        /// How it failed.
        kind: FailureKind,
        /// What is known.
        message: String,
    },
    /// A pipeline's outputs do not fit the plugin's.
    #[error("plugin {plugin} {version}: {message}")]
    Outputs {
        /// The plugin's name.
        plugin: Arc<str>,
        /// Its version.
        version: Arc<str>,
        /// What does not fit, and what to do.
        message: String,
    },
    /// Too many or no stages.
    #[error("a pipeline has 1 to {max} stages, this one has {stages}; detach the pipeline or split it over two topics")]
    Stages {
        /// Stages given.
        stages: usize,
        /// Stages allowed.
        max: usize,
    },
}

/// A module cannot be packed: the plugin author's turn.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PackError {
    /// The bytes are no core module.
    #[error("this is not a core WebAssembly module; build the plugin for wasm32-unknown-unknown and give its .wasm file")]
    NotModule,
    /// They are a component already.
    #[error("this is already a component; attach it as it is")]
    AlreadyComponent,
    /// The manifest is wrong.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The module does not fit the world.
    #[error("the module does not fit world weir:plugin/transform@1.0.0: {reason}; build it with this version's SDK")]
    World {
        /// What the packer said.
        reason: String,
    },
}

/// How a plugin failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum FailureKind {
    /// It trapped: unreachable, out of bounds, stack overflow, division by zero.
    Trap,
    /// It took longer than its batch time.
    Timeout,
    /// It wanted more memory than its limit.
    Memory,
    /// It emitted more than its limit.
    Output,
    /// It returned what breaks a rule of the ABI.
    Garbage,
    /// It rejected the record: the plugin works, the record is bad.
    Reject,
    /// It refused the whole batch for good.
    Fatal,
    /// It asked for the batch to be sent again.
    Retry,
    /// It failed in `init` when its instance was replaced.
    Init,
    /// It was not asked, because it failed too often just before.
    CircuitOpen,
}

impl FailureKind {
    /// All kinds, in the order of [`FailureKind::index`].
    pub const ALL: [Self; 10] = [
        Self::Trap,
        Self::Timeout,
        Self::Memory,
        Self::Output,
        Self::Garbage,
        Self::Reject,
        Self::Fatal,
        Self::Retry,
        Self::Init,
        Self::CircuitOpen,
    ];

    /// The word in headers, metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trap => "trap",
            Self::Timeout => "timeout",
            Self::Memory => "memory",
            Self::Output => "output",
            Self::Garbage => "garbage",
            Self::Reject => "reject",
            Self::Fatal => "fatal",
            Self::Retry => "retry",
            Self::Init => "init",
            Self::CircuitOpen => "circuit-open",
        }
    }

    /// Place in [`FailureKind::ALL`].
    #[must_use]
    pub fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One record, or a run of records, that a plugin failed on.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Failure {
    /// The plugin's name.
    pub plugin: Arc<str>,
    /// Its version.
    pub version: Arc<str>,
    /// Which stage of the pipeline, from 0.
    pub stage: usize,
    /// Index of the (first) record in the producer's batch.
    pub record_index: u32,
    /// How many records the failure covers: 1, or more where the search for the one to blame was given up.
    pub records: u32,
    /// The record's key, cut at 64 bytes.
    pub key: Option<Vec<u8>>,
    /// How it failed.
    pub kind: FailureKind,
    /// What the plugin or the host said.
    pub message: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { plugin, version, record_index, records, kind, message, .. } = self;
        write!(f, "plugin {plugin} {version} failed ({kind}) on record {record_index}")?;
        if *records > 1 {
            write!(f, " and the {} after it", records - 1)?;
        }
        if let Some(key) = &self.key {
            write!(f, " with key \"{}\"", key.escape_ascii())?;
        }
        write!(f, ": {message}")
    }
}

/// A batch did not get through its pipeline; nothing of it counts.
#[derive(Debug, Clone, Error)]
#[non_exhaustive]
pub enum RunError {
    /// A plugin failed on a record and the policy is `fail`.
    #[error("batch refused: {0}; correct the record, or the pipeline's on_failure")]
    Rejected(Failure),
    /// A plugin asks for the batch again.
    #[error("batch postponed: {0}; send it again later")]
    Retry(Failure),
    /// No instance or place in a queue is free.
    #[error("the pipeline is overloaded ({reason}); send the batch again later")]
    Overloaded {
        /// What ran out.
        reason: &'static str,
    },
    /// The batch cannot be read.
    #[error("the batch cannot go through the pipeline: {0}")]
    BadInput(#[from] weir_batch::BatchError),
    /// The batch is too large to be laid out for a plugin.
    #[error("the batch needs {bytes} bytes in the pipeline, the limit is {max}; send smaller batches")]
    TooLarge {
        /// Bytes needed.
        bytes: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// The pool is shutting down.
    #[error("the node is shutting down; send the batch again")]
    ShuttingDown,
}

/// What a plugin said, cut to a length and made safe for a log line.
pub(crate) fn clean_message(message: &str, bytes_max: usize) -> String {
    let mut clean: String = message.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if clean.len() > bytes_max {
        let end = (0..=bytes_max).rev().find(|&at| clean.is_char_boundary(at)).unwrap_or(0);
        clean.truncate(end);
        clean.push('…');
    }
    clean.trim_end().to_owned()
}
