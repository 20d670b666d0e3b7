//! Both real backends on real files, in every durability mode.

use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tempfile::TempDir;

use super::files::DataDir;
use super::plain::PlainDisk;
use super::reader::BackgroundReader;
use super::uring::UringDisk;
use super::*;

const SEGMENT: FileId = FileId::Segment(3);
/// Long enough for any machine; only a hang waits for it.
const PATIENCE: Duration = Duration::from_secs(60);

fn directory() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    DataDir::prepare(dir.path()).unwrap();
    dir
}

/// Every backend that this machine allows, in every durability mode, around the page cache and through it.
fn backends(root: &Path) -> Vec<(String, Box<dyn Disk>)> {
    let direct = probe::run(root, BackendChoice::Plain).unwrap().direct;
    let mut all: Vec<(String, Box<dyn Disk>)> = Vec::new();
    for direct in if direct { vec![true, false] } else { vec![false] } {
        for mode in [DsyncMode::RwfDsync, DsyncMode::ODsync, DsyncMode::Fdatasync] {
            let dir = DataDir::new(root, direct, mode);
            all.push((format!("plain {mode} direct={direct}"), Box::new(PlainDisk::open(dir.clone()).unwrap())));
            match UringDisk::open(dir) {
                Ok(disk) => all.push((format!("uring {mode} direct={direct}"), Box::new(disk))),
                Err(error) => eprintln!("SKIPPED for uring {mode}: {error}"),
            }
        }
    }
    all
}

fn pattern(bytes: usize, seed: u64) -> AlignedBuf {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut buf = AlignedBuf::zeroed(bytes);
    rng.fill(&mut buf);
    buf
}

/// Polls until as many completions are there.
fn wait_for(disk: &mut dyn Disk, count: usize) -> Vec<DiskCompletion> {
    let mut out = Vec::new();
    while out.len() < count {
        let before = out.len();
        disk.poll(Some(PATIENCE), &mut out);
        assert!(out.len() > before, "nothing completed");
    }
    assert_eq!(out.len(), count);
    out
}

fn do_one(disk: &mut dyn Disk, op: DiskOp) -> Result<(), DiskError> {
    disk.submit(77, op);
    let mut done = wait_for(disk, 1);
    assert_eq!(done[0].id, 77);
    done.remove(0).result
}

fn write(disk: &mut dyn Disk, at: u64, data: &Arc<AlignedBuf>) -> Result<(), DiskError> {
    do_one(disk, DiskOp::Write { file: SEGMENT, at, data: Arc::clone(data), bytes: data.len() })
}

fn zero(disk: &mut dyn Disk, file: FileId, bytes: u64) -> Result<(), DiskError> {
    do_one(disk, DiskOp::Zero { file, bytes, reuse: None })
}

#[test]
fn what_is_written_is_read_back() {
    let dir = directory();
    for (name, mut disk) in backends(dir.path()) {
        let disk = disk.as_mut();
        zero(disk, SEGMENT, 4 << 20).unwrap();
        let data = Arc::new(pattern(100 * BLOCK_BYTES, 1));
        // Only a part of the buffer, in the middle of the file.
        let bytes = 99 * BLOCK_BYTES;
        do_one(disk, DiskOp::Write { file: SEGMENT, at: 8192, data: Arc::clone(&data), bytes }).unwrap();
        let mut back = AlignedBuf::zeroed(4 << 20);
        let all = back.len();
        disk.read(SEGMENT, 0, &mut back, all).unwrap();
        assert!(back[..8192].iter().all(|&b| b == 0), "{name}");
        assert!(back[8192..8192 + bytes] == data[..bytes], "{name}");
        assert!(back[8192 + bytes..].iter().all(|&b| b == 0), "{name}");
        disk.remove(SEGMENT).unwrap();
    }
}

#[test]
fn many_writes_in_flight_each_answer_once() {
    let dir = directory();
    for (name, mut disk) in backends(dir.path()) {
        zero(disk.as_mut(), SEGMENT, (IN_FLIGHT_MAX * BLOCK_BYTES) as u64).unwrap();
        let data: Vec<_> = (0..IN_FLIGHT_MAX).map(|n| Arc::new(pattern(BLOCK_BYTES, n as u64))).collect();
        for round in 0..3 {
            for (n, data) in data.iter().enumerate() {
                let at = (n * BLOCK_BYTES) as u64;
                let op = DiskOp::Write { file: SEGMENT, at, data: Arc::clone(data), bytes: BLOCK_BYTES };
                disk.submit((round * 1000 + n) as u64, op);
            }
            let mut done = wait_for(disk.as_mut(), IN_FLIGHT_MAX);
            done.sort_unstable_by_key(|completion| completion.id);
            for (n, completion) in done.iter().enumerate() {
                assert_eq!((completion.id, completion.result), ((round * 1000 + n) as u64, Ok(())), "{name}");
            }
        }
        for (n, data) in data.iter().enumerate() {
            let mut back = AlignedBuf::zeroed(BLOCK_BYTES);
            disk.read(SEGMENT, (n * BLOCK_BYTES) as u64, &mut back, BLOCK_BYTES).unwrap();
            assert!(back[..] == data[..], "{name}");
            assert_eq!(Arc::strong_count(data), 1, "{name} lets go of buffers");
        }
        disk.remove(SEGMENT).unwrap();
    }
}

#[test]
fn random_writes_read_back_as_a_plain_array_would() {
    const BLOCKS: usize = 64;
    let dir = directory();
    for (name, mut disk) in backends(dir.path()) {
        zero(disk.as_mut(), SEGMENT, (BLOCKS * BLOCK_BYTES) as u64).unwrap();
        let mut model = vec![0_u8; BLOCKS * BLOCK_BYTES];
        let disk = std::cell::RefCell::new(disk);
        let model = std::cell::RefCell::new(&mut model);
        let writes = (0..BLOCKS).prop_flat_map(|at| (Just(at), 1..=BLOCKS - at, any::<u64>()));
        let outcome = TestRunner::new(Config::with_cases(24)).run(&writes, |(at, blocks, seed)| {
            let (mut disk, mut model) = (disk.borrow_mut(), model.borrow_mut());
            let (start, bytes) = (at * BLOCK_BYTES, blocks * BLOCK_BYTES);
            let data = Arc::new(pattern(bytes, seed));
            write(disk.as_mut(), start as u64, &data).unwrap();
            model[start..start + bytes].copy_from_slice(&data);
            let mut back = AlignedBuf::zeroed(BLOCKS * BLOCK_BYTES);
            disk.read(SEGMENT, 0, &mut back, BLOCKS * BLOCK_BYTES).unwrap();
            prop_assert!(back[..] == model[..]);
            Ok(())
        });
        outcome.unwrap_or_else(|error| panic!("{name}: {error}"));
        disk.borrow_mut().remove(SEGMENT).unwrap();
    }
}

#[test]
fn writes_in_flight_finish_before_the_disk_is_gone() {
    let dir = directory();
    for (name, mut disk) in backends(dir.path()) {
        const BYTES: usize = 1 << 20;
        zero(disk.as_mut(), SEGMENT, 16 * BYTES as u64).unwrap();
        let data: Vec<_> = (0..16).map(|n| Arc::new(pattern(BYTES, n))).collect();
        for (n, data) in data.iter().enumerate() {
            let op = DiskOp::Write { file: SEGMENT, at: (n * BYTES) as u64, data: Arc::clone(data), bytes: BYTES };
            disk.submit(n as u64, op);
        }
        drop(disk);
        let file = std::fs::read(dir.path().join(SEGMENT.relative_path())).unwrap();
        for (n, data) in data.iter().enumerate() {
            assert_eq!(Arc::strong_count(data), 1, "{name} holds no buffer any more");
            assert!(file[n * BYTES..(n + 1) * BYTES] == data[..], "{name}");
        }
        std::fs::remove_file(dir.path().join(SEGMENT.relative_path())).unwrap();
    }
}

#[test]
fn zero_fill_sets_size_and_content_of_new_and_old_files() {
    let dir = directory();
    for (name, mut disk) in backends(dir.path()) {
        let disk = disk.as_mut();
        assert_eq!(disk.size(SEGMENT), Ok(None));
        zero(disk, SEGMENT, 1 << 20).unwrap();
        write(disk, 0, &Arc::new(pattern(1 << 20, 5))).unwrap();
        for bytes in [1_u64 << 20, 300 * 1024, 4096, (1 << 20) + 4096] {
            zero(disk, SEGMENT, bytes).unwrap();
            assert_eq!(disk.size(SEGMENT), Ok(Some(bytes)), "{name}");
            let content = std::fs::read(dir.path().join(SEGMENT.relative_path())).unwrap();
            assert!(content.len() as u64 == bytes && content.iter().all(|&b| b == 0), "{name}");
        }
        zero(disk, FileId::Segment(100_000), 4096).unwrap();
        zero(disk, FileId::Segment(0), 4096).unwrap();
        std::fs::write(dir.path().join("wal/junk.tmp"), b"").unwrap();
        assert_eq!(disk.list_segments(), Ok(vec![0, 3, 100_000]), "{name}");
        for number in [0, 3, 100_000] {
            disk.remove(FileId::Segment(number)).unwrap();
        }
        assert_eq!(disk.list_segments(), Ok(vec![]), "{name}");
        assert_eq!(disk.remove(SEGMENT), Ok(()), "{name}: a file that is gone counts as removed");
    }
}

#[test]
fn a_disk_dropped_while_zero_filling_leaves_a_file_of_full_size_or_none() {
    let dir = directory();
    for (name, mut disk) in backends(dir.path()) {
        disk.submit(1, DiskOp::Zero { file: SEGMENT, bytes: 64 << 20, reuse: None });
        drop(disk);
        let size = DataDir::new(dir.path(), false, DsyncMode::RwfDsync).size(SEGMENT).unwrap();
        assert!(matches!(size, None | Some(0 | 67_108_864)), "{name}: {size:?}");
        let _ = std::fs::remove_file(dir.path().join(SEGMENT.relative_path()));
    }
}

#[test]
fn synchronous_writes_create_the_file() {
    let dir = directory();
    for (name, mut disk) in backends(dir.path()) {
        let (first, second) = (pattern(BLOCK_BYTES, 1), pattern(BLOCK_BYTES, 2));
        disk.write_now(FileId::Superblock, 0, &first, BLOCK_BYTES).unwrap();
        disk.write_now(FileId::Superblock, 4096, &second, BLOCK_BYTES).unwrap();
        let content = std::fs::read(dir.path().join("superblock")).unwrap();
        assert!(content == [&first[..], &second[..]].concat(), "{name}");
        disk.remove(FileId::Superblock).unwrap();
    }
}

#[test]
fn what_is_missing_or_too_short_is_told_with_its_file() {
    let dir = directory();
    for (name, mut disk) in backends(dir.path()) {
        let disk = disk.as_mut();
        let data = Arc::new(AlignedBuf::zeroed(BLOCK_BYTES));
        let missing = DiskError::Missing { verb: DiskVerb::Open, file: SEGMENT };
        assert_eq!(write(disk, 0, &data), Err(missing), "{name}");
        let mut buf = AlignedBuf::zeroed(3 * BLOCK_BYTES);
        assert_eq!(disk.read(SEGMENT, 0, &mut buf, BLOCK_BYTES), Err(missing), "{name}");
        zero(disk, SEGMENT, 2 * 4096).unwrap();
        let short = DiskError::Short { verb: DiskVerb::Read, file: SEGMENT, at: 0, wanted: 3 * 4096, done: 2 * 4096 };
        assert_eq!(disk.read(SEGMENT, 0, &mut buf, 3 * BLOCK_BYTES), Err(short), "{name}");
        assert!(short.to_string().contains("wal/00003.wal"));
        disk.remove(SEGMENT).unwrap();
    }
}

#[test]
fn a_wake_ends_the_running_poll_or_the_next() {
    let dir = directory();
    for (name, mut disk) in backends(dir.path()) {
        let waker = disk.waker();
        let mut out = Vec::new();
        waker.wake();
        disk.poll(None, &mut out);
        assert!(out.is_empty(), "{name}");
        // Both orders of wake and poll come up in so many rounds; a lost wake-up hangs one of them.
        let (polled, rounds) = mpsc::channel();
        let poller = std::thread::spawn(move || {
            for _ in 0..2_000 {
                disk.poll(None, &mut out);
                polled.send(()).unwrap();
            }
            out.len()
        });
        for round in 0..2_000 {
            waker.wake();
            rounds.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{name} slept through wake-up {round}"));
        }
        assert_eq!(poller.join().unwrap(), 0);
        waker.wake(); // Harmless when the disk is gone.
    }
}

#[test]
fn a_poll_ends_when_its_time_is_up() {
    let dir = directory();
    for (_, mut disk) in backends(dir.path()) {
        let mut out = Vec::new();
        disk.poll(Some(Duration::ZERO), &mut out);
        disk.poll(Some(Duration::from_millis(2)), &mut out);
        assert!(out.is_empty());
    }
}

/// A file system of 2 MiB, unmounted when dropped.
struct SmallDisk {
    dir: TempDir,
}

impl SmallDisk {
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let command = ["-t", "tmpfs", "-o", "size=2m", "weir-test"];
        let mounted = std::process::Command::new("mount").args(command).arg(dir.path()).output();
        if !mounted.is_ok_and(|output| output.status.success()) {
            eprintln!("SKIPPED: a small file system cannot be mounted here (needs root)");
            return None;
        }
        DataDir::prepare(dir.path()).unwrap();
        Some(Self { dir })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.dir.path()).status();
    }
}

#[test]
fn a_full_disk_is_told_as_such_also_when_part_of_the_write_fits() {
    let Some(small) = SmallDisk::mount() else { return };
    for (name, mut disk) in backends(small.dir.path()) {
        let disk = disk.as_mut();
        let other = FileId::Segment(9);
        let full = zero(disk, other, 4 << 20).unwrap_err();
        assert!(full.is_full() && full.to_string().contains("wal/00009.wal"), "{name}: {full}");
        assert_eq!(disk.size(other), Ok(None), "{name}: the useless file was removed");
        // 1 MiB is taken, then a write of 2 MiB fits by half.
        zero(disk, other, 1 << 20).unwrap();
        disk.write_now(SEGMENT, 0, &AlignedBuf::zeroed(BLOCK_BYTES), BLOCK_BYTES).unwrap();
        let full = write(disk, 0, &Arc::new(pattern(2 << 20, 1))).unwrap_err();
        assert_eq!(full, DiskError::Full { verb: DiskVerb::Write, file: SEGMENT }, "{name}");
        let written = std::fs::metadata(small.dir.path().join(SEGMENT.relative_path())).unwrap().len();
        assert!(written > BLOCK_BYTES as u64, "{name}: the write was short at first: {written}");
        disk.remove(other).unwrap();
        disk.remove(SEGMENT).unwrap();
    }
}

#[test]
fn a_full_disk_does_not_stop_the_probe() {
    let Some(small) = SmallDisk::mount() else { return };
    let hog = small.dir.path().join("hog");
    let full = std::fs::write(&hog, vec![1; 4 << 20]).unwrap_err();
    assert_eq!(full.raw_os_error(), Some(28));
    let probe = probe::run(small.dir.path(), BackendChoice::Auto).unwrap();
    assert_eq!((probe.write_4k_samples, probe.filesystem.as_str()), (0, "tmpfs"));
    assert!(probe.to_string().contains("not measured"), "{probe}");
}

#[test]
fn a_disk_without_room_for_a_name_does_not_stop_the_probe_either() {
    let Some(small) = SmallDisk::mount() else { return };
    let root = small.dir.path();
    std::fs::write(root.join("wal/00000.wal"), vec![0; BLOCK_BYTES]).unwrap();
    let measured = probe::run(root, BackendChoice::Auto).unwrap();
    let remounted = |inodes: u32| {
        let options = format!("remount,nr_inodes={inodes}");
        std::process::Command::new("mount").args(["-o", &options]).arg(root).output().unwrap().status.success()
    };
    assert!((2..20).any(remounted), "as few as are in use");
    let full = std::fs::write(root.join("more"), []).unwrap_err();
    assert_eq!(full.raw_os_error(), Some(28));
    let probe = probe::run(root, BackendChoice::Auto).unwrap();
    assert_eq!((probe.direct, probe.dsync_mode), (measured.direct, measured.dsync_mode));
    assert_eq!(probe.write_4k_samples, 0);
    std::fs::remove_file(root.join("wal/00000.wal")).unwrap();
    std::fs::write(root.join("small"), [1]).unwrap();
    assert!(probe::run(root, BackendChoice::Auto).unwrap_err().is_full(), "there is nothing to serve");
}

#[test]
fn a_new_segment_leaves_the_headroom_free() {
    for (headroom, fits) in [(0, true), (u64::MAX / 2, false)] {
        let dir = tempfile::tempdir().unwrap();
        let mut opened = open_with_headroom(dir.path(), BackendChoice::Auto, headroom).unwrap();
        let made = zero(opened.disk.as_mut(), SEGMENT, 1 << 20);
        assert_eq!(made.is_ok(), fits, "{made:?}");
        assert!(fits || made.unwrap_err().is_full());
        assert_eq!(opened.disk.size(SEGMENT).unwrap().is_some(), fits, "what is refused leaves nothing behind");
    }
}

#[test]
fn a_read_only_disk_is_told_as_such() {
    let Some(small) = SmallDisk::mount() else { return };
    let remounted = std::process::Command::new("mount").args(["-o", "remount,ro"]).arg(small.dir.path()).status();
    assert!(remounted.unwrap().success());
    let error = open(small.dir.path(), BackendChoice::Auto).err().unwrap();
    assert!(error.to_string().contains("remount the file system writable"), "{error}");
}

#[test]
fn the_probe_says_what_is_used_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("new/data");
    let opened = open(&root, BackendChoice::Plain).unwrap();
    let probe = opened.probe;
    assert_eq!((probe.backend, probe.uring_refused), (Backend::Plain, None));
    assert!(probe.write_4k_samples > 0 && probe.write_4k_p50_us <= probe.write_4k_p99_us);
    assert!(probe.write_4k_p99_us <= probe.write_4k_max_us);
    let line = probe.to_string();
    assert!(line.starts_with("disk backend plain, ") && line.contains(&probe.kernel), "{line}");
    assert!(!line.contains('\n'));
    let names: Vec<_> = std::fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["wal"]);
    // Auto takes what is allowed and, where that is plain, says why.
    let auto = open(&root, BackendChoice::Auto).unwrap().probe;
    assert_eq!(auto.backend == Backend::Plain, auto.uring_refused.is_some());
}

#[test]
fn a_directory_that_is_a_file_is_told_as_such() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, b"").unwrap();
    let error = open(&file, BackendChoice::Auto).err().unwrap();
    assert!(error.to_string().contains("point the configuration at a directory"), "{error}");
}

#[test]
fn memory_file_systems_work() {
    let Ok(dir) = tempfile::tempdir_in("/dev/shm") else { return eprintln!("SKIPPED: no /dev/shm here") };
    for choice in [BackendChoice::Auto, BackendChoice::Plain] {
        let mut opened = open(dir.path(), choice).unwrap();
        zero(opened.disk.as_mut(), SEGMENT, 1 << 20).unwrap();
        let data = Arc::new(pattern(64 << 10, 3));
        write(opened.disk.as_mut(), 4096, &data).unwrap();
        let (at, bytes) = (4096 + 100, 10_000);
        assert_eq!(read_via(opened.reader.as_ref(), at, bytes).unwrap(), data[100..10_100]);
    }
}

/// Both kinds of reader over a segment of random bytes.
fn readers(root: &Path, bytes: usize) -> (AlignedBuf, Vec<(&'static str, BackgroundReader)>) {
    let direct = probe::run(root, BackendChoice::Plain).unwrap().direct;
    let dir = DataDir::new(root, direct, DsyncMode::RwfDsync);
    let content = pattern(bytes, 11);
    std::fs::write(root.join(SEGMENT.relative_path()), &content[..]).unwrap();
    let start = |uring| BackgroundReader::start(dir.clone(), uring).unwrap();
    (content, vec![("plain", start(false)), ("uring", start(uring::refused().is_none()))])
}

fn read_via(reader: &dyn Reader, at: u64, bytes: usize) -> Result<Bytes, DiskError> {
    let (answer, answered) = mpsc::channel();
    let reply = Box::new(move |result| answer.send(result).unwrap());
    reader.read(DiskRead { file: SEGMENT, at, bytes, reply }).unwrap();
    answered.recv_timeout(PATIENCE).unwrap()
}

#[test]
fn readers_serve_several_threads_at_once_with_exactly_what_was_asked() {
    let dir = directory();
    let (content, readers) = readers(dir.path(), 4 << 20);
    for (name, reader) in readers {
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (reader, content) = (&reader, &content);
                scope.spawn(move || {
                    let mut rng = fastrand::Rng::with_seed(thread);
                    for _ in 0..50 {
                        let at = rng.usize(0..content.len());
                        let bytes = rng.usize(0..=(content.len() - at).min(300_000));
                        let got = read_via(reader, at as u64, bytes).unwrap();
                        assert!(got[..] == content[at..at + bytes], "{name}: {bytes} at {at}");
                    }
                });
            }
        });
    }
}

#[test]
fn readers_tell_what_is_missing_too_short_or_too_much() {
    let dir = directory();
    let (content, readers) = readers(dir.path(), 64 << 10);
    for (name, reader) in readers {
        let beyond = read_via(&reader, content.len() as u64 - 10, 11).unwrap_err();
        assert!(matches!(beyond, DiskError::Short { done: 4096, wanted: 8192, .. }), "{name}: {beyond:?}");
        assert!(read_via(&reader, u64::MAX - 5, 1).is_err(), "{name}");
        assert!(read_via(&reader, 0, usize::MAX / 2).is_err(), "{name}");
        assert_eq!(read_via(&reader, 10, 0).unwrap().len(), 0, "{name}");
        std::fs::rename(dir.path().join("wal/00003.wal"), dir.path().join("moved")).unwrap();
        assert_eq!(read_via(&reader, 0, 10).unwrap(), content[..10], "{name} still has it open");
        reader.forget(SEGMENT);
        let missing = DiskError::Missing { verb: DiskVerb::Open, file: SEGMENT };
        assert_eq!(read_via(&reader, 0, 10), Err(missing), "{name}");
        std::fs::rename(dir.path().join("moved"), dir.path().join("wal/00003.wal")).unwrap();
    }
}

#[test]
fn a_full_queue_hands_requests_back_and_a_dropped_reader_answers_what_it_took() {
    let dir = directory();
    let (_, readers) = readers(dir.path(), 64 << 10);
    for (name, reader) in readers {
        let (answer, answered) = mpsc::channel();
        let (release, hold) = mpsc::channel::<()>();
        let held = answer.clone();
        let reply = Box::new(move |result: Result<Bytes, DiskError>| {
            held.send(result.is_ok()).unwrap();
            hold.recv_timeout(PATIENCE).unwrap();
        });
        reader.read(DiskRead { file: SEGMENT, at: 0, bytes: 1, reply }).unwrap();
        assert!(answered.recv_timeout(PATIENCE).unwrap(), "{name}");
        // The reader's thread is inside the reply now: nothing leaves the queue.
        let mut taken = 0;
        let refused = loop {
            let answer = answer.clone();
            let reply = Box::new(move |result: Result<Bytes, DiskError>| answer.send(result.is_ok()).unwrap());
            match reader.read(DiskRead { file: SEGMENT, at: 0, bytes: 4096, reply }) {
                Ok(()) => taken += 1,
                Err(request) => break request,
            }
            assert!(taken < 10_000, "{name} has no bound");
        };
        assert_eq!(refused.bytes, 4096);
        drop((refused, answer));
        release.send(()).unwrap();
        drop(reader);
        assert_eq!(answered.iter().filter(|&ok| ok).count(), taken, "{name}");
    }
}

#[test]
fn a_reader_may_be_dropped_by_its_own_reply() {
    let dir = directory();
    for (_, reader) in readers(dir.path(), 64 << 10).1 {
        let reader: Arc<dyn Reader> = Arc::new(reader);
        let (answer, answered) = mpsc::channel();
        let (last, handed_over) = mpsc::channel::<Arc<dyn Reader>>();
        let reply = Box::new(move |_| {
            drop(handed_over.recv_timeout(PATIENCE).unwrap());
            answer.send(()).unwrap();
        });
        reader.read(DiskRead { file: SEGMENT, at: 0, bytes: 1, reply }).unwrap();
        last.send(reader).unwrap();
        answered.recv_timeout(PATIENCE).unwrap();
    }
}

#[test]
fn what_was_read_ahead_is_what_a_read_gives() {
    let root = directory();
    for (name, mut disk) in backends(root.path()) {
        let mut rng = fastrand::Rng::with_seed(7);
        let blocks = 64;
        let mut content = pattern(blocks * BLOCK_BYTES, 1);
        disk.write_now(SEGMENT, 0, &content, content.len()).unwrap();
        let mut buf = AlignedBuf::zeroed(8 * BLOCK_BYTES);
        for round in 0..400 {
            let at = rng.usize(0..blocks) * BLOCK_BYTES;
            let bytes = rng.usize(1..=8) * BLOCK_BYTES;
            match rng.u32(0..8) {
                0 => {
                    let bytes = bytes.min(content.len() - at);
                    let new = pattern(bytes, round);
                    disk.write_now(SEGMENT, at as u64, &new, bytes).unwrap();
                    content[at..at + bytes].copy_from_slice(&new);
                }
                1..=2 => disk.read_ahead(0, SEGMENT, at as u64, bytes),
                3..=4 => {
                    let next = |head: &[u8]| Some((1 + head[0] as usize % 3) * BLOCK_BYTES);
                    let end = content.len() as u64;
                    disk.read_chain(0, Chain { file: SEGMENT, at: at as u64, end, bytes, next });
                }
                _ => {
                    // As a scan does: announced, then read, pieces in order.
                    for n in 0..rng.u64(0..4) {
                        disk.read_ahead(0, SEGMENT, at as u64 + n * bytes as u64, bytes);
                    }
                    let read = disk.read(SEGMENT, at as u64, &mut buf, bytes);
                    if at + bytes > content.len() {
                        assert!(matches!(read, Err(DiskError::Short { .. })), "{name}: {read:?}");
                    } else {
                        assert_eq!(read, Ok(()), "{name}");
                        assert!(buf[..bytes] == content[at..at + bytes], "{name}: other bytes at {at}");
                    }
                    assert!(buf.len() >= 8 * BLOCK_BYTES, "{name}: the caller's buffer became smaller");
                }
            }
            if round == 200 {
                disk.end_read_ahead();
            }
        }
    }
}
