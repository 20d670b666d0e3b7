//! Drives a plugin over a batch: the same code in the WebAssembly build and in native tests.
//!
//! Per record: 32 bytes of index read, one call, and what the plugin says; per batch: one pass, no allocation but the
//! plugin's own.
use std::fmt;

use weir_plugin_abi::BatchView;

use crate::names::{OutputMap, Outputs};
use crate::out::{Buffers, Out};
use crate::plugin::{Plugin, parse_config};
use crate::{BatchError, InitError, Record};

/// What a plugin can call: the imports of the world, or a test's stand-in.
pub trait Host {
    /// Takes verdicts and the arena they point into.
    fn emit(&mut self, verdicts: &[u8], arena: &[u8]);
    /// Adds to the counter with this index.
    fn count(&mut self, id: u32, n: u64);
}

/// What became of a batch, for the host's counters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Records seen.
    pub processed: u32,
    /// Records rejected.
    pub rejected: u32,
}

/// A plugin with its buffers.
pub struct Instance<P> {
    plugin: P,
    buffers: Buffers,
}

impl<P> fmt::Debug for Instance<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Instance").field("buffers", &self.buffers).finish_non_exhaustive()
    }
}

impl<P: Plugin> Instance<P> {
    /// Reads the configuration and makes the plugin.
    ///
    /// # Errors
    /// A configuration that is refused, or an output the host does not know.
    pub fn init(config: &[u8], outputs: &[String]) -> Result<Self, InitError> {
        let map = OutputMap::new(P::OUTPUTS, outputs)?;
        let plugin = P::init(parse_config(config)?, &Outputs::new(outputs))?;
        Ok(Self { plugin, buffers: Buffers::new(map, P::METRICS) })
    }

    /// Asks the plugin about every record of `batch` and sends the verdicts to `host`.
    ///
    /// # Errors
    /// A batch that cannot be read, or that the plugin's `batch_end` fails.
    pub fn process(&mut self, batch: &[u8], host: &mut impl Host) -> Result<Outcome, BatchError> {
        self.buffers.clear();
        let view = BatchView::parse(batch).map_err(unreadable)?;
        let meta = view.meta();
        let mut outcome = Outcome::default();
        let mut last_said = false;
        for index in 0..view.count() {
            let Some(entry) = view.entry(index).map_err(unreadable)? else { break };
            let mut out = Out::of_record(&mut self.buffers, index, entry.key);
            let result = self.plugin.process(Record::new(entry, meta, index), &mut out);
            let finished = out.finish(result);
            outcome.processed += 1;
            outcome.rejected += u32::from(finished.rejected);
            last_said = finished.said;
            self.buffers.flush_if_full(host);
        }
        if let Some(last) = view.count().checked_sub(1) {
            self.plugin.batch_end(&mut Out::of_end(&mut self.buffers, last, last_said))?;
        }
        self.buffers.flush(host);
        // Decided while compiling: a plugin without metrics must not import what its manifest does not grant.
        if const { !P::METRICS.is_empty() } {
            self.buffers.flush_counts(host);
        }
        Ok(outcome)
    }
}

#[cold]
fn unreadable(error: weir_plugin_abi::BatchError) -> BatchError {
    BatchError::Fatal(error.to_string())
}
