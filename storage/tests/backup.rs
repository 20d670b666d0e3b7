//! Backups over real directories: made while the log is written, sorted, merged and recycled, and of stopped ones; and what a restored
//! directory gives back.

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use support::*;
use weir_storage::backup::{self, BackupError, BackupOptions, BackupReport};
use weir_storage::check::{CheckOptions, check};
use weir_storage::*;

/// Partitions, and the one whose class keeps little.
const COUNT: u32 = 5;
const THIN: PartitionId = PartitionId(4);
const THIN_CLASS: ClassId = ClassId(9);

fn tiered(dir: &Path, backend: BackendChoice) -> LogConfig {
    tiered_within(3 << 20, dir, backend)
}

fn tiered_within(wal_bytes_max: u64, dir: &Path, backend: BackendChoice) -> LogConfig {
    let cold = ColdConfig {
        sort_bytes: 256 << 10,
        sort_memory_bytes: 200 << 10,
        wal_bytes_max,
        merge_fan_in: 4,
        merged_bytes: 1 << 20,
        ..ColdConfig::default()
    };
    LogConfig { backend, cold: Some(cold), ..small(dir) }
}

fn value(n: u32) -> Vec<u8> {
    (0..3000_u32).map(|i| (i.wrapping_mul(n.wrapping_mul(2_654_435_761) | 1) >> 13) as u8).collect()
}

fn open(config: LogConfig) -> Log {
    let (log, report) = Log::open(config).unwrap();
    assert!(report.damage.is_empty() && report.gaps.is_empty(), "{report:?}");
    let policy = ClassPolicy { retention_bytes: Some(300 << 10), ..ClassPolicy::default() };
    log.handle().set_class_policy(THIN_CLASS, policy);
    log
}

fn create(log: &Log) {
    let mut partitions: Vec<PartitionOp> = (0..COUNT).map(|id| PartitionOp::Open(PartitionId(id))).collect();
    partitions.push(PartitionOp::SetClass(THIN, THIN_CLASS));
    let append = Append { partitions, ..Append::default() };
    assert!(matches!(log.handle().append_blocking(append), Outcome::Committed { .. }));
}

fn fill(log: &LogHandle, appends: std::ops::Range<u32>) {
    for n in appends {
        offset(log.append_blocking(append(PartitionId(n % COUNT), &[&value(n)])));
    }
}

fn back_up(log: &LogHandle, to: &Path, options: BackupOptions) -> Result<BackupReport, BackupError> {
    let mut pinned = 0;
    let report = log.backup(to, options, &AtomicBool::new(false), &mut || pinned += 1, &mut |_| {});
    assert!(report.is_err() || pinned == 1);
    report
}

fn restore(from: &Path, to: &Path, generation: Option<u64>) -> Result<backup::RestoreReport, BackupError> {
    backup::restore(from, to, generation, &mut |_| {})
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < Duration::from_secs(60), "{what} does not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The log has at least the first `least` records and at most the first `most`, each where it was, and goes on.
fn holds(log: &LogHandle, least: u32, most: u32) {
    // Retention goes on in a restored log, too; it must not overtake whoever reads from the start.
    let (mut start, mut since) = (-1, Instant::now());
    until("retention to come to rest", || {
        let now = log.bounds(THIN).expect("the partition is there").start;
        if now != start || log.stats().cold_busy {
            (start, since) = (now, Instant::now());
        }
        since.elapsed() > Duration::from_millis(300)
    });
    let mut found = 0;
    for id in (0..COUNT).map(PartitionId) {
        let bounds = log.bounds(id).expect("the partition is there");
        assert!(id == THIN || bounds.start == 0);
        let records = read_all(log, id, bounds.start);
        assert_eq!(records.len() as i64, bounds.high_watermark - bounds.start, "partition {id}");
        for (at, (offset, bytes)) in records.iter().enumerate() {
            let n = *offset as u32 * COUNT + id.0;
            assert!(*offset == bounds.start + at as i64 && *bytes == value(n), "partition {id}, offset {offset}");
        }
        found += bounds.high_watermark as u32;
    }
    assert!((least..=most).contains(&found), "{found} records of {least} to {most}");
    fill(log, found..found + 50);
    assert_eq!(read_all(log, PartitionId(0), 0).len() as u32, (found + 50).div_ceil(COUNT));
}

fn sound(dir: &Path) {
    let report = check(dir, CheckOptions::default(), &|_| {}).unwrap();
    assert!(report.is_clean(), "{:?} {:?}", report.findings, report.lost);
}

/// Ends the load however the test ends.
struct EndLoad<'a>(&'a AtomicBool);

impl Drop for EndLoad<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn backups_under_load_give_back_everything_that_was_acknowledged_before() {
    for backend in [BackendChoice::Auto, BackendChoice::Plain] {
        let root = tempfile::tempdir().unwrap();
        let to = root.path().join("backup");
        let log = open(tiered(&root.path().join("node"), backend));
        create(&log);
        let (acked, stop) = (AtomicU32::new(0), AtomicBool::new(false));
        let mut made = Vec::new();
        std::thread::scope(|scope| {
            let end = EndLoad(&stop);
            scope.spawn(|| {
                for n in 0.. {
                    fill(&log.handle(), n..n + 1);
                    acked.store(n + 1, Ordering::SeqCst);
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    // The sorter shares two cores with everything else here.
                    std::thread::sleep(Duration::from_micros(300));
                }
            });
            for round in 1..=4 {
                let from = acked.load(Ordering::SeqCst);
                until("load", || acked.load(Ordering::SeqCst) > from + 400);
                let before = acked.load(Ordering::SeqCst);
                let options = BackupOptions { bandwidth_bytes_max: Some(16 << 20), ..BackupOptions::default() };
                let report = back_up(&log.handle(), &to, options).unwrap();
                assert_eq!(report.generation, round);
                made.push((report, before, acked.load(Ordering::SeqCst)));
            }
            let handle = log.handle();
            until("recycling", || handle.stats().recycled > 4);
            until("merging", || handle.stats().merged_to_bytes > 0);
            until("retention", || handle.stats().segments_expired > 0);
            drop(end);
        });
        log.shutdown().unwrap();
        assert!(made.iter().any(|(report, ..)| report.copied_bytes < report.bytes), "{made:?}");
        assert!(made.iter().all(|(report, ..)| report.source_damage.is_empty()), "{made:?}");
        let report = backup::verify(&to, None, &mut |_| {}).unwrap();
        assert_eq!((report.problems, report.generations), (vec![], vec![1, 2, 3, 4]));
        for (report, before, after) in made {
            let dir = root.path().join(format!("restored {}", report.generation));
            let restored = restore(&to, &dir, Some(report.generation)).unwrap();
            assert_eq!((restored.lsn, restored.bytes), (report.lsn, report.bytes));
            sound(&dir);
            let log = open(tiered(&dir, backend));
            holds(&log.handle(), before, after + 1);
            log.shutdown().unwrap();
            sound(&dir);
        }
    }
}

#[test]
fn a_log_without_a_cold_tier_is_backed_up_while_retention_recycles() {
    let root = tempfile::tempdir().unwrap();
    let (node, to) = (root.path().join("node"), root.path().join("backup"));
    let config = |dir: &Path| LogConfig { retention_bytes: Some(1 << 20), ..small(dir) };
    let (log, _) = Log::open(config(&node)).unwrap();
    create(&log);
    fill(&log.handle(), 0..600);
    let report = std::thread::scope(|scope| {
        let backup = scope.spawn(|| back_up(&log.handle(), &to, BackupOptions::default()).unwrap());
        fill(&log.handle(), 600..900);
        backup.join().unwrap()
    });
    until("recycling", || log.handle().stats().recycled > 2);
    log.shutdown().unwrap();
    let dir = root.path().join("restored");
    assert_eq!(restore(&to, &dir, None).unwrap().lsn, report.lsn);
    sound(&dir);
    let (log, _) = Log::open(config(&dir)).unwrap();
    let bounds = log.handle().bounds(PartitionId(0)).unwrap();
    assert!(bounds.start > 0 && bounds.high_watermark >= 120, "{bounds:?}");
    let records = read_all(&log.handle(), PartitionId(0), bounds.start);
    assert!(records.iter().all(|(offset, bytes)| *bytes == value(*offset as u32 * COUNT)));
}

/// A stopped node with cold segments, and one backup of it.
fn stopped(root: &Path) -> (PathBuf, PathBuf) {
    let (node, to) = (root.join("node"), root.join("backup"));
    let log = open(tiered(&node, BackendChoice::Auto));
    create(&log);
    fill(&log.handle(), 0..700);
    until("sorting", || log.handle().stats().cold_segments > 0);
    log.shutdown().unwrap();
    std::fs::create_dir_all(node.join("plugins")).unwrap();
    std::fs::write(node.join("plugins/filter-1.0.0-abc.wasm"), b"a component").unwrap();
    backup::backup_stopped(&node, &to, BackupOptions::default(), &mut |_| {}).unwrap();
    (node, to)
}

fn files_of(to: &Path) -> BTreeMap<String, u64> {
    let entries = std::fs::read_dir(to.join("files")).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().len())).collect()
}

#[test]
fn a_stopped_directory_is_backed_up_under_its_lock_and_only_what_is_new_is_copied() {
    let root = tempfile::tempdir().unwrap();
    let (node, to) = stopped(root.path());
    let first = files_of(&to);
    let again = backup::backup_stopped(&node, &to, BackupOptions::default(), &mut |_| panic!("nothing is copied")).unwrap();
    assert_eq!((again.generation, again.copied_files, again.copied_bytes), (2, 0, 0));
    assert_eq!(files_of(&to), first);

    let log = open(tiered(&node, BackendChoice::Auto));
    let refused = backup::backup_stopped(&node, &to, BackupOptions::default(), &mut |_| {}).unwrap_err();
    assert!(matches!(refused, BackupError::Volume(OpenError::InUse { .. })), "{refused}");
    fill(&log.handle(), 700..720);
    let report = back_up(&log.handle(), &to, BackupOptions { keep: Some(1), ..BackupOptions::default() }).unwrap();
    assert_eq!(report.generations_removed, [1, 2]);
    let second = files_of(&to);
    let new: u64 = second.iter().filter(|(name, _)| !first.contains_key(*name)).map(|(_, bytes)| bytes).sum();
    assert_eq!((report.copied_bytes, report.bytes), (new, second.values().sum()));
    assert!(new < report.bytes / 4, "{new} of {} bytes", report.bytes);
    log.shutdown().unwrap();

    let dir = root.path().join("restored");
    std::fs::create_dir(&dir).unwrap();
    restore(&to, &dir, None).unwrap();
    assert_eq!(std::fs::read(dir.join("plugins/filter-1.0.0-abc.wasm")).unwrap(), b"a component");
    holds(&open(tiered(&dir, BackendChoice::Auto)).handle(), 720, 720);
}

#[test]
fn a_changed_byte_in_any_file_is_found_and_nothing_of_it_is_opened() {
    let root = tempfile::tempdir().unwrap();
    let (_, to) = stopped(root.path());
    let mut paths: Vec<PathBuf> = ["wal-", "cold-", "other-"]
        .iter()
        .map(|kind| {
            let files = files_of(&to);
            let name = files.keys().find(|name| name.starts_with(kind)).expect("there is one of each kind");
            to.join("files").join(name)
        })
        .collect();
    paths.push(to.join("generations/0000000001.manifest"));
    for (at, path) in paths.iter().enumerate() {
        let whole = std::fs::read(path).unwrap();
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 0x10;
        let mut longer = whole.clone();
        longer.push(0);
        let bad = [Some(flipped), Some(whole[..whole.len() - 1].to_vec()), Some(longer), None];
        for (how, bytes) in bad.into_iter().enumerate() {
            let what = format!("{} changed in way {how}", path.display());
            match bytes {
                Some(bytes) => std::fs::write(path, bytes).unwrap(),
                None if path.ends_with("0000000001.manifest") => continue,
                None => std::fs::remove_file(path).unwrap(),
            }
            let report = backup::verify(&to, None, &mut |_| {}).unwrap();
            let name = path.file_name().unwrap().to_str().unwrap();
            assert!(report.problems.len() == 1 && report.problems[0].file.ends_with(name), "{what}: {:?}", report.problems);
            let dir = root.path().join(format!("restored {at} {how}"));
            let error = restore(&to, &dir, None).unwrap_err();
            assert!(matches!(error, BackupError::Damaged { .. } | BackupError::Manifest { .. }), "{what}: {error}");
            assert!(!dir.join("superblock").exists());
            if dir.exists() {
                let opened = Log::open(tiered(&dir, BackendChoice::Auto));
                assert!(opened.is_err(), "{what}: half a restore was opened");
                assert!(matches!(restore(&to, &dir, None), Err(BackupError::TargetNotEmpty { .. })));
            }
            std::fs::write(path, &whole).unwrap();
        }
    }
    assert_eq!(backup::verify(&to, None, &mut |_| {}).unwrap().problems, []);
}

#[test]
fn what_is_no_backup_or_another_logs_is_left_alone() {
    let root = tempfile::tempdir().unwrap();
    let (node, to) = stopped(root.path());
    let other = root.path().join("other");
    let log = open(tiered(&other, BackendChoice::Auto));
    let before = files_of(&to);
    let foreign = back_up(&log.handle(), &to, BackupOptions { keep: Some(1), ..BackupOptions::default() }).unwrap_err();
    assert!(matches!(foreign, BackupError::Foreign { .. }), "{foreign}");
    assert_eq!(files_of(&to), before);
    let used = back_up(&log.handle(), root.path(), BackupOptions::default()).unwrap_err();
    assert!(matches!(used, BackupError::NotABackup { .. }), "{used}");
    assert!(matches!(restore(&to, &node, None), Err(BackupError::TargetNotEmpty { .. })));
    assert!(matches!(restore(root.path(), &root.path().join("x"), None), Err(BackupError::NoBackup(_))));
    assert!(matches!(restore(&to, &root.path().join("x"), Some(7)), Err(BackupError::NoGeneration(Some(7)))));
    assert!(!root.path().join("x").exists());
    let nothing = backup::backup_stopped(&root.path().join("nowhere"), &to, BackupOptions::default(), &mut |_| {});
    assert!(matches!(nothing, Err(BackupError::NoVolume(_))));

    let manifest = to.join("generations/0000000001.manifest");
    let mut bytes = std::fs::read(&manifest).unwrap();
    bytes[12] = 2;
    let crc = crc32c::crc32c(&bytes[12..]);
    bytes[8..12].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(&manifest, &bytes).unwrap();
    let stopped = backup::backup_stopped(&node, &to, BackupOptions::default(), &mut |_| {}).unwrap_err();
    for error in [stopped, restore(&to, &root.path().join("x"), None).unwrap_err()] {
        assert!(error.to_string().contains("backup format 2.0") && error.to_string().contains("newer weir"), "{error}");
    }
    assert_eq!(std::fs::read(&manifest).unwrap(), bytes);
}

#[test]
fn producers_never_wait_for_a_backup_that_is_too_slow() {
    let root = tempfile::tempdir().unwrap();
    let to = root.path().join("backup");
    let log = open(tiered_within(1 << 20, &root.path().join("node"), BackendChoice::Auto));
    create(&log);
    fill(&log.handle(), 0..300);
    let slow = BackupOptions { bandwidth_bytes_max: Some(64 << 10), ..BackupOptions::default() };
    std::thread::scope(|scope| {
        let backup = scope.spawn(|| back_up(&log.handle(), &to, slow));
        let begin = Instant::now();
        let mut n = 300;
        while !backup.is_finished() {
            fill(&log.handle(), n..n + 1);
            n += 1;
            assert!(begin.elapsed() < Duration::from_secs(60), "the pin is given up");
        }
        match backup.join().unwrap() {
            Err(BackupError::Lost(why)) => assert!(why.to_string().contains("cold.log_bytes_max"), "{why}"),
            other => panic!("{other:?}"),
        }
    });
    assert!(backup::list(&to).unwrap().is_empty());
    // What was held is recycled, and the next backup takes what the log has now, once the sorter has caught up.
    let mut report = None;
    until("a backup of a log at rest", || {
        report = match back_up(&log.handle(), &to, BackupOptions::default()) {
            Err(BackupError::Lost(_)) => None,
            made => Some(made.unwrap()),
        };
        report.is_some()
    });
    assert_eq!(report.unwrap().generation, 1);
    assert!(files_of(&to).keys().all(|name| !name.ends_with(".part")));
}

#[test]
fn one_backup_at_a_time_and_one_that_is_stopped_leaves_nothing_held() {
    let root = tempfile::tempdir().unwrap();
    let to = root.path().join("backup");
    let log = open(tiered(&root.path().join("node"), BackendChoice::Auto));
    create(&log);
    fill(&log.handle(), 0..700);
    let (begun, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let handle = log.handle();
        let (to, begun, stop) = (&to, &begun, &stop);
        let backup = scope.spawn(move || {
            let slow = BackupOptions { bandwidth_bytes_max: Some(1 << 20), ..BackupOptions::default() };
            handle.backup(to, slow, stop, &mut || begun.store(true, Ordering::SeqCst), &mut |_| {})
        });
        until("the first backup", || begun.load(Ordering::SeqCst));
        assert!(matches!(back_up(&log.handle(), to, BackupOptions::default()), Err(BackupError::Locked(_))));
        let elsewhere = back_up(&log.handle(), &root.path().join("elsewhere"), BackupOptions::default());
        assert!(matches!(elsewhere, Err(BackupError::Taken(_))));
        stop.store(true, Ordering::SeqCst);
        assert!(matches!(backup.join().unwrap(), Err(BackupError::Stopped)));
    });
    assert_eq!(back_up(&log.handle(), &to, BackupOptions::default()).unwrap().generation, 1);
}

#[test]
fn either_copy_of_a_mirrored_log_is_good_for_a_backup() {
    let root = tempfile::tempdir().unwrap();
    let (a, b, to) = (root.path().join("a"), root.path().join("b"), root.path().join("backup"));
    let (log, _) = Log::open(LogConfig { mirror_dir: Some(b), mirror_patience: Duration::from_secs(60), ..small(&a) }).unwrap();
    create(&log);
    fill(&log.handle(), 0..200);
    back_up(&log.handle(), &to, BackupOptions::default()).unwrap();
    // The segments of one copy hold nothing any more, or cannot be read at all.
    for entry in std::fs::read_dir(a.join("wal")).unwrap() {
        std::fs::File::options().write(true).open(entry.unwrap().path()).unwrap().set_len(0).unwrap();
    }
    fill(&log.handle(), 200..201);
    let report = back_up(&log.handle(), &to, BackupOptions::default()).unwrap();
    assert_eq!(report.source_damage, [""; 0]);
    assert!(report.copied_files > 0);
    for generation in [1, 2] {
        let dir = root.path().join(format!("restored {generation}"));
        restore(&to, &dir, Some(generation)).unwrap();
        sound(&dir);
        let (log, report) = Log::open(small(&dir)).unwrap();
        assert!(report.damage.is_empty());
        let records = read_all(&log.handle(), PartitionId(0), 0);
        assert_eq!(records.len() as u64, 39 + generation);
    }
}
