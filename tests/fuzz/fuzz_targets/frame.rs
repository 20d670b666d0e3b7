//! Frames as recovery finds them on a disk: whatever lies there is believed or refused, never a panic.

#![no_main]

use libfuzzer_sys::fuzz_target;
use weir_storage::format::frame;
use weir_storage::format::segment::SegmentHeader;
use weir_storage::format::snapshot::Item;

fuzz_target!(|data: &[u8]| {
    walk(data);
    let mut mended = data.to_vec();
    if mended.len() >= 128 {
        mended[..4].copy_from_slice(b"WFR1");
        mended[10..12].copy_from_slice(&1u16.to_le_bytes());
        // Few entries and a payload that ends with the input, or hardly any input gets past the bounds.
        let entries = (u32::from(mended[56]) % 4).min(((mended.len() - 128) / 64) as u32);
        mended[56..60].copy_from_slice(&entries.to_le_bytes());
        let header_bytes = 128 + 64 * entries as usize;
        mended[52..56].copy_from_slice(&(header_bytes as u32).to_le_bytes());
        let payload = (mended.len() - header_bytes) as u32;
        mended[60..64].copy_from_slice(&payload.to_le_bytes());
        let crc = crc32c::crc32c(&mended[header_bytes..]);
        mended[68..72].copy_from_slice(&crc.to_le_bytes());
        let crc = crc32c::crc32c(&mended[8..header_bytes]);
        mended[4..8].copy_from_slice(&crc.to_le_bytes());
        walk(&mended);
    }
    let mut rest = data;
    while let Some(Ok(_)) = Item::decode(&mut rest) {}
    let mut block = data.to_vec();
    block.resize(4096, 0);
    let _ = SegmentHeader::decode(&block);
});

fn walk(data: &[u8]) {
    let Ok(header) = frame::decode_header(data) else { return };
    let Ok(stored) = header.verified_payload(data) else { return };
    let Ok(raw) = header.raw_payload(stored) else { return };
    let Ok(directory) = header.directory(data) else { return };
    for entry in directory {
        // A raw payload may be shorter than it claims only if that is checked before this range is used.
        let _ = raw.get(entry.range());
        let _ = entry.next_offset();
    }
}
