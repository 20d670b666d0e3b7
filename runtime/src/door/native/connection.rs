//! One connection: who it is, and which task serves which of its streams.
//!
//! A stream's first frame says what it is. In 0-RTT (a resumed connection's first flight, which an attacker could have
//! recorded and sent again) only PUBLISH is served; everything else waits until the handshake has proved the peer.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quinn::{Connecting, Connection, Incoming, RecvStream, SendStream, VarInt};
use rustls_pki_types::CertificateDer;
use tokio::sync::SetOnce;
use tokio::task::JoinSet;
use tokio::time::timeout;
use weir_protocol::lane::LaneReceiver;
use weir_protocol::{Code, ErrorNotice, Hello, Kind, LaneOpen, ProtocolError, Publish, Subscribe};

use super::admission::Place;
use super::stream::{FrameReader, StreamError, close, close_with};
use super::{Door, control, lane, oneshot, subscription, tls};
use crate::broker::{Identity, IdentityError, Mailroom, Outbox, Producer};

/// What the tasks of one connection share.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) door: Arc<Door>,
    pub(super) connection: Connection,
    pub(super) identity: Identity,
    /// Where the decisions about its batches arrive.
    pub(super) outbox: Arc<Outbox>,
    /// The lanes' accounts of sequences and of what is unanswered.
    pub(super) lanes: Mutex<HashMap<u32, LaneAccount>>,
    /// Set once HELLO is answered: the producer name's id and epoch, if it has one.
    pub(super) hello: SetOnce<Option<(Arc<Producer>, i16)>>,
    /// Set when a stream said HELLO: there is one control stream.
    pub(super) control: SetOnce<()>,
    /// Set when the handshake is complete.
    confirmed: SetOnce<()>,
}

/// One lane of a connection.
#[derive(Debug)]
pub(super) struct LaneAccount {
    pub(super) receiver: LaneReceiver,
    /// Its stream is open.
    pub(super) open: bool,
}

impl Session {
    /// Largest frame on this connection.
    pub(super) fn frame_bytes_max(&self) -> u32 {
        self.door.limits.frame_bytes_max
    }

    /// Whose certificate it is.
    pub(super) fn principal(&self) -> &Arc<str> {
        &self.identity.principal
    }

    /// How long a peer may take to get from connecting to HELLO.
    pub(super) fn patience(&self) -> Duration {
        Duration::from_millis(self.door.quic.handshake_timeout_ms)
    }

    /// How long a stream's first frame may be on its way, and a lane may be ahead of its HELLO: a slow link is no fault.
    pub(super) fn stream_patience(&self) -> Duration {
        Duration::from_millis(self.door.quic.idle_timeout_ms)
    }

    /// A connection that produces may have more on its way than one that only stands by.
    pub(super) fn widen(&self) {
        self.connection.set_receive_window(tls::var_int(self.door.quic.connection_window_bytes));
    }
}

/// Serves a connection from its first datagram to its end.
pub(super) async fn serve(incoming: Incoming, door: Arc<Door>, mailroom: Arc<Mailroom>, place: Place) {
    let address = incoming.remote_address();
    let metrics = door.broker.metrics().clone();
    let deadline = Duration::from_millis(door.quic.handshake_timeout_ms);
    match timeout(deadline, establish(incoming, &door, &mailroom)).await {
        Ok(Ok((session, early))) => {
            metrics.connections.inc();
            metrics.connections_opened.inc();
            run(&session, early).await;
            metrics.connections.dec();
        }
        Ok(Err(reason)) => {
            metrics.refused(reason.label());
            tracing::info!(%address, %reason, "connection refused");
        }
        Err(_) => {
            metrics.refused("handshake_timeout");
            tracing::info!(%address, "connection refused: the handshake took too long");
        }
    }
    drop(place);
}

/// Why a connection did not come up.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("{0}")]
    Handshake(#[from] quinn::ConnectionError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("the client sent no certificate")]
    NoCertificate,
}

impl Refused {
    fn label(&self) -> &'static str {
        match self {
            Refused::Handshake(_) => "handshake",
            Refused::Identity(_) => "identity",
            Refused::NoCertificate => "no_certificate",
        }
    }
}

/// Streams that were served before the handshake was complete.
type Early = JoinSet<()>;

async fn establish(incoming: Incoming, door: &Arc<Door>, mailroom: &Arc<Mailroom>) -> Result<(Arc<Session>, Early), Refused> {
    let connecting = incoming.accept()?;
    if door.quic.zero_rtt {
        return establish_early(connecting, door, mailroom).await;
    }
    let connection = connecting.await?;
    let session = session_of(connection, door, mailroom)?;
    let _ = session.confirmed.set(());
    Ok((session, JoinSet::new()))
}

async fn establish_early(
    connecting: Connecting,
    door: &Arc<Door>,
    mailroom: &Arc<Mailroom>,
) -> Result<(Arc<Session>, Early), Refused> {
    let (connection, accepted) = match connecting.into_0rtt() {
        Ok(early) => early,
        Err(connecting) => {
            let session = session_of(connecting.await?, door, mailroom)?;
            let _ = session.confirmed.set(());
            return Ok((session, JoinSet::new()));
        }
    };
    let mut early = JoinSet::new();
    let mut session = None;
    tokio::pin!(accepted);
    loop {
        tokio::select! {
            _ = &mut accepted => break,
            stream = connection.accept_bi() => {
                let (send, recv) = stream?;
                let session = match &session {
                    Some(session) => session,
                    None => session.insert(session_of(connection.clone(), door, mailroom)?),
                };
                early.spawn(serve_stream(session.clone(), send, recv));
            }
        }
    }
    if let Some(reason) = connection.close_reason() {
        return Err(reason.into());
    }
    // The certificate counts as proved only now.
    let proved = session_of(connection, door, mailroom)?;
    let session = match session {
        Some(session) if session.identity == proved.identity => session,
        Some(_) => return Err(Refused::NoCertificate),
        None => proved,
    };
    let _ = session.confirmed.set(());
    Ok((session, early))
}

fn session_of(connection: Connection, door: &Arc<Door>, mailroom: &Arc<Mailroom>) -> Result<Arc<Session>, Refused> {
    match identity_of(&connection) {
        Ok(identity) => {
            let outbox = Outbox::new(mailroom);
            Ok(Arc::new(Session {
                door: door.clone(),
                connection,
                identity,
                outbox,
                lanes: Mutex::default(),
                hello: SetOnce::new(),
                control: SetOnce::new(),
                confirmed: SetOnce::new(),
            }))
        }
        Err(error) => {
            close(&connection, &ErrorNotice { code: Code::Unauthorized, message: error.to_string() });
            Err(error)
        }
    }
}

/// The peer's certificate: TLS has verified its chain, but for a resumed session not its dates.
fn identity_of(connection: &Connection) -> Result<Identity, Refused> {
    let chain = connection.peer_identity().and_then(|peer| peer.downcast::<Vec<CertificateDer<'static>>>().ok());
    let leaf = chain.as_ref().and_then(|chain| chain.first()).ok_or(Refused::NoCertificate)?;
    let identity = Identity::from_der(leaf)?;
    identity.check_valid(crate::broker::ingest::now_ms() / 1_000)?;
    Ok(identity)
}

/// Accepts streams until the connection ends; its tasks end with it.
async fn run(session: &Arc<Session>, mut streams: Early) {
    let connection = &session.connection;
    let address: SocketAddr = connection.remote_address();
    tracing::debug!(%address, principal = &**session.principal(), "connected");
    let mut allowed = tls::STREAMS_FIRST;
    let hello_due = tokio::time::sleep(session.patience());
    tokio::pin!(hello_due);
    let mut greeted = false;
    loop {
        tokio::select! {
            stream = connection.accept_bi() => {
                let Ok((send, recv)) = stream else { break };
                streams.spawn(serve_stream(session.clone(), send, recv));
                allowed = allow_more(session, streams.len(), allowed);
            }
            Some(_) = streams.join_next(), if !streams.is_empty() => {}
            () = &mut hello_due, if !greeted => {
                greeted = true;
                if session.control.get().is_none() && streams.is_empty() {
                    let message = "no HELLO arrived in time; open the control stream first".to_owned();
                    close(connection, &ErrorNotice { code: Code::Malformed, message });
                }
            }
        }
    }
    streams.shutdown().await;
    tracing::debug!(%address, principal = &**session.principal(), "disconnected");
}

/// Streams are allowed as they are used, because quinn allocates each one that the peer may open.
fn allow_more(session: &Session, used: usize, allowed: u32) -> u32 {
    let max = session.door.quic.streams_per_connection_max;
    if (used as u32) * 2 <= allowed || allowed >= max {
        return allowed;
    }
    let more = (allowed * 2).min(max);
    session.connection.set_max_concurrent_bi_streams(VarInt::from_u32(more));
    more
}

/// Serves one stream by its first frame.
async fn serve_stream(session: Arc<Session>, mut send: SendStream, recv: RecvStream) {
    let mut frames = FrameReader::new(recv, session.frame_bytes_max());
    let first = match timeout(session.stream_patience(), frames.next()).await {
        Ok(Ok(Some(frame))) => frame,
        Ok(Err(StreamError::Protocol(error))) => return fail(&session, &mut send, &error).await,
        // Opened and left: nothing was asked.
        Ok(Ok(None) | Err(StreamError::Gone)) => return,
        Err(_) => {
            let message = "a stream was opened and nothing was sent on it; send its first frame at once".to_owned();
            let notice = ErrorNotice { code: Code::Malformed, message };
            return close_with(&session.connection, &mut send, &notice, session.frame_bytes_max()).await;
        }
    };
    if first.kind != Kind::Publish {
        session.confirmed.wait().await;
    }
    let result = match first.kind {
        Kind::Publish => match first.expect::<Publish>("PUBLISH") {
            Ok(publish) => oneshot::serve(&session, &mut send, publish).await,
            Err(error) => Err(error.into()),
        },
        Kind::Hello => match first.expect::<Hello>("HELLO") {
            Ok(hello) => control::serve(&session, &mut send, &mut frames, hello).await,
            Err(error) => Err(error.into()),
        },
        Kind::LaneOpen => match first.expect::<LaneOpen>("LANE_OPEN") {
            Ok(open) => lane::serve(&session, &mut send, &mut frames, open).await,
            Err(error) => Err(error.into()),
        },
        Kind::Subscribe => match first.expect::<Subscribe>("SUBSCRIBE") {
            Ok(subscribe) => subscription::serve(&session, &mut send, &mut frames, subscribe).await,
            Err(error) => Err(error.into()),
        },
        found => {
            let wanted = "HELLO, LANE_OPEN, SUBSCRIBE or PUBLISH";
            Err(ProtocolError::UnexpectedKind { found, wanted }.into())
        }
    };
    if let Err(StreamError::Protocol(error)) = result {
        fail(&session, &mut send, &error).await;
    }
}

/// A peer that does not speak the protocol is told so and sent away.
async fn fail(session: &Session, send: &mut SendStream, error: &ProtocolError) {
    let principal = &**session.principal();
    session.door.broker.metrics().refused(error.code().name());
    tracing::info!(principal, address = %session.connection.remote_address(), %error, "connection closed: protocol error");
    close_with(&session.connection, send, &ErrorNotice::from_error(error), session.frame_bytes_max()).await;
}
