//! The command line as a whole: it is consistent, and the lines shown in documents parse.

use clap::{CommandFactory, Parser};

use super::Cli;

#[test]
fn the_definition_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn the_lines_shown_in_documents_parse() {
    for line in [
        "weir serve --config weir.toml --set log.segment_bytes=16MiB --set http.listen=",
        "weir serve --print-config",
        "weir quickstart --seconds 6 --plugins plugins/dist --keep",
        "weir status --json --addr [::1]:7300",
        "weir topic create tpms.raw tpms.alerts -p 4 --if-not-exists --set retention.ms=7d --set cleanup.policy=compact",
        "weir topic create tpms.raw --config retention.bytes=10GiB",
        "weir topic set tpms.raw retention.ms=7d when.full=",
        "weir topic latest tpms.raw key-7 --json",
        "weir topic describe tpms.raw --json",
        "weir produce tpms.raw -K : -p 3 -z zstd -H a=b --producer-name gate --resume --rate 100",
        "weir produce tpms.raw data.jsonl --delivery-timeout 3s --linger 1ms --batch-bytes 64KiB --json",
        "weir consume tpms.raw -o -10 -e -f %k:%s\\n --as reader",
        "weir consume tpms.raw -o s@15min --until-timestamp 1700000000000 -c 5 --group g --json",
        "weir group describe g --json",
        "weir pipeline attach tpms.raw --plugin a --config {} --output alerts=tpms.alerts --plugin b --on-failure drop",
        "weir pipeline attach tpms.raw pipeline.toml --dry-run",
        "weir plugin upload a.wasm b.wasm",
        "weir plugin delete filter 0.1.0",
        "weir cert ca --days 30 --force",
        "weir cert device truck-1 truck-2 --dir certs --days=-1",
        "weir cert site node.example 10.0.0.1 --client admin --client truck-1 --dir certs",
        "weir bench publish --records 1000 --record-size 100 --batch 64 --connections 2 --producers 2 --partitions 8 --json",
        "weir bench publish --batch 1 --in-flight 1 --record-size 128 --connections 1000",
        "weir bench publish --batch 1000 --rate 1000000",
        "weir bench consume --tail --consumers 2 --slow 1",
        "weir bench streams --partitions 100000",
        "weir bench connections --connections 10000",
        "weir bench table",
        "weir bench latency --rate 500 --seconds 3 --no-floors --set log.backend=plain",
        "weir check weir-data",
        "weir check /var/lib/weir --jobs 2 --json",
        "weir check /mnt/a --volume /mnt/b --volume /mnt/c",
        "weir check --config weir.toml",
        "weir dump weir-data/wal/00003.wal --entries",
        "weir dump weir-data/superblock --json",
        "weir completion bash",
        "weir version --json",
    ] {
        if let Err(error) = Cli::try_parse_from(line.split(' ')) {
            panic!("{line}\n{error}");
        }
    }
}

#[test]
fn what_contradicts_itself_is_refused() {
    for line in [
        "weir produce t -K : -k key",
        "weir produce t --resume",
        "weir consume t --json -f %s",
        "weir consume t -f %q",
        "weir consume t -o soon",
        "weir pipeline attach t p.json --plugin a",
        "weir pipeline attach t --config {}",
        "weir status --cert c.pem",
        "weir cert device",
        "weir bench publish --connections 0",
        "weir bench consume --slow 1",
        "weir check",
        "weir check weir-data --jobs 0",
        "weir dump",
    ] {
        assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
    }
}
