//! What is done to the disk, and what must come of it.

use std::time::{Duration, Instant};

use clap::ValueEnum;
use weir_tests::disk::cache::Cut;
use weir_tests::disk::mount::Kind;
use weir_tests::ledger::Verdict;

use crate::full::full;
use crate::rig::{Rig, Settings};
use crate::table::Row;

/// How long the disk says nothing.
const STALL: Duration = Duration::from_secs(5);
/// A node whose disk fails has noticed by then.
const NOTICED_MAX: Duration = Duration::from_secs(20);
/// Most hit what the node waits for.
const FAULTS_MAX: u32 = 10;
/// Within it a node notices what it waits for; and once it has, nothing may be acknowledged any more.
const SILENCE: Duration = Duration::from_millis(700);
/// How long a control writes without the disk keeping its promise.
const CONTROL: Duration = Duration::from_millis(1200);
/// Every so many cuts one comes in the middle of a write, at most so many from then; the others at a random moment.
const AT_WRITE_EVERY: u32 = 2;
const WRITES_MAX: u32 = 300;
/// Every so many cuts one is followed by another while the node starts.
const TWICE_EVERY: u32 = 3;
/// Every so many cuts the disk is one that turns.
const HARD_DISK_EVERY: u32 = 4;

/// What is done to the disk of a node under load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scenario {
    /// Power cuts, some of them twice in a row
    Cuts,
    /// One write is refused with EIO
    WriteError,
    /// One flush is refused with EIO
    FlushError,
    /// The disk says nothing for 5 seconds
    Stall,
    /// The disk is gone, and comes back
    Death,
    /// The disk is full, in the middle of everything, and has room again
    Full,
    /// Power cuts of two disks that hold the same
    PairCuts,
    /// One disk of two is gone, is replaced, and then the other one is gone
    PairDeath,
    /// One disk of two says nothing for 5 seconds
    PairStall,
    /// Control: flushes do nothing
    LyingFlush,
    /// Control: the kernel sends no flush
    NoFlush,
}

impl Scenario {
    fn name(self) -> String {
        self.to_possible_value().expect("no scenario is hidden").get_name().to_owned()
    }

    fn is_control(self) -> bool {
        matches!(self, Scenario::LyingFlush | Scenario::NoFlush)
    }

    fn disks(self) -> u64 {
        match self {
            Scenario::PairDeath => 3,
            Scenario::PairCuts | Scenario::PairStall => 2,
            _ => 1,
        }
    }

    /// The same whichever other scenarios run.
    fn seed(self, kind: Kind, seed: u64) -> u64 {
        seed.wrapping_mul(1000).wrapping_add(10 * self as u64 + kind as u64)
    }
}

/// Carries a scenario out on a fresh disk.
pub(crate) async fn run(settings: &Settings, scenario: Scenario, kind: Kind) -> Row {
    let begin = Instant::now();
    let seed = scenario.seed(kind, settings.seed);
    let mut row = Row {
        scenario: scenario.name(),
        kind,
        must_lose: scenario.is_control(),
        cuts: 0,
        verdict: Verdict::default(),
        seed,
        took: Duration::ZERO,
        notes: Vec::new(),
        error: None,
    };
    match Rig::make(settings, kind, seed, scenario.disks()).await {
        Ok(mut rig) => {
            let done = act(&mut rig, settings, scenario, &mut row).await;
            (row.error, row.cuts) = (done.err(), rig.cuts);
            row.notes.push(rig.disk.tally().to_string());
            if row.verdict.acknowledged == 0 {
                row.verdict.acknowledged = rig.fleet.acknowledged();
            }
            if !row.is_good() {
                row.notes.append(&mut rig.missed);
                row.notes.push(rig.keep_evidence());
            }
        }
        Err(error) => row.error = Some(error),
    }
    row.took = begin.elapsed();
    row
}

async fn act(rig: &mut Rig, settings: &Settings, scenario: Scenario, row: &mut Row) -> Result<(), String> {
    match scenario {
        Scenario::Cuts | Scenario::PairCuts => cuts(rig, settings.cuts, row).await,
        Scenario::PairDeath => pair_death(rig, row).await,
        Scenario::PairStall => pair_stall(rig, row).await,
        Scenario::WriteError => failure(rig, row, |rig| rig.set(|faults| faults.writes_to_fail = 1)).await,
        Scenario::FlushError => failure(rig, row, |rig| rig.set(|faults| faults.flushes_to_fail = 1)).await,
        Scenario::Stall => stall(rig, row).await,
        Scenario::Death => failure(rig, row, |rig| rig.disk.die()).await,
        Scenario::Full => full(rig, row).await,
        Scenario::LyingFlush => control(rig, row, Rig::lie).await,
        Scenario::NoFlush => control(rig, row, Rig::say_write_through).await,
    }
}

/// Power cuts under load; after each everything is checked.
async fn cuts(rig: &mut Rig, cuts: u32, row: &mut Row) -> Result<(), String> {
    let (mut twice, mut slow, mut round) = (0, 0, 0);
    while rig.cuts < cuts {
        round += 1;
        rig.work().await?;
        let hard_disk = round % HARD_DISK_EVERY == 0;
        slow += u32::from(hard_disk);
        rig.set_hard_disk(hard_disk);
        if round % AT_WRITE_EVERY == 0 {
            let writes = rig.random.u32(1..=WRITES_MAX);
            rig.power_cut_at_write(writes).await?;
        } else {
            rig.power_cut(Cut::Any).await?;
        }
        if round % TWICE_EVERY == 0 {
            twice += 1;
            // Evenly over orders of magnitude: the journal's replay takes a few writes, the node's start hundreds.
            let writes = 2_f64.powf(rig.random.f64() * 9.0) as u32;
            rig.cut_while_starting(writes).await?;
        }
        rig.mount()?;
        rig.start()?;
        row.verdict = rig.check().await?;
        if !row.verdict.holds() {
            break;
        }
    }
    let torn_tails = rig.site.log().matches("torn_tail=true").count();
    row.notes.push(format!("{twice} cuts while starting after a cut, {slow} rounds on a slow disk, {torn_tails} torn tails"));
    Ok(())
}

/// The disk fails in a way that the node notices: it acknowledges nothing any more and says so; all is there when the disk is back.
async fn failure(rig: &mut Rig, row: &mut Row, fault: impl Fn(&Rig)) -> Result<(), String> {
    rig.work().await?;
    let said_before = rig.site.log().len();
    let noticed = until_noticed(rig, row, fault).await?;
    // What was on its way to the producers arrives.
    tokio::time::sleep(SILENCE).await;
    let acknowledged = rig.fleet.acknowledged();
    tokio::time::sleep(SILENCE).await;
    if rig.fleet.acknowledged() > acknowledged {
        return Err("the node acknowledged records after it had noticed the fault".into());
    }
    let said = rig.site.log()[said_before..].to_owned();
    let complaint = said.lines().find(|line| line.contains("ERROR"));
    let (noticed, complains) = (noticed.as_millis(), complaint.unwrap_or("nothing"));
    row.notes.push(format!("noticed after {noticed} ms; the node {}; it says: {complains}", rig.condition()));
    rig.power_cut(Cut::Any).await?;
    rig.mount()?;
    come_back(rig, row)?;
    rig.work().await?;
    row.verdict = rig.check().await?;
    complaint.map(drop).ok_or("the node's log has no error of it".into())
}

/// How long it took. What fails may be a zero-fill, which is tried again, or a journal's business of later: then the fault comes
/// once more. Whether the node was right to go on, the check will tell.
async fn until_noticed(rig: &Rig, row: &mut Row, fault: impl Fn(&Rig)) -> Result<Duration, String> {
    for harmless in 0..FAULTS_MAX {
        let begin = Instant::now();
        fault(rig);
        while rig.disk.faults().is_pending() || begin.elapsed() < SILENCE {
            if !rig.is_ready() {
                row.notes.extend((harmless > 0).then(|| format!("{harmless} faults did no harm, and the node went on")));
                return Ok(begin.elapsed());
            }
            if begin.elapsed() > NOTICED_MAX {
                return Err(format!("{NOTICED_MAX:?} on, the node has met no fault"));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    Err(format!("after {FAULTS_MAX} faults the node is still ready"))
}

/// A node that has fenced its disk durably wants an operator first.
fn come_back(rig: &mut Rig, row: &mut Row) -> Result<(), String> {
    match rig.start() {
        Err(refusal) if refusal.contains("accept_fenced") => {
            row.notes.push("the next start refused the fenced log until it was accepted".into());
            rig.accept_fence()?;
            rig.start()
        }
        other => other,
    }
}

/// The disk says nothing for a while: one slow commit, and the same node goes on.
async fn stall(rig: &mut Rig, row: &mut Row) -> Result<(), String> {
    rig.work().await?;
    rig.fleet.slowest();
    rig.disk.stall(STALL);
    tokio::time::sleep(STALL).await;
    rig.work().await?;
    let slowest = rig.fleet.slowest();
    row.notes.push(format!("the slowest acknowledgement took {} ms; the node {}", slowest.as_millis(), rig.condition()));
    if !rig.is_ready() || slowest < STALL - Duration::from_secs(1) || slowest > STALL + Duration::from_secs(5) {
        return Err("a stall must be seen as one slow commit, and as nothing else".into());
    }
    check_and_cut(rig, row).await
}

/// Everything is there; and again after a power cut.
async fn check_and_cut(rig: &mut Rig, row: &mut Row) -> Result<(), String> {
    row.verdict = rig.check().await?;
    if row.verdict.holds() {
        rig.work().await?;
        rig.power_cut(Cut::Any).await?;
        rig.mount()?;
        rig.start()?;
        row.verdict = rig.check().await?;
    }
    Ok(())
}

/// One disk of two dies: nothing fails, and nobody waits long. A spare takes its place; then the other one dies, too.
async fn pair_death(rig: &mut Rig, row: &mut Row) -> Result<(), String> {
    rig.work().await?;
    let (without, dying) = (rig.fleet.slowest(), "while one disk died");
    rig.second().die();
    one_slow_commit(rig, row, dying).await?;
    let took = rig.replace_second().await?;
    row.notes.push(format!(
        "two copies again {} ms after the replacement; slowest before: {} ms",
        took.as_millis(),
        without.as_millis()
    ));
    rig.fleet.slowest();
    rig.disk.die();
    one_slow_commit(rig, row, "while the other one died").await?;
    // The one that died first comes back with what it had then.
    rig.power_cut(Cut::Any).await?;
    rig.mount()?;
    rig.start()?;
    rig.work().await?;
    row.verdict = rig.check().await?;
    Ok(())
}

/// One disk of two says nothing for a while: it is let go of, and the other one goes on.
async fn pair_stall(rig: &mut Rig, row: &mut Row) -> Result<(), String> {
    rig.work().await?;
    rig.fleet.slowest();
    rig.second().stall(STALL);
    one_slow_commit(rig, row, "while one disk said nothing").await?;
    tokio::time::sleep(STALL).await;
    check_and_cut(rig, row).await
}

/// The producers go on, having waited far less than the disk is away.
async fn one_slow_commit(rig: &mut Rig, row: &mut Row, when: &str) -> Result<(), String> {
    rig.work().await?;
    tokio::time::sleep(SILENCE).await;
    rig.work().await?;
    let slowest = rig.fleet.slowest();
    row.notes.push(format!("the slowest acknowledgement {when}: {} ms; the node {}", slowest.as_millis(), rig.condition()));
    if !rig.is_ready() || slowest >= STALL {
        return Err("one disk of two is away, and more than one commit was slow".into());
    }
    Ok(())
}

/// The disk breaks its promise for a while, and the power goes: what was acknowledged meanwhile must be missing.
async fn control(rig: &mut Rig, row: &mut Row, fault: impl FnOnce(&Rig) -> Result<(), String>) -> Result<(), String> {
    rig.work().await?;
    fault(rig)?;
    tokio::time::sleep(CONTROL).await;
    // In order, so that what is left looks whole: only the check can tell that something is missing.
    rig.power_cut_for_all(Cut::InOrder).await;
    let promises = rig.fleet.promises();
    let acknowledged = promises.values().flat_map(|promise| &promise.acknowledged).filter(|acknowledged| **acknowledged).count();
    let all_lost = Verdict { acknowledged: acknowledged as u64, lost: acknowledged as u64, ..Verdict::default() };
    let verdict = match rig.mount().and_then(|()| rig.start_alone()) {
        Ok(()) => rig.compare().await,
        Err(refusal) => Err(refusal),
    };
    row.verdict = verdict.or_else(|refusal| {
        // What says by name that it is damaged is as good a proof as records that are missing.
        let named = ["does not mount", "does not open", "data_gap"].iter().any(|name| refusal.contains(name));
        row.notes.push(format!("refused: {}", refusal.lines().last().unwrap_or_default()));
        if named { Ok(all_lost) } else { Err(refusal) }
    })?;
    Ok(())
}
