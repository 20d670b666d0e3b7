//! Time per record of a filter by the value's first byte, batches of 1,000, one thread, limits on.
//!
//! `cargo bench -p weir-pipeline` prints wall-clock nanoseconds a record, best and median of the rounds, beside the same
//! work done natively; no framework, because only these two numbers are wanted.
use std::hint::black_box;
use std::sync::mpsc::channel;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use bytes::Bytes;
use weir_batch::{BatchBuilder, Codec, RecordBatch};
use weir_pipeline::{FailurePolicy, HostConfig, Input, Pipeline, PluginHost, ShardPool, Stage, pack};

const RECORDS: usize = 1_000;
const ROUNDS: usize = 2_000;

/// Drops records whose value starts with `d`, says nothing about the others.
const FILTER: &str = r#"(module
  (import "weir:plugin/sink@1.0.0" "emit" (func $emit (param i32 i32 i32 i32)))
  (memory (export "memory") 64)
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1048576))
  (func (export "init") (param i32 i32 i32 i32) (result i32) (i32.store8 (i32.const 16) (i32.const 0)) (i32.const 16))
  (func (export "process") (param $batch i32) (param i32) (result i32)
    (local $i i32) (local $count i32) (local $entry i32) (local $out i32)
    (local.set $count (i32.load offset=12 (local.get $batch)))
    (local.set $entry (i32.add (local.get $batch) (i32.const 64)))
    (local.set $out (i32.const 1024))
    (block $done (loop $next
      (br_if $done (i32.ge_u (local.get $i) (local.get $count)))
      (if (i32.eq (i32.load8_u (i32.add (local.get $batch) (i32.load offset=16 (local.get $entry)))) (i32.const 100)) (then
        (i64.store (local.get $out) (i64.or (i64.extend_i32_u (local.get $i)) (i64.const 0x0000000200000000)))
        (i64.store offset=24 (local.get $out) (i64.const -1))
        (local.set $out (i32.add (local.get $out) (i32.const 32)))))
      (local.set $entry (i32.add (local.get $entry) (i32.const 32)))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br $next)))
    (call $emit (i32.const 1024) (i32.sub (local.get $out) (i32.const 1024)) (i32.const 0) (i32.const 0))
    (i32.store8 (i32.const 16) (i32.const 0)) (i32.const 16)))"#;

fn batch(drop_every: usize) -> Bytes {
    let mut builder = BatchBuilder::new(Codec::None);
    for n in 0..RECORDS {
        let letter = if n % drop_every == drop_every - 1 { 'd' } else { 'k' };
        let value = format!(
            "{letter}{{\"model\":\"Toyota\",\"id\":\"{n:08x}\",\"pressure_kPa\":{},\"temperature_C\":21.0}}",
            180 + n % 60
        );
        builder.push(1_700_000_000_000 + n as i64, Some(format!("{n:08x}").as_bytes()), Some(value.as_bytes()), &[]);
    }
    builder.finish().expect("the batch is not empty").into()
}

fn report(name: &str, mut nanos: Vec<u64>) {
    nanos.sort_unstable();
    let per_record = |n: u64| n as f64 / RECORDS as f64;
    println!("{name:<44} best {:>6.1}  median {:>6.1} ns/record", per_record(nanos[0]), per_record(nanos[nanos.len() / 2]));
}

fn native(bytes: &Bytes) -> usize {
    let batch = RecordBatch::trusted(bytes).expect("built above");
    let mut scratch = Vec::new();
    let records = batch.records(&mut scratch).expect("built above");
    records.filter(|r| r.as_ref().is_ok_and(|r| r.value.is_some_and(|v| v.first() != Some(&b'd')))).count()
}

fn main() {
    static HOST: LazyLock<PluginHost> = LazyLock::new(|| PluginHost::new(HostConfig::default()).expect("the host starts"));
    let module = wat::parse_str(FILTER).expect("the text is good");
    let component = pack(&module, "[plugin]\nname = \"filter\"\nversion = \"1.0.0\"\n").expect("it packs");
    let began = Instant::now();
    let plugin = HOST.compile(&component).expect("it compiles");
    println!("compile: {:?} for {} bytes", began.elapsed(), component.len());
    let stage = |plugin: &Arc<_>| Stage {
        plugin: Arc::clone(plugin),
        config: Vec::new(),
        outputs: Default::default(),
        on_failure: FailurePolicy::Fail,
    };
    let pool = ShardPool::new(1, 4).expect("threads start");
    for (name, drop_every, stages) in
        [("drops none, 1 stage", RECORDS + 1, 1), ("drops one in ten, 1 stage", 10, 1), ("drops none, 3 stages", RECORDS + 1, 3)]
    {
        let bytes = batch(drop_every);
        let stages = (0..stages).map(|_| stage(&plugin)).collect();
        let pipeline = Pipeline::new(1, stages, &HOST).expect("it attaches");
        let (sender, receiver) = channel();
        let mut rounds = Vec::with_capacity(ROUNDS);
        for _ in 0..ROUNDS {
            let input = Input { topic: "t".into(), partition: 0, batch: bytes.clone(), now_ms: 0 };
            let sender = sender.clone();
            let began = Instant::now();
            let done = Box::new(move |result: Result<_, _>| sender.send(result.is_ok()).expect("it is waited for"));
            pool.submit(0, Arc::clone(&pipeline), input, done).expect("the queue is empty");
            assert!(receiver.recv().expect("it is answered"));
            rounds.push(began.elapsed().as_nanos() as u64);
        }
        report(&format!("{name}, hand-over included"), rounds);
        let stats = pipeline.stats();
        let in_plugin: u64 = stats.iter().map(|s| s.nanos).sum();
        println!("{:<44} {:>27.1} ns/record", "  of this, calls and rules", in_plugin as f64 / (ROUNDS * RECORDS) as f64);
        let rounds = (0..ROUNDS).map(|_| {
            let began = Instant::now();
            black_box(native(black_box(&bytes)));
            began.elapsed().as_nanos() as u64
        });
        report("  native filter over the record batch", rounds.collect());
    }
}
