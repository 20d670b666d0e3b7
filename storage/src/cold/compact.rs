//! Compaction of one partition by Kafka's rules: of all records with one key the last one stays.
//!
//! Two passes over the partition's batches. The first, [`Survey`], notes of each key the last offset it was seen at, in a
//! [`KeyMap`] of bounded size; the second, [`Rewrite`], leaves out each record whose key stands in the map with a higher offset.
//! Where the map is full the survey ends early: what lies behind is left as it is, and the next compaction goes on there
//! (Kafka's cleaner does the same).
//!
//! Offsets never change: batches keep their range, with holes. What cannot be judged (transactions, batches that do not
//! verify) stays byte by byte. So nothing here fails: the worst that happens is that too much is kept.

use std::hash::{BuildHasher, Hasher, RandomState};

use bytes::{Bytes, BytesMut};
use weir_batch::{RecordBatch, Records, Retained, Retainer, emptied};

use super::{ColdEntry, timestamp_of_batches};
use crate::batches;

/// Memory that a map takes at the start.
const SLOTS_MIN: usize = 1024;
/// Bytes a key takes: its hash and its last offset.
const SLOT_BYTES: usize = size_of::<Slot>();
/// Less than this a map must not be given.
const MAP_BYTES_MIN: usize = SLOTS_MIN * SLOT_BYTES;

/// 128 bits of hash; last offset + 1, so that 0 is a free slot.
type Slot = [u64; 3];

/// The last offset of each key, by a hash of 128 bits.
///
/// Two SipHashes with keys of their own, drawn anew for each map: no producer can make keys that collide, and by chance a
/// thousand million keys do so once in 10^20 maps.
pub struct KeyMap {
    hashers: [RandomState; 2],
    slots: Vec<Slot>,
    keys: usize,
    bytes_max: usize,
}

impl KeyMap {
    /// An empty map that takes at most so many bytes, also while it grows.
    ///
    /// # Panics
    /// With less than 24 KiB.
    pub fn new(bytes_max: usize) -> KeyMap {
        assert!(bytes_max >= MAP_BYTES_MIN, "a map needs {MAP_BYTES_MIN} bytes");
        KeyMap { hashers: [RandomState::new(), RandomState::new()], slots: vec![[0; 3]; SLOTS_MIN], keys: 0, bytes_max }
    }

    /// How many keys it holds.
    pub fn len(&self) -> usize {
        self.keys
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.keys == 0
    }

    /// Forgets all keys, for the next partition.
    pub fn clear(&mut self) {
        self.slots.truncate(SLOTS_MIN);
        self.slots.shrink_to_fit();
        self.slots.fill([0; 3]);
        self.keys = 0;
    }

    fn hash(&self, key: &[u8]) -> [u64; 2] {
        [0, 1].map(|n| {
            let mut hasher = self.hashers[n].build_hasher();
            hasher.write(key);
            hasher.finish()
        })
    }

    /// Notes that the key stands at this offset, which is higher than all before; false if there is no room.
    fn put(&mut self, key: &[u8], offset: i64) -> bool {
        let hash = self.hash(key);
        let mut at = self.find(hash);
        if self.slots[at][2] == 0 {
            if self.keys >= self.slots.len() / 4 * 3 {
                if !self.grow() {
                    return false;
                }
                at = self.find(hash);
            }
            self.keys += 1;
        }
        self.slots[at] = [hash[0], hash[1], offset.cast_unsigned() + 1];
        true
    }

    /// Last offset of the key.
    fn get(&self, key: &[u8]) -> Option<i64> {
        let slot = self.slots[self.find(self.hash(key))];
        slot[2].checked_sub(1).map(u64::cast_signed)
    }

    /// Where this hash stands, or would.
    fn find(&self, hash: [u64; 2]) -> usize {
        // The upper half of the product: any number of slots will do, and a quarter of them is always free.
        let mut at = ((u128::from(hash[0]) * self.slots.len() as u128) >> 64) as usize;
        loop {
            let slot = &self.slots[at];
            if slot[2] == 0 || slot[..2] == hash {
                return at;
            }
            at = if at + 1 == self.slots.len() { 0 } else { at + 1 };
        }
    }

    /// Twice the slots, as far as old and new together stay within the bound. Not for less than a quarter more.
    fn grow(&mut self) -> bool {
        let slots = (self.slots.len() * 2).min((self.bytes_max / SLOT_BYTES).saturating_sub(self.slots.len()));
        if slots < self.slots.len() / 4 * 5 {
            return false;
        }
        let old = std::mem::replace(&mut self.slots, vec![[0; 3]; slots]);
        for slot in old.into_iter().filter(|slot| slot[2] != 0) {
            let at = self.find([slot[0], slot[1]]);
            self.slots[at] = slot;
        }
        true
    }
}

impl std::fmt::Debug for KeyMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KeyMap({} keys, {} slots)", self.keys, self.slots.len())
    }
}

/// What one compaction of a partition is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompactRules {
    /// Below this offset each key stands at most once already: what the last compaction returned as [`Rewrite::covered`], if
    /// that began at the start of the partition. The survey may begin here. 0 where nothing is known.
    pub clean_to: i64,
    /// Records from this offset on are left alone: younger ones may still be on their way into cold segments.
    pub upto: i64,
    /// Whether the rewrite begins with the first batch that the partition has. If not, tombstones stay: what they delete may
    /// lie before.
    pub from_start: bool,
    /// Unix time.
    pub now_ms: i64,
    /// Topic option `delete.retention.ms`: how long a tombstone can be read. Kafka counts from the first compaction and keeps
    /// that time in the batch; here it counts from the batch's latest timestamp, so that batches need no new attribute. A
    /// producer that stamps its records with times long past gives consumers less time to see its tombstones.
    pub delete_retention_ms: i64,
}

/// The first pass: which keys there are, and where each stands last.
pub struct Survey {
    map: KeyMap,
    rules: CompactRules,
    /// Everything in `clean_to..covered` is in the map.
    covered: i64,
    full: bool,
    scratch: Vec<u8>,
}

impl Survey {
    /// Begins with an empty map.
    pub fn new(mut map: KeyMap, rules: CompactRules) -> Survey {
        map.clear();
        Survey { map, rules, covered: rules.clean_to.min(rules.upto), full: false, scratch: Vec::new() }
    }

    /// Takes batches of the partition, in the order of their offsets, from `clean_to` on (the batch that holds it may begin
    /// before). False as soon as no more are of use.
    pub fn feed(&mut self, entry: &ColdEntry) -> bool {
        for span in batches::split(&entry.batches) {
            if self.full || self.covered >= self.rules.upto {
                return false;
            }
            // The rest of the entry makes no sense; the rewrite will leave it alone.
            let Some(span) = span else { break };
            self.feed_batch(&entry.batches[span.at..span.at + span.bytes]);
        }
        if !self.full {
            self.covered = self.covered.max(entry.next_offset).min(self.rules.upto);
        }
        !self.full && self.covered < self.rules.upto
    }

    fn feed_batch(&mut self, batch: &[u8]) {
        let Some(batch) = judged(batch) else { return };
        let mut scratch = std::mem::take(&mut self.scratch);
        if let Ok(records) = batch.records(&mut scratch) {
            self.feed_records(records);
        }
        self.scratch = scratch;
        if !self.full {
            self.covered = self.covered.max(batch.next_offset()).min(self.rules.upto);
        }
    }

    fn feed_records(&mut self, records: Records<'_>) {
        for record in records.map_while(Result::ok) {
            if record.offset >= self.rules.upto {
                return;
            }
            // Below `clean_to` a key is no news, and would take the room of one that is.
            let Some(key) = record.key.filter(|_| record.offset >= self.rules.clean_to) else { continue };
            if !self.map.put(key, record.offset) {
                self.full = true;
                self.covered = record.offset;
                return;
            }
        }
    }

    /// Goes on to the second pass.
    pub fn finish(self) -> Rewrite {
        Rewrite {
            map: self.map,
            rules: self.rules,
            covered: self.covered,
            unjudged: false,
            retainer: Retainer::new(),
            stats: CompactStats::default(),
        }
    }
}

/// What a rewrite has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompactStats {
    /// Records looked at.
    pub records: u64,
    /// Left out: a later record has their key.
    pub superseded: u64,
    /// Left out: tombstones that were kept for long enough.
    pub tombstones: u64,
    /// Left out: records without a key, which a compacted topic cannot keep. Kafka refuses them when they are produced.
    pub keyless: u64,
    /// Batches left as they are because they cannot be judged.
    pub batches_unjudged: u64,
    /// Of the batches that came in.
    pub bytes_in: u64,
    /// Of those that went out.
    pub bytes_out: u64,
}

/// The second pass: what stays.
pub struct Rewrite {
    map: KeyMap,
    rules: CompactRules,
    covered: i64,
    /// Whether a batch came by that may hold any key: then no tombstone may go, since it may be what deletes that.
    unjudged: bool,
    retainer: Retainer,
    stats: CompactStats,
}

impl Rewrite {
    /// Up to where the partition is compacted after this: `clean_to` of the next time, if this began at its start and that is not
    /// higher already. Lower than asked for where the map was full.
    pub fn covered(&self) -> i64 {
        self.covered
    }

    /// What was done so far.
    pub fn stats(&self) -> CompactStats {
        self.stats
    }

    /// Ends; the map may serve the next partition.
    pub fn into_map(self) -> KeyMap {
        self.map
    }

    /// Takes batches of the partition, in the order of their offsets, from the first that is to be rewritten on; gives what
    /// stays of them. The last batch stays even if it has no record left, so that the partition's end is known.
    pub fn rewrite(&mut self, entry: &ColdEntry) -> Option<ColdEntry> {
        self.stats.bytes_in += entry.batches.len() as u64;
        let rewritten = if entry.base_offset >= self.covered { Some(entry.clone()) } else { self.rewrite_below(entry) };
        self.stats.bytes_out += rewritten.as_ref().map_or(0, |entry| entry.batches.len() as u64);
        rewritten
    }

    fn rewrite_below(&mut self, entry: &ColdEntry) -> Option<ColdEntry> {
        let mut kept: Vec<Bytes> = Vec::new();
        let mut changed = false;
        let mut next_offset = entry.base_offset;
        for span in batches::split(&entry.batches) {
            let Some(span) = span else {
                // Whatever the rest is, it stays, and what came before it as well.
                self.left_alone();
                return Some(entry.clone());
            };
            let batch = entry.batches.slice(span.at..span.at + span.bytes);
            let end = batches::base_offset(&batch).saturating_add(span.offsets.into());
            match self.rewrite_batch(&batch) {
                Kept::All => kept.push(batch),
                Kept::Changed(batch) => {
                    kept.push(batch.into());
                    changed = true;
                }
                Kept::Nothing => {
                    changed = true;
                    continue;
                }
            }
            next_offset = end;
        }
        if !changed {
            return Some(entry.clone());
        }
        let batches = joined(&kept)?;
        Some(ColdEntry {
            partition: entry.partition,
            base_offset: batches::base_offset(&batches),
            next_offset,
            max_timestamp: timestamp_of_batches(&batches).unwrap_or(entry.max_timestamp),
            batches,
        })
    }

    fn rewrite_batch(&mut self, bytes: &[u8]) -> Kept {
        // The CRC is made anew, so damage must not pass.
        let judged = judged(bytes).filter(|_| RecordBatch::verify(bytes).is_ok());
        let Some(batch) = judged else { return self.left_alone() };
        let Rewrite { map, rules, covered, unjudged, retainer, stats } = self;
        let tombstones_go =
            rules.from_start && !*unjudged && batch.max_timestamp().saturating_add(rules.delete_retention_ms) < rules.now_ms;
        let mut now = CompactStats::default();
        let retained = retainer.retain(&batch, |record| {
            now.records += 1;
            if record.offset >= *covered {
                return true;
            }
            let Some(key) = record.key else {
                now.keyless += 1;
                return false;
            };
            let last = map.get(key);
            if last.is_some_and(|last| last > record.offset) {
                now.superseded += 1;
                return false;
            }
            // A key that the survey has not seen may still stand before this.
            let alone = last == Some(record.offset) || record.offset < rules.clean_to;
            let goes = tombstones_go && record.value.is_none() && alone;
            now.tombstones += u64::from(goes);
            !goes
        });
        let Ok(retained) = retained else { return self.left_alone() };
        stats.records += now.records;
        stats.superseded += now.superseded;
        stats.tombstones += now.tombstones;
        stats.keyless += now.keyless;
        match retained {
            // Without records from the start: it kept the end of the partition known, which it need not do here any more.
            Retained::All if batch.record_count() == 0 && batch.next_offset() < *covered => Kept::Nothing,
            Retained::All => Kept::All,
            Retained::Fewer(batch) => Kept::Changed(batch),
            Retained::Nothing if batch.next_offset() >= *covered => Kept::Changed(emptied(&batch)),
            Retained::Nothing => Kept::Nothing,
        }
    }

    fn left_alone(&mut self) -> Kept {
        self.unjudged = true;
        self.stats.batches_unjudged += 1;
        Kept::All
    }
}

enum Kept {
    All,
    Changed(Vec<u8>),
    Nothing,
}

/// The batch, if compaction may look into it: no transaction (it may have been aborted), no marker of one.
fn judged(bytes: &[u8]) -> Option<RecordBatch<'_>> {
    RecordBatch::trusted(bytes).ok().filter(|batch| !batch.header().is_transactional() && !batch.header().is_control())
}

fn joined(batches: &[Bytes]) -> Option<Bytes> {
    match batches {
        [] => None,
        [one] => Some(one.clone()),
        several => {
            let mut all = BytesMut::with_capacity(several.iter().map(Bytes::len).sum());
            several.iter().for_each(|batch| all.extend_from_slice(batch));
            Some(all.freeze())
        }
    }
}

#[cfg(test)]
mod tests;
