//! Reading and writing the fields of a body: little-endian numbers, `str`, `text`, `blob`, `list`.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{MESSAGE_BYTES_MAX, ProtocolError};

/// Takes fields off the front of a body. Slices share the body's memory.
pub(crate) struct Reader {
    body: Bytes,
}

macro_rules! numbers {
    ($($name:ident -> $type:ty, $get:ident;)*) => {$(
        pub(crate) fn $name(&mut self, field: &'static str) -> Result<$type, ProtocolError> {
            self.need(field, size_of::<$type>() as u64)?;
            Ok(self.body.$get())
        }
    )*};
}

impl Reader {
    pub(crate) fn new(body: Bytes) -> Reader {
        Reader { body }
    }

    numbers! {
        u8 -> u8, get_u8;
        u16 -> u16, get_u16_le;
        i16 -> i16, get_i16_le;
        u32 -> u32, get_u32_le;
        u64 -> u64, get_u64_le;
        i64 -> i64, get_i64_le;
    }

    fn need(&self, field: &'static str, wanted: u64) -> Result<(), ProtocolError> {
        let left = self.body.len() as u64;
        if wanted > left {
            return Err(ProtocolError::Truncated { field, wanted, left });
        }
        Ok(())
    }

    pub(crate) fn bytes(&mut self, field: &'static str, count: usize) -> Result<Bytes, ProtocolError> {
        self.need(field, count as u64)?;
        Ok(self.body.split_to(count))
    }

    pub(crate) fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], ProtocolError> {
        self.need(field, N as u64)?;
        let mut array = [0; N];
        self.body.copy_to_slice(&mut array);
        Ok(array)
    }

    /// `str`: u16 length + UTF-8.
    pub(crate) fn str(&mut self, field: &'static str) -> Result<String, ProtocolError> {
        let count = self.u16(field)? as usize;
        self.utf8(field, count)
    }

    /// `text`: u32 length + UTF-8.
    pub(crate) fn text(&mut self, field: &'static str) -> Result<String, ProtocolError> {
        let count = self.u32(field)? as usize;
        self.utf8(field, count)
    }

    fn utf8(&mut self, field: &'static str, count: usize) -> Result<String, ProtocolError> {
        let bytes = self.bytes(field, count)?;
        match std::str::from_utf8(&bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(ProtocolError::NotUtf8 { field }),
        }
    }

    /// `blob`: u32 length + bytes.
    pub(crate) fn blob(&mut self, field: &'static str) -> Result<Bytes, ProtocolError> {
        let count = self.u32(field)? as usize;
        self.bytes(field, count)
    }

    /// `list<T>`: u32 count + items of at least `item_bytes_min` each, so that the count cannot claim more than arrived.
    pub(crate) fn list<T>(
        &mut self,
        field: &'static str,
        item_bytes_min: usize,
        mut item: impl FnMut(&mut Reader) -> Result<T, ProtocolError>,
    ) -> Result<Vec<T>, ProtocolError> {
        let count = self.u32(field)?;
        self.need(field, count as u64 * item_bytes_min as u64)?;
        let mut items = Vec::with_capacity(count as usize);
        for _ in 0..count {
            items.push(item(self)?);
        }
        Ok(items)
    }

    /// Whatever is left.
    pub(crate) fn rest(&mut self) -> Bytes {
        std::mem::take(&mut self.body)
    }

    /// Nothing may be left.
    pub(crate) fn end(self, message: &'static str) -> Result<(), ProtocolError> {
        match self.body.len() {
            0 => Ok(()),
            left => Err(ProtocolError::TrailingBytes { message, left }),
        }
    }
}

pub(crate) fn put_str(out: &mut BytesMut, field: &'static str, text: &str) -> Result<(), ProtocolError> {
    let max = u16::MAX as usize;
    if text.len() > max {
        return Err(ProtocolError::TooLong { field, bytes: text.len(), max });
    }
    out.put_u16_le(text.len() as u16);
    out.put_slice(text.as_bytes());
    Ok(())
}

pub(crate) fn put_text(out: &mut BytesMut, field: &'static str, text: &str) -> Result<(), ProtocolError> {
    put_blob(out, field, text.as_bytes())
}

pub(crate) fn put_blob(out: &mut BytesMut, field: &'static str, bytes: &[u8]) -> Result<(), ProtocolError> {
    let max = u32::MAX as usize;
    if bytes.len() > max {
        return Err(ProtocolError::TooLong { field, bytes: bytes.len(), max });
    }
    out.put_u32_le(bytes.len() as u32);
    out.put_slice(bytes);
    Ok(())
}

/// A sentence for a person: cut at [`MESSAGE_BYTES_MAX`] rather than refused.
pub(crate) fn put_message(out: &mut BytesMut, message: &str) {
    let mut end = message.len().min(MESSAGE_BYTES_MAX);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    out.put_u16_le(end as u16);
    out.put_slice(&message.as_bytes()[..end]);
}

pub(crate) fn put_list<T>(
    out: &mut BytesMut,
    field: &'static str,
    items: &[T],
    mut item: impl FnMut(&mut BytesMut, &T) -> Result<(), ProtocolError>,
) -> Result<(), ProtocolError> {
    let max = u32::MAX as usize;
    if items.len() > max {
        return Err(ProtocolError::TooLong { field, bytes: items.len(), max });
    }
    out.put_u32_le(items.len() as u32);
    items.iter().try_for_each(|one| item(out, one))
}
