//! "Did you mean": unknown keys of manifests and pipeline documents are errors that name the nearest known one.
use serde_json::Value;

/// Most edits between a typo and what was meant.
const EDITS_MAX: usize = 3;

/// ` (did you mean "x"?)`, or the list of what is known.
pub(crate) fn did_you_mean<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.into_iter().collect();
    let near = known.iter().map(|k| (strsim::damerau_levenshtein(given, k), *k)).min();
    match near {
        Some((edits, name)) if edits <= EDITS_MAX && edits * 2 <= given.len().max(2) => format!("did you mean `{name}`?"),
        _ if known.is_empty() => "there are none".to_owned(),
        _ => format!("known are: {}", known.join(", ")),
    }
}

/// The first key of `value` (an object) that is not known: the message names its place.
pub(crate) fn unknown_key(value: &Value, place: &str, known: &[&str]) -> Option<String> {
    let object = value.as_object()?;
    let key = object.keys().find(|key| !known.contains(&key.as_str()))?;
    let place = if place.is_empty() { String::new() } else { format!("{place}.") };
    Some(format!("unknown key `{place}{key}`: {}", did_you_mean(key, known.iter().copied())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_offered_and_far_ones_listed() {
        let known = ["memory_mib", "batch_ms"];
        assert_eq!(did_you_mean("memory_mb", known), "did you mean `memory_mib`?");
        assert_eq!(did_you_mean("colour", known), "known are: memory_mib, batch_ms");
        assert_eq!(did_you_mean("x", []), "there are none");
        let value = serde_json::json!({"batch_m": 1});
        let message = unknown_key(&value, "limits", &known).unwrap();
        assert_eq!(message, "unknown key `limits.batch_m`: did you mean `batch_ms`?");
    }
}
