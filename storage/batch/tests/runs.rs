//! Records found by their place, and runs of them copied into another batch, against reading and building one by one.
use proptest::prelude::*;
use weir_batch::{BatchBuilder, BatchHeader, Codec, MarkedRecords, PLACE_NULL, RecordBatch, RecordMark};

type Owned = (i64, Option<Vec<u8>>, Option<Vec<u8>>, bool);

fn record() -> impl Strategy<Value = Owned> {
    let part = || proptest::option::of(proptest::collection::vec(any::<u8>(), 0..200));
    let timestamp = prop_oneof![0..200i64, 0..100_000i64, 0..i64::MAX / 2];
    (timestamp, part(), part(), proptest::bool::weighted(0.1))
}

fn build(records: &[&Owned], codec: Codec) -> Vec<u8> {
    let mut builder = BatchBuilder::new(codec);
    for (timestamp, key, value, with_header) in records {
        let headers = [(&b"name"[..], Some(&b"content"[..]))];
        builder.push(*timestamp, key.as_deref(), value.as_deref(), if *with_header { &headers } else { &[] });
    }
    builder.finish().unwrap()
}

fn read(batch: &[u8]) -> Vec<Owned> {
    let batch = RecordBatch::verify(batch).unwrap();
    batch.check_records().unwrap();
    let mut scratch = Vec::new();
    let records = batch.records(&mut scratch).unwrap().map(|record| record.unwrap());
    records.map(|r| (r.timestamp, r.key.map(<[u8]>::to_vec), r.value.map(<[u8]>::to_vec), !r.headers.is_empty())).collect()
}

/// The records of `batch` that `keep` names, copied in runs.
fn copy_kept(batch: &[u8], keep: &[bool]) -> Result<Vec<u8>, weir_batch::BatchError> {
    let view = RecordBatch::verify(batch)?;
    let header: &BatchHeader = view.header();
    let mut scratch = Vec::new();
    let mut records = view.records(&mut scratch)?;
    let (run, mut marks) = (records.rest(), Vec::<RecordMark>::new());
    records.places(|place| marks.push(place.mark()))?;
    let encoded = MarkedRecords::new(header, run, &marks);
    let mut builder = BatchBuilder::new(Codec::None);
    let (mut at, count) = (0, keep.len());
    while at < count {
        let end = (at..count).find(|&n| keep[n] != keep[at]).unwrap_or(count);
        if keep[at] {
            builder.push_run(&encoded, at as u32..end as u32)?;
        }
        at = end;
    }
    assert_eq!(builder.max_timestamp(), (0..count).filter(|&n| keep[n]).map(|n| read(batch)[n].0).max().unwrap());
    builder.finish()
}

proptest! {
    #[test]
    fn places_are_where_the_parts_are(records in proptest::collection::vec(record(), 1..150), zstd in any::<bool>()) {
        let batch = build(&records.iter().collect::<Vec<_>>(), if zstd { Codec::Zstd(1) } else { Codec::None });
        let view = RecordBatch::verify(&batch).unwrap();
        let mut scratch = Vec::new();
        let mut walked = view.records(&mut scratch).unwrap();
        let run = walked.rest();
        let mut found = Vec::new();
        walked.places(|place| found.push(place)).unwrap();
        prop_assert_eq!(found.len(), records.len());
        for (at, (place, (timestamp, key, value, with_header))) in found.iter().zip(&records).enumerate() {
            let bytes = |(start, bytes): (u32, u32)| (start != PLACE_NULL.0).then(|| &run[start as usize..][..bytes as usize]);
            prop_assert_eq!((place.offset_delta, place.timestamp), (at as i32, *timestamp));
            prop_assert_eq!((bytes(place.key), bytes(place.value)), (key.as_deref(), value.as_deref()));
            let headers: &[u8] = b"\x02\x08name\x0econtent";
            prop_assert_eq!(bytes(place.headers), with_header.then_some(headers));
        }
    }

    #[test]
    fn a_copied_run_holds_the_records_kept(
        records in proptest::collection::vec((record(), proptest::bool::weighted(0.8)), 1..200),
        zstd in any::<bool>(),
    ) {
        let all: Vec<&Owned> = records.iter().map(|(record, _)| record).collect();
        let mut keep: Vec<bool> = records.iter().map(|(_, keep)| *keep).collect();
        keep[0] |= !keep.contains(&true);
        let batch = build(&all, if zstd { Codec::Zstd(1) } else { Codec::None });
        let kept: Vec<Owned> = all.iter().zip(&keep).filter(|(_, keep)| **keep).map(|(record, _)| (*record).clone()).collect();
        prop_assert_eq!(read(&copy_kept(&batch, &keep).unwrap()), kept);
    }

    #[test]
    fn a_damaged_record_is_found_by_place_as_by_reading(
        records in proptest::collection::vec(record(), 1..20),
        at in any::<proptest::sample::Index>(),
        with in any::<u8>(),
    ) {
        let mut batch = build(&records.iter().collect::<Vec<_>>(), Codec::None);
        let at = weir_batch::HEADER_BYTES + at.index(batch.len() - weir_batch::HEADER_BYTES);
        batch[at] = with;
        let view = RecordBatch::trusted(&batch).unwrap();
        let mut scratch = Vec::new();
        let by_reading: Result<Vec<_>, _> = view.records(&mut scratch).unwrap().map(|r| r.map(|r| (r.offset, r.timestamp))).collect();
        let mut scratch = Vec::new();
        let mut found = Vec::new();
        let by_place = view.records(&mut scratch).unwrap().places(|p| found.push((i64::from(p.offset_delta), p.timestamp)));
        prop_assert_eq!(by_place.map(|()| found), by_reading);
    }
}

type Found = (i64, i64, Option<Vec<u8>>, Option<Vec<u8>>);

/// What walking by place finds, against reading: of each record its offset, timestamp, key and value, or why it is bad.
fn both_ways(batch: &[u8]) -> [Result<Vec<Found>, weir_batch::BatchError>; 2] {
    let view = RecordBatch::trusted(batch).unwrap();
    let (mut scratch, mut found) = (Vec::new(), Vec::new());
    let mut records = view.records(&mut scratch).unwrap();
    let run = records.rest();
    let bytes = |(start, bytes): (u32, u32)| (start != PLACE_NULL.0).then(|| run[start as usize..][..bytes as usize].to_vec());
    let walked = records.places(|p| found.push((i64::from(p.offset_delta), p.timestamp, bytes(p.key), bytes(p.value))));
    let mut scratch = Vec::new();
    let read = view.records(&mut scratch).unwrap();
    let owned = |part: Option<&[u8]>| part.map(<[u8]>::to_vec);
    let read = read.map(|record| record.map(|r| (r.offset, r.timestamp, owned(r.key), owned(r.value))));
    [walked.map(|()| found), read.collect()]
}

/// Plain records of all shapes: length, timestamp and offset of one byte and of two, with a key and without. Any bit of them
/// may be another one.
#[test]
fn a_plain_record_with_any_bit_flipped_is_found_by_place_as_by_reading() {
    let mut records: Vec<Owned> = Vec::new();
    for n in 0..72_u8 {
        let timestamp = if n % 3 == 0 { 1000 } else { 1000 - 7 * i64::from(n) };
        let value = vec![n; if n % 5 == 0 { 70 } else { 3 }];
        records.push((timestamp, (n % 2 == 0).then(|| vec![n; 2]), Some(value), false));
    }
    let batch = build(&records.iter().collect::<Vec<_>>(), Codec::None);
    let [by_place, by_reading] = both_ways(&batch);
    assert_eq!(by_place.as_ref().unwrap().len(), 72);
    assert_eq!(by_place, by_reading);
    for at in weir_batch::HEADER_BYTES..batch.len() {
        for bit in 0..8 {
            let mut damaged = batch.clone();
            damaged[at] ^= 1 << bit;
            let [by_place, by_reading] = both_ways(&damaged);
            assert!(by_place == by_reading, "bit {bit} of byte {at}");
        }
    }
}

#[test]
fn records_that_are_not_there_cannot_be_copied() {
    let batch = build(&[&(1, None, None, false), &(2, None, None, false)], Codec::None);
    let view = RecordBatch::verify(&batch).unwrap();
    let (mut scratch, mut marks) = (Vec::new(), Vec::new());
    view.records(&mut scratch).unwrap().places(|place| marks.push(place.mark())).unwrap();
    let run = &batch[weir_batch::HEADER_BYTES..];
    let mut builder = BatchBuilder::new(Codec::None);
    builder.push_run(&MarkedRecords::new(view.header(), run, &marks), 1..2).unwrap();
    assert!(builder.push_run(&MarkedRecords::new(view.header(), run, &marks), 2..3).is_err(), "there are two");
    assert!(builder.push_run(&MarkedRecords::new(view.header(), &run[..run.len() - 1], &marks), 1..2).is_err(), "cut");
}
