//! What the log tells about itself: counters and a histogram that the log thread fills and anybody may read.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the write latency buckets, microseconds; the last bucket has none.
pub const LATENCY_BUCKETS_US: [u64; 15] =
    [50, 100, 200, 400, 800, 1_500, 3_000, 6_000, 12_000, 25_000, 50_000, 100_000, 250_000, 1_000_000, 5_000_000];

/// A histogram of durations with fixed buckets: cheap to fill, ready to print for Prometheus.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    /// Count in each bucket of [`LATENCY_BUCKETS_US`], and one for all that is slower. Not cumulative.
    pub buckets: [u64; LATENCY_BUCKETS_US.len() + 1],
    /// All durations together, microseconds.
    pub sum_us: u64,
    /// The longest, microseconds.
    pub max_us: u64,
}

impl Latency {
    /// Adds one duration.
    pub fn record(&mut self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = LATENCY_BUCKETS_US.partition_point(|bound| *bound < us);
        self.buckets[bucket] += 1;
        self.sum_us = self.sum_us.saturating_add(us);
        self.max_us = self.max_us.max(us);
    }

    /// Durations recorded.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Upper bound of the bucket that holds the given share (0.5: the median); the maximum for the last bucket.
    pub fn quantile_us(&self, share: f64) -> u64 {
        let wanted = (self.count() as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return LATENCY_BUCKETS_US.get(bucket).copied().unwrap_or(self.max_us).min(self.max_us);
            }
        }
        self.max_us
    }
}

/// Counters of the log since it was opened, and where it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogStats {
    /// Frames made durable, of every kind.
    pub frames: u64,
    /// Appends committed.
    pub appends: u64,
    /// Records committed.
    pub records: u64,
    /// Bytes of record batches committed.
    pub batch_bytes: u64,
    /// Bytes written to segments, headers and padding included.
    pub written_bytes: u64,
    /// Frames whose payload was compressed.
    pub frames_compressed: u64,
    /// Payload bytes before compression, of the frames that were compressed.
    pub compressed_from_bytes: u64,
    /// And after.
    pub compressed_to_bytes: u64,
    /// Resent batches that were recognised.
    pub duplicates: u64,
    /// Appends refused.
    pub refused: u64,
    /// Watermark frames.
    pub watermarks: u64,
    /// Appends waiting for the next frame.
    pub queue_depth: u64,
    /// From submission of a frame to its durability.
    pub write_latency: Latency,
    /// Segments that hold data, the active one included.
    pub segments: u64,
    /// Segments ready to be rolled to.
    pub spares: u64,
    /// Segments recycled.
    pub recycled: u64,
    /// Of these: because the index was full.
    pub recycled_for_index: u64,
    /// Size of a segment.
    pub segment_bytes: u64,
    /// Epoch of this opening.
    pub epoch: u64,
    /// Last durable frame.
    pub durable_lsn: u64,
    /// Partitions open.
    pub partitions: u64,
    /// Producer lanes remembered.
    pub producers: u64,
    /// Index entries in memory.
    pub index_entries: u64,
    /// Bytes of metadata keys and values.
    pub meta_bytes: u64,
    /// Payload bytes in the tail cache.
    pub tail_cache_bytes: u64,
    /// Reads answered from memory.
    pub reads_from_memory: u64,
    /// Reads that went to the disk.
    pub reads_from_disk: u64,
    /// Cold segments.
    pub cold_segments: u64,
    /// Bytes of their files.
    pub cold_bytes: u64,
    /// The sorter is at work, or what it has done is being written down.
    pub cold_busy: bool,
    /// Bytes of the record batches in them, before compression: what retention by bytes counts.
    pub cold_batch_bytes: u64,
    /// Bytes of WAL frames the sorter has read.
    pub sorted_from_bytes: u64,
    /// Bytes of batches it has put into cold segments, before compression.
    pub sorted_batch_bytes: u64,
    /// Bytes of the cold segments it has made.
    pub sorted_to_bytes: u64,
    /// WAL segments that became cold segments as they are.
    pub segments_promoted: u64,
    /// Bytes of batches in them, before compression; part of `sorted_batch_bytes`.
    pub promoted_batch_bytes: u64,
    /// Of the segments that became cold ones as they are, those that would have shrunk: sorting waits for a quieter time.
    pub promoted_in_haste: u64,
    /// Bytes of the files of those that wait for it still.
    pub cold_unsorted_bytes: u64,
    /// Segment files that were given to the WAL again when the promoted segment that they had become was gone.
    pub segments_reused: u64,
    /// Bytes of segment files that were made, with zeros.
    pub zero_filled_bytes: u64,
    /// Bytes of cold segments read to make others of them.
    pub merged_from_bytes: u64,
    /// Bytes of the cold segments made of them.
    pub merged_to_bytes: u64,
    /// Of these, blocks that were taken over as they were.
    pub merged_kept_bytes: u64,
    /// Records left out by compaction.
    pub records_compacted: u64,
    /// Cold segments removed by retention.
    pub segments_expired: u64,
    /// Cold segments removed because the disk was full and their class gives way.
    pub segments_dropped_for_space: u64,
    /// Copies of cold segments that are owed: fewer than their class wants, and a volume that could take one.
    pub cold_copies_owed: u64,
    /// Bytes of these.
    pub cold_bytes_owed: u64,
    /// Copies of cold segments made because they were owed, or had rotted.
    pub cold_copies_made: u64,
    /// Bytes of these.
    pub cold_copied_bytes: u64,
    /// Copies that were found damaged or missing.
    pub cold_copies_damaged: u64,
    /// Segments of which something is damaged on every copy.
    pub cold_segments_lost: u64,
    /// Bytes read by the scrub, and by the jobs that make copies.
    pub scrubbed_bytes: u64,
    /// Bytes of full WAL segments that the scrub read, on all copies.
    pub wal_scrubbed_bytes: u64,
    /// Frames of these that it found damaged or unreadable on a copy.
    pub wal_frames_damaged: u64,
    /// Of these, written anew from the other copy.
    pub wal_frames_mended: u64,
    /// Stretches that no copy has intact.
    pub wal_frames_lost: u64,
    /// Reads of cold segments that the second copy answered.
    pub cold_reads_rescued: u64,
    /// Stretches of durable frames that turned out to be damaged while running.
    pub damaged_frames: u64,
    /// Making a spare segment failed for want of space and has not succeeded since.
    pub disk_full: bool,
    /// Copies that hold everything: two for a mirrored log in health.
    pub copies: u64,
    /// While a copy is being filled: bytes copied.
    pub resilver_done_bytes: u64,
    /// Of so many; 0: no copy is being filled.
    pub resilver_total_bytes: u64,
    /// Why appends wait and will go on waiting, if they do: the log is at its bound and the sorter fails. It tries again each second.
    pub stalled: Option<String>,
    /// Why the log takes no more, if it has stopped.
    pub failed: Option<String>,
}

/// Counters that readers bump from their own threads.
#[derive(Debug, Default)]
pub(crate) struct ReadCounters {
    pub(crate) from_memory: AtomicU64,
    pub(crate) from_disk: AtomicU64,
    pub(crate) rescued: AtomicU64,
}

impl ReadCounters {
    pub(crate) fn add_to(&self, stats: &mut LogStats) {
        stats.reads_from_memory = self.from_memory.load(Ordering::Relaxed);
        stats.reads_from_disk = self.from_disk.load(Ordering::Relaxed);
        stats.cold_reads_rescued = self.rescued.load(Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_come_from_buckets_and_never_exceed_the_maximum() {
        let mut latency = Latency::default();
        for us in [10, 20, 30, 70, 9_000_000] {
            latency.record(Duration::from_micros(us));
        }
        assert_eq!(latency.count(), 5);
        assert_eq!(latency.quantile_us(0.5), 50);
        assert_eq!(latency.quantile_us(0.8), 100);
        assert_eq!(latency.quantile_us(1.0), 9_000_000);
        assert_eq!(Latency::default().quantile_us(0.99), 0);
    }
}
