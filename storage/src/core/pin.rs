//! A backup reads files that the log would use again or remove. A pin holds them back: WAL segments that are not copied yet are not
//! recycled, files of cold segments are not removed.
//!
//! It costs space and nothing else: what is due is done as soon as the pin lets go of it, in the order of the log. So it is bounded, and
//! always the one to give way: when its backup says nothing for [`PIN_LEASE`], when the disk is full, when producers would have to
//! wait for a segment, when the index is full, or when as many WAL segments are overdue as it once held. The backup then fails with the reason.
//! Nothing of it is durable: after a crash there are no pins.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::{Engine, Now};
use crate::cold::job::Files;
use crate::cold::manifest::VolumeEntry;
use crate::cold::wal::WalSegment;
use crate::format::superblock::{Peer, Superblock, VolumeState};
use crate::view::ColdPlace;

/// A backup that lets go of nothing for so long is taken for gone.
pub const PIN_LEASE: Duration = Duration::from_secs(120);
/// Overdue WAL segments that are always held.
const OVERDUE_MIN: usize = 4;

/// The log as of one moment: everything acknowledged up to it is in these files.
#[derive(Clone, Debug)]
pub struct Pinned {
    /// What the pin is let go by.
    pub token: u64,
    /// Last durable frame.
    pub lsn: u64,
    /// As a copy of the files must have it to open like the log after a crash now.
    pub superblock: Superblock,
    /// WAL segments, oldest first, up to their last durable frame.
    pub segments: Vec<WalSegment>,
    /// Cold segments.
    pub cold: Arc<Vec<Arc<ColdPlace>>>,
    /// The table of volumes.
    pub volumes: Vec<(u8, VolumeEntry)>,
}

/// What a backup needs no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinDone {
    /// Nothing yet; it is still at work.
    Nothing,
    /// WAL segments up to this sequence.
    Wal(u64),
    /// The file of this cold segment.
    Cold(u32),
    /// Anything.
    All,
}

/// Why a pin was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PinLost {
    /// Another one, or none any more.
    #[error("the log knows nothing of this backup any more")]
    Unknown,
    /// Silence.
    #[error("the backup copied nothing for two minutes: look at the disk it goes to")]
    Silent,
    /// Its files are the space that is wanted.
    #[error("the node's disk is full and needs the space of the files held for the backup: free some, then start it again")]
    DiskFull,
    /// Producers would have waited.
    #[error(
        "the log needed its segments back before they were copied: start it again when less comes in, allow it more bytes a second, or raise cold.log_bytes_max"
    )]
    WalFull,
    /// Only recycling makes the index smaller.
    #[error("the log's index is full: raise log.index_entries_max, or start it again when less comes in")]
    IndexFull,
}

/// Refused: one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a backup of this log is under way: wait for it, or stop it")]
pub struct PinTaken;

#[derive(Debug)]
pub(super) struct Pin {
    token: u64,
    /// Sequences of WAL segments that are still to be copied: `from..=to`.
    wal_from: u64,
    wal_to: u64,
    wal_segments: usize,
    cold: BTreeSet<u32>,
    /// When it was last heard of.
    heard: Duration,
}

impl Pin {
    fn holds_wal(&self, sequence: u64) -> bool {
        (self.wal_from..=self.wal_to).contains(&sequence)
    }

    /// If it is not heard of before.
    pub(super) fn ends_at(&self) -> Duration {
        self.heard + PIN_LEASE
    }
}

impl<T> Engine<T> {
    /// Holds everything that is durable now.
    pub fn pin(&mut self, now: Now) -> Result<Pinned, PinTaken> {
        self.now = now;
        self.review_pin();
        if self.pin.is_some() {
            return Err(PinTaken);
        }
        let (segments, cold) = {
            let tables = self.view.tables();
            let kept = tables.segments.iter().filter(|place| u64::from(place.sequence) >= self.superblock.first_sequence);
            let segment = |place: &crate::view::SegmentPlace| WalSegment {
                file: place.file,
                sequence: u64::from(place.sequence),
                end_block: place.end_block,
            };
            (kept.map(segment).collect::<Vec<_>>(), Arc::clone(&tables.cold))
        };
        let token = self.pin_next;
        self.pin_next += 1;
        self.pin_lost = None;
        self.pin = Some(Pin {
            token,
            wal_from: segments.first().map_or(1, |first| first.sequence),
            wal_to: segments.last().map_or(0, |last| last.sequence),
            wal_segments: segments.len(),
            cold: cold.iter().map(|place| place.number).collect(),
            heard: now.monotonic,
        });
        let superblock = copied(&self.superblock, self.lsn_durable, &segments);
        let volumes =
            super::named_volumes(&self.view.meta()).expect("recovery has read them, and what came later was encoded here");
        Ok(Pinned { token, lsn: self.lsn_durable, superblock, segments, cold, volumes })
    }

    /// A part of the pinned files is copied. Returns whether the rest is wanted back soon, or why it is not held any more: then what
    /// was read since the last time may be anything.
    pub fn pin_done(&mut self, now: Now, token: u64, done: PinDone) -> Result<bool, PinLost> {
        self.now = now;
        self.review_pin();
        let Some(pin) = self.pin.as_mut().filter(|pin| pin.token == token) else {
            let lost = self.pin_lost.filter(|(lost, _)| *lost == token);
            return Err(lost.map_or(PinLost::Unknown, |(_, why)| why));
        };
        pin.heard = now.monotonic;
        match done {
            PinDone::Nothing => {}
            PinDone::Wal(sequence) => pin.wal_from = pin.wal_from.max(sequence + 1),
            PinDone::Cold(number) => {
                pin.cold.remove(&number);
            }
            PinDone::All => self.pin = None,
        }
        if done != PinDone::Nothing {
            self.cold_has_news();
        }
        Ok(self.pin_is_in_the_way() && self.wal_is_at_its_bound())
    }

    /// Whether the pin has to go; looked at before anything that it may hold back.
    pub(super) fn review_pin(&mut self) {
        let Some(pin) = &self.pin else { return };
        let in_the_way = self.pin_is_in_the_way();
        let producers_wait = self.wal_is_at_its_bound() && self.spares.len() <= self.spares_of_own();
        let overdue = self.sealed.len() > 2 * pin.wal_segments.max(OVERDUE_MIN);
        if self.now.monotonic >= pin.ends_at() {
            self.lose_pin(PinLost::Silent);
        } else if self.disk_is_full() {
            self.lose_pin(PinLost::DiskFull);
        } else if in_the_way && (producers_wait || overdue) {
            self.lose_pin(PinLost::WalFull);
        }
    }

    pub(super) fn lose_pin(&mut self, why: PinLost) {
        if let Some(pin) = self.pin.take() {
            tracing::warn!(reason = %why, "the files held for a backup are given up, and it fails");
            self.pin_lost = Some((pin.token, why));
            self.cold_has_news();
        }
    }

    pub(super) fn pin_holds_cold(&self, number: u32) -> bool {
        self.pin.as_ref().is_some_and(|pin| pin.cold.contains(&number))
    }

    pub(super) fn pin_holds_oldest(&self) -> bool {
        let holds = |oldest: &super::Sealed| self.pin.as_ref().is_some_and(|pin| pin.holds_wal(oldest.sequence));
        self.sealed.front().is_some_and(holds)
    }

    /// Whether the oldest segment would be recycled but for the pin.
    fn pin_is_in_the_way(&self) -> bool {
        self.pin_holds_oldest() && self.is_due_to_go()
    }

    /// Takes the cold segments whose files may go out of those that are out of the manifest.
    pub(super) fn take_removable(&mut self) -> Option<Vec<(u32, Files)>> {
        let held = |(number, _): &(u32, Files)| self.pin.as_ref().is_some_and(|pin| pin.cold.contains(number));
        let leaving = &mut self.cold.as_mut()?.leaving;
        let (stay, go): (Vec<_>, Vec<_>) = leaving.drain(..).partition(held);
        *leaving = stay;
        (!go.is_empty()).then_some(go)
    }
}

/// The superblock of a copy of these segments, up to a frame.
pub(crate) fn copied(superblock: &Superblock, lsn: u64, segments: &[WalSegment]) -> Superblock {
    let first_sequence = segments.first().map_or(superblock.first_sequence, |first| first.sequence);
    let last_sequence = segments.last().map_or(first_sequence - 1, |last| last.sequence);
    Superblock {
        durable_lsn: lsn,
        state: VolumeState::Open,
        first_sequence,
        last_sequence,
        copy_id: [0; 16],
        peer_id: [0; 16],
        peer: Peer::None,
        peer_lsn: 0,
        ..*superblock
    }
}
