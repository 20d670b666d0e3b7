//! Packing: a core module and a manifest become a component. Needs no external tool.
use weir_plugin_abi::{MANIFEST_SECTION, WIT, WORLD};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

use crate::error::PackError;
use crate::manifest::{Manifest, ManifestError};
use crate::section::{Kind, append_custom, custom_sections, kind};

/// Turns a core module with the exports of world `transform` (canonical ABI names `init`, `process`, `cabi_realloc`,
/// `memory`) into a component and puts the manifest's text into its custom section `weir-plugin`.
///
/// # Errors
/// [`PackError`] tells the plugin's author what to change.
pub fn pack(core_module: &[u8], manifest_toml: &str) -> Result<Vec<u8>, PackError> {
    match kind(core_module) {
        Kind::Module => {}
        Kind::Component => return Err(PackError::AlreadyComponent),
        Kind::NotWasm => return Err(PackError::NotModule),
    }
    Manifest::parse(manifest_toml)?;
    let mut module = core_module.to_vec();
    let world_error = |reason: String| PackError::World { reason };
    let mut resolve = Resolve::default();
    let package = resolve.push_source("weir.wit", WIT).map_err(|e| world_error(format!("{e:#}")))?;
    let world = resolve.select_world(&[package], Some(WORLD)).map_err(|e| world_error(format!("{e:#}")))?;
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).map_err(|e| world_error(format!("{e:#}")))?;
    let mut component = ComponentEncoder::default()
        .validate(true)
        .module(&module)
        .and_then(|mut encoder| encoder.encode())
        .map_err(|e| world_error(format!("{e:#}")))?;
    append_custom(&mut component, MANIFEST_SECTION, manifest_toml.as_bytes());
    Ok(component)
}

/// Reads the manifest packed into a component, without compiling it.
///
/// # Errors
/// [`ManifestError`] if it is missing, there twice, or wrong.
pub fn manifest_of(component: &[u8]) -> Result<Manifest, ManifestError> {
    match custom_sections(component, MANIFEST_SECTION)[..] {
        [] => Err(ManifestError::Missing),
        [section] => Manifest::parse_bytes(section),
        ref several => Err(ManifestError::Several { count: several.len() }),
    }
}
