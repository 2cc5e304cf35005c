//! The null: references that the model under test has sampled itself. With them there is no gap by construction, and whatever an
//! estimator gives on them is not evidence of one.

use super::Pair;
use super::subject::{Draws, Job, Reference, Subject, shifted};
use super::sums::bucket_of;
use crate::{Result, counts};

/// Samples of each line that are drawn at once for each one wanted: those of other lengths are left out.
const OVERSAMPLED: usize = 3;

/// How often that many are drawn until a line has to make do with samples of other lengths.
const ROUNDS: u64 = 4;

/// Temperatures among which the fitted one is sought.
const TEMPERATURES: (f64, f64) = (0.1, 3.0);

/// Halvings of that range, on a logarithmic scale.
const HALVINGS: usize = 8;

/// Lines that the temperature is fitted on, at most.
const FITTED_LINES: usize = 100;

/// Samples of each of them.
const FITTED_DRAWS: usize = 2;

/// Sets of sampled references, one reference per line each.
#[derive(Clone, Debug)]
pub struct Drawn {
    /// `sets[set][line]`.
    pub sets: Vec<Vec<Reference>>,
    /// References whose length lies in another bin than the gold one's, since too few samples of that length were found.
    pub of_other_lengths: usize,
}

/// Samples `count` sets of references for some lines; each has its tokens in the bin (`BUCKETS`) of the pair's own reference.
///
/// Samples are tokenized anew, as the test set's references are: a sampled sentence may be spelled in pieces that no text is.
///
/// # Errors
/// What searching gives.
pub fn draw(
    subject: &dyn Subject,
    pairs: &[Pair],
    lines: &[usize],
    (count, temperature): (usize, f32),
    seed: u64,
) -> Result<Drawn> {
    let mut kept: Vec<Vec<Reference>> = vec![Vec::new(); lines.len()];
    let mut spare: Vec<Vec<Reference>> = vec![Vec::new(); lines.len()];
    let at_once = (count * OVERSAMPLED).min(*counts::HYPOTHESES.end());
    let rounds = ROUNDS * (count * OVERSAMPLED).div_ceil(at_once) as u64;
    for round in 0..rounds {
        let short: Vec<usize> = (0..lines.len()).filter(|&at| kept[at].len() < count).collect();
        if short.is_empty() {
            break;
        }
        let draws = Draws { count: at_once, temperature, seed: seed.wrapping_add(round << 16) };
        let wanted: Vec<usize> = short.iter().map(|&at| lines[at]).collect();
        for (&at, samples) in short.iter().zip(subject.sample(pairs, &wanted, draws)?) {
            let bin = bucket_of(pairs[lines[at]].reference_ids.len());
            for ids in samples.into_iter().filter(|ids| ids.last() == Some(&subject.ids().eos_id)) {
                let reference = subject.reference(subject.text(&ids));
                match reference.ids.len() {
                    // As in a test set: an empty reference is none.
                    0 | 1 => {}
                    len if len > subject.longest() => {}
                    len if bucket_of(len) == bin && kept[at].len() < count => kept[at].push(reference),
                    len if bucket_of(len) != bin => spare[at].push(reference),
                    _ => {}
                }
            }
        }
    }
    let mut of_other_lengths = 0;
    for (at, (kept, spare)) in kept.iter_mut().zip(&mut spare).enumerate() {
        let pair = &pairs[lines[at]];
        let wanted = pair.reference_ids.len();
        // The sort is stable: equally far ones stay in the order in which they were drawn.
        spare.sort_by_key(|reference| reference.ids.len().abs_diff(wanted));
        let missing = count - kept.len();
        of_other_lengths += missing;
        // A line whose samples are all empty keeps its own reference, which tells nothing for or against a gap.
        let own = || Reference { text: pair.reference.clone(), ids: pair.reference_ids.clone() };
        let fill: Vec<Reference> = spare.drain(..).chain(std::iter::repeat_with(own)).take(missing).collect();
        kept.extend(fill);
    }
    let sets = (0..count).map(|set| kept.iter().map(|line| line[set].clone()).collect()).collect();
    Ok(Drawn { sets, of_other_lengths })
}

/// Nats per token that references cost when the model is forced to them.
///
/// # Errors
/// What scoring gives.
pub fn nll(subject: &dyn Subject, pairs: &[Pair], lines: &[usize], sets: &[Vec<Reference>]) -> Result<f64> {
    let start = subject.ids().decoder_start_id;
    let job = |(&line, reference): (&usize, &Reference)| {
        let target = reference.ids.clone();
        Job { line, source: line, inputs: shifted(start, &target), target }
    };
    let jobs: Vec<Job> = sets.iter().flat_map(|set| lines.iter().zip(set).map(job)).collect();
    let stats = subject.look(pairs, &jobs)?;
    let tokens = stats.iter().map(Vec::len).sum::<usize>();
    Ok(stats.iter().flatten().map(|s| -f64::from(s.log_prob)).sum::<f64>() / tokens as f64)
}

/// The temperature at which sampled references cost as much as `gold` ones, which stand for some lines each, by halving.
///
/// A model that is sharper or flatter than its data makes every comparison with its plain samples one of temperatures.
///
/// # Errors
/// What searching and scoring give.
pub fn fit(subject: &dyn Subject, pairs: &[Pair], gold: &[Reference], seed: u64) -> Result<f32> {
    let lines = super::spread(pairs.len(), FITTED_LINES);
    let gold: Vec<Reference> = lines.iter().map(|&line| gold[line].clone()).collect();
    let wanted = nll(subject, pairs, &lines, &[gold])?;
    let (mut low, mut high) = TEMPERATURES;
    for _ in 0..HALVINGS {
        let middle = (low * high).sqrt();
        let drawn = draw(subject, pairs, &lines, (FITTED_DRAWS, middle as f32), seed)?;
        match nll(subject, pairs, &lines, &drawn.sets)? < wanted {
            true => low = middle,
            false => high = middle,
        }
    }
    Ok((low * high).sqrt() as f32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Translator;
    use crate::diagnose::TestSet;

    fn demo() -> (Translator, TestSet) {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let translator = Translator::open(root.join("models/m30k-en-de-amateur")).expect("the amateur");
        let read = |name: &str| -> Vec<String> {
            let text = std::fs::read_to_string(root.join("tests/data").join(name)).expect("test data");
            text.lines().take(30).map(str::to_owned).collect()
        };
        let set = TestSet::new(&translator, &read("own/own.en"), &read("metrics/own.reference.de"));
        (translator, set)
    }

    #[test]
    fn sampled_references_have_lengths_of_the_same_bins_and_are_spelled_like_text() {
        let (translator, set) = demo();
        let lines: Vec<usize> = (0..set.pairs.len()).collect();
        let drawn = draw(&translator, &set.pairs, &lines, (3, 1.0), 5).expect("samples");
        assert_eq!(drawn.sets.len(), 3);
        let mut outside = 0;
        for set_of in &drawn.sets {
            assert_eq!(set_of.len(), lines.len());
            for (pair, reference) in set.pairs.iter().zip(set_of) {
                outside += usize::from(bucket_of(reference.ids.len()) != bucket_of(pair.reference_ids.len()));
                assert_eq!(translator.tokenizer().encode_target(&reference.text), reference.ids);
            }
        }
        assert!(outside <= drawn.of_other_lengths && drawn.of_other_lengths < 15, "{outside} {drawn:?}");
        assert_ne!(drawn.sets[0], drawn.sets[1]);
        let again = draw(&translator, &set.pairs, &lines, (3, 1.0), 5).expect("samples");
        assert_eq!(again.sets, drawn.sets);
        assert_ne!(draw(&translator, &set.pairs, &lines, (3, 1.0), 6).expect("samples").sets, drawn.sets);
    }

    #[test]
    fn fitted_samples_cost_what_the_references_do() {
        let (translator, set) = demo();
        let lines: Vec<usize> = (0..set.pairs.len()).collect();
        let cost = |sets: &[Vec<Reference>]| nll(&translator, &set.pairs, &lines, sets).expect("a cost");
        let mut fitted = Vec::new();
        for temperature in [0.5, 1.2] {
            let gold = draw(&translator, &set.pairs, &lines, (1, temperature), 77).expect("samples").sets;
            let found = fit(&translator, &set.pairs, &gold[0], 5).expect("a temperature");
            let sampled = draw(&translator, &set.pairs, &lines, (4, found), 8).expect("samples").sets;
            // 30 lines of ten tokens: the standard error of the difference is about 0.1 nats.
            assert!((cost(&gold) - cost(&sampled)).abs() < 0.35, "{temperature}: {} {}", cost(&gold), cost(&sampled));
            fitted.push(found);
        }
        assert!(fitted[0] < 0.85 && fitted[1] > 0.85, "{fitted:?}");
    }
}
