//! `weir bench storage`: the log engine in this process, with the settings a node would have; no node is started.

use std::path::Path;
use std::time::Duration;

use weir_bench::{Host, Report, profile};

use super::{BenchArgs, Exit, Failure, failed, load};
use crate::config::{Config, Sources};
use crate::serve::log_config;

/// Waiting producers, where --producers does not say.
pub(super) const PRODUCERS: u32 = 256;
/// How long the floor is measured.
const FLOOR_TIME: Duration = Duration::from_secs(2);

/// Drives the log, then opens it again.
pub(super) async fn run(args: &BenchArgs, dir: &Path) -> Result<Report, Failure> {
    let data_dir = dir.join(format!("log-{}", std::process::id()));
    let config = Config::load(&Sources { overrides: args.overrides.clone(), ..Sources::default() })?;
    let mut config = log_config(&config);
    config.dir.clone_from(&data_dir);
    let (load, host) = (load(args), Host::detect(Some(dir)));
    let floor_time = (!args.no_floors).then_some(FLOOR_TIME);
    let measured = tokio::task::spawn_blocking(move || profile::storage(config, &load, host, floor_time)).await;
    let _ = std::fs::remove_dir_all(&data_dir);
    let measured = measured.map_err(failed)?;
    measured.map_err(|error| Failure::new(Exit::Failed, error).next("look at the disk, or name another --dir"))
}
