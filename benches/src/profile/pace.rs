//! Open loop: batches are due at fixed times whether or not earlier ones were acknowledged, and a latency counts from the
//! time a batch was **due**. A node that stalls for a second makes every batch of that second late, not just one: this is
//! the correction for coordinated omission, made at the source.

use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use weir_client::{Ack, ClientConfig, ClientError};

use super::lanes::{Lane, all, ended_early, open};
use super::tally::{Tally, Waiting};
use crate::{BenchError, Host, Load, Report, Usage};

/// Batches of a producer that are due and not handed over, or that wait for their acknowledgement; beyond it the schedule
/// itself is late, which counts.
const WAITING_MAX: usize = 1 << 16;

/// Publishes at the load's rate and measures from schedule to acknowledgement.
pub async fn latency(config: &ClientConfig, load: &Load, host: Host) -> Result<Report, BenchError> {
    let rate = load.rate.ok_or(BenchError::Nothing("the latency profile needs a rate"))?;
    let lanes = open(config, load).await?;
    let (tally, cpu) = (Arc::new(Tally::new()), Usage::own().cpu_seconds);
    let begin = Instant::now();
    run(lanes, load, rate, &tally).await?;
    Ok(tally.report("latency", load, host, begin, cpu))
}

/// Every producer at its share of the rate, from now on; they take turns, so that they do not all send in the same instant.
pub(crate) async fn run(lanes: Vec<Lane>, load: &Load, rate: u64, tally: &Arc<Tally>) -> Result<(), BenchError> {
    if rate == 0 {
        return Err(BenchError::Nothing("a rate of 0 records a second publishes nothing"));
    }
    let every = Duration::from_secs_f64(f64::from(load.batch_records) / rate as f64);
    let batches = match load.records {
        Some(records) => records.div_ceil(u64::from(load.batch_records)),
        None => (load.seconds.as_secs_f64() / every.as_secs_f64()).ceil() as u64,
    };
    let (mut tasks, mut turns) = (JoinSet::new(), Vec::new());
    for lane in lanes {
        let (turn, due) = mpsc::channel(WAITING_MAX);
        turns.push(turn);
        tasks.spawn(keep_pace(lane, due, tally.clone()));
    }
    let ticking = tokio::task::spawn_blocking(move || tick(&turns, every, batches.max(1)));
    all(tasks).await?;
    ticking.await.map_err(ended_early)
}

/// Says what is due when it is due. On a thread of its own, because the executor's clock has a resolution of a millisecond,
/// which is longer than an acknowledgement takes.
fn tick(turns: &[mpsc::Sender<Instant>], every: Duration, batches: u64) {
    // Otherwise the kernel may wake it 50 µs late.
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
    let begin = Instant::now();
    for (number, turn) in (0..batches).zip(turns.iter().cycle()) {
        let due = begin + every.mul_f64(number as f64);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        if turn.blocking_send(due).is_err() {
            return;
        }
    }
}

/// Hands over what is due and counts what was answered, in one task: every further one would be a wake-up a batch.
async fn keep_pace(lane: Lane, mut due: mpsc::Receiver<Instant>, tally: Arc<Tally>) -> Result<(), BenchError> {
    let Lane { producer, mut payload, first: partition, .. } = lane;
    let mut waiting: VecDeque<Waiting> = VecDeque::new();
    let mut more = true;
    while more || !waiting.is_empty() {
        tokio::select! {
            biased;
            answer = oldest(&mut waiting) => {
                if let Some(waiting) = waiting.pop_front() {
                    tally.count(&waiting, answer.is_ok());
                }
            }
            since = due.recv(), if more && waiting.len() < WAITING_MAX => match since {
                Some(since) => {
                    let (batch, records) = payload.next_batch();
                    let batch_bytes = batch.len() as u64;
                    tally.handed_over(since);
                    let delivery = producer.send_batch(partition, batch, records).await?;
                    waiting.push_back(Waiting { since, records, batch_bytes, delivery });
                }
                None => more = false,
            },
        }
    }
    Ok(())
}

/// The answer to the first of them; none while nothing waits. Giving up the wait loses nothing.
async fn oldest(waiting: &mut VecDeque<Waiting>) -> Result<Ack, ClientError> {
    match waiting.front_mut() {
        Some(oldest) => (&mut oldest.delivery).await,
        None => std::future::pending().await,
    }
}
