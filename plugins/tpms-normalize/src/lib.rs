//! Gives every tyre sensor that rtl_433 decodes one schema.
//!
//! A line comes in as rtl_433 prints it (`source`), its time is understood (`time`), a burst's repeats are told from new
//! readings (`repeats`), and the reading goes out in one form (`reading`). Lines that are no tyre sensor are dropped;
//! lines that are no JSON, or have no id, are rejected: the failure policy decides about them.
#![forbid(unsafe_code)]

mod reading;
mod repeats;
mod source;
mod time;

use weir_plugin::prelude::*;
use weir_plugin::{IntoKey, Payload};

use reading::Reading;
use repeats::Repeats;
use source::Source;

/// Repeats of a burst come within about a second.
const DEDUP_MS_DEFAULT: u32 = 2_000;
const DEDUP_MS_MAX: u32 = 3_600_000;
/// Readings remembered to find repeats; 40 bytes each.
const REMEMBER_DEFAULT: u32 = 16_384;
const REMEMBER_MAX: u32 = 262_144;
const UTC_OFFSET_MINUTES_MAX: i32 = 18 * 60;

/// The configuration.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// An identical reading of the same sensor within this time is a repeat and dropped; 0 keeps all.
    pub dedup_ms: u32,
    /// The most readings remembered.
    pub remember: u32,
    /// The receivers' wall clock, in minutes east of UTC; rtl_433 prints local time unless told otherwise.
    pub utc_offset_minutes: i32,
}

impl Default for Config {
    fn default() -> Self {
        Self { dedup_ms: DEDUP_MS_DEFAULT, remember: REMEMBER_DEFAULT, utc_offset_minutes: 0 }
    }
}

/// The plugin.
#[derive(Debug)]
pub struct Normalize {
    repeats: Option<Repeats>,
    utc_offset_ms: i64,
}

#[weir_plugin::plugin(metrics = ["repeats", "not_tpms", "no_pressure"])]
impl Plugin for Normalize {
    type Config = Config;

    fn init(config: Config, _outputs: &Outputs<'_>) -> std::result::Result<Self, InitError> {
        check("dedup_ms", i64::from(config.dedup_ms), 0, i64::from(DEDUP_MS_MAX))?;
        check("remember", i64::from(config.remember), 4, i64::from(REMEMBER_MAX))?;
        let offset = i64::from(UTC_OFFSET_MINUTES_MAX);
        check("utc_offset_minutes", i64::from(config.utc_offset_minutes), -offset, offset)?;
        let repeats = (config.dedup_ms > 0).then(|| Repeats::new(config.dedup_ms, config.remember));
        Ok(Self { repeats, utc_offset_ms: i64::from(config.utc_offset_minutes) * 60_000 })
    }

    fn process(&mut self, record: Record<'_>, out: &mut Out<'_>) -> Result {
        let source = Source::read(&record)?;
        if !source.is_tpms() {
            out.count("not_tpms", 1);
            return out.drop();
        }
        let reading = Reading::of(&source, record.timestamp(), self.utc_offset_ms)?;
        if let Some(repeats) = &mut self.repeats
            && repeats.is_repeat(&reading, record.timestamp())
        {
            out.count("repeats", 1);
            return out.drop();
        }
        if reading.pressure_kpa.is_none() {
            out.count("no_pressure", 1);
        }
        out.replace_with(write_key(&reading), write_with(|buffer| reading.write(buffer)))
    }

    fn batch_end(&mut self, _out: &mut Out<'_>) -> std::result::Result<(), BatchError> {
        if let Some(repeats) = &mut self.repeats {
            repeats.next_batch();
        }
        Ok(())
    }
}

/// `model/id`: all readings of a sensor have the same key.
fn write_key<'r>(reading: &'r Reading<'_>) -> impl IntoKey + Payload + use<'r> {
    write_with(|buffer| {
        buffer.extend(reading.model.as_bytes());
        buffer.push(b'/');
        reading.id.write(buffer);
    })
}

fn check(key: &str, value: i64, least: i64, most: i64) -> std::result::Result<(), InitError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(InitError::config(key, format_args!("{value} must lie between {least} and {most}")))
}
