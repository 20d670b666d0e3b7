//! Memory, log lines and counters.
use std::sync::{Arc, Mutex};

use weir_pipeline::{FailurePolicy, HostConfig, Main, Pipeline, PluginError, PluginHost, pack};

use crate::guests::{HOST, LETTERS, NOW_MS, Node, batch, compile, input_at, letters, manifest, module, pipeline, stage};

/// A gigabyte through one guest: its memory does not grow, its instance stays the same.
#[test]
fn memory_stays_flat_over_a_gigabyte() {
    let (node, pipeline) = (Node::new(), letters(FailurePolicy::Fail));
    let record = format!("r{}", "x".repeat(4_000));
    let values = vec![record.as_str(); 128];
    let bytes = batch(&values);
    let mut after_first = 0;
    let batches = (1 << 30) / bytes.len();
    for round in 0..batches {
        let output = node.run(&pipeline, input_at(bytes.clone(), NOW_MS + round as i64)).unwrap();
        assert_eq!(output.counts.replaced, 128);
        if round == 0 {
            after_first = pipeline.stats()[0].memory_bytes_max;
        }
    }
    let stats = &pipeline.stats()[0];
    assert_eq!(stats.memory_bytes_max, after_first, "after {batches} batches");
    assert_eq!((stats.instances_replaced, stats.batches), (0, batches as u64));
}

#[test]
fn a_guest_that_keeps_every_batch_ends_at_its_limit_and_is_replaced() {
    // It never gives back what the host allocates for the batch.
    let hoard = "(global.set $heap (i32.add (local.get $batch) (local.get $batch_bytes)))";
    let text = wat_of(hoard);
    let plugin = compile(&text, &manifest("hoard", "0.1.0"));
    let pipeline = pipeline(vec![stage(&plugin, FailurePolicy::Fail)]);
    let node = Node::new();
    let record = "x".repeat(8_000);
    for _ in 0..40 {
        let output = node.values(&pipeline, &vec![record.as_str(); 64]).unwrap();
        assert_eq!(output.main, Main::Unchanged);
    }
    let stats = &pipeline.stats()[0];
    assert!(stats.instances_replaced >= 2, "{} replaced", stats.instances_replaced);
    assert!(stats.memory_bytes_max <= 8 << 20);
}

/// The guest's heap is reset after the loop; this one sets it back to the end of the batch.
fn wat_of(after: &str) -> Vec<u8> {
    let each = format!(
        "(if (i32.eq (local.get $i) (i32.sub (local.get $count) (i32.const 1))) (then (return (block (result i32) {after} (i32.store8 (i32.const 32) (i32.const 0)) (i32.const 32)))))"
    );
    module("", "", &each)
}

#[test]
fn a_guest_whose_memory_starts_above_its_limit_is_refused_when_compiled() {
    let small = manifest("letters", "1.0.0").replace("memory_mib = 8", "memory_mib = 2");
    let error = HOST.compile(&pack(&crate::guests::by_letter(), &small).unwrap()).unwrap_err();
    assert!(matches!(error, PluginError::Instantiate { .. }), "{error}");
    assert!(error.to_string().contains("raise [limits] memory_mib"), "{error}");
}

#[test]
fn instances_are_bounded_and_an_attach_beyond_says_so() {
    let mut config = HostConfig::default();
    config.instances_max = 1;
    let host = PluginHost::new(config).unwrap();
    let plugin = host.compile(&pack(&crate::guests::by_letter(), &manifest("letters", "1.0.0")).unwrap()).unwrap();
    let first = Pipeline::new(1, vec![stage(&plugin, FailurePolicy::Fail)], &host).unwrap();
    let node = Node::new();
    node.values(&first, &["k"]).unwrap();
    let error = Pipeline::new(2, vec![stage(&plugin, FailurePolicy::Fail)], &host).unwrap_err();
    assert!(matches!(error, PluginError::InstancesExhausted { max: 1 }), "{error}");
    assert!(error.to_string().contains("pipeline.instances_max"));
}

#[test]
fn init_can_refuse_its_configuration_and_may_not_trap() {
    let mut refused = stage(&LETTERS, FailurePolicy::Fail);
    refused.config = b"!".to_vec();
    let error = Pipeline::new(1, vec![refused], &HOST).unwrap_err();
    assert!(matches!(&error, PluginError::Config { message, .. } if message == "configuration refused"), "{error}");
    assert!(error.to_string().starts_with("plugin letters 1.2.3 refuses its configuration"), "{error}");
    let mut trapping = stage(&LETTERS, FailurePolicy::Fail);
    trapping.config = b"T".to_vec();
    let error = Pipeline::new(1, vec![trapping], &HOST).unwrap_err();
    assert!(matches!(&error, PluginError::Init { message, .. } if message.contains("unreachable")), "{error}");
}

const TALKS: &str = r#"(import "weir:plugin/log@1.0.0" "write" (func $write (param i32 i32 i32)))"#;
const COUNTS: &str = r#"(import "weir:plugin/metric@1.0.0" "add" (func $add (param i32 i64)))"#;

#[test]
fn counters_count_by_id_only_for_batches_that_succeed() {
    // Counter 0 by one, counter 1 by the batch's size, counter 9 does not exist; then a trap on letter t.
    let each = r#"(call $add (i32.const 0) (i64.const 1))
        (call $add (i32.const 1) (i64.extend_i32_u (local.get $count)))
        (call $add (i32.const 9) (i64.const 5))
        (if (i32.eq (local.get $c) (i32.const 116)) (then (unreachable)))"#;
    let text = manifest("counts", "1.0.0") + "[grants]\nmetrics = [\"records\", \"squares\"]\n";
    let plugin = compile(&module(COUNTS, "", each), &text);
    let pipeline = pipeline(vec![stage(&plugin, FailurePolicy::Drop)]);
    let node = Node::new();
    node.values(&pipeline, &["a", "b", "c"]).unwrap();
    assert_eq!(pipeline.stats()[0].metrics, [("records".to_owned(), 3), ("squares".to_owned(), 9)]);
    // The same instance again: only what this call added.
    node.values(&pipeline, &["d"]).unwrap();
    assert_eq!(pipeline.stats()[0].metrics, [("records".to_owned(), 4), ("squares".to_owned(), 10)]);
    // "a" alone succeeds, "t" does not.
    node.values(&pipeline, &["a", "t"]).unwrap();
    assert_eq!(pipeline.stats()[0].metrics, [("records".to_owned(), 5), ("squares".to_owned(), 11)]);
}

/// Collects the messages of `weir::plugin` log lines.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl tracing::Subscriber for Lines {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target() == "weir::plugin"
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        struct Fields(String);
        impl tracing::field::Visit for Fields {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                self.0 += &format!("{}={value:?} ", field.name());
            }
        }
        let mut fields = Fields(format!("{} ", event.metadata().level()));
        event.record(&mut fields);
        self.0.lock().unwrap().push(fields.0);
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn log_lines_name_the_plugin_and_are_limited_by_level_and_rate() {
    // Each record writes "no good" at info and at debug.
    let each = r#"(call $write (i32.const 1) (i32.const 256) (i32.const 7))
        (call $write (i32.const 0) (i32.const 256) (i32.const 7))"#;
    let text = manifest("talks", "2.0.0") + "[grants]\nlog = \"info:3/s\"\n";
    let component = pack(&module(TALKS, "", each), &text).unwrap();
    let lines = Lines::default();
    tracing::subscriber::with_default(lines.clone(), || {
        let mut run = weir_pipeline::OfflineRun::new(&HOST, &component, b"").unwrap();
        for now_ms in [1_000, 1_100, 1_200, 1_300, 1_900, 2_000] {
            run.record(&weir_pipeline::OfflineRecord::default(), now_ms);
        }
    });
    let lines = lines.0.lock().unwrap();
    assert_eq!(lines.len(), 4, "three in the first second, one in the next: {lines:?}");
    let expected = ["INFO", "plugin=\"talks\"", "version=\"2.0.0\"", "message=no good"];
    assert!(expected.iter().all(|part| lines[0].contains(part)), "{}", lines[0]);
}
