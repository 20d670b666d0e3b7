//! Clients whose address changes under way, and the ingest threads that must still know them.

use weir_client::{Client, ClientConfig, Producer, ProducerConfig, Record, Sockets};

use crate::common::{FOREVER, Site};

const VEHICLES: usize = 64;

/// A site whose node serves with two threads, and its vehicles: all behind one socket, as behind a carrier's NAT.
async fn fleet(site: &Site, sockets: &Sockets) -> Vec<(Client, Producer)> {
    site.admin().await.create_topic("t", 2).await;
    let pair = site.ca.make_client("device", 30).unwrap();
    let mut vehicles = Vec::new();
    for number in 0..VEHICLES {
        let (ca, cert, key) = (site.ca.pem().cert.clone(), pair.cert.clone(), pair.key.clone());
        let config = ClientConfig::new(site.addr().to_string(), ca.into_bytes(), cert.into_bytes(), key.into_bytes());
        let client = Client::over(sockets, config.producer_name(format!("vehicle-{number}"))).unwrap();
        let producer = client.producer(ProducerConfig::new("t")).await.unwrap();
        vehicles.push((client, producer));
    }
    vehicles
}

async fn publish(vehicles: &[(Client, Producer)]) {
    for (_, producer) in vehicles {
        let sent = producer.send(Record::value(b"221 kPa")).await.unwrap();
        tokio::time::timeout(FOREVER, sent).await.expect("acknowledged").unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_connection_survives_a_change_of_address() {
    let site = Site::start_with(|config| config.quic.ingest_threads = 2).await;
    let sockets = Sockets::open().unwrap();
    let vehicles = fleet(&site, &sockets).await;
    publish(&vehicles).await;
    let opened = site.node().broker().metrics().connections_opened.get();
    for _ in 0..3 {
        sockets.rebind().unwrap();
        publish(&vehicles).await;
    }
    assert_eq!(site.node().broker().metrics().connections_opened.get(), opened, "some had to connect again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_on_shared_sockets_ends_alone() {
    let site = Site::new().await;
    let sockets = Sockets::open().unwrap();
    let mut vehicles = fleet(&site, &sockets).await;
    let (client, producer) = vehicles.pop().unwrap();
    producer.close().await.unwrap();
    client.close().await;
    drop(vehicles.pop());
    publish(&vehicles).await;
}
