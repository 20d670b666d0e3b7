//! The thresholds.
use weir_plugin::prelude::*;

/// Sensors remembered at most; about 100 bytes each.
const SENSORS_MAX: u32 = 131_072;
const WINDOW_MS_MAX: i64 = 30 * 24 * 3_600_000;

/// The configuration.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Below this many kPa a tyre is low.
    pub low_kpa: f64,
    /// A tyre that lost this many kPa within `leak_window_ms` leaks fast.
    pub fast_leak_kpa: f64,
    /// How far back a loss is looked for.
    pub leak_window_ms: i64,
    /// Above this many °C a tyre is hot.
    pub hot_c: f64,
    /// The same reason for the same sensor alerts again after this time; 0 alerts every time.
    pub repeat_ms: i64,
    /// The most sensors remembered; the least recently heard is forgotten first.
    pub sensors: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self { low_kpa: 150.0, fast_leak_kpa: 20.0, leak_window_ms: 600_000, hot_c: 85.0, repeat_ms: 60_000, sensors: 16_384 }
    }
}

impl Config {
    /// Names the key that is wrong.
    pub(crate) fn check(&self) -> std::result::Result<(), InitError> {
        for (key, value, least, most) in [
            ("low_kpa", self.low_kpa, 0.0, 5_000.0),
            ("fast_leak_kpa", self.fast_leak_kpa, 0.001, 5_000.0),
            ("leak_window_ms", self.leak_window_ms as f64, 1_000.0, WINDOW_MS_MAX as f64),
            ("hot_c", self.hot_c, -100.0, 300.0),
            ("repeat_ms", self.repeat_ms as f64, 0.0, WINDOW_MS_MAX as f64),
            ("sensors", f64::from(self.sensors), 4.0, f64::from(SENSORS_MAX)),
        ] {
            if !(least..=most).contains(&value) {
                return Err(InitError::config(key, format_args!("{value} must lie between {least} and {most}")));
            }
        }
        Ok(())
    }
}
