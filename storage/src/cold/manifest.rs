//! Which cold segments there are, and which volumes they lie on: keys and values in the log's metadata. A frame's CRC vouches for
//! them, so they have none.

use super::header::{flags, flags_of};
use super::{ColdSummary, SegmentHead};
use crate::format::{Uuid, array_at, i64_at, put, u32_at, u64_at};

/// Key of [`Flushed`].
pub const FLUSHED_KEY: &[u8] = b"\0flushed";
/// Key of [`NextNumber`].
pub const NUMBER_KEY: &[u8] = b"\0number";

const COLD_PREFIX: &[u8; 6] = b"\0cold/";
const COLD_KEY_BYTES: usize = COLD_PREFIX.len() + 4;
const VOLUME_PREFIX: &[u8; 8] = b"\0volume/";
const VOLUME_KEY_BYTES: usize = VOLUME_PREFIX.len() + 1;
const VERSION: u8 = 1;
/// Of an entry that names more than one copy on volume 0: a program that knows no other volumes must not look for it there.
const ENTRY_ON_VOLUMES: u8 = 2;
/// Of an entry that names a WAL segment: it consists of two files.
const ENTRY_PROMOTED: u8 = 3;
const VOLUME_BYTES: usize = 48;
const ENTRY_BYTES: usize = 88;
const PROMOTED_BYTES: usize = ENTRY_BYTES + 16;
const FLUSHED_BYTES: usize = 16;
const NUMBER_BYTES: usize = 8;

/// What is wrong with a value of the manifest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Written by a newer version.
    #[error("the manifest's {key} has version {found}, which this program does not read: start the newer weir that wrote it")]
    Newer {
        /// Its key, printable.
        key: String,
        /// Version that stands there.
        found: u8,
    },
    /// Nothing of ours looks like this.
    #[error("the manifest's {key} makes no sense ({reason}): run `weir check`")]
    Malformed {
        /// Its key, printable.
        key: String,
        /// What does not fit.
        reason: &'static str,
    },
}

/// Key of a cold segment; keys sort like their numbers.
pub fn cold_key(number: u32) -> [u8; COLD_KEY_BYTES] {
    let mut key = [0; COLD_KEY_BYTES];
    put(&mut key, 0, COLD_PREFIX);
    put(&mut key, COLD_PREFIX.len(), &number.to_be_bytes());
    key
}

/// The number in a cold segment's key; `None` for any other key.
pub fn parse_cold_key(key: &[u8]) -> Option<u32> {
    let number: [u8; 4] = key.strip_prefix(COLD_PREFIX)?.try_into().ok()?;
    Some(u32::from_be_bytes(number))
}

/// Key of a volume.
pub fn volume_key(number: u8) -> [u8; VOLUME_KEY_BYTES] {
    let mut key = [0; VOLUME_KEY_BYTES];
    put(&mut key, 0, VOLUME_PREFIX);
    key[VOLUME_PREFIX.len()] = number;
    key
}

/// The number in a volume's key; `None` for any other key.
pub fn parse_volume_key(key: &[u8]) -> Option<u8> {
    match key.strip_prefix(VOLUME_PREFIX)? {
        [number] => Some(*number),
        _ => None,
    }
}

/// What a volume may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeUse {
    /// Takes new segments.
    Active,
    /// Takes none, and is rid of those it has.
    Draining,
    /// Let go of for good; its number is never given out again.
    Gone,
}

/// A volume of the table. Its number means this one directory for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeEntry {
    /// What it may be used for.
    pub usage: VolumeUse,
    /// As its identity file has it.
    pub uuid: Uuid,
    /// When it joined, Unix time.
    pub created_ms: u64,
}

impl VolumeEntry {
    /// Into a value.
    pub fn encode(&self) -> [u8; VOLUME_BYTES] {
        let mut value = [0; VOLUME_BYTES];
        value[0] = VERSION;
        value[1] = match self.usage {
            VolumeUse::Active => 1,
            VolumeUse::Draining => 2,
            VolumeUse::Gone => 3,
        };
        put(&mut value, 8, &self.uuid);
        put(&mut value, 24, &self.created_ms.to_le_bytes());
        value
    }

    /// The value of volume `number`.
    pub fn decode(number: u8, value: &[u8]) -> Result<VolumeEntry, ManifestError> {
        let key = || format!("volume/{number}");
        check(value, VOLUME_BYTES, VERSION, key)?;
        let usage = match value[1] {
            1 => VolumeUse::Active,
            2 => VolumeUse::Draining,
            3 => VolumeUse::Gone,
            _ => return Err(ManifestError::Malformed { key: key(), reason: "its state is none that is known" }),
        };
        Ok(VolumeEntry { usage, uuid: array_at(value, 8), created_ms: u64_at(value, 24) })
    }
}

/// The WAL segment that a promoted segment consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PromotedWal {
    /// Of its life.
    pub sequence: u64,
    /// Where its durable frames end.
    pub bytes: u64,
    /// It would shrink, or be read better, sorted: it stays as it is until producers leave time for that.
    pub in_haste: bool,
}

/// A cold segment that counts: its files exist, are whole, and were made durable before this was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ManifestEntry {
    /// The WAL segment that it is the index of, if it is one.
    pub promoted: Option<PromotedWal>,
    /// Whether offsets may be missing.
    pub compacted: bool,
    /// How many volumes hold it: 1 or 2.
    pub copies: u8,
    /// The volumes; the second counts where there are two copies.
    pub volumes: [u8; 2],
    /// Retention class of its partitions.
    pub class: u32,
    /// Oldest frame that records in it may come from.
    pub first_lsn: u64,
    /// Youngest.
    pub last_lsn: u64,
    /// Smallest `max_timestamp` of an entry, ms.
    pub min_timestamp: i64,
    /// Highest, ms.
    pub max_timestamp: i64,
    /// Of its `.cold` file.
    pub file_bytes: u64,
    /// Of the batches before compression.
    pub batch_bytes: u64,
    /// Records.
    pub records: u64,
    /// Partitions.
    pub partitions: u32,
    /// Blocks, or index entries.
    pub blocks: u32,
    /// When it was made, Unix time.
    pub created_ms: u64,
}

impl ManifestEntry {
    /// Of a finished segment, whole on these one or two volumes.
    ///
    /// # Panics
    /// When it is the index of a WAL segment and that is not given, or the other way round.
    pub fn new(head: &SegmentHead, summary: &ColdSummary, volumes: &[u8], promoted: Option<PromotedWal>) -> ManifestEntry {
        assert_eq!(head.promoted, promoted.is_some(), "an index of frames goes with their file");
        let entry = ManifestEntry {
            promoted,
            compacted: head.compacted,
            copies: 1,
            volumes: [0, 0],
            class: head.class,
            first_lsn: head.first_lsn,
            last_lsn: head.last_lsn,
            min_timestamp: summary.min_timestamp,
            max_timestamp: summary.max_timestamp,
            file_bytes: summary.file_bytes,
            batch_bytes: summary.batch_bytes,
            records: summary.records,
            partitions: summary.partitions,
            blocks: summary.blocks,
            created_ms: head.created_ms,
        };
        entry.on(volumes)
    }

    /// The same segment on these one or two volumes.
    #[must_use]
    pub fn on(self, volumes: &[u8]) -> ManifestEntry {
        let second = volumes.get(1).copied();
        assert!(
            !volumes.is_empty() && volumes.len() <= 2 && second != Some(volumes[0]),
            "one copy or two, each on a volume of its own"
        );
        ManifestEntry { copies: volumes.len() as u8, volumes: [volumes[0], second.unwrap_or(0)], ..self }
    }

    /// Volumes that hold it.
    pub fn holders(&self) -> &[u8] {
        &self.volumes[..usize::from(self.copies)]
    }

    /// Bytes of its files: of one copy.
    pub fn stored_bytes(&self) -> u64 {
        self.file_bytes + self.promoted.map_or(0, |wal| wal.bytes)
    }

    /// Whether it is to be sorted still.
    pub fn is_in_haste(&self) -> bool {
        self.promoted.is_some_and(|wal| wal.in_haste)
    }

    /// Bytes of its files, if it is.
    pub fn unsorted_bytes(&self) -> u64 {
        if self.is_in_haste() { self.stored_bytes() } else { 0 }
    }

    /// Into a value.
    pub fn encode(&self) -> Vec<u8> {
        assert!(matches!(self.copies, 1 | 2), "a segment has one copy or two");
        let mut value = vec![0; if self.promoted.is_some() { PROMOTED_BYTES } else { ENTRY_BYTES }];
        value[0] = match self.promoted {
            Some(_) => ENTRY_PROMOTED,
            None if self.holders() == [0] => VERSION,
            None => ENTRY_ON_VOLUMES,
        };
        value[1] = flags(self.promoted.is_some(), self.compacted) as u8;
        value[2] = self.copies;
        put(&mut value, 3, &self.volumes);
        value[5] = u8::from(self.is_in_haste());
        put(&mut value, 8, &self.class.to_le_bytes());
        put(&mut value, 16, &self.first_lsn.to_le_bytes());
        put(&mut value, 24, &self.last_lsn.to_le_bytes());
        put(&mut value, 32, &self.min_timestamp.to_le_bytes());
        put(&mut value, 40, &self.max_timestamp.to_le_bytes());
        put(&mut value, 48, &self.file_bytes.to_le_bytes());
        put(&mut value, 56, &self.batch_bytes.to_le_bytes());
        put(&mut value, 64, &self.records.to_le_bytes());
        put(&mut value, 72, &self.partitions.to_le_bytes());
        put(&mut value, 76, &self.blocks.to_le_bytes());
        put(&mut value, 80, &self.created_ms.to_le_bytes());
        if let Some(wal) = self.promoted {
            put(&mut value, 88, &wal.sequence.to_le_bytes());
            put(&mut value, 96, &wal.bytes.to_le_bytes());
        }
        value
    }

    /// The value of segment `number`.
    pub fn decode(number: u32, value: &[u8]) -> Result<ManifestEntry, ManifestError> {
        let key = || format!("cold/{number}");
        let names_wal = value.first() == Some(&ENTRY_PROMOTED);
        check(value, if names_wal { PROMOTED_BYTES } else { ENTRY_BYTES }, ENTRY_PROMOTED, key)?;
        let (promoted, compacted) = flags_of(value[1]);
        if promoted != names_wal {
            return Err(ManifestError::Malformed { key: key(), reason: "its flags and its version contradict each other" });
        }
        let in_haste = value[5] & 1 != 0;
        let promoted = names_wal.then(|| PromotedWal { sequence: u64_at(value, 88), bytes: u64_at(value, 96), in_haste });
        let copies = value[2];
        if copies == 2 && value[3] == value[4] {
            return Err(ManifestError::Malformed { key: key(), reason: "both its copies are on one volume" });
        }
        if !matches!(copies, 1 | 2) {
            return Err(ManifestError::Malformed { key: key(), reason: "it has neither one copy nor two" });
        }
        Ok(ManifestEntry {
            promoted,
            compacted,
            copies,
            volumes: [value[3], value[4]],
            class: u32_at(value, 8),
            first_lsn: u64_at(value, 16),
            last_lsn: u64_at(value, 24),
            min_timestamp: i64_at(value, 32),
            max_timestamp: i64_at(value, 40),
            file_bytes: u64_at(value, 48),
            batch_bytes: u64_at(value, 56),
            records: u64_at(value, 64),
            partitions: u32_at(value, 72),
            blocks: u32_at(value, 76),
            created_ms: u64_at(value, 80),
        })
    }
}

/// Every WAL segment up to this sequence is in cold segments, or held nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flushed(pub u64);

impl Flushed {
    /// Into the value of [`FLUSHED_KEY`].
    pub fn encode(self) -> [u8; FLUSHED_BYTES] {
        let mut value = [0; FLUSHED_BYTES];
        value[0] = VERSION;
        put(&mut value, 8, &self.0.to_le_bytes());
        value
    }

    /// From that value.
    pub fn decode(value: &[u8]) -> Result<Flushed, ManifestError> {
        check(value, FLUSHED_BYTES, VERSION, || "flushed".into())?;
        Ok(Flushed(u64_at(value, 8)))
    }
}

/// The number that the next cold segment gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextNumber(pub u32);

impl NextNumber {
    /// Into the value of [`NUMBER_KEY`].
    pub fn encode(self) -> [u8; NUMBER_BYTES] {
        let mut value = [0; NUMBER_BYTES];
        value[0] = VERSION;
        put(&mut value, 4, &self.0.to_le_bytes());
        value
    }

    /// From that value.
    pub fn decode(value: &[u8]) -> Result<NextNumber, ManifestError> {
        check(value, NUMBER_BYTES, VERSION, || "number".into())?;
        Ok(NextNumber(u32_at(value, 4)))
    }
}

fn check(value: &[u8], bytes: usize, newest: u8, key: impl Fn() -> String) -> Result<(), ManifestError> {
    match value.first() {
        None => Err(ManifestError::Malformed { key: key(), reason: "it is empty" }),
        Some(&found) if found > newest => Err(ManifestError::Newer { key: key(), found }),
        Some(&version) if version > 0 && value.len() == bytes => Ok(()),
        Some(_) => Err(ManifestError::Malformed { key: key(), reason: "its length or version is wrong" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(flags: [bool; 3], small: ([u8; 2], bool), numbers: [u64; 8], counts: [u32; 3]) -> ManifestEntry {
        ManifestEntry {
            promoted: flags[0].then_some(PromotedWal { sequence: numbers[3], bytes: numbers[6], in_haste: flags[2] }),
            compacted: flags[1],
            copies: 1 + u8::from(small.1),
            volumes: [small.0[0], if small.1 { small.0[1] } else { 0 }],
            class: counts[0],
            first_lsn: numbers[0],
            last_lsn: numbers[1],
            min_timestamp: numbers[2].cast_signed(),
            max_timestamp: numbers[3].cast_signed(),
            file_bytes: numbers[4],
            batch_bytes: numbers[5],
            records: numbers[6],
            partitions: counts[1],
            blocks: counts[2],
            created_ms: numbers[7],
        }
    }

    proptest! {
        #[test]
        fn round_trips(number: u32, flags: [bool; 3], small: ([u8; 2], bool), numbers: [u64; 8], counts: [u32; 3]) {
            let entry = entry(flags, (small.0, small.1 && small.0[0] != small.0[1]), numbers, counts);
            prop_assert_eq!(ManifestEntry::decode(number, &entry.encode()), Ok(entry));
            prop_assert_eq!(parse_cold_key(&cold_key(number)), Some(number));
            let usage = [VolumeUse::Active, VolumeUse::Draining, VolumeUse::Gone][number as usize % 3];
            let volume = VolumeEntry { usage, uuid: [small.0[0]; 16], created_ms: numbers[0] };
            prop_assert_eq!(VolumeEntry::decode(small.0[1], &volume.encode()), Ok(volume));
            prop_assert_eq!(parse_volume_key(&volume_key(small.0[1])), Some(small.0[1]));
            prop_assert_eq!(Flushed::decode(&Flushed(numbers[0]).encode()), Ok(Flushed(numbers[0])));
            prop_assert_eq!(NextNumber::decode(&NextNumber(number).encode()), Ok(NextNumber(number)));
        }

        #[test]
        fn arbitrary_values_never_panic(value in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = (ManifestEntry::decode(1, &value), Flushed::decode(&value), NextNumber::decode(&value), parse_cold_key(&value));
            let _ = (VolumeEntry::decode(1, &value), parse_volume_key(&value));
        }
    }

    #[test]
    fn keys_sort_like_their_numbers_and_only_they_are_taken_for_segments() {
        assert!(cold_key(255) < cold_key(256) && cold_key(0xffff) < cold_key(0x1_0000));
        for other in [FLUSHED_KEY, NUMBER_KEY, b"\0cold/", b"\0cold/12345", b"cold/1234"] {
            assert_eq!(parse_cold_key(other), None);
        }
    }

    #[test]
    fn only_a_segment_with_one_copy_on_volume_0_is_readable_to_a_program_that_knows_no_other() {
        let entry = entry([false; 3], ([0, 0], false), [0; 8], [0; 3]);
        let versions = [&[0_u8][..], &[1], &[0, 1], &[1, 0]].map(|volumes| entry.on(volumes).encode()[0]);
        assert_eq!(versions, [1, 2, 2, 2]);
        let promoted = ManifestEntry { promoted: Some(PromotedWal { sequence: 1, bytes: 2, in_haste: false }), ..entry };
        assert_eq!(promoted.encode()[0], 3);
        let mut wrong = entry.encode();
        wrong[1] |= 1;
        assert!(matches!(ManifestEntry::decode(1, &wrong), Err(ManifestError::Malformed { .. })));
        let mut doubled = entry.on(&[0, 1]).encode();
        doubled[4] = 0;
        assert!(matches!(ManifestEntry::decode(1, &doubled), Err(ManifestError::Malformed { .. })));
    }

    #[test]
    fn a_newer_value_is_told_from_a_malformed_one() {
        let mut value = Flushed(7).encode();
        value[0] = 2;
        assert_eq!(Flushed::decode(&value), Err(ManifestError::Newer { key: "flushed".into(), found: 2 }));
        value[0] = 0;
        assert!(matches!(Flushed::decode(&value), Err(ManifestError::Malformed { .. })));
        assert!(matches!(Flushed::decode(&Flushed(7).encode()[..15]), Err(ManifestError::Malformed { .. })));
    }
}
