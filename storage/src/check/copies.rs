//! Which of the directories hold the log, and its files as a node would read them: from either copy, where there are two in step.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::disk::ReadOnlyDisk;
use super::report::CheckReport;
use crate::disk::mirror::{Member, MirrorDisk, MirrorOptions, MirrorPlan};
use crate::disk::{Disk, DiskRead, FileId, Reader};
use crate::format::superblock::{Peer, Superblock};
use crate::recovery::pair::{Counts, who_counts};
use crate::replace::superblock_in;

/// The directories with the log's copies.
#[derive(Clone, Debug)]
pub(super) struct Copies {
    /// The one that counts, or is as good as the other one.
    pub(super) main: PathBuf,
    /// The other one, if it is in step.
    pub(super) other: Option<PathBuf>,
}

impl Copies {
    /// `dir` and whichever of the `others` is the other copy of its log.
    pub(super) fn find(dir: &Path, others: &[PathBuf], report: &mut CheckReport) -> Copies {
        let own = superblock_in(dir).ok().flatten();
        let is_copy = |other: &Superblock| own.is_none_or(|own| own.volume_id == other.volume_id);
        let mut found: Vec<(&PathBuf, Superblock)> = others
            .iter()
            .filter_map(|other| Some((other, superblock_in(other).ok()??)))
            .filter(|(_, superblock)| is_copy(superblock))
            .collect();
        // Its partner first; a former copy may lie on another disk.
        found.sort_by_key(|(_, other)| own.is_none_or(|own| own.peer_id != other.copy_id));
        let alone = Copies { main: dir.to_owned(), other: None };
        let Some((other, theirs)) = found.first() else { return alone };
        for (former, _) in &found[1..] {
            report.note(former.join("superblock").display().to_string(), "a former copy of the log, which is not looked at");
        }
        let stale = "a copy that the log has let go of, or is filling: it is not looked at, and the next start fills it anew";
        let label = other.join("superblock").display().to_string();
        let Some(own) = own else {
            report.damage("superblock", None, format!("it is lost; the copy in {} is looked at instead", other.display()));
            return Copies { main: (*other).clone(), other: None };
        };
        match who_counts(&own, theirs) {
            Ok(Counts::Both) => {
                // The newer superblock in front, as in a node.
                let (mut main, mut other) = (dir.to_owned(), (*other).clone());
                if theirs.generation > own.generation {
                    std::mem::swap(&mut main, &mut other);
                }
                Copies { main, other: Some(other) }
            }
            Ok(Counts::First) => {
                report.note(label, stale);
                alone
            }
            Ok(Counts::Second) => {
                report.note("superblock", stale);
                Copies { main: (*other).clone(), other: None }
            }
            Err(error) => {
                report.damage(label, None, format!("a node does not open these two copies together: {error}"));
                alone
            }
        }
    }

    /// Whether one of two copies was not given.
    pub(super) fn lacks_one(&self, superblock: &Superblock) -> bool {
        superblock.peer == Peer::InStep && self.other.is_none()
    }

    /// All of them, that counts in front.
    pub(super) fn all(&self) -> Vec<&Path> {
        std::iter::once(&self.main).chain(&self.other).map(PathBuf::as_path).collect()
    }

    /// Each of them, and where the other one is.
    pub(super) fn each(&self) -> Vec<(&Path, Option<&Path>)> {
        let mut each = vec![(self.main.as_path(), self.other.as_deref())];
        each.extend(self.other.as_deref().map(|other| (other, Some(self.main.as_path()))));
        each
    }

    /// What a node would read.
    pub(super) fn disk(&self) -> Box<dyn Disk> {
        let Some(other) = &self.other else { return Box::new(ReadOnlyDisk::new(&self.main)) };
        let superblock = superblock_in(&self.main).ok().flatten();
        let member = |dir: &Path, instead: &Path| Member {
            disk: Box::new(ReadOnlyDisk::with_other(dir, instead)),
            reader: Arc::new(NoReader),
            copy_id: superblock_in(dir).ok().flatten().map_or([0; 16], |superblock| superblock.copy_id),
            name: dir.display().to_string(),
            keep: Box::new(()),
        };
        let in_step = vec![member(&self.main, other), member(other, &self.main)];
        let plan = MirrorPlan { in_step, peer_gone: None, gone_reason: None, superblock, lags: false };
        let options = MirrorOptions { patience: Duration::MAX, fill_bytes_per_s: 0, clock: Box::new(|| Duration::ZERO) };
        Box::new(MirrorDisk::new(plan, options))
    }

    /// Segment files that only one of two copies has whole.
    pub(super) fn missing_files(&self, name: &dyn Fn(&Path, String) -> String, report: &mut CheckReport) {
        let Some(other) = &self.other else { return };
        let mut files: Vec<u32> = Vec::new();
        for dir in self.all() {
            files.extend(ReadOnlyDisk::new(dir).list_segments().unwrap_or_default());
        }
        files.sort_unstable();
        files.dedup();
        for file in files.into_iter().map(FileId::Segment) {
            let size = |dir: &Path| ReadOnlyDisk::new(dir).size(file).ok().flatten().unwrap_or(0);
            let (here, there) = (size(&self.main), size(other));
            let short = if here < there { &self.main } else { other };
            if here != there {
                let what = "it is missing or too short; the other copy has it, and the next start copies it";
                report.damage(name(short, file.to_string()), None, what);
            }
        }
    }
}

/// Nobody reads in the background here.
struct NoReader;

impl Reader for NoReader {
    fn read(&self, request: DiskRead) -> Result<(), DiskRead> {
        Err(request)
    }

    fn forget(&self, _: FileId) {}
}
