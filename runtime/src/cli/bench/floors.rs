//! The floors: the disk and the network of this machine, measured in the same run and the same directory.

use std::path::Path;
use std::time::Duration;

use weir_bench::floor::{Transport, durable_writes, raw_quic};
use weir_bench::{Floor, Host, Report};

use super::{BenchArgs, Exit, Failure, Profile, load};
use crate::config::Config;

/// The durable writes of the throughput floor: about what the log gathers in one commit under load.
const FLOOR_CHUNK_BYTES: usize = 1 << 20;
/// How long each floor is measured.
const FLOOR_TIME: Duration = Duration::from_secs(2);

/// A floor without a node.
pub(super) async fn alone(args: &BenchArgs, dir: &Path) -> Result<Report, Failure> {
    let name = if args.profile == Profile::Disk { "disk" } else { "quic" };
    let mut report = Report::new(name, &load(args), Host::detect(Some(dir)));
    let seconds = Duration::from_secs(args.seconds);
    report.floors = match args.profile {
        Profile::Disk => {
            let half = seconds / 2;
            vec![disk(dir, 4096, half).await?, disk(dir, FLOOR_CHUNK_BYTES, half).await?]
        }
        _ => vec![quic(args, seconds / 2).await?],
    };
    Ok(report)
}

/// The floors that bound a profile: reading never waits for a durable write.
pub(super) async fn of(args: &BenchArgs, dir: &Path) -> Result<Vec<Floor>, Failure> {
    let mut floors = vec![quic(args, FLOOR_TIME).await?];
    match args.profile {
        Profile::Publish => floors.push(disk(dir, FLOOR_CHUNK_BYTES, FLOOR_TIME).await?),
        Profile::Latency => {
            let batch = args.record_size as usize * args.batch.unwrap_or(1) as usize;
            floors.push(disk(dir, batch.max(4096), FLOOR_TIME).await?);
        }
        _ => {}
    }
    Ok(floors)
}

async fn disk(dir: &Path, chunk_bytes: usize, during: Duration) -> Result<Floor, Failure> {
    let dir = dir.to_owned();
    let measured = tokio::task::spawn_blocking(move || durable_writes(&dir, chunk_bytes, during)).await;
    let floor =
        measured.map_err(|error| Failure::new(Exit::Failed, error))?.map_err(|error| Failure::new(Exit::Failed, error))?;
    Ok(floor.into_floor())
}

/// With the transport settings a node has by default.
async fn quic(args: &BenchArgs, during: Duration) -> Result<Floor, Failure> {
    let settings = Config::defaults().quic;
    let transport = Transport {
        stream_window_bytes: settings.stream_window_bytes,
        connection_window_bytes: settings.connection_window_bytes,
        send_window_bytes: settings.send_window_bytes,
        mtu_bytes_max: settings.mtu_bytes_max,
    };
    let message = (args.record_size as usize * args.batch.unwrap_or(1) as usize).min(64 << 10);
    let floor = raw_quic(transport, message, during).await.map_err(|error| Failure::new(Exit::Failed, error))?;
    Ok(floor.into_floor())
}
