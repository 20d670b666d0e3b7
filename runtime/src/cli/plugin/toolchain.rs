//! Finds a Rust compiler that makes WebAssembly: one place that knows how, for every script.
//!
//! In this order, over every `rustc` of the PATH: one whose standard library for `wasm32-unknown-unknown` is installed (rustup, or
//! a distribution's package); one that has the library's source beside it and builds it along (Debian's rustc-web and
//! rust-web-src). The compiler calls a linker for WebAssembly; where it has none of its own, one of LLVM's is named.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::PluginCliError;

pub(super) const TARGET: &str = "wasm32-unknown-unknown";
/// Settings of the machine's own builds that would spoil one for WebAssembly.
const FOREIGN_SETTINGS: [&str; 8] = [
    "RUSTFLAGS",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC",
    "CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER",
    "CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS",
];
const INSTALL: &str = "no Rust compiler for WebAssembly was found; install one of these and try again:
  rustup target add wasm32-unknown-unknown
  apt-get install rustc-web cargo-web rust-web-src rust-web-llvm lld   (Debian, as root; `make setup` does it)";

/// A compiler, and how to call it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Toolchain {
    rustc: PathBuf,
    cargo: PathBuf,
    linker: Option<PathBuf>,
    build_std: bool,
}

impl Toolchain {
    /// The first that works.
    pub(super) fn find() -> Result<Self, PluginCliError> {
        let path = env::var_os("PATH").unwrap_or_default();
        let folders: Vec<PathBuf> = env::split_paths(&path).collect();
        let mut compilers: Vec<PathBuf> = Vec::new();
        for rustc in folders.iter().map(|folder| folder.join("rustc")).filter(|rustc| rustc.is_file()) {
            if !compilers.contains(&rustc) {
                compilers.push(rustc);
            }
        }
        let has = |build_std: bool| move |rustc: &&PathBuf| if build_std { has_source(rustc) } else { has_target(rustc) };
        let ready = compilers.iter().find(has(false)).map(|rustc| (rustc, false));
        let found = ready.or_else(|| compilers.iter().find(has(true)).map(|rustc| (rustc, true)));
        let (rustc, build_std) = found.ok_or_else(|| PluginCliError::NoToolchain(INSTALL.to_owned()))?;
        let beside = rustc.with_file_name("cargo");
        let cargo = if beside.is_file() { beside } else { PathBuf::from("cargo") };
        let linker = if has_linker(rustc) { None } else { Some(find_linker(&folders)?) };
        Ok(Self { rustc: rustc.clone(), cargo, linker, build_std })
    }

    /// `cargo build` for WebAssembly with this compiler.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.cargo);
        for setting in FOREIGN_SETTINGS {
            command.env_remove(setting);
        }
        if env::var_os("CARGO").is_some() {
            // Started by another cargo, which points this at its own compiler's libraries.
            command.env_remove("LD_LIBRARY_PATH");
        }
        command.env("RUSTC", &self.rustc);
        if let Some(linker) = &self.linker {
            command.env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker);
        }
        command.args(["build", "--release", "--lib", "--target", TARGET]);
        if self.build_std {
            // The one unstable option this needs, allowed to a stable compiler.
            command.env("RUSTC_BOOTSTRAP", "1");
            command.args(["-Zbuild-std=std,panic_abort", "-Zbuild-std-features="]);
        }
        command
    }

    pub(super) fn cargo(&self) -> &Path {
        &self.cargo
    }

    /// For the line that says what is being done.
    pub(super) fn describe(&self) -> String {
        let how = if self.build_std { ", building the standard library along" } else { "" };
        format!("{}{how}", self.rustc.display())
    }
}

fn ask(rustc: &Path, arguments: &[&str]) -> Option<PathBuf> {
    let mut command = Command::new(rustc);
    let output = command.args(arguments).env_remove("RUSTFLAGS").stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !text.trim().is_empty()).then(|| PathBuf::from(text.trim()))
}

/// Whether the target's standard library is installed.
fn has_target(rustc: &Path) -> bool {
    let Some(folder) = ask(rustc, &["--print", "target-libdir", "--target", TARGET]) else { return false };
    let Ok(files) = std::fs::read_dir(folder) else { return false };
    files.flatten().any(|file| file.file_name().to_string_lossy().starts_with("libstd-"))
}

/// Whether the standard library's source is beside it.
fn has_source(rustc: &Path) -> bool {
    ask(rustc, &["--print", "sysroot"]).is_some_and(|root| root.join("lib/rustlib/src/rust/library/std/Cargo.toml").is_file())
}

/// Whether the compiler brings `rust-lld`.
fn has_linker(rustc: &Path) -> bool {
    let Some(libraries) = ask(rustc, &["--print", "target-libdir"]) else { return false };
    libraries.with_file_name("bin").join("rust-lld").is_file()
}

/// `wasm-ld`, or `wasm-ld-22` as Debian calls it: the highest version of the PATH.
fn find_linker(folders: &[PathBuf]) -> Result<PathBuf, PluginCliError> {
    let mut found: Vec<(u32, PathBuf)> = Vec::new();
    for folder in folders {
        for file in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if let Some(version) = linker_version(&file.file_name()) {
                found.push((version, file.path()));
            }
        }
    }
    let best = found.into_iter().max_by_key(|(version, _)| *version);
    best.map(|(_, path)| path).ok_or_else(|| {
        PluginCliError::NoToolchain(
            "the Rust compiler has no linker for WebAssembly; install LLVM's (Debian: apt-get install lld)".to_owned(),
        )
    })
}

fn linker_version(name: &OsString) -> Option<u32> {
    match name.to_str()?.strip_prefix("wasm-ld")? {
        "" => Some(u32::MAX),
        version => version.strip_prefix('-')?.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linkers_are_known_by_name_and_version() {
        for (name, version) in [("wasm-ld", Some(u32::MAX)), ("wasm-ld-22", Some(22)), ("wasm-ld-x", None), ("ld.lld", None)] {
            assert_eq!(linker_version(&OsString::from(name)), version, "{name}");
        }
    }

    #[test]
    fn a_compiler_without_target_or_source_is_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let rustc = folder.path().join("rustc");
        std::fs::write(&rustc, "").unwrap();
        assert!(!has_target(&rustc) && !has_source(&rustc) && !has_linker(&rustc));
        assert!(find_linker(&[folder.path().to_owned()]).is_err());
        std::fs::write(folder.path().join("wasm-ld-19"), "").unwrap();
        std::fs::write(folder.path().join("wasm-ld-22"), "").unwrap();
        assert_eq!(find_linker(&[folder.path().to_owned()]).unwrap(), folder.path().join("wasm-ld-22"));
    }
}
