//! Why the broker says no. One sentence each, saying whose turn it is; a front door turns it into its protocol's code.

use weir_storage::AppendError;

/// Why the broker refuses a request.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The operator gave the principal no such right.
    #[error("principal {principal:?} has no right to {right} {what}; the operator grants it in [acl]")]
    Unauthorized {
        /// Who asked.
        principal: String,
        /// The missing right.
        right: &'static str,
        /// On what.
        what: String,
    },
    /// No such topic.
    #[error("topic {topic:?} does not exist; create it first")]
    UnknownTopic {
        /// The name asked for.
        topic: String,
    },
    /// No such partition.
    #[error("topic {topic:?} has {partitions} partitions and no partition {partition}; ask for the count again")]
    UnknownPartition {
        /// The topic.
        topic: String,
        /// The partition asked for.
        partition: u32,
        /// How many there are.
        partitions: u32,
    },
    /// The name is taken.
    #[error("topic {topic:?} exists already; choose another name or delete it first")]
    TopicExists {
        /// The topic.
        topic: String,
    },
    /// A field of the request is out of its range.
    #[error("{field}: {problem}")]
    InvalidArgument {
        /// The field.
        field: &'static str,
        /// What is wrong with its value and what is allowed.
        problem: String,
    },
    /// A batch came before its predecessor.
    #[error("the lane expects sequence {expected} next; send from there")]
    SequenceGap {
        /// The next sequence of the lane.
        expected: u64,
    },
    /// A newer connection has the producer name.
    #[error("a newer connection (epoch {current_epoch}) has this producer name; stop sending on this one")]
    Fenced {
        /// The epoch that counts.
        current_epoch: i16,
    },
    /// The offset asked for is not stored.
    #[error("offset {offset} of {topic:?} partition {partition} is not stored; valid are {start} to {high_watermark}")]
    OutOfRange {
        /// The topic.
        topic: String,
        /// The partition.
        partition: u32,
        /// The offset asked for.
        offset: i64,
        /// The first stored offset.
        start: i64,
        /// One behind the last stored offset.
        high_watermark: i64,
    },
    /// A plugin refused a record and the stage's policy is `fail`.
    #[error("the pipeline of {topic:?} refused the batch: {reason}")]
    Rejected {
        /// The topic.
        topic: String,
        /// Plugin, version, record and message.
        reason: String,
    },
    /// The pipeline could not be brought up when the node started.
    #[error(
        "topic {topic:?} takes no records because its pipeline cannot run: {reason}; put the plugin again and attach, or detach the pipeline"
    )]
    PipelineBroken {
        /// The topic.
        topic: String,
        /// What is wrong.
        reason: String,
    },
    /// A limit of the node or principal.
    #[error("limit reached: {what}; wait and try again")]
    Quota {
        /// The limit.
        what: String,
    },
    /// The disk is full; nothing was stored.
    #[error(
        "the disk is full and nothing of the request was stored; free space, delete topics or shorten their retention, then send again"
    )]
    StorageFull,
    /// The log is fenced.
    #[error("the log takes no more writes: {reason}; look at the disk, then restart the node")]
    StorageFailed {
        /// What failed.
        reason: String,
    },
    /// The node stops.
    #[error("the node is shutting down; reconnect")]
    ShuttingDown,
    /// The component is no usable plugin.
    #[error("the plugin is not usable: {reason}")]
    PluginInvalid {
        /// What the plugin's author has to change.
        reason: String,
    },
    /// The plugin is attached somewhere.
    #[error("plugin {name} {version} is attached to topic {topic:?}; detach it there first")]
    PluginInUse {
        /// The plugin.
        name: String,
        /// Its version.
        version: String,
        /// A topic that uses it.
        topic: String,
    },
    /// No such plugin.
    #[error("plugin {name} {version} is not on this node; put it first (`weir plugin list` shows what there is)")]
    UnknownPlugin {
        /// The plugin.
        name: String,
        /// Its version.
        version: String,
    },
    /// The producer id is not of this principal.
    #[error("producer id {id} is not of this principal; say HELLO with the producer name first")]
    UnknownProducer {
        /// The id sent.
        id: i64,
    },
    /// The batch is damaged.
    #[error("the record batch is damaged: {reason}; build and send it again")]
    CorruptBatch {
        /// What is wrong.
        reason: String,
    },
    /// A compacted topic keeps the last record of each key.
    #[error("topic {topic:?} is compacted and record {record} of the batch has no key; send each record with its key")]
    RecordWithoutKey {
        /// The topic.
        topic: String,
        /// Which of the batch, from 0.
        record: usize,
    },
    /// The batch is larger than the node takes.
    #[error("the batch makes {bytes} bytes and the node takes {max}; send smaller batches")]
    BatchTooLarge {
        /// What came.
        bytes: u64,
        /// What is allowed.
        max: u64,
    },
    /// A damaged range of the disk.
    #[error("offsets {from} to {to} of {topic:?} partition {partition} are damaged on disk; go on from {to}")]
    DataGap {
        /// The topic.
        topic: String,
        /// The partition.
        partition: u32,
        /// First lost offset.
        from: i64,
        /// First offset behind the damage.
        to: i64,
    },
    /// Our mistake.
    #[error("internal error: {reason}; report it with the node's log")]
    Internal {
        /// What happened.
        reason: String,
    },
}

impl Refusal {
    /// What a refused append means to the one who asked.
    pub(crate) fn from_append(error: AppendError) -> Refusal {
        match error {
            AppendError::SequenceGap { expected } => Refusal::SequenceGap { expected },
            AppendError::Fenced { current_epoch } => Refusal::Fenced { current_epoch },
            AppendError::UnknownPartition(partition) => {
                Refusal::UnknownTopic { topic: format!("(deleted, partition number {partition})") }
            }
            AppendError::TooLarge { bytes, max } => Refusal::BatchTooLarge { bytes, max },
            AppendError::Full => Refusal::StorageFull,
            AppendError::LogFailed { reason } => Refusal::StorageFailed { reason },
            AppendError::ShuttingDown => Refusal::ShuttingDown,
            other => Refusal::Quota { what: other.to_string() },
        }
    }
}
