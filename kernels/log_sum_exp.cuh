// log(sum(exp(row))) over rows that are split into chunks: who uses it gets the same bits for the same row and block size.
//
// A block holds a chunk of blockDim.x * CHUNK_ELEMENTS numbers in registers and reduces it to its maximum and its sum of
// exponentials; a warp merges a row's chunks. The order of additions depends on the row's length and the block size alone.
#pragma once

#include "common.cuh"

constexpr unsigned CHUNK_ELEMENTS = 32;  // numbers that a thread holds

// log(sum(exp(x))) = max + log(sum). A NaN or an infinity among the numbers is all that max says; sum is then 0.
struct LogSum {
    float max;
    float sum;
};

// The place in its row of a thread's element: four neighbours at a time, so that they can be loaded as one.
__device__ __forceinline__ unsigned chunk_index(unsigned begin, unsigned element) {
    return begin + (element / 4 * blockDim.x + threadIdx.x) * 4 + element % 4;
}

// The thread's share of row[begin..], -infinity beyond `size`. Vectorized: `row` is a multiple of 16 bytes.
__device__ __forceinline__ void load_chunk(const float* row, unsigned begin, unsigned size, bool vectorized,
                                           float (&x)[CHUNK_ELEMENTS]) {
    if (vectorized && size - begin >= blockDim.x * CHUNK_ELEMENTS) {
#pragma unroll
        for (unsigned e = 0; e < CHUNK_ELEMENTS; e += 4) {
            const float4 four = __ldcs(reinterpret_cast<const float4*>(row + chunk_index(begin, e)));
            x[e] = four.x, x[e + 1] = four.y, x[e + 2] = four.z, x[e + 3] = four.w;
        }
        return;
    }
#pragma unroll
    for (unsigned e = 0; e < CHUNK_ELEMENTS; ++e) {
        const unsigned i = chunk_index(begin, e);
        x[e] = i < size ? __ldcs(row + i) : -INFINITY;
    }
}

// By a whole block; `scratch`: 32 floats of shared memory.
__device__ __forceinline__ LogSum chunk_log_sum(const float (&x)[CHUNK_ELEMENTS], float* scratch) {
    float max = -INFINITY;
    bool has_nan = false;
#pragma unroll
    for (unsigned e = 0; e < CHUNK_ELEMENTS; ++e) {
        max = fmaxf(max, x[e]);
        has_nan |= isnan(x[e]);
    }
    max = block_max(max, scratch);
    if (__syncthreads_or(has_nan)) max = NAN;
    if (!isfinite(max)) return LogSum{max, 0.0f};
    float sum = 0.0f;
    // The fast exponential is off by about |x - max| * 2^-24: least where a term weighs most.
#pragma unroll
    for (unsigned e = 0; e < CHUNK_ELEMENTS; ++e) sum += __expf(x[e] - max);
    return LogSum{max, block_sum(sum, scratch)};
}

// The normaliser of a row from its chunks, `stride` apart, by a whole warp; its max is NaN or +infinity if the row holds one.
__device__ __forceinline__ Normalizer merge_log_sums(const LogSum* chunks, unsigned count, unsigned stride) {
    const unsigned lane = threadIdx.x % WARP_SIZE;
    float max = -INFINITY;
    bool has_nan = false;
    for (unsigned c = lane; c < count; c += WARP_SIZE) {
        const float here = chunks[c * stride].max;
        max = fmaxf(max, here);
        has_nan |= isnan(here);
    }
    max = warp_max(max);
    if (__any_sync(FULL_WARP, has_nan)) return Normalizer{NAN, 0.0f};
    if (!isfinite(max)) return Normalizer{max, 0.0f};
    float sum = 0.0f;
    for (unsigned c = lane; c < count; c += WARP_SIZE) sum += chunks[c * stride].sum * expf(chunks[c * stride].max - max);
    return Normalizer{max, logf(warp_sum(sum))};
}
