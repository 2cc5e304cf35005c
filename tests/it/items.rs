//! Sentences with options of their own: from JSON lines, and all kinds of them side by side in one session.

use crate::common;
use crate::common::command::run;
use beamfuse::metrics::Utility;
use beamfuse::{
    Bans, ContrastiveForm, DecodeOptions, Device, EngineOptions, Error, LengthPenalty, MaxLength, Sentence, Stop,
    Translation, Translator,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::Value;

/// Exit code and output lines of `translate` over JSON lines.
fn translate(args: &[&str], lines: &[&str]) -> (Option<i32>, Vec<Value>) {
    let done = run(&[&["translate", "--format", "jsonl"], args].concat(), lines.join("\n").as_bytes());
    (done.code, done.objects().into_iter().map(Value::Object).collect())
}

#[test]
fn options_of_a_line_stand_over_those_of_the_command_line() {
    let lines = [
        r#"{"source": "Two dogs run through the snow.", "options": {"beam_size": 1}}"#,
        r#"{"source": "Two dogs run through the snow.", "options": {"n_best": 3, "length_penalty": "none", "stop": "exact"}}"#,
        r#"{"source": "Two dogs run through the snow.", "options": {"max_length": "0.5*S+2", "cut": true}}"#,
        r#"{"source": "Two dogs run through the snow.", "options": {"min_length": 12, "no_repeat_ngram": 2}}"#,
        r#"{"source": "Two dogs run through the snow.", "options": {"sample": true, "samples": 3, "top_k": 5}, "seed": 3}"#,
        r#"{"source": "Two dogs run through the snow.", "options": {"preset": "marian", "word_reward": -0.1}}"#,
        r#"{"source": "Two dogs run through the snow.", "options": null}"#,
    ];
    let flags: [&[&str]; 7] = [
        &["--beam-size", "1"],
        &["--n-best", "3", "--length-penalty", "none", "--stop", "exact"],
        &["--max-length", "0.5*S+2", "--cut"],
        &["--min-length", "12", "--no-repeat-ngram", "2"],
        &["--sample", "--samples", "3", "--top-k", "5"],
        &["--preset", "marian", "--word-reward", "-0.1"],
        &[],
    ];
    let of_all = ["--alpha", "0.6"];
    let (code, together) = translate(&of_all, &lines);
    assert_eq!((code, together.len()), (Some(0), lines.len()));
    for ((line, flags), together) in lines.iter().zip(flags).zip(&together) {
        assert_eq!(translate(&of_all, &[line]).1[0], *together, "{line}");
        let mut plain: Value = serde_json::from_str(line).expect("JSON");
        plain.as_object_mut().expect("an object").remove("options");
        let alone = translate(&[&of_all, flags].concat(), &[&plain.to_string()]).1;
        assert_eq!(alone[0]["hypotheses"], together["hypotheses"], "{line}");
    }
    let counts: Vec<usize> = together.iter().map(|line| line["hypotheses"].as_array().map_or(0, Vec::len)).collect();
    assert_eq!(counts, [1, 3, 1, 1, 3, 1, 1]);
    // What all lines sample, one does not.
    let (_, searched) = translate(
        &["--sample", "--samples", "2"],
        &[r#"{"source": "A dog runs.", "options": {"sample": false}}"#, r#"{"source": "A dog runs."}"#],
    );
    assert_eq!(searched[0]["hypotheses"].as_array().map(Vec::len), Some(1));
    assert_eq!(searched[1]["hypotheses"].as_array().map(Vec::len), Some(2));
}

#[test]
fn a_line_with_wrong_options_has_its_error_and_the_others_carry_on() {
    for (options, reason) in [
        (r#"{"beam_size": 65}"#, "option beam-size: expected 1 to 64, got 65"),
        (r#"{"beam_size": 2, "n_best": 3}"#, "option n-best: expected 1 to beam-size 2, got 3"),
        (
            r#"{"beam_size": 1.5}"#,
            "read options: expected beam_size: a whole number, 0 or more, got floating point 1.5",
        ),
        (
            r#"{"stop": "never"}"#,
            "read options: expected stop: one of first, heuristic, exact, top, got unknown variant never",
        ),
        (r#"{"beem_size": 2}"#, "read options: expected names of options, got \"beem_size\""),
        (r#"{"amateur": "models"}"#, "expected options of one sentence, beside one of all sentences, got \"amateur\""),
        (r#"{"help": true}"#, "expected names of options"),
        (r#"{"alpha": [1]}"#, "read options: expected alpha: a number, got sequence"),
        (r#"{"alpha": -1e9}"#, "option alpha"),
        (r#"{"top_k": 4}"#, "option top-k: expected sample beside it, got 4"),
        (r#"{"contrastive": "li"}"#, "option contrastive: expected an amateur model"),
        (r#"{"contrastive": "source"}"#, "expected another source to contrast the sentence with"),
        ("7", "read line: options: expected an object of options, got 7"),
    ] {
        let bad = format!("{{\"source\": \"A dog runs.\", \"id\": 5, \"options\": {options}}}");
        let (code, lines) = translate(&[], &[&bad, r#"{"source": "A dog runs."}"#]);
        assert_eq!(code, Some(1), "{options}");
        let message = lines[0]["error"]["message"].as_str().expect("an error");
        assert!(message.contains(reason) && !message.contains('\n'), "{options}: {message}");
        assert_eq!(
            (&lines[0]["source"], lines[1]["hypotheses"][0]["text"].as_str()),
            (&"A dog runs.".into(), Some("Ein Hund rennt."))
        );
    }
}

fn open(device: Device, slots: usize) -> Translator {
    let amateur = Some(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models/m30k-en-de-amateur"));
    let options = EngineOptions::default().with(|o| {
        o.device = device;
        o.slots = slots;
        o.amateur = amateur;
    });
    Translator::open_with(common::demo_model(), &options).expect("the demo model opens")
}

/// Any options that are allowed together.
fn options(vocab: usize) -> impl Strategy<Value = DecodeOptions> {
    let penalty = prop_oneof![
        Just((LengthPenalty::None, 0.7)),
        Just((LengthPenalty::Gnmt, 0.7)),
        Just((LengthPenalty::Power, 1.0)),
        Just((LengthPenalty::PowerOfAll, 0.5)),
    ];
    let stop = prop_oneof![Just(Stop::First), Just(Stop::Heuristic), Just(Stop::Exact)];
    let max_length = prop_oneof![Just(MaxLength::default()), (3..9usize).prop_map(MaxLength::Absolute)];
    let contrastive = proptest::option::weighted(
        0.4,
        prop_oneof![
            Just(ContrastiveForm::Logits),
            Just(ContrastiveForm::Li),
            Just(ContrastiveForm::Obrien),
            Just(ContrastiveForm::Source)
        ],
    );
    let sampling = proptest::option::weighted(
        0.3,
        (1..4usize, prop_oneof![Just(0.0f32), Just(0.8), Just(1.2)], 0..30usize, prop_oneof![Just(1.0f32), Just(0.9)]),
    );
    let bans =
        proptest::option::weighted(0.3, proptest::collection::vec(3..vocab as u32, 1..40)).prop_map(move |ids| {
            ids.map(|ids| Bans::new(vocab, &ids[1..], None, &[ids[..1].to_vec()]).expect("they fit").into())
        });
    let numbers = (1..6usize, 0..7usize, prop_oneof![Just(0.0f32), Just(0.2)], prop_oneof![Just(0.0f32), Just(-0.2)]);
    let forced_bos = proptest::option::weighted(0.2, prop_oneof![Just(12u32), Just(95)]);
    let control =
        (prop_oneof![Just(1.0f32), Just(1.4), Just(0.7)], any::<bool>(), 0..3usize, bans, 1..3usize, forced_bos);
    let mbr = prop_oneof![Just(None), Just(Some(Utility::Chrf))];
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), mbr);
    let several = (numbers, control, flags, penalty, stop, max_length, contrastive, sampling);
    let build = |(
        (beam_size, min_length, coverage_penalty, word_reward),
        control,
        flags,
        (length_penalty, alpha),
        stop,
        max_length,
        contrastive,
        sampling,
    )| {
        let (repetition_penalty, penalize_logits, no_repeat_ngram, bans, groups, forced_bos) = control;
        let (shrink, cut, forced_free, renormalize, mbr) = flags;
        let options = DecodeOptions::default().with(|o| {
            (o.beam_size, o.min_length, o.max_length) = (beam_size, min_length, max_length);
            (o.length_penalty, o.alpha, o.stop, o.mbr) = (length_penalty, alpha, Some(stop), mbr);
            (o.coverage_penalty, o.word_reward, o.contrastive) = (coverage_penalty, word_reward, contrastive);
            (o.shrink, o.cut, o.forced_free, o.renormalize) = (shrink, cut, forced_free, renormalize);
            (o.repetition_penalty, o.penalize_logits) = (repetition_penalty, Some(penalize_logits));
            (o.no_repeat_ngram, o.bans, o.beam_groups, o.forced_bos) = (no_repeat_ngram, bans, groups, forced_bos);
        });
        match sampling {
            None => options,
            Some(draws) => options.with(|o| (o.sample, (o.samples, o.temperature, o.top_k, o.top_p)) = (true, draws)),
        }
    };
    several.prop_map(build).prop_filter("allowed together", |options| options.validate().is_ok())
}

/// Any sentence, under options of its own.
fn sentence(vocab: usize) -> impl Strategy<Value = Sentence> {
    let source = prop_oneof![
        Just("A dog runs."),
        Just("Two men sit on a bench."),
        Just("A woman in a red coat reads a newspaper in the park."),
        Just(""),
    ];
    let prefix = proptest::option::of(prop_oneof![Just(""), Just("Ein"), Just("Zwei")]);
    let phrases = proptest::sample::subsequence(vec!["schnell", "rot"], 0..=2);
    let made = (source, prefix, phrases, proptest::option::of(any::<u64>()), options(vocab));
    made.prop_map(|(source, prefix, phrases, seed, options)| {
        let DecodeOptions { sample, beam_groups, contrastive, shrink, .. } = options;
        let constrainable = !sample && beam_groups == 1 && contrastive.is_none() && !shrink;
        let phrases = phrases.into_iter().filter(|_| constrainable);
        Sentence {
            source: source.to_owned(),
            seed,
            contrast_source: Some("Two cats sleep.".to_owned()),
            prefix: prefix.map(str::to_owned),
            constraints: phrases.map(str::to_owned).collect(),
            options: Some(Box::new(options)),
            ..Sentence::default()
        }
    })
}

/// Translates sentences that are all under way at once. Only a constraint can end without a translation.
fn together(translator: &Translator, sentences: &[Sentence]) -> Vec<Option<Translation>> {
    let of_all = DecodeOptions::default();
    let mut batch = translator.batch(&of_all).expect("allowed");
    sentences.iter().zip(0..).for_each(|(sentence, tag)| batch.push(tag, sentence.clone()));
    let mut found: Vec<_> = std::iter::from_fn(|| batch.next()).collect();
    found.sort_by_key(|(tag, _)| *tag);
    let outcome = |found: Result<Translation, Error>| match found {
        Err(Error::UnmetConstraint { .. }) => None,
        found => Some(found.expect("a translation")),
    };
    found.into_iter().map(|(_, found)| outcome(found)).collect()
}

/// Runs the property on one device over this many mixed batches.
fn each_sentence_is_what_it_is_alone(device: Device, cases: u32, at_most: usize) {
    let (crowded, alone) = (open(device, 5), open(device, 1));
    let vocab = crowded.tokenizer().target_vocab_size();
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let batches = proptest::collection::vec(sentence(vocab), 2..=at_most);
    let result = runner.run(&batches, |sentences| {
        for (sentence, found) in sentences.iter().zip(together(&crowded, &sentences)) {
            let own = together(&alone, std::slice::from_ref(sentence)).remove(0);
            prop_assert_eq!(&found, &own, "{:?}", sentence);
            let Some(found) = found else {
                prop_assert!(!sentence.constraints.is_empty());
                continue;
            };
            for h in found.hypotheses.iter().filter(|h| h.length > 0) {
                let score = &alone.score_ids(&[(found.source_ids.clone(), h.token_ids.clone())])[0];
                prop_assert_eq!(score.as_ref().expect("ids fit").log_prob, h.log_prob, "{:?}", sentence);
            }
        }
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn sentences_with_all_kinds_of_options_change_nothing_for_each_other() {
    each_sentence_is_what_it_is_alone(Device::Cpu, 24, 12);
}

#[test]
#[cfg_attr(not(emulated), ignore = "needs a C++ compiler")]
fn sentences_with_all_kinds_of_options_change_nothing_for_each_other_on_the_emulated_device() {
    each_sentence_is_what_it_is_alone(Device::Emulated, 3, 6);
}
