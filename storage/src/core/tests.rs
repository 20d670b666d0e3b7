//! Traps that others fell into, each as a short scenario: the core over the simulated disk, without faults but the one it is about.

use std::time::Duration;

use bytes::Bytes;
use weir_batch::{BatchBuilder, Codec};

use super::{Engine, Now, Output, PIN_LEASE, PinDone, PinLost, Pinned, VolumeError};
use crate::cold::job::{Done, JobError};
use crate::config::{ColdConfig, LogConfig};
use crate::disk::sim::{Faults, SimDisk};
use crate::disk::{AlignedBuf, Disk, DiskCompletion, DiskError, DiskOp, DiskVerb, FileId};
use crate::format::BLOCK;
use crate::recovery::recover;
use crate::report::RecoveryReport;
use crate::types::*;

const P: PartitionId = PartitionId(5);

struct Bench {
    disk: SimDisk,
    config: LogConfig,
    engine: Engine<u64>,
    report: RecoveryReport,
    now: Now,
    out: Output<u64>,
}

impl Bench {
    fn new(config: LogConfig, files_max: usize) -> Bench {
        let mut disk = SimDisk::new(1, Faults::default());
        disk.files_max = files_max;
        let (engine, report) = open(&mut disk, &config);
        let mut bench = Bench { disk, config, engine, report, now: Now::default(), out: Output::default() };
        assert!(matches!(bench.append(opened(P)), Outcome::Committed { .. }));
        bench
    }

    fn crash(&mut self) {
        self.disk.power_cut();
        (self.engine, self.report) = open(&mut self.disk, &self.config);
    }

    /// One step without any time passing for the disk.
    fn step(&mut self) {
        let mut completions = Vec::new();
        self.disk.advance(self.now.monotonic);
        self.disk.poll(Some(Duration::ZERO), &mut completions);
        self.engine.step(self.now, &mut completions, &mut self.out);
        for (id, op) in self.out.ops.drain(..) {
            self.disk.submit(id, op);
        }
        self.engine.prepare();
    }

    fn append(&mut self, append: Append) -> Outcome {
        self.engine.submit(append, 1, &mut self.out);
        self.outcome()
    }

    fn outcome(&mut self) -> Outcome {
        for _ in 0..100_000 {
            self.step();
            if let Some((_, outcome)) = self.out.outcomes.pop() {
                return outcome;
            }
            self.now.monotonic += Duration::from_micros(100);
        }
        panic!("no answer");
    }

    fn bounds(&self) -> PartitionBounds {
        self.engine.view().tables().bounds(P).unwrap()
    }
}

fn open(disk: &mut SimDisk, config: &LogConfig) -> (Engine<u64>, RecoveryReport) {
    let (limits, opening, report) = recover(disk, config, Now::default(), [[1; 16], [2; 16]]).unwrap();
    (Engine::new(limits, opening), report)
}

fn config() -> LogConfig {
    LogConfig {
        segment_bytes: 128 << 10,
        frame_bytes_max: 32 << 10,
        spare_segments: 1,
        compress_from_bytes: None,
        ..LogConfig::new("simulated")
    }
}

fn opened(id: PartitionId) -> Append {
    Append { partitions: vec![PartitionOp::Open(id)], ..Append::default() }
}

fn records(bytes: usize) -> Append {
    let mut builder = BatchBuilder::new(Codec::None);
    builder.push(1, None, Some(&vec![7; bytes]), &[]);
    let batches = Bytes::from(builder.finish().unwrap());
    Append { entries: vec![AppendEntry { partition: P, batches, record_count: 1, max_timestamp: 1 }], ..Append::default() }
}

#[test]
fn nothing_is_answered_or_shown_before_it_is_durable() {
    let mut bench = Bench::new(config(), 100);
    let delete = Append { meta: vec![MetaOp::Delete { key: b"k".to_vec() }], ..records(10) };
    bench.append(Append { meta: vec![MetaOp::Put { key: b"k".to_vec(), value: b"v".to_vec() }], ..Append::default() });
    bench.engine.submit(delete, 2, &mut bench.out);
    bench.step();
    assert!(bench.out.outcomes.is_empty());
    assert_eq!(bench.bounds().high_watermark, 0);
    assert!(bench.engine.view().meta().contains_key(&b"k"[..]), "a delete shows only when it is durable");
    assert!(matches!(bench.outcome(), Outcome::Committed { .. }));
    assert_eq!(bench.bounds().high_watermark, 1);
    assert!(bench.engine.view().meta().is_empty());
}

#[test]
fn a_frame_laid_out_ahead_holds_what_was_sent_and_later_appends_get_the_next_one() {
    let mut bench = Bench::new(config(), 100);
    let lsn_of = |outcome| match outcome {
        Outcome::Committed { lsn, .. } => lsn.0,
        other => panic!("{other:?}"),
    };
    for bytes in [10, 20_000, 10] {
        bench.engine.submit(records(bytes), 1, &mut bench.out);
        bench.step();
    }
    let mut lsns: Vec<u64> = (0..3).map(|_| lsn_of(bench.outcome())).collect();
    lsns.sort_unstable();
    assert_eq!((lsns[1], lsns[2]), (lsns[0] + 1, lsns[0] + 2), "the large one was closed while the first was being written");
    bench.crash();
    assert_eq!(bench.bounds().high_watermark, 3);
    assert!(bench.report.damage.is_empty() && !bench.report.torn_tail, "{:?}", bench.report);
}

/// Two large groups, each with the disk before the other is durable; the writes are held back.
fn two_frames_at_once() -> (Bench, Vec<(u64, DiskOp)>) {
    let mut bench = Bench::new(config(), 100);
    while !bench.disk.is_idle() {
        bench.now.monotonic += Duration::from_millis(1);
        bench.step();
    }
    bench.out.outcomes.clear();
    let mut held = Vec::new();
    for tag in [1, 2] {
        bench.engine.submit(records(20_000), tag, &mut bench.out);
        bench.engine.step(bench.now, &mut Vec::new(), &mut bench.out);
        held.append(&mut bench.out.ops);
        bench.engine.prepare();
        bench.engine.step(bench.now, &mut Vec::new(), &mut bench.out);
        held.append(&mut bench.out.ops);
    }
    assert_eq!(held.len(), 2, "the second is large enough to be written beside the first");
    (bench, held)
}

impl Bench {
    fn complete(&mut self, id: u64, result: Result<(), DiskError>) {
        let mut completions = vec![DiskCompletion { id, result }];
        self.engine.step(self.now, &mut completions, &mut self.out);
        self.out.ops.clear();
    }
}

#[test]
fn frames_written_at_once_are_answered_in_order() {
    let (mut bench, held) = two_frames_at_once();
    bench.engine.submit(records(20_000), 3, &mut bench.out);
    assert!(!bench.engine.prepare(), "a third one waits");
    bench.complete(held[1].0, Ok(()));
    assert!(bench.out.outcomes.is_empty() && bench.bounds().high_watermark == 0, "recovery would not get to it");
    bench.complete(held[0].0, Ok(()));
    let tags: Vec<u64> = bench.out.outcomes.iter().map(|(tag, _)| *tag).collect();
    assert_eq!((tags, bench.bounds().high_watermark), (vec![1, 2], 2));
}

#[test]
fn a_frame_behind_one_that_failed_is_refused_whatever_became_of_it() {
    let error = || DiskError::Closed { verb: DiskVerb::Write, file: FileId::Superblock };
    for first in [0, 1] {
        let (mut bench, held) = two_frames_at_once();
        bench.complete(held[first].0, if first == 0 { Err(error()) } else { Ok(()) });
        bench.complete(held[1 - first].0, if first == 0 { Ok(()) } else { Err(error()) });
        let refused = |outcome: &Outcome| matches!(outcome, Outcome::Refused(AppendError::LogFailed { .. }));
        assert_eq!(bench.out.outcomes.len(), 2);
        assert!(bench.out.outcomes.iter().all(|(_, outcome)| refused(outcome)), "{:?}", bench.out.outcomes);
        assert_eq!(bench.bounds().high_watermark, 0);
    }
}

#[test]
fn a_frame_before_one_that_failed_is_durable_all_the_same() {
    let (mut bench, held) = two_frames_at_once();
    bench.complete(held[1].0, Err(DiskError::Closed { verb: DiskVerb::Write, file: FileId::Superblock }));
    bench.complete(held[0].0, Ok(()));
    let [(2, Outcome::Refused(_)), (1, Outcome::Committed { .. })] = &bench.out.outcomes[..] else {
        panic!("{:?}", bench.out.outcomes)
    };
}

/// The first of two is torn, the second whole. Nothing was written since the recovery that gave it up when another one looks, and
/// the frame that it proves to have been durable is damaged meanwhile.
#[test]
fn a_whole_frame_behind_a_torn_one_is_given_up_for_good() {
    let (mut bench, held) = two_frames_at_once();
    let DiskOp::Write { file, at, data, bytes } = &held[1].1 else { panic!("{:?}", held[1]) };
    bench.disk.write_now(*file, *at, data, *bytes).unwrap();
    bench.crash();
    assert!(bench.report.torn_tail && bench.bounds().high_watermark == 0, "{:?}", bench.report);
    let DiskOp::Write { at: torn, .. } = &held[0].1 else { panic!("{:?}", held[0]) };
    bench.disk.write_now(*file, torn - BLOCK as u64, &AlignedBuf::zeroed(BLOCK), BLOCK).unwrap();
    bench.crash();
    assert_eq!(bench.report.damage.len(), 1, "{:?}", bench.report);
    assert!(bench.engine.view().tables().bounds(P).is_none_or(|bounds| bounds.high_watermark == 0), "{:?}", bench.report);
}

#[test]
fn a_full_disk_does_not_block_the_retention_that_frees_it() {
    let config = LogConfig { retention_bytes: Some(3 * (128 << 10)), ..config() };
    let mut bench = Bench::new(config, 3);
    for n in 0..200 {
        let outcome = bench.append(records(10_000));
        assert!(matches!(outcome, Outcome::Committed { .. }), "append {n}: {outcome:?}");
    }
    assert!(bench.bounds().start > 0);
}

#[test]
fn a_full_disk_refuses_and_takes_appends_again_when_there_is_space() {
    let mut bench = Bench::new(config(), 2);
    let mut stored = 0;
    let refused = loop {
        match bench.append(records(10_000)) {
            Outcome::Committed { base_offsets, .. } => {
                assert_eq!(base_offsets[0], stored);
                stored += 1;
            }
            other => break other,
        }
    };
    assert_eq!(refused, Outcome::Refused(AppendError::Full));
    bench.crash();
    assert_eq!(bench.bounds().high_watermark, stored);
    assert_eq!(bench.append(records(10_000)), Outcome::Refused(AppendError::Full));
    bench.disk.files_max = 9;
    bench.now.monotonic += Duration::from_secs(2);
    bench.step();
    bench.now.monotonic += Duration::from_secs(2);
    bench.step();
    match bench.append(records(10_000)) {
        Outcome::Committed { base_offsets, .. } => assert_eq!(base_offsets[0], stored, "no offset is skipped or given twice"),
        other => panic!("{other:?}"),
    }
}

/// A disk full of records; the log keeps so many spares while it can, and no job of the cold tier frees anything.
fn filled(spare_segments: u32) -> Bench {
    let mut bench = Bench::new(LogConfig { cold: Some(ColdConfig::default()), spare_segments, ..config() }, 5);
    bench.out.jobs.clear();
    for bytes in [10_000, 100] {
        while matches!(bench.append(records(bytes)), Outcome::Committed { .. }) {}
    }
    assert_eq!(bench.append(records(100)), Outcome::Refused(AppendError::Full));
    assert_eq!(bench.append(opened(PartitionId(6))), Outcome::Refused(AppendError::Full));
    bench
}

fn kept_otherwise(class: u32) -> Append {
    Append { partitions: vec![PartitionOp::SetClass(P, ClassId(class))], ..Append::default() }
}

#[test]
fn a_full_disk_takes_what_lets_go_of_something_and_keeps_room_of_its_own() {
    // Half of the log's own room, and with a spare of its own the rest of that room and the spare as well.
    for (spare_segments, expected) in [(1, 1..=2), (2, 25..=32)] {
        let mut bench = filled(spare_segments);
        let is_taken = |class: &u32| matches!(bench.append(kept_otherwise(*class)), Outcome::Committed { .. });
        let taken = (1..1000).take_while(is_taken).count();
        assert!(expected.contains(&taken), "{spare_segments} spares, {taken} changes");
        assert_eq!(bench.append(kept_otherwise(2000)), Outcome::Refused(AppendError::Full));
        assert_eq!(bench.engine.volume_found([1; 16], "a"), Ok(0));
        for _ in 0..1000 {
            bench.step();
            bench.now.monotonic += Duration::from_micros(100);
        }
        assert!(bench.engine.volumes_are_written(), "the log can still note things of its own");
        bench.crash();
        assert_eq!(bench.engine.view().tables().partitions.get(P).unwrap().class, ClassId(taken as u32));
    }
}

/// Fails zero-fills for so long while records come; what an append gets then.
fn appended_while_zero_fills_fail(seconds: u64) -> (Bench, Outcome) {
    let mut bench = Bench::new(config(), 100);
    bench.disk.faults.zero_error = 1.0;
    while matches!(bench.append(records(10_000)), Outcome::Committed { .. }) {}
    for _ in 0..10 * seconds {
        bench.now.monotonic += Duration::from_millis(100);
        bench.step();
    }
    let outcome = bench.append(records(10_000));
    (bench, outcome)
}

#[test]
fn a_zero_fill_that_fails_for_a_moment_is_tried_again() {
    let (mut bench, refused) = appended_while_zero_fills_fail(2);
    assert_eq!(refused, Outcome::Refused(AppendError::Full));
    bench.disk.faults.zero_error = 0.0;
    for _ in 0..20 {
        bench.now.monotonic += Duration::from_millis(100);
        bench.step();
    }
    assert!(matches!(bench.append(records(10_000)), Outcome::Committed { .. }));
}

#[test]
fn a_disk_that_makes_no_file_any_more_is_not_called_full() {
    let (_, refused) = appended_while_zero_fills_fail(20);
    assert!(
        matches!(&refused, Outcome::Refused(AppendError::LogFailed { reason }) if reason.contains("zero-fill")),
        "{refused:?}"
    );
}

#[test]
fn opening_changes_no_segment() {
    let mut bench = Bench::new(config(), 100);
    (0..30).for_each(|_| drop(bench.append(records(10_000))));
    bench.disk.power_cut();
    let segments = |disk: &mut SimDisk| {
        let mut contents = Vec::new();
        for file in disk.list_segments().unwrap() {
            let bytes = disk.size(FileId::Segment(file)).unwrap().unwrap() as usize;
            let mut buf = crate::disk::AlignedBuf::zeroed(bytes);
            disk.read(FileId::Segment(file), 0, &mut buf, bytes).unwrap();
            contents.push((file, crc32c::crc32c(&buf[..bytes])));
        }
        contents
    };
    let before = segments(&mut bench.disk);
    let (first, report) = open(&mut bench.disk, &bench.config);
    assert_eq!(segments(&mut bench.disk), before);
    let (second, again) = open(&mut bench.disk, &bench.config);
    assert_eq!((report.last_lsn, report.frames), (again.last_lsn, again.frames));
    assert_eq!(first.view().tables().bounds(P), second.view().tables().bounds(P));
}

#[test]
fn a_dropped_partition_stays_dropped() {
    let mut bench = Bench::new(config(), 100);
    bench.append(records(10));
    bench.append(Append { partitions: vec![PartitionOp::Drop(P)], ..Append::default() });
    for _ in 0..2 {
        bench.crash();
        assert_eq!(bench.engine.view().tables().bounds(P), None);
        assert_eq!(bench.append(records(10)), Outcome::Refused(AppendError::UnknownPartition(P)));
    }
}

#[test]
fn the_last_frame_becomes_provable_when_the_log_is_idle() {
    let mut bench = Bench::new(config(), 100);
    bench.append(records(10));
    let wake = bench.engine.next_wake().expect("the core asks to be called");
    bench.now.monotonic = wake;
    bench.step();
    bench.now.monotonic += Duration::from_secs(1);
    bench.step();
    assert_eq!(bench.engine.view().stats_mut().watermarks, 1);
    assert_eq!(bench.engine.next_wake(), None, "once is enough");
}

/// Collects errors that are logged on this thread.
#[derive(Default)]
struct Errors(std::sync::Arc<std::sync::Mutex<Vec<String>>>);

impl tracing::Subscriber for Errors {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::ERROR
    }

    fn event(&self, event: &tracing::Event<'_>) {
        let mut text = String::new();
        event.record(&mut |field: &tracing::field::Field, value: &dyn std::fmt::Debug| text += &format!("{field}={value:?} "));
        self.0.lock().unwrap().push(text);
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn a_fenced_log_says_so_once_and_why() {
    // While there is only one subscriber, a test beside this one that meets an error first decides for all threads that nobody hears it.
    let _second = tracing::Dispatch::new(Errors::default());
    let errors = Errors::default();
    let said = std::sync::Arc::clone(&errors.0);
    tracing::subscriber::with_default(errors, || {
        let mut bench = Bench::new(config(), 100);
        bench.disk.faults.write_error = 1.0;
        bench.append(records(10));
        bench.append(records(10));
    });
    let said = said.lock().unwrap();
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("takes no more") && said[0].contains("Input/output error"), "{said:?}");
}

#[test]
fn a_failed_write_fences_the_log_for_good() {
    let mut bench = Bench::new(config(), 100);
    bench.disk.faults.write_error = 1.0;
    assert!(matches!(bench.append(records(10)), Outcome::Refused(AppendError::LogFailed { .. })));
    bench.disk.faults.write_error = 0.0;
    assert!(matches!(bench.append(records(10)), Outcome::Refused(AppendError::LogFailed { .. })), "never tried again");
    for _ in 0..10 {
        bench.now.monotonic += Duration::from_millis(1);
        bench.step();
    }
    let refused = recover(&mut bench.disk, &bench.config, Now::default(), [[1; 16], [2; 16]]).map(|_| ());
    assert!(matches!(refused, Err(crate::report::OpenError::Fenced)), "{refused:?}");
}

/// Keeps two segments, and is pinned with more than that in it.
fn pinned(files_max: usize) -> (Bench, Pinned) {
    let mut bench = Bench::new(LogConfig { retention_bytes: Some(256 << 10), ..config() }, files_max);
    append_until(&mut bench, |bench| bench.bounds().start > 0);
    let pinned = bench.engine.pin(bench.now).unwrap();
    let first = bench.engine.view().tables().first_sequence();
    assert_eq!(pinned.segments.iter().map(|segment| segment.sequence).min(), Some(u64::from(first)));
    assert!(bench.engine.pin(bench.now).is_err(), "one at a time");
    (bench, pinned)
}

fn append_until(bench: &mut Bench, done: impl Fn(&Bench) -> bool) {
    for _ in 0..1000 {
        if done(bench) {
            return;
        }
        assert!(matches!(bench.append(records(20_000)), Outcome::Committed { .. }));
    }
    panic!("it does not come to that");
}

fn oldest(bench: &Bench) -> u64 {
    u64::from(bench.engine.view().tables().first_sequence())
}

#[test]
fn a_pin_holds_segments_until_they_are_copied_one_after_another() {
    let (mut bench, pinned) = pinned(100);
    let first = pinned.segments[0].sequence;
    let held = bench.bounds().start;
    for _ in 0..20 {
        bench.append(records(20_000));
    }
    assert_eq!((oldest(&bench), bench.bounds().start), (first, held));
    assert_eq!(bench.engine.pin_done(bench.now, pinned.token, PinDone::Nothing), Ok(false));
    assert_eq!(bench.engine.pin_done(bench.now, pinned.token, PinDone::Wal(first)), Ok(false));
    append_until(&mut bench, |bench| oldest(bench) == first + 1);
    for _ in 0..20 {
        bench.append(records(20_000));
    }
    assert_eq!(oldest(&bench), first + 1, "the next one is still to be copied");
    assert_eq!(bench.engine.pin_done(bench.now, pinned.token, PinDone::All), Ok(false));
    append_until(&mut bench, |bench| oldest(bench) > first + 3);
    assert_eq!(bench.engine.pin_done(bench.now, pinned.token, PinDone::Nothing), Err(PinLost::Unknown));
    bench.engine.pin(bench.now).unwrap();
}

#[test]
fn a_backup_that_is_not_heard_of_holds_nothing_for_ever() {
    let (mut bench, pinned) = pinned(100);
    let first = pinned.segments[0].sequence;
    bench.now.monotonic += PIN_LEASE / 2;
    bench.step();
    bench.engine.pin_done(bench.now, pinned.token, PinDone::Nothing).unwrap();
    bench.now.monotonic += PIN_LEASE - Duration::from_millis(1);
    bench.append(records(20_000));
    assert_eq!(oldest(&bench), first, "it was heard of");
    bench.now.monotonic += Duration::from_secs(1);
    append_until(&mut bench, |bench| oldest(bench) > first);
    assert_eq!(bench.engine.pin_done(bench.now, pinned.token, PinDone::Nothing), Err(PinLost::Silent));
}

#[test]
fn a_pin_gives_way_before_an_append_is_refused_for_want_of_space() {
    let (mut bench, pinned) = pinned(7);
    let first = pinned.segments[0].sequence;
    // Every append is taken, though there is no room for both.
    append_until(&mut bench, |bench| oldest(bench) > first);
    assert_eq!(bench.engine.pin_done(bench.now, pinned.token, PinDone::Nothing), Err(PinLost::DiskFull));
}

#[test]
fn a_pin_gives_way_when_more_is_overdue_than_it_holds() {
    let (mut bench, pinned) = pinned(1000);
    let first = pinned.segments[0].sequence;
    append_until(&mut bench, |bench| oldest(bench) > first);
    let segments = bench.engine.view().tables().segments.len();
    assert!(segments <= 10, "{segments}");
    assert_eq!(bench.engine.pin_done(bench.now, pinned.token, PinDone::Nothing), Err(PinLost::WalFull));
}

#[test]
fn a_volume_let_go_of_for_good_is_not_taken_back_meanwhile_and_no_job_delays_that() {
    let config = LogConfig { cold: Some(ColdConfig::default()), ..config() };
    let mut bench = Bench::new(config, 100);
    let written = |bench: &mut Bench| {
        for _ in 0..1000 {
            bench.step();
            bench.now.monotonic += Duration::from_micros(100);
        }
        assert!(bench.engine.volumes_are_written());
    };
    for (number, name) in [(0, "a"), (1, "b")] {
        assert_eq!(bench.engine.volume_found([number; 16], name), Ok(number));
    }
    written(&mut bench);
    assert_eq!(bench.out.jobs.len(), 1, "one was handed out and is never done");
    bench.engine.volume_drain(1, true).unwrap();
    bench.step();
    bench.engine.volume_forget(1, false).unwrap();
    assert!(!bench.engine.volumes_are_written());
    assert_eq!(bench.engine.volume_found([1; 16], "b"), Err(VolumeError::Gone(1)));
    for _ in 0..1000 {
        // What was written before it was let go of does not bring it back.
        assert_eq!(bench.engine.volume_found([1; 16], "b"), Err(VolumeError::Gone(1)));
        bench.step();
        bench.now.monotonic += Duration::from_micros(10);
    }
    written(&mut bench);
    bench.crash();
    assert_eq!(bench.engine.volume_found([1; 16], "b"), Err(VolumeError::Gone(1)));
}

fn fails_to_write() -> Result<Done, JobError> {
    Err(JobError::Disk(DiskError::from_errno(DiskVerb::Write, FileId::Cold(1), rustix::io::Errno::ROFS)))
}

/// A bench whose first job is answered with `result`.
fn after_a_job(result: Result<Done, JobError>, write_error: f64) -> Bench {
    let cold = ColdConfig { wal_bytes_max: 8 * config().segment_bytes, ..ColdConfig::default() };
    let mut bench = Bench::new(LogConfig { cold: Some(cold), ..config() }, 100);
    assert!(bench.out.jobs.pop().is_some(), "a job is handed out");
    bench.disk.faults.write_error = write_error;
    bench.engine.job_done(result);
    for _ in 0..100 {
        bench.step();
        bench.now.monotonic += Duration::from_micros(100);
    }
    bench
}

#[test]
fn a_disk_that_takes_no_writes_of_the_sorter_fences_the_log_without_an_append() {
    assert!(after_a_job(fails_to_write(), 1.0).engine.failed().is_some());
    assert!(after_a_job(fails_to_write(), 0.0).engine.failed().is_none(), "the log's own disk is fine");
    let full = || Err(JobError::Disk(DiskError::from_errno(DiskVerb::Write, FileId::Cold(1), rustix::io::Errno::NOSPC)));
    assert!(after_a_job(full(), 1.0).engine.failed().is_none(), "there may be room again");
}

#[test]
fn appends_that_wait_for_a_sorter_that_fails_are_no_secret() {
    let mut bench = after_a_job(fails_to_write(), 0.0);
    let stalled = |bench: &Bench| bench.engine.view().stats_mut().stalled.clone();
    assert_eq!(stalled(&bench), None, "there is room yet");
    for ticket in 0..5000 {
        bench.engine.submit(records(4000), ticket, &mut bench.out);
        bench.step();
        bench.now.monotonic += Duration::from_millis(1);
        if bench.out.jobs.pop().is_some() {
            bench.engine.job_done(fails_to_write());
        }
    }
    let reason = stalled(&bench).unwrap();
    assert!(reason.contains("cold/00000001.cold"), "{reason}");
    let answered = bench.out.outcomes.len();
    assert!(answered < 5000, "appends wait");
}
