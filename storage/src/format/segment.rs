//! The first block of a segment file: which life of the file this is, and where it joins the log.

use super::{BLOCK, Uuid, array_at, number_or_zero, put, u16_at, u32_at, u64_at};

pub(crate) const MAGIC: &[u8; 8] = b"WEIRSEG1";
/// Newest version of the header known here.
pub const VERSION: u16 = 1;

/// Header of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Volume it belongs to.
    pub volume_id: Uuid,
    /// Number of this life; segments are read in this order.
    pub sequence: u64,
    /// Opening that wrote it.
    pub epoch: u64,
    /// First frame in it.
    pub first_lsn: u64,
    /// Header CRC of the frame before.
    pub prev_crc: u32,
    /// Known to be durable when it was opened.
    pub durable_lsn: u64,
    /// When it was opened.
    pub opened_ms: u64,
    /// Number of the file it was written to, if it says so.
    pub file: Option<u32>,
}

/// What the first block of a segment file turned out to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderBlock {
    /// All zero: a spare.
    Empty,
    /// Torn or damaged.
    Damaged,
    /// Intact, of a newer version.
    Newer(u16),
    /// Intact.
    Good(SegmentHeader),
}

impl SegmentHeader {
    /// Into the first block of `block`, whose bytes from there on must be zero or are overwritten.
    pub fn encode(&self, block: &mut [u8]) {
        let block = &mut block[..BLOCK];
        block.fill(0);
        put(block, 0, MAGIC);
        put(block, 12, &VERSION.to_le_bytes());
        put(block, 16, &self.volume_id);
        put(block, 32, &self.sequence.to_le_bytes());
        put(block, 40, &self.epoch.to_le_bytes());
        put(block, 48, &self.first_lsn.to_le_bytes());
        put(block, 56, &self.prev_crc.to_le_bytes());
        put(block, 60, &number_or_zero(self.file).to_le_bytes());
        put(block, 64, &self.durable_lsn.to_le_bytes());
        put(block, 72, &self.opened_ms.to_le_bytes());
        let crc = crc32c::crc32c(&block[12..]);
        put(block, 8, &crc.to_le_bytes());
    }

    /// Whether it may be this file's: a write that goes astray leaves a whole header in a wrong one.
    pub fn may_be_of(&self, file: u32) -> bool {
        self.file.is_none_or(|own| own == file)
    }

    /// Reads one block.
    pub fn decode(block: &[u8]) -> HeaderBlock {
        assert_eq!(block.len(), BLOCK, "a segment header is one block");
        if block.iter().all(|byte| *byte == 0) {
            return HeaderBlock::Empty;
        }
        if &block[..8] != MAGIC || u32_at(block, 8) != crc32c::crc32c(&block[12..]) {
            return HeaderBlock::Damaged;
        }
        match u16_at(block, 12) {
            0 => return HeaderBlock::Damaged,
            VERSION => {}
            newer => return HeaderBlock::Newer(newer),
        }
        HeaderBlock::Good(SegmentHeader {
            volume_id: array_at(block, 16),
            sequence: u64_at(block, 32),
            epoch: u64_at(block, 40),
            first_lsn: u64_at(block, 48),
            prev_crc: u32_at(block, 56),
            durable_lsn: u64_at(block, 64),
            opened_ms: u64_at(block, 72),
            file: u32_at(block, 60).checked_sub(1),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn round_trip_and_any_changed_byte_is_seen(volume_id in any::<[u8; 16]>(), numbers in any::<[u64; 5]>(), prev_crc: u32, file in proptest::option::of(0..u32::MAX), at in 0..BLOCK, flip in 1..=255_u8) {
            let [sequence, epoch, first_lsn, durable_lsn, opened_ms] = numbers;
            let header = SegmentHeader { volume_id, sequence, epoch, first_lsn, prev_crc, durable_lsn, opened_ms, file };
            let mut block = vec![7; BLOCK];
            header.encode(&mut block);
            prop_assert_eq!(SegmentHeader::decode(&block), HeaderBlock::Good(header));
            block[at] ^= flip;
            prop_assert_eq!(SegmentHeader::decode(&block), HeaderBlock::Damaged);
        }
    }

    #[test]
    fn zeros_are_a_spare() {
        assert_eq!(SegmentHeader::decode(&[0; BLOCK]), HeaderBlock::Empty);
    }
}
