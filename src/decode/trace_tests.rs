use super::*;
use crate::decode::tests::{MODEL, asked, source, start, translate};
use crate::decode::{DecodeOptions, Explain, Handle, LengthPenalty, MaxLength, Stop, Terms};

fn ask(engine: &crate::decode::Engine, source: &[u32], options: &DecodeOptions) -> Handle<Trace> {
    let request = asked(options, source.to_vec());
    engine.ask(Explain(request), Terms::new()).expect("the ids fit")
}

fn traced(source: &[u32], options: &DecodeOptions) -> Trace {
    ask(&start(&MODEL, 2), source, options).wait().expect("the search ends")
}

fn options() -> Vec<DecodeOptions> {
    let base = DecodeOptions { attention: true, ..DecodeOptions::default() };
    vec![
        DecodeOptions { n_best: 4, ..base.clone() },
        DecodeOptions { beam_size: 1, stop: Some(Stop::First), ..base.clone() },
        DecodeOptions { beam_size: 3, n_best: 3, coverage_penalty: 0.4, stop: Some(Stop::Exact), ..base.clone() },
        DecodeOptions {
            beam_size: 6,
            n_best: 6,
            max_length: MaxLength::Absolute(5),
            min_length: 5,
            length_penalty: LengthPenalty::Power,
            alpha: 1.0,
            ..base
        },
    ]
}

#[test]
fn a_trace_ends_where_the_search_in_a_shared_session_does() {
    for options in options() {
        for i in 0..6 {
            let work: Vec<_> = (0..4).map(|j| (source(i + j), options.clone())).collect();
            let shared = translate(&MODEL, 4, &work).swap_remove(0).expect("finite");
            assert_eq!(traced(&source(i), &options).hypotheses, shared, "{options:?}");
        }
    }
}

#[test]
fn every_translation_can_be_walked_back_through_the_steps() {
    for options in options() {
        let Trace { steps, hypotheses } = traced(&source(3), &options);
        let mut seen = vec![false; hypotheses.len()];
        for (i, step) in steps.iter().enumerate() {
            assert!(step.live.windows(2).all(|pair| pair[0].search_log_prob >= pair[1].search_log_prob));
            for end in &step.finished {
                let Some(rank) = end.rank else { continue };
                assert!(!std::mem::replace(&mut seen[rank], true), "{rank} finished twice");
                let hypothesis = &hypotheses[rank];
                assert_eq!((hypothesis.length, hypothesis.score), (i + 1, end.score));
                assert_eq!(hypothesis.token_log_probs.last().copied(), end.eos_log_prob);
                let mut tokens = Vec::new();
                let mut beam = end.parent;
                for step in steps[..i].iter().rev() {
                    tokens.insert(0, step.live[beam].token);
                    beam = step.live[beam].parent;
                }
                assert_eq!(tokens, hypothesis.token_ids[..i]);
                // Everything starts from the one beam there is before the first step.
                assert_eq!(beam, 0);
            }
        }
        assert!(seen.iter().all(|seen| *seen), "{options:?}: {steps:?}");
        assert!(steps.last().is_some_and(|step| step.live.is_empty()));
    }
}

#[test]
fn a_search_over_nan_fails_and_the_engine_carries_on() {
    let poisoned = crate::decode::tests::Scripted { poison: Some(source(1)[0]), ..MODEL };
    let engine = start(&poisoned, 2);
    let options = DecodeOptions { min_length: 6, ..DecodeOptions::default() };
    let asked = [1, 2].map(|i| ask(&engine, &source(i), &options));
    let outcomes = asked.map(Handle::wait);
    assert!(matches!(outcomes[0], Err(crate::Error::NonFiniteLogits { step: 3, .. })), "{:?}", outcomes[0]);
    assert!(outcomes[1].is_ok());
}
