//! `make crash`: SIGKILL under load, round after round, against the real binary.
//!
//! Producers of two kinds write to one topic: *reconnecting* ones keep their client over every death of the node; *restarted*
//! ones die with it and come back under the same producer name, going on at the sequence that the node tells them. After
//! every few rounds everything is read back and held against what was acknowledged. The last line is for scripts, the exit
//! code follows it.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clap::Parser;
use tokio::task::JoinHandle;
use weir_client::{Client, ClientConfig, ClientError, ConsumerConfig, Delivery, Producer, ProducerConfig, Record, Start};
use weir_tests::ledger::{Ledger, Promise, Verdict};
use weir_tests::node::{Site, weir_beside_us};

const TOPIC: &str = "t.crash";
const PARTITIONS: u32 = 4;
/// Records a producer has under way at most: enough that every kill hits many.
const UNDER_WAY_MAX: usize = 2000;
/// Rounds between two checks; each reads the whole topic.
const CHECK_EVERY: u32 = 5;
/// A node is back long before; on a busy machine a round takes seconds.
const DEATH_MAX: Duration = Duration::from_secs(120);
/// Segments are small, so that kills also hit the roll from one to the next.
const CONFIG: &str = "[log]\nsegment_bytes = \"8MiB\"\nframe_bytes_max = \"2MiB\"\n";

#[derive(Debug, Parser)]
#[command(about = "Kills a node under load, again and again, and checks that every acknowledged record is there once, in order")]
struct Args {
    /// Times the node is killed
    #[arg(long, default_value_t = 50)]
    rounds: u32,
    /// The program under test; by default the one of the same build
    #[arg(long)]
    weir: Option<PathBuf>,
    /// Producers of each kind
    #[arg(long, default_value_t = 2)]
    producers: u32,
    /// Of the random pauses and sizes
    #[arg(long)]
    seed: Option<u64>,
    /// Directory of the node (kept); by default a temporary one
    #[arg(long)]
    dir: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    match run(args).await {
        Ok(verdict) => {
            println!("{verdict}");
            if verdict.holds() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(message) => {
            eprintln!("weir-crash: {message}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> Result<Verdict, String> {
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..));
    let mut random = fastrand::Rng::with_seed(seed);
    let temporary = tempfile::tempdir().map_err(|error| error.to_string())?;
    let dir = args.dir.unwrap_or_else(|| temporary.path().to_path_buf());
    let weir = args.weir.unwrap_or_else(weir_beside_us);
    let weir = weir.canonicalize().map_err(|error| format!("{}: {error}", weir.display()))?;
    let site = Site::make(&weir, &dir, CONFIG).map_err(|error| error.to_string())?;
    println!("seed={seed} rounds={} producers={}", args.rounds, 2 * args.producers);

    let mut node = site.start()?;
    let admin = connect(&site, "crash-admin").await?;
    admin.admin().create_topic(TOPIC, PARTITIONS, Vec::new()).await.map_err(|error| error.to_string())?;

    let mut reconnecting: Vec<Worker> = Vec::new();
    let mut restarted: Vec<Worker> = Vec::new();
    for number in 0..args.producers {
        reconnecting.push(Worker::start(&site, format!("reconnecting-{number}"), number % PARTITIONS, Arc::default()));
        restarted.push(Worker::start(&site, format!("restarted-{number}"), (number + 1) % PARTITIONS, Arc::default()));
    }
    let mut verdict = Verdict::default();
    for round in 1..=args.rounds {
        tokio::time::sleep(Duration::from_millis(random.u64(100..800))).await;
        node.kill();
        for worker in &mut restarted {
            worker.kill().await?;
        }
        node = site.start()?;
        for worker in &mut restarted {
            *worker = Worker::start(&site, worker.name.clone(), worker.partition, worker.promise.clone());
        }
        if round % CHECK_EVERY != 0 && round != args.rounds {
            continue;
        }
        verdict = check(&site, &mut [&mut reconnecting, &mut restarted]).await?;
        println!("round {round}: {verdict}");
        if !verdict.holds() {
            println!("the node's directory is {}", dir.display());
            let _ = temporary.keep();
            return Ok(verdict);
        }
    }
    node.stop().map_err(|error| error.to_string())?;
    Ok(verdict)
}

/// Pauses all producers, reads everything, lets them go on.
async fn check(site: &Site, workers: &mut [&mut Vec<Worker>]) -> Result<Verdict, String> {
    let mut promises = HashMap::new();
    workers.iter().flat_map(|kind| kind.iter()).for_each(|worker| worker.stop.store(true, Ordering::Relaxed));
    for worker in workers.iter_mut().flat_map(|kind| kind.iter_mut()) {
        worker.finish().await?;
        promises.insert(worker.name.clone(), worker.promise.lock().expect("no holder panics").clone());
    }
    let client = connect(site, "crash-check").await?;
    let mut config = ConsumerConfig::new(TOPIC);
    (config.start, config.live) = (Start::Earliest, false);
    let mut consumer = client.consumer(config).await.map_err(|error| error.to_string())?;
    let mut ledger = Ledger::default();
    while let Some(record) = consumer.next().await {
        let record = record.map_err(|error| error.to_string())?;
        ledger.read(record.partition, record.value.as_deref().unwrap_or_default());
    }
    client.close().await;
    for worker in workers.iter_mut().flat_map(|kind| kind.iter_mut()) {
        *worker = Worker::start(site, worker.name.clone(), worker.partition, worker.promise.clone());
    }
    Ok(ledger.check(&promises))
}

/// A producer as a task. It writes to one partition, so that record numbers are lane sequences: both count its records from 0.
struct Worker {
    name: String,
    partition: u32,
    promise: Arc<Mutex<Promise>>,
    stop: Arc<AtomicBool>,
    task: JoinHandle<Result<(), String>>,
}

impl Worker {
    fn start(site: &Site, name: String, partition: u32, promise: Arc<Mutex<Promise>>) -> Worker {
        let stop = Arc::new(AtomicBool::new(false));
        let config = client_config(site, &name);
        let task = tokio::spawn(produce(config, name.clone(), partition, promise.clone(), stop.clone()));
        Worker { name, partition, promise, stop, task }
    }

    /// Waits for its end, after `stop`, with everything it sent acknowledged.
    async fn finish(&mut self) -> Result<(), String> {
        (&mut self.task).await.map_err(|error| error.to_string())?.map_err(|error| format!("{}: {error}", self.name))
    }

    /// Ends it where it stands, as if its process had died.
    async fn kill(&mut self) -> Result<(), String> {
        self.task.abort();
        match (&mut self.task).await {
            Ok(Err(error)) => Err(format!("{}: {error}", self.name)),
            _ => Ok(()),
        }
    }
}

async fn produce(
    config: ClientConfig,
    name: String,
    partition: u32,
    promise: Arc<Mutex<Promise>>,
    stop: Arc<AtomicBool>,
) -> Result<(), String> {
    let text = |error: ClientError| error.to_string();
    let client = Client::connect(config).await.map_err(text)?;
    let mut topic = ProducerConfig::new(TOPIC);
    topic.delivery_timeout = DEATH_MAX;
    let producer = client.producer(topic).await.map_err(text)?;
    resume(&producer, &promise)?;
    let mut random = fastrand::Rng::new();
    let mut under_way: std::collections::VecDeque<(u64, Delivery)> = std::collections::VecDeque::new();
    let mut number = producer.next_sequence();
    while !stop.load(Ordering::Relaxed) {
        {
            let mut promise = promise.lock().expect("no holder panics");
            if number == promise.sent {
                promise.send();
            }
        }
        let value = format!("{name}:{number} {}", "x".repeat(random.usize(0..400)));
        let record = Record { partition: Some(partition), ..Record::value(value.as_bytes()) };
        under_way.push_back((number, producer.send(record).await.map_err(text)?));
        number += 1;
        while let Some((number, delivery)) = under_way.pop_front() {
            if under_way.len() < UNDER_WAY_MAX && delivery.try_ack().is_none() {
                under_way.push_front((number, delivery));
                break;
            }
            acknowledge(&promise, number, delivery).await.map_err(text)?;
        }
    }
    producer.flush().await.map_err(text)?;
    for (number, delivery) in under_way {
        acknowledge(&promise, number, delivery).await.map_err(text)?;
    }
    client.close().await;
    Ok(())
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

async fn acknowledge(promise: &Mutex<Promise>, number: u64, delivery: Delivery) -> Result<(), ClientError> {
    delivery.await?;
    promise.lock().expect("no holder panics").acknowledge(number);
    Ok(())
}

fn client_config(site: &Site, name: &str) -> ClientConfig {
    let certs = site.certs();
    let mut config =
        ClientConfig::from_files(site.addr.to_string(), certs.join("ca.pem"), certs.join("admin.pem"), certs.join("admin.key"))
            .expect("weir cert site made these files");
    config.retry_timeout = DEATH_MAX;
    config.producer_name(name)
}

async fn connect(site: &Site, name: &str) -> Result<Client, String> {
    Client::connect(client_config(site, name)).await.map_err(|error| error.to_string())
}
