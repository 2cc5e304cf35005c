// What the parts of the op beam_step share: its arguments, what a block shares among its threads, a slot and its step.
#pragma once

#include "log_sum_exp.cuh"
#include "search_state.cuh"
#include "top_keys.cuh"

struct BeamStepArguments {
    Search search;
    const float* logits;
    const float* attention;
    Key* candidates;  // of (logit, token), best first; the last is a bound of what was left out, 0 if nothing was
    LogSum* stats;    // of all tokens, and, renormalising, of those that masks leave
    unsigned* tickets;  // [S]
    unsigned* ticket;   // [1]
    unsigned logits_stride;
    unsigned chunks;
    unsigned capacity;    // keys in dynamic shared memory
    unsigned vectorized;  // all rows start at multiples of 16 bytes
};

// Beams first .. end of a slot, which are ranked among themselves; their best `keep` go to w.best[at..].
struct Group {
    unsigned first, end, at, keep;
    unsigned bank;  // where constraints hold: of whose candidates alone
};

// What a block shares among its threads.
struct Workspace {
    float scratch[32];
    Key maxima[MAX_THREADS];
    Key threshold;
    Key best[MAX_KEPT];
    float best_logit[MAX_KEPT];
    float cum[MAX_BEAMS];
    Normalizer normalizer[MAX_BEAMS], ranked_normalizer[MAX_BEAMS];
    unsigned count, flag, num_extending, num_finishing, num_picked;
    unsigned origin[MAX_BEAMS];  // where groups count: the beam of the first step that each beam goes back to
    Group group;                 // the one that is being ranked
    unsigned picked[MAX_BEAMS];  // tokens that the groups ranked so far go on with
    unsigned in_bank[BANK_WORDS], got[BANK_WORDS];  // candidates of each bank, and the beams that it got
    unsigned extending[MAX_BEAMS], finishing[MAX_KEPT];  // ranks
    unsigned cut_into[MAX_KEPT];  // the live beam that a finishing rank becomes, NO_TOKEN for end of sentence
    unsigned parents[MAX_BEAMS];
    unsigned flags[MAX_THREADS];
    Finished finished[3 * MAX_BEAMS];
};

// What a slot may do at a step.
constexpr unsigned EOS_ALLOWED = 1, ONLY_EOS = 2;
constexpr unsigned FORCED_EOS = 4;    // end of sentence is a candidate whatever its logit
constexpr unsigned FREE_EOS = 8;      // end of sentence ranks with log-probability 0
constexpr unsigned RENORMALIZES = 16;
constexpr unsigned RANKED = 32;       // what ranks is not the logits
constexpr unsigned BANNED = 64;
constexpr unsigned SAMPLES = 128;
constexpr unsigned CUTS = 256;        // whatever lives after this step ends as it is
constexpr unsigned GROUPED = 512;     // beams are ranked in groups, one after the other
constexpr unsigned CONSTRAINED = 1024;  // candidates stand in banks

// A block's slot and its step.
struct Step {
    unsigned slot, first_row, live;
    unsigned beams;   // the slot's own
    unsigned width;   // beams of a group
    unsigned before;  // tokens generated so far
    unsigned pad_id;  // padding, which is never taken; NO_TOKEN where it is a token like any other
    unsigned flags;

    // Candidates that are ranked.
    __device__ __forceinline__ unsigned kept() const { return 2 * beams; }
    __device__ __forceinline__ bool is(unsigned flag) const { return (flags & flag) != 0; }
};

__device__ __forceinline__ Step make_step(const Search& s, unsigned place) {
    Step step;
    step.slot = s.live_slots[place];
    step.first_row = s.first_row[place];
    step.live = s.live[step.slot];
    const SlotOptions& options = s.options[step.slot];
    step.beams = options.beam_size;
    step.width = options.beam_size / max(options.groups, 1u);
    step.before = s.step[step.slot];
    step.pad_id = options.takes_pad != 0 ? NO_TOKEN : s.pad_id;
    const bool at_limit = step.before + 1 >= options.max_len, samples = options.strategy == SAMPLE;
    const bool only_eos = at_limit && options.cut == 0, forced = only_eos && options.forced_eos != 0;
    const bool renormalizes = options.renormalize != 0 || (options.free_first != 0 && step.before == 0);
    step.flags = (only_eos ? ONLY_EOS : 0) | (only_eos || step.before + 1 >= options.min_len ? EOS_ALLOWED : 0) |
                 (forced ? FORCED_EOS : 0) |
                 // With nothing else left, renormalising comes to the same.
                 (forced || (only_eos && renormalizes) ? FREE_EOS : 0) | (renormalizes && !only_eos ? RENORMALIZES : 0) |
                 (options.ranked != 0 ? RANKED : 0) | (options.banned != 0 ? BANNED : 0) | (samples ? SAMPLES : 0) |
                 (at_limit && (options.cut != 0 || samples) ? CUTS : 0) | (options.groups > 1 && !samples ? GROUPED : 0) |
                 (options.constraints != 0 ? CONSTRAINED : 0);
    return step;
}

__device__ __forceinline__ const float* logits_of(const BeamStepArguments& a, const Step& step, unsigned beam) {
    return a.logits + static_cast<std::size_t>(step.first_row + beam) * a.logits_stride;
}

// What the candidates of a beam are ranked by.
__device__ __forceinline__ const float* ranked_of(const BeamStepArguments& a, const Step& step, unsigned beam) {
    return (step.is(RANKED) ? a.search.ranked : a.logits) + static_cast<std::size_t>(step.first_row + beam) * a.logits_stride;
}

// 32 bits of the tokens that a beam may not take, from `token` on, a multiple of 4, of which at least 4 count.
__device__ __forceinline__ unsigned bans_at(const BeamStepArguments& a, const Step& step, unsigned beam, unsigned token) {
    const unsigned words = (a.search.vocab_size + 31) / 32;
    return a.search.bans[static_cast<std::size_t>(step.first_row + beam) * words + token / 32] >> token % 32;
}

// Constraint tokens that a beam has met with its next token, by that one's place among the constraints' tokens, from 1; 0 is any
// other token.
__device__ __forceinline__ unsigned bank_of(const BeamStepArguments& a, const Step& step, unsigned beam, unsigned place) {
    return a.search.banks[static_cast<std::size_t>(step.first_row + beam) * BANK_WORDS + place];
}

__device__ __forceinline__ Key* candidates_of(const BeamStepArguments& a, std::size_t part) {
    return a.candidates + part * (2 * a.search.beams + 1);
}

// Which of the slot's parts, a chunk of a beam each, lies where among all.
__device__ __forceinline__ std::size_t part_at(const BeamStepArguments& a, const Step& step, unsigned part) {
    return static_cast<std::size_t>(step.first_row) * a.chunks + part;
}

__device__ __forceinline__ KeyPool make_pool(const BeamStepArguments& a, Workspace& w, Key* keys) {
    return KeyPool{keys, a.capacity, &w.count, w.maxima, &w.threshold};
}
