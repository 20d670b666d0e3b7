//! One batch's way from a front door to the log.
//!
//! ```text
//!   bytes ─▶ check (CRC, records) ─▶ admit (global budget) ─▶ pipeline, if the topic has one ─▶ one append ─▶ Outbox
//! ```
//! A lane's batches reach the log in the order they came, whether they pass a pipeline or not: a batch that would
//! overtake one still in a plugin waits behind it. So a pipeline can be attached, replaced or taken away in mid-stream.
//! Everything a batch causes (its records, records routed to other topics, dead letters, the producer's position) is one
//! append: all of it is durable, or nothing.
//!
//! Per batch: one CRC, one walk over the records, no copy. The log copies the bytes into its frame.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use weir_batch::{HEADER_BYTES, RecordBatch};
use weir_pipeline::{Busy, Input, Output, RunError, ShardPool};
use weir_storage::{Append, AppendEntry, LogHandle, PartitionId, ProducerKey, ProducerMark};

use super::Refusal;
use super::outbox::{BatchId, Decision, InFlight, Outbox};
use super::pipelines::{Attached, Slot};
use super::producers::{InFlightGuard, Producer};
use super::routing;
use super::topics::Topic;
use super::writer::lock;

/// The budget counts in these: a permit a byte would not fit a semaphore of a large node.
const BUDGET_UNIT_BYTES: usize = 1 << 10;
/// How long a lane waits before it offers a batch to a full pipeline queue again.
const PIPELINE_RETRY: Duration = Duration::from_millis(1);

/// Bytes received and not yet durable, over all connections: where back-pressure starts.
#[derive(Debug, Clone)]
pub(crate) struct Budget {
    units: Arc<Semaphore>,
    units_max: usize,
}

impl Budget {
    pub(crate) fn new(bytes: u64) -> Budget {
        let units_max = (bytes as usize / BUDGET_UNIT_BYTES).clamp(1, u32::MAX as usize >> 4);
        Budget { units: Arc::new(Semaphore::new(units_max)), units_max }
    }

    /// Waits for room; whoever waits does not read its stream.
    async fn admit(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Refusal> {
        let units = (bytes / BUDGET_UNIT_BYTES + 1).min(self.units_max) as u32;
        self.units.clone().acquire_many_owned(units).await.map_err(|_| Refusal::ShuttingDown)
    }

    /// Waits until nothing is in flight; nothing is admitted afterwards.
    pub(crate) async fn drain(&self) {
        if let Ok(all) = self.units.acquire_many(self.units_max as u32).await {
            all.forget();
        }
        self.units.close();
    }

    pub(crate) fn bytes_in_flight(&self) -> u64 {
        (self.units_max.saturating_sub(self.units.available_permits()) * BUDGET_UNIT_BYTES) as u64
    }

    /// Whether most of the budget is taken: acks then carry no window while others are in flight.
    pub(crate) fn is_tight(&self) -> bool {
        self.units.available_permits() < self.units_max / 8
    }
}

/// What every lane shares.
pub(crate) struct Ingest {
    pub(crate) log: LogHandle,
    pub(crate) pool: ShardPool,
    pub(crate) budget: Budget,
    pub(crate) batch_bytes_max: u32,
    pub(crate) draining: AtomicBool,
}

impl std::fmt::Debug for Ingest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ingest").field("budget", &self.budget).finish_non_exhaustive()
    }
}

/// A batch whose bytes were verified.
#[derive(Debug)]
pub struct Checked {
    /// Where it goes and what it consumes.
    pub id: BatchId,
    partition: PartitionId,
    max_timestamp: i64,
    batch: Bytes,
}

/// One lane: batches of one producer to one topic, in order.
#[derive(Debug)]
pub struct Lane {
    core: Arc<LaneCore>,
}

#[derive(Debug)]
struct LaneCore {
    ingest: Arc<Ingest>,
    outbox: Arc<Outbox>,
    topic: Arc<Topic>,
    lane: u32,
    producer: Arc<Producer>,
    epoch: i16,
    /// Batches that wait for a pipeline, or behind one that does.
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    /// Number of the front job.
    first: u64,
    jobs: VecDeque<Job>,
}

#[derive(Debug)]
enum Job {
    InPipeline,
    Ready(Box<Ready>),
}

/// A batch that the log may have as soon as its lane's earlier ones are there.
#[derive(Debug)]
enum Ready {
    Append(Append, InFlight),
    Refused(Decision),
}

impl Lane {
    pub(crate) fn new(
        ingest: &Arc<Ingest>,
        outbox: &Arc<Outbox>,
        topic: Arc<Topic>,
        lane: u32,
        producer: Arc<Producer>,
        epoch: i16,
    ) -> Lane {
        let (ingest, outbox) = (ingest.clone(), outbox.clone());
        Lane { core: Arc::new(LaneCore { ingest, outbox, topic, lane, producer, epoch, queue: Mutex::default() }) }
    }

    /// The lane's topic.
    pub fn topic(&self) -> &Arc<Topic> {
        &self.core.topic
    }

    /// All records of the lane below it are durable.
    pub fn next_sequence(&self) -> u64 {
        let key = self.core.key();
        self.core.ingest.log.producer(key).map_or(0, |state| state.next_sequence)
    }

    /// Verifies a batch: CRC over the raw bytes first, then header and records.
    pub fn check(&self, partition: u32, base_sequence: u64, batch: Bytes) -> Result<Checked, Refusal> {
        let max = self.core.ingest.batch_bytes_max as usize;
        if batch.len() > max {
            return Err(Refusal::BatchTooLarge { bytes: batch.len() as u64, max: max as u64 });
        }
        let corrupt = |error: weir_batch::BatchError| Refusal::CorruptBatch { reason: error.to_string() };
        let view = RecordBatch::verify(&batch).map_err(corrupt)?;
        if view.bytes().len() != batch.len() {
            let reason = format!("{} bytes follow it", batch.len() - view.bytes().len());
            return Err(Refusal::CorruptBatch { reason });
        }
        view.check_records().map_err(corrupt)?;
        let (record_count, max_timestamp) = (view.record_count(), view.max_timestamp());
        let topic = &self.core.topic;
        let number = topic.partition(partition)?;
        topic.meters.records_in.inc_by(u64::from(record_count));
        topic.meters.bytes_in.inc_by(batch.len() as u64);
        let id = BatchId { lane: self.core.lane, partition, base_sequence, record_count, batch_bytes: batch.len() };
        Ok(Checked { id, partition: number, max_timestamp, batch })
    }

    /// Sends a checked batch on its way, in the order of the calls; its decision arrives in the outbox. Waits while the
    /// node has too much in flight: the caller does not read on meanwhile.
    pub async fn submit(&self, checked: Checked) {
        let id = checked.id;
        if let Err(refusal) = self.try_submit(checked).await {
            self.core.finish_in_order(Ready::Refused(Decision { id, result: Err(refusal), counted: true }));
        }
    }

    async fn try_submit(&self, checked: Checked) -> Result<(), Refusal> {
        let core = &self.core;
        if core.ingest.draining.load(Ordering::Acquire) {
            return Err(Refusal::ShuttingDown);
        }
        let budget = core.ingest.budget.admit(checked.batch.len()).await?;
        let guard = core.producer.enter(core.epoch)?;
        match core.topic.slot() {
            Slot::Direct => {}
            Slot::Broken(broken) => {
                let (topic, reason) = (core.topic.name.to_string(), broken.reason.clone());
                return Err(Refusal::PipelineBroken { topic, reason });
            }
            // What is durable already is not run again: the log answers it.
            Slot::Through(_) if core.is_durable(&checked.id) => {}
            Slot::Through(attached) => {
                return self.through(attached, checked, budget, guard).await;
            }
        }
        if core.topic.is_compacted() && !core.is_durable(&checked.id) {
            core.topic.check_keys(&checked.batch)?;
        }
        let append = Append {
            entries: vec![main_entry(checked.partition, checked.batch, checked.id.record_count, checked.max_timestamp)],
            mark: Some(core.mark(&checked.id, checked.partition)),
            ..Append::default()
        };
        let entry = core.in_flight(checked.id, checked.id.record_count, budget, guard);
        core.finish_in_order(Ready::Append(append, entry));
        Ok(())
    }

    async fn through(
        &self,
        attached: Arc<Attached>,
        checked: Checked,
        budget: OwnedSemaphorePermit,
        guard: InFlightGuard,
    ) -> Result<(), Refusal> {
        let core = &self.core;
        let number = core.begin_job();
        // Records of one partition always meet the same instance: a plugin may remember what it saw.
        let shard = u64::from(checked.partition.0);
        let mut carried = Some((checked, budget, guard));
        loop {
            let Some((checked, budget, guard)) = carried.take() else { return Ok(()) };
            let input = Input {
                topic: core.topic.name.clone(),
                partition: checked.id.partition,
                batch: checked.batch.clone(),
                now_ms: now_ms(),
            };
            let back = Arc::new(Mutex::new(Some((checked, budget, guard))));
            let done = done_callback(core.clone(), attached.clone(), number, back.clone());
            match core.ingest.pool.submit(shard, attached.pipeline.clone(), input, done) {
                Ok(()) => return Ok(()),
                Err(Busy) => {
                    carried = lock(&back).take();
                    tokio::time::sleep(PIPELINE_RETRY).await;
                }
            }
        }
    }
}

type Carried = (Checked, OwnedSemaphorePermit, InFlightGuard);

/// What the pipeline thread calls with the batch's outcome.
fn done_callback(
    core: Arc<LaneCore>,
    attached: Arc<Attached>,
    number: u64,
    carried: Arc<Mutex<Option<Carried>>>,
) -> Box<dyn FnOnce(Result<Output, RunError>) + Send> {
    Box::new(move |result| {
        let Some((checked, budget, guard)) = lock(&carried).take() else { return };
        let id = checked.id;
        let prepared = core.prepare(&attached, checked, result);
        let ready = match prepared {
            Ok((append, stored_count)) => Ready::Append(append, core.in_flight(id, stored_count, budget, guard)),
            Err(refusal) => Ready::Refused(Decision { id, result: Err(refusal), counted: true }),
        };
        core.finish_job(number, ready);
    })
}

impl LaneCore {
    fn key(&self) -> ProducerKey {
        ProducerKey { id: self.producer.id, lane: self.lane }
    }

    fn mark(&self, id: &BatchId, partition: PartitionId) -> ProducerMark {
        ProducerMark {
            key: self.key(),
            epoch: self.epoch,
            base_sequence: id.base_sequence,
            sequence_count: id.record_count,
            partition,
        }
    }

    fn is_durable(&self, id: &BatchId) -> bool {
        let durable = self.ingest.log.producer(self.key()).map_or(0, |state| state.next_sequence);
        id.base_sequence.saturating_add(u64::from(id.record_count)) <= durable
    }

    fn in_flight(&self, id: BatchId, stored_count: u32, budget: OwnedSemaphorePermit, guard: InFlightGuard) -> InFlight {
        let topic = self.topic.clone();
        InFlight { id, stored_count, topic, submitted: Instant::now(), _budget: budget, _producer: guard }
    }

    /// What one batch stores after its pipeline: its own records, routed ones, dead letters, and the producer's mark.
    fn prepare(&self, attached: &Attached, checked: Checked, result: Result<Output, RunError>) -> Result<(Append, u32), Refusal> {
        let output = match result {
            Ok(output) => output,
            Err(RunError::Rejected(failure)) => {
                let (topic, reason) = (self.topic.name.to_string(), failure.to_string());
                return Err(Refusal::Rejected { topic, reason });
            }
            Err(RunError::BadInput(error)) => return Err(Refusal::CorruptBatch { reason: error.to_string() }),
            Err(RunError::TooLarge { bytes, max }) => {
                return Err(Refusal::BatchTooLarge { bytes: bytes as u64, max: max as u64 });
            }
            Err(RunError::ShuttingDown) => return Err(Refusal::ShuttingDown),
            // A plugin asks for it again, or everything is busy: the client sends it again later.
            Err(error) => {
                return Err(Refusal::Quota { what: format!("the pipeline of {:?}: {error}", &*self.topic.name) });
            }
        };
        routing::say(&output);
        let mark = self.mark(&checked.id, checked.partition);
        let mut entries = Vec::with_capacity(1 + output.routed.len());
        let stored = match output.main {
            weir_pipeline::Main::Unchanged => {
                let count = checked.id.record_count;
                self.topic.check_keys(&checked.batch)?;
                entries.push(main_entry(checked.partition, checked.batch, count, checked.max_timestamp));
                count
            }
            weir_pipeline::Main::Rebuilt { batch, record_count, max_timestamp } => {
                // What a frame to a consumer cannot carry must not be stored as one batch.
                let batches = routing::cut(batch, self.ingest.batch_bytes_max as usize)?;
                self.topic.check_keys(&batches)?;
                entries.push(main_entry(checked.partition, batches, record_count, max_timestamp));
                record_count
            }
            weir_pipeline::Main::Empty => 0,
        };
        for routed in &output.routed {
            let bytes_max = self.ingest.batch_bytes_max as usize;
            routing::append_routed(&mut entries, attached, routed, checked.id.partition, bytes_max)?;
        }
        Ok((Append { entries, mark: Some(mark), ..Append::default() }, stored))
    }

    /// Takes a place in the lane's order for a batch that goes into a pipeline.
    fn begin_job(&self) -> u64 {
        let mut queue = lock(&self.queue);
        queue.jobs.push_back(Job::InPipeline);
        queue.first + queue.jobs.len() as u64 - 1
    }

    /// A batch is back from its pipeline: it and the ready ones behind it go on, in order.
    fn finish_job(&self, number: u64, ready: Ready) {
        let mut queue = lock(&self.queue);
        let index = (number - queue.first) as usize;
        queue.jobs[index] = Job::Ready(Box::new(ready));
        while let Some(Job::Ready(_)) = queue.jobs.front() {
            queue.first += 1;
            if let Some(Job::Ready(ready)) = queue.jobs.pop_front() {
                self.hand_on(*ready);
            }
        }
    }

    /// A batch that needs no pipeline: at once, or behind those that do.
    fn finish_in_order(&self, ready: Ready) {
        let mut queue = lock(&self.queue);
        if queue.jobs.is_empty() {
            // Under the lock, so that the next batch of the lane cannot overtake.
            self.hand_on(ready);
        } else {
            queue.jobs.push_back(Job::Ready(Box::new(ready)));
        }
    }

    fn hand_on(&self, ready: Ready) {
        match ready {
            Ready::Append(append, entry) => self.outbox.submit(append, entry),
            Ready::Refused(decision) => self.outbox.decide(decision),
        }
    }
}

fn main_entry(partition: PartitionId, batches: Bytes, record_count: u32, max_timestamp: i64) -> AppendEntry {
    debug_assert!(batches.len() >= HEADER_BYTES);
    AppendEntry { partition, batches, record_count, max_timestamp }
}

/// The node's clock, milliseconds since 1970.
pub(crate) fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}
