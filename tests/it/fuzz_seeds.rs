//! The seeds of the fuzz targets are valid: a target that starts from files that are refused reaches nothing. And what hostile
//! files were found to do stays mended.

use std::path::{Path, PathBuf};

use beamfuse::cpu::Cpu;
use beamfuse::model::Transformer;
use beamfuse::model::config::ModelConfig;
use beamfuse::model::generation::GenerationConfig;
use beamfuse::text::Tokenizer;
use beamfuse::text::sentencepiece::SentencePiece;
use beamfuse::{DecodeOptions, Error, Preset};

fn seeds(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let entries = std::fs::read_dir(dir).expect("the seeds are there").map(|entry| entry.expect("an entry").path());
    entries.map(|path| (path.clone(), std::fs::read(path).expect("a file"))).collect()
}

fn split(data: &[u8], parts: usize) -> Vec<&[u8]> {
    data.splitn(parts, |byte| *byte == 0xff).collect()
}

#[test]
fn checkpoints_open() {
    let backend = Cpu::new(1, beamfuse::Dtype::F32).expect("a thread starts");
    let seeds = seeds("weights");
    assert_eq!(seeds.len(), 3);
    for (path, data) in seeds {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, part) in ["config.json", "model.safetensors"].iter().zip(split(&data, 2)) {
            std::fs::write(dir.path().join(name), part).expect("a file");
        }
        let model = Transformer::open(&backend, dir.path());
        assert!(model.is_ok(), "{}: {:?}", path.display(), model.err());
    }
}

#[test]
fn configurations_open() {
    let seeds = seeds("config");
    assert_eq!(seeds.len(), 1);
    let dir = tempfile::tempdir().expect("a directory");
    let names = ["config.json", "generation_config.json", "tokenizer_config.json", "vocab.json"];
    let parts = split(&seeds[0].1, 5);
    assert_eq!(parts.len(), 5);
    for (name, part) in names.iter().zip(parts) {
        std::fs::write(dir.path().join(name), part).expect("a file");
    }
    let spm = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/unigram.spm");
    for name in ["source.spm", "target.spm"] {
        std::fs::copy(&spm, dir.path().join(name)).expect("a file");
    }
    let config = ModelConfig::open(dir.path()).expect("a configuration");
    let generation = GenerationConfig::open(dir.path(), &config).expect("a generation configuration");
    assert!(DecodeOptions::preset(Preset::Hf, &generation).is_ok_and(|options| options.renormalize));
    let tokenizer = Tokenizer::open(dir.path()).expect("a tokenizer");
    assert_eq!(tokenizer.target_vocab_size(), config.decoder_vocab_size);
}

#[test]
fn tokenizers_open() {
    let seeds = seeds("tokenizer");
    assert_eq!(seeds.len(), 3);
    for (path, data) in seeds {
        let (size, rest) = data.split_first_chunk().expect("two bytes");
        let (model, text) = rest.split_at(usize::from(u16::from_le_bytes(*size)));
        let model = SentencePiece::from_bytes(model, &path).expect("a model");
        let text = std::str::from_utf8(text).expect("UTF-8");
        // Their rules make "A" small, split the ligature, drop the soft hyphen.
        let pieces = model.encode(text);
        assert!(
            model.decode(pieces.iter().map(String::as_str)).starts_with("a fish! b"),
            "{}: {pieces:?}",
            path.display()
        );
    }
}

#[test]
fn a_position_table_beyond_reason_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = r#"{"model_type": "marian", "d_model": 65536, "vocab_size": 3, "max_position_embeddings": 65536,
                     "pad_token_id": 1, "eos_token_id": 0, "decoder_start_token_id": 1}"#;
    std::fs::write(dir.path().join("config.json"), config).expect("a file");
    match ModelConfig::open(dir.path()) {
        Err(Error::Config { field, expected, .. }) => {
            assert_eq!(
                (field.as_str(), expected.as_str()),
                ("max_position_embeddings", "at most 4096 for d_model 65536")
            );
        }
        other => panic!("{other:?}"),
    }
}
