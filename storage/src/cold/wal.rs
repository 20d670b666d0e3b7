//! The frames of a full WAL segment, one after another, as the sorter reads them: large requests, every CRC checked.

use bytes::Bytes;

use crate::disk::{ColdStore, DiskError, FileId};
use crate::format::frame::{self, Entry, FrameHeader};
use crate::format::{BLOCK, Uuid};

/// Read at once.
const WINDOW: usize = 1 << 20;
/// Read at once where only heads are wanted: a directory of 250 entries, or four frames without records.
const HEAD_WINDOW: usize = 16 << 10;
/// Unreadable blocks of one segment from which it is the disk that is broken, and not some of its sectors.
const LOST_BLOCKS_MAX: u64 = 4096;

/// A WAL segment that takes no more frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalSegment {
    /// Number of its file.
    pub file: u32,
    /// Of its life.
    pub sequence: u64,
    /// First block behind its durable frames.
    pub end_block: u32,
}

/// A frame with its payload decompressed.
#[derive(Debug)]
pub(crate) struct WalFrame {
    /// Its first block in the segment.
    pub(crate) block: u32,
    pub(crate) header: FrameHeader,
    pub(crate) entries: Vec<Entry>,
    pub(crate) payload: Bytes,
}

/// A frame's header, and where the frame lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WalHead {
    pub(crate) at: u64,
    pub(crate) header: FrameHeader,
}

/// A frame's header and directory, or what is wrong with them.
pub(crate) type HeadFound = Result<(WalHead, Vec<Entry>), &'static str>;

/// Walks one segment.
pub(crate) struct WalScan {
    segment: WalSegment,
    log_id: Uuid,
    at: u64,
    window: Bytes,
    window_at: u64,
    /// Inside damage: reported once, until the next good frame.
    lost: bool,
    /// Stretches without a good frame.
    pub(crate) damaged: u64,
    unreadable: u64,
    /// LSN and CRC of the last good frame.
    last: Option<(u64, u32)>,
    /// The copy of the WAL that is read.
    copy: usize,
    /// Read at once.
    ahead: usize,
    /// Bytes read so far.
    pub(crate) read_bytes: u64,
}

impl WalScan {
    pub(crate) fn new(segment: WalSegment, log_id: Uuid) -> WalScan {
        let at = BLOCK as u64;
        let window = Bytes::new();
        WalScan {
            segment,
            log_id,
            at,
            window,
            window_at: 0,
            lost: false,
            damaged: 0,
            unreadable: 0,
            last: None,
            copy: 0,
            ahead: WINDOW,
            read_bytes: 0,
        }
    }

    /// Header and directory of the next frame of the first copy, or what is wrong with it; its payload is not read. `None` at the end.
    pub(crate) fn next_head(&mut self, store: &mut dyn ColdStore) -> Result<Option<HeadFound>, DiskError> {
        self.ahead = HEAD_WINDOW;
        if self.at >= self.end() {
            return Ok(None);
        }
        let (header, head) = match self.head(store)? {
            Ok(found) => found,
            Err(reason) => return Ok(Some(Err(reason))),
        };
        if !self.joins(&header) {
            return Ok(Some(Err("it does not follow the frame before")));
        }
        let at = self.at;
        self.at += header.frame_bytes() as u64;
        self.last = Some((header.lsn, header.header_crc));
        Ok(Some(header.directory(&head).map(|entries| (WalHead { at, header }, entries))))
    }

    /// The next good frame; `None` at the end. What is damaged is passed over and counted.
    pub(crate) fn next(&mut self, store: &mut dyn ColdStore) -> Result<Option<WalFrame>, DiskError> {
        while self.at < self.end() {
            match self.frame_of_any_copy(store)? {
                Ok(frame) => {
                    self.at += frame.header.frame_bytes() as u64;
                    self.lost = false;
                    self.last = Some((frame.header.lsn, frame.header.header_crc));
                    return Ok(Some(frame));
                }
                Err(reason) => {
                    if !self.lost {
                        let (file, at) = (FileId::Segment(self.segment.file), self.at);
                        tracing::error!(%file, at, reason, "the sorter met a damaged frame: its records are lost");
                        self.damaged += 1;
                    }
                    self.lost = true;
                    self.at += BLOCK as u64;
                }
            }
        }
        Ok(None)
    }

    fn end(&self) -> u64 {
        u64::from(self.segment.end_block) * BLOCK as u64
    }

    /// What one copy has lost the other one may have.
    fn frame_of_any_copy(&mut self, store: &mut dyn ColdStore) -> Result<Result<WalFrame, &'static str>, DiskError> {
        let copies = store.copies(FileId::Segment(self.segment.file)).max(1);
        let mut tried = 1;
        loop {
            let found = self.frame(store);
            let closed = matches!(found, Err(DiskError::Closed { .. }));
            if matches!(found, Ok(Ok(_))) || closed || tried >= copies {
                return found;
            }
            tried += 1;
            self.copy = (self.copy + 1) % copies;
            self.window = Bytes::new();
        }
    }

    /// The frame at `at`, or why there is none.
    fn frame(&mut self, store: &mut dyn ColdStore) -> Result<Result<WalFrame, &'static str>, DiskError> {
        let header = match self.head(store)? {
            Ok((header, _)) => header,
            Err(reason) => return Ok(Err(reason)),
        };
        let Some(whole) = self.bytes(store, header.frame_bytes())? else { return Ok(Err("it cannot be read")) };
        Ok(self.decode(header, &whole))
    }

    /// Its header, and the bytes of header and directory.
    fn head(&mut self, store: &mut dyn ColdStore) -> Result<Result<(FrameHeader, Bytes), &'static str>, DiskError> {
        let Some(first) = self.bytes(store, BLOCK)? else { return Ok(Err("it cannot be read")) };
        let Some(length) = frame::peek_header_bytes(&first) else { return Ok(Err("there is no frame")) };
        if self.at + length as u64 > self.end() {
            return Ok(Err("it reaches beyond the segment"));
        }
        let Some(head) = self.bytes(store, length)? else { return Ok(Err("it cannot be read")) };
        let header = match frame::decode_header(&head) {
            Ok(header) => header,
            Err(reason) => return Ok(Err(reason)),
        };
        if header.volume_id != self.log_id || header.segment_sequence != self.segment.sequence {
            return Ok(Err("it is a frame of another log, or of an earlier life of the segment"));
        }
        if !header.lies_at(self.at) {
            return Ok(Err("it belongs to another place"));
        }
        if self.at + header.frame_bytes() as u64 > self.end() {
            return Ok(Err("it reaches beyond the segment"));
        }
        Ok(Ok((header, head)))
    }

    /// Frames of older programs do not say where they belong.
    fn joins(&self, header: &FrameHeader) -> bool {
        match self.last {
            Some((lsn, _)) if self.lost => header.lsn > lsn,
            Some((lsn, crc)) => header.lsn == lsn + 1 && header.prev_crc == crc,
            None => true,
        }
    }

    fn decode(&self, header: FrameHeader, whole: &Bytes) -> Result<WalFrame, &'static str> {
        if !self.joins(&header) {
            return Err("it does not follow the frame before");
        }
        let entries = header.directory(whole)?;
        let stored = header.verified_payload(whole)?;
        let payload = if header.zstd { Bytes::from(header.raw_payload(stored)?) } else { whole.slice_ref(stored) };
        Ok(WalFrame { block: (self.at / BLOCK as u64) as u32, header, entries, payload })
    }

    /// `bytes` bytes from `at` on, from a window that reaches further; `None` if the disk cannot read them.
    fn bytes(&mut self, store: &mut dyn ColdStore, bytes: usize) -> Result<Option<Bytes>, DiskError> {
        let from = self.at.checked_sub(self.window_at).map(|from| from as usize);
        if let Some(from) = from.filter(|from| from + bytes <= self.window.len()) {
            return Ok(Some(self.window.slice(from..from + bytes)));
        }
        let left = (self.end() - self.at) as usize;
        let file = FileId::Segment(self.segment.file);
        for length in [self.ahead.max(bytes).min(left), bytes.min(left)] {
            match store.read_copy(self.copy, file, self.at, length) {
                Ok(window) => {
                    self.read_bytes += window.len() as u64;
                    (self.window, self.window_at) = (window, self.at);
                    return Ok((bytes <= length).then(|| self.window.slice(..bytes)));
                }
                // A bad sector further on must not hide what lies before it.
                Err(DiskError::Io { .. }) if self.unreadable < LOST_BLOCKS_MAX => self.unreadable += 1,
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}
