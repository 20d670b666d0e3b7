//! `check` finds every kind of damage, names what is lost with it, and calls nothing damage that a crash may leave.

mod support;
#[path = "support/volume.rs"]
mod volume;

use std::path::Path;

use support::*;
use volume::*;
use weir_storage::check::{CheckError, CheckOptions, CheckReport, Severity, check};
use weir_storage::dump::{Piece, dump};
use weir_storage::format::BLOCK;
use weir_storage::format::frame::{self, EntryKind, FrameKind};
use weir_storage::*;

fn checked(dir: &Path) -> CheckReport {
    check(dir, CheckOptions::default(), &|_| {}).unwrap()
}

/// A variant of the fixture with one change.
fn changed(variant: &str, change: impl FnOnce(&Path)) -> CheckReport {
    let dir = tempfile::tempdir().unwrap();
    unpack(variant, dir.path());
    change(dir.path());
    let before: Vec<Vec<u8>> = files(dir.path()).iter().map(|(path, _)| std::fs::read(path).unwrap()).collect();
    let report = checked(dir.path());
    let after: Vec<Vec<u8>> = files(dir.path()).iter().map(|(path, _)| std::fs::read(path).unwrap()).collect();
    assert!(before == after, "a check changes nothing");
    report
}

fn says(report: &CheckReport, severity: Severity, words: &str) -> bool {
    report.findings.iter().any(|finding| finding.severity == severity && finding.what.contains(words))
}

fn newest(dir: &Path) -> u64 {
    frames(dir).last().unwrap().header.segment_sequence
}

#[test]
fn a_sound_volume_is_clean_and_everything_in_it_is_counted() {
    let report = changed("closed", |_| {});
    assert!(report.is_clean() && report.findings.is_empty() && report.lost.is_empty(), "{report:?}");
    let facts = report.volume.unwrap();
    assert!(facts.clean && facts.format == (1, 0) && facts.node_id == [0x11; 16]);
    assert_eq!((report.partitions, report.producers, report.meta_keys), (3, 2, 5));
    let expected = std::fs::read_to_string(fixtures().join("closed/expected.txt")).unwrap();
    assert_eq!(report.batches as usize, expected.lines().filter(|line| line.starts_with("  batch")).count());
    let records = expected.lines().filter_map(|line| line.split_once(" records")?.0.rsplit(' ').next()?.parse::<u64>().ok());
    assert_eq!(report.records, records.sum::<u64>());
    assert!(report.segments == 3 && report.spares == 2 && report.frames > 50 && report.bytes > 200_000, "{report:?}");
}

#[test]
fn a_torn_tail_is_no_damage() {
    let report = changed("unclean", |_| {});
    assert!(report.is_clean() && says(&report, Severity::Note, "cut off by a crash"), "{report:?}");
    assert!(!report.volume.unwrap().clean);
}

#[test]
fn old_damage_is_found_with_its_gaps() {
    let report = changed("gap", |_| {});
    assert!(says(&report, Severity::Damage, "header's CRC") && says(&report, Severity::Damage, "payload's CRC"), "{report:?}");
    let lost: Vec<_> = report.lost.iter().map(|gap| (gap.partition.0, gap.from, gap.to)).collect();
    assert_eq!(lost, [(1, 720, 730), (2, 144, 146), (300, 112, 128)]);
}

#[test]
fn any_byte_that_a_crc_covers_is_found_when_it_changes() {
    let base = tempfile::tempdir().unwrap();
    unpack("closed", base.path());
    let mut places = Vec::new();
    for slot in [0, BLOCK] {
        [0, 8, 12, 16, 48, 88, 96, 2000, 4095].iter().for_each(|at| places.push((base.path().join("superblock"), slot + at)));
    }
    let all = frames(base.path());
    let first =
        all.iter().map(|placed| placed.header.segment_sequence).filter(|sequence| *sequence + 3 > newest(base.path())).min();
    for placed in all.iter().filter(|placed| Some(placed.header.segment_sequence) >= first) {
        let (head, payload) = (placed.header.header_bytes(), placed.header.payload_bytes as usize);
        if placed.at == BLOCK {
            [0, 9, 12, 16, 32, 40, 48, 56, 64, 4000].iter().for_each(|at| places.push((placed.path.clone(), *at)));
        }
        // A field of the header, one of the directory, the payload's first and last byte: over all frames that is all of them.
        let turn = places.len();
        places.push((placed.path.clone(), placed.at + turn % frame::HEADER_BYTES));
        places.push((placed.path.clone(), placed.at + frame::HEADER_BYTES.min(head - 1) + turn % (head - 127).max(1)));
        if payload > 0 {
            places.push((placed.path.clone(), placed.at + head));
            places.push((placed.path.clone(), placed.at + head + payload - 1));
        }
    }
    for (path, at) in places {
        flip(&path, at);
        let report = checked(base.path());
        let file = path.strip_prefix(base.path()).unwrap().display().to_string();
        assert!(!report.is_clean(), "{file} at {at}: {report:?}");
        let named = report.findings.iter().any(|finding| finding.file == file);
        assert!(named, "{file} at {at}: {report:?}");
        flip(&path, at);
    }
    assert!(checked(base.path()).is_clean());
}

/// The frame with its entries of partition 1, if it has any and is of an older segment.
fn of_partition_1(dir: &Path, placed: Placed) -> Option<(Placed, Vec<frame::Entry>)> {
    let bytes = std::fs::read(&placed.path).unwrap();
    let mut entries = placed.header.directory(&bytes[placed.at..]).unwrap();
    entries.retain(|entry| entry.kind == EntryKind::Batches && entry.partition == 1);
    (placed.header.segment_sequence < newest(dir) && !entries.is_empty()).then_some((placed, entries))
}

#[test]
fn damage_in_an_old_payload_names_the_records_it_takes() {
    let mut expected = (0, 0, 0);
    let report = changed("closed", |dir| {
        // Recovery reads only directories there.
        let (old, batches) = data_frames(dir).into_iter().rev().find_map(|placed| of_partition_1(dir, placed)).unwrap();
        expected = (1, batches[0].base_offset, batches.last().unwrap().next_offset());
        flip(&old.path, old.at + old.header.header_bytes() + 5);
    });
    assert!(says(&report, Severity::Damage, "payload's CRC"), "{report:?}");
    assert!(report.lost.iter().any(|gap| (gap.partition.0, gap.from, gap.to) == expected), "{expected:?} {report:?}");
}

/// Changes one frame of the volume and makes every CRC and the chain right again, as a program with a mistake would write it.
fn forge(dir: &Path, pick: impl Fn(&Placed) -> bool, change: impl FnOnce(&mut [u8], &Placed)) {
    let all = frames(dir);
    let first = all.iter().position(pick).unwrap();
    let mut change = Some(change);
    let mut crc = 0;
    for (n, placed) in all.iter().enumerate().skip(first) {
        edit(&placed.path, |bytes| {
            if n == first {
                change.take().unwrap()(&mut bytes[placed.at..], placed);
                let head = placed.header.header_bytes();
                let payload_crc = crc32c::crc32c(&bytes[placed.at + head..][..placed.header.payload_bytes as usize]);
                bytes[placed.at + 68..placed.at + 72].copy_from_slice(&payload_crc.to_le_bytes());
            } else {
                bytes[placed.at + 48..placed.at + 52].copy_from_slice(&u32::to_le_bytes(crc));
                if placed.at == BLOCK {
                    bytes[56..60].copy_from_slice(&u32::to_le_bytes(crc));
                    reseal_block(&mut bytes[..BLOCK]);
                }
            }
            reseal_frame(&mut bytes[placed.at..]);
            crc = u32::from_le_bytes(bytes[placed.at + 4..placed.at + 8].try_into().unwrap());
        });
    }
}

/// A data frame of the newest segment without zstd.
fn raw_data(dir: &Path) -> impl Fn(&Placed) -> bool + use<> {
    let newest = newest(dir);
    move |placed| {
        let header = &placed.header;
        header.kind == FrameKind::Data && !header.zstd && header.segment_sequence == newest
    }
}

#[test]
fn what_a_frame_vouches_for_is_looked_into() {
    type Change = fn(&mut [u8], &Placed);
    let entry: fn(usize) -> usize = |n| frame::HEADER_BYTES + n * frame::ENTRY_BYTES;
    assert_eq!((entry(0), entry(1)), (128, 192));
    let cases: [(&str, Change); 5] = [
        ("the CRC of a batch does not match", |frame, placed| frame[placed.header.header_bytes() + 70] ^= 1),
        ("a batch begins at", |frame, placed| frame[placed.header.header_bytes() + 7] ^= 1),
        ("the header of a batch makes no sense", |frame, placed| frame[placed.header.header_bytes() + 16] = 7),
        ("leaves bytes out", |frame, _| frame[192 + 52] += 1),
        ("is given out a second time", |frame, _| frame[128 + 16] += 1),
    ];
    for (words, change) in cases {
        let report = changed("closed", |dir| forge(dir, raw_data(dir), change));
        assert!(says(&report, Severity::Damage, words), "{words}: {report:?}");
    }
    let untouched = changed("closed", |dir| forge(dir, raw_data(dir), |_, _| {}));
    assert!(untouched.is_clean(), "{untouched:?}");
}

#[test]
fn a_frame_that_went_astray_is_no_frame_where_it_lies() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = Log::open(LogConfig { compress_from_bytes: None, ..small(dir.path()) }).unwrap();
    log.handle().append_blocking(open_partition(P));
    for n in 0..20 {
        offset(log.handle().append_blocking(append(P, &[&vec![n; if n % 2 == 0 { 5000 } else { 10 }]])));
    }
    log.shutdown().unwrap();
    assert!(checked(dir.path()).is_clean());
    // Frame 0 has opened the partition.
    let path = lead_astray(dir.path(), 5, 14);
    let report = checked(dir.path());
    assert!(says(&report, Severity::Damage, "is here, which belongs to block"), "{report:?}");
    let lost: Vec<_> = report.lost.iter().map(|gap| (gap.partition, gap.from, gap.to)).collect();
    assert_eq!(lost, [(P, 4, 5)], "what it lies on is lost, and it counts where it belongs");
    let mut shown = String::new();
    let mut show = |piece: Piece| {
        shown += &format!("{piece:?}\n");
        Ok(())
    };
    dump(&path, &mut show).unwrap();
    assert_eq!(shown.matches("a frame that belongs to block").count(), 1, "{shown}");
}

#[test]
fn offsets_that_are_missing_without_damage_are_found() {
    let report = changed("closed", |dir| {
        forge(dir, raw_data(dir), |frame, placed| {
            // The first entry no longer says that it holds batches: its records are missing, and every CRC is right.
            frame[128] = EntryKind::Mark as u8;
            assert!(placed.header.entries > 1);
        });
    });
    assert!(says(&report, Severity::Damage, "offsets are missing"), "{report:?}");
    assert!(report.lost.iter().any(|gap| gap.partition == P && gap.to - gap.from == 5), "{report:?}");
}

#[test]
fn a_snapshot_that_contradicts_the_frames_before_it_is_found() {
    let report = changed("closed", |dir| {
        let newest = newest(dir);
        let snapshot = |placed: &Placed| placed.header.kind == FrameKind::SnapshotEnd && placed.header.segment_sequence == newest;
        forge(dir, snapshot, |frame, placed| {
            assert!(!placed.header.zstd);
            // Its first record is a partition: kind, number, start, next.
            frame[placed.header.header_bytes() + 13] ^= 1;
        });
    });
    assert!(says(&report, Severity::Damage, "contradicts its frames: partition 1 goes on at"), "{report:?}");
}

#[test]
fn a_volume_that_no_node_opens_is_read_all_the_same() {
    let sound = changed("closed", |_| {});
    let lost_superblock = changed("closed", |dir| std::fs::remove_file(dir.join("superblock")).unwrap());
    assert!(says(&lost_superblock, Severity::Damage, "no superblock") && lost_superblock.volume.is_none());
    assert_eq!(lost_superblock.damage_total, 1, "{lost_superblock:?}");
    assert!(lost_superblock.batches >= sound.batches);
    let missing = changed("closed", |dir| {
        let middle = frames(dir).into_iter().find(|placed| placed.header.segment_sequence + 1 == newest(dir)).unwrap();
        std::fs::remove_file(middle.path).unwrap();
    });
    assert!(says(&missing, Severity::Damage, "is missing") && missing.segments == 2, "{missing:?}");
    assert!(missing.damage_total == 1 && missing.batches > 0, "{missing:?}");
}

#[test]
fn files_that_belong_to_no_volume_are_noted_and_no_damage() {
    let report = changed("closed", |dir| {
        std::fs::write(dir.join("wal/notes.txt"), "x").unwrap();
        std::fs::write(dir.join("core"), "x").unwrap();
        std::fs::create_dir(dir.join("plugins")).unwrap();
        std::fs::write(dir.join("wal/00099.wal"), vec![0; 5000]).unwrap();
    });
    let files: Vec<&str> = report.findings.iter().map(|finding| finding.file.as_str()).collect();
    assert_eq!(files, ["core", "wal/00099.wal", "wal/notes.txt"]);
    assert!(report.is_clean());
}

#[test]
fn a_directory_in_use_without_a_volume_or_of_a_newer_format_cannot_be_checked() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(check(dir.path(), CheckOptions::default(), &|_| {}), Err(CheckError::NoVolume(_))));
    assert!(std::fs::read_dir(dir.path()).unwrap().next().is_none(), "nothing was made");
    let (log, _) = Log::open(small(dir.path())).unwrap();
    log.handle().append_blocking(open_partition(P));
    let refused = check(dir.path(), CheckOptions::default(), &|_| {}).unwrap_err();
    assert!(refused.to_string().contains(&format!("in use by process {}", std::process::id())), "{refused}");
    log.shutdown().unwrap();
    assert!(checked(dir.path()).is_clean());
    let placed = frames(dir.path()).pop().unwrap();
    edit(&placed.path, |bytes| {
        bytes[placed.at + 10] = 9;
        reseal_frame(&mut bytes[placed.at..]);
    });
    let refused = check(dir.path(), CheckOptions::default(), &|_| {}).unwrap_err();
    assert!(refused.to_string().contains("frame version 9"), "{refused}");
}

#[test]
fn progress_ends_at_the_total() {
    let dir = tempfile::tempdir().unwrap();
    unpack("closed", dir.path());
    let last = std::sync::Mutex::new((0, 0));
    let jobs = std::num::NonZeroUsize::new(1);
    check(dir.path(), CheckOptions { jobs }, &|progress| *last.lock().unwrap() = (progress.bytes_done, progress.bytes_total))
        .unwrap();
    assert_eq!(*last.lock().unwrap(), (3 * (128 << 10), 3 * (128 << 10)));
}
