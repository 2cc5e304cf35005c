//! What is written: text, JSON lines, n-best lists.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::cli::alignment::Alignment;
use crate::cli::input::Fields;
use crate::cli::warnings::Warning;
use crate::{Error, Result, Score, TextHypothesis, Translation};

/// A file or standard output.
pub(super) struct Output {
    path: PathBuf,
    writer: BufWriter<Box<dyn Write + Send>>,
}

impl Output {
    /// Creates a file, or takes standard output for `None` and `-`. Refuses to write over `input`.
    pub(super) fn create(path: Option<&Path>, input: Option<&Path>) -> Result<Self> {
        let path = path.unwrap_or(Path::new("-")).to_path_buf();
        if path.as_os_str() == "-" {
            return Ok(Output { path, writer: BufWriter::new(Box::new(std::io::stdout())) });
        }
        // What standard input has been redirected from; where there is no such path, nothing is the same.
        let input = input.filter(|input| input.as_os_str() != "-").unwrap_or(Path::new("/dev/stdin"));
        if path.is_file() {
            Self::refuse_input(&path, input)?;
        }
        let io = |source| Error::Io { operation: "create", path: path.clone(), source };
        let file = File::create(&path).map_err(io)?;
        Ok(Output { path, writer: BufWriter::new(Box::new(file)) })
    }

    /// Refuses an output file that is also read.
    pub(super) fn refuse_input(output: &Path, input: &Path) -> Result<()> {
        match (output.canonicalize(), input.canonicalize()) {
            (Ok(a), Ok(b)) if a == b => {
                let (expected, got) = ("a file other than the input".into(), output.display().to_string());
                Err(Error::Option { option: "output", expected, got })
            }
            _ => Ok(()),
        }
    }

    /// Writes the line with its end in one piece, so that whoever reads along sees whole lines.
    pub(super) fn line(&mut self, mut line: String) -> Result<()> {
        line.push('\n');
        self.writer.write_all(line.as_bytes()).map_err(|source| self.error(source))
    }

    pub(super) fn flush(&mut self) -> Result<()> {
        self.writer.flush().map_err(|source| self.error(source))
    }

    fn error(&self, source: std::io::Error) -> Error {
        Error::Io { operation: "write", path: self.path.clone(), source }
    }
}

/// Serializes what cannot fail: strings and finite numbers.
pub(super) fn json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|source| Error::Json { path: "-".into(), source })
}

#[derive(Serialize)]
struct TranslationLine<'a> {
    source: &'a str,
    #[serde(flatten)]
    other: &'a Fields,
    #[serde(skip_serializing_if = "Option::is_none")]
    source_truncated: Option<bool>,
    #[serde(skip_serializing_if = "<[Warning]>::is_empty")]
    warnings: &'a [Warning],
    hypotheses: Vec<HypothesisLine<'a>>,
}

#[derive(Serialize)]
struct HypothesisLine<'a> {
    text: &'a str,
    token_ids: &'a [u32],
    tokens: &'a [String],
    token_log_probs: &'a [f32],
    log_prob: f32,
    search_log_prob: f32,
    length: usize,
    length_penalty: f32,
    coverage_penalty: f32,
    score: f32,
    truncated: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    attention: Option<&'a [Vec<f32>]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    alignment: Option<Vec<usize>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    utility: Option<f64>,
}

impl<'a> HypothesisLine<'a> {
    fn new(TextHypothesis { text, tokens, hypothesis, utility }: &'a TextHypothesis) -> Self {
        HypothesisLine {
            text,
            token_ids: &hypothesis.token_ids,
            tokens,
            token_log_probs: &hypothesis.token_log_probs,
            log_prob: hypothesis.log_prob,
            search_log_prob: hypothesis.search_log_prob,
            length: hypothesis.length,
            length_penalty: hypothesis.length_penalty,
            coverage_penalty: hypothesis.coverage_penalty,
            score: hypothesis.score,
            truncated: hypothesis.truncated,
            attention: hypothesis.attention.as_deref(),
            alignment: hypothesis.alignment(),
            utility: *utility,
        }
    }
}

/// A translation as a JSON line; `other` holds the input's other fields.
pub(super) fn translation_json(translation: &Translation, other: &Fields, warnings: &[Warning]) -> Result<String> {
    json(&TranslationLine {
        source: &translation.source,
        other,
        source_truncated: translation.source_truncated.then_some(true),
        warnings,
        hypotheses: translation.hypotheses.iter().map(HypothesisLine::new).collect(),
    })
}

/// An error in a line's place as a JSON line.
pub(super) fn error_json(source: Option<&str>, other: &Fields, kind: &str, message: &str) -> Result<String> {
    #[derive(Serialize)]
    struct ErrorLine<'a> {
        source: Option<&'a str>,
        #[serde(flatten)]
        other: &'a Fields,
        error: ErrorObject<'a>,
    }
    #[derive(Serialize)]
    struct ErrorObject<'a> {
        kind: &'a str,
        message: &'a str,
    }
    json(&ErrorLine { source, other, error: ErrorObject { kind, message } })
}

/// A score as a JSON line; `other` holds the input's other fields.
pub(super) fn score_json(
    source: &str,
    target: &str,
    score: &Score,
    other: &Fields,
    warnings: &[Warning],
) -> Result<String> {
    #[derive(Serialize)]
    struct ScoreLine<'a> {
        source: &'a str,
        target: &'a str,
        #[serde(flatten)]
        other: &'a Fields,
        #[serde(skip_serializing_if = "<[Warning]>::is_empty")]
        warnings: &'a [Warning],
        token_ids: &'a [u32],
        token_log_probs: &'a [f32],
        log_prob: f32,
    }
    json(&ScoreLine {
        source,
        target,
        other,
        warnings,
        token_ids: &score.token_ids,
        token_log_probs: &score.token_log_probs,
        log_prob: score.log_prob,
    })
}

/// Text as one line: a piece may hold a line break.
pub(super) fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

/// A translation as a line of text, with its alignment behind it where asked for, as Marian writes them.
pub(super) fn text_line(hypothesis: &TextHypothesis, alignment: Option<Alignment>) -> String {
    let text = one_line(&hypothesis.text);
    match alignment {
        Some(alignment) => format!("{text} ||| {}", alignment.write(&hypothesis.hypothesis)),
        None => text,
    }
}

/// An n-best list as Moses and Marian write it: `number ||| text ||| F0= the model's log-probability ||| score`, with the
/// alignment, where asked for, behind the text.
pub(super) fn n_best(number: u64, translation: &Translation, alignment: Option<Alignment>) -> String {
    let line = |h: &TextHypothesis| {
        let (log_prob, score) = (h.hypothesis.log_prob, h.hypothesis.score);
        format!("{} ||| {} ||| F0= {log_prob} ||| {score}", number - 1, text_line(h, alignment))
    };
    translation.hypotheses.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Writes a line to standard output.
pub(super) fn print(line: &str) -> Result<()> {
    let written = writeln!(std::io::stdout(), "{line}");
    written.map_err(|source| Error::Io { operation: "write", path: "-".into(), source })
}
