//! Backups of a log: a directory of files copied once and generations that name them. `FORMAT.md` beside this has every byte.
//!
//! A backup is the log as of one frame: the WAL segments up to it, the cold segments that it lists, and what else the data directory
//! needs. While a node runs, its log pins those files (`core/pin.rs`) and they are copied under its feet, read around the page cache;
//! of a stopped node's directory the rehearsal of a recovery says which they are. Everything else is the same:
//!
//! 1. `run.rs`: which files are new, the copying, and the order of steps that makes a cut at any of them harmless.
//! 2. `vault.rs`: those steps on a real directory; `source.rs`: where the bytes come from.
//! 3. `frames.rs` and `parts.rs`: whether what is copied is whole; where it is not and there is another copy, that one is taken.
//! 4. `restore.rs` and `verify.rs`: the way back, and whether it is open. What lay on several disks comes back into one directory
//!    (`gather.rs`).
//!
//! Cost: each file is read and written once in its life, one CRC over it; each generation reads 4 KiB of every WAL segment.

mod frames;
mod gather;
pub mod manifest;
#[cfg(any(test, feature = "sim"))]
pub(crate) mod memory;
mod parts;
pub(crate) mod restore;
pub(crate) mod run;
pub(crate) mod source;
#[cfg(test)]
mod tests;
pub(crate) mod vault;
mod verify;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::core::{PinLost, PinTaken};
use crate::disk::DiskError;
use crate::format::BLOCK;
use crate::log::LogHandle;
use crate::report::OpenError;

use manifest::ManifestProblem;
pub use restore::{RestoreReport, restore};
pub use run::BackupReport;
pub use verify::{GenerationInfo, Problem, VerifyReport, list, verify};

use run::{BANDWIDTH_MIN, Extra, Job, PIECE_BYTES, Shelf};
use source::{DirSource, LogSource};
use vault::DirVault;

/// Beside the log itself: the broker's plugins, which its metadata names.
const EXTRAS: &str = "plugins";

/// How a backup is made.
#[derive(Clone, Copy, Debug, Default)]
pub struct BackupOptions {
    /// Generations to keep, this one included; `None`: all.
    pub keep: Option<u64>,
    /// Bytes read a second at most, at least 64 KiB; `None`: as fast as they come.
    pub bandwidth_bytes_max: Option<u64>,
}

impl BackupOptions {
    fn bandwidth(&self) -> Option<u64> {
        self.bandwidth_bytes_max.map(|rate| rate.max(BANDWIDTH_MIN))
    }

    /// A second's worth at most, so that it can be stopped and is heard of.
    fn piece_bytes(&self) -> usize {
        let rate = self.bandwidth().unwrap_or(u64::MAX).min(PIECE_BYTES as u64) as usize;
        rate / BLOCK * BLOCK
    }
}

/// How far a backup, a verification or a restore is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes done.
    pub bytes_done: u64,
    /// Of so many.
    pub bytes_total: u64,
}

/// Told how far it is.
pub type OnProgress<'a> = &'a mut dyn FnMut(Progress);

/// Why there is no backup, or no restored directory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// The system said no.
    #[error("{what} {path} failed: {source}{}", advice(source), path = .path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The node's own files cannot be read.
    #[error(transparent)]
    Source(#[from] DiskError),
    /// The volume cannot be read.
    #[error(transparent)]
    Volume(#[from] OpenError),
    /// No volume.
    #[error("{0} holds no volume: name the node's data directory")]
    NoVolume(PathBuf),
    /// On disks that are not there, or were not named.
    #[error(
        "{segments} cold segments lie on disks that are not here: bring them back, or name the directories of all disks of a stopped node (--volume)"
    )]
    Elsewhere {
        /// How many.
        segments: usize,
    },
    /// A directory that was named as one of the log's disks.
    #[error("{0} is no volume of this log, or one that was let go of: name the directories that the node's configuration names")]
    NoVolumeOfIt(PathBuf),
    /// No backup directory.
    #[error("{0} is no backup directory: name the one that `weir backup` was given")]
    NoBackup(PathBuf),
    /// The directory is used for something else.
    #[error("{path} is no backup directory and not empty (it holds {holds:?}): name an empty one", path = .path.display())]
    NotABackup {
        /// The directory.
        path: PathBuf,
        /// Something in it.
        holds: String,
    },
    /// Somebody writes to it, or reads it.
    #[error("{0} is in use by another backup, verification or restore: wait for it")]
    Locked(PathBuf),
    /// Backups of another log.
    #[error("this directory holds backups of volume {found}, not of {expected}: give each node a directory of its own")]
    Foreign {
        /// UUID found.
        found: String,
        /// UUID of the log.
        expected: String,
    },
    /// A generation cannot be read.
    #[error("generation {generation}: {problem}")]
    Manifest {
        /// Which.
        generation: u64,
        /// What is wrong.
        problem: ManifestProblem,
    },
    /// No such generation.
    #[error("there is no {}: `weir backup --list` shows what there is", .0.map_or_else(|| "whole generation".to_owned(), |n| format!("generation {n}")))]
    NoGeneration(Option<u64>),
    /// Not the bytes that were backed up.
    #[error("generation {generation}: {file} is damaged ({what}): try another generation, or another copy of this directory")]
    Damaged {
        /// Which.
        generation: u64,
        /// The file, below the data directory.
        file: String,
        /// What is wrong.
        what: String,
    },
    /// The backup's disk is too small.
    #[error("the backup needs {needed} more bytes, its disk has {room} free: free some, or keep fewer generations")]
    NoRoom {
        /// Bytes to copy.
        needed: u64,
        /// Bytes free.
        room: u64,
    },
    /// The target holds something.
    #[error("{path} is not empty (it holds {holds:?}): restore into a directory that is missing or empty", path = .path.display())]
    TargetNotEmpty {
        /// The directory.
        path: PathBuf,
        /// Something in it.
        holds: String,
    },
    /// What was restored does not open.
    #[error(
        "every checksum holds, but what was restored does not open as it should: {0}; report it with the output of `weir check`"
    )]
    NotAsBackedUp(String),
    /// One at a time.
    #[error(transparent)]
    Taken(#[from] PinTaken),
    /// The log could not hold its files for so long.
    #[error("given up: {0}")]
    Lost(#[from] PinLost),
    /// The node is stopping.
    #[error("given up: the log has stopped")]
    LogStopped,
    /// Asked to stop.
    #[error("stopped as asked; the generations made before are whole")]
    Stopped,
}

fn advice(source: &std::io::Error) -> &'static str {
    match source.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => "; free some space there",
        std::io::ErrorKind::PermissionDenied => "; this user needs the right to it",
        std::io::ErrorKind::ReadOnlyFilesystem => "; mount it writable",
        _ => "",
    }
}

impl LogHandle {
    /// Makes a backup while the log is in use: everything acknowledged before is in it. `pinned` is called when the files beside the
    /// log are copied, so that whoever kept them as they were can go on; setting `stop` ends it at the next piece. Blocks for as long as it takes: for a thread of its own.
    pub fn backup(
        &self,
        to: &Path,
        options: BackupOptions,
        stop: &AtomicBool,
        pinned: &mut dyn FnMut(),
        progress: OnProgress<'_>,
    ) -> Result<BackupReport, BackupError> {
        let mut vault = DirVault::open(to)?;
        let shelf = Shelf::read(&mut vault)?;
        let mut source = LogSource::pin(self, options.bandwidth())?;
        let snapshot = source.pinned().clone();
        let extras = extras(self.dir())?;
        let stopped = || stop.load(Ordering::Relaxed);
        let piece_bytes = options.piece_bytes();
        let (vault, source) = (&mut vault, &mut source);
        Job { vault, source, keep: options.keep, now_ms: now_ms(), piece_bytes, stop: &stopped, pinned, progress }
            .run(&shelf, &snapshot, &extras)
    }
}

/// Makes a backup of a stopped node's directory, which stays locked meanwhile.
pub fn backup_stopped(
    dir: &Path,
    to: &Path,
    options: BackupOptions,
    progress: OnProgress<'_>,
) -> Result<BackupReport, BackupError> {
    backup_stopped_volumes(dir, &[], to, options, progress)
}

/// The same of a node with several disks: the log is read in `dir`, cold segments in `others` as well.
pub fn backup_stopped_volumes(
    dir: &Path,
    others: &[PathBuf],
    to: &Path,
    options: BackupOptions,
    progress: OnProgress<'_>,
) -> Result<BackupReport, BackupError> {
    let (mut source, snapshot) = DirSource::open(dir, others, options.bandwidth())?;
    let mut vault = DirVault::open(to)?;
    let shelf = Shelf::read(&mut vault)?;
    let extras = extras(dir)?;
    Job {
        vault: &mut vault,
        source: &mut source,
        keep: options.keep,
        now_ms: now_ms(),
        piece_bytes: options.piece_bytes(),
        stop: &|| false,
        pinned: &mut || {},
        progress,
    }
    .run(&shelf, &snapshot, &extras)
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// Files beside the log, in order.
fn extras(dir: &Path) -> Result<Vec<Extra>, BackupError> {
    let folder = dir.join(EXTRAS);
    let mut found = Vec::new();
    let entries = match std::fs::read_dir(&folder) {
        Err(missing) if missing.kind() == std::io::ErrorKind::NotFound => return Ok(found),
        entries => entries.map_err(vault::error("listing", &folder))?,
    };
    for entry in entries {
        let path = entry.map_err(vault::error("listing", &folder))?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        if let Some(name) = name.filter(|name| path.is_file() && manifest::is_name(name)) {
            found.push(Extra { place: format!("{EXTRAS}/{name}"), path: path.clone() });
        }
    }
    found.sort_unstable_by(|a, b| a.place.cmp(&b.place));
    Ok(found)
}
