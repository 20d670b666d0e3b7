//! Threads that run pipelines: a few shards, and one penalty thread.
//!
//! A job goes to the shard its key names, first in, first out, through a bounded queue; [`Busy`] is where back-pressure
//! starts. Plugins of different topics share a shard, so a batch that runs into its time or memory limit there is not
//! searched for its poison record: it is handed, with all that follow it, to the penalty thread, which has the patience.
//! A bad plugin thus costs other topics one batch time, once. After 32 good batches in a row the pipeline comes back.
//!
//! Order is kept across the hand-over because every job passes through its shard's queue, and a shard runs a job itself
//! only if none of that pipeline is left on the penalty thread.
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use thiserror::Error;

use crate::error::{HostError, RunError};
use crate::limits::WASM_STACK_BYTES;
use crate::output::Output;
use crate::pipeline::{Input, Pipeline};
use crate::run::{Patience, Step, Worker};

/// Stack of a pipeline thread: the guest's, and as much again thrice for the host's frames around it.
const THREAD_STACK_BYTES: usize = 4 * WASM_STACK_BYTES;
/// How often a thread that ran out of jobs lets others run before it sleeps. Under load the next job is there by then, and
/// neither side pays for a wake-up; an idle node pays some microseconds a batch.
const YIELDS: usize = 16;
/// How often an idle thread frees what pipelines that are gone left behind.
const SWEEP_EVERY: Duration = Duration::from_millis(500);

/// Called on a pipeline thread with what became of the batch; must not block.
pub type Done = Box<dyn FnOnce(Result<Output, RunError>) + Send>;

/// The queue is full: nothing was taken, try again when a batch has come out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the pipeline's queue is full; send the batch again later")]
pub struct Busy;

struct Job {
    pipeline: Arc<Pipeline>,
    input: Input,
    done: Done,
}

impl Job {
    fn answer(self, result: Result<Output, RunError>) {
        self.pipeline.in_flight().fetch_sub(1, Ordering::SeqCst);
        (self.done)(result);
    }
}

/// Counters of a pool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShardPoolStats {
    /// Jobs taken.
    pub submitted: u64,
    /// Jobs refused with [`Busy`].
    pub busy: u64,
    /// Jobs that ran on the penalty thread.
    pub penalised: u64,
}

#[derive(Debug, Default)]
struct Shared {
    stopping: AtomicBool,
    submitted: AtomicU64,
    busy: AtomicU64,
    penalised: AtomicU64,
}

/// A pool of pipeline threads. Dropping it answers what still waits with [`RunError::ShuttingDown`].
pub struct ShardPool {
    queues: Vec<SyncSender<Job>>,
    queue_per_shard: usize,
    threads: Vec<JoinHandle<()>>,
    shared: Arc<Shared>,
}

impl fmt::Debug for ShardPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShardPool").field("shards", &self.queues.len()).field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl ShardPool {
    /// Starts `threads` shards and the penalty thread, each with a queue of `queue_per_shard` batches.
    ///
    /// # Errors
    /// [`HostError::Thread`] if the system has no more threads.
    pub fn new(threads: usize, queue_per_shard: usize) -> Result<Self, HostError> {
        let (threads, queue_per_shard) = (threads.max(1), queue_per_shard.max(1));
        let shared = Arc::new(Shared::default());
        // When a pipeline is penalised, all that it has in the shards' queues must find a place behind it.
        let (penalty_queue, penalty_jobs) = sync_channel(queue_per_shard * (threads + 1));
        let mut pool = Self { queues: Vec::new(), queue_per_shard, threads: Vec::new(), shared: Arc::clone(&shared) };
        for shard in 0..threads {
            let (queue, jobs) = sync_channel(queue_per_shard);
            let penalty = Penalty { queue: penalty_queue.clone(), shared: Arc::clone(&shared) };
            pool.spawn(format!("weir-shard-{shard}"), move || shard_thread(&jobs, &penalty))?;
            pool.queues.push(queue);
        }
        pool.spawn("weir-penalty".to_owned(), move || penalty_thread(&penalty_jobs, &shared))?;
        Ok(pool)
    }

    /// Queues a batch. Batches with the same key run in the order they are submitted, each by the pipeline given with it.
    /// `done` is called on a pipeline thread.
    ///
    /// # Errors
    /// [`Busy`] if the queue is full; `done` is then dropped without being called.
    pub fn submit(&self, shard_key: u64, pipeline: Arc<Pipeline>, input: Input, done: Done) -> Result<(), Busy> {
        let queue = &self.queues[(mix(shard_key) % self.queues.len() as u64) as usize];
        let in_flight = pipeline.in_flight().fetch_add(1, Ordering::SeqCst);
        // A penalised pipeline has one thread, so it gets one queue's worth of places.
        let no_place = in_flight >= self.queue_per_shard && pipeline.is_penalised();
        let counted = Arc::clone(&pipeline);
        if no_place || queue.try_send(Job { pipeline, input, done }).is_err() {
            counted.in_flight().fetch_sub(1, Ordering::SeqCst);
            self.shared.busy.fetch_add(1, Ordering::Relaxed);
            return Err(Busy);
        }
        self.shared.submitted.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Counters since the start.
    #[must_use]
    pub fn stats(&self) -> ShardPoolStats {
        let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
        ShardPoolStats {
            submitted: get(&self.shared.submitted),
            busy: get(&self.shared.busy),
            penalised: get(&self.shared.penalised),
        }
    }

    fn spawn(&mut self, name: String, run: impl FnOnce() + Send + 'static) -> Result<(), HostError> {
        let thread = thread::Builder::new().name(name).stack_size(THREAD_STACK_BYTES).spawn(run)?;
        self.threads.push(thread);
        Ok(())
    }
}

impl Drop for ShardPool {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        self.queues.clear();
        let current = thread::current().id();
        for thread in self.threads.drain(..).filter(|t| t.thread().id() != current) {
            let _ = thread.join();
        }
    }
}

/// Spreads keys that count up or differ in high bits only (SplitMix64's finaliser).
fn mix(key: u64) -> u64 {
    let key = (key ^ (key >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let key = (key ^ (key >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    key ^ (key >> 31)
}

/// The way to the penalty thread.
struct Penalty {
    queue: SyncSender<Job>,
    shared: Arc<Shared>,
}

impl Penalty {
    fn hand_over(&self, job: Job) {
        let pipeline = Arc::clone(&job.pipeline);
        pipeline.penalty_pending().fetch_add(1, Ordering::SeqCst);
        if let Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) = self.queue.try_send(job) {
            pipeline.penalty_pending().fetch_sub(1, Ordering::SeqCst);
            job.answer(Err(RunError::Overloaded { reason: "too many batches wait for plugins that take too long" }));
        }
    }
}

fn shard_thread(jobs: &Receiver<Job>, penalty: &Penalty) {
    let mut worker = Worker::default();
    while let Some(job) = next(jobs, &mut worker) {
        if penalty.shared.stopping.load(Ordering::SeqCst) {
            job.answer(Err(RunError::ShuttingDown));
            continue;
        }
        let on_penalty = job.pipeline.is_penalised() || job.pipeline.penalty_pending().load(Ordering::SeqCst) > 0;
        if on_penalty {
            penalty.hand_over(job);
            continue;
        }
        match run(&mut worker, &job, Patience::Inline) {
            Some(Step::Done(result)) => job.answer(result),
            Some(Step::Handover) => {
                job.pipeline.penalise();
                penalty.hand_over(job);
            }
            None => job.answer(Err(RunError::Overloaded { reason: "a pipeline thread had to be restarted" })),
        }
    }
}

fn penalty_thread(jobs: &Receiver<Job>, shared: &Shared) {
    let mut worker = Worker::default();
    while let Some(job) = next(jobs, &mut worker) {
        let pipeline = Arc::clone(&job.pipeline);
        if shared.stopping.load(Ordering::SeqCst) {
            job.answer(Err(RunError::ShuttingDown));
        } else {
            shared.penalised.fetch_add(1, Ordering::Relaxed);
            let slow_before = slow_failures(&pipeline);
            let result = match run(&mut worker, &job, Patience::Patient) {
                Some(Step::Done(result)) => result,
                Some(Step::Handover) | None => Err(RunError::Overloaded { reason: "a pipeline thread had to be restarted" }),
            };
            pipeline.served_penalty(slow_failures(&pipeline) == slow_before);
            job.answer(result);
        }
        pipeline.penalty_pending().fetch_sub(1, Ordering::SeqCst);
    }
}

/// Runs over a limit so far, and batches that were spared one by an open circuit.
fn slow_failures(pipeline: &Pipeline) -> u64 {
    pipeline.stages.iter().map(|stage| stage.stats.slow()).sum()
}

/// The next job; frees left-over instances while there is none. `None` when the pool is gone.
fn next(jobs: &Receiver<Job>, worker: &mut Worker) -> Option<Job> {
    for _ in 0..YIELDS {
        match jobs.try_recv() {
            Ok(job) => return Some(job),
            Err(TryRecvError::Empty) => thread::yield_now(),
            Err(TryRecvError::Disconnected) => return None,
        }
    }
    loop {
        match jobs.recv_timeout(SWEEP_EVERY) {
            Ok(job) => return Some(job),
            Err(RecvTimeoutError::Timeout) => worker.sweep(),
            Err(RecvTimeoutError::Disconnected) => return None,
        }
    }
}

/// A panic in the host is our mistake; it costs this batch and this thread's instances, not the thread.
fn run(worker: &mut Worker, job: &Job, patience: Patience) -> Option<Step> {
    let step = catch_unwind(AssertUnwindSafe(|| worker.run(&job.pipeline, &job.input, patience)));
    if step.is_err() {
        *worker = Worker::default();
        tracing::error!(topic = &*job.input.topic, "the pipeline host panicked; the batch is refused, please report this");
    }
    step.ok()
}
