//! Record batches as a peer sends them: no bytes may panic or allocate beyond the limits, also when the CRC is right.

#![no_main]

use libfuzzer_sys::fuzz_target;
use weir_batch::{HEADER_BYTES, RecordBatch};

fuzz_target!(|data: &[u8]| {
    walk(data);
    // A random CRC is never right: mend length, magic and CRC, so that the fuzzer gets behind them.
    if data.len() >= HEADER_BYTES {
        let mut mended = data.to_vec();
        let length = (mended.len() - 12) as i32;
        mended[8..12].copy_from_slice(&length.to_be_bytes());
        mended[16] = 2;
        let crc = crc32c::crc32c(&mended[21..]);
        mended[17..21].copy_from_slice(&crc.to_be_bytes());
        walk(&mended);
    }
});

fn walk(data: &[u8]) {
    let Ok(batch) = RecordBatch::verify(data) else { return };
    let whole = batch.check_records().is_ok();
    let mut scratch = Vec::new();
    let Ok(records) = batch.records(&mut scratch) else { return };
    let mut seen = 0u32;
    for record in records {
        let Ok(record) = record else {
            assert!(!whole, "check_records accepted what the iterator refuses");
            return;
        };
        assert!(record.offset >= batch.base_offset() || batch.base_offset() > i64::MAX - i64::from(u32::MAX));
        seen += 1;
    }
    assert!(!whole || seen == batch.record_count());
}
