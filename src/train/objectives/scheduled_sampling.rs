//! Scheduled sampling for transformers (Bengio et al. 2015; Mihaylova & Martins 2019; Duckworth et al. 2019): the decoder reads
//! gold tokens or its own picks, and learns to say gold after either.

use super::mle::likelihood;
use super::{Example, Objective, Sum, Update};
use crate::backend::{Pick, Schedule, ScheduledSampling};
use crate::cpu::scheduled_sampling::scheduled_sampling;
use crate::train::autograd::{AutogradModel, Batch, Rows};
use crate::train::schedule::GoldSchedule;
use crate::{Error, Result};

/// How inputs are chosen.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Options {
    /// The probability of feeding gold.
    pub schedule: GoldSchedule,
    /// How much of the way to 1 that probability is raised along a sentence, 0 to 1: at its end by this share.
    pub raise: f64,
    /// How a token is picked from the model's distribution.
    pub pick: Pick,
    /// Passes without a gradient that choose the inputs: the first reads gold, each further one the choices of the one before it,
    /// and redraws the positions that depend on them. As many passes as tokens are what choosing token after token gives.
    pub passes: usize,
}

/// Likelihood after inputs of which some are the model's own.
#[derive(Clone, Copy, Debug)]
pub struct OwnInputs(pub Options);

impl Objective for OwnInputs {
    fn gradients(&mut self, update: &Update<'_>, examples: &[Example<'_>], sum: &mut Sum) -> Result<()> {
        let mut batch = update.batch(examples);
        let gold_probability = self.0.schedule.at(update.number) as f32;
        let Chosen { inputs, replaced } = choose(&self.0, update, &batch, gold_probability)?;
        batch.inputs = inputs;
        let fed = batch.inputs.len() - batch.inputs.sentences().count();
        sum.figure("gold_probability", f64::from(gold_probability), 1.0);
        sum.figure("own_rate", replaced as f64, fed as f64);
        likelihood(update, &batch, 1.0, sum)
    }
}

/// A batch's inputs, and how many of them are picks of the model, be they gold or not.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// The start token and what follows it.
    pub inputs: Rows,
    /// Picks among the inputs.
    pub replaced: u32,
}

/// Chooses the decoder's inputs; without a pick they are the gold ones, and the model is not asked.
///
/// # Errors
/// [`Error::Input`] for logits that are not finite; a batch that does not fit the model.
pub fn choose(options: &Options, update: &Update<'_>, batch: &Batch, gold_probability: f32) -> Result<Chosen> {
    let mut chosen = Chosen { inputs: batch.inputs.clone(), replaced: 0 };
    if gold_probability >= 1.0 {
        return Ok(chosen);
    }
    let ids = update.model.config().ids;
    let run = ScheduledSampling { pick: options.pick, seed: update.seed, ids };
    let probabilities = by_position(batch, gold_probability, options.raise);
    // The last token of a target is never fed: as padding it gets no coin.
    let mut gold = batch.targets.ids.to_vec();
    batch.targets.sentences().for_each(|rows| gold[rows.end - 1] = ids.pad_id);
    for pass in 0..options.passes {
        let picks = picks(update.model, batch, &chosen.inputs, |logits, picks, counts| {
            let (mut start, width) = (0, logits.len() / gold.len());
            // Rows of one probability together.
            for equal in probabilities.chunk_by(|a, b| a == b) {
                let rows = start..start + equal.len();
                let schedule = Schedule { gold_probability: equal[0], update: update.number };
                let logits = &logits[rows.start * width..rows.end * width];
                let (places, gold) = (&batch.targets.places[rows.clone()], &gold[rows.clone()]);
                scheduled_sampling(&run, schedule, places, gold, logits, &mut picks[rows.clone()], counts);
                start = rows.end;
            }
        })?;
        let mut inputs = chosen.inputs.ids.to_vec();
        for rows in batch.targets.sentences() {
            // Row t chooses input t + 1; the inputs up to `pass` have been chosen after the very tokens that stand before them.
            let (last, first) = (rows.end - 1, (rows.start + pass).min(rows.end - 1));
            inputs[first + 1..rows.end].copy_from_slice(&picks.tokens[first..last]);
        }
        let settled = inputs[..] == chosen.inputs.ids[..];
        chosen = Chosen { inputs: batch.inputs.with_ids(inputs), replaced: picks.count };
        if settled {
            break;
        }
    }
    Ok(chosen)
}

/// For each row the probability that what follows it is gold.
fn by_position(batch: &Batch, gold_probability: f32, raise: f64) -> Vec<f32> {
    let raised = |at: usize, of: usize| {
        let (least, share) = (f64::from(gold_probability), at as f64 / of.max(1) as f64);
        (least + (1.0 - least) * raise * share) as f32
    };
    let sentence = |rows: std::ops::Range<usize>| {
        // The last row chooses nothing.
        let last = rows.len().saturating_sub(2);
        (0..rows.len()).map(move |at| raised(at.min(last), last))
    };
    batch.targets.sentences().flat_map(sentence).collect()
}

struct Picks {
    tokens: Vec<u32>,
    count: u32,
}

/// Runs the model over inputs and lets `choose` pick from its logits.
fn picks(
    model: &AutogradModel,
    batch: &Batch,
    inputs: &Rows,
    choose: impl FnOnce(&[f32], &mut [u32], &mut [u32]),
) -> Result<Picks> {
    let logits = model.logits_only(&Batch { inputs: inputs.clone(), ..batch.clone() })?;
    let logits: Vec<f32> = logits.flatten_all().and_then(|l| l.to_vec1()).map_err(Error::autograd)?;
    let (mut tokens, mut counts) = (vec![0; inputs.len()], [0; 2]);
    choose(&logits, &mut tokens, &mut counts);
    match counts {
        [count, 0] => Ok(Picks { tokens, count }),
        [_, broken] => {
            let (expected, got) = ("finite logits".to_owned(), format!("{broken} rows with NaN or +infinity"));
            Err(Error::Input { operation: "choose inputs", expected, got })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::train::data::Pair;
    use crate::train::objectives::mle::Mle;
    use crate::train::schedule::Shape;

    fn model() -> AutogradModel {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/variants/swish-scaled");
        AutogradModel::open(&dir).expect("a model")
    }

    fn pairs() -> Vec<Pair> {
        let pair = |source: &[u32], target: &[u32]| Pair {
            source: source.to_vec(),
            target: target.to_vec(),
            text: String::new(),
            source_text: String::new(),
            line: 1,
        };
        vec![
            pair(&[5, 9, 3, 0], &[7, 4, 11, 13, 20, 21, 8, 0]),
            pair(&[8, 1, 0], &[3, 10, 9, 5, 0]),
            pair(&[30, 31, 32, 33, 34, 0], &[40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50, 0]),
            pair(&[6, 0], &[0]),
        ]
    }

    fn update(model: &AutogradModel) -> Update<'_> {
        let dropout = crate::train::autograd::Rates::of_sublayers(0.2);
        Update { model, number: 7, seed: 11, dropout, smoothing: 0.1, tokens: 26, sentences: 4 }
    }

    fn examples(pairs: &[Pair]) -> Vec<Example<'_>> {
        pairs.iter().zip(100..).map(|(pair, number)| Example { number, pair }).collect()
    }

    fn options(pick: Pick, passes: usize) -> Options {
        let schedule = GoldSchedule::new(Shape::Linear, 0, 10, 0.5).expect("a schedule");
        Options { schedule, raise: 0.0, pick, passes }
    }

    /// Scheduled sampling as it is defined: token after token, each chosen after the tokens chosen before it.
    fn token_by_token(options: &Options, update: &Update<'_>, example: Example<'_>, gold_probability: f32) -> Vec<u32> {
        let ids = update.model.config().ids;
        let run = ScheduledSampling { pick: options.pick, seed: update.seed, ids };
        let target = &example.pair.target;
        let (least, last) = (f64::from(gold_probability), target.len().saturating_sub(2).max(1) as f64);
        let mut inputs = vec![ids.decoder_start_id];
        for t in 0..target.len() - 1 {
            let groups = [(example.number, example.pair.source.as_slice(), std::slice::from_ref(&inputs))];
            let mut batch = Batch::new(groups, 0);
            batch.inputs = batch.targets.clone();
            let logits = update.model.logits_only(&batch).expect("logits");
            let logits: Vec<f32> = logits.get(t).and_then(|row| row.to_vec1()).expect("a row");
            let mut next = [0];
            scheduled_sampling(
                &run,
                Schedule {
                    gold_probability: (least + (1.0 - least) * options.raise * (t as f64 / last)) as f32,
                    update: update.number,
                },
                &batch.inputs.places[t..=t],
                &target[t..=t],
                &logits,
                &mut next,
                &mut [0; 2],
            );
            inputs.push(next[0]);
        }
        inputs
    }

    #[test]
    fn as_many_passes_as_tokens_equal_choosing_token_by_token() {
        let (model, pairs) = (model(), pairs());
        let (update, examples) = (update(&model), examples(&pairs));
        let batch = update.batch(&examples);
        let options = |pick, raise, passes| Options { raise, ..options(pick, passes) };
        for (pick, raise) in
            [(Pick::Argmax, 0.0), (Pick::Sample { temperature: 1.0 }, 0.0), (Pick::Sample { temperature: 1.0 }, 0.6)]
        {
            for gold_probability in [0.0, 0.3, 0.7] {
                let choose =
                    |passes| choose(&options(pick, raise, passes), &update, &batch, gold_probability).expect("inputs");
                let sequential =
                    |e: &Example<'_>| token_by_token(&options(pick, raise, 1), &update, *e, gold_probability);
                let expected: Vec<u32> = examples.iter().flat_map(sequential).collect();
                assert_eq!(choose(12).inputs.ids[..], expected, "{pick:?} {gold_probability}");
                // Fewer passes are an approximation: the test would not see the difference if one pass were enough.
                if gold_probability == 0.0 && raise == 0.0 {
                    assert_ne!(choose(1).inputs.ids[..], expected, "{pick:?}");
                }
                // After n passes the first n choices of each sentence are final.
                for (n, rows) in [1, 2, 3].into_iter().flat_map(|n| batch.inputs.sentences().map(move |r| (n, r))) {
                    let end = rows.end.min(rows.start + n + 1);
                    assert_eq!(choose(n).inputs.ids[rows.start..end], expected[rows.start..end], "{n} passes");
                }
            }
        }
    }

    #[test]
    fn gold_becomes_more_probable_along_a_sentence() {
        let (model, pairs) = (model(), pairs());
        let batch = update(&model).batch(&examples(&pairs)[..2]);
        let of = |raise| by_position(&batch, 0.5, raise);
        assert_eq!(of(0.0), [0.5; 13]);
        assert_eq!(of(1.0)[8..], [0.5, 2.0 / 3.0, 5.0 / 6.0, 1.0, 1.0].map(|p: f64| p as f32));
        assert_eq!((of(0.5)[0], of(0.5)[6], of(0.5)[8]), (0.5, 0.75, 0.5));
        // At its end everything is gold.
        let own = Options { raise: 1.0, ..options(Pick::Argmax, 1) };
        for number in 1..9 {
            let update = Update { number, ..update(&model) };
            let chosen = choose(&own, &update, &batch, 0.0).expect("inputs");
            assert_eq!([chosen.inputs.ids[7], chosen.inputs.ids[12]], [pairs[0].target[6], pairs[1].target[3]]);
        }
    }

    #[test]
    fn gold_with_probability_one_is_maximum_likelihood_bit_for_bit() {
        let (model, pairs) = (model(), pairs());
        let (update, examples) = (update(&model), examples(&pairs));
        let gold = GoldSchedule::new(Shape::InverseSigmoid, 0, 10, 1.0).expect("a schedule");
        let mut own = OwnInputs(Options { schedule: gold, ..options(Pick::Argmax, 2) });
        let (mut expected, mut actual) = (Sum::default(), Sum::default());
        Mle.gradients(&update, &examples, &mut expected).expect("gradients");
        own.gradients(&update, &examples, &mut actual).expect("gradients");
        assert_eq!(actual.loss.to_bits(), expected.loss.to_bits());
        let values = |sum: &Sum| -> Vec<Vec<f32>> {
            let gradients = sum.gradients.as_ref().expect("gradients").iter();
            gradients.map(|g| g.flatten_all().and_then(|g| g.to_vec1()).expect("values")).collect()
        };
        for (actual, expected) in values(&actual).iter().zip(values(&expected)) {
            crate::check::assert_same_bits(actual, &expected);
        }
        let mut sampled = Sum::default();
        OwnInputs(options(Pick::Argmax, 1)).gradients(&update, &examples, &mut sampled).expect("gradients");
        assert_ne!(sampled.loss.to_bits(), expected.loss.to_bits());
    }

    #[test]
    fn the_start_token_stays_and_only_inputs_count() {
        let (model, pairs) = (model(), pairs());
        let update = update(&model);
        let batch = update.batch(&examples(&pairs));
        let chosen = choose(&options(Pick::Sample { temperature: 1.0 }, 3), &update, &batch, 0.0).expect("inputs");
        let ids = model.config().ids;
        for rows in batch.inputs.sentences() {
            assert_eq!(chosen.inputs.ids[rows.start], ids.decoder_start_id);
            let fed = &chosen.inputs.ids[rows.start + 1..rows.end];
            assert!(fed.iter().all(|id| ![ids.pad_id, ids.decoder_start_id, ids.eos_id].contains(id)));
        }
        // Every input but the start tokens is a pick, unless it was refused.
        let fed = batch.inputs.len() - pairs.len();
        assert!(chosen.replaced as usize <= fed && chosen.replaced as usize > fed / 2, "{}", chosen.replaced);
    }
}
