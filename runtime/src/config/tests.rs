//! The configuration as operators meet it: precedence, typos, units, contradictions.

use std::path::PathBuf;

use super::*;

fn from_file(text: &str) -> Result<Config, ConfigError> {
    load(text, &[], &[])
}

fn load(text: &str, environment: &[(&str, &str)], overrides: &[&str]) -> Result<Config, ConfigError> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("node.toml");
    std::fs::write(&path, text).expect("writable");
    Config::load(&Sources {
        file: Some(path),
        environment: environment.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(),
        overrides: overrides.iter().map(|text| (*text).to_owned()).collect(),
        memory_allowed: None,
    })
}

fn sentence(result: Result<Config, ConfigError>) -> String {
    result.expect_err("must be refused").to_string()
}

#[test]
fn the_printed_defaults_are_a_valid_file_that_changes_nothing() {
    let printed = load(DEFAULT_TOML, &[], &[]).expect("the printed defaults load");
    let mut defaults = Config::defaults();
    // Paths of a file are relative to the file.
    assert!(printed.node.data_dir.is_absolute() && printed.node.data_dir.ends_with("weir-data"));
    defaults.node.data_dir = printed.node.data_dir.clone();
    defaults.quic.cert = printed.quic.cert.clone();
    defaults.quic.key = printed.quic.key.clone();
    defaults.quic.client_ca = printed.quic.client_ca.clone();
    assert_eq!(printed, defaults);
}

#[test]
fn rendered_values_load_to_the_same_configuration() {
    let mut config = Config::defaults();
    config.node.data_dir = PathBuf::from("/srv/weir");
    config.quic.cert = PathBuf::from("/etc/weir/server.pem");
    config.quic.key = PathBuf::from("/etc/weir/server.key");
    config.quic.client_ca = PathBuf::from("/etc/weir/ca.pem");
    config.log.backend = Backend::Plain;
    assert_eq!(from_file(&config.to_toml()).expect("loads"), config);
}

#[test]
fn flags_beat_environment_beats_file_beats_defaults() {
    let file = "[log]\nspare_segments = 3\nsegment_bytes = \"32MiB\"\ntail_cache_bytes = \"1MiB\"\n";
    let environment = [("WEIR_LOG__SPARE_SEGMENTS", "4"), ("WEIR_LOG__SEGMENT_BYTES", "48MiB")];
    let config = load(file, &environment, &["log.spare_segments=5"]).expect("valid");
    assert_eq!(config.log.spare_segments, 5);
    assert_eq!(config.log.segment_bytes, 48 << 20);
    assert_eq!(config.log.tail_cache_bytes, 1 << 20);
    assert_eq!(config.log.frame_bytes_max, 8 << 20);
}

#[test]
fn a_typo_in_the_file_names_line_and_likely_key() {
    let error = sentence(from_file("[node]\nname = \"a\"\n\n[log]\nsegment_byte = 1\n"));
    assert!(error.contains("node.toml line 5: unknown key `log.segment_byte`"), "{error}");
    assert!(error.contains("did you mean `log.segment_bytes`?"), "{error}");
    let error = sentence(from_file("\n[qiuc]\n"));
    assert!(error.contains("line 2: unknown section `qiuc`, did you mean `quic`?"), "{error}");
    let error = sentence(from_file("listen = 3"));
    assert!(error.contains("line 1: unknown section `listen`"), "{error}");
}

#[test]
fn a_typo_in_environment_or_flag_names_it() {
    let error = sentence(load("", &[("WEIR_HTTP__LISTN", "x")], &[]));
    assert!(error.contains("environment variable WEIR_HTTP__LISTN: unknown key"), "{error}");
    assert!(error.contains("`http.listen`"), "{error}");
    let error = sentence(load("", &[], &["log.backnd=plain"]));
    assert!(error.contains("--set log.backnd=plain: unknown key"), "{error}");
    let error = sentence(load("", &[], &["log.backend"]));
    assert!(error.contains("section.key=value"), "{error}");
}

#[test]
fn variables_of_other_programs_are_left_alone() {
    let others = [("WEIR_HTTP_PORT", "tcp://10.0.0.1:80"), ("WEIR_CERTS", "x"), ("PATH", "/bin")];
    assert!(load("", &others, &[]).is_ok());
}

#[test]
fn values_of_the_wrong_type_or_unit_say_what_would_be_right() {
    for (text, wanted) in [
        ("[log]\nsegment_bytes = \"64 parsecs\"", "line 2: log.segment_bytes must be a size"),
        ("[log]\nsegment_bytes = -1", "log.segment_bytes must be a whole number that is not negative, not -1"),
        ("[quic]\nidle_timeout_ms = \"soon\"", "quic.idle_timeout_ms must be a time"),
        ("[quic]\nzero_rtt = \"perhaps\"", "quic.zero_rtt must be true or false"),
        ("[quic]\nlisten = 7300", "quic.listen must be a string in quotes, not 7300"),
        ("[quic]\n\nlisten = \"7300\"", "line 3: quic.listen must be an address and port"),
        ("[node]\nid = \"seven\"", "line 2: node.id must be a UUID"),
        ("[log]\nbackend = \"rust\"", "line 2: log.backend must be one of `auto`, `uring`, `plain`, not \"rust\""),
        ("[limits]\nlanes_max = 70000", "line 2: limits.lanes_max must be a number that fits u16, not 70000"),
        ("[log]\nsegment_bytes = 40970000", "log.segment_bytes must be a multiple of 4096"),
        ("[trace]\nlevel = \"a=b=c\"", "trace.level must be a level"),
        ("log = 3", "log must be a section"),
        ("[log\n", "line 1: not valid TOML"),
    ] {
        let error = sentence(from_file(text));
        assert!(error.contains(wanted), "{text:?} gave: {error}");
    }
}

#[test]
fn contradictions_name_both_keys_and_values() {
    let error = sentence(from_file("[limits]\nbatch_bytes_max = \"1MiB\""));
    assert!(
        error.contains("limits.batch_bytes_max (1048576) must be 64 bytes less than limits.frame_bytes_max (1048576)"),
        "{error}"
    );
    let error = sentence(load("", &[], &["cold.log_bytes_max=128MiB"]));
    assert!(
        error.contains("log.segment_bytes (67108864) must not exceed a quarter of cold.log_bytes_max (134217728)"),
        "{error}"
    );
    let error = sentence(load("", &[], &["log.segment_bytes=8MiB"]));
    assert!(error.contains("log.frame_bytes_max (8388608) must not exceed half of log.segment_bytes (8388608)"), "{error}");
}

#[test]
fn acl_rules_of_a_file_replace_the_defaults() {
    let config = from_file(
        "[[acl]]\nprincipal = \"truck-*\"\ntopic = \"tpms.*\"\nallow = [\"produce\"]\n\n[[acl]]\nprincipal = \"ops\"\nallow = [\"admin\"]\n",
    )
    .expect("valid");
    assert!(config.permits("truck-7", Right::Produce, "tpms.raw"));
    assert!(!config.permits("truck-7", Right::Produce, "billing"));
    assert!(!config.permits("truck-7", Right::Consume, "tpms.raw"));
    assert!(!config.permits("car-7", Right::Produce, "tpms.raw"));
    assert!(config.permits("ops", Right::Admin, "anything"));
    assert!(!config.permits("ops2", Right::Admin, "anything"));
    assert!(!config.permits("admin", Right::Admin, "anything"), "the defaults must be gone");
}

#[test]
fn a_rule_with_a_wrong_word_is_refused_where_it_stands() {
    for (rule, wanted) in [
        ("principal = \"a\"\nallow = [\"write\"]", "line 1: acl.allow must be a list of \"produce\""),
        ("principle = \"a\"\nallow = []", "unknown key `acl.principle`, did you mean `acl.principal`?"),
        ("principal = \"a*b\"\nallow = []", "acl.principal must be a name, or a prefix with one * at its end"),
        ("allow = []", "acl.principal must be given in every rule"),
    ] {
        let error = sentence(from_file(&format!("[[acl]]\n{rule}\n")));
        assert!(error.contains(wanted), "{rule:?} gave: {error}");
    }
}

#[test]
fn volumes_are_directories_of_their_own_beside_the_file() {
    assert!(Config::defaults().volume.is_empty());
    let config = from_file("[[volume]]\ndir = \"/mnt/b\"\n\n[[volume]]\ndir = \"c\"\n").expect("valid");
    let dirs: Vec<_> = config.volume.iter().map(|volume| volume.dir.clone()).collect();
    assert!(dirs[0].to_str() == Some("/mnt/b") && dirs[1].ends_with("c") && dirs[1].is_absolute(), "{dirs:?}");
    for (volume, wanted) in [
        ("[[volume]]\npath = \"/b\"", "unknown key `volume.path`"),
        ("[[volume]]", "line 1: volume.dir must be a directory on a disk of its own, not left out"),
        ("[[volume]]\ndir = 7", "volume.dir must be a directory on a disk of its own, not 7"),
        ("[[volume]]\ndir = \"/b\"\n[[volume]]\ndir = \"/b\"", "line 3: volume must be given once"),
        ("[volume]\ndir = \"/b\"", "volume must be a list written as [[volume]]"),
        ("[node]\ndata_dir = \"/b\"\n[[volume]]\ndir = \"/b\"", "node.data_dir"),
        ("[cold]\nenabled = false\n[[volume]]\ndir = \"/b\"\n[[volume]]\ndir = \"/c\"", "cold.enabled"),
    ] {
        let error = sentence(from_file(volume));
        assert!(error.contains(wanted), "{volume:?} gave: {error}");
    }
}

#[test]
fn little_memory_makes_smaller_buffers_that_still_fit_each_other() {
    let defaults = Config::defaults();
    for mib in [64_u64, 128, 256, 512] {
        let config = load("", &[], &[&format!("node.memory_bytes_max={mib}MiB")]).expect("the shares fit the relations");
        let memory = mib << 20;
        assert_eq!(config.limits.ingest_bytes_in_flight, memory / 8);
        assert_eq!(config.log.tail_cache_bytes, memory / 16);
        assert_eq!((config.cold.sort_memory_bytes, config.cold.key_map_bytes_max), (memory / 32, memory / 64));
        assert!(config.quic.connections_max < defaults.quic.connections_max);
        let cold = config.cold.sort_memory_bytes + config.cold.key_map_bytes_max;
        let log = config.log.tail_cache_bytes + 3 * u64::from(config.log.frame_bytes_max);
        let grown = config.limits.ingest_bytes_in_flight + log + cold;
        assert!(grown < memory / 2, "{grown} of {memory}");
    }
}

#[test]
fn what_the_operator_sets_is_not_made_smaller() {
    let file = "[node]\nmemory_bytes_max = \"256MiB\"\n[log]\ntail_cache_bytes = \"64MiB\"\n";
    let config = from_file(file).expect("valid");
    assert_eq!(config.log.tail_cache_bytes, 64 << 20);
    assert_eq!(config.limits.ingest_bytes_in_flight, 32 << 20);
}

#[test]
fn a_control_group_counts_where_nothing_is_set() {
    let of = |allowed| Config::load(&Sources { memory_allowed: Some(allowed), ..Sources::default() }).expect("valid");
    assert_eq!(of(256 << 20).log.tail_cache_bytes, 16 << 20);
    assert_eq!(of(24 << 30).log, Config::defaults().log);
    let too_little = sentence(load("", &[], &["node.memory_bytes_max=1MiB"]));
    assert!(too_little.contains("node.memory_bytes_max must be 0 or at least 67108864"), "{too_little}");
}
