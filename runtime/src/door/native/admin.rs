//! Requests of the control stream as calls of the broker.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use weir_protocol::Answer;
use weir_protocol::admin::{FoundOffset, GroupOffset, PartitionRange, Refusal as WireRefusal, Request, TopicDescription};

use super::codes::answer_of;
use super::connection::Session;
use crate::broker::{Position, Refusal};

/// Uploads in parts a connection may have under way.
const UPLOADS_MAX: usize = 2;
/// Partitions one list_offsets may ask for.
const OFFSETS_MAX: usize = 10_000;

/// What became of a request.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) correlation: u32,
    pub(super) result: Result<Answer, WireRefusal>,
}

impl Outcome {
    pub(super) fn done(correlation: u32) -> Outcome {
        Outcome { correlation, result: Ok(Answer::Done) }
    }

    pub(super) fn refused(correlation: u32, refusal: &Refusal) -> Outcome {
        Outcome { correlation, result: Err(answer_of(refusal)) }
    }
}

/// Components that arrive in parts.
#[derive(Debug)]
pub(super) struct Uploads {
    parts: HashMap<u32, BytesMut>,
    bytes_max: u64,
}

impl Uploads {
    pub(super) fn new(bytes_max: u64) -> Uploads {
        Uploads { parts: HashMap::new(), bytes_max }
    }

    /// Takes a part in; answers the request to run: as it came, or the whole upload after its last part.
    pub(super) fn gather(&mut self, session: &Session, request: Request) -> Result<Option<Request>, Refusal> {
        let Request::PutPluginPart { upload, last, part } = request else { return Ok(Some(request)) };
        session.door.broker.check_plugin_right(session.principal())?;
        if !self.parts.contains_key(&upload) && self.parts.len() >= UPLOADS_MAX {
            return Err(Refusal::Quota { what: format!("{UPLOADS_MAX} uploads of one connection at a time") });
        }
        let bytes = self.parts.get(&upload).map_or(0, BytesMut::len) + part.len();
        if bytes as u64 > self.bytes_max {
            self.parts.remove(&upload);
            let problem = format!("more than {} bytes", self.bytes_max);
            return Err(Refusal::InvalidArgument { field: "component", problem });
        }
        self.parts.entry(upload).or_default().extend_from_slice(&part);
        if !last {
            return Ok(None);
        }
        let component = self.parts.remove(&upload).map(BytesMut::freeze).unwrap_or_default();
        Ok(Some(Request::PutPlugin { component }))
    }
}

/// Runs one request. It is a task of its own: it ends even if the connection does not wait for it.
pub(super) async fn run(session: Arc<Session>, correlation: u32, request: Request) -> Outcome {
    match answer(&session, request).await {
        Ok(answer) => Outcome { correlation, result: Ok(answer) },
        Err(refusal) => Outcome::refused(correlation, &refusal),
    }
}

async fn answer(session: &Session, request: Request) -> Result<Answer, Refusal> {
    let (broker, principal) = (&session.door.broker, &**session.principal());
    Ok(match request {
        Request::CreateTopic { topic, partitions, settings } => {
            let topic = broker.create_topic(principal, &topic, partitions, settings).await?;
            Answer::TopicCreated { partitions: topic.partition_count() }
        }
        Request::DeleteTopic { topic } => done(broker.delete_topic(principal, &topic).await)?,
        Request::SetTopic { topic, settings } => done(broker.set_topic(principal, &topic, settings).await)?,
        Request::ListTopics => {
            let topics = broker.list_topics(principal);
            Answer::Topics(topics.iter().map(|topic| (topic.name.to_string(), topic.partition_count())).collect())
        }
        Request::DescribeTopic { topic } => Answer::Topic(describe(session, &topic)?),
        Request::ListOffsets { topic, partitions } => Answer::Offsets(offsets(session, &topic, &partitions).await?),
        Request::CommitOffsets { group, offsets } => {
            let positions: Vec<_> = offsets.into_iter().map(position_of).collect();
            done(broker.commit_positions(principal, &group, &positions).await)?
        }
        Request::CommittedOffsets { group, partitions } => {
            let positions = broker.committed_positions(principal, &group, &partitions)?;
            Answer::GroupOffsets(positions.into_iter().map(group_offset_of).collect())
        }
        Request::ListGroups => Answer::Groups(broker.list_groups(principal)?),
        Request::DeleteGroup { group } => done(broker.delete_group(principal, &group).await)?,
        Request::PutPlugin { component } => put_plugin(session, component).await?,
        Request::ListPlugins => Answer::Json(json(&broker.list_plugins(principal)?)?),
        Request::DeletePlugin { name, version } => done(broker.delete_plugin(principal, &name, &version).await)?,
        Request::AttachPipeline { topic, pipeline } => {
            Answer::Pipeline { revision: broker.attach_pipeline(principal, &topic, &pipeline).await? }
        }
        Request::DetachPipeline { topic } => done(broker.detach_pipeline(principal, &topic).await)?,
        Request::ListPipelines => Answer::Json(json(&broker.list_pipelines(principal)?)?),
        Request::Status => {
            broker.check_status_right(principal)?;
            Answer::Json(session.door.status.json().to_string())
        }
        Request::StartBackup { dir, keep } => Answer::Json(broker.start_backup(principal, &dir, keep)?.to_string()),
        Request::BackupStatus => Answer::Json(broker.backup_status(principal)?.to_string()),
        Request::StopBackup => Answer::Json(broker.stop_backup(principal)?.to_string()),
        Request::ListDisks => Answer::Json(broker.list_disks(principal)?.to_string()),
        Request::AddDisk { dir } => Answer::Json(broker.add_disk(principal, dir).await?.to_string()),
        Request::DrainDisk { number, drain } => done(broker.drain_disk(principal, number, drain).await)?,
        Request::ReplaceDisk { number, force, dir } => {
            Answer::Json(broker.replace_disk(principal, number, dir, force).await?.to_string())
        }
        Request::RemoveDisk { number, force } => done(broker.remove_disk(principal, number, force).await)?,
        Request::PutPluginPart { .. } => {
            return Err(Refusal::Internal { reason: "an upload's part was not gathered".to_owned() });
        }
    })
}

fn done(result: Result<(), Refusal>) -> Result<Answer, Refusal> {
    result.map(|()| Answer::Done)
}

async fn put_plugin(session: &Session, component: Bytes) -> Result<Answer, Refusal> {
    let (name, version) = session.door.broker.put_plugin(session.principal(), component).await?;
    Ok(Answer::Plugin { name, version })
}

fn describe(session: &Session, topic: &str) -> Result<TopicDescription, Refusal> {
    let info = session.door.broker.describe_topic(session.principal(), topic)?;
    let range = |(partition, bounds): (usize, &weir_storage::PartitionBounds)| PartitionRange {
        partition: partition as u32,
        start_offset: bounds.start,
        high_watermark: bounds.high_watermark,
    };
    Ok(TopicDescription {
        topic: info.topic.name.to_string(),
        settings: info.topic.settings().to_vec(),
        pipeline: info.pipeline,
        partitions: info.bounds.iter().enumerate().map(range).collect(),
    })
}

async fn offsets(session: &Session, topic: &str, asked: &[(u32, i64)]) -> Result<Vec<FoundOffset>, Refusal> {
    if asked.len() > OFFSETS_MAX {
        let problem = format!("{} partitions, at most {OFFSETS_MAX} in one request", asked.len());
        return Err(Refusal::InvalidArgument { field: "partitions", problem });
    }
    let mut found = Vec::with_capacity(asked.len());
    for (partition, when) in asked {
        let (offset, timestamp) = session.door.broker.find_offset(session.principal(), topic, *partition, *when).await?;
        found.push(FoundOffset { partition: *partition, offset, timestamp });
    }
    Ok(found)
}

fn position_of(offset: GroupOffset) -> Position {
    let GroupOffset { topic, partition, offset, metadata } = offset;
    Position { topic, partition, offset, metadata }
}

fn group_offset_of(position: Position) -> GroupOffset {
    let Position { topic, partition, offset, metadata } = position;
    GroupOffset { topic, partition, offset, metadata }
}

fn json<T: serde::Serialize>(value: &T) -> Result<String, Refusal> {
    serde_json::to_string(value).map_err(|error| Refusal::Internal { reason: error.to_string() })
}
