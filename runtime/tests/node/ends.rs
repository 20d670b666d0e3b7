//! Shutting down, probes and limits of connections.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weir_protocol::{Code, GoAway, Kind, Message};

use crate::common::{Site, client_config, dial, message, soon};

async fn http(site: &Site, path: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(site.node().http_addr().unwrap()).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    soon(stream.read_to_string(&mut answer)).await.unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_sent_before_the_end_is_acknowledged_and_clients_are_told_to_go() {
    let mut site = Site::new().await;
    site.admin().await.create_topic("t", 1).await;
    let (mut raw, _) = site.hello("device", "unit").await;
    let (mut lane, _) = raw.lane(0, "t").await;
    lane.say(&message(0, &["a"])).await;
    raw.answers(1).await;
    let stopping = tokio::spawn(async move {
        site.stop().await;
        site
    });
    let frame = raw.control().frame().await.expect("GO_AWAY");
    assert_eq!(frame.kind, Kind::GoAway);
    assert_eq!(GoAway::decode(frame.body).unwrap().code, Code::ShuttingDown);
    assert_eq!(raw.closed_with().await.0, Code::ShuttingDown);
    let mut site = stopping.await.unwrap();
    site.start().await;
    assert_eq!(site.hello("device", "").await.0.values("t", 0).await, ["a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_and_metrics_answer() {
    let site = Site::new().await;
    site.admin().await.create_topic("t", 1).await;
    let (mut raw, _) = site.hello("device", "unit").await;
    let (mut lane, _) = raw.lane(0, "t").await;
    lane.say(&message(0, &["a", "b"])).await;
    raw.answers(1).await;
    assert!(http(&site, "/livez").await.starts_with("HTTP/1.1 200"));
    assert!(http(&site, "/readyz").await.starts_with("HTTP/1.1 200"));
    assert!(http(&site, "/nothing").await.starts_with("HTTP/1.1 404"));
    let metrics = http(&site, "/metrics").await;
    for line in [
        r#"weir_records_in_total{topic="t"} 2"#,
        r#"weir_records_stored_total{topic="t"} 2"#,
        "weir_acks_total 1",
        "weir_log_fenced 0",
        "weir_log_stalled 0",
        "weir_topics 1",
    ] {
        assert!(metrics.contains(line), "{line} is missing in\n{metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_the_limit_connections_are_refused_and_places_come_back() {
    let site = Site::start_with(|config| {
        config.quic.connections_max = 2;
        config.quic.connections_per_address_max = 2;
    })
    .await;
    let (first, _) = site.hello("device", "").await;
    let _second = site.hello("device", "").await;
    let pair = site.ca.make_client("device", 30).unwrap();
    assert!(dial(site.addr(), client_config(&site.ca, Some(&pair))).await.is_err());
    first.connection.close(0u32.into(), b"");
    soon(async {
        while dial(site.addr(), client_config(&site.ca, Some(&pair))).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn under_load_new_addresses_prove_themselves_and_get_in() {
    let site = Site::start_with(|config| config.quic.retry_above_connections = 0).await;
    site.hello("device", "").await;
    assert!(http(&site, "/metrics").await.contains(r#"weir_connections_refused_total{code="retry"} 1"#));
}

#[tokio::test(flavor = "multi_thread")]
async fn new_certificates_are_read_while_the_node_serves() {
    let site = Site::new().await;
    let (mut stands, _) = site.hello("admin", "").await;
    let other = weir::cert::make_ca("another CA", 30).unwrap();
    weir::cert::write_pair(&site.dir.path().join("certs"), "ca", other.pem(), true).unwrap();
    site.node().reload_certificates().unwrap();
    let pair = other.make_client("device", 30).unwrap();
    let connection = dial(site.addr(), client_config(&site.ca, Some(&pair))).await.unwrap();
    assert!(connection.close_reason().is_none());
    stands.create_topic("t", 1).await;
    let old = site.ca.make_client("device", 30).unwrap();
    let refused = match dial(site.addr(), client_config(&site.ca, Some(&old))).await {
        Err(error) => error,
        Ok(connection) => soon(connection.closed()).await,
    };
    assert!(matches!(refused, quinn::ConnectionError::ConnectionClosed(_)), "{refused:?}");
}
