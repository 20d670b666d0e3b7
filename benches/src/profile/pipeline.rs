//! Batches through a pipeline on one core: no network, no disk.
//!
//! The path is the node's own: a [`ShardPool`] of one thread, whose callback submits the next batch, so that the thread is
//! never idle and never waits for another one. What the hop from another thread costs on top is a figure of its own. The
//! floor is native Rust that walks the records of the same batches and compares the same byte; it builds no output.

use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use hdrhistogram::Histogram;
use weir_batch::{BatchBuilder, Codec, RecordBatch};
use weir_pipeline::{FailurePolicy, HostConfig, Input, Output, Pipeline, Plugin, PluginHost, RunError, ShardPool, Stage, pack};

use crate::lines::{another_id, sensor_lines};
use crate::load::value;
use crate::{BenchError, Floor, Host, Latency, Load, Report, Usage};

/// Name of the built-in plugin.
pub const BYTE_FILTER: &str = "byte-filter";
/// Its core module; `byte_filter.wat` beside it is the source.
const BYTE_FILTER_MODULE: &[u8] = include_bytes!("byte_filter.wasm");
const BYTE_FILTER_MANIFEST: &str = "[plugin]\nname = \"byte-filter\"\nversion = \"1.0.0\"\n";
/// What the built-in plugin, and the floor, drop.
const DROPPED: u8 = b'd';
/// One record in so many starts with it.
const DROPPED_ONE_IN: u32 = 10;
/// Different batches, taken in turn, as many as the other profiles have.
const DISTINCT: usize = 8;
/// Batches before the clock starts: the instance is made, its memory grown.
const WARM_UP: usize = 4 * DISTINCT;
/// Batches the shard's queue holds, as many as the node's by default.
const QUEUE: usize = 256;
/// Batches that are handed over from another thread, one at a time.
const HANDED_OVER: usize = 2_000;
/// Share of the time for the floor.
const FLOOR_SHARE: u32 = 5;

/// A packed plugin and how it is used.
#[derive(Debug, Clone, Default)]
pub struct PluginUse {
    /// The component file's bytes.
    pub component: Vec<u8>,
    /// Its configuration, JSON; empty for the default.
    pub config: String,
    /// Whether it is given lines of sensors rather than the values that every profile sends.
    pub sensor_lines: bool,
}

impl PluginUse {
    /// The built-in filter: drops records whose value starts with `d`, and says nothing about others.
    ///
    /// # Errors
    /// [`BenchError::Pack`], which a test excludes.
    pub fn byte_filter() -> Result<PluginUse, BenchError> {
        let component = pack(BYTE_FILTER_MODULE, BYTE_FILTER_MANIFEST)?;
        Ok(PluginUse { component, ..PluginUse::default() })
    }
}

/// Runs batches through a plugin for the seconds of the load; without one, through the built-in filter.
///
/// # Errors
/// [`BenchError`] if the plugin cannot be used, or not one batch got through.
pub fn pipeline(plugin: Option<PluginUse>, load: &Load, host: Host) -> Result<Report, BenchError> {
    let plugin = plugin.map_or_else(PluginUse::byte_filter, Ok)?;
    let inputs = if plugin.sensor_lines { sensor_batches(load)? } else { value_batches(load)? };
    let engine = PluginHost::new(HostConfig::default())?;
    let compiled = engine.compile(&plugin.component)?;
    let pipeline = attach(&compiled, plugin.config, &engine)?;
    let measured = Run::measure(&pipeline, &inputs, load.seconds)?;
    let mut report = Report::new("pipeline", load, host);
    (report.connections, report.producers, report.partitions) = (1, 1, 1);
    report.sync_policy = "none: nothing is sent and nothing is stored";
    report.plugin = Some(format!("{} {}", compiled.name(), compiled.version()));
    report.record_bytes = inputs.value_bytes / inputs.records;
    fill(&mut report, &measured)?;
    if let Some(handed_over) = handed_over(&pipeline, &inputs)? {
        report.figures.insert("handed_over_p50_ms", handed_over.p50);
    }
    report.add_floors(vec![native(&inputs, load.seconds / FLOOR_SHARE)?]);
    Ok(report)
}

fn fill(report: &mut Report, measured: &Measured) -> Result<(), BenchError> {
    let Measured { sums, seconds, cpu_seconds } = measured;
    if sums.records_in == 0 {
        return Err(BenchError::Nothing("not one batch got through the pipeline; try the plugin with `weir plugin test`"));
    }
    report.records = sums.records_in;
    report.batch_bytes = sums.bytes_in;
    report.value_bytes = report.records * report.record_bytes as u64;
    report.errors = sums.errors;
    report.client_cpu_seconds = *cpu_seconds;
    report.latency_ms = latency(&sums.nanos);
    report.rates(*seconds);
    let records = sums.records_in as f64;
    report.figures.insert("ns_per_record", seconds * 1e9 / records);
    report.figures.insert("kept_ratio", sums.records_out as f64 / records);
    report.figures.insert("records_out", sums.records_out as f64);
    report.figures.insert("rejected_records", sums.rejected as f64);
    Ok(())
}

/// Batches with what they sum up to.
struct Inputs {
    batches: Vec<Bytes>,
    records: usize,
    value_bytes: usize,
}

impl Inputs {
    fn build(load: &Load, mut next: impl FnMut() -> Vec<u8>) -> Result<Inputs, BenchError> {
        let codec = if load.zstd { Codec::Zstd(1) } else { Codec::None };
        let mut timestamp = now_ms();
        let mut inputs = Inputs { batches: Vec::new(), records: 0, value_bytes: 0 };
        for _ in 0..DISTINCT {
            let mut builder = BatchBuilder::new(codec);
            for _ in 0..load.batch_records {
                let value = next();
                builder.push(timestamp, None, Some(&value), &[]);
                timestamp += 1;
                inputs.records += 1;
                inputs.value_bytes += value.len();
            }
            inputs.batches.push(builder.finish()?.into());
        }
        Ok(inputs)
    }
}

/// The values of the other profiles, one in ten of them to be dropped.
fn value_batches(load: &Load) -> Result<Inputs, BenchError> {
    let mut rng = fastrand::Rng::with_seed(0);
    Inputs::build(load, || {
        let mut value = value(&mut rng, load.record_bytes);
        let dropped = rng.u32(..DROPPED_ONE_IN) == 0;
        value[0] = if dropped { DROPPED } else { b'{' };
        value
    })
}

/// Real lines in turn, each of another sensor, as a receiver at a busy road hears them: the same reading twice would be a
/// repeat, which tpms-normalize drops.
fn sensor_batches(load: &Load) -> Result<Inputs, BenchError> {
    let mut lines = sensor_lines().cycle();
    let mut rng = fastrand::Rng::with_seed(0);
    Inputs::build(load, || another_id(lines.next().unwrap_or_default().as_bytes().to_vec(), &mut rng))
}

fn attach(plugin: &Arc<Plugin>, config: String, engine: &PluginHost) -> Result<Arc<Pipeline>, BenchError> {
    let outputs = plugin.manifest().outputs.iter().map(|name| (name.clone(), format!("bench.{name}"))).collect();
    let (plugin, config) = (Arc::clone(plugin), config.into_bytes());
    let stage = Stage { plugin, config, outputs, on_failure: FailurePolicy::Drop };
    Ok(Pipeline::new(1, vec![stage], engine)?)
}

/// What came out, summed up.
struct Sums {
    records_in: u64,
    records_out: u64,
    bytes_in: u64,
    rejected: u64,
    errors: u64,
    nanos: Histogram<u64>,
}

impl Sums {
    fn new() -> Sums {
        Sums { records_in: 0, records_out: 0, bytes_in: 0, rejected: 0, errors: 0, nanos: nanos() }
    }

    fn add(&mut self, result: &Result<Output, RunError>, bytes: usize, took: Duration) {
        let Ok(output) = result else {
            self.errors += 1;
            return;
        };
        self.records_in += output.counts.records_in;
        self.records_out += output.counts.records_out;
        self.rejected += output.counts.rejected;
        self.errors += output.counts.failed;
        self.bytes_in += bytes as u64;
        self.nanos.saturating_record(took.as_nanos() as u64);
    }
}

/// A finished run.
struct Measured {
    sums: Sums,
    seconds: f64,
    cpu_seconds: f64,
}

/// One shard that feeds itself.
struct Run {
    pool: ShardPool,
    pipeline: Arc<Pipeline>,
    batches: Vec<Bytes>,
    seconds: Duration,
    next: AtomicUsize,
    state: Mutex<State>,
    ended: Sender<Measured>,
}

struct State {
    sums: Sums,
    begin: Instant,
    cpu_before: f64,
}

impl Run {
    fn measure(pipeline: &Arc<Pipeline>, inputs: &Inputs, seconds: Duration) -> Result<Measured, BenchError> {
        let (ended, end) = channel();
        let run = Arc::new(Run {
            pool: ShardPool::new(1, QUEUE)?,
            pipeline: Arc::clone(pipeline),
            batches: inputs.batches.clone(),
            seconds,
            next: AtomicUsize::new(0),
            state: Mutex::new(State { sums: Sums::new(), begin: Instant::now(), cpu_before: 0.0 }),
            ended,
        });
        run.submit();
        end.recv().map_err(|_| BenchError::Nothing("the pipeline's thread ended early"))
    }

    fn submit(self: &Arc<Run>) {
        let at = self.next.fetch_add(1, Ordering::Relaxed);
        let batch = self.batches[at % self.batches.len()].clone();
        let (bytes, input) = (batch.len(), input(batch, at));
        let run = Arc::clone(self);
        let submitted = Instant::now();
        let done = move |result: Result<Output, RunError>| run.done(at, bytes, submitted, result);
        // The queue holds more than the one batch that is under way.
        let _ = self.pool.submit(0, Arc::clone(&self.pipeline), input, Box::new(done));
    }

    /// Counts a batch and submits the next one, or ends the run.
    fn done(self: Arc<Run>, at: usize, bytes: usize, submitted: Instant, result: Result<Output, RunError>) {
        let took = submitted.elapsed();
        let ended = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if at < WARM_UP {
                *state = State { sums: Sums::new(), begin: Instant::now(), cpu_before: Usage::own().cpu_seconds };
            } else {
                state.sums.add(&result, bytes, took);
            }
            let elapsed = state.begin.elapsed();
            (elapsed >= self.seconds).then(|| Measured {
                sums: std::mem::replace(&mut state.sums, Sums::new()),
                seconds: elapsed.as_secs_f64(),
                cpu_seconds: Usage::own().cpu_seconds - state.cpu_before,
            })
        };
        match ended {
            None => self.submit(),
            // Nobody listens any more only where the process ends.
            Some(measured) => drop(self.ended.send(measured)),
        }
    }
}

/// From another thread and one at a time, as the node's front doors do: submit to callback, the two hops included.
fn handed_over(pipeline: &Arc<Pipeline>, inputs: &Inputs) -> Result<Option<Latency>, BenchError> {
    let pool = ShardPool::new(1, QUEUE)?;
    let mut took = nanos();
    for at in 0..HANDED_OVER {
        let input = input(inputs.batches[at % inputs.batches.len()].clone(), at);
        let (done, finished) = channel();
        let submitted = Instant::now();
        let callback = Box::new(move |result: Result<Output, RunError>| drop(done.send(result)));
        // An empty queue is not full.
        let _ = pool.submit(0, Arc::clone(pipeline), input, callback);
        let result = finished.recv().map_err(|_| BenchError::Nothing("the pipeline's thread ended early"))?;
        if at >= WARM_UP && result.is_ok() {
            took.saturating_record(submitted.elapsed().as_nanos() as u64);
        }
    }
    Ok(latency(&took))
}

/// The floor: the records of the same batches, walked and compared by native Rust.
fn native(inputs: &Inputs, during: Duration) -> Result<Floor, BenchError> {
    let (mut bytes, mut at) = (0u64, 0);
    let mut scratch = Vec::new();
    let begin = Instant::now();
    while begin.elapsed() < during {
        let batch = &inputs.batches[at % inputs.batches.len()];
        let view = RecordBatch::trusted(black_box(batch))?;
        let mut kept = 0u32;
        for record in view.records(&mut scratch)? {
            kept += u32::from(record?.value.is_none_or(|value| value.first() != Some(&DROPPED)));
        }
        black_box(kept);
        bytes += batch.len() as u64;
        at += 1;
    }
    let bytes_per_second = Some(bytes as f64 / begin.elapsed().as_secs_f64());
    Ok(Floor {
        name: "native Rust, walk and compare a byte".to_owned(),
        bytes_per_second,
        requests_per_second: None,
        latency_ms: None,
    })
}

fn input(batch: Bytes, at: usize) -> Input {
    Input { topic: "bench".into(), partition: 0, batch, now_ms: now_ms() + at as i64 }
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

/// Nanoseconds up to a minute, three digits.
fn nanos() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("the bounds are valid")
}

fn latency(nanos: &Histogram<u64>) -> Option<Latency> {
    let ms = |nanos: u64| nanos as f64 / 1e6;
    (!nanos.is_empty()).then(|| Latency {
        p50: ms(nanos.value_at_quantile(0.5)),
        p99: ms(nanos.value_at_quantile(0.99)),
        p999: ms(nanos.value_at_quantile(0.999)),
        max: ms(nanos.max()),
        samples: nanos.len(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_pipeline::Main;

    fn load(seconds: Duration) -> Load {
        Load {
            topic: "t".to_owned(),
            partitions: 1,
            records: None,
            seconds,
            record_bytes: 40,
            batch_records: 100,
            connections: 1,
            producers: 1,
            in_flight: 1,
            rate: None,
            zstd: false,
        }
    }

    #[test]
    fn the_built_in_filter_is_its_source_assembled() {
        let assembled = wat::parse_str(include_str!("byte_filter.wat")).expect("the text is good");
        assert!(assembled == BYTE_FILTER_MODULE, "assemble byte_filter.wat again: wat2wasm, or wasm-tools parse");
    }

    #[test]
    fn the_built_in_filter_drops_what_native_code_drops() {
        let load = load(Duration::from_millis(50));
        let inputs = value_batches(&load).expect("builds");
        let mut kept = 0;
        let mut scratch = Vec::new();
        for batch in &inputs.batches {
            let view = RecordBatch::verify(batch).expect("built above");
            let records = view.records(&mut scratch).expect("built above");
            kept += records.filter(|record| record.as_ref().is_ok_and(|r| r.value.is_some_and(|v| v[0] != DROPPED))).count();
        }
        assert!(kept < inputs.records * 19 / 20, "{kept} of {}", inputs.records);
        let engine = PluginHost::new(HostConfig::default()).expect("starts");
        let plugin = engine.compile(&PluginUse::byte_filter().expect("packs").component).expect("compiles");
        let pipeline = attach(&plugin, String::new(), &engine).expect("attaches");
        let pool = ShardPool::new(1, QUEUE).expect("starts");
        let mut left = 0;
        for batch in &inputs.batches {
            let (done, finished) = channel();
            let callback = Box::new(move |result: Result<Output, RunError>| drop(done.send(result)));
            pool.submit(0, Arc::clone(&pipeline), input(batch.clone(), 0), callback).expect("the queue is empty");
            let output = finished.recv().expect("answered").expect("runs");
            let Main::Rebuilt { batch, record_count, .. } = output.main else { panic!("nothing was dropped") };
            let view = RecordBatch::verify(&batch).expect("a good batch");
            view.check_records().expect("good records");
            assert_eq!(view.record_count(), record_count);
            left += record_count as usize;
        }
        assert_eq!(left, kept);
    }

    #[test]
    fn a_run_reports_what_it_did() {
        let load = load(Duration::from_millis(50));
        let report = pipeline(None, &load, Host::detect(None)).expect("runs");
        assert_eq!(report.errors, 0);
        assert!(report.records > 0 && report.records.is_multiple_of(100) && report.floor_ratio.is_some());
        let figures = &report.figures;
        assert!(figures["kept_ratio"] > 0.8 && figures["kept_ratio"] < 0.95, "{figures:?}");
        assert!((figures["ns_per_record"] * report.records_per_second / 1e9 - 1.0).abs() < 1e-6);
    }
}
