//! Lines of a cold segment.

use std::io::{self, Write};

use serde_json::json;
use weir_storage::cold::{ColdEntry, Footer, PartitionSpan, SegmentHead};
use weir_storage::dump::{BlockPiece, IndexPiece, PagePiece};
use weir_storage::format::uuid_text;

use super::{Place, Printer};

impl<W: Write> Printer<W> {
    pub(super) fn cold_header(&mut self, number: u32, head: &Result<Box<SegmentHead>, String>) -> io::Result<()> {
        let head = match head {
            Ok(head) => head,
            Err(reason) => {
                return self.line(
                    || format!("cold segment {number}  BAD: {reason}"),
                    || json!({ "type": "cold", "number": number, "ok": false, "reason": reason }),
                );
            }
        };
        let log = uuid_text(&head.log_id);
        self.line(
            || {
                let flags = [(head.promoted, "  promoted"), (head.compacted, "  compacted")];
                let flags: String = flags.iter().filter(|(set, _)| *set).map(|(_, word)| *word).collect();
                format!(
                    "cold segment {number}  class {}  lsn {}..={}  made {} ms{flags}  log {log}",
                    head.class, head.first_lsn, head.last_lsn, head.created_ms
                )
            },
            || {
                json!({
                    "type": "cold", "number": number, "ok": true, "class": head.class, "first_lsn": head.first_lsn,
                    "last_lsn": head.last_lsn, "created_ms": head.created_ms, "promoted": head.promoted,
                    "compacted": head.compacted, "log_id": log,
                })
            },
        )
    }

    pub(super) fn cold_block(&mut self, piece: &BlockPiece) -> io::Result<()> {
        let BlockPiece { at, block, bytes, raw_bytes, runs } = piece;
        let wrong = runs.as_ref().err();
        let runs = runs.as_deref().unwrap_or_default();
        self.line(
            || {
                let ok = wrong.map_or_else(|| "ok".to_owned(), |wrong| format!("BAD: {wrong}"));
                let first = runs.first().map_or_else(String::new, |run| format!("  from {}/{}", run.partition, run.base_offset));
                format!("{at:>10}  block {block}  {bytes} bytes of {raw_bytes}  {} runs{first}  {ok}", runs.len())
            },
            || {
                json!({
                    "type": "block", "at": at, "block": block, "bytes": bytes, "raw_bytes": raw_bytes,
                    "runs": runs.len(), "ok": wrong.is_none(), "reason": wrong,
                })
            },
        )?;
        let shown = if self.entries { runs } else { &[] };
        for run in shown {
            self.cold_run(*block, run)?;
            if self.records {
                self.batches(Place::Block(*block), run.partition.0, &run.batches)?;
            }
        }
        Ok(())
    }

    fn cold_run(&mut self, block: u32, run: &ColdEntry) -> io::Result<()> {
        let (partition, base, next, bytes) = (run.partition.0, run.base_offset, run.next_offset, run.batches.len());
        self.line(
            || {
                let latest = run.max_timestamp;
                format!("            run  partition {partition}  offsets {base}..{next}  {bytes} bytes  latest {latest} ms")
            },
            || {
                json!({
                    "type": "run", "block": block, "partition": partition, "base_offset": base, "next_offset": next,
                    "max_timestamp": run.max_timestamp, "bytes": bytes,
                })
            },
        )
    }

    pub(super) fn cold_page(&mut self, piece: &PagePiece) -> io::Result<()> {
        let PagePiece { at, bytes, spans } = piece;
        let wrong = spans.as_ref().err();
        let spans = spans.as_deref().unwrap_or_default();
        self.line(
            || {
                let ok = wrong.map_or_else(|| "ok".to_owned(), |wrong| format!("BAD: {wrong}"));
                format!("{at:>10}  page  {bytes} bytes  {} partitions  {ok}", spans.len())
            },
            || {
                let (partitions, ok) = (spans.len(), wrong.is_none());
                json!({ "type": "page", "at": at, "bytes": bytes, "partitions": partitions, "ok": ok, "reason": wrong })
            },
        )?;
        let shown = if self.entries { spans } else { &[] };
        shown.iter().try_for_each(|span| self.cold_span(span))
    }

    fn cold_span(&mut self, span: &PartitionSpan) -> io::Result<()> {
        let PartitionSpan { partition, first_offset, next_offset, max_timestamp, batch_bytes, records } = *span;
        self.line(
            || {
                format!(
                    "            partition {partition}  offsets {first_offset}..{next_offset}  {records} records  {batch_bytes} bytes  \
                     latest {max_timestamp} ms"
                )
            },
            || {
                json!({
                    "type": "span", "partition": partition.0, "first_offset": first_offset, "next_offset": next_offset,
                    "max_timestamp": max_timestamp, "batch_bytes": batch_bytes, "records": records,
                })
            },
        )
    }

    pub(super) fn cold_index(&mut self, piece: &IndexPiece) -> io::Result<()> {
        let IndexPiece { at, bytes, wrong } = piece;
        self.line(
            || {
                let ok = wrong.as_ref().map_or_else(|| "ok".to_owned(), |wrong| format!("BAD: {wrong}"));
                format!("{at:>10}  index  {bytes} bytes  {ok}")
            },
            || json!({ "type": "index", "at": at, "bytes": bytes, "ok": wrong.is_none(), "reason": wrong }),
        )
    }

    pub(super) fn cold_footer(&mut self, at: u64, footer: &Result<Box<Footer>, String>) -> io::Result<()> {
        let footer = match footer {
            Ok(footer) => footer,
            Err(reason) => {
                return self.line(
                    || format!("{at:>10}  footer  BAD: {reason}"),
                    || json!({ "type": "footer", "at": at, "ok": false, "reason": reason }),
                );
            }
        };
        self.line(
            || {
                format!(
                    "{at:>10}  footer  {} blocks, {} pages  {} records of {} partitions  {} bytes of batches  latest {} ms  ok",
                    footer.blocks, footer.pages, footer.records, footer.partitions, footer.batch_bytes, footer.max_timestamp
                )
            },
            || {
                json!({
                    "type": "footer", "at": at, "ok": true, "index_at": footer.index_at, "index_bytes": footer.index_bytes,
                    "blocks": footer.blocks, "pages": footer.pages, "partitions": footer.partitions,
                    "records": footer.records, "batch_bytes": footer.batch_bytes, "min_timestamp": footer.min_timestamp,
                    "max_timestamp": footer.max_timestamp, "file_bytes": footer.file_bytes,
                })
            },
        )
    }
}
