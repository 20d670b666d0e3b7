//! One row a scenario and file system, and whether it came out as it must.

use std::time::Duration;

use weir_tests::disk::mount::Kind;
use weir_tests::ledger::Verdict;

/// What came of a scenario.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) scenario: String,
    pub(crate) kind: Kind,
    /// A control: records must be missing.
    pub(crate) must_lose: bool,
    pub(crate) cuts: u32,
    /// Of the last check, or the first that failed.
    pub(crate) verdict: Verdict,
    pub(crate) seed: u64,
    pub(crate) took: Duration,
    /// What was seen on the way, in a few words.
    pub(crate) notes: Vec<String>,
    /// Why it could not be carried out, or what the node did that it must not.
    pub(crate) error: Option<String>,
}

impl Row {
    /// Did it come out as it must?
    pub(crate) fn is_good(&self) -> bool {
        let lost = self.verdict.lost > 0;
        self.error.is_none() && self.verdict.acknowledged > 0 && if self.must_lose { lost } else { self.verdict.holds() }
    }

    fn outcome(&self) -> &'static str {
        match (self.is_good(), self.must_lose) {
            (true, false) => "holds",
            (true, true) => "caught",
            (false, false) => "FAILED",
            (false, true) => "NOT CAUGHT",
        }
    }

    fn cells(&self) -> [String; 11] {
        let verdict = &self.verdict;
        [
            self.scenario.clone(),
            self.kind.to_string(),
            self.cuts.to_string(),
            verdict.acknowledged.to_string(),
            verdict.retired.to_string(),
            verdict.recovered.to_string(),
            verdict.lost.to_string(),
            verdict.duplicated.to_string(),
            (verdict.reordered + verdict.invented).to_string(),
            self.took.as_secs().to_string(),
            self.outcome().to_string(),
        ]
    }
}

const HEAD: [&str; 11] =
    ["scenario", "fs", "cuts", "acknowledged", "retired", "recovered", "lost", "duplicated", "misplaced", "s", "outcome"];

/// A row as it comes, while the others still run.
pub(crate) fn line(row: &Row) -> String {
    let fields: Vec<String> = HEAD.iter().zip(row.cells()).map(|(name, cell)| format!("{name}={cell}")).collect();
    let notes = if row.notes.is_empty() { String::new() } else { format!("\n  {}", row.notes.join("\n  ")) };
    let error = row.error.as_ref().map(|error| format!("\n  {error}")).unwrap_or_default();
    format!("{} seed={}{notes}{error}", fields.join(" "), row.seed)
}

/// All rows, columns aligned. Retired records have gone by retention; misplaced ones were out of order or never sent.
pub(crate) fn render(rows: &[Row]) -> String {
    let lines: Vec<[String; 11]> = std::iter::once(HEAD.map(String::from)).chain(rows.iter().map(Row::cells)).collect();
    let width = |column: usize| lines.iter().map(|line| line[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..HEAD.len()).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        for (column, cell) in line.iter().enumerate() {
            let width = widths[column];
            // Words to the left, numbers to the right.
            let padded = if (2..=9).contains(&column) { format!("{cell:>width$}") } else { format!("{cell:<width$}") };
            text.push_str(&padded);
            text.push_str("  ");
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(must_lose: bool, verdict: Verdict) -> Row {
        Row {
            scenario: "cuts".into(),
            kind: Kind::Ext4,
            must_lose,
            cuts: 1,
            verdict,
            seed: 1,
            took: Duration::from_secs(1),
            notes: Vec::new(),
            error: None,
        }
    }

    #[test]
    fn a_control_must_lose_and_nothing_else_may() {
        let kept = Verdict { acknowledged: 10, recovered: 10, ..Verdict::default() };
        let lost = Verdict { lost: 1, ..kept };
        let twice = Verdict { duplicated: 1, ..kept };
        assert!(row(false, kept).is_good() && row(true, lost).is_good());
        assert!(!row(false, lost).is_good() && !row(true, kept).is_good() && !row(false, twice).is_good());
        assert!(!row(true, twice).is_good(), "a control is caught by what is missing");
        assert!(!row(false, Verdict::default()).is_good(), "nothing acknowledged, nothing shown");
        assert!(!Row { error: Some("no".into()), ..row(true, lost) }.is_good());
    }

    #[test]
    fn every_row_is_a_line_of_the_table() {
        let table = render(&[row(false, Verdict::default()), row(true, Verdict::default())]);
        assert_eq!(table.lines().count(), 3);
        assert!(table.contains("NOT CAUGHT") && table.contains("FAILED"), "{table}");
    }
}
