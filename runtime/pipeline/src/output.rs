//! What comes out of a pipeline: the batch's fate, records for other topics, counts and failures.
use std::sync::Arc;

use crate::error::Failure;

/// Headers of a record that has none: their count, zero, as a record batch holds it.
pub(crate) const NO_HEADERS: [u8; 1] = [0];

/// A batch that got through its pipeline.
#[derive(Debug)]
#[non_exhaustive]
pub struct Output {
    /// What is stored in the batch's own topic.
    pub main: Main,
    /// Records for other topics, dead letters included, one entry a topic; to be committed with the rest.
    pub routed: Vec<Routed>,
    /// What happened to how many records.
    pub counts: Counts,
    /// The records a policy was applied to; the first 32, `counts` has them all.
    pub failures: Vec<Failure>,
}

/// What is left of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Main {
    /// Every record was kept as it was: the producer's bytes go on.
    Unchanged,
    /// A new record batch.
    Rebuilt {
        /// One whole record batch, base offset 0, its codec and producer fields those of the producer's batch.
        batch: Vec<u8>,
        /// Its records.
        record_count: u32,
        /// Its latest timestamp, ms.
        max_timestamp: i64,
    },
    /// No record is left.
    Empty,
}

/// Records for one other topic.
#[derive(Debug)]
pub struct Routed {
    /// The topic.
    pub topic: Arc<str>,
    /// The records, in order.
    pub records: RoutedRecords,
}

/// Owned records, all in one buffer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RoutedRecords {
    bytes: Vec<u8>,
    index: Vec<Place>,
}

/// Lengths in the buffer; `None` is null.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    timestamp: i64,
    start: usize,
    key_bytes: Option<usize>,
    value_bytes: Option<usize>,
    headers_bytes: usize,
}

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoutedRecord<'a> {
    /// ms since 1970.
    pub timestamp: i64,
    /// The key.
    pub key: Option<&'a [u8]>,
    /// The value.
    pub value: Option<&'a [u8]>,
    /// Headers as a record batch holds them, count first; never empty: what `BatchBuilder::push_raw_headers` takes.
    pub headers_raw: &'a [u8],
}

impl RoutedRecords {
    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Bytes of keys, values and headers.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The records in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = RoutedRecord<'_>> {
        self.index.iter().map(|place| {
            let mut rest = &self.bytes[place.start..];
            let mut take = |bytes: usize| {
                let (part, after) = rest.split_at(bytes);
                rest = after;
                part
            };
            RoutedRecord {
                timestamp: place.timestamp,
                key: place.key_bytes.map(&mut take),
                value: place.value_bytes.map(&mut take),
                headers_raw: take(place.headers_bytes),
            }
        })
    }

    pub(crate) fn push(&mut self, record: RoutedRecord<'_>) {
        let start = self.bytes.len();
        for part in [record.key, record.value, Some(record.headers_raw)].into_iter().flatten() {
            self.bytes.extend_from_slice(part);
        }
        self.index.push(Place {
            timestamp: record.timestamp,
            start,
            key_bytes: record.key.map(<[u8]>::len),
            value_bytes: record.value.map(<[u8]>::len),
            headers_bytes: record.headers_raw.len(),
        });
    }
}

/// What happened to the records of a batch, over all stages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Records the producer sent.
    pub records_in: u64,
    /// Records left for the batch's own topic.
    pub records_out: u64,
    /// Dropped by a verdict.
    pub dropped: u64,
    /// Replaced.
    pub replaced: u64,
    /// Moved: sent elsewhere and not kept.
    pub moved: u64,
    /// Added to the stream beside their source.
    pub emitted: u64,
    /// Sent to other topics, dead letters not counted.
    pub routed: u64,
    /// Rejected by a plugin: a bad record.
    pub rejected: u64,
    /// Failed in a plugin: a bad plugin.
    pub failed: u64,
    /// Sent to a dead-letter topic.
    pub dead_lettered: u64,
}

/// Headers of a dead letter: those of the record, then `added`. Malformed originals (there are none: the batch was checked)
/// would be left out.
pub(crate) fn extend_headers(original: &[u8], added: &[(&str, &[u8])]) -> Vec<u8> {
    let (count, entries) = split_count(original).unwrap_or((0, &[]));
    let bytes: usize = added.iter().map(|(name, value)| name.len() + value.len() + 10).sum();
    let mut out = Vec::with_capacity(entries.len() + bytes + 5);
    varint(&mut out, count + added.len() as i64);
    out.extend_from_slice(entries);
    for (name, value) in added {
        varint(&mut out, name.len() as i64);
        out.extend_from_slice(name.as_bytes());
        varint(&mut out, value.len() as i64);
        out.extend_from_slice(value);
    }
    out
}

/// The count before the headers, and the headers.
fn split_count(raw: &[u8]) -> Option<(i64, &[u8])> {
    let mut zigzag = 0u64;
    for (at, &byte) in raw.iter().enumerate().take(5) {
        zigzag |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            let count = (zigzag >> 1).cast_signed() ^ -(zigzag & 1).cast_signed();
            return (count >= 0).then_some((count, &raw[at + 1..]));
        }
    }
    None
}

/// Zig-zag LEB128.
fn varint(out: &mut Vec<u8>, value: i64) {
    let mut left = ((value << 1) ^ (value >> 63)).cast_unsigned();
    while left >= 0x80 {
        out.push((left & 0x7f) as u8 | 0x80);
        left >>= 7;
    }
    out.push(left as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use weir_batch::Headers;

    type Owned = (i64, Option<Vec<u8>>, Option<Vec<u8>>);

    proptest! {
        #[test]
        fn routed_records_come_back(records in proptest::collection::vec(any::<Owned>(), 0..20)) {
            let mut routed = RoutedRecords::default();
            for (timestamp, key, value) in &records {
                routed.push(RoutedRecord { timestamp: *timestamp, key: key.as_deref(), value: value.as_deref(), headers_raw: &NO_HEADERS });
            }
            let back: Vec<Owned> = routed.iter().map(|r| (r.timestamp, r.key.map(<[u8]>::to_vec), r.value.map(<[u8]>::to_vec))).collect();
            prop_assert_eq!(back, records);
        }

        #[test]
        fn added_headers_stand_behind_the_original_ones(count in 0usize..150, value in proptest::collection::vec(any::<u8>(), 0..200)) {
            let original: Vec<(&str, &[u8])> = (0..count).map(|_| ("a", &value[..])).collect();
            let original = extend_headers(&NO_HEADERS, &original);
            let extended = extend_headers(&original, &[("weir-reason", b"trap"), ("weir-message", &value)]);
            let headers: Vec<_> = Headers::parse(&extended).unwrap().iter().collect();
            prop_assert_eq!(headers.len(), count + 2);
            prop_assert!(headers[..count].iter().all(|h| *h == (&b"a"[..], Some(&value[..]))));
            prop_assert_eq!(headers[count], (&b"weir-reason"[..], Some(&b"trap"[..])));
            prop_assert_eq!(headers[count + 1], (&b"weir-message"[..], Some(&value[..])));
        }
    }
}
