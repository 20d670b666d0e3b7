//! The mock's log: topics, producers, groups and plugins in maps.

use std::collections::{BTreeMap, HashMap};

use bytes::{Bytes, BytesMut};
use weir_batch::{RecordBatch, patch_base_offset};
use weir_protocol::{
    AckCode, AckItem, Acks, Answer, Code, FRAME_BYTES_MAX_DEFAULT, Message, NackItem, Nacks, Publish, Request,
    admin::{FoundOffset, GroupOffset, PartitionRange, Refusal, TopicDescription, WHEN_EARLIEST, WHEN_LATEST},
};

struct Stored {
    base_offset: i64,
    next_offset: i64,
    max_timestamp: i64,
    bytes: Bytes,
}

struct Mark {
    base: u64,
    count: u32,
    base_offset: i64,
}

#[derive(Default)]
pub struct Log {
    topics: BTreeMap<String, Vec<Vec<Stored>>>,
    names: HashMap<String, i64>,
    epochs: HashMap<i64, i16>,
    lanes: HashMap<(i64, u32), Vec<Mark>>,
    groups: BTreeMap<String, BTreeMap<(String, u32), i64>>,
    pipelines: BTreeMap<String, String>,
    uploads: HashMap<u32, BytesMut>,
    pub plugins: Vec<Bytes>,
    pub commits: usize,
    pub arrived: usize,
    pub duplicates: usize,
}

#[derive(Clone, Copy, Debug)]
pub enum Answered {
    Durable { count: u32, base_offset: i64, duplicate: bool },
    Refused(Code, u64),
}

impl Answered {
    pub fn frame(self, lane: u32, partition: u32, base_sequence: u64, credit_bytes: u32) -> Bytes {
        let frame = match self {
            Answered::Durable { count, base_offset, duplicate } => {
                let code = if duplicate { AckCode::Duplicate } else { AckCode::Durable };
                let item = AckItem {
                    lane,
                    partition,
                    base_sequence,
                    record_count: count,
                    stored_count: count,
                    base_offset,
                    code,
                    credit_bytes,
                };
                Acks { items: vec![item] }.to_frame(FRAME_BYTES_MAX_DEFAULT)
            }
            Answered::Refused(code, expected_sequence) => {
                let message = "as the test wants it".to_owned();
                let item = NackItem { lane, partition, base_sequence, expected_sequence, code, message };
                Nacks { items: vec![item] }.to_frame(FRAME_BYTES_MAX_DEFAULT)
            }
        };
        frame.unwrap()
    }
}

impl Log {
    pub fn create(&mut self, topic: &str, partitions: u32) {
        self.topics.insert(topic.to_owned(), (0..partitions).map(|_| Vec::new()).collect());
    }

    pub fn partitions(&self, topic: &str) -> Option<u32> {
        self.topics.get(topic).map(|partitions| partitions.len() as u32)
    }

    pub fn hello(&mut self, name: &str) -> (i64, i16) {
        if name.is_empty() {
            return (-1, -1);
        }
        let next = self.names.len() as i64;
        let id = *self.names.entry(name.to_owned()).or_insert(next);
        let epoch = self.epochs.entry(id).and_modify(|epoch| *epoch += 1).or_insert(0);
        (id, *epoch)
    }

    pub fn next_sequence(&self, id: i64, lane: u32) -> u64 {
        self.lanes.get(&(id, lane)).and_then(|marks| marks.last()).map_or(0, |mark| mark.base + mark.count as u64)
    }

    pub fn publish(&mut self, publish: &Publish) -> Answered {
        let Publish { producer_id, producer_epoch, lane, topic, partition, base_sequence, batch } = publish;
        self.append(*producer_id, *producer_epoch, *lane, topic, *partition, *base_sequence, batch, None, None)
    }

    #[allow(clippy::too_many_arguments)]
    pub fn append(
        &mut self,
        id: i64,
        epoch: i16,
        lane: u32,
        topic: &str,
        partition: u32,
        base: u64,
        batch: &[u8],
        refuse: Option<Code>,
        poison: Option<&[u8]>,
    ) -> Answered {
        let next = self.next_sequence(id, lane);
        if epoch < self.epochs[&id] {
            return Answered::Refused(Code::Fenced, next);
        }
        let view = RecordBatch::verify(batch).unwrap();
        let count = view.record_count();
        if base < next {
            self.duplicates += 1;
            let base_offset = self.lanes[&(id, lane)].iter().find(|mark| mark.base == base).map_or(-1, |mark| mark.base_offset);
            return Answered::Durable { count, base_offset, duplicate: true };
        }
        if base > next {
            return Answered::Refused(Code::SequenceGap, next);
        }
        let mut scratch = Vec::new();
        let first = view.records(&mut scratch).unwrap().next().unwrap().unwrap();
        if poison.is_some_and(|poison| first.value == Some(poison)) {
            return Answered::Refused(Code::RejectedByPipeline, next);
        }
        if let Some(code) = refuse {
            return Answered::Refused(code, next);
        }
        let max_timestamp = view.max_timestamp();
        let stored = &mut self.topics.get_mut(topic).unwrap()[partition as usize];
        let base_offset = stored.last().map_or(0, |last| last.next_offset);
        let mut bytes = batch.to_vec();
        patch_base_offset(&mut bytes, base_offset);
        stored.push(Stored { base_offset, next_offset: base_offset + count as i64, max_timestamp, bytes: bytes.into() });
        self.lanes.entry((id, lane)).or_default().push(Mark { base, count, base_offset });
        self.commits += 1;
        Answered::Durable { count, base_offset, duplicate: false }
    }

    /// The batch that holds an offset, the offset after it, and the high watermark.
    pub fn read(&self, topic: &str, partition: u32, offset: i64) -> Option<(Bytes, i64, i64)> {
        let stored = &self.topics.get(topic)?[partition as usize];
        let found = stored.iter().find(|batch| batch.next_offset > offset)?;
        Some((found.bytes.clone(), found.next_offset, stored.last()?.next_offset))
    }

    pub fn values(&self, topic: &str, partition: u32) -> Vec<Vec<u8>> {
        let (mut values, mut scratch) = (Vec::new(), Vec::new());
        for stored in &self.topics[topic][partition as usize] {
            for record in RecordBatch::verify(&stored.bytes).unwrap().records(&mut scratch).unwrap() {
                values.push(record.unwrap().value.unwrap().to_vec());
            }
        }
        values
    }

    fn ranges(&self, topic: &str) -> Vec<PartitionRange> {
        let range = |(partition, stored): (usize, &Vec<Stored>)| PartitionRange {
            partition: partition as u32,
            start_offset: 0,
            high_watermark: stored.last().map_or(0, |last| last.next_offset),
        };
        self.topics[topic].iter().enumerate().map(range).collect()
    }

    fn known(&self, topic: &str) -> Result<(), Refusal> {
        match self.topics.contains_key(topic) {
            true => Ok(()),
            false => Err(Refusal { code: Code::UnknownTopic, message: format!("there is no topic {topic}") }),
        }
    }

    fn find(&self, topic: &str, partition: u32, when: i64) -> FoundOffset {
        let stored = &self.topics[topic][partition as usize];
        let high_watermark = stored.last().map_or(0, |last| last.next_offset);
        let (offset, timestamp) = match when {
            WHEN_EARLIEST => (0, -1),
            WHEN_LATEST => (high_watermark, -1),
            when => {
                let found = stored.iter().find(|batch| batch.max_timestamp >= when);
                found.map_or((high_watermark, -1), |batch| (batch.base_offset, batch.max_timestamp))
            }
        };
        FoundOffset { partition, offset, timestamp }
    }

    pub fn admin(&mut self, request: Request) -> Result<Answer, Refusal> {
        Ok(match request {
            Request::CreateTopic { topic, .. } if self.topics.contains_key(&topic) => {
                return Err(Refusal { code: Code::TopicExists, message: "choose another name".into() });
            }
            Request::CreateTopic { topic, partitions, .. } => {
                self.create(&topic, partitions.max(1));
                Answer::TopicCreated { partitions: partitions.max(1) }
            }
            Request::DeleteTopic { topic } => {
                self.known(&topic)?;
                self.topics.remove(&topic);
                Answer::Done
            }
            Request::SetTopic { topic, .. } => {
                self.known(&topic)?;
                Answer::Done
            }
            Request::ListTopics => {
                Answer::Topics(self.topics.iter().map(|(topic, partitions)| (topic.clone(), partitions.len() as u32)).collect())
            }
            Request::DescribeTopic { topic } => {
                self.known(&topic)?;
                let pipeline = self.pipelines.get(&topic).cloned().unwrap_or_default();
                Answer::Topic(TopicDescription { partitions: self.ranges(&topic), topic, settings: Vec::new(), pipeline })
            }
            Request::ListOffsets { topic, partitions } => {
                self.known(&topic)?;
                Answer::Offsets(partitions.iter().map(|(partition, when)| self.find(&topic, *partition, *when)).collect())
            }
            Request::CommitOffsets { group, offsets } => {
                let group = self.groups.entry(group).or_default();
                group.extend(offsets.into_iter().map(|offset| ((offset.topic, offset.partition), offset.offset)));
                Answer::Done
            }
            Request::CommittedOffsets { group, partitions } => {
                let kept = self.groups.get(&group).cloned().unwrap_or_default();
                let asked = if partitions.is_empty() { kept.keys().cloned().collect() } else { partitions };
                let position = |(topic, partition): (String, u32)| {
                    let offset = kept.get(&(topic.clone(), partition)).copied().unwrap_or(-1);
                    GroupOffset { topic, partition, offset, metadata: String::new() }
                };
                Answer::GroupOffsets(asked.into_iter().map(position).collect())
            }
            Request::ListGroups => Answer::Groups(self.groups.keys().cloned().collect()),
            Request::DeleteGroup { group } => {
                self.groups.remove(&group);
                Answer::Done
            }
            Request::PutPlugin { component } => {
                self.plugins.push(component);
                Answer::Plugin { name: "plugin".into(), version: "1.0.0".into() }
            }
            Request::PutPluginPart { upload, last, part } => {
                self.uploads.entry(upload).or_default().extend_from_slice(&part);
                match last {
                    false => Answer::Done,
                    true => {
                        self.plugins.push(self.uploads.remove(&upload).unwrap().freeze());
                        Answer::Plugin { name: "plugin".into(), version: "1.0.0".into() }
                    }
                }
            }
            Request::AttachPipeline { topic, pipeline } => {
                self.pipelines.insert(topic, pipeline);
                Answer::Pipeline { revision: 3 }
            }
            Request::DetachPipeline { topic } => {
                self.pipelines.remove(&topic);
                Answer::Done
            }
            Request::DeletePlugin { .. } => Answer::Done,
            Request::ListPlugins => Answer::Json("[]".into()),
            // Larger than a frame: the answer comes in parts.
            Request::ListPipelines => Answer::Json(format!("[\"{}\"]", "x".repeat(3 << 20))),
            Request::Status
            | Request::StartBackup { .. }
            | Request::BackupStatus
            | Request::StopBackup
            | Request::ListDisks
            | Request::AddDisk { .. }
            | Request::ReplaceDisk { .. } => Answer::Json("{}".into()),
            Request::DrainDisk { .. } | Request::RemoveDisk { .. } => Answer::Done,
        })
    }
}
