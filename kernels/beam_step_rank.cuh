// Op beam_step: ranking. A chunk of a row, then what a slot's chunks come to. beam_step.cu says how.
#pragma once

#include "beam_step_state.cuh"

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
    if (step.pad_id - begin >= size && (step.is(EOS_ALLOWED) || s.eos_id - begin >= size)) return;
#pragma unroll
    for (unsigned e = 0; e < CHUNK_ELEMENTS; ++e) {
        const unsigned token = chunk_index(begin, e);
        if (token == step.pad_id || (token == s.eos_id && !step.is(EOS_ALLOWED))) x[e] = -INFINITY;
    }
}

// The tokens of constraints become -infinity: they are looked at one by one.
__device__ __forceinline__ void leave_out_constraints(const BeamStepArguments& a, const Step& step, unsigned begin,
                                                      float (&x)[CHUNK_ELEMENTS]) {
    const Constraints& constraints = a.search.constraints[step.slot];
#pragma unroll 1
    for (unsigned i = 0; i < constraints.num_tokens; ++i) {
        const unsigned token = constraints.tokens[i];
        if (token - begin >= blockDim.x * CHUNK_ELEMENTS) continue;
#pragma unroll
        for (unsigned e = 0; e < CHUNK_ELEMENTS; ++e) {
            if (chunk_index(begin, e) == token) x[e] = -INFINITY;
        }
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
    if (step.is(CONSTRAINED)) leave_out_constraints(a, step, begin, x);
    select_chunk(make_pool(a, w, keys), begin, step.kept(), x, candidates_of(a, part));
}

// ---- The slot's ranking ----

// The first beam whose normaliser is NaN or +infinity, or `live`.
__device__ __forceinline__ unsigned first_bad(const Step& step, const Workspace& w) {
    unsigned bad = 0;
    while (bad < step.live && w.normalizer[bad].max < INFINITY) ++bad;
    return bad;
}

// The normalisers of the slot's beams; the first beam whose logits were not finite, or `live`.
__device__ __forceinline__ unsigned load_beams(const BeamStepArguments& a, const Step& step, Workspace& w) {
    const unsigned lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE, warps = blockDim.x / WARP_SIZE;
    for (unsigned beam = warp; beam < step.live; beam += warps) {
        const LogSum* stats = a.stats + 2 * part_at(a, step, beam * a.chunks);
        const Normalizer all = merge_log_sums(stats, a.chunks, 2);
        const Normalizer unmasked = step.is(RANKED) ? Normalizer{0.0f, 0.0f} : all;
        const Normalizer left = step.is(RENORMALIZES) ? merge_log_sums(stats + 1, a.chunks, 2) : unmasked;
        if (lane != 0) continue;
        // A row that cannot be ranked is NaN throughout.
        w.normalizer[beam] = step.is(RANKED) && isnan(*ranked_of(a, step, beam)) ? Normalizer{NAN, 0.0f} : all;
        w.ranked_normalizer[beam] = left;
        w.cum[beam] = a.search.cum_log_probs[step.slot * a.search.beams + beam];
    }
    __syncthreads();
    return first_bad(step, w);
}

__device__ __forceinline__ float score_of(const Step& step, const Workspace& w, unsigned beam, float logit) {
    return w.cum[beam] + (step.is(FREE_EOS) ? 0.0f : w.ranked_normalizer[beam].log_prob(logit));
}

// What a token's score loses because earlier groups go on with it.
__device__ __forceinline__ float penalty_of(const BeamStepArguments& a, const Step& step, const Workspace& w, unsigned token) {
    unsigned times = 0;
    for (unsigned i = 0; i < w.num_picked; ++i) times += w.picked[i] == token;
    return __fmul_rn(a.search.options[step.slot].diversity, static_cast<float>(times));
}

// Candidates of the group: those of its parts, and of each beam the tokens of constraints.
__device__ __forceinline__ unsigned num_candidates(const BeamStepArguments& a, const Step& step, const Workspace& w) {
    const unsigned tokens = step.is(CONSTRAINED) ? a.search.constraints[step.slot].num_tokens : 0;
    return (w.group.end - w.group.first) * (a.chunks * step.kept() + tokens);
}

// Token i of the constraints of each beam in turn as (score, flat index), and its bank.
__device__ __forceinline__ Key constraint_key(const BeamStepArguments& a, const Step& step, const Workspace& w, unsigned i,
                                              unsigned& bank) {
    const Constraints& constraints = a.search.constraints[step.slot];
    const unsigned beam = i / constraints.num_tokens, place = i % constraints.num_tokens, token = constraints.tokens[place];
    bank = bank_of(a, step, beam, 1 + place);
    if (step.is(ONLY_EOS) || token == step.pad_id || w.normalizer[beam].max == -INFINITY) return 0;
    if (step.is(BANNED) && (bans_at(a, step, beam, token) & 1) != 0) return 0;
    const float value = __ldg(ranked_of(a, step, beam) + token);
    // Where masks leave no other token either, what it would be normalised by is -infinity, too.
    if (value == -INFINITY) return 0;
    return make_key(score_of(step, w, beam, value), beam * a.search.vocab_size + token);
}

// Candidate i of the group's parts as (score, flat index).
__device__ __forceinline__ Key listed_key(const BeamStepArguments& a, const Step& step, const Workspace& w, unsigned i) {
    const unsigned part = w.group.first * a.chunks + i / step.kept(), beam = part / a.chunks;
    const Key key = candidates_of(a, part_at(a, step, part))[i % step.kept()];
    if (key == 0 || w.normalizer[beam].max == -INFINITY) return 0;
    float score = score_of(step, w, beam, key_number(key));
    if (step.is(GROUPED)) score = __fadd_rn(score, -penalty_of(a, step, w, key_index(key)));
    return make_key(score, beam * a.search.vocab_size + key_index(key));
}

// Candidate i of all beams as (score, flat index), and its bank; end of sentence is one in the highest bank alone.
__device__ __forceinline__ Key banked_key(const BeamStepArguments& a, const Step& step, const Workspace& w, unsigned i,
                                          unsigned& bank) {
    const unsigned listed = step.live * a.chunks * step.kept();
    if (i >= listed) return constraint_key(a, step, w, i - listed, bank);
    bank = bank_of(a, step, i / (a.chunks * step.kept()), 0);
    const Key key = listed_key(a, step, w, i);
    const bool ends = key_index(key) % a.search.vocab_size == a.search.eos_id;
    return ends && bank != a.search.options[step.slot].constraints ? 0 : key;
}

// Candidate i of the group as (score, flat index).
__device__ __forceinline__ Key score_key(const BeamStepArguments& a, const Step& step, const Workspace& w, unsigned i) {
    if (!step.is(CONSTRAINED)) return listed_key(a, step, w, i);
    unsigned bank;
    const Key key = banked_key(a, step, w, i, bank);
    return bank == w.group.bank ? key : 0;
}

// The best of all the group's parts, sorted; returns how many. By a whole block.
__device__ __forceinline__ unsigned merge(const BeamStepArguments& a, const Step& step, Workspace& w, Key* keys) {
    const KeyPool pool = make_pool(a, w, keys);
    const unsigned total = num_candidates(a, step, w), keep = w.group.keep;
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
    const Key next = candidates_of(a, part_at(a, step, part))[step.kept()], last = w.best[w.group.at + w.group.keep - 1];
    const unsigned beam = part / a.chunks, first_token = part % a.chunks * blockDim.x * CHUNK_ELEMENTS;
    if (next == 0 || beam * a.search.vocab_size + first_token >= key_index(last)) return false;
    if (step.is(CONSTRAINED) && bank_of(a, step, beam, 0) != w.group.bank) return false;
    return ordered_bits(score_of(step, w, beam, key_number(next))) == key_bits(last);
}

// Ranks a part again, by score.
__device__ __forceinline__ void select_again(const BeamStepArguments& a, const Step& step, unsigned part, Workspace& w, Key* keys) {
    const unsigned beam = part / a.chunks, begin = part % a.chunks * blockDim.x * CHUNK_ELEMENTS;
    const float* row = ranked_of(a, step, beam);
    float x[CHUNK_ELEMENTS];
    load_chunk(row, begin, a.search.vocab_size, a.vectorized != 0, x);
    mask(a, step, beam, begin, x);
    if (step.is(CONSTRAINED)) leave_out_constraints(a, step, begin, x);
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

// w.best[w.group.at..] = the best of the group; returns how many. By a whole block.
__device__ __forceinline__ unsigned rank_group(const BeamStepArguments& a, const Step& step, Workspace& w, Key* keys) {
    unsigned count = 0;
    // Once more, where the first ranking shows that equal scores hide a candidate.
#pragma unroll 1
    for (unsigned turn = 0; turn < 2; ++turn) {
        count = merge(a, step, w, keys);
        if (count < w.group.keep || turn == 1 || !resolve_ties(a, step, w, keys)) break;
    }
    return count;
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
        if (threadIdx.x == 0) w.group = Group{first, group_end(step, w, first), total, 2 * step.width, 0};
        __syncthreads();
        const unsigned count = rank_group(a, step, w, keys);
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
        if (step.is(RANKED) || step.is(CONSTRAINED)) {
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
