//! Where the decisions about one connection's batches arrive: the log thread puts them in, the front door takes them out.
//!
//! One wake-up a commit: the log calls [`Outbox::complete`] at most once per commit, and the front door takes everything
//! that is there. Budget and fencing are released by the log's call, not by the front door's: a peer that does not read
//! its acks cannot hold them.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::sync::{Notify, OwnedSemaphorePermit};
use weir_storage::{CompletionSink, LogHandle, Outcome};

use super::Refusal;
use super::producers::InFlightGuard;
use super::topics::Topic;
use super::writer::lock;
use crate::metrics::Metrics;

/// Which batch a decision is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchId {
    /// The lane.
    pub lane: u32,
    /// The partition it was sent to.
    pub partition: u32,
    /// The lane's sequence of its first record.
    pub base_sequence: u64,
    /// Its records.
    pub record_count: u32,
    /// Its bytes.
    pub batch_bytes: usize,
}

/// How a batch became durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// Records left on the topic by its pipeline.
    pub stored_count: u32,
    /// Offset of the first of them; -1: none, or no longer known.
    pub base_offset: i64,
    /// It was durable before.
    pub duplicate: bool,
}

/// What became of a batch.
#[derive(Debug)]
pub struct Decision {
    /// Which.
    pub id: BatchId,
    /// Durable, or why not.
    pub result: Result<Stored, Refusal>,
    /// False where the lane never took the batch into account.
    pub counted: bool,
}

/// A batch the log has in its hands.
#[derive(Debug)]
pub(crate) struct InFlight {
    pub(crate) id: BatchId,
    pub(crate) stored_count: u32,
    pub(crate) topic: Arc<Topic>,
    pub(crate) submitted: Instant,
    pub(crate) _budget: OwnedSemaphorePermit,
    pub(crate) _producer: InFlightGuard,
}

/// The mailbox.
#[derive(Debug)]
pub struct Outbox {
    state: Mutex<State>,
    wake: Notify,
    metrics: Arc<Metrics>,
}

#[derive(Debug, Default)]
struct State {
    slots: Vec<Option<InFlight>>,
    free: Vec<usize>,
    decisions: Vec<Decision>,
}

impl Outbox {
    /// An empty mailbox.
    pub(crate) fn new(metrics: Arc<Metrics>) -> Arc<Outbox> {
        Arc::new(Outbox { state: Mutex::default(), wake: Notify::new(), metrics })
    }

    /// Hands a batch to the log; its decision arrives here.
    pub(crate) fn submit(self: &Arc<Self>, log: &LogHandle, append: weir_storage::Append, entry: InFlight) {
        let tag = lock(&self.state).put(entry);
        let sink: Arc<dyn CompletionSink> = self.clone();
        log.submit(append, tag, &sink);
    }

    /// A decision that needed no log.
    pub fn decide(&self, decision: Decision) {
        lock(&self.state).decisions.push(decision);
        self.wake.notify_one();
    }

    /// Waits until there are decisions and moves all of them into `into`.
    pub async fn take(&self, into: &mut Vec<Decision>) {
        loop {
            let notified = self.wake.notified();
            if self.take_now(into) {
                return;
            }
            notified.await;
        }
    }

    /// Moves what is there into `into`; answers whether there was anything.
    pub fn take_now(&self, into: &mut Vec<Decision>) -> bool {
        let mut state = lock(&self.state);
        if state.decisions.is_empty() {
            return false;
        }
        if into.is_empty() {
            std::mem::swap(into, &mut state.decisions);
        } else {
            into.append(&mut state.decisions);
        }
        true
    }

    /// Batches the log has in its hands.
    pub fn in_flight(&self) -> usize {
        let state = lock(&self.state);
        state.slots.len() - state.free.len()
    }

    fn count(&self, entry: &InFlight, result: &Result<Stored, Refusal>, now: Instant) {
        let Ok(stored) = result else { return };
        self.metrics.acks.inc();
        if stored.duplicate {
            self.metrics.duplicates.inc();
            return;
        }
        entry.topic.meters.records_stored.inc_by(u64::from(stored.stored_count));
        self.metrics.committed(now.saturating_duration_since(entry.submitted));
    }
}

impl State {
    fn put(&mut self, entry: InFlight) -> u64 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[slot] = Some(entry);
        slot as u64
    }

    fn remove(&mut self, tag: u64) -> Option<InFlight> {
        let entry = self.slots.get_mut(tag as usize)?.take()?;
        self.free.push(tag as usize);
        Some(entry)
    }
}

impl CompletionSink for Outbox {
    fn complete(&self, outcomes: &mut Vec<(u64, Outcome)>) {
        let now = Instant::now();
        let mut state = lock(&self.state);
        for (tag, outcome) in outcomes.drain(..) {
            let entry = state.remove(tag);
            debug_assert!(entry.is_some(), "the log answers each append once");
            let Some(entry) = entry else { continue };
            let result = result_of(&entry, outcome);
            self.count(&entry, &result, now);
            state.decisions.push(Decision { id: entry.id, result, counted: true });
        }
        drop(state);
        self.wake.notify_one();
    }
}

fn result_of(entry: &InFlight, outcome: Outcome) -> Result<Stored, Refusal> {
    match outcome {
        Outcome::Committed { base_offsets, .. } => {
            let base_offset = if entry.stored_count == 0 { -1 } else { base_offsets.first().copied().unwrap_or(-1) };
            Ok(Stored { stored_count: entry.stored_count, base_offset, duplicate: false })
        }
        Outcome::Duplicate { base_offset, .. } => Ok(Stored { stored_count: entry.stored_count, base_offset, duplicate: true }),
        Outcome::Refused(weir_storage::AppendError::UnknownPartition(_)) => {
            Err(Refusal::UnknownTopic { topic: entry.topic.name.to_string() })
        }
        Outcome::Refused(error) => Err(Refusal::from_append(error)),
    }
}
