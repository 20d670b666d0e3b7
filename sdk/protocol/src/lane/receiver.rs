//! The server's end of a lane: which batch may come next, and how much may be unanswered.

use crate::ProtocolError;

/// What a batch is to its lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// The lane's next: hand it on.
    Next,
    /// Received before, but perhaps not durable yet: hand it on, the log answers when its original is durable.
    Duplicate,
    /// Something before it is missing or was refused: NACK `sequence_gap`. It is answered with that and holds nothing.
    Gap {
        /// The lane's next sequence.
        expected: u64,
    },
}

/// One lane of one connection.
///
/// Each batch that was `Next` or `Duplicate` is answered exactly once: [`LaneReceiver::on_durable`] or [`LaneReceiver::on_refused`].
#[derive(Debug, Clone)]
pub struct LaneReceiver {
    lane: u32,
    next_sequence: u64,
    batches_in_flight: u32,
    batches_in_flight_max: u32,
    bytes_in_flight: u64,
    /// The largest window this connection was told: the client may not have heard of a smaller one yet.
    window_bytes_max: u32,
}

impl LaneReceiver {
    /// A lane that goes on at `next_sequence` with the limits WELCOME and LANE_READY tell the client.
    pub fn new(lane: u32, next_sequence: u64, batches_in_flight_max: u16, credit_bytes: u32) -> LaneReceiver {
        LaneReceiver {
            lane,
            next_sequence,
            batches_in_flight: 0,
            batches_in_flight_max: batches_in_flight_max as u32,
            bytes_in_flight: 0,
            window_bytes_max: credit_bytes,
        }
    }

    /// Classifies a batch of `batch_bytes` and `record_count` records. An error ends the connection: the client ignores its limits.
    pub fn on_batch(&mut self, base_sequence: u64, record_count: u32, batch_bytes: usize) -> Result<Arrival, ProtocolError> {
        if record_count == 0 {
            return Err(ProtocolError::BadValue { field: "batch.record_count", value: 0 });
        }
        let Some(end) = base_sequence.checked_add(record_count as u64) else {
            return Err(ProtocolError::BadValue { field: "batch.base_sequence", value: base_sequence as i128 });
        };
        self.check_limits(batch_bytes as u64)?;
        if base_sequence > self.next_sequence {
            return Ok(Arrival::Gap { expected: self.next_sequence });
        }
        self.batches_in_flight += 1;
        self.bytes_in_flight += batch_bytes as u64;
        if base_sequence < self.next_sequence {
            return Ok(Arrival::Duplicate);
        }
        self.next_sequence = end;
        Ok(Arrival::Next)
    }

    fn check_limits(&self, batch_bytes: u64) -> Result<(), ProtocolError> {
        let batches = self.batches_in_flight + 1;
        if batches > self.batches_in_flight_max {
            let (used, max) = (batches as u64, self.batches_in_flight_max as u64);
            return Err(ProtocolError::OverLimit { lane: self.lane, what: "batches", used, max });
        }
        let bytes = self.bytes_in_flight + batch_bytes;
        if self.batches_in_flight > 0 && bytes > self.window_bytes_max as u64 {
            let max = self.window_bytes_max as u64;
            return Err(ProtocolError::OverLimit { lane: self.lane, what: "bytes", used: bytes, max });
        }
        Ok(())
    }

    /// A batch is durable and its ack is on its way.
    pub fn on_durable(&mut self, batch_bytes: usize) {
        self.answered(batch_bytes);
    }

    /// A batch was refused and its nack is on its way: the lane goes on where that batch began, and what was sent behind it is a gap.
    pub fn on_refused(&mut self, base_sequence: u64, batch_bytes: usize) {
        self.answered(batch_bytes);
        self.next_sequence = self.next_sequence.min(base_sequence);
    }

    fn answered(&mut self, batch_bytes: usize) {
        assert!(self.batches_in_flight > 0, "a batch of lane {} is answered twice", self.lane);
        assert!(self.bytes_in_flight >= batch_bytes as u64, "lane {} frees more than it holds", self.lane);
        self.batches_in_flight -= 1;
        self.bytes_in_flight -= batch_bytes as u64;
    }

    /// Notes the window an ack is about to tell the client.
    pub fn grant(&mut self, credit_bytes: u32) {
        self.window_bytes_max = self.window_bytes_max.max(credit_bytes);
    }

    /// The lane's number.
    pub fn lane(&self) -> u32 {
        self.lane
    }

    /// The sequence the next batch must have.
    pub fn next_sequence(&self) -> u64 {
        self.next_sequence
    }

    /// Batches not answered yet.
    pub fn batches_in_flight(&self) -> u32 {
        self.batches_in_flight
    }

    /// Their bytes.
    pub fn bytes_in_flight(&self) -> u64 {
        self.bytes_in_flight
    }
}
