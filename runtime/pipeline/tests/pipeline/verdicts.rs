//! What verdicts do to a batch.
use weir_batch::{Codec, Headers, RecordBatch};
use weir_pipeline::{FailurePolicy, Main};

use crate::guests::{LETTERS, Node, SILENT, batch, batch_of, input, letters, pipeline, routed, stage, stream};

#[test]
fn a_plugin_that_says_nothing_changes_nothing() {
    let pipeline = pipeline(vec![stage(&SILENT, FailurePolicy::Fail)]);
    let output = Node::new().values(&pipeline, &["a", "b"]).unwrap();
    assert_eq!(output.main, Main::Unchanged);
    assert_eq!((output.counts.records_in, output.counts.records_out), (2, 2));
    assert!(output.routed.is_empty() && output.failures.is_empty());
}

#[test]
fn keeping_all_aloud_leaves_the_producers_bytes() {
    let output = Node::new().values(&letters(FailurePolicy::Fail), &["k1", "k2", "k3"]).unwrap();
    assert_eq!(output.main, Main::Unchanged);
}

#[test]
fn drop_replace_emit_and_move_in_one_batch() {
    let values = ["k0", "d1", "r2", "e3", "m4", "5", "r6"];
    let output = Node::new().values(&letters(FailurePolicy::Fail), &values).unwrap();
    assert_eq!(stream(&output, &values), ["k0", "A2", "e3", "5", "A6"]);
    let expected = [("t.copies".to_owned(), vec!["e3".to_owned()]), ("t.moved".to_owned(), vec!["m4".to_owned()])];
    assert_eq!(routed(&output), expected);
    let counts = output.counts;
    assert_eq!((counts.records_in, counts.records_out, counts.dropped, counts.replaced), (7, 5, 1, 2));
    assert_eq!((counts.moved, counts.routed, counts.emitted, counts.failed), (1, 2, 1, 0));
}

#[test]
fn a_batch_whose_records_all_go_is_empty() {
    let output = Node::new().values(&letters(FailurePolicy::Fail), &["d", "d", "m"]).unwrap();
    assert_eq!(output.main, Main::Empty);
    assert_eq!(routed(&output), [("t.moved".to_owned(), vec!["m".to_owned()])]);
}

#[test]
fn copies_alone_leave_the_stream_unchanged() {
    let output = Node::new().values(&letters(FailurePolicy::Fail), &["e0", "e1"]).unwrap();
    assert_eq!(output.main, Main::Unchanged);
    assert_eq!(output.routed[0].records.len(), 2);
}

#[test]
fn replaced_and_emitted_records_keep_key_timestamp_and_headers_of_their_source() {
    let values = ["d", "r1", "r2", "k"];
    let output = Node::new().values(&letters(FailurePolicy::Fail), &values).unwrap();
    let Main::Rebuilt { batch: bytes, max_timestamp, .. } = &output.main else { panic!("{:?}", output.main) };
    let rebuilt = RecordBatch::verify(bytes).unwrap();
    let mut scratch = Vec::new();
    let records: Vec<_> = rebuilt.records(&mut scratch).unwrap().map(Result::unwrap).collect();
    let source = batch(&values);
    let source = RecordBatch::verify(&source).unwrap();
    let mut scratch = Vec::new();
    let sources: Vec<_> = source.records(&mut scratch).unwrap().map(Result::unwrap).collect();
    for (record, source) in records.iter().zip(&sources[1..]) {
        assert_eq!((record.key, record.timestamp, record.headers), (source.key, source.timestamp, source.headers));
    }
    assert_eq!(records[1].headers.iter().next(), Some((&b"trace"[..], Some(&b"42"[..]))));
    assert_eq!(*max_timestamp, sources[3].timestamp);
    let header = rebuilt.header();
    assert_eq!((header.producer_id, header.producer_epoch, header.base_sequence), (77, 3, 1000));
}

#[test]
fn routed_records_carry_headers_of_their_source() {
    let output = Node::new().values(&letters(FailurePolicy::Fail), &["m0", "m1", "m2"]).unwrap();
    let records: Vec<_> = output.routed[0].records.iter().collect();
    assert_eq!(records[0].headers_raw, [0]);
    let headers: Vec<_> = Headers::parse(records[2].headers_raw).unwrap().iter().collect();
    assert_eq!(headers, [(&b"trace"[..], Some(&b"42"[..]))]);
    assert_eq!(records[2].key, Some(&b"k2"[..]));
}

#[test]
fn zstd_stays_zstd_and_plain_stays_plain() {
    let values: Vec<String> = (0..200).map(|n| format!("r the same text again and again {}", n % 3)).collect();
    let values: Vec<&str> = values.iter().map(String::as_str).collect();
    for codec in [Codec::None, Codec::Zstd(1)] {
        let output = Node::new().run(&letters(FailurePolicy::Fail), input(batch_of(&values, codec))).unwrap();
        let Main::Rebuilt { batch, .. } = &output.main else { panic!("{:?}", output.main) };
        assert_eq!(RecordBatch::verify(batch).unwrap().codec().name(), codec.name());
        assert_eq!(stream(&output, &values)[7], "A the same text again and again 1");
    }
}

#[test]
fn the_next_stage_sees_what_the_last_one_left() {
    let mut second = stage(&LETTERS, FailurePolicy::Fail);
    second.config = b"B".to_vec();
    let pipeline = pipeline(vec![stage(&LETTERS, FailurePolicy::Fail), second, stage(&SILENT, FailurePolicy::Fail)]);
    // The first stage makes "Ar…" of "rr…": the second finds no letter of its own there.
    let values = ["rd", "d1", "k2", "e3", "rr"];
    let output = Node::new().values(&pipeline, &values).unwrap();
    assert_eq!(stream(&output, &values), ["Ad", "k2", "e3", "Ar"]);
    // Both stages copied e3.
    assert_eq!(routed(&output), [("t.copies".to_owned(), vec!["e3".to_owned(), "e3".to_owned()])]);
}

#[test]
fn a_chain_replaces_what_was_replaced_before() {
    let mut first = stage(&LETTERS, FailurePolicy::Fail);
    first.config = b"r".to_vec();
    let mut second = stage(&LETTERS, FailurePolicy::Fail);
    second.config = b"d".to_vec();
    let chain = pipeline(vec![first, second.clone(), second]);
    // The first stage puts its tag r in the letter's place, the second its tag d, the third drops.
    let values = ["rr12", "k", "7"];
    let output = Node::new().values(&chain, &values).unwrap();
    assert_eq!(stream(&output, &values), ["k", "7"]);
    assert_eq!((output.counts.replaced, output.counts.dropped), (2, 1));
}

#[test]
fn counters_of_a_stage_add_up() {
    let pipeline = letters(FailurePolicy::Drop);
    let node = Node::new();
    node.values(&pipeline, &["k", "d", "r1", "e", "m", "j", "plain"]).unwrap();
    node.values(&pipeline, &["k", "k"]).unwrap();
    let stats = &pipeline.stats()[0];
    assert_eq!((&*stats.plugin, &*stats.version, stats.batches, stats.records_in), ("letters", "1.2.3", 2, 9));
    assert_eq!((stats.kept, stats.dropped, stats.replaced, stats.emitted, stats.moved), (5, 1, 1, 1, 1));
    let rejected = stats.failed.iter().find(|(kind, _)| kind.as_str() == "reject").unwrap().1;
    assert_eq!(rejected, 1);
    assert!(stats.nanos > 0 && stats.memory_bytes_max >= 40 * 65536);
}
