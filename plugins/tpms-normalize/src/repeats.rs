//! Repeats: a sensor sends each reading three to six times within a second, in case one is lost on the air.
//!
//! A reading is a repeat if the same sensor said exactly the same within the window. It must not be mistaken for a batch
//! that its producer sends again because it was not acknowledged: such a batch brings the *same records*, so the first of
//! a burst comes back with the timestamp it had. That record is taken for the first one again, and only those after it
//! are repeats again: sending a batch twice gives the same result twice.
use weir_plugin::Table;

use crate::reading::Reading;

/// The last readings of this instance.
#[derive(Debug)]
pub(crate) struct Repeats {
    window_ms: u64,
    batch: u32,
    firsts: Table<First>,
}

/// The first of a burst.
#[derive(Debug, Clone, Copy, Default)]
struct First {
    timestamp: i64,
    batch: u32,
}

impl Repeats {
    pub(crate) fn new(window_ms: u32, remember: u32) -> Self {
        Self { window_ms: u64::from(window_ms), batch: 0, firsts: Table::new(remember as usize) }
    }

    /// Called after each batch.
    pub(crate) fn next_batch(&mut self) {
        self.batch = self.batch.wrapping_add(1);
    }

    pub(crate) fn is_repeat(&mut self, reading: &Reading<'_>, timestamp: i64) -> bool {
        let (first, known) = self.firsts.entry(reading.hash());
        let near = first.timestamp.abs_diff(timestamp) <= self.window_ms;
        let sent_again = first.timestamp == timestamp && first.batch != self.batch;
        if known && near && !sent_again {
            return true;
        }
        *first = First { timestamp, batch: self.batch };
        false
    }
}
