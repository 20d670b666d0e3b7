//! TLS 1.3 with client certificates, the transport's limits, and what a failed handshake means.

use std::sync::{Arc, Mutex};

use quinn::{
    AckFrequencyConfig, ConnectionError, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt,
    crypto::rustls::QuicClientConfig,
};
use rustls::{
    CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject};
use weir_protocol::{ALPN, Code};

use crate::{CertificateProblem, ClientConfig, ClientError, TransportProfile};

/// Sessions kept for 0-RTT; a server gives one each time.
const RESUMPTION_SESSIONS: usize = 32;
/// Above about 6,550 bytes discovery falls into a black hole with segmentation offload; Ethernet has 1,452.
const MTU_MAX: u16 = 1452;
/// Sizes are tried in steps of about this: each try is a full packet and its answer on every new connection.
const MTU_STEP: u16 = 64;

/// Everything a connection attempt needs, made once.
#[derive(Debug)]
pub(crate) struct Tls {
    pub(crate) quic: quinn::ClientConfig,
    verifier: Arc<NotingVerifier>,
}

impl Tls {
    pub(crate) fn new(config: &ClientConfig) -> Result<Tls, ClientError> {
        let provider = Arc::new(aes_128_first());
        let verifier = Arc::new(NotingVerifier::new(roots(config)?, provider.clone())?);
        let chain = certificates("cert_pem", &config.cert_pem)?;
        let key = PrivateKeyDer::from_pem_slice(&config.key_pem)
            .map_err(|error| bad("key_pem", format!("has no private key: {error}")))?;
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| bad("tls", error))?
            .dangerous() // the verifier below only notes what the usual one says
            .with_custom_certificate_verifier(verifier.clone())
            .with_client_auth_cert(chain, key)
            .map_err(|error| bad("key_pem", format!("does not belong to cert_pem: {error}")))?;
        tls.alpn_protocols = vec![ALPN.to_vec()];
        tls.enable_early_data = true; // used by one-shot publishing only
        tls.resumption = Resumption::in_memory_sessions(RESUMPTION_SESSIONS);
        let crypto = QuicClientConfig::try_from(tls).map_err(|error| bad("tls", error))?;
        let mut quic = quinn::ClientConfig::new(Arc::new(crypto));
        quic.transport_config(Arc::new(transport(&config.transport)?));
        Ok(Tls { quic, verifier })
    }

    /// What a lost connection means; `addr` for the sentence.
    pub(crate) fn explain(&self, addr: &str, error: &ConnectionError) -> ClientError {
        let certificate = |whose, problem| ClientError::Certificate { whose, problem };
        match error {
            ConnectionError::TransportError(transport) => match self.verifier.take() {
                Some(problem) => certificate("the server", problem),
                None if transport.reason.contains("TLS") || alert_of(transport.code.into()).is_some() => {
                    ClientError::NotWeir { addr: addr.to_owned(), reason: transport.to_string() }
                }
                None => ClientError::Disconnected { reason: error.to_string() },
            },
            ConnectionError::ConnectionClosed(close) => match alert_of(close.error_code.into()) {
                Some(NO_APPLICATION_PROTOCOL) => {
                    ClientError::NotWeir { addr: addr.to_owned(), reason: "it offers another protocol".to_owned() }
                }
                Some(alert) => match problem_of_alert(alert) {
                    Some(problem) => certificate("this client", problem),
                    None => ClientError::NotWeir { addr: addr.to_owned(), reason: close.to_string() },
                },
                None => ClientError::Disconnected { reason: error.to_string() },
            },
            ConnectionError::ApplicationClosed(close) => {
                let code = Code::from_number(u64::from(close.error_code).min(u16::MAX as u64) as u16);
                let message = String::from_utf8_lossy(&close.reason).into_owned();
                match code {
                    Code::Ok | Code::ShuttingDown => ClientError::Disconnected { reason: "closed by the server".to_owned() },
                    _ => ClientError::refused(code, message, ""),
                }
            }
            ConnectionError::VersionMismatch => ClientError::NotWeir { addr: addr.to_owned(), reason: error.to_string() },
            other => ClientError::Disconnected { reason: other.to_string() },
        }
    }
}

fn bad(what: &str, reason: impl ToString) -> ClientError {
    ClientError::Config { what: what.to_owned(), reason: reason.to_string() }
}

/// AES-128-GCM is the fastest suite here; the server follows the client's order.
fn aes_128_first() -> CryptoProvider {
    let mut provider = ring::default_provider();
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    provider
}

fn certificates(what: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, ClientError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(bad(what, "has no certificate in it; give a PEM file")),
        Err(error) => Err(bad(what, format!("is not PEM: {error}"))),
    }
}

fn roots(config: &ClientConfig) -> Result<RootCertStore, ClientError> {
    let mut roots = RootCertStore::empty();
    for root in certificates("ca_pem", &config.ca_pem)? {
        roots.add(root).map_err(|error| bad("ca_pem", format!("has a certificate that cannot be a CA: {error}")))?;
    }
    Ok(roots)
}

fn transport(profile: &TransportProfile) -> Result<TransportConfig, ClientError> {
    let idle = IdleTimeout::try_from(profile.idle_timeout).map_err(|_| bad("transport.idle_timeout", "is too long"))?;
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(MTU_MAX).minimum_change(MTU_STEP);
    let mut transport = TransportConfig::default();
    transport
        .receive_window(VarInt::from_u32(profile.receive_window_bytes))
        .stream_receive_window(VarInt::from_u32(profile.stream_receive_window_bytes))
        .send_window(profile.send_window_bytes as u64)
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(profile.keep_alive))
        .mtu_discovery_config(Some(mtu))
        .max_concurrent_bidi_streams(VarInt::from_u32(0)) // the server opens none
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .ack_frequency_config(Some(acks_wanted()));
    Ok(transport)
}

/// The server's transport answers every tenth packet instead of every second one, and otherwise as late as QUIC has it: each answer
/// costs a packet on both sides. What Weir itself acknowledges takes the transport's answer along, if it comes in time.
fn acks_wanted() -> AckFrequencyConfig {
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(VarInt::from_u32(9));
    acks
}

const NO_APPLICATION_PROTOCOL: u8 = 120;

/// The TLS alert in a QUIC crypto error.
fn alert_of(code: u64) -> Option<u8> {
    (0x100..0x200).contains(&code).then_some(code as u8)
}

/// RFC 8446, 6.2.
fn problem_of_alert(alert: u8) -> Option<CertificateProblem> {
    match alert {
        42 | 43 | 46 => Some(CertificateProblem::Invalid),
        44 => Some(CertificateProblem::Revoked),
        45 => Some(CertificateProblem::Expired),
        48 | 51 => Some(CertificateProblem::UnknownIssuer), // 51: a CA of the right name and the wrong key
        49 => Some(CertificateProblem::WrongPurpose),
        116 => Some(CertificateProblem::Missing),
        _ => None,
    }
}

/// rustls' usual verifier; it also keeps what was wrong, which the transport's error has only as text.
#[derive(Debug)]
struct NotingVerifier {
    usual: Arc<WebPkiServerVerifier>,
    noted: Mutex<Option<CertificateProblem>>,
}

impl NotingVerifier {
    fn new(roots: RootCertStore, provider: Arc<CryptoProvider>) -> Result<NotingVerifier, ClientError> {
        let usual = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
        Ok(NotingVerifier { usual: usual.map_err(|error| bad("ca_pem", error))?, noted: Mutex::new(None) })
    }

    fn take(&self) -> Option<CertificateProblem> {
        self.noted.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take()
    }
}

impl ServerCertVerifier for NotingVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self.usual.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        let problem = match &verified {
            Err(rustls::Error::InvalidCertificate(error)) => Some(problem_of(error)),
            Err(_) => Some(CertificateProblem::Invalid),
            Ok(_) => None,
        };
        *self.noted.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = problem;
        verified
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.usual.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.usual.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
}

fn problem_of(error: &CertificateError) -> CertificateProblem {
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => CertificateProblem::Expired,
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => CertificateProblem::NotYetValid,
        CertificateError::UnknownIssuer | CertificateError::BadSignature => CertificateProblem::UnknownIssuer,
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => CertificateProblem::WrongName,
        CertificateError::Revoked => CertificateProblem::Revoked,
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => CertificateProblem::WrongPurpose,
        _ => CertificateProblem::Invalid,
    }
}
