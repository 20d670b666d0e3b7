//! A subscription's stream: stored batches out while credit lasts, as they lie in the log.
//!
//! Partitions that have more are served in turn, a frame each, so that one fat partition does not starve the others. At
//! the tail a live subscription sleeps until the log says which of its partitions grew.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use quinn::SendStream;
use weir_batch::split_batches;
use weir_protocol::fetch::{CreditBalance, DATA_PREFIX_BYTES, put_data_prefix};
use weir_protocol::{Credit, End, Kind, ProtocolError, Start, Subscribe};
use weir_storage::ReadChunk;

use super::connection::Session;
use super::control::refuse;
use super::stream::{FrameReader, StreamError, send_message};
use crate::broker::{Refusal, Tail, Topic};

/// Partitions of one subscription.
const PARTITIONS_MAX: usize = 10_000;
/// What one read asks for at most: one frame's worth.
const READ_BYTES_MAX: usize = 1 << 20;

/// Where a subscription stands in one partition.
#[derive(Debug)]
struct Position {
    partition: u32,
    next_offset: i64,
    /// It is in the queue of those that may have more.
    queued: bool,
}

struct Subscription<'a> {
    session: &'a Session,
    topic: Arc<Topic>,
    live: bool,
    positions: Vec<Position>,
    /// Positions that may have more to send, in turn.
    ready: VecDeque<usize>,
    credit: CreditBalance,
}

/// Serves a subscription to its end.
pub(super) async fn serve(
    session: &Arc<Session>,
    send: &mut SendStream,
    frames: &mut FrameReader,
    subscribe: Subscribe,
) -> Result<(), StreamError> {
    // The control stream's HELLO may still be on its way.
    if tokio::time::timeout(session.stream_patience(), session.hello.wait()).await.is_err() {
        let wanted = "HELLO on a control stream";
        return Err(ProtocolError::UnexpectedKind { found: Kind::Subscribe, wanted }.into());
    }
    let (mut subscription, tail) = match Subscription::new(session, subscribe) {
        Ok(ready) => ready,
        Err(refusal) => return refuse(session, send, &refusal).await,
    };
    match subscription.run(send, frames, tail.as_ref()).await {
        Err(Ended::Refused(refusal)) => refuse(session, send, &refusal).await,
        Err(Ended::Stream(error)) => Err(error),
        Ok(()) => Ok(()),
    }
}

/// Why a subscription ended before its time.
enum Ended {
    Refused(Refusal),
    Stream(StreamError),
}

impl From<Refusal> for Ended {
    fn from(refusal: Refusal) -> Ended {
        Ended::Refused(refusal)
    }
}

impl<E: Into<StreamError>> From<E> for Ended {
    fn from(error: E) -> Ended {
        Ended::Stream(error.into())
    }
}

impl<'a> Subscription<'a> {
    fn new(session: &'a Session, subscribe: Subscribe) -> Result<(Subscription<'a>, Option<Tail>), Refusal> {
        let broker = &session.door.broker;
        let topic = broker.consumable(session.principal(), &subscribe.topic)?;
        let mut numbers: Vec<u32> = subscribe.partitions.iter().map(|(partition, _)| *partition).collect();
        // Watched before the ranges are read: what comes in between is heard of.
        let tail = if subscribe.live { Some(broker.watch(&topic, &numbers)?) } else { None };
        numbers.sort_unstable();
        numbers.dedup();
        if numbers.is_empty() || numbers.len() > PARTITIONS_MAX || numbers.len() < subscribe.partitions.len() {
            let problem = format!("name 1 to {PARTITIONS_MAX} partitions, each once");
            return Err(Refusal::InvalidArgument { field: "partitions", problem });
        }
        let mut positions = Vec::with_capacity(subscribe.partitions.len());
        for (partition, start) in subscribe.partitions {
            let bounds = broker.bounds(&topic, partition)?;
            let next_offset = match start {
                Start::Earliest => bounds.start,
                Start::Latest => bounds.high_watermark,
                Start::Offset(offset) if (bounds.start..=bounds.high_watermark).contains(&offset) => offset,
                Start::Offset(offset) => {
                    let (topic, start) = (topic.name.to_string(), bounds.start);
                    let high_watermark = bounds.high_watermark;
                    return Err(Refusal::OutOfRange { topic, partition, offset, start, high_watermark });
                }
            };
            positions.push(Position { partition, next_offset, queued: true });
        }
        let ready = (0..positions.len()).collect();
        let credit = CreditBalance::new(subscribe.credit_bytes);
        let live = subscribe.live;
        Ok((Subscription { session, topic, live, positions, ready, credit }, tail))
    }

    async fn run(&mut self, send: &mut SendStream, frames: &mut FrameReader, tail: Option<&Tail>) -> Result<(), Ended> {
        let mut grown = Vec::new();
        loop {
            while self.credit.may_send() {
                let Some(index) = self.ready.pop_front() else { break };
                self.send_some(send, index).await?;
            }
            if self.ready.is_empty() && !self.live {
                return self.end(send).await;
            }
            tokio::select! {
                frame = frames.next() => match frame? {
                    Some(frame) => self.credit.on_credit(frame.expect::<Credit>("CREDIT")?),
                    // The consumer has closed its side: it wants no more.
                    None => {
                        let _ = send.finish();
                        return Ok(());
                    }
                },
                () = wait_for(tail, &mut grown) => {
                    for index in grown.drain(..) {
                        self.queue(index);
                    }
                }
            }
        }
    }

    fn queue(&mut self, index: usize) {
        let position = &mut self.positions[index];
        if !position.queued {
            position.queued = true;
            self.ready.push_back(index);
        }
    }

    /// Sends a read's worth of one partition and puts it back in line if it has more.
    async fn send_some(&mut self, send: &mut SendStream, index: usize) -> Result<(), Ended> {
        let position = &mut self.positions[index];
        position.queued = false;
        let (partition, offset) = (position.partition, position.next_offset);
        let frame_room = self.session.frame_bytes_max() as usize - DATA_PREFIX_BYTES;
        let bytes_max = (self.credit.available() as usize).min(frame_room).min(READ_BYTES_MAX);
        let chunk = self.session.door.broker.read(&self.topic, partition, offset, bytes_max).await?;
        let (next_offset, high_watermark) = (chunk.next_offset, chunk.high_watermark);
        if !chunk.batches.is_empty() {
            self.send_chunk(send, partition, offset, chunk).await?;
        }
        self.positions[index].next_offset = next_offset;
        if next_offset < high_watermark {
            self.queue(index);
        }
        Ok(())
    }

    async fn send_chunk(
        &mut self,
        send: &mut SendStream,
        partition: u32,
        mut start_offset: i64,
        chunk: ReadChunk,
    ) -> Result<(), Ended> {
        let room = self.session.frame_bytes_max() as usize - DATA_PREFIX_BYTES;
        let mut batches = whole_batches(chunk.batches, room)?.into_iter().peekable();
        while batches.peek().is_some() {
            // One slot for what precedes the batches; they follow as slices of the log's memory.
            let mut parts = vec![Bytes::new()];
            let mut bytes = 0;
            let mut next_offset = start_offset;
            while let Some(batch) = batches.next_if(|batch| bytes == 0 || bytes + batch.bytes.len() <= room) {
                bytes += batch.bytes.len();
                next_offset = batch.next_offset;
                parts.push(batch.bytes);
            }
            let mut prefix = BytesMut::with_capacity(DATA_PREFIX_BYTES);
            let max = self.session.frame_bytes_max();
            let cost = put_data_prefix(&mut prefix, max, partition, chunk.high_watermark, start_offset, bytes)?;
            parts[0] = prefix.freeze();
            send.write_all_chunks(&mut parts).await?;
            self.sent(cost, bytes);
            start_offset = next_offset;
        }
        Ok(())
    }

    fn sent(&mut self, cost: u32, bytes: usize) {
        if self.credit.may_send() {
            self.credit.on_sent(cost);
        }
        self.topic.meters.batches_out.inc();
        self.topic.meters.bytes_out.inc_by(bytes as u64);
    }

    async fn end(&mut self, send: &mut SendStream) -> Result<(), Ended> {
        let positions = self.positions.iter().map(|position| (position.partition, position.next_offset)).collect();
        send_message(send, &End { positions }, self.session.frame_bytes_max()).await?;
        let _ = send.finish();
        Ok(())
    }
}

/// A run of whole batches that fits a frame.
struct Run {
    bytes: Bytes,
    next_offset: i64,
}

/// What the log returned, cut so that each run fits a frame: usually it is as it came.
fn whole_batches(chunks: Vec<Bytes>, room: usize) -> Result<Vec<Run>, Refusal> {
    let damaged = |error: weir_batch::BatchError| Refusal::Internal { reason: format!("a stored batch: {error}") };
    let mut runs = Vec::with_capacity(chunks.len());
    for chunk in chunks {
        let mut at = 0;
        for batch in split_batches(&chunk) {
            let batch = batch.map_err(damaged)?;
            let end = at + batch.bytes().len();
            if end - at > room {
                return Err(Refusal::BatchTooLarge { bytes: (end - at) as u64, max: room as u64 });
            }
            runs.push(Run { bytes: chunk.slice(at..end), next_offset: batch.next_offset() });
            at = end;
        }
    }
    Ok(runs)
}

async fn wait_for(tail: Option<&Tail>, grown: &mut Vec<usize>) {
    match tail {
        Some(tail) => tail.grown(grown).await,
        None => std::future::pending().await,
    }
}
