//! What a plugin says, and what becomes of its records.
use weir_plugin::prelude::*;
use weir_plugin::testing::{Emitted, Input, Tester, Verdict, run};

/// Does what the value says.
struct Obedient {
    seen: u64,
    config: Wishes,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Wishes {
    summary: bool,
    limits: Limits,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Limits {
    low: f64,
}

#[weir_plugin::plugin(outputs = ["normal", "alerts"], metrics = ["seen", "sums"])]
impl Plugin for Obedient {
    type Config = Wishes;

    fn init(config: Wishes, outputs: &Outputs<'_>) -> std::result::Result<Self, InitError> {
        assert!(outputs.has("alerts") && !outputs.has("other"));
        if config.limits.low < 0.0 {
            return Err(InitError::config("limits.low", "must not be negative"));
        }
        Ok(Self { seen: 0, config })
    }

    fn process(&mut self, record: Record<'_>, out: &mut Out<'_>) -> Result {
        self.seen += 1;
        out.count("seen", 1);
        let told = record.value_str()?;
        match told {
            "nothing" => Ok(()),
            "keep" => out.keep(),
            "drop" => out.drop(),
            "replace" => out.replace("new"),
            "rekey" => out.replace_with("k2", Json(&self.seen)),
            "unkey" => out.replace_with(None::<&[u8]>, "x"),
            "move" => out.keep_to("normal"),
            "copy" => out.keep().and(out.keep_to("normal")),
            "alert" => {
                out.emit("alerts", record.key(), format_args!("about {}", record.index()))?;
                out.keep()
            }
            "split" => {
                out.emit(Output::STREAM, SourceKey, "half")?;
                out.emit_at(Output::STREAM, 77, "own", write_with(|buffer| buffer.extend(b"other half")))
            }
            "twice" => {
                out.emit("alerts", SourceKey, "to be forgotten")?;
                out.keep()?;
                let _ = out.drop();
                Ok(())
            }
            "late reject" => {
                out.emit("alerts", SourceKey, "to be forgotten")?;
                out.keep()?;
                out.reject(format_args!("no {}", "good"))
            }
            name => out.keep_to(name),
        }
    }

    fn batch_end(&mut self, out: &mut Out<'_>) -> std::result::Result<(), BatchError> {
        if self.config.summary {
            out.count("sums", 1);
            assert!(out.keep().is_err() && out.drop().is_err());
            let sum = self.seen;
            out.emit("normal", "sum", format_args!("{sum}")).map_err(|error| BatchError::Fatal(error.to_string()))?;
        }
        if self.seen == 13 { Err(BatchError::Retry("thirteen".to_owned())) } else { Ok(()) }
    }
}

fn one(told: &str) -> (Verdict, Vec<Emitted>) {
    let judged = run::<Obedient>("", [Input::new(told).key("k").at(5)]).remove(0);
    (judged.verdict, judged.emitted)
}

fn emitted(output: &str, key: &str, value: &str, timestamp: i64) -> Emitted {
    Emitted { output: output.into(), key: Some(key.into()), value: Some(value.into()), timestamp }
}

fn replaced(key: Option<&str>, value: &str) -> Verdict {
    Verdict::Replaced { key: key.map(Into::into), value: value.into() }
}

#[test]
fn each_decision_is_what_it_says() {
    let nothing = Vec::new();
    assert_eq!(one("nothing"), (Verdict::Kept, nothing.clone()));
    assert_eq!(one("keep"), (Verdict::Kept, nothing.clone()));
    assert_eq!(one("drop"), (Verdict::Dropped, nothing.clone()));
    assert_eq!(one("replace"), (replaced(Some("k"), "new"), nothing.clone()));
    assert_eq!(one("rekey"), (replaced(Some("k2"), "1"), nothing.clone()));
    assert_eq!(one("unkey"), (replaced(None, "x"), nothing));
}

#[test]
fn outputs_get_copies_and_without_a_decision_the_record_moves() {
    assert_eq!(one("move"), (Verdict::Moved, vec![emitted("normal", "k", "move", 5)]));
    assert_eq!(one("copy"), (Verdict::Kept, vec![emitted("normal", "k", "copy", 5)]));
    assert_eq!(one("alert"), (Verdict::Kept, vec![emitted("alerts", "k", "about 0", 5)]));
    assert_eq!(one("split"), (Verdict::Moved, vec![emitted("", "k", "half", 5), emitted("", "own", "other half", 77)]));
}

#[test]
fn an_error_takes_back_what_was_said() {
    assert_eq!(one("late reject"), (Verdict::Rejected("no good".into()), vec![]));
    assert_eq!(one("twice").1, vec![]);
    let Verdict::Rejected(text) = one("twice").0 else { panic!("decided twice must reject") };
    assert!(text.contains("decided twice"), "{text}");
}

#[test]
fn an_unknown_output_rejects_and_names_the_known() {
    let (Verdict::Rejected(text), emitted) = one("elsewhere") else { panic!("must reject") };
    assert_eq!(text, "the plugin names no output `elsewhere`; it has: normal, alerts");
    assert_eq!(emitted, vec![]);
    assert_eq!(one("alerts").0, Verdict::Moved);
}

#[test]
fn garbage_is_rejected_by_the_question_mark() {
    let judged = run::<Obedient>("", [Input::new([0xff, 0xfe]), Input::tombstone("k"), Input::new("keep")]);
    assert!(matches!(&judged[0].verdict, Verdict::Rejected(text) if text.contains("not text")));
    assert_eq!(judged[1].verdict, Verdict::Rejected("the record has no value".into()));
    assert_eq!(judged[2].verdict, Verdict::Kept);
}

#[test]
fn a_summary_at_the_end_does_not_move_the_last_record() {
    let mut plugin = Tester::<Obedient>::new(r#"{"summary": true}"#).unwrap();
    for last in ["keep", "nothing", "drop", "alert"] {
        let judged = plugin.batch(["drop", last]);
        assert_ne!(judged[1].verdict, Verdict::Moved, "{last}");
        assert_eq!(judged[1].emitted.last().unwrap().output, "normal");
    }
    assert_eq!(plugin.batch(["late reject"])[0].verdict, Verdict::Rejected("no good".into()));
    assert_eq!((plugin.counted("seen"), plugin.counted("sums")), (9, 5));
    assert!(plugin.batch(Vec::<&str>::new()).is_empty());
}

#[test]
fn a_batch_can_fail_as_a_whole() {
    let mut plugin = Tester::<Obedient>::new("").unwrap();
    assert_eq!(plugin.try_batch(["keep"; 13]), Err(BatchError::Retry("thirteen".to_owned())));
    assert_eq!(plugin.batch(["keep"]).len(), 1); // nothing of the failed batch is left over
}

#[test]
fn a_refused_configuration_names_the_key() {
    let refused = |config: &str| Tester::<Obedient>::new(config).map(|_| ()).unwrap_err().to_string();
    assert_eq!(refused(r#"{"limits": {"low": -1}}"#), "configuration: `limits.low`: must not be negative");
    assert!(refused(r#"{"limits": {"low": "deep"}}"#).starts_with("configuration: `limits.low`: invalid type"));
    assert!(refused(r#"{"sumary": true}"#).contains("unknown field `sumary`, expected `summary`"));
    assert!(refused("{").contains("EOF"));
    assert!(refused("{} 1").contains("trailing"));
    for accepted in ["", "  ", "null", "{}"] {
        assert!(Tester::<Obedient>::new(accepted).is_ok(), "{accepted:?}");
    }
}

#[test]
fn large_batches_go_in_chunks_and_lose_nothing() {
    let records: Vec<Input> = (0..50_000).map(|_| Input::new("alert").key("key")).collect();
    let mut plugin = Tester::<Obedient>::new("").unwrap();
    for _ in 0..3 {
        let judged = plugin.batch(records.clone());
        let right = |(at, judged): (usize, &weir_plugin::testing::Judged)| {
            judged.verdict == Verdict::Kept && judged.emitted == [emitted("alerts", "key", &format!("about {at}"), 0)]
        };
        assert!(judged.iter().enumerate().all(right));
    }
}

#[test]
fn a_record_shows_all_it_has() {
    #[derive(Default, Deserialize)]
    struct Nothing {}
    struct Looker;
    impl Plugin for Looker {
        type Config = Nothing;
        fn init(_: Nothing, _: &Outputs<'_>) -> std::result::Result<Self, InitError> {
            Ok(Self)
        }
        fn process(&mut self, record: Record<'_>, out: &mut Out<'_>) -> Result {
            assert_eq!((record.topic(), record.partition(), record.offset()), ("tyres", 0, None));
            assert_eq!((record.key(), record.timestamp(), record.now_ms()), (Some(&b"k"[..]), 1234, 99));
            assert_eq!(record.header("trace"), Some(&b"abc"[..]));
            assert_eq!((record.header("none"), record.headers().count()), (None, 2));
            let numbers: Vec<u8> = record.json()?;
            out.replace(format_args!("{}", numbers.len()))
        }
    }
    let mut plugin = Tester::<Looker>::new("").unwrap().topic("tyres");
    plugin.set_now_ms(99);
    let record = Input::new("[1,2,3]").key("k").at(1234).header("x", "y").header("trace", "abc");
    assert_eq!(plugin.batch([record])[0].verdict, replaced(Some("k"), "3"));
}

mod function {
    use super::*;

    #[derive(Default, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    pub(super) struct Floor {
        kpa: f64,
    }

    #[weir_plugin::plugin(outputs = ["alerts"])]
    pub(super) fn low_pressure(config: &Floor, record: Record<'_>, out: &mut Out<'_>) -> Result {
        let kpa: f64 = record.json()?;
        if kpa < config.kpa {
            out.emit("alerts", record.key(), format_args!("{kpa}"))?;
        }
        out.keep()
    }
}

#[test]
fn a_function_is_a_plugin_with_a_configuration() {
    let judged = run::<function::LowPressure>(r#"{"kpa": 150}"#, ["200", "62"]);
    assert_eq!((judged[0].emitted.len(), judged[1].emitted[0].value_str().as_str()), (0, "62"));
}

/// Found while compiling; a misspelt name would not compile.
const ALERTS: Output = Output::named(Obedient::OUTPUTS, "alerts");

#[test]
fn names_become_places() {
    assert_eq!(ALERTS, Output::named(&["x", "y"], "y"));
    assert_ne!(ALERTS, Output::named(&["y", "x"], "y"));
}
