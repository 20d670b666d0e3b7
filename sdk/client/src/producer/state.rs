//! What a producer holds, and what is to be done next. No socket and no clock: `now` comes in.

use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
};

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;
use weir_batch::{BatchBuilder, HEADER_BYTES, partition_for_key};
use weir_protocol::{
    AckItem, LaneReady, ProtocolError, Welcome,
    lane::{BATCH_PREFIX_BYTES, LaneError, LaneSender, Refusals, put_batch_prefix},
};

use super::{
    Record,
    delivery::{BatchDone, Delivery, Outcome},
};
use crate::{ClientError, Partitioner, ProducerConfig, session::Session};

/// What a record costs beside its bytes while it is here, about.
const RECORD_OVERHEAD_BYTES: usize = 24;
/// What one write takes at most, unless a single batch is larger.
const WRITE_BYTES_MAX: usize = 512 << 10;

/// A batch that still grows.
struct Growing {
    builder: BatchBuilder,
    done: Option<Arc<BatchDone>>,
    since: Option<Instant>,
    charged: usize,
}

/// A batch in the lane's queue.
#[derive(Debug)]
pub(crate) struct Closed {
    pub(crate) bytes: Bytes,
    pub(crate) done: Arc<BatchDone>,
    pub(crate) since: Instant,
    charged: usize,
}

pub(crate) enum Admission {
    Added {
        delivery: Delivery,
        /// The task should look.
        poke: bool,
    },
    Full,
}

pub(crate) struct State {
    config: ProducerConfig,
    pub(crate) lane: LaneSender<Closed>,
    /// Of the connection the lane is on.
    pub(crate) generation: u64,
    pub(crate) session: Option<Weak<Session>>,
    pub(crate) producer_id: i64,
    pub(crate) producer_epoch: i16,
    frame_bytes_max: u32,
    batch_bytes_max: usize,
    /// While the lane is full, batches grow up to this.
    grown_bytes_max: usize,
    growing: Vec<Growing>,
    /// Partitions with records in a growing batch, oldest first.
    open: VecDeque<u32>,
    /// Where records without a key go.
    sticky: u32,
    buffered_bytes: usize,
    pub(crate) space_waiters: usize,
    /// The task was told and has not looked yet.
    poked: bool,
    pub(crate) pushed_batches: u64,
    pub(crate) settled_batches: u64,
    settled: Vec<(Arc<BatchDone>, (Outcome, u32))>,
    pub(crate) failed: Option<ClientError>,
    pub(crate) closing: bool,
    /// Given up on some batches: the next connection says where the lane is.
    restart: bool,
}

impl State {
    pub(crate) fn new(config: ProducerConfig, welcome: &Welcome, ready: &LaneReady) -> State {
        let mut state = State {
            lane: LaneSender::new(ready, welcome.batches_in_flight_max.min(config.in_flight)),
            config,
            generation: 1,
            session: None,
            producer_id: -1,
            producer_epoch: -1,
            frame_bytes_max: 0,
            batch_bytes_max: 0,
            grown_bytes_max: 0,
            growing: Vec::new(),
            open: VecDeque::new(),
            sticky: 0,
            buffered_bytes: 0,
            space_waiters: 0,
            poked: false,
            pushed_batches: 0,
            settled_batches: 0,
            settled: Vec::new(),
            failed: None,
            closing: false,
            restart: false,
        };
        state.adopt(welcome, ready);
        state.sticky = fastrand::u32(..state.partitions());
        state
    }

    /// Limits and identity of a new connection.
    fn adopt(&mut self, welcome: &Welcome, ready: &LaneReady) {
        (self.producer_id, self.producer_epoch) = (welcome.producer_id, welcome.producer_epoch);
        self.frame_bytes_max = welcome.frame_bytes_max;
        self.batch_bytes_max = welcome.batch_bytes_max as usize;
        // Several batches should fit the window, or the lane would wait a round trip for each.
        let shared_window = (ready.credit_bytes / 4) as usize;
        self.grown_bytes_max = shared_window.max(self.config.batch_bytes).min(self.batch_bytes_max);
        let codec = self.config.compression;
        let partitions = (ready.partitions as usize).max(self.growing.len());
        self.growing.resize_with(partitions, || Growing {
            builder: BatchBuilder::new(codec),
            done: None,
            since: None,
            charged: 0,
        });
    }

    pub(crate) fn partitions(&self) -> u32 {
        self.growing.len() as u32
    }

    /// After what is queued and growing.
    pub(crate) fn next_sequence(&self) -> u64 {
        let growing: u64 = self.open.iter().map(|partition| self.growing[*partition as usize].builder.len() as u64).sum();
        self.lane.next_sequence() + growing
    }

    fn partition_of(&self, record: &Record<'_>) -> Result<u32, ClientError> {
        let partitions = self.partitions();
        match (record.partition, record.key) {
            (Some(partition), _) => self.check_partition(partition),
            (None, Some(key)) if self.config.partitioner == Partitioner::KeyHash => Ok(partition_for_key(key, partitions)),
            _ => Ok(self.sticky),
        }
    }

    fn check_partition(&self, partition: u32) -> Result<u32, ClientError> {
        match partition < self.partitions() {
            true => Ok(partition),
            false => {
                let topic = self.config.topic.clone();
                Err(ClientError::UnknownPartition { topic, partition, partitions: self.partitions() })
            }
        }
    }

    /// Whether `bytes` more may be held; one record always may.
    fn has_space(&self, bytes: usize) -> bool {
        self.buffered_bytes == 0 || self.buffered_bytes + bytes <= self.config.buffer_bytes
    }

    fn check_alive(&self) -> Result<(), ClientError> {
        match (&self.failed, self.closing) {
            (Some(error), _) => Err(error.clone()),
            (None, true) => Err(ClientError::Closed { what: "the producer" }),
            (None, false) => Ok(()),
        }
    }

    /// Puts a record into its batch.
    pub(crate) fn add(&mut self, record: &Record<'_>, now_ms: i64, now: Instant) -> Result<Admission, ClientError> {
        self.check_alive()?;
        let bytes = encoded_bytes_max(record);
        if HEADER_BYTES + bytes > self.batch_bytes_max {
            return Err(ClientError::RecordTooLarge { bytes, max: self.batch_bytes_max });
        }
        if !self.has_space(bytes) {
            return Ok(Admission::Full);
        }
        let partition = self.partition_of(record)?;
        let growing = &self.growing[partition as usize];
        if growing.since.is_some() && growing.builder.bytes_estimate() + bytes > self.grown_bytes_max {
            self.close(partition, now);
        }
        let growing = &mut self.growing[partition as usize];
        let first = growing.since.is_none();
        let done = growing.done.get_or_insert_with(|| BatchDone::new(partition)).clone();
        let index = growing.builder.len() as u32;
        growing.builder.push(record.timestamp.unwrap_or(now_ms), record.key, record.value, record.headers);
        growing.charged += bytes;
        self.buffered_bytes += bytes;
        let full = growing.builder.bytes_estimate() >= self.config.batch_bytes;
        if first {
            growing.since = Some(now);
            self.open.push_back(partition);
        }
        // The task has to look where it must set its timer, or where a batch need not wait for it any longer.
        let look =
            (first && self.open.len() == 1) || (full && self.lane.has_room(growing_bytes(&self.growing[partition as usize])));
        let poke = look && !self.poked;
        self.poked |= look;
        Ok(Admission::Added { delivery: Delivery::new(done, index), poke })
    }

    /// Queues a batch that was built elsewhere.
    pub(crate) fn add_batch(
        &mut self,
        partition: u32,
        bytes: Bytes,
        record_count: u32,
        now: Instant,
    ) -> Result<Admission, ClientError> {
        self.check_alive()?;
        self.check_partition(partition)?;
        if bytes.len() > self.batch_bytes_max {
            return Err(ClientError::RecordTooLarge { bytes: bytes.len(), max: self.batch_bytes_max });
        }
        if record_count == 0 {
            return Err(weir_batch::BatchError::Empty.into());
        }
        if !self.has_space(bytes.len()) {
            return Ok(Admission::Full);
        }
        if self.growing[partition as usize].since.is_some() {
            self.close(partition, now);
        }
        let done = BatchDone::new(partition);
        let charged = bytes.len();
        self.buffered_bytes += charged;
        let batch_bytes = charged as u32;
        self.lane.push(partition, record_count, batch_bytes, Closed { bytes, done: done.clone(), since: now, charged });
        self.pushed_batches += 1;
        let poke = !std::mem::replace(&mut self.poked, true);
        Ok(Admission::Added { delivery: Delivery::new(done, 0), poke })
    }

    /// Closes a growing batch into the lane's queue.
    fn close(&mut self, partition: u32, now: Instant) {
        let growing = &mut self.growing[partition as usize];
        let (done, since, charged) = (growing.done.take(), growing.since.take(), std::mem::take(&mut growing.charged));
        let record_count = growing.builder.len() as u32;
        let finished = growing.builder.finish();
        self.open.retain(|open| *open != partition);
        if partition == self.sticky {
            self.sticky = (partition + 1) % self.partitions();
        }
        let Some(done) = done else { return };
        self.pushed_batches += 1;
        match finished {
            Ok(bytes) => {
                let batch_bytes = bytes.len() as u32;
                let closed = Closed { bytes: bytes.into(), done, since: since.unwrap_or(now), charged };
                self.lane.push(partition, record_count, batch_bytes, closed);
            }
            Err(error) => {
                self.buffered_bytes -= charged;
                self.settled_batches += 1;
                self.settled.push((done, (Outcome::Failed(error.into()), record_count)));
            }
        }
    }

    /// Closes every growing batch: a flush.
    pub(crate) fn close_all(&mut self, now: Instant) {
        while let Some(partition) = self.open.front().copied() {
            self.close(partition, now);
        }
    }

    /// Whether the task has anything to write or to decide.
    pub(crate) fn has_work(&mut self) -> bool {
        !self.open.is_empty() || !self.lane.is_empty()
    }

    /// Collects what goes on the wire in one write: queued batches first, then growing ones that are ripe.
    pub(crate) fn collect(&mut self, now: Instant, chunks: &mut Vec<Bytes>) -> Result<(), ProtocolError> {
        self.poked = false;
        let mut prefixes = BytesMut::with_capacity(BATCH_PREFIX_BYTES * 16);
        let mut bytes = 0;
        while bytes < WRITE_BYTES_MAX {
            let Some(batch) = self.lane.poll_send() else {
                match self.ripe(now) {
                    Some(partition) => self.close(partition, now),
                    None => break,
                }
                continue;
            };
            put_batch_prefix(
                &mut prefixes,
                self.frame_bytes_max,
                batch.partition,
                batch.base_sequence,
                batch.payload.bytes.len(),
            )?;
            chunks.push(prefixes.split().freeze());
            chunks.push(batch.payload.bytes.clone());
            bytes += batch.payload.bytes.len();
        }
        Ok(())
    }

    /// A growing batch that has waited or grown enough, and may go on the wire.
    fn ripe(&self, now: Instant) -> Option<u32> {
        let ripe = |partition: &u32| {
            let growing = &self.growing[*partition as usize];
            let waited = growing.since.is_some_and(|since| now >= since + self.config.linger);
            let full = growing.builder.bytes_estimate() >= self.config.batch_bytes;
            (waited || full) && self.lane.has_room(growing_bytes(growing))
        };
        self.open.iter().copied().find(ripe)
    }

    /// When to look again if nothing happens.
    pub(crate) fn wake_at(&self, now: Instant) -> Option<Instant> {
        let oldest = self.open.front().and_then(|partition| self.growing[*partition as usize].since);
        // A batch that only waits for room on the lane is looked at when an ack arrives.
        let linger = oldest.map(|since| since + self.config.linger).filter(|ripe| *ripe > now);
        linger.into_iter().chain(self.expires_at()).min()
    }

    /// When the oldest record has waited as long as it may.
    pub(crate) fn expires_at(&self) -> Option<Instant> {
        let queued = self.lane.front().map(|front| front.payload.since);
        let growing = self.open.front().and_then(|partition| self.growing[*partition as usize].since);
        queued.into_iter().chain(growing).min().map(|since| since + self.config.delivery_timeout)
    }

    pub(crate) fn on_ack(&mut self, item: &AckItem) -> Result<(), ProtocolError> {
        let (buffered, settled) = (&mut self.buffered_bytes, &mut self.settled);
        let count = settled.len();
        let result = self.lane.on_ack(item, |batch, durable| {
            *buffered -= batch.payload.charged;
            settled.push((batch.payload.done, (Outcome::Durable(durable), batch.record_count)));
        });
        self.settled_batches += (settled.len() - count) as u64;
        result
    }

    /// After nacks, once all is answered: fails what can never be stored; answers what else there is to do.
    pub(crate) fn poll_refusals(
        &mut self,
        refused: impl Fn(weir_protocol::NackItem) -> ClientError,
    ) -> Result<Option<Refusals<Closed>>, LaneError> {
        let Some(mut refusals) = self.lane.poll_refusals()? else { return Ok(None) };
        for (batch, nack) in refusals.failed.drain(..) {
            self.settle_failed(batch.payload, batch.record_count, refused(nack));
        }
        Ok(Some(refusals))
    }

    fn settle_failed(&mut self, closed: Closed, record_count: u32, error: ClientError) {
        self.buffered_bytes -= closed.charged;
        self.settled_batches += 1;
        self.settled.push((closed.done, (Outcome::Failed(error), record_count)));
    }

    pub(crate) fn take_settled(&mut self) -> Vec<(Arc<BatchDone>, (Outcome, u32))> {
        std::mem::take(&mut self.settled)
    }

    /// The connection is gone.
    pub(crate) fn on_disconnected(&mut self) {
        self.generation += 1;
        self.lane.on_disconnected();
    }

    /// The lane is on a new connection.
    pub(crate) fn on_ready(&mut self, welcome: &Welcome, ready: &LaneReady) -> Result<(), LaneError> {
        let in_flight = welcome.batches_in_flight_max.min(self.config.in_flight);
        if std::mem::take(&mut self.restart) {
            self.lane.on_restart(ready, in_flight);
        } else {
            let (buffered, settled) = (&mut self.buffered_bytes, &mut self.settled);
            let count = settled.len();
            self.lane.on_ready(ready, in_flight, |batch, durable| {
                *buffered -= batch.payload.charged;
                settled.push((batch.payload.done, (Outcome::Durable(durable), batch.record_count)));
            })?;
            self.settled_batches += (settled.len() - count) as u64;
        }
        self.adopt(welcome, ready);
        Ok(())
    }

    /// Whether that moment is over.
    pub(crate) fn is_expired(&self, now: Instant) -> bool {
        self.expires_at().is_some_and(|expiry| now >= expiry)
    }

    /// Gives up everything held; what was on the wire may be durable or not. The connection has to be gone.
    pub(crate) fn give_up(&mut self, error: &ClientError, now: Instant) {
        self.close_all(now);
        for batch in self.lane.take_all() {
            self.settle_failed(batch.payload, batch.record_count, error.clone());
        }
        self.generation += 1;
        self.restart = true;
    }

    /// Gives up for good.
    pub(crate) fn fail(&mut self, error: ClientError) {
        self.give_up(&error, Instant::now());
        self.failed.get_or_insert(error);
    }
}

fn growing_bytes(growing: &Growing) -> u32 {
    growing.builder.bytes_estimate() as u32
}

/// What a record takes in a batch at most.
pub(crate) fn encoded_bytes_max(record: &Record<'_>) -> usize {
    let field = |bytes: Option<&[u8]>| bytes.map_or(0, <[u8]>::len);
    let headers: usize = record.headers.iter().map(|(name, value)| name.len() + field(*value) + 10).sum();
    RECORD_OVERHEAD_BYTES + 10 + field(record.key) + field(record.value) + headers
}
