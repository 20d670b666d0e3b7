//! Zig-zag LEB128, as Kafka writes the numbers inside a record, and the cursor that reads them.

/// Bytes that `value` takes as an unsigned varint.
#[inline]
pub(crate) const fn unsigned_len(value: u64) -> usize {
    // 7 bits a byte, at least one byte.
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

/// Bytes that `value` takes as a zig-zag varint.
#[inline]
pub(crate) const fn signed_len(value: i64) -> usize {
    unsigned_len(zigzag(value))
}

#[inline]
const fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

#[inline]
const fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -((value & 1).cast_signed())
}

/// Appends `value` as a zig-zag varint.
#[inline]
pub(crate) fn put_signed(out: &mut Vec<u8>, value: i64) {
    let mut rest = zigzag(value);
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// Writes `value` as a zig-zag varint over one of the same length.
#[inline]
pub(crate) fn overwrite_signed(out: &mut [u8], value: i64) {
    let mut rest = zigzag(value);
    if let (0x80..0x4000, Some(two)) = (rest, out.first_chunk_mut()) {
        *two = [rest as u8 | 0x80, (rest >> 7) as u8];
        return;
    }
    for byte in out {
        if rest < 0x80 {
            *byte = rest as u8;
            return;
        }
        *byte = rest as u8 | 0x80;
        rest >>= 7;
    }
}

/// The number of one or two bytes at a place, and where it ends. `None`: it is longer, or not there. Nearly all numbers of a
/// record are this short, and reading them takes no slice apart.
#[inline]
pub(crate) fn short_at(bytes: &[u8], at: usize) -> Option<(i32, usize)> {
    let first = *bytes.get(at)?;
    if first < 0x80 {
        return Some((unzigzag(first.into()) as i32, at + 1));
    }
    let second = *bytes.get(at + 1)?;
    let value = u64::from(first & 0x7f) | u64::from(second) << 7;
    (second < 0x80).then(|| (unzigzag(value) as i32, at + 2))
}

/// Mask of [`short_length`] and [`short_signed`] for a number of two bytes; 0 is that for one byte.
pub(crate) const SECOND_BYTE: u32 = 0x3f80;

/// A number of one or two bytes at the front of a word, one that is known not to be negative.
#[inline(always)]
pub(crate) fn short_length(word: u32, mask: u32) -> u32 {
    (word >> 1) & 0x3f | (word >> 2) & (mask >> 1)
}

/// A number of one or two bytes at the front of a word.
#[inline(always)]
pub(crate) fn short_signed(word: u32, mask: u32) -> i32 {
    let zigzag = word & 0x7f | (word >> 1) & mask;
    (zigzag >> 1).cast_signed() ^ -((zigzag & 1).cast_signed())
}

/// Bytes that the number at a place takes; `None` if it does not end.
#[inline]
pub(crate) fn len_at(bytes: &[u8], at: usize) -> Option<usize> {
    match *bytes.get(at..)? {
        [0..0x80, ..] => Some(1),
        [_, 0..0x80, ..] => Some(2),
        ref longer => longer.iter().position(|byte| *byte < 0x80).map(|last| last + 1),
    }
}

/// Reads from the front of a slice; `None` means malformed or at the end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor<'a> {
    pub(crate) rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    #[inline]
    pub(crate) fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    #[inline]
    pub(crate) fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(first)
    }

    #[inline]
    pub(crate) fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(bytes)?;
        self.rest = rest;
        Some(taken)
    }

    /// A zig-zag number of at most 5 bytes that fits 32 bits.
    #[inline]
    pub(crate) fn int(&mut self) -> Option<i32> {
        match self.short() {
            Some(value) => Some(unzigzag(value) as i32),
            None => i32::try_from(unzigzag(self.unsigned(5)?)).ok(),
        }
    }

    /// A zig-zag number of at most 10 bytes.
    #[inline]
    pub(crate) fn long(&mut self) -> Option<i64> {
        match self.short() {
            Some(value) => Some(unzigzag(value)),
            None => self.unsigned(10).map(unzigzag),
        }
    }

    /// A number of one or two bytes, which nearly all lengths and deltas are.
    #[inline]
    fn short(&mut self) -> Option<u64> {
        match *self.rest {
            [first, ref rest @ ..] if first < 0x80 => {
                self.rest = rest;
                Some(first.into())
            }
            [first, second, ref rest @ ..] if second < 0x80 => {
                self.rest = rest;
                Some(u64::from(first & 0x7f) | u64::from(second) << 7)
            }
            _ => None,
        }
    }

    #[cold]
    fn unsigned(&mut self, bytes_max: usize) -> Option<u64> {
        let mut value = 0_u64;
        for (at, &byte) in self.rest.iter().take(bytes_max).enumerate() {
            let bits = u64::from(byte & 0x7f);
            // The tenth byte has room for one bit only.
            if at == 9 && bits > 1 {
                return None;
            }
            value |= bits << (7 * at);
            if byte < 0x80 {
                self.rest = &self.rest[at + 1..];
                return Some(value);
            }
        }
        None
    }

    /// A length and that many bytes; -1 is null, any other negative number is malformed.
    #[inline]
    pub(crate) fn nullable(&mut self) -> Option<Option<&'a [u8]>> {
        match self.int()? {
            -1 => Some(None),
            length => self.take(usize::try_from(length).ok()?).map(Some),
        }
    }
}

/// Bytes that a nullable field takes, its length included.
#[inline]
pub(crate) fn nullable_len(field: Option<&[u8]>) -> usize {
    match field {
        None => 1,
        Some(bytes) => signed_len(bytes.len() as i64) + bytes.len(),
    }
}

/// Appends a length and the bytes, or -1 for null.
#[inline]
pub(crate) fn put_nullable(out: &mut Vec<u8>, field: Option<&[u8]>) {
    match field {
        None => out.push(1),
        Some(bytes) => {
            put_signed(out, bytes.len() as i64);
            out.extend_from_slice(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_encodings() {
        // From the zig-zag table of Protocol Buffers, which Kafka's guide refers to.
        let known: &[(i64, &[u8])] = &[
            (0, &[0]),
            (-1, &[1]),
            (1, &[2]),
            (-64, &[0x7f]),
            (64, &[0x80, 0x01]),
            (300, &[0xd8, 0x04]),
            (i32::MAX as i64, &[0xfe, 0xff, 0xff, 0xff, 0x0f]),
            (i32::MIN as i64, &[0xff, 0xff, 0xff, 0xff, 0x0f]),
            (i64::MIN, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]),
        ];
        for &(value, bytes) in known {
            let mut out = Vec::new();
            put_signed(&mut out, value);
            assert_eq!(out, bytes, "{value}");
            assert_eq!(signed_len(value), bytes.len());
            assert_eq!(Cursor::new(bytes).long(), Some(value));
        }
    }

    #[test]
    fn short_numbers_are_the_same_as_long_ones() {
        for value in [0, 1, -1, 63, -64, 64, -65, 8191, -8192] {
            let mut out = vec![0xff];
            put_signed(&mut out, value);
            assert_eq!(short_at(&out, 1), Some((value as i32, out.len())), "{value}");
            assert_eq!(short_at(&out[..out.len() - 1], 1), None, "{value} cut");
            assert_eq!(len_at(&out, 1), Some(out.len() - 1), "{value}");
            let word = u32::from_le_bytes([out[1], out.get(2).copied().unwrap_or(0xff), 0xff, 0xff]);
            let mask = if out.len() == 3 { SECOND_BYTE } else { 0 };
            assert_eq!(i64::from(short_signed(word, mask)), value);
            assert!(value < 0 || i64::from(short_length(word, mask)) == value, "{value}");
            let mut over = vec![0x80; out.len() - 2];
            over.push(0);
            overwrite_signed(&mut over, value);
            assert_eq!(over, out[1..], "{value}");
        }
        assert_eq!(short_at(&[0x80, 0x80, 0x01], 0), None, "three bytes");
        assert_eq!(len_at(&[0, 0x80, 0x80, 0x01], 1), Some(3));
        assert_eq!((len_at(&[0x80, 0x80], 0), len_at(&[], 0), len_at(&[0], 2)), (None, None, None));
    }

    #[test]
    fn too_long_too_large_and_unfinished_are_malformed() {
        assert_eq!(Cursor::new(&[0x80; 5]).int(), None);
        assert_eq!(Cursor::new(&[0xff, 0xff, 0xff, 0xff, 0x1f]).int(), None, "33 bits");
        assert_eq!(Cursor::new(&[0x80, 0x80, 0x80, 0x80, 0x80, 0x00]).int(), None, "six bytes");
        assert_eq!(Cursor::new(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02]).long(), None);
        assert_eq!(Cursor::new(&[0x80]).long(), None);
        assert_eq!(Cursor::new(&[]).int(), None);
        assert_eq!(Cursor::new(&[3]).nullable(), None, "length -2");
        assert_eq!(Cursor::new(&[4, 0]).nullable(), None, "two bytes wanted, one there");
        assert_eq!(Cursor::new(&[1]).nullable(), Some(None));
    }

    proptest! {
        #[test]
        fn round_trip(value: i64) {
            let mut out = Vec::new();
            put_signed(&mut out, value);
            prop_assert_eq!(out.len(), signed_len(value));
            let mut cursor = Cursor::new(&out);
            prop_assert_eq!(cursor.long(), Some(value));
            prop_assert!(cursor.rest.is_empty());
            prop_assert_eq!(Cursor::new(&out).int(), i32::try_from(value).ok());
        }
    }
}
