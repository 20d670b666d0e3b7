//! The frames of a full WAL segment, one after another, as the sorter reads them: large requests, every CRC checked.

use bytes::Bytes;

use crate::disk::{ColdStore, DiskError, FileId};
use crate::format::frame::{self, Entry, FrameHeader};
use crate::format::{BLOCK, Uuid};

/// Read at once at most.
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
    window_bytes: usize,
    /// Every frame is wanted, so it is known what will be read next.
    in_turn: bool,
    /// Bytes read so far.
    pub(crate) read_bytes: u64,
}

impl WalScan {
    /// The windows take a quarter of this memory at most.
    pub(crate) fn new(segment: WalSegment, log_id: Uuid, memory_bytes: usize) -> WalScan {
        let at = BLOCK as u64;
        let window_bytes = (memory_bytes / 8).clamp(BLOCK, WINDOW) / BLOCK * BLOCK;
        WalScan {
            segment,
            log_id,
            at,
            window: Bytes::new(),
            window_at: 0,
            lost: false,
            damaged: 0,
            unreadable: 0,
            last: None,
            copy: 0,
            window_bytes,
            in_turn: true,
            read_bytes: 0,
        }
    }

    /// Header and directory of the next frame of the first copy, or what is wrong with it; its payload is not read. `None` at the end.
    pub(crate) fn next_head(&mut self, store: &mut dyn ColdStore) -> Result<Option<HeadFound>, DiskError> {
        (self.window_bytes, self.in_turn) = (HEAD_WINDOW, false);
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
        let mut hangs = None;
        loop {
            let found = self.frame(store);
            let closed = matches!(found, Err(DiskError::Closed { .. }));
            if matches!(found, Ok(Ok(_))) || closed {
                return found;
            }
            hangs = hangs.or(found.as_ref().err().copied().filter(|error| matches!(error, DiskError::Hangs { .. })));
            if tried >= copies {
                // What a disk that hangs has may be whole: it must not count as lost.
                return hangs.map_or(found, Err);
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
        for length in [self.window_bytes.max(bytes).min(left), bytes.min(left)] {
            match store.read_copy(self.copy, file, self.at, length) {
                Ok(window) => {
                    self.read_bytes += window.len() as u64;
                    (self.window, self.window_at) = (window, self.at);
                    self.announce(store);
                    return Ok((bytes <= length).then(|| self.window.slice(..bytes)));
                }
                // A bad sector further on must not hide what lies before it.
                Err(DiskError::Io { .. }) if self.unreadable < LOST_BLOCKS_MAX => self.unreadable += 1,
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// The next window begins with the first frame that this one has not got the whole of.
    fn announce(&self, store: &mut dyn ColdStore) {
        if !self.in_turn {
            return;
        }
        let (mut behind, mut wanted) = (0, 0);
        while behind < self.window.len() {
            let rest = &self.window[behind..];
            match frame::decode_header(rest) {
                Ok(header) if header.frame_bytes() <= rest.len() => behind += header.frame_bytes(),
                Ok(header) => {
                    wanted = header.frame_bytes();
                    break;
                }
                Err(_) => break,
            }
        }
        let at = self.window_at + behind as u64;
        if behind > 0 && at < self.end() {
            let bytes = self.window_bytes.max(wanted).min((self.end() - at) as usize);
            store.will_read(self.copy, FileId::Segment(self.segment.file), at, bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{AlignedBuf, DiskVerb};

    /// Two copies of a segment: what reading them comes to.
    struct Copies([Option<Vec<u8>>; 2]);

    impl ColdStore for Copies {
        fn read(&mut self, file: FileId, at: u64, bytes: usize) -> Result<Bytes, DiskError> {
            self.read_copy(0, file, at, bytes)
        }
        fn copies(&mut self, _: FileId) -> usize {
            2
        }
        fn read_copy(&mut self, copy: usize, file: FileId, at: u64, bytes: usize) -> Result<Bytes, DiskError> {
            let data = self.0[copy].as_ref().ok_or(DiskError::Hangs { verb: DiskVerb::Read, file })?;
            Ok(Bytes::copy_from_slice(&data[at as usize..at as usize + bytes]))
        }
        fn create(&mut self, _: FileId) -> Result<(), DiskError> {
            unreachable!("it is only read")
        }
        fn write(&mut self, _: FileId, _: u64, _: AlignedBuf) -> Result<(), DiskError> {
            unreachable!("it is only read")
        }
        fn seal(&mut self, _: FileId) -> Result<(), DiskError> {
            unreachable!("it is only read")
        }
        fn overwrite(&mut self, _: FileId, _: u64, _: AlignedBuf) -> Result<(), DiskError> {
            unreachable!("it is only read")
        }
        fn rename(&mut self, _: FileId, _: FileId) -> Result<(), DiskError> {
            unreachable!("it is only read")
        }
        fn link(&mut self, _: FileId, _: FileId) -> Result<(), DiskError> {
            unreachable!("it is only read")
        }
        fn remove(&mut self, _: FileId) -> Result<(), DiskError> {
            unreachable!("it is only read")
        }
        fn list(&mut self) -> Result<Vec<FileId>, DiskError> {
            unreachable!("it is only read")
        }
    }

    #[test]
    fn what_a_disk_that_hangs_may_have_is_not_lost() {
        let segment = WalSegment { file: 3, sequence: 1, end_block: 4 };
        let damaged = || Some(vec![7; 4 * BLOCK]);
        for copies in [[None, damaged()], [damaged(), None], [None, None]] {
            let mut scan = WalScan::new(segment, [1; 16], 1 << 20);
            let found = scan.next(&mut Copies(copies));
            assert!(matches!(found, Err(DiskError::Hangs { .. })), "{found:?}");
            assert_eq!(scan.damaged, 0);
        }
        let mut scan = WalScan::new(segment, [1; 16], 1 << 20);
        assert!(matches!(scan.next(&mut Copies([damaged(), damaged()])), Ok(None)));
        assert_eq!(scan.damaged, 1);
    }
}
