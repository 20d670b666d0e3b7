//! Plugins that fail: who is to blame is found, the policy is applied, the error names everything.
use std::collections::BTreeSet;

use weir_batch::Headers;
use weir_pipeline::{FailureKind, FailurePolicy, Main, RunError};

use crate::guests::{Node, compile, dead_letter, letters, manifest, module, pipeline, routed, stage, stream};

/// Letter, kind, and what the message says.
const FAULTS: [(&str, FailureKind, &str); 7] = [
    ("t", FailureKind::Trap, "unreachable"),
    ("l", FailureKind::Timeout, "longer than 20 ms"),
    ("g", FailureKind::Memory, "its limit is 8388608"),
    ("o", FailureKind::Output, "emitted more than"),
    ("x", FailureKind::Garbage, "the batch has"),
    ("f", FailureKind::Fatal, "batch refused"),
    ("j", FailureKind::Reject, "no good"),
];

#[test]
fn each_policy_meets_each_fault() {
    for (letter, kind, says) in FAULTS {
        let bad = format!("{letter}-bad");
        let values = ["k0", "r1", &bad, "k3", "d4", "e5"];
        for policy in [FailurePolicy::Fail, FailurePolicy::Pass, FailurePolicy::Drop, dead_letter()] {
            let context = format!("{letter} with {policy:?}");
            let (node, pipeline) = (Node::new(), letters(policy.clone()));
            let result = node.values(&pipeline, &values);
            let failure = match (&policy, &result) {
                (FailurePolicy::Fail, Err(RunError::Rejected(failure))) => failure.clone(),
                (_, Ok(output)) => {
                    assert_eq!(output.failures.len(), 1, "{context}");
                    output.failures[0].clone()
                }
                other => panic!("{context}: {other:?}"),
            };
            assert_eq!((&*failure.plugin, &*failure.version), ("letters", "1.2.3"), "{context}");
            assert_eq!((failure.record_index, failure.records, failure.kind), (2, 1, kind), "{context}: {failure}");
            assert_eq!(failure.key.as_deref(), Some(&b"k2"[..]), "{context}");
            assert!(failure.message.contains(says), "{context}: {failure}");
            let Ok(output) = result else { continue };
            let mut expected = vec!["k0", "A1", "k3", "e5"];
            if policy == FailurePolicy::Pass {
                expected.insert(2, &bad);
            }
            assert_eq!(stream(&output, &values), expected, "{context}");
            let mut elsewhere = vec![("t.copies".to_owned(), vec!["e5".to_owned()])];
            if policy == dead_letter() {
                elsewhere.push(("t.dead".to_owned(), vec![bad.clone()]));
            }
            assert_eq!(routed(&output), elsewhere, "{context}");
            let rejected = u64::from(kind == FailureKind::Reject);
            assert_eq!((output.counts.rejected, output.counts.failed), (rejected, 1 - rejected), "{context}");
            // The instance that failed is replaced: the next batch is fine.
            assert_eq!(node.values(&pipeline, &["k", "k"]).unwrap().main, Main::Unchanged, "{context}");
        }
    }
}

#[test]
fn an_error_names_plugin_version_record_key_and_message() {
    let error = Node::new().values(&letters(FailurePolicy::Fail), &["k", "t"]).unwrap_err().to_string();
    for part in ["plugin letters 1.2.3", "trap", "record 1", "key \"k1\"", "unreachable", "on_failure"] {
        assert!(error.contains(part), "{part} in: {error}");
    }
}

#[test]
fn a_dead_letter_says_in_headers_why_and_keeps_its_own() {
    let output = Node::new().values(&letters(dead_letter()), &["k0", "k1", "t2"]).unwrap();
    let dead = output.routed[0].records.iter().next().unwrap();
    let headers: Vec<(String, String)> = Headers::parse(dead.headers_raw)
        .unwrap()
        .iter()
        .map(|(name, value)| (String::from_utf8_lossy(name).into(), String::from_utf8_lossy(value.unwrap()).into()))
        .collect();
    let get = |name: &str| headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
    let expected = [
        ("trace", "42"),
        ("weir-reason", "trap"),
        ("weir-plugin", "letters"),
        ("weir-version", "1.2.3"),
        ("weir-record-index", "2"),
        ("weir-topic", "sensors"),
        ("weir-partition", "5"),
    ];
    for (name, value) in expected {
        assert_eq!(get(name), Some(value), "{name}");
    }
    assert!(get("weir-message").unwrap().contains("unreachable"));
    assert_eq!((dead.key, dead.value), (Some(&b"k2"[..]), Some(&b"t2"[..])));
}

/// Batches of `count` records with poison at `at`: exactly those are found, within a bounded number of runs.
fn search_finds(count: usize, at: &[usize], runs_max: u64) {
    let values: Vec<&str> = (0..count).map(|n| if at.contains(&n) { "t" } else { "k" }).collect();
    let pipeline = letters(FailurePolicy::Drop);
    let output = Node::new().values(&pipeline, &values).unwrap();
    let found: BTreeSet<usize> = output.failures.iter().map(|f| f.record_index as usize).collect();
    assert_eq!(found, at.iter().copied().collect(), "{count} records, poison at {at:?}");
    assert!(output.failures.iter().all(|f| f.records == 1));
    assert_eq!(output.counts.records_out, (count - at.len()) as u64);
    let reruns = pipeline.stats()[0].reruns;
    assert!(reruns <= runs_max, "{count} records, poison at {at:?}: {reruns} reruns, at most {runs_max} allowed");
}

#[test]
fn the_search_finds_the_poison_record_wherever_it_is() {
    for count in [1, 2, 3, 7, 64, 100] {
        for at in 0..count {
            search_finds(count, &[at], 2 * u64::from(count.next_power_of_two().ilog2()));
        }
    }
}

#[test]
fn the_search_finds_one_record_of_a_thousand_in_twice_log_n_runs() {
    for at in [0, 1, 499, 500, 998, 999] {
        search_finds(1_000, &[at], 20);
    }
}

#[test]
fn the_search_finds_several_poison_records() {
    search_finds(64, &[0, 63], 20);
    search_finds(100, &[10, 11, 50], 40);
    search_finds(4, &[0, 1, 2, 3], 10);
}

#[test]
fn a_search_that_does_not_pay_ends_and_the_policy_takes_the_rest() {
    let values = vec!["t"; 1_000];
    let pipeline = letters(FailurePolicy::Drop);
    let output = Node::new().values(&pipeline, &values).unwrap();
    assert_eq!(output.main, Main::Empty);
    assert_eq!(output.counts.failed, 1_000);
    assert!(output.failures.iter().any(|f| f.records > 1), "some were given up on together");
    assert!(output.failures.len() <= 32);
    let reruns = pipeline.stats()[0].reruns;
    assert!(reruns <= 64 + 11, "{reruns} reruns");
}

#[test]
fn time_outs_are_few_however_many_records_loop() {
    let values = vec!["l"; 64];
    let pipeline = letters(dead_letter());
    let output = Node::new().values(&pipeline, &values).unwrap();
    assert_eq!(output.counts.dead_lettered, 64);
    assert!(pipeline.stats()[0].reruns <= 13, "{} reruns", pipeline.stats()[0].reruns);
}

#[test]
fn a_guest_that_traps_on_the_third_record_of_any_batch() {
    let third = "(if (i32.eq (local.get $i) (i32.const 2)) (then (unreachable)))";
    let plugin = compile(&module("", "", third), &manifest("third", "0.1.0"));
    let fail = pipeline(vec![stage(&plugin, FailurePolicy::Fail)]);
    let error = Node::new().values(&fail, &["a", "b", "c"]).map(|output| output.main);
    // Halved, no part has a third record: the batch gets through.
    assert_eq!(error.unwrap(), Main::Unchanged);
    let values: Vec<&str> = vec!["a"; 40];
    let output = Node::new().values(&fail, &values).unwrap();
    assert_eq!((output.main, output.failures.len()), (Main::Unchanged, 0));
}

#[test]
fn a_failed_part_leaves_nothing_behind() {
    // What was emitted before the trap in the same call does not count; what the halves emit counts once.
    let values = ["e0", "e1", "e2", "t3", "e4", "r5"];
    let output = Node::new().values(&letters(FailurePolicy::Drop), &values).unwrap();
    let copies = ["e0", "e1", "e2", "e4"].map(str::to_owned).to_vec();
    assert_eq!(routed(&output), [("t.copies".to_owned(), copies)]);
    assert_eq!(stream(&output, &values), ["e0", "e1", "e2", "e4", "A5"]);
    assert_eq!(output.counts.emitted, 4);
}

#[test]
fn a_batch_to_be_sent_again_is_postponed_whole() {
    for policy in [FailurePolicy::Fail, dead_letter()] {
        let error = Node::new().values(&letters(policy), &["k", "y"]).unwrap_err();
        assert!(matches!(&error, RunError::Retry(failure) if failure.message == "try again"), "{error}");
    }
}

#[test]
fn a_later_stage_fails_on_what_it_was_given() {
    let mut second = stage(&crate::guests::LETTERS, dead_letter());
    second.config = b"B".to_vec();
    let mut first = stage(&crate::guests::LETTERS, FailurePolicy::Fail);
    first.config = b"t".to_vec();
    let chain = pipeline(vec![first, second]);
    let output = Node::new().values(&chain, &["k0", "d1", "r2", "k3"]).unwrap();
    assert_eq!(routed(&output), [("t.dead".to_owned(), vec!["t2".to_owned()])]);
    let failure = &output.failures[0];
    assert_eq!((failure.stage, failure.record_index), (1, 2), "the index is the producer's");
}
