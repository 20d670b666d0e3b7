//! `weir plugin new`: a crate from the templates, that compiles, tests and packs as it is.

use std::io::Write;
use std::path::{Path, PathBuf};

use super::{NewArgs, PluginCliError};

const NAME_BYTES_MAX: usize = 64;
const FILES: [(&str, &str); 7] = [
    ("Cargo.toml", include_str!("../templates/plugin/Cargo.toml.template")),
    ("weir-plugin.toml", include_str!("../templates/plugin/weir-plugin.toml.template")),
    ("src/lib.rs", include_str!("../templates/plugin/src/lib.rs.template")),
    ("records.jsonl", include_str!("../templates/plugin/records.jsonl.template")),
    ("README.md", include_str!("../templates/plugin/README.md.template")),
    (".gitignore", "target/\ndist/\n"),
    ("rustfmt.toml", "max_width = 120\nuse_small_heuristics = \"Max\"\n"),
];

pub(super) fn run(args: &NewArgs) -> Result<(), PluginCliError> {
    let dir = args.path.clone().unwrap_or_else(|| PathBuf::from(&args.name));
    let dependency = match &args.sdk {
        Some(sdk) => dependency_of(sdk),
        None => found_dependency(&dir)?,
    };
    write(&args.name, &dir, &dependency)?;
    let dir = dir.display();
    writeln!(
        std::io::stdout().lock(),
        "{dir} is a plugin. Next:\n  cargo test --manifest-path {dir}/Cargo.toml\n  weir plugin build {dir}\n  weir plugin test {dir}/dist/{}.wasm --input {dir}/records.jsonl",
        args.name
    )?;
    Ok(())
}

/// Writes the crate.
fn write(name: &str, dir: &Path, dependency: &str) -> Result<(), PluginCliError> {
    check_name(name)?;
    if dir.exists() {
        return Err(PluginCliError::Exists(dir.to_owned()));
    }
    let function = name.replace('-', "_");
    for (file, template) in FILES {
        let text = template
            .replace("{{name}}", name)
            .replace("{{function}}", &function)
            .replace("{{type}}", &type_name(name))
            .replace("{{dependency}}", dependency);
        let path = dir.join(file);
        let folder = path.parent().unwrap_or(dir);
        std::fs::create_dir_all(folder).map_err(|error| PluginCliError::write(folder, error))?;
        std::fs::write(&path, text).map_err(|error| PluginCliError::write(&path, error))?;
    }
    Ok(())
}

fn check_name(name: &str) -> Result<(), PluginCliError> {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let begins = name.as_bytes().first().is_some_and(u8::is_ascii_lowercase);
    let keyword = ["fn", "mod", "impl", "type", "use", "test", "match", "loop", "move", "crate", "self", "super"].contains(&name);
    if begins && !keyword && name.len() <= NAME_BYTES_MAX && !name.ends_with('-') && name.bytes().all(fits) {
        return Ok(());
    }
    Err(PluginCliError::Name(name.to_owned()))
}

/// As the SDK's attribute names the type of a function.
fn type_name(name: &str) -> String {
    let words = name.split('-').filter(|word| !word.is_empty());
    words.map(|word| word[..1].to_uppercase() + &word[1..]).collect()
}

fn dependency_of(sdk: &str) -> String {
    if sdk.contains("://") || sdk.starts_with("git@") {
        return format!("{{ git = \"{sdk}\" }}");
    }
    let absolute = std::path::absolute(sdk).unwrap_or_else(|_| PathBuf::from(sdk));
    path_dependency(&absolute)
}

fn path_dependency(sdk: &Path) -> String {
    // TOML takes a literal text between single quotes: no path needs escapes there.
    format!("{{ path = '{}' }}", sdk.display())
}

/// The SDK of the clone around the new crate, the working directory, or this program.
fn found_dependency(dir: &Path) -> Result<String, PluginCliError> {
    let program = std::env::current_exe().ok();
    let starts = [std::path::absolute(dir).ok(), std::env::current_dir().ok(), program];
    for start in starts.iter().flatten() {
        if let Some(sdk) = start.ancestors().map(|above| above.join("sdk/plugin")).find(|sdk| is_sdk(sdk)) {
            return Ok(path_dependency(&sdk));
        }
    }
    Err(PluginCliError::NoSdk)
}

fn is_sdk(folder: &Path) -> bool {
    std::fs::read_to_string(folder.join("Cargo.toml")).is_ok_and(|text| text.contains("name = \"weir-plugin\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_plugin_has_all_its_names_filled_in() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("cold-chain");
        write("cold-chain", &dir, "{ path = '/sdk' }").unwrap();
        for (file, _) in FILES {
            let text = std::fs::read_to_string(dir.join(file)).unwrap();
            assert!(!text.contains("{{"), "{file}: {text}");
        }
        let manifest = std::fs::read_to_string(dir.join("weir-plugin.toml")).unwrap();
        let manifest = weir_pipeline::Manifest::parse(&manifest).unwrap();
        assert_eq!((&*manifest.name, &manifest.outputs[..]), ("cold-chain", &["alerts".to_owned()][..]));
        let source = std::fs::read_to_string(dir.join("src/lib.rs")).unwrap();
        assert!(source.contains("fn cold_chain(") && source.contains("ColdChain"), "{source}");
        assert!(matches!(write("cold-chain", &dir, ""), Err(PluginCliError::Exists(_))));
    }

    #[test]
    fn names_that_are_none_are_refused() {
        for name in ["", "A", "1a", "a_b", "a b", "a-", "../x", "fn", &"a".repeat(65)] {
            assert!(check_name(name).is_err(), "{name}");
        }
        assert!(check_name("a1-b").is_ok());
    }

    #[test]
    fn the_sdk_is_found_around_the_new_crate_or_named() {
        let folder = tempfile::tempdir().unwrap();
        let sdk = folder.path().join("sdk/plugin");
        std::fs::create_dir_all(&sdk).unwrap();
        std::fs::write(sdk.join("Cargo.toml"), "[package]\nname = \"weir-plugin\"\n").unwrap();
        let found = found_dependency(&folder.path().join("deep/down")).unwrap();
        assert_eq!(found, path_dependency(&sdk));
        assert_eq!(dependency_of("https://example.org/weir.git"), "{ git = \"https://example.org/weir.git\" }");
        assert!(dependency_of("/x/sdk/plugin").contains("path = '/x/sdk/plugin'"));
    }
}
