// Products on tensor cores, and what feeds them: copies from global to shared memory that run beside the threads. sm_80 and later.
//
// Fragments (PTX ISA, "Matrix fragments for mma.m16n8k16"): of lane l, with g = l / 4 and t = l % 4, register r holds two neighbours:
//   a[r]: row g + 8 (r % 2), columns 2t and 2t + 1, + 8 (r / 2)
//   b[r]: column g, rows 2t and 2t + 1, + 8 r
//   c[r]: row g + 8 (r / 2), column 2t + r % 2
// Of 8-bit integers ("for mma.m16n8k32") a register holds four neighbours, two pairs in place of two elements.
#pragma once

#include "common.cuh"

// Two 8-bit integers that lie beside each other along k.
struct alignas(2) PairI8 {
    signed char values[2];
};

// What products of elements are summed in: the type's own, so that sums of integers are exact.
template <typename T>
struct SumOfProducts {
    using Type = float;
};
template <>
struct SumOfProducts<PairI8> {
    using Type = int;
};
template <typename T>
using SumOf = typename SumOfProducts<T>::Type;

#ifdef BEAMFUSE_EMULATED
#include "host/tensor_cores.h"
#else

// c[16, 8] += a[16, 16] b[16, 8], by a whole warp; sums in f32, in an order of the hardware's that no element's place changes.
__device__ __forceinline__ void multiply_add(__half, const unsigned (&a)[4], const unsigned (&b)[2], float (&c)[4]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void multiply_add(__nv_bfloat16, const unsigned (&a)[4], const unsigned (&b)[2], float (&c)[4]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// c[16, 8] += a[16, 32] b[32, 8].
__device__ __forceinline__ void multiply_add(PairI8, const unsigned (&a)[4], const unsigned (&b)[2], int (&c)[4]) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ unsigned shared_address(const void* at) {
    return static_cast<unsigned>(__cvta_generic_to_shared(at));
}

// Four matrices of 8 rows of 16 bytes: lane l names row l % 8 of matrix l / 8 and gets of matrix i, in to[i], the 4 bytes at 4 (l % 4)
// of row l / 4. By a whole warp.
__device__ __forceinline__ void load_matrices(const void* row, unsigned (&to)[4]) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// Begins to copy 16 bytes to shared memory, or to fill them with zeros; both addresses are multiples of 16.
__device__ __forceinline__ void copy_async(void* to, const void* from, bool is_zero) {
    const unsigned bytes = is_zero ? 0 : 16;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes) : "memory");
}

// Ends a group of this thread's copies.
__device__ __forceinline__ void end_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most LEFT of this thread's groups are under way.
template <unsigned LEFT>
__device__ __forceinline__ void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

#endif
