//! How the log's decisions about batches reach the connections: the log thread puts those of one ingest thread into its
//! [`Mailroom`], and that thread sorts them into the [`Outbox`] of each connection.
//!
//! One wake-up a thread a commit, then one a connection. Budget and fencing are released when a decision is sorted, not
//! when its connection takes it out: a peer that does not read its acks cannot hold them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::sync::{Notify, OwnedSemaphorePermit};
use weir_storage::{Append, CompletionSink, LogHandle, Outcome};

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

/// Carries batches of all connections of one thread to the log and its answers back, in [`Mailroom::carry`].
///
/// What the connections hand in while their thread works through a burst of packets goes to the log together: one
/// wake-up, and most likely one commit. The log thread in turn only puts down what it decided, once a commit; sorting it
/// into the connections' outboxes happens on the thread that serves them, where waking their tasks needs no system call.
#[derive(Debug)]
pub struct Mailroom {
    state: Mutex<Rounds>,
    wake: Notify,
    log: LogHandle,
    metrics: Arc<Metrics>,
}

#[derive(Debug, Default)]
struct Rounds {
    slots: Vec<Option<(Arc<Outbox>, InFlight)>>,
    free: Vec<usize>,
    leaving: Vec<(Append, u64)>,
    arrived: Vec<(u64, Outcome)>,
}

impl Mailroom {
    /// An empty one; somebody must [`carry`](Mailroom::carry).
    pub(crate) fn new(log: LogHandle, metrics: Arc<Metrics>) -> Arc<Mailroom> {
        Arc::new(Mailroom { state: Mutex::default(), wake: Notify::new(), log, metrics })
    }

    /// Carries for ever. Between two rounds every task that was ready has run, so a round takes what they all handed in.
    pub async fn carry(self: Arc<Self>) {
        let sink: Arc<dyn CompletionSink> = self.clone();
        let (mut leaving, mut arrived, mut done) = (Vec::new(), Vec::new(), Vec::new());
        loop {
            self.wake.notified().await;
            {
                let mut state = lock(&self.state);
                std::mem::swap(&mut state.leaving, &mut leaving);
                std::mem::swap(&mut state.arrived, &mut arrived);
                done.extend(arrived.drain(..).filter_map(|(tag, outcome)| Some((state.remove(tag)?, outcome))));
            }
            self.log.submit_all(&mut leaving, &sink);
            self.sort(&mut done);
        }
    }

    /// Takes a batch for the log.
    fn hand_in(&self, outbox: &Arc<Outbox>, append: Append, entry: InFlight) {
        let mut state = lock(&self.state);
        let tag = state.put((outbox.clone(), entry));
        state.leaving.push((append, tag));
        let first = state.leaving.len() == 1;
        drop(state);
        if first {
            self.wake.notify_one();
        }
    }

    fn sort(&self, done: &mut Vec<((Arc<Outbox>, InFlight), Outcome)>) {
        let now = Instant::now();
        for ((outbox, entry), outcome) in done.drain(..) {
            let result = result_of(&entry, outcome);
            self.count(&entry, &result, now);
            outbox.in_flight.fetch_sub(1, Ordering::Relaxed);
            // Budget and fence are given back here, not when the peer has read its ack.
            outbox.decide(Decision { id: entry.id, result, counted: true });
        }
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

impl Rounds {
    fn put(&mut self, entry: (Arc<Outbox>, InFlight)) -> u64 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[slot] = Some(entry);
        slot as u64
    }

    fn remove(&mut self, tag: u64) -> Option<(Arc<Outbox>, InFlight)> {
        let entry = self.slots.get_mut(tag as usize)?.take();
        debug_assert!(entry.is_some(), "the log answers each append once");
        self.free.push(tag as usize);
        entry
    }
}

impl CompletionSink for Mailroom {
    fn complete(&self, outcomes: &mut Vec<(u64, Outcome)>) {
        let first = {
            let mut state = lock(&self.state);
            let first = state.arrived.is_empty();
            state.arrived.append(outcomes);
            first
        };
        if first {
            self.wake.notify_one();
        }
    }
}

/// One connection's mailbox.
#[derive(Debug)]
pub struct Outbox {
    mailroom: Arc<Mailroom>,
    decisions: Mutex<Vec<Decision>>,
    in_flight: AtomicUsize,
    wake: Notify,
}

impl Outbox {
    /// An empty mailbox on the round of a mailroom.
    pub fn new(mailroom: &Arc<Mailroom>) -> Arc<Outbox> {
        let (mailroom, in_flight) = (mailroom.clone(), AtomicUsize::new(0));
        Arc::new(Outbox { mailroom, decisions: Mutex::default(), in_flight, wake: Notify::new() })
    }

    /// Who brings its decisions.
    pub fn mailroom(&self) -> &Arc<Mailroom> {
        &self.mailroom
    }

    /// Hands a batch to the log; its decision arrives here.
    pub(crate) fn submit(self: &Arc<Self>, append: Append, entry: InFlight) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.mailroom.hand_in(self, append, entry);
    }

    /// A decision is there.
    pub fn decide(&self, decision: Decision) {
        lock(&self.decisions).push(decision);
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
        let mut decisions = lock(&self.decisions);
        if decisions.is_empty() {
            return false;
        }
        if into.is_empty() {
            std::mem::swap(into, &mut decisions);
        } else {
            into.append(&mut decisions);
        }
        true
    }

    /// Batches the log has in its hands.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
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
