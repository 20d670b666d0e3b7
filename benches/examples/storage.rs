//! The storage profile without the `weir` program: `storage DIR [key=value…]`, keys `producers`, `batch`, `record_size`,
//! `partitions`, `seconds`, `records`, `zstd`, `compress_from_bytes`, `segment_bytes`, `retention_bytes`, `floor_seconds`.
//! Links neither the network nor the Wasm host, so it builds fast; for work on the log engine.

use std::collections::HashMap;
use std::time::Duration;

use weir_bench::{Host, Load, profile};
use weir_storage::LogConfig;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().ok_or("usage: storage DIR [key=value…]")?;
    let mut settings = HashMap::new();
    for arg in args {
        let (key, value) = arg.split_once('=').ok_or_else(|| format!("{arg}: write it as key=value"))?;
        settings.insert(key.to_owned(), value.parse::<u64>().map_err(|error| format!("{arg}: {error}"))?);
    }
    let mut take = |key: &str, default: u64| settings.remove(key).unwrap_or(default);
    let load = Load {
        topic: String::new(),
        partitions: take("partitions", 4) as u32,
        records: Some(take("records", 0)).filter(|records| *records > 0),
        seconds: Duration::from_secs(take("seconds", 5)),
        record_bytes: take("record_size", 1024) as usize,
        batch_records: take("batch", 1) as u32,
        connections: 1,
        producers: take("producers", 256) as u32,
        in_flight: 1,
        rate: None,
        zstd: take("zstd", 0) > 0,
    };
    let mut config = LogConfig::new(&dir);
    let compress_from = take("compress_from_bytes", config.compress_from_bytes.map_or(0, u64::from));
    config.compress_from_bytes = Some(compress_from as u32).filter(|bytes| *bytes > 0);
    config.segment_bytes = take("segment_bytes", config.segment_bytes);
    config.retention_bytes = Some(take("retention_bytes", 1 << 30)).filter(|bytes| *bytes > 0);
    let floor = Some(Duration::from_secs(take("floor_seconds", 2))).filter(|time| !time.is_zero());
    if let Some(unknown) = settings.keys().next() {
        return Err(format!("unknown key {unknown}").into());
    }
    let report = profile::storage(config, &load, Host::detect(Some(dir.as_ref())), floor)?;
    print!("{}", report.to_table());
    Ok(())
}
