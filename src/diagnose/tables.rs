//! Tables of a diagnosis: scores by length, the beam sweep, flagged lines; and figures that no reference sampled could change.

use super::Diagnosis;
use super::estimate::{Estimate, Resampler, Share};
use super::flags::reasons;
use super::measure::{Swept, counts};
use super::report::{Bucket, Flag, Sweep};
use super::subject::{Found, Job, Reference};
use super::sums::{BUCKET_LINES, BUCKETS, bucket_name, bucket_of};
use super::tokens::{has_loop, top_ngram};
use crate::Result;
use crate::backend::TokenStats;
use crate::metrics::{BleuCounts, ChrfCounts, Counts, tokenize_13a};

/// What scores of some translations are made of.
struct Scored {
    bleu: Vec<BleuCounts>,
    chrf: Vec<ChrfCounts>,
}

impl Scored {
    fn new(found: &[Found], references: &[&str]) -> Result<Self> {
        let (bleu, chrf) = counts(found, references)?;
        Ok(Scored { bleu, chrf })
    }

    fn of(&self, lines: &[usize]) -> Self {
        Scored {
            bleu: lines.iter().map(|&i| self.bleu[i]).collect(),
            chrf: lines.iter().map(|&i| self.chrf[i]).collect(),
        }
    }

    fn bleu(&self, lines: &Resampler) -> Estimate {
        lines.estimate(|draw| score_of(&self.bleu, draw))
    }

    fn chrf(&self, lines: &Resampler) -> Estimate {
        lines.estimate(|draw| score_of(&self.chrf, draw))
    }

    fn length_ratio(&self, lines: &Resampler) -> Estimate {
        let share = |counts: &BleuCounts| (counts.hypothesis_tokens as f64, counts.reference_tokens as f64);
        lines.ratio(&self.bleu.iter().map(share).collect::<Vec<Share>>())
    }
}

fn score_of<C: Counts>(counts: &[C], draw: &[usize]) -> f64 {
    let mut sum = C::default();
    draw.iter().for_each(|&i| sum += counts[i]);
    sum.score()
}

/// Scores by the reference's length. Buckets of too few lines are counted, not shown.
pub(super) fn buckets(d: &mut Diagnosis<'_>, gold: &[Reference]) -> Result<()> {
    let texts: Vec<&str> = gold.iter().map(|r| r.text.as_str()).collect();
    let scored = Scored::new(&d.bench.found, &texts)?;
    for (at, bounds) in BUCKETS.into_iter().enumerate() {
        let members: Vec<usize> = (0..gold.len()).filter(|&i| bucket_of(gold[i].ids.len()) == at).collect();
        let lengths = bucket_name(bounds);
        match members.len() {
            0 => {}
            few if few < BUCKET_LINES => {
                d.hidden.push(format!("lengths {lengths}, of which there are {few}, fewer than {BUCKET_LINES} lines"))
            }
            count => {
                let (part, lines) = (scored.of(&members), Resampler::new(count, &d.bootstrap)?);
                let (bleu, chrf, length_ratio) = (part.bleu(&lines), part.chrf(&lines), part.length_ratio(&lines));
                d.buckets.push(Bucket { lengths, lines: count, bleu, chrf, length_ratio });
            }
        }
    }
    Ok(())
}

/// Beam sizes by length penalties, each also against 4 beams with the same penalty on the same lines.
pub(super) fn sweep(d: &mut Diagnosis<'_>, gold: &[Reference], forced: &[Vec<TokenStats>]) -> Result<()> {
    let swept = &d.bench.swept;
    let Ok(lines) = Resampler::new(swept.len(), &d.bootstrap) else { return Ok(()) };
    let ids = d.bench.subject.ids();
    let job = |&line: &usize| Job { line, source: line, target: vec![ids.eos_id], inputs: vec![ids.decoder_start_id] };
    let stats = d.bench.subject.look(d.pairs, &swept.iter().map(job).collect::<Vec<_>>())?;
    let sum = |line: &Vec<TokenStats>| line.iter().map(|s| f64::from(s.log_prob)).sum::<f64>();
    let at_once: Vec<f64> = stats.iter().map(sum).collect();
    let shares: Vec<Share> = at_once.iter().map(|l| (*l, 1.0)).collect();
    d.figures.push(super::report::Figure::plain(
        ("search", "log P(empty)"),
        lines.ratio(&shares),
        "log-probability of ending at once",
    ));
    let texts: Vec<&str> = swept.iter().map(|&i| gold[i].text.as_str()).collect();
    let scored = |s: &Swept| Scored::new(&s.found, &texts);
    for one in &d.bench.sweep {
        let own = scored(one)?;
        let is_four = |s: &&Swept| s.beam_size == 4 && s.penalty == one.penalty;
        let against_4 = match d.bench.sweep.iter().find(is_four).filter(|_| one.beam_size != 4) {
            None => Estimate::NONE,
            Some(four) => {
                let four = scored(four)?;
                lines.estimate(|draw| score_of(&own.chrf, draw) - score_of(&four.chrf, draw))
            }
        };
        let log_probs: Vec<f64> = one.found.iter().map(Found::log_prob).collect();
        let error = |(line, own): (&usize, &f64)| (f64::from(u8::from(sum(&forced[*line]) > *own)), 1.0);
        let errors: Vec<Share> = swept.iter().zip(&log_probs).map(error).collect();
        let count = swept.len() as f64;
        let empty = one.found.iter().filter(|found| found.text.trim().is_empty()).count() as f64 / count;
        let wins = at_once.iter().zip(&log_probs).filter(|(end, own)| end > own).count() as f64 / count;
        d.sweep.push(Sweep {
            beam_size: one.beam_size,
            penalty: one.penalty.to_owned(),
            bleu: own.bleu(&lines),
            chrf: own.chrf(&lines),
            against_4,
            length_ratio: own.length_ratio(&lines),
            empty,
            search_errors: lines.ratio(&errors),
            empty_wins: wins,
        });
    }
    Ok(())
}

/// Repetition that goes beyond the tested rates.
pub(super) fn repetition(d: &mut Diagnosis<'_>, gold: &[Reference]) {
    let hypotheses: Vec<Vec<String>> = d.bench.found.iter().map(|found| tokenize_13a(&found.text)).collect();
    let references: Vec<Vec<String>> = gold.iter().map(|reference| tokenize_13a(&reference.text)).collect();
    let difference = |(h, r): (&Vec<String>, &Vec<String>)| (top_ngram(h, 4) as f64 - top_ngram(r, 4) as f64, 1.0);
    let differences: Vec<Share> = hypotheses.iter().zip(&references).map(difference).collect();
    let note = "occurrences of the commonest 4-gram beyond the reference's";
    d.figure("repetition", "top 4-gram difference", d.lines.ratio(&differences), note);
    let loops: Vec<Share> = hypotheses.iter().map(|h| (f64::from(u8::from(has_loop(h))), 1.0)).collect();
    d.figure("repetition", "loops", d.lines.ratio(&loops), "share of lines with a stretch three times in a row");
}

/// Lists the flagged lines.
pub(super) fn flags(d: &mut Diagnosis<'_>, gold: &[Reference]) {
    let texts: Vec<&str> = gold.iter().map(|r| r.text.as_str()).collect();
    let all = reasons(&d.bench.candidates(&texts));
    for (line, reasons) in all.into_iter().enumerate().filter(|(_, reasons)| !reasons.is_empty()) {
        let pair = &d.pairs[line];
        let hypothesis = d.bench.found[line].text.clone();
        let (source, reference) = (pair.source.clone(), pair.reference.clone());
        d.flags.push(Flag { line: pair.number, reasons, source, hypothesis, reference });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_those_of_the_drawn_lines() {
        let found = |text: &str| Found { text: text.into(), ids: Vec::new(), log_probs: Vec::new() };
        let scored = Scored::new(&[found("a b c d e"), found("v w x y")], &["a b c d e", "v w x y z"]).expect("lines");
        let bleu = |draw: &[usize]| score_of(&scored.bleu, draw);
        assert_eq!(bleu(&[0]), 100.0);
        assert!(bleu(&[1]) < 80.0 && bleu(&[0, 1]) > bleu(&[1]));
        assert_eq!(score_of(&scored.of(&[0]).bleu, &[0]), 100.0);
    }
}
