//! What `weir plugin test` shows.
use weir_pipeline::{FailureKind, OfflineOutcome, OfflineRecord, PluginError, pack, run_offline};

use crate::guests::{HOST, NOW_MS, by_letter, manifest};

fn record(value: &str) -> OfflineRecord {
    let headers = vec![("trace".to_owned(), b"42".to_vec())];
    OfflineRecord { timestamp: NOW_MS, key: Some(b"k".to_vec()), value: Some(value.into()), headers }
}

#[test]
fn each_record_gets_a_line() {
    let component = pack(&by_letter(), &manifest("letters", "1.0.0")).unwrap();
    let values = ["k", "d", "r1", "e", "m", "plain", "j", "t", "l", "k"];
    let lines: Vec<_> = run_offline(&HOST, &component, b"Z", NOW_MS, values.map(record)).unwrap().collect();
    assert_eq!(lines.iter().map(|l| l.index).collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
    let outcomes: Vec<_> = lines.iter().map(|l| &l.outcome).collect();
    assert_eq!(outcomes[0], &OfflineOutcome::Kept);
    assert_eq!(outcomes[1], &OfflineOutcome::Dropped);
    assert_eq!(outcomes[2], &OfflineOutcome::Replaced(record("Z1")));
    assert_eq!((outcomes[3], &lines[3].emitted), (&OfflineOutcome::Kept, &vec![(Some("copies".to_owned()), record("e"))]));
    assert_eq!((outcomes[4], &lines[4].emitted), (&OfflineOutcome::Moved, &vec![(Some("moved".to_owned()), record("m"))]));
    assert_eq!(outcomes[5], &OfflineOutcome::Kept);
    let failed = |outcome: &OfflineOutcome| match outcome {
        OfflineOutcome::Failed { kind, message } => (*kind, message.clone()),
        other => panic!("{other:?}"),
    };
    assert_eq!(failed(outcomes[6]), (FailureKind::Reject, "no good".to_owned()));
    assert_eq!(failed(outcomes[7]).0, FailureKind::Trap);
    assert_eq!(failed(outcomes[8]).0, FailureKind::Timeout);
    assert_eq!(outcomes[9], &OfflineOutcome::Kept, "the instance is replaced after a failure");
    assert!(lines.iter().all(|l| !l.time.is_zero()));
}

#[test]
fn a_bad_configuration_is_refused_before_the_first_record() {
    let component = pack(&by_letter(), &manifest("letters", "1.0.0")).unwrap();
    let refused = run_offline(&HOST, &component, b"!", NOW_MS, [record("k")]).map(Iterator::count);
    assert!(matches!(refused, Err(PluginError::Config { .. })));
}
