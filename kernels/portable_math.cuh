// exp and ln whose bits are the same on every device, where a library's would differ in the last place: additions and
// multiplications alone, each rounded, in a fixed order. Polynomials: Moshier, Cephes (expf, logf).
// Reference: src/cpu/portable_math.rs
#pragma once
#include "common.cuh"

// ln 2 in two parts, the first of which times a small integer is exact.
constexpr float LN_2_HIGH = 0.693359375f, LN_2_LOW = -2.12194440e-4f;

// a * b + c, rounded twice: the compiler may not fuse it.
__device__ __forceinline__ float mul_add_rn(float a, float b, float c) { return __fadd_rn(__fmul_rn(a, b), c); }

// exp(x) for x <= 0; 1 at 0, and 0 below -80.
__device__ __forceinline__ float portable_exp(float x) {
    if (x < -80.0f) return 0.0f;
    constexpr float ROUNDING = 12582912.0f;  // adding and subtracting it rounds to an integer
    const float n = __fadd_rn(mul_add_rn(x, 1.44269504f, ROUNDING), -ROUNDING);
    const float r = mul_add_rn(n, -LN_2_LOW, mul_add_rn(n, -LN_2_HIGH, x));
    float p = 1.9875691e-4f;
    p = mul_add_rn(p, r, 1.3981999e-3f);
    p = mul_add_rn(p, r, 8.333452e-3f);
    p = mul_add_rn(p, r, 4.1665796e-2f);
    p = mul_add_rn(p, r, 0.16666666f);
    p = mul_add_rn(p, r, 0.5f);
    const float y = __fadd_rn(mul_add_rn(p, __fmul_rn(r, r), r), 1.0f);
    return __fmul_rn(y, __uint_as_float(static_cast<unsigned>(static_cast<int>(n) + 127) << 23));
}

// ln(x) for a normal number above 0.
__device__ __forceinline__ float portable_ln(float x) {
    const unsigned bits = __float_as_uint(x);
    float e = static_cast<float>(static_cast<int>(bits >> 23) - 126);
    const float m = __uint_as_float((bits & 0x007FFFFFu) | 0x3F000000u);
    float r = __fadd_rn(m, -1.0f);
    if (m < 0.70710678f) {
        e = __fadd_rn(e, -1.0f);
        r = __fadd_rn(__fadd_rn(m, m), -1.0f);
    }
    const float z = __fmul_rn(r, r);
    float p = 7.0376836e-2f;
    p = mul_add_rn(p, r, -0.1151461f);
    p = mul_add_rn(p, r, 0.116769984f);
    p = mul_add_rn(p, r, -0.12420141f);
    p = mul_add_rn(p, r, 0.14249323f);
    p = mul_add_rn(p, r, -0.16668058f);
    p = mul_add_rn(p, r, 0.20000715f);
    p = mul_add_rn(p, r, -0.24999994f);
    p = mul_add_rn(p, r, 0.3333333f);
    const float y = mul_add_rn(z, -0.5f, mul_add_rn(e, LN_2_LOW, __fmul_rn(__fmul_rn(p, r), z)));
    return mul_add_rn(e, LN_2_HIGH, __fadd_rn(r, y));
}
