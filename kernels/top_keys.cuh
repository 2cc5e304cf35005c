// The best of many (number, index) pairs: the larger number first, among equals the lower index.
//
// A pair is one 64-bit key, so that the order is total and no two keys are equal; what lies in any order can be ranked, and
// the result does not depend on which thread came first. 0 is no key: it stands for -infinity, which is never ranked.
#pragma once

#include "common.cuh"

using Key = unsigned long long;

// Orders as the numbers do; -0 becomes 0, which it equals.
__device__ __forceinline__ unsigned ordered_bits(float x) {
    const unsigned bits = __float_as_uint(x + 0.0f);
    return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ Key make_key(float x, unsigned index) {
    return x == -INFINITY ? 0 : static_cast<Key>(ordered_bits(x)) << 32 | static_cast<unsigned>(~index);
}

__device__ __forceinline__ unsigned key_bits(Key key) { return static_cast<unsigned>(key >> 32); }
__device__ __forceinline__ unsigned key_index(Key key) { return ~static_cast<unsigned>(key); }
__device__ __forceinline__ float key_number(Key key) {
    const unsigned bits = key_bits(key);
    return __uint_as_float((bits & 0x80000000u) != 0 ? bits & 0x7FFFFFFFu : ~bits);
}

// Keys that a block gathers, in shared memory.
struct KeyPool {
    Key* keys;  // [capacity]
    unsigned capacity;
    unsigned* count;
    Key* maxima;     // [threads]
    Key* threshold;  // [1]
};

__device__ __forceinline__ void offer(const KeyPool& pool, Key key) { pool.keys[atomicAdd(pool.count, 1u)] = key; }

// Empties the pool, and returns the key of rank `need` (1 the best) among the threads' own, 0 if fewer have one: at least
// `need` keys of all that the threads hold are as good, and no more than `need` threads hold such. By a whole block.
__device__ __forceinline__ Key nth_best(const KeyPool& pool, Key mine, unsigned need) {
    pool.maxima[threadIdx.x] = mine;
    if (threadIdx.x == 0) *pool.threshold = 0, *pool.count = 0;
    __syncthreads();
    unsigned rank = 1;
    for (unsigned t = 0; t < blockDim.x; ++t) rank += pool.maxima[t] > mine;
    if (rank == need && mine != 0) *pool.threshold = mine;
    __syncthreads();
    return *pool.threshold;
}

// to[0..min(count, keep)) = the best of keys[0..count), sorted. By a whole block; keys are different.
__device__ __forceinline__ void sort_best(const Key* keys, unsigned count, unsigned keep, Key* to) {
    for (unsigned i = threadIdx.x; i < count; i += blockDim.x) {
        const Key mine = keys[i];
        unsigned rank = 0;
        for (unsigned j = 0; j < count; ++j) rank += keys[j] > mine;
        if (rank < keep) to[rank] = mine;
    }
}

// Drops all but the best `keep` keys from a pool that holds more; returns the last of them. By a whole block, behind a
// barrier; `best`: `keep` keys of shared memory.
__device__ __forceinline__ Key shrink(const KeyPool& pool, unsigned keep, Key* best) {
    sort_best(pool.keys, *pool.count, keep, best);
    __syncthreads();
    for (unsigned i = threadIdx.x; i < keep; i += blockDim.x) pool.keys[i] = best[i];
    if (threadIdx.x == 0) *pool.count = keep;
    return best[keep - 1];
}
