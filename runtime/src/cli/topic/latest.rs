//! `weir topic latest`: the last value of a key.
//!
//! A key's records lie in one partition, so that one is read from its start and the last match counts: as much as a consumer
//! would read, no more. Compaction keeps that short.

use std::io::Write;

use clap::Args;
use weir_batch::partition_for_key;
use weir_client::{Client, ConsumerConfig, ConsumerRecord, Start};

use super::super::format::{Format, RecordView};
use super::super::{ConnectArgs, Exit, Failure};

#[derive(Debug, Args)]
pub(super) struct LatestArgs {
    /// The topic
    topic: String,
    /// The key
    #[arg(value_name = "KEY")]
    record_key: String,
    /// One JSON object, with offset and timestamp
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

pub(super) async fn run(args: LatestArgs) -> Result<(), Failure> {
    let client = args.connect.connect().await?;
    let about = client.admin().describe_topic(&args.topic).await.map_err(|error| args.connect.failure(error))?;
    let partition = partition_for_key(args.record_key.as_bytes(), (about.partitions.len() as u32).max(1));
    let last = last_record(&client, &args, partition).await?;
    let Some((record, value)) = last.as_ref().and_then(|record| Some((record, record.value.as_ref()?))) else {
        return Err(Failure::new(Exit::Failed, format!("topic {} has no value of key {:?}", args.topic, args.record_key)));
    };
    let mut out = std::io::stdout().lock();
    if args.json {
        let headers: Vec<(&[u8], Option<&[u8]>)> = record.headers().into_iter().collect();
        let view = RecordView {
            topic: &args.topic,
            partition,
            offset: record.offset,
            timestamp: record.timestamp,
            key: record.key.as_deref(),
            value: Some(value),
            headers: &headers,
        };
        Format::Json.write(&mut out, &view)?;
        return Ok(());
    }
    out.write_all(value)?;
    out.write_all(b"\n")?;
    Ok(())
}

/// The last record of the key: a tombstone too.
async fn last_record(client: &Client, args: &LatestArgs, partition: u32) -> Result<Option<ConsumerRecord>, Failure> {
    let mut config = ConsumerConfig::new(&args.topic);
    config.partitions = Some(vec![partition]);
    config.start = Start::Earliest;
    config.live = false;
    let mut consumer = client.consumer(config).await.map_err(|error| args.connect.failure(error))?;
    let mut last = None;
    while let Some(record) = consumer.next().await {
        let record = record.map_err(|error| args.connect.failure(error))?;
        if record.key.as_deref() == Some(args.record_key.as_bytes()) {
            last = Some(record);
        }
    }
    Ok(last)
}
