//! Looking at a full WAL segment: every frame of each copy of it, and what one copy has lost written anew from the other one.
//!
//! Only segments are looked at that no cold segment holds yet. Such a segment is never written again: the log does so only when
//! it is sorted, and sorting is a job like this one, of which there is one at a time. So its bytes stay where they are until this
//! job is answered, on every copy, and a frame that is intact on one copy may be written over what lies there on another. Only
//! blocks of that frame are written, so a power cut in the middle leaves nothing worse than what was there. And only a frame that is
//! chained to the one before it: one that was written to a wrong place must not spread.
//!
//! Cost: each copy read once. Memory: a window of 1 MiB and a frame, a copy.

use bytes::Bytes;

use super::job::{Done, JobError};
use super::stores::Stores;
use super::wal::WalSegment;
use crate::disk::{AlignedBuf, DiskError, FileId};
use crate::format::frame::{self, FrameHeader};
use crate::format::segment::{HeaderBlock, SegmentHeader};
use crate::format::{BLOCK, Uuid};
use crate::view::View;

/// Read at once.
const WINDOW: usize = 1 << 20;
/// Unreadable places on one copy from which it is the disk that is broken, and not some of its sectors.
const UNREADABLE_MAX: u64 = 256;

/// One copy, as it is read.
struct Copy {
    volume: u8,
    window: Bytes,
    window_at: u64,
    unreadable: u64,
    /// Nothing more is read from it.
    gone: bool,
    /// A write to it failed, or may not be made.
    no_writes: bool,
    damaged: u64,
}

struct Scrub<'a, 'b> {
    stores: &'a mut Stores<'b>,
    view: &'a View,
    log_id: &'a Uuid,
    segment: &'a WalSegment,
    copies: Vec<Copy>,
    /// LSN and CRC of the last good frame.
    last: Option<(u64, u32)>,
    /// Inside damage that no copy makes good.
    lost: bool,
    lost_at: Vec<u64>,
    mended: u64,
    read_bytes: u64,
}

/// Looks at all copies that count, and mends what can be mended.
pub(super) fn scrub(stores: &mut Stores<'_>, view: &View, log_id: &Uuid, segment: &WalSegment) -> Result<Done, JobError> {
    let copy = |volume: &u8| Copy {
        volume: *volume,
        window: Bytes::new(),
        window_at: 0,
        unreadable: 0,
        gone: false,
        no_writes: false,
        damaged: 0,
    };
    let copies = stores.wal().iter().map(copy).collect();
    let (last, lost_at) = (None, Vec::new());
    let mut scrub = Scrub { stores, view, log_id, segment, copies, last, lost: false, lost_at, mended: 0, read_bytes: 0 };
    scrub.header()?;
    let mut at = BLOCK as u64;
    while at < scrub.end() && scrub.copies.iter().any(|copy| !copy.gone) {
        at += scrub.frame_at(at)?;
    }
    let damaged = scrub.copies.iter().filter(|copy| copy.damaged > 0).map(|copy| (copy.volume, copy.damaged)).collect();
    Ok(Done::WalScrubbed { damaged, mended: scrub.mended, lost_at: scrub.lost_at, read_bytes: scrub.read_bytes })
}

impl Scrub<'_, '_> {
    fn end(&self) -> u64 {
        u64::from(self.segment.end_block) * BLOCK as u64
    }

    /// The segment's header; where no copy has it, its frames tell whose they are.
    fn header(&mut self) -> Result<(), DiskError> {
        let mut found = Vec::new();
        for n in 0..self.copies.len() {
            let block = self.read(n, 0, BLOCK)?;
            let header = block.as_ref().and_then(|block| match SegmentHeader::decode(block) {
                HeaderBlock::Good(header) => Some(header),
                _ => None,
            });
            let its = header.filter(|header| header.sequence == self.segment.sequence && header.volume_id == *self.log_id);
            found.push(its.and(block).zip(its));
        }
        let Some((block, header)) = found.iter().flatten().next().cloned() else { return Ok(()) };
        self.last = header.first_lsn.checked_sub(1).map(|lsn| (lsn, header.prev_crc));
        for (n, found) in found.iter().enumerate() {
            if found.is_none() {
                self.mend(n, 0, &block)?;
            }
        }
        Ok(())
    }

    /// Looks at what begins here on each copy. Returns how far to go on.
    fn frame_at(&mut self, at: u64) -> Result<u64, DiskError> {
        let mut found = Vec::with_capacity(self.copies.len());
        for n in 0..self.copies.len() {
            found.push(if self.copies[n].gone { None } else { self.frame(n, at)? });
        }
        let Some((header, whole)) = found.iter().flatten().next().cloned() else {
            if !self.lost {
                self.lost_at.push(at);
                self.copies.iter_mut().filter(|copy| !copy.gone).for_each(|copy| copy.damaged += 1);
            }
            self.lost = true;
            return Ok(BLOCK as u64);
        };
        let chained = self.last.is_some() && !self.lost;
        for (n, found) in found.iter().enumerate() {
            match found {
                None if chained => self.mend(n, at, &whole)?,
                None => self.copies[n].damaged += u64::from(!self.copies[n].gone),
                Some(_) => {}
            }
        }
        (self.lost, self.last) = (false, Some((header.lsn, header.header_crc)));
        Ok(whole.len() as u64)
    }

    /// The frame that begins here on one copy, if it is intact and belongs here.
    fn frame(&mut self, n: usize, at: u64) -> Result<Option<(FrameHeader, Bytes)>, DiskError> {
        let Some(first) = self.read(n, at, BLOCK)? else { return Ok(None) };
        let Some(length) = frame::peek_header_bytes(&first).filter(|length| at + *length as u64 <= self.end()) else {
            return Ok(None);
        };
        let Some(head) = self.read(n, at, length)? else { return Ok(None) };
        let Ok(header) = frame::decode_header(&head) else { return Ok(None) };
        let its = header.volume_id == *self.log_id && header.segment_sequence == self.segment.sequence;
        let bytes = header.frame_bytes();
        if !its || !header.lies_at(at) || !self.joins(&header) || at + bytes as u64 > self.end() {
            return Ok(None);
        }
        let Some(whole) = self.read(n, at, bytes)? else { return Ok(None) };
        let sound = header.directory(&whole).is_ok() && header.verified_payload(&whole).is_ok();
        Ok(sound.then_some((header, whole)))
    }

    /// Frames of older programs do not say where they belong.
    fn joins(&self, header: &FrameHeader) -> bool {
        match self.last {
            Some((lsn, _)) if self.lost => header.lsn > lsn,
            Some((lsn, crc)) => header.lsn == lsn + 1 && header.prev_crc == crc,
            None => true,
        }
    }

    /// Bytes of one copy; `None` where they cannot be read.
    fn read(&mut self, n: usize, at: u64, bytes: usize) -> Result<Option<Bytes>, DiskError> {
        let (end, file) = (self.end(), FileId::Segment(self.segment.file));
        let copy = &mut self.copies[n];
        if copy.gone {
            return Ok(None);
        }
        if let Some(from) = at.checked_sub(copy.window_at).map(|from| from as usize)
            && from + bytes <= copy.window.len()
        {
            return Ok(Some(copy.window.slice(from..from + bytes)));
        }
        let left = end.saturating_sub(at) as usize;
        for length in [WINDOW.max(bytes).min(left), bytes] {
            match self.stores.read_on(copy.volume, file, at, length) {
                Ok(window) => {
                    self.read_bytes += length as u64;
                    (copy.window, copy.window_at) = (window, at);
                    return Ok(copy.window.len().ge(&bytes).then(|| copy.window.slice(..bytes)));
                }
                Err(error @ (DiskError::Closed { .. } | DiskError::Hangs { .. })) => return Err(error),
                // A bad sector further on must not hide what lies before it.
                Err(DiskError::Io { .. }) if copy.unreadable < UNREADABLE_MAX => copy.unreadable += 1,
                Err(error) => {
                    tracing::warn!(%error, volume = copy.volume, "this copy of a log segment is not looked at any further");
                    copy.gone = true;
                    copy.damaged += 1;
                    return Ok(None);
                }
            }
        }
        Ok(None)
    }

    /// Writes over what lies there on one copy.
    fn mend(&mut self, n: usize, at: u64, data: &Bytes) -> Result<(), DiskError> {
        let file = FileId::Segment(self.segment.file);
        // The engine holds the segment for as long as this job runs; what it shows is asked all the same.
        let kept = self.view.tables().segment(self.segment.sequence as u32).is_some_and(|place| place.file == self.segment.file);
        let copy = &mut self.copies[n];
        if copy.gone {
            return Ok(());
        }
        copy.damaged += 1;
        if copy.no_writes || !kept {
            return Ok(());
        }
        match self.stores.change_on(copy.volume, |store| store.overwrite(file, at, AlignedBuf::copy_of(data))) {
            Ok(()) => {
                self.mended += 1;
                copy.window = Bytes::new();
            }
            Err(error @ DiskError::Closed { .. }) => return Err(error),
            Err(error) => {
                tracing::warn!(%error, %file, at, volume = copy.volume, "damage to a copy of the log could not be mended");
                copy.no_writes = true;
            }
        }
        Ok(())
    }
}
