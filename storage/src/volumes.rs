//! The volumes of the cold tier as everybody sees them: what the table says of each, whether its disk is there, how it does.
//!
//! The engine decides by this, the sorter and the readers note here what their disks answered. Pure bookkeeping: no file, no clock.
//!
//! Health of a volume: *healthy* → *suspect* (a read failed, until one works; a write failed: for good, it takes no more, but what it
//! has can be read as long as that works) → *offline* (too many reads failed in a row, or its disk is not there): for good, until it is
//! attached again.

use std::collections::{BTreeMap, BTreeSet};

use crate::cold::manifest::{VolumeEntry, VolumeUse};
use crate::disk::DiskError;
use crate::format::Uuid;

/// Reads in a row that fail until it is the disk that is broken, and not some of its sectors.
const READ_FAILURES_MAX: u32 = 16;
/// Segments remembered as doubtful; more are found by the next scrub.
const DOUBTFUL_MAX: usize = 1024;

/// How a volume does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Reads and writes work.
    Healthy,
    /// Reads or writes have failed: it takes no new segments, and is read only where no other copy is.
    Suspect,
    /// Not there, or thrown out: nothing is read from it or written to it.
    Offline,
}

/// One volume.
#[derive(Clone, Debug)]
pub struct Volume {
    /// Who it is.
    pub uuid: Uuid,
    /// What it may be used for.
    pub usage: VolumeUse,
    /// How it does.
    pub health: Health,
    /// Its directory; empty where it was not found.
    pub name: String,
    /// Why it is offline, or takes no more writes.
    pub reason: Option<String>,
    /// Reads and writes that failed.
    pub errors: u64,
    /// Copies on it that were damaged or missing.
    pub bad_copies: u64,
    /// Bytes free on its file system, where it says.
    pub free_bytes: Option<u64>,
    /// A write found no space.
    pub(crate) full: bool,
    /// The table names it, durably.
    pub(crate) named: bool,
    /// A write failed: nothing more is written to it.
    pub(crate) no_writes: bool,
    /// Its copy of the WAL is out: the disk may hang.
    pub(crate) wal_out: bool,
    failures_in_row: u32,
}

/// All volumes, by number. A log without a table has one: 0.
#[derive(Debug, Default)]
pub struct Volumes {
    by_number: BTreeMap<u8, Volume>,
    /// Segments with a copy that was found damaged.
    doubtful: BTreeSet<u32>,
}

impl Volumes {
    /// No table: everything is on volume 0, the log's directory.
    pub fn is_implicit(&self) -> bool {
        self.by_number.is_empty()
    }

    /// A volume.
    pub fn get(&self, number: u8) -> Option<&Volume> {
        self.by_number.get(&number)
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = (u8, &Volume)> {
        self.by_number.iter().map(|(number, volume)| (*number, volume))
    }

    /// The number of a UUID.
    pub fn number_of(&self, uuid: &Uuid) -> Option<u8> {
        self.iter().find(|(_, volume)| volume.uuid == *uuid).map(|(number, _)| number)
    }

    /// The number of a directory.
    pub fn number_of_dir(&self, name: &str) -> Option<u8> {
        self.iter().find(|(_, volume)| volume.name == name).map(|(number, _)| number)
    }

    /// Whether files on it can be read.
    pub fn is_online(&self, number: u8) -> bool {
        match self.by_number.get(&number) {
            Some(volume) => volume.health != Health::Offline && volume.usage != VolumeUse::Gone,
            None => self.is_implicit() && number == 0,
        }
    }

    /// Volumes of these that can be read.
    pub fn readable(&self, holders: &[u8]) -> Vec<u8> {
        holders.iter().copied().filter(|number| self.is_online(*number)).collect()
    }

    /// Whether files on it can be removed.
    pub(crate) fn takes_changes(&self, number: u8) -> bool {
        self.is_online(number) && self.get(number).is_none_or(|volume| !volume.no_writes)
    }

    /// Whether new segments may go there.
    pub(crate) fn takes_writes(&self, number: u8) -> bool {
        match self.by_number.get(&number) {
            Some(volume) => {
                volume.usage == VolumeUse::Active && volume.health == Health::Healthy && volume.named && !volume.wal_out
            }
            None => self.is_implicit() && number == 0,
        }
    }

    /// What the table says.
    pub(crate) fn known(&mut self, number: u8, entry: &VolumeEntry) {
        let volume = self.by_number.entry(number).or_insert_with(|| Volume {
            uuid: entry.uuid,
            usage: entry.usage,
            health: Health::Offline,
            name: String::new(),
            reason: Some("it was not found".to_owned()),
            errors: 0,
            bad_copies: 0,
            free_bytes: None,
            full: false,
            named: true,
            no_writes: false,
            wal_out: false,
            failures_in_row: 0,
        });
        // What was written before it was let go of says nothing any more.
        let usage = if volume.usage == VolumeUse::Gone { VolumeUse::Gone } else { entry.usage };
        (volume.uuid, volume.usage, volume.named) = (entry.uuid, usage, true);
    }

    /// A directory joins; the table does not name it yet.
    pub(crate) fn joins(&mut self, number: u8, entry: &VolumeEntry) {
        self.known(number, entry);
        self.with(number, |volume| volume.named = false);
    }

    /// It is let go of for good; the table says so soon.
    pub(crate) fn forgotten(&mut self, number: u8) {
        self.with(number, |volume| volume.usage = VolumeUse::Gone);
    }

    /// Its directory is there.
    pub(crate) fn found(&mut self, number: u8, name: &str) {
        // Another disk may have been there before.
        for volume in self.by_number.values_mut().filter(|volume| volume.name == name) {
            volume.name.clear();
            (volume.health, volume.reason) = (Health::Offline, Some("another disk is in its place".to_owned()));
        }
        self.with(number, |volume| {
            (volume.health, volume.reason, volume.failures_in_row) = (Health::Healthy, None, 0);
            (volume.full, volume.wal_out, volume.no_writes) = (false, false, false);
            name.clone_into(&mut volume.name);
        });
    }

    /// It is not there, or is let go of.
    pub(crate) fn lost(&mut self, number: u8, reason: &str) {
        self.with(number, |volume| {
            if volume.health != Health::Offline {
                tracing::error!(
                    volume = number,
                    dir = volume.name,
                    reason,
                    "this volume is out: it takes no more until it is attached again"
                );
            }
            (volume.health, volume.reason) = (Health::Offline, Some(reason.to_owned()));
        });
    }

    pub(crate) fn read_worked(&mut self, number: u8) {
        self.with(number, |volume| {
            volume.failures_in_row = 0;
            if volume.health == Health::Suspect && !volume.no_writes {
                volume.health = Health::Healthy;
            }
        });
    }

    /// A file that is missing or too short is the copy's fault, not the disk's.
    pub(crate) fn read_failed(&mut self, number: u8, error: &DiskError) {
        let mut dead = false;
        self.with(number, |volume| {
            volume.errors += 1;
            if matches!(error, DiskError::Missing { .. } | DiskError::Short { .. }) || volume.health == Health::Offline {
                return;
            }
            volume.failures_in_row += 1;
            volume.health = Health::Suspect;
            dead = volume.failures_in_row >= READ_FAILURES_MAX;
        });
        if dead && !self.is_last(number) {
            self.lost(number, &error.to_string());
        }
    }

    /// Without the last volume nothing would go on, and its disk may come to.
    fn is_last(&self, number: u8) -> bool {
        let usable = |other: u8, volume: &Volume| other != number && self.is_online(other) && !volume.no_writes;
        !self.iter().any(|(other, volume)| usable(other, volume))
    }

    /// After a failed write nothing more is written to it; a full disk is as good as before.
    pub(crate) fn write_failed(&mut self, number: u8, error: &DiskError) {
        let last = self.is_last(number);
        self.with(number, |volume| {
            if error.is_full() {
                volume.full = true;
                return;
            }
            volume.errors += 1;
            if volume.health != Health::Offline {
                volume.health = Health::Suspect;
            }
            if !last && !volume.no_writes {
                tracing::error!(volume = number, dir = volume.name, %error, "a write to this volume failed: it takes no more until it is attached again");
                (volume.no_writes, volume.reason) = (true, Some(error.to_string()));
            }
        });
    }

    /// A copy of a segment is damaged or missing.
    pub(crate) fn copy_bad(&mut self, number: u8, segment: u32) {
        self.with(number, |volume| volume.bad_copies += 1);
        self.doubt(segment);
    }

    /// All copies of this segment are to be looked at.
    pub(crate) fn doubt(&mut self, segment: u32) {
        if self.doubtful.len() < DOUBTFUL_MAX {
            self.doubtful.insert(segment);
        }
    }

    pub(crate) fn doubtful(&self) -> impl Iterator<Item = u32> {
        self.doubtful.iter().copied()
    }

    pub(crate) fn is_settled(&mut self, segment: u32) {
        self.doubtful.remove(&segment);
    }

    /// Whether a volume is full may have changed.
    pub(crate) fn has_room(&mut self, number: u8) {
        self.with(number, |volume| volume.full = false);
    }

    pub(crate) fn has_free(&mut self, number: u8, free_bytes: Option<u64>) {
        self.with(number, |volume| volume.free_bytes = free_bytes);
    }

    /// The copies of the WAL that are out, by their directories.
    pub(crate) fn wal_out(&mut self, out: &[String]) {
        for volume in self.by_number.values_mut() {
            volume.wal_out = out.contains(&volume.name);
        }
    }

    fn with(&mut self, number: u8, change: impl FnOnce(&mut Volume)) {
        if let Some(volume) = self.by_number.get_mut(&number) {
            change(volume);
        }
    }
}
