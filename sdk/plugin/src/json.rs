//! JSON by hand, for plugins that count nanoseconds: a value of any type read without copying, text and numbers written
//! straight into a [`Buffer`].
use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::Buffer;

/// A JSON value whose type is not known beforehand. Lists and objects are skipped over: only that they were there is kept.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Scalar<'a> {
    /// Not there at all; never read, only a starting value.
    #[default]
    Missing,
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Any other number, and whole numbers beyond 64 bits.
    Float(f64),
    /// Text; borrowed unless it has escapes.
    Text(Cow<'a, str>),
    /// A list or an object.
    Compound,
}

impl Scalar<'_> {
    /// A number, also one written as text.
    #[inline]
    #[must_use]
    pub fn number(&self) -> Option<f64> {
        match self {
            Self::Int(number) => Some(*number as f64),
            Self::Float(number) => Some(*number),
            Self::Text(text) => text.trim().parse().ok().filter(|number: &f64| number.is_finite()),
            _ => None,
        }
    }

    /// Text as it is.
    #[inline]
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Whether there is a value other than `null`.
    #[inline]
    #[must_use]
    pub fn is_some(&self) -> bool {
        !matches!(self, Self::Missing | Self::Null)
    }
}

impl<'de> Deserialize<'de> for Scalar<'de> {
    #[inline]
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ScalarVisitor)
    }
}

struct ScalarVisitor;

impl<'de> Visitor<'de> for ScalarVisitor {
    type Value = Scalar<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Scalar::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Scalar::Bool(value))
    }

    #[inline]
    fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
        Ok(Scalar::Int(value))
    }

    #[inline]
    fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
        Ok(i64::try_from(value).map_or(Scalar::Float(value as f64), Scalar::Int))
    }

    #[inline]
    fn visit_f64<E>(self, value: f64) -> Result<Self::Value, E> {
        Ok(Scalar::Float(value))
    }

    #[inline]
    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Self::Value, E> {
        Ok(Scalar::Text(Cow::Borrowed(value)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
        Ok(Scalar::Text(Cow::Owned(value.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Scalar::Compound)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Self::Value, A::Error> {
        while object.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Scalar::Compound)
    }
}

/// Writes the inside of a JSON text, without its quotes.
#[inline]
pub fn write_escaped(buffer: &mut Buffer<'_>, text: &str) {
    let bytes = text.as_bytes();
    if bytes.iter().all(|&byte| byte >= 0x20 && byte != b'"' && byte != b'\\') {
        return buffer.extend(bytes);
    }
    for &byte in bytes {
        match byte {
            b'"' | b'\\' => buffer.extend(&[b'\\', byte]),
            0..0x20 => {
                let hex = |digit: u8| b"0123456789abcdef"[usize::from(digit)];
                buffer.extend(&[b'\\', b'u', b'0', b'0', hex(byte >> 4), hex(byte & 15)]);
            }
            _ => buffer.push(byte),
        }
    }
}

/// Writes a whole number.
#[inline]
pub fn write_int(buffer: &mut Buffer<'_>, number: i64) {
    let mut digits = [0; 20];
    let start = digits_of(&mut digits, number.unsigned_abs());
    if number < 0 {
        buffer.push(b'-');
    }
    buffer.extend(&digits[start..]);
}

/// Writes a number rounded to three decimals, without trailing zeros but with at least one decimal: `188.65`, `7.0`.
/// Beyond ±10¹² (and for what is no number) it writes `null`: no sensor measures that.
#[inline]
pub fn write_fixed3(buffer: &mut Buffer<'_>, number: f64) {
    if number.is_nan() || number.abs() >= 1e12 {
        return buffer.extend(b"null");
    }
    let thousandths = (number * 1000.0).round() as i64;
    if thousandths < 0 {
        buffer.push(b'-');
    }
    let thousandths = thousandths.unsigned_abs();
    let mut digits = [0; 20];
    let start = digits_of(&mut digits, thousandths / 1000);
    buffer.extend(&digits[start..]);
    let rest = thousandths % 1000;
    let decimals = [b'0' + (rest / 100) as u8, b'0' + (rest / 10 % 10) as u8, b'0' + (rest % 10) as u8];
    let shown = match decimals {
        [_, b'0', b'0'] => 1,
        [_, _, b'0'] => 2,
        _ => 3,
    };
    buffer.push(b'.');
    buffer.extend(&decimals[..shown]);
}

/// Fills the end of `digits` and returns where it starts.
#[inline]
fn digits_of(digits: &mut [u8; 20], mut number: u64) -> usize {
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return at;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut Buffer<'_>)) -> String {
        let mut bytes = Vec::new();
        write(&mut Buffer::new(&mut bytes));
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn numbers_are_rounded_and_trimmed() {
        let table = [
            (188.65, "188.65"),
            (7.0, "7.0"),
            (0.0, "0.0"),
            (-0.0004, "0.0"),
            (-12.5, "-12.5"),
            (1.0005, "1.001"),
            (0.05, "0.05"),
            (999.9996, "1000.0"),
            (1e12, "null"),
            (f64::NAN, "null"),
            (f64::NEG_INFINITY, "null"),
        ];
        for (number, expected) in table {
            assert_eq!(written(|b| write_fixed3(b, number)), expected);
        }
        for number in [0, -1, 1_700_000_000_000, i64::MIN, i64::MAX] {
            assert_eq!(written(|b| write_int(b, number)), number.to_string());
        }
    }

    #[test]
    fn text_is_escaped_as_json_wants_it() {
        for text in ["plain", "", "a\"b\\c\nd\u{1}\u{1f}", "ü \u{7f}€"] {
            let json = format!("\"{}\"", written(|b| write_escaped(b, text)));
            assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
        }
    }

    #[test]
    fn any_value_reads_as_a_scalar() {
        let read = |json| serde_json::from_str::<Scalar<'_>>(json).unwrap();
        assert_eq!(read("null"), Scalar::Null);
        assert_eq!(read("-3"), Scalar::Int(-3));
        assert_eq!(read("18446744073709551615").number(), Some(18_446_744_073_709_551_615.0));
        assert_eq!(read("\"x\""), Scalar::Text(Cow::Borrowed("x")));
        assert_eq!(read("\" 188.5\"").number(), Some(188.5));
        assert_eq!((read("\"inf\"").number(), read("\"NaN\"").number(), read("true").number()), (None, None, None));
        assert_eq!((read("[1,[2]]"), read("{\"a\":{}}")), (Scalar::Compound, Scalar::Compound));
    }
}
