//! The cold tier over a real directory: what leaves the WAL is read from cold segments, through both backends, after restarts;
//! retention, compaction and removal work on them.

mod support;
#[path = "support/volume.rs"]
mod volume;

use std::time::{Duration, Instant};

use support::*;
use weir_batch::{BatchBuilder, Codec};
use weir_storage::*;

fn tiered(dir: &std::path::Path, backend: BackendChoice) -> LogConfig {
    let cold = ColdConfig {
        sort_bytes: 256 << 10,
        sort_memory_bytes: 200 << 10,
        wal_bytes_max: 1 << 20,
        merge_fan_in: 4,
        merged_bytes: 1 << 20,
        // In a burst segments would stay as they are: these tests are about sorting.
        burst_bytes: 0,
        ..ColdConfig::default()
    };
    LogConfig { backend, cold: Some(cold), ..small(dir) }
}

/// Waits until it holds; the sorter works on a thread of its own.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < Duration::from_secs(60), "{what} does not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn value(n: u32) -> Vec<u8> {
    (0..3000_u32).map(|i| (i.wrapping_mul(n.wrapping_mul(2_654_435_761) | 1) >> 13) as u8).collect()
}

fn partitions(count: u32) -> Append {
    Append { partitions: (0..count).map(|id| PartitionOp::Open(PartitionId(id))).collect(), ..Append::default() }
}

/// `appends` records dealt to `count` partitions in turn.
fn fill(log: &LogHandle, count: u32, appends: std::ops::Range<u32>) {
    for n in appends {
        offset(log.append_blocking(append(PartitionId(n % count), &[&value(n)])));
    }
}

fn check(log: &LogHandle, count: u32, appends: u32) {
    for id in 0..count {
        let expected: Vec<(i64, Vec<u8>)> =
            (0..appends).filter(|n| n % count == id).map(|n| (i64::from(n / count), value(n))).collect();
        let found = read_all(log, PartitionId(id), 0);
        assert!(found == expected, "partition {id}: {} of {} records", found.len(), expected.len());
        let middle = expected.len() / 2;
        assert!(read_all(log, PartitionId(id), middle as i64) == expected[middle..], "partition {id} from the middle");
    }
}

#[test]
fn what_left_the_wal_is_read_from_cold_segments_also_after_a_restart() {
    for backend in [BackendChoice::Auto, BackendChoice::Plain] {
        let dir = tempfile::tempdir().unwrap();
        let config = tiered(dir.path(), backend);
        let (log, _) = Log::open(config.clone()).unwrap();
        let handle = log.handle();
        handle.append_blocking(partitions(7));
        fill(&handle, 7, 0..900);
        until("recycling", || handle.stats().recycled >= 4);
        until("merging", || handle.stats().merged_to_bytes > 0);
        check(&handle, 7, 900);
        let stats = handle.stats();
        assert!(stats.segments * stats.segment_bytes <= 1 << 20, "the WAL stays within its bound: {} segments", stats.segments);
        assert_eq!(handle.bounds(PartitionId(3)).unwrap().start, 0);
        log.shutdown().unwrap();

        let (log, report) = Log::open(config).unwrap();
        assert!(report.damage.is_empty() && report.gaps.is_empty(), "{report:?}");
        fill(&log.handle(), 7, 900..1000);
        check(&log.handle(), 7, 1000);
    }
}

#[test]
fn without_its_cold_tier_such_a_log_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(tiered(dir.path(), BackendChoice::Auto)).unwrap();
    log.handle().append_blocking(partitions(1));
    fill(&log.handle(), 1, 0..200);
    until("sorting", || log.handle().stats().cold_segments > 0);
    log.shutdown().unwrap();
    let error = Log::open(small(dir.path())).err().expect("refused");
    assert!(error.to_string().contains("cold tier"), "{error}");
}

#[test]
fn each_class_is_kept_by_its_own_rules() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(tiered(dir.path(), BackendChoice::Auto)).unwrap();
    let handle = log.handle();
    handle.append_blocking(partitions(2));
    let set = Append { partitions: vec![PartitionOp::SetClass(PartitionId(1), ClassId(9))], ..Append::default() };
    assert!(matches!(handle.append_blocking(set), Outcome::Committed { .. }));
    handle.set_class_policy(ClassId(9), ClassPolicy { retention_bytes: Some(300 << 10), ..ClassPolicy::default() });
    fill(&handle, 2, 0..1200);
    until("retention", || handle.bounds(PartitionId(1)).unwrap().start > 300);
    // Nothing more goes while it is looked at: the log has heard of it when the append is answered.
    handle.set_class_policy(ClassId(9), ClassPolicy::default());
    handle.append_blocking(partitions(1));
    until("what is under way to end", || !handle.stats().cold_busy);
    let bounds = handle.bounds(PartitionId(1)).unwrap();
    let kept = (bounds.high_watermark - bounds.start) * 3000;
    assert!(kept >= 300 << 10, "only what is not missed goes: {kept} bytes are left");
    assert!(matches!(read(&handle, PartitionId(1), 0, 1), Err(ReadError::OutOfRange { .. })));
    assert_eq!(read_all(&handle, PartitionId(1), bounds.start).len() as i64, bounds.high_watermark - bounds.start);
    assert_eq!(handle.bounds(PartitionId(0)).unwrap().start, 0, "the other class stays");
    assert_eq!(read_all(&handle, PartitionId(0), 0).len(), 600);
    until("removal of the files", || {
        let files = std::fs::read_dir(dir.path().join("cold")).unwrap().count() as u64;
        files <= handle.stats().cold_segments + 1
    });
    log.shutdown().unwrap();

    let (log, _) = Log::open(tiered(dir.path(), BackendChoice::Auto)).unwrap();
    assert!(log.handle().bounds(PartitionId(1)).unwrap().start >= bounds.start, "a start that was shown never goes back");
}

fn keyed(partition: PartitionId, key: u32, value: Option<&[u8]>) -> Append {
    let mut builder = BatchBuilder::new(Codec::None);
    builder.push(1_000, Some(format!("key {key}").as_bytes()), value, &[]);
    let batches = builder.finish().unwrap().into();
    Append { entries: vec![AppendEntry { partition, batches, record_count: 1, max_timestamp: 1_000 }], ..Append::default() }
}

#[test]
fn of_a_compacted_class_the_last_value_of_each_key_stays_at_its_offset() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(tiered(dir.path(), BackendChoice::Auto)).unwrap();
    let handle = log.handle();
    handle.append_blocking(partitions(1));
    let compact = ClassPolicy { compact: true, delete: false, ..ClassPolicy::default() };
    handle.set_class_policy(ClassId(0), compact);
    for n in 0..1500 {
        offset(handle.append_blocking(keyed(PartitionId(0), n % 10, Some(&value(n)))));
    }
    until("compaction", || handle.stats().records_compacted >= 1000);
    let found = read_all(&handle, PartitionId(0), 0);
    assert!(found.len() < 500, "{} records are left", found.len());
    for key in 0..10_u32 {
        let last = 1490 + key;
        assert!(found.contains(&(i64::from(last), value(last))), "key {key}");
    }
    assert!(found.iter().all(|(offset, bytes)| *bytes == value(*offset as u32)), "what stays has its offset");
}

fn keyed_at(timestamp: i64, key: u32, value: &[u8]) -> Append {
    let mut builder = BatchBuilder::new(Codec::None);
    builder.push(timestamp, Some(format!("key {key}").as_bytes()), Some(value), &[]);
    let batches = builder.finish().unwrap().into();
    let partition = PartitionId(0);
    Append { entries: vec![AppendEntry { partition, batches, record_count: 1, max_timestamp: timestamp }], ..Append::default() }
}

#[test]
fn what_lies_beside_a_damaged_segment_is_compacted_without_it_and_all_as_one_when_it_is_whole_or_gone() {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64;
    for mended in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let mut config = tiered(dir.path(), BackendChoice::Auto);
        let cold = config.cold.as_mut().unwrap();
        (cold.merge_fan_in, cold.sort_memory_bytes, cold.merged_bytes) = (16, 1 << 20, 200 << 10);
        cold.scrub_bytes_per_s = None;
        let (log, _) = Log::open(config.clone()).unwrap();
        log.handle().append_blocking(partitions(1));
        for n in 0..1400 {
            // The first two segments hold old records only.
            let timestamp = if n < 700 { 1_000 } else { now };
            offset(log.handle().append_blocking(keyed_at(timestamp, n % 10, &value(n))));
        }
        until("sorting", || log.handle().stats().cold_segments >= 5 && !log.handle().stats().cold_busy);
        let sorted = log.handle().stats().cold_segments;
        log.shutdown().unwrap();
        let mut files: Vec<_> = std::fs::read_dir(dir.path().join("cold")).unwrap().map(|file| file.unwrap().path()).collect();
        files.sort();
        let path = files[1].clone();
        let whole = std::fs::read(&path).unwrap();
        let mut rotten = whole.clone();
        rotten[5000] ^= 1;
        std::fs::write(&path, &rotten).unwrap();

        let cold = config.cold.as_mut().unwrap();
        if mended {
            (cold.scrub_bytes_per_s, cold.scrub_every) = (Some(1 << 30), Duration::from_millis(20));
        }
        let (log, _) = Log::open(config).unwrap();
        let handle = log.handle();
        let compact = ClassPolicy { compact: true, delete: false, ..ClassPolicy::default() };
        handle.set_class_policy(ClassId(0), compact.clone());
        let both = |handle: &LogHandle| handle.stats().cold_segments <= 3 && !handle.stats().cold_busy;
        until("compaction of both sides", || both(&handle));
        let stats = handle.stats();
        assert!(stats.records_compacted > 0 && stats.cold_segments < sorted, "{stats:?}");
        assert_eq!(std::fs::read(&path).unwrap(), rotten, "it stays as it is");
        let (records, gaps) = read_around(&handle, PartitionId(0), 0);
        assert!(!gaps.is_empty(), "what is damaged is told from what was left out");
        assert!(records.iter().all(|(offset, bytes)| *bytes == value(*offset as u32)), "what stays has its offset");
        for key in 0..10 {
            assert!(records.iter().any(|(offset, _)| *offset == 1390 + key), "the last value of key {key}");
        }

        if mended {
            std::fs::write(&path, &whole).unwrap();
        } else {
            let age = ClassPolicy { delete: true, retention_ms: Some(24 * 3600 * 1000), ..compact };
            handle.set_class_policy(ClassId(0), age);
        }
        // What the WAL still holds is one more, when it is sorted.
        until("compaction of the rest", || handle.stats().cold_segments == 1);
        let start = handle.bounds(PartitionId(0)).unwrap().start;
        assert_eq!(start > 0, !mended);
        let (records, gaps) = read_around(&handle, PartitionId(0), start);
        assert!(gaps.is_empty(), "{gaps:?}");
        assert!(records.iter().all(|(offset, bytes)| *bytes == value(*offset as u32)));
        log.shutdown().unwrap();
    }
}

#[test]
fn the_neighbours_of_a_damaged_segment_are_merged_without_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = tiered(dir.path(), BackendChoice::Auto);
    let cold = config.cold.as_mut().unwrap();
    (cold.merge_fan_in, cold.sort_memory_bytes, cold.scrub_bytes_per_s) = (16, 1 << 20, None);
    let (log, _) = Log::open(config.clone()).unwrap();
    log.handle().append_blocking(partitions(1));
    fill(&log.handle(), 1, 0..600);
    until("sorting", || log.handle().stats().cold_segments >= 4 && !log.handle().stats().cold_busy);
    let before = log.handle().stats().cold_segments;
    log.shutdown().unwrap();
    let path = dir.path().join("cold/00000001.cold");
    let mut rotten = std::fs::read(&path).unwrap();
    rotten[5000] ^= 1;
    std::fs::write(&path, rotten).unwrap();
    let cold = config.cold.as_mut().unwrap();
    (cold.merge_fan_in, cold.merged_bytes) = (before as usize - 1, 1 << 30);
    let (log, _) = Log::open(config).unwrap();
    // All that are left but the damaged one.
    until("merging", || log.handle().stats().merged_to_bytes > 0);
}

/// Damage takes all that told of a partition, its number is given again, and then the sector is whole once more.
#[test]
fn an_earlier_life_of_a_partition_that_comes_back_is_not_taken_for_the_present_one() {
    let dir = tempfile::tempdir().unwrap();
    let config = tiered(dir.path(), BackendChoice::Plain);
    let (log, _) = Log::open(config.clone()).unwrap();
    let again = PartitionId(5);
    log.handle().append_blocking(partitions(4));
    for text in ["a lost record", "another", "a third"] {
        let Outcome::Committed { .. } = log
            .handle()
            .append_blocking(Append { partitions: vec![PartitionOp::Open(again)], ..append(again, &[text.as_bytes()]) })
        else {
            panic!("not committed")
        };
    }
    fill(&log.handle(), 4, 0..4);
    drop(log);
    let lost: Vec<_> = volume::data_frames(dir.path()).drain(1..4).collect();
    lost.iter().for_each(|placed| volume::flip(&placed.path, placed.at + 40));

    let (log, report) = Log::open(config.clone()).unwrap();
    assert!(report.damage.len() == 1 && log.handle().bounds(again).is_none(), "{report:?}");
    let opened = Append { partitions: vec![PartitionOp::Open(again)], ..append(again, &[b"first"]) };
    assert_eq!(offset(log.handle().append_blocking(opened)), 0);
    assert_eq!(offset(log.handle().append_blocking(append(again, &[b"second"]))), 1);
    drop(log);
    lost.iter().for_each(|placed| volume::flip(&placed.path, placed.at + 40));

    let expected = [(0, b"first".to_vec()), (1, b"second".to_vec())];
    let (log, report) = Log::open(config.clone()).unwrap();
    assert!(report.damage.is_empty() && report.gaps.iter().all(|gap| gap.partition != again), "{report:?}");
    assert_eq!(read_all(&log.handle(), again, 0), expected);
    fill(&log.handle(), 4, 4..900);
    until("recycling", || log.handle().stats().recycled >= 4);
    assert_eq!(read_all(&log.handle(), again, 0), expected);
    log.shutdown().unwrap();
    let (log, _) = Log::open(config).unwrap();
    assert_eq!(read_all(&log.handle(), again, 0), expected);
}
