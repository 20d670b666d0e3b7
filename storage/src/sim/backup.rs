//! Backups in the middle of a life: the code that ships copies the log's files while the log goes on, sorts, merges and recycles. What
//! can be restored from it is then compared with what the model knew when the backup began. The directory outlives power cuts of the
//! node, so files of its former lives are in it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::model::Model;
use super::{Life, Tally, World};
use crate::backup::BackupError;
use crate::backup::manifest::{FileKind, Manifest};
use crate::backup::restore::superblock_slots;
use crate::backup::run::{Job, Shelf};
use crate::backup::source::Source;
use crate::backup::vault::{Folder, Vault};
use crate::core::PinDone;
use crate::disk::sim::{Faults, SimDisk};
use crate::disk::{AlignedBuf, Disk, FileId, blocks_up};
use crate::read::ReadPath;
use crate::recovery::recover;

/// Generations kept.
const KEEP: u64 = 2;
/// Read at once: several pieces to a segment.
const PIECE_BYTES: usize = 32 << 10;

impl World {
    /// A backup from its beginning to its end, with the life going on at each step of it.
    pub(super) fn back_up(&mut self, life: &mut Life) -> Result<(), String> {
        let Ok(pinned) = life.engine.pin(self.now) else { return Err("a backup is under way that nobody makes".to_owned()) };
        let mut model = self.model.clone();
        model.now_ms = self.now.wall_ms;
        let mut vault = std::mem::take(&mut self.vault);
        let shelf = Shelf::read(&mut vault).map_err(|error| error.to_string())?;
        let now_ms = self.now.wall_ms;
        let mut source = SimSource { world: self, life, token: pinned.token, violation: None };
        let job = Job {
            vault: &mut vault,
            source: &mut source,
            keep: Some(KEEP),
            now_ms,
            piece_bytes: PIECE_BYTES,
            stop: &|| false,
            pinned: &mut || {},
            progress: &mut |_| {},
        };
        let result = job.run(&shelf, &pinned, &[]);
        if let Some(violation) = source.violation {
            return Err(violation);
        }
        let _ = life.engine.pin_done(self.now, pinned.token, PinDone::All);
        match result {
            Ok(report) => {
                self.tally.backups += 1;
                self.tally.backups_reused += u64::from(report.copied_files < report.files);
                let shelf = Shelf::read(&mut vault).map_err(|error| error.to_string())?;
                let manifest = shelf.whole().next_back().ok_or("the backup that was made is not there")?;
                self.restore(&mut vault, manifest, &mut model).map_err(|what| format!("restored from a backup: {what}"))?;
            }
            Err(BackupError::Stopped | BackupError::Lost(_) | BackupError::Source(_)) => self.tally.backups_given_up += 1,
            Err(error) => return Err(format!("a backup failed: {error}")),
        }
        self.vault = vault;
        Ok(())
    }

    fn restore(&mut self, vault: &mut dyn Vault, manifest: &Manifest, model: &mut Model) -> Result<(), String> {
        let mut disk = SimDisk::new(1, Faults::default());
        for file in &manifest.files {
            let mut bytes = vec![0; file.bytes as usize];
            let read = vault.read(Folder::Files, &file.stored, 0, &mut bytes).map_err(|error| error.to_string())?;
            if read != bytes.len() || crc32c::crc32c(&bytes) != file.crc {
                return Err(format!("{} is not what it was", file.stored));
            }
            let whole = if file.kind == FileKind::Wal { manifest.superblock.segment_bytes } else { file.bytes };
            bytes.resize(blocks_up(whole as usize), 0);
            put(&mut disk, id_of(&file.place), &bytes)?;
        }
        put(&mut disk, FileId::Superblock, &superblock_slots(&manifest.superblock))?;
        let recovered = recover(&mut disk, &self.config, self.now, [[1; 16], [2; 16]]);
        let (limits, opening, report) = match recovered {
            Ok(recovered) => recovered,
            Err(_) if self.disk.damages > 0 => return Ok(()),
            Err(error) => return Err(format!("the log could not be opened: {error}")),
        };
        if report.last_lsn.0 > manifest.lsn && self.disk.damages > 0 {
            // A segment without its header is copied whole, with frames that came after the backup began.
            return Ok(());
        }
        if report.last_lsn.0 != manifest.lsn {
            return Err(format!("the log ends at frame {}, not at {}", report.last_lsn, manifest.lsn));
        }
        let engine = crate::core::Engine::new(limits, opening);
        let reads = Arc::new(ReadPath::new(Arc::clone(engine.view()), disk.reader(), report.volume_id));
        model.check(&engine, &reads, &report, &mut Tally::default())
    }
}

fn put(disk: &mut SimDisk, file: FileId, bytes: &[u8]) -> Result<(), String> {
    disk.write_now(file, 0, &AlignedBuf::copy_of(bytes), bytes.len()).map_err(|error| error.to_string())
}

fn id_of(place: &str) -> FileId {
    let (folder, name) = place.split_once('/').expect("a manifest has only such places");
    match folder {
        "wal" => FileId::segment_number(name).map(FileId::Segment).expect("it is the name of one"),
        _ => FileId::cold_file(name).expect("it is the name of one"),
    }
}

/// The log's files, while the log goes on.
struct SimSource<'a> {
    world: &'a mut World,
    life: &'a mut Life,
    token: u64,
    violation: Option<String>,
}

impl SimSource<'_> {
    fn life_goes_on(&mut self) -> Result<(), BackupError> {
        let rng = self.world.backups.as_mut().expect("only then are there backups");
        if rng.u32(0..200) == 0 {
            // The backup's disk hangs.
            self.world.now.monotonic += Duration::from_secs(rng.u64(1..200));
        }
        for _ in 0..rng.u32(0..4) {
            if let Err(violation) = self.world.act(self.life) {
                self.violation = Some(violation);
                return Err(BackupError::Stopped);
            }
            if self.world.dark {
                return Err(BackupError::Stopped);
            }
        }
        Ok(())
    }
}

impl Source for SimSource<'_> {
    fn read(&mut self, file: FileId, at: u64, bytes: usize, _: bool) -> Result<Bytes, BackupError> {
        self.life_goes_on()?;
        let mut buf = AlignedBuf::zeroed(bytes);
        self.world.disk.read(file, at, &mut buf, bytes)?;
        Ok(buf.into_bytes())
    }

    fn has_other(&self, _: FileId) -> bool {
        false
    }

    fn confirm(&mut self, done: PinDone) -> Result<(), BackupError> {
        self.life.engine.pin_done(self.world.now, self.token, done)?;
        self.life_goes_on()
    }

    fn size(&mut self, file: FileId) -> Result<u64, BackupError> {
        Ok(self.world.disk.size(file)?.unwrap_or(0))
    }
}
