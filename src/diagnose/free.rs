//! What the model writes: continuations of given prefixes, length, beam sweep, repetition, hallucinations.

use std::collections::HashMap;

use super::estimate::{Estimate, Resampler, Share};
use super::forced::{Job, look};
use super::report::{Bucket, Curve, CurveSeries, Flag, Sweep};
use super::tokens::{has_loop, top_ngram};
use super::{Diagnosis, Pair};
use crate::backend::TokenStats;
use crate::metrics::{
    BleuCounts, ChrfCounts, Counts, bleu_counts, chrf_counts, one_each, repetition_rate, sentence_chrf, tokenize_13a,
};
use crate::translator::{Translation, Translator};
use crate::{DecodeOptions, Hypothesis, LengthPenalty, MaxLength, Result};

/// Where the prefix ends, as a share of the reference.
const SWITCHES: [f64; 4] = [0.1, 0.25, 0.5, 0.75];

/// Beam sizes of the sweep.
const BEAM_SIZES: [usize; 6] = [1, 2, 4, 8, 16, 32];

/// Buckets of reference lengths, in 13a tokens; the last is open.
const BUCKETS: [(usize, usize); 6] = [(1, 8), (9, 16), (17, 32), (33, 48), (49, 64), (65, usize::MAX)];

/// A bucket of fewer lines is not shown.
const BUCKET_LINES: usize = 30;

/// The bucket that the others are compared with.
pub(super) const COMPARED: (usize, usize) = (9, 32);

/// Translations of some lines, in their order.
pub(super) fn translate(
    translator: &Translator,
    pairs: &[Pair],
    lines: &[usize],
    options: &DecodeOptions,
) -> Result<Vec<Translation>> {
    let texts: Vec<&str> = lines.iter().map(|&i| pairs[i].source.as_str()).collect();
    translator.translate(&texts, options)
}

/// Prefixes of sources' translations as greedy search goes on with them; returns them whole, up to `most` tokens each.
fn continue_greedily(
    translator: &Translator,
    prefixes: &[(Vec<u32>, Vec<u32>)],
    most: &[usize],
    options: &DecodeOptions,
) -> Result<Vec<Vec<u32>>> {
    // What greedy search writes does not depend on its limit: all get the largest, and are cut at their own.
    let limit = MaxLength::Absolute(most.iter().copied().max().unwrap_or(1));
    let options = DecodeOptions { beam_size: 1, n_best: 1, cut: true, max_length: limit, ..options.clone() };
    let found = translator.continue_ids(prefixes, &options)?;
    let whole = |(hypotheses, most): (Result<Vec<Hypothesis>>, &usize)| {
        let mut ids = hypotheses?.swap_remove(0).token_ids;
        ids.truncate(*most);
        Ok(ids)
    };
    found.into_iter().zip(most).map(whole).collect()
}

/// Continuations of gold prefixes against those of own ones, which are what greedy search wrote.
pub(super) fn prefix_switch(
    d: &mut Diagnosis<'_>,
    greedy: &[(Vec<u32>, Vec<f32>)],
    options: &DecodeOptions,
) -> Result<()> {
    let table = d.translator.config().longest();
    let cut = |line: usize, share: f64| (share * (d.pairs[line].reference_ids.len() - 1) as f64) as usize;
    let (mut prefixes, mut most) = (Vec::new(), Vec::new());
    for &line in &d.probed {
        let Pair { source_ids, reference_ids, .. } = &d.pairs[line];
        let limit = options.max_length.resolve(source_ids.len(), table).max(reference_ids.len()).min(table);
        for share in SWITCHES {
            prefixes.push((source_ids.clone(), reference_ids[..cut(line, share)].to_vec()));
            most.push(limit);
        }
    }
    let whole = continue_greedily(d.translator, &prefixes, &most, options)?;
    let text = |ids: &[u32], from: usize| d.translator.tokenizer().detokenize(&ids[from.min(ids.len())..]);
    let (mut gold, mut own) = (Vec::new(), Vec::new());
    for (&line, continued) in d.probed.iter().zip(whole.chunks(SWITCHES.len())) {
        let (mut gold_line, mut own_line) = (Vec::new(), Vec::new());
        for (share, whole) in SWITCHES.iter().zip(continued) {
            let from = cut(line, *share);
            let rest = text(&d.pairs[line].reference_ids, from);
            gold_line.extend(chrf_counts(&[text(whole, from)], &[[&rest]])?);
            own_line.extend(chrf_counts(&[text(&greedy[line].0, from)], &[[&rest]])?);
        }
        gold.push(gold_line);
        own.push(own_line);
    }
    let pooled = |lines: &[Vec<ChrfCounts>], draw: &[usize], switches: std::ops::Range<usize>| {
        let mut sum = ChrfCounts::default();
        draw.iter().for_each(|&i| lines[i][switches.clone()].iter().for_each(|&counts| sum += counts));
        sum.score()
    };
    let all = 0..SWITCHES.len();
    let ratio = d.probes.estimate(|draw| pooled(&gold, draw, all.clone()) / pooled(&own, draw, all.clone()));
    d.figure(
        "prefix switch",
        "prefix-switch ratio",
        ratio,
        "chrF2 of what follows gold prefixes over that of own ones",
    );
    let mut series = Vec::new();
    for (name, lines) in [("gold prefix", &gold), ("own prefix", &own)] {
        let point = |(at, x): (usize, &f64)| super::estimate::Point {
            x: *x,
            estimate: d.probes.estimate(|draw| pooled(lines, draw, at..at + 1)),
            count: lines.len() as f64,
        };
        series.push(CurveSeries { name, points: SWITCHES.iter().enumerate().map(point).collect() });
    }
    let (x, y) = ("share of the reference that is given", "chrF2 of the rest");
    d.curves.push(Curve { name: "prefix switch", x, y, series });
    Ok(())
}

/// What scores of some translations are made of.
pub(super) struct Scored {
    pub bleu: Vec<BleuCounts>,
    pub chrf: Vec<ChrfCounts>,
}

impl Scored {
    pub fn new<'a>(hypotheses: &[&str], references: impl Iterator<Item = &'a str>) -> Result<Self> {
        let references: Vec<&str> = references.collect();
        let references = one_each(&references);
        Ok(Scored { bleu: bleu_counts(hypotheses, &references)?, chrf: chrf_counts(hypotheses, &references)? })
    }

    pub fn bleu_of(&self, draw: &[usize]) -> f64 {
        score_of(&self.bleu, draw)
    }

    pub fn bleu(&self, lines: &Resampler) -> Estimate {
        lines.estimate(|draw| self.bleu_of(draw))
    }

    pub fn chrf(&self, lines: &Resampler) -> Estimate {
        lines.estimate(|draw| score_of(&self.chrf, draw))
    }

    pub fn length_ratio(&self, lines: &Resampler) -> Estimate {
        let share = |counts: &BleuCounts| (counts.hypothesis_tokens as f64, counts.reference_tokens as f64);
        lines.ratio(&self.bleu.iter().map(share).collect::<Vec<Share>>())
    }
}

fn score_of<C: Counts>(counts: &[C], draw: &[usize]) -> f64 {
    let mut sum = C::default();
    draw.iter().for_each(|&i| sum += counts[i]);
    sum.score()
}

/// Scores by the reference's length; returns how far BLEU falls below that of [`COMPARED`] in the worst shown bucket.
pub(super) fn buckets(d: &mut Diagnosis<'_>, scored: &Scored) -> f64 {
    let within = |(low, high): (usize, usize)| -> Vec<usize> {
        let length = |i: usize| scored.bleu[i].reference_tokens as usize;
        (0..scored.bleu.len()).filter(|&i| (low..=high).contains(&length(i))).collect()
    };
    let compared = within(COMPARED);
    let standard = score_of(&scored.bleu, &compared);
    let mut drop = f64::NAN;
    for bounds in BUCKETS {
        let members = within(bounds);
        if members.len() < BUCKET_LINES {
            continue;
        }
        let part = Scored {
            bleu: members.iter().map(|&i| scored.bleu[i]).collect(),
            chrf: members.iter().map(|&i| scored.chrf[i]).collect(),
        };
        let Ok(lines) = d.resampler(members.len()) else { continue };
        let bleu = part.bleu(&lines);
        if compared.len() >= BUCKET_LINES {
            drop = drop.max(standard - bleu.value);
        }
        let lengths =
            if bounds.1 == usize::MAX { format!("{}+", bounds.0) } else { format!("{}-{}", bounds.0, bounds.1) };
        let (chrf, length_ratio) = (part.chrf(&lines), part.length_ratio(&lines));
        d.buckets.push(Bucket { lengths, lines: members.len(), bleu, chrf, length_ratio });
    }
    drop
}

/// Beam sizes by length penalties, on a part of the lines.
pub(super) fn sweep(d: &mut Diagnosis<'_>, forced: &[Vec<TokenStats>], options: &DecodeOptions) -> Result<()> {
    let lines = d.resampler(d.swept.len())?;
    let end = d.translator.config().ids;
    let job = |&line: &usize| Job {
        source: &d.pairs[line].source_ids,
        target: vec![end.eos_id],
        inputs: vec![end.decoder_start_id],
    };
    let at_once: Vec<f64> = look(d.translator, &d.swept.iter().map(job).collect::<Vec<_>>())?
        .iter()
        .map(|line| line.iter().map(|s| f64::from(s.log_prob)).sum())
        .collect();
    let shares: Vec<Share> = at_once.iter().map(|l| (*l, 1.0)).collect();
    d.figure("search", "log P(empty)", lines.ratio(&shares), "log-probability of ending at once");
    for (name, length_penalty, alpha) in [
        ("none", LengthPenalty::None, 0.0),
        ("gnmt 0.7", LengthPenalty::Gnmt, 0.7),
        ("power 1", LengthPenalty::Power, 1.0),
    ] {
        for beam_size in BEAM_SIZES {
            d.stage(&format!("beam sweep: {beam_size} beams, length penalty {name}"));
            let options = DecodeOptions { beam_size, n_best: 1, length_penalty, alpha, ..options.clone() };
            let found = translate(d.translator, d.pairs, &d.swept, &options)?;
            let texts: Vec<&str> = found.iter().map(Translation::text).collect();
            let scored = Scored::new(&texts, d.swept.iter().map(|&i| d.pairs[i].reference.as_str()))?;
            let log_probs: Vec<f64> = found.iter().map(|t| f64::from(t.hypotheses[0].log_prob)).collect();
            let reference = |line: usize| forced[line].iter().map(|s| f64::from(s.log_prob)).sum::<f64>();
            let error = |(line, own): (&usize, &f64)| (f64::from(u8::from(reference(*line) > *own)), 1.0);
            let errors: Vec<Share> = d.swept.iter().zip(&log_probs).map(error).collect();
            let count = found.len() as f64;
            let empty = texts.iter().filter(|text| text.trim().is_empty()).count() as f64 / count;
            let wins = at_once.iter().zip(&log_probs).filter(|(end, own)| end > own).count() as f64 / count;
            d.sweep.push(Sweep {
                beam_size,
                penalty: name.to_owned(),
                bleu: scored.bleu(&lines),
                length_ratio: scored.length_ratio(&lines),
                empty,
                search_errors: lines.ratio(&errors),
                empty_wins: wins,
            });
        }
    }
    Ok(())
}

/// Repetition of translations and references.
pub(super) fn repetition(d: &mut Diagnosis<'_>, texts: &[&str]) {
    let hypotheses: Vec<Vec<String>> = texts.iter().map(|text| tokenize_13a(text)).collect();
    let references: Vec<Vec<String>> = d.pairs.iter().map(|pair| tokenize_13a(&pair.reference)).collect();
    let rate = |lines: &[Vec<String>], order: usize| -> Vec<Share> {
        lines.iter().map(|line| (repetition_rate(line, order), 1.0)).collect()
    };
    for order in 1..=4 {
        let (own, theirs) = (d.lines.ratio(&rate(&hypotheses, order)), d.lines.ratio(&rate(&references, order)));
        d.figure("repetition", &format!("rep-{order}"), own, "share of n-grams that stand earlier in their line");
        d.figure("repetition", &format!("rep-{order}, references"), theirs, "the same in the references");
    }
    let difference = |(h, r): (&Vec<String>, &Vec<String>)| (top_ngram(h, 4) as f64 - top_ngram(r, 4) as f64, 1.0);
    let differences: Vec<Share> = hypotheses.iter().zip(&references).map(difference).collect();
    let estimate = d.lines.ratio(&differences);
    d.figure(
        "repetition",
        "top 4-gram difference",
        estimate,
        "occurrences of the commonest 4-gram beyond the reference's",
    );
    let loops: Vec<Share> = hypotheses.iter().map(|h| (f64::from(u8::from(has_loop(h))), 1.0)).collect();
    let estimate = d.lines.ratio(&loops);
    d.figure("repetition", "loops", estimate, "share of lines with a stretch three times in a row");
}

/// A hypothesis as the flags see it.
pub(super) struct Candidate<'a> {
    pub source: &'a str,
    pub hypothesis: &'a str,
    pub reference: &'a str,
    /// Per token.
    pub log_prob: f64,
}

/// For each line the reasons to take its translation for a hallucination.
pub(super) fn reasons(candidates: &[Candidate<'_>]) -> Vec<Vec<String>> {
    let (center, spread) = median_and_spread(candidates.iter().map(|c| c.log_prob).collect());
    let mut sources: HashMap<&str, Vec<&str>> = HashMap::new();
    for candidate in candidates {
        let known = sources.entry(candidate.hypothesis).or_default();
        if !known.contains(&candidate.source) {
            known.push(candidate.source);
        }
    }
    candidates.iter().map(|candidate| reasons_of(candidate, center, spread, &sources)).collect()
}

fn reasons_of(c: &Candidate<'_>, center: f64, spread: f64, sources: &HashMap<&str, Vec<&str>>) -> Vec<String> {
    let mut found = Vec::new();
    // Five times the median distance, as for outliers, and half a nat at least.
    let least = center - (5.0 * spread).max(0.5);
    if c.log_prob < least {
        found.push(format!("low log-probability: {:.2} per token, below {least:.2}", c.log_prob));
    }
    let (source, hypothesis) = (tokenize_13a(c.source), tokenize_13a(c.hypothesis));
    let difference = top_ngram(&hypothesis, 4) as i64 - top_ngram(&source, 4) as i64;
    if difference >= 2 {
        found.push(format!("repetition: its commonest 4-gram stands {difference} times more than in the source"));
    }
    let ratio = hypothesis.len() as f64 / source.len().max(1) as f64;
    if !(0.5..=2.0).contains(&ratio) {
        found.push(format!("length: {ratio:.2} tokens per source token"));
    }
    let shared = sources.get(c.hypothesis).map_or(0, Vec::len);
    if shared >= 2 {
        found.push(format!("same output: for {shared} different sources"));
    }
    let chrf = sentence_chrf(c.hypothesis, &[c.reference]);
    if chrf < 15.0 {
        found.push(format!("low chrF2: {chrf:.1}"));
    }
    found
}

/// The median, and the median distance from it; zeros for no values.
fn median_and_spread(mut values: Vec<f64>) -> (f64, f64) {
    let median = |values: &mut Vec<f64>| {
        values.sort_unstable_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(0.0)
    };
    let center = median(&mut values);
    let mut distances: Vec<f64> = values.iter().map(|v| (v - center).abs()).collect();
    (center, median(&mut distances))
}

/// Flags the lines of some translations.
pub(super) fn flags(d: &mut Diagnosis<'_>, texts: &[&str], log_probs: &[f64]) {
    let candidates: Vec<Candidate<'_>> = d
        .pairs
        .iter()
        .zip(texts)
        .zip(log_probs)
        .map(|((pair, &hypothesis), &log_prob)| Candidate {
            source: &pair.source,
            hypothesis,
            reference: &pair.reference,
            log_prob,
        })
        .collect();
    let reasons = reasons(&candidates);
    let flagged: Vec<Share> = reasons.iter().map(|r| (f64::from(u8::from(!r.is_empty())), 1.0)).collect();
    let estimate = d.lines.ratio(&flagged);
    d.figure("hallucination", "flagged lines", estimate, "share of lines with at least one reason");
    for ((pair, text), reasons) in d.pairs.iter().zip(texts).zip(reasons).filter(|(_, r)| !r.is_empty()) {
        let (source, hypothesis, reference) = (pair.source.clone(), (*text).to_owned(), pair.reference.clone());
        d.flags.push(Flag { line: pair.number, reasons, source, hypothesis, reference });
    }
}

/// BLEU of one system above another's, on the same lines.
pub(super) fn gain(d: &Diagnosis<'_>, better: &Scored, than: &Scored) -> Estimate {
    d.lines.estimate(|draw| better.bleu_of(draw) - than.bleu_of(draw))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate<'a>(source: &'a str, hypothesis: &'a str, log_prob: f64) -> Candidate<'a> {
        Candidate { source, hypothesis, reference: "ein Hund läuft im Schnee", log_prob }
    }

    #[test]
    fn each_reason_is_found_alone() {
        let good = candidate("a dog runs in snow", "ein Hund läuft im Schnee", -0.3);
        let looping = "ein Hund läuft im ein Hund läuft im ein Hund läuft im";
        let lines = [
            candidate("a dog runs in snow", "ein Hund läuft im Schnee", -0.3),
            candidate("one dog is running here", "ein Hund läuft im Wald", -4.0),
            candidate("a b c d e f g h i j", looping, -0.3),
            candidate("a dog runs in the deep white snow today ok", "ein Hund im", -0.2),
            candidate("first other source here", "ein Hund im Schnee.", -0.25),
            candidate("second other source here", "ein Hund im Schnee.", -0.35),
            candidate("what is that there", "zzz qqq www xxx", -0.3),
        ];
        let found = reasons(&lines);
        let kinds: Vec<Vec<&str>> =
            found.iter().map(|r| r.iter().map(|r| r.split(':').next().unwrap_or("")).collect()).collect();
        let expected: [&[&str]; 7] = [
            &[],
            &["low log-probability"],
            &["repetition"],
            &["length"],
            &["same output"],
            &["same output"],
            &["low chrF2"],
        ];
        assert_eq!(kinds, expected);
        assert!(reasons(&[good]).concat().is_empty());
    }

    /// What greedy search is by definition: all of the prefix read anew for each token, the most probable one appended.
    fn token_by_token(translator: &Translator, source: &[u32], prefix: &[u32], most: usize) -> Vec<u32> {
        let ids = translator.config().ids;
        let mut whole = prefix.to_vec();
        while whole.len() < most && whole.last() != Some(&ids.eos_id) {
            let (inputs, target) =
                ([&[ids.decoder_start_id], &whole[..]].concat(), [&whole[..], &[ids.eos_id]].concat());
            let stats = look(translator, &[Job { source, target, inputs }]).expect("statistics");
            whole.push(stats[0].last().expect("a row").argmax);
        }
        whole
    }

    #[test]
    fn prefixes_are_continued_as_token_by_token() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let translator = Translator::open(root.join("models/m30k-en-de")).expect("the demo model");
        let tokenizer = translator.tokenizer();
        let (mut prefixes, mut most) = (Vec::new(), Vec::new());
        for (source, other) in [
            ("A dog runs in the snow.", "Ein Hund rennt durch den Schnee."),
            ("Two men are sitting on a bench.", "Zwei Katzen schlafen unter einem alten Tisch."),
            ("A girl in a red dress.", "Haus Haus Haus Haus"),
        ] {
            let (source, mut other) = (tokenizer.encode_source(source), tokenizer.encode_target(other));
            other.pop();
            for (given, limit) in [(0, 40), (1, 40), (other.len() / 2, 40), (other.len(), 40), (2, 5), (3, 4)] {
                prefixes.push((source.clone(), other[..given.min(other.len())].to_vec()));
                most.push(limit);
            }
        }
        let found = continue_greedily(&translator, &prefixes, &most, &DecodeOptions::default()).expect("continuations");
        for (((source, prefix), most), found) in prefixes.iter().zip(&most).zip(&found) {
            assert!(found.starts_with(prefix) && found.len() > prefix.len());
            assert_eq!(*found, token_by_token(&translator, source, prefix, *most), "{prefix:?}");
        }
        assert!(found.iter().any(|ids| ids.len() == 4) && found.iter().any(|ids| ids.last() == Some(&0)));
    }

    #[test]
    fn equal_sources_may_have_equal_outputs() {
        let line = || candidate("a dog runs in snow", "ein Hund läuft im Schnee", -0.3);
        assert!(reasons(&[line(), line(), line()]).concat().is_empty());
    }

    #[test]
    fn scores_are_those_of_the_drawn_lines() {
        let references = ["a b c d e", "v w x y z"];
        let scored = Scored::new(&["a b c d e", "v w x y"], references.into_iter()).expect("lines");
        assert_eq!(scored.bleu_of(&[0]), 100.0);
        assert!(scored.bleu_of(&[1]) < 80.0 && scored.bleu_of(&[0, 1]) > scored.bleu_of(&[1]));
    }
}
