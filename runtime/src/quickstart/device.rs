//! One receiver of the fleet: a client with a certificate of its own that publishes what its [`Fleet`] tells, at a steady
//! pace, and writes down what it was promised.
//!
//! The node's death is no event here: the client library reconnects, says HELLO with the same producer name, and sends again
//! what was not acknowledged. Nothing in this file knows about it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hdrhistogram::Histogram;
use tokio::sync::mpsc;
use weir_client::{Client, ClientConfig, ClientError, Delivery, Producer, ProducerConfig, Record};

use super::fleet::{Fate, Fleet, Report};
use super::ledger::{IDENTITY_HEADER, Ledger, identity};

/// Reports are sent in bursts this often, as a receiver's serial line delivers them.
const TICK: Duration = Duration::from_millis(10);
/// Un-acknowledged reports of one receiver; beyond it the receiver waits.
const PENDING_MAX: usize = 1 << 14;

/// What all receivers share with the screen and the proof.
pub(super) struct Shared {
    pub(super) sent: AtomicU64,
    pub(super) acknowledged: AtomicU64,
    pub(super) stop: AtomicBool,
    ledger: Mutex<Ledger>,
    /// Identity and text of one report, to show what became of it.
    sample: Mutex<Option<(String, String)>>,
    /// Microseconds from handing a report to the client to its acknowledgement; taken each second.
    latencies: Mutex<Histogram<u64>>,
}

impl Shared {
    pub(super) fn new(devices: usize) -> Shared {
        Shared {
            sent: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            ledger: Mutex::new(Ledger::new(devices)),
            sample: Mutex::new(None),
            latencies: Mutex::new(new_histogram()),
        }
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A report whose fate will be shown: the first one in foreign units.
    pub(super) fn sample(&self) -> Option<(String, String)> {
        self.sample.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn offer_sample(&self, identity: &str, report: &Report) {
        if report.fate == Fate::Stored && report.line.contains("_PSI") && report.line.contains("_F") {
            let mut sample = self.sample.lock().unwrap_or_else(PoisonError::into_inner);
            sample.get_or_insert_with(|| (identity.to_owned(), report.line.clone()));
        }
    }

    /// The latencies since the last call.
    pub(super) fn take_latencies(&self) -> Histogram<u64> {
        let mut latencies = self.latencies.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *latencies, new_histogram())
    }
}

/// A receiver's task, and what it needs.
pub(super) struct Device {
    pub(super) number: usize,
    pub(super) config: ClientConfig,
    pub(super) topic: &'static str,
    pub(super) fleet: Fleet,
    pub(super) reports_per_second: u32,
    pub(super) shared: Arc<Shared>,
}

/// A report that waits for its acknowledgement.
struct Pending {
    number: usize,
    handed_over: Instant,
    delivery: Delivery,
}

impl Device {
    /// Publishes until told to stop, then waits for every acknowledgement.
    pub(super) async fn run(mut self) -> Result<(), ClientError> {
        let client = Client::connect(self.config.clone()).await?;
        let producer = client.producer(ProducerConfig::new(self.topic)).await?;
        let (pending, acknowledgements) = mpsc::channel(PENDING_MAX);
        let bookkeeper = tokio::spawn(keep_books(self.number, self.shared.clone(), acknowledgements));
        let published = self.publish(&producer, &pending).await;
        drop(pending);
        producer.flush().await?;
        let books = bookkeeper.await.unwrap_or(Ok(()));
        producer.close().await?;
        published.and(books)
    }

    async fn publish(&mut self, producer: &Producer, pending: &mpsc::Sender<Pending>) -> Result<(), ClientError> {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let a_tick = (self.reports_per_second / (1000 / TICK.as_millis() as u32)).max(1);
        while !self.shared.stop.load(Ordering::Relaxed) {
            ticks.tick().await;
            let now_ms = now_ms();
            let clock = wall_clock(now_ms);
            for _ in 0..a_tick {
                let waiting = self.send(producer, &clock, now_ms).await?;
                if pending.send(waiting).await.is_err() {
                    // The bookkeeper ended with an error, which the caller reports.
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    async fn send(&mut self, producer: &Producer, clock: &str, now_ms: i64) -> Result<Pending, ClientError> {
        let report = self.fleet.next(clock);
        let number = self.shared.ledger().sent(self.number, report.fate);
        let identity = identity(self.number, number);
        self.shared.offer_sample(&identity, &report);
        let record = Record {
            key: Some(report.key.as_bytes()),
            value: Some(report.line.as_bytes()),
            timestamp: Some(now_ms),
            headers: &[(IDENTITY_HEADER.as_bytes(), Some(identity.as_bytes()))],
            partition: None,
        };
        let handed_over = Instant::now();
        let delivery = producer.send(record).await?;
        self.shared.sent.fetch_add(1, Ordering::Relaxed);
        Ok(Pending { number, handed_over, delivery })
    }
}

/// Waits for the acknowledgements in the order of sending.
async fn keep_books(device: usize, shared: Arc<Shared>, mut pending: mpsc::Receiver<Pending>) -> Result<(), ClientError> {
    while let Some(report) = pending.recv().await {
        report.delivery.await?;
        let micros = report.handed_over.elapsed().as_micros() as u64;
        shared.latencies.lock().unwrap_or_else(PoisonError::into_inner).saturating_record(micros);
        shared.ledger().acknowledged(device, report.number);
        shared.acknowledged.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

fn new_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 120_000_000, 3).expect("the bounds are valid")
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

/// `2026-01-02 03:04:05`, UTC, as rtl_433 prints it. Days to a date by the era method of the proleptic Gregorian calendar.
pub(crate) fn wall_clock(ms: i64) -> String {
    let seconds = ms.div_euclid(1000);
    let (days, in_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (in_day / 3600, in_day / 60 % 60, in_day % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wall_clock_knows_leap_years_and_ends_of_years() {
        assert_eq!(wall_clock(0), "1970-01-01 00:00:00");
        assert_eq!(wall_clock(951_782_400_000), "2000-02-29 00:00:00");
        assert_eq!(wall_clock(1_767_225_599_999), "2025-12-31 23:59:59");
        assert_eq!(wall_clock(1_767_225_600_000), "2026-01-01 00:00:00");
    }
}
