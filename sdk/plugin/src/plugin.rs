//! The trait every plugin is.
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::{BatchError, InitError, Out, Outputs, Record, Result};

/// A plugin: made once for each partition's worker by [`Plugin::init`], then asked about every record.
///
/// An instance lives long, but not for ever: after a trap, a limit or a replaced pipeline a new one starts with empty
/// state. A batch whose commit failed is sent again by its producer and passes here again: whatever a plugin remembers
/// must not turn the second pass into a loss.
pub trait Plugin: Sized + 'static {
    /// The configuration, given as JSON where the plugin is attached; the default where none is given.
    type Config: DeserializeOwned + Default;

    /// Names of the outputs, as in the manifest's `[io] outputs`.
    const OUTPUTS: &'static [&'static str] = &[];

    /// Names of the counters, in the order of the manifest's `[grants] metrics`.
    const METRICS: &'static [&'static str] = &[];

    /// Makes an instance.
    ///
    /// # Errors
    /// [`InitError`] refuses the attachment; its text is what the operator reads.
    fn init(config: Self::Config, outputs: &Outputs<'_>) -> std::result::Result<Self, InitError>;

    /// Decides about one record. Saying nothing keeps it.
    ///
    /// # Errors
    /// An error rejects the record, and whatever was said about it on `out` is forgotten.
    fn process(&mut self, record: Record<'_>, out: &mut Out<'_>) -> Result;

    /// After the last record of a batch; may [`Out::emit`], as if beside the last record.
    ///
    /// # Errors
    /// An error fails the whole batch: nothing of it is committed.
    fn batch_end(&mut self, out: &mut Out<'_>) -> std::result::Result<(), BatchError> {
        let _ = out;
        Ok(())
    }
}

/// The configuration of a plugin that has none: any key is refused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoConfig {}

/// Reads a configuration; nothing, or JSON `null`, is the default.
pub(crate) fn parse_config<C: DeserializeOwned + Default>(json: &[u8]) -> std::result::Result<C, InitError> {
    let json = json.trim_ascii();
    if json.is_empty() || json == b"null" {
        return Ok(C::default());
    }
    let mut source = serde_json::Deserializer::from_slice(json);
    let config = serde_path_to_error::deserialize(&mut source).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        if path == "." { InitError::Config(inner.to_string()) } else { InitError::config(&path, inner) }
    })?;
    source.end().map_err(|error| InitError::Config(error.to_string()))?;
    Ok(config)
}

/// A literal output name that is not declared does not compile:
///
/// ```compile_fail
/// use weir_plugin::prelude::*;
/// #[weir_plugin::plugin(outputs = ["alerts"])]
/// fn misspelt(record: Record<'_>, out: &mut Out<'_>) -> Result {
///     out.emit("alert", record.key(), "x")
/// }
/// ```
///
/// ```
/// use weir_plugin::prelude::*;
/// #[weir_plugin::plugin(outputs = ["alerts"])]
/// fn well_spelt(record: Record<'_>, out: &mut Out<'_>) -> Result {
///     out.emit("alerts", record.key(), "x")
/// }
/// ```
#[cfg(doctest)]
struct LiteralNames;
