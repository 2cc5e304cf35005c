// out[i, :] = table[token, :] * scale + positions[position, :] for the live rows of a step. positions may be null; to the token
// pad_id none is added.
//
// The device's row list says what is live: rows[i] = (slot, beam, position, token) for i < count, with count on the device too.
// Shapes: table [vocab_size, d_model], positions [max_positions, d_model], out [bucket, d_model] of type T; rows [bucket, 4] u32;
// count [1] u32.
// Parallelisation: a block per row of the bucket; rows from count on are not written.
// Numerics: f32, rounded once. A token or position outside its table gives a row of NaN: it shows, and nothing is read.
// Reference: src/cpu/embedding.rs
#include "common.cuh"

template <typename T>
struct EmbeddingArguments {
    const T* table;
    const T* positions;
    const unsigned* rows;
    const unsigned* count;
    T* out;
    unsigned d_model;
    unsigned vocab_size;
    unsigned max_positions;
    float scale;
    unsigned bucket;
    unsigned pad_id;      // no token's where all have a position
    unsigned row_words;   // from one entry of rows to the next
    unsigned vectorized;  // d_model is a multiple of VECTOR<T>, and all addresses are of 16 bytes
};

template <unsigned N, typename T>
__device__ __forceinline__ void embed(const EmbeddingArguments<T>& a, const T* from, const T* position, T* to) {
    for (unsigned i = threadIdx.x * N; i < a.d_model; i += blockDim.x * N) {
        const Pack<T, N> token = load_pack<N>(from + i);
        Pack<T, N> out;
        if (position == nullptr) {
#pragma unroll
            for (unsigned k = 0; k < N; ++k) out.values[k] = from_float<T>(to_float(token.values[k]) * a.scale);
            store_pack(to + i, out);
            continue;
        }
        const Pack<T, N> offset = load_pack<N>(position + i);
#pragma unroll
        for (unsigned k = 0; k < N; ++k)
            out.values[k] = from_float<T>(to_float(token.values[k]) * a.scale + to_float(offset.values[k]));
        store_pack(to + i, out);
    }
}

template <typename T>
__device__ void embedding(const EmbeddingArguments<T>& a) {
    const unsigned row = blockIdx.x;
    if (row >= a.bucket || row >= *a.count) return;
    const unsigned* entry = a.rows + static_cast<std::size_t>(row) * a.row_words;
    const unsigned position = entry[2], token = entry[3];
    T* to = a.out + static_cast<std::size_t>(row) * a.d_model;
    const bool has_position = a.positions != nullptr && token != a.pad_id;
    if (token >= a.vocab_size || (has_position && position >= a.max_positions)) {
        for (unsigned i = threadIdx.x; i < a.d_model; i += blockDim.x) to[i] = from_float<T>(NAN);
        return;
    }
    const T* from = a.table + static_cast<std::size_t>(token) * a.d_model;
    const T* offset = has_position ? a.positions + static_cast<std::size_t>(position) * a.d_model : nullptr;
    if (a.vectorized != 0) embed<VECTOR<T>>(a, from, offset, to);
    else embed<1>(a, from, offset, to);
}

KERNEL(embedding_f32, 1024, EmbeddingArguments<float>, embedding)
KERNEL(embedding_f16, 1024, EmbeddingArguments<__half>, embedding)
KERNEL(embedding_bf16, 1024, EmbeddingArguments<__nv_bfloat16>, embedding)

LAYOUT(FIELDS(EmbeddingArguments<float>, table, positions, rows, count, out, d_model, vocab_size, max_positions, scale,
              bucket, pad_id, row_words, vectorized))
