// out[row, j] = activation(sum over t of x[row, t] * weight[j, t], plus bias[j]): matrix products whose bits are those of their row and
// column, whatever the number of rows. Of 8-bit integers the sum is multiplied by x_scales[row] * weight_scales[j].
//
// Shapes: x [rows, k], weight [n, k] of type T; out [rows, n] of type O, its rows out_stride elements apart, what lies between is
// not written; bias [n] f32, may be null; of integers x_scales [rows] and weight_scales [n] f32. For tensor cores k is a multiple of 8,
// x and weight lie at multiples of 16 bytes.
// Parallelisation: a block per tile of out. f16, bf16 and pairs of integers on tensor cores: warps side by side over the tile or, for few rows and many
// columns of x, one behind the other along k; tiles of x and weight come to shared memory by copies that run ahead. f32, and what tensor
// cores do not take, on the ordinary units: a thread per small square of the tile.
// Numerics: f32. On the ordinary units an element is one chain of fused multiply-adds from the first t to the last. On tensor cores it is
// the sum, from the first to the last, of slices of SLICE elements along k, each a chain of the hardware's products of 16. Neither
// depends on the tile, so any may be taken for any number of rows. Sums of integers are exact as long as 127 * 127 k < 2^31.
// Reference: src/cpu/gemm.rs, of integers src/cpu/gemm/int8.rs
#include "gemm.cuh"

#define ON_ORDINARY_UNITS(types, Arguments)                                                                \
    KERNEL(gemm_square32_##types, SmallSquare::THREADS, Arguments, gemm_on_ordinary_units<SmallSquare>)  \
    KERNEL(gemm_square64_##types, LargeSquare::THREADS, Arguments, gemm_on_ordinary_units<LargeSquare>)  \
    KERNEL(gemm_square128_##types, HugeSquare::THREADS, Arguments, gemm_on_ordinary_units<HugeSquare>)

#define ON_TENSOR_CORES(types, Arguments)                                                \
    KERNEL(gemm_small_##types, Small::THREADS, Arguments, gemm_on_tensor_cores<Small>)    \
    KERNEL(gemm_deep_##types, Deep::THREADS, Arguments, gemm_on_tensor_cores<Deep>)       \
    KERNEL(gemm_middle_##types, Middle::THREADS, Arguments, gemm_on_tensor_cores<Middle>) \
    KERNEL(gemm_large_##types, Large::THREADS, Arguments, gemm_on_tensor_cores<Large>)    \
    KERNEL(gemm_huge_##types, Huge::THREADS, Arguments, gemm_on_tensor_cores<Huge>)

ON_ORDINARY_UNITS(f32, GemmF32)
ON_ORDINARY_UNITS(f16, GemmF16)
ON_ORDINARY_UNITS(bf16, GemmBf16)
ON_ORDINARY_UNITS(wide_f16, GemmWideF16)
ON_ORDINARY_UNITS(wide_bf16, GemmWideBf16)
ON_TENSOR_CORES(f16, GemmF16)
ON_TENSOR_CORES(bf16, GemmBf16)
ON_TENSOR_CORES(wide_f16, GemmWideF16)
ON_TENSOR_CORES(wide_bf16, GemmWideBf16)
ON_TENSOR_CORES(i8, GemmI8)

LAYOUT(FIELDS(GemmF32, x, weight, bias, x_scales, weight_scales, out, rows, n, k, out_stride, activation, vectorized)
       FIELDS(GemmF16, x, weight, bias, x_scales, weight_scales, out, rows, n, k, out_stride, activation, vectorized)
       FIELDS(GemmBf16, x, weight, bias, x_scales, weight_scales, out, rows, n, k, out_stride, activation, vectorized)
       FIELDS(GemmWideF16, x, weight, bias, x_scales, weight_scales, out, rows, n, k, out_stride, activation, vectorized)
       FIELDS(GemmWideBf16, x, weight, bias, x_scales, weight_scales, out, rows, n, k, out_stride, activation, vectorized)
       FIELDS(GemmI8, x, weight, bias, x_scales, weight_scales, out, rows, n, k, out_stride, activation, vectorized)
       CONSTANT("Activation::None", NONE)
       CONSTANT("Activation::Relu", RELU)
       CONSTANT("Activation::Silu", SILU)
       CONSTANT("Activation::GeluTanh", GELU_TANH)
       CONSTANT("Activation::GeluErf", GELU_ERF)
       CONSTANT("gemm::SLICE", SLICE)
       CONSTANT("Small::SHARED_BYTES", Small::SHARED_BYTES)
       CONSTANT("Deep::SHARED_BYTES", Deep::SHARED_BYTES)
       CONSTANT("Middle::SHARED_BYTES", Middle::SHARED_BYTES)
       CONSTANT("Large::SHARED_BYTES", Large::SHARED_BYTES)
       CONSTANT("Huge::SHARED_BYTES", Huge::SHARED_BYTES))
