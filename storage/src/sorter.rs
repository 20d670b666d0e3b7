//! The sorter's threads: they do the cold tier's jobs one after another, off the log thread. One has time; the other does what producers wait for.

use std::any::Any;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::cold::Packing;
use crate::cold::job::{Done, Job, JobError, Workshop, guarded};
use crate::cold::stores::{StoreMap, Stores};
use crate::config::ColdConfig;
use crate::disk::ColdPace;
use crate::disk::mirror::MirrorControl;
use crate::disk::volumes::VolumeDisks;
use crate::format::Uuid;
use crate::read::ReadPath;
use crate::report::OpenError;
use crate::view::View;

/// Of the thread that has time. On Linux a thread has a priority of its own, and may lower it, but not raise it again.
const NICE: i32 = 10;

/// Takes what came of a job.
pub(crate) type JobSink = Box<dyn Fn(Result<Done, JobError>) + Send + Sync>;

/// Handle of the threads. Dropping it cuts the running job off: nothing of it counts before the engine has written it down.
pub(crate) struct Sorter {
    /// Takes what producers and consumers leave of the processor; the WAL is what it may fall behind by.
    calm: Option<Worker>,
    /// Has its share: producers will wait for the sorter soon, or do.
    hurried: Option<Worker>,
    /// Which of them had the last job.
    was_hurried: Cell<bool>,
    view: Arc<View>,
    stop: Arc<AtomicBool>,
}

/// One of the threads. Of both, one at most has a job.
struct Worker {
    orders: SyncSender<Order>,
    thread: JoinHandle<()>,
}

/// What a thread is told.
enum Order {
    Job(Box<Job>),
    /// The other one has the next job: files may be others afterwards.
    Rest,
    /// A disk was let go of: so must it, and then drop the sender.
    LetGo(Sender<()>),
}

/// What the threads work with.
pub(crate) struct Tools {
    pub(crate) disks: Arc<VolumeDisks>,
    pub(crate) wal: Arc<MirrorControl>,
    pub(crate) view: Arc<View>,
    pub(crate) reads: Weak<ReadPath>,
    pub(crate) log_id: Uuid,
    pub(crate) config: ColdConfig,
    pub(crate) done: JobSink,
}

impl Sorter {
    pub(crate) fn start(tools: Tools) -> Result<Sorter, OpenError> {
        let (tools, stop) = (Arc::new(tools), Arc::new(AtomicBool::new(false)));
        let mut sorter = Sorter { calm: None, hurried: None, was_hurried: Cell::new(false), view: Arc::clone(&tools.view), stop };
        sorter.calm = Some(Worker::start("weir-sort", &tools, false, &sorter.stop)?);
        sorter.hurried = Some(Worker::start("weir-sort-now", &tools, true, &sorter.stop)?);
        Ok(sorter)
    }

    /// The engine hands out one job at a time.
    pub(crate) fn submit(&self, job: Job) {
        let (Some(calm), Some(hurried)) = (&self.calm, &self.hurried) else { return };
        let in_hurry = match &job {
            Job::Sort { packing, .. } => *packing != Packing::Well || self.view.is_in_hurry(),
            _ => false,
        };
        let (worker, other) = if in_hurry { (hurried, calm) } else { (calm, hurried) };
        if self.was_hurried.replace(in_hurry) != in_hurry {
            let _ = other.orders.send(Order::Rest);
        }
        let _ = worker.orders.send(Order::Job(Box::new(job)));
    }

    /// Lets go of the disks that are not among the volumes' any more; the channel closes when the running job is done.
    pub(crate) fn let_go(&self, done: &Sender<()>) {
        for worker in [&self.calm, &self.hurried].into_iter().flatten() {
            let _ = worker.orders.try_send(Order::LetGo(done.clone()));
        }
    }
}

impl Worker {
    fn start(name: &str, tools: &Arc<Tools>, in_hurry: bool, stop: &Arc<AtomicBool>) -> Result<Worker, OpenError> {
        // Disks go one at a time.
        let (orders, queue) = sync_channel(4);
        let (tools, stop) = (Arc::clone(tools), Arc::clone(stop));
        let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(move || work(&tools, &queue, in_hurry, &stop));
        let thread = spawned.map_err(|source| OpenError::Directory {
            what: "starting the sorter's threads for",
            path: "the cold tier".into(),
            source,
        })?;
        Ok(Worker { orders, thread })
    }
}

impl Drop for Sorter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for worker in [self.calm.take(), self.hurried.take()].into_iter().flatten() {
            drop(worker.orders);
            let _ = worker.thread.join();
        }
    }
}

fn work(tools: &Tools, orders: &Receiver<Order>, in_hurry: bool, stop: &Arc<AtomicBool>) {
    if !in_hurry && let Err(error) = rustix::process::setpriority_process(None, NICE) {
        tracing::warn!(%error, "the sorter runs at the priority of everything else");
    }
    let mut shelf = Shelf::default();
    while let Ok(order) = orders.recv() {
        let job = match order {
            Order::Job(job) => job,
            Order::Rest => {
                shelf = Shelf::default();
                continue;
            }
            // Whoever asked may have given up waiting.
            Order::LetGo(done) => {
                shelf.keep_only(tools);
                drop(done);
                continue;
            }
        };
        let result = guarded(|| {
            shelf.refresh(tools, in_hurry, stop);
            let result = run(&mut shelf.stores, tools, &job);
            shelf.stores.values_mut().for_each(|store| store.rest());
            result
        });
        if matches!(result, Err(JobError::Panicked(_))) {
            // What it left behind may be anything: the disks are opened anew.
            shelf = Shelf::default();
        }
        if stop.load(Ordering::Relaxed) {
            return;
        }
        if let Some(reads) = tools.reads.upgrade() {
            forget(&job, &result, &reads);
        }
        (tools.done)(result);
    }
}

/// Readers let go of files that are not the ones they opened any more.
fn forget(job: &Job, result: &Result<Done, JobError>, reads: &ReadPath) {
    match (job, result) {
        (Job::Remove { files }, _) => files.iter().for_each(|(number, _)| reads.forget_cold(*number)),
        (Job::Mend { place, .. }, Ok(Done::Mended { made, .. })) if !made.is_empty() => reads.forget_cold(place.number),
        _ => {}
    }
}

/// The volumes' stores, as the disks come and go.
#[derive(Default)]
struct Shelf {
    stores: StoreMap,
    /// Which disk each of them was opened on.
    opened: BTreeMap<u8, Weak<dyn Any + Send + Sync>>,
}

impl Shelf {
    /// Closes what is on disks that are not there any more.
    fn keep_only(&mut self, tools: &Tools) {
        let disks = tools.disks.all();
        let same = |opened: &Weak<dyn Any + Send + Sync>, number: u8| {
            disks.get(&number).is_some_and(|disk| opened.upgrade().is_some_and(|opened| Arc::ptr_eq(&opened, &disk.keep)))
        };
        let opened = &mut self.opened;
        opened.retain(|number, disk| same(disk, *number));
        self.stores.retain(|number, _| opened.contains_key(number));
    }

    fn refresh(&mut self, tools: &Tools, in_hurry: bool, stop: &Arc<AtomicBool>) {
        self.keep_only(tools);
        let pace = ColdPace { bytes_per_second: tools.config.bandwidth_bytes_max, in_hurry };
        for (number, disk) in &tools.disks.all() {
            if let Some(open) = disk.open.as_ref().filter(|_| !self.opened.contains_key(number)) {
                self.stores.insert(*number, open(pace, Arc::clone(stop)));
                self.opened.insert(*number, Arc::downgrade(&disk.keep));
            }
        }
        for (number, store) in &mut self.stores {
            let free_bytes = store.free_bytes();
            tools.view.volumes().has_free(*number, free_bytes);
        }
    }
}

fn run(stores: &mut StoreMap, tools: &Tools, job: &Job) -> Result<Done, JobError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    let (whole, _) = tools.wal.names();
    let wal: Vec<u8> = {
        let volumes = tools.view.volumes();
        whole.iter().filter_map(|name| volumes.number_of_dir(name)).collect()
    };
    let mut store = Stores::new(stores, &tools.view, wal);
    let (view, log_id) = (&*tools.view, tools.log_id);
    let ColdConfig { sort_memory_bytes, keep_block_bytes, .. } = tools.config;
    Workshop { store: &mut store, view, log_id, sort_memory_bytes, keep_block_bytes, now_ms }.run(job)
}
