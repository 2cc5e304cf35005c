// Matrix products: what kernels/gemm.cu says, for the kernels there and for those in which more follows.
#pragma once

#include "activation.cuh"
#include "tensor_cores.cuh"

template <typename T, typename O>
struct GemmArguments {
    const T* x;
    const T* weight;
    const float* bias;
    const float* x_scales;       // of integers; so below
    const float* weight_scales;
    O* out;
    unsigned rows;
    unsigned n;
    unsigned k;  // in elements of type T
    unsigned out_stride;
    unsigned activation;  // Activation
    unsigned vectorized;  // rows of out start at multiples of 16 bytes
};

// What is done with N finished sums of neighbouring columns, all of them inside. The choice stands outside of the loops: what is not
// chosen is not even fetched.
template <unsigned N, typename T, typename O>
__device__ __forceinline__ void finish(const GemmArguments<T, O>& a, unsigned column, float (&sums)[N]) {
    if (a.bias != nullptr) {
#pragma unroll
        for (unsigned e = 0; e < N; ++e) sums[e] += a.bias[column + e];
    }
    const auto each = [&](auto activation) {
#pragma unroll
        for (unsigned e = 0; e < N; ++e) sums[e] = activate_for<O>(activation(), sums[e]);
    };
    switch (a.activation) {
        case RELU: return each([] { return RELU; });
        case SILU: return each([] { return SILU; });
        case GELU_TANH: return each([] { return GELU_TANH; });
        case GELU_ERF: return each([] { return GELU_ERF; });
        default: return;
    }
}

// What sums of a row and a column are worth.
template <typename T, typename O>
__device__ __forceinline__ float worth(const GemmArguments<T, O>&, unsigned, unsigned, float sum) { return sum; }
template <typename T, typename O>
__device__ __forceinline__ float worth(const GemmArguments<T, O>& a, unsigned row, unsigned column, int sum) {
    return __fmul_rn(__int2float_rn(sum), __fmul_rn(a.x_scales[row], a.weight_scales[column]));
}

// N sums of neighbouring columns of a row, as far as they lie inside.
template <unsigned N, typename T, typename O>
__device__ __forceinline__ void store_row(const GemmArguments<T, O>& a, unsigned row, unsigned column, const SumOf<T> (&exact)[N]) {
    if (row >= a.rows || column >= a.n) return;
    float sums[N];
#pragma unroll
    for (unsigned e = 0; e < N; ++e) sums[e] = worth(a, row, min(column + e, a.n - 1), exact[e]);
    O* out = a.out + static_cast<std::size_t>(row) * a.out_stride + column;
    if (column + N <= a.n) {
        finish<N>(a, column, sums);
        Pack<O, N> pack;
#pragma unroll
        for (unsigned e = 0; e < N; ++e) pack.values[e] = from_float<O>(sums[e]);
        if (N == VECTOR<O> && a.vectorized != 0) {
            store_pack(out, pack);
        } else {
#pragma unroll
            for (unsigned e = 0; e < N; ++e) out[e] = pack.values[e];
        }
        return;
    }
#pragma unroll
    for (unsigned e = 0; e < N; ++e) {
        if (column + e >= a.n) continue;
        float one[1] = {sums[e]};
        finish<1>(a, column + e, one);
        out[e] = from_float<O>(one[0]);
    }
}

// N neighbouring sums in shared memory, 16 bytes at a time.
template <unsigned N, typename S>
__device__ __forceinline__ void load_sums(const S* from, S (&to)[N]) {
#pragma unroll
    for (unsigned first = 0; first < N; first += VECTOR<S>) {
        const Pack<S, VECTOR<S>> pack = load_pack<VECTOR<S>>(from + first);
#pragma unroll
        for (unsigned e = 0; e < VECTOR<S>; ++e) to[first + e] = pack.values[e];
    }
}

// `count` rows of sums in shared memory, STRIDE apart; the r-th is row `row(r)` of out. By a whole block.
template <unsigned COLUMNS, unsigned STRIDE, unsigned THREADS, typename T, typename O, typename F>
__device__ __forceinline__ void store_rows(const GemmArguments<T, O>& a, const SumOf<T>* sums, unsigned count, unsigned first_column,
                                           F row) {
    constexpr unsigned N = VECTOR<O>;
#pragma unroll 1
    for (unsigned i = threadIdx.x * N; i < count * COLUMNS; i += THREADS * N) {
        const unsigned r = i / COLUMNS, c = i % COLUMNS;
        SumOf<T> some[N];
        load_sums(sums + r * STRIDE + c, some);
        store_row<N>(a, row(r), first_column + c, some);
    }
}

// ---- Tensor cores ----

constexpr unsigned SLICE = 512;       // elements along k that are summed by themselves
constexpr unsigned STEP = 64;         // elements along k that are brought at once
constexpr unsigned PIECE = 8;         // elements that one copy brings
constexpr unsigned PIECES = STEP / PIECE;

// A tile of ROWS x COLUMNS by DOWN x ACROSS warps side by side, ALONG of these behind each other: each takes a slice of its own.
template <unsigned ROWS_, unsigned COLUMNS_, unsigned DOWN_, unsigned ACROSS_, unsigned ALONG_, unsigned STAGES_>
struct Tile {
    static constexpr unsigned ROWS = ROWS_, COLUMNS = COLUMNS_, DOWN = DOWN_, ACROSS = ACROSS_, ALONG = ALONG_, STAGES = STAGES_;
    static constexpr unsigned THREADS = WARP_SIZE * DOWN * ACROSS * ALONG;
    static constexpr unsigned HEIGHT = ROWS / DOWN / 16, WIDTH = COLUMNS / ACROSS / 8;  // of a warp, in products
    static constexpr unsigned LINES = ROWS + COLUMNS;                                 // of x, then of weight, for a slice's step
    static constexpr unsigned TURNS = LINES * PIECES / THREADS;                       // of a block, to bring that of one slice
    static constexpr unsigned SHARED_BYTES = STAGES * ALONG * LINES * STEP * 2;
    static constexpr unsigned STRIDE = COLUMNS + 4;  // between rows of sums in shared memory
    static_assert(WIDTH % 2 == 0 && TURNS * THREADS == LINES * PIECES && THREADS / PIECES % PIECES == 0);
    static_assert(ROWS % (THREADS / PIECES) == 0, "a turn brings x or weight, not both");
    static_assert(ROWS * STRIDE * 4 <= SHARED_BYTES);
};

using Small = Tile<16, 32, 1, 2, 1, 8>;
using Deep = Tile<16, 32, 1, 1, 4, 3>;
using Middle = Tile<32, 64, 2, 2, 1, 4>;
using Large = Tile<64, 64, 2, 2, 1, 4>;
using Huge = Tile<128, 128, 2, 4, 1, 3>;

// Where a piece of a line lies: neighbouring lines keep theirs in different banks.
__device__ __forceinline__ unsigned place(unsigned line, unsigned piece) { return line * STEP + (piece ^ line % PIECES) * PIECE; }

// The first element along k of a slice's step. Steps go through the slices that are taken at once, then come the next ones.
template <typename S>
__device__ __forceinline__ unsigned first_along(unsigned step, unsigned slice) {
    return (step / (SLICE / STEP) * S::ALONG + slice) * SLICE + step % (SLICE / STEP) * STEP;
}

// What a thread brings: of each turn the same piece, of another line.
template <typename S, typename T>
struct Source {
    const T* lines[S::TURNS];  // at the thread's piece of the first step; outside of the matrix any place inside
    unsigned inside;           // a bit per turn
    unsigned first;            // the piece's first element along k
    unsigned place;            // of the first turn's in shared memory

    template <typename O>
    __device__ __forceinline__ Source(const GemmArguments<T, O>& a, unsigned first_row, unsigned first_column) {
        const unsigned line = threadIdx.x / PIECES, piece = threadIdx.x % PIECES;
        inside = 0;
        first = piece * PIECE;
        place = ::place(line, piece);
#pragma unroll
        for (unsigned turn = 0; turn < S::TURNS; ++turn) {
            const unsigned begin = turn * (S::THREADS / PIECES);
            const bool is_x = begin < S::ROWS;
            const unsigned row = is_x ? first_row + begin + line : first_column + begin - S::ROWS + line;
            const bool is_inside = row < (is_x ? a.rows : a.n);
            inside |= static_cast<unsigned>(is_inside) << turn;
            lines[turn] = (is_x ? a.x : a.weight) + (is_inside ? static_cast<std::size_t>(row) * a.k + first : 0);
        }
    }
};

// Begins to bring a step of all slices that are taken at once.
template <typename S, typename T>
__device__ __forceinline__ void bring(const Source<S, T>& source, unsigned k, unsigned step, T* to) {
#pragma unroll
    for (unsigned slice = 0; slice < S::ALONG; ++slice) {
        const unsigned t = first_along<S>(step, slice);
        const bool is_along = t + source.first < k;
#pragma unroll
        for (unsigned turn = 0; turn < S::TURNS; ++turn) {
            const bool is_inside = is_along && (source.inside >> turn & 1u) != 0;
            copy_async(to + slice * S::LINES * STEP + source.place + turn * (S::THREADS / PIECES) * STEP,
                       is_inside ? source.lines[turn] + t : source.lines[turn], !is_inside);
        }
    }
}

// Adds a step's products to a warp's sums.
template <typename S, typename T>
__device__ __forceinline__ void add_step(const T* lines, unsigned row, unsigned column, SumOf<T> (&sums)[S::HEIGHT][S::WIDTH][4]) {
    const unsigned lane = threadIdx.x % WARP_SIZE;
#pragma unroll
    for (unsigned piece = 0; piece < PIECES; piece += 2) {
        unsigned x[S::HEIGHT][4];
#pragma unroll
        for (unsigned i = 0; i < S::HEIGHT; ++i) load_matrices(lines + place(row + i * 16 + lane % 16, piece + lane / 16), x[i]);
#pragma unroll
        for (unsigned j = 0; j < S::WIDTH; j += 2) {
            unsigned weight[4];
            load_matrices(lines + place(S::ROWS + column + j * 8 + lane % 8 + lane / 16 * 8, piece + lane / 8 % 2), weight);
            const unsigned first[2] = {weight[0], weight[1]}, second[2] = {weight[2], weight[3]};
#pragma unroll
            for (unsigned i = 0; i < S::HEIGHT; ++i) {
                multiply_add(T{}, x[i], first, sums[i][j]);
                multiply_add(T{}, x[i], second, sums[i][j + 1]);
            }
        }
    }
}

// Adds a slice's sums to those of the slices before it, and begins a new one.
template <typename S, typename Sum>
__device__ __forceinline__ void add_slice(Sum (&sums)[S::HEIGHT][S::WIDTH][4], Sum (&totals)[S::HEIGHT][S::WIDTH][4]) {
#pragma unroll
    for (unsigned i = 0; i < S::HEIGHT; ++i)
#pragma unroll
        for (unsigned j = 0; j < S::WIDTH; ++j)
#pragma unroll
            for (unsigned e = 0; e < 4; ++e) {
                totals[i][j][e] += sums[i][j][e];
                sums[i][j][e] = 0;
            }
}

// As add_slice, where each of the block's warps has a slice of its own: the first warp's lanes get the totals.
template <typename S, typename Sum>
__device__ __forceinline__ void add_slices(Sum (&sums)[S::HEIGHT][S::WIDTH][4], Sum (&totals)[S::HEIGHT][S::WIDTH][4]) {
    constexpr unsigned EACH = S::HEIGHT * S::WIDTH * 4;
    SHARED(Sum, of_warps, (S::ALONG - 1) * EACH * WARP_SIZE);
    const unsigned warp = threadIdx.x / WARP_SIZE, lane = threadIdx.x % WARP_SIZE;
    if (warp == 0) add_slice<S>(sums, totals);
    for (unsigned i = 0; i < S::HEIGHT; ++i)
#pragma unroll
        for (unsigned j = 0; j < S::WIDTH; ++j)
#pragma unroll
            for (unsigned e = 0; e < 4; ++e) {
                if (warp != 0) of_warps[((warp - 1) * EACH + (i * S::WIDTH + j) * 4 + e) * WARP_SIZE + lane] = sums[i][j][e];
                sums[i][j][e] = 0;
            }
    __syncthreads();
    if (warp == 0) {
#pragma unroll
        for (unsigned other = 0; other + 1 < S::ALONG; ++other)
#pragma unroll
            for (unsigned e = 0; e < EACH; ++e)
                totals[e / 4 / S::WIDTH][e / 4 % S::WIDTH][e % 4] += of_warps[(other * EACH + e) * WARP_SIZE + lane];
    }
    __syncthreads();
}

template <typename S, typename T, typename O>
__device__ void gemm_on_tensor_cores(const GemmArguments<T, O>& a) {
    DYNAMIC_SHARED(T, lines);
    constexpr unsigned STAGE = S::ALONG * S::LINES * STEP;
    constexpr unsigned SLICE_STEPS = SLICE / STEP;
    const unsigned warp = threadIdx.x / WARP_SIZE, lane = threadIdx.x % WARP_SIZE;
    const unsigned slice = warp / (S::DOWN * S::ACROSS);
    const unsigned row = warp / S::ACROSS % S::DOWN * (S::ROWS / S::DOWN), column = warp % S::ACROSS * (S::COLUMNS / S::ACROSS);
    const unsigned first_row = blockIdx.x * S::ROWS, first_column = blockIdx.y * S::COLUMNS;
    const unsigned steps = S::ALONG == 1 ? (a.k + STEP - 1) / STEP : (a.k + S::ALONG * SLICE - 1) / (S::ALONG * SLICE) * SLICE_STEPS;
    const Source<S, T> source(a, first_row, first_column);
    using Sum = SumOf<T>;
    Sum sums[S::HEIGHT][S::WIDTH][4] = {}, totals[S::HEIGHT][S::WIDTH][4] = {};
#pragma unroll
    for (unsigned step = 0; step + 1 < S::STAGES; ++step) {
        if (step < steps) bring(source, a.k, step, lines + step * STAGE);
        end_copies();
    }
    for (unsigned step = 0; step < steps; ++step) {
        wait_for_copies<S::STAGES - 2>();
        // The step has come for all threads, and all have done with the one before it, whose place is filled anew.
        __syncthreads();
        const unsigned ahead = step + S::STAGES - 1;
        if (ahead < steps) bring(source, a.k, ahead, lines + ahead % S::STAGES * STAGE);
        end_copies();
        add_step<S>(lines + step % S::STAGES * STAGE + slice * S::LINES * STEP, row, column, sums);
        if ((step + 1) % SLICE_STEPS != 0 && step + 1 != steps) continue;
        if constexpr (S::ALONG == 1) add_slice<S>(sums, totals);
        else add_slices<S>(sums, totals);
    }
    wait_for_copies<0>();
    __syncthreads();
    // Through shared memory, so that rows are written in pieces of 16 bytes.
    Sum* all = reinterpret_cast<Sum*>(lines);
    if (slice == 0) {
#pragma unroll
        for (unsigned i = 0; i < S::HEIGHT; ++i)
#pragma unroll
            for (unsigned j = 0; j < S::WIDTH; ++j) {
                Sum* at = all + (row + i * 16 + lane / 4) * S::STRIDE + column + j * 8 + lane % 4 * 2;
                store_pack(at, Pack<Sum, 2>{totals[i][j][0], totals[i][j][1]});
                store_pack(at + 8 * S::STRIDE, Pack<Sum, 2>{totals[i][j][2], totals[i][j][3]});
            }
    }
    __syncthreads();
    store_rows<S::COLUMNS, S::STRIDE, S::THREADS>(a, all, S::ROWS, first_column, [=](unsigned r) { return first_row + r; });
}

// ---- The ordinary units ----

// A tile of SIDE x SIDE, EACH x EACH elements by a thread, DEPTH elements along k brought at once.
template <unsigned SIDE_, unsigned EACH_, unsigned DEPTH_>
struct Square {
    static constexpr unsigned SIDE = SIDE_, EACH = EACH_, DEPTH = DEPTH_, ACROSS = SIDE / EACH, THREADS = ACROSS * ACROSS;
    static constexpr unsigned CHUNK = EACH < 4 ? EACH : 4;                  // neighbours of a thread; its next ones lie apart
    static constexpr unsigned STRIDE = SIDE + (CHUNK == 4 ? 4 : 1);         // between elements along k, in shared memory
    static constexpr unsigned LOADS = SIDE * DEPTH / THREADS;
};

using SmallSquare = Square<32, 2, 64>;
using LargeSquare = Square<64, 4, 32>;
using HugeSquare = Square<128, 8, 16>;

// This thread's elements of a tile of `matrix`, which begins at (first, t); zeros outside.
template <typename S, typename T>
__device__ __forceinline__ void fetch(const T* matrix, unsigned height, unsigned k, unsigned first, unsigned t, float (&to)[S::LOADS]) {
#pragma unroll
    for (unsigned turn = 0; turn < S::LOADS; ++turn) {
        const unsigned i = turn * S::THREADS + threadIdx.x, line = first + i / S::DEPTH, at = t + i % S::DEPTH;
        to[turn] = line < height && at < k ? to_float(matrix[static_cast<std::size_t>(line) * k + at]) : 0.0f;
    }
}

template <typename S>
__device__ __forceinline__ void keep(const float (&from)[S::LOADS], float* tile) {
#pragma unroll
    for (unsigned turn = 0; turn < S::LOADS; ++turn) {
        const unsigned i = turn * S::THREADS + threadIdx.x;
        tile[i % S::DEPTH * S::STRIDE + i / S::DEPTH] = from[turn];
    }
}

// Where a thread's e-th row or column lies, the thread being the i-th of ACROSS.
template <typename S>
__device__ __forceinline__ unsigned place_of(unsigned i, unsigned e) {
    return e / S::CHUNK * S::ACROSS * S::CHUNK + i * S::CHUNK + e % S::CHUNK;
}

// A thread's rows or columns of one element along k.
template <typename S>
__device__ __forceinline__ void load_each(const float* tile, unsigned i, float (&to)[S::EACH]) {
#pragma unroll
    for (unsigned e = 0; e < S::EACH; e += S::CHUNK) {
        float chunk[S::CHUNK];
        load_floats(tile + place_of<S>(i, e), chunk);
#pragma unroll
        for (unsigned c = 0; c < S::CHUNK; ++c) to[e + c] = chunk[c];
    }
}

template <typename S, typename T, typename O>
__device__ void gemm_on_ordinary_units(const GemmArguments<T, O>& a) {
    SHARED(float, x, S::DEPTH * S::STRIDE);
    SHARED(float, weight, S::DEPTH * S::STRIDE);
    const unsigned first_row = blockIdx.x * S::SIDE, first_column = blockIdx.y * S::SIDE;
    const unsigned row = threadIdx.x / S::ACROSS, column = threadIdx.x % S::ACROSS;
    float sums[S::EACH][S::EACH] = {}, next_x[S::LOADS], next_weight[S::LOADS];
    fetch<S>(a.x, a.rows, a.k, first_row, 0, next_x);
    fetch<S>(a.weight, a.n, a.k, first_column, 0, next_weight);
    for (unsigned t = 0; t < a.k; t += S::DEPTH) {
        keep<S>(next_x, x);
        keep<S>(next_weight, weight);
        __syncthreads();
        fetch<S>(a.x, a.rows, a.k, first_row, t + S::DEPTH, next_x);
        fetch<S>(a.weight, a.n, a.k, first_column, t + S::DEPTH, next_weight);
        // Beyond the last t there are zeros, but zero times infinity is none.
        const unsigned end = min(S::DEPTH, a.k - t);
        for (unsigned i = 0; i < end; ++i) {
            float of_x[S::EACH], of_weight[S::EACH];
            load_each<S>(x + i * S::STRIDE, row, of_x);
            load_each<S>(weight + i * S::STRIDE, column, of_weight);
#pragma unroll
            for (unsigned r = 0; r < S::EACH; ++r)
#pragma unroll
                for (unsigned c = 0; c < S::EACH; ++c) sums[r][c] = __fmaf_rn(of_x[r], of_weight[c], sums[r][c]);
        }
        __syncthreads();
    }
    // A row of each thread at a time, through shared memory.
    SHARED(float, some_rows, S::ACROSS * (S::SIDE + 4));
#pragma unroll 1
    for (unsigned turn = 0; turn < S::EACH; ++turn) {
#pragma unroll
        for (unsigned r = 0; r < S::EACH; ++r) {
            if (r != turn) continue;
#pragma unroll
            for (unsigned c = 0; c < S::EACH; ++c) some_rows[row * (S::SIDE + 4) + place_of<S>(column, c)] = sums[r][c];
        }
        __syncthreads();
        store_rows<S::SIDE, S::SIDE + 4, S::THREADS>(a, some_rows, S::ACROSS, first_column,
                                                     [=](unsigned r) { return first_row + place_of<S>(r, turn); });
        __syncthreads();
    }
}

using GemmF32 = GemmArguments<float, float>;
using GemmF16 = GemmArguments<__half, __half>;
using GemmBf16 = GemmArguments<__nv_bfloat16, __nv_bfloat16>;
using GemmWideF16 = GemmArguments<__half, float>;
using GemmWideBf16 = GemmArguments<__nv_bfloat16, float>;
using GemmI8 = GemmArguments<PairI8, float>;
