//! A volume's files for reading only. What recovery would write goes nowhere.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::disk::{AlignedBuf, Disk, DiskCompletion, DiskError, DiskOp, DiskVerb, FileId, Waker};

/// Open files: a check reads one segment after the other, and the snapshot of the one behind it.
const FILES_OPEN_MAX: usize = 4;

pub(crate) struct ReadOnlyDisk {
    root: PathBuf,
    /// Where segment files are that are missing or too short here: a node would copy them first.
    other: Option<PathBuf>,
    open: BTreeMap<FileId, File>,
}

impl ReadOnlyDisk {
    pub(crate) fn new(root: &Path) -> ReadOnlyDisk {
        ReadOnlyDisk { root: root.to_owned(), other: None, open: BTreeMap::new() }
    }

    /// One copy of a log, and where the other one is.
    pub(crate) fn with_other(root: &Path, other: &Path) -> ReadOnlyDisk {
        ReadOnlyDisk { other: Some(other.to_owned()), ..ReadOnlyDisk::new(root) }
    }

    fn path(&self, file: FileId) -> PathBuf {
        let own = self.root.join(file.relative_path());
        let Some(other) = self.other.as_ref().filter(|_| matches!(file, FileId::Segment(_))) else { return own };
        let other = other.join(file.relative_path());
        let bytes = |path: &Path| std::fs::metadata(path).map_or(0, |metadata| metadata.len());
        if bytes(&own) < bytes(&other) { other } else { own }
    }

    fn file(&mut self, file: FileId) -> Result<&File, DiskError> {
        if !self.open.contains_key(&file) {
            let path = self.path(file);
            let opened = File::open(path).map_err(|error| DiskError::from_io(DiskVerb::Open, file, &error))?;
            if self.open.len() == FILES_OPEN_MAX {
                self.open.pop_first();
            }
            self.open.insert(file, opened);
        }
        Ok(&self.open[&file])
    }
}

impl Disk for ReadOnlyDisk {
    fn submit(&mut self, _: u64, _: DiskOp) {
        unreachable!("a check starts no engine, and only an engine submits");
    }

    fn poll(&mut self, _: Option<Duration>, _: &mut Vec<DiskCompletion>) {}

    fn waker(&self) -> Waker {
        Waker::noop()
    }

    fn list_segments(&mut self) -> Result<Vec<u32>, DiskError> {
        let failed = |error: std::io::Error| {
            let errno = error.raw_os_error().map_or(rustix::io::Errno::IO, rustix::io::Errno::from_raw_os_error);
            DiskError::Directory { verb: DiskVerb::List, errno }
        };
        let mut numbers = Vec::new();
        for root in std::iter::once(&self.root).chain(&self.other) {
            let entries = match std::fs::read_dir(root.join("wal")) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                entries => entries.map_err(failed)?,
            };
            for entry in entries {
                numbers.extend(entry.map_err(failed)?.file_name().to_str().and_then(FileId::segment_number));
            }
        }
        numbers.sort_unstable();
        numbers.dedup();
        Ok(numbers)
    }

    fn size(&mut self, file: FileId) -> Result<Option<u64>, DiskError> {
        match std::fs::metadata(self.path(file)) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(DiskError::from_io(DiskVerb::Stat, file, &error)),
        }
    }

    /// Nothing is written here, so it does not matter what may be.
    fn links(&mut self, _: FileId) -> Result<u64, DiskError> {
        Ok(1)
    }

    fn read(&mut self, file: FileId, at: u64, buf: &mut AlignedBuf, bytes: usize) -> Result<(), DiskError> {
        match self.file(file)?.read_exact_at(&mut buf[..bytes], at) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                Err(DiskError::Short { verb: DiskVerb::Read, file, at, wanted: bytes as u64, done: 0 })
            }
            Err(error) => Err(DiskError::from_io(DiskVerb::Read, file, &error)),
        }
    }

    /// Recovery raises the epoch before it ends; here that changes nothing.
    fn write_now(&mut self, _: FileId, _: u64, _: &AlignedBuf, _: usize) -> Result<(), DiskError> {
        Ok(())
    }

    fn remove(&mut self, file: FileId) -> Result<(), DiskError> {
        Err(DiskError::Closed { verb: DiskVerb::Remove, file })
    }
}
