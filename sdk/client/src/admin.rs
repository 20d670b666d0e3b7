//! Operations on topics, offsets, groups, plugins and pipelines.

use bytes::Bytes;
use weir_protocol::{
    Answer, FRAME_OVERHEAD_BYTES_MAX, Operation, ProtocolError, Request,
    admin::{FoundOffset, GroupOffset, TopicDescription, WHEN_EARLIEST, WHEN_LATEST},
};

use crate::{
    ClientError, Start,
    client::{Client, Role},
};

/// Items of one request that names partitions: far below any frame limit.
const ITEMS_PER_REQUEST: usize = 200;

/// Asks the server things. Waits for a connection; a question whose answer got lost is not repeated.
#[derive(Clone)]
pub struct Admin {
    client: Client,
}

/// Takes one kind of answer.
macro_rules! expect {
    ($answer:expr, $operation:expr, $pattern:pat => $value:expr) => {
        match $answer {
            $pattern => Ok($value),
            _ => Err(mismatch($operation)),
        }
    };
}

fn mismatch(operation: Operation) -> ClientError {
    ProtocolError::BadValue { field: "response", value: operation as i128 }.into()
}

impl Admin {
    pub(crate) fn new(client: Client) -> Admin {
        Admin { client }
    }

    async fn ask(&self, request: Request) -> Result<(Operation, Answer), ClientError> {
        let operation = request.operation();
        let session = self.client.inner.session(Role::General).await?;
        Ok((operation, session.request(request).await?))
    }

    async fn done(&self, request: Request) -> Result<(), ClientError> {
        let (operation, answer) = self.ask(request).await?;
        expect!(answer, operation, Answer::Done => ())
    }

    async fn json(&self, request: Request) -> Result<String, ClientError> {
        let (operation, answer) = self.ask(request).await?;
        expect!(answer, operation, Answer::Json(json) => json)
    }

    /// Makes a topic; 0 partitions: as many as the node's default. Answers how many it has.
    pub async fn create_topic(&self, topic: &str, partitions: u32, settings: Vec<(String, String)>) -> Result<u32, ClientError> {
        let (operation, answer) = self.ask(Request::CreateTopic { topic: topic.to_owned(), partitions, settings }).await?;
        expect!(answer, operation, Answer::TopicCreated { partitions } => partitions)
    }

    /// Changes settings of a topic; an empty value takes a setting away. Durable when it returns.
    pub async fn set_topic(&self, topic: &str, settings: Vec<(String, String)>) -> Result<(), ClientError> {
        self.done(Request::SetTopic { topic: topic.to_owned(), settings }).await
    }

    /// Deletes a topic and its records.
    pub async fn delete_topic(&self, topic: &str) -> Result<(), ClientError> {
        self.done(Request::DeleteTopic { topic: topic.to_owned() }).await
    }

    /// All topics this principal may see, with their partition counts.
    pub async fn list_topics(&self) -> Result<Vec<(String, u32)>, ClientError> {
        let (operation, answer) = self.ask(Request::ListTopics).await?;
        expect!(answer, operation, Answer::Topics(topics) => topics)
    }

    /// Settings, pipeline and partitions of a topic.
    pub async fn describe_topic(&self, topic: &str) -> Result<TopicDescription, ClientError> {
        let (operation, answer) = self.ask(Request::DescribeTopic { topic: topic.to_owned() }).await?;
        expect!(answer, operation, Answer::Topic(description) => description)
    }

    /// The offset each partition has at a start.
    pub async fn list_offsets(&self, topic: &str, partitions: &[(u32, Start)]) -> Result<Vec<FoundOffset>, ClientError> {
        let mut found = Vec::with_capacity(partitions.len());
        for part in partitions.chunks(ITEMS_PER_REQUEST) {
            let when = |start| match start {
                Start::Earliest => WHEN_EARLIEST,
                Start::Latest => WHEN_LATEST,
                Start::Timestamp(ms) => ms.max(0),
                Start::Offset(_) => WHEN_EARLIEST,
            };
            let asked = part.iter().map(|(partition, start)| (*partition, when(*start))).collect();
            let (operation, answer) = self.ask(Request::ListOffsets { topic: topic.to_owned(), partitions: asked }).await?;
            found.extend(expect!(answer, operation, Answer::Offsets(offsets) => offsets)?);
        }
        for (found, (_, start)) in found.iter_mut().zip(partitions) {
            if let Start::Offset(offset) = start {
                (found.offset, found.timestamp) = (*offset, -1);
            }
        }
        Ok(found)
    }

    /// Keeps a group's positions; durable when it returns.
    pub async fn commit_offsets(&self, group: &str, offsets: Vec<GroupOffset>) -> Result<(), ClientError> {
        for part in offsets.chunks(ITEMS_PER_REQUEST) {
            self.done(Request::CommitOffsets { group: group.to_owned(), offsets: part.to_vec() }).await?;
        }
        Ok(())
    }

    /// A group's positions; of nothing in particular: all it has.
    pub async fn committed_offsets(&self, group: &str, partitions: &[(String, u32)]) -> Result<Vec<GroupOffset>, ClientError> {
        let mut found = Vec::with_capacity(partitions.len());
        let whole: [&[_]; 1] = [&[]];
        let parts = partitions.chunks(ITEMS_PER_REQUEST).chain(whole.into_iter().filter(|_| partitions.is_empty()));
        for part in parts {
            let request = Request::CommittedOffsets { group: group.to_owned(), partitions: part.to_vec() };
            let (operation, answer) = self.ask(request).await?;
            found.extend(expect!(answer, operation, Answer::GroupOffsets(offsets) => offsets)?);
        }
        Ok(found)
    }

    /// Groups that have positions.
    pub async fn list_groups(&self) -> Result<Vec<String>, ClientError> {
        let (operation, answer) = self.ask(Request::ListGroups).await?;
        expect!(answer, operation, Answer::Groups(groups) => groups)
    }

    /// Forgets a group's positions.
    pub async fn delete_group(&self, group: &str) -> Result<(), ClientError> {
        self.done(Request::DeleteGroup { group: group.to_owned() }).await
    }

    /// Stores a plugin; a component over one frame goes in parts. Answers its name and version.
    pub async fn put_plugin(&self, component: impl Into<Bytes>) -> Result<(String, String), ClientError> {
        let mut rest: Bytes = component.into();
        let session = self.client.inner.session(Role::General).await?;
        let part_bytes = (session.welcome.frame_bytes_max - FRAME_OVERHEAD_BYTES_MAX) as usize;
        if rest.len() <= part_bytes {
            let answer = session.request(Request::PutPlugin { component: rest }).await?;
            return expect!(answer, Operation::PutPlugin, Answer::Plugin { name, version } => (name, version));
        }
        let upload = fastrand::u32(..);
        loop {
            let part = rest.split_to(rest.len().min(part_bytes));
            let last = rest.is_empty();
            let answer = session.request(Request::PutPluginPart { upload, last, part }).await?;
            if last {
                return expect!(answer, Operation::PutPluginPart, Answer::Plugin { name, version } => (name, version));
            }
            expect!(answer, Operation::PutPluginPart, Answer::Done => ())?;
        }
    }

    /// Stored plugins, JSON.
    pub async fn list_plugins(&self) -> Result<String, ClientError> {
        self.json(Request::ListPlugins).await
    }

    /// Deletes a plugin no pipeline uses.
    pub async fn delete_plugin(&self, name: &str, version: &str) -> Result<(), ClientError> {
        self.done(Request::DeletePlugin { name: name.to_owned(), version: version.to_owned() }).await
    }

    /// Attaches or replaces a topic's pipeline, given as JSON. Answers its revision.
    pub async fn attach_pipeline(&self, topic: &str, pipeline_json: &str) -> Result<u64, ClientError> {
        let request = Request::AttachPipeline { topic: topic.to_owned(), pipeline: pipeline_json.to_owned() };
        let (operation, answer) = self.ask(request).await?;
        expect!(answer, operation, Answer::Pipeline { revision } => revision)
    }

    /// Takes a topic's pipeline off.
    pub async fn detach_pipeline(&self, topic: &str) -> Result<(), ClientError> {
        self.done(Request::DetachPipeline { topic: topic.to_owned() }).await
    }

    /// All pipelines, JSON.
    pub async fn list_pipelines(&self) -> Result<String, ClientError> {
        self.json(Request::ListPipelines).await
    }

    /// Starts a backup into a directory of the node's machine, below its `backup.dir`; `keep` generations stay, 0: all. Answers as
    /// [`Admin::backup_status`] does, at once.
    pub async fn start_backup(&self, dir: &str, keep: u32) -> Result<String, ClientError> {
        self.json(Request::StartBackup { dir: dir.to_owned(), keep }).await
    }

    /// How far the running backup is, or what came of the last one, JSON.
    pub async fn backup_status(&self) -> Result<String, ClientError> {
        self.json(Request::BackupStatus).await
    }

    /// Stops the running backup; the generations made before stay.
    pub async fn stop_backup(&self) -> Result<String, ClientError> {
        self.json(Request::StopBackup).await
    }

    /// The node's disks, JSON.
    pub async fn list_disks(&self) -> Result<String, ClientError> {
        self.json(Request::ListDisks).await
    }

    /// Adds an empty directory of the node's machine as a disk. Answers the disk, JSON.
    pub async fn add_disk(&self, dir: &str) -> Result<String, ClientError> {
        self.json(Request::AddDisk { dir: dir.to_owned() }).await
    }

    /// Has everything that a disk holds moved to the others; with `drain` false, not any more.
    pub async fn drain_disk(&self, number: u8, drain: bool) -> Result<(), ClientError> {
        self.done(Request::DrainDisk { number, drain }).await
    }

    /// Puts an empty directory in the place of a disk, and lets go of that, unless it holds what no other has; with `force` that is
    /// lost. Answers the new disk, JSON.
    pub async fn replace_disk(&self, number: u8, dir: &str, force: bool) -> Result<String, ClientError> {
        self.json(Request::ReplaceDisk { number, force, dir: dir.to_owned() }).await
    }

    /// Lets go of a disk for good, unless it holds what no other has; with `force` that is lost.
    pub async fn remove_disk(&self, number: u8, force: bool) -> Result<(), ClientError> {
        self.done(Request::RemoveDisk { number, force }).await
    }

    /// How the node is, JSON.
    pub async fn status(&self) -> Result<String, ClientError> {
        self.json(Request::Status).await
    }
}
