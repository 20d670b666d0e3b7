//! What goes into the log and what comes out of it.
//!
//! A front door hands an [`Append`] to [`crate::LogHandle::submit`]; the log thread gives it offsets, puts it into a frame, and
//! answers with an [`Outcome`] through the caller's [`CompletionSink`] once that frame is on disk. Readers come back with a
//! [`ReadRequest`] and get whole record batches.

use std::fmt;
use std::ops::Deref;

use bytes::Bytes;

/// Number of a frame: from 1, one more each frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Number of a partition in this node, never given twice. Small numbers are best: tables are indexed by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionId(pub u32);

impl fmt::Display for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Retention class: partitions that are kept by the same rules share one, and share cold segments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClassId(pub u32);

impl fmt::Display for ClassId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One lane of one producer: the unit in which sequences count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProducerKey {
    /// Number of the producer, given out by the broker.
    pub id: i64,
    /// Its lane.
    pub lane: u32,
}

/// What an append consumes of its producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerMark {
    /// Which lane.
    pub key: ProducerKey,
    /// An epoch lower than the stored one is fenced off, a higher one is stored.
    pub epoch: i16,
    /// Number of the first record of this batch in its lane. Goes on over epochs.
    pub base_sequence: u64,
    /// Records of the lane this append consumes; a pipeline may store fewer or more.
    pub sequence_count: u32,
    /// The partition whose base offset the producer is told.
    pub partition: PartitionId,
}

/// Record batches for one partition.
#[derive(Clone, Debug)]
pub struct AppendEntry {
    /// Where they go.
    pub partition: PartitionId,
    /// One or more whole record batches; the caller has verified their CRCs.
    pub batches: Bytes,
    /// Records in all of them together.
    pub record_count: u32,
    /// Highest record timestamp, ms.
    pub max_timestamp: i64,
}

/// A change of the small durable key-value state that lives in the log: topics, producers, consumer positions, pipelines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetaOp {
    /// Set `key` to `value`.
    Put {
        /// Key.
        key: Vec<u8>,
        /// New value.
        value: Vec<u8>,
    },
    /// Remove `key`; a missing key is no error.
    Delete {
        /// Key.
        key: Vec<u8>,
    },
}

/// Birth, change and death of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartitionOp {
    /// Start at offset 0; opening an open partition changes nothing. Takes effect before the entries of its append. An id should be used
    /// once: where damage has taken the frames that told of it, or the one that dropped it, and they are back while the log is open, the
    /// sorter may take what it had before for what it has now.
    Open(PartitionId),
    /// Raise its first offset: what lies before is gone for readers. A lower one, or one behind the end, changes nothing.
    /// Takes effect after `Open` and before the entries.
    RaiseStart(PartitionId, i64),
    /// From now on its records are kept by the rules of another class. Takes effect with `RaiseStart`.
    SetClass(PartitionId, ClassId),
    /// Forget it and its records. Takes effect after the entries of its append.
    Drop(PartitionId),
}

/// One atomic change: all of it lands in one frame, or nothing of it.
#[derive(Clone, Debug, Default)]
pub struct Append {
    /// Record batches, in order.
    pub entries: Vec<AppendEntry>,
    /// The producer whose sequence this consumes.
    pub mark: Option<ProducerMark>,
    /// Metadata that must commit with it.
    pub meta: Vec<MetaOp>,
    /// Partitions to open or drop with it.
    pub partitions: Vec<PartitionOp>,
}

impl Append {
    /// Whether it does nothing but let go of something, or change by which rules it is kept: what must be possible on a full disk.
    pub(crate) fn lets_go(&self) -> bool {
        let no_open = !self.partitions.iter().any(|op| matches!(op, PartitionOp::Open(_)));
        let deletes = self.meta.iter().all(|op| matches!(op, MetaOp::Delete { .. }));
        self.entries.is_empty() && self.mark.is_none() && no_open && (deletes || !self.partitions.is_empty())
    }
}

/// One base offset an entry; two fit without an allocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseOffsets(Offsets);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Offsets {
    Inline { len: u8, offsets: [i64; 2] },
    Heap(Vec<i64>),
}

impl BaseOffsets {
    /// Room for `entries` offsets.
    pub fn with_capacity(entries: usize) -> BaseOffsets {
        if entries <= 2 {
            return BaseOffsets(Offsets::Inline { len: 0, offsets: [0; 2] });
        }
        BaseOffsets(Offsets::Heap(Vec::with_capacity(entries)))
    }

    /// Adds the offset of the next entry.
    pub fn push(&mut self, offset: i64) {
        match &mut self.0 {
            Offsets::Inline { len, offsets } if usize::from(*len) < offsets.len() => {
                offsets[usize::from(*len)] = offset;
                *len += 1;
            }
            Offsets::Inline { offsets, .. } => {
                let mut heap = offsets.to_vec();
                heap.push(offset);
                self.0 = Offsets::Heap(heap);
            }
            Offsets::Heap(heap) => heap.push(offset),
        }
    }
}

impl Deref for BaseOffsets {
    type Target = [i64];
    fn deref(&self) -> &[i64] {
        match &self.0 {
            Offsets::Inline { len, offsets } => &offsets[..usize::from(*len)],
            Offsets::Heap(heap) => heap,
        }
    }
}

impl From<Vec<i64>> for BaseOffsets {
    fn from(offsets: Vec<i64>) -> BaseOffsets {
        BaseOffsets(Offsets::Heap(offsets))
    }
}

/// How durable a committed append is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Durability {
    /// On one disk, flushed.
    OneCopy,
    /// On two disks, flushed on both.
    TwoCopies,
}

/// The answer to one append.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is on disk.
    Committed {
        /// Frame that holds it.
        lsn: Lsn,
        /// Offset of the first record of each entry.
        base_offsets: BaseOffsets,
        /// What was reached.
        durable: Durability,
    },
    /// Its sequence was stored before, and that is on disk.
    Duplicate {
        /// Offset it got then; -1: so long ago that it is not remembered, or nothing of it was stored.
        base_offset: i64,
        /// Records of the lane it consumed then; 0 where that is not remembered.
        record_count: u32,
    },
    /// Nothing of it was stored; of [`AppendError::LogFailed`] that is not certain.
    Refused(AppendError),
}

/// Why an append was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AppendError {
    /// The producer skipped records.
    #[error("the next sequence of this lane is {expected}: send the records from there on")]
    SequenceGap {
        /// What the log waits for.
        expected: u64,
    },
    /// A newer incarnation of the producer is at work.
    #[error("a producer with epoch {current_epoch} has taken over this lane: stop, or start again with a higher epoch")]
    Fenced {
        /// Epoch stored.
        current_epoch: i16,
    },
    /// Never opened, or dropped.
    #[error("partition {0} is not open: open it first")]
    UnknownPartition(PartitionId),
    /// Does not fit one frame.
    #[error("the append takes {bytes} bytes, a frame holds {max}: send less at a time")]
    TooLarge {
        /// Bytes it needs in a frame.
        bytes: u64,
        /// Bytes a frame holds.
        max: u64,
    },
    /// The key belongs to the log itself.
    #[error("metadata keys that begin with a zero byte belong to the log: use another key")]
    ReservedKey,
    /// Lengths and counts of the batches do not agree with the entry.
    #[error("the record batches are not what their entry says ({reason}): verify them before appending")]
    BadBatches {
        /// What does not fit.
        reason: &'static str,
    },
    /// Metadata, partitions and producers have a bound, because every segment begins with a copy of them.
    #[error("no room for more {what} ({bytes} of {max} bytes): delete some, or raise the limit")]
    MetaFull {
        /// Which part of the state.
        what: &'static str,
        /// Bytes it would take.
        bytes: u64,
        /// Bytes allowed.
        max: u64,
    },
    /// The disk is full: try again when there is room.
    #[error("the disk is full and no segment is free: free space, delete topics or shorten their retention, then send again")]
    Full,
    /// A write failed; the log takes no more. The only refusal that says nothing about the append: what was in flight may be found
    /// on disk after a restart.
    #[error("the log stopped after a failed write ({reason}): check the disk, then restart")]
    LogFailed {
        /// The failure.
        reason: String,
    },
    /// The node is stopping.
    #[error("the log is shutting down: send again after the restart")]
    ShuttingDown,
}

/// Where answers go. Called by the log thread, at most once per commit per sink: keep it short, it holds up every commit.
pub trait CompletionSink: Send + Sync {
    /// Takes the answers, each with the tag given to `submit`; in the order of submission for appends that share a commit.
    fn complete(&self, outcomes: &mut Vec<(u64, Outcome)>);
}

/// Valid offsets of a partition: `start..high_watermark`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionBounds {
    /// First offset kept.
    pub start: i64,
    /// One past the last durable record.
    pub high_watermark: i64,
}

/// What the log knows of a producer's lane, durably.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerState {
    /// Highest epoch seen.
    pub epoch: i16,
    /// Sequence it must go on with.
    pub next_sequence: u64,
}

/// A read of one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadRequest {
    /// Which.
    pub partition: PartitionId,
    /// First offset wanted; the first batch returned is the one that holds it.
    pub offset: i64,
    /// Bytes to return at most; one batch is returned even if it is larger.
    pub bytes_max: usize,
}

/// What a read returns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadChunk {
    /// Whole record batches as stored, base offset set. Empty at the high watermark.
    pub batches: Vec<Bytes>,
    /// Where to go on.
    pub next_offset: i64,
    /// One past the last durable record.
    pub high_watermark: i64,
}

/// Why a read found nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// Never opened, or dropped.
    #[error("partition is not open")]
    UnknownPartition,
    /// Recycled by retention, or not written yet.
    #[error("offset is out of range: valid are {start} to {high_watermark}")]
    OutOfRange {
        /// First offset kept.
        start: i64,
        /// One past the last durable record.
        high_watermark: i64,
    },
    /// The disk lost these records; go on at `to`.
    #[error("records {from} to {to} (exclusive) were damaged on disk: go on at {to}")]
    Gap {
        /// First offset lost.
        from: i64,
        /// First offset behind the damage.
        to: i64,
    },
    /// Too many reads wait for the disk.
    #[error("too many reads are waiting for the disk: try again")]
    Busy,
    /// The disk answered with an error.
    #[error("reading an old frame failed: {0}")]
    Io(String),
}
