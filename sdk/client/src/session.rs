//! One live connection: HELLO and WELCOME, the control stream's reader, and who waits for what on it.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::{Bytes, BytesMut};
use quinn::{RecvStream, SendStream};
use tokio::sync::{Mutex as AsyncMutex, oneshot};
use weir_protocol::{
    AckItem, Acks, Answer, Code, ErrorNotice, FIRST_FRAME_BYTES_MAX, FRAME_BYTES_MAX_DEFAULT, Frame, FrameDecoder, GoAway, Hello,
    Kind, LaneOpen, LaneReady, Message, NackItem, Nacks, Operation, ProtocolError, Request, RequestFrame, ResponseFrame, VERSION,
    Welcome, admin::AnswerParts,
};

use crate::{ClientError, client::Inner};

/// Chunks taken from a stream under one lock.
const CHUNKS_PER_READ: usize = 32;

/// Where acks and nacks of a lane go. Called by the control reader; must not block.
pub(crate) trait LaneEvents: Send + Sync {
    fn on_acks(&self, items: &[AckItem]) -> Result<(), ProtocolError>;
    fn on_nack(&self, item: NackItem) -> Result<(), ProtocolError>;
    /// Whether a producer still uses the lane.
    fn is_live(&self) -> bool;
}

struct Waiting {
    operation: Operation,
    parts: AnswerParts,
    answer: oneshot::Sender<Result<Answer, ClientError>>,
}

#[derive(Default)]
struct Requests {
    last: u32,
    waiting: HashMap<u32, Waiting>,
    closed: bool,
}

/// A connection that has been welcomed.
pub(crate) struct Session {
    pub(crate) client: Arc<Inner>,
    pub(crate) connection: quinn::Connection,
    pub(crate) welcome: Welcome,
    pub(crate) producer_name: String,
    control: AsyncMutex<SendStream>,
    requests: Mutex<Requests>,
    lanes: Mutex<HashMap<u32, Arc<dyn LaneEvents>>>,
    draining: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Session {
    /// Says HELLO on a new connection and starts the control reader.
    pub(crate) async fn start(
        client: Arc<Inner>,
        connection: quinn::Connection,
        producer_name: &str,
    ) -> Result<Arc<Session>, ClientError> {
        let hello =
            Hello { version: VERSION, client: client.config.client_name.clone(), producer_name: producer_name.to_owned() };
        let (mut send, recv) = connection.open_bi().await.map_err(|error| client.explain(&error))?;
        send.write_all(&hello.to_frame(FIRST_FRAME_BYTES_MAX)?).await.map_err(|error| client.lost(&connection, &error))?;
        let mut frames = Frames::new(recv, FRAME_BYTES_MAX_DEFAULT);
        let frame = frames.due(&client, &connection, producer_name).await?;
        let welcome: Welcome = frame.expect("WELCOME")?;
        frames.decoder.set_frame_bytes_max(welcome.frame_bytes_max);
        let session = Arc::new(Session {
            client,
            connection,
            welcome,
            producer_name: producer_name.to_owned(),
            control: AsyncMutex::new(send),
            requests: Mutex::default(),
            lanes: Mutex::default(),
            draining: AtomicBool::new(false),
        });
        tokio::spawn(session.clone().read_control(frames));
        Ok(session)
    }

    /// Whether new work may go here.
    pub(crate) fn is_usable(&self) -> bool {
        self.connection.close_reason().is_none() && !self.draining.load(Ordering::Relaxed)
    }

    /// No new work here; what is under way may finish.
    pub(crate) fn leave(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Why the connection is gone, or what else went wrong.
    pub(crate) fn lost(&self, error: &dyn std::error::Error) -> ClientError {
        self.client.lost(&self.connection, error)
    }

    async fn read_control(self: Arc<Session>, mut frames: Frames) {
        let error = loop {
            let frame = match frames.next(&self.client, &self.connection).await {
                Ok(Some(frame)) => frame,
                Ok(None) => break ClientError::Disconnected { reason: "the server ended the control stream".to_owned() },
                Err(error) => break error,
            };
            if let Err(error) = self.on_control(frame) {
                break error;
            }
        };
        if let ClientError::Protocol(error) = &error {
            tracing::warn!(%error, "closing the connection");
            self.connection.close(u32::from(error.code().number()).into(), error.to_string().as_bytes());
        }
        self.leave();
        self.connection.close(u32::from(Code::Ok.number()).into(), b"");
        let waiting = {
            let mut requests = lock(&self.requests);
            requests.closed = true;
            std::mem::take(&mut requests.waiting)
        };
        for (_, waiting) in waiting {
            let _ = waiting.answer.send(Err(error.clone()));
        }
        lock(&self.lanes).clear();
    }

    fn on_control(&self, frame: Frame) -> Result<(), ClientError> {
        match frame.kind {
            Kind::Ack => self.on_acks(&Acks::decode(frame.body)?.items)?,
            Kind::Nack => {
                for item in Nacks::decode(frame.body)?.items {
                    let lane = lock(&self.lanes).get(&item.lane).cloned();
                    if let Some(lane) = lane {
                        lane.on_nack(item)?;
                    }
                }
            }
            Kind::Response => self.on_response(ResponseFrame::decode(frame)?)?,
            Kind::GoAway => {
                let notice = GoAway::decode(frame.body)?;
                tracing::info!(code = %notice.code, message = notice.message, "the server drains");
                self.leave();
            }
            Kind::Error => {
                let notice = ErrorNotice::decode(frame.body)?;
                return Err(ClientError::refused(notice.code, notice.message, &self.producer_name));
            }
            found => return Err(ProtocolError::UnexpectedKind { found, wanted: "ACK, NACK, RESPONSE, GO_AWAY or ERROR" }.into()),
        }
        Ok(())
    }

    /// Each lane gets its run of items under one lock of its own.
    fn on_acks(&self, items: &[AckItem]) -> Result<(), ProtocolError> {
        for run in items.chunk_by(|a, b| a.lane == b.lane) {
            let lane = lock(&self.lanes).get(&run[0].lane).cloned();
            if let Some(lane) = lane {
                lane.on_acks(run)?;
            }
        }
        Ok(())
    }

    fn on_response(&self, response: ResponseFrame) -> Result<(), ClientError> {
        let mut requests = lock(&self.requests);
        let Some(waiting) = requests.waiting.get_mut(&response.correlation) else { return Ok(()) };
        let answer = match response.result {
            Err(refusal) => Err(ClientError::refused(refusal.code, refusal.message, &self.producer_name)),
            Ok(part) => match waiting.parts.on_part(response.more, part)? {
                Some(whole) => Ok(Answer::decode(waiting.operation, whole)?),
                None => return Ok(()),
            },
        };
        if let Some(waiting) = requests.waiting.remove(&response.correlation) {
            let _ = waiting.answer.send(answer); // the caller may have gone
        }
        Ok(())
    }

    /// Asks and waits for the answer.
    pub(crate) async fn request(self: &Arc<Session>, request: Request) -> Result<Answer, ClientError> {
        let (answer, answered) = oneshot::channel();
        let operation = request.operation();
        let correlation = {
            let mut requests = lock(&self.requests);
            if requests.closed {
                return Err(ClientError::Disconnected { reason: "the connection is closed".to_owned() });
            }
            requests.last = requests.last.wrapping_add(1);
            let correlation = requests.last;
            requests.waiting.insert(correlation, Waiting { operation, parts: AnswerParts::default(), answer });
            correlation
        };
        let _forget = Forget { session: self, correlation };
        let mut frame = BytesMut::new();
        RequestFrame { correlation, request }.encode(self.welcome.frame_bytes_max, &mut frame)?;
        self.write_control(frame.freeze()).await?;
        answered.await.unwrap_or_else(|_| Err(ClientError::Disconnected { reason: "the connection is closed".to_owned() }))
    }

    /// On a task of its own: a caller that gives up must not cut a frame in half.
    async fn write_control(self: &Arc<Session>, frame: Bytes) -> Result<(), ClientError> {
        let session = self.clone();
        let written = tokio::spawn(async move {
            let mut control = session.control.lock().await;
            control.write_chunk(frame).await.map_err(|error| session.lost(&error))
        });
        written.await.unwrap_or_else(|error| Err(ClientError::Disconnected { reason: error.to_string() }))
    }

    /// Opens a lane's stream and learns where it goes on.
    pub(crate) async fn open_lane(&self, lane: u32, topic: &str) -> Result<(SendStream, Frames, LaneReady), ClientError> {
        let in_use = lock(&self.lanes).get(&lane).is_some_and(|events| events.is_live());
        if in_use {
            return Err(ClientError::LaneInUse { lane });
        }
        let (mut send, recv) = self.connection.open_bi().await.map_err(|error| self.client.explain(&error))?;
        let open = LaneOpen { lane, topic: topic.to_owned() }.to_frame(self.welcome.frame_bytes_max)?;
        send.write_chunk(open).await.map_err(|error| self.lost(&error))?;
        let mut frames = Frames::new(recv, self.welcome.frame_bytes_max);
        let ready: LaneReady = frames.due(&self.client, &self.connection, &self.producer_name).await?.expect("LANE_READY")?;
        if ready.lane != lane {
            return Err(ProtocolError::BadValue { field: "lane_ready.lane", value: ready.lane as i128 }.into());
        }
        Ok((send, frames, ready))
    }

    /// Acks of the lane go to `events` from now on.
    pub(crate) fn attach_lane(&self, lane: u32, events: Arc<dyn LaneEvents>) {
        lock(&self.lanes).insert(lane, events);
    }

    pub(crate) fn detach_lane(&self, lane: u32) {
        lock(&self.lanes).remove(&lane);
    }
}

/// Takes a request that nobody waits for any more off the list.
struct Forget<'a> {
    session: &'a Session,
    correlation: u32,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        lock(&self.session.requests).waiting.remove(&self.correlation);
    }
}

/// The frames of a stream. Cancelling a read loses nothing.
pub(crate) struct Frames {
    recv: RecvStream,
    decoder: FrameDecoder,
}

impl Frames {
    pub(crate) fn new(recv: RecvStream, frame_bytes_max: u32) -> Frames {
        Frames { recv, decoder: FrameDecoder::new(frame_bytes_max) }
    }

    /// The next frame; `None` at the stream's end.
    pub(crate) async fn next(&mut self, client: &Inner, connection: &quinn::Connection) -> Result<Option<Frame>, ClientError> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Ok(Some(frame));
            }
            let mut chunks = [const { Bytes::new() }; CHUNKS_PER_READ];
            let read = self.recv.read_chunks(&mut chunks).await.map_err(|error| client.lost(connection, &error))?;
            let Some(count) = read else { return Ok(None) };
            for chunk in &mut chunks[..count] {
                self.decoder.push(std::mem::take(chunk));
            }
        }
    }

    /// The next frame, where one is due; ERROR becomes one.
    pub(crate) async fn due(
        &mut self,
        client: &Inner,
        connection: &quinn::Connection,
        producer_name: &str,
    ) -> Result<Frame, ClientError> {
        match self.next(client, connection).await? {
            Some(frame) if frame.kind == Kind::Error => {
                let notice = ErrorNotice::decode(frame.body)?;
                Err(ClientError::refused(notice.code, notice.message, producer_name))
            }
            Some(frame) => Ok(frame),
            None => Err(ClientError::Disconnected { reason: "the server ended the stream".to_owned() }),
        }
    }
}
