//! Frames of one segment, read through a window (`window.rs`): memory stays bounded however large the segment is.

use super::volume::Segment;
use super::window::{Ahead, Window};
use crate::disk::{AlignedBuf, Chain, Disk, DiskError, FileId, blocks_up};
use crate::format::BLOCK;
use crate::format::frame::{self, Entry, EntryKind, FrameHeader, FrameKind, header_bytes};
use crate::format::segment::SegmentHeader;
use crate::format::snapshot::Item;
use crate::format::superblock::Superblock;
use crate::report::OpenError;

/// Bytes read at most at once where only directories are wanted and frames are large. As many as the directory before took: a
/// block takes half the time of this.
const HOP_BYTES_MAX: usize = 64 << 10;
/// Frames from here on are hopped over. Below, one read after the other costs more than reading what lies between.
const HOP_FROM: usize = 128 << 10;

/// Where a frame must join the chain; `None`: the frame before it is lost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected {
    pub(super) lsn: u64,
    pub(super) prev_crc: Option<u32>,
}

/// A good frame.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) header: FrameHeader,
    pub(super) position: u64,
    pub(super) entries: Vec<Entry>,
    /// Decompressed; only where it was verified and recovery has to look into it.
    pub(super) payload: Option<Vec<u8>>,
}

impl Found {
    /// The segment, as its first readable frame shows it.
    pub(super) fn segment(&self, file: u32) -> Segment {
        let frame = &self.header;
        let header = SegmentHeader {
            volume_id: frame.volume_id,
            sequence: frame.segment_sequence,
            epoch: frame.epoch,
            first_lsn: frame.lsn,
            prev_crc: frame.prev_crc,
            durable_lsn: frame.durable_lsn,
            opened_ms: frame.written_ms,
            file: Some(file),
        };
        Segment { file, header, repaired: true, exact: self.is_first(), chained: true, epoch_lsn: frame.epoch_lsn }
    }

    /// Whether a write gone astray has put it here.
    fn is_in_place(&self) -> bool {
        self.header.lies_at(self.position)
    }

    /// Whether it is what a segment begins with: of older programs, which do not say where a frame belongs, a write gone astray may have put
    /// a later one there.
    fn is_first(&self) -> bool {
        self.position == BLOCK as u64 && matches!(self.header.kind, FrameKind::Snapshot | FrameKind::SnapshotEnd)
    }
}

pub(super) struct Scanner<'a> {
    disk: &'a mut dyn Disk,
    superblock: Superblock,
    /// One for each copy of the log.
    windows: Vec<Window>,
    /// Of the last good frame: the next one is probably alike.
    frame_bytes: usize,
    /// And its header and directory, in whole blocks.
    hop_bytes: usize,
    /// The first frame that only a newer program can read.
    newer: Option<(u32, u64, frame::Unknown)>,
    all_payloads: bool,
    /// Frames written to the copy that lacked them.
    pub(super) mended: u64,
    /// Why mending failed for good.
    pub(super) failed: Option<DiskError>,
}

impl<'a> Scanner<'a> {
    pub(super) fn new(disk: &'a mut dyn Disk, superblock: &Superblock) -> Scanner<'a> {
        let piece_bytes = disk.scan_bytes();
        let windows = (0..disk.copies()).map(|_| Window::new(piece_bytes)).collect();
        Scanner {
            disk,
            superblock: *superblock,
            windows,
            frame_bytes: 0,
            hop_bytes: BLOCK,
            newer: None,
            all_payloads: false,
            mended: 0,
            failed: None,
        }
    }

    /// From now on every verified frame comes with its payload, not only those that recovery looks into.
    pub(super) fn hand_out_payloads(&mut self) {
        self.all_payloads = true;
    }

    /// A frame that this program does not know is no damage: whoever goes on would lose what it holds.
    pub(super) fn refuse_newer(&self) -> Result<(), OpenError> {
        match self.newer {
            Some((file, at, found)) => Err(OpenError::NewerFrame { file, at, found }),
            None => Ok(()),
        }
    }

    /// Bytes read from all copies.
    pub(super) fn bytes_read(&self) -> u64 {
        self.windows.iter().map(|window| window.bytes_read).sum()
    }

    /// `bytes` bytes at `at` of one copy, of which the caller needs all.
    fn bytes(&mut self, copy: usize, file: u32, at: u64, bytes: usize, ahead: Ahead) -> Result<&[u8], String> {
        let end = self.superblock.segment_bytes;
        if at + bytes as u64 > end {
            return Err("it reaches beyond the segment".to_owned());
        }
        self.windows[copy].bytes(self.disk, (copy, file, end), at, bytes, ahead).map_err(|error| error.to_string())
    }

    /// Only this segment's directories will be wanted, soon: if its frames are like those before, they are hopped over.
    pub(super) fn announce(&mut self, segment: &Segment) {
        if self.frame_bytes >= HOP_FROM {
            let (file, end) = (FileId::Segment(segment.file), self.superblock.segment_bytes);
            self.disk.read_chain(0, Chain { file, at: BLOCK as u64, end, bytes: self.hop_bytes, next: frame_bytes_of });
        }
    }

    /// The frame at `position`, if it is good on any copy. A copy on which it is not gets it from the one on which it is; with
    /// `verify` every copy is looked at, without only as many as it takes.
    pub(super) fn frame(&mut self, segment: &Segment, position: u64, expected: Expected, verify: bool) -> Result<Found, String> {
        let mut good: Option<(usize, Found)> = None;
        let mut bad = Vec::new();
        let mut reason = None;
        for copy in 0..self.windows.len() {
            if good.is_some() && !verify && bad.is_empty() {
                break;
            }
            match self.expected(copy, segment, position, expected, verify) {
                Ok(found) if good.is_none() => good = Some((copy, found)),
                Ok(found) => {
                    let same = good.as_ref().is_some_and(|(_, first)| first.header == found.header);
                    bad.extend((!same).then_some(copy));
                }
                Err(error) => {
                    bad.push(copy);
                    reason = reason.or(Some(error));
                }
            }
        }
        let Some((copy, found)) = good else { return Err(reason.unwrap_or_default()) };
        for lacking in bad {
            self.mend(copy, lacking, segment, &found);
        }
        Ok(found)
    }

    fn expected(
        &mut self,
        copy: usize,
        segment: &Segment,
        position: u64,
        expected: Expected,
        verify: bool,
    ) -> Result<Found, String> {
        let found = self.intact(copy, segment, position, verify)?;
        if !found.is_in_place() {
            return Err(format!("frame {} is here, which belongs to block {}", found.header.lsn, found.header.block));
        }
        if found.header.lsn != expected.lsn {
            return Err(format!("frame {} is here instead", found.header.lsn));
        }
        if expected.prev_crc.is_some_and(|crc| crc != found.header.prev_crc) {
            return Err("it is not chained to the frame before".to_owned());
        }
        Ok(found)
    }

    /// Writes a frame to the copy that lacks it, if it is whole.
    fn mend(&mut self, from: usize, to: usize, segment: &Segment, found: &Found) {
        // Nothing is written over what only a newer program can read, nor anywhere else then.
        if self.failed.is_some() || self.newer.is_some() || self.intact(from, segment, found.position, true).is_err() {
            return;
        }
        let bytes = found.header.frame_bytes();
        let Ok(frame) = self.bytes(from, segment.file, found.position, bytes, Ahead::Hop(0)) else { return };
        let frame = AlignedBuf::copy_of(frame);
        match self.disk.mend(to, FileId::Segment(segment.file), found.position, &frame, bytes) {
            Ok(()) => self.mended += 1,
            Err(error) => self.failed = Some(error),
        }
        // The copy may have failed and be gone: what the windows hold may be another's.
        let copies = self.disk.copies();
        self.windows.truncate(copies);
        self.windows.iter_mut().for_each(Window::forget);
    }

    /// A frame that is good in itself and belongs to this life of the segment.
    fn intact(&mut self, copy: usize, segment: &Segment, position: u64, verify: bool) -> Result<Found, String> {
        let ahead = if verify || self.frame_bytes < HOP_FROM { Ahead::All } else { Ahead::Hop(self.hop_bytes) };
        let first = self.bytes(copy, segment.file, position, BLOCK, ahead)?;
        let length = frame::peek_header_bytes(first).ok_or("there is no frame")?;
        let head = self.bytes(copy, segment.file, position, length, ahead)?;
        let read = frame::decode_header(head).and_then(|header| Ok((header, header.directory(head)?)));
        let (header, entries) = match read {
            Ok(read) => read,
            Err(reason) => {
                let unknown = frame::unknown(head, &segment.header.volume_id, segment.header.sequence);
                self.newer = self.newer.or(unknown.map(|unknown| (segment.file, position, unknown)));
                return Err(reason.to_owned());
            }
        };
        self.belongs(segment, &header)?;
        if position + header.frame_bytes() as u64 > self.superblock.segment_bytes {
            return Err("it reaches beyond the segment".to_owned());
        }
        let mut payload = None;
        // Of record batches the directory says all that recovery wants to know.
        let wanted = self.all_payloads
            || entries.iter().any(|entry| matches!(entry.kind, EntryKind::Meta | EntryKind::Changes | EntryKind::Snapshot));
        if verify {
            let whole = self.bytes(copy, segment.file, position, header.frame_bytes(), ahead)?;
            let stored = header.verified_payload(whole)?;
            if wanted {
                payload = Some(header.raw_payload(stored)?);
            }
        }
        // A segment's snapshot says nothing of the frames behind it.
        if verify || !matches!(header.kind, FrameKind::Snapshot | FrameKind::SnapshotEnd) {
            self.frame_bytes = header.frame_bytes();
            self.hop_bytes = blocks_up(header.header_bytes()).min(HOP_BYTES_MAX);
        }
        Ok(Found { header, position, entries, payload })
    }

    fn belongs(&self, segment: &Segment, header: &FrameHeader) -> Result<(), &'static str> {
        if header.volume_id != self.superblock.volume_id {
            return Err("it belongs to another volume");
        }
        if header.segment_sequence != segment.header.sequence {
            return Err("it is of another life of this file");
        }
        if !header.may_be_of(segment.file) {
            return Err("it belongs to another file");
        }
        if header.epoch > self.superblock.epoch {
            return Err("it is of an epoch that never was");
        }
        // Each opening begins with a new segment. One that was lost may have had this number, and this file.
        if header.epoch != segment.header.epoch {
            return Err("it is of another epoch than its segment");
        }
        Ok(())
    }

    /// The first frame from `position` on that is good in itself, lies where it belongs, and has an LSN of at least `lsn` and below `limit`.
    pub(super) fn find_next(&mut self, segment: &Segment, mut position: u64, lsn: u64, limit: u64) -> Option<Found> {
        loop {
            let found = self.find_any(segment, position, lsn, limit)?;
            if found.is_in_place() {
                return Some(found);
            }
            position = found.position + BLOCK as u64;
        }
    }

    /// The same wherever it belongs: what it says of others is true all the same.
    fn find_any(&mut self, segment: &Segment, mut position: u64, lsn: u64, limit: u64) -> Option<Found> {
        while position < self.superblock.segment_bytes {
            for copy in 0..self.windows.len() {
                if self.may_be_frame(copy, segment, position)
                    && let Ok(found) = self.intact(copy, segment, position, true)
                    && (lsn..limit).contains(&found.header.lsn)
                {
                    return Some(found);
                }
            }
            position += BLOCK as u64;
        }
        None
    }

    /// Whether any good frame from `position` on says that `lsn` was durable.
    pub(super) fn proves(&mut self, segment: &Segment, mut position: u64, lsn: u64) -> bool {
        while let Some(found) = self.find_any(segment, position, lsn, u64::MAX) {
            if found.header.durable_lsn >= lsn {
                return true;
            }
            position = found.position + BLOCK as u64;
        }
        false
    }

    /// Highest LSN that a good frame from `position` on says was durable.
    pub(super) fn proven_up_to(&mut self, segment: &Segment, mut position: u64) -> u64 {
        let mut proven = 0;
        while let Some(found) = self.find_any(segment, position, 0, u64::MAX) {
            proven = proven.max(found.header.durable_lsn);
            position = found.position + found.header.frame_bytes() as u64;
        }
        proven
    }

    /// Whether the block at `position` shows that frame `lsn` was begun there.
    pub(super) fn has_remains(&mut self, segment: &Segment, position: u64, lsn: u64) -> bool {
        (0..self.windows.len()).any(|copy| self.has_remains_on(copy, segment, position, lsn))
    }

    fn has_remains_on(&mut self, copy: usize, segment: &Segment, position: u64, lsn: u64) -> bool {
        let Ok(block) = self.bytes(copy, segment.file, position, BLOCK, Ahead::Hop(0)) else { return false };
        let found = frame::peek_header_bytes(block).is_some()
            && crate::format::u64_at(block, 24) == lsn
            && crate::format::u64_at(block, 32) == segment.header.sequence;
        found || !block.starts_with(&[0; 8]) && frame::peek_header_bytes(block).is_none()
    }

    fn may_be_frame(&mut self, copy: usize, segment: &Segment, position: u64) -> bool {
        let sequence = segment.header.sequence;
        match self.bytes(copy, segment.file, position, BLOCK, Ahead::All) {
            Ok(block) => frame::peek_header_bytes(block).is_some() && crate::format::u64_at(block, 32) == sequence,
            Err(_) => false,
        }
    }

    /// Reads a segment's snapshot and hands its records out; whether it was whole. The records before a damaged part are handed
    /// out all the same, so try it with a sink that forgets first.
    pub(super) fn snapshot(&mut self, segment: &Segment, each: &mut dyn FnMut(Item)) -> bool {
        let header = &segment.header;
        let mut expected = Expected { lsn: header.first_lsn, prev_crc: (!segment.repaired).then_some(header.prev_crc) };
        let mut position = BLOCK as u64;
        loop {
            let Ok(found) = self.frame(segment, position, expected, true) else { return false };
            let Some(payload) = &found.payload else { return false };
            if !matches!(found.header.kind, FrameKind::Snapshot | FrameKind::SnapshotEnd) {
                return false;
            }
            let mut rest = &payload[..];
            while let Some(item) = Item::decode(&mut rest) {
                match item {
                    Ok(item) => each(item),
                    Err(_) => return false,
                }
            }
            if found.header.kind == FrameKind::SnapshotEnd {
                return true;
            }
            expected = Expected { lsn: found.header.lsn + 1, prev_crc: Some(found.header.header_crc) };
            position += found.header.frame_bytes() as u64;
        }
    }

    /// Any frame of this volume in a file whose header is unreadable: the first good one tells whose life it is.
    pub(super) fn any_frame(&mut self, file: u32) -> Option<(usize, Found)> {
        (0..self.windows.len()).find_map(|copy| Some((copy, self.any_frame_on(copy, file)?)))
    }

    /// What told a file's life on one copy must tell it on every copy, since each may be alone next time: header and directory
    /// are enough, whatever became of the payload.
    pub(super) fn share_remains(&mut self, file: u32, from: usize, found: &Found) -> Result<(), DiskError> {
        let length = found.header.header_bytes();
        let Ok(head) = self.bytes(from, file, found.position, blocks_up(length), Ahead::Hop(0)) else { return Ok(()) };
        let head = AlignedBuf::copy_of(head);
        for copy in (0..self.windows.len()).filter(|copy| *copy != from) {
            let there = self
                .bytes(copy, file, found.position, length, Ahead::Hop(0))
                .ok()
                .and_then(|head| frame::decode_header(head).ok());
            if there != Some(found.header) {
                self.disk.mend(copy, FileId::Segment(file), found.position, &head, head.len())?;
            }
        }
        Ok(())
    }

    fn any_frame_on(&mut self, copy: usize, file: u32) -> Option<Found> {
        let mut position = BLOCK as u64;
        while position < self.superblock.segment_bytes {
            if let Ok(block) = self.bytes(copy, file, position, BLOCK, Ahead::All)
                && let Some(length) = frame::peek_header_bytes(block)
                && let Ok(head) = self.bytes(copy, file, position, length, Ahead::All)
                && let Ok(header) = frame::decode_header(head)
                && header.volume_id == self.superblock.volume_id
                && header.epoch <= self.superblock.epoch
                && header.segment_sequence >= self.superblock.first_sequence
                && header.lies_at(position)
                && header.may_be_of(file)
            {
                return Some(Found { header, position, entries: Vec::new(), payload: None });
            }
            position += BLOCK as u64;
        }
        None
    }
}

fn frame_bytes_of(head: &[u8]) -> Option<usize> {
    frame::decode_header(head).ok().map(|header| header.frame_bytes())
}

const _: () = assert!(header_bytes(0) <= BLOCK && HOP_BYTES_MAX.is_multiple_of(BLOCK));
