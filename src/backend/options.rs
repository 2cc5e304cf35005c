//! The options of a sentence's search as they lie in device memory.

/// How a hypothesis' length enters its score.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum LengthPenaltyKind {
    /// 1
    None = 0,
    /// ((5 + length) / 6)^alpha (Wu et al. 2016, eq. 14)
    Gnmt = 1,
    /// length^alpha
    Power = 2,
    /// length^alpha, which divides the word reward, too
    PowerOfAll = 3,
}

/// When a sentence's search ends, once `beam_size` hypotheses have finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum StopKind {
    /// At once.
    First = 0,
    /// When the best live hypothesis, if it ended now, could not beat the worst finished one.
    Heuristic = 1,
    /// When no continuation of any live hypothesis can beat the worst finished one.
    Exact = 2,
    /// When an end of sentence has been the best candidate of a step.
    Top = 3,
}

/// Which candidates of a step count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum FinishKind {
    /// End of sentence among the first K ranks; of the others as many as make K live ones.
    Replace = 0,
    /// The first ranks alone, as many as beams are alive: what finishes leaves one beam less.
    Shrink = 1,
}

/// How a slot picks its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Strategy {
    /// The best continuations of all live beams.
    Beam = 0,
    /// Each live beam is a sample of its own, which takes what [`SamplePick`](super::SamplePick) says.
    Sample = 1,
}

/// The most models and sources that one step can read: as many as [`SlotOptions::ensemble`] has weights.
pub const MAX_SCORERS: usize = 8;

/// One sentence's search options as they lie in device memory; all zero beyond `src_len` is plain beam search.
#[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct SlotOptions {
    /// Beams of this sentence, 1..=the session's.
    pub beam_size: u32,
    /// A [`LengthPenaltyKind`].
    pub length_penalty: u32,
    /// Exponent of the length penalty.
    pub alpha: f32,
    /// Weight of the coverage penalty; 0 switches it off.
    pub coverage_penalty: f32,
    /// Added to the score per generated token.
    pub word_reward: f32,
    /// A [`StopKind`].
    pub stop: u32,
    /// Generated tokens, end of sentence included, before which end of sentence is masked.
    pub min_len: u32,
    /// Generated tokens, end of sentence included, at which only end of sentence is allowed.
    pub max_len: u32,
    /// 1: end of sentence at `max_len` enters the search score with log-probability 0.
    pub forced_eos: u32,
    /// 1: the first token, which the prefix gives, enters the search score with log-probability 0.
    pub free_first: u32,
    /// 1: what is ranked is normalised over the tokens that masks leave.
    pub renormalize: u32,
    /// Source tokens, end of sentence included.
    pub src_len: u32,
    /// A [`Strategy`].
    pub strategy: u32,
    /// 1: at `max_len` any token is allowed, and live hypotheses end as they are, truncated, without end of sentence.
    pub cut: u32,
    /// Finished hypotheses from which on the stop rule is asked, at most as many as the session has beams; 0: `beam_size`. As
    /// many are kept if they are more.
    pub patience: u32,
    /// A [`FinishKind`].
    pub finish: u32,
    /// 1: [`Search::bans`](super::Search::bans) holds for this slot.
    pub banned: u32,
    /// The first tokens that are given, as [`Search::prefixes`](super::Search::prefixes) has them.
    pub prefix_len: u32,
    /// No sequence of so many tokens is generated twice; 0 switches it off.
    pub no_repeat_ngram: u32,
    /// 1: what ranks is [`Search::ranked`](super::Search::ranked), not the model's own distribution.
    pub ranked: u32,
    /// What the negative ranked log-probability of a token is multiplied by that has been generated before; 0 and 1 switch it
    /// off (Keskar et al. 2019).
    pub repetition_penalty: f32,
    /// 1: `repetition_penalty` acts on logits. What ranks is then the model's own distribution, and renormalised.
    pub penalizes_logits: u32,
    /// 1: padding is a token like any other; otherwise it is never taken.
    pub takes_pad: u32,
    /// 1: the decoder start token counts as generated before for `no_repeat_ngram` and `repetition_penalty`.
    pub counts_start: u32,
    /// Contrastive decoding.
    pub contrast: ContrastiveOptions,
    /// Weight of each scorer's log-probability in what ranks; all 0: no ensemble.
    pub ensemble: [f32; 8],
    /// Groups that the beams are split into, each kept apart from those before it (Vijayakumar et al. 2018); 0: one.
    pub groups: u32,
    /// What a token's score loses for each time that an earlier group has taken it at this step.
    pub diversity: f32,
    /// Tokens of the phrases that a hypothesis must contain, in all, as [`Search::constraints`](super::Search::constraints) has
    /// them; 0: none. Bans hold where there are some.
    pub constraints: u32,
    /// What the decoder reads at position 0, plus 1; 0: what the model says.
    pub start: u32,
    /// How samples are drawn.
    pub sampling: SampleOptions,
}

/// How a sample is drawn from a step's distribution.
#[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct SampleOptions {
    /// Lower half of the sentence's seed.
    pub seed_low: u32,
    /// Upper half of the sentence's seed.
    pub seed_high: u32,
    /// Divides the log-probabilities; 0 takes the best token.
    pub temperature: f32,
    /// Tokens that stay, the most probable ones; 0: all.
    pub top_k: u32,
    /// The most probable tokens stay while those before them have less than this mass; 1: all.
    pub top_p: f32,
    /// Tokens below this share of the best one's probability are dropped; 0: none.
    pub min_p: f32,
    /// Tokens below this probability are dropped; 0: none.
    pub epsilon: f32,
}

impl SlotOptions {
    /// What the decoder reads at position 0, where the model says `usual`.
    pub fn start_or(&self, usual: u32) -> u32 {
        if self.start == 0 { usual } else { self.start - 1 }
    }

    /// The length penalty that divides the search score of a hypothesis of `length` tokens.
    pub fn length_penalty_at(&self, length: u32) -> f32 {
        match self.length_penalty {
            kind if kind == LengthPenaltyKind::Gnmt as u32 => ((5.0 + length as f32) / 6.0).powf(self.alpha),
            kind if kind == LengthPenaltyKind::None as u32 => 1.0,
            _ => (length as f32).powf(self.alpha),
        }
    }

    /// The length part of the score of a hypothesis with search score `cum_log_prob`.
    pub fn normalized(&self, cum_log_prob: f32, length: u32) -> f32 {
        let (penalty, reward) = (self.length_penalty_at(length), self.word_reward * length as f32);
        match self.length_penalty == LengthPenaltyKind::PowerOfAll as u32 {
            true => (cum_log_prob + reward) / penalty,
            false => cum_log_prob / penalty + reward,
        }
    }

    /// Finished hypotheses that are kept, at most.
    pub fn finished_room(&self) -> u32 {
        self.beam_size.max(self.patience)
    }

    /// Finished hypotheses from which on the stop rule is asked.
    pub fn finished_needed(&self) -> u32 {
        if self.patience == 0 { self.beam_size } else { self.patience }
    }

    /// Candidates of a group that count at a step which starts with `live` hypotheses, `cuts` telling whether it is the last
    /// one, after which hypotheses end as they are.
    pub fn ranks_that_count(&self, step: u32, live: u32, cuts: bool) -> u32 {
        let most = if cuts { self.group_width() } else { 2 * self.group_width() };
        match self.finish == FinishKind::Shrink as u32 {
            // Behind a prefix, of which one hypothesis is left, the beams open again.
            true => most.min(if step <= self.prefix_len { self.beam_size } else { live }),
            false => most,
        }
    }
}

impl SlotOptions {
    /// Whether this slot takes samples.
    pub fn samples(&self) -> bool {
        self.strategy == Strategy::Sample as u32
    }

    /// Beams that live at the start, each of which reads the decoder start token: every sample, or one per group.
    pub fn first_beams(&self) -> u32 {
        if self.samples() { self.beam_size } else { self.groups.max(1) }
    }

    /// Beams of a group.
    pub fn group_width(&self) -> u32 {
        if self.samples() { 1 } else { self.beam_size / self.groups.max(1) }
    }

    /// Whether tokens are penalised for having been generated before.
    pub fn penalizes_repetition(&self) -> bool {
        self.repetition_penalty != 0.0 && self.repetition_penalty != 1.0
    }

    /// Beams that each bank has a claim to, the highest one first: an equal share, and what is left to the highest.
    pub fn bank_shares(&self) -> impl Iterator<Item = u32> {
        let (banks, beams) = (self.constraints + 1, self.beam_size);
        (0..banks).map(move |i| beams / banks + if i == 0 { beams % banks } else { 0 })
    }

    /// Whether several models are weighed.
    pub fn is_ensemble(&self) -> bool {
        self.ensemble.iter().any(|weight| *weight != 0.0)
    }
}

/// What the sentences of a session ask of a step beside the model and the beam step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Stages {
    /// Bans are to be gathered: [`SearchOps::processors`](super::SearchOps::processors).
    pub bans: bool,
    /// Scorers that are contrasted with the first one, a bit each: [`SearchOps::contrastive`](super::SearchOps::contrastive).
    pub contrast: u32,
    /// Scorers that are to be read beside the first one, a bit each.
    pub scorers: u32,
    /// Samples are to be drawn.
    pub samples: bool,
    /// What ranks is not the model's own distribution.
    pub ranked: bool,
    /// What ranks comes from [`SearchOps::ensemble`](super::SearchOps::ensemble).
    pub mixes: bool,
    /// [`SearchOps::repetition_penalty`](super::SearchOps::repetition_penalty) is asked for.
    pub repetition: bool,
}

impl Stages {
    /// What one sentence asks for.
    pub fn of(options: &SlotOptions) -> Self {
        let contrast = if options.contrast.form == 0 { 0 } else { 1 << options.contrast.scorer };
        let members = options.ensemble.iter().enumerate().filter(|(_, weight)| **weight != 0.0);
        let ensemble = members.fold(0, |scorers, (scorer, _)| scorers | 1 << scorer);
        Stages {
            bans: options.banned != 0,
            contrast,
            scorers: (contrast | ensemble) & !1,
            samples: options.samples(),
            ranked: options.ranked != 0,
            mixes: options.ranked != 0 && contrast == 0,
            repetition: options.ranked != 0 && options.penalizes_repetition(),
        }
    }

    /// All of it in one number.
    pub fn bits(self) -> u32 {
        let flags = [self.bans, self.samples, self.ranked, self.mixes, self.repetition];
        let flags = flags.iter().enumerate().fold(0, |bits, (i, flag)| bits | u32::from(*flag) << i);
        flags | self.scorers << 8 | self.contrast << 16
    }

    /// What two sentences ask for together.
    pub fn union(self, other: Self) -> Self {
        Stages {
            bans: self.bans || other.bans,
            contrast: self.contrast | other.contrast,
            scorers: self.scorers | other.scorers,
            samples: self.samples || other.samples,
            ranked: self.ranked || other.ranked,
            mixes: self.mixes || other.mixes,
            repetition: self.repetition || other.repetition,
        }
    }
}

/// How an expert's logits z_e and an amateur's z_a become the distribution that a step ranks: log_softmax(s).
///
/// p are their probabilities; V_head = { v : z_e(v) - max z_e >= log(mask) }; s is -infinity outside of V_head where a form has
/// one, and wherever z_e is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[repr(u32)]
pub enum ContrastiveForm {
    /// z_e - weight * z_a, without V_head.
    #[serde(alias = "seed")]
    Logits = 1,
    /// log p_e - weight * log p_a on V_head (Li et al. 2023, eq. 2).
    Li = 2,
    /// (1 + weight) * log p_e - weight * log p_a on V_head (O'Brien & Lewis 2023, eq. 2).
    Obrien = 3,
    /// log(max(p_e - weight * p_a, 1e-12)) on V_head; p_a is the expert reading another source.
    Source = 4,
}

/// One sentence's contrastive options; all zero: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct ContrastiveOptions {
    /// A [`ContrastiveForm`]; 0 switches it off.
    pub form: u32,
    /// The scorer that is the amateur.
    pub scorer: u32,
    /// How strongly the amateur counts.
    pub weight: f32,
    /// Logarithm of the mask: taken once, so that every backend draws V_head's line at the same place.
    pub log_mask: f32,
    /// Divides the amateur's logits.
    pub temperature: f32,
}

impl ContrastiveOptions {
    /// The options with `log(mask)` in place of the mask; 0 admits every token to V_head. The amateur is scorer 1.
    pub fn new(form: ContrastiveForm, weight: f32, mask: f32, temperature: f32) -> Self {
        let log_mask = f64::from(mask).ln() as f32;
        ContrastiveOptions { form: form as u32, scorer: 1, weight, log_mask, temperature }
    }
}
