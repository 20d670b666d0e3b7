//! WAL segments that become cold segments as they are, over real directories: promoted, read back, backed up, checked, given back to the WAL.

mod support;

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use support::*;
use weir_storage::backup::{self, BackupOptions};
use weir_storage::check::{CheckOptions, Severity, check};
use weir_storage::*;

const P: PartitionId = PartitionId(3);
const SEGMENT: u64 = 1 << 20;

fn promoting(dir: &Path, backend: BackendChoice) -> LogConfig {
    let promote = PromoteConfig { run_bytes: 16 << 10, ..PromoteConfig::default() };
    let cold = ColdConfig {
        sort_bytes: SEGMENT,
        burst_bytes: 0,
        sort_memory_bytes: 1 << 20,
        wal_bytes_max: 8 * SEGMENT,
        promote: Some(promote),
        ..ColdConfig::default()
    };
    LogConfig { backend, cold: Some(cold), segment_bytes: SEGMENT, frame_bytes_max: 256 << 10, ..LogConfig::new(dir) }
}

fn open(config: LogConfig) -> Log {
    let (log, report) = Log::open(config).unwrap();
    assert!(report.damage.is_empty() && report.gaps.is_empty(), "{report:?}");
    let append = Append { partitions: vec![PartitionOp::Open(P)], ..Append::default() };
    assert!(matches!(log.handle().append_blocking(append), Outcome::Committed { .. }));
    log
}

/// Seconds in which no segment fills are a quiet time.
fn in_bursts(dir: &Path) -> LogConfig {
    let config = promoting(dir, BackendChoice::Auto);
    let cold = config.cold.clone().unwrap();
    let cold = ColdConfig { burst_bytes: SEGMENT, burst_segment: Duration::from_secs(4), ..cold };
    LogConfig { cold: Some(cold), compress_from_bytes: None, ..config }
}

/// 40 KB that shrink.
fn text(n: i64) -> Vec<u8> {
    format!("{n} kPa of the front left tyre, ").into_bytes().into_iter().cycle().take(40_000).collect()
}

/// 40 KB that do not shrink.
fn value(n: i64) -> Vec<u8> {
    let mut state = (n as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..5000).flat_map(|_| next()).collect()
}

fn fill(log: &LogHandle, count: i64) {
    let from = log.bounds(P).unwrap().high_watermark;
    for n in from..from + count {
        assert_eq!(offset(log.append_blocking(append(P, &[&value(n)]))), n);
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < Duration::from_secs(60), "{what} does not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Names of files below a directory that end so.
fn files(dir: &Path, folder: &str, end: &str) -> Vec<std::path::PathBuf> {
    let all = std::fs::read_dir(dir.join(folder)).unwrap().map(|entry| entry.unwrap().path());
    let mut named: Vec<_> = all.filter(|path| path.to_str().unwrap().ends_with(end)).collect();
    named.sort();
    named
}

fn all_there(log: &LogHandle) {
    let bounds = log.bounds(P).unwrap();
    let records = read_all(log, P, bounds.start);
    assert_eq!(records.len() as i64, bounds.high_watermark - bounds.start);
    for (at, (offset, bytes)) in (bounds.start..).zip(&records) {
        assert!(*offset == at && *bytes == value(at), "offset {at}");
    }
}

fn round(backend: BackendChoice) {
    let dir = tempfile::tempdir().unwrap();
    let log = open(promoting(dir.path(), backend));
    let handle = log.handle();
    fill(&handle, 150);
    until("promotion", || handle.stats().segments_promoted >= 4 && handle.stats().segments <= 2 && !handle.stats().cold_busy);
    let stats = handle.stats();
    assert!(stats.sorted_to_bytes < stats.sorted_batch_bytes / 20, "{stats:?}");
    all_there(&handle);
    until("the names in the WAL to go", || {
        files(dir.path(), "cold", ".wal").iter().all(|path| path.metadata().unwrap().nlink() == 1)
    });
    let found = handle_timestamp(&handle);
    assert!(found.is_some_and(|(offset, _)| offset == 0), "{found:?}");

    let vault = tempfile::tempdir().unwrap();
    let options = BackupOptions::default();
    handle.backup(vault.path(), options, &AtomicBool::new(false), &mut || {}, &mut |_| {}).unwrap();
    log.shutdown().unwrap();
    let report = check(dir.path(), CheckOptions::default(), &|_| {}).unwrap();
    assert!(report.findings.iter().all(|finding| finding.severity != Severity::Damage) && report.lost.is_empty(), "{report:?}");
    let log = open(promoting(dir.path(), backend));
    all_there(&log.handle());
    fill(&log.handle(), 60);
    all_there(&log.handle());
    log.shutdown().unwrap();

    let restored = tempfile::tempdir().unwrap();
    let to = restored.path().join("log");
    backup::restore(vault.path(), &to, None, &mut |_| {}).unwrap();
    let log = open(promoting(&to, backend));
    assert_eq!(log.handle().bounds(P).unwrap().high_watermark, 150);
    all_there(&log.handle());
    fill(&log.handle(), 60);
    all_there(&log.handle());
    log.shutdown().unwrap();
}

fn handle_timestamp(log: &LogHandle) -> Option<(i64, i64)> {
    let (sender, answer) = std::sync::mpsc::channel();
    log.offset_for_timestamp(P, 0, Box::new(move |found| drop(sender.send(found))));
    answer.recv().unwrap().unwrap()
}

#[test]
fn fat_segments_stay_as_they_are_and_are_read_backed_up_and_restored() {
    round(BackendChoice::Auto);
    round(BackendChoice::Plain);
}

#[test]
fn check_names_damage_in_a_promoted_segment_and_readers_meet_a_gap() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(promoting(dir.path(), BackendChoice::Auto));
    fill(&log.handle(), 100);
    until("promotion", || log.handle().stats().segments_promoted >= 2 && !log.handle().stats().cold_busy);
    log.shutdown().unwrap();
    let promoted = files(dir.path(), "cold", ".wal").remove(0);
    let mut bytes = std::fs::read(&promoted).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    // A file of its own, as a copy would be.
    std::fs::remove_file(&promoted).unwrap();
    std::fs::write(&promoted, bytes).unwrap();
    let report = check(dir.path(), CheckOptions::default(), &|_| {}).unwrap();
    let damage: Vec<_> = report.findings.iter().filter(|finding| finding.severity == Severity::Damage).collect();
    assert!(damage.len() == 1 && report.lost.len() == 1 && report.lost[0].partition == P, "{report:?}");
    let log = open(promoting(dir.path(), BackendChoice::Auto));
    let lost = report.lost[0];
    let (reply, answer) = std::sync::mpsc::channel();
    let request = ReadRequest { partition: P, offset: lost.from, bytes_max: 1 << 20 };
    log.handle().read(request, Box::new(move |read| drop(reply.send(read))));
    assert!(matches!(answer.recv().unwrap(), Err(ReadError::Gap { from, to }) if (from, to) == (lost.from, lost.to)));
    assert_eq!(read_all(&log.handle(), P, lost.to)[0].1, value(lost.to));
}

#[test]
fn what_retention_takes_out_is_a_segment_of_the_wal_again() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(promoting(dir.path(), BackendChoice::Auto));
    let handle = log.handle();
    handle.set_class_policy(ClassId(0), ClassPolicy { retention_bytes: Some(3 * SEGMENT), ..ClassPolicy::default() });
    fill(&handle, 200);
    until("retention", || handle.stats().segments_expired >= 1 && !handle.stats().cold_busy);
    let inodes = |folder: &str| -> Vec<u64> {
        files(dir.path(), folder, ".wal").iter().map(|path| path.metadata().unwrap().ino()).collect()
    };
    let mut promoted = inodes("cold");
    let mut again = 0;
    for _ in 0..30 {
        fill(&handle, 20);
        until("the sorter", || !handle.stats().cold_busy);
        again += inodes("wal").iter().filter(|inode| promoted.contains(inode)).count();
        promoted = inodes("cold");
        all_there(&handle);
    }
    assert!(again > 5, "{again} files were used again");
    log.shutdown().unwrap();
}

/// A class may be compacted later than its segments were promoted: then they are written again after all.
#[test]
fn promoted_segments_are_compacted() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(promoting(dir.path(), BackendChoice::Auto));
    let handle = log.handle();
    for n in 0..120_i64 {
        let mut builder = weir_batch::BatchBuilder::new(weir_batch::Codec::None);
        builder.push(n, Some(format!("key {}", n % 7).as_bytes()), Some(&value(n)), &[]);
        let batches = builder.finish().unwrap().into();
        let entries = vec![AppendEntry { partition: P, batches, record_count: 1, max_timestamp: n }];
        offset(handle.append_blocking(Append { entries, ..Append::default() }));
    }
    until("promotion", || handle.stats().segments_promoted >= 3 && !handle.stats().cold_busy);
    handle.set_class_policy(ClassId(0), ClassPolicy { compact: true, delete: false, ..ClassPolicy::default() });
    until("compaction", || handle.stats().records_compacted > 50 && !handle.stats().cold_busy);
    let records = read_all(&handle, P, 0);
    assert!(records.len() < 70 && records.iter().all(|(offset, bytes)| *bytes == value(*offset)), "{}", records.len());
    let tail: Vec<i64> = records.iter().map(|(offset, _)| *offset).filter(|offset| *offset >= 113).collect();
    assert_eq!(tail, (113..120).collect::<Vec<_>>(), "the last record of each key");
    log.shutdown().unwrap();
}

#[test]
fn what_a_burst_leaves_as_it_is_becomes_small_behind_it() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(in_bursts(dir.path()));
    let handle = log.handle();
    let mut sent = 0;
    until("promotion in haste", || {
        for n in sent..sent + 30 {
            assert_eq!(offset(handle.append_blocking(append(P, &[&text(n)]))), n);
        }
        sent += 30;
        handle.stats().promoted_in_haste >= 3
    });
    let there = |log: &LogHandle| {
        let records = read_all(log, P, 0);
        assert_eq!(records.len() as i64, sent);
        assert!((0..).zip(&records).all(|(n, (offset, bytes))| *offset == n && *bytes == text(n)), "another record");
    };
    there(&handle);
    until("sorting", || handle.stats().cold_unsorted_bytes == 0 && !handle.stats().cold_busy);
    let stats = handle.stats();
    assert!(stats.merged_to_bytes > 0 && stats.cold_bytes < stats.cold_batch_bytes / 10, "{stats:?}");
    // Some of the files are kept for the log to use again.
    until("the files of what was sorted to go", || files(dir.path(), "cold", ".wal").len() <= 8);
    there(&handle);
    log.shutdown().unwrap();
    let report = check(dir.path(), CheckOptions::default(), &|_| {}).unwrap();
    assert!(report.findings.iter().all(|finding| finding.severity != Severity::Damage) && report.lost.is_empty(), "{report:?}");
    let log = open(in_bursts(dir.path()));
    there(&log.handle());
    log.shutdown().unwrap();
}
