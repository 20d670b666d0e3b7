//! Producers: a name, scoped to the principal, owns an id whose epoch rises with every connection.
//!
//! The id and epoch are durable before a connection learns them. A new connection of a name fences the older one: from
//! then on the older one's batches are refused, and the new one starts only when those already on their way are
//! decided. Otherwise a zombie's batch could take a sequence that the new connection was just told is free.
//!
//! At `producers_max` names those that nobody is connected under are forgotten, made-up ones (`auto-…`) first, then the longest
//! unused: one-off clients must not use up the node. A forgotten name starts again at sequence 0 under a new id.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;
use weir_storage::{LogHandle, MetaOp};

use super::Refusal;
use super::meta::{self, MetaError, Reader, Writer};
use super::writer::{LogWriter, lock};

/// Bytes of a producer name.
const PRODUCER_NAME_BYTES_MAX: usize = 256;
/// How names begin that a client made up for one run.
const MADE_UP: &str = "auto-";
/// The first id: ids below are kept for the node itself.
pub(super) const FIRST_ID: u64 = 1_000;

/// One producer name of one principal.
#[derive(Debug)]
pub struct Producer {
    /// Its id in the log and on the wire.
    pub id: i64,
    principal: Arc<str>,
    /// The epoch whose batches are taken.
    epoch: AtomicI32,
    /// When its epoch last rose, counted in registrations of this run; 0: before it.
    used_at: AtomicU64,
    /// Batches handed to pipeline or log and not yet decided.
    in_flight: AtomicU64,
    drained: Notify,
}

impl Producer {
    /// Takes part in the producer's traffic with `epoch`, or learns that a newer connection has it.
    pub(crate) fn enter(self: &Arc<Self>, epoch: i16) -> Result<InFlightGuard, Refusal> {
        // Counted before the epoch is looked at: whoever raises the epoch afterwards sees the count and waits.
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        let guard = InFlightGuard(self.clone());
        let current = self.epoch.load(Ordering::SeqCst);
        if i32::from(epoch) != current {
            return Err(Refusal::Fenced { current_epoch: current as i16 });
        }
        Ok(guard)
    }

    /// Waits until nothing of an older epoch is on its way.
    async fn drained(&self) {
        loop {
            let notified = self.drained.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if self.in_flight.load(Ordering::SeqCst) == 0 {
                return;
            }
            notified.await;
        }
    }
}

/// One batch on its way.
#[derive(Debug)]
pub(crate) struct InFlightGuard(Arc<Producer>);

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        if self.0.in_flight.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.drained.notify_waiters();
        }
    }
}

/// All producers of the node.
#[derive(Debug)]
pub(crate) struct Producers {
    state: Mutex<State>,
    producers_max: usize,
}

#[derive(Debug, Default)]
struct State {
    by_name: HashMap<(Arc<str>, Arc<str>), Arc<Producer>>,
    by_id: HashMap<i64, Arc<Producer>>,
    next_id: u64,
    registrations: u64,
}

/// A name and the principal it belongs to.
type FullName = (Arc<str>, Arc<str>);

impl Producers {
    /// Reads all producers from the log's metadata.
    pub(crate) fn load(log: &LogHandle, producers_max: usize) -> Result<Producers, MetaError> {
        let mut state = State { next_id: meta::read_counter(log.meta(meta::NEXT_PRODUCER), FIRST_ID)?, ..State::default() };
        for (key, value) in log.meta_scan(meta::PRODUCERS) {
            let (principal, name) = decode_key(&key)?;
            let mut reader = Reader::value(&value)?;
            let (id, epoch) = (reader.i64()?, reader.u32()?);
            reader.end()?;
            state.insert(principal, name, id, epoch as i32);
        }
        Ok(Producers { state: Mutex::new(state), producers_max })
    }

    /// How many names are known.
    pub(crate) fn count(&self) -> usize {
        lock(&self.state).by_id.len()
    }

    /// A connection says its producer name: same id, higher epoch, durable when it returns, older connections fenced.
    pub(crate) async fn register(
        &self,
        writer: &LogWriter,
        principal: &Arc<str>,
        name: &str,
    ) -> Result<(Arc<Producer>, i16), Refusal> {
        if name.is_empty() || name.len() > PRODUCER_NAME_BYTES_MAX || principal.len() > PRODUCER_NAME_BYTES_MAX * 4 {
            let problem = format!("{} bytes, allowed are 1 to {PRODUCER_NAME_BYTES_MAX}", name.len());
            return Err(Refusal::InvalidArgument { field: "producer_name", problem });
        }
        let (producer, epoch, pending) = {
            let mut state = lock(&self.state);
            let forgotten = state.make_room(principal, name, self.producers_max);
            let (producer, epoch) = state.raise(principal, name, self.producers_max)?;
            let value = Writer::value().i64(producer.id).u32(epoch as u32).done();
            let mut meta: Vec<MetaOp> =
                forgotten.iter().map(|(principal, name)| MetaOp::Delete { key: key(principal, name) }).collect();
            meta.push(MetaOp::Put { key: key(principal, name), value });
            meta.push(MetaOp::Put { key: meta::NEXT_PRODUCER.to_vec(), value: meta::counter(state.next_id) });
            // Queued under the lock: the higher epoch is also the later write.
            (producer, epoch, writer.submit_meta(meta))
        };
        pending.durable().await?;
        producer.drained().await;
        Ok((producer, epoch))
    }

    /// The producer of an id, if it is this principal's.
    pub(crate) fn of_principal(&self, principal: &str, id: i64) -> Result<Arc<Producer>, Refusal> {
        let state = lock(&self.state);
        let producer = state.by_id.get(&id).filter(|producer| &*producer.principal == principal);
        producer.cloned().ok_or(Refusal::UnknownProducer { id })
    }
}

impl State {
    fn insert(&mut self, principal: &str, name: &str, id: i64, epoch: i32) -> Arc<Producer> {
        let principal: Arc<str> = Arc::from(principal);
        let producer = Arc::new(Producer {
            id,
            principal: principal.clone(),
            epoch: AtomicI32::new(epoch),
            used_at: AtomicU64::new(self.registrations),
            in_flight: AtomicU64::new(0),
            drained: Notify::new(),
        });
        self.by_id.insert(id, producer.clone());
        self.by_name.insert((principal, Arc::from(name)), producer.clone());
        producer
    }

    /// At the limit, forgets a sixteenth of the names, so that the scan is rare. Names in use stay, whatever their number.
    fn make_room(&mut self, principal: &Arc<str>, name: &str, max: usize) -> Vec<FullName> {
        self.registrations += 1;
        if self.by_id.len() < max || self.by_name.contains_key(&(principal.clone(), Arc::from(name))) {
            return Vec::new();
        }
        // The two maps hold one reference each; every other is a connection, a lane or a batch on its way.
        let unused = self.by_name.iter().filter(|(_, producer)| Arc::strong_count(producer) <= 2);
        let mut unused: Vec<(bool, u64, FullName)> = unused
            .map(|(name, producer)| (!name.1.starts_with(MADE_UP), producer.used_at.load(Ordering::Relaxed), name.clone()))
            .collect();
        unused.sort_unstable();
        unused.truncate((max / 16).max(1));
        for (_, _, name) in &unused {
            if let Some(producer) = self.by_name.remove(name) {
                self.by_id.remove(&producer.id);
            }
        }
        unused.into_iter().map(|(_, _, name)| name).collect()
    }

    /// The producer of the name with its next epoch. After 32,767 connections the name gets a new id, whose lanes start
    /// at sequence 0 as LANE_READY tells.
    fn raise(&mut self, principal: &Arc<str>, name: &str, max: usize) -> Result<(Arc<Producer>, i16), Refusal> {
        let known = self.by_name.get(&(principal.clone(), Arc::from(name))).cloned();
        if let Some(producer) = &known {
            let epoch = producer.epoch.load(Ordering::SeqCst) + 1;
            if let Ok(epoch) = i16::try_from(epoch) {
                producer.used_at.store(self.registrations, Ordering::Relaxed);
                producer.epoch.store(i32::from(epoch), Ordering::SeqCst);
                return Ok((producer.clone(), epoch));
            }
            // No epoch matches any more: connections of the old id are fenced like all older ones.
            producer.epoch.store(i32::MAX, Ordering::SeqCst);
            self.by_id.remove(&producer.id);
        } else if self.by_id.len() >= max {
            return Err(Refusal::Quota { what: format!("the node knows {max} producer names at most") });
        }
        let id = self.next_id as i64;
        self.next_id += 1;
        Ok((self.insert(principal, name, id, 0), 0))
    }
}

fn key(principal: &str, name: &str) -> Vec<u8> {
    Writer::key(meta::PRODUCERS).text(principal).text(name).done()
}

fn decode_key(key: &[u8]) -> Result<(&str, &str), MetaError> {
    let mut reader = Reader::key(meta::PRODUCERS, key)?;
    let names = (reader.text()?, reader.text()?);
    reader.end()?;
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        State { next_id: FIRST_ID, ..State::default() }
    }

    #[test]
    fn the_same_name_keeps_its_id_and_fences_the_older_epoch() {
        let mut state = state();
        let principal: Arc<str> = Arc::from("van-7");
        let (first, old) = state.raise(&principal, "unit", 10).unwrap();
        let guard = first.enter(old).unwrap();
        let (second, new) = state.raise(&principal, "unit", 10).unwrap();
        assert_eq!((first.id, new), (second.id, old + 1));
        assert!(matches!(first.enter(old), Err(Refusal::Fenced { current_epoch: 1 })));
        assert_eq!(second.in_flight.load(Ordering::SeqCst), 1, "the old batch is still on its way");
        drop(guard);
        assert_eq!(second.in_flight.load(Ordering::SeqCst), 0);
        assert!(second.enter(new).is_ok());
    }

    #[test]
    fn names_are_scoped_to_the_principal_and_bounded() {
        let mut state = state();
        let (a, _) = state.raise(&Arc::from("a"), "unit", 2).unwrap();
        let (b, _) = state.raise(&Arc::from("b"), "unit", 2).unwrap();
        assert_ne!(a.id, b.id);
        assert!(matches!(state.raise(&Arc::from("c"), "unit", 2), Err(Refusal::Quota { .. })));
    }

    #[test]
    fn unused_names_make_room_made_up_ones_first() {
        let mut state = state();
        let principal: Arc<str> = Arc::from("a");
        let register = |state: &mut State, name: &str| {
            let forgotten = state.make_room(&principal, name, 3);
            let forgotten: Vec<String> = forgotten.iter().map(|(_, name)| name.to_string()).collect();
            (state.raise(&principal, name, 3).map(|(producer, _)| producer), forgotten)
        };
        let oldest = register(&mut state, "gateway").0.unwrap();
        drop(register(&mut state, "van"));
        drop(register(&mut state, "auto-1"));
        assert_eq!(register(&mut state, "van").1, [""; 0], "a known name needs no room");
        assert_eq!(register(&mut state, "auto-2").1, ["auto-1"]);
        assert_eq!(register(&mut state, "truck").1, ["auto-2"]);
        assert_eq!(register(&mut state, "car").1, ["van"], "the gateway is connected");
        assert_eq!(register(&mut state, "gateway").0.unwrap().id, oldest.id);
    }

    #[test]
    fn exhausted_epochs_move_the_name_to_a_new_id() {
        let mut state = state();
        let principal: Arc<str> = Arc::from("a");
        let (old, _) = state.raise(&principal, "unit", 2).unwrap();
        old.epoch.store(i32::from(i16::MAX), Ordering::SeqCst);
        let (new, epoch) = state.raise(&principal, "unit", 2).unwrap();
        assert_ne!(old.id, new.id);
        assert_eq!(epoch, 0);
        assert!(old.enter(i16::MAX).is_err());
    }

    #[test]
    fn keys_come_back() {
        assert_eq!(decode_key(&key("urn:van:7", "unit/1")).unwrap(), ("urn:van:7", "unit/1"));
    }
}
