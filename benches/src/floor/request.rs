//! Raw request and acknowledgement: many connections, each with one stream, one message on its way and one small answer to wait
//! for. What many devices with one record at a time cost the network path alone.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use quinn::{Connection, Endpoint, VarInt};
use tokio::task::JoinSet;

use super::raw::{REQUESTS, RawPeer, wrong};
use crate::report::histogram;
use crate::{BenchError, Floor, Latency};

/// Handshakes under way at once.
const CONNECTING_MAX: usize = 16;

/// The shape of a request.
#[derive(Debug, Clone, Copy)]
pub struct RequestShape {
    /// Connections, each on a socket of its own.
    pub connections: u32,
    /// Bytes there.
    pub request_bytes: u32,
    /// Bytes back.
    pub answer_bytes: u32,
}

/// What the network path does with it.
#[derive(Debug, Clone)]
pub struct RequestFloor {
    /// Its shape.
    pub shape: RequestShape,
    /// Answered, over all connections.
    pub requests_per_second: f64,
    /// Of each, there and back again.
    pub latency: Latency,
    /// CPU of the answering end.
    pub answer_cpu_ns: Option<f64>,
}

impl RequestFloor {
    /// As a line of the report.
    pub fn into_floor(self) -> Floor {
        let RequestShape { connections, request_bytes, answer_bytes } = self.shape;
        let cost = self.answer_cpu_ns.map(|ns| format!("; answering end {ns:.0} ns CPU each")).unwrap_or_default();
        Floor {
            name: format!("QUIC, raw: {connections} connections, {request_bytes} B there, {answer_bytes} B back{cost}"),
            bytes_per_second: None,
            requests_per_second: Some(self.requests_per_second),
            latency_ms: Some(self.latency),
        }
    }
}

/// What was answered while the clock ran.
#[derive(Debug)]
struct Answered {
    from: Instant,
    until: Instant,
    latencies: Mutex<Histogram<u64>>,
}

/// Connects all of them, then asks for a while; the first fifth is for windows and packet sizes to find themselves.
pub async fn raw_requests(peer: &RawPeer, shape: RequestShape, during: Duration) -> Result<RequestFloor, BenchError> {
    let connections = connect(peer, shape.connections).await?;
    let from = Instant::now() + during / 5;
    // One histogram for all: a thousand of them would not fit the caches.
    let answered = Arc::new(Answered { from, until: from + during, latencies: Mutex::new(histogram()) });
    let mut tasks = JoinSet::new();
    for (_, connection) in &connections {
        tasks.spawn(ask(connection.clone(), shape, answered.clone()));
    }
    tokio::time::sleep_until(from.into()).await;
    let cpu = peer.cpu_seconds();
    tokio::time::sleep_until(answered.until.into()).await;
    let cpu = peer.cpu_seconds().zip(cpu).map(|(after, before)| after - before);
    while let Some(asked) = tasks.join_next().await {
        asked.map_err(wrong)??;
    }
    for (_, connection) in &connections {
        connection.close(VarInt::from_u32(0), b"");
    }
    for (endpoint, _) in &connections {
        endpoint.wait_idle().await;
    }
    let latency = Latency::of(&answered.lock()).ok_or(BenchError::Nothing("no request was answered in the time given"))?;
    let requests = latency.samples as f64;
    let answer_cpu_ns = cpu.map(|seconds| seconds * 1e9 / requests);
    Ok(RequestFloor { shape, requests_per_second: requests / during.as_secs_f64(), latency, answer_cpu_ns })
}

/// A few handshakes at a time, so that none of them runs into its timeout.
async fn connect(peer: &RawPeer, count: u32) -> Result<Vec<(Endpoint, Connection)>, BenchError> {
    let config = peer.client_config()?;
    let (mut connected, mut tasks) = (Vec::new(), JoinSet::new());
    for _ in 0..count {
        if tasks.len() >= CONNECTING_MAX
            && let Some(one) = tasks.join_next().await
        {
            connected.push(one.map_err(wrong)??);
        }
        let (peer, config) = (peer.clone(), config.clone());
        tasks.spawn(async move { peer.connect(&config).await });
    }
    while let Some(one) = tasks.join_next().await {
        connected.push(one.map_err(wrong)??);
    }
    Ok(connected)
}

impl Answered {
    fn lock(&self) -> MutexGuard<'_, Histogram<u64>> {
        self.latencies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn ask(connection: Connection, shape: RequestShape, answered: Arc<Answered>) -> Result<(), BenchError> {
    let (mut send, mut receive) = connection.open_bi().await.map_err(wrong)?;
    let mut head = vec![REQUESTS];
    head.extend(shape.request_bytes.to_le_bytes());
    head.extend(shape.answer_bytes.to_le_bytes());
    send.write_all(&head).await.map_err(wrong)?;
    let request = Bytes::from(vec![0x5a; shape.request_bytes as usize]);
    let mut answer = vec![0; shape.answer_bytes as usize];
    loop {
        let sent = Instant::now();
        send.write_chunk(request.clone()).await.map_err(wrong)?;
        receive.read_exact(&mut answer).await.map_err(wrong)?;
        let now = Instant::now();
        if now >= answered.until {
            return Ok(());
        }
        if now >= answered.from {
            answered.lock().saturating_record((now - sent).as_micros() as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::floor::testing::peer;

    #[tokio::test(flavor = "multi_thread")]
    async fn every_connection_is_answered() {
        let (_answering, peer) = peer();
        // Larger than a packet, so that a request comes in parts.
        let shape = RequestShape { connections: 20, request_bytes: 5000, answer_bytes: 52 };
        let floor = raw_requests(&peer, shape, Duration::from_millis(50)).await.expect("measured");
        assert!(floor.latency.samples >= 20 && floor.requests_per_second > 0.0, "{floor:?}");
    }
}
