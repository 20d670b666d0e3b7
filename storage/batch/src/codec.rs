//! Compression of a batch's records as a whole. zstd is done and undone here; Kafka's other codecs are known by name, so
//! that their users are told what to change.

use std::cell::RefCell;

use zstd::zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer, ResetDirective};

use crate::error::BatchError;
use crate::header::ATTRIBUTE_CODEC;

/// How the records of a batch are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Codec {
    /// Not at all.
    #[default]
    None,
    /// zstd at a level (1 to 19). A batch that is read says nothing of its level: [`ZSTD_LEVEL_DEFAULT`] stands there.
    Zstd(i32),
}

/// Level 1: on sensor JSON it shrinks nearly as well as 3 and takes half the time.
pub const ZSTD_LEVEL_DEFAULT: i32 = 1;

/// What one batch may decompress to unless the caller says otherwise: 64 MiB, eight times the largest frame of the log.
pub const DECOMPRESSED_BYTES_MAX: usize = 64 << 20;

/// A stream may ask for a window of at most 8 MiB: what Kafka's clients use up to level 19.
const WINDOW_LOG_MAX: u32 = 23;

/// Output grows in steps of this, doubling, so that a small lie in a header cannot reserve much.
const GROWTH_BYTES_MIN: usize = 64 << 10;

/// A thread keeps its context for the next batch, since making one costs as much as some KiB of records. One that has grown beyond this
/// is given back: a stream that does not say how long it is may ask for a window of 8 MiB.
const CONTEXT_BYTES_MAX: usize = 1 << 20;

const CODE_ZSTD: i16 = 4;

thread_local! {
    static CONTEXT: RefCell<Option<DCtx<'static>>> = const { RefCell::new(None) };
}

impl Codec {
    /// `none` or `zstd`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Zstd(_) => "zstd",
        }
    }

    pub(crate) fn from_attributes(attributes: i16) -> Result<Self, BatchError> {
        let codec = match attributes & ATTRIBUTE_CODEC {
            0 => return Ok(Self::None),
            CODE_ZSTD => return Ok(Self::Zstd(ZSTD_LEVEL_DEFAULT)),
            1 => "gzip",
            2 => "snappy",
            3 => "lz4",
            _ => "an unknown codec",
        };
        Err(BatchError::UnsupportedCodec { codec })
    }

    pub(crate) fn attributes(self) -> i16 {
        match self {
            Self::None => 0,
            Self::Zstd(_) => CODE_ZSTD,
        }
    }
}

/// Undoes zstd into `out` (emptied first), writing at most `bytes_max` bytes whatever the stream claims to hold.
pub(crate) fn decompress(stream: &[u8], out: &mut Vec<u8>, bytes_max: usize) -> Result<(), BatchError> {
    CONTEXT.with_borrow_mut(|kept| {
        // After a failure as after a success the next stream begins anew; the limits stay.
        let mut kept_context = kept.take();
        kept_context.take_if(|context| context.reset(ResetDirective::SessionOnly).is_err());
        let mut context = kept_context.map_or_else(new_context, Ok)?;
        let result = run(&mut context, stream, out, bytes_max);
        *kept = Some(context).filter(|context| context.sizeof() <= CONTEXT_BYTES_MAX);
        result
    })
}

fn new_context() -> Result<DCtx<'static>, BatchError> {
    let mut context = DCtx::try_create().ok_or(failed("no memory for its decoder"))?;
    context.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX)).map_err(|_| failed("zstd takes no window limit"))?;
    Ok(context)
}

fn run(context: &mut DCtx<'_>, stream: &[u8], out: &mut Vec<u8>, bytes_max: usize) -> Result<(), BatchError> {
    out.clear();
    let mut input = InBuffer::around(stream);
    grow(out, stream.len().saturating_mul(4), bytes_max);
    loop {
        let start = out.len();
        let mut output = OutBuffer::around_pos(out, start);
        let consumed = input.pos();
        let hint = context
            .decompress_stream(&mut output, &mut input)
            .map_err(|_| failed("not a zstd stream, or its window is over 8 MiB"))?;
        let all_read = input.pos() == stream.len();
        if hint == 0 && all_read {
            // A frame ended exactly where the bytes end.
            return check_size(out.len(), bytes_max);
        }
        let progress = out.len() > start || input.pos() > consumed;
        if out.len() < out.capacity() && all_read && !progress {
            return Err(failed("the zstd stream is cut short"));
        }
        if out.len() == out.capacity() {
            // One byte over the limit may be produced, which is how going over it is noticed.
            check_size(out.len(), bytes_max)?;
            let step = out.capacity();
            grow(out, step, bytes_max);
        }
    }
}

fn check_size(bytes: usize, bytes_max: usize) -> Result<(), BatchError> {
    if bytes > bytes_max { Err(BatchError::TooLarge { max: bytes_max }) } else { Ok(()) }
}

/// Makes room for `step` more bytes, but never for more than one byte over the limit.
fn grow(out: &mut Vec<u8>, step: usize, bytes_max: usize) {
    let target = (out.len().saturating_add(step.max(GROWTH_BYTES_MIN))).min(bytes_max.saturating_add(1));
    out.reserve_exact(target - out.len());
}

fn failed(reason: &'static str) -> BatchError {
    BatchError::Decompress { reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn inflate(stream: &[u8], bytes_max: usize) -> Result<Vec<u8>, BatchError> {
        let mut out = Vec::new();
        decompress(stream, &mut out, bytes_max).map(|()| out)
    }

    /// Without its length, so that a window must be kept while it is undone.
    fn streamed(raw: &[u8], window_log: u32) -> Vec<u8> {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(window_log).unwrap();
        encoder.include_contentsize(false).unwrap();
        encoder.write_all(raw).unwrap();
        encoder.finish().unwrap()
    }

    fn kept_bytes() -> Option<usize> {
        CONTEXT.with_borrow(|kept| kept.as_ref().map(DCtx::sizeof))
    }

    #[test]
    fn a_context_is_good_for_what_comes_after_a_failure() {
        let raw: Vec<u8> = (0..50_000_u32).flat_map(|n| (n / 9).to_le_bytes()).collect();
        let whole = streamed(&raw, 17);
        let mut damaged = whole.clone();
        damaged[whole.len() / 2..].fill(0);
        let failures = [&damaged[..], &whole[..whole.len() / 2], b"not zstd"];
        for failure in failures {
            assert_eq!(inflate(&whole, raw.len()).as_deref(), Ok(&raw[..]));
            assert!(kept_bytes().is_some());
            assert!(inflate(failure, raw.len()).is_err());
        }
        assert_eq!(inflate(&whole, raw.len() - 1), Err(BatchError::TooLarge { max: raw.len() - 1 }));
        assert_eq!(inflate(&whole, raw.len()).as_deref(), Ok(&raw[..]));
    }

    #[test]
    fn a_kept_context_still_refuses_wide_windows_and_does_not_keep_their_memory() {
        let raw = vec![7; 9 << 20];
        assert!(inflate(&streamed(&raw[..1000], 17), 1000).is_ok());
        assert!(kept_bytes().is_some());
        assert!(matches!(inflate(&streamed(&raw, WINDOW_LOG_MAX + 1), raw.len()), Err(BatchError::Decompress { .. })));
        assert_eq!(inflate(&streamed(&raw, WINDOW_LOG_MAX), raw.len()).as_deref(), Ok(&raw[..]));
        assert_eq!(kept_bytes(), None, "8 MiB are not kept for one stream");
    }
}
