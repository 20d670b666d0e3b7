//! `weir bench streams`: many partitions, what they cost the node, and how soon it serves again after a SIGKILL.

use std::path::Path;
use std::time::Instant;

use weir_bench::Host;
use weir_bench::Report;
use weir_bench::profile::Streams;

use super::node::{OwnNode, measuring};
use super::{BenchArgs, Failure, load};

pub(super) async fn run(args: &BenchArgs, dir: &Path) -> Result<Report, Failure> {
    let load = load(args);
    let streams = Streams::of(&load);
    let node = OwnNode::start(dir, args).await?;
    let empty = node.usage()?;
    let creating = Instant::now();
    streams.create(&node.client).await.map_err(measuring)?;
    let create_seconds = creating.elapsed().as_secs_f64();
    let created = node.usage()?;
    let mut report = streams.publish(&node.config, &load, Host::detect(Some(dir))).await.map_err(measuring)?;
    report.server_cost(created, node.usage()?);
    let per_partition = |bytes: u64| bytes.saturating_sub(empty.rss_bytes) as f64 / f64::from(load.partitions);
    report.figures.insert("create_seconds", create_seconds);
    report.figures.insert("rss_created_bytes_per_partition", per_partition(created.rss_bytes));
    report.figures.insert("open_files", node.open_files()? as f64);
    report.figures.insert("data_files", node.data_files()? as f64);
    let (node, restart_seconds) = node.crash_and_restart().await?;
    let recovered = node.usage()?;
    let stored = streams.stored(&node.client).await.map_err(measuring)?;
    report.figures.insert("restart_seconds", restart_seconds);
    report.figures.insert("rss_restarted_bytes_per_partition", per_partition(recovered.rss_bytes));
    report.figures.insert("records_missing", report.records.saturating_sub(stored) as f64);
    // More than was acknowledged would be as wrong: nothing was under way when it was killed.
    report.errors += u64::from(stored != report.records);
    node.stop().await?;
    Ok(report)
}
