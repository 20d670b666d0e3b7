//! Limits of a log, each next to its default and its reason.

use std::path::PathBuf;
use std::time::Duration;

use crate::disk::BackendChoice;

/// How a log is opened. `LogConfig::new(dir)` has a default for everything else.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// Data directory; made if it is missing.
    pub dir: PathBuf,
    /// Second data directory, on another disk: everything is written to both. Made if it is missing.
    pub mirror_dir: Option<PathBuf>,
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
    /// Refuse a directory of another node; `None`: accept whichever it belongs to.
    pub node_id: Option<[u8; 16]>,
    /// Open a volume that a failed write has fenced; for operators who have checked the disk.
    pub accept_fenced: bool,
}

impl LogConfig {
    /// Defaults for `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> LogConfig {
        LogConfig {
            dir: dir.into(),
            mirror_dir: None,
            mirror_patience: Duration::from_millis(500),
            mirror_fill_bytes_per_s: 128 << 20,
            accept_degraded: false,
            segment_bytes: 64 << 20,
            spare_segments: 2,
            frame_bytes_max: 8 << 20,
            compress_from_bytes: Some(16 << 10),
            tail_cache_bytes: 64 << 20,
            idle_watermark: Duration::from_millis(20),
            backend: BackendChoice::Auto,
            retention_bytes: None,
            retention_age: None,
            meta_bytes_max: 8 << 20,
            index_entries_max: 8 << 20,
            producers_max: 32 << 10,
            node_id: None,
            accept_fenced: false,
        }
    }
}
