//! One segment by itself, to the last byte: what `check` adds to a recovery, which reads only directories before the newest snapshot.
//!
//! The same reader walks it by the same rules, beginning with the segment's own snapshot. So segments can be read side by side, and
//! what each adds up to must be what the next one begins with.

use super::replay::Replay;
use super::scan::Scanner;
use super::volume::{self, Segment, put_in_order};
use super::{LogReader, Visit};
use crate::config::LogConfig;
use crate::core::Now;
use crate::disk::{AlignedBuf, Disk, FileId};
use crate::format::BLOCK;
use crate::format::frame::{Entry, FrameHeader, FrameKind};
use crate::format::segment::{HeaderBlock, SegmentHeader};
use crate::format::snapshot::Item;
use crate::format::superblock::{Peer, Superblock, VolumeState};
use crate::report::{Damage, Gap, OpenError, RecoveryReport};

/// The segment files of a volume, as far as they can be told.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    segments: Vec<Segment>,
    /// Files without frames, ready to be used.
    pub(crate) spares: Vec<u32>,
    /// Files whose zero-fill was cut short.
    pub(crate) unfinished: Vec<u32>,
    /// Files whose header was made up from a frame.
    pub(crate) repaired: Vec<u32>,
}

impl Parts {
    pub(crate) fn len(&self) -> usize {
        self.segments.len()
    }
}

/// What one segment holds.
#[derive(Debug, Default)]
pub(crate) struct Part {
    pub(crate) file: u32,
    pub(crate) sequence: u64,
    /// Frames that cannot be read.
    pub(crate) damage: Vec<Damage>,
    /// Offsets missing that its own snapshot does not know of.
    pub(crate) gaps: Vec<Gap>,
    /// Its snapshot was written to the end and cannot be read. One that a crash cut off is not meant: nothing follows it.
    pub(crate) snapshot_bad: bool,
    pub(crate) torn_tail: bool,
    pub(crate) frames: u64,
    /// How the next segment's snapshot contradicts this one's frames.
    pub(crate) disagrees: Option<String>,
}

/// Sorts the files by recovery's rules; where these refuse the volume, takes what a header or a frame vouches for.
pub(crate) fn parts(disk: &mut dyn Disk, config: &LogConfig, superblock: &Superblock) -> Result<Parts, OpenError> {
    let mut report = RecoveryReport::default();
    let (segments, spares, unfinished) = match volume::read(disk, config, Now::default(), [[0; 16]; 2], &mut report) {
        Ok(volume) => (volume.segments, volume.spares, volume.unfinished),
        Err(_) => (survey(disk, superblock)?, Vec::new(), Vec::new()),
    };
    let repaired = segments.iter().filter(|segment| segment.repaired).map(|segment| segment.file).collect();
    Ok(Parts { segments, spares, unfinished, repaired })
}

fn survey(disk: &mut dyn Disk, superblock: &Superblock) -> Result<Vec<Segment>, OpenError> {
    let mut segments = Vec::new();
    for file in disk.list_segments()? {
        if disk.size(FileId::Segment(file))? != Some(superblock.segment_bytes) {
            continue;
        }
        let segment = match header(disk, file).filter(|header| header.may_be_of(file)) {
            Some(header) if header.volume_id == superblock.volume_id => Some(Segment::whole(file, header)),
            Some(_) => None,
            None => Scanner::new(disk, superblock).any_frame(file).map(|(_, found)| found.segment(file)),
        };
        segments.extend(segment.filter(|segment| segment.header.sequence >= superblock.first_sequence));
    }
    put_in_order(&mut segments);
    segments.dedup_by_key(|segment| segment.header.sequence);
    Ok(segments)
}

fn header(disk: &mut dyn Disk, file: u32) -> Option<SegmentHeader> {
    let mut block = AlignedBuf::zeroed(BLOCK);
    disk.read(FileId::Segment(file), 0, &mut block, BLOCK).ok()?;
    match SegmentHeader::decode(&block[..BLOCK]) {
        HeaderBlock::Good(header) => Some(header),
        _ => None,
    }
}

/// The oldest intact segment header's word on the volume, where no superblock is left to ask.
pub(crate) fn superblock_from_segments(disk: &mut dyn Disk) -> Result<Option<Superblock>, OpenError> {
    for file in disk.list_segments()? {
        let size = disk.size(FileId::Segment(file))?.unwrap_or(0);
        if let Some(header) = header(disk, file).filter(|_| size.is_multiple_of(BLOCK as u64)) {
            return Ok(Some(Superblock {
                node_id: [0; 16],
                volume_id: header.volume_id,
                generation: 0,
                epoch: u64::MAX,
                durable_lsn: 0,
                segment_bytes: size,
                created_ms: 0,
                state: VolumeState::Open,
                first_sequence: 0,
                last_sequence: 0,
                copy_id: [0; 16],
                peer_id: [0; 16],
                peer: Peer::None,
                peer_lsn: 0,
            }));
        }
    }
    Ok(None)
}

/// Reads the segment with this index. `visit` sees every good frame, its payload decompressed.
pub(crate) fn part(
    disk: &mut dyn Disk,
    superblock: &Superblock,
    parts: &Parts,
    at: usize,
    visit: Visit<'_>,
) -> Result<Part, OpenError> {
    let segment = parts.segments[at];
    let next = parts.segments.get(at + 1).filter(|next| next.header.sequence == segment.header.sequence + 1);
    let mut superblock = *superblock;
    if at + 1 < parts.segments.len() {
        // It speaks of the end of the log, which is not the end of this segment.
        superblock.durable_lsn = 0;
    }
    let clean = superblock.state == VolumeState::Closed;
    let mut report = RecoveryReport { clean, ..RecoveryReport::default() };
    let mut scanner = Scanner::new(disk, &superblock);
    scanner.hand_out_payloads();
    let mut known = Vec::new();
    let whole = scanner.snapshot(&segment, &mut |item| known.extend(gap_of(&item)));
    let mut past_snapshot = false;
    let mut watch = |header: &FrameHeader, entries: &[Entry], payload: Option<&[u8]>, position: u64| {
        past_snapshot |= matches!(header.kind, FrameKind::Data | FrameKind::SnapshotEnd);
        visit(header, entries, payload, position);
    };
    let mut log = LogReader {
        scanner,
        superblock,
        replay: Replay::default(),
        report: &mut report,
        last_lsn: 0,
        last_crc: 0,
        after_damage: false,
        visit: Some(&mut watch),
    };
    let both: Vec<Segment> = std::iter::once(segment).chain(next.copied()).collect();
    log.read_segment(&both, 0, true, whole)?;
    log.scanner.refuse_newer()?;
    let mut part = Part { file: segment.file, sequence: segment.header.sequence, ..Part::default() };
    if whole {
        part.gaps = log.replay.gaps().filter(|gap| !known.contains(gap)).collect();
    }
    if let Some(next) = next.filter(|_| whole && log.report.damage.is_empty()) {
        let mut items = Vec::new();
        if log.scanner.snapshot(next, &mut |item| items.push(item)) {
            part.disagrees = log.replay.disagrees(items);
        }
    }
    part.snapshot_bad = past_snapshot && !whole;
    (part.damage, part.torn_tail, part.frames) = (report.damage, report.torn_tail, report.frames);
    Ok(part)
}

fn gap_of(item: &Item) -> Option<Gap> {
    match item {
        Item::Gap(gap) => Some(*gap),
        _ => None,
    }
}
