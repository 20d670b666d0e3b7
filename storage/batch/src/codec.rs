//! Compression of a batch's records as a whole. zstd is done and undone here; Kafka's other codecs are known by name, so
//! that their users are told what to change.

use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};
use zstd::zstd_safe::DParameter;

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

const CODE_ZSTD: i16 = 4;

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
    out.clear();
    let mut decoder = Decoder::new().map_err(|_| failed("no memory for its decoder"))?;
    decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX)).map_err(|_| failed("zstd takes no window limit"))?;
    let mut input = InBuffer::around(stream);
    grow(out, stream.len().saturating_mul(4), bytes_max);
    loop {
        let start = out.len();
        let mut output = OutBuffer::around_pos(out, start);
        let consumed = input.pos();
        let hint = decoder.run(&mut input, &mut output).map_err(|_| failed("not a zstd stream, or its window is over 8 MiB"))?;
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
