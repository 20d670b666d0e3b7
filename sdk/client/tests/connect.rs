//! Connecting, administering, and publishing in 0-RTT.

mod site;

use std::{sync::atomic::Ordering::SeqCst, time::Duration};

use site::{Certs, Site, lock};
use weir_client::*;

async fn problem(certs: Certs, change: impl FnOnce(&mut ClientConfig)) -> ClientError {
    let site = Site::with_certs(certs, false).await;
    let mut config = site.config();
    change(&mut config);
    Client::connect(config).await.err().expect("a certificate is wrong")
}

fn certificate(whose: &'static str, problem: CertificateProblem) -> ClientError {
    ClientError::Certificate { whose, problem }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificate_problems_are_named() {
    let server = |problem| certificate("the server", problem);
    assert_eq!(problem(Certs::with("weir.test", true, false), |_| {}).await, server(CertificateProblem::Expired));
    assert_eq!(problem(Certs::with("other.test", false, false), |_| {}).await, server(CertificateProblem::WrongName));
    let stranger = Certs::new();
    let error = problem(Certs::new(), |config| config.ca_pem = stranger.ca_pem()).await;
    assert_eq!(error, server(CertificateProblem::UnknownIssuer));
    let ours = |problem| certificate("this client", problem);
    assert_eq!(problem(Certs::with("weir.test", false, true), |_| {}).await, ours(CertificateProblem::Expired));
    let error = problem(Certs::new(), |config| (config.cert_pem, config.key_pem) = stranger.client()).await;
    assert!(matches!(error, ClientError::Certificate { whose: "this client", .. }), "{error:?}");
    assert!(error.to_string().contains("certificate of this client"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_cannot_work_is_named() {
    let certs = Certs::new();
    let (cert, key) = certs.client();
    let named = |config: ClientConfig| match Client::new(config).err() {
        Some(ClientError::Config { what, .. }) => what,
        other => panic!("{other:?}"),
    };
    assert_eq!(named(ClientConfig::new("localhost:1", b"no pem".to_vec(), cert.clone(), key.clone())), "ca_pem");
    assert_eq!(named(ClientConfig::new("localhost:1", certs.ca_pem(), cert.clone(), b"no key".to_vec())), "key_pem");
    assert_eq!(named(ClientConfig::new("localhost:1", certs.ca_pem(), cert, Certs::new().client().1)), "key_pem");
    let missing = ClientConfig::from_files("localhost:1", "/nowhere/ca.pem", "/nowhere/cert.pem", "/nowhere/key.pem");
    assert!(missing.unwrap_err().to_string().starts_with("/nowhere/ca.pem: cannot be read"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_there_is_tried_until_the_time_is_over() {
    let site = Site::start().await;
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut config = site.config();
    config.addr = silent.local_addr().unwrap().to_string();
    (config.connect_timeout, config.retry_timeout) = (Duration::from_millis(50), Duration::from_millis(200));
    let error = Client::connect(config).await.err().unwrap();
    assert!(matches!(error, ClientError::TimedOut { what: "connecting", .. }), "{error:?}");
    assert_eq!(error.whose_turn(), WhoseTurn::RetryLater);
}

#[tokio::test(flavor = "multi_thread")]
async fn operations_answer_or_are_refused() {
    let site = Site::start().await;
    let client = Client::connect(site.config()).await.unwrap();
    let admin = client.admin();
    assert_eq!(admin.create_topic("tyres", 3, vec![("retention".into(), "1d".into())]).await.unwrap(), 3);
    let exists = admin.create_topic("tyres", 3, vec![]).await.unwrap_err();
    assert!(matches!(exists, ClientError::Refused { code: Code::TopicExists, .. }));
    assert_eq!(admin.list_topics().await.unwrap(), [("events".to_owned(), 2), ("tyres".to_owned(), 3)]);
    assert_eq!(admin.attach_pipeline("tyres", "{}").await.unwrap(), 3);
    assert_eq!(admin.describe_topic("tyres").await.unwrap().pipeline, "{}");
    admin.detach_pipeline("tyres").await.unwrap();
    let found = admin.list_offsets("tyres", &[(0, Start::Earliest), (1, Start::Offset(9))]).await.unwrap();
    assert_eq!(found.iter().map(|found| found.offset).collect::<Vec<_>>(), [0, 9]);
    let kept = (0..500).map(|partition| GroupOffset { topic: "tyres".into(), partition, offset: 1, metadata: String::new() });
    admin.commit_offsets("group", kept.collect()).await.unwrap();
    assert_eq!(admin.committed_offsets("group", &[]).await.unwrap().len(), 500);
    assert_eq!(admin.list_groups().await.unwrap(), ["group"]);
    admin.delete_group("group").await.unwrap();
    admin.delete_topic("tyres").await.unwrap();
    assert_eq!((admin.status().await.unwrap(), admin.list_plugins().await.unwrap()), ("{}".into(), "[]".into()));
    admin.delete_plugin("plugin", "1.0.0").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_larger_than_a_frame_goes_in_parts() {
    let site = Site::start().await;
    let client = Client::connect(site.config()).await.unwrap();
    let component: Vec<u8> = (0..3_000_000u32).map(|n| n as u8).collect();
    for bytes in [1000, component.len()] {
        let named = client.admin().put_plugin(component[..bytes].to_vec()).await.unwrap();
        assert_eq!(named, ("plugin".to_owned(), "1.0.0".to_owned()));
        assert_eq!(lock(&site.shared.log).plugins.pop().unwrap(), component[..bytes]);
    }
    assert!(client.admin().list_pipelines().await.unwrap().len() > 3 << 20);
}

async fn ticket(site: &Site) -> ProducerTicket {
    let client = Client::connect(site.config()).await.unwrap();
    let producer = client.producer(ProducerConfig::new("events")).await.unwrap();
    let delivery = producer.send(Record { partition: Some(0), ..Record::value(b"first") }).await.unwrap();
    delivery.await.unwrap();
    ProducerTicket::from_bytes(&producer.ticket().to_bytes()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_published_twice_in_0_rtt_is_stored_once() {
    let site = Site::start().await;
    let mut ticket = ticket(&site).await;
    let device = Client::new(site.config()).unwrap();
    let cold = device.publish_once(&mut ticket, 0, &[Record::value(b"second")], 1).await.unwrap();
    assert_eq!((cold.zero_rtt, cold.ack.offset, cold.ack.duplicate), (false, 1, false));
    let mut again = ticket.clone();
    let first = device.publish_once(&mut ticket, 0, &[Record::value(b"third"), Record::value(b"fourth")], 1).await.unwrap();
    assert_eq!((first.zero_rtt, first.ack.offset, first.ack.duplicate), (true, 2, false));
    let second = device.publish_once(&mut again, 0, &[Record::value(b"third"), Record::value(b"fourth")], 1).await.unwrap();
    assert_eq!((second.zero_rtt, second.ack.offset, second.ack.duplicate), (true, 2, true));
    assert_eq!((ticket.next_sequence(), ticket), (4, again));
    assert_eq!(site.values("events", 0), [&b"first"[..], b"second", b"third", b"fourth"]);
    assert_eq!(site.shared.publishes.load(SeqCst), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn early_data_that_is_refused_is_sent_again() {
    let site = Site::with_certs(Certs::new(), true).await;
    let mut ticket = ticket(&site).await;
    let device = Client::new(site.config()).unwrap();
    device.warm_up().await.unwrap();
    site.forget_sessions();
    let outcome = device.publish_once(&mut ticket, 0, &[Record::value(b"second")], 1).await.unwrap();
    assert_eq!((outcome.zero_rtt, outcome.ack.offset), (false, 1));
    assert_eq!(site.values("events", 0).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_out_of_step_is_refused() {
    let site = Site::start().await;
    let mut ticket = ticket(&site).await;
    let mut ahead = ticket.to_bytes();
    ahead[19] += 5; // the sequence
    let device = Client::new(site.config()).unwrap();
    let gap = device.publish_once(&mut ProducerTicket::from_bytes(&ahead).unwrap(), 0, &[Record::value(b"x")], 1).await;
    assert!(matches!(gap, Err(ClientError::Refused { code: Code::SequenceGap, .. })), "{gap:?}");
    device.publish_once(&mut ticket, 0, &[Record::value(b"x")], 1).await.unwrap();
}

/// A person who named the wrong address waits for seconds; a producer whose node makes room first waits as long as its records may.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_refuses_for_now_is_waited_for_longer_than_one_that_is_not_there() {
    let site = Site::start().await;
    let impatient = || {
        let mut config = site.config();
        (config.retry_timeout, config.refused_timeout) = (Duration::from_millis(1), Duration::from_millis(1));
        config
    };
    site.faults(|faults| faults.refuse_hello = Some((Code::StorageFull, 1)));
    let error = Client::connect(impatient()).await.err().expect("refused, and there is no time to try again");
    assert!(matches!(&error, ClientError::TimedOut { what: "connecting", last, .. } if last.contains("not now")), "{error:?}");
    site.faults(|faults| faults.refuse_hello = Some((Code::StorageFull, 3)));
    let mut patient = impatient();
    patient.refused_timeout = Duration::from_secs(60);
    Client::connect(patient).await.unwrap();
}
