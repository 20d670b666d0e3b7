//! Superblock slots, whole and mended.

#![no_main]

use libfuzzer_sys::fuzz_target;
use weir_storage::format::superblock::Superblock;

fuzz_target!(|data: &[u8]| {
    let mut block = data.to_vec();
    block.resize(4096, 0);
    let _ = Superblock::decode(&block);
    block[..8].copy_from_slice(b"WEIRSUP1");
    let crc = crc32c::crc32c(&block[12..]);
    block[8..12].copy_from_slice(&crc.to_le_bytes());
    let _ = Superblock::decode(&block);
});
