//! Routes a copy of readings that need attention to the output `alerts`, with the reason; every record is kept.
//!
//! It reads what `tpms-normalize` writes. Each reading is held against the thresholds (`config`), against what its sensor
//! said before (`history`), and gets its reasons (`reason`); the copy is the reading with those added at its end.
#![forbid(unsafe_code)]

mod config;
mod history;
mod reason;

use std::borrow::Cow;

use weir_plugin::Table;
use weir_plugin::json::{write_escaped, write_fixed3};
use weir_plugin::prelude::*;
use weir_plugin::table::Hash;

pub use config::Config;
use history::History;
use reason::{Alert, Reason};

/// A normalised reading, as far as it matters here.
#[derive(Debug, Deserialize)]
struct Reading<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    model: Cow<'a, str>,
    pressure_kpa: Option<f64>,
    temperature_c: Option<f64>,
    #[serde(default)]
    fast_leak: bool,
    time_ms: Option<i64>,
}

/// The plugin.
#[derive(Debug)]
pub struct TyreAlert {
    config: Config,
    sensors: Table<History>,
}

#[weir_plugin::plugin(outputs = ["alerts"], metrics = ["low_pressure", "fast_leak", "hot_tyre", "suppressed"])]
impl Plugin for TyreAlert {
    type Config = Config;

    fn init(config: Config, _outputs: &Outputs<'_>) -> std::result::Result<Self, InitError> {
        config.check()?;
        let sensors = Table::new(config.sensors as usize);
        Ok(Self { config, sensors })
    }

    fn process(&mut self, record: Record<'_>, out: &mut Out<'_>) -> Result {
        let reading: Reading<'_> = record.json()?;
        let alerts = self.judge(&reading, record.timestamp());
        for alert in alerts.iter().flatten() {
            match alert.reason {
                Reason::FastLeak => out.count("fast_leak", 1),
                Reason::LowPressure => out.count("low_pressure", 1),
                Reason::HotTyre => out.count("hot_tyre", 1),
            }
        }
        let object = record.bytes()?;
        if alerts.iter().flatten().any(|alert| alert.fresh) {
            out.emit("alerts", record.key(), write_with(|buffer| write_alert(buffer, object, &alerts)))?;
        } else if alerts.iter().any(Option::is_some) {
            out.count("suppressed", 1);
        }
        out.keep()
    }
}

impl TyreAlert {
    /// The reasons for an alert, the most urgent first.
    fn judge(&mut self, reading: &Reading<'_>, timestamp: i64) -> [Option<Alert>; 3] {
        let hash = Hash::default().bytes(reading.model.as_bytes()).bytes(reading.id.as_bytes()).finish();
        let (history, _) = self.sensors.entry(hash);
        let time_ms = reading.time_ms.unwrap_or(timestamp);
        let config = &self.config;
        let lost = reading.pressure_kpa.map_or(0.0, |kpa| history.lost_kpa(time_ms, kpa, config.leak_window_ms));
        let found = [
            (reading.fast_leak || lost >= config.fast_leak_kpa).then_some((Reason::FastLeak, lost)),
            reading.pressure_kpa.filter(|kpa| *kpa < config.low_kpa).map(|kpa| (Reason::LowPressure, kpa)),
            reading.temperature_c.filter(|celsius| *celsius > config.hot_c).map(|celsius| (Reason::HotTyre, celsius)),
        ];
        found.map(|found| {
            let (reason, measured) = found?;
            let fresh = history.alert(reason, time_ms, config.repeat_ms);
            Some(Alert { reason, measured, limit: reason.limit(config), fresh })
        })
    }
}

/// The reading's own text up to its closing brace, and the reasons behind it.
fn write_alert(buffer: &mut Buffer<'_>, object: &[u8], alerts: &[Option<Alert>; 3]) {
    let object = object.trim_ascii_end();
    buffer.extend(object.strip_suffix(b"}").unwrap_or(object));
    let mut before: &[u8] = br#","reason":""#;
    for alert in alerts.iter().flatten().take(1) {
        buffer.extend(before);
        write_escaped(buffer, alert.reason.name());
        buffer.extend(br#"","measured":"#);
        write_fixed3(buffer, alert.measured);
        buffer.extend(br#","limit":"#);
        write_fixed3(buffer, alert.limit);
        before = br#","reasons":[""#;
    }
    for alert in alerts.iter().flatten() {
        buffer.extend(before);
        buffer.extend(alert.reason.name().as_bytes());
        before = br#"",""#;
    }
    buffer.extend(br#""]}"#);
}
