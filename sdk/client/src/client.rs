//! The client: an endpoint, and at most two connections that are made again when they are gone.
//!
//! With a producer name in the configuration everything shares one connection. Without one, reading and administration
//! need no identity on the server; the first producer makes a second connection under a random name.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::{Arc, Weak},
};

use quinn::{ConnectionError, Endpoint, EndpointConfig, TokioRuntime};
use tokio::{sync::Mutex as AsyncMutex, time::Instant};

use crate::{
    Admin, ClientConfig, ClientError, Consumer, ConsumerConfig, Producer, ProducerConfig, backoff::Backoff, session::Session,
    tls::Tls,
};

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    General,
    Producing,
}

/// What all parts of a client share.
pub(crate) struct Inner {
    pub(crate) config: ClientConfig,
    pub(crate) tls: Tls,
    pub(crate) producer_name: String,
    sockets: Sockets,
    /// A session lives as long as its control reader.
    general: AsyncMutex<Weak<Session>>,
    producing: AsyncMutex<Weak<Session>>,
}

/// The UDP sockets that connections leave from. Each client has its own unless it is told to share them: a program with
/// many clients (a gateway that speaks for its devices, a load generator) reads one socket instead of hundreds.
#[derive(Debug, Clone)]
pub struct Sockets {
    v4: Endpoint,
    v6: Option<Endpoint>,
}

/// Bytes that wait in a socket while the program is busy; the kernel may grant less.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;

impl Sockets {
    /// Opens them on free ports. Needs a tokio runtime around it, which serves the connections.
    pub fn open() -> Result<Sockets, ClientError> {
        let any =
            |v6: bool| -> SocketAddr { if v6 { (Ipv6Addr::UNSPECIFIED, 0).into() } else { (Ipv4Addr::UNSPECIFIED, 0).into() } };
        let v4 = bind(any(false)).and_then(endpoint).map_err(|error| ClientError::Config {
            what: "addr".to_owned(),
            reason: format!("no UDP socket can be opened ({error}); check limits and permissions"),
        })?;
        // A machine without IPv6 has none, and needs none.
        let v6 = bind(any(true)).and_then(endpoint).ok();
        Ok(Sockets { v4, v6 })
    }

    /// Moves to other ports, as a vehicle does when its network changes; connections go on from there.
    pub fn rebind(&self) -> std::io::Result<()> {
        for endpoint in [Some(&self.v4), self.v6.as_ref()].into_iter().flatten() {
            let mut any = endpoint.local_addr()?;
            any.set_port(0);
            endpoint.rebind(bind(any)?)?;
        }
        Ok(())
    }

    fn close(&self) {
        for endpoint in [Some(&self.v4), self.v6.as_ref()].into_iter().flatten() {
            endpoint.close(0u32.into(), b"");
        }
    }

    async fn wait_idle(&self) {
        for endpoint in [Some(&self.v4), self.v6.as_ref()].into_iter().flatten() {
            endpoint.wait_idle().await;
        }
    }
}

fn bind(any: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = UdpSocket::bind(any)?;
    // Without it a burst is lost and sent again.
    let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER_BYTES);
    let _ = rustix::net::sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER_BYTES);
    Ok(socket)
}

fn endpoint(socket: UdpSocket) -> std::io::Result<Endpoint> {
    Endpoint::new(EndpointConfig::default(), None, socket, Arc::new(TokioRuntime))
}

/// Closes the connections once the last client, producer, consumer and admin is gone.
struct LastOne {
    inner: Arc<Inner>,
    /// The sockets belong to this client alone.
    owns_sockets: bool,
}

impl Drop for LastOne {
    fn drop(&mut self) {
        if self.owns_sockets {
            return self.inner.sockets.close();
        }
        for slot in [&self.inner.general, &self.inner.producing] {
            // Nobody is left who could hold the lock.
            if let Some(session) = slot.try_lock().ok().and_then(|slot| slot.upgrade()) {
                session.connection.close(0u32.into(), b"");
            }
        }
    }
}

/// A connection to a Weir server that outlives its sockets. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    pub(crate) inner: Arc<Inner>,
    last: Arc<LastOne>,
}

impl Client {
    /// Checks the configuration and connects, retrying until `retry_timeout`.
    pub async fn connect(config: ClientConfig) -> Result<Client, ClientError> {
        let client = Client::new(config)?;
        client.ready().await?;
        Ok(client)
    }

    /// Checks the configuration; connects when something is asked of it. Needs a tokio runtime around it.
    pub fn new(config: ClientConfig) -> Result<Client, ClientError> {
        Client::assemble(config, Sockets::open()?, true)
    }

    /// As [`Client::new`], on sockets that other clients use as well; they stay open when this client is gone.
    pub fn over(sockets: &Sockets, config: ClientConfig) -> Result<Client, ClientError> {
        Client::assemble(config, sockets.clone(), false)
    }

    fn assemble(config: ClientConfig, sockets: Sockets, owns_sockets: bool) -> Result<Client, ClientError> {
        let tls = Tls::new(&config)?;
        let producer_name =
            config.producer_name.clone().unwrap_or_else(|| format!("auto-{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..)));
        let (general, producing) = Default::default();
        let inner = Arc::new(Inner { config, tls, producer_name, sockets, general, producing });
        Ok(Client { inner: inner.clone(), last: Arc::new(LastOne { inner, owns_sockets }) })
    }

    /// Connects now instead of when something is asked of it, retrying until `retry_timeout`.
    pub async fn ready(&self) -> Result<(), ClientError> {
        self.inner.session(Role::General).await.map(drop)
    }

    /// A producer of one topic on one lane.
    pub async fn producer(&self, config: ProducerConfig) -> Result<Producer, ClientError> {
        Producer::start(self.clone(), config).await
    }

    /// A consumer of one topic.
    pub async fn consumer(&self, config: ConsumerConfig) -> Result<Consumer, ClientError> {
        Consumer::start(self.clone(), config).await
    }

    /// Topics, offsets, groups, plugins, pipelines.
    pub fn admin(&self) -> Admin {
        Admin::new(self.clone())
    }

    /// The name this client produces under.
    pub fn producer_name(&self) -> &str {
        &self.inner.producer_name
    }

    /// Closes the connections; producers and consumers made from it fail. Close producers first.
    pub async fn close(&self) {
        if self.last.owns_sockets {
            self.inner.sockets.close();
            return self.inner.sockets.wait_idle().await;
        }
        for slot in [&self.inner.general, &self.inner.producing] {
            if let Some(session) = slot.lock().await.upgrade() {
                session.connection.close(0u32.into(), b"");
            }
        }
    }
}

impl Inner {
    /// The live connection of a role, made anew if need be: attempts go on until `retry_timeout` or until somebody has to act.
    pub(crate) async fn session(self: &Arc<Inner>, role: Role) -> Result<Arc<Session>, ClientError> {
        let named = self.config.producer_name.is_some();
        let (slot, name) = match role {
            Role::General if !named => (&self.general, ""),
            _ => (&self.producing, self.producer_name.as_str()),
        };
        let mut slot = slot.lock().await;
        if let Some(session) = slot.upgrade() {
            if session.is_usable() {
                return Ok(session);
            }
            // Its lanes would be fenced by the next connection; so they move there too.
            session.connection.close(0u32.into(), b"");
        }
        let began = Instant::now();
        let mut backoff = Backoff::new(self.config.backoff_max);
        loop {
            let error = match self.connect_once(name).await {
                Ok(session) => {
                    *slot = Arc::downgrade(&session);
                    return Ok(session);
                }
                Err(error) if error.is_retryable() => error,
                Err(error) => return Err(error),
            };
            let after = match error {
                ClientError::Refused { .. } => self.config.retry_timeout.max(self.config.refused_timeout),
                _ => self.config.retry_timeout,
            };
            let pause = backoff.next_pause();
            if began.elapsed() + pause >= after {
                return Err(ClientError::TimedOut { what: "connecting", after, last: error.to_string() });
            }
            tracing::debug!(%error, ?pause, "connecting again");
            tokio::time::sleep(pause).await;
        }
    }

    /// One attempt.
    pub(crate) async fn connect_once(self: &Arc<Inner>, name: &str) -> Result<Arc<Session>, ClientError> {
        let attempt = async {
            let connection = self.connecting().await?.await.map_err(|error| self.unreachable(&error))?;
            Session::start(self.clone(), connection, name).await
        };
        match tokio::time::timeout(self.config.connect_timeout, attempt).await {
            Ok(result) => result,
            Err(_) => Err(ClientError::Unreachable { addr: self.config.addr.clone(), reason: "no answer in time".to_owned() }),
        }
    }

    /// Starts a handshake.
    pub(crate) async fn connecting(&self) -> Result<quinn::Connecting, ClientError> {
        let addr = &self.config.addr;
        let unreachable = |reason: String| ClientError::Unreachable { addr: addr.clone(), reason };
        let mut found = tokio::net::lookup_host(addr).await.map_err(|error| unreachable(error.to_string()))?;
        let found = found.find(|found| found.is_ipv4() || self.sockets.v6.is_some());
        let Some(remote) = found else { return Err(unreachable("the name has no address".to_owned())) };
        let endpoint = match &self.sockets.v6 {
            Some(endpoint) if remote.is_ipv6() => endpoint,
            _ => &self.sockets.v4,
        };
        let host = addr.rsplit_once(':').map_or(addr.as_str(), |(host, _)| host).trim_matches(['[', ']']);
        let name = self.config.server_name.as_deref().unwrap_or(host);
        let connecting = endpoint.connect_with(self.tls.quic.clone(), remote, name);
        connecting.map_err(|error| match error {
            quinn::ConnectError::EndpointStopping => ClientError::Closed { what: "the client" },
            error => ClientError::Config { what: "addr or server_name".to_owned(), reason: error.to_string() },
        })
    }

    fn unreachable(&self, error: &ConnectionError) -> ClientError {
        match self.explain(error) {
            ClientError::Disconnected { reason } => ClientError::Unreachable { addr: self.config.addr.clone(), reason },
            other => other,
        }
    }

    /// What a connection's end means.
    pub(crate) fn explain(&self, error: &ConnectionError) -> ClientError {
        match self.tls.explain(&self.config.addr, error) {
            ClientError::Fenced { .. } => ClientError::Fenced { producer_name: self.producer_name.clone() },
            other => other,
        }
    }

    /// What a stream's end means: its connection's, if that has ended.
    pub(crate) fn lost(&self, connection: &quinn::Connection, error: &dyn std::error::Error) -> ClientError {
        match connection.close_reason() {
            Some(reason) => self.explain(&reason),
            None => ClientError::Disconnected { reason: error.to_string() },
        }
    }
}
