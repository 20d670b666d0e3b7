//! No bytes of a peer make the codec panic, allocate without bound or accept what was damaged.

use proptest::prelude::*;
use weir_batch::{BatchBuilder, BatchError, Codec, HEADER_BYTES, RecordBatch, split_batches};

type OwnedHeader = (Vec<u8>, Option<Vec<u8>>);
type OwnedRecord = (i64, Option<Vec<u8>>, Option<Vec<u8>>, Vec<OwnedHeader>);

fn build(codec: Codec, records: &[OwnedRecord]) -> Vec<u8> {
    let mut builder = BatchBuilder::new(codec);
    for (timestamp, key, value, headers) in records {
        let headers: Vec<(&[u8], Option<&[u8]>)> =
            headers.iter().map(|(name, value)| (name.as_slice(), value.as_deref())).collect();
        builder.push(*timestamp, key.as_deref(), value.as_deref(), &headers);
    }
    builder.finish().unwrap()
}

fn sample(codec: Codec) -> Vec<u8> {
    let records: Vec<OwnedRecord> = (0..20)
        .map(|n| {
            let value = format!("{{\"model\":\"Toyota\",\"id\":\"fb{n:04x}\",\"pressure_kPa\":{}}}", 200 + n);
            (1_700_000_000_000 + n, Some(vec![n as u8; 4]), Some(value.into_bytes()), vec![(b"m".to_vec(), None)])
        })
        .collect();
    build(codec, &records)
}

/// Everything a server or consumer does with bytes; must end in an error or in records, never in a panic.
fn use_up(bytes: &[u8]) -> Result<usize, BatchError> {
    let batch = RecordBatch::verify(bytes)?;
    batch.check_records()?;
    let mut scratch = Vec::new();
    let mut count = 0;
    for record in batch.records(&mut scratch)? {
        count += 1;
        let _ = record?.headers.iter().count();
    }
    Ok(count)
}

/// The same for bytes whose CRC was not checked.
fn use_up_trusted(bytes: &[u8]) {
    for batch in split_batches(bytes).flatten() {
        let _ = batch.check_records_with(&mut Vec::new(), 1 << 20);
        let mut scratch = Vec::new();
        if let Ok(records) = batch.records_with(&mut scratch, 1 << 20) {
            assert!(records.size_hint().1.unwrap() <= (1 << 20) / 7 + 1);
            for record in records.flatten() {
                let _ = record.headers.iter().count();
            }
        }
    }
}

#[test]
fn every_truncation_is_an_error() {
    for codec in [Codec::None, Codec::Zstd(3)] {
        let bytes = sample(codec);
        assert_eq!(use_up(&bytes), Ok(20));
        for length in 0..bytes.len() {
            assert!(matches!(use_up(&bytes[..length]), Err(BatchError::Truncated { .. })), "{length}");
            use_up_trusted(&bytes[..length]);
        }
    }
}

#[test]
fn every_flipped_bit_is_an_error() {
    for codec in [Codec::None, Codec::Zstd(3)] {
        let bytes = sample(codec);
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            use_up_trusted(&damaged);
            // Base offset and leader epoch are the server's to patch: the CRC leaves them out by design.
            let patched = matches!(bit / 8, 0..8 | 12..16);
            assert!(use_up(&damaged).is_err() || patched, "bit {bit} of {codec:?}");
        }
    }
}

#[test]
fn a_zstd_bomb_is_an_error_and_its_output_stays_within_the_limit() {
    let mut builder = BatchBuilder::new(Codec::Zstd(19));
    builder.push(0, None, Some(&vec![0; 32 << 20]), &[]);
    let bytes = builder.finish().unwrap();
    assert!(bytes.len() < 16 << 10, "32 MiB in {} bytes", bytes.len());
    let batch = RecordBatch::verify(&bytes).unwrap();
    let mut scratch = Vec::new();
    for max in [0, 1, 1000, 1 << 20, 32 << 20] {
        assert_eq!(batch.records_with(&mut scratch, max).err(), Some(BatchError::TooLarge { max }));
        assert_eq!(batch.check_records_with(&mut scratch, max), Err(BatchError::TooLarge { max }));
        assert!(scratch.capacity() <= max + 4096, "{} bytes for a limit of {max}", scratch.capacity());
    }
    assert_eq!(batch.check_records(), Ok(()));
    // The limit is a limit, not one less: exactly what is needed is enough.
    let exactly = scratch_needed(&batch);
    assert_eq!(batch.check_records_with(&mut Vec::new(), exactly), Ok(()));
    assert_eq!(batch.check_records_with(&mut Vec::new(), exactly - 1), Err(BatchError::TooLarge { max: exactly - 1 }));
}

fn scratch_needed(batch: &RecordBatch<'_>) -> usize {
    let mut scratch = Vec::new();
    batch.records(&mut scratch).unwrap().for_each(drop);
    scratch.len()
}

#[test]
fn a_zstd_stream_that_is_cut_or_followed_by_garbage_is_an_error() {
    let bytes = sample(Codec::Zstd(3));
    let refit = |stream: &[u8]| {
        let mut batch = bytes[..HEADER_BYTES].to_vec();
        batch.extend_from_slice(stream);
        let length = (batch.len() - 12) as i32;
        batch[8..12].copy_from_slice(&length.to_be_bytes());
        batch
    };
    let stream = &bytes[HEADER_BYTES..];
    for length in 0..stream.len() {
        let cut = refit(&stream[..length]);
        let result = RecordBatch::trusted(&cut).unwrap().check_records();
        assert!(matches!(result, Err(BatchError::Decompress { .. })), "{length}: {result:?}");
    }
    let followed = refit(&[stream, b"garbage"].concat());
    let result = RecordBatch::trusted(&followed).unwrap().check_records();
    assert!(matches!(result, Err(BatchError::Decompress { .. })), "{result:?}");
    let twice = refit(&[stream, stream].concat());
    let result = RecordBatch::trusted(&twice).unwrap().check_records();
    assert!(matches!(result, Err(BatchError::BadRecord { index: 20, .. })), "{result:?}");
}

#[test]
fn a_batch_that_does_not_shrink_is_stored_as_it_is() {
    let mut builder = BatchBuilder::new(Codec::Zstd(1));
    builder.push(0, None, Some(b"x"), &[]);
    let bytes = builder.finish().unwrap();
    assert_eq!(RecordBatch::verify(&bytes).unwrap().codec(), Codec::None);
}

#[test]
fn raw_headers_are_checked_before_they_are_taken() {
    let mut builder = BatchBuilder::new(Codec::None);
    builder.push(1, None, Some(b"a"), &[(b"name", Some(b"value")), (b"none", None)]);
    let first = builder.finish().unwrap();
    let batch = RecordBatch::verify(&first).unwrap();
    let mut scratch = Vec::new();
    let raw = batch.records(&mut scratch).unwrap().next().unwrap().unwrap().headers.raw().to_vec();
    builder.push_raw_headers(1, None, Some(b"a"), &raw).unwrap();
    assert!(builder.push_raw_headers(1, None, None, &raw[..raw.len() - 1]).is_err());
    assert!(builder.push_raw_headers(1, None, None, &[]).is_err());
    assert_eq!(builder.finish().unwrap(), first);
}

fn records() -> impl Strategy<Value = Vec<OwnedRecord>> {
    let field = || proptest::option::of(proptest::collection::vec(any::<u8>(), 0..200));
    let header = (proptest::collection::vec(any::<u8>(), 0..70), field());
    let record = (-1..=i64::MAX / 2, field(), field(), proptest::collection::vec(header, 0..4));
    proptest::collection::vec(record, 1..80)
}

proptest! {
    #[test]
    fn what_is_built_is_read_back(records in records(), zstd: bool, base_offset in 0..i64::MAX / 2) {
        let mut bytes = build(if zstd { Codec::Zstd(1) } else { Codec::None }, &records);
        weir_batch::patch_base_offset(&mut bytes, base_offset);
        let batch = RecordBatch::verify(&bytes).unwrap();
        batch.check_records().unwrap();
        prop_assert_eq!(batch.record_count() as usize, records.len());
        prop_assert_eq!(batch.max_timestamp(), records.iter().map(|r| r.0).max().unwrap());
        let mut scratch = Vec::new();
        let mut read = batch.records(&mut scratch).unwrap();
        for (n, (timestamp, key, value, headers)) in records.iter().enumerate() {
            let record = read.next().unwrap().unwrap();
            prop_assert_eq!(record.offset, base_offset + n as i64);
            prop_assert_eq!(record.timestamp, *timestamp);
            prop_assert_eq!(record.key, key.as_deref());
            prop_assert_eq!(record.value, value.as_deref());
            prop_assert_eq!(record.headers.len(), headers.len());
            for (got, (name, value)) in record.headers.iter().zip(headers) {
                prop_assert_eq!(got, (name.as_slice(), value.as_deref()));
            }
        }
        prop_assert!(read.next().is_none());
    }

    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = use_up(&bytes);
        use_up_trusted(&bytes);
    }

    #[test]
    fn garbage_behind_a_plausible_header_never_panics(
        records in proptest::collection::vec(any::<u8>(), 0..300),
        codec in 0_u8..8,
        count in 0_i32..50,
    ) {
        let mut bytes = vec![0_u8; HEADER_BYTES];
        bytes.extend_from_slice(&records);
        let length = (bytes.len() - 12) as i32;
        bytes[8..12].copy_from_slice(&length.to_be_bytes());
        bytes[16] = 2;
        bytes[22] = codec;
        bytes[23..27].copy_from_slice(&(count - 1).to_be_bytes());
        bytes[57..61].copy_from_slice(&count.to_be_bytes());
        use_up_trusted(&bytes);
    }
}
