//! A disk that can lose its power, for a real file system: a file served by FUSE, a loop device on it, ext4 or XFS on that.
//!
//! The simulator of the log (`storage/src/disk/sim.rs`) tears the log's own writes. Here the kernel is in between: what the
//! log believes of `O_DIRECT`, `RWF_DSYNC`, block allocation, journals and directory entries is put to the test as well.
//!
//! The fault model, in prose:
//!
//! - **Cache.** A write goes into the disk's volatile cache and is answered. Reads see it. Only a flush makes it stable (the loop
//!   device turns flush and FUA into `fsync` of this file): all that was answered before the flush came. The cache has a bound;
//!   above it the disk writes some of it out, as it also may whenever a cached sector is written again.
//! - **Power cut.** Of what is not stable, each sector by itself is old or new; or what came up to some moment is new, the write
//!   at that moment is shorn part way, and the rest is old; or everything is old; or everything is new. From then on everything is
//!   refused with EIO until the disk is plugged in again. Handles from before stay refused for ever, so that no late write of
//!   a kernel that should have died reaches the disk. A sector itself is never torn: file systems count on that, and the
//!   simulator tears below it.
//! - **Cut at a write.** The power goes at the n-th write from now, in the middle of a journal's replay or of a recovery.
//! - **Lying flush.** It answers and does nothing. It breaks the contract of every disk: a control, the checker must notice.
//! - **EIO on a write.** That write is refused and changes nothing. **EIO on a flush.** Nothing becomes stable by it.
//! - **Stall.** Nothing is answered for a while; then all of it.
//! - **Death.** Everything is refused, as after a pulled cable. What was in the cache meets a power cut later.
//! - **Delays.** Each read, write and flush takes its time, one after the other, like an arm over a platter.
//!
//! [`Disk`] holds nothing of FUSE and runs without root. The file server is [`fuse`], file systems on it are [`mount`]. Each is
//! a value: a test may have two disks.

pub mod cache;
pub mod faults;
pub mod fuse;
pub mod mount;

use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use cache::{Cache, Cut, Torn};
use faults::{Delays, Faults};

/// Size of a sector, in bytes.
pub const SECTOR: usize = 512;
/// Sectors the cache may hold: 64 MiB, as large disks have.
const CACHED_MAX: usize = (64 << 20) / SECTOR;

/// Which plugging-in a handle belongs to; handles of earlier ones are refused.
pub type Life = u64;

/// A programmable disk, shared by its file server and the test that torments it.
#[derive(Debug)]
pub struct Disk {
    state: Mutex<State>,
    /// Power, stall or life changed: whoever waits looks again.
    changed: Condvar,
    bytes: u64,
}

/// What all power cuts of a disk did: a cut that finds nothing in the cache shows nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Power cuts that found sectors in the cache.
    pub hits: u32,
    /// Power cuts that left some of them old and some new.
    pub torn: u32,
    /// Sectors that were lost.
    pub sectors_old: u64,
    /// Sectors that got out in time.
    pub sectors_new: u64,
}

impl Tally {
    fn add(&mut self, torn: Torn) {
        self.hits += u32::from(torn.old + torn.new > 0);
        self.torn += u32::from(torn.old > 0 && torn.new > 0);
        self.sectors_old += torn.old;
        self.sectors_new += torn.new;
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Tally { hits, torn, sectors_old, sectors_new } = self;
        write!(f, "{hits} cuts found the cache in use and {torn} tore it; {sectors_old} sectors were lost, {sectors_new} saved")
    }
}

#[derive(Debug)]
struct State {
    cache: Cache,
    tally: Tally,
    on: bool,
    life: Life,
    faults: Faults,
    stalled_until: Option<Instant>,
}

impl Disk {
    /// An empty disk, plugged in.
    pub fn new(bytes: u64, seed: u64) -> Arc<Disk> {
        let state = State {
            cache: Cache::new(usize::try_from(bytes).expect("a disk fits the memory"), CACHED_MAX, seed),
            tally: Tally::default(),
            on: true,
            life: 0,
            faults: Faults::default(),
            stalled_until: None,
        };
        Arc::new(Disk { state: Mutex::new(state), changed: Condvar::new(), bytes })
    }

    /// Its size, in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The present life, for handles opened now.
    pub fn life(&self) -> Life {
        self.state().life
    }

    /// Is it plugged in?
    pub fn is_on(&self) -> bool {
        self.state().on
    }

    /// What its power cuts did so far.
    pub fn tally(&self) -> Tally {
        self.state().tally
    }

    /// Changes what will go wrong.
    pub fn set(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.state().faults);
    }

    /// What is to go wrong.
    pub fn faults(&self) -> Faults {
        self.state().faults
    }

    /// The power goes, now.
    pub fn cut(&self, cut: Cut) {
        self.state().cut(cut);
        self.changed.notify_all();
    }

    /// Everything is refused from now on; the cache stays for the power cut to come.
    pub fn die(&self) {
        self.state().on = false;
        self.changed.notify_all();
    }

    /// Nothing is answered for so long.
    pub fn stall(&self, time: Duration) {
        self.state().stalled_until = Some(Instant::now() + time);
    }

    /// Plugged in again after a cut: a new life, without faults.
    pub fn replug(&self) {
        let mut state = self.state();
        assert!(!state.on, "only a disk without power can be plugged in");
        (state.on, state.life) = (true, state.life + 1);
        (state.faults, state.stalled_until) = (Faults::default(), None);
    }

    /// Bytes as the host sees them, those in the cache included.
    pub fn read(&self, life: Life, at: u64, out: &mut [u8]) -> Result<(), Errno> {
        let state = self.admitted(life)?;
        self.inside(at, out.len())?;
        state.cache.read(at, out);
        let time = state.faults.delays.read();
        self.take(state, life, time).map(drop)
    }

    /// A write into the cache.
    pub fn write(&self, life: Life, at: u64, data: &[u8]) -> Result<(), Errno> {
        let mut state = self.admitted(life)?;
        self.inside(at, data.len())?;
        if state.faults.write_fails() {
            return Err(Errno::IO);
        }
        state.cache.write(at, data);
        if let Some(cut) = state.faults.cut_at_write() {
            state.cut(cut);
            self.changed.notify_all();
            return Err(Errno::IO);
        }
        let time = state.faults.delays.write();
        self.take(state, life, time).map(drop)
    }

    /// Makes all that was answered before stable.
    pub fn flush(&self, life: Life) -> Result<(), Errno> {
        let mut state = self.admitted(life)?;
        if state.faults.flush_fails() {
            return Err(Errno::IO);
        }
        let time = state.faults.delays.flush();
        let mut state = self.take(state, life, time)?;
        if !state.faults.lying_flush {
            state.cache.flush();
        }
        Ok(())
    }

    /// Writes an image of what is stable: evidence for a failed run. Zeros become holes.
    pub fn save(&self, path: &Path) -> std::io::Result<()> {
        let state = self.state();
        let mut file = std::fs::File::create(path)?;
        file.set_len(self.bytes)?;
        for (n, block) in state.cache.stable().chunks(4096).enumerate() {
            if block.iter().any(|byte| *byte != 0) {
                std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(n as u64 * 4096))?;
                file.write_all(block)?;
            }
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn inside(&self, at: u64, bytes: usize) -> Result<(), Errno> {
        match at.checked_add(bytes as u64) {
            Some(end) if end <= self.bytes => Ok(()),
            _ => Err(Errno::NOSPC),
        }
    }

    /// Waits out a stall; refuses a dead disk and handles of an earlier life.
    fn admitted(&self, life: Life) -> Result<MutexGuard<'_, State>, Errno> {
        let state = self.state();
        let left = state.stalled_until.map_or(Duration::ZERO, |end| end.saturating_duration_since(Instant::now()));
        self.take(state, life, left)
    }

    /// Lets `time` pass without the lock; a power cut meanwhile ends it at once and refuses.
    fn take<'a>(&'a self, state: MutexGuard<'a, State>, life: Life, time: Duration) -> Result<MutexGuard<'a, State>, Errno> {
        let alive = |state: &mut State| state.on && state.life == life;
        let (mut state, _) =
            self.changed.wait_timeout_while(state, time, |state| alive(state)).unwrap_or_else(PoisonError::into_inner);
        if alive(&mut state) { Ok(state) } else { Err(Errno::IO) }
    }
}

impl State {
    fn cut(&mut self, cut: Cut) {
        self.tally.add(self.cache.cut(cut));
        self.on = false;
    }
}

impl Delays {
    fn read(&self) -> Duration {
        self.read.draw()
    }

    fn write(&self) -> Duration {
        self.write.draw()
    }

    fn flush(&self) -> Duration {
        self.flush.draw()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: usize = 16 * SECTOR;
    const NEW: [u8; BYTES] = [7; BYTES];

    fn written(change: impl FnOnce(&mut Faults)) -> (Arc<Disk>, Result<(), Errno>) {
        let disk = Disk::new(1 << 20, 1);
        disk.set(change);
        let answer = disk.write(0, 0, &NEW);
        (disk, answer)
    }

    fn content(disk: &Disk) -> Vec<u8> {
        let mut out = vec![0; BYTES];
        disk.read(disk.life(), 0, &mut out).unwrap();
        out
    }

    fn after_cut(disk: &Disk) -> Vec<u8> {
        disk.cut(Cut::Sectors(0.0));
        disk.replug();
        content(disk)
    }

    #[test]
    fn flushed_writes_survive_the_cut_and_others_need_not() {
        let (disk, _) = written(|_| {});
        assert_eq!(content(&disk), NEW);
        disk.flush(0).unwrap();
        disk.write(0, 0, &[8; SECTOR]).unwrap();
        assert_eq!(after_cut(&disk), NEW);
    }

    #[test]
    fn a_lying_flush_loses_what_it_answered() {
        let (disk, _) = written(|faults| faults.lying_flush = true);
        disk.flush(0).unwrap();
        assert_eq!(after_cut(&disk), [0; BYTES]);
    }

    #[test]
    fn after_a_cut_everything_is_refused_and_old_handles_for_ever() {
        let (disk, _) = written(|_| {});
        disk.cut(Cut::Sectors(1.0));
        assert!(!disk.is_on());
        assert_eq!(disk.write(0, 0, &NEW), Err(Errno::IO));
        assert_eq!(disk.read(0, 0, &mut [0; 1]), Err(Errno::IO));
        assert_eq!(disk.flush(0), Err(Errno::IO));
        disk.replug();
        assert_eq!(disk.write(0, 0, &[1; SECTOR]), Err(Errno::IO), "a handle from before the cut");
        assert_eq!(content(&disk), NEW);
    }

    #[test]
    fn failed_writes_and_flushes_change_nothing() {
        let (disk, answer) = written(|faults| faults.writes_to_fail = 1);
        assert_eq!((answer, content(&disk)), (Err(Errno::IO), vec![0; BYTES]));
        disk.write(0, 0, &NEW).expect("one only was to fail");
        assert!(!disk.faults().is_pending());
        disk.set(|faults| faults.flushes_to_fail = 1);
        assert!(disk.faults().is_pending());
        assert_eq!(disk.flush(0), Err(Errno::IO));
        assert_eq!(content(&disk), NEW);
        assert_eq!(after_cut(&disk), [0; BYTES]);
    }

    #[test]
    fn the_cut_comes_at_the_write_it_was_set_to() {
        let (disk, answer) = written(|faults| faults.cut_at_write = Some((2, Cut::Sectors(1.0))));
        assert_eq!((answer, disk.is_on()), (Ok(()), true));
        assert_eq!(disk.write(0, 0, &[9; SECTOR]), Err(Errno::IO));
        assert!(!disk.is_on());
        disk.replug();
        assert_eq!(content(&disk)[..SECTOR], [9; SECTOR], "not answered, and there all the same");
    }

    #[test]
    fn a_stall_holds_everything_back_and_a_cut_ends_it() {
        let (disk, _) = written(|_| {});
        let begin = Instant::now();
        disk.stall(Duration::from_millis(30));
        disk.flush(0).unwrap();
        assert!(begin.elapsed() >= Duration::from_millis(30));
        disk.stall(Duration::from_secs(3600));
        let other = Arc::clone(&disk);
        let waiting = std::thread::spawn(move || other.flush(0));
        disk.cut(Cut::Any);
        assert_eq!(waiting.join().unwrap(), Err(Errno::IO));
    }

    #[test]
    fn a_flush_that_the_cut_overtakes_makes_nothing_stable() {
        let (disk, _) = written(|faults| faults.delays.flush = faults::Range::ms(3_600_000, 3_600_000));
        let other = Arc::clone(&disk);
        let waiting = std::thread::spawn(move || other.flush(0));
        disk.cut(Cut::Sectors(0.0));
        assert_eq!(waiting.join().unwrap(), Err(Errno::IO));
        disk.replug();
        assert_eq!(content(&disk), [0; BYTES]);
    }

    #[test]
    fn a_dead_disk_refuses_and_its_cache_meets_the_cut() {
        let (disk, _) = written(|_| {});
        disk.die();
        assert_eq!(disk.flush(0), Err(Errno::IO));
        assert_eq!(after_cut(&disk), [0; BYTES]);
    }

    #[test]
    fn two_disks_have_nothing_in_common() {
        let (one, two) = (written(|_| {}).0, written(|_| {}).0);
        one.cut(Cut::Sectors(0.0));
        assert_eq!(one.tally(), Tally { hits: 1, torn: 0, sectors_old: 16, sectors_new: 0 });
        assert_eq!(two.tally(), Tally::default());
        assert!(two.is_on());
        assert_eq!(content(&two), NEW);
    }

    #[test]
    fn nothing_is_written_or_read_beyond_the_end() {
        let (disk, _) = written(|_| {});
        for at in [(1 << 20) - 1, 1 << 20, u64::MAX] {
            assert_eq!(disk.write(0, at, &[0; 2]), Err(Errno::NOSPC));
            assert_eq!(disk.read(0, at, &mut [0; 2]), Err(Errno::NOSPC));
        }
    }
}
