//! A line as rtl_433 prints it: the fields of about forty decoders that mean something here, read in one pass.
//!
//! Any field may have any type or be missing, a name may come twice (the last one counts), and everything else is skipped.
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use weir_plugin::json::{Scalar, flat_object};
use weir_plugin::{Record, Result};

/// The fields, still as they were written.
#[derive(Debug, Default)]
pub(crate) struct Source<'a> {
    pub(crate) kind: Scalar<'a>,
    pub(crate) model: Scalar<'a>,
    pub(crate) id: Scalar<'a>,
    pub(crate) time: Scalar<'a>,
    pub(crate) pressure_kpa: Scalar<'a>,
    pub(crate) pressure_psi: Scalar<'a>,
    pub(crate) pressure_bar: Scalar<'a>,
    pub(crate) temperature_c: Scalar<'a>,
    pub(crate) temperature_f: Scalar<'a>,
    pub(crate) battery_ok: Scalar<'a>,
    pub(crate) battery: Scalar<'a>,
    pub(crate) battery_low: Scalar<'a>,
    pub(crate) fast_leak: Scalar<'a>,
    pub(crate) flags: Scalar<'a>,
    pub(crate) code: Scalar<'a>,
}

impl<'a> Source<'a> {
    /// rtl_433 marks every tyre decoder's output so.
    pub(crate) fn is_tpms(&self) -> bool {
        self.kind.text().is_some_and(|kind| kind.eq_ignore_ascii_case("TPMS"))
    }

    /// Reads a line. Nearly all are flat objects; serde_json reads the others, and says what is wrong with them.
    pub(crate) fn read(record: &Record<'a>) -> Result<Self> {
        let mut source = Self::default();
        let plain = flat_object(record.bytes()?, |name, value| {
            if let Some(field) = source.field(name) {
                *field = value.into();
            }
        });
        if plain.is_some() { Ok(source) } else { record.json() }
    }

    #[inline]
    fn field(&mut self, name: &str) -> Option<&mut Scalar<'a>> {
        Some(match name {
            "type" => &mut self.kind,
            "model" => &mut self.model,
            "id" => &mut self.id,
            "time" => &mut self.time,
            "pressure_kPa" | "pressure_kpa" => &mut self.pressure_kpa,
            "pressure_PSI" | "pressure_psi" => &mut self.pressure_psi,
            "pressure_bar" | "pressure_BAR" => &mut self.pressure_bar,
            "temperature_C" | "temperature_c" => &mut self.temperature_c,
            "temperature_F" | "temperature_f" => &mut self.temperature_f,
            "battery_ok" => &mut self.battery_ok,
            "battery" => &mut self.battery,
            "battery_low" | "low_battery" => &mut self.battery_low,
            "fast_leak" => &mut self.fast_leak,
            "flags" => &mut self.flags,
            "code" => &mut self.code,
            _ => return None,
        })
    }
}

impl<'de> Deserialize<'de> for Source<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(SourceVisitor)
    }
}

struct SourceVisitor;

impl<'de> Visitor<'de> for SourceVisitor {
    type Value = Source<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object as rtl_433 prints it")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> std::result::Result<Self::Value, A::Error> {
        let mut source = Source::default();
        while let Some(Scalar::Text(name)) = object.next_key()? {
            match source.field(&name) {
                Some(field) => *field = object.next_value()?,
                None => drop(object.next_value::<IgnoredAny>()?),
            }
        }
        Ok(source)
    }
}
