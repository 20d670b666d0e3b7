//! Topic settings: names (Kafka's, where Kafka has one), what values they take, and what they mean for the log.
//!
//! A setting is stored as it was written. What it means is worked out here: once when it is given, so that a bad value is
//! refused by name, and again when the node starts, over the node's defaults of then.

use weir_storage::ClassPolicy;

use super::Refusal;
use crate::config::{parse_bytes, parse_duration_ms};

/// Settings a topic may carry, and their sizes.
pub(crate) const SETTINGS_MAX: usize = 32;
const SETTING_BYTES_MAX: usize = 1_024;

/// Settings by key, as written.
pub(crate) type Settings = Vec<(String, String)>;

const RETENTION_MS: &str = "retention.ms";
const RETENTION_BYTES: &str = "retention.bytes";
const CLEANUP_POLICY: &str = "cleanup.policy";
const DELETE_RETENTION_MS: &str = "delete.retention.ms";
const WHEN_FULL: &str = "when.full";
const COPIES: &str = "copies";

const TIME: &str = "a time in ms, or with a unit such as 7d, or -1 for no limit";
const SIZE: &str = "a number of bytes, or a size such as 10GiB, of the whole topic, or -1 for no limit";
const TOMBSTONE: &str = "a time in ms, or with a unit such as 1d";
const POLICIES: &str = "delete, compact, or compact,delete";
const FULL: &str = "reject or drop_oldest";
const ONE_OR_TWO: &str = "1 or 2";

/// Whether a setting says how records are kept.
fn is_about_keeping(key: &str) -> bool {
    matches!(key, RETENTION_MS | RETENTION_BYTES | CLEANUP_POLICY | DELETE_RETENTION_MS | WHEN_FULL | COPIES)
}

/// The settings that say how records are kept, in one order, so that equal ones can be told.
pub(crate) fn about_keeping(settings: &[(String, String)]) -> Settings {
    let mut kept: Settings = settings.iter().filter(|(key, _)| is_about_keeping(key)).cloned().collect();
    kept.sort();
    kept
}

/// Whether a topic with these settings cannot share its class: its bytes are counted, or its keys are.
pub(crate) fn wants_own_class(settings: &[(String, String)]) -> bool {
    settings.iter().any(|(key, value)| match key.as_str() {
        RETENTION_BYTES => value != "-1",
        CLEANUP_POLICY => value != "delete",
        _ => false,
    })
}

/// Whether records must have a key.
pub(crate) fn is_compacted(settings: &[(String, String)]) -> bool {
    settings.iter().any(|(key, value)| key == CLEANUP_POLICY && value.contains("compact"))
}

/// What settings mean over the node's defaults.
pub(crate) fn policy(settings: &[(String, String)], defaults: &ClassPolicy) -> Result<ClassPolicy, Refusal> {
    let mut policy = defaults.clone();
    for (key, value) in settings {
        let wrong = |allowed: &str| {
            let problem = format!("{key}: {value:?} is not allowed; write {allowed}");
            Refusal::InvalidArgument { field: "settings", problem }
        };
        match key.as_str() {
            RETENTION_MS => policy.retention_ms = limit(value, parse_duration_ms).ok_or_else(|| wrong(TIME))?,
            RETENTION_BYTES => policy.retention_bytes = limit(value, parse_bytes).ok_or_else(|| wrong(SIZE))?,
            DELETE_RETENTION_MS => {
                policy.delete_retention_ms = parse_duration_ms(value).ok_or_else(|| wrong(TOMBSTONE))?;
            }
            CLEANUP_POLICY => {
                (policy.compact, policy.delete) = match value.as_str() {
                    "delete" => (false, true),
                    "compact" => (true, false),
                    "compact,delete" | "delete,compact" => (true, true),
                    _ => return Err(wrong(POLICIES)),
                };
            }
            WHEN_FULL => {
                policy.drop_oldest = match value.as_str() {
                    "reject" => false,
                    "drop_oldest" => true,
                    _ => return Err(wrong(FULL)),
                };
            }
            COPIES => {
                policy.copies = match value.as_str() {
                    "1" => Some(1),
                    "2" => Some(2),
                    _ => return Err(wrong(ONE_OR_TWO)),
                };
            }
            _ => {}
        }
    }
    Ok(policy)
}

/// -1 is no limit; 0 would keep nothing, which nobody means.
fn limit(value: &str, parse: impl Fn(&str) -> Option<u64>) -> Option<Option<u64>> {
    if value == "-1" {
        return Some(None);
    }
    parse(value).filter(|limit| *limit > 0).map(Some)
}

/// Refuses settings that mean nothing, and values that do not fit theirs.
pub(crate) fn check(settings: &[(String, String)]) -> Result<(), Refusal> {
    let wrong = |problem: String| Err(Refusal::InvalidArgument { field: "settings", problem });
    if settings.len() > SETTINGS_MAX {
        return wrong(format!("{} of them, at most {SETTINGS_MAX}", settings.len()));
    }
    for (number, (key, value)) in settings.iter().enumerate() {
        if !is_about_keeping(key) && key != "description" && !key.starts_with("x-") {
            return wrong(format!(
                "{key:?} is no topic setting; known are {RETENTION_MS}, {RETENTION_BYTES}, {CLEANUP_POLICY}, {DELETE_RETENTION_MS}, \
                 {WHEN_FULL}, {COPIES}, description, and labels beginning with x-"
            ));
        }
        if key.len() > SETTING_BYTES_MAX || value.len() > SETTING_BYTES_MAX {
            return wrong(format!("{key:?} or its value is longer than {SETTING_BYTES_MAX} bytes"));
        }
        if settings[..number].iter().any(|(earlier, _)| earlier == key) {
            return wrong(format!("{key} is given twice"));
        }
    }
    policy(settings, &ClassPolicy::default()).map(|_| ())
}

/// What a topic has after a change: new values in the place of old ones; an empty value takes a setting away.
pub(crate) fn changed(old: &[(String, String)], change: Settings) -> Settings {
    let mut settings: Settings = old.iter().filter(|(key, _)| change.iter().all(|(new, _)| new != key)).cloned().collect();
    settings.extend(change.into_iter().filter(|(_, value)| !value.is_empty()));
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> Settings {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn settings_mean_what_they_say_over_the_nodes_defaults() {
        let node = ClassPolicy { retention_ms: Some(5), retention_bytes: Some(7), ..ClassPolicy::default() };
        let of = |pairs| policy(&settings(pairs), &node).unwrap();
        assert_eq!(of(&[("x-site", "north")]), node);
        let kept = of(&[("retention.ms", "7d"), ("retention.bytes", "-1"), ("when.full", "drop_oldest")]);
        assert_eq!((kept.retention_ms, kept.retention_bytes, kept.drop_oldest), (Some(7 * 86_400_000), None, true));
        let compacted = of(&[("cleanup.policy", "compact"), ("delete.retention.ms", "0")]);
        assert_eq!((compacted.compact, compacted.delete, compacted.delete_retention_ms), (true, false, 0));
        let both = of(&[("cleanup.policy", "delete,compact"), ("retention.bytes", "1GiB")]);
        assert_eq!((both.compact, both.delete, both.retention_bytes), (true, true, Some(1 << 30)));
        assert_eq!((node.copies, of(&[("copies", "1")]).copies), (None, Some(1)));
    }

    #[test]
    fn a_bad_setting_is_named_with_its_value_and_what_is_allowed() {
        for (key, value, wanted) in [
            ("retention.ms", "soon", "retention.ms: \"soon\" is not allowed; write a time"),
            ("retention.ms", "0", "-1 for no limit"),
            ("retention.bytes", "-2", "of the whole topic"),
            ("cleanup.policy", "shrink", "delete, compact, or compact,delete"),
            ("delete.retention.ms", "-1", "such as 1d"),
            ("when.full", "panic", "reject or drop_oldest"),
            ("retention", "1d", "known are retention.ms"),
        ] {
            let error = check(&settings(&[(key, value)])).unwrap_err().to_string();
            assert!(error.contains(wanted), "{key}={value} gave: {error}");
        }
        assert!(check(&settings(&[("x-a", "1"), ("x-a", "2")])).is_err());
        assert!(check(&settings(&[("x-site", "north"), ("description", "tyres")])).is_ok());
    }

    #[test]
    fn a_change_replaces_adds_and_takes_away() {
        let old = settings(&[("retention.ms", "1d"), ("x-a", "1")]);
        let new = changed(&old, settings(&[("retention.ms", ""), ("when.full", "reject"), ("x-a", "2")]));
        assert_eq!(new, settings(&[("when.full", "reject"), ("x-a", "2")]));
    }

    #[test]
    fn only_counted_bytes_and_keys_want_a_class_of_their_own() {
        assert!(!wants_own_class(&settings(&[("retention.ms", "1d"), ("retention.bytes", "-1"), ("cleanup.policy", "delete")])));
        assert!(wants_own_class(&settings(&[("retention.bytes", "1GiB")])));
        assert!(wants_own_class(&settings(&[("cleanup.policy", "compact")])));
    }
}
