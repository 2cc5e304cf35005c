// What a row's history says about its next token.
//   processors_u32: bans[row, :] = a bit for each token that the row may not take: those that are always banned in its slot, those
//     that would repeat an n-gram, and those that would complete a banned sequence; within a given prefix all but its next token.
//     banks[row, :] = the constraint tokens that are met with the next one, if it is none of the constraints' tokens, and for each
//     of these; end of sentence is banned until all are.
//   processors_repetition_f32: ranked[row, v] is multiplied by the penalty (divided, if not negative) for each v generated
//     before; or logits[row, v] is, and ranked[row, v] moves with it.
// Where the slot says so, the decoder start token counts as the first that was generated: for n-grams and the penalty, not for
// banned sequences and banks. Rows of slots that ask for neither are left alone.
//
// Shapes: the state as in search_state.cuh; bans [rows, words], always [S, words] with words = ceil(vocab_size / 32); prefixes
// [S, T]; banks [rows, BANK_WORDS]; sequences [S, sequence_words]: how many there are, where each ends among the ids, and the ids;
// ranked, logits [rows, stride].
// Parallelisation: a block per row. History lies in shared memory: the token at each position is that of the beam that the ancestry
// table names, so all are read at once. Threads take positions, then sequences, in turn; for banks positions, then tokens.
// Numerics: integers, but for one product per token and what it changes; each token is penalised once, by the thread of its first
// occurrence.
// Reference: src/cpu/processors.rs
#include "search_state.cuh"

struct ProcessorsArguments {
    Search search;
    unsigned* bans;
    unsigned* banks;
    const unsigned* always;
    const unsigned* prefixes;
    const unsigned* sequences;
    unsigned bucket;
    unsigned sequence_words;
};

struct RepetitionArguments {
    Search search;
    float* ranked;
    const float* logits;
    unsigned bucket;
    unsigned stride;
};

// history[start..start + step) = the tokens that the row's beam has generated, behind the decoder start token where `start` is 1;
// returns how many there are. By a whole block.
__device__ __forceinline__ unsigned load_history(const Search& s, const uint4& row, unsigned start, unsigned* history) {
    const unsigned slot = row.x, beam = row.y, step = row.z;
    // The beam that holds position t read the token generated before it.
    const unsigned* ancestry = s.ancestry + (static_cast<std::size_t>(slot) * s.beams + beam) * s.max_len;
    for (unsigned t = threadIdx.x; t < step; t += blockDim.x)
        history[start + t] = s.tokens[history_at(s, slot, t) + (t + 1 < step ? ancestry[t + 1] : beam)];
    if (threadIdx.x == 0 && start != 0) history[0] = start_of(s, slot);
    __syncthreads();
    return start + step;
}

// Whether the last `count` of the history's `step` tokens are these.
__device__ __forceinline__ bool ends_with(const unsigned* history, unsigned step, const unsigned* tokens, unsigned count) {
    for (unsigned i = 0; i < count; ++i) {
        if (history[step - count + i] != tokens[i]) return false;
    }
    return true;
}

__device__ __forceinline__ void ban(unsigned* bans, unsigned token) { atomicOr(bans + token / 32, 1u << token % 32); }

// Writes a row's banks; whether all constraints are met. By a whole block; `met`: a word of shared memory per phrase.
__device__ __forceinline__ bool fill_banks(const Constraints& c, const unsigned* history, unsigned step, unsigned* met,
                                           unsigned* banks) {
    for (unsigned p = threadIdx.x; p < c.phrases; p += blockDim.x) met[p] = 0;
    __syncthreads();
    for (unsigned end = 1 + threadIdx.x; end <= step; end += blockDim.x) {
        for (unsigned p = 0, begin = 0; p < c.phrases; begin = c.ends[p++]) {
            const unsigned length = c.ends[p] - begin;
            if (length <= end && ends_with(history, end, c.ids + begin, length)) atomicOr(met + p, 1u);
        }
    }
    __syncthreads();
    bool all = true;
    for (unsigned p = 0; p < c.phrases; ++p) all &= met[p] != 0;
    for (unsigned i = threadIdx.x; i <= c.num_tokens; i += blockDim.x) {
        const unsigned token = i == 0 ? NO_TOKEN : c.tokens[i - 1];
        unsigned bank = 0;
        for (unsigned p = 0, begin = 0; p < c.phrases; begin = c.ends[p++]) {
            const unsigned* ids = c.ids + begin;
            unsigned most = c.ends[p] - begin;
            // The most of its first tokens, the last of them the next one, that history ends with.
            while (met[p] == 0 && most > 0 &&
                   (ids[most - 1] != token || most - 1 > step || !ends_with(history, step, ids, most - 1)))
                --most;
            bank += most;
        }
        banks[i] = bank;
    }
    return all;
}

__device__ void processors(const ProcessorsArguments& a) {
    DYNAMIC_SHARED(unsigned, history);  // [max_len]: the last step is not followed by another
    SHARED(unsigned, met, MAX_CONSTRAINT_TOKENS);
    const Search& s = a.search;
    if (blockIdx.x >= a.bucket || blockIdx.x >= *s.row_count) return;
    const uint4 row = s.rows[blockIdx.x];
    const unsigned slot = row.x, step = row.z, words = (s.vocab_size + 31) / 32;
    const SlotOptions& options = s.options[slot];
    if (options.banned == 0) return;
    unsigned* bans = a.bans + static_cast<std::size_t>(blockIdx.x) * words;
    bool may_end = true;
    if (options.constraints != 0) {
        load_history(s, row, 0, history);
        may_end = fill_banks(s.constraints[slot], history, step, met, a.banks + static_cast<std::size_t>(blockIdx.x) * BANK_WORDS);
    }
    if (step < options.prefix_len) {
        const unsigned token = a.prefixes[static_cast<std::size_t>(slot) * s.max_len + step];
        for (unsigned w = threadIdx.x; w < words; w += blockDim.x) bans[w] = w == token / 32 ? ~(1u << token % 32) : ~0u;
        return;
    }
    const unsigned* always = a.always + static_cast<std::size_t>(slot) * words;
    for (unsigned w = threadIdx.x; w < words; w += blockDim.x) bans[w] = always[w];
    __syncthreads();
    const unsigned start = options.counts_start != 0 ? 1 : 0, seen = load_history(s, row, start, history);
    if (!may_end && threadIdx.x == 0) ban(bans, s.eos_id);

    const unsigned n = options.no_repeat_ngram;
    for (unsigned first = threadIdx.x; n > 0 && first + n <= seen; first += blockDim.x) {
        if (ends_with(history, seen, history + first, n - 1)) ban(bans, history[first + n - 1]);
    }
    const unsigned* sequences = a.sequences + static_cast<std::size_t>(slot) * a.sequence_words;
    const unsigned count = sequences[0];
    const unsigned *ends = sequences + 1, *ids = ends + count;
    for (unsigned i = threadIdx.x; i < count; i += blockDim.x) {
        const unsigned begin = i == 0 ? 0 : ends[i - 1], before = ends[i] - begin - 1;
        if (before <= step && ends_with(history, seen, ids + begin, before)) ban(bans, ids[ends[i] - 1]);
    }
}

__device__ void processors_repetition(const RepetitionArguments& a) {
    DYNAMIC_SHARED(unsigned, history);  // [max_len]
    const Search& s = a.search;
    if (blockIdx.x >= a.bucket || blockIdx.x >= *s.row_count) return;
    const uint4 row = s.rows[blockIdx.x];
    const float penalty = s.options[row.x].repetition_penalty;
    const unsigned start = s.options[row.x].counts_start != 0 ? 1 : 0;
    const bool penalizes_logits = s.options[row.x].penalizes_logits != 0;
    if (penalty == 0.0f || penalty == 1.0f) return;
    const unsigned seen = load_history(s, row, start, history);
    const std::size_t at = static_cast<std::size_t>(blockIdx.x) * a.stride;
    float* ranked = a.ranked + at;
    for (unsigned t = threadIdx.x; t < seen; t += blockDim.x) {
        bool is_first = true;
        for (unsigned earlier = 0; is_first && earlier < t; ++earlier) is_first = history[earlier] != history[t];
        if (!is_first) continue;
        const float before = ranked[history[t]], value = penalizes_logits ? a.logits[at + history[t]] : before;
        const float penalized = value < 0.0f ? value * penalty : value / penalty;
        // No penalty moves -infinity, and the difference would be NaN.
        if (penalizes_logits && value == -INFINITY) continue;
        ranked[history[t]] = penalizes_logits ? before + (penalized - value) : penalized;
    }
}

KERNEL(processors_u32, 256, ProcessorsArguments, processors)
KERNEL(processors_repetition_f32, 256, RepetitionArguments, processors_repetition)

LAYOUT(FIELDS(ProcessorsArguments, search, bans, banks, always, prefixes, sequences, bucket, sequence_words)
       FIELDS(RepetitionArguments, search, ranked, logits, bucket, stride))
