// out = the words of several places in memory, one place behind the other, so that one copy brings them all to the host.
//
// Shapes: from[i] [words[i]], at most 8 of them, null where there is none; out [sum of words].
// Parallelisation: a row of blocks per place; neighbouring threads move neighbouring words.
// Reference: src/validate/kernels/gather.rs
#include "common.cuh"

constexpr unsigned MAX_PARTS = 8;

struct GatherArguments {
    const unsigned* from[MAX_PARTS];
    unsigned* out;
    unsigned words[MAX_PARTS];
};

__device__ inline void gather(const GatherArguments& a) {
    const unsigned part = blockIdx.y;
    if (part >= MAX_PARTS) return;
    unsigned before = 0;
    for (unsigned i = 0; i < part; ++i) before += a.words[i];
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < a.words[part]; i += gridDim.x * blockDim.x)
        a.out[before + i] = a.from[part][i];
}

KERNEL(gather_f32, 1024, GatherArguments, gather)

LAYOUT(FIELDS(GatherArguments, from, out, words)
       CONSTANT("gather::MAX_PARTS", MAX_PARTS))
