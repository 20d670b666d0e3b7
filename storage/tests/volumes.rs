//! Cold segments on several directories: two copies, one lost, one rotten; directories told apart at start, attached, drained and
//! let go of while the log runs.
#![forbid(unsafe_code)]

mod support;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use support::*;
use weir_storage::*;

fn tiered(dir: &Path) -> LogConfig {
    let cold = ColdConfig {
        sort_bytes: 256 << 10,
        sort_memory_bytes: 200 << 10,
        wal_bytes_max: 1 << 20,
        merge_fan_in: 16,
        // In a burst segments would stay as they are, where the log is: these tests are about those that are spread over all volumes.
        burst_bytes: 0,
        missing_patience: Duration::ZERO,
        ..ColdConfig::default()
    };
    LogConfig { cold: Some(cold), ..small(dir) }
}

/// The WAL in `a` and `b`.
fn pair(root: &Path) -> LogConfig {
    LogConfig { mirror_dir: Some(root.join("b")), ..tiered(&root.join("a")) }
}

/// The WAL in `a`, cold segments in `c` as well.
fn beside(root: &Path) -> LogConfig {
    LogConfig { cold_dirs: vec![root.join("c")], ..tiered(&root.join("a")) }
}

/// Waits until it holds; the sorter works on a thread of its own.
fn until(what: &str, log: &LogHandle, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < Duration::from_secs(60), "{what} does not happen: {:?}", log.volumes());
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn value(n: u32) -> Vec<u8> {
    (0..3000_u32).map(|i| (i.wrapping_mul(n.wrapping_mul(2_654_435_761) | 1) >> 13) as u8).collect()
}

fn fill(log: &LogHandle, range: std::ops::Range<u32>) {
    for n in range {
        offset(log.append_blocking(append(P, &[&value(n)])));
    }
}

fn check_all(log: &LogHandle, count: u32) {
    let found = read_all(log, P, 0);
    let expected: Vec<(i64, Vec<u8>)> = (0..count).map(|n| (i64::from(n), value(n))).collect();
    assert!(found == expected, "{} of {count} records", found.len());
}

fn quiet(log: &LogHandle) {
    // The WAL keeps fewer segments than are full: what can be sorted is, and nothing is under way.
    until("rest", log, || {
        let before = log.stats();
        std::thread::sleep(Duration::from_millis(30));
        let after = log.stats();
        !after.cold_busy && before.sorted_to_bytes == after.sorted_to_bytes && before.merged_to_bytes == after.merged_to_bytes
    });
}

fn cold_files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(dir.join("cold")).into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn flip_all(path: &Path, range: std::ops::Range<usize>) {
    let mut bytes = std::fs::read(path).unwrap();
    let end = range.end.min(bytes.len());
    bytes[range.start..end].iter_mut().for_each(|byte| *byte ^= 1);
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn each_volume_has_every_segment_and_one_alone_has_everything() {
    let root = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(pair(root.path())).unwrap();
    let handle = log.handle();
    handle.append_blocking(open_partition(P));
    fill(&handle, 0..600);
    until("sorting", &handle, || handle.stats().recycled >= 2);
    quiet(&handle);
    let status = handle.volumes();
    assert_eq!(status.iter().map(|volume| volume.number).collect::<Vec<_>>(), [0, 1]);
    assert!(status.iter().all(|volume| volume.segments > 0 && volume.only_copies == 0), "{status:?}");
    log.shutdown().unwrap();
    let (a, b) = (cold_files(&root.path().join("a")), cold_files(&root.path().join("b")));
    assert!(!a.is_empty() && a.len() == b.len());
    for (a, b) in a.iter().zip(&b) {
        assert!(std::fs::read(a).unwrap() == std::fs::read(b).unwrap(), "{a:?}");
    }

    // The disk of the first directory is lost, and another one comes in its place.
    std::fs::remove_dir_all(root.path().join("a")).unwrap();
    let (log, report) = Log::open(LogConfig { accept_degraded: true, ..pair(root.path()) }).unwrap();
    let handle = log.handle();
    assert_eq!(report.volume_problems.len(), 1, "{:?}", report.volume_problems);
    check_all(&handle, 600);
    until("copying", &handle, || {
        handle.volumes().iter().any(|volume| volume.number == 2 && volume.segments > 0)
            && handle.stats().cold_copies_owed == 0
            && handle.stats().cold_copies_made > 0
            && handle.volumes().iter().all(|volume| volume.only_copies == 0)
    });
    log.shutdown().unwrap();
    // Now the other one.
    std::fs::remove_dir_all(root.path().join("b")).unwrap();
    let (log, _) = Log::open(LogConfig { accept_degraded: true, ..tiered(&root.path().join("a")) }).unwrap();
    check_all(&log.handle(), 600);
}

#[test]
fn a_rotten_copy_is_read_from_the_other_one_and_made_anew() {
    let root = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(pair(root.path())).unwrap();
    log.handle().append_blocking(open_partition(P));
    fill(&log.handle(), 0..600);
    until("sorting", &log.handle(), || log.handle().stats().recycled >= 2);
    quiet(&log.handle());
    log.shutdown().unwrap();
    // Different halves of the same segment on each, and one file is gone.
    let (a, b) = (cold_files(&root.path().join("a")), cold_files(&root.path().join("b")));
    let before: Vec<Vec<u8>> = b.iter().map(|path| std::fs::read(path).unwrap()).collect();
    let middle = std::fs::metadata(&a[0]).unwrap().len() as usize / 2;
    flip_all(&a[0], 0..middle);
    flip_all(&b[0], 2 * middle - 8192..usize::MAX);
    std::fs::remove_file(a.last().unwrap()).unwrap();

    let (log, _) = Log::open(pair(root.path())).unwrap();
    let handle = log.handle();
    check_all(&handle, 600);
    assert!(handle.stats().cold_reads_rescued > 0, "{:?}", handle.stats());
    until("mending", &handle, || handle.stats().cold_copies_made >= 3);
    check_all(&handle, 600);
    log.shutdown().unwrap();
    for ((a, b), before) in a.iter().zip(&b).zip(before) {
        for path in [a, b] {
            // What was merged since is gone.
            if let Ok(now) = std::fs::read(path) {
                assert!(now == before, "{path:?}");
            }
        }
    }
}

#[test]
fn a_directory_that_is_not_the_volume_it_should_be_is_named_and_left_alone() {
    let root = tempfile::tempdir().unwrap();
    let (log, report) = Log::open(beside(root.path())).unwrap();
    assert!(report.volume_problems.is_empty(), "{:?}", report.volume_problems);
    log.handle().append_blocking(open_partition(P));
    fill(&log.handle(), 0..600);
    until("sorting", &log.handle(), || log.handle().stats().recycled >= 2);
    quiet(&log.handle());
    assert!(log.handle().volumes().iter().all(|volume| volume.segments > 0), "{:?}", log.handle().volumes());
    log.shutdown().unwrap();
    let (other, _) = Log::open(tiered(&root.path().join("other"))).unwrap();
    other.handle().append_blocking(open_partition(P));
    fill(&other.handle(), 0..600);
    until("sorting", &other.handle(), || other.handle().stats().recycled >= 2);
    other.shutdown().unwrap();

    let away = root.path().join("away");
    std::fs::rename(root.path().join("c"), &away).unwrap();
    let problems = |dir: &str| {
        let config = LogConfig { cold_dirs: vec![root.path().join(dir)], ..beside(root.path()) };
        let (log, report) = Log::open(config).unwrap();
        check_all(&log.handle(), 600);
        log.shutdown().unwrap();
        report.volume_problems.join("\n")
    };
    // The disk is not mounted: there is an empty directory.
    std::fs::create_dir(root.path().join("c")).unwrap();
    assert!(problems("c").contains("may not be mounted"));
    assert!(!root.path().join("c/volume").exists() && cold_files(&root.path().join("c")).is_empty());
    // Somebody else's disk.
    let before = cold_files(&root.path().join("other"));
    assert!(problems("other").contains("it is a volume of log"));
    assert_eq!(cold_files(&root.path().join("other")), before);
    // Its own disk, whose identity was lost, and damaged.
    let identity = std::fs::read(away.join("volume")).unwrap();
    std::fs::remove_file(away.join("volume")).unwrap();
    assert!(problems("away").contains("no file `volume`"));
    std::fs::write(away.join("volume"), &identity[..100]).unwrap();
    assert!(problems("away").contains("is damaged"));
    // Mounted elsewhere it is the same volume.
    std::fs::write(away.join("volume"), &identity).unwrap();
    assert_eq!(problems("away"), "");
}

#[test]
fn what_only_a_missing_volume_has_is_a_gap_until_it_is_back() {
    let root = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(beside(root.path())).unwrap();
    let handle = log.handle();
    handle.set_class_policy(ClassId(0), ClassPolicy { copies: Some(1), ..ClassPolicy::default() });
    handle.append_blocking(open_partition(P));
    fill(&handle, 0..900);
    until("sorting", &handle, || handle.stats().recycled >= 4);
    quiet(&handle);
    handle.volume_drain(0, true).unwrap();
    until("draining", &handle, || handle.volumes()[0].segments == 0);
    check_all(&handle, 900);
    log.shutdown().unwrap();
    std::fs::rename(root.path().join("c"), root.path().join("away")).unwrap();

    let (log, report) = Log::open(beside(root.path())).unwrap();
    assert!(!report.volume_problems.is_empty());
    let handle = log.handle();
    assert!(matches!(read(&handle, P, 0, 1), Err(ReadError::Gap { from: 0, .. })), "{:?}", read(&handle, P, 0, 1));
    assert!(handle.volume_forget(1, false).is_err(), "it holds the only copies");
    // The disk comes back while the log works, in another slot.
    assert_eq!(handle.volume_attach(&root.path().join("away")).unwrap(), 1);
    check_all(&handle, 900);
}

#[test]
fn volumes_come_and_go_while_the_log_works() {
    let root = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(tiered(&root.path().join("a"))).unwrap();
    let handle = log.handle();
    handle.append_blocking(open_partition(P));
    fill(&handle, 0..600);
    until("sorting", &handle, || handle.stats().recycled >= 2);
    assert!(handle.volume_drain(0, true).is_err() && handle.volume_forget(0, true).is_err(), "it is the only one");
    for (number, dir) in [(1, "b"), (2, "c")] {
        assert_eq!(handle.volume_attach(&root.path().join(dir)).unwrap(), number);
        assert!(handle.volume_attach(&root.path().join("a")).is_ok(), "it is what it was");
        fill(&handle, number as u32 * 600..(number as u32 + 1) * 600);
        until("second copies", &handle, || {
            handle.volumes()[usize::from(number)].segments > 0 && handle.volumes().iter().all(|volume| volume.only_copies == 0)
        });
    }
    check_all(&handle, 1800);
    // Taken out, and missed for too long: what it had is copied to where it is not.
    handle.volume_detach(1).unwrap();
    assert!(std::fs::File::open(root.path().join("b/LOCK")).is_ok());
    check_all(&handle, 1800);
    until("copies elsewhere", &handle, || handle.volumes()[1].segments == 0);
    handle.volume_forget(1, false).unwrap();
    assert_eq!(handle.volumes()[1].usage, VolumeUse::Gone);
    let refused = handle.volume_attach(&root.path().join("b")).unwrap_err();
    assert!(refused.to_string().contains("detached for good"), "{refused}");
    check_all(&handle, 1800);
    log.shutdown().unwrap();
    let config = LogConfig { cold_dirs: vec![root.path().join("c")], ..tiered(&root.path().join("a")) };
    let (log, report) = Log::open(config).unwrap();
    assert_eq!(report.volume_problems, Vec::<String>::new());
    check_all(&log.handle(), 1800);
}

#[test]
fn a_directory_that_may_not_replace_a_disk_leaves_the_old_one_as_it_was() {
    let root = tempfile::tempdir().unwrap();
    let dir = |name: &str| root.path().join(name);
    let (other, _) = Log::open(tiered(&dir("other"))).unwrap();
    other.shutdown().unwrap();
    let (bare, _) = Log::open(small(&dir("bare"))).unwrap();
    bare.shutdown().unwrap();
    std::fs::create_dir(dir("home")).unwrap();
    std::fs::write(dir("home/letter"), "mine").unwrap();
    std::fs::write(dir("file"), "").unwrap();
    std::os::unix::fs::symlink(dir("a"), dir("link")).unwrap();

    let (log, _) = Log::open(pair(root.path())).unwrap();
    let handle = log.handle();
    handle.append_blocking(open_partition(P));
    fill(&handle, 0..600);
    until("sorting", &handle, || handle.stats().recycled >= 2);
    quiet(&handle);
    assert_eq!(handle.volume_attach(&dir("c")).unwrap(), 2);
    for (name, reason) in [
        ("other", "the wrong disk is mounted"),
        ("bare", "the wrong disk is mounted"),
        ("home", "letter"),
        ("file", "cannot be listed"),
        ("file/below", "cannot be listed"),
        ("a", "it is volume 0 already"),
        ("b", "it is volume 1 already"),
        ("c", "it is volume 2 already"),
        ("link", "it is volume 0 already"),
    ] {
        let before = std::fs::read_dir(dir(name)).map(Iterator::count).ok();
        let refused = handle.volume_replace(1, &dir(name), false).unwrap_err().to_string();
        assert!(refused.contains(reason), "{name}: {refused}");
        assert_eq!(std::fs::read_dir(dir(name)).map(Iterator::count).ok(), before, "{name}");
        let volumes = handle.volumes();
        assert!(
            volumes.iter().all(|volume| volume.health == Health::Healthy && volume.usage == VolumeUse::Active),
            "{volumes:?}"
        );
        assert_eq!((handle.mirror_status().in_step(), handle.stats().copies), (2, 2), "{name}");
    }
    assert!(handle.volume_replace(9, &dir("d"), true).unwrap_err().to_string().contains("no volume 9"));
    assert!(!dir("d").exists());
    // A new disk where the old one was mounted, and one elsewhere.
    for (number, name, new) in [(1, "d", 3), (0, "e", 4)] {
        assert_eq!(handle.volume_replace(number, &dir(name), false).unwrap(), new);
        until("two copies of the log", &handle, || handle.stats().copies == 2);
        until("two copies of the rest", &handle, || handle.volumes().iter().all(|volume| volume.only_copies == 0));
    }
    assert_eq!(handle.volumes()[1].usage, VolumeUse::Gone);
    let refused = handle.volume_replace(3, &dir("b"), false).unwrap_err().to_string();
    assert!(refused.contains("detached for good"), "{refused}");
    check_all(&handle, 600);
}

/// Cold segments in `a`, `c` and `d`, two copies of each, so that no directory has all.
fn scattered(root: &Path) -> LogConfig {
    LogConfig { cold_dirs: vec![root.join("c"), root.join("d"), root.join("e")], ..tiered(&root.join("a")) }
}

fn back_up(log: &LogHandle, to: &Path) -> backup::BackupReport {
    let stop = std::sync::atomic::AtomicBool::new(false);
    log.backup(to, backup::BackupOptions::default(), &stop, &mut || {}, &mut |_| {}).unwrap()
}

#[test]
fn a_backup_of_segments_on_many_disks_is_restored_into_one_directory() {
    let root = tempfile::tempdir().unwrap();
    let (to, dir) = (root.path().join("backup"), |name: &str| root.path().join(name));
    let (log, _) = Log::open(scattered(root.path())).unwrap();
    let handle = log.handle();
    handle.append_blocking(open_partition(P));
    // Where there is most room decides, and all have the same: each disk in turn is the one that takes none.
    for (at, out) in [1, 2, 3].into_iter().enumerate() {
        handle.volume_drain(out, true).unwrap();
        let at = at as u32;
        let sorted = handle.stats().recycled;
        fill(&handle, at * 600..(at + 1) * 600);
        until("sorting", &handle, || handle.stats().recycled >= sorted + 2);
        handle.volume_drain(out, false).unwrap();
    }
    quiet(&handle);
    let has_all = |volume: &VolumeStatus| volume.segments == handle.stats().cold_segments;
    assert!(!handle.volumes().iter().any(has_all), "{:?}", handle.volumes());
    let report = back_up(&handle, &to);
    assert_eq!(report.source_damage, Vec::<String>::new());
    // Copies move, and nothing is copied again for that.
    handle.volume_drain(0, true).unwrap();
    until("moving", &handle, || handle.volumes()[0].segments == 0);
    quiet(&handle);
    let again = back_up(&handle, &to);
    assert!(again.copied_bytes < report.copied_bytes / 4, "{again:?} after {report:?}");
    log.shutdown().unwrap();

    // A copy that has rotted is not the one that is taken.
    let named = [dir("c"), dir("d"), dir("e")];
    let rotten = named.iter().find_map(|dir| cold_files(dir).into_iter().next()).unwrap();
    let bytes = std::fs::metadata(&rotten).unwrap().len() as usize;
    flip_all(&rotten, bytes / 4..bytes / 2);
    let options = backup::BackupOptions::default;
    let alone = backup::backup_stopped(&dir("a"), &dir("other"), options(), &mut |_| {}).unwrap_err();
    assert!(matches!(alone, backup::BackupError::Elsewhere { segments } if segments > 0), "{alone}");
    let stranger = [dir("backup")];
    let refused = backup::backup_stopped_volumes(&dir("a"), &stranger, &dir("other"), options(), &mut |_| {}).unwrap_err();
    assert!(matches!(refused, backup::BackupError::NoVolumeOfIt(_)), "{refused}");
    let stopped = backup::backup_stopped_volumes(&dir("a"), &named, &dir("other"), options(), &mut |_| {}).unwrap();
    assert_eq!(stopped.source_damage, Vec::<String>::new());

    for (from, restored) in [("backup", "r"), ("other", "s")] {
        backup::restore(&dir(from), &dir(restored), None, &mut |_| {}).unwrap();
        let found = check::check(&dir(restored), check::CheckOptions::default(), &|_| {}).unwrap();
        assert!(found.is_clean(), "{:?}", found.findings);
        let (log, report) =
            Log::open(LogConfig { cold_dirs: vec![dir(&format!("{restored}2"))], ..tiered(&dir(restored)) }).unwrap();
        assert_eq!(report.volume_problems, Vec::<String>::new());
        check_all(&log.handle(), 1800);
        fill(&log.handle(), 1800..1900);
        check_all(&log.handle(), 1900);
        until("second copies", &log.handle(), || log.handle().volumes().iter().all(|volume| volume.only_copies == 0));
    }
}

#[test]
fn a_check_of_all_disks_reads_each_copy_and_names_what_no_copy_has() {
    let root = tempfile::tempdir().unwrap();
    let dir = |name: &str| root.path().join(name);
    let config = LogConfig { cold_dirs: vec![dir("c")], compress_from_bytes: None, ..pair(root.path()) };
    let (log, _) = Log::open(config).unwrap();
    let handle = log.handle();
    handle.append_blocking(open_partition(P));
    fill(&handle, 0..600);
    until("sorting", &handle, || handle.stats().recycled >= 2);
    quiet(&handle);
    log.shutdown().unwrap();
    let checked = |others: &[&str]| {
        let others: Vec<PathBuf> = others.iter().map(|name| dir(name)).collect();
        check::check_volumes(&dir("a"), &others, check::CheckOptions::default(), &|_| {}).unwrap()
    };
    let says = |report: &check::CheckReport, file: &str, words: &str| {
        report.findings.iter().any(|finding| finding.file.ends_with(file) && finding.what.contains(words))
    };
    let report = checked(&["c", "b"]);
    assert!(report.is_clean() && report.findings.is_empty() && report.lost.is_empty(), "{report:?}");
    assert_eq!((report.copies, report.volumes.len()), (2, 3));
    assert!(report.volumes.iter().all(|volume| volume.dir.is_some() && volume.unseen == 0), "{report:?}");
    let alone = checked(&[]);
    assert!(alone.is_clean() && says(&alone, "superblock", "one of two copies"), "{alone:?}");
    assert!(says(&alone, "volume", "volume 2") && alone.volumes[2].dir.is_none(), "{alone:?}");
    assert_eq!((alone.records, alone.frames), (report.records, report.frames));
    let missing = checked(&["b", "nowhere"]);
    assert!(says(&missing, "nowhere/volume", "cannot be read") && !missing.is_clean(), "{missing:?}");

    // A stretch of the newest segment, on one copy and then on both.
    let newest = |name: &str| {
        let files = std::fs::read_dir(dir(name).join("wal")).unwrap().map(|file| file.unwrap().path());
        files.max_by_key(|path| {
            std::fs::read(path).unwrap()[32..40].iter().rev().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte))
        })
    };
    flip_all(&newest("b").unwrap(), 40 << 10..60 << 10);
    let one = checked(&["b", "c"]);
    assert!(!one.is_clean() && one.lost.is_empty() && one.records == report.records, "{one:?}");
    assert!(
        one.findings.iter().all(|finding| finding.file.contains("/b/wal/") && finding.what.contains("the other copy has it")),
        "{one:?}"
    );
    flip_all(&newest("a").unwrap(), 40 << 10..60 << 10);
    let both = checked(&["b", "c"]);
    assert!(both.lost_total > 0 && both.records < report.records, "{both:?}");
    assert!(both.findings.iter().all(|finding| !finding.what.contains("the other copy has it")), "{both:?}");
    flip_all(&newest("a").unwrap(), 40 << 10..60 << 10);
    flip_all(&newest("b").unwrap(), 40 << 10..60 << 10);
    // A file of either kind that is gone.
    std::fs::remove_file(newest("b").unwrap()).unwrap();
    let gone = checked(&["b", "c"]);
    assert!(gone.lost.is_empty() && gone.damage_total == 1 && says(&gone, ".wal", "the other copy has it"), "{gone:?}");
    let segment = cold_files(&dir("c")).pop().unwrap();
    std::fs::remove_file(segment).unwrap();
    let gone = checked(&["b", "c"]);
    assert!(gone.lost.is_empty() && gone.damage_total == 2 && says(&gone, ".cold", "another copy is whole"), "{gone:?}");
}
