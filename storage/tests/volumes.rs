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
