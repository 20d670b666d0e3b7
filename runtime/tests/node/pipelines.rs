//! Plugins before storage: what they drop, route and break, and their change while records flow.

use bytes::Bytes;
use weir_protocol::{AckCode, Answer, Code, Request};

use crate::common::{Raw, Site, message};
use crate::guests::{by_letter, manifest};

fn letters(version: &str) -> Bytes {
    weir_pipeline::pack(&by_letter(), &manifest("letters", version)).unwrap().into()
}

/// One stage of the guest that does what the first letter of a value says; `tag` is what it puts in place of an `r`.
fn one_stage(version: &str, tag: u32, on_failure: &str) -> String {
    let dead = if on_failure == "dead-letter" { r#","dead_letter_topic":"t.dead""# } else { "" };
    format!(
        r#"{{"stages":[{{"plugin":"letters","version":"{version}","config":{tag},
           "outputs":{{"copies":"t.copies","moved":"t.moved"}},"on_failure":"{on_failure}"{dead}}}]}}"#
    )
}

async fn attach(admin: &mut Raw, topic: &str, json: String) -> u64 {
    match admin.request(Request::AttachPipeline { topic: topic.into(), pipeline: json }).await {
        Answer::Pipeline { revision } => revision,
        other => panic!("{other:?}"),
    }
}

async fn site_with_letters() -> (Site, Raw) {
    let site = Site::new().await;
    let mut admin = site.admin().await;
    for topic in ["t", "t.copies", "t.moved", "t.dead"] {
        admin.create_topic(topic, 1).await;
    }
    for version in ["1.0.0", "2.0.0"] {
        let put = admin.request(Request::PutPlugin { component: letters(version) }).await;
        assert_eq!(put, Answer::Plugin { name: "letters".into(), version: version.into() });
    }
    (site, admin)
}

#[tokio::test(flavor = "multi_thread")]
async fn records_are_dropped_changed_routed_and_dead_lettered_before_they_are_stored() {
    let (mut site, mut admin) = site_with_letters().await;
    attach(&mut admin, "t", one_stage("1.0.0", 7, "dead-letter")).await;
    let (mut raw, _) = site.hello("device", "unit").await;
    let (mut lane, _) = raw.lane(0, "t").await;
    lane.say(&message(0, &["keep", "drop", "r-1", "e-1", "m-1", "j-1", "t-1"])).await;
    lane.say(&message(7, &["d", "d"])).await;
    lane.say(&message(0, &["keep", "drop", "r-1", "e-1", "m-1", "j-1", "t-1"])).await;
    let (acks, nacks) = raw.answers(3).await;
    assert_eq!(nacks, []);
    let stored: Vec<_> = acks.iter().map(|ack| (ack.base_sequence, ack.base_offset, ack.code)).collect();
    assert!(stored.contains(&(0, 0, AckCode::Durable)) && stored.contains(&(7, -1, AckCode::Durable)), "{stored:?}");
    assert!(stored.contains(&(0, 0, AckCode::Duplicate)), "{stored:?}");
    assert_eq!(acks.iter().find(|ack| ack.base_sequence == 7).unwrap().stored_count, 0);
    site.restart().await;
    let (raw, _) = site.hello("device", "").await;
    assert_eq!(raw.values("t", 0).await, ["keep", "7-1", "e-1"]);
    assert_eq!(raw.values("t.copies", 0).await, ["e-1"]);
    assert_eq!(raw.values("t.moved", 0).await, ["m-1"]);
    assert_eq!(raw.values("t.dead", 0).await, ["j-1", "t-1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_policy_fail_the_device_is_told_plugin_version_record_and_message() {
    let (site, mut admin) = site_with_letters().await;
    attach(&mut admin, "t", one_stage("1.0.0", 7, "fail")).await;
    let (mut raw, _) = site.hello("device", "unit").await;
    let (mut lane, _) = raw.lane(0, "t").await;
    lane.say(&message(0, &["keep", "keep", "j-1"])).await;
    let (_, nacks) = raw.answers(1).await;
    assert_eq!((nacks[0].code, nacks[0].expected_sequence), (Code::RejectedByPipeline, 0));
    for part in ["letters", "1.0.0", "record 2", "no good"] {
        assert!(nacks[0].message.contains(part), "{part:?} is missing in {:?}", nacks[0].message);
    }
    lane.say(&message(0, &["keep"])).await;
    assert_eq!(raw.answers(1).await.0.len(), 1);
    assert_eq!(raw.values("t", 0).await, ["keep"], "nothing of the refused batch is there");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_record_passes_exactly_one_version_while_pipelines_change() {
    let (site, mut admin) = site_with_letters().await;
    let (mut raw, _) = site.hello("device", "unit").await;
    let (mut lane, _) = raw.lane(0, "t").await;
    let changes = async {
        for round in 0..6u32 {
            attach(&mut admin, "t", one_stage("1.0.0", 1, "fail")).await;
            attach(&mut admin, "t", one_stage("2.0.0", 2, "fail")).await;
            if round % 2 == 0 {
                admin.request(Request::DetachPipeline { topic: "t".into() }).await;
            }
        }
    };
    let produced = async {
        let mut sequence = 0;
        for _ in 0..40 {
            for _ in 0..10 {
                let values = [format!("r-{sequence:05}"), format!("r-{:05}", sequence + 1)];
                lane.say(&message(sequence, &[&values[0], &values[1]])).await;
                sequence += 2;
            }
            let (acks, nacks) = raw.answers(10).await;
            assert_eq!((acks.len(), nacks.len()), (10, 0), "{nacks:?}");
        }
        sequence
    };
    let (sequence, ()) = tokio::join!(produced, changes);
    let (reader, _) = site.hello("device", "").await;
    let seen = reader.values("t", 0).await;
    let numbers: Vec<String> = seen.iter().map(|value| value[1..].to_owned()).collect();
    let expected: Vec<String> = (0..sequence).map(|number| format!("-{number:05}")).collect();
    assert_eq!(numbers, expected, "in order, none lost, none twice");
    assert!(seen.iter().all(|value| ["r", "1", "2"].contains(&&value[..1])));
    for pair in seen.chunks(2) {
        assert_eq!(pair[0][..1], pair[1][..1], "a batch passes one version");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_loops_for_ever_does_not_stop_other_topics() {
    let (site, mut admin) = site_with_letters().await;
    admin.create_topic("t.other", 1).await;
    attach(&mut admin, "t", one_stage("1.0.0", 7, "drop")).await;
    let (mut stuck, _) = site.hello("device", "stuck").await;
    let (mut stuck_lane, _) = stuck.lane(0, "t").await;
    let (mut free, _) = site.hello("device", "free").await;
    let (mut free_lane, _) = free.lane(0, "t.other").await;
    stuck_lane.say(&message(0, &["keep", "loop", "keep"])).await;
    free_lane.say(&message(0, &["a"])).await;
    assert_eq!(free.answers(1).await.0.len(), 1);
    let (acks, nacks) = stuck.answers(1).await;
    assert_eq!((acks.len(), nacks), (1, Vec::new()));
    assert_eq!(stuck.values("t", 0).await, ["keep", "keep"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn plugins_in_use_stay_and_versions_mean_what_they_were() {
    let (mut site, mut admin) = site_with_letters().await;
    attach(&mut admin, "t", one_stage("1.0.0", 7, "fail")).await;
    let delete = |version: &str| Request::DeletePlugin { name: "letters".into(), version: version.into() };
    assert_eq!(admin.try_request(delete("1.0.0")).await.unwrap_err().code, Code::PluginInUse);
    let target = Request::DeleteTopic { topic: "t.copies".into() };
    assert_eq!(admin.try_request(target).await.unwrap_err().code, Code::InvalidArgument);
    admin.request(Request::PutPlugin { component: letters("1.0.0") }).await;
    let other = weir_pipeline::pack(&crate::guests::module("", "", ""), &manifest("letters", "1.0.0")).unwrap();
    let parts: Vec<Bytes> = other.chunks(1_000).map(Bytes::copy_from_slice).collect();
    let last = parts.len() - 1;
    for (at, part) in parts.into_iter().enumerate() {
        let answer = admin.try_request(Request::PutPluginPart { upload: 4, last: at == last, part }).await;
        match at == last {
            true => assert_eq!(answer.unwrap_err().code, Code::PluginInvalid, "other bytes under a name that is taken"),
            false => assert_eq!(answer.unwrap(), Answer::Done),
        }
    }
    admin.request(delete("2.0.0")).await;
    let missing = one_stage("2.0.0", 7, "fail");
    let attach = Request::AttachPipeline { topic: "t".into(), pipeline: missing };
    assert_eq!(admin.try_request(attach).await.unwrap_err().code, Code::UnknownPlugin);
    site.restart().await;
    let (mut raw, _) = site.hello("device", "unit").await;
    let (mut lane, _) = raw.lane(0, "t").await;
    lane.say(&message(0, &["r-1"])).await;
    raw.answers(1).await;
    assert_eq!(raw.values("t", 0).await, ["7-1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_plugin_file_stops_its_topic_and_no_other() {
    let (mut site, mut admin) = site_with_letters().await;
    admin.create_topic("t.other", 1).await;
    attach(&mut admin, "t", one_stage("1.0.0", 7, "fail")).await;
    site.stop().await;
    let files = std::fs::read_dir(site.data().join("plugins")).unwrap();
    for file in files.flatten().filter(|file| file.file_name().to_string_lossy().contains("-1.0.0-")) {
        std::fs::write(file.path(), b"rot").unwrap();
    }
    site.start().await;
    let (mut raw, _) = site.hello("device", "unit").await;
    let (mut lane, _) = raw.lane(0, "t").await;
    lane.say(&message(0, &["keep"])).await;
    let (_, nacks) = raw.answers(1).await;
    assert_eq!(nacks[0].code, Code::Quota);
    assert!(nacks[0].message.contains("pipeline cannot run"), "{}", nacks[0].message);
    let (mut other, _) = raw.lane(1, "t.other").await;
    other.say(&message(0, &["a"])).await;
    assert_eq!(raw.answers(1).await.0.len(), 1);
    site.admin().await.request(Request::DetachPipeline { topic: "t".into() }).await;
    lane.say(&message(0, &["keep"])).await;
    assert_eq!(raw.answers(1).await.0.len(), 1, "detached, the topic serves again");
}
