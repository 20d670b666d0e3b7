//! The producers of a run: connections with their lanes, all of them ready before a clock starts.

use tokio::task::JoinSet;
use weir_client::{Client, ClientConfig, Producer, ProducerConfig};

use crate::{BenchError, Load, Payload};

/// Handshakes under way at once.
const CONNECTING_MAX: usize = 16;

/// A producer and what it sends.
pub(crate) struct Lane {
    pub(crate) producer: Producer,
    pub(crate) payload: Payload,
    /// The partition of its first batch; then the next one, and so on.
    pub(crate) first: u32,
    /// Partitions of its topic.
    pub(crate) partitions: u32,
}

/// Connects, opens all lanes and builds their batches; in the order of the connections.
pub(crate) async fn open(config: &ClientConfig, load: &Load) -> Result<Vec<Lane>, BenchError> {
    let run = fastrand::u64(..);
    let (mut ready, mut tasks) = (Vec::new(), JoinSet::new());
    for connection in 0..load.connections {
        if tasks.len() >= CONNECTING_MAX
            && let Some(one) = tasks.join_next().await
        {
            ready.push(one.map_err(ended_early)??);
        }
        let mut config = config.clone();
        config.producer_name = Some(format!("bench-{run:016x}-{connection}"));
        tasks.spawn(lanes_of(connection, config, load.clone()));
    }
    while let Some(one) = tasks.join_next().await {
        ready.push(one.map_err(ended_early)??);
    }
    ready.sort_by_key(|(connection, _)| *connection);
    let producers = ready.into_iter().flat_map(|(_, producers)| producers).enumerate();
    let lane = |(index, producer)| {
        let payload = Payload::build(load, index as u64)?;
        Ok(Lane { producer, payload, first: index as u32 % load.partitions, partitions: load.partitions })
    };
    producers.map(lane).collect()
}

async fn lanes_of(connection: u32, config: ClientConfig, load: Load) -> Result<(u32, Vec<Producer>), BenchError> {
    let client = Client::connect(config).await?;
    let mut producers = Vec::new();
    for lane in 0..load.producers {
        let mut config = ProducerConfig::new(&load.topic);
        config.lane = lane;
        config.in_flight = load.in_flight;
        producers.push(client.producer(config).await?);
    }
    Ok((connection, producers))
}

pub(crate) fn ended_early(_: tokio::task::JoinError) -> BenchError {
    BenchError::Nothing("a task of the load generator ended early")
}

/// Waits for all tasks of a run; the first error ends it.
pub(crate) async fn all(mut tasks: JoinSet<Result<(), BenchError>>) -> Result<(), BenchError> {
    while let Some(done) = tasks.join_next().await {
        done.map_err(ended_early)??;
    }
    Ok(())
}
