//! BLEU, chrF and the 13a tokens against the figures that sacrebleu gave (tests/data/metrics/make.py).

use beamfuse::metrics::{
    BleuStats, ChrfStats, Counts, bleu_counts, chrf_counts, copy_rate, corpus_score, one_each, repetition_rate,
    sentence_bleu, sentence_chrf, tokenize_13a, total,
};
use proptest::prelude::*;
use serde::Deserialize;

const TOLERANCE: f64 = 1e-6;

#[derive(Deserialize)]
struct Expected {
    whitespace: Vec<u32>,
    tokens: Vec<(String, String)>,
    sentences: Vec<Sentence>,
    corpora: Vec<Corpus>,
    own: Own,
}

#[derive(Deserialize)]
struct Sentence {
    hypothesis: String,
    references: Vec<String>,
    bleu: f64,
    chrf: f64,
}

#[derive(Deserialize)]
struct Corpus {
    name: String,
    hypotheses: Vec<String>,
    references: Vec<Vec<String>>,
    #[serde(flatten)]
    figures: Figures,
}

#[derive(Deserialize)]
struct Figures {
    bleu: f64,
    precisions: Vec<f64>,
    brevity_penalty: f64,
    hypothesis_tokens: u64,
    reference_tokens: u64,
    length_ratio: f64,
    chrf: f64,
}

#[derive(Deserialize)]
struct Own {
    corpus: Figures,
    sentence_bleu: Vec<f64>,
    sentence_chrf: Vec<f64>,
}

fn expected() -> Expected {
    serde_json::from_str(include_str!("../data/metrics/expected.json")).unwrap()
}

fn own() -> [Vec<&'static str>; 2] {
    [include_str!("../data/metrics/own.beam1.de"), include_str!("../data/metrics/own.reference.de")]
        .map(|text| text.lines().collect())
}

#[track_caller]
fn assert_near(actual: f64, expected: f64, what: &str) {
    assert!((actual - expected).abs() <= TOLERANCE, "{what}: expected {expected}, got {actual}");
}

#[track_caller]
fn assert_figures<R: AsRef<[T]>, T: AsRef<str>>(
    name: &str,
    hypotheses: &[impl AsRef<str>],
    references: &[R],
    expected: &Figures,
) {
    let counts = bleu_counts(hypotheses, references).unwrap();
    let bleu = total(&counts);
    assert_near(corpus_score(&counts), expected.bleu, name);
    assert_eq!(
        (bleu.hypothesis_tokens, bleu.reference_tokens),
        (expected.hypothesis_tokens, expected.reference_tokens),
        "{name}"
    );
    assert_near(bleu.length_ratio(), expected.length_ratio, name);
    assert_near(bleu.brevity_penalty(), expected.brevity_penalty, name);
    assert_eq!(expected.precisions.len(), 4);
    for (actual, expected) in bleu.precisions().iter().zip(&expected.precisions) {
        assert_near(*actual, *expected, name);
    }
    assert_near(corpus_score(&chrf_counts(hypotheses, references).unwrap()), expected.chrf, name);
}

#[test]
fn white_space_is_pythons() {
    let expected = expected().whitespace;
    for c in (0..=u32::from(char::MAX)).filter_map(char::from_u32) {
        // A character that splits leaves two tokens, and two characters to chrF.
        let text = format!("a{c}a");
        let splits = expected.contains(&u32::from(c));
        let chrf = ChrfStats::new(&text).score(&ChrfStats::new("aa")) == 100.0;
        assert_eq!(chrf, splits, "U+{:04X}", u32::from(c));
        if !c.is_ascii_punctuation() {
            assert_eq!(tokenize_13a(&text).len() == 2, splits, "U+{:04X}", u32::from(c));
        }
    }
}

#[test]
fn tokens_equal_sacrebleus() {
    let expected = expected().tokens;
    assert!(expected.len() > 300);
    for (text, tokens) in expected {
        assert_eq!(tokenize_13a(&text).join(" "), tokens, "{text:?}");
    }
}

#[test]
fn sentence_scores_equal_sacrebleus() {
    let expected = expected().sentences;
    assert!(expected.len() > 40);
    for s in expected {
        assert_near(sentence_bleu(&s.hypothesis, &s.references), s.bleu, &s.hypothesis);
        assert_near(sentence_chrf(&s.hypothesis, &s.references), s.chrf, &s.hypothesis);
    }
}

#[test]
fn corpus_scores_equal_sacrebleus() {
    let expected = expected().corpora;
    assert!(expected.len() > 5);
    for c in expected {
        assert_figures(&c.name, &c.hypotheses, &c.references, &c.figures);
    }
}

#[test]
fn own_translations_score_as_in_sacrebleu() {
    let expected = expected().own;
    let [hypotheses, references] = own();
    assert_eq!((hypotheses.len(), references.len(), expected.sentence_bleu.len()), (118, 118, 118));
    assert_figures("own", &hypotheses, &one_each(&references), &expected.corpus);
    for (i, (h, r)) in hypotheses.iter().zip(&references).enumerate() {
        assert_near(BleuStats::new(h).score(&BleuStats::new(r)), expected.sentence_bleu[i], h);
        assert_near(ChrfStats::new(h).score(&ChrfStats::new(r)), expected.sentence_chrf[i], h);
    }
}

/// Any text, and text made of what the tokeniser and the n-gram counts treat specially.
fn texts() -> impl Strategy<Value = String> {
    let anything = prop::collection::vec(any::<char>(), 0..60).prop_map(String::from_iter);
    let pieces = prop::sample::select(vec![
        "a",
        "b",
        "Hund",
        " ",
        "  ",
        ".",
        ",",
        "...",
        "-",
        "-\n",
        "7",
        "0",
        "&amp;",
        "&lt;",
        "&",
        "<skipped>",
        "\n",
        "'",
        "é",
        "e\u{301}",
        "中",
        "😀",
        "\u{a0}",
        "\u{1f}",
        "\0",
        "\u{10ffff}",
    ]);
    prop_oneof![anything, prop::collection::vec(pieces, 0..40).prop_map(|p| p.concat())]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn scores_of_any_texts_lie_between_0_and_100(
        hypothesis in texts(),
        references in prop::collection::vec(texts(), 1..4),
    ) {
        let bleu = &bleu_counts(&[&hypothesis], &[&references[..]]).unwrap()[0];
        let chrf = &chrf_counts(&[&hypothesis], &[&references[..]]).unwrap()[0];
        for score in [bleu.score(), bleu.sentence_score(), chrf.score()] {
            prop_assert!((0.0..=100.0).contains(&score), "{score}");
        }
        // Where all four orders have n-grams the two kinds of BLEU are one.
        if bleu.ngrams[3] > 0 {
            prop_assert_eq!(bleu.score(), bleu.sentence_score());
        }
        let chrf_of_each = references.iter().map(|r| sentence_chrf(&hypothesis, std::slice::from_ref(r)));
        prop_assert_eq!(chrf.score(), chrf_of_each.fold(0.0, f64::max));
    }

    /// Identical texts score 100: chrF with any character but white space, sentence BLEU with any token, corpus BLEU with at
    /// least four tokens. Below that they score 0.
    #[test]
    fn identical_texts_score_100(text in texts()) {
        let tokens = tokenize_13a(&text).len();
        let near = |score: f64, perfect: bool| (score - if perfect { 100.0 } else { 0.0 }).abs() < 1e-9;
        let bleu = bleu_counts(&[&text], &[[&text]]).unwrap();
        prop_assert!(near(corpus_score(&bleu), tokens >= 4));
        prop_assert!(near(bleu[0].sentence_score(), tokens > 0));
        let chars = text.split(|c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)).any(|w| !w.is_empty());
        prop_assert!(near(sentence_chrf(&text, &[&text]), chars));
    }

    #[test]
    fn rates_lie_between_0_and_1(
        source in prop::collection::vec(0u8..5, 0..20),
        target in prop::collection::vec(0u8..5, 0..20),
        order in 0usize..6,
    ) {
        prop_assert!((0.0..=1.0).contains(&copy_rate(&source, &target)));
        prop_assert!((0.0..=1.0).contains(&repetition_rate(&target, order)));
    }
}
