//! `info`: what a model directory holds and what it needs.

use crate::DecodeOptions;
use crate::Result;
use crate::cli::Ending;
use crate::cli::model_dir::ModelName;
use crate::model::config::{GenerationConfig, StackConfig};
use crate::text::Tokenizer;
use crate::translator::{EngineOptions, ModelInfo};

/// Show a model: architecture, sizes, element type, memory needed, tokenizer, limits.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    model: ModelName,
}

pub(super) fn run(arguments: &Arguments) -> Result<Ending> {
    let info = ModelInfo::open(arguments.model.resolve()?)?;
    let tokenizer = Tokenizer::open(&info.dir)?;
    let generation = GenerationConfig::open(&info.dir, &info.config)?;
    for (name, value) in lines(&info, &tokenizer, &generation) {
        super::output::print(&format!("{name:<14} {value}"))?;
    }
    Ok(Ending::Complete)
}

fn lines(info: &ModelInfo, tokenizer: &Tokenizer, generation: &GenerationConfig) -> Vec<(&'static str, String)> {
    let config = &info.config;
    let stack = |s: &StackConfig| format!("{} layers, {} heads, ffn {}", s.layers, s.heads.num_heads, s.ffn_dim);
    let shared = if config.share_embeddings { "shared" } else { "separate" };
    let vocabulary = format!("{} source, {} target, {shared} embeddings", config.vocab_size, config.decoder_vocab_size);
    let search = match generation.unsupported.is_empty() {
        true => format!("beam {}, at most {} tokens", generation.beam_size, generation.max_len),
        false => format!("not reproduced: {}", generation.unsupported.join(", ")),
    };
    let mut lines = vec![
        ("model", info.dir.display().to_string()),
        ("architecture", format!("marian, d_model {}, {:?}", config.d_model, config.activation).to_lowercase()),
        ("encoder", stack(&config.encoder)),
        ("decoder", stack(&config.decoder)),
        ("vocabulary", vocabulary),
        ("weights", info.weights.file_name().unwrap_or_default().to_string_lossy().into_owned()),
        ("parameters", format!("{} in {}", info.parameters, info.dtype)),
        ("memory", memory(info)),
        ("tokenizer", tokenizer.summary().to_string().replace('\n', "\n               ")),
        ("limits", format!("{} tokens per source and per translation", config.max_position_embeddings)),
        ("hf preset", search),
    ];
    lines.extend(config.ignored.iter().map(|flag| ("ignored", flag.clone())));
    lines
}

fn memory(info: &ModelInfo) -> String {
    let (slots, beam_size) = (EngineOptions::default().slots, DecodeOptions::default().beam_size);
    // A caption's length; the longest sentence that comes in decides.
    let len = 64;
    let mib = |bytes: usize| format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20));
    let (weights, session) = (info.weight_bytes(), info.session_bytes(slots, beam_size, len));
    format!(
        "{} of weights as f32, and {} to decode {slots} sentences of {len} tokens at beam {beam_size}",
        mib(weights),
        mib(session)
    )
}
