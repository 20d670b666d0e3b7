//! The snapshot at the start of every segment: partitions, producer lanes, metadata and known gaps, as one stream of small records
//! cut into frames. A part holds whole records, so each can be read with nothing but itself in memory.

use super::{i64_at, u32_at, u64_at};
use crate::report::Gap;
use crate::types::{ClassId, PartitionId, ProducerKey};

/// Batches a lane remembers for resends.
pub const REMEMBERED_MAX: usize = 32;
/// Bytes of a partition.
pub const PARTITION_BYTES: usize = 1 + 4 + 4 + 8 + 8;
/// Without the class, which is not stored where it is 0.
const PLAIN_PARTITION_BYTES: usize = PARTITION_BYTES - 4;
/// Bytes of a lane that remembers all it may.
pub const PRODUCER_BYTES_MAX: usize = PRODUCER_BYTES_MIN + REMEMBERED_MAX * REMEMBERED_BYTES;
/// Bytes of a key and its value beyond their own.
pub const META_BYTES: usize = 1 + 4 + 4;
/// Bytes of a gap.
pub const GAP_BYTES: usize = 1 + 4 + 8 + 8;

const PRODUCER_BYTES_MIN: usize = 1 + 8 + 4 + 2 + 8 + 8 + 1;
const REMEMBERED_BYTES: usize = 4 + 8;

/// A batch a lane remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// Records of the lane.
    pub count: u32,
    /// Offset told to the producer.
    pub base_offset: i64,
}

/// One record of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A partition's valid offsets: `start..next`.
    Partition {
        /// Which.
        id: PartitionId,
        /// By which rules it is kept.
        class: ClassId,
        /// First offset kept.
        start: i64,
        /// Next offset.
        next: i64,
    },
    /// A producer's lane. The batches end at `next_sequence`.
    Producer {
        /// Which.
        key: ProducerKey,
        /// Highest epoch.
        epoch: i16,
        /// Next sequence.
        next_sequence: u64,
        /// Frame that used it last.
        last_lsn: u64,
        /// Latest batches, oldest first.
        batches: Vec<Remembered>,
    },
    /// Metadata.
    Meta {
        /// Key.
        key: Vec<u8>,
        /// Value.
        value: Vec<u8>,
    },
    /// Records known to be lost.
    Gap(Gap),
    /// Marks of a damaged frame are lost: lanes may go on at a higher sequence than the one stored.
    SequencesLost,
}

impl Item {
    /// Appends the record to a part.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Item::Partition { id, class, start, next } => {
                out.push(if *class == ClassId::default() { 1 } else { 6 });
                out.extend_from_slice(&id.0.to_le_bytes());
                if *class != ClassId::default() {
                    out.extend_from_slice(&class.0.to_le_bytes());
                }
                out.extend_from_slice(&start.to_le_bytes());
                out.extend_from_slice(&next.to_le_bytes());
            }
            Item::Producer { key, epoch, next_sequence, last_lsn, batches } => {
                assert!(batches.len() <= REMEMBERED_MAX, "a lane forgets old batches");
                out.push(2);
                out.extend_from_slice(&key.id.to_le_bytes());
                out.extend_from_slice(&key.lane.to_le_bytes());
                out.extend_from_slice(&epoch.to_le_bytes());
                out.extend_from_slice(&next_sequence.to_le_bytes());
                out.extend_from_slice(&last_lsn.to_le_bytes());
                out.push(batches.len() as u8);
                for batch in batches {
                    out.extend_from_slice(&batch.count.to_le_bytes());
                    out.extend_from_slice(&batch.base_offset.to_le_bytes());
                }
            }
            Item::Meta { key, value } => {
                out.push(3);
                out.extend_from_slice(&(key.len() as u32).to_le_bytes());
                out.extend_from_slice(&(value.len() as u32).to_le_bytes());
                out.extend_from_slice(key);
                out.extend_from_slice(value);
            }
            Item::Gap(gap) => {
                out.push(4);
                out.extend_from_slice(&gap.partition.0.to_le_bytes());
                out.extend_from_slice(&gap.from.to_le_bytes());
                out.extend_from_slice(&gap.to.to_le_bytes());
            }
            Item::SequencesLost => out.push(5),
        }
    }

    /// Takes the next record off a part that a CRC has vouched for; `None` at its end, an error if it makes no sense.
    pub fn decode(rest: &mut &[u8]) -> Option<Result<Item, &'static str>> {
        let kind = *rest.first()?;
        let item = match kind {
            1 => take(rest, PLAIN_PARTITION_BYTES).map(|b| Item::Partition {
                id: PartitionId(u32_at(b, 1)),
                class: ClassId::default(),
                start: i64_at(b, 5),
                next: i64_at(b, 13),
            }),
            6 => take(rest, PARTITION_BYTES).map(|b| Item::Partition {
                id: PartitionId(u32_at(b, 1)),
                class: ClassId(u32_at(b, 5)),
                start: i64_at(b, 9),
                next: i64_at(b, 17),
            }),
            2 => decode_producer(rest),
            3 => decode_meta(rest),
            4 => take(rest, GAP_BYTES)
                .map(|b| Item::Gap(Gap { partition: PartitionId(u32_at(b, 1)), from: i64_at(b, 5), to: i64_at(b, 13) })),
            5 => take(rest, 1).map(|_| Item::SequencesLost),
            _ => None,
        };
        if item.is_none() {
            *rest = &[];
        }
        Some(item.ok_or("the snapshot has a record that makes no sense"))
    }
}

fn take<'a>(rest: &mut &'a [u8], bytes: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(bytes)?;
    *rest = left;
    Some(taken)
}

fn decode_producer(rest: &mut &[u8]) -> Option<Item> {
    let head = take(rest, PRODUCER_BYTES_MIN)?;
    let count = usize::from(head[31]);
    if count > REMEMBERED_MAX {
        return None;
    }
    let batches = take(rest, count * REMEMBERED_BYTES)?
        .chunks_exact(REMEMBERED_BYTES)
        .map(|b| Remembered { count: u32_at(b, 0), base_offset: i64_at(b, 4) })
        .collect();
    Some(Item::Producer {
        key: ProducerKey { id: i64_at(head, 1), lane: u32_at(head, 9) },
        epoch: i16::from_le_bytes([head[13], head[14]]),
        next_sequence: u64_at(head, 15),
        last_lsn: u64_at(head, 23),
        batches,
    })
}

fn decode_meta(rest: &mut &[u8]) -> Option<Item> {
    let head = take(rest, META_BYTES)?;
    let (key_bytes, value_bytes) = (u32_at(head, 1) as usize, u32_at(head, 5) as usize);
    let key = take(rest, key_bytes)?.to_vec();
    let value = take(rest, value_bytes)?.to_vec();
    Some(Item::Meta { key, value })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn item() -> impl Strategy<Value = Item> {
        prop_oneof![
            (any::<(u32, i64, i64)>(), 0..3u32).prop_map(|((id, start, next), class)| Item::Partition {
                id: PartitionId(id),
                class: ClassId(class),
                start,
                next
            }),
            (any::<(i64, u32, i16, u64, u64)>(), proptest::collection::vec(any::<(u32, i64)>(), 0..=REMEMBERED_MAX)).prop_map(
                |((id, lane, epoch, next_sequence, last_lsn), batches)| Item::Producer {
                    key: ProducerKey { id, lane },
                    epoch,
                    next_sequence,
                    last_lsn,
                    batches: batches.into_iter().map(|(count, base_offset)| Remembered { count, base_offset }).collect(),
                }
            ),
            any::<(Vec<u8>, Vec<u8>)>().prop_map(|(key, value)| Item::Meta { key, value }),
            any::<(u32, i64, i64)>().prop_map(|(id, from, to)| Item::Gap(Gap { partition: PartitionId(id), from, to })),
            Just(Item::SequencesLost),
        ]
    }

    proptest! {
        #[test]
        fn round_trip(items in proptest::collection::vec(item(), 0..20)) {
            let mut part = Vec::new();
            items.iter().for_each(|item| item.encode(&mut part));
            let mut rest = &part[..];
            let mut read = Vec::new();
            while let Some(item) = Item::decode(&mut rest) {
                read.push(item.unwrap());
            }
            prop_assert_eq!(read, items);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut rest = &bytes[..];
            while let Some(item) = Item::decode(&mut rest) {
                if item.is_err() {
                    break;
                }
            }
        }
    }
}
