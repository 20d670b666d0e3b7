//! Sections of the configuration that are lists: `[[acl]]`, `[[volume]]`. A list in the operator's file replaces the default one.

use std::path::Path;

use toml::Value;

use super::layers::{self, ConfigError, Origin, unknown};

/// Their names.
pub(super) const SECTIONS: [&str; 2] = ["acl", "volume"];

/// Disks of one machine; numbers of volumes are bytes, and each number is given out once.
const VOLUMES_MAX: usize = 32;

/// Checks every item of a list.
pub(super) fn check(section: &str, items: &[(Value, Origin)]) -> Result<(), ConfigError> {
    for (number, (item, origin)) in items.iter().enumerate() {
        if section == "acl" {
            check_rule(item, origin)?;
        } else {
            check_volume(item, origin)?;
            let twice = items[..number].iter().any(|(other, _)| other == item);
            if twice || number == VOLUMES_MAX {
                let wanted = if twice { "given once".to_owned() } else { format!("given at most {VOLUMES_MAX} times") };
                return Err(ConfigError::Value {
                    origin: origin.clone(),
                    key: section.to_owned(),
                    wanted,
                    found: item.to_string(),
                });
            }
        }
    }
    Ok(())
}

/// Paths in the file are relative to the file.
pub(super) fn beside(directory: &Path, section: &str, mut item: Value) -> Value {
    if let (true, Some(dir)) = (section == "volume", item.get_mut("dir")) {
        let path = std::mem::replace(dir, Value::Boolean(false));
        *dir = layers::beside(directory, path);
    }
    item
}

fn check_volume(volume: &Value, origin: &Origin) -> Result<(), ConfigError> {
    let wrong = |found: String| ConfigError::Value {
        origin: origin.clone(),
        key: "volume.dir".to_owned(),
        wanted: "a directory on a disk of its own".to_owned(),
        found,
    };
    let Some(volume) = volume.as_table() else { return Err(wrong(volume.to_string())) };
    if let Some(key) = volume.keys().find(|key| *key != "dir") {
        return Err(unknown(origin, "key", &format!("volume.{key}"), std::iter::once("dir")));
    }
    match volume.get("dir") {
        Some(Value::String(dir)) if !dir.is_empty() => Ok(()),
        Some(other) => Err(wrong(other.to_string())),
        None => Err(wrong("left out".to_owned())),
    }
}

fn check_rule(rule: &Value, origin: &Origin) -> Result<(), ConfigError> {
    let wrong = |key: &str, wanted: &str, found: String| ConfigError::Value {
        origin: origin.clone(),
        key: format!("acl.{key}"),
        wanted: wanted.to_owned(),
        found,
    };
    let Some(rule) = rule.as_table() else {
        return Err(wrong("rule", "a table with principal, topic and allow", rule.to_string()));
    };
    for (key, value) in rule {
        match (key.as_str(), value) {
            ("principal" | "topic", Value::String(pattern)) => {
                if pattern.is_empty() || pattern.trim_end_matches('*').contains('*') || pattern.ends_with("**") {
                    let wanted = "a name, or a prefix with one * at its end";
                    return Err(wrong(key, wanted, format!("{pattern:?}")));
                }
            }
            ("allow", Value::Array(rights)) => {
                for right in rights {
                    if !matches!(right.as_str(), Some("produce" | "consume" | "admin")) {
                        let wanted = "a list of \"produce\", \"consume\" and \"admin\"";
                        return Err(wrong(key, wanted, right.to_string()));
                    }
                }
            }
            ("principal" | "topic", other) => return Err(wrong(key, "a string", other.to_string())),
            ("allow", other) => return Err(wrong(key, "a list", other.to_string())),
            _ => return Err(unknown(origin, "key", &format!("acl.{key}"), ["principal", "topic", "allow"].into_iter())),
        }
    }
    for key in ["principal", "allow"] {
        if !rule.contains_key(key) {
            return Err(wrong(key, "given in every rule", "left out".to_owned()));
        }
    }
    Ok(())
}
