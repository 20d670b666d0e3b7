//! Closed loop: each producer keeps its lane full and waits for acknowledgements. Measures throughput; its latencies are
//! those of a full pipe, which is what the latency profile is not.
//!
//! With one record a batch and one batch in flight this is the request shape: many devices, each of which waits for its answer.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tokio::task::JoinSet;
use weir_client::ClientConfig;

use super::lanes::{Lane, all, open};
use super::pace;
use super::tally::{Tally, Waiting};
use crate::{BenchError, Host, Load, Report, Usage};

/// Publishes until the records or the seconds of the load are used up, and until the last acknowledgement.
pub async fn publish(config: &ClientConfig, load: &Load, host: Host) -> Result<Report, BenchError> {
    let lanes = open(config, load).await?;
    let (tally, cpu) = (Arc::new(Tally::new()), Usage::own().cpu_seconds);
    let begin = Instant::now();
    match load.rate {
        Some(rate) => pace::run(lanes, load, rate, &tally).await?,
        None => fill_all(lanes, load, &tally).await?,
    }
    Ok(tally.report("publish", load, host, begin, cpu))
}

/// Every producer at once, from now on.
pub(crate) async fn fill_all(lanes: Vec<Lane>, load: &Load, tally: &Arc<Tally>) -> Result<(), BenchError> {
    let quota = Arc::new(AtomicU64::new(load.records.unwrap_or(u64::MAX)));
    let mut tasks = JoinSet::new();
    let begin = Instant::now();
    for lane in lanes {
        tasks.spawn(fill(lane, load.clone(), quota.clone(), begin, tally.clone()));
    }
    all(tasks).await
}

async fn fill(lane: Lane, load: Load, quota: Arc<AtomicU64>, begin: Instant, tally: Arc<Tally>) -> Result<(), BenchError> {
    let Lane { producer, mut payload, first, partitions } = lane;
    let mut waiting: VecDeque<Waiting> = VecDeque::new();
    let mut partition = first;
    loop {
        let over = load.records.is_none() && begin.elapsed() >= load.seconds;
        if over || !take(&quota, u64::from(load.batch_records)) {
            break;
        }
        let (batch, records) = payload.next_batch();
        let batch_bytes = batch.len() as u64;
        let since = Instant::now();
        let delivery = producer.send_batch(partition, batch, records).await?;
        waiting.push_back(Waiting { since, records, batch_bytes, delivery });
        partition = (partition + 1) % partitions;
        if waiting.len() >= load.in_flight as usize
            && let Some(oldest) = waiting.pop_front()
        {
            tally.settle(oldest).await;
        }
    }
    for left in waiting {
        tally.settle(left).await;
    }
    Ok(())
}

/// Takes records off what is left to send; a last partial batch is not sent.
fn take(quota: &AtomicU64, records: u64) -> bool {
    quota.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(records)).is_ok()
}
