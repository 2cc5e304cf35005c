//! The log of a run: a JSON line per update and per validation.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::plot::{Chart, Mark, STYLE, Series};
use crate::train::checkpoint::write_whole;
use crate::train::trainer::Report;
use crate::train::validation::Scores;
use crate::{Error, Result};

/// Where the log and what is drawn from it lie.
#[derive(Clone, Debug)]
pub struct Log {
    lines: PathBuf,
}

impl Log {
    /// The log of the run in this directory.
    pub fn new(directory: &Path) -> Self {
        Log { lines: directory.join("log.jsonl") }
    }

    fn append(&self, line: Map<String, Value>) -> Result<()> {
        let io = |source| Error::Io { operation: "write", path: self.lines.clone(), source };
        let mut file = OpenOptions::new().create(true).append(true).open(&self.lines).map_err(io)?;
        file.write_all(format!("{}\n", Value::Object(line)).as_bytes()).map_err(io)
    }

    /// Adds an update.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn update(&self, report: &Report) -> Result<()> {
        let mut line = Map::new();
        line.insert("update".into(), report.update.into());
        line.insert("loss".into(), report.loss.into());
        line.insert("gradient_norm".into(), report.gradient_norm.into());
        line.insert("learning_rate".into(), report.learning_rate.into());
        line.insert("tokens".into(), report.tokens.into());
        line.insert("seconds".into(), report.seconds.into());
        line.extend(report.figures.iter().map(|&(name, value)| (name.to_owned(), value.into())));
        self.append(line)
    }

    /// Adds a validation.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn validation(&self, update: u32, scores: &Scores) -> Result<()> {
        let mut line = Map::new();
        line.insert("update".into(), update.into());
        line.insert("validation_bleu".into(), scores.bleu.into());
        line.insert("validation_chrf".into(), scores.chrf.into());
        line.insert("validation_length_ratio".into(), scores.length_ratio.into());
        self.append(line)
    }

    fn read(&self) -> Result<Vec<Map<String, Value>>> {
        let io = |source| Error::Io { operation: "read", path: self.lines.clone(), source };
        let text = std::fs::read_to_string(&self.lines).map_err(io)?;
        // A crash may have cut the last line.
        Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }

    /// Drops what was logged after update number `update`, which will be done again.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn truncate(&self, update: u32) -> Result<()> {
        let done = |line: &Map<String, Value>| {
            line.get("update").and_then(Value::as_u64).is_some_and(|u| u <= u64::from(update))
        };
        let kept: String =
            self.read()?.into_iter().filter(done).map(|line| format!("{}\n", Value::Object(line))).collect();
        write_whole(&self.lines, kept.as_bytes())
    }

    /// Draws the loss and the validation scores into `loss.svg` and `validation.svg`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn draw(&self) -> Result<()> {
        let lines = self.read()?;
        let points = |field: &str| -> Vec<(f64, f64)> {
            let number = |line: &Map<String, Value>, field: &str| line.get(field).and_then(Value::as_f64);
            lines.iter().filter_map(|line| Some((number(line, "update")?, number(line, field)?))).collect()
        };
        let series = |name: &str, field: &str| Series::new(name, Mark::Line, points(field));
        let loss = Chart::new("Training loss", "update", "loss").with(series("loss", "loss"));
        let scores = Chart::new("Validation", "update", "score")
            .with(series("BLEU", "validation_bleu"))
            .with(series("chrF2", "validation_chrf"));
        let drawn = [("loss.svg", loss), ("validation.svg", scores)].into_iter();
        // Without a validation set there is nothing to draw of it.
        for (name, chart) in drawn.filter(|(_, chart)| chart.series.iter().any(|series| !series.points.is_empty())) {
            let svg = chart.svg().replacen('>', &format!("><style>{STYLE}</style>"), 1);
            write_whole(&self.lines.with_file_name(name), svg.as_bytes())?;
        }
        Ok(())
    }
}
