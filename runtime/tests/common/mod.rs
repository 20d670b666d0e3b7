//! A node in this process, and a client that speaks the protocol frame by frame, so that tests can also say what a good
//! client never would.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;
use weir::cert::{Ca, PemPair, make_ca, write_pair};
use weir::config::{AclRule, Config, Right};
use weir::serve::{Node, start};
use weir_batch::{BatchBuilder, Codec, RecordBatch, split_batches};
use weir_protocol::admin::{AnswerParts, Refusal};
use weir_protocol::*;

/// Longer than anything here may take on a busy machine; a test that waits this long has failed.
pub const FOREVER: Duration = Duration::from_secs(60);
const FRAME_MAX: u32 = 1 << 20;

/// A data directory with certificates and a node on it.
pub struct Site {
    pub dir: TempDir,
    pub ca: Ca,
    pub config: Config,
    node: Option<Node>,
}

impl Site {
    /// A running node with these changes to its configuration.
    pub async fn start_with(change: impl FnOnce(&mut Config)) -> Site {
        let dir = tempfile::tempdir().unwrap();
        let ca = make_ca("test CA", 30).unwrap();
        let certs = dir.path().join("certs");
        let server = ca.make_server(&["localhost".to_owned()], &["127.0.0.1".parse().unwrap()], 30).unwrap();
        write_pair(&certs, "ca", ca.pem(), false).unwrap();
        write_pair(&certs, "server", &server, false).unwrap();
        let mut config = Config::defaults();
        config.node.data_dir = dir.path().join("data");
        config.quic.listen = "127.0.0.1:0".to_owned();
        config.quic.cert = certs.join("server.pem");
        config.quic.key = certs.join("server.key");
        config.quic.client_ca = certs.join("ca.pem");
        config.http.listen = "127.0.0.1:0".to_owned();
        config.log.segment_bytes = 16 << 20;
        config.log.frame_bytes_max = 4 << 20;
        config.log.spare_segments = 1;
        let rule = |principal: &str, topic: &str, allow: &[Right]| AclRule {
            principal: principal.to_owned(),
            topic: topic.to_owned(),
            allow: allow.to_vec(),
        };
        config.acl = vec![
            rule("admin", "*", &[Right::Admin, Right::Produce, Right::Consume]),
            rule("device*", "t*", &[Right::Produce, Right::Consume]),
        ];
        change(&mut config);
        let mut site = Site { dir, ca, config, node: None };
        site.start().await;
        site
    }

    pub async fn new() -> Site {
        Site::start_with(|_| {}).await
    }

    pub async fn start(&mut self) {
        self.node = Some(start(self.config.clone()).await.unwrap());
    }

    pub async fn stop(&mut self) {
        self.node.take().unwrap().shutdown().await;
    }

    pub async fn restart(&mut self) {
        self.stop().await;
        self.start().await;
    }

    pub fn node(&self) -> &Node {
        self.node.as_ref().unwrap()
    }

    pub fn addr(&self) -> SocketAddr {
        self.node().addr()
    }

    pub fn data(&self) -> &Path {
        &self.config.node.data_dir
    }

    /// Speaks as a principal, without HELLO yet.
    pub async fn connect(&self, principal: &str) -> Raw {
        let pair = self.ca.make_client(principal, 30).unwrap();
        let config = client_config(&self.ca, Some(&pair));
        Raw::of(dial(self.addr(), config).await.unwrap())
    }

    /// Connected, greeted.
    pub async fn hello(&self, principal: &str, producer_name: &str) -> (Raw, Welcome) {
        let mut raw = self.connect(principal).await;
        let welcome = raw.hello(producer_name).await;
        (raw, welcome)
    }

    /// A greeted operator.
    pub async fn admin(&self) -> Raw {
        self.hello("admin", "").await.0
    }
}

/// TLS settings of a client; a certificate of another CA or none at all is allowed here.
pub fn client_config(ca: &Ca, pair: Option<&PemPair>) -> quinn::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.pem().cert.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let mut tls = match pair {
        Some(pair) => builder
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_slice(pair.cert.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap(),
            )
            .unwrap(),
        None => builder.with_no_client_auth(),
    };
    tls.alpn_protocols = vec![ALPN.to_vec()];
    tls.enable_early_data = true;
    quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()))
}

pub async fn dial(addr: SocketAddr, config: quinn::ClientConfig) -> Result<Connection, quinn::ConnectionError> {
    let mut endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    endpoint.set_default_client_config(config);
    soon(endpoint.connect(addr, "localhost").unwrap()).await
}

/// Fails the test instead of waiting for ever.
pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(FOREVER, future).await.expect("this takes too long")
}

/// Frames of one stream.
pub struct Stream {
    pub send: SendStream,
    pub recv: RecvStream,
    decoder: FrameDecoder,
}

impl Stream {
    pub fn of((send, recv): (SendStream, RecvStream)) -> Stream {
        Stream { send, recv, decoder: FrameDecoder::new(FRAME_MAX) }
    }

    pub async fn say<M: Message>(&mut self, message: &M) {
        self.send.write_chunk(message.to_frame(FRAME_MAX).unwrap()).await.unwrap();
    }

    /// The next frame; none at the stream's or connection's end.
    pub async fn frame(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return Some(frame);
            }
            let chunk = soon(self.recv.read_chunk(64 << 10, true)).await.ok()??;
            self.decoder.push(chunk.bytes);
        }
    }

    pub async fn expect<M: Message>(&mut self) -> M {
        let frame = self.frame().await.expect("a frame");
        if frame.kind == Kind::Error && M::KIND != Kind::Error {
            panic!("{:?}", ErrorNotice::decode(frame.body));
        }
        frame.expect("the frame the test waits for").unwrap()
    }
}

/// A client that says exactly what it is told.
pub struct Raw {
    pub connection: Connection,
    pub control: Option<Stream>,
    next_correlation: u32,
}

impl Raw {
    pub fn of(connection: Connection) -> Raw {
        Raw { connection, control: None, next_correlation: 1 }
    }

    pub async fn stream(&self) -> Stream {
        Stream::of(soon(self.connection.open_bi()).await.unwrap())
    }

    pub async fn hello(&mut self, producer_name: &str) -> Welcome {
        let mut control = self.stream().await;
        control.say(&Hello { version: VERSION, client: "test".into(), producer_name: producer_name.into() }).await;
        let welcome = control.expect().await;
        self.control = Some(control);
        welcome
    }

    pub fn control(&mut self) -> &mut Stream {
        self.control.as_mut().expect("greeted")
    }

    pub async fn lane(&self, lane: u32, topic: &str) -> (Stream, LaneReady) {
        let mut stream = self.stream().await;
        stream.say(&LaneOpen { lane, topic: topic.into() }).await;
        let ready = stream.expect().await;
        (stream, ready)
    }

    /// Acks and nacks until this many batches are answered.
    pub async fn answers(&mut self, batches: usize) -> (Vec<AckItem>, Vec<NackItem>) {
        let (mut acks, mut nacks) = (Vec::new(), Vec::new());
        while acks.len() + nacks.len() < batches {
            let frame = self.control().frame().await.expect("the connection stands");
            match frame.kind {
                Kind::Ack => acks.extend(Acks::decode(frame.body).unwrap().items),
                Kind::Nack => nacks.extend(Nacks::decode(frame.body).unwrap().items),
                Kind::GoAway => {}
                other => panic!("unexpected {other}"),
            }
        }
        (acks, nacks)
    }

    pub async fn try_request(&mut self, request: Request) -> Result<Answer, Refusal> {
        let correlation = self.next_correlation;
        self.next_correlation += 1;
        let operation = request.operation();
        self.control().say(&RequestFrame { correlation, request }).await;
        let mut parts = AnswerParts::default();
        loop {
            let frame = self.control().frame().await.expect("the connection stands");
            let response = ResponseFrame::decode(frame).unwrap();
            assert_eq!(response.correlation, correlation);
            if let Some(whole) = parts.on_part(response.more, response.result?).unwrap() {
                return Ok(Answer::decode(operation, whole).unwrap());
            }
        }
    }

    pub async fn request(&mut self, request: Request) -> Answer {
        self.try_request(request).await.unwrap()
    }

    pub async fn create_topic(&mut self, topic: &str, partitions: u32) {
        let request = Request::CreateTopic { topic: topic.into(), partitions, settings: Vec::new() };
        assert_eq!(self.request(request).await, Answer::TopicCreated { partitions });
    }

    /// Everything of a partition from an offset on: offset and value of each record.
    pub async fn read(&self, topic: &str, partition: u32, start: Start) -> Result<Vec<(i64, String)>, ErrorNotice> {
        let mut stream = self.stream().await;
        let partitions = vec![(partition, start)];
        stream.say(&Subscribe { topic: topic.into(), live: false, credit_bytes: 1 << 20, partitions }).await;
        let mut records = Vec::new();
        loop {
            let frame = stream.frame().await.expect("END or ERROR");
            match frame.kind {
                Kind::Data => {
                    let data = Data::decode(frame.body).unwrap();
                    let cost = data.body_bytes();
                    records.extend(records_of(&data));
                    // The end may be on its way already: then nobody needs more credit.
                    let _ = stream.send.write_chunk(Credit { bytes: cost }.to_frame(FRAME_MAX).unwrap()).await;
                }
                Kind::End => return Ok(records),
                _ => return Err(ErrorNotice::decode(frame.body).unwrap()),
            }
        }
    }

    /// Values only, from the earliest on.
    pub async fn values(&self, topic: &str, partition: u32) -> Vec<String> {
        let records = self.read(topic, partition, Start::Earliest).await.unwrap();
        records.into_iter().map(|(_, value)| value).collect()
    }

    /// How the node ended the connection.
    pub async fn closed_with(&self) -> (Code, String) {
        match soon(self.connection.closed()).await {
            quinn::ConnectionError::ApplicationClosed(close) => {
                let code = Code::from_number(u64::from(close.error_code) as u16);
                (code, String::from_utf8_lossy(&close.reason).into_owned())
            }
            other => panic!("{other}"),
        }
    }
}

pub fn records_of(data: &Data) -> Vec<(i64, String)> {
    let mut records = Vec::new();
    for batch in split_batches(&data.batches) {
        let batch = RecordBatch::verify(batch.unwrap().bytes()).unwrap();
        let mut scratch = Vec::new();
        for record in batch.records(&mut scratch).unwrap() {
            let record = record.unwrap();
            if record.offset >= data.start_offset {
                records.push((record.offset, String::from_utf8(record.value.unwrap().to_vec()).unwrap()));
            }
        }
    }
    records
}

/// A record batch of these values, keys `k`.
pub fn batch(values: &[&str]) -> Bytes {
    let mut builder = BatchBuilder::new(Codec::None);
    for (number, value) in values.iter().enumerate() {
        builder.push(1_700_000_000_000 + number as i64, Some(b"k"), Some(value.as_bytes()), &[]);
    }
    builder.finish().unwrap().into()
}

/// A BATCH frame's message.
pub fn message(base_sequence: u64, values: &[&str]) -> Batch {
    Batch { partition: 0, base_sequence, batch: batch(values) }
}

/// A frame with any kind, flags and body.
pub fn raw_frame(kind: u8, flags: u8, body: &[u8]) -> Bytes {
    let mut frame = BytesMut::new();
    frame.extend_from_slice(&(body.len() as u32).to_le_bytes());
    frame.extend_from_slice(&[kind, flags, 0, 0]);
    frame.extend_from_slice(body);
    frame.freeze()
}
