// out[block] = the exclusive or of the words that the block reads; together the blocks read all of them once.
//
// Shapes: words [packs, 4] u32; out [blocks] u32.
// Parallelisation: each thread takes packs of 16 bytes, all threads of the grid apart, four at a time.
// Numerics: none; the order does not matter. It measures how fast a device reads: what the other kernels are held to.
// Reference: src/cpu/checksum.rs
#include "common.cuh"

struct ChecksumArguments {
    const uint4* words;
    unsigned* out;
    unsigned packs;
    unsigned unused;
};

__device__ __forceinline__ unsigned fold(uint4 pack) { return pack.x ^ pack.y ^ pack.z ^ pack.w; }

__device__ void checksum(const ChecksumArguments& a) {
    constexpr unsigned AT_ONCE = 4;
    SHARED(unsigned, scratch, WARP_SIZE);
    const unsigned lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE, warps = blockDim.x / WARP_SIZE;
    const std::size_t apart = static_cast<std::size_t>(gridDim.x) * blockDim.x;
    unsigned sum = 0;
    for (std::size_t first = static_cast<std::size_t>(blockIdx.x) * blockDim.x + threadIdx.x; first < a.packs;
         first += AT_ONCE * apart) {
#pragma unroll
        for (unsigned k = 0; k < AT_ONCE; ++k)
            if (first + k * apart < a.packs) sum ^= fold(__ldcs(a.words + first + k * apart));
    }
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) sum ^= __shfl_xor_sync(FULL_WARP, sum, distance);
    if (lane == 0) scratch[warp] = sum;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (unsigned w = 1; w < warps; ++w) sum ^= scratch[w];
    a.out[blockIdx.x] = sum;
}

KERNEL(checksum_f32, 1024, ChecksumArguments, checksum)

LAYOUT(FIELDS(ChecksumArguments, words, out, packs, unused))
