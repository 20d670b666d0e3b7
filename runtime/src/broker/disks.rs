//! The node's disks, for operators: how each one does, and how one is added, drained, replaced, let go of.
//!
//! The log decides what may be done ([`weir_storage::LogHandle`]); its calls open files and wait, so they run on threads that may.

use std::path::PathBuf;

use serde_json::{Value, json};
use weir_storage::{CopyState, Health, LogHandle, OpenError, VolumeStatus, VolumeUse};

use super::{Broker, Refusal};
use crate::config::Right;

impl Broker {
    /// All disks, as JSON.
    pub fn list_disks(&self, principal: &str) -> Result<Value, Refusal> {
        self.acl.check_node(principal, Right::Admin)?;
        Ok(disks_json(&self.log))
    }

    /// Adds a directory as a disk; answers the disk.
    pub async fn add_disk(&self, principal: &str, dir: String) -> Result<Value, Refusal> {
        self.acl.check_node(principal, Right::Admin)?;
        let _admin = self.admin.lock().await;
        let path = checked_dir(&dir)?;
        let number = blocking(self.log.clone(), move |log| log.volume_attach(&path)).await?;
        tracing::info!(disk = number, dir, principal, "disk added");
        Ok(disk_json(&self.log, number))
    }

    /// Has a disk emptied, or not any more.
    pub async fn drain_disk(&self, principal: &str, number: u8, drain: bool) -> Result<(), Refusal> {
        self.acl.check_node(principal, Right::Admin)?;
        let _admin = self.admin.lock().await;
        blocking(self.log.clone(), move |log| log.volume_drain(number, drain)).await?;
        tracing::info!(disk = number, drain, principal, "disk drains");
        Ok(())
    }

    /// A directory in the place of a disk, which is let go of when the new one is found good.
    pub async fn replace_disk(&self, principal: &str, number: u8, dir: String, force: bool) -> Result<Value, Refusal> {
        self.acl.check_node(principal, Right::Admin)?;
        let _admin = self.admin.lock().await;
        let path = checked_dir(&dir)?;
        self.may_go(number, force)?;
        let new = blocking(self.log.clone(), move |log| log.volume_replace(number, &path, force)).await?;
        tracing::info!(disk = number, new, dir, principal, "disk replaced");
        Ok(disk_json(&self.log, new))
    }

    /// Lets go of a disk for good.
    pub async fn remove_disk(&self, principal: &str, number: u8, force: bool) -> Result<(), Refusal> {
        self.acl.check_node(principal, Right::Admin)?;
        let _admin = self.admin.lock().await;
        let volume = self.may_go(number, force)?;
        if volume.wal.is_some_and(|state| state != CopyState::Offline) && !force {
            let problem = format!(
                "disk {number} holds a copy of the log, which would be left with one; replace the disk, or give --force to do with one copy"
            );
            return Err(wrong("disk", problem));
        }
        blocking(self.log.clone(), move |log| {
            log.volume_detach(number)?;
            log.volume_forget(number, force)
        })
        .await?;
        tracing::info!(disk = number, force, principal, "disk removed");
        Ok(())
    }

    /// Said before anything is let go of: a disk that is detached and then refused would be neither in nor out.
    fn may_go(&self, number: u8, force: bool) -> Result<VolumeStatus, Refusal> {
        let volumes = self.log.volumes();
        let known = |volume: &VolumeStatus| volume.number == number && volume.usage != VolumeUse::Gone;
        let Some(volume) = volumes.into_iter().find(known) else {
            return Err(wrong("disk", format!("there is no disk {number}; weir disk status shows those there are")));
        };
        if volume.only_copies > 0 && !force {
            let problem = format!(
                "disk {number} holds the only copy of {} cold segments; drain it first, or give --force and lose them",
                volume.only_copies
            );
            return Err(wrong("disk", problem));
        }
        Ok(volume)
    }
}

/// Runs what may wait for a disk.
async fn blocking<T: Send + 'static>(
    log: LogHandle,
    work: impl FnOnce(&LogHandle) -> Result<T, OpenError> + Send + 'static,
) -> Result<T, Refusal> {
    match tokio::task::spawn_blocking(move || work(&log)).await {
        Ok(result) => result.map_err(|error| wrong("disk", error.to_string())),
        Err(error) => Err(Refusal::Internal { reason: error.to_string() }),
    }
}

fn wrong(field: &'static str, problem: String) -> Refusal {
    Refusal::InvalidArgument { field, problem }
}

/// A relative path would depend on where the node was started.
fn checked_dir(dir: &str) -> Result<PathBuf, Refusal> {
    let path = PathBuf::from(dir);
    if path.is_absolute() { Ok(path) } else { Err(wrong("dir", format!("{dir:?} is no absolute path on the node's machine"))) }
}

/// All disks. A log without a cold tier knows the copies of the log alone.
pub(crate) fn disks_json(log: &LogHandle) -> Value {
    let volumes = log.volumes();
    if !volumes.is_empty() {
        let stats = log.stats();
        let progress = percent(stats.resilver_done_bytes, stats.resilver_total_bytes);
        return volumes.iter().map(|volume| volume_json(volume, progress)).collect();
    }
    let copies = log.mirror_status().copies;
    copies
        .into_iter()
        .enumerate()
        .map(|(number, copy)| {
            json!({
                "disk": number,
                "dir": copy.name,
                "state": copy_word(copy.state),
                "log": copy_word(copy.state),
                "reason": copy.reason,
            })
        })
        .collect()
}

fn disk_json(log: &LogHandle, number: u8) -> Value {
    let disks = disks_json(log);
    let found = disks.as_array().into_iter().flatten().find(|disk| disk["disk"] == number);
    found.cloned().unwrap_or_else(|| json!({ "disk": number }))
}

fn percent(done: u64, total: u64) -> Option<u64> {
    (total > 0).then(|| done.saturating_mul(100) / total)
}

fn volume_json(volume: &VolumeStatus, progress: Option<u64>) -> Value {
    let filling = |state: CopyState| progress.filter(|_| state == CopyState::Filling);
    let log = volume.wal.map(|state| match filling(state) {
        Some(percent) => format!("filling {percent}%"),
        None => copy_word(state).to_owned(),
    });
    json!({
        "disk": volume.number,
        "uuid": uuid::Uuid::from_bytes(volume.uuid).to_string(),
        "dir": Some(&volume.dir).filter(|dir| !dir.is_empty()),
        "state": state(volume),
        "log": log,
        "segments": volume.segments,
        "used_bytes": volume.bytes,
        "free_bytes": volume.free_bytes,
        "only_copies": volume.only_copies,
        "errors": volume.errors,
        "bad_copies": volume.bad_copies,
        "reason": volume.reason,
    })
}

fn state(volume: &VolumeStatus) -> &'static str {
    match (volume.usage, volume.health) {
        (VolumeUse::Gone, _) => "gone",
        (_, Health::Offline) => "offline",
        (VolumeUse::Draining, _) => "draining",
        (_, Health::Suspect) => "suspect",
        (_, Health::Healthy) => "healthy",
    }
}

fn copy_word(state: CopyState) -> &'static str {
    match state {
        CopyState::Healthy => "healthy",
        CopyState::Suspect => "suspect",
        CopyState::Offline => "offline",
        CopyState::Filling => "filling",
    }
}
