//! A disk that misbehaves on purpose, from a seed.
//!
//! The fault model, in prose:
//!
//! - **Power cut.** A write that has not completed leaves each of its 512-byte sectors as it was, new, or full of garbage; or it is
//!   shorn: new up to some byte, old behind it. A completed write stays, unless the disk lies.
//! - **Lying flush.** A write completes although it is only in the disk's cache; a power cut then treats it like one that had not
//!   completed. This breaks the contract of every disk, so it serves as a control: the checker must notice.
//! - **Zero-fill.** Cut off by a power cut, the file is missing, too short, or whole with sectors that were never written: zeros or
//!   garbage.
//! - **EIO and short writes.** A write fails and leaves its sectors as a power cut would. A zero-fill fails with EIO, once or, as
//!   on a file system that has shut itself down, from then on.
//! - **ENOSPC.** A zero-fill fails while the disk is full; space may come back.
//! - **Stalls, delays, reordering.** Operations in flight complete in any order, some much later.
//! - **Damage** (only in runs that ask for it): at a power cut, and on a disk of a pair at any moment, bits rot or a sector becomes unreadable; while running, a write goes
//!   to another block than the one meant and completes all the same. Cold files suffer with the others only where `cold_rots`.
//! - **Death and hanging** (of one disk of a pair): a dead disk answers everything with an error and never comes back; a hanging one
//!   does not answer until it comes to.
//! - **Power cut during recovery.** A synchronous write may be the last thing that happens.
//! - **Names.** A file with two names is one file. Taking a name away, or a rename, that was under way at a power cut has happened or not.
//! - **Cold files.** What has not been sealed is, after a power cut, missing, cut off, or there with torn sectors. A full disk refuses
//!   the write; the power may go between any two operations of a job, and in the middle of a write.
//!
//! Reads return what the platter holds. Directory entries are durable once a zero-fill or a synchronous write has completed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use rustix::io::Errno;

use super::{
    AlignedBuf, BLOCK_BYTES, ColdStore, Disk, DiskCompletion, DiskError, DiskOp, DiskRead, DiskVerb, FileId, Reader, Waker,
};

const SECTOR: usize = 512;

/// Chances of what can go wrong, each 0 to 1.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// A write completes from the cache.
    pub lie: f64,
    /// A write fails.
    pub write_error: f64,
    /// A zero-fill fails with EIO.
    pub zero_error: f64,
    /// An operation takes a hundred times as long.
    pub stall: f64,
    /// A write goes elsewhere.
    pub misdirect: f64,
    /// A power cut comes with rot.
    pub rot: f64,
    /// A power cut comes with an unreadable sector.
    pub unreadable: f64,
    /// A torn sector holds garbage, not old or new bytes.
    pub garbage: f64,
}

/// Names, and what they lead to: two names may lead to the same.
#[derive(Debug, Default)]
struct Files {
    names: BTreeMap<FileId, u64>,
    content: BTreeMap<u64, Vec<u8>>,
    next: u64,
}

impl Files {
    fn get(&self, file: &FileId) -> Option<&Vec<u8>> {
        self.content.get(self.names.get(file)?)
    }

    fn get_mut(&mut self, file: &FileId) -> Option<&mut Vec<u8>> {
        self.content.get_mut(self.names.get(file)?)
    }

    fn contains_key(&self, file: &FileId) -> bool {
        self.names.contains_key(file)
    }

    fn keys(&self) -> impl Iterator<Item = &FileId> {
        self.names.keys()
    }

    fn iter(&self) -> impl Iterator<Item = (&FileId, &Vec<u8>)> {
        self.names.iter().map(|(name, inode)| (name, &self.content[inode]))
    }

    /// What every name of the file leads to is from now on this; a new file if there is none.
    fn fill(&mut self, file: FileId, data: Vec<u8>) {
        *self.or_empty(file) = data;
    }

    fn or_empty(&mut self, file: FileId) -> &mut Vec<u8> {
        let inode = *self.names.entry(file).or_insert_with(|| {
            self.next += 1;
            self.next
        });
        self.content.entry(inode).or_default()
    }

    fn remove(&mut self, file: &FileId) {
        if let Some(inode) = self.names.remove(file)
            && !self.names.values().any(|other| *other == inode)
        {
            self.content.remove(&inode);
        }
    }

    fn link(&mut self, from: FileId, to: FileId) -> bool {
        self.remove(&to);
        let Some(inode) = self.names.get(&from).copied() else { return false };
        self.names.insert(to, inode);
        true
    }

    fn links(&self, file: FileId) -> u64 {
        let Some(inode) = self.names.get(&file) else { return 0 };
        self.names.values().filter(|other| *other == inode).count() as u64
    }
}

/// What is on the platters.
#[derive(Debug, Default)]
struct Store {
    files: Files,
    /// By what the file's name leads to.
    unreadable: BTreeSet<(u64, u64)>,
    /// Cached writes of a lying disk: what was there before.
    cached: Vec<(FileId, u64, Vec<u8>)>,
    dead: bool,
    /// Cold files that are not durable yet.
    unsealed: BTreeSet<FileId>,
}

impl Store {
    fn cold_bytes(&self) -> usize {
        let cold = |file: &FileId| matches!(file, FileId::Cold(_) | FileId::Promoted(_) | FileId::Remade(_));
        self.files.iter().filter(|(file, _)| cold(file)).map(|(_, content)| content.len()).sum()
    }
}

/// Work not completed yet.
#[derive(Debug)]
struct Pending {
    id: u64,
    due: Duration,
    op: DiskOp,
    fails: bool,
}

/// The simulated disk. It outlives crashes: `power_cut` settles what was under way.
#[derive(Debug)]
pub struct SimDisk {
    store: Arc<Mutex<Store>>,
    rng: Rng,
    /// What may go wrong.
    pub faults: Faults,
    /// Segment files there is room for.
    pub files_max: usize,
    /// Bytes of cold files there is room for.
    pub cold_bytes_max: usize,
    /// Whether damage may hit cold files, too.
    pub cold_rots: bool,
    /// Synchronous writes until the power goes; `None`: it stays.
    pub writes_until_cut: Option<u32>,
    /// Bits rotted, sectors unreadable, writes misdirected so far.
    pub damages: u64,
    /// Answers nothing for now.
    pub hangs: bool,
    now: Duration,
    pending: Vec<Pending>,
}

impl SimDisk {
    /// An empty disk.
    pub fn new(seed: u64, faults: Faults) -> SimDisk {
        SimDisk {
            store: Arc::default(),
            rng: Rng::with_seed(seed),
            faults,
            files_max: usize::MAX,
            cold_bytes_max: usize::MAX,
            cold_rots: false,
            writes_until_cut: None,
            damages: 0,
            hangs: false,
            now: Duration::ZERO,
            pending: Vec::new(),
        }
    }

    /// A reader of the same platters.
    pub fn reader(&self) -> Arc<dyn Reader> {
        Arc::new(SimReader { store: Arc::clone(&self.store) })
    }

    /// The cold tier on the same platters; with `ops_until_cut` the power goes at that operation.
    pub fn cold(&mut self, ops_until_cut: Option<u32>) -> SimCold {
        let rng = Rng::with_seed(self.rng.u64(..));
        SimCold { store: Arc::clone(&self.store), rng, write_error: 0.0, ops_until_cut, bytes_max: self.cold_bytes_max }
    }

    /// Lets time pass; what is due then can be polled.
    pub fn advance(&mut self, now: Duration) {
        self.now = now;
    }

    /// From now on everything fails.
    pub fn die(&mut self) {
        self.store().dead = true;
    }

    /// Whether it has died.
    pub fn is_dead(&self) -> bool {
        self.store().dead
    }

    /// Whether nothing is under way.
    pub fn is_idle(&self) -> bool {
        self.pending.is_empty()
    }

    fn check_alive(&self, verb: DiskVerb, file: FileId) -> Result<(), DiskError> {
        if self.is_dead() { Err(DiskError::Io { verb, file, errno: Errno::IO }) } else { Ok(()) }
    }

    /// When the next operation is due.
    pub fn next_due(&self) -> Option<Duration> {
        self.pending.iter().map(|pending| pending.due).min()
    }

    /// The power goes: everything under way is settled by chance.
    pub fn power_cut(&mut self) {
        self.hangs = false;
        self.writes_until_cut = None;
        for pending in std::mem::take(&mut self.pending) {
            self.settle(pending.op);
        }
        let cached = std::mem::take(&mut self.store().cached);
        for (file, at, before) in cached.into_iter().rev() {
            // The cache may have got some sectors out in time.
            for (n, old) in before.chunks(SECTOR).enumerate() {
                if self.rng.bool() {
                    self.put(file, at + (n * SECTOR) as u64, old);
                }
            }
        }
        let unsealed = std::mem::take(&mut self.store().unsealed);
        for file in unsealed {
            let choice = self.rng.u32(0..3);
            let length = self.store().files.get(&file).map_or(0, Vec::len);
            let kept = self.rng.usize(0..=length) / SECTOR * SECTOR;
            let mut store = self.store();
            match choice {
                0 => store.files.remove(&file),
                1 => store.files.get_mut(&file).into_iter().for_each(|data| data.truncate(kept)),
                _ => store.files.get_mut(&file).into_iter().for_each(|data| {
                    data.chunks_mut(SECTOR).step_by(3).for_each(|sector| sector.fill(0xa5));
                }),
            }
        }
        if self.chance(self.faults.rot) {
            self.rot();
        }
        if self.chance(self.faults.unreadable) {
            self.lose_sector();
        }
    }

    /// A hash of everything on the platters.
    pub fn fingerprint(&self) -> u32 {
        let store = self.store();
        store.files.iter().fold(0, |crc, (file, data)| crc32c::crc32c_append(crc ^ file.to_string().len() as u32, data))
    }

    /// Everything on the platters, file by file.
    #[cfg(test)]
    pub(crate) fn image(&self) -> Vec<(FileId, Vec<u8>)> {
        self.store().files.iter().map(|(file, data)| (*file, data.clone())).collect()
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn chance(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.rng.f64() < probability
    }

    /// What an operation that did not complete leaves behind.
    fn settle(&mut self, op: DiskOp) {
        match op {
            DiskOp::Write { file, at, data, bytes } => self.tear(file, at, &data[..bytes]),
            DiskOp::Discard { file } if self.rng.bool() => self.store().files.remove(&file),
            DiskOp::Discard { .. } => {}
            DiskOp::Zero { file, bytes, reuse: Some(from) } if self.may_reuse(from, file, bytes) => {
                if self.rng.bool() {
                    self.rename(from, file);
                }
            }
            DiskOp::Zero { file, bytes, .. } => {
                self.unlink_shared(file);
                let length = [0, self.rng.usize(0..=bytes as usize) / SECTOR * SECTOR, bytes as usize][self.rng.usize(0..3)];
                if length > 0 {
                    let garbage = self.rng.bool();
                    let data =
                        (0..length / SECTOR).flat_map(|n| [if garbage && n % 3 == 0 { 0xa5 } else { 0 }; SECTOR]).collect();
                    self.store().files.fill(file, data);
                }
            }
        }
    }

    fn may_reuse(&self, from: FileId, to: FileId, bytes: u64) -> bool {
        let store = self.store();
        let fits = store.files.get(&from).is_some_and(|data| data.len() as u64 == bytes);
        fits && store.files.links(from) == 1 && !store.files.contains_key(&to)
    }

    fn rename(&self, from: FileId, to: FileId) {
        let mut store = self.store();
        store.files.get_mut(&from).into_iter().for_each(|data| data[..BLOCK_BYTES].fill(0));
        store.files.link(from, to);
        store.files.remove(&from);
    }

    fn unlink_shared(&self, file: FileId) {
        let mut store = self.store();
        if store.files.links(file) > 1 {
            store.files.remove(&file);
        }
    }

    fn tear(&mut self, file: FileId, at: u64, data: &[u8]) {
        match self.rng.u32(0..5) {
            0 => {}
            1 => self.put(file, at, data),
            2 => {
                let shorn = self.rng.usize(0..=data.len());
                self.put(file, at, &data[..shorn]);
            }
            _ => {
                for (n, sector) in data.chunks(SECTOR).enumerate() {
                    let to = at + (n * SECTOR) as u64;
                    if self.chance(self.faults.garbage) {
                        let garbage: Vec<u8> = (0..sector.len()).map(|_| self.rng.u8(..)).collect();
                        self.put(file, to, &garbage);
                    } else if self.rng.bool() {
                        self.put(file, to, sector);
                    }
                }
            }
        }
    }

    fn put(&self, file: FileId, at: u64, data: &[u8]) {
        let mut store = self.store();
        let content = store.files.or_empty(file);
        let end = at as usize + data.len();
        if content.len() < end {
            content.resize(end, 0);
        }
        content[at as usize..end].copy_from_slice(data);
        let inode = store.files.names[&file];
        for sector in at / SECTOR as u64..(end as u64).div_ceil(SECTOR as u64) {
            store.unreadable.remove(&(inode, sector));
        }
    }

    /// A file with something in it, and a place there.
    fn somewhere(&mut self) -> Option<(FileId, usize)> {
        let may_rot = |file: &FileId, store: &Store| match file {
            FileId::Segment(_) => true,
            FileId::Cold(_) | FileId::Promoted(_) => self.cold_rots && !store.unsealed.contains(file),
            _ => false,
        };
        let used: Vec<(FileId, usize)> = {
            let store = self.store();
            let used = store.files.iter().map(|(file, data)| (*file, data.iter().rposition(|byte| *byte != 0).unwrap_or(0)));
            used.filter(|(file, end)| may_rot(file, &store) && *end > 0).collect()
        };
        let (file, end) = *used.get(self.rng.usize(0..used.len().max(1)))?;
        Some((file, self.rng.usize(0..=end)))
    }

    /// Bits rot while the log is at work.
    pub fn rot_now(&mut self) {
        for _ in 0..self.rng.u32(1..24) {
            self.rot();
        }
        if self.rng.u32(0..4) == 0 {
            self.lose_sector();
        }
    }

    fn rot(&mut self) {
        if let Some((file, at)) = self.somewhere() {
            let bit = 1 << self.rng.u32(0..8);
            if let Some(data) = self.store().files.get_mut(&file) {
                data[at] ^= bit;
            }
            self.damages += 1;
        }
    }

    fn lose_sector(&mut self) {
        if let Some((file, at)) = self.somewhere() {
            let mut store = self.store();
            let inode = store.files.names[&file];
            store.unreadable.insert((inode, (at / SECTOR) as u64));
            drop(store);
            self.damages += 1;
        }
    }

    fn complete(&mut self, pending: Pending) -> DiskCompletion {
        let Pending { id, op, fails, .. } = pending;
        let fails = fails || self.is_dead();
        let result = match op {
            DiskOp::Discard { file } if fails => Err(DiskError::Io { verb: DiskVerb::Remove, file, errno: Errno::IO }),
            DiskOp::Discard { file } => {
                self.store().files.remove(&file);
                Ok(())
            }
            DiskOp::Zero { file, .. } if fails => Err(DiskError::Io { verb: DiskVerb::ZeroFill, file, errno: Errno::IO }),
            DiskOp::Write { file, at, data, bytes } if fails => {
                self.tear(file, at, &data[..bytes]);
                let short = DiskError::Short { verb: DiskVerb::Write, file, at, wanted: bytes as u64, done: 0 };
                Err(if self.rng.bool() { short } else { DiskError::Io { verb: DiskVerb::Write, file, errno: Errno::IO } })
            }
            DiskOp::Write { file, at, data, bytes } => {
                self.write(file, at, &data[..bytes]);
                Ok(())
            }
            DiskOp::Zero { file, bytes, reuse: Some(from) } if self.may_reuse(from, file, bytes) => {
                self.rename(from, file);
                Ok(())
            }
            DiskOp::Zero { file, bytes, .. } => {
                self.unlink_shared(file);
                let segments = self.store().files.keys().filter(|file| matches!(file, FileId::Segment(_))).count();
                if segments >= self.files_max && !self.store().files.contains_key(&file) {
                    Err(DiskError::Full { verb: DiskVerb::ZeroFill, file })
                } else {
                    self.store().files.fill(file, vec![0; bytes as usize]);
                    Ok(())
                }
            }
        };
        DiskCompletion { id, result }
    }

    fn write(&mut self, file: FileId, at: u64, data: &[u8]) {
        if matches!(file, FileId::Segment(_)) && !self.store().files.contains_key(&file) {
            // Its name was taken away meanwhile.
            return;
        }
        let (mut file, mut at) = (file, at);
        if self.chance(self.faults.misdirect)
            && let Some((other, place)) = self.somewhere()
        {
            let room = self.store().files.get(&other).map_or(0, Vec::len);
            let place = place / BLOCK_BYTES * BLOCK_BYTES;
            if place + data.len() <= room {
                (file, at) = (other, place as u64);
                self.damages += 1;
            }
        }
        if self.chance(self.faults.lie) {
            let before =
                self.store().files.get(&file).and_then(|old| old.get(at as usize..at as usize + data.len())).map(<[u8]>::to_vec);
            if let Some(before) = before {
                self.store().cached.push((file, at, before));
            }
        }
        self.put(file, at, data);
    }
}

impl Disk for SimDisk {
    fn submit(&mut self, id: u64, op: DiskOp) {
        let mut takes = Duration::from_micros(self.rng.u64(30..400));
        if matches!(op, DiskOp::Zero { .. }) {
            takes *= 3;
        }
        if self.chance(self.faults.stall) {
            takes *= 100;
        }
        let fails = self.chance(match op {
            DiskOp::Write { .. } => self.faults.write_error,
            DiskOp::Zero { .. } | DiskOp::Discard { .. } => self.faults.zero_error,
        });
        self.pending.push(Pending { id, due: self.now + takes, op, fails });
    }

    fn poll(&mut self, _wait: Option<Duration>, out: &mut Vec<DiskCompletion>) {
        if self.hangs {
            return;
        }
        let now = self.now;
        let (mut due, later): (Vec<Pending>, _) =
            std::mem::take(&mut self.pending).into_iter().partition(|pending| pending.due <= now);
        self.pending = later;
        self.rng.shuffle(&mut due);
        for pending in due {
            let completion = self.complete(pending);
            out.push(completion);
        }
    }

    fn waker(&self) -> Waker {
        Waker::noop()
    }

    fn list_segments(&mut self) -> Result<Vec<u32>, DiskError> {
        self.check_alive(DiskVerb::List, FileId::Superblock)?;
        let number = |file: &FileId| if let FileId::Segment(number) = file { Some(*number) } else { None };
        Ok(self.store().files.keys().filter_map(number).collect())
    }

    fn size(&mut self, file: FileId) -> Result<Option<u64>, DiskError> {
        self.check_alive(DiskVerb::Stat, file)?;
        Ok(self.store().files.get(&file).map(|data| data.len() as u64))
    }

    fn read(&mut self, file: FileId, at: u64, buf: &mut AlignedBuf, bytes: usize) -> Result<(), DiskError> {
        let data = read_store(&self.store(), file, at, bytes)?;
        buf[..bytes].copy_from_slice(&data);
        Ok(())
    }

    /// Few of its small segments: scans meet the borders between their reads.
    fn scan_bytes(&self) -> usize {
        4 * BLOCK_BYTES
    }

    fn write_now(&mut self, file: FileId, at: u64, data: &AlignedBuf, bytes: usize) -> Result<(), DiskError> {
        self.check_alive(DiskVerb::Write, file)?;
        match &mut self.writes_until_cut {
            Some(0) => {
                self.tear(file, at, &data[..bytes]);
                return Err(DiskError::Closed { verb: DiskVerb::Write, file });
            }
            Some(left) => *left -= 1,
            None => {}
        }
        self.put(file, at, &data[..bytes]);
        Ok(())
    }

    fn links(&mut self, file: FileId) -> Result<u64, DiskError> {
        self.check_alive(DiskVerb::Stat, file)?;
        Ok(self.store().files.links(file))
    }

    fn remove(&mut self, file: FileId) -> Result<(), DiskError> {
        match &mut self.writes_until_cut {
            Some(0) => {
                if self.rng.bool() {
                    self.store().files.remove(&file);
                }
                return Err(DiskError::Closed { verb: DiskVerb::Remove, file });
            }
            Some(left) => *left -= 1,
            None => {}
        }
        self.store().files.remove(&file);
        Ok(())
    }
}

fn read_store(store: &Store, file: FileId, at: u64, bytes: usize) -> Result<Vec<u8>, DiskError> {
    if store.dead {
        return Err(DiskError::Io { verb: DiskVerb::Read, file, errno: Errno::IO });
    }
    let data = store.files.get(&file).ok_or(DiskError::Missing { verb: DiskVerb::Read, file })?;
    let (from, end) = (at as usize, at as usize + bytes);
    if end > data.len() {
        let done = data.len().saturating_sub(from) as u64;
        return Err(DiskError::Short { verb: DiskVerb::Read, file, at, wanted: bytes as u64, done });
    }
    let sectors = at / SECTOR as u64..(end as u64).div_ceil(SECTOR as u64);
    let inode = store.files.names[&file];
    if store.unreadable.range((inode, sectors.start)..(inode, sectors.end)).next().is_some() {
        return Err(DiskError::Io { verb: DiskVerb::Read, file, errno: Errno::IO });
    }
    Ok(data[from..end].to_vec())
}

/// The cold tier of a simulated disk.
#[derive(Debug)]
pub struct SimCold {
    store: Arc<Mutex<Store>>,
    rng: Rng,
    /// Chance that a write, or making it durable, fails.
    pub write_error: f64,
    ops_until_cut: Option<u32>,
    bytes_max: usize,
}

impl SimCold {
    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an operation; an error when the power is gone, or the disk is dead.
    fn power(&mut self, verb: DiskVerb, file: FileId) -> Result<(), DiskError> {
        let fails = self.write_error > 0.0 && self.rng.f64() < self.write_error;
        if self.store().dead || fails {
            return Err(DiskError::Io { verb, file, errno: Errno::IO });
        }
        match &mut self.ops_until_cut {
            Some(0) => Err(DiskError::Closed { verb, file }),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl ColdStore for SimCold {
    fn read(&mut self, file: FileId, at: u64, bytes: usize) -> Result<Bytes, DiskError> {
        read_store(&self.store(), file, at, bytes).map(Bytes::from)
    }

    fn free_bytes(&mut self) -> Option<u64> {
        Some(self.bytes_max.saturating_sub(self.store().cold_bytes()) as u64)
    }

    fn create(&mut self, file: FileId) -> Result<(), DiskError> {
        self.power(DiskVerb::Create, file)?;
        let mut store = self.store();
        store.files.remove(&file);
        store.files.fill(file, Vec::new());
        store.unsealed.insert(file);
        Ok(())
    }

    fn write(&mut self, file: FileId, at: u64, data: AlignedBuf) -> Result<(), DiskError> {
        let powered = self.power(DiskVerb::Write, file);
        let cut = self.rng.usize(0..=data.len());
        let mut store = self.store();
        if store.cold_bytes() + data.len() > self.bytes_max {
            return Err(DiskError::Full { verb: DiskVerb::Write, file });
        }
        assert!(store.unsealed.contains(&file), "cold files are written before they are sealed");
        let content = store.files.get_mut(&file).expect("made before");
        assert_eq!(content.len() as u64, at, "cold files are written in order");
        let wanted = if powered.is_ok() { data.len() } else { cut };
        content.extend_from_slice(&data[..wanted]);
        powered
    }

    fn seal(&mut self, file: FileId) -> Result<(), DiskError> {
        self.power(DiskVerb::Sync, file)?;
        assert!(self.store().unsealed.remove(&file), "sealed once");
        Ok(())
    }

    fn overwrite(&mut self, file: FileId, at: u64, data: AlignedBuf) -> Result<(), DiskError> {
        let powered = self.power(DiskVerb::Write, file);
        let cut = self.rng.usize(0..=data.len());
        let mut store = self.store();
        if store.dead {
            return powered;
        }
        assert!(matches!(file, FileId::Segment(_)), "cold files are never changed");
        let wanted = if powered.is_ok() { data.len() } else { cut };
        let sectors = at / SECTOR as u64..(at + wanted as u64) / SECTOR as u64;
        let Some(inode) = store.files.names.get(&file).copied() else {
            return Err(DiskError::Missing { verb: DiskVerb::Write, file });
        };
        store.unreadable.retain(|(other, sector)| *other != inode || !sectors.contains(sector));
        let content = store.files.get_mut(&file).expect("it has a name");
        let at = at as usize;
        content[at..at + wanted].copy_from_slice(&data[..wanted]);
        powered
    }

    fn rename(&mut self, from: FileId, to: FileId) -> Result<(), DiskError> {
        self.power(DiskVerb::Rename, from)?;
        let mut store = self.store();
        if !store.files.link(from, to) {
            return Err(DiskError::Missing { verb: DiskVerb::Rename, file: from });
        }
        store.files.remove(&from);
        Ok(())
    }

    fn link(&mut self, from: FileId, to: FileId) -> Result<(), DiskError> {
        let powered = self.power(DiskVerb::Link, from);
        // The power may go when it is done, and nobody has been told.
        if powered.is_err() && self.rng.bool() {
            return powered;
        }
        if !self.store().files.link(from, to) {
            return Err(DiskError::Missing { verb: DiskVerb::Link, file: from });
        }
        powered
    }

    fn remove(&mut self, file: FileId) -> Result<(), DiskError> {
        self.power(DiskVerb::Remove, file)?;
        let mut store = self.store();
        store.files.remove(&file);
        store.unsealed.remove(&file);
        Ok(())
    }

    fn list(&mut self) -> Result<Vec<FileId>, DiskError> {
        if self.store().dead {
            return Err(DiskError::Io { verb: DiskVerb::List, file: FileId::Cold(0), errno: Errno::IO });
        }
        let is_cold = |file: &&FileId| matches!(file, FileId::Cold(_) | FileId::Promoted(_) | FileId::Remade(_));
        Ok(self.store().files.keys().filter(is_cold).copied().collect())
    }
}

/// Answers at once, on the caller's thread.
struct SimReader {
    store: Arc<Mutex<Store>>,
}

impl Reader for SimReader {
    fn read(&self, request: DiskRead) -> Result<(), DiskRead> {
        let DiskRead { file, at, bytes, reply } = request;
        let data = read_store(&self.store.lock().unwrap_or_else(PoisonError::into_inner), file, at, bytes);
        reply(data.map(Bytes::from));
        Ok(())
    }

    fn forget(&self, _file: FileId) {}
}
