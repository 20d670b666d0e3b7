//! Appends whose outcome one task waits for: administration, producer registration, group positions.
//!
//! The hot path of batches does not come this way; it has one mailbox a connection (`ingest`).

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use weir_storage::{Append, CompletionSink, LogHandle, MetaOp, Outcome};

use super::Refusal;

/// Locks a mutex whose data stays consistent even if a holder panicked: every critical section here only moves values.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Hands appends to the log and wakes the task that waits for each.
#[derive(Clone)]
pub(crate) struct LogWriter {
    log: LogHandle,
    waiting: Arc<Waiting>,
    sink: Arc<dyn CompletionSink>,
}

#[derive(Default)]
struct Waiting {
    next_tag: AtomicU64,
    tasks: Mutex<HashMap<u64, oneshot::Sender<Outcome>>>,
}

impl CompletionSink for Waiting {
    fn complete(&self, outcomes: &mut Vec<(u64, Outcome)>) {
        let mut tasks = lock(&self.tasks);
        for (tag, outcome) in outcomes.drain(..) {
            if let Some(task) = tasks.remove(&tag) {
                // A task that went away no longer cares; the append is durable all the same.
                let _ = task.send(outcome);
            }
        }
    }
}

impl std::fmt::Debug for LogWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogWriter").field("waiting", &lock(&self.waiting.tasks).len()).finish_non_exhaustive()
    }
}

/// An append on its way; it is in the log's queue already, in order of the `submit` calls.
#[derive(Debug)]
pub(crate) struct Pending(oneshot::Receiver<Outcome>);

impl Pending {
    /// Waits until the append is durable or refused.
    pub(crate) async fn durable(self) -> Result<(), Refusal> {
        match self.0.await {
            Ok(Outcome::Refused(error)) => Err(Refusal::from_append(error)),
            Ok(_) => Ok(()),
            Err(_) => Err(Refusal::ShuttingDown),
        }
    }
}

impl LogWriter {
    pub(crate) fn new(log: LogHandle) -> LogWriter {
        let waiting = Arc::new(Waiting::default());
        LogWriter { log, sink: waiting.clone(), waiting }
    }

    /// Queues an append without waiting, so that a caller may hold a lock that keeps the order.
    pub(crate) fn submit(&self, append: Append) -> Pending {
        let tag = self.waiting.next_tag.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        lock(&self.waiting.tasks).insert(tag, sender);
        self.log.submit(append, tag, &self.sink);
        Pending(receiver)
    }

    /// Queues metadata only.
    pub(crate) fn submit_meta(&self, meta: Vec<MetaOp>) -> Pending {
        self.submit(Append { entries: Vec::new(), mark: None, meta, partitions: Vec::new() })
    }
}
