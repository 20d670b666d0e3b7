//! One batch through one pipeline, on one thread.
//!
//! [`Worker`] owns what is reused from batch to batch: buffers and live instances. Each stage is a `StageRun`, which also
//! looks for the record to blame when the plugin fails: it halves the batch, runs the halves, and halves the one that
//! fails again. If the left half is fine, the right one must hold the culprit and is halved without being run, so finding
//! one record among n takes about 2 log2 n runs. Verdicts of a part count only once its run succeeded and kept the rules.
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Instant;

use weir_batch::{BatchBuilder, EncodedRecords, MarkedRecords, RecordBatch, RecordMark};
use weir_plugin_abi::BatchMeta;

use crate::breaker::{Admit, BreakerState, Went};
use crate::error::{Failure, FailureKind, RunError, clean_message};
use crate::instance::{Budget, Emitted, Fault, Instance, StartError};
use crate::items::{Buffers, Item, List, Span, exclusive, lay_out, lay_out_source};
use crate::limits::{FAILURES_LISTED_MAX, MESSAGE_BYTES_MAX};
use crate::output::{Counts, Main, NO_HEADERS, Output, Routed, RoutedRecord, RoutedRecords, extend_headers};
use crate::pipeline::{Input, Pipeline, Policy, StageState};
use crate::stats::StageDelta;
use crate::verdicts::{Apply, Collected, DeadLetter, Said, check, sources};

/// Buffers larger than this are given back after the batch that needed them.
const SCRATCH_KEEP_BYTES: usize = 4 << 20;
/// Key bytes shown in a failure.
const KEY_SHOWN_BYTES: usize = 64;

/// How long a batch may keep this thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// Other topics wait behind it: the first time-out hands it over.
    Inline,
    /// It may take as many reruns as the limits allow.
    Patient,
}

/// How a run ended.
pub(crate) enum Step {
    /// Done.
    Done(Result<Output, RunError>),
    /// It must be run again from the start by a patient worker; nothing of it counts.
    Handover,
}

/// Why a stage did not finish.
enum Stop {
    Error(RunError),
    Handover,
}

impl From<RunError> for Stop {
    fn from(error: RunError) -> Self {
        Self::Error(error)
    }
}

/// What one thread keeps between batches.
#[derive(Default)]
pub(crate) struct Worker {
    buffers: Buffers,
    /// The flat batch of a stage whose list is not the producer's.
    flat: Arc<Vec<u8>>,
    /// The flat batch of a part, during a search.
    part: Arc<Vec<u8>>,
    decompressed: Vec<u8>,
    list: List,
    collected: Collected,
    deltas: Vec<StageDelta>,
    instances: Instances,
}

impl Worker {
    /// Runs one batch.
    pub(crate) fn run(&mut self, pipeline: &Arc<Pipeline>, input: &Input, patience: Patience) -> Step {
        let result = self.run_stages(pipeline, input, patience);
        let step = match result {
            Err(Stop::Handover) => Step::Handover,
            Err(Stop::Error(error)) => Step::Done(Err(error)),
            Ok(output) => Step::Done(Ok(output)),
        };
        let refused = !matches!(step, Step::Done(Ok(_)));
        if !matches!(step, Step::Handover) {
            for (stage, delta) in pipeline.stages.iter().zip(&self.deltas) {
                stage.stats.add(delta, refused);
            }
        }
        self.trim();
        step
    }

    /// Frees instances of pipelines that are gone.
    pub(crate) fn sweep(&mut self) {
        self.instances.sweep();
    }

    fn run_stages(&mut self, pipeline: &Arc<Pipeline>, input: &Input, patience: Patience) -> Result<Output, Stop> {
        let stages = pipeline.stages.len();
        self.collected.clear();
        self.buffers.arenas.resize_with(stages, Vec::new);
        self.buffers.arenas.iter_mut().for_each(Vec::clear);
        self.deltas.resize_with(stages, StageDelta::default);
        self.deltas.iter_mut().for_each(StageDelta::clear);
        let batch = RecordBatch::trusted(&input.batch).map_err(RunError::from)?;
        if batch.header().is_control() {
            return Ok(untouched(batch.record_count()));
        }
        let meta = BatchMeta::new(&input.topic, input.partition, input.now_ms);
        let bytes_max = pipeline.host.config.input_bytes_max;
        let flat = exclusive(&mut self.buffers.source);
        let marks = &mut self.buffers.marks;
        let encoded_start = lay_out_source(&batch, meta, bytes_max, &mut self.decompressed, flat, marks)?;
        self.list.start(batch.record_count());
        for index in 0..stages {
            if self.list.len() == 0 {
                break;
            }
            let in_place = self.run_stage(pipeline, index, meta, patience)?;
            if !in_place {
                self.list.advance(&mut self.collected.next);
            }
        }
        Ok(self.output(pipeline, &batch, encoded_start, input)?)
    }

    /// Answers whether the list is the next stage's already; otherwise that one was collected.
    fn run_stage(
        &mut self,
        pipeline: &Arc<Pipeline>,
        index: usize,
        meta: BatchMeta<'_>,
        patience: Patience,
    ) -> Result<bool, Stop> {
        let whole = if self.collected.changed {
            let bytes_max = pipeline.host.config.input_bytes_max;
            let items = self.list.items(&self.buffers.source);
            lay_out(items, &self.buffers, meta, bytes_max, exclusive(&mut self.flat))?;
            Arc::clone(&self.flat)
        } else {
            Arc::clone(&self.buffers.source)
        };
        let stage = &pipeline.stages[index];
        let admitted = stage.breaker().admit(meta.now_ms);
        let delta = &mut self.deltas[index];
        delta.ran = true;
        delta.records_in = self.list.len() as u64;
        let mut run = StageRun {
            pipeline,
            stage,
            index,
            meta,
            list: &mut self.list,
            whole,
            buffers: &mut self.buffers,
            part: &mut self.part,
            collected: &mut self.collected,
            delta,
            instances: &mut self.instances,
            admitted,
            patience,
            search: Search::default(),
            in_place: false,
        };
        let result = run.run();
        let went = run.went(&result);
        if admitted != Admit::Refuse && !matches!(result, Err(Stop::Handover)) {
            report_breaker(stage, meta.now_ms, admitted, went);
        }
        result.map(|()| run.in_place)
    }

    /// Builds what goes on from the last list.
    fn output(
        &mut self,
        pipeline: &Pipeline,
        batch: &RecordBatch<'_>,
        encoded_start: usize,
        input: &Input,
    ) -> Result<Output, RunError> {
        let collected = &mut self.collected;
        let main = if !collected.changed {
            Main::Unchanged
        } else if self.list.len() == 0 {
            Main::Empty
        } else {
            rebuild(batch, &mut self.list, &self.buffers, encoded_start)?
        };
        let mut counts = Counts {
            records_in: u64::from(batch.record_count()),
            records_out: self.list.len() as u64,
            routed: collected.routed.len() as u64,
            dead_lettered: collected.dead.len() as u64,
            ..Counts::default()
        };
        for delta in &self.deltas {
            counts.dropped += delta.dropped;
            counts.replaced += delta.replaced;
            counts.moved += delta.moved;
            counts.emitted += delta.emitted;
            let rejected = delta.failed[FailureKind::Reject.index()];
            counts.rejected += rejected;
            counts.failed += delta.failed.iter().sum::<u64>() - rejected;
        }
        let routed = route(pipeline, collected, &self.buffers, input);
        Ok(Output { main, routed, counts, failures: std::mem::take(&mut collected.failures) })
    }

    fn trim(&mut self) {
        let shared = [&mut self.buffers.source, &mut self.flat, &mut self.part];
        for buffer in shared.into_iter().filter(|b| b.capacity() > SCRATCH_KEEP_BYTES) {
            *buffer = Arc::default();
        }
        if self.buffers.marks.capacity() > SCRATCH_KEEP_BYTES / size_of::<RecordMark>() {
            self.buffers.marks = Vec::new();
        }
        let own = self.buffers.arenas.iter_mut().chain([&mut self.decompressed]);
        for buffer in own.filter(|b| b.capacity() > SCRATCH_KEEP_BYTES) {
            *buffer = Vec::new();
        }
    }
}

fn untouched(record_count: u32) -> Output {
    let records = u64::from(record_count);
    let counts = Counts { records_in: records, records_out: records, ..Counts::default() };
    Output { main: Main::Unchanged, routed: Vec::new(), counts, failures: Vec::new() }
}

/// One new batch: zstd stays zstd, the producer's fields stay. Records that nobody touched are copied as they are encoded.
fn rebuild(batch: &RecordBatch<'_>, list: &mut List, buffers: &Buffers, encoded_start: usize) -> Result<Main, RunError> {
    let header = batch.header();
    let encoded = &buffers.source[encoded_start..];
    let mut builder = BatchBuilder::with_capacity(batch.codec(), encoded.len());
    builder.set_producer(header.producer_id, header.producer_epoch, header.base_sequence);
    let record_count = list.len() as u32;
    match list.runs() {
        Some(runs) if !header.is_log_append_time() => {
            let records = MarkedRecords::new(header, encoded, &buffers.marks);
            for run in runs {
                builder.push_run(&records, run.clone())?;
            }
        }
        _ => {
            let mut records = EncodedRecords::new(encoded);
            for item in list.items(&buffers.source) {
                push(&mut builder, &mut records, buffers, item)?;
            }
        }
    }
    let max_timestamp = builder.max_timestamp();
    Ok(Main::Rebuilt { batch: builder.finish()?, record_count, max_timestamp })
}

fn push(
    builder: &mut BatchBuilder,
    records: &mut EncodedRecords<'_>,
    buffers: &Buffers,
    item: &Item,
) -> Result<(), weir_batch::BatchError> {
    // Stages keep the order, so the untouched records come in the order of their sources.
    if item.untouched
        && let Some(record) = records.seek(item.source)
    {
        builder.push_encoded(item.timestamp, record);
        return Ok(());
    }
    let (key, value) = (buffers.get(item.key), buffers.get(item.value));
    if item.headers == Span::NULL {
        builder.push(item.timestamp, key, value, &[]);
        return Ok(());
    }
    builder.push_raw_headers(item.timestamp, key, value, buffers.headers(item))
}

/// Groups routed records and dead letters by topic.
fn route(pipeline: &Pipeline, collected: &Collected, buffers: &Buffers, input: &Input) -> Vec<Routed> {
    let mut by_topic: Vec<RoutedRecords> = vec![RoutedRecords::default(); pipeline.topics.len()];
    for (topic, item) in &collected.routed {
        by_topic[*topic].push(routed_record(item, buffers, buffers.headers(item)));
    }
    for dead in &collected.dead {
        let headers = dead_letter_headers(pipeline, dead, buffers, input);
        by_topic[dead.topic].push(routed_record(&dead.item, buffers, &headers));
    }
    let topics = pipeline.topics.iter().map(Arc::clone).zip(by_topic);
    topics.filter(|(_, records)| !records.is_empty()).map(|(topic, records)| Routed { topic, records }).collect()
}

fn routed_record<'a>(item: &Item, buffers: &'a Buffers, headers_raw: &'a [u8]) -> RoutedRecord<'a> {
    let headers_raw = if headers_raw.is_empty() { &NO_HEADERS } else { headers_raw };
    RoutedRecord { timestamp: item.timestamp, key: buffers.get(item.key), value: buffers.get(item.value), headers_raw }
}

/// Says in headers why a record is a dead letter.
fn dead_letter_headers(pipeline: &Pipeline, dead: &DeadLetter, buffers: &Buffers, input: &Input) -> Vec<u8> {
    let plugin = &pipeline.stages[dead.stage].plugin;
    let added: [(&str, &[u8]); 7] = [
        ("weir-reason", dead.kind.as_str().as_bytes()),
        ("weir-plugin", plugin.name().as_bytes()),
        ("weir-version", plugin.version().as_bytes()),
        ("weir-record-index", &dead.item.source.to_string().into_bytes()),
        ("weir-topic", input.topic.as_bytes()),
        ("weir-partition", &input.partition.to_string().into_bytes()),
        ("weir-message", dead.message.as_bytes()),
    ];
    extend_headers(buffers.headers(&dead.item), &added)
}

fn report_breaker(stage: &StageState, now_ms: i64, admitted: Admit, went: Went) {
    let (opened, state) = {
        let mut breaker = stage.breaker();
        (breaker.went(now_ms, admitted, went), breaker.state())
    };
    let (plugin, version) = (&**stage.plugin.name(), &**stage.plugin.version());
    if opened {
        tracing::warn!(
            plugin,
            version,
            "circuit opened: the plugin keeps failing, its failure policy now applies to every record without running it"
        );
    } else if admitted == Admit::Probe && state == BreakerState::Closed {
        tracing::info!(plugin, version, "circuit closed: the plugin works again");
    }
}

/// A part of the stage's list.
#[derive(Debug, Clone, Copy)]
struct Part {
    from: usize,
    to: usize,
    /// The left half of a part that failed: if it is fine, its sibling is to blame.
    is_left: bool,
    /// Known to fail without running it.
    to_blame: bool,
}

impl Part {
    fn len(&self) -> usize {
        self.to - self.from
    }
}

#[derive(Debug, Default)]
struct Search {
    /// Parts still to be run, the first one last.
    parts: Vec<Part>,
    runs: u32,
    timeouts: u32,
    faults: u32,
    poison_found: bool,
    /// No more halving: parts that fail from here on go to the policy as a whole.
    gave_up: bool,
    /// No more runs either.
    hopeless: bool,
}

/// One stage of one batch.
struct StageRun<'r> {
    pipeline: &'r Arc<Pipeline>,
    stage: &'r StageState,
    index: usize,
    meta: BatchMeta<'r>,
    list: &'r mut List,
    whole: Arc<Vec<u8>>,
    buffers: &'r mut Buffers,
    part: &'r mut Arc<Vec<u8>>,
    collected: &'r mut Collected,
    delta: &'r mut StageDelta,
    instances: &'r mut Instances,
    admitted: Admit,
    patience: Patience,
    search: Search,
    /// The list is the next stage's already.
    in_place: bool,
}

/// Why an attempt produced nothing.
enum Failed {
    Fault(Fault),
    Stop(Stop),
}

impl From<RunError> for Failed {
    fn from(error: RunError) -> Self {
        Self::Stop(Stop::Error(error))
    }
}

impl StageRun<'_> {
    fn run(&mut self) -> Result<(), Stop> {
        let all = Part { from: 0, to: self.list.len(), is_left: false, to_blame: false };
        if self.admitted == Admit::Refuse {
            let fault = Fault {
                kind: FailureKind::CircuitOpen,
                message: "the plugin failed too often just before and is not asked for a while".to_owned(),
            };
            return self.apply_policy(all, &fault);
        }
        self.search.parts.push(all);
        let mut last_fault = None;
        while let Some(part) = self.search.parts.pop() {
            if part.to_blame && part.len() > 1 && !self.search.gave_up {
                self.halve(part);
                continue;
            }
            if let (true, Some(fault)) = (self.search.hopeless || part.to_blame && self.search.gave_up, &last_fault) {
                self.apply_policy(part, fault)?;
                continue;
            }
            match self.attempt(part) {
                Ok(()) => self.fine(part),
                Err(Failed::Stop(stop)) => return Err(stop),
                Err(Failed::Fault(fault)) => {
                    self.failed(part, &fault)?;
                    last_fault = Some(fault);
                }
            }
        }
        Ok(())
    }

    /// If the left half of a failing part is fine, the right half is to blame.
    fn fine(&mut self, part: Part) {
        if part.is_left
            && let Some(sibling) = self.search.parts.last_mut()
        {
            sibling.to_blame = true;
        }
    }

    /// A part failed: search on in its halves, or apply the policy.
    fn failed(&mut self, part: Part, fault: &Fault) -> Result<(), Stop> {
        let config = &self.pipeline.host.config;
        let search = &mut self.search;
        search.faults += 1;
        search.timeouts += u32::from(fault.kind == FailureKind::Timeout);
        let slow = matches!(fault.kind, FailureKind::Timeout | FailureKind::Memory);
        self.delta.slow += u64::from(slow);
        if self.admitted == Admit::Run && self.patience == Patience::Inline && slow {
            return Err(Stop::Handover);
        }
        if self.admitted == Admit::Run && fault.kind == FailureKind::Retry {
            let failure = self.failure(part, fault.kind, &fault.message);
            self.delta.failed[fault.kind.index()] += part.len() as u64;
            return Err(RunError::Retry(failure).into());
        }
        if fault.kind == FailureKind::Init || search.timeouts >= config.timeouts_max || self.admitted == Admit::Probe {
            (search.gave_up, search.hopeless) = (true, true);
        }
        if search.runs > config.reruns_max {
            search.gave_up = true;
        }
        if part.len() == 1 || search.gave_up {
            search.poison_found = true;
            return self.apply_policy(part, fault);
        }
        self.halve(part);
        Ok(())
    }

    fn halve(&mut self, part: Part) {
        let middle = part.from + part.len() / 2;
        self.search.parts.push(Part { from: middle, is_left: false, to_blame: false, ..part });
        self.search.parts.push(Part { to: middle, is_left: true, to_blame: false, ..part });
    }

    /// Runs the plugin over a part; its verdicts count if it succeeds.
    fn attempt(&mut self, part: Part) -> Result<(), Failed> {
        let batch = if part.len() == self.list.len() {
            Arc::clone(&self.whole)
        } else {
            let items = &self.list.items(&self.buffers.source)[part.from..part.to];
            let bytes_max = self.pipeline.host.config.input_bytes_max;
            lay_out(items, self.buffers, self.meta, bytes_max, exclusive(self.part))?;
            Arc::clone(self.part)
        };
        self.delta.reruns += u64::from(self.search.runs > 0);
        self.search.runs += 1;
        let mut instance = self.take_instance()?;
        let arena = &mut self.buffers.arenas[self.index];
        let arena_used = arena.len();
        let budget = Budget::new(&self.stage.plugin, part.len(), self.whole.len(), arena_used);
        // The guest's output is appended behind what other parts of this batch emitted.
        std::mem::swap(arena, &mut instance.emitted_mut().arena);
        let began = Instant::now();
        let outputs = self.stage.output_topics.len();
        let ran = instance.process(&batch, self.meta.now_ms, budget).and_then(|()| {
            let garbage = |error| Fault { kind: FailureKind::Garbage, message: format!("{error}") };
            check(instance.emitted_mut(), part.len(), outputs).map_err(garbage)
        });
        self.delta.nanos += u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.delta.memory_bytes = self.delta.memory_bytes.max(instance.memory_bytes() as u64);
        let judged = match ran {
            Ok(said) => self.judge(part, &mut instance, said),
            Err(fault) => Err(Failed::Fault(fault)),
        };
        std::mem::swap(&mut self.buffers.arenas[self.index], &mut instance.emitted_mut().arena);
        if let Err(Failed::Fault(fault)) = judged {
            self.buffers.arenas[self.index].truncate(arena_used);
            self.delta.instances_replaced += 1;
            return Err(Failed::Fault(fault));
        }
        self.delta.add_metrics(instance.metrics());
        self.instances.put(self.pipeline, self.index, instance);
        judged
    }

    /// Turns the verdicts of a part into the next list.
    fn judge(&mut self, part: Part, instance: &mut Instance, said: Said) -> Result<(), Failed> {
        let (stage, index) = (self.stage, self.index);
        let emitted = instance.emitted_mut();
        if part.len() == self.list.len() && self.judge_whole(said, emitted) {
            return Ok(());
        }
        let buffers = &*self.buffers;
        // The arena is still with the instance: a message is read from there.
        let arena = &emitted.arena;
        let reject = |collected: &mut Collected, delta: &mut StageDelta, item: &Item, message: Span| {
            let text = message.in_buffer(arena).map(String::from_utf8_lossy).unwrap_or_default();
            let text = clean_message(&text, MESSAGE_BYTES_MAX);
            let mut policy = PolicyRun { stage, index, buffers, collected, delta };
            policy.apply(std::slice::from_ref(item), FailureKind::Reject, &text)
        };
        let apply = Apply {
            items: &self.list.items(&buffers.source)[part.from..part.to],
            buffer: index + 1,
            output_topics: &stage.output_topics,
            collected: self.collected,
            delta: self.delta,
            reject,
        };
        apply.run(emitted).map_err(|error| Failed::Stop(error.into()))
    }

    /// A whole batch of which records are kept and dropped and nothing else; false if there is more to it.
    fn judge_whole(&mut self, said: Said, emitted: &Emitted) -> bool {
        let before = self.list.len();
        self.in_place = match said {
            Said::Nothing => true,
            Said::Drops => self.list.without(sources(emitted)),
            Said::More => false,
        };
        if self.in_place {
            let dropped = before - self.list.len();
            self.collected.changed |= dropped > 0;
            self.delta.dropped += dropped as u64;
            self.delta.kept += self.list.len() as u64;
        }
        self.in_place
    }

    fn take_instance(&mut self) -> Result<Instance, Failed> {
        self.instances.take(self.pipeline, self.index).map_err(|error| match error {
            StartError::Exhausted => Failed::from(RunError::Overloaded { reason: "all plugin instances are in use" }),
            StartError::Fault(fault) => {
                Failed::Fault(Fault { kind: FailureKind::Init, message: format!("init: {}", fault.message) })
            }
            StartError::Refused(message) => Failed::Fault(Fault { kind: FailureKind::Init, message: format!("init: {message}") }),
            StartError::Plugin(error) => Failed::Fault(Fault { kind: FailureKind::Init, message: error.to_string() }),
        })
    }

    fn apply_policy(&mut self, part: Part, fault: &Fault) -> Result<(), Stop> {
        let items = &self.list.items(&self.buffers.source)[part.from..part.to];
        let mut policy = PolicyRun {
            stage: self.stage,
            index: self.index,
            buffers: self.buffers,
            collected: self.collected,
            delta: self.delta,
        };
        Ok(policy.apply(items, fault.kind, &fault.message)?)
    }

    fn failure(&mut self, part: Part, kind: FailureKind, message: &str) -> Failure {
        let items = &self.list.items(&self.buffers.source)[part.from..part.to];
        failure(self.stage, self.index, self.buffers, items, kind, message)
    }

    /// What the breaker should think of this run.
    fn went(&self, result: &Result<(), Stop>) -> Went {
        let search = &self.search;
        match result {
            Err(Stop::Error(RunError::Retry(_))) => Went::Costly,
            Err(Stop::Error(RunError::Rejected(_))) | Ok(()) => {
                if search.faults == 0 {
                    Went::Clean
                } else if search.gave_up || (search.timeouts > 0 && search.poison_found) {
                    Went::Costly
                } else {
                    Went::Isolated
                }
            }
            Err(_) => Went::Unknown,
        }
    }
}

/// Applies the failure policy of a stage.
struct PolicyRun<'p> {
    stage: &'p StageState,
    index: usize,
    buffers: &'p Buffers,
    collected: &'p mut Collected,
    delta: &'p mut StageDelta,
}

impl PolicyRun<'_> {
    fn apply(&mut self, items: &[Item], kind: FailureKind, message: &str) -> Result<(), RunError> {
        self.delta.failed[kind.index()] += items.len() as u64;
        let listed = self.collected.failures.len() < FAILURES_LISTED_MAX;
        let failure = (listed || matches!(self.stage.policy, Policy::Fail))
            .then(|| failure(self.stage, self.index, self.buffers, items, kind, message));
        match (self.stage.policy, failure) {
            (Policy::Fail, Some(failure)) => return Err(RunError::Rejected(failure)),
            (_, Some(failure)) => self.collected.failures.push(failure),
            (_, None) => {}
        }
        match self.stage.policy {
            Policy::Pass => self.collected.next.extend_from_slice(items),
            Policy::Fail | Policy::Drop => self.collected.changed = true,
            Policy::DeadLetter(topic) => {
                self.collected.changed = true;
                let message: Arc<str> = message.into();
                let letter =
                    |item: &Item| DeadLetter { topic, item: *item, stage: self.index, kind, message: Arc::clone(&message) };
                self.collected.dead.extend(items.iter().map(letter));
            }
        }
        Ok(())
    }
}

fn failure(stage: &StageState, index: usize, buffers: &Buffers, items: &[Item], kind: FailureKind, message: &str) -> Failure {
    let first = items.first();
    let key = first.and_then(|item| buffers.get(item.key));
    Failure {
        plugin: Arc::clone(stage.plugin.name()),
        version: Arc::clone(stage.plugin.version()),
        stage: index,
        record_index: first.map_or(0, |item| item.source),
        records: items.len() as u32,
        key: key.map(|key| key[..key.len().min(KEY_SHOWN_BYTES)].to_vec()),
        kind,
        message: message.to_owned(),
    }
}

/// Live instances of this thread, one a stage.
#[derive(Default)]
struct Instances {
    live: HashMap<(u64, usize), Live>,
}

struct Live {
    instance: Instance,
    pipeline: Weak<Pipeline>,
}

impl Instances {
    /// The stage's instance, or a new one.
    fn take(&mut self, pipeline: &Arc<Pipeline>, stage: usize) -> Result<Instance, StartError> {
        if let Some(live) = self.live.remove(&(pipeline.id(), stage)) {
            return Ok(live.instance);
        }
        // A new pipeline usually replaces one: make room first.
        self.sweep();
        let state = &pipeline.stages[stage];
        Instance::start(&state.plugin, &state.config)
    }

    fn put(&mut self, pipeline: &Arc<Pipeline>, stage: usize, instance: Instance) {
        let live = Live { instance, pipeline: Arc::downgrade(pipeline) };
        self.live.insert((pipeline.id(), stage), live);
    }

    fn sweep(&mut self) {
        self.live.retain(|_, live| live.pipeline.strong_count() > 0);
    }
}
