//! What a node says to those it does not serve.

use weir::cert::make_ca;
use weir_protocol::{Code, ErrorNotice, Hello, LaneOpen, Request, Start};

use crate::common::{Site, client_config, dial, raw_frame, soon};

#[tokio::test(flavor = "multi_thread")]
async fn without_a_right_nothing_happens() {
    let site = Site::new().await;
    let mut admin = site.admin().await;
    admin.create_topic("t", 1).await;
    admin.create_topic("secret", 1).await;
    let (mut raw, _) = site.hello("device", "unit").await;
    let mut stream = raw.stream().await;
    stream.say(&LaneOpen { lane: 0, topic: "secret".into() }).await;
    let notice: ErrorNotice = stream.expect().await;
    assert_eq!(notice.code, Code::Unauthorized);
    assert!(notice.message.contains("produce") && notice.message.contains("secret"), "{}", notice.message);
    assert_eq!(raw.read("secret", 0, Start::Earliest).await.unwrap_err().code, Code::Unauthorized);
    for request in [
        Request::CreateTopic { topic: "t2".into(), partitions: 1, settings: Vec::new() },
        Request::DeleteTopic { topic: "t".into() },
        Request::Status,
        Request::StartBackup { dir: "x".into(), keep: 0 },
        Request::BackupStatus,
        Request::StopBackup,
        Request::ListPlugins,
        Request::PutPluginPart { upload: 1, last: false, part: vec![0; 10].into() },
        Request::DescribeTopic { topic: "secret".into() },
    ] {
        assert_eq!(raw.try_request(request).await.unwrap_err().code, Code::Unauthorized);
    }
    let weir_protocol::Answer::Topics(topics) = raw.request(Request::ListTopics).await else { panic!("topics") };
    assert_eq!(topics, [("t".to_owned(), 1)], "what one may not use one does not see");
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_that_are_wrong_expired_or_missing_do_not_get_in() {
    let site = Site::new().await;
    let stranger = make_ca("another CA", 30).unwrap().make_client("device", 30).unwrap();
    let expired = site.ca.make_client("device", -1).unwrap();
    for pair in [Some(&stranger), Some(&expired), None] {
        let refused = match dial(site.addr(), client_config(&site.ca, pair)).await {
            Err(error) => error,
            // TLS 1.3: the client is done before the server has looked at its certificate.
            Ok(connection) => soon(connection.closed()).await,
        };
        assert!(matches!(refused, quinn::ConnectionError::ConnectionClosed(_)), "{refused:?}");
    }
    site.hello("device", "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_not_the_protocol_end_the_connection_with_the_reason() {
    let site = Site::new().await;
    site.admin().await.create_topic("t", 1).await;
    let mut oversize = raw_frame(5, 0, b"").to_vec();
    oversize[..4].fill(0xff);
    let cases = [
        (raw_frame(99, 0, b""), Code::Malformed),
        (raw_frame(3, 0x80, b""), Code::Malformed),
        (raw_frame(5, 0, &[0; 20]), Code::Malformed),
        (raw_frame(3, 0, &[1]), Code::Malformed),
        (oversize.into(), Code::FrameTooLarge),
        (vec![0xa5; 4096].into(), Code::Malformed),
    ];
    for (bytes, code) in cases {
        let (raw, _) = site.hello("device", "unit").await;
        let mut stream = raw.stream().await;
        stream.send.write_chunk(bytes).await.unwrap();
        let (closed, message) = raw.closed_with().await;
        assert_eq!(closed, code, "{message}");
        assert!(!message.is_empty());
    }
    site.hello("device", "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_version_is_told_which_ones_there_are() {
    let site = Site::new().await;
    let raw = site.connect("device").await;
    let mut stream = raw.stream().await;
    stream.say(&Hello { version: 9, client: "future".into(), producer_name: String::new() }).await;
    let notice: ErrorNotice = stream.expect().await;
    assert_eq!(notice.code, Code::UnsupportedVersion);
    assert!(notice.message.contains('1'), "{}", notice.message);
    assert_eq!(raw.closed_with().await.0, Code::UnsupportedVersion);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_control_stream_is_refused() {
    let site = Site::new().await;
    let (raw, _) = site.hello("device", "").await;
    let mut second = raw.stream().await;
    second.say(&Hello { version: 1, client: "again".into(), producer_name: String::new() }).await;
    assert_eq!(raw.closed_with().await.0, Code::Malformed);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offset_out_of_range_is_told_the_range() {
    let site = Site::new().await;
    site.admin().await.create_topic("t", 1).await;
    let (mut raw, _) = site.hello("device", "unit").await;
    let (mut lane, _) = raw.lane(0, "t").await;
    lane.say(&crate::common::message(0, &["a", "b"])).await;
    raw.answers(1).await;
    let notice = raw.read("t", 0, Start::Offset(7)).await.unwrap_err();
    assert_eq!(notice.code, Code::OffsetOutOfRange);
    assert!(notice.message.contains("0 to 2"), "{}", notice.message);
    assert_eq!(raw.read("t", 0, Start::Offset(1)).await.unwrap(), [(1, "b".to_owned())]);
    assert_eq!(raw.read("t", 0, Start::Offset(2)).await.unwrap(), []);
    assert_eq!(raw.read("t", 1, Start::Earliest).await.unwrap_err().code, Code::UnknownPartition);
    assert_eq!(raw.read("tt", 0, Start::Earliest).await.unwrap_err().code, Code::UnknownTopic);
}
