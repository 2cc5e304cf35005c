//! The ops of a search: from logits to tokens.

use std::fmt::Debug;

use super::{NetworkOps, Rows, Search, SessionShape, SlotOptions};
use crate::Result;

/// What a step of a search is made of, once the logits are there.
pub trait SearchOps: NetworkOps {
    /// Working memory of [`SearchOps::beam_step`].
    type SearchScratch: Send + Debug;

    /// Allocates the working memory of a search.
    ///
    /// # Errors
    /// The device has no memory left.
    fn search_scratch(&self, shape: SessionShape, vocab_size: usize) -> Result<Self::SearchScratch>;

    /// Op `beam_step`: takes each slot of `slots` into the search with its options: one live beam that reads the decoder
    /// start token, nothing finished. A sampling slot starts with all of its beams live. Then rebuilds `search.rows`.
    ///
    /// What the options ask for beyond plain beam search, [`Search::reserve`] has made room for.
    fn start_slots(&self, slots: &[(u32, SlotOptions)], search: &mut Search<Self>) -> Result<()>;

    /// Op `processors`: writes `search.bans` for the rows of slots whose options say that bans hold. Reads no logits.
    ///
    /// Within a given prefix, everything but its next token. Behind it, what [`Search::always_banned`] has for the slot, each
    /// token that would repeat an n-gram of `no_repeat_ngram` generated tokens, and each that would complete one of
    /// [`Search::sequences`].
    ///
    /// Writes `search.banks`, too, for the rows of slots with constraints: the sum over their phrases of the tokens met, all of
    /// them once the row's tokens contain the phrase, else the most of its first tokens that they end with. End of sentence is
    /// banned until all are met.
    fn processors(&self, search: &mut Search<Self>) -> Result<()>;

    /// Op `contrastive`: writes `search.ranked` for the rows of slots whose amateur is `scorer`: log_softmax(s), s as
    /// [`ContrastiveForm`](super::ContrastiveForm) says, `expert` and `amateur` being the logits of the first scorer and of that one.
    ///
    /// End of sentence joins V_head at `max_len`, unless the slot cuts there; the next token of a given prefix joins it too.
    fn contrastive(
        &self,
        expert: &Self::Buffer<f32>,
        amateur: &Self::Buffer<f32>,
        scorer: u32,
        search: &mut Search<Self>,
    ) -> Result<()>;

    /// Op `ensemble`: writes `search.ranked` for the rows of slots that rank another distribution and contrast nothing:
    /// `log_softmax(sum_v weight_v * logits_v)`, or, without weights, the first scorer's own distribution. A scorer that has a
    /// weight in some live slot is there.
    fn ensemble(&self, scorers: &[Option<&Self::Buffer<f32>>], search: &mut Search<Self>) -> Result<()>;

    /// Op `processors`: in `search.ranked`, multiplies what a row has generated before by its slot's `repetition_penalty`, or
    /// divides what is not negative by it. Where the options say so, it adds what that changes in the logits instead: `logits`
    /// `[rows, vocab_size]`, rows [`NetworkOps::logits_stride`] apart.
    fn repetition_penalty(&self, logits: &Self::Buffer<f32>, search: &mut Search<Self>) -> Result<()>;

    /// Op `beam_step`: one step of the search in every live slot.
    ///
    /// `logits` `[rows, vocab_size]`, rows [`NetworkOps::logits_stride`] apart, and `attention` `[rows, max_src_len]` belong to
    /// `search.rows`. Per slot, with K its own beam size and t the step's number:
    /// 1. Candidates are (live beam, token) pairs, worth `cum_log_prob + log_softmax(logits)`, or, where the slot's options say
    ///    so, `cum_log_prob +` [`Search::ranked`]. Padding and what [`Search::bans`] holds is masked, end of sentence is before
    ///    `min_len`, all but end of sentence is at `max_len`, unless the slot cuts there; masks act after the softmax. With
    ///    `renormalize`, and with `free_first` at the first step, what ranks is divided by the probability of the tokens that are
    ///    left.
    /// 2. The 2K best are ranked, ties to the lower `beam * vocab_size + token`. -inf is no candidate.
    /// 3. End of sentence among the first K ranks finishes. The first K others stay live; at `max_len` a slot that cuts ends
    ///    these as they are, truncated.
    /// 4. Without any live or finished hypothesis, the best beam of the step before finishes, truncated and without end of
    ///    sentence.
    /// 5. The slot ends (`live` = 0) without live beams or when its stop rule says so.
    /// 6. `step`, histories, ancestry, coverage and the finished set follow, and `search.rows` is rebuilt.
    ///
    /// In a sampling slot each live beam takes what [`Search::picks`] has for it and nothing else: end of sentence finishes it;
    /// without a token it ends as it is, and at `max_len` whatever it took, truncated. The slot ends with its last beam. A sample's number is the beam that it
    /// started in: `ancestry[slot, beam, 0]` from the second step on.
    ///
    /// In a slot with C tokens of constraints each candidate stands in the bank that [`Search::banks`] has for it, and 2. and 3.
    /// become: the banks share the K beams, as [`SlotOptions::bank_shares`] has it; what a bank has too few candidates for, end
    /// of sentence not counted, goes to the next lower one, and what the lowest leaves to the highest, and down again. A bank's
    /// best go on with the beams it got, the highest bank's first. End of sentence is a candidate in bank C alone, and finishes
    /// among the first K ranks there. At `max_len` bank C gets all beams, and where the slot cuts, only its first K ranks count.
    ///
    /// NaN or +infinity among a row's logits, or in what ranks, ends the slot and is recorded in `failures`; other slots carry on.
    fn beam_step(
        &self,
        logits: &Self::Buffer<f32>,
        attention: &Self::Buffer<f32>,
        search: &mut Search<Self>,
    ) -> Result<()>;

    /// Op `sample`: draws a token for every row of the slots that sample, into [`Search::picks`].
    ///
    /// `logits` `[rows, vocab_size]`, rows [`NetworkOps::logits_stride`] apart, belong to `search.rows`. A row draws from the
    /// distribution that its slot ranks, over the tokens that masks and bans leave (here they act before the softmax), after
    /// temperature, `top_k`, `top_p`, `min_p` and `epsilon`; at `max_len`, unless the slot cuts there, it takes end of sentence.
    /// The log-probabilities are those of the whole distributions, with the bits that [`SearchOps::token_stats`] has. A draw
    /// depends on its slot's seed, its sample's number, its position and its distribution alone.
    ///
    /// Rows of other slots are not read. NaN and +infinity, and a row without a token to draw, give [`SamplePick::NONE`](super::SamplePick::NONE).
    fn sample(&self, logits: &Self::Buffer<f32>, search: &mut Search<Self>) -> Result<()>;

    /// Op `stats`: what each row of `logits` `[rows, vocab_size]`, rows
    /// [`NetworkOps::logits_stride`] apart, says about its token of `gold` and on its own: [`TokenStats`](super::TokenStats)
    /// `[rows]`.
    ///
    /// The log-probabilities have the bits that [`SearchOps::beam_step`] ranks.
    fn token_stats(
        &self,
        rows: &Rows<Self>,
        logits: &Self::Buffer<f32>,
        vocab_size: usize,
        gold: &Self::Buffer<u32>,
        out: &mut Self::Buffer<u32>,
    ) -> Result<()>;
}
