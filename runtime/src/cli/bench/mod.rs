//! `weir bench`: starts a node where none is named (`node`), drives it with a profile of `weir-bench`, holds it against the
//! floors of the same run (`floors`), and prints one result. `table` puts the results of many runs side by side.

mod connections;
mod floors;
mod node;
mod plugin;
mod storage;
mod streams;
mod table;

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use weir_bench::Load;

use super::{ConnectArgs, Exit, Failure};
use crate::config::{parse_bytes, parse_duration_ms};

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
    /// Records of a batch; default 256, 1 for latency, storage and mirror, 10 for cold and streams, 100 for amplification, 1000 for pipeline
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    batch: Option<u32>,
    /// QUIC connections
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
    /// Producers (consumers for consume) a connection; default 1 (256 in all for storage, cold and mirror)
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    producers: Option<u32>,
    /// Un-acknowledged batches a producer
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    in_flight: u16,
    /// Records a second over all producers, at fixed times; default for latency 1000, for amplification 50000, else as fast as acknowledged
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    rate: Option<u64>,
    /// Partitions of the topic; for streams of as many topics as they need
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    partitions: u32,
    /// For consume: consumers at the tail while producers publish, instead of reading all from the disk of a node just started
    #[arg(long)]
    tail: bool,
    /// For consume --tail: consumers, each of which receives everything
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..), requires = "tail")]
    consumers: u32,
    /// For consume --tail: further consumers that take one batch and then hang; measured without and with them
    #[arg(long, default_value_t = 0, requires = "tail")]
    slow: u32,
    /// Batches are compressed by the producer
    #[arg(long)]
    zstd: bool,
    /// For amplification: values are lines of rtl_433 instead of --record-size bytes
    #[arg(long)]
    lines: bool,
    /// For amplification: record timestamps run so many times faster than the clock
    #[arg(long, default_value_t = 1, value_name = "TIMES", value_parser = clap::value_parser!(u32).range(1..))]
    data_time: u32,
    /// For cold and amplification: record bytes kept in cold segments
    #[arg(long, value_name = "SIZE", value_parser = size)]
    retention_bytes: Option<u64>,
    /// For cold and amplification: records older than this go
    #[arg(long, value_name = "TIME", value_parser = duration_ms)]
    retention_ms: Option<u64>,
    /// For mirror: how often one copy and two are driven in turn, for --seconds each
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// For mirror: where the second copy lies, on another disk
    #[arg(long, value_name = "DIR", required_if_eq("profile", "mirror"))]
    second_dir: Option<PathBuf>,
    /// Directory for the node's data and the disk floor; without it a temporary one
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Overrides a setting of the node that is started; may be repeated
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    overrides: Vec<String>,
    /// publish: the topic's pipeline; pipeline: what is measured. byte-filter (built in), a .wasm file, or a name in plugins/dist
    #[arg(long, value_name = "FILE|NAME")]
    plugin: Option<String>,
    /// Its configuration
    #[arg(long, value_name = "JSON", requires = "plugin")]
    plugin_config: Option<String>,
    /// Memory the node that is started may take; see `weir serve --memory-max`
    #[arg(long, value_name = "SIZE")]
    memory_max: Option<String>,
    /// Leaves the floors out
    #[arg(long)]
    no_floors: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
    /// Threads of quic-serve
    #[arg(long, default_value_t = 1, hide = true)]
    threads: usize,
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
    /// The cold tier: what it costs producers, what it writes, how fast it is read back
    Cold,
    /// Two copies of the log on two disks: what the second one, in --second-dir, costs the log engine
    Mirror,
    /// What reaches the disk for each byte of records that come at --rate, until all of it is sorted
    Amplification,
    /// A plugin over batches on one core, without network and disk
    Pipeline,
    /// Many partitions: --batch 10 records to each in turn, then a SIGKILL and a restart
    Streams,
    /// --connections that stand by: memory, handshakes, producers beside them, changes of address
    Connections,
    /// CPU of a node that nobody talks to
    Idle,
    /// Results of earlier runs, JSON lines on standard input, as one table
    Table,
    /// The disk alone: durable writes one after the other
    Disk,
    /// The network path alone: a raw QUIC stream and echo; with --batch 1 --in-flight 1 raw requests
    Quic,
    /// The answering end of the network path
    #[value(hide = true)]
    QuicServe,
}

pub(super) async fn run(args: BenchArgs) -> Result<(), Failure> {
    match args.profile {
        Profile::QuicServe => return floors::answer(&args).await,
        Profile::Table => return table::run(),
        _ => {}
    }
    let temporary = match &args.dir {
        Some(_) => None,
        None => Some(tempfile::Builder::new().prefix("weir-bench-").tempdir().map_err(|error| {
            Failure::new(Exit::Failed, format!("cannot make a temporary directory: {error}; name one with --dir"))
        })?),
    };
    let dir = args.dir.clone().or_else(|| temporary.as_ref().map(|dir| dir.path().to_owned())).unwrap_or_default();
    std::fs::create_dir_all(&dir)
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot make {}: {error}; name another --dir", dir.display())))?;
    let plugin = plugin::find(args.plugin.as_deref(), args.plugin_config.as_deref())?;
    if plugin.is_some() && !matches!(args.profile, Profile::Publish | Profile::Pipeline) {
        return Err(Failure::usage("--plugin goes with the profiles publish and pipeline"));
    }
    let report = match args.profile {
        Profile::Disk | Profile::Quic => floors::alone(&args, &dir).await?,
        Profile::Storage => storage::run(&args, &dir).await?,
        Profile::Cold => storage::cold(&args, &dir).await?,
        Profile::Mirror => storage::mirror(&args, &dir).await?,
        Profile::Amplification => storage::amplification(&args, &dir).await?,
        Profile::Pipeline => plugin::alone(plugin, load(&args)).await?,
        Profile::Streams | Profile::Connections | Profile::Idle if args.remote => {
            return Err(Failure::usage(
                "this profile looks into the node's process, so it starts one itself; leave --remote out",
            ));
        }
        Profile::Streams => streams::run(&args, &dir).await?,
        Profile::Connections => connections::run(&args, &dir).await?,
        Profile::Idle => connections::idle(&args, &dir).await?,
        _ if args.remote => node::remote(&args, plugin).await?,
        _ => node::own(&args, &dir, plugin).await?,
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
    let storage = matches!(args.profile, Profile::Storage | Profile::Cold | Profile::Mirror);
    let alone = storage || args.profile == Profile::Amplification;
    Load {
        topic: format!("bench-{:08x}", fastrand::u32(..)),
        partitions: args.partitions,
        records: args.records,
        seconds: Duration::from_secs(args.seconds),
        record_bytes: args.record_size as usize,
        batch_records: args.batch.unwrap_or(match args.profile {
            Profile::Latency | Profile::Storage | Profile::Mirror => 1,
            Profile::Cold | Profile::Streams => 10,
            Profile::Amplification => 100,
            Profile::Pipeline => 1000,
            _ => 256,
        }),
        connections: if alone { 1 } else { args.connections },
        producers: args.producers.unwrap_or(if storage { storage::PRODUCERS } else { 1 }),
        in_flight: args.in_flight,
        rate: args.rate.or_else(|| latency.then_some(1000)),
        zstd: args.zstd,
    }
}

fn size(text: &str) -> Result<u64, String> {
    parse_bytes(text).filter(|bytes| *bytes > 0).ok_or_else(|| "write it as 65536, 64KiB or 1GiB".to_owned())
}

fn duration_ms(text: &str) -> Result<u64, String> {
    parse_duration_ms(text).filter(|ms| *ms > 0).ok_or_else(|| "write it as 5000, 90s, 10min or 7d".to_owned())
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Failed, error)
}
