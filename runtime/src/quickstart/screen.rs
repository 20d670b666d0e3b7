//! What the quick start shows: steps, one line a second, and at the end what was proved. On a terminal the line of the
//! current second is redrawn under the table; elsewhere only plain lines are printed.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// The figures of one second.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Figures {
    pub(super) second: u64,
    /// Reports handed to the clients.
    pub(super) sent: u64,
    /// Acknowledged: durable, or durably decided on.
    pub(super) acknowledged: u64,
    /// Records on the main topic.
    pub(super) normalised: u64,
    pub(super) alerted: u64,
    pub(super) dead: u64,
    pub(super) per_second: u64,
    /// The node answers; else it is down and the counts are those of before.
    pub(super) up: bool,
}

impl Figures {
    /// Acknowledged and stored nowhere: the plugins dropped it.
    pub(super) fn dropped(&self) -> u64 {
        self.acknowledged.saturating_sub(self.normalised + self.dead)
    }

    /// On disk, over all topics.
    pub(super) fn stored(&self) -> u64 {
        self.normalised + self.alerted + self.dead
    }
}

/// Prints for people and for logs.
pub(super) struct Screen {
    bar: ProgressBar,
}

impl Screen {
    /// A screen for a run of so many seconds.
    pub(super) fn new(seconds: u64) -> Screen {
        let bar = ProgressBar::new(seconds);
        let terminal = std::io::stdout().is_terminal() && std::io::stderr().is_terminal();
        bar.set_draw_target(if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() });
        if let Ok(style) = ProgressStyle::with_template("{spinner} [{bar:30}] {msg}") {
            bar.set_style(style.progress_chars("=> "));
        }
        Screen { bar }
    }

    /// A numbered step and what it did.
    pub(super) fn step(&self, name: &str, text: impl std::fmt::Display) {
        self.line(&format!("{name:<10} {text}"));
    }

    /// One line. A reader that went away is noticed at the last line, which scripts wait for.
    pub(super) fn line(&self, text: &str) {
        self.bar.suspend(|| {
            let mut out = std::io::stdout().lock();
            let _ = writeln!(out, "{text}").and_then(|()| out.flush());
        });
    }

    /// What the bar says until the next figures.
    pub(super) fn message(&self, text: &str) {
        self.bar.set_message(text.to_owned());
        self.bar.enable_steady_tick(Duration::from_millis(120));
    }

    /// The header of the figures.
    pub(super) fn header(&self) {
        self.line(&format!(
            "{:>5} {:>9} {:>9} {:>10} {:>8} {:>8} {:>6} {:>9} {:>8} {:>10} {:>10}",
            "time", "in", "acked", "normalised", "dropped", "alerted", "dead", "stored", "acked/s", "ack p50", "ack p99"
        ));
    }

    /// One second's figures.
    pub(super) fn figures(&self, f: &Figures, latencies: &Histogram<u64>) {
        let percentile = |quantile| match latencies.is_empty() {
            true => "-".to_owned(),
            false => format!("{:.2} ms", latencies.value_at_quantile(quantile) as f64 / 1000.0),
        };
        let note = if f.up { "" } else { "  node down: receivers keep reports and reconnect" };
        self.line(&format!(
            "{:>3} s {:>9} {:>9} {:>10} {:>8} {:>8} {:>6} {:>9} {:>8} {:>10} {:>10}{note}",
            f.second,
            f.sent,
            f.acknowledged,
            f.normalised,
            f.dropped(),
            f.alerted,
            f.dead,
            f.stored(),
            f.per_second,
            percentile(0.5),
            percentile(0.99),
        ));
        self.bar.set_position(f.second);
        self.message(&format!("{} reports acknowledged", f.acknowledged));
    }

    /// The bar goes; lines go on.
    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
