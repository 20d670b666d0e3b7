//! Limits of a log, each next to its default and its reason.

use std::path::PathBuf;
use std::time::Duration;

use crate::disk::BackendChoice;

/// How a log is opened. `LogConfig::new(dir)` has a default for everything else.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// Data directory; made if it is missing.
    pub dir: PathBuf,
    /// Second data directory, on another disk: the log is written to both. Made if it is missing.
    pub mirror_dir: Option<PathBuf>,
    /// Further directories, each on a disk of its own, that hold cold segments only. Where there are several directories, of all
    /// kinds, a cold segment has two copies (see [`ClassPolicy::copies`]). Made if they are missing.
    pub cold_dirs: Vec<PathBuf>,
    /// A copy that answers this much later than the other is thrown out.
    pub mirror_patience: Duration,
    /// Filling a copy reads and writes at most this many bytes a second.
    pub mirror_fill_bytes_per_s: u64,
    /// Open a copy of a mirrored log without the other one, although nothing says that it is not behind; for operators who know that
    /// the other disk is lost.
    pub accept_degraded: bool,
    /// Size of a segment file; retention works in whole segments. Ignored once the volume exists: the superblock says.
    pub segment_bytes: u64,
    /// Zero-filled files kept ready, so that a restart works on a full disk.
    pub spare_segments: u32,
    /// Largest frame, header and directory included; also the largest append. At most a quarter of a segment.
    pub frame_bytes_max: u32,
    /// Payloads from this size on are tried with zstd; `None`: never.
    pub compress_from_bytes: Option<u32>,
    /// Recent payloads kept in memory for consumers at the tail.
    pub tail_cache_bytes: usize,
    /// Quiet time after which the last frame is made provable by a watermark frame.
    pub idle_watermark: Duration,
    /// Disk backend.
    pub backend: BackendChoice,
    /// Bytes of segments to keep; `None`: no limit.
    pub retention_bytes: Option<u64>,
    /// Age of the newest record of a segment from which it may go; `None`: no limit.
    pub retention_age: Option<Duration>,
    /// Keys and values of the metadata, together.
    pub meta_bytes_max: usize,
    /// Index entries (16 bytes each) in memory. At the limit older segments are thinned to one entry a partition; if that is not enough, the oldest segment is recycled.
    pub index_entries_max: usize,
    /// Producer lanes remembered; the longest idle are forgotten beyond it.
    pub producers_max: usize,
    /// Where records go when they leave the WAL; `None`: nowhere, retention works on WAL segments.
    pub cold: Option<ColdConfig>,
    /// Refuse a directory of another node; `None`: accept whichever it belongs to.
    pub node_id: Option<[u8; 16]>,
    /// Open a volume that a failed write has fenced; for operators who have checked the disk.
    pub accept_fenced: bool,
}

/// The cold tier: when the WAL is sorted, and with how much memory and disk bandwidth.
#[derive(Clone, Debug)]
pub struct ColdConfig {
    /// Bytes of full WAL segments from which they are sorted.
    pub sort_bytes: u64,
    /// Age of the oldest record in the WAL from which it is sorted anyway.
    pub sort_age: Duration,
    /// Records held in memory while sorting, before compression: the size of the smallest cold segment.
    pub sort_memory_bytes: usize,
    /// Bytes of full WAL segments up to which sorting is put off while segments fill in less than [`ColdConfig::burst_segment`]: the
    /// processor and the disk are the producers' then. Recovery reads so much more.
    pub burst_bytes: u64,
    /// See `burst_bytes`.
    pub burst_segment: Duration,
    /// Which WAL segments become cold segments as they are, instead of being written again; `None`: none.
    pub promote: Option<PromoteConfig>,
    /// WAL segments at most; appends wait for the sorter beyond it.
    pub wal_bytes_max: u64,
    /// Cold segments of one class from this many on become one, until they have `merged_bytes`.
    pub merge_fan_in: usize,
    /// Records of a cold segment, before compression, from which it is not merged any more.
    pub merged_bytes: u64,
    /// Blocks of one partition from this size on are not packed anew by a merge: joined with their neighbours they would hardly shrink.
    pub keep_block_bytes: usize,
    /// Memory for the keys of one partition while it is compacted.
    pub key_map_bytes_max: usize,
    /// Reads and writes of sorting, merging and copying together, bytes a second on each volume; `None`: as fast as they go.
    pub bandwidth_bytes_max: Option<u64>,
    /// When nothing else is to do all copies of all cold segments are read through, one segment after another, at most this many
    /// bytes a second on the whole; `None`: never.
    pub scrub_bytes_per_s: Option<u64>,
    /// From the end of one such round to the beginning of the next.
    pub scrub_every: Duration,
    /// A volume that is not there may come back for so long; then what it holds is copied from elsewhere to others.
    pub missing_patience: Duration,
}

/// When a WAL segment is a cold segment as good as any. Frames are read back whole, for their CRC, so what a partition has in a frame must be
/// a large part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromoteConfig {
    /// Bytes that a partition has in a frame, on average: a seek and a request each. From 64 KiB on such requests reach most of a disk's throughput.
    pub run_bytes: u64,
    /// Bytes read for one that is wanted, at most: the frames' bytes by the number of partitions in each, against those of the batches.
    pub read_factor: u64,
    /// What sorting and compressing would save of the segment's bytes, in hundredths: from so much on it is worth the second write.
    pub saving_percent: u64,
    /// Bytes of the file that are neither batches nor their frames' heads (its snapshot, what was left free at its end), in hundredths: from
    /// so much on they are too many to keep.
    pub waste_percent: u64,
    /// While segments fill in less than [`ColdConfig::burst_segment`], also what would shrink stays as it is; it is sorted when they do not.
    pub in_burst: bool,
}

impl PromoteConfig {
    /// For what is sorted later: it is to be read once for that, and by few consumers before.
    #[must_use]
    pub fn in_haste(&self) -> PromoteConfig {
        PromoteConfig { run_bytes: self.run_bytes / 16, read_factor: self.read_factor.saturating_mul(8), ..self.clone() }
    }
}

impl Default for PromoteConfig {
    fn default() -> PromoteConfig {
        PromoteConfig { run_bytes: 64 << 10, read_factor: 4, saving_percent: 10, waste_percent: 25, in_burst: true }
    }
}

/// How the partitions of a class are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassPolicy {
    /// Age of the newest record of a cold segment from which it goes; `None`: no limit.
    pub retention_ms: Option<u64>,
    /// Bytes of record batches of all its partitions together, in cold segments; `None`: no limit.
    pub retention_bytes: Option<u64>,
    /// Keep the last record of each key.
    pub compact: bool,
    /// Whether `retention_ms` and `retention_bytes` count; only a compacted class may be without.
    pub delete: bool,
    /// How long a tombstone of a compacted class can be read.
    pub delete_retention_ms: u64,
    /// While the disk is full its oldest segments go.
    pub drop_oldest: bool,
    /// Copies of each cold segment, 1 or 2, as long as there are so many volumes; `None`: 2.
    pub copies: Option<u8>,
}

impl Default for ClassPolicy {
    fn default() -> ClassPolicy {
        ClassPolicy {
            retention_ms: None,
            retention_bytes: None,
            compact: false,
            delete: true,
            delete_retention_ms: 24 * 3600 * 1000,
            drop_oldest: false,
            copies: None,
        }
    }
}

impl Default for ColdConfig {
    fn default() -> ColdConfig {
        ColdConfig {
            sort_bytes: 64 << 20,
            sort_age: Duration::from_secs(600),
            sort_memory_bytes: 32 << 20,
            burst_bytes: 1 << 30,
            burst_segment: Duration::from_secs(1),
            promote: Some(PromoteConfig::default()),
            wal_bytes_max: 2 << 30,
            merge_fan_in: 8,
            merged_bytes: 256 << 20,
            keep_block_bytes: 32 << 10,
            key_map_bytes_max: 16 << 20,
            bandwidth_bytes_max: None,
            scrub_bytes_per_s: Some(4 << 20),
            scrub_every: Duration::from_secs(7 * 24 * 3600),
            missing_patience: Duration::from_secs(600),
        }
    }
}

impl LogConfig {
    /// Defaults for `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> LogConfig {
        LogConfig {
            dir: dir.into(),
            mirror_dir: None,
            cold_dirs: Vec::new(),
            mirror_patience: Duration::from_millis(500),
            mirror_fill_bytes_per_s: 128 << 20,
            accept_degraded: false,
            segment_bytes: 64 << 20,
            spare_segments: 2,
            frame_bytes_max: 8 << 20,
            compress_from_bytes: Some(8 << 10),
            tail_cache_bytes: 64 << 20,
            idle_watermark: Duration::from_millis(20),
            backend: BackendChoice::Auto,
            retention_bytes: None,
            retention_age: None,
            meta_bytes_max: 8 << 20,
            index_entries_max: 8 << 20,
            producers_max: 32 << 10,
            cold: None,
            node_id: None,
            accept_fenced: false,
        }
    }
}
