// out[row] = log_softmax(logits[row, :])[gold[row]] for the live rows.
//
// Shapes: logits [bucket, vocab_size] f32; gold [bucket] u32; count [1] u32; out [bucket] f32.
// Parallelisation: a block per row of the bucket; the row is read twice, the second time from cache.
// Numerics: f32; the maximum is subtracted before exp. NaN or +infinity anywhere in the row, nothing but -infinity, and a gold
// token outside the vocabulary give NaN. The order of additions depends on vocab_size and the block size alone.
// Reference: src/cpu/stats.rs
#include "common.cuh"

struct StatsArguments {
    const float* logits;
    const unsigned* gold;
    const unsigned* count;
    float* out;
    unsigned bucket;
    unsigned vocab_size;
};

__device__ void stats_gold(const StatsArguments& a) {
    const unsigned row = blockIdx.x;
    if (row >= a.bucket || row >= *a.count) return;
    SHARED(float, scratch, WARP_SIZE);
    const float* logits = a.logits + static_cast<std::size_t>(row) * a.vocab_size;
    float largest = -INFINITY;
    for (unsigned i = threadIdx.x; i < a.vocab_size; i += blockDim.x) largest = fmaxf(largest, logits[i]);
    largest = block_max(largest, scratch);
    float sum = 0.0f;
    for (unsigned i = threadIdx.x; i < a.vocab_size; i += blockDim.x) sum += expf(logits[i] - largest);
    sum = block_sum(sum, scratch);
    if (threadIdx.x != 0) return;
    const unsigned gold = a.gold[row];
    a.out[row] = gold < a.vocab_size ? logits[gold] - (largest + logf(sum)) : NAN;
}

KERNEL(stats_gold_f32, 1024, StatsArguments, stats_gold)
