//! What is counted up in the log's metadata is given out once. Damage may take the frame that last raised a counter, and then it goes
//! back. So the counters leap ahead at the start that finds such damage: no new topic opens a partition that still holds the records of
//! one that damage hid, and no new producer meets the sequences of another.
//!
//! The leap is durable before anything is given out, and lies behind the snapshot that the log began its new epoch with: the same damage
//! is not met again.

use weir_storage::{Append, LogHandle, MetaOp, Outcome, PartitionOp, RecoveryReport};

use super::topics::{PARTITIONS_OF_TOPIC_MAX, Topics};
use super::{BrokerError, classes, meta, pipelines, producers, topics};

/// More than the lost frames can have opened in a segment of 64 MiB, where a partition opened takes 64 bytes.
const LEAP_MAX: u64 = 1 << 20;

/// Where each begins that was never raised.
const COUNTERS: [(&[u8], u64); 5] = [
    (meta::NEXT_PARTITION, topics::FIRST_NUMBER),
    (meta::NEXT_TOPIC, topics::FIRST_NUMBER),
    (meta::NEXT_PRODUCER, producers::FIRST_ID),
    (meta::NEXT_CLASS, classes::FIRST_NUMBER),
    (meta::NEXT_REVISION, pipelines::FIRST_REVISION),
];

/// Raises all counters where damage has taken metadata. Blocks.
pub(super) fn leap(log: &LogHandle, topics: &Topics, report: &RecoveryReport) -> Result<(), BrokerError> {
    if !report.meta_damaged {
        return Ok(());
    }
    let frames: u64 = report.damage.iter().map(|damage| damage.frames).sum();
    let by = leap_for(frames);
    let mut append = Append::default();
    for (key, first) in COUNTERS {
        let next = meta::read_counter(log.meta(key), first)?.saturating_add(by);
        append.meta.push(MetaOp::Put { key: key.to_vec(), value: meta::counter(next) });
    }
    // Changes nothing; but what only lets go of something has room on a full disk, and so this has.
    let mut partitions = topics.all().into_iter().flat_map(|topic| topic.partitions.clone());
    let open = partitions.find(|partition| log.bounds(*partition).is_some());
    append.partitions.extend(open.map(|partition| PartitionOp::RaiseStart(partition, 0)));
    if let Outcome::Refused(error) = log.append_blocking(append) {
        return Err(BrokerError::Numbers(error));
    }
    tracing::warn!(frames, by, "damage has taken metadata: numbers of what is new leap ahead, so that none is given out twice");
    Ok(())
}

/// A frame holds one new topic at most: the next one waits until it is durable.
fn leap_for(frames: u64) -> u64 {
    frames.max(1).saturating_mul(u64::from(PARTITIONS_OF_TOPIC_MAX)).min(LEAP_MAX)
}
