//! Open loop: batches are due at fixed times whether or not earlier ones were acknowledged, and a latency counts from the
//! time a batch was **due**. A node that stalls for a second makes every batch of that second late, not just one: this is
//! the correction for coordinated omission, made at the source.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use weir_client::{ClientConfig, Delivery, Producer};

use super::publish::{Done, producers};
use crate::{BenchError, Host, Latency, Load, Payload, Report, Usage};

/// Batches that wait for their acknowledgement, a producer; beyond it the schedule itself is late, which counts.
const WAITING_MAX: usize = 1 << 16;

struct Waiting {
    due: Instant,
    bytes: u64,
    delivery: Delivery,
}

/// Publishes at the load's rate and measures from schedule to acknowledgement.
pub async fn latency(config: &ClientConfig, load: &Load, host: Host) -> Result<Report, BenchError> {
    let rate = load.rate.filter(|rate| *rate > 0).ok_or(BenchError::Nothing("the latency profile needs a rate"))?;
    let lanes = u64::from(load.lanes());
    let producers = producers(config, load).await?;
    let every = Duration::from_secs_f64(f64::from(load.batch_records) * lanes as f64 / rate as f64);
    let per_lane = match load.records {
        Some(records) => (records / u64::from(load.batch_records) / lanes).max(1),
        None => (load.seconds.as_secs_f64() / every.as_secs_f64()).ceil().max(1.0) as u64,
    };
    let cpu = Usage::own().cpu_seconds;
    let begin = Instant::now();
    let mut tasks = JoinSet::new();
    for (index, producer) in producers.into_iter().enumerate() {
        let payload = Payload::build(load, index as u64)?;
        // Lanes start spread over one interval, so that they do not all send in the same instant.
        let first = begin + every.mul_f64(index as f64 / lanes as f64);
        let partition = index as u32 % load.partitions;
        tasks.spawn(keep_pace(producer, payload, partition, first, every, per_lane));
    }
    let mut total = Done::default();
    while let Some(done) = tasks.join_next().await {
        total.add(&done.map_err(|_| BenchError::Nothing("a producer of the load generator ended early"))??);
    }
    let seconds = begin.elapsed().as_secs_f64();
    let mut report = Report::new("latency", load, host);
    report.records = total.records;
    report.value_bytes = total.records * load.record_bytes as u64;
    report.batch_bytes = total.batch_bytes;
    report.errors = total.errors;
    report.latency_ms = Latency::of(&total.latencies);
    report.client_cpu_seconds = Usage::own().cpu_seconds - cpu;
    report.rates(seconds);
    Ok(report)
}

async fn keep_pace(
    producer: Producer,
    mut payload: Payload,
    partition: u32,
    first: Instant,
    every: Duration,
    batches: u64,
) -> Result<Done, BenchError> {
    let (waiting, acknowledgements) = mpsc::channel(WAITING_MAX);
    let records = payload.next_batch().1;
    let books = tokio::spawn(keep_books(acknowledgements, u64::from(records)));
    for number in 0..batches {
        let due = first + every.mul_f64(number as f64);
        tokio::time::sleep_until(due.into()).await;
        let (batch, records) = payload.next_batch();
        let bytes = batch.len() as u64;
        let delivery = producer.send_batch(partition, batch, records).await?;
        if waiting.send(Waiting { due, bytes, delivery }).await.is_err() {
            break;
        }
    }
    drop(waiting);
    books.await.map_err(|_| BenchError::Nothing("the bookkeeper of a producer ended early"))
}

async fn keep_books(mut waiting: mpsc::Receiver<Waiting>, records: u64) -> Done {
    let mut done = Done::default();
    while let Some(Waiting { due, bytes, delivery }) = waiting.recv().await {
        match delivery.await {
            Ok(_) => {
                done.latencies.saturating_record(due.elapsed().as_micros() as u64);
                done.records += records;
                done.batch_bytes += bytes;
            }
            Err(_) => done.errors += 1,
        }
    }
    done
}
