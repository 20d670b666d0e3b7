//! Lanes, sequences and acknowledgements.

use weir_protocol::{AckCode, Code, Start};

use crate::common::{Site, batch, message};
use weir_protocol::Batch;

fn nothing_but(values: &[&str]) -> Vec<String> {
    values.iter().map(|value| (*value).to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_batch_sent_twice_is_stored_once() {
    let site = Site::new().await;
    site.admin().await.create_topic("t", 1).await;
    let (mut raw, welcome) = site.hello("device", "unit").await;
    assert_eq!(welcome.principal, "device");
    let (mut lane, ready) = raw.lane(3, "t").await;
    assert_eq!((ready.next_sequence, ready.partitions), (0, 1));
    for (sequence, values) in [(0, ["a", "b"]), (2, ["c", "d"])] {
        lane.say(&message(sequence, &values)).await;
        lane.say(&message(sequence, &values)).await;
    }
    let (acks, nacks) = raw.answers(4).await;
    assert_eq!(nacks, []);
    let seen: Vec<_> = acks.iter().map(|ack| (ack.base_sequence, ack.base_offset, ack.code)).collect();
    let (new, old) = (AckCode::Durable, AckCode::Duplicate);
    let mut sorted = seen.clone();
    sorted.sort_by_key(|(sequence, _, code)| (*sequence, *code == old));
    assert_eq!(sorted, [(0, 0, new), (0, 0, old), (2, 2, new), (2, 2, old)]);
    assert_eq!(raw.values("t", 0).await, nothing_but(&["a", "b", "c", "d"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_goes_on_after_a_restart_of_the_node() {
    let mut site = Site::new().await;
    site.admin().await.create_topic("t", 2).await;
    let (mut raw, first) = site.hello("device", "unit").await;
    let (mut lane, _) = raw.lane(0, "t").await;
    lane.say(&message(0, &["a", "b", "c"])).await;
    raw.answers(1).await;
    site.restart().await;
    let (mut raw, second) = site.hello("device", "unit").await;
    assert_eq!(first.producer_id, second.producer_id);
    assert!(second.producer_epoch > first.producer_epoch);
    let (mut lane, ready) = raw.lane(0, "t").await;
    assert_eq!((ready.next_sequence, ready.partitions), (3, 2));
    lane.say(&message(0, &["a", "b", "c"])).await;
    lane.say(&message(3, &["d"])).await;
    let (acks, _) = raw.answers(2).await;
    assert_eq!(acks.iter().map(|ack| ack.code).collect::<Vec<_>>(), [AckCode::Duplicate, AckCode::Durable]);
    assert_eq!(raw.values("t", 0).await, nothing_but(&["a", "b", "c", "d"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zombie_is_fenced() {
    let site = Site::new().await;
    site.admin().await.create_topic("t", 1).await;
    let (mut zombie, _) = site.hello("device", "unit").await;
    let (mut old_lane, _) = zombie.lane(0, "t").await;
    old_lane.say(&message(0, &["a"])).await;
    zombie.answers(1).await;
    let (mut heir, _) = site.hello("device", "unit").await;
    let (mut lane, ready) = heir.lane(0, "t").await;
    assert_eq!(ready.next_sequence, 1);
    old_lane.say(&message(1, &["zombie"])).await;
    let (_, nacks) = zombie.answers(1).await;
    assert_eq!(nacks[0].code, Code::Fenced);
    lane.say(&message(1, &["b"])).await;
    let (acks, _) = heir.answers(1).await;
    assert_eq!(acks[0].code, AckCode::Durable);
    assert_eq!(heir.values("t", 0).await, nothing_but(&["a", "b"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gap_is_named_and_what_follows_it_is_not_stored() {
    let site = Site::new().await;
    site.admin().await.create_topic("t", 1).await;
    let (mut raw, _) = site.hello("device", "unit").await;
    let (mut lane, _) = raw.lane(0, "t").await;
    lane.say(&message(0, &["a"])).await;
    lane.say(&message(5, &["f"])).await;
    let (acks, nacks) = raw.answers(2).await;
    assert_eq!(acks.len(), 1);
    assert_eq!((nacks[0].code, nacks[0].expected_sequence), (Code::SequenceGap, 1));
    assert_eq!(raw.values("t", 0).await, nothing_but(&["a"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_batch_is_refused_and_the_lane_goes_on() {
    let site = Site::new().await;
    site.admin().await.create_topic("t", 1).await;
    let (mut raw, _) = site.hello("device", "unit").await;
    let (mut lane, _) = raw.lane(0, "t").await;
    let mut bytes = batch(&["a"]).to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    lane.say(&Batch { partition: 0, base_sequence: 0, batch: bytes.into() }).await;
    lane.say(&Batch { partition: 7, base_sequence: 0, batch: batch(&["a"]) }).await;
    let (_, nacks) = raw.answers(2).await;
    assert_eq!(nacks.iter().map(|nack| nack.code).collect::<Vec<_>>(), [Code::CorruptBatch, Code::UnknownPartition]);
    assert_eq!(nacks[1].expected_sequence, 0);
    lane.say(&message(0, &["a"])).await;
    assert_eq!(raw.answers(1).await.0.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn acks_of_one_commit_share_a_frame_and_a_live_reader_sees_them_all() {
    let site = Site::new().await;
    site.admin().await.create_topic("t", 1).await;
    let (mut raw, _) = site.hello("device", "unit").await;
    let (mut lane, _) = raw.lane(0, "t").await;
    let (reader, _) = site.hello("device-reader", "").await;
    let mut stream = reader.stream().await;
    let partitions = vec![(0, Start::Earliest)];
    let subscribe = weir_protocol::Subscribe { topic: "t".into(), live: true, credit_bytes: 1 << 20, partitions };
    stream.say(&subscribe).await;
    let expected: Vec<String> = (0..30).map(|number| format!("r{number}")).collect();
    for (sequence, value) in expected.iter().enumerate() {
        lane.say(&message(sequence as u64, &[value])).await;
    }
    let mut seen = Vec::new();
    while seen.len() < expected.len() {
        let data: weir_protocol::Data = stream.expect().await;
        seen.extend(crate::common::records_of(&data).into_iter().map(|(_, value)| value));
    }

    assert_eq!(seen, expected);
    assert_eq!(raw.answers(expected.len()).await.0.len(), expected.len());
}
