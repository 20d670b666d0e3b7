//! The sorter's thread: does the cold tier's jobs one after another, off the log thread.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::cold::job::{Done, Job, JobError, Workshop, guarded};
use crate::cold::stores::{StoreMap, Stores};
use crate::config::ColdConfig;
use crate::disk::mirror::MirrorControl;
use crate::disk::volumes::VolumeDisks;
use crate::format::Uuid;
use crate::read::ReadPath;
use crate::report::OpenError;
use crate::view::View;

/// On Linux a thread has a priority of its own.
const NICE: i32 = 10;

/// Takes what came of a job.
pub(crate) type JobSink = Box<dyn Fn(Result<Done, JobError>) + Send>;

/// Handle of the thread. Dropping it cuts the running job off: nothing of it counts before the engine has written it down.
pub(crate) struct Sorter {
    orders: Option<SyncSender<Order>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread is told.
enum Order {
    Job(Box<Job>),
    /// A disk was let go of: so must it, and then say so.
    LetGo(Sender<()>),
}

/// What the thread works with.
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
        // The engine hands out one job at a time; disks go one at a time.
        let (orders, queue) = sync_channel(4);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let spawned = std::thread::Builder::new().name("weir-sort".to_owned()).spawn(move || work(tools, &queue, stopped));
        let thread = spawned.map_err(|source| OpenError::Directory {
            what: "starting the sorter's thread for",
            path: "the cold tier".into(),
            source,
        })?;
        Ok(Sorter { orders: Some(orders), stop, thread: Some(thread) })
    }

    pub(crate) fn submit(&self, job: Job) {
        if let Some(orders) = &self.orders {
            // The engine hands out one job at a time, so there is room.
            let _ = orders.try_send(Order::Job(Box::new(job)));
        }
    }

    /// Lets go of the disks that are not among the volumes' any more; the answer comes when the running job is done.
    pub(crate) fn let_go(&self, done: Sender<()>) {
        if let Some(orders) = &self.orders {
            let _ = orders.try_send(Order::LetGo(done));
        }
    }
}

impl Drop for Sorter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn work(tools: Tools, orders: &Receiver<Order>, stop: Arc<AtomicBool>) {
    // It gets what producers and consumers leave of the processor; the WAL is what it may fall behind by.
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        tracing::warn!(%error, "the sorter runs at the priority of everything else");
    }
    let mut shelf = Shelf::default();
    while let Ok(order) = orders.recv() {
        shelf.refresh(&tools, &stop);
        let job = match order {
            Order::Job(job) => job,
            Order::LetGo(done) => {
                // Whoever asked may have given up waiting.
                let _ = done.send(());
                continue;
            }
        };
        let result = guarded(|| run(&mut shelf.stores, &tools, &job));
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
    fn refresh(&mut self, tools: &Tools, stop: &Arc<AtomicBool>) {
        let disks = tools.disks.all();
        let same = |opened: &Weak<dyn Any + Send + Sync>, number: u8| {
            disks.get(&number).is_some_and(|disk| opened.upgrade().is_some_and(|opened| Arc::ptr_eq(&opened, &disk.keep)))
        };
        let opened = &mut self.opened;
        opened.retain(|number, disk| same(disk, *number));
        self.stores.retain(|number, _| opened.contains_key(number));
        for (number, disk) in &disks {
            if let Some(open) = disk.open.as_ref().filter(|_| !opened.contains_key(number)) {
                self.stores.insert(*number, open(tools.config.bandwidth_bytes_max, Arc::clone(stop)));
                opened.insert(*number, Arc::downgrade(&disk.keep));
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
