//! The broker's durable state: small keys and values in the log's metadata, laid out in `runtime/FORMAT.md`.
//!
//! Owns the bytes of keys and values and nothing else. They are written in the same append as the partitions
//! they speak of, and read again once when the node starts. Every value begins with a version byte.

use super::Refusal;

/// Version byte of every value written by this build.
const VALUE_VERSION: u8 = 1;

/// `t` topic name → topic.
pub(crate) const TOPICS: &[u8] = b"t";
/// `p` principal, producer name → producer.
pub(crate) const PRODUCERS: &[u8] = b"p";
/// `g` group, topic, partition → position.
pub(crate) const POSITIONS: &[u8] = b"g";
/// `l` topic name → attached pipeline.
pub(crate) const PIPELINES: &[u8] = b"l";
/// `w` plugin name, version → plugin file.
pub(crate) const PLUGINS: &[u8] = b"w";
/// `k` class number (u32, big-endian) → how its records are kept.
pub(crate) const CLASSES: &[u8] = b"k";
/// Next class number.
pub(crate) const NEXT_CLASS: &[u8] = b"c:class";
/// Next global partition number.
pub(crate) const NEXT_PARTITION: &[u8] = b"c:partition";
/// Next topic number.
pub(crate) const NEXT_TOPIC: &[u8] = b"c:topic";
/// Next producer id.
pub(crate) const NEXT_PRODUCER: &[u8] = b"c:producer";
/// Next pipeline revision.
pub(crate) const NEXT_REVISION: &[u8] = b"c:revision";

/// Writes the fields of one key or value, little-endian, in order.
#[derive(Debug, Default)]
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    /// Starts a key with its prefix.
    pub(crate) fn key(prefix: &[u8]) -> Writer {
        Writer(prefix.to_vec())
    }

    /// Starts a value with its version byte.
    pub(crate) fn value() -> Writer {
        Writer(vec![VALUE_VERSION])
    }

    /// A u16 length and the bytes. Callers bound names far below 64 KiB before they get here.
    pub(crate) fn text(mut self, text: &str) -> Writer {
        let bytes = text.as_bytes();
        assert!(bytes.len() <= usize::from(u16::MAX), "names are bounded before they are stored");
        self.0.extend_from_slice(&(bytes.len() as u16).to_le_bytes());
        self.0.extend_from_slice(bytes);
        self
    }

    /// A u32 length and the bytes.
    pub(crate) fn blob(mut self, bytes: &[u8]) -> Writer {
        self.0.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        self.0.extend_from_slice(bytes);
        self
    }

    /// The bytes as they are: only as the last field.
    pub(crate) fn rest(mut self, bytes: &[u8]) -> Writer {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(crate) fn u32(mut self, value: u32) -> Writer {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub(crate) fn u64(mut self, value: u64) -> Writer {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub(crate) fn i64(self, value: i64) -> Writer {
        self.u64(value as u64)
    }

    pub(crate) fn done(self) -> Vec<u8> {
        self.0
    }
}

/// Reads the fields of one key or value; anything short or left over is an error, never a panic.
#[derive(Debug)]
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// A key behind its prefix.
    pub(crate) fn key(prefix: &[u8], key: &'a [u8]) -> Result<Reader<'a>, MetaError> {
        key.strip_prefix(prefix).map(Reader).ok_or(MetaError::Prefix)
    }

    /// A value behind its version byte.
    pub(crate) fn value(value: &'a [u8]) -> Result<Reader<'a>, MetaError> {
        match value.split_first() {
            Some((&VALUE_VERSION, rest)) => Ok(Reader(rest)),
            Some((&version, _)) => Err(MetaError::Version { version }),
            None => Err(MetaError::Short),
        }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], MetaError> {
        if count > self.0.len() {
            return Err(MetaError::Short);
        }
        let (head, tail) = self.0.split_at(count);
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], MetaError> {
        self.take(N)?.try_into().map_err(|_| MetaError::Short)
    }

    pub(crate) fn text(&mut self) -> Result<&'a str, MetaError> {
        let length = usize::from(u16::from_le_bytes(self.array()?));
        std::str::from_utf8(self.take(length)?).map_err(|_| MetaError::Text)
    }

    pub(crate) fn blob(&mut self) -> Result<&'a [u8], MetaError> {
        let length = self.u32()? as usize;
        self.take(length)
    }

    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, MetaError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, MetaError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(crate) fn i64(&mut self) -> Result<i64, MetaError> {
        Ok(self.u64()? as i64)
    }

    pub(crate) fn end(&self) -> Result<(), MetaError> {
        if self.0.is_empty() { Ok(()) } else { Err(MetaError::Trailing { bytes: self.0.len() }) }
    }
}

/// Why a stored key or value cannot be understood. The log's checksums held, so this is another version or our mistake.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MetaError {
    /// The key belongs to another kind of entry.
    #[error("the key belongs to another kind of entry; report this with the data directory's version")]
    Prefix,
    /// Written by a newer build.
    #[error("the entry has version {version} and this build reads {VALUE_VERSION}; start the newer build again")]
    Version {
        /// The version found.
        version: u8,
    },
    /// Fields are missing.
    #[error("the entry is shorter than its fields; report this with the data directory's version")]
    Short,
    /// More bytes than fields.
    #[error("the entry has {bytes} bytes too many; report this with the data directory's version")]
    Trailing {
        /// Bytes left over.
        bytes: usize,
    },
    /// A name that is not UTF-8.
    #[error("a name in the entry is not UTF-8; report this with the data directory's version")]
    Text,
}

/// The value of a counter.
pub(crate) fn counter(value: u64) -> Vec<u8> {
    Writer::value().u64(value).done()
}

/// Reads a counter; one that was never written is `first`.
pub(crate) fn read_counter(value: Option<Vec<u8>>, first: u64) -> Result<u64, MetaError> {
    let Some(value) = value else { return Ok(first) };
    let mut reader = Reader::value(&value)?;
    let count = reader.u64()?;
    reader.end()?;
    Ok(count)
}

/// Refuses names that would be unreadable in logs, metrics and file names: 1 to `max` bytes of `[A-Za-z0-9._-]`.
pub(crate) fn check_name(field: &'static str, name: &str, max: usize) -> Result<(), Refusal> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if name.is_empty() || name.len() > max || !name.bytes().all(allowed) || name == "." || name == ".." {
        let shown: String = name.chars().take(64).collect();
        return Err(Refusal::InvalidArgument {
            field,
            problem: format!("{shown:?} is not 1 to {max} characters of letters, digits, '.', '_' and '-'"),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_back_as_written() {
        let value = Writer::value().text("sensors.tyres").u32(7).i64(-2).blob(b"xyz").u64(9).rest(b"tail").done();
        let mut reader = Reader::value(&value).unwrap();
        assert_eq!(reader.text().unwrap(), "sensors.tyres");
        assert_eq!(reader.u32().unwrap(), 7);
        assert_eq!(reader.i64().unwrap(), -2);
        assert_eq!(reader.blob().unwrap(), b"xyz");
        assert_eq!(reader.u64().unwrap(), 9);
        assert_eq!(reader.rest(), b"tail");
        reader.end().unwrap();
    }

    #[test]
    fn short_or_foreign_values_are_errors() {
        let value = Writer::value().text("abc").u32(1).done();
        for length in 0..value.len() {
            let cut = &value[..length];
            let read = Reader::value(cut).and_then(|mut reader| {
                reader.text()?;
                reader.u32()
            });
            assert!(read.is_err(), "{length} bytes must not be enough");
        }
        assert!(matches!(Reader::value(&[9, 0]), Err(MetaError::Version { version: 9 })));
    }

    #[test]
    fn names_are_bounded() {
        assert!(check_name("topic", "tpms.raw-1_x", 249).is_ok());
        for bad in ["", "a/b", "..", "ü", "a b"] {
            assert!(check_name("topic", bad, 249).is_err(), "{bad:?}");
        }
        assert!(check_name("topic", &"x".repeat(250), 249).is_err());
    }
}
