//! The tokenizer against what the SentencePiece library was recorded to do, and against malformed files.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use beamfuse::Error;
use beamfuse::text::Tokenizer;
use beamfuse::text::sentencepiece::SentencePiece;
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn demo() -> PathBuf {
    root().join("models/m30k-en-de")
}

fn spm(name: &str) -> PathBuf {
    root().join("tests/data/spm").join(name).with_extension("spm")
}

/// The demo model's tokenizer, for tests that need it many times.
static DEMO: LazyLock<Tokenizer> = LazyLock::new(|| Tokenizer::open(&demo()).unwrap());

const MODELS: [&str; 32] = [
    "unigram-rules",
    "unigram-bytes",
    "unigram-symbols",
    "unigram-spaces",
    "unigram-bare",
    "unigram-suffix",
    "unigram-unused",
    "unigram-escape",
    "bpe-rules",
    "bpe-bytes",
    "bpe-symbols",
    "bpe-spaces",
    "bpe-bare",
    "bpe-suffix",
    "bpe-unused",
    "bpe-escape",
    "char-rules",
    "char-bytes",
    "char-symbols",
    "char-spaces",
    "char-bare",
    "char-suffix",
    "char-unused",
    "char-escape",
    "word-rules",
    "word-bytes",
    "word-symbols",
    "word-spaces",
    "word-bare",
    "word-suffix",
    "word-unused",
    "word-escape",
];

fn json_lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|piece| piece.as_str().unwrap()).collect()
}

/// A model directory with small models and the vocabularies given.
fn directory(files: &[(&str, Value)]) -> TempDir {
    let dir = TempDir::new().unwrap();
    fs::copy(spm("unigram-bare"), dir.path().join("source.spm")).unwrap();
    fs::copy(spm("bpe-bare"), dir.path().join("target.spm")).unwrap();
    for (name, json) in files {
        fs::write(dir.path().join(name), json.to_string()).unwrap();
    }
    dir
}

/// What opening a directory with this `vocab.json` fails with: expected and got.
fn vocabulary_error(json: Value) -> (String, String) {
    match Tokenizer::open(directory(&[("vocab.json", json)]).path()) {
        Err(Error::Tokenizer { path, expected, got }) => {
            assert!(path.ends_with("vocab.json"), "{}", path.display());
            (expected, got)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn demo_model_agrees_with_the_reference() {
    let tokenizer = &*DEMO;
    let source = SentencePiece::open(&demo().join("source.spm")).unwrap();
    let lines = json_lines(&root().join("tests/data/own/tokens.jsonl"));
    assert_eq!(lines.len(), 258);
    for line in lines {
        let text = line["text"].as_str().unwrap();
        assert_eq!(source.encode(text), strings(&line["pieces"]), "{text:?}");
        let ids = tokenizer.encode_source(text);
        assert_eq!(json!(ids), line["token_ids"], "{text:?}");
        assert_eq!(tokenizer.detokenize(&ids), line["detokenized"].as_str().unwrap(), "{text:?}");
    }
}

#[test]
fn small_models_agree_with_the_sentencepiece_library() {
    for name in MODELS {
        let model = SentencePiece::open(&spm(name)).unwrap();
        let lines = json_lines(&spm(name).with_extension("jsonl"));
        assert_eq!(lines.len(), 107);
        for line in lines {
            let pieces = strings(&line["pieces"]);
            if let Some(text) = line["text"].as_str() {
                assert_eq!(model.encode(text), pieces, "{name}: {text:?}");
            }
            let decoded = line["decoded"].as_str().unwrap();
            assert_eq!(model.decode(pieces.iter().copied()), decoded, "{name}: {pieces:?}");
        }
    }
}

#[test]
fn special_ids_and_pieces() {
    let tokenizer = &*DEMO;
    assert_eq!((tokenizer.eos_id(), tokenizer.unk_id(), tokenizer.pad_id()), (0, 1, 8000));
    assert_eq!((tokenizer.source_vocab_size(), tokenizer.target_vocab_size()), (8001, 8001));
    assert_eq!((tokenizer.target_piece(0), tokenizer.source_piece(3)), ("</s>", "▁a"));
    assert_eq!((tokenizer.target_piece(8001), tokenizer.source_piece(u32::MAX)), ("<unk>", "<unk>"));
    assert_eq!(tokenizer.encode_source("  \t "), [0]);
    assert_eq!(tokenizer.encode_target("a a"), [3, 3, 0]);
    // End of sentence and padding are dropped anywhere, an id outside the vocabulary is unknown.
    assert_eq!(tokenizer.detokenize(&[8000, 3, 0, 3, 8000, 9999, 0]), "a a ⁇ ");
    assert_eq!(tokenizer.detokenize(&[]), "");
    let summary = tokenizer.summary();
    assert_eq!((summary.source.model_type.as_str(), summary.source.model_pieces), ("unigram", 8000));
    assert!(summary.shared_vocabulary && summary.language_tokens.is_empty());
    assert!(summary.to_string().contains("special tokens: </s> 0, <pad> 8000, <unk> 1"), "{summary}");
}

#[test]
fn a_language_token_in_front_is_one_token() {
    let vocabulary = json!({"</s>": 0, "<unk>": 1, ">>fra<<": 2, "e": 3, "<pad>": 4});
    let dir = directory(&[("vocab.json", vocabulary)]);
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    assert_eq!(tokenizer.encode_source("e"), [3, 0]);
    assert_eq!(tokenizer.encode_source(">>fra<<e"), [2, 3, 0]);
    assert_eq!(tokenizer.encode_source(">>fra<<   e"), [2, 3, 0]);
    assert_eq!(tokenizer.encode_target(">>fra<<e"), [2, 3, 0]);
    assert_eq!(tokenizer.encode_source(">>deu<<e"), [1, 3, 0]);
    assert_eq!(tokenizer.encode_source(">>fra<<"), [2, 0]);
    assert!(!tokenizer.encode_source(" >>fra<<e").contains(&2));
    assert_eq!(tokenizer.summary().language_tokens, [">>fra<<"]);
}

#[test]
fn separate_vocabularies() {
    let source = json!({"e": 0, "<unk>": 1, "</s>": 2, "<pad>": 3});
    let target = json!({"</s>": 0, "<unk>": 1, "x": 2, "e": 3, "<pad>": 4});
    let separate = ("tokenizer_config.json", json!({"separate_vocabs": true}));
    let by_setting = [("vocab.json", source.clone()), ("target_vocab.json", target.clone()), separate];
    let by_name = [("source_vocab.json", source), ("target_vocab.json", target)];
    for files in [&by_setting[..], &by_name[..]] {
        let dir = directory(files);
        let tokenizer = Tokenizer::open(dir.path()).unwrap();
        assert_eq!((tokenizer.source_vocab_size(), tokenizer.target_vocab_size()), (4, 5));
        assert_eq!((tokenizer.encode_source("e"), tokenizer.encode_target("e")), (vec![0, 2], vec![3, 0]));
        assert_eq!((tokenizer.source_piece(2), tokenizer.target_piece(2)), ("</s>", "x"));
        assert_eq!((tokenizer.eos_id(), tokenizer.pad_id()), (0, 4));
        assert_eq!(tokenizer.detokenize(&[2, 3, 4, 0]), "xe");
        assert!(!tokenizer.summary().shared_vocabulary);
    }
    // What is saved of the special tokens has the ids of the source.
    let saved = json!({"separate_vocabs": true, "added_tokens_decoder": {
        "2": {"content": "</s>", "special": true}, "1": {"content": "<unk>", "special": true},
        "3": {"content": "<pad>", "special": true}}});
    let dir = directory(&[by_setting[0].clone(), by_setting[1].clone(), ("tokenizer_config.json", saved)]);
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    assert_eq!((tokenizer.source_piece(2), tokenizer.target_piece(2), tokenizer.target_piece(3)), ("</s>", "x", "e"));
    assert_eq!((tokenizer.eos_id(), tokenizer.pad_id(), tokenizer.encode_target("e")), (0, 4, vec![3, 0]));
    assert_eq!(tokenizer.detokenize(&[2, 3, 4, 0]), "xe");
    // Without the setting vocab.json is used for both, whatever else lies there.
    let dir = directory(&by_setting[..2]);
    assert_eq!(Tokenizer::open(dir.path()).unwrap().target_vocab_size(), 4);
}

#[test]
fn the_configuration_names_the_special_tokens() {
    let vocabulary = ("vocab.json", json!({"[EOS]": 0, "?": 1, "[PAD]": 2}));
    let config = json!({"eos_token": "[EOS]", "unk_token": {"content": "?", "lstrip": false}, "pad_token": "[PAD]"});
    let dir = directory(&[vocabulary.clone(), ("tokenizer_config.json", config)]);
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    assert_eq!((tokenizer.eos_id(), tokenizer.unk_id(), tokenizer.pad_id()), (0, 1, 2));
    for (config, wrong) in [
        (json!({"separate_vocabs": "yes"}), "separate_vocabs"),
        (json!({"eos_token": 3}), "eos_token"),
        (json!({"pad_token": {"text": "a"}}), "pad_token"),
        (json!([]), "settings"),
    ] {
        let dir = directory(&[vocabulary.clone(), ("tokenizer_config.json", config)]);
        match Tokenizer::open(dir.path()) {
            Err(Error::Config { field, .. }) => assert_eq!(field, wrong),
            other => panic!("{wrong}: {other:?}"),
        }
    }
}

#[test]
fn piece_tables_are_compared() {
    let open = |json: Value| Tokenizer::open(directory(&[("vocab.json", json)]).path()).unwrap();
    let first = open(json!({"</s>": 0, "<unk>": 1, "<pad>": 2, "ab": 3, "c": 4}));
    let same = open(json!({"c": 4, "<unk>": 1, "<pad>": 2, "</s>": 0, "ab": 3}));
    let moved = open(json!({"</s>": 0, "<unk>": 1, "<pad>": 2, "a": 3, "bc": 4}));
    let longer = open(json!({"</s>": 0, "<unk>": 1, "<pad>": 2, "ab": 3, "c": 4, "d": 5}));
    assert_eq!((first.piece_table_hash(), first.first_difference(&same)), (same.piece_table_hash(), None));
    for (other, difference) in [(&moved, "id 3 is \"ab\" in "), (&longer, "id 5 is not in use in ")] {
        assert_ne!(first.piece_table_hash(), other.piece_table_hash());
        let found = first.first_difference(other).unwrap();
        assert!(found.starts_with(difference), "{found}");
    }
    // FNV-1a over "</s>", "<unk>" and "<pad>", each with a 0xFF byte behind it.
    let special = open(json!({"</s>": 0, "<unk>": 1, "<pad>": 2}));
    assert_eq!(special.piece_table_hash(), 0x2804_d847_7b10_24db);
}

#[test]
fn a_malformed_vocabulary_is_refused() {
    let refused = |json, expected: &str, got: &str| {
        let error = vocabulary_error(json);
        assert!(error.0.contains(expected) && error.1.contains(got), "{error:?}");
    };
    refused(json!(["</s>"]), "object", "another");
    refused(json!({}), "</s>", "0 pieces");
    refused(json!({"<unk>": 0, "<pad>": 1}), "</s>", "without it");
    refused(json!({"</s>": 0, "<pad>": 1}), "<unk>", "without it");
    refused(json!({"</s>": 0, "<unk>": 1}), "<pad>", "without it");
    for id in [json!(u64::MAX), json!(1u64 << 32), json!(1e300), json!(-1), json!(2.5), json!("2")] {
        refused(json!({"</s>": 0, "<unk>": 1, "<pad>": 2, "x": id}), "ids from 0 on", &id.to_string());
    }
    refused(json!({"</s>": 0, "<unk>": 1, "<pad>": 2, "x": 1}), "distinct", "1 for both");
}

#[test]
fn a_missing_or_unreadable_file_is_named() {
    let vocabulary = ("vocab.json", json!({"</s>": 0, "<unk>": 1, "<pad>": 2}));
    for name in ["source.spm", "target.spm", "vocab.json"] {
        let dir = directory(std::slice::from_ref(&vocabulary));
        fs::remove_file(dir.path().join(name)).unwrap();
        match Tokenizer::open(dir.path()) {
            Err(Error::Io { path, .. }) => assert!(path.ends_with(name), "{}", path.display()),
            other => panic!("{name}: {other:?}"),
        }
    }
    let dir = directory(&[vocabulary]);
    for (name, contents) in [("vocab.json", "{\"</s>\": 0"), ("tokenizer_config.json", "")] {
        let before = fs::read(dir.path().join(name)).ok();
        fs::write(dir.path().join(name), contents).unwrap();
        assert!(matches!(Tokenizer::open(dir.path()), Err(Error::Json { path, .. }) if path.ends_with(name)));
        if let Some(bytes) = before {
            fs::write(dir.path().join(name), bytes).unwrap();
        }
    }
}

#[test]
fn a_truncated_model_is_refused() {
    let refused = |bytes: &[u8], cut: usize| match SentencePiece::from_bytes(&bytes[..cut], Path::new("cut.spm")) {
        Err(Error::Tokenizer { .. }) => {}
        other => panic!("{cut} of {} bytes: {:?}", bytes.len(), other.map(|model| model.piece_count())),
    };
    for name in ["unigram-bytes", "bpe-symbols"] {
        let bytes = fs::read(spm(name)).unwrap();
        for cut in 0..bytes.len() {
            refused(&bytes, cut);
        }
    }
    let bytes = fs::read(demo().join("source.spm")).unwrap();
    for cut in (0..bytes.len()).step_by(4001).chain(bytes.len() - 300..bytes.len()) {
        refused(&bytes, cut);
    }
}

#[test]
fn a_long_line_takes_linear_time() {
    let demo = SentencePiece::open(&demo().join("source.spm")).unwrap();
    let models = MODELS.iter().map(|name| SentencePiece::open(&spm(name)).unwrap());
    let mut state = 1u32;
    let letters = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        char::from(b"etaoin shrdlu"[(state >> 16) as usize % 13])
    });
    let random: String = letters.take(1 << 20).collect();
    for model in models.chain([demo]) {
        for text in ["x".repeat(200_000), " ".repeat(1 << 20), "\u{65e5}".repeat(200_000), random.clone()] {
            let start = Instant::now();
            let pieces = model.encode(&text);
            let decoded = model.decode(pieces.iter().map(String::as_str));
            assert!(decoded.len() <= '\u{2581}'.len_utf8() * (text.len() + 1));
            // A quadratic algorithm would need hours.
            assert!(start.elapsed() < Duration::from_secs(20), "{:?} for {} bytes", start.elapsed(), text.len());
        }
    }
}

/// Characters of all kinds, those that mean something to the tokenizer among them.
fn odd_text() -> impl Strategy<Value = String> {
    let special =
        prop::sample::select(vec!["\u{2581}", " ", "\0", "<unk>", "</s>", ">>", "<<", "ab", "der", "<0x41>", "x y"]);
    let part = prop_oneof![any::<String>(), special.prop_map(str::to_owned), "[a-z ]{0,8}"];
    prop::collection::vec(part, 0..12).prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn any_text_gives_ids_of_the_vocabulary(text in odd_text()) {
        for ids in [DEMO.encode_source(&text), DEMO.encode_target(&text)] {
            prop_assert_eq!(ids.last(), Some(&DEMO.eos_id()));
            prop_assert!(ids.iter().all(|id| (*id as usize) < DEMO.source_vocab_size()));
            DEMO.detokenize(&ids);
        }
    }

    #[test]
    fn pieces_without_normalisation_spell_the_text(text in odd_text(), bpe: bool) {
        // Spaces are kept, and nothing else is rewritten: the pieces joined are the text.
        let model = SentencePiece::open(&spm(if bpe { "bpe-unused" } else { "unigram-unused" })).unwrap();
        prop_assert_eq!(model.encode(&text).concat(), text.replace(' ', "\u{2581}"));
    }

    #[test]
    fn any_ids_give_text(ids in prop::collection::vec(prop_oneof![0u32..8100, any::<u32>()], 0..40)) {
        DEMO.detokenize(&ids);
    }

    #[test]
    fn any_bytes_as_a_model_give_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(SentencePiece::from_bytes(&bytes, Path::new("random.spm")).is_err());
    }

    #[test]
    fn a_damaged_model_never_panics(
        index in 0..MODELS.len(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        text in odd_text(),
    ) {
        let mut bytes = fs::read(spm(MODELS[index])).unwrap();
        for (place, byte) in changes {
            *place.get_mut(&mut bytes) = byte;
        }
        if let Ok(model) = SentencePiece::from_bytes(&bytes, Path::new("damaged.spm")) {
            let pieces = model.encode(&text);
            model.decode(pieces.iter().map(String::as_str));
        }
    }
}
