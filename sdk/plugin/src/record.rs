//! One record of a batch, seen where it lies.
use serde::Deserialize;
use weir_plugin_abi::{BatchMeta, Entry, Headers, OFFSET_UNKNOWN};

use crate::{Error, Result};

/// A view of one record. Everything it hands out borrows from the batch.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    entry: Entry<'a>,
    meta: BatchMeta<'a>,
    index: u32,
}

impl<'a> Record<'a> {
    #[inline]
    pub(crate) fn new(entry: Entry<'a>, meta: BatchMeta<'a>, index: u32) -> Self {
        Self { entry, meta, index }
    }

    /// The key, if it has one.
    #[inline]
    #[must_use]
    pub fn key(&self) -> Option<&'a [u8]> {
        self.entry.key
    }

    /// The value; `None` is a tombstone (a record that deletes its key).
    #[inline]
    #[must_use]
    pub fn value(&self) -> Option<&'a [u8]> {
        self.entry.value
    }

    /// The value's bytes.
    ///
    /// # Errors
    /// If there is no value.
    #[inline]
    pub fn bytes(&self) -> Result<&'a [u8]> {
        self.entry.value.ok_or(Error::fixed("the record has no value"))
    }

    /// The value as text.
    ///
    /// # Errors
    /// If there is no value or it is not UTF-8.
    #[inline]
    pub fn value_str(&self) -> Result<&'a str> {
        std::str::from_utf8(self.bytes()?).map_err(|error| Error::new(format_args!("the value is not text: {error}")))
    }

    /// The value read as JSON; `&str` and `Cow<str>` fields borrow from it.
    ///
    /// # Errors
    /// If there is no value or it is not the JSON expected.
    #[inline]
    pub fn json<T: Deserialize<'a>>(&self) -> Result<T> {
        serde_json::from_slice(self.bytes()?)
            .map_err(|error| Error::new(format_args!("the value is not the JSON expected: {error}")))
    }

    /// ms since 1970, set by the producer.
    #[inline]
    #[must_use]
    pub fn timestamp(&self) -> i64 {
        self.entry.timestamp
    }

    /// Header names and values; a header cut short ends the list.
    pub fn headers(&self) -> impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)> + use<'a> {
        Headers::new(self.entry.headers_raw).map_while(std::result::Result::ok)
    }

    /// The value of the first header of this name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        self.headers().find(|(key, _)| *key == name.as_bytes()).and_then(|(_, value)| value)
    }

    /// The offset, where it is known already: on the way into a topic it is assigned after the pipeline.
    #[must_use]
    pub fn offset(&self) -> Option<i64> {
        (self.meta.base_offset != OFFSET_UNKNOWN).then(|| self.meta.base_offset + i64::from(self.index))
    }

    /// Place in the batch, from 0.
    #[inline]
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The topic it was published to.
    #[must_use]
    pub fn topic(&self) -> &'a str {
        self.meta.topic
    }

    /// The partition it belongs to.
    #[must_use]
    pub fn partition(&self) -> u32 {
        self.meta.partition
    }

    /// The host's clock when the batch came, ms since 1970: the only clock there is, so that a replay gives the same.
    #[inline]
    #[must_use]
    pub fn now_ms(&self) -> i64 {
        self.meta.now_ms
    }
}
