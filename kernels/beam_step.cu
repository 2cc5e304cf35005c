// One step of the search in every live slot: log-softmax, cumulative scores, the best 2K of K * V candidates, end of sentence
// and the finished set, histories, ancestry, coverage, the stop rule, and the list of rows that the next step computes. One
// launch, one read of the logits. The contract is `beam_step` in src/backend.rs.
//
// A slot that ranks another distribution reads that as well, for its candidates; a slot that samples reads its picks alone.
//
// Shapes: logits and ranked [rows, vocab_size], rows logits_stride apart, and attention [rows, max_src_len], f32, in the order of
// the row list; bans [rows, ceil(vocab_size / 32)]; the state as in search_state.cuh; per row and chunk of the vocabulary,
// candidates [2K + 1] and stats [2].
// Parallelisation: a block per (live slot, beam, chunk of 32 logits a thread). It keeps its chunk in registers, reduces it to a
// log-sum, and picks the chunk's best 2K: the threads' own maxima give a bar that few others pass. The slot's last block merges
// the chunks and carries out the ranking; the last slot's rebuilds the row list. Blocks beyond the live slots return at once:
// slots end during a launch, but none starts, so it does not matter whether they read the list before or after its rebuild.
// Order: score, then the lower beam * vocab_size + token, whatever the order of blocks. Before the row's normaliser is known a
// chunk can only be ranked by logit. That is the order by score, except that different logits may round to equal scores, and
// the lower index then wins. So each chunk keeps one candidate more, and where that one's score equals the last score that
// is ranked, the slot's last block ranks that chunk again, by score; nothing else is ever read twice.
// Numerics: f32; sums in an order that depends on vocabulary and block size alone, so a slot's bits do not depend on the others.
// Tickets are integers. NaN or +infinity in a row ends its slot, which takes no part from then on.
// Reference: src/cpu/beam_step.rs
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

// Beams first .. end of a slot, which are ranked among themselves; their best go to w.best[at..].
struct Group {
    unsigned first, end, at;
};

// What a block shares among its threads.
struct Workspace {
    float scratch[32];
    Key maxima[MAX_THREADS];
    Key threshold;
    Key best[MAX_KEPT];
    float best_logit[MAX_KEPT];
    float cum[MAX_BEAMS], normalizer[MAX_BEAMS], ranked_normalizer[MAX_BEAMS];
    unsigned count, flag, num_extending, num_finishing, num_picked;
    unsigned origin[MAX_BEAMS];  // where groups count: the beam of the first step that each beam goes back to
    Group group;                 // the one that is being ranked
    unsigned picked[MAX_BEAMS];  // tokens that the groups ranked so far go on with
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

// A block's slot and its step.
struct Step {
    unsigned slot, first_row, live;
    unsigned beams;   // the slot's own
    unsigned width;   // beams of a group
    unsigned before;  // tokens generated so far
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
    const bool at_limit = step.before + 1 >= options.max_len, samples = options.strategy == SAMPLE;
    const bool only_eos = at_limit && options.cut == 0, forced = only_eos && options.forced_eos != 0;
    const bool renormalizes = options.renormalize != 0;
    step.flags = (only_eos ? ONLY_EOS : 0) | (only_eos || step.before + 1 >= options.min_len ? EOS_ALLOWED : 0) |
                 (forced ? FORCED_EOS : 0) |
                 // With nothing else left, renormalising comes to the same.
                 (forced || (only_eos && renormalizes) ? FREE_EOS : 0) | (renormalizes && !only_eos ? RENORMALIZES : 0) |
                 (options.ranked != 0 ? RANKED : 0) | (options.banned != 0 ? BANNED : 0) | (samples ? SAMPLES : 0) |
                 (at_limit && (options.cut != 0 || samples) ? CUTS : 0) | (options.groups > 1 && !samples ? GROUPED : 0);
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

// ---- A chunk ----

// Tokens that the step does not allow become -infinity; not for steps that allow end of sentence only.
__device__ __forceinline__ void mask(const BeamStepArguments& a, const Step& step, unsigned beam, unsigned begin,
                                     float (&x)[CHUNK_ELEMENTS]) {
    const Search& s = a.search;
    const unsigned size = blockDim.x * CHUNK_ELEMENTS;
    if (step.is(BANNED)) {
#pragma unroll
        for (unsigned e = 0; e < CHUNK_ELEMENTS; e += 4) {
            const unsigned token = chunk_index(begin, e);
            const unsigned bans = token < s.vocab_size ? bans_at(a, step, beam, token) : 0;
#pragma unroll
            for (unsigned k = 0; k < 4; ++k) {
                if ((bans >> k & 1) != 0) x[e + k] = -INFINITY;
            }
        }
    }
    if (s.pad_id - begin >= size && (step.is(EOS_ALLOWED) || s.eos_id - begin >= size)) return;
#pragma unroll
    for (unsigned e = 0; e < CHUNK_ELEMENTS; ++e) {
        const unsigned token = chunk_index(begin, e);
        if (token == s.pad_id || (token == s.eos_id && !step.is(EOS_ALLOWED))) x[e] = -INFINITY;
    }
}

// candidates = end of sentence, if it is here. By a whole block.
__device__ __forceinline__ void select_eos(const BeamStepArguments& a, const Step& step, unsigned beam, unsigned begin,
                                           const float (&x)[CHUNK_ELEMENTS], Key* candidates) {
    const Search& s = a.search;
    const bool is_here = s.eos_id - begin < blockDim.x * CHUNK_ELEMENTS;
    for (unsigned i = threadIdx.x + is_here; i <= step.kept(); i += blockDim.x) candidates[i] = 0;
#pragma unroll
    for (unsigned e = 0; e < CHUNK_ELEMENTS; ++e) {
        if (chunk_index(begin, e) != s.eos_id) continue;
        const Key forced = static_cast<Key>(ordered_bits(x[e])) << 32 | static_cast<unsigned>(~s.eos_id);
        const bool banned = step.is(BANNED) && (bans_at(a, step, beam, s.eos_id) & 1) != 0;
        candidates[0] = step.is(FORCED_EOS) ? forced : banned ? 0 : make_key(x[e], s.eos_id);
    }
}

// candidates[0..kept) = the best of the block's numbers, sorted, 0 where there are no more; candidates[kept] = a bound of what
// was left out. By a whole block.
__device__ __forceinline__ void select_chunk(const KeyPool& pool, unsigned begin, unsigned kept,
                                             const float (&x)[CHUNK_ELEMENTS], Key* candidates) {
    float best = -INFINITY;
    unsigned best_index = 0;
#pragma unroll
    for (unsigned e = 0; e < CHUNK_ELEMENTS; ++e) {
        if (x[e] > best) best = x[e], best_index = chunk_index(begin, e);
    }
    const unsigned need = kept < blockDim.x ? kept + 1 : kept == blockDim.x ? kept : 0;
    const Key threshold = nth_best(pool, make_key(best, best_index), need);
    const float bar = threshold == 0 ? -INFINITY : key_number(threshold);
#pragma unroll
    for (unsigned e = 0; e < CHUNK_ELEMENTS; ++e) {
        if (!(x[e] >= bar)) continue;
        const Key key = make_key(x[e], chunk_index(begin, e));
        if (key != 0 && key >= threshold) offer(pool, key);
    }
    __syncthreads();
    const unsigned count = *pool.count;
    sort_best(pool.keys, count, kept + 1, candidates);
    // Where just `kept` passed the bar, the number next to it is the best that may have been left out.
    const Key bound = threshold == 0 ? 0 : threshold - (static_cast<Key>(1) << 32);
    for (unsigned i = count + threadIdx.x; i <= kept; i += blockDim.x) candidates[i] = i == kept ? bound : 0;
}

__device__ __forceinline__ void rank_chunk(const BeamStepArguments& a, const Step& step, unsigned beam, unsigned chunk,
                                           Workspace& w, Key* keys) {
    const unsigned begin = chunk * blockDim.x * CHUNK_ELEMENTS;
    float x[CHUNK_ELEMENTS];
    load_chunk(logits_of(a, step, beam), begin, a.search.vocab_size, a.vectorized != 0, x);
    const LogSum all = chunk_log_sum(x, w.scratch);
    const std::size_t part = part_at(a, step, beam * a.chunks + chunk);
    if (threadIdx.x == 0) a.stats[2 * part] = all;
    if (step.is(RANKED)) load_chunk(ranked_of(a, step, beam), begin, a.search.vocab_size, a.vectorized != 0, x);
    if (step.is(ONLY_EOS)) {
        select_eos(a, step, beam, begin, x, candidates_of(a, part));
        return;
    }
    mask(a, step, beam, begin, x);
    if (step.is(RENORMALIZES)) {
        const LogSum left = chunk_log_sum(x, w.scratch);
        if (threadIdx.x == 0) a.stats[2 * part + 1] = left;
    }
    select_chunk(make_pool(a, w, keys), begin, step.kept(), x, candidates_of(a, part));
}

// ---- The slot's ranking ----

// The first beam whose normaliser is NaN or +infinity, or `live`.
__device__ __forceinline__ unsigned first_bad(const Step& step, const Workspace& w) {
    unsigned bad = 0;
    while (bad < step.live && w.normalizer[bad] < INFINITY) ++bad;
    return bad;
}

// The normalisers of the slot's beams; the first beam whose logits were not finite, or `live`.
__device__ __forceinline__ unsigned load_beams(const BeamStepArguments& a, const Step& step, Workspace& w) {
    const unsigned lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE, warps = blockDim.x / WARP_SIZE;
    for (unsigned beam = warp; beam < step.live; beam += warps) {
        const LogSum* stats = a.stats + 2 * part_at(a, step, beam * a.chunks);
        const float all = merge_log_sums(stats, a.chunks, 2);
        const float unmasked = step.is(RANKED) ? 0.0f : all;
        const float left = step.is(RENORMALIZES) ? merge_log_sums(stats + 1, a.chunks, 2) : unmasked;
        if (lane != 0) continue;
        // A row that cannot be ranked is NaN throughout.
        w.normalizer[beam] = step.is(RANKED) && isnan(*ranked_of(a, step, beam)) ? NAN : all;
        w.ranked_normalizer[beam] = left;
        w.cum[beam] = a.search.cum_log_probs[step.slot * a.search.beams + beam];
    }
    __syncthreads();
    return first_bad(step, w);
}

__device__ __forceinline__ float score_of(const Step& step, const Workspace& w, unsigned beam, float logit) {
    return w.cum[beam] + (step.is(FREE_EOS) ? 0.0f : logit - w.ranked_normalizer[beam]);
}

// What a token's score loses because earlier groups go on with it.
__device__ __forceinline__ float penalty_of(const BeamStepArguments& a, const Step& step, const Workspace& w, unsigned token) {
    unsigned times = 0;
    for (unsigned i = 0; i < w.num_picked; ++i) times += w.picked[i] == token;
    return __fmul_rn(a.search.options[step.slot].diversity, static_cast<float>(times));
}

// Candidate i of the group's parts as (score, flat index).
__device__ __forceinline__ Key score_key(const BeamStepArguments& a, const Step& step, const Workspace& w,
                                         unsigned i) {
    const unsigned part = w.group.first * a.chunks + i / step.kept(), beam = part / a.chunks;
    const Key key = candidates_of(a, part_at(a, step, part))[i % step.kept()];
    if (key == 0 || w.normalizer[beam] == -INFINITY) return 0;
    float score = score_of(step, w, beam, key_number(key));
    if (step.is(GROUPED)) score = __fadd_rn(score, -penalty_of(a, step, w, key_index(key)));
    return make_key(score, beam * a.search.vocab_size + key_index(key));
}

// The best of all the group's parts, sorted; returns how many. By a whole block.
__device__ __forceinline__ unsigned merge(const BeamStepArguments& a, const Step& step, Workspace& w, Key* keys) {
    const KeyPool pool = make_pool(a, w, keys);
    const unsigned total = (w.group.end - w.group.first) * a.chunks * step.kept(), keep = 2 * step.width;
    Key mine = 0;
    for (unsigned i = threadIdx.x; i < total; i += blockDim.x) mine = max(mine, score_key(a, step, w, i));
    const unsigned need = keep <= blockDim.x ? keep : 0;
    Key threshold = nth_best(pool, mine, need);
    const unsigned turns = (total + blockDim.x - 1) / blockDim.x;
    // Where the pool cannot overflow, no turn has to wait for the others.
    const bool may_overflow = (threshold == 0 ? blockDim.x : need) * turns > pool.capacity;
    for (unsigned base = 0; base < total; base += blockDim.x) {
        if (may_overflow) {
            __syncthreads();
            const bool full = *pool.count + blockDim.x > pool.capacity;
            __syncthreads();
            if (full) {
                threshold = shrink(pool, keep, w.best + w.group.at);
                __syncthreads();
            }
        }
        const unsigned i = base + threadIdx.x;
        const Key key = i < total ? score_key(a, step, w, i) : 0;
        if (key != 0 && key >= threshold) offer(pool, key);
    }
    __syncthreads();
    const unsigned count = *pool.count;
    sort_best(pool.keys, count, keep, w.best + w.group.at);
    __syncthreads();
    return min(count, keep);
}

// Whether a part may lack a candidate that ranks: the best that it left out is worth as much as the last that ranks, and its
// tokens come before that one's. What a group before has picked is worth less than it says here; but the part holds more others
// than the group ranks.
__device__ __forceinline__ bool is_ambiguous(const BeamStepArguments& a, const Step& step, const Workspace& w, unsigned part) {
    const Key next = candidates_of(a, part_at(a, step, part))[step.kept()], last = w.best[w.group.at + 2 * step.width - 1];
    const unsigned beam = part / a.chunks, first_token = part % a.chunks * blockDim.x * CHUNK_ELEMENTS;
    if (next == 0 || beam * a.search.vocab_size + first_token >= key_index(last)) return false;
    return ordered_bits(score_of(step, w, beam, key_number(next))) == key_bits(last);
}

// Ranks a part again, by score.
__device__ __forceinline__ void select_again(const BeamStepArguments& a, const Step& step, unsigned part, Workspace& w, Key* keys) {
    const unsigned beam = part / a.chunks, begin = part % a.chunks * blockDim.x * CHUNK_ELEMENTS;
    const float* row = ranked_of(a, step, beam);
    float x[CHUNK_ELEMENTS];
    load_chunk(row, begin, a.search.vocab_size, a.vectorized != 0, x);
    mask(a, step, beam, begin, x);
#pragma unroll
    for (unsigned e = 0; e < CHUNK_ELEMENTS; ++e) x[e] = score_of(step, w, beam, x[e]);
    Key* candidates = candidates_of(a, part_at(a, step, part));
    select_chunk(make_pool(a, w, keys), begin, step.kept(), x, candidates);
    __syncthreads();
    // What is kept is known by its logit, as before; and this time nothing is missing.
    for (unsigned i = threadIdx.x; i <= step.kept(); i += blockDim.x) {
        const unsigned token = key_index(candidates[i]);
        candidates[i] = i == step.kept() || candidates[i] == 0 ? 0 : make_key(__ldg(row + token), token);
    }
    __syncthreads();
}

// Ranks again where equal scores hide a candidate; whether there was such a part. By a whole block.
__device__ __forceinline__ bool resolve_ties(const BeamStepArguments& a, const Step& step, Workspace& w, Key* keys) {
    const unsigned parts = w.group.end * a.chunks;
    bool any = false;
    for (unsigned base = w.group.first * a.chunks; base < parts; base += blockDim.x) {
        const unsigned part = base + threadIdx.x;
        const bool ambiguous = part < parts && is_ambiguous(a, step, w, part);
        w.flags[threadIdx.x] = ambiguous;
        if (!__syncthreads_or(ambiguous)) continue;
        any = true;
        for (unsigned t = 0; t < blockDim.x; ++t) {
            if (w.flags[t] != 0) select_again(a, step, base + t, w, keys);
        }
        __syncthreads();
    }
    return any;
}

// Where the group of beams that starts at `first` ends: beams of one group stand side by side.
__device__ __forceinline__ unsigned group_end(const Step& step, const Workspace& w, unsigned first) {
    if (!step.is(GROUPED)) return step.live;
    unsigned end = first + 1;
    while (end < step.live && w.origin[end] == w.origin[first]) ++end;
    return end;
}

// Adds what the group goes on with to what later ones are kept from.
__device__ __forceinline__ void pick(const BeamStepArguments& a, const Step& step, unsigned count, Workspace& w) {
    if (threadIdx.x == 0) {
        unsigned picked = w.num_picked;
        for (unsigned i = 0, live = 0; i < count && live < step.width; ++i) {
            const unsigned token = key_index(w.best[w.group.at + i]) % a.search.vocab_size;
            if (token != a.search.eos_id) w.picked[picked++] = token, ++live;
        }
        w.num_picked = picked;
    }
    __syncthreads();
}

// w.best = the best of each group in turn; returns how many. By a whole block.
__device__ __forceinline__ unsigned rank_groups(const BeamStepArguments& a, const Step& step, Workspace& w, Key* keys) {
    if (step.is(GROUPED)) {
        const std::size_t first = static_cast<std::size_t>(step.slot) * a.search.beams;
        for (unsigned beam = threadIdx.x; beam < step.live; beam += blockDim.x)
            w.origin[beam] = step.before == 0 ? beam : a.search.ancestry[(first + beam) * a.search.max_len];
    }
    if (threadIdx.x == 0) w.num_picked = 0;
    __syncthreads();
    unsigned total = 0;
#pragma unroll 1
    for (unsigned first = 0; first < step.live;) {
        if (threadIdx.x == 0) w.group = Group{first, group_end(step, w, first), total};
        __syncthreads();
        unsigned count = 0;
        // Once more, where the first ranking shows that equal scores hide a candidate.
#pragma unroll 1
        for (unsigned turn = 0; turn < 2; ++turn) {
            count = merge(a, step, w, keys);
            if (count < 2 * step.width || turn == 1 || !resolve_ties(a, step, w, keys)) break;
        }
        if (step.is(GROUPED)) pick(a, step, count, w);
        total += count;
        first = w.group.end;
        __syncthreads();
    }
    return total;
}

// The logits of the ranked candidates, for the model's own log-probabilities.
__device__ __forceinline__ void find_logits(const BeamStepArguments& a, const Step& step, unsigned count, Workspace& w) {
    const unsigned lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE, warps = blockDim.x / WARP_SIZE;
    for (unsigned rank = warp; rank < count; rank += warps) {
        const unsigned flat = key_index(w.best[rank]), beam = flat / a.search.vocab_size, token = flat % a.search.vocab_size;
        if (step.is(RANKED)) {
            if (lane == 0) w.best_logit[rank] = __ldg(logits_of(a, step, beam) + token);
            continue;
        }
        const unsigned chunk = token / (blockDim.x * CHUNK_ELEMENTS);
        const Key* candidates = candidates_of(a, part_at(a, step, beam * a.chunks + chunk));
        for (unsigned i = lane; i < step.kept(); i += WARP_SIZE) {
            if (candidates[i] != 0 && key_index(candidates[i]) == token) w.best_logit[rank] = key_number(candidates[i]);
        }
    }
}

// ---- What follows from the ranking ----

struct Chosen {
    unsigned beam, token;
    float cum_log_prob, log_prob;
};

__device__ __forceinline__ Chosen chosen(const BeamStepArguments& a, const Workspace& w, unsigned rank) {
    const unsigned flat = key_index(w.best[rank]), beam = flat / a.search.vocab_size;
    return Chosen{beam, flat % a.search.vocab_size, key_number(w.best[rank]), w.best_logit[rank] - w.normalizer[beam]};
}

// Whether a sample has no token to go on with.
__device__ __forceinline__ bool ends_as_it_was(const Step& step, const Workspace& w, unsigned rank) {
    return step.is(SAMPLES) && w.best_logit[rank] == -INFINITY;
}

// Splits each group's ranking: end of sentence among the first `width` ranks finishes, the first `width` others live on, and end
// as they are where the slot cuts; a sample without a token ends as it was.
__device__ __forceinline__ void split(const BeamStepArguments& a, const Step& step, unsigned count, Workspace& w) {
    if (threadIdx.x == 0) {
        unsigned extending = 0, finishing = 0;
        unsigned first_rank = 0, first_live = 0;  // of the group
        unsigned group = NO_TOKEN;
        // Ranks of a group that count.
        unsigned taking = step.is(CUTS) ? step.width : 2 * step.width;
        if (a.search.options[step.slot].finish == SHRINK) taking = min(taking, step.before == 0 ? step.beams : step.live);
        for (unsigned rank = 0; rank < count; ++rank) {
            const unsigned flat = key_index(w.best[rank]), beam = flat / a.search.vocab_size;
            unsigned cut_into = NO_TOKEN;
            if (step.is(GROUPED) && w.origin[beam] != group) {
                group = w.origin[beam];
                first_rank = rank;
                first_live = extending;
            }
            if (rank - first_rank >= taking) continue;
            if (flat - beam * a.search.vocab_size != a.search.eos_id && !ends_as_it_was(step, w, rank)) {
                if (extending - first_live >= step.width) continue;
                cut_into = extending;
                w.parents[extending] = beam;
                w.extending[extending++] = rank;
                if (!step.is(CUTS)) continue;
            } else if (rank - first_rank >= step.width) {
                continue;
            }
            w.cut_into[finishing] = cut_into;
            w.finishing[finishing++] = rank;
        }
        w.num_extending = extending;
        w.num_finishing = finishing;
    }
    __syncthreads();
}

// The coverage of a beam after this step at source position i.
__device__ __forceinline__ float covered(const BeamStepArguments& a, const Step& step, unsigned beam, unsigned i) {
    const std::size_t n = a.search.max_src_len;
    const std::size_t row = step.first_row + beam, at = static_cast<std::size_t>(step.slot) * a.search.beams + beam;
    return a.search.coverage[at * n + i] + a.attention[row * n + i];
}

// A beam as it was after the step before, when nothing can follow.
__device__ __forceinline__ Finished as_it_was(const BeamStepArguments& a, const Step& step, const Workspace& w, unsigned beam) {
    const float cum = w.cum[beam], score = normalized(a.search.options[step.slot], cum, max(step.before, 1u));
    return Finished{score, cum, 0.0f, 0.0f, step.before, beam, 0, 1};
}

// The hypothesis that a chosen token ends: an end of sentence, or what becomes live beam `cut_into`; by a whole warp.
__device__ __forceinline__ Finished close(const BeamStepArguments& a, const Step& step, const Workspace& w, unsigned rank,
                                          unsigned cut_into) {
    const Chosen last = chosen(a, w, rank);
    if (ends_as_it_was(step, w, rank)) return as_it_was(a, step, w, last.beam);
    const SlotOptions& options = a.search.options[step.slot];
    const unsigned length = step.before + 1;
    float penalty = 0.0f;
    if (options.coverage_penalty != 0.0f) {
        float sum = 0.0f;
        // The source's own end of sentence asks for no attention.
        for (unsigned i = threadIdx.x % WARP_SIZE; i + 1 < options.src_len; i += WARP_SIZE)
            sum += logf(fminf(fmaxf(covered(a, step, last.beam, i), 1e-6f), 1.0f));
        penalty = options.coverage_penalty * warp_sum(sum);
    }
    const float score = normalized(options, last.cum_log_prob, length) + penalty;
    if (cut_into != NO_TOKEN) return Finished{score, last.cum_log_prob, penalty, 0.0f, length, cut_into, 0, 1};
    const unsigned has_eos = rank == 0 && !step.is(SAMPLES) ? 2u : 1u;
    return Finished{score, last.cum_log_prob, penalty, last.log_prob, length, last.beam, has_eos, step.is(ONLY_EOS) ? 1u : 0u};
}

// Merges what finishes into the slot's finished set; returns its size. By a whole block.
__device__ __forceinline__ unsigned finish(const BeamStepArguments& a, const Step& step, Workspace& w) {
    const Search& s = a.search;
    const unsigned lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE, warps = blockDim.x / WARP_SIZE;
    Finished* finished = s.finished + static_cast<std::size_t>(step.slot) * s.beams;
    const unsigned old = s.finished_count[step.slot], room = max(step.beams, s.options[step.slot].patience);
    for (unsigned i = threadIdx.x; i < old; i += blockDim.x) w.finished[i] = finished[i];
    for (unsigned i = warp; i < w.num_finishing; i += warps) {
        const Finished entry = close(a, step, w, w.finishing[i], w.cut_into[i]);
        if (lane == 0) w.finished[old + i] = entry;
    }
    unsigned count = old + w.num_finishing;
    if (count == 0 && w.num_extending == 0) {
        // Masks have left no candidate at all: the best beam of the step before is what there is.
        if (threadIdx.x == 0) w.finished[0] = as_it_was(a, step, w, 0);
        count = 1;
    }
    __syncthreads();
    for (unsigned i = threadIdx.x; i < count; i += blockDim.x) {
        const float score = w.finished[i].score;
        unsigned rank = 0;
        for (unsigned j = 0; j < count; ++j) rank += w.finished[j].score > score || (w.finished[j].score == score && j < i);
        if (rank < room) finished[rank] = w.finished[i];
    }
    __syncthreads();
    return min(count, room);
}

// rows[beam, 0..width) = what load(parent of beam, i) gave before: in place, through shared memory. By a whole block.
template <typename Value, typename Load>
__device__ __forceinline__ void inherit(Value* rows, unsigned stride, unsigned width, unsigned live, const Workspace& w,
                                        Value* tile, unsigned tile_size, Load load) {
    const unsigned columns = tile_size / live;
    for (unsigned begin = 0; begin < width; begin += columns) {
        const unsigned n = min(columns, width - begin);
        for (unsigned i = threadIdx.x; i < live * n; i += blockDim.x) tile[i] = load(i / n, begin + i % n);
        __syncthreads();
        for (unsigned i = threadIdx.x; i < w.num_extending * n; i += blockDim.x)
            rows[static_cast<std::size_t>(i / n) * stride + begin + i % n] = tile[w.parents[i / n] * n + i % n];
        __syncthreads();
    }
}

// Histories, ancestry and coverage of the beams that live on. By a whole block.
__device__ __forceinline__ void extend(const BeamStepArguments& a, const Step& step, const Workspace& w, Key* keys) {
    const Search& s = a.search;
    const std::size_t first = static_cast<std::size_t>(step.slot) * s.beams, at = history_at(s, step.slot, step.before);
    if (s.kept_attention != nullptr) {
        const float* from = a.attention + static_cast<std::size_t>(step.first_row) * s.max_src_len;
        for (unsigned i = threadIdx.x; i < step.live * s.max_src_len; i += blockDim.x)
            s.kept_attention[at * s.max_src_len + i] = from[i];
    }
    // Two words a key.
    const unsigned tile_size = 2 * a.capacity;
    unsigned* ancestry = s.ancestry + first * s.max_len;
    inherit(ancestry, s.max_len, step.before, step.live, w, reinterpret_cast<unsigned*>(keys), tile_size,
            [&](unsigned beam, unsigned t) { return ancestry[static_cast<std::size_t>(beam) * s.max_len + t]; });
    inherit(s.coverage + first * s.max_src_len, s.max_src_len, s.max_src_len, step.live, w, reinterpret_cast<float*>(keys),
            tile_size, [&](unsigned beam, unsigned i) { return covered(a, step, beam, i); });
    for (unsigned beam = threadIdx.x; beam < w.num_extending; beam += blockDim.x) {
        const Chosen next = chosen(a, w, w.extending[beam]);
        s.tokens[at + beam] = next.token;
        s.parents[at + beam] = next.beam;
        s.log_probs[at + beam] = next.log_prob;
        s.cum_log_probs[first + beam] = next.cum_log_prob;
        ancestry[static_cast<std::size_t>(beam) * s.max_len + step.before] = next.beam;
    }
}

// Puts what the slot's samples have drawn where a ranking stands, one per live beam; the first beam that cannot be ranked, or
// `live`. By a whole block.
__device__ __forceinline__ unsigned take_picks(const BeamStepArguments& a, const Step& step, Workspace& w) {
    const Search& s = a.search;
    const std::size_t first = static_cast<std::size_t>(step.slot) * s.beams;
    for (unsigned beam = threadIdx.x; beam < step.live; beam += blockDim.x) {
        const SamplePick pick = s.picks[first + beam];
        const bool is_there = pick.token != NO_TOKEN;
        const float cum = s.cum_log_probs[first + beam];
        w.cum[beam] = cum;
        w.best[beam] = static_cast<Key>(ordered_bits(is_there ? cum + pick.ranked_log_prob : cum)) << 32 |
                       static_cast<unsigned>(~(beam * s.vocab_size + (is_there ? pick.token : 0)));
        w.best_logit[beam] = pick.log_prob;
        // As for a ranking: what is neither below +infinity cannot be ranked, and is not subtracted from anything.
        w.normalizer[beam] = is_there || pick.log_prob == -INFINITY ? 0.0f : pick.log_prob;
    }
    __syncthreads();
    return first_bad(step, w);
}

// The slot's step, all its chunks being done. By a whole block.
__device__ __forceinline__ void take_step(const BeamStepArguments& a, const Step& step, Workspace& w, Key* keys) {
    const Search& s = a.search;
    const unsigned bad = step.is(SAMPLES) ? take_picks(a, step, w) : load_beams(a, step, w);
    if (bad < step.live) {
        if (threadIdx.x != 0) return;
        const unsigned value = isnan(w.normalizer[bad]) ? 0x7FC00000u : 0x7F800000u;
        s.failures[step.slot] = Failure{1, step.before + 1, bad, value};
        s.live[step.slot] = 0;
        return;
    }
    unsigned count = step.live;
    if (!step.is(SAMPLES)) {
        count = rank_groups(a, step, w, keys);
        find_logits(a, step, count, w);
    }
    split(a, step, count, w);
    const unsigned finished = finish(a, step, w);
    extend(a, step, w, keys);
    if (threadIdx.x != 0) return;
    const SlotOptions& options = s.options[step.slot];
    const Finished* set = s.finished + static_cast<std::size_t>(step.slot) * s.beams;
    bool over = w.num_extending == 0 || step.is(CUTS);
    const unsigned needed = options.patience == 0 ? step.beams : options.patience;
    if (!over && !step.is(SAMPLES) && finished >= needed && options.stop == TOP) {
        over = key_index(w.best[0]) % s.vocab_size == s.eos_id;
        for (unsigned i = 0; i < finished; ++i) over |= set[i].has_eos == 2;
    } else if (!over && !step.is(SAMPLES) && finished >= needed) {
        Key best = w.best[w.extending[0]];
        for (unsigned i = 1; step.is(GROUPED) && i < w.num_extending; ++i) best = max(best, w.best[w.extending[i]]);
        const float best_live = key_number(best);
        over = set[needed - 1].score >= stop_bound(options, best_live, step.before + 1);
    }
    s.finished_count[step.slot] = finished;
    s.step[step.slot] = step.before + 1;
    s.live[step.slot] = over ? 0 : w.num_extending;
}

__device__ void beam_step(const BeamStepArguments& a) {
    DYNAMIC_SHARED(Key, keys);
    SHARED(Workspace, workspace, 1);
    Workspace& w = workspace[0];
    const Search& s = a.search;
    const unsigned chunk = blockIdx.x % a.chunks, beam = blockIdx.x / a.chunks % s.beams;
    const unsigned place = blockIdx.x / a.chunks / s.beams, num_live = *s.num_live;
    if (place >= num_live) return;
    const Step step = make_step(s, place);
    if (beam < step.live && !step.is(SAMPLES)) rank_chunk(a, step, beam, chunk, w, keys);
    // Blocks of beams that do not live count too: they have read `live` before it changes.
    if (!is_last_block(a.tickets + step.slot, a.chunks * s.beams, &w.flag)) return;
    take_step(a, step, w, keys);
    if (!is_last_block(a.ticket, num_live, &w.flag)) return;
    rebuild_rows(s, w.maxima);
}

// ---- Starting ----

struct StartSlotsArguments {
    Search search;
    const unsigned* starts;  // per slot to start: slot, SlotOptions
    unsigned* ticket;        // [1]
    unsigned count;
    unsigned unused;
};

// A block per slot to start; the last one rebuilds the row list.
__device__ void start_slots(const StartSlotsArguments& a) {
    SHARED(Key, scratch, 32);
    SHARED(unsigned, flag, 1);
    const Search& s = a.search;
    constexpr unsigned OPTION_WORDS = sizeof(SlotOptions) / sizeof(unsigned);
    if (blockIdx.x < a.count) {
        const unsigned* start = a.starts + blockIdx.x * (1 + OPTION_WORDS);
        const unsigned slot = start[0];
        unsigned* options = reinterpret_cast<unsigned*>(s.options + slot);
        for (unsigned i = threadIdx.x; i < OPTION_WORDS; i += blockDim.x) options[i] = start[1 + i];
        float* coverage = s.coverage + static_cast<std::size_t>(slot) * s.beams * s.max_src_len;
        for (unsigned i = threadIdx.x; i < s.beams * s.max_src_len; i += blockDim.x) coverage[i] = 0.0f;
        for (unsigned beam = threadIdx.x; beam < s.beams; beam += blockDim.x) s.cum_log_probs[slot * s.beams + beam] = 0.0f;
        __syncthreads();
        if (threadIdx.x == 0) {
            s.live[slot] = s.options[slot].strategy == SAMPLE ? s.options[slot].beam_size : max(s.options[slot].groups, 1u);
            s.failures[slot] = Failure{0, 0, 0, 0};
            s.step[slot] = 0;
            s.finished_count[slot] = 0;
        }
    }
    if (!is_last_block(a.ticket, gridDim.x, flag)) return;
    rebuild_rows(s, scratch);
}

KERNEL_BOUNDED(beam_step_f32, 128, 3, BeamStepArguments, beam_step)
KERNEL(start_slots_f32, 128, StartSlotsArguments, start_slots)
