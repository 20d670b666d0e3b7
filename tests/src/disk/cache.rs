//! The disk's volatile cache over what is stable, sector by sector, and what a power cut makes of it. No locks, no clock.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;

use super::SECTOR;

/// What becomes of the sectors that are not stable.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Cut {
    /// One of the ways below, drawn anew.
    #[default]
    Any,
    /// Each sector by itself is new, with this chance.
    Sectors(f64),
    /// Writes up to one of them are new, this one is shorn part way, later ones are old.
    InOrder,
}

/// What a power cut found in the cache, in sectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Torn {
    /// Lost.
    pub old: u64,
    /// Out in time.
    pub new: u64,
}

/// A sector that was written and is not stable.
#[derive(Debug)]
struct Cached {
    /// Number of the write it came with.
    write: u64,
    data: Box<[u8; SECTOR]>,
}

/// Stable bytes, and the cached sectors above them.
#[derive(Debug)]
pub struct Cache {
    stable: Vec<u8>,
    cached: BTreeMap<u64, Cached>,
    cached_max: usize,
    writes: u64,
    random: Rng,
}

impl Cache {
    /// Zeros, nothing cached. Memory is taken as it is written to.
    pub fn new(bytes: usize, cached_max: usize, seed: u64) -> Cache {
        assert!(bytes.is_multiple_of(SECTOR) && cached_max > 0, "a disk has whole sectors and a cache");
        Cache { stable: vec![0; bytes], cached: BTreeMap::new(), cached_max, writes: 0, random: Rng::with_seed(seed) }
    }

    /// What would be left if nothing of the cache got out.
    pub fn stable(&self) -> &[u8] {
        &self.stable
    }

    /// Sectors that are not stable.
    pub fn cached(&self) -> usize {
        self.cached.len()
    }

    /// What the host sees at `at`.
    pub fn read(&self, at: u64, out: &mut [u8]) {
        let (start, end) = (at as usize, at as usize + out.len());
        out.copy_from_slice(&self.stable[start..end]);
        let sectors = at / SECTOR as u64..(end as u64).div_ceil(SECTOR as u64);
        for (sector, cached) in self.cached.range(sectors) {
            let begin = *sector as usize * SECTOR;
            let (from, to) = (begin.max(start), (begin + SECTOR).min(end));
            out[from - start..to - start].copy_from_slice(&cached.data[from - begin..to - begin]);
        }
    }

    /// Takes a write; sectors of which it holds a part keep the rest.
    pub fn write(&mut self, at: u64, data: &[u8]) {
        self.writes += 1;
        let mut done = 0;
        while done < data.len() {
            let position = at as usize + done;
            let (sector, inside) = (position / SECTOR, position % SECTOR);
            let bytes = (SECTOR - inside).min(data.len() - done);
            let mut new = Box::new([0; SECTOR]);
            self.read((sector * SECTOR) as u64, &mut new[..]);
            new[inside..inside + bytes].copy_from_slice(&data[done..done + bytes]);
            self.put(sector as u64, new);
            done += bytes;
        }
        while self.cached.len() > self.cached_max {
            let (sector, cached) = self.cached.pop_first().expect("more than none");
            self.settle(sector, &cached.data);
        }
    }

    /// Everything becomes stable.
    pub fn flush(&mut self) {
        for (sector, cached) in std::mem::take(&mut self.cached) {
            self.settle(sector, &cached.data);
        }
    }

    /// The power goes; the cache is empty afterwards.
    pub fn cut(&mut self, cut: Cut) -> Torn {
        let cut = if cut == Cut::Any { self.draw() } else { cut };
        let cached = std::mem::take(&mut self.cached);
        let shorn = self.draw_shorn(&cached);
        let mut torn = Torn::default();
        for (sector, cached) in cached {
            let gets_out = match cut {
                Cut::Sectors(chance) => self.random.f64() < chance,
                Cut::InOrder | Cut::Any => (cached.write, sector) < shorn,
            };
            if gets_out {
                self.settle(sector, &cached.data);
            }
            torn.new += u64::from(gets_out);
            torn.old += u64::from(!gets_out);
        }
        torn
    }

    /// The first write that does not get out whole, and the first of its sectors that does not.
    fn draw_shorn(&mut self, cached: &BTreeMap<u64, Cached>) -> (u64, u64) {
        let writes: BTreeSet<u64> = cached.values().map(|cached| cached.write).collect();
        let Some(write) = writes.iter().nth(self.random.usize(0..writes.len().max(1))).copied() else { return (0, 0) };
        let sectors: Vec<u64> = cached.iter().filter(|(_, cached)| cached.write == write).map(|(sector, _)| *sector).collect();
        (write, sectors[self.random.usize(0..sectors.len())])
    }

    fn draw(&mut self) -> Cut {
        match self.random.u32(0..8) {
            0 => Cut::Sectors(0.0),
            1 => Cut::Sectors(1.0),
            2..5 => Cut::InOrder,
            _ => Cut::Sectors(self.random.f64()),
        }
    }

    /// A sector that is cached already may have been written out before the new version came.
    fn put(&mut self, sector: u64, data: Box<[u8; SECTOR]>) {
        let write = self.writes;
        if let Some(earlier) = self.cached.insert(sector, Cached { write, data })
            && self.random.bool()
        {
            self.settle(sector, &earlier.data);
        }
    }

    fn settle(&mut self, sector: u64, data: &[u8; SECTOR]) {
        let at = sector as usize * SECTOR;
        self.stable[at..at + SECTOR].copy_from_slice(data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECTORS: usize = 64;

    fn written(seed: u64, cached_max: usize) -> Cache {
        let mut cache = Cache::new(SECTORS * SECTOR, cached_max, seed);
        cache.write(0, &[1; SECTORS * SECTOR]);
        cache
    }

    fn firsts(cache: &Cache) -> Vec<u8> {
        cache.stable().chunks(SECTOR).map(|sector| sector[0]).collect()
    }

    #[test]
    fn reads_see_the_cache_at_any_boundary() {
        let mut cache = Cache::new(4 * SECTOR, 100, 0);
        cache.write(0, &[1; 4 * SECTOR]);
        cache.flush();
        cache.write(500, &[2; 30]);
        let mut out = vec![0; 50];
        cache.read(490, &mut out);
        let expected: Vec<u8> = [vec![1; 10], vec![2; 30], vec![1; 10]].concat();
        assert_eq!(out, expected);
        assert_eq!(cache.cached(), 2);
        assert!(cache.stable().iter().all(|byte| *byte == 1));
    }

    #[test]
    fn sectors_choose_by_themselves() {
        let mut cache = written(3, 1000);
        let torn = cache.cut(Cut::Sectors(0.5));
        let firsts = firsts(&cache);
        let new = firsts.iter().filter(|first| **first == 1).count();
        assert_eq!(torn, Torn { old: (SECTORS - new) as u64, new: new as u64 });
        assert!((8..56).contains(&new), "{new} of {SECTORS} are new");
        assert!(firsts.windows(2).any(|pair| pair == [0, 1]), "not only a beginning is new: {firsts:?}");
        assert!(cache.stable().chunks(SECTOR).all(|sector| sector.iter().all(|byte| *byte == sector[0])), "no sector is torn");
        assert_eq!(cache.cached(), 0);
    }

    #[test]
    fn a_cut_in_order_keeps_the_earlier_writes_and_shears_one() {
        let mut shorn = 0;
        for seed in 0..50 {
            let mut cache = Cache::new(SECTORS * SECTOR, 1000, seed);
            // Eight writes of eight sectors each, from the end to the beginning.
            (0..8_u8).rev().for_each(|n| cache.write(u64::from(n) * 8 * SECTOR as u64, &[8 - n; 8 * SECTOR]));
            cache.cut(Cut::InOrder);
            let whole: Vec<usize> =
                firsts(&cache).chunks(8).map(|write| write.iter().filter(|first| **first > 0).count()).collect();
            let in_time: Vec<usize> = whole.into_iter().rev().collect();
            let full = in_time.iter().take_while(|sectors| **sectors == 8).count();
            shorn += usize::from(in_time.get(full).is_some_and(|sectors| *sectors > 0));
            assert!(in_time.iter().skip(full + 1).all(|sectors| *sectors == 0), "{in_time:?}");
        }
        assert!(shorn > 10, "a write is shorn part way in {shorn} of 50");
    }

    #[test]
    fn any_cut_has_every_outcome() {
        let news: Vec<usize> = (0..200)
            .map(|seed| {
                let mut cache = written(seed, 1000);
                cache.cut(Cut::Any);
                firsts(&cache).iter().filter(|first| **first == 1).count()
            })
            .collect();
        assert!(news.contains(&0) && news.contains(&SECTORS));
        assert!(news.iter().filter(|new| (1..SECTORS).contains(*new)).count() > 50);
    }

    #[test]
    fn what_is_overwritten_in_the_cache_may_be_what_is_left() {
        let mut left = std::collections::BTreeSet::new();
        for seed in 0..20 {
            let mut cache = written(seed, 1000);
            cache.write(0, &[2; SECTOR]);
            cache.cut(Cut::Sectors(0.0));
            left.insert(cache.stable()[0]);
        }
        assert_eq!(left, [0, 1].into());
    }

    #[test]
    fn the_cache_is_bounded() {
        let cache = written(1, 10);
        assert_eq!(cache.cached(), 10);
        assert_eq!(firsts(&cache).iter().filter(|first| **first == 1).count(), SECTORS - 10);
    }

    #[test]
    fn the_same_seed_cuts_the_same() {
        let outcome = |seed| {
            let mut cache = written(seed, 1000);
            cache.cut(Cut::Any);
            firsts(&cache)
        };
        assert!((0..20).all(|seed| outcome(seed) == outcome(seed)));
        assert!((0..20).any(|seed| outcome(seed) != outcome(seed + 1)));
    }
}
