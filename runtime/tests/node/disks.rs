//! Disks of a running node: what is on two of them survives either, and `weir disk` says and does what operators need.

use std::time::Duration;

use serde_json::Value;
use weir_batch::{BatchBuilder, Codec};
use weir_protocol::{Answer, Batch, Code, Request};

use crate::common::{FOREVER, Raw, Site};

const RECORDS: u64 = 60;

/// A node with a second disk, that sorts soon and in small pieces.
async fn on_two_disks(second: &std::path::Path) -> Site {
    let dir = second.to_owned();
    Site::start_with(move |config| {
        config.log.segment_bytes = 1 << 20;
        config.log.frame_bytes_max = 512 << 10;
        config.log.compress_from_bytes = 0;
        config.cold.sort_bytes = 1 << 20;
        config.cold.sort_age_ms = 1000;
        config.cold.sort_memory_bytes = 1 << 20;
        config.cold.log_bytes_max = 8 << 20;
        config.limits.batch_bytes_max = 200 << 10;
        config.volume = vec![weir::config::VolumeSection { dir }];
    })
    .await
}

async fn disks(admin: &mut Raw) -> Vec<Value> {
    match admin.request(Request::ListDisks).await {
        Answer::Json(json) => serde_json::from_str(&json).unwrap(),
        other => panic!("{other:?}"),
    }
}

async fn until(what: &str, admin: &mut Raw, holds: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    let wait = async {
        loop {
            let disks = disks(admin).await;
            if holds(&disks) {
                return disks;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(FOREVER, wait).await.unwrap_or_else(|_| panic!("never: {what}"))
}

async fn fill(site: &Site) {
    let (mut raw, _) = site.hello("device", "unit-disks").await;
    let (mut stream, ready) = raw.lane(0, "t").await;
    for sequence in ready.next_sequence..ready.next_sequence + RECORDS {
        let mut builder = BatchBuilder::new(Codec::None);
        let value = " ".repeat(100 << 10) + &sequence.to_string();
        builder.push(1_700_000_000_000 + sequence as i64, None, Some(value.as_bytes()), &[]);
        stream.say(&Batch { partition: 0, base_sequence: sequence, batch: builder.finish().unwrap().into() }).await;
        assert_eq!(raw.answers(1).await.1, []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_is_added_drained_replaced_and_let_go_of_while_the_node_runs() {
    let places = tempfile::tempdir().unwrap();
    let dir = |name: &str| places.path().join(name).to_str().unwrap().to_owned();
    let site = on_two_disks(&places.path().join("b")).await;
    let (mut admin, _) = site.hello("admin", "").await;
    let topic = Request::CreateTopic { topic: "t".into(), partitions: 1, settings: Vec::new() };
    assert_eq!(admin.request(topic).await, Answer::TopicCreated { partitions: 1 });
    fill(&site).await;
    let both = until("two copies of cold segments", &mut admin, |disks| {
        disks.len() == 2 && disks.iter().all(|disk| disk["segments"].as_u64() > Some(0) && disk["only_copies"] == 0)
    });
    let both = both.await;
    assert!(both.iter().all(|disk| disk["state"] == "healthy" && disk["log"] == "healthy"), "{both:?}");

    let refused = admin.try_request(Request::RemoveDisk { number: 1, force: false }).await.unwrap_err();
    assert!(refused.code == Code::InvalidArgument && refused.message.contains("copy of the log"), "{refused:?}");
    let relative = admin.try_request(Request::AddDisk { dir: "c".into() }).await.unwrap_err();
    assert!(relative.message.contains("absolute"), "{relative:?}");
    let unknown = admin.try_request(Request::DrainDisk { number: 9, drain: true }).await.unwrap_err();
    assert!(unknown.message.contains('9'), "{unknown:?}");

    std::fs::create_dir(dir("home")).unwrap();
    std::fs::write(places.path().join("home/letter"), "mine").unwrap();
    for (name, reason) in [("b", "volume 1 already"), ("home", "letter")] {
        let refused = admin.try_request(Request::ReplaceDisk { number: 1, force: false, dir: dir(name) }).await.unwrap_err();
        assert!(refused.code == Code::InvalidArgument && refused.message.contains(reason), "{refused:?}");
        let now = disks(&mut admin).await;
        assert!(now.iter().all(|disk| disk["state"] == "healthy" && disk["log"] == "healthy"), "{now:?}");
    }

    assert!(matches!(admin.request(Request::AddDisk { dir: dir("c") }).await, Answer::Json(_)));
    assert!(matches!(admin.request(Request::ReplaceDisk { number: 1, force: false, dir: dir("d") }).await, Answer::Json(_)));
    until("two copies without the disk that went", &mut admin, |disks| {
        let is = |number: usize, key: &str, value: &str| disks.get(number).is_some_and(|disk| disk[key] == value);
        is(1, "state", "gone") && is(3, "log", "healthy") && disks.iter().all(|disk| disk["only_copies"] == 0)
    })
    .await;
    assert_eq!(admin.request(Request::DrainDisk { number: 2, drain: true }).await, Answer::Done);
    until("the drained disk is empty", &mut admin, |disks| disks[2]["segments"] == 0 && disks[2]["state"] == "draining").await;
    assert_eq!(admin.request(Request::RemoveDisk { number: 2, force: false }).await, Answer::Done);
    fill(&site).await;
    let log = site.node().broker().log();
    let stats = log.stats();
    assert_eq!((stats.copies, stats.cold_segments_lost), (2, 0));
}
