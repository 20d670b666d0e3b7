//! A cold segment, piece by piece. Its own index says where blocks and pages lie; where that cannot be read, the blocks lead from one
//! to the next.

use bytes::Bytes;

use super::{DumpError, Each, FileReader, Piece};
use crate::cold::{ColdEntry, ColdIndex, Footer, PartitionSpan, SegmentHead, decode_block, decode_page};
use crate::format::{BLOCK, array_at, u32_at};

/// Magic of a block, and of the bytes before its stored bytes.
const BLOCK_MAGIC: &[u8; 4] = b"WCB1";
const BLOCK_HEAD_BYTES: u64 = 32;
/// No part of a cold segment is larger: a block holds a batch of a frame, an index some millions of entries.
const PART_BYTES_MAX: u64 = 256 << 20;

/// A block of a cold segment.
#[derive(Debug)]
pub struct BlockPiece {
    /// Where it lies.
    pub at: u64,
    /// Its ordinal.
    pub block: u32,
    /// Its length in the file, head included.
    pub bytes: u64,
    /// Bytes of its runs, decompressed.
    pub raw_bytes: u64,
    /// Its runs, or what is wrong with it.
    pub runs: Result<Vec<ColdEntry>, String>,
}

/// A partition page of a cold segment.
#[derive(Debug)]
pub struct PagePiece {
    /// Where it lies.
    pub at: u64,
    /// Its length in the file, head included.
    pub bytes: u64,
    /// What each partition has in the segment, or what is wrong with it.
    pub spans: Result<Vec<PartitionSpan>, String>,
}

/// The index of a cold segment.
#[derive(Debug)]
pub struct IndexPiece {
    /// Where it lies.
    pub at: u64,
    /// Its length in the file, head included.
    pub bytes: u64,
    /// What is wrong with it.
    pub wrong: Option<String>,
}

impl FileReader<'_> {
    pub(super) fn cold(&self, first: &[u8], each: Each<'_>) -> Result<(), DumpError> {
        let mut first = first.to_vec();
        first.resize(BLOCK, 0);
        // Nobody asked for a certain segment, so it is the one that it says it is.
        let (number, log_id) = (u32_at(&first, 32), array_at(&first, 16));
        let head = SegmentHead::decode(number, &log_id, &first).map_err(|error| error.to_string());
        let promoted = head.as_ref().is_ok_and(|head| head.promoted);
        let number = if head.is_ok() { number } else { self.number_in_footer().unwrap_or(number) };
        each(Piece::ColdHeader { number, head: head.map(Box::new) })?;
        let footer = self.footer(number)?;
        let index = match &footer {
            Ok(footer) => self.index(footer)?,
            Err(_) => Err("the footer does not say where it is".to_owned()),
        };
        let end = match &index {
            Ok(index) if promoted => index.pages().first().map_or(BLOCK as u64, |page| page.at),
            Ok(index) => self.blocks(number, index, each)?,
            Err(_) => self.blocks_in_a_row(number, each)?,
        };
        if let Ok(index) = &index {
            self.pages(number, index, each)?;
        }
        match &footer {
            Ok(footer) => {
                let (at, bytes) = (footer.index_at, footer.index_bytes);
                each(Piece::ColdIndex(IndexPiece { at, bytes, wrong: index.err() }))?;
            }
            Err(_) => {
                let rest = ColdIndex::footer_at(self.bytes).saturating_sub(end);
                each(Piece::Other { at: end, bytes: rest, reason: "without a footer nothing says what this is".to_owned() })?;
            }
        }
        each(Piece::ColdFooter { at: ColdIndex::footer_at(self.bytes), footer: footer.map(Box::new) })?;
        Ok(())
    }

    /// For a file whose header is gone.
    fn number_in_footer(&self) -> Option<u32> {
        let block = self.read(ColdIndex::footer_at(self.bytes), BLOCK).ok()?;
        let number = u32_at(&block, 12);
        Footer::decode(number, self.bytes, &block).is_ok().then_some(number)
    }

    fn footer(&self, number: u32) -> Result<Result<Footer, String>, DumpError> {
        if self.bytes < 2 * BLOCK as u64 {
            return Ok(Err("the file is too short to have one".to_owned()));
        }
        let block = self.read(ColdIndex::footer_at(self.bytes), BLOCK)?;
        Ok(Footer::decode(number, self.bytes, &block).map_err(|error| error.to_string()))
    }

    fn index(&self, footer: &Footer) -> Result<Result<ColdIndex, String>, DumpError> {
        if footer.index_bytes > PART_BYTES_MAX {
            return Ok(Err("it is larger than any index".to_owned()));
        }
        let stored = self.read(footer.index_at, footer.index_bytes as usize)?;
        Ok(ColdIndex::decode(footer, &stored).map_err(|error| error.to_string()))
    }

    /// Bytes of a part, unless they lie outside the file.
    fn part(&self, at: u64, bytes: u64) -> Result<Option<Bytes>, DumpError> {
        let inside = bytes <= PART_BYTES_MAX && at.checked_add(bytes).is_some_and(|end| end <= self.bytes);
        if inside { Ok(Some(self.read(at, bytes as usize)?.into())) } else { Ok(None) }
    }

    /// Returns where they end.
    fn blocks(&self, number: u32, index: &ColdIndex, each: Each<'_>) -> Result<u64, DumpError> {
        let mut end = BLOCK as u64;
        for (block, place) in index.blocks().iter().enumerate() {
            let (at, bytes) = (place.at, u64::from(place.bytes));
            each(self.block(number, block as u32, at, bytes)?)?;
            end = at.saturating_add(bytes);
        }
        Ok(end)
    }

    fn block(&self, number: u32, block: u32, at: u64, bytes: u64) -> Result<Piece, DumpError> {
        let decoded = match self.part(at, bytes)? {
            Some(stored) => decode_block(number, block, stored).map_err(|error| error.to_string()),
            None => Err("it reaches beyond the file".to_owned()),
        };
        let raw_bytes = decoded.as_ref().map_or(0, |block| block.memory_bytes() as u64);
        let runs = decoded.map(|block| block.runs().collect());
        Ok(Piece::ColdBlock(BlockPiece { at, block, bytes, raw_bytes, runs }))
    }

    /// Without an index: as long as there is one behind the other.
    fn blocks_in_a_row(&self, number: u32, each: Each<'_>) -> Result<u64, DumpError> {
        let mut at = BLOCK as u64;
        for block in 0.. {
            let Some(head) = self.part(at, BLOCK_HEAD_BYTES)?.filter(|head| head.starts_with(BLOCK_MAGIC)) else { break };
            let bytes = BLOCK_HEAD_BYTES + u64::from(u32_at(&head, 16));
            if bytes > PART_BYTES_MAX || at + bytes > self.bytes {
                break;
            }
            each(self.block(number, block, at, bytes)?)?;
            at += bytes;
        }
        Ok(at)
    }

    fn pages(&self, number: u32, index: &ColdIndex, each: Each<'_>) -> Result<(), DumpError> {
        for place in index.pages() {
            let (at, bytes) = (place.at, u64::from(place.bytes));
            let spans = match self.part(at, bytes)? {
                Some(stored) => decode_page(number, place, stored).map_err(|error| error.to_string()),
                None => Err("it reaches beyond the file".to_owned()),
            };
            each(Piece::ColdPage(PagePiece { at, bytes, spans }))?;
        }
        Ok(())
    }
}
