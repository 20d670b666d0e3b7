//! The log as its users hold it.

use std::sync::Arc;

use crate::config::LogConfig;
use crate::report::{LogError, OpenError, RecoveryReport};
use crate::stats::LogStats;
use crate::types::*;

/// What a read answers with.
pub type ReadReply = Box<dyn FnOnce(Result<ReadChunk, ReadError>) + Send>;
/// What a search by time answers with: offset and timestamp of the first record that is not older.
pub type TimestampReply = Box<dyn FnOnce(Result<Option<(i64, i64)>, ReadError>) + Send>;
/// Told which partitions' high watermark rose.
pub type CommitListener = Box<dyn Fn(&[PartitionId]) + Send + Sync>;

/// Owns the log thread and the background reader.
pub struct Log {}

impl Log {
    /// Opens or makes the volume in `config.dir`, recovers it and starts the log thread.
    pub fn open(config: LogConfig) -> Result<(Log, RecoveryReport), OpenError> {
        Err(OpenError::BadConfig(format!("{} cannot be opened by this build", config.dir.display())))
    }

    /// For everybody who appends or reads.
    pub fn handle(&self) -> LogHandle {
        LogHandle {}
    }

    /// Drains, makes the last frame provable, marks the volume as closed.
    pub fn shutdown(self) -> Result<(), LogError> {
        Ok(())
    }
}

/// A way to the log, cheap to clone.
#[derive(Clone)]
pub struct LogHandle {}

impl LogHandle {
    /// Queues an append. Never blocks: the caller bounds its bytes in flight. The answer goes to `sink` with `tag`.
    pub fn submit(&self, append: Append, tag: u64, sink: &Arc<dyn CompletionSink>) {
        drop(append);
        sink.complete(&mut vec![(tag, Outcome::Refused(AppendError::ShuttingDown))]);
    }

    /// Appends and waits. Not for executor threads.
    pub fn append_blocking(&self, append: Append) -> Outcome {
        drop(append);
        Outcome::Refused(AppendError::ShuttingDown)
    }

    /// Durable offsets of a partition.
    pub fn bounds(&self, _partition: PartitionId) -> Option<PartitionBounds> {
        None
    }

    /// Reads: inline from memory at the tail, else by the background reader.
    pub fn read(&self, _request: ReadRequest, reply: ReadReply) {
        reply(Err(ReadError::UnknownPartition));
    }

    /// Offset and timestamp of the first record at or after `timestamp_ms`.
    pub fn offset_for_timestamp(&self, _partition: PartitionId, _timestamp_ms: i64, reply: TimestampReply) {
        reply(Err(ReadError::UnknownPartition));
    }

    /// Durable state of a producer's lane.
    pub fn producer(&self, _key: ProducerKey) -> Option<ProducerState> {
        None
    }

    /// Durable value of a metadata key.
    pub fn meta(&self, _key: &[u8]) -> Option<Vec<u8>> {
        None
    }

    /// All durable metadata whose key starts with `prefix`, in order of the keys.
    pub fn meta_scan(&self, _prefix: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
        Vec::new()
    }

    /// Calls `listener` from the log thread after each commit, with the partitions that grew.
    pub fn on_commit(&self, listener: CommitListener) {
        drop(listener);
    }

    /// Counters.
    pub fn stats(&self) -> LogStats {
        LogStats::default()
    }
}
