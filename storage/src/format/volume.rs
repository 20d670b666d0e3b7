//! Which volume a directory is: a file of its own, written once, the same block twice.

use super::{BLOCK, Uuid, array_at, put, u16_at, u64_at};

const MAGIC: &[u8; 8] = b"WEIRVOL1";
const MAJOR: u16 = 1;
/// Of the file.
pub const IDENTITY_BYTES: usize = 2 * BLOCK;

/// Who a directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The `volume_id` of the log's frames.
    pub log_id: Uuid,
    /// Of this directory.
    pub volume: Uuid,
    /// Unix time.
    pub created_ms: u64,
}

/// Why a file is no identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoIdentity {
    /// Neither block is intact.
    Damaged,
    /// Written by a program that knows more.
    Newer(u16),
}

impl Identity {
    /// Into a file.
    pub fn encode(&self) -> Vec<u8> {
        let mut block = vec![0; BLOCK];
        put(&mut block, 0, MAGIC);
        put(&mut block, 12, &MAJOR.to_le_bytes());
        put(&mut block, 16, &self.log_id);
        put(&mut block, 32, &self.volume);
        put(&mut block, 48, &self.created_ms.to_le_bytes());
        let crc = crc32c::crc32c(&block[12..]);
        put(&mut block, 8, &crc.to_le_bytes());
        block.repeat(2)
    }

    /// From what a file holds.
    pub fn decode(bytes: &[u8]) -> Result<Identity, NoIdentity> {
        let intact = |block: &&[u8]| {
            block.len() == BLOCK && block.starts_with(MAGIC) && crc32c::crc32c(&block[12..]).to_le_bytes() == block[8..12]
        };
        let block = bytes.chunks(BLOCK).take(2).find(intact).ok_or(NoIdentity::Damaged)?;
        match u16_at(block, 12) {
            MAJOR => {}
            newer => return Err(NoIdentity::Newer(newer)),
        }
        Ok(Identity { log_id: array_at(block, 16), volume: array_at(block, 32), created_ms: u64_at(block, 48) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_intact_block_is_enough_and_a_newer_one_is_named() {
        let identity = Identity { log_id: [3; 16], volume: [4; 16], created_ms: 77 };
        let mut bytes = identity.encode();
        assert_eq!(bytes.len(), IDENTITY_BYTES);
        bytes[20] ^= 1;
        assert_eq!(Identity::decode(&bytes), Ok(identity));
        bytes[BLOCK + 50] ^= 1;
        assert_eq!(Identity::decode(&bytes), Err(NoIdentity::Damaged));
        assert_eq!(Identity::decode(&identity.encode()[..BLOCK - 1]), Err(NoIdentity::Damaged));
        assert_eq!(Identity::decode(&[]), Err(NoIdentity::Damaged));
        let mut newer = identity.encode();
        newer[12] = 2;
        let crc = crc32c::crc32c(&newer[12..BLOCK]);
        put(&mut newer, 8, &crc.to_le_bytes());
        assert_eq!(Identity::decode(&newer), Err(NoIdentity::Newer(2)));
    }
}
