// x[row, :] = (h - mean(h)) / sqrt(var(h) + eps) * gain + bias in place, with h = x[row, :] + (delta[row, :] + delta_bias).
//
// Shapes: x, delta [rows, d_model]; gain, bias [d_model]; all of type T. delta_bias [d_model] f32, may be null: the bias of the
// product that made delta.
// Parallelisation: a warp per row, 16 bytes per lane and load where d_model and the addresses allow; then up to 1024 elements
// stay in the lanes' registers, so that the row is read once. Other rows are read three times, from cache.
// Numerics: f32; mean first, then the mean of squared differences (biased); a NaN or an infinity makes its whole row NaN. The
// order of additions depends on d_model and alignment alone, not on the rows or the block size.
// Reference: src/cpu/layer_norm.rs
#include "common.cuh"

template <typename T>
struct LayerNormArguments {
    T* x;
    const T* delta;
    const T* gain;
    const T* bias;
    const float* delta_bias;
    unsigned rows;
    unsigned d_model;
    float eps;
    unsigned vectorized;  // d_model is a multiple of VECTOR<T>, and all addresses are of 16 bytes
};

constexpr unsigned ELEMENTS_PER_LANE = 32;

// N neighbours of h = x + (delta + delta_bias) in f32, from element i of the row that starts at `row`.
template <unsigned N, typename T>
__device__ __forceinline__ void load_sum(const LayerNormArguments<T>& a, std::size_t row, unsigned i, float (&h)[N]) {
    const Pack<T, N> x = load_pack<N>(a.x + row + i), delta = load_pack<N>(a.delta + row + i);
#pragma unroll
    for (unsigned k = 0; k < N; ++k) h[k] = to_float(delta.values[k]);
    if (a.delta_bias != nullptr) {
        float bias[N];
        load_floats<N>(a.delta_bias + i, bias);
#pragma unroll
        for (unsigned k = 0; k < N; ++k) h[k] += bias[k];
    }
#pragma unroll
    for (unsigned k = 0; k < N; ++k) h[k] = to_float(x.values[k]) + h[k];
}

template <unsigned N, typename T>
__device__ __forceinline__ void store(const LayerNormArguments<T>& a, std::size_t row, unsigned i, const float (&h)[N],
                                      float mean, float scale) {
    const Pack<T, N> gain = load_pack<N>(a.gain + i), bias = load_pack<N>(a.bias + i);
    Pack<T, N> out;
#pragma unroll
    for (unsigned k = 0; k < N; ++k)
        out.values[k] = from_float<T>((h[k] - mean) * scale * to_float(gain.values[k]) + to_float(bias.values[k]));
    store_pack(a.x + row + i, out);
}

// A row of at most 32 * ELEMENTS_PER_LANE elements, kept in registers; N neighbours at a time.
template <unsigned N, typename T>
__device__ __forceinline__ void normalize_short(const LayerNormArguments<T>& a, std::size_t row, unsigned lane) {
    constexpr unsigned TURNS = ELEMENTS_PER_LANE / N;
    float h[TURNS][N];
    float total = 0.0f;
#pragma unroll
    for (unsigned turn = 0; turn < TURNS; ++turn) {
        const unsigned i = (turn * WARP_SIZE + lane) * N;
        if (i >= a.d_model) continue;
        load_sum<N>(a, row, i, h[turn]);
#pragma unroll
        for (unsigned k = 0; k < N; ++k) total += h[turn][k];
    }
    const float mean = warp_sum(total) / static_cast<float>(a.d_model);
    float squares = 0.0f;
#pragma unroll
    for (unsigned turn = 0; turn < TURNS; ++turn) {
        if ((turn * WARP_SIZE + lane) * N >= a.d_model) continue;
#pragma unroll
        for (unsigned k = 0; k < N; ++k) squares += (h[turn][k] - mean) * (h[turn][k] - mean);
    }
    const float scale = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(a.d_model) + a.eps);
#pragma unroll
    for (unsigned turn = 0; turn < TURNS; ++turn) {
        const unsigned i = (turn * WARP_SIZE + lane) * N;
        if (i < a.d_model) store<N>(a, row, i, h[turn], mean, scale);
    }
}

// A row of any length, read again for each pass.
template <unsigned N, typename T>
__device__ __forceinline__ void normalize_long(const LayerNormArguments<T>& a, std::size_t row, unsigned lane) {
    float h[N];
    float total = 0.0f;
    for (unsigned i = lane * N; i < a.d_model; i += WARP_SIZE * N) {
        load_sum<N>(a, row, i, h);
#pragma unroll
        for (unsigned k = 0; k < N; ++k) total += h[k];
    }
    const float mean = warp_sum(total) / static_cast<float>(a.d_model);
    float squares = 0.0f;
    for (unsigned i = lane * N; i < a.d_model; i += WARP_SIZE * N) {
        load_sum<N>(a, row, i, h);
#pragma unroll
        for (unsigned k = 0; k < N; ++k) squares += (h[k] - mean) * (h[k] - mean);
    }
    const float scale = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(a.d_model) + a.eps);
    for (unsigned i = lane * N; i < a.d_model; i += WARP_SIZE * N) {
        load_sum<N>(a, row, i, h);
        store<N>(a, row, i, h, mean, scale);
    }
}

template <typename T>
__device__ void layer_norm(const LayerNormArguments<T>& a) {
    const unsigned lane = threadIdx.x % WARP_SIZE;
    const unsigned index = blockIdx.x * (blockDim.x / WARP_SIZE) + threadIdx.x / WARP_SIZE;
    if (index >= a.rows) return;
    const std::size_t row = static_cast<std::size_t>(index) * a.d_model;
    if (a.vectorized == 0) normalize_long<1>(a, row, lane);
    else if (a.d_model <= WARP_SIZE * ELEMENTS_PER_LANE) normalize_short<VECTOR<T>>(a, row, lane);
    else normalize_long<VECTOR<T>>(a, row, lane);
}

KERNEL(layer_norm_f32, 512, LayerNormArguments<float>, layer_norm)
KERNEL(layer_norm_f16, 512, LayerNormArguments<__half>, layer_norm)
KERNEL(layer_norm_bf16, 512, LayerNormArguments<__nv_bfloat16>, layer_norm)

LAYOUT(FIELDS(LayerNormArguments<float>, x, delta, gain, bias, delta_bias, rows, d_model, eps, vectorized))
