//! Which plugins a topic's batches pass, and their change while records flow.
//!
//! The attachment is durable (`l<topic>`: revision and JSON) before it takes effect; then the topic's slot is swapped, and
//! each batch passes exactly the pipeline it found there. A pipeline that cannot be brought up when the node starts leaves
//! its topic refusing records with the reason; the other topics are served.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Serialize;
use weir_pipeline::{Pipeline, PipelineSpec, SpecError, StageSpec};
use weir_storage::{LogHandle, MetaOp};

use super::Refusal;
use super::meta::{self, MetaError, Reader, Writer};
use super::plugins::{PluginKey, Plugins, blocking};
use super::topics::{Topic, Topics};
use super::writer::LogWriter;

/// Revision of the first pipeline that is attached.
pub(super) const FIRST_REVISION: u64 = 1;

/// What a batch of a topic has to pass.
#[derive(Debug, Clone)]
pub(crate) enum Slot {
    /// Nothing: it is stored as it came.
    Direct,
    /// A pipeline.
    Through(Arc<Attached>),
    /// A pipeline that could not be brought up: the topic takes no records.
    Broken(Arc<Broken>),
}

/// A pipeline at work.
pub(crate) struct Attached {
    pub(crate) revision: u64,
    pub(crate) json: String,
    pub(crate) pipeline: Arc<Pipeline>,
    pub(crate) plugins: Vec<PluginKey>,
    /// Topics it writes to beside its own.
    pub(crate) targets: HashMap<String, Arc<Topic>>,
}

impl std::fmt::Debug for Attached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attached").field("revision", &self.revision).finish_non_exhaustive()
    }
}

/// A pipeline that is attached and cannot run.
#[derive(Debug)]
pub(crate) struct Broken {
    pub(crate) revision: u64,
    pub(crate) json: String,
    pub(crate) plugins: Vec<PluginKey>,
    pub(crate) targets: Vec<String>,
    pub(crate) reason: String,
}

fn parse(json: &str) -> Result<PipelineSpec, Refusal> {
    PipelineSpec::parse(json.as_bytes()).map_err(spec_refusal)
}

fn spec_refusal(error: SpecError) -> Refusal {
    Refusal::InvalidArgument { field: "pipeline", problem: error.to_string() }
}

/// Every stage with the version that is used from now on: a plugin stored later changes nothing.
fn pin_versions(spec: &mut PipelineSpec, plugins: &Plugins) {
    for stage in &mut spec.stages {
        if stage.version.is_none() {
            stage.version = plugins.latest_version(&stage.plugin);
        }
    }
}

fn plugins_of(spec: &PipelineSpec) -> Vec<PluginKey> {
    let key = |stage: &StageSpec| (stage.plugin.clone(), stage.version.clone().unwrap_or_default());
    spec.stages.iter().map(key).collect()
}

fn targets_of(spec: &PipelineSpec) -> Vec<String> {
    let mut targets: Vec<String> = spec.topics().map(str::to_owned).collect();
    targets.sort();
    targets.dedup();
    targets
}

/// What `list_pipelines` tells.
#[derive(Debug, Clone, Serialize)]
pub struct PipelineInfo {
    /// The topic.
    pub topic: String,
    /// Rises with every change on this node.
    pub revision: u64,
    /// The pipeline.
    pub pipeline: serde_json::Value,
    /// Why it cannot run; none where it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broken: Option<String>,
}

/// Brings up the pipelines of all topics; those that fail are left broken and said aloud. Blocks.
pub(crate) fn load(log: &LogHandle, topics: &Topics, plugins: &Plugins) -> Result<(), MetaError> {
    for (key, value) in log.meta_scan(meta::PIPELINES) {
        let (name, revision, json) = decode(&key, &value)?;
        let Ok(topic) = topics.get(name) else {
            tracing::error!(topic = name, "a pipeline is stored for a topic that does not exist; it is ignored");
            continue;
        };
        match build(topics, plugins, &topic, revision, json) {
            Ok(attached) => topic.set_slot(Slot::Through(Arc::new(attached))),
            Err(error) => {
                let reason = error.to_string();
                tracing::error!(topic = name, revision, reason, "the pipeline cannot run; its topic refuses records");
                let spec = parse(json).ok();
                topic.set_slot(Slot::Broken(Arc::new(Broken {
                    revision,
                    json: json.to_owned(),
                    plugins: spec.as_ref().map(plugins_of).unwrap_or_default(),
                    targets: spec.as_ref().map(targets_of).unwrap_or_default(),
                    reason,
                })));
            }
        }
    }
    Ok(())
}

/// Attaches or replaces a topic's pipeline; durable and in effect when it returns. The caller holds the admin lock.
pub(crate) async fn attach(
    log: &LogHandle,
    writer: &LogWriter,
    topics: &Arc<Topics>,
    plugins: &Arc<Plugins>,
    topic: Arc<Topic>,
    json: &str,
) -> Result<u64, Refusal> {
    let mut spec = parse(json)?;
    pin_versions(&mut spec, plugins);
    let json = String::from_utf8_lossy(&spec.to_json()).into_owned();
    let revision = meta::read_counter(log.meta(meta::NEXT_REVISION), FIRST_REVISION)
        .map_err(|error| Refusal::Internal { reason: error.to_string() })?;
    let (topics, plugins, target) = (topics.clone(), plugins.clone(), topic.clone());
    let text = json.clone();
    // Compiling and `init` take milliseconds: not on a thread that serves connections.
    let attached = blocking(move || build(&topics, &plugins, &target, revision, &text)).await?;
    let put = vec![
        MetaOp::Put { key: key(&topic.name), value: encode(revision, &json) },
        MetaOp::Put { key: meta::NEXT_REVISION.to_vec(), value: meta::counter(revision + 1) },
    ];
    writer.submit_meta(put).durable().await?;
    topic.set_slot(Slot::Through(Arc::new(attached)));
    Ok(revision)
}

/// Detaches a topic's pipeline; durable and in effect when it returns. The caller holds the admin lock.
pub(crate) async fn detach(writer: &LogWriter, topic: &Arc<Topic>) -> Result<(), Refusal> {
    if matches!(topic.slot(), Slot::Direct) {
        let problem = format!("{:?} has no pipeline", &*topic.name);
        return Err(Refusal::InvalidArgument { field: "topic", problem });
    }
    writer.submit_meta(vec![delete_op(&topic.name)]).durable().await?;
    topic.set_slot(Slot::Direct);
    Ok(())
}

/// What deleting a topic takes with it.
pub(crate) fn delete_op(topic: &str) -> MetaOp {
    MetaOp::Delete { key: key(topic) }
}

/// A topic whose pipeline writes to `target`.
pub(crate) fn writer_to(topics: &Topics, target: &str) -> Option<String> {
    let writes = |topic: &&Arc<Topic>| match topic.slot() {
        Slot::Direct => false,
        Slot::Through(attached) => attached.targets.contains_key(target),
        Slot::Broken(broken) => broken.targets.iter().any(|topic| topic == target),
    };
    let all = topics.all();
    all.iter().filter(|topic| &*topic.name != target).find(writes).map(|topic| topic.name.to_string())
}

/// Topics whose pipeline uses a plugin.
pub(crate) fn users_of(topics: &Topics, plugin: &PluginKey) -> Vec<String> {
    let uses = |topic: &Arc<Topic>| match topic.slot() {
        Slot::Direct => false,
        Slot::Through(attached) => attached.plugins.contains(plugin),
        Slot::Broken(broken) => broken.plugins.contains(plugin),
    };
    topics.all().into_iter().filter(uses).map(|topic| topic.name.to_string()).collect()
}

/// All pipelines.
pub(crate) fn list(topics: &Topics) -> Vec<PipelineInfo> {
    let info = |topic: Arc<Topic>| {
        let (revision, json, broken) = match topic.slot() {
            Slot::Direct => return None,
            Slot::Through(attached) => (attached.revision, attached.json.clone(), None),
            Slot::Broken(broken) => (broken.revision, broken.json.clone(), Some(broken.reason.clone())),
        };
        let pipeline = serde_json::from_str(&json).unwrap_or(serde_json::Value::String(json));
        Some(PipelineInfo { topic: topic.name.to_string(), revision, pipeline, broken })
    };
    topics.all().into_iter().filter_map(info).collect()
}

/// A topic's pipeline as JSON; empty where there is none.
pub(crate) fn json_of(topic: &Topic) -> String {
    match topic.slot() {
        Slot::Direct => String::new(),
        Slot::Through(attached) => attached.json.clone(),
        Slot::Broken(broken) => broken.json.clone(),
    }
}

fn build(topics: &Topics, plugins: &Plugins, own: &Arc<Topic>, revision: u64, json: &str) -> Result<Attached, Refusal> {
    let spec = parse(json)?;
    let mut targets = HashMap::new();
    for name in targets_of(&spec) {
        let target = if *name == *own.name { own.clone() } else { topics.get(&name)? };
        targets.insert(name, target);
    }
    let names = plugins.names();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut failed = None;
    let find = |name: &str, version: Option<&str>| {
        let key = (name.to_owned(), version?.to_owned());
        match plugins.compiled(&key) {
            Ok(plugin) => Some(plugin),
            Err(Refusal::UnknownPlugin { .. }) => None,
            Err(error) => {
                failed = Some(error);
                None
            }
        }
    };
    let stages = spec.resolve(&names, find);
    if let Some(error) = failed {
        return Err(error);
    }
    let stages = stages.map_err(|error| match error {
        SpecError::UnknownPlugin { ref plugin, ref wanted, .. } if names.contains(&plugin.as_str()) => {
            Refusal::UnknownPlugin { name: plugin.clone(), version: wanted.clone() }
        }
        error => Refusal::UnknownPlugin { name: error.to_string(), version: String::new() },
    })?;
    let pipeline = Pipeline::new(revision, stages, plugins.host());
    let pipeline = pipeline.map_err(|error| Refusal::PluginInvalid { reason: error.to_string() })?;
    Ok(Attached { revision, json: json.to_owned(), pipeline, plugins: plugins_of(&spec), targets })
}

fn key(topic: &str) -> Vec<u8> {
    Writer::key(meta::PIPELINES).rest(topic.as_bytes()).done()
}

fn encode(revision: u64, json: &str) -> Vec<u8> {
    Writer::value().u64(revision).blob(json.as_bytes()).done()
}

fn decode<'a>(key: &'a [u8], value: &'a [u8]) -> Result<(&'a str, u64, &'a str), MetaError> {
    let name = std::str::from_utf8(Reader::key(meta::PIPELINES, key)?.rest()).map_err(|_| MetaError::Text)?;
    let mut reader = Reader::value(value)?;
    let (revision, json) = (reader.u64()?, reader.blob()?);
    reader.end()?;
    Ok((name, revision, std::str::from_utf8(json).map_err(|_| MetaError::Text)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attachment_comes_back() {
        let (key, value) = (key("tpms.raw"), encode(7, "{}"));
        assert_eq!(decode(&key, &value).unwrap(), ("tpms.raw", 7, "{}"));
    }

    #[test]
    fn what_a_pipeline_uses_is_known() {
        let spec = parse(
            r#"{"stages":[
                {"plugin":"tpms-normalize","version":"1.0.0","on_failure":"dead-letter","dead_letter_topic":"tpms.bad"},
                {"plugin":"tpms-alert","version":"2.0.0","outputs":{"alerts":"tpms.alerts"}}]}"#,
        )
        .unwrap();
        assert_eq!(targets_of(&spec), ["tpms.alerts", "tpms.bad"]);
        let named = |name: &str, version: &str| (name.to_owned(), version.to_owned());
        assert_eq!(plugins_of(&spec), [named("tpms-normalize", "1.0.0"), named("tpms-alert", "2.0.0")]);
        assert!(matches!(parse("{}"), Err(Refusal::InvalidArgument { field: "pipeline", .. })));
    }
}
