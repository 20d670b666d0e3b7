//! Consuming: from a position to the end or for ever, over as many connections as it takes.

mod site;

use std::{pin::Pin, sync::atomic::Ordering::SeqCst, task::Context};

use futures_core::Stream;
use site::Site;
use weir_client::*;

async fn fill(client: &Client, codec: Codec, count: u32) -> Producer {
    let mut config = ProducerConfig::new("events");
    (config.batch_bytes, config.compression) = (512, codec);
    let producer = client.producer(config).await.unwrap();
    add(&producer, 0..count).await;
    producer
}

async fn add(producer: &Producer, range: std::ops::Range<u32>) {
    for number in range {
        let value = number.to_le_bytes();
        let record = Record { partition: Some(0), timestamp: Some(number as i64), ..Record::value(&value) };
        drop(producer.send(record).await.unwrap());
    }
    producer.flush().await.unwrap();
}

fn number(record: &ConsumerRecord) -> u32 {
    u32::from_le_bytes(record.value.as_deref().unwrap().try_into().unwrap())
}

async fn take(consumer: &mut Consumer, count: u32) -> Vec<u32> {
    let mut taken = Vec::new();
    while (taken.len() as u32) < count {
        let record = consumer.next().await.unwrap().unwrap();
        assert_eq!(record.offset, number(&record) as i64);
        taken.push(number(&record));
    }
    taken
}

async fn rest(consumer: &mut Consumer) -> Vec<u32> {
    let mut taken = Vec::new();
    while let Some(record) = consumer.next().await {
        taken.push(number(&record.unwrap()));
    }
    taken
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bounded_consumer_ends_at_the_tail() {
    let site = Site::start().await;
    let client = Client::connect(site.config()).await.unwrap();
    for codec in [Codec::None, Codec::Zstd(1)] {
        let offset = site.values("events", 0).len() as i64;
        assert_eq!(offset, 0);
        let _producer = fill(&client, codec, 1000).await;
        let mut config = ConsumerConfig::new("events");
        (config.live, config.credit_bytes) = (false, 2000);
        let mut consumer = client.consumer(config.clone()).await.unwrap();
        assert_eq!(rest(&mut consumer).await, (0..1000).collect::<Vec<_>>());
        assert!(consumer.next().await.is_none());
        config.start = Start::Offset(501);
        assert_eq!(rest(&mut client.consumer(config.clone()).await.unwrap()).await, (501..1000).collect::<Vec<_>>());
        config.start = Start::Timestamp(990);
        let from_time = rest(&mut client.consumer(config).await.unwrap()).await;
        assert!(from_time[0] <= 990 && from_time.ends_with(&[998, 999]));
        client.admin().delete_topic("events").await.unwrap();
        client.admin().create_topic("events", 2, vec![]).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_consumer_follows_the_tail_over_lost_connections() {
    let site = Site::start().await;
    let client = Client::connect(site.config()).await.unwrap();
    let producer = fill(&client, Codec::None, 500).await;
    let mut config = ConsumerConfig::new("events");
    config.credit_bytes = 4000;
    let mut consumer = client.consumer(config).await.unwrap();
    let mut seen = take(&mut consumer, 500).await;
    for round in 1..4 {
        site.faults(|faults| faults.cut_after_data = Some(1));
        let (_, more) = tokio::join!(add(&producer, round * 500..round * 500 + 500), take(&mut consumer, 500));
        seen.extend(more);
    }
    assert_eq!(seen, (0..2000).collect::<Vec<_>>());
    assert!(site.shared.connections.load(SeqCst) >= 4);
    assert_eq!(consumer.positions()[&0], 2000);
}

#[tokio::test(flavor = "multi_thread")]
async fn latest_means_from_the_start_of_the_consumer_on() {
    let site = Site::start().await;
    let client = Client::connect(site.config()).await.unwrap();
    let producer = fill(&client, Codec::None, 100).await;
    let mut config = ConsumerConfig::new("events");
    config.start = Start::Latest;
    let mut consumer = client.consumer(config).await.unwrap();
    add(&producer, 100..110).await;
    assert_eq!(take(&mut consumer, 10).await, (100..110).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_goes_on_where_it_committed() {
    let site = Site::start().await;
    let client = Client::connect(site.config()).await.unwrap();
    let _producer = fill(&client, Codec::None, 1000).await;
    let mut config = ConsumerConfig::new("events");
    (config.group, config.live) = (Some("readers".into()), false);
    let mut consumer = client.consumer(config.clone()).await.unwrap();
    take(&mut consumer, 300).await;
    consumer.commit().await.unwrap();
    take(&mut consumer, 100).await;
    drop(consumer);
    assert_eq!(rest(&mut client.consumer(config).await.unwrap()).await, (300..1000).collect::<Vec<_>>());
    let kept = client.admin().committed_offsets("readers", &[]).await.unwrap();
    assert!(kept.iter().any(|kept| (kept.partition, kept.offset) == (0, 300)));
    let mut none = client.consumer(ConsumerConfig::new("events")).await.unwrap();
    assert!(matches!(none.commit().await, Err(ClientError::Config { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn giving_up_a_wait_loses_no_record() {
    let site = Site::start().await;
    let client = Client::connect(site.config()).await.unwrap();
    let producer = fill(&client, Codec::None, 0).await;
    let mut consumer = client.consumer(ConsumerConfig::new("events")).await.unwrap();
    let mut seen = Vec::new();
    for next in 0..50 {
        tokio::select! {
            biased;
            record = consumer.next() => seen.push(number(&record.unwrap().unwrap())),
            () = add(&producer, next..next + 1) => {}
        }
    }
    producer.flush().await.unwrap();
    while seen.len() < site.values("events", 0).len() {
        seen.push(number(&consumer.next().await.unwrap().unwrap()));
    }
    let stored: Vec<_> = site.values("events", 0).iter().map(|value| u32::from_le_bytes(value[..].try_into().unwrap())).collect();
    assert_eq!(seen, stored);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_a_stream_and_gives_raw_batches_too() {
    let site = Site::start().await;
    let client = Client::connect(site.config()).await.unwrap();
    let _producer = fill(&client, Codec::None, 100).await;
    let mut config = ConsumerConfig::new("events");
    (config.live, config.partitions) = (false, Some(vec![0]));
    let mut consumer = client.consumer(config.clone()).await.unwrap();
    let mut count = 0;
    while let Some(record) = std::future::poll_fn(|cx: &mut Context<'_>| Pin::new(&mut consumer).poll_next(cx)).await {
        record.unwrap();
        count += 1;
    }
    assert_eq!(count, 100);
    let mut consumer = client.consumer(config).await.unwrap();
    let mut next = 0;
    while let Some(fetched) = consumer.next_batch().await {
        let fetched = fetched.unwrap();
        assert_eq!((fetched.start_offset, fetched.high_watermark), (next, 100));
        next = fetched.next_offset;
    }
    assert_eq!(next, 100);
}
