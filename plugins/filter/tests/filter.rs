//! Predicates, and the records they keep or drop.
use filter::Filter;
use weir_plugin::testing::{Input, Tester, Verdict, run};

const TYRE: &str = r#"{"model":"Ford","id":"a1","pressure_kpa":188.5,"n":3,"ok":true,"none":null,"pos":{"lat":48.1,"deep":{"x":"y"}},"list":[1]}"#;

/// Whether `TYRE` passes a test.
fn passes(test: &str) -> bool {
    let kept = run::<Filter>(&format!("{{\"keep\":{test}}}"), [TYRE]).remove(0).verdict;
    let dropped = run::<Filter>(&format!("{{\"drop\":{test}}}"), [TYRE]).remove(0).verdict;
    match (kept, dropped) {
        (Verdict::Kept, Verdict::Dropped) => true,
        (Verdict::Dropped, Verdict::Kept) => false,
        other => panic!("{test}: {other:?}"),
    }
}

fn field(field: &str, op: &str, value: &str) -> bool {
    passes(&format!(r#"{{"field":"{field}","op":"{op}","value":{value}}}"#))
}

#[test]
fn each_operator() {
    for (path, op, value, expected) in [
        ("model", "==", "\"Ford\"", true),
        ("model", "==", "\"ford\"", false),
        ("model", "!=", "\"BMW\"", true),
        ("model", "!=", "1", true),
        ("absent", "!=", "\"BMW\"", false),
        ("none", "!=", "1", false),
        ("absent", "==", "1", false),
        ("pressure_kpa", "<", "188.5", false),
        ("pressure_kpa", "<=", "188.5", true),
        ("pressure_kpa", ">", "188", true),
        ("pressure_kpa", ">=", "189", false),
        ("n", "==", "3.0", true),
        ("model", "<", "5", false),
        ("absent", "<", "5", false),
        ("ok", "==", "true", true),
        ("model", "contains", "\"or\"", true),
        ("model", "starts_with", "\"or\"", false),
        ("model", "starts_with", "\"Fo\"", true),
        ("n", "contains", "\"3\"", false),
        ("pos.lat", ">", "48", true),
        ("pos.deep.x", "==", "\"y\"", true),
        ("pos.lat.more", "==", "1", false),
        ("model.more", "==", "1", false),
    ] {
        assert_eq!(field(path, op, value), expected, "{path} {op} {value}");
    }
    for (path, expected) in
        [("pos", true), ("list", true), ("none", false), ("absent", false), ("pos.deep.x", true), ("pos.none", false)]
    {
        assert_eq!(passes(&format!(r#"{{"field":"{path}","op":"exists"}}"#)), expected, "{path}");
    }
}

#[test]
fn tests_combine() {
    let ford = r#"{"field":"model","op":"==","value":"Ford"}"#;
    let low = r#"{"field":"pressure_kpa","op":"<","value":100}"#;
    let outer = r#"{"field":"pos","op":"exists"}"#;
    let inner = r#"{"field":"pos.lat","op":"<","value":50}"#;
    assert!(passes(&format!("{{\"any\":[{low},{ford}]}}")));
    assert!(!passes(&format!("{{\"all\":[{low},{ford}]}}")));
    assert!(passes(&format!("{{\"all\":[{ford},{{\"not\":{low}}}]}}")));
    assert!(passes(&format!("{{\"all\":[{outer},{inner}]}}")));
}

#[test]
fn bytes_are_compared_without_parsing() {
    for (test, expected) in [
        (r#"{"contains":"Ford"}"#, true),
        (r#"{"contains":"FFord"}"#, false),
        (r#"{"contains":"]}x"}"#, false),
        (r#"{"at":0,"equals":"{\"model\""}"#, true),
        (r#"{"at":1,"equals":"{"}"#, false),
        (r#"{"at":-1,"equals":"}"}"#, true),
        (r#"{"at":-2,"equals":"]}"}"#, true),
        (r#"{"at":-1,"equals":"]}"}"#, false),
        (r#"{"at":-5000,"equals":"{"}"#, false),
        (r#"{"at":5000,"equals":"{"}"#, false),
    ] {
        assert_eq!(passes(&format!("{{\"bytes\":{test}}}")), expected, "{test}");
    }
    let judged = run::<Filter>(
        r#"{"drop":{"bytes":{"contains":"x"}}}"#,
        [Input::new([0xff, b'x']), Input::tombstone("k"), Input::new("")],
    );
    let verdicts: Vec<_> = judged.into_iter().map(|judged| judged.verdict).collect();
    assert_eq!(verdicts, [Verdict::Dropped, Verdict::Kept, Verdict::Kept]);
}

#[test]
fn garbage_is_rejected_where_fields_are_asked_for() {
    let records = || ["{", "[]", "7", "{} x"].map(Input::new).into_iter().chain([Input::tombstone("k")]);
    for judged in run::<Filter>(r#"{"keep":{"field":"a","op":"exists"}}"#, records()) {
        assert!(matches!(judged.verdict, Verdict::Rejected(_)), "{judged:?}");
    }
}

#[test]
fn what_was_dropped_is_counted() {
    let mut plugin = Tester::<Filter>::new(r#"{"drop":{"bytes":{"contains":"b"}}}"#).unwrap();
    plugin.batch(["a", "b", "ab"]);
    assert_eq!(plugin.counted("dropped"), 2);
}

#[test]
fn a_wrong_configuration_names_the_key() {
    let deep =
        format!("{}{}{}", r#"{"drop":"#.to_owned() + &r#"{"not":"#.repeat(17), r#"{"bytes":{"contains":"x"}}"#, "}".repeat(18));
    let many: Vec<String> = (0..17).map(|at| format!(r#"{{"field":"f{at}","op":"exists"}}"#)).collect();
    let many = format!(r#"{{"drop":{{"any":[{}]}}}}"#, many.join(","));
    for (config, expected) in [
        ("", "`drop`: give a predicate"),
        (r#"{"keep":{"field":"a","op":"exists"},"drop":{"field":"a","op":"exists"}}"#, "not both"),
        (r#"{"drp":{}}"#, "unknown field `drp`"),
        (r#"{"drop":{}}"#, "`drop`: give exactly one of"),
        (r#"{"drop":{"field":"a"}}"#, "`drop.op`: missing"),
        (r#"{"drop":{"field":"a","op":"=","value":1}}"#, "`drop.op`: unknown operator \"=\""),
        (r#"{"drop":{"field":"a","op":"<"}}"#, "`drop.value`: `<` needs one"),
        (r#"{"drop":{"field":"a","op":"<","value":"b"}}"#, "`drop.value`: `<` compares numbers"),
        (r#"{"drop":{"field":"a","op":"contains","value":1}}"#, "`drop.value`: `contains` needs text"),
        (r#"{"drop":{"field":"a","op":"exists","value":1}}"#, "`drop.value`: `exists` takes none"),
        (r#"{"drop":{"field":"a..b","op":"exists"}}"#, "`drop.field`: \"a..b\" is no path"),
        (r#"{"drop":{"op":"exists"}}"#, "need a `field`"),
        (r#"{"drop":{"any":[]}}"#, "`drop.any`: the list is empty"),
        (r#"{"drop":{"all":[{"field":"a","op":"exists"},{"field":"a","op":"??"}]}}"#, "`drop.all[1].op`"),
        (r#"{"drop":{"not":{"bytes":{"contains":""}}}}"#, "`drop.not.bytes`"),
        (r#"{"drop":{"bytes":{"equals":"x"}}}"#, "`drop.bytes`: give"),
        (r#"{"drop":{"bytes":{"at":"x"}}}"#, "`drop.bytes.at`: invalid type"),
        (&deep, "nested deeper than 16"),
        (&many, "at most 16 fields"),
    ] {
        let refused = Tester::<Filter>::new(config).map(|_| ()).unwrap_err().to_string();
        assert!(refused.contains(expected), "{config}: {refused}");
    }
}
