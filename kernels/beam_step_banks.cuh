// Op beam_step: ranking where constraints hold. Each candidate stands in the bank of the constraint tokens met with it, and the
// banks share the beams (Post & Vilar 2018); the contract says how.
#pragma once

#include "beam_step_rank.cuh"

// w.in_bank = the candidates of each bank, end of sentence not counted. By a whole block.
__device__ __forceinline__ void count_banks(const BeamStepArguments& a, const Step& step, Workspace& w, unsigned banks) {
    for (unsigned bank = threadIdx.x; bank < banks; bank += blockDim.x) w.in_bank[bank] = 0;
    __syncthreads();
    const unsigned total = num_candidates(a, step, w);
    for (unsigned i = threadIdx.x; i < total; i += blockDim.x) {
        unsigned bank;
        const Key key = banked_key(a, step, w, i, bank);
        if (key != 0 && key_index(key) % a.search.vocab_size != a.search.eos_id) atomicAdd(w.in_bank + bank, 1u);
    }
    __syncthreads();
}

// w.got = the beams that each bank gets. By a whole block.
__device__ __forceinline__ void share_beams(const BeamStepArguments& a, const Step& step, Workspace& w, unsigned banks) {
    if (threadIdx.x == 0) {
        const bool at_limit = step.before + 1 >= a.search.options[step.slot].max_len;
        unsigned left = 0;
        for (unsigned bank = banks; bank-- > 0;) {
            if (!at_limit) left += step.beams / banks + (bank + 1 == banks ? step.beams % banks : 0);
            if (at_limit) left = bank + 1 == banks ? step.beams : 0;
            w.got[bank] = min(left, w.in_bank[bank]);
            left -= w.got[bank];
        }
        for (unsigned bank = at_limit ? 0 : banks; bank-- > 0;) {
            const unsigned more = min(left, w.in_bank[bank] - w.got[bank]);
            w.got[bank] += more;
            left -= more;
        }
    }
    __syncthreads();
}

// What counts of the highest bank's ranking, moved up: end of sentence among the first K ranks, and what goes on; returns how
// many. By a whole block.
__device__ __forceinline__ unsigned trim_highest(const BeamStepArguments& a, const Step& step, Workspace& w, unsigned bank,
                                                 unsigned count) {
    if (threadIdx.x == 0) {
        unsigned kept = 0, living = 0;
        for (unsigned rank = 0; rank < count; ++rank) {
            const bool ends = key_index(w.best[rank]) % a.search.vocab_size == a.search.eos_id;
            if (rank >= step.beams && (ends || step.is(CUTS))) continue;
            if (!ends && living == w.got[bank]) continue;
            living += !ends;
            w.best[kept++] = w.best[rank];
        }
        w.num_picked = kept;
    }
    __syncthreads();
    return w.num_picked;
}

// w.best = what counts of each bank, the highest first; returns how many. By a whole block.
__device__ __forceinline__ unsigned rank_banks(const BeamStepArguments& a, const Step& step, Workspace& w, Key* keys) {
    const unsigned banks = a.search.options[step.slot].constraints + 1;
    if (threadIdx.x == 0) w.group = Group{0, step.live, 0, 0, 0};
    count_banks(a, step, w, banks);
    share_beams(a, step, w, banks);
    unsigned total = 0;
#pragma unroll 1
    for (unsigned bank = banks; bank-- > 0;) {
        const bool highest = bank + 1 == banks;
        const unsigned keep = highest ? step.kept() : w.got[bank];
        if (keep == 0) continue;
        if (threadIdx.x == 0) w.group = Group{0, step.live, total, keep, bank};
        __syncthreads();
        const unsigned count = rank_group(a, step, w, keys);
        total += highest ? trim_highest(a, step, w, bank, count) : count;
        __syncthreads();
    }
    return total;
}
