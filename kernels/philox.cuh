// Philox4x32-10: random numbers as a function of a key and a counter (Salmon et al. 2011), so that what a token draws depends on
// neither batch, order nor device.
// Reference: src/cpu/philox.rs
#pragma once
#include "common.cuh"

// Mirrors `Purpose` in src/cpu/philox.rs: numbers of different purposes are independent.
enum Purpose : unsigned { COIN, NOISE, DRAW };

// The four words of `counter` under the key (low word, high word).
__device__ __forceinline__ uint4 philox(unsigned key_low, unsigned key_high, uint4 counter) {
    constexpr unsigned FIRST = 0xD2511F53u, SECOND = 0xCD9E8D57u;
#pragma unroll
    for (unsigned round = 0; round < 10; ++round) {
        counter = make_uint4(__umulhi(SECOND, counter.z) ^ counter.y ^ key_low, SECOND * counter.z,
                             __umulhi(FIRST, counter.x) ^ counter.w ^ key_high, FIRST * counter.x);
        key_low += 0x9E3779B9u;
        key_high += 0xBB67AE85u;
    }
    return counter;
}

// A random word as a uniform number in 0 <= x < 1, a multiple of 2^-24.
__device__ __forceinline__ float uniform(unsigned word) { return static_cast<float>(word >> 8) * 0x1p-24f; }

// A random word as a uniform number in 0 < x < 1, an odd multiple of 2^-24: it has a finite logarithm, and so has 1 - x.
__device__ __forceinline__ float open_uniform(unsigned word) {
    return (static_cast<float>(word >> 9) + 0.5f) * 0x1p-23f;
}
