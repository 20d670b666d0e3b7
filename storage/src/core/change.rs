//! Changes of partitions that need more than a directory entry: starts raised, classes set. One entry of kind 6 an append holds
//! all of them, 13 bytes each, so that taking a cold segment of 100,000 partitions out costs little.

use crate::format::{i64_at, u32_at};
use crate::types::{ClassId, PartitionId, PartitionOp};

/// Bytes of one stored change.
pub(super) const CHANGE_BYTES: usize = 13;
const START: u8 = 1;
const CLASS: u8 = 2;

/// One stored change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// First offset of a partition.
    Start(PartitionId, i64),
    /// Its class.
    Class(PartitionId, ClassId),
}

impl Change {
    /// What an operation changes, if it is stored as a change.
    pub(super) fn of(op: &PartitionOp) -> Option<Change> {
        match op {
            PartitionOp::RaiseStart(id, start) => Some(Change::Start(*id, *start)),
            PartitionOp::SetClass(id, class) => Some(Change::Class(*id, *class)),
            PartitionOp::Open(_) | PartitionOp::Drop(_) => None,
        }
    }

    fn encode(self) -> [u8; CHANGE_BYTES] {
        let (kind, partition, value) = match self {
            Change::Start(id, start) => (START, id, start),
            Change::Class(id, class) => (CLASS, id, i64::from(class.0)),
        };
        let mut out = [kind; CHANGE_BYTES];
        out[1..5].copy_from_slice(&partition.0.to_le_bytes());
        out[5..].copy_from_slice(&value.to_le_bytes());
        out
    }
}

/// How many changes an append has.
pub(super) fn count(ops: &[PartitionOp]) -> usize {
    ops.iter().filter_map(Change::of).count()
}

/// Bytes they take in the payload.
pub(super) fn stored_bytes(ops: &[PartitionOp]) -> usize {
    count(ops) * CHANGE_BYTES
}

/// Appends them to a payload at `at`; returns where they end.
pub(super) fn store(ops: &[PartitionOp], payload: &mut [u8], mut at: usize) -> usize {
    for change in ops.iter().filter_map(Change::of) {
        payload[at..at + CHANGE_BYTES].copy_from_slice(&change.encode());
        at += CHANGE_BYTES;
    }
    at
}

/// Reads stored changes; `None` if they make no sense.
pub(crate) fn decode_changes(bytes: &[u8]) -> Option<Vec<Change>> {
    let chunks = bytes.chunks_exact(CHANGE_BYTES);
    if !chunks.remainder().is_empty() {
        return None;
    }
    chunks
        .map(|b| {
            let (id, value) = (PartitionId(u32_at(b, 1)), i64_at(b, 5));
            match b[0] {
                START => Some(Change::Start(id, value)),
                CLASS => Some(Change::Class(id, ClassId(u32::try_from(value).ok()?))),
                _ => None,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_round_trip_and_nonsense_is_seen() {
        let ops = [
            PartitionOp::Open(PartitionId(1)),
            PartitionOp::RaiseStart(PartitionId(1), 1 << 40),
            PartitionOp::SetClass(PartitionId(u32::MAX), ClassId(u32::MAX)),
        ];
        let mut payload = vec![0; stored_bytes(&ops) + 5];
        assert_eq!(store(&ops, &mut payload, 5), payload.len());
        let read = decode_changes(&payload[5..]).unwrap();
        assert_eq!(read, ops.iter().filter_map(Change::of).collect::<Vec<_>>());
        assert_eq!(decode_changes(&payload[4..]), None);
        payload[5] = 9;
        assert_eq!(decode_changes(&payload[5..]), None);
    }
}
