//! A subscription: SUBSCRIBE, DATA, CREDIT, END, and both ends' account of the credit.

use bytes::{BufMut, Bytes, BytesMut};

use crate::{
    Kind, Message, ProtocolError,
    frame::{FRAME_HEADER_BYTES, put_header},
    wire::{Reader, put_list, put_str},
};

/// Bytes of a DATA frame before its record batches, header included.
pub const DATA_PREFIX_BYTES: usize = FRAME_HEADER_BYTES + DATA_FIELDS_BYTES;
const DATA_FIELDS_BYTES: usize = 20;
/// The most credit a subscription can hold.
pub const CREDIT_BYTES_MAX: u32 = 1 << 30;
const FLAG_LIVE: u8 = 1;

/// Where a partition is read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// This offset.
    Offset(i64),
    /// The high watermark: only what comes from now on.
    Latest,
    /// The oldest record there is.
    Earliest,
}

impl Start {
    fn number(self) -> i64 {
        match self {
            Start::Offset(offset) => offset,
            Start::Latest => -1,
            Start::Earliest => -2,
        }
    }

    fn from_number(number: i64) -> Result<Start, ProtocolError> {
        match number {
            -2 => Ok(Start::Earliest),
            -1 => Ok(Start::Latest),
            0.. => Ok(Start::Offset(number)),
            _ => Err(ProtocolError::BadValue { field: "subscribe.start", value: number as i128 }),
        }
    }
}

/// The client's first frame on a subscription's stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscribe {
    /// The topic.
    pub topic: String,
    /// Go on at the tail instead of ending there.
    pub live: bool,
    /// Credit to begin with.
    pub credit_bytes: u32,
    /// Partitions and where to start each.
    pub partitions: Vec<(u32, Start)>,
}

impl Message for Subscribe {
    const KIND: Kind = Kind::Subscribe;

    fn decode(body: Bytes) -> Result<Subscribe, ProtocolError> {
        let mut body = Reader::new(body);
        let topic = body.str("subscribe.topic")?;
        let flags = body.u8("subscribe.flags")?;
        if flags & !FLAG_LIVE != 0 {
            return Err(ProtocolError::BadValue { field: "subscribe.flags", value: flags as i128 });
        }
        let credit_bytes = body.u32("subscribe.credit_bytes")?;
        let partitions = body.list("subscribe.partitions", 12, |body| {
            Ok((body.u32("subscribe.partition")?, Start::from_number(body.i64("subscribe.start")?)?))
        })?;
        body.end("SUBSCRIBE")?;
        Ok(Subscribe { topic, live: flags & FLAG_LIVE != 0, credit_bytes, partitions })
    }

    fn encode_body(&self, out: &mut BytesMut) -> Result<(), ProtocolError> {
        put_str(out, "subscribe.topic", &self.topic)?;
        out.put_u8(if self.live { FLAG_LIVE } else { 0 });
        out.put_u32_le(self.credit_bytes);
        put_list(out, "subscribe.partitions", &self.partitions, |out, (partition, start)| {
            out.put_u32_le(*partition);
            out.put_i64_le(start.number());
            Ok(())
        })
    }
}

/// Stored record batches of one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Data {
    /// The partition.
    pub partition: u32,
    /// Its high watermark when this was read.
    pub high_watermark: i64,
    /// The first offset the subscription still wants; the first batch may begin below it.
    pub start_offset: i64,
    /// Whole record batches, one after the other.
    pub batches: Bytes,
}

impl Data {
    /// Bytes of the body: what the frame costs of the credit.
    pub fn body_bytes(&self) -> u32 {
        (DATA_FIELDS_BYTES + self.batches.len()) as u32
    }
}

impl Message for Data {
    const KIND: Kind = Kind::Data;

    fn decode(body: Bytes) -> Result<Data, ProtocolError> {
        let mut body = Reader::new(body);
        let data = Data {
            partition: body.u32("data.partition")?,
            high_watermark: body.i64("data.high_watermark")?,
            start_offset: body.i64("data.start_offset")?,
            batches: body.rest(),
        };
        for (field, value) in [("data.high_watermark", data.high_watermark), ("data.start_offset", data.start_offset)] {
            if value < 0 {
                return Err(ProtocolError::BadValue { field, value: value as i128 });
            }
        }
        Ok(data)
    }

    fn encode_body(&self, out: &mut BytesMut) -> Result<(), ProtocolError> {
        out.put_u32_le(self.partition);
        out.put_i64_le(self.high_watermark);
        out.put_i64_le(self.start_offset);
        out.put_slice(&self.batches);
        Ok(())
    }
}

/// Appends what precedes `batches_bytes` of record batches on the wire; they follow from where they lie. Answers the body's bytes, the frame's cost in credit.
pub fn put_data_prefix(
    out: &mut BytesMut,
    frame_bytes_max: u32,
    partition: u32,
    high_watermark: i64,
    start_offset: i64,
    batches_bytes: usize,
) -> Result<u32, ProtocolError> {
    let bytes = DATA_PREFIX_BYTES as u64 + batches_bytes as u64;
    if bytes > frame_bytes_max as u64 {
        return Err(ProtocolError::FrameTooLarge { kind: Kind::Data, bytes, max: frame_bytes_max });
    }
    let body_bytes = (bytes - FRAME_HEADER_BYTES as u64) as u32;
    put_header(out, Kind::Data, 0, body_bytes);
    out.put_u32_le(partition);
    out.put_i64_le(high_watermark);
    out.put_i64_le(start_offset);
    Ok(body_bytes)
}

/// More credit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credit {
    /// Bytes of DATA bodies, on top of what is left.
    pub bytes: u32,
}

impl Message for Credit {
    const KIND: Kind = Kind::Credit;

    fn decode(body: Bytes) -> Result<Credit, ProtocolError> {
        let mut body = Reader::new(body);
        let credit = Credit { bytes: body.u32("credit.bytes")? };
        body.end("CREDIT")?;
        Ok(credit)
    }

    fn encode_body(&self, out: &mut BytesMut) -> Result<(), ProtocolError> {
        out.put_u32_le(self.bytes);
        Ok(())
    }
}

/// A subscription that is not live has got everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// Partitions and the offset after the last one sent.
    pub positions: Vec<(u32, i64)>,
}

impl Message for End {
    const KIND: Kind = Kind::End;

    fn decode(body: Bytes) -> Result<End, ProtocolError> {
        let mut body = Reader::new(body);
        let positions = body.list("end.positions", 12, |body| Ok((body.u32("end.partition")?, body.i64("end.next_offset")?)))?;
        body.end("END")?;
        Ok(End { positions })
    }

    fn encode_body(&self, out: &mut BytesMut) -> Result<(), ProtocolError> {
        put_list(out, "end.positions", &self.positions, |out, (partition, next_offset)| {
            out.put_u32_le(*partition);
            out.put_i64_le(*next_offset);
            Ok(())
        })
    }
}

/// The server's account: DATA may be sent while any credit is left, so the last frame may overdraw it by what it is larger.
#[derive(Debug, Clone, Copy)]
pub struct CreditBalance {
    bytes: i64,
}

impl CreditBalance {
    /// What SUBSCRIBE brought.
    pub fn new(credit_bytes: u32) -> CreditBalance {
        CreditBalance { bytes: credit_bytes.min(CREDIT_BYTES_MAX) as i64 }
    }

    /// Whether a DATA frame may be sent.
    pub fn may_send(&self) -> bool {
        self.bytes > 0
    }

    /// What a frame should aim at.
    pub fn available(&self) -> u32 {
        self.bytes.max(0) as u32
    }

    /// A DATA frame with this body was sent.
    pub fn on_sent(&mut self, body_bytes: u32) {
        assert!(self.may_send(), "DATA without credit");
        self.bytes -= body_bytes as i64;
    }

    /// CREDIT arrived; what is over [`CREDIT_BYTES_MAX`] is lost.
    pub fn on_credit(&mut self, credit: Credit) {
        self.bytes = (self.bytes + credit.bytes as i64).min(CREDIT_BYTES_MAX as i64);
    }
}

/// The client's account: what was consumed goes back in CREDIT frames worth sending.
#[derive(Debug, Clone, Copy)]
pub struct CreditReturn {
    window_bytes: u32,
    consumed_bytes: u64,
}

impl CreditReturn {
    /// For a subscription begun with `window_bytes` of credit.
    pub fn new(window_bytes: u32) -> CreditReturn {
        CreditReturn { window_bytes, consumed_bytes: 0 }
    }

    /// The application is done with a DATA frame with this body. Answers the credit to send, once it is a quarter of the window.
    pub fn on_consumed(&mut self, body_bytes: u32) -> Option<Credit> {
        self.consumed_bytes += body_bytes as u64;
        if self.consumed_bytes < (self.window_bytes / 4).max(1) as u64 {
            return None;
        }
        let bytes = self.consumed_bytes.min(u32::MAX as u64);
        self.consumed_bytes -= bytes;
        Some(Credit { bytes: bytes as u32 })
    }
}
