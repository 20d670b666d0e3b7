//! JSON by hand, for plugins that count nanoseconds: a value of any type read without copying, text and numbers written
//! straight into a [`Buffer`].
use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::Buffer;
use crate::arena::word_of;

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
            Self::Text(text) if may_be_number(text) => text.trim().parse().ok().filter(|number: &f64| number.is_finite()),
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

/// Whether it begins as a number does, or a blank before one: most texts do not, and need not be tried.
#[inline]
fn may_be_number(text: &str) -> bool {
    !matches!(text.as_bytes().first(), None | Some(b'@'..=0x7f))
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

/// Reads a flat JSON object in one pass, several times as fast as serde_json in WebAssembly: `member` is given each name and
/// its value, in order.
///
/// `None` where there is more to it: escapes, lists and objects, numbers of more than 15 digits or with an exponent, or
/// anything that is no JSON. What was given to `member` then does not count; read the object with
/// [`Record::json`](crate::Record::json), which knows all of JSON and says what is wrong. Whatever is read here is read as
/// serde_json reads it.
#[inline]
pub fn flat_object<'a>(bytes: &'a [u8], mut member: impl FnMut(&'a str, Plain<'a>)) -> Option<()> {
    let mut scan = Scan { text: std::str::from_utf8(bytes).ok()?, at: 0 };
    scan.token(b'{')?;
    if scan.peek()? == b'}' {
        scan.at += 1;
        return scan.end();
    }
    loop {
        let name = scan.text()?;
        scan.token(b':')?;
        let value = scan.plain()?;
        member(name, value);
        match scan.peek()? {
            b',' => scan.at += 1,
            b'}' => {
                scan.at += 1;
                return scan.end();
            }
            _ => return None,
        }
    }
}

/// A value of a flat object, not made a [`Scalar`] yet: what nobody asks for need not be divided.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Plain<'a>(Kind<'a>);

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind<'a> {
    Null,
    Bool(bool),
    Int(i64),
    /// Digits without their point, how many stand behind it, and the sign, which 0 has as well.
    Decimal(i64, usize, bool),
    Text(&'a str),
}

impl<'a> From<Plain<'a>> for Scalar<'a> {
    #[inline]
    fn from(plain: Plain<'a>) -> Self {
        match plain.0 {
            Kind::Null => Self::Null,
            Kind::Bool(truth) => Self::Bool(truth),
            Kind::Int(number) => Self::Int(number),
            Kind::Decimal(digits, decimals, negative) => {
                let magnitude = digits as f64 / POWERS_OF_TEN.get(decimals).copied().unwrap_or(f64::NAN);
                Self::Float(if negative { -magnitude } else { magnitude })
            }
            Kind::Text(text) => Self::Text(Cow::Borrowed(text)),
        }
    }
}

/// A place in a text that is read from front to back.
struct Scan<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scan<'a> {
    #[inline]
    fn byte(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// The next byte that is no blank. Mostly there is one blank or none.
    #[inline]
    fn peek(&mut self) -> Option<u8> {
        let first = self.byte()?;
        if first > b' ' {
            return Some(first);
        }
        match self.text.as_bytes().get(self.at + 1).copied() {
            Some(second) if first == b' ' && second > b' ' => {
                self.at += 1;
                Some(second)
            }
            _ => self.skip_blanks(),
        }
    }

    #[cold]
    fn skip_blanks(&mut self) -> Option<u8> {
        loop {
            match self.byte()? {
                b' ' | b'\t' | b'\n' | b'\r' => self.at += 1,
                byte => return Some(byte),
            }
        }
    }

    #[inline]
    fn token(&mut self, wanted: u8) -> Option<()> {
        let found = self.peek()? == wanted;
        self.at += 1;
        found.then_some(())
    }

    /// Only blanks follow.
    #[inline]
    fn end(mut self) -> Option<()> {
        self.peek().is_none().then_some(())
    }

    /// A text without escapes.
    #[inline]
    fn text(&mut self) -> Option<&'a str> {
        self.token(b'"')?;
        let start = self.at;
        let rest = self.text.as_bytes().get(start..)?;
        let end = start + plain_bytes(rest);
        self.at = end + 1;
        (self.text.as_bytes().get(end) == Some(&b'"')).then(|| self.text.get(start..end)).flatten()
    }

    #[inline]
    fn plain(&mut self) -> Option<Plain<'a>> {
        match self.peek()? {
            b'"' => self.text().map(|text| Plain(Kind::Text(text))),
            b'-' | b'0'..=b'9' => self.number(),
            b't' => self.word("true", Kind::Bool(true)),
            b'f' => self.word("false", Kind::Bool(false)),
            b'n' => self.word("null", Kind::Null),
            _ => None,
        }
    }

    fn word(&mut self, word: &str, value: Kind<'a>) -> Option<Plain<'a>> {
        let found = self.text.get(self.at..)?.starts_with(word);
        self.at += word.len();
        found.then_some(Plain(value))
    }

    /// Up to 15 digits: whole numbers of that size are exact in an f64, and one division rounds once.
    #[inline]
    fn number(&mut self) -> Option<Plain<'a>> {
        const DIGITS_MAX: usize = 15;
        let negative = self.byte()? == b'-';
        self.at += usize::from(negative);
        let start = self.at;
        let mut number = self.digits(0)?;
        let whole_digits = self.at - start;
        // JSON has no leading zeros, and serde_json reads -0 as a float.
        let leading_zero = self.text.as_bytes().get(start) == Some(&b'0');
        if whole_digits > DIGITS_MAX || leading_zero && (whole_digits > 1 || negative && self.byte() != Some(b'.')) {
            return None;
        }
        let sign = |magnitude: i64| if negative { -magnitude } else { magnitude };
        if self.byte() != Some(b'.') {
            return (!self.exponent()).then(|| Plain(Kind::Int(sign(number))));
        }
        self.at += 1;
        let start = self.at;
        number = self.digits(number)?;
        let decimals = self.at - start;
        if whole_digits + decimals > DIGITS_MAX || self.exponent() {
            return None;
        }
        Some(Plain(Kind::Decimal(number, decimals, negative)))
    }

    /// At least one digit; what is too long for a number is refused by its length.
    #[inline]
    fn digits(&mut self, mut number: i64) -> Option<i64> {
        let start = self.at;
        while let Some(digit @ b'0'..=b'9') = self.byte() {
            number = number.wrapping_mul(10).wrapping_add(i64::from(digit - b'0'));
            self.at += 1;
        }
        (self.at > start).then_some(number)
    }

    #[inline]
    fn exponent(&self) -> bool {
        matches!(self.byte(), Some(b'e' | b'E'))
    }
}

const POWERS_OF_TEN: [f64; 16] = [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15];

/// Bytes before the first quote, backslash or control character. Eight at a time: a loop's turn costs a plugin more than
/// what it does, because the host counts on being able to stop it there.
#[inline]
fn plain_bytes(bytes: &[u8]) -> usize {
    let (words, rest) = bytes.as_chunks::<8>();
    for (at, word) in words.iter().enumerate() {
        let plain = plain_in_word(u64::from_le_bytes(*word));
        if plain < 8 {
            return at * 8 + plain;
        }
    }
    // The zeros behind the last bytes are control characters, so what is found is in them or right behind.
    bytes.len() - rest.len() + plain_in_word(word_of(rest)).min(rest.len())
}

/// The same of one word; 8 if there is none.
#[inline]
fn plain_in_word(word: u64) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = 0x8080_8080_8080_8080;
    // The lowest marked byte is exact: a borrow runs upwards only.
    let zero = |word: u64| word.wrapping_sub(ONES) & !word & HIGHS;
    let control = word.wrapping_sub(ONES * 0x20) & !word & HIGHS;
    let found = zero(word ^ (ONES * u64::from(b'"'))) | zero(word ^ (ONES * u64::from(b'\\'))) | control;
    found.trailing_zeros() as usize / 8
}

/// Writes the inside of a JSON text, without its quotes.
#[inline]
pub fn write_escaped(buffer: &mut Buffer<'_>, text: &str) {
    let bytes = text.as_bytes();
    if plain_bytes(bytes) == bytes.len() {
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
    let mut text = Digits::of(number.unsigned_abs());
    if number < 0 {
        text.sign();
    }
    buffer.extend(text.as_slice());
}

/// Writes a number rounded to three decimals, without trailing zeros but with at least one decimal: `188.65`, `7.0`.
/// Beyond ±10¹² (and for what is no number) it writes `null`: no sensor measures that.
#[inline]
pub fn write_fixed3(buffer: &mut Buffer<'_>, number: f64) {
    if number.is_nan() || number.abs() >= 1e12 {
        return buffer.extend(b"null");
    }
    // As `round` does, halves away from zero; that is a function in WebAssembly, this a few instructions.
    let exact = number.abs() * 1000.0;
    let whole = exact.trunc();
    let thousandths = whole as u64 + u64::from(exact - whole >= 0.5);
    // Nearly all fit 32 bits, where a division by a constant is a multiplication.
    let (units, rest) = match u32::try_from(thousandths) {
        Ok(small) => (u64::from(small / 1000), small % 1000),
        Err(_) => (thousandths / 1000, (thousandths % 1000) as u32),
    };
    let decimals = [b'0' + (rest / 100) as u8, b'0' + (rest / 10 % 10) as u8, b'0' + (rest % 10) as u8];
    let shown = match decimals {
        [_, b'0', b'0'] => 1,
        [_, _, b'0'] => 2,
        _ => 3,
    };
    let mut text = Digits::of(units);
    if number < 0.0 && thousandths > 0 {
        text.sign();
    }
    text.decimals(decimals, shown);
    buffer.extend(text.as_slice());
}

/// A number being written: sign, up to 20 digits, point and decimals, in one piece.
struct Digits {
    bytes: [u8; 32],
    start: usize,
    end: usize,
}

impl Digits {
    /// Where the digits of the units end.
    const UNITS_END: usize = 24;

    #[inline]
    fn of(mut number: u64) -> Self {
        let mut bytes = [0; 32];
        let mut start = Self::UNITS_END;
        while number > u64::from(u32::MAX) {
            start -= 8;
            bytes[start..start + 8].copy_from_slice(&eight_digits((number % 100_000_000) as u32));
            number /= 100_000_000;
        }
        let mut number = number as u32;
        loop {
            start -= 1;
            bytes[start] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                return Self { bytes, start, end: Self::UNITS_END };
            }
        }
    }

    #[inline]
    fn sign(&mut self) {
        self.start -= 1;
        self.bytes[self.start] = b'-';
    }

    #[inline]
    fn decimals(&mut self, [a, b, c]: [u8; 3], shown: usize) {
        self.bytes[Self::UNITS_END..Self::UNITS_END + 4].copy_from_slice(&[b'.', a, b, c]);
        self.end = Self::UNITS_END + 1 + shown;
    }

    #[inline]
    fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }
}

/// The digits of a number below 10⁸, all at once: halves, then quarters, then each, side by side in one word.
#[inline]
fn eight_digits(number: u32) -> [u8; 8] {
    let halves = u64::from(number / 10_000) | u64::from(number % 10_000) << 32;
    let hundreds = ((halves * 10_486) >> 20) & 0x0000_007f_0000_007f;
    let quarters = hundreds | (halves - hundreds * 100) << 16;
    let tens = ((quarters * 103) >> 10) & 0x000f_000f_000f_000f;
    let digits = tens | (quarters - tens * 10) << 8;
    (digits | 0x3030_3030_3030_3030).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::Arena;

    fn written(write: impl FnOnce(&mut Buffer<'_>)) -> String {
        let mut arena = Arena::default();
        write(&mut Buffer::new(&mut arena));
        String::from_utf8(arena.as_slice().to_vec()).unwrap()
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
        for thousandths in -20_000..20_000 {
            let number = f64::from(thousandths) / 3000.0;
            let rounded = (number * 1000.0).round() / 1000.0 + 0.0;
            assert_eq!(written(|b| write_fixed3(b, number)), format!("{rounded:?}"), "{number}");
        }
        let mut numbers = vec![0, -1, 1_700_000_000_000, i64::MIN, i64::MAX, u32::MAX.into(), i64::from(u32::MAX) + 1];
        let mut random = 1u64;
        for shift in (0..64).cycle().take(20_000) {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            numbers.push((random >> shift).cast_signed());
        }
        for number in numbers {
            assert_eq!(written(|b| write_int(b, number)), number.to_string());
            assert_eq!(written(|b| write_fixed3(b, (number >> 24) as f64)), format!("{:?}", (number >> 24) as f64));
        }
        for number in (0..100_000_000).step_by(997).chain([9_999, 10_000, 99_999_999]) {
            assert_eq!(eight_digits(number), *format!("{number:08}").as_bytes());
        }
    }

    #[test]
    fn text_is_escaped_as_json_wants_it() {
        for text in ["plain", "", "a\"b\\c\nd\u{1}\u{1f}", "ü \u{7f}€"] {
            let json = format!("\"{}\"", written(|b| write_escaped(b, text)));
            assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
        }
    }

    /// What serde_json reads, as the reference; `None` for what is no JSON or no object.
    fn by_serde(json: &str) -> Option<Vec<(String, Scalar<'_>)>> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Vec<(String, Scalar<'de>)>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = object.next_entry()? {
                    members.push(member);
                }
                Ok(members)
            }
        }
        let mut source = serde_json::Deserializer::from_str(json);
        let members = source.deserialize_map(Members).ok()?;
        source.end().ok().map(|()| members)
    }

    fn by_scan(json: &str) -> Option<Vec<(String, Scalar<'_>)>> {
        let mut members = Vec::new();
        flat_object(json.as_bytes(), |name, value| members.push((name.to_owned(), value.into()))).map(|()| members)
    }

    #[test]
    fn flat_objects_are_read_as_serde_reads_them() {
        let values = [
            "0",
            "7",
            "-7",
            "188.65",
            "-12.5",
            "0.5",
            "-0.25",
            "7.000",
            "123456789012345",
            "1234567.12345678",
            "true",
            "false",
            "null",
            "\"\"",
            "\"x\"",
            "\"@0.004313s\"",
            "\"exactly8\"",
            "\"more than eight bytes\"",
            "\"ü €\"",
        ];
        for value in values {
            for json in [format!("{{\"a\":{value}}}"), format!(" {{ \"a\" : {value} ,\t\"bc\":{value}\r\n}} ")] {
                let scanned = by_scan(&json);
                assert!(scanned.is_some(), "{json}");
                assert_eq!(scanned, by_serde(&json), "{json}");
            }
        }
        assert_eq!(by_scan("{}"), by_serde("{}"));
    }

    #[test]
    fn what_is_no_flat_object_is_left_to_serde() {
        let bad = [
            "",
            "{",
            "}",
            "[]",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{,}",
            "{\"a\":1}x",
            "{\"a\":01}",
            "{\"a\":-01.5}",
            "{\"a\":-}",
            "{\"a\":1.}",
            "{\"a\":.5}",
            "{\"a\":tru}",
            "{\"a\":nul",
            "{\"a\":\"x}",
            "{\"a\":\"\n\"}",
            "{\"a\" 1}",
            "{a:1}",
            "{\"a\":1 \"b\":2}",
        ];
        for json in bad {
            assert_eq!((by_scan(json), by_serde(json)), (None, None), "{json}");
        }
        let good = [
            "{\"a\":\"\\n\"}",
            "{\"a\":[]}",
            "{\"a\":{}}",
            "{\"a\":1e3}",
            "{\"a\":1.5E3}",
            "{\"a\":-0}",
            "{\"a\":1234567890123456}",
        ];
        for json in good {
            assert!(by_scan(json).is_none() && by_serde(json).is_some(), "{json}");
        }
        assert!(flat_object(b"{\"a\":\"\xff\"}", |_, _| ()).is_none());
    }

    #[test]
    fn a_damaged_object_is_never_read_differently() {
        let line = r#"{"time" : "2023-06-12 11:16:48", "id" : "89\u0031932", "pressure_kPa" : -220.125, "ok":true, "n":null}"#;
        let plain = line.replace("\\u0031", "");
        for at in 0..plain.len() {
            for with in [0, 1, b'"', b'\\', b'0', b'9', b'-', b'.', b'e', b',', b'}', b'{', b' ', 0x1f, 0x7f] {
                let mut bytes = plain.clone().into_bytes();
                bytes[at] = with;
                let damaged = String::from_utf8(bytes).unwrap();
                if let Some(members) = by_scan(&damaged) {
                    assert_eq!(Some(members), by_serde(&damaged), "{damaged}");
                }
            }
        }
        assert!(by_scan(&plain).is_some());
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
