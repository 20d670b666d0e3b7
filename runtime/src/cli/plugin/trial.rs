//! `weir plugin test`: a packed plugin over a file of records, as a node would run it, with nothing stored.
//!
//! Each record first goes alone, to show what becomes of it; then all go again in batches, to measure what a record costs.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde_json::{Value, json};
use weir_batch::{BatchBuilder, Codec};
use weir_pipeline::{
    FailurePolicy, HostConfig, Input, OfflineOutcome, OfflineRecord, OfflineReport, OfflineRun, Pipeline, PluginHost, ShardPool,
    Stage,
};

use super::{PluginCliError, TestArgs};

const INPUT_BYTES_MAX: u64 = 256 << 20;
/// Records of one batch when time is measured, as the client library batches them.
const BATCH_RECORDS: usize = 1_000;
const MEASURE_TIME: Duration = Duration::from_millis(300);
/// Characters of a value shown on one line.
const SHOWN_CHARS: usize = 200;

pub(super) fn run(args: &TestArgs) -> Result<(), PluginCliError> {
    let component = std::fs::read(&args.file).map_err(|error| PluginCliError::read(&args.file, error))?;
    let config = config_of(&args.config)?;
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64);
    let records = records_of(&read_input(&args.input)?, args.key_separator.as_deref(), now_ms)?;
    let host = PluginHost::new(HostConfig::default())?;
    let refused = |source| PluginCliError::Plugin { path: args.file.clone(), source };
    let mut run = OfflineRun::new(&host, &component, &config).map_err(refused)?;
    let mut sums = Sums::default();
    let mut out = std::io::stdout().lock();
    for record in &records {
        let report = run.record(record, now_ms);
        sums.add(&report);
        if args.json {
            writeln!(out, "{}", as_json(&report))?;
        } else if report.index < args.show {
            show(&mut out, record, &report)?;
        }
    }
    if !args.json && records.len() > args.show {
        writeln!(out, "... {} more records (--show {})", records.len() - args.show, records.len())?;
    }
    let memory_kib = run.memory_bytes() >> 10;
    let nanos = measure(&host, &run, config, &records, now_ms)?;
    if args.json {
        writeln!(out, "{}", sums.as_json(nanos, memory_kib))?;
    } else {
        sums.show(&mut out, nanos, memory_kib)?;
    }
    Ok(())
}

fn config_of(given: &str) -> Result<Vec<u8>, PluginCliError> {
    let text = match given.strip_prefix('@') {
        Some(file) => std::fs::read_to_string(file).map_err(|error| PluginCliError::read(Path::new(file), error))?,
        None => given.to_owned(),
    };
    serde_json::from_str::<Value>(&text).map_err(PluginCliError::Config)?;
    Ok(text.into_bytes())
}

fn read_input(path: &Path) -> Result<Vec<u8>, PluginCliError> {
    let unreadable = |error| PluginCliError::read(path, error);
    let mut bytes = Vec::new();
    let reader: Box<dyn Read> = if path == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        Box::new(std::fs::File::open(path).map_err(unreadable)?)
    };
    reader.take(INPUT_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > INPUT_BYTES_MAX {
        return Err(PluginCliError::InputTooLarge { max: INPUT_BYTES_MAX });
    }
    Ok(bytes)
}

/// One record a line, a millisecond apart.
fn records_of(input: &[u8], separator: Option<&str>, now_ms: i64) -> Result<Vec<OfflineRecord>, PluginCliError> {
    let mut records = Vec::new();
    for (at, line) in input.split(|byte| *byte == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            continue;
        }
        let (key, value) = match separator {
            None => (None, line),
            Some(separator) => {
                let missing = || PluginCliError::NoKey { line: at + 1, separator: separator.to_owned() };
                let found =
                    line.windows(separator.len().max(1)).position(|window| window == separator.as_bytes()).ok_or_else(missing)?;
                (Some(line[..found].to_vec()), &line[found + separator.len()..])
            }
        };
        let timestamp = now_ms + records.len() as i64;
        records.push(OfflineRecord { timestamp, key, value: Some(value.to_vec()), headers: Vec::new() });
    }
    Ok(records)
}

/// What became of the records, counted.
#[derive(Debug, Default)]
struct Sums {
    records: usize,
    kept: usize,
    replaced: usize,
    dropped: usize,
    moved: usize,
    failed: BTreeMap<String, usize>,
    routed: BTreeMap<String, usize>,
}

impl Sums {
    fn add(&mut self, report: &OfflineReport) {
        self.records += 1;
        match &report.outcome {
            OfflineOutcome::Kept => self.kept += 1,
            OfflineOutcome::Replaced(_) => self.replaced += 1,
            OfflineOutcome::Dropped => self.dropped += 1,
            OfflineOutcome::Moved => self.moved += 1,
            OfflineOutcome::Failed { kind, .. } => *self.failed.entry(kind.to_string()).or_default() += 1,
        }
        for (output, _) in &report.emitted {
            *self.routed.entry(output_name(output.as_deref()).to_owned()).or_default() += 1;
        }
    }

    fn show(&self, out: &mut impl Write, nanos: Option<f64>, memory_kib: usize) -> std::io::Result<()> {
        let Self { records, kept, replaced, dropped, moved, .. } = self;
        writeln!(out, "in {records}: kept {kept}, replaced {replaced}, dropped {dropped}, moved {moved}")?;
        for (kind, count) in &self.failed {
            writeln!(out, "failed ({kind}): {count}; the failure policy of the pipeline decides about them")?;
        }
        for (output, count) in &self.routed {
            writeln!(out, "to {output}: {count}")?;
        }
        if let Some(nanos) = nanos {
            writeln!(
                out,
                "{nanos:.0} ns a record in batches of {BATCH_RECORDS} ({:.0} records/s on one core), {memory_kib} KiB of memory",
                1e9 / nanos
            )?;
        }
        Ok(())
    }

    fn as_json(&self, nanos: Option<f64>, memory_kib: usize) -> Value {
        json!({"summary": {
            "records": self.records, "kept": self.kept, "replaced": self.replaced, "dropped": self.dropped, "moved": self.moved,
            "failed": self.failed, "routed": self.routed,
            "ns_per_record": nanos.map(f64::round), "batch_records": BATCH_RECORDS, "memory_kib": memory_kib,
        }})
    }
}

fn output_name(output: Option<&str>) -> &str {
    output.unwrap_or("the stream")
}

fn show(out: &mut impl Write, record: &OfflineRecord, report: &OfflineReport) -> std::io::Result<()> {
    let index = report.index;
    match &report.outcome {
        OfflineOutcome::Kept => writeln!(out, "{index:>5} kept      {}", line_of(record))?,
        OfflineOutcome::Dropped => writeln!(out, "{index:>5} dropped   {}", line_of(record))?,
        OfflineOutcome::Moved => writeln!(out, "{index:>5} moved     {}", line_of(record))?,
        OfflineOutcome::Replaced(by) => writeln!(out, "{index:>5} replaced  {}", line_of(by))?,
        OfflineOutcome::Failed { kind, message } => {
            writeln!(out, "{index:>5} {kind}: {message}\n                {}", line_of(record))?;
        }
    }
    for (output, record) in &report.emitted {
        writeln!(out, "      to {}: {}", output_name(output.as_deref()), line_of(record))?;
    }
    Ok(())
}

/// Key and value on one line of bounded length, without control characters.
fn line_of(record: &OfflineRecord) -> String {
    let text = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        let mut shown: String = text.chars().take(SHOWN_CHARS).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
        if text.chars().nth(SHOWN_CHARS).is_some() {
            shown.push('…');
        }
        shown
    };
    let value = record.value.as_deref().map_or_else(|| "(no value)".to_owned(), text);
    record.key.as_deref().map_or_else(|| value.clone(), |key| format!("[{}] {value}", text(key)))
}

fn as_json(report: &OfflineReport) -> Value {
    let (outcome, by, failure) = match &report.outcome {
        OfflineOutcome::Kept => ("kept", None, None),
        OfflineOutcome::Dropped => ("dropped", None, None),
        OfflineOutcome::Moved => ("moved", None, None),
        OfflineOutcome::Replaced(by) => ("replaced", Some(by), None),
        OfflineOutcome::Failed { kind, message } => ("failed", None, Some(json!({"kind": kind.to_string(), "message": message}))),
    };
    let emitted: Vec<Value> =
        report.emitted.iter().map(|(output, record)| json!({"output": output, "record": record_json(record)})).collect();
    let mut value = json!({"index": report.index, "outcome": outcome, "emitted": emitted, "us": report.time.as_micros() as u64});
    if let Some(by) = by {
        value["record"] = record_json(by);
    }
    if let Some(failure) = failure {
        value["failure"] = failure;
    }
    value
}

fn record_json(record: &OfflineRecord) -> Value {
    let text = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
    json!({"key": record.key.as_ref().map(text), "value": record.value.as_ref().map(text), "timestamp": record.timestamp})
}

/// Nanoseconds a record in whole batches, through the pipeline of a node: laid out, run, verdicts applied. `None` without
/// records.
fn measure(
    host: &PluginHost,
    run: &OfflineRun,
    config: Vec<u8>,
    records: &[OfflineRecord],
    now_ms: i64,
) -> Result<Option<f64>, PluginCliError> {
    if records.is_empty() {
        return Ok(None);
    }
    let failed = |error: &dyn std::fmt::Display| PluginCliError::Batch(error.to_string());
    let mut builder = BatchBuilder::new(Codec::None);
    for record in records.iter().cycle().take(BATCH_RECORDS) {
        builder.push(record.timestamp, record.key.as_deref(), record.value.as_deref(), &[]);
    }
    let batch: Bytes = builder.finish().map_err(|error| failed(&error))?.into();
    let outputs = run.plugin().manifest().outputs.iter().map(|name| (name.clone(), format!("test.{name}"))).collect();
    let stage = Stage { plugin: Arc::clone(run.plugin()), config, outputs, on_failure: FailurePolicy::Drop };
    let pipeline = Pipeline::new(1, vec![stage], host).map_err(|error| failed(&error))?;
    let pool = ShardPool::new(1, 1)?;
    let began = Instant::now();
    let mut batches = 0u32;
    let mut fastest = Duration::MAX;
    // The first batch starts the instance and is not counted.
    while batches < 2 || began.elapsed() < MEASURE_TIME {
        let input = Input { topic: Arc::from("test"), partition: 0, batch: batch.clone(), now_ms: now_ms + i64::from(batches) };
        let (done, finished) = channel();
        let start = Instant::now();
        let submitted = pool.submit(0, Arc::clone(&pipeline), input, Box::new(move |result| drop(done.send(result.map(drop)))));
        submitted.map_err(|_| failed(&"the pipeline is busy"))?;
        finished.recv().map_err(|error| failed(&error))?.map_err(|error| failed(&error))?;
        if batches > 0 {
            fastest = fastest.min(start.elapsed());
        }
        batches += 1;
    }
    Ok(Some(fastest.as_nanos() as f64 / BATCH_RECORDS as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_records_with_and_without_keys() {
        let plain = records_of(b"a\r\n\nb", None, 7).unwrap();
        assert_eq!((plain.len(), plain[0].value.as_deref(), plain[1].timestamp), (2, Some(&b"a"[..]), 8));
        let keyed = records_of(b"k=>v=>w", Some("=>"), 0).unwrap();
        assert_eq!((keyed[0].key.as_deref(), keyed[0].value.as_deref()), (Some(&b"k"[..]), Some(&b"v=>w"[..])));
        let error = records_of(b"k=>v\nw", Some("=>"), 0).unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
    }

    #[test]
    fn a_shown_line_is_bounded_and_clean() {
        let record = OfflineRecord { value: Some(vec![b'x'; 10_000]), key: Some(b"k\n".to_vec()), ..OfflineRecord::default() };
        let line = line_of(&record);
        assert!(line.chars().count() < 250 && line.starts_with("[k\u{fffd}] x") && line.ends_with('…'), "{line}");
    }

    #[test]
    fn a_configuration_must_be_json() {
        assert!(matches!(config_of("{"), Err(PluginCliError::Config(_))));
        assert!(matches!(config_of("@/nowhere/at/all"), Err(PluginCliError::File { .. })));
        assert_eq!(config_of("{\"a\":1}").unwrap(), b"{\"a\":1}");
    }
}
