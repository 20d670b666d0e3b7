//! Memory that a disk will take: aligned to 4096 bytes, a multiple of it long, and never moved.
//!
//! The log thread takes a buffer from a `BufPool`, builds a frame in it, wraps it in an `Arc` and submits it. While the
//! write is in flight the `Arc` is shared, so nobody can change it; afterwards the same memory serves readers at the tail
//! as `bytes::Bytes`, without a copy, and goes back to the pool when the last of them lets go.
//!
//! Alignment costs no `unsafe`: the memory is a boxed slice with 4095 bytes to spare, used from its first aligned byte on.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// Everything sent to or read from a disk starts and ends on a multiple of this.
pub const BLOCK_BYTES: usize = 4096;

/// `bytes`, rounded up to whole blocks.
#[must_use]
pub const fn blocks_up(bytes: usize) -> usize {
    bytes.div_ceil(BLOCK_BYTES) * BLOCK_BYTES
}

/// Memory that starts on a multiple of 4096 and is a multiple of 4096 bytes long.
///
/// It never grows: its address stays the same until it is dropped.
pub struct AlignedBuf {
    memory: Box<[u8]>,
    start: usize,
    length: usize,
    home: Option<Arc<PoolShared>>,
}

impl AlignedBuf {
    /// A buffer of zeros for at least `bytes` bytes (rounded up to whole blocks, at least one).
    #[must_use]
    pub fn zeroed(bytes: usize) -> Self {
        let length = blocks_up(bytes.max(1));
        // `vec![0; n]` asks the allocator for zeroed memory: large buffers cost no page until they are touched.
        let memory = vec![0_u8; length + BLOCK_BYTES - 1].into_boxed_slice();
        Self::over(memory, length, None)
    }

    /// A buffer holding `bytes`, padded with zeros to whole blocks.
    #[must_use]
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut buf = Self::zeroed(bytes.len());
        buf[..bytes.len()].copy_from_slice(bytes);
        buf
    }

    fn over(memory: Box<[u8]>, length: usize, home: Option<Arc<PoolShared>>) -> Self {
        let address = memory.as_ptr().addr();
        let start = address.next_multiple_of(BLOCK_BYTES) - address;
        assert!(start + length <= memory.len(), "the spare bytes cover the alignment");
        Self { memory, start, length, home }
    }

    /// Hands the buffer to readers as `Bytes`, without copying.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }

    /// A view of a shared buffer as `Bytes`, without copying; the memory lives until the last of them is dropped.
    #[must_use]
    pub fn share(this: &Arc<Self>) -> Bytes {
        Bytes::from_owner(Shared(Arc::clone(this)))
    }

    /// Shortens the buffer to whole blocks that hold `bytes`; its memory stays as it is.
    ///
    /// # Panics
    /// When `bytes` is more than the buffer holds.
    pub fn truncate(&mut self, bytes: usize) {
        let length = blocks_up(bytes.max(1));
        assert!(length <= self.length, "a buffer is only ever shortened");
        self.length = length;
    }
}

/// Whole blocks that boxed memory holds wherever its alignment falls.
fn capacity_of(memory: &[u8]) -> usize {
    memory.len() - (BLOCK_BYTES - 1)
}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.length]
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.length]
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBuf({} bytes)", self.length)
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        if let Some(home) = self.home.take() {
            home.give_back(std::mem::take(&mut self.memory));
        }
    }
}

struct Shared(Arc<AlignedBuf>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Buffers waiting to be used again. What does not fit within its bound is freed instead.
#[derive(Clone)]
pub struct BufPool {
    shared: Arc<PoolShared>,
}

struct PoolShared {
    idle_bytes_max: usize,
    idle: Mutex<Idle>,
}

#[derive(Default)]
struct Idle {
    bytes: usize,
    memory: Vec<Box<[u8]>>,
}

impl BufPool {
    /// A pool that keeps at most `idle_bytes_max` bytes of unused buffers.
    #[must_use]
    pub fn new(idle_bytes_max: usize) -> Self {
        Self { shared: Arc::new(PoolShared { idle_bytes_max, idle: Mutex::default() }) }
    }

    /// A buffer for at least `bytes` bytes. **What it holds is whatever its last user left in it.**
    ///
    /// Sizes are rounded up by at most a quarter inside, so that buffers of similar frames serve one another.
    #[must_use]
    pub fn take(&self, bytes: usize) -> AlignedBuf {
        let length = blocks_up(bytes.max(1));
        let memory =
            self.shared.reuse(length).unwrap_or_else(|| vec![0_u8; size_class(length) + BLOCK_BYTES - 1].into_boxed_slice());
        AlignedBuf::over(memory, length, Some(Arc::clone(&self.shared)))
    }

    /// Bytes of buffers that wait for use.
    #[must_use]
    pub fn idle_bytes(&self) -> usize {
        self.shared.lock().bytes
    }
}

impl fmt::Debug for BufPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BufPool({} bytes idle)", self.idle_bytes())
    }
}

impl PoolShared {
    /// The memory that fits best, unless it is more than four times what is asked for.
    fn reuse(&self, length: usize) -> Option<Box<[u8]>> {
        let mut idle = self.lock();
        let best = idle
            .memory
            .iter()
            .enumerate()
            .map(|(at, memory)| (capacity_of(memory), at))
            .filter(|&(capacity, _)| capacity >= length && capacity / 4 <= length)
            .min()?;
        idle.bytes -= best.0;
        Some(idle.memory.swap_remove(best.1))
    }

    fn give_back(&self, memory: Box<[u8]>) {
        let capacity = capacity_of(&memory);
        let mut idle = self.lock();
        // The count is bounded too: finding a buffer looks at all of them.
        if idle.bytes + capacity <= self.idle_bytes_max && idle.memory.len() < IDLE_BUFFERS_MAX {
            idle.bytes += capacity;
            idle.memory.push(memory);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Idle> {
        // Nothing in here panics half-way, so a poisoned lock still guards a sound list.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const IDLE_BUFFERS_MAX: usize = 256;

/// Four sizes to each power of two: readers hold these buffers long, so half of one must not be empty.
fn size_class(length: usize) -> usize {
    let step = (length.next_power_of_two() / 8).max(BLOCK_BYTES);
    length.next_multiple_of(step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_zeroed_and_whole_blocks() {
        for bytes in [0, 1, 4095, 4096, 4097, 100_000, 1 << 20] {
            let buf = AlignedBuf::zeroed(bytes);
            assert_eq!(buf.as_ptr().addr() % BLOCK_BYTES, 0);
            assert_eq!(buf.len(), blocks_up(bytes.max(1)));
            assert!(buf.iter().all(|&b| b == 0));
        }
    }

    #[test]
    fn sharing_as_bytes_copies_nothing_and_outlives_the_buffer() {
        let buf = Arc::new(AlignedBuf::copy_of(b"frame"));
        let address = buf.as_ptr();
        let bytes = AlignedBuf::share(&buf);
        drop(buf);
        assert_eq!(bytes.as_ptr(), address);
        assert_eq!(&bytes[..5], b"frame");
    }

    #[test]
    fn pool_uses_memory_again_and_keeps_within_its_bound() {
        let pool = BufPool::new(32 * 1024);
        let first = pool.take(5_000);
        assert_eq!(first.len(), 8192);
        let address = first.as_ptr();
        drop(first);
        assert_eq!(pool.idle_bytes(), 8192);
        let again = pool.take(4097);
        assert_eq!(again.as_ptr(), address);
        assert_eq!(again.as_ptr().addr() % BLOCK_BYTES, 0);
        let large = pool.take(64 * 1024);
        drop((again, large));
        assert_eq!(pool.idle_bytes(), 8192, "64 KiB are over the bound and were freed");
        assert_ne!(pool.take(1).len(), 8192, "length is what was asked for, not what the memory holds");
    }

    #[test]
    fn a_small_request_does_not_take_a_huge_buffer() {
        let pool = BufPool::new(8 << 20);
        drop(pool.take(1 << 20));
        let small = pool.take(4096);
        assert_eq!(capacity_of(&small.memory), 4096);
        assert_eq!(pool.idle_bytes(), 1 << 20);
    }

    #[test]
    fn pooled_bytes_come_home_after_the_last_reader() {
        let pool = BufPool::new(1 << 20);
        let buf = Arc::new(pool.take(4096));
        let reader = AlignedBuf::share(&buf);
        drop(buf);
        assert_eq!(pool.idle_bytes(), 0);
        drop(reader);
        assert_eq!(pool.idle_bytes(), 4096);
    }
}
