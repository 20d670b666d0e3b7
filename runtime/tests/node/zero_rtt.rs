//! The first flight of a resumed connection may be sent again by anybody who recorded it: it must change nothing.

use quinn::Endpoint;
use weir_protocol::{AckCode, Acks, Kind, Message, Nacks, Publish};

use crate::common::{Site, Stream, batch, client_config, message, soon};

fn publish(id: i64, epoch: i16, base_sequence: u64, values: &[&str]) -> Publish {
    Publish {
        producer_id: id,
        producer_epoch: epoch,
        lane: 9,
        topic: "t".into(),
        partition: 0,
        base_sequence,
        batch: batch(values),
    }
}

/// A connection with a first flight. Sessions are single-use and a new one's ticket follows the handshake: where none has come
/// yet, a whole connection with a round trip fetches one.
async fn resume(endpoint: &Endpoint, site: &Site) -> (quinn::Connection, quinn::ZeroRttAccepted) {
    for _ in 0..10 {
        match endpoint.connect(site.addr(), "localhost").unwrap().into_0rtt() {
            Ok(resumed) => return resumed,
            Err(connecting) => {
                let mut raw = crate::common::Raw::of(soon(connecting).await.unwrap());
                raw.hello("").await;
            }
        }
    }
    panic!("no session to resume");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publish_in_the_first_flight_is_stored_once_however_often_it_comes() {
    let site = Site::start_with(|config| config.quic.zero_rtt = true).await;
    site.admin().await.create_topic("t", 1).await;
    let pair = site.ca.make_client("device", 30).unwrap();
    let mut endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    endpoint.set_default_client_config(client_config(&site.ca, Some(&pair)));
    let (mut raw, welcome) = {
        let connection = soon(endpoint.connect(site.addr(), "localhost").unwrap()).await.unwrap();
        let mut raw = crate::common::Raw::of(connection);
        let welcome = raw.hello("unit").await;
        (raw, welcome)
    };
    let (mut lane, _) = raw.lane(9, "t").await;
    lane.say(&message(0, &["a"])).await;
    raw.answers(1).await;
    let mut codes = Vec::new();
    for _ in 0..3 {
        let (connection, accepted) = resume(&endpoint, &site).await;
        let mut stream = Stream::of(connection.open_bi().await.unwrap());
        stream.say(&publish(welcome.producer_id, welcome.producer_epoch, 1, &["b"])).await;
        stream.send.finish().unwrap();
        let frame = stream.frame().await.expect("an answer");
        assert_eq!(frame.kind, Kind::Ack, "{:?}", Nacks::decode(frame.body));
        codes.push(Acks::decode(frame.body).unwrap().items[0].code);
        assert!(soon(accepted).await, "the node takes early data");
    }
    assert_eq!(codes, [AckCode::Durable, AckCode::Duplicate, AckCode::Duplicate]);
    assert_eq!(raw.values("t", 0).await, ["a", "b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publish_needs_an_identity_of_its_own_principal() {
    let site = Site::new().await;
    site.admin().await.create_topic("t", 1).await;
    let (_raw, welcome) = site.hello("device", "unit").await;
    let thief = site.connect("device-2").await;
    for (id, epoch, code) in [
        (welcome.producer_id, welcome.producer_epoch, weir_protocol::Code::UnknownProducer),
        (welcome.producer_id + 1, 0, weir_protocol::Code::UnknownProducer),
    ] {
        let mut stream = thief.stream().await;
        stream.say(&publish(id, epoch, 0, &["x"])).await;
        let nacks: Nacks = stream.expect().await;
        assert_eq!(nacks.items[0].code, code);
    }
    let owner = site.connect("device").await;
    for epoch in [welcome.producer_epoch + 1, welcome.producer_epoch - 1] {
        let mut stream = owner.stream().await;
        stream.say(&publish(welcome.producer_id, epoch, 0, &["x"])).await;
        let nacks: Nacks = stream.expect().await;
        assert_eq!(nacks.items[0].code, weir_protocol::Code::Fenced, "an epoch that was never given out raises nothing");
    }
}
