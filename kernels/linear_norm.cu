// delta = x W^T as kernels/gemm.cu says, then the norm of each row with it as kernels/layer_norm.cu says: what ends a sublayer, in one
// launch for few rows.
//
// Shapes: as there; the product's out is the norm's delta, so out_stride = n = d_model and both have as many rows. tickets: one for
// each row of tiles, 0 before and after.
// Parallelisation: the product's, in the tiles for few rows. The block that is the last of its rows' tiles has all columns of these rows before it and
// normalises them, several to a warp at a time, so that the waits for their loads and shuffles overlap.
// Numerics: the bits of the two kernels; delta is rounded to its type as if it had been read by another launch.
// Reference: src/cpu/gemm.rs, src/cpu/layer_norm.rs
#include "gemm.cuh"
#include "normalize.cuh"

template <typename T, typename O>
struct LinearNormArguments {
    GemmArguments<T, O> product;
    LayerNormArguments<O> norm;
    unsigned* tickets;
};

// Rows that a warp works on at once. On tensor cores shared memory bounds the blocks of a multiprocessor, on the ordinary units registers do.
constexpr unsigned AT_ONCE_ON_TENSOR_CORES = 4, AT_ONCE_ON_ORDINARY_UNITS = 2;

// The norm of rows `first` to `first` + ROWS, if the calling block is the last of those that made them. By a whole block of THREADS.
template <unsigned ROWS, unsigned THREADS, unsigned AT_ONCE, typename T, typename O>
__device__ __forceinline__ void normalize_tile(const LinearNormArguments<T, O>& a) {
    constexpr unsigned EACH = ROWS / (THREADS / WARP_SIZE);
    static_assert(EACH % AT_ONCE == 0);
    SHARED(unsigned, flag, 1);
    if (!is_last_block(a.tickets + blockIdx.x, gridDim.y, flag)) return;
    const unsigned first = blockIdx.x * ROWS + threadIdx.x / WARP_SIZE * EACH, end = min(first + EACH, a.norm.rows);
#pragma unroll 1
    for (unsigned row = first; row < end; row += AT_ONCE) normalize_rows<AT_ONCE>(a.norm, row, min(AT_ONCE, end - row));
}

template <typename S, typename T, typename O>
__device__ void linear_norm_on_tensor_cores(const LinearNormArguments<T, O>& a) {
    gemm_on_tensor_cores<S>(a.product);
    normalize_tile<S::ROWS, S::THREADS, AT_ONCE_ON_TENSOR_CORES>(a);
}

template <typename S, typename T, typename O>
__device__ void linear_norm_on_ordinary_units(const LinearNormArguments<T, O>& a) {
    gemm_on_ordinary_units<S>(a.product);
    normalize_tile<S::SIDE, S::THREADS, AT_ONCE_ON_ORDINARY_UNITS>(a);
}

using LinearNormF32 = LinearNormArguments<float, float>;
using LinearNormF16 = LinearNormArguments<__half, __half>;
using LinearNormBf16 = LinearNormArguments<__nv_bfloat16, __nv_bfloat16>;
using LinearNormI8 = LinearNormArguments<PairI8, float>;

#define ON_ORDINARY_UNITS(types, Arguments) \
    KERNEL(linear_norm_square32_##types, SmallSquare::THREADS, Arguments, linear_norm_on_ordinary_units<SmallSquare>)

#define ON_TENSOR_CORES(types, Arguments)                                                         \
    KERNEL(linear_norm_small_##types, Small::THREADS, Arguments, linear_norm_on_tensor_cores<Small>) \
    KERNEL(linear_norm_deep_##types, Deep::THREADS, Arguments, linear_norm_on_tensor_cores<Deep>)

ON_ORDINARY_UNITS(f32, LinearNormF32)
ON_ORDINARY_UNITS(f16, LinearNormF16)
ON_ORDINARY_UNITS(bf16, LinearNormBf16)
ON_TENSOR_CORES(f16, LinearNormF16)
ON_TENSOR_CORES(bf16, LinearNormBf16)
ON_TENSOR_CORES(i8, LinearNormI8)

LAYOUT(FIELDS(LinearNormF32, product, norm, tickets)
       FIELDS(LinearNormF16, product, norm, tickets)
       FIELDS(LinearNormBf16, product, norm, tickets)
       FIELDS(LinearNormI8, product, norm, tickets))
