//! The JSON an operator attaches to a topic; `docs/PIPELINES.md` describes it.
use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

use crate::host::Plugin;
use crate::limits::STAGES_MAX;
use crate::pipeline::{FailurePolicy, Stage};
use crate::suggest::{did_you_mean, unknown_key};

/// A pipeline document is at most this large.
const SPEC_BYTES_MAX: usize = 1 << 20;

/// What is wrong with a pipeline document: the operator's turn.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SpecError {
    /// Not JSON.
    #[error("the pipeline is not valid JSON: {reason}")]
    Syntax {
        /// Where and what.
        reason: String,
    },
    /// A key or value that does not belong there.
    #[error("pipeline: {reason}")]
    Invalid {
        /// Which, and what to do.
        reason: String,
    },
    /// No such plugin.
    #[error("stages[{stage}]: there is no plugin `{plugin}`{wanted}; {hint}")]
    UnknownPlugin {
        /// The stage.
        stage: usize,
        /// The name given.
        plugin: String,
        /// The version given, as ` in version X`, or nothing.
        wanted: String,
        /// What there is.
        hint: String,
    },
}

/// What becomes of a record that a plugin fails on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// Refuse the batch.
    #[default]
    Fail,
    /// Let the record pass as it is.
    Pass,
    /// Drop the record.
    Drop,
    /// Send the record to `dead_letter_topic`.
    DeadLetter,
}

const ON_FAILURE: [&str; 4] = ["fail", "pass", "drop", "dead-letter"];
const STAGE_KEYS: [&str; 6] = ["plugin", "version", "config", "outputs", "on_failure", "dead_letter_topic"];

/// The plugins of a topic, in order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PipelineSpec {
    /// One entry a plugin.
    pub stages: Vec<StageSpec>,
}

/// One plugin and how it is used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageSpec {
    /// The plugin's name.
    pub plugin: String,
    /// Its version; the latest if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// What the plugin's `init` is given; `{}` if absent.
    #[serde(default = "empty_object")]
    pub config: Value,
    /// Topic of each named output.
    #[serde(default)]
    pub outputs: BTreeMap<String, String>,
    /// What becomes of records it fails on.
    #[serde(default)]
    pub on_failure: OnFailure,
    /// Where dead letters go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_letter_topic: Option<String>,
}

fn empty_object() -> Value {
    Value::Object(serde_json::Map::new())
}

impl PipelineSpec {
    /// Reads and checks a document.
    ///
    /// # Errors
    /// [`SpecError`] names the key and what to write instead.
    pub fn parse(json: &[u8]) -> Result<Self, SpecError> {
        if json.len() > SPEC_BYTES_MAX {
            return Err(invalid(format!("it has {} bytes, the limit is {SPEC_BYTES_MAX}", json.len())));
        }
        let value: Value = serde_json::from_slice(json).map_err(|e| SpecError::Syntax { reason: e.to_string() })?;
        check_shape(&value)?;
        let spec: Self = serde_json::from_value(value).map_err(|e| invalid(e.to_string()))?;
        spec.check()?;
        Ok(spec)
    }

    /// The document as JSON, to be stored.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("maps with string keys always serialise")
    }

    /// Every topic its records may go to.
    pub fn topics(&self) -> impl Iterator<Item = &str> {
        self.stages.iter().flat_map(|stage| stage.outputs.values().chain(&stage.dead_letter_topic)).map(String::as_str)
    }

    /// Finds the plugins. `find` is given name and version (`None` stands for the latest); `names` lists what there is, for
    /// a suggestion.
    ///
    /// # Errors
    /// [`SpecError::UnknownPlugin`].
    pub fn resolve(
        &self,
        names: &[&str],
        mut find: impl FnMut(&str, Option<&str>) -> Option<Arc<Plugin>>,
    ) -> Result<Vec<Stage>, SpecError> {
        let stage_of = |(stage, spec): (usize, &StageSpec)| {
            let plugin = find(&spec.plugin, spec.version.as_deref()).ok_or_else(|| {
                let known = names.contains(&spec.plugin.as_str());
                SpecError::UnknownPlugin {
                    stage,
                    plugin: spec.plugin.clone(),
                    wanted: spec.version.as_ref().map(|v| format!(" in version {v}")).unwrap_or_default(),
                    hint: match known {
                        true => "see `weir plugin list` for its versions".to_owned(),
                        false => did_you_mean(&spec.plugin, names.iter().copied()),
                    },
                }
            })?;
            let config = serde_json::to_vec(&spec.config).map_err(|e| invalid(e.to_string()))?;
            Ok(Stage { plugin, config, outputs: spec.outputs.clone(), on_failure: spec.policy() })
        };
        self.stages.iter().enumerate().map(stage_of).collect()
    }

    fn check(&self) -> Result<(), SpecError> {
        if self.stages.is_empty() || self.stages.len() > STAGES_MAX {
            return Err(invalid(format!("it has {} stages; give 1 to {STAGES_MAX}", self.stages.len())));
        }
        for (at, stage) in self.stages.iter().enumerate() {
            let wrong = |reason: &str| Err(invalid(format!("stages[{at}] ({}): {reason}", stage.plugin)));
            let dead_letter = stage.dead_letter_topic.as_deref();
            match (stage.on_failure, dead_letter) {
                (OnFailure::DeadLetter, None | Some("")) => {
                    return wrong("on_failure is \"dead-letter\"; add \"dead_letter_topic\": \"<topic>\"");
                }
                (OnFailure::DeadLetter, Some(_)) | (_, None) => {}
                (_, Some(_)) => {
                    return wrong("dead_letter_topic is given; set \"on_failure\": \"dead-letter\" or remove it");
                }
            }
            if let Some((output, _)) = stage.outputs.iter().find(|(_, topic)| topic.is_empty()) {
                return wrong(&format!("output `{output}` has an empty topic; name one"));
            }
        }
        Ok(())
    }
}

impl StageSpec {
    fn policy(&self) -> FailurePolicy {
        match self.on_failure {
            OnFailure::Fail => FailurePolicy::Fail,
            OnFailure::Pass => FailurePolicy::Pass,
            OnFailure::Drop => FailurePolicy::Drop,
            OnFailure::DeadLetter => FailurePolicy::DeadLetter { topic: self.dead_letter_topic.clone().unwrap_or_default() },
        }
    }
}

fn invalid(reason: impl Into<String>) -> SpecError {
    SpecError::Invalid { reason: reason.into() }
}

/// Keys and words, with suggestions; serde checks the types.
fn check_shape(value: &Value) -> Result<(), SpecError> {
    if !value.is_object() {
        return Err(invalid("it must be an object: {\"stages\": [...]}"));
    }
    if let Some(message) = unknown_key(value, "", &["stages"]) {
        return Err(invalid(message));
    }
    let stages = value.get("stages").and_then(Value::as_array);
    for (at, stage) in stages.into_iter().flatten().enumerate() {
        let place = format!("stages[{at}]");
        if let Some(message) = unknown_key(stage, &place, &STAGE_KEYS) {
            return Err(invalid(message));
        }
        let word = stage.get("on_failure").and_then(Value::as_str);
        if let Some(word) = word.filter(|word| !ON_FAILURE.contains(word)) {
            return Err(invalid(format!(
                "{place}.on_failure: there is no policy \"{word}\": {}",
                did_you_mean(word, ON_FAILURE)
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: &str = r#"{"stages": [
        {"plugin": "tpms-normalize"},
        {"plugin": "tpms-alert", "version": "1.0.0", "config": {"kpa": 150}, "outputs": {"alerts": "tpms.alerts"},
         "on_failure": "dead-letter", "dead_letter_topic": "tpms.dead"}]}"#;

    #[test]
    fn a_document_reads_and_comes_back() {
        let spec = PipelineSpec::parse(FULL.as_bytes()).unwrap();
        assert_eq!(spec.stages[0].config, serde_json::json!({}));
        assert_eq!((spec.stages[0].on_failure, spec.stages[0].version.as_deref()), (OnFailure::Fail, None));
        assert_eq!(spec.stages[1].policy(), FailurePolicy::DeadLetter { topic: "tpms.dead".to_owned() });
        assert_eq!(spec.topics().collect::<Vec<_>>(), ["tpms.alerts", "tpms.dead"]);
        assert_eq!(PipelineSpec::parse(&spec.to_json()).unwrap(), spec);
    }

    #[test]
    fn a_null_version_is_the_latest() {
        let spec = PipelineSpec::parse(br#"{"stages": [{"plugin": "a", "version": null}]}"#).unwrap();
        assert_eq!(spec.stages[0].version, None);
    }

    #[test]
    fn each_mistake_is_named_with_what_to_write() {
        let table = [
            ("\"stages\"", "\"stage\"", "unknown key `stage`: did you mean `stages`?"),
            ("\"outputs\"", "\"output\"", "unknown key `stages[1].output`: did you mean `outputs`?"),
            (
                "\"dead-letter\"",
                "\"deadletter\"",
                "stages[1].on_failure: there is no policy \"deadletter\": did you mean `dead-letter`?",
            ),
            (", \"dead_letter_topic\": \"tpms.dead\"", "", "add \"dead_letter_topic\""),
            ("\"on_failure\": \"dead-letter\", ", "", "set \"on_failure\": \"dead-letter\" or remove it"),
            ("\"tpms.alerts\"", "\"\"", "output `alerts` has an empty topic"),
            ("\"version\": \"1.0.0\"", "\"version\": 1", "invalid type"),
            ("{\"plugin\": \"tpms-normalize\"}", "{}", "missing field `plugin`"),
            ("{\"stages\"", "[{\"stages\"", "not valid JSON"),
        ];
        for (from, to, expected) in table {
            let error = PipelineSpec::parse(FULL.replacen(from, to, 1).as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expected), "{to}: {error}");
        }
        assert!(PipelineSpec::parse(b"{\"stages\": []}").unwrap_err().to_string().contains("give 1 to 8"));
        assert!(PipelineSpec::parse(b"7").unwrap_err().to_string().contains("must be an object"));
    }

    #[test]
    fn an_unknown_plugin_is_an_error_with_a_suggestion() {
        let spec = PipelineSpec::parse(FULL.as_bytes()).unwrap();
        let error = spec.resolve(&["tpms-normalise", "filter"], |_, _| None).unwrap_err();
        assert_eq!(error.to_string(), "stages[0]: there is no plugin `tpms-normalize`; did you mean `tpms-normalise`?");
    }
}
