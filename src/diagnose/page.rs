//! A diagnosis as one HTML page, which needs nothing from elsewhere and follows the reader's light or dark.

use std::fmt::Write as _;

use super::estimate::Estimate;
use super::report::{Bucket, Curve, Report, Sweep, shown};
use super::verdict::{Finding, rule_name};
use crate::plot::{Chart, Drawing, HeatMap, Mark, STYLE, Series, escape};

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
.finding pre, pre { overflow-x: auto; margin: 4px 0; } p.small { color: var(--faint); font-size: 12px; margin: 2px 0; }\n\
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
             Intervals hold 95% of {} resamples of lines and draws, seed {}. The null: {} sets of references that the model sampled, with \
             lengths in the same bins, at temperature {:.3}, where they cost as much ({:.3} nats per token) as the references ({:.3}).</p>",
            setup.lines,
            setup.skipped.len(),
            setup.probe_lines,
            setup.sweep_lines,
            setup.resamples,
            setup.seed,
            setup.null.draws,
            setup.null.temperature,
            setup.null.sampled_nll,
            setup.null.nll
        );
        self.verdict_html(&mut page);
        self.figures_html(&mut page);
        page.push_str("<h2>Charts</h2>\n<div class=\"charts\">\n");
        self.charts().iter().for_each(|(_, chart)| page.push_str(&chart.svg()));
        page.push_str("</div>\n");
        self.flags_html(&mut page);
        page.push_str("</body>\n</html>\n");
        page
    }

    fn verdict_html(&self, page: &mut String) {
        page.push_str("<h2>Verdict</h2>\n");
        if let Some(why) = &self.verdict.withheld {
            let _ = writeln!(page, "<p class=\"note\">None: {}.</p>", escape(why));
        }
        let (found, others): (Vec<&Finding>, Vec<&Finding>) = self.verdict.findings.iter().partition(|f| f.holds);
        for finding in found {
            let seen = finding.seen.as_ref().map_or(String::new(), |seen| seen.shown());
            let _ = writeln!(
                page,
                "<div class=\"finding holds\"><b>{}</b><small>Seen: {}; p {:.3} over all rules.</small><pre>{}</pre><small>To expect: {}.</small></div>",
                escape(finding.says),
                escape(&seen),
                finding.adjusted_p.unwrap_or(1.0),
                escape(finding.next.as_deref().unwrap_or_default()),
                escape(finding.expect.unwrap_or_default())
            );
        }
        if let Some(next) = &self.verdict.otherwise {
            let _ = writeln!(
                page,
                "<p>Nothing is told from what the model's own samples give. What is left is the decoder:</p><pre>{}</pre>",
                escape(next)
            );
        }
        let name = |finding: &&Finding| {
            let seen = finding.seen.as_ref().map_or(String::new(), |seen| format!(": {}", seen.shown()));
            format!("{} (p {:.2}){seen}", rule_name(finding.rule), finding.adjusted_p.unwrap_or(1.0))
        };
        let small = others.iter().map(name).map(|text| format!("not found: {text}"));
        let small = small.chain(self.verdict.not_tested.iter().map(|what| format!("not tested: {what}")));
        let small = small.chain(self.hidden.iter().map(|what| format!("not shown: {what}")));
        small.for_each(|text| {
            let _ = writeln!(page, "<p class=\"small\">{}</p>", escape(&text));
        });
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
                let _ = writeln!(
                    page,
                    "<tr><th>{}</th><th>references</th><th>null</th><th>null at temperature 1</th><th>difference</th><th></th></tr>",
                    escape(group)
                );
            }
            let cell = |estimate: Option<Estimate>| {
                let text = estimate.as_ref().map_or(String::new(), shown);
                format!("<td class=\"number\">{text}</td>")
            };
            let cells = [Some(figure.estimate), figure.null, figure.null_at_1, figure.difference].map(cell).concat();
            let _ = writeln!(
                page,
                "<tr><td>{}</td>{cells}<td class=\"note\">{}</td></tr>",
                escape(&figure.name),
                escape(figure.note)
            );
        }
        page.push_str("</table></div>\n");
    }

    /// Every chart, with a name for its file.
    pub fn charts(&self) -> Vec<(String, Drawing)> {
        let mut charts: Vec<(String, Drawing)> = self.curves.iter().map(|c| (c.title(), chart(c).draw())).collect();
        if !self.buckets.is_empty() {
            let lengths = |title: &str, y, of: fn(&Bucket) -> Estimate| {
                (title.to_owned(), bucket_chart(&self.buckets, title, y, of).draw())
            };
            charts.push(lengths("chrF2 by reference length", "chrF2", |b| b.chrf));
            charts.push(lengths("Length ratio by reference length", "ratio", |b| b.length_ratio));
        }
        if !self.sweep.is_empty() {
            type Of = fn(&Sweep) -> f64;
            let maps: [(&str, usize, Of); 4] = [
                ("chrF2 by beam size and length penalty", 1, |s| s.chrf.value),
                ("Length ratio by beam size and length penalty", 3, |s| s.length_ratio.value),
                ("Search errors by beam size and length penalty, %", 1, |s| 100.0 * s.search_errors.value),
                ("Empty translations by beam size and length penalty, %", 1, |s| 100.0 * s.empty),
            ];
            charts.extend(maps.map(|(title, digits, of)| (title.to_owned(), self.heat_map(title, digits, of).draw())));
        }
        charts
    }

    fn heat_map(&self, title: &str, digits: usize, value: impl Fn(&Sweep) -> f64) -> HeatMap {
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
    let mut chart = Chart::new(curve.title(), curve.x, curve.y);
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

fn bucket_chart(buckets: &[Bucket], title: &str, y: &str, value: impl Fn(&Bucket) -> Estimate) -> Chart {
    let points = buckets.iter().enumerate().map(|(i, b)| (i as f64, value(b).value)).collect();
    let bounds = buckets.iter().map(|b| (value(b).low, value(b).high)).collect();
    let bars = Series::new(y, Mark::Bars, points).with_intervals(bounds);
    let mut chart = Chart::new(title, "reference length, model tokens (lines)", y).with(bars);
    chart.categories = buckets.iter().map(|b| format!("{} ({})", b.lengths, b.lines)).collect();
    chart
}
