//! What operators and consumers ask for beside records: topics, offsets, groups, plugins, pipelines. Each verb checks the
//! right first, and what it changes is durable when it returns.

use std::sync::Arc;

use bytes::Bytes;
use weir_storage::PartitionBounds;

use super::groups::Position;
use super::pipelines::{self, PipelineInfo};
use super::plugins::PluginInfo;
use super::topics::Topic;
use super::{Broker, Refusal, fetch};
use crate::config::Right;

/// What `describe_topic` tells.
#[derive(Debug, Clone)]
pub struct TopicInfo {
    /// The topic.
    pub topic: Arc<Topic>,
    /// Its pipeline as JSON; empty where there is none.
    pub pipeline: String,
    /// Durable range of each partition.
    pub bounds: Vec<PartitionBounds>,
}

/// For `find_offset`: the high watermark, as in Kafka.
const LATEST: i64 = -1;
/// For `find_offset`: the first offset kept.
const EARLIEST: i64 = -2;

impl Broker {
    /// Creates a topic; `partitions` 0 takes the node's default.
    pub async fn create_topic(
        &self,
        principal: &str,
        name: &str,
        partitions: u32,
        settings: Vec<(String, String)>,
    ) -> Result<Arc<Topic>, Refusal> {
        self.acl.check(principal, Right::Admin, name)?;
        let partitions = if partitions == 0 { self.topic_default_partitions } else { partitions };
        let _admin = self.admin.lock().await;
        let topic = self.topics.create((&self.log, &self.writer), &self.classes, name, partitions, settings).await?;
        tracing::info!(topic = name, partitions, principal, "topic created");
        Ok(topic)
    }

    /// Changes settings of a topic; an empty value takes a setting away.
    pub async fn set_topic(&self, principal: &str, name: &str, change: Vec<(String, String)>) -> Result<(), Refusal> {
        self.acl.check(principal, Right::Admin, name)?;
        let _admin = self.admin.lock().await;
        let topic = self.topics.get(name)?;
        self.topics.set((&self.log, &self.writer), &self.classes, &topic, change).await?;
        tracing::info!(topic = name, settings = ?topic.settings(), principal, "topic settings changed");
        Ok(())
    }

    /// A producer's first batch creates its topic, where the operator allows that.
    pub(super) async fn create_or_get(&self, name: &str) -> Result<Arc<Topic>, Refusal> {
        let _admin = self.admin.lock().await;
        match self.topics.get(name) {
            Ok(topic) => Ok(topic),
            Err(_) => {
                let partitions = self.topic_default_partitions;
                let log = (&self.log, &self.writer);
                let topic = self.topics.create(log, &self.classes, name, partitions, Vec::new()).await?;
                tracing::info!(topic = name, partitions, "topic created by its first producer");
                Ok(topic)
            }
        }
    }

    /// Deletes a topic with its records, its pipeline and all groups' positions in it.
    pub async fn delete_topic(&self, principal: &str, name: &str) -> Result<(), Refusal> {
        self.acl.check(principal, Right::Admin, name)?;
        let _admin = self.admin.lock().await;
        if let Some(other) = pipelines::writer_to(&self.topics, name) {
            let problem = format!("{name:?} receives records from the pipeline of {other:?}; detach that first");
            return Err(Refusal::InvalidArgument { field: "topic", problem });
        }
        let topic = self.topics.get(name)?;
        let mut also = self.groups.deletes_of_topic(&self.log, name);
        also.push(pipelines::delete_op(name));
        self.topics.delete((&self.log, &self.writer), &self.classes, name, also).await?;
        self.groups.recount(&self.log);
        // Live subscriptions look, and find that it is gone.
        self.tails.committed(&topic.partitions);
        tracing::info!(topic = name, principal, "topic deleted");
        Ok(())
    }

    /// Topics the principal may know of.
    pub fn list_topics(&self, principal: &str) -> Vec<Arc<Topic>> {
        let mut topics = self.topics.all();
        topics.retain(|topic| self.acl.sees(principal, &topic.name));
        topics
    }

    /// One topic with its pipeline and ranges.
    pub fn describe_topic(&self, principal: &str, name: &str) -> Result<TopicInfo, Refusal> {
        let topic = self.visible(principal, name)?;
        let bounds = (0..topic.partition_count()).map(|partition| self.bounds(&topic, partition));
        let bounds = bounds.collect::<Result<_, _>>()?;
        Ok(TopicInfo { pipeline: pipelines::json_of(&topic), topic, bounds })
    }

    /// Offset and timestamp of the first record at or after a time, or of an end of the partition.
    pub async fn find_offset(&self, principal: &str, name: &str, partition: u32, when: i64) -> Result<(i64, i64), Refusal> {
        let topic = self.visible(principal, name)?;
        let bounds = self.bounds(&topic, partition)?;
        match when {
            LATEST => Ok((bounds.high_watermark, -1)),
            EARLIEST => Ok((bounds.start, -1)),
            0.. => {
                let found = fetch::offset_for_timestamp(&self.log, &topic, partition, when).await?;
                Ok(found.unwrap_or((bounds.high_watermark, -1)))
            }
            other => Err(Refusal::InvalidArgument {
                field: "when",
                problem: format!("{other} is neither a time in ms, nor -1 (latest), nor -2 (earliest)"),
            }),
        }
    }

    fn visible(&self, principal: &str, name: &str) -> Result<Arc<Topic>, Refusal> {
        if self.acl.sees(principal, name) {
            return self.topics.get(name);
        }
        self.acl.check(principal, Right::Consume, name)?;
        self.topics.get(name)
    }

    /// Stores a group's positions.
    pub async fn commit_positions(&self, principal: &str, group: &str, positions: &[Position]) -> Result<(), Refusal> {
        for position in positions {
            self.consumable(principal, &position.topic)?.partition(position.partition)?;
        }
        self.groups.commit(&self.log, &self.writer, group, positions).await
    }

    /// A group's positions: of these partitions, or all the principal may see where none are named.
    pub fn committed_positions(
        &self,
        principal: &str,
        group: &str,
        partitions: &[(String, u32)],
    ) -> Result<Vec<Position>, Refusal> {
        if partitions.is_empty() {
            let mut positions = self.groups.positions(&self.log, group)?;
            positions.retain(|position| self.acl.check(principal, Right::Consume, &position.topic).is_ok());
            return Ok(positions);
        }
        let mut positions = Vec::with_capacity(partitions.len());
        for (topic, partition) in partitions {
            self.consumable(principal, topic)?.partition(*partition)?;
            positions.push(self.groups.position(&self.log, group, topic, *partition)?);
        }
        Ok(positions)
    }

    /// Names of all groups.
    pub fn list_groups(&self, principal: &str) -> Result<Vec<String>, Refusal> {
        let consumes = self.acl.check_node(principal, Right::Consume);
        consumes.or_else(|_| self.acl.check_node(principal, Right::Admin))?;
        Ok(self.groups.names())
    }

    /// Deletes a group's positions.
    pub async fn delete_group(&self, principal: &str, group: &str) -> Result<(), Refusal> {
        self.acl.check_node(principal, Right::Admin)?;
        self.groups.delete(&self.log, &self.writer, group).await
    }

    /// Stores a plugin; answers its name and version.
    pub async fn put_plugin(&self, principal: &str, component: Bytes) -> Result<(String, String), Refusal> {
        self.check_plugin_right(principal)?;
        let _admin = self.admin.lock().await;
        let (name, version) = self.plugins.put(&self.writer, component).await?;
        tracing::info!(plugin = name, version, principal, "plugin stored");
        Ok((name, version))
    }

    /// Refuses who may not store plugins, before the bytes are taken.
    pub fn check_plugin_right(&self, principal: &str) -> Result<(), Refusal> {
        self.acl.check_node(principal, Right::Admin)
    }

    /// All plugins and where they are attached.
    pub fn list_plugins(&self, principal: &str) -> Result<Vec<PluginInfo>, Refusal> {
        self.acl.check_node(principal, Right::Admin)?;
        let mut plugins = self.plugins.list();
        for plugin in &mut plugins {
            let key = (plugin.name.clone(), plugin.version.clone());
            plugin.attached_to = pipelines::users_of(&self.topics, &key);
        }
        Ok(plugins)
    }

    /// Deletes a plugin that no pipeline uses.
    pub async fn delete_plugin(&self, principal: &str, name: &str, version: &str) -> Result<(), Refusal> {
        self.acl.check_node(principal, Right::Admin)?;
        let _admin = self.admin.lock().await;
        let key = (name.to_owned(), version.to_owned());
        if let Some(topic) = pipelines::users_of(&self.topics, &key).into_iter().next() {
            return Err(Refusal::PluginInUse { name: key.0, version: key.1, topic });
        }
        self.plugins.delete(&self.writer, &key).await?;
        tracing::info!(plugin = name, version, principal, "plugin deleted");
        Ok(())
    }

    /// Attaches a pipeline to a topic, or replaces the one it has; answers the revision.
    pub async fn attach_pipeline(&self, principal: &str, topic: &str, json: &str) -> Result<u64, Refusal> {
        self.acl.check(principal, Right::Admin, topic)?;
        let _admin = self.admin.lock().await;
        let target = self.topics.get(topic)?;
        let (topics, plugins) = (&self.topics, &self.plugins);
        let revision = pipelines::attach(&self.log, &self.writer, topics, plugins, target, json).await?;
        tracing::info!(topic, revision, principal, "pipeline attached");
        Ok(revision)
    }

    /// Takes a topic's pipeline away.
    pub async fn detach_pipeline(&self, principal: &str, topic: &str) -> Result<(), Refusal> {
        self.acl.check(principal, Right::Admin, topic)?;
        let _admin = self.admin.lock().await;
        let target = self.topics.get(topic)?;
        pipelines::detach(&self.writer, &target).await?;
        tracing::info!(topic, principal, "pipeline detached");
        Ok(())
    }

    /// All pipelines.
    pub fn list_pipelines(&self, principal: &str) -> Result<Vec<PipelineInfo>, Refusal> {
        self.acl.check_node(principal, Right::Admin)?;
        Ok(pipelines::list(&self.topics))
    }

    /// Refuses who may not see the node's status.
    pub fn check_status_right(&self, principal: &str) -> Result<(), Refusal> {
        self.acl.check_node(principal, Right::Admin)
    }

    /// All topics and pipelines, for the status.
    pub fn inventory(&self) -> (Vec<Arc<Topic>>, Vec<PipelineInfo>) {
        (self.topics.all(), pipelines::list(&self.topics))
    }
}
