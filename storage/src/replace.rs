//! A directory that is to take a volume's place: everything that may speak against it is found out before anything of the old one
//! changes. Looked at first, then locked and opened, which writes to it for the first time; only then is the old one let go of.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cold::manifest::VolumeUse;
use crate::core::VolumeError;
use crate::disk::mirror::{CopyState, Member, MirrorControl};
use crate::format::superblock::{Peer, SLOTS, Slot, Superblock};
use crate::format::{BLOCK, Uuid, uuid_text};
use crate::lock::DirLock;
use crate::mirror::Mirror;
use crate::report::OpenError;
use crate::view::View;
use crate::volume_dir::{self, VolumeDir, VolumeSet};
use crate::volumes::{Health, Volume, Volumes};

/// What a volume may have left behind, or a file system has of its own. Anything else is somebody's.
const OURS: [&str; 7] = ["LOCK", "superblock", "wal", "cold", "volume", "volume.new", "lost+found"];
/// How long the survivor of a pair may take to say durably that it is alone.
const SETTLE_PATIENCE: Duration = Duration::from_secs(10);
const SETTLE_LOOK: Duration = Duration::from_millis(2);

/// A directory that was accepted: locked, open, and nothing of it counts yet.
pub(crate) struct Newcomer {
    pub(crate) volume: VolumeDir,
    /// It is to hold a copy of the WAL: its disk, and the generation of its superblock.
    pub(crate) copy: Option<(Member, u64)>,
}

/// The file system that a volume lies on, and whether that volume's disk has failed.
#[derive(Clone, Copy, Debug)]
struct Neighbour {
    number: u8,
    device: u64,
    failed: bool,
}

/// Whether the volume that goes leaves a place for a copy of the WAL.
fn frees_a_copy(control: &MirrorControl, old: &Volume) -> bool {
    let copies = control.status().copies;
    let is_old = |name: &str| !old.name.is_empty() && old.name == name;
    copies.len() > 1 && copies.iter().any(|copy| is_old(&copy.name) || copy.state == CopyState::Offline)
}

/// Looks at `dir`, which is to take the place of volume `number`, and opens it. On refusal the log is as it was.
pub(crate) fn accept(number: u8, dir: &Path, set: &VolumeSet, mirror: &Mirror, view: &View) -> Result<Newcomer, OpenError> {
    let refused = |what: String| OpenError::VolumeRefused { path: dir.to_owned(), what };
    let (old, number_there) = {
        let volumes = view.volumes();
        let old = volumes.get(number).cloned().ok_or(VolumeError::Unknown(number))?;
        (old, known_here(dir, &volumes))
    };
    let has_wal = frees_a_copy(&mirror.control, &old);
    if let Some(there) = number_there {
        return Err(refused(format!("it is volume {there} already: give an empty directory on another disk")));
    }
    let superblock = only_ours(dir).and_then(|()| superblock_in(dir)).map_err(refused)?;
    may_be_taken(superblock.as_ref(), &set.log_id, has_wal).map_err(refused)?;
    set.may_join(dir, view, has_wal)?;
    let device = device_of(dir).ok_or_else(|| refused("neither it nor the directory above it can be looked at".to_owned()))?;
    disk_is_good(device, &neighbours(view)).map_err(refused)?;
    let needs = if has_wal { wal_bytes(&mirror.control) } else { 0 } + mirror.headroom;
    has_room(free_bytes(dir), needs).map_err(refused)?;
    let lock = Arc::new(DirLock::acquire(dir)?);
    if !has_wal {
        let volume = volume_dir::open_cold_dir(dir, set.backend, Some(lock))?;
        return Ok(Newcomer { volume, copy: None });
    }
    let (member, volume, generation) = mirror.prepare(dir, Some(lock))?;
    Ok(Newcomer { volume, copy: Some((member, generation)) })
}

/// Waits until the log says durably that it has one copy, so that another one may be filled from it.
pub(crate) fn settled(control: &MirrorControl) -> Result<(), OpenError> {
    let until = Instant::now() + SETTLE_PATIENCE;
    while control.survivor().is_none() {
        if Instant::now() >= until {
            return Err(OpenError::MirrorBusy("the log does not come to rest after letting go of a copy: try again".to_owned()));
        }
        std::thread::sleep(SETTLE_LOOK);
    }
    Ok(())
}

/// By its path, or by its identity, whatever its path is now.
fn known_here(dir: &Path, volumes: &Volumes) -> Option<u8> {
    let same = |name: &str| {
        let canonical = |path: &Path| path.canonicalize().ok();
        !name.is_empty() && canonical(dir).is_some_and(|dir| canonical(Path::new(name)) == Some(dir))
    };
    let there = volumes.iter().find(|(_, volume)| volume.health != Health::Offline && same(&volume.name));
    let kept = |number: &u8| volumes.get(*number).is_some_and(|volume| volume.usage != VolumeUse::Gone);
    there.map(|(number, _)| number).or_else(|| volumes.number_of(&volume_dir::identity_in(dir)?).filter(kept))
}

fn only_ours(dir: &Path) -> Result<(), String> {
    let entries = match std::fs::read_dir(dir) {
        Err(missing) if missing.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(format!("it cannot be listed: {error}")),
        Ok(entries) => entries,
    };
    for entry in entries {
        let name = entry.map_err(|error| format!("it cannot be listed: {error}"))?.file_name().to_string_lossy().into_owned();
        if !OURS.contains(&name.as_str()) {
            return Err(format!("it is not empty, and {name:?} is no part of a volume: give an empty directory"));
        }
    }
    Ok(())
}

/// The newest superblock that can be read, if there is one.
pub(crate) fn superblock_in(dir: &Path) -> Result<Option<Superblock>, String> {
    let bytes = match std::fs::read(dir.join("superblock")) {
        Err(missing) if missing.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("its superblock cannot be read: {error}")),
        Ok(bytes) => bytes,
    };
    let mut newest: Option<Superblock> = None;
    for slot in bytes.chunks_exact(BLOCK).take(SLOTS as usize) {
        match Superblock::decode(slot) {
            Slot::Good(found) if newest.is_none_or(|newest| found.generation > newest.generation) => newest = Some(found),
            Slot::Newer(found) => return Err(format!("its superblock has format {found}: it is a newer program's")),
            Slot::Good(_) | Slot::Empty | Slot::Damaged => {}
        }
    }
    Ok(newest)
}

/// Whether a directory with this superblock may become a volume.
fn may_be_taken(found: Option<&Superblock>, log_id: &Uuid, has_wal: bool) -> Result<(), String> {
    match found {
        None => Ok(()),
        Some(found) if found.volume_id != *log_id => Err(format!(
            "it holds log {}: the wrong disk is mounted; empty it if it is to be a volume here",
            uuid_text(&found.volume_id)
        )),
        Some(found) if matches!(found.peer, Peer::Out | Peer::None) => {
            Err("it holds a copy of this log that has gone on by itself: look which one is right, and empty it".to_owned())
        }
        Some(_) if !has_wal => Err("it holds a former copy of the log, and this one is to hold none: empty it".to_owned()),
        Some(_) => Ok(()),
    }
}

/// Of the directory, or of the one that it is going to be made in.
fn nearest(dir: &Path) -> Option<PathBuf> {
    dir.ancestors().find(|path| path.exists()).map(Path::to_owned)
}

fn device_of(dir: &Path) -> Option<u64> {
    rustix::fs::stat(&nearest(dir)?).ok().map(|stat| stat.st_dev)
}

fn free_bytes(dir: &Path) -> Option<u64> {
    rustix::fs::statvfs(&nearest(dir)?).ok().map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Where the volumes lie, as far as their directories answer.
fn neighbours(view: &View) -> Vec<Neighbour> {
    let volumes: Vec<(u8, Volume)> = view.volumes().iter().map(|(number, volume)| (number, volume.clone())).collect();
    let placed = volumes.into_iter().filter(|(_, volume)| !volume.name.is_empty());
    placed
        .filter_map(|(number, volume)| {
            let device = rustix::fs::stat(Path::new(&volume.name)).ok()?.st_dev;
            let failed = volume.no_writes || volume.wal_out || (volume.health != Health::Healthy && volume.errors > 0);
            (failed || volume.health == Health::Healthy).then_some(Neighbour { number, device, failed })
        })
        .collect()
}

/// Not on the disk that has just failed. Where another volume does well on the same file system, it was not the disk.
fn disk_is_good(device: u64, neighbours: &[Neighbour]) -> Result<(), String> {
    let here = || neighbours.iter().filter(|neighbour| neighbour.device == device);
    match here().find(|neighbour| neighbour.failed) {
        Some(bad) if here().all(|neighbour| neighbour.failed) => {
            Err(format!("it is on the file system of volume {}, whose disk fails: give a directory on another disk", bad.number))
        }
        _ => Ok(()),
    }
}

/// Of the segment files that a new copy has to take.
fn wal_bytes(control: &MirrorControl) -> u64 {
    let (whole, _) = control.names();
    let files = whole.first().map(|name| std::fs::read_dir(Path::new(name).join("wal")));
    let files = files.into_iter().flatten().flatten().flatten();
    files.filter_map(|file| file.metadata().ok()).map(|metadata| metadata.len()).sum()
}

fn has_room(free: Option<u64>, needs: u64) -> Result<(), String> {
    match free {
        Some(free) if free < needs => {
            Err(format!("its file system has {free} bytes free, and it needs {needs} to begin with: give one on a larger disk"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_on_the_disk_that_failed_is_refused_unless_another_volume_does_well_there() {
        let at = |number, device, failed| Neighbour { number, device, failed };
        assert_eq!(disk_is_good(7, &[]), Ok(()));
        assert_eq!(disk_is_good(7, &[at(0, 7, false), at(1, 8, true)]), Ok(()));
        assert_eq!(disk_is_good(7, &[at(0, 7, false), at(1, 7, true)]), Ok(()));
        let refused = disk_is_good(8, &[at(0, 7, false), at(1, 8, true)]).unwrap_err();
        assert!(refused.contains("volume 1"), "{refused}");
    }

    #[test]
    fn a_disk_that_is_too_small_for_the_log_is_refused_and_one_that_does_not_say_is_not() {
        assert_eq!(has_room(Some(100), 100), Ok(()));
        assert_eq!(has_room(None, 100), Ok(()));
        let refused = has_room(Some(99), 100).unwrap_err();
        assert!(refused.contains("99 bytes free") && refused.contains("100"), "{refused}");
    }
}
