//! What can be written as a value or key: bytes, text, formatted text, JSON, or whatever a closure writes.
use std::fmt;
use std::io;

use serde::Serialize;

use crate::arena::Arena;
use crate::{Error, Result};

/// The end of the arena: bytes are appended to it, and go to the host as they are.
#[derive(Debug)]
pub struct Buffer<'a>(&'a mut Arena);

impl<'a> Buffer<'a> {
    #[inline]
    pub(crate) fn new(arena: &'a mut Arena) -> Self {
        Self(arena)
    }

    /// Appends bytes.
    #[inline]
    pub fn extend(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
    }

    /// Appends one byte.
    #[inline]
    pub fn push(&mut self, byte: u8) {
        self.0.push(byte);
    }
}

impl fmt::Write for Buffer<'_> {
    #[inline]
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.extend(text.as_bytes());
        Ok(())
    }
}

impl io::Write for Buffer<'_> {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.extend(bytes);
        Ok(bytes.len())
    }

    #[inline]
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.extend(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Something that becomes the bytes of a key or value.
pub trait Payload {
    /// Appends the bytes.
    ///
    /// # Errors
    /// What cannot be written rejects the record.
    fn write_to(self, buffer: &mut Buffer<'_>) -> Result;
}

impl<P: AsBytes + ?Sized> Payload for &P {
    #[inline]
    fn write_to(self, buffer: &mut Buffer<'_>) -> Result {
        buffer.extend(self.as_bytes());
        Ok(())
    }
}

/// What is bytes already.
pub trait AsBytes {
    /// Those bytes.
    fn as_bytes(&self) -> &[u8];
}

impl AsBytes for [u8] {
    fn as_bytes(&self) -> &[u8] {
        self
    }
}

impl<const N: usize> AsBytes for [u8; N] {
    fn as_bytes(&self) -> &[u8] {
        self
    }
}

impl AsBytes for Vec<u8> {
    fn as_bytes(&self) -> &[u8] {
        self
    }
}

impl AsBytes for str {
    fn as_bytes(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl AsBytes for String {
    fn as_bytes(&self) -> &[u8] {
        self.as_str().as_bytes()
    }
}

impl Payload for fmt::Arguments<'_> {
    #[inline]
    fn write_to(self, buffer: &mut Buffer<'_>) -> Result {
        fmt::Write::write_fmt(buffer, self).map_err(|_| Error::fixed("a value to be written cannot be formatted"))
    }
}

/// A value written as JSON: `out.replace(Json(&reading))`.
#[derive(Debug, Clone, Copy)]
pub struct Json<'a, T: ?Sized>(pub &'a T);

impl<T: Serialize + ?Sized> Payload for Json<'_, T> {
    #[inline]
    fn write_to(self, buffer: &mut Buffer<'_>) -> Result {
        serde_json::to_writer(buffer, self.0).map_err(|error| Error::new(format_args!("cannot be written as JSON: {error}")))
    }
}

/// What a closure writes; see [`write_with`].
#[derive(Debug, Clone, Copy)]
pub struct WriteWith<F>(F);

/// Writes a key or value without a detour: `out.replace(write_with(|buffer| buffer.extend(b"...")))`.
pub fn write_with<F: FnOnce(&mut Buffer<'_>)>(write: F) -> WriteWith<F> {
    WriteWith(write)
}

impl<F: FnOnce(&mut Buffer<'_>)> Payload for WriteWith<F> {
    #[inline]
    fn write_to(self, buffer: &mut Buffer<'_>) -> Result {
        (self.0)(buffer);
        Ok(())
    }
}

/// The source's own key, without a copy.
#[derive(Debug, Clone, Copy)]
pub struct SourceKey;

/// What a key turned out to be.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyWritten {
    /// The source's.
    OfSource,
    /// None.
    Null,
    /// The bytes just appended.
    Own,
}

/// Something that becomes a key: any [`Payload`], `record.key()` (no copy), `None::<&[u8]>`, or [`SourceKey`].
pub trait IntoKey {
    /// Appends the key's bytes, if it has any of its own.
    #[doc(hidden)]
    fn write_key(self, source: Option<&[u8]>, buffer: &mut Buffer<'_>) -> Result<KeyWritten>;
}

impl<P: Payload> IntoKey for P {
    #[inline]
    fn write_key(self, _source: Option<&[u8]>, buffer: &mut Buffer<'_>) -> Result<KeyWritten> {
        self.write_to(buffer)?;
        Ok(KeyWritten::Own)
    }
}

impl IntoKey for Option<&[u8]> {
    #[inline]
    fn write_key(self, source: Option<&[u8]>, buffer: &mut Buffer<'_>) -> Result<KeyWritten> {
        Ok(match self {
            None => KeyWritten::Null,
            // `record.key()` given back: the very same bytes need no copy.
            Some(key) if source.is_some_and(|source| std::ptr::eq(source, key)) => KeyWritten::OfSource,
            Some(key) => {
                buffer.extend(key);
                KeyWritten::Own
            }
        })
    }
}

impl IntoKey for SourceKey {
    #[inline]
    fn write_key(self, _source: Option<&[u8]>, _buffer: &mut Buffer<'_>) -> Result<KeyWritten> {
        Ok(KeyWritten::OfSource)
    }
}
