//! The JSON files of a model directory, with 0xff between them: config, generation config, tokenizer config, vocabulary, and the
//! index of a checkpoint in shards.
#![no_main]

use std::cell::RefCell;

use beamfuse::model::config::ModelConfig;
use beamfuse::model::generation::GenerationConfig;
use beamfuse::model::weights::Weights;
use beamfuse::text::Tokenizer;
use beamfuse::{DecodeOptions, Preset};
use beamfuse_fuzz::{ModelDir, parts, seed};
use libfuzzer_sys::fuzz_target;

thread_local! {
    static DIR: RefCell<ModelDir> = RefCell::new({
        let dir = ModelDir::new();
        let spm = seed("unigram.spm");
        dir.set("source.spm", Some(&spm));
        dir.set("target.spm", Some(&spm));
        dir
    });
}

const FILES: [&str; 5] =
    ["config.json", "generation_config.json", "tokenizer_config.json", "vocab.json", "model.safetensors.index.json"];

fuzz_target!(|data: &[u8]| {
    DIR.with_borrow(|dir| {
        for (name, content) in FILES.into_iter().zip(parts::<5>(data)) {
            dir.set(name, content);
        }
        if let Ok(config) = ModelConfig::open(dir.path()) {
            if let Ok(generation) = GenerationConfig::open(dir.path(), &config)
                && let Ok(options) = DecodeOptions::preset(Preset::Hf, &generation)
                && options.validate().is_ok()
            {
                let slot = options.for_slot(7, config.longest());
                assert!(1 <= slot.max_len && slot.max_len as usize <= config.longest());
                assert!(slot.min_len <= slot.max_len);
            }
        }
        if let Ok(tokenizer) = Tokenizer::open(dir.path()) {
            let ids = tokenizer.encode_source(">>de<< A dog\u{0} runs.");
            assert!(ids.iter().all(|id| (*id as usize) < tokenizer.source_vocab_size()));
            let _ = (tokenizer.detokenize(&ids), tokenizer.summary().to_string(), tokenizer.piece_table_hash());
        }
        let _ = Weights::open(dir.path());
    });
});
