// The gate of a feed-forward layer: out = activation(a) * b, where a row of both holds a and b side by side.
//
// Shapes: both [rows, 2 * width], out [rows, width] of type T.
// Parallelisation: a pack of 16 bytes of out per thread where width and the addresses allow, else an element.
// Numerics: f32, rounded once.
// Reference: src/cpu/gate.rs
#include "activation.cuh"

template <typename T>
struct GateArguments {
    const T* both;
    T* out;
    unsigned rows;
    unsigned width;
    unsigned activation;  // Activation
    unsigned vectorized;  // width is a multiple of VECTOR<T>, and all addresses are of 16 bytes
};

template <unsigned N, typename T>
__device__ __forceinline__ void open(const GateArguments<T>& a, std::size_t first) {
    const std::size_t row = first / a.width, column = first % a.width;
    const T* from = a.both + 2 * row * a.width + column;
    const Pack<T, N> left = load_pack<N>(from), right = load_pack<N>(from + a.width);
    Pack<T, N> out;
#pragma unroll
    for (unsigned k = 0; k < N; ++k)
        out.values[k] = from_float<T>(activate_for<T>(a.activation, to_float(left.values[k])) * to_float(right.values[k]));
    store_pack(a.out + first, out);
}

template <typename T>
__device__ void gate(const GateArguments<T>& a) {
    const std::size_t total = static_cast<std::size_t>(a.rows) * a.width;
    const std::size_t thread = static_cast<std::size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (a.vectorized != 0) {
        if (thread * VECTOR<T> < total) open<VECTOR<T>>(a, thread * VECTOR<T>);
    } else {
        if (thread < total) open<1>(a, thread);
    }
}

KERNEL(gate_f32, 1024, GateArguments<float>, gate)
KERNEL(gate_f16, 1024, GateArguments<__half>, gate)
KERNEL(gate_bf16, 1024, GateArguments<__nv_bfloat16>, gate)

LAYOUT(FIELDS(GateArguments<float>, both, out, rows, width, activation, vectorized))
