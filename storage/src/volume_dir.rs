//! Volumes of a real machine: which directory is which (the identity file), opened and told apart at start, attached and let go of
//! while the log runs. What is done with them the engine decides (`core/volumes.rs`).

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::cold::manifest::VolumeUse;
use crate::core::VolumeError;
use crate::disk::mirror::{CopyState, MirrorControl};
use crate::disk::volumes::{VolumeDisk, VolumeDisks};
use crate::disk::{self, BackendChoice, FileId};
use crate::format::volume::{Identity, NoIdentity};
use crate::format::{Uuid, uuid_text};
use crate::lock::DirLock;
use crate::report::OpenError;
use crate::view::View;
use crate::volumes::{Health, Volumes};

/// How long to wait for the log thread, and for the sorter to end what it is at.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);
const NAME: &str = "volume";

/// A directory that may be a volume, locked and open.
pub(crate) struct VolumeDir {
    pub(crate) path: PathBuf,
    pub(crate) disk: VolumeDisk,
    /// It holds a copy of the WAL, so its superblock vouches for it.
    pub(crate) has_wal: bool,
}

/// What the log thread is asked to do to a volume; it answers with the volume's number.
pub(crate) enum VolumeOrder {
    Found { uuid: Uuid, name: String },
    Lost { number: u8 },
    Drain { number: u8, drain: bool },
    Forget { number: u8, force: bool },
}

/// An order, and where its answer goes.
pub(crate) type Ordered = (VolumeOrder, Sender<Result<u8, VolumeError>>);

/// How a volume is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeStatus {
    /// Its number, for ever.
    pub number: u8,
    /// Who it is.
    pub uuid: [u8; 16],
    /// Its directory; empty where it was not found.
    pub dir: String,
    /// What it may be used for.
    pub usage: VolumeUse,
    /// How it does.
    pub health: Health,
    /// Why it is offline.
    pub reason: Option<String>,
    /// Cold segments on it.
    pub segments: u64,
    /// Bytes of these.
    pub bytes: u64,
    /// Of these segments: those that can be read nowhere else.
    pub only_copies: u64,
    /// Reads and writes that failed since the start.
    pub errors: u64,
    /// Copies on it that were found damaged or missing since the start.
    pub bad_copies: u64,
    /// Bytes free, where its file system says.
    pub free_bytes: Option<u64>,
    /// How its copy of the WAL is, if it has one.
    pub wal: Option<CopyState>,
}

/// What lies in a directory, for the decision who it is.
#[derive(Clone, Copy, Debug)]
struct Found {
    identity: Option<Result<Identity, NoIdentity>>,
    has_cold: bool,
    has_wal: bool,
    /// The operator says that it is to join.
    on_purpose: bool,
}

/// Who a directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    /// This one.
    Is(Uuid),
    /// A new volume, which gets an identity first.
    New,
}

/// By the table in `cold/FORMAT.md`.
fn decide(found: &Found, log_id: &Uuid, volumes: &Volumes) -> Result<Who, String> {
    let missing = || volumes.iter().find(|(_, volume)| volume.usage != VolumeUse::Gone && volume.health == Health::Offline);
    match found.identity {
        Some(Err(NoIdentity::Damaged)) => {
            Err("its file `volume` is damaged: put it back from a copy; without it nobody can tell which volume this is".to_owned())
        }
        Some(Err(NoIdentity::Newer(major))) => {
            Err(format!("its file `volume` has format {major}: start the newer weir that wrote it"))
        }
        Some(Ok(identity)) if identity.log_id != *log_id => {
            Err(format!("it is a volume of log {}: the wrong disk is mounted; empty it to use it here", uuid_text(&identity.log_id)))
        }
        Some(Ok(identity)) => match volumes.number_of(&identity.volume).and_then(|number| Some((number, volumes.get(number)?))) {
            Some((number, volume)) if volume.usage == VolumeUse::Gone => Err(VolumeError::Gone(number).to_string()),
            Some(_) => Ok(Who::Is(identity.volume)),
            None if !found.has_cold || (volumes.is_implicit() && found.has_wal) => Ok(Who::Is(identity.volume)),
            None => Err("it holds cold segments of this log, which does not know it: the log was taken back to an older copy, or the directory was copied; move its cold/ away to use it".to_owned()),
        },
        None if found.has_cold && !(volumes.is_implicit() && found.has_wal) => {
            Err("it holds cold segments, but no file `volume` that says which ones: put it back, or move its cold/ away to use it".to_owned())
        }
        None => match missing() {
            Some((number, volume)) if !found.has_wal && !found.on_purpose => Err(format!(
                "it is empty, and volume {number} ({}) is missing: its disk may not be mounted; attach this one if it is to be a new volume",
                uuid_text(&volume.uuid)
            )),
            _ => Ok(Who::New),
        },
    }
}

/// Whether it has been a volume.
pub(crate) fn has_identity(dir: &Path) -> bool {
    dir.join(NAME).exists()
}

/// Who it says it is, if it does.
pub(crate) fn identity_in(dir: &Path) -> Option<Uuid> {
    let bytes = std::fs::read(dir.join(NAME)).ok()?;
    Identity::decode(&bytes).ok().map(|identity| identity.volume)
}

fn look(dir: &Path, has_wal: bool, on_purpose: bool) -> Result<Found, OpenError> {
    let path = dir.join(NAME);
    let identity = match std::fs::read(&path) {
        Ok(bytes) => Some(Identity::decode(&bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(source) => return Err(OpenError::Directory { what: "reading", path, source }),
    };
    let names = std::fs::read_dir(dir.join("cold")).into_iter().flatten().flatten();
    let has_cold = names.filter_map(|entry| FileId::cold_file(entry.file_name().to_str()?)).next().is_some();
    Ok(Found { identity, has_cold, has_wal, on_purpose })
}

/// Durable when it returns: only then may the table name it.
pub(crate) fn write_identity(dir: &Path, identity: &Identity) -> Result<(), OpenError> {
    let path = dir.join(NAME);
    let fresh = dir.join("volume.new");
    let written = File::create(&fresh)
        .and_then(|mut file| file.write_all(&identity.encode()).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&fresh, &path))
        .and_then(|()| File::open(dir)?.sync_all());
    written.map_err(|source| OpenError::Directory { what: "writing", path, source })
}

/// Opens a directory that holds cold segments only. `held`: its lock, if this log has it already.
pub(crate) fn open_cold_dir(dir: &Path, backend: BackendChoice, held: Option<Arc<DirLock>>) -> Result<VolumeDir, OpenError> {
    let lock = match held {
        Some(lock) => lock,
        None => Arc::new(DirLock::acquire(dir)?),
    };
    let (reader, open) = disk::open_cold(dir, backend)?;
    let disk = VolumeDisk { reader, open: Some(open), keep: lock, wal: Weak::new() };
    Ok(VolumeDir { path: dir.to_owned(), disk, has_wal: false })
}

/// Finds out who a directory is, or makes it somebody.
pub(crate) fn identify(dir: &VolumeDir, log_id: &Uuid, view: &View, on_purpose: bool) -> Result<Uuid, OpenError> {
    let found = look(&dir.path, dir.has_wal, on_purpose)?;
    let who = decide(&found, log_id, &view.volumes());
    match who.map_err(|what| OpenError::VolumeRefused { path: dir.path.clone(), what })? {
        Who::Is(uuid) => {
            // What a killed process left in the page cache only.
            let path = dir.path.join(NAME);
            let synced = File::open(&path).and_then(|file| file.sync_all()).and_then(|()| File::open(&dir.path)?.sync_all());
            synced.map_err(|source| OpenError::Directory { what: "syncing", path, source })?;
            Ok(uuid)
        }
        Who::New => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let created_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
            let volume = crate::mirror::fresh_id();
            write_identity(&dir.path, &Identity { log_id: *log_id, volume, created_ms })?;
            Ok(volume)
        }
    }
}

/// The running log's volumes.
pub(crate) struct VolumeSet {
    pub(crate) disks: Arc<VolumeDisks>,
    pub(crate) log_id: Uuid,
    pub(crate) backend: BackendChoice,
}

/// Gives the log thread an order.
pub(crate) type Ask<'a> = &'a dyn Fn(VolumeOrder) -> Receiver<Result<u8, VolumeError>>;

pub(crate) fn answered(answer: &Receiver<Result<u8, VolumeError>>) -> Result<u8, OpenError> {
    match answer.recv_timeout(ANSWER_PATIENCE) {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(OpenError::MirrorBusy(
            "the change is not written down yet: the log's disk hangs or is full, or the log has stopped; what it came to is in its status"
                .to_owned(),
        )),
    }
}

impl VolumeSet {
    /// The volume of a directory, if it is one that is there.
    pub(crate) fn of_dir(&self, dir: &Path, view: &View) -> Option<(u8, VolumeDisk)> {
        let number = view.volumes().number_of_dir(&dir.display().to_string())?;
        Some((number, self.disks.get(number)?))
    }

    /// Refuses a directory that cannot be a volume before anything is done to it.
    pub(crate) fn may_join(&self, dir: &Path, view: &View, has_wal: bool) -> Result<(), OpenError> {
        let found = look(dir, has_wal, true)?;
        let who = decide(&found, &self.log_id, &view.volumes());
        who.map(drop).map_err(|what| OpenError::VolumeRefused { path: dir.to_owned(), what })
    }

    /// A directory becomes a volume, or is the one it was.
    pub(crate) fn join(&self, dir: VolumeDir, view: &View, ask: Ask<'_>) -> Result<u8, OpenError> {
        let uuid = identify(&dir, &self.log_id, view, true)?;
        let name = dir.path.display().to_string();
        let number = answered(&ask(VolumeOrder::Found { uuid, name }))?;
        self.disks.add(number, dir.disk);
        Ok(number)
    }

    /// Lets go of a disk, so that it can be taken out. `sorter_done` says when the sorter has closed its files.
    pub(crate) fn detach(
        &self,
        number: u8,
        control: &MirrorControl,
        ask: Ask<'_>,
        let_go: &dyn Fn() -> Receiver<()>,
        view: &View,
    ) -> Result<(), OpenError> {
        let name = view.volumes().get(number).map(|volume| volume.name.clone());
        let name = name.ok_or(VolumeError::Unknown(number))?;
        let copies = control.status().copies;
        let copy = copies.iter().find(|copy| copy.name == name && copy.state != CopyState::Offline);
        if let Some(copy) = copy {
            let refused = "the log cannot do without this copy now: it is the only whole one";
            match control.detach(copy.copy_id).recv_timeout(ANSWER_PATIENCE) {
                Ok(true) => {}
                _ => return Err(OpenError::MirrorBusy(refused.to_owned())),
            }
        }
        answered(&ask(VolumeOrder::Lost { number }))?;
        self.disks.remove(number);
        // The channel closes. A sorter that hangs on this very disk is no reason to say that the log still uses it.
        let _ = let_go().recv_timeout(ANSWER_PATIENCE);
        Ok(())
    }

    /// How they all are.
    pub(crate) fn status(control: &MirrorControl, view: &View) -> Vec<VolumeStatus> {
        let copies = control.status().copies;
        let places = Arc::clone(&view.tables().cold);
        let volumes = view.volumes();
        let mut all: Vec<VolumeStatus> = Vec::new();
        for (number, volume) in volumes.iter() {
            let wal = copies.iter().find(|copy| !volume.name.is_empty() && copy.name == volume.name);
            let here = places.iter().filter(|place| place.entry.holders().contains(&number));
            let only = |holders: &[u8]| !holders.iter().any(|other| *other != number && volumes.is_online(*other));
            all.push(VolumeStatus {
                number,
                uuid: volume.uuid,
                dir: volume.name.clone(),
                usage: volume.usage,
                health: volume.health,
                reason: volume.reason.clone(),
                segments: here.clone().count() as u64,
                bytes: here.clone().map(|place| place.entry.stored_bytes()).sum(),
                only_copies: here.filter(|place| only(place.entry.holders())).count() as u64,
                errors: volume.errors,
                bad_copies: volume.bad_copies,
                free_bytes: volume.free_bytes,
                wal: wal.map(|copy| copy.state),
            });
        }
        all
    }
}

/// A channel for one answer.
pub(crate) fn order(what: VolumeOrder, push: impl FnOnce(Ordered)) -> Receiver<Result<u8, VolumeError>> {
    let (answer, answered) = channel();
    push((what, answer));
    answered
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cold::manifest::VolumeEntry;

    const LOG: Uuid = [1; 16];

    fn known(usage: VolumeUse, there: bool) -> Volumes {
        let mut volumes = Volumes::default();
        volumes.known(0, &VolumeEntry { usage, uuid: [5; 16], created_ms: 0 });
        if there {
            volumes.found(0, "a");
        }
        volumes
    }

    fn found(identity: Option<(u8, u8)>, has_cold: bool, has_wal: bool) -> Found {
        let identity = identity.map(|(log, volume)| Ok(Identity { log_id: [log; 16], volume: [volume; 16], created_ms: 0 }));
        Found { identity, has_cold, has_wal, on_purpose: false }
    }

    #[test]
    fn who_a_directory_is_is_told_by_its_identity_and_the_table_alone() {
        let (there, away) = (known(VolumeUse::Active, true), known(VolumeUse::Active, false));
        let (gone, none) = (known(VolumeUse::Gone, false), Volumes::default());
        let is = |uuid: u8| Ok(Who::Is([uuid; 16]));
        for (what, volumes, expected) in [
            (found(Some((1, 5)), true, false), &away, is(5)),
            (found(Some((1, 5)), true, false), &gone, Err("detached for good")),
            (found(Some((2, 5)), false, false), &away, Err("wrong disk")),
            (found(Some((1, 6)), false, false), &there, is(6)),
            (found(Some((1, 6)), true, false), &there, Err("does not know it")),
            (found(Some((1, 6)), true, true), &none, is(6)),
            (found(None, false, false), &there, Ok(Who::New)),
            (found(None, false, false), &away, Err("may not be mounted")),
            (found(None, false, true), &away, Ok(Who::New)),
            (found(None, false, false), &gone, Ok(Who::New)),
            (found(None, true, true), &none, Ok(Who::New)),
            (found(None, true, true), &there, Err("no file `volume`")),
            (found(None, true, false), &none, Err("no file `volume`")),
            (Found { identity: Some(Err(NoIdentity::Damaged)), ..found(None, true, true) }, &away, Err("damaged")),
            (Found { on_purpose: true, ..found(None, false, false) }, &away, Ok(Who::New)),
        ] {
            match (decide(&what, &LOG, volumes), expected) {
                (Ok(who), Ok(expected)) => assert_eq!(who, expected, "{what:?}"),
                (Err(why), Err(part)) => assert!(why.contains(part), "{what:?}: {why}"),
                (decided, expected) => panic!("{what:?}: {decided:?} instead of {expected:?}"),
            }
        }
    }
}
