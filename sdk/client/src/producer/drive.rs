//! The producer's task: one write for all that is ready, and a new connection where one is gone.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use quinn::SendStream;
use tokio::{sync::Notify, time::Instant};
use weir_protocol::{Code, ErrorNotice, Kind, Message, NackItem, ProtocolError};

use super::{LaneOfConnection, Shared, state::State};
use crate::{
    ClientError, ProducerConfig,
    backoff::Backoff,
    client::{Inner, Role},
    session::{Frames, Session},
};

/// A lane's stream on a live connection.
pub(crate) struct Connected {
    session: Arc<Session>,
    send: SendStream,
    frames: Frames,
}

/// Why the task stopped writing to a stream.
enum Exit {
    /// Everything is settled and the producer is closing.
    Closed,
    /// Another connection may do.
    Again(ClientError),
    /// None will.
    Fatal(ClientError),
}

/// The first connection, whose errors are the caller's.
pub(crate) async fn open(client: &Arc<Inner>, config: ProducerConfig) -> Result<(Arc<Shared>, Connected), ClientError> {
    let session = client.session(Role::Producing).await?;
    let (send, frames, ready) = session.open_lane(config.lane, &config.topic).await?;
    let state = State::new(config.clone(), &session.welcome, &ready);
    let shared =
        Arc::new(Shared { config, state: state.into(), work: Notify::new(), space: Notify::new(), settled: Notify::new() });
    attach(&shared, &session, 1);
    Ok((shared, Connected { session, send, frames }))
}

fn attach(shared: &Arc<Shared>, session: &Arc<Session>, generation: u64) {
    shared.lock().session = Some(Arc::downgrade(session));
    session.attach_lane(shared.config.lane, Arc::new(LaneOfConnection { shared: shared.clone(), generation }));
}

/// The same for a lane that has been connected before.
async fn reopen(client: &Arc<Inner>, shared: &Arc<Shared>) -> Result<Connected, ClientError> {
    let session = client.session(Role::Producing).await?;
    let (send, frames, ready) = session.open_lane(shared.config.lane, &shared.config.topic).await?;
    let mut state = shared.lock();
    state.on_ready(&session.welcome, &ready)?;
    let generation = state.generation;
    shared.settle(state);
    attach(shared, &session, generation);
    Ok(Connected { session, send, frames })
}

/// Until the producer is closed or has failed.
pub(crate) async fn run(client: Arc<Inner>, shared: Arc<Shared>, connected: Connected) {
    let mut backoff = Backoff::new(client.config.backoff_max);
    let mut connected = Some(connected);
    loop {
        let exit = match connected.take() {
            Some(mut connected) => {
                let exit = write(&shared, &mut connected, &mut backoff).await;
                leave(&shared, &mut connected, &exit);
                exit
            }
            None => Exit::Again(ClientError::Disconnected { reason: "no connection".to_owned() }),
        };
        let last = match exit {
            Exit::Closed => return,
            Exit::Fatal(error) => return shared.fail(error),
            Exit::Again(error) => error,
        };
        tracing::debug!(error = %last, lane = shared.config.lane, "connecting the lane again");
        match connect_again(&client, &shared, &mut backoff, last).await {
            Ok(again) => connected = Some(again),
            Err(Some(error)) => return shared.fail(error),
            Err(None) => {} // given up what was held; what comes next wants a connection again
        }
    }
}

/// Attempts until one succeeds, the oldest record expires, or somebody has to act.
async fn connect_again(
    client: &Arc<Inner>,
    shared: &Arc<Shared>,
    backoff: &mut Backoff,
    mut last: ClientError,
) -> Result<Connected, Option<ClientError>> {
    loop {
        let expiry = {
            let state = shared.lock();
            if state.is_expired(Instant::now()) {
                give_up(shared, state, &last);
                return Err(None);
            }
            state.expires_at()
        };
        tokio::time::sleep(backoff.next_pause()).await;
        let expired = async {
            match expiry {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let attempt = tokio::select! {
            attempt = reopen(client, shared) => attempt,
            () = expired => continue,
        };
        last = match attempt {
            Ok(connected) => return Ok(connected),
            Err(error) if error.is_retryable() || matches!(error, ClientError::TimedOut { .. }) => error,
            Err(error) => return Err(Some(error)),
        };
    }
}

fn give_up(shared: &Shared, mut state: std::sync::MutexGuard<'_, State>, last: &ClientError) {
    let error =
        ClientError::TimedOut { what: "delivering a record", after: shared.config.delivery_timeout, last: last.to_string() };
    state.give_up(&error, Instant::now());
    shared.settle(state);
}

/// Takes the lane off its connection. The sequences of what is under way settle only there: a connection that is left early is closed.
fn leave(shared: &Shared, connected: &mut Connected, exit: &Exit) {
    let session = &connected.session;
    session.detach_lane(shared.config.lane);
    match exit {
        Exit::Closed => drop(connected.send.finish()),
        Exit::Again(_) => {
            session.leave();
            session.connection.close(u32::from(Code::Ok.number()).into(), b"");
            shared.lock().on_disconnected();
        }
        Exit::Fatal(_) => drop(connected.send.reset(0u32.into())),
    }
}

/// The server said: later.
#[derive(Default)]
struct Pause {
    until: Option<Instant>,
    /// Its words, until something is acknowledged again: the answer to "why did it take so long?".
    reason: Option<String>,
}

/// What the state wants done.
enum Step {
    Write,
    Wait(Option<Instant>),
    Exit(Exit),
}

async fn write(shared: &Arc<Shared>, connected: &mut Connected, backoff: &mut Backoff) -> Exit {
    let Connected { session, send, frames } = connected;
    let closed = session.connection.closed();
    tokio::pin!(closed);
    let mut chunks: Vec<Bytes> = Vec::new();
    let (mut pause, mut settled_before) = (Pause::default(), u64::MAX);
    loop {
        let step = {
            let mut state = shared.lock();
            if state.settled_batches > settled_before {
                backoff.reset();
                pause.reason = None;
            }
            settled_before = state.settled_batches;
            let step = decide(shared, &mut state, session, &mut pause, backoff, &mut chunks);
            shared.settle_quietly(state);
            step
        };
        match step {
            Step::Exit(exit) => return exit,
            Step::Write => {
                let written = tokio::select! {
                    written = send.write_all_chunks(&mut chunks) => written,
                    reason = &mut closed => return again_or_fatal(session.client.explain(&reason)),
                };
                chunks.clear();
                if let Err(error) = written {
                    return again_or_fatal(stream_ended(session, frames, &error).await);
                }
            }
            Step::Wait(until) => {
                let timer = async {
                    match until {
                        Some(at) => tokio::time::sleep_until(at).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    () = shared.work.notified() => {}
                    () = timer => {}
                    reason = &mut closed => return again_or_fatal(session.client.explain(&reason)),
                    said = frames.next(&session.client, &session.connection) => return again_or_fatal(last_words(session, said)),
                }
            }
        }
    }
}

/// Looks at the state: refusals, expiry, closing, then what may be written.
fn decide(
    shared: &Shared,
    state: &mut State,
    session: &Session,
    pause: &mut Pause,
    backoff: &mut Backoff,
    chunks: &mut Vec<Bytes>,
) -> Step {
    let now = Instant::now();
    let refused = |nack: NackItem| ClientError::refused(nack.code, nack.message, &session.producer_name);
    match state.poll_refusals(refused) {
        Err(error) => return Step::Exit(Exit::Fatal(error.into())),
        Ok(Some(refusals)) => {
            if let Some(nack) = refusals.lane {
                return Step::Exit(Exit::Fatal(refused(nack)));
            }
            if let Some(nack) = refusals.reconnect {
                return Step::Exit(Exit::Again(refused(nack)));
            }
            if let Some(nack) = refusals.pause {
                let length: Duration = backoff.next_pause();
                tracing::debug!(code = %nack.code, message = nack.message, pause = ?length, "sending again after a pause");
                *pause = Pause { until: Some(now + length), reason: Some(nack.message) };
            }
        }
        Ok(None) => {}
    }
    if state.is_expired(now) {
        let last = pause.reason.take().unwrap_or_else(|| "the server has not acknowledged it".to_owned());
        let error = ClientError::TimedOut { what: "delivering a record", after: shared.config.delivery_timeout, last };
        state.give_up(&error, now);
        return Step::Exit(Exit::Again(error));
    }
    if state.closing && !state.has_work() {
        return Step::Exit(Exit::Closed);
    }
    if let Some(until) = pause.until.filter(|until| *until > now) {
        return Step::Wait(Some(state.wake_at(now).map_or(until, |at| at.min(until))));
    }
    pause.until = None;
    match state.collect(now, chunks) {
        Err(error) => Step::Exit(Exit::Fatal(error.into())),
        Ok(()) if !chunks.is_empty() => Step::Write,
        Ok(()) => Step::Wait(state.wake_at(now)),
    }
}

/// The lane's stream takes no more: its last frame or its connection says why.
async fn stream_ended(session: &Session, frames: &mut Frames, error: &quinn::WriteError) -> ClientError {
    match frames.next(&session.client, &session.connection).await {
        Ok(Some(frame)) => last_words(session, Ok(Some(frame))),
        _ => session.lost(error),
    }
}

/// The server says nothing on a lane after LANE_READY but why it ends it.
fn last_words(session: &Session, said: Result<Option<weir_protocol::Frame>, ClientError>) -> ClientError {
    match said {
        Ok(Some(frame)) if frame.kind == Kind::Error => match ErrorNotice::decode(frame.body) {
            Ok(notice) => ClientError::refused(notice.code, notice.message, &session.producer_name),
            Err(error) => error.into(),
        },
        Ok(Some(frame)) => ProtocolError::UnexpectedKind { found: frame.kind, wanted: "ERROR" }.into(),
        Ok(None) => ClientError::Disconnected { reason: "the server ended the lane".to_owned() },
        Err(error) => error,
    }
}

fn again_or_fatal(error: ClientError) -> Exit {
    match error.is_retryable() {
        true => Exit::Again(error),
        false => Exit::Fatal(error),
    }
}

impl Shared {
    /// As [`Shared::settle`], from the task itself, which needs no waking.
    fn settle_quietly(&self, mut state: std::sync::MutexGuard<'_, State>) {
        let done = state.take_settled();
        if done.is_empty() {
            return;
        }
        let waiting = std::mem::take(&mut state.space_waiters) > 0;
        drop(state);
        done.into_iter().for_each(|(batch, outcome)| batch.resolve(outcome));
        if waiting {
            self.space.notify_waiters();
        }
        self.settled.notify_waiters();
    }
}
