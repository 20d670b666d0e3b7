//! The record list that goes from stage to stage: an index, whose keys and values stay where they were first written.
use std::ops::Range;
use std::sync::Arc;

use weir_batch::{RecordBatch, RecordMark};
use weir_plugin_abi::{BatchMeta, BatchView, BatchWriter, NULL, Places, WriteError};

use crate::error::RunError;
use crate::output::NO_HEADERS;

/// Bytes in one of the buffers of a batch's run, or null.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    /// 0: the source batch; n: what stage n - 1 emitted.
    buffer: u16,
    start: u32,
    bytes: u32,
}

impl Span {
    pub(crate) const NULL: Self = Self { buffer: 0, start: u32::MAX, bytes: 0 };

    /// Positions fit: inputs and outputs are limited to 1 GiB.
    pub(crate) fn new(buffer: usize, start: usize, bytes: usize) -> Self {
        Self { buffer: buffer as u16, start: start as u32, bytes: bytes as u32 }
    }

    /// The same bytes while their buffer is elsewhere.
    pub(crate) fn in_buffer(self, buffer: &[u8]) -> Option<&[u8]> {
        let start = self.start as usize;
        if self == Self::NULL { None } else { buffer.get(start..start + self.bytes as usize) }
    }
}

/// One record on its way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Item {
    /// Index of the record in the producer's batch it came from.
    pub(crate) source: u32,
    pub(crate) timestamp: i64,
    pub(crate) key: Span,
    pub(crate) value: Span,
    /// Null stands for none.
    pub(crate) headers: Span,
    /// Whether it is as its producer sent it.
    pub(crate) untouched: bool,
}

impl Item {
    /// A record of the producer's batch.
    fn of_source(source: u32, places: &Places) -> Self {
        // A null place is `Span::NULL`, bit for bit.
        let span = |(start, bytes): (u32, u32)| Span { buffer: 0, start, bytes };
        Self {
            source,
            timestamp: places.timestamp,
            key: span(places.key),
            value: span(places.value),
            headers: span(places.headers),
            untouched: true,
        }
    }
}

/// A stage's records: the producer's batch as it is, runs of it, or what earlier stages made of it.
///
/// Records are listed one by one only when somebody asks for them: most batches pass unchanged, and most others lose some
/// records and nothing else.
#[derive(Debug, Default)]
pub(crate) struct List {
    items: Vec<Item>,
    runs: Vec<Range<u32>>,
    count: usize,
    is: Is,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Is {
    /// All of the producer's records.
    #[default]
    Source,
    /// Runs of them.
    Runs,
    /// Listed.
    Items,
}

impl List {
    /// The records of a producer's batch.
    pub(crate) fn start(&mut self, count: u32) {
        (self.count, self.is) = (count as usize, Is::Source);
    }

    /// Takes the next stage's records; `next` is empty afterwards.
    pub(crate) fn advance(&mut self, next: &mut Vec<Item>) {
        std::mem::swap(&mut self.items, next);
        next.clear();
        (self.count, self.is) = (self.items.len(), Is::Items);
    }

    /// The producer's records without some of them, whose indices do not decrease. False where this is no longer a list of
    /// the producer's records alone.
    pub(crate) fn without(&mut self, dropped: impl Iterator<Item = u32>) -> bool {
        if self.is != Is::Source {
            return false;
        }
        self.runs.clear();
        let (end, mut from, mut left) = (self.count as u32, 0, 0);
        for drop in dropped.chain([end]) {
            if drop > from {
                self.runs.push(from..drop);
                left += drop - from;
            }
            from = drop + 1;
        }
        (self.count, self.is) = (left as usize, Is::Runs);
        true
    }

    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// The runs of the producer's records, if that is all there is.
    pub(crate) fn runs(&self) -> Option<&[Range<u32>]> {
        (self.is == Is::Runs).then_some(&self.runs)
    }

    /// The records one by one; `source` is the producer's batch as it was laid out.
    pub(crate) fn items(&mut self, source: &[u8]) -> &[Item] {
        if self.is != Is::Items {
            if self.is == Is::Source {
                self.runs.clear();
                self.runs.push(0..self.count as u32);
            }
            self.items.clear();
            if let Ok(view) = BatchView::parse(source) {
                for run in &self.runs {
                    let places = view.places().skip(run.start as usize);
                    self.items.extend(run.clone().zip(places).map(|(source, places)| Item::of_source(source, &places)));
                }
            }
            self.is = Is::Items;
        }
        debug_assert_eq!(self.items.len(), self.count);
        &self.items
    }
}

// Places of the record batch, of the flat batch and spans agree on what null is.
const _: () = assert!(weir_batch::PLACE_NULL.0 == NULL && Span::NULL.start == NULL && Span::NULL.buffer == 0);

/// Where spans point.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    /// The first stage's flat batch, the producer's records in it.
    pub(crate) source: Arc<Vec<u8>>,
    /// Where its records stand, one by one.
    pub(crate) marks: Vec<RecordMark>,
    /// One a stage.
    pub(crate) arenas: Vec<Vec<u8>>,
}

impl Buffers {
    /// The bytes of a span; `None` is null.
    #[inline]
    pub(crate) fn get(&self, span: Span) -> Option<&[u8]> {
        if span == Span::NULL {
            return None;
        }
        let buffer = match span.buffer {
            0 => &*self.source,
            n => &self.arenas[usize::from(n) - 1],
        };
        Some(&buffer[span.start as usize..][..span.bytes as usize])
    }

    /// Headers as a record batch holds them.
    pub(crate) fn headers(&self, item: &Item) -> &[u8] {
        self.get(item.headers).unwrap_or(&NO_HEADERS)
    }
}

/// The buffer alone; a new one in the (impossible) case that a call still holds it.
pub(crate) fn exclusive(buffer: &mut Arc<Vec<u8>>) -> &mut Vec<u8> {
    if Arc::get_mut(buffer).is_none() {
        *buffer = Arc::new(Vec::new());
    }
    Arc::get_mut(buffer).expect("an Arc just made is held once")
}

/// Lays a producer's batch out flat, once: its records as they are encoded, in one copy, and entries that point into them.
/// Returns where the encoded records start.
pub(crate) fn lay_out_source(
    batch: &RecordBatch<'_>,
    meta: BatchMeta<'_>,
    bytes_max: usize,
    decompressed: &mut Vec<u8>,
    flat: &mut Vec<u8>,
    marks: &mut Vec<RecordMark>,
) -> Result<usize, RunError> {
    let count = batch.record_count();
    let mut records = batch.records_with(decompressed, bytes_max)?;
    // Nothing is reserved for records that the bytes cannot hold, whatever the header says.
    let possible = records.size_hint().1.unwrap_or(0);
    if count as usize > possible {
        return Err(RunError::BadInput(weir_batch::BatchError::BadRecord {
            index: 0,
            reason: "there are fewer records than its header says",
        }));
    }
    let encoded = records.rest();
    let bytes = flat_bytes(count, encoded.len(), &meta);
    if bytes > bytes_max {
        return Err(RunError::TooLarge { bytes, max: bytes_max });
    }
    let mut writer = BatchWriter::begin(flat, meta, count).map_err(|e| too_large(&e, bytes_max))?;
    let start = writer.payload(encoded).map_err(|e| too_large(&e, bytes_max))?;
    let mut entries = writer.entries();
    marks.clear();
    marks.reserve(count as usize);
    records.places(|record| {
        let place = |(at, bytes): (u32, u32)| if at == NULL { (NULL, 0) } else { (start + at, bytes) };
        let (key, value, headers) = (place(record.key), place(record.value), place(record.headers));
        if let Some(entry) = entries.next() {
            entry.set(&Places { timestamp: record.timestamp, key, value, headers });
            marks.push(record.mark());
        }
    })?;
    drop(entries);
    writer.finish().map_err(|e| too_large(&e, bytes_max))?;
    Ok(start as usize)
}

/// Lays items out flat for the next stage, or a part of them for a search.
pub(crate) fn lay_out(
    items: &[Item],
    buffers: &Buffers,
    meta: BatchMeta<'_>,
    bytes_max: usize,
    flat: &mut Vec<u8>,
) -> Result<(), RunError> {
    let mut writer = BatchWriter::begin(flat, meta, items.len() as u32).map_err(|e| too_large(&e, bytes_max))?;
    for item in items {
        let headers = buffers.get(item.headers).unwrap_or_default();
        writer
            .push(item.timestamp, buffers.get(item.key), buffers.get(item.value), headers)
            .map_err(|e| too_large(&e, bytes_max))?;
        if writer.position() > bytes_max {
            return Err(RunError::TooLarge { bytes: writer.position(), max: bytes_max });
        }
    }
    writer.finish().map_err(|e| too_large(&e, bytes_max))
}

fn flat_bytes(count: u32, payload: usize, meta: &BatchMeta<'_>) -> usize {
    weir_plugin_abi::BATCH_HEADER_BYTES + count as usize * weir_plugin_abi::ENTRY_BYTES + meta.topic.len() + payload
}

fn too_large(error: &WriteError, max: usize) -> RunError {
    match error {
        WriteError::TooLarge { max: abi_max } => RunError::TooLarge { bytes: usize::MAX, max: max.min(*abi_max as usize) },
        _ => RunError::BadInput(weir_batch::BatchError::BadRecord {
            index: 0,
            reason: "there are fewer records than its header says",
        }),
    }
}
