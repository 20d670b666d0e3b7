//! The load generator against a node: what it counts is what the node has.

use std::time::Duration;

use weir_bench::profile::{Standby, Streams, address_changes, fill_topic, latency, publish, read_topic, tail};
use weir_bench::{Host, Load};
use weir_client::{Client, ClientConfig};

use crate::common::Site;

fn config(site: &Site) -> ClientConfig {
    let pair = site.ca.make_client("admin", 30).unwrap();
    let ca = site.ca.pem().cert.clone().into_bytes();
    ClientConfig::new(site.addr().to_string(), ca, pair.cert.into_bytes(), pair.key.into_bytes())
}

fn load() -> Load {
    Load {
        topic: "t".to_owned(),
        partitions: 3,
        records: Some(600),
        seconds: Duration::from_secs(1),
        record_bytes: 50,
        batch_records: 10,
        connections: 2,
        producers: 2,
        in_flight: 4,
        rate: None,
        zstd: false,
    }
}

fn host() -> Host {
    Host::detect(None)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_is_counted_once_at_any_pace() {
    let site = Site::new().await;
    let (config, load) = (config(&site), load());
    let client = Client::connect(config.clone()).await.unwrap();
    client.admin().create_topic("t", load.partitions, Vec::new()).await.unwrap();
    let closed = publish(&config, &load, host()).await.unwrap();
    let one_by_one = Load { batch_records: 1, in_flight: 1, ..load.clone() };
    assert!(one_by_one.is_one_by_one() && !load.is_one_by_one());
    let single = publish(&config, &one_by_one, host()).await.unwrap();
    let paced = Load { rate: Some(100_000), ..load.clone() };
    let open = latency(&config, &paced, host()).await.unwrap();
    for report in [&closed, &single, &open] {
        assert_eq!((report.records, report.errors), (600, 0), "{report:?}");
        assert!(report.figures["client_cpu_ns_per_record"] >= 0.0);
    }
    assert!(open.figures.contains_key("generator_late_p99_ms"));
    let filled = fill_topic(&config, &load, host()).await.unwrap();
    let read = read_topic(&config, &load, 3 * 600 + filled, host()).await.unwrap();
    // Two connections with two consumers each.
    assert_eq!((read.records, read.errors), (4 * 2400, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn consumers_at_the_tail_see_all_of_it_beside_one_that_hangs() {
    let site = Site::new().await;
    let (config, load) = (config(&site), load());
    let client = Client::connect(config.clone()).await.unwrap();
    client.admin().create_topic("t", load.partitions, Vec::new()).await.unwrap();
    let report = tail(&config, &load, (2, 1), host()).await.unwrap();
    assert_eq!((report.records, report.errors), (2 * 600, 0), "{report:?}");
    assert!(report.figures["publish_records_per_second"] > 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_are_spread_over_topics_and_stored() {
    let site = Site::new().await;
    let (config, load) = (config(&site), Load { partitions: 10_007, ..load() });
    let streams = Streams::of(&load);
    let client = Client::connect(config.clone()).await.unwrap();
    streams.create(&client).await.unwrap();
    let topics = client.admin().list_topics().await.unwrap();
    assert_eq!(topics, [("t-0".to_owned(), 10_000), ("t-1".to_owned(), 7)]);
    let report = streams.publish(&config, &load, host()).await.unwrap();
    assert_eq!((report.records, report.errors), (600, 0));
    assert_eq!(streams.stored(&client).await.unwrap(), 600);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_stand_by_and_change_their_address() {
    let site = Site::new().await;
    let (config, load) = (config(&site), load());
    let client = Client::connect(config.clone()).await.unwrap();
    client.admin().create_topic("t", load.partitions, Vec::new()).await.unwrap();
    let standby = Standby::open(&config, 20).await.unwrap();
    assert_eq!(standby.alive(), 20);
    assert_eq!(address_changes(&config, &load, 3).await.unwrap(), 3);
}
