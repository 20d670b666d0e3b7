//! A node under load on a disk that can lose its power: everything a scenario needs, and its end in the right order.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use weir_tests::disk::Disk;
use weir_tests::disk::cache::Cut;
use weir_tests::disk::faults::{Delays, Faults};
use weir_tests::disk::mount::{Kind, Volume};
use weir_tests::ledger::Verdict;
use weir_tests::load::{self, Fleet, Load};
use weir_tests::node::{Node, Site, http_get, http_status};

/// Enough for the log of `RETENTION_BYTES`, and what mkfs.xfs asks for at least.
const DISK_BYTES: u64 = 512 << 20;
/// Small, so that cuts hit rolls, zero-fills and recycling.
pub(crate) const SEGMENT_BYTES: u64 = 4 << 20;
const FRAME_BYTES_MAX: u32 = 1 << 20;
/// Reached within seconds: from then on cold segments go.
const RETENTION_BYTES: u64 = 32 << 20;
/// Two segments are sorted at a time.
const SORT_BYTES: u64 = 2 * SEGMENT_BYTES;
/// From here on appends wait for the sorter.
const LOG_BYTES_MAX: u64 = 8 * SEGMENT_BYTES;
/// Few records, large ones: a check reads them all, and what is wanted is rolls.
const LOAD: Load = Load { producers: 2, under_way_max: 200, value_bytes_max: 4000 };
/// Records acknowledged before a cut at least: a cut of an idle node shows little.
const PROGRESS_MIN: u64 = 300;
/// A busy node writes a few hundred times long before.
const CUT_WAIT_MAX: Duration = Duration::from_secs(5);
/// A sorter that has changed nothing for so long has nothing to do: it waits for a quiet second, and looks once a second.
const QUIET: Duration = Duration::from_secs(3);
const PROGRESS_WAIT_MAX: Duration = Duration::from_secs(120);

/// Of all scenarios of a run.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) weir: PathBuf,
    pub(crate) cuts: u32,
    pub(crate) seed: u64,
}

/// Fields are dropped in this order: first who uses the disk, then the disk, then the directory.
#[derive(Debug)]
pub(crate) struct Rig {
    pub(crate) fleet: Fleet,
    node: Option<Node>,
    volume: Volume,
    pub(crate) disk: Arc<Disk>,
    /// The second one holds copies of what is on the first; the third one is a spare.
    others: Vec<Other>,
    pub(crate) site: Site,
    pub(crate) random: fastrand::Rng,
    pub(crate) cuts: u32,
    /// What the last check missed, by producer.
    pub(crate) missed: Vec<String>,
    hard_disk: bool,
    /// Of the node, without further disks.
    config: String,
    dir: tempfile::TempDir,
}

/// A further disk.
#[derive(Debug)]
struct Other {
    volume: Volume,
    disk: Arc<Disk>,
}

impl Other {
    fn data(&self) -> PathBuf {
        self.volume.root().join("data")
    }
}

impl Rig {
    /// Fresh file systems on so many disks, a node on the first two of them, producers at work.
    pub(crate) async fn make(settings: &Settings, kind: Kind, seed: u64, disks: u64) -> Result<Rig, String> {
        let text = |error: std::io::Error| error.to_string();
        let dir = tempfile::Builder::new().prefix("weir-powercut-").tempdir().map_err(text)?;
        let disk = Disk::new(DISK_BYTES, seed);
        let volume = Volume::make(kind, Arc::clone(&disk), &dir.path().join("disk"))?;
        let other = |number: u64| {
            let disk = Disk::new(DISK_BYTES, seed ^ number);
            let volume = Volume::make(kind, Arc::clone(&disk), &dir.path().join(format!("disk-{number}")))?;
            Ok(Other { volume, disk })
        };
        let others = (1..disks).map(other).collect::<Result<Vec<Other>, String>>()?;
        let config = format!(
            "[log]\nsegment_bytes = {SEGMENT_BYTES}\nframe_bytes_max = {FRAME_BYTES_MAX}\nretention_bytes = {RETENTION_BYTES}\n\
             [cold]\nsort_bytes = {SORT_BYTES}\nlog_bytes_max = {LOG_BYTES_MAX}\nsort_memory_bytes = {SORT_BYTES}\n\
             [limits]\nbatch_bytes_max = \"400KiB\"\n"
        );
        let with_second = with_volume(&config, others.first());
        let site = Site::make_with_data(&settings.weir, &dir.path().join("node"), &volume.root().join("data"), &with_second);
        let site = site.map_err(text)?;
        let node = start(&site)?;
        load::create_topic(&site).await?;
        let fleet = Fleet::start(&site, LOAD);
        let random = fastrand::Rng::with_seed(seed);
        Ok(Rig {
            fleet,
            node: Some(node),
            volume,
            disk,
            others,
            site,
            random,
            cuts: 0,
            missed: Vec::new(),
            hard_disk: false,
            config,
            dir,
        })
    }

    /// Lets the producers work: some acknowledgements, and then a random while.
    pub(crate) async fn work(&mut self) -> Result<(), String> {
        let (begin, before) = (Instant::now(), self.fleet.acknowledged());
        while self.fleet.acknowledged() < before + PROGRESS_MIN {
            if begin.elapsed() > PROGRESS_WAIT_MAX {
                return Err(format!("no progress for {PROGRESS_WAIT_MAX:?}; the node says:\n{}", self.said(20)));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::time::sleep(Duration::from_millis(self.random.u64(0..500))).await;
        Ok(())
    }

    /// The power goes. What the kernel still held goes with it; the disk is plugged in again, nothing is mounted yet.
    pub(crate) async fn power_cut(&mut self, cut: Cut) -> Result<(), String> {
        self.end_of_power(cut);
        self.fleet.kill_restarted().await
    }

    /// The same at the n-th write from now: however short the disk's work is beside the pauses, the cut hits it.
    pub(crate) async fn power_cut_at_write(&mut self, writes: u32) -> Result<(), String> {
        let hit = Arc::clone(self.random_disk());
        hit.set(|faults| faults.cut_at_write = Some((writes, Cut::Any)));
        let begin = Instant::now();
        while hit.is_on() && begin.elapsed() < CUT_WAIT_MAX {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self.power_cut(Cut::Any).await
    }

    /// The same, and no producer outlives it.
    pub(crate) async fn power_cut_for_all(&mut self, cut: Cut) {
        self.end_of_power(cut);
        self.fleet.kill().await;
    }

    fn random_disk(&mut self) -> &Arc<Disk> {
        let disks: Vec<&Arc<Disk>> = std::iter::once(&self.disk).chain(self.others.iter().map(|other| &other.disk)).collect();
        disks[self.random.usize(0..disks.len())]
    }

    /// All disks lose it, one after another.
    fn end_of_power(&mut self, cut: Cut) {
        self.disk.cut(cut);
        self.others.iter().for_each(|other| other.disk.cut(cut));
        if let Some(node) = self.node.take() {
            node.kill();
        }
        self.volume.unplug();
        self.disk.replug();
        for other in &mut self.others {
            other.volume.unplug();
            other.disk.replug();
        }
        self.cuts += 1;
        let delays = if self.hard_disk { Delays::HARD_DISK } else { Delays::default() };
        self.disk.set(|faults| faults.delays = delays);
    }

    /// From the next power cut on: does the disk take its time like one that turns?
    pub(crate) fn set_hard_disk(&mut self, hard_disk: bool) {
        self.hard_disk = hard_disk;
    }

    /// After a power cut: mounts, starts the node and cuts again at the n-th write from now, or soon after the node is ready.
    pub(crate) async fn cut_while_starting(&mut self, writes: u32) -> Result<(), String> {
        self.disk.set(|faults| faults.cut_at_write = Some((writes, Cut::Any)));
        let begin = Instant::now();
        if self.mount().is_ok() {
            self.node = Some(self.site.spawn().map_err(|error| error.to_string())?);
            let ready = |site: &Site| http_status(site.http, "/readyz") == Some(200);
            while self.disk.is_on() && !ready(&self.site) && begin.elapsed() < Duration::from_secs(30) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        } else if self.disk.is_on() {
            return Err("the file system does not mount after a power cut".into());
        }
        self.power_cut(Cut::Any).await
    }

    /// After a power cut: mounts what is there.
    pub(crate) fn mount(&mut self) -> Result<(), String> {
        let volumes = std::iter::once(&mut self.volume).chain(self.others.iter_mut().map(|other| &mut other.volume));
        for volume in volumes {
            volume.plug().map_err(|error| format!("the file system does not mount after a power cut: {error}"))?;
        }
        Ok(())
    }

    /// The disk that holds copies of what is on the first.
    pub(crate) fn second(&self) -> &Arc<Disk> {
        &self.others[0].disk
    }

    /// The spare disk takes the place of the second one, while the node runs, and in its configuration. Returns when everything has
    /// two copies again, and how long that took.
    pub(crate) async fn replace_second(&mut self) -> Result<Duration, String> {
        let spare = self.others[1].data();
        let begin = Instant::now();
        let dir = spare.to_str().ok_or("the spare disk's path is no text")?;
        let said = self.site.run_as("admin", &["disk", "replace", "1", dir], "").map_err(|error| error.to_string())?;
        if !said.status.success() {
            return Err(format!("weir disk replace: {}", String::from_utf8_lossy(&said.stderr)));
        }
        while (self.metric("weir_log_copies")?, self.metric("weir_cold_copies_owed")?) != (2, 0) {
            if begin.elapsed() > PROGRESS_WAIT_MAX {
                return Err(format!("after {PROGRESS_WAIT_MAX:?} there are no two copies; the node says:\n{}", self.said(20)));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let took = begin.elapsed();
        self.site.configure(&with_volume(&self.config, self.others.get(1))).map_err(|error| error.to_string())?;
        Ok(took)
    }

    /// After `mount`: the node comes back.
    pub(crate) fn start_alone(&mut self) -> Result<(), String> {
        self.node = Some(start(&self.site)?);
        Ok(())
    }

    /// After `mount`: the node comes back, and the producers that died with it.
    pub(crate) fn start(&mut self) -> Result<(), String> {
        self.start_alone()?;
        self.fleet.start_restarted(&self.site);
        Ok(())
    }

    /// Does what an operator does who has replaced the cable of a fenced disk: one start that accepts it.
    pub(crate) fn accept_fence(&self) -> Result<(), String> {
        let node = self.site.start_with(&["--set", "log.accept_fenced=true"])?;
        node.stop().map(|_| ()).map_err(|error| error.to_string())
    }

    /// Everything is read back and held against what was promised. Producers wait meanwhile, all acknowledged.
    pub(crate) async fn check(&mut self) -> Result<Verdict, String> {
        self.fleet.pause(&self.site).await?;
        let verdict = self.compare().await?;
        self.fleet.go_on(&self.site);
        Ok(verdict)
    }

    /// The same with producers that are dead.
    pub(crate) async fn compare(&mut self) -> Result<Verdict, String> {
        self.settle().await?;
        let ledger = load::read_back(&self.site).await?;
        // What is missing at the beginning may only be missing if what is left is still what was asked for.
        if self.metric("weir_cold_batch_bytes")? >= RETENTION_BYTES {
            self.fleet.retire(&ledger);
        }
        let promises = self.fleet.promises();
        self.missed = ledger.missed(&promises);
        Ok(ledger.check(&promises))
    }

    /// Waits until retention has caught up with what was written: it must not overtake whoever reads from the beginning.
    async fn settle(&self) -> Result<(), String> {
        let names =
            ["weir_cold_sorted_bytes", "weir_cold_segments_promoted", "weir_cold_merged_bytes", "weir_cold_segments_expired"];
        let moved = || names.iter().map(|name| self.metric(name)).collect::<Result<Vec<u64>, String>>();
        let (begin, mut before) = (Instant::now(), moved()?);
        loop {
            tokio::time::sleep(QUIET).await;
            let now = moved()?;
            if now == before {
                return Ok(());
            }
            if begin.elapsed() > PROGRESS_WAIT_MAX {
                return Err(format!("after {PROGRESS_WAIT_MAX:?} the node still sorts, though nobody writes"));
            }
            before = now;
        }
    }

    pub(crate) fn metric(&self, name: &str) -> Result<u64, String> {
        let metrics = http_get(self.site.http, "/metrics").ok_or("the node shows no metrics")?;
        let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse::<u64>().ok());
        value.ok_or_else(|| format!("the node's metrics have no {name}"))
    }

    /// Takes all of the disk's space but `left` for good, power cuts included.
    pub(crate) fn take_space(&self, left: u64) -> Result<(), String> {
        self.volume.take_space(left)
    }

    /// Gives it back.
    pub(crate) fn make_room(&self) -> Result<(), String> {
        self.volume.make_room()
    }

    /// Does the node serve?
    pub(crate) fn is_ready(&self) -> bool {
        http_status(self.site.http, "/readyz") == Some(200)
    }

    /// What the node is doing, in a few words.
    pub(crate) fn condition(&mut self) -> String {
        match self.node.as_mut().map(Node::ended) {
            Some(Some(status)) => format!("has ended with {status}"),
            Some(None) if self.is_ready() => "is ready".into(),
            Some(None) => "runs and is not ready".into(),
            None => "is not started".into(),
        }
    }

    /// Changes what goes wrong with the disk.
    pub(crate) fn set(&self, change: impl FnOnce(&mut Faults)) {
        self.disk.set(change);
    }

    /// The disk answers flushes and does nothing.
    pub(crate) fn lie(&self) -> Result<(), String> {
        self.set(|faults| faults.lying_flush = true);
        Ok(())
    }

    /// Tells the kernel that the disk needs no flush.
    pub(crate) fn say_write_through(&self) -> Result<(), String> {
        self.volume.say_cached(false)
    }

    /// The last lines of the node's log.
    pub(crate) fn said(&self, lines: usize) -> String {
        tail(&self.site.log(), lines)
    }

    /// Keeps the node's log and an image of the disk.
    pub(crate) fn keep_evidence(self) -> String {
        let Rig { fleet, node, volume, disk, others, dir, .. } = self;
        // The image is of the platters: no cut may change them any more.
        disk.die();
        let saved = disk.save(&dir.path().join("disk.img"));
        others.iter().for_each(|other| other.disk.die());
        drop((fleet, node, volume, others));
        let path = dir.keep();
        match saved {
            Ok(()) => format!("evidence: {0}/node/node.log, {0}/disk.img", path.display()),
            Err(error) => format!("evidence: {}/node/node.log; no image of the disk: {error}", path.display()),
        }
    }
}

fn start(site: &Site) -> Result<Node, String> {
    site.start().map_err(|error| tail(&error, 20))
}

fn with_volume(config: &str, other: Option<&Other>) -> String {
    match other {
        Some(other) => format!("{config}[[volume]]\ndir = {:?}\n", other.data()),
        None => config.to_owned(),
    }
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
