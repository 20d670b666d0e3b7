//! A record's answer. All records of a batch share one completion; each knows its index in it.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, OnceLock},
    task::{Context, Poll, Waker},
};

use weir_protocol::lane::Durable;

use crate::ClientError;

/// A durable record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ack {
    /// Its partition.
    pub partition: u32,
    /// Its offset; -1: a pipeline changed how many records the batch left, or the server no longer knows.
    pub offset: i64,
    /// It was durable before this send: an acknowledgement had been lost.
    pub duplicate: bool,
    /// How many records of its batch the pipeline left on this topic, of how many; `None`: not known any more.
    pub stored: Option<(u32, u32)>,
}

/// What became of a batch.
#[derive(Debug, Clone)]
pub(crate) enum Outcome {
    Durable(Durable),
    Failed(ClientError),
}

/// The one completion of a batch.
#[derive(Debug)]
pub(crate) struct BatchDone {
    partition: u32,
    outcome: OnceLock<(Outcome, u32)>,
    wakers: Mutex<Vec<Option<Waker>>>,
}

impl BatchDone {
    pub(crate) fn new(partition: u32) -> Arc<BatchDone> {
        Arc::new(BatchDone { partition, outcome: OnceLock::new(), wakers: Mutex::default() })
    }

    /// Wakes whoever waits for a record of the batch.
    pub(crate) fn resolve(&self, (outcome, record_count): (Outcome, u32)) {
        let wakers = {
            let mut wakers = self.wakers.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            let _ = self.outcome.set((outcome, record_count));
            std::mem::take(&mut *wakers)
        };
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    fn ack(&self, index: u32) -> Option<Result<Ack, ClientError>> {
        let (outcome, record_count) = self.outcome.get()?;
        let durable = match outcome {
            Outcome::Durable(durable) => durable,
            Outcome::Failed(error) => return Some(Err(error.clone())),
        };
        let whole = durable.base_offset >= 0 && durable.stored_count == Some(*record_count);
        Some(Ok(Ack {
            partition: self.partition,
            offset: if whole { durable.base_offset + index as i64 } else { -1 },
            duplicate: durable.duplicate,
            stored: durable.stored_count.map(|stored| (stored, *record_count)),
        }))
    }
}

/// Resolves once its record is durable, or cannot be. Dropping it does not take the record back.
#[derive(Debug)]
#[must_use = "a record is durable only once its delivery has resolved; or flush the producer"]
pub struct Delivery {
    batch: Arc<BatchDone>,
    index: u32,
    /// Where its waker stands in the batch's list.
    slot: Option<usize>,
}

impl Delivery {
    pub(crate) fn new(batch: Arc<BatchDone>, index: u32) -> Delivery {
        Delivery { batch, index, slot: None }
    }

    /// The answer, if it is there.
    pub fn try_ack(&self) -> Option<Result<Ack, ClientError>> {
        self.batch.ack(self.index)
    }
}

impl Future for Delivery {
    type Output = Result<Ack, ClientError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(ack) = self.try_ack() {
            return Poll::Ready(ack);
        }
        let batch = self.batch.clone();
        let mut wakers = batch.wakers.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(ack) = self.try_ack() {
            return Poll::Ready(ack); // resolved in between
        }
        let slot = *self.slot.get_or_insert_with(|| {
            wakers.push(None);
            wakers.len() - 1
        });
        match wakers.get_mut(slot) {
            Some(Some(waker)) if waker.will_wake(cx.waker()) => {}
            Some(waker) => *waker = Some(cx.waker().clone()),
            None => {}
        }
        Poll::Pending
    }
}
