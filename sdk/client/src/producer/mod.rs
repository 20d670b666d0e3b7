//! The producer: records go into the batches of their partitions, batches in order onto one lane.
//!
//! [`state`] holds batches and lane behind one lock and decides; [`drive`] is the task that writes what it decides and makes new connections; acks
//! arrive from the connection's control reader. A record's way back is its batch's completion in [`delivery`].

mod delivery;
mod drive;
mod state;

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use tokio::{sync::Notify, task::JoinHandle, time::Instant};
use weir_protocol::{AckItem, NackItem, ProtocolError};

pub use delivery::{Ack, Delivery};

use crate::{Client, ClientError, ProducerConfig, ProducerTicket, session::LaneEvents};
use state::{Admission, State};

/// A record to send; everything in it is copied into its batch.
#[derive(Debug, Clone, Copy, Default)]
pub struct Record<'a> {
    /// What chooses the partition.
    pub key: Option<&'a [u8]>,
    /// The content.
    pub value: Option<&'a [u8]>,
    /// Milliseconds since 1970; `None`: now.
    pub timestamp: Option<i64>,
    /// Names and values beside it.
    pub headers: &'a [(&'a [u8], Option<&'a [u8]>)],
    /// The partition; `None`: the partitioner chooses.
    pub partition: Option<u32>,
}

impl<'a> Record<'a> {
    /// With a value only.
    pub fn value(value: &'a [u8]) -> Record<'a> {
        Record { value: Some(value), ..Record::default() }
    }

    /// With a key and a value.
    pub fn keyed(key: &'a [u8], value: &'a [u8]) -> Record<'a> {
        Record { key: Some(key), value: Some(value), ..Record::default() }
    }
}

/// What the handle, the task and the control reader share.
pub(crate) struct Shared {
    pub(crate) config: ProducerConfig,
    state: Mutex<State>,
    /// The task has something to do.
    work: Notify,
    /// There may be room for records again.
    space: Notify,
    /// Batches were settled, or the producer failed.
    settled: Notify,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Resolves what was settled under the lock, and wakes who waits for it.
    fn settle(&self, mut state: MutexGuard<'_, State>) {
        let done = state.take_settled();
        let (waiting, work) = (std::mem::take(&mut state.space_waiters) > 0, state.has_work());
        drop(state);
        let settled = !done.is_empty();
        done.into_iter().for_each(|(batch, outcome)| batch.resolve(outcome));
        if waiting {
            self.space.notify_waiters();
        }
        if settled {
            self.settled.notify_waiters();
        }
        if work {
            self.work.notify_one();
        }
    }

    /// Fails everything, and every later send.
    fn fail(&self, error: ClientError) {
        let mut state = self.lock();
        state.fail(error);
        state.space_waiters += 1; // all of them are to see it
        self.settle(state);
        self.settled.notify_waiters();
    }
}

/// Acks of one connection's lane; those of an earlier connection are ignored.
struct LaneOfConnection {
    shared: Arc<Shared>,
    generation: u64,
}

impl LaneEvents for LaneOfConnection {
    fn on_acks(&self, items: &[AckItem]) -> Result<(), ProtocolError> {
        let mut state = self.shared.lock();
        if state.generation == self.generation {
            items.iter().try_for_each(|item| state.on_ack(item))?;
        }
        self.shared.settle(state);
        Ok(())
    }

    fn on_nack(&self, item: NackItem) -> Result<(), ProtocolError> {
        let mut state = self.shared.lock();
        if state.generation == self.generation {
            state.lane.on_nack(item)?;
        }
        self.shared.settle(state);
        Ok(())
    }

    fn is_live(&self) -> bool {
        let state = self.shared.lock();
        state.failed.is_none() && !state.closing
    }
}

/// Sends records of one topic on one lane, in order a partition. Close it: what is dropped is not waited for.
pub struct Producer {
    shared: Arc<Shared>,
    client: Client,
    task: Option<JoinHandle<()>>,
}

impl Producer {
    pub(crate) async fn start(client: Client, config: ProducerConfig) -> Result<Producer, ClientError> {
        let (shared, connected) = drive::open(&client.inner, config).await?;
        let task = tokio::spawn(drive::run(client.inner.clone(), shared.clone(), connected));
        Ok(Producer { shared, client, task: Some(task) })
    }

    /// Puts a record into its partition's batch; waits only while the buffer is full. The answer resolves once the record is durable.
    pub async fn send(&self, record: Record<'_>) -> Result<Delivery, ClientError> {
        self.admitted(|state, now| state.add(&record, now_ms(), now)).await
    }

    /// Sends a batch that was built before, as it is, behind what the partition already holds; its [`Ack`] is the first record's. For load generators and
    /// forwarders.
    pub async fn send_batch(&self, partition: u32, batch: impl Into<Bytes>, record_count: u32) -> Result<Delivery, ClientError> {
        let batch: Bytes = batch.into();
        self.admitted(|state, now| state.add_batch(partition, batch.clone(), record_count, now)).await
    }

    async fn admitted(
        &self,
        mut add: impl FnMut(&mut State, Instant) -> Result<Admission, ClientError>,
    ) -> Result<Delivery, ClientError> {
        loop {
            let space = self.shared.space.notified();
            {
                let mut state = self.shared.lock();
                match add(&mut state, Instant::now())? {
                    Admission::Added { delivery, poke } => {
                        drop(state);
                        if poke {
                            self.shared.work.notify_one();
                        }
                        return Ok(delivery);
                    }
                    Admission::Full => state.space_waiters += 1,
                }
            }
            // Created before the check: `notify_waiters` wakes it even if it has not been polled.
            space.await;
        }
    }

    /// Waits until everything sent so far is durable or has failed. Errors only where the producer as a whole has failed.
    pub async fn flush(&self) -> Result<(), ClientError> {
        let pushed = {
            let mut state = self.shared.lock();
            state.close_all(Instant::now());
            state.pushed_batches
        };
        self.shared.work.notify_one();
        loop {
            let settled = self.shared.settled.notified();
            {
                let state = self.shared.lock();
                if let Some(error) = &state.failed {
                    return Err(error.clone());
                }
                if state.settled_batches >= pushed {
                    return Ok(());
                }
            }
            settled.await;
        }
    }

    /// Flushes and ends the lane.
    pub async fn close(mut self) -> Result<(), ClientError> {
        let flushed = self.flush().await;
        self.shared.lock().closing = true;
        self.shared.work.notify_one();
        if let Some(task) = self.task.take() {
            let _ = task.await;
        }
        flushed
    }

    /// The sequence of the next record: how many records of this lane there ever were, so that a restarted application knows what to send.
    pub fn next_sequence(&self) -> u64 {
        self.shared.lock().next_sequence()
    }

    /// Everything of the lane below it is durable.
    pub fn durable_sequence(&self) -> u64 {
        self.shared.lock().lane.durable_sequence()
    }

    /// Partitions of the topic.
    pub fn partitions(&self) -> u32 {
        self.shared.lock().partitions()
    }

    /// The lane's identity and position for [`Client::publish_once`]; flush first.
    pub fn ticket(&self) -> ProducerTicket {
        let state = self.shared.lock();
        ProducerTicket {
            producer_id: state.producer_id,
            producer_epoch: state.producer_epoch,
            lane: self.shared.config.lane,
            topic: self.shared.config.topic.clone(),
            partitions: state.partitions(),
            next_sequence: state.lane.durable_sequence(),
        }
    }

    /// The client it belongs to.
    pub fn client(&self) -> &Client {
        &self.client
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
            let error = ClientError::Closed { what: "the producer" };
            let session = {
                let mut state = self.shared.lock();
                state.session.take().filter(|_| !state.lane.is_empty())
            };
            // What is under way may become durable or not: only another connection can tell where the lane is then.
            if let Some(session) = session.and_then(|session| session.upgrade()) {
                session.leave();
                session.connection.close(0u32.into(), b"");
            }
            self.shared.fail(error);
        }
    }
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    since.as_millis() as i64
}
