//! From a generation back to a data directory. The superblock comes last: before it, no node takes the directory for a volume.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::gather::gather;
use super::manifest::{FileEntry, FileKind, Manifest};
use super::run::{PIECE_BYTES, Shelf};
use super::source::{home_of, rehearse};
use super::vault::{DirVault, error, flush_out, sync_dir};
use super::verify::each_stored_piece;
use super::{BackupError, OnProgress, Progress};
use crate::core::Pinned;
use crate::disk::FileId;
use crate::format::BLOCK;
use crate::format::superblock::{SLOTS, Superblock};
use crate::format::volume::Identity;
use crate::lock::DirLock;
use crate::volume_dir::write_identity;

/// Dirty pages at most: see `vault.rs`.
const DIRTY_BYTES_MAX: u64 = 8 << 20;

/// What was restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoreReport {
    /// Which generation.
    pub generation: u64,
    /// When it was made, Unix time.
    pub created_ms: u64,
    /// The last frame in it.
    pub lsn: u64,
    /// Whose volume it is.
    pub node_id: [u8; 16],
    /// Which volume.
    pub volume_id: [u8; 16],
    /// Files.
    pub files: u64,
    /// Bytes read from the backup.
    pub bytes: u64,
}

/// Makes a data directory of a generation, by default of the newest. Nothing in it counts before every checksum has held.
pub fn restore(from: &Path, to: &Path, generation: Option<u64>, progress: OnProgress<'_>) -> Result<RestoreReport, BackupError> {
    let mut vault = DirVault::open_read(from)?;
    let shelf = Shelf::read(&mut vault)?;
    let manifest = choose(&shelf, generation)?;
    refuse_used(to)?;
    let _lock = DirLock::acquire(to)?;
    for folder in ["wal", "cold", "plugins"] {
        let path = to.join(folder);
        std::fs::create_dir_all(&path).map_err(error("making", &path))?;
    }
    let mut meter = Progress { bytes_done: 0, bytes_total: manifest.bytes() };
    // WAL segments without a superblock are refused by every node: with them there, nothing half restored is ever opened.
    let wal = manifest.files.iter().filter(|file| file.kind == FileKind::Wal);
    let others = manifest.files.iter().filter(|file| file.kind != FileKind::Wal);
    for file in wal.chain(others) {
        restore_file(&mut vault, manifest, file, to, &mut meter, progress)?;
    }
    for folder in ["wal", "cold", "plugins"] {
        sync_dir(&to.join(folder))?;
    }
    write_superblock(to, &manifest.superblock)?;
    if let Some(parent) = to.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        sync_dir(parent)?;
    }
    let found = opens(to, manifest)?;
    if let Some(home) = home_of(&found) {
        // Without an identity, which comes last, no node takes a directory with cold segments.
        if !home.has_all {
            gather(to, home.number)?;
        }
        let log_id = manifest.superblock.volume_id;
        write_identity(to, &Identity { log_id, volume: home.entry.uuid, created_ms: home.entry.created_ms })?;
    }
    Ok(RestoreReport {
        generation: manifest.generation,
        created_ms: manifest.created_ms,
        lsn: manifest.lsn,
        node_id: manifest.superblock.node_id,
        volume_id: manifest.superblock.volume_id,
        files: manifest.files.len() as u64,
        bytes: manifest.bytes(),
    })
}

/// The generation asked for. Without a number the newest, and never silently an older one because that is damaged.
fn choose(shelf: &Shelf, generation: Option<u64>) -> Result<&Manifest, BackupError> {
    let number = generation.or(shelf.generations.keys().next_back().copied()).ok_or(BackupError::NoGeneration(None))?;
    match shelf.generations.get(&number) {
        None => Err(BackupError::NoGeneration(generation)),
        Some(Err(problem)) => Err(BackupError::Manifest { generation: number, problem: problem.clone() }),
        Some(Ok(manifest)) => Ok(manifest),
    }
}

fn refuse_used(to: &Path) -> Result<(), BackupError> {
    let entries = match std::fs::read_dir(to) {
        Err(missing) if missing.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(error("listing", to))?,
    };
    for entry in entries {
        let holds = entry.map_err(error("listing", to))?.file_name().to_string_lossy().into_owned();
        // A file system's own, at the root of a freshly made one.
        if holds != "lost+found" {
            return Err(BackupError::TargetNotEmpty { path: to.to_owned(), holds });
        }
    }
    Ok(())
}

fn restore_file(
    vault: &mut DirVault,
    manifest: &Manifest,
    file: &FileEntry,
    to: &Path,
    meter: &mut Progress,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), BackupError> {
    let mut target = Target::create(to.join(&file.place))?;
    let wrong = each_stored_piece(vault, file, &mut |piece| {
        target.write(piece)?;
        meter.bytes_done += piece.len() as u64;
        progress(*meter);
        Ok(())
    });
    let damaged = |what: String| BackupError::Damaged { generation: manifest.generation, file: file.place.clone(), what };
    match wrong {
        Ok(None) => {}
        Ok(Some(what)) => return Err(damaged(format!("files/{}: {what}", file.stored))),
        Err(BackupError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            return Err(damaged(format!("files/{} is missing", file.stored)));
        }
        Err(error) => return Err(error),
    }
    if file.kind == FileKind::Wal {
        // Not a hole: a write into one needs space that a full disk does not have.
        target.fill(manifest.superblock.segment_bytes)?;
    }
    target.finish()
}

/// A file that is being written, once from its start.
struct Target {
    path: PathBuf,
    file: File,
    bytes: u64,
    dirty: u64,
}

impl Target {
    fn create(path: PathBuf) -> Result<Target, BackupError> {
        let file = File::options().write(true).create_new(true).open(&path).map_err(error("making", &path))?;
        Ok(Target { path, file, bytes: 0, dirty: 0 })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), BackupError> {
        self.file.write_all(bytes).map_err(error("writing", &self.path))?;
        self.bytes += bytes.len() as u64;
        self.dirty += bytes.len() as u64;
        if self.dirty >= DIRTY_BYTES_MAX {
            flush_out(&self.file, &self.path)?;
            self.dirty = 0;
        }
        Ok(())
    }

    fn fill(&mut self, to: u64) -> Result<(), BackupError> {
        let zeros = vec![0; PIECE_BYTES];
        while self.bytes < to {
            self.write(&zeros[..(to - self.bytes).min(PIECE_BYTES as u64) as usize])?;
        }
        Ok(())
    }

    fn finish(self) -> Result<(), BackupError> {
        self.file.sync_all().map_err(error("syncing", &self.path))?;
        flush_out(&self.file, &self.path)
    }
}

/// Both slots, so that damage to one takes nothing back.
pub(crate) fn superblock_slots(superblock: &Superblock) -> Vec<u8> {
    let mut slots = vec![0; SLOTS as usize * BLOCK];
    let mut superblock = *superblock;
    for _ in 0..SLOTS {
        superblock.generation += 1;
        let at = superblock.slot_at() as usize;
        slots[at..at + BLOCK].copy_from_slice(&superblock.encode());
    }
    slots
}

fn write_superblock(to: &Path, superblock: &Superblock) -> Result<(), BackupError> {
    let mut target = Target::create(to.join(FileId::Superblock.to_string()))?;
    target.write(&superblock_slots(superblock))?;
    target.finish()?;
    sync_dir(to)
}

/// Looks at it as a node would.
fn opens(to: &Path, manifest: &Manifest) -> Result<Pinned, BackupError> {
    let found = tracing::subscriber::with_default(tracing::subscriber::NoSubscriber::default(), || rehearse(to))
        .map_err(|error| BackupError::NotAsBackedUp(error.to_string()))?;
    let cold = manifest.files.iter().filter(|file| file.place.ends_with(".cold")).count();
    // A segment without its header was copied whole, with what had come after the backup began: more is no damage.
    if found.lsn < manifest.lsn || (found.lsn == manifest.lsn && found.cold.len() != cold) {
        let (lsn, segments) = (found.lsn, found.cold.len());
        let what = format!("it ends at frame {lsn} of {}, and lists {segments} of {cold} cold segments", manifest.lsn);
        return Err(BackupError::NotAsBackedUp(what));
    }
    Ok(found)
}
