//! What reaches the disk for each byte of records: of the log, of sorting and of merging, until all of it is sorted.
//!
//! Records come at a given rate, as they do from sensors, and not as fast as the log takes them: a frame is compressed where the log's
//! thread has time for it, so the pace decides how much is written. No batch comes twice. Their timestamps run
//! faster than the clock where that is asked for, so that a short run has the time windows of a long one. At the end the log
//! is opened once more, to sort what its last segment holds.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hdrhistogram::Histogram;
use weir_batch::{BatchBuilder, Codec};
use weir_storage::{
    Append, AppendEntry, ClassId, ClassPolicy, CompletionSink, Log, LogConfig, LogHandle, LogStats, Outcome, PartitionId,
};

use super::cold::{all_sorted, wait_until_sorted};
use super::storage::open_partitions;
use crate::lines::Readings;
use crate::load::value;
use crate::report::histogram;
use crate::{BenchError, Host, Latency, Load, Report, Usage};

/// Records a second where the load does not say.
const RATE: u64 = 50_000;
/// Batches under way; beyond it the feed waits, and what waits is in the latencies.
const UNDER_WAY_MAX: u64 = 4096;
/// How often the feed looks whether batches are answered.
const TICK: Duration = Duration::from_millis(1);

/// What is fed.
#[derive(Debug, Clone)]
pub struct Feed {
    /// Values are lines of rtl_433, whatever size the load says.
    pub lines: bool,
    /// Timestamps run so many times faster than the clock.
    pub data_time: u32,
    /// How the records are kept; none: for ever.
    pub policy: Option<ClassPolicy>,
}

/// Feeds a log with a cold tier in the configuration's directory.
pub fn amplification(config: LogConfig, load: &Load, feed: &Feed, host: Host) -> Result<Report, BenchError> {
    let load = &Load { rate: Some(load.rate.unwrap_or(RATE)), ..load.clone() };
    let config = LogConfig { cold: Some(config.cold.clone().unwrap_or_default()), ..config };
    let mut report = Report::new("amplification", load, host);
    let kernel_before = Usage::own_written_bytes();
    let cpu_before = Usage::own().cpu_seconds;
    let (log, _) = Log::open(config.clone())?;
    keep(&log, feed);
    open_partitions(&log.handle(), load.partitions)?;
    let fed = Feeder::new(load, feed).run(&log.handle())?;
    report.client_cpu_seconds = Usage::own().cpu_seconds - cpu_before;
    report.server_rss_bytes = Some(Usage::own().rss_bytes);
    fed.fill(&mut report);
    wait_until_sorted(&log.handle());
    let fed_stats = log.handle().stats();
    log.shutdown()?;
    let (log, _) = Log::open(all_sorted(&config))?;
    keep(&log, feed);
    wait_until_sorted(&log.handle());
    amounts(&mut report, &fed_stats, &log.handle().stats());
    log.shutdown()?;
    if let (Some(before), Some(after)) = (kernel_before, Usage::own_written_bytes()) {
        let ratio = after.saturating_sub(before) as f64 / report.value_bytes.max(1) as f64;
        report.figures.insert("kernel_written_ratio", ratio);
    }
    Ok(report)
}

/// All partitions are of the class that partitions are of when nobody says.
fn keep(log: &Log, feed: &Feed) {
    if let Some(policy) = &feed.policy {
        log.handle().set_class_policy(ClassId::default(), policy.clone());
    }
}

/// Of both lives of the log, by the byte of the records' values.
fn amounts(report: &mut Report, fed: &LogStats, ended: &LogStats) {
    let both = |counter: fn(&LogStats) -> u64| (counter(fed) + counter(ended)) as f64;
    let raw = report.value_bytes.max(1) as f64;
    let [log, sorted, merged] =
        [both(|stats| stats.written_bytes), both(|stats| stats.sorted_to_bytes), both(|stats| stats.merged_to_bytes)];
    let frames = both(|stats| stats.frames).max(1.0);
    let figures = &mut report.figures;
    figures.insert("written_ratio", (log + sorted + merged) / raw);
    figures.insert("written_ratio_log", log / raw);
    figures.insert("written_ratio_sorted", sorted / raw);
    figures.insert("written_ratio_merged", merged / raw);
    figures.insert("zero_filled_ratio", both(|stats| stats.zero_filled_bytes) / raw);
    figures.insert("unsorted_ratio", 1.0 - both(|stats| stats.sorted_batch_bytes) / both(|stats| stats.batch_bytes).max(1.0));
    figures.insert("promoted_ratio", both(|stats| stats.promoted_batch_bytes) / both(|stats| stats.batch_bytes).max(1.0));
    figures.insert("frames_compressed_ratio", both(|stats| stats.frames_compressed) / frames);
    figures.insert("frame_bytes", log / frames);
    figures.insert("segments_expired", both(|stats| stats.segments_expired));
    figures.insert("segments_reused", both(|stats| stats.segments_reused));
    figures.insert("cold_segments", ended.cold_segments as f64);
    figures.insert("cold_bytes_ratio", ended.cold_bytes as f64 / ended.cold_batch_bytes.max(1) as f64);
}

/// What was fed.
struct Fed {
    records: u64,
    value_bytes: u64,
    batch_bytes: u64,
    errors: u64,
    seconds: f64,
    latencies: Histogram<u64>,
}

impl Fed {
    fn fill(&self, report: &mut Report) {
        report.records = self.records;
        report.value_bytes = self.value_bytes;
        report.batch_bytes = self.batch_bytes;
        report.errors = self.errors;
        report.latency_ms = Latency::of(&self.latencies);
        report.record_bytes = (self.value_bytes / self.records.max(1)) as usize;
        report.rates(self.seconds);
    }
}

/// Answers, as the log thread leaves them.
struct Answers {
    state: Mutex<Answered>,
}

struct Answered {
    answered: u64,
    errors: u64,
    /// When the batches under way were due.
    due: HashMap<u64, Instant>,
    latencies: Histogram<u64>,
}

impl CompletionSink for Answers {
    fn complete(&self, outcomes: &mut Vec<(u64, Outcome)>) {
        let now = Instant::now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for (batch, outcome) in outcomes.drain(..) {
            state.answered += 1;
            state.errors += u64::from(!matches!(outcome, Outcome::Committed { .. }));
            if let Some(due) = state.due.remove(&batch) {
                state.latencies.saturating_record(now.saturating_duration_since(due).as_micros() as u64);
            }
        }
    }
}

/// Where values come from.
enum Values {
    Lines(Box<Readings>),
    Noise(fastrand::Rng, usize),
}

/// Hands over batches when they are due.
struct Feeder<'a> {
    load: &'a Load,
    values: Values,
    builder: BatchBuilder,
    /// Timestamp of the first record, ms: the last one's is the end of the run.
    first_ms: i64,
    data_time: i64,
    value_bytes: u64,
    answers: Arc<Answers>,
}

impl Feeder<'_> {
    fn new<'a>(load: &'a Load, feed: &Feed) -> Feeder<'a> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64);
        let ahead = i64::from(feed.data_time.max(1)) - 1;
        let values = match feed.lines {
            true => Values::Lines(Box::new(Readings::new(0))),
            false => Values::Noise(fastrand::Rng::with_seed(0), load.record_bytes),
        };
        let none = Answered { answered: 0, errors: 0, due: HashMap::new(), latencies: histogram() };
        Feeder {
            load,
            values,
            builder: BatchBuilder::new(if load.zstd { Codec::Zstd(1) } else { Codec::None }),
            first_ms: now - load.seconds.as_millis() as i64 * ahead,
            data_time: ahead + 1,
            value_bytes: 0,
            answers: Arc::new(Answers { state: Mutex::new(none) }),
        }
    }

    fn run(mut self, log: &LogHandle) -> Result<Fed, BenchError> {
        let sink: Arc<dyn CompletionSink> = Arc::<Answers>::clone(&self.answers);
        let records = u64::from(self.load.batch_records);
        let batches_a_second = self.load.rate.unwrap_or(RATE) as f64 / records as f64;
        let (begin, mut batches, mut batch_bytes) = (Instant::now(), 0, 0);
        loop {
            let after = Duration::from_secs_f64(batches as f64 / batches_a_second);
            let over = self.load.records.map_or(after >= self.load.seconds, |max| batches * records >= max);
            if over {
                break;
            }
            let due = begin + after;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            self.wait_until_under_way(batches, UNDER_WAY_MAX);
            let partition = PartitionId((batches % u64::from(self.load.partitions)) as u32);
            let entry = self.batch(partition, after)?;
            batch_bytes += entry.batches.len() as u64;
            self.answers.state.lock().unwrap_or_else(PoisonError::into_inner).due.insert(batches, due);
            log.submit(Append { entries: vec![entry], ..Append::default() }, batches, &sink);
            batches += 1;
        }
        self.wait_until_under_way(batches, 1);
        let seconds = begin.elapsed().as_secs_f64();
        let state = self.answers.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (errors, latencies) = (state.errors, state.latencies.clone());
        Ok(Fed { records: batches * records, value_bytes: self.value_bytes, batch_bytes, errors, seconds, latencies })
    }

    /// Until fewer than so many of the batches handed over are not answered.
    fn wait_until_under_way(&self, handed_over: u64, fewer_than: u64) {
        let answered = || self.answers.state.lock().unwrap_or_else(PoisonError::into_inner).answered;
        while handed_over.saturating_sub(answered()) >= fewer_than {
            std::thread::sleep(TICK);
        }
    }

    fn batch(&mut self, partition: PartitionId, after: Duration) -> Result<AppendEntry, BenchError> {
        let at_ms = self.first_ms + after.as_millis() as i64 * self.data_time;
        for _ in 0..self.load.batch_records {
            let made;
            let value = match &mut self.values {
                Values::Lines(readings) => readings.next(at_ms),
                Values::Noise(rng, bytes) => {
                    made = value(rng, *bytes);
                    &made
                }
            };
            self.value_bytes += value.len() as u64;
            self.builder.push(at_ms, None, Some(value), &[]);
        }
        let batches = bytes::Bytes::from(self.builder.finish()?);
        Ok(AppendEntry { partition, batches, record_count: self.load.batch_records, max_timestamp: at_ms })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_storage::ColdConfig;

    #[test]
    fn all_that_was_fed_is_sorted_and_counted() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        // What is fed is less: it is sorted for its age, or not at all.
        let cold = ColdConfig { sort_bytes: 32 << 20, sort_memory_bytes: 1 << 20, ..ColdConfig::default() };
        let config = LogConfig { segment_bytes: 1 << 20, cold: Some(cold), ..LogConfig::new(dir.path()) };
        let load = Load {
            topic: String::new(),
            partitions: 4,
            records: Some(40_000),
            seconds: Duration::from_secs(1),
            record_bytes: 1,
            batch_records: 100,
            connections: 1,
            producers: 1,
            in_flight: 1,
            rate: Some(100_000),
            zstd: false,
        };
        let policy = ClassPolicy { retention_bytes: Some(4 << 20), ..ClassPolicy::default() };
        let feed = Feed { lines: true, data_time: 60, policy: Some(policy) };
        let report = amplification(config, &load, &feed, Host::detect(None)).expect("measured");
        assert_eq!((report.records, report.errors), (40_000, 0), "{report:?}");
        assert!((150..250).contains(&report.record_bytes), "lines, not values of a byte: {report:?}");
        let figure = |name: &str| report.figures[name];
        assert_eq!(figure("unsorted_ratio"), 0.0, "the last segment too: {report:?}");
        let parts = figure("written_ratio_log") + figure("written_ratio_sorted") + figure("written_ratio_merged");
        assert!((figure("written_ratio") - parts).abs() < 1e-9 && figure("written_ratio_sorted") > 0.05, "{report:?}");
        assert!(figure("segments_expired") > 0.0, "8 MB were fed and 4 are kept: {report:?}");
    }
}
