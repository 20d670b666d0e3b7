//! Packing and compiling: what is refused, and what the author is told.
use weir_pipeline::{HostConfig, ManifestError, PackError, Pipeline, PluginError, PluginHost, manifest_of, pack};

use crate::guests::{HOST, LETTERS, by_letter, manifest, module, stage};

fn packed() -> Vec<u8> {
    pack(&by_letter(), &manifest("letters", "1.2.3")).unwrap()
}

#[test]
fn a_packed_plugin_carries_its_manifest_and_compiles() {
    let component = packed();
    let manifest = manifest_of(&component).unwrap();
    assert_eq!((&*manifest.name, &*manifest.version), ("letters", "1.2.3"));
    let plugin = HOST.compile(&component).unwrap();
    assert_eq!(plugin.manifest(), &manifest);
    assert_eq!(plugin.digest(), HOST.compile(&component).unwrap().digest());
    assert_eq!((plugin.memory_bytes_max(), plugin.batch_time_max().as_millis()), (8 << 20, 20));
}

#[test]
fn what_cannot_be_packed_is_named() {
    let text = manifest("letters", "1.2.3");
    assert!(matches!(pack(b"(module)", &text), Err(PackError::NotModule)));
    assert!(matches!(pack(&packed(), &text), Err(PackError::AlreadyComponent)));
    assert!(matches!(pack(&by_letter(), "[plugin]"), Err(PackError::Manifest(ManifestError::Syntax { .. }))));
    let empty = wat::parse_str("(module (memory (export \"memory\") 1))").unwrap();
    let error = pack(&empty, &text).unwrap_err();
    assert!(matches!(error, PackError::World { .. }), "{error}");
    let wasi = module(r#"(import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32)))"#, "", "");
    let error = pack(&wasi, &text).unwrap_err().to_string();
    assert!(error.contains("wasi_snapshot_preview1"), "{error}");
}

#[test]
fn a_file_that_is_no_plugin_is_told_what_it_is() {
    assert!(matches!(HOST.compile(b"hello"), Err(PluginError::NotWasm)));
    assert!(matches!(HOST.compile(b""), Err(PluginError::NotWasm)));
    assert!(matches!(HOST.compile(&by_letter()), Err(PluginError::CoreModule)));
    let bare = wat::parse_str("(component)").unwrap();
    assert!(matches!(HOST.compile(&bare), Err(PluginError::Manifest(ManifestError::Missing))));
    let mut cut = packed();
    cut.truncate(cut.len() / 2);
    let refused = HOST.compile(&cut).unwrap_err();
    assert!(matches!(refused, PluginError::Manifest(_) | PluginError::Invalid { .. }), "{refused}");
    let mut config = HostConfig::default();
    config.component_bytes_max = 100;
    let small = PluginHost::new(config).unwrap();
    assert!(matches!(small.compile(&packed()), Err(PluginError::TooLarge { max: 100, .. })));
}

#[test]
fn damaged_files_are_refused_and_never_panic() {
    let good = packed();
    for at in (0..good.len()).step_by(97) {
        let mut bad = good.clone();
        bad[at] ^= 0x55;
        if let Err(error) = HOST.compile(&bad) {
            assert!(!error.to_string().is_empty());
        }
    }
}

/// A component with one more custom section than it should have.
#[test]
fn two_manifests_are_one_too_many() {
    let mut component = packed();
    let section = b"\x0bweir-pluginx";
    component.extend_from_slice(&[0, section.len() as u8]);
    component.extend_from_slice(section);
    assert!(matches!(HOST.compile(&component), Err(PluginError::Manifest(ManifestError::Several { count: 2 }))));
}

#[test]
fn what_the_manifest_does_not_grant_cannot_be_imported() {
    let log = r#"(import "weir:plugin/log@1.0.0" "write" (func $write (param i32 i32 i32)))"#;
    let metric = r#"(import "weir:plugin/metric@1.0.0" "add" (func $add (param i32 i64)))"#;
    let text = manifest("greedy", "1.0.0");
    for (import, call, grant) in [
        (log, "(call $write (i32.const 1) (i32.const 0) (i32.const 0))", "log = \"info:100/s\""),
        (metric, "(call $add (i32.const 0) (i64.const 0))", "metrics = [\"a_name\"]"),
    ] {
        let module = module(import, "", call);
        let error = HOST.compile(&pack(&module, &text).unwrap()).unwrap_err();
        assert!(matches!(error, PluginError::Import { .. }), "{error}");
        assert!(error.to_string().contains(grant), "{error}");
        let granted = format!("{text}[grants]\n{grant}\n");
        HOST.compile(&pack(&module, &granted).unwrap()).unwrap();
    }
}

/// A component made without our packer, with a manifest appended by hand.
fn by_hand(text: &str) -> Vec<u8> {
    let mut component = wat::parse_str(text).unwrap();
    let toml = b"[plugin]\nname='x'\nversion='1.0.0'";
    let mut body = vec![11];
    body.extend_from_slice(b"weir-plugin");
    body.extend_from_slice(toml);
    component.extend_from_slice(&[0, body.len() as u8]);
    component.extend_from_slice(&body);
    component
}

#[test]
fn components_of_another_world_are_told_what_is_wrong() {
    let wasi = by_hand(r#"(component (import "wasi:clocks/wall-clock@0.2.0" (instance)))"#);
    let error = HOST.compile(&wasi).unwrap_err().to_string();
    assert!(error.contains("wasi:clocks/wall-clock@0.2.0") && error.contains("no WASI"), "{error}");
    let newer = by_hand(r#"(component (import "weir:plugin/sinc@1.0.0" (instance)))"#);
    let error = HOST.compile(&newer).unwrap_err().to_string();
    assert!(error.contains("did you mean `weir:plugin/sink@1.0.0`?"), "{error}");
    let empty = by_hand("(component)");
    assert!(matches!(HOST.compile(&empty), Err(PluginError::Export { export: "init", .. })));
    let wrong = by_hand(
        r#"(component
            (core module $m (func (export "f")))
            (core instance $i (instantiate $m))
            (func $f (canon lift (core func $i "f")))
            (export "init" (func $f))
            (export "process" (func $f)))"#,
    );
    let error = HOST.compile(&wrong).unwrap_err();
    assert!(matches!(error, PluginError::Export { export: "init", .. }), "{error}");
}

#[test]
fn a_pipelines_outputs_must_fit_the_plugins() {
    let mut missing = stage(&LETTERS, weir_pipeline::FailurePolicy::Fail);
    missing.outputs.remove("moved");
    let error = Pipeline::new(1, vec![missing], &HOST).unwrap_err().to_string();
    assert!(error.contains("output `moved` has no topic") && error.contains("letters 1.2.3"), "{error}");
    let mut unknown = stage(&LETTERS, weir_pipeline::FailurePolicy::Fail);
    unknown.outputs.insert("copys".to_owned(), "t".to_owned());
    let error = Pipeline::new(1, vec![unknown], &HOST).unwrap_err().to_string();
    assert!(error.contains("no output `copys`: did you mean `copies`?"), "{error}");
    assert!(matches!(Pipeline::new(1, vec![], &HOST), Err(PluginError::Stages { stages: 0, .. })));
    let pipeline = Pipeline::new(7, vec![stage(&LETTERS, weir_pipeline::FailurePolicy::Fail)], &HOST).unwrap();
    assert_eq!(pipeline.revision(), 7);
    assert_eq!(pipeline.topics().iter().map(|t| &**t).collect::<Vec<_>>(), ["t.copies", "t.moved"]);
}

#[test]
fn contradicting_limits_are_refused() {
    let mut config = HostConfig::default();
    config.memory_bytes_default = config.memory_bytes_max + 1;
    assert!(PluginHost::new(config).unwrap_err().to_string().contains("at most its maximum"));
}
