//! Every text of 64 scored against every other, as minimum Bayes risk decoding does; then a corpus and its bootstrap.

use std::hint::black_box;

use beamfuse::metrics::{BleuStats, BootstrapOptions, ChrfStats, bootstrap, chrf_counts, one_each};
use criterion::{Criterion, criterion_group, criterion_main};

const CAPTIONS: &str = include_str!("../tests/data/metrics/own.beam1.de");
const REFERENCES: &str = include_str!("../tests/data/metrics/own.reference.de");

fn all_pairs<S>(texts: &[S], score: impl Fn(&S, &S) -> f64) -> f64 {
    texts.iter().flat_map(|h| texts.iter().map(move |r| (h, r))).map(|(h, r)| score(h, r)).sum()
}

fn benchmarks(c: &mut Criterion) {
    // The longest lines, and variants of them: candidates of one sentence have most n-grams in common.
    let mut lines: Vec<&str> = CAPTIONS.lines().collect();
    lines.sort_by_key(|l| std::cmp::Reverse(l.len()));
    let distinct = &lines[..64];
    let alike: Vec<String> =
        (0..64).map(|i| format!("{} {}", lines[i % 4], lines[i].split(' ').next().unwrap_or(""))).collect();

    c.bench_function("metrics/chrf_64x64_distinct", |b| {
        b.iter(|| {
            let stats: Vec<_> = distinct.iter().map(|t| ChrfStats::new(black_box(t))).collect();
            all_pairs(&stats, ChrfStats::score)
        })
    });
    c.bench_function("metrics/chrf_64x64_alike", |b| {
        b.iter(|| {
            let stats: Vec<_> = alike.iter().map(|t| ChrfStats::new(black_box(t))).collect();
            all_pairs(&stats, ChrfStats::score)
        })
    });
    c.bench_function("metrics/bleu_64x64_alike", |b| {
        b.iter(|| {
            let stats: Vec<_> = alike.iter().map(|t| BleuStats::new(black_box(t))).collect();
            all_pairs(&stats, BleuStats::score)
        })
    });

    let hypotheses: Vec<_> = CAPTIONS.lines().cycle().take(1000).collect();
    let references: Vec<_> = REFERENCES.lines().cycle().take(1000).collect();
    let Ok(counts) = chrf_counts(&hypotheses, &one_each(&references)) else { return };
    c.bench_function("metrics/chrf_bootstrap_1000x1000", |b| {
        b.iter(|| bootstrap(black_box(&counts), &BootstrapOptions::default()))
    });
}

criterion_group!(benches, benchmarks);
criterion_main!(benches);
