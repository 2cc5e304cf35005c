//! The runs themselves: always enough sentences queued for throughput, a fixed number under way for latency.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::cli::{interrupt, stream};
use crate::translator::Counters;
use crate::{DecodeOptions, Error, Result, Translation, Translator};

/// A source, tokenized beforehand.
#[derive(Clone, Debug)]
pub(super) struct Sentence {
    text: String,
    ids: Vec<u32>,
}

impl Sentence {
    pub(super) fn new(translator: &Translator, text: &str) -> Self {
        Sentence { text: text.to_string(), ids: translator.tokenizer().encode_source(text) }
    }
}

/// How much to run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Effort {
    pub repeat: usize,
    pub warmup: usize,
    /// Sentences that are decoded at once.
    pub slots: usize,
    /// Whether latency is measured, too.
    pub latency: bool,
}

/// What the runs that count came to.
#[derive(Debug, Default)]
pub(super) struct Measured {
    /// Tokens of the best translations of one run; the same in every run.
    pub tokens: usize,
    /// Each run's time for all sentences.
    pub runs: Vec<Duration>,
    /// Each sentence's time, over all runs.
    pub latencies: Vec<Duration>,
    /// What the device did in these runs; none on the CPU.
    pub counters: Option<Counters>,
}

/// Runs `effort`; none if that was interrupted.
///
/// # Errors
/// The first sentence's error, such as [`Error::InputTooLong`].
pub(super) fn measure(
    translator: &Translator,
    options: &DecodeOptions,
    sentences: &[Sentence],
    effort: Effort,
) -> Result<Option<Measured>> {
    let mut longest_first = sentences.to_vec();
    longest_first.sort_by_key(|sentence| std::cmp::Reverse(sentence.ids.len()));
    let mut measured = Measured::default();
    let mut before = None;
    for run in 0..effort.warmup + effort.repeat {
        if run == effort.warmup {
            before = translator.counters();
        }
        let start = Instant::now();
        let (tokens, _) = translate(translator, options, &longest_first, stream::QUEUED_PER_SLOT * effort.slots)?;
        let time = start.elapsed();
        let latencies = match effort.latency {
            true => translate(translator, options, sentences, effort.slots)?.1,
            false => Vec::new(),
        };
        if interrupt::asked() {
            return Ok(None);
        }
        if run >= effort.warmup {
            measured.tokens = tokens;
            measured.runs.push(time);
            measured.latencies.extend(latencies);
        }
    }
    measured.counters = translator.counters().zip(before).map(|(after, before)| after.since(&before));
    Ok(Some(measured))
}

/// Translates sentences, `in_flight` at a time, all of them or until there is an interrupt. Returns the best translations' tokens, and
/// each sentence's time from its start to its result.
fn translate(
    translator: &Translator,
    options: &DecodeOptions,
    sentences: &[Sentence],
    in_flight: usize,
) -> Result<(usize, Vec<Duration>)> {
    let mut queue = sentences.iter().cloned().enumerate();
    let mut batch = translator.batch(options)?;
    let mut started = HashMap::new();
    let (mut tokens, mut latencies) = (0, Vec::with_capacity(sentences.len()));
    loop {
        for (tag, Sentence { text, ids }) in queue.by_ref().take(in_flight - batch.outstanding()) {
            started.insert(tag as u64, Instant::now());
            batch.push_encoded(tag as u64, text, ids);
        }
        let Some((tag, result)) = interrupt::next_of(&mut batch) else { return Ok((tokens, latencies)) };
        tokens += best_length(&result?);
        latencies.extend(started.remove(&tag).map(|start| start.elapsed()));
    }
}

fn best_length(translation: &Translation) -> usize {
    translation.hypotheses.first().map_or(0, |best| best.length)
}

/// Sources of `length` random tokens each, end of sentence included, which the model's position table holds.
pub(super) fn random_sentences(
    translator: &Translator,
    length: usize,
    count: usize,
    seed: u64,
) -> Result<Vec<Sentence>> {
    let (config, tokenizer) = (translator.config(), translator.tokenizer());
    let special = [config.ids.eos_id, config.ids.pad_id, tokenizer.unk_id()];
    let words: Vec<u32> = (0..config.vocab_size as u32).filter(|id| !special.contains(id)).collect();
    if words.is_empty() {
        let (expected, got) = ("a vocabulary with tokens that are not special".into(), "none".into());
        return Err(Error::Input { operation: "draw random sources", expected, got });
    }
    let mut random = SplitMix(seed);
    let mut sentence = || {
        let mut ids: Vec<u32> = (1..length).map(|_| words[random.below(words.len())]).collect();
        ids.push(config.ids.eos_id);
        Sentence { text: String::new(), ids }
    };
    Ok((0..count).map(|_| sentence()).collect())
}

/// SplitMix64 (Steele, Lea & Flood 2014).
struct SplitMix(u64);

impl SplitMix {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        ((u128::from(bits) * limit as u128) >> 64) as usize
    }
}
