//! `weir consume`: prints records, from where and for how long the operator likes.

use std::collections::{HashMap, HashSet};
use std::io::{self, BufWriter, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use tokio::sync::mpsc;
use weir_client::{Admin, Client, ConsumerConfig, ConsumerRecord, GroupOffset, Start};

use super::format::{Format, RecordView};
use super::{ConnectArgs, Exit, Failure};

/// Records that wait to be printed.
const WAITING_MAX: usize = 1024;
/// At the tail, printed records are shown after this long at the latest.
const SHOW_WITHIN: Duration = Duration::from_millis(50);
/// A group's positions are stored this often, and at the end.
const COMMIT_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(super) struct ConsumeArgs {
    /// The topic
    topic: String,
    /// Where to begin: beginning, end, OFFSET, -N (the last N of each partition), s@MS (timestamp), s@15min (that long ago)
    #[arg(short, long, default_value = "end", allow_hyphen_values = true, value_name = "WHERE", value_parser = parse_from)]
    offset: From,
    /// Only this partition; may be repeated
    #[arg(short, long)]
    partition: Vec<u32>,
    /// Ends after so many records
    #[arg(short, long, value_name = "RECORDS")]
    count: Option<u64>,
    /// Ends when everything that is there was printed
    #[arg(short, long)]
    exit: bool,
    /// A partition ends at its first record with this timestamp (ms) or a later one
    #[arg(long, value_name = "MS")]
    until_timestamp: Option<i64>,
    /// Goes on where this group stopped, and stores how far it came
    #[arg(short, long)]
    group: Option<String>,
    /// What is printed: %s value %S length %k key %K length %t topic %p partition %o offset %T timestamp %h headers
    #[arg(short, long, default_value = "%s\\n", value_parser = Format::parse, conflicts_with = "json")]
    format: Format,
    /// One JSON object a record
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Where to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    Beginning,
    End,
    Offset(i64),
    Last(i64),
    Timestamp(i64),
    Ago(i64),
}

fn parse_from(text: &str) -> Result<From, String> {
    let wrong = || format!("{text:?} is none of beginning, end, OFFSET, -N, s@MS, s@15min");
    Ok(match text {
        "beginning" | "earliest" | "start" => From::Beginning,
        "end" | "latest" => From::End,
        _ => {
            if let Some(when) = text.strip_prefix("s@") {
                match when.parse::<i64>() {
                    Ok(ms) => From::Timestamp(ms),
                    Err(_) => From::Ago(crate::config::parse_duration_ms(when).ok_or_else(wrong)? as i64),
                }
            } else if let Some(last) = text.strip_prefix('-') {
                From::Last(last.parse::<u32>().map_err(|_| wrong())?.into())
            } else {
                From::Offset(text.parse().map_err(|_| wrong())?)
            }
        }
    })
}

/// What a reader hands over.
enum Item {
    Record(Box<ConsumerRecord>),
    /// These partitions have no more.
    End(Vec<u32>),
    Failed(Failure),
}

pub(super) async fn run(args: ConsumeArgs) -> Result<(), Failure> {
    let client = args.connect.connect().await?;
    let starts = starts(&args, &client.admin()).await?;
    let (items, mut received) = mpsc::channel(WAITING_MAX);
    for (start, partitions) in by_start(&starts) {
        let mut config = ConsumerConfig::new(&args.topic);
        config.partitions = Some(partitions);
        config.start = start;
        config.live = !args.exit;
        config.group = args.group.clone();
        tokio::spawn(read(client.clone(), config, args.connect.clone(), items.clone()));
    }
    drop(items);
    let mut printer = Printer::new(&args, starts.len());
    let printed = printer.print(&mut received, &client).await;
    let finished = printer.finish(&client).await;
    printed.and(finished)
}

/// Partition by partition, where to begin; a group's own positions come before these.
async fn starts(args: &ConsumeArgs, admin: &Admin) -> Result<Vec<(u32, Start)>, Failure> {
    let about = admin.describe_topic(&args.topic).await.map_err(|error| args.connect.failure(error))?;
    if let Some(unknown) = args.partition.iter().find(|wanted| about.partitions.iter().all(|range| range.partition != **wanted)) {
        let message = format!("topic {} has no partition {unknown}; it has {}", args.topic, about.partitions.len());
        return Err(Failure::new(Exit::NotFound, message).next(format!("weir topic describe {}", args.topic)));
    }
    let wanted = about.partitions.iter().filter(|range| args.partition.is_empty() || args.partition.contains(&range.partition));
    Ok(wanted
        .map(|range| {
            let start = match args.offset {
                From::Beginning => Start::Earliest,
                From::End => Start::Latest,
                From::Offset(offset) => Start::Offset(offset),
                From::Last(count) => Start::Offset((range.high_watermark - count).max(range.start_offset)),
                From::Timestamp(ms) => Start::Timestamp(ms),
                From::Ago(ms) => Start::Timestamp((now_ms() - ms).max(0)),
            };
            (range.partition, start)
        })
        .collect())
}

/// Partitions that begin alike share a subscription, so that a topic of many partitions needs few streams.
fn by_start(starts: &[(u32, Start)]) -> Vec<(Start, Vec<u32>)> {
    let mut groups: Vec<(Start, Vec<u32>)> = Vec::new();
    for (partition, start) in starts {
        match groups.iter_mut().find(|(of, _)| of == start) {
            Some((_, partitions)) => partitions.push(*partition),
            None => groups.push((*start, vec![*partition])),
        }
    }
    groups
}

/// Some partitions' records into the channel, until their end or until nobody listens.
async fn read(client: Client, config: ConsumerConfig, connect: ConnectArgs, items: mpsc::Sender<Item>) {
    let partitions = config.partitions.clone().unwrap_or_default();
    let mut consumer = match client.consumer(config).await {
        Ok(consumer) => consumer,
        Err(error) => {
            let _ = items.send(Item::Failed(connect.failure(error))).await;
            return;
        }
    };
    loop {
        let item = match consumer.next().await {
            Some(Ok(record)) => Item::Record(Box::new(record)),
            Some(Err(error)) => Item::Failed(connect.failure(error)),
            None => Item::End(partitions.clone()),
        };
        let last = !matches!(item, Item::Record(_));
        if items.send(item).await.is_err() || last {
            return;
        }
    }
}

/// Prints, counts, and remembers how far each partition came.
struct Printer<'a> {
    args: &'a ConsumeArgs,
    format: Format,
    out: BufWriter<io::Stdout>,
    open: usize,
    closed: HashSet<u32>,
    left: u64,
    /// Next offset of each partition, not stored for the group yet.
    positions: HashMap<u32, i64>,
}

impl<'a> Printer<'a> {
    fn new(args: &'a ConsumeArgs, partitions: usize) -> Printer<'a> {
        Printer {
            args,
            format: if args.json { Format::Json } else { args.format.clone() },
            out: BufWriter::with_capacity(1 << 16, io::stdout()),
            open: partitions,
            closed: HashSet::new(),
            left: args.count.unwrap_or(u64::MAX),
            positions: HashMap::new(),
        }
    }

    async fn print(&mut self, received: &mut mpsc::Receiver<Item>, client: &Client) -> Result<(), Failure> {
        let mut show = tokio::time::interval(SHOW_WITHIN);
        let mut commit = tokio::time::interval(COMMIT_EVERY);
        let interrupt = tokio::signal::ctrl_c();
        tokio::pin!(interrupt);
        while self.open > 0 && self.left > 0 {
            tokio::select! {
                item = received.recv() => match item {
                    Some(Item::Record(record)) => self.record(&record)?,
                    Some(Item::End(partitions)) => partitions.into_iter().for_each(|partition| self.close(partition)),
                    None => return Ok(()),
                    Some(Item::Failed(failure)) => return Err(failure),
                },
                _ = show.tick() => self.out.flush()?,
                _ = commit.tick() => self.commit(client).await?,
                _ = &mut interrupt => return Ok(()),
            }
        }
        Ok(())
    }

    fn close(&mut self, partition: u32) {
        self.open -= usize::from(self.closed.insert(partition));
    }

    fn record(&mut self, record: &ConsumerRecord) -> Result<(), Failure> {
        if self.closed.contains(&record.partition) {
            return Ok(());
        }
        if self.args.until_timestamp.is_some_and(|until| record.timestamp >= until) {
            self.close(record.partition);
            return Ok(());
        }
        let headers: Vec<(&[u8], Option<&[u8]>)> = record.headers().into_iter().collect();
        let view = RecordView {
            topic: &self.args.topic,
            partition: record.partition,
            offset: record.offset,
            timestamp: record.timestamp,
            key: record.key.as_deref(),
            value: record.value.as_deref(),
            headers: &headers,
        };
        self.format.write(&mut self.out, &view)?;
        self.positions.insert(record.partition, record.offset + 1);
        self.left -= 1;
        Ok(())
    }

    /// Stores how far the group came: only what was printed and flushed counts.
    async fn commit(&mut self, client: &Client) -> Result<(), Failure> {
        let Some(group) = &self.args.group else { return Ok(()) };
        if self.positions.is_empty() {
            return Ok(());
        }
        self.out.flush()?;
        let offsets = self.positions.drain().map(|(partition, offset)| GroupOffset {
            topic: self.args.topic.clone(),
            partition,
            offset,
            metadata: String::new(),
        });
        client.admin().commit_offsets(group, offsets.collect()).await.map_err(|error| self.args.connect.failure(error))
    }

    async fn finish(&mut self, client: &Client) -> Result<(), Failure> {
        self.out.flush()?;
        self.commit(client).await
    }
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starting_points_read_as_in_kcat() {
        for (text, from) in [
            ("beginning", From::Beginning),
            ("end", From::End),
            ("42", From::Offset(42)),
            ("-10", From::Last(10)),
            ("s@1700000000000", From::Timestamp(1_700_000_000_000)),
            ("s@15min", From::Ago(900_000)),
        ] {
            assert_eq!(parse_from(text), Ok(from), "{text}");
        }
        for text in ["", "soon", "--3", "s@", "s@later"] {
            assert!(parse_from(text).is_err(), "{text:?}");
        }
    }
}
