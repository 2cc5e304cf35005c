//! Options as the device reads them: the one place where they become [`SlotOptions`].

use super::{DecodeOptions, LengthPenalty, Stop};
use crate::backend::{
    ContrastiveForm, ContrastiveOptions, FinishKind, LengthPenaltyKind, SampleOptions, SlotOptions, StopKind, Strategy,
};

/// What a search takes from the sentence itself.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::decode) struct Own {
    /// Source tokens, end of sentence included.
    pub src_len: usize,
    /// First tokens that are given.
    pub prefix_len: usize,
    /// Tokens of its constraints, in all.
    pub constraint_tokens: usize,
    /// The scorer that it is contrasted with, where it is.
    pub amateur: usize,
    /// What the decoder reads first, if that is not the model's own.
    pub start: Option<u32>,
    /// The seed of its samples.
    pub seed: u64,
}

impl DecodeOptions {
    /// The options as the device reads them, for a sentence that brings a source of `src_len` tokens and nothing else, under a
    /// position table of `table` rows.
    pub fn for_slot(&self, src_len: usize, table: usize) -> SlotOptions {
        self.lowered(Own { src_len, ..Own::default() }, table)
    }

    /// The options as the device reads them, for a sentence under a position table of `table` rows.
    pub(in crate::decode) fn lowered(&self, own: Own, table: usize) -> SlotOptions {
        let is_alone = self.contrastive.is_none() && self.ensemble.is_empty();
        let penalizes = self.repetition_penalty != 1.0;
        let penalizes_logits = self.penalizes_logits() && penalizes && is_alone && !self.sample;
        let forces = own.prefix_len > 0 || own.constraint_tokens > 0;
        SlotOptions {
            beam_size: if self.sample { self.samples } else { self.beam_size } as u32,
            length_penalty: self.penalty_kind() as u32,
            alpha: self.exponent(),
            coverage_penalty: self.coverage_penalty,
            word_reward: self.word_reward,
            stop: self.stop_kind() as u32,
            patience: if self.sample { 0 } else { self.finished_needed() as u32 },
            finish: if self.shrink { FinishKind::Shrink } else { FinishKind::Replace } as u32,
            min_len: u32::try_from(self.min_length).unwrap_or(u32::MAX),
            max_len: self.max_length.resolve(own.src_len, table) as u32,
            // What ends as it is has no end of sentence forced on it.
            forced_eos: u32::from(self.forced_free && !self.cut),
            free_first: u32::from(self.forced_free && self.forced_bos.is_some()),
            renormalize: u32::from(self.renormalize || penalizes_logits),
            takes_pad: u32::from(self.allow_padding),
            counts_start: u32::from(self.count_start),
            src_len: own.src_len as u32,
            prefix_len: own.prefix_len as u32,
            constraints: own.constraint_tokens as u32,
            start: own.start.map_or(0, |start| start + 1),
            banned: u32::from(self.bans.is_some() || self.no_repeat_ngram > 0 || forces),
            no_repeat_ngram: u32::try_from(self.no_repeat_ngram).unwrap_or(u32::MAX),
            ranked: u32::from(!is_alone || penalizes),
            repetition_penalty: self.repetition_penalty,
            penalizes_logits: u32::from(penalizes_logits),
            contrast: self.contrast(own.amateur),
            ensemble: std::array::from_fn(|scorer| self.ensemble.get(scorer).copied().unwrap_or(0.0)),
            cut: u32::from(self.cut),
            groups: if self.beam_groups > 1 { self.beam_groups as u32 } else { 0 },
            diversity: if self.beam_groups > 1 { self.diversity } else { 0.0 },
            strategy: if self.sample { Strategy::Sample } else { Strategy::Beam } as u32,
            sampling: if self.sample { self.draws(own.seed) } else { SampleOptions::default() },
        }
    }

    fn penalty_kind(&self) -> LengthPenaltyKind {
        match self.length_penalty {
            LengthPenalty::None => LengthPenaltyKind::None,
            LengthPenalty::Gnmt => LengthPenaltyKind::Gnmt,
            LengthPenalty::Power => LengthPenaltyKind::Power,
            LengthPenalty::PowerOfAll => LengthPenaltyKind::PowerOfAll,
        }
    }

    fn stop_kind(&self) -> StopKind {
        match self.stop_rule() {
            Stop::First => StopKind::First,
            Stop::Heuristic => StopKind::Heuristic,
            Stop::Exact => StopKind::Exact,
            Stop::Top => StopKind::Top,
        }
    }

    fn contrast(&self, amateur: usize) -> ContrastiveOptions {
        let Some(form) = self.contrastive else { return ContrastiveOptions::default() };
        let weight = self.contrastive_weight.unwrap_or(if form == ContrastiveForm::Source { 0.7 } else { 0.5 });
        let (mask, temperature) = (self.contrastive_mask.unwrap_or(0.1), self.contrastive_temperature.unwrap_or(1.0));
        let options = ContrastiveOptions::new(form, weight, mask, temperature);
        ContrastiveOptions { scorer: amateur as u32, ..options }
    }

    /// How samples are drawn under a sentence's own seed.
    fn draws(&self, seed: u64) -> SampleOptions {
        SampleOptions {
            seed_low: seed as u32,
            seed_high: (seed >> 32) as u32,
            temperature: self.temperature,
            top_k: self.top_k as u32,
            top_p: self.top_p,
            min_p: self.min_p,
            epsilon: self.epsilon,
        }
    }

    /// The seed of a sentence that brings none: a hash of [`DecodeOptions::seed`] and its source ids, so that neither its line nor
    /// its batch matter.
    pub fn seed_of(&self, source: &[u32]) -> u64 {
        source.iter().fold(mix(self.seed), |hash, id| mix(hash ^ u64::from(*id)))
    }
}

/// A step of splitmix64 (Steele et al. 2014): one to one, and every bit depends on every other.
fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_tell_runs_sources_and_their_order_apart() {
        let seed = |seed: u64, source: &[u32]| DecodeOptions { seed, ..DecodeOptions::default() }.seed_of(source);
        let seeds =
            [seed(0, &[5, 6, 0]), seed(1, &[5, 6, 0]), seed(0, &[6, 5, 0]), seed(0, &[5, 0]), seed(0, &[0, 5, 6, 0])];
        for (i, a) in seeds.iter().enumerate() {
            assert!(seeds[i + 1..].iter().all(|b| (a ^ b).count_ones() > 10), "{seeds:x?}");
        }
        assert_eq!(seed(7, &[5, 6, 0]), seed(7, &[5, 6, 0]));
    }
}
