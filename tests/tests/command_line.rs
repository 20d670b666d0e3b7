//! The command line as scripts use it, against a real node.

use weir_tests::node::{Site, http_get, weir_beside_us};

fn lines(site: &Site, topic: &str) -> Vec<u64> {
    let read = site.ok(&["consume", topic, "-o", "beginning", "-e", "-f", "%s\n"], "");
    let mut numbers: Vec<u64> = read.lines().map(|line| line.parse().unwrap()).collect();
    numbers.sort_unstable();
    numbers
}

fn numbers(range: std::ops::Range<u64>) -> String {
    range.map(|number| format!("{number}\n")).collect()
}

#[test]
fn a_resumed_produce_sends_each_line_once_whatever_its_partition() {
    let dir = tempfile::tempdir().unwrap();
    let site = Site::make(&weir_beside_us(), dir.path(), "").unwrap();
    let _node = site.start().unwrap();
    site.ok(&["topic", "create", "t.plain", "--partitions", "4"], "");
    site.ok(&["topic", "create", "t.keyed", "--partitions", "3"], "");
    for end in [700, 701, 1500] {
        site.ok(&["produce", "t.plain", "--producer-name", "job", "--resume"], &numbers(0..end));
        assert_eq!(lines(&site, "t.plain"), (0..end).collect::<Vec<_>>());
    }
    let keyed = |end: u64| -> String { (0..end).map(|number| format!("key-{}:{number}\n", number % 17)).collect() };
    for end in [300, 1000] {
        site.ok(&["produce", "t.keyed", "-K", ":", "--producer-name", "job", "--resume"], &keyed(end));
        assert_eq!(lines(&site, "t.keyed"), (0..end).collect::<Vec<_>>());
    }
}

#[test]
fn commands_leave_no_connection_behind() {
    let dir = tempfile::tempdir().unwrap();
    let site = Site::make(&weir_beside_us(), dir.path(), "").unwrap();
    let _node = site.start().unwrap();
    site.ok(&["topic", "create", "t.x"], "");
    site.ok(&["produce", "t.x"], "one\n");
    site.run_as("stranger", &["produce", "t.x"], "two\n").unwrap();
    let begin = std::time::Instant::now();
    // An idle timeout would end them after 30 s: long before, the goodbyes have arrived.
    while !http_get(site.http, "/metrics").unwrap().lines().any(|line| line == "weir_connections 0") {
        assert!(begin.elapsed().as_secs() < 15, "connections are still open");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

#[test]
fn the_latest_value_of_a_key_and_settings_from_the_command_line() {
    let dir = tempfile::tempdir().unwrap();
    let site = Site::make(&weir_beside_us(), dir.path(), "").unwrap();
    let _node = site.start().unwrap();
    site.ok(&["topic", "create", "t.state", "-p", "5", "--set", "cleanup.policy=compact"], "");
    site.ok(&["produce", "t.state", "-K", ":"], "a:1\nb:2\na:3\nc:4\n");
    assert_eq!(site.ok(&["topic", "latest", "t.state", "a"], ""), "3\n");
    assert!(site.ok(&["topic", "latest", "t.state", "b", "--json"], "").contains(r#""value":"2""#));
    let none = site.run_as("admin", &["topic", "latest", "t.state", "z"], "").unwrap();
    assert_eq!((none.status.code(), none.stdout.as_slice()), (Some(1), &b""[..]));
    let keyless = site.run_as("admin", &["produce", "t.state"], "no key\n").unwrap();
    assert_eq!(keyless.status.code(), Some(4), "{}", String::from_utf8_lossy(&keyless.stderr));
    site.ok(&["topic", "set", "t.state", "delete.retention.ms=1h", "x-site=north"], "");
    site.ok(&["topic", "set", "t.state", "x-site="], "");
    let about = site.ok(&["topic", "describe", "t.state"], "");
    assert!(about.contains("delete.retention.ms=1h") && !about.contains("x-site"), "{about}");
}
