//! A disk that fills up under load, in the middle of whatever the node is at, and has room again.
//!
//! A file takes what is free, first but for a little, so that log, sorter, merges and compaction each meet the end of the disk
//! somewhere, then all of it, until producers are refused. Then the node is asked for what it must still do; sometimes the power goes then, and a
//! node that starts on the full disk must show what it had. With room again all go on, without a restart.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, Instant};

use weir_tests::disk::cache::Cut;

use crate::rig::{Rig, SEGMENT_BYTES};
use crate::table::Row;

const ROUNDS: u32 = 6;
/// So much the first step leaves at most: it reaches from a frame to a sort with a merge behind it.
const LEFT_MAX: u64 = 4 * SEGMENT_BYTES;
/// How long a node has that little at most.
const SHORT_MAX_MS: u64 = 1500;
/// Every so many rounds producers pause while space is short: only then are cold segments merged and compacted.
const QUIET_EVERY: u32 = 2;
const QUIET_MS: u64 = 4000;
const QUIET_LEFT_MAX: u64 = SEGMENT_BYTES;
/// Every so many rounds the power goes while the disk is full.
const CUT_EVERY: u32 = 3;
/// Whatever the node frees is taken again after so long.
const TAKEN_AFTER: Duration = Duration::from_millis(10);
/// Nobody's record was acknowledged for so long: the disk is full, and retention frees nothing any more.
const STUCK: Duration = Duration::from_secs(3);
const STUCK_WAIT_MAX: Duration = Duration::from_secs(60);
/// The compacted topic: its keys, and records a round. Together they are more than a compaction waits for.
const KEYED: &str = "t.keyed";
const KEYS: usize = 50;
const KEYED_RECORDS: usize = 4000;
const KEYED_BYTES: usize = 500;
/// There from the beginning, to be deleted from the full disk.
const DOOMED: &str = "t.doomed";
/// Partitions of the topics that are asked for on the full disk: one fits into what is left of the log, one does not.
const WANTED: [&str; 2] = ["1", "10000"];

/// What the operator has done, and the node has answered.
#[derive(Default)]
struct Books {
    /// Last values of the compacted topic.
    latest: BTreeMap<String, String>,
    /// Topics that were created, and those that were deleted or refused.
    there: Vec<String>,
    gone: Vec<String>,
    /// Of the log when the round began.
    said: usize,
    compacted: u64,
    /// What met the end of the disk, and how often.
    met: BTreeMap<String, u32>,
}

pub(crate) async fn full(rig: &mut Rig, row: &mut Row) -> Result<(), String> {
    let mut books = Books::default();
    admin(rig, &["topic", "create", KEYED, "-p", "1", "--set", "cleanup.policy=compact"])?;
    books.there.push(KEYED.to_owned());
    for round in 0..ROUNDS {
        books.said = rig.site.log().len();
        admin(rig, &["topic", "create", &numbered(DOOMED, round), "-p", "4"])?;
        write_keys(rig, &mut books, round)?;
        rig.work().await?;
        let filled = fill_up(rig, round).await?;
        let refused = ask(rig, &mut books, round)?;
        books.compacted += rig.metric("weir_records_compacted")?;
        let cut = round % CUT_EVERY == 2;
        if cut {
            cut_while_full(rig).await?;
        }
        rig.make_room()?;
        rig.work().await?;
        after(rig, &mut books, round)?;
        let cut = if cut { ", power cut while full" } else { "" };
        row.notes.push(format!("{filled}, {refused} of 2 new topics, too{cut}"));
        row.verdict = rig.check().await?;
        if !row.verdict.holds() {
            return Ok(());
        }
    }
    rig.power_cut(Cut::Any).await?;
    rig.mount()?;
    rig.start()?;
    compare_books(rig, &books)?;
    let met: Vec<String> = books.met.iter().map(|(who, times)| format!("{who} {times}")).collect();
    row.notes.push(format!("found no space: {}; {} records compacted", met.join(", "), books.compacted));
    if met.is_empty() || books.compacted == 0 {
        return Err("the disk was full, and neither log nor cold tier met it, or nothing was compacted".into());
    }
    row.verdict = rig.check().await?;
    Ok(())
}

/// Takes the disk's space in two steps, and waits until producers are refused for good.
async fn fill_up(rig: &mut Rig, round: u32) -> Result<String, String> {
    let quiet = round % QUIET_EVERY == 1;
    let (left, short) = match round {
        0 => (0, 0),
        _ if quiet => (rig.random.u64(0..QUIET_LEFT_MAX), QUIET_MS),
        _ => (rig.random.u64(0..LEFT_MAX), rig.random.u64(0..SHORT_MAX_MS)),
    };
    if quiet {
        rig.fleet.pause(&rig.site).await?;
    }
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(short) {
        rig.take_space(left)?;
        tokio::time::sleep(TAKEN_AFTER).await;
    }
    if quiet {
        rig.fleet.go_on(&rig.site);
    }
    let (mut acknowledged, mut last) = (rig.fleet.acknowledged(), Instant::now());
    let begin = Instant::now();
    while last.elapsed() < STUCK {
        if begin.elapsed() > STUCK_WAIT_MAX {
            return Err(format!("{STUCK_WAIT_MAX:?} on a full disk, and records are still acknowledged"));
        }
        rig.take_space(0)?;
        tokio::time::sleep(TAKEN_AFTER).await;
        let now = rig.fleet.acknowledged();
        if now > acknowledged {
            (acknowledged, last) = (now, Instant::now());
        }
    }
    if rig.metric("weir_log_disk_full")? != 1 || !rig.is_ready() {
        return Err(format!("producers wait, and the node does not say that its disk is full; it says:\n{}", rig.said(20)));
    }
    let took = begin.elapsed().saturating_sub(STUCK).as_millis();
    let without = if quiet { " without producers" } else { "" };
    Ok(format!("round {round}: {left} bytes left for {short} ms{without}, then none; producers refused after {took} ms"))
}

/// What a node on a full disk must still do, and what it must refuse in so many words; returns how many topics were refused.
fn ask(rig: &Rig, books: &mut Books, round: u32) -> Result<u32, String> {
    let doomed = numbered(DOOMED, round);
    // A deletion is what an operator does against a full disk.
    admin(rig, &["topic", "delete", &doomed])?;
    books.gone.push(doomed);
    let mut refused = 0;
    for partitions in WANTED {
        let name = wanted(round, partitions);
        match admin(rig, &["topic", "create", &name, "-p", partitions]) {
            Ok(_) => books.there.push(name),
            Err(error) if error.contains("full") => {
                refused += 1;
                books.gone.push(name);
            }
            Err(error) => return Err(format!("on a full disk, a topic: {error}")),
        }
    }
    compare_books(rig, books)?;
    let said = rig.site.log().split_off(books.said);
    for who in said.lines().filter_map(met_the_end) {
        *books.met.entry(who).or_default() += 1;
    }
    Ok(refused)
}

/// Of a line of the node's log: which work found no space, as "sorted: writing cold".
fn met_the_end(line: &str) -> Option<String> {
    let (_, rest) = line.split_once("the disk is full: ")?;
    let (what, _) = rest.split_once('/')?;
    let work = line.split_once("while_it=\"").and_then(|(_, rest)| rest.split_once('"')).map_or("log", |(work, _)| work);
    Some(format!("{work}: {what}"))
}

/// The power goes, and the disk is as full as it was: the node starts, and has what it had.
async fn cut_while_full(rig: &mut Rig) -> Result<(), String> {
    rig.power_cut_for_all(Cut::Any).await;
    rig.mount()?;
    rig.start_alone()?;
    let verdict = rig.compare().await?;
    rig.fleet.go_on(&rig.site);
    if verdict.holds() { Ok(()) } else { Err(format!("on the full disk: {verdict:?}")) }
}

/// With room again, what was refused is done.
fn after(rig: &Rig, books: &mut Books, round: u32) -> Result<(), String> {
    for partitions in WANTED {
        let name = wanted(round, partitions);
        if books.there.contains(&name) {
            continue;
        }
        admin(rig, &["topic", "create", &name, "-p", partitions])?;
        books.gone.retain(|gone| *gone != name);
        books.there.push(name);
    }
    // The log has no room for the state of all of them.
    let large = wanted(round, WANTED[1]);
    admin(rig, &["topic", "delete", &large])?;
    books.there.retain(|there| *there != large);
    books.gone.push(large);
    compare_books(rig, books)
}

/// Topics are those that were created; each key of the compacted one has its last value.
fn compare_books(rig: &Rig, books: &Books) -> Result<(), String> {
    let listed = admin(rig, &["topic", "list"])?;
    let is_listed = |name: &String| listed.lines().any(|line| line.split_whitespace().next() == Some(name));
    if let Some(name) = books.there.iter().find(|name| !is_listed(name)) {
        return Err(format!("topic {name} was created, and is not there:\n{listed}"));
    }
    if let Some(name) = books.gone.iter().find(|name| is_listed(name)) {
        return Err(format!("topic {name} was deleted, or refused, and is there:\n{listed}"));
    }
    for (key, value) in &books.latest {
        let latest = admin(rig, &["topic", "latest", KEYED, key])?;
        if latest.trim_end() != value {
            return Err(format!("the last value of {key} is {value}, and the node says {latest}"));
        }
    }
    Ok(())
}

/// New values for the keys, while there is room: all of them acknowledged.
fn write_keys(rig: &mut Rig, books: &mut Books, round: u32) -> Result<(), String> {
    let mut lines = String::new();
    for number in 0..KEYED_RECORDS {
        let key = format!("k{}", rig.random.usize(0..KEYS));
        let filler: String = (0..KEYED_BYTES).map(|_| rig.random.alphanumeric()).collect();
        let value = format!("{round}-{number}-{filler}");
        writeln!(lines, "{key}:{value}").expect("a String takes everything");
        books.latest.insert(key, value);
    }
    run(rig, &["produce", KEYED, "-K", ":", "-q"], &lines).map(drop)
}

fn wanted(round: u32, partitions: &str) -> String {
    numbered(&format!("t.wanted-{partitions}"), round)
}

fn numbered(name: &str, round: u32) -> String {
    format!("{name}-{round}")
}

fn admin(rig: &Rig, args: &[&str]) -> Result<String, String> {
    run(rig, args, "")
}

fn run(rig: &Rig, args: &[&str], input: &str) -> Result<String, String> {
    let output = rig.site.run_as("admin", args, input).map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("weir {}: {}", args[..args.len().min(3)].join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}
