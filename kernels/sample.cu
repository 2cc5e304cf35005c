// picks[slot, beam] = a token for every live row of the slots that sample, drawn from softmax(z / temperature) over the tokens that
// the row may take, cut down by top_k, top_p, min_p and epsilon; with the model's own log-probability of it, and its number in
// what ranks. z is the row of logits, or of `ranked` where the slot says so. src/cpu/sample.rs says what the filters keep.
//
// Shapes: rows [bucket]; count [1]; options [S]; ancestry [S, K, T]; logits, ranked [bucket, stride] f32; bans
// [bucket, ceil(vocab_size / 32)]; picks [S, K].
// Parallelisation: a block per row, which reads the row once from memory, then from L2: for its log-sum-exp, its best token, for
// every halving of a filter's range, and for the draw. Rows of other slots read nothing but their options. There is no sort: a
// filter keeps a beginning of the order by (z desc, id asc), whose end is found by bisection over keys of 64 bits. Each pass
// narrows the range to keys that occur, so it takes about the logarithm of the number of tokens.
// Numerics: masses are integers of 2^-40 of the best token's; their sums have no order. With the exp and ln of portable_math.cuh
// the token is the CPU's. The log-probability has the bits of stats at the block size of beam_step. NaN or +infinity among
// logits or z gives no token, and the value in place of the log-probability; so does -infinity where nothing may be taken.
// Reference: src/cpu/sample.rs
#include "log_sum_exp.cuh"
#include "philox.cuh"
#include "portable_math.cuh"
#include "search_state.cuh"

// No noise is larger.
constexpr float MOST_NOISE = 16.7f;

using Mass = unsigned long long;

struct SampleArguments {
    const SlotOptions* options;
    const uint4* rows;
    const unsigned* count;
    const unsigned* ancestry;
    const float* logits;
    const float* ranked;   // null where no slot ranks it
    const unsigned* bans;  // null where no slot has any
    SamplePick* picks;
    unsigned bucket;
    unsigned slots;
    unsigned beams;    // K
    unsigned max_len;  // T
    unsigned vocab_size;
    unsigned stride;
    unsigned chunks;
    unsigned vectorized;  // all rows start at multiples of 16 bytes
    unsigned eos_id;
    unsigned pad_id;
};

// What a block shares among its threads: one tally per warp.
struct Tally {
    Mass weight;
    Key above, below;
};

// Four neighbours of a row, past L1, which is too small for it; -infinity beyond the last.
__device__ __forceinline__ void load_four(const float* row, unsigned first, unsigned size, bool vectorized, float (&x)[4]) {
    if (vectorized && first + 4 <= size) {
        const float4 four = __ldcg(reinterpret_cast<const float4*>(row + first));
        x[0] = four.x, x[1] = four.y, x[2] = four.z, x[3] = four.w;
        return;
    }
#pragma unroll
    for (unsigned k = 0; k < 4; ++k) x[k] = first + k < size ? __ldcg(row + first + k) : -INFINITY;
}

// What a block draws from.
struct Draw {
    const float* z;
    const unsigned* bans;  // null without any
    SampleOptions options;
    unsigned vocab_size, position, sample, eos_id, pad_id;
    bool vectorized, eos_allowed, only_eos;

    // Calls visit(z, token) for the thread's share of the tokens that may be taken and are above -infinity, in groups of four.
    template <typename Visit>
    __device__ __forceinline__ void for_each(Visit visit) const {
        for (unsigned first = threadIdx.x * 4; first < vocab_size; first += blockDim.x * 4) {
            float group[4];
            load_four(z, first, vocab_size, vectorized, group);
            const unsigned banned = bans == nullptr ? 0 : __ldg(bans + first / 32) >> first % 32;
#pragma unroll
            for (unsigned k = 0; k < 4; ++k) {
                const unsigned token = first + k;
                const bool allowed = token != pad_id && (token == eos_id ? eos_allowed : !only_eos);
                if (allowed && (banned >> k & 1) == 0 && group[k] > -INFINITY) visit(group[k], token);
            }
        }
    }
};

// What the filters leave: keys from `cutoff` on with at least `limit` of mass, and the best token always.
struct Filtered {
    Key best, cutoff;
    Mass limit;
    float max, inverse_temperature;

    __device__ __forceinline__ float x(float z) const { return __fmul_rn(__fadd_rn(z, -max), inverse_temperature); }
    __device__ __forceinline__ Mass mass(float z) const {
        return static_cast<Mass>(__fmul_rn(portable_exp(x(z)), 0x1p40f));
    }
    __device__ __forceinline__ bool stays(float z, unsigned token) const {
        const Key key = make_key(z, token);
        return key == best || (key >= cutoff && (limit == 0 || mass(z) >= limit));
    }
};

// The least mass that is at least `part` of `whole`.
__device__ __forceinline__ Mass share(float part, Mass whole) {
    return static_cast<Mass>(ceil(static_cast<double>(part) * static_cast<double>(whole)));
}

// Weights add up, of the keys the least above and the largest below are kept. All threads get the result.
__device__ __forceinline__ Tally block_tally(Tally tally, Tally* scratch) {
    const unsigned lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE, warps = blockDim.x / WARP_SIZE;
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        tally.weight += __shfl_xor_sync(FULL_WARP, tally.weight, distance);
        tally.above = min(tally.above, __shfl_xor_sync(FULL_WARP, tally.above, distance));
        tally.below = max(tally.below, __shfl_xor_sync(FULL_WARP, tally.below, distance));
    }
    if (lane == 0) scratch[warp] = tally;
    __syncthreads();
    tally = scratch[0];
    for (unsigned w = 1; w < warps; ++w) {
        tally.weight += scratch[w].weight;
        tally.above = min(tally.above, scratch[w].above);
        tally.below = max(tally.below, scratch[w].below);
    }
    __syncthreads();
    return tally;
}

// The key of the last token, of those from `low` on, before which there is less than `limit` of weight.
template <typename Weight>
__device__ __forceinline__ Key find_cutoff(const Draw& draw, Key low, Key high, Mass limit, Weight weight, Tally* scratch) {
    // The answer lies in low .. high, and high is the key of a token that stays.
    while (low < high) {
        const Key middle = low + (high - low) / 2;
        Tally tally{0, ~static_cast<Key>(0), 0};
        draw.for_each([&](float z, unsigned token) {
            const Key key = make_key(z, token);
            if (key > middle) {
                tally.weight += weight(z);
                tally.above = min(tally.above, key);
            } else if (key >= low) {
                tally.below = max(tally.below, key);
            }
        });
        tally = block_tally(tally, scratch);
        if (tally.weight >= limit) low = tally.above;
        else if (tally.below == 0) return tally.above;
        else high = tally.below;
    }
    return high;
}

// The mass of what stays.
__device__ __forceinline__ Mass total(const Draw& draw, const Filtered& filtered, Tally* scratch) {
    Tally tally{0, 0, 0};
    draw.for_each([&](float z, unsigned token) {
        if (filtered.stays(z, token)) tally.weight += filtered.mass(z);
    });
    return block_tally(tally, scratch).weight;
}

__device__ __forceinline__ Filtered filter(const Draw& draw, Key best, Tally* scratch) {
    const SampleOptions& options = draw.options;
    Filtered filtered{best, 0, 0, key_number(best), __fdiv_rn(1.0f, options.temperature)};
    if (options.top_k > 0 && options.top_k < draw.vocab_size)
        filtered.cutoff = find_cutoff(draw, 1, best, options.top_k, [](float) { return Mass{1}; }, scratch);
    if (options.top_p < 1.0f) {
        const Mass limit = max(share(options.top_p, total(draw, filtered, scratch)), Mass{1});
        const Key low = max(filtered.cutoff, Key{1});
        filtered.cutoff = find_cutoff(draw, low, best, limit, [&](float z) { return filtered.mass(z); }, scratch);
    }
    filtered.limit = share(options.min_p, filtered.mass(filtered.max));
    if (options.epsilon > 0.0f)
        filtered.limit = max(filtered.limit, share(options.epsilon, total(draw, filtered, scratch)));
    return filtered;
}

__device__ __forceinline__ float gumbel_of(unsigned word) { return -portable_ln(-portable_ln(open_uniform(word))); }

// The token of the largest x + noise, ties to the lower id.
__device__ __forceinline__ unsigned draw_token(const Draw& draw, const Filtered& filtered, Tally* scratch) {
    Tally best{0, 0, 0};
    float score = -INFINITY;
    unsigned group = NO_TOKEN;
    uint4 words{};
    draw.for_each([&](float z, unsigned token) {
        const float x = filtered.x(z);
        // What cannot win needs no noise.
        if (x + MOST_NOISE < score || !filtered.stays(z, token)) return;
        if (group != token / 4) {
            group = token / 4;
            const uint4 counter = make_uint4(draw.position, draw.sample, DRAW, group);
            words = philox(draw.options.seed_low, draw.options.seed_high, counter);
        }
        const unsigned k = token % 4;
        const float own = __fadd_rn(x, gumbel_of(k == 0 ? words.x : k == 1 ? words.y : k == 2 ? words.z : words.w));
        best.below = max(best.below, make_key(own, token));
        score = fmaxf(score, own);
    });
    return key_index(block_tally(best, scratch).below);
}

// The row's normaliser, in the order in which stats has it.
__device__ __forceinline__ Normalizer normalizer_of(const SampleArguments& a, const float* row, float* scratch, LogSum* sums) {
    float x[CHUNK_ELEMENTS];
    for (unsigned chunk = 0; chunk < a.chunks; ++chunk) {
        load_chunk(row, chunk * blockDim.x * CHUNK_ELEMENTS, a.vocab_size, a.vectorized != 0, x);
        const LogSum sum = chunk_log_sum(x, scratch);
        if (threadIdx.x == 0) sums[chunk] = sum;
    }
    __syncthreads();
    return merge_log_sums(sums, a.chunks, 1);
}

// The NaN or +infinity that a row holds; 0 if it holds neither.
__device__ __forceinline__ float broken_value(const float* row, unsigned vocab_size) {
    bool has_nan = false, has_infinity = false;
    for (unsigned token = threadIdx.x; token < vocab_size; token += blockDim.x) {
        const float z = __ldcg(row + token);
        has_nan |= isnan(z);
        has_infinity |= z == INFINITY;
    }
    if (__syncthreads_or(has_nan)) return NAN;
    return __syncthreads_or(has_infinity) ? INFINITY : 0.0f;
}

__device__ void sample(const SampleArguments& a) {
    DYNAMIC_SHARED(LogSum, sums);  // [chunks]
    SHARED(float, scratch, WARP_SIZE);
    SHARED(Tally, tallies, WARP_SIZE);
    const unsigned r = blockIdx.x;
    if (r >= a.bucket || r >= *a.count) return;
    const uint4 row = a.rows[r];  // slot, beam, position, token
    if (row.x >= a.slots || a.options[row.x].strategy != SAMPLE) return;
    const SlotOptions& options = a.options[row.x];
    const std::size_t at = static_cast<std::size_t>(row.x) * a.beams + row.y;
    const float* logits = a.logits + static_cast<std::size_t>(r) * a.stride;
    const bool ranks = options.ranked != 0;
    const unsigned length = row.z + 1;

    Draw draw;
    draw.z = ranks ? a.ranked + static_cast<std::size_t>(r) * a.stride : logits;
    draw.bans = options.banned != 0 ? a.bans + static_cast<std::size_t>(r) * ((a.vocab_size + 31) / 32) : nullptr;
    draw.options = options.sampling;
    draw.vocab_size = a.vocab_size;
    draw.position = row.z;
    draw.sample = row.z == 0 ? row.y : a.ancestry[at * a.max_len];
    draw.eos_id = a.eos_id;
    draw.pad_id = options.takes_pad != 0 ? NO_TOKEN : a.pad_id;
    draw.vectorized = a.vectorized != 0;
    draw.only_eos = length >= options.max_len && options.cut == 0;
    draw.eos_allowed = length >= options.min_len || draw.only_eos;

    const Normalizer normalizer = normalizer_of(a, logits, scratch, sums);
    float broken = normalizer.max < INFINITY ? 0.0f : normalizer.max;
    if (broken == 0.0f && ranks) broken = broken_value(draw.z, a.vocab_size);
    if (broken != 0.0f) {
        if (threadIdx.x == 0) a.picks[at] = SamplePick{NO_TOKEN, broken, broken};
        return;
    }
    Tally first{0, 0, 0};
    draw.for_each([&](float z, unsigned token) { first.below = max(first.below, make_key(z, token)); });
    const Key best = block_tally(first, tallies).below;
    if (best == 0) {
        if (threadIdx.x == 0) a.picks[at] = SamplePick{NO_TOKEN, -INFINITY, -INFINITY};
        return;
    }
    unsigned token = key_index(best);
    if (!draw.only_eos && draw.options.temperature != 0.0f) token = draw_token(draw, filter(draw, best, tallies), tallies);
    if (threadIdx.x != 0) return;
    const float log_prob = normalizer.log_prob(logits[token]);
    a.picks[at] = SamplePick{token, log_prob, ranks ? draw.z[token] : log_prob};
}

KERNEL(sample_f32, 128, SampleArguments, sample)

LAYOUT(FIELDS(SampleArguments, options, rows, count, ancestry, logits, ranked, bans, picks, bucket, slots, beams,
              max_len, vocab_size, stride, chunks, vectorized, eos_id, pad_id)
       CONSTANT("sample::ELEMENTS", CHUNK_ELEMENTS))
