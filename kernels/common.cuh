// What the kernels share: how a kernel is declared, storage types, reductions.
//
// A kernel takes one struct, mirrored by a `#[repr(C)]` struct in its launcher: pointers first, then 4-byte numbers, no padding.
// Storage is f32, f16 or bf16; arithmetic is f32.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>

// ---- Layout ----
// What a kernel file shares with its launcher, exported so that the two can be compared: LAYOUT(FIELDS(Struct, field, ...), ...,
// CONSTANT("Enum::Name", value), ...) stands last in a file. FIELDS names every field, in order; what is left out does not
// compile. src/cuda/layout.rs reads the table.

struct LayoutEntry {
    char name[56];  // "Struct", "Struct.field" or "Enum::Name"
    unsigned place; // a field's offset, a constant's value
    unsigned size;  // in bytes; of a constant 0
};

constexpr unsigned WHOLE = 0xFFFFFFFFu;  // the place of an entry that stands for a struct, ahead of its fields

// Whether the fields named fill their structs.
template <std::size_t N>
constexpr bool fills(const LayoutEntry (&entries)[N]) {
    unsigned left = 0;
    for (std::size_t i = 0; i < N; ++i) {
        if (entries[i].place == WHOLE || entries[i].size == 0) {
            if (left != 0) return false;
            left = entries[i].size;
        } else {
            left -= entries[i].size;
        }
    }
    return left == 0;
}

#define LAYOUT_ONE(S, field) {#S "." #field, static_cast<unsigned>(offsetof(S, field)), static_cast<unsigned>(sizeof(S::field))},
#define LAYOUT_AGAIN() LAYOUT_EACH
#define LAYOUT_DEFER(name) name LAYOUT_NOTHING()
#define LAYOUT_NOTHING()
#define LAYOUT_EACH(S, field, ...) LAYOUT_ONE(S, field) __VA_OPT__(LAYOUT_DEFER(LAYOUT_AGAIN)()(S, __VA_ARGS__))
#define LAYOUT_SCAN(...) LAYOUT_SCAN_4(LAYOUT_SCAN_4(LAYOUT_SCAN_4(__VA_ARGS__)))
#define LAYOUT_SCAN_4(...) LAYOUT_SCAN_3(LAYOUT_SCAN_3(LAYOUT_SCAN_3(__VA_ARGS__)))
#define LAYOUT_SCAN_3(...) LAYOUT_SCAN_2(LAYOUT_SCAN_2(LAYOUT_SCAN_2(__VA_ARGS__)))
#define LAYOUT_SCAN_2(...) LAYOUT_SCAN_1(LAYOUT_SCAN_1(LAYOUT_SCAN_1(__VA_ARGS__)))
#define LAYOUT_SCAN_1(...) __VA_ARGS__
#define FIELDS(S, ...) {#S, WHOLE, static_cast<unsigned>(sizeof(S))}, LAYOUT_SCAN(LAYOUT_EACH(S, __VA_ARGS__))
#define CONSTANT(name, value) {name, value, 0},

#ifndef BEAMFUSE_EMULATED
#define LAYOUT(...)                                                        \
    static constexpr LayoutEntry LAYOUT_ENTRIES[] = {__VA_ARGS__};         \
    static_assert(fills(LAYOUT_ENTRIES), "FIELDS does not name them all"); \
    extern "C" { __device__ LayoutEntry layout[] = {__VA_ARGS__}; }

// Defines the kernel `symbol`, which calls the function template `body` (named last, since it may hold commas) with the
// arguments; launched with at most `max_threads` threads a block.
#define KERNEL(symbol, max_threads, Arguments, ...)                                                                  \
    extern "C" __global__ void __launch_bounds__(max_threads) symbol(const __grid_constant__ Arguments arguments) {  \
        __VA_ARGS__(arguments);                                                                                      \
    }

// As KERNEL, and says how many blocks a multiprocessor should hold at least, which is what bounds the registers.
#define KERNEL_BOUNDED(symbol, max_threads, blocks, Arguments, ...)                                    \
    extern "C" __global__ void __launch_bounds__(max_threads, blocks)                                  \
        symbol(const __grid_constant__ Arguments arguments) {                                          \
        __VA_ARGS__(arguments);                                                                        \
    }

// Declares a shared array in a function; `type` without brackets.
#define SHARED(type, name, count) __shared__ type name[count]

// Declares the launch's dynamic shared memory.
#define DYNAMIC_SHARED(type, name)                             \
    extern __shared__ __align__(16) unsigned char dynamic_shared[]; \
    type* name = reinterpret_cast<type*>(dynamic_shared)

// An address that is read or written as a whole; emulated, it is checked.
#define ALIGNED(address) (address)
#endif

constexpr unsigned FULL_WARP = 0xFFFFFFFFu;
constexpr unsigned WARP_SIZE = 32;

// ---- Storage types ----

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
__device__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) { return x; }
template <>
__device__ __forceinline__ __half from_float<__half>(float x) { return __float2half_rn(x); }
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }

// Bytes from one row of k 8-bit integers to the next: zeros fill it up to whole pieces of what tensor cores read.
constexpr unsigned PIECE_I8 = 16;
__host__ __device__ constexpr unsigned padded_i8(unsigned k) { return (k + PIECE_I8 - 1) / PIECE_I8 * PIECE_I8; }

// N neighbours that move as one: 16 bytes for N = VECTOR<T>. Their address must be a multiple of their size.
template <typename T, unsigned N>
struct alignas(sizeof(T) * N) Pack {
    T values[N];
};
template <typename T>
constexpr unsigned VECTOR = 16 / sizeof(T);

template <unsigned N, typename T>
__device__ __forceinline__ Pack<T, N> load_pack(const T* at) { return *ALIGNED((reinterpret_cast<const Pack<T, N>*>(at))); }
template <unsigned N, typename T>
__device__ __forceinline__ void store_pack(T* at, const Pack<T, N>& pack) { *ALIGNED((reinterpret_cast<Pack<T, N>*>(at))) = pack; }

// N floats, 16 bytes at a time if N is a multiple of 4.
template <unsigned N>
__device__ __forceinline__ void load_floats(const float* from, float (&to)[N]) {
    constexpr unsigned STEP = N % 4 == 0 ? 4 : 1;
#pragma unroll
    for (unsigned first = 0; first < N; first += STEP) {
        const Pack<float, STEP> pack = load_pack<STEP>(from + first);
#pragma unroll
        for (unsigned k = 0; k < STEP; ++k) to[first + k] = pack.values[k];
    }
}

template <unsigned N>
__device__ __forceinline__ void store_floats(float* to, const float (&from)[N]) {
    constexpr unsigned STEP = N % 4 == 0 ? 4 : 1;
#pragma unroll
    for (unsigned first = 0; first < N; first += STEP) {
        Pack<float, STEP> pack;
#pragma unroll
        for (unsigned k = 0; k < STEP; ++k) pack.values[k] = from[first + k];
        store_pack(to + first, pack);
    }
}

// What a row of logits is normalised by: its log-probabilities are log_prob(x). `max` is NaN or infinite where there are none;
// log_sum is then 0. Their sum alone would not do: beside a maximum of -3.4e38 nothing is left of the logarithm.
struct Normalizer {
    float max, log_sum;

    __device__ __forceinline__ float log_prob(float x) const { return (x - max) - log_sum; }
};

// ---- Reductions ----
// All lanes (threads) get the result. The order of additions is fixed by the number of lanes (threads) alone.

template <unsigned R>
__device__ __forceinline__ void warp_sums(float (&x)[R]) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2)
#pragma unroll
        for (unsigned r = 0; r < R; ++r) x[r] += __shfl_xor_sync(FULL_WARP, x[r], distance);
}

__device__ __forceinline__ float warp_sum(float x) {
    float one[1] = {x};
    warp_sums(one);
    return one[0];
}

// The largest value; NaN counts as missing, as in fmaxf.
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) x = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, distance));
    return x;
}

// `scratch`: 32 floats of shared memory, free again when the function returns. Blocks are one-dimensional.
__device__ __forceinline__ float block_sum(float x, float* scratch) {
    const unsigned lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE, warps = blockDim.x / WARP_SIZE;
    x = warp_sum(x);
    if (lane == 0) scratch[warp] = x;
    __syncthreads();
    x = warp_sum(lane < warps ? scratch[lane] : 0.0f);
    __syncthreads();
    return x;
}

__device__ __forceinline__ float block_max(float x, float* scratch) {
    const unsigned lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE, warps = blockDim.x / WARP_SIZE;
    x = warp_max(x);
    if (lane == 0) scratch[warp] = x;
    __syncthreads();
    x = warp_max(lane < warps ? scratch[lane] : -INFINITY);
    __syncthreads();
    return x;
}

// ---- Blocks that wait for no other ----

// Whether the calling block is the last of `expected` to come here; what the others wrote before can then be read. The
// ticket starts at 0, and is 0 again afterwards. `flag`: a word of shared memory.
__device__ __forceinline__ bool is_last_block(unsigned* ticket, unsigned expected, unsigned* flag) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) *flag = atomicInc(ticket, expected - 1) == expected - 1;
    __syncthreads();
    if (*flag == 0) return false;
    __threadfence();
    return true;
}
