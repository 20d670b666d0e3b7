//! What the tests of the log share: batches, appends, and reads that wait for their answer.
#![allow(dead_code, unreachable_pub, reason = "each test program uses its part of this")]

use std::sync::mpsc;

use bytes::Bytes;
use weir_batch::{BatchBuilder, Codec};
use weir_storage::*;

pub const P: PartitionId = PartitionId(1);

/// A batch of `values`, all with one timestamp.
pub fn batch(timestamp: i64, values: &[&[u8]]) -> Bytes {
    let mut builder = BatchBuilder::new(Codec::None);
    values.iter().for_each(|value| builder.push(timestamp, None, Some(value), &[]));
    Bytes::from(builder.finish().unwrap())
}

pub fn entry(partition: PartitionId, timestamp: i64, values: &[&[u8]]) -> AppendEntry {
    AppendEntry { partition, batches: batch(timestamp, values), record_count: values.len() as u32, max_timestamp: timestamp }
}

pub fn append(partition: PartitionId, values: &[&[u8]]) -> Append {
    Append { entries: vec![entry(partition, 1_000, values)], ..Append::default() }
}

pub fn open_partition(partition: PartitionId) -> Append {
    Append { partitions: vec![PartitionOp::Open(partition)], ..Append::default() }
}

pub fn mark(sequence: u64, count: u32, epoch: i16) -> ProducerMark {
    let key = ProducerKey { id: 7, lane: 0 };
    ProducerMark { key, epoch, base_sequence: sequence, sequence_count: count, partition: P }
}

/// The base offset a committed append of one entry got.
pub fn offset(outcome: Outcome) -> i64 {
    match outcome {
        Outcome::Committed { base_offsets, .. } => base_offsets[0],
        other => panic!("not committed: {other:?}"),
    }
}

pub fn read(log: &LogHandle, partition: PartitionId, offset: i64, bytes_max: usize) -> Result<ReadChunk, ReadError> {
    let (reply, answer) = mpsc::channel();
    log.read(ReadRequest { partition, offset, bytes_max }, Box::new(move |chunk| reply.send(chunk).unwrap()));
    answer.recv().unwrap()
}

/// Records with their offsets.
pub type Values = Vec<(i64, Vec<u8>)>;

/// All values from an offset on, with their offsets.
pub fn read_all(log: &LogHandle, partition: PartitionId, from: i64) -> Values {
    let (values, gaps) = read_around(log, partition, from);
    assert!(gaps.is_empty(), "{gaps:?}");
    values
}

/// Goes on behind each gap; what could be read, and the gaps.
pub fn read_around(log: &LogHandle, partition: PartitionId, mut from: i64) -> (Values, Vec<(i64, i64)>) {
    let (mut values, mut gaps) = (Vec::new(), Vec::new());
    let mut scratch = Vec::new();
    loop {
        let chunk = match read(log, partition, from, 64 << 10) {
            Err(ReadError::Busy) => continue,
            Err(ReadError::Gap { from: lost, to }) => {
                gaps.push((lost, to));
                from = to;
                continue;
            }
            other => other.unwrap(),
        };
        if chunk.batches.is_empty() {
            return (values, gaps);
        }
        for stored in &chunk.batches {
            let batch = weir_batch::RecordBatch::verify(stored).unwrap();
            for record in batch.records(&mut scratch).unwrap() {
                let record = record.unwrap();
                if record.offset >= from {
                    values.push((record.offset, record.value.unwrap().to_vec()));
                }
            }
        }
        assert!(chunk.next_offset > from, "a chunk with batches moves on");
        from = chunk.next_offset;
    }
}

pub fn small(dir: &std::path::Path) -> LogConfig {
    LogConfig {
        segment_bytes: 256 << 10,
        frame_bytes_max: 64 << 10,
        spare_segments: 1,
        tail_cache_bytes: 256 << 10,
        ..LogConfig::new(dir)
    }
}
