//! Volumes of a real machine as copies of one log: opened, locked and told apart when the log starts, attached and let go of
//! while it runs. What the copies do is decided in `recovery/pair.rs` and done in `disk/mirror/`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::LogConfig;
use crate::core::SEGMENTS_PER_SORT;
use crate::disk::mirror::{Member, MirrorControl, MirrorDisk, MirrorOptions, prepare_target};
use crate::disk::volumes::VolumeDisk;
use crate::disk::{self, BackendChoice, DiskProbe, OpenedDisk};
use crate::format::Uuid;
use crate::lock::{DirLock, sync_files};
use crate::recovery::pair::{Candidate, Target, may_be_filled, pair};
use crate::report::OpenError;
use crate::volume_dir::VolumeDir;

/// How long to wait for the log thread to take or let go of a copy.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);

/// A log's copies, opened.
pub(crate) struct OpenedMirror {
    pub(crate) disk: MirrorDisk,
    /// Of the first directory's disk.
    pub(crate) probe: DiskProbe,
    /// To be filled when the log is recovered.
    pub(crate) target: Target,
    /// Directories that can be volumes of the cold tier: the one whose WAL counts in front.
    pub(crate) dirs: Vec<VolumeDir>,
}

/// The running log's copies.
pub(crate) struct Mirror {
    pub(crate) control: Arc<MirrorControl>,
    pub(crate) dir: PathBuf,
    pub(crate) backend: BackendChoice,
    /// For the cold segments in the same directory: what is kept free.
    pub(crate) headroom: u64,
}

pub(crate) fn fresh_id() -> Uuid {
    uuid::Uuid::new_v4().into_bytes()
}

/// Opens the volume, and the second one where it is configured.
pub(crate) fn open(config: &LogConfig, start: Instant) -> Result<OpenedMirror, OpenError> {
    check_dirs(config)?;
    let headroom = headroom(config);
    let mut dirs = Vec::new();
    let mut probe = None;
    let mut open = |dir: &Path| match open_member(dir, config.backend, headroom, None) {
        Ok((member, volume, found)) => {
            probe.get_or_insert(found);
            dirs.push(volume);
            Ok(Ok(member))
        }
        // With a second copy the log can do without this one.
        Err(error @ OpenError::InUse { .. }) => Err(error),
        Err(error) if config.mirror_dir.is_none() => Err(error),
        Err(error) => Ok(Err(error.to_string())),
    };
    let first = Candidate { name: config.dir.display().to_string(), member: open(&config.dir)? };
    let mut candidate = None;
    if let Some(dir) = &config.mirror_dir {
        let member = open(dir)?;
        if member.is_ok() && first.member.is_ok() {
            warn_of_one_disk(&config.dir, dir);
        }
        candidate = Some(Candidate { name: dir.display().to_string(), member });
    }
    let (plan, target) = pair(first, candidate, config.accept_degraded, [fresh_id(), fresh_id()])?.into_parts();
    let counts = plan.in_step.first().map(|member| member.name.clone());
    dirs.sort_by_key(|dir| Some(dir.path.display().to_string()) != counts);
    let options = MirrorOptions {
        patience: config.mirror_patience,
        fill_bytes_per_s: config.mirror_fill_bytes_per_s,
        clock: Box::new(move || start.elapsed()),
    };
    let probe = probe.ok_or_else(|| OpenError::MirrorMissing { what: "neither directory can be opened".to_owned() })?;
    Ok(OpenedMirror { disk: MirrorDisk::new(plan, options), probe, target, dirs })
}

/// No two of the directories may be one.
fn check_dirs(config: &LogConfig) -> Result<(), OpenError> {
    let mut dirs = vec![&config.dir];
    dirs.extend(&config.mirror_dir);
    dirs.extend(&config.cold_dirs);
    for (n, dir) in dirs.iter().enumerate() {
        if dirs[..n].contains(dir) {
            let what = format!("{} is given twice: each volume must be a directory of its own, on another disk", dir.display());
            return Err(OpenError::BadConfig(what));
        }
    }
    if config.cold.is_none() && !config.cold_dirs.is_empty() {
        return Err(OpenError::BadConfig("cold_dirs hold cold segments, and this log has no cold tier".to_owned()));
    }
    Ok(())
}

/// One sort's output, should nothing of it compress.
pub(crate) fn headroom(config: &LogConfig) -> u64 {
    config.cold.as_ref().map_or(0, |_| SEGMENTS_PER_SORT as u64 * config.segment_bytes)
}

/// What a copy of the WAL holds on to.
struct WalUse {
    #[expect(dead_code, reason = "held, not used")]
    lock: Arc<DirLock>,
    #[expect(dead_code, reason = "held, not used")]
    in_use: Arc<()>,
}

/// Opens a directory for a copy of the WAL and, if the log has a cold tier, as a volume. `held`: its lock, if this log has it already.
fn open_member(
    dir: &Path,
    backend: BackendChoice,
    headroom: u64,
    held: Option<Arc<DirLock>>,
) -> Result<(Member, VolumeDir, DiskProbe), OpenError> {
    let lock = match held {
        Some(lock) => lock,
        None => Arc::new(DirLock::acquire(dir)?),
    };
    let OpenedDisk { disk, reader, cold, probe } = disk::open_with_headroom(dir, backend, headroom)?;
    sync_files(dir)?;
    let name = dir.display().to_string();
    let in_use = Arc::new(());
    let wal = Arc::downgrade(&in_use);
    let keep = Box::new(WalUse { lock: Arc::clone(&lock), in_use });
    let member = Member { disk, reader: Arc::clone(&reader), copy_id: [0; 16], name, keep };
    let disk = VolumeDisk { reader, open: Some(cold), keep: lock, wal };
    Ok((member, VolumeDir { path: dir.to_owned(), disk, has_wal: true }, probe))
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
    /// `held`: the disk of the directory, where it is a volume already.
    pub(crate) fn attach(&self, dir: &Path, held: Option<VolumeDisk>) -> Result<VolumeDir, OpenError> {
        let busy = |what: &str| Err(OpenError::MirrorBusy(what.to_owned()));
        let Some(survivor) = self.control.survivor() else {
            return busy("the log has two copies, or is just letting go of one: detach one first, or try again");
        };
        if held.as_ref().is_some_and(|disk| disk.wal.strong_count() > 0) {
            return busy("what was written to this copy before is not over yet: try again");
        }
        let lock = held.and_then(|disk| disk.keep.downcast::<DirLock>().ok());
        let (mut member, volume, _) = open_member(dir, self.backend, self.headroom, lock)?;
        warn_of_one_disk(&self.dir, dir);
        let generation = may_be_filled(member.disk.as_mut(), &survivor, &member.name)?;
        self.fill(member, generation)?;
        Ok(volume)
    }

    /// Opens a directory that a copy is going to be made in, whoever else is a copy now. Answers the generation of its superblock.
    pub(crate) fn prepare(&self, dir: &Path, held: Option<Arc<DirLock>>) -> Result<(Member, VolumeDir, u64), OpenError> {
        let image = self.control.image();
        let image = image.ok_or_else(|| OpenError::MirrorBusy("the log has no superblock yet: try again".to_owned()))?;
        let (mut member, volume, _) = open_member(dir, self.backend, self.headroom, held)?;
        warn_of_one_disk(&self.dir, dir);
        let generation = may_be_filled(member.disk.as_mut(), &image, &member.name)?;
        Ok((member, volume, generation))
    }

    /// Makes what was opened the second copy: filling begins.
    pub(crate) fn fill(&self, mut member: Member, generation: u64) -> Result<(), OpenError> {
        let busy = |what: &str| Err(OpenError::MirrorBusy(what.to_owned()));
        let Some(survivor) = self.control.survivor() else { return busy("the log has two copies already") };
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
