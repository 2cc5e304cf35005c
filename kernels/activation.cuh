// The activations of feed-forward layers, in f32: relu, silu x / (1 + e^-x), gelu in its tanh form and its exact form with erf; NaN
// stays NaN.
#pragma once

#include "lanes.cuh"

// Mirrors `Activation` in src/backend.rs.
enum Activation : unsigned { NONE, RELU, SILU, GELU_TANH, GELU_ERF };

__device__ __forceinline__ float activate(unsigned activation, float x) {
    switch (activation) {
        case RELU: return x < 0.0f ? 0.0f : x;  // not fmaxf, which would turn NaN into 0
        case SILU: return x / (1.0f + expf(-x));
        case GELU_TANH: return 0.5f * x * (1.0f + tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x)));
        case GELU_ERF: return 0.5f * x * (1.0f + erff(x * 0.7071067811865476f));
        default: return x;
    }
}

// -2u with u = sqrt(2 / pi) (x + 0.044715 x^3), since (1 + tanh u) / 2 = 1 / (1 + exp(-2u)).
__device__ __forceinline__ float gelu_tanh_exponent(float x) {
    return __fmul_rn(x, __fmaf_rn(__fmul_rn(x, x), -0.07135482f, -1.595769f));
}

// (1 + erf(x / sqrt(2))) / 2; the method is told in src/cpu/simd.rs.
__device__ __forceinline__ float normal_cdf(float x) {
    constexpr float G[] = {0.12151395f,   -0.20640261f,   0.12322503f,    -0.04621329f,   0.0061320714f,
                           0.0029045634f, -0.0009837623f, -0.00033950043f, 0.00011554903f, 0.000053683558f};
    const float a = fabsf(x) > 14.0f ? 14.0f : fabsf(x);
    const float t = __fdiv_rn(a - 3.0f, a + 3.0f);
    // a^2 as a rounded part and the rest: exp magnifies the rounding of its argument.
    const float square = __fmul_rn(a, a), rest = __fmaf_rn(a, a, -square);
    const float rounded = __fmul_rn(polynomial(t, G), exp_of_lanes(__fmul_rn(square, -0.5f)));
    const float tail = __fmaf_rn(__fmul_rn(rest, -0.5f), rounded, rounded);
    return x < 0.0f ? tail : 1.0f - tail;
}

// The same with the bits of the CPU's.
__device__ __forceinline__ float activate_as_on_cpu(unsigned activation, float x) {
    switch (activation) {
        case SILU: return __fdiv_rn(x, __fadd_rn(1.0f, exp_of_lanes(-x)));
        case GELU_TANH: return __fdiv_rn(x, __fadd_rn(1.0f, exp_of_lanes(gelu_tanh_exponent(x))));
        case GELU_ERF: return __fmul_rn(x, normal_cdf(x));
        default: return activate(activation, x);
    }
}

// For what is stored as T.
template <typename T>
__device__ __forceinline__ float activate_for(unsigned activation, float x) {
    return AS_ON_CPU<T> ? activate_as_on_cpu(activation, x) : activate(activation, x);
}
