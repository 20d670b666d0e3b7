//! The quick start: the whole product in under a minute, and a proof at its end.
//!
//! It makes a site (certificates, configuration), starts a node on it as a child process, attaches the shipped plugins to
//! `tpms.raw`, lets a fleet of receivers publish over QUIC with a certificate each, kills the node with SIGKILL in
//! mid-stream, starts it again on the same directory, lets the fleet go on, and then reads back everything. `device` is a
//! receiver, `fleet` what it hears, `ledger` the proof, `screen` what is shown, `stage` the node's side.

mod device;
mod fleet;
mod ledger;
mod proof;
mod screen;
mod stage;

pub(crate) use device::wall_clock;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use weir_client::{Admin, ClientError};

use crate::child::ChildNode;
use crate::cli::{Exit, Failure};
use device::{Device, Shared};
use fleet::Fleet;
use ledger::Verdict;
use screen::{Figures, Screen};
use stage::Stage;

/// What the quick start does.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long the fleet publishes.
    pub seconds: u64,
    /// Directory of the shipped plugins.
    pub plugins: PathBuf,
    /// Directory of the site; must be empty or absent.
    pub dir: PathBuf,
    /// Leaves the node running at the end, until Ctrl-C.
    pub keep: bool,
    /// Receivers, each with a certificate of its own.
    pub receivers: usize,
    /// Reports a second and receiver.
    pub rate: u32,
}

/// Longest wait for the last acknowledgements, once the fleet has stopped.
const DRAIN: Duration = Duration::from_secs(30);

/// Runs it all; the failure's sentence says which step broke.
pub async fn run(options: Options) -> Result<(), Failure> {
    let screen = Screen::new(options.seconds);
    let mut stage = Stage::set_up(&options, &screen).await?;
    let shared = Arc::new(Shared::new(options.receivers));
    let mut fleet = start_fleet(&options, &stage, &shared)?;
    screen.step(
        "fleet",
        format_args!("{} receivers publish {} reports a second each, over QUIC with mutual TLS", options.receivers, options.rate),
    );
    screen.header();

    let mut watch = Watch::new(&screen, &shared);
    let (before, after) = (options.seconds.div_ceil(2), options.seconds / 2);
    watch.seconds(before, Some(stage.admin()), &mut fleet).await?;
    kill_and_restart(&mut stage, &mut watch, &mut fleet).await?;
    watch.seconds(after.max(1), Some(stage.admin()), &mut fleet).await?;

    shared.stop.store(true, Ordering::Relaxed);
    drain(&mut fleet).await?;
    watch.last(stage.admin()).await;
    screen.finish();

    let found = proof::read_back(&stage, &shared).await?;
    let verdict = shared.ledger().verdict();
    found.show(&screen);
    explain(&screen, &verdict);
    try_next(&screen, &stage, &options);
    let node = stage.end(options.keep).await?;
    conclude(&screen, &verdict)?;
    match node {
        Some(node) => stay(node, &verdict).await,
        None => exit_of(&verdict),
    }
}

fn start_fleet(options: &Options, stage: &Stage, shared: &Arc<Shared>) -> Result<JoinSet<Result<(), ClientError>>, Failure> {
    let mut fleet = JoinSet::new();
    for number in 0..options.receivers {
        let receiver = stage::receiver_name(number);
        let mut config = stage.client_config(&receiver)?;
        config.producer_name = Some("radio".to_owned());
        let device = Device {
            number,
            config,
            topic: stage::MAIN_TOPIC,
            // As many vehicles as reports a second: a tyre is heard every four seconds or more, so that a new reading
            // with the old values is never taken for a repeat of the same burst.
            fleet: Fleet::new(&receiver, options.rate as usize, number as u64),
            reports_per_second: options.rate,
            shared: shared.clone(),
        };
        fleet.spawn(device.run());
    }
    Ok(fleet)
}

/// SIGKILL while batches are in flight, then a new life on the same directory.
async fn kill_and_restart(
    stage: &mut Stage,
    watch: &mut Watch<'_>,
    fleet: &mut JoinSet<Result<(), ClientError>>,
) -> Result<(), Failure> {
    let (sent, acknowledged) = watch.totals();
    stage.kill()?;
    watch.screen.step(
        "kill -9",
        format_args!(
            "the node is gone in mid-stream: {acknowledged} reports acknowledged, {} on their way",
            sent.saturating_sub(acknowledged)
        ),
    );
    watch.seconds(1, None, fleet).await?;
    let begin = Instant::now();
    stage.start(watch.screen).await?;
    watch
        .screen
        .step("restart", format_args!("recovered and serving after {} ms; the receivers resume", begin.elapsed().as_millis()));
    Ok(())
}

/// The fleet's figures, second by second.
struct Watch<'a> {
    screen: &'a Screen,
    shared: &'a Shared,
    figures: Figures,
}

impl<'a> Watch<'a> {
    fn new(screen: &'a Screen, shared: &'a Shared) -> Watch<'a> {
        Watch { screen, shared, figures: Figures::default() }
    }

    fn totals(&self) -> (u64, u64) {
        (self.shared.sent.load(Ordering::Relaxed), self.shared.acknowledged.load(Ordering::Relaxed))
    }

    /// Shows a line a second. A receiver that ends meanwhile has failed, and that ends the run.
    async fn seconds(
        &mut self,
        seconds: u64,
        admin: Option<Admin>,
        fleet: &mut JoinSet<Result<(), ClientError>>,
    ) -> Result<(), Failure> {
        for _ in 0..seconds {
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
                Some(ended) = fleet.join_next() => return Err(receiver_failure(ended)),
            }
            self.figures.second += 1;
            self.show(admin.as_ref()).await;
        }
        Ok(())
    }

    /// The figures once everything is acknowledged.
    async fn last(&mut self, admin: Admin) {
        self.figures.second += 1;
        self.show(Some(&admin)).await;
    }

    async fn show(&mut self, admin: Option<&Admin>) {
        let (sent, acknowledged) = self.totals();
        let counts = match admin {
            Some(admin) => stage::stored_counts(admin).await,
            None => None,
        };
        self.figures.up = counts.is_some();
        if let Some([normalised, alerted, dead]) = counts {
            (self.figures.normalised, self.figures.alerted, self.figures.dead) = (normalised, alerted, dead);
        }
        self.figures.per_second = acknowledged.saturating_sub(self.figures.acknowledged);
        (self.figures.sent, self.figures.acknowledged) = (sent, acknowledged);
        self.screen.figures(&self.figures, &self.shared.take_latencies());
    }
}

async fn drain(fleet: &mut JoinSet<Result<(), ClientError>>) -> Result<(), Failure> {
    let all = async {
        while let Some(ended) = fleet.join_next().await {
            if !matches!(ended, Ok(Ok(()))) {
                return Err(receiver_failure(ended));
            }
        }
        Ok(())
    };
    tokio::time::timeout(DRAIN, all).await.unwrap_or_else(|_| {
        let message = format!("receivers still wait for acknowledgements {} s after the fleet stopped", DRAIN.as_secs());
        Err(Failure::new(Exit::Failed, message).next("look into node.log of the directory given with --dir"))
    })
}

fn receiver_failure(ended: Result<Result<(), ClientError>, tokio::task::JoinError>) -> Failure {
    let reason = match ended {
        Ok(Ok(())) => "it ended early".to_owned(),
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    Failure::new(Exit::Failed, format!("a receiver failed: {reason}"))
}

fn explain(screen: &Screen, verdict: &Verdict) {
    screen.step("proof", "every acknowledged report was looked up in what the node stored, by its fleet-seq header:");
    screen.line(&format!(
        "           {} readings and lines of garbage were acknowledged, {} of them found again (readings in {}, garbage in {})",
        verdict.acknowledged,
        verdict.recovered,
        stage::MAIN_TOPIC,
        stage::DEAD_TOPIC
    ));
    screen.line(&format!(
        "           {} further acknowledged reports were the plugins' to decide (repeats, no pressure, no tyre): {} kept, {} dead-lettered, {} dropped",
        verdict.decided_kept + verdict.decided_dead + verdict.decided_dropped,
        verdict.decided_kept,
        verdict.decided_dead,
        verdict.decided_dropped
    ));
    if verdict.unacknowledged_found > 0 {
        screen.line(&format!(
            "           {} were stored although their acknowledgement never arrived",
            verdict.unacknowledged_found
        ));
    }
    if verdict.foreign > 0 {
        screen.line(&format!("           {} stored records were sent by nobody: that must not happen", verdict.foreign));
    }
}

/// Commands that work on what is there now.
fn try_next(screen: &Screen, stage: &Stage, options: &Options) {
    let program = std::env::current_exe().map_or_else(|_| "weir".to_owned(), |path| path.display().to_string());
    let site = stage.site();
    screen.line("");
    screen.line("Try next:");
    if !options.keep {
        screen.line(&format!("  {program} serve --config {} &", site.config().display()));
    }
    screen.line(&format!("  export WEIR_ADDR={} WEIR_CERTS={}", site.addr, site.certs().display()));
    for command in [
        "status".to_owned(),
        format!("topic describe {}", stage::MAIN_TOPIC),
        format!("consume {} -o beginning -e -c 5 -f '%T %k %s\\n'", stage::ALERT_TOPIC),
        format!("consume {} -o -3 -e --json", stage::DEAD_TOPIC),
        "pipeline list".to_owned(),
        "plugin new my-plugin".to_owned(),
    ] {
        screen.line(&format!("  {program} {command}"));
    }
    screen.line(&format!("  rm -r {}    # when done", site.dir.display()));
    screen.line("");
}

/// The last line, for scripts.
fn conclude(screen: &Screen, verdict: &Verdict) -> Result<(), Failure> {
    let Verdict { acknowledged, recovered, lost, duplicated, reordered, .. } = *verdict;
    screen.line(&format!(
        "acknowledged={acknowledged} recovered={recovered} lost={lost} duplicated={duplicated} reordered={reordered}"
    ));
    Ok(())
}

fn exit_of(verdict: &Verdict) -> Result<(), Failure> {
    if verdict.holds() {
        return Ok(());
    }
    Err(Failure::new(Exit::Failed, "the proof failed: a promise was not kept")
        .next("keep the directory and report it with node.log"))
}

/// `--keep`: the node serves on until Ctrl-C.
async fn stay(mut node: ChildNode, verdict: &Verdict) -> Result<(), Failure> {
    eprintln!("the node goes on serving; Ctrl-C ends it");
    let interrupted = tokio::select! {
        _ = tokio::signal::ctrl_c() => true,
        _ = node.ended() => false,
    };
    if interrupted {
        let stopped = node.stop(Duration::from_secs(15)).await;
        stopped.map_err(|error| Failure::new(Exit::Failed, format!("cannot stop the node: {error}")))?;
    }
    exit_of(verdict)
}
