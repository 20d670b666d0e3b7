//! The control stream: HELLO and WELCOME, requests and answers, and the acks of all lanes.
//!
//! One task does all of it, so that frames never mix. It sleeps on the outbox, on requests, on answers of running
//! requests, on the node's phase and on the end of the client's certificate.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use quinn::SendStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use weir_protocol::ack::{encode_acks, encode_nacks};
use weir_protocol::admin::encode_response;
use weir_protocol::{
    AckCode, AckItem, Code, ErrorNotice, GoAway, Hello, NackItem, ProtocolError, RequestFrame, VERSION, Welcome,
};

use super::Phase;
use super::admin::{Outcome, Uploads};
use super::codes::{code_of, notice_of};
use super::connection::Session;
use super::stream::{FrameReader, StreamError, close, close_with, end_with, send_message};
use crate::broker::ingest::now_ms;
use crate::broker::{Decision, Refusal, lock};

/// Requests of one connection that run at the same time; further ones are not read.
const REQUESTS_RUNNING_MAX: usize = 8;
/// How long a peer may take to take in the last frames when the node stops.
const LAST_FRAMES_MAX: Duration = Duration::from_secs(1);

/// Serves the control stream to its end; the connection ends with it.
pub(super) async fn serve(
    session: &Arc<Session>,
    send: &mut SendStream,
    frames: &mut FrameReader,
    hello: Hello,
) -> Result<(), StreamError> {
    if session.control.set(()).is_err() {
        return Err(
            ProtocolError::UnexpectedKind { found: weir_protocol::Kind::Hello, wanted: "no second control stream" }.into()
        );
    }
    hello.check_version()?;
    if let Err(refusal) = greet(session, send, &hello).await? {
        close_with(&session.connection, send, &notice_of(&refusal), session.frame_bytes_max()).await;
        return Ok(());
    }
    let mut control = Control {
        session,
        send,
        requests: JoinSet::new(),
        uploads: Uploads::new(session.door.plugin_bytes_max),
        decisions: Vec::new(),
        told_to_go: false,
    };
    let result = control.run(frames).await;
    // What was asked for is done even if the one who asked is gone.
    control.requests.detach_all();
    // Without a control stream nobody hears acks: whatever ended it ends the connection. A protocol error says so first.
    if !matches!(result, Err(StreamError::Protocol(_))) {
        session.connection.close(quinn::VarInt::from_u32(0), b"");
    }
    result
}

/// Answers HELLO. The producer's epoch is durable before the client learns it.
async fn greet(session: &Session, send: &mut SendStream, hello: &Hello) -> Result<Result<(), Refusal>, StreamError> {
    let door = &session.door;
    let producer = match hello.producer_name.as_str() {
        "" => None,
        name => match door.broker.register_producer(session.principal(), name).await {
            Ok(producer) => Some(producer),
            Err(refusal) => return Ok(Err(refusal)),
        },
    };
    let welcome = Welcome {
        version: VERSION,
        node_id: door.status.node_id(),
        server: concat!("weir ", env!("CARGO_PKG_VERSION")).to_owned(),
        principal: session.principal().to_string(),
        producer_id: producer.as_ref().map_or(-1, |(producer, _)| producer.id),
        producer_epoch: producer.as_ref().map_or(-1, |(_, epoch)| *epoch),
        frame_bytes_max: session.frame_bytes_max(),
        batch_bytes_max: door.batch_bytes_max(),
        lanes_max: door.limits.lanes_max,
        batches_in_flight_max: door.limits.batches_in_flight_max,
        now_ms: now_ms(),
    };
    send_message(send, &welcome, session.frame_bytes_max()).await?;
    tracing::debug!(principal = &**session.principal(), client = hello.client, producer = hello.producer_name, "hello");
    let _ = session.hello.set(producer);
    Ok(Ok(()))
}

struct Control<'a> {
    session: &'a Arc<Session>,
    send: &'a mut SendStream,
    requests: JoinSet<Outcome>,
    uploads: Uploads,
    decisions: Vec<Decision>,
    told_to_go: bool,
}

impl Control<'_> {
    async fn run(&mut self, frames: &mut FrameReader) -> Result<(), StreamError> {
        let outbox = self.session.outbox.clone();
        let mut phase = self.session.door.phase.clone();
        let expiry = tokio::time::sleep(until_expiry(self.session.identity.not_after));
        tokio::pin!(expiry);
        self.on_phase(&mut phase).await?;
        loop {
            tokio::select! {
                biased;
                () = outbox.take(&mut self.decisions) => self.send_decisions().await?,
                Some(outcome) = self.requests.join_next(), if !self.requests.is_empty() => self.answer(outcome).await?,
                frame = frames.next(), if self.requests.len() < REQUESTS_RUNNING_MAX => match frame? {
                    Some(frame) => self.start(frame.expect("REQUEST")?),
                    // The client is done: it has closed its side.
                    None => return self.finish().await,
                },
                Ok(()) = phase.changed() => self.on_phase(&mut phase).await?,
                () = &mut expiry => {
                    let message = "the client certificate has expired; renew it and reconnect".to_owned();
                    let notice = ErrorNotice { code: Code::Unauthorized, message };
                    close_with(&self.session.connection, self.send, &notice, self.session.frame_bytes_max()).await;
                    return Ok(());
                }
            }
        }
    }

    fn start(&mut self, frame: RequestFrame) {
        let RequestFrame { correlation, request } = frame;
        match self.uploads.gather(self.session, request) {
            Ok(Some(request)) => {
                let session = self.session.clone();
                self.requests.spawn(super::admin::run(session, correlation, request));
            }
            Ok(None) => {
                self.requests.spawn(std::future::ready(Outcome::done(correlation)));
            }
            Err(refusal) => {
                self.requests.spawn(std::future::ready(Outcome::refused(correlation, &refusal)));
            }
        }
    }

    async fn answer(&mut self, outcome: Result<Outcome, tokio::task::JoinError>) -> Result<(), StreamError> {
        let Ok(outcome) = outcome else {
            // A panic in a request is our mistake; the client learns it by losing the connection, not by waiting.
            let message = "a request failed inside the node; see its log".to_owned();
            close(&self.session.connection, &ErrorNotice { code: Code::Internal, message });
            return Err(StreamError::Gone);
        };
        let mut out = BytesMut::new();
        encode_response(outcome.correlation, &outcome.result, self.session.frame_bytes_max(), &mut out)?;
        Ok(self.send.write_chunk(out.freeze()).await?)
    }

    /// All decisions that are there: one ACK frame, and one NACK frame where something was refused.
    async fn send_decisions(&mut self) -> Result<(), StreamError> {
        let session = self.session;
        let mut acks = Vec::with_capacity(self.decisions.len());
        let mut nacks = Vec::new();
        {
            let tight = session.door.broker.is_tight();
            let mut lanes = lock(&session.lanes);
            for decision in self.decisions.drain(..) {
                let account = lanes.get_mut(&decision.id.lane).map(|account| &mut account.receiver);
                match &decision.result {
                    Ok(stored) => {
                        let mut credit_bytes = session.door.limits.lane_credit_bytes;
                        if let Some(receiver) = account {
                            receiver.on_durable(decision.id.batch_bytes);
                            // With nothing left in flight there would be no next ack to bring the window back.
                            if tight && receiver.batches_in_flight() > 0 {
                                credit_bytes = 0;
                            }
                        }
                        acks.push(ack_item(&decision, stored, credit_bytes));
                    }
                    Err(refusal) => {
                        let next = account.map(|receiver| {
                            if decision.counted {
                                receiver.on_refused(decision.id.base_sequence, decision.id.batch_bytes);
                            }
                            receiver.next_sequence()
                        });
                        session.door.broker.metrics().nack(code_of(refusal).name());
                        nacks.push(nack_item(&decision, refusal, next));
                    }
                }
            }
            lanes.retain(|_, account| account.open || account.receiver.batches_in_flight() > 0);
        }
        let mut out = BytesMut::with_capacity(16 + acks.len() * weir_protocol::ack::ACK_ITEM_BYTES);
        if !acks.is_empty() {
            encode_acks(&acks, session.frame_bytes_max(), &mut out)?;
            session.door.broker.metrics().ack_frames.inc();
        }
        if !nacks.is_empty() {
            encode_nacks(&nacks, session.frame_bytes_max(), &mut out)?;
        }
        Ok(self.send.write_chunk(out.freeze()).await?)
    }

    async fn on_phase(&mut self, phase: &mut watch::Receiver<Phase>) -> Result<(), StreamError> {
        let now = *phase.borrow_and_update();
        // A short drain may be over before this task looked: GO_AWAY is said all the same.
        if now != Phase::Open && !std::mem::replace(&mut self.told_to_go, true) {
            let message = "the node is shutting down; finish what is in flight and reconnect later".to_owned();
            let notice = GoAway { code: Code::ShuttingDown, message };
            send_message(self.send, &notice, self.session.frame_bytes_max()).await?;
        }
        if now == Phase::Closing {
            self.finish().await?;
            let message = "the node is shutting down; reconnect".to_owned();
            close(&self.session.connection, &ErrorNotice { code: Code::ShuttingDown, message });
            return Err(StreamError::Gone);
        }
        Ok(())
    }

    /// Writes what is still to be said and waits, briefly, until the peer has it.
    async fn finish(&mut self) -> Result<(), StreamError> {
        while let Some(outcome) = self.requests.join_next().await {
            self.answer(outcome).await?;
        }
        if self.session.outbox.take_now(&mut self.decisions) {
            self.send_decisions().await?;
        }
        let _ = self.send.finish();
        let _ = tokio::time::timeout(LAST_FRAMES_MAX, self.send.stopped()).await;
        Ok(())
    }
}

fn ack_item(decision: &Decision, stored: &crate::broker::Stored, credit_bytes: u32) -> AckItem {
    AckItem {
        lane: decision.id.lane,
        partition: decision.id.partition,
        base_sequence: decision.id.base_sequence,
        record_count: decision.id.record_count,
        stored_count: stored.stored_count,
        base_offset: stored.base_offset,
        code: if stored.duplicate { AckCode::Duplicate } else { AckCode::Durable },
        credit_bytes,
    }
}

/// The wire form of a refused batch; `next` is the lane's next sequence as the connection counts it.
fn nack_item(decision: &Decision, refusal: &Refusal, next: Option<u64>) -> NackItem {
    let expected_sequence = match refusal {
        Refusal::SequenceGap { expected } => *expected,
        _ => next.unwrap_or(decision.id.base_sequence),
    };
    NackItem {
        lane: decision.id.lane,
        partition: decision.id.partition,
        base_sequence: decision.id.base_sequence,
        expected_sequence,
        code: code_of(refusal),
        message: refusal.to_string(),
    }
}

/// Items of a decision on a stream of its own: what a one-shot publish is answered with.
pub(super) async fn send_single(session: &Session, send: &mut SendStream, decision: &Decision) -> Result<(), StreamError> {
    let mut out = BytesMut::new();
    match &decision.result {
        Ok(stored) => {
            let item = ack_item(decision, stored, session.door.limits.lane_credit_bytes);
            encode_acks(&[item], session.frame_bytes_max(), &mut out)?;
        }
        Err(refusal) => {
            session.door.broker.metrics().nack(code_of(refusal).name());
            encode_nacks(&[nack_item(decision, refusal, None)], session.frame_bytes_max(), &mut out)?;
        }
    }
    send.write_chunk(out.freeze()).await?;
    let _ = send.finish();
    // The stream must not be dropped before the peer has the answer: dropping would be taken for done, and is.
    Ok(())
}

/// Ends a stream whose request was refused; the connection goes on.
pub(super) async fn refuse(session: &Session, send: &mut SendStream, refusal: &Refusal) -> Result<(), StreamError> {
    end_with(send, &notice_of(refusal), session.frame_bytes_max()).await
}

fn until_expiry(not_after: i64) -> Duration {
    let left = not_after.saturating_sub(now_ms() / 1_000).saturating_add(1);
    // A timer cannot reach further than some years; nobody stays connected that long.
    Duration::from_secs(left.clamp(0, 86_400 * 365) as u64)
}
