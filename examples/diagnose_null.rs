//! How often `diagnose` finds something where there is nothing, and how small a damage it finds: the table of docs/diagnose.md.
//!
//!     cargo run --release --example diagnose_null -- alarms MODEL OTHER-MODEL SOURCE REFERENCE SETS LINES OUTPUT.json
//!     cargo run --release --example diagnose_null -- power MODEL SOURCE REFERENCE LINES NOISE,... SIZES,... REPEATS OUTPUT.json
//!
//! `alarms`: SETS sets of references are sampled once and estimated once; each in turn is the value, and the sets that follow it are
//! its null. That is a model that is its own data; any finding is false. The same for references that do not fit the model, yet have
//! no gap: sampled at temperatures 0.8 and 1.2, sampled from another model, and from the clean model where the model under test has
//! equal noise on all prefixes. For these the null is drawn at the temperature at which it costs what the references do, as in
//! `diagnose`, from a pool of as many sets.
//!
//! `power`: references are sampled from the model; the model under test is the same but for noise where the prefix has left the
//! reference. Sets of each size are drawn without replacement, REPEATS times.
//!
//! Noise is in what the decoder reads: each token of the prefix gives way to a random one with a probability. The sweep over beams is
//! left out: `diagnose` tests it on lines that are swept. OUTPUT is written after each case and each row; `complete` says whether all
//! are there.

use std::path::Path;
use std::time::Instant;

use beamfuse::backend::{SpecialIds, TokenStats};
use beamfuse::cpu::philox::philox;
use beamfuse::diagnose::inference::{LEVEL, Test, compare, fires};
use beamfuse::diagnose::subject::{Draws, Found, Job, Prefix, Reference, Subject};
use beamfuse::diagnose::{Bench, Pair, Sums, TestSet, null, spread, statistics, test};
use beamfuse::metrics::{BootstrapOptions, chrf_counts, corpus_score};
use beamfuse::{DecodeOptions, MaxLength, Result, Translator};
use serde_json::{Value, json};

/// Sampled sets that each value is compared with, as many as `diagnose` draws.
const NULL_DRAWS: usize = 5;

/// Permutations of each test, and resamples of each interval.
const PERMUTATIONS: usize = 499;

/// Where the decoder reads noise.
#[derive(Clone, Copy, PartialEq)]
enum Where {
    /// From the first token on that is not the reference's.
    OffTheReference,
    /// On every prefix.
    Everywhere,
}

/// A model whose decoder reads random tokens in place of some of the prefix's.
struct Damaged<'a> {
    model: &'a Translator,
    /// The references that noise begins behind, one per line.
    data: &'a [Reference],
    place: Where,
    /// The probability of a random token.
    noise: f64,
}

impl Damaged<'_> {
    /// A prefix as the decoder reads it; what becomes of a token depends on line, place and token alone.
    fn read(&self, line: usize, prefix: &[u32]) -> Vec<u32> {
        let data = &self.data[line].ids;
        let left = match self.place {
            Where::Everywhere => 0,
            Where::OffTheReference => prefix.iter().zip(data).take_while(|(a, b)| a == b).count(),
        };
        let vocabulary = self.model.tokenizer().target_vocab_size() as u64;
        let noisy = |(at, &token): (usize, &u32)| {
            let [chance, other, ..] = philox(97, [line as u32, at as u32, token, 0]);
            let random = ((u64::from(other) * (vocabulary - 2)) >> 32) as u32 + 1;
            if at >= left && f64::from(chance) < self.noise * 2f64.powi(32) { random } else { token }
        };
        prefix.iter().enumerate().map(noisy).collect()
    }

    /// Goes on with prefixes until all have ended or are as long as they may be. The search runs on while it reads what it wrote; behind
    /// a token that is read as another it begins anew from what has been read.
    fn piece_by_piece(
        &self,
        pairs: &[Pair],
        mut all: Vec<(usize, Vec<u32>)>,
        most: &[usize],
        options: impl Fn(u64) -> DecodeOptions,
    ) -> Result<Vec<Vec<u32>>> {
        let end = self.ids().eos_id;
        let limit = MaxLength::Absolute(most.iter().copied().max().unwrap_or(1));
        for round in 0.. {
            let open = |at: &usize| all[*at].1.len() < most[*at] && all[*at].1.last() != Some(&end);
            let live: Vec<usize> = (0..all.len()).filter(open).collect();
            if live.is_empty() {
                break;
            }
            let given: Vec<(Vec<u32>, Vec<u32>)> = live
                .iter()
                .map(|&at| (pairs[all[at].0].source_ids.clone(), self.read(all[at].0, &all[at].1)))
                .collect();
            let options = options(round).with(|o| (o.cut, o.max_length) = (true, limit));
            for (&at, found) in live.iter().zip(self.model.continue_ids(&given, &options)?) {
                let (line, ids) = &mut all[at];
                for token in found?.swap_remove(0).token_ids.into_iter().skip(ids.len()) {
                    ids.push(token);
                    let is_read = self.read(*line, ids).last() == Some(&token);
                    if ids.len() >= most[at] || !is_read {
                        break;
                    }
                }
            }
        }
        Ok(all.into_iter().map(|(_, ids)| ids).collect())
    }

    fn most(&self, pairs: &[Pair], line: usize) -> usize {
        MaxLength::default().resolve(pairs[line].source_ids.len(), self.longest())
    }
}

fn greedy() -> DecodeOptions {
    DecodeOptions::default().with(|o| o.beam_size = 1)
}

impl Subject for Damaged<'_> {
    fn ids(&self) -> SpecialIds {
        self.model.ids()
    }

    fn longest(&self) -> usize {
        self.model.longest()
    }

    fn text(&self, ids: &[u32]) -> String {
        self.model.text(ids)
    }

    fn reference(&self, text: String) -> Reference {
        self.model.reference(text)
    }

    /// By greedy search, whatever the options are.
    fn translate(&self, pairs: &[Pair], lines: &[usize], _: &DecodeOptions) -> Result<Vec<Found>> {
        let most: Vec<usize> = lines.iter().map(|&line| self.most(pairs, line)).collect();
        let begun = lines.iter().map(|&line| (line, Vec::new())).collect();
        let found = self.piece_by_piece(pairs, begun, &most, |_| greedy())?;
        let start = self.ids().decoder_start_id;
        let job = |(&line, ids): (&usize, &Vec<u32>)| {
            let inputs = [&[start], &ids[..ids.len() - 1]].concat();
            Job { line, source: line, target: ids.clone(), inputs }
        };
        let stats = self.look(pairs, &lines.iter().zip(&found).map(job).collect::<Vec<_>>())?;
        let found = found.into_iter().zip(stats).map(|(ids, stats)| {
            let log_probs = stats.iter().map(|s| s.log_prob).collect();
            Found { text: self.text(&ids), ids, log_probs }
        });
        Ok(found.collect())
    }

    fn sample(&self, pairs: &[Pair], lines: &[usize], draws: Draws) -> Result<Vec<Vec<Vec<u32>>>> {
        let most: Vec<usize> = lines.iter().map(|&line| self.most(pairs, line)).collect();
        // Copies of a line would draw the same under one seed: one after the other, each with a seed of its own.
        let mut found: Vec<Vec<Vec<u32>>> = vec![Vec::new(); lines.len()];
        for copy in 0..draws.count {
            let begun = lines.iter().map(|&line| (line, Vec::new())).collect();
            let options = |round: u64| {
                let seed = draws.seed.wrapping_add((copy as u64) << 32).wrapping_add(round << 24);
                DecodeOptions::default().with(|o| (o.sample, o.temperature, o.seed) = (true, draws.temperature, seed))
            };
            let samples = self.piece_by_piece(pairs, begun, &most, options)?;
            found.iter_mut().zip(samples).for_each(|(line, ids)| line.push(ids));
        }
        Ok(found)
    }

    fn go_on(&self, pairs: &[Pair], prefixes: &[Prefix], _: &DecodeOptions) -> Result<Vec<Vec<u32>>> {
        let most: Vec<usize> = prefixes.iter().map(|prefix| prefix.most).collect();
        let begun = prefixes.iter().map(|prefix| (prefix.line, prefix.ids.clone())).collect();
        self.piece_by_piece(pairs, begun, &most, |_| greedy())
    }

    fn look(&self, pairs: &[Pair], jobs: &[Job]) -> Result<Vec<Vec<TokenStats>>> {
        let noisy = |job: &Job| {
            let inputs = [&job.inputs[..1], &self.read(job.line, &job.inputs[1..])].concat();
            Job { inputs, ..job.clone() }
        };
        self.model.look(pairs, &jobs.iter().map(noisy).collect::<Vec<_>>())
    }
}

fn read(path: &str, lines: usize) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    text.lines().take(lines).map(str::to_owned).collect()
}

/// The pairs with these references.
fn with(pairs: &[Pair], references: &[Reference]) -> Vec<Pair> {
    let pair = |(pair, reference): (&Pair, &Reference)| Pair {
        reference: reference.text.clone(),
        reference_ids: reference.ids.clone(),
        ..pair.clone()
    };
    pairs.iter().zip(references).map(pair).collect()
}

fn options() -> BootstrapOptions {
    BootstrapOptions { resamples: PERMUTATIONS, ..BootstrapOptions::default() }
}

/// The rules that fire with the first set as the value and the others as its null.
fn found(sets: &[&[Sums]], seed: u64) -> Result<Vec<Test>> {
    let statistics = statistics(sets[0]);
    let compared = compare(&statistics, sets, &options())?;
    let tests = test(&statistics, sets, PERMUTATIONS, seed);
    Ok(tests.into_iter().filter(|t| fires(t, &statistics, &compared)).collect())
}

/// Each of `values` against `NULL_DRAWS` sets: those of `nulls` that follow its place.
fn count(name: &str, values: &[Vec<Sums>], nulls: &[Vec<Sums>], same: bool) -> Result<Value> {
    let (mut any, mut rules) = (0, std::collections::BTreeMap::<String, usize>::new());
    for (at, value) in values.iter().enumerate() {
        let first = if same { at + 1 } else { at };
        let others = (0..NULL_DRAWS).map(|k| nulls[(first + k) % nulls.len()].as_slice());
        let sets: Vec<&[Sums]> = [value.as_slice()].into_iter().chain(others).collect();
        let fired = found(&sets, at as u64)?;
        any += usize::from(!fired.is_empty());
        for test in fired {
            *rules.entry(format!("{:?}", test.rule).to_lowercase()).or_default() += 1;
        }
    }
    eprintln!("{name}: {any} of {} with a finding {rules:?}", values.len());
    Ok(json!({"case": name, "sets": values.len(), "with_a_finding": any, "by_rule": rules}))
}

/// Writes what has been found so far.
fn save(output: &str, report: &Value) {
    let text = serde_json::to_string_pretty(report).expect("JSON");
    std::fs::write(output, text + "\n").unwrap_or_else(|error| panic!("{output}: {error}"));
}

fn alarms(arguments: &[String]) -> Result<()> {
    let [model, other, source, reference, sets, lines, output] = arguments else { panic!("see the head of this file") };
    let (sets, lines): (usize, usize) = (sets.parse().expect("a number"), lines.parse().expect("a number"));
    let (model, other) = (Translator::open(Path::new(model))?, Translator::open(Path::new(other))?);
    let set = TestSet::new(&model, &read(source, lines), &read(reference, lines));
    let (pairs, all) = (&set.pairs, (0..set.pairs.len()).collect::<Vec<usize>>());
    let started = Instant::now();
    let bench =
        |subject| Bench::new(subject, pairs, &DecodeOptions::default(), (all.clone(), Vec::new()), 5, &mut |_| ());
    let draw = |subject: &dyn Subject, temperature: f32, seed: u64| {
        null::draw(subject, pairs, &all, (sets, temperature), seed).map(|drawn| drawn.sets)
    };
    let estimate = |bench: &Bench<'_>, sets: &[Vec<Reference>]| -> Result<Vec<Vec<Sums>>> {
        sets.iter().map(|set| bench.sums(set)).collect()
    };
    let clean = bench(&model)?;
    let pool = draw(&model, 1.0, 1)?;
    let mut cases = Vec::new();
    let mut keep = |case: Value, complete: bool| {
        cases.push(case);
        save(
            output,
            &json!({
                "program": "alarms", "complete": complete, "lines": pairs.len(), "sets": sets, "null_draws": NULL_DRAWS,
                "permutations": PERMUTATIONS, "level": LEVEL, "seconds": started.elapsed().as_secs(), "cases": cases
            }),
        );
    };
    let sums = estimate(&clean, &pool)?;
    keep(count("the model's own samples", &sums, &sums, true)?, false);
    // A case of misfit: the null is fitted to the first set of values, as diagnose fits it to the references.
    let misfit = |name: &str, bench: &Bench<'_>, subject: &dyn Subject, values: Vec<Vec<Reference>>| -> Result<Value> {
        let temperature = null::fit(subject, pairs, &values[0], 3)?;
        let nulls = null::draw(subject, pairs, &all, (sets.min(values.len() + NULL_DRAWS), temperature), 9)?.sets;
        let mut case = count(name, &estimate(bench, &values)?, &estimate(bench, &nulls)?, false)?;
        case["temperature"] = json!(temperature);
        Ok(case)
    };
    keep(misfit("references at temperature 0.8", &clean, &model, draw(&model, 0.8, 2)?)?, false);
    keep(misfit("references at temperature 1.2", &clean, &model, draw(&model, 1.2, 3)?)?, false);
    keep(misfit("references of another model", &clean, &model, draw(&other, 1.0, 4)?)?, false);
    let data: Vec<Reference> = pairs.iter().map(Pair::gold).collect();
    let noisy = Damaged { model: &model, data: &data, place: Where::Everywhere, noise: 0.1 };
    // Piece by piece is slow: a quarter of the sets.
    let values = pool[..sets.div_ceil(4)].to_vec();
    keep(misfit("noise on all prefixes alike", &bench(&noisy)?, &noisy, values)?, true);
    Ok(())
}

fn power(arguments: &[String]) -> Result<()> {
    let [model, source, reference, lines, noises, sizes, repeats, output] = arguments else {
        panic!("see the head of this file")
    };
    let (lines, repeats): (usize, usize) = (lines.parse().expect("a number"), repeats.parse().expect("a number"));
    let numbers = |text: &str| text.split(',').map(|n| n.parse::<f64>().expect("numbers")).collect::<Vec<_>>();
    let model = Translator::open(Path::new(model))?;
    let set = TestSet::new(&model, &read(source, lines), &read(reference, lines));
    let all: Vec<usize> = (0..set.pairs.len()).collect();
    let started = Instant::now();
    let data = null::draw(&model, &set.pairs, &all, (1, 1.0), 1)?.sets.remove(0);
    let pairs = with(&set.pairs, &data);
    let chrf = |found: &[Found]| -> Result<f64> {
        let references: Vec<[&str; 1]> = data.iter().map(|r| [r.text.as_str()]).collect();
        Ok(corpus_score(&chrf_counts(&found.iter().map(|f| f.text.as_str()).collect::<Vec<_>>(), &references)?))
    };
    let clean = chrf(&Subject::translate(&model, &pairs, &all, &greedy())?)?;
    let (noises, sizes) = (numbers(noises), numbers(sizes));
    let mut rows = Vec::new();
    for &noise in &noises {
        let damaged = Damaged { model: &model, data: &data, place: Where::OffTheReference, noise };
        let bench =
            Bench::new(&damaged, &pairs, &greedy(), (spread(all.len(), all.len()), Vec::new()), 5, &mut |_| ())?;
        let cost = clean - chrf(&Subject::translate(&damaged, &pairs, &all, &greedy())?)?;
        let temperature = null::fit(&damaged, &pairs, &data, 3)?;
        let drawn = null::draw(&damaged, &pairs, &all, (NULL_DRAWS, temperature), 9)?.sets;
        let mut sets = vec![bench.sums(&data)?];
        for set in &drawn {
            sets.push(bench.sums(set)?);
        }
        for size in sizes.iter().map(|&size| (size as usize).min(all.len())) {
            let (mut gap, mut any) = (0, 0);
            let repeats = if size == all.len() { 1 } else { repeats };
            for repeat in 0..repeats {
                let mut order: Vec<(u32, usize)> =
                    all.iter().map(|&line| (philox(31, [repeat as u32, line as u32, 0, 0])[0], line)).collect();
                order.sort_unstable();
                let drawn: Vec<Vec<Sums>> =
                    sets.iter().map(|set| order[..size].iter().map(|(_, line)| set[*line].clone()).collect()).collect();
                let fired = found(&drawn.iter().map(Vec::as_slice).collect::<Vec<_>>(), repeat as u64)?;
                any += usize::from(!fired.is_empty());
                gap += usize::from(fired.iter().any(|t| format!("{:?}", t.rule) == "Gap"));
            }
            eprintln!("noise {noise}: greedy loses {cost:.2} chrF2; {size} lines: gap {gap}, any {any} of {repeats}");
            rows.push(json!({
                "noise": noise, "chrf2_lost": cost, "temperature": temperature, "lines": size, "repeats": repeats,
                "gap_found": gap, "any_found": any
            }));
            save(
                output,
                &json!({
                    "program": "power", "complete": rows.len() == noises.len() * sizes.len(), "pool_lines": all.len(),
                    "clean_chrf2": clean, "null_draws": NULL_DRAWS, "permutations": PERMUTATIONS,
                    "seconds": started.elapsed().as_secs(), "rows": rows
                }),
            );
        }
    }
    Ok(())
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.split_first() {
        Some((which, rest)) if which == "alarms" => alarms(rest),
        Some((which, rest)) if which == "power" => power(rest),
        _ => panic!("alarms or power, see the head of this file"),
    }
}
