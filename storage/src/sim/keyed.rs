//! What a compacted partition must hold, by Kafka's rules: a record may be missing only where a later one of its key was acknowledged,
//! or where it is old enough to go by itself; then nothing older of its key may be seen.

use std::collections::{BTreeMap, BTreeSet};

use super::Tally;
use super::client::KEYED;
use super::model::{Contents, Model, State};
use crate::config::ClassPolicy;
use crate::types::*;

/// What wide histories know besides.
#[derive(Clone)]
pub(super) struct Keyed {
    /// Of the class that is compacted.
    policy: ClassPolicy,
    /// Whether anything but a producer raises starts.
    pub(super) expires: bool,
    /// In gaps.
    lost: BTreeSet<(PartitionId, i64)>,
}

/// A record with a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KeyedRecord {
    key: Vec<u8>,
    value: Option<Vec<u8>>,
    pub(super) timestamp: i64,
    /// Attempt, entry, record.
    id: [u8; 16],
}

impl KeyedRecord {
    /// Attempt and entry.
    pub(super) fn sent_as(&self) -> (usize, usize) {
        (crate::format::u64_at(&self.id, 0) as usize, crate::format::u32_at(&self.id, 8) as usize)
    }
}

/// Offsets and records of a batch.
pub(super) fn records_of(batch: &[u8]) -> Result<Vec<(i64, KeyedRecord)>, String> {
    let mut scratch = Vec::new();
    let parsed = weir_batch::RecordBatch::verify(batch).map_err(|error| error.to_string())?;
    let records = parsed.records(&mut scratch).map_err(|error| error.to_string())?;
    let own = |record: weir_batch::Record<'_>| {
        let (_, id) = record.headers.iter().next()?;
        let (key, id) = (record.key?.to_vec(), id?.try_into().ok()?);
        Some((record.offset, KeyedRecord { key, value: record.value.map(<[u8]>::to_vec), timestamp: record.timestamp, id }))
    };
    records.map(|record| own(record.map_err(|error| error.to_string())?).ok_or_else(|| "a foreign record".to_owned())).collect()
}

impl Model {
    pub(super) fn widen(&mut self, policy: ClassPolicy, expires: bool) {
        self.keyed = Some(Keyed { policy, expires, lost: BTreeSet::new() });
    }

    pub(super) fn is_keyed(&self, id: PartitionId) -> bool {
        self.keyed.is_some() && KEYED.contains(&id)
    }

    /// What was acknowledged, from `start` on.
    fn sent_records(&self, id: PartitionId, start: i64) -> Result<BTreeMap<i64, KeyedRecord>, String> {
        let mut sent = BTreeMap::new();
        for (base, (attempt, n)) in &self.partitions[&id] {
            let records = records_of(&self.attempts[*attempt].append.entries[*n].batches)?;
            sent.extend(records.into_iter().map(|(at, record)| (base + at, record)).filter(|(offset, _)| *offset >= start));
        }
        Ok(sent)
    }

    pub(super) fn check_keyed(
        &mut self,
        id: PartitionId,
        bounds: PartitionBounds,
        contents: &Contents,
        tally: &mut Tally,
    ) -> Result<(), String> {
        self.take_over(id, bounds, &contents.partitions[&id], tally);
        let sent = self.sent_records(id, bounds.start)?;
        let nothing = BTreeMap::new();
        let found = contents.keyed.get(&id).unwrap_or(&nothing);
        for (offset, record) in found.range(bounds.start..) {
            match sent.get(offset) {
                Some(sent) if sent == record => {}
                Some(sent) => return Err(format!("partition {id}: {sent:?} at {offset} has become {record:?}")),
                None => return Err(format!("partition {id} has {record:?} at {offset}, where it should not be")),
            }
        }
        let mut latest: BTreeMap<&[u8], i64> = BTreeMap::new();
        latest.extend(sent.iter().map(|(offset, record)| (&record.key[..], *offset)));
        let damage_allowed = self.damage_allowed;
        let in_gap = |offset: i64| contents.gaps.iter().any(|(gap, from, to)| *gap == id && (*from..*to).contains(&offset));
        let mut lost = Vec::new();
        let mut visible: BTreeMap<&[u8], i64> = BTreeMap::new();
        for (offset, record) in &sent {
            if found.contains_key(offset) {
                visible.insert(&record.key, *offset);
                continue;
            }
            let superseded = latest[&record.key[..]] > *offset;
            if damage_allowed && in_gap(*offset) {
                lost.push((id, *offset));
            } else if !superseded && !self.may_be_gone(record) {
                tally.lost += 1;
                return Err(format!("partition {id}: {record:?} is missing at {offset}, valid are {bounds:?}"));
            }
        }
        let damaged = contents.gaps.iter().any(|(gap, ..)| *gap == id);
        let back = visible.iter().find(|(key, offset)| latest[**key] != **offset);
        if let Some((key, offset)) = back.filter(|_| !damaged) {
            let key = String::from_utf8_lossy(key);
            return Err(format!("partition {id}: {key} is seen at {offset}, but what came after it is gone"));
        }
        let keyed = self.keyed.as_mut().expect("only then are partitions keyed");
        tally.in_gaps += lost.into_iter().filter(|lost| keyed.lost.insert(*lost)).count() as u64;
        Ok(())
    }

    /// What damage did to an end is believed; what lies before the start is forgotten.
    fn take_over(&mut self, id: PartitionId, bounds: PartitionBounds, found: &BTreeMap<i64, (usize, usize)>, tally: &mut Tally) {
        let partition = self.partitions.get_mut(&id).expect("listed");
        let attempts = &mut self.attempts;
        if self.damage_allowed {
            partition.retain(|base, (attempt, _)| {
                let stays = *base < bounds.high_watermark;
                if !stays {
                    tally.unprovable += 1;
                    attempts[*attempt].state = State::Damaged;
                }
                stays
            });
            partition.extend(found.iter().map(|(base, entry)| (*base, *entry)));
        }
        partition
            .retain(|base, (attempt, n)| base + i64::from(attempts[*attempt].append.entries[*n].record_count) > bounds.start);
    }

    /// Without anything later of its key.
    fn may_be_gone(&self, record: &KeyedRecord) -> bool {
        let policy = &self.keyed.as_ref().expect("only then are partitions keyed").policy;
        let older_than = |age: u64| record.timestamp.cast_unsigned().saturating_add(age) < self.now_ms;
        let tombstone = record.value.is_none() && older_than(policy.delete_retention_ms);
        tombstone || (policy.delete && policy.retention_ms.is_some_and(older_than))
    }
}
