//! `diagnose`: whether a model has exposure bias, and which remedy fits.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::cli::counts::{count, seed};
use crate::cli::input::read_all;
use crate::cli::model_dir::{EngineArguments, ModelArguments, ModelName};
use crate::cli::output::{Output, print};
use crate::cli::search_options::SearchArguments;
use crate::cli::warnings::Warnings;
use crate::cli::{Ending, complain, note};
use crate::counts;
use crate::diagnose::{self, Call, Digest, Network, Options, Oracle, Provenance, TestSet};
use crate::files::{io, write_whole};
use crate::jsonl::json;
use crate::metrics::BootstrapOptions;
use crate::model::generation::GenerationConfig;
use crate::translator::EngineOptions;
use crate::{DecodeOptions, Error, Result, Translator};

/// Find out whether a model has the gap between training on gold prefixes and decoding on its own, and which remedy fits.
///
/// Everything is measured twice: on the references, and on references that the model itself has sampled, with which there is no gap by
/// construction. Only the difference counts.
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
    /// A better model with the same pieces, taken for the truth: adds the excess accumulated error. Computed on the CPU in f32.
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
    /// Write each chart as an SVG and as a PDF file of its own into a directory, which is made if it is not there.
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
    /// Leave out lines with an empty or too long side, and count them, instead of refusing the files.
    #[arg(long)]
    skip_bad: bool,
    /// Lines that corruption, prefix switch and oracle are tried on, spread evenly over the set.
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = count(counts::LINES))]
    probe_lines: usize,
    /// Lines that the sweep over beam sizes (1 to 32) and length penalties is run on, spread evenly over the set.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = count(counts::LINES))]
    sweep_lines: usize,
    /// Sets of references that are sampled from the model, to compare with.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = count(counts::NULL_DRAWS))]
    null_draws: usize,
    /// Permutations behind each test.
    #[arg(long, value_name = "N", default_value_t = 999, value_parser = count(counts::RESAMPLES))]
    permutations: usize,
    /// Resamples of the bootstrap.
    #[arg(long, value_name = "N", default_value_t = BootstrapOptions::default().resamples, value_parser = count(counts::RESAMPLES))]
    resamples: usize,
    /// Seed of resamples, samples and wrong picks.
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
    let oracle = arguments.oracle.as_ref().map(|path| open_oracle(path, &dir, arguments)).transpose()?;
    let options = Options {
        bootstrap: BootstrapOptions { resamples: arguments.resamples, seed: arguments.bootstrap_seed },
        probe_lines: arguments.probe_lines,
        sweep_lines: arguments.sweep_lines,
        null_draws: arguments.null_draws,
        permutations: arguments.permutations,
        call: arguments.call(),
        provenance: provenance(arguments, &dir, &search)?,
        search,
    };
    let report = diagnose::run((&name(&dir), &translator), oracle.as_ref(), &set, &options, settings, &mut |stage| {
        note(&format!("diagnose: {stage}"))
    })?;
    outputs.write(&report)?;
    print(&report.to_string())?;
    Warnings::tell(translator.tokenizer(), (1..).zip(sources.iter().map(String::as_str)));
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

/// A directory's own name.
fn name(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned())
}

impl Arguments {
    /// For the commands of findings.
    fn call(&self) -> Call {
        let shown = |path: &PathBuf| path.display().to_string();
        Call {
            model: self.model.name.model.as_ref().map(shown),
            source: shown(&self.source),
            reference: shown(&self.reference),
            oracle: self.oracle.as_ref().map(shown),
        }
    }
}

/// What it takes to run the same again.
fn provenance(arguments: &Arguments, dir: &Path, search: &DecodeOptions) -> Result<Provenance> {
    let digest = |(of, path): (&str, &Path)| {
        Ok(Digest { of: of.to_owned(), path: path.display().to_string(), sha256: sha256(path)? })
    };
    let mut read =
        vec![("source".to_owned(), arguments.source.clone()), ("reference".to_owned(), arguments.reference.clone())];
    for file in model_files(dir)? {
        read.push(("model".to_owned(), file));
    }
    Ok(Provenance {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        command: std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect(),
        search: serde_json::to_value(search).unwrap_or_default(),
        files: read.iter().map(|(of, path)| digest((of, path))).collect::<Result<_>>()?,
    })
}

/// The files of a model directory, in the order of their names.
fn model_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).map_err(io("read", dir))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    files.sort_unstable();
    Ok(files)
}

fn sha256(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(io("open", path))?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 16]);
    loop {
        match file.read(&mut buffer).map_err(io("read", path))? {
            0 => return Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            count => hash.update(&buffer[..count]),
        }
    }
}

fn open_oracle(path: &Path, own: &Path, arguments: &Arguments) -> Result<Oracle> {
    let ModelArguments { engine, languages, .. } = &arguments.model;
    let EngineArguments { device, threads, dtype, pack_cache, batch_size, .. } = engine;
    let dir = ModelName { model: Some(path.to_path_buf()), revision: None }.resolve()?;
    let options = EngineOptions {
        device: *device,
        threads: *threads,
        slots: *batch_size,
        dtype: dtype.dtype(),
        pack_cache: pack_cache.clone(),
        defaults: languages.defaults(),
        ..EngineOptions::default()
    };
    Ok(Oracle {
        name: name(&dir),
        translator: Translator::open_with(&dir, &options)?,
        network: Network::open(&dir, *threads)?,
        own: Network::open(own, *threads)?,
    })
}

/// The name of a chart's file: its title in letters, digits and hyphens.
fn file_name(title: &str) -> String {
    let words = title.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_ascii_lowercase).collect::<Vec<_>>().join("-")
}

/// The files that are written, created before any work.
struct Outputs {
    json: Option<Output>,
    csv: Option<Output>,
    html: Option<Output>,
    plots: Option<PathBuf>,
}

impl Outputs {
    fn create(arguments: &Arguments) -> Result<Self> {
        let create = |path: &Option<PathBuf>| path.as_deref().map(|path| Output::create(Some(path))).transpose();
        if let Some(dir) = &arguments.plots {
            std::fs::create_dir_all(dir).map_err(io("create", dir))?;
        }
        Ok(Outputs {
            json: create(&arguments.json)?,
            csv: create(&arguments.csv)?,
            html: create(&arguments.html)?,
            plots: arguments.plots.clone(),
        })
    }

    fn write(self, report: &diagnose::Report) -> Result<()> {
        let write = |output: Option<Output>, text: String| {
            let Some(mut output) = output else { return Ok(()) };
            output.line(text.trim_end())?;
            output.finish()
        };
        write(self.json, json(report)?)?;
        write(self.csv, report.csv())?;
        write(self.html, report.html())?;
        let Some(dir) = self.plots else { return Ok(()) };
        report.charts().iter().try_for_each(|(title, chart)| {
            let path = dir.join(file_name(title));
            write_whole(&path.with_added_extension("svg"), chart.svg_file().as_bytes())?;
            write_whole(&path.with_added_extension("pdf"), &chart.pdf())
        })
    }
}
