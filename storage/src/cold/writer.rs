//! Writes a cold segment front to back: entries in, pieces of the file out as they fill. What is kept until the end is 40
//! bytes a block and 48 a partition.

use std::collections::VecDeque;

use bytes::Bytes;

use super::block::{BLOCK_HEAD_BYTES, BlockBuilder, Packer, Packing, StoredBlock};
use super::index::encode_index;
use super::pages::{PAGE_SPANS, encode_page};
use super::{BlockPlace, ColdEntry, Footer, PagePlace, PartitionSpan, SegmentHead};
use crate::batches;
use crate::disk::{AlignedBuf, BufPool};
use crate::format::BLOCK;
use crate::types::PartitionId;

/// Bytes of every piece but the last: large enough for any disk, small enough to keep two in memory.
const PIECE_BYTES: usize = 256 << 10;
/// Pieces kept to be filled again.
const PIECES_KEPT: usize = 4;

const _: () = assert!(PIECE_BYTES.is_multiple_of(BLOCK));

/// What a finished segment holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ColdSummary {
    /// Of the file.
    pub file_bytes: u64,
    /// Of the batches before compression.
    pub batch_bytes: u64,
    /// Records.
    pub records: u64,
    /// Partitions.
    pub partitions: u32,
    /// Blocks; of a promoted WAL segment, index entries.
    pub blocks: u32,
    /// Smallest `max_timestamp` of an entry, ms.
    pub min_timestamp: i64,
    /// Highest, ms.
    pub max_timestamp: i64,
}

/// One partition's batches in a frame of a promoted WAL segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FramePlace {
    /// Which partition.
    pub partition: PartitionId,
    /// Of the first batch.
    pub first_offset: i64,
    /// One past the last record.
    pub next_offset: i64,
    /// Highest record timestamp, ms.
    pub max_timestamp: i64,
    /// Records.
    pub records: u32,
    /// Bytes of the batches before compression.
    pub batch_bytes: u32,
    /// Where the frame starts in the file.
    pub at: u64,
    /// Its length.
    pub bytes: u32,
}

/// Makes one cold segment.
pub struct SegmentWriter {
    head: SegmentHead,
    out: Pieces,
    packer: Packer,
    block: BlockBuilder,
    blocks: Vec<BlockPlace>,
    spans: Vec<PartitionSpan>,
    frames: Vec<FramePlace>,
    timestamps: Option<(i64, i64)>,
}

impl SegmentWriter {
    /// An empty segment.
    pub fn new(head: SegmentHead) -> SegmentWriter {
        SegmentWriter::with_packing(head, Packing::Well)
    }

    /// The same, with more or less work.
    pub fn with_packing(head: SegmentHead, packing: Packing) -> SegmentWriter {
        let mut out = Pieces::new();
        out.write(&head.encode());
        SegmentWriter {
            head,
            out,
            packer: Packer::new(packing),
            block: BlockBuilder::new(head.compacted),
            blocks: Vec::new(),
            spans: Vec::new(),
            frames: Vec::new(),
            timestamps: None,
        }
    }

    /// Adds batches behind all that were added before, by partition and offset. What does not fit the block that is being
    /// gathered is cut between batches.
    ///
    /// # Panics
    /// When the entry is out of order, or the segment is a promoted one.
    pub fn push(&mut self, entry: &ColdEntry) {
        assert!(!self.head.promoted, "a promoted segment has frames, no blocks");
        if entry.batches.is_empty() {
            return;
        }
        let records = batches::split(&entry.batches)
            .map_while(|span| span.map(|span| u64::from(batches::record_count(&entry.batches[span.at..]))))
            .sum();
        self.note(PartitionSpan {
            partition: entry.partition,
            first_offset: entry.base_offset,
            next_offset: entry.next_offset,
            max_timestamp: entry.max_timestamp,
            batch_bytes: entry.batches.len() as u64,
            records,
        });
        self.gather(entry);
    }

    /// Says all that a partition will have in the segment, by [`gather`](Self::gather) and [`take_over`](Self::take_over): behind all
    /// that was added before. `min_timestamp` is at most that of any entry.
    pub(super) fn announce(&mut self, span: PartitionSpan, min_timestamp: i64) {
        self.note(span);
        if let Some((min, _)) = &mut self.timestamps {
            *min = min_timestamp.min(*min);
        }
    }

    /// Adds a block of the partition that was announced last, as it is.
    pub(super) fn take_over(&mut self, block: &StoredBlock, place: &BlockPlace) {
        self.close_block();
        let (head, stored) = block.moved(self.head.number, self.blocks.len() as u32);
        self.blocks.push(BlockPlace { at: self.out.at(), ..*place });
        self.out.write(&head);
        self.out.write(stored);
    }

    /// Adds batches of the partition that was noted last to the block that is being gathered.
    pub(super) fn gather(&mut self, entry: &ColdEntry) {
        if self.block.fits(entry) {
            return self.block.add(entry);
        }
        for piece in pieces(entry) {
            if !self.block.fits(&piece) {
                // Does nothing to an empty block: a batch larger than a block gets one of its own.
                self.close_block();
            }
            self.block.add(&piece);
        }
    }

    /// Adds a frame's batches of one partition to the index of a promoted WAL segment, in any order.
    ///
    /// # Panics
    /// When the segment is none.
    pub fn push_frame(&mut self, frame: FramePlace) {
        assert!(self.head.promoted, "only a promoted segment has frames");
        self.frames.push(frame);
    }

    /// The next piece of the file that is full, and where it goes.
    pub fn take_ready(&mut self) -> Option<(u64, AlignedBuf)> {
        self.out.ready.pop_front()
    }

    /// Bytes of the file so far, without what its last block still gathers.
    pub fn written_bytes(&self) -> u64 {
        self.out.at()
    }

    /// Ends the file: what is left of it, in order, and what it holds.
    pub fn finish(mut self) -> (Vec<(u64, AlignedBuf)>, ColdSummary) {
        self.close_block();
        self.index_frames();
        let mut pages = Vec::with_capacity(self.spans.len().div_ceil(PAGE_SPANS));
        for (page, spans) in (0..).zip(self.spans.chunks(PAGE_SPANS)) {
            let bytes = encode_page(self.head.number, spans, &mut self.packer);
            let place = PagePlace { at: self.out.at(), bytes: bytes.len() as u32, partition: spans[0].partition, page };
            pages.push(place);
            self.out.write(&bytes);
        }
        let index_at = self.out.at();
        let index = encode_index(self.head.number, &self.blocks, &pages, &mut self.packer);
        self.out.write(&index);
        self.out.pad();
        let (min_timestamp, max_timestamp) = self.timestamps.unwrap_or_default();
        let footer = Footer {
            number: self.head.number,
            index_at,
            index_bytes: index.len() as u64,
            blocks: self.blocks.len() as u32,
            pages: pages.len() as u32,
            partitions: self.spans.len() as u32,
            records: self.spans.iter().map(|span| span.records).sum(),
            batch_bytes: self.spans.iter().map(|span| span.batch_bytes).sum(),
            min_timestamp,
            max_timestamp,
            file_bytes: self.out.at() + BLOCK as u64,
        };
        self.out.write(&footer.encode());
        let summary = ColdSummary {
            file_bytes: footer.file_bytes,
            batch_bytes: footer.batch_bytes,
            records: footer.records,
            partitions: footer.partitions,
            blocks: footer.blocks,
            min_timestamp,
            max_timestamp,
        };
        (self.out.finish(), summary)
    }

    /// Adds to what is known of the partition, in order.
    fn note(&mut self, new: PartitionSpan) {
        assert!(new.first_offset < new.next_offset, "an entry takes offsets");
        let (min, max) = self.timestamps.get_or_insert((i64::MAX, i64::MIN));
        *min = new.max_timestamp.min(*min);
        *max = new.max_timestamp.max(*max);
        match self.spans.last_mut() {
            Some(span) if span.partition == new.partition => {
                assert!(span.next_offset <= new.first_offset, "entries of a partition come in the order of their offsets");
                span.extend(&new);
            }
            last => {
                assert!(last.is_none_or(|span| span.partition < new.partition), "partitions come in their order");
                self.spans.push(new);
            }
        }
    }

    fn close_block(&mut self) {
        let (out, blocks) = (&mut self.out, &mut self.blocks);
        let ordinal = blocks.len() as u32;
        self.block.close(self.head.number, ordinal, &mut self.packer, |head, stored, content| {
            blocks.push(BlockPlace {
                at: out.at(),
                first_offset: content.first_offset,
                max_timestamp: content.max_timestamp,
                partition: content.partition,
                last_partition: content.last_partition,
                bytes: (BLOCK_HEAD_BYTES + stored.len()) as u32,
            });
            out.write(head);
            out.write(stored);
        });
    }

    fn index_frames(&mut self) {
        let mut frames = std::mem::take(&mut self.frames);
        frames.sort_unstable_by_key(|frame| (frame.partition, frame.first_offset));
        for frame in frames {
            self.note(PartitionSpan {
                partition: frame.partition,
                first_offset: frame.first_offset,
                next_offset: frame.next_offset,
                max_timestamp: frame.max_timestamp,
                batch_bytes: frame.batch_bytes.into(),
                records: frame.records.into(),
            });
            self.blocks.push(BlockPlace {
                at: frame.at,
                first_offset: frame.first_offset,
                max_timestamp: frame.max_timestamp,
                partition: frame.partition,
                last_partition: frame.partition,
                bytes: frame.bytes,
            });
        }
    }
}

/// One entry a batch. Bytes that make no sense as batches stay together: nothing is lost here.
fn pieces(entry: &ColdEntry) -> impl Iterator<Item = ColdEntry> + '_ {
    let mut at = 0;
    let mut base_offset = entry.base_offset;
    let mut spans = batches::split(&entry.batches);
    std::iter::from_fn(move || {
        let bytes: Bytes = entry.batches.slice(at..);
        if bytes.is_empty() {
            return None;
        }
        let span = spans.next().flatten().filter(|span| span.bytes < bytes.len());
        let Some(span) = span else {
            at = entry.batches.len();
            let max_timestamp = if base_offset == entry.base_offset { entry.max_timestamp } else { timestamp_of(entry, &bytes) };
            return Some(ColdEntry { base_offset, max_timestamp, batches: bytes, ..*entry });
        };
        at += span.bytes;
        let batch = bytes.slice(..span.bytes);
        // The next batch may start behind a hole.
        let next_offset = batches::base_offset(&batch).saturating_add(span.offsets.into());
        let piece = ColdEntry { base_offset, next_offset, max_timestamp: timestamp_of(entry, &batch), batches: batch, ..*entry };
        base_offset = entry.batches.get(at..at + 8).map_or(next_offset, batches::base_offset);
        Some(piece)
    })
}

fn timestamp_of(entry: &ColdEntry, batch: &[u8]) -> i64 {
    batches::max_timestamp(batch).unwrap_or(entry.max_timestamp)
}

/// The file as it grows: pieces of one size, and the one being filled.
struct Pieces {
    /// A piece that is on the disk becomes one to fill.
    pool: BufPool,
    ready: VecDeque<(u64, AlignedBuf)>,
    piece: AlignedBuf,
    piece_at: u64,
    filled: usize,
}

impl Pieces {
    fn new() -> Pieces {
        let pool = BufPool::new(PIECES_KEPT * PIECE_BYTES);
        Pieces { ready: VecDeque::new(), piece: pool.take(PIECE_BYTES), pool, piece_at: 0, filled: 0 }
    }

    fn at(&self) -> u64 {
        self.piece_at + self.filled as u64
    }

    fn write(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(PIECE_BYTES - self.filled));
            self.piece[self.filled..self.filled + now.len()].copy_from_slice(now);
            self.filled += now.len();
            bytes = later;
            if self.filled == PIECE_BYTES {
                let full = std::mem::replace(&mut self.piece, self.pool.take(PIECE_BYTES));
                self.ready.push_back((self.piece_at, full));
                self.piece_at += PIECE_BYTES as u64;
                self.filled = 0;
            }
        }
    }

    /// Zeros up to the next multiple of 4096.
    fn pad(&mut self) {
        let zeros = self.filled.next_multiple_of(BLOCK) - self.filled;
        self.write(&[0; BLOCK][..zeros]);
    }

    fn finish(mut self) -> Vec<(u64, AlignedBuf)> {
        assert!(self.filled.is_multiple_of(BLOCK), "the footer ends the file on a block");
        if self.filled > 0 {
            self.piece.truncate(self.filled);
            self.ready.push_back((self.piece_at, self.piece));
        }
        self.ready.into()
    }
}
