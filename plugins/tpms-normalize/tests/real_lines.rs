//! Lines as receivers in the field printed them (`rtl433.jsonl`), and what damaged ones become.
use serde_json::{Value, json};
use tpms_normalize::Normalize;
use weir_plugin::testing::{Input, Judged, Tester, Verdict, run};

const LINES: &str = include_str!("rtl433.jsonl");
/// The timestamp of the records: later than all wall clocks of the lines.
const NOW: i64 = 1_760_000_000_000;
const ALL: &str = r#"{"dedup_ms": 0}"#;

fn records() -> Vec<Input> {
    LINES.lines().map(|line| Input::new(line).at(NOW)).collect()
}

fn read(judged: &Judged) -> Value {
    serde_json::from_str(&judged.replaced_str()).unwrap()
}

fn one(line: &Value) -> Judged {
    run::<Normalize>(ALL, [Input::new(line.to_string()).at(NOW)]).remove(0)
}

/// A line of a sensor with some fields changed.
fn line(changes: Value) -> Value {
    let mut line = json!({"type": "TPMS", "model": "M", "id": "a1", "pressure_kPa": 200.0});
    for (name, value) in changes.as_object().unwrap() {
        line[name] = value.clone();
    }
    line
}

fn rejected(line: &Value) -> String {
    match one(line).verdict {
        Verdict::Rejected(text) => text,
        other => panic!("{line} became {other:?}"),
    }
}

#[test]
fn all_real_tyre_lines_become_the_schema() {
    let judged = run::<Normalize>(ALL, records());
    assert_eq!(judged.len(), 18);
    assert_eq!(judged[17].verdict, Verdict::Dropped); // an energy meter
    for judged in &judged[..17] {
        let reading = read(judged);
        let id = reading["id"].as_str().unwrap();
        assert!(!id.is_empty() && !id.bytes().any(|byte| byte.is_ascii_uppercase()), "{reading}");
        assert_eq!(reading["status"] == "ok", reading["pressure_kpa"].is_f64(), "{reading}");
        assert!(reading["time_ms"].as_i64().unwrap() > 1_600_000_000_000, "{reading}");
        let Verdict::Replaced { key, .. } = &judged.verdict else { panic!() };
        let expected = format!("{}/{id}", reading["model"].as_str().unwrap());
        assert_eq!(key.as_deref(), Some(expected.as_bytes()));
    }
}

#[test]
fn the_bytes_of_one_reading() {
    let judged = run::<Normalize>("", records());
    let expected = r#"{"id":"23e1416f","model":"BMW-GEN5","pressure_kpa":188.65,"temperature_c":7.0,"battery_ok":null,"status":"ok","time_ms":1760000000000,"raw_time":"@0.004313s"}"#;
    assert_eq!(judged[0].replaced_str(), expected);
}

#[test]
fn units_are_kilopascals_and_celsius() {
    let judged = run::<Normalize>(ALL, records());
    let fahrenheit = read(&judged[8]);
    assert_eq!((&fahrenheit["pressure_kpa"], &fahrenheit["temperature_c"]), (&json!(220.0), &json!(39.444)));
    assert_eq!((&fahrenheit["flags"], &fahrenheit["time_ms"]), (&json!("4d930078"), &json!(1_686_568_608_000_i64)));
    let psi = read(&judged[9]);
    assert_eq!((&psi["pressure_kpa"], &psi["model"]), (&json!(208.566), &json!("Toyota")));
    assert_eq!(read(&one(&line(json!({"pressure_kPa": null, "pressure_bar": 2.15}))))["pressure_kpa"], 215.0);
    assert_eq!(read(&one(&line(json!({"pressure_kPa": "188.5"}))))["pressure_kpa"], 188.5);
}

#[test]
fn a_missing_pressure_is_null_and_says_so() {
    let reading = read(&run::<Normalize>(ALL, records())[1]);
    assert_eq!(reading["pressure_kpa"], Value::Null);
    assert_eq!(
        (&reading["status"], &reading["code"], &reading["model"]),
        (&json!("no_pressure"), &json!("6ad446"), &json!("Ford"))
    );
}

#[test]
fn ids_are_lower_case_text_and_numbers_hexadecimal() {
    let id = |id: Value| read(&one(&line(json!({ "id": id }))))["id"].as_str().unwrap().to_owned();
    assert_eq!(read(&run::<Normalize>(ALL, records())[15])["id"], "03a38b2");
    assert_eq!(id(json!(16386)), "4002");
    assert_eq!(id(json!(0)), "0");
    assert_eq!(id(json!(u32::MAX)), "ffffffff");
    assert_eq!(id(json!("A\"b")), "a\"b");
}

#[test]
fn battery_flags_and_leak_in_all_their_spellings() {
    let field = |name: &str, changes| read(&one(&line(changes)))[name].clone();
    for (changes, expected) in [
        (json!({"battery_ok": 1}), json!(true)),
        (json!({"battery_ok": 0.0}), json!(false)),
        (json!({"battery_ok": 0.75}), json!(true)),
        (json!({"battery_ok": true}), json!(true)),
        (json!({"battery": "LOW"}), json!(false)),
        (json!({"battery": "OK"}), json!(true)),
        (json!({"battery": "fine?"}), Value::Null),
        (json!({"battery_low": 1}), json!(false)),
        (json!({"maybe_battery": 1}), Value::Null),
    ] {
        assert_eq!(field("battery_ok", changes.clone()), expected, "{changes}");
    }
    assert_eq!(field("fast_leak", json!({"fast_leak": 1})), true);
    assert_eq!(field("fast_leak", json!({"fast_leak": 0})), false);
    assert_eq!(field("flags", json!({"flags": 31})), "1f");
}

#[test]
fn the_receivers_time_zone_can_be_set() {
    let line = line(json!({"time": "2023-06-12 13:16:48"}));
    let judged = run::<Normalize>(r#"{"utc_offset_minutes": 120}"#, [line.to_string()]);
    assert_eq!(read(&judged[0])["time_ms"], 1_686_568_608_000_i64);
}

#[test]
fn what_is_no_tyre_is_dropped_and_garbage_is_rejected() {
    let line_of = |text: &str| run::<Normalize>(ALL, [text]).remove(0).verdict;
    assert_eq!(line_of(r#"{"model":"Efergy-e2CT","id":16386}"#), Verdict::Dropped);
    assert_eq!(line_of(r#"{"type":7}"#), Verdict::Dropped);
    for garbage in ["", "{", "rtl_433 version 23.11", "[]", "7", r#"{"type":"TPMS"} x"#, "{\"type\":\"TP\u{1}MS\"}"] {
        assert!(matches!(line_of(garbage), Verdict::Rejected(_)), "{garbage}");
    }
    assert_eq!(rejected(&line(json!({"id": null}))), "the reading has no \"id\"");
    assert!(rejected(&line(json!({"id": 1.5}))).contains("neither text nor a whole number"));
    assert!(rejected(&line(json!({"id": -1}))).contains("neither"));
    assert!(rejected(&line(json!({"pressure_kPa": 1e9}))).contains("kPa"));
    assert!(rejected(&line(json!({"temperature_C": -300}))).contains("°C"));
}

#[test]
fn escapes_and_nested_values_pass_through() {
    let reading = read(&one(&line(json!({"model": "a\"b\\c\u{1f}é", "extra": {"deep": [1, {"id": 2}]}, "time": "@\"1\""}))));
    assert_eq!((&reading["model"], &reading["raw_time"]), (&json!("a\"b\\c\u{1f}é"), &json!("@\"1\"")));
    assert_eq!(reading["id"], "a1");
}

#[test]
fn repeats_of_a_burst_are_dropped_and_counted() {
    let mut plugin = Tester::<Normalize>::new("").unwrap();
    let kept: Vec<bool> = plugin.batch(records()).iter().map(|judged| judged.verdict != Verdict::Dropped).collect();
    // Ford, Citroen, Elantra and Toyota each come twice in the file.
    let dropped: Vec<usize> = (0..18).filter(|&at| !kept[at]).collect();
    assert_eq!(dropped, [2, 4, 7, 11, 17]);
    assert_eq!((plugin.counted("repeats"), plugin.counted("not_tpms"), plugin.counted("no_pressure")), (4, 1, 2));
}

fn reading(kpa: f64, at: i64) -> Input {
    Input::new(line(json!({"pressure_kPa": kpa, "time": "@0.1s"})).to_string()).at(at)
}

fn passes(plugin: &mut Tester<Normalize>, records: Vec<Input>) -> Vec<bool> {
    plugin.batch(records).iter().map(|judged| judged.verdict != Verdict::Dropped).collect()
}

#[test]
fn a_repeat_is_the_same_reading_within_the_window() {
    let mut plugin = Tester::<Normalize>::new("").unwrap();
    assert_eq!(passes(&mut plugin, vec![reading(200.0, 0), reading(201.0, 10), reading(200.0, 20)]), [true, true, false]);
    assert_eq!(passes(&mut plugin, vec![reading(200.0, 2_000), reading(200.0, 2_001)]), [false, true]);
    assert_eq!(passes(&mut plugin, vec![reading(200.0, 2_500), reading(200.0, 9_000)]), [false, true]);
}

#[test]
fn a_batch_sent_again_is_not_taken_for_repeats() {
    let mut plugin = Tester::<Normalize>::new("").unwrap();
    let first = || vec![reading(200.0, 100), reading(200.0, 100), reading(200.0, 130), reading(180.0, 131)];
    let second = || vec![reading(200.0, 160), reading(170.0, 161)];
    for _ in 0..3 {
        assert_eq!(passes(&mut plugin, first()), [true, false, false, true]);
        assert_eq!(passes(&mut plugin, second()), [false, true]);
    }
}

#[test]
fn a_wrong_configuration_names_the_key() {
    let refused = |config: &str| Tester::<Normalize>::new(config).map(|_| ()).unwrap_err().to_string();
    assert!(refused(r#"{"remember": 1}"#).contains("`remember`: 1 must lie between 4 and 262144"));
    assert!(refused(r#"{"dedup_ms": -1}"#).contains("`dedup_ms`: invalid value"));
    assert!(refused(r#"{"utc_offset_minutes": 10000}"#).contains("`utc_offset_minutes`"));
    assert!(refused(r#"{"dedup": 1}"#).contains("unknown field `dedup`"));
}
