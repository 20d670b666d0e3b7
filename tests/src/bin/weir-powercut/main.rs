//! `make powercut`: power cuts and disk faults below a real file system, under load, against the real binary.
//!
//! The disk and its faults are told in [`weir_tests::disk`], the producers in [`weir_tests::load`]; what is done to the node is in
//! [`scenario`]. Every scenario ends with a power cut and a check: each record that was acknowledged is there once, in order.
//! Controls break the disk's own promise; there the check must fail, or it proves nothing.

#![forbid(unsafe_code)]

mod full;
mod rig;
mod scenario;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};
use weir_tests::disk::mount::{self, Kind};
use weir_tests::node::weir_beside_us;

use rig::Settings;
use scenario::Scenario;

#[derive(Debug, Parser)]
#[command(
    about = "Cuts the power of a node's disk under load, again and again, and checks that every acknowledged record is there once"
)]
struct Args {
    /// Power cuts of each scenario that counts them, on each file system
    #[arg(long, default_value_t = 50)]
    cuts: u32,
    /// File systems to try
    #[arg(long, value_enum, default_value_t = FileSystems::Both)]
    fs: FileSystems,
    /// Of what is torn, and of the pauses between cuts
    #[arg(long)]
    seed: Option<u64>,
    /// The program under test; by default the one of the same build
    #[arg(long)]
    weir: Option<PathBuf>,
    /// Only these scenarios; by default all of them
    #[arg(long, value_enum)]
    only: Vec<Scenario>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FileSystems {
    Ext4,
    Xfs,
    Both,
}

impl FileSystems {
    fn kinds(self) -> &'static [Kind] {
        match self {
            FileSystems::Ext4 => &[Kind::Ext4],
            FileSystems::Xfs => &[Kind::Xfs],
            FileSystems::Both => &[Kind::Ext4, Kind::Xfs],
        }
    }
}

fn main() -> ExitCode {
    match prepare() {
        Ok(settings) => run(settings),
        Err(message) => {
            eprintln!("weir-powercut: {message}");
            ExitCode::FAILURE
        }
    }
}

/// What to do, with all that it needs there, in namespaces of our own.
fn prepare() -> Result<(Settings, Vec<(Scenario, Kind)>), String> {
    let args = Args::parse();
    if let Some(missing) = mount::missing(args.fs.kinds()) {
        return Err(missing);
    }
    let weir = args.weir.unwrap_or_else(weir_beside_us);
    let weir = weir.canonicalize().map_err(|error| format!("{}: {error}", weir.display()))?;
    mount::isolated()?;
    let scenarios = if args.only.is_empty() { Scenario::value_variants() } else { &args.only };
    let runs = args.fs.kinds().iter().flat_map(|kind| scenarios.iter().map(|scenario| (*scenario, *kind))).collect();
    Ok((Settings { weir, cuts: args.cuts, seed: args.seed.unwrap_or_else(|| fastrand::u64(..1 << 32)) }, runs))
}

#[tokio::main]
async fn run((settings, runs): (Settings, Vec<(Scenario, Kind)>)) -> ExitCode {
    println!("seed={} cuts={} weir={}", settings.seed, settings.cuts, settings.weir.display());
    tokio::select! {
        good = all(&settings, runs) => if good { ExitCode::SUCCESS } else { ExitCode::FAILURE },
        // What is dropped here kills the node and takes disks and mounts away.
        () = interrupted() => {
            eprintln!("weir-powercut: interrupted");
            ExitCode::FAILURE
        }
    }
}

async fn all(settings: &Settings, runs: Vec<(Scenario, Kind)>) -> bool {
    let mut rows = Vec::new();
    for (scenario, kind) in runs {
        let row = scenario::run(settings, scenario, kind).await;
        println!("{}", table::line(&row));
        rows.push(row);
    }
    println!("\n{}", table::render(&rows));
    let bad = rows.iter().filter(|row| !row.is_good()).count();
    println!("{} of {} as they must be, seed={}", rows.len() - bad, rows.len(), settings.seed);
    bad == 0
}

async fn interrupted() {
    let caught = |kind| signal(kind).expect("signals can be caught in a process of our own");
    let (mut interrupt, mut terminate) = (caught(SignalKind::interrupt()), caught(SignalKind::terminate()));
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}
