// Sums and exponentials with the bits of the CPU's: in f32 a kernel that uses them gives what the CPU gives.
//
// There a sum goes through four accumulators of sixteen lanes: element i of a row belongs to lane i % 16, and whole blocks of 64 elements
// go through all four, what is left of a row through the first. The four are added as (0 + 1) + (2 + 3), then lane i and lane i + 8, i + 4,
// i + 2, i + 1. Products are added by fused multiply-add.
// Reference: src/cpu/simd.rs
#pragma once
#include "common.cuh"

// Whether activations of a type are computed as on the CPU. In 16 bits they are rounded too coarsely for that to show.
template <typename T>
constexpr bool AS_ON_CPU = sizeof(T) == sizeof(float);

constexpr unsigned LANES = 16, ACCUMULATORS = 4, LANES_BLOCK = LANES * ACCUMULATORS;

// The polynomial with these coefficients, from the constant one on.
template <unsigned N>
__device__ __forceinline__ float polynomial(float x, const float (&coefficients)[N]) {
    float value = coefficients[N - 1];
#pragma unroll
    for (unsigned i = N - 1; i > 0; --i) value = __fmaf_rn(value, x, coefficients[i - 1]);
    return value;
}

// exp(x), 0 below -86.9, infinity above 88.73; NaN stays NaN.
__device__ __forceinline__ float exp_of_lanes(float x) {
    constexpr float LOWEST = -86.9f;
    constexpr float BIAS = 12582912.0f + 126.0f;  // adding it rounds to an integer n and leaves n + 126 in the low bits
    constexpr float LN_2_HIGH = 355.0f / 512.0f, LN_2_LOW = -2.1219444e-4f;
    constexpr float Q[] = {0.49999994f, 0.16666515f, 0.041668456f, 0.008369419f, 0.0013813142f};
    const float clamped = x > 89.0f ? 89.0f : x;
    const float biased = __fmaf_rn(clamped, 1.44269504f, BIAS);
    const float n = __fadd_rn(biased, -BIAS);
    const float r = __fmaf_rn(n, -LN_2_LOW, __fmaf_rn(n, -LN_2_HIGH, clamped));
    const float q = polynomial(r, Q);
    const float mantissa = __fadd_rn(1.0f, __fmaf_rn(__fmul_rn(r, r), q, r));
    const float value = __fmul_rn(__fadd_rn(mantissa, mantissa), __uint_as_float(__float_as_uint(biased) << 23));
    return x < LOWEST ? 0.0f : value;
}

// sums[r] = the sum of a warp's lanes' parts of it: low[r] are the accumulators 0 and 1, by half of the warp, high[r] 2 and 3. All lanes get
// it.
template <unsigned R>
__device__ __forceinline__ void sums_of_lanes(float (&low)[R], float (&high)[R], float (&sums)[R]) {
#pragma unroll
    for (unsigned r = 0; r < R; ++r) {
        low[r] += __shfl_xor_sync(FULL_WARP, low[r], LANES);
        high[r] += __shfl_xor_sync(FULL_WARP, high[r], LANES);
        sums[r] = low[r] + high[r];
    }
#pragma unroll
    for (unsigned distance = LANES / 2; distance > 0; distance /= 2)
#pragma unroll
        for (unsigned r = 0; r < R; ++r) sums[r] += __shfl_xor_sync(FULL_WARP, sums[r], distance);
}

// The sum of add(0, value(i)) for i < len, a warp's work: each lane asks for other values.
template <typename V, typename A>
__device__ __forceinline__ float sum_in_lanes(unsigned len, V value, A add) {
    const unsigned lane = threadIdx.x % WARP_SIZE;
    float low[1] = {}, high[1] = {}, sums[1];
    const unsigned in_blocks = len / LANES_BLOCK * LANES_BLOCK;
    for (unsigned i = lane; i < in_blocks; i += LANES_BLOCK) {
        low[0] = add(low[0], value(i));
        high[0] = add(high[0], value(i + WARP_SIZE));
    }
    if (lane < LANES) {
        for (unsigned i = in_blocks + lane; i < len; i += LANES) low[0] = add(low[0], value(i));
    }
    sums_of_lanes(low, high, sums);
    return sums[0];
}

// The products of N neighbours, added to N lanes of an accumulator.
template <unsigned N, typename C>
__device__ __forceinline__ void add_products(const float* a, const Pack<C, N>& b, float (&sums)[N]) {
#pragma unroll
    for (unsigned k = 0; k < N; ++k) sums[k] = __fmaf_rn(a[k], to_float(b.values[k]), sums[k]);
}

// Neighbouring lanes of an accumulator.
template <unsigned N>
struct Lanes {
    float values[N];
};

// Lanes `first` and on of a . b.
template <unsigned N, typename C>
__device__ __forceinline__ Lanes<N> lanes_of_dot(const float* a, const C* b, unsigned len, unsigned first) {
    const unsigned in_blocks = len / LANES_BLOCK * LANES_BLOCK;
    float sums[ACCUMULATORS][N] = {};
    unsigned at = first;
    for (; at < in_blocks; at += LANES_BLOCK) {
        Pack<C, N> packs[ACCUMULATORS];
#pragma unroll
        for (unsigned i = 0; i < ACCUMULATORS; ++i) packs[i] = load_pack<N>(b + at + i * LANES);
#pragma unroll
        for (unsigned i = 0; i < ACCUMULATORS; ++i) add_products(a + at + i * LANES, packs[i], sums[i]);
    }
    for (; at < len; at += LANES) add_products(a + at, load_pack<N>(b + at), sums[0]);
    Lanes<N> lanes;
#pragma unroll
    for (unsigned k = 0; k < N; ++k) lanes.values[k] = (sums[0][k] + sums[1][k]) + (sums[2][k] + sums[3][k]);
    return lanes;
}

// The same after lanes that lie WIDTH and more apart have been added.
template <unsigned WIDTH, unsigned N, typename C>
__device__ __forceinline__ Lanes<N> folded_lanes(const float* a, const C* b, unsigned len, unsigned first) {
    if constexpr (WIDTH == LANES) {
        return lanes_of_dot<N>(a, b, len, first);
    } else {
        Lanes<N> near = folded_lanes<2 * WIDTH, N>(a, b, len, first);
        const Lanes<N> far = folded_lanes<2 * WIDTH, N>(a, b, len, first + WIDTH);
#pragma unroll
        for (unsigned k = 0; k < N; ++k) near.values[k] += far.values[k];
        return near;
    }
}

// a . b over len elements, a multiple of N, a thread's work; b is read N at a time.
template <unsigned N, typename C>
__device__ __forceinline__ float dot_in_lanes(const float* a, const C* b, unsigned len) {
    Lanes<N> lanes = folded_lanes<N, N>(a, b, len, 0);
#pragma unroll
    for (unsigned width = N / 2; width > 0; width /= 2) {
#pragma unroll
        for (unsigned k = 0; k < width; ++k) lanes.values[k] += lanes.values[k + width];
    }
    return lanes.values[0];
}
