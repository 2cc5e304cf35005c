// Op beam_step: what follows from a ranking: histories, ancestry, coverage, the finished set.
#pragma once

#include "beam_step_state.cuh"

struct Chosen {
    unsigned beam, token;
    float cum_log_prob, log_prob;
};

__device__ __forceinline__ Chosen chosen(const BeamStepArguments& a, const Workspace& w, unsigned rank) {
    const unsigned flat = key_index(w.best[rank]), beam = flat / a.search.vocab_size;
    return Chosen{beam, flat % a.search.vocab_size, key_number(w.best[rank]), w.normalizer[beam].log_prob(w.best_logit[rank])};
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
        const auto& options = a.search.options[step.slot];
        // Behind a prefix, of which one hypothesis is left, the beams open again.
        if (options.finish == SHRINK) taking = min(taking, step.before <= options.prefix_len ? step.beams : step.live);
        unsigned ending = step.width;  // ranks at which end of sentence counts
        // What banks leave counts, all of it.
        if (step.is(CONSTRAINED)) taking = count, ending = count;
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
            } else if (rank - first_rank >= ending) {
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
