//! The node's side of the quick start: its site, its lives, its topics and plugins.

use std::path::Path;
use std::time::Duration;

use serde_json::json;
use weir_client::{Admin, Client, ClientConfig};

use super::Options;
use super::screen::Screen;
use crate::child::{ChildError, ChildNode, Site};
use crate::cli::{Exit, Failure};

/// Where the receivers publish, and where normalised readings are stored.
pub(super) const MAIN_TOPIC: &str = "tpms.raw";
/// Where alerts go.
pub(super) const ALERT_TOPIC: &str = "tpms.alerts";
/// Where lines go that no plugin can read.
pub(super) const DEAD_TOPIC: &str = "tpms.dead";
/// Partitions of the main topic.
const PARTITIONS: u32 = 4;
/// The plugins of the pipeline, in order; files of this name lie in the plugins' directory.
const PLUGINS: [&str; 3] = ["tpms-normalize", "filter", "tpms-alert"];
/// A node that does not answer by then does not start.
const READY: Duration = Duration::from_secs(30);
/// What the node is allowed for a graceful end.
const STOP: Duration = Duration::from_secs(15);
/// Beside the ACL, settings that keep the quick start's footprint small.
const SETTINGS: &str = "[log]\nsegment_bytes = \"32MiB\"\n\n[[acl]]\nprincipal = \"admin\"\nallow = [\"admin\", \"produce\", \"consume\"]\n\n\
[[acl]]\nprincipal = \"receiver-*\"\ntopic = \"tpms.raw\"\nallow = [\"produce\"]\n";

/// A node that is set up, and the client that administers it.
pub(super) struct Stage {
    site: Site,
    node: Option<ChildNode>,
    client: Client,
}

/// Principal of a receiver.
pub(super) fn receiver_name(number: usize) -> String {
    format!("receiver-{}", number + 1)
}

impl Stage {
    /// Certificates, node, topics, plugins, pipeline.
    pub(super) async fn set_up(options: &Options, screen: &Screen) -> Result<Stage, Failure> {
        let plugins = read_plugins(&options.plugins)?;
        let receivers: Vec<String> = (0..options.receivers).map(receiver_name).collect();
        let principals: Vec<&str> = receivers.iter().map(String::as_str).chain(["admin"]).collect();
        let site = Site::create(&options.dir, &principals, SETTINGS)?;
        screen.step(
            "site",
            format_args!("{}: a CA, certificates of the node and {} receivers, weir.toml", site.dir.display(), options.receivers),
        );
        screen.message("starting the node");
        let (node, client) = start(&site).await?;
        screen.step("node", format_args!("process {}, QUIC on {}, http://{}/metrics", node.pid(), site.addr, site.http_addr));
        let stage = Stage { site, node: Some(node), client };
        stage.create_topics(screen).await?;
        stage.attach_plugins(plugins, screen).await?;
        Ok(stage)
    }

    async fn create_topics(&self, screen: &Screen) -> Result<(), Failure> {
        for (topic, partitions) in [(MAIN_TOPIC, PARTITIONS), (ALERT_TOPIC, PARTITIONS), (DEAD_TOPIC, 1)] {
            let created = self.client.admin().create_topic(topic, partitions, Vec::new()).await;
            created.map_err(|error| self.failure(error))?;
        }
        screen.step("topics", format_args!("{MAIN_TOPIC} and {ALERT_TOPIC} with {PARTITIONS} partitions, {DEAD_TOPIC} with 1"));
        Ok(())
    }

    async fn attach_plugins(&self, plugins: Vec<Vec<u8>>, screen: &Screen) -> Result<(), Failure> {
        let admin = self.client.admin();
        let mut names = Vec::new();
        for component in plugins {
            let (name, version) = admin.put_plugin(component).await.map_err(|error| self.failure(error))?;
            names.push(format!("{name} {version}"));
        }
        admin.attach_pipeline(MAIN_TOPIC, &pipeline().to_string()).await.map_err(|error| self.failure(error))?;
        screen.step("pipeline", format_args!("{MAIN_TOPIC}: {}", names.join(" → ")));
        screen.line(&format!("           a copy of each alarming reading goes to {ALERT_TOPIC}; a line no plugin can read is kept in {DEAD_TOPIC} (dead-letter)"));
        screen.line("           repeats of a burst, readings without pressure and sensors that are no tyre are dropped before they are stored");
        Ok(())
    }

    /// SIGKILL.
    pub(super) fn kill(&mut self) -> Result<(), Failure> {
        let Some(node) = self.node.take() else { return Ok(()) };
        node.kill().map(drop).map_err(|error| Failure::new(Exit::Failed, format!("cannot kill the node: {error}")))
    }

    /// A new life on the same directory.
    pub(super) async fn start(&mut self, screen: &Screen) -> Result<(), Failure> {
        screen.message("recovering");
        let (node, client) = start(&self.site).await?;
        (self.node, self.client) = (Some(node), client);
        Ok(())
    }

    /// Stops the node, or hands it over where it is to stay.
    pub(super) async fn end(mut self, keep: bool) -> Result<Option<ChildNode>, Failure> {
        match self.node.take() {
            Some(node) if keep => Ok(Some(node)),
            Some(node) => {
                let stopped = node.stop(STOP).await;
                let status = stopped.map_err(|error| Failure::new(Exit::Failed, format!("cannot stop the node: {error}")))?;
                if !status.success() {
                    let message = format!("the node did not end well: {status}");
                    return Err(Failure::new(Exit::Failed, message).next(format!("see {}", self.site.log().display())));
                }
                Ok(None)
            }
            None => Ok(None),
        }
    }

    pub(super) fn site(&self) -> &Site {
        &self.site
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    pub(super) fn admin(&self) -> Admin {
        self.client.admin()
    }

    /// Configuration of a client with a principal's certificate.
    pub(super) fn client_config(&self, principal: &str) -> Result<ClientConfig, Failure> {
        client_config(&self.site, principal)
    }

    pub(super) fn failure(&self, error: weir_client::ClientError) -> Failure {
        Failure::from_client(error, &self.site.addr.to_string())
    }
}

/// Durable records of the three topics; none where the node does not answer.
pub(super) async fn stored_counts(admin: &Admin) -> Option<[u64; 3]> {
    let mut counts = [0; 3];
    for (count, topic) in counts.iter_mut().zip([MAIN_TOPIC, ALERT_TOPIC, DEAD_TOPIC]) {
        let describe = tokio::time::timeout(Duration::from_millis(900), admin.describe_topic(topic));
        let about = describe.await.ok()?.ok()?;
        *count = about.partitions.iter().map(|range| range.high_watermark.max(0) as u64).sum();
    }
    Some(counts)
}

/// Short pauses: the quick start's node is away for a second, not for a minute. A killed node says no good-bye, so it is
/// its silence that tells: with the library's own 30 s the receivers would wait that long before they look for it again.
fn client_config(site: &Site, principal: &str) -> Result<ClientConfig, Failure> {
    let mut config = site.client_config(principal)?;
    config.connect_timeout = Duration::from_secs(1);
    config.backoff_max = Duration::from_millis(250);
    config.transport.idle_timeout = Duration::from_secs(3);
    config.transport.keep_alive = Duration::from_millis(750);
    Ok(config)
}

async fn start(site: &Site) -> Result<(ChildNode, Client), Failure> {
    let config = client_config(site, "admin")?;
    let mut node = site.start()?;
    let client = node.ready(READY, &config).await?;
    Ok((node, client))
}

fn pipeline() -> serde_json::Value {
    json!({ "stages": [
        { "plugin": PLUGINS[0], "on_failure": "dead-letter", "dead_letter_topic": DEAD_TOPIC },
        { "plugin": PLUGINS[1], "config": filter_config(), "on_failure": "dead-letter", "dead_letter_topic": DEAD_TOPIC },
        { "plugin": PLUGINS[2], "outputs": { "alerts": ALERT_TOPIC }, "on_failure": "dead-letter", "dead_letter_topic": DEAD_TOPIC },
    ] })
}

/// A reading without pressure says nothing about a tyre.
fn filter_config() -> serde_json::Value {
    json!({ "drop": { "field": "status", "op": "==", "value": "no_pressure" } })
}

fn read_plugins(dir: &Path) -> Result<Vec<Vec<u8>>, Failure> {
    PLUGINS
        .iter()
        .map(|name| {
            let file = dir.join(format!("{name}.wasm"));
            std::fs::read(&file).map_err(|error| {
                Failure::new(Exit::NotFound, format!("no plugin {}: {error}", file.display()))
                    .next("run `make plugins`, or name the directory that holds the plugins with --plugins")
            })
        })
        .collect()
}

impl From<ChildError> for Failure {
    fn from(error: ChildError) -> Failure {
        match error {
            ChildError::Cert(error) => error.into(),
            ChildError::Client(error) => Failure::new(Exit::Failed, error),
            other => Failure::new(Exit::Failed, other),
        }
    }
}
