//! Runs a plugin natively: `cargo test` of a plugin needs no WebAssembly.
//!
//! The plugin goes through the same code as in the node: records are written as a flat batch, read back, and what the
//! plugin says is encoded as verdicts, held to the rules of the format and read as the host reads them.
//!
//! ```
//! use weir_plugin::testing::{Tester, Verdict};
//! # use weir_plugin::prelude::*;
//! # #[weir_plugin::plugin]
//! # fn tombstones(record: Record<'_>, out: &mut Out<'_>) -> Result {
//! #     if record.value().is_none() { out.drop() } else { out.keep() }
//! # }
//! # fn main() {
//! let mut plugin = Tester::<Tombstones>::new("{}").unwrap();
//! let judged = plugin.batch(["hello"]);
//! assert_eq!(judged[0].verdict, Verdict::Kept);
//! # }
//! ```
use weir_plugin_abi::{Action, BatchMeta, BatchWriter, Key, VerdictRules, VerdictView};

use crate::instance::{Host, Instance, Outcome};
use crate::{BatchError, InitError, Plugin};

/// A record to test with: from a text, from bytes, or from `(key, value)`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Input {
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    timestamp: Option<i64>,
    headers: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Input {
    /// A record with this value.
    #[must_use]
    pub fn new(value: impl Into<Vec<u8>>) -> Self {
        Self { value: Some(value.into()), ..Self::default() }
    }

    /// A record without a value.
    #[must_use]
    pub fn tombstone(key: impl Into<Vec<u8>>) -> Self {
        Self { key: Some(key.into()), ..Self::default() }
    }

    /// With this key.
    #[must_use]
    pub fn key(self, key: impl Into<Vec<u8>>) -> Self {
        Self { key: Some(key.into()), ..self }
    }

    /// With this timestamp, ms since 1970; without one it is the batch's clock.
    #[must_use]
    pub fn at(self, timestamp: i64) -> Self {
        Self { timestamp: Some(timestamp), ..self }
    }

    /// With one more header.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.headers.push((name.as_bytes().to_vec(), value.into()));
        self
    }
}

impl From<&str> for Input {
    fn from(value: &str) -> Self {
        Self::new(value)
    }
}

impl From<String> for Input {
    fn from(value: String) -> Self {
        Self::new(value)
    }
}

impl From<&[u8]> for Input {
    fn from(value: &[u8]) -> Self {
        Self::new(value)
    }
}

impl From<(&str, &str)> for Input {
    fn from((key, value): (&str, &str)) -> Self {
        Self::new(value).key(key)
    }
}

/// What became of a record in the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It passes unchanged.
    Kept,
    /// It ends.
    Dropped,
    /// Other bytes stand in its place.
    Replaced {
        /// The key it has now.
        key: Option<Vec<u8>>,
        /// The value it has now.
        value: Vec<u8>,
    },
    /// It went to an output, and left the stream.
    Moved,
    /// The failure policy decides.
    Rejected(String),
}

/// A record that a plugin sent to an output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Emitted {
    /// The output's name; empty for the stream itself.
    pub output: String,
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Its value.
    pub value: Option<Vec<u8>>,
    /// Its timestamp.
    pub timestamp: i64,
}

impl Emitted {
    /// The value as text; empty if there is none.
    #[must_use]
    pub fn value_str(&self) -> String {
        String::from_utf8_lossy(self.value.as_deref().unwrap_or_default()).into_owned()
    }
}

/// A record after the plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    /// What became of it.
    pub verdict: Verdict,
    /// What was sent to outputs because of it.
    pub emitted: Vec<Emitted>,
}

impl Judged {
    /// The value that stands in the record's place, as text; empty unless it was replaced.
    #[must_use]
    pub fn replaced_str(&self) -> String {
        match &self.verdict {
            Verdict::Replaced { value, .. } => String::from_utf8_lossy(value).into_owned(),
            _ => String::new(),
        }
    }
}

/// Runs one batch through a new instance of `P`.
///
/// # Panics
/// If the configuration is refused or the batch fails, as a test wants it; [`Tester`] returns the errors.
#[track_caller]
pub fn run<P: Plugin>(config: &str, records: impl IntoIterator<Item = impl Into<Input>>) -> Vec<Judged> {
    match Tester::<P>::new(config) {
        Ok(mut tester) => tester.batch(records),
        Err(error) => panic!("the plugin refuses its configuration: {error}"),
    }
}

/// One instance of a plugin that is given batch after batch.
#[derive(Debug)]
pub struct Tester<P> {
    instance: Instance<P>,
    outputs: Vec<String>,
    topic: String,
    now_ms: i64,
    counts: Vec<u64>,
}

impl<P: Plugin> Tester<P> {
    /// An instance with this configuration (JSON; empty for the default).
    ///
    /// # Errors
    /// What the plugin says about the configuration.
    pub fn new(config: &str) -> Result<Self, InitError> {
        let outputs: Vec<String> = P::OUTPUTS.iter().map(|&name| name.to_owned()).collect();
        let instance = Instance::init(config.as_bytes(), &outputs)?;
        Ok(Self { instance, outputs, topic: "test".to_owned(), now_ms: 0, counts: vec![0; P::METRICS.len()] })
    }

    /// The topic that records come from.
    #[must_use]
    pub fn topic(mut self, topic: &str) -> Self {
        topic.clone_into(&mut self.topic);
        self
    }

    /// Sets the host's clock, ms since 1970.
    pub fn set_now_ms(&mut self, now_ms: i64) {
        self.now_ms = now_ms;
    }

    /// What the counter of this name has come to.
    #[must_use]
    pub fn counted(&self, metric: &str) -> u64 {
        let at = P::METRICS.iter().position(|&name| name == metric);
        at.map_or(0, |at| self.counts[at])
    }

    /// Gives the plugin one batch.
    ///
    /// # Panics
    /// If the plugin fails the batch; see [`Tester::try_batch`].
    #[track_caller]
    pub fn batch(&mut self, records: impl IntoIterator<Item = impl Into<Input>>) -> Vec<Judged> {
        match self.try_batch(records) {
            Ok(judged) => judged,
            Err(error) => panic!("the plugin failed the batch: {error}"),
        }
    }

    /// Gives the plugin one batch.
    ///
    /// # Errors
    /// If the plugin fails the batch.
    ///
    /// # Panics
    /// If the verdicts break a rule of the format, which would be this crate's fault.
    pub fn try_batch(&mut self, records: impl IntoIterator<Item = impl Into<Input>>) -> Result<Vec<Judged>, BatchError> {
        let inputs: Vec<Input> = records.into_iter().map(Into::into).collect();
        let batch = encode(&inputs, BatchMeta::new(&self.topic, 0, self.now_ms));
        let mut host = Reader {
            rules: VerdictRules::new(inputs.len() as u32, self.outputs.len() as u16),
            outputs: &self.outputs,
            now_ms: self.now_ms,
            judged: inputs.iter().map(|_| (None, Vec::new())).collect(),
            moved: vec![false; inputs.len()],
            counts: &mut self.counts,
            inputs: &inputs,
        };
        let outcome = self.instance.process(&batch, &mut host)?;
        let judged = host.finish();
        let rejected = judged.iter().filter(|judged| matches!(judged.verdict, Verdict::Rejected(_))).count();
        assert_eq!(outcome, Outcome { processed: inputs.len() as u32, rejected: rejected as u32 });
        Ok(judged)
    }
}

fn encode(inputs: &[Input], meta: BatchMeta<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let written = (|| {
        let mut writer = BatchWriter::begin(&mut bytes, meta, inputs.len() as u32)?;
        for input in inputs {
            let timestamp = input.timestamp.unwrap_or(meta.now_ms);
            writer.push(timestamp, input.key.as_deref(), input.value.as_deref(), &encode_headers(&input.headers))?;
        }
        writer.finish()
    })();
    if let Err(error) = written {
        panic!("these records do not fit a batch: {error}");
    }
    bytes
}

/// Kafka's encoding: zig-zag varints of count and lengths.
fn encode_headers(headers: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    fn varint(bytes: &mut Vec<u8>, length: usize) {
        let mut rest = (length as u64) << 1;
        while rest >= 0x80 {
            bytes.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        bytes.push(rest as u8);
    }
    let mut bytes = Vec::new();
    if headers.is_empty() {
        return bytes;
    }
    varint(&mut bytes, headers.len());
    for field in headers.iter().flat_map(|(name, value)| [name, value]) {
        varint(&mut bytes, field.len());
        bytes.extend_from_slice(field);
    }
    bytes
}

/// Reads verdicts as the host does.
struct Reader<'a> {
    rules: VerdictRules,
    outputs: &'a [String],
    now_ms: i64,
    inputs: &'a [Input],
    judged: Vec<(Option<Verdict>, Vec<Emitted>)>,
    moved: Vec<bool>,
    counts: &'a mut Vec<u64>,
}

impl Reader<'_> {
    fn finish(self) -> Vec<Judged> {
        let moved = self.moved;
        let judged = self.judged.into_iter().zip(moved);
        let verdict = |given: Option<Verdict>, moved| given.unwrap_or(if moved { Verdict::Moved } else { Verdict::Kept });
        judged.map(|((given, emitted), moved)| Judged { verdict: verdict(given, moved), emitted }).collect()
    }

    fn read(&mut self, view: &VerdictView<'_>, verdict: &weir_plugin_abi::Verdict) {
        let at = verdict.source as usize;
        let input = &self.inputs[at];
        let timestamp = verdict.timestamp_or(input.timestamp.unwrap_or(self.now_ms));
        let key = match view.key(verdict) {
            Key::OfSource => input.key.clone(),
            Key::Null => None,
            Key::Bytes(key) => Some(key.to_vec()),
        };
        let value = view.value(verdict).map(<[u8]>::to_vec);
        let output = match verdict.output {
            0 => String::new(),
            number => self.outputs[usize::from(number) - 1].clone(),
        };
        let (given, emitted) = &mut self.judged[at];
        match verdict.action {
            Action::Keep if verdict.output == 0 => *given = Some(Verdict::Kept),
            Action::Keep => emitted.push(Emitted { output, key: input.key.clone(), value: input.value.clone(), timestamp }),
            Action::Drop => *given = Some(Verdict::Dropped),
            Action::Replace => *given = Some(Verdict::Replaced { key, value: value.unwrap_or_default() }),
            Action::Emit => emitted.push(Emitted { output, key, value, timestamp }),
            Action::Reject => {
                *given = Some(Verdict::Rejected(String::from_utf8_lossy(&value.unwrap_or_default()).into_owned()));
            }
        }
        self.moved[at] = true;
    }
}

impl Host for Reader<'_> {
    fn emit(&mut self, verdicts: &[u8], arena: &[u8]) {
        let view = VerdictView::parse(verdicts, arena).unwrap_or_else(|error| panic!("{error}"));
        for verdict in view.verdicts() {
            let verdict = verdict.unwrap_or_else(|error| panic!("{error}"));
            self.rules.check(&verdict, arena.len()).unwrap_or_else(|error| panic!("{error}"));
            self.read(&view, &verdict);
        }
    }

    fn count(&mut self, id: u32, n: u64) {
        self.counts[id as usize] += n;
    }
}
