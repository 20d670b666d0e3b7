//! The command line: one file a command, one meaning for every exit code.
//!
//! `main` parses the arguments, starts an executor and runs the command. What a command found goes to standard output (JSON
//! where asked for), what it has to say about itself to standard error. A [`Failure`] ends the program with its exit code and
//! says what to do next.

mod backup;
mod bench;
mod cert;
mod check;
mod connect;
mod consume;
mod disk;
mod dump;
mod failure;
mod format;
mod group;
mod pipeline;
pub mod plugin;
mod plugin_store;
mod produce;
mod progress;
mod quickstart;
mod restore;
mod serve;
mod status;
mod table;
#[cfg(test)]
mod tests;
mod topic;

use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

pub use connect::ConnectArgs;
pub use failure::{Exit, Failure};

const EXIT_CODES: &str = "\
Exit codes: 0 done · 1 failed · 2 wrong usage or configuration · 3 node not reachable · 4 refused: not authorised, or over a limit ·
5 no such topic, partition, group or plugin · 6 exists already
Environment: WEIR_ADDR, WEIR_CERTS, WEIR_AS, WEIR_CA, WEIR_CERT, WEIR_KEY (clients) · WEIR_CONFIG, WEIR_SECTION__KEY (serve)";

/// Edge streaming: devices publish over QUIC, plugins decide, a durable log keeps, consumers replay.
#[derive(Debug, Parser)]
#[command(name = "weir", version, after_help = EXIT_CODES, propagate_version = false)]
pub struct Cli {
    /// Says more on standard error: -v info, -vv debug
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs a node
    Serve(serve::ServeArgs),
    /// Shows the whole product in under a minute: fleet, pipeline, kill -9, proof
    Quickstart(quickstart::QuickstartArgs),
    /// What the node is doing
    Status(status::StatusArgs),
    /// Creates, deletes and shows topics
    Topic(topic::TopicArgs),
    /// Publishes lines of standard input or a file
    Produce(produce::ProduceArgs),
    /// Prints records
    Consume(consume::ConsumeArgs),
    /// Positions of consumer groups
    Group(group::GroupArgs),
    /// Writes, builds, tests, uploads and lists plugins
    #[command(subcommand)]
    Plugin(PluginCommand),
    /// Attaches plugins to topics
    Pipeline(pipeline::PipelineArgs),
    /// Makes a CA, server and client certificates
    Cert(cert::CertArgs),
    /// Measures a node over the real protocol
    Bench(bench::BenchArgs),
    /// The node's disks: shows, adds, drains, replaces them
    Disk(disk::DiskArgs),
    /// Checks a stopped node's data directory: reads everything, changes nothing
    Check(check::CheckArgs),
    /// Backs up a node, running or stopped; lists and verifies backups
    Backup(backup::BackupArgs),
    /// Makes a data directory from a backup
    Restore(restore::RestoreArgs),
    /// Prints what a segment file, a cold segment or a superblock holds
    Dump(dump::DumpArgs),
    /// Prints a completion script, e.g. `weir completion bash > /etc/bash_completion.d/weir`
    Completion {
        /// Whose completion
        shell: Shell,
    },
    /// Prints the version
    Version {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Subcommand)]
enum PluginCommand {
    #[command(flatten)]
    Author(plugin::PluginCommand),
    #[command(flatten)]
    Store(plugin_store::StoreCommand),
}

/// Parses the process's arguments, runs the command and returns its exit code.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    if !matches!(cli.command, Command::Serve(_)) {
        crate::logs::init_client(cli.verbose);
    }
    match cli.command {
        Command::Serve(args) => serve::run(args, cli.verbose),
        Command::Quickstart(args) => block_on(quickstart::run(args)),
        Command::Status(args) => block_on(status::run(args)),
        Command::Topic(args) => block_on(topic::run(args)),
        Command::Produce(args) => block_on(produce::run(args)),
        Command::Consume(args) => block_on(consume::run(args)),
        Command::Group(args) => block_on(group::run(args)),
        Command::Plugin(PluginCommand::Author(command)) => plugin::run(command),
        Command::Plugin(PluginCommand::Store(command)) => block_on(plugin_store::run(command)),
        Command::Pipeline(args) => block_on(pipeline::run(args)),
        Command::Cert(args) => cert::run(args),
        Command::Bench(args) => block_on_one_thread(bench::run(args)),
        Command::Disk(args) => block_on(disk::run(args)),
        Command::Check(args) => check::run(args),
        Command::Backup(args) => backup::run(args),
        Command::Restore(args) => restore::run(args),
        Command::Dump(args) => dump::run(args),
        Command::Completion { shell } => completion(shell),
        Command::Version { json } => version(json),
    }
}

/// Runs a command's future on an executor of its own.
pub(crate) fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    run_on(tokio::runtime::Builder::new_multi_thread(), future)
}

/// The same on the calling thread alone: a load generator that wakes other threads for each answer measures itself.
fn block_on_one_thread<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    run_on(tokio::runtime::Builder::new_current_thread(), future)
}

fn run_on<T>(mut executor: tokio::runtime::Builder, future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = executor
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot start the executor: {error}")))?;
    let result = runtime.block_on(async {
        let result = future.await;
        connect::close_all().await;
        result
    });
    // A blocked read of standard input must not keep the program from ending.
    runtime.shutdown_background();
    result
}

/// `KEY=VALUE` arguments.
fn parse_pair(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
    pair.ok_or_else(|| "write it as KEY=VALUE".to_owned())
}

/// JSON that the node answered with.
fn parse_answer(what: &str, text: &str) -> Result<serde_json::Value, Failure> {
    serde_json::from_str(text)
        .map_err(|error| Failure::new(Exit::Failed, format!("the node's {what} is not JSON ({error}); are both of one version?")))
}

fn completion(shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "weir", &mut script);
    std::io::stdout().lock().write_all(&script)?;
    Ok(())
}

fn version(json: bool) -> Result<(), Failure> {
    let (version, arch, os) = (env!("CARGO_PKG_VERSION"), std::env::consts::ARCH, std::env::consts::OS);
    let mut out = std::io::stdout().lock();
    if json {
        let value = serde_json::json!({ "version": version, "protocol": "weir/1", "arch": arch, "os": os });
        writeln!(out, "{value}")?;
    } else {
        writeln!(out, "weir {version} (protocol weir/1, {os} {arch})")?;
    }
    Ok(())
}
