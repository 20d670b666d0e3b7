//! `weir plugin new | build | test`: what a plugin's author needs, on the author's machine; no node takes part.
//!
//! `new` writes a crate from the templates, `build` compiles it and packs the module into a component, `test` runs that over
//! a file of records and shows what became of each. The errors say what to do next.

mod build;
mod scaffold;
mod toolchain;
mod trial;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use thiserror::Error;

use super::{Exit, Failure};

pub use build::build;

/// What can be done with a plugin without a node.
#[derive(Debug, Subcommand)]
pub enum PluginCommand {
    /// Writes a new plugin: a crate that compiles, with its test
    New(NewArgs),
    /// Compiles a plugin and packs it into a component
    Build(BuildArgs),
    /// Runs a packed plugin over a file of records and shows what became of them
    Test(TestArgs),
}

/// Arguments of `new`.
#[derive(Debug, Args)]
pub struct NewArgs {
    /// Its name: a-z, 0-9 and '-'
    name: String,
    /// Where to write it; NAME here by default
    #[arg(long, value_name = "DIR")]
    path: Option<PathBuf>,
    /// The SDK: the folder sdk/plugin of a clone of Weir, or a git URL
    #[arg(long, value_name = "PATH|URL")]
    sdk: Option<String>,
}

/// Arguments of `build`.
#[derive(Debug, Args)]
pub struct BuildArgs {
    /// Folders with a weir-plugin.toml
    #[arg(value_name = "DIR", default_value = ".")]
    dirs: Vec<PathBuf>,
    /// Where the component goes: a .wasm file, or a folder; DIR/dist by default
    #[arg(long, value_name = "PATH")]
    out: Option<PathBuf>,
    /// Insist on the versions of Cargo.lock
    #[arg(long)]
    locked: bool,
}

/// Arguments of `test`.
#[derive(Debug, Args)]
pub struct TestArgs {
    /// A component, as `weir plugin build` makes it
    file: PathBuf,
    /// Records, one a line; `-` reads standard input
    #[arg(long, short, value_name = "FILE")]
    input: PathBuf,
    /// The plugin's configuration as JSON, or @file
    #[arg(long, value_name = "JSON|@FILE", default_value = "{}")]
    config: String,
    /// What stands between a record's key and value on each line; without it lines have no key
    #[arg(long, short = 'K', value_name = "TEXT")]
    key_separator: Option<String>,
    /// Show this many records; all are run
    #[arg(long, value_name = "N", default_value_t = 20)]
    show: usize,
    /// One JSON object a record, and one with the sums at the end
    #[arg(long)]
    json: bool,
}

/// Why a command of an author did not succeed.
#[derive(Debug, Error)]
pub enum PluginCliError {
    /// A name that is none.
    #[error("\"{0}\" cannot name a plugin: write a-z, 0-9 and '-', beginning with a letter, at most 64")]
    Name(String),
    /// There is something already.
    #[error("{} exists already; give another name or --path", .0.display())]
    Exists(PathBuf),
    /// No SDK to depend on.
    #[error(
        "cannot find the plugin SDK from here: run this inside a clone of Weir, or give --sdk PATH (its folder sdk/plugin) or --sdk URL (git)"
    )]
    NoSdk,
    /// A file cannot be read or written.
    #[error("cannot {what} {}: {source}", path.display())]
    File {
        /// read or write
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not a plugin's folder.
    #[error("{} has no weir-plugin.toml: give a plugin's folder, or start one with `weir plugin new NAME`", .0.display())]
    NoManifest(PathBuf),
    /// Several plugins for one file.
    #[error("--out {} is one file for several plugins; give a folder", .0.display())]
    OneFile(PathBuf),
    /// No compiler for WebAssembly.
    #[error("{0}")]
    NoToolchain(String),
    /// Cargo could not be started.
    #[error("cannot start {}: {source}", cargo.display())]
    Cargo {
        /// Which.
        cargo: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The compiler said why.
    #[error("{} does not compile (see above)", .0.display())]
    Compile(PathBuf),
    /// No module came out.
    #[error("{} builds no WebAssembly module: its Cargo.toml needs [lib] crate-type = [\"cdylib\", \"rlib\"]", .0.display())]
    NoModule(PathBuf),
    /// The module or manifest does not fit.
    #[error("{}: {source}", path.display())]
    Pack {
        /// The plugin.
        path: PathBuf,
        /// Why.
        source: weir_pipeline::PackError,
    },
    /// The component is refused.
    #[error("{}: {source}", path.display())]
    Plugin {
        /// The file.
        path: PathBuf,
        /// Why.
        source: weir_pipeline::PluginError,
    },
    /// The engine does not start.
    #[error(transparent)]
    Host(#[from] weir_pipeline::HostError),
    /// Not JSON.
    #[error("--config is no JSON: {0}")]
    Config(serde_json::Error),
    /// A line without the separator.
    #[error("line {line} of the records has no key separator \"{separator}\"")]
    NoKey {
        /// From 1.
        line: usize,
        /// What was looked for.
        separator: String,
    },
    /// Too much input.
    #[error("the records have more than {max} bytes; try a part of them")]
    InputTooLarge {
        /// The limit.
        max: u64,
    },
    /// The trial over whole batches failed.
    #[error("the plugin cannot run over whole batches: {0}")]
    Batch(String),
    /// Standard output.
    #[error(transparent)]
    Output(#[from] std::io::Error),
}

impl PluginCliError {
    fn read(path: &std::path::Path, source: std::io::Error) -> Self {
        Self::File { what: "read", path: path.to_owned(), source }
    }

    fn write(path: &std::path::Path, source: std::io::Error) -> Self {
        Self::File { what: "write", path: path.to_owned(), source }
    }
}

impl From<PluginCliError> for Failure {
    fn from(error: PluginCliError) -> Failure {
        let exit = match error {
            PluginCliError::Output(error) => return error.into(),
            PluginCliError::Exists(_) => Exit::Exists,
            PluginCliError::Name(_)
            | PluginCliError::NoSdk
            | PluginCliError::NoManifest(_)
            | PluginCliError::OneFile(_)
            | PluginCliError::Config(_)
            | PluginCliError::NoKey { .. } => Exit::Usage,
            _ => Exit::Failed,
        };
        Failure::new(exit, error)
    }
}

/// Runs one of the commands.
///
/// # Errors
/// What went wrong and what to do next.
pub fn run(command: PluginCommand) -> Result<(), Failure> {
    match command {
        PluginCommand::New(args) => scaffold::run(&args)?,
        PluginCommand::Build(args) => build::run(&args)?,
        PluginCommand::Test(args) => trial::run(&args)?,
    }
    Ok(())
}
