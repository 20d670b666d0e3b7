//! Batches written by hand after the tables of Kafka's protocol guide, byte by byte, so that builder and reader cannot
//! agree on a common mistake.

use weir_batch::{BatchBuilder, BatchError, Codec, RecordBatch, patch_base_offset, patch_leader_epoch, split_batches};

/// Two records: (k1, v1, no headers) at 1000 ms and (null key, "sensor", one header) at 1005 ms. The CRC at 17..21 is
/// left to the caller.
fn by_hand() -> Vec<u8> {
    let mut b = Vec::new();
    b.extend_from_slice(&42_i64.to_be_bytes()); // base offset
    b.extend_from_slice(&0_i32.to_be_bytes()); // batch length, set below
    b.extend_from_slice(&(-1_i32).to_be_bytes()); // partition leader epoch
    b.push(2); // magic
    b.extend_from_slice(&[0; 4]); // crc, set below
    b.extend_from_slice(&0_i16.to_be_bytes()); // attributes
    b.extend_from_slice(&1_i32.to_be_bytes()); // last offset delta
    b.extend_from_slice(&1000_i64.to_be_bytes()); // base timestamp
    b.extend_from_slice(&1005_i64.to_be_bytes()); // max timestamp
    b.extend_from_slice(&7_i64.to_be_bytes()); // producer id
    b.extend_from_slice(&3_i16.to_be_bytes()); // producer epoch
    b.extend_from_slice(&99_i32.to_be_bytes()); // base sequence
    b.extend_from_slice(&2_i32.to_be_bytes()); // record count
    assert_eq!(b.len(), 61);
    b.extend_from_slice(&[
        20, // length 10, zig-zag
        0,  // attributes
        0,  // timestamp delta 0
        0,  // offset delta 0
        4, b'k', b'1', // key
        4, b'v', b'1', // value
        0,    // headers
    ]);
    b.extend_from_slice(&[
        32, // length 16, zig-zag
        0,  // attributes
        10, // timestamp delta 5
        2,  // offset delta 1
        1,  // null key
        12, b's', b'e', b'n', b's', b'o', b'r', // value
        2,    // one header
        4, b'h', b'n', // its name
        1,    // null value
    ]);
    let length = (b.len() - 12) as i32;
    b[8..12].copy_from_slice(&length.to_be_bytes());
    seal(&mut b);
    b
}

/// CRC-32C bit by bit, so that the test does not lean on the crate that is under test.
fn crc32c_slow(bytes: &[u8]) -> u32 {
    let mut crc = !0_u32;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

fn seal(batch: &mut [u8]) {
    let crc = crc32c_slow(&batch[21..]);
    batch[17..21].copy_from_slice(&crc.to_be_bytes());
}

/// Changes a field under the CRC and makes the CRC right again, so that only the check behind it can object.
fn with(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut batch = by_hand();
    change(&mut batch);
    seal(&mut batch);
    batch
}

fn produced(bytes: &[u8]) -> Result<(), BatchError> {
    RecordBatch::verify(bytes)?.check_records()
}

#[test]
fn the_slow_crc_is_castagnoli() {
    assert_eq!(crc32c_slow(b"123456789"), 0xe306_9283);
}

#[test]
fn a_batch_written_by_hand_is_read() {
    let bytes = by_hand();
    let batch = RecordBatch::verify(&bytes).unwrap();
    batch.check_records().unwrap();
    let header = batch.header();
    assert_eq!((header.base_offset, header.last_offset_delta, header.record_count), (42, 1, 2));
    assert_eq!((header.producer_id, header.producer_epoch, header.base_sequence), (7, 3, 99));
    assert_eq!((batch.next_offset(), batch.max_timestamp(), batch.codec()), (44, 1005, Codec::None));
    let mut scratch = Vec::new();
    let records: Vec<_> = batch.records(&mut scratch).unwrap().map(Result::unwrap).collect();
    assert_eq!((records[0].offset, records[0].timestamp), (42, 1000));
    assert_eq!((records[0].key, records[0].value), (Some(&b"k1"[..]), Some(&b"v1"[..])));
    assert!(records[0].headers.is_empty());
    assert_eq!((records[1].offset, records[1].timestamp), (43, 1005));
    assert_eq!((records[1].key, records[1].value), (None, Some(&b"sensor"[..])));
    assert_eq!(records[1].headers.iter().collect::<Vec<_>>(), [(&b"hn"[..], None)]);
    assert_eq!(records[1].headers.raw(), [2, 4, b'h', b'n', 1]);
}

#[test]
fn the_builder_writes_the_same_bytes() {
    let mut builder = BatchBuilder::new(Codec::None);
    builder.push(1000, Some(b"k1"), Some(b"v1"), &[]);
    builder.push(1005, None, Some(b"sensor"), &[(b"hn", None)]);
    builder.set_producer(7, 3, 99);
    assert_eq!((builder.len(), builder.bytes_estimate()), (2, by_hand().len()));
    let mut built = builder.finish().unwrap();
    patch_base_offset(&mut built, 42);
    assert_eq!(built, by_hand());
    // And again, from the same builder, without a trace of the first batch.
    assert!(builder.is_empty());
    builder.push(5, None, None, &[]);
    let second = builder.finish().unwrap();
    let second = RecordBatch::verify(&second).unwrap();
    assert_eq!((second.header().producer_id, second.header().base_timestamp, second.max_timestamp()), (-1, 5, 5));
    assert_eq!(builder.finish(), Err(BatchError::Empty));
}

#[test]
fn patches_leave_the_crc_right() {
    let mut bytes = by_hand();
    patch_base_offset(&mut bytes, 1 << 40);
    patch_leader_epoch(&mut bytes, 17);
    let batch = RecordBatch::verify(&bytes).unwrap();
    assert_eq!((batch.base_offset(), batch.header().partition_leader_epoch), (1 << 40, 17));
    batch.check_records().unwrap();
}

#[test]
fn the_crc_is_checked_before_anything_it_covers_is_believed() {
    let mut bytes = by_hand();
    bytes[57..61].copy_from_slice(&(-5_i32).to_be_bytes()); // a bad count and a bad CRC: the CRC speaks
    assert!(matches!(RecordBatch::verify(&bytes), Err(BatchError::BadCrc { .. })));
    assert!(matches!(RecordBatch::trusted(&bytes), Err(BatchError::BadCount { record_count: -5, .. })));
}

#[test]
fn headers_that_lie_are_refused() {
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("magic 1", with(|b| b[16] = 1)),
        ("negative length", with(|b| b[8..12].copy_from_slice(&(-1_i32).to_be_bytes()))),
        ("length 48", with(|b| b[8..12].copy_from_slice(&48_i32.to_be_bytes()))),
        ("length of 2 GiB", with(|b| b[8..12].copy_from_slice(&i32::MAX.to_be_bytes()))),
        ("negative count", with(|b| b[57..61].copy_from_slice(&(-1_i32).to_be_bytes()))),
        ("more records than offsets", with(|b| b[57..61].copy_from_slice(&3_i32.to_be_bytes()))),
        ("negative last offset", with(|b| b[23..27].copy_from_slice(&(-1_i32).to_be_bytes()))),
        (
            "no records, negative last offset",
            with(|b| {
                b[23..27].copy_from_slice(&(-1_i32).to_be_bytes());
                b[57..61].copy_from_slice(&0_i32.to_be_bytes());
            }),
        ),
        ("negative base offset", with(|b| b[0..8].copy_from_slice(&(-1_i64).to_be_bytes()))),
        ("base offset near the end", with(|b| b[0..8].copy_from_slice(&i64::MAX.to_be_bytes()))),
        (
            "more records than bytes",
            with(|b| {
                b[23..27].copy_from_slice(&999_i32.to_be_bytes());
                b[57..61].copy_from_slice(&1000_i32.to_be_bytes());
            }),
        ),
    ];
    for (name, bytes) in cases {
        assert!(RecordBatch::verify(&bytes).is_err(), "{name} was accepted by verify");
        assert!(RecordBatch::trusted(&bytes).is_err(), "{name} was accepted by trusted");
    }
}

#[test]
fn producers_may_not_send_what_only_a_broker_writes() {
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("fewer records than offsets", with(|b| b[23..27].copy_from_slice(&2_i32.to_be_bytes()))),
        ("transactional", with(|b| b[22] |= 1 << 4)),
        ("control", with(|b| b[22] |= 1 << 5)),
        ("log append time", with(|b| b[22] |= 1 << 3)),
        ("unknown attribute", with(|b| b[21] = 0x40)),
        ("producer id -2", with(|b| b[43..51].copy_from_slice(&(-2_i64).to_be_bytes()))),
        ("producer without epoch", with(|b| b[51..53].copy_from_slice(&(-1_i16).to_be_bytes()))),
        ("producer without sequence", with(|b| b[53..57].copy_from_slice(&(-1_i32).to_be_bytes()))),
        ("base timestamp -2", with(|b| b[27..35].copy_from_slice(&(-2_i64).to_be_bytes()))),
        ("max timestamp too early", with(|b| b[35..43].copy_from_slice(&1004_i64.to_be_bytes()))),
        ("max timestamp too late", with(|b| b[35..43].copy_from_slice(&1006_i64.to_be_bytes()))),
    ];
    for (name, bytes) in cases {
        assert!(RecordBatch::verify(&bytes).is_ok(), "{name} is no matter of the header check");
        assert!(produced(&bytes).is_err(), "{name} was accepted");
    }
}

#[test]
fn malformed_records_are_found() {
    let reason = |bytes: &[u8]| match produced(bytes) {
        Err(BatchError::BadRecord { index, reason }) => (index, reason),
        other => panic!("{other:?}"),
    };
    // Record 0 begins at 61, record 1 at 72.
    assert_eq!(reason(&with(|b| b[61] = 19)), (0, "its length is negative"));
    assert_eq!(reason(&with(|b| b[61] = 0)), (0, "it is empty"));
    assert_eq!(reason(&with(|b| b[72] = 34)), (1, "it is longer than the batch"));
    assert_eq!(reason(&with(|b| b[72] = 30)), (1, "a header of it is malformed"));
    assert_eq!(reason(&with(|b| b[64] = 2)), (0, "its offset does not follow the one before"));
    assert_eq!(reason(&with(|b| b[75] = 0)), (1, "its offset does not follow the one before"));
    assert_eq!(reason(&with(|b| b[75] = 4)), (1, "its offset is outside the batch"));
    assert_eq!(reason(&with(|b| b[65] = 3)), (0, "its key is malformed"));
    assert_eq!(reason(&with(|b| b[68] = 100)), (0, "its value is malformed"));
    assert_eq!(reason(&with(|b| b[71] = 1)), (0, "its header count is negative"));
    assert_eq!(reason(&with(|b| b[71] = 2)), (0, "a header of it is malformed"));
    assert_eq!(reason(&with(|b| b[84] = 0)), (1, "bytes follow its last header"));
    assert_eq!(reason(&with(|b| b[85] = 1)), (1, "a header of it is malformed"), "null header name");
    assert_eq!(reason(&with(|b| b[63] = 12)), (0, "its timestamp is later than the batch's max_timestamp"));
    let before_1970 = with(|b| {
        b[27..43].fill(0); // base and max timestamp
        b[74] = 9; // 5 ms before the first
    });
    assert_eq!(reason(&before_1970), (1, "its timestamp is negative"));
    let overflow = with(|b| {
        b[27..35].copy_from_slice(&(i64::MAX - 2).to_be_bytes());
        b[35..43].copy_from_slice(&i64::MAX.to_be_bytes());
    });
    assert_eq!(reason(&overflow), (1, "its timestamp overflows"));
    let trailing = with(|b| {
        b.push(0);
        let length = (b.len() - 12) as i32;
        b[8..12].copy_from_slice(&length.to_be_bytes());
    });
    assert_eq!(reason(&trailing), (2, "bytes follow the last record"));
}

#[test]
fn other_codecs_are_refused_by_name() {
    for (code, name) in [(1, "gzip"), (2, "snappy"), (3, "lz4"), (5, "an unknown codec"), (7, "an unknown codec")] {
        let bytes = with(|b| b[22] = code);
        assert_eq!(RecordBatch::verify(&bytes).err(), Some(BatchError::UnsupportedCodec { codec: name }));
    }
}

#[test]
fn a_run_of_batches_is_split_and_ends_at_the_first_error() {
    let mut bytes = by_hand();
    let mut second = by_hand();
    patch_base_offset(&mut second, 44);
    bytes.extend_from_slice(&second);
    let offsets: Vec<_> = split_batches(&bytes).map(|batch| batch.unwrap().base_offset()).collect();
    assert_eq!(offsets, [42, 44]);
    // `verify` takes the first and says how long it was.
    assert_eq!(RecordBatch::verify(&bytes).unwrap().bytes().len(), second.len());
    let cut = &bytes[..bytes.len() - 1];
    let results: Vec<_> = split_batches(cut).map(|batch| batch.map(|b| b.base_offset())).collect();
    assert_eq!(results.len(), 2);
    assert_eq!(results[0], Ok(42));
    assert!(matches!(results[1], Err(BatchError::Truncated { .. })));
    assert_eq!(split_batches(&[]).count(), 0);
}
