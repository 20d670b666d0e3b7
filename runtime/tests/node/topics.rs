//! Topic settings: what they keep, what they take away, and that they are kept themselves.

use std::time::Duration;

use weir_batch::{BatchBuilder, Codec};
use weir_protocol::admin::{PartitionRange, TopicDescription};
use weir_protocol::{Answer, Batch, Code, Request};
use weir_storage::{ClassId, LogStats};

use crate::common::{FOREVER, Raw, Site, message};

/// Long enough that a few records fill a segment.
const VALUE_BYTES: usize = 100 << 10;

/// A node that sorts soon and in small pieces.
async fn quick() -> Site {
    Site::start_with(|config| {
        config.log.segment_bytes = 1 << 20;
        config.log.frame_bytes_max = 512 << 10;
        config.log.compress_from_bytes = 0;
        config.cold.sort_bytes = 1 << 20;
        config.cold.sort_age_ms = 1000;
        config.cold.sort_memory_bytes = 1 << 20;
        config.cold.log_bytes_max = 8 << 20;
        config.limits.batch_bytes_max = 200 << 10;
    })
    .await
}

fn pairs(settings: &[(&str, &str)]) -> Vec<(String, String)> {
    settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

async fn create(admin: &mut Raw, topic: &str, settings: &[(&str, &str)]) {
    let request = Request::CreateTopic { topic: topic.into(), partitions: 1, settings: pairs(settings) };
    assert_eq!(admin.request(request).await, Answer::TopicCreated { partitions: 1 });
}

async fn set(admin: &mut Raw, topic: &str, settings: &[(&str, &str)]) {
    assert_eq!(admin.request(Request::SetTopic { topic: topic.into(), settings: pairs(settings) }).await, Answer::Done);
}

async fn describe(admin: &mut Raw, topic: &str) -> (Vec<(String, String)>, PartitionRange) {
    match admin.request(Request::DescribeTopic { topic: topic.into() }).await {
        Answer::Topic(TopicDescription { settings, partitions, .. }) => (settings, partitions[0]),
        other => panic!("{other:?}"),
    }
}

/// Large records, years old, with keys that come again and again.
async fn fill(site: &Site, lane: u32, topic: &str, records: u64, keys: u64) {
    let (mut raw, _) = site.hello("device", &format!("unit-{topic}")).await;
    let (mut stream, ready) = raw.lane(lane, topic).await;
    for sequence in ready.next_sequence..ready.next_sequence + records {
        let mut builder = BatchBuilder::new(Codec::None);
        let value = " ".repeat(VALUE_BYTES) + &sequence.to_string();
        let key = format!("key-{}", sequence % keys);
        builder.push(1_700_000_000_000 + sequence as i64, Some(key.as_bytes()), Some(value.as_bytes()), &[]);
        let batch = builder.finish().unwrap().into();
        stream.say(&Batch { partition: 0, base_sequence: sequence, batch }).await;
        assert_eq!(raw.answers(1).await.1, []);
    }
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(FOREVER, wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}

fn stats(site: &Site) -> LogStats {
    site.node().broker().log().stats()
}

fn cold_classes(site: &Site) -> Vec<ClassId> {
    site.node().broker().log().cold_classes()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_topic_is_kept_by_its_own_rules() {
    let site = quick().await;
    let mut admin = site.admin().await;
    create(&mut admin, "t.kept", &[]).await;
    create(&mut admin, "t.young", &[("retention.ms", "1d")]).await;
    create(&mut admin, "t.few", &[("retention.bytes", "2MiB")]).await;
    for (lane, topic) in ["t.kept", "t.young", "t.few"].into_iter().enumerate() {
        fill(&site, lane as u32, topic, 50, 50).await;
    }
    until("all old records of t.young go", async || {
        let (_, range) = describe(&mut admin, "t.young").await;
        range.start_offset == 50
    })
    .await;
    until("t.few gets small", async || describe(&mut admin, "t.few").await.1.start_offset > 0).await;
    until("everything is sorted", async || {
        let stats = stats(&site);
        stats.sorted_batch_bytes >= 150 * VALUE_BYTES as u64
    })
    .await;
    let (_, few) = describe(&mut admin, "t.few").await;
    let left = (few.high_watermark - few.start_offset) as usize * VALUE_BYTES;
    assert!(left >= 2 << 20, "less than was asked for is left of t.few: {left}");
    let kept = admin.read("t.kept", 0, weir_protocol::Start::Earliest).await.unwrap();
    let offsets: Vec<i64> = kept.iter().map(|(offset, _)| *offset).collect();
    assert_eq!(offsets, (0..50).collect::<Vec<_>>());
    assert!(stats(&site).segments_expired > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compacted_topic_keeps_the_last_value_of_each_key() {
    let mut site = quick().await;
    let mut admin = site.admin().await;
    create(&mut admin, "t.state", &[("cleanup.policy", "compact")]).await;
    fill(&site, 0, "t.state", 60, 3).await;
    until("compaction leaves records out", async || stats(&site).records_compacted >= 20).await;
    for round in 0..2 {
        let records = admin.read("t.state", 0, weir_protocol::Start::Earliest).await.unwrap();
        assert!(records.len() < 60, "{} records", records.len());
        let last: Vec<i64> = records.iter().rev().take(3).map(|(offset, _)| *offset).collect();
        assert_eq!(last, [59, 58, 57]);
        assert!(records.iter().all(|(offset, value)| value.trim() == offset.to_string()), "values stay with their offsets");
        if round == 0 {
            site.restart().await;
            admin = site.admin().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compacted_topic_takes_no_record_without_a_key() {
    let site = Site::new().await;
    let mut admin = site.admin().await;
    create(&mut admin, "t", &[]).await;
    let (mut raw, _) = site.hello("device", "unit").await;
    let (mut lane, _) = raw.lane(0, "t").await;
    let keyless = |base_sequence| {
        let mut builder = BatchBuilder::new(Codec::None);
        builder.push(1, Some(b"k"), Some(b"v"), &[]);
        builder.push(2, None, Some(b"v"), &[]);
        Batch { partition: 0, base_sequence, batch: builder.finish().unwrap().into() }
    };
    lane.say(&keyless(0)).await;
    assert_eq!(raw.answers(1).await.1, []);
    set(&mut admin, "t", &[("cleanup.policy", "compact,delete")]).await;
    lane.say(&keyless(2)).await;
    let (_, nacks) = raw.answers(1).await;
    assert_eq!(nacks[0].code, Code::InvalidRecord);
    assert!(nacks[0].message.contains("record 1 of the batch has no key"), "{}", nacks[0].message);
    // What was durable before the topic was compacted is still known.
    lane.say(&keyless(0)).await;
    lane.say(&message(2, &["with a key"])).await;
    assert_eq!(raw.answers(2).await.1, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_survive_a_restart_and_count_after_it() {
    let mut site = quick().await;
    let mut admin = site.admin().await;
    create(&mut admin, "t", &[("x-site", "north")]).await;
    set(&mut admin, "t", &[("retention.ms", "1d"), ("x-site", ""), ("when.full", "drop_oldest")]).await;
    site.restart().await;
    let mut admin = site.admin().await;
    let (settings, _) = describe(&mut admin, "t").await;
    assert_eq!(settings, pairs(&[("retention.ms", "1d"), ("when.full", "drop_oldest")]));
    fill(&site, 0, "t", 12, 12).await;
    until("old records go", async || describe(&mut admin, "t").await.1.start_offset == 12).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_that_are_kept_alike_share_a_class() {
    let mut site = quick().await;
    let mut admin = site.admin().await;
    for (topic, settings) in [
        ("t.default", &[][..]),
        ("t.a", &[("retention.ms", "36500d")]),
        ("t.b", &[("retention.ms", "36500d"), ("x-label", "says nothing about keeping")]),
        ("t.c", &[("cleanup.policy", "compact")]),
        ("t.d", &[("cleanup.policy", "compact")]),
    ] {
        create(&mut admin, topic, settings).await;
    }
    // A class of its own follows its topic; shared ones never change.
    set(&mut admin, "t.c", &[("cleanup.policy", ""), ("retention.bytes", "1GiB")]).await;
    set(&mut admin, "t.b", &[("x-label", "still the same")]).await;
    site.restart().await;
    for (lane, topic) in ["t.default", "t.a", "t.b", "t.c", "t.d"].into_iter().enumerate() {
        fill(&site, lane as u32, topic, 3, 3).await;
    }
    let all = [0, 1, 2, 3].map(ClassId).to_vec();
    until("each class has a file", async || cold_classes(&site) == all).await;
    let mut admin = site.admin().await;
    admin.request(Request::DeleteTopic { topic: "t.d".into() }).await;
    until("nothing of a deleted topic stays in its class", async || !cold_classes(&site).contains(&ClassId(3))).await;
    site.restart().await;
    let mut admin = site.admin().await;
    create(&mut admin, "t.e", &[("cleanup.policy", "compact")]).await;
    fill(&site, 0, "t.e", 3, 3).await;
    until("a class number is not used again", async || cold_classes(&site).contains(&ClassId(4))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_settings_are_refused_and_change_nothing() {
    let site = Site::new().await;
    let mut admin = site.admin().await;
    create(&mut admin, "t", &[("retention.ms", "7d")]).await;
    for (key, value, wanted) in [
        ("retention.ms", "soon", "retention.ms: \"soon\" is not allowed"),
        ("retention.bytes", "0", "retention.bytes: \"0\" is not allowed"),
        ("cleanup.policy", "none", "compact,delete"),
        ("segment.bytes", "1", "known are retention.ms"),
    ] {
        let asked = Request::SetTopic { topic: "t".into(), settings: pairs(&[(key, value)]) };
        let refusal = admin.try_request(asked).await.unwrap_err();
        assert_eq!(refusal.code, Code::InvalidArgument);
        assert!(refusal.message.contains(wanted), "{}", refusal.message);
        let asked = Request::CreateTopic { topic: "t2".into(), partitions: 1, settings: pairs(&[(key, value)]) };
        assert_eq!(admin.try_request(asked).await.unwrap_err().code, Code::InvalidArgument);
    }
    assert_eq!(describe(&mut admin, "t").await.0, pairs(&[("retention.ms", "7d")]));
    let asked = Request::SetTopic { topic: "none".into(), settings: Vec::new() };
    assert_eq!(admin.try_request(asked).await.unwrap_err().code, Code::UnknownTopic);
    let (mut device, _) = site.hello("device", "").await;
    let asked = Request::SetTopic { topic: "t".into(), settings: pairs(&[("retention.ms", "1")]) };
    assert_eq!(device.try_request(asked).await.unwrap_err().code, Code::Unauthorized);
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_partitions_are_one_request() {
    let mut site = Site::new().await;
    let mut admin = site.admin().await;
    let wide = |partitions| Request::CreateTopic { topic: "t".into(), partitions, settings: pairs(&[("retention.ms", "7d")]) };
    let refusal = admin.try_request(wide(10_001)).await.unwrap_err();
    assert!(refusal.message.contains("10001 is not 1 to 10000"), "{}", refusal.message);
    assert_eq!(admin.request(wide(10_000)).await, Answer::TopicCreated { partitions: 10_000 });
    site.restart().await;
    let mut admin = site.admin().await;
    let Answer::Topic(about) = admin.request(Request::DescribeTopic { topic: "t".into() }).await else { panic!("a description") };
    assert_eq!(about.partitions.len(), 10_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_cold_tier_no_topic_is_promised_its_own_rules() {
    let site = Site::start_with(|config| config.cold.enabled = false).await;
    let mut admin = site.admin().await;
    create(&mut admin, "t.labels", &[("x-site", "north")]).await;
    let settings = pairs(&[("retention.ms", "7d")]);
    let refusal = admin.try_request(Request::CreateTopic { topic: "t".into(), partitions: 1, settings }).await.unwrap_err();
    assert!(refusal.message.contains("cold.enabled"), "{}", refusal.message);
}
