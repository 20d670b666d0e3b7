//! Topics: name → number, partitions, settings, and what a batch of the topic has to pass.
//!
//! A topic lives in the log's metadata under `t<name>`; it is created together with its partitions in one append and
//! deleted the same way, durable before anybody is told. Lanes hold an `Arc<Topic>`; a deleted topic says so itself.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use weir_batch::{BatchError, split_batches};
use weir_storage::{Append, LogHandle, MetaOp, PartitionId, PartitionOp};

use super::Refusal;
use super::classes::{self, Classes};
use super::meta::{self, MetaError, Reader, Writer, check_name};
use super::pipelines::Slot;
use super::settings::{self, SETTINGS_MAX, Settings};
use super::writer::LogWriter;
use crate::metrics::{Metrics, TopicMeters};

/// Kafka's own limit, so that a topic keeps its name when it is forwarded.
const TOPIC_NAME_BYTES_MAX: usize = 249;
/// One append opens all partitions of a topic and sets their class: 64 bytes each have to fit into a frame.
pub(super) const PARTITIONS_OF_TOPIC_MAX: u32 = 10_000;
/// First number of a topic, and of a partition.
pub(super) const FIRST_NUMBER: u64 = 1;
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
    settings: RwLock<Arc<Settings>>,
    /// Whether records must have a key; from the settings.
    compacted: AtomicBool,
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

    fn new(name: &str, id: u32, partitions: Box<[PartitionId]>, settings: Settings, metrics: &Metrics) -> Topic {
        Topic {
            name: Arc::from(name),
            id,
            partitions,
            compacted: AtomicBool::new(settings::is_compacted(&settings)),
            settings: RwLock::new(Arc::new(settings)),
            deleted: AtomicBool::new(false),
            slot: RwLock::new(Slot::Direct),
            meters: metrics.topic(name),
        }
    }

    /// Its settings, as they were written.
    pub fn settings(&self) -> Arc<Settings> {
        self.settings.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether only the last record of a key is kept: then each record must have one.
    pub fn is_compacted(&self) -> bool {
        self.compacted.load(Ordering::Acquire)
    }

    /// Refuses record batches that lack a key the topic asks for.
    pub(crate) fn check_keys(&self, batches: &[u8]) -> Result<(), Refusal> {
        if !self.is_compacted() {
            return Ok(());
        }
        let corrupt = |error: BatchError| Refusal::CorruptBatch { reason: error.to_string() };
        let mut scratch = Vec::new();
        for batch in split_batches(batches) {
            let batch = batch.map_err(corrupt)?;
            for (record, item) in batch.records(&mut scratch).map_err(corrupt)?.enumerate() {
                if item.map_err(corrupt)?.key.is_none() {
                    return Err(Refusal::RecordWithoutKey { topic: self.name.to_string(), record });
                }
            }
        }
        Ok(())
    }

    fn set_settings(&self, settings: Settings) {
        self.compacted.store(settings::is_compacted(&settings), Ordering::Release);
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(settings);
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
        (log, writer): (&LogHandle, &LogWriter),
        classes: &Classes,
        name: &str,
        partitions: u32,
        settings: Settings,
    ) -> Result<Arc<Topic>, Refusal> {
        self.check_new(name, partitions, &settings)?;
        let internal = |error: MetaError| Refusal::Internal { reason: error.to_string() };
        let id = meta::read_counter(log.meta(meta::NEXT_TOPIC), FIRST_NUMBER).map_err(internal)?;
        let first = meta::read_counter(log.meta(meta::NEXT_PARTITION), FIRST_NUMBER).map_err(internal)?;
        let next = first + u64::from(partitions);
        if id >= u64::from(u32::MAX) || next >= u64::from(u32::MAX) {
            return Err(Refusal::Quota { what: "all 32-bit topic or partition numbers of this node were used".into() });
        }
        let partitions = (first..next).map(|number| PartitionId(number as u32)).collect();
        let topic = Topic::new(name, id as u32, partitions, settings, &self.metrics);
        let class = classes.choose(log, topic.id, &topic.settings())?;
        let mut meta = vec![
            MetaOp::Put { key: key(name), value: encode(&topic) },
            MetaOp::Put { key: meta::NEXT_TOPIC.to_vec(), value: meta::counter(id + 1) },
            MetaOp::Put { key: meta::NEXT_PARTITION.to_vec(), value: meta::counter(next) },
        ];
        meta.extend(class.meta.iter().cloned());
        let mut partitions: Vec<_> = topic.partitions.iter().copied().map(PartitionOp::Open).collect();
        if class.class != classes::DEFAULT {
            partitions.extend(topic.partitions.iter().map(|partition| PartitionOp::SetClass(*partition, class.class)));
        }
        writer.submit(Append { meta, partitions, ..Append::default() }).durable().await?;
        classes.took_effect(log, class);
        let topic = Arc::new(topic);
        self.by_name.write().unwrap_or_else(PoisonError::into_inner).insert(topic.name.clone(), topic.clone());
        Ok(topic)
    }

    /// Changes a topic's settings, and with them its class; durable when it returns. The caller holds the admin lock.
    pub(crate) async fn set(
        &self,
        (log, writer): (&LogHandle, &LogWriter),
        classes: &Classes,
        topic: &Arc<Topic>,
        change: Settings,
    ) -> Result<(), Refusal> {
        let old = topic.settings();
        let settings = settings::changed(&old, change);
        settings::check(&settings)?;
        let before = classes.of(topic.id, &old);
        let class = classes.choose(log, topic.id, &settings)?;
        let mut meta = vec![MetaOp::Put { key: key(&topic.name), value: encode_with(topic, &settings) }];
        meta.extend(class.meta.iter().cloned());
        let moved = topic.partitions.iter().filter(|_| class.class != before);
        let partitions = moved.map(|partition| PartitionOp::SetClass(*partition, class.class)).collect();
        writer.submit(Append { meta, partitions, ..Append::default() }).durable().await?;
        classes.took_effect(log, class);
        topic.set_settings(settings);
        Ok(())
    }

    fn check_new(&self, name: &str, partitions: u32, settings: &[(String, String)]) -> Result<(), Refusal> {
        check_name("topic", name, TOPIC_NAME_BYTES_MAX)?;
        if partitions == 0 || partitions > PARTITIONS_OF_TOPIC_MAX {
            let problem = format!("{partitions} is not 1 to {PARTITIONS_OF_TOPIC_MAX}");
            return Err(Refusal::InvalidArgument { field: "partitions", problem });
        }
        settings::check(settings)?;
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
    pub(crate) async fn delete(
        &self,
        (log, writer): (&LogHandle, &LogWriter),
        classes: &Classes,
        name: &str,
        mut also: Vec<MetaOp>,
    ) -> Result<(), Refusal> {
        let topic = self.get(name)?;
        let ended = classes.tidy(log, &self.all());
        let left = classes.leave(topic.id);
        also.push(MetaOp::Delete { key: key(name) });
        also.extend(ended.iter().map(|number| classes::delete_op(*number)));
        also.extend(left.iter().flat_map(|left| left.meta.iter().cloned()));
        let append = Append {
            entries: Vec::new(),
            mark: None,
            meta: also,
            partitions: topic.partitions.iter().copied().map(PartitionOp::Drop).collect(),
        };
        writer.submit(append).durable().await?;
        classes.forget(&ended);
        left.into_iter().for_each(|left| classes.took_effect(log, left));
        topic.deleted.store(true, Ordering::Release);
        self.by_name.write().unwrap_or_else(PoisonError::into_inner).remove(name);
        self.metrics.forget_topic(name);
        Ok(())
    }
}

fn key(name: &str) -> Vec<u8> {
    Writer::key(meta::TOPICS).rest(name.as_bytes()).done()
}

fn encode(topic: &Topic) -> Vec<u8> {
    encode_with(topic, &topic.settings())
}

/// The topic with other settings than it has now.
fn encode_with(topic: &Topic, settings: &[(String, String)]) -> Vec<u8> {
    let writer = Writer::value().u32(topic.id).u32(topic.partition_count());
    let writer = topic.partitions.iter().fold(writer, |writer, partition| writer.u32(partition.0));
    let writer = writer.u32(settings.len() as u32);
    settings.iter().fold(writer, |writer, (key, value)| writer.text(key).text(value)).done()
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
    Ok(Topic::new(name, id, partitions, settings, metrics))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_topic_comes_back() {
        let metrics = Metrics::new();
        let settings = vec![("description".into(), "tyres".into()), ("cleanup.policy".into(), "compact".into())];
        let topic = Topic::new("tpms.raw", 3, Box::new([PartitionId(7), PartitionId(9)]), settings, &metrics);
        let read = decode(&key("tpms.raw"), &encode(&topic), &metrics).unwrap();
        assert_eq!((&*read.name, read.id), ("tpms.raw", 3));
        assert_eq!(read.partitions, topic.partitions);
        assert_eq!(read.settings(), topic.settings());
        assert!(read.is_compacted());
        assert!(matches!(read.partition(2), Err(Refusal::UnknownPartition { partitions: 2, .. })));
    }
}
