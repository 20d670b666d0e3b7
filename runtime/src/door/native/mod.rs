//! The native front door: `weir/1` over QUIC with client certificates.
//!
//! [`NativeDoor::listen`] binds the socket; each connection (`connection`) proves who it is, says HELLO on its control stream
//! (`control`), and opens lanes (`lane`), subscriptions (`subscription`) and one-shot publishes (`oneshot`). Lanes hand
//! batches to the broker; what the log decided comes back to the control stream's task, one wake-up and one ACK frame a
//! connection a commit.

mod admin;
mod admission;
mod codes;
mod connection;
mod control;
mod lane;
mod oneshot;
mod stream;
mod subscription;
mod tls;

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::{Endpoint, EndpointConfig, Incoming, TokioRuntime, VarInt};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use weir_protocol::Code;

pub use tls::TlsError;

use crate::broker::Broker;
use crate::config::{LimitsConfig, QuicConfig};
use crate::status::NodeStatus;
use admission::{Admission, Verdict};

/// Socket buffers: a burst of all connections waits here while the endpoint works.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;
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
    endpoint: Endpoint,
    address: SocketAddr,
    door: Arc<Door>,
    phase: watch::Sender<Phase>,
    accepting: JoinHandle<()>,
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
        let (endpoint, address) = bind(&quic, tls::endpoint_config(&quic)?, server)?;
        let (phase, heard) = watch::channel(Phase::Open);
        let admission = Admission::new(quic.connections_max, quic.connections_per_address_max, quic.retry_above_connections);
        let door = Arc::new(Door { broker, status, quic, limits, plugin_bytes_max, phase: heard, admission });
        let accepting = tokio::spawn(accept(endpoint.clone(), door.clone()));
        Ok(NativeDoor { endpoint, address, door, phase, accepting })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Reads certificates, key and CAs again; connections that stand stay, new ones see the new files. Old sessions
    /// cannot be resumed afterwards, so a client whose CA was taken out does not come back.
    pub fn reload_certificates(&self) -> Result<(), TlsError> {
        self.endpoint.set_server_config(Some(tls::server_config(&self.door.quic)?));
        Ok(())
    }

    /// Takes no new connections and tells those that stand to go.
    pub fn start_draining(&self) {
        self.endpoint.set_server_config(None);
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
        self.accepting.abort();
        self.endpoint.close(VarInt::from_u32(u32::from(Code::ShuttingDown.number())), b"the node is shutting down");
        let _ = tokio::time::timeout(CLOSE_MAX, self.endpoint.wait_idle()).await;
    }
}

fn bind(quic: &QuicConfig, endpoint: EndpointConfig, server: quinn::ServerConfig) -> Result<(Endpoint, SocketAddr), DoorError> {
    let listen = |source| DoorError::Listen { listen: quic.listen.clone(), source };
    let invalid = |_| listen(std::io::Error::from(std::io::ErrorKind::InvalidInput));
    let address: SocketAddr = quic.listen.parse().map_err(invalid)?;
    let socket = UdpSocket::bind(address).map_err(listen)?;
    // The kernel may grant less; then a burst is lost and sent again.
    let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER_BYTES);
    let _ = rustix::net::sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER_BYTES);
    let endpoint = Endpoint::new(endpoint, Some(server), socket, Arc::new(TokioRuntime)).map_err(listen)?;
    let address = endpoint.local_addr().map_err(listen)?;
    Ok((endpoint, address))
}

async fn accept(endpoint: Endpoint, door: Arc<Door>) {
    while let Some(incoming) = endpoint.accept().await {
        admit(incoming, &door);
    }
}

fn admit(incoming: Incoming, door: &Arc<Door>) {
    let metrics = door.broker.metrics();
    match door.admission.admit(incoming.remote_address().ip(), incoming.remote_address_validated()) {
        Verdict::Admit(place) => {
            tokio::spawn(connection::serve(incoming, door.clone(), place));
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
