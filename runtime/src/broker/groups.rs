//! Positions of consumer groups: committed offsets, durable before the commit is answered.
//!
//! They live in the log's metadata under `g`, group, topic, partition; the log's own view answers reads, so nothing is
//! held twice. Only the number of groups and of positions is counted here, to bound both.

use std::collections::HashMap;
use std::sync::Mutex;

use weir_storage::{LogHandle, MetaOp};

use super::Refusal;
use super::meta::{self, MetaError, Reader, Writer, check_name};
use super::writer::{LogWriter, lock};

/// Bytes of a group's name.
const GROUP_NAME_BYTES_MAX: usize = 249;
/// Bytes of the free text beside an offset.
const METADATA_BYTES_MAX: usize = 1_024;
/// Positions in one commit.
const COMMIT_POSITIONS_MAX: usize = 10_000;

/// Where a group stands in one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// Topic.
    pub topic: String,
    /// Partition.
    pub partition: u32,
    /// The next offset to consume; -1 where none was committed.
    pub offset: i64,
    /// Free text of the consumer.
    pub metadata: String,
}

/// All groups of the node.
#[derive(Debug)]
pub(crate) struct Groups {
    /// Positions a group holds.
    counts: Mutex<HashMap<String, usize>>,
    groups_max: usize,
    positions_max: usize,
}

impl Groups {
    /// Counts the groups in the log's metadata.
    pub(crate) fn load(log: &LogHandle, groups_max: usize, positions_max: usize) -> Result<Groups, MetaError> {
        let mut counts: HashMap<String, usize> = HashMap::new();
        for (key, _) in log.meta_scan(meta::POSITIONS) {
            let (group, _, _) = decode_key(&key)?;
            *counts.entry(group.to_owned()).or_default() += 1;
        }
        Ok(Groups { counts: Mutex::new(counts), groups_max, positions_max })
    }

    /// Stores positions; durable when it returns. The caller has checked topics and rights.
    pub(crate) async fn commit(
        &self,
        log: &LogHandle,
        writer: &LogWriter,
        group: &str,
        positions: &[Position],
    ) -> Result<(), Refusal> {
        check_name("group", group, GROUP_NAME_BYTES_MAX)?;
        if positions.len() > COMMIT_POSITIONS_MAX {
            let problem = format!("{} positions, at most {COMMIT_POSITIONS_MAX} in one commit", positions.len());
            return Err(Refusal::InvalidArgument { field: "positions", problem });
        }
        let mut puts = Vec::with_capacity(positions.len());
        for position in positions {
            puts.push(put(group, position)?);
        }
        if puts.is_empty() {
            return Ok(());
        }
        let pending = {
            let mut counts = lock(&self.counts);
            let fresh = puts.iter().filter(|(key, _)| log.meta(key).is_none()).count();
            self.reserve(&mut counts, group, fresh)?;
            let puts = puts.into_iter().map(|(key, value)| MetaOp::Put { key, value }).collect();
            writer.submit_meta(puts)
        };
        pending.durable().await
    }

    fn reserve(&self, counts: &mut HashMap<String, usize>, group: &str, fresh: usize) -> Result<(), Refusal> {
        if fresh == 0 {
            return Ok(());
        }
        let known = counts.get(group).copied();
        if known.is_none() && counts.len() >= self.groups_max {
            return Err(Refusal::Quota { what: format!("the node holds {} groups at most", self.groups_max) });
        }
        if known.unwrap_or(0) + fresh > self.positions_max {
            return Err(Refusal::Quota { what: format!("a group holds {} positions at most", self.positions_max) });
        }
        // Counted once more if the append is refused: the bound errs on the safe side until the next start.
        *counts.entry(group.to_owned()).or_default() += fresh;
        Ok(())
    }

    /// One committed position.
    pub(crate) fn position(&self, log: &LogHandle, group: &str, topic: &str, partition: u32) -> Result<Position, Refusal> {
        check_name("group", group, GROUP_NAME_BYTES_MAX)?;
        let none = || Position { topic: topic.to_owned(), partition, offset: -1, metadata: String::new() };
        match log.meta(&key(group, topic, partition)) {
            Some(value) => decode(topic, partition, &value).map_err(internal),
            None => Ok(none()),
        }
    }

    /// All positions of a group.
    pub(crate) fn positions(&self, log: &LogHandle, group: &str) -> Result<Vec<Position>, Refusal> {
        check_name("group", group, GROUP_NAME_BYTES_MAX)?;
        let scanned = log.meta_scan(&Writer::key(meta::POSITIONS).text(group).done());
        let read = |(key, value): (Vec<u8>, Vec<u8>)| {
            let (_, topic, partition) = decode_key(&key)?;
            decode(topic, partition, &value)
        };
        scanned.into_iter().map(read).collect::<Result<_, _>>().map_err(internal)
    }

    /// Names of all groups.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = lock(&self.counts).keys().cloned().collect();
        names.sort();
        names
    }

    /// Deletes a group; durable when it returns.
    pub(crate) async fn delete(&self, log: &LogHandle, writer: &LogWriter, group: &str) -> Result<(), Refusal> {
        check_name("group", group, GROUP_NAME_BYTES_MAX)?;
        let keys = log.meta_scan(&Writer::key(meta::POSITIONS).text(group).done());
        if keys.is_empty() {
            let problem = format!("group {group:?} has no positions on this node");
            return Err(Refusal::InvalidArgument { field: "group", problem });
        }
        let deletes = keys.into_iter().map(|(key, _)| MetaOp::Delete { key }).collect();
        writer.submit_meta(deletes).durable().await?;
        lock(&self.counts).remove(group);
        Ok(())
    }

    /// What deleting a topic takes with it: every group's positions in it.
    pub(crate) fn deletes_of_topic(&self, log: &LogHandle, topic: &str) -> Vec<MetaOp> {
        let of_topic = |key: &[u8]| decode_key(key).is_ok_and(|(_, name, _)| name == topic);
        let keys = log.meta_scan(meta::POSITIONS).into_iter().map(|(key, _)| key);
        keys.filter(|key| of_topic(key)).map(|key| MetaOp::Delete { key }).collect()
    }

    /// Counts again after positions went with their topic.
    pub(crate) fn recount(&self, log: &LogHandle) {
        let mut fresh: HashMap<String, usize> = HashMap::new();
        for (key, _) in log.meta_scan(meta::POSITIONS) {
            if let Ok((group, _, _)) = decode_key(&key) {
                *fresh.entry(group.to_owned()).or_default() += 1;
            }
        }
        *lock(&self.counts) = fresh;
    }
}

fn internal(error: MetaError) -> Refusal {
    Refusal::Internal { reason: error.to_string() }
}

fn put(group: &str, position: &Position) -> Result<(Vec<u8>, Vec<u8>), Refusal> {
    if position.offset < 0 {
        let problem = format!("{} is negative; commit the next offset to consume", position.offset);
        return Err(Refusal::InvalidArgument { field: "offset", problem });
    }
    if position.metadata.len() > METADATA_BYTES_MAX {
        let problem = format!("{} bytes, at most {METADATA_BYTES_MAX}", position.metadata.len());
        return Err(Refusal::InvalidArgument { field: "metadata", problem });
    }
    let value = Writer::value().i64(position.offset).text(&position.metadata).done();
    Ok((key(group, &position.topic, position.partition), value))
}

fn key(group: &str, topic: &str, partition: u32) -> Vec<u8> {
    // Big-endian, so that a scan gives partitions in order.
    Writer::key(meta::POSITIONS).text(group).text(topic).rest(&partition.to_be_bytes()).done()
}

fn decode_key(key: &[u8]) -> Result<(&str, &str, u32), MetaError> {
    let mut reader = Reader::key(meta::POSITIONS, key)?;
    let (group, topic) = (reader.text()?, reader.text()?);
    let partition: [u8; 4] = reader.rest().try_into().map_err(|_| MetaError::Short)?;
    Ok((group, topic, u32::from_be_bytes(partition)))
}

fn decode(topic: &str, partition: u32, value: &[u8]) -> Result<Position, MetaError> {
    let mut reader = Reader::value(value)?;
    let (offset, metadata) = (reader.i64()?, reader.text()?.to_owned());
    reader.end()?;
    Ok(Position { topic: topic.to_owned(), partition, offset, metadata })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_comes_back() {
        let position = Position { topic: "t".into(), partition: 3, offset: 42, metadata: "m".into() };
        let (key, value) = put("readers", &position).unwrap();
        assert_eq!(decode_key(&key).unwrap(), ("readers", "t", 3));
        assert_eq!(decode("t", 3, &value).unwrap(), position);
    }

    #[test]
    fn negative_offsets_are_refused() {
        let position = Position { topic: "t".into(), partition: 3, offset: -1, metadata: String::new() };
        assert!(put("readers", &position).is_err());
    }

    #[test]
    fn groups_and_positions_are_bounded() {
        let groups = Groups { counts: Mutex::default(), groups_max: 1, positions_max: 2 };
        let mut counts = lock(&groups.counts);
        groups.reserve(&mut counts, "a", 2).unwrap();
        assert!(groups.reserve(&mut counts, "a", 1).is_err());
        assert!(groups.reserve(&mut counts, "b", 1).is_err());
        assert!(groups.reserve(&mut counts, "a", 0).is_ok());
    }
}
