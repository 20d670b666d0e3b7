//! `weir check`: an offline check of a data directory. Exit code 0: sound; 1: damage found; 2: it could not be checked.

use std::io::Write;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};
use weir_storage::Gap;
use weir_storage::check::{CheckOptions, CheckReport, CheckedVolume, Finding, Severity, check_volumes};
use weir_storage::format::uuid_text;

use super::progress::bar;
use super::{Exit, Failure};
use crate::config::{Config, Sources};

/// Lines for people; --json has all.
const LINES_MAX: usize = 50;

#[derive(Debug, Args)]
#[command(after_help = "Exit codes: 0 sound · 1 damage found · 2 could not be checked (in use, no volume, newer format)")]
pub(super) struct CheckArgs {
    /// The node's data directory; with --config the one that is named there
    #[arg(required_unless_present = "config")]
    dir: Option<PathBuf>,
    /// Another disk of the node, as [[volume]] in its configuration; once for each
    #[arg(long = "volume", value_name = "DIR", conflicts_with = "config")]
    volumes: Vec<PathBuf>,
    /// The node's configuration, which names its disks
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Segments to read at a time; by default as many as there are processors
    #[arg(long, value_name = "N")]
    jobs: Option<NonZeroUsize>,
    /// The report as one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: CheckArgs) -> Result<(), Failure> {
    let (dir, others) = directories(&args)?;
    let bar = bar();
    let result = check_volumes(&dir, &others, CheckOptions { jobs: args.jobs }, &|progress| {
        bar.set_length(progress.bytes_total);
        bar.set_position(progress.bytes_done);
    });
    bar.finish_and_clear();
    let report = result.map_err(|error| Failure::new(Exit::Usage, format!("not checked: {error}")))?;
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", json_of(&report))?;
    } else {
        out.write_all(text_of(&report).as_bytes())?;
    }
    out.flush()?;
    if report.is_clean() {
        return Ok(());
    }
    let next =
        "keep a copy of the directory before anything writes to it; a node that starts names lost records to consumers as gaps";
    Err(Failure::new(Exit::Failed, format!("damage found in {} place(s)", report.damage_total)).next(next))
}

/// The data directory, and those of the other disks.
fn directories(args: &CheckArgs) -> Result<(PathBuf, Vec<PathBuf>), Failure> {
    let Some(file) = &args.config else {
        let dir = args.dir.clone().ok_or_else(|| Failure::usage("name the node's data directory, or its --config"))?;
        return Ok((dir, args.volumes.clone()));
    };
    let sources = Sources::from_process(Some(file.clone()), Vec::new());
    let config = Config::load(&sources).map_err(|error| Failure::new(Exit::Usage, error))?;
    let others = config.volume.into_iter().map(|volume| volume.dir).collect();
    Ok((args.dir.clone().unwrap_or(config.node.data_dir), others))
}

fn text_of(report: &CheckReport) -> String {
    let mut lines = Vec::new();
    match &report.volume {
        None => lines.push("volume       its superblock is lost".to_owned()),
        Some(facts) => {
            let (major, minor) = facts.format;
            let left = if facts.clean { "shut down" } else { "not shut down" };
            let ids = (uuid_text(&facts.volume_id), uuid_text(&facts.node_id));
            lines.push(format!("volume       {} of node {}", ids.0, ids.1));
            lines.push(format!("             format {major}.{minor}, epoch {}, {left}", facts.epoch));
        }
    }
    let bytes = crate::config::format_bytes(report.bytes);
    let copies = if report.copies > 1 { format!("; {} copies of each", report.copies) } else { String::new() };
    lines.push(format!("segments     {}, and {} spare{copies}", report.segments, report.spares));
    lines.push(format!("frames       {} ({bytes}), the last is {}", report.frames, report.last_lsn));
    lines.push(format!("records      {} in {} batches", report.records, report.batches));
    if report.cold_segments > 0 {
        let (segments, records, batches) = (report.cold_segments, report.cold_records, report.cold_batches);
        lines.push(format!("cold tier    {segments} segments, {records} records in {batches} batches"));
    }
    lines.extend(report.volumes.iter().map(volume_line));
    lines.push(format!(
        "state        {} partitions, {} producer lanes, {} keys of metadata",
        report.partitions, report.producers, report.meta_keys
    ));
    lines.extend(report.findings.iter().take(LINES_MAX).map(finding_line));
    more(&mut lines, report.findings.len());
    lines.extend(report.lost.iter().take(LINES_MAX).map(lost_line));
    more(&mut lines, report.lost_total as usize);
    if report.meta_lost {
        lines.push("lost         metadata (topics, positions, producers) that was written in damaged frames".to_owned());
    }
    lines.push(if report.is_clean() { "sound".to_owned() } else { "damaged".to_owned() });
    lines.join("\n") + "\n"
}

fn volume_line(volume: &CheckedVolume) -> String {
    let dir = volume.dir.as_ref().map_or_else(|| "not looked at".to_owned(), |dir| dir.display().to_string());
    let unseen = if volume.unseen > 0 { format!(", {} of them not seen", volume.unseen) } else { String::new() };
    format!("disk {:<8}{dir}: {} cold segments{unseen}", volume.number, volume.segments)
}

fn more(lines: &mut Vec<String>, total: usize) {
    if total > LINES_MAX {
        lines.push(format!("             … and {} more; --json lists them", total - LINES_MAX));
    }
}

fn finding_line(finding: &Finding) -> String {
    let severity = match finding.severity {
        Severity::Damage => "DAMAGE",
        Severity::Note => "note",
    };
    let place = match finding.at {
        Some(at) => format!("{} at {at}: ", finding.file),
        None if finding.file.is_empty() => String::new(),
        None => format!("{}: ", finding.file),
    };
    format!("{severity:<12} {place}{}", finding.what)
}

fn lost_line(gap: &Gap) -> String {
    format!("lost         partition {}: offsets {} to {}", gap.partition, gap.from, gap.to - 1)
}

fn json_of(report: &CheckReport) -> Value {
    let volume = report.volume.map(|facts| {
        json!({
            "node_id": uuid_text(&facts.node_id), "volume_id": uuid_text(&facts.volume_id),
            "format_major": facts.format.0, "format_minor": facts.format.1,
            "epoch": facts.epoch, "segment_bytes": facts.segment_bytes, "clean": facts.clean,
        })
    });
    let findings: Vec<Value> = report
        .findings
        .iter()
        .map(|finding| {
            let severity = if finding.severity == Severity::Damage { "damage" } else { "note" };
            json!({ "severity": severity, "file": finding.file, "at": finding.at, "what": finding.what })
        })
        .collect();
    let lost: Vec<Value> =
        report.lost.iter().map(|gap| json!({ "partition": gap.partition.0, "from": gap.from, "to": gap.to })).collect();
    let volumes: Vec<Value> = report
        .volumes
        .iter()
        .map(|volume| {
            json!({ "disk": volume.number, "uuid": uuid_text(&volume.uuid), "dir": volume.dir, "segments": volume.segments,
                "unseen": volume.unseen })
        })
        .collect();
    json!({
        "sound": report.is_clean(), "volume": volume, "copies": report.copies, "disks": volumes,
        "segments": report.segments, "spares": report.spares, "frames": report.frames, "bytes": report.bytes,
        "cold_segments": report.cold_segments, "cold_batches": report.cold_batches, "cold_records": report.cold_records,
        "batches": report.batches, "records": report.records, "last_lsn": report.last_lsn,
        "partitions": report.partitions, "producers": report.producers, "meta_keys": report.meta_keys,
        "damage_total": report.damage_total, "findings": findings,
        "lost": lost, "lost_total": report.lost_total, "meta_lost": report.meta_lost,
    })
}
