//! The client's end of a lane: a queue of batches in sequence order, of which the first few are on the wire.
//!
//! ```text
//!   durable ─▶ [ sent, unanswered … ][ not sent … ] ◀─ push
//! ```
//! An ack takes batches off the front. A nack stops sending; once everything on the wire is answered, [`LaneSender::poll_refusals`] takes out what
//! can never succeed, gives the rest new sequences without a hole, and sending starts again at the front. Waiting for all answers is what makes a
//! new sequence safe: no batch of the old numbering is left that the server could still take for it. A lost connection
//! keeps the numbers: the server may have any of them on disk.

use std::collections::VecDeque;

use crate::{AckCode, AckItem, Code, LaneReady, NackItem, ProtocolError};

/// A batch of the lane and whatever the caller keeps with it.
#[derive(Debug)]
pub struct Outgoing<T> {
    /// Where its records go.
    pub partition: u32,
    /// The lane's sequence of its first record.
    pub base_sequence: u64,
    /// Records in it.
    pub record_count: u32,
    /// Bytes of the record batch.
    pub batch_bytes: u32,
    /// The caller's.
    pub payload: T,
    nack: Option<NackItem>,
}

impl<T> Outgoing<T> {
    fn end(&self) -> u64 {
        self.base_sequence + self.record_count as u64
    }
}

/// How a batch became durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Durable {
    /// Offset of the first stored record; -1: nothing stored, or not known.
    pub base_offset: i64,
    /// Records the pipeline left; `None`: not known, a later ack or LANE_READY covered the batch.
    pub stored_count: Option<u32>,
    /// It was durable before this send.
    pub duplicate: bool,
}

const UNKNOWN: Durable = Durable { base_offset: -1, stored_count: None, duplicate: true };

/// The lane cannot go on: its numbering and the server's disagree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LaneError {
    /// The server is behind what it acknowledged.
    #[error(
        "the server wants sequence {server} but had acknowledged everything below {durable}; it lost data or is another node: ask its operator"
    )]
    Rewound {
        /// Acknowledged up to here.
        durable: u64,
        /// What the server wants.
        server: u64,
    },
    /// The server is ahead of everything sent here.
    #[error(
        "the server wants sequence {server} but this producer has only sent up to {sent}; another process uses the same producer name and lane"
    )]
    Ahead {
        /// End of what was sent here.
        sent: u64,
        /// What the server wants.
        server: u64,
    },
    /// The server's next sequence is inside a batch.
    #[error(
        "the server wants sequence {server}, inside a batch from {base}; another process uses the same producer name and lane"
    )]
    InsideBatch {
        /// The batch's first sequence.
        base: u64,
        /// What the server wants.
        server: u64,
    },
}

/// What a refusal means for a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Send it again on this connection; after a pause unless it was only out of order.
    Retry,
    /// Send it again on another connection.
    Reconnect,
    /// It can never be stored; those behind it can.
    Drop,
    /// Nothing on this lane can be stored.
    Lane,
}

impl Fate {
    /// The fate of a batch refused with `code`.
    pub fn of(code: Code) -> Fate {
        match code {
            Code::SequenceGap | Code::Quota | Code::StorageFull | Code::Internal => Fate::Retry,
            Code::ShuttingDown | Code::StorageFailed => Fate::Reconnect,
            Code::Fenced | Code::Unauthorized | Code::UnknownTopic | Code::UnknownProducer => Fate::Lane,
            _ => Fate::Drop,
        }
    }
}

/// What came of a round of nacks, after all batches on the wire were answered.
#[derive(Debug)]
pub struct Refusals<T> {
    /// Taken out of the queue, with the reason.
    pub failed: Vec<(Outgoing<T>, NackItem)>,
    /// The first reason to pause before sending again.
    pub pause: Option<NackItem>,
    /// The first reason to look for another connection.
    pub reconnect: Option<NackItem>,
    /// The first reason to give the lane up; the queue is untouched then.
    pub lane: Option<NackItem>,
}

/// One lane over all its connections.
#[derive(Debug)]
pub struct LaneSender<T> {
    lane: u32,
    queue: VecDeque<Outgoing<T>>,
    /// The first `sent` of the queue are on the wire.
    sent: usize,
    /// Those of them without an answer.
    unanswered: usize,
    bytes_in_flight: u64,
    /// Everything below is durable; the front of the queue begins here.
    durable: u64,
    window_bytes: u32,
    batches_in_flight_max: usize,
    refused: bool,
    connected: bool,
}

impl<T> LaneSender<T> {
    /// The lane as its first LANE_READY describes it, with WELCOME's limit.
    pub fn new(ready: &LaneReady, batches_in_flight_max: u16) -> LaneSender<T> {
        LaneSender {
            lane: ready.lane,
            queue: VecDeque::new(),
            sent: 0,
            unanswered: 0,
            bytes_in_flight: 0,
            durable: ready.next_sequence,
            window_bytes: ready.credit_bytes,
            batches_in_flight_max: batches_in_flight_max as usize,
            refused: false,
            connected: true,
        }
    }

    /// Adds a batch at the end. The caller bounds the queue.
    pub fn push(&mut self, partition: u32, record_count: u32, batch_bytes: u32, payload: T) {
        assert!(record_count > 0, "an empty batch has no sequence");
        let base_sequence = self.next_sequence();
        self.queue.push_back(Outgoing { partition, base_sequence, record_count, batch_bytes, payload, nack: None });
    }

    /// Whether a batch of this size could go on the wire at once, so that one still growing should be closed.
    pub fn has_room(&self, batch_bytes: u32) -> bool {
        self.sent == self.queue.len() && self.may_send(batch_bytes)
    }

    fn may_send(&self, batch_bytes: u32) -> bool {
        if !self.connected || self.refused || self.unanswered >= self.batches_in_flight_max || self.window_bytes == 0 {
            return false;
        }
        self.unanswered == 0 || self.bytes_in_flight + batch_bytes as u64 <= self.window_bytes as u64
    }

    /// The next batch to write, if limits allow one; it counts as sent.
    pub fn poll_send(&mut self) -> Option<&Outgoing<T>> {
        let batch_bytes = self.queue.get(self.sent)?.batch_bytes;
        if !self.may_send(batch_bytes) {
            return None;
        }
        self.bytes_in_flight += batch_bytes as u64;
        self.unanswered += 1;
        self.sent += 1;
        self.queue.get(self.sent - 1)
    }

    /// Takes an ack of this lane; `done` gets each batch that is durable now, in order.
    pub fn on_ack(&mut self, ack: &AckItem, mut done: impl FnMut(Outgoing<T>, Durable)) -> Result<(), ProtocolError> {
        self.window_bytes = ack.credit_bytes;
        if ack.record_count == 0 {
            return Ok(());
        }
        let end = ack.base_sequence.saturating_add(ack.record_count as u64);
        while self.sent > 0 && self.queue.front().is_some_and(|front| front.end() <= end) {
            let Some(batch) = self.take_front() else { break };
            let exact = batch.base_sequence == ack.base_sequence && batch.record_count == ack.record_count;
            let durable = match exact {
                true => Durable {
                    base_offset: ack.base_offset,
                    stored_count: Some(ack.stored_count),
                    duplicate: ack.code == AckCode::Duplicate,
                },
                false => Durable { duplicate: false, ..UNKNOWN },
            };
            done(batch, durable);
        }
        if end > self.durable {
            return Err(ProtocolError::BadValue { field: "ack.base_sequence", value: ack.base_sequence as i128 });
        }
        Ok(())
    }

    /// Takes the front off: it is durable.
    fn take_front(&mut self) -> Option<Outgoing<T>> {
        let batch = self.queue.pop_front()?;
        self.durable = batch.end();
        if self.sent > 0 {
            self.sent -= 1;
            if batch.nack.is_none() {
                self.unanswered -= 1;
                self.bytes_in_flight -= batch.batch_bytes as u64;
            }
        }
        Some(batch)
    }

    /// Takes a nack of this lane. Nothing more is sent until [`LaneSender::poll_refusals`] answers.
    pub fn on_nack(&mut self, nack: NackItem) -> Result<(), ProtocolError> {
        let bad = ProtocolError::BadValue { field: "nack.base_sequence", value: nack.base_sequence as i128 };
        let Ok(index) = self.queue.binary_search_by_key(&nack.base_sequence, |batch| batch.base_sequence) else {
            return Err(bad);
        };
        let batch = &mut self.queue[index];
        if index >= self.sent || batch.nack.is_some() {
            return Err(bad);
        }
        self.unanswered -= 1;
        self.bytes_in_flight -= batch.batch_bytes as u64;
        batch.nack = Some(nack);
        self.refused = true;
        Ok(())
    }

    /// After a nack, once everything on the wire is answered: what to fail, and whether to pause. Sending may then go on.
    pub fn poll_refusals(&mut self) -> Result<Option<Refusals<T>>, LaneError> {
        if !self.refused || self.unanswered > 0 {
            return Ok(None);
        }
        let mut refusals = Refusals { failed: Vec::new(), pause: None, reconnect: None, lane: None };
        let nacks = self.queue.iter().take(self.sent).filter_map(|batch| batch.nack.as_ref());
        for nack in nacks {
            let first = match Fate::of(nack.code) {
                Fate::Lane => &mut refusals.lane,
                Fate::Reconnect => &mut refusals.reconnect,
                Fate::Retry if nack.code != Code::SequenceGap => &mut refusals.pause,
                Fate::Retry | Fate::Drop => continue,
            };
            first.get_or_insert_with(|| nack.clone());
        }
        if refusals.lane.is_some() {
            return Ok(Some(refusals));
        }
        self.check_front()?;
        self.take_failed(&mut refusals.failed);
        self.renumber();
        (self.sent, self.refused) = (0, false);
        Ok(Some(refusals))
    }

    /// The front is exactly what the server waits for: being refused as a gap, it never can succeed.
    fn check_front(&self) -> Result<(), LaneError> {
        let Some(nack) = self.queue.front().and_then(|front| front.nack.as_ref()) else { return Ok(()) };
        match nack.code == Code::SequenceGap && nack.expected_sequence < self.durable {
            true => Err(LaneError::Rewound { durable: self.durable, server: nack.expected_sequence }),
            false => Ok(()),
        }
    }

    fn take_failed(&mut self, failed: &mut Vec<(Outgoing<T>, NackItem)>) {
        let mut kept = VecDeque::with_capacity(self.queue.len());
        for mut batch in self.queue.drain(..) {
            match batch.nack.take() {
                Some(nack) if Fate::of(nack.code) == Fate::Drop => failed.push((batch, nack)),
                _ => kept.push_back(batch),
            }
        }
        self.queue = kept;
    }

    fn renumber(&mut self) {
        let mut next = self.durable;
        for batch in &mut self.queue {
            batch.base_sequence = next;
            next = batch.end();
        }
    }

    /// The connection is gone: everything on the wire has to be sent again, under the same sequences.
    pub fn on_disconnected(&mut self) {
        for batch in &mut self.queue {
            batch.nack = None;
        }
        (self.sent, self.unanswered, self.bytes_in_flight) = (0, 0, 0);
        (self.refused, self.connected) = (false, false);
    }

    /// A new connection has the lane; `done` gets what turned out to be durable already.
    pub fn on_ready(
        &mut self,
        ready: &LaneReady,
        batches_in_flight_max: u16,
        mut done: impl FnMut(Outgoing<T>, Durable),
    ) -> Result<(), LaneError> {
        assert!(!self.connected, "lane {} is connected already", self.lane);
        let (server, durable, sent) = (ready.next_sequence, self.durable, self.next_sequence());
        if server < durable {
            return Err(LaneError::Rewound { durable, server });
        }
        if server > sent {
            return Err(LaneError::Ahead { sent, server });
        }
        while self.queue.front().is_some_and(|front| front.end() <= server) {
            let Some(batch) = self.take_front() else { break };
            done(batch, UNKNOWN);
        }
        if server > self.durable {
            return Err(LaneError::InsideBatch { base: self.durable, server });
        }
        self.window_bytes = ready.credit_bytes;
        self.batches_in_flight_max = batches_in_flight_max as usize;
        self.connected = true;
        Ok(())
    }

    /// As [`LaneSender::on_ready`] after [`LaneSender::take_all`]: what was given up may be durable or not, and other records come now. The lane goes
    /// on wherever the server is.
    pub fn on_restart(&mut self, ready: &LaneReady, batches_in_flight_max: u16) {
        assert!(!self.connected && self.sent == 0, "lane {} is connected already", self.lane);
        self.durable = ready.next_sequence;
        self.renumber();
        self.window_bytes = ready.credit_bytes;
        self.batches_in_flight_max = batches_in_flight_max as usize;
        self.connected = true;
    }

    /// Gives up: the whole queue, in order.
    pub fn take_all(&mut self) -> VecDeque<Outgoing<T>> {
        self.on_disconnected();
        std::mem::take(&mut self.queue)
    }

    /// The batch that has waited longest.
    pub fn front(&self) -> Option<&Outgoing<T>> {
        self.queue.front()
    }

    /// The lane's number.
    pub fn lane(&self) -> u32 {
        self.lane
    }

    /// The sequence the next pushed batch gets.
    pub fn next_sequence(&self) -> u64 {
        self.queue.back().map_or(self.durable, Outgoing::end)
    }

    /// Everything below is durable.
    pub fn durable_sequence(&self) -> u64 {
        self.durable
    }

    /// Batches not durable yet, sent or not.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether everything pushed is durable.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}
