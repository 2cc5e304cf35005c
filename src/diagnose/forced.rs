//! What the model says of references: teacher-forced, after a corrupted token, under another line's source.

use super::estimate::{Estimate, Share, quotient};
use super::report::{Curve, CurveSeries, Figure};
use super::tokens::{
    Line, PositionBins, align, binned, calibration_error, confidences, half_life, relative_bin, relative_xs,
};
use super::{Diagnosis, Pair};
use crate::Result;
use crate::backend::TokenStats;
use crate::cpu::philox::philox;
use crate::translator::{Forced, Translator};

/// How far behind a corrupted token its effect is followed.
pub(super) const DISTANCES: usize = 16;

/// Shares of corrupted tokens.
const DOSES: [f64; 5] = [0.0, 0.05, 0.1, 0.2, 0.4];

/// Corrupted positions per line.
const CORRUPTIONS: u32 = 2;

/// Pairs that go to the engine at once: bounds the memory for their copies.
const AT_ONCE: usize = 2048;

/// A target and what the decoder reads.
pub(super) struct Job<'a> {
    pub source: &'a [u32],
    pub target: Vec<u32>,
    pub inputs: Vec<u32>,
}

/// The statistics of each job's tokens.
pub(super) fn look(translator: &Translator, jobs: &[Job<'_>]) -> Result<Vec<Vec<TokenStats>>> {
    let mut all = Vec::with_capacity(jobs.len());
    for part in jobs.chunks(AT_ONCE) {
        let forced: Vec<Forced<'_>> = part
            .iter()
            .map(|job| Forced { source: job.source, target: &job.target, inputs: Some(&job.inputs) })
            .collect();
        for stats in translator.token_stats(&forced) {
            all.push(stats?);
        }
    }
    Ok(all)
}

/// What the decoder reads when it is forced to a target.
pub(super) fn shifted(start: u32, target: &[u32]) -> Vec<u32> {
    let kept = &target[..target.len().saturating_sub(1)];
    [&[start], kept].concat()
}

/// The references under their own sources.
pub(super) fn references(translator: &Translator, pairs: &[Pair]) -> Result<Vec<Vec<TokenStats>>> {
    let start = translator.config().ids.decoder_start_id;
    let jobs: Vec<Job<'_>> = pairs
        .iter()
        .map(|pair| Job {
            source: &pair.source_ids,
            target: pair.reference_ids.clone(),
            inputs: shifted(start, &pair.reference_ids),
        })
        .collect();
    look(translator, &jobs)
}

/// Teacher-forced numbers along the sentence, and accuracy on own prefixes beside them.
pub(super) fn positions(d: &mut Diagnosis<'_>, forced: &[Vec<TokenStats>], free: &[(&'static str, Vec<Vec<u32>>)]) {
    let lengths: Vec<usize> = forced.iter().map(Vec::len).collect();
    let bins = PositionBins::new(&lengths);
    let each = |value: fn(&TokenStats) -> f64| -> Vec<Share> {
        forced.iter().map(|line| (line.iter().map(value).sum(), line.len() as f64)).collect()
    };
    let right = |s: &TokenStats| f64::from(u8::from(s.rank == 1));
    type Measure = (&'static str, &'static str, &'static str, fn(&TokenStats) -> f64);
    let measures: [Measure; 5] = [
        ("negative log-likelihood", "nats per token", "nats per reference token", |s| -f64::from(s.log_prob)),
        ("accuracy", "share of tokens", "share of reference tokens that are most probable", |s| {
            f64::from(u8::from(s.rank == 1))
        }),
        ("log gold rank", "mean log rank", "mean of the logarithm of the reference token's rank", |s| {
            f64::from(s.rank).ln()
        }),
        ("top-1 mass", "probability", "probability of the most probable token", |s| f64::from(s.max_log_prob).exp()),
        ("entropy", "nats", "nats of the distribution over the next token", |s| f64::from(s.entropy)),
    ];
    for (name, _, note, value) in measures {
        let estimate = d.lines.ratio(&each(value));
        d.figure("teacher-forced", name, estimate, note);
    }
    for (x, xs, bin) in [
        ("position", bins.xs(), &(|t: usize, _: usize| bins.of(t)) as &dyn Fn(usize, usize) -> usize),
        ("share of the sentence", relative_xs(), &relative_bin),
    ] {
        for (name, y, _, value) in measures {
            let by_line: Vec<Vec<Share>> = forced
                .iter()
                .map(|line| binned(line.iter().enumerate().map(|(t, s)| (bin(t, line.len()), value(s)))))
                .collect();
            let mut series = vec![CurveSeries { name: "gold prefix", points: d.lines.curve(&xs, &by_line) }];
            if name == "accuracy" {
                for (name, found) in free {
                    let by_line: Vec<Vec<Share>> = d
                        .pairs
                        .iter()
                        .zip(found)
                        .map(|(pair, found)| {
                            let (matched, _) = align(&pair.reference_ids, found);
                            let len = matched.len();
                            binned(matched.iter().enumerate().map(|(t, m)| (bin(t, len), f64::from(u8::from(*m)))))
                        })
                        .collect();
                    series.push(CurveSeries { name, points: d.lines.curve(&xs, &by_line) });
                }
            }
            d.curves.push(Curve { name, x, y, series });
        }
    }
    let middle = |t: usize, len: usize| (t as f64 + 0.5) / len as f64;
    let line = |values: &mut dyn Iterator<Item = f64>, len: usize| {
        let mut line = Line::default();
        values.enumerate().for_each(|(t, value)| line.add(middle(t, len), value));
        line
    };
    let gold: Vec<Line> = forced.iter().map(|stats| line(&mut stats.iter().map(right), stats.len())).collect();
    d.figure(
        "own prefixes",
        "accuracy slope, gold prefix",
        d.lines.estimate(|draw| Line::slope(draw.iter().map(|&i| gold[i]))),
        "change of accuracy from begin to end of the sentence",
    );
    for (name, found) in free {
        let aligned: Vec<(Vec<bool>, Line)> = d
            .pairs
            .iter()
            .zip(found)
            .map(|(pair, found)| {
                let (matched, _) = align(&pair.reference_ids, found);
                let len = matched.len();
                let fitted = line(&mut matched.iter().map(|m| f64::from(u8::from(*m))), len);
                (matched, fitted)
            })
            .collect();
        let shares: Vec<Share> =
            aligned.iter().map(|(m, _)| (m.iter().filter(|m| **m).count() as f64, m.len() as f64)).collect();
        let accuracy = d.lines.ratio(&shares);
        let gap = d.lines.estimate(|draw| {
            Line::slope(draw.iter().map(|&i| aligned[i].1)) - Line::slope(draw.iter().map(|&i| gold[i]))
        });
        d.figure(
            "own prefixes",
            &format!("aligned accuracy, {name}"),
            accuracy,
            "share of reference tokens found, in order",
        );
        d.figure(
            "own prefixes",
            &format!("slope gap, {name}"),
            gap,
            "slope of aligned accuracy minus that on gold prefixes",
        );
    }
}

/// A random number in 0..1 that depends on the seed and on what it is for alone.
fn uniform(seed: u64, line: usize, position: usize, purpose: u32) -> f64 {
    f64::from(philox(seed, [line as u32, position as u32, purpose, 0x6469_6167])[0]) / 2f64.powi(32)
}

/// Another token than `gold`, as often as it stands in `pool`; `gold` itself if there is no other.
fn replacement(pool: &[u32], gold: u32, draw: f64) -> u32 {
    let first = (draw * pool.len() as f64) as usize;
    let tokens = pool.iter().cycle().skip(first).take(pool.len());
    tokens.copied().find(|token| *token != gold).unwrap_or(gold)
}

/// What a corrupted token of the prefix does to the tokens behind it.
pub(super) fn corruption(d: &mut Diagnosis<'_>, forced: &[Vec<TokenStats>]) -> Result<()> {
    let start = d.translator.config().ids.decoder_start_id;
    let pool: Vec<u32> = d.pairs.iter().flat_map(|p| &p.reference_ids[..p.reference_ids.len() - 1]).copied().collect();
    let (mut jobs, mut places) = (Vec::new(), Vec::new());
    for (at, &line) in d.probed.iter().enumerate() {
        let target = &d.pairs[line].reference_ids;
        // Only tokens with something behind them that is no end of sentence alone.
        for which in (0..CORRUPTIONS).filter(|_| target.len() >= 3) {
            let position = (uniform(d.seed, line, 0, which) * (target.len() - 2) as f64) as usize;
            let mut inputs = shifted(start, target);
            inputs[position + 1] = replacement(&pool, target[position], uniform(d.seed, line, position, 8 + which));
            jobs.push(Job { source: &d.pairs[line].source_ids, target: target.clone(), inputs });
            places.push((at, line, position));
        }
    }
    let stats = look(d.translator, &jobs)?;
    let mut by_line = vec![vec![(0.0, 0.0); DISTANCES]; d.probed.len()];
    for (stats, &(at, line, position)) in stats.iter().zip(&places) {
        for distance in (1..=DISTANCES).filter(|distance| position + distance < stats.len()) {
            let token = position + distance;
            let rise = f64::from(forced[line][token].log_prob) - f64::from(stats[token].log_prob);
            let share = &mut by_line[at][distance - 1];
            *share = (share.0 + rise, share.1 + 1.0);
        }
    }
    let xs: Vec<f64> = (1..=DISTANCES).map(|x| x as f64).collect();
    let curve = |draw: &[usize]| -> Vec<f64> {
        (0..DISTANCES).map(|bin| quotient(draw.iter().map(|&i| by_line[i][bin]))).collect()
    };
    let known = |draw: &[usize]| curve(draw).into_iter().take_while(|v| v.is_finite()).collect::<Vec<_>>();
    let area = d.probes.estimate(|draw| known(draw).iter().sum());
    let half = d.probes.estimate(|draw| half_life(&known(draw)));
    let first = d.probes.estimate(|draw| known(draw).first().copied().unwrap_or(f64::NAN));
    d.figure("recovery", "first rise", first, "nats lost on the token behind a corrupted one");
    d.figure("recovery", "area", area, "nats lost on the 16 tokens behind a corrupted one");
    d.figure("recovery", "half-life", half, "tokens until half of the first rise is gone");
    let points = d.probes.curve(&xs, &by_line);
    let series = vec![CurveSeries { name: "rise", points }];
    d.curves.push(Curve { name: "recovery", x: "tokens behind the corrupted one", y: "nats lost per token", series });
    doses(d, &pool, start)
}

/// Likelihood of the references when a share of the prefix is corrupted; a larger share keeps the smaller one's corruptions.
fn doses(d: &mut Diagnosis<'_>, pool: &[u32], start: u32) -> Result<()> {
    let mut points = Vec::new();
    for dose in DOSES {
        let corrupted = |&line: &usize| {
            let target = &d.pairs[line].reference_ids;
            let mut inputs = shifted(start, target);
            for (position, input) in inputs.iter_mut().skip(1).enumerate() {
                if uniform(d.seed, line, position, 16) < dose {
                    *input = replacement(pool, target[position], uniform(d.seed, line, position, 17));
                }
            }
            Job { source: &d.pairs[line].source_ids, target: target.clone(), inputs }
        };
        let stats = look(d.translator, &d.probed.iter().map(corrupted).collect::<Vec<_>>())?;
        let nll = |line: &Vec<TokenStats>| (line.iter().map(|s| -f64::from(s.log_prob)).sum(), line.len() as f64);
        let shares: Vec<Vec<Share>> = stats.iter().map(|line| vec![nll(line)]).collect();
        points.extend(d.probes.curve(&[dose], &shares));
    }
    let series = vec![CurveSeries { name: "corrupted", points }];
    d.curves.push(Curve { name: "dose", x: "share of the prefix that is corrupted", y: "nats per token", series });
    Ok(())
}

/// How much more probable a reference is under its own source than under the next line's.
pub(super) fn distractor(d: &mut Diagnosis<'_>, forced: &[Vec<TokenStats>]) -> Result<()> {
    let start = d.translator.config().ids.decoder_start_id;
    let other = |line: usize| &d.pairs[(line + 1) % d.pairs.len()].source_ids;
    let job = |&line: &usize| {
        let target = &d.pairs[line].reference_ids;
        Job { source: other(line), target: target.clone(), inputs: shifted(start, target) }
    };
    let stats = look(d.translator, &d.probed.iter().map(job).collect::<Vec<_>>())?;
    let sum = |stats: &[TokenStats]| stats.iter().map(|s| f64::from(s.log_prob)).sum::<f64>();
    let share = |(line, stats): (&usize, &Vec<TokenStats>)| match other(*line) == &d.pairs[*line].source_ids {
        true => (0.0, 0.0),
        false => (sum(&forced[*line]) - sum(stats), stats.len() as f64),
    };
    let shares: Vec<Share> = d.probed.iter().zip(&stats).map(share).collect();
    let estimate = d.probes.ratio(&shares);
    d.figure("source", "distractor gap", estimate, "nats per token that the own source is worth over another");
    Ok(())
}

/// Whether confidence is what it should be, on gold prefixes and on own ones.
pub(super) fn calibration(d: &mut Diagnosis<'_>, forced: &[Vec<TokenStats>], greedy: &[(Vec<u32>, Vec<f32>)]) {
    let gold: Vec<_> = forced
        .iter()
        .map(|line| confidences(line.iter().map(|s| (f64::from(s.max_log_prob).exp(), s.rank == 1))))
        .collect();
    let own: Vec<_> = d
        .pairs
        .iter()
        .zip(greedy)
        .map(|(pair, (ids, log_probs))| {
            let (_, matched) = align(&pair.reference_ids, ids);
            confidences(log_probs.iter().zip(matched).map(|(l, m)| (f64::from(*l).exp(), m)))
        })
        .collect();
    let mut series = Vec::new();
    for (name, lines) in [("gold prefix", &gold), ("own prefix", &own)] {
        let error = d.lines.estimate(|draw| calibration_error(draw.iter().map(|&i| &lines[i])));
        d.figure(
            "calibration",
            &format!("calibration error, {name}"),
            error,
            "mean distance of confidence and accuracy",
        );
        let bins = lines[0].len();
        let xs: Vec<f64> = (0..bins).map(|bin| quotient(lines.iter().map(|line| (line[bin].0, line[bin].2)))).collect();
        let shares: Vec<Vec<Share>> =
            lines.iter().map(|line| line.iter().map(|bin| (bin.1, bin.2)).collect()).collect();
        let points = d.lines.curve(&xs, &shares).into_iter().filter(|point| point.count > 0.0).collect();
        series.push(CurveSeries { name, points });
    }
    d.curves.push(Curve { name: "calibration", x: "mean confidence", y: "share of tokens right", series });
}

/// Excess accumulated error (Arora et al. 2022) against an oracle: how much more the model disagrees with it on its own prefixes than
/// on gold ones. The oracle's most probable token stands for a draw from it.
pub(super) fn excess_error(d: &mut Diagnosis<'_>, oracle: &Translator, greedy: &[(Vec<u32>, Vec<f32>)]) -> Result<()> {
    let gold: Vec<Vec<u32>> = d.probed.iter().map(|&i| d.pairs[i].reference_ids.clone()).collect();
    let own: Vec<Vec<u32>> = d.probed.iter().map(|&i| greedy[i].0.clone()).collect();
    let (gold, own) = (disagreement(d, oracle, &gold)?, disagreement(d, oracle, &own)?);
    // Up to a length that half of the lines have.
    let mut lengths: Vec<usize> = gold.iter().zip(&own).map(|(a, b)| a.len().min(b.len())).collect();
    lengths.sort_unstable();
    let longest = lengths.get(lengths.len() / 2).copied().unwrap_or(0).max(1);
    let excess = |draw: &[usize], length: usize| {
        let mean = |lines: &[Vec<f64>]| {
            let of = |i: usize| (lines[i].iter().take(length).sum(), lines[i].len().min(length) as f64);
            quotient(draw.iter().map(|&i| of(i)))
        };
        100.0 * (mean(&own) / mean(&gold) - 1.0)
    };
    let points: Vec<(f64, Estimate)> =
        (1..=longest).map(|l| (l as f64, d.probes.estimate(|draw| excess(draw, l)))).collect();
    let slope = d.probes.estimate(|draw| {
        let mut line = Line::default();
        (1..=longest).for_each(|l| line.add(l as f64, excess(draw, l)));
        Line::slope([line].into_iter())
    });
    let last = points.last().map_or(Estimate { value: f64::NAN, low: f64::NAN, high: f64::NAN }, |p| p.1);
    d.figure("oracle", "excess accumulated error, %", last, "more disagreement with the oracle on own prefixes");
    d.figure("oracle", "slope of excess error, %", slope, "its growth per token");
    let count = d.probed.len() as f64;
    let points = points.into_iter().map(|(x, estimate)| super::estimate::Point { x, estimate, count }).collect();
    let series = vec![CurveSeries { name: "excess", points }];
    d.curves.push(Curve { name: "excess error", x: "tokens", y: "%", series });
    Ok(())
}

/// For each token of each target the oracle's log-probability of its own best token there, less the model's of the same token.
fn disagreement(d: &Diagnosis<'_>, oracle: &Translator, targets: &[Vec<u32>]) -> Result<Vec<Vec<f64>>> {
    let job = |translator: &Translator, line: usize, target: &[u32], read: &[u32]| Job {
        source: &d.pairs[line].source_ids,
        target: target.to_vec(),
        inputs: shifted(translator.config().ids.decoder_start_id, read),
    };
    let jobs: Vec<Job<'_>> = d.probed.iter().zip(targets).map(|(&i, t)| job(oracle, i, t, t)).collect();
    let theirs = look(oracle, &jobs)?;
    let best: Vec<Vec<u32>> = theirs.iter().map(|line| line.iter().map(|s| s.argmax).collect()).collect();
    let jobs: Vec<Job<'_>> =
        d.probed.iter().zip(&best).zip(targets).map(|((&i, best), t)| job(d.translator, i, best, t)).collect();
    let ours = look(d.translator, &jobs)?;
    let difference =
        |(theirs, ours): (&TokenStats, &TokenStats)| f64::from(theirs.max_log_prob) - f64::from(ours.log_prob);
    Ok(theirs.iter().zip(&ours).map(|(t, o)| t.iter().zip(o).map(difference).collect()).collect())
}

/// The figure for a metric that needs an oracle, without one.
pub(super) fn no_oracle() -> Figure {
    let nan = f64::NAN;
    let estimate = Estimate { value: nan, low: nan, high: nan };
    Figure { group: "oracle", name: "excess accumulated error, %".into(), estimate, note: "needs --oracle" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replacement_is_another_token_of_the_references() {
        assert_eq!(replacement(&[3, 3, 4], 3, 0.0), 4);
        assert_eq!(replacement(&[3, 5, 4], 3, 0.4), 5);
        assert_eq!(replacement(&[3, 5, 3], 3, 0.9), 5);
        assert_eq!(replacement(&[3], 3, 0.5), 3);
    }

    #[test]
    fn random_numbers_depend_on_their_place_alone() {
        let draws: Vec<f64> = (0..1000).map(|i| uniform(1, i, 2, 3)).collect();
        let mean = draws.iter().sum::<f64>() / 1000.0;
        assert!((mean - 0.5).abs() < 0.03 && draws.iter().all(|u| (0.0..1.0).contains(u)), "{mean}");
        assert_eq!(uniform(1, 7, 2, 3), draws[7]);
        assert_ne!(uniform(2, 7, 2, 3), draws[7]);
    }

    #[test]
    fn the_decoder_reads_the_target_one_behind() {
        assert_eq!(shifted(9, &[1, 2, 3]), [9, 1, 2]);
        assert_eq!(shifted(9, &[3]), [9]);
    }
}
