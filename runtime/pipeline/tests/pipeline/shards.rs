//! The pool: order, isolation, replacement under load, back-pressure, shut-down.
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};

use weir_batch::RecordBatch;
use weir_pipeline::{Busy, FailurePolicy, Main, Output, Pipeline, RunError, ShardPool};

use crate::guests::{FOREVER, HOST, LETTERS, Node, batch, dead_letter, input, letters, stage, stream};

type Answer = (usize, Result<Output, RunError>);

/// Submits until it is taken; an answer carries the batch's number.
fn submit(
    pool: &ShardPool,
    key: u64,
    pipeline: &Arc<Pipeline>,
    values: &[&str],
    number: usize,
    to: &std::sync::mpsc::Sender<Answer>,
) {
    let bytes = batch(values);
    loop {
        let to = to.clone();
        let done = Box::new(move |result| {
            let _ = to.send((number, result));
        });
        match pool.submit(key, Arc::clone(pipeline), input(bytes.clone()), done) {
            Ok(()) => return,
            Err(Busy) => std::thread::yield_now(),
        }
    }
}

fn collect(from: &Receiver<Answer>, count: usize) -> Vec<Answer> {
    (0..count).map(|_| from.recv_timeout(FOREVER).expect("every batch is answered")).collect()
}

#[test]
fn batches_of_a_key_come_out_in_order() {
    let pool = ShardPool::new(3, 8).unwrap();
    let pipeline = letters(FailurePolicy::Fail);
    let (to, from) = channel();
    for number in 0..300 {
        submit(&pool, (number % 5) as u64, &pipeline, &["r1", "d"], number, &to);
    }
    let mut last = [None; 5];
    for (number, result) in collect(&from, 300) {
        assert_eq!(stream(&result.unwrap(), &[]), ["A1"]);
        assert!(last[number % 5] < Some(number), "{number} after {:?}", last[number % 5]);
        last[number % 5] = Some(number);
    }
    assert_eq!(pool.stats().submitted, 300);
}

/// One shard for both topics: the loop costs the others one batch time, once.
#[test]
fn a_plugin_that_loops_does_not_keep_other_topics_waiting() {
    let pool = ShardPool::new(1, 64).unwrap();
    let (bad, good) = (letters(dead_letter()), letters(FailurePolicy::Fail));
    let (bad_to, bad_from) = channel();
    let (good_to, good_from) = channel();
    // 64 records that loop: the search takes 12 time-outs of 20 ms each on the penalty thread.
    for number in 0..3 {
        submit(&pool, 1, &bad, &["l"; 64], number, &bad_to);
    }
    for number in 0..50 {
        submit(&pool, 1, &good, &["k"], number, &good_to);
    }
    for (_, result) in collect(&good_from, 50) {
        assert_eq!(result.unwrap().main, Main::Unchanged);
    }
    assert!(bad.is_penalised() && !good.is_penalised());
    assert!(bad_from.try_recv().is_err(), "the good topic's fifty were answered before the bad topic's first");
    for (_, result) in collect(&bad_from, 3) {
        assert_eq!(result.unwrap().counts.dead_lettered, 64);
    }
    assert_eq!(pool.stats().penalised, 3);
}

#[test]
fn a_penalised_pipeline_keeps_its_order_and_comes_back_when_it_behaves() {
    let pool = ShardPool::new(1, 64).unwrap();
    let pipeline = letters(FailurePolicy::Drop);
    let (to, from) = channel();
    for number in 0..120 {
        let values: &[&str] = if number == 10 { &["k", "l", "r1"] } else { &["r2"] };
        submit(&pool, 9, &pipeline, values, number, &to);
    }
    let answers = collect(&from, 120);
    for (at, (number, result)) in answers.into_iter().enumerate() {
        assert_eq!(at, number, "order is kept across the hand-over and back");
        let output = result.unwrap();
        let expected: &[&str] = if number == 10 { &["k", "A1"] } else { &["A2"] };
        assert_eq!(stream(&output, &[]), expected);
        assert_eq!(output.failures.len(), usize::from(number == 10));
    }
    assert!(!pipeline.is_penalised());
    assert!(pool.stats().penalised >= 33 && pool.stats().penalised < 120, "{:?}", pool.stats());
}

/// A producer goes on while the plugin is replaced again and again: each record is seen by exactly one version.
#[test]
fn replacing_a_plugin_under_load_gives_every_record_one_version() {
    const BATCHES_A_VERSION: usize = 30;
    let pool = Arc::new(ShardPool::new(2, 4).unwrap());
    let version = |revision: u64| {
        let mut first = stage(&LETTERS, FailurePolicy::Fail);
        first.config = vec![b'A' + revision as u8];
        Pipeline::new(revision, vec![first], &HOST).unwrap()
    };
    let attached = Arc::new(Mutex::new(version(0)));
    let (submitted, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let (to, from) = channel();
    let producer = {
        let (pool, attached) = (Arc::clone(&pool), Arc::clone(&attached));
        let (submitted, stop) = (Arc::clone(&submitted), Arc::clone(&stop));
        std::thread::spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                let number = submitted.load(Ordering::SeqCst);
                let pipeline = Arc::clone(&attached.lock().unwrap());
                submit(&pool, number as u64, &pipeline, &["r1", "r2", "r3"], number, &to);
                submitted.fetch_add(1, Ordering::SeqCst);
            }
        })
    };
    for revision in 1..=8 {
        let enough = submitted.load(Ordering::SeqCst) + BATCHES_A_VERSION;
        while submitted.load(Ordering::SeqCst) < enough {
            std::thread::yield_now();
        }
        *attached.lock().unwrap() = version(revision);
    }
    stop.store(true, Ordering::SeqCst);
    producer.join().unwrap();
    let mut seen = [0usize; 9];
    let mut answered = vec![false; submitted.load(Ordering::SeqCst)];
    for (number, result) in from.iter() {
        let values = stream(&result.unwrap(), &[]);
        let tag = values[0].as_bytes()[0];
        let expected: Vec<String> = (1..=3).map(|n| format!("{}{n}", tag as char)).collect();
        assert_eq!(values, expected, "all records of batch {number} by the same version");
        seen[usize::from(tag - b'A')] += 1;
        assert!(!std::mem::replace(&mut answered[number], true), "batch {number} answered once");
    }
    assert!(answered.iter().all(|a| *a), "every batch was answered");
    assert!(seen[..8].iter().all(|n| *n > 0), "every version was in use: {seen:?}");
}

#[test]
fn instances_of_replaced_pipelines_are_freed() {
    // 128 instances is the limit; every revision needs one in the pool and one more for a moment when it is attached.
    let node = Node::new();
    for _ in 0..300 {
        let pipeline = letters(FailurePolicy::Fail);
        assert_eq!(node.values(&pipeline, &["k"]).unwrap().main, Main::Unchanged);
    }
}

#[test]
fn a_full_queue_is_busy_and_what_waits_at_the_end_is_answered() {
    let pool = ShardPool::new(1, 2).unwrap();
    let pipeline = letters(FailurePolicy::Drop);
    let (to, from) = channel();
    let (mut taken, mut busy) = (0, 0);
    while busy == 0 {
        let to = to.clone();
        let done = Box::new(move |result: Result<Output, RunError>| to.send(result).unwrap());
        match pool.submit(0, Arc::clone(&pipeline), input(batch(&["l"; 64])), done) {
            Ok(()) => taken += 1,
            Err(Busy) => busy += 1,
        }
    }
    assert!(taken >= 2);
    drop(pool);
    drop(to);
    let answers: Vec<_> = from.iter().collect();
    assert_eq!(answers.len(), taken, "every batch taken is answered, once");
    assert!(answers.iter().any(|a| matches!(a, Err(RunError::ShuttingDown))), "{answers:?}");
}

#[test]
fn a_batch_that_cannot_be_read_is_refused_by_name() {
    let node = Node::new();
    let good = batch(&["k", "k"]);
    let cut = good.slice(..good.len() - 1);
    let error = node.run(&letters(FailurePolicy::Fail), input(cut)).unwrap_err();
    assert!(matches!(error, RunError::BadInput(_)), "{error}");
    // Damage behind the header, which only a CRC would show: an answer, never a panic.
    for at in RecordBatch::verify(&good).map(|b| b.bytes().len() - 12).into_iter().flat_map(|n| n..n + 12) {
        let mut bad = good.to_vec();
        bad[at] ^= 0xff;
        let _ = node.run(&letters(FailurePolicy::Fail), input(bad.into()));
    }
}
