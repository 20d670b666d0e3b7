//! Which cold segments go, and which become one.
//!
//! All records of a cold segment belong to one class, so retention works on whole files: the oldest of a class goes when its
//! newest record is too old, when the class has too many bytes without it being missed, or, where the class says so, when the
//! disk is full. Nothing of that needs space but a frame in the log.
//!
//! Merging: of segments that follow one another as many as `merge_fan_in` become one, if none of them is larger than the others
//! together. So a record is written once more each time its segment's size has at least doubled, and not at all any more once
//! it has `merged_bytes`. Segments that were promoted in haste are sorted by a merge as well, alone if need be, as soon as producers leave time.
//!
//! A compacted class becomes one segment. Where one of its segments is damaged, and no disk has a good copy, that one stays as it is,
//! and what lies before and behind it is compacted each for itself: a tombstone behind it stays as long as it is there.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Engine;
use super::cold::{Cold, Why};
use crate::cold::BLOCK_RAW_BYTES;
use crate::cold::job::Compact;
use crate::cold::merge::FAN_IN_MAX;
use crate::config::ClassPolicy;
use crate::types::ClassId;
use crate::view::ColdPlace;

/// A class with less than this that is not compacted yet waits for more: each compaction writes the whole class.
const DIRTY_BYTES_MIN: u64 = 1 << 20;

/// While producers are in a hurry nothing is merged before there are so many times a merge's inputs.
const LEFT_IN_BURST: usize = 16;

/// What a partition is to have in a merged segment: two blocks.
const PARTITION_RUN_BYTES: u64 = 2 * BLOCK_RAW_BYTES as u64;
/// For that a segment may become so many times as large as others.
const SHARED_FACTOR: u64 = 8;

impl<T> Engine<T> {
    /// The next segment that retention, or a full disk, takes out.
    pub(super) fn segment_to_go(&self) -> Option<(ColdPlace, Why)> {
        let cold = self.cold.as_ref()?;
        let places = Arc::clone(&self.view.tables().cold);
        for (class, segments) in by_class(&places) {
            let Some(policy) = cold.policies.get(&class) else { continue };
            if expired(policy, &segments, self.now.wall_ms) {
                return Some((**segments[0], Why::Retention));
            }
        }
        if self.disk_is_full() && self.spares.len() <= self.spares_of_own() {
            let volumes = self.view.volumes();
            // What lies on a volume that is not there frees no space.
            let gives_way = |place: &&Arc<ColdPlace>| {
                let policy = cold.policies.get(&ClassId(place.entry.class));
                policy.is_some_and(|policy| policy.drop_oldest) && !volumes.readable(place.entry.holders()).is_empty()
            };
            return places.iter().find(gives_way).map(|place| (**place, Why::Space));
        }
        None
    }

    /// Segments that should become one, in order; how they are compacted, if they are.
    pub(super) fn segments_to_merge(&self) -> Option<(Vec<ColdPlace>, Option<Compact>)> {
        let cold = self.cold.as_ref()?;
        let places = Arc::clone(&self.view.tables().cold);
        let fan_in = cold.config().merge_fan_in.clamp(2, FAN_IN_MAX);
        let sorted = places.iter().filter(|place| place.entry.promoted.is_none()).count();
        if self.in_burst() && sorted < fan_in * LEFT_IN_BURST {
            return None;
        }
        for (class, segments) in by_class(&places) {
            let policy = cold.policies.get(&class).cloned().unwrap_or_default();
            let parts = if policy.compact { cold.parts_to_merge(&segments) } else { vec![&segments[..]] };
            let as_one = |part: &[&Arc<ColdPlace>]| policy.compact && part.len() <= FAN_IN_MAX;
            for part in parts.iter().filter(|part| as_one(part)) {
                if let Some(compact) = self.compact_job(&policy, part) {
                    return Some((part.iter().map(|place| ***place).collect(), Some(compact)));
                }
            }
            if let Some(window) = self.hasty_to_sort(cold, &segments, &policy) {
                return Some((window.iter().map(|place| ***place).collect(), None));
            }
            // The first of a compacted class is what it was compacted to: it stays alone until the next time.
            let from = usize::from(policy.compact);
            let merged_bytes = if policy.compact { u64::MAX } else { cold.config().merged_bytes };
            // A promoted one was spared the second write: only compaction is worth it.
            let may = |window: &[&Arc<ColdPlace>]| {
                (policy.compact || window.iter().all(|place| place.entry.promoted.is_none())) && cold.may_merge(window)
            };
            let target = |place: &ColdPlace| target_bytes(place, merged_bytes, policy.retention_bytes);
            for part in parts.iter().filter(|part| !as_one(part)) {
                if let Some(window) = worth_merging(&part[from..], fan_in, target, policy.retention_ms, may) {
                    return Some((window.iter().map(|place| ***place).collect(), None));
                }
            }
        }
        None
    }

    /// Segments of a class that follow one another and were promoted in haste: as many as make a segment that is not merged any more.
    fn hasty_to_sort<'a>(
        &self,
        cold: &Cold,
        segments: &'a [&'a Arc<ColdPlace>],
        policy: &ClassPolicy,
    ) -> Option<&'a [&'a Arc<ColdPlace>]> {
        if self.in_burst() {
            return None;
        }
        let waits = |place: &&Arc<ColdPlace>| place.entry.is_in_haste() && cold.may_merge(&[place]);
        let from = segments.iter().position(waits)?;
        let bytes_max = cold.config().merged_bytes.min(policy.retention_bytes.unwrap_or(u64::MAX) / 8);
        let together = |window: &[&Arc<ColdPlace>]| {
            let bytes: u64 = window.iter().map(|place| place.entry.batch_bytes).sum();
            window.iter().all(waits) && cold.may_merge(window) && bytes <= bytes_max && spans_little(window, policy.retention_ms)
        };
        let most = FAN_IN_MAX.min(segments.len() - from);
        let count = (2..=most).take_while(|count| together(&segments[from..from + count])).last().unwrap_or(1);
        Some(&segments[from..from + count])
    }

    /// As Kafka does: when at least half of what there is has not been compacted yet.
    fn compact_job(&self, policy: &ClassPolicy, segments: &[&Arc<ColdPlace>]) -> Option<Compact> {
        let cold = self.cold.as_ref()?;
        let (first, _) = segments.split_first()?;
        let all: u64 = segments.iter().map(|place| place.entry.batch_bytes).sum();
        let clean = if first.entry.compacted { first.entry.batch_bytes } else { 0 };
        let dirty = all - clean;
        let clean_to = cold.clean_to(first.number);
        let due = dirty >= clean && dirty >= DIRTY_BYTES_MIN.min(cold.config().merged_bytes);
        if !due && clean_to.is_empty() {
            return None;
        }
        Some(Compact {
            delete_retention_ms: policy.delete_retention_ms,
            retention_ms: policy.retention_ms.filter(|_| policy.delete),
            key_map_bytes_max: cold.config().key_map_bytes_max,
            clean_to,
        })
    }
}

/// Segments by class, in order of their frames.
fn by_class(places: &[Arc<ColdPlace>]) -> BTreeMap<ClassId, Vec<&Arc<ColdPlace>>> {
    let mut classes: BTreeMap<ClassId, Vec<&Arc<ColdPlace>>> = BTreeMap::new();
    for place in places {
        classes.entry(ClassId(place.entry.class)).or_default().push(place);
    }
    classes
}

/// Whether the oldest segment of a class may go.
fn expired(policy: &ClassPolicy, segments: &[&Arc<ColdPlace>], now_ms: u64) -> bool {
    let oldest = segments[0];
    if !policy.delete {
        return false;
    }
    let newest_ms = u64::try_from(oldest.entry.max_timestamp).unwrap_or(0);
    let too_old = policy.retention_ms.is_some_and(|age| newest_ms.saturating_add(age) < now_ms);
    let bytes: u64 = segments.iter().map(|place| place.entry.batch_bytes).sum();
    // What is left must still be what was asked for.
    let too_many = policy.retention_bytes.is_some_and(|max| bytes - oldest.entry.batch_bytes >= max);
    too_old || too_many
}

/// The first segments of a class that follow one another and are worth it.
fn worth_merging<'a>(
    segments: &'a [&'a Arc<ColdPlace>],
    fan_in: usize,
    target: impl Fn(&ColdPlace) -> u64,
    retention_ms: Option<u64>,
    may: impl Fn(&[&Arc<ColdPlace>]) -> bool,
) -> Option<&'a [&'a Arc<ColdPlace>]> {
    let bytes = |place: &&Arc<ColdPlace>| place.entry.batch_bytes;
    segments.windows(fan_in).find(|window| {
        let all: u64 = window.iter().map(bytes).sum();
        let most = window.iter().map(bytes).max().unwrap_or(0);
        let short = spans_little(window, retention_ms);
        let small = window.iter().all(|place| place.entry.batch_bytes < target(place));
        small && most * 2 <= all && short && may(window)
    })
}

/// A file goes when its newest record does: one that spans much time would keep old records for longer.
fn spans_little(window: &[&Arc<ColdPlace>], retention_ms: Option<u64>) -> bool {
    let from = window.iter().map(|place| place.entry.min_timestamp).min().unwrap_or(0);
    let to = window.iter().map(|place| place.entry.max_timestamp).max().unwrap_or(0);
    retention_ms.is_none_or(|age| u64::try_from(to.saturating_sub(from)).unwrap_or(u64::MAX) <= (age / 8).max(1))
}

/// Records of a segment, before compression, from which it is not merged any more: nearly `merged_bytes`, for as many inputs as make that are
/// never exactly as large. More where many partitions share it: whoever reads one of them is to find some blocks in a row.
fn target_bytes(place: &ColdPlace, merged_bytes: u64, retention_bytes: Option<u64>) -> u64 {
    let wanted = u64::from(place.entry.partitions) * PARTITION_RUN_BYTES;
    let most = merged_bytes.saturating_mul(SHARED_FACTOR).min(retention_bytes.unwrap_or(u64::MAX) / 8);
    (merged_bytes / 4 * 3).max(wanted.min(most))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cold::manifest::ManifestEntry;

    fn place(number: u32, megabytes: u64, newest_ms: i64) -> Arc<ColdPlace> {
        let entry = ManifestEntry {
            promoted: None,
            compacted: false,
            copies: 1,
            volumes: [0, 0],
            class: 0,
            first_lsn: u64::from(number),
            last_lsn: u64::from(number),
            min_timestamp: newest_ms - 10,
            max_timestamp: newest_ms,
            file_bytes: megabytes << 20,
            batch_bytes: megabytes << 20,
            records: 1,
            partitions: 1,
            blocks: 1,
            created_ms: 0,
        };
        Arc::new(ColdPlace { number, entry })
    }

    fn places(megabytes: &[u64]) -> Vec<Arc<ColdPlace>> {
        megabytes.iter().enumerate().map(|(n, size)| place(n as u32, *size, n as i64 * 100)).collect()
    }

    fn merged(megabytes: &[u64]) -> Option<Vec<u32>> {
        let places = places(megabytes);
        let segments: Vec<_> = places.iter().collect();
        let window = worth_merging(&segments, 4, |_| 256 << 20, None, |_| true)?;
        Some(window.iter().map(|place| place.number).collect())
    }

    #[test]
    fn like_is_merged_with_like() {
        assert_eq!(merged(&[32, 32, 32]), None, "too few");
        assert_eq!(merged(&[128, 32, 32, 32, 32]), Some(vec![1, 2, 3, 4]));
        assert_eq!(merged(&[300, 300, 300, 300, 32]), None, "large enough as they are");
        assert_eq!(merged(&[100, 1, 1, 1, 1]), Some(vec![1, 2, 3, 4]));
        assert_eq!(merged(&[1, 1, 1, 100, 1, 1, 1]), None, "a large one is not written again for the sake of small ones");
    }

    #[test]
    fn segments_that_many_partitions_share_become_larger_unless_retention_counts_bytes() {
        let target = |partitions, retention_bytes| {
            let mut place = *place(1, 32, 0);
            place.entry.partitions = partitions;
            target_bytes(&place, 256 << 20, retention_bytes) >> 20
        };
        assert_eq!(target(8, None), 192, "eight segments that are a little short of 32 MiB are enough");
        assert_eq!(target(10_000, None), 1250);
        assert_eq!(target(100_000, None), 2048, "there is an end to it");
        assert_eq!(target(10_000, Some(8 << 30)), 1024, "retention takes whole segments");
        assert_eq!(target(10_000, Some(1 << 30)), 192);
    }

    #[test]
    fn a_merge_never_keeps_records_much_longer() {
        let places = places(&[32, 32, 32, 32]);
        let segments: Vec<_> = places.iter().collect();
        assert!(worth_merging(&segments, 4, |_| 256 << 20, Some(8 * 310), |_| true).is_some());
        assert!(worth_merging(&segments, 4, |_| 256 << 20, Some(8 * 309), |_| true).is_none());
    }

    #[test]
    fn a_segment_goes_when_its_newest_record_is_too_old_or_it_is_not_missed() {
        let places = places(&[32, 32, 32]);
        let segments: Vec<_> = places.iter().collect();
        let by_age = ClassPolicy { retention_ms: Some(1000), ..ClassPolicy::default() };
        assert!(!expired(&by_age, &segments[1..], 1100) && expired(&by_age, &segments[1..], 1101));
        let by_bytes = |megabytes: u64| ClassPolicy { retention_bytes: Some(megabytes << 20), ..ClassPolicy::default() };
        assert!(expired(&by_bytes(64), &segments, 0) && !expired(&by_bytes(65), &segments, 0));
        let kept = ClassPolicy { compact: true, delete: false, retention_ms: Some(1), ..ClassPolicy::default() };
        assert!(!expired(&kept, &segments, 1 << 40));
        let mut compacted = *places[0];
        compacted.entry.compacted = true;
        let compacted = Arc::new(compacted);
        let segments = [&compacted, segments[1]];
        assert!(
            expired(&ClassPolicy { delete: true, ..kept }, &segments, 1 << 40),
            "compaction comes by only when there is something new"
        );
    }
}
