//! Reads a topic from its beginning to its end, as stored batches, with as many consumers as the load says. The records are
//! put there first and are not part of the measurement; every consumer reads all of them.

use std::time::Instant;

use tokio::task::JoinSet;
use weir_client::{Client, ClientConfig, ConsumerConfig, Start};

use super::publish::publish;
use crate::{BenchError, Host, Load, Report, Usage};

/// Fills the topic as the load says, then reads it back.
pub async fn consume(config: &ClientConfig, load: &Load, host: Host) -> Result<Report, BenchError> {
    let filling = Load { connections: 1, producers: 1, ..load.clone() };
    let filled = publish(config, &filling, host.clone()).await?;
    if filled.records == 0 {
        return Err(BenchError::Nothing("no record could be published to be read"));
    }
    let mut clients = Vec::new();
    for _ in 0..load.connections {
        clients.push(Client::connect(config.clone()).await?);
    }
    let cpu = Usage::own().cpu_seconds;
    let begin = Instant::now();
    let mut tasks = JoinSet::new();
    for client in &clients {
        for _ in 0..load.producers {
            tasks.spawn(read(client.clone(), load.topic.clone()));
        }
    }
    let mut report = Report::new("consume", load, host);
    while let Some(read) = tasks.join_next().await {
        let (records, bytes) = read.map_err(|_| BenchError::Nothing("a consumer of the load generator ended early"))??;
        report.records += records;
        report.batch_bytes += bytes;
        report.errors += u64::from(records < filled.records);
    }
    report.value_bytes = report.records * load.record_bytes as u64;
    report.client_cpu_seconds = Usage::own().cpu_seconds - cpu;
    report.rates(begin.elapsed().as_secs_f64());
    Ok(report)
}

async fn read(client: Client, topic: String) -> Result<(u64, u64), BenchError> {
    let mut config = ConsumerConfig::new(&topic);
    config.start = Start::Earliest;
    config.live = false;
    let mut consumer = client.consumer(config).await?;
    let (mut records, mut bytes) = (0, 0);
    while let Some(batch) = consumer.next_batch().await {
        let batch = batch?;
        for stored in weir_batch::split_batches(&batch.batches) {
            records += u64::from(stored?.record_count());
        }
        bytes += batch.batches.len() as u64;
    }
    Ok((records, bytes))
}
