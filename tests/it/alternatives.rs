//! Alternatives at a position, on the demo model.

use std::collections::HashSet;

use crate::common;
use beamfuse::translator::Alternatives;
use beamfuse::{
    Bans, DecodeOptions, Device, EngineOptions, Error, LengthPenalty, MaxLength, Sentence, TextHypothesis, Translation,
    Translator, metrics::Utility,
};

fn open(device: Device) -> Translator {
    let options = EngineOptions::default().with(|o| {
        o.device = device;
        o.slots = 8;
    });
    Translator::open_with(common::demo_model(), &options).expect("the demo model opens")
}

fn sentence(source: &str, prefix: &str) -> Sentence {
    Sentence { source: source.to_owned(), prefix: Some(prefix.to_owned()), ..Sentence::default() }
}

const SOURCE: &str = "Two dogs run through the snow.";

fn sentences() -> Vec<Sentence> {
    let of = |(source, prefix): &(&str, &str)| sentence(source, prefix);
    [(SOURCE, ""), (SOURCE, "Zwei"), ("A dog.", "Ein Hund."), ("  ", "Zwei"), (SOURCE, "Zwei Hunde")]
        .iter()
        .map(of)
        .collect()
}

fn find(translator: &Translator, sentences: Vec<Sentence>, count: usize, options: &DecodeOptions) -> Vec<Translation> {
    let wanted = Alternatives { count, ..Alternatives::default() };
    let found = translator.alternatives(sentences, &wanted, options).expect("valid options");
    found.into_iter().map(|one| one.expect("a sentence that fits")).collect()
}

fn ids(found: &[Translation]) -> Vec<Vec<&[u32]>> {
    found.iter().map(|t| t.hypotheses.iter().map(|h| &h.token_ids[..]).collect()).collect()
}

#[test]
fn alternatives_share_the_prefix_and_differ_behind_it() {
    let translator = open(Device::Cpu);
    for options in [
        DecodeOptions::default(),
        DecodeOptions::default().with(|o| {
            o.coverage_penalty = 0.2;
            o.word_reward = 0.3;
            o.attention = true;
        }),
        DecodeOptions::default().with(|o| {
            o.beam_size = 1;
            o.max_length = MaxLength::Absolute(5);
        }),
        DecodeOptions::default().with(|o| {
            o.beam_size = 2;
            o.repetition_penalty = 1.5;
            o.no_repeat_ngram = 2;
        }),
    ] {
        let found = find(&translator, sentences(), 5, &options);
        assert!(found[3].hypotheses.len() == 1 && found[3].text().is_empty());
        for (Sentence { prefix, .. }, translation) in sentences().into_iter().zip(&found) {
            if translation.source_ids.len() == 1 {
                continue;
            }
            let mut start = translator.tokenizer().encode_target(&prefix.expect("each has one"));
            start.pop();
            let at_the_end = start.len() + 1 == options.max_length.resolve(translation.source_ids.len(), 256);
            assert_eq!(translation.hypotheses.len(), if at_the_end { 1 } else { 5 }, "{options:?}");
            let mut next = HashSet::new();
            let mut last = f32::INFINITY;
            for h in &translation.hypotheses {
                assert!(h.token_ids.starts_with(&start), "{h:?}");
                assert!(next.insert(h.token_ids[start.len()]), "{h:?}");
                if options.repetition_penalty == 1.0 {
                    assert!(h.token_log_probs[start.len()] <= last, "{h:?}");
                }
                last = h.token_log_probs[start.len()];
                let scored = translator.score_ids(&[(translation.source_ids.clone(), h.token_ids.clone())]);
                let scored = scored.into_iter().next().expect("one score").expect("it can be scored");
                assert_eq!((&scored.token_log_probs, scored.log_prob), (&h.token_log_probs, h.log_prob));
                // What a search from this beginning alone has for it.
                let score =
                    h.search_log_prob / h.length_penalty + h.coverage_penalty + options.word_reward * h.length as f32;
                assert!((h.score - score).abs() < 1e-5, "{h:?}");
                assert_eq!(h.attention.is_some(), options.attention);
            }
        }
    }
}

#[test]
fn a_sentence_that_is_whole_may_end() {
    let translator = open(Device::Cpu);
    let found = find(&translator, vec![sentence("A dog.", "Ein Hund.")], 3, &DecodeOptions::default());
    let ends = &found[0].hypotheses[0];
    assert_eq!((ends.text.as_str(), ends.truncated), ("Ein Hund.", false));
    let plain = translator.translate(&["A dog."], &DecodeOptions::default()).expect("valid options").remove(0);
    assert_eq!(plain.hypotheses[0], *ends);
    let longer = DecodeOptions::default().with(|o| o.min_length = 8);
    for h in &find(&translator, vec![sentence("A dog.", "Ein Hund.")], 3, &longer)[0].hypotheses {
        assert!(h.length >= 8 && h.text != "Ein Hund.", "{h:?}");
    }
}

#[test]
fn the_first_alternative_of_a_greedy_search_is_the_translation() {
    let translator = open(Device::Cpu);
    let greedy = DecodeOptions::default().with(|o| o.beam_size = 1);
    for source in common::lines("own/own.en").iter().take(5) {
        let expected = translator.translate(&[source], &greedy).expect("valid options").remove(0);
        let found = find(&translator, vec![source.as_str().into()], 3, &greedy);
        assert_eq!(found[0].hypotheses[0], expected.hypotheses[0]);
    }
}

#[test]
fn each_is_what_a_search_from_its_beginning_finds_and_a_batch_changes_nothing() {
    let translator = open(Device::Cpu);
    let options = DecodeOptions::default().with(|o| {
        o.length_penalty = LengthPenalty::Power;
        o.alpha = 1.0;
    });
    let together = find(&translator, sentences(), 6, &options);
    for (sentence, expected) in sentences().into_iter().zip(&together) {
        assert_eq!(&find(&translator, vec![sentence], 6, &options)[0], expected);
    }
    let best = &together[0].hypotheses[0];
    let begun = sentence(SOURCE, "Zwei");
    let mut batch = translator.batch(&options).expect("valid options");
    batch.push(0, begun);
    let (_, found) = batch.next().expect("one is pending");
    assert_eq!(&found.expect("it fits").hypotheses[0], best);
}

#[test]
fn improbable_ones_and_banned_ones_are_left_out() {
    let translator = open(Device::Cpu);
    let options = DecodeOptions::default();
    let all = find(&translator, vec![sentence(SOURCE, "Zwei")], 20, &options);
    let prob = |h: &TextHypothesis| h.token_log_probs[1].exp();
    let few = Alternatives { count: 20, min_prob: prob(&all[0].hypotheses[2]) };
    let found = translator.alternatives(vec![sentence(SOURCE, "Zwei")], &few, &options).expect("valid options");
    let found = found.into_iter().next().expect("one").expect("it fits");
    assert_eq!(found.hypotheses[..], all[0].hypotheses[..3]);
    let certain = Alternatives { count: 20, min_prob: 1.0 };
    let found = translator.alternatives(vec![sentence(SOURCE, "Zwei")], &certain, &options).expect("valid options");
    assert_eq!(found.into_iter().next().expect("one").expect("it fits").hypotheses[..], all[0].hypotheses[..1]);
    let best = all[0].hypotheses[0].token_ids[1];
    let vocab = translator.tokenizer().target_vocab_size();
    let bans = Bans::new(vocab, &[best], None, &[]).expect("it fits");
    let without = options.with(|o| o.bans = Some(bans.into()));
    let found = find(&translator, vec![sentence(SOURCE, "Zwei")], 3, &without);
    assert!(found[0].hypotheses.iter().all(|h| h.token_ids[1] != best));
    assert_eq!(found[0].hypotheses[0].token_ids[1], all[0].hypotheses[1].token_ids[1]);
}

#[test]
fn what_has_no_alternatives_is_refused() {
    let translator = open(Device::Cpu);
    let base = DecodeOptions::default;
    let refused = |count: usize, min_prob: f32, options: DecodeOptions| match translator.alternatives(
        vec!["A dog.".into()],
        &Alternatives { count, min_prob },
        &options,
    ) {
        Err(Error::Option { option, got, .. }) => format!("{option} {got}"),
        Err(Error::Conflict { option, with, .. }) => format!("{option} beside {with}"),
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(0, 0.0, base()), "alternatives 0");
    assert_eq!(refused(65, 0.0, base()), "alternatives 65");
    assert_eq!(refused(3, f32::NAN, base()), "min-alternative-prob NaN");
    assert_eq!(refused(3, 0.0, base().with(|o| o.n_best = 2)), "alternatives beside n-best 2");
    assert_eq!(refused(3, 0.0, base().with(|o| o.beam_groups = 2)), "alternatives beside beam-groups 2");
    assert_eq!(refused(3, 0.0, base().with(|o| o.mbr = Some(Utility::Chrf))), "alternatives beside mbr");
    assert_eq!(refused(3, 0.0, base().with(|o| o.sample = true)), "alternatives beside sample");
    // One sentence that cannot be searched for leaves the others whole.
    let long = "A dog. ".repeat(300);
    let wanted = Alternatives::default();
    let found = translator.alternatives(vec![long.as_str().into(), SOURCE.into()], &wanted, &base());
    let found = found.expect("valid options");
    assert!(matches!(found[0], Err(Error::InputTooLong { .. })), "{:?}", found[0]);
    assert_eq!(found[1].as_ref().expect("it fits").hypotheses.len(), 5);
}

#[test]
#[cfg_attr(not(emulated), ignore = "needs a C++ compiler")]
fn the_kernels_find_the_same() {
    let (cpu, emulated) = (open(Device::Cpu), open(Device::Emulated));
    for options in [
        DecodeOptions::default(),
        DecodeOptions::default().with(|o| {
            o.beam_size = 1;
            o.min_length = 8;
        }),
    ] {
        let (ours, theirs) = (find(&cpu, sentences(), 4, &options), find(&emulated, sentences(), 4, &options));
        assert_eq!(ids(&ours), ids(&theirs));
    }
}
