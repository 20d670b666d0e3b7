//! Verdicts: what a plugin decided about each record, and the arena with the bytes they point to.
//!
//! Written by the guest with [`VerdictWriter`], read by the host with [`VerdictView`], and held to the rules of the
//! format by [`VerdictRules`], which a native test of a plugin uses as well.
use alloc::vec::Vec;
use thiserror::Error;

use crate::batch::range;
use crate::{FLAG_KEY, FLAG_KEY_OF_SOURCE, FLAG_VALUE, OUTPUT_STREAM, TIMESTAMP_OF_SOURCE, VERDICT_BYTES};

/// What becomes of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Action {
    /// The source passes on unchanged to the output named.
    Keep = 1,
    /// The source ends here.
    Drop = 2,
    /// The given key and value stand in the source's place on output 0.
    Replace = 3,
    /// A record beside the source, on the output named.
    Emit = 4,
    /// The failure policy decides about the source; the value is the message.
    Reject = 5,
}

impl Action {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Keep,
            2 => Self::Drop,
            3 => Self::Replace,
            4 => Self::Emit,
            5 => Self::Reject,
            _ => return None,
        })
    }
}

/// The key of a replaced or emitted record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key<'a> {
    /// The source's key.
    OfSource,
    /// No key.
    Null,
    /// These bytes.
    Bytes(&'a [u8]),
}

impl<'a> From<Option<&'a [u8]>> for Key<'a> {
    fn from(key: Option<&'a [u8]>) -> Self {
        key.map_or(Key::Null, Key::Bytes)
    }
}

/// A verdict that breaks a rule of the format: the plugin "returned garbage".
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum VerdictError {
    /// The list is not a whole number of verdicts.
    #[error("{bytes} bytes of verdicts are not a multiple of 32; build the plugin with the SDK of this ABI")]
    BadLength {
        /// Bytes given.
        bytes: usize,
    },
    /// No such action.
    #[error("verdict {at}: action {action} does not exist (1 keep, 2 drop, 3 replace, 4 emit, 5 reject)")]
    BadAction {
        /// Index of the verdict in its list.
        at: usize,
        /// The byte found.
        action: u8,
    },
    /// No such source record.
    #[error("verdict for record {source_index}, but the batch has {count}; use the index of the record being judged")]
    BadSource {
        /// The source named.
        source_index: u32,
        /// Records in the batch.
        count: u32,
    },
    /// Sources must not decrease.
    #[error("verdict for record {source_index} after one for record {after}; judge records in the batch's order")]
    OutOfOrder {
        /// The source named.
        source_index: u32,
        /// The source judged before it.
        after: u32,
    },
    /// Two decisions about the same record.
    #[error("record {source_index} was decided twice; a record is kept, dropped, replaced or rejected once")]
    DecidedTwice {
        /// The source named.
        source_index: u32,
    },
    /// The output was not declared, or the action takes none.
    #[error(
        "record {source_index}: output {output} was not declared (there are {declared}) or does not go with this action; name it in the manifest's [io] outputs"
    )]
    BadOutput {
        /// The source named.
        source_index: u32,
        /// The output named.
        output: u16,
        /// Named outputs the plugin has.
        declared: u16,
    },
    /// A timestamp before 1970.
    #[error("record {source_index}: timestamp {timestamp} is negative; give milliseconds since 1970, or -1 for the source's")]
    BadTimestamp {
        /// The source named.
        source_index: u32,
        /// The timestamp.
        timestamp: i64,
    },
    /// A key or value lies outside the arena.
    #[error("record {source_index}: {part} lies outside the arena; it must point into the bytes given with the same emit")]
    OutOfArena {
        /// The source named.
        source_index: u32,
        /// key or value.
        part: &'static str,
    },
}

/// One verdict as it lies in the list; ranges point into the arena of the same emit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// Index of the input record.
    pub source: u32,
    /// What becomes of it.
    pub action: Action,
    /// [`FLAG_KEY`], [`FLAG_VALUE`], [`FLAG_KEY_OF_SOURCE`].
    pub flags: u8,
    /// 0 the stream, n the n-th declared output.
    pub output: u16,
    /// Position of the key in the arena.
    pub key_start: u32,
    /// Its length.
    pub key_bytes: u32,
    /// Position of the value in the arena.
    pub value_start: u32,
    /// Its length.
    pub value_bytes: u32,
    /// ms, or [`TIMESTAMP_OF_SOURCE`].
    pub timestamp: i64,
}

impl Verdict {
    /// A verdict without key, value or output.
    #[must_use]
    pub fn new(source: u32, action: Action) -> Self {
        Self {
            source,
            action,
            flags: 0,
            output: OUTPUT_STREAM,
            key_start: 0,
            key_bytes: 0,
            value_start: 0,
            value_bytes: 0,
            timestamp: TIMESTAMP_OF_SOURCE,
        }
    }

    /// Its 32 bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; VERDICT_BYTES] {
        let mut bytes = [0; VERDICT_BYTES];
        bytes[0..4].copy_from_slice(&self.source.to_le_bytes());
        bytes[4] = self.action as u8;
        bytes[5] = self.flags;
        bytes[6..8].copy_from_slice(&self.output.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.key_start.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.key_bytes.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.value_start.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.value_bytes.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.timestamp.to_le_bytes());
        bytes
    }

    /// Reads 32 bytes; the error is the action's byte.
    ///
    /// # Errors
    /// The unknown action.
    #[inline]
    pub fn decode(bytes: &[u8; VERDICT_BYTES]) -> Result<Self, u8> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Ok(Self {
            source: word(0),
            action: Action::from_byte(bytes[4]).ok_or(bytes[4])?,
            flags: bytes[5],
            output: u16::from_le_bytes([bytes[6], bytes[7]]),
            key_start: word(8),
            key_bytes: word(12),
            value_start: word(16),
            value_bytes: word(20),
            timestamp: (u64::from(word(24)) | u64::from(word(28)) << 32).cast_signed(),
        })
    }

    /// The record's timestamp, given its source's.
    #[inline]
    #[must_use]
    pub fn timestamp_or(&self, of_source: i64) -> i64 {
        if self.timestamp == TIMESTAMP_OF_SOURCE { of_source } else { self.timestamp }
    }

    /// Range of the key in the arena, where the verdict carries one of its own.
    #[inline]
    #[must_use]
    pub fn key_range(&self) -> Option<(u32, u32)> {
        let own = self.flags & (FLAG_KEY | FLAG_KEY_OF_SOURCE) == FLAG_KEY;
        own.then_some((self.key_start, self.key_bytes))
    }

    /// Whether the record keeps its source's key.
    #[inline]
    #[must_use]
    pub fn keeps_key(&self) -> bool {
        self.flags & FLAG_KEY_OF_SOURCE != 0
    }

    /// Range of the value in the arena, where the verdict carries one.
    #[inline]
    #[must_use]
    pub fn value_range(&self) -> Option<(u32, u32)> {
        (self.flags & FLAG_VALUE != 0).then_some((self.value_start, self.value_bytes))
    }

    /// Whether the arena matters to this verdict: only what carries bytes of its own is checked against it.
    #[inline]
    fn carries_bytes(&self) -> bool {
        matches!(self.action, Action::Replace | Action::Emit | Action::Reject)
    }
}

/// One `emit`: verdicts and the arena they point into.
#[derive(Debug, Clone, Copy)]
pub struct VerdictView<'a> {
    verdicts: &'a [[u8; VERDICT_BYTES]],
    arena: &'a [u8],
}

impl<'a> VerdictView<'a> {
    /// Looks at the two lists of an `emit`.
    ///
    /// # Errors
    /// [`VerdictError::BadLength`] if the first is not a multiple of 32 bytes.
    pub fn parse(verdicts: &'a [u8], arena: &'a [u8]) -> Result<Self, VerdictError> {
        let (whole, rest) = verdicts.as_chunks::<VERDICT_BYTES>();
        if !rest.is_empty() {
            return Err(VerdictError::BadLength { bytes: verdicts.len() });
        }
        Ok(Self { verdicts: whole, arena })
    }

    /// Number of verdicts.
    #[must_use]
    pub fn len(&self) -> usize {
        self.verdicts.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.verdicts.is_empty()
    }

    /// The verdicts in order, each checked by itself; [`VerdictRules`] checks them together.
    #[must_use]
    pub fn verdicts(&self) -> Verdicts<'a> {
        Verdicts { view: *self, at: 0 }
    }

    /// The key of a verdict of this view; `None` if it has none of its own or it lies outside.
    #[inline]
    #[must_use]
    pub fn key(&self, verdict: &Verdict) -> Key<'a> {
        if verdict.keeps_key() {
            return Key::OfSource;
        }
        let bytes = verdict.key_range().and_then(|(start, bytes)| self.bytes(start, bytes));
        bytes.into()
    }

    /// The value of a verdict of this view; a reject's is its message.
    #[inline]
    #[must_use]
    pub fn value(&self, verdict: &Verdict) -> Option<&'a [u8]> {
        verdict.value_range().and_then(|(start, bytes)| self.bytes(start, bytes))
    }

    fn bytes(&self, start: u32, bytes: u32) -> Option<&'a [u8]> {
        range(self.arena, start, bytes).flatten()
    }
}

/// Iterator over the verdicts of one `emit`.
#[derive(Debug, Clone)]
pub struct Verdicts<'a> {
    view: VerdictView<'a>,
    at: usize,
}

impl Iterator for Verdicts<'_> {
    type Item = Result<Verdict, VerdictError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let bytes = self.view.verdicts.get(self.at)?;
        self.at += 1;
        Some(Verdict::decode(bytes).map_err(|action| VerdictError::BadAction { at: self.at - 1, action }))
    }
}

/// Holds the verdicts of one batch, over all of its emits, to the rules of the format.
#[derive(Debug, Clone)]
pub struct VerdictRules {
    count: u32,
    outputs: u16,
    last: Option<u32>,
    decided: bool,
}

impl VerdictRules {
    /// Rules for a batch of `count` records and a plugin with `outputs` declared outputs.
    #[must_use]
    pub fn new(count: u32, outputs: u16) -> Self {
        Self { count, outputs, last: None, decided: false }
    }

    /// Checks the next verdict, whose arena has `arena_bytes`.
    ///
    /// # Errors
    /// The rule it breaks.
    #[inline]
    pub fn check(&mut self, verdict: &Verdict, arena_bytes: usize) -> Result<(), VerdictError> {
        let source_index = verdict.source;
        if source_index >= self.count {
            return Err(VerdictError::BadSource { source_index, count: self.count });
        }
        match self.last {
            Some(after) if source_index < after => {
                return Err(VerdictError::OutOfOrder { source_index, after });
            }
            Some(same) if source_index == same => {}
            _ => self.decided = false,
        }
        self.last = Some(source_index);
        self.check_output(verdict)?;
        let decides = match verdict.action {
            Action::Keep => verdict.output == OUTPUT_STREAM,
            Action::Drop | Action::Replace | Action::Reject => true,
            Action::Emit => false,
        };
        if decides && core::mem::replace(&mut self.decided, true) {
            return Err(VerdictError::DecidedTwice { source_index });
        }
        if verdict.carries_bytes() {
            if verdict.timestamp < TIMESTAMP_OF_SOURCE {
                return Err(VerdictError::BadTimestamp { source_index, timestamp: verdict.timestamp });
            }
            check_range(verdict.key_range(), arena_bytes, source_index, "key")?;
            check_range(verdict.value_range(), arena_bytes, source_index, "value")?;
        }
        Ok(())
    }

    /// Keep and emit go to any output, replace to the stream; drop and reject have none.
    #[inline]
    fn check_output(&self, verdict: &Verdict) -> Result<(), VerdictError> {
        let most = match verdict.action {
            Action::Keep | Action::Emit => self.outputs,
            Action::Drop | Action::Replace | Action::Reject => OUTPUT_STREAM,
        };
        if verdict.output > most {
            return Err(VerdictError::BadOutput { source_index: verdict.source, output: verdict.output, declared: self.outputs });
        }
        Ok(())
    }
}

#[inline]
fn check_range(range: Option<(u32, u32)>, arena_bytes: usize, source_index: u32, part: &'static str) -> Result<(), VerdictError> {
    match range {
        Some((start, bytes)) if u64::from(start) + u64::from(bytes) > arena_bytes as u64 => {
            Err(VerdictError::OutOfArena { source_index, part })
        }
        _ => Ok(()),
    }
}

/// Collects verdicts and their arena; cleared and used again from batch to batch.
#[derive(Debug, Clone, Default)]
pub struct VerdictWriter {
    verdicts: Vec<u8>,
    arena: Vec<u8>,
}

impl VerdictWriter {
    /// An empty writer.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Passes `source` on unchanged, to `output`.
    #[inline]
    pub fn keep(&mut self, source: u32, output: u16) {
        self.push(&Verdict { output, ..Verdict::new(source, Action::Keep) });
    }

    /// Ends `source` here.
    #[inline]
    pub fn drop_source(&mut self, source: u32) {
        self.push(&Verdict::new(source, Action::Drop));
    }

    /// Puts `key` and `value` in the place of `source`; no timestamp means the source's.
    pub fn replace(&mut self, source: u32, key: Key<'_>, value: Option<&[u8]>, at: Option<i64>) {
        let verdict = Verdict::new(source, Action::Replace);
        self.push_with(verdict, key, value, at);
    }

    /// Adds a record beside `source`, on `output`.
    pub fn emit(&mut self, source: u32, output: u16, key: Key<'_>, value: Option<&[u8]>, at: Option<i64>) {
        let verdict = Verdict { output, ..Verdict::new(source, Action::Emit) };
        self.push_with(verdict, key, value, at);
    }

    /// Hands `source` to the failure policy.
    pub fn reject(&mut self, source: u32, message: &str) {
        let verdict = Verdict::new(source, Action::Reject);
        self.push_with(verdict, Key::Null, Some(message.as_bytes()), None);
    }

    /// Appends a verdict whose ranges already lie in the arena.
    #[inline]
    pub fn push(&mut self, verdict: &Verdict) {
        self.verdicts.extend_from_slice(&verdict.encode());
    }

    /// The arena, to format a value straight into it; then [`VerdictWriter::push`] a verdict that points there.
    pub fn arena_mut(&mut self) -> &mut Vec<u8> {
        &mut self.arena
    }

    /// The verdicts so far.
    #[must_use]
    pub fn verdicts(&self) -> &[u8] {
        &self.verdicts
    }

    /// The arena so far.
    #[must_use]
    pub fn arena(&self) -> &[u8] {
        &self.arena
    }

    /// Whether nothing was said.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.verdicts.is_empty()
    }

    /// Forgets everything, keeps the memory.
    pub fn clear(&mut self) {
        self.verdicts.clear();
        self.arena.clear();
    }

    /// Where a record starts, to take back what it said with [`VerdictWriter::rewind`].
    #[must_use]
    pub fn mark(&self) -> (usize, usize) {
        (self.verdicts.len(), self.arena.len())
    }

    /// Takes back everything since `mark`.
    pub fn rewind(&mut self, mark: (usize, usize)) {
        self.verdicts.truncate(mark.0);
        self.arena.truncate(mark.1);
    }

    fn push_with(&mut self, verdict: Verdict, key: Key<'_>, value: Option<&[u8]>, at: Option<i64>) {
        let mut verdict = verdict;
        match key {
            Key::OfSource => verdict.flags |= FLAG_KEY_OF_SOURCE,
            Key::Null => {}
            Key::Bytes(bytes) => {
                verdict.flags |= FLAG_KEY;
                (verdict.key_start, verdict.key_bytes) = self.put(bytes);
            }
        }
        if let Some(bytes) = value {
            verdict.flags |= FLAG_VALUE;
            (verdict.value_start, verdict.value_bytes) = self.put(bytes);
        }
        verdict.timestamp = at.unwrap_or(TIMESTAMP_OF_SOURCE);
        self.push(&verdict);
    }

    /// A guest's memory is 32-bit, so positions fit; natively the host's output cap is far below.
    fn put(&mut self, bytes: &[u8]) -> (u32, u32) {
        let start = self.arena.len() as u32;
        self.arena.extend_from_slice(bytes);
        (start, bytes.len() as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Said {
        Keep(u16),
        Drop,
        Replace(Option<Vec<u8>>, Option<Vec<u8>>, Option<i64>),
        Emit(u16, Option<Vec<u8>>, Option<i64>),
        Reject(alloc::string::String),
    }

    fn said() -> impl Strategy<Value = Said> {
        let bytes = || proptest::option::of(proptest::collection::vec(any::<u8>(), 0..20));
        let at = || proptest::option::of(0i64..i64::MAX);
        prop_oneof![
            (0u16..4).prop_map(Said::Keep),
            Just(Said::Drop),
            (bytes(), bytes(), at()).prop_map(|(k, v, t)| Said::Replace(k, v, t)),
            (0u16..4, bytes(), at()).prop_map(|(o, v, t)| Said::Emit(o, v, t)),
            "[a-z ]{0,20}".prop_map(Said::Reject),
        ]
    }

    fn write(all: &[Said]) -> VerdictWriter {
        let mut out = VerdictWriter::new();
        for (source, said) in (0u32..).zip(all) {
            match said {
                Said::Keep(output) => out.keep(source, *output),
                Said::Drop => out.drop_source(source),
                Said::Replace(key, value, at) => {
                    out.replace(source, key.as_deref().into(), value.as_deref(), *at);
                }
                Said::Emit(output, value, at) => {
                    out.emit(source, *output, Key::OfSource, value.as_deref(), *at);
                }
                Said::Reject(message) => out.reject(source, message),
            }
        }
        out
    }

    proptest! {
        #[test]
        fn what_is_said_is_read(all in proptest::collection::vec(said(), 0..40)) {
            let out = write(&all);
            let view = VerdictView::parse(out.verdicts(), out.arena()).unwrap();
            prop_assert_eq!(view.len(), all.len());
            let mut rules = VerdictRules::new(all.len() as u32, 3);
            for ((source, verdict), said) in (0u32..).zip(view.verdicts()).zip(&all) {
                let verdict = verdict.unwrap();
                rules.check(&verdict, out.arena().len()).unwrap();
                prop_assert_eq!(verdict.source, source);
                match said {
                    Said::Keep(output) => prop_assert_eq!((verdict.action, verdict.output), (Action::Keep, *output)),
                    Said::Drop => prop_assert_eq!(verdict.action, Action::Drop),
                    Said::Replace(key, value, at) => {
                        prop_assert_eq!(verdict.action, Action::Replace);
                        prop_assert_eq!(view.key(&verdict), key.as_deref().into());
                        prop_assert_eq!(view.value(&verdict), value.as_deref());
                        prop_assert_eq!(verdict.timestamp_or(-7), at.unwrap_or(-7));
                    }
                    Said::Emit(output, value, at) => {
                        prop_assert_eq!((verdict.action, verdict.output), (Action::Emit, *output));
                        prop_assert_eq!(view.key(&verdict), Key::OfSource);
                        prop_assert_eq!(view.value(&verdict), value.as_deref());
                        prop_assert_eq!(verdict.timestamp_or(-7), at.unwrap_or(-7));
                    }
                    Said::Reject(message) => {
                        prop_assert_eq!(verdict.action, Action::Reject);
                        prop_assert_eq!(view.value(&verdict), Some(message.as_bytes()));
                    }
                }
            }
        }

        #[test]
        fn any_bytes_are_an_answer(verdicts in proptest::collection::vec(any::<u8>(), 0..200), arena in proptest::collection::vec(any::<u8>(), 0..50)) {
            if let Ok(view) = VerdictView::parse(&verdicts, &arena) {
                let mut rules = VerdictRules::new(3, 1);
                for verdict in view.verdicts().flatten() {
                    if rules.check(&verdict, arena.len()).is_ok() {
                        let _ = (view.key(&verdict), view.value(&verdict));
                    }
                }
            }
        }

        #[test]
        fn encode_then_decode(bytes in any::<[u8; 32]>()) {
            let mut bytes = bytes;
            bytes[4] = 1 + bytes[4] % 5;
            prop_assert_eq!(Verdict::decode(&bytes).unwrap().encode(), bytes);
        }
    }

    fn broken(count: u32, outputs: u16, verdicts: &[Verdict]) -> VerdictError {
        let mut rules = VerdictRules::new(count, outputs);
        verdicts.iter().find_map(|v| rules.check(v, 10).err()).expect("a rule is broken")
    }

    #[test]
    fn each_rule_is_held() {
        let keep = |source| Verdict::new(source, Action::Keep);
        let emit = |source, output| Verdict { output, ..Verdict::new(source, Action::Emit) };
        assert_eq!(broken(2, 0, &[keep(2)]), VerdictError::BadSource { source_index: 2, count: 2 });
        assert_eq!(broken(2, 0, &[keep(1), keep(0)]), VerdictError::OutOfOrder { source_index: 0, after: 1 });
        let twice = [keep(0), emit(0, 0), Verdict::new(0, Action::Drop)];
        assert_eq!(broken(2, 0, &twice), VerdictError::DecidedTwice { source_index: 0 });
        let to_two = VerdictError::BadOutput { source_index: 0, output: 2, declared: 1 };
        assert_eq!(broken(2, 1, &[emit(0, 2)]), to_two);
        let replace = Verdict { output: 1, ..Verdict::new(0, Action::Replace) };
        assert!(matches!(broken(2, 1, &[replace]), VerdictError::BadOutput { output: 1, .. }));
        let value = Verdict { flags: FLAG_VALUE, value_start: 9, value_bytes: 2, ..emit(0, 0) };
        let outside = VerdictError::OutOfArena { source_index: 0, part: "value" };
        assert_eq!(broken(1, 0, &[value]), outside);
        let key = Verdict { flags: FLAG_KEY, key_start: u32::MAX, key_bytes: 1, ..emit(0, 0) };
        let outside = VerdictError::OutOfArena { source_index: 0, part: "key" };
        assert_eq!(broken(1, 0, &[key]), outside);
        let early = Verdict { timestamp: -2, ..emit(0, 0) };
        assert_eq!(broken(1, 0, &[early]), VerdictError::BadTimestamp { source_index: 0, timestamp: -2 });
    }

    #[test]
    fn copies_to_several_outputs_beside_one_decision_are_fine() {
        let mut rules = VerdictRules::new(1, 2);
        for (action, output) in [(Action::Keep, 1), (Action::Keep, 2), (Action::Emit, 1), (Action::Keep, 0)] {
            rules.check(&Verdict { output, ..Verdict::new(0, action) }, 0).unwrap();
        }
        // A keep's arena range is ignored.
        let keep = Verdict { flags: 3, key_bytes: 99, ..Verdict::new(0, Action::Keep) };
        VerdictRules::new(1, 0).check(&keep, 0).unwrap();
    }

    #[test]
    fn a_cut_list_and_an_unknown_action_are_named() {
        let bytes = vec![1; 33];
        let cut = VerdictView::parse(&bytes, &[]).unwrap_err();
        assert_eq!(cut, VerdictError::BadLength { bytes: 33 });
        let mut bytes = Verdict::new(0, Action::Keep).encode();
        bytes[4] = 6;
        let view = VerdictView::parse(&bytes, &[]).unwrap();
        let unknown = view.verdicts().next().unwrap();
        assert_eq!(unknown, Err(VerdictError::BadAction { at: 0, action: 6 }));
    }

    #[test]
    fn rewind_takes_back_what_a_record_said() {
        let mut out = VerdictWriter::new();
        out.keep(0, 0);
        let (mark, before) = (out.mark(), out.verdicts().to_vec());
        out.emit(1, 0, Key::Null, Some(b"x"), None);
        out.rewind(mark);
        assert_eq!(out.verdicts(), before);
        assert!(out.arena().is_empty());
    }
}
