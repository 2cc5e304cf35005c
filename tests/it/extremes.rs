//! Models whose logits are finite, but only just.

use std::process::Command;

use crate::common::tiny::{Tensor, Tiny, VOCAB};
use beamfuse::{DecodeOptions, Device, EngineOptions, Translator};

/// A tiny model whose logits are `bias`, but for what gets lost in its rounding.
fn model(bias: &[f32]) -> Tiny {
    let mut tiny = Tiny::new();
    tiny.tensors.insert("final_logits_bias".into(), Tensor::f32(&[1, VOCAB], bias));
    tiny.write_weights();
    tiny
}

fn open(tiny: &Tiny, device: Device) -> Translator {
    Translator::open_with(tiny.dir(), &EngineOptions::default().with(|o| o.device = device)).expect("it opens")
}

fn devices() -> Vec<Device> {
    let emulated = beamfuse::cuda::open_emulated().is_ok().then_some(Device::Emulated);
    [Device::Cpu].into_iter().chain(emulated).collect()
}

#[test]
fn the_least_logits_give_finite_scores() {
    let tiny = model(&[f32::MIN; VOCAB]);
    for device in devices() {
        let translator = open(&tiny, device);
        let scores = translator.score_ids(&[(vec![5, 6, 0], vec![7, 8, 0])]);
        let score = scores[0].as_ref().expect("a score");
        // Every token is as probable as any other.
        for log_prob in &score.token_log_probs {
            assert!((log_prob + (VOCAB as f32).ln()).abs() < 1e-4, "{:?}", score.token_log_probs);
        }
        let options = DecodeOptions::default().with(|o| o.max_length = beamfuse::MaxLength::Absolute(4));
        let outcomes = translator.translate_ids(&[vec![5, 6, 0]], &options).expect("options that are allowed");
        let best = &outcomes[0].as_ref().expect("a translation")[0];
        assert!(best.score.is_finite() && best.log_prob < -8.0, "{best:?}");
    }
}

#[test]
fn a_score_that_is_not_finite_is_an_error_that_names_the_token() {
    // Two tokens of log-probability -3.4e38 are more than f32 holds.
    let mut bias = [0.0; VOCAB];
    bias[7..9].fill(f32::MIN);
    let tiny = model(&bias);
    for device in devices() {
        let translator = open(&tiny, device);
        let scores = translator.score_ids(&[(vec![5, 6, 0], vec![9, 7, 8, 0]), (vec![5, 6, 0], vec![9, 7, 0])]);
        let error = scores[0].as_ref().expect_err("no score");
        assert_eq!(error.kind(), "non_finite_score");
        assert_eq!(error.to_string(), "score: expected a finite score, got -inf at token 3 (id 8)");
        assert!(scores[1].as_ref().is_ok_and(|score| score.log_prob.is_finite()), "{:?}", scores[1]);
    }
}

#[test]
fn no_line_of_json_says_null_for_a_score() {
    let mut bias = [0.0; VOCAB];
    bias.fill(f32::MIN);
    bias[VOCAB - 1] = f32::MAX;
    let tiny = model(&bias);
    let mut command = Command::new(env!("CARGO_BIN_EXE_beamfuse"));
    let arguments = ["translate", "--format", "jsonl", "--device", "cpu", "A dog runs.", "--model"];
    let output = command.args(arguments).arg(tiny.dir()).output().expect("it starts");
    let out = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(!out.contains("null"), "{out}");
    assert!(out.contains("\"score\":") || out.contains("non_finite"), "{out}");
}
