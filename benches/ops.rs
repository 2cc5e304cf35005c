//! Every op but `linear` (which is in `gemm.rs`) over the shapes of a small model and of OPUS-MT base, on one and on two
//! threads. Each is held to its reference once before it is timed.
//!
//! `cargo bench --bench ops [-- FILTER]`; a row is one sentence's one beam, as in a decode step of 32 sentences at beam 4.

use std::time::Duration;

use beamfuse::Result;
use beamfuse::backend::{
    ContrastiveForm, ContrastiveOptions, CrossCache, Divergence, Heads, LengthPenaltyKind, Pick, Row, RowShape,
    SampleOptions, SamplePick, Schedule, ScheduledSampling, Scores, Search, SelfCache, SessionShape, SlotOptions,
    SpecialIds, Stages, StopKind, Strategy, TokenPlace, TokenStats,
};
use beamfuse::check::{Tolerance, assert_close};
use beamfuse::cpu::attention::CacheType;
use beamfuse::cpu::{
    Cpu, attention, beam_step, contrastive, embedding, ensemble, layer_norm, loss, processors, risk, sample,
    scheduled_sampling, stats,
};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

/// A model's sizes, as far as the ops see them.
struct Model {
    name: &'static str,
    heads: Heads,
    vocab_size: usize,
}

const MODELS: [Model; 2] = [
    Model { name: "demo", heads: Heads::new(4, 64), vocab_size: 8001 },
    Model { name: "opus_base", heads: Heads::new(8, 64), vocab_size: 58101 },
];

/// Sentences, beams, and tokens of a source and of a prefix.
const SLOTS: usize = 32;
const BEAMS: usize = 4;
const LEN: usize = 24;
const ROWS: usize = SLOTS * BEAMS;

/// Sums of some hundred products in f32 against f64.
const CLOSE: Tolerance = Tolerance::new(1e-4, 1e-5);

/// Values in -2..2, the same on every run, a few of them outliers.
fn values(len: usize, seed: usize) -> Vec<f32> {
    let value = |i: usize| ((i * 7919 + seed * 104_729) % 10_007) as f32 / 2500.0 - 2.0;
    (0..len).map(|i| if i % 509 == 7 { 4.0 * value(i) } else { value(i) }).collect()
}

/// The rows of a step: every beam of every slot, at the last position.
fn rows() -> Vec<Row> {
    let beams = |slot| (0..BEAMS as u32).map(move |beam| (slot, beam));
    let row = |(slot, beam)| Row { slot, beam, position: LEN as u32 - 1, token: (slot * 211 + beam * 17) % 8000 };
    (0..SLOTS as u32).flat_map(beams).map(row).collect()
}

/// Times `work` on one and on two threads.
fn time(criterion: &mut Criterion, op: &str, model: &Model, elements: usize, mut work: impl FnMut() + Send) {
    let mut group = criterion.benchmark_group(op);
    group.sample_size(20).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(800));
    group.throughput(Throughput::Elements(elements as u64));
    for threads in [1, 2] {
        let Ok(pool) = rayon::ThreadPoolBuilder::new().num_threads(threads).build() else { continue };
        group.bench_function(BenchmarkId::new(model.name, format!("threads{threads}")), |bencher| {
            pool.install(|| bencher.iter(&mut work));
        });
    }
    group.finish();
}

fn embeddings(criterion: &mut Criterion) {
    for model in &MODELS {
        let (width, rows) = (model.heads.width(), rows());
        let (tokens, positions) = (values(model.vocab_size * width, 1), values(LEN * width, 2));
        let positions = Some(embedding::Positions { table: positions, pad_id: None });
        let own = embedding::Tokens::Own(tokens.clone());
        let (table, positions) = (embedding::Embedding { tokens: own, scale: 16.0, width }, positions.as_ref());
        let (mut out, mut expected) = (vec![f32::NAN; ROWS * width], vec![f32::NAN; ROWS * width]);
        embedding::embedding(&table, positions, &rows, &mut out);
        embedding::reference(&tokens, 16.0, width, positions, &rows, &mut expected);
        assert_close(&out, &expected, CLOSE);
        time(criterion, "embedding", model, out.len(), || embedding::embedding(&table, positions, &rows, &mut out));
    }
}

fn layer_norms(criterion: &mut Criterion) {
    for model in &MODELS {
        let width = model.heads.width();
        let norm = layer_norm::Norm { gain: values(width, 1), bias: values(width, 2), eps: 1e-5, ..Default::default() };
        let delta = values(ROWS * width, 3);
        let mut x = values(ROWS * width, 4);
        let mut expected = x.clone();
        layer_norm::layer_norm(&norm, ROWS, Some(&delta), None, &mut x);
        layer_norm::reference(&norm, ROWS, Some(&delta), None, &mut expected);
        assert_close(&x, &expected, CLOSE);
        // In place: the output is the next input, which stays normalised.
        time(criterion, "layer_norm", model, x.len(), || {
            layer_norm::layer_norm(&norm, ROWS, Some(&delta), None, &mut x)
        });
    }
}

fn encoder_attention(criterion: &mut Criterion) {
    for model in &MODELS {
        let (heads, width) = (model.heads, model.heads.width());
        let rows = SLOTS * LEN;
        let starts: Vec<u32> = (0..=SLOTS).map(|slot| (slot * LEN) as u32).collect();
        let qkv = values(rows * 3 * width, 1);
        let part = |r: usize, which: usize| &qkv[(3 * r + which) * width..][..width];
        let mut out = vec![f32::NAN; rows * width];
        attention::encoder_attention(Scores { heads, bias: None }, rows, &starts, &qkv, &mut out);
        for r in 0..rows {
            let first = r / LEN * LEN;
            let mut expected = vec![f32::NAN; width];
            attention::reference(
                heads,
                |_, _| 0.0,
                part(r, 0),
                LEN,
                |t| part(first + t, 1),
                |t| part(first + t, 2),
                &mut expected,
            );
            assert_close(&out[r * width..][..width], &expected, CLOSE);
        }
        let pairs = rows * LEN * width;
        time(criterion, "encoder_attention", model, pairs, || {
            attention::encoder_attention(Scores { heads, bias: None }, rows, &starts, &qkv, &mut out);
        });
    }
}

fn self_attention(criterion: &mut Criterion) {
    for model in &MODELS {
        let (heads, width, rows) = (model.heads, model.heads.width(), rows());
        let size = SLOTS * LEN * BEAMS * width;
        let mut cache = SelfCache::<Cpu> {
            keys: vec![f32::NAN; size],
            values: vec![f32::NAN; size],
            max_len: LEN,
            beam_size: BEAMS,
        };
        // Every beam of every slot and position, so that the layout stays the op's own affair.
        let all: Vec<Row> =
            (0..LEN as u32).flat_map(|position| rows.iter().map(move |row| Row { position, ..*row })).collect();
        let stored = values(all.len() * 3 * width, 1);
        attention::store_self(CacheType::F32, heads, &all, &stored, &mut cache);
        // The beams of a sentence have usually parted a few tokens ago.
        let shared = LEN - 6;
        let ancestor = |i: usize| if i % LEN < shared { 0 } else { ((i / LEN + i % LEN) % BEAMS) as u32 };
        let ancestry: Vec<u32> = (0..ROWS * LEN).map(ancestor).collect();
        let qkv = values(ROWS * 3 * width, 2);
        let mut out = vec![f32::NAN; ROWS * width];
        attention::self_attention(
            CacheType::F32,
            Scores { heads, bias: None },
            &rows,
            &qkv,
            &cache,
            &ancestry,
            &mut out,
        );
        for (r, row) in rows.iter().enumerate() {
            let beam = |t: usize| if t == LEN - 1 { row.beam as usize } else { ancestry[r * LEN + t] as usize };
            let part = |t: usize, which: usize| {
                let at = t * ROWS + row.slot as usize * BEAMS + beam(t);
                &stored[(3 * at + which) * width..][..width]
            };
            let mut expected = vec![f32::NAN; width];
            let query = &qkv[3 * r * width..][..width];
            attention::reference(heads, |_, _| 0.0, query, LEN, |t| part(t, 1), |t| part(t, 2), &mut expected);
            assert_close(&out[r * width..][..width], &expected, CLOSE);
        }
        time(criterion, "self_attention", model, ROWS * LEN * width, || {
            attention::self_attention(
                CacheType::F32,
                Scores { heads, bias: None },
                &rows,
                &qkv,
                &cache,
                &ancestry,
                &mut out,
            );
        });
    }
}

fn cross_attention(criterion: &mut Criterion) {
    for model in &MODELS {
        let (heads, width, rows) = (model.heads, model.heads.width(), rows());
        let size = SLOTS * LEN * width;
        let mut cache =
            CrossCache::<Cpu> { keys: vec![f32::NAN; size], values: vec![f32::NAN; size], max_src_len: LEN };
        let source = |slot| (0..LEN as u32).map(move |position| Row { slot, position, ..Row::default() });
        let source: Vec<Row> = (0..SLOTS as u32).flat_map(source).collect();
        let kv = values(source.len() * 2 * width, 1);
        attention::store_cross(CacheType::F32, heads, &source, &kv, &mut cache);
        let queries = values(ROWS * width, 2);
        let options = vec![options(); SLOTS];
        let (mut out, mut weights) = (vec![f32::NAN; ROWS * width], vec![f32::NAN; ROWS * LEN]);
        attention::cross_attention(
            CacheType::F32,
            heads,
            &rows,
            &queries,
            &cache,
            &options,
            Some(&mut weights),
            &mut out,
        );
        for (r, row) in rows.iter().enumerate() {
            let part = |t: usize, which: usize| &kv[(2 * (row.slot as usize * LEN + t) + which) * width..][..width];
            let mut expected = vec![f32::NAN; width];
            let query = &queries[r * width..][..width];
            let mean =
                attention::reference(heads, |_, _| 0.0, query, LEN, |t| part(t, 0), |t| part(t, 1), &mut expected);
            assert_close(&out[r * width..][..width], &expected, CLOSE);
            assert_close(&weights[r * LEN..][..LEN], &mean, CLOSE);
        }
        time(criterion, "cross_attention", model, ROWS * LEN * width, || {
            attention::cross_attention(
                CacheType::F32,
                heads,
                &rows,
                &queries,
                &cache,
                &options,
                Some(&mut weights),
                &mut out,
            );
        });
    }
}

/// The options of every slot: no end before the last step, so that all beams stay live.
fn options() -> SlotOptions {
    SlotOptions {
        beam_size: BEAMS as u32,
        length_penalty: LengthPenaltyKind::Gnmt as u32,
        alpha: 0.7,
        coverage_penalty: 0.2,
        word_reward: 0.0,
        stop: StopKind::Heuristic as u32,
        min_len: LEN as u32,
        max_len: LEN as u32,
        forced_eos: 0,
        renormalize: 0,
        src_len: LEN as u32,
        ..SlotOptions::default()
    }
}

/// A search with a sentence in every slot, none of them begun.
fn search(backend: &Cpu, vocab_size: usize, own: SlotOptions) -> Result<Search<Cpu>> {
    let shape = SessionShape {
        slots: SLOTS,
        beam_size: BEAMS,
        max_len: LEN,
        max_src_len: LEN,
        rows: ROWS,
        keep_attention: false,
    };
    let ids = SpecialIds { eos_id: 0, pad_id: vocab_size as u32 - 1, decoder_start_id: vocab_size as u32 - 1 };
    let mut search = Search::open(backend, shape, vocab_size, ids)?;
    let slots: Vec<(u32, SlotOptions)> = (0..SLOTS as u32).map(|slot| (slot, own)).collect();
    beam_step::start_slots(&slots, &mut search);
    Ok(search)
}

fn beam_steps(criterion: &mut Criterion) {
    let Ok(backend) = Cpu::new(1, beamfuse::Dtype::F32) else { return };
    for model in &MODELS {
        let vocab_size = model.vocab_size;
        let (logits, weights) = (values(ROWS * vocab_size, 1), vec![1.0 / LEN as f32; ROWS * LEN]);
        let (Ok(mut fast), Ok(mut naive)) =
            (search(&backend, vocab_size, options()), search(&backend, vocab_size, options()))
        else {
            return;
        };
        for _ in 0..2 {
            beam_step::beam_step(&logits, &weights, &mut fast);
            beam_step::reference(&logits, &weights, &mut naive);
        }
        assert_eq!((&fast.live, &fast.tokens, &fast.parents), (&naive.live, &naive.tokens, &naive.parents));
        assert_close(&fast.cum_log_probs, &naive.cum_log_probs, CLOSE);
        assert_eq!(fast.rows.live().len(), ROWS);
        let cum_log_probs = fast.cum_log_probs.clone();
        time(criterion, "beam_step", model, logits.len(), || {
            // The same step again and again, from the same scores.
            fast.step.fill(2);
            fast.cum_log_probs.copy_from_slice(&cum_log_probs);
            beam_step::beam_step(&logits, &weights, &mut fast);
        });
    }
}

fn token_stats(criterion: &mut Criterion) {
    for model in &MODELS {
        let vocab_size = model.vocab_size;
        let logits = values(ROWS * vocab_size, 1);
        let gold: Vec<u32> = (0..ROWS).map(|r| (r * 613 % vocab_size) as u32).collect();
        let (mut out, mut expected) = (vec![TokenStats::default(); ROWS], vec![TokenStats::default(); ROWS]);
        stats::token_stats(&logits, vocab_size, &gold, &mut out);
        stats::reference(&logits, vocab_size, &gold, &mut expected);
        let log_probs = |stats: &[TokenStats]| stats.iter().flat_map(|s| [s.log_prob, s.entropy]).collect::<Vec<_>>();
        assert_close(&log_probs(&out), &log_probs(&expected), CLOSE);
        time(criterion, "stats", model, logits.len(), || {
            stats::token_stats(&logits, vocab_size, &gold, &mut out);
        });
    }
}

/// Half of the rows keep gold, and cost next to nothing.
fn scheduled_sampling_rows(criterion: &mut Criterion) {
    for model in &MODELS {
        let vocab_size = model.vocab_size;
        let logits = values(ROWS * vocab_size, 1);
        let gold: Vec<u32> = (0..ROWS as u32).map(|r| r * 613 % vocab_size as u32).collect();
        let places: Vec<TokenPlace> =
            (0..ROWS as u32).map(|r| TokenPlace { sentence: r / LEN as u32, position: r % LEN as u32 }).collect();
        let schedule = Schedule { gold_probability: 0.5, update: 3 };
        let ids = SpecialIds { eos_id: 0, pad_id: vocab_size as u32 - 1, decoder_start_id: vocab_size as u32 - 1 };
        for (op, pick) in [
            ("scheduled_sampling_argmax", Pick::Argmax),
            ("scheduled_sampling_draw", Pick::Sample { temperature: 1.0 }),
        ] {
            let run = ScheduledSampling { pick, seed: 5, ids };
            let (mut chosen, mut counts) = (vec![0; ROWS], vec![0; 2]);
            let (mut expected, mut expected_counts) = (vec![0; ROWS], vec![0; 2]);
            scheduled_sampling::scheduled_sampling(&run, schedule, &places, &gold, &logits, &mut chosen, &mut counts);
            scheduled_sampling::reference(&run, schedule, &places, &gold, &logits, &mut expected, &mut expected_counts);
            assert_eq!((&chosen, &counts), (&expected, &expected_counts));
            time(criterion, op, model, logits.len(), || {
                scheduled_sampling::scheduled_sampling(
                    &run,
                    schedule,
                    &places,
                    &gold,
                    &logits,
                    &mut chosen,
                    &mut counts,
                );
            });
        }
    }
}

/// Every row's amateur is another model; the four forms.
fn contrasts(criterion: &mut Criterion) {
    for model in &MODELS {
        let vocab_size = model.vocab_size;
        let (expert, amateur) = (values(ROWS * vocab_size, 1), values(ROWS * vocab_size, 2));
        for (op, form) in [
            ("contrastive_logits", ContrastiveForm::Logits),
            ("contrastive_li", ContrastiveForm::Li),
            ("contrastive_obrien", ContrastiveForm::Obrien),
            ("contrastive_source", ContrastiveForm::Source),
        ] {
            let contrast = ContrastiveOptions::new(form, 0.5, 0.1, 1.0);
            let options = vec![SlotOptions { max_len: 2 * LEN as u32, contrast, ..SlotOptions::default() }; SLOTS];
            let (mut out, mut expected) = (amateur.clone(), amateur.clone());
            let (mut normalizers, mut expected_normalizers) = (vec![0.0; ROWS], vec![0.0; ROWS]);
            contrastive::contrastive(&rows(), &options, vocab_size, 0, &expert, &mut out, &mut normalizers);
            contrastive::reference(&rows(), &options, vocab_size, 0, &expert, &mut expected, &mut expected_normalizers);
            assert_close(&out, &expected, CLOSE);
            let rows = rows();
            time(criterion, op, model, 2 * expert.len(), || {
                // It stands in the amateur's place; copying it there is part of the figure.
                out.copy_from_slice(&amateur);
                contrastive::contrastive(&rows, &options, vocab_size, 0, &expert, &mut out, &mut normalizers);
            });
        }
    }
}

/// A search some steps in, all beams live, whose slots rank something other than the logits: as yet `ranked`.
fn begun(backend: &Cpu, vocab_size: usize, own: SlotOptions, ranked: &[f32]) -> Result<Search<Cpu>> {
    let mut search = search(backend, vocab_size, SlotOptions { ranked: 1, ..own })?;
    search.reserve(backend, Stages { bans: true, ranked: true, ..Stages::default() })?;
    search.ranked.copy_from_slice(ranked);
    for _ in 0..LEN / 2 {
        beam_step::beam_step(ranked, &vec![1.0 / LEN as f32; ROWS * LEN], &mut search);
    }
    assert_eq!(search.rows.live().len(), ROWS);
    Ok(search)
}

/// What histories of a dozen tokens ban, and what they penalise; copying what ranks to its place is part of that figure.
fn histories(criterion: &mut Criterion) {
    let Ok(backend) = Cpu::new(1, beamfuse::Dtype::F32) else { return };
    for model in &MODELS {
        let vocab_size = model.vocab_size;
        let logits = values(ROWS * vocab_size, 1);
        let own = SlotOptions { no_repeat_ngram: 2, repetition_penalty: 1.3, ..options() };
        let Ok(mut search) = begun(&backend, vocab_size, own, &logits) else { return };
        // Only from here on: nothing has filled the bans before.
        bytemuck::cast_slice_mut::<_, SlotOptions>(&mut search.options).iter_mut().for_each(|own| own.banned = 1);
        let expected = processors::reference(&logits, &search);
        processors::processors(&mut search);
        processors::repetition_penalty(&logits, &mut search);
        for (r, rules) in expected.iter().enumerate() {
            let words = &search.bans[r * vocab_size.div_ceil(32)..];
            let bans = (0..vocab_size).map(|token| words[token / 32] >> (token % 32) & 1 != 0).collect();
            assert_eq!(rules.bans, Some(bans));
            assert_close(&search.ranked[r * vocab_size..][..vocab_size], rules.ranked.as_deref().unwrap_or(&[]), CLOSE);
        }
        time(criterion, "processors", model, ROWS * vocab_size, || processors::processors(&mut search));
        time(criterion, "repetition_penalty", model, logits.len(), || {
            search.ranked.copy_from_slice(&logits);
            processors::repetition_penalty(&logits, &mut search);
        });
    }
}

/// Two models.
fn ensembles(criterion: &mut Criterion) {
    let Ok(backend) = Cpu::new(1, beamfuse::Dtype::F32) else { return };
    for model in &MODELS {
        let vocab_size = model.vocab_size;
        let (one, other) = (values(ROWS * vocab_size, 1), values(ROWS * vocab_size, 2));
        let weights = std::array::from_fn(|scorer| if scorer < 2 { 0.5 } else { 0.0 });
        let Ok(mut search) = begun(&backend, vocab_size, SlotOptions { ensemble: weights, ..options() }, &one) else {
            return;
        };
        let scorers = [Some(&one), Some(&other)];
        ensemble::ensemble(&scorers, &mut search);
        for (r, mixed) in search.ranked.chunks(vocab_size).enumerate() {
            let part = r * vocab_size..(r + 1) * vocab_size;
            let (one, other) = (&one[part.clone()], &other[part]);
            assert_close(mixed, &ensemble::reference(&[(one, 0.5), (other, 0.5)]), CLOSE);
        }
        time(criterion, "ensemble", model, 2 * one.len(), || ensemble::ensemble(&scorers, &mut search));
    }
}

/// Every row is a sample: from the whole distribution, and from its top.
fn samples(criterion: &mut Criterion) {
    for model in &MODELS {
        let vocab_size = model.vocab_size;
        let (logits, rows) = (values(ROWS * vocab_size, 1), rows());
        let ancestry: Vec<u32> = (0..ROWS * LEN).map(|i| (i / LEN % BEAMS) as u32).collect();
        let whole = SampleOptions { seed_low: 7, temperature: 1.0, top_p: 1.0, ..SampleOptions::default() };
        for (op, sampling) in [
            ("sample_whole", whole),
            ("sample_top_k", SampleOptions { top_k: 50, ..whole }),
            ("sample_top_p", SampleOptions { top_p: 0.9, ..whole }),
        ] {
            let (beam_size, max_len) = (BEAMS as u32, 2 * LEN as u32);
            let own = SlotOptions {
                strategy: Strategy::Sample as u32,
                beam_size,
                max_len,
                sampling,
                ..SlotOptions::default()
            };
            let options = vec![own; SLOTS];
            let step = sample::Step {
                rows: &rows,
                options: &options,
                ancestry: &ancestry,
                logits: &logits,
                ranked: &[],
                bans: &[],
                vocab_size,
                stride: vocab_size,
                beam_size: BEAMS,
                max_len: LEN,
                ids: SpecialIds { eos_id: 0, pad_id: vocab_size as u32 - 1, decoder_start_id: vocab_size as u32 - 1 },
            };
            let none = SamplePick { token: SamplePick::NONE, log_prob: 0.0, ranked_log_prob: 0.0 };
            let (mut picks, mut expected) = (vec![none; ROWS], vec![none; ROWS]);
            sample::sample(&step, &mut picks);
            sample::reference(&step, &mut expected);
            let tokens = |picks: &[SamplePick]| picks.iter().map(|pick| pick.token).collect::<Vec<_>>();
            assert_eq!(tokens(&picks), tokens(&expected));
            time(criterion, op, model, logits.len(), || sample::sample(&step, &mut picks));
        }
    }
}

/// Losses with their gradients, which come in place of the logits; copying these there is part of the figure.
fn losses(criterion: &mut Criterion) {
    for model in &MODELS {
        let vocab_size = model.vocab_size;
        let shape = RowShape { vocab_size, stride: vocab_size };
        let (student, teacher) = (values(ROWS * vocab_size, 1), values(ROWS * vocab_size, 2));
        let targets: Vec<u32> = (0..ROWS).map(|r| (r * 613 % vocab_size) as u32).collect();
        let (mask, weights) = (vec![1; ROWS], vec![1.0; ROWS]);
        let wide = |values: &[f32]| values.iter().map(|v| f64::from(*v)).collect::<Vec<f64>>();
        let (wide_student, wide_weights) = (wide(&student), wide(&weights));
        let (mut gradient, mut loss) = (student.clone(), vec![0.0; ROWS]);

        let nll = |gradient: &mut [f32], loss: &mut [f32]| {
            gradient.copy_from_slice(&student);
            loss::weighted_nll(shape, 0.1, gradient, &targets, &mask, &weights, loss).expect("shapes that fit");
        };
        nll(&mut gradient, &mut loss);
        let expected = loss::reference_nll(vocab_size, 0.1, &wide_student, &targets, &mask, &wide_weights);
        assert_close(&loss, &expected.0.iter().map(|v| *v as f32).collect::<Vec<_>>(), CLOSE);
        time(criterion, "loss_nll", model, student.len(), || nll(&mut gradient, &mut loss));

        let divergence = Divergence { temperature: 2.0, beta: 0.0 };
        let forward = |gradient: &mut [f32], loss: &mut [f32]| {
            gradient.copy_from_slice(&student);
            loss::tempered_divergence(shape, divergence, gradient, &teacher, &mask, &weights, loss)
                .expect("shapes that fit");
        };
        forward(&mut gradient, &mut loss);
        let (wide_teacher, reference) = (wide(&teacher), loss::reference_divergence);
        let expected = reference(vocab_size, divergence, &wide_student, &wide_teacher, &mask, &wide_weights);
        assert_close(&loss, &expected.0.iter().map(|v| *v as f32).collect::<Vec<_>>(), CLOSE);
        time(criterion, "loss_kl", model, 2 * student.len(), || forward(&mut gradient, &mut loss));
    }
}

/// A hundred candidates for each of a thousand sources; no vocabulary is read.
fn risks(criterion: &mut Criterion) {
    let (sources, candidates) = (1000, 100);
    let (log_probs, risks) = (values(sources * candidates, 1), values(sources * candidates, 2));
    let starts: Vec<u32> = (0..=sources).map(|i| (i * candidates) as u32).collect();
    let mut coefficients = vec![0.0; log_probs.len()];
    let found = risk::expected_risk(0.5, &log_probs, &risks, &starts, &mut coefficients).expect("shapes that fit");
    let wide = |values: &[f32]| values[..candidates].iter().map(|v| f64::from(*v)).collect::<Vec<f64>>();
    let expected = risk::reference(0.5, &wide(&log_probs), &wide(&risks));
    assert_close(&[found[0].risk], &[expected.2 as f32], CLOSE);
    time(criterion, "risk", &MODELS[0], log_probs.len(), || {
        let _ = risk::expected_risk(0.5, &log_probs, &risks, &starts, &mut coefficients);
    });
}

criterion_group!(
    benches,
    embeddings,
    layer_norms,
    encoder_attention,
    self_attention,
    cross_attention,
    beam_steps,
    token_stats,
    scheduled_sampling_rows,
    contrasts,
    histories,
    ensembles,
    samples,
    losses,
    risks
);
criterion_main!(benches);
