//! The sorter's thread: does the cold tier's jobs one after another, off the log thread.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::cold::job::{Done, Job, JobError, Workshop};
use crate::config::ColdConfig;
use crate::disk::{ColdOpener, ColdStore};
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
    jobs: Option<SyncSender<Job>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread works with.
pub(crate) struct Tools {
    pub(crate) open: ColdOpener,
    pub(crate) view: Arc<View>,
    pub(crate) reads: Weak<ReadPath>,
    pub(crate) log_id: Uuid,
    pub(crate) config: ColdConfig,
    pub(crate) done: JobSink,
}

impl Sorter {
    pub(crate) fn start(tools: Tools) -> Result<Sorter, OpenError> {
        // The engine hands out one job at a time.
        let (jobs, queue) = sync_channel(1);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let spawned = std::thread::Builder::new().name("weir-sort".to_owned()).spawn(move || work(tools, &queue, stopped));
        let thread = spawned.map_err(|source| OpenError::Directory {
            what: "starting the sorter's thread for",
            path: "the cold tier".into(),
            source,
        })?;
        Ok(Sorter { jobs: Some(jobs), stop, thread: Some(thread) })
    }

    pub(crate) fn submit(&self, job: Job) {
        if let Some(jobs) = &self.jobs {
            // It is gone only after a panic, which has been reported; then the WAL grows to its bound and appends are held up.
            let _ = jobs.try_send(job);
        }
    }
}

impl Drop for Sorter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn work(tools: Tools, jobs: &Receiver<Job>, stop: Arc<AtomicBool>) {
    let Tools { open, view, reads, log_id, config, done } = tools;
    // It gets what producers and consumers leave of the processor; the WAL is what it may fall behind by.
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        tracing::warn!(%error, "the sorter runs at the priority of everything else");
    }
    let mut store = open(config.bandwidth_bytes_max, Arc::clone(&stop));
    while let Ok(job) = jobs.recv() {
        let result = run(&mut *store, &view, log_id, &config, &job);
        if stop.load(Ordering::Relaxed) {
            return;
        }
        if let (Job::Remove { numbers }, Some(reads)) = (&job, reads.upgrade()) {
            numbers.iter().for_each(|number| reads.forget_cold(*number));
        }
        done(result);
    }
}

fn run(store: &mut dyn ColdStore, view: &View, log_id: Uuid, config: &ColdConfig, job: &Job) -> Result<Done, JobError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    Workshop { store, view, log_id, sort_memory_bytes: config.sort_memory_bytes, now_ms }.run(job)
}
