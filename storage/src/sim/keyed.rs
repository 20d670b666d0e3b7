//! What a compacted partition must hold, by Kafka's rules: a record may be missing only where a later one of its key was acknowledged,
//! or where it is old enough to go by itself; then nothing older of its key may be seen.

use std::collections::BTreeSet;
use std::rc::Rc;

use super::Tally;
use super::client::KEYED;
use super::model::{Contents, Entries, Model, State};
use super::parsed::{KeyedRecord, Parsed};
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

/// Records with their offsets, in their order.
type Row<'a> = Vec<(i64, &'a KeyedRecord)>;

/// The records of batches, from `start` on. Where two take the same offset, the later batch counts.
pub(super) fn row_of(batches: &[(i64, Rc<Parsed>)], start: i64) -> Row<'_> {
    let records = batches.iter().flat_map(|(base, parsed)| parsed.records.iter().map(move |(at, record)| (base + at, record)));
    let mut row: Row<'_> = records.filter(|(offset, _)| *offset >= start).collect();
    if !row.is_sorted_by(|one, next| one.0 < next.0) {
        row.reverse();
        row.sort_by_key(|(offset, _)| *offset);
        row.dedup_by_key(|(offset, _)| *offset);
    }
    row
}

impl Model {
    pub(super) fn widen(&mut self, policy: ClassPolicy, expires: bool) {
        self.keyed = Some(Keyed { policy, expires, lost: BTreeSet::new() });
    }

    pub(super) fn is_keyed(&self, id: PartitionId) -> bool {
        self.keyed.is_some() && KEYED.contains(&id)
    }

    /// What was acknowledged.
    fn sent_batches(&self, id: PartitionId) -> Result<Vec<(i64, Rc<Parsed>)>, String> {
        let parse = |(base, (attempt, n)): (&i64, &(usize, usize))| {
            let batch = &self.attempts[*attempt].append.entries[*n].batches;
            Ok((*base, self.library.sent((*attempt, *n), batch)?))
        };
        self.partitions[&id].iter().map(parse).collect()
    }

    pub(super) fn check_keyed(
        &mut self,
        id: PartitionId,
        bounds: PartitionBounds,
        contents: &Contents,
        tally: &mut Tally,
    ) -> Result<(), String> {
        self.take_over(id, bounds, &contents.partitions[&id], tally);
        let sent = self.sent_batches(id)?;
        let sent = row_of(&sent, bounds.start);
        let found = contents.keyed.get(&id).map_or(&[][..], Vec::as_slice);
        let found = row_of(found, bounds.start);
        check_found(id, &sent, &found)?;
        // The latest of each key, of what was sent and of what is still there.
        let mut latest = vec![None; self.library.keys()];
        sent.iter().for_each(|(offset, record)| latest[record.number] = Some(*offset));
        let mut visible = vec![None; latest.len()];
        let damage_allowed = self.damage_allowed;
        let in_gap = |offset: i64| contents.gaps.iter().any(|(gap, from, to)| *gap == id && (*from..*to).contains(&offset));
        let mut lost = Vec::new();
        let mut rest = found.iter().peekable();
        for (offset, record) in &sent {
            // Nothing was found where nothing was sent, so the two rows go in step.
            if rest.next_if(|(at, _)| at == offset).is_some() {
                visible[record.number] = Some(*offset);
                continue;
            }
            let superseded = latest[record.number] > Some(*offset);
            if damage_allowed && in_gap(*offset) {
                lost.push((id, *offset));
            } else if !superseded && !self.may_be_gone(record) {
                tally.lost += 1;
                return Err(format!("partition {id}: {record:?} is missing at {offset}, valid are {bounds:?}"));
            }
        }
        let damaged = contents.gaps.iter().any(|(gap, ..)| *gap == id);
        let is_back =
            |record: &KeyedRecord, offset: i64| visible[record.number] == Some(offset) && latest[record.number] != Some(offset);
        let back = sent.iter().find(|(offset, record)| is_back(record, *offset));
        if let Some((offset, record)) = back.filter(|_| !damaged) {
            let key = String::from_utf8_lossy(&record.key);
            return Err(format!("partition {id}: {key} is seen at {offset}, but what came after it is gone"));
        }
        let keyed = self.keyed.as_mut().expect("only then are partitions keyed");
        tally.in_gaps += lost.into_iter().filter(|lost| keyed.lost.insert(*lost)).count() as u64;
        Ok(())
    }

    /// What damage did to an end is believed; what lies before the start is forgotten.
    fn take_over(&mut self, id: PartitionId, bounds: PartitionBounds, found: &Entries, tally: &mut Tally) {
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
            partition.extend(found.iter().copied());
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

/// What is there was sent, and is what was sent.
fn check_found(id: PartitionId, sent: &Row<'_>, found: &Row<'_>) -> Result<(), String> {
    let mut rest = sent.iter();
    for (offset, record) in found {
        match rest.find(|(at, _)| at >= offset).filter(|(at, _)| at == offset) {
            // A batch that is as it was sent gave its records to both rows.
            Some((_, sent)) if std::ptr::eq(*sent, *record) || sent == record => {}
            Some((_, sent)) => return Err(format!("partition {id}: {sent:?} at {offset} has become {record:?}")),
            None => return Err(format!("partition {id} has {record:?} at {offset}, where it should not be")),
        }
    }
    Ok(())
}
