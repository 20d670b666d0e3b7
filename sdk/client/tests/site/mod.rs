//! A server of weir/1 in memory, with certificates of its own and faults on request. It keeps the protocol's rules with the same state machines the
//! real one uses; its log is a vector.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]

mod certs;
mod log;

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use quinn::{Endpoint, RecvStream, SendStream, crypto::rustls::QuicServerConfig};
use tokio::sync::{Mutex as AsyncMutex, watch};
use weir_client::ClientConfig;
use weir_protocol::{
    admin::{Refusal, encode_response},
    lane::{Arrival, LaneReceiver},
    *,
};

pub use certs::Certs;
pub use log::{Answered, Log};

/// Faults a test can ask for, and what it can watch.
#[derive(Default)]
pub struct Faults {
    /// Commit this many batches, then drop the connection before the last one's ack is sent.
    pub cut_after_commits: Option<usize>,
    /// Drop the connection when this many batches have arrived, before the last is committed.
    pub cut_after_arrivals: Option<usize>,
    /// Drop a subscription's connection after this many DATA frames.
    pub cut_after_data: Option<usize>,
    /// Refuse batches: code, and how many of them.
    pub refuse: Option<(Code, usize)>,
    /// Refuse so many connections.
    pub refuse_hello: Option<(Code, usize)>,
    /// Refuse for good the batch with this record as its first.
    pub poison: Option<Vec<u8>>,
    /// Hold answers back while true.
    pub hold: bool,
    /// Send each ack twice.
    pub twice: bool,
    /// The lanes' window.
    pub credit_bytes: Option<u32>,
    /// Batches a lane may have in flight.
    pub in_flight: Option<u16>,
}

pub struct Site {
    pub certs: Certs,
    pub addr: SocketAddr,
    pub shared: Arc<Shared>,
    endpoint: Endpoint,
}

pub struct Shared {
    pub log: Mutex<Log>,
    pub faults: Mutex<Faults>,
    /// Rises with each commit, arrival and fault change.
    pub changed: watch::Sender<u64>,
    pub connections: AtomicUsize,
    pub publishes: AtomicUsize,
    pub largest_batch: AtomicUsize,
    pub max_in_flight: AtomicUsize,
}

pub const CREDIT: u32 = 1 << 20;
pub const IN_FLIGHT: u16 = 5;
const MAX: u32 = FRAME_BYTES_MAX_DEFAULT;

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap()
}

impl Shared {
    pub fn touch(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// Waits until a condition holds of the log and the faults.
    pub async fn until(&self, mut holds: impl FnMut(&Log) -> bool) {
        let mut changed = self.changed.subscribe();
        let wait = async {
            while !holds(&lock(&self.log)) {
                changed.changed().await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(60), wait).await.expect("the condition never came");
    }
}

impl Site {
    pub async fn start() -> Site {
        Site::with_certs(Certs::new(), true).await
    }

    pub async fn with_certs(certs: Certs, early_data: bool) -> Site {
        let endpoint = Endpoint::server(server_config(&certs, early_data), "127.0.0.1:0".parse().unwrap()).unwrap();
        let addr = endpoint.local_addr().unwrap();
        let shared = Arc::new(Shared {
            log: Mutex::default(),
            faults: Mutex::default(),
            changed: watch::channel(0).0,
            connections: AtomicUsize::new(0),
            publishes: AtomicUsize::new(0),
            largest_batch: AtomicUsize::new(0),
            max_in_flight: AtomicUsize::new(0),
        });
        lock(&shared.log).create("events", 2);
        let (accepting, accepted) = (endpoint.clone(), shared.clone());
        tokio::spawn(async move {
            while let Some(incoming) = accepting.accept().await {
                tokio::spawn(connection(accepted.clone(), incoming));
            }
        });
        Site { certs, addr, shared, endpoint }
    }

    pub fn config(&self) -> ClientConfig {
        let (cert, key) = self.certs.client();
        let mut config = ClientConfig::new(self.addr.to_string(), self.certs.ca_pem(), cert, key);
        config.server_name = Some("weir.test".to_owned());
        config.retry_timeout = Duration::from_secs(20);
        config
    }

    pub fn faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut lock(&self.shared.faults));
        self.shared.touch();
    }

    /// As a restarted server: it knows no session any more, so it refuses early data.
    pub fn forget_sessions(&self) {
        self.endpoint.set_server_config(Some(server_config(&self.certs, true)));
    }

    /// Values of a partition, in order.
    pub fn values(&self, topic: &str, partition: u32) -> Vec<Vec<u8>> {
        lock(&self.shared.log).values(topic, partition)
    }
}

fn server_config(certs: &Certs, early_data: bool) -> quinn::ServerConfig {
    let mut tls = certs.server();
    tls.max_early_data_size = if early_data { u32::MAX } else { 0 };
    quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()))
}

/// A connection of the mock: what its streams share.
struct Connection {
    shared: Arc<Shared>,
    connection: quinn::Connection,
    control: AsyncMutex<Option<SendStream>>,
    producer: Mutex<(i64, i16)>,
}

async fn connection(shared: Arc<Shared>, incoming: quinn::Incoming) {
    let Ok(connecting) = incoming.accept() else { return };
    let Ok((connection, _)) = connecting.into_0rtt() else { return };
    shared.connections.fetch_add(1, SeqCst);
    let connection = Arc::new(Connection { shared, connection, control: AsyncMutex::default(), producer: Mutex::new((-1, -1)) });
    while let Ok((send, recv)) = connection.connection.accept_bi().await {
        tokio::spawn(stream(connection.clone(), send, recv));
    }
}

struct Stream {
    recv: RecvStream,
    decoder: FrameDecoder,
}

impl Stream {
    async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return Some(frame);
            }
            let chunk = self.recv.read_chunk(usize::MAX, true).await.ok()??;
            self.decoder.push(chunk.bytes);
        }
    }
}

async fn stream(connection: Arc<Connection>, mut send: SendStream, recv: RecvStream) {
    let mut stream = Stream { recv, decoder: FrameDecoder::new(MAX) };
    let Some(first) = stream.next().await else { return };
    let _ = match first.kind {
        Kind::Hello => control(connection, send, stream, Hello::decode(first.body).unwrap()).await,
        Kind::LaneOpen => lane(connection, send, stream, LaneOpen::decode(first.body).unwrap()).await,
        Kind::Subscribe => subscription(connection, send, stream, Subscribe::decode(first.body).unwrap()).await,
        Kind::Publish => {
            connection.shared.publishes.fetch_add(1, SeqCst);
            let publish = Publish::decode(first.body).unwrap();
            let answered = lock(&connection.shared.log).publish(&publish);
            connection.shared.touch();
            send.write_all(&answered.frame(publish.lane, publish.partition, publish.base_sequence, 0)).await.unwrap();
            send.finish().unwrap();
            let _ = send.stopped().await;
            Some(())
        }
        other => panic!("{other} opens no stream"),
    };
}

async fn control(connection: Arc<Connection>, mut send: SendStream, mut stream: Stream, hello: Hello) -> Option<()> {
    let refused = lock(&connection.shared.faults).refuse_hello.as_mut().filter(|(_, left)| *left > 0).map(|(code, left)| {
        *left -= 1;
        *code
    });
    if let Some(code) = refused {
        send.write_all(&ErrorNotice { code, message: "not now".to_owned() }.to_frame(MAX).unwrap()).await.ok()?;
        send.finish().ok()?;
        send.stopped().await.ok()?;
        return None;
    }
    let (producer_id, producer_epoch) = lock(&connection.shared.log).hello(&hello.producer_name);
    *lock(&connection.producer) = (producer_id, producer_epoch);
    let in_flight = lock(&connection.shared.faults).in_flight.unwrap_or(IN_FLIGHT);
    let welcome = Welcome {
        version: VERSION,
        node_id: [7; 16],
        server: "mock".into(),
        principal: "device".into(),
        producer_id,
        producer_epoch,
        frame_bytes_max: MAX,
        batch_bytes_max: BATCH_BYTES_MAX_DEFAULT,
        lanes_max: 8,
        batches_in_flight_max: in_flight,
        now_ms: 0,
    };
    {
        // Locked before the client may do anything that is answered here.
        let mut control = connection.control.lock().await;
        send.write_all(&welcome.to_frame(MAX).unwrap()).await.ok()?;
        *control = Some(send);
    }
    while let Some(frame) = stream.next().await {
        let RequestFrame { correlation, request } = frame.expect("REQUEST").unwrap();
        let result: Result<Answer, Refusal> = lock(&connection.shared.log).admin(request);
        let mut out = BytesMut::new();
        encode_response(correlation, &result, MAX, &mut out).unwrap();
        connection.answer(out.freeze()).await?;
    }
    Some(())
}

impl Connection {
    async fn answer(&self, frame: Bytes) -> Option<()> {
        self.control.lock().await.as_mut()?.write_all(&frame).await.ok()
    }

    fn cut(&self) {
        self.connection.close(u32::from(Code::Ok.number()).into(), b"cut");
    }

    fn credit(&self) -> u32 {
        lock(&self.shared.faults).credit_bytes.unwrap_or(CREDIT)
    }
}

/// Counts a fault down; true when it strikes.
fn strikes(count: &mut Option<usize>) -> bool {
    let Some(left) = count else { return false };
    *left -= 1;
    let strike = *left == 0;
    if strike {
        *count = None;
    }
    strike
}

async fn lane(connection: Arc<Connection>, mut send: SendStream, mut stream: Stream, open: LaneOpen) -> Option<()> {
    let (id, epoch) = *lock(&connection.producer);
    let partitions = lock(&connection.shared.log).partitions(&open.topic);
    let Some(partitions) = partitions else {
        let notice = ErrorNotice { code: Code::UnknownTopic, message: format!("there is no topic {}", open.topic) };
        send.write_all(&notice.to_frame(MAX).unwrap()).await.ok()?;
        send.finish().ok()?;
        send.stopped().await.ok()?;
        return None;
    };
    let next_sequence = lock(&connection.shared.log).next_sequence(id, open.lane);
    let in_flight = lock(&connection.shared.faults).in_flight.unwrap_or(IN_FLIGHT);
    let credit_bytes = connection.credit();
    let ready = LaneReady { lane: open.lane, partitions, next_sequence, credit_bytes };
    send.write_all(&ready.to_frame(MAX).unwrap()).await.ok()?;
    let receiver = Arc::new(Mutex::new(LaneReceiver::new(open.lane, next_sequence, in_flight, credit_bytes)));
    let (queue, mut queued) = tokio::sync::mpsc::unbounded_channel::<Batch>();
    let (committing, answers) = (connection.clone(), receiver.clone());
    let topic = open.topic.clone();
    tokio::spawn(async move {
        while let Some(batch) = queued.recv().await {
            commit(&committing, &answers, (id, epoch), &topic, batch).await?;
        }
        Some(())
    });
    while let Some(frame) = stream.next().await {
        let batch: Batch = frame.expect("BATCH").unwrap();
        let count = weir_batch::RecordBatch::verify(&batch.batch).unwrap().record_count();
        connection.shared.largest_batch.fetch_max(count as usize, SeqCst);
        let arrival =
            lock(&receiver).on_batch(batch.base_sequence, count, batch.batch.len()).expect("the client keeps the limits");
        connection.shared.max_in_flight.fetch_max(lock(&receiver).batches_in_flight() as usize, SeqCst);
        lock(&connection.shared.log).arrived += 1;
        connection.shared.touch();
        if strikes(&mut lock(&connection.shared.faults).cut_after_arrivals) {
            connection.cut();
            return None;
        }
        match arrival {
            Arrival::Next | Arrival::Duplicate => queue.send(batch).ok()?,
            Arrival::Gap { expected } => {
                let gap = Answered::Refused(Code::SequenceGap, expected);
                connection.answer(gap.frame(open.lane, batch.partition, batch.base_sequence, connection.credit())).await?;
            }
        }
    }
    Some(())
}

async fn commit(
    connection: &Connection,
    receiver: &Mutex<LaneReceiver>,
    (id, epoch): (i64, i16),
    topic: &str,
    batch: Batch,
) -> Option<()> {
    let shared = &connection.shared;
    shared.until(|_| !lock(&shared.faults).hold).await;
    let lane = lock(receiver).lane();
    let (refuse, poison) = {
        let mut faults = lock(&shared.faults);
        let refuse = faults.refuse.as_mut().filter(|(_, left)| *left > 0).map(|(code, left)| {
            *left -= 1;
            *code
        });
        (refuse, faults.poison.clone())
    };
    let (partition, base) = (batch.partition, batch.base_sequence);
    let answered = lock(&shared.log).append(id, epoch, lane, topic, partition, base, &batch.batch, refuse, poison.as_deref());
    match answered {
        Answered::Refused(..) => lock(receiver).on_refused(batch.base_sequence, batch.batch.len()),
        _ => lock(receiver).on_durable(batch.batch.len()),
    }
    let cut = strikes(&mut lock(&shared.faults).cut_after_commits);
    shared.touch();
    if cut {
        connection.cut();
        return None;
    }
    let frame = answered.frame(lane, batch.partition, batch.base_sequence, connection.credit());
    let times = if lock(&shared.faults).twice { 2 } else { 1 };
    for _ in 0..times {
        connection.answer(frame.clone()).await?;
    }
    Some(())
}

async fn subscription(connection: Arc<Connection>, mut send: SendStream, mut stream: Stream, subscribe: Subscribe) -> Option<()> {
    let shared = connection.shared.clone();
    let mut balance = fetch::CreditBalance::new(subscribe.credit_bytes);
    let mut positions: HashMap<u32, i64> = HashMap::new();
    for (partition, start) in &subscribe.partitions {
        let Start::Offset(offset) = start else { panic!("the client asks for numbers") };
        positions.insert(*partition, *offset);
    }
    let mut changed = shared.changed.subscribe();
    loop {
        let mut sent = false;
        for (partition, position) in &mut positions {
            let found = lock(&shared.log).read(&subscribe.topic, *partition, *position);
            let Some((batch, next_offset, high_watermark)) = found.filter(|_| balance.may_send()) else { continue };
            let data = Data { partition: *partition, high_watermark, start_offset: *position, batches: batch };
            send.write_all(&data.to_frame(MAX).unwrap()).await.ok()?;
            balance.on_sent(data.body_bytes());
            *position = next_offset;
            sent = true;
            if strikes(&mut lock(&shared.faults).cut_after_data) {
                connection.cut();
                return None;
            }
        }
        if sent {
            continue;
        }
        let all = positions
            .iter()
            .all(|(partition, position)| lock(&shared.log).read(&subscribe.topic, *partition, *position).is_none());
        if all && !subscribe.live {
            let end = End { positions: positions.into_iter().collect() };
            send.write_all(&end.to_frame(MAX).unwrap()).await.ok()?;
            send.finish().ok()?;
            send.stopped().await.ok()?;
            return Some(());
        }
        tokio::select! {
            changed = changed.changed() => changed.ok()?,
            frame = stream.next() => balance.on_credit(frame?.expect("CREDIT").unwrap()),
        }
    }
}
