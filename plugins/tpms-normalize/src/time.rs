//! The three times rtl_433 prints: a wall clock, seconds since 1970, seconds into a capture.
use weir_plugin::json::Scalar;

/// Numbers from here on are ms since 1970, from the next on µs; below they are seconds.
const MS_FROM: f64 = 1e11;
const US_FROM: f64 = 1e14;
/// Seconds below this (March 1973) are not a date but seconds into a capture.
const SECONDS_FROM: f64 = 1e8;

/// A time, as far as it is one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Time<'a> {
    /// ms since 1970.
    Utc(i64),
    /// A wall clock without a zone, as if it were UTC.
    Local(i64),
    /// Nothing that names a moment; the text, if there is one.
    Other(Option<&'a str>),
}

/// Reads the field `time`.
pub(crate) fn understand<'a>(time: &'a Scalar<'_>) -> Time<'a> {
    let raw = time.text();
    if let Some(time) = raw.and_then(wall_clock) {
        return time;
    }
    match time.number().and_then(epoch) {
        Some(ms) => Time::Utc(ms),
        None => Time::Other(raw),
    }
}

fn epoch(number: f64) -> Option<i64> {
    let ms = match number {
        US_FROM..1e17 => number / 1000.0,
        MS_FROM..US_FROM => number,
        SECONDS_FROM..MS_FROM => number * 1000.0,
        _ => return None,
    };
    Some(ms.round() as i64)
}

/// `2023-06-12 11:16:48`, with `T`, a fraction, `Z` or `+0200` if it likes.
fn wall_clock(text: &str) -> Option<Time<'_>> {
    let bytes = text.as_bytes();
    let (date, rest) = bytes.split_at_checked(19)?;
    let [y0, y1, y2, y3, b'-', m0, m1, b'-', d0, d1, b' ' | b'T', h0, h1, b':', i0, i1, b':', s0, s1] = *date else {
        return None;
    };
    let year = number(&[y0, y1, y2, y3])?;
    let [month, day] = [number(&[m0, m1])?, number(&[d0, d1])?];
    let [hour, minute, second] = [number(&[h0, h1])?, number(&[i0, i1])?, number(&[s0, s1])?];
    if !(1..=12).contains(&month) || day < 1 || day > days_of(year, month) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let (fraction_ms, zone) = fraction(rest)?;
    let seconds = ((days_since_1970(year, month, day) * 24 + hour) * 60 + minute) * 60 + second;
    let ms = seconds * 1000 + fraction_ms;
    match zone {
        b"" => Some(Time::Local(ms)),
        b"Z" | b"z" => Some(Time::Utc(ms)),
        [sign @ (b'+' | b'-'), h0, h1, z0, z1] | [sign @ (b'+' | b'-'), h0, h1, b':', z0, z1] => {
            let east = (number(&[*h0, *h1])? * 60 + number(&[*z0, *z1])?) * 60_000;
            Some(Time::Utc(if *sign == b'+' { ms - east } else { ms + east }))
        }
        _ => None,
    }
}

/// `.123456` in ms, and what stands behind it.
fn fraction(rest: &[u8]) -> Option<(i64, &[u8])> {
    let [b'.', digits @ ..] = rest else { return Some((0, rest)) };
    let count = digits.iter().take_while(|digit| digit.is_ascii_digit()).count();
    let (digits, rest) = digits.split_at(count);
    let place = |at: usize| digits.get(at).map_or(0, |digit| i64::from(digit - b'0'));
    (count > 0).then_some((place(0) * 100 + place(1) * 10 + place(2), rest))
}

fn number(digits: &[u8]) -> Option<i64> {
    digits.iter().try_fold(0, |number, digit| digit.is_ascii_digit().then(|| number * 10 + i64::from(digit - b'0')))
}

fn days_of(year: i64, month: i64) -> i64 {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Howard Hinnant's civil calendar: years begin in March, so that the leap day is a year's last.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Time<'static> {
        match understand(&Scalar::Text(text.into())) {
            Time::Other(raw) => {
                assert_eq!(raw, Some(text));
                Time::Other(None)
            }
            Time::Utc(ms) => Time::Utc(ms),
            Time::Local(ms) => Time::Local(ms),
        }
    }

    #[test]
    fn wall_clocks() {
        assert_eq!(of("1970-01-01 00:00:00"), Time::Local(0));
        assert_eq!(of("2023-06-12 11:16:48"), Time::Local(1_686_568_608_000));
        assert_eq!(of("2024-02-29T23:59:59.123456"), Time::Local(1_709_251_199_123));
        assert_eq!(of("2023-06-12 11:16:48Z"), Time::Utc(1_686_568_608_000));
        assert_eq!(of("2023-06-12 13:16:48.5+0200"), Time::Utc(1_686_568_608_500));
        assert_eq!(of("2023-06-12 06:46:48-04:30"), Time::Utc(1_686_568_608_000));
    }

    #[test]
    fn seconds_since_1970_as_number_or_text() {
        assert_eq!(understand(&Scalar::Int(1_686_568_608)), Time::Utc(1_686_568_608_000));
        assert_eq!(understand(&Scalar::Float(1_686_568_608.25)), Time::Utc(1_686_568_608_250));
        assert_eq!(understand(&Scalar::Int(1_686_568_608_000)), Time::Utc(1_686_568_608_000));
        assert_eq!(of("1686568608.250000"), Time::Utc(1_686_568_608_250));
    }

    #[test]
    fn what_is_no_moment_is_kept_as_text() {
        for text in [
            "@0.004313s",
            "",
            "now",
            "2023-02-29 00:00:00",
            "2023-13-01 00:00:00",
            "2023-06-12 24:00:00",
            "2023-06-12 11:16:48.",
            "2023-06-12 11:16:48 CET",
            "12.5",
            "2023-06-12 11:16:4ü",
        ] {
            assert_eq!(of(text), Time::Other(None), "{text}");
        }
        for scalar in [Scalar::Missing, Scalar::Int(12), Scalar::Int(-5), Scalar::Float(1e300), Scalar::Compound] {
            assert_eq!(understand(&scalar), Time::Other(None), "{scalar:?}");
        }
    }
}
