//! How waiting appends become the bytes of a frame: one copy into an aligned buffer, patched there, one CRC pass, zstd where it helps.

use std::sync::Arc;

use bytes::Bytes;

use super::{Effort, Engine, Group, InFlight, Output, Pending, Writing, change};
use crate::disk::{AlignedBuf, DiskOp, FileId};
use crate::format::frame::{self, Entry, EntryKind, FrameHeader, FrameKind, frame_bytes, header_bytes};
use crate::format::{BLOCK, u32_at};
use crate::types::{MetaOp, PartitionId, PartitionOp};
use crate::view::{Position, Slice};

/// Frames that are with the disk at the same time.
const WRITES_MAX: usize = 2;

/// Leader epoch of stored batches: there is one leader and it never changes.
const LEADER_EPOCH: i32 = 0;

/// First byte of a stored metadata operation.
const META_PUT: u8 = 1;
const META_DELETE: u8 = 2;
const META_OP_HEAD: usize = 9;

/// Everything of a frame but its header, which needs to know what came before.
#[derive(Debug)]
pub(super) struct Body {
    /// Room for the header, then directory and payload as stored.
    buf: AlignedBuf,
    entries: usize,
    payload_bytes: usize,
    payload_raw_bytes: usize,
    payload_crc: u32,
    /// The uncompressed frame, where `buf` is compressed.
    raw: Option<AlignedBuf>,
    slices: Vec<Slice>,
    effort: Effort,
}

/// A frame ready to be written.
struct Built {
    buf: Arc<AlignedBuf>,
    bytes: usize,
    /// The payload before compression.
    payload: Bytes,
    effort: Effort,
}

impl<T> Engine<T> {
    /// The oldest group becomes a frame, in a new segment if this one has no room for it.
    pub(super) fn write_group(&mut self, out: &mut Output<T>) {
        let bytes = self.groups.front().map_or(0, Group::frame_bytes);
        match &self.active {
            Some(active) if active.at + bytes as u64 <= self.limits.segment_bytes => {}
            _ => return self.roll(out),
        }
        let mut group = self.groups.pop_front().expect("looked at before");
        self.waiting -= group.appends.len();
        let mut body = group.body.take().unwrap_or_else(|| Box::new(self.body_of(&group)));
        let slices = std::mem::take(&mut body.slices);
        let built = self.finish(FrameKind::Data, *body);
        self.lsn_data_last = self.lsn_last;
        let active = self.active.as_mut().expect("it has room");
        if group.records > 0 {
            active.first_data_ms.get_or_insert(self.now.wall_ms);
        }
        let payload = built.payload.clone();
        self.send(built, Writing::Data { group, payload, slices }, out);
    }

    /// While the disk is busy: the next group, if it is large, becomes a frame but for its header. To be called when the
    /// operations of a step are with the disk and its answers are out, so that neither waits for this. Whether a step would
    /// hand it to the disk at once.
    pub fn prepare(&mut self) -> bool {
        if self.in_flight.is_empty() || self.failed.is_some() {
            return false;
        }
        let from = if self.may_write_beside() { self.limits.beside_from_bytes } else { self.limits.prepare_from_bytes };
        let Some(mut group) = self.groups.pop_front() else { return false };
        if group.body.is_none() && group.frame_bytes() >= from {
            group.body = Some(Box::new(self.body_of(&group)));
        }
        self.groups.push_front(group);
        self.may_overtake()
    }

    /// Whether the frames that are with the disk let another one go beside them. A snapshot does not: it is what the segment's other
    /// frames stand on.
    fn may_write_beside(&self) -> bool {
        self.in_flight.len() < WRITES_MAX && self.in_flight.iter().all(|frame| matches!(frame.what, Writing::Data { .. }))
    }

    /// Whether the oldest group, laid out already, goes to the disk before the frame in front of it is durable.
    pub(super) fn may_overtake(&self) -> bool {
        let Some(group) = self.groups.front().filter(|group| group.body.is_some()) else { return false };
        let bytes = group.frame_bytes();
        let fits = self.active.as_ref().is_some_and(|active| active.at + bytes as u64 <= self.limits.segment_bytes);
        fits && bytes >= self.limits.beside_from_bytes && self.may_write_beside()
    }

    fn body_of(&mut self, group: &Group<T>) -> Body {
        let mut buf = self.pool.take(group.frame_bytes());
        let slices = lay_out(group, &mut buf);
        self.body(buf, group.entries, group.payload_bytes, slices)
    }

    pub(super) fn write_watermark(&mut self, out: &mut Output<T>) {
        match &self.active {
            Some(active) if active.at + BLOCK as u64 <= self.limits.segment_bytes => {}
            // No room for one: the superblock can say the same.
            _ => {
                self.superblock_dirty = true;
                return;
            }
        }
        self.counters.watermarks += 1;
        let buf = self.pool.take(BLOCK);
        let body = self.body(buf, 0, 0, Vec::new());
        let built = self.finish(FrameKind::Watermark, body);
        self.send(built, Writing::Watermark, out);
    }

    pub(super) fn write_snapshot_part(&mut self, part: &[u8], out: &mut Output<T>) {
        let built = self.build_snapshot_part(part);
        let last = self.snapshot_parts.is_empty();
        self.send(built, Writing::Snapshot { last }, out);
    }

    fn build_snapshot_part(&mut self, part: &[u8]) -> Built {
        let mut buf = self.pool.take(frame_bytes(1, part.len()));
        let entry = Entry { byte_count: part.len() as u32, ..Entry::of(EntryKind::Snapshot, 0) };
        entry.encode(&mut buf[header_bytes(0)..]);
        buf[header_bytes(1)..header_bytes(1) + part.len()].copy_from_slice(part);
        let kind = if self.snapshot_parts.is_empty() { FrameKind::SnapshotEnd } else { FrameKind::Snapshot };
        let body = self.body(buf, 1, part.len(), Vec::new());
        self.finish(kind, body)
    }

    /// Header of a new segment and the first part of its snapshot, in one write.
    pub(super) fn write_segment_start(
        &mut self,
        header: &crate::format::segment::SegmentHeader,
        part: &[u8],
        out: &mut Output<T>,
    ) {
        let built = self.build_snapshot_part(part);
        let mut buf = self.pool.take(BLOCK + built.bytes);
        header.encode(&mut buf);
        buf[BLOCK..BLOCK + built.bytes].copy_from_slice(&built.buf[..built.bytes]);
        let active = self.active.as_mut().expect("rolled to");
        assert_eq!(active.at, 0, "a segment starts with its header");
        let last = self.snapshot_parts.is_empty();
        self.send(
            Built { buf: Arc::new(buf), bytes: BLOCK + built.bytes, payload: Bytes::new(), effort: Effort::default() },
            Writing::Snapshot { last },
            out,
        );
    }

    /// Directory and payload lie in `raw`: compresses them where that pays. The one CRC pass over the payload is in here.
    fn body(&mut self, raw: AlignedBuf, entries: usize, payload: usize, slices: Vec<Slice>) -> Body {
        let directory_end = header_bytes(entries);
        let (packed, mut effort) = self.try_zstd(&raw, directory_end, payload);
        let (buf, stored, raw) = match packed {
            Some((packed, stored)) => (packed, stored, Some(raw)),
            None => (raw, payload, None),
        };
        effort.zstd = raw.is_some();
        let payload_crc = crc32c::crc32c(&buf[directory_end..directory_end + stored]);
        Body { buf, entries, payload_bytes: stored, payload_raw_bytes: payload, payload_crc, raw, slices, effort }
    }

    fn try_zstd(&mut self, raw: &[u8], directory_end: usize, payload: usize) -> (Option<(AlignedBuf, usize)>, Effort) {
        if self.limits.compress_from_bytes.is_none_or(|from| payload < from) {
            return (None, Effort::default());
        }
        let mut effort = self.compressor.effort(payload);
        let begin = (self.stopwatch)();
        let pays = self.compressor.pays(self.now.monotonic);
        let packed = pays.then(|| self.compressor.compress(raw, directory_end, payload, &self.pool)).flatten();
        effort.compressing = (self.stopwatch)().saturating_sub(begin);
        if pays {
            self.compressor.took(effort.compressing);
        }
        (packed, effort)
    }

    /// Seals the frame and chains it to the one before.
    fn finish(&mut self, kind: FrameKind, body: Body) -> Built {
        let Body { mut buf, entries, payload_bytes, payload_raw_bytes, payload_crc, raw, effort, .. } = body;
        let zstd = raw.is_some();
        if zstd {
            self.counters.frames_compressed += 1;
            self.counters.compressed_from_bytes += payload_raw_bytes as u64;
            self.counters.compressed_to_bytes += payload_bytes as u64;
        }
        let active = self.active.as_ref().expect("frames go into a segment");
        // The first one lies behind the segment's header, in the same write.
        let block = (active.at as usize / BLOCK).max(1) as u32;
        let header = FrameHeader {
            header_crc: 0,
            kind,
            zstd,
            epoch: self.superblock.epoch,
            lsn: self.lsn_last + 1,
            segment_sequence: active.sequence,
            durable_lsn: self.lsn_durable,
            prev_crc: self.crc_last,
            entries: entries as u32,
            payload_bytes: payload_bytes as u32,
            payload_raw_bytes: payload_raw_bytes as u32,
            payload_crc,
            written_ms: self.now.wall_ms,
            volume_id: self.superblock.volume_id,
            block,
            file: Some(active.file),
            epoch_lsn: self.epoch_lsn,
        };
        let bytes = header.frame_bytes();
        self.lsn_last += 1;
        self.crc_last = frame::seal(&header, &mut buf);
        let buf = Arc::new(buf);
        let payload = raw.map_or_else(|| AlignedBuf::share(&buf), AlignedBuf::into_bytes);
        let directory_end = header_bytes(entries);
        let payload = payload.slice(directory_end..directory_end + payload_raw_bytes);
        Built { buf, bytes, payload, effort }
    }

    fn send(&mut self, built: Built, what: Writing<T>, out: &mut Output<T>) {
        let op = self.next_op();
        let proves_lsn = self.lsn_durable;
        let active = self.active.as_mut().expect("frames go into a segment");
        let position = Position { sequence: active.sequence as u32, block: (active.at / BLOCK as u64) as u32 };
        let at = active.at;
        active.at += built.bytes as u64;
        active.last_written_ms = self.now.wall_ms;
        assert!(active.at <= self.limits.segment_bytes, "room was checked");
        assert!(self.in_flight.len() < WRITES_MAX, "so many writes and no more");
        self.in_flight.push_back(InFlight {
            op,
            landed: false,
            lsn: self.lsn_last,
            proves_lsn,
            position,
            bytes: built.bytes,
            submitted: self.now.monotonic,
            effort: built.effort,
            what,
        });
        out.ops.push((op, DiskOp::Write { file: FileId::Segment(active.file), at, data: built.buf, bytes: built.bytes }));
    }
}

/// Writes directory and payload; returns where the record batches lie.
fn lay_out<T>(group: &Group<T>, buf: &mut [u8]) -> Vec<Slice> {
    let (head, payload) = buf.split_at_mut(header_bytes(group.entries));
    let mut frame = Layout { directory: &mut head[frame::HEADER_BYTES..], payload, entry: 0, byte: 0 };
    let mut slices = Vec::with_capacity(group.entries);
    for pending in &group.appends {
        frame.append(pending, &mut slices);
    }
    assert_eq!((frame.entry, frame.byte), (group.entries, group.payload_bytes), "sizes were counted on entry");
    slices
}

struct Layout<'a> {
    directory: &'a mut [u8],
    payload: &'a mut [u8],
    entry: usize,
    byte: usize,
}

impl Layout<'_> {
    fn append<T>(&mut self, pending: &Pending<T>, slices: &mut Vec<Slice>) {
        let append = &pending.append;
        let mut opened = pending.undo.opened.iter().peekable();
        for op in &append.partitions {
            if let PartitionOp::Open(id) = op {
                let begins = opened.next_if_eq(&id).is_some();
                self.push(Entry { begins, ..Entry::of(EntryKind::Opened, id.0) });
            }
        }
        let byte_start = self.byte as u32;
        self.byte = change::store(&append.partitions, self.payload, self.byte);
        if self.byte as u32 > byte_start {
            self.push(Entry { byte_start, byte_count: self.byte as u32 - byte_start, ..Entry::of(EntryKind::Changes, 0) });
        }
        for (entry, base_offset) in append.entries.iter().zip(pending.base_offsets.iter()) {
            let byte_start = self.batches(&entry.batches, *base_offset);
            let stored = Entry {
                base_offset: *base_offset,
                record_count: entry.record_count,
                max_timestamp: entry.max_timestamp,
                byte_start,
                byte_count: entry.batches.len() as u32,
                ..Entry::of(EntryKind::Batches, entry.partition.0)
            };
            slices.push(slice_of(&stored));
            self.push(stored);
        }
        if let Some(mark) = &append.mark {
            self.push(Entry {
                producer_epoch: mark.epoch,
                base_offset: pending.told,
                sequence_count: mark.sequence_count,
                producer_id: mark.key.id,
                base_sequence: mark.base_sequence,
                lane: mark.key.lane,
                ..Entry::of(EntryKind::Mark, mark.partition.0)
            });
        }
        if !append.meta.is_empty() {
            let byte_start = self.byte as u32;
            append.meta.iter().for_each(|op| self.meta(op));
            self.push(Entry { byte_start, byte_count: self.byte as u32 - byte_start, ..Entry::of(EntryKind::Meta, 0) });
        }
        for op in &append.partitions {
            if let PartitionOp::Drop(id) = op {
                self.push(Entry::of(EntryKind::Dropped, id.0));
            }
        }
    }

    fn push(&mut self, entry: Entry) {
        entry.encode(&mut self.directory[self.entry * frame::ENTRY_BYTES..]);
        self.entry += 1;
    }

    /// The one copy of the batches; offset and leader epoch lie outside their CRC.
    fn batches(&mut self, batches: &[u8], base_offset: i64) -> u32 {
        let start = self.byte;
        let copy = &mut self.payload[start..start + batches.len()];
        copy.copy_from_slice(batches);
        self.byte += batches.len();
        let mut offset = base_offset;
        for span in crate::batches::split(batches) {
            let span = span.expect("checked on entry");
            let batch = &mut copy[span.at..span.at + span.bytes];
            weir_batch::patch_base_offset(batch, offset);
            weir_batch::patch_leader_epoch(batch, LEADER_EPOCH);
            offset += i64::from(span.offsets);
        }
        start as u32
    }

    fn meta(&mut self, op: &MetaOp) {
        let (kind, key, value) = match op {
            MetaOp::Put { key, value } => (META_PUT, key, &value[..]),
            MetaOp::Delete { key } => (META_DELETE, key, &[][..]),
        };
        let mut head = [kind; META_OP_HEAD];
        head[1..5].copy_from_slice(&(key.len() as u32).to_le_bytes());
        head[5..9].copy_from_slice(&(value.len() as u32).to_le_bytes());
        for part in [&head[..], key, value] {
            self.payload[self.byte..self.byte + part.len()].copy_from_slice(part);
            self.byte += part.len();
        }
    }
}

/// Where the batches of a stored entry lie.
pub(crate) fn slice_of(entry: &Entry) -> Slice {
    Slice {
        partition: PartitionId(entry.partition),
        base_offset: entry.base_offset,
        next_offset: entry.next_offset(),
        max_timestamp: entry.max_timestamp,
        byte_start: entry.byte_start,
        byte_count: entry.byte_count,
    }
}

pub(super) fn meta_op_bytes(op: &MetaOp) -> usize {
    match op {
        MetaOp::Put { key, value } => META_OP_HEAD + key.len() + value.len(),
        MetaOp::Delete { key } => META_OP_HEAD + key.len(),
    }
}

/// Bytes of stored metadata operations.
pub(super) fn meta_ops_bytes(ops: &[MetaOp]) -> usize {
    ops.iter().map(meta_op_bytes).sum()
}

/// Reads stored metadata operations; `None` if they make no sense.
pub(crate) fn decode_meta_ops(mut bytes: &[u8]) -> Option<Vec<MetaOp>> {
    let mut ops = Vec::new();
    while !bytes.is_empty() {
        let (head, rest) = bytes.split_at_checked(META_OP_HEAD)?;
        let (key, rest) = rest.split_at_checked(u32_at(head, 1) as usize)?;
        let (value, rest) = rest.split_at_checked(u32_at(head, 5) as usize)?;
        ops.push(match head[0] {
            META_PUT => MetaOp::Put { key: key.to_vec(), value: value.to_vec() },
            META_DELETE => MetaOp::Delete { key: key.to_vec() },
            _ => return None,
        });
        bytes = rest;
    }
    Some(ops)
}
