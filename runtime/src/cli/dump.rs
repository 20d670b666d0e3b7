//! `weir dump`: what a file of a volume holds, for people. A line a frame, more on request; JSON as one object a line.

mod cold;

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};
use weir_batch::RecordBatch;
use weir_storage::dump::{DumpError, FramePiece, Piece, dump};
use weir_storage::format::frame::{Entry, EntryKind, FrameKind};
use weir_storage::format::segment::HeaderBlock;
use weir_storage::format::superblock::{Slot, VolumeState};
use weir_storage::format::uuid_text;

use super::{Exit, Failure};

/// Bytes of a key or value that are shown.
const TEXT_BYTES_MAX: usize = 200;
/// A batch's records must not take more memory than this, whatever its codec makes of them.
const RECORDS_BYTES_MAX: usize = 64 << 20;

#[derive(Debug, Args)]
pub(super) struct DumpArgs {
    /// A segment (wal/*.wal), a cold segment (cold/*.cold) or a superblock
    file: PathBuf,
    /// A line for each entry of a frame's directory, and for each run of a block and partition of a page
    #[arg(long)]
    entries: bool,
    /// And one for each record
    #[arg(long)]
    records: bool,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: DumpArgs) -> Result<(), Failure> {
    let out = BufWriter::with_capacity(64 << 10, io::stdout().lock());
    let mut printer = Printer { out, entries: args.entries || args.records, records: args.records, json: args.json };
    dump(&args.file, &mut |piece| printer.piece(&piece)).map_err(|error| match error {
        DumpError::Output(error) => Failure::from(error),
        DumpError::Read { .. } => Failure::new(Exit::Failed, error),
        _ => Failure::usage(error),
    })?;
    Ok(printer.out.flush()?)
}

/// What holds a batch.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// The frame with this LSN.
    Frame(u64),
    /// The block with this ordinal.
    Block(u32),
}

struct Printer<W> {
    out: W,
    entries: bool,
    records: bool,
    json: bool,
}

impl<W: Write> Printer<W> {
    /// The same facts either way.
    fn line(&mut self, text: impl FnOnce() -> String, json: impl FnOnce() -> Value) -> io::Result<()> {
        if self.json { writeln!(self.out, "{}", json()) } else { writeln!(self.out, "{}", text()) }
    }

    fn piece(&mut self, piece: &Piece) -> io::Result<()> {
        match piece {
            Piece::Slot { at, slot, format } => self.slot(*at, slot, *format),
            Piece::SegmentHeader(header) => self.segment_header(header),
            Piece::Frame(frame) => self.frame(frame),
            Piece::ColdHeader { number, head } => self.cold_header(*number, head),
            Piece::ColdBlock(block) => self.cold_block(block),
            Piece::ColdPage(page) => self.cold_page(page),
            Piece::ColdIndex(index) => self.cold_index(index),
            Piece::ColdFooter { at, footer } => self.cold_footer(*at, footer),
            Piece::Old { at, bytes, frames } => self.line(
                || format!("{at:>10}  {frames} frames of an older life of this file, {bytes} bytes"),
                || json!({ "type": "old", "at": at, "bytes": bytes, "frames": frames }),
            ),
            Piece::Zeros { at, bytes } => {
                self.line(|| format!("{at:>10}  {bytes} bytes of zeros"), || json!({ "type": "zeros", "at": at, "bytes": bytes }))
            }
            Piece::Other { at, bytes, reason } => self.line(
                || format!("{at:>10}  {bytes} bytes that are no frame: {reason}"),
                || json!({ "type": "other", "at": at, "bytes": bytes, "reason": reason }),
            ),
        }
    }

    fn slot(&mut self, at: u64, slot: &Slot, format: (u16, u16)) -> io::Result<()> {
        let name = if at == 0 { "A" } else { "B" };
        let bad = match slot {
            Slot::Good(_) => None,
            Slot::Empty => Some("empty".to_owned()),
            Slot::Damaged => Some("damaged: its CRC does not match".to_owned()),
            Slot::Newer(version) => Some(format!("of format {version}, which this program does not know")),
        };
        let Slot::Good(superblock) = slot else {
            let bad = bad.unwrap_or_default();
            return self.line(
                || format!("slot {name}  {bad}"),
                || json!({ "type": "superblock", "slot": name, "ok": false, "reason": bad }),
            );
        };
        let state = match superblock.state {
            VolumeState::Open => "open",
            VolumeState::Closed => "closed",
            VolumeState::Fenced => "fenced",
        };
        let (node, volume) = (uuid_text(&superblock.node_id), uuid_text(&superblock.volume_id));
        let (generation, epoch, durable) = (superblock.generation, superblock.epoch, superblock.durable_lsn);
        let (first, last) = (superblock.first_sequence, superblock.last_sequence);
        self.line(
            || {
                format!(
                    "slot {name}  format {}.{}  generation {generation}  {state}  epoch {epoch}  durable lsn {durable}  \
                     segments {first}..={last} of {} bytes\n        node {node}  volume {volume}  created {} ms",
                    format.0, format.1, superblock.segment_bytes, superblock.created_ms
                )
            },
            || {
                json!({
                    "type": "superblock", "slot": name, "ok": true, "format_major": format.0, "format_minor": format.1,
                    "generation": generation, "state": state, "epoch": epoch, "durable_lsn": durable,
                    "first_sequence": first, "last_sequence": last, "segment_bytes": superblock.segment_bytes,
                    "created_ms": superblock.created_ms, "node_id": node, "volume_id": volume,
                })
            },
        )
    }

    fn segment_header(&mut self, header: &HeaderBlock) -> io::Result<()> {
        let bad = match header {
            HeaderBlock::Good(_) => None,
            HeaderBlock::Empty => Some("its header is zeros: a spare, unless frames follow".to_owned()),
            HeaderBlock::Damaged => Some("its header is damaged".to_owned()),
            HeaderBlock::Newer(version) => Some(format!("its header has version {version}, which this program does not know")),
        };
        let HeaderBlock::Good(header) = header else {
            let bad = bad.unwrap_or_default();
            return self.line(|| format!("segment  {bad}"), || json!({ "type": "segment", "ok": false, "reason": bad }));
        };
        let volume = uuid_text(&header.volume_id);
        self.line(
            || {
                format!(
                    "segment  sequence {}  epoch {}  first lsn {}  prev crc {:08x}  durable lsn {}  opened {} ms  volume {volume}",
                    header.sequence, header.epoch, header.first_lsn, header.prev_crc, header.durable_lsn, header.opened_ms
                )
            },
            || {
                json!({
                    "type": "segment", "ok": true, "sequence": header.sequence, "epoch": header.epoch,
                    "first_lsn": header.first_lsn, "prev_crc": header.prev_crc, "durable_lsn": header.durable_lsn,
                    "opened_ms": header.opened_ms, "volume_id": volume,
                })
            },
        )
    }

    fn frame(&mut self, frame: &FramePiece) -> io::Result<()> {
        let FramePiece { at, header, entries, payload } = frame;
        let kind = match header.kind {
            FrameKind::Data => "data",
            FrameKind::Watermark => "watermark",
            FrameKind::Snapshot => "snapshot",
            FrameKind::SnapshotEnd => "snapshot-end",
        };
        let wrong = entries.as_ref().err().or(payload.as_ref().err());
        let (lsn, epoch, bytes) = (header.lsn, header.epoch, header.frame_bytes());
        let (stored, raw) = (header.payload_bytes, header.payload_raw_bytes);
        self.line(
            || {
                let zstd = if header.zstd { format!("zstd {stored} of {raw}") } else { format!("payload {stored}") };
                let ok = wrong.map_or_else(|| "ok".to_owned(), |wrong| format!("BAD: {wrong}"));
                format!(
                    "{at:>10}  lsn {lsn}  {kind}  epoch {epoch}  {bytes} bytes  {zstd}  {} entries  durable lsn {}  crc {:08x}  \
                     prev {:08x}  {ok}",
                    header.entries, header.durable_lsn, header.header_crc, header.prev_crc
                )
            },
            || {
                json!({
                    "type": "frame", "at": at, "lsn": lsn, "kind": kind, "epoch": epoch, "bytes": bytes,
                    "zstd": header.zstd, "payload_bytes": stored, "payload_raw_bytes": raw, "entries": header.entries,
                    "durable_lsn": header.durable_lsn, "written_ms": header.written_ms, "crc": header.header_crc,
                    "prev_crc": header.prev_crc, "ok": wrong.is_none(), "reason": wrong,
                })
            },
        )?;
        if !self.entries {
            return Ok(());
        }
        for entry in entries.iter().flatten() {
            self.entry(lsn, entry)?;
            if let (true, EntryKind::Batches, Ok(payload)) = (self.records, entry.kind, payload)
                && let Some(bytes) = payload.get(entry.range())
            {
                self.batches(Place::Frame(lsn), entry.partition, bytes)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, lsn: u64, entry: &Entry) -> io::Result<()> {
        let partition = entry.partition;
        let (base, next, bytes) = (entry.base_offset, entry.next_offset(), entry.byte_count);
        let (producer, lane, sequence) = (entry.producer_id, entry.lane, entry.base_sequence);
        let kind = match entry.kind {
            EntryKind::Batches => "batches",
            EntryKind::Mark => "mark",
            EntryKind::Meta => "metadata",
            EntryKind::Changes => "changes",
            EntryKind::Opened => "opened",
            EntryKind::Dropped => "dropped",
            EntryKind::Snapshot => "snapshot",
            // Kinds that later versions bring are shown by their fields.
            #[allow(unreachable_patterns, reason = "a new kind of entry needs no change here")]
            _ => "other",
        };
        self.line(
            || match entry.kind {
                EntryKind::Batches => format!(
                    "            {kind}  partition {partition}  offsets {base}..{next}  {bytes} bytes  latest {} ms",
                    entry.max_timestamp
                ),
                EntryKind::Mark => format!(
                    "            {kind}  producer {producer} lane {lane} epoch {}  sequence {sequence}+{}  told {base}",
                    entry.producer_epoch, entry.sequence_count
                ),
                EntryKind::Meta | EntryKind::Changes | EntryKind::Snapshot => format!("            {kind}  {bytes} bytes"),
                _ => format!("            {kind}  partition {partition}"),
            },
            || {
                json!({
                    "type": "entry", "lsn": lsn, "kind": kind, "partition": partition, "base_offset": base,
                    "record_count": entry.record_count, "max_timestamp": entry.max_timestamp, "bytes": bytes,
                    "producer_id": producer, "producer_epoch": entry.producer_epoch, "lane": lane,
                    "base_sequence": sequence, "sequence_count": entry.sequence_count,
                })
            },
        )
    }

    fn batches(&mut self, place: Place, partition: u32, mut rest: &[u8]) -> io::Result<()> {
        let mut scratch = Vec::new();
        while !rest.is_empty() {
            let batch = match RecordBatch::verify(rest) {
                Ok(batch) => batch,
                Err(error) => return self.bad(place, partition, &error.to_string()),
            };
            rest = &rest[batch.bytes().len()..];
            match batch.records_with(&mut scratch, RECORDS_BYTES_MAX) {
                Err(error) => self.bad(place, partition, &error.to_string())?,
                Ok(records) => {
                    for record in records {
                        match record {
                            Ok(record) => self.record(partition, &record)?,
                            Err(error) => self.bad(place, partition, &error.to_string())?,
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn record(&mut self, partition: u32, record: &weir_batch::Record<'_>) -> io::Result<()> {
        let (offset, timestamp) = (record.offset, record.timestamp);
        let (key, value) = (record.key.map(text), record.value.map(text));
        let bytes = record.value.map_or(0, <[u8]>::len);
        self.line(
            || {
                let quoted = |text: &Option<String>| text.as_ref().map_or_else(|| "null".to_owned(), |text| format!("{text:?}"));
                format!("              {partition}/{offset}  {timestamp} ms  key {}  value {}", quoted(&key), quoted(&value))
            },
            || {
                json!({
                    "type": "record", "partition": partition, "offset": offset, "timestamp": timestamp,
                    "key": key, "value": value, "value_bytes": bytes,
                })
            },
        )
    }

    fn bad(&mut self, place: Place, partition: u32, reason: &str) -> io::Result<()> {
        let (name, number) = match place {
            Place::Frame(lsn) => ("lsn", lsn),
            Place::Block(block) => ("block", block.into()),
        };
        self.line(
            || format!("              BAD batch of partition {partition}: {reason}"),
            || json!({ "type": "bad_batch", name: number, "partition": partition, "reason": reason }),
        )
    }
}

/// What can be read of it, cut where it gets long.
fn text(bytes: &[u8]) -> String {
    let shown = &bytes[..bytes.len().min(TEXT_BYTES_MAX)];
    let mut text = String::from_utf8_lossy(shown).into_owned();
    if shown.len() < bytes.len() {
        text.push('…');
    }
    text
}
