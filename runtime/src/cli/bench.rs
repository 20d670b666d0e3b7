//! `weir bench`: starts a node where none is named, drives it with a profile of `weir-bench`, and prints one result.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use weir_bench::floor::{Transport, durable_writes, raw_quic};
use weir_bench::{Floor, Host, Load, Report, Usage, profile};
use weir_client::{Client, ClientConfig};

use super::{ConnectArgs, Exit, Failure};
use crate::child::{ChildNode, Site};
use crate::config::{Config, Sources};
use crate::serve::log_config;

/// The durable writes of the throughput floor: about what the log gathers in one commit under load.
const FLOOR_CHUNK_BYTES: usize = 1 << 20;
/// How long each floor is measured.
const FLOOR_TIME: Duration = Duration::from_secs(2);
/// A child node that does not answer by then does not start.
const READY: Duration = Duration::from_secs(30);
/// Waiting producers of the storage profile, where --producers does not say.
const STORAGE_PRODUCERS: u32 = 256;
/// What the child node is allowed for a graceful end.
const STOP: Duration = Duration::from_secs(15);

#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    /// What is measured
    #[arg(value_enum)]
    profile: Profile,
    /// Ends after so many records instead of after --seconds
    #[arg(long)]
    records: Option<u64>,
    /// Ends after so long
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Bytes of a record's value
    #[arg(long, default_value_t = 256, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..))]
    record_size: u32,
    /// Records of a batch; default 256 (1 for latency and storage)
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    batch: Option<u32>,
    /// QUIC connections
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
    /// Producers (consumers for consume) a connection; default 1 (256 in all for storage)
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    producers: Option<u32>,
    /// Un-acknowledged batches a producer
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    in_flight: u16,
    /// Records a second over all producers, for latency
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    rate: u64,
    /// Partitions of the topic
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    partitions: u32,
    /// Batches are compressed by the producer
    #[arg(long)]
    zstd: bool,
    /// Directory for the node's data and the disk floor; without it a temporary one
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Overrides a setting of the node that is started; may be repeated
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    overrides: Vec<String>,
    /// Leaves the floors out
    #[arg(long)]
    no_floors: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
    /// Measures the node at --addr, with --certs, instead of one of its own
    #[arg(long)]
    remote: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Profile {
    /// Throughput: every lane full
    Publish,
    /// Throughput of reading from the beginning
    Consume,
    /// Publish to acknowledgement at a fixed rate, open loop
    Latency,
    /// The log engine alone, without network or broker: waiting producers, then recovery
    Storage,
    /// The disk alone: durable writes one after the other
    Disk,
    /// The network path alone: a raw QUIC stream and echo
    Quic,
}

pub(super) async fn run(args: BenchArgs) -> Result<(), Failure> {
    let temporary = match &args.dir {
        Some(_) => None,
        None => Some(tempfile::Builder::new().prefix("weir-bench-").tempdir().map_err(|error| {
            Failure::new(Exit::Failed, format!("cannot make a temporary directory: {error}; name one with --dir"))
        })?),
    };
    let dir = args.dir.clone().or_else(|| temporary.as_ref().map(|dir| dir.path().to_owned())).unwrap_or_default();
    std::fs::create_dir_all(&dir)
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot make {}: {error}; name another --dir", dir.display())))?;
    let report = match args.profile {
        Profile::Disk | Profile::Quic => floor_alone(&args, &dir).await?,
        Profile::Storage => storage(&args, &dir).await?,
        _ if args.remote => remote(&args).await?,
        _ => own_node(&args, &dir).await?,
    };
    let mut out = std::io::stdout().lock();
    if args.json {
        let value = serde_json::to_string(&report).map_err(|error| Failure::new(Exit::Failed, error))?;
        writeln!(out, "{value}")?;
    } else {
        out.write_all(report.to_table().as_bytes())?;
    }
    Ok(())
}

fn load(args: &BenchArgs) -> Load {
    let latency = args.profile == Profile::Latency;
    let storage = args.profile == Profile::Storage;
    Load {
        topic: format!("bench-{:08x}", fastrand::u32(..)),
        partitions: args.partitions,
        records: args.records,
        seconds: Duration::from_secs(args.seconds),
        record_bytes: args.record_size as usize,
        batch_records: args.batch.unwrap_or(if latency || storage { 1 } else { 256 }),
        connections: if storage { 1 } else { args.connections },
        producers: args.producers.unwrap_or(if storage { STORAGE_PRODUCERS } else { 1 }),
        in_flight: args.in_flight,
        rate: latency.then_some(args.rate),
        zstd: args.zstd,
    }
}

/// Starts a node in the directory, measures it, stops it.
async fn own_node(args: &BenchArgs, dir: &Path) -> Result<Report, Failure> {
    let site_dir = dir.join(format!("node-{}", std::process::id()));
    let site = Site::create(&site_dir, &["admin"], &further(&args.overrides)?)?;
    let addr = site.addr.to_string();
    let config = site.client_config("admin")?;
    let mut node = site.start()?;
    let client = node.ready(READY, &config).await?;
    let measured = measure(args, &client, &config, &addr, Some((&node, dir))).await;
    let stopped = node.stop(STOP).await;
    let _ = std::fs::remove_dir_all(&site_dir);
    let mut report = measured?;
    stopped.map_err(|error| Failure::new(Exit::Failed, format!("cannot stop the node: {error}")))?;
    if !args.no_floors {
        report.add_floors(floors(args, dir).await?);
    }
    Ok(report)
}

/// Measures a node that somebody else runs: its costs and its disk are not ours to read.
async fn remote(args: &BenchArgs) -> Result<Report, Failure> {
    let config = args.connect.config()?;
    let client = args.connect.connect().await?;
    measure(args, &client, &config, &args.connect.addr, None).await
}

/// Creates the topic, runs the profile, deletes the topic.
async fn measure(
    args: &BenchArgs,
    client: &Client,
    config: &ClientConfig,
    addr: &str,
    node: Option<(&ChildNode, &Path)>,
) -> Result<Report, Failure> {
    let load = load(args);
    let created = client.admin().create_topic(&load.topic, load.partitions, Vec::new()).await;
    created.map_err(|error| Failure::from_client(error, addr))?;
    let usage = || node.and_then(|(node, _)| Usage::of(node.pid()));
    let before = usage();
    let host = Host::detect(node.map(|(_, dir)| dir));
    let measured = match args.profile {
        Profile::Consume => profile::consume(config, &load, host).await,
        Profile::Latency => profile::latency(config, &load, host).await,
        _ => profile::publish(config, &load, host).await,
    };
    let after = usage();
    let deleted = client.admin().delete_topic(&load.topic).await;
    let mut report = measured.map_err(|error| Failure::new(Exit::Failed, error).next("look into the node's log"))?;
    deleted.map_err(|error| Failure::from_client(error, addr))?;
    if let (Some(before), Some(after)) = (before, after) {
        report.server_cpu_seconds = Some(after.cpu_seconds - before.cpu_seconds);
        report.server_rss_bytes = Some(after.rss_bytes);
    }
    Ok(report)
}

/// Drives the log in this process, with the settings a node would have; no node is started.
async fn storage(args: &BenchArgs, dir: &Path) -> Result<Report, Failure> {
    let data_dir = dir.join(format!("log-{}", std::process::id()));
    let mut config = Config::defaults();
    if !args.overrides.is_empty() {
        let sources = Sources { overrides: args.overrides.clone(), ..Sources::default() };
        config = Config::load(&sources)?;
    }
    let mut config = log_config(&config);
    config.dir.clone_from(&data_dir);
    let (load, host) = (load(args), Host::detect(Some(dir)));
    let floor_time = (!args.no_floors).then_some(FLOOR_TIME);
    let measured = tokio::task::spawn_blocking(move || profile::storage(config, &load, host, floor_time)).await;
    let _ = std::fs::remove_dir_all(&data_dir);
    let measured = measured.map_err(|error| Failure::new(Exit::Failed, error))?;
    measured.map_err(|error| Failure::new(Exit::Failed, error).next("look at the disk, or name another --dir"))
}

async fn floor_alone(args: &BenchArgs, dir: &Path) -> Result<Report, Failure> {
    let name = if args.profile == Profile::Disk { "disk" } else { "quic" };
    let mut report = Report::new(name, &load(args), Host::detect(Some(dir)));
    let seconds = Duration::from_secs(args.seconds);
    report.floors = match args.profile {
        Profile::Disk => {
            let half = seconds / 2;
            vec![disk(dir, 4096, half).await?, disk(dir, FLOOR_CHUNK_BYTES, half).await?]
        }
        _ => vec![quic(args, seconds / 2).await?],
    };
    Ok(report)
}

/// The floors that bound a profile: reading never waits for a durable write.
async fn floors(args: &BenchArgs, dir: &Path) -> Result<Vec<Floor>, Failure> {
    let mut floors = vec![quic(args, FLOOR_TIME).await?];
    match args.profile {
        Profile::Publish => floors.push(disk(dir, FLOOR_CHUNK_BYTES, FLOOR_TIME).await?),
        Profile::Latency => {
            let batch = args.record_size as usize * args.batch.unwrap_or(1) as usize;
            floors.push(disk(dir, batch.max(4096), FLOOR_TIME).await?);
        }
        _ => {}
    }
    Ok(floors)
}

async fn disk(dir: &Path, chunk_bytes: usize, during: Duration) -> Result<Floor, Failure> {
    let dir = dir.to_owned();
    let measured = tokio::task::spawn_blocking(move || durable_writes(&dir, chunk_bytes, during)).await;
    let floor =
        measured.map_err(|error| Failure::new(Exit::Failed, error))?.map_err(|error| Failure::new(Exit::Failed, error))?;
    Ok(floor.into_floor())
}

/// With the transport settings a node has by default.
async fn quic(args: &BenchArgs, during: Duration) -> Result<Floor, Failure> {
    let settings = Config::defaults().quic;
    let transport = Transport {
        stream_window_bytes: settings.stream_window_bytes,
        connection_window_bytes: settings.connection_window_bytes,
        send_window_bytes: settings.send_window_bytes,
        mtu_bytes_max: settings.mtu_bytes_max,
    };
    let message = (args.record_size as usize * args.batch.unwrap_or(1) as usize).min(64 << 10);
    let floor = raw_quic(transport, message, during).await.map_err(|error| Failure::new(Exit::Failed, error))?;
    Ok(floor.into_floor())
}

/// `--set` as lines of the child's file; its own start checks them.
fn further(overrides: &[String]) -> Result<String, Failure> {
    let acl = "[[acl]]\nprincipal = \"admin\"\nallow = [\"admin\", \"produce\", \"consume\"]\n";
    let mut sections: std::collections::BTreeMap<&str, String> = std::collections::BTreeMap::new();
    for text in overrides {
        let parsed = text.split_once('=').and_then(|(name, value)| Some((name.split_once('.')?, value)));
        let Some(((section, key), value)) = parsed else {
            return Err(Failure::usage(format!("--set {text}: write it as section.key=value")));
        };
        let bare = value.parse::<u64>().is_ok() || matches!(value, "true" | "false");
        let value = if bare { value.to_owned() } else { format!("{value:?}") };
        if matches!(section, "node" | "quic" | "http") {
            return Err(Failure::usage(format!("--set {text}: [{section}] is set by the benchmark itself"))
                .next("run a node of your own with `weir serve` and measure it with --remote"));
        }
        sections.entry(section).or_default().push_str(&format!("{key} = {value}\n"));
    }
    let text: String = sections.into_iter().map(|(section, keys)| format!("[{section}]\n{keys}\n")).collect();
    Ok(text + acl)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overrides_become_a_file_that_loads() {
        let text = further(&["log.segment_bytes=32MiB".to_owned(), "log.spare_segments=3".to_owned()]).expect("valid");
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("weir.toml");
        std::fs::write(&file, text).expect("writable");
        let config = Config::load(&crate::config::Sources { file: Some(file), ..Default::default() }).expect("loads");
        assert_eq!((config.log.segment_bytes, config.log.spare_segments), (32 << 20, 3));
        assert!(further(&["quic.listen=x".to_owned()]).is_err());
        assert!(further(&["nonsense".to_owned()]).is_err());
    }
}
