//! Both ends of raw QUIC: quinn with the node's transport settings, its cipher, its client certificates and its socket
//! buffers, and no protocol on it. The answering end ([`serve`]) belongs in a process of its own, as a node is one.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    ClientConfig, Connection, Endpoint, EndpointConfig, RecvStream, SendStream, ServerConfig, TokioRuntime, TransportConfig,
    VarInt,
};
use rustls::CipherSuite;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;

use crate::{BenchError, Usage};

/// A stream whose bytes are counted.
pub(super) const BULK: u8 = b'B';
/// A stream whose bytes come back.
pub(super) const ECHO: u8 = b'E';
/// A stream of requests, each of which gets a small answer.
pub(super) const REQUESTS: u8 = b'R';
/// An answer's size at most: the protocol's ACK of one batch is far smaller.
const ANSWER_BYTES_MAX: usize = 4096;
/// Parts of a stream taken at once, as the node does.
const CHUNKS_PER_READ: usize = 16;
/// As a device that stays connected for long: longer than a measurement, so that no timer of it disturbs one.
const KEEP_ALIVE: Duration = Duration::from_secs(40);
/// The node's own limit is shorter and holds.
const IDLE_MS_MAX: u32 = 120_000;
/// As the node asks for.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;

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

/// One end's certificate, its key and the CA of both ends, PEM.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The CA.
    pub ca_pem: Vec<u8>,
    /// The certificate.
    pub cert_pem: Vec<u8>,
    /// Its key.
    pub key_pem: Vec<u8>,
}

/// Where the answering end is, and what the asking end needs to reach it.
#[derive(Debug, Clone)]
pub struct RawPeer {
    /// Its address, on this machine.
    pub addr: SocketAddr,
    /// Its process, if it is another one.
    pub pid: Option<u32>,
    /// The settings of both ends.
    pub transport: Transport,
    /// Of the asking end.
    pub identity: Identity,
}

impl RawPeer {
    /// A connection on a socket of its own, as each client has one.
    pub(super) async fn connect(&self, config: &ClientConfig) -> Result<(Endpoint, Connection), BenchError> {
        let endpoint = Endpoint::client(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))).map_err(wrong)?;
        let connecting = endpoint.connect_with(config.clone(), self.addr, "127.0.0.1").map_err(wrong)?;
        let connection = connecting.await.map_err(wrong)?;
        Ok((endpoint, connection))
    }

    /// CPU of the answering end so far.
    pub(super) fn cpu_seconds(&self) -> Option<f64> {
        self.pid.and_then(Usage::of).map(|usage| usage.cpu_seconds)
    }

    pub(super) fn client_config(&self) -> Result<ClientConfig, BenchError> {
        self.identity.client_config(self.transport, None)
    }
}

/// Opens the answering end on a free port of the loopback device. It answers until the endpoint is closed or dropped.
pub fn serve(transport: Transport, identity: &Identity) -> Result<Endpoint, BenchError> {
    let (provider, chain, key, roots) = identity.read()?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().map_err(wrong)?;
    let tls = rustls::ServerConfig::builder_with_provider(provider);
    let tls = tls.with_protocol_versions(&[&rustls::version::TLS13]).map_err(wrong)?;
    let tls = tls.with_client_cert_verifier(verifier).with_single_cert(chain, key).map_err(wrong)?;
    let mut config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).map_err(wrong)?));
    config.transport_config(Arc::new(transport.to_quinn()));
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).map_err(wrong)?;
    // The kernel may grant less.
    let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER_BYTES);
    let _ = rustix::net::sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER_BYTES);
    let runtime = Arc::new(TokioRuntime);
    let endpoint = Endpoint::new(EndpointConfig::default(), Some(config), socket, runtime).map_err(wrong)?;
    tokio::spawn(accept(endpoint.clone()));
    Ok(endpoint)
}

async fn accept(endpoint: Endpoint) {
    while let Some(incoming) = endpoint.accept().await {
        tokio::spawn(async move {
            let Ok(connection) = incoming.await else { return };
            while let Ok((send, receive)) = connection.accept_bi().await {
                // An error here is the asking end's early end, and that end tells why.
                tokio::spawn(answer(send, receive));
            }
        });
    }
}

/// One stream: its first byte says what is wanted.
async fn answer(mut send: SendStream, mut receive: RecvStream) -> Result<(), BenchError> {
    let mut kind = [0];
    receive.read_exact(&mut kind).await.map_err(wrong)?;
    match kind {
        [BULK] => count(&mut send, &mut receive).await?,
        [ECHO] => give_back(&mut send, &mut receive).await?,
        [REQUESTS] => answer_requests(&mut send, &mut receive).await?,
        _ => {}
    }
    // Only a stream that has ended already says no.
    let _ = send.finish();
    Ok(())
}

/// The next parts of a stream; none at its end.
async fn read<'a>(
    receive: &mut RecvStream,
    chunks: &'a mut [Bytes; CHUNKS_PER_READ],
) -> Result<Option<&'a mut [Bytes]>, BenchError> {
    let count = receive.read_chunks(chunks).await.map_err(wrong)?;
    Ok(count.map(|count| &mut chunks[..count]))
}

/// Says how much it read: bytes only count once they are there.
async fn count(send: &mut SendStream, receive: &mut RecvStream) -> Result<(), BenchError> {
    let (mut chunks, mut count) = (Default::default(), 0_u64);
    while let Some(chunks) = read(receive, &mut chunks).await? {
        count += chunks.iter().map(|chunk| chunk.len() as u64).sum::<u64>();
    }
    send.write_all(&count.to_le_bytes()).await.map_err(wrong)
}

async fn give_back(send: &mut SendStream, receive: &mut RecvStream) -> Result<(), BenchError> {
    let mut chunks = Default::default();
    while let Some(chunks) = read(receive, &mut chunks).await? {
        send.write_all_chunks(chunks).await.map_err(wrong)?;
    }
    Ok(())
}

/// The sizes of a request and of an answer, then requests.
async fn answer_requests(send: &mut SendStream, receive: &mut RecvStream) -> Result<(), BenchError> {
    let mut sizes = [0; 8];
    receive.read_exact(&mut sizes).await.map_err(wrong)?;
    let [request_bytes, answer_bytes] =
        [&sizes[..4], &sizes[4..]].map(|size| size.iter().rev().fold(0_usize, |size, byte| size << 8 | usize::from(*byte)));
    let answer = Bytes::from(vec![0x5a; answer_bytes.min(ANSWER_BYTES_MAX)]);
    let (mut chunks, mut held) = (Default::default(), 0);
    while let Some(chunks) = read(receive, &mut chunks).await? {
        held += chunks.iter().map(Bytes::len).sum::<usize>();
        while held >= request_bytes.max(1) {
            held -= request_bytes.max(1);
            send.write_chunk(answer.clone()).await.map_err(wrong)?;
        }
    }
    Ok(())
}

type Parts = (Arc<CryptoProvider>, Vec<CertificateDer<'static>>, PrivateKeyDer<'static>, rustls::RootCertStore);

impl Identity {
    /// The asking end's settings, of a protocol or of none.
    pub(crate) fn client_config(&self, transport: Transport, alpn: Option<&[u8]>) -> Result<ClientConfig, BenchError> {
        let (provider, chain, key, roots) = self.read()?;
        let tls = rustls::ClientConfig::builder_with_provider(provider);
        let tls = tls.with_protocol_versions(&[&rustls::version::TLS13]).map_err(wrong)?;
        let mut tls = tls.with_root_certificates(roots).with_client_auth_cert(chain, key).map_err(wrong)?;
        // Handshakes are whole ones: a device that comes back after hours has no session to resume.
        tls.resumption = rustls::client::Resumption::disabled();
        tls.alpn_protocols = alpn.iter().map(|alpn| alpn.to_vec()).collect();
        let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).map_err(wrong)?));
        config.transport_config(Arc::new(transport.to_quinn()));
        Ok(config)
    }

    /// AES-128 first, as both ends of the product have it.
    fn read(&self) -> Result<Parts, BenchError> {
        let mut provider = rustls::crypto::ring::default_provider();
        provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
        let chain = CertificateDer::pem_slice_iter(&self.cert_pem).collect::<Result<_, _>>().map_err(wrong)?;
        let key = PrivateKeyDer::from_pem_slice(&self.key_pem).map_err(wrong)?;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&self.ca_pem).map_err(wrong)?).map_err(wrong)?;
        Ok((Arc::new(provider), chain, key, roots))
    }
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
            .keep_alive_interval(Some(KEEP_ALIVE))
            .max_idle_timeout(Some(VarInt::from_u32(IDLE_MS_MAX).into()))
            .max_concurrent_bidi_streams(VarInt::from_u32(4))
            .max_concurrent_uni_streams(VarInt::from_u32(0))
            .datagram_receive_buffer_size(None)
            .mtu_discovery_config(Some(mtu));
        config
    }
}

pub(super) fn wrong(error: impl std::fmt::Display) -> BenchError {
    BenchError::Floor { floor: "QUIC", reason: error.to_string() }
}
