//! The options that change what ranks: contrastive decoding, ensembles, bans and penalties on repetition.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::ValueEnum;

use crate::cli::counts::{count, finite};
use crate::cli::input::read_all;
use crate::counts;
use crate::{Bans, Contrastive, ContrastiveForm, DecodeOptions, EngineOptions, Error, Result, Translator};

/// What ranks beside the model's own probabilities, and what may not come.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Control")]
pub(super) struct ControlArguments {
    /// Rank by the contrast of the model with an amateur; the form source takes the model itself reading another sentence: the JSON
    /// field contrast_source, in text the next line that is not blank.
    #[arg(long, value_enum, value_name = "FORM")]
    contrastive: Option<FormName>,
    /// The amateur's model directory, of the same pieces [with it the default form is li].
    #[arg(long, value_name = "DIR")]
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
    ensemble: Vec<PathBuf>,
    /// Weights of the log-probabilities, of the model and of each --ensemble [default: the same for all, 1 together].
    #[arg(long, value_name = "W,W,..", value_delimiter = ',', requires = "ensemble", allow_negative_numbers = true, value_parser = finite::<f32>())]
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
    /// Pieces that never come, as in --suppress '▁nicht,▁kein'.
    #[arg(long, value_name = "PIECE,..", value_delimiter = ',')]
    suppress: Vec<String>,
    /// File of texts, one a line, whose tokens never follow one another.
    #[arg(long, value_name = "FILE")]
    bad_texts: Option<PathBuf>,
    /// File of pieces, one a line: only these may come, and the end of sentence.
    #[arg(long, value_name = "FILE")]
    shortlist: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FormName {
    /// logits - weight * the amateur's.
    #[value(alias = "seed")]
    Logits,
    /// log p - weight * log p of the amateur, among the model's own likely tokens.
    Li,
    /// (1 + weight) * log p - weight * log p of the amateur, likewise.
    Obrien,
    /// log(p - weight * p of the model reading another sentence), likewise.
    Source,
}

impl ControlArguments {
    /// Adds the models that take part to the engine's options.
    pub(super) fn engine(&self, options: EngineOptions) -> EngineOptions {
        EngineOptions { amateur: self.amateur.clone(), ensemble: self.ensemble.clone(), ..options }
    }

    /// Whether plain text lines read each other.
    pub(super) fn pairs_lines(&self) -> bool {
        self.contrastive == Some(FormName::Source)
    }

    /// Adds what was asked for to the options of search.
    pub(super) fn apply(&self, translator: &Translator, options: &mut DecodeOptions) -> Result<()> {
        options.contrastive = self.contrastive()?;
        options.no_repeat_ngram = self.no_repeat_ngram.unwrap_or(options.no_repeat_ngram);
        options.repetition_penalty = self.repetition_penalty.unwrap_or(options.repetition_penalty);
        options.penalize_logits = self.penalize_logits.unwrap_or(options.penalize_logits);
        if let Some(piece) = &self.forced_bos {
            options.forced_bos = Some(piece_id(&target_pieces(translator), "forced-bos", piece)?);
        }
        let members = 1 + self.ensemble.len();
        if members > 1 {
            options.ensemble = match self.ensemble_weights.is_empty() {
                true => vec![1.0 / members as f32; members],
                false => self.ensemble_weights.clone(),
            };
        }
        Ok(())
    }

    fn contrastive(&self) -> Result<Option<Contrastive>> {
        let form = match (self.contrastive, &self.amateur) {
            (Some(FormName::Logits), _) => ContrastiveForm::Logits,
            (Some(FormName::Obrien), _) => ContrastiveForm::Obrien,
            (Some(FormName::Source), None) => ContrastiveForm::Source,
            (Some(FormName::Source), Some(_)) => {
                let expected = "another form than source, which has no other model".into();
                return Err(Error::Option { option: "amateur", expected, got: "contrastive source".into() });
            }
            (Some(FormName::Li), _) | (None, Some(_)) => ContrastiveForm::Li,
            (None, None) => return self.refuse_lonely(),
        };
        let default = Contrastive::new(form);
        Ok(Some(Contrastive {
            weight: self.contrastive_weight.unwrap_or(default.weight),
            mask: self.contrastive_mask.unwrap_or(default.mask),
            temperature: self.contrastive_temperature.unwrap_or(default.temperature),
            ..default
        }))
    }

    /// Nothing to contrast with: options about it would be without effect.
    fn refuse_lonely(&self) -> Result<Option<Contrastive>> {
        let given = [
            ("contrastive-weight", self.contrastive_weight),
            ("contrastive-mask", self.contrastive_mask),
            ("contrastive-temperature", self.contrastive_temperature),
        ];
        match given.into_iter().find_map(|(option, value)| Some((option, value?))) {
            None => Ok(None),
            Some((option, value)) => {
                let expected = "contrastive or amateur beside it".into();
                Err(Error::Option { option, expected, got: value.to_string() })
            }
        }
    }

    /// What never comes.
    pub(super) fn bans(&self, translator: &Translator) -> Result<Option<Arc<Bans>>> {
        let tokenizer = translator.tokenizer();
        if self.suppress.is_empty() && self.bad_texts.is_none() && self.shortlist.is_none() {
            return Ok(None);
        }
        let pieces = target_pieces(translator);
        let suppressed = self.suppress.iter().map(|piece| piece_id(&pieces, "suppress", piece));
        let suppressed: Vec<u32> = suppressed.collect::<Result<_>>()?;
        let lines = |path: &Option<PathBuf>| path.as_deref().map_or(Ok(Vec::new()), read_filled);
        let bad_texts = lines(&self.bad_texts)?;
        let sequences = bad_texts.iter().map(|text| {
            let mut ids = tokenizer.encode_target(text);
            // Its end of sentence.
            ids.pop();
            ids
        });
        let sequences: Vec<Vec<u32>> = sequences.collect();
        let shortlist = match &self.shortlist {
            None => None,
            Some(path) => {
                let mut ids: Vec<u32> = read_filled(path)?
                    .iter()
                    .map(|piece| piece_id(&pieces, "shortlist", piece))
                    .collect::<Result<_>>()?;
                ids.push(tokenizer.eos_id());
                Some(ids)
            }
        };
        Bans::new(translator.config().decoder_vocab_size, &suppressed, shortlist.as_deref(), &sequences)
            .map(|bans| Some(Arc::new(bans)))
    }
}

fn target_pieces(translator: &Translator) -> Vec<&str> {
    let tokenizer = translator.tokenizer();
    (0..tokenizer.target_vocab_size() as u32).map(|id| tokenizer.target_piece(id)).collect()
}

/// The id of a piece that an option names.
fn piece_id(pieces: &[&str], option: &'static str, piece: &str) -> Result<u32> {
    let found = pieces.iter().position(|own| *own == piece).map(|id| id as u32);
    let expected = "pieces of the model's target vocabulary".to_string();
    found.ok_or_else(|| Error::Option { option, expected, got: format!("{piece:?}") })
}

/// The lines of a file that are not blank.
fn read_filled(path: &Path) -> Result<Vec<String>> {
    let mut lines = read_all(path)?;
    lines.retain(|line| !line.trim().is_empty());
    Ok(lines)
}
