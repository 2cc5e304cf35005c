// The functions of kernels/portable_math.cuh, laid bare for a test. Never compiled for a device.
// Reference: src/cpu/portable_math.rs
#include "../../portable_math.cuh"

struct PortableMathArguments {
    const float* x;  // above 0
    float2* out;     // exp(-x), ln(x)
    unsigned n;
    unsigned unused;
};

__device__ void portable_math(const PortableMathArguments& a) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < a.n) a.out[i] = make_float2(portable_exp(-a.x[i]), portable_ln(a.x[i]));
}

KERNEL(planted_portable_math, 256, PortableMathArguments, portable_math)
