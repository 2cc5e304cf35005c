//! The options that change what ranks: contrastive decoding, ensembles, bans and penalties on repetition.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::builder::PossibleValue;
use serde::Serialize;
use serde_json::Value;

use crate::batch::digest_file;
use crate::cli::counts::{count, finite};
use crate::cli::input::read_all;
use crate::counts;
use crate::text::Tokenizer;
use crate::{Bans, ContrastiveForm, DecodeOptions, EngineOptions, Error, Overrides, Result, Translator};

/// What ranks beside the model's own probabilities, and what may not come.
#[derive(Clone, Debug, Serialize, clap::Args)]
#[command(next_help_heading = "Control")]
pub(super) struct ControlArguments {
    /// Rank by the contrast of the model with an amateur; the form source takes the model itself reading another sentence: the JSON
    /// field contrast_source, in text the next line that is not blank.
    #[arg(long, value_name = "FORM", value_parser = forms())]
    contrastive: Option<String>,
    /// The amateur's model directory, of the same pieces [with it the default form is li].
    #[arg(long, value_name = "DIR")]
    #[serde(skip)]
    amateur: Option<PathBuf>,
    /// How strongly the amateur counts [default: 0.5; source: 0.7].
    #[arg(long, value_name = "W", allow_negative_numbers = true, value_parser = finite::<f32>())]
    contrastive_weight: Option<f32>,
    /// Tokens below this share of the model's best probability are not taken [default: 0.1].
    #[arg(long, value_name = "M", allow_negative_numbers = true, value_parser = finite::<f32>())]
    contrastive_mask: Option<f32>,
    /// Divides the amateur's logits [default: 1].
    #[arg(long, value_name = "T", allow_negative_numbers = true, value_parser = finite::<f32>())]
    contrastive_temperature: Option<f32>,
    /// Another member of an ensemble, a model directory of the same pieces; may be given several times.
    #[arg(long, value_name = "DIR")]
    #[serde(skip)]
    ensemble: Vec<PathBuf>,
    /// Weights of the log-probabilities, of the model and of each --ensemble [default: the same for all, 1 together].
    #[arg(long, value_name = "W,W,..", value_delimiter = ',', requires = "ensemble", allow_negative_numbers = true, value_parser = finite::<f32>())]
    #[serde(skip)]
    ensemble_weights: Vec<f32>,
    /// No sequence of so many tokens twice [default: 0, off].
    #[arg(long, value_name = "N", value_parser = count(counts::LENGTH))]
    no_repeat_ngram: Option<usize>,
    /// Multiplies the log-probability of tokens that have come before; above 1 they rank lower [default: 1].
    #[arg(long, value_name = "F", allow_negative_numbers = true, value_parser = finite::<f32>())]
    repetition_penalty: Option<f32>,
    /// Let it act on logits, before a softmax over the tokens that may come [preset ctranslate2, and hf with one beam: true].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    penalize_logits: Option<bool>,
    /// Piece that every translation begins with, as in --forced-bos '▁Der'.
    #[arg(long, value_name = "PIECE")]
    forced_bos: Option<String>,
    /// Pieces that never come, as in --suppress '▁nicht,▁kein'; may be given several times. A comma is written as --suppress ',', or as \\,
    /// within a list.
    #[arg(long, value_name = "PIECE,..")]
    #[serde(skip)]
    suppress: Vec<String>,
    /// File of texts, one a line, whose tokens never follow one another. A text that begins with punctuation is also banned right behind a
    /// word, where no space parts it.
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    bad_texts: Option<PathBuf>,
    /// File of pieces, one a line: only these may come, and the end of sentence.
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    shortlist: Option<PathBuf>,
}

fn forms() -> [PossibleValue; 4] {
    [
        PossibleValue::new("logits").alias("seed").help("logits - weight * the amateur's"),
        PossibleValue::new("li").help("log p - weight * log p of the amateur, among the model's own likely tokens"),
        PossibleValue::new("obrien").help("(1 + weight) * log p - weight * log p of the amateur, likewise"),
        PossibleValue::new("source").help("log(p - weight * p of the model reading another sentence), likewise"),
    ]
}

/// Options that concern all sentences, and none alone: they open models and read files.
const OF_ALL: [&str; 6] = ["amateur", "bad_texts", "ensemble", "ensemble_weights", "shortlist", "suppress"];

impl ControlArguments {
    /// Adds the models that take part to the engine's options.
    pub(super) fn engine(&self, options: EngineOptions) -> EngineOptions {
        EngineOptions { amateur: self.amateur.clone(), ensemble: self.ensemble.clone(), ..options }
    }

    /// Whether plain text lines read each other.
    pub(super) fn pairs_lines(&self) -> bool {
        self.contrastive.as_deref() == Some("source")
    }

    /// The form of contrast that an amateur asks for where none is named.
    pub(super) fn implied_form(&self) -> Option<&'static str> {
        self.amateur.as_ref().map(|_| "li")
    }

    /// The weights of an ensemble; none without one.
    pub(super) fn weights(&self) -> Vec<f32> {
        let members = 1 + self.ensemble.len();
        match (members, self.ensemble_weights.is_empty()) {
            (1, _) => Vec::new(),
            (_, true) => vec![1.0 / members as f32; members],
            (_, false) => self.ensemble_weights.clone(),
        }
    }

    /// Checks options that flags and a sentence have come to.
    pub(super) fn check(&self, options: &DecodeOptions) -> Result<()> {
        match (options.contrastive, &self.amateur) {
            (Some(ContrastiveForm::Source), Some(_)) => {
                Err(Error::conflict("contrastive", "source", "amateur: it has no other model"))
            }
            _ => Ok(()),
        }
    }

    /// Checks that a sentence's own options are about that sentence alone.
    pub(super) fn check_own(own: &Overrides) -> Result<()> {
        match own.names().find(|name| OF_ALL.contains(name)) {
            None => Ok(()),
            Some(name) => Err(Error::Input {
                operation: "read options",
                expected: "options of one sentence, beside one of all sentences".into(),
                got: format!("\"{name}\""),
            }),
        }
    }

    /// What the models and files of all sentences are, for a record of what was done: models by what `tell` tells of them, files by
    /// their digests.
    pub(super) fn identity(&self, tell: fn(&Path) -> Result<String>) -> Result<Vec<(&'static str, Value)>> {
        let model = |dir: &PathBuf| tell(dir).map(Value::from);
        let file = |path: &PathBuf| digest_file(path).map(|(digest, _)| Value::from(digest));
        let mut identity =
            vec![("ensemble_weights", self.weights().into()), ("suppress", self.suppress.clone().into())];
        identity.push(("ensemble", self.ensemble.iter().map(model).collect::<Result<Vec<_>>>()?.into()));
        for (name, path) in [("bad_texts", &self.bad_texts), ("shortlist", &self.shortlist)] {
            identity.push((name, path.as_ref().map(file).transpose()?.into()));
        }
        identity.push(("amateur", self.amateur.as_ref().map(model).transpose()?.into()));
        Ok(identity)
    }

    /// What never comes.
    pub(super) fn bans(&self, translator: &Translator) -> Result<Option<Arc<Bans>>> {
        let tokenizer = translator.tokenizer();
        if self.suppress.is_empty() && self.bad_texts.is_none() && self.shortlist.is_none() {
            return Ok(None);
        }
        let suppressed = self.suppress.iter().flat_map(|list| split_pieces(translator, list));
        let suppressed = suppressed.map(|piece| translator.piece_id("suppress", &piece));
        let suppressed: Vec<u32> = suppressed.collect::<Result<_>>()?;
        let lines = |path: &Option<PathBuf>| path.as_deref().map_or(Ok(Vec::new()), read_filled);
        let bad_texts = lines(&self.bad_texts)?;
        let sequences: Vec<Vec<u32>> =
            bad_texts.iter().flat_map(|text| banned_sequences(translator.tokenizer(), text)).collect();
        let shortlist = match &self.shortlist {
            None => None,
            Some(path) => {
                let mut ids: Vec<u32> = read_filled(path)?
                    .iter()
                    .map(|piece| translator.piece_id("shortlist", piece))
                    .collect::<Result<_>>()?;
                ids.push(tokenizer.eos_id());
                Some(ids)
            }
        };
        Bans::new(translator.config().decoder_vocab_size, &suppressed, shortlist.as_deref(), &sequences)
            .map(|bans| Some(Arc::new(bans)))
    }
}

/// The pieces in a list with commas between them: the list itself where it is one piece, such as a comma.
fn split_pieces(translator: &Translator, list: &str) -> Vec<String> {
    if translator.piece_id("suppress", list).is_ok() {
        return vec![list.to_owned()];
    }
    let mut split = vec![String::new()];
    let mut characters = list.chars().peekable();
    while let Some(character) = characters.next() {
        let comma = if character == '\\' { characters.next_if_eq(&',') } else { None };
        match (comma.unwrap_or(character), comma, split.last_mut()) {
            (',', None, _) | (_, _, None) => split.push(String::new()),
            (character, _, Some(last)) => last.push(character),
        }
    }
    split
}

/// The tokens of a text wherever it may stand: behind a space, and, if it is no beginning of a word, right behind another word.
fn banned_sequences(tokenizer: &Tokenizer, text: &str) -> Vec<Vec<u32>> {
    let mut sequences = vec![tokenizer.encode_within_target(text, false)];
    if text.chars().next().is_some_and(|first| !first.is_alphanumeric() && !first.is_whitespace()) {
        sequences.push(tokenizer.encode_within_target(text, true));
    }
    sequences.dedup();
    sequences
}

/// The lines of a file that are not blank.
fn read_filled(path: &Path) -> Result<Vec<String>> {
    let mut lines = read_all(path)?;
    lines.retain(|line| !line.trim().is_empty());
    Ok(lines)
}
