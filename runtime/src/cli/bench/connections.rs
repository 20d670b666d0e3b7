//! `weir bench connections` and `weir bench idle`: what a connection costs that says nothing, and what a node costs that nobody
//! talks to.

use std::path::Path;
use std::time::{Duration, Instant};

use weir_bench::profile::{Standby, address_changes, publish};
use weir_bench::{Host, Load, Report};

use super::node::{OwnNode, measuring};
use super::{BenchArgs, Failure, load};

/// Producers beside the idle connections.
const PRODUCERS: u32 = 16;
/// Connections that change their address.
const MOVING: u32 = 64;
/// After a burst: acknowledgements still on their way, the last watermark, allocations given back.
const SETTLE: Duration = Duration::from_secs(1);

pub(super) async fn run(args: &BenchArgs, dir: &Path) -> Result<Report, Failure> {
    let idle = args.connections;
    let load = Load { connections: PRODUCERS, ..load(args) };
    let host = Host::detect(Some(dir));
    let node = OwnNode::start(dir, args).await?;
    let created = node.client.admin().create_topic(&load.topic, load.partitions, Vec::new()).await;
    created.map_err(super::failed)?;
    let warm_up = Load { seconds: SETTLE, ..load.clone() };
    publish(&node.config, &warm_up, host.clone()).await.map_err(measuring)?;
    let publishing = || publish(&node.config, &load, host.clone());
    let alone = publishing().await.map_err(measuring)?;
    tokio::time::sleep(SETTLE).await;

    let before = node.usage()?;
    let standby = Standby::open(&node.config, idle).await.map_err(measuring)?;
    let handshaken = node.usage()?;
    tokio::time::sleep(SETTLE).await;
    let standing = node.usage()?;
    let idle_percent = idle_cpu_percent(&node, Duration::from_secs(args.seconds.min(5))).await?;
    let cpu = node.usage()?;
    let mut report = publishing().await.map_err(measuring)?;
    report.profile = "connections".to_owned();
    report.connections = idle;
    report.server_cost(cpu, node.usage()?);
    let alive = standby.alive();
    let survived = address_changes(&node.config, &load, MOVING).await.map_err(measuring)?;
    report.errors += alone.errors + u64::from(idle) - alive as u64;
    let cpu_seconds = (handshaken.cpu_seconds - before.cpu_seconds).max(0.01);
    for (name, value) in [
        ("rss_bytes_per_connection", standing.rss_bytes.saturating_sub(before.rss_bytes) as f64 / f64::from(idle)),
        ("handshakes_per_second", f64::from(idle) / standby.seconds),
        ("handshakes_per_server_core_second", f64::from(idle) / cpu_seconds),
        ("handshakes_repeated", f64::from(standby.repeated)),
        ("idle_cpu_percent", idle_percent),
        ("rate_with_idle_ratio", report.records_per_second / alone.records_per_second),
        ("survived_address_change", f64::from(survived)),
        ("changed_address", f64::from(MOVING)),
    ] {
        report.figures.insert(name, value);
    }
    drop(standby);
    node.stop().await?;
    Ok(report)
}

/// A node with no clients at all.
pub(super) async fn idle(args: &BenchArgs, dir: &Path) -> Result<Report, Failure> {
    let mut report = Report::new("idle", &load(args), Host::detect(Some(dir)));
    let node = OwnNode::start(dir, args).await?;
    node.client.close().await;
    tokio::time::sleep(SETTLE).await;
    let percent = idle_cpu_percent(&node, Duration::from_secs(args.seconds)).await?;
    report.figures.insert("idle_cpu_percent", percent);
    report.server_rss_bytes = Some(node.usage()?.rss_bytes);
    node.stop().await?;
    Ok(report)
}

/// Of one core.
async fn idle_cpu_percent(node: &OwnNode, during: Duration) -> Result<f64, Failure> {
    let (begin, before) = (Instant::now(), node.cpu_seconds_exact()?);
    tokio::time::sleep(during).await;
    Ok((node.cpu_seconds_exact()? - before) / begin.elapsed().as_secs_f64() * 100.0)
}
