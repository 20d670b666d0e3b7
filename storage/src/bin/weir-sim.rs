//! `weir-sim`: the storage simulator from the command line. `--seed N` runs one seed, `--seeds N` that many, `--crashes N` as many
//! seeds as it takes; `--mirror N` runs that many seeds of two copies on two disks; `--control
//! ack-without-sync|lying-disk|mirror-stale|mirror-lying` must find a violation and says so with its exit code.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use weir_storage::sim::{CRASHES_PER_SEED, Mode, Tally, run};

const USAGE: &str = "usage: weir-sim [--seed N | --seeds N | --crashes N] [--mirror N] [--control ack-without-sync | lying-disk | mirror-stale | mirror-lying]";

struct Args {
    seeds: std::ops::Range<u64>,
    control: Option<Mode>,
    mirror: bool,
}

fn parse() -> Result<Args, String> {
    let mut args = Args { seeds: 0..200, control: None, mirror: false };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().ok_or(USAGE)?;
        let number = || value.parse::<u64>().map_err(|_| format!("{word} wants a number, not {value:?}\n{USAGE}"));
        match word.as_str() {
            "--seed" => args.seeds = number()?..number()? + 1,
            "--seeds" => args.seeds = 0..number()?,
            "--crashes" => args.seeds = 0..number()?.div_ceil(CRASHES_PER_SEED),
            "--mirror" => (args.seeds, args.mirror) = (0..number()?, true),
            "--mirror-seed" => (args.seeds, args.mirror) = (number()?..number()? + 1, true),
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
        "sim seeds={} crashes={} appends={} acknowledged={} lost={} duplicated={} resurrected={} in_gaps={} unprovable={} refused_opens={} torn_tails={} recycled={} full={} resent={} sorted={} expired={} merged={} compacted={} passes={} rereads={} searches={} jobs_cut={} fenced={} two_copies={} mended={} degraded_opens={} filled={} replaced={} died={} trace={:016x}",
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
        tally.expired,
        tally.merged,
        tally.compacted,
        tally.passes,
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
        tally.trace
    );
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
    for seed in args.seeds {
        // Every fifth seed damages the disk as well.
        let damages = seed % 5 == 4;
        let mode = match (args.mirror, damages) {
            (false, false) => Mode::Power,
            (false, true) => Mode::Damage,
            (true, false) => Mode::Mirror,
            (true, true) => Mode::MirrorRot,
        };
        let mode = args.control.unwrap_or(mode);
        match run(seed, mode) {
            Ok(one) => tally.add(&one),
            Err(violation) => {
                tally.add(&violation.tally);
                print(&tally);
                println!(
                    "violation: {violation} (mode {mode:?}; repeat with --{} {seed})",
                    if args.mirror { "mirror-seed" } else { "seed" }
                );
                return ExitCode::FAILURE;
            }
        }
    }
    print(&tally);
    ExitCode::SUCCESS
}
