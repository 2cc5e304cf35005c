//! `bench`: throughput and latency by threads, batch size, beam size and length, through the library's public face.

mod kernels;
mod machine;
mod measure;
mod report;

use std::path::PathBuf;

use crate::cli::counts::{count, seed};
use crate::cli::input::read_all;
use crate::cli::model_dir::{DtypeName, LanguageArguments, ModelName};
use crate::cli::output::Output;
use crate::cli::warnings::Warnings;
use crate::cli::{Ending, interrupt};
use crate::counts;
use crate::text::Tokenizer;
use crate::translator::ModelInfo;
use crate::{DecodeOptions, Device, EngineOptions, Error, MaxLength, Result, Translator};
use measure::{Effort, Sentence, measure};
use report::{Report, Row, Shape};

/// Measure throughput and latency on this machine. Tokenization is not part of any figure.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Throughput: sentences wait in a queue, the longest first; the median over repeats. Latency: as many \
                        sentences as the batch size are under way at any time; from a sentence's start to its translation, over \
                        all repeats. Tokens are those of the best translations, end of sentence included. Exit codes: 0 done; \
                        2 wrong options, model or files; 130 interrupted, without a file of results."
)]
pub(super) struct Arguments {
    #[command(flatten)]
    model: ModelName,
    #[command(flatten)]
    languages: LanguageArguments,
    /// Sentences to translate, one per line; blank lines are left out [default: a built-in list of short English sentences].
    #[arg(long, short, value_name = "FILE", conflicts_with = "lengths")]
    input: Option<PathBuf>,
    /// Random sources of exactly these lengths in tokens, end of sentence included, each translated to as many tokens.
    #[arg(long, value_name = "N,N,..", value_delimiter = ',', value_parser = count(counts::RANDOM_LENGTH))]
    lengths: Vec<usize>,
    /// Sentences of a run [default: all of the text; with --lengths four per batch slot, at least 8].
    #[arg(long, value_name = "N", value_parser = count(counts::BENCH_SENTENCES))]
    sentences: Option<usize>,
    /// Sentences decoded at once.
    #[arg(long, value_name = "N,N,..", value_delimiter = ',', default_values_t = [1, 32], value_parser = count(counts::SLOTS))]
    batch_size: Vec<usize>,
    /// Hypotheses kept alive per sentence.
    #[arg(long, value_name = "N,N,..", value_delimiter = ',', default_values_t = [1, 4], value_parser = count(counts::HYPOTHESES))]
    beam_size: Vec<usize>,
    /// Threads that compute; 0 takes one per core.
    #[arg(long, value_name = "N,N,..", value_delimiter = ',', default_values_t = [0], value_parser = count(counts::THREADS))]
    threads: Vec<usize>,
    /// Sessions side by side on the CPU, each with its share of the threads and of the batch; 0 takes one per thread.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = count(counts::THREADS))]
    workers: usize,
    /// Where to compute, as in translate.
    #[arg(long, value_name = "DEVICE", default_value_t = Device::Cpu)]
    device: Device,
    /// Element type of the weights.
    #[arg(long, value_enum, default_value_t = DtypeName::F32)]
    dtype: DtypeName,
    /// Runs that count.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = count(counts::BENCH_RUNS))]
    repeat: usize,
    /// Runs before those.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = count(counts::or_none(&counts::BENCH_RUNS, 0)))]
    warmup: usize,
    /// Measure throughput alone.
    #[arg(long)]
    no_latency: bool,
    /// Seed of the random sources.
    #[arg(long, value_name = "N", default_value_t = 1, requires = "lengths", value_parser = seed())]
    seed: u64,
    /// Measure single kernels on a GPU instead: the bytes that each has to move over its time, against how fast the GPU's memory can
    /// be read and copied. On an emulated device times mean nothing, so it is refused.
    #[arg(long, conflicts_with_all = ["input", "lengths", "sentences", "model"])]
    kernels: bool,
    /// Write the results to this file, with the machine and the command, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What is translated.
enum Text {
    /// Each with its number in the file.
    Lines(Vec<(u64, String)>),
    Random {
        length: usize,
    },
}

impl Text {
    fn length(&self) -> Option<usize> {
        match self {
            Text::Lines(_) => None,
            Text::Random { length } => Some(*length),
        }
    }
}

pub(super) fn run(arguments: &Arguments) -> Result<Ending> {
    if arguments.kernels {
        return kernels::run(arguments.device, arguments.json.as_deref());
    }
    arguments.validate()?;
    let texts = arguments.texts()?;
    let info = arguments.model.open(|dir| ModelInfo::open(dir))?;
    let dir = info.dir.clone();
    arguments.check_lengths(info.config.longest())?;
    let mut report = Report::new(info, arguments.dtype.name(), arguments.repeat, arguments.warmup);
    let output = arguments.json.as_deref().map(|path| Output::create(Some(path))).transpose()?;
    interrupt::listen_for("giving up the measurement");
    report.print_head()?;
    for engine in arguments.engines() {
        for &beam_size in &arguments.beam_size {
            // A translator of its own for each shape: the buffers of an engine keep the size of the largest search.
            let translator = Translator::open_with(&dir, &engine)?;
            for text in &texts {
                match arguments.row(&translator, &engine, beam_size, text)? {
                    Some(row) => report.add(row)?,
                    None => return Ok(Ending::Interrupted),
                }
            }
        }
    }
    report.finish(output)?;
    if let [Text::Lines(lines)] = &texts[..] {
        Warnings::tell(&Tokenizer::open(&dir)?, lines.iter().map(|(number, line)| (*number, line.as_str())));
    }
    Ok(Ending::Complete)
}

impl Arguments {
    fn validate(&self) -> Result<()> {
        self.engines().try_for_each(|engine| engine.validate())?;
        self.beam_size.iter().try_for_each(|&k| options(k, None).validate())
    }

    /// Checks the lengths against the model's longest sentence.
    fn check_lengths(&self, longest: usize) -> Result<()> {
        let Some(got) = self.lengths.iter().find(|length| **length > longest) else { return Ok(()) };
        let expected = format!("at most {longest}, the model's longest sentence");
        Err(Error::Option { option: "lengths", expected, got: got.to_string() })
    }

    fn engines(&self) -> impl Iterator<Item = EngineOptions> {
        let (device, dtype, workers) = (self.device, self.dtype.dtype(), self.workers);
        let defaults = self.languages.defaults();
        let of = move |&threads| {
            let options = EngineOptions { device, threads, workers, dtype, ..EngineOptions::default() };
            let options = EngineOptions { defaults: defaults.clone(), ..options };
            let with = move |&slots| EngineOptions { slots, ..options.clone() };
            self.batch_size.iter().map(with)
        };
        self.threads.iter().flat_map(of)
    }

    /// The texts of the table's rows.
    fn texts(&self) -> Result<Vec<Text>> {
        if !self.lengths.is_empty() {
            return Ok(self.lengths.iter().map(|&length| Text::Random { length }).collect());
        }
        let lines = match &self.input {
            None => include_str!("bench/sentences.txt").lines().map(str::to_string).collect(),
            Some(path) => read_all(path)?,
        };
        let mut lines: Vec<(u64, String)> = (1..).zip(lines).collect();
        lines.retain(|(_, line)| !line.trim().is_empty());
        lines.truncate(self.sentences.unwrap_or(usize::MAX));
        if lines.is_empty() {
            let (expected, got) = ("at least one line that is not blank".into(), "none".into());
            return Err(Error::Input { operation: "measure", expected, got });
        }
        Ok(vec![Text::Lines(lines)])
    }

    /// A row of the table; none if its measurement was interrupted.
    fn row(
        &self,
        translator: &Translator,
        engine: &EngineOptions,
        beam_size: usize,
        text: &Text,
    ) -> Result<Option<Row>> {
        let options = options(beam_size, text.length());
        let sentences: Vec<Sentence> = match text {
            Text::Lines(lines) => lines.iter().map(|(_, line)| Sentence::new(translator, line)).collect(),
            Text::Random { length } => {
                let count = self.sentences.unwrap_or((4 * engine.slots).max(8));
                measure::random_sentences(translator, *length, count, self.seed)?
            }
        };
        let effort =
            Effort { repeat: self.repeat, warmup: self.warmup, slots: engine.slots, latency: !self.no_latency };
        let shape = Shape {
            threads: if engine.threads == 0 { machine::cores() } else { engine.threads },
            workers: translator.workers(),
            batch_size: engine.slots,
            beam_size,
            length: text.length(),
            sentences: sentences.len(),
        };
        let measured = measure(translator, &options, &sentences, effort)?;
        Ok(measured.map(|measured| Row::new(shape, &measured)))
    }
}

/// The default search at a beam size; with a length every translation has exactly that many tokens.
fn options(beam_size: usize, length: Option<usize>) -> DecodeOptions {
    let default = DecodeOptions { beam_size, ..DecodeOptions::default() };
    match length {
        None => default,
        Some(length) => DecodeOptions { min_length: length, max_length: MaxLength::Absolute(length), ..default },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fixed_length_leaves_no_other() {
        let slot = options(3, Some(9)).for_slot(40, 256);
        assert_eq!((slot.beam_size, slot.min_len, slot.max_len), (3, 9, 9));
        let slot = options(3, None).for_slot(40, 256);
        assert_eq!((slot.min_len, slot.max_len), (0, 70));
    }
}
