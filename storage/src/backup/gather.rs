//! Cold segments that lay on several disks lie in one directory after a restore, and the log has to be told: one change of its
//! manifest, made by the engine itself over the restored files, before the directory is any volume at all.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::BackupError;
use crate::config::{ColdConfig, LogConfig};
use crate::core::{Engine, Now, Output};
use crate::disk::{self, BackendChoice, DiskCompletion};
use crate::mirror::fresh_id;
use crate::recovery::recover;

/// How long a disk may take for a few frames, and for a segment if there is none to spare.
const PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(100);

/// Writes down that all cold segments lie on volume `number`, and that there is no other.
pub(super) fn gather(dir: &Path, number: u8) -> Result<(), BackupError> {
    let quiet = tracing::subscriber::NoSubscriber::default();
    tracing::subscriber::with_default(quiet, || gather_quietly(dir, number))
}

fn gather_quietly(dir: &Path, number: u8) -> Result<(), BackupError> {
    let begin = Instant::now();
    let now = || {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { monotonic: begin.elapsed(), wall_ms: u64::try_from(wall.as_millis()).unwrap_or(u64::MAX) }
    };
    let mut disk = disk::open(dir, BackendChoice::Auto)?.disk;
    let config = LogConfig { cold: Some(ColdConfig::default()), accept_fenced: true, ..LogConfig::new(dir) };
    let (limits, opening, _) = recover(disk.as_mut(), &config, now(), [fresh_id(), fresh_id()])?;
    let mut engine: Engine<()> = Engine::new(limits, opening);
    engine.gather(number);
    let (mut completions, mut out) = (Vec::<DiskCompletion>::new(), Output::default());
    while !engine.is_closed() {
        if !engine.is_gathering() {
            engine.begin_shutdown();
        }
        engine.step(now(), &mut completions, &mut out);
        for (id, op) in out.ops.drain(..) {
            disk.submit(id, op);
        }
        // Nothing is sorted, merged or removed here.
        out.jobs.clear();
        if begin.elapsed() > PATIENCE {
            return Err(told("the restored log takes no change: its disk is full, or hangs"));
        }
        if !engine.is_closed() {
            disk.poll(Some(POLL), &mut completions);
        }
    }
    match engine.failed() {
        Some(reason) => Err(told(reason)),
        None => Ok(()),
    }
}

fn told(what: &str) -> BackupError {
    BackupError::NotAsBackedUp(format!("its cold segments could not be put on one disk ({what})"))
}
