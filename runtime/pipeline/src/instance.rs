//! One instance of a plugin: its store with all limits, and the two calls into it.
//!
//! An instance lives as long as its pipeline and goes from batch to batch; after any failure it is thrown away, because
//! nothing is known about the state it was left in.
use std::sync::Arc;

use thiserror::Error;
use wasmtime::component::{Linker, WasmList, WasmStr};
use wasmtime::{PoolConcurrencyLimitError, ResourceLimiter, Store, StoreContextMut, Trap, WasmBacktrace};
use weir_plugin_abi::VERDICT_BYTES;

use crate::error::{FailureKind, PluginError, clean_message};
use crate::host::{INIT, LOG, METRIC, PROCESS, Plugin, SINK, TYPES};
use crate::limits::{EMIT_CALLS_EXTRA, MESSAGE_BYTES_MAX, OUTPUT_BYTES_FLOOR, TABLE_ELEMENTS_MAX};
use crate::manifest::{LogGrant, LogLevel, Manifest};
use crate::ticker::ticks;
use crate::types::{BatchError, InitError, InitFunc, Level, ProcessFunc};

/// Why a call failed.
#[derive(Debug, Clone)]
pub(crate) struct Fault {
    pub(crate) kind: FailureKind,
    pub(crate) message: String,
}

/// Why no instance could be had.
#[derive(Debug)]
pub(crate) enum StartError {
    /// The pool is used up: nobody's fault, try later.
    Exhausted,
    /// The plugin cannot be instantiated or lacks an export.
    Plugin(PluginError),
    /// `init` refused the configuration.
    Refused(String),
    /// `init` failed.
    Fault(Fault),
}

/// Limits the host enforces itself, as errors that travel through the guest's frames.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
enum LimitHit {
    #[error("it wanted {wanted} bytes of memory, its limit is {max}")]
    Memory { wanted: usize, max: usize },
    #[error("it wanted a table of {wanted} elements, the limit is {max}")]
    Table { wanted: usize, max: usize },
    #[error("it emitted more than {max} {what} for one batch")]
    Output { what: &'static str, max: usize },
    #[error("it called emit outside of process")]
    EmitOutside,
}

/// Everything a guest emitted in one call of `process`, copied out of its memory once.
#[derive(Debug, Default)]
pub(crate) struct Emitted {
    pub(crate) verdicts: Vec<u8>,
    /// Bytes the verdicts point to. What was emitted for earlier parts of the same batch may stand before.
    pub(crate) arena: Vec<u8>,
    /// One entry a call: where its verdicts and its arena start.
    pub(crate) calls: Vec<EmitCall>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct EmitCall {
    pub(crate) verdicts_start: usize,
    pub(crate) arena_start: usize,
}

/// What one call of `process` may emit.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Budget {
    arena_left: usize,
    arena_max: usize,
    verdicts_left: usize,
    verdicts_max: usize,
    calls_left: usize,
    calls_max: usize,
}

impl Budget {
    /// For `count` records in `input_bytes`, of which `arena_used` bytes were emitted for other parts of the batch.
    pub(crate) fn new(plugin: &Plugin, count: usize, batch_bytes: usize, arena_used: usize) -> Self {
        let host = &plugin.host.config;
        let by_ratio = (batch_bytes as f64 * plugin.limits().output_ratio) as usize;
        let arena_max = by_ratio.max(OUTPUT_BYTES_FLOOR).min(host.output_bytes_max);
        let verdicts_max = count + host.output_records_max;
        let calls_max = count + EMIT_CALLS_EXTRA;
        Self {
            arena_left: arena_max.saturating_sub(arena_used),
            arena_max,
            verdicts_left: verdicts_max,
            verdicts_max,
            calls_left: calls_max,
            calls_max,
        }
    }

    fn take(&mut self, verdicts_bytes: usize, arena_bytes: usize) -> Result<(), LimitHit> {
        let spend = |left: &mut usize, n: usize, what, max| {
            *left = left.checked_sub(n).ok_or(LimitHit::Output { what, max })?;
            Ok(())
        };
        spend(&mut self.calls_left, 1, "emit calls", self.calls_max)?;
        spend(&mut self.verdicts_left, verdicts_bytes.div_ceil(VERDICT_BYTES), "verdicts", self.verdicts_max)?;
        spend(&mut self.arena_left, arena_bytes, "bytes", self.arena_max)
    }
}

/// Data of a store: what a guest's imports act on.
#[derive(Debug)]
pub(crate) struct Guest {
    name: Arc<str>,
    version: Arc<str>,
    memory_bytes: usize,
    memory_bytes_max: usize,
    /// `None` outside of `process`.
    budget: Option<Budget>,
    emitted: Emitted,
    /// Counts of the call that runs; they count only if it succeeds.
    metrics: Vec<u64>,
    log: Option<LogLimit>,
    now_ms: i64,
}

/// Lines a second, by the batch's clock.
#[derive(Debug)]
struct LogLimit {
    grant: LogGrant,
    second: i64,
    lines: u32,
}

impl LogLimit {
    fn admit(&mut self, level: LogLevel, now_ms: i64) -> bool {
        if level < self.grant.level {
            return false;
        }
        let second = now_ms.div_euclid(1_000);
        if second != self.second {
            (self.second, self.lines) = (second, 0);
        }
        self.lines = self.lines.saturating_add(1);
        self.lines <= self.grant.lines_per_second
    }
}

impl Guest {
    fn new(plugin: &Plugin) -> Self {
        let manifest = plugin.manifest();
        Self {
            name: Arc::clone(&manifest.name),
            version: Arc::clone(&manifest.version),
            memory_bytes: 0,
            memory_bytes_max: plugin.limits().memory_bytes,
            budget: None,
            emitted: Emitted::default(),
            metrics: vec![0; manifest.metrics.len()],
            log: manifest.log.map(|grant| LogLimit { grant, second: 0, lines: 0 }),
            now_ms: 0,
        }
    }

    fn write_log(&self, level: LogLevel, message: &str) {
        let (plugin, version) = (&*self.name, &*self.version);
        let message = clean_message(message, MESSAGE_BYTES_MAX);
        match level {
            LogLevel::Debug => tracing::debug!(target: "weir::plugin", plugin, version, "{message}"),
            LogLevel::Info => tracing::info!(target: "weir::plugin", plugin, version, "{message}"),
            LogLevel::Warn => tracing::warn!(target: "weir::plugin", plugin, version, "{message}"),
            LogLevel::Error => tracing::error!(target: "weir::plugin", plugin, version, "{message}"),
        }
    }
}

impl ResourceLimiter for Guest {
    /// An error rather than "no": it ends the call at once, and says why.
    fn memory_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let max = self.memory_bytes_max;
        if desired > max {
            return Err(LimitHit::Memory { wanted: desired, max }.into());
        }
        self.memory_bytes = desired;
        Ok(true)
    }

    fn table_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        if desired > TABLE_ELEMENTS_MAX {
            return Err(LimitHit::Table { wanted: desired, max: TABLE_ELEMENTS_MAX }.into());
        }
        Ok(true)
    }
}

/// Links what the manifest grants and nothing else.
pub(crate) fn link_imports(linker: &mut Linker<Guest>, manifest: &Manifest) -> wasmtime::Result<()> {
    linker.instance(TYPES)?;
    linker.instance(SINK)?.func_wrap("emit", emit)?;
    if manifest.log.is_some() {
        linker.instance(LOG)?.func_wrap("write", write_log)?;
    }
    if !manifest.metrics.is_empty() {
        linker.instance(METRIC)?.func_wrap("add", add_metric)?;
    }
    Ok(())
}

/// `emit`: both lists are looked at where they lie and copied once.
fn emit(mut store: StoreContextMut<'_, Guest>, (verdicts, arena): (WasmList<u8>, WasmList<u8>)) -> wasmtime::Result<()> {
    let guest = store.data_mut();
    let budget = guest.budget.as_mut().ok_or(LimitHit::EmitOutside)?;
    budget.take(verdicts.len(), arena.len())?;
    let mut emitted = std::mem::take(&mut guest.emitted);
    emitted.calls.push(EmitCall { verdicts_start: emitted.verdicts.len(), arena_start: emitted.arena.len() });
    emitted.verdicts.extend_from_slice(verdicts.as_le_slice(&store));
    emitted.arena.extend_from_slice(arena.as_le_slice(&store));
    store.data_mut().emitted = emitted;
    Ok(())
}

fn write_log(mut store: StoreContextMut<'_, Guest>, (level, message): (Level, WasmStr)) -> wasmtime::Result<()> {
    let level = match level {
        Level::Debug => LogLevel::Debug,
        Level::Info => LogLevel::Info,
        Level::Warn => LogLevel::Warn,
        Level::Error => LogLevel::Error,
    };
    let now_ms = store.data().now_ms;
    let admitted = store.data_mut().log.as_mut().is_some_and(|log| log.admit(level, now_ms));
    if admitted {
        let text = message.to_str(&store)?;
        store.data().write_log(level, &text);
    }
    Ok(())
}

/// Ids the manifest does not name are ignored.
fn add_metric(mut store: StoreContextMut<'_, Guest>, (id, n): (u32, u64)) -> wasmtime::Result<()> {
    if let Some(counter) = store.data_mut().metrics.get_mut(id as usize) {
        *counter = counter.saturating_add(n);
    }
    Ok(())
}

/// A live instance.
pub(crate) struct Instance {
    store: Store<Guest>,
    process: ProcessFunc,
    plugin: Arc<Plugin>,
}

impl std::fmt::Debug for Instance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Instance")
            .field("plugin", &self.plugin)
            .field("memory_bytes", &self.memory_bytes())
            .finish_non_exhaustive()
    }
}

impl Instance {
    /// Instantiates and calls `init`.
    pub(crate) fn start(plugin: &Arc<Plugin>, config: &[u8]) -> Result<Self, StartError> {
        let (mut instance, init) = Self::instantiate(plugin)?;
        let outputs = plugin.manifest().outputs.clone();
        instance.store.set_epoch_deadline(ticks(plugin.host.config.init_time_max));
        let running = plugin.host.ticker.running();
        let answer = init.call(&mut instance.store, (config.to_vec(), outputs));
        drop(running);
        match answer {
            Ok((Ok(()),)) => Ok(instance),
            Ok((Err(InitError::Config(message) | InitError::Unsupported(message)),)) => {
                Err(StartError::Refused(clean_message(&message, MESSAGE_BYTES_MAX)))
            }
            Err(error) => Err(StartError::Fault(instance.fault(&error))),
        }
    }

    /// Checks that a plugin can be instantiated and exports what it should.
    pub(crate) fn probe(plugin: &Arc<Plugin>) -> Result<(), PluginError> {
        match Self::instantiate(plugin) {
            // No room just now says nothing about the plugin; the pipeline's own instance will find out.
            Ok(_) | Err(StartError::Exhausted) => Ok(()),
            Err(error) => Err(error.into_plugin_error(plugin)),
        }
    }

    fn instantiate(plugin: &Arc<Plugin>) -> Result<(Self, InitFunc), StartError> {
        let mut store = Store::new(&plugin.host.engine, Guest::new(plugin));
        store.limiter(|guest| guest);
        store.set_epoch_deadline(ticks(plugin.host.config.init_time_max));
        let running = plugin.host.ticker.running();
        let made = plugin.pre.instantiate(&mut store);
        drop(running);
        let made = made.map_err(|error| {
            if error.is::<PoolConcurrencyLimitError>() {
                return StartError::Exhausted;
            }
            StartError::Plugin(PluginError::Instantiate {
                plugin: Arc::clone(plugin.name()),
                version: Arc::clone(plugin.version()),
                reason: clean_message(&format!("{error:#}"), MESSAGE_BYTES_MAX),
                memory_mib_max: plugin.host.config.memory_bytes_max >> 20,
            })
        })?;
        let export = |export: &'static str, error: wasmtime::Error| {
            StartError::Plugin(PluginError::Export { export, reason: format!("{error:#}") })
        };
        let init = made.get_typed_func(&mut store, INIT).map_err(|e| export(INIT, e))?;
        let process = made.get_typed_func(&mut store, PROCESS).map_err(|e| export(PROCESS, e))?;
        Ok((Self { store, process, plugin: Arc::clone(plugin) }, init))
    }

    /// Calls `process`. What was emitted is then in [`Instance::emitted_mut`]. After an error the instance is of no use.
    pub(crate) fn process(&mut self, batch: &Arc<Vec<u8>>, now_ms: i64, budget: Budget) -> Result<(), Fault> {
        let guest = self.store.data_mut();
        guest.budget = Some(budget);
        guest.now_ms = now_ms;
        guest.emitted.verdicts.clear();
        guest.emitted.calls.clear();
        guest.metrics.fill(0);
        self.store.set_epoch_deadline(ticks(self.plugin.limits().batch_time));
        let running = self.plugin.host.ticker.running();
        let answer = self.process.call(&mut self.store, (Arc::clone(batch),));
        drop(running);
        self.store.data_mut().budget = None;
        let fault = |kind, message: String| Fault { kind, message: clean_message(&message, MESSAGE_BYTES_MAX) };
        match answer {
            Ok((Ok(_),)) => Ok(()),
            Ok((Err(BatchError::Retry(message)),)) => Err(fault(FailureKind::Retry, message)),
            Ok((Err(BatchError::Fatal(message)),)) => Err(fault(FailureKind::Fatal, message)),
            Err(error) => Err(self.fault(&error)),
        }
    }

    pub(crate) fn emitted_mut(&mut self) -> &mut Emitted {
        &mut self.store.data_mut().emitted
    }

    /// What the last call added to the plugin's counters.
    pub(crate) fn metrics(&self) -> &[u64] {
        &self.store.data().metrics
    }

    /// Size of the guest's memory.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.store.data().memory_bytes
    }

    /// Tells a limit, a time-out, a trap and broken rules apart.
    fn fault(&self, error: &wasmtime::Error) -> Fault {
        let place = || {
            let frame = error.downcast_ref::<WasmBacktrace>().and_then(|trace| trace.frames().first());
            frame.and_then(|frame| frame.func_name()).map(|name| format!(" in `{name}`")).unwrap_or_default()
        };
        let (kind, message) = if let Some(hit) = error.downcast_ref::<LimitHit>() {
            let kind = match hit {
                LimitHit::Memory { .. } | LimitHit::Table { .. } => FailureKind::Memory,
                LimitHit::Output { .. } => FailureKind::Output,
                LimitHit::EmitOutside => FailureKind::Garbage,
            };
            (kind, hit.to_string())
        } else {
            match error.downcast_ref::<Trap>() {
                Some(Trap::Interrupt) => {
                    let limit = self.plugin.limits().batch_time;
                    (FailureKind::Timeout, format!("it took longer than {} ms{}", limit.as_millis(), place()))
                }
                Some(trap) => (FailureKind::Trap, format!("{trap}{}", place())),
                None => (FailureKind::Garbage, error.root_cause().to_string()),
            }
        };
        Fault { kind, message: clean_message(&message, MESSAGE_BYTES_MAX) }
    }
}

impl StartError {
    /// The same for whoever attaches the plugin.
    pub(crate) fn into_plugin_error(self, plugin: &Plugin) -> PluginError {
        let (name, version) = (Arc::clone(plugin.name()), Arc::clone(plugin.version()));
        match self {
            Self::Exhausted => PluginError::InstancesExhausted { max: plugin.host.config.instances_max },
            Self::Plugin(error) => error,
            Self::Refused(message) => PluginError::Config { plugin: name, version, message },
            Self::Fault(Fault { kind, message }) => PluginError::Init { plugin: name, version, kind, message },
        }
    }
}
