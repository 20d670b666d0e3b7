//! `weir serve`: loads the configuration, starts the node, waits for a signal, drains.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::{Exit, Failure, block_on};
use crate::config::{Config, DEFAULT_TOML, Sources};
use crate::logs;
use crate::serve::StartError;

/// Where the configuration is looked for when no file is named.
const SYSTEM_CONFIG: &str = "/etc/weir/weir.toml";

#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// Configuration file; without it /etc/weir/weir.toml if that exists, else the defaults
    #[arg(short, long, env = "WEIR_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Overrides one setting, e.g. --set log.segment_bytes=16MiB; may be repeated
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    overrides: Vec<String>,
    /// Memory the node may take: buffers with default sizes are made to fit. Short for --set node.memory_bytes_max=SIZE;
    /// without it, what the control group allows
    #[arg(long, value_name = "SIZE")]
    memory_max: Option<String>,
    /// Prints every setting with its default and what it means, and ends
    #[arg(long)]
    print_config: bool,
    /// Checks the configuration, prints the values that would be used, and ends
    #[arg(long, conflicts_with = "print_config")]
    check: bool,
}

pub(super) fn run(args: ServeArgs, verbosity: u8) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    if args.print_config {
        out.write_all(DEFAULT_TOML.as_bytes())?;
        return Ok(());
    }
    let memory_max = args.memory_max.map(|size| format!("node.memory_bytes_max={size}"));
    let mut config = load(args.config, args.overrides.into_iter().chain(memory_max).collect())?;
    if args.check {
        out.write_all(config.to_toml().as_bytes())?;
        return Ok(());
    }
    drop(out);
    if verbosity > 0 {
        config.trace.level = if verbosity == 1 { "debug,quinn=info,wasmtime=info" } else { "trace" }.to_owned();
    }
    logs::init(&config.trace);
    end_with_the_log();
    block_on(serve(config))
}

/// A node whose log thread has panicked can acknowledge nothing and answer nobody: it ends at once, so that whoever supervises it
/// starts it again, and the start recovers everything that was acknowledged.
fn end_with_the_log() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        if std::thread::current().name() == Some(weir_storage::LOG_THREAD) {
            std::process::abort();
        }
    }));
}

fn load(file: Option<PathBuf>, overrides: Vec<String>) -> Result<Config, Failure> {
    let system = PathBuf::from(SYSTEM_CONFIG);
    let file = file.or_else(|| system.exists().then_some(system));
    Ok(Config::load(&Sources::from_process(file, overrides))?)
}

async fn serve(config: Config) -> Result<(), Failure> {
    // Signals are caught before anything starts, so that none of them ends the node without draining.
    let caught = |error: std::io::Error| Failure::new(Exit::Failed, format!("cannot catch signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(caught)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(caught)?;
    let node = crate::serve::start(config).await.map_err(not_started)?;
    let name = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    tracing::info!(signal = name, "draining; a second signal ends at once");
    tokio::select! {
        () = node.shutdown() => Ok(()),
        _ = terminate.recv() => Err(Failure::new(Exit::Failed, "ended by a second signal; what was acknowledged is safe")),
        _ = interrupt.recv() => Err(Failure::new(Exit::Failed, "ended by a second signal; what was acknowledged is safe")),
    }
}

fn not_started(error: StartError) -> Failure {
    let fenced = matches!(error, StartError::Log { source: weir_storage::OpenError::Fenced, .. });
    let failure = Failure::new(Exit::Failed, error);
    if fenced { failure.next("weir serve --set log.accept_fenced=true, for one start") } else { failure }
}
