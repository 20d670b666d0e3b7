//! TLS and transport settings of the native door: who may connect, and what one connection may cost.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::QuicServerConfig;
use quinn::{EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};
use ring::hmac;
use rustls::crypto::ring::cipher_suite::{TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use weir_protocol::ALPN;

use super::sessions::Sessions;
use crate::config::QuicConfig;

/// Sessions kept for resumption: about 1 KiB each with the client's certificate.
const SESSIONS_MAX: usize = 4_096;
/// Streams a connection may open at first; it gets more as it uses them (quinn allocates what it allows).
pub(super) const STREAMS_FIRST: u32 = 4;
/// Bytes in flight towards the node at first; a connection that opens a lane gets the configured window.
pub(super) const RECEIVE_WINDOW_FIRST: u32 = 128 << 10;

/// Packet sizes are tried in steps of about this: each try is a full packet and its answer on every new connection, which may be a
/// mobile one that stands by.
const MTU_STEP: u16 = 64;

/// Why certificates or transport settings cannot be used. The operator's turn.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file is missing or holds no PEM of its kind.
    #[error("{key} = {}: {reason}; make one with `weir cert`, or correct the path", path.display())]
    File {
        /// The setting.
        key: &'static str,
        /// Its value.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Certificate and key do not belong together, and the like.
    #[error("the server's certificate cannot be used: {reason}; check that quic.cert and quic.key belong together")]
    Unusable {
        /// What TLS said.
        reason: String,
    },
    /// The CA certificates cannot be used to check clients.
    #[error("quic.client_ca cannot be used to check clients: {reason}; it must hold CA certificates")]
    ClientCa {
        /// What TLS said.
        reason: String,
    },
}

/// Reads certificates and key, and makes the settings of one listener. Called again to renew them while it runs.
pub(super) fn server_config(config: &QuicConfig) -> Result<quinn::ServerConfig, TlsError> {
    let unusable = |error: &dyn std::fmt::Display| TlsError::Unusable { reason: error.to_string() };
    let mut tls = tls_config(config)?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    // Stateful and single-use: a captured first flight is of no use a second time to this process.
    tls.session_storage = Arc::new(Sessions::new(SESSIONS_MAX));
    // One a connection: whoever resumes gets a new one.
    tls.send_tls13_tickets = 1;
    tls.max_early_data_size = if config.zero_rtt { u32::MAX } else { 0 };
    tls.ignore_client_order = true;
    let crypto = QuicServerConfig::try_from(tls).map_err(|error| unusable(&error))?;
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    server.transport_config(Arc::new(transport_config(config)));
    server.max_incoming(1 << 10).incoming_buffer_size(64 << 10).incoming_buffer_size_total(8 << 20);
    Ok(server)
}

fn tls_config(config: &QuicConfig) -> Result<ServerConfig, TlsError> {
    let unusable = |error: rustls::Error| TlsError::Unusable { reason: error.to_string() };
    let mut provider = rustls::crypto::ring::default_provider();
    // Measured: AES-128 first; ChaCha is 30 % slower where the CPU has AES instructions.
    provider.cipher_suites = vec![TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256];
    let provider = Arc::new(provider);
    let mut roots = RootCertStore::empty();
    for certificate in certificates("quic.client_ca", &config.client_ca)? {
        roots.add(certificate).map_err(|error| TlsError::ClientCa { reason: error.to_string() })?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|error| TlsError::ClientCa { reason: error.to_string() })?;
    let chain = certificates("quic.cert", &config.cert)?;
    let key = PrivateKeyDer::from_pem_file(&config.key).map_err(|error| file("quic.key", &config.key, &error))?;
    ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(unusable)
}

/// Keys that outlive the process, derived from the server's private key: so a node that was killed and started again can tell the
/// clients of its former life, by QUIC's stateless reset, that their connections are gone. Otherwise they would wait for
/// their idle timeout before they reconnect. The second one is the key of connection ids.
pub(super) fn endpoint_config(config: &QuicConfig) -> Result<(EndpointConfig, hmac::Key), TlsError> {
    let key = PrivateKeyDer::from_pem_file(&config.key).map_err(|error| file("quic.key", &config.key, &error))?;
    let secret = hmac::Key::new(hmac::HMAC_SHA256, key.secret_der());
    let reset_key = hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&secret, b"weir/1 stateless reset").as_ref());
    let id_key = hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&secret, b"weir/1 connection ids").as_ref());
    Ok((EndpointConfig::new(Arc::new(reset_key)), id_key))
}

fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = CertificateDer::pem_file_iter(path).map_err(|error| file(key, path, &error))?;
    let certificates: Vec<_> = read.collect::<Result<_, _>>().map_err(|error| file(key, path, &error))?;
    if certificates.is_empty() {
        return Err(file(key, path, &"it holds no certificate"));
    }
    Ok(certificates)
}

fn file(key: &'static str, path: &Path, reason: &dyn std::fmt::Display) -> TlsError {
    TlsError::File { key, path: path.to_owned(), reason: reason.to_string() }
}

/// What one connection may cost: quinn's own defaults leave the receive window open.
fn transport_config(config: &QuicConfig) -> TransportConfig {
    let mut transport = TransportConfig::default();
    let idle = IdleTimeout::try_from(Duration::from_millis(config.idle_timeout_ms)).ok();
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(config.mtu_bytes_max).minimum_change(MTU_STEP);
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_FIRST.min(config.streams_per_connection_max)))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .stream_receive_window(var_int(config.stream_window_bytes))
        .receive_window(var_int(config.connection_window_bytes.min(u64::from(RECEIVE_WINDOW_FIRST))))
        .send_window(config.send_window_bytes)
        .max_idle_timeout(idle)
        .mtu_discovery_config(Some(mtu));
    transport
}

/// A window as QUIC writes it.
pub(super) fn var_int(value: u64) -> VarInt {
    VarInt::from_u64(value).unwrap_or(VarInt::MAX)
}
