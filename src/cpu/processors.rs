//! Op `processors`: what a row's history says about its next token; the contracts are
//! [`crate::backend::SearchOps::processors`] and [`crate::backend::SearchOps::repetition_penalty`].

use rayon::prelude::*;

use crate::backend::{BANK_WORDS, Constraints, MAX_SEQUENCE_WORDS, Row, Search, SlotOptions};
use crate::cpu::Cpu;

/// Appends the tokens that a row's beam has generated, by the ancestry table.
fn history(row: &Row, search: &SearchParts<'_>, out: &mut Vec<u32>) {
    let (k, max_len) = (search.beam_size, search.max_len);
    let (slot, beam, step) = (row.slot as usize, row.beam as usize, row.position as usize);
    let ancestry = &search.ancestry[(slot * k + beam) * max_len..][..max_len];
    // The beam that holds position t read the token generated before it.
    let beam_at = |t: usize| if t + 1 < step { ancestry[t + 1] as usize } else { beam };
    out.extend((0..step).map(|t| search.tokens[(slot * max_len + t) * k + beam_at(t)]));
}

/// What the op reads of a search.
struct SearchParts<'a> {
    beam_size: usize,
    max_len: usize,
    decoder_start_id: u32,
    options: &'a [SlotOptions],
    tokens: &'a [u32],
    ancestry: &'a [u32],
}

macro_rules! parts {
    ($search:expr) => {
        SearchParts {
            beam_size: $search.shape.beam_size,
            max_len: $search.shape.max_len,
            decoder_start_id: $search.ids.decoder_start_id,
            options: bytemuck::cast_slice(&$search.options),
            tokens: &$search.tokens,
            ancestry: &$search.ancestry,
        }
    };
}

fn ban(bans: &mut [u32], token: u32) {
    bans[token as usize / 32] |= 1 << (token % 32);
}

/// Banned sequences as they lie in device memory.
fn sequences(words: &[u32]) -> impl Iterator<Item = &[u32]> {
    let (ends, ids) = words[1..].split_at(words[0] as usize);
    let begins = std::iter::once(0).chain(ends.iter().copied());
    begins.zip(ends).map(move |(begin, end)| &ids[begin as usize..*end as usize])
}

/// Writes a row's banks; see [`Search::banks`].
fn fill_banks(constraints: &Constraints, past: &mut Vec<u32>, banks: &mut [u32]) {
    let contains = |past: &[u32], phrase: &[u32]| past.windows(phrase.len()).any(|part| part == phrase);
    let met: Vec<bool> = constraints.phrases().map(|phrase| contains(past, phrase)).collect();
    let all_of = |(phrase, met): (&[u32], &bool)| if *met { phrase.len() } else { 0 };
    banks[0] = constraints.phrases().zip(&met).map(all_of).sum::<usize>() as u32;
    let (others, banks) = (banks[0], &mut banks[1..]);
    for (bank, token) in banks.iter_mut().zip(constraints.tokens()) {
        past.push(*token);
        let open = constraints.phrases().zip(&met).filter(|(_, met)| !**met);
        let begun = |phrase: &[u32]| (1..=phrase.len()).rev().find(|n| past.ends_with(&phrase[..*n])).unwrap_or(0);
        *bank = others + open.map(|(phrase, _)| begun(phrase)).sum::<usize>() as u32;
        past.pop();
    }
}

/// Gathers each row's bans and banks; see [`crate::backend::SearchOps::processors`].
pub fn processors(search: &mut Search<Cpu>) {
    let words = search.vocab_size.div_ceil(32);
    let parts = parts!(search);
    let rows = search.rows.live();
    let eos_id = search.ids.eos_id;
    let (always, prefixes, banned) = (&search.always_banned, &search.prefixes, &search.sequences);
    let constraints: &[Constraints] = bytemuck::cast_slice(&search.constraints);
    let all = search.bans.par_chunks_mut(words).zip(search.banks.par_chunks_mut(BANK_WORDS)).zip(rows);
    all.for_each_init(Vec::new, |past, ((bans, banks), row)| {
        let (slot, step) = (row.slot as usize, row.position as usize);
        let options = &parts.options[slot];
        if options.banned == 0 {
            return;
        }
        past.clear();
        history(row, &parts, past);
        if options.constraints != 0 {
            fill_banks(&constraints[slot], past, banks);
        }
        if step < options.prefix_len as usize {
            let token = prefixes[slot * parts.max_len + step];
            bans.fill(u32::MAX);
            bans[token as usize / 32] &= !(1 << (token % 32));
            return;
        }
        bans.copy_from_slice(&always[slot * words..][..words]);
        if options.constraints != 0 && banks[0] < options.constraints {
            ban(bans, eos_id);
        }
        for sequence in sequences(&banned[slot * MAX_SEQUENCE_WORDS..][..MAX_SEQUENCE_WORDS]) {
            if let Some((next, before)) = sequence.split_last()
                && past.ends_with(before)
            {
                ban(bans, *next);
            }
        }
        if options.counts_start != 0 {
            past.insert(0, options.start_or(parts.decoder_start_id));
        }
        let n = options.no_repeat_ngram as usize;
        if n > 0 && past.len() >= n {
            let last = &past[past.len() + 1 - n..];
            past.windows(n).filter(|ngram| ngram[..n - 1] == *last).for_each(|ngram| ban(bans, ngram[n - 1]));
        }
    });
}

/// Penalises what has been generated before; see [`crate::backend::SearchOps::repetition_penalty`].
pub fn repetition_penalty(logits: &[f32], search: &mut Search<Cpu>) {
    let vocab_size = search.vocab_size;
    let parts = parts!(search);
    let rows = search.rows.live();
    let all = search.ranked.par_chunks_mut(vocab_size).zip(logits.par_chunks(vocab_size)).zip(rows);
    all.for_each_init(Vec::new, |past, ((ranked, logits), row)| {
        let options = &parts.options[row.slot as usize];
        if !options.penalizes_repetition() {
            return;
        }
        past.clear();
        past.extend((options.counts_start != 0).then_some(options.start_or(parts.decoder_start_id)));
        history(row, &parts, past);
        past.sort_unstable();
        past.dedup();
        for token in past.iter() {
            let (value, logit) = (&mut ranked[*token as usize], logits[*token as usize]);
            *value = match options.penalizes_logits {
                0 => penalized(*value, options.repetition_penalty),
                // No penalty moves it, and the difference would be NaN.
                _ if logit == f32::NEG_INFINITY => *value,
                _ => *value + (penalized(logit, options.repetition_penalty) - logit),
            };
        }
    });
}

/// As transformers has it (Keskar et al. 2019): a log-probability, below 0, gets further away from it.
fn penalized(value: f32, penalty: f32) -> f32 {
    if value < 0.0 { value * penalty } else { value / penalty }
}

/// What one row is told.
#[derive(Clone, Debug, PartialEq)]
pub struct RowRules {
    /// Which tokens are banned, if its slot bans any.
    pub bans: Option<Vec<bool>>,
    /// The bank of each token, if its slot has constraints.
    pub banks: Option<Vec<u32>>,
    /// Its ranked log-probabilities, if a penalty applies.
    pub ranked: Option<Vec<f32>>,
}

/// The naive computation of all that, token by token and with histories walked back through the parents.
pub fn reference(logits: &[f32], search: &Search<Cpu>) -> Vec<RowRules> {
    let (k, max_len, vocab_size) = (search.shape.beam_size, search.shape.max_len, search.vocab_size);
    let all: &[SlotOptions] = bytemuck::cast_slice(&search.options);
    let of_row = |(r, row): (usize, &Row)| {
        let (slot, step) = (row.slot as usize, row.position as usize);
        let options = &all[slot];
        let (mut past, mut beam) = (Vec::new(), row.beam as usize);
        for t in (0..step).rev() {
            past.insert(0, search.tokens[(slot * max_len + t) * k + beam]);
            beam = search.parents[(slot * max_len + t) * k + beam] as usize;
        }
        let start = (options.counts_start != 0).then_some(options.start_or(search.ids.decoder_start_id));
        let read: Vec<u32> = start.into_iter().chain(past.iter().copied()).collect();
        let words = vocab_size.div_ceil(32);
        let always = &search.always_banned[slot * words..][..words];
        let listed = &search.sequences[slot * MAX_SEQUENCE_WORDS..][..MAX_SEQUENCE_WORDS];
        let constraints = match options.constraints {
            0 => bytemuck::Zeroable::zeroed(),
            _ => bytemuck::cast_slice::<_, Constraints>(&search.constraints)[slot],
        };
        let met_with = |tokens: &[u32]| {
            let of = |phrase: &[u32]| {
                let contains = (0..tokens.len()).any(|at| tokens[at..].starts_with(phrase));
                let ends = (0..=phrase.len()).filter(|n| tokens.ends_with(&phrase[..*n])).max();
                if contains { phrase.len() } else { ends.unwrap_or(0) }
            };
            constraints.phrases().map(of).sum::<usize>() as u32
        };
        let is_banned = |token: u32| {
            if step < options.prefix_len as usize {
                return search.prefixes[slot * max_len + step] != token;
            }
            let with: Vec<u32> = past.iter().copied().chain([token]).collect();
            let n = options.no_repeat_ngram as usize;
            let then: Vec<u32> = read.iter().copied().chain([token]).collect();
            let repeats = n > 0 && then.len() > n && read.windows(n).any(|ngram| then.ends_with(ngram));
            let completes = sequences(listed).any(|sequence| with.ends_with(sequence));
            let too_early =
                token == search.ids.eos_id && constraints.phrases().any(|p| !past.windows(p.len()).any(|w| w == p));
            always[token as usize / 32] >> (token % 32) & 1 != 0 || repeats || completes || too_early
        };
        let bans = (options.banned != 0).then(|| (0..vocab_size as u32).map(is_banned).collect());
        let logit = |token: usize| f64::from(logits[r * vocab_size + token]);
        let further = |value: f64| {
            let penalty = f64::from(options.repetition_penalty);
            if value < 0.0 { value * penalty } else { value / penalty }
        };
        let penalize = |(token, value): (usize, &f32)| match read.contains(&(token as u32)) {
            true if options.penalizes_logits != 0 && logit(token) == f64::NEG_INFINITY => *value,
            true if options.penalizes_logits != 0 => (f64::from(*value) - logit(token) + further(logit(token))) as f32,
            true => further(f64::from(*value)) as f32,
            false => *value,
        };
        let row = &search.ranked[r * vocab_size..][..vocab_size];
        let ranked = options.penalizes_repetition().then(|| row.iter().enumerate().map(penalize).collect());
        let with = |token: u32| past.iter().copied().chain([token]).collect::<Vec<_>>();
        let banks = (options.constraints != 0).then(|| (0..vocab_size as u32).map(|t| met_with(&with(t))).collect());
        RowRules { bans, banks, ranked }
    };
    search.rows.live().iter().enumerate().map(of_row).collect()
}
