//! `weir bench table`: results of many runs, JSON lines as `--json` prints them, as one table.

use std::collections::BTreeSet;
use std::io::{BufRead, Write};

use serde_json::Value;

use super::{Failure, failed};
use crate::cli::table::table;

const HEADER: [&str; 11] = [
    "PROFILE",
    "LOAD",
    "RECORDS/S",
    "MB/S",
    "P50 ms",
    "P99 ms",
    "FLOOR RATIO",
    "NODE CPU s",
    "CLIENT CPU s",
    "NODE RSS MB",
    "ERRORS",
];

/// Standard input to standard output.
pub(super) fn run() -> Result<(), Failure> {
    let mut results = Vec::new();
    for (number, line) in std::io::stdin().lock().lines().enumerate() {
        let line = line?;
        if !line.trim().is_empty() {
            let result = serde_json::from_str(&line)
                .map_err(|error| Failure::usage(format!("line {} is no result of `weir bench --json`: {error}", number + 1)))?;
            results.push(result);
        }
    }
    std::io::stdout().lock().write_all(render(&results).as_bytes()).map_err(failed)
}

fn render(results: &[Value]) -> String {
    let mut text = String::new();
    let machines: BTreeSet<String> = results.iter().map(machine).collect();
    let policies: BTreeSet<&str> = results.iter().filter_map(|result| result["sync_policy"].as_str()).collect();
    machines.iter().for_each(|machine| text.push_str(&format!("machine: {machine}\n")));
    policies.iter().for_each(|policy| text.push_str(&format!("acknowledgement: {policy}\n")));
    let rows: Vec<_> = results.iter().flat_map(rows).collect();
    text.push_str(&table(HEADER, &rows));
    for result in results {
        let figures = result["figures"].as_object().into_iter().flatten();
        let figures: Vec<String> = figures.map(|(name, value)| format!("{name} {}", number(value, 1.0))).collect();
        if !figures.is_empty() {
            text.push_str(&format!("{} ({}): {}\n", text_of(&result["profile"]), load(result), figures.join(", ")));
        }
    }
    text
}

fn machine(result: &Value) -> String {
    let host = &result["host"];
    let [cpu, kernel, file_system] = ["cpu", "kernel", "file_system"].map(|key| text_of(&host[key]));
    format!("{} × {cpu}, Linux {kernel}, {file_system}", host["cores"])
}

/// One of a profile, or one of each floor that was measured alone.
fn rows(result: &Value) -> Vec<[String; 11]> {
    let profile = text_of(&result["profile"]).to_owned();
    let latency = |of: &Value| ["p50", "p99"].map(|key| number(&of["latency_ms"][key], 1.0));
    let records = result["records"].as_u64().unwrap_or_default();
    let floors = result["floors"].as_array().filter(|_| records == 0).into_iter().flatten();
    let mut rows = Vec::new();
    for floor in floors {
        let [p50, p99] = latency(floor);
        let requests = number(&floor["requests_per_second"], 1.0);
        let bytes = number(&floor["bytes_per_second"], 1e6);
        let name = text_of(&floor["name"]).to_owned();
        let none = || "-".to_owned();
        rows.push([profile.clone(), name, requests, bytes, p50, p99, none(), none(), none(), none(), none()]);
    }
    if !rows.is_empty() {
        return rows;
    }
    let [p50, p99] = latency(result);
    vec![[
        profile,
        load(result),
        number(&result["records_per_second"], 1.0),
        number(&result["bytes_per_second"], 1e6),
        p50,
        p99,
        number(&result["floor_ratio"], 1.0),
        number(&result["server_cpu_seconds"], 1.0),
        number(&result["client_cpu_seconds"], 1.0),
        number(&result["server_rss_bytes"], 1e6),
        number(&result["errors"], 1.0),
    ]]
}

fn load(result: &Value) -> String {
    let field = |key: &str| result[key].as_u64().unwrap_or_default();
    let rate = result["rate"].as_u64().map(|rate| format!(" at {rate}/s")).unwrap_or_default();
    format!(
        "{}c × {}l, {} × {} B, {}p{rate}",
        field("connections"),
        field("producers"),
        field("batch_records"),
        field("record_bytes"),
        field("partitions")
    )
}

fn text_of(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Three digits that count; nothing measured is a dash.
fn number(value: &Value, unit: f64) -> String {
    match value.as_f64().map(|value| value / unit) {
        None => "-".to_owned(),
        Some(value) if value.fract() == 0.0 || value.abs() >= 1000.0 => format!("{value:.0}"),
        Some(value) if value.abs() >= 10.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_a_profile_and_a_row_a_floor_under_one_machine() {
        let host = serde_json::json!({ "cpu": "X", "cores": 2, "kernel": "6.1", "file_system": "ext4" });
        let publish = serde_json::json!({
            "profile": "publish", "records": 10, "records_per_second": 1234567.8, "bytes_per_second": 2.5e6, "floor_ratio": 0.5,
            "latency_ms": { "p50": 0.25, "p99": 12.34 }, "server_cpu_seconds": 1.5, "client_cpu_seconds": 2.0, "errors": 0,
            "server_rss_bytes": null, "connections": 4, "producers": 1, "batch_records": 256, "record_bytes": 100,
            "partitions": 4, "rate": null, "figures": { "server_cpu_ns_per_record": 700.5 }, "sync_policy": "durable", "host": host,
        });
        let disk = serde_json::json!({
            "profile": "disk", "records": 0, "floors": [{ "name": "writes", "bytes_per_second": 3e6 }], "host": host,
        });
        let text = render(&[publish, disk]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[..2], ["machine: 2 × X, Linux 6.1, ext4", "acknowledgement: durable"], "{text}");
        let cells: Vec<&str> = lines[3].split_whitespace().collect();
        assert_eq!(cells[cells.len() - 9..], ["1234568", "2.500", "0.250", "12.3", "0.500", "1.500", "2", "-", "0"], "{text}");
        assert!(lines[4].starts_with("disk") && lines[4].contains("3"), "{text}");
        assert!(lines[5].ends_with("server_cpu_ns_per_record 700.5"), "{text}");
    }
}
