//! What a record costs in a pipeline on one core: `cargo bench -p weir-pipeline`.
//!
//! Each batch goes through a [`ShardPool`] of one thread whose callback submits the next one, so the thread never waits and
//! no other one takes part: time of an iteration is time of a batch. Throughput is in records.
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use weir_batch::{BatchBuilder, Codec, RecordBatch};
use weir_pipeline::{FailurePolicy, HostConfig, Input, Output, Pipeline, PluginHost, RunError, ShardPool, Stage, pack};

const BATCH_RECORDS: [usize; 2] = [64, 1_000];
/// What rtl_433 prints for real sensors.
const SENSOR_LINES: &str = include_str!("../../../plugins/tpms-normalize/tests/rtl433.jsonl");
/// Where `make plugins` puts the shipped plugins; what is not there is not measured.
const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../plugins/dist");
/// A verdict on records whose value starts with `d`, none on the others: 2 drops, 1 with output 1 moves.
const DROP: &str = "0x0000000200000000";
const MOVE: &str = "0x0001000100000000";

static HOST: LazyLock<PluginHost> = LazyLock::new(|| PluginHost::new(HostConfig::default()).expect("the host starts"));

fn by_first_byte(verdict: &str) -> Vec<u8> {
    let text = format!(
        r#"(module
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
        (i64.store (local.get $out) (i64.or (i64.extend_i32_u (local.get $i)) (i64.const {verdict})))
        (i64.store offset=24 (local.get $out) (i64.const -1))
        (local.set $out (i32.add (local.get $out) (i32.const 32)))))
      (local.set $entry (i32.add (local.get $entry) (i32.const 32)))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br $next)))
    (if (i32.ne (local.get $out) (i32.const 1024)) (then
      (call $emit (i32.const 1024) (i32.sub (local.get $out) (i32.const 1024)) (i32.const 0) (i32.const 0))))
    (i32.store8 (i32.const 16) (i32.const 0)) (i32.const 16)))"#
    );
    let module = wat::parse_str(&text).expect("the text is good");
    pack(&module, "[plugin]\nname = \"by-first-byte\"\nversion = \"1.0.0\"\n[io]\noutputs = [\"moved\"]\n").expect("it packs")
}

fn pipeline(component: &[u8], stages: usize, config: &str) -> Arc<Pipeline> {
    let plugin = HOST.compile(component).expect("it compiles");
    let outputs = plugin.manifest().outputs.iter().map(|name| (name.clone(), format!("t.{name}"))).collect();
    let stage = Stage { plugin, config: config.as_bytes().to_vec(), outputs, on_failure: FailurePolicy::Fail };
    Pipeline::new(1, vec![stage; stages], &HOST).expect("it attaches")
}

/// About 100 bytes each; one in `every` starts with `d`, none if that is 0.
fn values(records: usize, every: usize) -> Bytes {
    batch((0..records).map(|n| {
        let letter = if every > 0 && n % every == 0 { 'd' } else { '{' };
        format!(
            "{letter}\"model\":\"Toyota\",\"type\":\"TPMS\",\"id\":\"{n:08x}\",\"pressure_kPa\":{}.5,\"temperature_C\":21.0,\"mic\":\"CRC\"}}",
            180 + n % 60
        )
    }))
}

/// Real lines, each of another sensor.
fn sensor_lines(records: usize) -> Bytes {
    let tyres = SENSOR_LINES.lines().filter(|line| line.contains("TPMS"));
    batch(tyres.cycle().take(records).enumerate().map(|(n, line)| {
        let id = line.find("\"id\"").and_then(|at| Some(at + 4 + line[at + 4..].find('"')? + 1)).expect("a line has an id");
        format!("{}{:06x}{}", &line[..id], n, &line[id + 6..])
    }))
}

fn batch(values: impl Iterator<Item = String>) -> Bytes {
    let mut builder = BatchBuilder::new(Codec::None);
    for (n, value) in values.enumerate() {
        builder.push(1_700_000_000_000 + n as i64, None, Some(value.as_bytes()), &[]);
    }
    builder.finish().expect("the batch is not empty").into()
}

/// One shard that feeds itself.
struct Feed {
    pool: ShardPool,
    pipeline: Arc<Pipeline>,
    batch: Bytes,
    ended: Sender<Duration>,
    began: Instant,
}

impl Feed {
    /// Time of so many batches.
    fn run(pipeline: &Arc<Pipeline>, batch: &Bytes, batches: u64) -> Duration {
        let (ended, end) = channel();
        let pool = ShardPool::new(1, 4).expect("threads start");
        let (pipeline, batch) = (Arc::clone(pipeline), batch.clone());
        let feed = Arc::new(Feed { pool, pipeline, batch, ended, began: Instant::now() });
        feed.submit(batches);
        end.recv().expect("it is answered")
    }

    fn submit(self: &Arc<Self>, left: u64) {
        let input = Input { topic: "t".into(), partition: 0, batch: self.batch.clone(), now_ms: 1_700_000_000_000 };
        let feed = Arc::clone(self);
        let done = move |result: Result<Output, RunError>| {
            result.expect("the batch gets through");
            match left {
                1 => feed.ended.send(feed.began.elapsed()).expect("it is waited for"),
                left => feed.submit(left - 1),
            }
        };
        self.pool.submit(0, Arc::clone(&self.pipeline), input, Box::new(done)).expect("there is room");
    }
}

fn measure(criterion: &mut Criterion, name: &str, pipeline: &Arc<Pipeline>, batch_of: impl Fn(usize) -> Bytes) {
    let mut group = criterion.benchmark_group(name);
    for records in BATCH_RECORDS {
        let batch = batch_of(records);
        group.throughput(Throughput::Elements(records as u64));
        group.bench_function(BenchmarkId::from_parameter(records), |bencher| {
            bencher.iter_custom(|batches| Feed::run(pipeline, &batch, batches));
        });
    }
    group.finish();
}

fn pipelines(criterion: &mut Criterion) {
    let drop = pipeline(&by_first_byte(DROP), 1, "");
    measure(criterion, "byte filter, all kept", &drop, |records| values(records, 0));
    measure(criterion, "byte filter, one in ten dropped", &drop, |records| values(records, 10));
    let three = pipeline(&by_first_byte(DROP), 3, "");
    measure(criterion, "byte filter, all kept, three stages", &three, |records| values(records, 0));
    let moved = pipeline(&by_first_byte(MOVE), 1, "");
    measure(criterion, "route, one in ten moved", &moved, |records| values(records, 10));
    if let Ok(component) = std::fs::read(Path::new(SHIPPED).join("tpms-normalize.wasm")) {
        // Without its memory of repeats, since the same batch comes again and again.
        let normalize = pipeline(&component, 1, r#"{"dedup_ms":0}"#);
        measure(criterion, "tpms-normalize", &normalize, sensor_lines);
    }
    if let Ok(component) = std::fs::read(Path::new(SHIPPED).join("filter.wasm")) {
        let filter = pipeline(&component, 1, r#"{"drop":{"bytes":{"equals":"d","at":0}}}"#);
        measure(criterion, "filter plugin by bytes, one in ten dropped", &filter, |records| values(records, 10));
    }
}

fn native(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("native walk and compare, no output");
    for records in BATCH_RECORDS {
        let batch = values(records, 10);
        group.throughput(Throughput::Elements(records as u64));
        group.bench_function(BenchmarkId::from_parameter(records), |bencher| {
            let mut scratch = Vec::new();
            bencher.iter(|| {
                let view = RecordBatch::trusted(&batch).expect("built above");
                let records = view.records(&mut scratch).expect("built above");
                records.filter(|r| r.as_ref().is_ok_and(|r| r.value.is_some_and(|v| v.first() != Some(&b'd')))).count()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, pipelines, native);
criterion_main!(benches);
