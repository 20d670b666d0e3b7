//! One backup: which files are new, their copies, and the manifest behind them.
//!
//! The order is what makes it safe (`FORMAT.md`): a file has its name only when its bytes are durable, a generation exists only when all
//! its files have their names durably, and nothing is removed before no generation names it, durably. `tests.rs` cuts it off at each
//! step, with everything lost that was not synced.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::PathBuf;

use super::frames::FrameCheck;
use super::manifest::{FileEntry, FileKind, MANIFEST_BYTES_MAX, Manifest, ManifestProblem};
use super::parts::PartCheck;
use super::source::{Source, cold_files};
use super::vault::{Folder, PART, Vault, error, read_up_to};
use super::{BackupError, OnProgress, Progress};
use crate::core::{PinDone, Pinned};
use crate::disk::FileId;
use crate::format::segment::{HeaderBlock, SegmentHeader};
use crate::format::{BLOCK, uuid_text};

/// Read and written at once.
pub(super) const PIECE_BYTES: usize = 1 << 20;
/// Bytes a second that are always allowed: less would take longer for a piece than the log waits for.
pub(super) const BANDWIDTH_MIN: u64 = 64 << 10;
/// Left free on the backup's disk for directories and the manifest.
const ROOM_TO_SPARE: u64 = 1 << 20;

/// What a backup did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackupReport {
    /// Number of the generation made.
    pub generation: u64,
    /// Last frame in it.
    pub lsn: u64,
    /// Files in it.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Of them, copied now.
    pub copied_files: u64,
    /// Bytes copied now.
    pub copied_bytes: u64,
    /// Older generations removed.
    pub generations_removed: Vec<u64>,
    /// Files removed that no generation names.
    pub files_removed: u64,
    /// Their bytes.
    pub bytes_removed: u64,
    /// Generations whose manifest is damaged: files are not removed while there are any.
    pub damaged: Vec<u64>,
    /// What was found wrong with WAL segments of the node itself while they were copied: they are in the backup as they are.
    pub source_damage: Vec<String>,
}

/// A file beside the log.
#[derive(Clone, Debug)]
pub(crate) struct Extra {
    pub(super) place: String,
    pub(super) path: PathBuf,
}

/// What the backup directory holds.
#[derive(Debug)]
pub(crate) struct Shelf {
    pub(super) generations: BTreeMap<u64, Result<Manifest, ManifestProblem>>,
    pub(super) files: BTreeMap<String, u64>,
    parts: Vec<(Folder, String)>,
    /// Size and CRC of each stored file, as generations name it.
    known: BTreeMap<String, (u64, u32)>,
}

impl Shelf {
    pub(crate) fn read(vault: &mut dyn Vault) -> Result<Shelf, BackupError> {
        let mut shelf = Shelf { generations: BTreeMap::new(), files: BTreeMap::new(), parts: Vec::new(), known: BTreeMap::new() };
        for folder in [Folder::Files, Folder::Generations] {
            for (name, bytes) in vault.list(folder)? {
                if name.ends_with(PART) {
                    shelf.parts.push((folder, name));
                } else if folder == Folder::Files {
                    shelf.files.insert(name, bytes);
                } else if let Some(generation) = generation_number(&name) {
                    let manifest = read_manifest(vault, generation, &name, bytes)?;
                    shelf.generations.insert(generation, manifest);
                }
            }
        }
        let named = shelf.generations.values().flatten().flat_map(|manifest| &manifest.files);
        shelf.known = named.map(|file| (file.stored.clone(), (file.bytes, file.crc))).collect();
        Ok(shelf)
    }

    /// Generations that can be read.
    pub(crate) fn whole(&self) -> impl DoubleEndedIterator<Item = &Manifest> {
        self.generations.values().filter_map(|manifest| manifest.as_ref().ok())
    }

    /// A log may add a generation only to its own, and only where nothing is from a newer program.
    fn accepts(&self, pinned: &Pinned) -> Result<(), BackupError> {
        for (generation, manifest) in &self.generations {
            match manifest {
                Err(problem) if problem.is_newer() => {
                    return Err(BackupError::Manifest { generation: *generation, problem: problem.clone() });
                }
                Ok(manifest) if manifest.superblock.volume_id != pinned.superblock.volume_id => {
                    return Err(BackupError::Foreign {
                        found: uuid_text(&manifest.superblock.volume_id),
                        expected: uuid_text(&pinned.superblock.volume_id),
                    });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The CRC of a stored file of this name and size, if a generation names it and it is there.
    fn known(&self, stored: &str, bytes: u64) -> Option<u32> {
        let there = self.files.get(stored) == Some(&bytes);
        self.known.get(stored).filter(|(named, _)| there && *named == bytes).map(|(_, crc)| *crc)
    }
}

fn read_manifest(
    vault: &mut dyn Vault,
    generation: u64,
    name: &str,
    bytes: u64,
) -> Result<Result<Manifest, ManifestProblem>, BackupError> {
    if bytes > MANIFEST_BYTES_MAX {
        return Ok(Err(ManifestProblem::Damaged("it is larger than any manifest")));
    }
    let mut read = vec![0; bytes as usize];
    let done = vault.read(Folder::Generations, name, 0, &mut read)?;
    Ok(Manifest::decode(generation, &read[..done]))
}

pub(super) fn manifest_name(generation: u64) -> String {
    format!("{generation:010}.manifest")
}

fn generation_number(name: &str) -> Option<u64> {
    let generation = name.strip_suffix(".manifest")?.parse().ok()?;
    (manifest_name(generation) == name).then_some(generation)
}

/// Where a file's bytes are.
#[derive(Clone, Debug)]
enum From {
    /// The data directory.
    Node(FileId, PinDone),
    /// A path of its own.
    Beside(PathBuf),
}

/// A file of the backup to be.
#[derive(Clone, Debug)]
struct Wanted {
    kind: FileKind,
    place: String,
    stored: String,
    bytes: u64,
    from: From,
    /// Its CRC, if it is stored already.
    known: Option<u32>,
}

/// Where in a file, and what is wrong.
type Wrong = (u64, &'static str);

/// Looks at what is copied, by what it is.
enum Check {
    Frames(FrameCheck),
    Parts(PartCheck),
    /// The frames of a promoted segment: a reader tells what is wrong with them.
    Nothing,
}

impl Check {
    fn new(pinned: &Pinned, id: FileId, done: PinDone, bytes: u64) -> Check {
        let log_id = pinned.superblock.volume_id;
        match (id, done) {
            (_, PinDone::Wal(sequence)) => Check::Frames(FrameCheck::new(log_id, sequence)),
            (FileId::Cold(number), _) => Check::Parts(PartCheck::new(log_id, number, bytes)),
            _ => Check::Nothing,
        }
    }

    fn add(&mut self, piece: &[u8]) {
        match self {
            Check::Frames(check) => check.add(piece),
            Check::Parts(check) => check.add(piece),
            Check::Nothing => {}
        }
    }

    fn finish(self) -> Option<Wrong> {
        match self {
            Check::Frames(check) => check.finish(),
            Check::Parts(check) => check.finish(),
            Check::Nothing => None,
        }
    }
}

/// A backup under way.
pub(crate) struct Job<'a> {
    pub(crate) vault: &'a mut dyn Vault,
    pub(crate) source: &'a mut dyn Source,
    pub(crate) keep: Option<u64>,
    pub(crate) now_ms: u64,
    /// Read at once.
    pub(crate) piece_bytes: usize,
    pub(crate) stop: &'a dyn Fn() -> bool,
    /// Told when the files beside the log are copied.
    pub(crate) pinned: &'a mut dyn FnMut(),
    pub(crate) progress: OnProgress<'a>,
}

impl Job<'_> {
    pub(crate) fn run(mut self, shelf: &Shelf, pinned: &Pinned, extras: &[Extra]) -> Result<BackupReport, BackupError> {
        shelf.accepts(pinned)?;
        for (folder, name) in &shelf.parts {
            self.vault.remove(*folder, name)?;
        }
        // The smallest first; then what the log wants back soonest.
        let mut wanted = self.beside(shelf, extras)?;
        wanted.extend(self.wal(shelf, pinned)?);
        wanted.extend(self.cold(shelf, pinned)?);
        let needed: u64 = wanted.iter().filter(|file| file.known.is_none()).map(|file| file.bytes).sum();
        if let Some(room) = self.vault.room().filter(|room| needed.saturating_add(ROOM_TO_SPARE) > *room) {
            return Err(BackupError::NoRoom { needed, room });
        }
        let generation = shelf.generations.keys().next_back().map_or(1, |last| last + 1);
        let mut report = BackupReport { generation, lsn: pinned.lsn, files: wanted.len() as u64, ..BackupReport::default() };
        let files = self.copy(&wanted, extras.len(), (pinned, needed), &mut report)?;
        if report.copied_files > 0 {
            self.vault.sync_folder(Folder::Files)?;
        }
        let superblock = pinned.superblock;
        let manifest = Manifest { generation, created_ms: self.now_ms, lsn: pinned.lsn, superblock, files };
        report.bytes = manifest.bytes();
        self.write_manifest(&manifest)?;
        self.prune(shelf, &manifest, &mut report)?;
        Ok(report)
    }

    /// Files beside the log are small: their content is their name.
    fn beside(&mut self, shelf: &Shelf, extras: &[Extra]) -> Result<Vec<Wanted>, BackupError> {
        let mut wanted = Vec::with_capacity(extras.len());
        for Extra { place, path } in extras {
            let (mut crc, mut bytes) = (0, 0);
            each_piece(path, &mut |piece| {
                crc = crc32c::crc32c_append(crc, piece);
                bytes += piece.len() as u64;
                Ok(())
            })?;
            let stored = format!("other-{:08x}-{crc:08x}-{bytes:x}", crc32c::crc32c(place.as_bytes()));
            let known = shelf.known(&stored, bytes);
            let from = From::Beside(path.clone());
            wanted.push(Wanted { kind: FileKind::Whole, place: place.clone(), stored, bytes, from, known });
        }
        Ok(wanted)
    }

    fn wal(&mut self, shelf: &Shelf, pinned: &Pinned) -> Result<Vec<Wanted>, BackupError> {
        let mut wanted = Vec::with_capacity(pinned.segments.len());
        for segment in &pinned.segments {
            let file = FileId::Segment(segment.file);
            let volume_id = pinned.superblock.volume_id;
            let is_its = |header: &[u8]| {
                matches!(SegmentHeader::decode(header), HeaderBlock::Good(header)
                    if header.sequence == segment.sequence && header.volume_id == volume_id)
            };
            let mut header = self.source.read(file, 0, BLOCK, false)?;
            let mut named = is_its(&header);
            if !named && self.source.has_other(file) {
                header = self.source.read(file, 0, BLOCK, true)?;
                named = is_its(&header);
            }
            self.source.confirm(PinDone::Nothing)?;
            // Without its header any frame tells whose it is, also one behind its end that was never acknowledged.
            let bytes = if named { u64::from(segment.end_block) * BLOCK as u64 } else { pinned.superblock.segment_bytes };
            let stored = format!("wal-{:016x}-{:08x}-{bytes:x}", segment.sequence, crc32c::crc32c(&header));
            let known = shelf.known(&stored, bytes);
            let from = From::Node(file, PinDone::Wal(segment.sequence));
            wanted.push(Wanted { kind: FileKind::Wal, place: file.to_string(), stored, bytes, from, known });
        }
        Ok(wanted)
    }

    fn cold(&mut self, shelf: &Shelf, pinned: &Pinned) -> Result<Vec<Wanted>, BackupError> {
        let mut wanted = Vec::with_capacity(pinned.cold.len());
        for place in pinned.cold.iter() {
            let (number, entry) = (place.number, &place.entry);
            let files = cold_files(place);
            let last = files.len() - 1;
            for (at, (file, bytes)) in files.into_iter().enumerate() {
                let bytes = match bytes {
                    Some(bytes) => bytes,
                    None => self.source.size(file)?,
                };
                // Where it lies is no part of it: copies come and go.
                let id = crc32c::crc32c(&entry.on(&[0]).encode());
                let kind = if matches!(file, FileId::Promoted(_)) { "promoted" } else { "cold" };
                let stored = format!("{kind}-{number:08}-{id:08x}-{:x}-{bytes:x}", entry.created_ms);
                let known = shelf.known(&stored, bytes);
                let done = if at == last { PinDone::Cold(number) } else { PinDone::Nothing };
                let from = From::Node(file, done);
                wanted.push(Wanted { kind: FileKind::Whole, place: file.to_string(), stored, bytes, from, known });
            }
        }
        Ok(wanted)
    }

    fn copy(
        &mut self,
        wanted: &[Wanted],
        beside: usize,
        (pinned, needed): (&Pinned, u64),
        report: &mut BackupReport,
    ) -> Result<Vec<FileEntry>, BackupError> {
        let mut files = Vec::with_capacity(wanted.len());
        let mut meter = Progress { bytes_done: 0, bytes_total: needed };
        for (at, file) in wanted.iter().enumerate() {
            if at == beside {
                (self.pinned)();
            }
            let crc = match (file.known, &file.from) {
                (Some(crc), From::Node(_, done)) => {
                    self.source.confirm(*done)?;
                    crc
                }
                (Some(crc), From::Beside(_)) => crc,
                (None, _) => {
                    report.copied_files += 1;
                    report.copied_bytes += file.bytes;
                    self.copy_file(file, pinned, &mut meter, report)?
                }
            };
            let (place, stored) = (file.place.clone(), file.stored.clone());
            files.push(FileEntry { kind: file.kind, crc, bytes: file.bytes, place, stored });
        }
        if wanted.len() <= beside {
            (self.pinned)();
        }
        Ok(files)
    }

    fn copy_file(
        &mut self,
        file: &Wanted,
        pinned: &Pinned,
        meter: &mut Progress,
        report: &mut BackupReport,
    ) -> Result<u32, BackupError> {
        let part = format!("{}{PART}", file.stored);
        let crc = match &file.from {
            From::Node(id, done) => {
                let begin = *meter;
                let (mut crc, mut wrong) = self.copy_from_node(file, (*id, *done), &part, (pinned, false), meter)?;
                if wrong.is_some() && self.source.has_other(*id) {
                    // The other copy may be whole; where it is not, this one is as good.
                    *meter = begin;
                    (crc, wrong) = self.copy_from_node(file, (*id, *done), &part, (pinned, true), meter)?;
                }
                report.source_damage.extend(wrong.map(|(at, reason)| format!("{id} at {at}: {reason}")));
                // Read while it was held: only now is it known to be what it should be.
                self.source.confirm(*done)?;
                crc
            }
            From::Beside(path) => self.copy_beside(file, path, &part, meter)?,
        };
        self.vault.sync()?;
        self.vault.rename(Folder::Files, &part, &file.stored)?;
        Ok(crc)
    }

    /// From one copy, or from the other one. Returns the CRC of what was copied, and where the first damage in it is.
    fn copy_from_node(
        &mut self,
        file: &Wanted,
        (id, done): (FileId, PinDone),
        part: &str,
        (pinned, other): (&Pinned, bool),
        meter: &mut Progress,
    ) -> Result<(u32, Option<Wrong>), BackupError> {
        self.vault.create(Folder::Files, part)?;
        let mut check = Check::new(pinned, id, done, file.bytes);
        let (mut at, mut crc) = (0, 0);
        while at < file.bytes {
            if (self.stop)() {
                return Err(BackupError::Stopped);
            }
            let bytes = (file.bytes - at).min(self.piece_bytes as u64) as usize;
            let piece = self.source.read(id, at, bytes, other)?;
            crc = crc32c::crc32c_append(crc, &piece);
            check.add(&piece);
            self.vault.append(&piece)?;
            at += bytes as u64;
            meter.bytes_done += bytes as u64;
            (self.progress)(*meter);
        }
        Ok((crc, check.finish()))
    }

    fn copy_beside(
        &mut self,
        file: &Wanted,
        path: &std::path::Path,
        part: &str,
        meter: &mut Progress,
    ) -> Result<u32, BackupError> {
        self.vault.create(Folder::Files, part)?;
        let (mut crc, mut bytes) = (0, 0);
        let vault = &mut self.vault;
        each_piece(path, &mut |piece| {
            crc = crc32c::crc32c_append(crc, piece);
            bytes += piece.len() as u64;
            vault.append(piece)
        })?;
        meter.bytes_done += bytes;
        (self.progress)(*meter);
        if !file.stored.ends_with(&format!("-{crc:08x}-{bytes:x}")) {
            let changed = std::io::Error::other("it changed while it was read; start the backup again");
            return Err(error("reading", path)(changed));
        }
        Ok(crc)
    }

    fn write_manifest(&mut self, manifest: &Manifest) -> Result<(), BackupError> {
        let name = manifest_name(manifest.generation);
        let part = format!("{name}{PART}");
        self.vault.create(Folder::Generations, &part)?;
        self.vault.append(&manifest.encode())?;
        self.vault.sync()?;
        self.vault.rename(Folder::Generations, &part, &name)?;
        self.vault.sync_folder(Folder::Generations)
    }

    /// The backup exists; what is too much goes.
    fn prune(&mut self, shelf: &Shelf, made: &Manifest, report: &mut BackupReport) -> Result<(), BackupError> {
        let damaged = shelf.generations.iter().filter(|(_, manifest)| manifest.is_err());
        report.damaged = damaged.map(|(generation, _)| *generation).collect();
        let older: Vec<&Manifest> = shelf.whole().collect();
        let keep = self.keep.map_or(usize::MAX, |keep| usize::try_from(keep).unwrap_or(usize::MAX)).max(1) - 1;
        let (go, stay) = older.split_at(older.len().saturating_sub(keep));
        for manifest in go {
            self.vault.remove(Folder::Generations, &manifest_name(manifest.generation))?;
            report.generations_removed.push(manifest.generation);
        }
        if !go.is_empty() {
            self.vault.sync_folder(Folder::Generations)?;
        }
        if !report.damaged.is_empty() {
            return Ok(());
        }
        let named: BTreeSet<&str> =
            stay.iter().copied().chain([made]).flat_map(|manifest| &manifest.files).map(|file| &*file.stored).collect();
        for (name, bytes) in shelf.files.iter().filter(|(name, _)| !named.contains(name.as_str())) {
            self.vault.remove(Folder::Files, name)?;
            report.files_removed += 1;
            report.bytes_removed += bytes;
        }
        if report.files_removed > 0 {
            self.vault.sync_folder(Folder::Files)?;
        }
        Ok(())
    }
}

fn each_piece(path: &std::path::Path, each: &mut dyn FnMut(&[u8]) -> Result<(), BackupError>) -> Result<(), BackupError> {
    let file = File::open(path).map_err(error("opening", path))?;
    let mut buf = vec![0; PIECE_BYTES];
    let mut at = 0;
    loop {
        let read = read_up_to(&file, path, at, &mut buf)?;
        if read == 0 {
            return Ok(());
        }
        each(&buf[..read])?;
        at += read as u64;
    }
}
