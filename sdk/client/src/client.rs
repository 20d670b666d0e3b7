//! The client: an endpoint, and at most two connections that are made again when they are gone.
//!
//! With a producer name in the configuration everything shares one connection. Without one, reading and administration
//! need no identity on the server; the first producer makes a second connection under a random name.

use std::{
    net::SocketAddr,
    sync::{Arc, Weak},
};

use quinn::{ConnectionError, Endpoint};
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
    endpoint_v4: Endpoint,
    endpoint_v6: Option<Endpoint>,
    /// A session lives as long as its control reader.
    general: AsyncMutex<Weak<Session>>,
    producing: AsyncMutex<Weak<Session>>,
}

/// Closes the connections once the last client, producer, consumer and admin is gone.
struct LastOne {
    endpoints: [Option<Endpoint>; 2],
}

impl Drop for LastOne {
    fn drop(&mut self) {
        for endpoint in self.endpoints.iter().flatten() {
            endpoint.close(0u32.into(), b"");
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
        client.inner.session(Role::General).await?;
        Ok(client)
    }

    /// Checks the configuration; connects when something is asked of it. Needs a tokio runtime around it.
    pub fn new(config: ClientConfig) -> Result<Client, ClientError> {
        let tls = Tls::new(&config)?;
        let bind = |any: &str| any.parse::<SocketAddr>().ok().and_then(|any| Endpoint::client(any).ok());
        let Some(endpoint_v4) = bind("0.0.0.0:0") else {
            return Err(ClientError::Config {
                what: "addr".to_owned(),
                reason: "no UDP socket can be opened; check limits and permissions".to_owned(),
            });
        };
        let producer_name =
            config.producer_name.clone().unwrap_or_else(|| format!("auto-{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..)));
        let (general, producing) = Default::default();
        let endpoint_v6 = bind("[::]:0");
        let last = Arc::new(LastOne { endpoints: [Some(endpoint_v4.clone()), endpoint_v6.clone()] });
        let inner = Inner { config, tls, producer_name, endpoint_v4, endpoint_v6, general, producing };
        Ok(Client { inner: Arc::new(inner), last })
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
        for endpoint in self.last.endpoints.iter().flatten() {
            endpoint.close(0u32.into(), b"");
            endpoint.wait_idle().await;
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
        let after = self.config.retry_timeout;
        let deadline = Instant::now() + after;
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
            let pause = backoff.next_pause();
            if Instant::now() + pause >= deadline {
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
        let found = found.find(|found| found.is_ipv4() || self.endpoint_v6.is_some());
        let Some(remote) = found else { return Err(unreachable("the name has no address".to_owned())) };
        let endpoint = match &self.endpoint_v6 {
            Some(endpoint) if remote.is_ipv6() => endpoint,
            _ => &self.endpoint_v4,
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
