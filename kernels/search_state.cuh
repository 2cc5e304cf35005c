// The state of a beam search in device memory, as src/backend.rs lays it out, and its list of live rows.
//
// S slots, K beams, T = max_len, N = max_src_len.
#pragma once

#include "common.cuh"
#include "top_keys.cuh"

constexpr unsigned MAX_BEAMS = 64;
constexpr unsigned MAX_KEPT = 2 * MAX_BEAMS;
constexpr unsigned MAX_THREADS = 128;

constexpr unsigned GNMT = 1, POWER = 2, POWER_OF_ALL = 3;  // LengthPenaltyKind
constexpr unsigned FIRST = 0, HEURISTIC = 1, TOP = 3;      // StopKind
constexpr unsigned SHRINK = 1;                             // FinishKind

constexpr unsigned SAMPLE = 1;  // Strategy
constexpr unsigned MAX_SCORERS = 8;
constexpr unsigned MAX_CONSTRAINT_TOKENS = 64, BANK_WORDS = 1 + MAX_CONSTRAINT_TOKENS;
constexpr unsigned NO_TOKEN = 0xFFFFFFFFu;  // SamplePick::NONE

// Mirrors `ContrastiveForm`.
enum ContrastiveForm : unsigned { NO_CONTRAST, LOGITS, LI, OBRIEN, SOURCE };

struct ContrastiveOptions {
    unsigned form;
    unsigned scorer;
    float weight;
    float log_mask;
    float temperature;
};

struct SampleOptions {
    unsigned seed_low;
    unsigned seed_high;
    float temperature;
    unsigned top_k;
    float top_p;
    float min_p;
    float epsilon;
};

struct SamplePick {
    unsigned token;
    float log_prob;
    float ranked_log_prob;
};

struct SlotOptions {
    unsigned beam_size;
    unsigned length_penalty;
    float alpha;
    float coverage_penalty;
    float word_reward;
    unsigned stop;
    unsigned min_len;
    unsigned max_len;
    unsigned forced_eos;
    unsigned free_first;
    unsigned renormalize;
    unsigned src_len;
    unsigned strategy;
    unsigned cut;
    unsigned patience;
    unsigned finish;
    unsigned banned;
    unsigned prefix_len;
    unsigned no_repeat_ngram;
    unsigned ranked;
    float repetition_penalty;
    unsigned penalizes_logits;
    unsigned takes_pad;
    unsigned counts_start;
    ContrastiveOptions contrast;
    float ensemble[MAX_SCORERS];
    unsigned groups;
    float diversity;
    unsigned constraints;
    unsigned start;
    SampleOptions sampling;
};

struct Finished {
    float score;
    float search_log_prob;
    float coverage_penalty;
    float eos_log_prob;
    unsigned length;
    unsigned beam;
    unsigned has_eos;
    unsigned truncated;
};

struct Failure {
    unsigned failed;
    unsigned step;
    unsigned beam;
    unsigned value;  // the bits of a float
};

// The phrases that a hypothesis must contain, one behind the other, and the different tokens in them.
struct Constraints {
    unsigned phrases;
    unsigned num_tokens;
    unsigned ends[MAX_CONSTRAINT_TOKENS];
    unsigned ids[MAX_CONSTRAINT_TOKENS];
    unsigned tokens[MAX_CONSTRAINT_TOKENS];
};

struct Search {
    SlotOptions* options;      // [S]
    unsigned* step;            // [S]
    unsigned* live;            // [S]
    float* cum_log_probs;      // [S, K]
    unsigned* tokens;          // [S, T, K]
    unsigned* parents;         // [S, T, K]
    float* log_probs;          // [S, T, K]
    unsigned* ancestry;        // [S, K, T]
    float* coverage;           // [S, K, N]
    float* kept_attention;     // [S, T, K, N] or null
    Finished* finished;        // [S, K]
    unsigned* finished_count;  // [S]
    Failure* failures;         // [S]
    uint4* rows;               // [S * K] (slot, beam, position, token)
    unsigned* row_count;       // [1]
    unsigned* live_slots;      // [S], of which the first *num_live count, ascending
    unsigned* first_row;       // [S]: where the rows of live_slots[i] start
    unsigned* num_live;        // [1]
    const float* ranked;       // [rows, logits stride] or null
    const unsigned* bans;      // [rows, ban_words] or null
    const SamplePick* picks;   // [S, K] or null
    const Constraints* constraints;  // [S] or null
    const unsigned* banks;     // [rows, BANK_WORDS] or null: of any other token, and of each of the constraints' tokens
    unsigned slots;
    unsigned beams;
    unsigned max_len;
    unsigned max_src_len;
    unsigned vocab_size;
    unsigned eos_id;
    unsigned pad_id;
    unsigned decoder_start_id;
};

// Where step `step` of a slot starts in what is [S, T, K].
__device__ __forceinline__ std::size_t history_at(const Search& s, unsigned slot, unsigned step) {
    return (static_cast<std::size_t>(slot) * s.max_len + step) * s.beams;
}

// What the decoder of a slot reads at position 0.
__device__ __forceinline__ unsigned start_of(const Search& s, unsigned slot) {
    const unsigned own = s.options[slot].start;
    return own != 0 ? own - 1 : s.decoder_start_id;
}

// What divides the search score of a hypothesis of `length` tokens.
__device__ __forceinline__ float length_penalty_at(const SlotOptions& options, unsigned length) {
    if (options.length_penalty == GNMT) return powf((5.0f + static_cast<float>(length)) / 6.0f, options.alpha);
    if (options.length_penalty >= POWER) return powf(static_cast<float>(length), options.alpha);
    return 1.0f;
}

// The length part of a score.
__device__ __forceinline__ float normalized(const SlotOptions& options, float cum_log_prob, unsigned length) {
    const float penalty = length_penalty_at(options, length), reward = options.word_reward * static_cast<float>(length);
    return options.length_penalty == POWER_OF_ALL ? (cum_log_prob + reward) / penalty : cum_log_prob / penalty + reward;
}

// What no live hypothesis is taken to exceed, `length` tokens being generated; -infinity stops at once.
__device__ __forceinline__ float stop_bound(const SlotOptions& options, float best_live, unsigned length) {
    if (options.stop == FIRST) return -INFINITY;
    if (options.stop == HEURISTIC) return normalized(options, best_live, length);
    // A negative exponent makes longer hypotheses worse, a negative reward likewise: the bound is then the shortest.
    const float divided = best_live / length_penalty_at(options, options.alpha >= 0.0f ? options.max_len : length);
    return divided + options.word_reward * static_cast<float>(options.word_reward > 0.0f ? options.max_len : length);
}

// Lists the live slots, and the live beams of all slots by slot, then beam, each with its latest token. By one block;
// `scratch`: 32 keys of shared memory.
__device__ inline void rebuild_rows(const Search& s, Key* scratch) {
    const unsigned lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE, warps = blockDim.x / WARP_SIZE;
    Key before_all = 0;  // rows in the lower half, slots in the upper: one scan adds up both
    for (unsigned base = 0; base < s.slots; base += blockDim.x) {
        const unsigned slot = base + threadIdx.x, live = slot < s.slots ? s.live[slot] : 0;
        const Key mine = static_cast<Key>(live != 0) << 32 | live;
        Key up_to = mine;
#pragma unroll
        for (unsigned distance = 1; distance < WARP_SIZE; distance *= 2) {
            const Key other = __shfl_up_sync(FULL_WARP, up_to, distance);
            if (lane >= distance) up_to += other;
        }
        if (lane == WARP_SIZE - 1) scratch[warp] = up_to;
        __syncthreads();
        for (unsigned w = 0; w < warp; ++w) up_to += scratch[w];
        const Key before = before_all + up_to - mine;
        for (unsigned w = 0; w < warps; ++w) before_all += scratch[w];
        __syncthreads();
        if (live == 0) continue;
        const unsigned row = static_cast<unsigned>(before), step = s.step[slot];
        s.live_slots[before >> 32] = slot;
        s.first_row[before >> 32] = row;
        const unsigned* tokens = step == 0 ? nullptr : s.tokens + history_at(s, slot, step - 1);
        const unsigned start = start_of(s, slot);
        for (unsigned beam = 0; beam < live; ++beam)
            s.rows[row + beam] = make_uint4(slot, beam, step, tokens == nullptr ? start : tokens[beam]);
    }
    if (threadIdx.x != 0) return;
    *s.row_count = static_cast<unsigned>(before_all);
    *s.num_live = static_cast<unsigned>(before_all >> 32);
}
