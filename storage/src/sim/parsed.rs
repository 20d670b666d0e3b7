//! Batches of keyed partitions, each parsed once. Everything is read some sixty times in a history, and most of it is as it was: what
//! is parsed again is only what is not, byte for byte, what was parsed before.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use crate::batches;
use crate::types::PartitionId;

/// Everything from the length on. A batch that was sent begins at offset 0 and takes its own only when it is stored.
pub(super) const BEHIND_OFFSET: usize = 8;

/// A record with a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KeyedRecord {
    pub(super) key: Vec<u8>,
    /// The key's number in the library.
    pub(super) number: usize,
    pub(super) value: Option<Vec<u8>>,
    pub(super) timestamp: i64,
    /// Attempt, entry, record.
    id: [u8; 16],
}

impl KeyedRecord {
    /// Attempt and entry.
    fn sent_as(&self) -> (usize, usize) {
        (crate::format::u64_at(&self.id, 0) as usize, crate::format::u32_at(&self.id, 8) as usize)
    }
}

/// Records of a batch, by their distance from its base offset.
pub(super) struct Parsed {
    pub(super) records: Vec<(i64, KeyedRecord)>,
    /// Attempt and entry that the first record names.
    pub(super) sent_as: Option<(usize, usize)>,
    /// Whether all others name the same.
    pub(super) is_one: bool,
}

/// A batch as it was last seen at its place.
struct Seen {
    /// Behind its base offset.
    bytes: Box<[u8]>,
    parsed: Rc<Parsed>,
}

/// What was parsed. Clones of a model share it: nothing in it depends on what a model believes.
#[derive(Clone, Default)]
pub(super) struct Library(Rc<RefCell<Shelves>>);

#[derive(Default)]
struct Shelves {
    /// Numbers of keys, so that the latest record of each can stand in a row.
    keys: BTreeMap<Vec<u8>, usize>,
    /// By attempt and entry; what was sent never changes.
    sent: HashMap<(usize, usize), Rc<Parsed>>,
    /// By partition and base offset.
    seen: HashMap<(PartitionId, i64), Seen>,
}

impl Library {
    /// How many keys there are.
    pub(super) fn keys(&self) -> usize {
        self.0.borrow().keys.len()
    }

    /// The records of an entry.
    pub(super) fn sent(&self, entry: (usize, usize), batch: &[u8]) -> Result<Rc<Parsed>, String> {
        let mut shelves = self.0.borrow_mut();
        if let Some(parsed) = shelves.sent.get(&entry) {
            return Ok(Rc::clone(parsed));
        }
        let parsed = Rc::new(shelves.parse(batch)?);
        shelves.sent.insert(entry, Rc::clone(&parsed));
        Ok(parsed)
    }

    /// The records of a batch that was read.
    pub(super) fn found(&self, id: PartitionId, batch: &[u8]) -> Result<Rc<Parsed>, String> {
        let mut shelves = self.0.borrow_mut();
        let place = (id, batches::base_offset(batch));
        if let Some(seen) = shelves.seen.get(&place).filter(|seen| *seen.bytes == batch[BEHIND_OFFSET..]) {
            return Ok(Rc::clone(&seen.parsed));
        }
        let parsed = Rc::new(shelves.parse(batch)?);
        shelves.seen.insert(place, Seen { bytes: batch[BEHIND_OFFSET..].into(), parsed: Rc::clone(&parsed) });
        Ok(parsed)
    }
}

impl Shelves {
    fn parse(&mut self, batch: &[u8]) -> Result<Parsed, String> {
        let mut scratch = Vec::new();
        let parsed = weir_batch::RecordBatch::verify(batch).map_err(|error| error.to_string())?;
        let mut records: Vec<(i64, KeyedRecord)> = Vec::with_capacity(parsed.record_count() as usize);
        for record in parsed.records(&mut scratch).map_err(|error| error.to_string())? {
            let record = record.map_err(|error| error.to_string())?;
            records.push((record.offset - parsed.base_offset(), self.own(&record).ok_or("a foreign record")?));
        }
        let sent_as = records.first().map(|(_, record)| record.sent_as());
        let is_one = records.iter().all(|(_, record)| Some(record.sent_as()) == sent_as);
        Ok(Parsed { records, sent_as, is_one })
    }

    fn own(&mut self, record: &weir_batch::Record<'_>) -> Option<KeyedRecord> {
        let (_, id) = record.headers.iter().next()?;
        let (key, id) = (record.key?.to_vec(), id?.try_into().ok()?);
        let next = self.keys.len();
        let number = self.keys.get(&key).copied().unwrap_or(next);
        if number == next {
            self.keys.insert(key.clone(), next);
        }
        Some(KeyedRecord { key, number, value: record.value.map(<[u8]>::to_vec), timestamp: record.timestamp, id })
    }
}
