//! The operator's file and `--set`: any text earns a configuration or an error with a place in it.

#![no_main]
#![allow(dead_code, unused_imports)] // the target uses a part of the modules only

#[path = "../../../runtime/src/config/mod.rs"]
mod config;

use std::path::PathBuf;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let overrides = text.lines().take(4).map(str::to_owned).collect();
    let sources = config::Sources { file: None, environment: Vec::new(), overrides, memory_allowed: None };
    if let Err(error) = config::Config::load(&sources) {
        assert!(!error.to_string().is_empty());
    }
    let path = PathBuf::from(format!("{}/weir-fuzz-{}.toml", std::env::temp_dir().display(), std::process::id()));
    if std::fs::write(&path, data).is_ok() {
        let sources = config::Sources { file: Some(path.clone()), environment: Vec::new(), overrides: Vec::new(), memory_allowed: None };
        if let Ok(config) = config::Config::load(&sources) {
            assert!(!config.to_toml().is_empty());
        }
        let _ = std::fs::remove_file(path);
    }
});
