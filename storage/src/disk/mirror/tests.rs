//! Moments of a copy's life that histories seldom hit.

use std::sync::atomic::AtomicU64;

use super::*;
use crate::disk::sim::Faults;
use crate::format::superblock::VolumeState;
use crate::sim::pair::Shared;

const FILE_BYTES: u64 = 64 << 10;

fn member(disk: &Shared, id: u8) -> Member {
    let reader: Arc<dyn Reader> = disk.get().reader();
    Member { disk: Box::new(disk.clone()), reader, copy_id: [id; 16], name: id.to_string(), keep: Box::new(()) }
}

fn alone(id: u8) -> Superblock {
    Superblock {
        node_id: [9; 16],
        volume_id: [8; 16],
        generation: 4,
        epoch: 1,
        durable_lsn: 0,
        segment_bytes: FILE_BYTES,
        created_ms: 0,
        state: VolumeState::Open,
        first_sequence: 1,
        last_sequence: 1,
        copy_id: [id; 16],
        peer_id: [7; 16],
        peer: Peer::Out,
        peer_lsn: 0,
    }
}

#[test]
fn a_file_that_was_being_made_when_filling_began_is_on_the_new_copy() {
    let disks = [Shared::new(1, Faults::default()), Shared::new(2, Faults::default())];
    let clock = Arc::new(AtomicU64::new(0));
    let read_clock = Arc::clone(&clock);
    let options = MirrorOptions {
        patience: Duration::from_millis(500),
        fill_bytes_per_s: 1 << 30,
        clock: Box::new(move || Duration::from_micros(read_clock.load(Ordering::Relaxed))),
    };
    let superblock = alone(1);
    let plan = MirrorPlan {
        in_step: vec![member(&disks[0], 1)],
        peer_gone: Some([7; 16]),
        gone_reason: None,
        superblock: Some(superblock),
        lags: false,
    };
    disks[0].get().write_now(FileId::Superblock, 0, &superblock.encode(), BLOCK).unwrap();
    let mut mirror = MirrorDisk::new(plan, options);
    mirror.submit(1, DiskOp::Zero { file: FileId::Segment(4), bytes: FILE_BYTES, reuse: None });
    let mut target = disks[1].clone();
    let generation = prepare_target(&mut target, &superblock, [2; 16], 0).unwrap();
    mirror.fill(member(&disks[1], 2), generation);
    let mut answers = Vec::new();
    for step in 0..100_000 {
        let now = Duration::from_micros(step * 50);
        clock.store(step * 50, Ordering::Relaxed);
        disks.iter().for_each(|disk| disk.get().advance(now));
        mirror.poll(Some(Duration::ZERO), &mut answers);
        if mirror.control().status().in_step() == 2 {
            break;
        }
    }
    assert_eq!(mirror.control().status().in_step(), 2);
    assert!(matches!(answers[..], [DiskCompletion { id: 1, result: Ok(()) }]), "{answers:?}");
    assert_eq!(target.size(FileId::Segment(4)), Ok(Some(FILE_BYTES)));
}

/// A copy that was away has a promoted segment whose name in the WAL is still there: filling it must not go over that.
#[test]
fn filling_a_copy_does_not_write_to_a_promoted_segment() {
    let disks = [Shared::new(1, Faults::default()), Shared::new(2, Faults::default())];
    let clock = Arc::new(AtomicU64::new(0));
    let read_clock = Arc::clone(&clock);
    let options = MirrorOptions {
        patience: Duration::from_millis(500),
        fill_bytes_per_s: 1 << 30,
        clock: Box::new(move || Duration::from_micros(read_clock.load(Ordering::Relaxed))),
    };
    let superblock = alone(1);
    let in_step = vec![member(&disks[0], 1)];
    let plan = MirrorPlan { in_step, peer_gone: Some([7; 16]), gone_reason: None, superblock: Some(superblock), lags: false };
    disks[0].get().write_now(FileId::Superblock, 0, &superblock.encode(), BLOCK).unwrap();
    let file = |byte: u8| AlignedBuf::copy_of(&[byte; FILE_BYTES as usize]);
    let mut target = disks[1].clone();
    disks[0].clone().write_now(FileId::Segment(4), 0, &file(1), FILE_BYTES as usize).unwrap();
    target.write_now(FileId::Segment(4), 0, &file(2), FILE_BYTES as usize).unwrap();
    crate::disk::ColdStore::link(&mut disks[1].get().cold(None), FileId::Segment(4), FileId::Promoted(9)).unwrap();
    let mut mirror = MirrorDisk::new(plan, options);
    let generation = prepare_target(&mut target, &superblock, [2; 16], 0).unwrap();
    mirror.fill(member(&disks[1], 2), generation);
    for step in 0..100_000 {
        clock.store(step * 50, Ordering::Relaxed);
        disks.iter().for_each(|disk| disk.get().advance(Duration::from_micros(step * 50)));
        mirror.poll(Some(Duration::ZERO), &mut Vec::new());
        if mirror.control().status().in_step() == 2 {
            break;
        }
    }
    assert_eq!(mirror.control().status().in_step(), 2);
    let mut read = |id| {
        let mut buf = AlignedBuf::zeroed(FILE_BYTES as usize);
        target.read(id, 0, &mut buf, FILE_BYTES as usize).unwrap();
        buf[100]
    };
    assert_eq!((read(FileId::Segment(4)), read(FileId::Promoted(9))), (1, 2));
}
