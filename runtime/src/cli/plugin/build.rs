//! `weir plugin build`: the crate becomes a core module, the module and its manifest a component, and the component is
//! checked as a node would check it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;
use weir_pipeline::{HostConfig, Manifest, PackError, PluginHost, pack};

use super::toolchain::Toolchain;
use super::{BuildArgs, PluginCliError};

const MANIFEST: &str = "weir-plugin.toml";

pub(super) fn run(args: &BuildArgs) -> Result<(), PluginCliError> {
    let one_file = args.out.as_ref().filter(|out| out.extension().is_some_and(|extension| extension == "wasm"));
    if let Some(out) = one_file
        && args.dirs.len() > 1
    {
        return Err(PluginCliError::OneFile(out.clone()));
    }
    for dir in &args.dirs {
        let file = build(dir, args.out.as_deref(), args.locked)?;
        let bytes = file.metadata().map_or(0, |metadata| metadata.len());
        writeln!(std::io::stdout().lock(), "{} ({} KiB)", file.display(), bytes.div_ceil(1024))?;
    }
    Ok(())
}

/// Builds the plugin in `dir`; `out` is a `.wasm` file or a folder. Returns the component's path.
///
/// # Errors
/// What is missing or wrong, for the plugin's author.
pub fn build(dir: &Path, out: Option<&Path>, locked: bool) -> Result<PathBuf, PluginCliError> {
    let manifest_path = dir.join(MANIFEST);
    if !manifest_path.is_file() {
        return Err(PluginCliError::NoManifest(dir.to_owned()));
    }
    let text = std::fs::read_to_string(&manifest_path).map_err(|error| PluginCliError::read(&manifest_path, error))?;
    // Before the long work: a mistake in the manifest shows at once.
    let packing = |source: PackError| PluginCliError::Pack { path: dir.to_owned(), source };
    let manifest = Manifest::parse(&text).map_err(|error| packing(error.into()))?;
    let module_path = compile(dir, locked)?;
    let module = std::fs::read(&module_path).map_err(|error| PluginCliError::read(&module_path, error))?;
    let component = pack(&module, &text).map_err(packing)?;
    check(dir, &component)?;
    let file = out_file(dir, out, &manifest.name);
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder).map_err(|error| PluginCliError::write(folder, error))?;
    }
    // Whoever watches the file sees the old or the new component, never a part.
    let partial = file.with_extension("wasm.partial");
    std::fs::write(&partial, &component).map_err(|error| PluginCliError::write(&partial, error))?;
    std::fs::rename(&partial, &file).map_err(|error| PluginCliError::write(&file, error))?;
    Ok(file)
}

fn out_file(dir: &Path, out: Option<&Path>, name: &str) -> PathBuf {
    match out {
        Some(out) if out.extension().is_some_and(|extension| extension == "wasm") => out.to_owned(),
        Some(folder) => folder.join(format!("{name}.wasm")),
        None => dir.join("dist").join(format!("{name}.wasm")),
    }
}

/// Runs cargo and returns the module it made.
fn compile(dir: &Path, locked: bool) -> Result<PathBuf, PluginCliError> {
    let toolchain = Toolchain::find()?;
    eprintln!("compiling {} with {}", dir.display(), toolchain.describe());
    let mut command = toolchain.command();
    command.arg("--manifest-path").arg(dir.join("Cargo.toml")).arg("--message-format=json-render-diagnostics");
    if locked {
        command.arg("--locked");
    }
    let output = command.stderr(Stdio::inherit()).output();
    let output = output.map_err(|source| PluginCliError::Cargo { cargo: toolchain.cargo().to_owned(), source })?;
    if !output.status.success() {
        return Err(PluginCliError::Compile(dir.to_owned()));
    }
    module_of(&String::from_utf8_lossy(&output.stdout)).ok_or_else(|| PluginCliError::NoModule(dir.to_owned()))
}

/// The last WebAssembly file cargo reports: dependencies come before the crate itself.
fn module_of(messages: &str) -> Option<PathBuf> {
    let artifacts = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let artifacts = artifacts.filter(|message| message["reason"] == "compiler-artifact");
    let files = artifacts.filter_map(|artifact| artifact["filenames"].as_array().cloned()).flatten();
    files.filter_map(|file| file.as_str().map(PathBuf::from)).rfind(|file| file.extension().is_some_and(|e| e == "wasm"))
}

/// A node would compile it, link it and find its exports.
fn check(dir: &Path, component: &[u8]) -> Result<(), PluginCliError> {
    let host = PluginHost::new(HostConfig::default())?;
    host.compile(component).map(drop).map_err(|source| PluginCliError::Plugin { path: dir.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_module_is_the_last_wasm_file_reported() {
        let messages = "\
{\"reason\":\"compiler-artifact\",\"filenames\":[\"/t/libserde.rlib\"]}
not json
{\"reason\":\"compiler-artifact\",\"filenames\":[\"/t/dep.wasm\"]}
{\"reason\":\"compiler-artifact\",\"filenames\":[\"/t/mine.wasm\",\"/t/libmine.rlib\"]}
{\"reason\":\"build-finished\",\"success\":true}";
        assert_eq!(module_of(messages), Some(PathBuf::from("/t/mine.wasm")));
        assert_eq!(module_of("{\"reason\":\"build-finished\"}"), None);
    }

    #[test]
    fn out_is_a_file_or_a_folder() {
        let of = |out: Option<&str>| out_file(Path::new("d"), out.map(Path::new), "p");
        assert_eq!(of(None), Path::new("d/dist/p.wasm"));
        assert_eq!(of(Some("x/y.wasm")), Path::new("x/y.wasm"));
        assert_eq!(of(Some("x/y")), Path::new("x/y/p.wasm"));
    }

    #[test]
    fn a_folder_without_a_manifest_says_how_to_begin() {
        let folder = tempfile::tempdir().unwrap();
        let error = build(folder.path(), None, false).unwrap_err().to_string();
        assert!(error.contains("weir plugin new"), "{error}");
        std::fs::write(folder.path().join(MANIFEST), "[plugin]\nname = \"x\"\nversoin = \"1\"").unwrap();
        let error = build(folder.path(), None, false).unwrap_err().to_string();
        assert!(error.contains("versoin"), "{error}");
    }
}
