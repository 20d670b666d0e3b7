//! Backups cut off at every step, on a directory that loses what was not synced: names, and the bytes behind them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;

use super::manifest::Manifest;
use super::memory::{Crash, Forgets, MemVault};
use super::run::{BackupReport, Job, Shelf};
use super::source::Source;
use super::vault::{Folder, PART, Vault};
use super::verify::verify_shelf;
use super::{BackupError, Progress};
use crate::cold::manifest::ManifestEntry;
use crate::cold::wal::WalSegment;
use crate::core::{PinDone, PinLost, Pinned};
use crate::disk::FileId;
use crate::format::BLOCK;
use crate::format::segment::SegmentHeader;
use crate::view::ColdPlace;

/// A log at one moment.
#[derive(Clone)]
struct Node {
    pinned: Pinned,
    files: BTreeMap<FileId, Bytes>,
    lost_after: usize,
}

impl Source for Node {
    fn read(&mut self, file: FileId, at: u64, bytes: usize, _: bool) -> Result<Bytes, BackupError> {
        Ok(self.files[&file].slice(at as usize..at as usize + bytes))
    }

    fn has_other(&self, _: FileId) -> bool {
        false
    }

    fn confirm(&mut self, _: PinDone) -> Result<(), BackupError> {
        self.lost_after = self.lost_after.checked_sub(1).ok_or(PinLost::WalFull)?;
        Ok(())
    }

    fn size(&mut self, file: FileId) -> Result<u64, BackupError> {
        Ok(self.files[&file].len() as u64)
    }
}

/// WAL segments as (file, sequence, blocks), cold segments by number.
fn node(lsn: u64, wal: &[(u32, u64, u32)], cold: &[u32]) -> Node {
    let mut files = BTreeMap::new();
    let mut pinned = Pinned {
        token: 1,
        lsn,
        superblock: super::manifest::tests::superblock(),
        segments: Vec::new(),
        cold: Arc::default(),
        volumes: Vec::new(),
    };
    for (file, sequence, end_block) in wal {
        let mut bytes: Vec<u8> = (0..*end_block as usize * BLOCK).map(|n| (n / 9) as u8 ^ *sequence as u8).collect();
        let header = SegmentHeader {
            volume_id: pinned.superblock.volume_id,
            sequence: *sequence,
            epoch: 1,
            first_lsn: *sequence,
            prev_crc: 0,
            durable_lsn: 0,
            opened_ms: 0,
            file: Some(*file),
        };
        header.encode(&mut bytes);
        files.insert(FileId::Segment(*file), bytes.into());
        pinned.segments.push(WalSegment { file: *file, sequence: *sequence, end_block: *end_block });
    }
    let mut places = Vec::new();
    for number in cold {
        let bytes = vec![*number as u8; 5 * BLOCK];
        let entry = ManifestEntry {
            promoted: None,
            compacted: false,
            copies: 1,
            volumes: [0, 0],
            class: 0,
            first_lsn: 1,
            last_lsn: 2,
            min_timestamp: 0,
            max_timestamp: 0,
            file_bytes: bytes.len() as u64,
            batch_bytes: 1,
            records: 1,
            partitions: 1,
            blocks: 1,
            created_ms: 7,
        };
        places.push(Arc::new(ColdPlace { number: *number, entry }));
        files.insert(FileId::Cold(*number), bytes.into());
    }
    pinned.cold = Arc::new(places);
    Node { pinned, files, lost_after: usize::MAX }
}

/// The second time the file of segment 1 was used again, the active segment has grown, two cold segments have become one.
fn twice() -> (Node, Node) {
    (node(10, &[(0, 1, 9), (1, 2, 4)], &[1, 2, 3]), node(20, &[(1, 2, 9), (0, 3, 3)], &[3, 4]))
}

fn back_up(vault: &mut MemVault, node: &Node, keep: Option<u64>) -> Result<BackupReport, BackupError> {
    let shelf = Shelf::read(vault)?;
    let mut source = node.clone();
    Job {
        vault,
        source: &mut source,
        keep,
        now_ms: 1,
        piece_bytes: 2 * BLOCK,
        stop: &|| false,
        pinned: &mut || {},
        progress: &mut |progress: Progress| assert!(progress.bytes_done <= progress.bytes_total),
    }
    .run(&shelf, &node.pinned, &[])
}

/// All generations, if every file of each is whole.
fn sound(vault: &mut MemVault, what: &str) -> BTreeMap<u64, Manifest> {
    let shelf = Shelf::read(vault).unwrap();
    if !shelf.generations.is_empty() {
        let report = verify_shelf(vault, &shelf, None, &mut |_| {}).unwrap();
        assert_eq!(report.problems, [], "{what}");
    }
    shelf.generations.into_iter().map(|(number, manifest)| (number, manifest.unwrap())).collect()
}

/// The generation gives back what the node had.
fn gives_back(vault: &mut MemVault, manifest: &Manifest, node: &Node) {
    assert_eq!((manifest.lsn, manifest.files.len()), (node.pinned.lsn, node.files.len()));
    for (id, bytes) in &node.files {
        let file = manifest.files.iter().find(|file| file.place == id.to_string()).expect("it is in it");
        let mut stored = vec![0; bytes.len() + 1];
        let read = vault.read(Folder::Files, &file.stored, 0, &mut stored).unwrap();
        assert!(stored[..read] == bytes[..], "{id}");
    }
}

#[test]
fn only_what_is_new_is_copied_and_both_generations_give_back_their_own() {
    let (first, second) = twice();
    let mut vault = MemVault::default();
    let report = back_up(&mut vault, &first, None).unwrap();
    assert_eq!((report.generation, report.copied_files, report.copied_bytes), (1, 5, (9 + 4 + 3 * 5) * BLOCK as u64));
    let again = back_up(&mut vault, &first, None).unwrap();
    assert_eq!((again.generation, again.copied_files, again.bytes), (2, 0, report.bytes));
    let report = back_up(&mut vault, &second, None).unwrap();
    assert_eq!((report.generation, report.copied_bytes), (3, (9 + 3 + 5) * BLOCK as u64), "all but cold segment 3");
    let generations = sound(&mut vault, "three");
    gives_back(&mut vault, &generations[&1], &first);
    gives_back(&mut vault, &generations[&3], &second);

    let pruned = back_up(&mut vault, &second, Some(2)).unwrap();
    assert_eq!(pruned.generations_removed, [1, 2]);
    assert_eq!(pruned.bytes_removed, (9 + 4 + 2 * 5) * BLOCK as u64, "what only they named");
    let generations = sound(&mut vault, "pruned");
    assert_eq!(generations.keys().collect::<Vec<_>>(), [&3, &4]);
    gives_back(&mut vault, &generations[&4], &second);
}

/// The second backup is cut off at each step, and the machine crashes.
fn cut_everywhere(forgets: Option<Forgets>) {
    let (first, second) = twice();
    for keep in [None, Some(1)] {
        let mut before = MemVault::default();
        back_up(&mut before, &first, None).unwrap();
        before.crash(Crash::Lost);
        before.forgets = forgets;
        let steps = {
            let mut whole = before.clone();
            whole.steps = 0;
            back_up(&mut whole, &second, keep).unwrap();
            whole.steps
        };
        assert!(steps > 15, "{steps}");
        for (cut_at, how) in (0..steps).flat_map(|at| [Crash::Lost, Crash::Zeros, Crash::Killed].map(|how| (at, how))) {
            let what = format!("keep {keep:?}, cut at {cut_at} of {steps}, {how:?}");
            let mut vault = before.clone();
            (vault.steps, vault.cut_at) = (0, Some(cut_at));
            back_up(&mut vault, &second, keep).unwrap_err();
            vault.crash(how);
            let generations = sound(&mut vault, &what);
            match (generations.get(&1), generations.get(&2)) {
                (Some(one), two) => {
                    gives_back(&mut vault, one, &first);
                    two.into_iter().for_each(|two| gives_back(&mut vault, two, &second));
                }
                (None, Some(two)) => {
                    assert!(keep.is_some(), "{what}");
                    gives_back(&mut vault, two, &second);
                }
                (None, None) => panic!("{what}: nothing is left"),
            }
            let report = back_up(&mut vault, &second, keep).unwrap();
            vault.crash(Crash::Lost);
            let generations = sound(&mut vault, &what);
            gives_back(&mut vault, &generations[&report.generation], &second);
            let named: BTreeSet<&str> = generations.values().flat_map(|one| &one.files).map(|file| &*file.stored).collect();
            assert_eq!(vault.names_of(Folder::Files), named, "{what}: nothing else stays");
            assert!(vault.names_of(Folder::Generations).iter().all(|name| !name.ends_with(PART)), "{what}");
        }
    }
}

#[test]
fn cut_off_at_any_step_what_was_whole_is_whole_and_the_next_run_ends_well() {
    cut_everywhere(None);
}

#[test]
fn whoever_leaves_out_a_sync_is_found_out() {
    let folders = [Folder::Files, Folder::Generations].map(Forgets::SyncOfFolder);
    for forgets in [Forgets::SyncOfFiles].into_iter().chain(folders) {
        assert!(std::panic::catch_unwind(|| cut_everywhere(Some(forgets))).is_err(), "{forgets:?}");
    }
}

#[test]
fn files_that_the_log_took_back_while_they_were_read_are_in_no_generation() {
    let (first, second) = twice();
    let mut vault = MemVault::default();
    back_up(&mut vault, &first, None).unwrap();
    let mut confirms = 0;
    loop {
        let lost = Node { lost_after: confirms, ..second.clone() };
        match back_up(&mut vault, &lost, Some(1)) {
            Ok(report) => {
                assert_eq!((report.generation, confirms), (2, 2 + 4), "asked for each header and each file");
                return;
            }
            Err(BackupError::Lost(PinLost::WalFull)) => {
                let generations = sound(&mut vault, "lost");
                gives_back(&mut vault, &generations[&1], &first);
                assert_eq!(generations.len(), 1);
            }
            Err(other) => panic!("{other}"),
        }
        confirms += 1;
    }
}

#[test]
fn a_damaged_manifest_keeps_all_files_and_its_number() {
    let (first, second) = twice();
    let mut vault = MemVault::default();
    back_up(&mut vault, &first, None).unwrap();
    let manifest = vault.names[&(Folder::Generations, "0000000001.manifest".to_owned())];
    vault.files[manifest].0[100] ^= 1;
    let files = vault.names_of(Folder::Files).len();
    let report = back_up(&mut vault, &second, Some(1)).unwrap();
    assert_eq!((report.generation, report.damaged, report.files_removed), (2, vec![1], 0));
    assert!(vault.names_of(Folder::Files).len() > files, "what it may name stays");
    let shelf = Shelf::read(&mut vault).unwrap();
    let problems = verify_shelf(&mut vault, &shelf, None, &mut |_| {}).unwrap().problems;
    assert!(problems.len() == 1 && problems[0].what.contains("CRC"), "{problems:?}");
}

#[test]
fn another_log_and_a_newer_program_are_refused_before_anything_is_written() {
    let (first, second) = twice();
    let mut vault = MemVault::default();
    back_up(&mut vault, &first, None).unwrap();
    let (names, steps) = (vault.names.clone(), vault.steps);
    let mut foreign = second.clone();
    foreign.pinned.superblock.volume_id = [9; 16];
    assert!(matches!(back_up(&mut vault, &foreign, None), Err(BackupError::Foreign { .. })));
    let manifest = vault.names[&(Folder::Generations, "0000000001.manifest".to_owned())];
    let bytes = &mut vault.files[manifest].0;
    bytes[14] += 1;
    let crc = crc32c::crc32c(&bytes[12..]);
    bytes[8..12].copy_from_slice(&crc.to_le_bytes());
    let error = back_up(&mut vault, &second, None).unwrap_err();
    assert!(error.to_string().contains("generation 1") && error.to_string().contains("format 1.1"), "{error}");
    let shelf = Shelf::read(&mut vault).unwrap();
    assert!(verify_shelf(&mut vault, &shelf, None, &mut |_| {}).is_err());
    assert_eq!((vault.names, vault.steps), (names, steps));
}
