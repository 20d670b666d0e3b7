//! Whether a backup directory would give back what it says: every byte of every file against its checksum.

use std::collections::BTreeMap;
use std::path::Path;

use super::manifest::{FileEntry, Manifest, ManifestProblem};
use super::run::{PIECE_BYTES, Shelf};
use super::vault::{DirVault, Folder, Vault};
use super::{BackupError, OnProgress, Progress};

/// One generation, for a list.
#[derive(Clone, Debug)]
pub struct GenerationInfo {
    /// Its number.
    pub generation: u64,
    /// What it is, or why it cannot be told.
    pub manifest: Result<Manifest, ManifestProblem>,
    /// Bytes of files that no older generation names.
    pub new_bytes: u64,
}

/// Something that would keep a generation from being restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Generations that need it.
    pub generations: Vec<u64>,
    /// Below the backup directory.
    pub file: String,
    /// What is wrong.
    pub what: String,
}

/// What a verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Generations looked at.
    pub generations: Vec<u64>,
    /// Files read.
    pub files: u64,
    /// Bytes read.
    pub bytes: u64,
    /// What is wrong; empty: nothing.
    pub problems: Vec<Problem>,
}

/// What generations a directory holds, oldest first.
pub fn list(dir: &Path) -> Result<Vec<GenerationInfo>, BackupError> {
    let shelf = Shelf::read(&mut DirVault::open_read(dir)?)?;
    let mut seen = std::collections::BTreeSet::new();
    let mut infos = Vec::with_capacity(shelf.generations.len());
    for (generation, manifest) in shelf.generations {
        let files = manifest.iter().flat_map(|manifest| &manifest.files);
        let new_bytes = files.filter(|file| seen.insert(file.stored.clone())).map(|file| file.bytes).sum();
        infos.push(GenerationInfo { generation, manifest, new_bytes });
    }
    Ok(infos)
}

/// Reads every file of a generation, or of all.
pub fn verify(dir: &Path, generation: Option<u64>, progress: OnProgress<'_>) -> Result<VerifyReport, BackupError> {
    let mut vault = DirVault::open_read(dir)?;
    let shelf = Shelf::read(&mut vault)?;
    verify_shelf(&mut vault, &shelf, generation, progress)
}

pub(super) fn verify_shelf(
    vault: &mut dyn Vault,
    shelf: &Shelf,
    generation: Option<u64>,
    progress: OnProgress<'_>,
) -> Result<VerifyReport, BackupError> {
    let chosen = shelf.generations.iter().filter(|(number, _)| generation.is_none_or(|wanted| wanted == **number));
    let mut report = VerifyReport::default();
    let mut files: BTreeMap<(&str, u64, u32), (&FileEntry, Vec<u64>)> = BTreeMap::new();
    for (number, manifest) in chosen {
        report.generations.push(*number);
        match manifest {
            Ok(manifest) => {
                for file in &manifest.files {
                    files.entry((&file.stored, file.bytes, file.crc)).or_insert((file, Vec::new())).1.push(*number);
                }
            }
            Err(problem) if problem.is_newer() => {
                return Err(BackupError::Manifest { generation: *number, problem: problem.clone() });
            }
            Err(problem) => {
                let file = format!("generations/{}", super::run::manifest_name(*number));
                report.problems.push(Problem { generations: vec![*number], file, what: problem.to_string() });
            }
        }
    }
    if report.generations.is_empty() {
        return Err(BackupError::NoGeneration(generation));
    }
    let total = files.values().map(|(file, _)| file.bytes).sum();
    let mut meter = Progress { bytes_done: 0, bytes_total: total };
    for (file, generations) in files.into_values() {
        report.files += 1;
        let result = each_stored_piece(vault, file, &mut |piece| {
            report.bytes += piece.len() as u64;
            meter.bytes_done += piece.len() as u64;
            progress(meter);
            Ok(())
        });
        let what = match result {
            Ok(None) => continue,
            Ok(Some(what)) => what,
            Err(error) => error.to_string(),
        };
        report.problems.push(Problem { generations, file: format!("files/{}", file.stored), what });
    }
    Ok(report)
}

/// Hands a stored file out and says what is wrong with it, once all of it was handed out: only then is its checksum known.
pub(super) fn each_stored_piece(
    vault: &mut dyn Vault,
    file: &FileEntry,
    each: &mut dyn FnMut(&[u8]) -> Result<(), BackupError>,
) -> Result<Option<String>, BackupError> {
    let mut buf = vec![0; PIECE_BYTES.min(file.bytes as usize).max(1)];
    let (mut at, mut crc) = (0, 0);
    loop {
        // One byte further than it should be: a longer file is another one.
        let read = vault.read(Folder::Files, &file.stored, at, &mut buf)?;
        if read == 0 {
            break;
        }
        at += read as u64;
        if at > file.bytes {
            return Ok(Some(format!("it is longer than its {} bytes", file.bytes)));
        }
        crc = crc32c::crc32c_append(crc, &buf[..read]);
        each(&buf[..read])?;
    }
    if at < file.bytes {
        return Ok(Some(format!("it ends after {at} of {} bytes", file.bytes)));
    }
    Ok((crc != file.crc).then(|| "its CRC does not match".to_owned()))
}
