//! Whether a cold segment that is being copied holds what was written: the CRC of each of its parts, as they follow one another. What
//! one volume's copy has lost another's may have; and where no copy is whole, whoever makes the backup wants to know.

use crate::cold::{ColdIndex, Footer, SegmentHead, crc_with_number};
use crate::format::{BLOCK, Uuid, u32_at};

/// Larger parts there are none: what claims to be one is damaged.
const PART_BYTES_MAX: usize = 64 << 20;
const HEAD_BYTES: usize = 16;
const BLOCK_HEAD_BYTES: usize = 32;

/// Looks at a segment's file from its start, piece by piece. Memory: one part and a piece.
pub(super) struct PartCheck {
    log_id: Uuid,
    number: u32,
    file_bytes: u64,
    /// Of what is pending.
    at: u64,
    pending: Vec<u8>,
    block: u32,
    /// Behind the index there are only zeros, which mean nothing, and the footer.
    index_seen: bool,
    whole: bool,
    wrong: Option<(u64, &'static str)>,
}

impl PartCheck {
    pub(super) fn new(log_id: Uuid, number: u32, file_bytes: u64) -> PartCheck {
        let pending = Vec::new();
        PartCheck { log_id, number, file_bytes, at: 0, pending, block: 0, index_seen: false, whole: false, wrong: None }
    }

    pub(super) fn add(&mut self, piece: &[u8]) {
        if self.wrong.is_some() {
            return;
        }
        self.pending.extend_from_slice(piece);
        let mut from = 0;
        loop {
            match self.next(self.at + from as u64, &self.pending[from..]) {
                Ok(Step { bytes: 0, .. }) => break,
                Ok(step) => {
                    from += step.bytes;
                    self.block += u32::from(step.what == What::Block);
                    self.index_seen |= step.what == What::Index;
                    self.whole |= step.what == What::Footer;
                }
                Err(reason) => {
                    self.wrong = Some((self.at + from as u64, reason));
                    self.pending = Vec::new();
                    return;
                }
            }
        }
        self.pending.drain(..from);
        self.at += from as u64;
    }

    /// Where the first damage is, once all is added.
    pub(super) fn finish(self) -> Option<(u64, &'static str)> {
        self.wrong.or((!self.whole).then_some((self.at, "the file is cut off")))
    }

    /// The part that begins here; of 0 bytes: more is needed.
    fn next(&self, at: u64, rest: &[u8]) -> Result<Step, &'static str> {
        let footer_at = ColdIndex::footer_at(self.file_bytes);
        if at == 0 || at == footer_at {
            if rest.len() < BLOCK {
                return Ok(Step::MORE);
            }
            let sound = match at {
                0 => SegmentHead::decode(self.number, &self.log_id, &rest[..BLOCK]).is_ok(),
                _ => Footer::decode(self.number, self.file_bytes, &rest[..BLOCK]).is_ok(),
            };
            let what = if at == 0 { What::Other } else { What::Footer };
            return if sound { Ok(Step { bytes: BLOCK, what }) } else { Err("its header or footer is damaged") };
        }
        if at > footer_at {
            return if rest.is_empty() { Ok(Step::MORE) } else { Err("it is longer than it should be") };
        }
        let left = footer_at - at;
        if self.index_seen {
            return Ok(Step { bytes: rest.len().min(left as usize), what: What::Other });
        }
        if rest.len() < BLOCK_HEAD_BYTES {
            return Ok(Step::MORE);
        }
        let (what, head, stored) = match &rest[..4] {
            b"WCB1" => (What::Block, BLOCK_HEAD_BYTES, u32_at(rest, 16)),
            b"WCP1" => (What::Other, HEAD_BYTES, u32_at(rest, 8)),
            b"WCI1" => (What::Index, HEAD_BYTES, u32_at(rest, 8)),
            _ => return Err("there is no block, page or index"),
        };
        let bytes = head + stored as usize;
        if bytes > PART_BYTES_MAX || bytes as u64 > left {
            return Err("a part is larger than it can be");
        }
        if bytes > rest.len() {
            return Ok(Step::MORE);
        }
        let crc = match what {
            What::Block if (u32_at(rest, 8), u32_at(rest, 12)) != (self.number, self.block) => {
                return Err("it is a block of another segment");
            }
            What::Block => crc32c::crc32c(&rest[8..bytes]),
            _ => crc_with_number(self.number, &rest[8..bytes]),
        };
        if u32_at(rest, 4) == crc { Ok(Step { bytes, what }) } else { Err("a checksum does not match") }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Block,
    Index,
    Footer,
    Other,
}

#[derive(Clone, Copy)]
struct Step {
    bytes: usize,
    what: What,
}

impl Step {
    const MORE: Step = Step { bytes: 0, what: What::Other };
}
