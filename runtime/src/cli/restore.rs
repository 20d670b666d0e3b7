//! `weir restore`: a data directory from a backup. Exit code 0: restored; 1: failed, or the backup is damaged; 2: nothing was tried.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use weir_storage::backup::restore;
use weir_storage::format::uuid_text;

use super::Failure;
use super::backup::{failure, utc};
use super::progress::{bar, show};
use crate::config::format_bytes;

#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 restored · 1 failed, or the backup is damaged · 2 nothing was tried (target not empty, no such \
generation, newer format)"
)]
pub(super) struct RestoreArgs {
    /// The backup directory
    backup: PathBuf,
    /// The data directory to make: missing or empty
    dir: PathBuf,
    /// Which generation; without it the newest
    #[arg(long, value_name = "N")]
    generation: Option<u64>,
    /// What was restored as one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: RestoreArgs) -> Result<(), Failure> {
    let bar = bar();
    let result = restore(&args.backup, &args.dir, args.generation, &mut |progress| show(&bar, progress));
    bar.finish_and_clear();
    let report = result.map_err(failure)?;
    let (node, volume) = (uuid_text(&report.node_id), uuid_text(&report.volume_id));
    let mut out = std::io::stdout().lock();
    if args.json {
        let value = json!({
            "generation": report.generation, "created_ms": report.created_ms, "last_lsn": report.lsn, "node_id": node,
            "volume_id": volume, "files": report.files, "bytes": report.bytes,
        });
        writeln!(out, "{value}")?;
        return Ok(());
    }
    writeln!(out, "generation   {} of {}, up to frame {}", report.generation, utc(report.created_ms), report.lsn)?;
    writeln!(out, "volume       {volume} of node {node}")?;
    writeln!(out, "files        {} ({}), every checksum held", report.files, format_bytes(report.bytes))?;
    writeln!(out, "restored     {}: it is that node now; never run both", args.dir.display())?;
    Ok(())
}
