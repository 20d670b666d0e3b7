//! `weir bench storage`, `cold`, `mirror` and `amplification`: the log engine in this process, with the settings a node would have; no
//! node is started.

use std::path::{Path, PathBuf};
use std::time::Duration;

use weir_bench::profile::{self, Feed};
use weir_bench::{BenchError, Host, Load, Report};
use weir_storage::{ClassPolicy, LogConfig};

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
    let policy = policy(args);
    measured(args, dir, move |config, load, host| profile::cold(config, load, policy, host)).await
}

/// Feeds it at a pace, and counts what is written.
pub(super) async fn amplification(args: &BenchArgs, dir: &Path) -> Result<Report, Failure> {
    let feed = Feed { lines: args.lines, data_time: args.data_time, policy: policy(args) };
    measured(args, dir, move |config, load, host| profile::amplification(config, load, &feed, host)).await
}

/// Drives it with one copy and with two, in turn.
pub(super) async fn mirror(args: &BenchArgs, dir: &Path) -> Result<Report, Failure> {
    let second = args.second_dir.clone().unwrap_or_default();
    let data_dir = data_dir(&second);
    std::fs::create_dir_all(&data_dir)
        .map_err(|error| failed(format!("cannot make {}: {error}; name another --second-dir", data_dir.display())))?;
    if profile::is_one_device(dir, &second) {
        eprintln!(
            "both directories are on one device: each copy gets half of its bandwidth, so this says nothing about two disks"
        );
    }
    let (rounds, into) = (args.rounds, data_dir.clone());
    let file_system = Host::detect(Some(&second)).file_system;
    let report = measured(args, dir, move |config, load, mut host| {
        host.file_system = format!("{} and {file_system}", host.file_system);
        profile::mirror(config, &into, rounds, load, host)
    });
    let report = report.await;
    let _ = std::fs::remove_dir_all(data_dir);
    report
}

/// What is said of retention; nothing: records are kept.
fn policy(args: &BenchArgs) -> Option<ClassPolicy> {
    let (retention_ms, retention_bytes) = (args.retention_ms, args.retention_bytes);
    let said = retention_ms.is_some() || retention_bytes.is_some();
    said.then(|| ClassPolicy { retention_ms, retention_bytes, ..ClassPolicy::default() })
}

fn data_dir(dir: &Path) -> PathBuf {
    dir.join(format!("log-{}", std::process::id()))
}

async fn measured<M>(args: &BenchArgs, dir: &Path, measure: M) -> Result<Report, Failure>
where
    M: FnOnce(LogConfig, &Load, Host) -> Result<Report, BenchError> + Send + 'static,
{
    let data_dir = data_dir(dir);
    let config = Config::load(&Sources { overrides: args.overrides.clone(), ..Sources::default() })?;
    let mut config = log_config(&config);
    config.dir.clone_from(&data_dir);
    let (load, host) = (load(args), Host::detect(Some(dir)));
    let measured = tokio::task::spawn_blocking(move || measure(config, &load, host)).await;
    let _ = std::fs::remove_dir_all(&data_dir);
    let measured = measured.map_err(failed)?;
    measured.map_err(|error| Failure::new(Exit::Failed, error).next("look at the disk, or name another --dir"))
}
