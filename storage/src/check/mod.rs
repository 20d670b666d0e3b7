//! Offline check of a volume: reads every byte that counts, writes none, and says what is damaged and what is lost with it.
//!
//! 1. `disk.rs`: the files, for reading only, under a shared lock that keeps nodes out.
//! 2. A rehearsal: `recovery` itself runs over them, so what a node would find, refuse or discard is found by the same rules. That is
//!    where a torn tail is told from damage.
//! 3. Every segment by itself (`recovery/deep.rs`), several at a time: all CRCs, decompression, and whether its frames add up to the
//!    snapshot that the next one begins with. `frames.rs` looks into the payloads: record batches, metadata, offsets.
//! 4. Every segment of the cold tier that the manifest names (`cold.rs`), several at a time, all its copies.
//!
//! Of a log on several disks (`copies.rs` says which directory holds what) the rehearsal reads from either copy, as a node would; each
//! copy is then read by itself, so that damage to one is named although the other one makes it good.
//!
//! Memory: a window and a frame a thread, the state of one segment a thread, and the index that a node would have.
//!
//! Not covered by any CRC, and without meaning: the zeros that fill a frame's last block, and what lies in spare files.

mod cold;
mod copies;
pub(crate) mod disk;
mod files;
mod frames;
mod merge;
mod report;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::config::{ColdConfig, LogConfig};
use crate::core::{Now, Opening};
use crate::disk::{Disk, FileId};
use crate::format::superblock::Superblock;
use crate::lock::DirLock;
use crate::recovery::deep::{self, Part, Parts};
use crate::report::{OpenError, RecoveryReport};

use copies::Copies;
use disk::ReadOnlyDisk;
use files::Label;
use frames::Contents;
pub use report::{CheckError, CheckReport, CheckedVolume, FINDINGS_MAX, Finding, Severity, VolumeFacts};

/// More threads than this only wait for each other.
const JOBS_MAX: usize = 64;
/// Bytes between two calls of the progress callback, a thread.
const PROGRESS_EVERY: u64 = 4 << 20;

/// How a check is made.
#[derive(Clone, Copy, Debug, Default)]
pub struct CheckOptions {
    /// Segments read at a time; by default as many as there are processors.
    pub jobs: Option<NonZeroUsize>,
}

/// How far a check is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of segments done.
    pub bytes_done: u64,
    /// Bytes of all segments, those of the cold tier with them.
    pub bytes_total: u64,
}

/// Checks the volume in `dir`, which no node may have open. Changes nothing. `progress` is called from several threads.
pub fn check(dir: &Path, options: CheckOptions, progress: &(dyn Fn(Progress) + Sync)) -> Result<CheckReport, CheckError> {
    check_volumes(dir, &[], options, progress)
}

/// The same, of a log on several disks: `others` are directories of the other copy of the log and of further volumes, in any order.
pub fn check_volumes(
    dir: &Path,
    others: &[PathBuf],
    options: CheckOptions,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<CheckReport, CheckError> {
    // What recovery would tell the node's log, the report tells.
    let quiet = tracing::subscriber::NoSubscriber::default();
    tracing::subscriber::with_default(quiet, || check_quietly(dir, others, options, progress))
}

fn check_quietly(
    dir: &Path,
    others: &[PathBuf],
    options: CheckOptions,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<CheckReport, CheckError> {
    let mut dirs = vec![dir.to_owned()];
    dirs.extend_from_slice(others);
    let _locks = dirs.iter().map(|dir| DirLock::share(dir)).collect::<Result<Vec<_>, _>>()?;
    let label = |of: &Path, file: String| if of == dir { file } else { of.join(file).display().to_string() };
    let mut report = CheckReport::default();
    let copies = Copies::find(dir, others, &mut report);
    let superblock = superblocks(&copies, &label, &mut report)?;
    let mut disk = copies.disk();
    copies.missing_files(&label, &mut report);
    let has_cold = dirs.iter().any(|dir| {
        dir.join("volume").exists() || std::fs::read_dir(dir.join("cold")).is_ok_and(|mut files| files.next().is_some())
    });
    let config = LogConfig { accept_fenced: true, cold: has_cold.then(ColdConfig::default), ..LogConfig::new(dir) };
    let opened = rehearse(disk.as_mut(), &config, &mut report)?;
    let superblock = match superblock {
        Some(superblock) => Some(superblock),
        None => deep::superblock_from_segments(disk.as_mut())?,
    };
    if let Some(superblock) = superblock {
        let parts = deep::parts(disk.as_mut(), &config, &superblock)?;
        files::unknown(&copies.all(), &label, &parts, &mut report);
        let cores = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        let jobs = options.jobs.unwrap_or(cores);
        let wal_bytes = (parts.len() * copies.all().len()) as u64 * superblock.segment_bytes;
        let volumes = opened
            .as_ref()
            .map(|(opening, found)| cold::volumes(&dirs, &found.volume_id, opening, &mut report))
            .unwrap_or_default();
        let total = wal_bytes + opened.as_ref().map_or(0, |(opening, _)| cold::bytes(&volumes, opening));
        let meter = Meter { done: AtomicU64::new(0), total, progress };
        let mut read = Vec::new();
        for (root, other) in copies.each() {
            read.push((root, read_parts(root, other, &superblock, &parts, jobs, &meter)?));
        }
        match &opened {
            Some((opening, found)) => cold::check(dir, &volumes, &found.volume_id, opening, jobs, &meter, &mut report),
            None if has_cold => report.note("cold", "which files count here cannot be told, so none was checked"),
            None => {}
        }
        merge::merge(&superblock, opened.as_ref(), read, &label, &mut report);
    }
    report.settle();
    Ok(report)
}

/// Both slots of each copy; the newest of the one that counts.
fn superblocks(copies: &Copies, label: Label<'_>, report: &mut CheckReport) -> Result<Option<Superblock>, CheckError> {
    let mut disk = ReadOnlyDisk::new(&copies.main);
    let named = disk.size(FileId::Superblock).map_err(OpenError::from)?.is_some();
    if !named && disk.list_segments().map_err(OpenError::from)?.is_empty() {
        return Err(CheckError::NoVolume(copies.main.display().to_string()));
    }
    let name = |dir: &Path| label(dir, FileId::Superblock.to_string());
    if let Some(other) = &copies.other {
        files::superblock(&mut ReadOnlyDisk::new(other), &name(other), report)?;
    }
    let superblock = files::superblock(&mut disk, &name(&copies.main), report)?;
    if let Some(superblock) = &superblock {
        files::pair(superblock, copies.lacks_one(superblock), report);
    }
    report.copies = copies.all().len() as u64;
    Ok(superblock)
}

/// What a node would make of it. `None`: it would not open, and that is a finding.
fn rehearse(
    disk: &mut dyn Disk,
    config: &LogConfig,
    report: &mut CheckReport,
) -> Result<Option<(Opening, RecoveryReport)>, CheckError> {
    match crate::recovery::recover(disk, config, Now::default(), [[0; 16]; 2]) {
        Ok((_, opening, found)) => Ok(Some((opening, found))),
        Err(
            error @ (OpenError::NewerFormat { .. }
            | OpenError::NewerSegment { .. }
            | OpenError::NewerFrame { .. }
            | OpenError::BadConfig(_)
            | OpenError::Directory { .. }
            | OpenError::Disk(_)),
        ) => Err(error.into()),
        Err(error) => {
            report.damage("", None, format!("a node does not open this volume: {error}"));
            Ok(None)
        }
    }
}

/// What became of one segment.
type Read = (Part, Contents);

/// Reads all segments, several at a time.
fn read_parts(
    dir: &Path,
    other: Option<&Path>,
    superblock: &Superblock,
    parts: &Parts,
    jobs: NonZeroUsize,
    meter: &Meter<'_>,
) -> Result<Vec<Read>, CheckError> {
    let jobs = jobs.get().min(JOBS_MAX).min(parts.len());
    let next = AtomicUsize::new(0);
    let read: Mutex<Vec<Result<Read, OpenError>>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                let mut disk = other.map_or_else(|| ReadOnlyDisk::new(dir), |other| ReadOnlyDisk::with_other(dir, other));
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at >= parts.len() {
                        return;
                    }
                    let part = tracing::subscriber::with_default(tracing::subscriber::NoSubscriber::default(), || {
                        read_part(&mut disk, superblock, parts, at, meter)
                    });
                    read.lock().unwrap_or_else(PoisonError::into_inner).push(part);
                }
            });
        }
    });
    let read = read.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(read.into_iter().collect::<Result<Vec<Read>, OpenError>>()?)
}

fn read_part(
    disk: &mut ReadOnlyDisk,
    superblock: &Superblock,
    parts: &Parts,
    at: usize,
    meter: &Meter<'_>,
) -> Result<Read, OpenError> {
    let mut contents = Contents::default();
    let mut told = 0;
    let part = deep::part(disk, superblock, parts, at, &mut |header, entries, payload, position| {
        contents.frame(header, entries, payload, position);
        if position - told >= PROGRESS_EVERY {
            meter.add(position - told);
            told = position;
        }
    })?;
    meter.add(superblock.segment_bytes - told);
    Ok((part, contents))
}

struct Meter<'a> {
    done: AtomicU64,
    total: u64,
    progress: &'a (dyn Fn(Progress) + Sync),
}

impl Meter<'_> {
    fn add(&self, bytes: u64) {
        let bytes_done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        (self.progress)(Progress { bytes_done, bytes_total: self.total });
    }
}
