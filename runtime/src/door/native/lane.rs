//! A produce lane's stream: batches in, checked one after the other, on their way to the log in that order.
//!
//! Nothing is sent back here but LANE_READY: acks and nacks go through the control stream.

use std::sync::Arc;

use quinn::SendStream;
use weir_protocol::lane::{Arrival, LaneReceiver};
use weir_protocol::{Batch, Kind, LaneOpen, LaneReady, ProtocolError};

use super::connection::{LaneAccount, Session};
use super::control::refuse;
use super::stream::{FrameReader, StreamError, send_message};
use crate::broker::{BatchId, Decision, Lane, Refusal, lock};

/// Serves a lane to its stream's end.
pub(super) async fn serve(
    session: &Arc<Session>,
    send: &mut SendStream,
    frames: &mut FrameReader,
    open: LaneOpen,
) -> Result<(), StreamError> {
    let lane = match prepare(session, &open).await {
        Ok(lane) => lane,
        Err(Unready::Refused(refusal)) => return refuse(session, send, &refusal).await,
        Err(Unready::Protocol(error)) => return Err(error.into()),
    };
    session.widen();
    let ready = LaneReady {
        lane: open.lane,
        partitions: lane.topic().partition_count(),
        next_sequence: lane.next_sequence(),
        credit_bytes: session.door.limits.lane_credit_bytes,
    };
    if let Err(refusal) = account(session, &open, &ready) {
        return refuse(session, send, &refusal).await;
    }
    let guard = OpenLane { session, lane: open.lane };
    send_message(send, &ready, session.frame_bytes_max()).await?;
    while let Some(frame) = frames.next().await? {
        let batch: Batch = frame.expect("BATCH")?;
        take(session, &lane, open.lane, batch).await?;
    }
    drop(guard);
    let _ = send.finish();
    Ok(())
}

enum Unready {
    Refused(Refusal),
    Protocol(ProtocolError),
}

async fn prepare(session: &Arc<Session>, open: &LaneOpen) -> Result<Lane, Unready> {
    // A lane may overtake the HELLO it belongs to.
    let hello = tokio::time::timeout(session.stream_patience(), session.hello.wait()).await;
    let missing = ProtocolError::UnexpectedKind { found: Kind::LaneOpen, wanted: "HELLO on a control stream" };
    let producer = hello.map_err(|_| Unready::Protocol(missing))?;
    let Some((producer, epoch)) = producer else {
        let problem = "HELLO carried none, so the connection has no lanes; connect with a producer name".to_owned();
        return Err(Unready::Refused(Refusal::InvalidArgument { field: "producer_name", problem }));
    };
    let broker = &session.door.broker;
    let lane = broker.open_lane(session.principal(), &open.topic, open.lane, (producer, *epoch), &session.outbox).await;
    lane.map_err(Unready::Refused)
}

/// Takes the lane's number for this stream.
fn account(session: &Session, open: &LaneOpen, ready: &LaneReady) -> Result<(), Refusal> {
    let limits = &session.door.limits;
    let mut lanes = lock(&session.lanes);
    if lanes.contains_key(&open.lane) {
        let problem = format!("{} is open already, or its last batches are not answered yet", open.lane);
        return Err(Refusal::InvalidArgument { field: "lane", problem });
    }
    if lanes.len() >= usize::from(limits.lanes_max) {
        return Err(Refusal::Quota { what: format!("{} lanes of one connection", limits.lanes_max) });
    }
    let receiver = LaneReceiver::new(open.lane, ready.next_sequence, limits.batches_in_flight_max, limits.lane_credit_bytes);
    lanes.insert(open.lane, LaneAccount { receiver, open: true });
    Ok(())
}

/// Gives the number back when the stream ends; the account stays until its last batch is answered.
struct OpenLane<'a> {
    session: &'a Session,
    lane: u32,
}

impl Drop for OpenLane<'_> {
    fn drop(&mut self) {
        let mut lanes = lock(&self.session.lanes);
        if let Some(account) = lanes.get_mut(&self.lane) {
            account.open = false;
            if account.receiver.batches_in_flight() == 0 {
                lanes.remove(&self.lane);
            }
        }
    }
}

/// One batch: verified, counted, handed on. Waits here while the node has too much in flight.
async fn take(session: &Session, lane: &Lane, number: u32, batch: Batch) -> Result<(), StreamError> {
    let Batch { partition, base_sequence, batch } = batch;
    let bytes = batch.len();
    let checked = match lane.check(partition, base_sequence, batch) {
        Ok(checked) => checked,
        Err(refusal) => {
            let id = BatchId { lane: number, partition, base_sequence, record_count: 0, batch_bytes: bytes };
            session.outbox.decide(Decision { id, result: Err(refusal), counted: false });
            return Ok(());
        }
    };
    let arrival = match lock(&session.lanes).get_mut(&number) {
        Some(account) => account.receiver.on_batch(base_sequence, checked.id.record_count, bytes)?,
        None => return Err(StreamError::Gone),
    };
    match arrival {
        Arrival::Next | Arrival::Duplicate => lane.submit(checked).await,
        Arrival::Gap { expected } => {
            let result = Err(Refusal::SequenceGap { expected });
            session.outbox.decide(Decision { id: checked.id, result, counted: false });
        }
    }
    Ok(())
}
