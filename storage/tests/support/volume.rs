//! Volumes as files: fixtures unpacked, directories copied, bytes changed with their CRCs made right again.
#![allow(dead_code, unreachable_pub, reason = "each test program uses its part of this")]

use std::path::{Path, PathBuf};

use weir_storage::format::BLOCK;
use weir_storage::format::frame::{self, FrameHeader, FrameKind};

/// Where the volumes of format 1.0 lie, each file of them packed with zstd.
pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v1.0")
}

/// Variants of the fixture.
pub const VARIANTS: [&str; 3] = ["closed", "unclean", "gap"];
/// Those of format 1.1.
pub const VARIANTS_1_1: [&str; 2] = ["../v1.1/closed", "../v1.1/unclean"];

/// Unpacks a variant into `to`.
pub fn unpack(variant: &str, to: &Path) {
    make_dirs(to);
    for (packed, name) in files(&fixtures().join(variant)) {
        if let Some(name) = name.strip_suffix(".zst") {
            let bytes = zstd::decode_all(std::fs::File::open(packed).unwrap()).unwrap();
            std::fs::write(to.join(name), bytes).unwrap();
        }
    }
}

fn make_dirs(dir: &Path) {
    ["wal", "cold"].iter().for_each(|name| std::fs::create_dir_all(dir.join(name)).unwrap());
}

/// Packs a volume as a variant.
pub fn pack(from: &Path, variant: &str) {
    let to = fixtures().join(variant);
    let _ = std::fs::remove_dir_all(&to);
    make_dirs(&to);
    for (path, name) in files(from).into_iter().filter(|(_, name)| name != "LOCK") {
        let packed = zstd::encode_all(std::fs::File::open(path).unwrap(), 19).unwrap();
        std::fs::write(to.join(format!("{name}.zst")), packed).unwrap();
    }
}

/// Copies a volume.
pub fn copy(from: &Path, to: &Path) {
    make_dirs(to);
    for (path, name) in files(from) {
        std::fs::copy(path, to.join(name)).unwrap();
    }
}

/// Files of a volume with their names below it, in order.
pub fn files(dir: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for (below, prefix) in [(dir.to_owned(), ""), (dir.join("wal"), "wal/"), (dir.join("cold"), "cold/")] {
        for entry in std::fs::read_dir(below).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_file() {
                let name = format!("{prefix}{}", path.file_name().unwrap().to_str().unwrap());
                found.push((path, name));
            }
        }
    }
    found.sort();
    found
}

/// A frame in a segment file.
pub struct Placed {
    pub path: PathBuf,
    pub at: usize,
    pub header: FrameHeader,
}

/// Every frame of the volume that its own file's header vouches for, in order of LSN.
pub fn frames(dir: &Path) -> Vec<Placed> {
    let mut found = Vec::new();
    for (path, _) in files(&dir.join(".")).into_iter().filter(|(_, name)| name.ends_with(".wal")) {
        let bytes = std::fs::read(&path).unwrap();
        let sequence = u64::from_le_bytes(bytes[32..40].try_into().unwrap());
        for at in (BLOCK..bytes.len()).step_by(BLOCK) {
            if let Ok(header) = frame::decode_header(&bytes[at..])
                && header.segment_sequence == sequence
            {
                found.push(Placed { path: path.clone(), at, header });
            }
        }
    }
    found.sort_by_key(|placed| placed.header.lsn);
    found
}

/// The last data frame before the end of the log, and those before it.
pub fn data_frames(dir: &Path) -> Vec<Placed> {
    frames(dir).into_iter().filter(|placed| placed.header.kind == FrameKind::Data).collect()
}

/// Changes a file.
pub fn edit(path: &Path, change: impl FnOnce(&mut [u8])) {
    let mut bytes = std::fs::read(path).unwrap();
    change(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

/// Changes one byte.
pub fn flip(path: &Path, at: usize) {
    edit(path, |bytes| bytes[at] ^= 0x40);
}

/// Makes the CRC of a superblock slot or segment header right again.
pub fn reseal_block(block: &mut [u8]) {
    let crc = crc32c::crc32c(&block[12..BLOCK]);
    block[8..12].copy_from_slice(&crc.to_le_bytes());
}

/// The same for header and directory of the frame that begins here.
pub fn reseal_frame(bytes: &mut [u8]) {
    let length = frame::peek_header_bytes(bytes).unwrap();
    let crc = crc32c::crc32c(&bytes[8..length]);
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
}

/// Puts a small frame over a large one before it in the same file, as a disk does that writes to the wrong place; returns the file.
/// Both are whole.
pub fn lead_astray(root: &Path, large: usize, small: usize) -> PathBuf {
    let frames = data_frames(root);
    let (from, to) = (&frames[small], &frames[large]);
    assert!(from.path == to.path && from.header.frame_bytes() < to.header.frame_bytes(), "a small one over a large one");
    edit(&to.path, |bytes| bytes.copy_within(from.at..from.at + from.header.frame_bytes(), to.at));
    to.path.clone()
}
