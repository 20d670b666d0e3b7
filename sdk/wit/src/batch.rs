//! The flat batch: header, index entries, topic name, payload. Written by the host, read by the guest.
use alloc::vec::Vec;
use thiserror::Error;

use crate::headers::Headers;
use crate::{ABI_MINOR, BATCH_HEADER_BYTES, BATCH_MAGIC, ENTRY_BYTES, NULL, OFFSET_UNKNOWN, le};

/// What is wrong with a batch a reader was given.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum BatchError {
    /// The bytes end before the part named.
    #[error("batch ends before its {part}; host and plugin disagree about the layout, rebuild the plugin")]
    Truncated {
        /// The part that is missing.
        part: &'static str,
    },
    /// The magic is not `WPB1`.
    #[error("this is not a plugin batch (magic {found:?}); rebuild the plugin for this major version of Weir")]
    BadMagic {
        /// The four bytes found.
        found: [u8; 4],
    },
    /// A size in the header is smaller than this layout's first version.
    #[error("batch header names {field} = {found}, the least is {least}; rebuild the plugin for this version of Weir")]
    BadSize {
        /// The header's field.
        field: &'static str,
        /// Its value.
        found: u32,
        /// The least it may be.
        least: u32,
    },
    /// A record's key, value or headers lie outside the batch.
    #[error("record {index}: {part} lies outside the batch; the host built this batch wrongly, report it")]
    OutOfBounds {
        /// The record.
        index: u32,
        /// key, value, headers or topic.
        part: &'static str,
    },
    /// The topic's name is not UTF-8.
    #[error("the topic's name is not UTF-8; the host built this batch wrongly, report it")]
    BadTopic,
}

/// What stands in the way of writing a batch.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum WriteError {
    /// Positions are 32 bits wide.
    #[error("a plugin batch may hold at most {max} bytes; send smaller record batches")]
    TooLarge {
        /// The most bytes a batch may have.
        max: u64,
    },
    /// More or fewer records than announced.
    #[error("{announced} records were announced and {pushed} written; the caller must count first")]
    WrongCount {
        /// Records announced to [`BatchWriter::begin`].
        announced: u32,
        /// Records pushed.
        pushed: u32,
    },
}

/// What a batch says about all of its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchMeta<'a> {
    /// The topic's name.
    pub topic: &'a str,
    /// The partition.
    pub partition: u32,
    /// Offset of the first record, or [`OFFSET_UNKNOWN`].
    pub base_offset: i64,
    /// The host's clock, ms since 1970: the only clock a plugin has.
    pub now_ms: i64,
}

impl<'a> BatchMeta<'a> {
    /// Meta data of a batch whose offsets are not assigned yet.
    #[must_use]
    pub fn new(topic: &'a str, partition: u32, now_ms: i64) -> Self {
        Self { topic, partition, base_offset: OFFSET_UNKNOWN, now_ms }
    }
}

/// One record as a plugin sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// ms since 1970.
    pub timestamp: i64,
    /// The key, if any.
    pub key: Option<&'a [u8]>,
    /// The value; null is Kafka's tombstone.
    pub value: Option<&'a [u8]>,
    /// Headers in Kafka's encoding; see [`Entry::headers`].
    pub headers_raw: &'a [u8],
}

impl<'a> Entry<'a> {
    /// The record's headers.
    #[must_use]
    pub fn headers(&self) -> Headers<'a> {
        Headers::new(self.headers_raw)
    }
}

/// Where the parts of a record lie: their start in the batch, or [`NULL`], and their length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Places {
    /// ms since 1970.
    pub timestamp: i64,
    /// The key.
    pub key: (u32, u32),
    /// The value.
    pub value: (u32, u32),
    /// Headers in Kafka's encoding; null for none.
    pub headers: (u32, u32),
}

impl Places {
    /// Straight into its place: built elsewhere and copied, a load would wait for the stores before it.
    #[inline(always)]
    fn encode(&self, entry: &mut [u8; ENTRY_BYTES]) {
        let part = |(start, bytes): (u32, u32)| (u64::from(start) | u64::from(bytes) << 32).to_le_bytes();
        entry[0..8].copy_from_slice(&self.timestamp.to_le_bytes());
        entry[8..16].copy_from_slice(&part(self.key));
        entry[16..24].copy_from_slice(&part(self.value));
        entry[24..32].copy_from_slice(&part(self.headers));
    }

    #[inline]
    fn decode(entry: &[u8; ENTRY_BYTES]) -> Self {
        let word = |at: usize| u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]]);
        let part = |at: usize| (word(at), word(at + 4));
        let timestamp = (u64::from(word(0)) | u64::from(word(4)) << 32).cast_signed();
        Self { timestamp, key: part(8), value: part(16), headers: part(24) }
    }
}

/// A checked view of a batch; records are decoded as they are asked for.
#[derive(Debug, Clone, Copy)]
pub struct BatchView<'a> {
    bytes: &'a [u8],
    meta: BatchMeta<'a>,
    header_bytes: usize,
    entry_bytes: usize,
    count: u32,
    abi_minor: u16,
}

impl<'a> BatchView<'a> {
    /// Checks the header and that all entries are there; each record's ranges are checked when it is read.
    ///
    /// # Errors
    /// See [`BatchError`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BatchError> {
        const HEADER: BatchError = BatchError::Truncated { part: "header" };
        let magic: [u8; 4] = le::array(bytes, 0).ok_or(HEADER)?;
        if magic != BATCH_MAGIC {
            return Err(BatchError::BadMagic { found: magic });
        }
        if bytes.len() < BATCH_HEADER_BYTES {
            return Err(HEADER);
        }
        let u32_at = |at| le::u32(bytes, at).ok_or(HEADER);
        let i64_at = |at| le::i64(bytes, at).ok_or(HEADER);
        let abi_minor = le::u16(bytes, 4).ok_or(HEADER)?;
        let header_bytes = u32::from(le::u16(bytes, 6).ok_or(HEADER)?);
        let (entry_bytes, count) = (u32_at(8)?, u32_at(12)?);
        at_least("header_bytes", header_bytes, BATCH_HEADER_BYTES)?;
        at_least("entry_bytes", entry_bytes, ENTRY_BYTES)?;
        let entries_end = u64::from(header_bytes) + u64::from(count) * u64::from(entry_bytes);
        if entries_end > bytes.len() as u64 {
            return Err(BatchError::Truncated { part: "entries" });
        }
        let topic =
            range(bytes, u32_at(36)?, u32_at(40)?).flatten().ok_or(BatchError::OutOfBounds { index: 0, part: "topic" })?;
        let topic = core::str::from_utf8(topic).map_err(|_| BatchError::BadTopic)?;
        let meta = BatchMeta { topic, partition: u32_at(32)?, base_offset: i64_at(16)?, now_ms: i64_at(24)? };
        Ok(Self { bytes, meta, header_bytes: header_bytes as usize, entry_bytes: entry_bytes as usize, count, abi_minor })
    }

    /// Topic, partition, base offset, clock.
    #[must_use]
    pub fn meta(&self) -> BatchMeta<'a> {
        self.meta
    }

    /// Number of records.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The minor version the writer spoke.
    #[must_use]
    pub fn abi_minor(&self) -> u16 {
        self.abi_minor
    }

    /// The bytes this view was made from.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The record at `index`; `None` from `count` on.
    ///
    /// # Errors
    /// [`BatchError::OutOfBounds`] if its ranges lie outside the batch.
    #[inline]
    pub fn entry(&self, index: u32) -> Result<Option<Entry<'a>>, BatchError> {
        if index >= self.count {
            return Ok(None);
        }
        let places = self.decode(index)?;
        let part = |(start, bytes): (u32, u32), part: &'static str| {
            range(self.bytes, start, bytes).ok_or(BatchError::OutOfBounds { index, part })
        };
        Ok(Some(Entry {
            timestamp: places.timestamp,
            key: part(places.key, "key")?,
            value: part(places.value, "value")?,
            headers_raw: part(places.headers, "headers")?.unwrap_or_default(),
        }))
    }

    /// Where the parts of each record lie, as the entries say it: not checked against the batch.
    pub fn places(&self) -> impl Iterator<Item = Places> + use<'a> {
        let entries = self.bytes.get(self.header_bytes..).unwrap_or_default().chunks_exact(self.entry_bytes);
        entries.take(self.count as usize).filter_map(|entry| entry.first_chunk().map(Places::decode))
    }

    #[inline]
    fn decode(&self, index: u32) -> Result<Places, BatchError> {
        let at = self.header_bytes + index as usize * self.entry_bytes;
        let entry: [u8; ENTRY_BYTES] = le::array(self.bytes, at).ok_or(BatchError::Truncated { part: "entries" })?;
        Ok(Places::decode(&entry))
    }

    /// All records in order.
    #[must_use]
    pub fn entries(&self) -> Entries<'a> {
        Entries { batch: *self, next: 0 }
    }
}

/// Iterator over a batch's records.
#[derive(Debug, Clone)]
pub struct Entries<'a> {
    batch: BatchView<'a>,
    next: u32,
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, BatchError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let entry = self.batch.entry(self.next).transpose()?;
        self.next += 1;
        Some(entry)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = (self.batch.count - self.next) as usize;
        (left, Some(left))
    }
}

/// An entry to be written.
#[derive(Debug)]
pub struct EntryMut<'b>(&'b mut [u8; ENTRY_BYTES]);

impl EntryMut<'_> {
    /// Writes it.
    #[inline]
    pub fn set(self, places: &Places) {
        places.encode(self.0);
    }
}

/// Writes a batch into a buffer that lives as long as the caller likes: nothing is allocated per record.
///
/// The number of records is announced first, because the entries stand before the payload.
#[derive(Debug)]
pub struct BatchWriter<'b> {
    buffer: &'b mut Vec<u8>,
    announced: u32,
    pushed: u32,
}

impl<'b> BatchWriter<'b> {
    /// Clears `buffer` and lays out header, room for `count` entries and the topic's name.
    ///
    /// # Errors
    /// [`WriteError::TooLarge`] if the entries alone exceed what a position can name.
    pub fn begin(buffer: &'b mut Vec<u8>, meta: BatchMeta<'_>, count: u32) -> Result<Self, WriteError> {
        let entries_end = BATCH_HEADER_BYTES as u64 + u64::from(count) * ENTRY_BYTES as u64;
        let topic_start = position(entries_end)?;
        let topic_bytes = position(meta.topic.len() as u64)?;
        // What stands there from the batch before is written over: all of the header now, each entry by `finish`.
        buffer.truncate(topic_start as usize);
        buffer.resize(topic_start as usize, 0);
        buffer[..BATCH_HEADER_BYTES].fill(0);
        buffer[0..4].copy_from_slice(&BATCH_MAGIC);
        buffer[4..6].copy_from_slice(&ABI_MINOR.to_le_bytes());
        buffer[6..8].copy_from_slice(&(BATCH_HEADER_BYTES as u16).to_le_bytes());
        buffer[8..12].copy_from_slice(&(ENTRY_BYTES as u32).to_le_bytes());
        buffer[12..16].copy_from_slice(&count.to_le_bytes());
        buffer[16..24].copy_from_slice(&meta.base_offset.to_le_bytes());
        buffer[24..32].copy_from_slice(&meta.now_ms.to_le_bytes());
        buffer[32..36].copy_from_slice(&meta.partition.to_le_bytes());
        buffer[36..40].copy_from_slice(&topic_start.to_le_bytes());
        buffer[40..44].copy_from_slice(&topic_bytes.to_le_bytes());
        buffer.extend_from_slice(meta.topic.as_bytes());
        Ok(Self { buffer, announced: count, pushed: 0 })
    }

    /// Appends one record; `headers_raw` is Kafka's encoding, empty for none.
    ///
    /// # Errors
    /// [`WriteError::TooLarge`] beyond 4 GiB, [`WriteError::WrongCount`] beyond the announced count.
    #[inline]
    pub fn push(
        &mut self,
        timestamp: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers_raw: &[u8],
    ) -> Result<(), WriteError> {
        if self.pushed >= self.announced {
            return Err(self.wrong_count(self.pushed.saturating_add(1)));
        }
        let headers = if headers_raw.is_empty() { None } else { Some(headers_raw) };
        let (key, value, headers) = (self.part(key)?, self.part(value)?, self.part(headers)?);
        let at = BATCH_HEADER_BYTES + self.pushed as usize * ENTRY_BYTES;
        let mut entry = [0; ENTRY_BYTES];
        Places { timestamp, key, value, headers }.encode(&mut entry);
        self.buffer[at..at + ENTRY_BYTES].copy_from_slice(&entry);
        self.pushed += 1;
        Ok(())
    }

    /// Appends bytes that records may lie in, and returns where they start.
    ///
    /// # Errors
    /// [`WriteError::TooLarge`] beyond 4 GiB.
    pub fn payload(&mut self, bytes: &[u8]) -> Result<u32, WriteError> {
        position(self.buffer.len() as u64 + bytes.len() as u64)?;
        let start = self.buffer.len() as u32;
        self.buffer.extend_from_slice(bytes);
        Ok(start)
    }

    /// The entries that are still to be written, one a record: for records whose parts were appended by
    /// [`BatchWriter::payload`]. [`BatchWriter::finish`] believes that all of them are.
    #[inline]
    pub fn entries(&mut self) -> impl Iterator<Item = EntryMut<'_>> {
        let from = BATCH_HEADER_BYTES + self.pushed as usize * ENTRY_BYTES;
        let to = BATCH_HEADER_BYTES + self.announced as usize * ENTRY_BYTES;
        self.pushed = self.announced;
        self.buffer[from..to].as_chunks_mut::<ENTRY_BYTES>().0.iter_mut().map(EntryMut)
    }

    /// Bytes written so far.
    #[inline]
    #[must_use]
    pub fn position(&self) -> usize {
        self.buffer.len()
    }

    /// Ends the batch; the buffer now holds it.
    ///
    /// # Errors
    /// [`WriteError::WrongCount`] if fewer records were pushed than announced.
    pub fn finish(self) -> Result<(), WriteError> {
        if self.pushed != self.announced {
            return Err(self.wrong_count(self.pushed));
        }
        Ok(())
    }

    #[inline]
    fn part(&mut self, bytes: Option<&[u8]>) -> Result<(u32, u32), WriteError> {
        bytes.map_or(Ok((NULL, 0)), |bytes| Ok((self.payload(bytes)?, bytes.len() as u32)))
    }

    fn wrong_count(&self, pushed: u32) -> WriteError {
        WriteError::WrongCount { announced: self.announced, pushed }
    }
}

/// A position fits 32 bits and is not the one that means null.
#[inline]
fn position(at: u64) -> Result<u32, WriteError> {
    let max = u64::from(NULL - 1);
    if at > max {
        return Err(WriteError::TooLarge { max });
    }
    Ok(at as u32)
}

fn at_least(field: &'static str, found: u32, least: usize) -> Result<(), BatchError> {
    let least = least as u32;
    if found < least {
        return Err(BatchError::BadSize { field, found, least });
    }
    Ok(())
}

/// `Some(None)` is null, `None` is out of bounds.
#[inline]
pub(crate) fn range(bytes: &[u8], start: u32, length: u32) -> Option<Option<&[u8]>> {
    if start == NULL {
        return Some(None);
    }
    let end = (start as usize).checked_add(length as usize)?;
    bytes.get(start as usize..end).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::String;
    use alloc::vec;
    use proptest::prelude::*;

    type Owned = (i64, Option<Vec<u8>>, Option<Vec<u8>>, Vec<u8>);

    fn write(topic: &str, records: &[Owned]) -> Vec<u8> {
        let mut buffer = vec![7; 3];
        let meta = BatchMeta::new(topic, 4, 1_700_000_000_000);
        let mut writer = BatchWriter::begin(&mut buffer, meta, records.len() as u32).unwrap();
        for (timestamp, key, value, headers) in records {
            writer.push(*timestamp, key.as_deref(), value.as_deref(), headers).unwrap();
        }
        writer.finish().unwrap();
        buffer
    }

    fn records() -> impl Strategy<Value = Vec<Owned>> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..40);
        let option = || proptest::option::of(bytes());
        proptest::collection::vec((any::<i64>(), option(), option(), bytes()), 0..40)
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(topic in "[a-zé.]{0,12}", records in records()) {
            let bytes = write(&topic, &records);
            let view = BatchView::parse(&bytes).unwrap();
            prop_assert_eq!(view.meta().topic, topic.as_str());
            prop_assert_eq!(view.meta().partition, 4);
            prop_assert_eq!(view.meta().base_offset, OFFSET_UNKNOWN);
            prop_assert_eq!(view.meta().now_ms, 1_700_000_000_000);
            prop_assert_eq!(view.count() as usize, records.len());
            for (entry, owned) in view.entries().zip(&records) {
                let entry = entry.unwrap();
                prop_assert_eq!(entry.timestamp, owned.0);
                prop_assert_eq!(entry.key, owned.1.as_deref());
                prop_assert_eq!(entry.value, owned.2.as_deref());
                prop_assert_eq!(entry.headers_raw, owned.3.as_slice());
            }
            prop_assert_eq!(view.entries().count(), records.len());
        }

        #[test]
        fn any_bytes_are_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..300), magic in any::<bool>()) {
            let mut bytes = bytes;
            if magic && bytes.len() >= 4 {
                bytes[..4].copy_from_slice(&BATCH_MAGIC);
            }
            if let Ok(view) = BatchView::parse(&bytes) {
                let _ = view.entries().filter(Result::is_ok).count();
            }
        }

        #[test]
        fn a_flipped_byte_is_an_answer(records in records(), at in any::<proptest::sample::Index>(), with in any::<u8>()) {
            let mut bytes = write("t", &records);
            let at = at.index(bytes.len());
            bytes[at] ^= with;
            if let Ok(view) = BatchView::parse(&bytes) {
                for entry in view.entries().take(100).flatten() {
                    let _ = entry.headers().count();
                }
            }
        }
    }

    #[test]
    fn a_reader_steps_by_the_sizes_the_header_names() {
        // A later minor version with 8 more header bytes and 16 more bytes an entry.
        let mut bytes = vec![0u8; 72];
        bytes[..4].copy_from_slice(&BATCH_MAGIC);
        bytes[4..6].copy_from_slice(&9u16.to_le_bytes());
        bytes[6..8].copy_from_slice(&72u16.to_le_bytes());
        bytes[8..12].copy_from_slice(&48u32.to_le_bytes());
        bytes[12..16].copy_from_slice(&2u32.to_le_bytes());
        bytes[36..40].copy_from_slice(&168u32.to_le_bytes());
        bytes[40..44].copy_from_slice(&1u32.to_le_bytes());
        for timestamp in [11i64, 12] {
            let mut entry = [0xEEu8; 48];
            entry[..8].copy_from_slice(&timestamp.to_le_bytes());
            for at in [8, 16, 24] {
                entry[at..at + 4].copy_from_slice(&NULL.to_le_bytes());
            }
            bytes.extend_from_slice(&entry);
        }
        bytes.push(b't');
        let view = BatchView::parse(&bytes).unwrap();
        assert_eq!(view.abi_minor(), 9);
        assert_eq!(String::from(view.meta().topic), "t");
        let stamps: Vec<i64> = view.entries().map(|e| e.unwrap().timestamp).collect();
        assert_eq!(stamps, [11, 12]);
    }

    #[test]
    fn a_writer_holds_to_the_announced_count() {
        let mut buffer = Vec::new();
        let meta = BatchMeta::new("t", 0, 0);
        let mut writer = BatchWriter::begin(&mut buffer, meta, 1).unwrap();
        writer.push(0, None, None, &[]).unwrap();
        let more = writer.push(0, None, None, &[]);
        assert_eq!(more, Err(WriteError::WrongCount { announced: 1, pushed: 2 }));
        let writer = BatchWriter::begin(&mut buffer, meta, 1).unwrap();
        assert_eq!(writer.finish(), Err(WriteError::WrongCount { announced: 1, pushed: 0 }));
    }

    #[test]
    fn each_kind_of_damage_is_named() {
        let good = write("topic", &[(1, Some(vec![1]), Some(vec![2, 3]), vec![])]);
        let damaged = |at: usize, with: &[u8]| {
            let mut bytes = good.clone();
            bytes[at..at + with.len()].copy_from_slice(with);
            BatchView::parse(&bytes).and_then(|v| v.entry(0).map(|_| ())).unwrap_err()
        };
        assert_eq!(damaged(0, b"XPB1"), BatchError::BadMagic { found: *b"XPB1" });
        assert!(matches!(damaged(6, &[63, 0]), BatchError::BadSize { field: "header_bytes", .. }));
        assert!(matches!(damaged(8, &[31, 0]), BatchError::BadSize { field: "entry_bytes", .. }));
        assert_eq!(damaged(12, &[255; 4]), BatchError::Truncated { part: "entries" });
        assert_eq!(damaged(40, &[200]), BatchError::OutOfBounds { index: 0, part: "topic" });
        assert_eq!(damaged(64 + 20, &[3]), BatchError::OutOfBounds { index: 0, part: "value" });
        assert_eq!(BatchView::parse(&good[..63]).unwrap_err(), BatchError::Truncated { part: "header" });
    }
}
