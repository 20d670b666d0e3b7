//! What the storage side costs on one core, piece by piece: the sums behind the storage profile. `cargo bench -p weir-bench
//! --bench storage`. All but `recovery` is memory only; `recovery` reads a prepared segment from the temporary directory.

use std::sync::mpsc::sync_channel;
use std::time::Duration;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use weir_batch::RecordBatch;
use weir_bench::{Load, Payload};
use weir_storage::core::Now;
use weir_storage::disk::{self, AlignedBuf};
use weir_storage::format::frame::{Entry, EntryKind, FrameHeader, FrameKind, frame_bytes, header_bytes, seal};
use weir_storage::recovery::recover;
use weir_storage::table::PartitionMap;
use weir_storage::view::{Partition, Position, SegmentPlace, Tables};
use weir_storage::{
    Append, AppendEntry, BackendChoice, Log, LogConfig, LogHandle, Outcome, PartitionId, PartitionOp, ReadRequest,
};

/// One batch as the load generator builds it.
fn batch(records: u32, record_bytes: usize) -> Bytes {
    let load = Load {
        topic: String::new(),
        partitions: 1,
        records: None,
        seconds: Duration::ZERO,
        record_bytes,
        batch_records: records,
        connections: 1,
        producers: 1,
        in_flight: 1,
        rate: None,
        zstd: false,
    };
    Payload::build(&load, 1).expect("a valid load").next_batch().0
}

/// Lays out and seals frames of `entries` batches: the copy, the CRC over the copy, directory and header.
fn frame(c: &mut Criterion) {
    let mut group = c.benchmark_group("frame");
    for (entries, batch) in [(256, batch(1, 1024)), (4, batch(256, 1024))] {
        let payload_bytes = entries * batch.len();
        let mut buf = AlignedBuf::zeroed(frame_bytes(entries, payload_bytes));
        group.throughput(Throughput::Bytes(payload_bytes as u64));
        group.bench_function(format!("build {entries} x {} KiB", batch.len() >> 10), |b| {
            b.iter(|| build(&mut buf, entries, &batch))
        });
    }
    group.finish();
}

fn build(buf: &mut AlignedBuf, entries: usize, batch: &[u8]) -> u32 {
    let start = header_bytes(entries);
    let payload_bytes = entries * batch.len();
    for n in 0..entries {
        let byte_start = n * batch.len();
        let entry = Entry {
            base_offset: n as i64,
            record_count: 1,
            byte_start: byte_start as u32,
            byte_count: batch.len() as u32,
            ..Entry::of(EntryKind::Batches, 1)
        };
        entry.encode(&mut buf[header_bytes(n)..]);
        let copy = &mut buf[start + byte_start..start + byte_start + batch.len()];
        copy.copy_from_slice(batch);
        weir_batch::patch_base_offset(copy, n as i64);
    }
    let header = FrameHeader {
        header_crc: 0,
        kind: FrameKind::Data,
        zstd: false,
        epoch: 1,
        lsn: 1,
        segment_sequence: 1,
        durable_lsn: 0,
        prev_crc: 0,
        entries: entries as u32,
        payload_bytes: payload_bytes as u32,
        payload_raw_bytes: payload_bytes as u32,
        payload_crc: crc32c::crc32c(&buf[start..start + payload_bytes]),
        written_ms: 0,
        volume_id: [1; 16],
        block: 1,
        file: Some(0),
        epoch_lsn: 1,
    };
    seal(&header, buf)
}

/// What the node checks of each batch before it is appended.
fn batches(c: &mut Criterion) {
    let mut group = c.benchmark_group("batch");
    for (records, record_bytes) in [(1, 1024), (256, 256), (256, 1024)] {
        let batch = batch(records, record_bytes);
        group.throughput(Throughput::Bytes(batch.len() as u64));
        let name = |what: &str| format!("{what} {records} x {record_bytes} B");
        group.bench_function(name("verify"), |b| b.iter(|| RecordBatch::verify(&batch).expect("valid").record_count()));
        group.bench_function(name("verify and check records"), |b| {
            b.iter(|| RecordBatch::verify(&batch).expect("valid").check_records().expect("valid"));
        });
    }
    group.finish();
}

/// The index of 100,000 partitions with eight frames each, and a read that memory answers.
fn index(c: &mut Criterion) {
    const PARTITIONS: u32 = 100_000;
    let mut tables = Tables { partitions: PartitionMap::<Partition>::default(), ..Tables::default() };
    tables.segments.push_back(SegmentPlace { sequence: 1, file: 1, end_block: 1 << 20 });
    for id in 0..PARTITIONS {
        tables.open(PartitionId(id));
        for frame in 0..8 {
            let base = i64::from(frame) * 10;
            tables.extend(PartitionId(id), base, base + 10, Position { sequence: 1, block: frame });
        }
    }
    let mut rng = fastrand::Rng::with_seed(1);
    let mut group = c.benchmark_group("index");
    group.throughput(Throughput::Elements(1));
    group.bench_function("find a frame", |b| {
        b.iter(|| {
            let (id, offset) = (PartitionId(rng.u32(..PARTITIONS)), rng.i64(0..80));
            let live = tables.partitions.get(id).expect("open").live(tables.first_sequence());
            live[live.partition_point(|entry| entry.base_offset <= offset) - 1].position
        });
    });
    let (dir, log) = filled(1024, &batch(10, 256));
    let handle = log.handle();
    group.bench_function("fetch from memory", |b| b.iter(|| fetch(&handle, rng.i64(0..1024) * 10)));
    group.finish();
    drop((log, dir));
}

fn fetch(log: &LogHandle, offset: i64) -> usize {
    let (reply, answer) = sync_channel(1);
    let request = ReadRequest { partition: PartitionId(0), offset, bytes_max: 4096 };
    log.read(request, Box::new(move |chunk| reply.send(chunk).expect("somebody waits")));
    answer.recv().expect("answered").expect("readable").batches.len()
}

/// A log with so many appends of a batch in partition 0.
fn filled(appends: usize, batch: &Bytes) -> (tempfile::TempDir, Log) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (log, _) = Log::open(config(dir.path())).expect("opens");
    let opened = Append { partitions: vec![PartitionOp::Open(PartitionId(0))], ..Append::default() };
    assert!(matches!(log.handle().append_blocking(opened), Outcome::Committed { .. }));
    let record_count = RecordBatch::trusted(batch).expect("valid").record_count();
    for _ in 0..appends {
        let entry = AppendEntry { partition: PartitionId(0), batches: batch.clone(), record_count, max_timestamp: 0 };
        let outcome = log.handle().append_blocking(Append { entries: vec![entry], ..Append::default() });
        assert!(matches!(outcome, Outcome::Committed { .. }), "{outcome:?}");
    }
    (dir, log)
}

fn config(dir: &std::path::Path) -> LogConfig {
    LogConfig { compress_from_bytes: None, ..LogConfig::new(dir) }
}

/// Recovery of one segment of 64 MiB, almost full of frames of 256 KiB, every byte of it verified; two small durable writes
/// of the superblock are in it.
fn recovery(c: &mut Criterion) {
    let (dir, log) = filled(230, &batch(256, 1024));
    log.shutdown().expect("closes");
    let config = config(dir.path());
    let mut disk = disk::open(dir.path(), BackendChoice::Auto).expect("opens").disk;
    let mut scan = || recover(disk.as_mut(), &config, Now::default(), [[1; 16]; 2]).expect("recovers").2;
    let report = scan();
    assert!(report.frames > 230 && report.damage.is_empty(), "{report:?}");
    let mut group = c.benchmark_group("recovery");
    group.sample_size(10).throughput(Throughput::Bytes(report.bytes));
    group.bench_function("verify a segment", |b| b.iter(&mut scan));
    group.finish();
}

criterion_group!(benches, frame, batches, index, recovery);
criterion_main!(benches);
