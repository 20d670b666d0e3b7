//! Where a backup's bytes come from: a running log that holds the files, or a stopped node's directory.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::BackupError;
use super::vault::read_up_to;
use crate::check::disk::ReadOnlyDisk;
use crate::cold::manifest::{VolumeEntry, VolumeUse};
use crate::cold::wal::WalSegment;
use crate::config::{ColdConfig, LogConfig};
use crate::core::{Now, PIN_LEASE, PinDone, Pinned, copied, named_volumes};
use crate::disk::volumes::{VolumeDisk, VolumeDisks};
use crate::disk::{Disk, DiskError, DiskRead, DiskVerb, FileId, Limiter, Reader};
use crate::format::superblock::Peer;
use crate::lock::DirLock;
use crate::log::LogHandle;
use crate::report::OpenError;
use crate::view::ColdPlace;
use crate::volume_dir::{has_identity, identity_in};

/// A piece that is read is heard of so often, at least.
const HEARD_EVERY: Duration = Duration::from_secs(10);
/// Wait for the log's reader when it has too much to do.
const BUSY_WAIT: Duration = Duration::from_millis(5);

const _: () = assert!(HEARD_EVERY.as_secs() * 4 < PIN_LEASE.as_secs());

/// Reads files that stay as they are until they are let go.
pub(crate) trait Source {
    /// Exactly these bytes, from either copy; from the `other` one first, if there are two.
    fn read(&mut self, file: FileId, at: u64, bytes: usize, other: bool) -> Result<Bytes, BackupError>;
    /// Whether there are two copies of it.
    fn has_other(&self, file: FileId) -> bool;
    /// What was read of the file so far is what it holds, and it is not needed any more if `done` says so.
    fn confirm(&mut self, done: PinDone) -> Result<(), BackupError>;
    /// Size of a file of the cold tier.
    fn size(&mut self, file: FileId) -> Result<u64, BackupError>;
}

/// The file of a cold segment, and of the WAL segment that it may be an index of. Which volume it is read from is the matter of whoever reads it.
pub(super) fn cold_files(place: &ColdPlace) -> Vec<(FileId, Option<u64>)> {
    let mut files = vec![(FileId::Cold(place.number), Some(place.entry.file_bytes))];
    if let Some(wal) = place.entry.promoted {
        files.push((FileId::Promoted(place.number), Some(wal.bytes)));
    }
    files
}

/// A running log.
pub(super) struct LogSource {
    log: LogHandle,
    reader: Arc<dyn Reader>,
    disks: Arc<VolumeDisks>,
    pinned: Pinned,
    limiter: Limiter,
    /// The log wants its files back: not the moment to be slow.
    hurry: bool,
    heard: Instant,
}

impl LogSource {
    pub(super) fn pin(log: &LogHandle, bandwidth_max: Option<u64>) -> Result<LogSource, BackupError> {
        let pinned = log.pin().ok_or(BackupError::LogStopped)??;
        let limiter = Limiter::new(bandwidth_max);
        let (reader, disks) = (log.reader(), log.volume_disks());
        let source = LogSource { log: log.clone(), reader, disks, pinned, limiter, hurry: false, heard: Instant::now() };
        let there = |place: &Arc<ColdPlace>| [false, true].iter().any(|other| source.disk_of(place.number, *other).is_some());
        all_are_there(&source.pinned, there)?;
        Ok(source)
    }

    pub(super) fn pinned(&self) -> &Pinned {
        &self.pinned
    }

    /// The disk with one copy of a cold segment, or with the other one. It may be out of the manifest by now: the pin knows it.
    fn disk_of(&self, number: u32, other: bool) -> Option<VolumeDisk> {
        let place = self.pinned.cold.iter().find(|place| place.number == number)?;
        self.disks.get(*place.entry.holders().get(usize::from(other))?)
    }

    /// From one copy of the log, or from the other one.
    fn read_from(&self, other: bool, file: FileId, at: u64, bytes: usize) -> Result<Bytes, BackupError> {
        loop {
            let (sender, answer) = sync_channel(1);
            let reply = Box::new(move |result: Result<Bytes, DiskError>| drop(sender.try_send(result)));
            let request = DiskRead { file, at, bytes, reply };
            let queued = match file {
                FileId::Cold(number) | FileId::Promoted(number) => {
                    let missing = DiskError::Missing { verb: DiskVerb::Read, file };
                    self.disk_of(number, other).ok_or(missing)?.reader.read(request)
                }
                _ if other => self.reader.read_other(request),
                _ => self.reader.read(request),
            };
            if queued.is_ok() {
                let closed = DiskError::Closed { verb: DiskVerb::Read, file };
                return answer.recv().unwrap_or(Err(closed)).map_err(BackupError::Source);
            }
            // The queue is full: consumers are served first. Or the log has stopped, which the next word with it tells.
            std::thread::sleep(BUSY_WAIT);
            self.log.pin_done(self.pinned.token, PinDone::Nothing).ok_or(BackupError::LogStopped)??;
        }
    }
}

impl Source for LogSource {
    fn read(&mut self, file: FileId, at: u64, bytes: usize, other: bool) -> Result<Bytes, BackupError> {
        if self.heard.elapsed() >= HEARD_EVERY {
            self.confirm(PinDone::Nothing)?;
        }
        if !self.hurry {
            self.limiter.pass(bytes);
        }
        let has_other = self.has_other(file);
        let other = other && has_other;
        let first = self.read_from(other, file, at, bytes);
        let Err(BackupError::Source(error)) = first else { return first };
        if has_other && let Ok(bytes) = self.read_from(!other, file, at, bytes) {
            return Ok(bytes);
        }
        // A file that is gone because the log could not hold it any longer is no damage.
        self.confirm(PinDone::Nothing)?;
        Err(error.into())
    }

    fn has_other(&self, file: FileId) -> bool {
        match file {
            FileId::Cold(number) | FileId::Promoted(number) => self.disk_of(number, true).is_some(),
            _ => self.reader.has_other(),
        }
    }

    fn confirm(&mut self, done: PinDone) -> Result<(), BackupError> {
        self.hurry = self.log.pin_done(self.pinned.token, done).ok_or(BackupError::LogStopped)??;
        self.heard = Instant::now();
        Ok(())
    }

    fn size(&mut self, file: FileId) -> Result<u64, BackupError> {
        let mut result = size_below(self.log.dir(), file);
        let (FileId::Cold(number) | FileId::Promoted(number)) = file else { return result };
        let place = self.pinned.cold.iter().find(|place| place.number == number);
        let holders = place.map_or(Vec::new(), |place| place.entry.holders().to_vec());
        for volume in self.log.volumes().into_iter().filter(|volume| holders.contains(&volume.number)) {
            if result.is_err() && !volume.dir.is_empty() {
                result = size_below(Path::new(&volume.dir), file);
            }
        }
        result
    }
}

impl Drop for LogSource {
    fn drop(&mut self) {
        // However the backup ends; if the log is gone, so is the pin.
        let _ = self.log.pin_done(self.pinned.token, PinDone::All);
    }
}

fn size_below(root: &Path, file: FileId) -> Result<u64, BackupError> {
    let path = root.join(file.relative_path());
    let metadata = std::fs::metadata(path).map_err(|error| DiskError::from_io(DiskVerb::Stat, file, &error))?;
    Ok(metadata.len())
}

/// What no disk holds that can be had is named before anything is copied.
fn all_are_there(pinned: &Pinned, there: impl Fn(&Arc<ColdPlace>) -> bool) -> Result<(), BackupError> {
    let segments = pinned.cold.iter().filter(|place| !there(place)).count();
    if segments > 0 { Err(BackupError::Elsewhere { segments }) } else { Ok(()) }
}

/// A stopped node's directories, locked.
pub(super) struct DirSource {
    root: PathBuf,
    /// Where cold segments lie, by the number of the volume.
    volumes: BTreeMap<u8, PathBuf>,
    /// Volumes of each cold segment that are here.
    holders: BTreeMap<u32, Vec<u8>>,
    open: Option<(PathBuf, File)>,
    limiter: Limiter,
    _locks: Vec<Option<DirLock>>,
}

impl DirSource {
    /// Locks them and rehearses recovery: what a node would find is what is backed up. The log is read in `dir`, cold segments in
    /// `others` as well.
    pub(super) fn open(dir: &Path, others: &[PathBuf], bandwidth_max: Option<u64>) -> Result<(DirSource, Pinned), BackupError> {
        let mut locks = vec![DirLock::share(dir)?];
        for other in others {
            locks.push(DirLock::share(other)?);
        }
        let pinned = tracing::subscriber::with_default(tracing::subscriber::NoSubscriber::default(), || rehearse(dir))?;
        let volumes = volumes_in(dir, others, &pinned)?;
        let here = |place: &ColdPlace| -> Vec<u8> {
            place.entry.holders().iter().copied().filter(|volume| volumes.contains_key(volume)).collect()
        };
        let holders: BTreeMap<u32, Vec<u8>> = pinned.cold.iter().map(|place| (place.number, here(place))).collect();
        all_are_there(&pinned, |place| !holders[&place.number].is_empty())?;
        let limiter = Limiter::new(bandwidth_max);
        Ok((DirSource { root: dir.to_owned(), volumes, holders, open: None, limiter, _locks: locks }, pinned))
    }

    /// Where a file lies, the first copy in front.
    fn roots_of(&self, file: FileId) -> Vec<PathBuf> {
        match file {
            FileId::Cold(number) | FileId::Promoted(number) => {
                let holders = self.holders.get(&number).map_or(&[][..], |holders| &holders[..]);
                holders.iter().filter_map(|volume| self.volumes.get(volume).cloned()).collect()
            }
            _ => vec![self.root.clone()],
        }
    }

    fn read_below(&mut self, root: &Path, file: FileId, at: u64, bytes: usize) -> Result<Bytes, BackupError> {
        let path = root.join(file.relative_path());
        if self.open.as_ref().is_none_or(|(open, _)| *open != path) {
            let opened = File::open(&path).map_err(|error| DiskError::from_io(DiskVerb::Open, file, &error))?;
            self.open = Some((path.clone(), opened));
        }
        let (_, opened) = self.open.as_ref().expect("just opened");
        let mut buf = vec![0; bytes];
        let done = read_up_to(opened, &path, at, &mut buf)?;
        if done < bytes {
            let (wanted, done) = (bytes as u64, done as u64);
            return Err(DiskError::Short { verb: DiskVerb::Read, file, at, wanted, done }.into());
        }
        Ok(buf.into())
    }
}

/// Which directory is which volume, told by its identity. Without a table all is in the first.
fn volumes_in(dir: &Path, others: &[PathBuf], pinned: &Pinned) -> Result<BTreeMap<u8, PathBuf>, BackupError> {
    if pinned.volumes.is_empty() {
        return Ok(BTreeMap::from([(0, dir.to_owned())]));
    }
    let mut found = BTreeMap::new();
    for path in std::iter::once(dir).chain(others.iter().map(PathBuf::as_path)) {
        let uuid = identity_in(path);
        let known = pinned.volumes.iter().find(|(_, entry)| Some(entry.uuid) == uuid && entry.usage != VolumeUse::Gone);
        match known {
            Some((number, _)) => drop(found.insert(*number, path.to_owned())),
            // It may hold the log alone; a directory that was named for its segments must have some.
            None if path == dir => {}
            None => return Err(BackupError::NoVolumeOfIt(path.to_owned())),
        }
    }
    Ok(found)
}

/// The log as a node would find it; nothing is written.
pub(super) fn rehearse(dir: &Path) -> Result<Pinned, BackupError> {
    let mut disk = ReadOnlyDisk::new(dir);
    if disk.size(FileId::Superblock)?.is_none() && disk.list_segments()?.is_empty() {
        return Err(BackupError::NoVolume(dir.to_owned()));
    }
    let has_cold = has_identity(dir) || std::fs::read_dir(dir.join("cold")).is_ok_and(|mut files| files.next().is_some());
    let config = LogConfig { accept_fenced: true, cold: has_cold.then(ColdConfig::default), ..LogConfig::new(dir) };
    let (_, opening, _) = crate::recovery::recover(&mut disk, &config, Now::default(), [[0; 16]; 2])?;
    if opening.superblock.peer == Peer::Filling {
        return Err(OpenError::MirrorIncomplete.into());
    }
    let tables = opening.view.tables();
    let segments: Vec<WalSegment> = tables
        .segments
        .iter()
        .map(|place| WalSegment { file: place.file, sequence: u64::from(place.sequence), end_block: place.end_block })
        .collect();
    let mut superblock = copied(&opening.superblock, opening.last_lsn, &segments);
    // The rehearsal opened an epoch that nothing was written in.
    superblock.epoch -= 1;
    let volumes = named_volumes(&opening.view.meta()).map_err(OpenError::from)?;
    Ok(Pinned { token: 0, lsn: opening.last_lsn, superblock, segments, cold: Arc::clone(&tables.cold), volumes })
}

/// The volume whose place a restored directory takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Home {
    pub(super) number: u8,
    pub(super) entry: VolumeEntry,
    /// It has all cold segments already: the log need not be told where they are now.
    pub(super) has_all: bool,
}

/// One that has all cold segments, if there is such a one, else the first. None where there is no table.
pub(super) fn home_of(pinned: &Pinned) -> Option<Home> {
    let has_all = |number: u8| pinned.cold.iter().all(|place| place.entry.holders().contains(&number));
    let kept = || pinned.volumes.iter().filter(|(_, entry)| entry.usage != VolumeUse::Gone);
    let (number, entry) = *kept().find(|(number, _)| has_all(*number)).or(kept().next())?;
    Some(Home { number, entry, has_all: has_all(number) })
}

impl Source for DirSource {
    fn read(&mut self, file: FileId, at: u64, bytes: usize, other: bool) -> Result<Bytes, BackupError> {
        self.limiter.pass(bytes);
        let mut roots = self.roots_of(file);
        if other {
            roots.reverse();
        }
        let mut result = Err(DiskError::Missing { verb: DiskVerb::Open, file }.into());
        for root in roots {
            result = self.read_below(&root, file, at, bytes);
            if result.is_ok() {
                break;
            }
        }
        result
    }

    fn has_other(&self, file: FileId) -> bool {
        self.roots_of(file).len() > 1
    }

    fn confirm(&mut self, _: PinDone) -> Result<(), BackupError> {
        Ok(())
    }

    fn size(&mut self, file: FileId) -> Result<u64, BackupError> {
        let mut result = Err(DiskError::Missing { verb: DiskVerb::Stat, file }.into());
        for root in self.roots_of(file) {
            result = size_below(&root, file);
            if result.is_ok() {
                break;
            }
        }
        result
    }
}
