//! `weir disk`: the disks of a running node, and how one is added, emptied, replaced, let go of.

use std::io::Write;

use clap::{Args, Subcommand};
use serde_json::Value;

use super::table::table;
use super::{ConnectArgs, Failure};

#[derive(Debug, Args)]
pub(super) struct DiskArgs {
    #[command(subcommand)]
    command: DiskCommand,
}

#[derive(Debug, Subcommand)]
enum DiskCommand {
    /// Shows the node's disks, what they hold, and how far copying is
    Status {
        /// Those as well that were let go of for good
        #[arg(short, long)]
        all: bool,
        /// One JSON array
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        connect: ConnectArgs,
    },
    /// Adds an empty directory of the node's machine as a disk
    Add {
        /// The directory, on a disk of its own; where the log has one copy, it gets the second one
        dir: String,
        #[command(flatten)]
        connect: ConnectArgs,
    },
    /// Moves everything that a disk holds to the others, so that it can be taken out
    Drain {
        /// Its number, as `weir disk status` shows it
        #[arg(value_name = "DISK")]
        number: u8,
        /// Not any more: it takes new segments again
        #[arg(long)]
        undo: bool,
        #[command(flatten)]
        connect: ConnectArgs,
    },
    /// Puts an empty directory in the place of a dead or ailing disk, and fills it from the others
    Replace {
        /// Number of the disk that goes, as `weir disk status` shows it
        #[arg(value_name = "DISK")]
        number: u8,
        /// The directory on the new disk
        dir: String,
        /// Even if the old one holds what no other disk has; that is lost then
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        connect: ConnectArgs,
    },
    /// Lets go of a disk for good
    Remove {
        /// Its number, as `weir disk status` shows it
        #[arg(value_name = "DISK")]
        number: u8,
        /// Even if it holds what no other disk has; that is lost then
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        connect: ConnectArgs,
    },
}

/// A directory added while the node runs is not in its configuration.
const KEEP_IT: &str = "the node looks there after a restart only if its configuration says so; add to it:\n\n  [[volume]]\n";

pub(super) async fn run(args: DiskArgs) -> Result<(), Failure> {
    match args.command {
        DiskCommand::Status { all, json, connect } => status(all, json, &connect).await,
        DiskCommand::Add { dir, connect } => {
            let client = connect.connect().await?;
            let answer = client.admin().add_disk(&dir).await.map_err(|error| connect.failure(error))?;
            added(&dir, &answer)
        }
        DiskCommand::Replace { number, dir, force, connect } => {
            let client = connect.connect().await?;
            let answer = client.admin().replace_disk(number, &dir, force).await.map_err(|error| connect.failure(error))?;
            added(&dir, &answer)
        }
        DiskCommand::Drain { number, undo, connect } => {
            let client = connect.connect().await?;
            client.admin().drain_disk(number, !undo).await.map_err(|error| connect.failure(error))?;
            let what = if undo { "takes new segments again" } else { "is being drained; weir disk status shows how far it is" };
            Ok(writeln!(std::io::stdout().lock(), "disk {number} {what}")?)
        }
        DiskCommand::Remove { number, force, connect } => {
            let client = connect.connect().await?;
            client.admin().remove_disk(number, force).await.map_err(|error| connect.failure(error))?;
            Ok(writeln!(std::io::stdout().lock(), "disk {number} is let go of")?)
        }
    }
}

fn added(dir: &str, answer: &str) -> Result<(), Failure> {
    let disk = super::parse_answer("disk", answer)?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{dir} is disk {}; {KEEP_IT}  dir = {}", cell(&disk["disk"]), Value::from(dir))?;
    Ok(())
}

async fn status(all: bool, json: bool, connect: &ConnectArgs) -> Result<(), Failure> {
    let client = connect.connect().await?;
    let answer = client.admin().list_disks().await.map_err(|error| connect.failure(error))?;
    let disks = super::parse_answer("list of disks", &answer)?;
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{disks}")?;
        return Ok(());
    }
    out.write_all(rendered(&disks, all).as_bytes())?;
    Ok(())
}

fn rendered(disks: &Value, all: bool) -> String {
    let shown = disks.as_array().into_iter().flatten().filter(|disk| all || disk["state"] != "gone");
    let rows: Vec<_> = shown.map(row).collect();
    table(["DISK", "STATE", "LOG", "SEGMENTS", "ONLY-HERE", "USED", "FREE", "ERRORS", "DIRECTORY"], &rows)
}

fn row(disk: &Value) -> [String; 9] {
    let size = |key: &str| disk[key].as_u64().map_or_else(|| "-".to_owned(), crate::config::format_bytes);
    let plain = |key: &str| cell(&disk[key]);
    [
        plain("disk"),
        plain("state"),
        plain("log"),
        plain("segments"),
        plain("only_copies"),
        size("used_bytes"),
        size("free_bytes"),
        plain("errors"),
        plain("dir"),
    ]
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_a_line_each_and_what_is_not_known_is_a_dash() {
        let disks = serde_json::json!([
            { "disk": 0, "state": "healthy", "log": "copy", "segments": 12, "only_copies": 0, "used_bytes": 2048, "free_bytes": 4096,
              "errors": 0, "dir": "/a" },
            { "disk": 1, "state": "offline", "log": null, "segments": 7, "only_copies": 7, "used_bytes": 9, "free_bytes": null,
              "errors": 3, "dir": null },
            { "disk": 2, "state": "gone" },
        ]);
        assert_eq!(rendered(&disks, true).lines().count(), 4);
        let text = rendered(&disks, false);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1], ["0", "healthy", "copy", "12", "0", "2.0", "KiB", "4.0", "KiB", "0", "/a"]);
        assert_eq!(lines[2], ["1", "offline", "-", "7", "7", "9", "B", "-", "3", "-"]);
    }
}
