//! Damage takes metadata of the log: what is given out next is nobody's.

use std::path::{Path, PathBuf};

use weir_protocol::AckCode;

use crate::common::{Site, message};

const BLOCK: usize = 4096;

/// The frames whose first block holds one of these texts: file and place.
fn frames_with(dir: &Path, texts: &[&str]) -> Vec<(PathBuf, usize)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            found.extend(frames_with(&entry, texts));
        } else if entry.extension().is_some_and(|extension| extension == "wal") {
            let bytes = std::fs::read(&entry).unwrap();
            let holds = |block: &[u8]| {
                let has = |text: &str| block.windows(text.len()).any(|window| window == text.as_bytes());
                block.starts_with(b"WFR1") && texts.iter().any(|text| has(text))
            };
            found.extend(
                bytes.chunks(BLOCK).enumerate().filter(|(_, block)| holds(block)).map(|(n, _)| (entry.clone(), n * BLOCK)),
            );
        }
    }
    found
}

fn flip(frames: &[(PathBuf, usize)]) {
    for (path, at) in frames {
        let mut bytes = std::fs::read(path).unwrap();
        bytes[at + 40] ^= 0x40;
        std::fs::write(path, bytes).unwrap();
    }
}

/// The frames that made a topic and a producer are lost, their records are not. Later the lost frames are back.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_made_after_damage_shares_no_number_with_what_damage_hid() {
    // The damaged file must not be written over before it heals.
    let mut site = Site::start_with(|config| config.cold.enabled = false).await;
    site.admin().await.create_topic("t-whole", 1).await;
    site.admin().await.create_topic("t-hidden", 1).await;
    let (mut raw, hidden) = site.hello("device", "unit-hidden").await;
    let (mut lane, _) = raw.lane(0, "t-hidden").await;
    lane.say(&message(0, &["of another topic", "and one more"])).await;
    raw.answers(1).await;
    site.stop().await;
    let lost = frames_with(site.data(), &["t-hidden", "unit-hidden"]);
    assert!(lost.len() >= 2, "{lost:?}");
    flip(&lost);

    site.start().await;
    site.admin().await.create_topic("t-new", 1).await;
    let (mut raw, new) = site.hello("device", "unit-new").await;
    assert_ne!(new.producer_id, hidden.producer_id);
    let (mut lane, ready) = raw.lane(0, "t-new").await;
    assert_eq!(ready.next_sequence, 0);
    lane.say(&message(0, &["x", "y"])).await;
    let (acks, _) = raw.answers(1).await;
    assert_eq!(acks.iter().map(|ack| (ack.base_offset, ack.code)).collect::<Vec<_>>(), [(0, AckCode::Durable)]);
    assert_eq!(raw.values("t-new", 0).await, ["x", "y"]);
    site.restart().await;
    let (_, next) = site.hello("device", "unit-next").await;
    assert_eq!(next.producer_id, new.producer_id + 1, "the same damage makes numbers leap once");
    site.stop().await;

    assert_eq!(frames_with(site.data(), &["t-hidden", "unit-hidden"]), lost, "the lost frames are where they were");
    flip(&lost);
    site.start().await;
    let (raw, again) = site.hello("device", "unit-new").await;
    assert_eq!(again.producer_id, new.producer_id);
    assert_eq!(raw.values("t-new", 0).await, ["x", "y"]);
}
