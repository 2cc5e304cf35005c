// The activations of feed-forward layers, in f32: relu, silu x / (1 + e^-x), gelu in its tanh form and its exact form with erf; NaN
// stays NaN.
#pragma once

#include "common.cuh"

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
