//! Pauses between attempts: doubling, with jitter so that a fleet does not come back in step.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(50);

/// The pauses of one run of failures.
#[derive(Debug)]
pub(crate) struct Backoff {
    failures: u32,
    max: Duration,
}

impl Backoff {
    pub(crate) fn new(max: Duration) -> Backoff {
        Backoff { failures: 0, max }
    }

    /// The next pause: between half and all of 50 ms × 2ⁿ, bounded.
    pub(crate) fn next_pause(&mut self) -> Duration {
        let full = FIRST.saturating_mul(1 << self.failures.min(16)).min(self.max);
        self.failures += 1;
        full.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_their_limit() {
        let mut backoff = Backoff::new(Duration::from_secs(1));
        for full_ms in [50, 100, 200, 400, 800, 1000, 1000] {
            let pause = backoff.next_pause();
            assert!(pause >= Duration::from_millis(full_ms / 2) && pause <= Duration::from_millis(full_ms), "{pause:?}");
        }
        backoff.reset();
        assert!(backoff.next_pause() <= FIRST);
    }
}
