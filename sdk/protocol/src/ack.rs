//! ACK and NACK: the two answers a batch can have. A connection's answers of one commit share a frame.

use bytes::{BufMut, Bytes, BytesMut};

use crate::{
    Code, Kind, MESSAGE_BYTES_MAX, Message, ProtocolError,
    frame::{FRAME_HEADER_BYTES, put_frame},
    wire::{Reader, put_list, put_message},
};

/// Bytes of an ack item.
pub const ACK_ITEM_BYTES: usize = 40;
/// Bytes of a nack item with an empty message, and with the longest.
const NACK_ITEM_BYTES_MIN: usize = 28;
const NACK_ITEM_BYTES_MAX: usize = NACK_ITEM_BYTES_MIN + MESSAGE_BYTES_MAX;

/// How an acknowledged batch became durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AckCode {
    /// By this send.
    Durable,
    /// By an earlier one: the sequence was already on disk.
    Duplicate,
}

/// Everything of the lane below `base_sequence + record_count` is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AckItem {
    /// The lane.
    pub lane: u32,
    /// The batch's partition.
    pub partition: u32,
    /// The batch's first sequence.
    pub base_sequence: u64,
    /// The producer's records in it; 0: nothing is acknowledged, only the window restated.
    pub record_count: u32,
    /// Records the pipeline left on this topic.
    pub stored_count: u32,
    /// Offset of the first stored; -1: none stored, or not known any more.
    pub base_offset: i64,
    /// First time or duplicate.
    pub code: AckCode,
    /// The lane's window from now on.
    pub credit_bytes: u32,
}

impl AckItem {
    fn put(&self, out: &mut BytesMut) {
        out.put_u32_le(self.lane);
        out.put_u32_le(self.partition);
        out.put_u64_le(self.base_sequence);
        out.put_u32_le(self.record_count);
        out.put_u32_le(self.stored_count);
        out.put_i64_le(self.base_offset);
        out.put_u8(match self.code {
            AckCode::Durable => 0,
            AckCode::Duplicate => 1,
        });
        out.put_bytes(0, 3);
        out.put_u32_le(self.credit_bytes);
    }

    fn read(body: &mut Reader) -> Result<AckItem, ProtocolError> {
        let lane = body.u32("ack.lane")?;
        let partition = body.u32("ack.partition")?;
        let base_sequence = body.u64("ack.base_sequence")?;
        let record_count = body.u32("ack.record_count")?;
        let stored_count = body.u32("ack.stored_count")?;
        let base_offset = body.i64("ack.base_offset")?;
        let code = match body.u8("ack.code")? {
            0 => AckCode::Durable,
            1 => AckCode::Duplicate,
            other => return Err(ProtocolError::BadValue { field: "ack.code", value: other as i128 }),
        };
        if body.array::<3>("ack.reserved")? != [0; 3] {
            return Err(ProtocolError::ReservedNotZero { kind: Kind::Ack });
        }
        if base_offset < -1 {
            return Err(ProtocolError::BadValue { field: "ack.base_offset", value: base_offset as i128 });
        }
        if base_sequence.checked_add(record_count as u64).is_none() {
            return Err(ProtocolError::BadValue { field: "ack.base_sequence", value: base_sequence as i128 });
        }
        let credit_bytes = body.u32("ack.credit_bytes")?;
        Ok(AckItem { lane, partition, base_sequence, record_count, stored_count, base_offset, code, credit_bytes })
    }
}

/// The ack items of one commit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Acks {
    /// In the order of each lane.
    pub items: Vec<AckItem>,
}

impl Message for Acks {
    const KIND: Kind = Kind::Ack;

    fn decode(body: Bytes) -> Result<Acks, ProtocolError> {
        let mut body = Reader::new(body);
        let items = body.list("ack.items", ACK_ITEM_BYTES, AckItem::read)?;
        body.end("ACK")?;
        Ok(Acks { items })
    }

    fn encode_body(&self, out: &mut BytesMut) -> Result<(), ProtocolError> {
        put_ack_items(&self.items, out)
    }
}

fn put_ack_items(items: &[AckItem], out: &mut BytesMut) -> Result<(), ProtocolError> {
    out.reserve(4 + items.len() * ACK_ITEM_BYTES);
    put_list(out, "ack.items", items, |out, item| {
        item.put(out);
        Ok(())
    })
}

/// Appends the items as one ACK frame, or as several where one would be over the limit.
pub fn encode_acks(items: &[AckItem], frame_bytes_max: u32, out: &mut BytesMut) -> Result<(), ProtocolError> {
    let room = (frame_bytes_max as usize).saturating_sub(FRAME_HEADER_BYTES + 4);
    for items in items.chunks((room / ACK_ITEM_BYTES).max(1)) {
        put_frame(Kind::Ack, 0, frame_bytes_max, out, |out| put_ack_items(items, out))?;
    }
    Ok(())
}

/// A batch that was refused: nothing of it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NackItem {
    /// The lane.
    pub lane: u32,
    /// The batch's partition.
    pub partition: u32,
    /// The batch's first sequence.
    pub base_sequence: u64,
    /// The lane's next sequence as far as the server knows.
    pub expected_sequence: u64,
    /// Why.
    pub code: Code,
    /// What to do about it.
    pub message: String,
}

impl NackItem {
    fn put(&self, out: &mut BytesMut) {
        out.put_u32_le(self.lane);
        out.put_u32_le(self.partition);
        out.put_u64_le(self.base_sequence);
        out.put_u64_le(self.expected_sequence);
        out.put_u16_le(self.code.number());
        put_message(out, &self.message);
    }

    fn read(body: &mut Reader) -> Result<NackItem, ProtocolError> {
        Ok(NackItem {
            lane: body.u32("nack.lane")?,
            partition: body.u32("nack.partition")?,
            base_sequence: body.u64("nack.base_sequence")?,
            expected_sequence: body.u64("nack.expected_sequence")?,
            code: read_refusal(body, "nack.code")?,
            message: body.str("nack.message")?,
        })
    }
}

/// A code that is not `ok`.
pub(crate) fn read_refusal(body: &mut Reader, field: &'static str) -> Result<Code, ProtocolError> {
    match Code::from_number(body.u16(field)?) {
        Code::Ok => Err(ProtocolError::BadValue { field, value: 0 }),
        code => Ok(code),
    }
}

/// The nack items of one commit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Nacks {
    /// In the order of each lane.
    pub items: Vec<NackItem>,
}

impl Message for Nacks {
    const KIND: Kind = Kind::Nack;

    fn decode(body: Bytes) -> Result<Nacks, ProtocolError> {
        let mut body = Reader::new(body);
        let items = body.list("nack.items", NACK_ITEM_BYTES_MIN, NackItem::read)?;
        body.end("NACK")?;
        Ok(Nacks { items })
    }

    fn encode_body(&self, out: &mut BytesMut) -> Result<(), ProtocolError> {
        put_list(out, "nack.items", &self.items, |out, item| {
            item.put(out);
            Ok(())
        })
    }
}

/// Appends the items as one NACK frame, or as several where one could be over the limit.
pub fn encode_nacks(items: &[NackItem], frame_bytes_max: u32, out: &mut BytesMut) -> Result<(), ProtocolError> {
    let room = (frame_bytes_max as usize).saturating_sub(FRAME_HEADER_BYTES + 4);
    for items in items.chunks((room / NACK_ITEM_BYTES_MAX).max(1)) {
        put_frame(Kind::Nack, 0, frame_bytes_max, out, |out| {
            put_list(out, "nack.items", items, |out, item| {
                item.put(out);
                Ok(())
            })
        })?;
    }
    Ok(())
}
