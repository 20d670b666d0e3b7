//! The load generator behind `weir bench`: profiles that speak the real protocol through the client library, and the floors
//! they are held against.
//!
//! A profile (`profile`) drives a node and counts only what was acknowledged or received. A floor (`floor`) is what the same
//! machine does in the same minute without Weir: raw durable writes, a raw QUIC stream. A [`Report`] puts both beside what
//! the machine is (`host`) and what the processes cost (`process`). README.md says how to read each number.
#![forbid(unsafe_code)]

pub mod floor;
mod host;
mod lines;
mod load;
mod process;
pub mod profile;
mod report;

pub use host::Host;
pub use load::{Load, Payload};
pub use process::Usage;
pub use report::{Floor, Latency, Report};

/// Why a measurement ended without a result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BenchError {
    /// The node refused or went away.
    #[error("the node: {0}")]
    Client(#[from] weir_client::ClientError),
    /// A floor could not be measured.
    #[error("the floor {floor}: {reason}; measure in another directory, or leave it out with --no-floors")]
    Floor {
        /// Which one.
        floor: &'static str,
        /// What went wrong.
        reason: String,
    },
    /// A connection without the client library failed.
    #[error("a connection to the node: {0}; look into the node's log")]
    Connection(String),
    /// The node said what the protocol does not know.
    #[error("the node: {0}")]
    Protocol(#[from] weir_protocol::ProtocolError),
    /// A batch could not be built.
    #[error("building a batch: {0}")]
    Batch(#[from] weir_batch::BatchError),
    /// The plugin cannot be used.
    #[error("the plugin: {0}")]
    Plugin(#[from] weir_pipeline::PluginError),
    /// It cannot be packed.
    #[error("the plugin: {0}")]
    Pack(#[from] weir_pipeline::PackError),
    /// The pipeline's threads or engine did not start.
    #[error("the pipeline: {0}")]
    Host(#[from] weir_pipeline::HostError),
    /// The log engine did not open.
    #[error("opening the log: {0}")]
    Open(#[from] weir_storage::OpenError),
    /// The log engine stopped.
    #[error("the log: {0}")]
    Log(#[from] weir_storage::LogError),
    /// The log engine refused an append.
    #[error("appending: {0}")]
    Append(#[from] weir_storage::AppendError),
    /// Nothing was measured.
    #[error("{0}")]
    Nothing(&'static str),
}
