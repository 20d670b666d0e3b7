//! Topics: name → number, partitions, settings, and what a batch of the topic has to pass.
//!
//! A topic lives in the log's metadata under `t<name>`; it is created together with its partitions in one append and
//! deleted the same way, durable before anybody is told. Lanes hold an `Arc<Topic>`; a deleted topic says so itself.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use weir_storage::{Append, LogHandle, MetaOp, PartitionId, PartitionOp};

use super::Refusal;
use super::meta::{self, MetaError, Reader, Writer, check_name};
use super::pipelines::Slot;
use super::writer::LogWriter;
use crate::metrics::{Metrics, TopicMeters};

/// Kafka's own limit, so that a topic keeps its name when it is forwarded.
const TOPIC_NAME_BYTES_MAX: usize = 249;
/// One append opens all partitions of a topic: 64 bytes each have to fit into a frame.
const PARTITIONS_OF_TOPIC_MAX: u32 = 10_000;
/// Settings a topic may carry, and their sizes.
const SETTINGS_MAX: usize = 32;
const SETTING_BYTES_MAX: usize = 1_024;

const _: () = assert!(PARTITIONS_OF_TOPIC_MAX as usize * 64 < 1 << 20, "opening a topic fits a small frame");

/// One topic.
#[derive(Debug)]
pub struct Topic {
    /// Its name.
    pub name: Arc<str>,
    /// Its number, never reused: a deleted topic's successor of the same name has another one.
    pub id: u32,
    /// Numbers of its partitions in the log, by partition.
    pub partitions: Box<[PartitionId]>,
    /// Its settings.
    pub settings: Vec<(String, String)>,
    deleted: AtomicBool,
    slot: RwLock<Slot>,
    pub(crate) meters: TopicMeters,
}

impl Topic {
    /// The log's number of a partition.
    pub fn partition(&self, partition: u32) -> Result<PartitionId, Refusal> {
        if self.is_deleted() {
            return Err(Refusal::UnknownTopic { topic: self.name.to_string() });
        }
        self.partitions.get(partition as usize).copied().ok_or_else(|| Refusal::UnknownPartition {
            topic: self.name.to_string(),
            partition,
            partitions: self.partition_count(),
        })
    }

    /// How many partitions it has.
    pub fn partition_count(&self) -> u32 {
        self.partitions.len() as u32
    }

    /// Whether it was deleted since this handle was taken.
    pub fn is_deleted(&self) -> bool {
        self.deleted.load(Ordering::Acquire)
    }

    /// What a batch that arrives now has to pass.
    pub(crate) fn slot(&self) -> Slot {
        self.slot.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes what batches pass from now on.
    pub(crate) fn set_slot(&self, slot: Slot) {
        *self.slot.write().unwrap_or_else(PoisonError::into_inner) = slot;
    }
}

/// All topics. Reads take a shared lock for one hash look-up; changes come one at a time under the broker's admin lock.
#[derive(Debug)]
pub(crate) struct Topics {
    by_name: RwLock<HashMap<Arc<str>, Arc<Topic>>>,
    metrics: Arc<Metrics>,
    topics_max: usize,
    partitions_max: u64,
}

impl Topics {
    /// Reads all topics from the log's metadata.
    pub(crate) fn load(
        log: &LogHandle,
        metrics: &Arc<Metrics>,
        topics_max: usize,
        partitions_max: u64,
    ) -> Result<Topics, MetaError> {
        let mut by_name = HashMap::new();
        for (key, value) in log.meta_scan(meta::TOPICS) {
            let topic = decode(&key, &value, metrics)?;
            by_name.insert(topic.name.clone(), Arc::new(topic));
        }
        Ok(Topics { by_name: RwLock::new(by_name), metrics: metrics.clone(), topics_max, partitions_max })
    }

    /// The topic of this name.
    pub(crate) fn get(&self, name: &str) -> Result<Arc<Topic>, Refusal> {
        let by_name = self.by_name.read().unwrap_or_else(PoisonError::into_inner);
        by_name.get(name).cloned().ok_or_else(|| Refusal::UnknownTopic { topic: name.to_owned() })
    }

    /// All topics, by name.
    pub(crate) fn all(&self) -> Vec<Arc<Topic>> {
        let by_name = self.by_name.read().unwrap_or_else(PoisonError::into_inner);
        let mut topics: Vec<_> = by_name.values().cloned().collect();
        drop(by_name);
        topics.sort_by(|a, b| a.name.cmp(&b.name));
        topics
    }

    /// Creates a topic; durable when it returns. The caller holds the admin lock.
    pub(crate) async fn create(
        &self,
        log: &LogHandle,
        writer: &LogWriter,
        name: &str,
        partitions: u32,
        settings: Vec<(String, String)>,
    ) -> Result<Arc<Topic>, Refusal> {
        self.check_new(name, partitions, &settings)?;
        let internal = |error: MetaError| Refusal::Internal { reason: error.to_string() };
        let id = meta::read_counter(log.meta(meta::NEXT_TOPIC), 1).map_err(internal)?;
        let first = meta::read_counter(log.meta(meta::NEXT_PARTITION), 1).map_err(internal)?;
        let next = first + u64::from(partitions);
        if id >= u64::from(u32::MAX) || next >= u64::from(u32::MAX) {
            return Err(Refusal::Quota { what: "all 32-bit topic or partition numbers of this node were used".into() });
        }
        let topic = Topic {
            name: Arc::from(name),
            id: id as u32,
            partitions: (first..next).map(|number| PartitionId(number as u32)).collect(),
            settings,
            deleted: AtomicBool::new(false),
            slot: RwLock::new(Slot::Direct),
            meters: self.metrics.topic(name),
        };
        let append = Append {
            entries: Vec::new(),
            mark: None,
            meta: vec![
                MetaOp::Put { key: key(name), value: encode(&topic) },
                MetaOp::Put { key: meta::NEXT_TOPIC.to_vec(), value: meta::counter(id + 1) },
                MetaOp::Put { key: meta::NEXT_PARTITION.to_vec(), value: meta::counter(next) },
            ],
            partitions: topic.partitions.iter().copied().map(PartitionOp::Open).collect(),
        };
        writer.submit(append).durable().await?;
        let topic = Arc::new(topic);
        self.by_name.write().unwrap_or_else(PoisonError::into_inner).insert(topic.name.clone(), topic.clone());
        Ok(topic)
    }

    fn check_new(&self, name: &str, partitions: u32, settings: &[(String, String)]) -> Result<(), Refusal> {
        check_name("topic", name, TOPIC_NAME_BYTES_MAX)?;
        if partitions == 0 || partitions > PARTITIONS_OF_TOPIC_MAX {
            let problem = format!("{partitions} is not 1 to {PARTITIONS_OF_TOPIC_MAX}");
            return Err(Refusal::InvalidArgument { field: "partitions", problem });
        }
        check_settings(settings)?;
        let by_name = self.by_name.read().unwrap_or_else(PoisonError::into_inner);
        if by_name.contains_key(name) {
            return Err(Refusal::TopicExists { topic: name.to_owned() });
        }
        if by_name.len() >= self.topics_max {
            return Err(Refusal::Quota { what: format!("the node holds {} topics at most", self.topics_max) });
        }
        let open: u64 = by_name.values().map(|topic| u64::from(topic.partition_count())).sum();
        if open + u64::from(partitions) > self.partitions_max {
            return Err(Refusal::Quota { what: format!("the node holds {} partitions at most", self.partitions_max) });
        }
        Ok(())
    }

    /// Deletes a topic together with `also`; durable when it returns. The caller holds the admin lock.
    pub(crate) async fn delete(&self, writer: &LogWriter, name: &str, mut also: Vec<MetaOp>) -> Result<(), Refusal> {
        let topic = self.get(name)?;
        also.push(MetaOp::Delete { key: key(name) });
        let append = Append {
            entries: Vec::new(),
            mark: None,
            meta: also,
            partitions: topic.partitions.iter().copied().map(PartitionOp::Drop).collect(),
        };
        writer.submit(append).durable().await?;
        topic.deleted.store(true, Ordering::Release);
        self.by_name.write().unwrap_or_else(PoisonError::into_inner).remove(name);
        self.metrics.forget_topic(name);
        Ok(())
    }
}

/// Only settings that mean something are taken: `description`, and labels that begin with `x-`.
fn check_settings(settings: &[(String, String)]) -> Result<(), Refusal> {
    if settings.len() > SETTINGS_MAX {
        let problem = format!("{} settings, at most {SETTINGS_MAX}", settings.len());
        return Err(Refusal::InvalidArgument { field: "config", problem });
    }
    for (key, value) in settings {
        if key != "description" && !key.starts_with("x-") {
            let problem = format!("{key:?} is no topic setting; known are description and labels beginning with x-");
            return Err(Refusal::InvalidArgument { field: "config", problem });
        }
        if key.len() > SETTING_BYTES_MAX || value.len() > SETTING_BYTES_MAX {
            let problem = format!("{key:?} or its value is longer than {SETTING_BYTES_MAX} bytes");
            return Err(Refusal::InvalidArgument { field: "config", problem });
        }
    }
    Ok(())
}

fn key(name: &str) -> Vec<u8> {
    Writer::key(meta::TOPICS).rest(name.as_bytes()).done()
}

fn encode(topic: &Topic) -> Vec<u8> {
    let mut writer = Writer::value().u32(topic.id).u32(topic.partition_count());
    for partition in &topic.partitions {
        writer = writer.u32(partition.0);
    }
    writer = writer.u32(topic.settings.len() as u32);
    for (key, value) in &topic.settings {
        writer = writer.text(key).text(value);
    }
    writer.done()
}

fn decode(key: &[u8], value: &[u8], metrics: &Metrics) -> Result<Topic, MetaError> {
    let name = std::str::from_utf8(Reader::key(meta::TOPICS, key)?.rest()).map_err(|_| MetaError::Text)?;
    let mut reader = Reader::value(value)?;
    let id = reader.u32()?;
    let count = reader.u32()?;
    if count > PARTITIONS_OF_TOPIC_MAX {
        return Err(MetaError::Short);
    }
    let partitions = (0..count).map(|_| reader.u32().map(PartitionId)).collect::<Result<_, _>>()?;
    let count = (reader.u32()? as usize).min(SETTINGS_MAX);
    let mut settings = Vec::with_capacity(count);
    for _ in 0..count {
        settings.push((reader.text()?.to_owned(), reader.text()?.to_owned()));
    }
    reader.end()?;
    Ok(Topic {
        name: Arc::from(name),
        id,
        partitions,
        settings,
        deleted: AtomicBool::new(false),
        slot: RwLock::new(Slot::Direct),
        meters: metrics.topic(name),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_topic_comes_back() {
        let metrics = Metrics::new();
        let topic = Topic {
            name: Arc::from("tpms.raw"),
            id: 3,
            partitions: Box::new([PartitionId(7), PartitionId(9)]),
            settings: vec![("description".into(), "tyres".into())],
            deleted: AtomicBool::new(false),
            slot: RwLock::new(Slot::Direct),
            meters: metrics.topic("tpms.raw"),
        };
        let read = decode(&key("tpms.raw"), &encode(&topic), &metrics).unwrap();
        assert_eq!((&*read.name, read.id), ("tpms.raw", 3));
        assert_eq!(read.partitions, topic.partitions);
        assert_eq!(read.settings, topic.settings);
        assert!(matches!(read.partition(2), Err(Refusal::UnknownPartition { partitions: 2, .. })));
    }

    #[test]
    fn settings_without_a_meaning_are_refused() {
        assert!(check_settings(&[("x-site".into(), "north".into())]).is_ok());
        assert!(check_settings(&[("retention.ms".into(), "1".into())]).is_err());
    }
}
