//! What the node says about itself: `weir status`, as JSON.

use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};
use weir_storage::disk::DiskProbe;
use weir_storage::{LogStats, RecoveryReport};

use crate::broker::{Broker, disks_json};
use crate::config::Config;
use crate::metrics::write_amplification;

/// Topics listed one by one; the count is always told.
const TOPICS_LISTED_MAX: usize = 1_000;

/// The node's identity and what it found at its start.
#[derive(Debug)]
pub struct NodeStatus {
    name: String,
    node_id: [u8; 16],
    started: Instant,
    recovery: Value,
    broker: Arc<Broker>,
}

impl NodeStatus {
    /// Takes down what does not change.
    pub fn new(config: &Config, recovery: &RecoveryReport, broker: Arc<Broker>) -> NodeStatus {
        NodeStatus {
            name: config.node.name.clone(),
            node_id: recovery.node_id,
            started: Instant::now(),
            recovery: recovery_json(recovery),
            broker,
        }
    }

    /// The identity of the node's volume.
    pub fn node_id(&self) -> [u8; 16] {
        self.node_id
    }

    /// Everything, now.
    pub fn json(&self) -> Value {
        let (topics, pipelines) = self.broker.inventory();
        let connections = self.broker.metrics().connections.get();
        let listed: Vec<Value> = topics.iter().take(TOPICS_LISTED_MAX).map(|topic| self.topic_json(topic)).collect();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "name": self.name,
            "node_id": uuid::Uuid::from_bytes(self.node_id).to_string(),
            "uptime_seconds": self.started.elapsed().as_secs(),
            "connections": connections,
            "ready": is_ready(&self.broker.log().stats()),
            "recovery": self.recovery,
            "disk": disk_json(self.broker.log().probe()),
            "disks": disks_json(self.broker.log()),
            "cold": cold_json(&self.broker.log().stats()),
            "backup": self.broker.backup_json(),
            "log": log_json(&self.broker.log().stats()),
            "topics_total": topics.len(),
            "topics": listed,
            "pipelines": pipelines,
        })
    }

    fn topic_json(&self, topic: &crate::broker::Topic) -> Value {
        let mut records = 0;
        for partition in 0..topic.partition_count() {
            if let Ok(bounds) = self.broker.bounds(topic, partition) {
                records += bounds.high_watermark - bounds.start;
            }
        }
        json!({ "topic": &*topic.name, "partitions": topic.partition_count(), "records": records })
    }
}

fn disk_json(probe: &DiskProbe) -> Value {
    json!({
        "summary": probe.to_string(),
        "backend": probe.backend.to_string(),
        "direct": probe.direct,
        "durable_by": probe.dsync_mode.to_string(),
        "filesystem": probe.filesystem,
        "kernel": probe.kernel,
        "write_4k_p50_us": probe.write_4k_p50_us,
        "write_4k_p99_us": probe.write_4k_p99_us,
        "write_4k_max_us": probe.write_4k_max_us,
    })
}

fn recovery_json(report: &RecoveryReport) -> Value {
    json!({
        "created": report.created,
        "clean": report.clean,
        "epoch": report.epoch,
        "segments": report.segments,
        "frames": report.frames,
        "bytes": report.bytes,
        "last_lsn": report.last_lsn.0,
        "torn_tail": report.torn_tail,
        "damaged_ranges": report.damage.len(),
        "gaps": report.gaps_total,
        "meta_damaged": report.meta_damaged,
        "superblock_damaged": report.superblock_damaged,
        "partitions": report.partitions,
        "producers": report.producers,
    })
}

fn is_ready(stats: &LogStats) -> bool {
    stats.failed.is_none() && stats.stalled.is_none()
}

fn log_json(stats: &LogStats) -> Value {
    json!({
        "durable_lsn": stats.durable_lsn,
        "frames": stats.frames,
        "appends": stats.appends,
        "records": stats.records,
        "batch_bytes": stats.batch_bytes,
        "written_bytes": stats.written_bytes,
        "duplicates": stats.duplicates,
        "queue_depth": stats.queue_depth,
        "write_p50_us": stats.write_latency.quantile_us(0.5),
        "write_p99_us": stats.write_latency.quantile_us(0.99),
        "write_max_us": stats.write_latency.max_us,
        "segments": stats.segments,
        "spare_segments": stats.spares,
        "partitions": stats.partitions,
        "meta_bytes": stats.meta_bytes,
        "index_entries": stats.index_entries,
        "damaged_frames": stats.damaged_frames,
        "disk_full": stats.disk_full,
        "stalled": stats.stalled,
        "failed": stats.failed,
    })
}

fn cold_json(stats: &LogStats) -> Value {
    json!({
        "segments": stats.cold_segments,
        "bytes": stats.cold_bytes,
        "batch_bytes": stats.cold_batch_bytes,
        "sorted_from_bytes": stats.sorted_from_bytes,
        "sorted_to_bytes": stats.sorted_to_bytes,
        "merged_from_bytes": stats.merged_from_bytes,
        "merged_to_bytes": stats.merged_to_bytes,
        "merged_kept_bytes": stats.merged_kept_bytes,
        "segments_promoted": stats.segments_promoted,
        "unsorted_bytes": stats.cold_unsorted_bytes,
        "zero_filled_bytes": stats.zero_filled_bytes,
        "write_amplification": write_amplification(stats),
        "segments_expired": stats.segments_expired,
        "segments_dropped_for_space": stats.segments_dropped_for_space,
        "records_compacted": stats.records_compacted,
        "copies_owed": stats.cold_copies_owed,
        "bytes_owed": stats.cold_bytes_owed,
        "copies_made": stats.cold_copies_made,
        "copies_damaged": stats.cold_copies_damaged,
        "segments_lost": stats.cold_segments_lost,
        "reads_rescued": stats.cold_reads_rescued,
        "scrubbed_bytes": stats.scrubbed_bytes,
        "log_scrubbed_bytes": stats.wal_scrubbed_bytes,
        "log_frames_damaged": stats.wal_frames_damaged,
        "log_frames_mended": stats.wal_frames_mended,
        "log_frames_lost": stats.wal_frames_lost,
    })
}
