//! A node's backup as an operator makes it: while devices publish, asked for over the network; the node dies, and what was
//! acknowledged before comes back from the backup.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use weir_tests::node::{Site, weir_beside_us};

const CONFIG: &str = "[log]\nsegment_bytes = \"1MiB\"\nframe_bytes_max = \"256KiB\"\n[limits]\nbatch_bytes_max = \"100KiB\"\n[cold]\nsort_bytes = \"1MiB\"\n";

fn weir(site: &Site, args: &[&str]) -> Output {
    Command::new(&site.weir).args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// What a command that succeeded printed.
fn said(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// A number of a flat JSON object.
fn number(json: &str, field: &str) -> u64 {
    let rest = json.split_once(&format!("\"{field}\":")).unwrap_or_else(|| panic!("{field} in {json}")).1;
    rest[..rest.find(|c: char| !c.is_ascii_digit()).unwrap()].parse().unwrap()
}

/// Publishes lines in turns until told to stop; `acked` counts those that are stored.
fn load(site: &Site, acked: &AtomicU32, stop: &AtomicBool) {
    for turn in 0.. {
        // Noise, so that it fills segments.
        let line = |n: u32| {
            let mut rng = fastrand::Rng::with_seed(u64::from(n));
            format!("{n} {}\n", std::iter::repeat_with(|| rng.alphanumeric()).take(3000).collect::<String>())
        };
        let lines: String = (turn * 100..turn * 100 + 100).map(line).collect();
        site.ok(&["produce", "t.x"], &lines);
        acked.store(turn * 100 + 100, Ordering::SeqCst);
        if stop.load(Ordering::SeqCst) {
            return;
        }
    }
}

/// Numbers of all records.
fn consumed(site: &Site) -> BTreeSet<u32> {
    let lines = site.ok(&["consume", "t.x", "-o", "beginning", "-e", "-f", "%s\n"], "");
    let numbers: Vec<u32> = lines.lines().map(|line| line.split(' ').next().unwrap().parse().unwrap()).collect();
    let set: BTreeSet<u32> = numbers.iter().copied().collect();
    assert_eq!(set.len(), numbers.len(), "no record comes twice");
    set
}

fn restored(site: &Site, root: &Path, backup: &str, generation: u64) -> Site {
    let data = root.join(format!("restored-{generation}"));
    let args = ["restore", backup, data.to_str().unwrap(), "--generation", &generation.to_string(), "--json"];
    assert_eq!(number(&said(&weir(site, &args)), "generation"), generation);
    let checked = weir(site, &["check", data.to_str().unwrap()]);
    assert!(checked.status.success(), "{}", text(&checked.stdout));
    Site::make_with_data(&site.weir, &root.join(format!("site-{generation}")), &data, CONFIG).unwrap()
}

#[test]
fn what_was_acknowledged_before_a_backup_survives_the_loss_of_the_node() {
    let root = tempfile::tempdir().unwrap();
    let backups = root.path().join("backups");
    std::fs::create_dir(&backups).unwrap();
    let config = format!("{CONFIG}[backup]\ndir = {backups:?}\n");
    let site = Site::make(&weir_beside_us(), &root.path().join("site"), &config).unwrap();
    let node = site.start().unwrap();
    site.ok(&["topic", "create", "t.x", "--partitions", "3"], "");
    let (acked, stop) = (AtomicU32::new(0), AtomicBool::new(false));
    let mut made = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| load(&site, &acked, &stop));
        for _ in 0..3 {
            let from = acked.load(Ordering::SeqCst);
            while acked.load(Ordering::SeqCst) < from + 1000 {
                std::thread::yield_now();
            }
            let before = acked.load(Ordering::SeqCst);
            let output = site.run_as("admin", &["backup", "shed", "--json"], "").unwrap();
            made.push((before, said(&output)));
        }
        stop.store(true, Ordering::SeqCst);
    });
    let stranger = site.run_as("stranger", &["backup", "shed"], "").unwrap();
    assert_eq!(stranger.status.code(), Some(4), "{}", text(&stranger.stderr));
    let outside = site.run_as("admin", &["backup", "/tmp/elsewhere"], "").unwrap();
    assert_eq!(outside.status.code(), Some(2), "{}", text(&outside.stderr));
    let running = weir(&site, &["backup", backups.join("shed").to_str().unwrap(), "--data", site.data().to_str().unwrap()]);
    assert_eq!(running.status.code(), Some(2), "{}", text(&running.stderr));
    let all = acked.load(Ordering::SeqCst);
    node.kill();

    let shed = backups.join("shed");
    let shed = shed.to_str().unwrap();
    // The node is gone, its directory is not: a last backup of it.
    let last = said(&weir(&site, &["backup", shed, "--data", site.data().to_str().unwrap(), "--json"]));
    made.push((all, last));
    assert_eq!(said(&weir(&site, &["backup", shed, "--list"])).lines().count(), 1 + 4);
    assert!(said(&weir(&site, &["backup", shed, "--verify"])).ends_with("sound\n"));
    assert!(made.iter().any(|(_, report)| number(report, "copied_bytes") < number(report, "bytes")), "{made:?}");
    for (generation, (before, report)) in (1..).zip(&made) {
        assert_eq!(number(report, "generation"), generation);
        let site = restored(&site, root.path(), shed, generation);
        let node = site.start().unwrap();
        let found = consumed(&site);
        assert!((0..*before).all(|n| found.contains(&n)), "generation {generation}: {} of {before}", found.len());
        site.ok(&["produce", "t.x"], "9999999 more\n");
        assert!(consumed(&site).contains(&9_999_999));
        node.kill();
    }
    let used = weir(&site, &["restore", shed, site.data().to_str().unwrap()]);
    assert_eq!(used.status.code(), Some(2), "{}", text(&used.stderr));

    let files = std::fs::read_dir(backups.join("shed/files")).unwrap().map(|entry| entry.unwrap().path());
    let cold = files.max().expect("there are files");
    let mut bytes = std::fs::read(&cold).unwrap();
    bytes[5000] ^= 1;
    std::fs::write(&cold, bytes).unwrap();
    let damaged = weir(&site, &["backup", shed, "--verify"]);
    assert_eq!(damaged.status.code(), Some(1));
    assert!(text(&damaged.stdout).contains("DAMAGE       files/"), "{}", text(&damaged.stdout));
}
