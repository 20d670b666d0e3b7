//! The proof: what the devices were promised, against what is found on the disk afterwards.
//!
//! Every report carries the header `fleet-seq` = `<device>:<n>`, which no plugin can change. A device writes down each
//! report it sends and each acknowledgement it gets. After the run everything is consumed from the start, and:
//!
//! - an acknowledged reading must be in the main topic, an acknowledged line of garbage among the dead letters (else **lost**);
//! - what the plugins may drop (repeats, reports without pressure, other sensors) may be in one of the two or in none;
//! - nothing may be found twice in both together (**duplicated**);
//! - within a partition a device's numbers only rise (else **reordered**);
//! - nothing may be found that nobody sent (**foreign**).
//!
//! A report that was sent and not acknowledged (the node was killed) may be there or not, but not twice.

use std::collections::HashMap;

use super::fleet::Fate;

/// Name of the header that carries a report's identity.
pub(super) const IDENTITY_HEADER: &str = "fleet-seq";

#[derive(Debug, Clone, Copy)]
struct Entry {
    fate: Fate,
    acknowledged: bool,
    in_main: u8,
    in_dead: u8,
}

/// Which of the two topics a record was found in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Place {
    Main,
    DeadLetters,
}

/// Everything all devices sent.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    devices: Vec<Vec<Entry>>,
    last_seen: HashMap<(Place, u32, usize), usize>,
    reordered: u64,
    foreign: u64,
}

/// What the proof found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Verdict {
    /// Acknowledged reports that must be found: readings and garbage.
    pub(super) acknowledged: u64,
    /// Those that were found.
    pub(super) recovered: u64,
    pub(super) lost: u64,
    pub(super) duplicated: u64,
    pub(super) reordered: u64,
    pub(super) foreign: u64,
    /// Acknowledged reports whose fate was the plugins' to decide: how many they kept, rejected and dropped.
    pub(super) decided_kept: u64,
    pub(super) decided_dead: u64,
    pub(super) decided_dropped: u64,
    /// Sent, never acknowledged, found all the same.
    pub(super) unacknowledged_found: u64,
}

impl Verdict {
    /// Whether every promise was kept.
    pub(super) fn holds(&self) -> bool {
        self.acknowledged > 0 && self.lost + self.duplicated + self.reordered + self.foreign == 0
    }
}

impl Ledger {
    /// An empty ledger for so many devices.
    pub(super) fn new(devices: usize) -> Ledger {
        Ledger { devices: vec![Vec::new(); devices], ..Ledger::default() }
    }

    /// Writes down a report that is about to be sent; its number.
    pub(super) fn sent(&mut self, device: usize, fate: Fate) -> usize {
        let entries = &mut self.devices[device];
        entries.push(Entry { fate, acknowledged: false, in_main: 0, in_dead: 0 });
        entries.len() - 1
    }

    /// Writes down that a report was acknowledged.
    pub(super) fn acknowledged(&mut self, device: usize, number: usize) {
        self.devices[device][number].acknowledged = true;
    }

    /// Writes down a record read back. `identity` is its header.
    pub(super) fn found(&mut self, place: Place, partition: u32, identity: Option<&[u8]>) {
        let Some((device, number)) = identity.and_then(parse_identity) else {
            self.foreign += 1;
            return;
        };
        let Some(entry) = self.devices.get_mut(device).and_then(|entries| entries.get_mut(number)) else {
            self.foreign += 1;
            return;
        };
        let count = if place == Place::Main { &mut entry.in_main } else { &mut entry.in_dead };
        *count = count.saturating_add(1);
        let last = self.last_seen.entry((place, partition, device)).or_insert(number);
        if number < *last {
            self.reordered += 1;
        }
        *last = number.max(*last);
    }

    /// Adds it all up.
    pub(super) fn verdict(&self) -> Verdict {
        let mut verdict = Verdict { reordered: self.reordered, foreign: self.foreign, ..Verdict::default() };
        for entry in self.devices.iter().flatten() {
            let found = u64::from(entry.in_main) + u64::from(entry.in_dead);
            verdict.duplicated += found.saturating_sub(1);
            if !entry.acknowledged {
                verdict.unacknowledged_found += u64::from(found > 0);
                continue;
            }
            let must = match entry.fate {
                Fate::Stored => entry.in_main > 0,
                Fate::DeadLetter => entry.in_dead > 0,
                Fate::PluginDecides => {
                    match (entry.in_main, entry.in_dead) {
                        (0, 0) => verdict.decided_dropped += 1,
                        (0, _) => verdict.decided_dead += 1,
                        _ => verdict.decided_kept += 1,
                    }
                    continue;
                }
            };
            verdict.acknowledged += 1;
            if must {
                verdict.recovered += 1;
            } else {
                verdict.lost += 1;
            }
        }
        verdict
    }
}

/// The header's text for a report.
pub(super) fn identity(device: usize, number: usize) -> String {
    format!("{device}:{number}")
}

fn parse_identity(bytes: &[u8]) -> Option<(usize, usize)> {
    let (device, number) = std::str::from_utf8(bytes).ok()?.split_once(':')?;
    Some((device.parse().ok()?, number.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three acknowledged reports of device 0 (reading, garbage, repeat), one un-acknowledged reading.
    fn ledger() -> Ledger {
        let mut ledger = Ledger::new(1);
        for fate in [Fate::Stored, Fate::DeadLetter, Fate::PluginDecides, Fate::Stored] {
            let number = ledger.sent(0, fate);
            if number < 3 {
                ledger.acknowledged(0, number);
            }
        }
        ledger
    }

    #[test]
    fn everything_in_its_place_holds() {
        let mut ledger = ledger();
        ledger.found(Place::Main, 0, Some(b"0:0"));
        ledger.found(Place::DeadLetters, 0, Some(b"0:1"));
        let verdict = ledger.verdict();
        assert!(verdict.holds(), "{verdict:?}");
        assert_eq!((verdict.acknowledged, verdict.recovered, verdict.decided_dropped), (2, 2, 1));
    }

    #[test]
    fn a_missing_reading_is_lost_even_if_it_became_a_dead_letter() {
        let mut ledger = ledger();
        ledger.found(Place::DeadLetters, 0, Some(b"0:0"));
        ledger.found(Place::DeadLetters, 0, Some(b"0:1"));
        assert_eq!(ledger.verdict().lost, 1);
        assert!(!ledger.verdict().holds());
    }

    #[test]
    fn twice_is_duplicated_across_partitions_and_topics() {
        let mut ledger = ledger();
        ledger.found(Place::Main, 0, Some(b"0:0"));
        ledger.found(Place::Main, 1, Some(b"0:0"));
        ledger.found(Place::DeadLetters, 0, Some(b"0:1"));
        ledger.found(Place::Main, 0, Some(b"0:3"));
        ledger.found(Place::DeadLetters, 0, Some(b"0:3"));
        let verdict = ledger.verdict();
        assert_eq!((verdict.duplicated, verdict.unacknowledged_found, verdict.lost), (2, 1, 0));
    }

    #[test]
    fn numbers_that_fall_in_a_partition_are_reordered() {
        let mut ledger = ledger();
        ledger.found(Place::Main, 0, Some(b"0:2"));
        ledger.found(Place::Main, 0, Some(b"0:0"));
        ledger.found(Place::Main, 1, Some(b"0:1"));
        assert_eq!(ledger.verdict().reordered, 1);
    }

    #[test]
    fn records_nobody_sent_are_foreign() {
        let mut ledger = ledger();
        for identity in [None, Some(&b"9:0"[..]), Some(b"0:77"), Some(b"junk")] {
            ledger.found(Place::Main, 0, identity);
        }
        assert_eq!(ledger.verdict().foreign, 4);
    }

    #[test]
    fn nothing_acknowledged_proves_nothing() {
        assert!(!Ledger::new(2).verdict().holds());
    }
}
