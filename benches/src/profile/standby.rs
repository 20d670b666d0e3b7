//! Connections that stand by: each with a client certificate, welcomed on its control stream, and silent. Many share a socket, so
//! that they cost the generator little; the node cannot tell.
//!
//! And connections that change their address: each sends a batch, goes on from another socket, and sends another one.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::{Connection, Endpoint, EndpointConfig, RecvStream, SendStream, TokioRuntime};
use tokio::task::JoinSet;
use weir_client::ClientConfig;
use weir_protocol::{
    Acks, Batch, FIRST_FRAME_BYTES_MAX, Frame, FrameDecoder, Hello, Kind, LaneOpen, LaneReady, Message, VERSION,
};

use super::lanes::ended_early;
use crate::floor::{Identity, Transport};
use crate::{BenchError, Load, Payload};

/// Connections of one socket. Each socket has an address of its own, because a node bounds the connections of one.
const CONNECTIONS_PER_SOCKET: u32 = 500;
/// Bytes that wait in a socket; the kernel may grant less.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;
/// Handshakes under way at once: none may run into its timeout.
const CONNECTING_MAX: usize = 64;
/// How long an attempt to connect may take, as the client library has it, or an acknowledgement.
const PATIENCE: Duration = Duration::from_secs(5);
/// Attempts of one connection.
const ATTEMPTS: u32 = 3;
/// What a connection may have un-read: little, as a device has it.
const WINDOW_BYTES: u64 = 64 << 10;

/// Welcomed connections; dropping it closes them.
#[derive(Debug)]
pub struct Standby {
    connections: Vec<Welcomed>,
    /// From the first handshake to the last welcome.
    pub seconds: f64,
    /// Attempts that got no welcome in time and were made again.
    pub repeated: u32,
}

#[derive(Debug)]
struct Welcomed {
    endpoint: Endpoint,
    connection: Connection,
    control: (SendStream, Frames),
    /// Attempts before this one.
    repeated: u32,
}

#[derive(Debug)]
struct Frames {
    receive: RecvStream,
    decoder: FrameDecoder,
}

impl Standby {
    /// Opens that many.
    pub async fn open(config: &ClientConfig, count: u32) -> Result<Standby, BenchError> {
        let quic = quic_config(config)?;
        let begin = Instant::now();
        let (mut connections, mut tasks) = (Vec::new(), JoinSet::new());
        let mut endpoint = None;
        for number in 0..count {
            let shared = match &endpoint {
                Some(shared) if !number.is_multiple_of(CONNECTIONS_PER_SOCKET) => shared,
                _ => endpoint.insert(socket_number(number / CONNECTIONS_PER_SOCKET)?),
            };
            if tasks.len() >= CONNECTING_MAX
                && let Some(one) = tasks.join_next().await
            {
                connections.push(one.map_err(ended_early)??);
            }
            tasks.spawn(welcomed(shared.clone(), quic.clone(), config.addr.clone(), String::new()));
        }
        while let Some(one) = tasks.join_next().await {
            connections.push(one.map_err(ended_early)??);
        }
        let repeated = connections.iter().map(|one: &Welcomed| one.repeated).sum();
        Ok(Standby { connections, seconds: begin.elapsed().as_secs_f64(), repeated })
    }

    /// Those that the node has not closed.
    pub fn alive(&self) -> usize {
        self.connections.iter().filter(|one| one.connection.close_reason().is_none()).count()
    }
}

impl Drop for Standby {
    fn drop(&mut self) {
        for one in &self.connections {
            one.connection.close(0u32.into(), b"");
        }
    }
}

/// How many of so many connections have a batch acknowledged after they went on from another socket.
pub async fn address_changes(config: &ClientConfig, load: &Load, count: u32) -> Result<u32, BenchError> {
    let quic = quic_config(config)?;
    let mut tasks = JoinSet::new();
    for number in 0..count {
        tasks.spawn(change_address(quic.clone(), config.addr.clone(), load.clone(), number));
    }
    let mut survived = 0;
    while let Some(one) = tasks.join_next().await {
        survived += u32::from(one.map_err(ended_early)??);
    }
    Ok(survived)
}

async fn change_address(quic: quinn::ClientConfig, addr: String, load: Load, number: u32) -> Result<bool, BenchError> {
    let name = format!("bench-{:016x}-moving-{number}", fastrand::u64(..));
    let mut one = welcomed(socket_number(0)?, quic, addr, name).await?;
    let (mut send, receive) = one.connection.open_bi().await.map_err(gone)?;
    let open = LaneOpen { lane: 0, topic: load.topic.clone() };
    send.write_chunk(open.to_frame(FIRST_FRAME_BYTES_MAX)?).await.map_err(gone)?;
    let mut lane = Frames { receive, decoder: FrameDecoder::new(1 << 20) };
    let ready: LaneReady = lane.next().await?.expect("LANE_READY")?;
    let mut payload = Payload::build(&load, u64::from(number))?;
    let mut sequence = ready.next_sequence;
    for moved in [false, true] {
        if moved {
            one.endpoint.rebind(UdpSocket::bind("127.0.0.1:0").map_err(gone)?).map_err(gone)?;
        }
        let (batch, records) = payload.next_batch();
        let frame = Batch { partition: number % ready.partitions, base_sequence: sequence, batch };
        send.write_chunk(frame.to_frame(1 << 20)?).await.map_err(gone)?;
        let answer = tokio::time::timeout(PATIENCE, one.control.1.next()).await;
        let Ok(Ok(answer)) = answer else { return Ok(false) };
        let acks: Acks = answer.expect("ACK")?;
        sequence += u64::from(records);
        if acks.items.last().is_none_or(|item| item.base_sequence + u64::from(item.record_count) != sequence) {
            return Ok(false);
        }
    }
    Ok(true)
}

async fn welcomed(endpoint: Endpoint, quic: quinn::ClientConfig, addr: String, name: String) -> Result<Welcomed, BenchError> {
    let remote: SocketAddr =
        addr.parse().map_err(|_| BenchError::Nothing("connections are counted at a numeric address only"))?;
    for repeated in 0..ATTEMPTS {
        let attempt = attempt(&endpoint, &quic, remote, &name);
        if let Ok(welcomed) = tokio::time::timeout(PATIENCE, attempt).await {
            return welcomed.map(|welcomed| Welcomed { repeated, ..welcomed });
        }
    }
    Err(gone(format!("no welcome within {} s, {ATTEMPTS} times in a row", PATIENCE.as_secs())))
}

async fn attempt(
    endpoint: &Endpoint,
    quic: &quinn::ClientConfig,
    remote: SocketAddr,
    name: &str,
) -> Result<Welcomed, BenchError> {
    let connecting = endpoint.connect_with(quic.clone(), remote, &remote.ip().to_string()).map_err(gone)?;
    let connection = connecting.await.map_err(gone)?;
    let (mut send, receive) = connection.open_bi().await.map_err(gone)?;
    let hello = Hello { version: VERSION, client: "weir-bench".to_owned(), producer_name: name.to_owned() };
    send.write_chunk(hello.to_frame(FIRST_FRAME_BYTES_MAX)?).await.map_err(gone)?;
    let mut frames = Frames { receive, decoder: FrameDecoder::new(1 << 20) };
    let answer = frames.next().await?;
    if answer.kind != Kind::Welcome {
        return Err(gone(format!("HELLO was answered with {}", answer.kind)));
    }
    Ok(Welcomed { endpoint: endpoint.clone(), connection, control: (send, frames), repeated: 0 })
}

impl Frames {
    async fn next(&mut self) -> Result<Frame, BenchError> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Ok(frame);
            }
            let chunk = self.receive.read_chunk(usize::MAX, true).await.map_err(gone)?;
            let chunk = chunk.ok_or_else(|| gone("the node ended a stream"))?;
            self.decoder.push(chunk.bytes);
        }
    }
}

fn gone(error: impl std::fmt::Display) -> BenchError {
    BenchError::Connection(error.to_string())
}

/// 127.0.0.1 for the first, and so on.
fn socket_number(number: u32) -> Result<Endpoint, BenchError> {
    let number = number + 1;
    let addr = SocketAddr::from(([127, 0, (number >> 8) as u8, number as u8], 0));
    let socket = UdpSocket::bind(addr).map_err(gone)?;
    // As the client library has it: with the default, answers to 64 handshakes at once are lost, and each costs a second.
    let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER_BYTES);
    Endpoint::new(EndpointConfig::default(), None, socket, Arc::new(TokioRuntime)).map_err(gone)
}

fn quic_config(config: &ClientConfig) -> Result<quinn::ClientConfig, BenchError> {
    let identity = Identity { ca_pem: config.ca_pem.clone(), cert_pem: config.cert_pem.clone(), key_pem: config.key_pem.clone() };
    let transport = Transport {
        stream_window_bytes: WINDOW_BYTES,
        connection_window_bytes: WINDOW_BYTES,
        send_window_bytes: 4 * WINDOW_BYTES,
        mtu_bytes_max: 1452,
    };
    identity.client_config(transport, Some(weir_protocol::ALPN))
}
