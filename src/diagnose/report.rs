//! What a diagnosis found, in the shape of its JSON; also as CSV and as a table.

use std::fmt::{self, Write as _};

use serde::Serialize;

use super::estimate::{Estimate, Point};
use super::verdict::{Verdict, rule_name};

/// Everything that was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What was run, and on what.
    pub provenance: Provenance,
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
    /// What is not shown for lack of lines.
    pub hidden: Vec<String>,
}

/// What it takes to run the same again.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Provenance {
    /// Of this program.
    pub version: String,
    /// The command and its arguments, as given.
    pub command: Vec<String>,
    /// The search that was looked at.
    pub search: serde_json::Value,
    /// SHA-256 of each file that was read, by what it is for and its path.
    pub files: Vec<Digest>,
}

/// A file that was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Digest {
    /// What it is for.
    pub of: String,
    /// Its path, as given.
    pub path: String,
    /// SHA-256, in hexadecimal.
    pub sha256: String,
}

/// The null: references that the model sampled.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Null {
    /// Sets of references at the fitted temperature.
    pub draws: usize,
    /// The temperature at which samples cost as much as the references.
    pub temperature: f32,
    /// What the references cost, in nats per token.
    pub nll: f64,
    /// What the sampled ones cost.
    pub sampled_nll: f64,
    /// Sets of references at temperature 1.
    pub plain_draws: usize,
    /// What those cost.
    pub plain_nll: f64,
    /// Sampled references of other lengths than the bins ask for, in all sets.
    pub of_other_lengths: usize,
    /// Permutations behind each test.
    pub permutations: usize,
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
    /// Seed of resamples, samples and wrong picks.
    pub seed: u64,
    /// What the numbers are compared with.
    pub null: Null,
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
    /// The same of the null; none for what references have no part in.
    pub null: Option<Estimate>,
    /// Of samples at temperature 1.
    pub null_at_1: Option<Estimate>,
    /// The number less the null.
    pub difference: Option<Estimate>,
    /// What it means, in a few words.
    pub note: &'static str,
}

impl Figure {
    /// A number without a null.
    pub fn plain((group, name): (&'static str, &str), estimate: Estimate, note: &'static str) -> Self {
        Figure { group, name: name.to_owned(), estimate, null: None, null_at_1: None, difference: None, note }
    }
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
    /// Reference lengths, in the model's tokens.
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
    /// chrF2.
    pub chrf: Estimate,
    /// chrF2 less that of 4 beams with the same penalty, on the same lines; nothing for 4 beams themselves.
    pub against_4: Estimate,
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

    /// All numbers, one a line: `section,name,series,x,value,low,high,count,text`, whose first four together stand once.
    pub fn csv(&self) -> String {
        let mut csv = String::from("section,name,series,x,value,low,high,count,text\n");
        let mut row = |section: &str, name: &str, series: &str, x: &str, e: &Estimate, count: &str, text: &str| {
            let (cells, text) = ([section, name, series, x].map(csv_cell).join(","), csv_cell(text));
            let _ = writeln!(csv, "{cells},{},{},{},{count},{text}", number(e.value), number(e.low), number(e.high));
        };
        let Provenance { version, command, search, files } = &self.provenance;
        let (command, search) = (command.join(" "), search.to_string());
        for (name, text) in [("version", version), ("command", &command), ("search", &search)] {
            row("provenance", name, "", "", &Estimate::NONE, "", text);
        }
        for Digest { of, path, sha256 } in files {
            row("provenance", &format!("sha256 of the {of}"), path, "", &Estimate::NONE, "", sha256);
        }
        for figure in &self.figures {
            let all = [
                ("references", Some(figure.estimate)),
                ("null", figure.null),
                ("null at temperature 1", figure.null_at_1),
                ("difference", figure.difference),
            ];
            for (series, estimate) in all.into_iter().filter_map(|(series, e)| Some((series, e?))) {
                row(figure.group, &figure.name, series, "", &estimate, "", "");
            }
        }
        for (curve, series) in self.curves.iter().flat_map(|c| c.series.iter().map(move |s| (c, s))) {
            for point in &series.points {
                let (x, count) = (number(point.x), number(point.count));
                row("curve", &curve.title(), series.name, &x, &point.estimate, &count, "");
            }
        }
        for bucket in &self.buckets {
            for (name, estimate) in
                [("bleu", &bucket.bleu), ("chrf2", &bucket.chrf), ("length ratio", &bucket.length_ratio)]
            {
                row("bucket", name, &bucket.lengths, "", estimate, &bucket.lines.to_string(), "");
            }
        }
        for sweep in &self.sweep {
            let plain = |value| Estimate { value, ..Estimate::NONE };
            let (empty, wins) = (plain(sweep.empty), plain(sweep.empty_wins));
            for (name, estimate) in [
                ("bleu", &sweep.bleu),
                ("chrf2", &sweep.chrf),
                ("chrf2 against 4 beams", &sweep.against_4),
                ("length ratio", &sweep.length_ratio),
                ("search errors", &sweep.search_errors),
                ("empty", &empty),
                ("empty wins", &wins),
            ] {
                row("sweep", name, &sweep.penalty, &sweep.beam_size.to_string(), estimate, "", "");
            }
        }
        for finding in &self.verdict.findings {
            let p = Estimate { value: finding.adjusted_p.unwrap_or(f64::NAN), ..Estimate::NONE };
            let text = if finding.holds { finding.says } else { "" };
            row("verdict", rule_name(finding.rule), "", "", &p, "", text);
        }
        for flag in &self.flags {
            row("flag", &flag.line.to_string(), "", "", &Estimate::NONE, "", &flag.reasons.join("; "));
        }
        csv
    }
}

impl Curve {
    /// What it shows, and along what.
    pub fn title(&self) -> String {
        format!("{}, by {}", self.name, self.x)
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
    let digits = if value.abs() >= 10.0 { 2 } else { 3 };
    // No minus in front of a zero.
    let plain = |x: f64| format!("{:.digits$}", if x.abs() < 0.5 * 10f64.powi(-(digits as i32)) { 0.0 } else { x });
    match low.is_finite() && high.is_finite() {
        true => format!("{} [{}, {}]", plain(value), plain(low), plain(high)),
        false => plain(value),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Setup { model, lines, skipped, probe_lines, sweep_lines, resamples, null, .. } = &self.setup;
        writeln!(f, "model {model}, {lines} lines, {} left out", skipped.len())?;
        writeln!(f, "95% intervals from {resamples} resamples; probes on {probe_lines} lines, sweep on {sweep_lines}")?;
        writeln!(
            f,
            "null: {} sets of references sampled from the model at temperature {:.3}, where they cost {:.3} nats per token; the \
             references cost {:.3}, samples at temperature 1 {:.3}",
            null.draws, null.temperature, null.sampled_nll, null.nll, null.plain_nll
        )?;
        let mut group = "";
        for figure in &self.figures {
            if figure.group != group {
                group = figure.group;
                let columns = ["", "references", "null", "null at temperature 1", "difference"];
                let [_, value, null, plain, difference] = columns;
                writeln!(f, "\n{group:<36} {value:<26} {null:<26} {plain:<26} {difference}")?;
            }
            let cell = |estimate: &Option<Estimate>| estimate.as_ref().map_or_else(|| "-".to_owned(), shown);
            let cells = [Some(figure.estimate), figure.null, figure.null_at_1].map(|e| format!("{:<26}", cell(&e)));
            writeln!(f, "  {:<34} {} {}", figure.name, cells.join(" "), cell(&figure.difference))?;
        }
        writeln!(
            f,
            "\nlengths (reference tokens)     lines  BLEU                    chrF2                   length ratio"
        )?;
        for bucket in &self.buckets {
            let scores = [shown(&bucket.bleu), shown(&bucket.chrf)].map(|s| format!("{s:<23}")).join(" ");
            writeln!(f, "  {:<28} {:>5}  {scores} {}", bucket.lengths, bucket.lines, shown(&bucket.length_ratio))?;
        }
        for what in &self.hidden {
            writeln!(f, "  not shown: {what}")?;
        }
        writeln!(
            f,
            "\nbeam  penalty       chrF2                   against 4 beams         length ratio            empty   search errors"
        )?;
        for sweep in &self.sweep {
            let scores =
                [sweep.chrf, sweep.against_4, sweep.length_ratio].map(|e| format!("{:<23}", shown(&e))).join(" ");
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
