//! The promise of `FORMAT.md`: what an older program has written opens, with all it holds; what a newer one has written is refused
//! by name where this one cannot read it.

mod support;
#[path = "support/volume.rs"]
mod volume;

use std::fmt::Write;
use std::path::Path;

use bytes::Bytes;
use support::*;
use volume::*;
use weir_batch::{BatchBuilder, Codec, RecordBatch};
use weir_storage::format::BLOCK;
use weir_storage::format::frame::{self, FrameKind, Unknown};
use weir_storage::format::superblock::FORMAT;
use weir_storage::*;

/// Partitions that the fixtures know; 3 was dropped.
const PARTITIONS: [PartitionId; 4] = [P, PartitionId(2), PartitionId(3), PartitionId(300)];
const LANES: [ProducerKey; 3] = [ProducerKey { id: 7, lane: 0 }, ProducerKey { id: 7, lane: 1 }, ProducerKey { id: 9, lane: 0 }];

/// All that a volume holds, as text that is the same for the same contents.
fn contents(log: &LogHandle) -> String {
    let mut text = String::new();
    for partition in PARTITIONS {
        match log.bounds(partition) {
            None => writeln!(text, "partition {partition} is not open").unwrap(),
            Some(bounds) => {
                writeln!(text, "partition {partition}: {}..{}", bounds.start, bounds.high_watermark).unwrap();
                batches(log, partition, bounds, &mut text);
            }
        }
    }
    for (key, value) in log.meta_scan(b"") {
        writeln!(text, "meta {} = {}", key.escape_ascii(), value.escape_ascii()).unwrap();
    }
    for key in LANES {
        writeln!(text, "lane {}/{}: {:?}", key.id, key.lane, log.producer(key)).unwrap();
    }
    text
}

fn batches(log: &LogHandle, partition: PartitionId, bounds: PartitionBounds, text: &mut String) {
    let mut offset = bounds.start;
    while offset < bounds.high_watermark {
        match read(log, partition, offset, 64 << 10) {
            Err(ReadError::Busy) => {}
            Err(ReadError::Gap { from, to }) => {
                writeln!(text, "  gap {from}..{to}").unwrap();
                offset = to;
            }
            Err(error) => panic!("partition {partition} at {offset}: {error}"),
            Ok(chunk) => {
                for stored in &chunk.batches {
                    let batch = RecordBatch::verify(stored).unwrap();
                    let records = batch.records(&mut Vec::new()).unwrap().filter(|record| record.is_ok()).count();
                    let (crc, bytes) = (batch.header().crc, stored.len());
                    let (from, to, at) = (batch.base_offset(), batch.next_offset(), batch.max_timestamp());
                    writeln!(text, "  batch {from}..{to} at {at}: {records} records, {bytes} bytes, crc {crc:08x}").unwrap();
                }
                offset = chunk.next_offset;
            }
        }
    }
}

fn findings(report: &RecoveryReport) -> String {
    let RecoveryReport { clean, torn_tail, gaps, meta_damaged, partitions, producers, .. } = report;
    let damaged = report.damage.len();
    let mut text = format!("clean {clean}, torn tail {torn_tail}, {damaged} damaged, metadata damaged {meta_damaged}\n");
    writeln!(text, "{partitions} partitions, {producers} lanes").unwrap();
    gaps.iter().for_each(|gap| writeln!(text, "gap of {}: {}..{}", gap.partition, gap.from, gap.to).unwrap());
    text
}

fn config(dir: &Path) -> LogConfig {
    LogConfig {
        segment_bytes: 128 << 10,
        frame_bytes_max: 32 << 10,
        spare_segments: 1,
        compress_from_bytes: Some(6000),
        retention_bytes: Some(3 * (128 << 10)),
        node_id: Some([0x11; 16]),
        ..LogConfig::new(dir)
    }
}

/// With a cold tier that has something to do.
fn config_1_1(dir: &Path) -> LogConfig {
    let cold = ColdConfig { sort_bytes: 128 << 10, sort_memory_bytes: 48 << 10, merge_fan_in: 3, ..ColdConfig::default() };
    LogConfig { cold: Some(cold), retention_bytes: None, ..config(dir) }
}

/// With a cold tier that leaves everything as it is, so that what is in it can be told.
fn calm_1_1(dir: &Path) -> LogConfig {
    let cold = ColdConfig {
        sort_bytes: 1 << 40,
        burst_bytes: 1 << 40,
        wal_bytes_max: 1 << 40,
        sort_age: std::time::Duration::from_secs(1 << 40),
        merge_fan_in: 16,
        ..ColdConfig::default()
    };
    LogConfig { cold: Some(cold), ..config_1_1(dir) }
}

#[test]
fn volumes_of_format_1_0_open_with_all_they_hold() {
    open_with_all_they_hold(&VARIANTS, config);
}

#[test]
fn volumes_of_format_1_1_open_with_all_they_hold() {
    open_with_all_they_hold(&VARIANTS_1_1, calm_1_1);
}

fn open_with_all_they_hold(variants: &[&str], config: fn(&Path) -> LogConfig) {
    for &variant in variants {
        let expected = std::fs::read_to_string(fixtures().join(variant).join("expected.txt")).unwrap();
        let dir = tempfile::tempdir().unwrap();
        unpack(variant, dir.path());
        let (log, report) = Log::open(config(dir.path())).unwrap();
        let found = findings(&report) + &contents(&log.handle());
        found.lines().zip(expected.lines()).for_each(|(found, expected)| assert_eq!(found, expected, "{variant}"));
        assert_eq!(found.len(), expected.len(), "{variant}");
        // A lane's latest batches are known, and every partition goes on where it ended.
        let lane = log.handle().producer(LANES[0]).unwrap();
        let mark = ProducerMark { base_sequence: lane.next_sequence - 2, ..mark(0, 2, lane.epoch) };
        let again = log.handle().append_blocking(Append { mark: Some(mark), ..append(P, &[b"a", b"b"]) });
        let remembered = matches!(again, Outcome::Duplicate { base_offset, record_count: 2 } if base_offset > 0);
        assert!(remembered, "{variant}: {again:?}");
        let next = log.handle().bounds(P).unwrap().high_watermark;
        assert_eq!(offset(log.handle().append_blocking(append(P, &[b"x"]))), next);
        log.shutdown().unwrap();
        let (log, report) = Log::open(config(dir.path())).unwrap();
        assert!(report.clean && !report.torn_tail, "{variant}: {report:?}");
        assert_eq!(log.handle().bounds(P).unwrap().high_watermark, next + 1, "{variant}");
    }
}

#[test]
fn the_fixtures_hold_every_kind_of_frame() {
    let dir = tempfile::tempdir().unwrap();
    unpack("closed", dir.path());
    let frames = frames(dir.path());
    for kind in [FrameKind::Data, FrameKind::Watermark, FrameKind::SnapshotEnd] {
        assert!(frames.iter().any(|placed| placed.header.kind == kind), "{kind:?}");
    }
    for zstd in [true, false] {
        let data = |placed: &Placed| placed.header.kind == FrameKind::Data && placed.header.zstd == zstd;
        assert!(frames.iter().any(data), "zstd {zstd}");
    }
    assert!(frames.iter().any(|placed| placed.header.entries > 3) && frames[0].header.segment_sequence > 1);
}

fn open(dir: &Path) -> Result<RecoveryReport, OpenError> {
    let (log, report) = Log::open(config(dir))?;
    log.shutdown().map(|()| report).map_err(|error| OpenError::BadConfig(error.to_string()))
}

/// The closed fixture with one change.
fn changed(change: impl FnOnce(&Path)) -> Result<RecoveryReport, OpenError> {
    let dir = tempfile::tempdir().unwrap();
    unpack("closed", dir.path());
    change(dir.path());
    open(dir.path())
}

fn superblock_versions(dir: &Path, major: u16, minor: u16) {
    edit(&dir.join("superblock"), |bytes| {
        for slot in bytes.chunks_exact_mut(BLOCK) {
            slot[12..14].copy_from_slice(&major.to_le_bytes());
            slot[14..16].copy_from_slice(&minor.to_le_bytes());
            slot[112..116].fill(0xab);
            reseal_block(slot);
        }
    });
}

#[test]
fn what_a_newer_program_keeps_in_reserved_bytes_is_ignored() {
    let report = changed(|dir| {
        superblock_versions(dir, 1, 0);
        let last = frames(dir).pop().unwrap();
        edit(&last.path, |bytes| {
            // Reserved in the segment's header, in the frame's, in the superblock's: unknown flags.
            bytes[2000] = 7;
            reseal_block(&mut bytes[..BLOCK]);
            bytes[last.at + 112] = 7;
            reseal_frame(&mut bytes[last.at..]);
        });
    })
    .unwrap();
    assert!(report.clean && report.headers_repaired == 0 && report.damage.is_empty(), "{report:?}");
}

#[test]
fn a_newer_version_is_refused_by_name() {
    let error = changed(|dir| superblock_versions(dir, 2, 0)).unwrap_err();
    assert!(error.to_string().contains("format 2.0"), "{error}");
    let error = changed(|dir| superblock_versions(dir, FORMAT.major, FORMAT.minor + 1)).unwrap_err();
    assert!(matches!(error, OpenError::NewerFormat { supported: FORMAT, .. }), "{error}");
    let error = changed(|dir| {
        edit(&frames(dir).pop().unwrap().path, |bytes| {
            bytes[12] = 2;
            reseal_block(&mut bytes[..BLOCK]);
        });
    })
    .unwrap_err();
    assert!(matches!(error, OpenError::NewerSegment { found: 2, supported: 1, .. }), "{error}");
    assert!(error.to_string().contains("version 2") && error.to_string().contains("newer program"), "{error}");
}

#[test]
fn a_frame_of_a_newer_program_is_refused_by_name_and_nothing_is_written() {
    type Change = fn(&mut [u8]);
    let changes: [(Change, Unknown); 3] = [
        (|frame| frame[10] = 2, Unknown::Version(2)),
        (|frame| frame[8] = 9, Unknown::Kind(9)),
        (|frame| frame[frame::HEADER_BYTES] = 200, Unknown::EntryKind(200)),
    ];
    for (change, expected) in changes {
        // In the newest segment's snapshot, in a frame that is replayed, in one of which only the directory is read.
        for pick in [0, 1, 2] {
            let dir = tempfile::tempdir().unwrap();
            unpack("closed", dir.path());
            let all = frames(dir.path());
            let newest = all.last().unwrap().header.segment_sequence;
            let chosen = all.iter().rfind(|placed| match pick {
                0 => placed.header.kind == FrameKind::SnapshotEnd && placed.header.segment_sequence == newest,
                1 => placed.header.kind == FrameKind::Data && placed.header.segment_sequence == newest,
                _ => placed.header.kind == FrameKind::Data && placed.header.segment_sequence < newest,
            });
            let frame = chosen.unwrap();
            edit(&frame.path, |bytes| {
                change(&mut bytes[frame.at..]);
                reseal_frame(&mut bytes[frame.at..]);
            });
            let before = std::fs::read(dir.path().join("superblock")).unwrap();
            match open(dir.path()) {
                Err(error @ OpenError::NewerFrame { found, at, .. }) => {
                    assert_eq!((found, at), (expected, frame.at as u64));
                    assert!(error.to_string().contains(&expected.to_string()), "{error}");
                }
                other => panic!("{expected}, {pick}: {other:?}"),
            }
            assert!(std::fs::read(dir.path().join("superblock")).unwrap() == before, "a refused volume is left as it was");
        }
    }
}

/// A batch with keys, headers and a record without a value.
fn rich_batch(n: i64, codec: Codec) -> AppendEntry {
    let mut builder = BatchBuilder::new(codec);
    let key = format!("sensor-{}", n % 5);
    for i in 0..4 {
        let value = format!("{{\"n\":{n},\"i\":{i},\"pressure_kpa\":{}}}", (n * 7919 + i * 104_729) % 1000);
        let headers: [(&[u8], Option<&[u8]>); 2] = [(b"gate", Some(b"north")), (b"empty", None)];
        builder.push(n * 1000 + i, Some(key.as_bytes()), Some(value.as_bytes()), &headers);
    }
    builder.push(n * 1000 + 4, Some(key.as_bytes()), None, &[]);
    let batches = Bytes::from(builder.finish().unwrap());
    AppendEntry { partition: P, batches, record_count: 5, max_timestamp: n * 1000 + 4 }
}

fn lane_mark(key: ProducerKey, base_sequence: u64) -> ProducerMark {
    ProducerMark { key, epoch: 1, base_sequence, sequence_count: 2, partition: P }
}

fn put(key: String, value: &str) -> MetaOp {
    MetaOp::Put { key: key.into_bytes(), value: value.as_bytes().to_vec() }
}

/// Writes `rounds` rounds of everything the log takes. `large` values do not shrink, so that segments fill.
fn write(log: &LogHandle, rounds: std::ops::Range<i64>) {
    for n in rounds {
        let large: String =
            (0..700).map(|i| format!("{:x}", (((i * 2_654_435_761_i64) ^ n.wrapping_mul(40_503)) >> 7) & 0xf)).collect();
        let codec = if n % 3 == 0 { Codec::Zstd(3) } else { Codec::None };
        let second = entry(PartitionId(2), n * 1000, &[large.as_bytes(), b"second"]);
        let entries = vec![rich_batch(n, codec), rich_batch(n + 1, Codec::None), second];
        let mark = Some(lane_mark(LANES[(n % 3 != 0) as usize], 2 * if n % 3 == 0 { n / 3 } else { n - n / 3 - 1 } as u64));
        let meta = vec![put(format!("position/{}", n % 4), &n.to_string()), MetaOp::Delete { key: b"position/3".to_vec() }];
        offset(log.append_blocking(Append { entries, mark, meta, partitions: Vec::new() }));
        if n % 10 == 0 {
            let wide: Vec<AppendEntry> = (0..8).map(|_| entry(PartitionId(300), n, &[large.as_bytes(); 2])).collect();
            offset(log.append_blocking(Append { entries: wide, ..Append::default() }));
        }
    }
}

/// How the fixtures were made; see the README beside them. Overwrites them: they are what today's program writes.
#[test]
#[ignore = "writes the fixtures of the current format version"]
fn make_the_fixtures() {
    let base = tempfile::tempdir().unwrap();
    let closed = base.path().join("closed");
    let (log, _) = Log::open(config(&closed)).unwrap();
    let partitions = PARTITIONS.map(PartitionOp::Open).to_vec();
    let meta = vec![put("topic/a".into(), "1"), put("topic/b".into(), "2"), put("gone".into(), "x")];
    log.handle().append_blocking(Append { partitions, meta, ..Append::default() });
    log.handle().append_blocking(append(PartitionId(3), &[b"dropped soon"]));
    write(&log.handle(), 0..70);
    let meta = vec![MetaOp::Delete { key: b"gone".to_vec() }];
    log.handle().append_blocking(Append { partitions: vec![PartitionOp::Drop(PartitionId(3))], meta, ..Append::default() });
    log.shutdown().unwrap();
    let (log, _) = Log::open(config(&closed)).unwrap();
    write(&log.handle(), 70..90);
    log.shutdown().unwrap();

    let (unclean, crashed) = (base.path().join("unclean"), base.path().join("crashed"));
    copy(&closed, &crashed);
    let (log, _) = Log::open(config(&crashed)).unwrap();
    write(&log.handle(), 90..95);
    copy(&crashed, &unclean);
    log.shutdown().unwrap();
    tear_tail(&unclean);

    let gap = base.path().join("gap");
    copy(&closed, &gap);
    let data = data_frames(&gap);
    let newest = frames(&gap).last().unwrap().header.segment_sequence;
    let in_newest: Vec<&Placed> = data.iter().filter(|placed| placed.header.segment_sequence == newest).collect();
    flip(&in_newest[1].path, in_newest[1].at + 200);
    let payload = in_newest[3];
    flip(&payload.path, payload.at + payload.header.header_bytes() + 10);
    let (log, report) = Log::open(config(&gap)).unwrap();
    assert_eq!(report.damage.len(), 2, "{report:?}");
    let on = |key| ProducerMark { base_sequence: log.handle().producer(key).unwrap().next_sequence, ..lane_mark(key, 0) };
    offset(log.handle().append_blocking(Append { mark: Some(on(LANES[0])), ..append(P, &[b"after", b"damage"]) }));
    log.shutdown().unwrap();

    for (variant, dir) in VARIANTS.iter().zip([&closed, &unclean, &gap]) {
        pack(dir, variant);
        let (log, report) = Log::open(config(dir)).unwrap();
        std::fs::write(fixtures().join(variant).join("expected.txt"), findings(&report) + &contents(&log.handle())).unwrap();
        log.shutdown().unwrap();
    }
}

#[test]
fn the_fixtures_of_format_1_1_have_cold_segments_of_two_classes_and_a_raised_start() {
    let dir = tempfile::tempdir().unwrap();
    unpack(VARIANTS_1_1[0], dir.path());
    let report = weir_storage::check::check(dir.path(), weir_storage::check::CheckOptions::default(), &|_| {}).unwrap();
    assert!(report.is_clean() && report.cold_segments > 1 && report.cold_records > 100, "{report:?}");
    let classes: std::collections::BTreeSet<u8> = files(dir.path())
        .into_iter()
        .filter(|(_, name)| name.ends_with(".cold"))
        .map(|(path, _)| std::fs::read(path).unwrap()[36])
        .collect();
    assert_eq!(classes.into_iter().collect::<Vec<_>>(), [0, 1]);
    let (log, _) = Log::open(calm_1_1(dir.path())).unwrap();
    assert_eq!(log.handle().bounds(P).unwrap().start, 50);
    assert_eq!(log.handle().volumes().len(), 1);
    log.shutdown().unwrap();
}

/// The same for format 1.1: with a cold tier.
#[test]
#[ignore = "writes the fixtures of the current format version"]
fn make_the_fixtures_of_format_1_1() {
    let base = tempfile::tempdir().unwrap();
    let (closed, unclean) = (base.path().join("closed"), base.path().join("unclean"));
    std::fs::create_dir_all(&closed).unwrap();
    let (log, _) = Log::open(config_1_1(&closed)).unwrap();
    let mut partitions = PARTITIONS.map(PartitionOp::Open).to_vec();
    partitions.push(PartitionOp::SetClass(PartitionId(2), ClassId(1)));
    log.handle().append_blocking(Append { partitions, ..Append::default() });
    write(&log.handle(), 0..60);
    let sorted = || files(&closed).iter().filter(|(_, name)| name.ends_with(".cold")).count();
    for _ in 0..200 {
        if sorted() > 1 && log.handle().stats().recycled > 0 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
        log.handle().append_blocking(append(PartitionId(3), &[b"time passes"]));
    }
    assert!(sorted() > 1);
    log.handle().append_blocking(Append { partitions: vec![PartitionOp::RaiseStart(P, 50)], ..Append::default() });
    write(&log.handle(), 60..63);
    log.shutdown().unwrap();
    let crashed = base.path().join("crashed");
    copy(&closed, &crashed);
    let (log, _) = Log::open(calm_1_1(&crashed)).unwrap();
    write(&log.handle(), 63..65);
    copy(&crashed, &unclean);
    log.shutdown().unwrap();
    for (variant, dir) in VARIANTS_1_1.iter().zip([&closed, &unclean]) {
        pack(dir, variant);
        let (log, report) = Log::open(calm_1_1(dir)).unwrap();
        std::fs::write(fixtures().join(variant).join("expected.txt"), findings(&report) + &contents(&log.handle())).unwrap();
        log.shutdown().unwrap();
    }
}

/// Leaves the first block of a frame that was being written when the power went.
fn tear_tail(dir: &Path) {
    let last = frames(dir).pop().unwrap();
    let payload = vec![b'x'; 3 * BLOCK];
    let header = frame::FrameHeader {
        kind: FrameKind::Data,
        zstd: false,
        lsn: last.header.lsn + 1,
        durable_lsn: last.header.lsn,
        prev_crc: last.header.header_crc,
        entries: 0,
        payload_bytes: payload.len() as u32,
        payload_raw_bytes: payload.len() as u32,
        payload_crc: crc32c::crc32c(&payload),
        block: last.header.block + (last.header.frame_bytes() / BLOCK) as u32,
        ..last.header
    };
    let mut torn = vec![0; header.frame_bytes()];
    torn[frame::HEADER_BYTES..frame::HEADER_BYTES + payload.len()].copy_from_slice(&payload);
    frame::seal(&header, &mut torn);
    edit(&last.path, |bytes| {
        let at = last.at + last.header.frame_bytes();
        bytes[at..at + BLOCK].copy_from_slice(&torn[..BLOCK]);
    });
}
