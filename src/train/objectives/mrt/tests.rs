use std::path::{Path, PathBuf};

use super::*;
use crate::text::SentenceDefaults;
use crate::train::autograd::Gradients;
use crate::train::data::Pair;

fn dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/m30k-en-de")
}

fn pairs(model_dir: &Path) -> Vec<Pair> {
    let tokenizer = crate::text::Tokenizer::open(model_dir).expect("a tokenizer");
    let pair = |source: &str, target: &str| Pair {
        source: tokenizer.encode_source(source),
        target: tokenizer.encode_target(target),
        text: target.to_owned(),
        source_text: source.to_owned(),
        line: 1,
    };
    vec![
        pair("A man is riding a bike.", "Ein Mann fährt mit dem Rad."),
        pair("Two dogs run through the snow.", "Zwei Hunde rennen im Schnee."),
    ]
}

fn options(samples: usize) -> Options {
    Options {
        samples,
        draw: Draw::Beam,
        reward: Reward::Both,
        estimator: Estimator::Risk { alpha: 0.5, with_reference: true },
        mix: 0.0,
        chunk_tokens: 1000,
    }
}

fn update<'a>(model: &'a AutogradModel, pairs: &[Pair]) -> Update<'a> {
    let tokens = pairs.iter().map(|p| p.target.len()).sum();
    let dropout = crate::train::autograd::Rates::of_sublayers(0.1);
    Update { model, number: 1, seed: 5, dropout, smoothing: 0.1, tokens, sentences: pairs.len() }
}

fn examples(pairs: &[Pair]) -> Vec<Example<'_>> {
    pairs.iter().zip(0..).map(|(pair, number)| Example { number, pair }).collect()
}

fn run(options: Options, model: &AutogradModel, pairs: &[Pair]) -> Sum {
    let mut objective =
        MinimumRisk::new(options, Rollouts::open(&dir(), &SentenceDefaults::default()).expect("a session"));
    let mut sum = Sum::default();
    objective.gradients(&update(model, pairs), &examples(pairs), &mut sum).expect("gradients");
    sum
}

fn flat(gradients: &Gradients) -> Vec<f32> {
    gradients.iter().flat_map(|g| g.flatten_all().and_then(|g| g.to_vec1::<f32>()).expect("values")).collect()
}

fn figure(sum: &Sum, name: &str) -> f64 {
    let (_, value, weight) = sum.figures.iter().find(|(known, ..)| *known == name).expect("a figure");
    value / weight
}

/// The expected risk over fixed candidates, divided by alpha: what the gradient should be the gradient of.
fn objective_value(model: &AutogradModel, groups: &Groups<'_>, alpha: f32) -> f64 {
    let log_probs = groups.log_probs(model, 1000, &mut Sum::default()).expect("log-probabilities");
    let mut total = 0.0;
    for (candidates, log_probs) in groups.candidates.iter().zip(log_probs) {
        let weights: Vec<f64> = log_probs.iter().map(|l| (f64::from(alpha) * f64::from(*l)).exp()).collect();
        let sum: f64 = weights.iter().sum();
        let risk: f64 = weights.iter().zip(candidates).map(|(w, c)| w / sum * f64::from(c.risk)).sum();
        total += risk / f64::from(alpha) / groups.candidates.len() as f64;
    }
    total
}

#[test]
fn the_gradient_lowers_the_expected_risk_as_it_says() {
    let mut model = AutogradModel::open(&dir()).expect("a model");
    let pairs = pairs(&dir());
    let sum = run(options(4), &model, &pairs);
    let gradient = flat(sum.gradients.as_ref().expect("gradients"));
    let square: f64 = gradient.iter().map(|g| f64::from(*g).powi(2)).sum();
    let examples = examples(&pairs);
    let mut objective =
        MinimumRisk::new(options(4), Rollouts::open(&dir(), &SentenceDefaults::default()).expect("a session"));
    objective.rollouts.follow(&model, 1).expect("followed");
    let drawn = objective.rollouts.draw(&examples, 4, Draw::Beam, 0).expect("drawn");
    let groups = Groups { examples: &examples, candidates: objective.candidates(&examples, drawn) };
    let before = objective_value(&model, &groups, 0.5);
    assert!((sum.loss - before).abs() < 1e-5 * before, "{} {before}", sum.loss);
    // A step against the gradient, so small that the objective falls by step times the gradient's square.
    let step = 2e-3 / square.sqrt();
    let mut rest = gradient.as_slice();
    let mut values = model.parameters().values().expect("values");
    for x in values.iter_mut().flatten() {
        *x -= (step * f64::from(rest[0])) as f32;
        rest = &rest[1..];
    }
    model.parameters_mut().set_values(values).expect("set");
    let fall = before - objective_value(&model, &groups, 0.5);
    assert!((fall / (step * square) - 1.0).abs() < 0.1, "{fall} {}", step * square);
}

#[test]
fn chunks_bound_the_memory_and_change_nothing() {
    let model = AutogradModel::open(&dir()).expect("a model");
    let pairs = pairs(&dir());
    let whole = flat(run(options(4), &model, &pairs).gradients.as_ref().expect("gradients"));
    let parts =
        flat(run(Options { chunk_tokens: 9, ..options(4) }, &model, &pairs).gradients.as_ref().expect("gradients"));
    let largest = whole.iter().fold(0f32, |a, b| a.max(b.abs()));
    let off = whole.iter().zip(&parts).fold(0f32, |a, (x, y)| a.max((x - y).abs()));
    assert!(off <= 1e-4 * largest, "{off} of {largest}");
    let examples = examples(&pairs);
    let candidates: Vec<Vec<Candidate>> = vec![
        vec![Candidate { ids: vec![1; 7], risk: 0.0, count: 1 }; 3],
        vec![Candidate { ids: vec![1; 30], risk: 0.0, count: 1 }; 2],
    ];
    let groups = Groups { examples: &examples, candidates };
    let chunks = groups.chunks(15, |_| true);
    assert_eq!(chunks, [vec![(0, 0), (0, 1)], vec![(0, 2)], vec![(1, 0)], vec![(1, 1)]]);
}

#[test]
fn equal_rewards_leave_nothing_to_learn() {
    let model = AutogradModel::open(&dir()).expect("a model");
    let pairs = pairs(&dir());
    let sum = run(Options { reward: Reward::Constant, ..options(4) }, &model, &pairs);
    assert!(sum.gradients.is_none());
    assert_eq!((figure(&sum, "skipped"), figure(&sum, "risk_spread")), (1.0, 0.0));
    let sum = run(Options { reward: Reward::Constant, mix: 0.3, ..options(4) }, &model, &pairs);
    assert!(flat(sum.gradients.as_ref().expect("those of the likelihood")).iter().any(|g| *g != 0.0));
}

#[test]
fn coefficients_of_a_source_sum_to_zero_and_count_the_sources() {
    let model = AutogradModel::open(&dir()).expect("a model");
    let pairs = pairs(&dir());
    let examples = examples(&pairs);
    let mut objective =
        MinimumRisk::new(options(6), Rollouts::open(&dir(), &SentenceDefaults::default()).expect("a session"));
    objective.rollouts.follow(&model, 1).expect("followed");
    let drawn = objective.rollouts.draw(&examples, 6, Draw::Beam, 0).expect("drawn");
    let groups = Groups { examples: &examples, candidates: objective.candidates(&examples, drawn) };
    for estimator in [options(6).estimator, Estimator::Reinforce] {
        objective.options.estimator = estimator;
        let weights = objective.weights(&update(&model, &pairs), &groups, &mut Sum::default()).expect("weights");
        for (source, weights) in weights.iter().enumerate() {
            let largest = weights.iter().fold(0f32, |a, b| a.max(b.abs()));
            let sum: f64 = weights.iter().map(|w| f64::from(*w)).sum();
            assert!(largest > 0.0 && sum.abs() <= 1e-6 * f64::from(largest), "{sum} of {largest}");
            // A better candidate than the mean is made likelier: its likelihood counts positively.
            let risks = groups.candidates[source].iter().map(|c| c.risk);
            let best = risks.clone().enumerate().min_by(|a, b| a.1.total_cmp(&b.1)).expect("candidates").0;
            assert!(weights[best] > 0.0, "{weights:?}");
        }
    }
}

#[test]
fn leave_one_out_compares_a_draw_with_the_others() {
    let candidate = |risk: f32, count| Candidate { ids: vec![1], risk, count };
    // Draws of risk .2, .2, .5: the baselines are .35, .35 and .2.
    let weights = leave_one_out(&[candidate(0.2, 2), candidate(0.5, 1)]);
    for (weight, expected) in weights.iter().zip([0.15 * 2.0 / 3.0, -0.3 / 3.0]) {
        assert!((weight - expected).abs() < 1e-6, "{weights:?}");
    }
    assert_eq!(leave_one_out(&[candidate(0.4, 1)]), [0.0]);
}

#[test]
fn samples_follow_the_seed_and_the_weights() {
    let mut model = AutogradModel::open(&dir()).expect("a model");
    let pairs = pairs(&dir());
    let examples = examples(&pairs);
    let mut rollouts = Rollouts::open(&dir(), &SentenceDefaults::default()).expect("a session");
    rollouts.follow(&model, 1).expect("followed");
    let samples = Draw::Samples { temperature: 1.0, top_p: 1.0 };
    let draw = |rollouts: &Rollouts, seed| rollouts.draw(&examples, 8, samples, seed).expect("drawn");
    let first = draw(&rollouts, 3);
    assert!(first.iter().all(|drawn| drawn.len() == 8));
    assert!(first[0].iter().any(|r| r.ids != first[0][0].ids), "eight equal samples");
    assert_eq!(draw(&rollouts, 3), first);
    assert_ne!(draw(&rollouts, 4), first);
    let other =
        model.parameters().values().expect("values").iter().map(|v| v.iter().map(|x| x * 0.5).collect()).collect();
    model.parameters_mut().set_values(other).expect("set");
    rollouts.follow(&model, 2).expect("followed");
    assert_ne!(draw(&rollouts, 3), first);
}

#[test]
fn rollouts_see_the_weights_of_the_update() {
    let mut model = AutogradModel::open(&dir()).expect("a model");
    let pairs = pairs(&dir());
    let examples = examples(&pairs);
    let mut rollouts = Rollouts::open(&dir(), &SentenceDefaults::default()).expect("a session");
    rollouts.follow(&model, 1).expect("followed");
    let before = rollouts.draw(&examples, 1, Draw::Beam, 0).expect("drawn");
    let values = model.parameters().values().expect("values");
    let other = values.iter().map(|v| v.iter().map(|x| x * 0.5).collect()).collect();
    model.parameters_mut().set_values(other).expect("set");
    // Of the same update still: nothing has changed for the session.
    rollouts.follow(&model, 1).expect("followed");
    assert_eq!(rollouts.draw(&examples, 1, Draw::Beam, 0).expect("drawn"), before);
    rollouts.follow(&model, 2).expect("followed");
    let after = rollouts.draw(&examples, 1, Draw::Beam, 0).expect("drawn");
    assert_ne!(after, before);
    // And they are what a translator of those weights gives.
    let mut fresh = Rollouts::open(&dir(), &SentenceDefaults::default()).expect("a session");
    fresh.follow(&model, 7).expect("followed");
    assert_eq!(fresh.draw(&examples, 1, Draw::Beam, 0).expect("drawn"), after);
}
