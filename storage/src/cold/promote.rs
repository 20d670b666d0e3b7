//! A WAL segment that is a cold segment as good as any: fat runs of few partitions of one class, that would hardly shrink. It gets an index
//! and a second name, and nothing of it is written again (`FORMAT.md`, promoted WAL segment).
//!
//! While producers leave no time for sorting, one that would shrink is promoted as well, **in haste**: sorting and compressing a byte costs several
//! times what taking it in does, and on few cores producers would pay for that. It is sorted when they leave time, by a merge. Until then
//! it takes the room of what is not compressed: in haste at most as much as is free beside it.
//!
//! Cost: the heads and directories of its frames read (a block or a few of each), a few samples compressed, an index written. Payloads are not
//! verified here: a frame that is damaged already is lost, or has an intact copy, whichever way the segment goes; readers verify each frame,
//! and the scrub all of them. A segment of which a head or directory is damaged is sorted.

use std::collections::HashMap;

use super::block::{BLOCK_RAW_BYTES, Packer, Packing};
use super::job::{JobError, NewFile, Workshop};
use super::manifest::{ManifestEntry, PromotedWal};
use super::stores::Stores;
use super::wal::{WalHead, WalScan, WalSegment};
use super::{FramePlace, SegmentHead};
use crate::config::PromoteConfig;
use crate::disk::{ColdStore, DiskError, FileId};
use crate::format::BLOCK;
use crate::format::frame::{Entry, EntryKind};
use crate::types::{ClassId, PartitionId};
use crate::view::Tables;

/// Frames of which a piece is compressed, spread over the segment.
const SAMPLES: usize = 8;
/// Bytes read for samples at most: of frames that are compressed the whole has to be read.
const SAMPLE_READ_BYTES: usize = 16 << 20;
/// After so many frames it shows whether a segment is of thin partitions.
const FRAMES_TO_TELL: usize = 16;

/// By which rules WAL segments are promoted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Promotion {
    /// What is large enough.
    pub rules: PromoteConfig,
    /// Of a segment file.
    pub segment_bytes: u64,
    /// Classes that are compacted: they are written again anyway.
    pub compacted: Vec<ClassId>,
    /// Producers leave no time for sorting; bytes of segments that wait for it already.
    pub in_haste: Option<u64>,
}

/// What a segment would be as a cold one.
pub(super) struct Survey {
    class: ClassId,
    frames: Vec<FramePlace>,
    first_lsn: u64,
    last_lsn: u64,
    in_haste: bool,
}

/// What has been seen of a segment.
#[derive(Default)]
struct Seen {
    class: Option<ClassId>,
    frames: Vec<FramePlace>,
    lsns: Option<(u64, u64)>,
    /// Where each partition goes on.
    ends: HashMap<PartitionId, i64>,
    /// One a frame.
    samples: Vec<Sample>,
    /// Bytes that its records take in the file.
    live_bytes: u64,
    /// Bytes to read for all of them, partition by partition.
    read_bytes: u64,
}

/// A frame, and records in it.
#[derive(Clone, Copy)]
struct Sample {
    head: WalHead,
    entry: Entry,
}

/// Looks at a segment's directories and at samples of its payload; `None` where it is to be sorted. Also tells how many bytes it has read.
pub(super) fn survey(
    shop: &mut Workshop<'_, '_>,
    promotion: &Promotion,
    segment: &WalSegment,
) -> Result<(Option<Survey>, u64), DiskError> {
    let mut scan = WalScan::new(*segment, shop.log_id, shop.sort_memory_bytes);
    let mut seen = Seen::default();
    let haste = promotion.in_haste.filter(|waiting| has_room(shop.store, waiting + promotion.segment_bytes));
    let lax = haste.map_or_else(|| promotion.rules.clone(), |_| promotion.rules.in_haste());
    let mut good = true;
    while good && let Some(found) = scan.next_head(shop.store)? {
        good = match found {
            Ok((head, entries)) => {
                let tables = shop.view.tables();
                seen.add(&tables, head, &entries).is_some() && !seen.is_thin(&lax)
            }
            Err(_) => false,
        };
    }
    let mut read_bytes = scan.read_bytes;
    if !good || !seen.is_filled(promotion) || !seen.is_fat(&lax) {
        return Ok((None, read_bytes));
    }
    let stays = seen.is_fat(&promotion.rules) && seen.class.is_some_and(|class| !promotion.compacted.contains(&class));
    if !stays && haste.is_none() {
        return Ok((None, read_bytes));
    }
    let shrinks = shrinks(shop.store, segment, &seen.samples, promotion.rules.saving_percent, &mut read_bytes)?;
    let Seen { class, frames, lsns, .. } = seen;
    let (Some(class), Some((first_lsn, last_lsn)), Some(shrinks)) = (class, lsns, shrinks) else { return Ok((None, read_bytes)) };
    let in_haste = shrinks || !stays;
    let survey = Survey { class, frames, first_lsn, last_lsn, in_haste };
    Ok((Some(survey).filter(|_| !in_haste || haste.is_some()), read_bytes))
}

/// Whether what is not compressed may take so much of the disk: as much is free beside it.
fn has_room(store: &mut Stores<'_>, bytes: u64) -> bool {
    let volumes = store.wal().to_vec();
    volumes.into_iter().all(|volume| store.on(volume).and_then(|store| store.free_bytes()).is_some_and(|free| bytes <= free))
}

impl Seen {
    /// `None`: it cannot be promoted.
    fn add(&mut self, tables: &Tables, head: WalHead, entries: &[Entry]) -> Option<()> {
        let mut places: Vec<FramePlace> = Vec::new();
        let mut largest: Option<Entry> = None;
        for entry in entries.iter().filter(|entry| entry.kind == EntryKind::Batches) {
            let Some(partition) = tables.partitions.get(PartitionId(entry.partition)) else { continue };
            if entry.next_offset() <= partition.start || tables.is_former(PartitionId(entry.partition), head.header.lsn) {
                continue;
            }
            // What lies in a gap was given up; which frame that is tells only a reader of all of it.
            let given_up = tables.gap_at(PartitionId(entry.partition), entry.base_offset).is_some();
            if given_up || *self.class.get_or_insert(partition.class) != partition.class {
                return None;
            }
            let end = self.ends.entry(PartitionId(entry.partition)).or_insert(i64::MIN);
            if entry.base_offset < *end {
                return None;
            }
            let before = std::mem::replace(end, entry.next_offset());
            if largest.is_none_or(|largest| largest.byte_count < entry.byte_count) {
                largest = Some(*entry);
            }
            match places.iter_mut().find(|place| place.partition.0 == entry.partition) {
                // Readers take a frame's records of a partition for one run.
                Some(place) if before != entry.base_offset || place.next_offset != before => return None,
                Some(place) => {
                    place.next_offset = entry.next_offset();
                    place.max_timestamp = place.max_timestamp.max(entry.max_timestamp);
                    place.records += entry.record_count;
                    place.batch_bytes += entry.byte_count;
                }
                None => places.push(FramePlace {
                    partition: PartitionId(entry.partition),
                    first_offset: entry.base_offset,
                    next_offset: entry.next_offset(),
                    max_timestamp: entry.max_timestamp,
                    records: entry.record_count,
                    batch_bytes: entry.byte_count,
                    at: head.at,
                    bytes: head.header.frame_bytes() as u32,
                }),
            }
        }
        let Some(entry) = largest else { return Some(()) };
        let live: u64 = places.iter().map(|place| u64::from(place.batch_bytes)).sum();
        let frame_bytes = head.header.frame_bytes() as u64;
        // As much of the frame as of its payload.
        self.live_bytes += frame_bytes * live / u64::from(head.header.payload_raw_bytes.max(1));
        self.read_bytes += frame_bytes * places.len() as u64;
        self.lsns = Some((self.lsns.map_or(head.header.lsn, |(first, _)| first), head.header.lsn));
        self.samples.push(Sample { head, entry });
        self.frames.append(&mut places);
        Some(())
    }

    /// Whether the first frames have shown that it is no use to go on.
    fn is_thin(&self, rules: &PromoteConfig) -> bool {
        self.samples.len() >= FRAMES_TO_TELL && self.live_bytes / (self.frames.len() as u64) < rules.run_bytes / 4
    }

    fn is_filled(&self, promotion: &Promotion) -> bool {
        self.live_bytes * 100 >= promotion.segment_bytes * (100 - promotion.rules.waste_percent.min(100))
    }

    fn is_fat(&self, rules: &PromoteConfig) -> bool {
        let runs = self.frames.len() as u64;
        runs > 0
            && self.live_bytes / runs >= rules.run_bytes
            && self.read_bytes <= self.live_bytes.saturating_mul(rules.read_factor)
    }
}

/// Whether sorting would save enough; `None` where a sample cannot be had.
fn shrinks(
    store: &mut Stores<'_>,
    segment: &WalSegment,
    frames: &[Sample],
    saving_percent: u64,
    read_bytes: &mut u64,
) -> Result<Option<bool>, DiskError> {
    let mut packer = Packer::new(Packing::Well);
    let (mut stored_bytes, mut packed_bytes, mut read) = (0_u64, 0_u64, 0);
    let step = frames.len().div_ceil(SAMPLES).max(1);
    for Sample { head, entry } in frames.iter().step_by(step) {
        if read >= SAMPLE_READ_BYTES {
            break;
        }
        let header = &head.header;
        let file = FileId::Segment(segment.file);
        let length = (entry.byte_count as usize).min(BLOCK_RAW_BYTES);
        let at = entry.byte_start as usize;
        let raw = if header.zstd {
            read += header.frame_bytes();
            let raw = match store.read_copy(0, file, head.at, header.frame_bytes()) {
                Ok(whole) => header.verified_payload(&whole).and_then(|stored| header.raw_payload(stored)),
                Err(error @ DiskError::Closed { .. }) => return Err(error),
                Err(_) => Err("it cannot be read"),
            };
            let Ok(raw) = raw else { return Ok(None) };
            raw[at..at + length].to_vec()
        } else {
            read += length;
            match store.read_copy(0, file, head.at + (header.header_bytes() + at) as u64, length) {
                Ok(raw) => raw.to_vec(),
                Err(error @ DiskError::Closed { .. }) => return Err(error),
                Err(_) => return Ok(None),
            }
        };
        stored_bytes += length as u64 * u64::from(header.payload_bytes) / u64::from(header.payload_raw_bytes.max(1));
        packed_bytes += packer.pack(&raw).0.len() as u64;
    }
    *read_bytes += read as u64;
    Ok(Some(packed_bytes * 100 <= stored_bytes * (100 - saving_percent.min(100))))
}

/// Makes the segment's second name and its index. `None`: it cannot be had here, and the segment is to be sorted.
pub(super) fn make(
    shop: &mut Workshop<'_, '_>,
    survey: Survey,
    segment: &WalSegment,
    number: u32,
) -> Result<Option<ManifestEntry>, JobError> {
    let head = SegmentHead {
        log_id: shop.log_id,
        number,
        class: survey.class.0,
        first_lsn: survey.first_lsn,
        last_lsn: survey.last_lsn,
        created_ms: shop.now_ms,
        compacted: false,
        promoted: true,
    };
    let Some(volumes) = shop.store.link_wal(segment.file, number, survey.class)? else { return Ok(None) };
    let (sequence, bytes) = (segment.sequence, u64::from(segment.end_block) * BLOCK as u64);
    let wal = PromotedWal { sequence, bytes, in_haste: survey.in_haste };
    let made = index(shop.store, head, survey.frames, wal);
    // Where the index could not be made, the file is of no use.
    let kept = made.as_ref().map_or(&[][..], ManifestEntry::holders).to_vec();
    let useless: Vec<u8> = volumes.into_iter().filter(|volume| !kept.contains(volume)).collect();
    if !matches!(made, Err(DiskError::Closed { .. })) {
        shop.store.unlink_wal(&useless, number)?;
    }
    Ok(Some(made?))
}

fn index(
    store: &mut Stores<'_>,
    head: SegmentHead,
    frames: Vec<FramePlace>,
    wal: PromotedWal,
) -> Result<ManifestEntry, DiskError> {
    let mut file = NewFile::create(store, head, Packing::Well)?;
    frames.into_iter().for_each(|frame| file.push_frame(frame));
    file.finish(store, Some(wal))
}
