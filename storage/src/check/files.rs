//! Everything in the data directory that is no frame: superblock slots, spares, files that nobody knows.

use std::path::Path;

use super::disk::ReadOnlyDisk;
use super::report::{CheckError, CheckReport, VolumeFacts};
use crate::disk::{AlignedBuf, Disk, FileId};
use crate::format::superblock::{FORMAT, Peer, SLOTS, Slot, Superblock, VolumeState};
use crate::format::{BLOCK, u16_at, uuid_text};
use crate::recovery::deep::Parts;
use crate::report::OpenError;

/// How a file in one of the directories is called.
pub(super) type Label<'a> = &'a dyn Fn(&Path, String) -> String;

/// What a node keeps beside the log: the broker's plugins.
const KNOWN: [&str; 6] = ["LOCK", "superblock", "wal", "cold", "volume", "plugins"];
/// Unknown files that are named one by one.
const UNKNOWN_MAX: usize = 100;

/// Both slots; the intact one of the higher generation.
pub(super) fn superblock(
    disk: &mut ReadOnlyDisk,
    label: &str,
    report: &mut CheckReport,
) -> Result<Option<Superblock>, CheckError> {
    let mut best: Option<Superblock> = None;
    let mut damaged = Vec::new();
    let mut block = AlignedBuf::zeroed(BLOCK);
    for slot in 0..SLOTS {
        let at = slot * BLOCK as u64;
        // A file that is too short or unreadable has no such slot.
        let decoded = match disk.read(FileId::Superblock, at, &mut block, BLOCK) {
            Ok(()) => Superblock::decode(&block[..BLOCK]),
            Err(_) => Slot::Empty,
        };
        match decoded {
            Slot::Newer(found) => return Err(OpenError::NewerFormat { found, supported: FORMAT }.into()),
            Slot::Empty | Slot::Damaged => damaged.push(at),
            Slot::Good(superblock) if best.is_none_or(|best| superblock.generation > best.generation) => {
                best = Some(superblock);
                report.volume = Some(facts(&superblock, &block));
            }
            Slot::Good(_) => {}
        }
    }
    // With both gone, the rehearsal says so.
    if best.is_some() {
        for at in damaged {
            let what = "this copy of the superblock is damaged; the other is used, and the next start writes both";
            report.damage(label, Some(at), what);
        }
    }
    Ok(best)
}

/// Whether there is a copy that was not looked at.
pub(super) fn pair(superblock: &Superblock, lacks_one: bool, report: &mut CheckReport) {
    let other = uuid_text(&superblock.peer_id);
    match superblock.peer {
        Peer::None => {}
        Peer::InStep if !lacks_one => {}
        Peer::InStep => {
            report.note(
                "superblock",
                format!("one of two copies of the log: the other one, {other}, is not looked at, and may mend this one"),
            );
        }
        Peer::Out => report.note("superblock", format!("one of two copies of the log, going on without the other one, {other}")),
        Peer::Filling => {
            report.damage("superblock", None, format!("a node does not open this copy alone: {}", OpenError::MirrorIncomplete))
        }
    }
}

fn facts(superblock: &Superblock, block: &[u8]) -> VolumeFacts {
    VolumeFacts {
        node_id: superblock.node_id,
        volume_id: superblock.volume_id,
        format: (u16_at(block, 12), u16_at(block, 14)),
        epoch: superblock.epoch,
        segment_bytes: superblock.segment_bytes,
        clean: superblock.state == VolumeState::Closed,
    }
}

/// What the directory holds beside segments with frames.
pub(super) fn unknown(dirs: &[&Path], label: Label<'_>, parts: &Parts, report: &mut CheckReport) {
    report.spares = (parts.spares.len() + parts.unfinished.len()) as u64;
    for file in &parts.unfinished {
        report.note(FileId::Segment(*file).to_string(), "a zero-fill that was cut short: it is filled again when it is needed");
    }
    for file in &parts.repaired {
        let what = "the segment's header is damaged; its frames say which segment it is";
        report.damage(FileId::Segment(*file).to_string(), Some(0), what);
    }
    let mut strange = Vec::new();
    for dir in dirs {
        names(dir, &mut |name| strange.extend((!KNOWN.contains(&name)).then(|| label(dir, name.to_owned()))));
        names(&dir.join("wal"), &mut |name| {
            strange.extend(FileId::segment_number(name).is_none().then(|| label(dir, format!("wal/{name}"))));
        });
    }
    strange.sort();
    let more = strange.len().saturating_sub(UNKNOWN_MAX);
    for name in strange.into_iter().take(UNKNOWN_MAX) {
        report.note(name, "no file of a volume; nobody reads it");
    }
    if more > 0 {
        report.note("", format!("{more} more files that belong to no volume"));
    }
}

/// Names in a directory, as far as it can be read.
pub(super) fn names(dir: &Path, each: &mut dyn FnMut(&str)) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        each(&entry.file_name().to_string_lossy());
    }
}
