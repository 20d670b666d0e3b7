//! Offline check of a volume: reads every byte that counts, writes none, and says what is damaged and what is lost with it.
//!
//! 1. `disk.rs`: the files, for reading only, under a shared lock that keeps nodes out.
//! 2. A rehearsal: `recovery` itself runs over them, so what a node would find, refuse or discard is found by the same rules. That is
//!    where a torn tail is told from damage.
//! 3. Every segment by itself (`recovery/deep.rs`), several at a time: all CRCs, decompression, and whether its frames add up to the
//!    snapshot that the next one begins with. `frames.rs` looks into the payloads: record batches, metadata, offsets.
//! 4. Every segment of the cold tier that the manifest names (`cold.rs`), several at a time.
//!
//! Memory: a window and a frame a thread, the state of one segment a thread, and the index that a node would have.
//!
//! Not covered by any CRC, and without meaning: the zeros that fill a frame's last block, and what lies in spare files.

mod cold;
pub(crate) mod disk;
mod files;
mod frames;
mod report;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::config::{ColdConfig, LogConfig};
use crate::core::{Now, Opening};
use crate::disk::{Disk, FileId};
use crate::format::superblock::{Superblock, VolumeState};
use crate::lock::DirLock;
use crate::recovery::deep::{self, Part, Parts};
use crate::report::{Damage, Gap, OpenError, RecoveryReport};

use disk::ReadOnlyDisk;
use frames::Contents;
pub use report::{CheckError, CheckReport, FINDINGS_MAX, Finding, Severity, VolumeFacts};

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

/// The same, with the cold segments on other volumes of the log. The WAL is read in `dir` only.
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
    let _lock = DirLock::share(dir)?;
    let _locks = others.iter().map(|dir| DirLock::share(dir)).collect::<Result<Vec<_>, _>>()?;
    let mut disk = ReadOnlyDisk::new(dir);
    let mut report = CheckReport::default();
    let named = disk.size(FileId::Superblock).map_err(OpenError::from)?.is_some();
    if !named && disk.list_segments().map_err(OpenError::from)?.is_empty() {
        return Err(CheckError::NoVolume(dir.display().to_string()));
    }
    let superblock = files::superblock(&mut disk, &mut report)?;
    let has_cold =
        dir.join("volume").exists() || std::fs::read_dir(dir.join("cold")).is_ok_and(|mut files| files.next().is_some());
    let config = LogConfig { accept_fenced: true, cold: has_cold.then(ColdConfig::default), ..LogConfig::new(dir) };
    let opened = rehearse(&mut disk, &config, &mut report)?;
    let superblock = match superblock {
        Some(superblock) => Some(superblock),
        None => deep::superblock_from_segments(&mut disk)?,
    };
    if let Some(superblock) = superblock {
        let parts = deep::parts(&mut disk, &config, &superblock)?;
        files::unknown(dir, &parts, &mut report);
        let cores = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        let jobs = options.jobs.unwrap_or(cores);
        let wal_bytes = parts.len() as u64 * superblock.segment_bytes;
        let mut dirs = vec![dir.to_owned()];
        dirs.extend_from_slice(others);
        let volumes = opened
            .as_ref()
            .map(|(opening, found)| cold::volumes(&dirs, &found.volume_id, opening, &mut report))
            .unwrap_or_default();
        let total = wal_bytes + opened.as_ref().map_or(0, |(opening, _)| cold::bytes(&volumes, opening));
        let meter = Meter { done: AtomicU64::new(0), total, progress };
        let read = read_parts(dir, &superblock, &parts, jobs, &meter)?;
        match &opened {
            Some((opening, found)) => cold::check(dir, &volumes, &found.volume_id, opening, jobs, &meter, &mut report),
            None if has_cold => report.note("cold", "which files count here cannot be told, so none was checked"),
            None => {}
        }
        merge(&superblock, opened.as_ref(), read, &mut report);
    }
    report.settle();
    Ok(report)
}

/// What a node would make of it. `None`: it would not open, and that is a finding.
fn rehearse(
    disk: &mut ReadOnlyDisk,
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
                let mut disk = ReadOnlyDisk::new(dir);
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

/// Puts rehearsal and segments together: the same damage is told once.
fn merge(superblock: &Superblock, opened: Option<&(Opening, RecoveryReport)>, read: Vec<Read>, report: &mut CheckReport) {
    report.segments = read.len() as u64;
    let mut told = Vec::new();
    let mut torn_tail = opened.is_some_and(|(_, found)| found.torn_tail);
    for (part, contents) in read {
        let file = FileId::Segment(part.file).to_string();
        told.extend(part.damage.iter().map(|damage| (damage.file, damage.at)));
        part.damage.iter().for_each(|damage| tell(damage, report));
        torn_tail |= opened.is_none() && part.torn_tail;
        if part.damage.is_empty() && !part.gaps.is_empty() {
            report.damage(&file, None, format!("offsets are missing between good frames of segment {}", part.sequence));
        }
        if part.snapshot_bad && part.damage.is_empty() {
            report.damage(&file, None, format!("the snapshot at the start of segment {} makes no sense", part.sequence));
        }
        if let Some(how) = &part.disagrees {
            let what = format!("the snapshot behind segment {} contradicts its frames: {how}", part.sequence);
            report.damage(&file, None, what);
        }
        take(contents, &file, report);
        report.frames += part.frames;
        report.lost.extend(part.gaps);
    }
    if torn_tail {
        let what = "the last write was cut off by a crash: it was never acknowledged, and the next start discards it";
        report.note("", what);
    }
    if superblock.state == VolumeState::Fenced {
        report.damage("superblock", None, OpenError::Fenced.to_string());
    }
    if let Some((opening, found)) = opened {
        let unread = found.damage.iter().filter(|damage| !told.contains(&(damage.file, damage.at)));
        unread.for_each(|damage| tell(damage, report));
        report.meta_lost |= found.meta_damaged;
        (report.last_lsn, report.producers) = (found.last_lsn.0, found.producers);
        (report.partitions, report.meta_keys) = (found.partitions, opening.view.meta().len() as u64);
        still_kept(opening, report);
    }
}

fn tell(damage: &Damage, report: &mut CheckReport) {
    let Damage { file, at, first_lsn, frames, reason } = damage;
    let which = if *frames == 1 { format!("frame {first_lsn}") } else { format!("{frames} frames from {first_lsn} on") };
    report.damage(FileId::Segment(*file).to_string(), Some(*at), format!("{which} damaged: {reason}"));
}

fn take(contents: Contents, file: &str, report: &mut CheckReport) {
    report.batches += contents.batches;
    report.records += contents.records;
    report.bytes += contents.bytes;
    report.meta_lost |= contents.meta_lost;
    report.damage_total += contents.problems_total - contents.problems.len() as u64;
    for (at, what) in contents.problems {
        report.damage(file, Some(at), format!("the frame is intact but {what}"));
    }
    report.lost.extend(contents.lost);
}

/// What the log knows to be lost, and of what was found lost here only what it would still give out.
fn still_kept(opening: &Opening, report: &mut CheckReport) {
    let tables = opening.view.tables();
    report.lost.retain_mut(|gap| {
        let bounds = tables.bounds(gap.partition);
        gap.from = gap.from.max(bounds.map_or(i64::MAX, |bounds| bounds.start));
        gap.from < gap.to
    });
    let known = tables.gaps.iter().map(|(&(partition, from), &to)| Gap { partition, from, to });
    report.lost.extend(known);
}
