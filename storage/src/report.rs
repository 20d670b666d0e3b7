//! What opening a log found, and why it could not be opened.

use std::path::PathBuf;
use std::time::Duration;

use crate::disk::DiskError;
use crate::format::superblock::FormatVersion;
use crate::types::{Lsn, PartitionId};

/// Records that the disk lost: offsets `from..to` of one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gap {
    /// Partition.
    pub partition: PartitionId,
    /// First offset lost.
    pub from: i64,
    /// First offset behind.
    pub to: i64,
}

/// Frames that were durable once and cannot be read any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Segment file, by number.
    pub file: u32,
    /// Where in it.
    pub at: u64,
    /// First frame lost.
    pub first_lsn: Lsn,
    /// Frames lost.
    pub frames: u64,
    /// What was wrong with the first of them.
    pub reason: String,
}

/// What opening the log found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// The directory was empty and a new volume was made.
    pub created: bool,
    /// Node the volume belongs to.
    pub node_id: [u8; 16],
    /// The volume.
    pub volume_id: [u8; 16],
    /// The last run ended with a shutdown.
    pub clean: bool,
    /// Epoch of this opening.
    pub epoch: u64,
    /// Segments that hold frames.
    pub segments: u64,
    /// Frames read.
    pub frames: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Of them, of segments of which every byte was verified.
    pub verified_bytes: u64,
    /// Time that these took.
    pub verified_for: Duration,
    /// Time that recovery took, new epoch included. The rest of an opening is trying the disk and starting threads.
    pub read_for: Duration,
    /// Last frame of the log.
    pub last_lsn: Lsn,
    /// The end of the last segment held frames that were never acknowledged and are discarded.
    pub torn_tail: bool,
    /// Frames that were durable and are damaged.
    pub damage: Vec<Damage>,
    /// Records lost with them, by partition; reads there answer with the same range. At most 1,024 are listed.
    pub gaps: Vec<Gap>,
    /// How many there are.
    pub gaps_total: u64,
    /// Metadata written in damaged frames is lost.
    pub meta_damaged: bool,
    /// Segment headers that were damaged and read from their frames instead.
    pub headers_repaired: u64,
    /// A superblock slot was damaged; the other was used.
    pub superblock_damaged: bool,
    /// Frames and headers that one copy had lost and the other one gave back.
    pub mended: u64,
    /// Segment files that were missing on one copy and came back from the other.
    pub files_restored: u64,
    /// Directories that are not used as volumes, and volumes that are missing: what is wrong, and what to do.
    pub volume_problems: Vec<String>,
    /// Partitions found.
    pub partitions: u64,
    /// Producer lanes found.
    pub producers: u64,
}

/// Why a log could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Directory missing, not writable, and the like.
    #[error("{what} {path} failed: {source}; check that the directory exists and is writable by this user", path = .path.display())]
    Directory {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Another process owns it.
    #[error("{path} is in use by process {pid}: stop that node, or give this one a directory of its own", path = .path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
        /// What the owner wrote into LOCK.
        pid: String,
    },
    /// Segments without a superblock.
    #[error(
        "the directory holds segments but no superblock: the wrong disk is mounted, or the superblock was deleted; restore it, or move wal/ away to start empty"
    )]
    SuperblockMissing,
    /// Both slots are damaged.
    #[error(
        "both copies of the superblock are damaged: restore it from a backup, or move wal/ and superblock away to start empty"
    )]
    SuperblockDamaged,
    /// Written by a newer program.
    #[error("the volume has format {found}, this program reads up to {supported}: use the newer program")]
    NewerFormat {
        /// Version found.
        found: FormatVersion,
        /// Newest one known here.
        supported: FormatVersion,
    },
    /// A segment of a newer program.
    #[error("segment file {file} has version {found}, this program reads up to {supported}: use the newer program")]
    NewerSegment {
        /// File number.
        file: u32,
        /// Version found.
        found: u16,
        /// Newest one known here.
        supported: u16,
    },
    /// A frame of a newer program.
    #[error("segment file {file} has {found} at {at}, which this program does not know: use the newer program")]
    NewerFrame {
        /// File number.
        file: u32,
        /// Where in it.
        at: u64,
        /// What is unknown about it.
        found: crate::format::frame::Unknown,
    },
    /// Directory of another node.
    #[error(
        "the volume belongs to node {found}, this is node {expected}: the wrong disk is mounted, or the directory was copied"
    )]
    ForeignNode {
        /// UUID found.
        found: String,
        /// UUID configured.
        expected: String,
    },
    /// A segment of another volume.
    #[error("segment file {file} belongs to volume {found}, not to {expected}: move it away")]
    ForeignSegment {
        /// File number.
        file: u32,
        /// UUID found.
        found: String,
        /// UUID of the superblock.
        expected: String,
    },
    /// A segment of an opening the superblock knows nothing of.
    #[error(
        "segment file {file} is of epoch {epoch}, the superblock knows only {known}: the superblock is from an older copy of the directory; restore both together"
    )]
    FutureEpoch {
        /// File number.
        file: u32,
        /// Its epoch.
        epoch: u64,
        /// Highest epoch of the superblock.
        known: u64,
    },
    /// Two files claim the same place.
    #[error("segment files {first} and {second} both are segment {sequence}: one is a copy; move it away")]
    DoubledSegment {
        /// Sequence both claim.
        sequence: u64,
        /// File number.
        first: u32,
        /// File number.
        second: u32,
    },
    /// A segment is gone.
    #[error("segment {sequence} is missing: its file was deleted or its header is damaged beyond recognition; restore it")]
    MissingSegment {
        /// Its sequence.
        sequence: u64,
    },
    /// The end of the log is gone, although it was durable.
    #[error(
        "the log ends at frame {found} but frame {durable} was durable: its last segment is missing or damaged beyond recognition; restore it"
    )]
    EndMissing {
        /// Last frame found.
        found: u64,
        /// What the superblock knows to be durable.
        durable: u64,
    },
    /// No intact snapshot is left to start from.
    #[error("no intact snapshot of partitions and metadata is left (segment {sequence}): restore the directory from a backup")]
    StateDamaged {
        /// The newest segment looked at.
        sequence: u64,
    },
    /// A failed write has stopped this volume.
    #[error(
        "a write to this volume failed and fenced it: check the disk and the kernel's log, then open it with accept_fenced = true"
    )]
    Fenced,
    /// The other copy of a mirrored log is not to be had, and may have gone on without this one.
    #[error(
        "the other copy of this log is missing ({what}), and nothing says that this one is not behind it: bring the disk back, or open with accept_degraded = true if it is lost for good"
    )]
    MirrorMissing {
        /// Which copy, and what is there instead.
        what: String,
    },
    /// Another log lies where the other copy should be.
    #[error(
        "{path} holds log {found}, not a copy of {expected}: the wrong disk is mounted; empty it if it is to become the mirror"
    )]
    MirrorForeign {
        /// Its directory.
        path: String,
        /// UUID found.
        found: String,
        /// UUID of the log.
        expected: String,
    },
    /// Both copies say that they are the log.
    #[error(
        "both copies say that the other one is behind: each has gone on without the other; keep the one that is right and empty the other's directory"
    )]
    MirrorSplit,
    /// Only a copy that was being filled is here.
    #[error("this copy of the log was still being filled from the other one and is not whole: bring the other disk back")]
    MirrorIncomplete,
    /// A copy cannot be attached or let go of now.
    #[error("{0}")]
    MirrorBusy(String),
    /// A directory is not the volume it should be.
    #[error("{path} is not used as a volume of this log: {what}", path = .path.display())]
    VolumeRefused {
        /// The directory.
        path: PathBuf,
        /// Why, and what to do.
        what: String,
    },
    /// A directory was sound when the volume that it replaces was let go of, and failed then.
    #[error(
        "volume {number} was let go of, and {path} failed before it had its place: {source}; until it is replaced the log may have one copy: give another directory for volume {number}", path = .path.display()
    )]
    ReplaceCutShort {
        /// The volume that is out.
        number: u8,
        /// The new directory.
        path: PathBuf,
        /// What failed.
        source: Box<OpenError>,
    },
    /// A volume cannot be had, or let go of.
    #[error(transparent)]
    Volume(#[from] crate::core::VolumeError),
    /// Limits contradict each other.
    #[error("bad limits: {0}")]
    BadConfig(String),
    /// The list of cold segments cannot be read.
    #[error(transparent)]
    Manifest(#[from] crate::cold::manifest::ManifestError),
    /// The disk failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// Why a log did not shut down cleanly.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// It had stopped before.
    #[error("the log had stopped after a failed write: {0}")]
    Failed(String),
    /// The log thread is gone.
    #[error("the log thread panicked: this is a bug; everything acknowledged is on disk")]
    Panicked,
}
