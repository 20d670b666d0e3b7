//! One reading in the common schema: kilopascals, degrees Celsius, milliseconds, one way to write an id.
use weir_plugin::json::{Scalar, write_escaped, write_fixed3, write_int};
use weir_plugin::prelude::*;
use weir_plugin::table::Hash;

use crate::source::Source;
use crate::time::{self, Time};

const KPA_PER_PSI: f64 = 6.894_757_293_168;
const KPA_PER_BAR: f64 = 100.0;
/// What a tyre sensor can have measured; beyond it the line is damaged.
const PRESSURE_KPA: std::ops::RangeInclusive<f64> = -200.0..=5_000.0;
const TEMPERATURE_C: std::ops::RangeInclusive<f64> = -100.0..=300.0;

/// A sensor's id: text in lower case, numbers in lower-case hexadecimal, as most decoders print them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Id<'a> {
    /// Lower-case letters and digits only, as nearly all are: the same everywhere.
    Plain(&'a str),
    Text(&'a str),
    Number(u64),
}

impl<'a> Id<'a> {
    fn of(scalar: &'a Scalar<'_>) -> Result<Self> {
        match scalar {
            Scalar::Text(text) => match trimmed(text) {
                "" => Err(Error::fixed("\"id\" is neither text nor a whole number")),
                text if is_plain(text) => Ok(Self::Plain(text)),
                text => Ok(Self::Text(text)),
            },
            Scalar::Int(number) if *number >= 0 => Ok(Self::Number(number.unsigned_abs())),
            Scalar::Missing | Scalar::Null => Err(Error::fixed("the reading has no \"id\"")),
            _ => Err(Error::fixed("\"id\" is neither text nor a whole number")),
        }
    }

    pub(crate) fn write(self, buffer: &mut Buffer<'_>) {
        match self {
            Self::Plain(text) => buffer.extend(text.as_bytes()),
            Self::Text(text) => text.bytes().for_each(|byte| buffer.push(byte.to_ascii_lowercase())),
            Self::Number(number) => write_hex(buffer, number),
        }
    }

    /// For the inside of a JSON text.
    fn write_json(self, buffer: &mut Buffer<'_>) {
        match self {
            Self::Text(text) if !text.bytes().all(|byte| byte.is_ascii_alphanumeric()) => {
                write_escaped(buffer, &text.to_ascii_lowercase());
            }
            _ => self.write(buffer),
        }
    }

    fn hash(self, hash: Hash) -> Hash {
        match self {
            Self::Number(number) => hash.word(number),
            Self::Plain(text) => hash.bytes(text.as_bytes()),
            Self::Text(text) => hash.bytes(text.to_ascii_lowercase().as_bytes()),
        }
    }
}

/// A reading, borrowing its texts from the line.
#[derive(Debug)]
pub(crate) struct Reading<'a> {
    pub(crate) id: Id<'a>,
    pub(crate) model: &'a str,
    pub(crate) pressure_kpa: Option<f64>,
    pub(crate) temperature_c: Option<f64>,
    pub(crate) battery_ok: Option<bool>,
    pub(crate) fast_leak: Option<bool>,
    pub(crate) flags: Option<Id<'a>>,
    pub(crate) code: Option<&'a str>,
    pub(crate) time_ms: i64,
    pub(crate) raw_time: Option<&'a str>,
}

impl<'a> Reading<'a> {
    /// Reads units, ids and time; `timestamp` is the record's, for lines without a wall clock.
    pub(crate) fn of(source: &'a Source<'_>, timestamp: i64, utc_offset_ms: i64) -> Result<Self> {
        let model = source.model.text().unwrap_or("unknown");
        let pressure_kpa = (source.pressure_kpa.number())
            .or_else(|| source.pressure_psi.number().map(|psi| psi * KPA_PER_PSI))
            .or_else(|| source.pressure_bar.number().map(|bar| bar * KPA_PER_BAR));
        let temperature_c =
            (source.temperature_c.number()).or_else(|| source.temperature_f.number().map(|fahrenheit| (fahrenheit - 32.0) / 1.8));
        if pressure_kpa.is_some_and(|kpa| !PRESSURE_KPA.contains(&kpa)) {
            return Err(Error::new(format_args!("a tyre cannot have {} kPa", pressure_kpa.unwrap_or_default())));
        }
        if temperature_c.is_some_and(|celsius| !TEMPERATURE_C.contains(&celsius)) {
            return Err(Error::new(format_args!("a tyre cannot have {} °C", temperature_c.unwrap_or_default())));
        }
        let (time_ms, raw_time) = match time::understand(&source.time) {
            Time::Utc(ms) => (ms, None),
            Time::Local(ms) => (ms - utc_offset_ms, None),
            Time::Other(raw) => (timestamp, raw),
        };
        Ok(Self {
            id: Id::of(&source.id)?,
            model,
            pressure_kpa,
            temperature_c,
            battery_ok: battery_ok(source),
            fast_leak: truth(&source.fast_leak),
            flags: source.flags.is_some().then(|| Id::of(&source.flags).ok()).flatten(),
            code: source.code.text(),
            time_ms,
            raw_time,
        })
    }

    /// The reading as JSON.
    pub(crate) fn write(&self, buffer: &mut Buffer<'_>) {
        buffer.extend(br#"{"id":""#);
        self.id.write_json(buffer);
        buffer.extend(br#"","model":""#);
        write_escaped(buffer, self.model);
        buffer.extend(br#"","pressure_kpa":"#);
        write_fixed3(buffer, self.pressure_kpa.unwrap_or(f64::NAN));
        buffer.extend(br#","temperature_c":"#);
        write_fixed3(buffer, self.temperature_c.unwrap_or(f64::NAN));
        buffer.extend(match self.battery_ok {
            Some(true) => br#","battery_ok":true"#,
            Some(false) => br#","battery_ok":false"#,
            None => br#","battery_ok":null"#,
        });
        buffer.extend(match self.pressure_kpa {
            Some(_) => br#","status":"ok""#,
            None => br#","status":"no_pressure""#,
        });
        match self.fast_leak {
            Some(true) => buffer.extend(br#","fast_leak":true"#),
            Some(false) => buffer.extend(br#","fast_leak":false"#),
            None => {}
        }
        if let Some(flags) = self.flags {
            buffer.extend(br#","flags":""#);
            flags.write_json(buffer);
            buffer.push(b'"');
        }
        if let Some(code) = self.code {
            write_text(buffer, br#","code":""#, code);
        }
        buffer.extend(br#","time_ms":"#);
        write_int(buffer, self.time_ms);
        if let Some(raw) = self.raw_time {
            write_text(buffer, br#","raw_time":""#, raw);
        }
        buffer.push(b'}');
    }

    /// Who says what, without when: equal for the repeats of a burst.
    pub(crate) fn hash(&self) -> u64 {
        let number = |number: Option<f64>| number.unwrap_or(f64::NAN).to_bits();
        let truth = |truth: Option<bool>| truth.map_or(2, u64::from);
        let hash = self.id.hash(Hash::default()).bytes(self.model.as_bytes());
        let hash = hash.word(number(self.pressure_kpa)).word(number(self.temperature_c));
        let hash = hash.word(truth(self.battery_ok) * 3 + truth(self.fast_leak));
        let hash = self.flags.map_or(hash, |flags| flags.hash(hash));
        self.code.map_or(hash, |code| hash.bytes(code.as_bytes())).finish()
    }
}

fn is_plain(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'z'))
}

/// Without blanks around it. Hardly a line has any, and to see that takes two bytes.
fn trimmed(text: &str) -> &str {
    match text.as_bytes() {
        [first, .., last] if first.is_ascii_graphic() && last.is_ascii_graphic() => text,
        _ => text.trim(),
    }
}

fn write_text(buffer: &mut Buffer<'_>, before: &[u8], text: &str) {
    buffer.extend(before);
    write_escaped(buffer, text);
    buffer.push(b'"');
}

fn write_hex(buffer: &mut Buffer<'_>, number: u64) {
    let digits = (64 - number.leading_zeros()).div_ceil(4).max(1);
    for digit in (0..digits).rev() {
        buffer.push(b"0123456789abcdef"[(number >> (4 * digit)) as usize & 15]);
    }
}

/// `battery_ok` is 1, 0 or a level in between; older versions print `battery` as OK or LOW.
fn battery_ok(source: &Source<'_>) -> Option<bool> {
    if let Some(ok) = truth(&source.battery_ok) {
        return Some(ok);
    }
    if let Some(low) = truth(&source.battery_low) {
        return Some(!low);
    }
    let words = source.battery.text()?;
    if words.eq_ignore_ascii_case("ok") {
        return Some(true);
    }
    words.eq_ignore_ascii_case("low").then_some(false)
}

fn truth(scalar: &Scalar<'_>) -> Option<bool> {
    match scalar {
        Scalar::Bool(truth) => Some(*truth),
        other => other.number().map(|number| number > 0.0),
    }
}
