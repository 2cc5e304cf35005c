// out[row, j] = sum over t of x[row, t] * weight[j, t], plus bias[j]: a matrix product that needs nothing of anybody, for shapes that
// cuBLASLt has no plan for. And bias alone, for plans that cannot add one.
//
// Shapes: x [rows, k], weight [n, k] of type T; out [rows, n] of type O, its rows out_stride elements apart, what lies between is
// not written; bias [n] f32, may be null.
// Parallelisation: a block per 32 x 32 elements of out; it goes along k in steps of 32, which its threads first bring to shared
// memory.
// Numerics: f32. An element is summed by one thread, from the first t to the last: its bits depend on its own row and column alone.
// Reference: src/cpu/gemm.rs
#include "common.cuh"

template <typename T, typename O>
struct GemmArguments {
    const T* x;
    const T* weight;
    const float* bias;
    O* out;
    unsigned rows;
    unsigned n;
    unsigned k;
    unsigned out_stride;
};

struct GemmBiasArguments {
    float* out;
    const float* bias;
    unsigned rows;
    unsigned n;
    unsigned out_stride;
    unsigned unused;
};

constexpr unsigned TILE = 32, AT_ONCE = 4;

// A tile of a matrix [height, k] whose first element is (row, t), zeros beyond; by a whole block.
template <typename T>
__device__ __forceinline__ void load_tile(const T* matrix, unsigned height, unsigned k, unsigned row, unsigned t,
                                          float (&tile)[TILE * (TILE + 1)]) {
    for (unsigned e = threadIdx.x; e < TILE * TILE; e += blockDim.x) {
        const unsigned r = e / TILE, c = e % TILE;
        const bool is_inside = row + r < height && t + c < k;
        tile[r * (TILE + 1) + c] = is_inside ? to_float(matrix[static_cast<std::size_t>(row + r) * k + t + c]) : 0.0f;
    }
}

template <typename T, typename O>
__device__ void gemm(const GemmArguments<T, O>& a) {
    SHARED(float, x, TILE * (TILE + 1));
    SHARED(float, weight, TILE * (TILE + 1));
    const unsigned first_row = blockIdx.y * TILE, first_column = blockIdx.x * TILE;
    const unsigned lane = threadIdx.x % TILE, column = first_column + lane;
    // Elements of a thread lie in one column; those that it has no room for come in further turns.
    for (unsigned first = 0; first < TILE * TILE; first += blockDim.x * AT_ONCE) {
        const unsigned base = (first + threadIdx.x) / TILE, step = blockDim.x / TILE;
        float sum[AT_ONCE] = {};
        for (unsigned t = 0; t < a.k; t += TILE) {
            load_tile(a.x, a.rows, a.k, first_row, t, x);
            load_tile(a.weight, a.n, a.k, first_column, t, weight);
            __syncthreads();
            // Beyond the last t there are zeros, but zero times infinity is none.
            const unsigned end = min(TILE, a.k - t);
            for (unsigned i = 0; i < end; ++i) {
                const float w = weight[lane * (TILE + 1) + i];
#pragma unroll
                for (unsigned e = 0; e < AT_ONCE; ++e)
                    sum[e] += x[min(base + e * step, TILE - 1) * (TILE + 1) + i] * w;
            }
            __syncthreads();
        }
#pragma unroll
        for (unsigned e = 0; e < AT_ONCE; ++e) {
            const unsigned r = base + e * step, row = first_row + r;
            if (r >= TILE || row >= a.rows || column >= a.n) continue;
            const float biased = a.bias == nullptr ? sum[e] : sum[e] + a.bias[column];
            a.out[static_cast<std::size_t>(row) * a.out_stride + column] = from_float<O>(biased);
        }
    }
}

__device__ inline void gemm_bias(const GemmBiasArguments& a) {
    const unsigned column = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y;
    if (column < a.n && row < a.rows) a.out[static_cast<std::size_t>(row) * a.out_stride + column] += a.bias[column];
}

using GemmF32 = GemmArguments<float, float>;
using GemmF16 = GemmArguments<__half, __half>;
using GemmBf16 = GemmArguments<__nv_bfloat16, __nv_bfloat16>;
using GemmWideF16 = GemmArguments<__half, float>;
using GemmWideBf16 = GemmArguments<__nv_bfloat16, float>;

KERNEL(gemm_f32, 1024, GemmF32, gemm)
KERNEL(gemm_f16, 1024, GemmF16, gemm)
KERNEL(gemm_bf16, 1024, GemmBf16, gemm)
KERNEL(gemm_wide_f16, 1024, GemmWideF16, gemm)
KERNEL(gemm_wide_bf16, 1024, GemmWideBf16, gemm)
KERNEL(gemm_bias_f32, 1024, GemmBiasArguments, gemm_bias)

LAYOUT(FIELDS(GemmF32, x, weight, bias, out, rows, n, k, out_stride)
       FIELDS(GemmF16, x, weight, bias, out, rows, n, k, out_stride)
       FIELDS(GemmBf16, x, weight, bias, out, rows, n, k, out_stride)
       FIELDS(GemmWideF16, x, weight, bias, out, rows, n, k, out_stride)
       FIELDS(GemmWideBf16, x, weight, bias, out, rows, n, k, out_stride)
       FIELDS(GemmBiasArguments, out, bias, rows, n, out_stride, unused)
       CONSTANT("gemm::TILE", TILE))
