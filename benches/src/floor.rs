//! The floors: what the same machine does without Weir.

mod disk;
mod quic;
mod raw;
mod request;

pub use disk::{DiskFloor, durable_writes, sequential_reads};
pub use quic::{QuicFloor, raw_quic};
pub use raw::{Identity, RawPeer, Transport, serve};
pub use request::{RequestFloor, RequestShape, raw_requests};

/// Both ends in one process: enough to see that they work.
#[cfg(test)]
mod testing {
    use super::{Identity, RawPeer, Transport, serve};

    pub(super) fn peer() -> (quinn::Endpoint, RawPeer) {
        let transport = Transport {
            stream_window_bytes: 1 << 20,
            connection_window_bytes: 4 << 20,
            send_window_bytes: 4 << 20,
            mtu_bytes_max: 1452,
        };
        let certified = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).expect("a certificate");
        let cert_pem = certified.cert.pem().into_bytes();
        let key_pem = certified.signing_key.serialize_pem().into_bytes();
        let identity = Identity { ca_pem: cert_pem.clone(), cert_pem, key_pem };
        let endpoint = serve(transport, &identity).expect("a free port");
        let addr = endpoint.local_addr().expect("bound");
        (endpoint, RawPeer { addr, pid: None, transport, identity })
    }
}
