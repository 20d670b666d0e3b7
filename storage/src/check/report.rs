//! What a check found, and why one could not be made.

use crate::report::{Gap, OpenError};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Something that was durable is damaged or missing, or the volume does not open.
    Damage,
    /// Worth knowing; nothing is wrong.
    Note,
}

/// One thing found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// File below the data directory; empty where it is about the whole volume.
    pub file: String,
    /// Where in the file.
    pub at: Option<u64>,
    /// What is there, and what it means.
    pub what: String,
}

/// What the volume is, as far as it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeFacts {
    /// Node it belongs to.
    pub node_id: [u8; 16],
    /// The volume.
    pub volume_id: [u8; 16],
    /// Format of the superblock.
    pub format: (u16, u16),
    /// Openings so far.
    pub epoch: u64,
    /// Size of a segment.
    pub segment_bytes: u64,
    /// Whether it was shut down.
    pub clean: bool,
}

/// A volume that the log's table names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedVolume {
    /// Its number.
    pub number: u8,
    /// Who it is.
    pub uuid: [u8; 16],
    /// Where it was found; `None`: it was not looked at.
    pub dir: Option<std::path::PathBuf>,
    /// Cold segments on it.
    pub segments: u64,
    /// Of these, those that lie on no volume that was looked at.
    pub unseen: u64,
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// What the superblock says; `None`: it is lost.
    pub volume: Option<VolumeFacts>,
    /// Copies of the log that were read.
    pub copies: u64,
    /// The log's volumes, if it has a table of them.
    pub volumes: Vec<CheckedVolume>,
    /// Segments with frames.
    pub segments: u64,
    /// Frames that are good.
    pub frames: u64,
    /// Record batches whose CRC holds.
    pub batches: u64,
    /// Records in them.
    pub records: u64,
    /// Bytes of those frames.
    pub bytes: u64,
    /// Segments of the cold tier.
    pub cold_segments: u64,
    /// Record batches in them whose CRC holds.
    pub cold_batches: u64,
    /// Records in those; the WAL may still have some of them, too.
    pub cold_records: u64,
    /// Last frame of the log.
    pub last_lsn: u64,
    /// Open partitions.
    pub partitions: u64,
    /// Producer lanes.
    pub producers: u64,
    /// Keys of metadata.
    pub meta_keys: u64,
    /// Files ready to be used.
    pub spares: u64,
    /// Findings, damage first; at most [`FINDINGS_MAX`].
    pub findings: Vec<Finding>,
    /// How many of them there are, listed or not.
    pub damage_total: u64,
    /// Records lost, by partition; at most [`FINDINGS_MAX`].
    pub lost: Vec<Gap>,
    /// How many such ranges there are.
    pub lost_total: u64,
    /// Metadata (topics, positions, producers) may be lost too.
    pub meta_lost: bool,
}

/// Findings that are listed.
pub const FINDINGS_MAX: usize = 10_000;

impl CheckReport {
    /// Whether nothing is damaged.
    pub fn is_clean(&self) -> bool {
        self.damage_total == 0
    }

    pub(super) fn damage(&mut self, file: impl Into<String>, at: Option<u64>, what: impl Into<String>) {
        self.damage_total += 1;
        self.add(Severity::Damage, file.into(), at, what.into());
    }

    pub(super) fn note(&mut self, file: impl Into<String>, what: impl Into<String>) {
        self.add(Severity::Note, file.into(), None, what.into());
    }

    fn add(&mut self, severity: Severity, file: String, at: Option<u64>, what: String) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(Finding { severity, file, at, what });
        }
    }

    /// Puts everything into an order that does not depend on which thread was first, and joins ranges that touch.
    pub(super) fn settle(&mut self) {
        self.findings.sort_by(|a, b| (a.severity as u8, &a.file, a.at, &a.what).cmp(&(b.severity as u8, &b.file, b.at, &b.what)));
        self.lost.sort_unstable();
        self.lost.dedup_by(|gap, before| {
            let touches = gap.partition == before.partition && gap.from <= before.to;
            if touches {
                before.to = before.to.max(gap.to);
            }
            touches
        });
        self.lost_total = self.lost.len() as u64;
        self.lost.truncate(FINDINGS_MAX);
    }
}

/// Why a volume could not be checked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// Nothing there.
    #[error("{0} holds no volume (neither superblock nor segments): give the node's data directory")]
    NoVolume(String),
    /// In use, of a newer format, not readable.
    #[error(transparent)]
    Open(#[from] OpenError),
}
