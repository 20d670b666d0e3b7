//! Reads a few fields out of a JSON object in one pass, without building anything of the rest.
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use weir_plugin::json::Scalar;
use weir_plugin::prelude::*;

/// The most fields one predicate may name: their values lie on the stack.
pub(crate) const FIELDS_MAX: usize = 16;
/// The deepest path.
const DEPTH_MAX: usize = 8;

/// The paths a predicate names, as a tree of names.
#[derive(Debug, Default)]
pub(crate) struct Paths {
    root: Node,
    known: Vec<String>,
}

#[derive(Debug, Default)]
struct Node {
    /// Where the value found here goes.
    slot: Option<usize>,
    children: Vec<(String, Node)>,
}

impl Paths {
    pub(crate) fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// The slot of a path; the same path has one slot.
    pub(crate) fn slot(&mut self, path: &str) -> std::result::Result<usize, String> {
        if let Some(slot) = self.known.iter().position(|known| known == path) {
            return Ok(slot);
        }
        let names: Vec<&str> = path.split('.').collect();
        if names.iter().any(|name| name.is_empty()) {
            return Err(format!("\"{path}\" is no path; write names joined by dots"));
        }
        if names.len() > DEPTH_MAX || self.known.len() == FIELDS_MAX {
            return Err(format!("at most {FIELDS_MAX} fields, each at most {DEPTH_MAX} names deep"));
        }
        let slot = self.known.len();
        let mut node = &mut self.root;
        for name in names {
            let at = node.children.iter().position(|(known, _)| known == name).unwrap_or_else(|| {
                node.children.push((name.to_owned(), Node::default()));
                node.children.len() - 1
            });
            node = &mut node.children[at].1;
        }
        node.slot = Some(slot);
        self.known.push(path.to_owned());
        Ok(slot)
    }

    /// Fills the slots of the fields that are there.
    pub(crate) fn read<'a>(&self, json: &'a [u8], values: &mut [Scalar<'a>; FIELDS_MAX]) -> Result {
        let mut source = weir_plugin::serde_json::Deserializer::from_slice(json);
        Reader { node: &self.root, values }.deserialize(&mut source).and_then(|()| source.end()).map_err(not_json)
    }
}

#[cold]
fn not_json(error: weir_plugin::serde_json::Error) -> Error {
    Error::new(format_args!("the value is not a JSON object: {error}"))
}

/// Reads an object into the slots below `node`.
struct Reader<'n, 'v, 'a> {
    node: &'n Node,
    values: &'v mut [Scalar<'a>; FIELDS_MAX],
}

impl<'de> DeserializeSeed<'de> for Reader<'_, '_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Reader<'_, '_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> std::result::Result<(), A::Error> {
        while let Some(Scalar::Text(name)) = object.next_key()? {
            let child = self.node.children.iter().find(|(known, _)| *known == name);
            match child {
                None => drop(object.next_value::<IgnoredAny>()?),
                Some((_, node)) => object.next_value_seed(Below { node, values: &mut *self.values })?,
            }
        }
        Ok(())
    }
}

/// Reads a value that is a field itself, has fields below it that count, or both.
struct Below<'n, 'v, 'a> {
    node: &'n Node,
    values: &'v mut [Scalar<'a>; FIELDS_MAX],
}

impl<'de> DeserializeSeed<'de> for Below<'_, '_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        if self.node.children.is_empty() {
            let value = serde::Deserialize::deserialize(deserializer)?;
            return self.put(value);
        }
        deserializer.deserialize_any(self)
    }
}

impl<'a> Below<'_, '_, 'a> {
    fn put<E>(self, value: Scalar<'a>) -> std::result::Result<(), E> {
        if let Some(slot) = self.node.slot {
            self.values[slot] = value;
        }
        Ok(())
    }
}

impl<'de> Visitor<'de> for Below<'_, '_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_unit<E>(self) -> std::result::Result<(), E> {
        self.put(Scalar::Null)
    }

    fn visit_bool<E>(self, value: bool) -> std::result::Result<(), E> {
        self.put(Scalar::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> std::result::Result<(), E> {
        self.put(Scalar::Int(value))
    }

    fn visit_u64<E>(self, value: u64) -> std::result::Result<(), E> {
        self.put(i64::try_from(value).map_or(Scalar::Float(value as f64), Scalar::Int))
    }

    fn visit_f64<E>(self, value: f64) -> std::result::Result<(), E> {
        self.put(Scalar::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> std::result::Result<(), E> {
        self.put(Scalar::Text(value.to_owned().into()))
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut list: A) -> std::result::Result<(), A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        self.put(Scalar::Compound)
    }

    fn visit_map<A: MapAccess<'de>>(self, object: A) -> std::result::Result<(), A::Error> {
        if let Some(slot) = self.node.slot {
            self.values[slot] = Scalar::Compound;
        }
        Reader { node: self.node, values: self.values }.visit_map(object)
    }
}
