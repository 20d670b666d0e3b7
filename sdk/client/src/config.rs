//! What the application decides. Every limit has a default that suits a gateway.

use std::{path::Path, time::Duration};

use weir_batch::Codec;

use crate::ClientError;

/// How to reach and trust a server, and who this client is.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ClientConfig {
    /// `host:port`.
    pub addr: String,
    /// The name the server's certificate must have; by default the host of `addr`.
    pub server_name: Option<String>,
    /// The CA that signed the server's certificate, PEM.
    pub ca_pem: Vec<u8>,
    /// This client's certificate chain, PEM.
    pub cert_pem: Vec<u8>,
    /// Its key, PEM.
    pub key_pem: Vec<u8>,
    /// Under which the server keeps this client's sequences, so that a restarted process can go on. Without one a random name is made up: then
    /// lost connections are resumed without loss or copy, lost processes are not.
    pub producer_name: Option<String>,
    /// What the client calls itself in the server's log.
    pub client_name: String,
    /// For one attempt to connect.
    pub connect_timeout: Duration,
    /// For an operation or a start that has to wait for a connection.
    pub retry_timeout: Duration,
    /// The same where the server answers but refuses for now, as with a full disk that retention is about to free: the longer of the two
    /// counts then.
    pub refused_timeout: Duration,
    /// Longest pause between two attempts.
    pub backoff_max: Duration,
    /// Windows and timers of the connection.
    pub transport: TransportProfile,
}

impl ClientConfig {
    /// With the contents of the three PEM files.
    pub fn new(addr: impl Into<String>, ca_pem: Vec<u8>, cert_pem: Vec<u8>, key_pem: Vec<u8>) -> ClientConfig {
        ClientConfig {
            addr: addr.into(),
            server_name: None,
            ca_pem,
            cert_pem,
            key_pem,
            producer_name: None,
            client_name: concat!("weir-client/", env!("CARGO_PKG_VERSION")).to_owned(),
            connect_timeout: Duration::from_secs(5),
            retry_timeout: Duration::from_secs(30),
            refused_timeout: Duration::from_secs(30),
            backoff_max: Duration::from_secs(2),
            transport: TransportProfile::default(),
        }
    }

    /// With the names of the three PEM files.
    pub fn from_files(
        addr: impl Into<String>,
        ca: impl AsRef<Path>,
        cert: impl AsRef<Path>,
        key: impl AsRef<Path>,
    ) -> Result<ClientConfig, ClientError> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|error| ClientError::Config {
                what: path.display().to_string(),
                reason: format!("cannot be read: {error}"),
            })
        };
        Ok(ClientConfig::new(addr, read(ca.as_ref())?, read(cert.as_ref())?, read(key.as_ref())?))
    }

    /// With a producer name.
    #[must_use]
    pub fn producer_name(mut self, name: impl Into<String>) -> ClientConfig {
        self.producer_name = Some(name.into());
        self
    }

    /// With another name to expect in the server's certificate.
    #[must_use]
    pub fn server_name(mut self, name: impl Into<String>) -> ClientConfig {
        self.server_name = Some(name.into());
        self
    }
}

/// Windows and timers of a QUIC connection. All windows are bounded: quinn's own default for the connection is not.
#[derive(Debug, Clone)]
pub struct TransportProfile {
    /// What all streams of the connection may have unread.
    pub receive_window_bytes: u32,
    /// What one stream may have unread.
    pub stream_receive_window_bytes: u32,
    /// What may be written and not acknowledged by the peer's transport.
    pub send_window_bytes: u32,
    /// Silence after which the connection counts as lost.
    pub idle_timeout: Duration,
    /// Pause after which the client says that it is there.
    pub keep_alive: Duration,
}

impl Default for TransportProfile {
    /// For a gateway: a window of 8 MiB fills 600 Mbit/s at 100 ms.
    fn default() -> TransportProfile {
        TransportProfile {
            receive_window_bytes: 16 << 20,
            stream_receive_window_bytes: 8 << 20,
            send_window_bytes: 8 << 20,
            idle_timeout: Duration::from_secs(30),
            keep_alive: Duration::from_secs(8),
        }
    }
}

impl TransportProfile {
    /// For a device with little memory that stays connected for long.
    pub fn device() -> TransportProfile {
        TransportProfile {
            receive_window_bytes: 64 << 10,
            stream_receive_window_bytes: 32 << 10,
            send_window_bytes: 256 << 10,
            idle_timeout: Duration::from_secs(120),
            keep_alive: Duration::from_secs(40),
        }
    }
}

/// How a record without a partition of its own gets one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Partitioner {
    /// Kafka's: by the key's murmur2; without a key one partition a batch, then the next.
    #[default]
    KeyHash,
    /// One partition a batch, then the next, whatever the key.
    RoundRobin,
}

/// A producer: one topic, one lane.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ProducerConfig {
    /// The topic.
    pub topic: String,
    /// Its sequence lives under this number and the producer name; two producers of a client need two.
    pub lane: u32,
    /// How long a record may wait for company.
    pub linger: Duration,
    /// A batch this large does not wait.
    pub batch_bytes: usize,
    /// Unacknowledged batches; the server's limit holds as well.
    pub in_flight: u16,
    /// What records and batches may hold in memory before `send` waits.
    pub buffer_bytes: usize,
    /// How a record gets its partition.
    pub partitioner: Partitioner,
    /// How batches are compressed.
    pub compression: Codec,
    /// How long a record may take to be acknowledged before it is given up.
    pub delivery_timeout: Duration,
}

impl ProducerConfig {
    /// For a topic; lane 0, 5 ms, 64 KiB, 32 MiB, two minutes.
    pub fn new(topic: impl Into<String>) -> ProducerConfig {
        ProducerConfig {
            topic: topic.into(),
            lane: 0,
            linger: Duration::from_millis(5),
            batch_bytes: 64 << 10,
            in_flight: u16::MAX,
            buffer_bytes: 32 << 20,
            partitioner: Partitioner::default(),
            compression: Codec::None,
            delivery_timeout: Duration::from_secs(120),
        }
    }
}

/// Where a consumer starts a partition its group has no position for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// The oldest record there is.
    Earliest,
    /// Only what comes from now on.
    Latest,
    /// This offset.
    Offset(i64),
    /// The first record at or after this time, milliseconds since 1970.
    Timestamp(i64),
}

/// A consumer: one topic, some or all partitions.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ConsumerConfig {
    /// The topic.
    pub topic: String,
    /// Its partitions; `None`: all there are at the start.
    pub partitions: Option<Vec<u32>>,
    /// Where to start.
    pub start: Start,
    /// Go on at the tail, instead of ending there.
    pub live: bool,
    /// Whose committed positions come before `start`, and where `commit` puts them.
    pub group: Option<String>,
    /// What the server may send ahead of the application.
    pub credit_bytes: u32,
}

impl ConsumerConfig {
    /// All of a topic from the earliest record on, live, with 4 MiB of credit.
    pub fn new(topic: impl Into<String>) -> ConsumerConfig {
        ConsumerConfig {
            topic: topic.into(),
            partitions: None,
            start: Start::Earliest,
            live: true,
            group: None,
            credit_bytes: 4 << 20,
        }
    }
}
