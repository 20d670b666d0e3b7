//! The node that is measured: a child of this process on a directory of its own, or one that somebody else runs.

use std::path::Path;
use std::time::Duration;

use weir_bench::{Host, Report, Usage, profile};
use weir_client::{Client, ClientConfig};

use super::{BenchArgs, Exit, Failure, Profile, floors, load};
use crate::child::{ChildNode, Site};

/// A child node that does not answer by then does not start.
const READY: Duration = Duration::from_secs(30);
/// What the child node is allowed for a graceful end.
const STOP: Duration = Duration::from_secs(15);

/// Starts a node in the directory, measures it, stops it.
pub(super) async fn own(args: &BenchArgs, dir: &Path) -> Result<Report, Failure> {
    let site_dir = dir.join(format!("node-{}", std::process::id()));
    let site = Site::create(&site_dir, &["admin"], &further(&args.overrides)?)?;
    let addr = site.addr.to_string();
    let config = site.client_config("admin")?;
    let mut node = site.start()?;
    let client = node.ready(READY, &config).await?;
    let measured = measure(args, &client, &config, &addr, Some((&node, dir))).await;
    let stopped = node.stop(STOP).await;
    let _ = std::fs::remove_dir_all(&site_dir);
    let mut report = measured?;
    stopped.map_err(|error| Failure::new(Exit::Failed, format!("cannot stop the node: {error}")))?;
    if !args.no_floors {
        report.add_floors(floors::of(args, dir).await?);
    }
    Ok(report)
}

/// Measures a node that somebody else runs: its costs and its disk are not ours to read.
pub(super) async fn remote(args: &BenchArgs) -> Result<Report, Failure> {
    let config = args.connect.config()?;
    let client = args.connect.connect().await?;
    measure(args, &client, &config, &args.connect.addr, None).await
}

/// Creates the topic, runs the profile, deletes the topic.
async fn measure(
    args: &BenchArgs,
    client: &Client,
    config: &ClientConfig,
    addr: &str,
    node: Option<(&ChildNode, &Path)>,
) -> Result<Report, Failure> {
    let load = load(args);
    let created = client.admin().create_topic(&load.topic, load.partitions, Vec::new()).await;
    created.map_err(|error| Failure::from_client(error, addr))?;
    let usage = || node.and_then(|(node, _)| Usage::of(node.pid()));
    let before = usage();
    let host = Host::detect(node.map(|(_, dir)| dir));
    let measured = match args.profile {
        Profile::Consume => profile::consume(config, &load, host).await,
        Profile::Latency => profile::latency(config, &load, host).await,
        _ => profile::publish(config, &load, host).await,
    };
    let after = usage();
    let deleted = client.admin().delete_topic(&load.topic).await;
    let mut report = measured.map_err(|error| Failure::new(Exit::Failed, error).next("look into the node's log"))?;
    deleted.map_err(|error| Failure::from_client(error, addr))?;
    if let (Some(before), Some(after)) = (before, after) {
        report.server_cpu_seconds = Some(after.cpu_seconds - before.cpu_seconds);
        report.server_rss_bytes = Some(after.rss_bytes);
    }
    Ok(report)
}

/// `--set` as lines of the child's file; its own start checks them.
fn further(overrides: &[String]) -> Result<String, Failure> {
    let acl = "[[acl]]\nprincipal = \"admin\"\nallow = [\"admin\", \"produce\", \"consume\"]\n";
    let mut sections: std::collections::BTreeMap<&str, String> = std::collections::BTreeMap::new();
    for text in overrides {
        let parsed = text.split_once('=').and_then(|(name, value)| Some((name.split_once('.')?, value)));
        let Some(((section, key), value)) = parsed else {
            return Err(Failure::usage(format!("--set {text}: write it as section.key=value")));
        };
        let bare = value.parse::<u64>().is_ok() || matches!(value, "true" | "false");
        let value = if bare { value.to_owned() } else { format!("{value:?}") };
        if matches!(section, "node" | "quic" | "http") {
            return Err(Failure::usage(format!("--set {text}: [{section}] is set by the benchmark itself"))
                .next("run a node of your own with `weir serve` and measure it with --remote"));
        }
        sections.entry(section).or_default().push_str(&format!("{key} = {value}\n"));
    }
    let text: String = sections.into_iter().map(|(section, keys)| format!("[{section}]\n{keys}\n")).collect();
    Ok(text + acl)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn overrides_become_a_file_that_loads() {
        let text = further(&["log.segment_bytes=32MiB".to_owned(), "log.spare_segments=3".to_owned()]).expect("valid");
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("weir.toml");
        std::fs::write(&file, text).expect("writable");
        let config = Config::load(&crate::config::Sources { file: Some(file), ..Default::default() }).expect("loads");
        assert_eq!((config.log.segment_bytes, config.log.spare_segments), (32 << 20, 3));
        assert!(further(&["quic.listen=x".to_owned()]).is_err());
        assert!(further(&["nonsense".to_owned()]).is_err());
    }
}
