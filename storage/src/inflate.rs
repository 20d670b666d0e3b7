//! Decompression with a context of the thread's own: making one costs as much as a block of 64 KiB.

use std::cell::RefCell;

use zstd::bulk::Decompressor;

thread_local! {
    static CONTEXT: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// At most so many bytes out of what zstd has stored; nothing where that cannot be.
pub(crate) fn inflate(stored: &[u8], raw_bytes: usize) -> Option<Vec<u8>> {
    CONTEXT.with_borrow_mut(|context| {
        if context.is_none() {
            *context = Decompressor::new().ok();
        }
        context.as_mut()?.decompress(stored, raw_bytes).ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_is_good_for_what_comes_after_damage() {
        let raw: Vec<u8> = (0..50_000_u32).flat_map(|n| (n / 9).to_le_bytes()).collect();
        let mut stored = zstd::bulk::compress(&raw, 1).unwrap();
        assert_eq!(inflate(&stored, raw.len()).as_deref(), Some(&raw[..]));
        assert_eq!(inflate(&stored, raw.len() - 1), None, "more than there may be");
        let middle = stored.len() / 2;
        stored[middle..].fill(0);
        assert_eq!(inflate(&stored, raw.len()), None);
        let other = zstd::bulk::compress(b"another", 1).unwrap();
        assert_eq!(inflate(&other, 7).as_deref(), Some(&b"another"[..]));
    }
}
