//! Two copies on real files: in step, one gone, told apart at the start, filled while the log runs.
#![forbid(unsafe_code)]

mod support;
#[path = "support/volume.rs"]
mod volume;

use std::path::Path;
use std::time::{Duration, Instant};

use support::*;
use weir_storage::check::{CheckOptions, Severity, check};
use weir_storage::stats::LogStats;
use weir_storage::{BackendChoice, ColdConfig, CopyState, Durability, Log, LogConfig, LogHandle, OpenError, Outcome};

fn pair(root: &Path) -> LogConfig {
    LogConfig { mirror_dir: Some(root.join("b")), ..small(&root.join("a")) }
}

fn durable(outcome: Outcome) -> Durability {
    match outcome {
        Outcome::Committed { durable, .. } => durable,
        other => panic!("not committed: {other:?}"),
    }
}

fn in_step(handle: &LogHandle) {
    let until = Instant::now() + Duration::from_secs(60);
    while handle.mirror_status().in_step() < 2 {
        assert!(Instant::now() < until, "{:?}", handle.mirror_status());
        std::thread::yield_now();
    }
}

fn write_some(handle: &LogHandle, n: usize) {
    for _ in 0..n {
        offset(handle.append_blocking(append(P, &[&[7; 5000]])));
    }
}

fn error(result: Result<(Log, weir_storage::RecoveryReport), OpenError>) -> OpenError {
    result.map(drop).expect_err("it must be refused")
}

#[test]
fn both_copies_are_equal_and_one_alone_has_everything() {
    let root = tempfile::tempdir().unwrap();
    let (log, report) = Log::open(pair(root.path())).unwrap();
    assert!(report.created);
    let handle = log.handle();
    handle.append_blocking(open_partition(P));
    assert_eq!(durable(handle.append_blocking(append(P, &[b"first"]))), Durability::TwoCopies);
    write_some(&handle, 100);
    log.shutdown().unwrap();
    for entry in std::fs::read_dir(root.path().join("a/wal")).unwrap() {
        let path = entry.unwrap().path();
        let other = root.path().join("b/wal").join(path.file_name().unwrap());
        assert!(std::fs::read(&path).unwrap() == std::fs::read(other).unwrap(), "{path:?}");
    }
    // The disk of the first directory is lost.
    std::fs::remove_dir_all(root.path().join("a")).unwrap();
    let refused = error(Log::open(pair(root.path())));
    assert!(matches!(refused, OpenError::MirrorMissing { .. }), "{refused}");
    let (log, _) = Log::open(LogConfig { accept_degraded: true, ..pair(root.path()) }).unwrap();
    assert_eq!(read_all(&log.handle(), P, 0).len(), 101);
    in_step(&log.handle());
    assert_eq!(durable(log.handle().append_blocking(append(P, &[b"x"]))), Durability::TwoCopies);
}

#[test]
fn a_single_log_gets_a_mirror_while_it_runs_and_lets_go_of_it() {
    let root = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(small(&root.path().join("a"))).unwrap();
    let handle = log.handle();
    handle.append_blocking(open_partition(P));
    write_some(&handle, 200);
    assert_eq!(durable(handle.append_blocking(append(P, &[b"alone"]))), Durability::OneCopy);
    handle.mirror_attach(&root.path().join("b")).unwrap();
    write_some(&handle, 100);
    in_step(&handle);
    assert_eq!(durable(handle.append_blocking(append(P, &[b"two"]))), Durability::TwoCopies);
    assert!(handle.mirror_attach(&root.path().join("c")).is_err(), "two are enough");
    let first = handle.mirror_status().copies[0].clone();
    handle.mirror_detach(first.copy_id).unwrap();
    assert_eq!(durable(handle.append_blocking(append(P, &[b"alone again"]))), Durability::OneCopy);
    assert_eq!(handle.mirror_status().copies[0].state, CopyState::Offline);
    log.shutdown().unwrap();

    // What was let go of is stale and knows nothing of it; the other one knows.
    let refused = error(Log::open(small(&root.path().join("a"))));
    assert!(matches!(refused, OpenError::MirrorMissing { .. }), "{refused}");
    let (log, _) = Log::open(pair(root.path())).unwrap();
    assert_eq!(read_all(&log.handle(), P, 0).len(), 303);
    in_step(&log.handle());
    log.shutdown().unwrap();
    let (log, _) = Log::open(pair(root.path())).unwrap();
    assert_eq!(log.handle().mirror_status().in_step(), 2);
}

#[test]
fn a_foreign_disk_and_two_that_went_apart_are_named() {
    let root = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(pair(root.path())).unwrap();
    log.handle().append_blocking(open_partition(P));
    log.shutdown().unwrap();
    let (log, _) = Log::open(small(&root.path().join("other"))).unwrap();
    log.handle().append_blocking(open_partition(P));
    log.shutdown().unwrap();
    let foreign = LogConfig { mirror_dir: Some(root.path().join("other")), ..pair(root.path()) };
    let refused = error(Log::open(foreign));
    assert!(matches!(refused, OpenError::MirrorForeign { .. }), "{refused}");
    for dir in ["a", "b"] {
        let alone = LogConfig { accept_degraded: true, ..small(&root.path().join(dir)) };
        let (log, _) = Log::open(alone).unwrap();
        log.shutdown().unwrap();
    }
    let refused = error(Log::open(pair(root.path())));
    assert!(matches!(refused, OpenError::MirrorSplit), "{refused}");
}

#[test]
fn a_frame_that_rotted_on_one_copy_is_read_from_the_other() {
    let root = tempfile::tempdir().unwrap();
    let config = LogConfig { tail_cache_bytes: 0, compress_from_bytes: None, ..pair(root.path()) };
    let (log, _) = Log::open(config.clone()).unwrap();
    let handle = log.handle();
    handle.append_blocking(open_partition(P));
    write_some(&handle, 300);
    let before = read_all(&handle, P, 0);
    log.shutdown().unwrap();
    // Everything in the first file of one copy but its header.
    let path = root.path().join("a/wal/00000.wal");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[8192..].iter_mut().for_each(|byte| *byte ^= 1);
    std::fs::write(&path, bytes).unwrap();
    let (log, report) = Log::open(config).unwrap();
    assert!(report.damage.is_empty() && report.gaps.is_empty() && report.mended > 0, "{report:?}");
    assert_eq!(read_all(&log.handle(), P, 0), before);
}

#[test]
fn a_frame_that_went_astray_on_one_copy_is_read_from_the_other() {
    let root = tempfile::tempdir().unwrap();
    let config = LogConfig { tail_cache_bytes: 0, compress_from_bytes: None, ..pair(root.path()) };
    let (log, _) = Log::open(config).unwrap();
    let handle = log.handle();
    handle.append_blocking(open_partition(P));
    let values: Vec<Vec<u8>> = (0..20).map(|n| vec![n as u8; if n % 2 == 0 { 5000 } else { 10 }]).collect();
    for value in &values {
        offset(handle.append_blocking(append(P, &[value])));
    }
    // Frame 0 has opened the partition. Each copy is wrong elsewhere, so one of the two is met whichever is asked first.
    volume::lead_astray(&root.path().join("a"), 5, 14);
    volume::lead_astray(&root.path().join("b"), 9, 18);
    let found: Vec<Vec<u8>> = read_all(&handle, P, 0).into_iter().map(|(_, value)| value).collect();
    assert_eq!(found, values);
}

#[test]
fn a_check_of_one_copy_says_that_there_is_another() {
    let root = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(pair(root.path())).unwrap();
    log.handle().append_blocking(open_partition(P));
    write_some(&log.handle(), 100);
    log.shutdown().unwrap();
    for dir in ["a", "b"] {
        let report = check(&root.path().join(dir), CheckOptions::default(), &|_| {}).unwrap();
        let note = report.findings.iter().find(|finding| finding.what.contains("one of two copies"));
        assert!(report.is_clean() && note.is_some_and(|note| note.severity == Severity::Note), "{report:?}");
        assert_eq!(report.records, 100);
    }
}

#[test]
fn what_a_newer_program_wrote_on_one_copy_is_refused_and_left_alone() {
    let root = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(pair(root.path())).unwrap();
    log.handle().append_blocking(open_partition(P));
    log.shutdown().unwrap();
    for (dir, path, at) in [("a", "superblock", 14), ("b", "superblock", 14), ("b", "wal/00000.wal", 12)] {
        let path = root.path().join(dir).join(path);
        let before = std::fs::read(&path).unwrap();
        let mut newer = before.clone();
        newer[at] += 1;
        let crc = crc32c::crc32c(&newer[12..4096]);
        newer[8..12].copy_from_slice(&crc.to_le_bytes());
        std::fs::write(&path, &newer).unwrap();
        let refused = error(Log::open(pair(root.path())));
        assert!(matches!(refused, OpenError::NewerFormat { .. } | OpenError::NewerSegment { .. }), "{refused}");
        assert!(std::fs::read(&path).unwrap() == newer, "{path:?} was written to");
        std::fs::write(&path, before).unwrap();
    }
    assert_eq!(Log::open(pair(root.path())).unwrap().0.handle().mirror_status().in_step(), 2);
}

/// Changes bytes where they lie, as a disk does that rots.
fn rot(path: &Path, range: std::ops::Range<u64>) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let mut bytes = vec![0; (range.end - range.start) as usize];
    file.read_exact_at(&mut bytes, range.start).unwrap();
    bytes.iter_mut().for_each(|byte| *byte ^= 1);
    file.write_all_at(&bytes, range.start).unwrap();
    file.sync_all().unwrap();
}

fn until(what: &str, log: &LogHandle, mut holds: impl FnMut(&LogStats) -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !holds(&log.stats()) {
        assert!(Instant::now() < end, "never: {what}: {:?}", log.stats());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn what_rots_on_one_copy_of_the_log_while_it_runs_is_written_anew_from_the_other() {
    let root = tempfile::tempdir().unwrap();
    // Nothing is sorted, so full segments stay; and there is always a round of the scrub.
    let cold = ColdConfig {
        sort_bytes: 1 << 40,
        burst_bytes: 1 << 40,
        wal_bytes_max: 1 << 40,
        sort_age: Duration::from_secs(1 << 20),
        scrub_bytes_per_s: Some(1 << 32),
        scrub_every: Duration::from_millis(20),
        ..ColdConfig::default()
    };
    for backend in [BackendChoice::Auto, BackendChoice::Plain] {
        let config = LogConfig {
            cold: Some(cold.clone()),
            tail_cache_bytes: 0,
            compress_from_bytes: None,
            spare_segments: 8,
            backend,
            ..pair(&root.path().join(format!("{backend:?}")))
        };
        let dir = |name: &str| config.dir.parent().unwrap().join(name);
        let (log, _) = Log::open(config.clone()).unwrap();
        let handle = log.handle();
        handle.append_blocking(open_partition(P));
        // A log that is short of spares sorts what it has.
        until("spares", &handle, |stats| stats.spares >= 8);
        write_some(&handle, 150);
        until("a round", &handle, |stats| stats.wal_scrubbed_bytes > 2 << 20);
        assert_eq!((handle.stats().wal_frames_damaged, handle.stats().wal_frames_lost), (0, 0));
        // Header, frames in the middle, and different frames of one segment on either copy.
        let first = |name: &str| dir(name).join("wal/00000.wal");
        let whole = std::fs::read(first("a")).unwrap();
        rot(&first("b"), 100..200);
        rot(&first("b"), 64 << 10..100 << 10);
        rot(&first("a"), 128 << 10..160 << 10);
        until("mending", &handle, |stats| stats.wal_frames_mended > 5 && stats.wal_frames_mended == stats.wal_frames_damaged);
        let scrubbed = handle.stats().wal_scrubbed_bytes;
        until("another round", &handle, |stats| stats.wal_scrubbed_bytes > scrubbed + (2 << 20));
        for name in ["a", "b"] {
            assert!(std::fs::read(first(name)).unwrap() == whole, "{name} is not what it was");
        }
        assert_eq!(handle.stats().wal_frames_lost, 0);
        assert_eq!(read_all(&handle, P, 0).len(), 150);
        // The same on both.
        let mended = handle.stats().wal_frames_mended;
        rot(&first("a"), 200 << 10..204 << 10);
        rot(&first("b"), 200 << 10..204 << 10);
        until("a gap that is told", &handle, |stats| stats.wal_frames_lost == 1);
        assert_eq!((handle.stats().wal_frames_mended, handle.stats().recycled), (mended, 0));
        log.shutdown().unwrap();
    }
}
