//! The circuit breaker of a stage: when looking for the record to blame never pays, stop paying for a while.
//!
//! Pure: time is the `now_ms` of the batches. **Closed**: batches run; each failing one adds strikes, a clean one clears
//! them. **Open**: batches are not run, the failure policy applies to all their records. After a cool-down, measured in
//! milliseconds or in batches, whichever ends first, it is **half-open**: one batch is run as a probe, without a search;
//! a clean one closes the circuit, a failing one opens it for twice as long.

/// When a stage's circuit opens and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerConfig {
    /// Strikes in a row that open it.
    pub strikes_open: u32,
    /// Strikes of a batch whose search was given up or cost time-outs; one whose poison records were found without adds 1.
    pub strikes_costly: u32,
    /// The first cool-down.
    pub cooldown_ms: u32,
    /// The longest.
    pub cooldown_ms_max: u32,
    /// Batches after which the cool-down ends even if the clock stands still.
    pub cooldown_batches: u32,
}

impl Default for BreakerConfig {
    /// Four costly failures in a row, or 32 batches in a row with a poison record each, open it for ten seconds.
    fn default() -> Self {
        Self { strikes_open: 32, strikes_costly: 8, cooldown_ms: 10_000, cooldown_ms_max: 300_000, cooldown_batches: 10_000 }
    }
}

/// Where a stage's circuit stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    /// Batches run.
    Closed,
    /// The policy applies without running.
    Open,
    /// A probe runs; all others are treated as if it were open.
    HalfOpen,
}

/// What to do with a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admit {
    Run,
    Probe,
    Refuse,
}

/// How a batch went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Went {
    Clean,
    /// Poison records were found.
    Isolated,
    /// The search was given up, or took time-outs.
    Costly,
    /// It was not the plugin's turn: no instance was free.
    Unknown,
}

#[derive(Debug)]
pub(crate) struct Breaker {
    config: BreakerConfig,
    state: BreakerState,
    strikes: u32,
    cooldown_ms: u32,
    opened_at_ms: i64,
    batches_refused: u32,
    opened_count: u64,
}

impl Breaker {
    pub(crate) fn new(config: BreakerConfig) -> Self {
        Self {
            config,
            state: BreakerState::Closed,
            strikes: 0,
            cooldown_ms: config.cooldown_ms,
            opened_at_ms: 0,
            batches_refused: 0,
            opened_count: 0,
        }
    }

    pub(crate) fn state(&self) -> BreakerState {
        self.state
    }

    /// How often it opened.
    pub(crate) fn opened_count(&self) -> u64 {
        self.opened_count
    }

    pub(crate) fn admit(&mut self, now_ms: i64) -> Admit {
        match self.state {
            BreakerState::Closed => Admit::Run,
            BreakerState::HalfOpen => Admit::Refuse,
            BreakerState::Open => {
                self.batches_refused = self.batches_refused.saturating_add(1);
                let waited_ms = now_ms.saturating_sub(self.opened_at_ms);
                if waited_ms < i64::from(self.cooldown_ms) && self.batches_refused <= self.config.cooldown_batches {
                    return Admit::Refuse;
                }
                self.state = BreakerState::HalfOpen;
                Admit::Probe
            }
        }
    }

    /// Tells how an admitted batch went; `true` if this opened the circuit.
    pub(crate) fn went(&mut self, now_ms: i64, admitted: Admit, went: Went) -> bool {
        if admitted == Admit::Probe {
            return self.probed(now_ms, went);
        }
        match went {
            Went::Clean => self.strikes = 0,
            Went::Isolated => self.strikes = self.strikes.saturating_add(1),
            Went::Costly => self.strikes = self.strikes.saturating_add(self.config.strikes_costly),
            Went::Unknown => {}
        }
        if self.state == BreakerState::Closed && self.strikes >= self.config.strikes_open {
            self.open(now_ms);
            return true;
        }
        false
    }

    fn probed(&mut self, now_ms: i64, went: Went) -> bool {
        match went {
            Went::Clean => {
                self.state = BreakerState::Closed;
                self.strikes = 0;
                self.cooldown_ms = self.config.cooldown_ms;
                false
            }
            Went::Unknown => {
                self.state = BreakerState::Open;
                false
            }
            Went::Isolated | Went::Costly => {
                self.cooldown_ms = self.cooldown_ms.saturating_mul(2).min(self.config.cooldown_ms_max);
                self.open(now_ms);
                true
            }
        }
    }

    fn open(&mut self, now_ms: i64) {
        self.state = BreakerState::Open;
        self.opened_at_ms = now_ms;
        self.batches_refused = 0;
        self.strikes = 0;
        self.opened_count += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn costly(breaker: &mut Breaker, now_ms: i64) -> bool {
        let admitted = breaker.admit(now_ms);
        assert_ne!(admitted, Admit::Refuse);
        breaker.went(now_ms, admitted, Went::Costly)
    }

    #[test]
    fn costly_failures_in_a_row_open_it_and_a_clean_batch_between_does_not() {
        let mut breaker = Breaker::new(BreakerConfig::default());
        for _ in 0..3 {
            assert!(!costly(&mut breaker, 0));
        }
        breaker.went(0, Admit::Run, Went::Clean);
        for _ in 0..3 {
            assert!(!costly(&mut breaker, 0));
        }
        assert!(costly(&mut breaker, 5));
        assert_eq!((breaker.state(), breaker.opened_count()), (BreakerState::Open, 1));
    }

    #[test]
    fn one_poison_record_a_batch_takes_long_to_open_it() {
        let mut breaker = Breaker::new(BreakerConfig::default());
        let opened = (1..=40).find(|_| breaker.went(0, Admit::Run, Went::Isolated));
        assert_eq!(opened, Some(32));
    }

    #[test]
    fn after_the_cool_down_one_probe_decides_and_failing_doubles_it() {
        let mut breaker = Breaker::new(BreakerConfig::default());
        while !costly(&mut breaker, 1_000) {}
        assert_eq!(breaker.admit(10_999), Admit::Refuse);
        assert_eq!(breaker.admit(11_000), Admit::Probe);
        assert_eq!(breaker.admit(11_000), Admit::Refuse, "one probe at a time");
        assert!(breaker.went(11_000, Admit::Probe, Went::Isolated));
        assert_eq!(breaker.admit(30_999), Admit::Refuse);
        assert_eq!(breaker.admit(31_000), Admit::Probe);
        assert!(!breaker.went(31_000, Admit::Probe, Went::Clean));
        assert_eq!((breaker.admit(31_000), breaker.state()), (Admit::Run, BreakerState::Closed));
    }

    #[test]
    fn a_clock_that_stands_still_does_not_keep_it_open() {
        let mut breaker = Breaker::new(BreakerConfig { cooldown_batches: 3, ..BreakerConfig::default() });
        while !costly(&mut breaker, 0) {}
        let answers: Vec<_> = (0..4).map(|_| breaker.admit(-5)).collect();
        assert_eq!(answers, [Admit::Refuse, Admit::Refuse, Admit::Refuse, Admit::Probe]);
        breaker.went(-5, Admit::Probe, Went::Unknown);
        assert_eq!(breaker.admit(-5), Admit::Probe, "a probe that found no instance is tried again");
    }
}
