//! Who may have a connection at all: in total, and from one address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use crate::broker::lock;

/// Counts connections, from the first datagram on.
#[derive(Debug)]
pub(super) struct Admission {
    counts: Mutex<Counts>,
    total_max: u32,
    per_address_max: u32,
    retry_above: u32,
}

#[derive(Debug, Default)]
struct Counts {
    total: u32,
    by_address: HashMap<IpAddr, u32>,
}

/// What to do with a new connection.
#[derive(Debug)]
pub(super) enum Verdict {
    /// Take it; the place is free again when this is dropped.
    Admit(Place),
    /// Let it prove its address first.
    Retry,
    /// Too many, for this reason.
    Refuse(&'static str),
}

/// A connection's place.
#[derive(Debug)]
pub(super) struct Place {
    admission: Arc<Admission>,
    address: IpAddr,
}

impl Admission {
    pub(super) fn new(total_max: u32, per_address_max: u32, retry_above: u32) -> Arc<Admission> {
        Arc::new(Admission { counts: Mutex::default(), total_max, per_address_max, retry_above })
    }

    /// Decides on a connection from an address that was or was not validated.
    pub(super) fn admit(self: &Arc<Self>, address: IpAddr, validated: bool) -> Verdict {
        let mut counts = lock(&self.counts);
        if counts.total >= self.total_max {
            return Verdict::Refuse("connections_max");
        }
        if counts.total >= self.retry_above && !validated {
            return Verdict::Retry;
        }
        let of_address = counts.by_address.entry(address).or_default();
        if *of_address >= self.per_address_max {
            return Verdict::Refuse("connections_per_address_max");
        }
        *of_address += 1;
        counts.total += 1;
        Verdict::Admit(Place { admission: self.clone(), address })
    }

    /// Connections that have a place.
    pub(super) fn total(&self) -> u32 {
        lock(&self.counts).total
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = lock(&self.admission.counts);
        counts.total -= 1;
        if let Some(of_address) = counts.by_address.get_mut(&self.address) {
            *of_address -= 1;
            if *of_address == 0 {
                counts.by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_in_total_and_by_address() {
        let (a, b, c) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), [10, 0, 0, 3].into());
        let admission = Admission::new(3, 2, 100);
        let Verdict::Admit(first) = admission.admit(a, false) else { panic!("free") };
        let Verdict::Admit(_second) = admission.admit(a, false) else { panic!("free") };
        assert!(matches!(admission.admit(a, false), Verdict::Refuse("connections_per_address_max")));
        let Verdict::Admit(_third) = admission.admit(b, false) else { panic!("free") };
        assert!(matches!(admission.admit(c, false), Verdict::Refuse("connections_max")));
        drop(first);
        assert!(matches!(admission.admit(a, false), Verdict::Admit(_)));
        assert_eq!(admission.total(), 2);
    }

    #[test]
    fn a_busy_node_lets_new_addresses_prove_themselves() {
        let admission = Admission::new(10, 10, 1);
        let Verdict::Admit(_place) = admission.admit([10, 0, 0, 1].into(), false) else { panic!("free") };
        assert!(matches!(admission.admit([10, 0, 0, 2].into(), false), Verdict::Retry));
        assert!(matches!(admission.admit([10, 0, 0, 2].into(), true), Verdict::Admit(_)));
    }
}
