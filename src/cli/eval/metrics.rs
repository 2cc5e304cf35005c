//! Which metrics `eval` computes, and how.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use sha2::{Digest, Sha256};

use crate::metrics::{BleuTokenizer, CHRF_WORD_ORDER, TerOptions, tokenize_pieces};
use crate::text::sentencepiece::SentencePiece;
use crate::{Error, Result};

/// The settings of the metrics; names and values are sacrebleu's.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Metrics")]
pub(super) struct MetricArguments {
    /// How BLEU splits text into tokens, as in sacrebleu: 13a, intl, zh, char or none; or spm, flores101, flores200 or spBLEU-1K, with the
    /// SentencePiece model that --spm-model names.
    #[arg(long, value_name = "NAME", default_value = "13a")]
    tokenize: TokenizerName,
    /// The SentencePiece model that splits text for BLEU.
    #[arg(long, value_name = "FILE")]
    spm_model: Option<PathBuf>,
    /// Longest n-gram of words that chrF counts beside those of characters: 0 for chrF2, 2 for chrF2++.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u8).range(..=CHRF_WORD_ORDER as i64))]
    chrf_word_order: u8,
    /// Compute TER, too. Any of the options below asks for it as well.
    #[arg(long)]
    ter: bool,
    /// TER: part punctuation from words and decode entities.
    #[arg(long)]
    ter_normalized: bool,
    /// TER: remove punctuation.
    #[arg(long)]
    ter_no_punct: bool,
    /// TER: with --ter-normalized take Chinese characters for words, with --ter-no-punct remove East Asian punctuation, too.
    #[arg(long)]
    ter_asian_support: bool,
    /// TER: tell capitals from small letters.
    #[arg(long)]
    ter_case_sensitive: bool,
}

/// A tokenizer by sacrebleu's name.
#[derive(Clone, Debug, PartialEq, Eq)]
enum TokenizerName {
    BuiltIn(BleuTokenizer),
    /// One that needs a SentencePiece model.
    SentencePiece(&'static str),
}

/// The tokenizers that sacrebleu downloads a model for, and `spm` for any other model.
const SENTENCE_PIECE: [&str; 4] = ["spm", "flores101", "flores200", "spBLEU-1K"];

impl FromStr for TokenizerName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Some(name) = SENTENCE_PIECE.into_iter().find(|name| *name == text) {
            return Ok(TokenizerName::SentencePiece(name));
        }
        if let Some(language) = text.strip_suffix("-mecab") {
            let dictionary =
                if language == "ko" { "mecab-ko and its dictionary" } else { "MeCab and the IPA dictionary" };
            let expected = "a tokenizer that needs no dictionary".into();
            let got = format!(
                "{text}: split hypotheses and references by {dictionary} first (mecab -O wakati), then use --tokenize none"
            );
            return Err(Error::Option { option: "tokenize", expected, got });
        }
        let built_in = BleuTokenizer::from_str(text).map(TokenizerName::BuiltIn);
        built_in.map_err(|_| Error::Option {
            option: "tokenize",
            expected: format!("13a, intl, zh, char, none, {}", SENTENCE_PIECE.join(", ")),
            got: text.into(),
        })
    }
}

/// Splits text for BLEU.
type Tokenize = Box<dyn Fn(&str) -> Vec<String>>;

/// The metrics of a report.
pub(super) struct Metrics {
    pub tokenize: Tokenize,
    /// What signatures call the tokenizer.
    pub tokenizer: String,
    pub chrf_word_order: usize,
    pub ter: Option<TerOptions>,
}

impl MetricArguments {
    pub(super) fn metrics(&self) -> Result<Metrics> {
        let (tokenize, tokenizer) = self.tokenizer()?;
        let options = TerOptions {
            normalized: self.ter_normalized,
            no_punct: self.ter_no_punct,
            asian_support: self.ter_asian_support,
            case_sensitive: self.ter_case_sensitive,
        };
        let ter = (self.ter || options != TerOptions::default()).then_some(options);
        Ok(Metrics { tokenize, tokenizer, chrf_word_order: usize::from(self.chrf_word_order), ter })
    }

    fn tokenizer(&self) -> Result<(Tokenize, String)> {
        match (&self.tokenize, &self.spm_model) {
            (TokenizerName::BuiltIn(tokenizer), None) => {
                let (tokenizer, name) = (*tokenizer, tokenizer.to_string());
                Ok((Box::new(move |text| tokenizer.tokenize(text)), name))
            }
            (TokenizerName::SentencePiece(name), Some(path)) => {
                let (model, hash) = open_hashed(path)?;
                let name = if *name == "spm" { format!("spm-{hash}") } else { (*name).to_owned() };
                Ok((Box::new(move |text| tokenize_pieces(text, |text| model.encode(text))), name))
            }
            (TokenizerName::BuiltIn(name), Some(_)) => Err(Error::Option {
                option: "spm-model",
                expected: format!("--tokenize {} beside it", SENTENCE_PIECE.join(" or ")),
                got: format!("--tokenize {name}"),
            }),
            (TokenizerName::SentencePiece(name), None) => Err(Error::Option {
                option: "tokenize",
                expected: format!(
                    "--spm-model beside {name}, with the model file (docs/evaluate.md says where sacrebleu has it from)"
                ),
                got: "none".into(),
            }),
        }
    }
}

/// A SentencePiece model, and the first 16 hexadecimal digits of its file's SHA-256, by which it can be told from others.
fn open_hashed(path: &Path) -> Result<(SentencePiece, String)> {
    let bytes = std::fs::read(path).map_err(|source| Error::Io { operation: "read", path: path.into(), source })?;
    let mut hash = String::new();
    for byte in Sha256::digest(&bytes).iter().take(8) {
        // Writing to a string does not fail.
        _ = write!(hash, "{byte:02x}");
    }
    Ok((SentencePiece::from_bytes(&bytes, path)?, hash))
}
