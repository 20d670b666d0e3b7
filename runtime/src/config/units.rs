//! Sizes and times as people write them: `"64MiB"`, `"90s"`. The keys' names say which of the two a value is.

/// What a key's name says about its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    Bytes,
    Milliseconds,
    None,
}

impl Unit {
    /// `…_bytes…` and `…_ms…` keys take sizes and times.
    pub(super) fn of_key(key: &str) -> Unit {
        let words: Vec<&str> = key.split('_').collect();
        if words.contains(&"bytes") {
            Unit::Bytes
        } else if words.contains(&"ms") {
            Unit::Milliseconds
        } else {
            Unit::None
        }
    }
}

/// `"64MiB"`, `"1.5GiB"`, `"4096"`, `"10MB"` (powers of ten) in bytes.
pub fn parse_bytes(text: &str) -> Option<u64> {
    scale(
        text,
        &[
            ("", 1),
            ("B", 1),
            ("KiB", 1 << 10),
            ("MiB", 1 << 20),
            ("GiB", 1 << 30),
            ("TiB", 1 << 40),
            ("K", 1 << 10),
            ("M", 1 << 20),
            ("G", 1 << 30),
            ("KB", 1_000),
            ("MB", 1_000_000),
            ("GB", 1_000_000_000),
            ("TB", 1_000_000_000_000),
        ],
    )
}

/// `"250ms"`, `"90s"`, `"15min"`, `"12h"`, `"7d"`, `"250"` in milliseconds.
pub fn parse_duration_ms(text: &str) -> Option<u64> {
    scale(text, &[("", 1), ("ms", 1), ("s", 1_000), ("m", 60_000), ("min", 60_000), ("h", 3_600_000), ("d", 86_400_000)])
}

/// Bytes for people: `1.5 MiB`.
pub fn format_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

fn scale(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.' && c != '_').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number = number.replace('_', "");
    let unit = unit.trim();
    let factor = units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?.1;
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor);
    }
    let value = number.parse::<f64>().ok()? * factor as f64;
    // A fraction of a unit must still be a whole number of the smallest one.
    (value.is_finite() && value >= 0.0 && value < u64::MAX as f64 && value.fract() == 0.0).then_some(value as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_read_as_people_write_them() {
        assert_eq!(parse_bytes("64MiB"), Some(64 << 20));
        assert_eq!(parse_bytes("64 mib"), Some(64 << 20));
        assert_eq!(parse_bytes("1.5KiB"), Some(1536));
        assert_eq!(parse_bytes("10MB"), Some(10_000_000));
        assert_eq!(parse_bytes("4_096"), Some(4096));
        assert_eq!(parse_duration_ms("90s"), Some(90_000));
        assert_eq!(parse_duration_ms("7d"), Some(604_800_000));
    }

    #[test]
    fn nonsense_and_overflow_are_refused() {
        for text in ["", "MiB", "-1", "64 parsecs", "1.0001B", "99999999999TiB", "nan", "."] {
            assert_eq!(parse_bytes(text), None, "{text:?}");
        }
        assert_eq!(parse_duration_ms("5 moons"), None);
    }
}
