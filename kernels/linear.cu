// What follows a matrix product, in place: x = activation(x + bias) + residual.
//
// Shapes: x, residual [rows, n] of type T; bias [n] f32. bias and residual may be null.
// Parallelisation: a pack of 16 bytes per thread where n and the addresses allow, else an element.
// Numerics: f32, rounded once.
// Reference: src/cpu/linear.rs
#include "activation.cuh"

template <typename T>
struct LinearArguments {
    T* x;
    const float* bias;
    const T* residual;
    unsigned rows;
    unsigned n;
    unsigned activation;  // Activation
    unsigned vectorized;  // n is a multiple of VECTOR<T>, and all addresses are of 16 bytes
};

template <unsigned N, typename T>
__device__ __forceinline__ void finish(const LinearArguments<T>& a, std::size_t first) {
    const auto column = static_cast<unsigned>(first % a.n);
    Pack<T, N> x = load_pack<N>(a.x + first), residual;
    float bias[N];
    if (a.bias != nullptr) load_floats<N>(a.bias + column, bias);
    if (a.residual != nullptr) residual = load_pack<N>(a.residual + first);
#pragma unroll
    for (unsigned k = 0; k < N; ++k) {
        float value = to_float(x.values[k]);
        if (a.bias != nullptr) value += bias[k];
        value = activate(a.activation, value);
        if (a.residual != nullptr) value += to_float(residual.values[k]);
        x.values[k] = from_float<T>(value);
    }
    store_pack(a.x + first, x);
}

template <typename T>
__device__ void linear(const LinearArguments<T>& a) {
    const std::size_t total = static_cast<std::size_t>(a.rows) * a.n;
    const std::size_t thread = static_cast<std::size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (a.vectorized != 0) {
        if (thread * VECTOR<T> < total) finish<VECTOR<T>>(a, thread * VECTOR<T>);
    } else {
        if (thread < total) finish<1>(a, thread);
    }
}

KERNEL(linear_f32, 1024, LinearArguments<float>, linear)
KERNEL(linear_f16, 1024, LinearArguments<__half>, linear)
KERNEL(linear_bf16, 1024, LinearArguments<__nv_bfloat16>, linear)

LAYOUT(FIELDS(LinearArguments<float>, x, bias, residual, rows, n, activation, vectorized)
       CONSTANT("Activation::None", NONE)
       CONSTANT("Activation::Relu", RELU)
       CONSTANT("Activation::Silu", SILU)
       CONSTANT("Activation::GeluTanh", GELU_TANH)
       CONSTANT("Activation::GeluErf", GELU_ERF))
