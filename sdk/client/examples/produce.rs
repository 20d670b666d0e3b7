//! Sends each line of stdin as a record: `cargo run -p weir-client --example produce -- localhost:7400 events ca.pem device.pem device.key`
//!
//! A line `key=value` is sent with its key, so lines of one key stay in order.

use std::{env, error::Error, io};

use weir_client::{Client, ClientConfig, ProducerConfig, Record};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [addr, topic, ca, cert, key] = args.as_slice() else { return Err("usage: produce ADDR TOPIC CA CERT KEY".into()) };
    let client = Client::connect(ClientConfig::from_files(addr.as_str(), ca, cert, key)?).await?;
    let producer = client.producer(ProducerConfig::new(topic.as_str())).await?;
    let mut last = None;
    for line in io::stdin().lines() {
        let line = line?;
        let record = match line.split_once('=') {
            Some((key, value)) => Record::keyed(key.as_bytes(), value.as_bytes()),
            None => Record::value(line.as_bytes()),
        };
        last = Some(producer.send(record).await?); // waits only while the buffer is full
    }
    producer.flush().await?;
    if let Some(last) = last {
        let ack = last.await?;
        println!(
            "{} records are durable; the last one at offset {} of partition {}",
            producer.next_sequence(),
            ack.offset,
            ack.partition
        );
    }
    producer.close().await?;
    client.close().await;
    Ok(())
}
