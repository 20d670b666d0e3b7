//! A run's result: one JSON object for machines, one table for people.

use std::collections::BTreeMap;
use std::fmt::Write;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::{Host, Load, Usage};

/// Percentiles in milliseconds, from one histogram pooled over all producers.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Latency {
    /// Median.
    pub p50: f64,
    /// 99 of 100.
    pub p99: f64,
    /// 999 of 1000.
    pub p999: f64,
    /// The slowest.
    pub max: f64,
    /// How many were measured.
    pub samples: u64,
}

impl Latency {
    /// Of a histogram in microseconds; none where it is empty.
    pub fn of(histogram: &Histogram<u64>) -> Option<Latency> {
        let ms = |micros: u64| micros as f64 / 1000.0;
        (!histogram.is_empty()).then(|| Latency {
            p50: ms(histogram.value_at_quantile(0.5)),
            p99: ms(histogram.value_at_quantile(0.99)),
            p999: ms(histogram.value_at_quantile(0.999)),
            max: ms(histogram.max()),
            samples: histogram.len(),
        })
    }
}

/// Microseconds up to ten minutes, three digits. The bounds are fixed: a histogram that grows by itself does not grow in
/// `saturating_record`, it clamps, and slow samples would look fast.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 600_000_000, 3).expect("the bounds are valid")
}

/// What the machine does without Weir, measured in the same run.
#[derive(Debug, Clone, Serialize)]
pub struct Floor {
    /// What was measured.
    pub name: String,
    /// For throughput.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<f64>,
    /// For one request at a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_per_second: Option<f64>,
    /// For latency.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<Latency>,
}

/// A run's result. The fields of the load stand beside those of the outcome, so that a line of JSON is complete by itself.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The profile's name.
    pub profile: String,
    /// Acknowledged (or received) records.
    pub records: u64,
    /// Bytes of their values.
    pub value_bytes: u64,
    /// Bytes of their batches as they went over the wire.
    pub batch_bytes: u64,
    /// From the first record handed over to the last one acknowledged.
    pub seconds: f64,
    /// records / seconds.
    pub records_per_second: f64,
    /// batch_bytes / seconds.
    pub bytes_per_second: f64,
    /// From handing over (publish) or from the scheduled time (latency) to the acknowledgement.
    pub latency_ms: Option<Latency>,
    /// The floors of the same run.
    pub floors: Vec<Floor>,
    /// Throughput: of the slowest floor, reached. Latency: p50 over the sum of the floors' p50.
    pub floor_ratio: Option<f64>,
    /// What only this profile measures; each name ends in its unit, such as `restart_seconds`.
    pub figures: BTreeMap<&'static str, f64>,
    /// Batches refused or lost.
    pub errors: u64,
    /// Of the node, at the end; null where it runs elsewhere.
    pub server_rss_bytes: Option<u64>,
    /// Of the node, during the run.
    pub server_cpu_seconds: Option<f64>,
    /// Of the load generator, during the run.
    pub client_cpu_seconds: f64,
    /// When an acknowledgement is given.
    pub sync_policy: &'static str,
    /// Bytes of a record's value.
    pub record_bytes: usize,
    /// Records of a batch.
    pub batch_records: u32,
    /// QUIC connections.
    pub connections: u32,
    /// Producers or consumers a connection.
    pub producers: u32,
    /// Partitions of the topic.
    pub partitions: u32,
    /// Scheduled records a second; null: as fast as acknowledgements allow.
    pub rate: Option<u64>,
    /// The plugin that was run, or that stood in front of the topic.
    pub plugin: Option<String>,
    /// The machine.
    pub host: Host,
}

/// Weir has one policy: an acknowledged record is on disk.
pub(crate) const SYNC_POLICY: &str = "every acknowledgement after a durable write (O_DIRECT + DSYNC)";

impl Report {
    /// An empty report of a profile.
    pub fn new(profile: &str, load: &Load, host: Host) -> Report {
        Report {
            profile: profile.to_owned(),
            records: 0,
            value_bytes: 0,
            batch_bytes: 0,
            seconds: 0.0,
            records_per_second: 0.0,
            bytes_per_second: 0.0,
            latency_ms: None,
            floors: Vec::new(),
            floor_ratio: None,
            figures: BTreeMap::new(),
            errors: 0,
            server_rss_bytes: None,
            server_cpu_seconds: None,
            client_cpu_seconds: 0.0,
            sync_policy: SYNC_POLICY,
            record_bytes: load.record_bytes,
            batch_records: load.batch_records,
            connections: load.connections,
            producers: load.producers,
            partitions: load.partitions,
            rate: load.rate,
            plugin: None,
            host,
        }
    }

    /// Sets the rates from the totals.
    pub(crate) fn rates(&mut self, seconds: f64) {
        self.seconds = seconds;
        self.records_per_second = self.records as f64 / seconds.max(1e-9);
        self.bytes_per_second = self.batch_bytes as f64 / seconds.max(1e-9);
    }

    /// CPU of the load generator during the run.
    pub(crate) fn client_cost(&mut self, cpu_seconds: f64) {
        self.client_cpu_seconds = cpu_seconds;
        if self.records > 0 {
            self.figures.insert("client_cpu_ns_per_record", cpu_seconds * 1e9 / self.records as f64);
        }
    }

    /// What the node used between two looks at it.
    pub fn server_cost(&mut self, before: Usage, after: Usage) {
        let cpu_seconds = after.cpu_seconds - before.cpu_seconds;
        self.server_cpu_seconds = Some(cpu_seconds);
        self.server_rss_bytes = Some(after.rss_bytes);
        if self.records > 0 {
            self.figures.insert("server_cpu_ns_per_record", cpu_seconds * 1e9 / self.records as f64);
        }
    }

    /// Consumers at the tail, held against the same run without the slow ones.
    pub fn beside_slow_ones(&mut self, without: &Report) {
        let published = "publish_records_per_second";
        if let (Some(with), Some(before)) = (self.figures.get(published), without.figures.get(published)) {
            self.figures.insert("publish_with_slow_ratio", with / before);
        }
        self.figures.insert("consume_with_slow_ratio", self.records_per_second / without.records_per_second);
        self.errors += without.errors;
    }

    /// Adds floors and sets the ratio: requests against requests, bytes against the slowest floor, latency against their sum.
    pub fn add_floors(&mut self, floors: Vec<Floor>) {
        let slowest = floors.iter().filter_map(|floor| floor.bytes_per_second).reduce(f64::min);
        let requests = floors.iter().find_map(|floor| floor.requests_per_second);
        let latencies: Vec<Latency> = floors.iter().filter_map(|floor| floor.latency_ms).collect();
        let sum = |of: fn(&Latency) -> f64| latencies.iter().map(of).sum::<f64>();
        self.floor_ratio = match (self.profile.as_str(), self.latency_ms) {
            ("latency", Some(latency)) if !latencies.is_empty() => {
                self.figures.insert("p99_floor_ratio", latency.p99 / sum(|floor| floor.p99));
                Some(latency.p50 / sum(|floor| floor.p50))
            }
            // At a given rate there is nothing to reach.
            ("publish", _) if self.rate.is_some() => None,
            ("publish", _) if requests.is_some() => requests.map(|requests| self.records_per_second / requests),
            ("publish" | "consume" | "pipeline" | "storage", _) => slowest.map(|slowest| self.bytes_per_second / slowest),
            _ => None,
        };
        self.floors.extend(floors);
    }

    /// For people.
    pub fn to_table(&self) -> String {
        let mut text = String::new();
        let mut row = |name: &str, value: String| writeln!(text, "{name:<26} {value}").expect("writing to a String cannot fail");
        row("profile", self.profile.clone());
        if self.records > 0 {
            let rate =
                self.rate.map_or_else(|| "as fast as acknowledged".to_owned(), |rate| format!("{rate} records/s scheduled"));
            row(
                "load",
                format!(
                    "{} connections × {} lanes, {} × {} B a batch, {} partitions, {rate}",
                    self.connections, self.producers, self.batch_records, self.record_bytes, self.partitions
                ),
            );
            if let Some(plugin) = &self.plugin {
                row("plugin", plugin.clone());
            }
            row("records", format!("{} in {:.2} s", self.records, self.seconds));
            row("throughput", format!("{:.0} records/s, {:.1} MB/s", self.records_per_second, self.bytes_per_second / 1e6));
            row("errors", self.errors.to_string());
        }
        if let Some(l) = self.latency_ms {
            row(
                "latency",
                format!("p50 {:.3}  p99 {:.3}  p99.9 {:.3}  max {:.3} ms ({} samples)", l.p50, l.p99, l.p999, l.max, l.samples),
            );
        }
        for (name, value) in &self.figures {
            row(name, format!("{value:.3}"));
        }
        for floor in &self.floors {
            let throughput = floor.bytes_per_second.map(|bytes| format!("{:.1} MB/s", bytes / 1e6));
            let latency = floor.latency_ms.map(|l| format!("p50 {:.3}  p99 {:.3}  max {:.3} ms", l.p50, l.p99, l.max));
            let requests = floor.requests_per_second.map(|requests| format!("{requests:.0} requests/s"));
            let figures: Vec<String> = [throughput, requests, latency].into_iter().flatten().collect();
            row("floor", format!("{}: {}", floor.name, figures.join(", ")));
        }
        if let Some(ratio) = self.floor_ratio {
            let by_request = self.floors.iter().any(|floor| floor.requests_per_second.is_some());
            let meaning = match self.profile.as_str() {
                "latency" => "× the floors' medians",
                _ if by_request => "of the floor's requests",
                _ => "of the slowest floor",
            };
            row("floor ratio", format!("{ratio:.2} {meaning}"));
        }
        if self.records > 0 {
            let server = self.server_cpu_seconds.map_or_else(|| "elsewhere".to_owned(), |seconds| format!("{seconds:.2} CPU s"));
            let rss = self.server_rss_bytes.map(|bytes| format!(", {:.1} MB resident", bytes as f64 / 1e6)).unwrap_or_default();
            row("node", format!("{server}{rss}"));
            row("load generator", format!("{:.2} CPU s", self.client_cpu_seconds));
            row("acknowledgement", self.sync_policy.to_owned());
        }
        let host = &self.host;
        let fs = if host.file_system.is_empty() { String::new() } else { format!(", {}", host.file_system) };
        row("machine", format!("{} × {}, Linux {}{fs}", host.cores, host.cpu, host.kernel));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(profile: &str) -> Report {
        let load = Load {
            topic: "t".to_owned(),
            partitions: 1,
            records: None,
            seconds: std::time::Duration::ZERO,
            record_bytes: 100,
            batch_records: 10,
            connections: 1,
            producers: 1,
            in_flight: 1,
            rate: None,
            zstd: false,
        };
        Report::new(profile, &load, Host::detect(None))
    }

    fn floor(bytes_per_second: Option<f64>, p50: Option<f64>) -> Floor {
        let latency_ms = p50.map(|p50| Latency { p50, p99: p50, p999: p50, max: p50, samples: 1 });
        Floor { name: "f".to_owned(), bytes_per_second, requests_per_second: None, latency_ms }
    }

    #[test]
    fn throughput_is_held_against_the_slowest_floor() {
        let mut report = report("publish");
        report.batch_bytes = 50;
        report.rates(1.0);
        report.add_floors(vec![floor(Some(100.0), None), floor(Some(400.0), None)]);
        assert_eq!(report.floor_ratio, Some(0.5));
    }

    #[test]
    fn latency_is_held_against_the_sum_of_disk_and_network() {
        let mut report = report("latency");
        report.latency_ms = Some(Latency { p50: 3.0, p99: 3.0, p999: 3.0, max: 3.0, samples: 1 });
        report.add_floors(vec![floor(None, Some(1.0)), floor(None, Some(0.5))]);
        assert_eq!((report.floor_ratio, report.figures["p99_floor_ratio"]), (Some(2.0), 2.0));
    }

    #[test]
    fn one_record_at_a_time_is_held_against_requests_and_not_bytes() {
        let mut report = report("publish");
        (report.records, report.batch_bytes) = (50, 5);
        report.rates(1.0);
        let requests = Floor { requests_per_second: Some(200.0), ..floor(None, Some(0.1)) };
        report.add_floors(vec![floor(Some(100.0), Some(0.1)), requests]);
        assert_eq!(report.floor_ratio, Some(0.25));
    }

    #[test]
    fn slow_consumers_are_held_against_the_run_without_them() {
        let run = |received: u64, published: f64, errors| {
            let mut report = report("consume");
            (report.records, report.errors) = (received, errors);
            report.rates(1.0);
            report.figures.insert("publish_records_per_second", published);
            report
        };
        let mut with = run(30, 10.0, 0);
        with.beside_slow_ones(&run(40, 20.0, 2));
        let ratios = ["consume_with_slow_ratio", "publish_with_slow_ratio"].map(|name| with.figures[name]);
        assert_eq!((ratios, with.errors), ([0.75, 0.5], 2));
    }

    #[test]
    fn cpu_is_told_by_the_record() {
        let mut report = report("publish");
        report.records = 1000;
        report.client_cost(0.5);
        let used = |cpu_seconds| Usage { cpu_seconds, rss_bytes: 7 };
        report.server_cost(used(1.0), used(3.0));
        assert_eq!(report.figures["client_cpu_ns_per_record"], 500_000.0);
        assert_eq!(report.figures["server_cpu_ns_per_record"], 2_000_000.0);
        assert_eq!(report.server_rss_bytes, Some(7));
    }

    #[test]
    fn slow_samples_are_not_clamped() {
        let mut slow = histogram();
        slow.saturating_record(5_000_000);
        let latency = Latency::of(&slow).expect("one sample");
        assert!(latency.max >= 4_990.0 && latency.p50 >= 4_990.0, "{latency:?}");
    }

    #[test]
    fn the_keys_scripts_read_are_there() {
        let value = serde_json::to_value(report("publish")).expect("serialises");
        for key in [
            "records_per_second",
            "bytes_per_second",
            "latency_ms",
            "floor_ratio",
            "errors",
            "server_rss_bytes",
            "server_cpu_seconds",
            "client_cpu_seconds",
        ] {
            assert!(value.get(key).is_some(), "{key}");
        }
    }
}
