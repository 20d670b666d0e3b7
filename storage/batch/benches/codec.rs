//! What a batch costs on its way: the CRC alone (the floor), verify, the walk over the records, iterating, building, zstd.
//!
//! `cargo bench -p weir-batch`. 256 records of 256 bytes, a batch of about 68 KiB as a fleet's gateway sends it.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use weir_batch::{BatchBuilder, Codec, RecordBatch, murmur2};

const RECORDS: usize = 256;

fn values() -> Vec<Vec<u8>> {
    let value = |n| {
        format!(
            r#"{{"time":"2026-11-22 15:45:{:02}","model":"Toyota","type":"TPMS","id":"fb{n:06x}","status":{},"pressure_PSI":{}.25,"temperature_C":{}.0,"mic":"CRC"}}"#,
            n % 60,
            n % 128,
            28 + n % 9,
            10 + n % 40
        )
    };
    (0..RECORDS)
        .map(|n| {
            let mut value = value(n).into_bytes();
            value.resize(256, b' ');
            value
        })
        .collect()
}

fn fill(builder: &mut BatchBuilder, values: &[Vec<u8>]) {
    for (n, value) in values.iter().enumerate() {
        builder.push(1_700_000_000_000 + n as i64, Some(&value[60..70]), Some(value), &[]);
    }
}

fn codec(c: &mut Criterion) {
    let values = values();
    let build = |codec| {
        let mut builder = BatchBuilder::new(codec);
        fill(&mut builder, &values);
        builder.finish().expect("a batch of some records")
    };
    let (plain, zstd) = (build(Codec::None), build(Codec::Zstd(1)));
    println!("{RECORDS} records: {} bytes, {} with zstd", plain.len(), zstd.len());
    let mut scratch = Vec::new();

    let mut group = c.benchmark_group("batch");
    group.throughput(Throughput::Bytes(plain.len() as u64));
    group.bench_function("crc alone", |b| b.iter(|| crc32c::crc32c(black_box(&plain[21..]))));
    group.bench_function("verify", |b| b.iter(|| RecordBatch::verify(black_box(&plain)).map(|batch| batch.next_offset())));
    let batch = RecordBatch::verify(&plain).expect("just built");
    let compressed = RecordBatch::verify(&zstd).expect("just built");
    group.throughput(Throughput::Elements(RECORDS as u64));
    group.bench_function("check_records", |b| b.iter(|| black_box(&batch).check_records()));
    group.bench_function("records", |b| {
        b.iter(|| {
            let records = black_box(&batch).records(&mut scratch).expect("just built");
            records.flatten().map(|record| record.value.map_or(0, <[u8]>::len)).sum::<usize>()
        })
    });
    group.bench_function("build", |b| {
        let mut builder = BatchBuilder::new(Codec::None);
        b.iter(|| {
            fill(&mut builder, &values);
            builder.finish()
        })
    });
    group.bench_function("build zstd", |b| {
        let mut builder = BatchBuilder::new(Codec::Zstd(1));
        b.iter(|| {
            fill(&mut builder, &values);
            builder.finish()
        })
    });
    let mut scratch = Vec::new();
    group.bench_function("check_records zstd", |b| b.iter(|| black_box(&compressed).check_records_with(&mut scratch, 1 << 20)));
    group.finish();

    c.bench_function("murmur2 of a 16-byte key", |b| b.iter(|| murmur2(black_box(b"tpms-fb0a1b2c3d4"))));
}

criterion_group!(benches, codec);
criterion_main!(benches);
