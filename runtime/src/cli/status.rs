//! `weir status`: what the node says about itself.

use std::fmt::Write as _;
use std::io::Write as _;

use clap::Args;
use serde_json::Value;

use super::{ConnectArgs, Failure};

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// The node's own JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

pub(super) async fn run(args: StatusArgs) -> Result<(), Failure> {
    let client = args.connect.connect().await?;
    let status = client.admin().status().await.map_err(|error| args.connect.failure(error))?;
    let value = super::parse_answer("status", &status)?;
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{value}")?;
    } else {
        let mut text = String::new();
        render(&mut text, &value, 0);
        out.write_all(text.as_bytes())?;
    }
    Ok(())
}

/// Keys and values indented by depth; a list of scalars on one line. The node decides what it tells, so a newer node's
/// fields show here too.
fn render(text: &mut String, value: &Value, depth: usize) {
    let indent = "  ".repeat(depth);
    let fields: Vec<(String, &Value)> = match value {
        Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), value)).collect(),
        Value::Array(items) => items.iter().map(|item| ("-".to_owned(), item)).collect(),
        scalar => vec![(String::new(), scalar)],
    };
    for (name, value) in fields {
        let written = match value {
            Value::Object(fields) if fields.is_empty() => writeln!(text, "{indent}{name}  none"),
            Value::Array(items) if items.is_empty() => writeln!(text, "{indent}{name}  none"),
            Value::Object(_) | Value::Array(_) => {
                text.push_str(&indent);
                text.push_str(&name);
                text.push('\n');
                render(text, value, depth + 1);
                Ok(())
            }
            Value::String(string) => writeln!(text, "{indent}{name}  {string}"),
            Value::Number(number) if name.contains("bytes") => {
                let human = number.as_u64().map(crate::config::format_bytes).unwrap_or_default();
                writeln!(text, "{indent}{name}  {number} ({human})")
            }
            scalar => writeln!(text, "{indent}{name}  {scalar}"),
        };
        written.expect("writing to a String cannot fail");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_reads_as_indented_lines() {
        let mut text = String::new();
        let value = serde_json::json!({ "node": { "name": "n1" }, "log": { "tail_bytes": 2048, "gaps": [] }, "up": true });
        render(&mut text, &value, 0);
        assert_eq!(text, "log\n  gaps  none\n  tail_bytes  2048 (2.0 KiB)\nnode\n  name  n1\nup  true\n");
    }
}
