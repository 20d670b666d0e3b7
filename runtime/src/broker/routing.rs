//! What a pipeline sends to other topics, made into batches of their partitions; and batches cut to what a frame carries.

use std::collections::BTreeMap;

use bytes::Bytes;
use weir_batch::{BatchBuilder, BatchError, Codec, HEADER_BYTES, RecordBatch, partition_for_key};
use weir_pipeline::{Output, Routed};
use weir_storage::AppendEntry;

use super::Refusal;
use super::pipelines::Attached;

/// What the varints of a record take at most, beside key, value and headers.
const RECORD_OVERHEAD_BYTES_MAX: usize = 40;

/// Batches of one partition under construction.
struct Run {
    builder: BatchBuilder,
    /// Whole batches of at most the limit, one after the other.
    done: Vec<u8>,
    record_count: u32,
    max_timestamp: i64,
    bytes_max: usize,
}

impl Run {
    fn new(bytes_max: usize) -> Run {
        let builder = BatchBuilder::new(Codec::None);
        Run { builder, done: Vec::new(), record_count: 0, max_timestamp: i64::MIN, bytes_max }
    }

    fn push(&mut self, timestamp: i64, key: Option<&[u8]>, value: Option<&[u8]>, headers_raw: &[u8]) -> Result<(), Refusal> {
        let bytes = key.map_or(0, <[u8]>::len) + value.map_or(0, <[u8]>::len) + headers_raw.len() + RECORD_OVERHEAD_BYTES_MAX;
        if bytes + HEADER_BYTES > self.bytes_max {
            return Err(Refusal::BatchTooLarge { bytes: (bytes + HEADER_BYTES) as u64, max: self.bytes_max as u64 });
        }
        if !self.builder.is_empty() && self.builder.bytes_estimate() + bytes > self.bytes_max {
            self.close()?;
        }
        self.builder.push_raw_headers(timestamp, key, value, headers_raw).map_err(internal)?;
        self.record_count += 1;
        self.max_timestamp = self.max_timestamp.max(timestamp);
        Ok(())
    }

    fn close(&mut self) -> Result<(), Refusal> {
        let batch = self.builder.finish().map_err(internal)?;
        if self.done.is_empty() {
            self.done = batch;
        } else {
            self.done.extend_from_slice(&batch);
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Bytes, Refusal> {
        if !self.builder.is_empty() {
            self.close()?;
        }
        Ok(Bytes::from(self.done))
    }
}

fn internal(error: BatchError) -> Refusal {
    Refusal::Internal { reason: format!("a batch out of a pipeline: {error}") }
}

/// Adds the routed records as one entry a partition: by key hash as Kafka does it, without a key to the partition of the
/// same number as the source's.
pub(crate) fn append_routed(
    entries: &mut Vec<AppendEntry>,
    attached: &Attached,
    routed: &Routed,
    source_partition: u32,
    bytes_max: usize,
) -> Result<(), Refusal> {
    let unknown = || Refusal::UnknownTopic { topic: routed.topic.to_string() };
    let target = attached.targets.get(&*routed.topic).filter(|topic| !topic.is_deleted()).ok_or_else(unknown)?;
    let partitions = target.partition_count();
    let mut runs: BTreeMap<u32, Run> = BTreeMap::new();
    for (number, record) in routed.records.iter().enumerate() {
        let partition = match record.key {
            Some(key) => partition_for_key(key, partitions),
            None if target.is_compacted() => {
                return Err(Refusal::RecordWithoutKey { topic: target.name.to_string(), record: number });
            }
            None => source_partition % partitions,
        };
        let run = runs.entry(partition).or_insert_with(|| Run::new(bytes_max));
        run.push(record.timestamp, record.key, record.value, record.headers_raw)?;
    }
    for (partition, run) in runs {
        let (record_count, max_timestamp) = (run.record_count, run.max_timestamp);
        let partition = target.partition(partition)?;
        target.meters.records_stored.inc_by(u64::from(record_count));
        entries.push(AppendEntry { partition, batches: run.finish()?, record_count, max_timestamp });
    }
    Ok(())
}

/// A batch that a pipeline made larger than the limit, as several; one within it passes as it is.
pub(crate) fn cut(batch: Vec<u8>, bytes_max: usize) -> Result<Bytes, Refusal> {
    if batch.len() <= bytes_max {
        return Ok(Bytes::from(batch));
    }
    let view = RecordBatch::trusted(&batch).map_err(internal)?;
    let mut scratch = Vec::new();
    let mut run = Run::new(bytes_max);
    for record in view.records(&mut scratch).map_err(internal)? {
        let record = record.map_err(internal)?;
        run.push(record.timestamp, record.key, record.value, record.headers.raw())?;
    }
    run.finish()
}

/// What failed in a pipeline, for who looks closely; the counts are in the metrics.
pub(crate) fn say(output: &Output) {
    for failure in &output.failures {
        tracing::debug!(%failure, "a record failed in its pipeline");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_batch::split_batches;

    fn batch_of(values: &[&[u8]]) -> Vec<u8> {
        let mut builder = BatchBuilder::new(Codec::None);
        for value in values {
            builder.push(7, Some(b"k"), Some(value), &[]);
        }
        builder.finish().unwrap()
    }

    #[test]
    fn a_batch_that_grew_is_cut_without_losing_a_record() {
        let values: Vec<Vec<u8>> = (0..50u8).map(|number| vec![number; 100]).collect();
        let values: Vec<&[u8]> = values.iter().map(Vec::as_slice).collect();
        let batches = cut(batch_of(&values), 1_000).unwrap();
        let mut seen = Vec::new();
        for batch in split_batches(&batches) {
            let batch = batch.unwrap();
            assert!(batch.bytes().len() <= 1_000);
            let mut scratch = Vec::new();
            seen.extend(batch.records(&mut scratch).unwrap().map(|record| record.unwrap().value.unwrap().to_vec()));
        }
        assert_eq!(seen, values);
    }

    #[test]
    fn a_record_no_frame_can_carry_is_refused() {
        assert!(matches!(cut(batch_of(&[&[1; 5_000]]), 1_000), Err(Refusal::BatchTooLarge { max: 1_000, .. })));
    }

    #[test]
    fn a_batch_within_the_limit_is_not_touched() {
        let batch = batch_of(&[b"v"]);
        assert_eq!(cut(batch.clone(), 1_000).unwrap(), batch);
    }
}
