// Rows of logits, each read by one block: loads, log-sum-exp, the best token.
#pragma once
#include "common.cuh"

// The VECTOR<T> logits from token `first` on; -infinity beyond the last. A row may be read 16 bytes at a time if `vectorized`.
// The loads go past L1, which is too small for a row; unlike __ldg they allow the row to be overwritten by the same kernel.
template <typename T>
__device__ __forceinline__ void load_logits(const T* row, unsigned first, unsigned vocab_size, bool vectorized,
                                            float (&logits)[VECTOR<T>]) {
    constexpr unsigned N = VECTOR<T>;
    if (vectorized && first + N <= vocab_size) {
        const uint4 bits = __ldcg(reinterpret_cast<const uint4*>(row + first));
        Pack<T, N> pack;
        memcpy(&pack, &bits, sizeof(bits));
#pragma unroll
        for (unsigned k = 0; k < N; ++k) logits[k] = to_float(pack.values[k]);
    } else {
#pragma unroll
        for (unsigned k = 0; k < N; ++k) logits[k] = first + k < vocab_size ? to_float(__ldcg(row + first + k)) : -INFINITY;
    }
}

// Stores VECTOR<T> values as the logits from token `first` on; nothing beyond the last.
template <typename T>
__device__ __forceinline__ void store_logits(T* row, unsigned first, unsigned vocab_size, bool vectorized,
                                             const float (&values)[VECTOR<T>]) {
    constexpr unsigned N = VECTOR<T>;
    if (vectorized && first + N <= vocab_size) {
        Pack<T, N> pack;
#pragma unroll
        for (unsigned k = 0; k < N; ++k) pack.values[k] = from_float<T>(values[k]);
        store_pack(row + first, pack);
    } else {
#pragma unroll
        for (unsigned k = 0; k < N; ++k) {
            if (first + k < vocab_size) row[first + k] = from_float<T>(values[k]);
        }
    }
}

// ---- log(sum(exp(x))) ----

// The largest value seen, and the sum of exp(x - max). NaN, and +infinity too, make the sum NaN.
struct LogSum {
    float max = -INFINITY;
    float sum = 0.0f;

    template <unsigned N>
    __device__ __forceinline__ void add(const float (&x)[N]) {
        float largest = x[0];
#pragma unroll
        for (unsigned k = 1; k < N; ++k) largest = fmaxf(largest, x[k]);
        if (largest > max) {
            sum *= expf(max - largest);
            max = largest;
        }
        const float shift = max == -INFINITY ? 0.0f : max;
#pragma unroll
        for (unsigned k = 0; k < N; ++k) sum += expf(x[k] - shift);
    }
};

// The normaliser of all that the block's threads have added. Its max is -infinity if nothing was above it, NaN if NaN or +infinity
// was added. `scratch` as in block_sum.
__device__ __forceinline__ Normalizer block_log_sum(LogSum part, float* scratch) {
    const float max = block_max(part.max, scratch), shift = max == -INFINITY ? 0.0f : max;
    const float sum = block_sum(part.sum * expf(part.max - shift), scratch);
    if (isnan(sum)) return Normalizer{NAN, 0.0f};
    return Normalizer{max, max == -INFINITY ? 0.0f : logf(sum)};
}

// ---- The best token ----

// Orders pairs by score, then by lower token, as one number above 0. The zeros are equal; the score is not NaN.
__device__ __forceinline__ unsigned long long token_key(float score, unsigned token) {
    const unsigned bits = __float_as_uint(score + 0.0f);
    const unsigned ordered = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
    return static_cast<unsigned long long>(ordered) << 32 | (0xFFFFFFFFu - token);
}

__device__ __forceinline__ unsigned key_token(unsigned long long key) {
    return 0xFFFFFFFFu - static_cast<unsigned>(key);
}

// The largest key of the block; `scratch`: 32 keys of shared memory.
__device__ __forceinline__ unsigned long long block_max_key(unsigned long long key, unsigned long long* scratch) {
    const unsigned lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE, warps = blockDim.x / WARP_SIZE;
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) key = max(key, __shfl_xor_sync(FULL_WARP, key, distance));
    if (lane == 0) scratch[warp] = key;
    __syncthreads();
    key = lane < warps ? scratch[lane] : 0;
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) key = max(key, __shfl_xor_sync(FULL_WARP, key, distance));
    __syncthreads();
    return key;
}
