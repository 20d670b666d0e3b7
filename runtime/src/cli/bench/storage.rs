//! `weir bench storage`: the log engine in this process, with the settings a node would have; no node is started.

use std::path::Path;
use std::time::Duration;

use weir_bench::{BenchError, Host, Load, Report, profile};
use weir_storage::LogConfig;

use super::{BenchArgs, Exit, Failure, failed, load};
use crate::config::{Config, Sources};
use crate::serve::log_config;

/// Waiting producers, where --producers does not say.
pub(super) const PRODUCERS: u32 = 256;
/// How long the floor is measured.
const FLOOR_TIME: Duration = Duration::from_secs(2);

/// Drives the log, then opens it again.
pub(super) async fn run(args: &BenchArgs, dir: &Path) -> Result<Report, Failure> {
    let floor_time = (!args.no_floors).then_some(FLOOR_TIME);
    // The WAL alone: what the cold tier costs beside it is the cold profile's matter.
    let wal = |config| LogConfig { cold: None, ..config };
    measured(args, dir, move |config, load, host| profile::storage(wal(config), load, host, floor_time)).await
}

/// Drives it with and without a cold tier.
pub(super) async fn cold(args: &BenchArgs, dir: &Path) -> Result<Report, Failure> {
    measured(args, dir, profile::cold).await
}

async fn measured<M>(args: &BenchArgs, dir: &Path, measure: M) -> Result<Report, Failure>
where
    M: FnOnce(LogConfig, &Load, Host) -> Result<Report, BenchError> + Send + 'static,
{
    let data_dir = dir.join(format!("log-{}", std::process::id()));
    let config = Config::load(&Sources { overrides: args.overrides.clone(), ..Sources::default() })?;
    let mut config = log_config(&config);
    config.dir.clone_from(&data_dir);
    let (load, host) = (load(args), Host::detect(Some(dir)));
    let measured = tokio::task::spawn_blocking(move || measure(config, &load, host)).await;
    let _ = std::fs::remove_dir_all(&data_dir);
    let measured = measured.map_err(failed)?;
    measured.map_err(|error| Failure::new(Exit::Failed, error).next("look at the disk, or name another --dir"))
}
