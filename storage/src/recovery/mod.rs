//! From files back to the state of the log, believing nothing that a CRC, the chain and the superblock do not vouch for.
//!
//! 0. `pair.rs`: which of two copies are the log. In step, everything below reads the union of both and mends what one has lost.
//! 1. `volume.rs`: the superblock; which segment file is which life.
//! 2. `scan.rs`: frames of one segment, with what is wrong with the first bad one.
//! 3. `replay.rs`: the state they add up to.
//! 4. Here: every segment in order, the decision between torn tail and damage, and the new epoch, made durable before anything
//!    else is written.
//!
//! Segments before the newest whole snapshot only fill the index, so only their directories are read; from that snapshot on every
//! byte is verified. Memory: a few pieces of the file, at most one frame, and the state itself.

pub(crate) mod deep;
pub mod pair;
mod replay;
mod scan;
mod volume;
mod window;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::config::LogConfig;
use crate::core::{Limits, Now, Opening, Sealed};
use crate::disk::{Disk, FileId};
use crate::format::frame::{Entry, FrameHeader, FrameKind};
use crate::format::superblock::{Superblock, VolumeState};
use crate::report::{Damage, OpenError, RecoveryReport};
use crate::types::Lsn;
use crate::view::{Position, SegmentPlace};

use replay::Replay;
use scan::{Expected, Found, Scanner};
use volume::{Segment, Volume};

/// Recovers the log on `disk` and opens a new epoch. `fresh_ids` are for a volume that has to be made: of the node, unless the
/// configuration has one, and of the volume.
pub fn recover(
    disk: &mut dyn Disk,
    config: &LogConfig,
    now: Now,
    fresh_ids: [crate::format::Uuid; 2],
) -> Result<(Limits, Opening, RecoveryReport), OpenError> {
    recover_timed(disk, config, now, fresh_ids, || Duration::ZERO)
}

/// The same, by a watch that says in the report where the time went.
pub(crate) fn recover_timed(
    disk: &mut dyn Disk,
    config: &LogConfig,
    now: Now,
    fresh_ids: [crate::format::Uuid; 2],
    watch: fn() -> Duration,
) -> Result<(Limits, Opening, RecoveryReport), OpenError> {
    let began = watch();
    let mut report = RecoveryReport::default();
    let mut volume = volume::read(disk, config, now, fresh_ids, &mut report)?;
    let limits = Limits::new(config, volume.superblock.segment_bytes)?;
    let mut log = LogReader {
        scanner: Scanner::new(disk, &volume.superblock),
        superblock: volume.superblock,
        replay: Replay::new(config.cold.is_some()),
        report: &mut report,
        last_lsn: 0,
        last_crc: 0,
        after_damage: false,
        visit: None,
    };
    let state = log.newest_snapshot(&volume.segments);
    log.scanner.refuse_newer()?;
    let state = state?;
    log.read_oldest_snapshot(&volume.segments, state);
    let sealed = log.read_segments(&volume.segments, state, watch)?;
    let LogReader { replay, last_lsn, last_crc, scanner, .. } = log;
    scanner.refuse_newer()?;
    let (bytes, mended, failed) = (scanner.bytes_read(), scanner.mended, scanner.failed);
    disk.end_read_ahead();
    report.bytes = bytes;
    report.mended += mended;
    if let Some(error) = failed {
        return Err(error.into());
    }
    let last_lsn = last_lsn.max(volume.superblock.durable_lsn);
    let (replayed, producers, sequences_lost) = replay.finish(config, sealed.iter().map(|(_, place)| *place), &mut report)?;

    let snapshot_sequence = state.map_or(0, |at| volume.segments[at].header.sequence);
    forget_shared(disk, &mut volume)?;
    open_epoch(disk, &mut volume, last_lsn)?;
    (report.node_id, report.volume_id) = (volume.superblock.node_id, volume.superblock.volume_id);
    report.epoch = volume.superblock.epoch;
    report.segments = volume.segments.len() as u64;
    report.last_lsn = Lsn(last_lsn);
    report.read_for = watch().saturating_sub(began);
    let next_sequence = volume.superblock.last_sequence.max(volume.superblock.first_sequence.saturating_sub(1));
    let opening = Opening {
        last_lsn,
        last_crc,
        segments: sealed.iter().map(|(sealed, _)| *sealed).collect(),
        snapshot_sequence,
        next_sequence: volume.segments.last().map_or(next_sequence, |last| last.header.sequence.max(next_sequence)) + 1,
        spares: volume.spares.into(),
        unfinished: volume.unfinished,
        next_file: volume.next_file,
        producers,
        sequences_lost,
        superblock: volume.superblock,
        view: Arc::new(replayed),
    };
    Ok((limits, opening, report))
}

/// A file that has another name is a promoted segment, whether or not the manifest says so yet: it is nothing to write to. Only its name in
/// the WAL goes.
fn forget_shared(disk: &mut dyn Disk, volume: &mut Volume) -> Result<(), OpenError> {
    for files in [&mut volume.spares, &mut volume.unfinished] {
        for file in std::mem::take(files) {
            if disk.links(FileId::Segment(file))? > 1 {
                disk.remove(FileId::Segment(file))?;
            } else {
                files.push(file);
            }
        }
    }
    Ok(())
}

/// Both slots get the new epoch, so that no damage to one of them takes the log back to an older one.
fn open_epoch(disk: &mut dyn Disk, volume: &mut Volume, last_lsn: u64) -> Result<(), OpenError> {
    let superblock = &mut volume.superblock;
    superblock.epoch += 1;
    superblock.state = VolumeState::Open;
    superblock.durable_lsn = last_lsn;
    if let Some(last) = volume.segments.last() {
        superblock.last_sequence = superblock.last_sequence.max(last.header.sequence);
    }
    for _ in 0..crate::format::superblock::SLOTS {
        superblock.generation += 1;
        disk.write_now(FileId::Superblock, superblock.slot_at(), &superblock.encode(), crate::format::BLOCK)?;
    }
    Ok(())
}

/// Segments whose directories the disk is told of: it may follow fewer at once.
const SEGMENTS_AHEAD: usize = 4;

/// Sees a good frame: header, directory, decompressed payload, and where it lies.
pub(crate) type Visit<'a> = &'a mut dyn FnMut(&FrameHeader, &[Entry], Option<&[u8]>, u64);

/// Where the frames of a segment end.
#[derive(Clone, Copy)]
struct Limit {
    /// First that is not its own.
    lsn: u64,
    /// Or that number is the first known one of them.
    exact: bool,
}

struct LogReader<'a> {
    scanner: Scanner<'a>,
    superblock: Superblock,
    replay: Replay,
    report: &'a mut RecoveryReport,
    last_lsn: u64,
    last_crc: u32,
    /// The chain is broken before the next frame; that is already reported.
    after_damage: bool,
    visit: Option<Visit<'a>>,
}

impl LogReader<'_> {
    /// Index of the newest segment that begins with a whole, intact snapshot; `None` for a log that never had one.
    fn newest_snapshot(&mut self, segments: &[Segment]) -> Result<Option<usize>, OpenError> {
        for (at, segment) in segments.iter().enumerate().rev() {
            if self.scanner.snapshot(segment, &mut |_| {}) {
                return Ok(Some(at));
            }
        }
        // Only a volume's first segments may lack one: their first write was torn, so nothing was acknowledged.
        let mut nothing_stored =
            self.superblock.durable_lsn == 0 && segments.first().is_none_or(|first| first.header.first_lsn == 1);
        for segment in segments {
            nothing_stored &= !self.scanner.proves(segment, crate::format::BLOCK as u64, segment.header.first_lsn);
        }
        match segments.last() {
            Some(last) if !nothing_stored => Err(OpenError::StateDamaged { sequence: last.header.sequence }),
            _ => Ok(None),
        }
    }

    /// The disk is told of the segments behind this one whose payloads are not wanted.
    fn announce(&mut self, segments: &[Segment], at: usize, state: Option<usize>) {
        let to = state.unwrap_or(0).min(at + 1 + SEGMENTS_AHEAD);
        for segment in segments.get(at + 1..to).unwrap_or_default() {
            self.scanner.announce(segment);
        }
    }

    /// What lies before the oldest segment is gone: its snapshot says where each partition's records begin.
    fn read_oldest_snapshot(&mut self, segments: &[Segment], state: Option<usize>) {
        if let Some(oldest) = segments.first()
            && state != Some(0)
        {
            let replay = &mut self.replay;
            if !self.scanner.snapshot(oldest, &mut |item| replay.oldest_item(item)) {
                self.replay.oldest_unknown();
            }
        }
    }

    /// All of them in order, of which those from the newest snapshot on are verified.
    fn read_segments(
        &mut self,
        segments: &[Segment],
        state: Option<usize>,
        watch: fn() -> Duration,
    ) -> Result<VecDeque<(Sealed, SegmentPlace)>, OpenError> {
        let mut sealed = VecDeque::new();
        for at in 0..segments.len() {
            let from_snapshot = state.is_none_or(|state| at >= state);
            self.announce(segments, at, state);
            let (bytes, began) = (self.scanner.bytes_read(), watch());
            sealed.push_back(self.read_segment(segments, at, from_snapshot, state == Some(at))?);
            if from_snapshot {
                self.report.verified_bytes += self.scanner.bytes_read() - bytes;
                self.report.verified_for += watch().saturating_sub(began);
            }
        }
        Ok(sealed)
    }

    fn read_segment(
        &mut self,
        segments: &[Segment],
        at: usize,
        verify: bool,
        is_state: bool,
    ) -> Result<(Sealed, SegmentPlace), OpenError> {
        let segment = &segments[at];
        let next = segments.get(at + 1);
        let limit = match next {
            Some(next) => Some(Limit { lsn: next.header.first_lsn, exact: next.exact }),
            None => self.given_up_from(segment),
        };
        self.replay.segment_begins(segment.header.sequence);
        self.join(segment, at == 0, verify && !is_state);
        if is_state {
            let replay = &mut self.replay;
            replay.state_begins();
            self.scanner.snapshot(segment, &mut |item| replay.state_item(item));
            replay.state_read(at == 0, segment.header.first_lsn, self.report);
        }
        let mut position = crate::format::BLOCK as u64;
        let mut last_written_ms = segment.header.opened_ms;
        let mut in_snapshot = true;
        while limit.is_none_or(|limit| self.last_lsn + 1 < limit.lsn) {
            let expected = Expected { lsn: self.last_lsn + 1, prev_crc: (!self.after_damage).then_some(self.last_crc) };
            match self.scanner.frame(segment, position, expected, verify) {
                Ok(found) => {
                    self.take(segment, &found, position, verify);
                    in_snapshot &= found.header.kind != FrameKind::SnapshotEnd;
                    last_written_ms = found.header.written_ms;
                    position += found.header.frame_bytes() as u64;
                }
                Err(reason) => match self.behind_damage(segment, position, limit, in_snapshot, verify, &reason) {
                    Some(next) => position = next,
                    None => break,
                },
            }
        }
        let sealed = Sealed { file: segment.file, sequence: segment.header.sequence, last_written_ms };
        let end_block = (position / crate::format::BLOCK as u64) as u32;
        Ok((sealed, SegmentPlace { sequence: segment.header.sequence as u32, file: segment.file, end_block }))
    }

    /// The newest segment ends where the log's last opening found its end, if nothing was written since: what lies behind was given up,
    /// though a frame in it may be whole, for two are written at the same time.
    fn given_up_from(&self, segment: &Segment) -> Option<Limit> {
        let Superblock { epoch, durable_lsn, .. } = self.superblock;
        // 0 where nothing is known, and before the first snapshot, which nothing is written beside.
        let opened_since = segment.header.epoch < epoch && durable_lsn > 0;
        opened_since.then_some(Limit { lsn: durable_lsn + 1, exact: true })
    }

    /// The segment must go on where the one before ended.
    fn join(&mut self, segment: &Segment, first: bool, replaying: bool) {
        let header = &segment.header;
        let next_lsn = self.last_lsn + 1;
        if first || self.after_damage {
            self.after_damage = segment.repaired;
        } else if next_lsn != header.first_lsn || (segment.chained && self.last_crc != header.prev_crc) {
            let frames = header.first_lsn.saturating_sub(next_lsn);
            let reason = "the frames before this one are not those it was chained to";
            self.note_damage(segment, 0, next_lsn.min(header.first_lsn), frames, reason);
            if replaying {
                self.replay.lost_frames(frames.max(1), self.report);
            }
        }
        (self.last_lsn, self.last_crc) = (header.first_lsn - 1, header.prev_crc);
        self.after_damage |= !segment.chained;
    }

    fn take(&mut self, segment: &Segment, found: &Found, position: u64, verify: bool) {
        let header = &found.header;
        self.report.frames += 1;
        self.last_lsn = header.lsn;
        self.last_crc = header.header_crc;
        self.after_damage = false;
        if let Some(visit) = &mut self.visit {
            visit(header, &found.entries, found.payload.as_deref(), position);
        }
        if header.kind == FrameKind::Data {
            let place =
                Position { sequence: segment.header.sequence as u32, block: (position / crate::format::BLOCK as u64) as u32 };
            self.replay.frame(header, &found.entries, found.payload.as_deref(), place, verify, self.report);
        }
    }

    /// The frame at `position` is bad. Returns where to go on, or `None` where the segment ends.
    fn behind_damage(
        &mut self,
        segment: &Segment,
        position: u64,
        limit: Option<Limit>,
        in_snapshot: bool,
        verify: bool,
        reason: &str,
    ) -> Option<u64> {
        let lost_lsn = self.last_lsn + 1;
        let limit_lsn = limit.map(|limit| limit.lsn);
        let behind = position + crate::format::BLOCK as u64;
        let next = self.scanner.find_next(segment, behind, lost_lsn, limit_lsn.unwrap_or(u64::MAX));
        // In the last segment the search has just seen everything that could prove it.
        let provable = next.is_some() || limit_lsn.is_some();
        let limit_exact = limit.is_some_and(|limit| limit.exact);
        // A segment whose own beginning is lost does not say which frames before it were durable.
        let proven = limit_exact
            || (limit_lsn.is_none() && self.superblock.durable_lsn >= lost_lsn)
            || (provable && self.scanner.proves(segment, behind, lost_lsn));
        if !proven {
            // Nobody was told of this frame or of any behind it.
            // After a shutdown nothing was being written: what looks like remains is of an older life of a recycled file.
            let remains = next.is_some() || self.scanner.has_remains(segment, position, lost_lsn);
            self.report.torn_tail |= remains && !self.report.clean;
            return None;
        }
        let (next, durable_lsn) = self.joined(segment, behind, limit, next);
        let resume_lsn = next.as_ref().map(|found| found.header.lsn).or(limit_lsn).unwrap_or(durable_lsn + 1);
        self.note_damage(segment, position, lost_lsn, resume_lsn - lost_lsn, reason);
        let only_snapshot = in_snapshot && next.as_ref().is_some_and(|found| is_snapshot(&found.header));
        if !only_snapshot {
            self.lose_frames(segment, position, lost_lsn, resume_lsn, verify);
        }
        self.last_lsn = resume_lsn - 1;
        self.after_damage = true;
        next.map(|found| found.position)
    }

    /// The next good frame, unless one between the damage and it was never durable, and up to where the log is known to have been.
    /// Two frames are written at the same time: of those the first may be missing and nobody was told of the second. The log
    /// ended before it, or an earlier recovery ended it there.
    fn joined(&mut self, segment: &Segment, behind: u64, limit: Option<Limit>, next: Option<Found>) -> (Option<Found>, u64) {
        let known = if limit.is_none() { self.superblock.durable_lsn } else { 0 };
        let exact = limit.is_some_and(|limit| limit.exact);
        let Some(found) = next else { return (None, known) };
        let mut known = known.max(found.header.durable_lsn);
        if !exact && found.header.lsn > known + 1 {
            known = known.max(self.scanner.proven_up_to(segment, behind));
        }
        if exact || found.header.lsn <= known + 1 {
            return (Some(found), known);
        }
        self.report.torn_tail |= limit.is_none();
        (None, known)
    }

    /// A frame whose directory is whole still says what it held; of others only their number is known.
    fn lose_frames(&mut self, segment: &Segment, position: u64, lost_lsn: u64, resume_lsn: u64, verify: bool) {
        let mut from = lost_lsn;
        let expected = Expected { lsn: lost_lsn, prev_crc: (!self.after_damage).then_some(self.last_crc) };
        if let Ok(found) = self.scanner.frame(segment, position, expected, false) {
            if found.header.kind == FrameKind::Data {
                self.replay.lost_payload(&found.header, &found.entries, verify, self.report);
            }
            from += 1;
        }
        if from < resume_lsn && verify {
            self.replay.lost_frames(resume_lsn - from, self.report);
        }
    }

    fn note_damage(&mut self, segment: &Segment, at: u64, first_lsn: u64, frames: u64, reason: &str) {
        tracing::error!(file = segment.file, at, first_lsn, frames, reason, "durable frames are damaged");
        self.report.damage.push(Damage { file: segment.file, at, first_lsn: Lsn(first_lsn), frames, reason: reason.to_owned() });
    }
}

fn is_snapshot(header: &FrameHeader) -> bool {
    matches!(header.kind, FrameKind::Snapshot | FrameKind::SnapshotEnd)
}
