//! `weir backup`: asks a running node for a backup, makes one of a stopped node's directory, and lists and verifies what there is.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use weir_storage::backup::{self, BackupError, BackupOptions, GenerationInfo, Problem};
use weir_storage::format::uuid_text;

use super::progress::{bar, show};
use super::table::table;
use super::{ConnectArgs, Exit, Failure};
use crate::broker::report_json;
use crate::config::{format_bytes, parse_bytes};

/// How often a running node is asked how far it is.
const ASK_EVERY: Duration = Duration::from_millis(300);
/// Lines for people; --json has all.
const LINES_MAX: usize = 50;

#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 made, or sound · 1 failed, or damage found · 2 not done (wrong directory, in use, newer format) · \
3 node not reachable · 4 refused"
)]
pub(super) struct BackupArgs {
    /// The backup directory. Of a running node: on its machine, below its backup.dir; otherwise, and with --list and --verify: here
    dir: PathBuf,
    /// Backs up this data directory of a stopped node, without asking any node
    #[arg(long, value_name = "DATA_DIR", conflicts_with_all = ["list", "verify"])]
    data: Option<PathBuf>,
    /// With --data: another disk of the node, as [[volume]] in its configuration; once for each
    #[arg(long = "volume", value_name = "DIR", requires = "data")]
    volumes: Vec<PathBuf>,
    /// Generations to keep, the new one included; without it all
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), conflicts_with_all = ["list", "verify"])]
    keep: Option<u32>,
    /// Bytes to read a second at most, with --data; a running node's limit is backup.bandwidth_bytes_max
    #[arg(long, value_name = "SIZE", requires = "data", value_parser = size)]
    bandwidth: Option<u64>,
    /// Lists the generations in the directory
    #[arg(long, conflicts_with = "verify")]
    list: bool,
    /// Reads every file and compares its checksum
    #[arg(long)]
    verify: bool,
    /// With --verify: only this generation
    #[arg(long, value_name = "N", requires = "verify")]
    generation: Option<u64>,
    /// What came of it as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

fn size(text: &str) -> Result<u64, String> {
    parse_bytes(text).filter(|bytes| *bytes > 0).ok_or_else(|| "write it as 65536, 64KiB or 32MiB".to_owned())
}

pub(super) fn run(args: BackupArgs) -> Result<(), Failure> {
    if args.list {
        return list(&args);
    }
    if args.verify {
        return verify(&args);
    }
    let report = match &args.data {
        Some(data) => {
            let options = BackupOptions { keep: args.keep.map(u64::from), bandwidth_bytes_max: args.bandwidth };
            let bar = bar();
            let result =
                backup::backup_stopped_volumes(data, &args.volumes, &args.dir, options, &mut |progress| show(&bar, progress));
            bar.finish_and_clear();
            report_json(&result.map_err(failure)?)
        }
        None => super::block_on(ask(&args))?,
    };
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{report}")?
    } else {
        out.write_all(made_text(&report).as_bytes())?
    }
    Ok(())
}

/// What a storage error means for the exit code: 2 where nothing was tried.
pub(super) fn failure(error: BackupError) -> Failure {
    use BackupError as E;
    let exit = match &error {
        E::Volume(_)
        | E::NoVolume(_)
        | E::NoVolumeOfIt(_)
        | E::Elsewhere { .. }
        | E::NoBackup(_)
        | E::NotABackup { .. }
        | E::Locked(_) => Exit::Usage,
        E::Foreign { .. } | E::NoGeneration(_) | E::TargetNotEmpty { .. } => Exit::Usage,
        E::Manifest { problem, .. } if problem.is_newer() => Exit::Usage,
        _ => Exit::Failed,
    };
    let in_use = matches!(&error, E::Volume(weir_storage::OpenError::InUse { .. }));
    let failure = Failure::new(exit, error);
    if in_use { failure.next("leave --data out to ask the running node (--addr, --certs)") } else { failure }
}

/// Asks a running node, and waits for the end.
async fn ask(args: &BackupArgs) -> Result<Value, Failure> {
    let admin = args.connect.connect().await?.admin();
    let dir = args.dir.to_str().ok_or_else(|| Failure::usage("the directory's name must be UTF-8"))?;
    let started = admin.start_backup(dir, args.keep.unwrap_or(0)).await.map_err(|error| args.connect.failure(error))?;
    let mut status = super::parse_answer("backup", &started)?;
    let number = status["number"].clone();
    let bar = bar();
    while status["state"] == "running" && status["number"] == number {
        tokio::time::sleep(ASK_EVERY).await;
        let answer = admin.backup_status().await.map_err(|error| {
            args.connect.failure(error).next("the backup goes on if the node does: `weir status` shows what comes of it")
        })?;
        status = super::parse_answer("backup", &answer)?;
        let count = |name: &str| status[name].as_u64().unwrap_or(0);
        show(&bar, backup::Progress { bytes_done: count("bytes_done"), bytes_total: count("bytes_total") });
    }
    bar.finish_and_clear();
    match status["state"].as_str() {
        Some("done") if status["number"] == number => Ok(status["report"].clone()),
        Some("failed") if status["number"] == number => {
            Err(Failure::new(Exit::Failed, status["error"].as_str().unwrap_or("the node does not say why")))
        }
        _ => Err(Failure::new(Exit::Failed, "the node has begun another backup since; --list shows what came of this one")),
    }
}

fn made_text(report: &Value) -> String {
    let count = |name: &str| report[name].as_u64().unwrap_or(0);
    let bytes = |name: &str| format_bytes(count(name));
    let mut text = format!(
        "generation   {}, up to frame {}\nfiles        {} ({}), of them {} ({}) copied now\n",
        count("generation"),
        count("last_lsn"),
        count("files"),
        bytes("bytes"),
        count("copied_files"),
        bytes("copied_bytes"),
    );
    let numbers = |name: &str| {
        let all: Vec<String> = report[name].as_array().into_iter().flatten().map(Value::to_string).collect();
        all.join(", ")
    };
    if !numbers("generations_removed").is_empty() {
        text += &format!("removed      generation {}\n", numbers("generations_removed"));
    }
    if count("files_removed") > 0 {
        text += &format!("removed      {} files ({}) that no generation names\n", count("files_removed"), bytes("bytes_removed"));
    }
    if !numbers("damaged_generations").is_empty() {
        let damaged = numbers("damaged_generations");
        text += &format!("DAMAGE       the manifest of generation {damaged}: no file is removed while it is there\n");
    }
    for damage in report["source_damage"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        text += &format!("DAMAGE       of the node itself, {damage}: in the backup as it is; `weir check` says what is lost\n");
    }
    text
}

fn list(args: &BackupArgs) -> Result<(), Failure> {
    let generations = backup::list(&args.dir).map_err(failure)?;
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", Value::Array(generations.iter().map(generation_json).collect()))?;
    } else {
        let rows: Vec<[String; 6]> = generations.iter().map(generation_row).collect();
        out.write_all(table(["GENERATION", "MADE", "FRAME", "FILES", "SIZE", "NEW"], &rows).as_bytes())?;
    }
    let damaged = generations.iter().filter(|info| info.manifest.is_err()).count();
    if damaged == 0 { Ok(()) } else { Err(Failure::new(Exit::Failed, format!("{damaged} generation(s) cannot be read"))) }
}

fn generation_row(info: &GenerationInfo) -> [String; 6] {
    let generation = info.generation.to_string();
    match &info.manifest {
        Ok(manifest) => [
            generation,
            utc(manifest.created_ms),
            manifest.lsn.to_string(),
            manifest.files.len().to_string(),
            format_bytes(manifest.bytes()),
            format_bytes(info.new_bytes),
        ],
        Err(problem) => [generation, problem.to_string(), String::new(), String::new(), String::new(), String::new()],
    }
}

fn generation_json(info: &GenerationInfo) -> Value {
    match &info.manifest {
        Ok(manifest) => json!({
            "generation": info.generation, "ok": true, "created_ms": manifest.created_ms, "last_lsn": manifest.lsn,
            "node_id": uuid_text(&manifest.superblock.node_id), "volume_id": uuid_text(&manifest.superblock.volume_id),
            "files": manifest.files.len(), "bytes": manifest.bytes(), "new_bytes": info.new_bytes,
        }),
        Err(problem) => json!({ "generation": info.generation, "ok": false, "reason": problem.to_string() }),
    }
}

fn verify(args: &BackupArgs) -> Result<(), Failure> {
    let bar = bar();
    let result = backup::verify(&args.dir, args.generation, &mut |progress| show(&bar, progress));
    bar.finish_and_clear();
    let report = result.map_err(|error| Failure::new(Exit::Usage, format!("not verified: {error}")))?;
    let mut out = std::io::stdout().lock();
    if args.json {
        let problems: Vec<Value> = report
            .problems
            .iter()
            .map(|problem| json!({ "generations": problem.generations, "file": problem.file, "what": problem.what }))
            .collect();
        let (generations, files, bytes) = (&report.generations, report.files, report.bytes);
        let sound = problems.is_empty();
        let value = json!({ "sound": sound, "generations": generations, "files": files, "bytes": bytes, "problems": problems });
        writeln!(out, "{value}")?;
    } else {
        let generations = report.generations.len();
        writeln!(out, "{generations} generation(s), {} files ({})", report.files, format_bytes(report.bytes))?;
        for problem in report.problems.iter().take(LINES_MAX) {
            writeln!(out, "{}", problem_line(problem))?;
        }
        if report.problems.len() > LINES_MAX {
            writeln!(out, "             … and {} more; --json lists them", report.problems.len() - LINES_MAX)?;
        }
        writeln!(out, "{}", if report.problems.is_empty() { "sound" } else { "damaged" })?;
    }
    if report.problems.is_empty() {
        return Ok(());
    }
    let next =
        "another generation may be whole (--generation N); make a new backup while the node lives, into an empty directory";
    Err(Failure::new(Exit::Failed, format!("damage found in {} file(s)", report.problems.len())).next(next))
}

fn problem_line(problem: &Problem) -> String {
    let generations: Vec<String> = problem.generations.iter().map(u64::to_string).collect();
    format!("DAMAGE       {}: {} (generation {})", problem.file, problem.what, generations.join(", "))
}

/// A time as people write it.
pub(super) fn utc(ms: u64) -> String {
    crate::quickstart::wall_clock(ms.cast_signed()).replace(' ', "T") + "Z"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_as_dates() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_827_696_000, "2000-02-29T12:34:56Z"),
            (1_735_689_599_999, "2024-12-31T23:59:59Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc(ms), text);
        }
    }
}
