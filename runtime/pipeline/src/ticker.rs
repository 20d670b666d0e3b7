//! The clock of time limits: a thread that advances the engine's epoch every millisecond while a guest runs.
//!
//! It parks when nothing has run for a while, so an idle appliance is not woken a thousand times a second; waking it costs
//! the first call after a pause one system call.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use wasmtime::Engine;

/// Length of one tick: the resolution of batch times.
pub(crate) const TICK: Duration = Duration::from_millis(1);
/// Idle ticks before it parks.
const IDLE_TICKS: u32 = 50;

/// Owns the thread; dropped last, with the engine.
#[derive(Debug)]
pub(crate) struct Ticker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    running: AtomicUsize,
    parked: AtomicBool,
    stop: AtomicBool,
}

/// A guest runs as long as this lives.
#[derive(Debug)]
pub(crate) struct Running<'t>(&'t Shared);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Ticker {
    pub(crate) fn start(engine: Engine) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let seen = Arc::clone(&shared);
        let thread = thread::Builder::new().name("weir-wasm-tick".to_owned()).spawn(move || tick(&engine, &seen))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Says that a guest starts to run.
    pub(crate) fn running(&self) -> Running<'_> {
        self.shared.running.fetch_add(1, Ordering::SeqCst);
        if self.shared.parked.load(Ordering::SeqCst) {
            self.wake();
        }
        Running(&self.shared)
    }

    fn wake(&self) {
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Ticks to wait for at least `time`: the first one may come at once.
pub(crate) fn ticks(time: Duration) -> u64 {
    time.as_millis().div_ceil(TICK.as_millis()) as u64 + 1
}

fn tick(engine: &Engine, shared: &Shared) {
    let mut idle = 0;
    while !shared.stop.load(Ordering::SeqCst) {
        if shared.running.load(Ordering::SeqCst) > 0 {
            idle = 0;
        } else {
            idle += 1;
        }
        if idle < IDLE_TICKS {
            thread::sleep(TICK);
            engine.increment_epoch();
            continue;
        }
        shared.parked.store(true, Ordering::SeqCst);
        // A guest that started before `parked` was seen left no wake-up: look again. One that starts now leaves one.
        if shared.running.load(Ordering::SeqCst) == 0 && !shared.stop.load(Ordering::SeqCst) {
            thread::park();
        }
        shared.parked.store(false, Ordering::SeqCst);
        idle = 0;
    }
}
