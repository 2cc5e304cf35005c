//! `eval`: translates a file, or takes translations as they are, and scores them against references.

mod metrics;
mod report;

use std::path::{Path, PathBuf};

use clap::ValueEnum;

use crate::cli::counts::{count, seed};
use crate::cli::input::read_all;
use crate::cli::model_dir::ModelArguments;
use crate::cli::output::{Output, one_line, print};
use crate::cli::progress::Progress;
use crate::cli::search_options::SearchArguments;
use crate::cli::warnings::Warnings;
use crate::cli::{Ending, interrupt, stream};
use crate::counts;
use crate::jsonl::json;
use crate::metrics::BootstrapOptions;
use crate::{Error, Result};
use metrics::MetricArguments;
use report::{Corpus, Report};

/// Score translations against references: BLEU, chrF2, TER, length ratio, each with its 95% bootstrap interval.
#[derive(Debug, clap::Args)]
#[command(
    // The search's own group is empty, since it holds others: these are its fields.
    group(clap::ArgGroup::new("search").args([
        "preset", "beam_size", "n_best", "length_penalty", "alpha", "coverage_penalty", "word_reward", "stop", "patience",
        "shrink", "cut", "renormalize", "max_length", "min_length", "truncate", "attention", "beam_groups", "diversity",
    ]).multiple(true)),
    group(clap::ArgGroup::new("engine").args(["model", "threads", "batch_size", "prefix", "source_lang", "target_lang"]).multiple(true)),
    after_help = "Exit codes: 0 done; 1 some lines could not be translated and count as empty; 2 wrong options, model or files; \
                  130 interrupted, without scores."
)]
pub(super) struct Arguments {
    /// Source file, one sentence per line. With --hypotheses it is needed for the copy rate only.
    #[arg(long, short, value_name = "FILE", required_unless_present = "hypotheses")]
    input: Option<PathBuf>,
    /// Reference translations, line by line those of the source; several of these files give each sentence several references.
    #[arg(long, short, value_name = "FILE", required = true)]
    reference: Vec<PathBuf>,
    /// Score the translations in this file instead of translating.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["output", "engine", "search", "SamplingArguments", "ControlArguments"])]
    hypotheses: Option<PathBuf>,
    /// Compare with the translations of another system in this file, by a paired bootstrap.
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    /// Write the translations to this file.
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// How to print the scores.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Resamples of the bootstrap.
    #[arg(long, value_name = "N", default_value_t = BootstrapOptions::default().resamples, value_parser = count(counts::RESAMPLES))]
    resamples: usize,
    /// Seed of the bootstrap.
    #[arg(long, value_name = "N", default_value_t = BootstrapOptions::default().seed, value_parser = seed())]
    bootstrap_seed: u64,
    #[command(flatten)]
    metrics: MetricArguments,
    #[command(flatten)]
    model: ModelArguments,
    #[command(flatten)]
    search: SearchArguments,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

pub(super) fn run(arguments: Arguments) -> Result<Ending> {
    let options = BootstrapOptions { resamples: arguments.resamples, seed: arguments.bootstrap_seed };
    let metrics = arguments.metrics.metrics()?;
    let files = Files::read(&arguments)?;
    let (hypotheses, failed) = match (files.hypotheses, &files.sources) {
        (Some(hypotheses), _) => (hypotheses, 0),
        (None, Some(sources)) => match translate(&arguments, sources)? {
            Some(Translated { lines, failed }) => (lines, failed),
            None => return Ok(Ending::Interrupted),
        },
        // The parser asks for one of the two.
        (None, None) => return Err(missing_input()),
    };
    let corpus = Corpus { sources: files.sources.as_deref(), hypotheses: &hypotheses, references: &files.references };
    let mut report = Report::new(&corpus, &metrics, failed, &options)?;
    if let (Some(path), Some(baseline)) = (&arguments.compare, &files.baseline) {
        report.compare(&corpus, &metrics, baseline, path, &options)?;
    }
    print(&match arguments.format {
        Format::Text => report.to_string(),
        Format::Json => json(&report)?,
    })?;
    Ok(if failed > 0 { Ending::BadLines } else { Ending::Complete })
}

fn missing_input() -> Error {
    Error::Option { option: "input", expected: "a file, or one for hypotheses".into(), got: "neither".into() }
}

/// The files that the command reads, all of the same number of lines.
struct Files {
    sources: Option<Vec<String>>,
    /// For each line its references, one from each file.
    references: Vec<Vec<String>>,
    hypotheses: Option<Vec<String>>,
    baseline: Option<Vec<String>>,
}

impl Files {
    fn read(arguments: &Arguments) -> Result<Self> {
        let read = |path: &Option<PathBuf>| path.as_deref().map(read_all).transpose();
        let (sources, hypotheses, baseline) =
            (read(&arguments.input)?, read(&arguments.hypotheses)?, read(&arguments.compare)?);
        let references: Vec<Vec<String>> = arguments.reference.iter().map(|p| read_all(p)).collect::<Result<_>>()?;
        let named =
            [(&arguments.input, &sources), (&arguments.hypotheses, &hypotheses), (&arguments.compare, &baseline)];
        let mut counts: Vec<(&Path, usize)> =
            named.iter().filter_map(|(path, lines)| Some((path.as_deref()?, lines.as_ref()?.len()))).collect();
        counts.extend(arguments.reference.iter().zip(&references).map(|(path, lines)| (path.as_path(), lines.len())));
        check_counts(&counts)?;
        let lines = references.first().map_or(0, Vec::len);
        let mut by_line: Vec<Vec<String>> = vec![Vec::with_capacity(references.len()); lines];
        for file in references {
            by_line.iter_mut().zip(file).for_each(|(all, reference)| all.push(reference));
        }
        Ok(Files { sources, references: by_line, hypotheses, baseline })
    }
}

/// Refuses empty files and files whose numbers of lines differ.
fn check_counts(counts: &[(&Path, usize)]) -> Result<()> {
    let refuse = |expected: String, got: String| Err(Error::Input { operation: "evaluate", expected, got });
    let Some(&(first, lines)) = counts.first() else { return Ok(()) };
    for &(path, count) in counts {
        if count == 0 {
            return refuse(format!("at least one line in {}", path.display()), "none".into());
        }
        if count != lines {
            let expected = format!("{lines} lines in {} as in {}", path.display(), first.display());
            return refuse(expected, count.to_string());
        }
    }
    Ok(())
}

/// Translations, and how many lines have none and stand empty.
struct Translated {
    lines: Vec<String>,
    failed: usize,
}

/// Translates all lines; `None` if interrupted.
fn translate(arguments: &Arguments, sources: &[String]) -> Result<Option<Translated>> {
    let translator = arguments.model.open_with(|options| arguments.search.control.engine(options))?;
    let options = arguments.search.resolve(&translator)?;
    if options.forced_bos.is_none() {
        translator.tokenizer().require_languages()?;
    }
    let output = arguments.output.as_deref().map(|path| Output::create(Some(path))).transpose()?;
    interrupt::listen();
    let mut batch = translator.batch(&options)?;
    let mut progress = Progress::new(Some(sources.iter().map(|s| s.len() as u64 + 1).sum()));
    let ids: Vec<Vec<u32>> = sources.iter().map(|source| translator.tokenizer().encode_source(source)).collect();
    // The longest first: the slots that free up at the end then wait for short sentences only.
    let mut order: Vec<usize> = (0..sources.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(ids[i].len()));
    let mut waiting = order.into_iter();
    let mut translated = Translated { lines: vec![String::new(); sources.len()], failed: 0 };
    loop {
        let room = (stream::QUEUED_PER_SLOT * arguments.model.engine.batch_size).saturating_sub(batch.outstanding());
        for i in waiting.by_ref().take(room) {
            batch.push_encoded(i as u64, sources[i].clone(), ids[i].clone());
        }
        let Some((tag, result)) = interrupt::next_of(&mut batch) else { break };
        let i = tag as usize;
        match result {
            Ok(translation) => {
                let tokens = translation.hypotheses.first().map_or(0, |h| h.length);
                progress.add(sources[i].len() as u64 + 1, tokens as u64);
                translated.lines[i] = one_line(translation.text());
            }
            Err(error) => {
                translated.failed += 1;
                progress.add(sources[i].len() as u64 + 1, 0);
                progress.complain(&format!("line {}: {error}", i + 1));
            }
        }
    }
    drop(progress);
    if interrupt::asked() {
        return Ok(None);
    }
    Warnings::tell(translator.tokenizer(), (1..).zip(sources.iter().map(String::as_str)));
    if let Some(mut output) = output {
        translated.lines.iter().try_for_each(|line| output.line(line))?;
        output.finish()?;
    }
    Ok(Some(translated))
}
