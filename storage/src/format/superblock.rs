//! The superblock: who this volume is and what is known about it for certain. Two slots, written in turn, so that a torn write
//! leaves the other one.

use super::{BLOCK, Uuid, array_at, put, u16_at, u32_at, u64_at};
use crate::disk::AlignedBuf;

/// Newest major version of the volume format known here.
pub const FORMAT_MAJOR: u16 = 1;
/// Newest minor version of it.
pub const FORMAT_MINOR: u16 = 1;
/// Slots A and B.
pub const SLOTS: u64 = 2;

const MAGIC: &[u8; 8] = b"WEIRSUP1";

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
    /// Intact, of a newer major version.
    Newer(u16),
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
        put(&mut block, 12, &FORMAT_MAJOR.to_le_bytes());
        put(&mut block, 14, &FORMAT_MINOR.to_le_bytes());
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
        if u16_at(block, 12) != FORMAT_MAJOR {
            return Slot::Newer(u16_at(block, 12));
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
    fn minor_versions_older_and_newer_open() {
        for minor in [0_u16, 9] {
            let mut block = sample().encode();
            put(&mut block, 14, &minor.to_le_bytes());
            // What a newer minor version keeps in reserved bytes is not ours to judge.
            put(&mut block, 400, &[u8::from(minor > 1); 8]);
            let crc = crc32c::crc32c(&block[12..]);
            put(&mut block, 8, &crc.to_le_bytes());
            assert_eq!(Superblock::decode(&block), Slot::Good(sample()));
        }
    }

    #[test]
    fn a_newer_major_version_is_told_from_damage() {
        let mut block = sample().encode();
        put(&mut block, 12, &2_u16.to_le_bytes());
        let crc = crc32c::crc32c(&block[12..]);
        put(&mut block, 8, &crc.to_le_bytes());
        assert_eq!(Superblock::decode(&block), Slot::Newer(2));
        assert_eq!(Superblock::decode(&[0; BLOCK]), Slot::Empty);
    }
}
