//! What one sensor said before, in a few dozen bytes.
//!
//! A batch that was not acknowledged comes again, and must give the same alerts again. So nothing here is a mere "last
//! value": pressures are kept as the highest of each quarter of the window, which a second look does not change, and an
//! alert told for a reading of this very time is told again.
use crate::reason::Reason;

const QUARTERS: usize = 4;

/// One sensor's past.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct History {
    quarters: [Quarter; QUARTERS],
    told: [Option<i64>; 3],
}

/// The highest pressure within a quarter of the window; numbered from 1970, 0 is unused.
#[derive(Debug, Clone, Copy, Default)]
struct Quarter {
    number: i64,
    highest_kpa: f32,
}

impl History {
    /// Notes a pressure and returns how far it lies below the highest of the window.
    pub(crate) fn lost_kpa(&mut self, time_ms: i64, kpa: f64, window_ms: i64) -> f64 {
        let now = time_ms.div_euclid((window_ms / QUARTERS as i64).max(1));
        let quarter = &mut self.quarters[now.rem_euclid(QUARTERS as i64) as usize];
        if now > quarter.number {
            *quarter = Quarter { number: now, highest_kpa: kpa as f32 };
        } else if now == quarter.number {
            quarter.highest_kpa = quarter.highest_kpa.max(kpa as f32);
        }
        let recent = self.quarters.iter().filter(|quarter| (now - QUARTERS as i64 + 1..=now).contains(&quarter.number));
        let highest = recent.map(|quarter| f64::from(quarter.highest_kpa)).fold(kpa, f64::max);
        // f32 keeps seven digits: what is lost must not come from rounding.
        let lost = highest - kpa;
        if lost < 0.01 { 0.0 } else { lost }
    }

    /// Whether an alert for this reason is to be told now, or was a moment ago.
    pub(crate) fn alert(&mut self, reason: Reason, time_ms: i64, repeat_ms: i64) -> bool {
        let told = &mut self.told[reason as usize];
        let again = told.is_some_and(|told| told != time_ms && told.abs_diff(time_ms) < repeat_ms.unsigned_abs());
        if !again {
            *told = Some(time_ms);
        }
        !again
    }
}
