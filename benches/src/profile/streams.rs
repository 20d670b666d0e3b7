//! Many thin streams: a few records to each of many partitions, again and again, over topics as large as a node allows.

use std::sync::Arc;
use std::time::Instant;

use weir_client::{Client, ClientConfig, ProducerConfig};

use super::lanes::Lane;
use super::publish::fill_all;
use super::tally::Tally;
use crate::{BenchError, Host, Load, Payload, Report, Usage};

/// As many as one topic may have.
const PARTITIONS_OF_TOPIC_MAX: u32 = 10_000;

/// The topics that hold the partitions of a load.
#[derive(Debug, Clone)]
pub struct Streams {
    topics: Vec<(String, u32)>,
}

impl Streams {
    /// As few topics as hold them.
    pub fn of(load: &Load) -> Streams {
        let first = (0..load.partitions).step_by(PARTITIONS_OF_TOPIC_MAX as usize);
        let topics = first
            .enumerate()
            .map(|(number, first)| (format!("{}-{number}", load.topic), (load.partitions - first).min(PARTITIONS_OF_TOPIC_MAX)));
        Streams { topics: topics.collect() }
    }

    /// Creates them.
    pub async fn create(&self, client: &Client) -> Result<(), BenchError> {
        for (topic, partitions) in &self.topics {
            client.admin().create_topic(topic, *partitions, Vec::new()).await?;
        }
        Ok(())
    }

    /// Publishes to all partitions in turn.
    pub async fn publish(&self, config: &ClientConfig, load: &Load, host: Host) -> Result<Report, BenchError> {
        let (lanes, in_flight) = self.lanes(config, load).await?;
        let load = &Load { in_flight, ..load.clone() };
        let (tally, cpu) = (Arc::new(Tally::new()), Usage::own().cpu_seconds);
        let begin = Instant::now();
        fill_all(lanes, load, &tally).await?;
        Ok(tally.report("streams", load, host, begin, cpu))
    }

    /// A lane a connection, or a topic where there are more of those, and how many batches each may have under way: about as many
    /// in all whatever the number of topics, so that runs compare.
    async fn lanes(&self, config: &ClientConfig, load: &Load) -> Result<(Vec<Lane>, u16), BenchError> {
        let count = self.topics.len().max(load.connections as usize);
        let in_flight = (usize::from(load.in_flight) * load.connections as usize).div_ceil(count) as u16;
        let mut clients = Vec::new();
        for connection in 0..load.connections {
            let mut config = config.clone();
            config.producer_name = Some(format!("{}-{connection}", load.topic));
            clients.push(Client::connect(config).await?);
        }
        let mut lanes = Vec::new();
        for number in 0..count {
            let (topic, partitions) = &self.topics[number % self.topics.len()];
            let mut config = ProducerConfig::new(topic);
            config.lane = (number / clients.len()) as u32;
            config.in_flight = in_flight;
            let producer = clients[number % clients.len()].producer(config).await?;
            // Lanes of one topic begin apart.
            let (turn, turns) = ((number / self.topics.len()) as u32, count.div_ceil(self.topics.len()) as u32);
            let first = (u64::from(turn) * u64::from(*partitions) / u64::from(turns)) as u32;
            lanes.push(Lane { producer, payload: Payload::build(load, number as u64)?, first, partitions: *partitions });
        }
        Ok((lanes, in_flight))
    }

    /// Records that the node has of them.
    pub async fn stored(&self, client: &Client) -> Result<u64, BenchError> {
        let mut records = 0;
        for (topic, _) in &self.topics {
            let described = client.admin().describe_topic(topic).await?;
            records += described.partitions.iter().map(|range| (range.high_watermark - range.start_offset) as u64).sum::<u64>();
        }
        Ok(records)
    }
}
