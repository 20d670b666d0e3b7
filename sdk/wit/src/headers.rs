//! Record headers in Kafka's own encoding, as they lie in an entry: read only, a plugin never sends any.
use thiserror::Error;

/// What is wrong with an entry's header bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// The bytes end in the middle of a header.
    #[error("record headers end early; the host built this batch wrongly, report it")]
    Truncated,
    /// A length is negative where none may be, or does not fit.
    #[error("a record header has an impossible length; the host built this batch wrongly, report it")]
    BadLength,
}

/// Key and value of one header; a value may be null.
pub type Header<'a> = (&'a [u8], Option<&'a [u8]>);

/// Iterator over `(key, value)` of record headers: a varint count, then key and value with a varint length each.
///
/// Empty bytes stand for no headers. After an error the iterator ends.
#[derive(Debug, Clone)]
pub struct Headers<'a> {
    rest: &'a [u8],
    left: u32,
    started: bool,
}

impl<'a> Headers<'a> {
    /// Reads headers from `bytes` (an entry's headers range).
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, left: 0, started: bytes.is_empty() }
    }

    fn step(&mut self) -> Result<Option<Header<'a>>, HeaderError> {
        if !self.started {
            self.started = true;
            self.left = u32::try_from(self.varint()?).map_err(|_| HeaderError::BadLength)?;
        }
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let key = self.field()?.ok_or(HeaderError::BadLength)?;
        let value = self.field()?;
        Ok(Some((key, value)))
    }

    /// A length and that many bytes; length -1 is null.
    fn field(&mut self) -> Result<Option<&'a [u8]>, HeaderError> {
        let length = self.varint()?;
        if length == -1 {
            return Ok(None);
        }
        let length = usize::try_from(length).map_err(|_| HeaderError::BadLength)?;
        let (field, rest) = self.rest.split_at_checked(length).ok_or(HeaderError::Truncated)?;
        self.rest = rest;
        Ok(Some(field))
    }

    /// Zig-zag LEB128 of at most five bytes.
    fn varint(&mut self) -> Result<i32, HeaderError> {
        let mut value = 0u32;
        for shift in [0, 7, 14, 21, 28] {
            let (&byte, rest) = self.rest.split_first().ok_or(HeaderError::Truncated)?;
            self.rest = rest;
            value |= u32::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                let magnitude = (value >> 1).cast_signed();
                return Ok(magnitude ^ -(value & 1).cast_signed());
            }
        }
        Err(HeaderError::BadLength)
    }
}

impl<'a> Iterator for Headers<'a> {
    type Item = Result<Header<'a>, HeaderError>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.step();
        if step.is_err() {
            self.left = 0;
        }
        step.transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn two_headers_one_null() {
        // count 2, "a" = "xy", "b" = null
        let bytes = [4, 2, b'a', 4, b'x', b'y', 2, b'b', 1];
        let all: Vec<_> = Headers::new(&bytes).collect::<Result<_, _>>().unwrap();
        assert_eq!(all, [(&b"a"[..], Some(&b"xy"[..])), (&b"b"[..], None)]);
        assert_eq!(Headers::new(&[]).count(), 0);
    }

    #[test]
    fn cut_headers_are_an_error_and_end() {
        let bytes = [4, 2, b'a', 4, b'x', b'y', 2, b'b', 1];
        for cut in 1..bytes.len() {
            let mut headers = Headers::new(&bytes[..cut]);
            assert!(headers.by_ref().any(|h| h == Err(HeaderError::Truncated)), "cut at {cut}");
            assert!(headers.next().is_none());
        }
    }
}
