//! Reading: ranges, chunks of stored batches, and being told when a partition has more.
//!
//! A subscription owns a [`Tail`]. The log calls [`Tails::committed`] with the partitions that just grew; each tail that
//! watches one of them notes it once and wakes its task once. Where nobody watches, a commit costs one atomic load.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use weir_storage::{LogHandle, PartitionId, ReadChunk, ReadError, ReadRequest};

use super::Refusal;
use super::topics::Topic;
use super::writer::lock;

/// First pause when the reader of old frames is busy; it doubles up to the longest.
const BUSY_PAUSE: Duration = Duration::from_millis(2);
const BUSY_PAUSE_MAX: Duration = Duration::from_millis(250);

/// Everybody who waits for partitions to grow.
#[derive(Debug, Default)]
pub(crate) struct Tails {
    watched: AtomicUsize,
    by_partition: RwLock<HashMap<PartitionId, Vec<Watch>>>,
}

#[derive(Debug, Clone)]
struct Watch {
    tail: Arc<TailState>,
    /// Which of the tail's partitions it is.
    index: usize,
}

#[derive(Debug)]
struct TailState {
    /// One flag a watched partition: set while it is in `grown`, so that `grown` is bounded.
    flags: Box<[AtomicBool]>,
    grown: Mutex<Vec<usize>>,
    wake: Notify,
}

/// One subscription's ear at the log.
#[derive(Debug)]
pub struct Tail {
    tails: Arc<Tails>,
    partitions: Box<[PartitionId]>,
    state: Arc<TailState>,
}

impl Tails {
    /// The log made records of these partitions durable.
    pub(crate) fn committed(&self, partitions: &[PartitionId]) {
        if self.watched.load(Ordering::Acquire) == 0 {
            return;
        }
        let by_partition = self.by_partition.read().unwrap_or_else(PoisonError::into_inner);
        for partition in partitions {
            for watch in by_partition.get(partition).map(Vec::as_slice).unwrap_or_default() {
                watch.tail.grew(watch.index);
            }
        }
    }

    /// Watches partitions from now on.
    pub(crate) fn watch(self: &Arc<Self>, partitions: Vec<PartitionId>) -> Tail {
        let state = Arc::new(TailState {
            flags: partitions.iter().map(|_| AtomicBool::new(false)).collect(),
            grown: Mutex::default(),
            wake: Notify::new(),
        });
        let mut by_partition = self.by_partition.write().unwrap_or_else(PoisonError::into_inner);
        for (index, partition) in partitions.iter().enumerate() {
            by_partition.entry(*partition).or_default().push(Watch { tail: state.clone(), index });
        }
        self.watched.fetch_add(partitions.len(), Ordering::AcqRel);
        Tail { tails: self.clone(), partitions: partitions.into(), state }
    }
}

impl TailState {
    fn grew(&self, index: usize) {
        if !self.flags[index].swap(true, Ordering::AcqRel) {
            lock(&self.grown).push(index);
            self.wake.notify_one();
        }
    }
}

impl Tail {
    /// Waits until partitions grew; moves their positions in `watch`'s list into `into`.
    pub async fn grown(&self, into: &mut Vec<usize>) {
        loop {
            let notified = self.state.wake.notified();
            if self.take(into) {
                return;
            }
            notified.await;
        }
    }

    fn take(&self, into: &mut Vec<usize>) -> bool {
        let mut grown = lock(&self.state.grown);
        for index in grown.drain(..) {
            // Cleared before the caller looks at the partition: growth after that is noted again.
            self.state.flags[index].store(false, Ordering::Release);
            into.push(index);
        }
        !into.is_empty()
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        let mut by_partition = self.tails.by_partition.write().unwrap_or_else(PoisonError::into_inner);
        for partition in &self.partitions {
            if let Some(watches) = by_partition.get_mut(partition) {
                watches.retain(|watch| !Arc::ptr_eq(&watch.tail, &self.state));
                if watches.is_empty() {
                    by_partition.remove(partition);
                }
            }
        }
        self.tails.watched.fetch_sub(self.partitions.len(), Ordering::AcqRel);
    }
}

/// Reads stored batches from `offset` on; waits out a busy reader.
pub(crate) async fn read(
    log: &LogHandle,
    topic: &Topic,
    partition: u32,
    offset: i64,
    bytes_max: usize,
) -> Result<ReadChunk, Refusal> {
    let number = topic.partition(partition)?;
    let mut pause = BUSY_PAUSE;
    loop {
        let (sender, receiver) = oneshot::channel();
        let reply = Box::new(move |result| {
            // The subscription may be gone; then nobody needs the chunk.
            let _ = sender.send(result);
        });
        log.read(ReadRequest { partition: number, offset, bytes_max }, reply);
        match receiver.await.map_err(|_| Refusal::ShuttingDown)? {
            Ok(chunk) => return Ok(chunk),
            Err(ReadError::Busy) => {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(BUSY_PAUSE_MAX);
            }
            Err(error) => return Err(read_refusal(error, topic, partition, offset)),
        }
    }
}

/// First offset at or after a time, with that record's timestamp; none where no record is that young.
pub(crate) async fn offset_for_timestamp(
    log: &LogHandle,
    topic: &Topic,
    partition: u32,
    timestamp_ms: i64,
) -> Result<Option<(i64, i64)>, Refusal> {
    let number = topic.partition(partition)?;
    let mut pause = BUSY_PAUSE;
    loop {
        let (sender, receiver) = oneshot::channel();
        let reply = Box::new(move |result| {
            let _ = sender.send(result);
        });
        log.offset_for_timestamp(number, timestamp_ms, reply);
        match receiver.await.map_err(|_| Refusal::ShuttingDown)? {
            Ok(found) => return Ok(found),
            Err(ReadError::Busy) => {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(BUSY_PAUSE_MAX);
            }
            Err(error) => return Err(read_refusal(error, topic, partition, 0)),
        }
    }
}

fn read_refusal(error: ReadError, topic: &Topic, partition: u32, offset: i64) -> Refusal {
    let topic = topic.name.to_string();
    match error {
        ReadError::UnknownPartition => Refusal::UnknownTopic { topic },
        ReadError::OutOfRange { start, high_watermark } => {
            Refusal::OutOfRange { topic, partition, offset, start, high_watermark }
        }
        ReadError::Gap { from, to } => Refusal::DataGap { topic, partition, from, to },
        ReadError::Io(reason) => Refusal::StorageFailed { reason },
        other => Refusal::Quota { what: other.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grown_now(tail: &Tail) -> Vec<usize> {
        let mut grown = Vec::new();
        tail.take(&mut grown);
        grown
    }

    #[test]
    fn a_tail_hears_of_its_partitions_once_until_it_looks() {
        let tails = Arc::new(Tails::default());
        let tail = tails.watch(vec![PartitionId(4), PartitionId(9)]);
        tails.committed(&[PartitionId(9), PartitionId(5)]);
        tails.committed(&[PartitionId(9)]);
        assert_eq!(grown_now(&tail), [1]);
        assert_eq!(grown_now(&tail), [] as [usize; 0]);
        tails.committed(&[PartitionId(4), PartitionId(9)]);
        assert_eq!(grown_now(&tail), [0, 1]);
    }

    #[test]
    fn a_dropped_tail_leaves_nothing_behind() {
        let tails = Arc::new(Tails::default());
        let stays = tails.watch(vec![PartitionId(1)]);
        drop(tails.watch(vec![PartitionId(1), PartitionId(2)]));
        assert_eq!(tails.watched.load(Ordering::Acquire), 1);
        assert_eq!(tails.by_partition.read().unwrap().len(), 1);
        tails.committed(&[PartitionId(1)]);
        assert_eq!(grown_now(&stays), [0]);
    }
}
