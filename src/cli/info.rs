//! `info`: what a model directory holds and what it needs.

use std::path::PathBuf;

use crate::cli::Ending;
use crate::cli::counts::count;
use crate::cli::model_dir::{DtypeName, ModelName, parse_bytes};
use crate::counts;
use crate::cpu::{PATH_VARIABLE, Path, chosen_path};
use crate::model::config::{ModelConfig, StackConfig};
use crate::model::generation::GenerationConfig;
use crate::text::Tokenizer;
use crate::translator::{EngineOptions, MemoryPlan, ModelInfo, SearchSize};
use crate::{DecodeOptions, Device, Result};

/// Show a model: architecture, sizes, element type, memory needed, tokenizer, limits.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    model: ModelName,
    /// Device that the memory is planned for; it need not be there.
    #[arg(long, value_name = "DEVICE", default_value_t = Device::Cpu)]
    device: Device,
    /// Element type of the weights.
    #[arg(long, value_enum, default_value_t = DtypeName::F32)]
    dtype: DtypeName,
    /// Sentences decoded at once.
    #[arg(long, value_name = "SLOTS", default_value_t = EngineOptions::default().slots, value_parser = count(counts::SLOTS))]
    batch_size: usize,
    /// Hypotheses kept alive per sentence.
    #[arg(long, value_name = "K", default_value_t = DecodeOptions::default().beam_size, value_parser = count(counts::HYPOTHESES))]
    beam_size: usize,
    /// Tokens of the longest source and of the longest translation.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = count(1..=*counts::LENGTH.end()))]
    length: usize,
    /// Plan for an amateur beside the model: its model directory.
    #[arg(long, value_name = "DIR")]
    amateur: Option<PathBuf>,
    /// Plan for another member of an ensemble, a model directory; may be given several times.
    #[arg(long, value_name = "DIR")]
    ensemble: Vec<PathBuf>,
    /// Say how many of the sentences fit so much memory.
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    memory_budget: Option<u64>,
}

pub(super) fn run(arguments: &Arguments) -> Result<Ending> {
    let info = arguments.model.open(|dir| ModelInfo::open(dir))?;
    let tokenizer = Tokenizer::open(&info.dir)?;
    let generation = GenerationConfig::open(&info.dir, &info.config)?;
    for (name, value) in lines(&info, &tokenizer, &generation, arguments)? {
        super::output::print(&format!("{name:<14} {value}"))?;
    }
    Ok(Ending::Complete)
}

fn lines(
    info: &ModelInfo,
    tokenizer: &Tokenizer,
    generation: &GenerationConfig,
    arguments: &Arguments,
) -> Result<Vec<(&'static str, String)>> {
    let config = &info.config;
    let stack = |s: &StackConfig| format!("{} layers, {} heads, ffn {}", s.layers, s.heads.num_heads, s.ffn_dim);
    let shared = if config.share_embeddings { "shared" } else { "separate" };
    let vocabulary = format!("{} source, {} target, {shared} embeddings", config.vocab_size, config.decoder_vocab_size);
    let search = match generation.unsupported.is_empty() {
        true => format!("beam {}, at most {} tokens", generation.beam_size, generation.max_len),
        false => format!("not reproduced: {}", generation.unsupported.join(", ")),
    };
    let limits = match config.max_len {
        Some(most) => format!("{most} tokens per source and per translation"),
        None => "none: positions go on".to_owned(),
    };
    let mut lines = vec![
        ("model", info.dir.display().to_string()),
        (
            "architecture",
            format!("{}, d_model {}, {:?}", config.model_type, config.d_model, config.activation).to_lowercase(),
        ),
        ("encoder", stack(&config.encoder)),
        ("decoder", stack(&config.decoder)),
        ("vocabulary", vocabulary),
        ("weights", info.weights.file_name().unwrap_or_default().to_string_lossy().into_owned()),
        ("parameters", format!("{} in {}", info.parameters, info.dtype)),
        ("memory", memory(info, arguments)?),
        ("tokenizer", indented(&tokenizer.summary().to_string())),
        ("limits", limits),
        ("hf preset", search),
    ];
    lines.push(("cpu path", indented(&cpu_paths()?)));
    lines.extend(config.ignored.iter().map(|flag| ("ignored", flag.clone())));
    Ok(lines)
}

/// The instructions that the CPU computes with, then for each choice whether it can be used.
fn cpu_paths() -> Result<String> {
    let path = chosen_path()?;
    let by_name = std::env::var_os(PATH_VARIABLE).is_some_and(|name| !name.is_empty());
    let why = if by_name { format!("chosen by {PATH_VARIABLE}") } else { "the best here".to_owned() };
    let state = |path: Path| path.missing().map_or("can be used".to_owned(), |reason| format!("missing: {reason}"));
    let all = Path::ALL.map(|path| format!("\n{}: {}", path.name(), state(path)));
    Ok(format!("{}, {why}{}", path.name(), all.concat()))
}

/// What the models and a search take, in total, then by part; and how much of it fits a budget.
fn memory(info: &ModelInfo, arguments: &Arguments) -> Result<String> {
    let &Arguments { device, dtype, batch_size: slots, beam_size, length, memory_budget, .. } = arguments;
    let size = SearchSize { slots, beam_size, length };
    let companions = arguments.ensemble.iter().chain(&arguments.amateur);
    let companions = companions.map(|dir| ModelConfig::open(dir)).collect::<Result<Vec<_>>>()?;
    let models: Vec<&ModelConfig> = std::iter::once(&info.config).chain(&companions).collect();
    let plan = MemoryPlan::new(&models, device, dtype.dtype(), size)?;
    let parts = [
        ("weights", plan.weights),
        ("caches", plan.caches),
        ("logits", plan.logits),
        ("activations", plan.activations),
        ("search", plan.search),
    ];
    let parts: Vec<String> = parts.iter().map(|(name, bytes)| format!("{name} {}", mebibytes(*bytes))).collect();
    let mut text = format!(
        "{} on {device} in {} to decode {slots} sentences of {length} tokens at beam {beam_size}\n{}",
        mebibytes(plan.total()),
        dtype.name(),
        parts.join(", ")
    );
    if let Some(budget) = memory_budget {
        let fit = MemoryPlan::slots_within(&models, device, dtype.dtype(), size, budget)?;
        text += &format!("\n{fit} of {slots} sentences at once fit {}", mebibytes(budget));
    }
    Ok(indented(&text))
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// Further lines below the first.
fn indented(text: &str) -> String {
    text.replace('\n', "\n               ")
}
