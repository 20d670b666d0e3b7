//! The cold tier: what sorting and merging cost the producers beside them, what they write, and how fast one partition out of
//! many is read back from cold segments.
//!
//! The same load runs over a log without a cold tier and over one with it, each in a directory of its own and warmed up. Then the
//! sorter is given time to finish, the log is opened again to sort its last segments too, and some partitions are read from their first
//! record to their last. The log without a cold tier is read the same way: what is not sorted yet is read like that.
//!
//! Where a class policy takes segments out again, the clock starts when it does, and files of promoted segments are used again.

use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use weir_storage::{
    ClassId, ClassPolicy, ColdConfig, Log, LogConfig, LogHandle, LogStats, PartitionId, ReadChunk, ReadError, ReadRequest,
};

use super::storage::{Run, open_files, open_partitions};
use crate::floor::sequential_reads;
use crate::{BenchError, Host, Load, Report, Usage};

/// Partitions read back.
const READ_PARTITIONS: u32 = 64;
/// What one read asks for.
const READ_BYTES: usize = 4 << 20;
/// The sorter is idle when nothing has changed for so long: it waits for a quiet second, and looks once a second.
const QUIET: Duration = Duration::from_millis(3000);
const QUIET_WAIT_MAX: Duration = Duration::from_secs(120);
/// Age from which the last records are sorted, at the end.
const SORT_AGE_AT_THE_END: Duration = Duration::from_secs(1);
/// Until retention has begun to take segments out, where it is to.
const STEADY_WAIT_MAX: Duration = Duration::from_secs(60);
/// One log is not read for longer: what a partition has in a WAL of many lies far apart.
const CATCH_UP_MAX: Duration = Duration::from_secs(5);

/// Runs both, in directories below the configuration's. `policy`: how the records of the one with a cold tier are kept.
pub fn cold(config: LogConfig, load: &Load, policy: Option<ClassPolicy>, host: Host) -> Result<Report, BenchError> {
    let mut report = Report::new("cold", load, host);
    let dir = config.dir.clone();
    let without = LogConfig {
        dir: dir.join("without"),
        cold: None,
        retention_bytes: Some(config.cold.as_ref().map_or(1 << 30, |cold| cold.wal_bytes_max)),
        ..config.clone()
    };
    let alone = drive_without(without, load, &mut report)?;
    let with = LogConfig { dir: dir.join("with"), cold: Some(config.cold.clone().unwrap_or_default()), ..config };
    let (log, _) = Log::open(with.clone())?;
    let handle = log.handle();
    let run = drive_with(&handle, load, policy)?;
    run.fill(&mut report, load);
    report.server_rss_bytes = Some(Usage::own().rss_bytes);
    compare(&mut report, &alone, &run, load);
    report.figures.insert("open_files", open_files());
    wait_until_sorted(&handle);
    amounts(&mut report, &run, &handle.stats());
    log.shutdown()?;
    let begin = Instant::now();
    let (log, _) = Log::open(all_sorted(&with))?;
    report.figures.insert("restart_seconds", begin.elapsed().as_secs_f64());
    wait_until_sorted(&log.handle());
    CatchUp::of(&log.handle(), load, &with.dir.join("cold"))?.fill(&mut report, CATCH_UP);
    log.shutdown()?;
    Ok(report)
}

/// The same log, but what its last segments hold does not wait to be sorted.
pub(super) fn all_sorted(config: &LogConfig) -> LogConfig {
    let cold = config.cold.clone().unwrap_or_default();
    LogConfig { cold: Some(ColdConfig { sort_age: SORT_AGE_AT_THE_END, ..cold }), ..config.clone() }
}

/// The log without a cold tier: driven, read, removed.
fn drive_without(config: LogConfig, load: &Load, report: &mut Report) -> Result<Run, BenchError> {
    let dir = config.dir.clone();
    let (log, _) = Log::open(config)?;
    open_partitions(&log.handle(), load.partitions)?;
    let run = Run::drive(&log.handle(), load)?;
    CatchUp::of(&log.handle(), load, &dir.join("wal"))?.fill(report, CATCH_UP_UNSORTED);
    log.shutdown()?;
    let _ = std::fs::remove_dir_all(dir);
    Ok(run)
}

fn drive_with(log: &LogHandle, load: &Load, policy: Option<ClassPolicy>) -> Result<Run, BenchError> {
    let Some(policy) = policy else {
        open_partitions(log, load.partitions)?;
        return Run::drive(log, load);
    };
    // All partitions are of the class that partitions are of when nobody says.
    log.set_class_policy(ClassId::default(), policy);
    open_partitions(log, load.partitions)?;
    let goes_round = |stats: &LogStats| stats.segments_expired > 0 && (stats.segments_promoted == 0 || stats.segments_reused > 0);
    Run::drive_when(log, load, STEADY_WAIT_MAX, goes_round)
}

fn compare(report: &mut Report, alone: &Run, run: &Run, load: &Load) {
    let mut other = Report::new("cold", load, report.host.clone());
    alone.fill(&mut other, load);
    report.figures.insert("without_records_per_second", other.records_per_second);
    report.figures.insert("throughput_ratio", report.records_per_second / other.records_per_second.max(1.0));
    if let (Some(with), Some(without)) = (report.latency_ms, other.latency_ms) {
        report.figures.insert("without_p99_ms", without.p99);
        report.figures.insert("p99_ratio", with.p99 / without.p99.max(1e-6));
    }
    report.figures.insert("sorted_while_measured_bytes", run.since(|stats| stats.sorted_batch_bytes));
}

/// Until the sorter has nothing more to do.
pub(super) fn wait_until_sorted(log: &LogHandle) {
    let state = |stats: &LogStats| (stats.recycled, stats.sorted_to_bytes, stats.merged_to_bytes, stats.cold_segments);
    let begin = Instant::now();
    let (mut last, mut since) = (state(&log.stats()), Instant::now());
    while (since.elapsed() < QUIET || log.stats().cold_busy) && begin.elapsed() < QUIET_WAIT_MAX {
        std::thread::sleep(Duration::from_millis(50));
        let now = state(&log.stats());
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
}

/// Bytes written for each byte of record batches, since the clock started where retention runs, else since the log was opened.
fn amounts(report: &mut Report, run: &Run, after: &LogStats) {
    let steady = run.before().filter(|before| before.segments_expired > 0).cloned();
    let before = steady.clone().unwrap_or_default();
    let since = |counter: fn(&LogStats) -> u64| (counter(after) - counter(&before)) as f64;
    let batches = since(|stats| stats.batch_bytes).max(1.0);
    // What was sorted since may have come before, and what has come since may wait: each is held against its own bytes.
    let sorted = since(|stats| stats.sorted_batch_bytes).max(1.0);
    let parts = [
        ("write_amplification_wal", since(|stats| stats.written_bytes) / batches),
        ("write_amplification_sort", since(|stats| stats.sorted_to_bytes) / sorted),
        ("write_amplification_merge", since(|stats| stats.merged_to_bytes) / sorted),
    ];
    let figures = &mut report.figures;
    figures.extend(parts);
    figures.insert("write_amplification", parts.iter().map(|(_, part)| part).sum());
    figures.insert("steady", f64::from(u8::from(steady.is_some())));
    // Not in the sum: a log that is not short of segments fills them once.
    figures.insert("zero_filled_ratio", since(|stats| stats.zero_filled_bytes) / batches);
    figures.insert("segments_promoted", since(|stats| stats.segments_promoted));
    figures.insert("segments_reused", since(|stats| stats.segments_reused));
    figures.insert("segments_expired", since(|stats| stats.segments_expired));
    figures.insert("promoted_share", since(|stats| stats.promoted_batch_bytes) / sorted);
    figures.insert("cold_segments", after.cold_segments as f64);
    figures.insert("cold_bytes", after.cold_bytes as f64);
}

/// Some partitions read from their beginning to where the log had them end, one after the other.
struct CatchUp {
    partitions: u32,
    bytes: u64,
    seconds: f64,
    floor: Option<f64>,
}

/// Names of its figures.
type CatchUpNames = [&'static str; 5];
const CATCH_UP: CatchUpNames = [
    "catch_up_partitions",
    "catch_up_bytes_per_partition",
    "catch_up_bytes_per_second",
    "sequential_read_bytes_per_second",
    "catch_up_ratio",
];
const CATCH_UP_UNSORTED: CatchUpNames = [
    "unsorted_catch_up_partitions",
    "unsorted_catch_up_bytes_per_partition",
    "unsorted_catch_up_bytes_per_second",
    "unsorted_sequential_read_bytes_per_second",
    "unsorted_catch_up_ratio",
];

impl CatchUp {
    /// `files`: the directory that is read one file after the other, for comparison.
    fn of(log: &LogHandle, load: &Load, files: &Path) -> Result<CatchUp, BenchError> {
        let step = (load.partitions / READ_PARTITIONS).max(1);
        let mut read = CatchUp { partitions: 0, bytes: 0, seconds: 0.0, floor: None };
        let begin = Instant::now();
        for id in (0..load.partitions).step_by(step as usize).take(READ_PARTITIONS as usize) {
            let until = begin + CATCH_UP_MAX;
            read.bytes += read_partition(log, PartitionId(id), until)?;
            read.partitions += 1;
            if Instant::now() >= until {
                break;
            }
        }
        read.seconds = begin.elapsed().as_secs_f64();
        read.floor = sequential_reads(files)?;
        Ok(read)
    }

    fn fill(&self, report: &mut Report, [partitions, of_each, a_second, floor_name, ratio]: CatchUpNames) {
        let bytes_per_second = self.bytes as f64 / self.seconds.max(1e-9);
        report.figures.insert(partitions, f64::from(self.partitions));
        report.figures.insert(of_each, self.bytes as f64 / f64::from(self.partitions.max(1)));
        report.figures.insert(a_second, bytes_per_second);
        if let Some(floor) = self.floor {
            report.figures.insert(floor_name, floor);
            report.figures.insert(ratio, bytes_per_second / floor);
        }
    }
}

/// From the first record kept to the last one that was there at the beginning, or for so long. Returns bytes of batches.
fn read_partition(log: &LogHandle, partition: PartitionId, until: Instant) -> Result<u64, BenchError> {
    let bounds = log.bounds(partition).ok_or(BenchError::Nothing("a partition is not there to be read back"))?;
    let (mut offset, mut bytes) = (bounds.start, 0);
    while offset < bounds.high_watermark && Instant::now() < until {
        let chunk = match read(log, ReadRequest { partition, offset, bytes_max: READ_BYTES }) {
            Ok(chunk) => chunk,
            Err(ReadError::Busy) => continue,
            Err(_) => return Err(BenchError::Nothing("a partition could not be read back")),
        };
        if chunk.batches.is_empty() {
            break;
        }
        bytes += chunk.batches.iter().map(|batch| batch.len() as u64).sum::<u64>();
        offset = chunk.next_offset;
    }
    Ok(bytes)
}

fn read(log: &LogHandle, request: ReadRequest) -> Result<ReadChunk, ReadError> {
    let (reply, answer) = mpsc::channel();
    log.read(request, Box::new(move |chunk| drop(reply.send(chunk))));
    answer.recv().unwrap_or(Err(ReadError::Busy))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_go_through_the_cold_tier_and_come_back() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let cold = ColdConfig { sort_bytes: 1 << 20, sort_memory_bytes: 1 << 20, ..ColdConfig::default() };
        let config = LogConfig { segment_bytes: 1 << 20, cold: Some(cold), ..LogConfig::new(dir.path()) };
        let load = Load {
            topic: String::new(),
            partitions: 100,
            records: Some(20_000),
            seconds: Duration::ZERO,
            record_bytes: 200,
            batch_records: 10,
            connections: 1,
            producers: 20,
            in_flight: 1,
            rate: None,
            zstd: false,
        };
        let report = super::cold(config, &load, None, Host::detect(None)).expect("measured");
        for name in ["cold_segments", "write_amplification", "catch_up_bytes_per_second", "restart_seconds", "throughput_ratio"] {
            assert!(report.figures[name] > 0.0, "{name}: {report:?}");
        }
    }

    #[test]
    fn what_is_written_is_counted_from_when_retention_runs() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let cold = ColdConfig {
            sort_bytes: 1 << 20,
            sort_memory_bytes: 1 << 20,
            burst_bytes: 0,
            wal_bytes_max: 8 << 20,
            ..ColdConfig::default()
        };
        let config = LogConfig { segment_bytes: 1 << 20, cold: Some(cold), ..LogConfig::new(dir.path()) };
        let load = Load {
            topic: String::new(),
            partitions: 1,
            records: Some(20_000),
            seconds: Duration::ZERO,
            record_bytes: 1000,
            batch_records: 100,
            connections: 1,
            producers: 2,
            in_flight: 1,
            rate: None,
            zstd: true,
        };
        let policy = ClassPolicy { retention_bytes: Some(4 << 20), ..ClassPolicy::default() };
        let report = super::cold(config, &load, Some(policy), Host::detect(None)).expect("measured");
        let figure = |name: &str| report.figures[name];
        assert_eq!(figure("steady"), 1.0, "{report:?}");
        assert!(figure("segments_expired") > 0.0 && figure("cold_bytes") < 16.0 * 1024.0 * 1024.0, "{report:?}");
        assert!(figure("unsorted_catch_up_bytes_per_second") > 0.0, "{report:?}");
    }
}
