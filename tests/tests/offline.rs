//! The commands that work on a stopped node's directory, with the exit codes that scripts rely on.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use weir_tests::node::{Site, weir_beside_us};

/// A node that has been stopped, with 300 records in 2 partitions.
fn stopped(dir: &Path) -> Site {
    let site = Site::make(&weir_beside_us(), dir, "[log]\nsegment_bytes = \"8MiB\"\nframe_bytes_max = \"2MiB\"\n").unwrap();
    let node = site.start().unwrap();
    site.ok(&["topic", "create", "t.x", "--partitions", "2"], "");
    let lines: String = (0..300).map(|n| format!("key-{}:value number {n}\n", n % 7)).collect();
    site.ok(&["produce", "t.x", "-K", ":"], &lines);
    assert!(node.stop().unwrap().success());
    site
}

fn weir(site: &Site, args: &[&str], path: &Path) -> Output {
    Command::new(&site.weir).args(args).arg(path).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The segment that holds the records, and where their frame lies.
fn frame_of_records(site: &Site) -> (PathBuf, usize) {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(site.data().join("wal")).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        let with_text =
            |at: &usize| bytes[*at..].starts_with(b"WFR1") && bytes[*at..(*at + 4096)].windows(7).any(|w| w == b"value n");
        found.extend((0..bytes.len()).step_by(4096).filter(with_text).map(|at| (path.clone(), at)));
    }
    found.pop().expect("the records lie somewhere")
}

#[test]
fn check_tells_by_its_exit_code_what_it_found() {
    let dir = tempfile::tempdir().unwrap();
    let site = stopped(dir.path());
    let sound = weir(&site, &["check"], &site.data());
    let said = text(&sound.stdout);
    assert_eq!(sound.status.code(), Some(0), "{said}");
    assert!(said.ends_with("sound\n") && said.contains("shut down") && sound.stderr.is_empty(), "{said}");

    let node = site.start().unwrap();
    let running = weir(&site, &["check"], &site.data());
    assert_eq!(running.status.code(), Some(2));
    assert!(text(&running.stderr).contains("in use by process"), "{}", text(&running.stderr));
    node.kill();
    let killed = weir(&site, &["check"], &site.data());
    assert_eq!(killed.status.code(), Some(0), "a crash is no damage: {}", text(&killed.stdout));
    assert!(text(&killed.stdout).contains("not shut down"));
    assert_eq!(weir(&site, &["check"], &dir.path().join("nowhere")).status.code(), Some(2));

    let (segment, at) = frame_of_records(&site);
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[at + 1000] ^= 1;
    std::fs::write(&segment, &bytes).unwrap();
    let damaged = weir(&site, &["check", "--jobs", "1"], &site.data());
    let said = text(&damaged.stdout);
    assert_eq!(damaged.status.code(), Some(1), "{said}");
    let name = format!("wal/{}", segment.file_name().unwrap().to_str().unwrap());
    assert!(said.contains(&format!("DAMAGE       {name} at {at}: frame ")) && said.contains("lost         partition "), "{said}");
    let json = text(&weir(&site, &["check", "--json"], &site.data()).stdout);
    assert!(json.contains(r#""sound":false"#) && json.contains(r#""lost":[{"from":0,"#) && json.lines().count() == 1, "{json}");
}

#[test]
fn dump_shows_what_lies_in_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let site = stopped(dir.path());
    let (segment, at) = frame_of_records(&site);
    let shown = weir(&site, &["dump", "--records"], &segment);
    assert_eq!(shown.status.code(), Some(0));
    let said = text(&shown.stdout);
    let words =
        ["segment  sequence ", &format!("\n{at:>10}  lsn "), "batches  partition ", "key \"key-3\"  value \"value number 3\""];
    words.iter().for_each(|words| assert!(said.contains(words), "{words}: {said}"));
    let json = text(&weir(&site, &["dump", "--records", "--json"], &segment).stdout);
    assert_eq!(json.lines().filter(|line| line.contains(r#""type":"record""#)).count(), 300);
    let slots = text(&weir(&site, &["dump"], &site.data().join("superblock")).stdout);
    assert!(slots.contains("slot A  format 1.") && slots.contains("slot B  format 1.") && slots.contains("closed"), "{slots}");

    let other = weir(&site, &["dump"], &site.config());
    assert_eq!(other.status.code(), Some(2));
    assert!(text(&other.stderr).contains("neither a segment"), "{}", text(&other.stderr));
    let missing = weir(&site, &["dump"], &dir.path().join("nothing.wal"));
    assert_eq!(missing.status.code(), Some(1));
}

#[test]
fn dump_ends_quietly_when_nobody_reads_on() {
    let dir = tempfile::tempdir().unwrap();
    let site = stopped(dir.path());
    let (segment, _) = frame_of_records(&site);
    // Many times as much as a pipe holds.
    let mut child = Command::new("sh")
        .args(["-c", r#"{ for i in 1 2 3 4 5 6 7 8; do "$0" dump --records "$1" || echo "failed $?" >&2; done; } | head -1"#])
        .arg(&site.weir)
        .arg(&segment)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    assert!(child.wait().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(text(&output.stdout).lines().count(), 1);
    assert_eq!(text(&output.stderr), "");
}
