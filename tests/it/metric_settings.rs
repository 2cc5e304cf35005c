//! Tokenizers, chrF2++ and TER against the figures that sacrebleu gave under the same settings (tests/data/metrics/make.py).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use beamfuse::metrics::{
    BleuTokenizer, Counts, TerCounts, TerOptions, bleu_counts_with, chrf_counts_with, corpus_score, ter_counts,
    tokenize_pieces,
};
use beamfuse::text::sentencepiece::SentencePiece;
use serde::Deserialize;
use serde_json::Value;

use crate::common::data;

#[derive(Deserialize)]
struct Settings {
    number: Vec<[u32; 2]>,
    punctuation: Vec<[u32; 2]>,
    symbol: Vec<[u32; 2]>,
    chinese: Vec<[u32; 2]>,
    ter_removed: Vec<[u32; 2]>,
    ter_parted: Vec<[u32; 2]>,
    tokens: BTreeMap<String, Vec<(String, Vec<String>)>>,
    ter_settings: Vec<BTreeMap<String, bool>>,
    ter_words: Vec<Vec<(String, Vec<String>)>>,
    edits: Vec<(String, String, u64)>,
    sentences: Vec<Sentence>,
    corpora: Vec<Corpus>,
    own: Scores,
    signatures: Vec<String>,
}

#[derive(Deserialize)]
struct Scores {
    bleu: BTreeMap<String, f64>,
    chrf: Vec<f64>,
    ter: Vec<f64>,
}

#[derive(Deserialize)]
struct Sentence {
    hypothesis: String,
    references: Vec<String>,
    #[serde(flatten)]
    scores: Scores,
}

#[derive(Deserialize)]
struct Corpus {
    hypotheses: Vec<String>,
    references: Vec<Vec<String>>,
    #[serde(flatten)]
    scores: Scores,
}

static SETTINGS: LazyLock<Settings> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../data/metrics/settings.json")).expect("the test data is JSON")
});

/// The model that stands in for the one that sacrebleu downloads.
static SPM: LazyLock<SentencePiece> =
    LazyLock::new(|| SentencePiece::open(&data("spm/unigram-rules.spm")).expect("the test data is there"));

fn tokenize(name: &str, text: &str) -> Vec<String> {
    match name {
        "spm" => tokenize_pieces(text, |text| SPM.encode(text)),
        name => name.parse::<BleuTokenizer>().expect("a tokenizer").tokenize(text),
    }
}

fn ter_options(index: usize) -> TerOptions {
    let is_set = |name: &str| SETTINGS.ter_settings[index].get(name).copied().unwrap_or(false);
    TerOptions {
        normalized: is_set("normalized"),
        no_punct: is_set("no_punct"),
        asian_support: is_set("asian_support"),
        case_sensitive: is_set("case_sensitive"),
    }
}

#[track_caller]
fn assert_scores(hypotheses: &[String], references: &[Vec<String>], expected: &Scores) {
    let near = |actual: f64, expected: f64, what: &str| {
        assert!((actual - expected).abs() <= 1e-6, "{what}: expected {expected}, got {actual}: {hypotheses:?}");
    };
    assert_eq!((expected.bleu.len(), expected.chrf.len(), expected.ter.len()), (6, 3, 8));
    for (name, expected) in &expected.bleu {
        let counts = bleu_counts_with(hypotheses, references, |text| tokenize(name, text)).expect("a corpus");
        near(corpus_score(&counts), *expected, name);
    }
    for (words, expected) in expected.chrf.iter().enumerate() {
        let counts = chrf_counts_with(hypotheses, references, words).expect("a corpus");
        near(corpus_score(&counts), *expected, &format!("chrF with {words} words"));
    }
    for (index, expected) in expected.ter.iter().enumerate() {
        let options = ter_options(index);
        let counts = ter_counts(hypotheses, references, &options).expect("a corpus");
        near(corpus_score(&counts), *expected, &options.signature());
    }
}

#[test]
fn tokens_equal_sacrebleus() {
    assert_eq!(SETTINGS.tokens.len(), 6);
    for (name, texts) in &SETTINGS.tokens {
        assert!(texts.len() > 200);
        for (text, tokens) in texts {
            assert_eq!(&tokenize(name, text), tokens, "{name}: {text:?}");
        }
    }
}

#[test]
fn words_of_ter_equal_sacrebleus() {
    for (index, texts) in SETTINGS.ter_words.iter().enumerate() {
        for (text, words) in texts {
            assert_eq!(&ter_options(index).words(text), words, "{:?}: {text:?}", ter_options(index));
        }
    }
}

/// What a character is to a tokenizer shows in how text around it is split.
#[test]
fn every_character_is_what_it_is_to_sacrebleu() {
    let within =
        |ranges: &[[u32; 2]]| ranges.iter().flat_map(|[first, last]| *first..=*last).collect::<BTreeSet<u32>>();
    let (number, mark) = (within(&SETTINGS.number), within(&SETTINGS.punctuation));
    let (symbol, chinese) = (within(&SETTINGS.symbol), within(&SETTINGS.chinese));
    let (removed, parted) = (within(&SETTINGS.ter_removed), within(&SETTINGS.ter_parted));
    let asian = TerOptions { asian_support: true, ..TerOptions::default() };
    let (no_punct, normalized) = (TerOptions { no_punct: true, ..asian }, TerOptions { normalized: true, ..asian });
    for c in (0..=u32::from(char::MAX)).filter_map(char::from_u32).filter(|c| !c.is_whitespace() && *c > '\u{1f}') {
        let code = u32::from(c);
        let text = |before: &str, after: &str| tokenize("intl", &format!("{before}{c}{after}")).len();
        let word = format!("a{c}a");
        assert_eq!(no_punct.words(&word) == ["aa"], removed.contains(&code), "U+{code:04X} is removed");
        assert_eq!(normalized.words(&word).len() == 3, parted.contains(&code), "U+{code:04X} is a word");
        // Symbols part two numbers, marks do not; marks part two letters; a mark behind a letter stays with a number that follows.
        assert_eq!(text("1", "1") == 3, symbol.contains(&code), "U+{code:04X} as a symbol");
        assert_eq!(text("a", "a") == 3, symbol.contains(&code) || mark.contains(&code), "U+{code:04X} as punctuation");
        if !mark.contains(&code) && !symbol.contains(&code) {
            assert_eq!(text("", ".1") == 1, number.contains(&code), "U+{code:04X} as a number");
        }
        if !c.is_ascii() {
            let parts = tokenize("zh", &format!("a{c}a")).len();
            assert_eq!(parts == 3, chinese.contains(&code), "U+{code:04X} as Chinese");
        }
    }
}

#[test]
fn edits_equal_sacrebleus_where_the_search_meets_its_limits() {
    let options = TerOptions { case_sensitive: true, ..TerOptions::default() };
    for (hypothesis, reference, edits) in &SETTINGS.edits {
        let counts = TerCounts::new(hypothesis, &[reference], &options);
        assert_eq!(counts.edits, *edits, "{hypothesis} | {reference}");
    }
}

#[test]
fn scores_under_every_setting_equal_sacrebleus() {
    assert!(SETTINGS.sentences.len() > 100);
    for Sentence { hypothesis, references, scores } in &SETTINGS.sentences {
        assert_scores(std::slice::from_ref(hypothesis), std::slice::from_ref(references), scores);
    }
    for Corpus { hypotheses, references, scores } in &SETTINGS.corpora {
        assert_scores(hypotheses, references, scores);
    }
    let lines = |name: &str| crate::common::lines(name);
    let references: Vec<Vec<String>> = lines("metrics/own.reference.de").into_iter().map(|line| vec![line]).collect();
    assert_scores(&lines("metrics/own.beam1.de"), &references, &SETTINGS.own);
}

#[test]
fn a_better_translation_has_a_lower_ter() {
    let score =
        |text: &str| TerCounts::new(text, &["Ein Hund rennt durch den Schnee."], &TerOptions::default()).score();
    assert!(score("Ein Hund rennt.") < score("Katze."));
}

mod command {
    use super::*;
    use crate::common::command::run;

    fn eval(args: &[&str]) -> Value {
        let path = |name: &str| data(name).to_str().expect("UTF-8").to_string();
        let (hypotheses, reference) = (path("metrics/own.beam1.de"), path("metrics/own.reference.de"));
        let files = ["eval", "--hypotheses", &hypotheses, "--reference", &reference, "--format", "json"];
        let done = run(&[&files[..], &["--resamples", "2"], args].concat(), b"").ok();
        serde_json::from_str(&done.out).expect("one JSON object")
    }

    /// A signature without what differs by nature: resamples, seed and version.
    fn settings(signature: &str) -> String {
        let own = |part: &&str| !["bs:", "seed:", "version:"].iter().any(|name| part.starts_with(name));
        signature.split('|').filter(own).collect::<Vec<_>>().join("|")
    }

    #[test]
    fn prints_scores_and_signatures_as_sacrebleu_does() {
        let mut expected = SETTINGS.signatures.iter().map(|signature| settings(signature));
        let mut check = |report: &Value, field: &str, score: f64| {
            let signature = settings(report[field]["signature"].as_str().expect("a signature"));
            assert_eq!(Some(signature), expected.next());
            let ours = report[field]["score"].as_f64().expect("a score");
            assert!((ours - score).abs() <= 1e-6, "{field}: expected {score}, got {ours}");
        };
        for name in ["13a", "intl", "zh", "char", "none"] {
            check(&eval(&["--tokenize", name]), "bleu", SETTINGS.own.bleu[name]);
        }
        for (words, name) in ["chrF2", "chrF2+", "chrF2++"].iter().enumerate() {
            let report = eval(&["--chrf-word-order", &words.to_string()]);
            check(&report, "chrf2", SETTINGS.own.chrf[words]);
            assert_eq!(&report["chrf2"]["name"], name);
        }
        for (index, set) in SETTINGS.ter_settings.iter().enumerate() {
            let flags: Vec<String> = set.keys().map(|name| format!("--ter-{}", name.replace('_', "-"))).collect();
            let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
            let args = if flags.is_empty() { vec!["--ter"] } else { flags };
            check(&eval(&args), "ter", SETTINGS.own.ter[index]);
        }
        assert_eq!(expected.next(), None);
        assert_eq!(eval(&[]).get("ter"), None);
    }

    #[test]
    fn splits_by_a_sentencepiece_model_of_the_user() {
        let model = data("spm/unigram-rules.spm");
        let model = model.to_str().expect("UTF-8");
        let own = eval(&["--tokenize", "spm", "--spm-model", model]);
        assert!((own["bleu"]["score"].as_f64().unwrap() - SETTINGS.own.bleu["spm"]).abs() <= 1e-6, "{own}");
        // Told from other models by the hash of its file.
        let hash = &crate::common::hub_server::sha256(&std::fs::read(model).expect("the model"))[..16];
        assert!(own["bleu"]["signature"].as_str().unwrap().contains(&format!("|tok:spm-{hash}|")), "{own}");
        let named = eval(&["--tokenize", "flores200", "--spm-model", model]);
        assert_eq!(named["bleu"]["score"], own["bleu"]["score"]);
        assert!(named["bleu"]["signature"].as_str().unwrap().contains("|tok:flores200|"), "{named}");
    }

    #[test]
    fn compares_two_systems_by_ter_too() {
        let reference = data("metrics/own.reference.de");
        let report = eval(&["--ter", "--chrf-word-order", "2", "--compare", reference.to_str().unwrap()]);
        let ter = &report["comparison"]["ter"];
        assert_eq!(
            (ter["baseline_score"].as_f64(), ter["difference"].as_f64()),
            (Some(0.0), report["ter"]["score"].as_f64())
        );
        let path = |name: &str| data(name).to_str().expect("UTF-8").to_string();
        let (hypotheses, reference) = (path("metrics/own.beam1.de"), path("metrics/own.reference.de"));
        let args = [
            "eval",
            "--hypotheses",
            &hypotheses,
            "-r",
            &reference,
            "--compare",
            &reference,
            "--ter",
            "--chrf-word-order",
            "2",
        ];
        let text = run(&args, b"").ok().out;
        for line in [
            "\nchrF2++       ",
            "\nTER           ",
            "\n  TER         +",
            "\n  chrF2       -",
            "\nTER settings    nrefs:1|",
        ] {
            assert!(text.contains(line), "{line:?} is not in {text}");
        }
    }

    #[test]
    fn refuses_what_it_cannot_split() {
        let files = ["eval", "--hypotheses", "a", "--reference", "b"];
        let model = data("spm/unigram-rules.spm");
        for (args, parts) in [
            (&["--tokenize", "ja-mecab"][..], &["ja-mecab", "mecab -O wakati", "--tokenize none"][..]),
            (&["--tokenize", "ko-mecab"], &["ko-mecab", "mecab-ko", "--tokenize none"]),
            (&["--tokenize", "moses"], &["13a, intl, zh, char, none, spm"]),
            (&["--tokenize", "flores200"], &["--spm-model beside flores200"]),
            (&["--spm-model", model.to_str().unwrap()], &["option spm-model", "--tokenize 13a"]),
            (&["--tokenize", "spm", "--spm-model", "/no/such/file"], &["/no/such/file"]),
            (&["--chrf-word-order", "3"], &["chrf-word-order"]),
        ] {
            let done = run(&[&files[..], args].concat(), b"");
            assert_eq!((done.code, done.out.as_str()), (Some(2), ""), "{}", done.err);
            parts.iter().for_each(|part| assert!(done.err.contains(part), "{part:?} is not in {}", done.err));
        }
    }
}
