//! A volume's cold files on a thread of their own: a disk that hangs holds that thread up, not the sorter.
//!
//! The sorter waits for an operation, but not for ever. Then it has failed like any other, the volume is treated accordingly, and until
//! the kernel has answered nothing more is asked of that disk: so what is late never comes between what was asked after it. The disk still gets one
//! request at a time; but writes go on while the sorter packs what comes next, and what a scan will want next is read meanwhile.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::cold::ColdFiles;
use super::files::DataDir;
use super::{AlignedBuf, ColdPace, ColdStore, DiskError, DiskVerb, FileId};

/// How long one operation may take, beside what its bytes need: a disk that sleeps takes ten seconds to come to.
const PATIENCE: Duration = Duration::from_secs(30);
/// A disk that is slower is not waited for.
const SLOWEST_BYTES_PER_S: u64 = 1 << 20;
/// Writes that are not waited for.
const WRITES_BEHIND: usize = 2;
/// What may wait for the thread: those, what is read ahead, what was read ahead in vain, and what is waited for.
const TASKS_MAX: usize = WRITES_BEHIND + 4;
/// How often somebody who waits looks whether the job is to be cut off.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long the thread is waited for when it is not needed any more.
const FAREWELL: Duration = Duration::from_secs(5);

type Task = Box<dyn FnOnce(&mut ColdFiles) + Send>;

/// What became of an operation, as far as whoever asked for it is concerned.
const WAITED_FOR: u8 = 0;
const GIVEN_UP: u8 = 1;
const DONE: u8 = 2;

/// An operation that the thread has, or had.
struct Asked<R> {
    verb: DiskVerb,
    file: FileId,
    patience: Duration,
    fate: Arc<AtomicU8>,
    answer: Receiver<Result<R, DiskError>>,
}

/// What will probably be read next.
struct Ahead {
    at: (FileId, u64, usize),
    asked: Asked<Bytes>,
}

/// See the module.
pub(super) struct Attended {
    tasks: Option<SyncSender<Task>>,
    /// Or why there is none.
    thread: Result<JoinHandle<()>, DiskError>,
    /// Operations nobody waits for any more, of every thread for these files.
    late: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    patience: Duration,
    bytes_per_second: u64,
    writes: VecDeque<Asked<()>>,
    /// Bytes of the file that is being written.
    unsynced: usize,
    ahead: Option<Ahead>,
}

impl Attended {
    /// `late` is shared by all that are started for the same files.
    pub(super) fn start(dir: DataDir, uring: bool, pace: ColdPace, stop: Arc<AtomicBool>, late: Arc<AtomicUsize>) -> Attended {
        let (tasks, queue) = sync_channel::<Task>(TASKS_MAX);
        let stopped = Arc::clone(&stop);
        let serve = move || {
            // Its ring belongs to this thread.
            let mut files = ColdFiles::open(dir, uring, pace, stopped);
            while let Ok(task) = queue.recv() {
                task(&mut files);
            }
        };
        let thread = std::thread::Builder::new().name("weir-cold-io".to_owned()).spawn(serve);
        let thread = thread.map_err(|error| DiskError::from_io(DiskVerb::Thread, FileId::Superblock, &error));
        let bytes_per_second = pace.bytes_per_second.filter(|rate| *rate > 0).unwrap_or(u64::MAX).min(SLOWEST_BYTES_PER_S);
        Attended {
            tasks: Some(tasks),
            thread,
            late,
            stop,
            patience: PATIENCE,
            bytes_per_second,
            writes: VecDeque::new(),
            unsynced: 0,
            ahead: None,
        }
    }

    /// Hands an operation on `bytes` bytes to the thread.
    fn ask<R: Send + 'static>(
        &mut self,
        verb: DiskVerb,
        file: FileId,
        bytes: usize,
        work: impl FnOnce(&mut ColdFiles) -> Result<R, DiskError> + Send + 'static,
    ) -> Result<Asked<R>, DiskError> {
        self.thread.as_ref().map_err(Clone::clone)?;
        if self.stop.load(Ordering::Relaxed) {
            return Err(DiskError::Closed { verb, file });
        }
        if self.late.load(Ordering::Acquire) > 0 {
            return Err(hangs(verb, file));
        }
        let (reply, answer) = channel();
        let fate = Arc::new(AtomicU8::new(WAITED_FOR));
        let (its_fate, late) = (Arc::clone(&fate), Arc::clone(&self.late));
        let task = Box::new(move |files: &mut ColdFiles| {
            let result = work(files);
            if its_fate.swap(DONE, Ordering::AcqRel) == GIVEN_UP {
                late.fetch_sub(1, Ordering::AcqRel);
            }
            let _ = reply.send(result);
        });
        match self.tasks.as_ref().map(|tasks| tasks.try_send(task)) {
            Some(Ok(())) => {}
            Some(Err(TrySendError::Full(_))) => return Err(hangs(verb, file)),
            Some(Err(TrySendError::Disconnected(_))) | None => panic!("the thread of a volume's files has panicked"),
        }
        // What is in front of it takes its time as well.
        let ahead_of_it = self.writes.len() as u32 + u32::from(self.ahead.is_some());
        let patience = self.patience * (1 + ahead_of_it) + Duration::from_secs(bytes as u64 / self.bytes_per_second);
        Ok(Asked { verb, file, patience, fate, answer })
    }

    fn wait<R>(&mut self, asked: Asked<R>) -> Result<R, DiskError> {
        let until = Instant::now() + asked.patience;
        loop {
            match asked.answer.recv_timeout(LOOK_EVERY.min(asked.patience)) {
                Ok(result) => return result,
                Err(RecvTimeoutError::Disconnected) => panic!("the thread of a volume's files has panicked"),
                Err(RecvTimeoutError::Timeout) if self.stop.load(Ordering::Relaxed) => {
                    return Err(DiskError::Closed { verb: asked.verb, file: asked.file });
                }
                Err(RecvTimeoutError::Timeout) if Instant::now() < until => {}
                Err(RecvTimeoutError::Timeout) => return self.give_up(&asked),
            }
        }
    }

    /// Neither this operation nor any behind it is waited for any longer.
    fn give_up<R>(&mut self, asked: &Asked<R>) -> Result<R, DiskError> {
        let late = &self.late;
        if !asked.is_late(late) {
            return asked.answer.recv().unwrap_or_else(|_| Err(hangs(asked.verb, asked.file)));
        }
        for write in self.writes.drain(..) {
            write.is_late(late);
        }
        if let Some(ahead) = self.ahead.take() {
            ahead.asked.is_late(late);
        }
        let error = hangs(asked.verb, asked.file);
        tracing::error!(%error, "nothing more is asked of this disk before it has answered");
        Err(error)
    }

    /// The result of every write so far.
    fn catch_up(&mut self) -> Result<(), DiskError> {
        while let Some(write) = self.writes.pop_front() {
            self.wait(write)?;
        }
        Ok(())
    }

    fn do_now<R: Send + 'static>(
        &mut self,
        verb: DiskVerb,
        file: FileId,
        work: impl FnOnce(&mut ColdFiles) -> Result<R, DiskError> + Send + 'static,
    ) -> Result<R, DiskError> {
        // A file may be another one from now on.
        self.ahead = None;
        let asked = self.ask(verb, file, 0, work)?;
        self.wait(asked)
    }
}

impl<R> Asked<R> {
    /// Nobody waits for it any longer; whether it is still to come.
    fn is_late(&self, late: &AtomicUsize) -> bool {
        late.fetch_add(1, Ordering::AcqRel);
        let done = self.fate.swap(GIVEN_UP, Ordering::AcqRel) == DONE;
        if done {
            late.fetch_sub(1, Ordering::AcqRel);
        }
        !done
    }
}

fn hangs(verb: DiskVerb, file: FileId) -> DiskError {
    DiskError::Hangs { verb, file }
}

impl ColdStore for Attended {
    fn read(&mut self, file: FileId, at: u64, bytes: usize) -> Result<Bytes, DiskError> {
        if let Some(ahead) = self.ahead.take()
            && ahead.at == (file, at, bytes)
        {
            return self.wait(ahead.asked);
        }
        let asked = self.ask(DiskVerb::Read, file, bytes, move |files| files.read(file, at, bytes))?;
        self.wait(asked)
    }

    fn will_read(&mut self, _copy: usize, file: FileId, at: u64, bytes: usize) {
        self.ahead = None;
        // Whatever is wrong with the disk shows when it is read.
        let asked = self.ask(DiskVerb::Read, file, bytes, move |files| files.read(file, at, bytes));
        self.ahead = asked.ok().map(|asked| Ahead { at: (file, at, bytes), asked });
    }

    fn rest(&mut self) {
        self.ahead = None;
        // Whether that worked concerns nobody.
        drop(self.ask(DiskVerb::Read, FileId::Superblock, 0, |files| {
            files.rest();
            Ok(())
        }));
    }

    fn free_bytes(&mut self) -> Option<u64> {
        let asked = self.ask(DiskVerb::Stat, FileId::Superblock, 0, |files| Ok(files.free_bytes()));
        asked.and_then(|asked| self.wait(asked)).ok().flatten()
    }

    fn create(&mut self, file: FileId) -> Result<(), DiskError> {
        // What became of a file that was left half written concerns nobody.
        let _ = self.catch_up();
        self.writes.clear();
        self.unsynced = 0;
        self.do_now(DiskVerb::Create, file, move |files| files.create(file))
    }

    /// An error may be that of a write before.
    fn write(&mut self, file: FileId, at: u64, data: AlignedBuf) -> Result<(), DiskError> {
        while self.writes.len() >= WRITES_BEHIND {
            let first = self.writes.pop_front().expect("so many there are");
            self.wait(first)?;
        }
        self.unsynced += data.len();
        let asked = self.ask(DiskVerb::Write, file, data.len(), move |files| files.write(file, at, data))?;
        self.writes.push_back(asked);
        Ok(())
    }

    fn seal(&mut self, file: FileId) -> Result<(), DiskError> {
        self.catch_up()?;
        let bytes = std::mem::take(&mut self.unsynced);
        let asked = self.ask(DiskVerb::Sync, file, bytes, move |files| files.seal(file))?;
        self.wait(asked)
    }

    fn overwrite(&mut self, file: FileId, at: u64, data: AlignedBuf) -> Result<(), DiskError> {
        self.do_now(DiskVerb::Write, file, move |files| files.overwrite(file, at, data))
    }

    fn rename(&mut self, from: FileId, to: FileId) -> Result<(), DiskError> {
        self.do_now(DiskVerb::Rename, from, move |files| files.rename(from, to))
    }

    fn link(&mut self, from: FileId, to: FileId) -> Result<(), DiskError> {
        self.do_now(DiskVerb::Link, from, move |files| files.link(from, to))
    }

    fn remove(&mut self, file: FileId) -> Result<(), DiskError> {
        self.do_now(DiskVerb::Remove, file, move |files| files.remove(file))
    }

    fn list(&mut self) -> Result<Vec<FileId>, DiskError> {
        self.do_now(DiskVerb::List, FileId::Superblock, ColdStore::list)
    }
}

impl Drop for Attended {
    fn drop(&mut self) {
        drop(self.tasks.take());
        let Ok(thread) = &self.thread else { return };
        let until = Instant::now() + FAREWELL;
        while !thread.is_finished() {
            if self.late.load(Ordering::Acquire) > 0 || Instant::now() >= until {
                tracing::warn!("a disk hangs: what was asked of it is left behind");
                // What it has is not to come between what others ask of the disk.
                for write in self.writes.drain(..) {
                    write.is_late(&self.late);
                }
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::super::BLOCK_BYTES;
    use super::super::files::DsyncMode;
    use super::*;

    fn start(dir: &Path, late: &Arc<AtomicUsize>) -> Attended {
        let files = DataDir::new(dir, false, DsyncMode::Fdatasync);
        let mut store = Attended::start(files, false, ColdPace::default(), Arc::default(), Arc::clone(late));
        store.patience = Duration::from_millis(100);
        store
    }

    /// A pipe that nobody writes to: opening it hangs.
    fn pipe(dir: &Path, file: FileId) -> PathBuf {
        use rustix::fs::{CWD, FileType, Mode, mknodat};
        let path = dir.join(file.relative_path());
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        path
    }

    fn write(store: &mut Attended, file: FileId) -> Result<(), DiskError> {
        store.create(file)?;
        for n in 0..8 {
            store.write(file, n * BLOCK_BYTES as u64, AlignedBuf::copy_of(&[n as u8; BLOCK_BYTES]))?;
        }
        store.seal(file)
    }

    #[test]
    fn a_disk_that_hangs_is_not_waited_for_and_not_asked_before_it_has_answered() {
        let dir = tempfile::tempdir().unwrap();
        let late = Arc::default();
        let mut store = start(dir.path(), &late);
        write(&mut store, FileId::Cold(1)).unwrap();
        let pipe = pipe(dir.path(), FileId::Cold(2));
        let timed_out = |result: Result<Bytes, DiskError>| matches!(result, Err(DiskError::Hangs { .. }));
        assert!(timed_out(store.read(FileId::Cold(2), 0, BLOCK_BYTES)));
        assert!(timed_out(store.read(FileId::Cold(1), 0, BLOCK_BYTES)), "it is still at the other one");
        // Nor by a thread that knows nothing of it.
        drop(store);
        let mut store = start(dir.path(), &late);
        assert!(timed_out(store.read(FileId::Cold(1), 0, BLOCK_BYTES)));
        assert!(write(&mut store, FileId::Cold(3)).is_err());
        // The disk comes to.
        let _writer = std::fs::OpenOptions::new().write(true).open(pipe).unwrap();
        while late.load(Ordering::Acquire) > 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(store.read(FileId::Cold(1), 0, BLOCK_BYTES).unwrap(), &[0; BLOCK_BYTES][..]);
        write(&mut store, FileId::Cold(3)).unwrap();
    }

    #[test]
    fn what_was_read_ahead_is_what_is_read_and_a_write_that_failed_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = start(dir.path(), &Arc::default());
        write(&mut store, FileId::Cold(1)).unwrap();
        let block = |n: u8| vec![n; BLOCK_BYTES];
        store.will_read(0, FileId::Cold(1), 5 * BLOCK_BYTES as u64, BLOCK_BYTES);
        assert_eq!(store.read(FileId::Cold(1), 5 * BLOCK_BYTES as u64, BLOCK_BYTES).unwrap(), block(5));
        store.will_read(0, FileId::Cold(1), 5 * BLOCK_BYTES as u64, BLOCK_BYTES);
        assert_eq!(store.read(FileId::Cold(1), 6 * BLOCK_BYTES as u64, BLOCK_BYTES).unwrap(), block(6));
        // The file could become another one under the same name: what was read before does not count.
        store.will_read(0, FileId::Cold(1), 0, BLOCK_BYTES);
        store.remove(FileId::Cold(1)).unwrap();
        assert!(matches!(store.read(FileId::Cold(1), 0, BLOCK_BYTES), Err(DiskError::Missing { .. })));
        // Written to a file that is not being written: told at the latest when it is to be durable.
        store.create(FileId::Cold(2)).unwrap();
        let _ = store.write(FileId::Cold(3), 0, AlignedBuf::zeroed(BLOCK_BYTES));
        assert!(store.seal(FileId::Cold(2)).is_err());
        write(&mut store, FileId::Cold(2)).unwrap();
    }
}
