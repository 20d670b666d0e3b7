//! Whole segments, written and read back.

use bytes::Bytes;
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::format::BLOCK;
use crate::format::frame::FRAME_BYTES_LIMIT;

const LOG: [u8; 16] = [7; 16];
const NUMBER: u32 = 17;

/// A stored batch as far as the log looks into it, with a body of its own.
fn batch(base_offset: i64, records: u32, max_timestamp: i64, body: &[u8]) -> Vec<u8> {
    let mut batch = vec![0; 61];
    batch[..8].copy_from_slice(&base_offset.to_be_bytes());
    batch[8..12].copy_from_slice(&(49 + body.len() as u32).to_be_bytes());
    batch[16] = 2;
    batch[23..27].copy_from_slice(&(records - 1).to_be_bytes());
    batch[35..43].copy_from_slice(&max_timestamp.to_be_bytes());
    batch[57..61].copy_from_slice(&records.to_be_bytes());
    batch.extend_from_slice(body);
    batch
}

/// A body of so many bytes, compressible or not.
fn body(bytes: usize, seed: u64, compressible: bool) -> Vec<u8> {
    if compressible {
        return (0..bytes).map(|at| b"{\"pressure\":231,\"id\":\"00c0ffee\"}"[at % 32]).collect();
    }
    let mut random = fastrand::Rng::with_seed(seed);
    (0..bytes).map(|_| random.u8(..)).collect()
}

pub(super) fn head() -> SegmentHead {
    SegmentHead {
        log_id: LOG,
        number: NUMBER,
        class: 3,
        first_lsn: 100,
        last_lsn: 200,
        created_ms: 1_700_000_000_000,
        compacted: false,
        promoted: false,
    }
}

/// One entry of a partition: batches of so many records and bytes each.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) partition_step: u32,
    pub(super) hole: u8,
    pub(super) batches: Vec<(u32, usize)>,
    pub(super) compressible: bool,
}

pub(super) fn plan() -> impl Strategy<Value = Plan> {
    let bytes = prop_oneof![6 => 0..300_usize, 2 => 5_000..30_000_usize, 1 => 60_000..150_000_usize];
    let batches = proptest::collection::vec((prop_oneof![Just(1_u32), 1..100_u32], bytes), 1..12);
    (prop_oneof![3 => Just(0_u32), 3 => Just(1_u32), 1 => 2..50_u32], 0..4_u8, batches, any::<bool>())
        .prop_map(|(partition_step, hole, batches, compressible)| Plan { partition_step, hole, batches, compressible })
}

pub(super) fn entries(plans: &[Plan]) -> Vec<ColdEntry> {
    let (mut partition, mut offset, mut seed) = (0, 0, 0);
    plans
        .iter()
        .map(|plan| {
            if plan.partition_step > 0 {
                partition += plan.partition_step;
                offset = 1000;
            }
            // Three of four follow without a hole.
            offset += i64::from(plan.hole / 3) * 5;
            let base_offset = offset;
            let (mut batches, mut max_timestamp) = (Vec::new(), i64::MIN);
            for &(records, bytes) in &plan.batches {
                seed += 1;
                let timestamp = 5000 + (offset * 7919) % 1000;
                max_timestamp = max_timestamp.max(timestamp);
                batches.extend(batch(offset, records, timestamp, &body(bytes, seed, plan.compressible)));
                offset += i64::from(records);
            }
            let partition = PartitionId(partition);
            ColdEntry { partition, base_offset, next_offset: offset, max_timestamp, batches: batches.into() }
        })
        .collect()
}

/// The whole file, put together from its pieces.
pub(super) fn write(head: SegmentHead, entries: &[ColdEntry]) -> (Vec<u8>, ColdSummary) {
    let mut writer = SegmentWriter::new(head);
    let mut file = Vec::new();
    let mut place = |(at, piece): (u64, crate::disk::AlignedBuf)| {
        assert_eq!(at, file.len() as u64, "pieces adjoin");
        assert!(piece.len().is_multiple_of(BLOCK));
        file.extend_from_slice(&piece);
    };
    for entry in entries {
        writer.push(entry);
        while let Some(ready) = writer.take_ready() {
            assert!(ready.1.len() >= 256 << 10);
            place(ready);
        }
    }
    let (rest, summary) = writer.finish();
    rest.into_iter().for_each(place);
    assert_eq!(summary.file_bytes, file.len() as u64);
    (file, summary)
}

fn part(file: &[u8], at: u64, bytes: u64, part: Part) -> Result<Bytes, ColdError> {
    let range = at as usize..at.saturating_add(bytes) as usize;
    file.get(range).map(Bytes::copy_from_slice).ok_or(ColdError::Damaged { number: NUMBER, part, reason: "cut" })
}

pub(super) fn open(file: &[u8]) -> Result<(SegmentHead, Footer, ColdIndex), ColdError> {
    let head = SegmentHead::decode(NUMBER, &LOG, &part(file, 0, BLOCK as u64, Part::Header)?)?;
    let at = ColdIndex::footer_at(file.len() as u64);
    let footer = Footer::decode(NUMBER, file.len() as u64, &part(file, at, BLOCK as u64, Part::Footer)?)?;
    let index = ColdIndex::decode(&footer, &part(file, footer.index_at, footer.index_bytes, Part::Index)?)?;
    Ok((head, footer, index))
}

pub(super) fn block_of(file: &[u8], index: &ColdIndex, block: usize) -> Result<Block, ColdError> {
    let (place, ordinal) = (index.block(block), block as u32);
    decode_block(index.number(), ordinal, part(file, place.at, place.bytes.into(), Part::Block(ordinal))?)
}

fn page_of(file: &[u8], place: &PagePlace) -> Result<Vec<PartitionSpan>, ColdError> {
    decode_page(NUMBER, place, part(file, place.at, place.bytes.into(), Part::Page(place.page))?)
}

pub(super) type Content = (SegmentHead, Footer, Vec<PartitionSpan>, Vec<ColdEntry>);

pub(super) fn read(file: &[u8]) -> Result<Content, ColdError> {
    let (head, footer, index) = open(file)?;
    let (mut spans, mut runs) = (Vec::new(), Vec::new());
    for place in index.pages() {
        spans.extend(page_of(file, place)?);
    }
    for block in 0..index.len() {
        runs.extend(block_of(file, &index, block)?.runs());
    }
    Ok((head, footer, spans, runs))
}

/// Entries taken apart: one a batch.
pub(super) fn flat(entries: &[ColdEntry]) -> Vec<(PartitionId, i64, Bytes)> {
    let mut flat = Vec::new();
    for entry in entries {
        for span in crate::batches::split(&entry.batches) {
            let span = span.expect("whole batches");
            let batch = entry.batches.slice(span.at..span.at + span.bytes);
            flat.push((entry.partition, crate::batches::base_offset(&batch), batch));
        }
    }
    flat
}

fn spans_of(entries: &[ColdEntry]) -> Vec<PartitionSpan> {
    let mut spans: Vec<PartitionSpan> = Vec::new();
    for entry in entries {
        let records: u64 = flat(std::slice::from_ref(entry)).iter().map(|b| u64::from(crate::batches::record_count(&b.2))).sum();
        match spans.last_mut().filter(|span| span.partition == entry.partition) {
            Some(span) => {
                span.next_offset = entry.next_offset;
                span.max_timestamp = span.max_timestamp.max(entry.max_timestamp);
                span.batch_bytes += entry.batches.len() as u64;
                span.records += records;
            }
            None => spans.push(PartitionSpan {
                partition: entry.partition,
                first_offset: entry.base_offset,
                next_offset: entry.next_offset,
                max_timestamp: entry.max_timestamp,
                batch_bytes: entry.batches.len() as u64,
                records,
            }),
        }
    }
    spans
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_written_is_read(plans in proptest::collection::vec(plan(), 0..20), compacted: bool) {
        let entries = entries(&plans);
        let (file, summary) = write(SegmentHead { compacted, ..head() }, &entries);
        let (read_head, footer, spans, runs) = read(&file).unwrap();
        prop_assert_eq!(read_head, SegmentHead { compacted, ..head() });
        prop_assert_eq!(&spans, &spans_of(&entries));
        prop_assert_eq!(flat(&runs), flat(&entries));
        prop_assert_eq!(spans_of(&runs), spans_of(&entries), "runs say what their batches say");
        prop_assert_eq!(summary.partitions as usize, spans.len());
        prop_assert_eq!(summary.records, spans.iter().map(|span| span.records).sum::<u64>());
        prop_assert_eq!(summary.batch_bytes, entries.iter().map(|entry| entry.batches.len() as u64).sum::<u64>());
        prop_assert_eq!((footer.blocks, footer.records), (summary.blocks, summary.records));
        prop_assert_eq!(summary.max_timestamp, entries.iter().map(|entry| entry.max_timestamp).max().unwrap_or(0));
        prop_assert_eq!(summary.min_timestamp, entries.iter().map(|entry| entry.max_timestamp).min().unwrap_or(0));
        if !compacted {
            prop_assert!(runs.windows(2).all(|w| w[0].partition != w[1].partition || w[0].next_offset <= w[1].base_offset));
            for run in &runs {
                let batches = flat(std::slice::from_ref(run));
                let records: u32 = batches.iter().map(|batch| crate::batches::record_count(&batch.2)).sum();
                prop_assert_eq!(run.next_offset - run.base_offset, i64::from(records), "no hole hides in a run");
            }
        }
    }

    #[test]
    fn blocks_are_small_and_the_index_knows_them(plans in proptest::collection::vec(plan(), 1..20)) {
        let entries = entries(&plans);
        let (file, _) = write(head(), &entries);
        let (_, _, index) = open(&file).unwrap();
        for n in 0..index.len() {
            let (place, block) = (index.block(n), block_of(&file, &index, n).unwrap());
            let runs: Vec<ColdEntry> = block.runs().collect();
            prop_assert!(block.memory_bytes() <= BLOCK_RAW_BYTES || flat(&runs).len() == 1);
            prop_assert_eq!((place.partition, place.first_offset), (runs[0].partition, runs[0].base_offset));
            prop_assert_eq!(place.last_partition, runs[runs.len() - 1].partition);
            prop_assert_eq!(Some(place.max_timestamp), runs.iter().map(|run| run.max_timestamp).max());
            if n > 0 {
                let before = index.block(n - 1);
                prop_assert_eq!(before.at + u64::from(before.bytes), place.at, "blocks adjoin");
            }
        }
    }

    #[test]
    fn locate_agrees_with_a_linear_search(plans in proptest::collection::vec(plan(), 1..20), asked in proptest::collection::vec((any::<Index>(), -3..400_i64), 50)) {
        let entries = entries(&plans);
        let (file, _) = write(head(), &entries);
        let (_, _, index) = open(&file).unwrap();
        let blocks: Vec<Vec<ColdEntry>> = (0..index.len()).map(|n| block_of(&file, &index, n).unwrap().runs().collect()).collect();
        let last = entries[entries.len() - 1].partition.0;
        for (pick, distance) in asked {
            let partition = PartitionId(pick.index(last as usize + 2) as u32);
            let offset = 1000 + distance;
            let holds = |n: usize| blocks[n].iter().flat_map(|run| flat(std::slice::from_ref(run)))
                .any(|(id, base, batch)| id == partition && base + i64::from(crate::batches::record_count(&batch)) > offset);
            let expected = (0..blocks.len()).find(|n| holds(*n));
            // The located block, or the one behind it where the located one ends before the offset.
            let found = index.locate(partition, offset).and_then(|n| [n, n + 1].into_iter().find(|n| *n < blocks.len() && holds(*n)));
            prop_assert_eq!(found, expected);
            let range = index.blocks_of(partition);
            let holding: Vec<usize> = (0..blocks.len()).filter(|n| blocks[*n].iter().any(|run| run.partition == partition)).collect();
            prop_assert!(holding.iter().all(|n| range.contains(n)) && range.len() <= holding.len() + 1);
            let page = index.page_of(partition).map(|place| page_of(&file, &place).unwrap()).unwrap_or_default();
            prop_assert_eq!(page.iter().any(|span| span.partition == partition), !holding.is_empty());
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..5000), blocks: u32, pages: u32) {
        let bytes = Bytes::from(bytes);
        let footer = Footer { number: NUMBER, index_at: 0, index_bytes: 0, blocks, pages, partitions: 0, records: 0, batch_bytes: 0, min_timestamp: 0, max_timestamp: 0, file_bytes: 0 };
        let place = PagePlace { at: 0, bytes: 0, partition: PartitionId(0), page: 0 };
        // With magic and CRC made right, so that the checks behind them are reached.
        for magic in [b"WCB1", b"WCP1", b"WCI1"] {
            let mut sealed = bytes.to_vec();
            if sealed.len() >= 8 {
                sealed[..4].copy_from_slice(magic);
                let crc = if magic == b"WCB1" { crc32c::crc32c(&sealed[8..]) } else { crc_with_number(NUMBER, &sealed[8..]) };
                sealed[4..8].copy_from_slice(&crc.to_le_bytes());
            }
            prop_assert!(decode_block(NUMBER, 0, Bytes::from(sealed.clone())).is_err());
            let _ = (decode_page(NUMBER, &place, sealed.clone().into()), ColdIndex::decode(&footer, &sealed));
        }
        prop_assert!(SegmentHead::decode(NUMBER, &LOG, &bytes).is_err() && Footer::decode(NUMBER, 0, &bytes).is_err());
    }
}

/// A few partitions, two pages' worth, one block that shrinks and one that does not.
fn small_file() -> Vec<u8> {
    let mut entries: Vec<ColdEntry> = (0..520).map(|partition| entry(partition, 5, &batch(5, 1, 9, b"x"))).collect();
    entries.push(entry(600, 5, &batch(5, 1, 9, &body(2_000, 1, false))));
    write(head(), &entries).0
}

fn entry(partition: u32, base_offset: i64, batches: &[u8]) -> ColdEntry {
    let next_offset = base_offset + i64::from(crate::batches::record_count(batches));
    let batches = Bytes::copy_from_slice(batches);
    ColdEntry { partition: PartitionId(partition), base_offset, next_offset, max_timestamp: 9, batches }
}

#[test]
fn any_flipped_bit_is_seen_or_means_nothing() {
    let file = small_file();
    let whole = read(&file).unwrap();
    let (_, footer, index) = open(&file).unwrap();
    let padding = (footer.index_at + footer.index_bytes) as usize..file.len() - BLOCK;
    assert!(index.pages().len() == 2 && padding.len() > 100);
    for at in 0..file.len() {
        let mut damaged = file.clone();
        damaged[at] ^= 1 << (at % 8);
        match read(&damaged) {
            Ok(content) => assert!(padding.contains(&at) && content == whole, "byte {at} was flipped unseen"),
            Err(error) => assert!(matches!(error, ColdError::Damaged { number: NUMBER, .. }), "byte {at}: {error}"),
        }
    }
}

#[test]
fn a_file_cut_short_or_grown_is_seen() {
    let file = small_file();
    for bytes in (0..file.len()).step_by(97).chain((0..file.len()).step_by(BLOCK)) {
        assert!(read(&file[..bytes]).is_err(), "cut to {bytes}");
    }
    let mut grown = file.clone();
    grown.splice(BLOCK..BLOCK, vec![0; BLOCK]);
    assert!(read(&grown).is_err());
}

#[test]
fn a_block_of_another_place_or_file_is_not_taken() {
    let entries = entries(&[Plan { partition_step: 1, hole: 0, batches: vec![(1, 60_000); 3], compressible: false }]);
    let (file, _) = write(head(), &entries);
    let (_, footer, index) = open(&file).unwrap();
    let stored_index = part(&file, footer.index_at, footer.index_bytes, Part::Index).unwrap();
    assert!(ColdIndex::decode(&Footer { number: 18, ..footer }, &stored_index).is_err());
    let bytes = |n: usize| part(&file, index.block(n).at, index.block(n).bytes.into(), Part::Block(0)).unwrap();
    assert!(decode_block(NUMBER, 1, bytes(1)).is_ok());
    assert!(matches!(decode_block(NUMBER, 0, bytes(1)), Err(ColdError::Damaged { part: Part::Block(0), .. })));
    let misplaced = ColdError::Misplaced { number: 18, part: Part::Block(1), found: NUMBER };
    assert_eq!(decode_block(18, 1, bytes(1)).unwrap_err(), misplaced);
    let block = part(&file, 0, BLOCK as u64, Part::Header).unwrap();
    assert_eq!(
        SegmentHead::decode(18, &LOG, &block),
        Err(ColdError::Misplaced { number: 18, part: Part::Header, found: NUMBER })
    );
    assert_eq!(SegmentHead::decode(NUMBER, &[8; 16], &block), Err(ColdError::Foreign { number: NUMBER }));
}

#[test]
fn a_newer_format_is_told_from_damage() {
    let mut block = head().encode();
    block[12] = 2;
    let crc = crc32c::crc32c(&block[12..]);
    block[8..12].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(SegmentHead::decode(NUMBER, &LOG, &block), Err(ColdError::Newer { number: NUMBER, major: 2, known: 1 }));
}

#[test]
fn a_block_cannot_claim_more_memory_than_a_frame_holds() {
    let (file, _) = write(head(), &[entry(1, 0, &batch(0, 1, 0, &body(1_000, 0, true)))]);
    let (_, _, index) = open(&file).unwrap();
    let claim = |raw_bytes: u32| {
        let mut block = part(&file, index.block(0).at, index.block(0).bytes.into(), Part::Block(0)).unwrap().to_vec();
        block[20..24].copy_from_slice(&raw_bytes.to_le_bytes());
        let crc = crc32c::crc32c(&block[8..]);
        block[4..8].copy_from_slice(&crc.to_le_bytes());
        decode_block(NUMBER, 0, block.into()).map(|block| block.memory_bytes())
    };
    assert_eq!(claim(61 + 32 + 1_000), Ok(1_093));
    for lie in [0, 1_092, 1_094, FRAME_BYTES_LIMIT as u32 + 1, u32::MAX] {
        assert!(claim(lie).is_err(), "{lie}");
    }
}

#[test]
fn incompressible_blocks_are_stored_raw_and_pause_the_trying() {
    // 1 that does not shrink, then 20 that would.
    let entries: Vec<ColdEntry> = (0..21).map(|n| entry(n, 0, &batch(0, 1, 0, &body(65_000, u64::from(n), n > 0)))).collect();
    let (file, summary) = write(head(), &entries);
    let (_, _, index) = open(&file).unwrap();
    let shrunk: Vec<bool> = index.blocks().iter().map(|place| place.bytes < 65_000).collect();
    assert_eq!(summary.blocks, 21);
    assert_eq!(shrunk.iter().position(|shrunk| *shrunk), Some(16), "15 are not tried");
    assert!(shrunk[16..].iter().all(|shrunk| *shrunk));
    assert_eq!(flat(&read(&file).unwrap().3), flat(&entries));
}

#[test]
fn adjoining_entries_share_a_run_but_never_over_a_gap() {
    let of = |bases: &[i64]| bases.iter().map(|base| entry(1, *base, &batch(*base, 1, 9, b"v"))).collect::<Vec<_>>();
    assert_eq!(read(&write(head(), &of(&[4, 5, 6])).0).unwrap().3.len(), 1);
    assert_eq!(read(&write(head(), &of(&[4, 5, 9])).0).unwrap().3.len(), 2, "records 6 to 9 may have been lost");
    let compacted = SegmentHead { compacted: true, ..head() };
    assert_eq!(read(&write(compacted, &of(&[4, 5, 9])).0).unwrap().3.len(), 1, "they were compacted away");
}

#[test]
fn a_promoted_segment_is_an_index_of_frames() {
    let mut writer = SegmentWriter::new(SegmentHead { promoted: true, ..head() });
    let frame = |partition, first_offset, at| FramePlace {
        partition: PartitionId(partition),
        first_offset,
        next_offset: first_offset + 10,
        max_timestamp: first_offset,
        records: 10,
        batch_bytes: 100,
        at,
        bytes: 8192,
    };
    for (partition, first_offset, at) in [(9, 0, 4096), (2, 30, 4096), (9, 10, 12288), (2, 50, 20480)] {
        writer.push_frame(frame(partition, first_offset, at));
    }
    let (pieces, summary) = writer.finish();
    let file: Vec<u8> = pieces.iter().flat_map(|(_, piece)| piece.to_vec()).collect();
    assert_eq!((summary.partitions, summary.blocks, summary.records, summary.batch_bytes), (2, 4, 40, 400));
    assert_eq!((summary.min_timestamp, summary.max_timestamp), (0, 50));
    let (head, _, index) = open(&file).unwrap();
    assert!(head.promoted);
    let at = |partition, offset| index.locate(PartitionId(partition), offset).map(|n| index.block(n).at);
    assert_eq!((at(2, 0), at(2, 30), at(2, 45), at(2, 50)), (Some(4096), Some(4096), Some(4096), Some(20480)));
    assert_eq!((at(9, 9), at(9, 10), at(9, 99), at(5, 0), at(10, 0)), (Some(4096), Some(12288), Some(12288), None, None));
    let spans = page_of(&file, &index.page_of(PartitionId(9)).unwrap()).unwrap();
    assert_eq!((spans[0].first_offset, spans[0].next_offset), (30, 60));
    assert_eq!((spans[1].partition, spans[1].next_offset, spans[1].records), (PartitionId(9), 20, 20));
}

#[test]
#[should_panic(expected = "in the order of their offsets")]
fn entries_out_of_order_are_our_own_mistake() {
    let mut writer = SegmentWriter::new(head());
    writer.push(&entry(1, 9, &batch(9, 1, 0, b"")));
    writer.push(&entry(1, 8, &batch(8, 1, 0, b"")));
}

#[test]
fn memory_of_an_index_is_40_bytes_a_block() {
    let entries = entries(&[Plan { partition_step: 1, hole: 0, batches: vec![(1, 65_000); 10], compressible: true }]);
    let (file, _) = write(head(), &entries);
    let (_, _, index) = open(&file).unwrap();
    assert_eq!(index.len(), 10);
    assert!((400..500).contains(&index.memory_bytes()), "{}", index.memory_bytes());
}

#[test]
fn a_partition_with_enough_has_blocks_of_its_own() {
    let plan = |bytes: usize| Plan { partition_step: 1, hole: 0, batches: vec![(1, 1000); bytes / 1000], compressible: true };
    let (file, _) = write(head(), &entries(&[plan(30_000), plan(20_000), plan(100_000), plan(3_000), plan(3_000), plan(20_000)]));
    let (_, _, index) = open(&file).unwrap();
    let partitions: Vec<_> = index.blocks().iter().map(|place| (place.partition.0, place.last_partition.0)).collect();
    // What is left of the third is closed before the thin ones, and these share a block with the last.
    assert_eq!(partitions, [(1, 1), (2, 2), (3, 3), (3, 3), (4, 6)]);
}
