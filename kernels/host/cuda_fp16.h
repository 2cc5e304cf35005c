// `__half` for the emulator: storage and conversions, which is all that the kernels use (they compute in f32).
#pragma once
#include "emulated.h"

struct __half {
    std::uint16_t bits;
};

inline float __half2float(__half x) {
    const std::uint32_t sign = static_cast<std::uint32_t>(x.bits & 0x8000u) << 16, rest = x.bits & 0x7FFFu;
    if (rest >= 0x7C00u) return __uint_as_float(sign | 0x7F800000u | (rest & 0x3FFu) << 13);  // infinity, NaN
    if (rest < 0x400u) {                                                                      // zero, subnormal: rest * 2^-24
        const float magnitude = static_cast<float>(rest) * 5.9604644775390625e-8f;
        return sign != 0 ? -magnitude : magnitude;
    }
    return __uint_as_float(sign | ((rest << 13) + (112u << 23)));
}

// Rounds to nearest, ties to even.
inline __half __float2half_rn(float x) {
    const std::uint32_t bits = __float_as_uint(x), magnitude = bits & 0x7FFFFFFFu;
    const auto sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000u);
    const auto make = [sign](std::uint32_t rest) { return __half{static_cast<std::uint16_t>(sign | rest)}; };
    if (magnitude > 0x7F800000u) return __half{0x7FFFu};  // the device's NaN
    if (magnitude >= 0x477FF000u) return make(0x7C00u);   // 65520 and above round to infinity
    if (magnitude < 0x38800000u)                          // below 2^-14: a multiple of 2^-24, which the f32 addition rounds to
        return make(__float_as_uint(__uint_as_float(magnitude) + 0.5f) - 0x3F000000u);
    return make((magnitude - (112u << 23) + 0xFFFu + (magnitude >> 13 & 1u)) >> 13);
}
inline __half __float2half(float x) { return __float2half_rn(x); }

inline unsigned short __half_as_ushort(__half x) { return x.bits; }
inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
