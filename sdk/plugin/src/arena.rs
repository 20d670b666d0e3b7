//! Where keys and values are put together before they go to the host.
//!
//! In WebAssembly a copy of a length that is not known when compiling is a call out of the sandbox, some 20 ns whatever its
//! length, and most pieces of a value are a few bytes. So the memory behind what is written is kept initialised, and short
//! pieces are copied by loads and stores of a fixed size.

/// Pieces up to this are copied in place.
const SHORT_BYTES_MAX: usize = 64;
/// The least an arena grows by.
const GROWTH_BYTES_MIN: usize = 4 * 1024;
const _: () = assert!(SHORT_BYTES_MAX < GROWTH_BYTES_MIN);

/// Bytes that are appended to, then given away and used again.
#[derive(Debug, Default)]
pub(crate) struct Arena {
    /// What was written, and zeros or old bytes behind it.
    bytes: Vec<u8>,
    used: usize,
}

impl Arena {
    /// Bytes written.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.used
    }

    /// What was written.
    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.used]
    }

    /// Takes back what was written behind `used`.
    pub(crate) fn truncate(&mut self, used: usize) {
        self.used = self.used.min(used);
    }

    /// Memory held.
    pub(crate) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// Empties it, and gives back the memory above `max` bytes.
    pub(crate) fn clear_to(&mut self, max: usize) {
        self.used = 0;
        self.bytes.truncate(max);
        self.bytes.shrink_to(max);
    }

    /// Appends bytes.
    #[inline]
    pub(crate) fn extend(&mut self, bytes: &[u8]) {
        let start = self.used;
        let end = start + bytes.len();
        if end > self.bytes.len() {
            self.grow(end);
        }
        copy(&mut self.bytes[start..end], bytes);
        self.used = end;
    }

    /// Appends one byte.
    #[inline]
    pub(crate) fn push(&mut self, byte: u8) {
        if self.used == self.bytes.len() {
            self.grow(self.used + 1);
        }
        self.bytes[self.used] = byte;
        self.used += 1;
    }

    #[cold]
    #[inline(never)]
    fn grow(&mut self, least: usize) {
        let wanted = least.max(self.bytes.len() * 2).max(GROWTH_BYTES_MIN);
        self.bytes.resize(wanted, 0);
    }
}

/// Copies between slices of the same length. No loop: the compiler would make a call of it again.
#[inline]
fn copy(to: &mut [u8], from: &[u8]) {
    if from.len() > SHORT_BYTES_MAX {
        return to.copy_from_slice(from);
    }
    let done = ends::<32>(to, from) || ends::<16>(to, from) || ends::<8>(to, from) || ends::<4>(to, from) || ends::<2>(to, from);
    if let (false, [to, ..], [from, ..]) = (done, to, from) {
        *to = *from;
    }
}

/// Copies the first and the last `N` bytes, which may overlap: all, up to twice as many. False where there are fewer.
#[inline]
fn ends<const N: usize>(to: &mut [u8], from: &[u8]) -> bool {
    let (Some(first), Some(last)) = (from.first_chunk::<N>(), from.last_chunk::<N>()) else { return false };
    let Some(to_first) = to.first_chunk_mut::<N>() else { return false };
    *to_first = *first;
    let Some(to_last) = to.last_chunk_mut::<N>() else { return false };
    *to_last = *last;
    true
}

const _: () = assert!(SHORT_BYTES_MAX == 2 * 32);

/// Up to eight bytes as a little-endian number, zeros above: without a copy.
#[inline]
pub(crate) fn word_of(bytes: &[u8]) -> u64 {
    if let (Some(first), Some(last)) = (bytes.first_chunk::<4>(), bytes.last_chunk::<4>()) {
        let shift = 8 * (bytes.len() - 4).min(4) as u32;
        return u64::from(u32::from_le_bytes(*first)) | u64::from(u32::from_le_bytes(*last)) << shift;
    }
    match *bytes {
        [a, b, c] => u64::from(a) | u64::from(b) << 8 | u64::from(c) << 16,
        [a, b] => u64::from(a) | u64::from(b) << 8,
        [a] => a.into(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_every_length_are_appended() {
        let source: Vec<u8> = (0..=255).collect();
        let (mut arena, mut expected) = (Arena::default(), Vec::new());
        for round in 0..40 {
            for length in 0..=(2 * SHORT_BYTES_MAX) {
                let piece = &source[round..round + length];
                arena.extend(piece);
                expected.extend_from_slice(piece);
                arena.push(round as u8);
                expected.push(round as u8);
                assert_eq!(arena.len(), expected.len());
            }
        }
        assert!(arena.as_slice() == expected);
    }

    #[test]
    fn what_is_taken_back_is_written_over_and_memory_is_given_back() {
        let mut arena = Arena::default();
        arena.extend(b"kept");
        arena.extend(b"taken back");
        arena.truncate(4);
        arena.extend(b", new");
        assert_eq!(arena.as_slice(), b"kept, new");
        arena.extend(&vec![7; 100_000]);
        arena.clear_to(10_000);
        assert_eq!(arena.len(), 0);
        assert!(arena.capacity() <= 10_000, "{}", arena.capacity());
        arena.extend(b"again");
        assert_eq!(arena.as_slice(), b"again");
    }

    #[test]
    fn a_word_is_its_bytes() {
        for length in 0..=8 {
            let mut padded = [0; 8];
            for (at, byte) in padded.iter_mut().enumerate().take(length) {
                *byte = 0x91 + at as u8;
            }
            assert_eq!(word_of(&padded[..length]), u64::from_le_bytes(padded), "{length}");
        }
    }
}
