//! Taking records out of a stored batch, as compaction does. Offsets never change: base offset, last offset delta and the
//! deltas of the records that stay are the old ones, so the batch goes on standing for the same range, with holes.
//!
//! Records that stay are copied as they are encoded; nothing but the header is written anew.

use zstd::bulk::Compressor;
use zstd::zstd_safe;

use crate::codec::{Codec, ZSTD_LEVEL_DEFAULT};
use crate::error::BatchError;
use crate::header::{ATTRIBUTE_CODEC, BatchHeader, HEADER_BYTES, LENGTH_END};
use crate::records::Record;
use crate::view::RecordBatch;

/// What is left of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Retained {
    /// All of it: the batch may stay as it is.
    All,
    /// A batch with fewer records.
    Fewer(Vec<u8>),
    /// No record.
    Nothing,
}

/// Takes records out of batches, one batch after the other; keeps its memory.
#[derive(Default)]
pub struct Retainer {
    compressor: Option<Compressor<'static>>,
    decompressed: Vec<u8>,
    kept: Vec<u8>,
}

impl Retainer {
    /// With no memory yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks of each record whether it stays. Records that stay are compressed with the codec they had, unless that no longer
    /// makes them smaller.
    pub fn retain(&mut self, batch: &RecordBatch<'_>, mut keep: impl FnMut(&Record<'_>) -> bool) -> Result<Retained, BatchError> {
        self.kept.clear();
        let mut record_count = 0;
        let mut max_timestamp = i64::MIN;
        let mut records = batch.records(&mut self.decompressed)?;
        loop {
            let before = records.rest();
            let Some(record) = records.next() else { break };
            let record = record?;
            if keep(&record) {
                self.kept.extend_from_slice(&before[..before.len() - records.rest().len()]);
                record_count += 1;
                max_timestamp = max_timestamp.max(record.timestamp);
            }
        }
        if record_count == batch.record_count() {
            return Ok(Retained::All);
        }
        if record_count == 0 {
            return Ok(Retained::Nothing);
        }
        let (batch_bytes, codec) = self.encode(batch.codec())?;
        let header = BatchHeader { record_count, max_timestamp, ..*batch.header() };
        Ok(Retained::Fewer(sealed(header, batch_bytes, codec)))
    }

    /// The kept records behind room for a header.
    fn encode(&mut self, codec: Codec) -> Result<(Vec<u8>, Codec), BatchError> {
        if let Codec::Zstd(_) = codec {
            let compressor = match &mut self.compressor {
                Some(compressor) => compressor,
                none => none.insert(
                    Compressor::new(ZSTD_LEVEL_DEFAULT).map_err(|_| BatchError::Compress { reason: "zstd has no memory" })?,
                ),
            };
            let mut batch = vec![0; HEADER_BYTES + zstd_safe::compress_bound(self.kept.len())];
            let written = compressor
                .compress_to_buffer(&self.kept, &mut batch[HEADER_BYTES..])
                .map_err(|_| BatchError::Compress { reason: "zstd failed" })?;
            if written < self.kept.len() {
                batch.truncate(HEADER_BYTES + written);
                return Ok((batch, codec));
            }
        }
        let mut batch = Vec::with_capacity(HEADER_BYTES + self.kept.len());
        batch.resize(HEADER_BYTES, 0);
        batch.extend_from_slice(&self.kept);
        Ok((batch, Codec::None))
    }
}

impl std::fmt::Debug for Retainer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Retainer")
    }
}

/// The batch without any record: what keeps its range of offsets known. Its timestamps stay.
#[must_use]
pub fn emptied(batch: &RecordBatch<'_>) -> Vec<u8> {
    sealed(BatchHeader { record_count: 0, ..*batch.header() }, vec![0; HEADER_BYTES], Codec::None)
}

fn sealed(header: BatchHeader, mut batch: Vec<u8>, codec: Codec) -> Vec<u8> {
    let header = BatchHeader {
        // Shorter than the batch it came from, but for a codec that is given up: bounded by what may be decompressed.
        batch_length: (batch.len() - LENGTH_END) as i32,
        attributes: header.attributes & !ATTRIBUTE_CODEC | codec.attributes(),
        ..header
    };
    header.seal(&mut batch);
    batch
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BatchBuilder, patch_base_offset, patch_leader_epoch};

    /// Ten records from offset 1000, timestamps 50, 51 …; `codec` must be worth while.
    fn ten(codec: Codec) -> Vec<u8> {
        let mut builder = BatchBuilder::new(codec);
        for n in 0..10_u8 {
            let value = [n; 100];
            let value = (n != 3).then_some(&value[..]);
            builder.push(50 + i64::from(n), Some(&[b'k', n]), value, &[(b"name", Some(&[n]))]);
        }
        builder.set_producer(77, 3, 12);
        let mut batch = builder.finish().unwrap();
        patch_base_offset(&mut batch, 1000);
        patch_leader_epoch(&mut batch, 5);
        batch
    }

    type Plain = (i64, i64, Option<Vec<u8>>, Option<Vec<u8>>, Vec<u8>);

    fn records(batch: &RecordBatch<'_>) -> Vec<Plain> {
        let mut scratch = Vec::new();
        let owned = |part: Option<&[u8]>| part.map(<[u8]>::to_vec);
        let records = batch.records(&mut scratch).unwrap();
        records
            .map(|r| r.map(|r| (r.offset, r.timestamp, owned(r.key), owned(r.value), r.headers.raw().to_vec())).unwrap())
            .collect()
    }

    #[test]
    fn records_that_stay_are_as_they_were_and_the_range_is_the_same() {
        for codec in [Codec::None, Codec::Zstd(3)] {
            let bytes = ten(codec);
            let whole = RecordBatch::verify(&bytes).unwrap();
            let kept = Retainer::new().retain(&whole, |record| [1002, 1003, 1006].contains(&record.offset)).unwrap();
            let Retained::Fewer(bytes) = kept else { panic!("some stay: {kept:?}") };
            let fewer = RecordBatch::verify(&bytes).unwrap();
            let expected: Vec<_> = records(&whole).into_iter().filter(|r| [1002, 1003, 1006].contains(&r.0)).collect();
            assert_eq!(records(&fewer), expected);
            assert_eq!(fewer.codec().name(), codec.name());
            assert_eq!((fewer.base_offset(), fewer.next_offset(), fewer.record_count()), (1000, 1010, 3));
            assert_eq!(fewer.max_timestamp(), 56, "a search by time must not skip what it looks for");
            let (old, new) = (whole.header(), fewer.header());
            let of_producer = |h: &BatchHeader| (h.producer_id, h.producer_epoch, h.base_sequence, h.partition_leader_epoch);
            assert_eq!(of_producer(new), of_producer(old));
            assert_eq!(new.base_timestamp, old.base_timestamp);
            // A producer may not send what compaction leaves.
            assert!(fewer.check_records().is_err());
            // And the places of the records are found the quick way too.
            let (mut scratch, mut deltas) = (Vec::new(), Vec::new());
            fewer.records(&mut scratch).unwrap().places(|place| deltas.push(place.offset_delta)).unwrap();
            assert_eq!(deltas, [2, 3, 6]);
        }
    }

    #[test]
    fn a_batch_may_lose_records_more_than_once() {
        let bytes = ten(Codec::Zstd(1));
        let mut retainer = Retainer::new();
        let Retained::Fewer(bytes) = retainer.retain(&RecordBatch::verify(&bytes).unwrap(), |r| r.offset > 1004).unwrap() else {
            panic!("some stay")
        };
        let fewer = RecordBatch::verify(&bytes).unwrap();
        let Retained::Fewer(last) = retainer.retain(&fewer, |r| r.offset == 1009).unwrap() else { panic!("one stays") };
        let last = RecordBatch::verify(&last).unwrap();
        assert_eq!(records(&last), records(&fewer)[4..]);
        assert_eq!(retainer.retain(&last, |_| true).unwrap(), Retained::All);
        assert_eq!(retainer.retain(&last, |_| false).unwrap(), Retained::Nothing);
    }

    #[test]
    fn an_emptied_batch_keeps_its_range() {
        for codec in [Codec::None, Codec::Zstd(1)] {
            let bytes = ten(codec);
            let empty = emptied(&RecordBatch::verify(&bytes).unwrap());
            let empty = RecordBatch::verify(&empty).unwrap();
            assert_eq!((empty.base_offset(), empty.next_offset(), empty.record_count()), (1000, 1010, 0));
            assert_eq!(empty.bytes().len(), HEADER_BYTES);
            assert_eq!(records(&empty), []);
            assert_eq!(Retainer::new().retain(&empty, |_| false).unwrap(), Retained::All, "there is nothing to take out");
        }
    }

    #[test]
    fn time_of_appending_stays_the_time_of_the_batch() {
        let mut bytes = ten(Codec::None);
        let whole = RecordBatch::verify(&bytes).unwrap();
        let header = BatchHeader { attributes: 1 << 3, max_timestamp: 99, ..*whole.header() };
        header.seal(&mut bytes);
        let kept = Retainer::new().retain(&RecordBatch::verify(&bytes).unwrap(), |r| r.offset == 1001).unwrap();
        let Retained::Fewer(bytes) = kept else { panic!("one stays: {kept:?}") };
        let fewer = RecordBatch::verify(&bytes).unwrap();
        assert!(fewer.header().is_log_append_time());
        assert_eq!(records(&fewer)[0].1, 99);
    }
}
