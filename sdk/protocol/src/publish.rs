//! PUBLISH: one batch on a stream of its own, in 0-RTT if the client likes, because its sequence makes a replay harmless.

use bytes::{BufMut, Bytes, BytesMut};

use crate::{
    Kind, Message, ProtocolError,
    wire::{Reader, put_str},
};

/// One idempotent batch with the identity an earlier connection of the same principal was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// From that connection's WELCOME.
    pub producer_id: i64,
    /// From that connection's WELCOME; it is not raised.
    pub producer_epoch: i16,
    /// The lane whose sequence the batch continues.
    pub lane: u32,
    /// The topic.
    pub topic: String,
    /// Its partition.
    pub partition: u32,
    /// The lane's sequence of the first record.
    pub base_sequence: u64,
    /// One record batch, not yet verified.
    pub batch: Bytes,
}

impl Message for Publish {
    const KIND: Kind = Kind::Publish;

    fn decode(body: Bytes) -> Result<Publish, ProtocolError> {
        let mut body = Reader::new(body);
        let publish = Publish {
            producer_id: body.i64("publish.producer_id")?,
            producer_epoch: body.i16("publish.producer_epoch")?,
            lane: body.u32("publish.lane")?,
            topic: body.str("publish.topic")?,
            partition: body.u32("publish.partition")?,
            base_sequence: body.u64("publish.base_sequence")?,
            batch: body.rest(),
        };
        if publish.producer_id < 0 {
            return Err(ProtocolError::BadValue { field: "publish.producer_id", value: publish.producer_id as i128 });
        }
        Ok(publish)
    }

    fn encode_body(&self, out: &mut BytesMut) -> Result<(), ProtocolError> {
        out.put_i64_le(self.producer_id);
        out.put_i16_le(self.producer_epoch);
        out.put_u32_le(self.lane);
        put_str(out, "publish.topic", &self.topic)?;
        out.put_u32_le(self.partition);
        out.put_u64_le(self.base_sequence);
        out.put_slice(&self.batch);
        Ok(())
    }
}
