//! The CPU kernel on visited tiles, per instruction set: `cargo bench -p speedread-attention`.
//!
//! Throughput is in floating-point operations: 4 * 64 * 64 * dim a visited tile (two products), whether or not the mask uses them all.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::f16;
use speedread_attention::cpu::{Isa, TILE};
use speedread_attention::{Options, Pattern, Rows, RowsMut, build_indexes, prefill};

fn kernel(c: &mut Criterion) {
    let (n, heads, kv_heads) = (8192, 4, 1);
    let mut group = c.benchmark_group("prefill 8K");
    group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2));
    for dim in [64usize, 128] {
        let value = |i: usize| ((i * 7919) % 1013) as f32 / 1013.0 - 0.5;
        let q: Vec<f32> = (0..n * heads * dim).map(value).collect();
        let k: Vec<f16> = (0..n * kv_heads * dim).map(|i| f16::from_f32(value(i + 3))).collect();
        let mut out = vec![0f32; q.len()];
        let q = Rows::contiguous(&q, n, heads, dim).unwrap();
        let k = Rows::contiguous(&k, n, kv_heads, dim).unwrap();
        for text in ["dense", "vertical-slash:1000,200", "block-sparse:16"] {
            let patterns = vec![text.parse::<Pattern>().unwrap(); heads];
            for isa in Isa::available() {
                let options = Options { isa: Some(isa), dense_fallback: false, ..Options::default() };
                let indexes = build_indexes(q, k, &patterns, &options).unwrap();
                let tiles: u64 = indexes.iter().map(|i| i.total_tiles()).sum();
                group.throughput(Throughput::Elements(tiles * (4 * TILE.queries * TILE.keys * dim) as u64));
                group.bench_function(BenchmarkId::new(format!("{text} d{dim}"), isa.name()), |b| {
                    b.iter(|| {
                        let out = RowsMut::contiguous(&mut out, n, heads, dim).unwrap();
                        prefill(q, k, k, &patterns, &options, out, None).unwrap()
                    })
                });
            }
        }
    }
    group.finish();
}

criterion_group!(benches, kernel);
criterion_main!(benches);
