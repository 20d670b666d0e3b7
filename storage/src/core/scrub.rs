//! When full WAL segments are looked at, and what came of it. The work is in `cold/scrub.rs`.
//!
//! A round of the scrub begins with the segments of the WAL that are full and not sorted yet, and goes on with the cold segments. One
//! that is sorted is in cold segments, which have copies of their own, and its file may be written again at any moment.

use std::time::Duration;

use super::Engine;
use super::cold::Running;
use crate::cold::job::{Done, Job};
use crate::cold::wal::WalSegment;
use crate::format::BLOCK;
use crate::types::Durability;

/// Where the scrub is in the WAL.
#[derive(Debug, Default)]
pub(super) struct WalRound {
    /// The last segment of this round, once it has begun.
    until: Option<u64>,
    /// Done up to this one.
    done_to: u64,
    /// Segments with frames that no copy has: told once.
    lost: std::collections::BTreeSet<u64>,
}

impl WalRound {
    /// The cold segments are done as well.
    pub(super) fn ends(&mut self) {
        self.until = None;
    }
}

impl<T> Engine<T> {
    /// The next full segment of this round.
    pub(super) fn wal_scrub_job(&mut self) -> Option<(Running, Job)> {
        let (now, copies) = (self.now.monotonic, if self.durable == Durability::TwoCopies { 2 } else { 1 });
        let cold = self.cold.as_mut()?;
        let rate = cold.config().scrub_bytes_per_s.filter(|rate| *rate > 0)?;
        if now < cold.upkeep.scrub_at {
            return None;
        }
        let flushed = cold.flushed;
        let newest = self.sealed.back().map_or(0, |segment| segment.sequence);
        let round = &mut cold.upkeep.wal;
        if round.until.is_none() {
            (round.until, round.done_to) = (Some(newest), 0);
            round.lost.retain(|sequence| *sequence > flushed);
        }
        let (from, until) = (flushed.max(round.done_to), round.until.unwrap_or(0));
        let next = self.sealed.iter().find(|segment| segment.sequence > from && segment.sequence <= until)?;
        let end_block = self.view.tables().segment(next.sequence as u32)?.end_block;
        round.done_to = next.sequence;
        let bytes = u64::from(end_block) * BLOCK as u64 * copies;
        cold.upkeep.scrub_at = now + Duration::from_micros(bytes.saturating_mul(1_000_000) / rate);
        let segment = WalSegment { file: next.file, sequence: next.sequence, end_block };
        Some((Running::ScrubWal(segment.sequence), Job::ScrubWal { segment }))
    }

    pub(super) fn wal_scrubbed(&mut self, sequence: u64, done: Done) {
        let Done::WalScrubbed { damaged, mended, lost_at, read_bytes } = done else { unreachable!("asked for nothing else") };
        self.counters.wal_scrubbed_bytes += read_bytes;
        self.counters.wal_frames_mended += mended;
        self.counters.wal_frames_damaged += damaged.iter().map(|(_, frames)| *frames).sum::<u64>();
        let Some(cold) = &mut self.cold else { return };
        for (volume, frames) in &damaged {
            tracing::error!(segment = sequence, volume, frames, "a copy of the log was damaged or unreadable");
        }
        if mended > 0 {
            tracing::info!(segment = sequence, mended, "what one copy of the log had lost was written anew from the other one");
        }
        if !lost_at.is_empty() && cold.upkeep.wal.lost.insert(sequence) {
            self.counters.wal_frames_lost += lost_at.len() as u64;
            tracing::error!(segment = sequence, at = ?lost_at, "no copy of the log has these frames intact: readers meet a gap there");
        }
    }
}
