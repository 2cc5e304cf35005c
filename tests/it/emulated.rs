//! Whole translations by the CUDA kernels on the emulated device, against the CPU's.

use crate::common;
use beamfuse::translator::{MemoryPlan, SearchSize};
use beamfuse::{DecodeOptions, Device, Dtype, EngineOptions, Error, Translation, Translator};

/// How far a score may lie from the CPU's: both sum f32 log-probabilities, in different orders.
const SCORE_TOLERANCE: f32 = 1e-3;

fn translator(device: Device, dtype: Dtype) -> Translator {
    let options = EngineOptions::default().with(|o| {
        o.device = device;
        o.dtype = dtype;
        o.slots = 5;
        o.threads = 1;
        o.workers = 1;
    });
    Translator::open_with(common::demo_model(), &options).expect("the demo model opens")
}

fn sources(count: usize) -> Vec<String> {
    common::lines("own/own.en").into_iter().take(count).collect()
}

fn assert_same(actual: &[Translation], expected: &[Translation]) {
    assert_eq!(actual.len(), expected.len());
    for (actual, expected) in actual.iter().zip(expected) {
        assert_eq!(actual.hypotheses.len(), expected.hypotheses.len(), "{}", expected.source);
        for (actual, expected) in actual.hypotheses.iter().zip(&expected.hypotheses) {
            let (actual, expected, text) = (actual, expected, &expected.text);
            assert_eq!(actual.token_ids, expected.token_ids, "{text}");
            assert_eq!(actual.truncated, expected.truncated, "{text}");
            let pairs = [
                ("score", actual.score, expected.score),
                ("log_prob", actual.log_prob, expected.log_prob),
                ("search_log_prob", actual.search_log_prob, expected.search_log_prob),
                ("coverage_penalty", actual.coverage_penalty, expected.coverage_penalty),
            ];
            for (name, actual, expected) in pairs {
                assert!((actual - expected).abs() <= SCORE_TOLERANCE, "{text}: {name} {actual}, on the CPU {expected}");
            }
            let attention = actual.attention.iter().flatten().flatten().copied();
            let expected_attention = expected.attention.iter().flatten().flatten().copied();
            let (attention, expected): (Vec<f32>, Vec<f32>) = (attention.collect(), expected_attention.collect());
            let close = attention.iter().zip(&expected).all(|(a, e)| (a - e).abs() <= SCORE_TOLERANCE);
            assert!(attention.len() == expected.len() && close, "{text}: attention");
        }
    }
}

#[test]
#[cfg_attr(not(emulated), ignore = "needs a C++ compiler")]
fn a_search_gives_the_tokens_of_the_cpu() {
    let (emulated, cpu) = (translator(Device::Emulated, Dtype::F32), translator(Device::Cpu, Dtype::F32));
    // More lines than slots, and the lengths differ: slots are refilled at different steps.
    let sources = sources(12);
    let options = DecodeOptions::default().with(|o| {
        o.beam_size = 4;
        o.n_best = 4;
    });
    let expected = cpu.translate(&sources, &options).expect("valid options");
    assert_same(&emulated.translate(&sources, &options).expect("valid options"), &expected);

    let sources = &sources[..4];
    let options = options.with(|o| {
        o.coverage_penalty = 0.2;
        o.attention = true;
        o.min_length = 9;
        o.beam_size = 3;
        o.n_best = 3;
    });
    let expected = cpu.translate(sources, &options).expect("valid options");
    assert_same(&emulated.translate(sources, &options).expect("valid options"), &expected);
}

#[test]
#[cfg_attr(not(emulated), ignore = "needs a C++ compiler")]
fn a_sentence_alone_gives_the_bits_of_the_batch_and_of_its_score() {
    let emulated = translator(Device::Emulated, Dtype::F32);
    let sources = sources(6);
    let options = DecodeOptions::default().with(|o| o.beam_size = 3);
    let batch = emulated.translate(&sources, &options).expect("valid options");
    for (source, in_batch) in sources.iter().zip(&batch).skip(4) {
        let alone = emulated.translate(&[source], &options).expect("valid options");
        assert_eq!(alone[0], *in_batch);
    }
    let pairs: Vec<_> = batch.iter().map(|t| (t.source_ids.clone(), t.hypotheses[0].token_ids.clone())).collect();
    for (translation, score) in batch.iter().zip(emulated.score_ids(&pairs)) {
        let score = score.expect("a hypothesis can be scored");
        assert_eq!(score.token_log_probs, translation.hypotheses[0].token_log_probs);
    }
}

#[test]
#[cfg_attr(not(emulated), ignore = "needs a C++ compiler")]
fn samples_are_those_of_the_cpu_and_of_any_batch() {
    let (emulated, cpu) = (translator(Device::Emulated, Dtype::F32), translator(Device::Cpu, Dtype::F32));
    let sources = sources(6);
    let sampled = DecodeOptions::default().with(|o| (o.sample, o.samples, o.seed, o.attention) = (true, 3, 11, true));
    let filtered =
        sampled.clone().with(|o| (o.temperature, o.top_k, o.top_p, o.min_p, o.epsilon) = (0.8, 50, 0.95, 0.01, 0.001));
    for options in [sampled, filtered] {
        let batch = emulated.translate(&sources, &options).expect("valid options");
        assert_same(&batch, &cpu.translate(&sources, &options).expect("valid options"));
        let alone = emulated.translate(&sources[4..5], &options).expect("valid options");
        assert_eq!(alone[0], batch[4]);
        let pairs: Vec<_> = batch
            .iter()
            .flat_map(|t| t.hypotheses.iter().map(|h| (t.source_ids.clone(), h.token_ids.clone())))
            .collect();
        let hypotheses = batch.iter().flat_map(|t| &t.hypotheses);
        for (h, score) in hypotheses.zip(emulated.score_ids(&pairs)) {
            assert_eq!(h.token_log_probs, score.expect("a sample can be scored").token_log_probs);
        }
    }
}

#[test]
#[cfg_attr(not(emulated), ignore = "needs a C++ compiler")]
fn groups_of_beams_are_those_of_the_cpu() {
    let (emulated, cpu) = (translator(Device::Emulated, Dtype::F32), translator(Device::Cpu, Dtype::F32));
    let sources = sources(4);
    let options = DecodeOptions::default().with(|o| {
        o.n_best = 4;
        o.beam_groups = 2;
    });
    let expected = cpu.translate(&sources, &options).expect("valid options");
    assert_same(&emulated.translate(&sources, &options).expect("valid options"), &expected);
    let plain = cpu.translate(&sources, &options.with(|o| o.beam_groups = 1)).expect("valid options");
    assert!(plain != expected, "groups change nothing");
}

#[test]
#[cfg_attr(not(emulated), ignore = "needs a C++ compiler")]
fn half_precision_stays_close() {
    let sources = sources(3);
    let options = DecodeOptions::default().with(|o| o.beam_size = 2);
    let cpu = translator(Device::Cpu, Dtype::F32);
    let expected = cpu.translate(&sources, &options).expect("valid options");
    for (dtype, tolerance) in [(Dtype::F16, 0.02), (Dtype::Bf16, 0.15)] {
        let half = translator(Device::Emulated, dtype);
        let pairs: Vec<_> =
            expected.iter().map(|t| (t.source_ids.clone(), t.hypotheses[0].token_ids.clone())).collect();
        for (translation, score) in expected.iter().zip(half.score_ids(&pairs)) {
            let (score, expected) = (score.expect("it can be scored"), &translation.hypotheses[0]);
            for (actual, expected) in score.token_log_probs.iter().zip(&expected.token_log_probs) {
                assert!((actual - expected).abs() <= tolerance, "{dtype:?}: {actual}, in f32 {expected}");
            }
            assert_ne!(score.token_log_probs, expected.token_log_probs, "{dtype:?} was not used");
        }
    }
}

/// All that the network computes has the CPU's bits, if that fuses multiply-adds; log-probabilities sum exponentials in another order.
#[test]
#[cfg_attr(not(emulated), ignore = "needs a C++ compiler")]
fn i8_gives_the_tokens_of_the_cpu_in_any_batch() {
    let sources = sources(60);
    let options = DecodeOptions::default();
    let (emulated, cpu) = (translator(Device::Emulated, Dtype::I8), translator(Device::Cpu, Dtype::I8));
    let expected = cpu.translate(&sources, &options).expect("valid options");
    let actual = emulated.translate(&sources, &options).expect("valid options");
    let best = |translation: &Translation| translation.hypotheses[0].clone();
    let pairs: Vec<_> = actual.iter().zip(&expected).map(|(actual, expected)| (best(actual), best(expected))).collect();
    let differing: Vec<_> = pairs.iter().filter(|(actual, expected)| actual.token_ids != expected.token_ids).collect();
    let scores: Vec<(f32, f32)> = differing.iter().map(|(actual, expected)| (actual.score, expected.score)).collect();
    assert!(differing.len() as f64 <= 0.02 * sources.len() as f64, "scores here and on the CPU: {scores:?}");
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("fma") {
        assert!(differing.is_empty(), "scores here and on the CPU: {scores:?}");
        let farthest = pairs.iter().map(|(actual, expected)| (actual.score - expected.score).abs()).fold(0.0, f32::max);
        assert!(farthest < 1e-5, "{farthest}");
    }
    for (source, translation) in sources.iter().zip(&actual).step_by(20) {
        assert_eq!(&emulated.translate(&[source], &options).expect("valid options")[0], translation);
    }
    let f32 = translator(Device::Emulated, Dtype::F32).translate(&sources[..5], &options).expect("valid options");
    let is_other = |(f32, i8): (&Translation, &Translation)| f32.hypotheses[0].score != i8.hypotheses[0].score;
    assert!(f32.iter().zip(&actual).all(is_other), "i8 was not used");
}

#[test]
#[cfg_attr(not(emulated), ignore = "needs a C++ compiler")]
fn a_step_is_one_launch_of_few_nodes_without_waiting_or_allocating() {
    // 8 per layer (queries, keys and values; attention; output and norm: 3, and 3 more for the source; 2 for the feed-forward part),
    // embedding, logits, beam step.
    steps_have_so_many_nodes(Dtype::F32, 51);
    // One more for each product: its input is quantised.
    steps_have_so_many_nodes(Dtype::I8, 51 + 6 * 6 + 1);
}

fn steps_have_so_many_nodes(dtype: Dtype, nodes: u64) {
    let model = crate::common::tiny::Tiny::deep(6, "swish");
    let options = EngineOptions::default().with(|o| {
        o.device = Device::Emulated;
        o.dtype = dtype;
        o.slots = 3;
    });
    let emulated = Translator::open_with(model.dir(), &options).expect("the tiny model opens");
    let options = DecodeOptions::default().with(|o| o.beam_size = 2);
    let sources = ["A dog.", "Two cats run.", "A man.", "A red ball.", "Snow."];
    let first = emulated.translate(&sources, &options).expect("valid options");
    let before = emulated.counters().expect("a device counts");
    let second = emulated.translate(&sources, &options).expect("valid options");
    assert_eq!(first, second);
    let done = emulated.counters().expect("a device counts").since(&before);
    assert!(done.steps >= 16 && done.replays > 0, "{done:?}");
    assert_eq!((done.waits, done.allocations), (0, 0), "{done:?}");
    assert_eq!(done.step_nodes, nodes * done.steps, "{done:?}");
    // A step that is not replayed was not seen twice with as many rows.
    assert!(done.steps - done.replays <= 3, "{done:?}");
}

/// Lines whose translation in `dtype` has other tokens than in f32, with how much worse it scores in f32.
fn differing_lines(dtype: Dtype, sources: &[String]) -> Vec<(String, f32)> {
    let options = DecodeOptions::default();
    let cpu = translator(Device::Cpu, Dtype::F32);
    let expected = cpu.translate(sources, &options).expect("valid options");
    let actual = translator(Device::Emulated, dtype).translate(sources, &options).expect("valid options");
    let best = |translation: &Translation| translation.hypotheses[0].token_ids.clone();
    let pairs: Vec<_> =
        actual.iter().zip(&expected).filter(|(actual, expected)| best(actual) != best(expected)).collect();
    let score = |translation: &Translation| {
        let ids = best(translation);
        let score =
            cpu.score_ids(&[(translation.source_ids.clone(), ids.clone())]).remove(0).expect("it can be scored");
        score.log_prob / translation.hypotheses[0].length_penalty
    };
    pairs.iter().map(|(actual, expected)| (expected.source.clone(), score(expected) - score(actual))).collect()
}

/// The scores of lines that differ lie less than this apart in the median.
const MOST_APART: f32 = 0.05;

/// Of 60 lines at least this share has the tokens of f32. In f16 the scores of the others are close to f32's own; in bf16 they are only no
/// worse: now and then the search finds another translation that f32 itself prefers by far.
fn assert_agreement(dtype: Dtype, least: f64) {
    let sources = sources(60);
    let mut differing = differing_lines(dtype, &sources);
    let apart = |difference: f32| if dtype == Dtype::F16 { difference.abs() } else { difference };
    differing.sort_by(|one, other| apart(one.1).total_cmp(&apart(other.1)));
    let agreement = 1.0 - differing.len() as f64 / sources.len() as f64;
    println!("{dtype:?}: {:.1}% of {} lines as in f32; the others: {differing:#?}", 100.0 * agreement, sources.len());
    assert!(sources.len() == 60 && agreement >= least, "{dtype:?}: {agreement}, {differing:#?}");
    let median = differing.get(differing.len() / 2).map_or(0.0, |(_, difference)| apart(*difference));
    assert!(median < MOST_APART, "{dtype:?}: {differing:#?}");
}

#[test]
#[cfg_attr(not(emulated), ignore = "needs a C++ compiler")]
fn f16_gives_the_tokens_of_f32_on_98_of_100_lines() {
    assert_agreement(Dtype::F16, 0.98);
}

#[test]
#[cfg_attr(not(emulated), ignore = "needs a C++ compiler")]
fn bf16_gives_the_tokens_of_f32_on_90_of_100_lines() {
    assert_agreement(Dtype::Bf16, 0.90);
}

#[test]
#[cfg_attr(not(emulated), ignore = "needs a C++ compiler")]
fn memory_and_the_number_of_devices_change_no_result() {
    let sources = sources(5);
    let options = DecodeOptions::default().with(|o| o.beam_size = 2);
    let expected = translator(Device::Emulated, Dtype::F32).translate(&sources, &options).expect("valid options");
    let with = |device: Device, memory_budget: Option<u64>| {
        let engine = EngineOptions::default().with(|o| {
            o.device = device;
            o.memory_budget = memory_budget;
            o.slots = 4;
        });
        Translator::open_with(common::demo_model(), &engine)
    };
    let replicas = with("emulated:2".parse().expect("a device"), None).expect("the demo model opens");
    assert_eq!(replicas.translate(&sources, &options).expect("valid options"), expected);

    let size = SearchSize { slots: 2, beam_size: 2, length: 64 };
    let plan = MemoryPlan::new(&[replicas.config()], Device::Emulated, Dtype::F32, size).expect("a type of the device");
    let tight = with(Device::Emulated, Some(plan.total())).expect("the model fits");
    assert_eq!(tight.translate(&sources, &options).expect("there is room for two"), expected);
    assert!(tight.counters().is_some_and(|counters| counters.live_bytes <= plan.total()));

    let kind = |outcome: Result<Vec<Translation>, Error>| outcome.expect_err("there is no room").kind();
    let crowded = with(Device::Emulated, Some(plan.weights + 1000)).expect("the model fits");
    assert_eq!(kind(crowded.translate(&sources, &options)), "out_of_memory");
    for device in [Device::Emulated, Device::Cpu] {
        let error = with(device, Some(plan.weights / 2)).map(drop).expect_err("not even the model fits");
        assert_eq!(error.kind(), "out_of_memory", "{error}");
    }
    // A further model's weights count before anything is loaded.
    for device in [Device::Emulated, Device::Cpu] {
        let budget = plan.weights + plan.weights / 2;
        let engine = EngineOptions::default().with(|o| {
            o.device = device;
            o.memory_budget = Some(budget);
            o.ensemble = vec![common::demo_model()];
        });
        let error = Translator::open_with(common::demo_model(), &engine).map(drop).expect_err("only one of two fits");
        let (operation, needed) = ("load the model", 2 * plan.weights);
        let is_that = |error: &Error| {
            matches!(error, Error::OutOfMemory { operation: o, needed: n, available, .. }
            if *o == operation && (*n == needed || device == Device::Cpu) && *available == Some(budget))
        };
        assert!(is_that(&error), "{error}");
    }
}
