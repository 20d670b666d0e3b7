//! `weir quickstart`: arguments of [`crate::quickstart`].

use std::path::PathBuf;

use clap::Args;

use super::{Exit, Failure};
use crate::quickstart::{self, Options};

#[derive(Debug, Args)]
pub(super) struct QuickstartArgs {
    /// How long the fleet publishes
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u64).range(2..=3600))]
    seconds: u64,
    /// Directory of the shipped plugins, made by `make plugins`
    #[arg(long, default_value = "plugins/dist", value_name = "DIR")]
    plugins: PathBuf,
    /// Directory for certificates, configuration and data; without it a new temporary one
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Leaves the node running at the end, until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// Receivers, each with a certificate and a connection of its own
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    receivers: u16,
    /// Reports a second and receiver
    #[arg(long, default_value_t = 1500, value_parser = clap::value_parser!(u32).range(100..=100_000))]
    rate: u32,
}

pub(super) async fn run(args: QuickstartArgs) -> Result<(), Failure> {
    let dir = match args.dir {
        Some(dir) if dir.join("weir.toml").exists() => {
            let message = format!("{} holds a site already", dir.display());
            return Err(Failure::new(Exit::Exists, message).next("name a new directory with --dir"));
        }
        Some(dir) => dir,
        None => tempfile::Builder::new()
            .prefix("weir-quickstart-")
            .tempdir()
            .map_err(|error| {
                Failure::new(Exit::Failed, format!("cannot make a temporary directory: {error}; name one with --dir"))
            })?
            .keep(),
    };
    quickstart::run(Options {
        seconds: args.seconds,
        plugins: args.plugins,
        dir,
        keep: args.keep,
        receivers: args.receivers.into(),
        rate: args.rate,
    })
    .await
}
