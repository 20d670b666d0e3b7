//! Prints a topic from its beginning and then live: `cargo run -p weir-client --example consume -- localhost:7400 events ca.pem device.pem device.key`
//!
//! With a group as sixth argument it goes on where the group stopped last time.

use std::{env, error::Error};

use weir_client::{Client, ClientConfig, ConsumerConfig};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [addr, topic, ca, cert, key, group @ ..] = args.as_slice() else {
        return Err("usage: consume ADDR TOPIC CA CERT KEY [GROUP]".into());
    };
    let client = Client::connect(ClientConfig::from_files(addr.as_str(), ca, cert, key)?).await?;
    let mut config = ConsumerConfig::new(topic.as_str());
    config.group = group.first().cloned();
    let mut consumer = client.consumer(config).await?;
    let mut count = 0u64;
    while let Some(record) = consumer.next().await {
        let record = record?;
        let value = String::from_utf8_lossy(record.value.as_deref().unwrap_or_default());
        println!("{}/{} {value}", record.partition, record.offset);
        count += 1;
        if !group.is_empty() && count.is_multiple_of(1000) {
            consumer.commit().await?;
        }
    }
    Ok(())
}
