//! `weir plugin upload | list | delete`: the node's store of plugins. Writing, building and testing them is in `plugin`.

use std::io::Write;
use std::path::PathBuf;

use clap::Subcommand;
use serde_json::Value;

use super::table::table;
use super::{ConnectArgs, Failure};

#[derive(Debug, Subcommand)]
pub(super) enum StoreCommand {
    /// Stores plugin files on the node
    Upload {
        /// Components, as `weir plugin build` makes them
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        #[command(flatten)]
        connect: ConnectArgs,
    },
    /// Lists the node's plugins
    List {
        /// The node's own JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        connect: ConnectArgs,
    },
    /// Deletes a plugin that no pipeline uses
    Delete {
        /// Its name
        name: String,
        /// Its version
        version: String,
        #[command(flatten)]
        connect: ConnectArgs,
    },
}

pub(super) async fn run(command: StoreCommand) -> Result<(), Failure> {
    match command {
        StoreCommand::Upload { files, connect } => {
            let client = connect.connect().await?;
            for file in &files {
                let component = std::fs::read(file).map_err(|error| {
                    Failure::usage(format!("cannot read {}: {error}", file.display())).next("build one with `weir plugin build`")
                })?;
                let put = client.admin().put_plugin(component).await;
                let (name, version) = put.map_err(|error| connect.failure(error))?;
                writeln!(std::io::stdout().lock(), "stored {name} {version}")?;
            }
            Ok(())
        }
        StoreCommand::List { json, connect } => list(json, &connect).await,
        StoreCommand::Delete { name, version, connect } => {
            let client = connect.connect().await?;
            client.admin().delete_plugin(&name, &version).await.map_err(|error| connect.failure(error))?;
            writeln!(std::io::stdout().lock(), "deleted {name} {version}")?;
            Ok(())
        }
    }
}

async fn list(json: bool, connect: &ConnectArgs) -> Result<(), Failure> {
    let client = connect.connect().await?;
    let answer = client.admin().list_plugins().await.map_err(|error| connect.failure(error))?;
    let value = super::parse_answer("list of plugins", &answer)?;
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{value}")?;
        return Ok(());
    }
    let text = |plugin: &Value, field: &str| match &plugin[field] {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(","),
        Value::Null => String::new(),
        other => other.to_string(),
    };
    let rows: Vec<_> = value
        .as_array()
        .into_iter()
        .flatten()
        .map(|plugin| ["name", "version", "bytes", "attached_to"].map(|field| text(plugin, field)))
        .collect();
    out.write_all(table(["PLUGIN", "VERSION", "BYTES", "ATTACHED-TO"], &rows).as_bytes())?;
    Ok(())
}
