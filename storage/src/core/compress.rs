//! Whether a frame is compressed. zstd makes a frame smaller, but it runs on the log thread: on a disk faster than zstd it
//! would hold up every commit.
//!
//! So frames are compressed where that has made them cheaper: the time of compression and write together, for each byte before
//! compression, is kept for frames stored either way, and now and then the other way is tried again.
//!
//! On a fast disk they are compressed as well as long as that costs little: flash wears out by the bytes written to it, and at
//! moderate load the thread has time. A twentieth of it goes into that ([`Thrift`]).

use std::time::Duration;

use crate::disk::{AlignedBuf, BufPool};
use crate::format::BLOCK;

const ZSTD_LEVEL: i32 = 1;
/// Frames left uncompressed after one that did not shrink.
const PAUSE: u32 = 15;
/// One frame of so many is stored the other way: a trial may cost several times a frame's time.
const TRIAL_EVERY: u32 = 512;
/// One part in so many of the thread's time may go into compression that saves bytes but no time.
const THRIFT_SHARE: u32 = 20;
/// So much of it is saved up for a burst.
const THRIFT_MAX: Duration = Duration::from_millis(50);

/// What storing a frame has taken before it went to the disk.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Effort {
    /// Bytes before compression; 0 for frames that say nothing about it.
    pub(super) raw_bytes: usize,
    pub(super) zstd: bool,
    pub(super) compressing: Duration,
}

/// Tries zstd, and stops trying for a while when the payload turns out to be incompressible.
#[derive(Debug)]
pub(super) struct FrameCompressor {
    zstd: ZstdContext,
    pause: u32,
    /// Picoseconds a byte, compressed and raw; none before the first.
    packed_cost: Option<u64>,
    raw_cost: Option<u64>,
    since_trial: u32,
    thrift: Thrift,
}

/// Time set aside for compression that saves bytes only.
#[derive(Debug, Default)]
struct Thrift {
    left: Duration,
    counted_to: Duration,
    /// What the last compression took.
    cost: Duration,
}

impl Thrift {
    /// Whether there is time for one more.
    fn allows(&mut self, now: Duration) -> bool {
        self.left = THRIFT_MAX.min(self.left + now.saturating_sub(self.counted_to) / THRIFT_SHARE);
        self.counted_to = now;
        self.left >= self.cost
    }

    fn spend(&mut self, took: Duration) {
        self.cost = took;
        self.left = self.left.saturating_sub(took);
    }
}

struct ZstdContext(Option<zstd::bulk::Compressor<'static>>);

impl std::fmt::Debug for ZstdContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ZstdContext")
    }
}

impl FrameCompressor {
    pub(super) fn new() -> FrameCompressor {
        // Without a context (no memory) frames are stored as they are.
        let zstd = ZstdContext(zstd::bulk::Compressor::new(ZSTD_LEVEL).ok());
        FrameCompressor { zstd, pause: 0, packed_cost: None, raw_cost: None, since_trial: 0, thrift: Thrift::default() }
    }

    /// Whether the next frame is worth a try.
    pub(super) fn pays(&mut self, now: Duration) -> bool {
        let affordable = self.thrift.allows(now);
        if self.pause > 0 {
            self.pause -= 1;
            return false;
        }
        let cheaper = match (self.packed_cost, self.raw_cost) {
            (None, _) => true,
            (_, None) => false,
            (Some(packed), Some(raw)) => packed <= raw,
        };
        self.since_trial += 1;
        if self.since_trial < TRIAL_EVERY {
            return cheaper || affordable;
        }
        self.since_trial = 0;
        !cheaper
    }

    /// A frame is durable; the disk worked on it for `writing`.
    pub(super) fn learn(&mut self, effort: Effort, writing: Duration) {
        if effort.raw_bytes == 0 {
            return;
        }
        let cost = ((effort.compressing + writing).as_nanos() as u64).saturating_mul(1000) / effort.raw_bytes as u64;
        let known = if effort.zstd { &mut self.packed_cost } else { &mut self.raw_cost };
        // An eighth of the news: one stall decides nothing.
        *known = Some(known.map_or(cost, |old| old - old / 8 + cost / 8));
    }

    /// Compression has taken so long, whatever came of it.
    pub(super) fn took(&mut self, compressing: Duration) {
        self.thrift.spend(compressing);
    }

    /// A copy of the frame with a compressed payload, and its payload's length, if that saves a block.
    pub(super) fn compress(
        &mut self,
        raw: &[u8],
        directory_end: usize,
        payload: usize,
        pool: &BufPool,
    ) -> Option<(AlignedBuf, usize)> {
        let whole = crate::disk::blocks_up(directory_end + payload);
        let mut packed = pool.take(whole);
        let room = whole - BLOCK;
        let stored = (room > directory_end)
            .then(|| {
                self.zstd
                    .0
                    .as_mut()?
                    .compress_to_buffer(&raw[directory_end..directory_end + payload], &mut packed[directory_end..room])
                    .ok()
            })
            .flatten();
        match stored {
            Some(stored) => {
                packed[..directory_end].copy_from_slice(&raw[..directory_end]);
                Some((packed, stored))
            }
            None => {
                self.pause = PAUSE;
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn effort(zstd: bool, compressing_us: u64) -> Effort {
        Effort { raw_bytes: 1 << 20, zstd, compressing: Duration::from_micros(compressing_us) }
    }

    /// Frames of 1 MiB on a disk that takes so long for a compressed and for a raw one; how many were compressed.
    fn compressed_of_1000(packed_us: u64, raw_us: u64) -> usize {
        let mut compressor = FrameCompressor::new();
        let mut compressed = 0;
        for n in 0..1000 {
            // A busy thread: frames follow one another within a millisecond.
            let zstd = compressor.pays(Duration::from_millis(n));
            compressed += usize::from(zstd);
            let writing = if zstd { packed_us } else { raw_us };
            if zstd {
                compressor.took(Duration::from_millis(3));
            }
            compressor.learn(effort(zstd, if zstd { 3000 } else { 0 }), Duration::from_micros(writing));
        }
        compressed
    }

    #[test]
    fn a_fast_disk_gets_raw_frames_and_a_slow_one_compressed_ones() {
        // A twentieth of a second, three milliseconds each.
        let compressed = compressed_of_1000(200, 600);
        assert!((10..25).contains(&compressed), "{compressed}");
        assert!(compressed_of_1000(7_000, 25_000) > 990);
    }

    #[test]
    fn a_thread_with_time_to_spare_saves_bytes_on_any_disk() {
        let mut compressor = FrameCompressor::new();
        compressor.learn(effort(true, 300), Duration::from_micros(200));
        compressor.learn(effort(false, 0), Duration::from_micros(210));
        let mut compressed = 0;
        for n in 0..1000 {
            let zstd = compressor.pays(Duration::from_millis(5 * n));
            compressed += usize::from(zstd);
            if zstd {
                compressor.took(Duration::from_micros(200));
            }
        }
        assert!(compressed > 990, "{compressed}");
    }

    #[test]
    fn a_disk_that_has_become_slow_is_noticed() {
        let mut compressor = FrameCompressor::new();
        compressor.learn(effort(true, 3000), Duration::from_micros(200));
        compressor.learn(effort(false, 0), Duration::from_micros(600));
        compressor.took(Duration::from_millis(3));
        assert!(!compressor.pays(Duration::ZERO));
        (0..100).for_each(|_| compressor.learn(effort(false, 0), Duration::from_micros(25_000)));
        assert!(compressor.pays(Duration::ZERO));
    }
}
