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
#include "lanes.cuh"

template <typename T>
struct LayerNormArguments {
    T* x;
    float* sum;
    const T* delta;
    const T* gain;
    const T* bias;
    const float* delta_bias;
    unsigned rows;
    unsigned d_model;
    float eps;
    unsigned flags;
};

constexpr unsigned VECTORIZED = 1;  // d_model is a multiple of VECTOR<T>, and all addresses are of 16 bytes
constexpr unsigned RMS = 2;         // nothing is subtracted

constexpr unsigned ELEMENTS_PER_LANE = 32;

// N neighbours of h in f32, from element i of the row that starts at `row`. The first pass over a row stores them in sum, where
// there is one, and later ones find them there.
template <unsigned N, typename T>
__device__ __forceinline__ void load_sum(const LayerNormArguments<T>& a, std::size_t row, unsigned i, bool first,
                                         float (&h)[N]) {
    float base[N];
    if (a.sum != nullptr && (a.delta != nullptr || !first)) {
        load_floats<N>(a.sum + row + i, base);
    } else {
        const Pack<T, N> x = load_pack<N>(a.x + row + i);
#pragma unroll
        for (unsigned k = 0; k < N; ++k) base[k] = to_float(x.values[k]);
    }
    if (a.delta == nullptr || (a.sum != nullptr && !first)) {
#pragma unroll
        for (unsigned k = 0; k < N; ++k) h[k] = base[k];
    } else {
        const Pack<T, N> delta = load_pack<N>(a.delta + row + i);
#pragma unroll
        for (unsigned k = 0; k < N; ++k) h[k] = to_float(delta.values[k]);
        if (a.delta_bias != nullptr) {
            float bias[N];
            load_floats<N>(a.delta_bias + i, bias);
#pragma unroll
            for (unsigned k = 0; k < N; ++k) h[k] += bias[k];
        }
#pragma unroll
        for (unsigned k = 0; k < N; ++k) h[k] = base[k] + h[k];
    }
    if (a.sum != nullptr && first) store_floats<N>(a.sum + row + i, h);
}

template <unsigned N, typename T>
__device__ __forceinline__ void store(const LayerNormArguments<T>& a, std::size_t row, unsigned i, const float (&h)[N],
                                      float mean, float scale) {
    const Pack<T, N> gain = load_pack<N>(a.gain + i);
    Pack<T, N> bias, out;
    if (a.bias != nullptr) bias = load_pack<N>(a.bias + i);
#pragma unroll
    for (unsigned k = 0; k < N; ++k) {
        const float value = (h[k] - mean) * scale * to_float(gain.values[k]);
        out.values[k] = from_float<T>(a.bias != nullptr ? value + to_float(bias.values[k]) : value);
    }
    store_pack(a.x + row + i, out);
}

// What is subtracted from a row whose elements add up to `total` over the warp.
template <typename T>
__device__ __forceinline__ float mean_of(const LayerNormArguments<T>& a, float total) {
    return (a.flags & RMS) != 0 ? 0.0f : warp_sum(total) / static_cast<float>(a.d_model);
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
        load_sum<N>(a, row, i, true, h[turn]);
#pragma unroll
        for (unsigned k = 0; k < N; ++k) total += h[turn][k];
    }
    const float mean = mean_of(a, total);
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
        load_sum<N>(a, row, i, true, h);
#pragma unroll
        for (unsigned k = 0; k < N; ++k) total += h[k];
    }
    const float mean = mean_of(a, total);
    float squares = 0.0f;
    for (unsigned i = lane * N; i < a.d_model; i += WARP_SIZE * N) {
        load_sum<N>(a, row, i, false, h);
#pragma unroll
        for (unsigned k = 0; k < N; ++k) squares += (h[k] - mean) * (h[k] - mean);
    }
    const float scale = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(a.d_model) + a.eps);
    for (unsigned i = lane * N; i < a.d_model; i += WARP_SIZE * N) {
        load_sum<N>(a, row, i, false, h);
        store<N>(a, row, i, h, mean, scale);
    }
}

// What a row in f32 is multiplied by, from the sum of its squared differences.
__device__ __forceinline__ float scale_of(const LayerNormArguments<float>& a, float squares) {
    return __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(__fdiv_rn(squares, static_cast<float>(a.d_model)), a.eps)));
}

__device__ __forceinline__ void store_as_on_cpu(const LayerNormArguments<float>& a, std::size_t row, unsigned i, float h, float mean,
                                                float scale) {
    const float bias = a.bias != nullptr ? a.bias[i] : 0.0f;
    a.x[row + i] = __fmaf_rn(__fmul_rn(h - mean, scale), a.gain[i], bias);
}

// A row of at most 32 * ELEMENTS_PER_LANE elements in registers: a lane's turn-th is element 32 * turn + lane.
__device__ __forceinline__ void normalize_short_as_on_cpu(const LayerNormArguments<float>& a, std::size_t row, unsigned lane) {
    float h[ELEMENTS_PER_LANE][1];
#pragma unroll
    for (unsigned turn = 0; turn < ELEMENTS_PER_LANE; ++turn) {
        const unsigned i = turn * WARP_SIZE + lane;
        if (i < a.d_model) load_sum<1>(a, row, i, true, h[turn]);
    }
    const auto sum = [&](auto add) {
        float low = 0.0f, high = 0.0f;
#pragma unroll
        for (unsigned turn = 0; turn < ELEMENTS_PER_LANE; turn += 2) {
            const unsigned first = turn * WARP_SIZE;
            if (first + LANES_BLOCK <= a.d_model) {
                low = add(low, h[turn][0]);
                high = add(high, h[turn + 1][0]);
            } else if (first < a.d_model) {
                // What is left of the row goes through the first accumulator, whose lanes are the warp's first half.
#pragma unroll
                for (unsigned t = turn; t < turn + 2; ++t) {
                    const unsigned i = t * WARP_SIZE + lane;
                    const float far = __shfl_xor_sync(FULL_WARP, h[t][0], LANES);
                    if (lane < LANES && i < a.d_model) low = add(low, h[t][0]);
                    if (lane < LANES && i + LANES < a.d_model) low = add(low, far);
                }
            }
        }
        return sum_of_lanes(low, high);
    };
    float mean = 0.0f;
    if ((a.flags & RMS) == 0)
        mean = __fdiv_rn(sum([](float sum, float x) { return __fadd_rn(sum, x); }), static_cast<float>(a.d_model));
    const float scale = scale_of(a, sum([=](float sum, float x) { return __fmaf_rn(x - mean, x - mean, sum); }));
#pragma unroll
    for (unsigned turn = 0; turn < ELEMENTS_PER_LANE; ++turn) {
        const unsigned i = turn * WARP_SIZE + lane;
        if (i < a.d_model) store_as_on_cpu(a, row, i, h[turn][0], mean, scale);
    }
}

// A row of any length in f32, read again for each pass.
__device__ __forceinline__ void normalize_long_as_on_cpu(const LayerNormArguments<float>& a, std::size_t row, unsigned lane) {
    const auto value = [&](bool first) {
        return [&a, row, first](unsigned i) {
            float h[1];
            load_sum<1>(a, row, i, first, h);
            return h[0];
        };
    };
    const auto plain = [](float sum, float x) { return __fadd_rn(sum, x); };
    const float total = sum_in_lanes(a.d_model, value(true), plain);
    const float mean = (a.flags & RMS) != 0 ? 0.0f : __fdiv_rn(total, static_cast<float>(a.d_model));
    const auto square = [=](float sum, float x) { return __fmaf_rn(x - mean, x - mean, sum); };
    const float scale = scale_of(a, sum_in_lanes(a.d_model, value(false), square));
    // Some elements have been read, and stored in sum, by other lanes than those that write them now.
    __syncwarp();
    for (unsigned i = lane; i < a.d_model; i += WARP_SIZE) store_as_on_cpu(a, row, i, value(false)(i), mean, scale);
}

template <typename T>
__device__ void layer_norm(const LayerNormArguments<T>& a) {
    const unsigned lane = threadIdx.x % WARP_SIZE;
    const unsigned index = blockIdx.x * (blockDim.x / WARP_SIZE) + threadIdx.x / WARP_SIZE;
    if (index >= a.rows) return;
    const std::size_t row = static_cast<std::size_t>(index) * a.d_model;
    if constexpr (AS_ON_CPU<T>) {
        if (a.d_model <= WARP_SIZE * ELEMENTS_PER_LANE) normalize_short_as_on_cpu(a, row, lane);
        else normalize_long_as_on_cpu(a, row, lane);
    } else if ((a.flags & VECTORIZED) == 0) normalize_long<1>(a, row, lane);
    else if (a.d_model <= WARP_SIZE * ELEMENTS_PER_LANE) normalize_short<VECTOR<T>>(a, row, lane);
    else normalize_long<VECTOR<T>>(a, row, lane);
}

KERNEL(layer_norm_f32, 512, LayerNormArguments<float>, layer_norm)
KERNEL(layer_norm_f16, 512, LayerNormArguments<__half>, layer_norm)
KERNEL(layer_norm_bf16, 512, LayerNormArguments<__nv_bfloat16>, layer_norm)

LAYOUT(FIELDS(LayerNormArguments<float>, x, sum, delta, gain, bias, delta_bias, rows, d_model, eps, flags))
