//! Raw durable writes: one `pwrite` after the other to a zero-filled file, `O_DIRECT` and `O_DSYNC`, as the log writes its
//! frames, and nothing else. Where the directory's file system refuses `O_DIRECT` (tmpfs), `O_DSYNC` alone, and the name
//! says so.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};

use crate::report::histogram;
use crate::{BenchError, Floor, Latency};

/// What `O_DIRECT` wants memory, position and length to be multiples of.
const ALIGNMENT: usize = 4096;
/// The file the loop goes round in.
const FILE_BYTES: u64 = 64 << 20;
/// One read of the sequential floor.
const READ_BYTES: usize = 1 << 20;
/// Enough to know.
const READ_MAX: u64 = 1 << 30;
/// A faster file system than this needs no more samples.
const WRITES_MAX: u64 = 200_000;

/// What the disk does.
#[derive(Debug, Clone)]
pub struct DiskFloor {
    /// Bytes of a write.
    pub chunk_bytes: usize,
    /// One after the other.
    pub bytes_per_second: f64,
    /// Of each write.
    pub latency: Latency,
    /// `O_DIRECT + O_DSYNC` or `O_DSYNC`.
    pub mode: &'static str,
}

impl DiskFloor {
    /// As a line of the report. For the latency profile the throughput of tiny writes is left out, and the other way round.
    pub fn into_floor(self) -> Floor {
        Floor {
            name: format!("disk, {} writes of {} KiB one after the other", self.mode, self.chunk_bytes / 1024),
            bytes_per_second: Some(self.bytes_per_second),
            requests_per_second: None,
            latency_ms: Some(self.latency),
        }
    }
}

/// Writes chunks durably for a while. Blocking: call it on a thread that may block.
pub fn durable_writes(dir: &Path, chunk_bytes: usize, during: Duration) -> Result<DiskFloor, BenchError> {
    let wrong = |what: &str, error: &dyn std::fmt::Display| BenchError::Floor {
        floor: "disk",
        reason: format!("{what} {}: {error}", dir.display()),
    };
    let chunk_bytes = chunk_bytes.next_multiple_of(ALIGNMENT).min(FILE_BYTES as usize);
    let path = dir.join(format!("floor-{}.tmp", std::process::id()));
    let made = zero_filled(&path);
    let opened = made.and_then(|()| open(&path));
    // The open file outlives its name, so nothing is left behind whatever happens next.
    let _ = std::fs::remove_file(&path);
    let (file, mode) = opened.map_err(|error| wrong("cannot make a file in", &error))?;
    let memory = Aligned::new(chunk_bytes);
    let mut histogram = histogram();
    let (begin, mut at, mut writes) = (Instant::now(), 0, 0);
    while begin.elapsed() < during && writes < WRITES_MAX {
        let write = Instant::now();
        let written = rustix::io::pwrite(&file, memory.bytes(), at).map_err(|error| wrong("cannot write in", &error))?;
        if written != chunk_bytes {
            return Err(wrong("short write in", &written));
        }
        histogram.saturating_record(write.elapsed().as_micros() as u64);
        writes += 1;
        at = if at + 2 * chunk_bytes as u64 > FILE_BYTES { 0 } else { at + chunk_bytes as u64 };
    }
    let seconds = begin.elapsed().as_secs_f64();
    let latency = Latency::of(&histogram).ok_or(BenchError::Nothing("no write was finished in the time given"))?;
    Ok(DiskFloor { chunk_bytes, bytes_per_second: (writes * chunk_bytes as u64) as f64 / seconds, latency, mode })
}

/// Bytes a second of the files in a directory read one after the other, 1 MiB at a time and around the page cache where the file
/// system allows it; nothing without files.
pub fn sequential_reads(dir: &Path) -> Result<Option<f64>, BenchError> {
    let wrong =
        |error: std::io::Error| BenchError::Floor { floor: "disk", reason: format!("cannot read {}: {error}", dir.display()) };
    let (mut bytes, begin) = (0, Instant::now());
    let mut memory = Aligned::new(READ_BYTES);
    for entry in std::fs::read_dir(dir).map_err(wrong)? {
        let path = entry.map_err(wrong)?.path();
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = rustix::fs::open(&path, flags | OFlags::DIRECT, Mode::empty())
            .or_else(|_| rustix::fs::open(&path, flags, Mode::empty()))
            .map_err(|error| wrong(error.into()))?;
        let mut at = 0;
        loop {
            let read = rustix::io::pread(&file, memory.bytes_mut(), at).map_err(|error| wrong(error.into()))?;
            if read == 0 {
                break;
            }
            at += read as u64;
        }
        bytes += at;
        if bytes >= READ_MAX {
            break;
        }
    }
    Ok((bytes > 0).then(|| bytes as f64 / begin.elapsed().as_secs_f64()))
}

fn zero_filled(path: &Path) -> std::io::Result<()> {
    use std::io::Write;
    let mut file = File::create(path)?;
    let zeros = vec![0; 1 << 20];
    for _ in 0..FILE_BYTES / zeros.len() as u64 {
        file.write_all(&zeros)?;
    }
    file.sync_all()
}

fn open(path: &Path) -> std::io::Result<(File, &'static str)> {
    let flags = OFlags::WRONLY | OFlags::DSYNC | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags | OFlags::DIRECT, Mode::empty()) {
        Ok(file) => Ok((file.into(), "O_DIRECT + O_DSYNC")),
        Err(_) => Ok((rustix::fs::open(path, flags, Mode::empty())?.into(), "O_DSYNC")),
    }
}

/// Bytes that begin on a page, found inside a larger vector.
struct Aligned {
    memory: Vec<u8>,
    start: usize,
    bytes: usize,
}

impl Aligned {
    fn new(bytes: usize) -> Aligned {
        let memory = vec![0x5a; bytes + ALIGNMENT];
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        Aligned { memory, start, bytes }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.bytes]
    }

    fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.bytes]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_measured_and_left_empty() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let floor = durable_writes(dir.path(), 5000, Duration::from_millis(50)).expect("measured");
        assert_eq!(floor.chunk_bytes, 8192);
        assert!(floor.latency.samples > 0);
        // The slowest write takes at least as long as the mean one: percentiles and throughput tell one story.
        let mean_ms = 1000.0 * floor.chunk_bytes as f64 / floor.bytes_per_second;
        assert!(floor.latency.max * 1.5 >= mean_ms, "{floor:?}");
        assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 0);
    }

    #[test]
    fn a_missing_directory_is_named() {
        let error = durable_writes(Path::new("/nonexistent"), 4096, Duration::from_millis(1)).expect_err("no such directory");
        assert!(error.to_string().contains("/nonexistent"), "{error}");
    }
}
