//! What an operator or a peer can get wrong: each earns a clear error, and nothing that was acknowledged is lost.

use std::net::UdpSocket;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use weir_storage::format::BLOCK;
use weir_storage::format::superblock::{Slot, Superblock, VolumeState};
use weir_tests::node::{Site, http_get, http_status, weir_beside_us};

fn site(dir: &Path, more: &str) -> Site {
    Site::make(&weir_beside_us(), dir, more).expect("a site can be made")
}

/// Starts a node that must refuse, and returns what it said.
fn refusal(site: &Site) -> String {
    let status = site.spawn().unwrap().refused().unwrap();
    assert!(status.is_some_and(|status| !status.success()), "weir serve should have refused:\n{}", site.log());
    site.log()
}

fn assert_says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "expected {word:?} in:\n{text}");
    }
}

#[test]
fn config_typo_is_named_with_a_suggestion() {
    let dir = tempfile::tempdir().unwrap();
    let site = site(dir.path(), "[log]\nsegment_byte = \"64MiB\"\n");
    assert_says(&refusal(&site), &["segment_byte", "segment_bytes", "weir.toml"]);
}

#[test]
fn second_node_on_one_directory_is_refused_and_names_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let first = site(&dir.path().join("a"), "");
    let running = first.start().unwrap();
    let second = site(&dir.path().join("b"), "");
    let text = std::fs::read_to_string(second.config()).unwrap();
    let theirs = text.replace(second.data().to_str().unwrap(), first.data().to_str().unwrap());
    std::fs::write(second.config(), theirs).unwrap();
    assert_says(&refusal(&second), &["in use by process", first.data().to_str().unwrap()]);
    first.ok(&["topic", "list"], "");
    drop(running);
}

#[test]
fn data_directory_of_another_node_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let site = site(dir.path(), "");
    site.start().unwrap().stop().unwrap();
    let other = "node.id=7c9e6679-7425-40de-944b-e07fc1f90ae7";
    let output = Command::new(&site.weir).args(["serve", "--set", other, "--config"]).arg(site.config()).output().unwrap();
    assert!(!output.status.success());
    assert_says(&String::from_utf8_lossy(&output.stderr), &["belongs to node", "7c9e6679"]);
}

#[test]
fn segment_of_another_volume_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = (site(&dir.path().join("a"), ""), site(&dir.path().join("b"), ""));
    for site in [&ours, &theirs] {
        let node = site.start().unwrap();
        site.ok(&["topic", "create", "t.x"], "");
        node.stop().unwrap();
    }
    let segment = first_file(&theirs.data().join("wal"));
    let target = ours.data().join("wal").join("00099.wal");
    std::fs::copy(segment, target).unwrap();
    assert_says(&refusal(&ours), &["belongs to volume", "99"]);
}

fn first_file(dir: &Path) -> std::path::PathBuf {
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.remove(0)
}

#[test]
fn unwritable_directory_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let site = site(dir.path(), "");
    // Not even root can make a directory here.
    let text = std::fs::read_to_string(site.config()).unwrap().replace(site.data().to_str().unwrap(), "/proc/weir-data");
    std::fs::write(site.config(), text).unwrap();
    assert_says(&refusal(&site), &["/proc/weir-data", "writable"]);
}

#[test]
fn certificates_wrong_expired_missing_or_without_rights() {
    let dir = tempfile::tempdir().unwrap();
    let ours = site(&dir.path().join("a"), "");
    let _node = ours.start().unwrap();
    ours.ok(&["topic", "create", "t.x"], "");

    let foreign = site(&dir.path().join("b"), "");
    let (cert, key) = (foreign.certs().join("admin.pem"), foreign.certs().join("admin.key"));
    let wrong = ["topic", "list", "--cert", cert.to_str().unwrap(), "--key", key.to_str().unwrap()];
    let output = ours.run_as("admin", &wrong, "").unwrap();
    assert!(!output.status.success());
    assert_says(&String::from_utf8_lossy(&output.stderr), &["certificate"]);

    let certs = ours.certs();
    let made = Command::new(&ours.weir).args(["cert", "device", "late", "--days=-1", "--dir"]).arg(&certs).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let output = ours.run_as("late", &["topic", "list"], "").unwrap();
    assert!(!output.status.success());
    assert_says(&String::from_utf8_lossy(&output.stderr), &["expired"]);

    let output = ours.run_as("nobody", &["topic", "list"], "").unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_says(&String::from_utf8_lossy(&output.stderr), &["no certificate file", "nobody.pem"]);

    let output = ours.run_as("stranger", &["produce", "t.x"], "hello\n").unwrap();
    assert_eq!(output.status.code(), Some(4), "{}", String::from_utf8_lossy(&output.stderr));
    assert_says(&String::from_utf8_lossy(&output.stderr), &["stranger", "produce", "t.x"]);
    assert_eq!(ours.ok(&["consume", "t.x", "-o", "beginning", "-e"], ""), "");
}

#[test]
fn garbage_and_plaintext_on_the_port_disturb_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let site = site(dir.path(), "");
    let _node = site.start().unwrap();
    site.ok(&["topic", "create", "t.x"], "");
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut random = fastrand::Rng::with_seed(7);
    for length in 0..1400 {
        let mut bytes: Vec<u8> = (0..length).map(|_| random.u8(..)).collect();
        if length > 64 && length % 3 == 0 {
            bytes[..64].fill(b'G'); // looks like text, e.g. an HTTP client
        }
        socket.send_to(&bytes, site.addr).unwrap();
    }
    site.ok(&["produce", "t.x"], "one\ntwo\n");
    let read = site.ok(&["consume", "t.x", "-o", "beginning", "-e", "-f", "%s\n"], "");
    let mut lines: Vec<&str> = read.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["one", "two"]);
}

#[test]
fn full_disk_refuses_and_keeps_what_it_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mount = dir.path().join("small");
    std::fs::create_dir(&mount).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=40m", "weir-test"]).arg(&mount).status();
    if !mounted.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED full_disk_refuses_and_keeps_what_it_acknowledged: mounting a small file system needs root");
        return;
    }
    let result = std::panic::catch_unwind(|| full_disk(&mount));
    let _ = Command::new("umount").arg(&mount).status();
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

fn full_disk(mount: &Path) {
    let site = site(
        &mount.join("site"),
        "[log]\nsegment_bytes = \"8MiB\"\nspare_segments = 1\nframe_bytes_max = \"1MiB\"\ncompress_from_bytes = 0\n[limits]\nbatch_bytes_max = \"512KiB\"\n",
    );
    let node = site.start().unwrap();
    site.ok(&["topic", "create", "t.full", "--partitions", "1"], "");
    let mut random = fastrand::Rng::with_seed(11);
    let line = |random: &mut fastrand::Rng| -> String { (0..1000).map(|_| random.alphanumeric()).collect() };
    let mut acknowledged = Vec::new();
    let refused = loop {
        let lines: Vec<String> = (0..2000).map(|_| line(&mut random)).collect();
        let output =
            site.run_as("admin", &["produce", "t.full", "--delivery-timeout", "3s"], &(lines.join("\n") + "\n")).unwrap();
        if !output.status.success() {
            break String::from_utf8_lossy(&output.stderr).into_owned();
        }
        acknowledged.extend(lines);
        assert!(acknowledged.len() < 80_000, "a 40 MiB disk cannot hold {} KB", acknowledged.len());
    };
    assert_says(&refused, &["full"]);
    let stored = site.ok(&["consume", "t.full", "-o", "beginning", "-e", "-f", "%s\n"], "");
    let stored: Vec<&str> = stored.lines().collect();
    assert!(stored.len() >= acknowledged.len());
    assert!(stored.iter().zip(&acknowledged).all(|(stored, acknowledged)| stored == acknowledged));
    node.kill();
    let _again = site.start().unwrap();
    let again = site.ok(&["consume", "t.full", "-o", "beginning", "-e", "-f", "%s\n"], "");
    assert!(again.lines().zip(&acknowledged).all(|(stored, acknowledged)| stored == acknowledged));
    assert!(again.lines().count() >= acknowledged.len());
}

#[test]
fn a_log_that_cannot_be_sorted_says_so_and_goes_on_when_it_can() {
    let dir = tempfile::tempdir().unwrap();
    let site = site(
        dir.path(),
        "[log]\nsegment_bytes = \"4MiB\"\nframe_bytes_max = \"1MiB\"\ncompress_from_bytes = 0\n\
         [cold]\nsort_bytes = \"4MiB\"\nsort_memory_bytes = \"4MiB\"\nlog_bytes_max = \"16MiB\"\n[limits]\nbatch_bytes_max = \"512KiB\"\n",
    );
    let _node = site.start().unwrap();
    site.ok(&["topic", "create", "t.x", "-p", "1"], "");
    // Made by the first segment that goes there.
    let cold = site.data().join("cold");
    std::fs::write(&cold, "in the way").unwrap();
    let mut random = fastrand::Rng::with_seed(13);
    let mut line = || -> String { (0..1000).map(|_| random.alphanumeric()).collect() };
    // More than the log holds.
    let lines: Vec<String> = (0..24_000).map(|_| line()).collect();
    std::thread::scope(|scope| {
        let producing = scope.spawn(|| site.ok(&["produce", "t.x", "--delivery-timeout", "120s"], &(lines.join("\n") + "\n")));
        until("the node is not ready", || http_status(site.http, "/readyz") == Some(503));
        assert_says(&http_get(site.http, "/readyz").unwrap(), &["appends wait", "cannot be sorted"]);
        assert_says(&http_get(site.http, "/metrics").unwrap(), &["\nweir_log_stalled 1"]);
        let status = site.run_as("admin", &["status"], "").unwrap();
        assert_says(&String::from_utf8_lossy(&status.stdout), &["cannot be sorted"]);
        assert!(!producing.is_finished(), "producers wait");
        std::fs::remove_file(&cold).unwrap();
        producing.join().unwrap();
    });
    until("the node is ready", || http_status(site.http, "/readyz") == Some(200));
    let stored = site.ok(&["consume", "t.x", "-o", "beginning", "-e", "-f", "%s\n"], "");
    assert!(stored.lines().eq(lines.iter()), "everything is there once, in order");
}

/// Waits for what may take seconds on a busy machine.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < Duration::from_secs(60), "waited for a minute: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_fenced_log_opens_again_when_the_operator_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let site = site(dir.path(), "");
    let node = site.start().unwrap();
    site.ok(&["topic", "create", "t.x", "-p", "1"], "");
    site.ok(&["produce", "t.x"], "kept\n");
    node.stop().unwrap();
    fence(&site.data().join("superblock"));
    assert_says(&refusal(&site), &["a write to this volume failed", "weir serve --set log.accept_fenced=true"]);
    let node = site.start_with(&["--set", "log.accept_fenced=true"]).unwrap();
    assert_eq!(site.ok(&["consume", "t.x", "-o", "beginning", "-e"], ""), "kept\n");
    node.stop().unwrap();
    // Once is enough.
    let _again = site.start().unwrap();
}

/// As a node leaves it whose disk refused a write.
fn fence(superblock: &Path) {
    let mut bytes = std::fs::read(superblock).unwrap();
    let slots = bytes.chunks(BLOCK).filter_map(|block| match Superblock::decode(block) {
        Slot::Good(superblock) => Some(superblock),
        _ => None,
    });
    let mut newest = slots.max_by_key(|superblock| superblock.generation).expect("a volume has a superblock");
    newest.state = VolumeState::Fenced;
    let at = newest.slot_at() as usize;
    bytes[at..at + BLOCK].copy_from_slice(&newest.encode());
    std::fs::write(superblock, bytes).unwrap();
}

#[test]
fn full_disk_takes_from_the_topic_that_gives_way() {
    let dir = tempfile::tempdir().unwrap();
    let mount = dir.path().join("small");
    std::fs::create_dir(&mount).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=48m", "weir-test"]).arg(&mount).status();
    if !mounted.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED full_disk_takes_from_the_topic_that_gives_way: mounting a small file system needs root");
        return;
    }
    let result = std::panic::catch_unwind(|| dropped_oldest(&mount));
    let _ = Command::new("umount").arg(&mount).status();
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

fn dropped_oldest(mount: &Path) {
    let site = site(
        &mount.join("site"),
        "[log]\nsegment_bytes = \"4MiB\"\nspare_segments = 1\nframe_bytes_max = \"1MiB\"\ncompress_from_bytes = 0\n\
         [cold]\nsort_bytes = \"4MiB\"\nsort_memory_bytes = \"4MiB\"\nlog_bytes_max = \"16MiB\"\n[limits]\nbatch_bytes_max = \"512KiB\"\n",
    );
    let _node = site.start().unwrap();
    site.ok(&["topic", "create", "t.kept", "--partitions", "1"], "");
    site.ok(&["topic", "create", "t.loose", "--partitions", "1", "--set", "when.full=drop_oldest"], "");
    let mut random = fastrand::Rng::with_seed(12);
    let line = |random: &mut fastrand::Rng| -> String { (0..1000).map(|_| random.alphanumeric()).collect() };
    let lines = |random: &mut fastrand::Rng| -> String { (0..2000).map(|_| line(random) + "\n").collect() };
    let kept = lines(&mut random);
    site.ok(&["produce", "t.kept"], &kept);
    // Half as much again as the disk holds: nothing is refused.
    let mut last = String::new();
    for _ in 0..36 {
        last = lines(&mut random);
        site.ok(&["produce", "t.loose", "--delivery-timeout", "60s"], &last);
    }
    let loose = site.ok(&["consume", "t.loose", "-o", "beginning", "-e", "-f", "%s\n"], "");
    assert!(loose.ends_with(&last), "the newest records stay");
    assert!(loose.len() < 48 << 20);
    assert!(site.ok(&["consume", "t.kept", "-o", "beginning", "-e", "-f", "%s\n"], "") == kept, "the other topic is not touched");
    let metrics = http_get(site.http, "/metrics").expect("metrics");
    let dropped = metrics.lines().find_map(|line| line.strip_prefix("weir_cold_segments_dropped ")).expect("counted");
    assert!(dropped.trim().parse::<u64>().expect("a number") > 0);
}
