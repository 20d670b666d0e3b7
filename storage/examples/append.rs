//! How fast one log takes appends: 10,000 of 1 KiB one after another, then batches of 256 KiB for three seconds.
//!
//! `append DIR`: makes a log in a new directory below `DIR` and removes it.
#![forbid(unsafe_code)]

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use weir_batch::{BatchBuilder, Codec};
use weir_storage::{Append, AppendEntry, CompletionSink, Log, LogConfig, Outcome, PartitionId, PartitionOp};

const P: PartitionId = PartitionId(1);
/// Large batches under way.
const UNDER_WAY: usize = 16;

struct Answers(Mutex<Sender<Outcome>>);

impl CompletionSink for Answers {
    fn complete(&self, outcomes: &mut Vec<(u64, Outcome)>) {
        let answers = self.0.lock().expect("nobody panics with it");
        outcomes.drain(..).for_each(|(_, outcome)| answers.send(outcome).expect("the receiver waits"));
    }
}

fn batch(bytes: usize) -> Bytes {
    let mut builder = BatchBuilder::new(Codec::None);
    let value: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(bytes).collect();
    builder.push(1_000, None, Some(&value), &[]);
    Bytes::from(builder.finish().expect("one record"))
}

fn append(batches: &Bytes) -> Append {
    let entry = AppendEntry { partition: P, batches: batches.clone(), record_count: 1, max_timestamp: 1_000 };
    Append { entries: vec![entry], ..Append::default() }
}

fn committed(outcome: &Outcome) {
    assert!(matches!(outcome, Outcome::Committed { .. }), "{outcome:?}");
}

fn main() {
    let below = std::env::args().nth(1).expect("usage: append DIR");
    let dir = std::path::Path::new(&below).join(format!("append-{}", std::process::id()));
    let config = LogConfig { retention_bytes: Some(1 << 30), compress_from_bytes: None, ..LogConfig::new(&dir) };
    let (log, _) = Log::open(config).expect("a new log");
    let handle = log.handle();
    handle.append_blocking(Append { partitions: vec![PartitionOp::Open(P)], ..Append::default() });

    let small = batch(1 << 10);
    let started = Instant::now();
    (0..10_000).for_each(|_| committed(&handle.append_blocking(append(&small))));
    let each = started.elapsed() / 10_000;

    let large = batch(256 << 10);
    let (sender, answers) = channel();
    let sink: Arc<dyn CompletionSink> = Arc::new(Answers(Mutex::new(sender)));
    let started = Instant::now();
    (0..UNDER_WAY).for_each(|_| handle.submit(append(&large), 0, &sink));
    let mut done = 0_u64;
    while started.elapsed() < Duration::from_secs(3) {
        committed(&answers.recv().expect("the log answers"));
        done += 1;
        handle.submit(append(&large), 0, &sink);
    }
    let mib_per_s = done as f64 / 4.0 / started.elapsed().as_secs_f64();
    println!("small_us={:.2} large_mib_per_s={mib_per_s:.0}", each.as_nanos() as f64 / 1e3);
    log.shutdown().expect("a clean end");
    std::fs::remove_dir_all(dir).expect("removed");
}
