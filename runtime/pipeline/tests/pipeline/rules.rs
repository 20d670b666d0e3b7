//! Any verdicts at all: a guest that emits what it is told, against a model of the format written plainly.
use std::sync::{Arc, LazyLock};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use weir_batch::{BatchBuilder, Codec, RecordBatch};
use weir_pipeline::{FailurePolicy, HostConfig, Main, Output, Pipeline, PluginHost, pack};
use weir_plugin_abi::{Action, FLAG_KEY, FLAG_KEY_OF_SOURCE, FLAG_VALUE, Verdict};

use crate::guests::{Node, input, manifest, module, stage};

/// Emits the value of the batch's first record as verdicts and of its second as arena.
static SCRIPT: LazyLock<Arc<Pipeline>> = LazyLock::new(|| {
    let before = r#"
      (call $emit
        (i32.add (local.get $batch) (i32.load offset=80 (local.get $batch))) (i32.load offset=84 (local.get $batch))
        (i32.add (local.get $batch) (i32.load offset=112 (local.get $batch))) (i32.load offset=116 (local.get $batch)))
      (i32.store8 (i32.const 32) (i32.const 0))
      (global.set $heap (i32.const 2621440))
      (return (i32.const 32))"#;
    // Most scripts break a rule: the circuit must not open over that.
    let mut config = HostConfig::default();
    config.breaker.strikes_open = u32::MAX;
    let host = PluginHost::new(config).unwrap();
    let component = pack(&module("", before, ""), &manifest("script", "0.1.0")).unwrap();
    let plugin = host.compile(&component).unwrap();
    Pipeline::new(1, vec![stage(&plugin, FailurePolicy::Fail)], &host).unwrap()
});

const RECORDS: u32 = 5;
const ARENA: &[u8] = b"0123456789";

type Made = (Option<Vec<u8>>, Option<Vec<u8>>, i64);

/// The stream and the two outputs, or that the verdicts break a rule or reject.
fn model(verdicts: &[Verdict], records: &[Made]) -> Option<[Vec<Made>; 3]> {
    let mut streams: [Vec<Made>; 3] = Default::default();
    let mut last = 0;
    let in_arena = |start: u32, bytes: u32| ARENA.get(start as usize..(start as usize).checked_add(bytes as usize)?);
    for verdict in verdicts {
        if verdict.source < last || verdict.source >= RECORDS {
            return None;
        }
        last = verdict.source;
    }
    for (source, record) in (0..RECORDS).zip(records) {
        let about: Vec<&Verdict> = verdicts.iter().filter(|v| v.source == source).collect();
        let mut decisions = 0;
        for verdict in &about {
            let made = || -> Option<Made> {
                let key = match verdict.flags & (FLAG_KEY | FLAG_KEY_OF_SOURCE) {
                    0 => None,
                    FLAG_KEY => Some(in_arena(verdict.key_start, verdict.key_bytes)?.to_vec()),
                    _ => record.0.clone(),
                };
                let value = match verdict.flags & FLAG_VALUE {
                    0 => None,
                    _ => Some(in_arena(verdict.value_start, verdict.value_bytes)?.to_vec()),
                };
                let timestamp = if verdict.timestamp == -1 { record.2 } else { verdict.timestamp };
                (timestamp >= 0).then_some((key, value, timestamp))
            };
            let to = usize::from(verdict.output);
            match verdict.action {
                Action::Keep => streams.get_mut(to)?.push(record.clone()),
                Action::Emit => {
                    let made = made()?;
                    streams.get_mut(to)?.push(made);
                }
                Action::Replace if to == 0 => streams[0].push(made()?),
                Action::Drop if to == 0 => {}
                _ => return None,
            }
            decisions += u32::from(verdict.action != Action::Emit && to == 0);
        }
        if decisions > 1 {
            return None;
        }
        if about.is_empty() {
            streams[0].push(record.clone());
        }
    }
    Some(streams)
}

fn verdict() -> impl Strategy<Value = Verdict> {
    let action = prop_oneof![
        3 => Just(Action::Keep), 2 => Just(Action::Drop), 3 => Just(Action::Replace), 4 => Just(Action::Emit),
        1 => Just(Action::Reject)];
    let range = || prop_oneof![8 => (0u32..6, 0u32..5), 1 => (any::<u32>(), any::<u32>())];
    let timestamp = prop_oneof![6 => Just(-1i64), 3 => 0i64..i64::MAX, 1 => any::<i64>()];
    let source = prop_oneof![20 => 0..RECORDS, 1 => any::<u32>()];
    let output = prop_oneof![6 => Just(0u16), 4 => 1u16..3, 1 => any::<u16>()];
    (source, action, 0u8..8, output, range(), range(), timestamp).prop_map(
        |(source, action, flags, output, key, value, timestamp)| {
            let output = if matches!(action, Action::Keep | Action::Emit) || output > 2 { output } else { 0 };
            Verdict {
                source,
                action,
                flags,
                output,
                key_start: key.0,
                key_bytes: key.1,
                value_start: value.0,
                value_bytes: value.1,
                timestamp,
            }
        },
    )
}

fn made_of(output: &Output, records: &[Made]) -> [Vec<Made>; 3] {
    let mut streams: [Vec<Made>; 3] = Default::default();
    let owned = |bytes: Option<&[u8]>| bytes.map(<[u8]>::to_vec);
    match &output.main {
        Main::Unchanged => streams[0] = records.to_vec(),
        Main::Empty => {}
        Main::Rebuilt { batch, .. } => {
            let batch = RecordBatch::verify(batch).unwrap();
            batch.check_records().unwrap();
            let mut scratch = Vec::new();
            let records = batch.records(&mut scratch).unwrap().map(Result::unwrap);
            streams[0] = records.map(|r| (owned(r.key), owned(r.value), r.timestamp)).collect();
        }
    }
    for routed in &output.routed {
        let at = if &*routed.topic == "t.copies" { 1 } else { 2 };
        streams[at] = routed.records.iter().map(|r| (owned(r.key), owned(r.value), r.timestamp)).collect();
    }
    streams
}

fn records_of(script: &[u8]) -> Vec<Made> {
    (0..RECORDS)
        .map(|n| {
            let value = match n {
                0 => Some(script.to_vec()),
                1 => Some(ARENA.to_vec()),
                2 => None,
                n => Some(vec![b'v', n as u8]),
            };
            let key = (n % 2 == 0).then(|| vec![b'k', n as u8]);
            (key, value, 1_000 + i64::from(n))
        })
        .collect()
}

fn run(node: &Node, records: &[Made]) -> Result<Output, weir_pipeline::RunError> {
    let mut builder = BatchBuilder::new(Codec::None);
    for (key, value, timestamp) in records {
        builder.push(*timestamp, key.as_deref(), value.as_deref(), &[]);
    }
    node.run(&SCRIPT, input(builder.finish().unwrap().into()))
}

#[test]
fn verdicts_do_what_the_format_says() {
    let node = Node::new();
    let kept_the_rules = std::cell::Cell::new(0);
    let strategy = (proptest::collection::vec(verdict(), 0..8), any::<bool>());
    let config = Config { cases: 600, failure_persistence: None, ..Config::default() };
    let result = TestRunner::new(config).run(&strategy, |(mut verdicts, sort)| {
        if sort {
            verdicts.sort_by_key(|v| v.source);
        }
        let script: Vec<u8> = verdicts.iter().flat_map(Verdict::encode).collect();
        let records = records_of(&script);
        match (model(&verdicts, &records), run(&node, &records)) {
            (Some(expected), Ok(output)) => {
                kept_the_rules.set(kept_the_rules.get() + 1);
                prop_assert_eq!(made_of(&output, &records), expected);
            }
            (None, Err(_)) => {}
            // Halving a batch takes the script apart, and a part alone may keep the rules: then nothing is left to compare.
            (None, Ok(_)) => {}
            (Some(expected), Err(error)) => prop_assert!(false, "{} but {:?} was expected", error, expected),
        }
        Ok(())
    });
    result.unwrap();
    assert!(kept_the_rules.get() > 100, "only {} of 600 kept the rules", kept_the_rules.get());
}

#[test]
fn garbage_bytes_are_refused_and_never_panic() {
    let node = Node::new();
    let config = Config { cases: 300, failure_persistence: None, ..Config::default() };
    let strategy = proptest::collection::vec(any::<u8>(), 0..130);
    let result = TestRunner::new(config).run(&strategy, |script| {
        let _ = run(&node, &records_of(&script));
        Ok(())
    });
    result.unwrap();
    let stats = &SCRIPT.stats()[0];
    assert!(stats.failed.iter().any(|(kind, n)| kind.as_str() == "garbage" && *n > 0));
}
