//! What this machine's disk and kernel offer, found out at start-up by trying: nothing here is believed from a version number.
//!
//! A file of its own is made in the data directory, written to and removed. A full disk does not stop a node from starting:
//! then the cost of a write stays unknown; and where there is no room even for a file's name, one of the log's files is read instead.

use std::fmt;
use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, MemfdFlags, Mode, OFlags};
use rustix::io::{Errno, ReadWriteFlags};

use super::files::DsyncMode;
use super::{AlignedBuf, BLOCK_BYTES, BackendChoice, DiskError, DiskVerb, uring};

/// Which code drives the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// io_uring.
    Uring,
    /// Plain system calls on a helper thread.
    Plain,
    /// The faulty disk of the simulator.
    Simulated,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Uring => "io_uring",
            Self::Plain => "plain",
            Self::Simulated => "simulated",
        })
    }
}

/// What was found. `Display` is one line for the log and the status.
#[derive(Clone, Debug)]
pub struct DiskProbe {
    /// What is used.
    pub backend: Backend,
    /// Why io_uring is not, where it was refused.
    pub uring_refused: Option<&'static str>,
    /// Whether writes and reads go around the page cache (O_DIRECT).
    pub direct: bool,
    /// How writes are made durable.
    pub dsync_mode: DsyncMode,
    /// Name of the file system.
    pub filesystem: String,
    /// Release of the kernel.
    pub kernel: String,
    /// Durable writes of 4 KiB that were timed; 0 where there was no space to try.
    pub write_4k_samples: u32,
    /// Median of them, in µs.
    pub write_4k_p50_us: u64,
    /// 99th percentile of them, in µs.
    pub write_4k_p99_us: u64,
    /// Slowest of them, in µs.
    pub write_4k_max_us: u64,
}

impl fmt::Display for DiskProbe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "disk backend {}", self.backend)?;
        if let Some(reason) = self.uring_refused {
            write!(f, " (no io_uring: {reason})")?;
        }
        let direct = if self.direct { "O_DIRECT" } else { "no O_DIRECT" };
        write!(f, ", {direct}, {}, {} on Linux {}, durable 4 KiB write ", self.dsync_mode, self.filesystem, self.kernel)?;
        match self.write_4k_samples {
            0 => f.write_str("not measured (no space)"),
            n => {
                let (p50, p99, max) = (self.write_4k_p50_us, self.write_4k_p99_us, self.write_4k_max_us);
                write!(f, "{p50} µs (p99 {p99}, max {max}, {n} tried)")
            }
        }
    }
}

const SAMPLES: usize = 64;
/// On a slow disk fewer samples have to do.
const SAMPLING_MAX: Duration = Duration::from_millis(500);
const FILE_BYTES: usize = SAMPLES * BLOCK_BYTES;
const FILE_NAME: &str = ".probe";

/// Tries the data directory. Fails where the directory cannot be written to, or `choice` asks for what is not there.
pub(super) fn run(root: &Path, choice: BackendChoice) -> Result<DiskProbe, DiskError> {
    let uring_refused = if choice == BackendChoice::Plain { None } else { uring::refused() };
    let backend = match (choice, uring_refused) {
        (BackendChoice::Uring, Some(reason)) => return Err(DiskError::NoUring { reason }),
        (BackendChoice::Plain, _) | (_, Some(_)) => Backend::Plain,
        (_, None) => Backend::Uring,
    };
    let (direct, dsync_mode, mut times) = match ProbeFile::create(root) {
        Ok(file) => {
            let direct = file.direct_works()?;
            let dsync_mode = file.dsync_mode(direct)?;
            (direct, dsync_mode, file.time_writes(direct, dsync_mode)?)
        }
        Err(Errno::NOSPC | Errno::DQUOT) => (direct_reads_work(root)?, dsync_mode_of_kernel(), Vec::new()),
        Err(errno) => return Err(failed(errno)),
    };
    times.sort_unstable();
    let at = |percent: usize| times.get((times.len() * percent / 100).min(times.len().saturating_sub(1))).copied().unwrap_or(0);
    Ok(DiskProbe {
        backend,
        uring_refused,
        direct,
        dsync_mode,
        filesystem: filesystem(root)?,
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        write_4k_samples: times.len() as u32,
        write_4k_p50_us: at(50),
        write_4k_p99_us: at(99),
        write_4k_max_us: at(100),
    })
}

impl DiskProbe {
    /// What the simulated disk says of itself.
    #[must_use]
    pub fn simulated() -> Self {
        Self {
            backend: Backend::Simulated,
            uring_refused: None,
            direct: true,
            dsync_mode: DsyncMode::RwfDsync,
            filesystem: "simulated".into(),
            kernel: "simulated".into(),
            write_4k_samples: 0,
            write_4k_p50_us: 0,
            write_4k_p99_us: 0,
            write_4k_max_us: 0,
        }
    }
}

fn failed(errno: Errno) -> DiskError {
    DiskError::Directory { verb: DiskVerb::Probe, errno }
}

/// The file that is tried; removed when dropped.
struct ProbeFile {
    path: PathBuf,
    block: AlignedBuf,
}

impl ProbeFile {
    fn create(root: &Path) -> Result<Self, Errno> {
        let path = root.join(FILE_NAME);
        let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::RDWR | OFlags::CLOEXEC;
        rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR)?;
        Ok(Self { path, block: AlignedBuf::zeroed(BLOCK_BYTES) })
    }

    fn open(&self, flags: OFlags) -> Result<OwnedFd, Errno> {
        rustix::fs::open(&self.path, flags | OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
    }

    fn write(&self, fd: &OwnedFd, at: u64, flags: ReadWriteFlags) -> Result<usize, Errno> {
        rustix::io::pwritev2(fd, &[IoSlice::new(&self.block)], at, flags)
    }

    /// Some file systems refuse O_DIRECT when opening, some only when writing.
    fn direct_works(&self) -> Result<bool, DiskError> {
        let fd = match self.open(OFlags::DIRECT) {
            Ok(fd) => fd,
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(false),
            Err(errno) => return Err(failed(errno)),
        };
        match self.write(&fd, 0, ReadWriteFlags::empty()) {
            Ok(_) | Err(Errno::NOSPC | Errno::DQUOT) => Ok(true),
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(false),
            Err(errno) => Err(failed(errno)),
        }
    }

    fn dsync_mode(&self, direct: bool) -> Result<DsyncMode, DiskError> {
        let flags = direct_flag(direct);
        let fd = self.open(flags).map_err(failed)?;
        match self.write(&fd, 0, ReadWriteFlags::DSYNC) {
            Ok(_) | Err(Errno::NOSPC | Errno::DQUOT) => return Ok(DsyncMode::RwfDsync),
            Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => {}
            Err(errno) => return Err(failed(errno)),
        }
        match self.open(flags | OFlags::DSYNC) {
            Ok(_) => Ok(DsyncMode::ODsync),
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(DsyncMode::Fdatasync),
            Err(errno) => Err(failed(errno)),
        }
    }

    /// Times durable writes to blocks that are zero-filled as the log's are, in µs. None where the disk is full.
    fn time_writes(&self, direct: bool, mode: DsyncMode) -> Result<Vec<u64>, DiskError> {
        let dsync = if mode == DsyncMode::ODsync { OFlags::DSYNC } else { OFlags::empty() };
        let fd = self.open(direct_flag(direct) | dsync).map_err(failed)?;
        // Refused where not supported; then the writes themselves find out whether there is space.
        let _ = rustix::fs::fallocate(&fd, FallocateFlags::empty(), 0, FILE_BYTES as u64);
        let fill = || -> Result<(), Errno> {
            for block in 0..SAMPLES {
                self.write(&fd, (block * BLOCK_BYTES) as u64, ReadWriteFlags::empty())?;
            }
            rustix::fs::fsync(&fd)
        };
        match fill() {
            Ok(()) => {}
            Err(Errno::NOSPC | Errno::DQUOT) => return Ok(Vec::new()),
            Err(errno) => return Err(failed(errno)),
        }
        let flags = if mode == DsyncMode::RwfDsync { ReadWriteFlags::DSYNC } else { ReadWriteFlags::empty() };
        let (mut times, begin) = (Vec::with_capacity(SAMPLES), Instant::now());
        for block in 0..SAMPLES {
            let start = Instant::now();
            self.write(&fd, (block * BLOCK_BYTES) as u64, flags).map_err(failed)?;
            if mode == DsyncMode::Fdatasync {
                rustix::fs::fdatasync(&fd).map_err(failed)?;
            }
            times.push(start.elapsed().as_micros() as u64);
            if begin.elapsed() > SAMPLING_MAX {
                break;
            }
        }
        Ok(times)
    }
}

impl Drop for ProbeFile {
    fn drop(&mut self) {
        // What is left of it is overwritten by the next start.
        let _ = rustix::fs::unlink(&self.path);
    }
}

/// Whether O_DIRECT works on a file that is there already. Without one there is nothing to serve: the disk is full.
fn direct_reads_work(root: &Path) -> Result<bool, DiskError> {
    let is_readable = |path: &PathBuf| path.metadata().is_ok_and(|found| found.is_file() && found.len() >= BLOCK_BYTES as u64);
    let dirs = [root.to_path_buf(), root.join("wal"), root.join("cold")];
    let files = dirs.iter().filter_map(|dir| std::fs::read_dir(dir).ok()).flatten().flatten().map(|entry| entry.path());
    let path = { files }.find(is_readable).ok_or_else(|| failed(Errno::NOSPC))?;
    let read = rustix::fs::open(&path, OFlags::DIRECT | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .and_then(|fd| rustix::io::pread(&fd, &mut AlignedBuf::zeroed(BLOCK_BYTES)[..], 0));
    match read {
        Ok(_) => Ok(true),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(false),
        Err(errno) => Err(failed(errno)),
    }
}

/// RWF_DSYNC is the kernel's business, not the file system's: memory will do to try it. O_DSYNC every kernel knows.
fn dsync_mode_of_kernel() -> DsyncMode {
    let written = rustix::fs::memfd_create("weir-probe", MemfdFlags::CLOEXEC)
        .and_then(|fd| rustix::io::pwritev2(&fd, &[IoSlice::new(&[0])], 0, ReadWriteFlags::DSYNC));
    if written.is_ok() { DsyncMode::RwfDsync } else { DsyncMode::ODsync }
}

fn direct_flag(direct: bool) -> OFlags {
    if direct { OFlags::DIRECT } else { OFlags::empty() }
}

/// Name of the file system that holds `root`.
fn filesystem(root: &Path) -> Result<String, DiskError> {
    let kind = rustix::fs::statfs(root).map_err(failed)?.f_type;
    // Magic numbers of statfs(2).
    let name = match kind as u64 & 0xffff_ffff {
        0xef53 => "ext4",
        0x5846_5342 => "xfs",
        0x9123_683e => "btrfs",
        0x0102_1994 => "tmpfs",
        0x794c_7630 => "overlayfs",
        0xf2f5_2010 => "f2fs",
        0x2fc1_2fc1 => "zfs",
        0x6969 => "nfs",
        0x6573_5546 => "fuse",
        0x4d44 => "vfat",
        0x0102_1997 => "9p",
        0xca45_1a4e => "bcachefs",
        other => return Ok(format!("file system {other:#x}")),
    };
    Ok(name.into())
}
