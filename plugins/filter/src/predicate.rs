//! A predicate, compiled: fields are slots, constants are typed, and every mistake was found when it was made.
use weir_plugin::json::Scalar;
use weir_plugin::prelude::*;

use crate::fields::{FIELDS_MAX, Paths};
use crate::spec::{Bytes, Test, Value};

/// The deepest nesting of `any`, `all` and `not`.
const DEPTH_MAX: usize = 16;

const OPERATORS: [&str; 9] = ["==", "!=", "<", "<=", ">", "exists", "contains", "starts_with", ">="];

type Made<T> = std::result::Result<T, InitError>;

/// What is asked about a record.
#[derive(Debug)]
pub(crate) enum Predicate {
    Any(Vec<Predicate>),
    All(Vec<Predicate>),
    Not(Box<Predicate>),
    Exists(usize),
    Equal(usize, Value),
    /// There, comparable, and not equal.
    Differs(usize, Value),
    Ordered(usize, Order, f64),
    Contains(usize, String),
    StartsWith(usize, String),
    BytesContain(Vec<u8>),
    BytesAt(i64, Vec<u8>),
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Order {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Predicate {
    /// Checks a test that stands at `place` in the configuration.
    pub(crate) fn compile(place: &str, test: &Test, paths: &mut Paths) -> Made<Self> {
        Self::compile_at(place, test, paths, 0)
    }

    fn compile_at(place: &str, test: &Test, paths: &mut Paths, depth: usize) -> Made<Self> {
        if depth > DEPTH_MAX {
            return Err(InitError::config(place, format_args!("nested deeper than {DEPTH_MAX}")));
        }
        let list = |name: &str, tests: &[Test], paths: &mut Paths| {
            if tests.is_empty() {
                return Err(InitError::config(&format!("{place}.{name}"), "the list is empty"));
            }
            let each = |(at, test)| Self::compile_at(&format!("{place}.{name}[{at}]"), test, paths, depth + 1);
            tests.iter().enumerate().map(each).collect::<Made<Vec<_>>>()
        };
        if test.field.is_none() && (test.op.is_some() || test.value.is_some()) {
            return Err(InitError::config(place, "`op` and `value` need a `field`"));
        }
        match (&test.field, &test.bytes, &test.any, &test.all, &test.not) {
            (Some(field), None, None, None, None) => Self::of_field(place, field, test, paths),
            (None, Some(bytes), None, None, None) => Self::of_bytes(place, bytes),
            (None, None, Some(tests), None, None) => Ok(Self::Any(list("any", tests, paths)?)),
            (None, None, None, Some(tests), None) => Ok(Self::All(list("all", tests, paths)?)),
            (None, None, None, None, Some(test)) => {
                Ok(Self::Not(Box::new(Self::compile_at(&format!("{place}.not"), test, paths, depth + 1)?)))
            }
            _ => Err(InitError::config(place, "give exactly one of `field`, `bytes`, `any`, `all`, `not`")),
        }
    }

    fn of_field(place: &str, field: &str, test: &Test, paths: &mut Paths) -> Made<Self> {
        let at = |key: &str| format!("{place}.{key}");
        let slot = paths.slot(field).map_err(|problem| InitError::config(&at("field"), problem))?;
        let op = test.op.as_deref().ok_or_else(|| InitError::config(&at("op"), "missing"))?;
        if op == "exists" {
            return match test.value {
                None => Ok(Self::Exists(slot)),
                Some(_) => Err(InitError::config(&at("value"), "`exists` takes none")),
            };
        }
        if !OPERATORS.contains(&op) {
            return Err(InitError::config(&at("op"), format_args!("unknown operator \"{op}\"; known: {}", OPERATORS.join(" "))));
        }
        let value = test.value.clone().ok_or_else(|| InitError::config(&at("value"), format_args!("`{op}` needs one")))?;
        let order = match op {
            "==" => return Ok(Self::Equal(slot, value)),
            "!=" => return Ok(Self::Differs(slot, value)),
            "<" => Order::Less,
            "<=" => Order::LessOrEqual,
            ">" => Order::Greater,
            "contains" | "starts_with" => {
                let Value::Text(text) = value else {
                    return Err(InitError::config(&at("value"), format_args!("`{op}` needs text")));
                };
                return Ok(if op == "contains" { Self::Contains(slot, text) } else { Self::StartsWith(slot, text) });
            }
            _ => Order::GreaterOrEqual,
        };
        match value {
            Value::Number(number) => Ok(Self::Ordered(slot, order, number)),
            _ => Err(InitError::config(&at("value"), format_args!("`{op}` compares numbers"))),
        }
    }

    fn of_bytes(place: &str, bytes: &Bytes) -> Made<Self> {
        let place = format!("{place}.bytes");
        match (&bytes.contains, &bytes.equals, bytes.at) {
            (Some(text), None, None) if !text.is_empty() => Ok(Self::BytesContain(text.as_bytes().to_vec())),
            (None, Some(text), Some(at)) if !text.is_empty() => Ok(Self::BytesAt(at, text.as_bytes().to_vec())),
            _ => Err(InitError::config(&place, "give `contains`, or `equals` with `at`; texts may not be empty")),
        }
    }

    /// Whether a record passes.
    pub(crate) fn holds(&self, bytes: &[u8], values: &[Scalar<'_>; FIELDS_MAX]) -> bool {
        match self {
            Self::Any(tests) => tests.iter().any(|test| test.holds(bytes, values)),
            Self::All(tests) => tests.iter().all(|test| test.holds(bytes, values)),
            Self::Not(test) => !test.holds(bytes, values),
            Self::Exists(slot) => values[*slot].is_some(),
            Self::Equal(slot, value) => equal(&values[*slot], value) == Some(true),
            Self::Differs(slot, value) => values[*slot].is_some() && equal(&values[*slot], value) != Some(true),
            Self::Ordered(slot, order, limit) => ordered(&values[*slot], *order, *limit),
            Self::Contains(slot, part) => values[*slot].text().is_some_and(|text| text.contains(part.as_str())),
            Self::StartsWith(slot, part) => values[*slot].text().is_some_and(|text| text.starts_with(part.as_str())),
            Self::BytesContain(part) => contains(bytes, part),
            Self::BytesAt(at, part) => at_position(bytes, *at, part),
        }
    }
}

/// `None` where the types differ.
fn equal(field: &Scalar<'_>, value: &Value) -> Option<bool> {
    match (field, value) {
        (Scalar::Text(text), Value::Text(value)) => Some(text == value),
        (Scalar::Bool(truth), Value::Bool(value)) => Some(truth == value),
        (Scalar::Int(number), Value::Number(value)) => Some(*number as f64 == *value),
        (Scalar::Float(number), Value::Number(value)) => Some(number == value),
        _ => None,
    }
}

/// False for what is no number: a comparison that cannot be made does not hold.
fn ordered(field: &Scalar<'_>, order: Order, limit: f64) -> bool {
    let number = match field {
        Scalar::Int(number) => *number as f64,
        Scalar::Float(number) => *number,
        _ => return false,
    };
    match order {
        Order::Less => number < limit,
        Order::LessOrEqual => number <= limit,
        Order::Greater => number > limit,
        Order::GreaterOrEqual => number >= limit,
    }
}

/// Looks for the part's first byte, then compares: the common case touches each byte once.
fn contains(bytes: &[u8], part: &[u8]) -> bool {
    let Some((first, rest)) = part.split_first() else { return true };
    let mut from = bytes;
    while let Some(at) = from.iter().position(|byte| byte == first) {
        from = &from[at + 1..];
        if from.starts_with(rest) {
            return true;
        }
    }
    false
}

/// A negative position counts from the end.
fn at_position(bytes: &[u8], at: i64, part: &[u8]) -> bool {
    let start = if at < 0 { bytes.len() as i64 + at } else { at };
    let start = usize::try_from(start).ok();
    start.and_then(|start| bytes.get(start..)).is_some_and(|from| from.starts_with(part))
}
