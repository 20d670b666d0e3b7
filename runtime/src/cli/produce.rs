//! `weir produce`: lines of standard input (or a file) become records. What it reports as acknowledged is on disk.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, BufReader};
use tokio::sync::mpsc;
use weir_client::{Client, Codec, Delivery, Producer, ProducerConfig, Record};

use super::{ConnectArgs, Exit, Failure, format};

/// Un-acknowledged records; beyond it reading waits.
const PENDING_MAX: usize = 1 << 16;
/// What -z zstd means: shrinks sensor JSON nearly as well as higher levels at half their time.
const ZSTD_LEVEL: i32 = 1;

#[derive(Debug, Args)]
pub(super) struct ProduceArgs {
    /// The topic
    topic: String,
    /// Reads this file instead of standard input
    file: Option<PathBuf>,
    /// Separates key from value in a line, e.g. -K : or -K '\t'; a line without it has no key
    #[arg(short = 'K', long = "key-separator", value_name = "SEPARATOR", value_parser = separator, conflicts_with = "record_key")]
    separator: Option<Separator>,
    /// Key of every record
    #[arg(short = 'k', long)]
    record_key: Option<String>,
    /// Partition of every record; without it the key decides, as Kafka's clients do
    #[arg(short, long)]
    partition: Option<u32>,
    /// Header of every record; may be repeated
    #[arg(short = 'H', long = "header", value_name = "NAME=VALUE", value_parser = super::parse_pair)]
    headers: Vec<(String, String)>,
    /// Compression of the batches
    #[arg(short = 'z', long, value_enum, default_value_t = Compression::None)]
    compression: Compression,
    /// A stable name: the node remembers how many of its records are durable
    #[arg(long, value_name = "NAME")]
    producer_name: Option<String>,
    /// Skips as many lines as records of this producer name are durable already: run the same command again after a crash
    #[arg(long, requires = "producer_name")]
    resume: bool,
    /// Lines a second at most
    #[arg(long, value_name = "LINES", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// How long a batch waits for more records
    #[arg(long, value_name = "TIME", default_value = "5ms", value_parser = duration)]
    linger: Duration,
    /// Size at which a batch is sent at once
    #[arg(long, value_name = "SIZE", default_value = "64KiB", value_parser = size)]
    batch_bytes: usize,
    /// How long a record may wait for its acknowledgement, and the command for a node that refuses for now, before it gives up
    #[arg(long, value_name = "TIME", default_value = "2min", value_parser = duration)]
    delivery_timeout: Duration,
    /// The summary as JSON on standard output
    #[arg(long)]
    json: bool,
    /// No summary
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Compression {
    None,
    Zstd,
}

#[derive(Debug, Clone)]
struct Separator(Vec<u8>);

fn separator(text: &str) -> Result<Separator, String> {
    format::parse_bytes_argument(text).map(Separator)
}

fn duration(text: &str) -> Result<Duration, String> {
    let parsed = crate::config::parse_duration_ms(text).map(Duration::from_millis);
    parsed.ok_or_else(|| "write a time such as 250ms, 3s or 2min".to_owned())
}

fn size(text: &str) -> Result<usize, String> {
    let parsed = crate::config::parse_bytes(text).and_then(|bytes| usize::try_from(bytes).ok());
    parsed.filter(|bytes| *bytes > 0).ok_or_else(|| "write a size such as 64KiB".to_owned())
}

/// Room for a few batches, however many lanes share the memory.
const BUFFER_BYTES_MIN: usize = 1 << 20;

/// What was read and what became of it.
#[derive(Debug, Default)]
struct Summary {
    lines: u64,
    skipped: u64,
    bytes: u64,
    interrupted: bool,
}

/// What was promised.
#[derive(Debug, Default)]
struct Promised {
    acknowledged: u64,
    duplicates: u64,
}

pub(super) async fn run(args: ProduceArgs) -> Result<(), Failure> {
    // The sequence of a name counts one stream of records, so each topic gets its own.
    let name = args.producer_name.as_ref().map(|name| format!("{name}/{}", args.topic));
    let connecting = args.connect.connect_with(|config| {
        config.producer_name = name;
        config.refused_timeout = args.delivery_timeout;
    });
    let client = connecting.await?;
    let mut config = ProducerConfig::new(&args.topic);
    config.linger = args.linger;
    config.batch_bytes = args.batch_bytes;
    config.delivery_timeout = args.delivery_timeout;
    config.compression = match args.compression {
        Compression::None => Codec::None,
        Compression::Zstd => Codec::Zstd(ZSTD_LEVEL),
    };
    let lanes = Lanes::open(&args, &client, config).await?;
    let (pending, acknowledgements) = mpsc::channel(PENDING_MAX);
    let begin = Instant::now();
    let books = tokio::spawn(keep_books(acknowledgements, args.connect.clone()));
    let read = read_all(&args, &lanes, pending).await;
    // Whatever ended the reading, what was handed over is flushed first.
    let flushed = lanes.flush().await.map_err(|error| args.connect.failure(error));
    let (promised, kept) = match books.await {
        Ok(books) => books,
        Err(error) => return Err(Failure::new(Exit::Failed, error)),
    };
    let summary = match (read, kept, flushed) {
        (Ok(summary), Ok(()), Ok(())) => summary,
        (_, Err(failure), _) | (Err(failure), _, _) | (_, _, Err(failure)) => {
            let durable = promised.acknowledged;
            return Err(failure
                .next(format!("{durable} records before it are durable; --producer-name with --resume sends the rest once")));
        }
    };
    lanes.close().await;
    report(&args, &summary, &promised, begin.elapsed())
}

/// The lanes of one run. Without a producer name it is one. With a name there is a lane a partition, and a line's partition depends
/// on nothing but the line and its number: so the sequence of a lane counts the lines of its partition, and a later run with
/// `--resume` knows exactly which lines are durable.
struct Lanes {
    producers: Vec<Producer>,
    partitioned: bool,
}

impl Lanes {
    async fn open(args: &ProduceArgs, client: &Client, config: ProducerConfig) -> Result<Lanes, Failure> {
        let failure = |error| args.connect.failure(error);
        let buffer_bytes = config.buffer_bytes;
        let first = client.producer(config.clone()).await.map_err(failure)?;
        let partitions = first.partitions();
        let mut lanes = Lanes { producers: vec![first], partitioned: args.producer_name.is_some() && args.partition.is_none() };
        if !lanes.partitioned {
            return Ok(lanes);
        }
        for lane in 1..partitions {
            let mut config = config.clone();
            config.lane = lane;
            config.buffer_bytes = (buffer_bytes / partitions as usize).max(BUFFER_BYTES_MIN);
            let opened = client.producer(config).await.map_err(|error| {
                failure(error).next(format!(
                    "--producer-name takes a lane for each of the {partitions} partitions; --partition needs only one"
                ))
            })?;
            lanes.producers.push(opened);
        }
        Ok(lanes)
    }

    /// Lane of the line with this number, and its record with the partition filled in.
    fn place<'a>(&self, number: u64, record: Record<'a>) -> (usize, Record<'a>) {
        if !self.partitioned {
            return (0, record);
        }
        let count = self.producers.len() as u32;
        let partition = match record.key {
            Some(key) => weir_batch::partition_for_key(key, count),
            None => (number % u64::from(count)) as u32,
        };
        (partition as usize, Record { partition: Some(partition), ..record })
    }

    async fn flush(&self) -> Result<(), weir_client::ClientError> {
        for lane in &self.producers {
            lane.flush().await?;
        }
        Ok(())
    }

    async fn close(self) {
        for lane in self.producers {
            let _ = lane.close().await; // flushed before; what is left is a goodbye
        }
    }
}

/// Reads until the end of the input or Ctrl-C.
async fn read_all(args: &ProduceArgs, lanes: &Lanes, pending: mpsc::Sender<Delivery>) -> Result<Summary, Failure> {
    let mut input = open(args).await?;
    let mut summary = Summary::default();
    let mut durable: Vec<u64> = lanes.producers.iter().map(|lane| if args.resume { lane.next_sequence() } else { 0 }).collect();
    let mut pace = args.rate.map(|rate| (Instant::now(), f64::from(rate)));
    let mut line = Vec::new();
    let headers: Vec<(&[u8], Option<&[u8]>)> =
        args.headers.iter().map(|(name, value)| (name.as_bytes(), Some(value.as_bytes()))).collect();
    let interrupt = tokio::signal::ctrl_c();
    tokio::pin!(interrupt);
    loop {
        line.clear();
        let count = tokio::select! {
            read = input.read_until(b'\n', &mut line) => {
                read.map_err(|error| Failure::new(Exit::Failed, format!("cannot read the input: {error}")))?
            }
            _ = &mut interrupt => {
                summary.interrupted = true;
                0
            }
        };
        if count == 0 {
            return Ok(summary);
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        let number = summary.lines + summary.skipped;
        let record = record(args, &headers, &line);
        let (lane, record) = lanes.place(number, record);
        if durable[lane] > 0 {
            durable[lane] -= 1;
            summary.skipped += 1;
            continue;
        }
        if let Some((begin, rate)) = &mut pace {
            let due = *begin + Duration::from_secs_f64(summary.lines as f64 / *rate);
            tokio::time::sleep_until(due.into()).await;
        }
        summary.lines += 1;
        summary.bytes += line.len() as u64;
        let delivery = lanes.producers[lane].send(record).await.map_err(|error| args.connect.failure(error))?;
        if pending.send(delivery).await.is_err() {
            // The bookkeeper met an error; it tells.
            return Ok(summary);
        }
    }
}

async fn open(args: &ProduceArgs) -> Result<Box<dyn AsyncBufRead + Unpin + Send>, Failure> {
    match &args.file {
        Some(path) if path.as_os_str() != "-" => {
            let file = tokio::fs::File::open(path).await;
            let file = file.map_err(|error| Failure::usage(format!("cannot read {}: {error}", path.display())))?;
            Ok(Box::new(BufReader::with_capacity(1 << 16, file)))
        }
        _ => Ok(Box::new(BufReader::with_capacity(1 << 16, tokio::io::stdin()))),
    }
}

fn record<'a>(args: &'a ProduceArgs, headers: &'a [(&'a [u8], Option<&'a [u8]>)], line: &'a [u8]) -> Record<'a> {
    let split = args.separator.as_ref().and_then(|Separator(separator)| {
        let at = line.windows(separator.len()).position(|window| window == separator)?;
        Some((&line[..at], &line[at + separator.len()..]))
    });
    let (key, value) = match split {
        Some((key, value)) => (Some(key), value),
        None => (args.record_key.as_ref().map(String::as_bytes), line),
    };
    Record { key, value: Some(value), timestamp: None, headers, partition: args.partition }
}

/// Waits for every acknowledgement in order; ends at the first that fails.
async fn keep_books(mut pending: mpsc::Receiver<Delivery>, connect: ConnectArgs) -> (Promised, Result<(), Failure>) {
    let mut promised = Promised::default();
    while let Some(delivery) = pending.recv().await {
        match delivery.await {
            Ok(ack) => {
                promised.acknowledged += 1;
                promised.duplicates += u64::from(ack.duplicate);
            }
            Err(error) => return (promised, Err(connect.failure(error))),
        }
    }
    (promised, Ok(()))
}

fn report(args: &ProduceArgs, summary: &Summary, promised: &Promised, elapsed: Duration) -> Result<(), Failure> {
    let seconds = elapsed.as_secs_f64();
    let rate = promised.acknowledged as f64 / seconds.max(1e-9);
    if args.json {
        let value = serde_json::json!({
            "topic": args.topic, "records": summary.lines, "skipped": summary.skipped, "bytes": summary.bytes,
            "acknowledged": promised.acknowledged, "duplicates": promised.duplicates, "seconds": seconds,
            "records_per_second": rate, "interrupted": summary.interrupted,
        });
        use std::io::Write;
        writeln!(std::io::stdout().lock(), "{value}")?;
    } else if !args.quiet {
        let skipped =
            if summary.skipped > 0 { format!(", {} durable before and skipped", summary.skipped) } else { String::new() };
        let interrupted = if summary.interrupted { " (interrupted; everything read was flushed)" } else { "" };
        eprintln!(
            "{} records durable in {}{skipped}: {seconds:.2} s, {rate:.0} records/s{interrupted}",
            promised.acknowledged, args.topic
        );
    }
    Ok(())
}
