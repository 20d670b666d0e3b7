//! Which of two volumes is the log: told by their superblocks alone, before a byte of either is changed.
//!
//! A copy that says its peer is out is the survivor; one that says it is being filled is worth nothing; two that know each other as
//! in step both count. Everything else is refused by name, because a wrong guess would take back what was acknowledged.
//! `FORMAT.md` has the table.

use crate::disk::mirror::{Member, MirrorDisk, MirrorPlan, prepare_target};
use crate::disk::{Disk, DiskError};
use crate::format::segment::{HeaderBlock, SegmentHeader};
use crate::format::superblock::{Peer, Superblock};
use crate::format::{Uuid, uuid_text};
use crate::report::{OpenError, RecoveryReport};

/// A volume that may be a copy of the log.
pub struct Candidate {
    /// Its directory, for messages.
    pub name: String,
    /// Its disk, or why there is none. The copy's id is not known yet.
    pub member: Result<Member, String>,
}

/// Who the copies are, and which one is to be filled once the log is recovered.
pub struct Pairing {
    /// For [`MirrorDisk::new`].
    pub plan: MirrorPlan,
    target: Option<(Member, u64)>,
}

/// What lies in a directory.
#[derive(Debug)]
enum Found {
    /// There is none configured.
    Nowhere,
    /// The directory or its disk does not answer.
    Absent(String),
    /// No superblock and no segment.
    Empty,
    /// Made, but never opened.
    Fresh(Superblock),
    /// Segments without a superblock, or one damaged in both slots.
    Unreadable(String),
    Good(Superblock),
}

/// What to do.
#[derive(Debug, PartialEq, Eq)]
enum Choice {
    Both,
    New,
    /// This one counts; the other one is filled, or left alone for the reason given.
    Survivor {
        which: usize,
        other: Other,
    },
}

#[derive(Debug, PartialEq, Eq)]
enum Other {
    None,
    Fill,
    Offline(String),
}

/// Looks at one or two volumes and says which are the log. `fresh` are ids for copies that have none.
pub fn pair(first: Candidate, second: Option<Candidate>, accept_degraded: bool, fresh: [Uuid; 2]) -> Result<Pairing, OpenError> {
    let mut names = [first.name.clone(), String::new()];
    let mut sides = [Some(first), second];
    let mut found = [Found::Nowhere, Found::Nowhere];
    for at in 0..2 {
        if let Some(candidate) = &mut sides[at] {
            names[at].clone_from(&candidate.name);
            found[at] = match &mut candidate.member {
                Ok(member) => look(member.disk.as_mut())?,
                Err(reason) => Found::Absent(reason.clone()),
            };
        }
    }
    let choice = choose(&found, &names, accept_degraded)?;
    let superblock_of = |at: usize| match &found[at] {
        Found::Good(superblock) | Found::Fresh(superblock) => Some(*superblock),
        _ => None,
    };
    let mut member = |at: usize| -> Option<Member> {
        let mut member = sides[at].take()?.member.ok()?;
        let known = superblock_of(at).map(|superblock| superblock.copy_id).filter(|id| *id != [0; 16]);
        member.copy_id = known.unwrap_or(fresh[at]);
        Some(member)
    };
    let whole = |in_step, superblock| MirrorPlan { in_step, peer_gone: None, gone_reason: None, superblock, lags: false };
    Ok(match choice {
        Choice::Both | Choice::New => {
            let generation = |at| superblock_of(at).map_or(0, |superblock: Superblock| superblock.generation);
            let first = usize::from(generation(1) > generation(0));
            let in_step = [first, 1 - first].into_iter().filter_map(&mut member).collect();
            let lags = generation(1 - first) < generation(first);
            Pairing { plan: MirrorPlan { lags, ..whole(in_step, superblock_of(first)) }, target: None }
        }
        Choice::Survivor { which, other } => {
            let superblock = superblock_of(which);
            let in_step = member(which).into_iter().collect();
            let plan = whole(in_step, superblock);
            let known = superblock.map(|superblock| superblock.peer_id).filter(|id| *id != [0; 16]);
            match other {
                Other::None => Pairing { plan, target: None },
                Other::Offline(reason) => {
                    let peer_gone = Some(known.unwrap_or(fresh[1 - which]));
                    Pairing { plan: MirrorPlan { peer_gone, gone_reason: Some(reason), ..plan }, target: None }
                }
                Other::Fill => {
                    let generation = superblock_of(1 - which).map_or(0, |superblock| superblock.generation);
                    let target = member(1 - which);
                    let peer_gone = target.as_ref().map(|target| target.copy_id);
                    let gone_reason = Some("it has to be filled first".to_owned());
                    let target = target.map(|target| (target, generation));
                    Pairing { plan: MirrorPlan { peer_gone, gone_reason, ..plan }, target }
                }
            }
        }
    })
}

impl Pairing {
    /// The plan, and what is left to do when the log is recovered.
    pub fn into_parts(self) -> (MirrorPlan, Target) {
        (self.plan, Target(self.target))
    }
}

/// The copy that is to be filled, if there is one.
pub struct Target(Option<(Member, u64)>);

impl Target {
    /// Begins to fill it. A copy that fails already now is left alone: the log goes on without it.
    pub fn fill(self, mirror: &mut MirrorDisk) -> Result<(), DiskError> {
        let Some((mut member, generation)) = self.0 else { return Ok(()) };
        let survivor = mirror.superblock().expect("the log was recovered, so it has a superblock");
        match prepare_target(member.disk.as_mut(), &survivor, member.copy_id, generation) {
            Ok(generation) => mirror.fill(member, generation),
            Err(error @ DiskError::Closed { .. }) => return Err(error),
            Err(error) => tracing::error!(%error, copy = member.name, "this copy cannot be filled and is left alone"),
        }
        Ok(())
    }
}

/// Whether a volume may be filled with this log: an empty one, or a copy of it that is not a log of its own. Returns its
/// generation.
pub fn may_be_filled(disk: &mut dyn Disk, survivor: &Superblock, name: &str) -> Result<u64, OpenError> {
    match look(disk)? {
        Found::Empty => Ok(0),
        Found::Fresh(superblock) => Ok(superblock.generation),
        Found::Good(found) if found.volume_id != survivor.volume_id => Err(foreign(&found, survivor, name)),
        Found::Good(found) if matches!(found.peer, Peer::Out | Peer::None) => Err(OpenError::MirrorSplit),
        Found::Good(found) => Ok(found.generation),
        Found::Absent(reason) | Found::Unreadable(reason) => Err(OpenError::MirrorMissing { what: format!("{name}: {reason}") }),
        Found::Nowhere => unreachable!("a disk was looked at"),
    }
}

fn look(disk: &mut dyn Disk) -> Result<Found, OpenError> {
    let mut report = RecoveryReport::default();
    let files = match disk.list_segments() {
        Ok(files) => files,
        Err(error) => return Ok(Found::Absent(error.to_string())),
    };
    Ok(match super::volume::read_superblock(disk, &mut report) {
        Ok(Some(superblock)) if superblock.epoch == 0 && files.is_empty() => Found::Fresh(superblock),
        Ok(Some(superblock)) => Found::Good(superblock),
        Ok(None) if files.is_empty() && !report.superblock_damaged => Found::Empty,
        // Torn while it was made: nothing was ever stored here.
        Ok(None) if files.is_empty() => Found::Empty,
        Ok(None) if report.superblock_damaged => Found::Unreadable(OpenError::SuperblockDamaged.to_string()),
        Ok(None) => Found::Unreadable(OpenError::SuperblockMissing.to_string()),
        Err(OpenError::Disk(error)) => Found::Absent(error.to_string()),
        Err(error) => return Err(error),
    })
}

fn foreign(found: &Superblock, expected: &Superblock, name: &str) -> OpenError {
    let (found, expected) = (uuid_text(&found.volume_id), uuid_text(&expected.volume_id));
    OpenError::MirrorForeign { path: name.to_owned(), found, expected }
}

fn choose(found: &[Found; 2], names: &[String; 2], accept_degraded: bool) -> Result<Choice, OpenError> {
    use Found::{Absent, Empty, Fresh, Good, Nowhere, Unreadable};
    match found {
        // The first opening was cut short between the two.
        [Good(a), Fresh(b)] | [Fresh(a), Good(b)] if are_pair(a, b) => Ok(Choice::Both),
        [Good(a), Good(b)] => choose_of_two(a, b, names, accept_degraded),
        [Good(a), other] => alone(0, a, other, &names[1], accept_degraded),
        [other, Good(b)] => alone(1, b, other, &names[0], accept_degraded),
        [Empty | Fresh(_), Empty | Fresh(_)] => Ok(Choice::New),
        // What is wrong with it recovery says itself.
        [_, Nowhere] => Ok(Choice::Survivor { which: 0, other: Other::None }),
        [Absent(reason) | Unreadable(reason), _] => Err(OpenError::MirrorMissing { what: format!("{}: {reason}", names[0]) }),
        [_, Absent(reason) | Unreadable(reason)] => Err(OpenError::MirrorMissing { what: format!("{}: {reason}", names[1]) }),
        [Nowhere, _] => unreachable!("the first volume is always configured"),
    }
}

fn are_pair(a: &Superblock, b: &Superblock) -> bool {
    let in_step = (a.peer, b.peer) == (Peer::InStep, Peer::InStep);
    in_step && a.volume_id == b.volume_id && (a.peer_id, b.peer_id) == (b.copy_id, a.copy_id)
}

/// One log, and something that is none.
fn alone(which: usize, log: &Superblock, other: &Found, name: &str, accept_degraded: bool) -> Result<Choice, OpenError> {
    let (what, other) = match other {
        Found::Nowhere if log.peer == Peer::None => ("", Other::None),
        Found::Nowhere => ("no mirror_dir is configured", Other::Offline("no mirror_dir is configured".to_owned())),
        Found::Empty | Found::Fresh(_) => ("it is empty", Other::Fill),
        Found::Absent(reason) | Found::Unreadable(reason) => (&**reason, Other::Offline(reason.clone())),
        Found::Good(_) => unreachable!("then there are two logs"),
    };
    match log.peer {
        Peer::Filling => Err(OpenError::MirrorIncomplete),
        Peer::InStep if !accept_degraded => {
            let expected = uuid_text(&log.peer_id);
            Err(OpenError::MirrorMissing { what: format!("copy {expected} is not in {name:?}: {what}") })
        }
        _ => Ok(Choice::Survivor { which, other }),
    }
}

fn choose_of_two(a: &Superblock, b: &Superblock, names: &[String; 2], accept_degraded: bool) -> Result<Choice, OpenError> {
    if (a.volume_id, a.node_id) != (b.volume_id, b.node_id) {
        return Err(foreign(b, a, &names[1]));
    }
    let a_knows = a.peer_id == b.copy_id;
    let b_knows = b.peer_id == a.copy_id;
    let survivor = |which| Ok(Choice::Survivor { which, other: Other::Fill });
    match (a.peer, b.peer) {
        (Peer::Filling, Peer::Filling) => Err(OpenError::MirrorIncomplete),
        (Peer::InStep, Peer::InStep) if a_knows && b_knows => Ok(Choice::Both),
        // Its partner is another disk, which may have gone on without it.
        (Peer::InStep, Peer::Filling) if !a_knows => former(0, a, &names[1], accept_degraded),
        (Peer::Filling, Peer::InStep) if !b_knows => former(1, b, &names[0], accept_degraded),
        (Peer::InStep, Peer::InStep) if b_knows => former(0, a, &names[1], accept_degraded),
        (Peer::InStep, Peer::InStep) if a_knows => former(1, b, &names[0], accept_degraded),
        (_, Peer::Filling) => survivor(0),
        (Peer::Filling, _) => survivor(1),
        (Peer::Out, Peer::InStep) if b_knows => survivor(0),
        (Peer::InStep, Peer::Out) if a_knows => survivor(1),
        _ => Err(OpenError::MirrorSplit),
    }
}

/// Which of two copies of one log a node would go on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counts {
    /// They are in step.
    Both,
    /// The first; the other one is worth nothing until it is filled.
    First,
    /// The second.
    Second,
}

/// The same decision for those who only look: a node that may go on with one copy is meant.
pub(crate) fn who_counts(first: &Superblock, second: &Superblock) -> Result<Counts, OpenError> {
    let names = [String::new(), String::new()];
    Ok(match choose_of_two(first, second, &names, true)? {
        Choice::Both | Choice::New => Counts::Both,
        Choice::Survivor { which: 0, .. } => Counts::First,
        Choice::Survivor { .. } => Counts::Second,
    })
}

fn former(which: usize, log: &Superblock, name: &str, accept_degraded: bool) -> Result<Choice, OpenError> {
    if accept_degraded {
        return Ok(Choice::Survivor { which, other: Other::Fill });
    }
    let expected = uuid_text(&log.peer_id);
    Err(OpenError::MirrorMissing {
        what: format!("copy {expected} is not in {name:?}, a former copy of this log is there instead"),
    })
}

/// Before recovery looks at a pair in step: a segment file that only one copy has whole is copied to the other one, and a pair that
/// was made only by half is made whole.
pub fn restore_files(mirror: &mut MirrorDisk) -> Result<u64, DiskError> {
    let Some(superblock) = mirror.superblock() else { return Ok(0) };
    let restored = mirror.restore_files(&mut |block| match SegmentHeader::decode(block) {
        HeaderBlock::Good(header) => header.volume_id == superblock.volume_id && header.sequence >= superblock.first_sequence,
        _ => false,
    })?;
    if superblock.epoch == 0 {
        mirror.mark_now()?;
    }
    Ok(restored)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::superblock::VolumeState;

    /// Copy `me` of the log, and what it says of copy `peer_id`.
    fn copy(me: u8, peer: Peer, peer_id: u8) -> Found {
        Found::Good(Superblock {
            node_id: [9; 16],
            volume_id: [8; 16],
            generation: 4,
            epoch: 1,
            durable_lsn: 0,
            segment_bytes: 1 << 20,
            created_ms: 0,
            state: VolumeState::Open,
            first_sequence: 1,
            last_sequence: 1,
            copy_id: [me; 16],
            peer_id: [peer_id; 16],
            peer,
            peer_lsn: 0,
        })
    }

    /// Who counts, or how it is refused.
    fn verdict(first: Found, second: Found, accept_degraded: bool) -> &'static str {
        match choose(&[first, second], &[String::new(), String::new()], accept_degraded) {
            Ok(Choice::Both) => "both",
            Ok(Choice::New) => "new",
            Ok(Choice::Survivor { which: 0, .. }) => "first",
            Ok(Choice::Survivor { .. }) => "second",
            Err(OpenError::MirrorMissing { .. }) => "missing",
            Err(OpenError::MirrorSplit) => "split",
            Err(OpenError::MirrorIncomplete) => "incomplete",
            Err(OpenError::MirrorForeign { .. }) => "foreign",
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn superblocks_alone_tell_which_copy_counts() {
        use Peer::{Filling, InStep, None, Out};
        for (first, second, expected) in [
            (copy(1, InStep, 2), copy(2, InStep, 1), "both"),
            (copy(1, Out, 2), copy(2, InStep, 1), "first"),
            (copy(1, InStep, 2), copy(2, Out, 1), "second"),
            (copy(1, Out, 2), copy(2, Filling, 1), "first"),
            // The survivor says already that both count, the other one not yet.
            (copy(1, Filling, 2), copy(2, InStep, 1), "second"),
            (copy(1, None, 0), copy(2, Filling, 1), "first"),
            (copy(1, Out, 2), copy(2, Out, 1), "split"),
            (copy(1, None, 0), copy(1, None, 0), "split"),
            (copy(1, Out, 2), copy(2, InStep, 3), "split"),
            (copy(1, Filling, 2), copy(2, Filling, 1), "incomplete"),
            // A former copy lies where copy 3 should.
            (copy(1, InStep, 3), copy(2, InStep, 1), "missing"),
            (copy(1, InStep, 3), copy(2, Filling, 1), "missing"),
            (copy(1, InStep, 2), Found::Empty, "missing"),
            (copy(1, InStep, 2), Found::Nowhere, "missing"),
            (copy(1, InStep, 2), Found::Absent("dead".to_owned()), "missing"),
            (copy(1, Out, 2), Found::Absent("dead".to_owned()), "first"),
            (copy(1, None, 0), Found::Nowhere, "first"),
            (Found::Empty, copy(2, Out, 1), "second"),
            (copy(1, Filling, 2), Found::Empty, "incomplete"),
            (Found::Empty, Found::Empty, "new"),
            (Found::Empty, Found::Absent("dead".to_owned()), "missing"),
        ] {
            let what = format!("{first:?} and {second:?}");
            assert_eq!(verdict(first, second, false), expected, "{what}");
        }
    }

    #[test]
    fn the_operator_may_go_on_with_one_copy_but_not_choose_between_two_or_use_half_a_one() {
        use Peer::{Filling, InStep, Out};
        assert_eq!(verdict(copy(1, InStep, 2), Found::Empty, true), "first");
        assert_eq!(verdict(copy(1, InStep, 3), copy(2, InStep, 1), true), "first");
        assert_eq!(verdict(copy(1, Out, 2), copy(2, Out, 1), true), "split");
        assert_eq!(verdict(copy(1, Filling, 2), Found::Nowhere, true), "incomplete");
    }
}
