//! The log engine: everything Weir acknowledges goes through here to the disk, and every consumer reads it back from here.
//!
//! One record's way through this crate: [`LogHandle::submit`] queues an [`Append`] for the log thread (`log.rs`); the core
//! (`core/`, no clock, file or thread) gives it offsets and gathers it into the next frame (`format/frame.rs`); one durable write
//! through a [`disk::Disk`] later the view (`view.rs`) shows it to readers and its [`Outcome`] goes to the caller. After a
//! crash `recovery/` reads the segments back. `FORMAT.md` has every byte; `sim/` runs all of it over a faulty disk.
#![deny(unsafe_code)]

pub mod backup;
mod batches;
pub mod check;
pub mod cold;
pub mod config;
pub mod core;
pub mod disk;
pub mod dump;
pub mod format;
mod inflate;
mod lock;
mod log;
mod mirror;
mod read;
pub mod recovery;
mod replace;
pub mod report;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
mod sorter;
pub mod stats;
pub mod table;
mod task;
pub mod types;
pub mod view;
mod volume_dir;
pub mod volumes;

pub use self::core::VolumeError;
pub use cold::manifest::VolumeUse;
pub use config::{ClassPolicy, ColdConfig, LogConfig, PromoteConfig};
pub use disk::BackendChoice;
pub use disk::DiskProbe;
pub use disk::mirror::{CopyState, CopyStatus, MirrorStatus};
pub use format::snapshot::REMEMBERED_MAX;
pub use log::{CommitListener, LOG_THREAD, Log, LogHandle};
pub use read::{ReadReply, TimestampReply};
pub use report::{Damage, Gap, LogError, OpenError, RecoveryReport};
pub use stats::{Latency, LogStats};
pub use types::{
    Append, AppendEntry, AppendError, BaseOffsets, ClassId, CompletionSink, Durability, Lsn, MetaOp, Outcome, PartitionBounds,
    PartitionId, PartitionOp, ProducerKey, ProducerMark, ProducerState, ReadChunk, ReadError, ReadRequest,
};
pub use volume_dir::VolumeStatus;
pub use volumes::Health;
