//! Producing: every record once and in order, whatever the connection does.

mod site;

use std::{sync::atomic::Ordering::SeqCst, time::Duration};

use site::{IN_FLIGHT, Site, lock};
use weir_client::*;

fn config() -> ProducerConfig {
    let mut config = ProducerConfig::new("events");
    config.batch_bytes = 1 << 10;
    config
}

/// Sends numbered records to one partition and waits for all of them.
async fn send_numbers(producer: &Producer, numbers: std::ops::Range<u32>) -> Vec<Result<Ack, ClientError>> {
    let mut deliveries = Vec::new();
    for number in numbers {
        let value = number.to_string();
        deliveries.push(producer.send(Record { partition: Some(1), ..Record::value(value.as_bytes()) }).await.unwrap());
    }
    let mut acks = Vec::new();
    for delivery in deliveries {
        acks.push(delivery.await);
    }
    acks
}

fn numbers(range: std::ops::Range<u32>) -> Vec<Vec<u8>> {
    range.map(|number| number.to_string().into_bytes()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn records_are_acknowledged_with_their_offsets() {
    let site = Site::start().await;
    let client = Client::connect(site.config()).await.unwrap();
    let producer = client.producer(config()).await.unwrap();
    let acks = send_numbers(&producer, 0..2000).await;
    for (offset, ack) in acks.into_iter().enumerate() {
        let ack = ack.unwrap();
        assert_eq!((ack.partition, ack.offset, ack.duplicate), (1, offset as i64, false));
    }
    assert_eq!(site.values("events", 1), numbers(0..2000));
    assert_eq!(producer.next_sequence(), 2000);
    assert!(lock(&site.shared.log).commits < 500, "records share batches");
    producer.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_choose_partitions_as_kafka_does() {
    let site = Site::start().await;
    let client = Client::connect(site.config()).await.unwrap();
    let producer = client.producer(config()).await.unwrap();
    for key in 0..100u32 {
        let delivery = producer.send(Record::keyed(&key.to_le_bytes(), b"x")).await.unwrap();
        let wanted = weir_batch::partition_for_key(&key.to_le_bytes(), 2);
        assert_eq!(tokio::select! { ack = delivery => ack, flushed = async { producer.flush().await?; std::future::pending().await } => flushed }.unwrap().partition, wanted);
    }
    let beyond = producer.send(Record { partition: Some(2), ..Record::value(b"x") }).await;
    assert!(matches!(beyond, Err(ClientError::UnknownPartition { partition: 2, partitions: 2, .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_connection_loses_and_repeats_nothing() {
    let site = Site::start().await;
    site.faults(|faults| faults.credit_bytes = Some(4 << 10)); // keeps batches small, so that there are many
    let client = Client::connect(site.config()).await.unwrap();
    let producer = client.producer(config()).await.unwrap();
    let mut sent = 0;
    for round in 0..6 {
        site.faults(|faults| match round % 2 {
            0 => faults.cut_after_commits = Some(3),
            _ => faults.cut_after_arrivals = Some(2),
        });
        let acks = send_numbers(&producer, sent..sent + 1000).await;
        assert!(acks.iter().all(Result::is_ok), "{:?}", acks.iter().find(|ack| ack.is_err()));
        sent += 1000;
    }
    assert_eq!(site.values("events", 1), numbers(0..sent));
    assert!(site.shared.connections.load(SeqCst) >= 7);
    assert_eq!(producer.durable_sequence(), sent as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ack_that_got_lost_is_not_a_loss() {
    let site = Site::start().await;
    let client = Client::connect(site.config()).await.unwrap();
    let producer = client.producer(config()).await.unwrap();
    site.faults(|faults| faults.cut_after_commits = Some(1));
    let acks = send_numbers(&producer, 0..10).await;
    let ack = acks[0].clone().unwrap();
    assert_eq!((ack.offset, ack.duplicate, ack.stored), (-1, true, None), "LANE_READY said so, without an offset");
    assert_eq!(site.values("events", 1), numbers(0..10));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ack_twice_is_an_ack() {
    let site = Site::start().await;
    site.faults(|faults| faults.twice = true);
    let client = Client::connect(site.config()).await.unwrap();
    let producer = client.producer(config()).await.unwrap();
    assert!(send_numbers(&producer, 0..1000).await.iter().all(Result::is_ok));
    assert_eq!(site.values("events", 1), numbers(0..1000));
    assert_eq!(site.shared.connections.load(SeqCst), 2, "one to administer, one to produce");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_process_goes_on_where_it_was() {
    let site = Site::start().await;
    let named = site.config().producer_name("gateway");
    let client = Client::connect(named.clone()).await.unwrap();
    let producer = client.producer(config()).await.unwrap();
    send_numbers(&producer, 0..100).await;
    drop((producer, client));
    let client = Client::connect(named).await.unwrap();
    let producer = client.producer(config()).await.unwrap();
    assert_eq!(producer.next_sequence(), 100);
    assert_eq!(send_numbers(&producer, 100..200).await[0].clone().unwrap().offset, 100);
    assert_eq!(site.values("events", 1), numbers(0..200));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_older_of_two_processes_with_one_name_is_fenced() {
    let site = Site::start().await;
    let named = site.config().producer_name("gateway");
    let older = Client::connect(named.clone()).await.unwrap().producer(config()).await.unwrap();
    let _newer = Client::connect(named).await.unwrap().producer(config()).await.unwrap();
    let acks = send_numbers(&older, 0..10).await;
    let fenced = ClientError::Fenced { producer_name: "gateway".into() };
    assert_eq!(acks[9].clone().unwrap_err(), fenced);
    assert_eq!(older.send(Record::value(b"x")).await.unwrap_err(), fenced);
    assert_eq!(older.flush().await.unwrap_err(), fenced);
    assert_eq!(site.values("events", 1).len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_server_is_tried_again() {
    let site = Site::start().await;
    let client = Client::connect(site.config()).await.unwrap();
    let producer = client.producer(config()).await.unwrap();
    site.faults(|faults| faults.refuse = Some((Code::StorageFull, 3)));
    assert!(send_numbers(&producer, 0..1000).await.iter().all(Result::is_ok));
    assert_eq!(site.values("events", 1), numbers(0..1000));
    site.faults(|faults| faults.refuse = Some((Code::ShuttingDown, 1)));
    assert!(send_numbers(&producer, 1000..2000).await.iter().all(Result::is_ok));
    assert_eq!(site.values("events", 1), numbers(0..2000));
    assert_eq!(site.shared.connections.load(SeqCst), 3, "shutting_down wants another connection");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_batch_fails_alone() {
    let site = Site::start().await;
    let client = Client::connect(site.config()).await.unwrap();
    let producer = client.producer(config()).await.unwrap();
    site.faults(|faults| (faults.poison, faults.hold) = (Some(b"poison".to_vec()), true));
    let mut deliveries = Vec::new();
    for value in [&b"a"[..], b"poison", b"b", b"c"] {
        let mut builder = BatchBuilder::new(Codec::None);
        builder.push(0, None, Some(value), &[]);
        deliveries.push(producer.send_batch(0, builder.finish().unwrap(), 1).await.unwrap());
    }
    site.shared.until(|log| log.arrived == 4).await;
    site.faults(|faults| faults.hold = false);
    let mut results = Vec::new();
    for delivery in deliveries {
        results.push(delivery.await.map(|ack| ack.offset));
    }
    assert!(matches!(results[1], Err(ClientError::Refused { code: Code::RejectedByPipeline, .. })), "{results:?}");
    assert_eq!((&results[0], &results[2], &results[3]), (&Ok(0), &Ok(1), &Ok(2)));
    assert_eq!(site.values("events", 0), [b"a", b"b", b"c"]);
    assert_eq!(producer.next_sequence(), 3, "what was refused has no sequence");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_lane_is_full_batches_grow() {
    let site = Site::start().await;
    site.faults(|faults| (faults.hold, faults.credit_bytes, faults.in_flight) = (true, Some(64 << 10), Some(2)));
    let client = Client::connect(site.config()).await.unwrap();
    let mut config = config();
    (config.linger, config.batch_bytes) = (Duration::ZERO, 256);
    let producer = client.producer(config).await.unwrap();
    let mut deliveries = Vec::new();
    let mut send = async |range: std::ops::Range<u32>| {
        for number in range {
            deliveries.push(
                producer.send(Record { partition: Some(1), ..Record::value(number.to_string().as_bytes()) }).await.unwrap(),
            );
        }
    };
    send(0..1).await;
    site.shared.until(|log| log.arrived == 1).await;
    send(1..2).await;
    site.shared.until(|log| log.arrived == 2).await;
    send(2..3000).await;
    site.faults(|faults| faults.hold = false);
    producer.flush().await.unwrap();
    assert_eq!(site.values("events", 1), numbers(0..3000));
    assert_eq!(site.shared.max_in_flight.load(SeqCst), 2);
    assert!(site.shared.largest_batch.load(SeqCst) > 500, "{:?}", site.shared.largest_batch);
    assert!(deliveries.into_iter().all(|delivery| delivery.try_ack().is_some_and(|ack| ack.is_ok())));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_buffer_makes_send_wait() {
    let site = Site::start().await;
    site.faults(|faults| faults.hold = true);
    let client = Client::connect(site.config()).await.unwrap();
    let mut config = config();
    config.buffer_bytes = 10_000;
    let producer = client.producer(config).await.unwrap();
    let value = [b'x'; 1000];
    let mut sent = 0;
    while let Ok(delivery) = tokio::time::timeout(Duration::from_millis(200), producer.send(Record::value(&value))).await {
        drop(delivery.unwrap());
        sent += 1;
        assert!(sent < 10, "ten of them are over the buffer");
    }
    let waiting = producer.send(Record::value(&value));
    site.faults(|faults| faults.hold = false);
    waiting.await.unwrap().await.unwrap();
    assert!(site.shared.max_in_flight.load(SeqCst) <= IN_FLIGHT as usize);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_delivered_in_time_is_given_up() {
    let site = Site::start().await;
    site.faults(|faults| faults.hold = true);
    let client = Client::connect(site.config()).await.unwrap();
    let mut config = config();
    config.delivery_timeout = Duration::from_millis(50);
    let producer = client.producer(config).await.unwrap();
    let late = producer.send(Record { partition: Some(1), ..Record::value(b"late") }).await.unwrap();
    assert!(matches!(late.await, Err(ClientError::TimedOut { .. })));
    drop(producer);
    let client = Client::connect(site.config()).await.unwrap();
    site.faults(|faults| faults.hold = false);
    let producer = client.producer(ProducerConfig::new("events")).await.unwrap();
    assert!(send_numbers(&producer, 0..10).await.iter().all(Result::is_ok), "the server is well");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_not_there_is_named() {
    let site = Site::start().await;
    let client = Client::connect(site.config()).await.unwrap();
    let error = client.producer(ProducerConfig::new("evnets")).await.err().unwrap();
    assert_eq!(error, ClientError::Refused { code: Code::UnknownTopic, message: "there is no topic evnets".into() });
    assert_eq!(error.whose_turn(), WhoseTurn::Application);
}

#[tokio::test(flavor = "multi_thread")]
async fn lanes_of_one_client_are_independent() {
    let site = Site::start().await;
    let client = Client::connect(site.config()).await.unwrap();
    let first = client.producer(config()).await.unwrap();
    assert_eq!(client.producer(config()).await.err().unwrap(), ClientError::LaneInUse { lane: 0 });
    let mut second = config();
    second.lane = 1;
    let second = client.producer(second).await.unwrap();
    site.faults(|faults| faults.cut_after_commits = Some(2));
    let (a, b) = tokio::join!(send_numbers(&first, 0..500), send_numbers(&second, 0..500));
    assert!(a.iter().chain(&b).all(Result::is_ok));
    assert_eq!(site.values("events", 1).len(), 1000);
    assert_eq!((first.next_sequence(), second.next_sequence()), (500, 500));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_over_the_limit_is_refused_at_once() {
    let site = Site::start().await;
    let client = Client::connect(site.config()).await.unwrap();
    let producer = client.producer(config()).await.unwrap();
    let error = producer.send(Record::value(&vec![0; 2 << 20])).await.unwrap_err();
    assert!(matches!(error, ClientError::RecordTooLarge { .. }));
    let large = vec![0; 900 << 10];
    assert!(producer.send(Record::value(&large)).await.unwrap().await.is_ok());
}
