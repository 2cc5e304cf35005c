//! A backend in miniature: several request threads share one translator, and thereby one batch.
//!
//! `cargo run --release --example embed [MODEL_DIR]`

use beamfuse::{DecodeOptions, Translator};

fn main() -> beamfuse::Result<()> {
    let dir = std::env::args().nth(1).unwrap_or_else(|| "models/m30k-en-de".into());
    let translator = Translator::open(dir)?;
    let requests = [
        ("web", vec!["A man is riding a bike.", "Two dogs run through the snow."]),
        ("app", vec!["A little girl is eating an ice cream."]),
        ("mail", vec!["The weather is nice today.", "I do not understand this.", "Where is the station?"]),
    ];
    // Each thread gets its own answers, the same as if it were alone.
    std::thread::scope(|scope| {
        let handles: Vec<_> = requests
            .iter()
            .map(|(client, texts)| {
                let translator = &translator;
                scope.spawn(move || Ok((client, translator.translate(texts, &DecodeOptions::default())?)))
            })
            .collect();
        for handle in handles {
            let (client, translations) = handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            for translation in translations {
                println!("{client}: {} -> {}", translation.source, translation.text());
            }
        }
        Ok(())
    })
}
