//! Whole translations with the demo model against recorded outputs; tests/data/own/README.md says who recorded them.

use std::sync::{Arc, OnceLock};

use crate::common;
use beamfuse::{
    Bans, ContrastiveForm, DecodeOptions, Device, EngineOptions, LengthPenalty, MaxLength, Preset, Sentence, Stop,
    Translation, Translator,
};
use serde_json::Value;

/// The graphs' limit, in generated tokens.
const MAX_LENGTH: MaxLength = MaxLength::Absolute(96);

/// How far a score may lie from the recorded one: the recording sums f32 log-probabilities in another order.
const SCORE_TOLERANCE: f64 = 2e-4;

fn translator() -> &'static Translator {
    static TRANSLATOR: OnceLock<Translator> = OnceLock::new();
    TRANSLATOR.get_or_init(|| Translator::open(common::demo_model()).expect("the demo model opens"))
}

fn ids(hypothesis: &Value) -> Vec<u32> {
    let ids = hypothesis["token_ids"].as_array().expect("recorded ids");
    ids.iter().map(|id| id.as_u64().expect("an id") as u32).collect()
}

/// Translates the recording's sources and compares every hypothesis: ids, texts, scores.
fn check(recording: &str, options: &DecodeOptions) {
    let recorded = common::json_lines(&format!("own/{recording}.jsonl"));
    assert!(recorded.len() >= 20, "{recording}: {} lines", recorded.len());
    let sources: Vec<&str> = recorded.iter().map(|line| line["source"].as_str().expect("a source")).collect();
    let translations = translator().translate(&sources, options).expect("valid options");
    compare(recording, &recorded, &translations);
}

fn compare(recording: &str, recorded: &[Value], translations: &[Translation]) {
    for (line, translation) in recorded.iter().zip(translations) {
        let expected = line["hypotheses"].as_array().expect("recorded hypotheses");
        assert_eq!(translation.hypotheses.len(), expected.len(), "{recording}: {}", translation.source);
        for (expected, actual) in expected.iter().zip(&translation.hypotheses) {
            let context = format!("{recording}: {}: {}", translation.source, actual.text);
            assert_eq!(actual.token_ids, ids(expected), "{context}");
            assert_eq!(Some(actual.text.as_str()), expected["text"].as_str(), "{context}");
            let close = |name: &str, actual: f32| {
                // transformers' greedy search reports no score.
                let Some(expected) = expected[name].as_f64() else { return };
                let difference = (f64::from(actual) - expected).abs();
                assert!(difference <= SCORE_TOLERANCE, "{context}: {name} {actual}, recorded {expected}");
            };
            close("score", actual.score);
            close("log_prob", actual.log_prob);
            close("search_log_prob", actual.search_log_prob);
            if let Some(truncated) = expected["truncated"].as_bool() {
                assert_eq!(actual.truncated, truncated, "{context}");
            }
        }
    }
}

fn beam(beam_size: usize) -> DecodeOptions {
    DecodeOptions::default().with(|o| {
        o.beam_size = beam_size;
        o.n_best = beam_size;
        o.max_length = MAX_LENGTH;
    })
}

#[test]
fn greedy() {
    check(
        "greedy",
        &beam(1).with(|o| {
            o.length_penalty = LengthPenalty::None;
            o.stop = Some(Stop::First);
        }),
    );
}

#[test]
fn gnmt_penalty() {
    check("beam4-gnmt", &beam(4));
}

#[test]
fn coverage_penalty() {
    check("beam4-gnmt-coverage", &beam(4).with(|o| o.coverage_penalty = 0.2));
}

#[test]
fn power_penalty_exact_stop() {
    check(
        "beam8-power-exact",
        &beam(8).with(|o| {
            o.length_penalty = LengthPenalty::Power;
            o.alpha = 1.0;
            o.stop = Some(Stop::Exact);
        }),
    );
}

#[test]
fn power_penalty_first_stop() {
    check(
        "beam5-power06-first",
        &beam(5).with(|o| {
            o.length_penalty = LengthPenalty::Power;
            o.alpha = 0.6;
            o.stop = Some(Stop::First);
        }),
    );
}

#[test]
fn length_limit() {
    check("beam4-maxlen8", &beam(4).with(|o| o.max_length = MaxLength::Absolute(8)));
}

/// The `hf` preset with what the recording's call of `generate` said.
fn hf(beam_size: usize, alpha: f32, stop: Stop) -> DecodeOptions {
    let preset = translator().preset(Preset::Hf).expect("the demo model asks for plain beam search");
    preset.with(|o| {
        o.beam_size = beam_size;
        o.n_best = beam_size;
        o.length_penalty = LengthPenalty::Power;
        o.alpha = alpha;
        o.stop = Some(stop);
        o.max_length = MAX_LENGTH;
    })
}

#[test]
fn transformers_greedy() {
    check("hf-greedy", &hf(1, 1.0, Stop::Heuristic));
}

#[test]
fn transformers_beam_search() {
    check("hf-beam4-lp1", &hf(4, 1.0, Stop::Heuristic));
}

#[test]
fn transformers_early_stopping() {
    check("hf-beam4-lp06-early", &hf(4, 0.6, Stop::First));
}

#[test]
fn transformers_early_stopping_never() {
    check("hf-beam5-lp12-never", &hf(5, 1.2, Stop::Exact).with(|o| o.n_best = 1));
}

#[test]
fn teacher_forced_scores() {
    let recorded = common::json_lines("own/score.jsonl");
    let text = |line: &Value, field: &str| line[field].as_str().expect("a text").to_string();
    let pairs: Vec<(String, String)> = recorded.iter().map(|l| (text(l, "source"), text(l, "target"))).collect();
    for (line, score) in recorded.iter().zip(translator().score(&pairs)) {
        let score = score.expect("a score");
        assert_eq!(score.token_ids, ids(line));
        for (actual, expected) in score.token_log_probs.iter().zip(line["token_log_probs"].as_array().expect("numbers"))
        {
            let expected = expected.as_f64().expect("a number");
            assert!((f64::from(*actual) - expected).abs() <= SCORE_TOLERANCE, "{line}: {actual}");
        }
        assert_eq!(score.log_prob, score.token_log_probs.iter().sum::<f32>());
    }
}

#[test]
fn scoring_a_translation_gives_its_own_log_probs_bit_for_bit() {
    let sources = common::lines("own/own.en");
    let options = DecodeOptions::default().with(|o| {
        o.n_best = 4;
        o.coverage_penalty = 0.2;
    });
    let translations = translator().translate(&sources, &options).expect("valid options");
    let hypotheses = translations.iter().flat_map(|t| t.hypotheses.iter().map(|h| (&t.source_ids, h)));
    let hypotheses: Vec<_> = hypotheses.collect();
    let pairs: Vec<_> = hypotheses.iter().map(|(source, h)| ((*source).clone(), h.token_ids.clone())).collect();
    assert!(pairs.len() > 400);
    for ((_, hypothesis), score) in hypotheses.iter().zip(translator().score_ids(&pairs)) {
        let score = score.expect("a score");
        assert_eq!(score.token_log_probs, hypothesis.token_log_probs);
        assert_eq!(score.log_prob, hypothesis.log_prob);
    }
}

#[test]
fn a_sentence_is_the_same_in_any_batch_order_and_number_of_threads() {
    let sources = common::lines("own/own.en");
    let options = DecodeOptions::default().with(|o| {
        o.n_best = 4;
        o.coverage_penalty = 0.2;
        o.attention = true;
    });
    let expected = translator().translate(&sources, &options).expect("valid options");
    // Multiplying by a number coprime to the length is a permutation.
    let shuffled: Vec<usize> = (0..sources.len()).map(|i| i * 37 % sources.len()).collect();
    for (threads, slots) in [(1, 1), (1, 7), (2, 1), (2, 7), (3, 32), (2, 256)] {
        let translator = Translator::open_with(
            common::demo_model(),
            &EngineOptions::default().with(|o| {
                o.threads = threads;
                o.slots = slots;
            }),
        )
        .expect("the demo model opens");
        let order: Vec<&str> = shuffled.iter().map(|i| sources[*i].as_str()).collect();
        let actual = translator.translate(&order, &options).expect("valid options");
        for (at, translation) in shuffled.iter().zip(&actual) {
            assert_eq!(translation, &expected[*at], "threads {threads}, slots {slots}");
        }
    }
}

#[test]
fn threads_that_share_a_translator_get_what_they_get_alone() {
    let sources = common::lines("own/own.en");
    let options = |i: usize| DecodeOptions::default().with(|o| o.beam_size = 1 + i % 5);
    let translate = |i: usize| translator().translate(&sources[i * 10..][..10], &options(i)).expect("valid options");
    let alone: Vec<_> = (0..8).map(translate).collect();
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..8).map(|i| scope.spawn(move || translate(i))).collect();
        for (handle, alone) in handles.into_iter().zip(&alone) {
            assert_eq!(&handle.join().expect("no panic"), alone);
        }
    });
}

#[test]
fn a_blank_line_costs_nothing() {
    for blank in ["", " ", "\t \u{3000}"] {
        let translations = translator().translate(&[blank], &DecodeOptions::default()).expect("valid options");
        let hypothesis = &translations[0].hypotheses[0];
        assert_eq!((translations[0].text(), hypothesis.score, hypothesis.length), ("", 0.0, 0));
    }
}

/// The demo model and its amateur.
fn with_amateur(device: Device) -> Translator {
    let amateur = Some(common::demo_model().with_file_name("m30k-en-de-amateur"));
    let options = EngineOptions::default().with(|o| {
        o.device = device;
        o.amateur = amateur;
    });
    Translator::open_with(common::demo_model(), &options).expect("both models open")
}

/// Translates sentences in one batch; the results stand in their order.
fn translate(translator: &Translator, sentences: Vec<Sentence>, options: &DecodeOptions) -> Vec<Translation> {
    let mut batch = translator.batch(options).expect("valid options");
    for (tag, sentence) in sentences.into_iter().enumerate() {
        batch.push(tag as u64, sentence);
    }
    let mut results: Vec<_> = std::iter::from_fn(|| batch.next()).collect();
    results.sort_by_key(|(tag, _)| *tag);
    results.into_iter().map(|(_, result)| result.expect("a translation")).collect()
}

#[test]
fn a_batch_with_nothing_under_way_is_not_waited_for() {
    let translator = Translator::open(common::demo_model()).expect("the model opens");
    let mut batch = translator.batch(&DecodeOptions::default()).expect("valid options");
    let long = std::time::Duration::from_secs(60);
    let start = std::time::Instant::now();
    assert!(batch.next_within(long).is_none());
    batch.push(7, "A dog runs.");
    assert_eq!(batch.next_within(long).expect("a result").0, 7);
    assert!(batch.next_within(long).is_none());
    assert!(start.elapsed() < long / 2, "waited for nothing: {:?}", start.elapsed());
}

fn contrasted(line: &Value) -> Sentence {
    let text = |name: &str| line[name].as_str().map(str::to_owned);
    Sentence {
        source: text("source").expect("a source"),
        contrast_source: text("contrast_source"),
        ..Sentence::default()
    }
}

const FORMS: [(&str, ContrastiveForm); 4] = [
    ("contrastive-seed", ContrastiveForm::Logits),
    ("contrastive-li", ContrastiveForm::Li),
    ("contrastive-obrien", ContrastiveForm::Obrien),
    ("contrastive-source", ContrastiveForm::Source),
];

#[test]
fn contrastive_decoding() {
    let translator = with_amateur(Device::Cpu);
    for (recording, form) in FORMS {
        let recorded = common::json_lines(&format!("own/{recording}.jsonl"));
        let options = beam(4).with(|o| o.contrastive = Some(form));
        let sentences = recorded.iter().map(contrasted).collect();
        let translations = translate(&translator, sentences, &options);
        compare(recording, &recorded, &translations);
        for translation in &translations {
            let pair = (translation.source_ids.clone(), translation.hypotheses[0].token_ids.clone());
            let score = translator.score_ids(&[pair]).remove(0).expect("a score");
            assert_eq!(score.log_prob, translation.hypotheses[0].log_prob, "the expert's own");
        }
    }
}

/// Kernels of all forms, of ensembles, bans and penalties in whole searches: the CPU's tokens.
#[test]
#[cfg_attr(not(emulated), ignore = "needs a C++ compiler")]
fn further_distributions_and_bans_on_the_emulated_device() {
    let ensemble = vec![common::demo_model().with_file_name("m30k-en-de-amateur")];
    let open = |device| {
        let amateur = Some(ensemble[0].clone());
        let options = EngineOptions::default().with(|o| {
            o.device = device;
            o.amateur = amateur;
            o.ensemble = ensemble.clone();
            o.slots = 4;
        });
        Translator::open_with(common::demo_model(), &options).expect("all models open")
    };
    let (cpu, emulated) = (open(Device::Cpu), open(Device::Emulated));
    let sentences = || {
        [("A dog runs.", "A cat sleeps."), ("Two men are talking.", "A red car.")].map(|(source, other)| Sentence {
            source: source.to_owned(),
            contrast_source: Some(other.to_owned()),
            prefix: Some("Zwei".to_owned()),
            ..Sentence::default()
        })
    };
    let base = DecodeOptions::default().with(|o| {
        o.beam_size = 3;
        o.n_best = 3;
        o.max_length = MaxLength::Absolute(12);
    });
    let mut all: Vec<DecodeOptions> = FORMS.map(|(_, form)| base.clone().with(|o| o.contrastive = Some(form))).to_vec();
    all.push(base.clone().with(|o| {
        o.ensemble = vec![0.7, 0.3];
        o.repetition_penalty = 1.4;
    }));
    let bans = Bans::new(8001, &[2], None, &[vec![12, 26], vec![13, 215, 19]]).expect("they fit");
    all.push(base.with(|o| {
        o.no_repeat_ngram = 2;
        o.bans = Some(Arc::new(bans));
    }));
    for options in &all {
        let ids = |translations: Vec<Translation>| -> Vec<Vec<Vec<u32>>> {
            let ids = |t: Translation| t.hypotheses.into_iter().map(|h| h.token_ids.clone()).collect();
            translations.into_iter().map(ids).collect()
        };
        let expected = ids(translate(&cpu, sentences().to_vec(), options));
        assert_eq!(ids(translate(&emulated, sentences().to_vec(), options)), expected, "{options:?}");
    }
}

#[test]
fn an_amateur_that_is_not_there_is_asked_for() {
    let options = beam(4).with(|o| o.contrastive = Some(ContrastiveForm::Li));
    let refused = translator().batch(&options).err().map(|error| error.to_string()).unwrap_or_default();
    assert_eq!(refused, "option contrastive: expected an amateur model, or the form source, got no amateur");
    let options = beam(4).with(|o| o.contrastive = Some(ContrastiveForm::Source));
    let refused =
        translator().translate(&["A dog."], &options).err().map(|error| error.to_string()).unwrap_or_default();
    assert_eq!(refused, "contrast sources: expected another source to contrast the sentence with, got none");
}

fn best(sentence: Sentence, options: &DecodeOptions) -> Vec<u32> {
    translate(translator(), vec![sentence], options)[0].hypotheses[0].token_ids.clone()
}

#[test]
fn prefixes_bans_and_shortlists_hold() {
    let source = || Sentence::from("Two men are talking to a man who is talking to two men.".to_owned());
    let plain = best(source(), &beam(4));
    // A prefix stands first, whatever it is, and is part of the score.
    let prefix = Sentence { prefix: Some("Eine Frau".to_owned()), ..source() };
    let forced = translate(translator(), vec![prefix], &beam(4)).remove(0);
    let hypothesis = &forced.hypotheses[0];
    assert!(forced.text().starts_with("Eine Frau"), "{}", forced.text());
    assert_eq!(hypothesis.log_prob, hypothesis.token_log_probs.iter().sum::<f32>());
    let score = translator().score_ids(&[(forced.source_ids.clone(), hypothesis.token_ids.clone())]).remove(0);
    assert_eq!(score.expect("a score").log_prob, hypothesis.log_prob);
    // What is suppressed does not come; a sequence is broken at its last token.
    let ban = |suppressed: &[u32], allowed: Option<&[u32]>, sequences: &[Vec<u32>]| {
        let bans = Bans::new(8001, suppressed, allowed, sequences).expect("they fit");
        best(source(), &beam(4).with(|o| o.bans = Some(Arc::new(bans))))
    };
    assert!(!ban(&plain[..1], None, &[]).contains(&plain[0]));
    let broken = ban(&[], None, &[plain[..3].to_vec()]);
    assert!(broken != plain && !broken.windows(3).any(|window| window == &plain[..3]), "{broken:?}");
    let mut shortlist = plain.clone();
    shortlist.extend([12, 26, 215, 0]);
    assert!(ban(&[], Some(&shortlist), &[]).iter().all(|id| shortlist.contains(id)));
    // No token twice, by rule and by penalty.
    let repeated =
        |ids: &[u32], n: usize| (0..ids.len() - n).any(|i| ids[i + 1..].windows(n).any(|w| w == &ids[i..i + n]));
    assert!(repeated(&plain, 1), "{plain:?} repeats nothing");
    assert!(!repeated(&best(source(), &beam(4).with(|o| o.no_repeat_ngram = 1)), 1));
    let penalized = best(source(), &beam(4).with(|o| o.repetition_penalty = 10.0));
    assert!(!repeated(&penalized, 1), "{penalized:?}");
}

/// Sentences of one session that ask for different things get what they get alone.
#[test]
fn an_ensemble_of_one_model_twice_is_that_model() {
    let own = common::demo_model().to_path_buf();
    let options = EngineOptions::default().with(|o| {
        o.ensemble = vec![own];
    });
    let translator = Translator::open_with(common::demo_model(), &options).expect("both open");
    let sources = ["A man is riding a bike.", "Two dogs run through the snow."];
    let plain = translator.translate(&sources, &beam(4)).expect("valid options");
    let mixed = beam(4).with(|o| o.ensemble = vec![0.25, 0.75]);
    for (plain, mixed) in plain.iter().zip(translator.translate(&sources, &mixed).expect("valid options")) {
        for (plain, mixed) in plain.hypotheses.iter().zip(&mixed.hypotheses) {
            assert_eq!(plain.token_ids, mixed.token_ids);
            assert!((mixed.search_log_prob - mixed.log_prob).abs() < 1e-4);
        }
    }
}
