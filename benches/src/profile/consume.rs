//! Consumers: of everything there is, from the beginning to the end, or of what comes while producers publish.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use weir_client::{Client, ClientConfig, Consumer, ConsumerConfig, Start};

use super::lanes::ended_early;
use super::publish::publish;
use crate::{BenchError, Host, Load, Report, Usage};

/// How long consumers at the tail may take for the rest once the last record is acknowledged.
const CATCH_UP_MAX: Duration = Duration::from_secs(10);
/// How often it is looked whether they have it.
const LOOK: Duration = Duration::from_millis(2);

/// Fills the load's topic; answers how many records it has then.
pub async fn fill_topic(config: &ClientConfig, load: &Load, host: Host) -> Result<u64, BenchError> {
    let filling = Load { connections: 1, producers: 1, rate: None, ..load.clone() };
    match publish(config, &filling, host).await?.records {
        0 => Err(BenchError::Nothing("no record could be published to be read")),
        records => Ok(records),
    }
}

/// Reads a topic of that many records from its beginning to its end, as stored batches; every consumer reads all of them.
pub async fn read_topic(config: &ClientConfig, load: &Load, filled: u64, host: Host) -> Result<Report, BenchError> {
    let clients = clients(config, load.connections).await?;
    let cpu = Usage::own().cpu_seconds;
    let begin = Instant::now();
    let mut tasks = JoinSet::new();
    for client in &clients {
        for _ in 0..load.producers {
            tasks.spawn(read_all(client.clone(), load.topic.clone()));
        }
    }
    let mut report = Report::new("consume", load, host);
    while let Some(read) = tasks.join_next().await {
        let (records, bytes) = read.map_err(ended_early)??;
        report.records += records;
        report.batch_bytes += bytes;
        report.errors += u64::from(records < filled);
    }
    report.value_bytes = report.records * load.record_bytes as u64;
    report.rates(begin.elapsed().as_secs_f64());
    report.client_cost(Usage::own().cpu_seconds - cpu);
    Ok(report)
}

async fn clients(config: &ClientConfig, count: u32) -> Result<Vec<Client>, BenchError> {
    let mut clients = Vec::new();
    for _ in 0..count {
        clients.push(Client::connect(config.clone()).await?);
    }
    Ok(clients)
}

async fn read_all(client: Client, topic: String) -> Result<(u64, u64), BenchError> {
    let mut config = ConsumerConfig::new(&topic);
    config.start = Start::Earliest;
    config.live = false;
    let mut consumer = client.consumer(config).await?;
    let (mut records, mut bytes) = (0, 0);
    while let Some(batch) = consumer.next_batch().await {
        let (more, more_bytes) = count(&batch?.batches)?;
        records += more;
        bytes += more_bytes;
    }
    Ok((records, bytes))
}

fn count(batches: &[u8]) -> Result<(u64, u64), BenchError> {
    let mut records = 0;
    for stored in weir_batch::split_batches(batches) {
        records += u64::from(stored?.record_count());
    }
    Ok((records, batches.len() as u64))
}

/// What the consumers at the tail have.
#[derive(Debug, Default)]
struct Seen {
    records: AtomicU64,
    bytes: AtomicU64,
}

/// Consumers at the tail while the load's producers publish, and so many slow ones beside them: each of those takes one batch and
/// then no more, as a consumer that hangs. The report counts what the others received, over all of them.
pub async fn tail(config: &ClientConfig, load: &Load, consumers: (u32, u32), host: Host) -> Result<Report, BenchError> {
    let (consumers, slow) = consumers;
    let _hanging = hang(config, load, slow).await?;
    let seen = Arc::new(Seen::default());
    let mut tasks = JoinSet::new();
    for client in clients(config, consumers).await? {
        let mut wanted = ConsumerConfig::new(&load.topic);
        wanted.start = Start::Latest;
        let consumer = client.consumer(wanted).await?;
        tasks.spawn(follow(consumer, seen.clone()));
    }
    let cpu = Usage::own().cpu_seconds;
    let begin = Instant::now();
    let published = publish(config, load, host.clone()).await?;
    let acknowledged = Instant::now();
    let due = published.records * u64::from(consumers);
    while seen.records.load(Ordering::Relaxed) < due && acknowledged.elapsed() < CATCH_UP_MAX && !tasks.is_empty() {
        tokio::time::sleep(LOOK).await;
    }
    let (caught_up, seconds) = (acknowledged.elapsed(), begin.elapsed().as_secs_f64());
    tasks.abort_all();
    let mut report = Report::new("consume", load, host);
    report.records = seen.records.load(Ordering::Relaxed);
    report.batch_bytes = seen.bytes.load(Ordering::Relaxed);
    report.value_bytes = report.records * load.record_bytes as u64;
    report.errors = published.errors + u64::from(report.records != due);
    report.rates(seconds);
    report.client_cost(Usage::own().cpu_seconds - cpu);
    report.figures.insert("publish_records_per_second", published.records_per_second);
    report.figures.insert("tail_catch_up_ms", caught_up.as_secs_f64() * 1e3);
    Ok(report)
}

async fn follow(mut consumer: Consumer, seen: Arc<Seen>) -> Result<(), BenchError> {
    while let Some(batch) = consumer.next_batch().await {
        let (records, bytes) = count(&batch?.batches)?;
        seen.bytes.fetch_add(bytes, Ordering::Relaxed);
        seen.records.fetch_add(records, Ordering::Relaxed);
    }
    Ok(())
}

/// Consumers that take one batch and then hold still until they are dropped.
async fn hang(config: &ClientConfig, load: &Load, count: u32) -> Result<JoinSet<Result<(), BenchError>>, BenchError> {
    let mut tasks = JoinSet::new();
    for client in clients(config, count).await? {
        let mut wanted = ConsumerConfig::new(&load.topic);
        wanted.start = Start::Latest;
        let mut consumer = client.consumer(wanted).await?;
        tasks.spawn(async move {
            if let Some(first) = consumer.next_batch().await {
                first?;
            }
            std::future::pending().await
        });
    }
    Ok(tasks)
}
