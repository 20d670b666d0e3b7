//! A produce lane: LANE_OPEN, LANE_READY and BATCH, and the two ends' state.

mod receiver;
mod sender;

use bytes::{BufMut, Bytes, BytesMut};

pub use receiver::{Arrival, LaneReceiver};
pub use sender::{Durable, Fate, LaneError, LaneSender, Outgoing, Refusals};

use crate::{
    Kind, Message, ProtocolError,
    frame::{FRAME_HEADER_BYTES, put_header},
    wire::{Reader, put_str},
};

/// Bytes of a BATCH frame before its record batch, header included.
pub const BATCH_PREFIX_BYTES: usize = FRAME_HEADER_BYTES + 12;

/// The client's first frame on a lane's stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneOpen {
    /// Chosen by the client; its sequence lives under it and the producer name.
    pub lane: u32,
    /// The one topic of the lane.
    pub topic: String,
}

impl Message for LaneOpen {
    const KIND: Kind = Kind::LaneOpen;

    fn decode(body: Bytes) -> Result<LaneOpen, ProtocolError> {
        let mut body = Reader::new(body);
        let open = LaneOpen { lane: body.u32("lane_open.lane")?, topic: body.str("lane_open.topic")? };
        body.end("LANE_OPEN")?;
        Ok(open)
    }

    fn encode_body(&self, out: &mut BytesMut) -> Result<(), ProtocolError> {
        out.put_u32_le(self.lane);
        put_str(out, "lane_open.topic", &self.topic)
    }
}

/// The server's answer: where to go on, and how much at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneReady {
    /// The lane.
    pub lane: u32,
    /// Partitions of its topic.
    pub partitions: u32,
    /// All records of the lane below it are durable.
    pub next_sequence: u64,
    /// The lane's window.
    pub credit_bytes: u32,
}

impl Message for LaneReady {
    const KIND: Kind = Kind::LaneReady;

    fn decode(body: Bytes) -> Result<LaneReady, ProtocolError> {
        let mut body = Reader::new(body);
        let ready = LaneReady {
            lane: body.u32("lane_ready.lane")?,
            partitions: body.u32("lane_ready.partitions")?,
            next_sequence: body.u64("lane_ready.next_sequence")?,
            credit_bytes: body.u32("lane_ready.credit_bytes")?,
        };
        body.end("LANE_READY")?;
        if ready.partitions == 0 {
            return Err(ProtocolError::BadValue { field: "lane_ready.partitions", value: 0 });
        }
        Ok(ready)
    }

    fn encode_body(&self, out: &mut BytesMut) -> Result<(), ProtocolError> {
        out.put_u32_le(self.lane);
        out.put_u32_le(self.partitions);
        out.put_u64_le(self.next_sequence);
        out.put_u32_le(self.credit_bytes);
        Ok(())
    }
}

/// One record batch of the stream's lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Where its records go.
    pub partition: u32,
    /// The lane's sequence of its first record.
    pub base_sequence: u64,
    /// The record batch, not yet verified.
    pub batch: Bytes,
}

impl Message for Batch {
    const KIND: Kind = Kind::Batch;

    fn decode(body: Bytes) -> Result<Batch, ProtocolError> {
        let mut body = Reader::new(body);
        Ok(Batch { partition: body.u32("batch.partition")?, base_sequence: body.u64("batch.base_sequence")?, batch: body.rest() })
    }

    fn encode_body(&self, out: &mut BytesMut) -> Result<(), ProtocolError> {
        out.put_u32_le(self.partition);
        out.put_u64_le(self.base_sequence);
        out.put_slice(&self.batch);
        Ok(())
    }
}

/// Appends what precedes a record batch of `batch_bytes` on the wire; the batch follows from where it lies.
pub fn put_batch_prefix(
    out: &mut BytesMut,
    frame_bytes_max: u32,
    partition: u32,
    base_sequence: u64,
    batch_bytes: usize,
) -> Result<(), ProtocolError> {
    let bytes = BATCH_PREFIX_BYTES as u64 + batch_bytes as u64;
    if bytes > frame_bytes_max as u64 {
        return Err(ProtocolError::FrameTooLarge { kind: Kind::Batch, bytes, max: frame_bytes_max });
    }
    put_header(out, Kind::Batch, 0, (bytes - FRAME_HEADER_BYTES as u64) as u32);
    out.put_u32_le(partition);
    out.put_u64_le(base_sequence);
    Ok(())
}
