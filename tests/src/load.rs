//! Producers that keep a node under load while it dies, and remember what it promised them.
//!
//! Two kinds write to one topic: *reconnecting* ones keep their client over every death of the node; *restarted* ones die with
//! it and come back under the same producer name, going on at the sequence that the node tells them.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use weir_client::{Client, ClientConfig, ClientError, ConsumerConfig, Delivery, Producer, ProducerConfig, Record, Start};

use crate::ledger::{Ledger, Promise};
use crate::node::Site;

/// The topic that is written to.
pub const TOPIC: &str = "t.crash";
/// Its partitions.
pub const PARTITIONS: u32 = 4;
/// A node is back long before; on a busy machine a round takes seconds.
const DEATH_MAX: Duration = Duration::from_secs(120);
const KEEP_ALIVE: Duration = Duration::from_millis(500);
/// Records are filled up from it: it does not compress to nothing.
static FILLER: LazyLock<String> = LazyLock::new(|| {
    let mut random = fastrand::Rng::with_seed(0);
    (0..2 * VALUE_BYTES_MAX).map(|_| random.alphanumeric()).collect()
});
const VALUE_BYTES_MAX: usize = 4096;

/// Who writes how much.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Producers of each kind.
    pub producers: u32,
    /// Records a producer has under way at most: enough that every death of the node hits many.
    pub under_way_max: usize,
    /// Size of a record at most, up to 4096; sizes are random.
    pub value_bytes_max: usize,
}

impl Default for Load {
    fn default() -> Load {
        Load { producers: 2, under_way_max: 2000, value_bytes_max: 400 }
    }
}

/// All producers of a run.
#[derive(Debug)]
pub struct Fleet {
    load: Load,
    reconnecting: Vec<Worker>,
    restarted: Vec<Worker>,
}

impl Fleet {
    /// Starts them; the topic is there.
    pub fn start(site: &Site, load: Load) -> Fleet {
        assert!(load.value_bytes_max <= VALUE_BYTES_MAX, "values are cut out of the filler");
        let worker = |kind: &str, number: u32, shift: u32| {
            Worker::start(site, load, format!("{kind}-{number}"), (number + shift) % PARTITIONS, Arc::default())
        };
        Fleet {
            load,
            reconnecting: (0..load.producers).map(|number| worker("reconnecting", number, 0)).collect(),
            restarted: (0..load.producers).map(|number| worker("restarted", number, 1)).collect(),
        }
    }

    /// Ends the restarted ones where they stand, with the node.
    pub async fn kill_restarted(&mut self) -> Result<(), String> {
        for worker in &mut self.restarted {
            worker.kill().await?;
        }
        Ok(())
    }

    /// Starts the restarted ones again.
    pub fn start_restarted(&mut self, site: &Site) {
        self.restarted.iter_mut().for_each(|worker| worker.start_again(site, self.load));
    }

    /// Ends all of them where they stand.
    pub async fn kill(&mut self) {
        for worker in self.reconnecting.iter_mut().chain(&mut self.restarted) {
            let _ = worker.kill().await;
        }
    }

    /// Lets all of them finish, with everything they sent acknowledged. Then each sends one record more: of a producer who
    /// came back later than the others, retention may have taken everything before, and of him would nothing be read.
    pub async fn pause(&mut self, site: &Site) -> Result<(), String> {
        self.workers().for_each(|worker| worker.stop.store(true, Ordering::Relaxed));
        for worker in self.reconnecting.iter_mut().chain(&mut self.restarted) {
            worker.finish().await?;
        }
        for worker in self.reconnecting.iter_mut().chain(&mut self.restarted) {
            worker.start_again(site, self.load);
            worker.stop.store(true, Ordering::Relaxed);
            worker.finish().await?;
        }
        Ok(())
    }

    /// Starts all of them again after `pause`.
    pub fn go_on(&mut self, site: &Site) {
        self.reconnecting.iter_mut().chain(&mut self.restarted).for_each(|worker| worker.start_again(site, self.load));
    }

    /// What was promised to each, by name.
    pub fn promises(&self) -> HashMap<String, Promise> {
        self.workers().map(|worker| (worker.name.clone(), worker.promise().clone())).collect()
    }

    /// Notes that records below the oldest read back have gone by retention.
    pub fn retire(&self, ledger: &Ledger) {
        for worker in self.workers() {
            if let Some(first) = ledger.first(&worker.name) {
                worker.promise().retire(first);
            }
        }
    }

    /// Records acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.workers().map(|worker| worker.progress.acknowledged.load(Ordering::Relaxed)).sum()
    }

    /// The slowest acknowledgement since the last call.
    pub fn slowest(&self) -> Duration {
        let slowest = self.workers().map(|worker| worker.progress.slowest_ms.swap(0, Ordering::Relaxed)).max();
        Duration::from_millis(slowest.unwrap_or(0))
    }

    fn workers(&self) -> impl Iterator<Item = &Worker> {
        self.reconnecting.iter().chain(&self.restarted)
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.workers().filter_map(|worker| worker.task.as_ref()).for_each(JoinHandle::abort);
    }
}

/// What a producer counts.
#[derive(Debug, Default)]
struct Progress {
    acknowledged: AtomicU64,
    slowest_ms: AtomicU64,
}

/// A producer as a task. It writes to one partition, so that record numbers are lane sequences: both count its records from 0.
#[derive(Debug)]
struct Worker {
    name: String,
    partition: u32,
    promise: Arc<Mutex<Promise>>,
    progress: Arc<Progress>,
    stop: Arc<AtomicBool>,
    /// `None` once its end was seen.
    task: Option<JoinHandle<Result<(), String>>>,
}

impl Worker {
    fn start(site: &Site, load: Load, name: String, partition: u32, promise: Arc<Mutex<Promise>>) -> Worker {
        let (stop, progress) = (Arc::new(AtomicBool::new(false)), Arc::new(Progress::default()));
        let task = Task {
            config: client_config(site).producer_name(&name),
            load,
            name: name.clone(),
            partition,
            promise: promise.clone(),
            progress: progress.clone(),
            stop: stop.clone(),
        };
        Worker { name, partition, promise, progress, stop, task: Some(tokio::spawn(task.produce())) }
    }

    fn start_again(&mut self, site: &Site, load: Load) {
        let progress = self.progress.clone();
        let mut again = Worker::start(site, load, self.name.clone(), self.partition, self.promise.clone());
        std::mem::swap(self, &mut again);
        // The count goes on: it is the same producer.
        self.progress.acknowledged.fetch_add(progress.acknowledged.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    fn promise(&self) -> std::sync::MutexGuard<'_, Promise> {
        self.promise.lock().expect("no holder panics")
    }

    /// Waits for its end, after `stop`, with everything it sent acknowledged.
    async fn finish(&mut self) -> Result<(), String> {
        let Some(task) = self.task.take() else { return Ok(()) };
        task.await.map_err(|error| error.to_string())?.map_err(|error| format!("{}: {error}", self.name))
    }

    /// Ends it where it stands, as if its process had died.
    async fn kill(&mut self) -> Result<(), String> {
        let Some(task) = self.task.take() else { return Ok(()) };
        task.abort();
        match task.await {
            Ok(Err(error)) => Err(format!("{}: {error}", self.name)),
            _ => Ok(()),
        }
    }
}

/// What a producer's task holds.
struct Task {
    config: ClientConfig,
    load: Load,
    name: String,
    partition: u32,
    promise: Arc<Mutex<Promise>>,
    progress: Arc<Progress>,
    stop: Arc<AtomicBool>,
}

/// A record under way.
struct Sent {
    number: u64,
    at: Instant,
    delivery: Delivery,
}

impl Task {
    async fn produce(self) -> Result<(), String> {
        let text = |error: ClientError| error.to_string();
        let client = Client::connect(self.config.clone()).await.map_err(text)?;
        let mut topic = ProducerConfig::new(TOPIC);
        topic.delivery_timeout = DEATH_MAX;
        let producer = client.producer(topic).await.map_err(text)?;
        resume(&producer, &self.promise)?;
        let mut random = fastrand::Rng::new();
        let mut under_way: VecDeque<Sent> = VecDeque::new();
        let mut number = producer.next_sequence();
        // One record at least, also of a producer who is to stop at once.
        loop {
            {
                let mut promise = self.promise.lock().expect("no holder panics");
                if number == promise.sent {
                    promise.send();
                }
            }
            let (from, bytes) = (random.usize(0..VALUE_BYTES_MAX), random.usize(0..self.load.value_bytes_max));
            let value = format!("{}:{number} {}", self.name, &FILLER[from..from + bytes]);
            let record = Record { partition: Some(self.partition), ..Record::value(value.as_bytes()) };
            let at = Instant::now();
            under_way.push_back(Sent { number, at, delivery: producer.send(record).await.map_err(text)? });
            number += 1;
            while let Some(sent) = under_way.pop_front() {
                if under_way.len() < self.load.under_way_max && sent.delivery.try_ack().is_none() {
                    under_way.push_front(sent);
                    break;
                }
                self.acknowledge(sent).await.map_err(text)?;
            }
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
        }
        producer.flush().await.map_err(text)?;
        for sent in under_way {
            self.acknowledge(sent).await.map_err(text)?;
        }
        client.close().await;
        Ok(())
    }

    async fn acknowledge(&self, sent: Sent) -> Result<(), ClientError> {
        sent.delivery.await?;
        self.promise.lock().expect("no holder panics").acknowledge(sent.number);
        self.progress.acknowledged.fetch_add(1, Ordering::Relaxed);
        let took = sent.at.elapsed().as_millis().try_into().unwrap_or(u64::MAX);
        self.progress.slowest_ms.fetch_max(took, Ordering::Relaxed);
        Ok(())
    }
}

/// What the node says is durable is a promise as good as an acknowledgement, and must cover every acknowledgement.
fn resume(producer: &Producer, promise: &Mutex<Promise>) -> Result<(), String> {
    let durable = producer.next_sequence();
    let mut promise = promise.lock().expect("no holder panics");
    let acknowledged = promise.acknowledged.iter().rposition(|acknowledged| *acknowledged).map_or(0, |last| last as u64 + 1);
    if durable < acknowledged || durable > promise.sent {
        return Err(format!("the node goes on at {durable}, but {acknowledged} were acknowledged and {} sent", promise.sent));
    }
    (0..durable).for_each(|number| promise.acknowledge(number));
    Ok(())
}

/// Makes the topic.
pub async fn create_topic(site: &Site) -> Result<(), String> {
    let admin = connect(site).await?;
    admin.admin().create_topic(TOPIC, PARTITIONS, Vec::new()).await.map_err(|error| error.to_string())?;
    admin.close().await;
    Ok(())
}

/// Reads the whole topic.
pub async fn read_back(site: &Site) -> Result<Ledger, String> {
    let client = connect(site).await?;
    let mut config = ConsumerConfig::new(TOPIC);
    (config.start, config.live) = (Start::Earliest, false);
    let mut consumer = client.consumer(config).await.map_err(|error| error.to_string())?;
    let mut ledger = Ledger::default();
    while let Some(record) = consumer.next().await {
        let record = record.map_err(|error| error.to_string())?;
        ledger.read(record.partition, record.value.as_deref().unwrap_or_default());
    }
    client.close().await;
    Ok(ledger)
}

fn client_config(site: &Site) -> ClientConfig {
    let certs = site.certs();
    let mut config =
        ClientConfig::from_files(site.addr.to_string(), certs.join("ca.pem"), certs.join("admin.pem"), certs.join("admin.key"))
            .expect("weir cert site made these files");
    config.retry_timeout = DEATH_MAX;
    // With nothing left to send, a client learns from it that the node was restarted: the default would be most of a round.
    config.transport.keep_alive = KEEP_ALIVE;
    config
}

/// A client who is no producer by name: nothing is stored of it, so that it is served on a full disk, too.
async fn connect(site: &Site) -> Result<Client, String> {
    Client::connect(client_config(site)).await.map_err(|error| error.to_string())
}
