// Norms of rows, each by a warp: what kernels/layer_norm.cu says, for the kernel there and for those that end with one.
#pragma once

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

    // The first element of a row.
    __device__ __forceinline__ std::size_t row(unsigned index) const { return static_cast<std::size_t>(index) * d_model; }
};

constexpr unsigned VECTORIZED = 1;  // d_model is a multiple of VECTOR<T>, and all addresses are of 16 bytes
constexpr unsigned RMS = 2;         // nothing is subtracted

constexpr unsigned ELEMENTS_PER_LANE = 32;

// N neighbours of h in f32, from element i of the row that starts at `row`. The first pass over a row finds x, or its sum, and delta; whoever
// makes it stores h in sum, where there is one, and later passes find it there.
template <unsigned N, typename T>
__device__ __forceinline__ void load_sum(const LayerNormArguments<T>& a, std::size_t row, unsigned i, bool first, float (&h)[N]) {
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
        return;
    }
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

// ---- f16 and bf16 ----

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

// What is subtracted from a row whose elements add up to `total`.
template <typename T>
__device__ __forceinline__ float mean_of(const LayerNormArguments<T>& a, float total) {
    return (a.flags & RMS) != 0 ? 0.0f : total / static_cast<float>(a.d_model);
}

// What a row is multiplied by, from the sum of its squared differences.
template <typename T>
__device__ __forceinline__ float scale_of(const LayerNormArguments<T>& a, float squares) {
    return 1.0f / sqrtf(squares / static_cast<float>(a.d_model) + a.eps);
}

// Calls work(r, turn, i) for each of `count` rows, at most R, and each turn of a lane over a row, which begins at element i.
template <unsigned R, unsigned TURNS, unsigned N, typename F>
__device__ __forceinline__ void for_each_turn(unsigned count, unsigned d_model, F work) {
    const unsigned lane = threadIdx.x % WARP_SIZE;
#pragma unroll
    for (unsigned turn = 0; turn < TURNS; ++turn) {
        const unsigned i = (turn * WARP_SIZE + lane) * N;
        if (i >= d_model) continue;
#pragma unroll
        for (unsigned r = 0; r < R; ++r) {
            if (r < count) work(r, turn, i);
        }
    }
}

// `count` rows, at most R, of at most 32 * ELEMENTS_PER_LANE elements, kept in registers; N neighbours at a time.
template <unsigned R, unsigned N, typename T>
__device__ __forceinline__ void normalize_short(const LayerNormArguments<T>& a, unsigned first, unsigned count) {
    constexpr unsigned TURNS = ELEMENTS_PER_LANE / N;
    float h[R][TURNS][N], mean[R] = {}, scale[R] = {};
    for_each_turn<R, TURNS, N>(count, a.d_model, [&](unsigned r, unsigned turn, unsigned i) {
        load_sum<N>(a, a.row(first + r), i, true, h[r][turn]);
#pragma unroll
        for (unsigned k = 0; k < N; ++k) mean[r] += h[r][turn][k];
    });
    if (a.sum != nullptr) {
        for_each_turn<R, TURNS, N>(count, a.d_model, [&](unsigned r, unsigned turn, unsigned i) {
            store_floats<N>(a.sum + a.row(first + r) + i, h[r][turn]);
        });
    }
    warp_sums(mean);
#pragma unroll
    for (unsigned r = 0; r < R; ++r) mean[r] = mean_of(a, mean[r]);
    for_each_turn<R, TURNS, N>(count, a.d_model, [&](unsigned r, unsigned turn, unsigned) {
#pragma unroll
        for (unsigned k = 0; k < N; ++k) scale[r] += (h[r][turn][k] - mean[r]) * (h[r][turn][k] - mean[r]);
    });
    warp_sums(scale);
#pragma unroll
    for (unsigned r = 0; r < R; ++r) scale[r] = scale_of(a, scale[r]);
    for_each_turn<R, TURNS, N>(count, a.d_model, [&](unsigned r, unsigned turn, unsigned i) {
        store<N>(a, a.row(first + r), i, h[r][turn], mean[r], scale[r]);
    });
}

// A row of any length, read again for each pass.
template <unsigned N, typename T>
__device__ __forceinline__ void normalize_long(const LayerNormArguments<T>& a, std::size_t row) {
    const unsigned lane = threadIdx.x % WARP_SIZE;
    float h[N];
    float total = 0.0f;
    for (unsigned i = lane * N; i < a.d_model; i += WARP_SIZE * N) {
        load_sum<N>(a, row, i, true, h);
        if (a.sum != nullptr) store_floats<N>(a.sum + row + i, h);
#pragma unroll
        for (unsigned k = 0; k < N; ++k) total += h[k];
    }
    const float mean = mean_of(a, warp_sum(total));
    float squares = 0.0f;
    for (unsigned i = lane * N; i < a.d_model; i += WARP_SIZE * N) {
        load_sum<N>(a, row, i, false, h);
#pragma unroll
        for (unsigned k = 0; k < N; ++k) squares += (h[k] - mean) * (h[k] - mean);
    }
    const float scale = scale_of(a, warp_sum(squares));
    for (unsigned i = lane * N; i < a.d_model; i += WARP_SIZE * N) {
        load_sum<N>(a, row, i, false, h);
        store<N>(a, row, i, h, mean, scale);
    }
}

// ---- f32, as on the CPU ----

__device__ __forceinline__ float mean_as_on_cpu(const LayerNormArguments<float>& a, float total) {
    return (a.flags & RMS) != 0 ? 0.0f : __fdiv_rn(total, static_cast<float>(a.d_model));
}

__device__ __forceinline__ float scale_as_on_cpu(const LayerNormArguments<float>& a, float squares) {
    return __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(__fdiv_rn(squares, static_cast<float>(a.d_model)), a.eps)));
}

__device__ __forceinline__ void store_as_on_cpu(const LayerNormArguments<float>& a, std::size_t row, unsigned i, float h, float mean,
                                                float scale) {
    const float bias = a.bias != nullptr ? a.bias[i] : 0.0f;
    a.x[row + i] = __fmaf_rn(__fmul_rn(h - mean, scale), a.gain[i], bias);
}

// sums[r] = the sum of add(r, sum, x) over the elements of row r, a lane's turn-th being element 32 * turn + lane.
template <unsigned R, typename A>
__device__ __forceinline__ void sum_rows(const float (&h)[R][ELEMENTS_PER_LANE][1], unsigned d_model, A add, float (&sums)[R]) {
    const unsigned lane = threadIdx.x % WARP_SIZE;
    float low[R] = {}, high[R] = {};
#pragma unroll
    for (unsigned turn = 0; turn < ELEMENTS_PER_LANE; turn += 2) {
        const unsigned first = turn * WARP_SIZE;
        if (first >= d_model) continue;
#pragma unroll
        for (unsigned r = 0; r < R; ++r) {
            if (first + LANES_BLOCK <= d_model) {
                low[r] = add(r, low[r], h[r][turn][0]);
                high[r] = add(r, high[r], h[r][turn + 1][0]);
                continue;
            }
            // What is left of the row goes through the first accumulator, whose lanes are the warp's first half.
#pragma unroll
            for (unsigned t = turn; t < turn + 2; ++t) {
                const unsigned i = t * WARP_SIZE + lane;
                const float far = __shfl_xor_sync(FULL_WARP, h[r][t][0], LANES);
                if (lane < LANES && i < d_model) low[r] = add(r, low[r], h[r][t][0]);
                if (lane < LANES && i + LANES < d_model) low[r] = add(r, low[r], far);
            }
        }
    }
    sums_of_lanes(low, high, sums);
}

// As normalize_short.
template <unsigned R>
__device__ __forceinline__ void normalize_short_as_on_cpu(const LayerNormArguments<float>& a, unsigned first, unsigned count) {
    float h[R][ELEMENTS_PER_LANE][1] = {}, mean[R] = {}, scale[R];
    for_each_turn<R, ELEMENTS_PER_LANE, 1>(count, a.d_model, [&](unsigned r, unsigned turn, unsigned i) {
        load_sum<1>(a, a.row(first + r), i, true, h[r][turn]);
    });
    if (a.sum != nullptr) {
        for_each_turn<R, ELEMENTS_PER_LANE, 1>(count, a.d_model, [&](unsigned r, unsigned turn, unsigned i) {
            a.sum[a.row(first + r) + i] = h[r][turn][0];
        });
    }
    if ((a.flags & RMS) == 0) sum_rows(h, a.d_model, [](unsigned, float sum, float x) { return __fadd_rn(sum, x); }, mean);
#pragma unroll
    for (unsigned r = 0; r < R; ++r) mean[r] = mean_as_on_cpu(a, mean[r]);
    sum_rows(h, a.d_model, [&](unsigned r, float sum, float x) { return __fmaf_rn(x - mean[r], x - mean[r], sum); }, scale);
#pragma unroll
    for (unsigned r = 0; r < R; ++r) scale[r] = scale_as_on_cpu(a, scale[r]);
    for_each_turn<R, ELEMENTS_PER_LANE, 1>(count, a.d_model, [&](unsigned r, unsigned turn, unsigned i) {
        store_as_on_cpu(a, a.row(first + r), i, h[r][turn][0], mean[r], scale[r]);
    });
}

// A row of any length, read again for each pass.
__device__ __forceinline__ void normalize_long_as_on_cpu(const LayerNormArguments<float>& a, std::size_t row) {
    const auto value = [&](bool first) {
        return [&a, row, first](unsigned i) {
            float h[1];
            load_sum<1>(a, row, i, first, h);
            if (first && a.sum != nullptr) a.sum[row + i] = h[0];
            return h[0];
        };
    };
    const auto plain = [](float sum, float x) { return __fadd_rn(sum, x); };
    const float mean = mean_as_on_cpu(a, sum_in_lanes(a.d_model, value(true), plain));
    const auto square = [=](float sum, float x) { return __fmaf_rn(x - mean, x - mean, sum); };
    const float scale = scale_as_on_cpu(a, sum_in_lanes(a.d_model, value(false), square));
    // Some elements have been read, and stored in sum, by other lanes than those that write them now.
    __syncwarp();
    for (unsigned i = threadIdx.x % WARP_SIZE; i < a.d_model; i += WARP_SIZE) store_as_on_cpu(a, row, i, value(false)(i), mean, scale);
}

// ---- Both ----

// Row `first` and those after it, `count` of them, at most R: by a warp. Those that fit its registers are worked on at once, so that their
// waits overlap.
template <unsigned R, typename T>
__device__ __forceinline__ void normalize_rows(const LayerNormArguments<T>& a, unsigned first, unsigned count) {
    const bool is_short = a.d_model <= WARP_SIZE * ELEMENTS_PER_LANE;
    if constexpr (AS_ON_CPU<T>) {
        if (is_short) return normalize_short_as_on_cpu<R>(a, first, count);
        for (unsigned r = 0; r < count; ++r) normalize_long_as_on_cpu(a, a.row(first + r));
    } else {
        const bool is_vectorized = (a.flags & VECTORIZED) != 0;
        if (is_short && is_vectorized) return normalize_short<R, VECTOR<T>>(a, first, count);
        for (unsigned r = 0; r < count; ++r) {
            if (is_vectorized) normalize_long<VECTOR<T>>(a, a.row(first + r));
            else normalize_long<1>(a, a.row(first + r));
        }
    }
}
