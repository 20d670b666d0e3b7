//! Why a reading needs attention.
use crate::config::Config;

/// The reasons, the most urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    FastLeak,
    LowPressure,
    HotTyre,
}

impl Reason {
    /// As it stands in the alert.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::FastLeak => "fast_leak",
            Self::LowPressure => "low_pressure",
            Self::HotTyre => "hot_tyre",
        }
    }

    /// The threshold that was passed: kPa lost, kPa, °C.
    pub(crate) fn limit(self, config: &Config) -> f64 {
        match self {
            Self::FastLeak => config.fast_leak_kpa,
            Self::LowPressure => config.low_kpa,
            Self::HotTyre => config.hot_c,
        }
    }
}

/// A reason found in a reading.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Alert {
    pub(crate) reason: Reason,
    /// kPa lost, kPa, °C.
    pub(crate) measured: f64,
    pub(crate) limit: f64,
    /// Not told of this sensor a moment ago.
    pub(crate) fresh: bool,
}
