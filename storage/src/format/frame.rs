//! The frame: one durable write. Header, directory of entries, payload, zeros up to the next block.
//!
//! A reader checks [`FrameHeader::peek`] (magic and bounds only, so that it knows how many bytes the CRC covers), then the
//! header CRC over the raw header and directory, then believes the fields; the payload has a CRC of its own, so that recovery of
//! old segments can hop from directory to directory.

use super::{BLOCK, Uuid, array_at, i64_at, number_or_zero, put, u16_at, u32_at, u64_at};

/// Bytes before the directory.
pub const HEADER_BYTES: usize = 128;
/// Bytes of one directory entry.
pub const ENTRY_BYTES: usize = 64;
/// No frame is larger than this, whatever its header claims.
pub const FRAME_BYTES_LIMIT: usize = 64 << 20;

const MAGIC: &[u8; 4] = b"WFR1";
/// Newest version of the frame known here.
pub const VERSION: u16 = 1;
const FLAG_ZSTD: u8 = 1;
/// Of an entry: see [`Entry::begins`].
const FLAG_BEGINS: u8 = 1;

const _: () = assert!(HEADER_BYTES + ENTRY_BYTES <= BLOCK && BLOCK.is_multiple_of(ENTRY_BYTES));

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// Appends.
    Data = 1,
    /// Nothing but the proof that what came before is durable.
    Watermark = 2,
    /// A part of the state, more to come.
    Snapshot = 3,
    /// The last part of it.
    SnapshotEnd = 4,
}

/// Header of a frame; its own CRC is filled in by [`seal`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// CRC-32C of header and directory from byte 8 on.
    pub header_crc: u32,
    /// What it is for.
    pub kind: FrameKind,
    /// Whether the payload is zstd.
    pub zstd: bool,
    /// Opening that wrote it.
    pub epoch: u64,
    /// Number of the frame.
    pub lsn: u64,
    /// Life of the segment it was written to.
    pub segment_sequence: u64,
    /// Highest frame durable when this was built.
    pub durable_lsn: u64,
    /// Header CRC of the frame before.
    pub prev_crc: u32,
    /// Directory entries.
    pub entries: u32,
    /// Payload as stored.
    pub payload_bytes: u32,
    /// Payload after decompression.
    pub payload_raw_bytes: u32,
    /// CRC-32C of the payload as stored.
    pub payload_crc: u32,
    /// Unix time.
    pub written_ms: u64,
    /// Volume it belongs to. Nobody outside knows it, so no record can contain a frame of this volume.
    pub volume_id: Uuid,
    /// Block of the segment it was written to; 0: it does not say.
    pub block: u32,
    /// Number of the segment's file, if it says so.
    pub file: Option<u32>,
    /// First frame of its epoch: what an older opening wrote from this number on was given up. 0: it does not say.
    pub epoch_lsn: u64,
}

/// Kind of a directory entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EntryKind {
    /// Record batches.
    Batches = 1,
    /// What a producer's lane consumed.
    Mark = 2,
    /// Metadata operations.
    Meta = 3,
    /// Partition opened.
    Opened = 4,
    /// Partition dropped.
    Dropped = 5,
    /// Starts raised and classes set.
    Changes = 6,
    /// Part of a snapshot.
    Snapshot = 7,
}

/// One directory entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub kind: EntryKind,
    /// A partition that was not open before: what older frames hold of its number is of an earlier life. Only of an opening.
    pub begins: bool,
    /// Epoch of the producer, for a mark.
    pub producer_epoch: i16,
    /// Partition.
    pub partition: u32,
    /// Offset of the first record; for a mark: what the producer was told.
    pub base_offset: i64,
    /// Records.
    pub record_count: u32,
    /// Records of the lane, for a mark.
    pub sequence_count: u32,
    /// Highest timestamp, ms.
    pub max_timestamp: i64,
    /// Producer, for a mark.
    pub producer_id: i64,
    /// First sequence, for a mark.
    pub base_sequence: u64,
    /// Lane, for a mark.
    pub lane: u32,
    /// Where its bytes start in the uncompressed payload.
    pub byte_start: u32,
    /// And how many there are.
    pub byte_count: u32,
}

impl Entry {
    /// An entry with nothing but a kind and a partition.
    pub fn of(kind: EntryKind, partition: u32) -> Entry {
        Entry {
            kind,
            begins: false,
            producer_epoch: 0,
            partition,
            base_offset: 0,
            record_count: 0,
            sequence_count: 0,
            max_timestamp: 0,
            producer_id: -1,
            base_sequence: 0,
            lane: 0,
            byte_start: 0,
            byte_count: 0,
        }
    }

    /// Into 64 bytes.
    pub fn encode(&self, out: &mut [u8]) {
        let out = &mut out[..ENTRY_BYTES];
        out[0] = self.kind as u8;
        out[1] = if self.begins { FLAG_BEGINS } else { 0 };
        put(out, 2, &self.producer_epoch.to_le_bytes());
        put(out, 4, &self.partition.to_le_bytes());
        put(out, 8, &self.base_offset.to_le_bytes());
        put(out, 16, &self.record_count.to_le_bytes());
        put(out, 20, &self.sequence_count.to_le_bytes());
        put(out, 24, &self.max_timestamp.to_le_bytes());
        put(out, 32, &self.producer_id.to_le_bytes());
        put(out, 40, &self.base_sequence.to_le_bytes());
        put(out, 48, &self.lane.to_le_bytes());
        put(out, 52, &self.byte_start.to_le_bytes());
        put(out, 56, &self.byte_count.to_le_bytes());
        put(out, 60, &[0; 4]);
    }

    /// From 64 bytes that a CRC has vouched for; `None` for a kind this version does not know.
    pub fn decode(bytes: &[u8]) -> Option<Entry> {
        let kind = match bytes[0] {
            1 => EntryKind::Batches,
            2 => EntryKind::Mark,
            3 => EntryKind::Meta,
            4 => EntryKind::Opened,
            5 => EntryKind::Dropped,
            6 => EntryKind::Changes,
            7 => EntryKind::Snapshot,
            _ => return None,
        };
        Some(Entry {
            kind,
            begins: bytes[1] & FLAG_BEGINS != 0,
            producer_epoch: i16::from_le_bytes(array_at(bytes, 2)),
            partition: u32_at(bytes, 4),
            base_offset: i64_at(bytes, 8),
            record_count: u32_at(bytes, 16),
            sequence_count: u32_at(bytes, 20),
            max_timestamp: i64_at(bytes, 24),
            producer_id: i64_at(bytes, 32),
            base_sequence: u64_at(bytes, 40),
            lane: u32_at(bytes, 48),
            byte_start: u32_at(bytes, 52),
            byte_count: u32_at(bytes, 56),
        })
    }

    /// One past the last offset.
    pub fn next_offset(&self) -> i64 {
        self.base_offset.saturating_add(i64::from(self.record_count))
    }

    /// The bytes of this entry in the uncompressed payload.
    pub fn range(&self) -> std::ops::Range<usize> {
        self.byte_start as usize..self.byte_start as usize + self.byte_count as usize
    }
}

/// Bytes of header and directory.
pub const fn header_bytes(entries: usize) -> usize {
    HEADER_BYTES + ENTRY_BYTES * entries
}

/// Bytes of a whole frame on disk.
pub const fn frame_bytes(entries: usize, payload_bytes: usize) -> usize {
    crate::disk::blocks_up(header_bytes(entries) + payload_bytes)
}

/// Writes the header in front of directory and payload, which already lie in `frame`, zeroes what follows them up to the
/// next block, and returns the header's CRC. The payload's CRC comes with the header: it is known earlier.
pub fn seal(header: &FrameHeader, frame: &mut [u8]) -> u32 {
    let directory_end = header_bytes(header.entries as usize);
    let end = directory_end + header.payload_bytes as usize;
    frame[end..frame_bytes(header.entries as usize, header.payload_bytes as usize)].fill(0);
    debug_assert_eq!(header.payload_crc, crc32c::crc32c(&frame[directory_end..end]), "of the payload as stored");
    let head = &mut frame[..directory_end];
    head[..HEADER_BYTES].fill(0);
    put(head, 0, MAGIC);
    head[8] = header.kind as u8;
    head[9] = if header.zstd { FLAG_ZSTD } else { 0 };
    put(head, 10, &VERSION.to_le_bytes());
    put(head, 16, &header.epoch.to_le_bytes());
    put(head, 24, &header.lsn.to_le_bytes());
    put(head, 32, &header.segment_sequence.to_le_bytes());
    put(head, 40, &header.durable_lsn.to_le_bytes());
    put(head, 48, &header.prev_crc.to_le_bytes());
    put(head, 52, &(directory_end as u32).to_le_bytes());
    put(head, 56, &header.entries.to_le_bytes());
    put(head, 60, &header.payload_bytes.to_le_bytes());
    put(head, 64, &header.payload_raw_bytes.to_le_bytes());
    put(head, 68, &header.payload_crc.to_le_bytes());
    put(head, 72, &header.written_ms.to_le_bytes());
    put(head, 80, &header.volume_id);
    put(head, 96, &header.block.to_le_bytes());
    put(head, 100, &number_or_zero(header.file).to_le_bytes());
    put(head, 104, &header.epoch_lsn.to_le_bytes());
    let crc = crc32c::crc32c(&head[8..]);
    put(head, 4, &crc.to_le_bytes());
    crc
}

/// Bytes of header and directory as the first bytes of a frame claim them, for the CRC; `None` if this is no frame.
/// Nothing else of the header may be believed yet.
pub fn peek_header_bytes(bytes: &[u8]) -> Option<usize> {
    if bytes.len() < HEADER_BYTES || &bytes[..4] != MAGIC {
        return None;
    }
    let claimed = u32_at(bytes, 52) as usize;
    ((HEADER_BYTES..=FRAME_BYTES_LIMIT).contains(&claimed) && (claimed - HEADER_BYTES).is_multiple_of(ENTRY_BYTES))
        .then_some(claimed)
}

/// Checks the CRC over header and directory, then parses the header. `bytes` holds at least both.
pub fn decode_header(bytes: &[u8]) -> Result<FrameHeader, &'static str> {
    let header_length = peek_header_bytes(bytes).ok_or("there is no frame")?;
    let head = bytes.get(..header_length).ok_or("the frame's directory is cut off")?;
    let header_crc = u32_at(head, 4);
    if crc32c::crc32c(&head[8..]) != header_crc {
        return Err("the header's CRC does not match");
    }
    if u16_at(head, 10) != VERSION {
        return Err("the frame has an unknown version");
    }
    let kind = match head[8] {
        1 => FrameKind::Data,
        2 => FrameKind::Watermark,
        3 => FrameKind::Snapshot,
        4 => FrameKind::SnapshotEnd,
        _ => return Err("the frame has an unknown kind"),
    };
    let header = FrameHeader {
        header_crc,
        kind,
        zstd: head[9] & FLAG_ZSTD != 0,
        epoch: u64_at(head, 16),
        lsn: u64_at(head, 24),
        segment_sequence: u64_at(head, 32),
        durable_lsn: u64_at(head, 40),
        prev_crc: u32_at(head, 48),
        entries: u32_at(head, 56),
        payload_bytes: u32_at(head, 60),
        payload_raw_bytes: u32_at(head, 64),
        payload_crc: u32_at(head, 68),
        written_ms: u64_at(head, 72),
        volume_id: array_at(head, 80),
        block: u32_at(head, 96),
        file: u32_at(head, 100).checked_sub(1),
        epoch_lsn: u64_at(head, 104),
    };
    if header_bytes(header.entries as usize) != header_length
        || header.payload_bytes as usize > FRAME_BYTES_LIMIT
        || header.payload_raw_bytes as usize > FRAME_BYTES_LIMIT
    {
        return Err("the frame's lengths contradict each other");
    }
    Ok(header)
}

/// What this program does not know about a frame whose header CRC holds: a newer program wrote it, so it is not damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// Version of the frame.
    Version(u16),
    /// Kind of the frame.
    Kind(u8),
    /// Kind of one of its entries.
    EntryKind(u8),
}

impl std::fmt::Display for Unknown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Unknown::Version(version) => write!(f, "frame version {version}"),
            Unknown::Kind(kind) => write!(f, "frame kind {kind}"),
            Unknown::EntryKind(kind) => write!(f, "entry kind {kind}"),
        }
    }
}

/// Looks for it in a frame that [`decode_header`] or [`FrameHeader::directory`] has refused. `volume_id` and `sequence` are those
/// of the segment: they keep their places in every version, so a frame of an older life of the file is not meant.
pub fn unknown(bytes: &[u8], volume_id: &Uuid, sequence: u64) -> Option<Unknown> {
    let head = bytes.get(..peek_header_bytes(bytes)?)?;
    let ours = crc32c::crc32c(&head[8..]) == u32_at(head, 4) && head[80..96] == volume_id[..] && u64_at(head, 32) == sequence;
    if !ours {
        return None;
    }
    match (u16_at(head, 10), head[8]) {
        (VERSION, 1..=4) => {}
        (0, _) | (_, 0) => return None,
        (VERSION, kind) => return Some(Unknown::Kind(kind)),
        (version, _) => return Some(Unknown::Version(version)),
    }
    let strange = head[HEADER_BYTES..].chunks_exact(ENTRY_BYTES).find(|entry| Entry::decode(entry).is_none())?;
    Some(Unknown::EntryKind(strange[0]))
}

impl FrameHeader {
    /// Bytes of the whole frame on disk.
    pub fn frame_bytes(&self) -> usize {
        frame_bytes(self.entries as usize, self.payload_bytes as usize)
    }

    /// Whether it was written to this place of its segment: a write that goes astray leaves a good frame in a wrong one.
    pub fn lies_at(&self, at: u64) -> bool {
        self.block == 0 || u64::from(self.block) * BLOCK as u64 == at
    }

    /// Whether it may be a frame of this file, told by its number in the WAL.
    pub fn may_be_of(&self, file: u32) -> bool {
        self.file.is_none_or(|own| own == file)
    }

    /// Bytes of header and directory.
    pub fn header_bytes(&self) -> usize {
        header_bytes(self.entries as usize)
    }

    /// The payload as stored, of a frame that is wholly in `frame`, after its CRC was checked.
    pub fn verified_payload<'a>(&self, frame: &'a [u8]) -> Result<&'a [u8], &'static str> {
        let start = self.header_bytes();
        let payload = frame.get(start..start + self.payload_bytes as usize).ok_or("the payload is cut off")?;
        if crc32c::crc32c(payload) != self.payload_crc {
            return Err("the payload's CRC does not match");
        }
        Ok(payload)
    }

    /// The payload, decompressed where that is needed.
    pub fn raw_payload(&self, stored: &[u8]) -> Result<Vec<u8>, &'static str> {
        let raw = if self.zstd {
            crate::inflate::inflate(stored, self.payload_raw_bytes as usize).ok_or("the payload does not decompress")?
        } else {
            stored.to_vec()
        };
        // The directory was held against this length, so its entries lie inside.
        if raw.len() != self.payload_raw_bytes as usize {
            return Err("the payload has another length than its header says");
        }
        Ok(raw)
    }

    /// The entries of a verified directory; an entry that does not fit the payload is an error.
    pub fn directory(&self, frame: &[u8]) -> Result<Vec<Entry>, &'static str> {
        let mut entries = Vec::with_capacity(self.entries as usize);
        for bytes in frame[HEADER_BYTES..self.header_bytes()].chunks_exact(ENTRY_BYTES) {
            let entry = Entry::decode(bytes).ok_or("the directory has an entry of unknown kind")?;
            if entry.range().end > self.payload_raw_bytes as usize {
                return Err("the directory points outside the payload");
            }
            entries.push(entry);
        }
        Ok(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(entries: usize, payload: usize, numbers: [u64; 5]) -> FrameHeader {
        let [epoch, lsn, segment_sequence, durable_lsn, written_ms] = numbers;
        FrameHeader {
            header_crc: 0,
            kind: FrameKind::Data,
            zstd: false,
            epoch,
            lsn,
            segment_sequence,
            durable_lsn,
            prev_crc: 77,
            entries: entries as u32,
            payload_bytes: payload as u32,
            payload_raw_bytes: payload as u32,
            payload_crc: 0,
            written_ms,
            volume_id: [9; 16],
            block: segment_sequence as u32,
            file: (segment_sequence as u32).checked_sub(1),
            epoch_lsn: lsn / 2,
        }
    }

    fn entry(numbers: [u32; 5], byte_start: u32, byte_count: u32) -> Entry {
        Entry {
            kind: EntryKind::Batches,
            begins: numbers[4] & 1 == 1,
            producer_epoch: numbers[0] as i16,
            partition: numbers[1],
            base_offset: i64::from(numbers[2]),
            record_count: numbers[3],
            sequence_count: numbers[4],
            max_timestamp: -5,
            producer_id: i64::from(numbers[0]),
            base_sequence: u64::from(numbers[1]) << 20,
            lane: numbers[2],
            byte_start,
            byte_count,
        }
    }

    proptest! {
        #[test]
        fn round_trip_and_any_changed_byte_is_seen(numbers in any::<[u64; 5]>(), fields in proptest::collection::vec(any::<[u32; 5]>(), 0..9), payload in proptest::collection::vec(any::<u8>(), 0..9000), at in any::<prop::sample::Index>(), flip in 1..=255_u8) {
            let entries: Vec<Entry> = fields.iter().map(|numbers| entry(*numbers, 0, payload.len() as u32)).collect();
            let mut frame = vec![0xee; frame_bytes(entries.len(), payload.len())];
            for (n, entry) in entries.iter().enumerate() {
                entry.encode(&mut frame[header_bytes(n)..]);
            }
            put(&mut frame, header_bytes(entries.len()), &payload);
            let mut header = header(entries.len(), payload.len(), numbers);
            header.payload_crc = crc32c::crc32c(&payload);
            header.header_crc = seal(&header, &mut frame);
            let read = decode_header(&frame).unwrap();
            prop_assert_eq!(read, header);
            prop_assert_eq!(read.directory(&frame).unwrap(), entries);
            prop_assert_eq!(read.verified_payload(&frame).unwrap(), &payload[..]);

            let covered = header_bytes(fields.len()) + payload.len();
            frame[at.index(covered)] ^= flip;
            let seen = decode_header(&frame).and_then(|header| header.verified_payload(&frame).map(drop));
            prop_assert!(seen.is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..5000), claimed: u32) {
            let mut bytes = bytes;
            if bytes.len() >= HEADER_BYTES {
                put(&mut bytes, 0, MAGIC);
                put(&mut bytes, 52, &claimed.to_le_bytes());
            }
            prop_assert!(decode_header(&bytes).is_err());
        }
    }
}
