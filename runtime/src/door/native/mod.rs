//! The native front door: `weir/1` over QUIC with client certificates.
//!
//! [`NativeDoor::listen`] binds the port and starts the ingest threads (`ingest`); each connection (`connection`) proves who it is, says HELLO on its control stream
//! (`control`), and opens lanes (`lane`), subscriptions (`subscription`) and one-shot publishes (`oneshot`). Lanes hand
//! batches to the broker; what the log decided comes back to the control stream's task, one wake-up and one ACK frame a
//! connection a commit.

mod admin;
mod admission;
mod codes;
mod connection;
mod control;
mod ingest;
mod lane;
mod oneshot;
mod sessions;
mod stream;
mod subscription;
mod tls;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::{Endpoint, Incoming, VarInt};
use tokio::sync::watch;
use weir_protocol::Code;

pub use tls::TlsError;

use crate::broker::{Broker, Mailroom};
use crate::config::{LimitsConfig, QuicConfig};
use crate::status::NodeStatus;
use admission::{Admission, Verdict};
use ingest::IngestThread;

/// How long closing frames may take to leave.
const CLOSE_MAX: Duration = Duration::from_secs(1);

/// Why the door cannot open. The operator's turn.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DoorError {
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The socket.
    #[error("quic.listen = {listen}: {source}; choose a free address and port of this machine")]
    Listen {
        /// The setting.
        listen: String,
        /// What the system said.
        source: std::io::Error,
    },
}

/// What the connections of a door are told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// Serve.
    Open,
    /// Say GO_AWAY; what is in flight goes on.
    Draining,
    /// Everything is decided: write what is left and close.
    Closing,
}

/// What every connection shares.
#[derive(Debug)]
pub(super) struct Door {
    pub(super) broker: Arc<Broker>,
    pub(super) status: Arc<NodeStatus>,
    pub(super) quic: QuicConfig,
    pub(super) limits: LimitsConfig,
    pub(super) plugin_bytes_max: u64,
    pub(super) phase: watch::Receiver<Phase>,
    admission: Arc<Admission>,
}

impl Door {
    /// Largest record batch that fits a frame with what is around it.
    pub(super) fn batch_bytes_max(&self) -> u32 {
        let overhead = weir_protocol::FRAME_OVERHEAD_BYTES_MAX;
        self.limits.batch_bytes_max.min(self.limits.frame_bytes_max.saturating_sub(overhead))
    }
}

/// A listening door.
#[derive(Debug)]
pub struct NativeDoor {
    threads: Vec<IngestThread>,
    address: SocketAddr,
    door: Arc<Door>,
    phase: watch::Sender<Phase>,
}

impl NativeDoor {
    /// Binds the socket and starts to accept connections. Must be called within the executor.
    pub fn listen(
        broker: Arc<Broker>,
        status: Arc<NodeStatus>,
        quic: QuicConfig,
        limits: LimitsConfig,
        plugin_bytes_max: u64,
    ) -> Result<NativeDoor, DoorError> {
        let server = tls::server_config(&quic)?;
        let (endpoint, id_key) = tls::endpoint_config(&quic)?;
        let failed = |source| DoorError::Listen { listen: quic.listen.clone(), source };
        let address = quic.listen.parse().map_err(|_| failed(std::io::ErrorKind::InvalidInput.into()))?;
        let sockets = ingest::bind(address, quic.ingest_threads).map_err(failed)?;
        let (phase, heard) = watch::channel(Phase::Open);
        let admission = Admission::new(quic.connections_max, quic.connections_per_address_max, quic.retry_above_connections);
        let listen = quic.listen.clone();
        let door = Arc::new(Door { broker, status, quic, limits, plugin_bytes_max, phase: heard, admission });
        let mut threads = Vec::with_capacity(sockets.len());
        for socket in sockets {
            let door = door.clone();
            let serve = move |endpoint| serve(endpoint, door);
            let started = IngestThread::start(socket, endpoint.clone(), id_key.clone(), server.clone(), serve);
            threads.push(started.map_err(|source| DoorError::Listen { listen: listen.clone(), source })?);
        }
        let address = match threads.first() {
            Some(first) => first.endpoint.local_addr().map_err(|source| DoorError::Listen { listen, source })?,
            None => return Err(DoorError::Listen { listen, source: std::io::ErrorKind::NotFound.into() }),
        };
        Ok(NativeDoor { threads, address, door, phase })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Reads certificates, key and CAs again; connections that stand stay, new ones see the new files. Old sessions
    /// cannot be resumed afterwards, so a client whose CA was taken out does not come back.
    pub fn reload_certificates(&self) -> Result<(), TlsError> {
        let server = tls::server_config(&self.door.quic)?;
        self.threads.iter().for_each(|thread| thread.endpoint.set_server_config(Some(server.clone())));
        Ok(())
    }

    /// Takes no new connections and tells those that stand to go.
    pub fn start_draining(&self) {
        self.threads.iter().for_each(|thread| thread.endpoint.set_server_config(None));
        self.phase.send_replace(Phase::Draining);
    }

    /// Lets connections write their last acks and closes them; bounded by `longest`.
    pub async fn close(self, longest: Duration) {
        self.phase.send_replace(Phase::Closing);
        let all_gone = async {
            while self.door.admission.total() > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(longest, all_gone).await.is_err() {
            tracing::warn!(connections = self.door.admission.total(), "connections are closed before they were done");
        }
        let code = VarInt::from_u32(u32::from(Code::ShuttingDown.number()));
        let until = tokio::time::Instant::now() + CLOSE_MAX;
        for thread in &self.threads {
            thread.endpoint.close(code, b"the node is shutting down");
        }
        for thread in &self.threads {
            let _ = tokio::time::timeout_at(until, thread.endpoint.wait_idle()).await;
        }
        let threads = self.threads;
        // Joining blocks; a panic in there was logged by the thread itself.
        let _ = tokio::task::spawn_blocking(move || threads.into_iter().for_each(IngestThread::stop)).await;
    }
}

/// What an ingest thread does until it is stopped: it takes connections in, and carries their batches to the log.
async fn serve(endpoint: Endpoint, door: Arc<Door>) {
    let mailroom = door.broker.mailroom();
    // A task of its own: it waits behind the tasks that are ready, and so gathers what they hand in.
    let mut carrying = tokio::spawn(mailroom.clone().carry());
    let ended = tokio::select! {
        ended = &mut carrying => ended,
        () = accept(endpoint, door, mailroom) => carrying.await,
    };
    if ended.is_err_and(|error| error.is_panic()) {
        // Nothing that came in on this thread would ever be acknowledged: as with the log's thread, a new start is better.
        tracing::error!("the thread that carries batches to the log failed; the node ends");
        std::process::abort();
    }
}

async fn accept(endpoint: Endpoint, door: Arc<Door>, mailroom: Arc<Mailroom>) {
    while let Some(incoming) = endpoint.accept().await {
        admit(incoming, &door, &mailroom);
    }
}

fn admit(incoming: Incoming, door: &Arc<Door>, mailroom: &Arc<Mailroom>) {
    let metrics = door.broker.metrics();
    match door.admission.admit(incoming.remote_address().ip(), incoming.remote_address_validated()) {
        Verdict::Admit(place) => {
            tokio::spawn(connection::serve(incoming, door.clone(), mailroom.clone(), place));
        }
        Verdict::Retry => {
            // It fails only for addresses that were validated already, and those are not asked to retry.
            let _ = incoming.retry();
            metrics.refused("retry");
        }
        Verdict::Refuse(reason) => {
            incoming.refuse();
            metrics.refused(reason);
        }
    }
}
