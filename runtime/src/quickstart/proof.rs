//! Reading back: every record of the main topic and of the dead letters goes into the ledger, and a few are kept to show.

use std::collections::BTreeMap;

use weir_client::{ConsumerConfig, ConsumerRecord, Start};

use super::device::Shared;
use super::ledger::{IDENTITY_HEADER, Place};
use super::screen::Screen;
use super::stage::{ALERT_TOPIC, DEAD_TOPIC, MAIN_TOPIC, Stage};
use crate::cli::Failure;

/// Records that show what the pipeline does.
#[derive(Debug, Default)]
pub(super) struct Found {
    records: u64,
    dead_letters: u64,
    /// A report as it was sent, and as it was stored.
    before_after: Option<(String, String)>,
    alert: Option<String>,
    alerts: BTreeMap<String, u64>,
    dead_letter: Option<String>,
}

/// Consumes all three topics from their beginning.
pub(super) async fn read_back(stage: &Stage, shared: &Shared) -> Result<Found, Failure> {
    let mut found = Found::default();
    let sample = shared.sample();
    read(stage, MAIN_TOPIC, |record| {
        found.records += 1;
        let identity = identity_of(&record);
        shared.ledger().found(Place::Main, record.partition, identity.as_deref());
        if let Some((wanted, before)) = &sample
            && identity.as_deref() == Some(wanted.as_bytes())
        {
            found.before_after = Some((before.clone(), text(record.value.as_deref())));
        }
    })
    .await?;
    read(stage, DEAD_TOPIC, |record| {
        found.dead_letters += 1;
        shared.ledger().found(Place::DeadLetters, record.partition, identity_of(&record).as_deref());
        if found.dead_letter.is_none() {
            let headers: Vec<String> =
                record.headers().into_iter().map(|(name, value)| format!("{}={}", text(Some(name)), text(value))).collect();
            found.dead_letter = Some(format!("{:?} [{}]", text(record.value.as_deref()), headers.join(", ")));
        }
    })
    .await?;
    read(stage, ALERT_TOPIC, |record| {
        let line = text(record.value.as_deref());
        let parsed: Option<serde_json::Value> = serde_json::from_str(&line).ok();
        let reason = parsed.and_then(|alert| Some(alert["reason"].as_str().or(alert["alert"].as_str())?.to_owned()));
        *found.alerts.entry(reason.unwrap_or_else(|| "other".to_owned())).or_default() += 1;
        found.alert.get_or_insert(line);
    })
    .await?;
    Ok(found)
}

async fn read(stage: &Stage, topic: &str, mut each: impl FnMut(ConsumerRecord)) -> Result<(), Failure> {
    let mut config = ConsumerConfig::new(topic);
    config.start = Start::Earliest;
    config.live = false;
    let mut consumer = stage.client().consumer(config).await.map_err(|error| stage.failure(error))?;
    while let Some(record) = consumer.next().await {
        each(record.map_err(|error| stage.failure(error))?);
    }
    Ok(())
}

fn identity_of(record: &ConsumerRecord) -> Option<Vec<u8>> {
    let mut headers = record.headers().into_iter();
    headers.find(|(name, _)| *name == IDENTITY_HEADER.as_bytes()).and_then(|(_, value)| value.map(<[u8]>::to_vec))
}

fn text(bytes: Option<&[u8]>) -> String {
    String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned()
}

impl Found {
    /// A record before and after, an alert, a dead letter.
    pub(super) fn show(&self, screen: &Screen) {
        screen.line("");
        screen.step("read back", format_args!("{} records of {MAIN_TOPIC}, {} of {DEAD_TOPIC}", self.records, self.dead_letters));
        if let Some((before, after)) = &self.before_after {
            screen.step("sent", before);
            screen.step("stored", after);
        }
        if let Some(alert) = &self.alert {
            let counts: Vec<String> = self.alerts.iter().map(|(reason, count)| format!("{count} × {reason}")).collect();
            screen.step("alert", alert);
            screen.step("alerts", counts.join(", "));
        }
        if let Some(dead) = &self.dead_letter {
            screen.step("dead", dead);
        }
    }
}
