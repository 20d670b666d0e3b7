//! The superblock: who this volume is and what is known about it for certain. Two slots, written in turn, so that a torn write
//! leaves the other one.

use super::{BLOCK, Uuid, array_at, put, u16_at, u32_at, u64_at};
use crate::disk::AlignedBuf;

/// Version of the volume format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FormatVersion {
    /// Another one is another format.
    pub major: u16,
    /// A higher one has more in it.
    pub minor: u16,
}

impl std::fmt::Display for FormatVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The newest version known here, and the one that is written. 1.1: classes of partitions, raised starts, cold segments, a second
/// copy of the log.
pub const FORMAT: FormatVersion = FormatVersion { major: 1, minor: 1 };
/// Slots A and B.
pub const SLOTS: u64 = 2;

pub(crate) const MAGIC: &[u8; 8] = b"WEIRSUP1";

/// How the volume was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeState {
    /// In use, or crashed.
    Open,
    /// Shut down.
    Closed,
    /// A write failed: this copy takes no more.
    Fenced,
}

/// What this copy of the log knows of the other one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// There is none: the only copy.
    None,
    /// Both hold everything that was acknowledged.
    InStep,
    /// The other one is behind since about `peer_lsn`: this one is the survivor.
    Out,
    /// This copy is being filled from the other one, and is worth nothing until that is done.
    Filling,
}

/// One slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Whose volume.
    pub node_id: Uuid,
    /// Which volume.
    pub volume_id: Uuid,
    /// One more each write.
    pub generation: u64,
    /// Number of the latest opening.
    pub epoch: u64,
    /// A frame known to be durable when this was written, with all before it.
    pub durable_lsn: u64,
    /// Size of every segment file.
    pub segment_bytes: u64,
    /// When the volume was made.
    pub created_ms: u64,
    /// How it was left.
    pub state: VolumeState,
    /// Oldest segment kept: what is older has been recycled, what is younger must be there.
    pub first_sequence: u64,
    /// Youngest segment known to exist.
    pub last_sequence: u64,
    /// Which copy of the log this is; zero where it was never asked (format 1.0).
    pub copy_id: Uuid,
    /// The other copy; zero: there never was one.
    pub peer_id: Uuid,
    /// How the other copy stands.
    pub peer: Peer,
    /// Where `peer` is `Out`: up to here at least both were in step.
    pub peer_lsn: u64,
}

/// What a slot turned out to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// All zero.
    Empty,
    /// Damaged or torn.
    Damaged,
    /// Intact, of a newer version.
    Newer(FormatVersion),
    /// Intact.
    Good(Superblock),
}

impl Superblock {
    /// Byte offset of the slot this generation belongs into.
    pub fn slot_at(&self) -> u64 {
        self.generation % SLOTS * BLOCK as u64
    }

    /// One block.
    pub fn encode(&self) -> AlignedBuf {
        let mut block = AlignedBuf::zeroed(BLOCK);
        put(&mut block, 0, MAGIC);
        put(&mut block, 12, &FORMAT.major.to_le_bytes());
        put(&mut block, 14, &FORMAT.minor.to_le_bytes());
        put(&mut block, 16, &self.node_id);
        put(&mut block, 32, &self.volume_id);
        put(&mut block, 48, &self.generation.to_le_bytes());
        put(&mut block, 56, &self.epoch.to_le_bytes());
        put(&mut block, 64, &self.durable_lsn.to_le_bytes());
        put(&mut block, 72, &self.segment_bytes.to_le_bytes());
        put(&mut block, 80, &self.created_ms.to_le_bytes());
        let state: u32 = match self.state {
            VolumeState::Open => 0,
            VolumeState::Closed => 1,
            VolumeState::Fenced => 2,
        };
        put(&mut block, 88, &state.to_le_bytes());
        put(&mut block, 96, &self.first_sequence.to_le_bytes());
        put(&mut block, 104, &self.last_sequence.to_le_bytes());
        put(&mut block, 112, &self.copy_id);
        put(&mut block, 128, &self.peer_id);
        let peer: u32 = match self.peer {
            Peer::None => 0,
            Peer::InStep => 1,
            Peer::Out => 2,
            Peer::Filling => 3,
        };
        put(&mut block, 144, &peer.to_le_bytes());
        put(&mut block, 152, &self.peer_lsn.to_le_bytes());
        let crc = crc32c::crc32c(&block[12..]);
        put(&mut block, 8, &crc.to_le_bytes());
        block
    }

    /// Reads one block.
    pub fn decode(block: &[u8]) -> Slot {
        assert_eq!(block.len(), BLOCK, "a slot is one block");
        if block.iter().all(|byte| *byte == 0) {
            return Slot::Empty;
        }
        if &block[..8] != MAGIC || u32_at(block, 8) != crc32c::crc32c(&block[12..]) {
            return Slot::Damaged;
        }
        let version = FormatVersion { major: u16_at(block, 12), minor: u16_at(block, 14) };
        if version.major == 0 {
            return Slot::Damaged;
        }
        if version > FORMAT {
            return Slot::Newer(version);
        }
        let state = match u32_at(block, 88) {
            0 => VolumeState::Open,
            1 => VolumeState::Closed,
            2 => VolumeState::Fenced,
            _ => return Slot::Damaged,
        };
        let peer = match u32_at(block, 144) {
            0 => Peer::None,
            1 => Peer::InStep,
            2 => Peer::Out,
            3 => Peer::Filling,
            _ => return Slot::Damaged,
        };
        Slot::Good(Superblock {
            node_id: array_at(block, 16),
            volume_id: array_at(block, 32),
            generation: u64_at(block, 48),
            epoch: u64_at(block, 56),
            durable_lsn: u64_at(block, 64),
            segment_bytes: u64_at(block, 72),
            created_ms: u64_at(block, 80),
            state,
            first_sequence: u64_at(block, 96),
            last_sequence: u64_at(block, 104),
            copy_id: array_at(block, 112),
            peer_id: array_at(block, 128),
            peer,
            peer_lsn: u64_at(block, 152),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn round_trip_and_any_changed_byte_is_seen(ids in any::<[[u8; 16]; 4]>(), numbers in any::<[u64; 8]>(), state in 0..3_u8, peer in 0..4_u8, at in 0..BLOCK, flip in 1..=255_u8) {
            let [generation, epoch, durable_lsn, segment_bytes, created_ms, first_sequence, last_sequence, peer_lsn] = numbers;
            let state = [VolumeState::Open, VolumeState::Closed, VolumeState::Fenced][usize::from(state)];
            let peer = [Peer::None, Peer::InStep, Peer::Out, Peer::Filling][usize::from(peer)];
            let [node_id, volume_id, copy_id, peer_id] = ids;
            let superblock = Superblock { node_id, volume_id, generation, epoch, durable_lsn, segment_bytes, created_ms, state, first_sequence, last_sequence, copy_id, peer_id, peer, peer_lsn };
            let mut block = superblock.encode();
            prop_assert_eq!(Superblock::decode(&block), Slot::Good(superblock));
            block[at] ^= flip;
            prop_assert_eq!(Superblock::decode(&block), Slot::Damaged);
        }
    }

    fn sample() -> Superblock {
        Superblock {
            node_id: [1; 16],
            volume_id: [2; 16],
            generation: 1,
            epoch: 1,
            durable_lsn: 0,
            segment_bytes: 1 << 20,
            created_ms: 0,
            state: VolumeState::Open,
            first_sequence: 1,
            last_sequence: 0,
            copy_id: [0; 16],
            peer_id: [0; 16],
            peer: Peer::None,
            peer_lsn: 0,
        }
    }

    #[test]
    fn what_knows_of_no_mirror_is_the_only_copy() {
        for minor in [0, FORMAT.minor] {
            let mut block = sample().encode();
            put(&mut block, 14, &minor.to_le_bytes());
            assert!(block[112..].iter().all(|byte| *byte == 0));
            let crc = crc32c::crc32c(&block[12..]);
            put(&mut block, 8, &crc.to_le_bytes());
            assert_eq!(Superblock::decode(&block), Slot::Good(sample()));
        }
    }

    #[test]
    fn a_newer_version_is_told_from_damage() {
        let mut block = sample().encode();
        for version in [FormatVersion { major: 2, minor: 0 }, FormatVersion { minor: FORMAT.minor + 1, ..FORMAT }] {
            put(&mut block, 12, &version.major.to_le_bytes());
            put(&mut block, 14, &version.minor.to_le_bytes());
            let crc = crc32c::crc32c(&block[12..]);
            put(&mut block, 8, &crc.to_le_bytes());
            assert_eq!(Superblock::decode(&block), Slot::Newer(version));
        }
        assert_eq!(Superblock::decode(&[0; BLOCK]), Slot::Empty);
    }
}
