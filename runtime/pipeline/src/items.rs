//! The record list that goes from stage to stage: an index, whose keys and values stay where they were first written.
use std::sync::Arc;

use weir_batch::{Codec, RecordBatch};
use weir_plugin_abi::{BatchMeta, BatchWriter, WriteError};

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
}

/// Where spans point.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    /// The first stage's flat batch: all keys, values and headers of the producer's batch.
    pub(crate) source: Arc<Vec<u8>>,
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

/// Lays a producer's batch out flat, once, and lists its records.
pub(crate) fn lay_out_source(
    batch: &RecordBatch<'_>,
    meta: BatchMeta<'_>,
    bytes_max: usize,
    decompressed: &mut Vec<u8>,
    flat: &mut Vec<u8>,
    items: &mut Vec<Item>,
) -> Result<(), RunError> {
    items.clear();
    let count = batch.record_count();
    let records = batch.records_with(decompressed, bytes_max)?;
    // Nothing is reserved for records that the bytes cannot hold, whatever the header says.
    let possible = records.size_hint().1.unwrap_or(0);
    if count as usize > possible {
        return Err(RunError::BadInput(weir_batch::BatchError::BadRecord {
            index: 0,
            reason: "there are fewer records than its header says",
        }));
    }
    let at_most = flat_bytes(count, batch.bytes().len(), &meta);
    if batch.codec() == Codec::None && at_most > bytes_max {
        return Err(RunError::TooLarge { bytes: at_most, max: bytes_max });
    }
    let mut writer = BatchWriter::begin(flat, meta, count).map_err(|e| too_large(&e, bytes_max))?;
    for (source, record) in (0u32..).zip(records) {
        let record = record?;
        let headers = if record.headers.is_empty() { &[][..] } else { record.headers.raw() };
        let key_start = writer.position();
        writer.push(record.timestamp, record.key, record.value, headers).map_err(|e| too_large(&e, bytes_max))?;
        if writer.position() > bytes_max {
            return Err(RunError::TooLarge { bytes: writer.position(), max: bytes_max });
        }
        let value_start = key_start + record.key.map_or(0, <[u8]>::len);
        let headers_start = value_start + record.value.map_or(0, <[u8]>::len);
        let span = |start, bytes: Option<&[u8]>| bytes.map_or(Span::NULL, |b| Span::new(0, start, b.len()));
        items.push(Item {
            source,
            timestamp: record.timestamp,
            key: span(key_start, record.key),
            value: span(value_start, record.value),
            headers: if headers.is_empty() { Span::NULL } else { span(headers_start, Some(headers)) },
        });
    }
    writer.finish().map_err(|e| too_large(&e, bytes_max))
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
