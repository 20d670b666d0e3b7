//! What the scanner sees of one copy's files: two pieces that adjoin, however large the file is.
//!
//! Going forward, each byte is read once: the next piece takes the place of the older one, and a frame that lies across their
//! border is put together in a buffer of its own. Meanwhile the disk is told what comes next ([`Disk::read_ahead`]).

use crate::disk::{AlignedBuf, Disk, DiskError, FileId, blocks_up};

/// Pieces that the disk is told of: it may have fewer in work.
const PIECES_AHEAD: usize = 4;

/// How a scan goes on from where it reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ahead {
    /// Through everything.
    All,
    /// From directory to directory: only so many bytes are wanted.
    Hop(usize),
}

/// See the module.
pub(super) struct Window {
    older: Piece,
    /// The last one that was read.
    piece: Piece,
    across: AlignedBuf,
    piece_bytes: usize,
    pub(super) bytes_read: u64,
}

#[derive(Default)]
struct Piece {
    bytes: Option<AlignedBuf>,
    held: Option<Stretch>,
}

#[derive(Clone, Copy)]
struct Stretch {
    file: u32,
    at: u64,
    end: u64,
}

impl Piece {
    fn holds(&self, file: u32, at: u64) -> Option<Stretch> {
        self.held.filter(|held| held.file == file && held.at <= at && at < held.end)
    }

    fn slice(&self, from: u64, to: u64) -> &[u8] {
        match (&self.bytes, self.held) {
            (Some(bytes), Some(held)) => &bytes[(from - held.at) as usize..(to - held.at) as usize],
            _ => &[],
        }
    }

    fn read(&mut self, disk: &mut dyn Disk, copy: usize, held: Stretch, room: usize) -> Result<(), DiskError> {
        self.held = None;
        let length = (held.end - held.at) as usize;
        let bytes = match &mut self.bytes {
            Some(bytes) if bytes.len() >= length => bytes,
            bytes => bytes.insert(AlignedBuf::zeroed(length.max(room))),
        };
        disk.read_copy(copy, FileId::Segment(held.file), held.at, bytes, length)?;
        self.held = Some(held);
        Ok(())
    }
}

impl Window {
    pub(super) fn new(piece_bytes: usize) -> Window {
        let (older, piece) = (Piece::default(), Piece::default());
        Window { older, piece, across: AlignedBuf::zeroed(0), piece_bytes, bytes_read: 0 }
    }

    /// What it holds may be wrong.
    pub(super) fn forget(&mut self) {
        (self.older.held, self.piece.held) = (None, None);
    }

    /// `bytes` bytes at `at` of a file of which `end` bytes count. The caller needs all of them.
    pub(super) fn bytes(
        &mut self,
        disk: &mut dyn Disk,
        (copy, file, end): (usize, u32, u64),
        at: u64,
        bytes: usize,
        ahead: Ahead,
    ) -> Result<&[u8], DiskError> {
        let to = at + bytes as u64;
        if !self.holds(file, at, to) && !self.extend(disk, (copy, file, end), at, to, ahead) {
            self.jump(disk, (copy, file, end), at, to, ahead)?;
        }
        if self.piece.holds(file, at).is_some() {
            return Ok(self.piece.slice(at, to));
        }
        let border = self.older.held.map_or(to, |older| older.end.min(to));
        if border == to {
            return Ok(self.older.slice(at, to));
        }
        if self.across.len() < bytes {
            self.across = AlignedBuf::zeroed(bytes.max(self.piece_bytes));
        }
        let (before, behind) = self.across[..bytes].split_at_mut((border - at) as usize);
        before.copy_from_slice(self.older.slice(at, border));
        behind.copy_from_slice(self.piece.slice(border, to));
        Ok(&self.across[..bytes])
    }

    fn holds(&self, file: u32, at: u64, to: u64) -> bool {
        if let Some(held) = self.piece.holds(file, at) {
            return to <= held.end;
        }
        // The older piece ends where the other one begins.
        let Some(older) = self.older.holds(file, at) else { return false };
        to <= older.end || self.piece.held.is_some_and(|held| held.file == file && held.at == older.end && to <= held.end)
    }

    /// Reads the piece behind the last one, if that is all it takes.
    fn extend(&mut self, disk: &mut dyn Disk, (copy, file, end): (usize, u32, u64), at: u64, to: u64, ahead: Ahead) -> bool {
        let Some(last) = self.piece.held.filter(|held| held.file == file && held.at <= at) else {
            return false;
        };
        let next = Stretch { file, at: last.end, end: end.min(last.end + self.piece_bytes as u64) };
        if ahead != Ahead::All || to > next.end {
            return false;
        }
        std::mem::swap(&mut self.older, &mut self.piece);
        if self.piece.read(disk, copy, next, self.piece_bytes).is_err() {
            // A bad sector further on must not hide what lies before it.
            std::mem::swap(&mut self.older, &mut self.piece);
            return false;
        }
        self.bytes_read += next.end - next.at;
        self.hint(disk, copy, end, next, PIECES_AHEAD);
        true
    }

    /// Begins anew at `at`.
    fn jump(
        &mut self,
        disk: &mut dyn Disk,
        (copy, file, end): (usize, u32, u64),
        at: u64,
        to: u64,
        ahead: Ahead,
    ) -> Result<(), DiskError> {
        self.forget();
        let least = blocks_up((to - at) as usize) as u64;
        let most = least.max(match ahead {
            Ahead::All => self.piece_bytes as u64,
            Ahead::Hop(bytes) => bytes as u64,
        });
        let stretch = |bytes: u64| Stretch { file, at, end: end.min(at + bytes) };
        let read = match self.piece.read(disk, copy, stretch(most), self.piece_bytes) {
            Ok(()) => stretch(most),
            // The same: only what is wanted, then.
            Err(_) if most > least => {
                self.piece.read(disk, copy, stretch(least), self.piece_bytes)?;
                stretch(least)
            }
            Err(error) => return Err(error),
        };
        self.bytes_read += read.end - read.at;
        if ahead == Ahead::All {
            self.hint(disk, copy, end, read, 1);
        }
        Ok(())
    }

    /// So many pieces behind this one are read next.
    fn hint(&self, disk: &mut dyn Disk, copy: usize, end: u64, behind: Stretch, pieces: usize) {
        let mut at = behind.end;
        for _ in 0..pieces {
            let bytes = end.saturating_sub(at).min(self.piece_bytes as u64);
            if bytes > 0 {
                disk.read_ahead(copy, FileId::Segment(behind.file), at, bytes as usize);
            }
            at += bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::disk::BLOCK_BYTES;
    use crate::disk::sim::{Faults, SimDisk};

    const BLOCKS: u64 = 40;

    fn content(file: u32) -> AlignedBuf {
        let mut bytes = AlignedBuf::zeroed(BLOCKS as usize * BLOCK_BYTES);
        bytes.iter_mut().enumerate().for_each(|(n, byte)| *byte = (n / 512 + n + file as usize * 7) as u8);
        bytes
    }

    proptest! {
        #[test]
        fn a_window_shows_the_file_wherever_it_is_asked(piece in 1..9_usize, steps in proptest::collection::vec((0..10_u64, 0..12_u64, 1..12_usize, any::<bool>(), 0..8_u32), 1..60)) {
            let mut disk = SimDisk::new(1, Faults::default());
            let files = [content(0), content(1)];
            for (file, bytes) in (0..).zip(&files) {
                disk.write_now(FileId::Segment(file), 0, bytes, bytes.len()).unwrap();
            }
            let mut window = Window::new(piece * BLOCK_BYTES);
            let end = BLOCKS * BLOCK_BYTES as u64;
            let (mut at, mut file) = (0, 0);
            for (jump, step, blocks, all, odd) in steps {
                // Mostly forward, as a scan goes.
                at = if jump == 0 { step } else { at + step };
                file = if odd == 0 { 1 - file } else { file };
                at %= BLOCKS;
                let from = at * BLOCK_BYTES as u64;
                let bytes = (blocks * BLOCK_BYTES - odd as usize * 100).min((end - from) as usize);
                let ahead = if all { Ahead::All } else { Ahead::Hop(2 * BLOCK_BYTES) };
                let seen = window.bytes(&mut disk, (0, file, end), from, bytes, ahead).unwrap();
                let range = from as usize..from as usize + bytes;
                prop_assert!(seen == &files[file as usize][range], "{bytes} bytes at {from}");
            }
        }
    }

    #[test]
    fn going_forward_reads_each_byte_once() {
        let mut disk = SimDisk::new(1, Faults::default());
        let file = content(0);
        disk.write_now(FileId::Segment(0), 0, &file, file.len()).unwrap();
        let mut window = Window::new(4 * BLOCK_BYTES);
        for block in (0..BLOCKS - 3).step_by(3) {
            let from = block * BLOCK_BYTES as u64;
            let seen = window.bytes(&mut disk, (0, 0, file.len() as u64), from, 3 * BLOCK_BYTES, Ahead::All).unwrap();
            assert!(seen == &file[from as usize..][..3 * BLOCK_BYTES]);
        }
        assert_eq!(window.bytes_read, file.len() as u64);
    }
}
