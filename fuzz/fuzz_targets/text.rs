//! Any text through the demo model's tokenizer.
#![no_main]

use std::sync::LazyLock;

use beamfuse::text::Tokenizer;
use beamfuse_fuzz::demo_model;
use libfuzzer_sys::fuzz_target;

static TOKENIZER: LazyLock<Tokenizer> =
    LazyLock::new(|| Tokenizer::open(demo_model()).expect("the demo model is there"));

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let ids = TOKENIZER.encode_source(&text);
    assert_eq!(ids.last(), Some(&TOKENIZER.eos_id()));
    assert!(ids.iter().all(|id| (*id as usize) < TOKENIZER.source_vocab_size()));
    let ids = TOKENIZER.encode_target(&text);
    assert!(ids.iter().all(|id| (*id as usize) < TOKENIZER.target_vocab_size()));
    let _ = TOKENIZER.detokenize(&ids);
});
