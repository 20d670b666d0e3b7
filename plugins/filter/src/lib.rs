//! Drops or keeps records by a predicate from the configuration.
//!
//! The predicate (`predicate`) is checked and compiled once. One that only looks at bytes never parses; one that names
//! fields reads those, and only those, out of the JSON in one pass (`fields`) and is then evaluated over them.
#![forbid(unsafe_code)]

mod fields;
mod predicate;
mod spec;

use weir_plugin::prelude::*;

use fields::{FIELDS_MAX, Paths};
use predicate::Predicate;
use weir_plugin::json::Scalar;

pub use spec::{Config, Test};

/// The plugin.
#[derive(Debug)]
pub struct Filter {
    predicate: Predicate,
    paths: Paths,
    /// Whether a match keeps the record (and everything else is dropped) or drops it.
    keep: bool,
}

#[weir_plugin::plugin(metrics = ["dropped"])]
impl Plugin for Filter {
    type Config = Config;

    fn init(config: Config, _outputs: &Outputs<'_>) -> std::result::Result<Self, InitError> {
        let (key, test, keep) = match (&config.keep, &config.drop) {
            (Some(test), None) => ("keep", test, true),
            (None, Some(test)) => ("drop", test, false),
            (Some(_), Some(_)) => return Err(InitError::config("keep", "give either `keep` or `drop`, not both")),
            (None, None) => return Err(InitError::config("drop", "give a predicate as `keep` or as `drop`")),
        };
        let mut paths = Paths::default();
        let predicate = Predicate::compile(key, test, &mut paths)?;
        Ok(Self { predicate, paths, keep })
    }

    fn process(&mut self, record: Record<'_>, out: &mut Out<'_>) -> Result {
        let bytes = record.value().unwrap_or_default();
        let mut values: [Scalar<'_>; FIELDS_MAX] = Default::default();
        if !self.paths.is_empty() {
            self.paths.read(record.bytes()?, &mut values)?;
        }
        if self.predicate.holds(bytes, &values) == self.keep {
            return out.keep();
        }
        out.count("dropped", 1);
        out.drop()
    }
}
