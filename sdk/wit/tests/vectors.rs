//! `vectors/`: bytes that must never change their meaning. A failing test here means old plugins would break.
use weir_plugin_abi::{Action, BatchMeta, BatchView, BatchWriter, Key, VerdictRules, VerdictView, VerdictWriter};

const BATCH: &str = include_str!("../vectors/batch-1.0.hex");
const VERDICTS: &str = include_str!("../vectors/verdicts-1.0.hex");
const ARENA: &str = include_str!("../vectors/arena-1.0.hex");

/// Hex with `#` comments and white space.
fn bytes(hex: &str) -> Vec<u8> {
    let digits: String = hex
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default())
        .flat_map(str::chars)
        .filter(|c| !c.is_whitespace())
        .collect();
    assert!(digits.len().is_multiple_of(2));
    (0..digits.len()).step_by(2).map(|i| u8::from_str_radix(&digits[i..i + 2], 16).unwrap()).collect()
}

fn written_batch() -> Vec<u8> {
    let mut buffer = Vec::new();
    let meta = BatchMeta { topic: "tpms", partition: 3, base_offset: -1, now_ms: 1_700_000_000_123 };
    let mut writer = BatchWriter::begin(&mut buffer, meta, 3).unwrap();
    let headers = [2, 10, b't', b'r', b'a', b'c', b'e', 4, b'4', b'2'];
    writer.push(1_700_000_000_000, Some(b"k1"), Some(b"{\"kpa\":210}"), &headers).unwrap();
    writer.push(1_700_000_000_001, None, None, &[]).unwrap();
    writer.push(1_700_000_000_002, Some(b""), Some(b"x"), &[]).unwrap();
    writer.finish().unwrap();
    buffer
}

fn written_verdicts() -> VerdictWriter {
    let mut out = VerdictWriter::new();
    out.keep(0, 0);
    out.keep(0, 1);
    out.emit(0, 2, Key::Bytes(b"k2"), Some(b"alert"), Some(1_700_000_000_500));
    out.drop_source(1);
    out.replace(2, Key::OfSource, Some(b"y"), None);
    out.emit(2, 0, Key::Null, None, None);
    out.reject(3, "not JSON");
    out
}

#[test]
fn the_batch_reads_as_it_always_did() {
    let bytes = bytes(BATCH);
    let view = BatchView::parse(&bytes).unwrap();
    let meta = view.meta();
    assert_eq!((meta.topic, meta.partition, meta.base_offset), ("tpms", 3, -1));
    assert_eq!((meta.now_ms, view.count(), view.abi_minor()), (1_700_000_000_123, 3, 0));
    let all: Vec<_> = view.entries().map(Result::unwrap).collect();
    assert_eq!(all[0].key, Some(&b"k1"[..]));
    assert_eq!(all[0].value, Some(&b"{\"kpa\":210}"[..]));
    let headers: Vec<_> = all[0].headers().map(Result::unwrap).collect();
    assert_eq!(headers, [(&b"trace"[..], Some(&b"42"[..]))]);
    assert_eq!((all[1].key, all[1].value, all[1].headers_raw), (None, None, &[][..]));
    assert_eq!((all[2].key, all[2].value), (Some(&b""[..]), Some(&b"x"[..])));
    let stamps: Vec<_> = all.iter().map(|e| e.timestamp).collect();
    assert_eq!(stamps, [1_700_000_000_000, 1_700_000_000_001, 1_700_000_000_002]);
}

#[test]
fn the_verdicts_read_as_they_always_did() {
    let (verdicts, arena) = (bytes(VERDICTS), bytes(ARENA));
    let view = VerdictView::parse(&verdicts, &arena).unwrap();
    let all: Vec<_> = view.verdicts().map(Result::unwrap).collect();
    let mut rules = VerdictRules::new(4, 2);
    for verdict in &all {
        rules.check(verdict, arena.len()).unwrap();
    }
    let shape: Vec<_> = all.iter().map(|v| (v.source, v.action, v.output)).collect();
    let expected = [
        (0, Action::Keep, 0),
        (0, Action::Keep, 1),
        (0, Action::Emit, 2),
        (1, Action::Drop, 0),
        (2, Action::Replace, 0),
        (2, Action::Emit, 0),
        (3, Action::Reject, 0),
    ];
    assert_eq!(shape, expected);
    assert_eq!((view.key(&all[2]), view.value(&all[2])), (Key::Bytes(b"k2"), Some(&b"alert"[..])));
    assert_eq!((all[2].timestamp_or(0), all[4].timestamp_or(0)), (1_700_000_000_500, 0));
    assert_eq!((view.key(&all[4]), view.value(&all[4])), (Key::OfSource, Some(&b"y"[..])));
    assert_eq!((view.key(&all[5]), view.value(&all[5])), (Key::Null, None));
    assert_eq!(view.value(&all[6]), Some(&b"not JSON"[..]));
}

#[test]
fn what_is_written_today_is_the_same() {
    assert_eq!(written_batch(), bytes(BATCH));
    let out = written_verdicts();
    assert_eq!(out.verdicts(), bytes(VERDICTS));
    assert_eq!(out.arena(), bytes(ARENA));
}
