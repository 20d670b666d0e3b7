//! What a plugin of Weir is written with.
//!
//! A plugin sees every record of a topic before it is stored and acknowledged: it keeps, drops, replaces or rejects it,
//! and may send more records to outputs that the operator attaches to other topics. The host passes a whole batch at
//! once ([`instance`] drives it); a [`Record`] is a view of one of its records, and what [`Plugin::process`] says on
//! [`Out`] goes back as verdicts and an arena of bytes. Nothing is allocated for a record unless the plugin does.
//!
//! ```
//! use weir_plugin::prelude::*;
//!
//! #[derive(Deserialize)]
//! struct Tyre<'a> {
//!     id: &'a str,
//!     pressure_kpa: f32,
//! }
//!
//! #[weir_plugin::plugin(outputs = ["alerts"])]
//! fn low_pressure(record: Record<'_>, out: &mut Out<'_>) -> Result {
//!     let tyre: Tyre = record.json()?; // an error rejects the record: the failure policy decides
//!     if tyre.pressure_kpa < 150.0 {
//!         out.emit("alerts", record.key(), format_args!("{} has {} kPa", tyre.id, tyre.pressure_kpa))?;
//!     }
//!     out.keep()
//! }
//!
//! # fn main() {
//! let judged = weir_plugin::testing::run::<LowPressure>("", [r#"{"id":"23e1416f","pressure_kpa":62.0}"#]);
//! assert_eq!(judged[0].verdict, weir_plugin::testing::Verdict::Kept);
//! assert_eq!(judged[0].emitted[0].value_str(), "23e1416f has 62 kPa");
//! # }
//! ```
//!
//! The same crate is an ordinary library natively: `cargo test` needs no WebAssembly ([`testing`]). Only
//! `guest.rs`, which exists in the WebAssembly build alone, touches raw memory.
#![cfg_attr(not(target_arch = "wasm32"), forbid(unsafe_code))]
#![cfg_attr(target_arch = "wasm32", deny(unsafe_code))]

mod arena;
mod error;
#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
#[allow(unsafe_code)] // the canonical ABI passes pointers: all of them are here
pub mod guest;
pub mod instance;
pub mod json;
pub mod log;
mod names;
mod out;
mod payload;
mod plugin;
mod record;
pub mod table;
pub mod testing;

pub use error::{BatchError, Error, InitError, Result};
pub use names::{Metric, Output, Outputs, Target};
pub use out::Out;
pub use payload::{Buffer, IntoKey, Json, Payload, SourceKey, WriteWith, write_with};
pub use plugin::{NoConfig, Plugin};
pub use record::Record;
#[doc(no_inline)]
pub use serde_json;
pub use table::Table;
pub use weir_plugin_macros::plugin;

/// What most plugins import.
pub mod prelude {
    pub use crate::log::Level;
    pub use crate::{
        BatchError, Buffer, Error, InitError, Json, NoConfig, Out, Output, Outputs, Plugin, Record, Result, SourceKey, Table,
        log, write_with,
    };
    pub use serde::{Deserialize, Serialize};
}

/// Exports a [`Plugin`] from a crate of type `cdylib`; once a crate. The attribute macro calls it.
///
/// Natively it does nothing, so that the crate stays an ordinary library.
#[cfg(target_arch = "wasm32")]
#[macro_export]
macro_rules! export {
    ($plugin:ty) => {
        $crate::export_wasm!($plugin);
    };
}

/// Exports a [`Plugin`] from a crate of type `cdylib`; once a crate. The attribute macro calls it.
///
/// Natively it does nothing, so that the crate stays an ordinary library.
#[cfg(not(target_arch = "wasm32"))]
#[macro_export]
macro_rules! export {
    ($plugin:ty) => {
        const _: fn() = || {
            fn is_plugin<P: $crate::Plugin>() {}
            is_plugin::<$plugin>();
        };
    };
}
