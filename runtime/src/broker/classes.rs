//! Retention classes: which topics are kept by the same rules, and what the log is told about them.
//!
//! The log keeps records of one class together, in files of their own, and retention takes whole files. So topics with equal
//! settings share a class, and a topic whose bytes or keys count has one to itself. Class 0 is the node's defaults. The other
//! numbers are durable (`k`, `runtime/FORMAT.md`) together with the settings they stand for, because a file may outlive the
//! topic that it was written for, or the topic's stay in that class.
//!
//! **The rules of a shared class never change**: a topic whose settings change moves to another class, and what it has in the
//! old one goes by the old rules. A class of one topic follows its topic's settings, also when that could share again. When
//! its topic is deleted, nothing in it is worth keeping.
//!
//! A class that no topic uses is forgotten when the log has no file of it any more: at start, and when there are many.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use weir_storage::{Append, ClassId, ClassPolicy, LogHandle, MetaOp, Outcome};

use super::Refusal;
use super::meta::{self, MetaError, Reader, Writer};
use super::settings::{self, SETTINGS_MAX, Settings};
use super::topics::Topic;
use super::writer::lock;

/// What topics have that say nothing about keeping.
pub(crate) const DEFAULT: ClassId = ClassId(0);
/// First number of a class.
pub(super) const FIRST_NUMBER: u64 = 1;
/// Classes that nobody uses, from which on they are looked through.
const UNUSED_MAX: usize = 256;

const SHARED: u32 = 0;
const OWN: u32 = 1;
const LEAVING: u32 = 2;

/// Whose records a class holds.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Class {
    /// Of topics with these settings, or that had them.
    Shared(Settings),
    /// Of the topic with this number.
    Own(u32, Settings),
    /// Of a topic that was deleted.
    Leaving,
}

/// All classes. Changed under the broker's admin lock only.
#[derive(Debug)]
pub(crate) struct Classes {
    by_number: Mutex<BTreeMap<ClassId, Class>>,
    defaults: ClassPolicy,
    /// Without a cold tier retention knows no classes.
    enabled: bool,
}

/// A change that takes effect when its metadata is durable.
#[derive(Debug)]
pub(crate) struct Change {
    /// The class that the topic has then.
    pub(crate) class: ClassId,
    /// To be durable with the topic.
    pub(crate) meta: Vec<MetaOp>,
    entry: Option<Class>,
}

impl Classes {
    /// Reads all classes, forgets those that ended, and tells the log the rules of the others. Blocks.
    pub(crate) fn load(
        log: &LogHandle,
        defaults: ClassPolicy,
        enabled: bool,
        topics: &[Arc<Topic>],
    ) -> Result<Classes, MetaError> {
        let mut by_number = BTreeMap::new();
        for (key, value) in log.meta_scan(meta::CLASSES) {
            let (number, class) = decode(&key, &value)?;
            by_number.insert(number, class);
        }
        let classes = Classes { by_number: Mutex::new(by_number), defaults, enabled };
        let ended = classes.ended(log, topics);
        if !ended.is_empty() {
            let append = Append { meta: ended.iter().map(|number| delete_op(*number)).collect(), ..Append::default() };
            // They are only tidied away: another start may do it.
            if let Outcome::Committed { .. } = log.append_blocking(append) {
                lock(&classes.by_number).retain(|number, _| !ended.contains(number));
            }
        }
        classes.tell_all(log);
        Ok(classes)
    }

    /// Class 0, the known classes, and files of classes that are not known any more, which go by the defaults.
    fn tell_all(&self, log: &LogHandle) {
        let by_number = lock(&self.by_number);
        let unknown = log.cold_classes().into_iter().filter(|number| !by_number.contains_key(number));
        for number in unknown.chain([DEFAULT]) {
            log.set_class_policy(number, self.defaults.clone());
        }
        for (number, class) in by_number.iter() {
            log.set_class_policy(*number, self.policy(class));
        }
    }

    fn policy(&self, class: &Class) -> ClassPolicy {
        match class {
            Class::Leaving => ClassPolicy { retention_bytes: Some(0), ..ClassPolicy::default() },
            Class::Shared(settings) | Class::Own(_, settings) => {
                settings::policy(settings, &self.defaults).unwrap_or_else(|error| {
                    tracing::error!(%error, "stored settings of a class are not understood: the node's defaults count");
                    self.defaults.clone()
                })
            }
        }
    }

    /// The class of a topic with this number and these settings, as far as there is one.
    fn find(&self, topic: u32, wanted: &Settings) -> Option<ClassId> {
        let by_number = lock(&self.by_number);
        let own = by_number.iter().find(|(_, class)| matches!(class, Class::Own(of, _) if *of == topic));
        let shared = || by_number.iter().find(|(_, class)| matches!(class, Class::Shared(settings) if settings == wanted));
        match own {
            Some((number, _)) => Some(*number),
            None if settings::wants_own_class(wanted) => None,
            None if wanted.is_empty() => Some(DEFAULT),
            None => shared().map(|(number, _)| *number),
        }
    }

    /// The class a topic gets with these settings. The caller makes the change's metadata durable, then calls `took_effect`.
    pub(crate) fn choose(&self, log: &LogHandle, topic: u32, settings: &[(String, String)]) -> Result<Change, Refusal> {
        let wanted = settings::about_keeping(settings);
        if !wanted.is_empty() && !self.enabled {
            let problem = format!("{} needs the cold tier, which this node has turned off (cold.enabled)", wanted[0].0);
            return Err(Refusal::InvalidArgument { field: "settings", problem });
        }
        let found = self.find(topic, &wanted);
        let own = found.is_some_and(|number| matches!(lock(&self.by_number).get(&number), Some(Class::Own(..))));
        if let Some(class) = found.filter(|_| !own) {
            return Ok(Change { class, meta: Vec::new(), entry: None });
        }
        let mut meta = Vec::new();
        let class = match found {
            Some(class) => class,
            None => {
                let next = meta::read_counter(log.meta(meta::NEXT_CLASS), FIRST_NUMBER)
                    .map_err(|error| Refusal::Internal { reason: error.to_string() })?;
                let number = u32::try_from(next)
                    .map_err(|_| Refusal::Quota { what: "all 32-bit class numbers of this node were used".into() })?;
                meta.push(MetaOp::Put { key: meta::NEXT_CLASS.to_vec(), value: meta::counter(next + 1) });
                ClassId(number)
            }
        };
        let own = own || settings::wants_own_class(&wanted);
        let entry = if own { Class::Own(topic, wanted) } else { Class::Shared(wanted) };
        meta.push(MetaOp::Put { key: key(class), value: encode(&entry) });
        Ok(Change { class, meta, entry: Some(entry) })
    }

    /// The class a topic has now.
    pub(crate) fn of(&self, topic: u32, settings: &[(String, String)]) -> ClassId {
        self.find(topic, &settings::about_keeping(settings)).unwrap_or(DEFAULT)
    }

    /// What deleting a topic means for its class.
    pub(crate) fn leave(&self, topic: u32) -> Option<Change> {
        let by_number = lock(&self.by_number);
        let (class, _) = by_number.iter().find(|(_, class)| matches!(class, Class::Own(of, _) if *of == topic))?;
        let meta = vec![MetaOp::Put { key: key(*class), value: encode(&Class::Leaving) }];
        Some(Change { class: *class, meta, entry: Some(Class::Leaving) })
    }

    /// A change is durable: the log keeps to it.
    pub(crate) fn took_effect(&self, log: &LogHandle, change: Change) {
        if let Some(entry) = change.entry {
            log.set_class_policy(change.class, self.policy(&entry));
            lock(&self.by_number).insert(change.class, entry);
        }
    }

    /// Metadata to delete where many classes have ended; `forget` after that.
    pub(crate) fn tidy(&self, log: &LogHandle, topics: &[Arc<Topic>]) -> Vec<ClassId> {
        let classes = lock(&self.by_number).len();
        if classes < topics.len() + UNUSED_MAX { Vec::new() } else { self.ended(log, topics) }
    }

    /// These are deleted.
    pub(crate) fn forget(&self, ended: &[ClassId]) {
        lock(&self.by_number).retain(|number, _| !ended.contains(number));
    }

    /// Classes that neither a topic nor a file needs.
    fn ended(&self, log: &LogHandle, topics: &[Arc<Topic>]) -> Vec<ClassId> {
        let of_files: BTreeSet<ClassId> = log.cold_classes().into_iter().collect();
        let ids: BTreeSet<u32> = topics.iter().map(|topic| topic.id).collect();
        let settings: BTreeSet<Settings> = topics.iter().map(|topic| settings::about_keeping(&topic.settings())).collect();
        let used = |class: &Class| match class {
            Class::Own(topic, _) => ids.contains(topic),
            Class::Shared(shared) => settings.contains(shared),
            Class::Leaving => false,
        };
        let by_number = lock(&self.by_number);
        by_number.iter().filter(|(number, class)| !used(class) && !of_files.contains(number)).map(|(number, _)| *number).collect()
    }
}

/// Forgets a class.
pub(crate) fn delete_op(class: ClassId) -> MetaOp {
    MetaOp::Delete { key: key(class) }
}

fn key(class: ClassId) -> Vec<u8> {
    Writer::key(meta::CLASSES).rest(&class.0.to_be_bytes()).done()
}

fn encode(class: &Class) -> Vec<u8> {
    let (kind, topic, settings): (u32, u32, &[(String, String)]) = match class {
        Class::Shared(settings) => (SHARED, 0, settings),
        Class::Own(topic, settings) => (OWN, *topic, settings),
        Class::Leaving => (LEAVING, 0, &[]),
    };
    let writer = Writer::value().u32(kind).u32(topic).u32(settings.len() as u32);
    settings.iter().fold(writer, |writer, (key, value)| writer.text(key).text(value)).done()
}

fn decode(key: &[u8], value: &[u8]) -> Result<(ClassId, Class), MetaError> {
    let number = Reader::key(meta::CLASSES, key)?.rest().try_into().map_err(|_| MetaError::Short)?;
    let mut reader = Reader::value(value)?;
    let (kind, topic) = (reader.u32()?, reader.u32()?);
    let mut settings = Settings::new();
    for _ in 0..(reader.u32()? as usize).min(SETTINGS_MAX) {
        settings.push((reader.text()?.to_owned(), reader.text()?.to_owned()));
    }
    reader.end()?;
    let class = match kind {
        SHARED => Class::Shared(settings),
        OWN => Class::Own(topic, settings),
        LEAVING => Class::Leaving,
        _ => return Err(MetaError::Short),
    };
    Ok((ClassId(u32::from_be_bytes(number)), class))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_comes_back() {
        let settings = vec![("retention.ms".to_owned(), "7d".to_owned())];
        for class in [Class::Shared(settings.clone()), Class::Own(9, settings), Class::Leaving] {
            assert_eq!(decode(&key(ClassId(7)), &encode(&class)).unwrap(), (ClassId(7), class));
        }
        assert!(decode(b"k123", &encode(&Class::Leaving)).is_err());
    }
}
