//! Dense layers with f32, in bf16 and with 8-bit weights over the shapes of the models that matter, on one and on two threads.
//!
//! `cargo bench --bench gemm [-- FILTER]`; throughput is reported in multiply-adds ("elements") per second, so that
//! GFLOP/s is twice the figure. Weights stay hot in whatever cache they fit, as they do from step to step of a decode.

use beamfuse::backend::Activation;
use beamfuse::cpu::gemm::{Epilogue, PackedBf16, PackedInt8, PackedMatrix, RowScratch, gemm, gemm_bf16, gemm_int8};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use std::time::Duration;

/// `(n, k)`: a small model of width 256, and OPUS-MT base.
const SHAPES: [(usize, usize); 10] = [
    (768, 256),
    (256, 256),
    (1024, 256),
    (256, 1024),
    (8001, 256),
    (1536, 512),
    (512, 512),
    (2048, 512),
    (512, 2048),
    (58101, 512),
];

fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919) % 1009) as f32 / 1009.0 - 0.48).collect()
}

fn bench(criterion: &mut Criterion) {
    for (n, k) in SHAPES {
        let (weights, bias) = (values(n * k), values(n));
        let packed = PackedMatrix::pack(&weights, n, k);
        let packed_bf16 = PackedBf16::pack(&weights, n, k);
        let packed_int8 = PackedInt8::pack(&weights, n, k);
        let mut scratch = RowScratch::default();
        for rows in [1, 4, 32, 128, 1024] {
            if n * rows > 58101 * 128 {
                continue; // the vocabulary of a batch that large is never scored at once
            }
            let x = values(rows * k);
            let mut out = vec![f32::NAN; rows * n];
            let mut group = criterion.benchmark_group(format!("gemm_{n}x{k}"));
            group.sample_size(10).warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_millis(400));
            group.throughput(Throughput::Elements((rows * n * k) as u64));
            for threads in [1, 2] {
                let Ok(pool) = rayon::ThreadPoolBuilder::new().num_threads(threads).build() else { continue };
                let epilogue = Epilogue { bias: Some(&bias), activation: Activation::None, residual: None };
                group.bench_function(BenchmarkId::new(format!("f32/rows{rows}"), threads), |bencher| {
                    pool.install(|| bencher.iter(|| gemm(black_box(&x), rows, &packed, &epilogue, &mut out)));
                });
                group.bench_function(BenchmarkId::new(format!("bf16/rows{rows}"), threads), |bencher| {
                    pool.install(|| {
                        bencher.iter(|| gemm_bf16(black_box(&x), rows, &packed_bf16, &epilogue, &mut scratch, &mut out))
                    });
                });
                group.bench_function(BenchmarkId::new(format!("int8/rows{rows}"), threads), |bencher| {
                    pool.install(|| {
                        bencher.iter(|| gemm_int8(black_box(&x), rows, &packed_int8, &epilogue, &mut scratch, &mut out))
                    });
                });
            }
            group.finish();
        }
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
