//! `diagnose`: whether a model has exposure bias, and which remedy fits.

use std::path::{Path, PathBuf};

use crate::cli::counts::{count, seed};
use crate::cli::input::read_all;
use crate::cli::model_dir::{EngineArguments, ModelArguments, ModelName};
use crate::cli::output::{Output, print};
use crate::cli::search_options::SearchArguments;
use crate::cli::{Ending, complain, note};
use crate::counts;
use crate::diagnose::{self, Options, TestSet};
use crate::jsonl::json;
use crate::metrics::BootstrapOptions;
use crate::model::generation::GenerationConfig;
use crate::translator::EngineOptions;
use crate::{Error, Result, Translator};

/// Find out whether a model has the gap between training on gold prefixes and decoding on its own, and which remedy fits.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes: 0 done; 1 done, with lines left out; 2 wrong options, model or files. The same call prints the same bytes."
)]
pub(super) struct Arguments {
    /// Source file, one sentence per line.
    #[arg(long, short, value_name = "FILE")]
    source: PathBuf,
    /// Reference translations, line by line those of the source.
    #[arg(long, short, value_name = "FILE")]
    reference: PathBuf,
    /// A better model with the same pieces, taken for the truth: adds the excess accumulated error.
    #[arg(long, value_name = "DIR|ID")]
    oracle: Option<PathBuf>,
    /// The log.jsonl of a scheduled sampling run, to warn of a schedule that never left gold prefixes.
    #[arg(long, value_name = "FILE")]
    train_log: Option<PathBuf>,
    /// Write everything as one JSON object.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write all numbers as CSV.
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Write a page with plots.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Leave out lines with an empty or too long side, and count them, instead of refusing the files.
    #[arg(long)]
    skip_bad: bool,
    /// Lines that corruption, prefix switch and oracle are tried on, spread evenly over the set.
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = count(counts::LINES))]
    probe_lines: usize,
    /// Lines that the sweep over beam sizes (1 to 32) and length penalties is run on, spread evenly over the set.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = count(counts::LINES))]
    sweep_lines: usize,
    /// Resamples of the bootstrap.
    #[arg(long, value_name = "N", default_value_t = BootstrapOptions::default().resamples, value_parser = count(counts::RESAMPLES))]
    resamples: usize,
    /// Seed of resamples and corruptions.
    #[arg(long, value_name = "N", default_value_t = BootstrapOptions::default().seed, value_parser = seed())]
    bootstrap_seed: u64,
    #[command(flatten)]
    model: ModelArguments,
    #[command(flatten)]
    search: SearchArguments,
}

pub(super) fn run(arguments: &Arguments) -> Result<Ending> {
    let (sources, references) = (read_all(&arguments.source)?, read_all(&arguments.reference)?);
    check_counts((&arguments.source, sources.len()), (&arguments.reference, references.len()))?;
    let schedule_warning = match &arguments.train_log {
        Some(path) => diagnose::schedule_warning(&read_all(path)?),
        None => None,
    };
    let dir = arguments.model.name.resolve()?;
    let outputs = Outputs::create(arguments)?;
    let translator = arguments.model.open()?;
    let search = arguments.search.resolve(&translator)?;
    let set = TestSet::new(&translator, &sources, &references);
    if let (Some(first), false) = (set.refused.first(), arguments.skip_bad) {
        let (bad, expected) = (set.refused.len(), "a source and a reference in every line, or --skip-bad".to_owned());
        let got = format!("{first}{}", if bad > 1 { format!(" ({bad} such lines)") } else { String::new() });
        return Err(Error::Input { operation: "diagnose", expected, got });
    }
    let mut settings = diagnose::settings_warnings(&search, &GenerationConfig::open(&dir, translator.config())?);
    settings.extend(schedule_warning);
    let oracle = arguments.oracle.as_ref().map(|path| open_oracle(path, arguments)).transpose()?;
    let options = Options {
        search,
        bootstrap: BootstrapOptions { resamples: arguments.resamples, seed: arguments.bootstrap_seed },
        probe_lines: arguments.probe_lines,
        sweep_lines: arguments.sweep_lines,
    };
    let name =
        |path: &Path| path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned());
    let report = diagnose::run(
        (&name(&dir), &translator),
        oracle.as_ref().map(|(path, oracle)| (name(path), oracle)).as_ref().map(|(name, oracle)| (&name[..], *oracle)),
        &set,
        &options,
        settings,
        &mut |stage| note(&format!("diagnose: {stage}")),
    )?;
    outputs.write(&report)?;
    print(&report.to_string())?;
    set.refused.iter().for_each(|refusal| complain(&format!("left out: {refusal}")));
    Ok(if set.refused.is_empty() { Ending::Complete } else { Ending::BadLines })
}

fn check_counts((source, lines): (&Path, usize), (reference, count): (&Path, usize)) -> Result<()> {
    let refuse = |expected: String, got: String| Err(Error::Input { operation: "diagnose", expected, got });
    if lines == 0 {
        return refuse(format!("at least one line in {}", source.display()), "none".into());
    }
    if lines != count {
        let expected = format!("{lines} lines in {} as in {}", reference.display(), source.display());
        return refuse(expected, count.to_string());
    }
    Ok(())
}

fn open_oracle(path: &Path, arguments: &Arguments) -> Result<(PathBuf, Translator)> {
    let EngineArguments { device, threads, dtype, batch_size, .. } = &arguments.model.engine;
    let dir = ModelName { model: Some(path.to_path_buf()), revision: None }.resolve()?;
    let options = EngineOptions {
        device: *device,
        threads: *threads,
        slots: *batch_size,
        dtype: dtype.dtype(),
        ..EngineOptions::default()
    };
    let translator = Translator::open_with(&dir, &options)?;
    Ok((dir, translator))
}

/// The files that are written, created before any work.
struct Outputs {
    json: Option<Output>,
    csv: Option<Output>,
    html: Option<Output>,
}

impl Outputs {
    fn create(arguments: &Arguments) -> Result<Self> {
        let create = |path: &Option<PathBuf>| path.as_deref().map(|path| Output::create(Some(path))).transpose();
        Ok(Outputs { json: create(&arguments.json)?, csv: create(&arguments.csv)?, html: create(&arguments.html)? })
    }

    fn write(self, report: &diagnose::Report) -> Result<()> {
        let write = |output: Option<Output>, text: String| {
            let Some(mut output) = output else { return Ok(()) };
            output.line(text.trim_end())?;
            output.finish()
        };
        write(self.json, json(report)?)?;
        write(self.csv, report.csv())?;
        write(self.html, report.html())
    }
}
