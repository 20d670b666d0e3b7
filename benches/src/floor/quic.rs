//! A raw QUIC stream and a raw QUIC echo over the loopback device, to the answering end of another process.

use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn::{Connection, VarInt};

use super::raw::{BULK, ECHO, RawPeer, wrong};
use crate::report::histogram;
use crate::{BenchError, Floor, Latency};

/// Bytes handed over at once.
const CHUNK_BYTES: usize = 256 << 10;

/// What the network path does.
#[derive(Debug, Clone)]
pub struct QuicFloor {
    /// One stream, one direction.
    pub bytes_per_second: f64,
    /// There and back again, one message at a time.
    pub echo: Latency,
    /// Bytes of a message.
    pub message_bytes: usize,
}

impl QuicFloor {
    /// As a line of the report.
    pub fn into_floor(self) -> Floor {
        Floor {
            name: format!("QUIC, one raw stream; echo of {} B", self.message_bytes),
            bytes_per_second: Some(self.bytes_per_second),
            requests_per_second: None,
            latency_ms: Some(self.echo),
        }
    }
}

/// Measures bulk for `during`, and the echo for as long.
pub async fn raw_quic(peer: &RawPeer, message_bytes: usize, during: Duration) -> Result<QuicFloor, BenchError> {
    let (endpoint, connection) = peer.connect(&peer.client_config()?).await?;
    let bytes_per_second = bulk(&connection, during).await?;
    let echo = echo(&connection, message_bytes, during).await?;
    connection.close(VarInt::from_u32(0), b"");
    endpoint.wait_idle().await;
    Ok(QuicFloor { bytes_per_second, echo, message_bytes })
}

/// The receiver says how much it read: bytes only count once they are there.
async fn bulk(connection: &Connection, during: Duration) -> Result<f64, BenchError> {
    let (mut send, mut receive) = connection.open_bi().await.map_err(wrong)?;
    let chunk = Bytes::from(vec![0x5a; CHUNK_BYTES]);
    send.write_all(&[BULK]).await.map_err(wrong)?;
    let begin = Instant::now();
    while begin.elapsed() < during {
        send.write_chunk(chunk.clone()).await.map_err(wrong)?;
    }
    send.finish().map_err(wrong)?;
    let mut count = [0; 8];
    receive.read_exact(&mut count).await.map_err(wrong)?;
    Ok(u64::from_le_bytes(count) as f64 / begin.elapsed().as_secs_f64())
}

async fn echo(connection: &Connection, message_bytes: usize, during: Duration) -> Result<Latency, BenchError> {
    let (mut send, mut receive) = connection.open_bi().await.map_err(wrong)?;
    send.write_all(&[ECHO]).await.map_err(wrong)?;
    let message = Bytes::from(vec![0x5a; message_bytes]);
    let mut answer = vec![0; message_bytes];
    let mut histogram = histogram();
    let begin = Instant::now();
    while begin.elapsed() < during {
        let sent = Instant::now();
        send.write_chunk(message.clone()).await.map_err(wrong)?;
        receive.read_exact(&mut answer).await.map_err(wrong)?;
        histogram.saturating_record(sent.elapsed().as_micros() as u64);
    }
    Latency::of(&histogram).ok_or(BenchError::Nothing("no echo came back in the time given"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::floor::testing::peer;

    #[tokio::test(flavor = "multi_thread")]
    async fn bytes_and_echoes_arrive() {
        let (_answering, peer) = peer();
        let floor = raw_quic(&peer, 100, Duration::from_millis(100)).await.expect("measured");
        assert!(floor.bytes_per_second > 0.0);
        assert!(floor.echo.samples > 0 && floor.echo.p50 > 0.0);
    }
}
