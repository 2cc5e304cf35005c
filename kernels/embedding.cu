// out[i, :] = table[token, :] * scale + positions[position, :] for the live rows of a step.
//
// The device's row list says what is live: rows[i] = (slot, beam, position) for i < count, with count on the device too. The token
// of row i is tokens[slot * beams + beam]. The encoder uses it with sentences for slots and places for beams.
// Shapes: table [vocab_size, d_model], positions [max_positions, d_model] (may be null), out [bucket, d_model] of type T; tokens
// [slots, beams], rows [bucket, 3] u32; count [1] u32.
// Parallelisation: a block per row of the bucket; rows from count on are not written.
// Numerics: f32, rounded once. A token or position outside its table gives a row of NaN: it shows, and nothing is read.
// Reference: src/cpu/embedding.rs
#include "common.cuh"

template <typename T>
struct EmbeddingArguments {
    const T* table;
    const T* positions;
    const unsigned* tokens;
    const unsigned* rows;
    const unsigned* count;
    T* out;
    unsigned beams;
    unsigned num_tokens;  // slots * beams
    unsigned d_model;
    unsigned vocab_size;
    unsigned max_positions;
    float scale;
    unsigned bucket;
    unsigned vectorized;  // d_model is a multiple of VECTOR<T>, and all addresses are of 16 bytes
};

template <unsigned N, typename T>
__device__ __forceinline__ void embed(const EmbeddingArguments<T>& a, const T* from, const T* position, T* to) {
    for (unsigned i = threadIdx.x * N; i < a.d_model; i += blockDim.x * N) {
        const Pack<T, N> token = load_pack<N>(from + i);
        Pack<T, N> offset, out;
        if (position != nullptr) offset = load_pack<N>(position + i);
#pragma unroll
        for (unsigned k = 0; k < N; ++k) {
            const float x = to_float(token.values[k]) * a.scale;
            out.values[k] = from_float<T>(position != nullptr ? x + to_float(offset.values[k]) : x);
        }
        store_pack(to + i, out);
    }
}

template <typename T>
__device__ void embedding(const EmbeddingArguments<T>& a) {
    const unsigned row = blockIdx.x;
    if (row >= a.bucket || row >= *a.count) return;
    const unsigned slot = a.rows[3 * row], beam = a.rows[3 * row + 1], position = a.rows[3 * row + 2];
    T* to = a.out + static_cast<std::size_t>(row) * a.d_model;
    const unsigned long long at = static_cast<unsigned long long>(slot) * a.beams + beam;
    const unsigned token = beam < a.beams && at < a.num_tokens ? a.tokens[at] : a.vocab_size;
    const bool has_positions = a.positions != nullptr;
    if (token >= a.vocab_size || (has_positions && position >= a.max_positions)) {
        for (unsigned i = threadIdx.x; i < a.d_model; i += blockDim.x) to[i] = from_float<T>(NAN);
        return;
    }
    const T* from = a.table + static_cast<std::size_t>(token) * a.d_model;
    const T* offset = has_positions ? a.positions + static_cast<std::size_t>(position) * a.d_model : nullptr;
    if (a.vectorized != 0) embed<VECTOR<T>>(a, from, offset, to);
    else embed<1>(a, from, offset, to);
}

KERNEL(embedding_f32, 1024, EmbeddingArguments<float>, embedding)
KERNEL(embedding_f16, 1024, EmbeddingArguments<__half>, embedding)
KERNEL(embedding_bf16, 1024, EmbeddingArguments<__nv_bfloat16>, embedding)
