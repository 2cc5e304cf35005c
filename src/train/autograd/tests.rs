use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor, Var};

use super::*;
use crate::backend::{Device as _, Dtype, Row, SessionShape, SlotOptions, TokenPlace};
use crate::check::{Tolerance, assert_close, assert_same_bits};
use crate::cpu::Cpu;
use crate::model::{Seq2Seq, Transformer};
use crate::train::ops::weighted_nll;

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// Sources, targets of the recorded scores.
fn recorded_pairs(lines: usize) -> Vec<(Vec<u32>, Vec<u32>)> {
    let text = std::fs::read_to_string(path("tests/data/own/score.jsonl")).expect("the test data is there");
    let tokenizer = crate::text::Tokenizer::open(&path("models/m30k-en-de")).expect("the demo model is there");
    let pair = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let ids = line["token_ids"].as_array().expect("ids").iter().map(|id| id.as_u64().expect("an id") as u32);
        (tokenizer.encode_source(line["source"].as_str().expect("a source")), ids.collect())
    };
    text.lines().take(lines).map(pair).collect()
}

fn batch_of(pairs: &[(Vec<u32>, Vec<u32>)], start_id: u32) -> Batch {
    let groups = pairs.iter().enumerate().map(|(i, (s, t))| (i as u32, s.as_slice(), std::slice::from_ref(t)));
    Batch::new(groups, start_id)
}

/// The CPU backend's logits of every target position.
fn backend_logits(dir: &Path, pairs: &[(Vec<u32>, Vec<u32>)]) -> Vec<f32> {
    let backend = Cpu::new(1, Dtype::F32).expect("a CPU");
    let model = Transformer::open(&backend, dir).expect("a model");
    let rows: usize = pairs.iter().map(|(_, t)| t.len()).sum();
    let longest = |len: fn(&(Vec<u32>, Vec<u32>)) -> usize| pairs.iter().map(len).max().expect("pairs");
    let shape = SessionShape {
        slots: pairs.len(),
        beam_size: 1,
        max_len: longest(|p| p.1.len()),
        max_src_len: longest(|p| p.0.len()),
        rows,
        keep_attention: false,
    };
    let mut state = Seq2Seq::<Cpu>::open(&model, &backend, shape).expect("memory");
    let sources: Vec<(u32, &[u32])> = pairs.iter().enumerate().map(|(i, p)| (i as u32, p.0.as_slice())).collect();
    model.encode(&backend, &mut state, &sources).expect("encoded");
    let options: Vec<SlotOptions> =
        pairs.iter().map(|(s, _)| SlotOptions { src_len: s.len() as u32, ..bytemuck::Zeroable::zeroed() }).collect();
    let options: Vec<u32> = bytemuck::cast_slice(&options).to_vec();
    let start = Seq2Seq::<Cpu>::ids(&model).decoder_start_id;
    let mut list = Vec::new();
    for (slot, (_, target)) in pairs.iter().enumerate() {
        for (position, token) in std::iter::once(start).chain(target.iter().copied()).take(target.len()).enumerate() {
            list.push(Row { slot: slot as u32, beam: 0, position: position as u32, token });
        }
    }
    let mut rows = crate::backend::Rows::with_capacity(&backend, rows).expect("memory");
    rows.set(&backend, &list).expect("set");
    let ancestry = vec![0; shape.slots * shape.max_len];
    backend.run(|| model.step(&backend, &mut state, &rows, &ancestry, &options)).expect("a step");
    Seq2Seq::<Cpu>::logits(&model, &state).clone()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().and_then(|t| t.to_vec1()).expect("values")
}

#[test]
fn logits_equal_the_cpu_backends() {
    let dir = path("models/m30k-en-de");
    let model = AutogradModel::open(&dir).expect("the demo model");
    let pairs = recorded_pairs(24);
    let logits = model.logits(&batch_of(&pairs, model.config().ids.decoder_start_id), None).expect("logits");
    let expected = backend_logits(&dir, &pairs);
    assert_close(&values(&logits), &expected, Tolerance::new(1e-4, 0.0));
}

/// Every architecture that the model code knows, in small, below tests/data.
const VARIANTS: [&str; 16] = [
    "variants/different-stacks",
    "variants/gelu-bf16",
    "variants/gelu-new",
    "variants/odd-width",
    "variants/own-positions",
    "variants/relu-unscaled",
    "variants/separate-untied",
    "variants/swish-scaled",
    "variants/untied",
    "families/nllb-legacy",
    "families/mbart-en-ro",
    "families/plbart",
    "families/fsmt",
    "families/flan-t5",
    "families/umt5",
    "families/t5-silu",
];

fn variant(name: &str, dtype: DType) -> AutogradModel {
    let dir = path("tests/data").join(name);
    let config = ModelConfig::open(&dir).expect("a configuration");
    AutogradModel::new(config, &Weights::open(&dir).expect("weights"), dtype).expect("a model")
}

/// Two sources, the first with two targets, in ids that every variant knows.
fn small_groups() -> Vec<(Vec<u32>, Vec<Vec<u32>>)> {
    vec![(vec![5, 9, 3, 0], vec![vec![7, 4, 11, 0], vec![7, 6, 0]]), (vec![8, 1, 0], vec![vec![3, 10, 9, 5, 0]])]
}

fn small_batch(model: &AutogradModel) -> Batch {
    let groups = small_groups();
    let groups = groups.iter().enumerate().map(|(i, (s, t))| (i as u32, s.as_slice(), t.as_slice()));
    Batch::new(groups, model.config().ids.decoder_start_id)
}

#[test]
fn logits_of_every_architecture_equal_the_cpu_backends() {
    for name in VARIANTS {
        let model = variant(name, DType::F32);
        let pairs: Vec<(Vec<u32>, Vec<u32>)> =
            small_groups().into_iter().flat_map(|(s, t)| t.into_iter().map(move |t| (s.clone(), t))).collect();
        let expected = backend_logits(&path("tests/data").join(name), &pairs);
        // Targets that share a source see what they would see alone.
        for batch in [small_batch(&model), batch_of(&pairs, model.config().ids.decoder_start_id)] {
            let logits = model.logits(&batch, None).expect("logits");
            // The families' weights are large, and so are their logits.
            assert_close(&values(&logits), &expected, Tolerance::new(1e-4, 2e-5));
        }
        assert_same_bits(
            &values(&model.logits_only(&small_batch(&model)).expect("logits")),
            &values(&model.logits(&small_batch(&model), None).expect("logits")),
        );
    }
}

const RATES: Rates = Rates { sublayers: 0.3, attention: 0.2, activation: 0.25 };
const DROPOUT: Dropout = Dropout { seed: 5, update: 3, rates: RATES };

fn loss(model: &AutogradModel, dropout: Option<Dropout>) -> Tensor {
    let batch = small_batch(model);
    let weights: Vec<f32> = (0..batch.targets.len()).map(|r| [0.25, -0.125, 0.5][r % 3]).collect();
    let logits = model.logits(&batch, dropout).expect("logits");
    let mask = vec![1; weights.len()];
    weighted_nll(&logits, &batch.targets.ids, &mask, &weights, 0.1).and_then(|l| l.sum_all()).expect("a loss")
}

fn gradients(model: &AutogradModel, dropout: Option<Dropout>) -> Gradients {
    let mut store = loss(model, dropout).backward().expect("gradients");
    model.parameters().gradients(&mut store).expect("every parameter has one")
}

/// Whether a parameter's gradient is zero whatever the data: a key's bias shifts all scores of a query alike.
fn has_no_effect(name: &str) -> bool {
    name.ends_with("k_proj.bias")
}

#[test]
fn every_parameter_has_a_gradient() {
    for name in VARIANTS {
        let model = variant(name, DType::F64);
        let gradients = gradients(&model, Some(DROPOUT));
        let all = gradients.iter().map(|g| g.sqr().and_then(|g| g.sum_all()?.to_scalar::<f64>()).expect("a number"));
        // What rounding leaves of a gradient that is zero is small beside the others.
        let nothing = 1e-12 * all.sum::<f64>().sqrt().max(1.0);
        for (parameter, gradient) in model.parameters().iter().zip(gradients.iter()) {
            let flat: Vec<f64> = gradient.flatten_all().and_then(|g| g.to_vec1()).expect("values");
            let mut rest = flat.as_slice();
            for (part, shape) in parameter.parts() {
                let (own, after) = rest.split_at(shape.iter().product());
                let norm = own.iter().map(|g| g * g).sum::<f64>().sqrt();
                match has_no_effect(part) {
                    true => assert!(norm < nothing, "{name}: {part}: {norm}"),
                    false => assert!(norm > 1e-6, "{name}: {part}: {norm}"),
                }
                rest = after;
            }
        }
    }
}

#[test]
fn gradients_equal_finite_differences() {
    const STEP: f64 = 1e-7;
    for name in VARIANTS {
        let model = variant(name, DType::F64);
        for dropout in [None, Some(DROPOUT)] {
            let gradients = gradients(&model, dropout);
            for (i, (parameter, gradient)) in model.parameters().iter().zip(gradients.iter()).enumerate() {
                let tensor = parameter.tensor();
                // A direction that treats no two elements alike; the padding row's gradient leaves out that it is embedded.
                let mut direction: Vec<f64> =
                    (0..tensor.elem_count()).map(|j| ((j * 7919 + i) % 13) as f64 / 6.0 - 1.0).collect();
                direction[parameter.frozen()].fill(0.0);
                let direction = Tensor::from_vec(direction, tensor.dims(), &Device::Cpu).expect("a tensor");
                let slope: f64 = (&direction * gradient).and_then(|p| p.sum_all()?.to_scalar()).expect("a number");
                let var = Var::from_tensor(tensor).expect("the same variable");
                let before = tensor.copy().expect("a copy");
                let at = |step: f64| {
                    let moved = (&before + (&direction * step).expect("scaled")).expect("moved");
                    var.set(&moved).expect("set");
                    loss(&model, dropout).to_scalar::<f64>().expect("a number")
                };
                let expected = (at(STEP) - at(-STEP)) / (2.0 * STEP);
                at(0.0);
                let difference = (slope - expected).abs();
                assert!(
                    difference <= 1e-6 * (1.0 + expected.abs()),
                    "{name} {dropout:?} {}: expected {expected}, got {slope}",
                    parameter.name()
                );
            }
        }
    }
}

#[test]
fn the_padding_row_stays_out_of_the_embedding_gradient() {
    let model = variant("variants/untied", DType::F64);
    let gradients = gradients(&model, None);
    let (table, gradient) = model.parameters().iter().zip(gradients.iter()).next().expect("a table");
    assert_eq!(table.name(), "model.shared.weight");
    let flat: Vec<f64> = gradient.flatten_all().and_then(|g| g.to_vec1()).expect("values");
    // The decoder's start token is padding: its embedding is read and gets nothing.
    assert!(!table.frozen().is_empty() && flat[table.frozen()].iter().all(|g| *g == 0.0));
    assert!(flat.iter().any(|g| *g != 0.0));
}

#[test]
fn dropout_depends_on_the_token_alone_and_has_its_rate() {
    let width = 61;
    let places: Vec<TokenPlace> = (0..400).map(|r| TokenPlace { sentence: r / 20, position: r % 20 }).collect();
    let drop = |places: &[TokenPlace], dropout: Dropout, site: u32| {
        let ones = Tensor::ones((places.len(), width), DType::F32, &Device::Cpu).expect("ones");
        values(&ones.apply_op1(ops::Drop { dropout, rate: 0.3, site, places: places.into() }).expect("dropped"))
    };
    let all = drop(&places, DROPOUT, 1);
    let zeros = all.iter().filter(|x| **x == 0.0).count() as f64 / all.len() as f64;
    // 24,400 draws: one standard deviation is 0.003.
    assert!((zeros - 0.3).abs() < 0.012, "{zeros}");
    assert!(all.iter().all(|x| *x == 0.0 || (*x - 1.0 / 0.7).abs() < 1e-6));
    let one_by_one: Vec<f32> = places.iter().flat_map(|place| drop(&[*place], DROPOUT, 1)).collect();
    assert_same_bits(&one_by_one, &all);
    assert_ne!(drop(&places, DROPOUT, 2), all);
    assert_ne!(drop(&places, Dropout { update: 4, ..DROPOUT }, 1), all);
    assert_ne!(drop(&places, Dropout { seed: 6, ..DROPOUT }, 1), all);
    let columns = |row: usize| &all[row * width..(row + 1) * width];
    assert_ne!(columns(0), columns(1));
    assert_ne!(columns(0), columns(20));
}

#[test]
fn each_rate_drops_at_its_own_places() {
    let model = variant("variants/swish-scaled", DType::F32);
    let value =
        |rates| loss(&model, Some(Dropout { rates, ..DROPOUT })).to_scalar::<f32>().expect("a number").to_bits();
    let whole = loss(&model, None).to_scalar::<f32>().expect("a number").to_bits();
    assert_eq!(value(Rates::default()), whole);
    let alone = [
        Rates { sublayers: 0.3, ..Rates::default() },
        Rates { attention: 0.3, ..Rates::default() },
        Rates { activation: 0.3, ..Rates::default() },
    ];
    let values: Vec<u32> = alone.map(value).into_iter().chain([whole, value(RATES)]).collect();
    assert!((1..values.len()).all(|i| !values[..i].contains(&values[i])), "{values:?}");
}

#[test]
fn dropped_weights_of_attention_depend_on_their_token_alone() {
    let places: Vec<TokenPlace> = (0..60).map(|r| TokenPlace { sentence: r / 20, position: r % 20 }).collect();
    let weights = |places: &[TokenPlace], row: usize, head: usize, keys: usize| {
        let drop = ops::Drop { dropout: DROPOUT, rate: 0.3, site: 1, places: places.into() };
        let mut weights = vec![1.0f32; keys];
        drop.weights(row, head, &mut weights);
        weights
    };
    let all: Vec<f32> = (0..240).flat_map(|i| weights(&places, i / 4, i % 4, 97)).collect();
    let zeros = all.iter().filter(|x| **x == 0.0).count() as f64 / all.len() as f64;
    // 23,280 draws: one standard deviation is 0.003.
    assert!((zeros - 0.3).abs() < 0.012, "{zeros}");
    // A key more, or other rows beside it, change nothing.
    assert_same_bits(&weights(&places, 33, 2, 50)[..49], &weights(&places[33..34], 0, 2, 49));
    assert_ne!(weights(&places, 33, 2, 50), weights(&places, 33, 1, 50));
    assert_ne!(weights(&places, 33, 2, 50), weights(&places, 34, 2, 50));
}

#[test]
fn a_copy_has_the_same_values_in_variables_of_its_own() {
    let model = variant("variants/separate-untied", DType::F32);
    let mut copy = model.copy().expect("a copy");
    let batch = small_batch(&model);
    let logits = |model: &AutogradModel| values(&model.logits_only(&batch).expect("logits"));
    let before = logits(&model);
    assert_same_bits(&logits(&copy), &before);
    let doubled = copy.parameters().values().expect("values").into_iter().map(|v| v.iter().map(|x| x * 2.0).collect());
    copy.parameters_mut().set_values(doubled.collect()).expect("set");
    assert_ne!(logits(&copy), before);
    assert_same_bits(&logits(&model), &before);
    let tensors = model.parameters().tensors().expect("tensors");
    let dir = path("tests/data/variants/separate-untied");
    let weights = Weights::open(&dir).expect("weights");
    for (name, shape) in weights.tensors() {
        assert_same_bits(&tensors[name].1, &weights.get(name, shape).expect("a tensor"));
    }
}

#[test]
fn a_batch_that_does_not_fit_is_refused() {
    let model = variant("variants/untied", DType::F32);
    let refusal = |source: Vec<u32>, target: Vec<u32>| {
        model.logits(&batch_of(&[(source, target)], 2), None).map(drop).unwrap_err().to_string()
    };
    assert_eq!(refusal(vec![3; 41], vec![0]), "encode source: expected at most 40 tokens, got 41");
    assert_eq!(refusal(vec![0], vec![3; 41]), "encode target: expected at most 40 tokens, got 41");
    assert_eq!(refusal(vec![95], vec![0]), "train: expected token ids below 95, got 95");
    assert_eq!(
        model.logits(&batch_of(&[], 2), None).map(drop).unwrap_err().to_string(),
        "train: expected at least one sentence, got none"
    );
}
