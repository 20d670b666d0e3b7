//! What a file of a volume holds, piece by piece, for people: told from its magic, believed only where a CRC vouches for it.
//!
//! Nothing here knows the volume, so nothing is said about the chain between files; `check` does that. No bytes make it panic.

mod cold;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::cold::{Footer, SegmentHead};
use crate::format::frame::{self, Entry, FrameHeader};
use crate::format::segment::{self, HeaderBlock, SegmentHeader};
use crate::format::superblock::{self, SLOTS, Slot, Superblock};
use crate::format::{BLOCK, u16_at};
pub use cold::{BlockPiece, IndexPiece, PagePiece};

/// A piece of a file.
#[derive(Debug)]
pub enum Piece {
    /// A slot of a superblock, with its format version where it is intact.
    Slot {
        /// Where it lies.
        at: u64,
        /// What it holds.
        slot: Slot,
        /// Major and minor version.
        format: (u16, u16),
    },
    /// The first block of a segment file.
    SegmentHeader(HeaderBlock),
    /// A frame whose header CRC holds.
    Frame(Box<FramePiece>),
    /// The first block of a cold segment.
    ColdHeader {
        /// Number of the segment, as far as it can be told.
        number: u32,
        /// What it says, or what is wrong with it.
        head: Result<Box<SegmentHead>, String>,
    },
    /// A block of a cold segment.
    ColdBlock(BlockPiece),
    /// A partition page of a cold segment.
    ColdPage(PagePiece),
    /// The index of a cold segment.
    ColdIndex(IndexPiece),
    /// The last block of a cold segment.
    ColdFooter {
        /// Where it lies.
        at: u64,
        /// What it says, or what is wrong with it.
        footer: Result<Box<Footer>, String>,
    },
    /// Frames of an older life of the file, which no reader looks at.
    Old {
        /// Where they begin.
        at: u64,
        /// Bytes of them.
        bytes: u64,
        /// How many.
        frames: u64,
    },
    /// Zeros.
    Zeros {
        /// Where they begin.
        at: u64,
        /// How many.
        bytes: u64,
    },
    /// Anything else.
    Other {
        /// Where it begins.
        at: u64,
        /// Bytes of it.
        bytes: u64,
        /// Why its first block is no frame.
        reason: String,
    },
}

/// A frame.
#[derive(Debug)]
pub struct FramePiece {
    /// Where it lies.
    pub at: u64,
    /// Its header.
    pub header: FrameHeader,
    /// Its directory, or what is wrong with it.
    pub entries: Result<Vec<Entry>, String>,
    /// Its payload, decompressed, or what is wrong with it.
    pub payload: Result<Vec<u8>, String>,
}

/// Why a file cannot be shown.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DumpError {
    /// Not readable.
    #[error("{path} cannot be read: {source}", path = .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// None of ours.
    #[error("{0} is neither a segment (wal/*.wal), a cold segment (cold/*.cold) nor a superblock: it has the magic of none")]
    Unknown(String),
    /// Whoever takes the pieces failed.
    #[error(transparent)]
    Output(#[from] std::io::Error),
}

/// Takes pieces one after the other; an error ends the dump.
pub type Each<'a> = &'a mut dyn FnMut(Piece) -> std::io::Result<()>;

const COLD_MAGIC: &[u8; 8] = b"WEIRCLD1";

/// Shows a file, in the order in which it lies on the disk.
pub fn dump(path: &Path, each: Each<'_>) -> Result<(), DumpError> {
    let failed = |source| DumpError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let bytes = file.metadata().map_err(failed)?.len();
    let mut first = vec![0; BLOCK.min(bytes as usize)];
    file.read_exact_at(&mut first, 0).map_err(failed)?;
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let reader = FileReader { file, bytes, path };
    if first.starts_with(COLD_MAGIC) || name.ends_with(".cold") {
        return reader.cold(&first, each);
    }
    if first.starts_with(superblock::MAGIC) || name == "superblock" {
        return reader.slots(each);
    }
    if first.starts_with(segment::MAGIC) || name.ends_with(".wal") {
        return reader.segment(&first, each);
    }
    Err(DumpError::Unknown(path.display().to_string()))
}

struct FileReader<'a> {
    file: File,
    bytes: u64,
    path: &'a Path,
}

impl FileReader<'_> {
    fn read(&self, at: u64, bytes: usize) -> Result<Vec<u8>, DumpError> {
        let mut read = vec![0; bytes];
        let failed = |source| DumpError::Read { path: self.path.to_owned(), source };
        self.file.read_exact_at(&mut read, at).map_err(failed)?;
        Ok(read)
    }

    fn slots(&self, each: Each<'_>) -> Result<(), DumpError> {
        for at in (0..SLOTS).map(|slot| slot * BLOCK as u64) {
            let whole = self.bytes >= at + BLOCK as u64;
            let block = if whole { self.read(at, BLOCK)? } else { vec![0; BLOCK] };
            let format = (u16_at(&block, 12), u16_at(&block, 14));
            each(Piece::Slot { at, slot: Superblock::decode(&block), format })?;
        }
        Ok(())
    }

    fn segment(&self, first: &[u8], each: Each<'_>) -> Result<(), DumpError> {
        let header = if first.len() == BLOCK { SegmentHeader::decode(first) } else { HeaderBlock::Damaged };
        each(Piece::SegmentHeader(header))?;
        let ours = match header {
            HeaderBlock::Good(header) => Some(header.sequence),
            _ => None,
        };
        let (mut at, mut run) = (BLOCK as u64, None);
        while at < self.bytes {
            let (next, piece) = self.piece(at, ours)?;
            // Pieces of one kind are told once.
            run = match (run.take(), piece) {
                (None, piece) => Some(piece),
                (Some(Piece::Zeros { at, bytes }), Piece::Zeros { bytes: more, .. }) => {
                    Some(Piece::Zeros { at, bytes: bytes + more })
                }
                (Some(Piece::Other { at, bytes, reason }), Piece::Other { bytes: more, .. }) => {
                    Some(Piece::Other { at, bytes: bytes + more, reason })
                }
                (Some(Piece::Old { at, bytes, frames }), Piece::Old { bytes: more, .. }) => {
                    Some(Piece::Old { at, bytes: bytes + more, frames: frames + 1 })
                }
                (Some(done), piece) => {
                    each(done)?;
                    Some(piece)
                }
            };
            at = next;
        }
        run.map_or(Ok(()), each).map_err(DumpError::Output)
    }

    /// What lies at this block, and where the next piece begins.
    fn piece(&self, at: u64, ours: Option<u64>) -> Result<(u64, Piece), DumpError> {
        let left = self.bytes - at;
        let block = self.read(at, BLOCK.min(left as usize))?;
        let (next, bytes) = (at + block.len() as u64, block.len() as u64);
        if block.iter().all(|byte| *byte == 0) {
            return Ok((next, Piece::Zeros { at, bytes }));
        }
        let other = |reason: &str| Ok((next, Piece::Other { at, bytes, reason: reason.to_owned() }));
        let Some(head_bytes) = frame::peek_header_bytes(&block) else { return other("there is no frame") };
        if head_bytes as u64 > left {
            return other("the frame's directory reaches beyond the file");
        }
        let mut bytes = self.read(at, head_bytes)?;
        let header = match frame::decode_header(&bytes) {
            Ok(header) => header,
            Err(reason) => return other(reason),
        };
        let frame_bytes = header.frame_bytes() as u64;
        if frame_bytes > left {
            return other("the frame reaches beyond the file");
        }
        let next = at + frame_bytes;
        if ours.is_some_and(|ours| ours != header.segment_sequence) {
            return Ok((next, Piece::Old { at, bytes: frame_bytes, frames: 1 }));
        }
        if !header.lies_at(at) {
            let reason = format!("a frame that belongs to block {}, at {}", header.block, u64::from(header.block) * BLOCK as u64);
            return Ok((next, Piece::Other { at, bytes: frame_bytes, reason }));
        }
        let entries = header.directory(&bytes).map_err(str::to_owned);
        bytes = self.read(at, header.frame_bytes())?;
        let payload = header.verified_payload(&bytes).and_then(|stored| header.raw_payload(stored)).map_err(str::to_owned);
        Ok((next, Piece::Frame(Box::new(FramePiece { at, header, entries, payload }))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pieces(name: &str, bytes: &[u8]) -> Result<Vec<String>, DumpError> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(name), bytes).unwrap();
        let mut shown = Vec::new();
        dump(&dir.path().join(name), &mut |piece| {
            shown.push(format!("{piece:?}"));
            Ok(())
        })?;
        Ok(shown)
    }

    #[test]
    fn files_are_told_by_their_magic() {
        assert_eq!(pieces("x", b"WEIRCLD1").unwrap().len(), 3, "header, the rest, footer");
        assert!(matches!(pieces("x", b"something else"), Err(DumpError::Unknown(_))));
        assert!(matches!(pieces("x", b""), Err(DumpError::Unknown(_))));
        assert_eq!(pieces("superblock", b"").unwrap().len(), 2);
        assert_eq!(pieces("00001.wal", &[0; 3 * BLOCK]).unwrap(), ["SegmentHeader(Empty)", "Zeros { at: 4096, bytes: 8192 }"]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), at in 0..3_usize, length in 0..20_000_usize, claimed in 0..2000_u32) {
            let mut file = vec![0; length.max(bytes.len())];
            file[..bytes.len()].copy_from_slice(&bytes);
            let frame = at * BLOCK;
            if file.len() > frame + 200 {
                file[frame..frame + 4].copy_from_slice(b"WFR1");
                file[frame + 52..frame + 56].copy_from_slice(&(claimed * 64).to_le_bytes());
                // A header that is garbage with the right CRC.
                if let Some(head) = frame::peek_header_bytes(&file[frame..]).filter(|head| frame + head <= file.len()) {
                    let crc = crc32c::crc32c(&file[frame + 8..frame + head]);
                    file[frame + 4..frame + 8].copy_from_slice(&crc.to_le_bytes());
                }
            }
            prop_assert!(pieces("00001.wal", &file).is_ok() && pieces("superblock", &file).is_ok());
            prop_assert!(pieces("00000001.cold", &file).is_ok());
        }
    }
}
