//! Columns for people: left-aligned text, right-aligned numbers, no borders, so that `awk` can read it too.

use std::fmt::Write;

/// Rows under a header line; a column is right-aligned where every cell of it is a number.
pub(super) fn table<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        rows.iter().map(|row| row[column].chars().count()).chain([header[column].chars().count()]).max().unwrap_or(0)
    };
    let number = |column: usize| {
        !rows.is_empty() && rows.iter().all(|row| row[column].chars().all(|c| c.is_ascii_digit() || "+-.,%".contains(c)))
    };
    let columns: [(usize, bool); N] = std::array::from_fn(|column| (width(column), number(column)));
    let mut out = String::new();
    line(&mut out, header.map(str::to_owned), &columns);
    for row in rows {
        line(&mut out, row.clone(), &columns);
    }
    out
}

fn line<const N: usize>(out: &mut String, cells: [String; N], columns: &[(usize, bool); N]) {
    let start = out.len();
    for (cell, (width, number)) in cells.iter().zip(columns) {
        let gap = if out.len() == start { "" } else { "  " };
        let written = if *number { write!(out, "{gap}{cell:>width$}") } else { write!(out, "{gap}{cell:<width$}") };
        written.expect("writing to a String cannot fail");
    }
    out.truncate(start + out[start..].trim_end().len());
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_right_and_lines_do_not_trail() {
        let rows = [["a".to_owned(), "5".to_owned()], ["long".to_owned(), "500".to_owned()]];
        assert_eq!(table(["TOPIC", "N"], &rows), "TOPIC    N\na        5\nlong   500\n");
        assert_eq!(table(["TOPIC", "NOTE"], &[["a".to_owned(), String::new()]]), "TOPIC  NOTE\na\n");
    }
}
