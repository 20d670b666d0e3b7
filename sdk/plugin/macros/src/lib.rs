//! `#[weir_plugin::plugin]`: turns a function, or an `impl Plugin`, into the exports of a plugin.
//!
//! The attribute is sugar. On a function it writes the type and the `impl Plugin` that an author would write by hand;
//! on an `impl Plugin` it adds the names of the outputs; on both it calls `weir_plugin::export!`. What it does beyond
//! that: an output or metric named by a literal is looked up here, so that a misspelt name does not compile and a
//! right one costs nothing while records pass (`names.rs`).
#![forbid(unsafe_code)]

mod args;
mod function;
mod implementation;
mod names;

use proc_macro::TokenStream;
use syn::spanned::Spanned;
use syn::{Item, parse_macro_input};

/// Makes a plugin of a function or of an `impl Plugin for T`.
///
/// `outputs = ["a", "b"]` names the outputs as in the manifest, `metrics = ["m"]` the counters.
///
/// A function takes `(record, out)`, or `(config, record, out)` with the configuration by reference. Its plugin type
/// is as visible as the function and carries its name in camel case: `fn low_pressure` becomes `LowPressure`.
#[proc_macro_attribute]
pub fn plugin(args: TokenStream, item: TokenStream) -> TokenStream {
    let args = parse_macro_input!(args as args::Args);
    let expanded = match parse_macro_input!(item as Item) {
        Item::Fn(function) => function::expand(&args, function),
        Item::Impl(implementation) => implementation::expand(&args, implementation),
        other => Err(syn::Error::new(other.span(), "#[plugin] goes on a function or on an `impl Plugin for ...`")),
    };
    expanded.unwrap_or_else(syn::Error::into_compile_error).into()
}
