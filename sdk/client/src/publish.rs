//! One-shot publishing: one batch, one connection, in 0-RTT where this process has spoken to the server before.
//!
//! For a device that wakes, reports and sleeps. The ticket carries the lane's identity and sequence, so a batch that is sent twice, by this client or
//! by somebody who replays the packets, is stored once.

use std::sync::Arc;

use bytes::Bytes;
use weir_batch::BatchBuilder;
use weir_protocol::{
    AckCode, AckItem, Acks, ErrorNotice, FRAME_BYTES_MAX_DEFAULT, Frame, Kind, Message, Nacks, ProtocolError, Publish,
};

use crate::{Ack, Client, ClientError, Codec, Record, backoff::Backoff, client::Inner, session::Frames};

const TICKET_VERSION: u8 = 1;

/// A lane's identity and position, to be kept by the application between wakings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProducerTicket {
    pub(crate) producer_id: i64,
    pub(crate) producer_epoch: i16,
    pub(crate) lane: u32,
    pub(crate) topic: String,
    pub(crate) partitions: u32,
    pub(crate) next_sequence: u64,
}

impl ProducerTicket {
    /// For a file or flash. Little-endian: version u8 (1) · producer id i64 · epoch i16 · lane u32 · partitions u32 · next sequence u64 · topic, the rest.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![TICKET_VERSION];
        bytes.extend_from_slice(&self.producer_id.to_le_bytes());
        bytes.extend_from_slice(&self.producer_epoch.to_le_bytes());
        bytes.extend_from_slice(&self.lane.to_le_bytes());
        bytes.extend_from_slice(&self.partitions.to_le_bytes());
        bytes.extend_from_slice(&self.next_sequence.to_le_bytes());
        bytes.extend_from_slice(self.topic.as_bytes());
        bytes
    }

    /// Back from a file or flash.
    pub fn from_bytes(bytes: &[u8]) -> Result<ProducerTicket, ClientError> {
        ProducerTicket::parse(bytes).ok_or_else(|| ClientError::Config {
            what: "ticket".to_owned(),
            reason: "is not a producer ticket; take a new one from a producer".to_owned(),
        })
    }

    fn parse(bytes: &[u8]) -> Option<ProducerTicket> {
        let (version, bytes) = bytes.split_first()?;
        let (producer_id, bytes) = bytes.split_first_chunk()?;
        let (producer_epoch, bytes) = bytes.split_first_chunk()?;
        let (lane, bytes) = bytes.split_first_chunk()?;
        let (partitions, bytes) = bytes.split_first_chunk()?;
        let (next_sequence, topic) = bytes.split_first_chunk()?;
        let ticket = ProducerTicket {
            producer_id: i64::from_le_bytes(*producer_id),
            producer_epoch: i16::from_le_bytes(*producer_epoch),
            lane: u32::from_le_bytes(*lane),
            partitions: u32::from_le_bytes(*partitions),
            next_sequence: u64::from_le_bytes(*next_sequence),
            topic: std::str::from_utf8(topic).ok()?.to_owned(),
        };
        (*version == TICKET_VERSION && ticket.producer_id >= 0 && ticket.partitions > 0).then_some(ticket)
    }

    /// The sequence of the next record.
    pub fn next_sequence(&self) -> u64 {
        self.next_sequence
    }

    /// Partitions the topic had.
    pub fn partitions(&self) -> u32 {
        self.partitions
    }
}

/// What came of a one-shot publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PublishOutcome {
    /// Of the first record.
    pub ack: Ack,
    /// The batch travelled in the first flight and the server took it from there.
    pub zero_rtt: bool,
}

impl Client {
    /// Publishes records as one batch on a connection of its own, retrying until `retry_timeout`. The ticket moves on when the batch is durable; after an error
    /// publish the *same records* again with the same ticket, because they may be durable already.
    pub async fn publish_once(
        &self,
        ticket: &mut ProducerTicket,
        partition: u32,
        records: &[Record<'_>],
        now_ms: i64,
    ) -> Result<PublishOutcome, ClientError> {
        let mut builder = BatchBuilder::new(Codec::None);
        for record in records {
            builder.push(record.timestamp.unwrap_or(now_ms), record.key, record.value, record.headers);
        }
        let batch: Bytes = builder.finish()?.into();
        let publish = Publish {
            producer_id: ticket.producer_id,
            producer_epoch: ticket.producer_epoch,
            lane: ticket.lane,
            topic: ticket.topic.clone(),
            partition,
            base_sequence: ticket.next_sequence,
            batch,
        };
        let frame = publish.to_frame(FRAME_BYTES_MAX_DEFAULT)?;
        let outcome = self.publish_frame(&frame, partition, records.len() as u32).await?;
        ticket.next_sequence += records.len() as u64;
        Ok(outcome)
    }

    /// Connects once without any producer name (which would fence the ticket), so that this process has a session to publish in 0-RTT with.
    pub async fn warm_up(&self) -> Result<(), ClientError> {
        let session = self.inner.connect_once("").await?;
        session.connection.close(0u32.into(), b"");
        Ok(())
    }

    async fn publish_frame(&self, frame: &Bytes, partition: u32, record_count: u32) -> Result<PublishOutcome, ClientError> {
        let config = &self.inner.config;
        let after = config.retry_timeout;
        let mut backoff = Backoff::new(config.backoff_max);
        let mut last = None;
        let attempts = async {
            loop {
                match publish_on_new_connection(&self.inner, frame).await {
                    Ok((item, zero_rtt)) => return Ok(PublishOutcome { ack: ack(&item, partition, record_count), zero_rtt }),
                    Err(error) if error.is_retryable() => last = Some(error.to_string()),
                    Err(error) => return Err(error),
                }
                tokio::time::sleep(backoff.next_pause()).await;
            }
        };
        match tokio::time::timeout(after, attempts).await {
            Ok(result) => result,
            Err(_) => {
                let last = last.unwrap_or_else(|| "no answer".to_owned());
                Err(ClientError::TimedOut { what: "publishing", after, last })
            }
        }
    }
}

fn ack(item: &AckItem, partition: u32, record_count: u32) -> Ack {
    let whole = item.stored_count == record_count;
    Ack {
        partition,
        offset: if whole { item.base_offset } else { -1 },
        duplicate: item.code == AckCode::Duplicate,
        stored: Some((item.stored_count, record_count)),
    }
}

async fn publish_on_new_connection(client: &Arc<Inner>, frame: &Bytes) -> Result<(AckItem, bool), ClientError> {
    let (connection, accepted) = match client.connecting().await?.into_0rtt() {
        Ok((connection, accepted)) => (connection, Some(accepted)),
        Err(connecting) => (connecting.await.map_err(|error| client.explain(&error))?, None),
    };
    let item = match accepted {
        None => publish_on(client, &connection, frame).await.map(|item| (item, false)),
        Some(accepted) => {
            let early = publish_on(client, &connection, frame).await;
            match accepted.await {
                true => early.map(|item| (item, true)),
                // Refused early data never reached the server; the stream ended with it. The sequence makes sending again harmless anyway.
                false => publish_on(client, &connection, frame).await.map(|item| (item, false)),
            }
        }
    };
    connection.close(0u32.into(), b"");
    item
}

async fn publish_on(client: &Arc<Inner>, connection: &quinn::Connection, frame: &Bytes) -> Result<AckItem, ClientError> {
    let (mut send, recv) = connection.open_bi().await.map_err(|error| client.explain(&error))?;
    send.write_chunk(frame.clone()).await.map_err(|error| client.lost(connection, &error))?;
    let _ = send.finish(); // only a stream that has ended already says no
    let mut frames = Frames::new(recv, FRAME_BYTES_MAX_DEFAULT);
    match frames.next(client, connection).await? {
        Some(frame) => answer(client, frame),
        None => Err(ClientError::Disconnected { reason: "the server ended the stream".to_owned() }),
    }
}

fn answer(client: &Inner, frame: Frame) -> Result<AckItem, ClientError> {
    let refused = |code, message| Err(ClientError::refused(code, message, &client.producer_name));
    let one = |count: usize| ProtocolError::BadValue { field: "publish.answers", value: count as i128 };
    match frame.kind {
        Kind::Ack => {
            let items = Acks::decode(frame.body)?.items;
            items.first().copied().ok_or_else(|| one(items.len()).into())
        }
        Kind::Nack => match Nacks::decode(frame.body)?.items.pop() {
            Some(nack) => refused(nack.code, nack.message),
            None => Err(one(0).into()),
        },
        Kind::Error => {
            let notice = ErrorNotice::decode(frame.body)?;
            refused(notice.code, notice.message)
        }
        found => Err(ProtocolError::UnexpectedKind { found, wanted: "ACK, NACK or ERROR" }.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_survives_being_written_down() {
        let ticket = ProducerTicket {
            producer_id: 7,
            producer_epoch: 3,
            lane: 2,
            topic: "tyres".into(),
            partitions: 4,
            next_sequence: 1 << 40,
        };
        let bytes = ticket.to_bytes();
        assert_eq!(ProducerTicket::from_bytes(&bytes).unwrap(), ticket);
        for cut in 0..27 {
            assert!(ProducerTicket::from_bytes(&bytes[..cut]).is_err(), "{cut}");
        }
    }
}
