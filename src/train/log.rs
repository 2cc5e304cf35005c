//! The log of a run: a JSON line per update and per validation.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::Result;
use crate::files::{io, write_whole};
use crate::plot::{Chart, Mark, STYLE, Series};
use crate::train::trainer::Report;
use crate::train::validation::Scores;

/// The charts.
const LOSS: &str = "loss.svg";
const VALIDATION: &str = "validation.svg";

/// Where the log and what is drawn from it lie.
#[derive(Clone, Debug)]
pub struct Log {
    lines: PathBuf,
    /// How long updates took, which is not the same each time: all else of a run is.
    times: PathBuf,
}

fn append(path: &Path, line: Map<String, Value>) -> Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(path).map_err(io("open", path))?;
    let before = file.metadata().map_err(io("open", path))?.len();
    file.write_all(format!("{}\n", Value::Object(line)).as_bytes()).map_err(|source| {
        // Half a line would stand before the next.
        _ = file.set_len(before);
        io("write", path)(source)
    })
}

impl Log {
    /// The log of the run in this directory.
    pub fn new(directory: &Path) -> Self {
        Log { lines: directory.join("log.jsonl"), times: directory.join("times.jsonl") }
    }

    /// The files that are written.
    pub fn files(&self) -> Vec<PathBuf> {
        let drawn = [LOSS, VALIDATION].map(|name| self.lines.with_file_name(name));
        [self.lines.clone(), self.times.clone()].into_iter().chain(drawn).collect()
    }

    /// Adds an update.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io).
    pub fn update(&self, report: &Report) -> Result<()> {
        let mut line = Map::new();
        line.insert("update".into(), report.update.into());
        let mut time = line.clone();
        time.insert("seconds".into(), report.seconds.into());
        line.insert("loss".into(), report.loss.into());
        line.insert("gradient_norm".into(), report.gradient_norm.into());
        line.insert("learning_rate".into(), report.learning_rate.into());
        line.insert("tokens".into(), report.tokens.into());
        line.extend(report.figures.iter().map(|&(name, value)| (name.to_owned(), value.into())));
        append(&self.times, time)?;
        append(&self.lines, line)
    }

    /// Adds a validation.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io).
    pub fn validation(&self, update: u32, scores: &Scores) -> Result<()> {
        let mut line = Map::new();
        line.insert("update".into(), update.into());
        line.insert("validation_bleu".into(), scores.bleu.into());
        line.insert("validation_chrf".into(), scores.chrf.into());
        line.insert("validation_length_ratio".into(), scores.length_ratio.into());
        append(&self.lines, line)
    }

    /// Bytes of the log, which are on the disk when this returns.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io).
    pub fn length(&self) -> Result<u64> {
        let file = OpenOptions::new().create(true).append(true).open(&self.lines).map_err(io("open", &self.lines))?;
        file.sync_all().map_err(io("write", &self.lines))?;
        Ok(file.metadata().map_err(io("read", &self.lines))?.len())
    }

    /// Drops what was logged behind so many bytes: updates that will be done again.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io).
    pub fn truncate(&self, bytes: u64) -> Result<()> {
        if self.length()? > bytes {
            let file = OpenOptions::new().write(true).open(&self.lines).map_err(io("open", &self.lines))?;
            file.set_len(bytes).map_err(io("write", &self.lines))?;
        }
        Ok(())
    }

    fn read(&self) -> Result<Vec<Map<String, Value>>> {
        let file = File::open(&self.lines).map_err(io("open", &self.lines))?;
        let lines =
            BufReader::new(file).lines().collect::<Result<Vec<String>, _>>().map_err(io("read", &self.lines))?;
        Ok(lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }

    /// Draws the loss and the validation scores into `loss.svg` and `validation.svg`.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io).
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
        let drawn = [(LOSS, loss), (VALIDATION, scores)].into_iter();
        // Without a validation set there is nothing to draw of it.
        for (name, chart) in drawn.filter(|(_, chart)| chart.series.iter().any(|series| !series.points.is_empty())) {
            let svg = chart.svg().replacen('>', &format!("><style>{STYLE}</style>"), 1);
            write_whole(&self.lines.with_file_name(name), svg.as_bytes())?;
        }
        Ok(())
    }
}
