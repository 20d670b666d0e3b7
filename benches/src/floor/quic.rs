//! A raw QUIC stream and a raw QUIC echo over the loopback device: quinn with the node's transport settings, TLS 1.3, and
//! no protocol on it. Sender and receiver share this process, so its figure includes the CPU of both sides.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, Endpoint, ServerConfig, TransportConfig, VarInt};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::report::histogram;
use crate::{BenchError, Floor, Latency};

/// The settings that shape throughput; the node's own ones are passed in.
#[derive(Debug, Clone, Copy)]
pub struct Transport {
    /// Receive window of a stream.
    pub stream_window_bytes: u64,
    /// Receive window of a connection.
    pub connection_window_bytes: u64,
    /// Un-acknowledged bytes of the sender.
    pub send_window_bytes: u64,
    /// Upper bound of MTU discovery.
    pub mtu_bytes_max: u16,
}

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
            name: format!("QUIC over loopback, one raw stream; echo of {} B", self.message_bytes),
            bytes_per_second: Some(self.bytes_per_second),
            latency_ms: Some(self.echo),
        }
    }
}

/// Measures bulk for `during`, and the echo for as long.
pub async fn raw_quic(transport: Transport, message_bytes: usize, during: Duration) -> Result<QuicFloor, BenchError> {
    let (server, client) = endpoints(transport)?;
    let addr = server.local_addr().map_err(wrong)?;
    let serving = tokio::spawn(serve(server));
    let connection = client.connect(addr, "localhost").map_err(wrong)?.await.map_err(wrong)?;
    let bytes_per_second = bulk(&connection, during).await?;
    let echo = echo(&connection, message_bytes, during).await?;
    connection.close(VarInt::from_u32(0), b"");
    client.wait_idle().await;
    serving.abort();
    Ok(QuicFloor { bytes_per_second, echo, message_bytes })
}

/// The receiver says how much it read: bytes only count once they are there.
async fn bulk(connection: &quinn::Connection, during: Duration) -> Result<f64, BenchError> {
    let (mut send, mut receive) = connection.open_bi().await.map_err(wrong)?;
    let chunk = Bytes::from(vec![0x5a; 256 << 10]);
    send.write_all(b"B").await.map_err(wrong)?;
    let begin = Instant::now();
    while begin.elapsed() < during {
        send.write_chunk(chunk.clone()).await.map_err(wrong)?;
    }
    send.finish().map_err(wrong)?;
    let mut count = [0; 8];
    receive.read_exact(&mut count).await.map_err(wrong)?;
    Ok(u64::from_le_bytes(count) as f64 / begin.elapsed().as_secs_f64())
}

async fn echo(connection: &quinn::Connection, message_bytes: usize, during: Duration) -> Result<Latency, BenchError> {
    let (mut send, mut receive) = connection.open_bi().await.map_err(wrong)?;
    send.write_all(b"E").await.map_err(wrong)?;
    let message = vec![0x5a; message_bytes];
    let mut answer = vec![0; message_bytes];
    let mut histogram = histogram();
    let begin = Instant::now();
    while begin.elapsed() < during {
        let sent = Instant::now();
        send.write_all(&message).await.map_err(wrong)?;
        receive.read_exact(&mut answer).await.map_err(wrong)?;
        histogram.saturating_record(sent.elapsed().as_micros() as u64);
    }
    Latency::of(&histogram).ok_or(BenchError::Nothing("no echo came back in the time given"))
}

/// One connection, stream after stream: `B` counts what comes, `E` sends it back.
async fn serve(server: Endpoint) {
    let Some(incoming) = server.accept().await else { return };
    let Ok(connection) = incoming.await else { return };
    while let Ok((send, receive)) = connection.accept_bi().await {
        // An error here is the client's early end, and the client tells why.
        let _ = answer(send, receive).await;
    }
}

async fn answer(mut send: quinn::SendStream, mut receive: quinn::RecvStream) -> Result<(), BenchError> {
    let mut kind = [0];
    receive.read_exact(&mut kind).await.map_err(wrong)?;
    let mut count = 0_u64;
    while let Some(chunk) = receive.read_chunk(usize::MAX, true).await.map_err(wrong)? {
        count += chunk.bytes.len() as u64;
        if kind == *b"E" {
            send.write_chunk(chunk.bytes).await.map_err(wrong)?;
        }
    }
    if kind == *b"B" {
        send.write_all(&count.to_le_bytes()).await.map_err(wrong)?;
    }
    send.finish().map_err(wrong)?;
    Ok(())
}

fn endpoints(transport: Transport) -> Result<(Endpoint, Endpoint), BenchError> {
    let certified = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).map_err(wrong)?;
    let cert: CertificateDer<'static> = certified.cert.der().clone();
    let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).map_err(wrong)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = [&rustls::version::TLS13];

    let server =
        rustls::ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(&versions).map_err(wrong)?;
    let server = server.with_no_client_auth().with_single_cert(vec![cert.clone()], key).map_err(wrong)?;
    let mut server = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(server).map_err(wrong)?));
    server.transport_config(Arc::new(transport.to_quinn()));

    let mut roots = rustls::RootCertStore::empty();
    roots.add(cert).map_err(wrong)?;
    let client = rustls::ClientConfig::builder_with_provider(provider).with_protocol_versions(&versions).map_err(wrong)?;
    let client = client.with_root_certificates(roots).with_no_client_auth();
    let mut client = ClientConfig::new(Arc::new(QuicClientConfig::try_from(client).map_err(wrong)?));
    client.transport_config(Arc::new(transport.to_quinn()));

    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let server = Endpoint::server(server, any).map_err(wrong)?;
    let mut dialer = Endpoint::client(any).map_err(wrong)?;
    dialer.set_default_client_config(client);
    Ok((server, dialer))
}

impl Transport {
    fn to_quinn(self) -> TransportConfig {
        let window = |bytes| VarInt::from_u64(bytes).unwrap_or(VarInt::MAX);
        let mut config = TransportConfig::default();
        let mut mtu = quinn::MtuDiscoveryConfig::default();
        mtu.upper_bound(self.mtu_bytes_max);
        config
            .stream_receive_window(window(self.stream_window_bytes))
            .receive_window(window(self.connection_window_bytes))
            .send_window(self.send_window_bytes)
            .mtu_discovery_config(Some(mtu));
        config
    }
}

fn wrong(error: impl std::fmt::Display) -> BenchError {
    BenchError::Floor { floor: "QUIC", reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn bytes_and_echoes_arrive() {
        let transport = Transport {
            stream_window_bytes: 1 << 20,
            connection_window_bytes: 4 << 20,
            send_window_bytes: 4 << 20,
            mtu_bytes_max: 1452,
        };
        let floor = raw_quic(transport, 100, Duration::from_millis(100)).await.expect("measured");
        assert!(floor.bytes_per_second > 0.0);
        assert!(floor.echo.samples > 0 && floor.echo.p50 > 0.0);
    }
}
