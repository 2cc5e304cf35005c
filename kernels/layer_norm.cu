// The norm of each row in place: x[row, :] = (h - mean(h)) / sqrt(var(h) + eps) * gain + bias, or h / sqrt(mean(h^2) + eps) * gain +
// bias, with h = x[row, :] + (delta[row, :] + delta_bias). With sum, h is stored there, and is sum[row, :] + (delta[row, :] +
// delta_bias) where there is a delta.
//
// Shapes: x, delta [rows, d_model]; gain, bias [d_model]; all of type T; delta and bias may be null. sum [rows, d_model] f32, may be
// null. delta_bias [d_model] f32, may be null: the bias of the product that made delta.
// Parallelisation: a warp per row, 16 bytes per lane and load where d_model and the addresses allow; then up to 1024 elements
// stay in the lanes' registers, so that the row is read once. Other rows are read three times, from cache. Of f32 a lane loads 4 bytes.
// Numerics: f32; mean first, then the mean of squared differences (biased); a NaN or an infinity makes its whole row NaN. The
// order of additions depends on d_model and alignment alone, not on the rows or the block size; of f32 it is the CPU's, and so are the
// bits.
// Reference: src/cpu/layer_norm.rs
#include "normalize.cuh"

template <typename T>
__device__ void layer_norm(const LayerNormArguments<T>& a) {
    const unsigned row = blockIdx.x * (blockDim.x / WARP_SIZE) + threadIdx.x / WARP_SIZE;
    if (row < a.rows) normalize_rows<1>(a, row, 1);
}

KERNEL(layer_norm_f32, 512, LayerNormArguments<float>, layer_norm)
KERNEL(layer_norm_f16, 512, LayerNormArguments<__half>, layer_norm)
KERNEL(layer_norm_bf16, 512, LayerNormArguments<__nv_bfloat16>, layer_norm)

LAYOUT(FIELDS(LayerNormArguments<float>, x, sum, delta, gain, bias, delta_bias, rows, d_model, eps, flags))
