//! Lines as rtl_433 prints them for tyre-pressure sensors: the input of plugins that parse them, and what an edge node stores.
//!
//! [`Readings`] makes as many as are wanted, no two alike: a fleet of sensors, each with the form of a real line and an id of its own,
//! and in each line another time, measured value, code and signal level. What repeats from line to line is what repeats in a
//! street: the form, the model, the sensor. Lines that were the same but for the id would compress too well.

use std::ops::Range;

/// What rtl_433 prints for real sensors.
const SENSOR_LINES: &str = include_str!("../../plugins/tpms-normalize/tests/rtl433.jsonl");
/// Sensors whose lines are mixed.
const FLEET: u64 = 20_000;
const HEX: &[u8] = b"0123456789abcdef";
/// Which values change from reading to reading.
const MEASURED: [&str; 7] = ["pressure_kPa", "pressure_PSI", "temperature_C", "temperature_F", "rssi", "snr", "noise"];
/// Which hold the message as it was received.
const CODED: [&str; 2] = ["code", "msg"];
/// Digits of a code that change with the reading; those before them are the sensor's.
const CODE_DIGITS: usize = 8;
/// As long as the times that are put in its place.
const TIME: &str = "2025-01-01 00:00:00";

/// The lines of tyre-pressure sensors, as they were heard.
pub(crate) fn sensor_lines() -> impl Iterator<Item = &'static str> + Clone {
    SENSOR_LINES.lines().filter(|line| line.contains("TPMS"))
}

/// Puts other hexadecimal digits in the place of those of the id.
pub(crate) fn another_id(mut line: Vec<u8>, rng: &mut fastrand::Rng) -> Vec<u8> {
    if let Some(id) = value_of(&line, "id") {
        put_hex(&mut line[id], rng);
    }
    line
}

/// Where the value of a key lies, without its quotes.
fn value_of(line: &[u8], key: &str) -> Option<Range<usize>> {
    let name = format!("\"{key}\"");
    let named = line.windows(name.len()).position(|window| window == name.as_bytes())? + name.len();
    let from = named + line[named..].iter().position(|byte| !matches!(byte, b' ' | b':'))?;
    let (from, ends): (usize, &[u8]) = if line[from] == b'"' { (from + 1, b"\"") } else { (from, b",} ") };
    let length = line[from..].iter().position(|byte| ends.contains(byte))?;
    Some(from..from + length)
}

fn put_hex(digits: &mut [u8], rng: &mut fastrand::Rng) {
    digits.iter_mut().for_each(|digit| *digit = HEX[rng.usize(..HEX.len())]);
}

/// A real line, and the places of what differs from one to the next.
struct Form {
    line: Vec<u8>,
    time: Range<usize>,
    id: Range<usize>,
    codes: Vec<Range<usize>>,
    digits: Vec<usize>,
}

impl Form {
    fn of(line: &str) -> Option<Form> {
        let time = value_of(line.as_bytes(), "time")?;
        let line = [&line[..time.start], TIME, &line[time.end..]].concat().into_bytes();
        let place = |key: &&str| value_of(&line, key);
        let codes = CODED.iter().filter_map(place).map(|code| code.end.saturating_sub(CODE_DIGITS).max(code.start)..code.end);
        Some(Form {
            time: time.start..time.start + TIME.len(),
            id: value_of(&line, "id")?,
            codes: codes.collect(),
            digits: MEASURED.iter().filter_map(place).flat_map(|value| digits_that_change(&line, value)).collect(),
            line,
        })
    }
}

/// The last digit before the point, and those behind it where the sensor measures so finely.
fn digits_that_change(line: &[u8], value: Range<usize>) -> Vec<usize> {
    let point = line[value.clone()].iter().position(|byte| *byte == b'.').map_or(value.end, |at| value.start + at);
    let fine = line[point..value.end].iter().any(|byte| (b'1'..=b'9').contains(byte));
    let behind = if fine { point + 1..value.end } else { 0..0 };
    point.checked_sub(1).into_iter().chain(behind).collect()
}

/// Lines of a fleet of sensors, without an end.
pub(crate) struct Readings {
    forms: Vec<Form>,
    rng: fastrand::Rng,
    line: Vec<u8>,
    /// The last one printed.
    time: (i64, String),
}

impl Readings {
    pub(crate) fn new(seed: u64) -> Readings {
        let forms = sensor_lines().filter_map(Form::of).collect();
        Readings { forms, rng: fastrand::Rng::with_seed(seed), line: Vec::new(), time: (i64::MIN, String::new()) }
    }

    /// The next line, of a reading at a time in ms.
    pub(crate) fn next(&mut self, at_ms: i64) -> &[u8] {
        let seconds = at_ms.div_euclid(1000);
        if self.time.0 != seconds {
            self.time = (seconds, printed(seconds));
        }
        let sensor = self.rng.u64(..FLEET);
        let form = &self.forms[sensor as usize % self.forms.len()];
        self.line.clear();
        self.line.extend_from_slice(&form.line);
        self.line[form.time.clone()].copy_from_slice(self.time.1.as_bytes());
        put_hex(&mut self.line[form.id.clone()], &mut fastrand::Rng::with_seed(sensor));
        form.codes.iter().for_each(|code| put_hex(&mut self.line[code.clone()], &mut self.rng));
        form.digits.iter().for_each(|at| self.line[*at] = b'0' + self.rng.u8(..10));
        &self.line
    }
}

/// Seconds since 1970 as rtl_433 prints them, in UTC. The calendar is counted in years that begin in March, so that the day that some
/// years have more is their last.
fn printed(seconds: i64) -> String {
    let (days, of_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let since_0000_03_01 = days + 719_468;
    let (era, of_era) = (since_0000_03_01.div_euclid(146_097), since_0000_03_01.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn sensor_lines_are_json_of_sensors_that_differ() {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut ids = HashSet::new();
        for line in sensor_lines().cycle().take(100) {
            let line = another_id(line.as_bytes().to_vec(), &mut rng);
            let value: serde_json::Value = serde_json::from_slice(&line).expect("JSON");
            ids.insert(value["id"].as_str().expect("an id").to_owned());
        }
        assert_eq!(ids.len(), 100);
        assert_eq!(another_id(b"{}".to_vec(), &mut rng), b"{}");
    }

    #[test]
    fn no_reading_is_like_another_but_sensors_come_again() {
        let mut readings = Readings::new(1);
        assert_eq!(readings.forms.len(), sensor_lines().count(), "each real line is a form");
        let (mut lines, mut sensors) = (HashSet::new(), HashSet::new());
        for reading in 0..100_000 {
            let line = readings.next(1_700_000_000_000 + reading).to_vec();
            let value: serde_json::Value = serde_json::from_slice(&line).expect("JSON");
            let minute = value["time"].as_str().expect("a time").get(..16).map(str::to_owned);
            assert!(["2023-11-14 22:13", "2023-11-14 22:14"].contains(&minute.as_deref().unwrap_or_default()), "{value}");
            sensors.insert((value["model"].to_string(), value["id"].to_string()));
            lines.insert(line);
        }
        assert!(lines.len() > 99_900, "{} of 100,000 differ", lines.len());
        assert!((15_000..=FLEET as usize).contains(&sensors.len()), "{} sensors", sensors.len());
    }

    #[test]
    fn a_time_is_printed_as_the_calendar_has_it() {
        assert_eq!(printed(0), "1970-01-01 00:00:00");
        assert_eq!(printed(951_782_400), "2000-02-29 00:00:00");
        assert_eq!(printed(1_709_251_199), "2024-02-29 23:59:59");
        assert_eq!(printed(1_735_689_600), "2025-01-01 00:00:00");
    }
}
