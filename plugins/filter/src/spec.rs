//! The configuration as it is written.
use weir_plugin::prelude::*;

/// `{"drop": TEST}` or `{"keep": TEST}`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Records that pass the test are kept, all others dropped.
    pub keep: Option<Test>,
    /// Records that pass the test are dropped, all others kept.
    pub drop: Option<Test>,
}

/// A test: of a field (`field`, `op`, `value`), of bytes (`bytes`), or of other tests (`any`, `all`, `not`).
///
/// Exactly one of the five leading keys is given; [`Predicate::compile`](crate::predicate::Predicate::compile) says which
/// key is wrong otherwise.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Test {
    /// Path of a field: names joined by dots.
    pub field: Option<String>,
    /// `==`, `!=`, `<`, `<=`, `>`, `>=`, `exists`, `contains` or `starts_with`.
    pub op: Option<String>,
    /// What the field is compared with: text, number, truth or null.
    pub value: Option<Value>,
    /// Bytes of the value, without reading it as JSON.
    pub bytes: Option<Bytes>,
    /// At least one of these.
    pub any: Option<Vec<Test>>,
    /// Every one of these.
    pub all: Option<Vec<Test>>,
    /// Not this.
    pub not: Option<Box<Test>>,
}

/// A constant of the configuration.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Value {
    /// `true`, `false`
    Bool(bool),
    /// A number.
    Number(f64),
    /// Text.
    Text(String),
}

/// A test of bytes: `contains` anywhere, or `equals` at a position (from the end if negative).
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Bytes {
    /// This text lies somewhere in the value.
    pub contains: Option<String>,
    /// This text lies at `at`.
    pub equals: Option<String>,
    /// Position of `equals`; -1 is the last byte.
    pub at: Option<i64>,
}
