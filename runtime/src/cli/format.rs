//! What `weir consume` prints for a record: a format string as in kcat, or a JSON object a line.
//!
//! `%s` value · `%S` its length · `%k` key · `%K` its length · `%t` topic · `%p` partition · `%o` offset · `%T` timestamp in
//! ms · `%h` headers as `name=value,…` · `%%` a percent sign; `\n \t \r \0 \\ \xHH` as in C. Lengths of null are -1.

use std::io::{self, Write};

/// A record as the formatter sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct RecordView<'a> {
    pub(super) topic: &'a str,
    pub(super) partition: u32,
    pub(super) offset: i64,
    pub(super) timestamp: i64,
    pub(super) key: Option<&'a [u8]>,
    pub(super) value: Option<&'a [u8]>,
    pub(super) headers: &'a [(&'a [u8], Option<&'a [u8]>)],
}

/// How records are printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Format {
    /// Pieces of a format string.
    Pieces(Vec<Piece>),
    /// One JSON object a line.
    Json,
}

/// A piece of a format string.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    Text(Vec<u8>),
    Value,
    ValueLength,
    Key,
    KeyLength,
    Topic,
    Partition,
    Offset,
    Timestamp,
    Headers,
}

impl Format {
    /// Reads a format string; the error says which part is wrong.
    pub(super) fn parse(text: &str) -> Result<Format, String> {
        let mut pieces = Vec::new();
        let mut literal = Vec::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            match c {
                '%' => {
                    let letter = chars.next().ok_or("the format ends in a single %; write %% for a percent sign")?;
                    if letter == '%' {
                        literal.push(b'%');
                        continue;
                    }
                    if !literal.is_empty() {
                        pieces.push(Piece::Text(std::mem::take(&mut literal)));
                    }
                    pieces.push(Piece::of_letter(letter).ok_or_else(|| {
                        format!("unknown %{letter} in the format; there are %s %S %k %K %t %p %o %T %h and %%")
                    })?);
                }
                '\\' => literal.push(escaped(&mut chars)?),
                other => literal.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        if !literal.is_empty() {
            pieces.push(Piece::Text(literal));
        }
        Ok(Format::Pieces(pieces))
    }

    /// Writes one record.
    pub(super) fn write(&self, out: &mut impl Write, record: &RecordView<'_>) -> io::Result<()> {
        match self {
            Format::Json => write_json(out, record),
            Format::Pieces(pieces) => pieces.iter().try_for_each(|piece| piece.write(out, record)),
        }
    }
}

impl Piece {
    fn of_letter(letter: char) -> Option<Piece> {
        Some(match letter {
            's' => Piece::Value,
            'S' => Piece::ValueLength,
            'k' => Piece::Key,
            'K' => Piece::KeyLength,
            't' => Piece::Topic,
            'p' => Piece::Partition,
            'o' => Piece::Offset,
            'T' => Piece::Timestamp,
            'h' => Piece::Headers,
            _ => return None,
        })
    }

    fn write(&self, out: &mut impl Write, record: &RecordView<'_>) -> io::Result<()> {
        let length = |bytes: Option<&[u8]>| bytes.map_or(-1, |bytes| bytes.len() as i64);
        match self {
            Piece::Text(text) => out.write_all(text),
            Piece::Value => out.write_all(record.value.unwrap_or_default()),
            Piece::ValueLength => write!(out, "{}", length(record.value)),
            Piece::Key => out.write_all(record.key.unwrap_or_default()),
            Piece::KeyLength => write!(out, "{}", length(record.key)),
            Piece::Topic => out.write_all(record.topic.as_bytes()),
            Piece::Partition => write!(out, "{}", record.partition),
            Piece::Offset => write!(out, "{}", record.offset),
            Piece::Timestamp => write!(out, "{}", record.timestamp),
            Piece::Headers => {
                for (index, (name, value)) in record.headers.iter().enumerate() {
                    out.write_all(if index == 0 { b"" } else { b"," })?;
                    out.write_all(name)?;
                    out.write_all(b"=")?;
                    out.write_all(value.unwrap_or_default())?;
                }
                Ok(())
            }
        }
    }
}

/// Text stays text; bytes that are not UTF-8 become `{"hex": "…"}`.
fn write_json(out: &mut impl Write, record: &RecordView<'_>) -> io::Result<()> {
    let headers: Vec<serde_json::Value> = record
        .headers
        .iter()
        .map(|(name, value)| serde_json::json!([String::from_utf8_lossy(name), json_bytes(*value)]))
        .collect();
    let object = serde_json::json!({
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "timestamp": record.timestamp,
        "key": json_bytes(record.key),
        "value": json_bytes(record.value),
        "headers": headers,
    });
    writeln!(out, "{object}")
}

fn json_bytes(bytes: Option<&[u8]>) -> serde_json::Value {
    match bytes.map(|bytes| (bytes, std::str::from_utf8(bytes))) {
        None => serde_json::Value::Null,
        Some((_, Ok(text))) => text.into(),
        Some((bytes, Err(_))) => {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            serde_json::json!({ "hex": hex })
        }
    }
}

fn escaped(chars: &mut std::str::Chars<'_>) -> Result<u8, String> {
    Ok(match chars.next() {
        Some('n') => b'\n',
        Some('t') => b'\t',
        Some('r') => b'\r',
        Some('0') => 0,
        Some('\\') => b'\\',
        Some('x') => {
            let digits: String = chars.by_ref().take(2).collect();
            u8::from_str_radix(&digits, 16).map_err(|_| format!("\\x{digits} needs two hexadecimal digits"))?
        }
        Some(other) => return Err(format!("unknown \\{other} in the format; there are \\n \\t \\r \\0 \\\\ and \\xHH")),
        None => return Err("the format ends in a single \\; write \\\\ for a backslash".to_owned()),
    })
}

/// A separator or delimiter argument with the same escapes, at least one byte.
pub(super) fn parse_bytes_argument(text: &str) -> Result<Vec<u8>, String> {
    match Format::parse(&text.replace('%', "%%"))? {
        Format::Pieces(pieces) => match pieces.into_iter().next() {
            Some(Piece::Text(bytes)) => Ok(bytes),
            _ => Err("must not be empty".to_owned()),
        },
        Format::Json => Err("must not be empty".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn print(format: &str, record: &RecordView<'_>) -> String {
        let mut out = Vec::new();
        Format::parse(format).expect("a valid format").write(&mut out, record).expect("a Vec takes everything");
        String::from_utf8(out).expect("text")
    }

    fn record<'a>(headers: &'a [(&'a [u8], Option<&'a [u8]>)]) -> RecordView<'a> {
        RecordView { topic: "t", partition: 3, offset: 7, timestamp: 1000, key: Some(b"k"), value: Some(b"v w"), headers }
    }

    #[test]
    fn every_letter_prints_its_field() {
        let headers = [(&b"a"[..], Some(&b"1"[..])), (b"b", None)];
        let text = print("%t %p %o %T %k/%K %s/%S %h%%\\n\\x41", &record(&headers));
        assert_eq!(text, "t 3 7 1000 k/1 v w/3 a=1,b=%\nA");
    }

    #[test]
    fn null_has_length_minus_one_and_prints_nothing() {
        let null = RecordView { key: None, value: None, ..record(&[]) };
        assert_eq!(print("[%k %K %s %S]", &null), "[ -1  -1]");
    }

    #[test]
    fn wrong_formats_name_the_wrong_part() {
        for (format, part) in [("%q", "%q"), ("100%", "%%"), ("\\q", "\\q"), ("\\xz1", "\\xz1"), ("a\\", "backslash")] {
            let error = Format::parse(format).expect_err("must be refused");
            assert!(error.contains(part), "{format:?}: {error}");
        }
    }

    #[test]
    fn json_keeps_text_and_marks_bytes() {
        let mut out = Vec::new();
        let headers = [(&b"seq"[..], Some(&[0xff][..]))];
        Format::Json.write(&mut out, &RecordView { key: None, ..record(&headers) }).expect("written");
        let value: serde_json::Value = serde_json::from_slice(&out).expect("one JSON object");
        assert_eq!(value["value"], "v w");
        assert!(value["key"].is_null());
        assert_eq!(value["headers"][0][1]["hex"], "ff");
    }

    #[test]
    fn separators_take_escapes_and_percent_signs() {
        assert_eq!(parse_bytes_argument("\\t"), Ok(vec![b'\t']));
        assert_eq!(parse_bytes_argument("%:"), Ok(b"%:".to_vec()));
        assert!(parse_bytes_argument("").is_err());
    }
}
