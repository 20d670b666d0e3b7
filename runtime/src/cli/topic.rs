//! `weir topic`: create, change, delete, list, describe, and the last value of a key.

mod latest;

use std::io::Write;

use clap::{Args, Subcommand};
use serde_json::json;

use super::table::table;
use super::{ConnectArgs, Failure};

#[derive(Debug, Args)]
pub(super) struct TopicArgs {
    #[command(subcommand)]
    command: TopicCommand,
}

#[derive(Debug, Subcommand)]
enum TopicCommand {
    /// Creates topics
    Create {
        /// Their names
        #[arg(required = true, value_name = "TOPIC")]
        topics: Vec<String>,
        /// Partitions of each; without it the node's default
        #[arg(short, long, default_value_t = 0, hide_default_value = true)]
        partitions: u32,
        /// A setting, e.g. --set retention.ms=7d; may be repeated
        #[arg(short, long = "set", visible_alias = "config", value_name = "KEY=VALUE", value_parser = super::parse_pair)]
        settings: Vec<(String, String)>,
        /// No failure if a topic exists already
        #[arg(long)]
        if_not_exists: bool,
        #[command(flatten)]
        connect: ConnectArgs,
    },
    /// Changes settings of a topic
    Set {
        /// Its name
        topic: String,
        /// Settings, e.g. retention.ms=7d; KEY= takes a setting away, so that the node's default counts again
        #[arg(required = true, value_name = "KEY=VALUE", value_parser = super::parse_pair)]
        settings: Vec<(String, String)>,
        #[command(flatten)]
        connect: ConnectArgs,
    },
    /// Prints the last value of a key; reads the key's partition from its start
    Latest(latest::LatestArgs),
    /// Deletes topics and their records
    Delete {
        /// Their names
        #[arg(required = true, value_name = "TOPIC")]
        topics: Vec<String>,
        #[command(flatten)]
        connect: ConnectArgs,
    },
    /// Lists topics
    List {
        /// One JSON array
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        connect: ConnectArgs,
    },
    /// Shows settings, pipeline and the range of offsets of each partition
    Describe {
        /// Its name
        topic: String,
        /// One JSON object
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        connect: ConnectArgs,
    },
}

pub(super) async fn run(args: TopicArgs) -> Result<(), Failure> {
    match args.command {
        TopicCommand::Create { topics, partitions, settings, if_not_exists, connect } => {
            create(&topics, partitions, &settings, if_not_exists, &connect).await
        }
        TopicCommand::Delete { topics, connect } => {
            let client = connect.connect().await?;
            for topic in &topics {
                client.admin().delete_topic(topic).await.map_err(|error| connect.failure(error))?;
                writeln!(std::io::stdout().lock(), "deleted {topic}")?;
            }
            Ok(())
        }
        TopicCommand::Set { topic, settings, connect } => {
            let client = connect.connect().await?;
            client.admin().set_topic(&topic, settings).await.map_err(|error| connect.failure(error))?;
            writeln!(std::io::stdout().lock(), "changed {topic}")?;
            Ok(())
        }
        TopicCommand::Latest(args) => latest::run(args).await,
        TopicCommand::List { json, connect } => list(json, &connect).await,
        TopicCommand::Describe { topic, json, connect } => describe(&topic, json, &connect).await,
    }
}

async fn create(
    topics: &[String],
    partitions: u32,
    settings: &[(String, String)],
    if_not_exists: bool,
    connect: &ConnectArgs,
) -> Result<(), Failure> {
    let client = connect.connect().await?;
    for topic in topics {
        match client.admin().create_topic(topic, partitions, settings.to_vec()).await.map_err(|error| connect.failure(error)) {
            Ok(partitions) => writeln!(std::io::stdout().lock(), "created {topic} with {partitions} partitions")?,
            Err(failure) if if_not_exists && failure.exit() == super::Exit::Exists => {
                writeln!(std::io::stdout().lock(), "{topic} exists")?;
            }
            Err(failure) => return Err(failure),
        }
    }
    Ok(())
}

async fn list(json: bool, connect: &ConnectArgs) -> Result<(), Failure> {
    let client = connect.connect().await?;
    let topics = client.admin().list_topics().await.map_err(|error| connect.failure(error))?;
    let mut out = std::io::stdout().lock();
    if json {
        let topics: Vec<_> = topics.iter().map(|(topic, count)| json!({ "topic": topic, "partitions": count })).collect();
        writeln!(out, "{}", json!(topics))?;
    } else {
        let rows: Vec<_> = topics.into_iter().map(|(topic, count)| [topic, count.to_string()]).collect();
        out.write_all(table(["TOPIC", "PARTITIONS"], &rows).as_bytes())?;
    }
    Ok(())
}

async fn describe(topic: &str, json: bool, connect: &ConnectArgs) -> Result<(), Failure> {
    let client = connect.connect().await?;
    let about = client.admin().describe_topic(topic).await.map_err(|error| connect.failure(error))?;
    let pipeline = match about.pipeline.as_str() {
        "" => serde_json::Value::Null,
        text => super::parse_answer("pipeline", text)?,
    };
    let mut out = std::io::stdout().lock();
    if json {
        let partitions: Vec<_> = about
            .partitions
            .iter()
            .map(|range| json!({ "partition": range.partition, "start_offset": range.start_offset, "high_watermark": range.high_watermark }))
            .collect();
        let settings: serde_json::Map<_, _> = about.settings.into_iter().map(|(key, value)| (key, value.into())).collect();
        let object = json!({ "topic": about.topic, "settings": settings, "pipeline": pipeline, "partitions": partitions });
        writeln!(out, "{object}")?;
        return Ok(());
    }
    let records: i64 = about.partitions.iter().map(|range| range.high_watermark - range.start_offset).sum();
    writeln!(out, "topic     {}\nrecords   {records}", about.topic)?;
    for (key, value) in &about.settings {
        writeln!(out, "setting   {key}={value}")?;
    }
    let pipeline = if pipeline.is_null() { "none".to_owned() } else { pipeline.to_string() };
    writeln!(out, "pipeline  {pipeline}\n")?;
    let rows: Vec<_> = about
        .partitions
        .iter()
        .map(|range| [range.partition.to_string(), range.start_offset.to_string(), range.high_watermark.to_string()])
        .collect();
    out.write_all(table(["PARTITION", "START", "HIGH-WATERMARK"], &rows).as_bytes())?;
    Ok(())
}
