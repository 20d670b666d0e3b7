//! What the log should hold, kept in the simplest way there is, and the comparison with what it does hold.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::mpsc;

use super::Tally;
use super::keyed::{Keyed, row_of};
use super::parsed::{BEHIND_OFFSET, Library, Parsed};
use crate::batches;
use crate::core::Engine;
use crate::read::ReadPath;
use crate::report::RecoveryReport;
use crate::types::*;
use std::sync::Arc;

/// What became of an attempt to append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// No answer yet, or one that says nothing.
    Pending,
    /// Acknowledged, or found by a recovery.
    Durable,
    /// Refused, or not found by a recovery: must never be seen.
    Dead,
    /// Acknowledged and lost to damage.
    Damaged,
}

#[derive(Clone)]
pub(super) struct Attempt {
    pub(super) append: Append,
    pub(super) state: State,
    /// For a resend: the attempt it repeats.
    original: Option<usize>,
    /// Offset the producer was told.
    told: i64,
    /// The same for all that say the same: the first attempt to send a lane's batch.
    logical: usize,
}

#[derive(Clone)]
pub(super) struct Model {
    pub(super) attempts: Vec<Attempt>,
    /// In order of submission.
    pending: VecDeque<usize>,
    /// Open partitions: base offset to (attempt, entry).
    pub(super) partitions: BTreeMap<PartitionId, BTreeMap<i64, (usize, usize)>>,
    ends: BTreeMap<PartitionId, i64>,
    starts: BTreeMap<PartitionId, i64>,
    /// Starts that producers asked for.
    raised: BTreeMap<PartitionId, i64>,
    lanes: BTreeMap<ProducerKey, u64>,
    /// First attempts of the lanes' batches.
    firsts: BTreeMap<(ProducerKey, u64), usize>,
    meta: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Partitions once everything pending has gone through.
    believed: BTreeSet<PartitionId>,
    pub(super) damage_allowed: bool,
    /// Of wide histories.
    pub(super) keyed: Option<Keyed>,
    pub(super) library: Library,
    /// Unix time of the check.
    pub(super) now_ms: u64,
}

/// Base offsets with (attempt, entry), in their order.
pub(super) type Entries = Vec<(i64, (usize, usize))>;

/// What was read, and the gaps between.
#[derive(Default)]
pub(super) struct Contents {
    pub(super) partitions: BTreeMap<PartitionId, Entries>,
    pub(super) gaps: Vec<(PartitionId, i64, i64)>,
    /// Of keyed partitions: base offsets with what the batches hold, in their order.
    pub(super) keyed: BTreeMap<PartitionId, Vec<(i64, Rc<Parsed>)>>,
}

impl Model {
    pub(super) fn new(damage_allowed: bool) -> Model {
        Model {
            attempts: Vec::new(),
            pending: VecDeque::new(),
            partitions: BTreeMap::new(),
            ends: BTreeMap::new(),
            starts: BTreeMap::new(),
            raised: BTreeMap::new(),
            lanes: BTreeMap::new(),
            firsts: BTreeMap::new(),
            meta: BTreeMap::new(),
            believed: BTreeSet::new(),
            damage_allowed,
            keyed: None,
            library: Library::default(),
            now_ms: 0,
        }
    }

    /// Whether every attempt has been answered.
    pub(super) fn is_settled(&self) -> bool {
        self.pending.is_empty()
    }

    pub(super) fn believes_open(&self, id: PartitionId) -> bool {
        self.believed.contains(&id)
    }

    pub(super) fn believed_open(&self) -> Vec<PartitionId> {
        self.believed.iter().copied().collect()
    }

    pub(super) fn attempted(&mut self, append: Append, original: Option<usize>) {
        for op in &append.partitions {
            match op {
                PartitionOp::Open(id) => self.believed.insert(*id),
                PartitionOp::Drop(id) => self.believed.remove(id),
                PartitionOp::RaiseStart(..) | PartitionOp::SetClass(..) => true,
            };
        }
        let attempt = self.attempts.len();
        let logical = match append.mark {
            Some(mark) => *self.firsts.entry((mark.key, mark.base_sequence)).or_insert(attempt),
            None => attempt,
        };
        self.pending.push_back(attempt);
        self.attempts.push(Attempt { append, state: State::Pending, original, told: -1, logical });
    }

    pub(super) fn committed(&mut self, attempt: usize, base_offsets: &[i64], tally: &mut Tally) -> Result<(), String> {
        // A resend of what was still pending, or of what had died, is answered in its own turn; all others keep their order.
        let place = self.pending.iter().position(|pending| *pending == attempt);
        let place = place.ok_or_else(|| format!("append {attempt} was answered twice"))?;
        if self.pending.iter().take(place).any(|earlier| !self.is_repeat(*earlier)) {
            return Err(format!("append {attempt} was acknowledged before one that came earlier"));
        }
        self.pending.remove(place);
        tally.acknowledged += 1;
        let expected = self.apply(attempt);
        if expected != base_offsets {
            return Err(format!("append {attempt} got offsets {base_offsets:?} instead of {expected:?}"));
        }
        Ok(())
    }

    /// Whether an attempt may be answered out of turn: resends wait for their original.
    fn is_repeat(&self, attempt: usize) -> bool {
        self.attempts[attempt].original.is_some()
    }

    pub(super) fn was_duplicate(&mut self, attempt: usize, base_offset: i64) -> Result<(), String> {
        self.pending.retain(|pending| *pending != attempt);
        self.attempts[attempt].state = State::Dead;
        let Some(mark) = self.attempts[attempt].append.mark else {
            return Err("an append without mark is a duplicate".to_owned());
        };
        let durable_to = self.lanes.get(&mark.key).copied().unwrap_or(0);
        if mark.base_sequence + u64::from(mark.sequence_count) > durable_to {
            return Err(format!("append {attempt} was called a duplicate before its original was durable"));
        }
        let stored = self.attempts[..attempt].iter().rev().find(|earlier| {
            let same = earlier.append.mark.is_some_and(|m| (m.key, m.base_sequence) == (mark.key, mark.base_sequence));
            same && matches!(earlier.state, State::Durable | State::Damaged)
        });
        match stored {
            Some(stored) if base_offset != -1 && stored.told != base_offset && !(self.damage_allowed && stored.told == -1) => {
                Err(format!("append {attempt} is a duplicate at {base_offset}, its original is at {}", stored.told))
            }
            None if !self.damage_allowed => Err(format!("append {attempt} was called a duplicate of nothing")),
            _ => Ok(()),
        }
    }

    pub(super) fn refused(&mut self, attempt: usize, error: &AppendError) -> Result<(), String> {
        self.pending.retain(|pending| *pending != attempt);
        self.attempts[attempt].state = State::Dead;
        // What it would have opened or dropped stays as it was.
        self.believed = self.partitions.keys().copied().collect();
        for pending in &self.pending {
            for op in &self.attempts[*pending].append.partitions {
                match op {
                    PartitionOp::Open(id) => self.believed.insert(*id),
                    PartitionOp::Drop(id) => self.believed.remove(id),
                    PartitionOp::RaiseStart(..) | PartitionOp::SetClass(..) => true,
                };
            }
        }
        let expected = matches!(
            error,
            AppendError::Full
                | AppendError::ShuttingDown
                | AppendError::SequenceGap { .. }
                | AppendError::UnknownPartition(_)
                | AppendError::Fenced { .. }
                // Of small segments little is left for the state of many producers.
                | AppendError::MetaFull { .. }
        );
        if expected { Ok(()) } else { Err(format!("append {attempt} was refused: {error}")) }
    }

    /// Makes an append part of the durable state; returns the offsets it must have.
    fn apply(&mut self, attempt: usize) -> Vec<i64> {
        let append = self.attempts[attempt].append.clone();
        self.attempts[attempt].state = State::Durable;
        for op in &append.partitions {
            if let PartitionOp::Open(id) = op {
                self.partitions.entry(*id).or_default();
                self.ends.entry(*id).or_insert(0);
                self.believed.insert(*id);
            }
        }
        let mut offsets = Vec::new();
        for (n, entry) in append.entries.iter().enumerate() {
            let end = self.ends.entry(entry.partition).or_insert(0);
            offsets.push(*end);
            if append.mark.is_some_and(|mark| mark.partition == entry.partition) && self.attempts[attempt].told < 0 {
                self.attempts[attempt].told = *end;
            }
            self.partitions.entry(entry.partition).or_default().insert(*end, (attempt, n));
            *end += i64::from(entry.record_count);
        }
        if let Some(mark) = append.mark {
            self.lanes.insert(mark.key, mark.base_sequence + u64::from(mark.sequence_count));
        }
        for op in &append.meta {
            match op {
                MetaOp::Put { key, value } => self.meta.insert(key.clone(), value.clone()),
                MetaOp::Delete { key } => self.meta.remove(key),
            };
        }
        for op in &append.partitions {
            if let PartitionOp::RaiseStart(id, to) = op {
                let raised = self.raised.entry(*id).or_insert(0);
                *raised = (*raised).max(*to);
            }
            if let PartitionOp::Drop(id) = op {
                self.partitions.remove(id);
                self.ends.remove(id);
                self.starts.remove(id);
                self.believed.remove(id);
            }
        }
        offsets
    }

    /// Compares everything after a recovery.
    pub(super) fn check(
        &mut self,
        engine: &Engine<usize>,
        reads: &Arc<ReadPath>,
        report: &RecoveryReport,
        tally: &mut Tally,
    ) -> Result<(), String> {
        let contents = self.read_everything(engine, reads, tally)?;
        if !self.damage_allowed && (!report.damage.is_empty() || !contents.gaps.is_empty()) {
            tally.lost += 1;
            return Err(format!("gaps without damage: {:?}, gaps {:?}", report.damage, contents.gaps));
        }
        self.settle_pending(&contents, report);
        self.check_partitions(engine, &contents, tally)?;
        self.check_state(engine)?;
        self.believed = self.partitions.keys().copied().collect();
        Ok(())
    }

    /// Compares everything in the middle of a life, and searches by timestamp.
    pub(super) fn look(
        &mut self,
        engine: &Engine<usize>,
        reads: &Arc<ReadPath>,
        rng: &mut fastrand::Rng,
        tally: &mut Tally,
    ) -> Result<(), String> {
        let contents = self.read_everything(engine, reads, tally)?;
        if !self.damage_allowed && !contents.gaps.is_empty() {
            return Err(format!("gaps without damage: {:?}", contents.gaps));
        }
        self.check_partitions(engine, &contents, tally).map_err(|what| format!("in the middle of a life: {what}"))?;
        let ids: Vec<PartitionId> = contents.partitions.keys().copied().collect();
        for _ in 0..if ids.is_empty() { 0 } else { 3 } {
            let id = ids[rng.usize(0..ids.len())];
            tally.searches += 1;
            let Err(what) = self.search(id, &contents, reads, rng) else { continue };
            // What damage has taken from the disk a read may still have from memory, and a search that asks cold segments first has not.
            reads.forget_frames();
            if !self.damage_allowed || !self.read_everything(engine, reads, tally)?.gaps.iter().any(|(gap, ..)| *gap == id) {
                return Err(what);
            }
        }
        Ok(())
    }

    /// The first record from a time on, where timestamps rise; one from that time on, where they do not.
    fn search(&self, id: PartitionId, contents: &Contents, reads: &Arc<ReadPath>, rng: &mut fastrand::Rng) -> Result<(), String> {
        let records: Vec<(i64, i64)> = match contents.keyed.get(&id) {
            Some(batches) => row_of(batches, 0).into_iter().map(|(offset, record)| (offset, record.timestamp)).collect(),
            None => contents.partitions[&id].iter().map(|(base, (attempt, _))| (*base, *attempt as i64)).collect(),
        };
        if records.is_empty() || contents.gaps.iter().any(|(gap, ..)| *gap == id) {
            return Ok(());
        }
        let timestamp = records[rng.usize(0..records.len())].1 + rng.i64(-1..3);
        let (reply, answer) = mpsc::channel();
        reads.offset_for_timestamp(id, timestamp, Box::new(move |found| drop(reply.send(found))));
        let found = match answer.recv().unwrap_or(Err(ReadError::Busy)) {
            Ok(found) => found,
            Err(ReadError::Io(_)) if self.damage_allowed => return Ok(()),
            Err(error) => return Err(format!("searching partition {id} for {timestamp}: {error}")),
        };
        let wanted = records.iter().copied().find(|(_, at)| *at >= timestamp);
        let exact = records.is_sorted_by_key(|(_, at)| *at);
        let one_of_them = found.is_none_or(|found| found.1 >= timestamp && records.contains(&found));
        let right = found == wanted || (one_of_them && (!exact || self.may_be_passed_over(id, contents, wanted, found)));
        if right {
            Ok(())
        } else {
            Err(format!("searching partition {id} for {timestamp} gave {found:?}, the first is {wanted:?}"))
        }
    }

    /// A search asks cold segments first, a read may be answered from memory: what a compaction has left out for the sake of a later record
    /// the read still sees.
    fn may_be_passed_over(
        &self,
        id: PartitionId,
        contents: &Contents,
        wanted: Option<(i64, i64)>,
        found: Option<(i64, i64)>,
    ) -> bool {
        let (Some(batches), Some((from, _)), Some((to, _))) = (contents.keyed.get(&id), wanted, found) else { return false };
        let row = row_of(batches, 0);
        let superseded = |at: usize| row[at + 1..].iter().any(|(_, later)| later.number == row[at].1.number);
        (0..row.len()).filter(|at| (from..to).contains(&row[*at].0)).all(superseded)
    }

    /// A place between two appends of a partition.
    pub(super) fn some_base(&self, id: PartitionId, rng: &mut fastrand::Rng) -> Option<i64> {
        let entries = self.partitions.get(&id)?;
        // Most of what there is stays.
        entries.keys().nth(rng.usize(0..entries.len().div_ceil(4).max(1))).copied()
    }

    /// Pending appends are there as a prefix: up to the last one that is.
    fn settle_pending(&mut self, contents: &Contents, report: &RecoveryReport) {
        let mut found = vec![false; self.attempts.len()];
        contents.partitions.values().flatten().for_each(|(_, (attempt, _))| found[*attempt] = true);
        let pending = std::mem::take(&mut self.pending);
        let last = pending.iter().rposition(|attempt| found[*attempt]);
        let behind_damage = self.damage_allowed && !report.damage.is_empty();
        for (n, attempt) in pending.iter().enumerate() {
            // A resend whose original is stored is not stored itself; everything else before the last one found must be.
            let is_new = !self.is_repeat(*attempt) || found[*attempt];
            let lost_to_damage = behind_damage && !found[*attempt];
            if last.is_some_and(|last| n <= last) && is_new && !lost_to_damage {
                if behind_damage {
                    self.go_on_where_found(*attempt, contents);
                }
                self.apply(*attempt);
                if self.damage_allowed {
                    // Behind damage only the log knows the offset.
                    self.attempts[*attempt].told = -1;
                }
            } else {
                self.attempts[*attempt].state = State::Dead;
            }
        }
    }

    /// Of what nobody was told of, and is lost, the log may know where it ended: what came next begins there.
    fn go_on_where_found(&mut self, attempt: usize, contents: &Contents) {
        for (id, entries) in &contents.partitions {
            if let Some((base, _)) = entries.iter().find(|(_, (other, _))| *other == attempt) {
                let end = self.ends.entry(*id).or_insert(0);
                *end = (*end).max(*base);
            }
        }
    }

    fn read_everything(&self, engine: &Engine<usize>, reads: &Arc<ReadPath>, tally: &mut Tally) -> Result<Contents, String> {
        let mut contents = Contents::default();
        let bounds: Vec<(PartitionId, PartitionBounds)> = {
            let tables = engine.view().tables();
            let ids: Vec<PartitionId> = tables.partitions.iter().map(|(id, _)| id).collect();
            ids.into_iter().filter_map(|id| Some((id, tables.bounds(id)?))).collect()
        };
        for (id, PartitionBounds { start, high_watermark }) in bounds {
            let mut entries = Entries::new();
            let mut offset = start;
            while offset < high_watermark {
                match read(reads, ReadRequest { partition: id, offset, bytes_max: 20_000 }) {
                    Ok(chunk) => {
                        if chunk.next_offset <= offset {
                            return Err(format!("a read of partition {id} at {offset} does not move on"));
                        }
                        let mut expected = offset;
                        for batch in &chunk.batches {
                            let base = batches::base_offset(batch);
                            if base > expected && !self.is_keyed(id) {
                                return Err(format!("partition {id} skips from {expected} to {base}"));
                            }
                            if base < expected && base >= start && expected > offset {
                                return Err(format!("partition {id} goes back from {expected} to {base}"));
                            }
                            if self.is_keyed(id) {
                                let records = contents.keyed.entry(id).or_default();
                                let parsed = self.recognise_keyed(id, base, batch, tally)?;
                                if let Some(entry) = parsed.sent_as {
                                    put(&mut entries, base, entry);
                                    put(records, base, parsed);
                                }
                            } else {
                                put(&mut entries, base, self.recognise(id, base, batch, tally)?);
                            }
                            expected = base + batches::split(batch).flatten().map(|span| i64::from(span.offsets)).sum::<i64>();
                        }
                        offset = chunk.next_offset;
                    }
                    Err(ReadError::Gap { from, to }) if to > offset => {
                        contents.gaps.push((id, from, to));
                        offset = to;
                    }
                    Err(ReadError::Io(_)) if self.damage_allowed => {
                        contents.gaps.push((id, offset, offset + 1));
                        offset += 1;
                    }
                    Err(error) => return Err(format!("partition {id} at {offset}: {error}")),
                }
            }
            tally.note(u64::from(id.0) ^ high_watermark.cast_unsigned());
            contents.partitions.insert(id, entries);
        }
        Ok(contents)
    }

    /// What should be at a place, if it is there, byte for byte behind the offset: then it need not be looked at further.
    fn as_sent(&self, id: PartitionId, base: i64, batch: &[u8]) -> Option<(usize, usize)> {
        let (attempt, n) = *self.partitions.get(&id)?.get(&base)?;
        let entry = &self.attempts[attempt].append.entries[n];
        let same = entry.partition == id && entry.batches.get(BEHIND_OFFSET..) == batch.get(BEHIND_OFFSET..);
        same.then_some((attempt, n))
    }

    /// Whose batch this is; its bytes must be what was sent, but for the offset.
    fn recognise(&self, id: PartitionId, base: i64, batch: &[u8], tally: &mut Tally) -> Result<(usize, usize), String> {
        if let Some((attempt, n)) = self.as_sent(id, base, batch) {
            self.is_alive(attempt, tally)?;
            return Ok((attempt, n));
        }
        let mut scratch = Vec::new();
        let parsed = weir_batch::RecordBatch::verify(batch).map_err(|error| format!("partition {id}: {error}"))?;
        let first = parsed.records(&mut scratch).map_err(|error| error.to_string())?.next();
        let value = first.and_then(Result::ok).and_then(|record| record.value).unwrap_or_default();
        if value.len() < 16 {
            return Err(format!("partition {id} holds a foreign batch"));
        }
        let (attempt, n) = (crate::format::u64_at(value, 0) as usize, crate::format::u32_at(value, 8) as usize);
        let sent = self.attempts.get(attempt).ok_or_else(|| format!("partition {id} holds a batch nobody sent"))?;
        let entry = sent.append.entries.get(n).filter(|entry| entry.partition == id);
        let bytes = &entry.ok_or_else(|| format!("append {attempt} is in partition {id}, where it was not sent"))?.batches;
        if bytes.len() != batch.len() || bytes[16..] != batch[16..] {
            return Err(format!("append {attempt} has changed"));
        }
        self.is_alive(attempt, tally)?;
        Ok((attempt, n))
    }

    fn is_alive(&self, attempt: usize, tally: &mut Tally) -> Result<(), String> {
        if self.attempts[attempt].state == State::Dead {
            tally.resurrected += 1;
            return Err(format!("append {attempt} is back, although a recovery had not found it or it was refused"));
        }
        Ok(())
    }

    /// Whose batch this is, of which compaction may have left only a part, or nothing.
    fn recognise_keyed(&self, id: PartitionId, base: i64, batch: &[u8], tally: &mut Tally) -> Result<Rc<Parsed>, String> {
        let parsed = match self.as_sent(id, base, batch) {
            Some(entry) => self.library.sent(entry, batch),
            None => self.library.found(id, batch),
        };
        let parsed = parsed.map_err(|error| format!("partition {id}: {error}"))?;
        let Some((attempt, n)) = parsed.sent_as else { return Ok(parsed) };
        let sent = self.attempts.get(attempt).and_then(|sent| sent.append.entries.get(n));
        if !parsed.is_one || sent.is_none_or(|sent| sent.partition != id) {
            return Err(format!("partition {id} holds a batch nobody sent there"));
        }
        self.is_alive(attempt, tally)?;
        Ok(parsed)
    }

    fn check_partitions(&mut self, engine: &Engine<usize>, contents: &Contents, tally: &mut Tally) -> Result<(), String> {
        let open: Vec<PartitionId> = contents.partitions.keys().copied().collect();
        let expected: Vec<PartitionId> = self.partitions.keys().copied().collect();
        if open != expected && !self.damage_allowed {
            return Err(format!("partitions {open:?} are open instead of {expected:?}"));
        }
        let tables = engine.view().tables();
        for id in expected {
            let Some(bounds) = tables.bounds(id) else {
                self.forget_partition(id, tally);
                continue;
            };
            let found = &contents.partitions[&id];
            self.check_start(id, bounds)?;
            self.check_duplicates(id, found, tally)?;
            if self.is_keyed(id) {
                self.check_keyed(id, bounds, contents, tally)?;
                self.check_end(id, bounds)?;
                continue;
            }
            let model = self.partitions.get_mut(&id).expect("listed");
            while model.first_key_value().is_some_and(|(base, _)| *base < bounds.start) {
                model.pop_first();
            }
            let is_found = |base: i64, entry: (usize, usize)| {
                found.binary_search_by_key(&base, |(base, _)| *base).is_ok_and(|at| found[at].1 == entry)
            };
            let same = model.iter().map(|(base, entry)| (*base, *entry)).eq(found.iter().copied());
            let all = model.iter().map(|(base, entry)| (*base, *entry));
            let missing: Entries =
                if same { Entries::new() } else { all.filter(|(base, entry)| !is_found(*base, *entry)).collect() };
            for (base, (attempt, n)) in missing {
                let end = base + i64::from(self.attempts[attempt].append.entries[n].record_count);
                let in_gap = contents.gaps.iter().any(|(gap, from, to)| *gap == id && *from < end && base < *to);
                if self.damage_allowed && (in_gap || base >= bounds.high_watermark) {
                    if in_gap {
                        tally.in_gaps += 1
                    } else {
                        tally.unprovable += 1
                    }
                    self.attempts[attempt].state = State::Damaged;
                    self.partitions.get_mut(&id).expect("listed").remove(&base);
                } else {
                    tally.lost += 1;
                    return Err(format!("partition {id}: append {attempt} is missing at {base}, valid are {bounds:?}"));
                }
            }
            let model = &self.partitions[&id];
            if let Some((base, entry)) = found.iter().find(|(base, entry)| !same && model.get(base) != Some(entry)) {
                if !self.damage_allowed {
                    return Err(format!("partition {id} has append {} at {base}, where it should not be", entry.0));
                }
                self.partitions.get_mut(&id).expect("listed").extend(found.iter().copied());
            }
            self.check_end(id, bounds)?;
        }
        if self.damage_allowed {
            for id in open {
                self.partitions.entry(id).or_insert_with(|| contents.partitions[&id].iter().copied().collect());
                self.ends.insert(id, tables.bounds(id).map_or(0, |bounds| bounds.high_watermark));
            }
        }
        Ok(())
    }

    fn forget_partition(&mut self, id: PartitionId, tally: &mut Tally) {
        let gone = self.partitions.remove(&id).unwrap_or_default();
        tally.unprovable += gone.len() as u64;
        for (attempt, _) in gone.into_values() {
            self.attempts[attempt].state = State::Damaged;
        }
        self.ends.remove(&id);
        self.starts.remove(&id);
    }

    fn check_end(&mut self, id: PartitionId, bounds: PartitionBounds) -> Result<(), String> {
        let end = self.ends.insert(id, bounds.high_watermark).unwrap_or(0);
        if end != bounds.high_watermark && !self.damage_allowed {
            return Err(format!("partition {id} ends at {} instead of {end}", bounds.high_watermark));
        }
        Ok(())
    }

    fn check_start(&mut self, id: PartitionId, bounds: PartitionBounds) -> Result<(), String> {
        let raised = self.raised.get(&id).copied().unwrap_or(0);
        let stays = self.keyed.as_ref().is_some_and(|keyed| !keyed.expires);
        if !self.damage_allowed && (bounds.start < raised || (stays && bounds.start > raised)) {
            return Err(format!("partition {id} starts at {} instead of {raised}", bounds.start));
        }
        let shown = self.starts.insert(id, bounds.start).unwrap_or(0);
        if bounds.start < shown && !self.damage_allowed {
            return Err(format!("the start of partition {id} went back from {shown} to {}", bounds.start));
        }
        Ok(())
    }

    fn check_duplicates(&self, id: PartitionId, found: &Entries, tally: &mut Tally) -> Result<(), String> {
        // Of each logical append, a bit for each entry; there are only a few.
        let mut seen = vec![0_u64; self.attempts.len()];
        for (_, (attempt, n)) in found {
            let bit = 1 << n;
            let entries = &mut seen[self.attempts[*attempt].logical];
            if *entries & bit != 0 {
                tally.duplicated += 1;
                return Err(format!("partition {id} holds append {attempt} twice"));
            }
            *entries |= bit;
        }
        Ok(())
    }

    /// Lanes and metadata.
    fn check_state(&mut self, engine: &Engine<usize>) -> Result<(), String> {
        let meta = engine.view().meta();
        let producers = engine.view().producers();
        if self.damage_allowed {
            // What damage took is taken from the model, too.
            self.meta = meta.iter().filter(|(key, _)| key.first() != Some(&0)).map(|(k, v)| (k.clone(), v.clone())).collect();
            self.lanes = producers.iter().map(|(key, state)| (*key, state.next_sequence)).collect();
            return Ok(());
        }
        let own = |key: &Vec<u8>| key.first() == Some(&0);
        if !meta.iter().filter(|(key, _)| !own(key)).eq(&self.meta) {
            return Err("the metadata is not what was acknowledged".to_owned());
        }
        let lanes: BTreeMap<ProducerKey, u64> = producers.iter().map(|(key, state)| (*key, state.next_sequence)).collect();
        if lanes != self.lanes {
            return Err(format!("lanes are {lanes:?} instead of {:?}", self.lanes));
        }
        Ok(())
    }
}

/// Like a map's: where something is at the same place, it makes way.
fn put<T>(list: &mut Vec<(i64, T)>, at: i64, item: T) {
    match list.last() {
        Some((last, _)) if *last >= at => match list.binary_search_by_key(&at, |(at, _)| *at) {
            Ok(place) => list[place].1 = item,
            Err(place) => list.insert(place, (at, item)),
        },
        _ => list.push((at, item)),
    }
}

fn read(reads: &Arc<ReadPath>, request: ReadRequest) -> Result<ReadChunk, ReadError> {
    let (reply, answer) = mpsc::channel();
    reads.read(request, Box::new(move |chunk| drop(reply.send(chunk))));
    answer.recv().unwrap_or(Err(ReadError::Busy))
}
