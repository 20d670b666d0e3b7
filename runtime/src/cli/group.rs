//! `weir group`: where consumer groups stand, and how far behind.

use std::collections::HashMap;
use std::io::Write;

use clap::{Args, Subcommand};
use serde_json::json;

use super::table::table;
use super::{ConnectArgs, Exit, Failure};

#[derive(Debug, Args)]
pub(super) struct GroupArgs {
    #[command(subcommand)]
    command: GroupCommand,
}

#[derive(Debug, Subcommand)]
enum GroupCommand {
    /// Lists groups
    List {
        /// One JSON array
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        connect: ConnectArgs,
    },
    /// Shows a group's position and lag in every partition
    Describe {
        /// Its name
        group: String,
        /// One JSON array
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        connect: ConnectArgs,
    },
    /// Forgets a group's positions
    Delete {
        /// Its name
        group: String,
        #[command(flatten)]
        connect: ConnectArgs,
    },
}

pub(super) async fn run(args: GroupArgs) -> Result<(), Failure> {
    match args.command {
        GroupCommand::List { json, connect } => {
            let client = connect.connect().await?;
            let groups = client.admin().list_groups().await.map_err(|error| connect.failure(error))?;
            let mut out = std::io::stdout().lock();
            if json {
                writeln!(out, "{}", json!(groups))?;
            } else {
                groups.iter().try_for_each(|group| writeln!(out, "{group}"))?;
            }
            Ok(())
        }
        GroupCommand::Describe { group, json, connect } => describe(&group, json, &connect).await,
        GroupCommand::Delete { group, connect } => {
            let client = connect.connect().await?;
            client.admin().delete_group(&group).await.map_err(|error| connect.failure(error))?;
            writeln!(std::io::stdout().lock(), "deleted {group}")?;
            Ok(())
        }
    }
}

async fn describe(group: &str, json: bool, connect: &ConnectArgs) -> Result<(), Failure> {
    let client = connect.connect().await?;
    let admin = client.admin();
    let positions = admin.committed_offsets(group, &[]).await.map_err(|error| connect.failure(error))?;
    if positions.is_empty() {
        return Err(Failure::new(Exit::NotFound, format!("group {group:?} has no positions"))
            .next("weir group list shows the groups there are"));
    }
    let mut ends: HashMap<(String, u32), i64> = HashMap::new();
    for position in &positions {
        if ends.contains_key(&(position.topic.clone(), position.partition)) {
            continue;
        }
        let about = admin.describe_topic(&position.topic).await.map_err(|error| connect.failure(error))?;
        ends.extend(about.partitions.iter().map(|range| ((about.topic.clone(), range.partition), range.high_watermark)));
    }
    let mut out = std::io::stdout().lock();
    let end = |topic: &str, partition| ends.get(&(topic.to_owned(), partition)).copied().unwrap_or(-1);
    if json {
        let rows: Vec<_> = positions
            .iter()
            .map(|p| {
                let end = end(&p.topic, p.partition);
                json!({ "topic": p.topic, "partition": p.partition, "offset": p.offset, "high_watermark": end, "lag": (end - p.offset).max(0) })
            })
            .collect();
        writeln!(out, "{}", json!(rows))?;
        return Ok(());
    }
    let rows: Vec<_> = positions
        .iter()
        .map(|p| {
            let end = end(&p.topic, p.partition);
            [p.topic.clone(), p.partition.to_string(), p.offset.to_string(), end.to_string(), (end - p.offset).max(0).to_string()]
        })
        .collect();
    out.write_all(table(["TOPIC", "PARTITION", "OFFSET", "HIGH-WATERMARK", "LAG"], &rows).as_bytes())?;
    Ok(())
}
