//! The small HTTP listener: `/metrics`, `/livez`, `/readyz`. Bounded, unauthenticated, and never a way to change anything.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::serve::Listener;
use axum::{Router, serve};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

use crate::broker::Broker;

/// Connections at a time: scrapers and probes, not users.
const CONNECTIONS_MAX: usize = 32;

/// Where the node is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Stage {
    /// The log recovers.
    Starting = 0,
    /// Everything is served.
    Serving = 1,
    /// What is in flight is finished.
    Draining = 2,
}

/// What the listener shows.
#[derive(Debug, Default)]
pub(crate) struct Health {
    stage: AtomicU8,
    broker: OnceLock<Arc<Broker>>,
}

impl Health {
    /// The node serves with this broker from now on.
    pub(crate) fn serving(&self, broker: Arc<Broker>) {
        let _ = self.broker.set(broker);
        self.stage.store(Stage::Serving as u8, Ordering::Release);
    }

    /// The node drains.
    pub(crate) fn draining(&self) {
        self.stage.store(Stage::Draining as u8, Ordering::Release);
    }

    /// None if the node is ready, else why not.
    fn unready(&self) -> Option<String> {
        match self.stage.load(Ordering::Acquire) {
            stage if stage == Stage::Starting as u8 => Some("the log is being recovered".to_owned()),
            stage if stage == Stage::Draining as u8 => Some("the node is shutting down".to_owned()),
            _ => {
                let stats = self.broker.get()?.log().stats();
                let fenced = stats.failed.map(|_| "the log takes no more writes; see the node's log".to_owned());
                fenced.or(stats.stalled.map(|reason| format!("appends wait: {reason}")))
            }
        }
    }
}

/// The listener while it runs.
#[derive(Debug)]
pub(crate) struct HttpServer {
    pub(crate) address: SocketAddr,
    task: JoinHandle<()>,
}

impl HttpServer {
    /// Binds and serves.
    pub(crate) async fn listen(listen: &str, health: Arc<Health>) -> io::Result<HttpServer> {
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        let router = Router::new()
            .route("/metrics", get(metrics))
            .route("/livez", get(async || "ok\n"))
            .route("/readyz", get(readyz))
            .with_state(health);
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let task = tokio::spawn(async move {
            // It only ends with the task.
            let _ = serve(Bounded { listener, places }, router).await;
        });
        Ok(HttpServer { address, task })
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn metrics(State(health): State<Arc<Health>>) -> impl IntoResponse {
    let text = match health.broker.get() {
        Some(broker) => {
            broker.refresh_levels();
            broker.metrics().render()
        }
        None => String::new(),
    };
    ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
}

async fn readyz(State(health): State<Arc<Health>>) -> (StatusCode, String) {
    match health.unready() {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

/// A listener with a bounded number of connections.
struct Bounded {
    listener: TcpListener,
    places: Arc<Semaphore>,
}

impl Listener for Bounded {
    type Io = Placed;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Placed, SocketAddr) {
        // The semaphore is never closed: without a place nothing is accepted.
        let place = self.places.clone().acquire_owned().await.ok();
        let (stream, address) = Listener::accept(&mut self.listener).await;
        (Placed { stream, _place: place }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection and its place.
struct Placed {
    stream: TcpStream,
    _place: Option<OwnedSemaphorePermit>,
}

impl AsyncRead for Placed {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Placed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
