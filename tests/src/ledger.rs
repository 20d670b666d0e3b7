//! What producers were promised, and whether the log kept it.
//!
//! A record's value names its producer and number, `p3:1047`. A producer's numbers go to partitions in a fixed way, so that
//! in each partition they must rise; every acknowledged number must be there once; a number that was never sent must not.

use std::collections::HashMap;

/// What one producer sent and what was acknowledged to it.
#[derive(Debug, Default, Clone)]
pub struct Promise {
    /// Numbers below this were handed to the client.
    pub sent: u64,
    /// One flag a number: was it acknowledged?
    pub acknowledged: Vec<bool>,
    /// Numbers below this have gone by retention: they are neither missed nor may they come back.
    pub retired: u64,
}

impl Promise {
    /// Notes that the next number was handed to the client, and returns it.
    pub fn send(&mut self) -> u64 {
        self.sent += 1;
        self.acknowledged.push(false);
        self.sent - 1
    }

    /// Notes an acknowledgement.
    pub fn acknowledge(&mut self, number: u64) {
        let index = usize::try_from(number).expect("numbers count records of one run");
        self.acknowledged[index] = true;
    }

    /// Notes that the numbers below `first` have gone by retention.
    pub fn retire(&mut self, first: u64) {
        self.retired = self.retired.max(first);
    }
}

/// The sums of a check; `lost`, `duplicated`, `reordered` and `invented` must be 0.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// Records acknowledged to producers.
    pub acknowledged: u64,
    /// Records read back.
    pub recovered: u64,
    /// Of the acknowledged ones, gone by retention.
    pub retired: u64,
    /// Acknowledged, not retired, not read back.
    pub lost: u64,
    /// Read back more than once.
    pub duplicated: u64,
    /// Read back behind a higher number of the same producer in the same partition.
    pub reordered: u64,
    /// Read back, never sent or retired before.
    pub invented: u64,
}

impl Verdict {
    /// Did the log keep every promise?
    pub fn holds(&self) -> bool {
        self.lost + self.duplicated + self.reordered + self.invented == 0
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "acknowledged={} recovered={} lost={} duplicated={} reordered={}",
            self.acknowledged, self.recovered, self.lost, self.duplicated, self.reordered
        )?;
        if self.invented > 0 { write!(f, " invented={}", self.invented) } else { Ok(()) }
    }
}

/// Collects what was read back; then says whether it fits the promises.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Per producer, how often each of its numbers was read, up to 255.
    seen: HashMap<String, Vec<u8>>,
    highest: HashMap<(String, u32), u64>,
    recovered: u64,
    reordered: u64,
    invented: u64,
}

impl Ledger {
    /// Takes one record as it was read, in the order of its partition.
    pub fn read(&mut self, partition: u32, value: &[u8]) {
        self.recovered += 1;
        let Some((producer, number)) = parse(value).filter(|(_, number)| *number < NUMBERS_MAX) else {
            self.invented += 1;
            return;
        };
        let key = (producer.clone(), partition);
        match self.highest.get(&key) {
            Some(&highest) if number < highest => self.reordered += 1,
            _ => {
                self.highest.insert(key, number);
            }
        }
        let (seen, index) = (self.seen.entry(producer).or_default(), number as usize);
        if seen.len() <= index {
            seen.resize(index + 1, 0);
        }
        seen[index] = seen[index].saturating_add(1);
    }

    /// The lowest number of a producer that was read.
    pub fn first(&self, producer: &str) -> Option<u64> {
        self.seen.get(producer)?.iter().position(|times| *times > 0).map(|number| number as u64)
    }

    /// Whose acknowledged records are missing, in words, for people.
    pub fn missed(&self, promises: &HashMap<String, Promise>) -> Vec<String> {
        let nothing = Vec::new();
        let mut missed = Vec::new();
        for (producer, promise) in promises {
            let seen = self.seen.get(producer).unwrap_or(&nothing);
            let is_missing = |number: &u64| {
                promise.acknowledged[*number as usize] && seen.get(*number as usize).is_none_or(|times| *times == 0)
            };
            let missing: Vec<u64> = (promise.retired..promise.sent).filter(is_missing).collect();
            if let (Some(first), Some(last)) = (missing.first(), missing.last()) {
                let (count, sent, retired) = (missing.len(), promise.sent, promise.retired);
                let read = seen.iter().filter(|times| **times > 0).count();
                missed.push(format!(
                    "{producer}: {count} missing from {first} to {last}; {read} read of {sent}, {retired} retired"
                ));
            }
        }
        missed
    }

    /// Holds what was read against what was promised.
    pub fn check(&self, promises: &HashMap<String, Promise>) -> Verdict {
        let mut verdict =
            Verdict { recovered: self.recovered, reordered: self.reordered, invented: self.invented, ..Verdict::default() };
        let nothing = Vec::new();
        for (producer, promise) in promises {
            let seen = self.seen.get(producer).unwrap_or(&nothing);
            for (number, _) in promise.acknowledged.iter().enumerate().filter(|(_, acknowledged)| **acknowledged) {
                verdict.acknowledged += 1;
                if (number as u64) < promise.retired {
                    verdict.retired += 1;
                } else {
                    verdict.lost += u64::from(seen.get(number).is_none_or(|times| *times == 0));
                }
            }
            for (number, times) in (0u64..).zip(seen).filter(|(_, times)| **times > 0) {
                verdict.duplicated += u64::from(times - 1);
                verdict.invented += u64::from(number >= promise.sent || number < promise.retired);
            }
        }
        verdict.invented += self.seen.keys().filter(|name| !promises.contains_key(*name)).count() as u64;
        verdict
    }
}

/// More than any run sends: a number above is damage, and must not become an allocation.
const NUMBERS_MAX: u64 = 1 << 30;

fn parse(value: &[u8]) -> Option<(String, u64)> {
    let text = std::str::from_utf8(value).ok()?;
    let (producer, rest) = text.split_once(':')?;
    let number = rest.split(' ').next()?.parse().ok()?;
    Some((producer.to_string(), number))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn promised(numbers: &[(u64, bool)]) -> HashMap<String, Promise> {
        let mut promise = Promise::default();
        for (number, acknowledged) in numbers {
            assert_eq!(promise.send(), *number);
            if *acknowledged {
                promise.acknowledge(*number);
            }
        }
        HashMap::from([("p0".to_string(), promise)])
    }

    fn read(values: &[&str]) -> Ledger {
        let mut ledger = Ledger::default();
        values.iter().for_each(|value| ledger.read(0, value.as_bytes()));
        ledger
    }

    #[test]
    fn kept_promises_hold_and_unacknowledged_records_may_appear() {
        let verdict = read(&["p0:0", "p0:1", "p0:2"]).check(&promised(&[(0, true), (1, true), (2, false)]));
        assert!(verdict.holds(), "{verdict}");
        assert_eq!((verdict.acknowledged, verdict.recovered), (2, 3));
    }

    #[test]
    fn retired_records_are_not_missed_and_must_not_come_back() {
        let mut promises = promised(&[(0, true), (1, true), (2, true)]);
        let ledger = read(&["p0:1", "p0:2"]);
        assert_eq!(ledger.check(&promises).lost, 1);
        promises.get_mut("p0").unwrap().retire(ledger.first("p0").unwrap());
        let verdict = ledger.check(&promises);
        assert!(verdict.holds(), "{verdict}");
        assert_eq!((verdict.acknowledged, verdict.retired), (3, 1));
        assert_eq!(read(&["p0:2"]).check(&promises).lost, 1);
        assert_eq!(read(&["p0:0", "p0:1", "p0:2"]).check(&promises).invented, 1);
        assert_eq!(ledger.first("p1"), None);
    }

    #[test]
    fn each_broken_promise_is_counted() {
        let promises = promised(&[(0, true), (1, true), (2, true)]);
        assert_eq!(read(&["p0:0", "p0:2"]).check(&promises).lost, 1);
        assert_eq!(read(&["p0:0", "p0:2"]).missed(&promises), ["p0: 1 missing from 1 to 1; 2 read of 3, 0 retired"]);
        assert_eq!(read(&["p0:0", "p0:1", "p0:1", "p0:2"]).check(&promises).duplicated, 1);
        assert_eq!(read(&["p0:1", "p0:0", "p0:2"]).check(&promises).reordered, 1);
        assert_eq!(read(&["p0:0", "p0:1", "p0:2", "p0:3"]).check(&promises).invented, 1);
        assert_eq!(read(&["p0:0", "p0:1", "p0:2", "garbage"]).check(&promises).invented, 1);
    }
}
