//! The cold tier: what sorting and merging cost the producers beside them, what they write, and how fast one partition out of
//! many is read back from cold segments.
//!
//! The same load runs over a log without a cold tier and over one with it, each in a directory of its own and warmed up. Then the
//! sorter is given time to finish, and some partitions are read from their first record to the last one that has left the WAL.

use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use weir_storage::{Log, LogConfig, LogHandle, LogStats, PartitionId, ReadChunk, ReadError, ReadRequest};

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

/// Runs both, in directories below the configuration's.
pub fn cold(config: LogConfig, load: &Load, host: Host) -> Result<Report, BenchError> {
    let mut report = Report::new("cold", load, host);
    let dir = config.dir.clone();
    let without = LogConfig {
        dir: dir.join("without"),
        cold: None,
        retention_bytes: Some(config.cold.as_ref().map_or(1 << 30, |cold| cold.wal_bytes_max)),
        ..config.clone()
    };
    let alone = {
        let (log, _) = Log::open(without)?;
        open_partitions(&log.handle(), load.partitions)?;
        let run = Run::drive(&log.handle(), load)?;
        log.shutdown()?;
        let _ = std::fs::remove_dir_all(dir.join("without"));
        run
    };
    let with = LogConfig { dir: dir.join("with"), cold: Some(config.cold.clone().unwrap_or_default()), ..config };
    let (log, _) = Log::open(with.clone())?;
    let handle = log.handle();
    open_partitions(&handle, load.partitions)?;
    let run = Run::drive(&handle, load)?;
    run.fill(&mut report, load);
    report.server_rss_bytes = Some(Usage::own().rss_bytes);
    compare(&mut report, &alone, &run, load);
    report.figures.insert("open_files", open_files());
    wait_until_sorted(&handle);
    amounts(&mut report, &handle.stats());
    catch_up(&mut report, &handle, load, &with.dir)?;
    log.shutdown()?;
    let begin = Instant::now();
    let (log, _) = Log::open(with)?;
    report.figures.insert("restart_seconds", begin.elapsed().as_secs_f64());
    log.shutdown()?;
    Ok(report)
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
fn wait_until_sorted(log: &LogHandle) {
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

/// Bytes written for each byte of record batches, since the log was opened.
fn amounts(report: &mut Report, stats: &LogStats) {
    let batches = stats.batch_bytes.max(1) as f64;
    report
        .figures
        .insert("write_amplification", (stats.written_bytes + stats.sorted_to_bytes + stats.merged_to_bytes) as f64 / batches);
    report.figures.insert("write_amplification_wal", stats.written_bytes as f64 / batches);
    report.figures.insert("write_amplification_sort", stats.sorted_to_bytes as f64 / stats.sorted_batch_bytes.max(1) as f64);
    report.figures.insert("write_amplification_merge", stats.merged_to_bytes as f64 / stats.sorted_batch_bytes.max(1) as f64);
    // Not in the sum: a log that is not short of segments fills them once.
    report.figures.insert("zero_filled_ratio", stats.zero_filled_bytes as f64 / batches);
    report.figures.insert("segments_promoted", stats.segments_promoted as f64);
    report.figures.insert("segments_reused", stats.segments_reused as f64);
    report.figures.insert("promoted_share", stats.promoted_batch_bytes as f64 / stats.sorted_batch_bytes.max(1) as f64);
    report.figures.insert("cold_segments", stats.cold_segments as f64);
    report.figures.insert("cold_bytes", stats.cold_bytes as f64);
}

/// Reads some partitions from their beginning to where the WAL begins, one after the other.
fn catch_up(report: &mut Report, log: &LogHandle, load: &Load, dir: &Path) -> Result<(), BenchError> {
    let step = (load.partitions / READ_PARTITIONS).max(1);
    let (mut bytes, mut seconds, mut partitions) = (0, 0.0, 0);
    for id in (0..load.partitions).step_by(step as usize).take(READ_PARTITIONS as usize) {
        let begin = Instant::now();
        let read = read_partition(log, PartitionId(id))?;
        seconds += begin.elapsed().as_secs_f64();
        bytes += read;
        partitions += 1;
    }
    report.figures.insert("catch_up_partitions", f64::from(partitions));
    report.figures.insert("catch_up_bytes_per_partition", bytes as f64 / f64::from(partitions.max(1)));
    report.figures.insert("catch_up_bytes_per_second", bytes as f64 / seconds);
    if let Some(floor) = sequential_reads(&dir.join("cold"))? {
        report.figures.insert("sequential_read_bytes_per_second", floor);
        report.figures.insert("catch_up_ratio", bytes as f64 / seconds / floor);
    }
    Ok(())
}

fn read_partition(log: &LogHandle, partition: PartitionId) -> Result<u64, BenchError> {
    let (mut offset, mut bytes) = (0, 0);
    loop {
        let chunk = match read(log, ReadRequest { partition, offset, bytes_max: READ_BYTES }) {
            Ok(chunk) => chunk,
            Err(ReadError::Busy) => continue,
            Err(_) => return Err(BenchError::Nothing("a partition could not be read back")),
        };
        if chunk.batches.is_empty() {
            return Ok(bytes);
        }
        bytes += chunk.batches.iter().map(|batch| batch.len() as u64).sum::<u64>();
        offset = chunk.next_offset;
    }
}

fn read(log: &LogHandle, request: ReadRequest) -> Result<ReadChunk, ReadError> {
    let (reply, answer) = mpsc::channel();
    log.read(request, Box::new(move |chunk| drop(reply.send(chunk))));
    answer.recv().unwrap_or(Err(ReadError::Busy))
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_storage::ColdConfig;

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
        let report = super::cold(config, &load, Host::detect(None)).expect("measured");
        for name in ["cold_segments", "write_amplification", "catch_up_bytes_per_second", "restart_seconds", "throughput_ratio"] {
            assert!(report.figures[name] > 0.0, "{name}: {report:?}");
        }
    }
}
