//! Whether a frame is compressed. zstd makes a frame smaller, but it runs on the log thread: on a disk faster than zstd it
//! would hold up every commit.
//!
//! So frames are compressed where that has made them much cheaper: the time of compression and write together, for each byte before
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
/// One frame of so many is compressed where raw ones are cheaper: that may cost several times a frame's time, and thrift tells as much.
const PACKED_TRIAL_EVERY: u32 = 512;
/// And stored raw where compressed ones are cheaper: a disk that stalled once must not be taken for a slow one for long.
const RAW_TRIAL_EVERY: u32 = 64;
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
    /// What the thread had spent on compression before.
    pub(super) spent_before: Duration,
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
    /// Time spent on compression, in all and up to when the last frame was found durable.
    spent: Duration,
    spent_at_commit: Duration,
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
        FrameCompressor {
            zstd,
            pause: 0,
            packed_cost: None,
            raw_cost: None,
            since_trial: 0,
            thrift: Thrift::default(),
            spent: Duration::ZERO,
            spent_at_commit: Duration::ZERO,
        }
    }

    /// Whether the next frame is worth a try.
    pub(super) fn pays(&mut self, now: Duration) -> bool {
        let affordable = self.thrift.allows(now);
        if self.pause > 0 {
            self.pause -= 1;
            return false;
        }
        let cheaper = self.packed_is_cheaper();
        self.since_trial += 1;
        if self.since_trial < if cheaper { RAW_TRIAL_EVERY } else { PACKED_TRIAL_EVERY } {
            return cheaper || affordable;
        }
        self.since_trial = 0;
        !cheaper
    }

    /// By a half and more: whoever sends the records wants the processor as well.
    fn packed_is_cheaper(&self) -> bool {
        match (self.packed_cost, self.raw_cost) {
            (None, _) => true,
            (_, None) => false,
            (Some(packed), Some(raw)) => packed.saturating_add(packed / 2) <= raw,
        }
    }

    /// What storing a frame has taken so far, before it is tried.
    pub(super) fn effort(&self, raw_bytes: usize) -> Effort {
        Effort { raw_bytes, spent_before: self.spent, ..Effort::default() }
    }

    /// A frame is found durable, so long after it was handed over or after the one before was found so. While the thread compresses
    /// it finds nothing: the frame in flight beside that is not the dearer for it.
    pub(super) fn learn(&mut self, effort: Effort, writing: Duration) {
        let elsewhere = self.spent - effort.spent_before.max(self.spent_at_commit);
        self.spent_at_commit = self.spent;
        if effort.raw_bytes == 0 {
            return;
        }
        let writing = writing.saturating_sub(elsewhere);
        let cost = ((effort.compressing + writing).as_nanos() as u64).saturating_mul(1000) / effort.raw_bytes as u64;
        // An eighth of the news: one stall decides nothing. What is only tried now and then must not take as many trials to be believed.
        let part = if effort.zstd == self.packed_is_cheaper() { 8 } else { 2 };
        let known = if effort.zstd { &mut self.packed_cost } else { &mut self.raw_cost };
        *known = Some(known.map_or(cost, |old| old - old / part + cost / part));
    }

    /// Compression has taken so long, whatever came of it.
    pub(super) fn took(&mut self, compressing: Duration) {
        self.spent += compressing;
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

    const ZSTD: Duration = Duration::from_millis(3);

    /// Compresses a frame of 1 MiB, if it is to be.
    fn begin(compressor: &mut FrameCompressor, zstd: bool, compressing: Duration) -> Effort {
        let effort = compressor.effort(1 << 20);
        if !zstd {
            return effort;
        }
        compressor.took(compressing);
        Effort { zstd, compressing, ..effort }
    }

    /// Stores a frame of 1 MiB, nothing beside it.
    fn store(compressor: &mut FrameCompressor, zstd: bool, compressing: Duration, disk_us: u64) {
        let effort = begin(compressor, zstd, compressing);
        compressor.learn(effort, effort.compressing + Duration::from_micros(disk_us));
    }

    /// On a disk that takes so long for a compressed and for a raw frame; how many were compressed.
    fn compressed_of_1000(packed_us: u64, raw_us: u64) -> usize {
        let mut compressor = FrameCompressor::new();
        let mut compressed = 0;
        for n in 0..1000 {
            // A busy thread: frames follow one another within a millisecond.
            let zstd = compressor.pays(Duration::from_millis(n));
            compressed += usize::from(zstd);
            store(&mut compressor, zstd, ZSTD, if zstd { packed_us } else { raw_us });
        }
        compressed
    }

    /// The same with two frames in flight: the older one is found durable when the younger one has been compressed.
    fn compressed_beside_another(packed_us: u64, raw_us: u64) -> usize {
        let mut compressor = FrameCompressor::new();
        let mut compressed = 0;
        let mut older: Option<Effort> = None;
        for n in 0..1000 {
            let zstd = compressor.pays(Duration::from_millis(n));
            compressed += usize::from(zstd);
            let effort = begin(&mut compressor, zstd, ZSTD);
            if let Some(older) = older.replace(effort) {
                let disk = Duration::from_micros(if older.zstd { packed_us } else { raw_us });
                // Since the frame before it was found durable.
                compressor.learn(older, disk.max(effort.compressing));
            }
        }
        compressed
    }

    #[test]
    fn a_fast_disk_gets_raw_frames_and_a_slow_one_compressed_ones() {
        // A twentieth of a second, three milliseconds each.
        let compressed = compressed_of_1000(200, 600);
        assert!((10..25).contains(&compressed), "{compressed}");
        assert!(compressed_of_1000(7_000, 25_000) > 980);
    }

    #[test]
    fn a_frame_beside_another_that_is_compressed_is_not_the_dearer_for_it() {
        let compressed = compressed_beside_another(200, 600);
        assert!((10..25).contains(&compressed), "{compressed}");
        assert!(compressed_beside_another(7_000, 25_000) > 980);
    }

    #[test]
    fn a_thread_with_time_to_spare_saves_bytes_on_any_disk() {
        let mut compressor = FrameCompressor::new();
        store(&mut compressor, true, Duration::from_micros(300), 200);
        store(&mut compressor, false, Duration::ZERO, 210);
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
    fn one_stall_of_a_fast_disk_is_soon_forgotten() {
        let mut compressor = FrameCompressor::new();
        store(&mut compressor, true, ZSTD, 200);
        store(&mut compressor, false, ZSTD, 40_000);
        let mut compressed = 0;
        for n in 0..1000 {
            let zstd = compressor.pays(Duration::from_millis(n));
            compressed += usize::from(zstd);
            store(&mut compressor, zstd, ZSTD, if zstd { 200 } else { 600 });
        }
        assert!((200..500).contains(&compressed), "{compressed}");
    }

    #[test]
    fn a_disk_that_has_become_slow_is_noticed() {
        let mut compressor = FrameCompressor::new();
        store(&mut compressor, true, ZSTD, 200);
        store(&mut compressor, false, ZSTD, 600);
        assert!(!compressor.pays(Duration::ZERO));
        (0..100).for_each(|_| store(&mut compressor, false, ZSTD, 25_000));
        assert!(compressor.pays(Duration::ZERO));
    }
}
