//! A plugin run over records without a node: what `weir plugin test` shows.
use std::sync::Arc;
use std::time::{Duration, Instant};

use weir_plugin_abi::{Action, BatchMeta, BatchWriter, Key, VerdictView};

use crate::error::{FailureKind, PluginError};
use crate::host::{Plugin, PluginHost};
use crate::instance::{Budget, Emitted, Fault, Instance};
use crate::items::exclusive;
use crate::output::extend_headers;
use crate::verdicts::check;

/// Name of the topic plugins see offline.
const OFFLINE_TOPIC: &str = "test";

/// A record to try a plugin on, or one it made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OfflineRecord {
    /// ms since 1970.
    pub timestamp: i64,
    /// The key.
    pub key: Option<Vec<u8>>,
    /// The value.
    pub value: Option<Vec<u8>>,
    /// Headers, values not null.
    pub headers: Vec<(String, Vec<u8>)>,
}

/// What became of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OfflineOutcome {
    /// It goes on unchanged.
    Kept,
    /// It was dropped.
    Dropped,
    /// It goes on as this.
    Replaced(OfflineRecord),
    /// It was only sent elsewhere.
    Moved,
    /// The plugin failed on it or rejected it: the failure policy would decide.
    Failed {
        /// How.
        kind: FailureKind,
        /// What was said.
        message: String,
    },
}

/// A record made beside its source, with the output's name; `None` is the stream.
pub type Beside = (Option<String>, OfflineRecord);

/// One record's line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfflineReport {
    /// Index of the record.
    pub index: usize,
    /// What became of it.
    pub outcome: OfflineOutcome,
    /// Records made beside it, and copies sent elsewhere.
    pub emitted: Vec<Beside>,
    /// Time of the call.
    pub time: Duration,
}

/// A plugin ready to be given records one by one.
#[derive(Debug)]
pub struct OfflineRun {
    plugin: Arc<Plugin>,
    config: Vec<u8>,
    instance: Option<Instance>,
    batch: Arc<Vec<u8>>,
    next_index: usize,
    memory_bytes: usize,
}

/// Compiles `component`, gives it `config`, and hands it each record in a batch of one. The iterator yields a report a record.
///
/// # Errors
/// [`PluginError`] if the plugin cannot be used or refuses its configuration.
pub fn run_offline<I>(
    host: &PluginHost,
    component: &[u8],
    config: &[u8],
    now_ms: i64,
    records: I,
) -> Result<impl Iterator<Item = OfflineReport> + use<I>, PluginError>
where
    I: IntoIterator<Item = OfflineRecord>,
{
    let mut run = OfflineRun::new(host, component, config)?;
    Ok(records.into_iter().map(move |record| run.record(&record, now_ms)))
}

impl OfflineRun {
    /// Compiles and starts the plugin.
    ///
    /// # Errors
    /// [`PluginError`] if the plugin cannot be used or refuses its configuration.
    pub fn new(host: &PluginHost, component: &[u8], config: &[u8]) -> Result<Self, PluginError> {
        let plugin = host.compile(component)?;
        let instance = Instance::start(&plugin, config).map_err(|error| error.into_plugin_error(&plugin))?;
        let memory_bytes = instance.memory_bytes();
        let config = config.to_vec();
        Ok(Self { plugin, config, instance: Some(instance), batch: Arc::default(), next_index: 0, memory_bytes })
    }

    /// The plugin.
    #[must_use]
    pub fn plugin(&self) -> &Arc<Plugin> {
        &self.plugin
    }

    /// Largest memory of the guest so far.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// Runs one record.
    pub fn record(&mut self, record: &OfflineRecord, now_ms: i64) -> OfflineReport {
        let index = self.next_index;
        self.next_index += 1;
        let began = Instant::now();
        let result = self.call(record, now_ms);
        let time = began.elapsed();
        let (outcome, emitted) =
            result.unwrap_or_else(|fault| (OfflineOutcome::Failed { kind: fault.kind, message: fault.message }, Vec::new()));
        OfflineReport { index, outcome, emitted, time }
    }

    fn call(&mut self, record: &OfflineRecord, now_ms: i64) -> Result<(OfflineOutcome, Vec<Beside>), Fault> {
        let mut instance = match self.instance.take() {
            Some(instance) => instance,
            None => Instance::start(&self.plugin, &self.config)
                .map_err(|error| Fault { kind: FailureKind::Init, message: error.into_plugin_error(&self.plugin).to_string() })?,
        };
        let headers: Vec<(&str, &[u8])> = record.headers.iter().map(|(name, value)| (name.as_str(), &value[..])).collect();
        let headers = if headers.is_empty() { Vec::new() } else { extend_headers(&crate::output::NO_HEADERS, &headers) };
        let laid_out =
            BatchWriter::begin(exclusive(&mut self.batch), BatchMeta::new(OFFLINE_TOPIC, 0, now_ms), 1).and_then(|mut writer| {
                writer.push(record.timestamp, record.key.as_deref(), record.value.as_deref(), &headers)?;
                writer.finish()
            });
        laid_out.map_err(|error| Fault { kind: FailureKind::Memory, message: error.to_string() })?;
        let budget = Budget::new(&self.plugin, 1, self.batch.len(), 0);
        instance.emitted_mut().arena.clear();
        instance.process(&self.batch, now_ms, budget)?;
        self.memory_bytes = self.memory_bytes.max(instance.memory_bytes());
        let outputs = &self.plugin.manifest().outputs;
        let emitted = instance.emitted_mut();
        check(emitted, 1, outputs.len()).map_err(|error| Fault { kind: FailureKind::Garbage, message: error.to_string() })?;
        let read = read(emitted, record, outputs);
        self.instance = Some(instance);
        Ok(read)
    }
}

/// Reads checked verdicts about one record.
fn read(emitted: &Emitted, source: &OfflineRecord, outputs: &[String]) -> (OfflineOutcome, Vec<Beside>) {
    let mut beside = Vec::new();
    let mut decided = None;
    for (view, _) in crate::verdicts::calls(emitted).flatten() {
        for verdict in view.verdicts().flatten() {
            let output = usize::from(verdict.output).checked_sub(1).and_then(|n| outputs.get(n)).cloned();
            let made = || made(&view, &verdict, source);
            match verdict.action {
                Action::Keep if output.is_none() => decided = Some(OfflineOutcome::Kept),
                Action::Keep => beside.push((output, source.clone())),
                Action::Drop => decided = Some(OfflineOutcome::Dropped),
                Action::Replace => decided = Some(OfflineOutcome::Replaced(made())),
                Action::Emit => beside.push((output, made())),
                Action::Reject => {
                    let message = String::from_utf8_lossy(view.value(&verdict).unwrap_or_default()).into_owned();
                    decided = Some(OfflineOutcome::Failed { kind: FailureKind::Reject, message });
                }
            }
        }
    }
    let unsaid = if beside.is_empty() { OfflineOutcome::Kept } else { OfflineOutcome::Moved };
    (decided.unwrap_or(unsaid), beside)
}

fn made(view: &VerdictView<'_>, verdict: &weir_plugin_abi::Verdict, source: &OfflineRecord) -> OfflineRecord {
    let key = match view.key(verdict) {
        Key::OfSource => source.key.clone(),
        Key::Null => None,
        Key::Bytes(bytes) => Some(bytes.to_vec()),
    };
    OfflineRecord {
        timestamp: verdict.timestamp_or(source.timestamp),
        key,
        value: view.value(verdict).map(<[u8]>::to_vec),
        headers: source.headers.clone(),
    }
}
