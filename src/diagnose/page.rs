//! A diagnosis as one HTML page, which needs nothing from elsewhere and follows the reader's light or dark.

use std::fmt::Write as _;

use super::report::{Bucket, Curve, Report, shown};
use crate::plot::{Chart, HeatMap, Mark, STYLE, Series, escape};

const PAGE_STYLE: &str = "\
body { background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 0 auto;\
 padding: 24px; }\n\
h1 { font-size: 24px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 32px 0 8px; }\n\
p.note, td.note { color: var(--faint); } p.note { margin: 0 0 8px; }\n\
table { border-collapse: collapse; font-size: 14px; } th { text-align: left; color: var(--faint); font-weight: 500; }\n\
th, td { padding: 3px 18px 3px 0; border-bottom: 1px solid var(--grid); vertical-align: top; }\n\
td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }\n\
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 520px), 1fr)); gap: 20px; }\n\
.finding { border-left: 4px solid var(--grid); padding: 2px 12px; margin: 8px 0; }\n\
.finding.holds { border-color: var(--c1); } .finding.holds b { color: var(--c1); }\n\
.finding b { font-weight: 600; } .finding small { color: var(--faint); display: block; }\n\
.warning { color: var(--c4); } .wide { overflow-x: auto; }\n";

impl Report {
    /// The page.
    pub fn html(&self) -> String {
        let setup = &self.setup;
        let mut page = format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <title>Diagnosis of {0}</title>\n<style>\n{STYLE}{PAGE_STYLE}</style>\n</head>\n<body>\n<h1>Diagnosis of {0}</h1>\n",
            escape(&setup.model)
        );
        let oracle = setup.oracle.as_deref().map_or(String::new(), |o| format!("; oracle {}", escape(o)));
        let _ = writeln!(
            page,
            "<p class=\"note\">{} lines, {} left out{oracle}. Probes on {} lines, beam sweep on {}, both spread evenly over the set. \
             Intervals hold 95% of {} resamples of lines, seed {}.</p>",
            setup.lines,
            setup.skipped.len(),
            setup.probe_lines,
            setup.sweep_lines,
            setup.resamples,
            setup.seed
        );
        self.verdict_html(&mut page);
        self.figures_html(&mut page);
        page.push_str("<h2>Curves</h2>\n<div class=\"charts\">\n");
        self.curves.iter().for_each(|curve| page.push_str(&chart(curve).svg()));
        page.push_str("</div>\n");
        self.scores_html(&mut page);
        self.flags_html(&mut page);
        page.push_str("</body>\n</html>\n");
        page
    }

    fn verdict_html(&self, page: &mut String) {
        page.push_str("<h2>Verdict</h2>\n<p class=\"note\">The thresholds are starting points, not laws.</p>\n");
        for finding in &self.verdict.findings {
            let (class, mark) = if finding.holds { (" holds", "&#10003;") } else { ("", "&#8211;") };
            let _ = writeln!(
                page,
                "<div class=\"finding{class}\"><b>{mark} {}</b><small>Rule: {}.</small><small>Seen: {}.</small></div>",
                escape(finding.says),
                escape(finding.rule),
                escape(&finding.reasons.join("; "))
            );
        }
        for warning in &self.verdict.warnings {
            let _ = writeln!(page, "<p class=\"warning\">Warning: {}.</p>", escape(warning));
        }
    }

    fn figures_html(&self, page: &mut String) {
        page.push_str("<h2>Figures</h2>\n<div class=\"wide\"><table>\n");
        let mut group = "";
        for figure in &self.figures {
            if figure.group != group {
                group = figure.group;
                let _ = writeln!(page, "<tr><th colspan=\"3\">{}</th></tr>", escape(group));
            }
            let _ = writeln!(
                page,
                "<tr><td>{}</td><td class=\"number\">{}</td><td class=\"note\">{}</td></tr>",
                escape(&figure.name),
                shown(&figure.estimate),
                escape(figure.note)
            );
        }
        page.push_str("</table></div>\n");
    }

    fn scores_html(&self, page: &mut String) {
        page.push_str("<h2>Lengths and beams</h2>\n<div class=\"charts\">\n");
        if !self.buckets.is_empty() {
            page.push_str(&bucket_chart(&self.buckets, "BLEU by reference length", "BLEU", |b| b.bleu).svg());
            page.push_str(
                &bucket_chart(&self.buckets, "Length ratio by reference length", "ratio", |b| b.length_ratio).svg(),
            );
        }
        page.push_str(&self.heat_map("BLEU by beam size and length penalty", 1, |s| s.bleu.value).svg());
        page.push_str(&self.heat_map("Length ratio", 3, |s| s.length_ratio.value).svg());
        page.push_str(&self.heat_map("Search errors, %", 1, |s| 100.0 * s.search_errors.value).svg());
        page.push_str(&self.heat_map("Empty translations, %", 1, |s| 100.0 * s.empty).svg());
        page.push_str("</div>\n");
    }

    fn heat_map(&self, title: &str, digits: usize, value: impl Fn(&super::Sweep) -> f64) -> HeatMap {
        let mut beams: Vec<usize> = self.sweep.iter().map(|s| s.beam_size).collect();
        beams.sort_unstable();
        beams.dedup();
        let mut penalties: Vec<String> = self.sweep.iter().map(|s| s.penalty.clone()).collect();
        penalties.dedup();
        let cell = |penalty: &String, beam: &usize| {
            let found = self.sweep.iter().find(|s| s.beam_size == *beam && s.penalty == *penalty);
            found.map_or(f64::NAN, &value)
        };
        HeatMap {
            title: title.to_owned(),
            values: penalties.iter().map(|p| beams.iter().map(|b| cell(p, b)).collect()).collect(),
            columns: ("beam size".into(), beams.iter().map(usize::to_string).collect()),
            rows: ("length penalty".into(), penalties),
            digits,
        }
    }

    fn flags_html(&self, page: &mut String) {
        let _ = writeln!(
            page,
            "<h2>Flagged lines</h2>\n<p class=\"note\">{} of {}.</p>",
            self.flags.len(),
            self.setup.lines
        );
        if self.flags.is_empty() {
            return;
        }
        page.push_str("<div class=\"wide\"><table>\n<tr><th>line</th><th>reasons</th><th>source, translation, reference</th></tr>\n");
        for flag in &self.flags {
            let texts = [&flag.source, &flag.hypothesis, &flag.reference].map(|text| escape(text)).join("<br>");
            let reasons = escape(&flag.reasons.join("; "));
            let _ =
                writeln!(page, "<tr><td class=\"number\">{}</td><td>{reasons}</td><td>{texts}</td></tr>", flag.line);
        }
        page.push_str("</table></div>\n");
    }
}

fn chart(curve: &Curve) -> Chart {
    let mut chart = Chart::new(format!("{}, by {}", curve.name, curve.x), curve.x, curve.y);
    for series in &curve.series {
        let points = series.points.iter().map(|p| (p.x, p.estimate.value)).collect();
        let bounds = series.points.iter().map(|p| (p.estimate.low, p.estimate.high)).collect();
        chart = chart.with(Series::new(series.name, Mark::Line, points).with_intervals(bounds));
    }
    if curve.name == "calibration" {
        chart = chart.with(Series::new("as it should be", Mark::Dashed, vec![(0.0, 0.0), (1.0, 1.0)]));
    }
    chart
}

fn bucket_chart(buckets: &[Bucket], title: &str, y: &str, value: impl Fn(&Bucket) -> super::Estimate) -> Chart {
    let points = buckets.iter().enumerate().map(|(i, b)| (i as f64, value(b).value)).collect();
    let bounds = buckets.iter().map(|b| (value(b).low, value(b).high)).collect();
    let bars = Series::new(y, Mark::Bars, points).with_intervals(bounds);
    let mut chart = Chart::new(title, "reference length, 13a tokens", y).with(bars);
    chart.categories = buckets.iter().map(|b| format!("{} ({})", b.lengths, b.lines)).collect();
    chart
}
