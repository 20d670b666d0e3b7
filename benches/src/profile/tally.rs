//! What the producers of a run did, all together: one histogram, because a thousand of them would not fit the caches.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use hdrhistogram::Histogram;
use weir_client::Delivery;

use crate::report::histogram;
use crate::{Host, Latency, Load, Report, Usage};

/// Shared by all producers of a run.
#[derive(Debug)]
pub(crate) struct Tally {
    sums: Mutex<Sums>,
}

#[derive(Debug)]
struct Sums {
    records: u64,
    batch_bytes: u64,
    errors: u64,
    latencies: Histogram<u64>,
    /// From when a batch was due to when the generator came to hand it over.
    late: Histogram<u64>,
}

/// A batch that waits for its acknowledgement.
pub(crate) struct Waiting {
    /// When it was handed over, or was due.
    pub(crate) since: Instant,
    pub(crate) records: u32,
    pub(crate) batch_bytes: u64,
    pub(crate) delivery: Delivery,
}

impl Tally {
    pub(crate) fn new() -> Tally {
        Tally { sums: Mutex::new(Sums { records: 0, batch_bytes: 0, errors: 0, latencies: histogram(), late: histogram() }) }
    }

    fn lock(&self) -> MutexGuard<'_, Sums> {
        self.sums.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a batch's answer and counts it.
    pub(crate) async fn settle(&self, mut waiting: Waiting) {
        let answer = (&mut waiting.delivery).await;
        self.count(&waiting, answer.is_ok());
    }

    /// A batch was answered now.
    pub(crate) fn count(&self, waiting: &Waiting, durable: bool) {
        let micros = waiting.since.elapsed().as_micros() as u64;
        let mut sums = self.lock();
        match durable {
            true => {
                sums.latencies.saturating_record(micros);
                sums.records += u64::from(waiting.records);
                sums.batch_bytes += waiting.batch_bytes;
            }
            false => sums.errors += 1,
        }
    }

    /// A batch that was due then is handed over now.
    pub(crate) fn handed_over(&self, due: Instant) {
        self.lock().late.saturating_record(due.elapsed().as_micros() as u64);
    }

    /// The result of a run that began then, when this process had used that much.
    pub(crate) fn report(&self, profile: &str, load: &Load, host: Host, begin: Instant, cpu_seconds: f64) -> Report {
        let sums = self.lock();
        let mut report = Report::new(profile, load, host);
        report.records = sums.records;
        report.value_bytes = sums.records * load.record_bytes as u64;
        report.batch_bytes = sums.batch_bytes;
        report.errors = sums.errors;
        report.latency_ms = Latency::of(&sums.latencies);
        if let Some(late) = Latency::of(&sums.late) {
            report.figures.insert("generator_late_p50_ms", late.p50);
            report.figures.insert("generator_late_p99_ms", late.p99);
        }
        report.rates(begin.elapsed().as_secs_f64());
        report.client_cost(Usage::own().cpu_seconds - cpu_seconds);
        report
    }
}
