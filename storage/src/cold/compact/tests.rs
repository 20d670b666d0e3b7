//! Compaction against a model that keeps the whole history.

use std::collections::HashMap;

use proptest::prelude::*;
use weir_batch::{BatchBuilder, Codec, patch_base_offset};

use super::*;
use crate::types::PartitionId;

const RETENTION_MS: i64 = 20;

/// A record without its offset: key and value, both may be null.
type Pair = (Option<u8>, Option<u8>);

/// A partition: everything that was ever appended, and what is stored.
#[derive(Default)]
struct Model {
    history: Vec<Pair>,
    stored: Vec<ColdEntry>,
    clean_to: i64,
}

fn timestamp(offset: i64) -> i64 {
    1000 + offset
}

fn key_bytes(key: u8) -> Vec<u8> {
    vec![key; 1 + usize::from(key)]
}

fn batch(base_offset: i64, pairs: &[Pair], codec: Codec) -> Vec<u8> {
    let mut builder = BatchBuilder::new(codec);
    for (n, (key, value)) in (0..).zip(pairs) {
        let (key, value) = (key.map(key_bytes), value.map(|value| vec![value; 50]));
        builder.push(timestamp(base_offset + n), key.as_deref(), value.as_deref(), &[(b"h", None)]);
    }
    let mut batch = builder.finish().expect("it has records");
    patch_base_offset(&mut batch, base_offset);
    batch
}

fn entry(base_offset: i64, next_offset: i64, batches: Vec<u8>) -> ColdEntry {
    let max_timestamp = timestamp_of_batches(&batches).expect("there are batches");
    ColdEntry { partition: PartitionId(4), base_offset, next_offset, max_timestamp, batches: batches.into() }
}

/// A map for so many keys.
fn tiny_map(keys: usize) -> KeyMap {
    let slots = keys.div_ceil(3) * 4;
    KeyMap { slots: vec![[0; 3]; slots], bytes_max: slots * SLOT_BYTES, ..KeyMap::new(MAP_BYTES_MIN) }
}

fn rules(upto: i64) -> CompactRules {
    CompactRules { clean_to: 0, upto, from_start: true, now_ms: 0, delete_retention_ms: RETENTION_MS }
}

fn compact(stored: &mut Vec<ColdEntry>, map: KeyMap, rules: CompactRules) -> Rewrite {
    let mut survey = Survey::new(map, rules);
    for entry in stored.iter().filter(|entry| entry.next_offset > rules.clean_to) {
        if !survey.feed(entry) {
            break;
        }
    }
    let mut rewrite = survey.finish();
    *stored = stored.iter().filter_map(|entry| rewrite.rewrite(entry)).collect();
    rewrite
}

impl Model {
    fn append(&mut self, batches: &[(Vec<Pair>, bool)]) {
        let base_offset = self.next();
        let mut bytes = Vec::new();
        for (pairs, zstd) in batches {
            bytes.extend(batch(self.next(), pairs, if *zstd { Codec::Zstd(1) } else { Codec::None }));
            self.history.extend(pairs);
        }
        self.stored.push(entry(base_offset, self.next(), bytes));
    }

    fn next(&self) -> i64 {
        self.history.len() as i64
    }

    fn compact(&mut self, op: &Compaction) {
        let upto = op.upto.index(self.history.len() + 1) as i64;
        let rules = CompactRules { clean_to: self.clean_to, now_ms: timestamp(op.now), ..rules(upto) };
        let map = op.keys_max.map_or_else(|| KeyMap::new(1 << 20), tiny_map);
        let before = self.read();
        let covered = if op.from_start {
            let rewrite = compact(&mut self.stored, map, rules);
            self.clean_to = self.clean_to.max(rewrite.covered());
            let progress = op.keys_max.is_none() || rewrite.covered() > rules.clean_to || rules.clean_to >= upto;
            assert!(progress && (op.keys_max.is_some() || rewrite.covered() == upto.max(0)), "{rewrite:?}");
            self.check_compacted(rewrite.covered(), rules.now_ms);
            rewrite.covered()
        } else {
            let mut tail = self.stored.split_off(op.from.index(self.stored.len()));
            let clean_to = tail[0].base_offset;
            let rewrite = compact(&mut tail, map, CompactRules { clean_to, from_start: false, ..rules });
            self.stored.append(&mut tail);
            rewrite.covered()
        };
        let untouched = |all: &[Kept]| all.iter().filter(|record| record.0 >= covered).cloned().collect::<Vec<_>>();
        assert_eq!(untouched(&before), untouched(&self.read()));
    }

    /// All that is stored, checked to be a part of the history in its order.
    fn read(&self) -> Vec<Kept> {
        let mut all: Vec<Kept> = Vec::new();
        let mut end = 0;
        for entry in &self.stored {
            assert!(end <= entry.base_offset, "entries do not overlap");
            let mut at = entry.base_offset;
            for span in batches::split(&entry.batches) {
                let span = span.expect("whole batches");
                let batch = RecordBatch::verify(&entry.batches[span.at..]).expect("intact");
                assert!(at <= batch.base_offset() && (span.at > 0 || at == batch.base_offset()));
                let mut latest = None;
                for record in batch.records(&mut Vec::new()).expect("readable") {
                    let record = record.expect("well-formed");
                    assert!(record.offset >= at && record.offset < batch.next_offset(), "offsets grow strictly");
                    assert_eq!(record.timestamp, timestamp(record.offset));
                    assert_eq!(record.headers.len(), 1);
                    at = record.offset + 1;
                    latest = latest.max(Some(record.timestamp));
                    let (key, value) = self.history[record.offset as usize];
                    assert_eq!(record.key.map(<[u8]>::to_vec), key.map(key_bytes));
                    assert_eq!(record.value.map(<[u8]>::to_vec), value.map(|value| vec![value; 50]));
                    all.push((record.offset, (key, value)));
                }
                assert!(latest.is_none_or(|latest| latest == batch.max_timestamp()));
                assert!(batch.max_timestamp() <= entry.max_timestamp);
                at = batch.next_offset();
            }
            end = entry.next_offset;
            assert_eq!(at, end);
        }
        assert_eq!(end, self.next(), "the end of the partition stays known");
        all
    }

    /// Nothing is there twice, without key, or deleted long ago.
    fn check_compacted(&self, covered: i64, now_ms: i64) {
        let mut seen = HashMap::new();
        let kept = self.read();
        let last_tombstone = kept.iter().filter(|(_, (_, value))| value.is_none()).map(|(offset, _)| *offset).next_back();
        for (offset, (key, value)) in kept.into_iter().filter(|(offset, _)| *offset < covered) {
            assert!(key.is_some(), "{offset} has no key");
            assert_eq!(seen.insert(key, offset), None, "{offset} has a later one");
            // The batch may be younger than its tombstone, so only those of batches that are old as a whole.
            let batch_end = |e: &ColdEntry| (e.base_offset..e.next_offset).contains(&offset).then_some(e.next_offset);
            let youngest = self.stored.iter().find_map(batch_end).map_or(offset, |end| end - 1);
            let gone = value.is_none() && timestamp(youngest) + RETENTION_MS < now_ms;
            assert!(!gone, "tombstone {offset} of {last_tombstone:?} should be gone");
        }
    }

    fn check_latest(&self) {
        let latest = |records: &[Pair]| {
            let mut latest = HashMap::new();
            for (key, value) in records.iter().filter(|(key, _)| key.is_some()) {
                match value {
                    Some(value) => latest.insert(*key, *value),
                    None => latest.remove(key),
                };
            }
            latest
        };
        let read: Vec<Pair> = self.read().into_iter().map(|(_, pair)| pair).collect();
        assert_eq!(latest(&read), latest(&self.history));
    }
}

type Kept = (i64, Pair);

#[derive(Clone, Debug)]
struct Compaction {
    from_start: bool,
    from: prop::sample::Index,
    upto: prop::sample::Index,
    now: i64,
    keys_max: Option<usize>,
}

#[derive(Clone, Debug)]
enum Op {
    Append(Vec<(Vec<Pair>, bool)>),
    Compact(Compaction),
}

fn op() -> impl Strategy<Value = Op> {
    let pair = (
        prop_oneof![9 => (0..12_u8).prop_map(Some), 1 => Just(None)],
        prop_oneof![3 => any::<u8>().prop_map(Some), 1 => Just(None)],
    );
    let batches = proptest::collection::vec((proptest::collection::vec(pair, 1..12), any::<bool>()), 1..4);
    let compaction = (
        any::<bool>(),
        any::<[prop::sample::Index; 2]>(),
        0..300_i64,
        prop_oneof![2 => Just(None), 1 => (1..8_usize).prop_map(Some)],
    );
    prop_oneof![
        3 => batches.prop_map(Op::Append),
        2 => compaction.prop_map(|(from_start, [from, upto], now, keys_max)| Op::Compact(Compaction { from_start, from, upto, now, keys_max })),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_compactions_leave_the_latest_value_of_each_key(ops in proptest::collection::vec(op(), 1..20)) {
        let mut model = Model::default();
        for op in &ops {
            match op {
                Op::Append(batches) => model.append(batches),
                Op::Compact(_) if model.stored.is_empty() => {}
                Op::Compact(compaction) => model.compact(compaction),
            }
            model.check_latest();
        }
    }

    #[test]
    fn a_map_agrees_with_a_hash_map_and_stays_within_its_bound(keys in proptest::collection::vec(0..5000_u32, 0..6000), bytes_max in MAP_BYTES_MIN..400_000) {
        let mut map = KeyMap::new(bytes_max);
        let mut model = HashMap::new();
        for (offset, key) in (0..).zip(&keys) {
            if !map.put(&key.to_le_bytes(), offset) {
                prop_assert!(!model.contains_key(key), "a key that is there needs no room");
                prop_assert!(map.len() >= bytes_max / SLOT_BYTES / 3, "{map:?} of {bytes_max}");
                break;
            }
            model.insert(*key, offset);
            prop_assert!(map.slots.len() * SLOT_BYTES <= bytes_max);
        }
        prop_assert_eq!(map.len(), model.len());
        for key in 0..5000_u32 {
            prop_assert_eq!(map.get(&key.to_le_bytes()), model.get(&key).copied());
        }
        map.clear();
        prop_assert!(map.is_empty() && map.get(&1_u32.to_le_bytes()).is_none());
    }
}

impl std::fmt::Debug for Rewrite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} covered {} {:?}", self.rules, self.covered, self.stats)
    }
}

fn value(key: u8) -> Pair {
    (Some(key), Some(key))
}

fn tombstone(key: u8) -> Pair {
    (Some(key), None)
}

/// One batch to an entry.
fn stored(batches: &[&[Pair]]) -> Model {
    let mut model = Model::default();
    batches.iter().for_each(|pairs| model.append(&[(pairs.to_vec(), false)]));
    model
}

fn offsets(model: &Model) -> Vec<i64> {
    model.read().into_iter().map(|(offset, _)| offset).collect()
}

/// Changes attributes and makes the CRC right again.
fn with_attributes(entry: &ColdEntry, attributes: i16) -> ColdEntry {
    let mut batch = entry.batches.to_vec();
    batch[21..23].copy_from_slice(&attributes.to_be_bytes());
    let crc = crc32c::crc32c(&batch[21..]);
    batch[17..21].copy_from_slice(&crc.to_be_bytes());
    ColdEntry { batches: batch.into(), ..entry.clone() }
}

#[test]
fn what_is_left_out_is_counted() {
    let mut model = stored(&[&[value(1), value(2), (None, Some(1))], &[tombstone(1), value(2)], &[value(3)]]);
    let rewrite = compact(&mut model.stored, KeyMap::new(1 << 20), CompactRules { now_ms: timestamp(1000), ..rules(6) });
    assert_eq!(offsets(&model), [4, 5]);
    let CompactStats { bytes_in, bytes_out, .. } = rewrite.stats();
    assert!(bytes_out < bytes_in);
    let expected =
        CompactStats { records: 6, superseded: 2, tombstones: 1, keyless: 1, batches_unjudged: 0, bytes_in, bytes_out };
    assert_eq!(rewrite.stats(), expected);
    assert_eq!(model.stored[0].base_offset, 3, "the first batch is gone, the second keeps its range");
    assert_eq!(rewrite.into_map().get(&key_bytes(2)), Some(4));
}

#[test]
fn a_tombstone_stays_for_its_time() {
    let at = |now_ms| {
        let mut model = stored(&[&[value(1), tombstone(1)], &[value(2)]]);
        compact(&mut model.stored, KeyMap::new(1 << 20), CompactRules { now_ms, ..rules(3) });
        offsets(&model)
    };
    assert_eq!(at(timestamp(1) + RETENTION_MS), [1, 2]);
    assert_eq!(at(timestamp(1) + RETENTION_MS + 1), [2]);
}

#[test]
fn a_tombstone_stays_as_long_as_what_it_deletes_may_lie_before_the_range() {
    let mut model = stored(&[&[value(1)], &[tombstone(1)], &[value(2)]]);
    let mut tail = model.stored.split_off(1);
    let rules = CompactRules { clean_to: 1, from_start: false, now_ms: timestamp(1000), ..rules(3) };
    compact(&mut tail, KeyMap::new(1 << 20), rules);
    model.stored.append(&mut tail);
    assert_eq!(offsets(&model), [0, 1, 2]);
}

#[test]
fn a_tombstone_that_the_survey_has_not_seen_stays() {
    let mut model = stored(&[&[value(1)], &[tombstone(1)], &[value(2)]]);
    let mut survey = Survey::new(KeyMap::new(1 << 20), CompactRules { now_ms: timestamp(1000), ..rules(3) });
    assert!(survey.feed(&model.stored[0]));
    assert!(!survey.feed(&model.stored[2]), "it reaches the end");
    let mut rewrite = survey.finish();
    model.stored = model.stored.iter().filter_map(|entry| rewrite.rewrite(entry)).collect();
    assert_eq!(offsets(&model), [0, 1, 2]);
}

#[test]
fn the_end_of_a_partition_is_known_when_nothing_is_left_of_it() {
    let mut model = stored(&[&[value(1)], &[value(1), tombstone(1)]]);
    let old = CompactRules { now_ms: timestamp(1000), ..rules(3) };
    compact(&mut model.stored, KeyMap::new(1 << 20), old);
    assert_eq!((offsets(&model), model.stored.len()), (vec![], 1));
    assert_eq!((model.stored[0].base_offset, model.stored[0].next_offset), (1, 3));
    // A second time it is as it was; with more behind it, it may go.
    compact(&mut model.stored, KeyMap::new(1 << 20), old);
    assert_eq!(model.stored.len(), 1);
    model.append(&[(vec![value(2)], false)]);
    compact(&mut model.stored, KeyMap::new(1 << 20), CompactRules { upto: 4, ..old });
    assert_eq!((offsets(&model), model.stored.len()), (vec![3], 1));
}

#[test]
fn a_full_map_goes_on_at_the_next_compaction() {
    let mut model = stored(&[&[value(1), value(2), value(3), value(4), value(1)], &[value(2), value(3), value(4), value(5)]]);
    let mut covered = Vec::new();
    while model.clean_to < 9 {
        let rewrite = compact(&mut model.stored, tiny_map(3), CompactRules { clean_to: model.clean_to, ..rules(9) });
        covered.push(rewrite.covered());
        assert!(rewrite.covered() > model.clean_to);
        model.clean_to = rewrite.covered();
    }
    assert_eq!(covered, [3, 6, 9]);
    assert_eq!(offsets(&model), [4, 5, 6, 7, 8]);
}

#[test]
fn transactions_and_their_markers_are_left_alone_and_hold_tombstones() {
    for attributes in [1 << 4, 1 << 5, 1 << 4 | 1 << 5] {
        let mut model = stored(&[&[value(1)], &[value(1)], &[tombstone(1)], &[value(1)], &[tombstone(1)], &[value(2)]]);
        model.stored[1] = with_attributes(&model.stored[1], attributes);
        let before = model.stored[1].clone();
        let rewrite = compact(&mut model.stored, KeyMap::new(1 << 20), CompactRules { now_ms: timestamp(1000), ..rules(6) });
        assert_eq!(model.stored[0], before);
        assert_eq!(offsets(&model), [1, 4, 5], "the last tombstone still deletes what was left alone");
        assert_eq!(rewrite.stats().batches_unjudged, 1);
    }
}

#[test]
fn damage_is_not_sealed_with_a_new_crc() {
    let mut model = stored(&[&[value(1), value(2)], &[value(1)]]);
    let mut bytes = model.stored[0].batches.to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    model.stored[0].batches = bytes.into();
    let damaged = model.stored[0].clone();
    let rewrite = compact(&mut model.stored, KeyMap::new(1 << 20), rules(3));
    assert_eq!(model.stored[0], damaged);
    assert_eq!(rewrite.stats().batches_unjudged, 1);
}

#[test]
fn bytes_that_are_no_batch_stay() {
    let mut model = stored(&[&[value(1)], &[value(1)]]);
    let bytes = [&model.stored[0].batches[..], &[7; 100]].concat();
    model.stored[0].batches = bytes.into();
    let odd = model.stored[0].clone();
    compact(&mut model.stored, KeyMap::new(1 << 20), rules(2));
    assert_eq!(model.stored[0], odd);
}
