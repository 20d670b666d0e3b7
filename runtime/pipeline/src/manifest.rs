//! `weir-plugin.toml`: what a plugin is called, which outputs it has, what it may use. Packed into the component.
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;

use crate::limits::{HostConfig, METRICS_MAX, OUTPUTS_MAX};
use crate::suggest::{did_you_mean, unknown_key};

/// Manifests are small; a larger one is a mistake.
const MANIFEST_BYTES_MAX: usize = 64 << 10;
const NAME_BYTES_MAX: usize = 64;
const OUTPUT_RATIO_DEFAULT: f64 = 4.0;
const OUTPUT_RATIO_MAX: f64 = 64.0;
const LOG_LINES_PER_SECOND_DEFAULT: u32 = 100;
const LOG_LINES_PER_SECOND_MAX: u32 = 10_000;

/// What is wrong with a manifest: the plugin author's turn.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// The component carries none.
    #[error("the component has no manifest; pack it with `weir plugin build`, which takes it from weir-plugin.toml")]
    Missing,
    /// It carries several.
    #[error("the component has {count} manifests; pack it again from its core module")]
    Several {
        /// How many.
        count: usize,
    },
    /// Not TOML, or not text.
    #[error("weir-plugin.toml cannot be read: {reason}")]
    Syntax {
        /// Where and what.
        reason: String,
    },
    /// A key or value that does not belong there.
    #[error("weir-plugin.toml: {reason}")]
    Invalid {
        /// Which, and what to do.
        reason: String,
    },
}

fn invalid(reason: impl Into<String>) -> ManifestError {
    ManifestError::Invalid { reason: reason.into() }
}

/// Levels of a plugin's log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// For whoever debugs the plugin.
    Debug,
    /// For the operator.
    Info,
    /// Something to look at.
    Warn,
    /// Something is broken.
    Error,
}

/// Permission to write log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogGrant {
    /// Lines below this level are dropped.
    pub level: LogLevel,
    /// Lines a second and instance; more are counted and dropped.
    pub lines_per_second: u32,
}

/// A checked manifest.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Manifest {
    /// Lower-case name.
    pub name: Arc<str>,
    /// `major.minor.patch`.
    pub version: Arc<str>,
    /// One line for people.
    pub description: Option<String>,
    /// Names of the outputs beside the stream; verdicts number them from 1.
    pub outputs: Vec<String>,
    /// Memory asked for, in bytes.
    pub memory_bytes: Option<usize>,
    /// Time for one batch asked for.
    pub batch_time: Option<Duration>,
    /// Bytes emitted for each byte of input.
    pub output_ratio: f64,
    /// May write log lines.
    pub log: Option<LogGrant>,
    /// Names of counters; the `metric` import numbers them from 0.
    pub metrics: Vec<String>,
}

impl Manifest {
    /// Reads and checks the text of a manifest.
    ///
    /// # Errors
    /// [`ManifestError`] names the key and what to write instead.
    pub fn parse(text: &str) -> Result<Self, ManifestError> {
        if text.len() > MANIFEST_BYTES_MAX {
            return Err(invalid(format!("it has {} bytes, the limit is {MANIFEST_BYTES_MAX}; shorten it", text.len())));
        }
        let syntax = |e: toml::de::Error| ManifestError::Syntax { reason: e.to_string().trim_end().to_owned() };
        let table: toml::Table = toml::from_str(text).map_err(syntax)?;
        let value = serde_json::to_value(&table).map_err(|e| invalid(e.to_string()))?;
        check_keys(&value)?;
        let raw: Raw = toml::from_str(text).map_err(syntax)?;
        raw.check()
    }

    /// The same of bytes that should be UTF-8.
    pub(crate) fn parse_bytes(bytes: &[u8]) -> Result<Self, ManifestError> {
        let text = std::str::from_utf8(bytes).map_err(|_| ManifestError::Syntax { reason: "it is not UTF-8".to_owned() })?;
        Self::parse(text)
    }

    /// What the plugin gets on a host: what it asks for, capped.
    pub(crate) fn effective(&self, host: &HostConfig) -> Effective {
        let memory_bytes = self.memory_bytes.unwrap_or(host.memory_bytes_default).min(host.memory_bytes_max);
        let batch_time = self.batch_time.unwrap_or(host.batch_time_default).min(host.batch_time_max);
        Effective { memory_bytes, batch_time, output_ratio: self.output_ratio }
    }
}

/// Limits in force for a plugin.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Effective {
    pub(crate) memory_bytes: usize,
    pub(crate) batch_time: Duration,
    pub(crate) output_ratio: f64,
}

/// Unknown keys are errors with a suggestion; keys of later versions say so.
fn check_keys(value: &Value) -> Result<(), ManifestError> {
    if value.get("decode").is_some() {
        return Err(invalid(
            "[decode]: declared fields are not offered by this version of Weir; remove the table and parse the value in the plugin",
        ));
    }
    let tables: [(&str, &[&str]); 5] = [
        ("", &["plugin", "io", "limits", "grants"]),
        ("plugin", &["name", "version", "description"]),
        ("io", &["outputs"]),
        ("limits", &["memory_mib", "batch_ms", "max_output_ratio"]),
        ("grants", &["state", "timer", "log", "metrics"]),
    ];
    for (place, known) in tables {
        let table = if place.is_empty() { Some(value) } else { value.get(place) };
        if let Some(message) = table.and_then(|table| unknown_key(table, place, known)) {
            return Err(invalid(message));
        }
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    plugin: RawPlugin,
    #[serde(default)]
    io: RawIo,
    #[serde(default)]
    limits: RawLimits,
    #[serde(default)]
    grants: RawGrants,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPlugin {
    name: String,
    version: String,
    description: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawIo {
    outputs: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawLimits {
    memory_mib: Option<u32>,
    batch_ms: Option<u32>,
    max_output_ratio: Option<f64>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawGrants {
    state: Option<toml::Value>,
    timer: Option<bool>,
    log: Option<String>,
    metrics: Vec<String>,
}

impl Raw {
    fn check(self) -> Result<Manifest, ManifestError> {
        let Self { plugin, io, limits, grants } = self;
        check_name("plugin.name", &plugin.name)?;
        check_version(&plugin.version)?;
        check_names("io.outputs", &io.outputs, OUTPUTS_MAX)?;
        check_names("grants.metrics", &grants.metrics, METRICS_MAX)?;
        let stateful = matches!(&grants.state, Some(state) if state.as_bool() != Some(false));
        if stateful || grants.timer == Some(true) {
            return Err(invalid(
                "grants.state and grants.timer belong to stateful plugins, which this version of Weir does not offer; remove them",
            ));
        }
        let memory_bytes = at_least_one("limits.memory_mib", limits.memory_mib)?.map(|mib| (mib as usize) << 20);
        let batch_ms = at_least_one("limits.batch_ms", limits.batch_ms)?;
        let output_ratio = limits.max_output_ratio.unwrap_or(OUTPUT_RATIO_DEFAULT);
        if !(output_ratio > 0.0 && output_ratio <= OUTPUT_RATIO_MAX) {
            return Err(invalid(format!(
                "limits.max_output_ratio = {output_ratio} must lie above 0 and up to {OUTPUT_RATIO_MAX}"
            )));
        }
        Ok(Manifest {
            name: plugin.name.into(),
            version: plugin.version.into(),
            description: plugin.description,
            outputs: io.outputs,
            memory_bytes,
            batch_time: batch_ms.map(|ms| Duration::from_millis(u64::from(ms))),
            output_ratio,
            log: grants.log.as_deref().map(parse_log).transpose()?,
            metrics: grants.metrics,
        })
    }
}

fn at_least_one(key: &str, value: Option<u32>) -> Result<Option<u32>, ManifestError> {
    match value {
        Some(0) => Err(invalid(format!("{key} = 0 leaves the plugin nothing; give at least 1 or remove the key"))),
        other => Ok(other),
    }
}

fn check_name(key: &str, name: &str) -> Result<(), ManifestError> {
    let fits = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'-' | b'_' | b'.');
    let starts = name.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
    if !starts || name.len() > NAME_BYTES_MAX || !name.bytes().all(fits) {
        return Err(invalid(format!(
            "{key}: \"{name}\" must be 1 to {NAME_BYTES_MAX} of a-z, 0-9, '-', '_', '.', starting with a letter or digit"
        )));
    }
    Ok(())
}

fn check_names(key: &str, names: &[String], max: usize) -> Result<(), ManifestError> {
    if names.len() > max {
        return Err(invalid(format!("{key} has {} names, the limit is {max}", names.len())));
    }
    for (at, name) in names.iter().enumerate() {
        check_name(key, name)?;
        if names[..at].contains(name) {
            return Err(invalid(format!("{key} names \"{name}\" twice; remove one")));
        }
    }
    Ok(())
}

/// `major.minor.patch`, numbers, with an optional `-suffix`.
fn check_version(version: &str) -> Result<(), ManifestError> {
    let (numbers, suffix) = version.split_once('-').map_or((version, None), |(n, s)| (n, Some(s)));
    let parts: Vec<&str> = numbers.split('.').collect();
    let number = |part: &&str| !part.is_empty() && part.len() <= 9 && part.bytes().all(|c| c.is_ascii_digit());
    let suffix_fits =
        |s: &str| !s.is_empty() && s.len() <= 32 && s.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-'));
    if parts.len() != 3 || !parts.iter().all(number) || !suffix.is_none_or(suffix_fits) {
        return Err(invalid(format!("plugin.version: \"{version}\" must look like \"1.2.0\" or \"1.2.0-rc.1\"")));
    }
    Ok(())
}

/// `info` or `info:100/s`.
fn parse_log(grant: &str) -> Result<LogGrant, ManifestError> {
    let (level, rate) = grant.split_once(':').map_or((grant, None), |(l, r)| (l, Some(r)));
    let level = match level {
        "debug" => LogLevel::Debug,
        "info" => LogLevel::Info,
        "warn" => LogLevel::Warn,
        "error" => LogLevel::Error,
        other => {
            let hint = did_you_mean(other, ["debug", "info", "warn", "error"]);
            return Err(invalid(format!("grants.log: there is no level \"{other}\": {hint}")));
        }
    };
    let lines_per_second = match rate {
        None => LOG_LINES_PER_SECOND_DEFAULT,
        Some(rate) => rate
            .strip_suffix("/s")
            .and_then(|lines| lines.parse().ok())
            .filter(|lines| (1..=LOG_LINES_PER_SECOND_MAX).contains(lines))
            .ok_or_else(|| {
                invalid(format!(
                    "grants.log: \"{grant}\" must look like \"info:100/s\", with 1 to {LOG_LINES_PER_SECOND_MAX} lines a second"
                ))
            })?,
    };
    Ok(LogGrant { level, lines_per_second })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: &str = r#"
        [plugin]
        name = "low-pressure"
        version = "1.2.0"
        description = "Warns of flat tyres"
        [io]
        outputs = ["normal", "alerts"]
        [limits]
        memory_mib = 16
        batch_ms = 20
        max_output_ratio = 2.0
        [grants]
        timer = false
        log = "info:100/s"
        metrics = ["alerts"]
    "#;

    #[test]
    fn a_full_manifest_reads() {
        let manifest = Manifest::parse(FULL).unwrap();
        assert_eq!((&*manifest.name, &*manifest.version), ("low-pressure", "1.2.0"));
        assert_eq!(manifest.outputs, ["normal", "alerts"]);
        assert_eq!(manifest.memory_bytes, Some(16 << 20));
        assert_eq!(manifest.batch_time, Some(Duration::from_millis(20)));
        assert_eq!(manifest.log, Some(LogGrant { level: LogLevel::Info, lines_per_second: 100 }));
        assert_eq!(manifest.metrics, ["alerts"]);
    }

    #[test]
    fn two_lines_are_enough_and_grant_nothing() {
        let manifest = Manifest::parse("[plugin]\nname = \"a\"\nversion = \"0.1.0\"").unwrap();
        assert_eq!((manifest.log, manifest.metrics.len(), manifest.outputs.len()), (None, 0, 0));
    }

    #[test]
    fn what_a_plugin_asks_for_is_capped_by_the_host() {
        let host = HostConfig { memory_bytes_max: 8 << 20, batch_time_max: Duration::from_millis(5), ..HostConfig::default() };
        let effective = Manifest::parse(FULL).unwrap().effective(&host);
        assert_eq!(effective.memory_bytes, 8 << 20);
        assert_eq!(effective.batch_time, Duration::from_millis(5));
    }

    #[test]
    fn each_mistake_is_named_with_what_to_write() {
        let table = [
            ("memory_mib = 16", "memory_mb = 16", "unknown key `limits.memory_mb`: did you mean `memory_mib`?"),
            ("[limits]", "[limit]", "unknown key `limit`: did you mean `limits`?"),
            ("batch_ms = 20", "batch_ms = 0", "limits.batch_ms = 0"),
            ("batch_ms = 20", "batch_ms = \"20\"", "invalid type"),
            ("1.2.0", "1.2", "must look like \"1.2.0\""),
            ("low-pressure", "Low Pressure", "plugin.name: \"Low Pressure\" must be"),
            ("\"normal\", \"alerts\"", "\"alerts\", \"alerts\"", "names \"alerts\" twice"),
            ("info:100/s", "inof:100/s", "did you mean `info`?"),
            ("info:100/s", "info:100", "must look like \"info:100/s\""),
            ("max_output_ratio = 2.0", "max_output_ratio = 0.0", "max_output_ratio = 0"),
            ("timer = false", "timer = true", "stateful plugins"),
            ("timer = false", "state = \"16MiB\"", "stateful plugins"),
            ("[grants]", "[decode]\nformat = \"json\"\n[grants]", "declared fields are not offered"),
            ("name = \"low-pressure\"", "", "missing field `name`"),
            ("[io]", "[io", "weir-plugin.toml cannot be read"),
        ];
        for (from, to, expected) in table {
            let error = Manifest::parse(&FULL.replacen(from, to, 1)).unwrap_err().to_string();
            assert!(error.contains(expected), "{to}: {error}");
        }
    }
}
