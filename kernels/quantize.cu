// Each row of x as 8-bit integers and what one of them is worth: scales[row] = max |x[row, :]| / 127,
// out[row, i] = round(x[row, i] * (127 / max |x[row, :]|)), ties to even.
//
// Shapes: x [rows, k] f32; out [rows, padded_i8(k)] i8, zeros from k on; scales [rows] f32.
// Parallelisation: a block per row, four neighbours per thread; the row is read twice, the second time from cache.
// Numerics: f32. A row with a NaN or an infinity has the scale NaN, one of values below 1e-35 (127 over them would be infinite) the
// scale 0; both are integers of 0.
// Reference: src/cpu/gemm/int8.rs
#include "common.cuh"

struct QuantizeArguments {
    const float* x;
    signed char* out;
    float* scales;
    unsigned k;
    unsigned vectorized;  // k is a multiple of 4, x lies at a multiple of 16 bytes
};

constexpr unsigned NEIGHBOURS = 4;

// Four neighbours of a row, zeros beyond its end.
__device__ __forceinline__ void load_four(const QuantizeArguments& a, const float* row, unsigned i, float (&to)[NEIGHBOURS]) {
    if (a.vectorized != 0 && i < a.k) return load_floats(row + i, to);
#pragma unroll
    for (unsigned e = 0; e < NEIGHBOURS; ++e) to[e] = i + e < a.k ? row[i + e] : 0.0f;
}

__device__ void quantize(const QuantizeArguments& a) {
    SHARED(float, scratch, WARP_SIZE);
    const unsigned index = blockIdx.x;
    const float* row = a.x + static_cast<std::size_t>(index) * a.k;
    float largest = 0.0f, some[NEIGHBOURS];
    for (unsigned i = threadIdx.x * NEIGHBOURS; i < a.k; i += blockDim.x * NEIGHBOURS) {
        load_four(a, row, i, some);
#pragma unroll
        // A NaN counts as an infinity, which fmaxf keeps.
        for (unsigned e = 0; e < NEIGHBOURS; ++e) largest = fmaxf(largest, isnan(some[e]) ? INFINITY : fabsf(some[e]));
    }
    largest = block_max(largest, scratch);
    const bool usable = largest >= 1e-35f && largest < INFINITY;
    const float factor = usable ? __fdiv_rn(127.0f, largest) : 0.0f;
    const unsigned padded = padded_i8(a.k);
    signed char* out = a.out + static_cast<std::size_t>(index) * padded;
    for (unsigned i = threadIdx.x * NEIGHBOURS; i < padded; i += blockDim.x * NEIGHBOURS) {
        load_four(a, row, i, some);
        Pack<signed char, NEIGHBOURS> pack;
#pragma unroll
        for (unsigned e = 0; e < NEIGHBOURS; ++e)
            pack.values[e] = static_cast<signed char>(usable ? __float2int_rn(__fmul_rn(some[e], factor)) : 0);
        store_pack(out + i, pack);
    }
    if (threadIdx.x == 0) a.scales[index] = usable ? __fdiv_rn(largest, 127.0f) : largest < 1e-35f ? 0.0f : NAN;
}

KERNEL(quantize_f32, 1024, QuantizeArguments, quantize)

LAYOUT(FIELDS(QuantizeArguments, x, out, scales, k, vectorized)
       CONSTANT("quantize::ALIGNMENT", PIECE_I8))
