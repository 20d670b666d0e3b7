//! A backup directory in memory, for the tests and the simulator: it loses what was not synced, and can be cut off at any step.

use std::collections::BTreeMap;
#[cfg(test)]
use std::collections::BTreeSet;

use super::BackupError;
use super::vault::{Folder, Vault};

pub(crate) type Names = BTreeMap<(Folder, String), usize>;

/// A directory in memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct MemVault {
    pub(crate) names: Names,
    /// Names that survive a crash for certain.
    durable: Names,
    /// Bytes, and as many of them as survive for certain.
    pub(crate) files: Vec<(Vec<u8>, usize)>,
    writing: usize,
    pub(crate) steps: usize,
    /// The step that is cut short, and all behind it.
    pub(crate) cut_at: Option<usize>,
    /// A control: what is left out of a backup's steps.
    pub(crate) forgets: Option<Forgets>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Forgets {
    SyncOfFiles,
    SyncOfFolder(Folder),
}

/// What is left of what was not synced.
#[cfg(test)]
#[derive(Clone, Copy, Debug)]
pub(crate) enum Crash {
    /// Nothing: neither names nor bytes.
    Lost,
    /// All names, but zeros in the place of bytes.
    Zeros,
    /// The process was killed, the machine lives.
    Killed,
}

impl MemVault {
    fn step(&mut self) -> Result<(), BackupError> {
        self.steps += 1;
        match self.cut_at {
            Some(at) if self.steps > at => {
                Err(BackupError::Io { what: "cutting", path: "it".into(), source: std::io::Error::other("off") })
            }
            _ => Ok(()),
        }
    }

    #[cfg(test)]
    pub(crate) fn crash(&mut self, how: Crash) {
        self.cut_at = None;
        if matches!(how, Crash::Lost) {
            self.names.clone_from(&self.durable);
        }
        for (bytes, synced) in &mut self.files {
            match how {
                Crash::Lost => bytes.truncate(*synced),
                Crash::Zeros => bytes[*synced..].fill(0),
                Crash::Killed => {}
            }
        }
        self.durable.clone_from(&self.names);
    }

    #[cfg(test)]
    pub(crate) fn names_of(&self, folder: Folder) -> BTreeSet<&str> {
        self.names.keys().filter(|(other, _)| *other == folder).map(|(_, name)| &**name).collect()
    }
}

impl Vault for MemVault {
    fn list(&mut self, folder: Folder) -> Result<Vec<(String, u64)>, BackupError> {
        let files = self.names.iter().filter(|((other, _), _)| *other == folder);
        Ok(files.map(|((_, name), file)| (name.clone(), self.files[*file].0.len() as u64)).collect())
    }

    fn create(&mut self, folder: Folder, name: &str) -> Result<(), BackupError> {
        self.step()?;
        self.writing = self.files.len();
        self.files.push((Vec::new(), 0));
        self.names.insert((folder, name.to_owned()), self.writing);
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), BackupError> {
        let step = self.step();
        let written = if step.is_ok() { bytes } else { &bytes[..bytes.len() / 2] };
        self.files[self.writing].0.extend_from_slice(written);
        step
    }

    fn sync(&mut self) -> Result<(), BackupError> {
        self.step()?;
        if self.forgets != Some(Forgets::SyncOfFiles) {
            let (bytes, synced) = &mut self.files[self.writing];
            *synced = bytes.len();
        }
        Ok(())
    }

    fn rename(&mut self, folder: Folder, from: &str, to: &str) -> Result<(), BackupError> {
        self.step()?;
        let file = self.names.remove(&(folder, from.to_owned())).expect("it was there");
        self.names.insert((folder, to.to_owned()), file);
        Ok(())
    }

    fn remove(&mut self, folder: Folder, name: &str) -> Result<(), BackupError> {
        self.step()?;
        // A removal may be durable long before anybody asks for it.
        if let Some(file) = self.names.remove(&(folder, name.to_owned())) {
            self.files[file] = (Vec::new(), 0);
        }
        self.durable.remove(&(folder, name.to_owned()));
        Ok(())
    }

    fn sync_folder(&mut self, folder: Folder) -> Result<(), BackupError> {
        self.step()?;
        if self.forgets == Some(Forgets::SyncOfFolder(folder)) {
            return Ok(());
        }
        self.durable.retain(|(other, _), _| *other != folder);
        let synced = self.names.iter().filter(|((other, _), _)| *other == folder);
        self.durable.extend(synced.map(|(name, file)| (name.clone(), *file)));
        Ok(())
    }

    fn read(&mut self, folder: Folder, name: &str, at: u64, buf: &mut [u8]) -> Result<usize, BackupError> {
        let Some(file) = self.names.get(&(folder, name.to_owned())) else {
            return Err(BackupError::Io { what: "opening", path: name.into(), source: std::io::ErrorKind::NotFound.into() });
        };
        let rest = &self.files[*file].0[(at as usize).min(self.files[*file].0.len())..];
        let read = rest.len().min(buf.len());
        buf[..read].copy_from_slice(&rest[..read]);
        Ok(read)
    }

    fn room(&mut self) -> Option<u64> {
        Some(1 << 40)
    }
}
