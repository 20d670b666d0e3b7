//! Whether a WAL segment that is being copied holds what was written: every frame's CRCs, and the chain from one to the next. What
//! one copy of the log has lost, the other one may have; and where there is only one, whoever makes the backup wants to know.

use crate::format::frame;
use crate::format::segment::{HeaderBlock, SegmentHeader};
use crate::format::{BLOCK, Uuid};

/// Looks at a segment from its start, piece by piece. Memory: one frame and a piece.
pub(super) struct FrameCheck {
    volume_id: Uuid,
    sequence: u64,
    /// Of what is pending.
    at: u64,
    pending: Vec<u8>,
    /// LSN and CRC that the next frame is chained to.
    chain: Option<(u64, u32)>,
    wrong: Option<(u64, &'static str)>,
}

impl FrameCheck {
    pub(super) fn new(volume_id: Uuid, sequence: u64) -> FrameCheck {
        FrameCheck { volume_id, sequence, at: 0, pending: Vec::new(), chain: None, wrong: None }
    }

    pub(super) fn add(&mut self, piece: &[u8]) {
        if self.wrong.is_some() {
            return;
        }
        self.pending.extend_from_slice(piece);
        let mut from = 0;
        loop {
            match self.next(from) {
                Ok(0) => break,
                Ok(bytes) => from += bytes,
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
        self.wrong.or((!self.pending.is_empty()).then_some((self.at, "the last frame is cut off")))
    }

    /// Bytes of the header or frame that begins here; 0: more is needed.
    fn next(&mut self, from: usize) -> Result<usize, &'static str> {
        let rest = &self.pending[from..];
        if rest.len() < BLOCK {
            return Ok(0);
        }
        let Some((lsn, prev_crc)) = self.chain else {
            let HeaderBlock::Good(header) = SegmentHeader::decode(&rest[..BLOCK]) else { return Err("its header is damaged") };
            if header.volume_id != self.volume_id || header.sequence != self.sequence {
                return Err("its header is that of another segment");
            }
            self.chain = Some((header.first_lsn, header.prev_crc));
            return Ok(BLOCK);
        };
        let head_bytes = frame::peek_header_bytes(rest).ok_or("there is no frame")?;
        if head_bytes > rest.len() {
            return Ok(0);
        }
        let header = frame::decode_header(rest)?;
        if header.volume_id != self.volume_id || header.segment_sequence != self.sequence {
            return Err("it is a frame of another segment");
        }
        if (header.lsn, header.prev_crc) != (lsn, prev_crc) {
            return Err("it is not chained to the frame before");
        }
        let bytes = header.frame_bytes();
        if bytes > rest.len() {
            return Ok(0);
        }
        header.directory(rest)?;
        header.verified_payload(&rest[..bytes])?;
        self.chain = Some((header.lsn + 1, header.header_crc));
        Ok(bytes)
    }
}
