//! Numbers along a curve: by position, by share of the sentence, behind a wrong token, by dose, by confidence.

use super::Diagnosis;
use super::estimate::{Estimate, Point, Share, quotient};
use super::inference::Compared;
use super::measure::MEASURES;
use super::report::{Curve, CurveSeries};
use super::subject::{Found, Job, Reference, shifted};
use super::sums::{DISTANCES, SWITCHES, Statistic, Sums, TEST_BINS, test_bin_middle};
use super::tokens::{PositionBins, align, binned, calibration_error, confidences, relative_bin, relative_xs};
use crate::Result;
use crate::backend::TokenStats;
use crate::cpu::philox::philox;
use crate::metrics::{ChrfCounts, Counts};

/// Shares of the prefix's tokens that give way to the model's picks.
const DOSES: [f64; 5] = [0.0, 0.25, 0.5, 0.75, 1.0];

/// Teacher-forced numbers along the sentence, and accuracy on own prefixes beside them.
pub(super) fn positions(d: &mut Diagnosis<'_>, gold: &[Reference], forced: &[Vec<TokenStats>]) {
    let lengths: Vec<usize> = forced.iter().map(Vec::len).collect();
    let bins = PositionBins::new(&lengths);
    for (x, xs, bin) in [
        ("position", bins.xs(), &(|t: usize, _: usize| bins.of(t)) as &dyn Fn(usize, usize) -> usize),
        ("share of the sentence", relative_xs(), &relative_bin),
    ] {
        for (name, y, value) in MEASURES {
            let by_line: Vec<Vec<Share>> = forced
                .iter()
                .map(|line| binned(line.iter().enumerate().map(|(t, s)| (bin(t, line.len()), value(s)))))
                .collect();
            let mut series = vec![CurveSeries { name: "gold prefix", points: d.lines.curve(&xs, &by_line) }];
            if name == "accuracy" {
                for (name, found) in [("greedy", &d.bench.greedy), ("search", &d.bench.found)] {
                    let line = |(reference, found): (&Reference, &Found)| {
                        let (matched, _) = align(&reference.ids, &found.ids);
                        let len = matched.len();
                        binned(matched.iter().enumerate().map(|(t, m)| (bin(t, len), f64::from(u8::from(*m)))))
                    };
                    let by_line: Vec<Vec<Share>> = gold.iter().zip(found).map(line).collect();
                    series.push(CurveSeries { name, points: d.lines.curve(&xs, &by_line) });
                }
            }
            d.curves.push(Curve { name, x, y, series });
        }
    }
}

/// The curve that the test of the gap is about: own minus gold accuracy, of the references and of the null, and the difference.
pub(super) fn own_minus_gold(d: &mut Diagnosis<'_>, statistics: &[Statistic], compared: &[Compared]) {
    let bins: Vec<&Compared> =
        statistics.iter().zip(compared).filter(|(s, _)| s.group == "own minus gold accuracy").map(|(_, c)| c).collect();
    debug_assert_eq!(bins.len(), TEST_BINS);
    let count = d.pairs.len() as f64;
    let series = |name, of: fn(&Compared) -> Estimate| {
        let point =
            |(bin, compared): (usize, &&Compared)| Point { x: test_bin_middle(bin), estimate: of(compared), count };
        CurveSeries { name, points: bins.iter().enumerate().map(point).collect() }
    };
    let series =
        vec![series("references", |c| c.value), series("null", |c| c.null), series("difference", |c| c.difference)];
    let (name, x, y) = ("own minus gold accuracy", "share of the sentence", "share of tokens");
    d.curves.push(Curve { name, x, y, series });
}

/// The rise behind a wrong token, and chrF2 behind gold and own prefixes.
pub(super) fn recovery(d: &mut Diagnosis<'_>, value: &[Sums], null: &[Sums]) {
    let probed = |sums: &[Sums]| -> Vec<Sums> { d.probed().iter().map(|&line| sums[line].clone()).collect() };
    let (value, null) = (probed(value), probed(null));
    let xs: Vec<f64> = (1..=DISTANCES).map(|x| x as f64).collect();
    let rises = |sums: &[Sums]| sums.iter().map(|s| s.rise.to_vec()).collect::<Vec<_>>();
    let series = [("references", &value), ("null, one draw", &null)]
        .map(|(name, sums)| CurveSeries { name, points: d.probes.curve(&xs, &rises(sums)) });
    let (x, y) = ("tokens behind the wrong one", "nats lost per token");
    let recovery = Curve { name: "recovery", x, y, series: series.into() };
    let pooled = |sums: &[Sums], draw: &[usize], of: fn(&Sums) -> &[ChrfCounts], at: usize| {
        let mut sum = ChrfCounts::default();
        draw.iter().for_each(|&i| sum += of(&sums[i])[at]);
        sum.score()
    };
    type Of = fn(&Sums) -> &[ChrfCounts];
    let all: [(&'static str, &[Sums], Of); 4] = [
        ("gold prefix", &value, |s| &s.after_gold),
        ("own prefix", &value, |s| &s.after_own),
        ("gold prefix, null", &null, |s| &s.after_gold),
        ("own prefix, null", &null, |s| &s.after_own),
    ];
    let series = all.map(|(name, sums, of)| {
        let point = |(at, x): (usize, &f64)| {
            let estimate = d.probes.estimate(|draw| pooled(sums, draw, of, at));
            Point { x: *x, estimate, count: sums.len() as f64 }
        };
        CurveSeries { name, points: SWITCHES.iter().enumerate().map(point).collect() }
    });
    let (x, y) = ("share of the reference that is given", "chrF2 of the rest");
    let switch = Curve { name: "prefix switch", x, y, series: series.into() };
    d.curves.extend([recovery, switch]);
}

/// Likelihood of the references when a share of the prefix gives way to what the model would have said there; a larger share keeps the
/// smaller one's picks.
pub(super) fn doses(d: &mut Diagnosis<'_>, gold: &[Reference], forced: &[Vec<TokenStats>]) -> Result<()> {
    let ids = d.bench.subject.ids();
    let chance =
        |line: usize, t: usize| f64::from(philox(d.seed, [line as u32, t as u32, 1, 0x6469_6167])[0]) / 2f64.powi(32);
    let mut points = Vec::new();
    for dose in DOSES {
        let job = |&line: &usize| {
            let target = gold[line].ids.clone();
            let mut inputs = shifted(ids.decoder_start_id, &target);
            for (t, input) in inputs.iter_mut().skip(1).enumerate() {
                let pick = forced[line][t].argmax;
                if pick != ids.eos_id && pick != ids.pad_id && chance(line, t) < dose {
                    *input = pick;
                }
            }
            Job { line, source: line, target, inputs }
        };
        let stats = d.bench.subject.look(d.pairs, &d.probed().iter().map(job).collect::<Vec<_>>())?;
        let nll = |line: &Vec<TokenStats>| (line.iter().map(|s| -f64::from(s.log_prob)).sum(), line.len() as f64);
        let shares: Vec<Vec<Share>> = stats.iter().map(|line| vec![nll(line)]).collect();
        points.extend(d.probes.curve(&[dose], &shares));
    }
    let series = vec![CurveSeries { name: "own picks", points }];
    d.curves.push(Curve { name: "dose", x: "share of the prefix that are own picks", y: "nats per token", series });
    Ok(())
}

/// Whether confidence is what it should be, on gold prefixes and on own ones.
pub(super) fn calibration(d: &mut Diagnosis<'_>, gold: &[Reference], forced: &[Vec<TokenStats>]) {
    let on_gold: Vec<_> = forced
        .iter()
        .map(|line| confidences(line.iter().map(|s| (f64::from(s.max_log_prob).exp(), s.rank == 1))))
        .collect();
    let line = |(reference, found): (&Reference, &Found)| {
        let (_, matched) = align(&reference.ids, &found.ids);
        confidences(found.log_probs.iter().zip(matched).map(|(l, m)| (f64::from(*l).exp(), m)))
    };
    let on_own: Vec<_> = gold.iter().zip(&d.bench.greedy).map(line).collect();
    let mut series = Vec::new();
    for (name, lines) in [("gold prefix", &on_gold), ("own prefix", &on_own)] {
        let error = d.lines.estimate(|draw| calibration_error(draw.iter().map(|&i| &lines[i])));
        let figure = format!("calibration error, {name}");
        d.figure("calibration", &figure, error, "mean distance of confidence and accuracy");
        let bins = lines[0].len();
        let xs: Vec<f64> = (0..bins).map(|bin| quotient(lines.iter().map(|line| (line[bin].0, line[bin].2)))).collect();
        let shares: Vec<Vec<Share>> =
            lines.iter().map(|line| line.iter().map(|bin| (bin.1, bin.2)).collect()).collect();
        let points = d.lines.curve(&xs, &shares).into_iter().filter(|point| point.count > 0.0).collect();
        series.push(CurveSeries { name, points });
    }
    d.curves.push(Curve { name: "calibration", x: "mean confidence", y: "share of tokens right", series });
}
