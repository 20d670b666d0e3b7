//! The engine, and plugins compiled by it.
//!
//! A file becomes a [`Plugin`] only if it is a component of our world, carries a good manifest and imports nothing but what
//! that manifest names. What is not granted is not linked, so it cannot be called.
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, InstancePre, Linker};
use wasmtime::{Config, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};

use crate::error::{HostError, PluginError};
use crate::instance::{Guest, Instance, link_imports};
use crate::limits::{CORE_INSTANCES_PER_PLUGIN, HostConfig, TABLE_ELEMENTS_MAX, TABLES_PER_PLUGIN, WASM_STACK_BYTES};
use crate::manifest::{Effective, Manifest};
use crate::pack::manifest_of;
use crate::section::{Kind, kind};
use crate::suggest::did_you_mean;
use crate::ticker::Ticker;

/// Names of the imports a plugin may have.
pub(crate) const SINK: &str = "weir:plugin/sink@1.0.0";
pub(crate) const LOG: &str = "weir:plugin/log@1.0.0";
pub(crate) const METRIC: &str = "weir:plugin/metric@1.0.0";
pub(crate) const TYPES: &str = "weir:plugin/types@1.0.0";
/// Names of its exports.
pub(crate) const INIT: &str = "init";
pub(crate) const PROCESS: &str = "process";

/// Address space of one memory where there is plenty (a 32-bit guest then needs no bounds checks), and where there is not
/// (39-bit address spaces of small boards).
const RESERVATION_WIDE: u64 = 4 << 30;
const MEMORY_GUARD_BYTES: u64 = 32 << 20;

/// What plugins and instances share with the host that made them.
pub(crate) struct HostShared {
    pub(crate) config: HostConfig,
    pub(crate) engine: Engine,
    pub(crate) ticker: Ticker,
}

/// The Wasm engine. Cheap to clone; lives as long as anything made with it.
#[derive(Clone)]
pub struct PluginHost {
    shared: Arc<HostShared>,
}

impl fmt::Debug for PluginHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PluginHost").field("config", &self.shared.config).finish_non_exhaustive()
    }
}

impl PluginHost {
    /// Starts the engine and its clock.
    ///
    /// # Errors
    /// [`HostError`] if limits contradict each other or the process has no room for the instances.
    pub fn new(config: HostConfig) -> Result<Self, HostError> {
        check_limits(&config)?;
        let narrow = config.memory_bytes_max as u64;
        let engine = Engine::new(&engine_config(&config, RESERVATION_WIDE))
            .or_else(|_| Engine::new(&engine_config(&config, narrow)))
            .map_err(|e| HostError::Engine { reason: format!("{e:#}") })?;
        let ticker = Ticker::start(engine.clone())?;
        Ok(Self { shared: Arc::new(HostShared { config, engine, ticker }) })
    }

    /// The limits this host was made with.
    #[must_use]
    pub fn config(&self) -> &HostConfig {
        &self.shared.config
    }

    pub(crate) fn shared(&self) -> Arc<HostShared> {
        Arc::clone(&self.shared)
    }

    /// Checks and compiles a plugin file. Takes about 0.5 s a MiB: not for an async executor's thread.
    ///
    /// # Errors
    /// [`PluginError`] tells the plugin's author what to change.
    pub fn compile(&self, component: &[u8]) -> Result<Arc<Plugin>, PluginError> {
        let shared = &self.shared;
        let max = shared.config.component_bytes_max;
        if component.len() > max {
            return Err(PluginError::TooLarge { bytes: component.len(), max });
        }
        match kind(component) {
            Kind::Component => {}
            Kind::Module => return Err(PluginError::CoreModule),
            Kind::NotWasm => return Err(PluginError::NotWasm),
        }
        let manifest = manifest_of(component)?;
        let compiled = Component::from_binary(&shared.engine, component).map_err(|e| invalid(&e))?;
        check_imports(&shared.engine, &compiled, &manifest)?;
        check_exports(&shared.engine, &compiled)?;
        let mut linker = Linker::<Guest>::new(&shared.engine);
        link_imports(&mut linker, &manifest).map_err(|e| invalid(&e))?;
        let pre = linker.instantiate_pre(&compiled).map_err(|e| invalid(&e))?;
        let limits = manifest.effective(&shared.config);
        let digest = format!("crc32c-{:08x}", crc32c::crc32c(component));
        let plugin = Arc::new(Plugin { manifest, limits, digest, pre, host: Arc::clone(shared) });
        Instance::probe(&plugin)?;
        Ok(plugin)
    }
}

/// A compiled plugin, ready to be put into a pipeline.
pub struct Plugin {
    manifest: Manifest,
    limits: Effective,
    digest: String,
    pub(crate) pre: InstancePre<Guest>,
    pub(crate) host: Arc<HostShared>,
}

impl fmt::Debug for Plugin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plugin").field("manifest", &self.manifest).field("digest", &self.digest).finish_non_exhaustive()
    }
}

impl Plugin {
    /// Its manifest.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.manifest.name
    }

    /// Its version.
    #[must_use]
    pub fn version(&self) -> &Arc<str> {
        &self.manifest.version
    }

    /// A checksum of the file, to tell two builds of one version apart.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Memory one instance may have on this host, in bytes.
    #[must_use]
    pub fn memory_bytes_max(&self) -> usize {
        self.limits.memory_bytes
    }

    /// Time one batch may take on this host.
    #[must_use]
    pub fn batch_time_max(&self) -> Duration {
        self.limits.batch_time
    }

    pub(crate) fn limits(&self) -> Effective {
        self.limits
    }
}

fn invalid(error: &wasmtime::Error) -> PluginError {
    PluginError::Invalid { reason: format!("{error:#}") }
}

fn check_limits(config: &HostConfig) -> Result<(), HostError> {
    let least_memory = 1 << 20;
    if config.memory_bytes_max < least_memory || config.memory_bytes_default > config.memory_bytes_max {
        return Err(HostError::Limits("pipeline memory must be at least 1 MiB, and its default at most its maximum"));
    }
    if config.memory_bytes_max as u64 > RESERVATION_WIDE {
        return Err(HostError::Limits("pipeline memory is at most 4096 MiB: a plugin is a 32-bit program"));
    }
    if config.batch_time_default > config.batch_time_max || config.batch_time_default.is_zero() {
        return Err(HostError::Limits("pipeline batch time must be above zero, and its default at most its maximum"));
    }
    if config.instances_max == 0 {
        return Err(HostError::Limits("pipeline.instances_max must be at least 1"));
    }
    if config.input_bytes_max.max(config.output_bytes_max) > (1 << 30) {
        return Err(HostError::Limits("pipeline input and output limits are at most 1 GiB: positions have 32 bits"));
    }
    Ok(())
}

/// Cranelift, pooled instances, epochs; everything a plugin does not need is off.
fn engine_config(config: &HostConfig, reservation: u64) -> Config {
    let instances = config.instances_max;
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(instances)
        .total_core_instances(instances.saturating_mul(CORE_INSTANCES_PER_PLUGIN))
        .max_core_instances_per_component(CORE_INSTANCES_PER_PLUGIN)
        .total_memories(instances)
        .max_memories_per_component(1)
        .max_memories_per_module(1)
        .max_memory_size(config.memory_bytes_max)
        .total_tables(instances.saturating_mul(TABLES_PER_PLUGIN))
        .max_tables_per_component(TABLES_PER_PLUGIN)
        .max_tables_per_module(TABLES_PER_PLUGIN)
        .table_elements(TABLE_ELEMENTS_MAX);
    // Memory protection keys are not even compiled in (they had a security bug, wasmtime#13982).
    let mut engine = Config::new();
    engine
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool))
        .memory_reservation(reservation)
        .memory_guard_size(MEMORY_GUARD_BYTES)
        .epoch_interruption(true)
        .max_wasm_stack(WASM_STACK_BYTES)
        .wasm_component_model(true)
        // A replay must give the same result, on another machine too.
        .wasm_relaxed_simd(false)
        .cranelift_nan_canonicalization(true)
        .wasm_memory64(false)
        .wasm_multi_memory(false);
    engine
}

/// Every import is known and granted.
fn check_imports(engine: &Engine, component: &Component, manifest: &Manifest) -> Result<(), PluginError> {
    for (name, _) in component.component_type().imports(engine) {
        let advice = match name {
            SINK | TYPES => continue,
            LOG if manifest.log.is_some() => continue,
            METRIC if !manifest.metrics.is_empty() => continue,
            LOG => "which its manifest does not name; add log = \"info:100/s\" under [grants], or do not log".to_owned(),
            METRIC => "which its manifest does not name; add metrics = [\"a_name\"] under [grants], or do not count".to_owned(),
            name if name.starts_with("wasi:") => {
                "but plugins have no WASI (no files, clock, network); build for wasm32-unknown-unknown".to_owned()
            }
            name => {
                let hint = did_you_mean(name, [SINK, LOG, METRIC, TYPES]);
                format!("which this host does not offer ({hint}); build it with this version's SDK")
            }
        };
        return Err(PluginError::Import { import: name.to_owned(), advice });
    }
    Ok(())
}

/// `init` and `process` are there; their types are checked by the first instance.
fn check_exports(engine: &Engine, component: &Component) -> Result<(), PluginError> {
    let ty = component.component_type();
    for export in [INIT, PROCESS] {
        match ty.get_export(engine, export).map(|e| e.ty) {
            Some(ComponentItem::ComponentFunc(_)) => {}
            other => {
                let reason = if other.is_some() { "it is not a function" } else { "it is missing" };
                return Err(PluginError::Export { export, reason: reason.to_owned() });
            }
        }
    }
    Ok(())
}
