//! The disks of the cold tier's volumes: a reader that knows which copies a segment has, and where the sorter gets its stores from.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use super::{ColdOpener, DiskRead, FileId, Reader};
use crate::view::View;
use crate::volumes::Health;

/// One volume's disk, open.
#[derive(Clone)]
pub struct VolumeDisk {
    /// For readers.
    pub reader: Arc<dyn Reader>,
    /// For the sorter; `None` in the simulator, which makes its own.
    pub open: Option<ColdOpener>,
    /// Held as long as it is in use: the lock of the directory.
    pub keep: Arc<dyn Any + Send + Sync>,
    /// Alive as long as a copy of the WAL in the same directory may still be written to.
    pub wal: Weak<()>,
}

/// The disks that are there, by the number of their volume.
#[derive(Default)]
pub struct VolumeDisks(RwLock<BTreeMap<u8, VolumeDisk>>);

impl VolumeDisks {
    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<u8, VolumeDisk>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<u8, VolumeDisk>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// One of them.
    pub fn get(&self, number: u8) -> Option<VolumeDisk> {
        self.read().get(&number).cloned()
    }

    /// A disk is there.
    pub fn add(&self, number: u8, disk: VolumeDisk) {
        self.write().insert(number, disk);
    }

    /// It is let go of.
    pub fn remove(&self, number: u8) -> Option<VolumeDisk> {
        self.write().remove(&number)
    }

    /// Lets go of the directories, when nobody writes there any more; readers may go on.
    pub fn unlock(&self) {
        self.write().values_mut().for_each(|disk| disk.keep = Arc::new(()));
    }

    /// All that are there.
    pub fn all(&self) -> BTreeMap<u8, VolumeDisk> {
        self.read().clone()
    }
}

/// Reads cold segments from the volumes that hold them, and everything else from the copies of the WAL.
pub struct VolumeReader {
    /// Of the WAL.
    pub wal: Arc<dyn Reader>,
    /// The volumes' disks.
    pub disks: Arc<VolumeDisks>,
    /// Which segment lies where, and how the volumes do.
    pub view: Arc<View>,
}

impl Reader for VolumeReader {
    fn read(&self, request: DiskRead) -> Result<(), DiskRead> {
        self.wal.read(request)
    }

    fn read_other(&self, request: DiskRead) -> Result<(), DiskRead> {
        self.wal.read_other(request)
    }

    fn has_other(&self) -> bool {
        self.wal.has_other()
    }

    /// One on a healthy disk; where both are, each has its share.
    fn first_copy(&self, file: FileId) -> usize {
        let (FileId::Cold(number) | FileId::Promoted(number)) = file else { return 0 };
        let holders = self.view.tables().cold_place(number).map_or(Vec::new(), |place| place.entry.holders().to_vec());
        let [_, _] = holders[..] else { return 0 };
        let volumes = self.view.volumes();
        let well = |number: u8| volumes.get(number).is_some_and(|volume| volume.health == Health::Healthy && !volume.wal_out);
        match (well(holders[0]), well(holders[1])) {
            (true, false) => 0,
            (false, true) => 1,
            _ => number as usize % 2,
        }
    }

    fn read_copy(&self, copy: usize, request: DiskRead) -> Result<bool, DiskRead> {
        let (FileId::Cold(number) | FileId::Promoted(number)) = request.file else { return self.wal.read_copy(copy, request) };
        let holders = self.view.tables().cold_place(number).map(|place| place.entry.holders().to_vec());
        // It was merged away meanwhile: whoever asks again sees what it has become.
        let Some(holders) = holders else { return Err(request) };
        let Some(volume) = holders.get(copy).copied() else { return Ok(false) };
        if !self.view.volumes().is_online(volume) {
            return Ok(false);
        }
        let Some(disk) = self.disks.get(volume) else { return Ok(false) };
        let view = Arc::clone(&self.view);
        let DiskRead { file, at, bytes, reply } = request;
        let noted = Box::new(move |result: Result<bytes::Bytes, super::DiskError>| {
            match &result {
                Ok(_) => view.volumes().read_worked(volume),
                Err(error) => view.volumes().read_failed(volume, error),
            }
            reply(result);
        });
        disk.reader.read(DiskRead { file, at, bytes, reply: noted }).map(|()| true)
    }

    fn forget(&self, file: FileId) {
        match file {
            FileId::Cold(_) | FileId::Promoted(_) | FileId::Remade(_) => {
                self.disks.all().values().for_each(|disk| disk.reader.forget(file));
            }
            FileId::Superblock | FileId::Segment(_) => self.wal.forget(file),
        }
    }
}
