//! Guests as WebAssembly text, and what tests need to run them.
use std::collections::BTreeMap;
use std::sync::mpsc::channel;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use weir_batch::{BatchBuilder, Codec, RecordBatch};
use weir_pipeline::{
    FailurePolicy, HostConfig, Input, Main, Output, Pipeline, Plugin, PluginHost, RunError, ShardPool, Stage, pack,
};

/// Long enough for any machine; a test that needs it fails.
pub(crate) const FOREVER: Duration = Duration::from_secs(60);
pub(crate) const NOW_MS: i64 = 1_700_000_000_000;

/// A core module around the body of a loop over the records.
///
/// In `each`: `$i` the record's index, `$v` and `$vb` its value, `$c` the value's first byte (0 if there is none);
/// `$verdict` appends a verdict, `$put` copies bytes to the arena and gives their place in it. `$tag` is the first byte of
/// the configuration. `before` runs before the loop.
pub(crate) fn module(imports: &str, before: &str, each: &str) -> Vec<u8> {
    let text = format!(
        r#"(module
  (import "weir:plugin/sink@1.0.0" "emit" (func $emit (param i32 i32 i32 i32)))
  {imports}
  (memory (export "memory") 40)
  (data (i32.const 256) "no good")
  (data (i32.const 272) "batch refused")
  (data (i32.const 288) "try again")
  (data (i32.const 304) "configuration refused")
  (global $heap (mut i32) (i32.const 2621440))
  (global $out (mut i32) (i32.const 1024))
  (global $arena (mut i32) (i32.const 1048576))
  (global $tag (mut i32) (i32.const 0))
  (global $seen (mut i32) (i32.const 0))
  (func (export "cabi_realloc") (param i32 i32 i32) (param $bytes i32) (result i32)
    (local $at i32)
    (local.set $at (i32.and (i32.add (global.get $heap) (i32.const 15)) (i32.const -16)))
    (global.set $heap (i32.add (local.get $at) (local.get $bytes)))
    (if (i32.gt_u (global.get $heap) (i32.mul (memory.size) (i32.const 65536)))
      (then (drop (memory.grow (i32.add (i32.const 1) (i32.sub
        (i32.div_u (global.get $heap) (i32.const 65536)) (memory.size)))))))
    (local.get $at))
  (func (export "init") (param $config i32) (param $bytes i32) (param i32 i32) (result i32)
    (if (i32.ne (local.get $bytes) (i32.const 0)) (then (global.set $tag (i32.load8_u (local.get $config)))))
    (i32.store8 (i32.const 16) (i32.const 0))
    (if (i32.eq (global.get $tag) (i32.const 33)) (then ;; !
      (i32.store8 (i32.const 16) (i32.const 1))
      (i32.store8 (i32.const 20) (i32.const 0))
      (i32.store (i32.const 24) (i32.const 304))
      (i32.store (i32.const 28) (i32.const 21))))
    (if (i32.eq (global.get $tag) (i32.const 84)) (then (unreachable))) ;; T
    (global.set $heap (i32.const 2621440))
    (i32.const 16))
  (func $verdict (param $source i32) (param $action i32) (param $flags i32) (param $output i32) (param $start i32) (param $bytes i32)
    (i32.store (global.get $out) (local.get $source))
    (i32.store8 offset=4 (global.get $out) (local.get $action))
    (i32.store8 offset=5 (global.get $out) (local.get $flags))
    (i32.store16 offset=6 (global.get $out) (local.get $output))
    (i64.store offset=8 (global.get $out) (i64.const 0))
    (i32.store offset=16 (global.get $out) (local.get $start))
    (i32.store offset=20 (global.get $out) (local.get $bytes))
    (i64.store offset=24 (global.get $out) (i64.const -1))
    (global.set $out (i32.add (global.get $out) (i32.const 32))))
  (func $put (param $from i32) (param $bytes i32) (result i32)
    (memory.copy (global.get $arena) (local.get $from) (local.get $bytes))
    (global.set $arena (i32.add (global.get $arena) (local.get $bytes)))
    (i32.sub (i32.sub (global.get $arena) (local.get $bytes)) (i32.const 1048576)))
  (func $error (param $case i32) (param $text i32) (param $bytes i32) (result i32)
    (i32.store8 (i32.const 32) (i32.const 1))
    (i32.store8 (i32.const 36) (local.get $case))
    (i32.store (i32.const 40) (local.get $text))
    (i32.store (i32.const 44) (local.get $bytes))
    (i32.const 32))
  (func (export "process") (param $batch i32) (param $batch_bytes i32) (result i32)
    (local $i i32) (local $count i32) (local $entry i32) (local $v i32) (local $vb i32) (local $c i32)
    (global.set $out (i32.const 1024))
    (global.set $arena (i32.const 1048576))
    (local.set $count (i32.load offset=12 (local.get $batch)))
    {before}
    (block $done (loop $next
      (br_if $done (i32.ge_u (local.get $i) (local.get $count)))
      (local.set $entry (i32.add (local.get $batch) (i32.add (i32.const 64) (i32.mul (local.get $i) (i32.const 32)))))
      (local.set $vb (i32.load offset=20 (local.get $entry)))
      (local.set $v (i32.add (local.get $batch) (i32.load offset=16 (local.get $entry))))
      (local.set $c (i32.const 0))
      (if (i32.ne (i32.load offset=16 (local.get $entry)) (i32.const -1)) (then
        (if (i32.ne (local.get $vb) (i32.const 0)) (then (local.set $c (i32.load8_u (local.get $v)))))))
      {each}
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br $next)))
    (if (i32.ne (global.get $out) (i32.const 1024)) (then
      (call $emit (i32.const 1024) (i32.sub (global.get $out) (i32.const 1024))
        (i32.const 1048576) (i32.sub (global.get $arena) (i32.const 1048576)))))
    (global.set $heap (i32.const 2621440))
    (global.set $seen (i32.add (global.get $seen) (i32.const 1)))
    (i32.store8 (i32.const 32) (i32.const 0))
    (i32.store (i32.const 36) (local.get $count))
    (i32.store (i32.const 40) (i32.const 0))
    (i32.const 32)))"#
    );
    wat::parse_str(&text).expect("the guest's text is good")
}

/// What the guest does with a record is said by its value's first letter.
const BY_LETTER: &str = r#"
  (if (i32.eq (local.get $c) (i32.const 107)) (then (call $verdict (local.get $i) (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)))) ;; k keep
  (if (i32.eq (local.get $c) (i32.const 100)) (then (call $verdict (local.get $i) (i32.const 2) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)))) ;; d drop
  (if (i32.eq (local.get $c) (i32.const 114)) (then ;; r replace: the tag, then the value without its letter
    (i32.store8 (i32.const 64) (global.get $tag))
    (local.set $entry (call $put (i32.const 64) (i32.const 1)))
    (drop (call $put (i32.add (local.get $v) (i32.const 1)) (i32.sub (local.get $vb) (i32.const 1))))
    (call $verdict (local.get $i) (i32.const 3) (i32.const 6) (i32.const 0) (local.get $entry) (local.get $vb))))
  (if (i32.eq (local.get $c) (i32.const 101)) (then ;; e emit a copy of the value on output 1, keep on the stream
    (call $verdict (local.get $i) (i32.const 4) (i32.const 6) (i32.const 1) (call $put (local.get $v) (local.get $vb)) (local.get $vb))
    (call $verdict (local.get $i) (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0))))
  (if (i32.eq (local.get $c) (i32.const 109)) (then (call $verdict (local.get $i) (i32.const 1) (i32.const 0) (i32.const 2) (i32.const 0) (i32.const 0)))) ;; m move to output 2
  (if (i32.eq (local.get $c) (i32.const 106)) (then ;; j reject
    (call $verdict (local.get $i) (i32.const 5) (i32.const 2) (i32.const 0) (call $put (i32.const 256) (i32.const 7)) (i32.const 7))))
  (if (i32.eq (local.get $c) (i32.const 116)) (then (unreachable))) ;; t trap
  (if (i32.eq (local.get $c) (i32.const 108)) (then (loop $for_ever (br $for_ever)))) ;; l loop
  (if (i32.eq (local.get $c) (i32.const 103)) (then (loop $for_ever (drop (memory.grow (i32.const 1))) (br $for_ever)))) ;; g grow
  (if (i32.eq (local.get $c) (i32.const 111)) (then (loop $for_ever ;; o output without end
    (call $emit (i32.const 0) (i32.const 0) (i32.const 1048576) (i32.const 65536)) (br $for_ever))))
  (if (i32.eq (local.get $c) (i32.const 120)) (then (call $verdict (i32.const 99999) (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)))) ;; x garbage
  (if (i32.eq (local.get $c) (i32.const 102)) (then (return (call $error (i32.const 1) (i32.const 272) (i32.const 13))))) ;; f fatal
  (if (i32.eq (local.get $c) (i32.const 121)) (then (return (call $error (i32.const 0) (i32.const 288) (i32.const 9))))) ;; y retry
"#;

pub(crate) fn manifest(name: &str, version: &str) -> String {
    format!(
        "[plugin]\nname = \"{name}\"\nversion = \"{version}\"\n[io]\noutputs = [\"copies\", \"moved\"]\n\
         [limits]\nmemory_mib = 8\nbatch_ms = 20\n"
    )
}

pub(crate) fn by_letter() -> Vec<u8> {
    module("", "", BY_LETTER)
}

pub(crate) static HOST: LazyLock<PluginHost> = LazyLock::new(|| PluginHost::new(HostConfig::default()).unwrap());

/// The guest that does what letters say.
pub(crate) static LETTERS: LazyLock<Arc<Plugin>> = LazyLock::new(|| compile(&by_letter(), &manifest("letters", "1.2.3")));

/// One that says nothing.
pub(crate) static SILENT: LazyLock<Arc<Plugin>> = LazyLock::new(|| compile(&module("", "", ""), &manifest("silent", "1.0.0")));

pub(crate) fn compile(module: &[u8], manifest: &str) -> Arc<Plugin> {
    HOST.compile(&pack(module, manifest).unwrap()).unwrap()
}

pub(crate) fn stage(plugin: &Arc<Plugin>, on_failure: FailurePolicy) -> Stage {
    let topics = plugin.manifest().outputs.iter().map(|output| (output.clone(), format!("t.{output}")));
    Stage { plugin: Arc::clone(plugin), config: b"A".to_vec(), outputs: topics.collect::<BTreeMap<_, _>>(), on_failure }
}

pub(crate) fn dead_letter() -> FailurePolicy {
    FailurePolicy::DeadLetter { topic: "t.dead".to_owned() }
}

pub(crate) fn pipeline(stages: Vec<Stage>) -> Arc<Pipeline> {
    Pipeline::new(1, stages, &HOST).unwrap()
}

pub(crate) fn letters(on_failure: FailurePolicy) -> Arc<Pipeline> {
    pipeline(vec![stage(&LETTERS, on_failure)])
}

/// A batch of records with keys `k0`, `k1`, … and the values given; the third record carries a header.
pub(crate) fn batch_of(values: &[&str], codec: Codec) -> Bytes {
    let mut builder = BatchBuilder::new(codec);
    for (index, value) in values.iter().enumerate() {
        let key = format!("k{index}");
        let headers: &[(&[u8], Option<&[u8]>)] = if index == 2 { &[(b"trace", Some(b"42"))] } else { &[] };
        builder.push(NOW_MS + index as i64, Some(key.as_bytes()), Some(value.as_bytes()), headers);
    }
    builder.set_producer(77, 3, 1000);
    builder.finish().unwrap().into()
}

pub(crate) fn batch(values: &[&str]) -> Bytes {
    batch_of(values, Codec::None)
}

pub(crate) fn input(batch: Bytes) -> Input {
    input_at(batch, NOW_MS)
}

pub(crate) fn input_at(batch: Bytes, now_ms: i64) -> Input {
    Input { topic: "sensors".into(), partition: 5, batch, now_ms }
}

/// A pool and what one batch became in it.
pub(crate) struct Node {
    pub(crate) pool: ShardPool,
}

impl Node {
    pub(crate) fn new() -> Self {
        Self { pool: ShardPool::new(1, 64).unwrap() }
    }

    pub(crate) fn run(&self, pipeline: &Arc<Pipeline>, input: Input) -> Result<Output, RunError> {
        let (sender, receiver) = channel();
        let done = Box::new(move |result| sender.send(result).unwrap());
        self.pool.submit(0, Arc::clone(pipeline), input, done).unwrap();
        receiver.recv_timeout(FOREVER).expect("a batch is always answered")
    }

    pub(crate) fn values(&self, pipeline: &Arc<Pipeline>, values: &[&str]) -> Result<Output, RunError> {
        self.run(pipeline, input(batch(values)))
    }
}

/// Values of the stream after the pipeline; the producer's own where it is unchanged.
pub(crate) fn stream(output: &Output, before: &[&str]) -> Vec<String> {
    match &output.main {
        Main::Unchanged => before.iter().map(|v| (*v).to_owned()).collect(),
        Main::Empty => Vec::new(),
        Main::Rebuilt { batch, record_count, .. } => {
            let batch = RecordBatch::verify(batch).unwrap();
            batch.check_records().unwrap();
            assert_eq!(batch.record_count(), *record_count);
            let mut scratch = Vec::new();
            let text = |value: Option<&[u8]>| String::from_utf8(value.unwrap_or(b"null").to_vec()).unwrap();
            batch.records(&mut scratch).unwrap().map(|record| text(record.unwrap().value)).collect()
        }
    }
}

/// `topic: values` of everything routed.
pub(crate) fn routed(output: &Output) -> Vec<(String, Vec<String>)> {
    let text = |value: Option<&[u8]>| String::from_utf8(value.unwrap_or(b"null").to_vec()).unwrap();
    output.routed.iter().map(|r| (r.topic.to_string(), r.records.iter().map(|record| text(record.value)).collect())).collect()
}
