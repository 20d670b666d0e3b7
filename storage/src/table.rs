//! Tables for numbers that are given out densely: partitions by page, producers by a fast hash.

use std::hash::{BuildHasherDefault, Hasher};

use crate::types::PartitionId;

/// Partition numbers from here on are refused, so that the page directory stays small (2 MiB).
pub const PARTITION_ID_MAX: u32 = 1 << 26;

const PAGE: usize = 256;

/// A map from partition number to `T`: two loads a look-up, no hashing, iteration in order of the numbers.
#[derive(Debug)]
pub struct PartitionMap<T> {
    pages: Vec<Option<Box<[Option<T>]>>>,
    len: usize,
}

impl<T> Default for PartitionMap<T> {
    fn default() -> Self {
        PartitionMap { pages: Vec::new(), len: 0 }
    }
}

impl<T> PartitionMap<T> {
    /// Entries in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Looks one up.
    pub fn get(&self, id: PartitionId) -> Option<&T> {
        let (page, slot) = place(id);
        self.pages.get(page)?.as_ref()?[slot].as_ref()
    }

    /// Looks one up to change it.
    pub fn get_mut(&mut self, id: PartitionId) -> Option<&mut T> {
        let (page, slot) = place(id);
        self.pages.get_mut(page)?.as_mut()?[slot].as_mut()
    }

    /// Sets one; returns what was there.
    pub fn insert(&mut self, id: PartitionId, value: T) -> Option<T> {
        assert!(id.0 < PARTITION_ID_MAX, "partition numbers are checked on entry");
        let (page, slot) = place(id);
        if self.pages.len() <= page {
            self.pages.resize_with(page + 1, || None);
        }
        let slots = self.pages[page].get_or_insert_with(|| (0..PAGE).map(|_| None).collect());
        let old = slots[slot].replace(value);
        self.len += usize::from(old.is_none());
        old
    }

    /// Takes one out.
    pub fn remove(&mut self, id: PartitionId) -> Option<T> {
        let (page, slot) = place(id);
        let old = self.pages.get_mut(page)?.as_mut()?[slot].take();
        self.len -= usize::from(old.is_some());
        old
    }

    /// All, in order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (PartitionId, &T)> {
        self.pages.iter().enumerate().flat_map(|(page, slots)| {
            slots.iter().flat_map(move |slots| {
                slots.iter().enumerate().filter_map(move |(slot, value)| Some((id_at(page, slot), value.as_ref()?)))
            })
        })
    }

    /// All, to change them.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (PartitionId, &mut T)> {
        self.pages.iter_mut().enumerate().flat_map(|(page, slots)| {
            slots.iter_mut().flat_map(move |slots| {
                slots.iter_mut().enumerate().filter_map(move |(slot, value)| Some((id_at(page, slot), value.as_mut()?)))
            })
        })
    }
}

fn place(id: PartitionId) -> (usize, usize) {
    (id.0 as usize / PAGE, id.0 as usize % PAGE)
}

fn id_at(page: usize, slot: usize) -> PartitionId {
    PartitionId((page * PAGE + slot) as u32)
}

/// Hash of numbers the broker gives out itself, so nobody can choose them to collide. Fixed, so that a simulated run repeats.
#[derive(Clone, Copy, Default)]
pub struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 29)
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }
    fn write_u32(&mut self, number: u32) {
        self.write_u64(u64::from(number));
    }
    fn write_i64(&mut self, number: i64) {
        self.write_u64(number.cast_unsigned());
    }
    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }
    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0.rotate_left(5) ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// A hash map over such numbers.
pub type NumberMap<K, V> = std::collections::HashMap<K, V, BuildHasherDefault<NumberHasher>>;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn behaves_like_a_map(steps in proptest::collection::vec((0..2000_u32, any::<Option<u8>>()), 0..200)) {
            let mut map = PartitionMap::default();
            let mut model = BTreeMap::new();
            for (id, value) in steps {
                let id = PartitionId(id);
                match value {
                    Some(value) => prop_assert_eq!(map.insert(id, value), model.insert(id, value)),
                    None => prop_assert_eq!(map.remove(id), model.remove(&id)),
                }
                prop_assert_eq!(map.get(id), model.get(&id));
            }
            prop_assert_eq!(map.len(), model.len());
            prop_assert!(map.iter().eq(model.iter().map(|(id, value)| (*id, value))));
        }
    }
}
