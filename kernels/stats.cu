// out[row] = log_softmax(logits[row, :])[gold[row]] for the live rows.
//
// Shapes: logits [bucket, vocab_size] f32, rows stride apart; gold [bucket] u32; count [1] u32; out [bucket] f32.
// Parallelisation: a block per row of the bucket, which takes the row's chunks in turn, then merges them.
// Numerics: f32; the maximum is subtracted before exp. With the block size of beam_step the normaliser has the bits that beam_step
// ranks by. NaN or +infinity anywhere in the row, nothing but -infinity, and a gold token outside the vocabulary give NaN.
// Reference: src/cpu/stats.rs
#include "log_sum_exp.cuh"

struct StatsArguments {
    const float* logits;
    const unsigned* gold;
    const unsigned* count;
    float* out;
    unsigned bucket;
    unsigned vocab_size;
    unsigned stride;  // elements from row to row
    unsigned chunks;
    unsigned vectorized;  // all rows start at multiples of 16 bytes
    unsigned unused;
};

__device__ void stats_gold(const StatsArguments& a) {
    const unsigned row = blockIdx.x;
    if (row >= a.bucket || row >= *a.count) return;
    SHARED(float, scratch, WARP_SIZE);
    DYNAMIC_SHARED(LogSum, sums);  // [chunks]
    const float* logits = a.logits + static_cast<std::size_t>(row) * a.stride;
    float x[CHUNK_ELEMENTS];
    for (unsigned chunk = 0; chunk < a.chunks; ++chunk) {
        load_chunk(logits, chunk * blockDim.x * CHUNK_ELEMENTS, a.vocab_size, a.vectorized != 0, x);
        const LogSum sum = chunk_log_sum(x, scratch);
        if (threadIdx.x == 0) sums[chunk] = sum;
    }
    __syncthreads();
    if (threadIdx.x >= WARP_SIZE) return;
    const float normalizer = merge_log_sums(sums, a.chunks, 1);
    if (threadIdx.x != 0) return;
    const unsigned gold = a.gold[row];
    a.out[row] = gold < a.vocab_size && isfinite(normalizer) ? logits[gold] - normalizer : NAN;
}

KERNEL(stats_gold_f32, 128, StatsArguments, stats_gold)
