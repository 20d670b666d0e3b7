//! Closed loop: each producer keeps its lane full and waits for acknowledgements. Measures throughput; its latencies are
//! those of a full pipe, which is what the latency profile is not.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use hdrhistogram::Histogram;
use tokio::task::JoinSet;
use weir_client::{Client, ClientConfig, Delivery, Producer, ProducerConfig, Sockets};

use crate::report::histogram;
use crate::{BenchError, Host, Latency, Load, Payload, Report, Usage};

/// What one producer did.
pub(crate) struct Done {
    pub(crate) records: u64,
    pub(crate) batch_bytes: u64,
    pub(crate) errors: u64,
    pub(crate) latencies: Histogram<u64>,
}

impl Default for Done {
    fn default() -> Done {
        Done { records: 0, batch_bytes: 0, errors: 0, latencies: histogram() }
    }
}

impl Done {
    pub(crate) fn add(&mut self, other: &Done) {
        self.records += other.records;
        self.batch_bytes += other.batch_bytes;
        self.errors += other.errors;
        self.latencies.add(&other.latencies).expect("all histograms have the same bounds");
    }
}

/// Publishes until the records or the seconds of the load are used up, and until the last acknowledgement.
pub async fn publish(config: &ClientConfig, load: &Load, host: Host) -> Result<Report, BenchError> {
    let producers = producers(config, load).await?;
    let quota = Arc::new(AtomicU64::new(load.records.unwrap_or(u64::MAX)));
    let cpu = Usage::own().cpu_seconds;
    let begin = Instant::now();
    let mut tasks = JoinSet::new();
    for (index, producer) in producers.into_iter().enumerate() {
        let payload = Payload::build(load, index as u64)?;
        tasks.spawn(fill(producer, payload, load.clone(), index as u32, quota.clone(), begin));
    }
    let mut total = Done::default();
    while let Some(done) = tasks.join_next().await {
        total.add(&done.map_err(|_| BenchError::Nothing("a producer of the load generator ended early"))??);
    }
    let seconds = begin.elapsed().as_secs_f64();
    let mut report = Report::new("publish", load, host);
    report.records = total.records;
    report.value_bytes = total.records * load.record_bytes as u64;
    report.batch_bytes = total.batch_bytes;
    report.errors = total.errors;
    report.latency_ms = Latency::of(&total.latencies);
    report.client_cpu_seconds = Usage::own().cpu_seconds - cpu;
    report.rates(seconds);
    Ok(report)
}

/// Connections with their producers, all of them ready before a clock starts.
pub(crate) async fn producers(config: &ClientConfig, load: &Load) -> Result<Vec<Producer>, BenchError> {
    let mut producers = Vec::new();
    let run = fastrand::u64(..);
    let sockets = Sockets::open()?;
    for connection in 0..load.connections {
        let mut config = config.clone();
        config.producer_name = Some(format!("bench-{run:016x}-{connection}"));
        let client = Client::over(&sockets, config)?;
        for lane in 0..load.producers {
            let mut config = ProducerConfig::new(&load.topic);
            config.lane = lane;
            config.in_flight = load.in_flight;
            producers.push(client.producer(config).await?);
        }
    }
    Ok(producers)
}

async fn fill(
    producer: Producer,
    mut payload: Payload,
    load: Load,
    index: u32,
    quota: Arc<AtomicU64>,
    begin: Instant,
) -> Result<Done, BenchError> {
    let mut done = Done::default();
    let mut waiting: VecDeque<(Instant, u64, Delivery)> = VecDeque::new();
    let mut partition = index % load.partitions;
    loop {
        let (batch, records) = payload.next_batch();
        let records = u64::from(records);
        let over = load.records.is_none() && begin.elapsed() >= load.seconds;
        if over || !take(&quota, records) {
            break;
        }
        let bytes = batch.len() as u64;
        let handed_over = Instant::now();
        let delivery = producer.send_batch(partition, batch, records as u32).await?;
        waiting.push_back((handed_over, bytes, delivery));
        partition = (partition + 1) % load.partitions;
        if waiting.len() >= load.in_flight as usize
            && let Some(oldest) = waiting.pop_front()
        {
            settle(&mut done, oldest, records).await;
        }
    }
    while let Some(oldest) = waiting.pop_front() {
        settle(&mut done, oldest, u64::from(load.batch_records)).await;
    }
    Ok(done)
}

/// Takes records off what is left to send; a last partial batch is not sent.
fn take(quota: &AtomicU64, records: u64) -> bool {
    quota.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(records)).is_ok()
}

async fn settle(done: &mut Done, (handed_over, bytes, delivery): (Instant, u64, Delivery), records: u64) {
    match delivery.await {
        Ok(_) => {
            done.latencies.saturating_record(handed_over.elapsed().as_micros() as u64);
            done.records += records;
            done.batch_bytes += bytes;
        }
        Err(_) => done.errors += 1,
    }
}
