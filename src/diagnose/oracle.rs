//! Excess accumulated error (Arora et al. 2022, "Why Exposure Bias Matters"): how much further a model is from a better one, the oracle,
//! on prefixes of its own than on the oracle's.

use super::estimate::{Estimate, Point, quotient};
use super::inference::Test;
use super::report::{Curve, CurveSeries};
use super::subject::{Draws, Subject, shifted};
use super::sums::Rule;
use super::verdict::{Outcome, Seen};
use super::{Diagnosis, Pair};
use crate::backend::{Device, NetworkOps, Row, Rows, SessionShape, SlotOptions, words};
use crate::cpu::Cpu;
use crate::cpu::philox::philox;
use crate::model::{Seq2Seq, Transformer};
use crate::translator::Translator;
use crate::{Dtype, Result};

/// A model whose whole distributions can be read.
#[derive(Debug)]
pub struct Network {
    backend: Cpu,
    model: Transformer<Cpu>,
}

impl Network {
    /// Opens a model directory, on the CPU and in f32.
    ///
    /// # Errors
    /// Whatever is wrong with the directory's files.
    pub fn open(dir: &std::path::Path, threads: usize) -> Result<Self> {
        let backend = Cpu::new(threads, Dtype::F32)?;
        let model = Transformer::open(&backend, dir)?;
        Ok(Network { backend, model })
    }

    /// The log-probability of every token after each of the inputs, `[inputs][vocab_size]`.
    fn log_probs(&self, source: &[u32], inputs: &[u32]) -> Result<Vec<Vec<f64>>> {
        let (backend, model) = (&self.backend, &self.model);
        let rows = inputs.len();
        let shape = SessionShape {
            slots: 1,
            beam_size: 1,
            max_len: rows,
            max_src_len: source.len(),
            rows,
            keep_attention: false,
        };
        let mut state = model.open(backend, shape)?;
        model.encode(backend, &mut state, &[(0, source)])?;
        let slot = SlotOptions { src_len: source.len() as u32, ..SlotOptions::default() };
        let mut options = backend.zeros::<u32>(words::<SlotOptions>())?;
        backend.write(&mut options, 0, bytemuck::cast_slice(&[slot]))?;
        let ancestry = backend.zeros::<u32>(rows)?;
        let row = |(position, &token): (usize, &u32)| Row { slot: 0, beam: 0, position: position as u32, token };
        let list: Vec<Row> = inputs.iter().enumerate().map(row).collect();
        let mut device_rows = Rows::with_capacity(backend, rows)?;
        device_rows.set(backend, &list)?;
        model.step(backend, &mut state, &device_rows, &ancestry, &options)?;
        let (vocab_size, stride) = (model.vocab_size(), backend.logits_stride(model.vocab_size()));
        let mut logits = vec![0f32; rows * stride];
        backend.read(model.logits(&state), 0, &mut logits)?;
        Ok(logits.chunks(stride).map(|row| log_softmax(&row[..vocab_size])).collect())
    }
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&z| f64::from(z - largest).exp()).sum();
    logits.iter().map(|&z| f64::from(z - largest) - sum.ln()).collect()
}

/// KL(p || q) of two rows of log-probabilities, in nats.
fn divergence(p: &[f64], q: &[f64]) -> f64 {
    p.iter().zip(q).filter(|(p, _)| p.is_finite()).map(|(p, q)| p.exp() * (p - q)).sum()
}

/// The oracle, as a translator that samples and as a network, and the model under test as a network.
#[derive(Debug)]
pub struct Oracle {
    /// For the report.
    pub name: String,
    /// Samples its own prefixes.
    pub translator: Translator,
    /// Its distributions.
    pub network: Network,
    /// Those of the model under test.
    pub own: Network,
}

impl Oracle {
    /// For each token behind a prefix of a target the divergence of the model from the oracle, KL(oracle || model).
    fn divergences(&self, d: &Diagnosis<'_>, targets: &[(usize, Vec<u32>)]) -> Result<Vec<Vec<f64>>> {
        let start = d.bench.subject.ids().decoder_start_id;
        let line = |(line, target): &(usize, Vec<u32>)| {
            let (Pair { source_ids, .. }, inputs) = (&d.pairs[*line], shifted(start, target));
            let (theirs, ours) =
                (self.network.log_probs(source_ids, &inputs)?, self.own.log_probs(source_ids, &inputs)?);
            Ok(theirs.iter().zip(&ours).map(|(p, q)| divergence(p, q)).collect())
        };
        targets.iter().map(line).collect()
    }
}

/// The figure's name.
pub(super) const FIGURE: &str = "excess accumulated error, %";

/// By how many percent more a model errs on its own prefixes, up to a length, over some lines; NaN where it is the oracle.
fn excess(own: &[&[f64]], theirs: &[&[f64]], length: usize) -> f64 {
    let mean = |lines: &[&[f64]]| {
        quotient(lines.iter().map(|line| {
            let line = &line[..line.len().min(length)];
            (line.iter().sum(), line.len() as f64)
        }))
    };
    let standard = mean(theirs);
    // Rounding alone parts a model from itself: 0 over 0.
    if standard > 1e-6 { 100.0 * (mean(own) / standard - 1.0) } else { f64::NAN }
}

/// The excess with prefixes sampled from both models, and its test: whose prefixes they are is exchanged within lines.
pub(super) fn excess_error(d: &mut Diagnosis<'_>, oracle: &Oracle, permutations: usize) -> Result<Option<Outcome>> {
    let probed = d.probed().to_vec();
    let draws = Draws { count: 1, temperature: 1.0, seed: d.seed };
    let sampled = |subject: &dyn Subject| -> Result<Vec<(usize, Vec<u32>)>> {
        let samples = subject.sample(d.pairs, &probed, draws)?;
        Ok(probed.iter().copied().zip(samples.into_iter().map(|mut line| line.swap_remove(0))).collect())
    };
    let (of_oracle, of_model) = (sampled(&oracle.translator)?, sampled(d.bench.subject)?);
    let (theirs, own) = (oracle.divergences(d, &of_oracle)?, oracle.divergences(d, &of_model)?);
    // Up to a length that half of the lines have.
    let mut lengths: Vec<usize> = theirs.iter().zip(&own).map(|(a, b)| a.len().min(b.len())).collect();
    lengths.sort_unstable();
    let longest = lengths.get(lengths.len() / 2).copied().unwrap_or(0).max(1);
    let drawn = |draw: &[usize], length: usize| {
        let (a, b): (Vec<&[f64]>, Vec<&[f64]>) = draw.iter().map(|&i| (&own[i][..], &theirs[i][..])).unzip();
        excess(&a, &b, length)
    };
    let count = probed.len() as f64;
    let point = |l: usize| Point { x: l as f64, estimate: d.probes.estimate(|draw| drawn(draw, l)), count };
    let points: Vec<Point> = (1..=longest).map(point).collect();
    let last = points.last().map_or(Estimate::NONE, |point| point.estimate);
    d.figure("oracle", FIGURE, last, "further from the oracle on own samples' prefixes than on the oracle's");
    let series = vec![CurveSeries { name: "excess", points }];
    d.curves.push(Curve { name: "excess error", x: "tokens", y: "%", series });
    if !last.value.is_finite() {
        return Ok(None);
    }
    let as_large = |number: &usize| {
        let exchanged = |line: usize| philox(d.seed, [*number as u32, line as u32, 0, 0x6f72_6163])[0] & 1 == 1;
        let (mut a, mut b): (Vec<&[f64]>, Vec<&[f64]>) = (Vec::new(), Vec::new());
        for (line, (own, theirs)) in own.iter().zip(&theirs).enumerate() {
            let (first, second) = if exchanged(line) { (theirs, own) } else { (own, theirs) };
            a.push(first);
            b.push(second);
        }
        excess(&a, &b, longest) >= last.value
    };
    let p = (1 + (0..permutations).filter(as_large).count()) as f64 / (permutations + 1) as f64;
    let test = Test { rule: Rule::Oracle, p, adjusted_p: p, largest: None, standardised: f64::NAN };
    let seen = Seen { name: FIGURE.to_owned(), value: last, null: None, difference: last };
    Ok(Some(Outcome { test, seen: Some(seen), clear: last.low > 0.0 }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::translator::Forced;

    #[test]
    fn divergences_by_hand() {
        let (p, q) = (log_softmax(&[0.0, 0.0]), log_softmax(&[0.0, 3f32.ln()]));
        assert!((p[0] - 0.5f64.ln()).abs() < 1e-7 && (q[0] - 0.25f64.ln()).abs() < 1e-7);
        // 0.5 ln(0.5 / 0.25) + 0.5 ln(0.5 / 0.75)
        assert!((divergence(&p, &q) - 0.143_841_036).abs() < 1e-6);
        assert!(divergence(&p, &p).abs() < 1e-12);
    }

    #[test]
    fn the_excess_is_that_of_the_means_up_to_a_length() {
        let (own, theirs): ([&[f64]; 2], [&[f64]; 2]) = ([&[1.0, 3.0], &[2.0]], [&[1.0, 1.0, 9.0], &[1.0]]);
        assert_eq!((excess(&own, &theirs, 1), excess(&own, &theirs, 2)), (50.0, 100.0));
        assert!(excess(&own, &[&[0.0]], 1).is_nan());
    }

    #[test]
    fn rows_are_those_that_scoring_reads() {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models/m30k-en-de-amateur");
        let (network, translator) =
            (Network::open(&dir, 1).expect("a network"), Translator::open(&dir).expect("a model"));
        let (source, target) = ([5u32, 9, 30, 0], [7u32, 12, 100, 0]);
        let inputs = shifted(translator.config().ids.decoder_start_id, &target);
        let rows = network.log_probs(&source, &inputs).expect("rows");
        let forced = Forced { source: &source, target: &target, inputs: Some(&inputs) };
        let stats = translator.token_stats(&[forced]).remove(0).expect("statistics");
        for ((row, stats), &token) in rows.iter().zip(&stats).zip(&target) {
            assert!((row[token as usize] - f64::from(stats.log_prob)).abs() < 1e-4);
            let entropy: f64 = row.iter().map(|l| -l.exp() * l).sum();
            assert!((entropy - f64::from(stats.entropy)).abs() < 1e-3);
        }
    }
}
