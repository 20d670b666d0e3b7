//! The node that is measured: a child of this process on a directory of its own, or one that somebody else runs.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use weir_bench::profile::PluginUse;
use weir_bench::{Host, Load, Report, Usage, profile};
use weir_client::{Client, ClientConfig};

use super::plugin::Attached;
use super::{BenchArgs, Exit, Failure, Profile, failed, floors, load};
use crate::child::{ChildNode, Site};

/// A child node that does not answer by then does not start.
const READY: Duration = Duration::from_secs(60);
/// What the child node is allowed for a graceful end.
const STOP: Duration = Duration::from_secs(15);
/// How often it is asked whether it serves.
const LOOK: Duration = Duration::from_millis(2);

/// A node of the benchmark's own, on a directory that goes with it.
pub(super) struct OwnNode {
    node: ChildNode,
    site: Site,
    pub(super) config: ClientConfig,
    pub(super) client: Client,
    _dir: Gone,
}

/// A directory that is removed in the end.
struct Gone(PathBuf);

impl Drop for Gone {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl OwnNode {
    /// Starts one with these settings beside the defaults.
    pub(super) async fn start(dir: &Path, args: &BenchArgs) -> Result<OwnNode, Failure> {
        let gone = Gone(dir.join(format!("node-{}", std::process::id())));
        let site_text = further(&settings(args))?;
        let mut site = Site::create(&gone.0, &["admin"], &site_text)?;
        site.memory_max.clone_from(&args.memory_max);
        let config = site.client_config("admin")?;
        let mut node = site.start()?;
        let client = node.ready(READY, &config).await?;
        Ok(OwnNode { node, site, config, client, _dir: gone })
    }

    /// CPU and memory so far.
    pub(super) fn usage(&self) -> Result<Usage, Failure> {
        Usage::of(self.node.pid()).ok_or_else(|| failed("the node has ended; look into its log"))
    }

    /// CPU seconds so far, to the nanosecond; threads that have ended are not in it.
    pub(super) fn cpu_seconds_exact(&self) -> Result<f64, Failure> {
        Usage::cpu_seconds_exact(self.node.pid()).ok_or_else(|| failed("the kernel does not tell the node's CPU time exactly"))
    }

    /// Descriptors it has open.
    pub(super) fn open_files(&self) -> Result<usize, Failure> {
        Ok(std::fs::read_dir(format!("/proc/{}/fd", self.node.pid()))?.count())
    }

    /// Files in its data directory.
    pub(super) fn data_files(&self) -> Result<usize, Failure> {
        files_below(&self.site.dir.join("data")).map_err(Failure::from)
    }

    /// SIGKILL, then a new life on the same directory; answers the seconds from its start until it serves.
    pub(super) async fn crash_and_restart(self) -> Result<(OwnNode, f64), Failure> {
        let OwnNode { node, site, config, _dir, .. } = self;
        node.kill()?;
        let (node, seconds) = serving(&site).await?;
        let client = Client::connect(config.clone()).await.map_err(failed)?;
        Ok((OwnNode { node, site, config, client, _dir }, seconds))
    }

    /// SIGTERM and a new life: nothing that was read or written is in its memory.
    pub(super) async fn restart(self) -> Result<OwnNode, Failure> {
        let OwnNode { node, site, config, client, _dir } = self;
        client.close().await;
        node.stop(STOP).await?;
        let (node, _) = serving(&site).await?;
        let client = Client::connect(config.clone()).await.map_err(failed)?;
        Ok(OwnNode { node, site, config, client, _dir })
    }

    /// Ends it as an operator does.
    pub(super) async fn stop(self) -> Result<(), Failure> {
        let OwnNode { node, client, _dir, .. } = self;
        client.close().await;
        let stopped = node.stop(STOP).await;
        stopped.map(drop).map_err(|error| failed(format!("cannot stop the node: {error}")))
    }
}

async fn serving(site: &Site) -> Result<(ChildNode, f64), Failure> {
    let begin = Instant::now();
    let node = site.start()?;
    let http = site.http_addr;
    let ready = tokio::task::spawn_blocking(move || {
        while !is_ready(http) {
            if begin.elapsed() > READY {
                return None;
            }
            std::thread::sleep(LOOK);
        }
        Some(begin.elapsed().as_secs_f64())
    });
    let seconds = ready.await.map_err(failed)?;
    Ok((node, seconds.ok_or_else(|| failed("the node did not serve again in time; look into its log"))?))
}

/// The node's own word for it: GET /readyz.
fn is_ready(http: SocketAddr) -> bool {
    let ask = || {
        let mut stream = TcpStream::connect(http)?;
        stream.write_all(b"GET /readyz HTTP/1.0\r\n\r\n")?;
        let mut status = [0; 12];
        stream.read_exact(&mut status)?;
        Ok::<_, std::io::Error>(status.ends_with(b" 200"))
    };
    ask().unwrap_or(false)
}

fn files_below(dir: &Path) -> std::io::Result<usize> {
    let mut files = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        files += if entry.file_type()?.is_dir() { files_below(&entry.path())? } else { 1 };
    }
    Ok(files)
}

/// Starts a node in the directory, measures it, stops it.
pub(super) async fn own(args: &BenchArgs, dir: &Path, plugin: Option<PluginUse>) -> Result<Report, Failure> {
    let mut node = OwnNode::start(dir, args).await?;
    let load = load(args);
    let host = Host::detect(Some(dir));
    let created = node.client.admin().create_topic(&load.topic, load.partitions, Vec::new()).await;
    created.map_err(failed)?;
    let attached = attach(&node.client, &load.topic, plugin, &node.site.addr.to_string()).await?;
    let (mut filled, mut without) = (0, None);
    match args.profile {
        Profile::Consume if !args.tail => {
            filled = profile::fill_topic(&node.config, &load, host.clone()).await.map_err(measuring)?;
            node = node.restart().await?;
        }
        Profile::Consume if args.slow > 0 => {
            let consumers = (args.consumers, 0);
            without = Some(profile::tail(&node.config, &load, consumers, host.clone()).await.map_err(measuring)?);
        }
        _ => {}
    }
    let before = node.usage()?;
    let measured = match args.profile {
        Profile::Consume if !args.tail => profile::read_topic(&node.config, &load, filled, host).await,
        _ => drive(args, &node.config, &load, host).await,
    };
    let mut report = measured.map_err(measuring)?;
    report.server_cost(before, node.usage()?);
    report.plugin = attached.map(|attached| attached.what());
    if let Some(without) = &without {
        report.beside_slow_ones(without);
    }
    node.stop().await?;
    if !args.no_floors {
        report.add_floors(floors::of(args, &load, dir).await?);
    }
    Ok(report)
}

/// Measures a node that somebody else runs: its costs and its disk are not ours to read. Creates the topic, runs the profile, deletes the
/// topic.
pub(super) async fn remote(args: &BenchArgs, plugin: Option<PluginUse>) -> Result<Report, Failure> {
    let config = args.connect.config()?;
    let client = args.connect.connect().await?;
    let load = load(args);
    let created = client.admin().create_topic(&load.topic, load.partitions, Vec::new()).await;
    created.map_err(|error| args.connect.failure(error))?;
    let attached = attach(&client, &load.topic, plugin, &args.connect.addr).await?;
    let host = Host::detect(None);
    let measured = drive(args, &config, &load, host).await;
    let deleted = client.admin().delete_topic(&load.topic).await;
    let mut report = measured.map_err(measuring)?;
    deleted.map_err(|error| args.connect.failure(error))?;
    if let Some(attached) = attached {
        report.plugin = Some(attached.what());
        attached.remove(&client.admin(), &args.connect.addr).await?;
    }
    Ok(report)
}

async fn attach(client: &Client, topic: &str, plugin: Option<PluginUse>, addr: &str) -> Result<Option<Attached>, Failure> {
    match plugin {
        Some(plugin) => Attached::attach(client, topic, plugin, addr).await.map(Some),
        None => Ok(None),
    }
}

async fn drive(args: &BenchArgs, config: &ClientConfig, load: &Load, host: Host) -> Result<Report, weir_bench::BenchError> {
    match args.profile {
        Profile::Consume if args.tail => profile::tail(config, load, (args.consumers, args.slow), host).await,
        Profile::Consume => {
            let filled = profile::fill_topic(config, load, host.clone()).await?;
            profile::read_topic(config, load, filled, host).await
        }
        Profile::Latency => profile::latency(config, load, host).await,
        _ => profile::publish(config, load, host).await,
    }
}

/// What a profile failed with.
pub(super) fn measuring(error: weir_bench::BenchError) -> Failure {
    Failure::new(Exit::Failed, error).next("look into the node's log")
}

/// Publishing is measured on a log that goes round in segments it has used before, as that of a node does that has been up for a
/// while; making new ones costs another write of every byte.
fn settings(args: &BenchArgs) -> Vec<&str> {
    let lasting = matches!(args.profile, Profile::Publish | Profile::Latency).then_some("log.retention_bytes=512MiB");
    lasting.into_iter().chain(args.overrides.iter().map(String::as_str)).collect()
}

/// `--set` as lines of the child's file, the last of a key counts; its own start checks them.
fn further(overrides: &[&str]) -> Result<String, Failure> {
    let acl = "[[acl]]\nprincipal = \"admin\"\nallow = [\"admin\", \"produce\", \"consume\"]\n";
    let mut sections: BTreeMap<&str, BTreeMap<&str, String>> = BTreeMap::new();
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
        sections.entry(section).or_default().insert(key, value);
    }
    let lines =
        |keys: BTreeMap<&str, String>| keys.into_iter().map(|(key, value)| format!("{key} = {value}\n")).collect::<String>();
    let text: String = sections.into_iter().map(|(section, keys)| format!("[{section}]\n{}\n", lines(keys))).collect();
    Ok(text + acl)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn overrides_become_a_file_that_loads() {
        let text = further(&["log.segment_bytes=32MiB", "log.spare_segments=2", "log.spare_segments=3"]).expect("valid");
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("weir.toml");
        std::fs::write(&file, text).expect("writable");
        let config = Config::load(&crate::config::Sources { file: Some(file), ..Default::default() }).expect("loads");
        assert_eq!((config.log.segment_bytes, config.log.spare_segments), (32 << 20, 3));
        assert!(further(&["quic.listen=x"]).is_err());
        assert!(further(&["nonsense"]).is_err());
    }
}
