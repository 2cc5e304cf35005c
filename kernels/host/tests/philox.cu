// The words of kernels/philox.cuh, laid bare for a test. Never compiled for a device.
// Reference: src/cpu/philox.rs
#include "../../philox.cuh"

struct PhiloxArguments {
    const uint4* counters;
    uint4* words;
    float2* uniforms;  // of the first word: closed, open
    unsigned n;
    unsigned key_low;
    unsigned key_high;
    unsigned unused;
};

__device__ void philox_words(const PhiloxArguments& a) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= a.n) return;
    a.words[i] = philox(a.key_low, a.key_high, a.counters[i]);
    a.uniforms[i] = make_float2(uniform(a.words[i].x), open_uniform(a.words[i].x));
}

KERNEL(planted_philox, 256, PhiloxArguments, philox_words)
