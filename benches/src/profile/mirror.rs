//! Two copies of the log on two disks: what the second one costs whoever writes.
//!
//! Three logs without a cold tier: one in the first directory, one in the second, and one with a copy in each. All are opened at
//! once and driven in turn with the load of the storage profile, round after round, so that what moves the machine moves all
//! of them. Two copies cannot be faster than the slower disk: that one alone is what they are held against.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use weir_storage::{Log, LogConfig};

use super::storage::{Run, open_partitions};
use crate::{BenchError, Host, Load, Report, Usage};

/// Segments kept where the configuration does not say; each log has so many on each of its disks.
const RETENTION_BYTES: u64 = 512 << 20;
const FIRST: usize = 0;
const SECOND: usize = 1;
const BOTH: usize = 2;

/// Drives the logs in turn for the load's seconds, `rounds` times. Makes directories below `config.dir` and below `second`.
pub fn mirror(config: LogConfig, second: &Path, rounds: u32, load: &Load, host: Host) -> Result<Report, BenchError> {
    let retention_bytes = config.retention_bytes.or(Some(RETENTION_BYTES));
    let first = config.dir.clone();
    let wal = LogConfig { cold: None, cold_dirs: Vec::new(), mirror_dir: None, retention_bytes, ..config };
    let logs = [
        open(LogConfig { dir: first.join("alone"), ..wal.clone() }, load)?,
        open(LogConfig { dir: second.join("alone"), ..wal.clone() }, load)?,
        open(LogConfig { dir: first.join("both"), mirror_dir: Some(second.join("both")), ..wal }, load)?,
    ];
    let mut rounds_of: [Vec<Run>; 3] = Default::default();
    for _ in 0..rounds {
        for (log, runs) in logs.iter().zip(&mut rounds_of) {
            runs.push(Run::drive(&log.handle(), load)?);
        }
    }
    let mut report = Report::new("mirror", load, host);
    spread(&mut report, &rounds_of);
    let [alone, other, both] = rounds_of.map(pooled);
    let (Some(alone), Some(other), Some(both)) = (alone, other, both) else {
        return Err(BenchError::Nothing("no round was measured; give --rounds 1 or more"));
    };
    both.fill(&mut report, load);
    compare(&mut report, &alone, &other, &both);
    report.server_rss_bytes = Some(Usage::own().rss_bytes);
    report.figures.insert("one_device", f64::from(u8::from(is_one_device(&first, second))));
    let copies = logs[BOTH].handle().stats().copies;
    report.figures.insert("copies", copies as f64);
    // A copy that was thrown out makes the other one fast.
    report.errors += u64::from(copies != 2);
    logs.into_iter().try_for_each(Log::shutdown)?;
    Ok(report)
}

/// Whether both directories are on one file system, and so on one disk. Two file systems may be on one disk all the same.
pub fn is_one_device(first: &Path, second: &Path) -> bool {
    let device = |dir: &Path| std::fs::metadata(dir).map(|metadata| metadata.dev()).ok();
    device(first).is_some() && device(first) == device(second)
}

fn open(config: LogConfig, load: &Load) -> Result<Log, BenchError> {
    let (log, _) = Log::open(config)?;
    open_partitions(&log.handle(), load.partitions)?;
    Ok(log)
}

fn pooled(runs: Vec<Run>) -> Option<Run> {
    runs.into_iter().reduce(|mut all, run| {
        all.add(run);
        all
    })
}

/// The ratios of the rounds, least and greatest: what a single round is worth.
fn spread(report: &mut Report, rounds: &[Vec<Run>; 3]) {
    let ratio = |(both, alone): (&Run, f64)| both.records_per_second() / alone.max(1.0);
    let slower = rounds[FIRST].iter().zip(&rounds[SECOND]).map(|(a, b)| a.records_per_second().min(b.records_per_second()));
    let ratios: Vec<f64> = rounds[BOTH].iter().zip(slower).map(ratio).collect();
    report.figures.insert("throughput_ratio_least", ratios.iter().copied().fold(f64::INFINITY, f64::min));
    report.figures.insert("throughput_ratio_most", ratios.iter().copied().fold(0.0, f64::max));
}

fn compare(report: &mut Report, alone: &Run, other: &Run, both: &Run) {
    let slower = alone.records_per_second().min(other.records_per_second());
    let figures = &mut report.figures;
    figures.insert("first_alone_records_per_second", alone.records_per_second());
    figures.insert("second_alone_records_per_second", other.records_per_second());
    figures.insert("throughput_ratio", both.records_per_second() / slower.max(1.0));
    figures.insert("first_alone_p99_ms", alone.p99_ms());
    figures.insert("second_alone_p99_ms", other.p99_ms());
    figures.insert("p99_ratio", both.p99_ms() / alone.p99_ms().max(other.p99_ms()).max(1e-6));
    figures.insert("first_alone_cpu_cores", alone.cpu_cores());
    figures.insert("second_alone_cpu_cores", other.cpu_cores());
    figures.insert("cpu_cores", both.cpu_cores());
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn both_copies_are_written_and_one_device_is_noticed() {
        let [first, second] = [(); 2].map(|()| tempfile::tempdir().expect("a temporary directory"));
        let config = LogConfig { segment_bytes: 1 << 20, retention_bytes: Some(4 << 20), ..LogConfig::new(first.path()) };
        let load = Load {
            topic: String::new(),
            partitions: 10,
            records: Some(500),
            seconds: Duration::ZERO,
            record_bytes: 100,
            batch_records: 10,
            connections: 1,
            producers: 20,
            in_flight: 1,
            rate: None,
            zstd: false,
        };
        let report = mirror(config, second.path(), 2, &load, Host::detect(None)).expect("measured");
        assert!(report.records >= 1000 && report.errors == 0, "two rounds of it: {report:?}");
        assert_eq!((report.figures["copies"], report.figures["one_device"]), (2.0, 1.0), "{report:?}");
        let ratio = |name: &str| report.figures[name];
        assert!(ratio("throughput_ratio_least") > 0.0 && ratio("throughput_ratio_least") <= ratio("throughput_ratio_most"));
        assert!(second.path().join("both").join("wal").is_dir(), "the second copy lies in the second directory");
        assert!(!is_one_device(first.path(), Path::new("/proc")));
    }
}
