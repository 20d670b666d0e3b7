//! What a plugin says about a record, written as verdicts while it says it.
//!
//! A record's verdicts stay in the buffer until the record is finished, so that an error takes back all of them; the
//! buffer goes to the host in chunks of [`FLUSH_BYTES`] and is used again: memory stays flat however much passes.
use std::fmt;

use weir_plugin_abi::{Action, FLAG_KEY, FLAG_KEY_OF_SOURCE, FLAG_VALUE, OUTPUT_STREAM, TIMESTAMP_OF_SOURCE, Verdict};

use crate::arena::Arena;
use crate::instance::Host;
use crate::names::{self, Metric, Output, OutputMap, Target};
use crate::payload::{Buffer, IntoKey, KeyWritten, Payload, SourceKey};
use crate::{Error, Result};

/// A chunk's size: one call into the host costs as much as copying some kilobytes.
pub(crate) const FLUSH_BYTES: usize = 256 * 1024;
/// Memory a buffer keeps after a record that needed more.
const KEPT_BYTES_MAX: usize = 2 * FLUSH_BYTES;
const _: () = assert!(KEPT_BYTES_MAX >= FLUSH_BYTES);

const TWICE: Error = Error::fixed("the record was decided twice; keep, drop or replace it once");
const AT_END: Error = Error::fixed("batch_end can only emit; every record is decided by then");

/// Verdicts, arena and counters of one instance, used again from batch to batch.
#[derive(Debug)]
pub(crate) struct Buffers {
    verdicts: Vec<u8>,
    arena: Arena,
    counts: Vec<u64>,
    metrics: &'static [&'static str],
    outputs: OutputMap,
}

impl Buffers {
    pub(crate) fn new(outputs: OutputMap, metrics: &'static [&'static str]) -> Self {
        Self { verdicts: Vec::new(), arena: Arena::default(), counts: vec![0; metrics.len()], metrics, outputs }
    }

    /// Empties everything, after a batch that failed.
    pub(crate) fn clear(&mut self) {
        self.verdicts.clear();
        self.arena.truncate(0);
        self.counts.fill(0);
    }

    /// Sends what there is if a chunk is full.
    #[inline]
    pub(crate) fn flush_if_full(&mut self, host: &mut impl Host) {
        if self.verdicts.len() + self.arena.len() >= FLUSH_BYTES {
            self.flush(host);
        }
    }

    /// Sends what there is.
    pub(crate) fn flush(&mut self, host: &mut impl Host) {
        if self.verdicts.is_empty() {
            return;
        }
        host.emit(&self.verdicts, self.arena.as_slice());
        self.verdicts.clear();
        if self.verdicts.capacity() > KEPT_BYTES_MAX {
            self.verdicts.shrink_to(FLUSH_BYTES);
        }
        self.arena.truncate(0);
        if self.arena.capacity() > KEPT_BYTES_MAX {
            self.arena.clear_to(FLUSH_BYTES);
        }
    }

    /// Sends the counters that moved.
    pub(crate) fn flush_counts(&mut self, host: &mut impl Host) {
        for (id, count) in (0u32..).zip(&mut self.counts) {
            if *count != 0 {
                host.count(id, std::mem::take(count));
            }
        }
    }

    #[inline]
    fn push(&mut self, verdict: &Verdict) {
        self.verdicts.extend_from_slice(&verdict.encode());
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decision {
    /// Nothing decided: kept, unless something was emitted or it was sent elsewhere.
    Open,
    /// `keep`: written only if there is any other verdict, for a record without a verdict is kept.
    Keep,
    /// Dropped or replaced; the verdict is written.
    Done,
    /// Decided more than once.
    Twice,
    /// In `batch_end`, where the last record has no verdict and so is kept.
    EndKept,
    /// In `batch_end`, where the last record has its verdicts.
    End,
}

/// Where a plugin says what becomes of a record.
///
/// One decision a record: [`keep`](Self::keep), [`drop`](Self::drop) or [`replace`](Self::replace). Beside it, or
/// instead of it, the record can be kept to outputs and more can be emitted. Emitting or keeping to an output without a
/// decision *moves*: the record leaves the stream. Saying nothing at all keeps it. Headers always travel along.
#[derive(Debug)]
pub struct Out<'a> {
    buffers: &'a mut Buffers,
    source: u32,
    source_key: Option<&'a [u8]>,
    decision: Decision,
    verdicts_start: usize,
    arena_start: usize,
}

impl<'a> Out<'a> {
    #[inline]
    pub(crate) fn of_record(buffers: &'a mut Buffers, source: u32, source_key: Option<&'a [u8]>) -> Self {
        let (verdicts_start, arena_start) = (buffers.verdicts.len(), buffers.arena.len());
        Self { buffers, source, source_key, decision: Decision::Open, verdicts_start, arena_start }
    }

    #[inline]
    pub(crate) fn of_end(buffers: &'a mut Buffers, last: u32, last_said: bool) -> Self {
        let decision = if last_said { Decision::End } else { Decision::EndKept };
        Self { decision, ..Self::of_record(buffers, last, None) }
    }

    /// Passes the record on unchanged.
    ///
    /// # Errors
    /// A second decision about the same record.
    #[inline]
    pub fn keep(&mut self) -> Result {
        self.decide(Decision::Keep)
    }

    /// Sends the record unchanged to an output; in the stream it stays only if kept there as well.
    ///
    /// # Errors
    /// An output that was not declared.
    #[inline]
    pub fn keep_to<'t>(&mut self, output: impl Into<Target<'t, Output>>) -> Result {
        let output = self.buffers.outputs.number(output.into())?;
        if output == OUTPUT_STREAM {
            return self.keep();
        }
        self.not_at_end()?;
        self.buffers.push(&Verdict { output, ..Verdict::new(self.source, Action::Keep) });
        Ok(())
    }

    /// Ends the record here: it is acknowledged and stored nowhere.
    ///
    /// # Errors
    /// A second decision about the same record.
    #[inline]
    pub fn drop(&mut self) -> Result {
        self.decide(Decision::Done)?;
        self.buffers.push(&Verdict::new(self.source, Action::Drop));
        Ok(())
    }

    /// Puts a value in the place of the record's; key, timestamp and headers stay.
    ///
    /// # Errors
    /// A second decision about the same record, or a value that cannot be written.
    #[inline]
    pub fn replace(&mut self, value: impl Payload) -> Result {
        self.replace_with(SourceKey, value)
    }

    /// Puts key and value in the place of the record's; timestamp and headers stay. The partition is chosen already and
    /// stays too.
    ///
    /// # Errors
    /// A second decision about the same record, or bytes that cannot be written.
    #[inline]
    pub fn replace_with(&mut self, key: impl IntoKey, value: impl Payload) -> Result {
        self.decide(Decision::Done)?;
        self.write(Action::Replace, OUTPUT_STREAM, TIMESTAMP_OF_SOURCE, key, value)
    }

    /// Adds a record on an output, with the source's timestamp and headers.
    ///
    /// # Errors
    /// An output that was not declared, or bytes that cannot be written.
    #[inline]
    pub fn emit<'t>(&mut self, output: impl Into<Target<'t, Output>>, key: impl IntoKey, value: impl Payload) -> Result {
        self.emit_at(output, TIMESTAMP_OF_SOURCE, key, value)
    }

    /// Adds a record with a timestamp of its own, ms since 1970.
    ///
    /// # Errors
    /// As [`Out::emit`].
    #[inline]
    pub fn emit_at<'t>(
        &mut self,
        output: impl Into<Target<'t, Output>>,
        timestamp: i64,
        key: impl IntoKey,
        value: impl Payload,
    ) -> Result {
        let output = self.buffers.outputs.number(output.into())?;
        if self.decision == Decision::EndKept {
            // Emitting for a record without a verdict would move it out of the stream.
            self.buffers.push(&Verdict::new(self.source, Action::Keep));
            self.decision = Decision::End;
        }
        self.write(Action::Emit, output, timestamp, key, value)
    }

    /// Rejects the record: `return out.reject("no id")`. The failure policy of the attachment decides what becomes of it.
    ///
    /// # Errors
    /// Always: it is the error to return.
    #[cold]
    pub fn reject(&mut self, message: impl fmt::Display) -> Result {
        Err(Error::new(message))
    }

    /// Adds to a counter; counters go to the host once a batch.
    #[inline]
    pub fn count<'t>(&mut self, metric: impl Into<Target<'t, Metric>>, n: u64) {
        if let Ok(at) = names::metric(self.buffers.metrics, metric.into())
            && let Some(count) = self.buffers.counts.get_mut(at)
        {
            *count = count.saturating_add(n);
        }
    }

    #[inline]
    fn decide(&mut self, decision: Decision) -> Result {
        self.not_at_end()?;
        if self.decision != Decision::Open {
            self.decision = Decision::Twice;
            return Err(TWICE);
        }
        self.decision = decision;
        Ok(())
    }

    #[inline]
    fn not_at_end(&self) -> Result {
        if matches!(self.decision, Decision::End | Decision::EndKept) { Err(AT_END) } else { Ok(()) }
    }

    /// Writes key and value into the arena and the verdict that points to them.
    #[inline]
    fn write(&mut self, action: Action, output: u16, timestamp: i64, key: impl IntoKey, value: impl Payload) -> Result {
        let key_start = self.buffers.arena.len();
        let key = key.write_key(self.source_key, &mut Buffer::new(&mut self.buffers.arena))?;
        let value_start = self.buffers.arena.len();
        value.write_to(&mut Buffer::new(&mut self.buffers.arena))?;
        let end = self.buffers.arena.len();
        let position = |at: usize| u32::try_from(at).map_err(|_| Error::fixed("more than 4 GiB written for one batch"));
        let key_flag = match key {
            KeyWritten::OfSource => FLAG_KEY_OF_SOURCE,
            KeyWritten::Null => 0,
            KeyWritten::Own => FLAG_KEY,
        };
        self.buffers.push(&Verdict {
            flags: FLAG_VALUE | key_flag,
            output,
            key_start: position(key_start)?,
            key_bytes: position(value_start - key_start)?,
            value_start: position(value_start)?,
            value_bytes: position(end - value_start)?,
            timestamp,
            ..Verdict::new(self.source, action)
        });
        Ok(())
    }

    /// Closes the record: an error takes back all that was said and becomes a reject.
    #[inline]
    pub(crate) fn finish(self, result: Result) -> Finished {
        let result = if self.decision == Decision::Twice { Err(TWICE) } else { result };
        if let Err(error) = result {
            self.finish_rejected(&error);
            return Finished { rejected: true, said: true };
        }
        let said = self.buffers.verdicts.len() > self.verdicts_start;
        if said && self.decision == Decision::Keep {
            self.buffers.push(&Verdict::new(self.source, Action::Keep));
        }
        Finished { rejected: false, said }
    }

    #[cold]
    fn finish_rejected(self, error: &Error) {
        self.buffers.verdicts.truncate(self.verdicts_start);
        self.buffers.arena.truncate(self.arena_start);
        let value_start = self.arena_start as u32;
        self.buffers.arena.extend(error.message().as_bytes());
        let value_bytes = error.message().len() as u32;
        self.buffers.push(&Verdict { flags: FLAG_VALUE, value_start, value_bytes, ..Verdict::new(self.source, Action::Reject) });
    }
}

/// How a record ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Finished {
    pub(crate) rejected: bool,
    /// Whether it has a verdict.
    pub(crate) said: bool,
}
