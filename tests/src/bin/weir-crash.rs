//! `make crash`: SIGKILL under load, round after round, against the real binary.
//!
//! The producers are those of [`weir_tests::load`]. After every few rounds everything is read back and held against what was
//! acknowledged. The last line is for scripts, the exit code follows it.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use weir_tests::ledger::Verdict;
use weir_tests::load::{self, Fleet, Load};
use weir_tests::node::{Site, weir_beside_us};

/// Rounds between two checks; each reads the whole topic.
const CHECK_EVERY: u32 = 5;
/// Segments are small, so that kills also hit the roll from one to the next.
const CONFIG: &str = "[log]\nsegment_bytes = \"8MiB\"\nframe_bytes_max = \"2MiB\"\n";

#[derive(Debug, Parser)]
#[command(about = "Kills a node under load, again and again, and checks that every acknowledged record is there once, in order")]
struct Args {
    /// Times the node is killed
    #[arg(long, default_value_t = 50)]
    rounds: u32,
    /// The program under test; by default the one of the same build
    #[arg(long)]
    weir: Option<PathBuf>,
    /// Producers of each kind
    #[arg(long, default_value_t = 2)]
    producers: u32,
    /// Of the random pauses and sizes
    #[arg(long)]
    seed: Option<u64>,
    /// Directory of the node (kept); by default a temporary one
    #[arg(long)]
    dir: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    match run(args).await {
        Ok(verdict) => {
            println!("{verdict}");
            if verdict.holds() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(message) => {
            eprintln!("weir-crash: {message}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> Result<Verdict, String> {
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..));
    let mut random = fastrand::Rng::with_seed(seed);
    let temporary = tempfile::tempdir().map_err(|error| error.to_string())?;
    let dir = args.dir.unwrap_or_else(|| temporary.path().to_path_buf());
    let weir = args.weir.unwrap_or_else(weir_beside_us);
    let weir = weir.canonicalize().map_err(|error| format!("{}: {error}", weir.display()))?;
    let site = Site::make(&weir, &dir, CONFIG).map_err(|error| error.to_string())?;
    println!("seed={seed} rounds={} producers={}", args.rounds, 2 * args.producers);

    let mut node = site.start()?;
    load::create_topic(&site).await?;
    let mut fleet = Fleet::start(&site, Load { producers: args.producers, ..Load::default() });
    let mut verdict = Verdict::default();
    for round in 1..=args.rounds {
        tokio::time::sleep(Duration::from_millis(random.u64(100..800))).await;
        node.kill();
        fleet.kill_restarted().await?;
        node = site.start()?;
        fleet.start_restarted(&site);
        if round % CHECK_EVERY != 0 && round != args.rounds {
            continue;
        }
        verdict = check(&site, &mut fleet).await?;
        println!("round {round}: {verdict}");
        if !verdict.holds() {
            println!("the node's directory is {}", dir.display());
            let _ = temporary.keep();
            return Ok(verdict);
        }
    }
    node.stop().map_err(|error| error.to_string())?;
    Ok(verdict)
}

/// Pauses all producers, reads everything, lets them go on.
async fn check(site: &Site, fleet: &mut Fleet) -> Result<Verdict, String> {
    fleet.pause(site).await?;
    let verdict = load::read_back(site).await?.check(&fleet.promises());
    fleet.go_on(site);
    Ok(verdict)
}
