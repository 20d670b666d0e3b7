//! A table of bounded size for what a plugin remembers, by sensor, vehicle or key.
//!
//! Open to any number of keys, holding the most recently used ones: four-way sets with the oldest of a set thrown out.
//! Its memory is taken once and never grows; finding a key looks at four places and allocates nothing.

use crate::arena::word_of;

/// Ways of a set: as many neighbours as one look-up compares.
const WAYS: usize = 4;
/// The most entries of one table.
pub const ENTRIES_MAX: usize = 1 << 20;

/// Remembers a `V` for each of the most recently used keys, known by a 64-bit hash of theirs.
///
/// Two keys with the same hash are taken for one: with a million keys, one chance in thirty million that any two are.
#[derive(Debug)]
pub struct Table<V> {
    sets: Vec<[Slot<V>; WAYS]>,
    clock: u32,
}

#[derive(Debug, Clone, Copy, Default)]
struct Slot<V> {
    hash: u64,
    used: u32,
    value: V,
}

impl<V: Copy + Default> Table<V> {
    /// Room for about `entries` keys, at least four and at most [`ENTRIES_MAX`].
    #[must_use]
    pub fn new(entries: usize) -> Self {
        let sets = entries.clamp(WAYS, ENTRIES_MAX).div_ceil(WAYS).next_power_of_two();
        Self { sets: vec![[Slot::default(); WAYS]; sets], clock: 0 }
    }

    /// The value of a key, and whether it was there; a new one starts as the default, in the place of the least
    /// recently used of its set.
    #[inline]
    pub fn entry(&mut self, hash: u64) -> (&mut V, bool) {
        // 0 marks a free place.
        let hash = hash.max(1);
        self.clock = self.clock.wrapping_add(1);
        let clock = self.clock;
        let set_index = (hash >> 32) as usize & (self.sets.len() - 1);
        let set = &mut self.sets[set_index];
        if let Some(way) = set.iter().position(|slot| slot.hash == hash) {
            set[way].used = clock;
            return (&mut set[way].value, true);
        }
        let age = |slot: &Slot<V>| if slot.hash == 0 { u32::MAX } else { clock.wrapping_sub(slot.used) };
        let mut oldest = 0;
        for way in 1..WAYS {
            if age(&set[way]) > age(&set[oldest]) {
                oldest = way;
            }
        }
        set[oldest] = Slot { hash, used: clock, value: V::default() };
        (&mut set[oldest].value, false)
    }

    /// The most keys it can hold.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.sets.len() * WAYS
    }
}

/// A 64-bit hash for [`Table`], fed piece by piece: fast on short texts, the same on every run.
///
/// Not for hostile input that may profit from a collision.
#[derive(Debug, Clone, Copy)]
pub struct Hash(u64);

impl Default for Hash {
    fn default() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }
}

impl Hash {
    /// Adds bytes and their length, so that "ab","c" and "a","bc" differ.
    #[inline]
    #[must_use]
    pub fn bytes(self, bytes: &[u8]) -> Self {
        let (words, rest) = bytes.as_chunks::<8>();
        let mut hash = self;
        for word in words {
            hash = hash.word(u64::from_le_bytes(*word));
        }
        hash.word(word_of(rest)).word(bytes.len() as u64)
    }

    /// Adds a number.
    #[inline]
    #[must_use]
    pub fn word(self, word: u64) -> Self {
        // The mixing step of MurmurHash64A. Products of 128 bits mix better, and are a function call each in WebAssembly.
        let word = word.wrapping_mul(0xc6a4_a793_5bd1_e995);
        let word = (word ^ (word >> 47)).wrapping_mul(0xc6a4_a793_5bd1_e995);
        Self((self.0 ^ word).wrapping_mul(0xc6a4_a793_5bd1_e995))
    }

    /// The hash.
    #[inline]
    #[must_use]
    pub fn finish(self) -> u64 {
        let hash = (self.0 ^ (self.0 >> 47)).wrapping_mul(0xc6a4_a793_5bd1_e995);
        hash ^ (hash >> 47)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(key: u64) -> u64 {
        Hash::default().word(key).finish()
    }

    #[test]
    fn remembers_until_the_set_is_full_then_forgets_the_oldest() {
        let mut table: Table<u32> = Table::new(4);
        for key in 0..4 {
            let (value, known) = table.entry(hash(key));
            assert!(!known);
            *value = key as u32 + 100;
        }
        assert_eq!(table.entry(hash(0)), (&mut 100, true)); // the most recently used now
        assert!(!table.entry(hash(9)).1); // throws out 1
        assert_eq!(table.entry(hash(0)), (&mut 100, true));
        assert!(!table.entry(hash(1)).1);
    }

    #[test]
    fn memory_is_taken_once_and_bounded() {
        let mut table: Table<u64> = Table::new(1000);
        assert_eq!(table.capacity(), 1024);
        for key in 0..100_000 {
            *table.entry(hash(key)).0 = key;
        }
        assert_eq!(table.capacity(), 1024);
        assert_eq!(Table::<u8>::new(usize::MAX).capacity(), ENTRIES_MAX);
        // Recent keys are still there: sets fill evenly.
        let known = (99_500..100_000).filter(|key| table.entry(hash(*key)).1).count();
        assert!(known > 400, "{known} of 500 recent keys known");
    }

    #[test]
    fn pieces_do_not_run_into_each_other() {
        let split = |a: &[u8], b: &[u8]| Hash::default().bytes(a).bytes(b).finish();
        assert_ne!(split(b"ab", b"c"), split(b"a", b"bc"));
        assert_ne!(split(b"", b"x"), split(b"x", b""));
        assert_ne!(Hash::default().bytes(b"a\0").finish(), Hash::default().bytes(b"a").finish());
        assert_eq!(split(b"same", b"key"), split(b"same", b"key"));
    }
}
