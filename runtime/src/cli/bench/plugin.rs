//! `weir bench --plugin`: finds the plugin, runs it alone, or puts it in front of the topic that is published to.

use std::path::{Path, PathBuf};

use serde_json::json;
use weir_bench::profile::{self, PluginUse};
use weir_bench::{Host, Load, Report};
use weir_client::{Admin, Client};

use super::{Exit, Failure};

/// Where a plugin given by name is looked for: where `make plugins` puts those that ship.
const SHIPPED: &str = "plugins/dist";

/// The plugin named on the command line; none is the built-in one.
pub(super) fn find(name: Option<&str>, config: Option<&str>) -> Result<Option<PluginUse>, Failure> {
    let config = config.unwrap_or_default().to_owned();
    let Some(name) = name else { return Ok(None) };
    if name == profile::BYTE_FILTER {
        let built_in = PluginUse::byte_filter().map_err(|error| Failure::new(Exit::Failed, error))?;
        return Ok(Some(built_in));
    }
    let file = if Path::new(name).extension().is_some_and(|ending| ending == "wasm") {
        PathBuf::from(name)
    } else {
        Path::new(SHIPPED).join(format!("{name}.wasm"))
    };
    let component = std::fs::read(&file).map_err(|error| {
        Failure::new(Exit::NotFound, format!("no plugin {}: {error}", file.display()))
            .next(format!("run `make plugins`, name a .wasm file, or --plugin {} for the built-in one", profile::BYTE_FILTER))
    })?;
    Ok(Some(PluginUse { component, config, sensor_lines: true }))
}

/// `weir bench pipeline`.
pub(super) async fn alone(plugin: Option<PluginUse>, load: Load) -> Result<Report, Failure> {
    let run = tokio::task::spawn_blocking(move || profile::pipeline(plugin, &load, Host::detect(None)));
    let report = run.await.map_err(|error| Failure::new(Exit::Failed, error))?;
    report.map_err(|error| Failure::new(Exit::Failed, error))
}

/// A plugin in front of a topic, until it is removed.
pub(super) struct Attached {
    name: String,
    version: String,
}

impl Attached {
    /// Uploads the plugin and makes it the topic's pipeline.
    pub(super) async fn attach(client: &Client, topic: &str, plugin: PluginUse, addr: &str) -> Result<Attached, Failure> {
        let failure = |error| Failure::from_client(error, addr);
        let admin = client.admin();
        let (name, version) = admin.put_plugin(plugin.component).await.map_err(failure)?;
        let config: serde_json::Value = match plugin.config.as_str() {
            "" => serde_json::Value::Null,
            text => serde_json::from_str(text).map_err(|error| Failure::usage(format!("--plugin-config is no JSON: {error}")))?,
        };
        let mut stage = json!({ "plugin": name, "on_failure": "drop" });
        if !config.is_null() {
            stage["config"] = config;
        }
        admin.attach_pipeline(topic, &json!({ "stages": [stage] }).to_string()).await.map_err(failure)?;
        Ok(Attached { name, version })
    }

    /// `name version`.
    pub(super) fn what(&self) -> String {
        format!("{} {}", self.name, self.version)
    }

    /// Deletes the plugin again; its topic is gone already.
    pub(super) async fn remove(self, admin: &Admin, addr: &str) -> Result<(), Failure> {
        let deleted = admin.delete_plugin(&self.name, &self.version).await;
        deleted.map_err(|error| Failure::from_client(error, addr))
    }
}
