//! What the disk is to do wrong next. What each fault means is told in [`super`].

use std::time::Duration;

use super::cache::Cut;

/// Faults to come; none by default.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Flushes answer and do nothing.
    pub lying_flush: bool,
    /// So many of the next writes are refused.
    pub writes_to_fail: u32,
    /// So many of the next flushes are refused.
    pub flushes_to_fail: u32,
    /// The power goes at the n-th write from now (1: the next), in this way.
    pub cut_at_write: Option<(u32, Cut)>,
    /// How long things take.
    pub delays: Delays,
}

impl Faults {
    /// Is there still a write or a flush to fail?
    pub fn is_pending(&self) -> bool {
        self.writes_to_fail + self.flushes_to_fail > 0
    }

    /// Is this write to fail?
    pub(super) fn write_fails(&mut self) -> bool {
        count_down(&mut self.writes_to_fail)
    }

    /// Is this flush to fail?
    pub(super) fn flush_fails(&mut self) -> bool {
        count_down(&mut self.flushes_to_fail)
    }

    /// Does the power go at this write?
    pub(super) fn cut_at_write(&mut self) -> Option<Cut> {
        let (left, cut) = self.cut_at_write.as_mut()?;
        *left = left.saturating_sub(1);
        let cut = (*left == 0).then_some(*cut)?;
        self.cut_at_write = None;
        Some(cut)
    }
}

fn count_down(left: &mut u32) -> bool {
    let some = *left > 0;
    *left = left.saturating_sub(1);
    some
}

/// How long one operation takes; nothing by default.
#[derive(Clone, Copy, Debug, Default)]
pub struct Delays {
    /// Of a read.
    pub read: Range,
    /// Of a write into the cache.
    pub write: Range,
    /// Of a flush.
    pub flush: Range,
}

impl Delays {
    /// Like a disk that turns: a flush waits for arm and platter. Reads are spared, so that checks stay short.
    pub const HARD_DISK: Delays = Delays { read: Range::us(50, 200), write: Range::us(20, 200), flush: Range::ms(2, 12) };
}

/// A time between two bounds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Range {
    from_us: u64,
    to_us: u64,
}

impl Range {
    /// Microseconds, both included.
    pub const fn us(from: u64, to: u64) -> Range {
        assert!(from <= to);
        Range { from_us: from, to_us: to }
    }

    /// Milliseconds, both included.
    pub const fn ms(from: u64, to: u64) -> Range {
        Range::us(from * 1000, to * 1000)
    }

    /// A time drawn from it. Which one needs no seed: when the kernel's requests come is not repeatable either.
    pub fn draw(&self) -> Duration {
        Duration::from_micros(fastrand::u64(self.from_us..=self.to_us))
    }
}
