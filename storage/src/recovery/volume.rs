//! The superblock, and which segment file is which life.

use std::cmp::Ordering;

use super::scan::Scanner;
use crate::config::LogConfig;
use crate::core::Now;
use crate::disk::{AlignedBuf, Disk, DiskError, FileId};
use crate::format::segment::{self, HeaderBlock, SegmentHeader};
use crate::format::superblock::{FORMAT, Peer, SLOTS, Slot, Superblock, VolumeState};
use crate::format::{BLOCK, Uuid, uuid_text};
use crate::report::{OpenError, RecoveryReport};

/// A segment file with its life.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub(super) file: u32,
    pub(super) header: SegmentHeader,
    /// The header was unreadable; this one was made up from a frame, so the chain into it is unknown.
    pub(super) repaired: bool,
    /// Whether `first_lsn` is certain: a repaired header whose first frames are gone as well only knows a later one.
    pub(super) exact: bool,
    /// Whether `prev_crc` is that of the frame before `first_lsn`.
    pub(super) chained: bool,
    /// Of a repaired one: first frame of its epoch; 0: unknown.
    pub(super) epoch_lsn: u64,
}

impl Segment {
    /// With a header that could be read.
    pub(super) fn whole(file: u32, header: SegmentHeader) -> Segment {
        Segment { file, header, repaired: false, exact: true, chained: true, epoch_lsn: 0 }
    }
}

/// In order of their sequences. Each opening begins with a new segment: so the first one of an epoch begins where that epoch did,
/// even if its own first frames are lost, and what an older epoch wrote from there on stays given up.
pub(super) fn put_in_order(segments: &mut [Segment]) {
    segments.sort_unstable_by_key(|segment| segment.header.sequence);
    for at in 1..segments.len() {
        let before = segments[at - 1].header.epoch;
        let segment = &mut segments[at];
        let known = (1..segment.header.first_lsn).contains(&segment.epoch_lsn);
        if !segment.exact && known && before < segment.header.epoch {
            segment.header.first_lsn = segment.epoch_lsn;
            (segment.exact, segment.chained) = (true, false);
        }
    }
}

/// A volume's files, sorted out.
#[derive(Debug)]
pub(super) struct Volume {
    pub(super) superblock: Superblock,
    pub(super) segments: Vec<Segment>,
    pub(super) spares: Vec<u32>,
    pub(super) unfinished: Vec<u32>,
    pub(super) next_file: u32,
}

/// Reads or makes the superblock and sorts the segment files.
pub(super) fn read(
    disk: &mut dyn Disk,
    config: &LogConfig,
    now: Now,
    fresh_ids: [Uuid; 2],
    report: &mut RecoveryReport,
) -> Result<Volume, OpenError> {
    let files = disk.list_segments()?;
    let superblock = match read_superblock(disk, report)? {
        Some(superblock) => superblock,
        None if files.is_empty() => {
            report.created = true;
            make(disk, config, now, fresh_ids)?
        }
        None if report.superblock_damaged => return Err(OpenError::SuperblockDamaged),
        None => return Err(OpenError::SuperblockMissing),
    };
    if let Some(expected) = config.node_id
        && expected != superblock.node_id
    {
        return Err(OpenError::ForeignNode { found: uuid_text(&superblock.node_id), expected: uuid_text(&expected) });
    }
    if superblock.state == VolumeState::Fenced && !config.accept_fenced {
        return Err(OpenError::Fenced);
    }
    report.clean = superblock.state == VolumeState::Closed;
    let next_file = files.last().map_or(0, |last| last + 1);
    let mut volume = Volume { superblock, segments: Vec::new(), spares: Vec::new(), unfinished: Vec::new(), next_file };
    let mut unknown = Vec::new();
    let mut empty = Vec::new();
    let mut headers = files.iter().map(|file| read_headers(disk, &volume.superblock, *file)).collect::<Result<Vec<_>, _>>()?;
    set_astray_aside(&mut headers);
    for (at, file) in files.into_iter().enumerate() {
        let header = choose_header(disk, &volume.superblock, file, at, &headers, report)?;
        sort_file(disk, file, header, &mut volume, &mut unknown, &mut empty)?;
    }
    let nobodys = find_lives(disk, &mut volume, unknown, report)?;
    put_in_order(&mut volume.segments);
    if check_order(&volume, report).is_err() {
        // A header may also have been lost to zeros.
        empty = find_lives(disk, &mut volume, empty, report)?;
        put_in_order(&mut volume.segments);
    }
    volume.spares.extend(empty);
    check_order(&volume, report)?;
    // Not before nothing is missing: what cannot be read today may be read tomorrow.
    for file in nobodys {
        let files = if clear_header(disk, file)? { &mut volume.spares } else { &mut volume.unfinished };
        files.push(file);
    }
    volume.spares.sort_unstable();
    Ok(volume)
}

/// The valid slot with the higher generation.
pub(super) fn read_superblock(disk: &mut dyn Disk, report: &mut RecoveryReport) -> Result<Option<Superblock>, OpenError> {
    let mut best: Option<Superblock> = None;
    let Some(size) = disk.size(FileId::Superblock)? else { return Ok(None) };
    let mut block = AlignedBuf::zeroed(BLOCK);
    for slot in 0..SLOTS {
        let at = slot * BLOCK as u64;
        let decoded = if size < at + BLOCK as u64 {
            Slot::Empty
        } else {
            match disk.read(FileId::Superblock, at, &mut block, BLOCK) {
                Ok(()) => Superblock::decode(&block[..BLOCK]),
                Err(DiskError::Io { .. } | DiskError::Short { .. }) => Slot::Damaged,
                Err(error) => return Err(error.into()),
            }
        };
        match decoded {
            Slot::Newer(found) => return Err(OpenError::NewerFormat { found, supported: FORMAT }),
            Slot::Good(superblock) if best.is_none_or(|best| superblock.generation > best.generation) => best = Some(superblock),
            Slot::Good(_) => {}
            Slot::Empty | Slot::Damaged => report.superblock_damaged = true,
        }
    }
    Ok(best)
}

/// A new volume. Its superblock is durable before there is any segment, so segments without one mean that it was lost.
fn make(disk: &mut dyn Disk, config: &LogConfig, now: Now, fresh_ids: [Uuid; 2]) -> Result<Superblock, OpenError> {
    crate::core::Limits::new(config, config.segment_bytes)?;
    let mut superblock = Superblock {
        node_id: config.node_id.unwrap_or(fresh_ids[0]),
        volume_id: fresh_ids[1],
        generation: 0,
        epoch: 0,
        durable_lsn: 0,
        segment_bytes: config.segment_bytes,
        created_ms: now.wall_ms,
        state: VolumeState::Closed,
        first_sequence: 1,
        last_sequence: 0,
        copy_id: [0; 16],
        peer_id: [0; 16],
        peer: Peer::None,
        peer_lsn: 0,
    };
    for _ in 0..SLOTS {
        superblock.generation += 1;
        disk.write_now(FileId::Superblock, superblock.slot_at(), &superblock.encode(), BLOCK)?;
    }
    Ok(superblock)
}

/// First block of a segment file on one copy.
struct FirstBlock {
    header: HeaderBlock,
    block: AlignedBuf,
    /// It tells of a life that counts, but as another file's.
    astray: bool,
}

/// The same on each copy.
type Headers = Vec<FirstBlock>;

fn read_headers(disk: &mut dyn Disk, superblock: &Superblock, file: u32) -> Result<Headers, OpenError> {
    let whole = disk.size(FileId::Segment(file))?.unwrap_or(0) >= BLOCK as u64;
    let mut headers = Vec::new();
    for copy in 0..disk.copies() {
        let mut block = AlignedBuf::zeroed(BLOCK);
        let header = match whole.then(|| disk.read_copy(copy, FileId::Segment(file), 0, &mut block, BLOCK)) {
            None => HeaderBlock::Empty,
            Some(Ok(())) => SegmentHeader::decode(&block[..BLOCK]),
            Some(Err(DiskError::Io { .. } | DiskError::Short { .. })) => HeaderBlock::Damaged,
            Some(Err(error)) => return Err(error.into()),
        };
        // Before anything is mended.
        if let HeaderBlock::Newer(found) = header {
            return Err(OpenError::NewerSegment { file, found, supported: segment::VERSION });
        }
        // Files of promoted segments come back under other numbers: the life they tell of does not count any more.
        let astray = matches!(header, HeaderBlock::Good(header) if header.volume_id == superblock.volume_id
            && header.sequence >= superblock.first_sequence && !header.may_be_of(file));
        headers.push(FirstBlock { header, block, astray });
    }
    // With a mirror a header that nobody can believe is damage to one copy; alone it is an error with a name.
    if headers.len() > 1 {
        let believable = |header: &SegmentHeader| header.volume_id == superblock.volume_id && header.epoch <= superblock.epoch;
        if headers.iter().any(|first| matches!(&first.header, HeaderBlock::Good(header) if believable(header))) {
            for first in &mut headers {
                if matches!(&first.header, HeaderBlock::Good(header) if !believable(header)) {
                    first.header = HeaderBlock::Damaged;
                }
            }
        }
    }
    Ok(headers)
}

/// A header that a write has put into another file is none. But somebody may have copied a whole file: where the one it was copied from is
/// there, and no other copy to ask, both are left to whoever did that.
fn set_astray_aside(all: &mut [Headers]) {
    let own = |first: &FirstBlock| if first.astray { None } else { sequence_of(&first.header) };
    let own: Vec<u64> = all.iter().flatten().filter_map(own).collect();
    for headers in all {
        let alone = headers.len() == 1;
        for first in headers.iter_mut().filter(|first| first.astray) {
            let copied = alone && sequence_of(&first.header).is_some_and(|sequence| own.contains(&sequence));
            if !copied {
                first.header = HeaderBlock::Damaged;
            }
        }
    }
}

fn sequence_of(header: &HeaderBlock) -> Option<u64> {
    if let HeaderBlock::Good(header) = header { Some(header.sequence) } else { None }
}

/// The header that counts where copies differ: the youngest life, unless another file is that one. The other copy gets it.
fn choose_header(
    disk: &mut dyn Disk,
    superblock: &Superblock,
    file: u32,
    at: usize,
    all: &[Headers],
    report: &mut RecoveryReport,
) -> Result<HeaderBlock, OpenError> {
    let headers = &all[at];
    let elsewhere = |wanted: u64| {
        let mut others = all.iter().enumerate().filter(|(other, _)| *other != at);
        others.any(|(_, headers)| headers.iter().any(|first| sequence_of(&first.header) == Some(wanted)))
    };
    let rank = |header: &HeaderBlock| match (header, sequence_of(header)) {
        (_, Some(sequence)) if sequence < superblock.first_sequence => (2, sequence),
        (_, Some(sequence)) => (3 + u8::from(!elsewhere(sequence)), sequence),
        (HeaderBlock::Empty, _) => (1, 0),
        _ => (0, 0),
    };
    let best = (0..headers.len()).rev().max_by_key(|copy| rank(&headers[*copy].header));
    let Some(best) = best.map(|copy| &headers[copy]) else { return Ok(HeaderBlock::Empty) };
    let counts = sequence_of(&best.header).is_some_and(|sequence| sequence >= superblock.first_sequence);
    let zeros = AlignedBuf::zeroed(BLOCK);
    for (copy, first) in headers.iter().enumerate() {
        let right = if counts && first.header != best.header {
            &best.block
        } else if first.astray && best.header != HeaderBlock::Damaged {
            // A spare on the other copy: alone one day, this copy must not have two files of one number.
            &zeros
        } else {
            continue;
        };
        disk.mend(copy, FileId::Segment(file), 0, right, BLOCK)?;
        report.mended += 1;
    }
    Ok(best.header)
}

fn sort_file(
    disk: &mut dyn Disk,
    file: u32,
    header: HeaderBlock,
    volume: &mut Volume,
    unknown: &mut Vec<u32>,
    empty: &mut Vec<u32>,
) -> Result<(), OpenError> {
    let superblock = &volume.superblock;
    let whole = disk.size(FileId::Segment(file))?.unwrap_or(0) == superblock.segment_bytes;
    match header {
        HeaderBlock::Good(header) => {
            if header.volume_id != superblock.volume_id {
                let (found, expected) = (uuid_text(&header.volume_id), uuid_text(&superblock.volume_id));
                return Err(OpenError::ForeignSegment { file, found, expected });
            }
            if header.epoch > superblock.epoch {
                return Err(OpenError::FutureEpoch { file, epoch: header.epoch, known: superblock.epoch });
            }
            if header.sequence >= superblock.first_sequence {
                let new = Segment::whole(file, header);
                let Some(same) = volume.segments.iter_mut().find(|segment| segment.header.sequence == header.sequence) else {
                    volume.segments.push(new);
                    return Ok(());
                };
                // A number is given out once more by a later opening that found nothing durable under it.
                match header.epoch.cmp(&same.header.epoch) {
                    Ordering::Less => volume.spares.push(file),
                    Ordering::Greater => volume.spares.push(std::mem::replace(same, new).file),
                    Ordering::Equal if disk.copies() == 1 => {
                        let (sequence, first) = (header.sequence, same.file);
                        return Err(OpenError::DoubledSegment { sequence, first, second: file });
                    }
                    // One copy's write of a segment's beginning went astray: the others followed it in the right file only.
                    Ordering::Equal => {
                        let frames = [*same, new].map(|segment| frames_of(disk, &volume.superblock, &segment));
                        let other = if frames[1] > frames[0] { std::mem::replace(same, new).file } else { file };
                        unknown.push(other);
                    }
                }
            } else if whole {
                volume.spares.push(file);
            } else {
                volume.unfinished.push(file);
            }
        }
        HeaderBlock::Newer(_) => unreachable!("refused when the headers were read"),
        // A zero-fill that was cut short; never a file that holds frames, those are whole.
        _ if !whole => volume.unfinished.push(file),
        HeaderBlock::Empty => empty.push(file),
        HeaderBlock::Damaged => unknown.push(file),
    }
    Ok(())
}

/// Files without a readable header: a frame inside may say which life they are; otherwise they are nobody's.
fn find_lives(
    disk: &mut dyn Disk,
    volume: &mut Volume,
    files: Vec<u32>,
    report: &mut RecoveryReport,
) -> Result<Vec<u32>, OpenError> {
    let mut nobodys = Vec::new();
    let superblock = volume.superblock;
    for file in files {
        let mut scanner = Scanner::new(disk, &superblock);
        let found = scanner.any_frame(file);
        let taken = |sequence| volume.segments.iter().any(|segment| segment.header.sequence == sequence);
        match found.filter(|(_, found)| !taken(found.header.segment_sequence)) {
            Some((copy, found)) => {
                scanner.share_remains(file, copy, &found)?;
                report.headers_repaired += 1;
                volume.segments.push(found.segment(file));
            }
            None => nobodys.push(file),
        }
    }
    Ok(nobodys)
}

fn frames_of(disk: &mut dyn Disk, superblock: &Superblock, segment: &Segment) -> u64 {
    let mut scanner = Scanner::new(disk, superblock);
    let (mut at, mut frames) = (BLOCK as u64, 0);
    while let Some(found) = scanner.find_next(segment, at, 0, u64::MAX) {
        frames += 1;
        at = found.position + found.header.frame_bytes() as u64;
    }
    frames
}

/// Torn once more, what is left of this header and what is left of the next one might make a whole one. A file that has another name is
/// nobody's to write to, and goes.
fn clear_header(disk: &mut dyn Disk, file: u32) -> Result<bool, OpenError> {
    if disk.links(FileId::Segment(file))? > 1 {
        return Ok(true);
    }
    match disk.write_now(FileId::Segment(file), 0, &AlignedBuf::zeroed(BLOCK), BLOCK) {
        Ok(()) => Ok(true),
        Err(error @ DiskError::Closed { .. }) => Err(error.into()),
        Err(error) => {
            tracing::warn!(file, %error, "a segment file without a header could not be cleared: it is made anew");
            Ok(false)
        }
    }
}

/// From the first segment the superblock names to the last one it knows, none may be missing.
fn check_order(volume: &Volume, report: &RecoveryReport) -> Result<(), OpenError> {
    let superblock = &volume.superblock;
    let mut expected = match volume.segments.first() {
        // With one slot damaged the other may be older: what it calls the first segment may have been recycled since.
        Some(first) if report.superblock_damaged => first.header.sequence,
        _ => superblock.first_sequence,
    };
    for segment in &volume.segments {
        if segment.header.sequence != expected {
            return Err(OpenError::MissingSegment { sequence: expected });
        }
        expected += 1;
    }
    if expected <= superblock.last_sequence {
        return Err(OpenError::MissingSegment { sequence: expected });
    }
    Ok(())
}
