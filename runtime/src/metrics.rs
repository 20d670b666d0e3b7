//! What the node counts, as Prometheus reads it.
//!
//! Counters on a record's way are taken from their families once (a topic holds its own), so counting is one atomic add
//! a batch. Labels are bounded: topics beyond [`LABELS_MAX`] are counted together as `other`.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use weir_pipeline::StageSnapshot;
use weir_storage::LogStats;

use crate::broker::lock;

/// Topics that get labels of their own.
const LABELS_MAX: usize = 1_000;
/// What the rest is counted as.
const OTHER: &str = "other";
/// From 50 µs (flash) to 10 s (a disk in trouble).
const COMMIT_SECONDS: [f64; 16] =
    [0.000_05, 0.000_1, 0.000_2, 0.000_4, 0.000_8, 0.001_5, 0.003, 0.006, 0.012, 0.025, 0.05, 0.1, 0.25, 1.0, 3.0, 10.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TopicLabel {
    topic: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabel {
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PluginLabel {
    topic: String,
    plugin: String,
    version: String,
    what: &'static str,
}

type TopicCounters = Family<TopicLabel, Counter>;

/// The counters of one topic.
#[derive(Debug, Clone, Default)]
pub struct TopicMeters {
    /// Records that came from producers.
    pub records_in: Counter,
    /// Their bytes, as batches.
    pub bytes_in: Counter,
    /// Records that are durable on this topic.
    pub records_stored: Counter,
    /// Batches that went to consumers.
    pub batches_out: Counter,
    /// Their bytes.
    pub bytes_out: Counter,
}

/// A value that is set when metrics are read.
type Level = Gauge<u64, AtomicU64>;

/// Everything the node counts.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    labels: Mutex<HashSet<String>>,
    records_in: TopicCounters,
    bytes_in: TopicCounters,
    records_stored: TopicCounters,
    batches_out: TopicCounters,
    bytes_out: TopicCounters,
    nacks: Family<CodeLabel, Counter>,
    plugin: Family<PluginLabel, Level>,
    /// Connections that stand.
    pub connections: Gauge,
    /// Connections that came up.
    pub connections_opened: Counter,
    /// Connections refused or ended before HELLO, by reason.
    refused: Family<CodeLabel, Counter>,
    /// Batches acknowledged.
    pub acks: Counter,
    /// Duplicates among them.
    pub duplicates: Counter,
    /// ACK frames written.
    pub ack_frames: Counter,
    /// From the log's queue to durable.
    pub commit_seconds: Histogram,
    /// Set when metrics are read.
    pub levels: Levels,
}

/// Gauges that are brought up to date when metrics are read.
#[derive(Debug, Default)]
pub struct Levels {
    /// Bytes received and not yet durable.
    pub ingest_bytes_in_flight: Level,
    /// Topics.
    pub topics: Level,
    /// Partitions.
    pub partitions: Level,
    /// Producer names.
    pub producers: Level,
    /// Resident memory.
    pub resident_bytes: Level,
    /// 1 when the log takes no more writes.
    pub log_fenced: Level,
    /// Appends wait for a sorter that fails.
    pub log_stalled: Level,
    /// 1 when no spare segment can be made for want of space.
    pub log_disk_full: Level,
    /// Highest durable frame.
    pub log_durable_lsn: Level,
    /// Frames written since the start.
    pub log_frames: Level,
    /// Bytes written since the start.
    pub log_bytes: Level,
    /// Appends waiting for a frame.
    pub log_queue_appends: Level,
    /// Segment files.
    pub log_segments: Level,
    /// Bytes of record batches committed since the start.
    pub log_batch_bytes: Level,
    /// Stretches of durable frames found damaged since the start.
    pub log_damaged_frames: Level,
    /// Cold segments.
    pub cold_segments: Level,
    /// Bytes of their files.
    pub cold_bytes: Level,
    /// Bytes of record batches in them, before compression.
    pub cold_batch_bytes: Level,
    /// Bytes that sorting wrote since the start.
    pub cold_sorted_bytes: Level,
    /// Log segments that became cold segments as they are since the start.
    pub cold_promoted: Level,
    /// Bytes of those that are to be sorted when producers leave time.
    pub cold_unsorted_bytes: Level,
    /// Bytes that merging and compaction wrote since the start.
    pub cold_merged_bytes: Level,
    /// Cold segments that retention removed since the start.
    pub cold_expired: Level,
    /// Cold segments removed because the disk was full, since the start.
    pub cold_dropped_for_space: Level,
    /// Records that compaction left out since the start.
    pub records_compacted: Level,
    /// Copies of the log that hold everything.
    pub log_copies: Level,
    /// Copies of cold segments that are owed.
    pub cold_copies_owed: Level,
    /// Copies found damaged or missing since the start.
    pub cold_copies_damaged: Level,
    /// Cold segments of which something is damaged on every copy.
    pub cold_segments_lost: Level,
    /// Bytes read by the scrub since the start.
    pub scrubbed_bytes: Level,
    /// Bytes of the log read by the scrub since the start.
    pub log_scrubbed_bytes: Level,
    /// Frames found damaged on a copy of the log.
    pub log_frames_damaged: Level,
    /// Of these, written anew from the other copy.
    pub log_frames_mended: Level,
    /// Stretches of frames that no copy has.
    pub log_frames_lost: Level,
    /// Bytes written to the disk for each byte of record batches, since the start.
    pub write_amplification: Gauge<f64, AtomicU64>,
}

/// Bytes written for each byte of record batches; none before the first.
pub fn write_amplification(stats: &LogStats) -> Option<f64> {
    let written = stats.written_bytes + stats.sorted_to_bytes + stats.merged_to_bytes;
    (stats.batch_bytes > 0).then(|| written as f64 / stats.batch_bytes as f64)
}

impl Levels {
    /// Takes over what the log says of its cold tier.
    pub fn set_cold(&self, stats: &LogStats) {
        self.log_batch_bytes.set(stats.batch_bytes);
        self.log_damaged_frames.set(stats.damaged_frames);
        self.cold_segments.set(stats.cold_segments);
        self.cold_bytes.set(stats.cold_bytes);
        self.cold_batch_bytes.set(stats.cold_batch_bytes);
        self.cold_sorted_bytes.set(stats.sorted_to_bytes);
        self.cold_promoted.set(stats.segments_promoted);
        self.cold_unsorted_bytes.set(stats.cold_unsorted_bytes);
        self.cold_merged_bytes.set(stats.merged_to_bytes);
        self.cold_expired.set(stats.segments_expired);
        self.cold_dropped_for_space.set(stats.segments_dropped_for_space);
        self.records_compacted.set(stats.records_compacted);
        self.log_copies.set(stats.copies);
        self.cold_copies_owed.set(stats.cold_copies_owed);
        self.cold_copies_damaged.set(stats.cold_copies_damaged);
        self.cold_segments_lost.set(stats.cold_segments_lost);
        self.scrubbed_bytes.set(stats.scrubbed_bytes);
        self.log_scrubbed_bytes.set(stats.wal_scrubbed_bytes);
        self.log_frames_damaged.set(stats.wal_frames_damaged);
        self.log_frames_mended.set(stats.wal_frames_mended);
        self.log_frames_lost.set(stats.wal_frames_lost);
        self.write_amplification.set(write_amplification(stats).unwrap_or(0.0));
    }
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics::new()
    }
}

impl Metrics {
    /// An empty registry with every metric's name and help.
    pub fn new() -> Metrics {
        let mut metrics = Metrics {
            registry: Registry::with_prefix("weir"),
            labels: Mutex::default(),
            records_in: Family::default(),
            bytes_in: Family::default(),
            records_stored: Family::default(),
            batches_out: Family::default(),
            bytes_out: Family::default(),
            nacks: Family::default(),
            plugin: Family::default(),
            connections: Gauge::default(),
            connections_opened: Counter::default(),
            refused: Family::default(),
            acks: Counter::default(),
            duplicates: Counter::default(),
            ack_frames: Counter::default(),
            commit_seconds: Histogram::new(COMMIT_SECONDS),
            levels: Levels::default(),
        };
        metrics.register_counters();
        metrics.register_levels();
        metrics
    }

    fn register_counters(&mut self) {
        let registry = &mut self.registry;
        registry.register("records_in", "Records that came from producers", self.records_in.clone());
        registry.register("bytes_in", "Bytes of record batches from producers", self.bytes_in.clone());
        registry.register("records_stored", "Records made durable", self.records_stored.clone());
        registry.register("batches_out", "Record batch reads sent to consumers", self.batches_out.clone());
        registry.register("bytes_out", "Bytes of record batches sent to consumers", self.bytes_out.clone());
        registry.register("nacks", "Refused batches by code", self.nacks.clone());
        registry.register(
            "pipeline_records",
            "Records by plugin and what became of them since the pipeline was attached",
            self.plugin.clone(),
        );
        registry.register("connections", "Connections that stand", self.connections.clone());
        registry.register("connections_opened", "Connections that came up", self.connections_opened.clone());
        registry.register("connections_refused", "Connections refused or ended by an error", self.refused.clone());
        registry.register("acks", "Batches acknowledged", self.acks.clone());
        registry.register("duplicates", "Acknowledged batches that were durable already", self.duplicates.clone());
        registry.register("ack_frames", "ACK frames written: one a connection a commit", self.ack_frames.clone());
        registry.register("commit_seconds", "From the log's queue to durable", self.commit_seconds.clone());
    }

    fn register_levels(&mut self) {
        let levels = &self.levels;
        let gauges: [(&str, &str, &Level); 34] = [
            ("ingest_in_flight_bytes", "Received and not yet durable", &levels.ingest_bytes_in_flight),
            ("topics", "Topics", &levels.topics),
            ("partitions", "Partitions", &levels.partitions),
            ("producers", "Producer names known", &levels.producers),
            ("process_resident_bytes", "Resident memory of the process", &levels.resident_bytes),
            ("log_fenced", "1 when the log takes no more writes", &levels.log_fenced),
            ("log_stalled", "1 when appends wait for a sorter that fails", &levels.log_stalled),
            ("log_disk_full", "1 when the disk has no room for a segment", &levels.log_disk_full),
            ("log_durable_lsn", "Highest durable frame", &levels.log_durable_lsn),
            ("log_frames", "Frames written since the start", &levels.log_frames),
            ("log_written_bytes", "Bytes written since the start", &levels.log_bytes),
            ("log_queue_appends", "Appends waiting for a frame", &levels.log_queue_appends),
            ("log_segments", "Segment files", &levels.log_segments),
            ("log_batch_bytes", "Bytes of record batches committed since the start", &levels.log_batch_bytes),
            ("log_damaged_frames", "Stretches of durable frames found damaged since the start", &levels.log_damaged_frames),
            ("cold_segments", "Cold segments", &levels.cold_segments),
            ("cold_bytes", "Bytes of cold segments", &levels.cold_bytes),
            ("cold_batch_bytes", "Bytes of record batches in cold segments: what retention counts", &levels.cold_batch_bytes),
            ("cold_sorted_bytes", "Bytes that sorting wrote since the start", &levels.cold_sorted_bytes),
            ("cold_segments_promoted", "Log segments that became cold segments as they are", &levels.cold_promoted),
            (
                "cold_unsorted_bytes",
                "Bytes of cold segments that are to be sorted when producers leave time",
                &levels.cold_unsorted_bytes,
            ),
            ("cold_merged_bytes", "Bytes that merging and compaction wrote since the start", &levels.cold_merged_bytes),
            ("cold_segments_expired", "Cold segments that retention removed since the start", &levels.cold_expired),
            ("cold_segments_dropped", "Cold segments removed for want of space since the start", &levels.cold_dropped_for_space),
            ("records_compacted", "Records that compaction left out since the start", &levels.records_compacted),
            ("log_copies", "Copies of the log that hold everything", &levels.log_copies),
            ("cold_copies_owed", "Copies of cold segments that are owed", &levels.cold_copies_owed),
            ("cold_copies_damaged", "Copies of cold segments found damaged since the start", &levels.cold_copies_damaged),
            ("cold_segments_lost", "Cold segments of which something is damaged on every copy", &levels.cold_segments_lost),
            ("scrubbed_bytes", "Bytes of cold segments read to check them since the start", &levels.scrubbed_bytes),
            ("log_scrubbed_bytes", "Bytes of full log segments read to check them since the start", &levels.log_scrubbed_bytes),
            ("log_frames_damaged", "Frames found damaged on a copy of the log since the start", &levels.log_frames_damaged),
            (
                "log_frames_mended",
                "Frames written anew from the other copy of the log since the start",
                &levels.log_frames_mended,
            ),
            ("log_frames_lost", "Stretches of frames that no copy of the log has intact", &levels.log_frames_lost),
        ];
        for (name, help, gauge) in gauges {
            self.registry.register(name, help, gauge.clone());
        }
        self.registry.register(
            "log_write_amplification",
            "Bytes written for each byte of record batches since the start",
            levels.write_amplification.clone(),
        );
    }

    /// The counters of a topic.
    pub fn topic(&self, name: &str) -> TopicMeters {
        let label = TopicLabel { topic: self.label(name) };
        TopicMeters {
            records_in: self.records_in.get_or_create_owned(&label),
            bytes_in: self.bytes_in.get_or_create_owned(&label),
            records_stored: self.records_stored.get_or_create_owned(&label),
            batches_out: self.batches_out.get_or_create_owned(&label),
            bytes_out: self.bytes_out.get_or_create_owned(&label),
        }
    }

    /// A deleted topic's counters end.
    pub fn forget_topic(&self, name: &str) {
        if !lock(&self.labels).remove(name) {
            return;
        }
        let label = TopicLabel { topic: name.to_owned() };
        for family in [&self.records_in, &self.bytes_in, &self.records_stored, &self.batches_out, &self.bytes_out] {
            family.remove(&label);
        }
    }

    /// Counts a refused batch.
    pub fn nack(&self, code: &'static str) {
        self.nacks.get_or_create(&CodeLabel { code }).inc();
    }

    /// Counts a connection that was refused or ended by an error.
    pub fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&CodeLabel { code: reason }).inc();
    }

    /// Takes over what the stages of all attached pipelines have counted; called when metrics are read.
    pub fn set_stages<'a>(&self, stages: impl Iterator<Item = (&'a str, &'a StageSnapshot)>) {
        self.plugin.clear();
        for (topic, stage) in stages {
            let what = [
                ("in", stage.records_in),
                ("kept", stage.kept),
                ("dropped", stage.dropped),
                ("replaced", stage.replaced),
                ("emitted", stage.emitted),
                ("moved", stage.moved),
            ];
            let failed = stage.failed.iter().map(|(kind, count)| (kind.as_str(), *count));
            for (what, count) in what.into_iter().chain(failed).filter(|(_, count)| *count > 0) {
                let (plugin, version) = (stage.plugin.to_string(), stage.version.to_string());
                let label = PluginLabel { topic: self.label(topic), plugin, version, what };
                // Added: beyond the labels' bound several topics share one.
                let gauge = self.plugin.get_or_create(&label);
                gauge.inc_by(count);
            }
        }
    }

    /// Counts one commit's time.
    pub fn committed(&self, took: Duration) {
        self.commit_seconds.observe(took.as_secs_f64());
    }

    /// Everything in Prometheus' text format.
    pub fn render(&self) -> String {
        self.levels.resident_bytes.set(resident_bytes());
        let mut text = String::with_capacity(16 << 10);
        // Writing to a String cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }

    fn label(&self, name: &str) -> String {
        let mut labels = lock(&self.labels);
        if labels.contains(name) || (labels.len() < LABELS_MAX && labels.insert(name.to_owned())) {
            return name.to_owned();
        }
        OTHER.to_owned()
    }
}

/// Resident memory of this process; 0 where /proc does not say.
fn resident_bytes() -> u64 {
    let Ok(statm) = std::fs::read_to_string("/proc/self/statm") else { return 0 };
    let pages: u64 = statm.split_ascii_whitespace().nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_bounded() {
        let metrics = Metrics::new();
        for number in 0..LABELS_MAX + 5 {
            metrics.topic(&format!("t{number}")).records_in.inc();
        }
        let text = metrics.render();
        assert!(text.contains(r#"weir_records_in_total{topic="other"} 5"#), "{text}");
        assert!(text.contains(r#"weir_records_in_total{topic="t7"} 1"#));
        metrics.forget_topic("t7");
        assert!(!metrics.render().contains(r#"topic="t7""#));
    }

    #[test]
    fn memory_is_measured() {
        assert!(resident_bytes() > 0);
    }
}
