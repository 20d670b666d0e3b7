//! The circuit breaker: a plugin that fails for ever stops costing.
use weir_pipeline::{BreakerState, FailureKind, FailurePolicy, Main};

use crate::guests::{NOW_MS, Node, batch, dead_letter, input_at, letters, stream};

fn failed(pipeline: &weir_pipeline::Pipeline, kind: FailureKind) -> u64 {
    pipeline.stats()[0].failed.iter().find(|(k, _)| *k == kind).unwrap().1
}

#[test]
fn it_opens_stays_open_for_the_cool_down_and_closes_after_a_good_probe() {
    let (node, pipeline) = (Node::new(), letters(dead_letter()));
    let all_bad = vec!["t"; 200];
    for batch_number in 0..4 {
        assert_eq!(pipeline.stats()[0].circuit, BreakerState::Closed, "before batch {batch_number}");
        node.values(&pipeline, &all_bad).unwrap();
    }
    assert_eq!((pipeline.stats()[0].circuit, pipeline.stats()[0].circuit_opened), (BreakerState::Open, 1));
    let reruns = pipeline.stats()[0].reruns;

    // Open: the policy applies to good records too, without a run.
    let output = node.run(&pipeline, input_at(batch(&["k", "k"]), NOW_MS + 9_999)).unwrap();
    assert_eq!((output.main, output.counts.dead_lettered), (Main::Empty, 2));
    assert_eq!(failed(&pipeline, FailureKind::CircuitOpen), 2);
    let failure = &output.failures[0];
    assert_eq!((failure.kind, failure.records), (FailureKind::CircuitOpen, 2));

    // A probe that fails costs one run, no search, and opens it again.
    let output = node.run(&pipeline, input_at(batch(&["k", "t", "k"]), NOW_MS + 10_000)).unwrap();
    assert_eq!(output.counts.dead_lettered, 3);
    assert_eq!((pipeline.stats()[0].circuit, pipeline.stats()[0].reruns), (BreakerState::Open, reruns));

    // The cool-down is now twice as long; a good probe closes it.
    node.run(&pipeline, input_at(batch(&["k"]), NOW_MS + 29_999)).unwrap();
    assert_eq!(pipeline.stats()[0].circuit, BreakerState::Open);
    let output = node.run(&pipeline, input_at(batch(&["k"]), NOW_MS + 30_000)).unwrap();
    assert_eq!((output.main, pipeline.stats()[0].circuit), (Main::Unchanged, BreakerState::Closed));
}

#[test]
fn poison_records_found_one_by_one_do_not_open_it_soon() {
    let (node, pipeline) = (Node::new(), letters(FailurePolicy::Drop));
    for _ in 0..31 {
        let output = node.values(&pipeline, &["k", "t", "k"]).unwrap();
        assert_eq!(stream(&output, &[]), ["k", "k"]);
    }
    assert_eq!(pipeline.stats()[0].circuit, BreakerState::Closed);
    node.values(&pipeline, &["k"]).unwrap();
    for _ in 0..31 {
        node.values(&pipeline, &["k", "t", "k"]).unwrap();
    }
    assert_eq!(pipeline.stats()[0].circuit, BreakerState::Closed, "a clean batch clears the strikes");
    node.values(&pipeline, &["k", "t", "k"]).unwrap();
    assert_eq!(pipeline.stats()[0].circuit, BreakerState::Open);
}

#[test]
fn rejected_records_are_not_the_plugins_fault() {
    let (node, pipeline) = (Node::new(), letters(FailurePolicy::Drop));
    for _ in 0..100 {
        node.values(&pipeline, &["j", "j", "j"]).unwrap();
    }
    assert_eq!(pipeline.stats()[0].circuit, BreakerState::Closed);
    assert_eq!(failed(&pipeline, FailureKind::Reject), 300);
    assert_eq!(pipeline.stats()[0].instances_replaced, 0);
}

#[test]
fn passing_records_on_while_it_is_open_leaves_the_producers_bytes() {
    let (node, pipeline) = (Node::new(), letters(FailurePolicy::Pass));
    for _ in 0..4 {
        node.values(&pipeline, &vec!["t"; 200]).unwrap();
    }
    assert_eq!(pipeline.stats()[0].circuit, BreakerState::Open);
    assert_eq!(node.values(&pipeline, &["d", "r"]).unwrap().main, Main::Unchanged);
}
