//! The log over a real directory: what is acknowledged comes back, through both backends, after restarts.

mod support;
use support::*;
use weir_storage::*;

fn backends() -> [BackendChoice; 2] {
    [BackendChoice::Auto, BackendChoice::Plain]
}

#[test]
fn acknowledged_records_come_back_from_memory_from_disk_and_after_a_restart() {
    for backend in backends() {
        let dir = tempfile::tempdir().unwrap();
        let config = LogConfig { backend, ..small(dir.path()) };
        let (log, report) = Log::open(config.clone()).unwrap();
        assert!(report.created);
        let handle = log.handle();
        assert!(matches!(handle.append_blocking(open_partition(P)), Outcome::Committed { .. }));
        let mut expected = Vec::new();
        for n in 0..200_u32 {
            // Incompressible enough that segments fill and the tail cache overflows.
            let value: Vec<u8> = (0..5000_u32).map(|i| (i.wrapping_mul(n.wrapping_mul(2_654_435_761) | 1) >> 13) as u8).collect();
            let base = offset(handle.append_blocking(append(P, &[&value, b"second"])));
            assert_eq!(base, i64::from(n) * 2);
            expected.push((base, value));
            expected.push((base + 1, b"second".to_vec()));
        }
        assert_eq!(handle.bounds(P), Some(PartitionBounds { start: 0, high_watermark: 400 }));
        assert_eq!(read_all(&handle, P, 0), expected);
        assert_eq!(read_all(&handle, P, 151), expected[151..]);
        assert!(handle.stats().reads_from_disk > 0 && handle.stats().reads_from_memory > 0);
        log.shutdown().unwrap();

        let (log, report) = Log::open(config).unwrap();
        assert!(report.clean && !report.created && report.damage.is_empty() && !report.torn_tail, "{report:?}");
        assert_eq!(read_all(&log.handle(), P, 0), expected);
        assert_eq!(offset(log.handle().append_blocking(append(P, &[b"x"]))), 400);
    }
}

#[test]
fn a_batch_sent_twice_is_stored_once_and_gets_its_offset_again_even_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(small(dir.path())).unwrap();
    let handle = log.handle();
    handle.append_blocking(open_partition(P));
    let marked = |sequence, epoch| Append { mark: Some(mark(sequence, 2, epoch)), ..append(P, &[b"a", b"b"]) };
    assert_eq!(offset(handle.append_blocking(marked(0, 0))), 0);
    assert_eq!(offset(handle.append_blocking(marked(2, 0))), 2);
    let again = Outcome::Duplicate { base_offset: 0, record_count: 2 };
    assert_eq!(handle.append_blocking(marked(0, 0)), again);
    let gap = Outcome::Refused(AppendError::SequenceGap { expected: 4 });
    assert_eq!(handle.append_blocking(marked(6, 0)), gap);
    log.shutdown().unwrap();

    let (log, _) = Log::open(small(dir.path())).unwrap();
    let handle = log.handle();
    assert_eq!(handle.append_blocking(marked(0, 0)), again);
    assert_eq!(handle.append_blocking(marked(6, 0)), gap);
    assert_eq!(offset(handle.append_blocking(marked(4, 3))), 4);
    assert_eq!(handle.append_blocking(marked(6, 2)), Outcome::Refused(AppendError::Fenced { current_epoch: 3 }));
    assert_eq!(handle.producer(mark(0, 0, 0).key), Some(ProducerState { epoch: 3, next_sequence: 6 }));
    assert_eq!(handle.bounds(P).unwrap().high_watermark, 6);
}

#[test]
fn metadata_and_partitions_commit_with_the_records_and_survive() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(small(dir.path())).unwrap();
    let handle = log.handle();
    let put = |key: &[u8], value: &[u8]| MetaOp::Put { key: key.to_vec(), value: value.to_vec() };
    let everything = Append {
        partitions: vec![PartitionOp::Open(P), PartitionOp::Open(PartitionId(2))],
        meta: vec![put(b"topic/a", b"1"), put(b"topic/b", b"2"), put(b"zone", b"3"), MetaOp::Delete { key: b"zone".to_vec() }],
        ..append(P, &[b"first"])
    };
    assert_eq!(offset(handle.append_blocking(everything)), 0);
    handle.append_blocking(Append { partitions: vec![PartitionOp::Drop(PartitionId(2))], ..Append::default() });
    let unknown = handle.append_blocking(append(PartitionId(2), &[b"x"]));
    assert_eq!(unknown, Outcome::Refused(AppendError::UnknownPartition(PartitionId(2))));
    log.shutdown().unwrap();

    let (log, report) = Log::open(small(dir.path())).unwrap();
    assert_eq!(report.partitions, 1);
    let scan = log.handle().meta_scan(b"topic/");
    assert_eq!(scan, [(b"topic/a".to_vec(), b"1".to_vec()), (b"topic/b".to_vec(), b"2".to_vec())]);
    assert_eq!(log.handle().meta(b"zone"), None);
    assert_eq!(log.handle().bounds(PartitionId(2)), None);
}

#[test]
fn search_by_time_finds_the_first_record_that_is_not_older() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(small(dir.path())).unwrap();
    let handle = log.handle();
    handle.append_blocking(open_partition(P));
    for n in 0..100 {
        let entries = vec![entry(P, n * 10, &[&[0; 3000], b"b"])];
        handle.append_blocking(Append { entries, ..Append::default() });
    }
    let find = |timestamp| {
        let (reply, answer) = std::sync::mpsc::channel();
        handle.offset_for_timestamp(P, timestamp, Box::new(move |found| reply.send(found).unwrap()));
        answer.recv().unwrap().unwrap()
    };
    assert_eq!(find(-1), Some((0, 0)));
    assert_eq!(find(0), Some((0, 0)));
    assert_eq!(find(1), Some((2, 10)));
    assert_eq!(find(495), Some((100, 500)));
    assert_eq!(find(990), Some((198, 990)));
    assert_eq!(find(991), None);
}

#[test]
fn retention_recycles_whole_segments_and_tells_readers_the_valid_range() {
    let dir = tempfile::tempdir().unwrap();
    let config = LogConfig { retention_bytes: Some(3 * (256 << 10)), compress_from_bytes: None, ..small(dir.path()) };
    let (log, _) = Log::open(config.clone()).unwrap();
    let handle = log.handle();
    handle.append_blocking(open_partition(P));
    for _ in 0..300 {
        offset(handle.append_blocking(append(P, &[&[7; 6000]])));
    }
    let bounds = handle.bounds(P).unwrap();
    assert!(bounds.start > 0 && bounds.high_watermark == 300, "{bounds:?}");
    assert!(handle.stats().recycled > 0);
    let below = read(&handle, P, 0, 1000);
    assert!(matches!(below, Err(ReadError::OutOfRange { start, high_watermark: 300 }) if start > 0));
    assert_eq!(read_all(&handle, P, bounds.start).len() as i64, 300 - bounds.start);
    log.shutdown().unwrap();
    let (log, _) = Log::open(config).unwrap();
    let after = log.handle().bounds(P).unwrap();
    assert!(after.start >= bounds.start && after.high_watermark == 300, "{after:?}");
    assert_eq!(read_all(&log.handle(), P, after.start).len() as i64, 300 - after.start);
}

/// Frames so large that only the directories of older segments are read.
#[test]
fn of_older_segments_with_large_frames_a_restart_reads_little_and_finds_everything() {
    for backend in backends() {
        let dir = tempfile::tempdir().unwrap();
        let sizes =
            LogConfig { segment_bytes: 2 << 20, frame_bytes_max: 512 << 10, compress_from_bytes: None, ..small(dir.path()) };
        let config = LogConfig { backend, ..sizes };
        let (log, _) = Log::open(config.clone()).unwrap();
        let handle = log.handle();
        let ids: Vec<PartitionId> = (0..80).map(PartitionId).collect();
        handle.append_blocking(Append { partitions: ids.iter().map(|id| PartitionOp::Open(*id)).collect(), ..Append::default() });
        for n in 0..60_u8 {
            // Some directories take more than a block, as the one before says; some do, and it does not.
            let partitions = if n % 20 < 6 || n % 5 == 0 { &ids[..] } else { &ids[1..2] };
            let value = vec![n; 200_000 / partitions.len()];
            let entries = partitions.iter().map(|id| entry(*id, 1_000, &[&value])).collect();
            offset(handle.append_blocking(Append { entries, ..Append::default() }));
        }
        let expected: Vec<_> = ids.iter().map(|id| read_all(&handle, *id, 0)).collect();
        log.shutdown().unwrap();

        let (log, report) = Log::open(config).unwrap();
        assert!(report.clean && report.damage.is_empty() && report.segments >= 6, "{report:?}");
        assert!(report.verified_bytes <= 2 << 20 && report.bytes < 6 << 20, "{report:?}");
        assert!(report.read_for >= report.verified_for && !report.verified_for.is_zero(), "{report:?}");
        let found: Vec<_> = ids.iter().map(|id| read_all(&log.handle(), *id, 0)).collect();
        assert!(found == expected, "other records than before");
    }
}

#[test]
fn a_second_node_on_the_same_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (_log, _) = Log::open(small(dir.path())).unwrap();
    match Log::open(small(dir.path())) {
        Err(OpenError::InUse { pid, .. }) => assert_eq!(pid, std::process::id().to_string()),
        other => panic!("{:?}", other.map(|_| ())),
    }
}

#[test]
fn a_directory_of_another_node_and_a_lost_superblock_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let config = LogConfig { node_id: Some([1; 16]), ..small(dir.path()) };
    let (log, _) = Log::open(config.clone()).unwrap();
    log.handle().append_blocking(open_partition(P));
    log.shutdown().unwrap();
    let other = LogConfig { node_id: Some([2; 16]), ..config.clone() };
    assert!(matches!(Log::open(other), Err(OpenError::ForeignNode { .. })));
    std::fs::remove_file(dir.path().join("superblock")).unwrap();
    assert!(matches!(Log::open(config), Err(OpenError::SuperblockMissing)));
}

#[test]
fn a_missing_segment_and_a_doubled_one_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let config = LogConfig { compress_from_bytes: None, ..small(dir.path()) };
    let (log, _) = Log::open(config.clone()).unwrap();
    log.handle().append_blocking(open_partition(P));
    for _ in 0..150 {
        offset(log.handle().append_blocking(append(P, &[&[7; 6000]])));
    }
    log.shutdown().unwrap();
    let file = |n: u32| dir.path().join(format!("wal/{n:05}.wal"));
    std::fs::copy(file(1), file(77)).unwrap();
    assert!(matches!(Log::open(config.clone()), Err(OpenError::DoubledSegment { .. })));
    std::fs::remove_file(file(77)).unwrap();
    std::fs::rename(file(1), dir.path().join("aside")).unwrap();
    assert!(matches!(Log::open(config.clone()), Err(OpenError::MissingSegment { sequence: 2 })));
    std::fs::rename(dir.path().join("aside"), file(1)).unwrap();
    let (log, _) = Log::open(config).unwrap();
    assert_eq!(read_all(&log.handle(), P, 0).len(), 150);
}
