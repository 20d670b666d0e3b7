//! REQUEST and RESPONSE: operations on topics, offsets, groups, plugins and pipelines, matched by a correlation number.
//!
//! An answer longer than a frame is cut into several RESPONSE frames; [`AnswerParts`] puts it together again.

use bytes::{BufMut, Bytes, BytesMut};

use crate::{
    Code, Frame, Kind, Message, ProtocolError,
    ack::read_refusal,
    frame::{FLAG_MORE, FRAME_HEADER_BYTES, put_frame},
    wire::{Reader, put_blob, put_list, put_message, put_str, put_text},
};

macro_rules! operations {
    ($($variant:ident = $number:literal, $name:literal;)*) => {
        /// What a REQUEST asks for.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        #[expect(missing_docs, reason = "the table in FORMAT.md describes each")]
        pub enum Operation { $($variant = $number,)* }

        impl Operation {
            /// Every operation there is.
            pub const ALL: &'static [Operation] = &[$(Operation::$variant,)*];

            /// The operation of a byte.
            pub fn from_number(number: u8) -> Option<Operation> {
                match number { $($number => Some(Operation::$variant),)* _ => None }
            }

            /// The name in FORMAT.md.
            pub fn name(self) -> &'static str {
                match self { $(Operation::$variant => $name,)* }
            }
        }
    };
}

operations! {
    CreateTopic = 1, "create_topic";
    DeleteTopic = 2, "delete_topic";
    ListTopics = 3, "list_topics";
    DescribeTopic = 4, "describe_topic";
    ListOffsets = 5, "list_offsets";
    CommitOffsets = 6, "commit_offsets";
    CommittedOffsets = 7, "committed_offsets";
    ListGroups = 8, "list_groups";
    DeleteGroup = 9, "delete_group";
    PutPlugin = 10, "put_plugin";
    ListPlugins = 11, "list_plugins";
    DeletePlugin = 12, "delete_plugin";
    AttachPipeline = 13, "attach_pipeline";
    DetachPipeline = 14, "detach_pipeline";
    ListPipelines = 15, "list_pipelines";
    Status = 16, "status";
    PutPluginPart = 17, "put_plugin_part";
    SetTopic = 18, "set_topic";
    StartBackup = 19, "start_backup";
    BackupStatus = 20, "backup_status";
    StopBackup = 21, "stop_backup";
    ListDisks = 22, "list_disks";
    AddDisk = 23, "add_disk";
    DrainDisk = 24, "drain_disk";
    ReplaceDisk = 25, "replace_disk";
    RemoveDisk = 26, "remove_disk";
}

/// For [`Request::ListOffsets`]: the high watermark.
pub const WHEN_LATEST: i64 = -1;
/// For [`Request::ListOffsets`]: the first offset there is.
pub const WHEN_EARLIEST: i64 = -2;

/// A position a consumer group keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupOffset {
    /// The topic.
    pub topic: String,
    /// Its partition.
    pub partition: u32,
    /// The offset to go on at; -1 in an answer: none.
    pub offset: i64,
    /// The group's own note.
    pub metadata: String,
}

/// A partition's range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionRange {
    /// The partition.
    pub partition: u32,
    /// Its first offset.
    pub start_offset: i64,
    /// The offset after its last durable record.
    pub high_watermark: i64,
}

/// Answer to [`Request::DescribeTopic`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicDescription {
    /// The topic.
    pub topic: String,
    /// Its settings.
    pub settings: Vec<(String, String)>,
    /// Its pipeline as JSON; empty: none.
    pub pipeline: String,
    /// Its partitions.
    pub partitions: Vec<PartitionRange>,
}

/// Answer to [`Request::ListOffsets`], one a partition asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoundOffset {
    /// The partition.
    pub partition: u32,
    /// The first offset at or after the time; the high watermark where there is none.
    pub offset: i64,
    /// That record's timestamp; -1 unknown or none.
    pub timestamp: i64,
}

/// A request's operation and arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the table in FORMAT.md describes each field")]
pub enum Request {
    CreateTopic { topic: String, partitions: u32, settings: Vec<(String, String)> },
    DeleteTopic { topic: String },
    ListTopics,
    DescribeTopic { topic: String },
    ListOffsets { topic: String, partitions: Vec<(u32, i64)> },
    CommitOffsets { group: String, offsets: Vec<GroupOffset> },
    CommittedOffsets { group: String, partitions: Vec<(String, u32)> },
    ListGroups,
    DeleteGroup { group: String },
    PutPlugin { component: Bytes },
    ListPlugins,
    DeletePlugin { name: String, version: String },
    AttachPipeline { topic: String, pipeline: String },
    DetachPipeline { topic: String },
    ListPipelines,
    Status,
    PutPluginPart { upload: u32, last: bool, part: Bytes },
    SetTopic { topic: String, settings: Vec<(String, String)> },
    StartBackup { dir: String, keep: u32 },
    BackupStatus,
    StopBackup,
    ListDisks,
    AddDisk { dir: String },
    DrainDisk { number: u8, drain: bool },
    ReplaceDisk { number: u8, force: bool, dir: String },
    RemoveDisk { number: u8, force: bool },
}

impl Request {
    /// Which operation it is.
    pub fn operation(&self) -> Operation {
        match self {
            Request::CreateTopic { .. } => Operation::CreateTopic,
            Request::DeleteTopic { .. } => Operation::DeleteTopic,
            Request::ListTopics => Operation::ListTopics,
            Request::DescribeTopic { .. } => Operation::DescribeTopic,
            Request::ListOffsets { .. } => Operation::ListOffsets,
            Request::CommitOffsets { .. } => Operation::CommitOffsets,
            Request::CommittedOffsets { .. } => Operation::CommittedOffsets,
            Request::ListGroups => Operation::ListGroups,
            Request::DeleteGroup { .. } => Operation::DeleteGroup,
            Request::PutPlugin { .. } => Operation::PutPlugin,
            Request::ListPlugins => Operation::ListPlugins,
            Request::DeletePlugin { .. } => Operation::DeletePlugin,
            Request::AttachPipeline { .. } => Operation::AttachPipeline,
            Request::DetachPipeline { .. } => Operation::DetachPipeline,
            Request::ListPipelines => Operation::ListPipelines,
            Request::Status => Operation::Status,
            Request::PutPluginPart { .. } => Operation::PutPluginPart,
            Request::SetTopic { .. } => Operation::SetTopic,
            Request::StartBackup { .. } => Operation::StartBackup,
            Request::BackupStatus => Operation::BackupStatus,
            Request::StopBackup => Operation::StopBackup,
            Request::ListDisks => Operation::ListDisks,
            Request::AddDisk { .. } => Operation::AddDisk,
            Request::DrainDisk { .. } => Operation::DrainDisk,
            Request::ReplaceDisk { .. } => Operation::ReplaceDisk,
            Request::RemoveDisk { .. } => Operation::RemoveDisk,
        }
    }

    fn decode(operation: Operation, body: &mut Reader) -> Result<Request, ProtocolError> {
        Ok(match operation {
            Operation::CreateTopic => Request::CreateTopic {
                topic: body.str("create_topic.topic")?,
                partitions: body.u32("create_topic.partitions")?,
                settings: read_settings(body)?,
            },
            Operation::DeleteTopic => Request::DeleteTopic { topic: body.str("delete_topic.topic")? },
            Operation::ListTopics => Request::ListTopics,
            Operation::DescribeTopic => Request::DescribeTopic { topic: body.str("describe_topic.topic")? },
            Operation::ListOffsets => Request::ListOffsets {
                topic: body.str("list_offsets.topic")?,
                partitions: body.list("list_offsets.partitions", 12, |body| {
                    Ok((body.u32("list_offsets.partition")?, body.i64("list_offsets.when")?))
                })?,
            },
            Operation::CommitOffsets => {
                Request::CommitOffsets { group: body.str("commit_offsets.group")?, offsets: read_group_offsets(body)? }
            }
            Operation::CommittedOffsets => Request::CommittedOffsets {
                group: body.str("committed_offsets.group")?,
                partitions: body.list("committed_offsets.partitions", 6, |body| {
                    Ok((body.str("committed_offsets.topic")?, body.u32("committed_offsets.partition")?))
                })?,
            },
            Operation::ListGroups => Request::ListGroups,
            Operation::DeleteGroup => Request::DeleteGroup { group: body.str("delete_group.group")? },
            Operation::PutPlugin => Request::PutPlugin { component: body.blob("put_plugin.component")? },
            Operation::ListPlugins => Request::ListPlugins,
            Operation::DeletePlugin => {
                Request::DeletePlugin { name: body.str("delete_plugin.name")?, version: body.str("delete_plugin.version")? }
            }
            Operation::AttachPipeline => Request::AttachPipeline {
                topic: body.str("attach_pipeline.topic")?,
                pipeline: body.text("attach_pipeline.pipeline")?,
            },
            Operation::DetachPipeline => Request::DetachPipeline { topic: body.str("detach_pipeline.topic")? },
            Operation::ListPipelines => Request::ListPipelines,
            Operation::Status => Request::Status,
            Operation::PutPluginPart => Request::PutPluginPart {
                upload: body.u32("put_plugin_part.upload")?,
                last: read_bool(body, "put_plugin_part.last")?,
                part: body.blob("put_plugin_part.part")?,
            },
            Operation::SetTopic => Request::SetTopic { topic: body.str("set_topic.topic")?, settings: read_settings(body)? },
            Operation::StartBackup => {
                Request::StartBackup { dir: body.str("start_backup.dir")?, keep: body.u32("start_backup.keep")? }
            }
            Operation::BackupStatus => Request::BackupStatus,
            Operation::StopBackup => Request::StopBackup,
            Operation::ListDisks => Request::ListDisks,
            Operation::AddDisk => Request::AddDisk { dir: body.text("add_disk.dir")? },
            Operation::DrainDisk => {
                Request::DrainDisk { number: body.u8("drain_disk.number")?, drain: read_bool(body, "drain_disk.drain")? }
            }
            Operation::ReplaceDisk => Request::ReplaceDisk {
                number: body.u8("replace_disk.number")?,
                force: read_bool(body, "replace_disk.force")?,
                dir: body.text("replace_disk.dir")?,
            },
            Operation::RemoveDisk => {
                Request::RemoveDisk { number: body.u8("remove_disk.number")?, force: read_bool(body, "remove_disk.force")? }
            }
        })
    }

    fn put(&self, out: &mut BytesMut) -> Result<(), ProtocolError> {
        match self {
            Request::CreateTopic { topic, partitions, settings } => {
                put_str(out, "create_topic.topic", topic)?;
                out.put_u32_le(*partitions);
                put_settings(out, settings)
            }
            Request::DeleteTopic { topic } | Request::DescribeTopic { topic } | Request::DetachPipeline { topic } => {
                put_str(out, "topic", topic)
            }
            Request::ListOffsets { topic, partitions } => {
                put_str(out, "list_offsets.topic", topic)?;
                put_list(out, "list_offsets.partitions", partitions, |out, (partition, when)| {
                    out.put_u32_le(*partition);
                    out.put_i64_le(*when);
                    Ok(())
                })
            }
            Request::CommitOffsets { group, offsets } => {
                put_str(out, "commit_offsets.group", group)?;
                put_group_offsets(out, offsets)
            }
            Request::CommittedOffsets { group, partitions } => {
                put_str(out, "committed_offsets.group", group)?;
                put_list(out, "committed_offsets.partitions", partitions, |out, (topic, partition)| {
                    put_str(out, "committed_offsets.topic", topic)?;
                    out.put_u32_le(*partition);
                    Ok(())
                })
            }
            Request::DeleteGroup { group } => put_str(out, "delete_group.group", group),
            Request::PutPlugin { component } => put_blob(out, "put_plugin.component", component),
            Request::DeletePlugin { name, version } => {
                put_str(out, "delete_plugin.name", name)?;
                put_str(out, "delete_plugin.version", version)
            }
            Request::AttachPipeline { topic, pipeline } => {
                put_str(out, "attach_pipeline.topic", topic)?;
                put_text(out, "attach_pipeline.pipeline", pipeline)
            }
            Request::PutPluginPart { upload, last, part } => {
                out.put_u32_le(*upload);
                out.put_u8(*last as u8);
                put_blob(out, "put_plugin_part.part", part)
            }
            Request::SetTopic { topic, settings } => {
                put_str(out, "set_topic.topic", topic)?;
                put_settings(out, settings)
            }
            Request::StartBackup { dir, keep } => {
                put_str(out, "start_backup.dir", dir)?;
                out.put_u32_le(*keep);
                Ok(())
            }
            Request::AddDisk { .. } | Request::ReplaceDisk { .. } | Request::DrainDisk { .. } | Request::RemoveDisk { .. } => {
                self.put_disk(out)
            }
            Request::ListTopics
            | Request::ListGroups
            | Request::ListPlugins
            | Request::ListPipelines
            | Request::Status
            | Request::BackupStatus
            | Request::StopBackup
            | Request::ListDisks => Ok(()),
        }
    }

    fn put_disk(&self, out: &mut BytesMut) -> Result<(), ProtocolError> {
        match self {
            Request::AddDisk { dir } => put_text(out, "add_disk.dir", dir),
            Request::ReplaceDisk { number, force, dir } => {
                out.put_u8(*number);
                out.put_u8(*force as u8);
                put_text(out, "replace_disk.dir", dir)
            }
            Request::DrainDisk { number, drain: flag } | Request::RemoveDisk { number, force: flag } => {
                out.put_u8(*number);
                out.put_u8(*flag as u8);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// A request and its number, chosen by the client and given back in the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestFrame {
    /// The number.
    pub correlation: u32,
    /// The request.
    pub request: Request,
}

impl Message for RequestFrame {
    const KIND: Kind = Kind::Request;

    fn decode(body: Bytes) -> Result<RequestFrame, ProtocolError> {
        let mut body = Reader::new(body);
        let correlation = body.u32("request.correlation")?;
        let number = body.u8("request.operation")?;
        let operation = Operation::from_number(number)
            .ok_or(ProtocolError::BadValue { field: "request.operation", value: number as i128 })?;
        let request = Request::decode(operation, &mut body)?;
        body.end("REQUEST")?;
        Ok(RequestFrame { correlation, request })
    }

    fn encode_body(&self, out: &mut BytesMut) -> Result<(), ProtocolError> {
        out.put_u32_le(self.correlation);
        out.put_u8(self.request.operation() as u8);
        self.request.put(out)
    }
}

/// What a successful operation answers.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the table in FORMAT.md describes each field")]
pub enum Answer {
    /// delete_topic, set_topic, commit_offsets, delete_group, delete_plugin, detach_pipeline, drain_disk, remove_disk, and
    /// put_plugin_part before the last.
    Done,
    TopicCreated {
        partitions: u32,
    },
    Topics(Vec<(String, u32)>),
    Topic(TopicDescription),
    Offsets(Vec<FoundOffset>),
    GroupOffsets(Vec<GroupOffset>),
    Groups(Vec<String>),
    Plugin {
        name: String,
        version: String,
    },
    Pipeline {
        revision: u64,
    },
    /// list_plugins, list_pipelines, status, start_backup, backup_status, stop_backup, list_disks, add_disk, replace_disk.
    Json(String),
}

impl Answer {
    /// Reads the answer of an operation.
    pub fn decode(operation: Operation, body: Bytes) -> Result<Answer, ProtocolError> {
        let part_only = operation == Operation::PutPluginPart && body.is_empty();
        let mut body = Reader::new(body);
        let answer = match operation {
            Operation::CreateTopic => Answer::TopicCreated { partitions: body.u32("answer.partitions")? },
            Operation::ListTopics => Answer::Topics(
                body.list("answer.topics", 6, |body| Ok((body.str("answer.topic")?, body.u32("answer.partitions")?)))?,
            ),
            Operation::DescribeTopic => Answer::Topic(read_description(&mut body)?),
            Operation::ListOffsets => Answer::Offsets(body.list("answer.offsets", 20, |body| {
                Ok(FoundOffset {
                    partition: body.u32("answer.partition")?,
                    offset: body.i64("answer.offset")?,
                    timestamp: body.i64("answer.timestamp")?,
                })
            })?),
            Operation::CommittedOffsets => Answer::GroupOffsets(read_group_offsets(&mut body)?),
            Operation::ListGroups => Answer::Groups(body.list("answer.groups", 2, |body| body.str("answer.group"))?),
            Operation::PutPluginPart if part_only => Answer::Done,
            Operation::PutPlugin | Operation::PutPluginPart => {
                Answer::Plugin { name: body.str("answer.name")?, version: body.str("answer.version")? }
            }
            Operation::AttachPipeline => Answer::Pipeline { revision: body.u64("answer.revision")? },
            Operation::ListPlugins
            | Operation::ListPipelines
            | Operation::Status
            | Operation::StartBackup
            | Operation::BackupStatus
            | Operation::StopBackup
            | Operation::ListDisks
            | Operation::AddDisk
            | Operation::ReplaceDisk => Answer::Json(body.text("answer.json")?),
            Operation::DeleteTopic
            | Operation::DrainDisk
            | Operation::RemoveDisk
            | Operation::SetTopic
            | Operation::CommitOffsets
            | Operation::DeleteGroup
            | Operation::DeletePlugin
            | Operation::DetachPipeline => Answer::Done,
        };
        body.end("RESPONSE")?;
        Ok(answer)
    }

    fn put(&self, out: &mut BytesMut) -> Result<(), ProtocolError> {
        match self {
            Answer::Done => Ok(()),
            Answer::TopicCreated { partitions } => {
                out.put_u32_le(*partitions);
                Ok(())
            }
            Answer::Topics(topics) => put_list(out, "answer.topics", topics, |out, (topic, partitions)| {
                put_str(out, "answer.topic", topic)?;
                out.put_u32_le(*partitions);
                Ok(())
            }),
            Answer::Topic(description) => put_description(out, description),
            Answer::Offsets(offsets) => put_list(out, "answer.offsets", offsets, |out, found| {
                out.put_u32_le(found.partition);
                out.put_i64_le(found.offset);
                out.put_i64_le(found.timestamp);
                Ok(())
            }),
            Answer::GroupOffsets(offsets) => put_group_offsets(out, offsets),
            Answer::Groups(groups) => put_list(out, "answer.groups", groups, |out, group| put_str(out, "answer.group", group)),
            Answer::Plugin { name, version } => {
                put_str(out, "answer.name", name)?;
                put_str(out, "answer.version", version)
            }
            Answer::Pipeline { revision } => {
                out.put_u64_le(*revision);
                Ok(())
            }
            Answer::Json(json) => put_text(out, "answer.json", json),
        }
    }
}

/// Why an operation was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The reason.
    pub code: Code,
    /// What to do about it.
    pub message: String,
}

/// One RESPONSE frame: a whole answer, or a part of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResponseFrame {
    /// Of the request.
    pub correlation: u32,
    /// The answer goes on in the next frame of this correlation.
    pub more: bool,
    /// Bytes of the answer, or why there is none.
    pub result: Result<Bytes, Refusal>,
}

/// Bytes of a RESPONSE before its answer, header included.
const RESPONSE_PREFIX_BYTES: usize = FRAME_HEADER_BYTES + 6;

impl ResponseFrame {
    /// Reads a RESPONSE.
    pub fn decode(frame: Frame) -> Result<ResponseFrame, ProtocolError> {
        if frame.kind != Kind::Response {
            return Err(ProtocolError::UnexpectedKind { found: frame.kind, wanted: "RESPONSE" });
        }
        let more = frame.flags & FLAG_MORE != 0;
        let mut ok = Reader::new(frame.body.clone());
        let correlation = ok.u32("response.correlation")?;
        if Code::from_number(ok.u16("response.code")?) == Code::Ok {
            return Ok(ResponseFrame { correlation, more, result: Ok(ok.rest()) });
        }
        let mut body = Reader::new(frame.body.slice(4..));
        let refusal = Refusal { code: read_refusal(&mut body, "response.code")?, message: body.str("response.message")? };
        body.end("RESPONSE")?;
        Ok(ResponseFrame { correlation, more: false, result: Err(refusal) })
    }
}

/// Appends the RESPONSE to a request, in as many frames as it takes.
pub fn encode_response(
    correlation: u32,
    result: &Result<Answer, Refusal>,
    frame_bytes_max: u32,
    out: &mut BytesMut,
) -> Result<(), ProtocolError> {
    let answer = match result {
        Ok(answer) => answer,
        Err(refusal) => {
            return put_frame(Kind::Response, 0, frame_bytes_max, out, |out| {
                out.put_u32_le(correlation);
                out.put_u16_le(refusal.code.number());
                put_message(out, &refusal.message);
                Ok(())
            });
        }
    };
    let mut body = BytesMut::new();
    answer.put(&mut body)?;
    let room = (frame_bytes_max as usize).saturating_sub(RESPONSE_PREFIX_BYTES).max(1);
    let start = out.len();
    loop {
        let part = body.split_to(body.len().min(room));
        let flags = if body.is_empty() { 0 } else { FLAG_MORE };
        let put = put_frame(Kind::Response, flags, frame_bytes_max, out, |out| {
            out.put_u32_le(correlation);
            out.put_u16_le(Code::Ok.number());
            out.put_slice(&part);
            Ok(())
        });
        if put.is_err() {
            out.truncate(start);
            return put;
        }
        if body.is_empty() {
            return Ok(());
        }
    }
}

/// Puts an answer's parts together, up to a limit.
#[derive(Debug, Default)]
pub struct AnswerParts {
    bytes: BytesMut,
}

/// The longest answer a client puts together.
pub const ANSWER_BYTES_MAX: usize = 64 << 20;

impl AnswerParts {
    /// Takes a part; answers the whole once it is the last.
    pub fn on_part(&mut self, more: bool, part: Bytes) -> Result<Option<Bytes>, ProtocolError> {
        if !more && self.bytes.is_empty() {
            return Ok(Some(part));
        }
        let bytes = self.bytes.len() + part.len();
        if bytes > ANSWER_BYTES_MAX {
            return Err(ProtocolError::TooLong { field: "response.answer", bytes, max: ANSWER_BYTES_MAX });
        }
        self.bytes.extend_from_slice(&part);
        Ok((!more).then(|| self.bytes.split().freeze()))
    }
}

fn read_bool(body: &mut Reader, field: &'static str) -> Result<bool, ProtocolError> {
    match body.u8(field)? {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(ProtocolError::BadValue { field, value: other as i128 }),
    }
}

fn read_settings(body: &mut Reader) -> Result<Vec<(String, String)>, ProtocolError> {
    body.list("settings", 4, |body| Ok((body.str("settings.key")?, body.str("settings.value")?)))
}

fn put_settings(out: &mut BytesMut, settings: &[(String, String)]) -> Result<(), ProtocolError> {
    put_list(out, "settings", settings, |out, (key, value)| {
        put_str(out, "settings.key", key)?;
        put_str(out, "settings.value", value)
    })
}

fn read_group_offsets(body: &mut Reader) -> Result<Vec<GroupOffset>, ProtocolError> {
    body.list("offsets", 16, |body| {
        Ok(GroupOffset {
            topic: body.str("offsets.topic")?,
            partition: body.u32("offsets.partition")?,
            offset: body.i64("offsets.offset")?,
            metadata: body.str("offsets.metadata")?,
        })
    })
}

fn put_group_offsets(out: &mut BytesMut, offsets: &[GroupOffset]) -> Result<(), ProtocolError> {
    put_list(out, "offsets", offsets, |out, offset| {
        put_str(out, "offsets.topic", &offset.topic)?;
        out.put_u32_le(offset.partition);
        out.put_i64_le(offset.offset);
        put_str(out, "offsets.metadata", &offset.metadata)
    })
}

fn read_description(body: &mut Reader) -> Result<TopicDescription, ProtocolError> {
    Ok(TopicDescription {
        topic: body.str("answer.topic")?,
        settings: read_settings(body)?,
        pipeline: body.text("answer.pipeline")?,
        partitions: body.list("answer.partitions", 20, |body| {
            Ok(PartitionRange {
                partition: body.u32("answer.partition")?,
                start_offset: body.i64("answer.start_offset")?,
                high_watermark: body.i64("answer.high_watermark")?,
            })
        })?,
    })
}

fn put_description(out: &mut BytesMut, description: &TopicDescription) -> Result<(), ProtocolError> {
    put_str(out, "answer.topic", &description.topic)?;
    put_settings(out, &description.settings)?;
    put_text(out, "answer.pipeline", &description.pipeline)?;
    put_list(out, "answer.partitions", &description.partitions, |out, range| {
        out.put_u32_le(range.partition);
        out.put_i64_le(range.start_offset);
        out.put_i64_le(range.high_watermark);
        Ok(())
    })
}
