//! The log engine alone: appends handed to [`weir_storage::Log`] in this process, no network and no broker. Closed loop: each
//! producer has one append under way and hands over the next when that is durable.
//!
//! Producers are not threads. A driver thread owns many of them; the log thread leaves all answers of a commit in the
//! driver's inbox and wakes it once, and the driver hands over as many appends again. Before the clock starts the log
//! runs under the same load until it goes round in recycled segments, as a node does that has been up for a while.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use weir_storage::{
    Append, AppendEntry, CompletionSink, Log, LogConfig, LogHandle, LogStats, Outcome, PartitionId, PartitionOp, RecoveryReport,
};

use crate::floor::{durable_writes, sequential_reads};
use crate::report::histogram;
use crate::{BenchError, Host, Latency, Load, Payload, Report, Usage};

/// What one driver's producers did.
struct Done {
    records: u64,
    batch_bytes: u64,
    errors: u64,
    latencies: Histogram<u64>,
}

impl Default for Done {
    fn default() -> Done {
        Done { records: 0, batch_bytes: 0, errors: 0, latencies: histogram() }
    }
}

impl Done {
    fn add(&mut self, other: &Done) {
        self.records += other.records;
        self.batch_bytes += other.batch_bytes;
        self.errors += other.errors;
        self.latencies.add(&other.latencies).expect("all histograms have the same bounds");
    }
}

/// Segments kept where the configuration does not say: enough for recovery to have something to read.
const RETENTION_BYTES: u64 = 1 << 30;
/// A slow disk does not reach its first recycled segment by then, and need not.
const WARM_UP_MAX: Duration = Duration::from_secs(8);
/// A second driver pays once the first has more producers than it can serve within a commit.
const PRODUCERS_A_DRIVER: u32 = 4096;
const DRIVERS_MAX: u32 = 4;
/// Partitions opened by one append.
const OPENED_AT_ONCE: u32 = 4096;
/// How often the clock is looked at.
const TICK: Duration = Duration::from_millis(1);

/// Drives a log in the configuration's directory, then closes it and times its recovery. `floor_time`: how long the raw
/// durable writes of the same size are measured afterwards.
pub fn storage(mut config: LogConfig, load: &Load, host: Host, floor_time: Option<Duration>) -> Result<Report, BenchError> {
    config.retention_bytes = config.retention_bytes.or(Some(RETENTION_BYTES));
    let mut report = Report::new("storage", load, host);
    let rss_before = Usage::own().rss_bytes;
    let (log, _) = Log::open(config.clone())?;
    open_partitions(&log.handle(), load.partitions)?;
    let run = Run::drive(&log.handle(), load)?;
    run.fill(&mut report, load);
    let rss = Usage::own().rss_bytes;
    report.server_rss_bytes = Some(rss);
    report.figures.insert("resident_growth_bytes", rss.saturating_sub(rss_before) as f64);
    report.figures.insert("open_files", open_files());
    log.shutdown()?;
    recover(&config, &mut report)?;
    if let Some(during) = floor_time {
        if let Some(floor) = sequential_reads(&config.dir.join("wal"))? {
            report.figures.insert("sequential_read_bytes_per_second", floor);
        }
        let floor = durable_writes(&config.dir, run.commit_bytes() as usize, during)?;
        report.add_floors(vec![floor.into_floor()]);
    }
    Ok(report)
}

pub(super) fn open_partitions(log: &LogHandle, partitions: u32) -> Result<(), BenchError> {
    for from in (0..partitions).step_by(OPENED_AT_ONCE as usize) {
        let ids = from..partitions.min(from + OPENED_AT_ONCE);
        let opened = Append { partitions: ids.map(|id| PartitionOp::Open(PartitionId(id))).collect(), ..Append::default() };
        if let Outcome::Refused(error) = log.append_blocking(opened) {
            return Err(BenchError::Append(error));
        }
    }
    Ok(())
}

/// Opens the log once more. It is read with `O_DIRECT` where it is written so: the page cache does not help.
fn recover(config: &LogConfig, report: &mut Report) -> Result<(), BenchError> {
    let begin = Instant::now();
    let (log, recovery): (Log, RecoveryReport) = Log::open(config.clone())?;
    let seconds = begin.elapsed().as_secs_f64();
    report.figures.insert("recovery_seconds", seconds);
    report.figures.insert("recovery_read_bytes", recovery.bytes as f64);
    report.figures.insert("recovery_gb_per_second", recovery.bytes as f64 / 1e9 / seconds);
    report.figures.insert("recovery_scan_seconds", recovery.read_for.as_secs_f64());
    report.figures.insert("recovery_verified_bytes", recovery.verified_bytes as f64);
    let verified_per_second = recovery.verified_bytes as f64 / recovery.verified_for.as_secs_f64().max(1e-9);
    report.figures.insert("recovery_verified_gb_per_second", verified_per_second / 1e9);
    Ok(log.shutdown()?)
}

pub(super) fn open_files() -> f64 {
    std::fs::read_dir(Path::new("/proc/self/fd")).map_or(0, Iterator::count) as f64
}

/// What happened between the first and the last measured acknowledgement, of one stretch or of several.
pub(super) struct Run {
    total: Done,
    seconds: f64,
    cpu_seconds: f64,
    /// The log's counters at the beginning and at the end of each stretch.
    spans: Vec<(LogStats, LogStats)>,
}

impl Run {
    pub(super) fn drive(log: &LogHandle, load: &Load) -> Result<Run, BenchError> {
        Run::drive_when(log, load, WARM_UP_MAX, |stats| stats.recycled > 0)
    }

    /// The clock starts when the log says that it is warm, or after `warm_up_max`.
    pub(super) fn drive_when(
        log: &LogHandle,
        load: &Load,
        warm_up_max: Duration,
        is_warm: impl Fn(&LogStats) -> bool,
    ) -> Result<Run, BenchError> {
        let drivers = load.lanes().div_ceil(PRODUCERS_A_DRIVER).min(DRIVERS_MAX);
        let course = Arc::new(Course::default());
        let mut threads = Vec::new();
        for number in 0..drivers {
            let producers = load.lanes() / drivers + u32::from(number < load.lanes() % drivers);
            let mut driver = Driver::new(log, load, &course, (number, drivers), producers)?;
            threads.push(std::thread::spawn(move || driver.run()));
        }
        course.warm_up(log, warm_up_max, is_warm);
        let (cpu, before) = (Usage::own().cpu_seconds, log.stats());
        course.measure(load);
        let (cpu_after, after) = (Usage::own().cpu_seconds, log.stats());
        course.finish();
        let mut total = Done::default();
        let mut span: Option<(Instant, Instant)> = None;
        for thread in threads {
            let (done, begin, end) = thread.join().map_err(|_| BenchError::Nothing("a driver of the load ended early"))?;
            total.add(&done);
            span = Some(span.map_or((begin, end), |(first, last)| (first.min(begin), last.max(end))));
        }
        let seconds = span.map_or(0.0, |(first, last)| (last - first).as_secs_f64());
        Ok(Run { total, seconds, cpu_seconds: cpu_after - cpu, spans: vec![(before, after)] })
    }

    /// Takes in another run over the same log.
    pub(super) fn add(&mut self, other: Run) {
        self.total.add(&other.total);
        self.seconds += other.seconds;
        self.cpu_seconds += other.cpu_seconds;
        self.spans.extend(other.spans);
    }

    /// The log's counters when the clock started.
    pub(super) fn before(&self) -> Option<&LogStats> {
        self.spans.first().map(|(before, _)| before)
    }

    pub(super) fn records_per_second(&self) -> f64 {
        self.total.records as f64 / self.seconds.max(1e-9)
    }

    pub(super) fn p99_ms(&self) -> f64 {
        Latency::of(&self.total.latencies).map_or(0.0, |latency| latency.p99)
    }

    /// Cores that this process kept busy.
    pub(super) fn cpu_cores(&self) -> f64 {
        self.cpu_seconds / self.seconds.max(1e-9)
    }

    pub(super) fn fill(&self, report: &mut Report, load: &Load) {
        report.records = self.total.records;
        report.value_bytes = self.total.records * load.record_bytes as u64;
        report.batch_bytes = self.total.batch_bytes;
        report.errors = self.total.errors;
        report.latency_ms = Latency::of(&self.total.latencies);
        report.client_cpu_seconds = self.cpu_seconds;
        report.rates(self.seconds);
        let frames = self.since(|stats| stats.frames).max(1.0);
        report.figures.insert("records_per_commit", self.since(|stats| stats.records) / frames);
        report.figures.insert("commit_bytes", self.commit_bytes());
        let writing_us =
            self.since(|stats| stats.write_latency.sum_us) / self.since(|stats| stats.write_latency.count()).max(1.0);
        report.figures.insert("commit_write_ms", writing_us / 1000.0);
        report.figures.insert("written_bytes_per_second", self.since(|stats| stats.written_bytes) / self.seconds.max(1e-9));
    }

    /// Mean bytes of a frame on disk, that is, of a durable write.
    fn commit_bytes(&self) -> f64 {
        self.since(|stats| stats.written_bytes) / self.since(|stats| stats.frames).max(1.0)
    }

    pub(super) fn since(&self, counter: fn(&LogStats) -> u64) -> f64 {
        self.spans.iter().map(|(before, after)| counter(after).saturating_sub(counter(before))).sum::<u64>() as f64
    }
}

/// Where the run stands; the main thread moves it on, the drivers follow.
#[derive(Default)]
struct Course {
    phase: AtomicU64,
    /// Records acknowledged since the clock started.
    records: AtomicU64,
}

const WARMING_UP: u64 = 0;
const MEASURING: u64 = 1;
const ENDING: u64 = 2;

impl Course {
    fn warm_up(&self, log: &LogHandle, max: Duration, is_warm: impl Fn(&LogStats) -> bool) {
        let begin = Instant::now();
        while begin.elapsed() < max && !is_warm(&log.stats()) {
            std::thread::sleep(TICK);
        }
    }

    fn measure(&self, load: &Load) {
        self.phase.store(MEASURING, Ordering::SeqCst);
        let begin = Instant::now();
        let over = || match load.records {
            Some(records) => self.records.load(Ordering::Relaxed) >= records,
            None => begin.elapsed() >= load.seconds,
        };
        while !over() {
            std::thread::sleep(TICK);
        }
    }

    fn finish(&self) {
        self.phase.store(ENDING, Ordering::SeqCst);
    }
}

/// Where the log thread leaves the answers for a driver.
struct Inbox {
    answers: Mutex<Vec<(u64, Outcome)>>,
    driver: Thread,
}

impl Inbox {
    fn take(&self, into: &mut Vec<(u64, Outcome)>) {
        while into.is_empty() {
            std::mem::swap(&mut *self.answers.lock().unwrap_or_else(PoisonError::into_inner), into);
            if into.is_empty() {
                std::thread::park();
            }
        }
    }
}

impl CompletionSink for Inbox {
    fn complete(&self, outcomes: &mut Vec<(u64, Outcome)>) {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).append(outcomes);
        self.driver.unpark();
    }
}

/// A thread's share of the producers.
struct Driver {
    log: LogHandle,
    course: Arc<Course>,
    payload: Payload,
    batch_records: u32,
    producers: u32,
    partitions: u32,
    /// Of the next append; drivers take turns, so that all partitions are visited one after the other.
    partition: u32,
    stride: u32,
    /// When each producer handed over what it waits for, and its bytes.
    handed_over: Vec<(Instant, u64)>,
}

impl Driver {
    fn new(
        log: &LogHandle,
        load: &Load,
        course: &Arc<Course>,
        (number, drivers): (u32, u32),
        producers: u32,
    ) -> Result<Driver, BenchError> {
        Ok(Driver {
            log: log.clone(),
            course: Arc::clone(course),
            payload: Payload::build(load, u64::from(number))?,
            batch_records: load.batch_records,
            producers,
            partitions: load.partitions,
            partition: number % load.partitions,
            stride: drivers,
            handed_over: vec![(Instant::now(), 0); producers as usize],
        })
    }

    /// Until the course ends and every append is answered; gives what was measured, from when to when.
    fn run(&mut self) -> (Done, Instant, Instant) {
        let inbox = Arc::new(Inbox { answers: Mutex::default(), driver: std::thread::current() });
        let sink: Arc<dyn CompletionSink> = Arc::<Inbox>::clone(&inbox);
        let mut done = Done::default();
        let (mut begin, mut end) = (Instant::now(), None);
        let mut phase = WARMING_UP;
        let (mut answers, mut waiting) = (Vec::new(), u64::from(self.producers));
        (0..waiting).for_each(|producer| self.hand_over(producer, begin, &sink));
        while waiting > 0 {
            inbox.take(&mut answers);
            // One look at the clock for all of them: the time it takes to hand over again counts as latency.
            let now = Instant::now();
            let is = self.course.phase.load(Ordering::SeqCst);
            if phase == WARMING_UP && is != WARMING_UP {
                (done, begin) = (Done::default(), now);
            } else if phase == MEASURING {
                let records = answers.iter().map(|(producer, outcome)| self.settle(&mut done, *producer, outcome, now)).sum();
                self.course.records.fetch_add(records, Ordering::Relaxed);
            }
            if is == ENDING {
                end = end.or(Some(now));
                waiting -= answers.len() as u64;
                answers.clear();
            }
            phase = is;
            for (producer, _) in answers.drain(..) {
                self.hand_over(producer, now, &sink);
            }
        }
        (done, begin, end.unwrap_or(begin))
    }

    fn hand_over(&mut self, producer: u64, now: Instant, sink: &Arc<dyn CompletionSink>) {
        let (batches, record_count) = self.payload.next_batch();
        self.handed_over[producer as usize] = (now, batches.len() as u64);
        let entry = AppendEntry {
            partition: PartitionId(self.partition),
            batches,
            record_count,
            max_timestamp: self.payload.newest_ms(),
        };
        self.partition = (self.partition + self.stride) % self.partitions;
        self.log.submit(Append { entries: vec![entry], ..Append::default() }, producer, sink);
    }

    /// Counts one answer; returns its records.
    fn settle(&self, done: &mut Done, producer: u64, outcome: &Outcome, now: Instant) -> u64 {
        if !matches!(outcome, Outcome::Committed { .. }) {
            done.errors += 1;
            return 0;
        }
        let (handed_over, bytes) = self.handed_over[producer as usize];
        done.latencies.saturating_record(now.saturating_duration_since(handed_over).as_micros() as u64);
        done.records += u64::from(self.batch_records);
        done.batch_bytes += bytes;
        u64::from(self.batch_records)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_record_of_a_run_is_durable_and_recovery_reads_it() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let config = LogConfig { segment_bytes: 4 << 20, retention_bytes: Some(16 << 20), ..LogConfig::new(dir.path()) };
        let load = Load {
            topic: String::new(),
            partitions: 50,
            records: Some(1000),
            seconds: Duration::ZERO,
            record_bytes: 100,
            batch_records: 10,
            connections: 1,
            producers: 20,
            in_flight: 1,
            rate: None,
            zstd: false,
        };
        let report = storage(config.clone(), &load, Host::detect(None), Some(Duration::from_millis(20))).expect("measured");
        assert!(report.records >= 1000 && report.records.is_multiple_of(10) && report.errors == 0, "{report:?}");
        assert_eq!(report.latency_ms.expect("measured").samples * 10, report.records);
        assert!(report.floor_ratio.is_some_and(|ratio| ratio > 0.0), "{report:?}");
        for name in [
            "recovery_seconds",
            "recovery_verified_gb_per_second",
            "recovery_gb_per_second",
            "records_per_commit",
            "commit_bytes",
            "open_files",
        ] {
            assert!(report.figures[name] > 0.0, "{name}: {report:?}");
        }
        let (log, recovery) = Log::open(config).expect("opens again");
        assert_eq!((recovery.partitions, recovery.damage.len()), (50, 0));
        let stored: i64 = (0..50).map(|id| log.handle().bounds(PartitionId(id)).expect("open").high_watermark).sum();
        assert!(stored as u64 >= report.records, "{stored} records are in the log");
    }
}
