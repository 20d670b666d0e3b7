//! What must hold between settings. Each rule is one line; its error names both keys, both values and where they stand.

use std::net::SocketAddr;

use super::layers::Origins;
use super::memory::MEMORY_BYTES_MIN;
use super::{Config, ConfigError};

/// How the left value of a relation is bound by the right one.
#[derive(Clone, Copy)]
enum Bound {
    /// left ≤ right
    Whole,
    /// left ≤ right / 2
    Half,
    /// left ≤ right / 4
    Quarter,
    /// left + 64 ≤ right
    WithHeader,
}

/// The memory limit, before buffers are made to fit it.
pub(super) fn memory(config: &Config, origins: &Origins) -> Result<(), ConfigError> {
    let bytes = config.node.memory_bytes_max;
    if bytes == 0 || bytes >= MEMORY_BYTES_MIN {
        return Ok(());
    }
    Err(origins.wrong("node.memory_bytes_max", format!("0 or at least {MEMORY_BYTES_MIN}"), bytes.to_string()))
}

/// Checks every relation; the first broken one is the error.
pub(super) fn relations(config: &Config, origins: &Origins) -> Result<(), ConfigError> {
    use Bound::{Half, Quarter, Whole, WithHeader};
    let (log, limits, quic) = (&config.log, &config.limits, &config.quic);
    let batch = ("limits.batch_bytes_max", u64::from(limits.batch_bytes_max));
    let frame = ("limits.frame_bytes_max", u64::from(limits.frame_bytes_max));
    let log_frame = ("log.frame_bytes_max", u64::from(log.frame_bytes_max));
    let rules = [
        (batch, WithHeader, frame),
        (batch, Half, log_frame),
        (batch, Whole, ("limits.lane_credit_bytes", limits.lane_credit_bytes.into())),
        (frame, Whole, ("limits.ingest_bytes_in_flight", limits.ingest_bytes_in_flight)),
        (log_frame, Half, ("log.segment_bytes", log.segment_bytes)),
        (("log.segment_bytes", log.segment_bytes), Quarter, ("cold.log_bytes_max", config.cold.log_bytes_max)),
        (("cold.sort_bytes", config.cold.sort_bytes), Half, ("cold.log_bytes_max", config.cold.log_bytes_max)),
        (
            ("quic.stream_window_bytes", quic.stream_window_bytes),
            Whole,
            ("quic.connection_window_bytes", quic.connection_window_bytes),
        ),
        (
            ("quic.connections_per_address_max", quic.connections_per_address_max.into()),
            Whole,
            ("quic.connections_max", quic.connections_max.into()),
        ),
        (
            ("limits.topic_default_partitions", limits.topic_default_partitions.into()),
            Whole,
            ("limits.partitions_max", limits.partitions_max.into()),
        ),
        (("quic.handshake_timeout_ms", quic.handshake_timeout_ms), Whole, ("quic.idle_timeout_ms", quic.idle_timeout_ms)),
    ];
    for (left, bound, right) in rules {
        at_most(left, bound, right)?;
    }
    for (key, value, least) in floors(config) {
        if value < least {
            return Err(origins.wrong(key, format!("at least {least}"), value.to_string()));
        }
    }
    single_values(config, origins)
}

/// What one value must look like by itself.
fn single_values(config: &Config, origins: &Origins) -> Result<(), ConfigError> {
    let (log, quic) = (&config.log, &config.quic);
    let in_flight = config.limits.batches_in_flight_max;
    if usize::from(in_flight) > weir_storage::REMEMBERED_MAX {
        // A resend of more batches than the log remembers could not be told the offsets it already has.
        let wanted = format!("at most {}", weir_storage::REMEMBERED_MAX);
        return Err(origins.wrong("limits.batches_in_flight_max", wanted, in_flight.to_string()));
    }
    if log.segment_bytes % 4096 != 0 {
        let wanted = "a multiple of 4096".to_owned();
        return Err(origins.wrong("log.segment_bytes", wanted, log.segment_bytes.to_string()));
    }
    if !(1200..=65_527).contains(&quic.mtu_bytes_max) {
        let wanted = "between 1200 and 65527".to_owned();
        return Err(origins.wrong("quic.mtu_bytes_max", wanted, quic.mtu_bytes_max.to_string()));
    }
    if config.node.data_dir.as_os_str().is_empty() {
        return Err(origins.wrong("node.data_dir", "a directory".to_owned(), "empty".to_owned()));
    }
    if config.volume.iter().any(|volume| volume.dir == config.node.data_dir) {
        let wanted = "another directory than each volume.dir".to_owned();
        return Err(origins.wrong("node.data_dir", wanted, format!("{:?}", config.node.data_dir)));
    }
    if config.volume.len() > 1 && !config.cold.enabled {
        let wanted = "true where there is more than one [[volume]]".to_owned();
        return Err(origins.wrong("cold.enabled", wanted, "false".to_owned()));
    }
    if !config.node.id.is_empty() && !is_uuid(&config.node.id) {
        let wanted = "a UUID such as 7c9e6679-7425-40de-944b-e07fc1f90ae7, or \"\"".to_owned();
        return Err(origins.wrong("node.id", wanted, format!("{:?}", config.node.id)));
    }
    if tracing_subscriber::EnvFilter::try_new(&config.trace.level).is_err() {
        let wanted = "a level (info) or a filter (info,quinn=warn)".to_owned();
        return Err(origins.wrong("trace.level", wanted, format!("{:?}", config.trace.level)));
    }
    for (key, text) in [("quic.listen", &quic.listen), ("http.listen", &config.http.listen)] {
        let off = key == "http.listen" && text.is_empty();
        if !off && text.parse::<SocketAddr>().is_err() {
            let wanted = "an address and port such as 0.0.0.0:7300 or [::]:7300".to_owned();
            return Err(origins.wrong(key, wanted, format!("{text:?}")));
        }
    }
    Ok(())
}

/// `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx`, hexadecimal.
fn is_uuid(text: &str) -> bool {
    let digits = text.split('-').map(|part| part.chars().all(|c| c.is_ascii_hexdigit()).then_some(part.len()));
    digits.eq([8, 4, 4, 4, 12].map(Some))
}

/// The least each of these may be for the node to work at all.
fn floors(config: &Config) -> [(&'static str, u64, u64); 27] {
    let (log, limits, quic, pipeline) = (&config.log, &config.limits, &config.quic, &config.pipeline);
    let cold = &config.cold;
    [
        ("log.segment_bytes", log.segment_bytes, 1 << 20),
        ("log.spare_segments", log.spare_segments.into(), 1),
        ("log.frame_bytes_max", log.frame_bytes_max.into(), 64 << 10),
        ("log.idle_watermark_ms", log.idle_watermark_ms, 1),
        ("log.metadata_bytes_max", log.metadata_bytes_max, 64 << 10),
        ("log.index_entries_max", log.index_entries_max, 1024),
        ("cold.sort_bytes", cold.sort_bytes, 1 << 20),
        ("cold.sort_age_ms", cold.sort_age_ms, 1000),
        ("cold.scrub_every_ms", cold.scrub_every_ms, 1000),
        ("log.copy_patience_ms", log.copy_patience_ms, 10),
        ("log.fill_bytes_max", log.fill_bytes_max, 1 << 20),
        ("cold.sort_memory_bytes", cold.sort_memory_bytes, 1 << 20),
        ("cold.key_map_bytes_max", cold.key_map_bytes_max, 64 << 10),
        ("limits.batch_bytes_max", limits.batch_bytes_max.into(), 1024),
        ("limits.batches_in_flight_max", limits.batches_in_flight_max.into(), 1),
        ("limits.lanes_max", limits.lanes_max.into(), 1),
        ("limits.topics_max", limits.topics_max.into(), 1),
        ("limits.partitions_max", limits.partitions_max.into(), 1),
        ("limits.producers_max", limits.producers_max.into(), 1),
        ("limits.topic_default_partitions", limits.topic_default_partitions.into(), 1),
        ("quic.connections_max", quic.connections_max.into(), 1),
        ("quic.streams_per_connection_max", quic.streams_per_connection_max.into(), 2),
        ("quic.handshake_timeout_ms", quic.handshake_timeout_ms, 100),
        ("pipeline.queue_batches", pipeline.queue_batches.into(), 1),
        ("pipeline.instances_max", pipeline.instances_max.into(), 1),
        ("pipeline.memory_bytes_max", pipeline.memory_bytes_max, 1 << 20),
        ("pipeline.batch_ms_max", pipeline.batch_ms_max, 2),
    ]
}

fn at_most(left: (&'static str, u64), bound: Bound, right: (&'static str, u64)) -> Result<(), ConfigError> {
    let (ceiling, rule) = match bound {
        Bound::Whole => (right.1, "must not exceed"),
        Bound::Half => (right.1 / 2, "must not exceed half of"),
        Bound::Quarter => (right.1 / 4, "must not exceed a quarter of"),
        Bound::WithHeader => (right.1.saturating_sub(64), "must be 64 bytes less than"),
    };
    if left.1 <= ceiling {
        return Ok(());
    }
    Err(ConfigError::Relation { left: left.0, left_value: left.1, rule, right: right.0, right_value: right.1 })
}
