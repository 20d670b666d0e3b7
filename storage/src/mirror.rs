//! Volumes of a real machine as copies of one log: opened, locked and told apart when the log starts, attached and let go of
//! while it runs. What the copies do is decided in `recovery/pair.rs` and done in `disk/mirror/`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::LogConfig;
use crate::core::SEGMENTS_PER_SORT;
use crate::disk::mirror::{Member, MirrorControl, MirrorDisk, MirrorOptions, prepare_target};
use crate::disk::{self, BackendChoice, ColdOpener, DiskProbe, OpenedDisk};
use crate::format::Uuid;
use crate::lock::{DirLock, sync_files};
use crate::recovery::pair::{Candidate, Target, may_be_filled, pair};
use crate::report::OpenError;

/// How long to wait for the log thread to take or let go of a copy.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);

/// A log's copies, opened.
pub(crate) struct OpenedMirror {
    pub(crate) disk: MirrorDisk,
    /// Of the first directory's disk.
    pub(crate) probe: DiskProbe,
    /// To be filled when the log is recovered.
    pub(crate) target: Target,
    /// Makes the store of the cold tier, in the first directory.
    pub(crate) cold: Option<ColdOpener>,
}

/// The running log's copies.
pub(crate) struct Mirror {
    pub(crate) control: Arc<MirrorControl>,
    pub(crate) dir: PathBuf,
    pub(crate) backend: BackendChoice,
    /// There is a cold tier, of which nobody keeps a second copy.
    pub(crate) tiered: bool,
}

const ONE_COPY_YET: &str = "the cold tier keeps one copy yet: a log with one cannot have a mirror_dir; do without the cold tier or without the second copy";

pub(crate) fn fresh_id() -> Uuid {
    uuid::Uuid::new_v4().into_bytes()
}

/// Opens the volume, and the second one where it is configured.
pub(crate) fn open(config: &LogConfig, start: Instant) -> Result<OpenedMirror, OpenError> {
    if config.mirror_dir.is_some() && config.cold.is_some() {
        return Err(OpenError::BadConfig(ONE_COPY_YET.to_owned()));
    }
    // One sort's output, should nothing of it compress.
    let headroom = config.cold.as_ref().map_or(0, |_| SEGMENTS_PER_SORT as u64 * config.segment_bytes);
    let mut cold = None;
    let (first, mut probe) = match open_member(&config.dir, config.backend, headroom) {
        Ok((member, opener, probe)) => {
            cold = Some(opener);
            (Ok(member), Some(probe))
        }
        // With a second copy the log can do without this one.
        Err(error @ OpenError::InUse { .. }) => return Err(error),
        Err(error) if config.mirror_dir.is_none() => return Err(error),
        Err(error) => (Err(error.to_string()), None),
    };
    let mut candidate = None;
    if let Some(dir) = &config.mirror_dir {
        if dir == &config.dir {
            return Err(OpenError::BadConfig("mirror_dir must be another directory than dir, on another disk".to_owned()));
        }
        let member = match open_member(dir, config.backend, 0) {
            Ok((member, _, found)) => {
                probe.get_or_insert(found);
                warn_of_one_disk(&config.dir, dir);
                Ok(member)
            }
            Err(error @ OpenError::InUse { .. }) => return Err(error),
            Err(error) => Err(error.to_string()),
        };
        candidate = Some(Candidate { name: dir.display().to_string(), member });
    }
    let first = Candidate { name: config.dir.display().to_string(), member: first };
    let (plan, target) = pair(first, candidate, config.accept_degraded, [fresh_id(), fresh_id()])?.into_parts();
    let options = MirrorOptions {
        patience: config.mirror_patience,
        fill_bytes_per_s: config.mirror_fill_bytes_per_s,
        clock: Box::new(move || start.elapsed()),
    };
    let probe = probe.ok_or_else(|| OpenError::MirrorMissing { what: "neither directory can be opened".to_owned() })?;
    Ok(OpenedMirror { disk: MirrorDisk::new(plan, options), probe, target, cold })
}

fn open_member(dir: &Path, backend: BackendChoice, headroom: u64) -> Result<(Member, ColdOpener, DiskProbe), OpenError> {
    let lock = DirLock::acquire(dir)?;
    let OpenedDisk { disk, reader, cold, probe } = disk::open_with_headroom(dir, backend, headroom)?;
    sync_files(dir)?;
    let name = dir.display().to_string();
    Ok((Member { disk, reader, copy_id: [0; 16], name, keep: Box::new(lock) }, cold, probe))
}

fn warn_of_one_disk(dir: &Path, mirror_dir: &Path) {
    let device = |path: &Path| rustix::fs::stat(path).map(|stat| stat.st_dev).ok();
    if device(dir).is_some() && device(dir) == device(mirror_dir) {
        tracing::warn!(
            dir = %dir.display(),
            mirror_dir = %mirror_dir.display(),
            "both copies of the log are on one file system: this survives no dead disk"
        );
    }
}

impl Mirror {
    pub(crate) fn attach(&self, dir: &Path) -> Result<(), OpenError> {
        if self.tiered {
            return Err(OpenError::BadConfig(ONE_COPY_YET.to_owned()));
        }
        let busy = |what: &str| Err(OpenError::MirrorBusy(what.to_owned()));
        let Some(survivor) = self.control.survivor() else {
            return busy("the log has two copies, or is just letting go of one: detach one first, or try again");
        };
        let (mut member, ..) = open_member(dir, self.backend, 0)?;
        warn_of_one_disk(&self.dir, dir);
        let generation = may_be_filled(member.disk.as_mut(), &survivor, &member.name)?;
        member.copy_id = fresh_id();
        let generation = prepare_target(member.disk.as_mut(), &survivor, member.copy_id, generation)?;
        match self.control.attach(member, generation).recv_timeout(ANSWER_PATIENCE) {
            Ok(true) => Ok(()),
            Ok(false) => busy("another copy was attached meanwhile"),
            Err(_) => busy("the log thread does not answer: its disk hangs, or it has stopped"),
        }
    }

    pub(crate) fn detach(&self, copy_id: Uuid) -> Result<(), OpenError> {
        match self.control.detach(copy_id).recv_timeout(ANSWER_PATIENCE) {
            Ok(true) => Ok(()),
            Ok(false) => {
                Err(OpenError::MirrorBusy("the log cannot do without this copy now: it is the only whole one".to_owned()))
            }
            Err(_) => Err(OpenError::MirrorBusy("the log thread does not answer: its disk hangs, or it has stopped".to_owned())),
        }
    }
}
