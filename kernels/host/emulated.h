// The CUDA C++ subset that the kernels use, with a host meaning. Included before every kernel when it is compiled for the
// emulator (emulator.h says how threads run). What is missing here fails to compile, which is the point: a kernel uses what
// is emulated, or puts it behind `#ifndef BEAMFUSE_EMULATED` beside a plain path.
//
// Left out on purpose: atomics on floating point numbers (their order, and so the result, would change from run to run), and
// `__shared__`, for which common.cuh has SHARED and DYNAMIC_SHARED.
#pragma once
#define BEAMFUSE_EMULATED 1

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "emulator.h"

#define __global__ static
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) alignas(bytes)

namespace emulated {

// One list per source file: build.rs wraps each in a file that exports its list.
static const Kernel* kernels = nullptr;

struct Registered {
    explicit Registered(Kernel& kernel) {
        kernel.next = kernels;
        kernels = &kernel;
    }
};

// What LAYOUT exports of the file, likewise.
static const void* layout = nullptr;
static std::size_t layout_entries = 0;

struct RegisteredLayout {
    RegisteredLayout(const void* entries, std::size_t count) {
        layout = entries;
        layout_entries = count;
    }
};

}  // namespace emulated

#define LAYOUT(...)                                                        \
    static constexpr LayoutEntry LAYOUT_ENTRIES[] = {__VA_ARGS__};         \
    static_assert(fills(LAYOUT_ENTRIES), "FIELDS does not name them all"); \
    static const emulated::RegisteredLayout registered_layout(LAYOUT_ENTRIES, sizeof LAYOUT_ENTRIES / sizeof *LAYOUT_ENTRIES);

// KERNEL(symbol, max_threads, Arguments, body): see common.cuh.
#define KERNEL(symbol, max_threads, Arguments, ...)                                                                \
    static void emulated_##symbol(const void* arguments) { __VA_ARGS__(*static_cast<const Arguments*>(arguments)); } \
    static emulated::Kernel kernel_##symbol{#symbol, max_threads, #Arguments, sizeof(Arguments), emulated_##symbol, nullptr};   \
    static const emulated::Registered registered_##symbol(kernel_##symbol);
#define KERNEL_BOUNDED(symbol, max_threads, blocks, Arguments, ...) KERNEL(symbol, max_threads, Arguments, __VA_ARGS__)

// A static local's address names the declaration, per template instance, as on the device.
#define SHARED(type, name, count)                \
    static const char name##_shared_site = 0;    \
    type(&name)[count] = *static_cast<type(*)[count]>(emulated::shared(&name##_shared_site, sizeof(type) * (count)))

#define DYNAMIC_SHARED(type, name) type* name = static_cast<type*>(emulated::dynamic_shared())
#define ALIGNED(address) (emulated::aligned(address))

// ---- Indices ----

struct dim3 {
    unsigned x, y, z;
};

#define threadIdx (emulated::self->index)
#define blockIdx (emulated::active->block_index)
#define blockDim (emulated::active->block)
#define gridDim (emulated::active->grid)
constexpr int warpSize = 32;

// ---- Vector types ----

#define EMULATED_VECTOR(type, name, align2, align4)                               \
    struct alignas(align2) name##2 { type x, y; };                                \
    struct name##3 { type x, y, z; };                                             \
    struct alignas(align4) name##4 { type x, y, z, w; };                          \
    inline name##2 make_##name##2(type x, type y) { return {x, y}; }              \
    inline name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; }   \
    inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
EMULATED_VECTOR(float, float, 8, 16)
EMULATED_VECTOR(int, int, 8, 16)
EMULATED_VECTOR(unsigned, uint, 8, 16)
EMULATED_VECTOR(unsigned short, ushort, 4, 8)
EMULATED_VECTOR(unsigned char, uchar, 2, 4)
#undef EMULATED_VECTOR

// ---- Barriers, votes, shuffles ----
// The defaulted arguments are the place of the call.

#define EMULATED_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define EMULATED_SITE (emulated::Site{file, line})

inline void __syncthreads(EMULATED_HERE) { emulated::barrier(false, EMULATED_SITE); }
inline int __syncthreads_count(int predicate, EMULATED_HERE) { return emulated::barrier(predicate != 0, EMULATED_SITE); }
inline int __syncthreads_or(int predicate, EMULATED_HERE) { return emulated::barrier(predicate != 0, EMULATED_SITE) != 0; }
inline int __syncthreads_and(int predicate, EMULATED_HERE) { return emulated::barrier(predicate == 0, EMULATED_SITE) == 0; }
inline void __syncwarp(unsigned mask = 0xFFFFFFFFu, EMULATED_HERE) {
    emulated::exchange(emulated::Exchange::Sync, mask, 0, 0, EMULATED_SITE);
}
inline unsigned __activemask() = delete;  // says nothing that a program may rely on

inline unsigned __ballot_sync(unsigned mask, int predicate, EMULATED_HERE) {
    return static_cast<unsigned>(emulated::exchange(emulated::Exchange::Ballot, mask, predicate != 0, 0, EMULATED_SITE));
}
inline int __any_sync(unsigned mask, int predicate, EMULATED_HERE) { return __ballot_sync(mask, predicate, file, line) != 0; }
inline int __all_sync(unsigned mask, int predicate, EMULATED_HERE) { return __ballot_sync(mask, !predicate, file, line) == 0; }

namespace emulated {
template <typename T>
T shuffle(unsigned mask, T value, int source_lane, Site site) {
    static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
    std::uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    bits = exchange(Exchange::Shuffle, mask, bits, source_lane, site);
    std::memcpy(&value, &bits, sizeof(T));
    return value;
}
}  // namespace emulated

// `width` splits the warp into parts that shuffle among themselves; a lane whose source lies outside its part keeps its value.
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, EMULATED_HERE) {
    const int lane = static_cast<int>(emulated::self->lane);
    return emulated::shuffle(mask, value, (lane & ~(width - 1)) | (source & (width - 1)), EMULATED_SITE);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATED_HERE) {
    const int lane = static_cast<int>(emulated::self->lane), source = lane - static_cast<int>(delta);
    return emulated::shuffle(mask, value, source < (lane & ~(width - 1)) ? lane : source, EMULATED_SITE);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATED_HERE) {
    const int lane = static_cast<int>(emulated::self->lane), source = lane + static_cast<int>(delta);
    return emulated::shuffle(mask, value, source > (lane | (width - 1)) ? lane : source, EMULATED_SITE);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, EMULATED_HERE) {
    const int lane = static_cast<int>(emulated::self->lane), source = lane ^ lanes;
    return emulated::shuffle(mask, value, source > (lane | (width - 1)) ? lane : source, EMULATED_SITE);
}

template <typename T>
unsigned __match_any_sync(unsigned mask, T value, EMULATED_HERE) {
    std::uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    return static_cast<unsigned>(emulated::exchange(emulated::Exchange::Match, mask, bits, 0, EMULATED_SITE));
}

#define EMULATED_REDUCE(name, type, kind)                                                                       \
    inline type __reduce_##name##_sync(unsigned mask, type value, EMULATED_HERE) {                              \
        return static_cast<type>(emulated::exchange(emulated::Exchange::kind, mask,                             \
                                                    static_cast<std::uint32_t>(value), 0, EMULATED_SITE));      \
    }
EMULATED_REDUCE(add, unsigned, Sum)
EMULATED_REDUCE(add, int, Sum)
EMULATED_REDUCE(min, unsigned, Min)
EMULATED_REDUCE(min, int, MinSigned)
EMULATED_REDUCE(max, unsigned, Max)
EMULATED_REDUCE(max, int, MaxSigned)
EMULATED_REDUCE(and, unsigned, And)
EMULATED_REDUCE(or, unsigned, Or)
EMULATED_REDUCE(xor, unsigned, Xor)
#undef EMULATED_REDUCE

// ---- Memory ----

inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
[[noreturn]] inline void __trap() { emulated::fail("trap"); }

namespace emulated {
// A device refuses an address that is no multiple of what is moved at once; the host's processor often does not.
template <typename T>
T* aligned(T* address) {
    if (reinterpret_cast<std::uintptr_t>(address) % sizeof(T) != 0)
        fail("misaligned: %zu bytes at %p", sizeof(T), static_cast<const void*>(address));
    return address;
}

template <typename T>
T load(const T* address) {
    const auto at = reinterpret_cast<std::uintptr_t>(aligned(address));
    if (at >= active->watch_begin && at < active->watch_end) active->watched_bytes += sizeof(T);
    return *address;
}
}  // namespace emulated

template <typename T> T __ldg(const T* address) { return emulated::load(address); }
template <typename T> T __ldcs(const T* address) { return emulated::load(address); }
template <typename T> T __ldcg(const T* address) { return emulated::load(address); }
template <typename T> T __ldca(const T* address) { return emulated::load(address); }
template <typename T> void __stcs(T* address, T value) { *emulated::aligned(address) = value; }
template <typename T> void __stcg(T* address, T value) { *emulated::aligned(address) = value; }

#define EMULATED_ATOMICS(type)                                                                                         \
    inline type atomicAdd(type* at, type value) { return __atomic_fetch_add(at, value, __ATOMIC_SEQ_CST); }            \
    inline type atomicExch(type* at, type value) { return __atomic_exchange_n(at, value, __ATOMIC_SEQ_CST); }          \
    inline type atomicAnd(type* at, type value) { return __atomic_fetch_and(at, value, __ATOMIC_SEQ_CST); }            \
    inline type atomicOr(type* at, type value) { return __atomic_fetch_or(at, value, __ATOMIC_SEQ_CST); }              \
    inline type atomicXor(type* at, type value) { return __atomic_fetch_xor(at, value, __ATOMIC_SEQ_CST); }            \
    inline type atomicCAS(type* at, type expected, type value) {                                                       \
        __atomic_compare_exchange_n(at, &expected, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                  \
        return expected;                                                                                               \
    }                                                                                                                  \
    inline type atomicMax(type* at, type value) {                                                                      \
        type old = *at;                                                                                                \
        while (old < value && !__atomic_compare_exchange_n(at, &old, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) { \
        }                                                                                                              \
        return old;                                                                                                    \
    }                                                                                                                  \
    inline type atomicMin(type* at, type value) {                                                                      \
        type old = *at;                                                                                                \
        while (value < old && !__atomic_compare_exchange_n(at, &old, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) { \
        }                                                                                                              \
        return old;                                                                                                    \
    }
EMULATED_ATOMICS(int)
EMULATED_ATOMICS(unsigned)
EMULATED_ATOMICS(unsigned long long)
#undef EMULATED_ATOMICS

// Counts up to `limit`, then starts again at 0: a ticket that resets itself.
inline unsigned atomicInc(unsigned* at, unsigned limit) {
    unsigned old = *at;
    while (!__atomic_compare_exchange_n(at, &old, old >= limit ? 0u : old + 1u, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
    }
    return old;
}

// ---- Integers and bits ----

#define EMULATED_MIN_MAX(type)                                        \
    inline type min(type a, type b) { return b < a ? b : a; }         \
    inline type max(type a, type b) { return a < b ? b : a; }
EMULATED_MIN_MAX(int)
EMULATED_MIN_MAX(unsigned)
EMULATED_MIN_MAX(long)
EMULATED_MIN_MAX(unsigned long)
EMULATED_MIN_MAX(long long)
EMULATED_MIN_MAX(unsigned long long)
#undef EMULATED_MIN_MAX
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }

namespace emulated {
template <typename To, typename From>
To bits_as(From value) {
    static_assert(sizeof(To) == sizeof(From), "only the type changes");
    To result;
    std::memcpy(&result, &value, sizeof(To));
    return result;
}
}  // namespace emulated

inline unsigned __float_as_uint(float x) { return emulated::bits_as<unsigned>(x); }
inline int __float_as_int(float x) { return emulated::bits_as<int>(x); }
inline float __uint_as_float(unsigned x) { return emulated::bits_as<float>(x); }
inline float __int_as_float(int x) { return emulated::bits_as<float>(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __umulhi(unsigned a, unsigned b) {
    return static_cast<unsigned>((static_cast<std::uint64_t>(a) * b) >> 32);
}

// ---- Floating point ----
// The fast intrinsics get the exact functions: their error on the device is what the tests' tolerances allow for.

using std::isfinite;
using std::isinf;
using std::isnan;

inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline int __float2int_rn(float x) { return static_cast<int>(rintf(x)); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __saturatef(float x) { return fminf(fmaxf(x, 0.0f), 1.0f); }

#include "cuda_bf16.h"
#include "cuda_fp16.h"
