//! Merging defaults, file, environment and `--set` into one [`Config`].
//!
//! Each layer is flattened to `section.key` settings that remember where they came from. A setting is checked against the
//! default of the same name (does the key exist, is the type right, does the unit read) before it replaces it, so an error
//! names the file and line, the variable or the flag that is to blame.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IntoDeserializer;
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use super::lists;
use super::units::{Unit, parse_bytes, parse_duration_ms};
use super::{Config, DEFAULT_TOML};

/// Where settings come from, weakest first.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The operator's file.
    pub file: Option<PathBuf>,
    /// Variables of the environment; only `WEIR_SECTION__KEY` ones count.
    pub environment: Vec<(String, String)>,
    /// `section.key=value`, as given to `--set`.
    pub overrides: Vec<String>,
    /// Memory that the system gives this process; it counts where `node.memory_bytes_max` is 0.
    pub memory_allowed: Option<u64>,
}

impl Sources {
    /// A file (or none) with the process's environment and its control groups' memory.
    pub fn from_process(file: Option<PathBuf>, overrides: Vec<String>) -> Sources {
        let environment =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))).collect();
        Sources { file, environment, overrides, memory_allowed: super::memory::of_cgroups() }
    }
}

/// Where one setting was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The built-in defaults.
    Default,
    /// A file and a line in it, from 1.
    File {
        /// As given by the operator.
        path: PathBuf,
        /// From 1.
        line: usize,
    },
    /// A variable.
    Environment(String),
    /// `--set`, as given.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("built-in defaults"),
            Origin::File { path, line } => write!(f, "{} line {line}", path.display()),
            Origin::Environment(name) => write!(f, "environment variable {name}"),
            Origin::Flag(text) => write!(f, "--set {text}"),
        }
    }
}

/// Why the configuration cannot be used. Always the operator's turn.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file is missing or unreadable.
    #[error("cannot read {}: {source}; check --config, or leave it out to run with the defaults", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not TOML.
    #[error("{origin}: not valid TOML: {message}")]
    Syntax {
        /// File and line.
        origin: Origin,
        /// The parser's words.
        message: String,
    },
    /// No such key or section.
    #[error("{origin}: unknown {what} `{key}`{hint}; `weir serve --print-config` lists every key")]
    Unknown {
        /// Where it was written.
        origin: Origin,
        /// "key" or "section".
        what: &'static str,
        /// As written.
        key: String,
        /// `, did you mean …?` or nothing.
        hint: String,
    },
    /// The key exists, the value does not fit it.
    #[error("{origin}: {key} must be {wanted}, not {found}")]
    Value {
        /// Where it was written.
        origin: Origin,
        /// `section.key`
        key: String,
        /// What would be right.
        wanted: String,
        /// What was written.
        found: String,
    },
    /// `--set` without `=` or without a section.
    #[error("--set {text}: write it as section.key=value, for example --set log.segment_bytes=16MiB")]
    Override {
        /// As given.
        text: String,
    },
    /// Two values contradict each other.
    #[error("{left} ({left_value}) {rule} {right} ({right_value}): change one of the two")]
    Relation {
        /// `section.key`
        left: &'static str,
        /// Its value.
        left_value: u64,
        /// "must not exceed" and the like.
        rule: &'static str,
        /// `section.key`
        right: &'static str,
        /// Its value.
        right_value: u64,
    },
}

/// One `section.key = value`.
struct Setting {
    section: String,
    key: String,
    value: Value,
    origin: Origin,
}

/// Where every value of a merged configuration was written.
#[derive(Debug, Default)]
pub(super) struct Origins(BTreeMap<(String, String), Origin>);

impl Origins {
    /// Where a `section.key` was set.
    pub(super) fn of(&self, key: &str) -> &Origin {
        let name = key.split_once('.').map(|(section, key)| (section.to_owned(), key.to_owned()));
        name.and_then(|name| self.0.get(&name)).unwrap_or(&Origin::Default)
    }

    /// The error for a `section.key` whose value cannot be used.
    pub(super) fn wrong(&self, key: &str, wanted: String, found: String) -> ConfigError {
        ConfigError::Value { origin: self.of(key).clone(), key: key.to_owned(), wanted, found }
    }
}

/// Values by section and key, with where each came from.
struct Merged {
    values: BTreeMap<(String, String), (Value, Origin)>,
    /// Of each section that is a list: its items.
    lists: BTreeMap<&'static str, Vec<(Value, Origin)>>,
}

/// All layers into one configuration whose values fit their keys.
pub(super) fn merge(sources: &Sources) -> Result<(Config, Origins), ConfigError> {
    let mut merged = defaults()?;
    if let Some(path) = &sources.file {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable { path: path.clone(), source })?;
        apply_file(&mut merged, path, &text)?;
    }
    for (name, value) in &sources.environment {
        if let Some(setting) = environment_setting(&merged, name, value)? {
            merged.apply(setting)?;
        }
    }
    for text in &sources.overrides {
        merged.apply(override_setting(text)?)?;
    }
    merged.finish()
}

fn defaults() -> Result<Merged, ConfigError> {
    let table: Table = DEFAULT_TOML
        .parse()
        .map_err(|error: toml::de::Error| ConfigError::Syntax { origin: Origin::Default, message: error.message().to_owned() })?;
    let mut merged = Merged { values: BTreeMap::new(), lists: lists::SECTIONS.map(|section| (section, Vec::new())).into() };
    for (section, value) in table {
        match value {
            Value::Table(keys) => {
                for (key, value) in keys {
                    let value = with_unit(&section, &key, value, &Origin::Default)?;
                    merged.values.insert((section.clone(), key), (value, Origin::Default));
                }
            }
            Value::Array(items) => {
                if let Some(list) = merged.lists.get_mut(section.as_str()) {
                    *list = items.into_iter().map(|item| (item, Origin::Default)).collect();
                }
            }
            _ => {}
        }
    }
    Ok(merged)
}

/// The operator's file: every key of every section, with its line.
fn apply_file(merged: &mut Merged, path: &Path, text: &str) -> Result<(), ConfigError> {
    let at = |span: Range<usize>| Origin::File { path: path.to_owned(), line: line_of(text, span.start) };
    let document = DeTable::parse(text)
        .map_err(|error| ConfigError::Syntax { origin: at(error.span().unwrap_or(0..0)), message: error.message().to_owned() })?;
    let directory = path.parent().unwrap_or(Path::new(""));
    for (section, value) in document.get_ref() {
        let name = section.get_ref().as_ref();
        match value.get_ref() {
            DeValue::Array(items) if merged.lists.contains_key(name) => {
                let item = |item: &toml::Spanned<DeValue<'_>>| {
                    let origin = at(item.span());
                    Ok((lists::beside(directory, name, owned(item.get_ref(), &origin)?), origin))
                };
                let items = items.iter().map(item).collect::<Result<_, _>>()?;
                *merged.lists.get_mut(name).expect("it was there") = items;
            }
            DeValue::Table(keys) if !merged.lists.contains_key(name) => {
                for (key, value) in keys {
                    let origin = at(key.span());
                    let mut value = owned(value.get_ref(), &origin)?;
                    if is_path(name, key.get_ref()) {
                        value = beside(directory, value);
                    }
                    let key = key.get_ref().as_ref().to_owned();
                    merged.apply(Setting { section: name.to_owned(), key, value, origin })?;
                }
                merged.known_section(name, &at(section.span()))?;
            }
            other => {
                merged.known_section(name, &at(section.span()))?;
                let is_list = merged.lists.contains_key(name);
                return Err(ConfigError::Value {
                    origin: at(section.span()),
                    key: name.to_owned(),
                    wanted: if is_list { format!("a list written as [[{name}]]") } else { "a section".to_owned() },
                    found: other.type_str().to_owned(),
                });
            }
        }
    }
    Ok(())
}

/// `WEIR_LOG__SEGMENT_BYTES`. The double underscore keeps service managers' own variables (`WEIR_HTTP_PORT` of a
/// Kubernetes service named weir-http) from being taken for settings.
fn environment_setting(merged: &Merged, name: &str, value: &str) -> Result<Option<Setting>, ConfigError> {
    let Some((section, key)) = name.strip_prefix("WEIR_").and_then(|rest| rest.split_once("__")) else {
        return Ok(None);
    };
    let origin = Origin::Environment(name.to_owned());
    let section = section.to_ascii_lowercase();
    merged.known_section(&section, &origin)?;
    let key = key.to_ascii_lowercase();
    Ok(Some(Setting { section, key, value: Value::String(value.to_owned()), origin }))
}

fn override_setting(text: &str) -> Result<Setting, ConfigError> {
    let wrong = || ConfigError::Override { text: text.to_owned() };
    let (name, value) = text.split_once('=').ok_or_else(wrong)?;
    let (section, key) = name.split_once('.').ok_or_else(wrong)?;
    Ok(Setting {
        section: section.trim().to_owned(),
        key: key.trim().to_owned(),
        value: Value::String(value.trim().to_owned()),
        origin: Origin::Flag(text.to_owned()),
    })
}

impl Merged {
    fn sections(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.values.keys().map(|(section, _)| section.as_str()).collect();
        names.dedup();
        names.extend(self.lists.keys());
        names
    }

    fn known_section(&self, section: &str, origin: &Origin) -> Result<(), ConfigError> {
        let sections = self.sections();
        if sections.contains(&section) {
            return Ok(());
        }
        Err(unknown(origin, "section", section, sections.into_iter()))
    }

    /// Replaces the default of the same name, if the value fits it.
    fn apply(&mut self, setting: Setting) -> Result<(), ConfigError> {
        let Setting { section, key, value, origin } = setting;
        self.known_section(&section, &origin)?;
        if self.lists.contains_key(section.as_str()) {
            let wanted = format!("a list in the configuration file, written as [[{section}]]");
            return Err(ConfigError::Value { origin, key: section, wanted, found: "a single value".to_owned() });
        }
        let name = (section, key);
        let Some((default, _)) = self.values.get(&name) else {
            let keys = self.values.keys().filter(|(s, _)| *s == name.0).map(|(_, key)| key.as_str());
            return Err(unknown(&origin, "key", &format!("{}.{}", name.0, name.1), keys));
        };
        let value = fit(&name.0, &name.1, default, value, &origin)?;
        self.values.insert(name, (value, origin));
        Ok(())
    }

    /// Section by section into the typed configuration; what still fails (an enum's word, a number too large for its
    /// field) is reported with the origin of the setting at fault.
    fn finish(self) -> Result<(Config, Origins), ConfigError> {
        let mut root = Table::new();
        for ((section, key), (value, _)) in &self.values {
            let keys = root.entry(section.clone()).or_insert_with(|| Value::Table(Table::new()));
            keys.as_table_mut().expect("sections are tables").insert(key.clone(), value.clone());
        }
        for (section, items) in &self.lists {
            lists::check(section, items)?;
            let items = items.iter().map(|(item, _)| item.clone()).collect();
            root.insert((*section).to_owned(), Value::Array(items));
        }
        match Config::deserialize(Value::Table(root.clone()).into_deserializer()) {
            Ok(config) => {
                let origins = self.values.into_iter().map(|(name, (_, origin))| (name, origin)).collect();
                Ok((config, Origins(origins)))
            }
            Err(error) => {
                let error: toml::de::Error = error;
                Err(self.blame(&root, error.message()))
            }
        }
    }

    /// Finds the one setting that keeps the typed configuration from being made: the one whose default would do.
    fn blame(&self, root: &Table, message: &str) -> ConfigError {
        // "unknown variant `x`, expected one of …", "invalid value: …, expected u16"
        let wanted = match message.split_once("expected ") {
            Some((_, wanted)) if wanted.starts_with(['u', 'i']) => format!("a number that fits {wanted}"),
            Some((_, wanted)) => wanted.to_owned(),
            None => format!("valid ({message})"),
        };
        let defaults = defaults().map(|merged| merged.values).unwrap_or_default();
        for (name, (value, origin)) in &self.values {
            let mut trial = root.clone();
            let Some((default, _)) = defaults.get(name) else { continue };
            if let Some(keys) = trial.get_mut(&name.0).and_then(Value::as_table_mut) {
                keys.insert(name.1.clone(), default.clone());
            }
            let only_this = trial != *root && Config::deserialize(Value::Table(trial).into_deserializer()).is_ok();
            if only_this {
                return ConfigError::Value {
                    origin: origin.clone(),
                    key: format!("{}.{}", name.0, name.1),
                    wanted,
                    found: value.to_string(),
                };
            }
        }
        ConfigError::Syntax { origin: Origin::Default, message: message.to_owned() }
    }
}

/// A value as the default's type, units undone.
fn fit(section: &str, key: &str, default: &Value, value: Value, origin: &Origin) -> Result<Value, ConfigError> {
    let value = with_unit(section, key, value, origin)?;
    let text = value.as_str().map(str::trim);
    let fitted = match (default, &value, text) {
        (Value::Integer(_), Value::Integer(number), _) if *number >= 0 => Some(value.clone()),
        (Value::Integer(_), _, Some(text)) => text.parse().ok().map(|n: u32| Value::Integer(n.into())),
        (Value::Boolean(_), Value::Boolean(_), _) | (Value::String(_), Value::String(_), _) => Some(value.clone()),
        (Value::Boolean(_), _, Some(text)) => match text {
            "true" | "1" | "yes" | "on" => Some(Value::Boolean(true)),
            "false" | "0" | "no" | "off" => Some(Value::Boolean(false)),
            _ => None,
        },
        _ => None,
    };
    fitted.ok_or_else(|| ConfigError::Value {
        origin: origin.clone(),
        key: format!("{section}.{key}"),
        wanted: wanted(default).to_owned(),
        found: value.to_string(),
    })
}

/// Sizes and times written with a unit become numbers.
fn with_unit(section: &str, key: &str, value: Value, origin: &Origin) -> Result<Value, ConfigError> {
    let Value::String(text) = &value else { return Ok(value) };
    let (parsed, wanted) = match Unit::of_key(key) {
        Unit::None => return Ok(value),
        Unit::Bytes => (parse_bytes(text), "a size such as 65536, \"64KiB\" or \"1GiB\""),
        Unit::Milliseconds => (parse_duration_ms(text), "a time such as 250, \"250ms\", \"90s\" or \"7d\""),
    };
    match parsed.and_then(|number| i64::try_from(number).ok()) {
        Some(number) => Ok(Value::Integer(number)),
        None => Err(ConfigError::Value {
            origin: origin.clone(),
            key: format!("{section}.{key}"),
            wanted: wanted.to_owned(),
            found: format!("{text:?}"),
        }),
    }
}

pub(super) fn unknown<'a>(origin: &Origin, what: &'static str, key: &str, known: impl Iterator<Item = &'a str>) -> ConfigError {
    let written = key.rsplit('.').next().unwrap_or(key);
    let prefix = &key[..key.len() - written.len()];
    let best = known
        .map(|name| (strsim::jaro_winkler(written, name), name))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(likeness, _)| *likeness > 0.75);
    let hint = best.map(|(_, name)| format!(", did you mean `{prefix}{name}`?")).unwrap_or_default();
    ConfigError::Unknown { origin: origin.clone(), what, key: key.to_owned(), hint }
}

fn wanted(default: &Value) -> &'static str {
    match default {
        Value::Integer(_) => "a whole number that is not negative",
        Value::Boolean(_) => "true or false",
        Value::String(_) => "a string in quotes",
        _ => "of another type",
    }
}

fn is_path(section: &str, key: &str) -> bool {
    matches!((section, key), ("node", "data_dir") | ("backup", "dir") | ("quic", "cert" | "key" | "client_ca"))
}

pub(super) fn beside(directory: &Path, value: Value) -> Value {
    match value {
        Value::String(path) if !path.is_empty() => match directory.join(&path).into_os_string().into_string() {
            Ok(joined) => Value::String(joined),
            Err(_) => Value::String(path),
        },
        other => other,
    }
}

/// A parsed value of the file without its spans.
fn owned(value: &DeValue<'_>, origin: &Origin) -> Result<Value, ConfigError> {
    let wrong = |message: String| ConfigError::Syntax { origin: origin.clone(), message };
    Ok(match value {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Boolean(flag) => Value::Boolean(*flag),
        DeValue::Integer(number) => Value::Integer(
            i64::from_str_radix(number.as_str(), number.radix())
                .map_err(|_| wrong(format!("the number {number} is too large")))?,
        ),
        DeValue::Float(number) => {
            Value::Float(number.as_str().parse().map_err(|_| wrong(format!("{} is not a number", number.as_str())))?)
        }
        DeValue::Datetime(time) => Value::Datetime(*time),
        DeValue::Array(items) => {
            let items = items.iter().map(|item| owned(item.get_ref(), origin));
            Value::Array(items.collect::<Result<_, _>>()?)
        }
        DeValue::Table(keys) => {
            let mut table = Table::new();
            for (key, value) in keys {
                table.insert(key.get_ref().to_string(), owned(value.get_ref(), origin)?);
            }
            Value::Table(table)
        }
    })
}

fn line_of(text: &str, at: usize) -> usize {
    1 + text.as_bytes()[..at.min(text.len())].iter().filter(|&&byte| byte == b'\n').count()
}
