// For the live rows of logits: the gold token's log-probability and rank, the entropy, the largest log-probability and its token.
//
// Shapes: logits [bucket, stride] f32, of which the first vocab_size columns are read; gold [bucket] u32; count [1] u32; out [bucket].
// Parallelisation: a block per row of the bucket, which takes the row's chunks in turn, each read once, then merges them.
// Numerics: f32; the maximum is subtracted before exp. With the block size of beam_step the normaliser has the bits that beam_step
// ranks by. NaN or +infinity anywhere in the row, or nothing but -infinity, give NaN for each logarithm, rank 0 and token 0; a
// gold token outside the vocabulary has log-probability NaN and rank 0.
// Reference: src/cpu/stats.rs
#include "log_sum_exp.cuh"
#include "top_keys.cuh"

// Mirrors `TokenStats` in src/backend.rs.
struct TokenStats {
    float log_prob, entropy, max_log_prob;
    unsigned rank, argmax;
};

struct StatsArguments {
    const float* logits;
    const unsigned* gold;
    const unsigned* count;
    TokenStats* out;
    unsigned bucket;
    unsigned vocab_size;
    unsigned stride;  // elements from row to row
    unsigned chunks;
    unsigned vectorized;  // all rows start at multiples of 16 bytes
    unsigned unused;
};

__device__ __forceinline__ Key warp_max_key(Key key) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) key = max(key, __shfl_xor_sync(FULL_WARP, key, distance));
    return key;
}

// The entropy by a whole warp, from the chunks' sums and their sums of exp(x - their max) * (x - their max).
__device__ __forceinline__ float merge_entropy(const LogSum* sums, const float* tilted, unsigned chunks, float max) {
    float sum = 0.0f, all_tilted = 0.0f;
    for (unsigned c = threadIdx.x % WARP_SIZE; c < chunks; c += WARP_SIZE) {
        const float below = sums[c].max - max;
        if (below == -INFINITY) continue;
        const float factor = expf(below);
        sum += factor * sums[c].sum;
        all_tilted += factor * (tilted[c] + sums[c].sum * below);
    }
    sum = warp_sum(sum);
    return logf(sum) - warp_sum(all_tilted) / sum;
}

__device__ void stats_tokens(const StatsArguments& a) {
    const unsigned row = blockIdx.x;
    if (row >= a.bucket || row >= *a.count) return;
    SHARED(float, scratch, WARP_SIZE);
    SHARED(Key, keys, WARP_SIZE);
    DYNAMIC_SHARED(LogSum, sums);  // [chunks], then of each chunk the sum of exp(x - max) * (x - max)
    float* tilted = reinterpret_cast<float*>(sums + a.chunks);
    const float* logits = a.logits + static_cast<std::size_t>(row) * a.stride;
    const unsigned gold = a.gold[row];
    const float gold_logit = gold < a.vocab_size ? logits[gold] : NAN;
    float x[CHUNK_ELEMENTS];
    Key best = 0;
    unsigned before = 0;
    for (unsigned chunk = 0; chunk < a.chunks; ++chunk) {
        const unsigned begin = chunk * blockDim.x * CHUNK_ELEMENTS;
        load_chunk(logits, begin, a.vocab_size, a.vectorized != 0, x);
        const LogSum sum = chunk_log_sum(x, scratch);
        float part = 0.0f;
#pragma unroll
        for (unsigned e = 0; e < CHUNK_ELEMENTS; ++e) {
            const unsigned token = chunk_index(begin, e);
            const float below = x[e] - sum.max;
            if (x[e] != -INFINITY) part += __expf(below) * below;
            before += x[e] > gold_logit || (x[e] == gold_logit && token < gold);
            best = max(best, make_key(x[e], token));
        }
        part = block_sum(part, scratch);
        if (threadIdx.x == 0) sums[chunk] = sum, tilted[chunk] = part;
    }
    // Exact: counts stay below 2^24.
    const float rank = block_sum(static_cast<float>(before), scratch);
    best = warp_max_key(best);
    if (threadIdx.x % WARP_SIZE == 0) keys[threadIdx.x / WARP_SIZE] = best;
    __syncthreads();
    if (threadIdx.x >= WARP_SIZE) return;
    best = warp_max_key(threadIdx.x < blockDim.x / WARP_SIZE ? keys[threadIdx.x] : 0);
    const Normalizer normalizer = merge_log_sums(sums, a.chunks, 1);
    const float max = key_number(best);
    const float entropy = merge_entropy(sums, tilted, a.chunks, max);
    if (threadIdx.x != 0) return;
    if (!isfinite(normalizer.max)) {
        a.out[row] = TokenStats{NAN, NAN, NAN, 0, 0};
        return;
    }
    const bool known = gold < a.vocab_size;
    a.out[row] = TokenStats{normalizer.log_prob(gold_logit), entropy, -normalizer.log_sum,
                            known ? static_cast<unsigned>(rank) + 1 : 0, key_index(best)};
}

KERNEL(stats_tokens_f32, 128, StatsArguments, stats_tokens)

LAYOUT(FIELDS(TokenStats, log_prob, entropy, max_log_prob, rank, argmax)
       FIELDS(StatsArguments, logits, gold, count, out, bucket, vocab_size, stride, chunks, vectorized, unused)
       CONSTANT("stats::ELEMENTS", CHUNK_ELEMENTS))
