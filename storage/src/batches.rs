//! The few fields of Kafka's record batch header that the log itself needs: where a batch ends and how many offsets it takes.
//! Its caller has verified the batches; this only keeps a mistake from spreading.

use weir_batch::HEADER_BYTES;

/// One batch among several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// Where it starts.
    pub at: usize,
    /// Its length.
    pub bytes: usize,
    /// Offsets it takes.
    pub offsets: u32,
}

/// Spans of consecutive batches; `None` once, where one makes no sense.
pub(crate) fn split(bytes: &[u8]) -> impl Iterator<Item = Option<Span>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        if at >= bytes.len() {
            return None;
        }
        let span = span_at(bytes, at);
        at = span.map_or(bytes.len(), |span| span.at + span.bytes);
        Some(span)
    })
}

fn span_at(bytes: &[u8], at: usize) -> Option<Span> {
    let header: &[u8; HEADER_BYTES] = bytes[at..].first_chunk()?;
    let length = usize::try_from(i32::from_be_bytes([header[8], header[9], header[10], header[11]])).ok()?;
    let last_offset_delta = u32::try_from(i32::from_be_bytes([header[23], header[24], header[25], header[26]])).ok()?;
    let whole = length.checked_add(12)?;
    (whole >= HEADER_BYTES && bytes.len() - at >= whole).then_some(Span { at, bytes: whole, offsets: last_offset_delta + 1 })
}

/// Base offset of a stored batch.
pub(crate) fn base_offset(batch: &[u8]) -> i64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&batch[..8]);
    i64::from_be_bytes(bytes)
}

/// Records in a stored batch; at most the offsets it takes.
pub(crate) fn record_count(batch: &[u8]) -> u32 {
    batch.get(57..61).map_or(0, |bytes| u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

/// Highest record timestamp of a stored batch, ms; `None` where there is none.
pub(crate) fn max_timestamp(batch: &[u8]) -> Option<i64> {
    Some(i64::from_be_bytes(*batch.get(35..)?.first_chunk()?))
}
