//! `weir-sim`: the storage simulator from the command line. `--seed N` runs one seed, `--seeds N` that many, `--crashes N` as many
//! seeds as it takes; `--mirror N` runs that many seeds of two copies on two disks; `--from N` begins at that seed; `--control
//! ack-without-sync|lying-disk|mirror-stale|mirror-lying` must find a violation and says so with its exit code.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::panic::catch_unwind;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::available_parallelism;

use weir_storage::sim::{CRASHES_PER_SEED, Mode, Tally, Violation, run};

const USAGE: &str = "usage: weir-sim [--seed N | --seeds N | --crashes N | --mirror N] [--from N] [--control ack-without-sync | lying-disk | mirror-stale | mirror-lying]";

struct Args {
    from: u64,
    seeds: u64,
    control: Option<Mode>,
    mirror: bool,
}

fn parse() -> Result<Args, String> {
    let mut args = Args { from: 0, seeds: 200, control: None, mirror: false };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().ok_or(USAGE)?;
        let number = || value.parse::<u64>().map_err(|_| format!("{word} wants a number, not {value:?}\n{USAGE}"));
        match word.as_str() {
            "--seed" => (args.from, args.seeds) = (number()?, 1),
            "--seeds" => args.seeds = number()?,
            "--from" => args.from = number()?,
            "--crashes" => args.seeds = number()?.div_ceil(CRASHES_PER_SEED),
            "--mirror" => (args.seeds, args.mirror) = (number()?, true),
            "--mirror-seed" => (args.from, args.seeds, args.mirror) = (number()?, 1, true),
            "--control" if value == "mirror-stale" => args.control = Some(Mode::MirrorStale),
            "--control" if value == "mirror-lying" => args.control = Some(Mode::MirrorLying),
            "--control" if value == "ack-without-sync" => args.control = Some(Mode::AckWithoutSync),
            "--control" if value == "lying-disk" => args.control = Some(Mode::LyingDisk),
            _ => return Err(format!("{word} {value} makes no sense\n{USAGE}")),
        }
    }
    Ok(args)
}

fn print(tally: &Tally) {
    println!(
        "sim seeds={} crashes={} appends={} acknowledged={} lost={} duplicated={} resurrected={} in_gaps={} unprovable={} refused_opens={} torn_tails={} recycled={} full={} resent={} sorted={} promoted={} in_haste={} expired={} merged={} kept={} compacted={} passes={} in_parts={} rereads={} searches={} jobs_cut={} fenced={} two_copies={} mended={} degraded_opens={} filled={} replaced={} died={} backups={} backups_reused={} backups_given_up={} single={} doubled={} copied={} wal_scrubs={} wal_mended={} rescued={} trace={:016x}",
        tally.seeds,
        tally.crashes,
        tally.appends,
        tally.acknowledged,
        tally.lost,
        tally.duplicated,
        tally.resurrected,
        tally.in_gaps,
        tally.unprovable,
        tally.refused_opens,
        tally.torn_tails,
        tally.recycled,
        tally.full,
        tally.resent,
        tally.sorted,
        tally.promoted,
        tally.hasty,
        tally.expired,
        tally.merged,
        tally.kept,
        tally.compacted,
        tally.passes,
        tally.in_parts,
        tally.rereads,
        tally.searches,
        tally.jobs_cut,
        tally.fenced,
        tally.two_copies,
        tally.mended,
        tally.degraded_opens,
        tally.filled,
        tally.replaced,
        tally.died,
        tally.backups,
        tally.backups_reused,
        tally.backups_given_up,
        tally.single,
        tally.doubled,
        tally.copied,
        tally.wal_scrubs,
        tally.wal_mended,
        tally.rescued,
        tally.trace
    );
}

/// What a seed of the plain histories, or of the mirrored ones, is for.
fn mode_of(seed: u64, args: &Args) -> Mode {
    // Every fifth seed damages the disk as well.
    let mode = match (args.mirror, seed % 5 == 4) {
        (false, false) => Mode::Power,
        (false, true) => Mode::Damage,
        (true, false) => Mode::Mirror,
        (true, true) => Mode::MirrorRot,
    };
    args.control.unwrap_or(mode)
}

/// The panic's own message went to standard error.
fn panicked(seed: u64) -> Violation {
    Violation { seed, crash: 0, what: "something panicked".to_owned(), tally: Box::default() }
}

/// Runs the seeds on all cores, up to the first violation. Results are in the order of the seeds, so they are the same on any machine.
fn run_all(args: &Args) -> BTreeMap<u64, Result<Tally, Violation>> {
    let next = AtomicU64::new(args.from);
    let violated = AtomicBool::new(false);
    let results = Mutex::new(BTreeMap::new());
    let work = || {
        while !violated.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed - args.from >= args.seeds {
                return;
            }
            let result = catch_unwind(|| run(seed, mode_of(seed, args))).unwrap_or_else(|_| Err(panicked(seed)));
            violated.fetch_or(result.is_err(), Ordering::Relaxed);
            results.lock().expect("no seed panics while it holds this").insert(seed, result);
        }
    };
    let threads = available_parallelism().map_or(1, NonZeroUsize::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    results.into_inner().expect("no seed panics while it holds this")
}

fn main() -> ExitCode {
    let args = match parse() {
        Ok(args) => args,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(2);
        }
    };
    let mut tally = Tally::default();
    for (seed, result) in run_all(&args) {
        match result {
            Ok(one) => tally.add(&one),
            Err(violation) => {
                tally.add(&violation.tally);
                print(&tally);
                println!(
                    "violation: {violation} (mode {:?}; repeat with --{} {seed})",
                    mode_of(seed, &args),
                    if args.mirror { "mirror-seed" } else { "seed" }
                );
                return ExitCode::FAILURE;
            }
        }
    }
    print(&tally);
    ExitCode::SUCCESS
}
