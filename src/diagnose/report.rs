//! What a diagnosis found, in the shape of its JSON; also as CSV and as a table.

use std::fmt::{self, Write as _};

use serde::Serialize;

use super::estimate::{Estimate, Point};
use super::verdict::Verdict;

/// Everything that was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What was looked at, and how.
    pub setup: Setup,
    /// What to make of it.
    pub verdict: Verdict,
    /// Numbers about all lines.
    pub figures: Vec<Figure>,
    /// Numbers by position, distance, dose or confidence.
    pub curves: Vec<Curve>,
    /// Scores by length of the reference.
    pub buckets: Vec<Bucket>,
    /// Scores by beam size and length penalty.
    pub sweep: Vec<Sweep>,
    /// Lines that look like hallucinations.
    pub flags: Vec<Flag>,
}

/// What was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Setup {
    /// The model.
    pub model: String,
    /// The model that is taken for the truth; null without one.
    pub oracle: Option<String>,
    /// Lines of the test set.
    pub lines: usize,
    /// Lines that were left out, as `number: reason`.
    pub skipped: Vec<String>,
    /// Lines, evenly spread over the set, that corruption and prefix switch were tried on.
    pub probe_lines: usize,
    /// Lines, evenly spread over the set, that the sweep was run on.
    pub sweep_lines: usize,
    /// Resamples behind each interval.
    pub resamples: usize,
    /// Seed of resamples and corruptions.
    pub seed: u64,
}

/// A number.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// What it belongs to.
    pub group: &'static str,
    /// Its name.
    pub name: String,
    /// The number.
    #[serde(flatten)]
    pub estimate: Estimate,
    /// What it means, in a few words.
    pub note: &'static str,
}

/// Numbers along an axis.
#[derive(Clone, Debug, Serialize)]
pub struct Curve {
    /// Its name.
    pub name: &'static str,
    /// The axis.
    pub x: &'static str,
    /// The numbers.
    pub y: &'static str,
    /// Lines to compare.
    pub series: Vec<CurveSeries>,
}

/// One line of a curve.
#[derive(Clone, Debug, Serialize)]
pub struct CurveSeries {
    /// Its name.
    pub name: &'static str,
    /// Its points.
    pub points: Vec<Point>,
}

/// Scores of lines of similar length.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Bucket {
    /// Reference lengths, in 13a tokens.
    pub lengths: String,
    /// Lines.
    pub lines: usize,
    /// BLEU.
    pub bleu: Estimate,
    /// chrF2.
    pub chrf: Estimate,
    /// Hypothesis tokens per reference token.
    pub length_ratio: Estimate,
}

/// Scores of one way to search.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sweep {
    /// Beams.
    pub beam_size: usize,
    /// The length penalty.
    pub penalty: String,
    /// BLEU.
    pub bleu: Estimate,
    /// Hypothesis tokens per reference token.
    pub length_ratio: Estimate,
    /// Share of translations without any token.
    pub empty: f64,
    /// Share of lines whose reference is more probable than what was found.
    pub search_errors: Estimate,
    /// Share of lines for which ending at once is more probable than what was found.
    pub empty_wins: f64,
}

/// A line that looks like a hallucination.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Flag {
    /// Number of the line, from 1.
    pub line: usize,
    /// Why.
    pub reasons: Vec<String>,
    /// The source.
    pub source: String,
    /// The translation.
    pub hypothesis: String,
    /// The reference.
    pub reference: String,
}

impl Report {
    /// The figure of a name; not a number if there is none.
    pub fn figure(&self, name: &str) -> Estimate {
        let nan = f64::NAN;
        let found = self.figures.iter().find(|figure| figure.name == name);
        found.map_or(Estimate { value: nan, low: nan, high: nan }, |figure| figure.estimate)
    }

    /// All numbers, one a line: `section,name,series,x,value,low,high,count`.
    pub fn csv(&self) -> String {
        let mut csv = String::from("section,name,series,x,value,low,high,count\n");
        let mut row = |section: &str, name: &str, series: &str, x: &str, e: &Estimate, count: &str| {
            let cells = [section, name, series, x].map(csv_cell).join(",");
            let _ = writeln!(csv, "{cells},{},{},{},{count}", number(e.value), number(e.low), number(e.high));
        };
        for figure in &self.figures {
            row(figure.group, &figure.name, "", "", &figure.estimate, "");
        }
        for (curve, series) in self.curves.iter().flat_map(|c| c.series.iter().map(move |s| (c, s))) {
            for point in &series.points {
                let (x, count) = (number(point.x), number(point.count));
                row("curve", curve.name, series.name, &x, &point.estimate, &count);
            }
        }
        for bucket in &self.buckets {
            for (name, estimate) in
                [("bleu", &bucket.bleu), ("chrf2", &bucket.chrf), ("length ratio", &bucket.length_ratio)]
            {
                row("bucket", name, &bucket.lengths, "", estimate, &bucket.lines.to_string());
            }
        }
        for sweep in &self.sweep {
            let plain = |value| Estimate { value, low: f64::NAN, high: f64::NAN };
            let (empty, wins) = (plain(sweep.empty), plain(sweep.empty_wins));
            for (name, estimate) in [
                ("bleu", &sweep.bleu),
                ("length ratio", &sweep.length_ratio),
                ("search errors", &sweep.search_errors),
                ("empty", &empty),
                ("empty wins", &wins),
            ] {
                row("sweep", name, &sweep.penalty, &sweep.beam_size.to_string(), estimate, "");
            }
        }
        for flag in &self.flags {
            let _ = writeln!(csv, "flag,{},,{},,,,", csv_cell(&flag.reasons.join("; ")), flag.line);
        }
        csv
    }
}

/// A number in as many digits as it has; nothing if it is none.
fn number(value: f64) -> String {
    if value.is_finite() { value.to_string() } else { String::new() }
}

fn csv_cell(text: &str) -> String {
    if text.contains([',', '"', '\n']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}

/// A number and its interval, for people.
pub(super) fn shown(estimate: &Estimate) -> String {
    let Estimate { value, low, high } = *estimate;
    if !value.is_finite() {
        return "n/a".to_owned();
    }
    let digits = if value.abs() >= 10.0 { 1 } else { 3 };
    // No minus in front of a zero.
    let plain = |x: f64| format!("{:.digits$}", if x.abs() < 0.5 * 10f64.powi(-(digits as i32)) { 0.0 } else { x });
    match low.is_finite() && high.is_finite() {
        true => format!("{} [{}, {}]", plain(value), plain(low), plain(high)),
        false => plain(value),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Setup { model, lines, skipped, probe_lines, sweep_lines, resamples, .. } = &self.setup;
        writeln!(f, "model {model}, {lines} lines, {} left out", skipped.len())?;
        writeln!(f, "95% intervals from {resamples} resamples; probes on {probe_lines} lines, sweep on {sweep_lines}")?;
        let mut group = "";
        for figure in &self.figures {
            if figure.group != group {
                group = figure.group;
                writeln!(f, "\n{group}")?;
            }
            writeln!(f, "  {:<34} {:<28} {}", figure.name, shown(&figure.estimate), figure.note)?;
        }
        writeln!(
            f,
            "\nlengths (reference tokens)     lines  BLEU                    chrF2                   length ratio"
        )?;
        for bucket in &self.buckets {
            let scores = [shown(&bucket.bleu), shown(&bucket.chrf)].map(|s| format!("{s:<23}")).join(" ");
            writeln!(f, "  {:<28} {:>5}  {scores} {}", bucket.lengths, bucket.lines, shown(&bucket.length_ratio))?;
        }
        writeln!(f, "\nbeam  penalty       BLEU                    length ratio            empty   search errors")?;
        for sweep in &self.sweep {
            let scores = [shown(&sweep.bleu), shown(&sweep.length_ratio)].map(|s| format!("{s:<23}")).join(" ");
            let (empty, errors) = (100.0 * sweep.empty, shown(&sweep.search_errors));
            writeln!(f, "{:>4}  {:<12}  {scores} {empty:>5.1}%  {errors}", sweep.beam_size, sweep.penalty)?;
        }
        writeln!(f, "\n{} lines flagged", self.flags.len())?;
        for flag in self.flags.iter().take(5) {
            writeln!(f, "  line {}: {}", flag.line, flag.reasons.join("; "))?;
        }
        if self.flags.len() > 5 {
            writeln!(f, "  and {} more, in the JSON and on the page", self.flags.len() - 5)?;
        }
        write!(f, "\n{}", self.verdict)
    }
}
