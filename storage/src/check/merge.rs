//! Puts rehearsal and segments together: the same damage is told once for each copy, and lost is only what no copy has.

use std::collections::BTreeMap;
use std::path::Path;

use super::Read;
use super::files::Label;
use super::frames::Contents;
use super::report::CheckReport;
use crate::core::Opening;
use crate::disk::FileId;
use crate::format::superblock::{Superblock, VolumeState};
use crate::recovery::deep::Part;
use crate::report::{Damage, Gap, OpenError, RecoveryReport};

/// All segments of one copy, in any order.
pub(super) type ReadCopy<'a> = (&'a Path, Vec<Read>);

pub(super) fn merge(
    superblock: &Superblock,
    opened: Option<&(Opening, RecoveryReport)>,
    read: Vec<ReadCopy<'_>>,
    label: Label<'_>,
    report: &mut CheckReport,
) {
    let mut told = Vec::new();
    let mut torn_tail = opened.is_some_and(|(_, found)| found.torn_tail);
    let mut segments: BTreeMap<u64, Vec<(&Path, Read)>> = BTreeMap::new();
    for (dir, parts) in read {
        for read in parts {
            segments.entry(read.0.sequence).or_default().push((dir, read));
        }
    }
    report.segments = segments.len() as u64;
    for copies in segments.into_values() {
        for (dir, (part, _)) in &copies {
            told.extend(part.damage.iter().map(|damage| (damage.file, damage.at)));
            torn_tail |= opened.is_none() && part.torn_tail;
            let others: Vec<&Part> = copies.iter().filter(|(other, _)| other != dir).map(|(_, (part, _))| part).collect();
            tell_part(part, &others, &|file| label(dir, file), report);
        }
        let lost = lost_on_all(&copies);
        report.lost.extend(lost);
        // Readers get what the better copy has; of the other one only what is wrong with it is told.
        let best = copies.iter().enumerate().max_by_key(|(at, (_, (part, _)))| (part.frames, std::cmp::Reverse(*at)));
        let best = best.map(|(at, _)| at);
        for (at, (dir, (part, contents))) in copies.into_iter().enumerate() {
            let file = label(dir, FileId::Segment(part.file).to_string());
            take(contents, &file, Some(at) == best, report);
            report.frames += if Some(at) == best { part.frames } else { 0 };
        }
    }
    if torn_tail {
        let what = "the last write was cut off by a crash: it was never acknowledged, and the next start discards it";
        report.note("", what);
    }
    if superblock.state == VolumeState::Fenced {
        report.damage("superblock", None, OpenError::Fenced.to_string());
    }
    if let Some((opening, found)) = opened {
        let unread = found.damage.iter().filter(|damage| !told.contains(&(damage.file, damage.at)));
        unread.for_each(|damage| tell(damage, "", &|file| file, report));
        report.meta_lost |= found.meta_damaged;
        (report.last_lsn, report.producers) = (found.last_lsn.0, found.producers);
        (report.partitions, report.meta_keys) = (found.partitions, opening.view.meta().len() as u64);
        still_kept(opening, report);
    }
}

/// What is wrong with one copy of one segment.
fn tell_part(part: &Part, others: &[&Part], label: &dyn Fn(String) -> String, report: &mut CheckReport) {
    let file = || label(FileId::Segment(part.file).to_string());
    for damage in &part.damage {
        let same = |other: &&Part| other.damage.iter().any(|found| (found.file, found.at) == (damage.file, damage.at));
        let whole = !others.is_empty() && !others.iter().any(same);
        tell(damage, if whole { "; the other copy has it" } else { "" }, label, report);
    }
    if part.damage.is_empty() && !part.gaps.is_empty() {
        report.damage(file(), None, format!("offsets are missing between good frames of segment {}", part.sequence));
    }
    if part.snapshot_bad && part.damage.is_empty() {
        report.damage(file(), None, format!("the snapshot at the start of segment {} makes no sense", part.sequence));
    }
    if let Some(how) = &part.disagrees {
        let what = format!("the snapshot behind segment {} contradicts its frames: {how}", part.sequence);
        report.damage(file(), None, what);
    }
}

fn tell(damage: &Damage, more: &str, label: &dyn Fn(String) -> String, report: &mut CheckReport) {
    let Damage { file, at, first_lsn, frames, reason } = damage;
    let which = if *frames == 1 { format!("frame {first_lsn}") } else { format!("{frames} frames from {first_lsn} on") };
    report.damage(label(FileId::Segment(*file).to_string()), Some(*at), format!("{which} damaged: {reason}{more}"));
}

/// What each copy of a segment has lost.
fn lost_on_all(copies: &[(&Path, Read)]) -> Vec<Gap> {
    let mut lost: Option<Vec<Gap>> = None;
    for (_, (part, contents)) in copies {
        let here: Vec<Gap> = part.gaps.iter().chain(&contents.lost).copied().collect();
        lost = Some(match lost {
            None => here,
            Some(before) => in_both(&before, &here),
        });
    }
    lost.unwrap_or_default()
}

/// Ranges that are in both lists.
pub(super) fn in_both(some: &[Gap], others: &[Gap]) -> Vec<Gap> {
    let mut both = Vec::new();
    for a in some {
        for b in others.iter().filter(|b| b.partition == a.partition) {
            let gap = Gap { partition: a.partition, from: a.from.max(b.from), to: a.to.min(b.to) };
            both.extend(Some(gap).filter(|gap| gap.from < gap.to));
        }
    }
    both
}

fn take(contents: Contents, file: &str, counts: bool, report: &mut CheckReport) {
    if counts {
        report.batches += contents.batches;
        report.records += contents.records;
        report.bytes += contents.bytes;
        report.meta_lost |= contents.meta_lost;
    }
    report.damage_total += contents.problems_total - contents.problems.len() as u64;
    for (at, what) in contents.problems {
        report.damage(file, Some(at), format!("the frame is intact but {what}"));
    }
}

/// What the log knows to be lost, and of what was found lost here only what it would still give out.
fn still_kept(opening: &Opening, report: &mut CheckReport) {
    let tables = opening.view.tables();
    report.lost.retain_mut(|gap| {
        let bounds = tables.bounds(gap.partition);
        gap.from = gap.from.max(bounds.map_or(i64::MAX, |bounds| bounds.start));
        gap.from < gap.to
    });
    let known = tables.gaps.iter().map(|(&(partition, from), &to)| Gap { partition, from, to });
    report.lost.extend(known);
}
