//! Topics and groups over restarts.

use weir_protocol::admin::{GroupOffset, TopicDescription};
use weir_protocol::{Answer, Code, Request, Start};

use crate::common::{Site, message};

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_topics_records_and_positions() {
    let mut site = Site::new().await;
    let mut admin = site.admin().await;
    let settings = vec![("description".to_owned(), "tyres".to_owned())];
    admin.request(Request::CreateTopic { topic: "t".into(), partitions: 3, settings: settings.clone() }).await;
    let (mut raw, _) = site.hello("device", "unit").await;
    let (mut lane, _) = raw.lane(0, "t").await;
    lane.say(&message(0, &["a", "b"])).await;
    raw.answers(1).await;
    let position = GroupOffset { topic: "t".into(), partition: 0, offset: 1, metadata: "half way".into() };
    raw.request(Request::CommitOffsets { group: "readers".into(), offsets: vec![position.clone()] }).await;
    site.restart().await;
    let (mut raw, _) = site.hello("device", "").await;
    let asked = Request::CommittedOffsets { group: "readers".into(), partitions: Vec::new() };
    assert_eq!(raw.request(asked).await, Answer::GroupOffsets(vec![position.clone()]));
    let unknown = Request::CommittedOffsets { group: "readers".into(), partitions: vec![("t".into(), 2)] };
    let none = GroupOffset { partition: 2, offset: -1, metadata: String::new(), ..position };
    assert_eq!(raw.request(unknown).await, Answer::GroupOffsets(vec![none]));
    let Answer::Topic(TopicDescription { settings: kept, partitions, pipeline, .. }) =
        raw.request(Request::DescribeTopic { topic: "t".into() }).await
    else {
        panic!("a description")
    };
    assert_eq!((kept, pipeline.as_str(), partitions.len()), (settings, "", 3));
    assert_eq!((partitions[0].start_offset, partitions[0].high_watermark), (0, 2));
    assert_eq!(raw.values("t", 0).await, ["a", "b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_topic_stays_deleted_and_its_name_begins_anew() {
    let mut site = Site::new().await;
    let mut admin = site.admin().await;
    admin.create_topic("t", 1).await;
    let (mut raw, _) = site.hello("device", "unit").await;
    let (mut lane, _) = raw.lane(0, "t").await;
    lane.say(&message(0, &["old"])).await;
    raw.answers(1).await;
    let position = GroupOffset { topic: "t".into(), partition: 0, offset: 1, metadata: String::new() };
    raw.request(Request::CommitOffsets { group: "readers".into(), offsets: vec![position] }).await;
    admin.request(Request::DeleteTopic { topic: "t".into() }).await;
    lane.say(&message(1, &["late"])).await;
    assert_eq!(raw.answers(1).await.1[0].code, Code::UnknownTopic);
    site.restart().await;
    let mut admin = site.admin().await;
    assert_eq!(admin.request(Request::ListTopics).await, Answer::Topics(Vec::new()));
    assert_eq!(admin.read("t", 0, Start::Earliest).await.unwrap_err().code, Code::UnknownTopic);
    admin.create_topic("t", 1).await;
    assert_eq!(admin.values("t", 0).await, [] as [&str; 0]);
    let asked = Request::CommittedOffsets { group: "readers".into(), partitions: Vec::new() };
    assert_eq!(admin.request(asked).await, Answer::GroupOffsets(Vec::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn arguments_that_make_no_sense_are_named() {
    let site = Site::new().await;
    let mut admin = site.admin().await;
    admin.create_topic("t", 1).await;
    let create = |topic: &str, partitions| Request::CreateTopic { topic: topic.into(), partitions, settings: Vec::new() };
    for (request, code) in [
        (create("t", 1), Code::TopicExists),
        (create("a/b", 1), Code::InvalidArgument),
        (create("many", 1_000_000), Code::InvalidArgument),
        (Request::DeleteTopic { topic: "none".into() }, Code::UnknownTopic),
        (Request::DetachPipeline { topic: "t".into() }, Code::InvalidArgument),
        (Request::AttachPipeline { topic: "t".into(), pipeline: "{".into() }, Code::InvalidArgument),
        (Request::DeletePlugin { name: "x".into(), version: "1.0.0".into() }, Code::UnknownPlugin),
        (Request::PutPlugin { component: b"nonsense".as_slice().into() }, Code::PluginInvalid),
        (Request::ListOffsets { topic: "t".into(), partitions: vec![(0, -7)] }, Code::InvalidArgument),
    ] {
        let name = format!("{request:?}");
        assert_eq!(admin.try_request(request).await.unwrap_err().code, code, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_tells_what_an_operator_asks_first() {
    let site = Site::new().await;
    let mut admin = site.admin().await;
    admin.create_topic("t", 2).await;
    let Answer::Json(json) = admin.request(Request::Status).await else { panic!("JSON") };
    let status: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(status["topics"][0]["topic"], "t");
    assert_eq!(status["connections"], 1);
    assert_eq!(status["recovery"]["created"], true);
    assert!(status["disk"]["summary"].as_str().is_some_and(|text| text.contains("durable")));
    assert!(status["log"]["durable_lsn"].as_u64().is_some_and(|lsn| lsn > 0));
    assert_ne!(status["node_id"], "00000000-0000-0000-0000-000000000000");
}
