//! The volumes' stores as one: a file is made on as many as its class wants, and read from whichever can give it.
//!
//! A volume that fails a write is left out from then on; what is being written goes on with the others. It may end with one copy
//! where there should be two: the manifest says so, and a later job makes the other one. Only when no volume is left does the
//! job fail. A power cut is no failure of a volume: it ends everything.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::disk::{AlignedBuf, ColdStore, DiskError, DiskVerb, FileId};
use crate::types::ClassId;
use crate::view::View;

/// Stores by the number of their volume.
pub type StoreMap = BTreeMap<u8, Box<dyn ColdStore>>;

/// Where new files go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WritePlan {
    /// Volumes that take them, the best first.
    pub volumes: Vec<u8>,
    /// Volumes on which a write has failed: tried again where none of the others takes a file.
    pub last_resort: Vec<u8>,
    /// Classes that want but one copy; all others want two.
    pub single: Vec<ClassId>,
}

impl WritePlan {
    fn copies(&self, class: ClassId) -> usize {
        if self.single.contains(&class) { 1 } else { 2 }
    }
}

/// See the module.
pub struct Stores<'a> {
    stores: &'a mut StoreMap,
    view: &'a View,
    /// Volumes with a copy of the WAL that counts, the one to read first in front.
    wal: Vec<u8>,
    plan: WritePlan,
    class: ClassId,
    /// Volumes that have all of the file that is being written.
    writing: Vec<u8>,
    /// Where the next file goes, if not where the plan says.
    beside: Option<Vec<u8>>,
}

impl<'a> Stores<'a> {
    /// Over these, with the WAL on those.
    pub fn new(stores: &'a mut StoreMap, view: &'a View, wal: Vec<u8>) -> Stores<'a> {
        Stores { stores, view, wal, plan: WritePlan::default(), class: ClassId(0), writing: Vec::new(), beside: None }
    }

    /// Where the files of this job go.
    pub(super) fn plan(&mut self, plan: &WritePlan) {
        self.plan = plan.clone();
    }

    /// Gives a WAL segment a second name, as a promoted one, on volumes that hold a copy of it; the next file that is made goes there
    /// too. `None`: they are fewer than a segment of its class is to have copies, or a disk does not allow it.
    pub(super) fn link_wal(&mut self, wal: u32, number: u32, class: ClassId) -> Result<Option<Vec<u8>>, DiskError> {
        let wanted = self.plan.copies(class).min(self.plan.volumes.len());
        let with_wal = self.plan.volumes.iter().copied().filter(|volume| self.wal.contains(volume));
        let volumes: Vec<u8> = with_wal.take(wanted).collect();
        if volumes.is_empty() || volumes.len() < wanted {
            return Ok(None);
        }
        for volume in &volumes {
            let missing = DiskError::Missing { verb: DiskVerb::Link, file: FileId::Segment(wal) };
            let linked =
                self.on(*volume).map_or(Err(missing), |store| store.link(FileId::Segment(wal), FileId::Promoted(number)));
            match linked {
                Ok(()) => {}
                Err(error @ DiskError::Closed { .. }) => return Err(error),
                Err(error) => {
                    // Not every file system can do it: that is no failure of the volume.
                    tracing::warn!(%error, volume, "a WAL segment cannot stay as it is: it is sorted");
                    self.unlink_wal(&volumes, number)?;
                    return Ok(None);
                }
            }
        }
        self.beside = Some(volumes.clone());
        Ok(Some(volumes))
    }

    /// Takes that name away again. What is left of it goes at the next start.
    pub(super) fn unlink_wal(&mut self, volumes: &[u8], number: u32) -> Result<(), DiskError> {
        self.beside = None;
        for volume in volumes {
            if let Some(Err(error @ DiskError::Closed { .. })) =
                self.on(*volume).map(|store| store.remove(FileId::Promoted(number)))
            {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Volumes that hold what was sealed last.
    pub(super) fn holders(&self) -> &[u8] {
        &self.writing
    }

    /// Volumes with a copy of the WAL that counts.
    pub(super) fn wal(&self) -> &[u8] {
        &self.wal
    }

    /// Volumes whose files can be got at.
    pub(super) fn online(&self) -> Vec<u8> {
        let volumes = self.view.volumes();
        self.stores.keys().copied().filter(|number| volumes.is_online(*number)).collect()
    }

    /// One volume's store.
    pub(super) fn on(&mut self, volume: u8) -> Option<&mut dyn ColdStore> {
        let online = self.view.volumes().is_online(volume);
        let store = self.stores.get_mut(&volume).filter(|_| online)?;
        Some(store.as_mut())
    }

    /// Reads from one volume, and notes how it did.
    pub(super) fn read_on(&mut self, volume: u8, file: FileId, at: u64, bytes: usize) -> Result<Bytes, DiskError> {
        // Which copies of the WAL count is decided elsewhere.
        let usable = matches!(file, FileId::Segment(_)) || self.view.volumes().is_online(volume);
        let Some(store) = self.stores.get_mut(&volume).filter(|_| usable) else {
            return Err(DiskError::Missing { verb: DiskVerb::Read, file });
        };
        let result = store.read(file, at, bytes);
        match &result {
            Ok(_) => self.view.volumes().read_worked(volume),
            Err(DiskError::Closed { .. }) => {}
            Err(error) => self.view.volumes().read_failed(volume, error),
        }
        result
    }

    /// Writes, makes or removes something on one volume, and notes it when that fails.
    pub(super) fn change_on(
        &mut self,
        volume: u8,
        change: impl FnOnce(&mut dyn ColdStore) -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        let Some(store) = self.on(volume) else {
            return Err(DiskError::Missing { verb: DiskVerb::Write, file: FileId::Superblock });
        };
        let result = change(store);
        if let Err(error) = &result
            && !matches!(error, DiskError::Closed { .. })
        {
            self.view.volumes().write_failed(volume, error);
        }
        result
    }

    /// Volumes that hold a file; always in the same order, however they do, so that each is asked once.
    fn holders_of(&self, file: FileId) -> Vec<u8> {
        match file {
            FileId::Cold(number) | FileId::Promoted(number) | FileId::Remade(number) => {
                let tables = self.view.tables();
                tables.cold_place(number).map_or_else(|| self.writing.clone(), |place| place.entry.holders().to_vec())
            }
            FileId::Segment(_) | FileId::Superblock => self.wal.clone(),
        }
    }

    /// The same change on every volume that is being written to; those that fail it are left out.
    fn on_all(
        &mut self,
        file: FileId,
        mut change: impl FnMut(&mut dyn ColdStore) -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        let mut failed = DiskError::Missing { verb: DiskVerb::Write, file };
        for volume in self.writing.clone() {
            match self.change_on(volume, &mut change) {
                Ok(()) => {}
                Err(error @ DiskError::Closed { .. }) => return Err(error),
                Err(error) => {
                    failed = error;
                    self.leave_out(volume, file)?;
                }
            }
        }
        if self.writing.is_empty() { Err(failed) } else { Ok(()) }
    }

    /// What it has of the file only takes up space.
    fn leave_out(&mut self, volume: u8, file: FileId) -> Result<(), DiskError> {
        self.writing.retain(|other| *other != volume);
        match self.on(volume).map(|store| store.remove(file)) {
            Some(Err(error @ DiskError::Closed { .. })) => Err(error),
            // It goes at the next start.
            _ => Ok(()),
        }
    }
}

impl ColdStore for Stores<'_> {
    fn read(&mut self, file: FileId, at: u64, bytes: usize) -> Result<Bytes, DiskError> {
        let mut failed = DiskError::Missing { verb: DiskVerb::Read, file };
        for copy in 0..self.copies(file) {
            match self.read_copy(copy, file, at, bytes) {
                Err(error @ DiskError::Closed { .. }) => return Err(error),
                // What a disk that hangs has may be whole: it must not count as lost.
                Err(error) if !matches!(failed, DiskError::Hangs { .. }) => failed = error,
                Err(_) => {}
                read => return read,
            }
        }
        Err(failed)
    }

    fn copies(&mut self, file: FileId) -> usize {
        self.holders_of(file).len()
    }

    fn read_copy(&mut self, copy: usize, file: FileId, at: u64, bytes: usize) -> Result<Bytes, DiskError> {
        match self.holders_of(file).get(copy) {
            Some(volume) => self.read_on(*volume, file, at, bytes),
            None => Err(DiskError::Missing { verb: DiskVerb::Read, file }),
        }
    }

    fn will_read(&mut self, copy: usize, file: FileId, at: u64, bytes: usize) {
        let volume = self.holders_of(file).get(copy).copied();
        if let Some(store) = volume.and_then(|volume| self.stores.get_mut(&volume)) {
            store.will_read(0, file, at, bytes);
        }
    }

    fn place(&mut self, class: ClassId) {
        self.class = class;
    }

    fn create(&mut self, file: FileId) -> Result<(), DiskError> {
        let wanted = self.plan.copies(self.class);
        let mut failed = DiskError::Missing { verb: DiskVerb::Create, file };
        self.writing.clear();
        let groups = match self.beside.take() {
            Some(volumes) => [volumes, Vec::new()],
            None => [self.plan.volumes.clone(), self.plan.last_resort.clone()],
        };
        for volumes in groups {
            for volume in volumes {
                if self.writing.len() == wanted {
                    break;
                }
                match self.change_on(volume, |store| store.create(file)) {
                    Ok(()) => self.writing.push(volume),
                    Err(error @ DiskError::Closed { .. }) => return Err(error),
                    Err(error) => failed = error,
                }
            }
            if !self.writing.is_empty() {
                break;
            }
        }
        if self.writing.is_empty() { Err(failed) } else { Ok(()) }
    }

    fn write(&mut self, file: FileId, at: u64, data: AlignedBuf) -> Result<(), DiskError> {
        if self.writing.len() == 1 {
            let mut data = Some(data);
            return self.on_all(file, |store| data.take().map_or(Ok(()), |data| store.write(file, at, data)));
        }
        self.on_all(file, |store| store.write(file, at, AlignedBuf::copy_of(&data)))
    }

    fn seal(&mut self, file: FileId) -> Result<(), DiskError> {
        self.on_all(file, |store| store.seal(file))
    }

    /// Each copy is mended by itself.
    fn overwrite(&mut self, file: FileId, _: u64, _: AlignedBuf) -> Result<(), DiskError> {
        Err(DiskError::Closed { verb: DiskVerb::Write, file })
    }

    fn rename(&mut self, from: FileId, to: FileId) -> Result<(), DiskError> {
        self.on_all(from, |store| store.rename(from, to))
    }

    fn link(&mut self, from: FileId, to: FileId) -> Result<(), DiskError> {
        self.on_all(to, |store| store.link(from, to))
    }

    fn remove(&mut self, file: FileId) -> Result<(), DiskError> {
        for volume in self.online() {
            self.change_on(volume, |store| store.remove(file))?;
        }
        Ok(())
    }

    fn list(&mut self) -> Result<Vec<FileId>, DiskError> {
        let mut all = Vec::new();
        for volume in self.online() {
            if let Some(store) = self.on(volume) {
                all.extend(store.list()?);
            }
        }
        all.sort_unstable();
        all.dedup();
        Ok(all)
    }
}
