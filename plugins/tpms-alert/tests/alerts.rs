//! Readings, and the alerts they cause.
use serde_json::{Value, json};
use tpms_alert::TyreAlert;
use weir_plugin::testing::{Input, Judged, Tester, Verdict, run};

const T0: i64 = 1_760_000_000_000;

fn reading(kpa: f64, celsius: f64, at: i64) -> Input {
    let value = json!({"id": "a1", "model": "M", "pressure_kpa": kpa, "temperature_c": celsius, "battery_ok": null, "status": "ok", "time_ms": T0 + at});
    Input::new(value.to_string()).key("M/a1").at(T0 + at)
}

/// The alert of a record that must be kept.
fn alert(judged: &Judged) -> Option<Value> {
    assert_eq!(judged.verdict, Verdict::Kept);
    let emitted = judged.emitted.first()?;
    assert_eq!((judged.emitted.len(), emitted.output.as_str(), emitted.key.as_deref()), (1, "alerts", Some(&b"M/a1"[..])));
    Some(serde_json::from_str(&emitted.value_str()).unwrap())
}

fn reasons(judged: &[Judged]) -> Vec<String> {
    let reason =
        |alert: Value| alert["reasons"].as_array().unwrap().iter().map(|reason| reason.as_str().unwrap().to_owned()).collect();
    judged.iter().map(|judged| alert(judged).map_or_else(Vec::new, reason).join("+")).collect()
}

#[test]
fn a_low_tyre_alerts_with_the_reading_and_the_reason() {
    let judged = run::<TyreAlert>("", [reading(149.9, 20.0, 0)]);
    let alert = alert(&judged[0]).unwrap();
    assert_eq!((&alert["id"], &alert["pressure_kpa"], &alert["status"]), (&json!("a1"), &json!(149.9), &json!("ok")));
    assert_eq!((&alert["reason"], &alert["measured"], &alert["limit"]), (&json!("low_pressure"), &json!(149.9), &json!(150.0)));
    assert_eq!(alert["reasons"], json!(["low_pressure"]));
}

#[test]
fn a_healthy_tyre_and_one_without_pressure_are_only_kept() {
    let silent = json!({"id": "a1", "model": "M", "pressure_kpa": null, "temperature_c": null, "time_ms": null});
    let judged = run::<TyreAlert>("", [reading(220.0, 85.0, 0), reading(150.0, 20.0, 3_600_000), Input::new(silent.to_string())]);
    assert_eq!(reasons(&judged), ["", "", ""]);
}

#[test]
fn hot_tyres_and_all_reasons_together() {
    let judged = run::<TyreAlert>("", [reading(200.0, 85.1, 0), reading(140.0, 90.0, 100_000)]);
    assert_eq!(reasons(&judged), ["hot_tyre", "fast_leak+low_pressure+hot_tyre"]);
    assert_eq!(alert(&judged[1]).unwrap()["reason"], "fast_leak");
}

#[test]
fn a_fast_leak_is_a_loss_within_the_window() {
    let config = r#"{"low_kpa": 0, "repeat_ms": 0}"#;
    let slow: Vec<Input> = (0..20).map(|step| reading(220.0 - 5.0 * f64::from(step), 20.0, i64::from(step) * 300_000)).collect();
    assert!(reasons(&run::<TyreAlert>(config, slow)).iter().all(String::is_empty));
    let fast = [(220.0, 0), (215.0, 60_000), (205.0, 120_000), (199.9, 180_000), (199.8, 2_000_000)];
    let fast: Vec<Input> = fast.map(|(kpa, at)| reading(kpa, 20.0, at)).into();
    let judged = run::<TyreAlert>(config, fast);
    assert_eq!(reasons(&judged), ["", "", "", "fast_leak", ""]);
    assert_eq!(alert(&judged[3]).unwrap()["measured"], 20.1);
}

#[test]
fn the_sensors_own_leak_flag_counts() {
    let value = json!({"id": "54e328", "model": "EezTire-E618", "pressure_kpa": 340.0, "temperature_c": 23.0, "fast_leak": true, "time_ms": T0});
    let judged = run::<TyreAlert>("", [Input::new(value.to_string()).key("M/a1")]);
    assert_eq!(reasons(&judged), ["fast_leak"]);
}

#[test]
fn sensors_do_not_mix() {
    let other = json!({"id": "b2", "model": "M", "pressure_kpa": 160.0, "temperature_c": 20.0, "time_ms": T0 + 1000});
    let judged = run::<TyreAlert>("", [reading(220.0, 20.0, 0), Input::new(other.to_string())]);
    assert_eq!(reasons(&judged), ["", ""]);
}

#[test]
fn the_same_reason_is_told_once_a_minute() {
    let mut plugin = Tester::<TyreAlert>::new("").unwrap();
    let judged = plugin.batch([0, 59_999, 60_000, 61_000].map(|at| reading(100.0, 20.0, at)));
    assert_eq!(reasons(&judged), ["low_pressure", "", "low_pressure", ""]);
    assert_eq!((plugin.counted("low_pressure"), plugin.counted("suppressed")), (4, 2));
}

#[test]
fn a_batch_sent_again_gives_the_same_alerts() {
    let mut plugin = Tester::<TyreAlert>::new("").unwrap();
    let batch = || vec![reading(220.0, 20.0, 0), reading(190.0, 20.0, 30_000), reading(140.0, 20.0, 50_000)];
    let first = reasons(&plugin.batch(batch()));
    assert_eq!(first, ["", "fast_leak", "fast_leak+low_pressure"]);
    assert_eq!(reasons(&plugin.batch(batch())), first);
}

#[test]
fn any_json_spacing_can_be_extended() {
    let value = "{ \"id\" : \"a1\", \"model\":\"M\",\"pressure_kpa\": 1.0, \"temperature_c\":null } \n";
    let judged = run::<TyreAlert>("", [Input::new(value).key("M/a1")]);
    assert_eq!(alert(&judged[0]).unwrap()["reason"], "low_pressure");
}

#[test]
fn what_is_no_reading_is_rejected() {
    for garbage in ["", "{}", "[]", "{\"id\":7}"] {
        assert!(matches!(run::<TyreAlert>("", [garbage])[0].verdict, Verdict::Rejected(_)), "{garbage}");
    }
}

#[test]
fn a_wrong_threshold_names_the_key() {
    let refused = |config: &str| Tester::<TyreAlert>::new(config).map(|_| ()).unwrap_err().to_string();
    assert!(refused(r#"{"low_kpa": -1}"#).contains("`low_kpa`: -1 must lie between 0 and 5000"));
    assert!(refused(r#"{"sensors": 2}"#).contains("`sensors`"));
    assert!(refused(r#"{"leak_window_ms": 1}"#).contains("`leak_window_ms`"));
    assert!(refused(r#"{"hot": 1}"#).contains("unknown field `hot`"));
}
