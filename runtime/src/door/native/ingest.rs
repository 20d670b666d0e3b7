//! Ingest threads: each has a UDP socket of its own on the door's port, a QUIC endpoint and an executor, and serves a
//! connection from its first datagram to its last. Nothing of a connection crosses threads but what the log decides.
//!
//! All sockets share the port (`SO_REUSEPORT`). A classic BPF filter picks the socket by the first byte of the packet's
//! destination connection id: chance for a client's first packet, and from then on the thread that gave the id out, so a
//! vehicle that comes back from another address still reaches the thread that knows it. Where the kernel refuses the
//! filter there is one thread.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::libc::{self, sock_filter, sock_fprog};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, sockopt};
use quinn::{ConnectionIdGenerator, Endpoint, EndpointConfig, ServerConfig, TokioRuntime};
use quinn_proto::{ConnectionId, InvalidCid, RandomConnectionIdGenerator};
use ring::hmac;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

/// More threads than this wait for the log and each other, not for packets.
const THREADS_MAX: usize = 16;
/// Socket buffers: a burst of all connections waits here while the endpoint works.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;
/// Where a long header (handshake) and a short one have their destination connection id.
const LONG_ID_AT: u32 = 6;
const SHORT_ID_AT: u32 = 1;
/// The bit of the first byte that tells them apart.
const LONG_HEADER: u32 = 0x80;

/// One thread's socket, before the thread runs.
#[derive(Debug)]
pub(super) struct IngestSocket {
    socket: UdpSocket,
    number: u8,
    of: u8,
}

/// Sockets for so many threads on one port; 0 means one for two cores, because the log, the pipelines and whoever publishes on
/// the same machine want the others. Fewer where the system cannot steer packets.
pub(super) fn bind(address: SocketAddr, threads: u32) -> io::Result<Vec<IngestSocket>> {
    let wanted = match threads {
        0 => std::thread::available_parallelism().map_or(1, |cores| cores.get() / 2),
        threads => threads as usize,
    };
    let wanted = wanted.clamp(1, THREADS_MAX);
    // Another node must be noticed before the port is shared: shared sockets would split its packets with it.
    let first = UdpSocket::bind(address)?;
    if wanted > 1 {
        let address = first.local_addr()?;
        drop(first);
        match bind_shared(address, wanted) {
            Ok(sockets) => return Ok(sockets),
            Err(error) => tracing::warn!(%error, "packets cannot be steered to several ingest threads; one serves all"),
        }
        return Ok(vec![IngestSocket { socket: sized(UdpSocket::bind(address)?), number: 0, of: 1 }]);
    }
    Ok(vec![IngestSocket { socket: sized(first), number: 0, of: 1 }])
}

fn bind_shared(address: SocketAddr, count: usize) -> io::Result<Vec<IngestSocket>> {
    let mut sockets = Vec::with_capacity(count);
    for number in 0..count {
        let socket = shared_socket(address)?;
        if number == 0 {
            steer(&socket, count as u32)?;
        }
        sockets.push(IngestSocket { socket: sized(socket), number: number as u8, of: count as u8 });
    }
    Ok(sockets)
}

fn shared_socket(address: SocketAddr) -> io::Result<UdpSocket> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = nix::sys::socket::socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::ReusePort, &true)?;
    rustix::net::bind(&socket, &address)?;
    Ok(UdpSocket::from(socket))
}

/// The kernel may grant less; then a burst is lost and sent again.
fn sized(socket: UdpSocket) -> UdpSocket {
    let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER_BYTES);
    let _ = rustix::net::sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER_BYTES);
    socket
}

/// `socket number = first byte of the destination connection id % count`, for all sockets that share the port.
fn steer(socket: &UdpSocket, count: u32) -> io::Result<()> {
    let instruction = |code: u32, jt, jf, k| sock_filter { code: code as u16, jt, jf, k };
    let load_byte = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
    let mut filter = [
        instruction(load_byte, 0, 0, 0),
        instruction(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, 0, 2, LONG_HEADER),
        instruction(load_byte, 0, 0, LONG_ID_AT),
        instruction(libc::BPF_JMP | libc::BPF_JA, 0, 0, 1),
        instruction(load_byte, 0, 0, SHORT_ID_AT),
        instruction(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, 0, 0, count),
        instruction(libc::BPF_RET | libc::BPF_A, 0, 0, 0),
    ];
    let program = sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    Ok(setsockopt(socket, sockopt::AttachReusePortCbpf, &program)?)
}

/// Ids whose first byte leads to their thread, and whose last bytes only this node can have made.
///
/// The random part must be wide: QUIC takes the id in a Retry without looking whether a connection has it, and what then
/// arrives goes to that connection and is dropped. With the 24 bits of quinn's own keyed ids, and five ids a connection, one in
/// 300 clients met another's id at 10,000 connections and waited in vain for its handshake.
struct SteeredIds {
    random: RandomConnectionIdGenerator,
    key: hmac::Key,
    number: u8,
    of: u8,
}

const ID_BYTES: usize = 8;
/// The random part; the rest is its tag.
const NONCE_BYTES: usize = 5;

impl SteeredIds {
    fn new(key: hmac::Key, number: u8, of: u8) -> SteeredIds {
        SteeredIds { random: RandomConnectionIdGenerator::new(ID_BYTES), key, number, of }
    }

    fn tag(&self, nonce: &[u8]) -> [u8; ID_BYTES - NONCE_BYTES] {
        let tag = hmac::sign(&self.key, nonce);
        std::array::from_fn(|at| tag.as_ref()[at])
    }
}

impl ConnectionIdGenerator for SteeredIds {
    fn generate_cid(&mut self) -> ConnectionId {
        // The first byte is random: one try in `of` fits, and `of` is small.
        loop {
            let mut id = [0; ID_BYTES];
            id.copy_from_slice(&self.random.generate_cid());
            if id[0] % self.of == self.number {
                let tag = self.tag(&id[..NONCE_BYTES]);
                id[NONCE_BYTES..].copy_from_slice(&tag);
                return ConnectionId::new(&id);
            }
        }
    }

    /// Whether a node with this key made it: others are not answered with a reset.
    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        match id.split_at_checked(NONCE_BYTES) {
            Some((nonce, tag)) if *tag == self.tag(nonce) => Ok(()),
            _ => Err(InvalidCid),
        }
    }

    fn cid_len(&self) -> usize {
        ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// A running ingest thread.
#[derive(Debug)]
pub(super) struct IngestThread {
    pub(super) endpoint: Endpoint,
    /// Dropping it ends the thread.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl IngestThread {
    /// Starts a thread on its socket; `serve` runs on it until the thread is stopped.
    pub(super) fn start<F>(
        socket: IngestSocket,
        mut config: EndpointConfig,
        id_key: hmac::Key,
        server: ServerConfig,
        serve: impl FnOnce(Endpoint) -> F + Send + 'static,
    ) -> io::Result<IngestThread>
    where
        F: Future<Output = ()>,
    {
        let IngestSocket { socket, number, of } = socket;
        config.cid_generator(move || Box::new(SteeredIds::new(id_key.clone(), number, of)));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let endpoint = {
            let _here = runtime.enter();
            Endpoint::new(config, Some(server), socket, Arc::new(TokioRuntime))?
        };
        let (stop, stopped) = oneshot::channel();
        let serving = endpoint.clone();
        let thread = std::thread::Builder::new()
            .name(format!("weir-ingest-{number}"))
            .spawn(move || run(&runtime, serve(serving), stopped))?;
        Ok(IngestThread { endpoint, stop: Some(stop), thread: Some(thread) })
    }

    /// Ends the thread and what still runs on it. Blocks for as long as its current task takes.
    pub(super) fn stop(mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("an ingest thread had panicked");
        }
    }
}

fn run(runtime: &Runtime, serve: impl Future<Output = ()>, stopped: oneshot::Receiver<()>) {
    runtime.block_on(async {
        tokio::pin!(serve);
        tokio::select! {
            _ = stopped => {}
            () = &mut serve => {}
        }
    });
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const ANY: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);

    #[test]
    fn a_packet_reaches_the_thread_its_connection_id_names() {
        let sockets = bind(ANY.into(), 3).expect("bound");
        assert_eq!(sockets.len(), 3);
        let address = sockets[0].socket.local_addr().expect("an address");
        for first in 0..12u8 {
            // From another port each time, as after a change of address.
            let sender = UdpSocket::bind(ANY).expect("a socket");
            let mut short = [0x40, first, 1, 2, 3, 4, 5, 6, 7, 0, 0, 0];
            sender.send_to(&short, address).expect("sent");
            short[0] = 0xc0;
            short[6] = first;
            sender.send_to(&short, address).expect("sent");
            let wanted = &sockets[usize::from(first) % 3].socket;
            wanted.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
            for _ in 0..2 {
                let mut bytes = [0; 64];
                let (count, from) = wanted.recv_from(&mut bytes).expect("the packet arrives here");
                assert_eq!((count, from), (short.len(), sender.local_addr().expect("an address")));
            }
        }
    }

    fn ids(key: &[u8], number: u8, of: u8) -> SteeredIds {
        SteeredIds::new(hmac::Key::new(hmac::HMAC_SHA256, key), number, of)
    }

    #[test]
    fn ids_lead_back_to_their_thread() {
        let mut made = ids(b"this node", 2, 3);
        let other = ids(b"another node", 2, 3);
        for _ in 0..100 {
            let id = made.generate_cid();
            assert_eq!(id[0] % 3, 2);
            assert!(made.validate(&id).is_ok());
            assert!(other.validate(&id).is_err());
            assert!(made.validate(&ConnectionId::new(&id[..3])).is_err());
        }
    }

    #[test]
    fn the_id_in_a_retry_meets_no_connection_that_stands() {
        let mut made = ids(b"this node", 0, 1);
        let count = 50_000;
        let different: std::collections::HashSet<_> = (0..count).map(|_| made.generate_cid()).collect();
        // One meeting among 50,000 has a chance of a thousandth; of 24 random bits it would be 74.
        assert!(different.len() >= count - 1, "{} of {count}", different.len());
    }

    #[test]
    fn a_port_that_is_taken_is_not_shared_with_its_owner() {
        let owner = bind(ANY.into(), 2).expect("bound");
        let address = owner[0].socket.local_addr().expect("an address");
        let error = bind(address, 2).expect_err("it is taken");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
