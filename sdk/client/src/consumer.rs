//! The consumer: one subscription, its positions, and a new subscription at them where the connection is gone.
//!
//! Nothing is read ahead of the application but what the server's credit allows; the credit goes back as records are taken.

use std::{
    collections::{BTreeMap, VecDeque},
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_core::Stream;
use quinn::SendStream;
use weir_protocol::{
    Data, End, ErrorNotice, Frame, Kind, Message, ProtocolError, Start as WireStart, Subscribe, admin::GroupOffset,
    fetch::CreditReturn,
};

use crate::{
    Client, ClientError, ConsumerConfig, ConsumerRecord, Start,
    backoff::Backoff,
    client::Role,
    records::slice_records,
    session::{Frames, Session},
};

/// Whole batches of a partition as they are stored; the first may begin below `start_offset`.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct FetchedBatches {
    /// The partition.
    pub partition: u32,
    /// The offset after its last durable record, when this was read.
    pub high_watermark: i64,
    /// The first offset not seen before.
    pub start_offset: i64,
    /// The offset after the last of these records.
    pub next_offset: i64,
    /// The batches, one after the other.
    pub batches: Bytes,
}

/// A live subscription.
struct Subscribed {
    session: Arc<Session>,
    send: SendStream,
    frames: Frames,
    credit: CreditReturn,
}

/// What a fetch works on; it travels into the fetch's future and back, so that giving up a wait loses nothing.
struct Fetcher {
    client: Client,
    config: ConsumerConfig,
    /// The next offset of each partition to be fetched.
    positions: BTreeMap<u32, i64>,
    subscribed: Option<Subscribed>,
    /// Body bytes of the last DATA, taken by the application when it asks for more.
    unreturned: u32,
    ended: bool,
    backoff: Backoff,
}

type Fetched = Result<Option<FetchedBatches>, ClientError>;
type Fetching = Pin<Box<dyn Future<Output = (Box<Fetcher>, Fetched)> + Send>>;

/// Records of a topic, in order a partition.
pub struct Consumer {
    client: Client,
    topic: String,
    group: Option<String>,
    idle: Option<Box<Fetcher>>,
    fetching: Option<Fetching>,
    records: VecDeque<ConsumerRecord>,
    /// The offset after the last record the application took, a partition.
    taken: BTreeMap<u32, i64>,
    committed: BTreeMap<u32, i64>,
    high_watermarks: BTreeMap<u32, i64>,
}

impl Consumer {
    pub(crate) async fn start(client: Client, config: ConsumerConfig) -> Result<Consumer, ClientError> {
        let positions = starting_positions(&client, &config).await?;
        let backoff = Backoff::new(client.inner.config.backoff_max);
        let (topic, group) = (config.topic.clone(), config.group.clone());
        let mut fetcher = Fetcher {
            client: client.clone(),
            config,
            positions: positions.clone(),
            subscribed: None,
            unreturned: 0,
            ended: false,
            backoff,
        };
        fetcher.subscribe().await?;
        Ok(Consumer {
            client,
            topic,
            group,
            idle: Some(Box::new(fetcher)),
            fetching: None,
            records: VecDeque::new(),
            taken: positions.clone(),
            committed: positions,
            high_watermarks: BTreeMap::new(),
        })
    }

    /// The next record; `None` once a consumer that is not live has them all. After an error it is of no more use.
    pub async fn next(&mut self) -> Option<Result<ConsumerRecord, ClientError>> {
        poll_fn(|cx| self.poll_record(cx)).await
    }

    /// The next stored batches, unread: for load generators and forwarders. Not to be mixed with [`Consumer::next`].
    pub async fn next_batch(&mut self) -> Option<Result<FetchedBatches, ClientError>> {
        let fetched = poll_fn(|cx| self.poll_fetched(cx)).await;
        if let Some(Ok(batches)) = &fetched {
            self.taken.insert(batches.partition, batches.next_offset);
        }
        fetched
    }

    fn poll_record(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<ConsumerRecord, ClientError>>> {
        loop {
            if let Some(record) = self.records.pop_front() {
                self.taken.insert(record.partition, record.offset + 1);
                return Poll::Ready(Some(Ok(record)));
            }
            let batches = match ready!(self.poll_fetched(cx)) {
                Some(Ok(batches)) => batches,
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            };
            let FetchedBatches { partition, start_offset, .. } = batches;
            match slice_records(partition, batches.batches, start_offset, &mut self.records) {
                Ok(next_offset) if self.records.is_empty() => drop(self.taken.insert(partition, next_offset)),
                Ok(_) => {}
                Err(error) => {
                    self.records.clear();
                    (self.idle, self.fetching) = (None, None);
                    return Poll::Ready(Some(Err(error.into())));
                }
            }
        }
    }

    fn poll_fetched(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<FetchedBatches, ClientError>>> {
        if self.fetching.is_none() {
            let Some(mut fetcher) = self.idle.take() else { return Poll::Ready(None) };
            self.fetching = Some(Box::pin(async move {
                let fetched = fetcher.fetch().await;
                (fetcher, fetched)
            }));
        }
        let Some(fetching) = &mut self.fetching else { return Poll::Ready(None) };
        let (fetcher, fetched) = ready!(fetching.as_mut().poll(cx));
        self.fetching = None;
        match fetched {
            Ok(Some(batches)) => {
                self.idle = Some(fetcher);
                self.high_watermarks.insert(batches.partition, batches.high_watermark);
                Poll::Ready(Some(Ok(batches)))
            }
            Ok(None) => Poll::Ready(None),
            Err(error) => Poll::Ready(Some(Err(error))),
        }
    }

    /// Keeps the group's positions: after the last record taken, a partition. Durable when it returns.
    pub async fn commit(&mut self) -> Result<(), ClientError> {
        let Some(group) = self.group.clone() else {
            return Err(ClientError::Config {
                what: "group".to_owned(),
                reason: "only a consumer with a group can commit; set one".to_owned(),
            });
        };
        let news: BTreeMap<u32, i64> = self
            .taken
            .iter()
            .filter(|(partition, offset)| self.committed.get(partition) != Some(offset))
            .map(|(p, o)| (*p, *o))
            .collect();
        if news.is_empty() {
            return Ok(());
        }
        let position = |(partition, offset): (&u32, &i64)| GroupOffset {
            topic: self.topic.clone(),
            partition: *partition,
            offset: *offset,
            metadata: String::new(),
        };
        self.client.admin().commit_offsets(&group, news.iter().map(position).collect()).await?;
        self.committed.extend(news);
        Ok(())
    }

    /// The offset after the last record taken, a partition.
    pub fn positions(&self) -> &BTreeMap<u32, i64> {
        &self.taken
    }

    /// The offset after the last durable record, a partition, when it was last heard of.
    pub fn high_watermarks(&self) -> &BTreeMap<u32, i64> {
        &self.high_watermarks
    }
}

impl Stream for Consumer {
    type Item = Result<ConsumerRecord, ClientError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_record(cx)
    }
}

/// Offsets to begin at: the group's where it has one, else the configured start. All are numbers, so that a reconnect cannot move a `Latest`.
async fn starting_positions(client: &Client, config: &ConsumerConfig) -> Result<BTreeMap<u32, i64>, ClientError> {
    let admin = client.admin();
    let partitions = match &config.partitions {
        Some(partitions) => partitions.clone(),
        None => admin.describe_topic(&config.topic).await?.partitions.iter().map(|range| range.partition).collect(),
    };
    let mut positions = BTreeMap::new();
    if let Some(group) = &config.group {
        let asked: Vec<_> = partitions.iter().map(|partition| (config.topic.clone(), *partition)).collect();
        let committed = admin.committed_offsets(group, &asked).await?;
        let known = committed.into_iter().filter(|position| position.offset >= 0 && position.topic == config.topic);
        positions.extend(known.map(|position| (position.partition, position.offset)));
    }
    let open: Vec<_> =
        partitions.into_iter().filter(|p| !positions.contains_key(p)).map(|partition| (partition, config.start)).collect();
    if let Start::Offset(offset) = config.start {
        positions.extend(open.iter().map(|(partition, _)| (*partition, offset)));
    } else if !open.is_empty() {
        let found = admin.list_offsets(&config.topic, &open).await?;
        positions.extend(found.into_iter().map(|found| (found.partition, found.offset)));
    }
    Ok(positions)
}

impl Fetcher {
    /// The next DATA, over as many connections as it takes; `None` at the end of a consumer that is not live.
    async fn fetch(&mut self) -> Fetched {
        loop {
            if self.ended {
                return Ok(None);
            }
            match self.fetch_once().await {
                Ok(Some(batches)) => {
                    self.backoff.reset();
                    return Ok(Some(batches));
                }
                Ok(None) => self.ended = true,
                Err(error) if error.is_retryable() => {
                    tracing::debug!(%error, topic = self.config.topic, "subscribing again");
                    self.subscribed = None;
                    self.unreturned = 0;
                    tokio::time::sleep(self.backoff.next_pause()).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn fetch_once(&mut self) -> Fetched {
        if self.subscribed.is_none() {
            self.subscribe().await?;
        }
        let returned = std::mem::take(&mut self.unreturned);
        let Some(subscribed) = &mut self.subscribed else { return Ok(None) };
        let session = subscribed.session.clone();
        if let Some(credit) = subscribed.credit.on_consumed(returned) {
            let frame = credit.to_frame(session.welcome.frame_bytes_max)?;
            // A server that has sent its END takes no more credit: what it sent is still to be read.
            let _ = subscribed.send.write_chunk(frame).await;
        }
        let frame = subscribed.frames.next(&session.client, &session.connection).await?;
        match frame {
            Some(frame) => self.on_frame(&session, frame),
            None => Err(ClientError::Disconnected { reason: "the server ended the subscription".to_owned() }),
        }
    }

    fn on_frame(&mut self, session: &Session, frame: Frame) -> Fetched {
        match frame.kind {
            Kind::Data => self.on_data(Data::decode(frame.body)?).map(Some),
            Kind::End => {
                End::decode(frame.body)?;
                Ok(None)
            }
            Kind::Error => {
                let notice = ErrorNotice::decode(frame.body)?;
                Err(ClientError::refused(notice.code, notice.message, &session.producer_name))
            }
            found => Err(ProtocolError::UnexpectedKind { found, wanted: "DATA, END or ERROR" }.into()),
        }
    }

    fn on_data(&mut self, data: Data) -> Result<FetchedBatches, ClientError> {
        self.unreturned = data.body_bytes();
        let Some(position) = self.positions.get_mut(&data.partition) else {
            return Err(ProtocolError::BadValue { field: "data.partition", value: data.partition as i128 }.into());
        };
        let start_offset = *position;
        for batch in weir_batch::split_batches(&data.batches) {
            *position = (*position).max(batch?.next_offset());
        }
        Ok(FetchedBatches {
            partition: data.partition,
            high_watermark: data.high_watermark,
            start_offset,
            next_offset: *position,
            batches: data.batches,
        })
    }

    async fn subscribe(&mut self) -> Result<(), ClientError> {
        let session = self.client.inner.session(Role::General).await?;
        let (mut send, recv) = session.connection.open_bi().await.map_err(|error| self.client.inner.explain(&error))?;
        let subscribe = Subscribe {
            topic: self.config.topic.clone(),
            live: self.config.live,
            credit_bytes: self.config.credit_bytes,
            partitions: self.positions.iter().map(|(partition, offset)| (*partition, WireStart::Offset(*offset))).collect(),
        };
        let frame = subscribe.to_frame(session.welcome.frame_bytes_max)?;
        send.write_chunk(frame).await.map_err(|error| session.lost(&error))?;
        let frames = Frames::new(recv, session.welcome.frame_bytes_max);
        let credit = CreditReturn::new(self.config.credit_bytes);
        self.subscribed = Some(Subscribed { session, send, frames, credit });
        Ok(())
    }
}
