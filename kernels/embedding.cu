// out[i, :] = table[token, :] * scale + positions[position, :] for the live rows of a step. positions may be null; to the token
// pad_id none is added. A table of 8-bit integers is multiplied by table_scales[token] first.
//
// The device's row list says what is live: rows[i] = (slot, beam, position, token) for i < count, with count on the device too.
// Shapes: table [vocab_size, d_model] of type E, of integers in rows as of quantize.cu; positions [max_positions, d_model], out [bucket,
// d_model] of type T; table_scales [vocab_size] f32, null unless E is of integers; rows [bucket, 4] u32; count [1] u32.
// Parallelisation: a block per row of the bucket; rows from count on are not written.
// Numerics: f32, rounded once. A token or position outside its table gives a row of NaN: it shows, and nothing is read.
// Reference: src/cpu/embedding.rs
#include "common.cuh"

template <typename E, typename T>
struct EmbeddingArguments {
    const E* table;
    const float* table_scales;
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

// What an element of a token's row is; integers are worth `worth` each.
template <typename E>
__device__ __forceinline__ float element(E stored, float) { return to_float(stored); }
__device__ __forceinline__ float element(signed char stored, float worth) { return __fmul_rn(static_cast<float>(stored), worth); }

template <unsigned N, typename E, typename T>
__device__ __forceinline__ void embed(const EmbeddingArguments<E, T>& a, const E* from, float worth, const T* position, T* to) {
    for (unsigned i = threadIdx.x * N; i < a.d_model; i += blockDim.x * N) {
        const Pack<E, N> token = load_pack<N>(from + i);
        Pack<T, N> out;
        if (position == nullptr) {
#pragma unroll
            for (unsigned k = 0; k < N; ++k) out.values[k] = from_float<T>(__fmul_rn(element(token.values[k], worth), a.scale));
            store_pack(to + i, out);
            continue;
        }
        const Pack<T, N> offset = load_pack<N>(position + i);
#pragma unroll
        for (unsigned k = 0; k < N; ++k)
            out.values[k] = from_float<T>(__fadd_rn(__fmul_rn(element(token.values[k], worth), a.scale), to_float(offset.values[k])));
        store_pack(to + i, out);
    }
}

template <typename E, typename T>
__device__ void embedding(const EmbeddingArguments<E, T>& a) {
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
    const E* from = a.table + static_cast<std::size_t>(token) * (sizeof(E) == 1 ? padded_i8(a.d_model) : a.d_model);
    const float worth = a.table_scales != nullptr ? a.table_scales[token] : 1.0f;
    const T* offset = has_position ? a.positions + static_cast<std::size_t>(position) * a.d_model : nullptr;
    if (a.vectorized != 0) embed<VECTOR<T>>(a, from, worth, offset, to);
    else embed<1>(a, from, worth, offset, to);
}

using EmbeddingF32 = EmbeddingArguments<float, float>;
using EmbeddingF16 = EmbeddingArguments<__half, __half>;
using EmbeddingBf16 = EmbeddingArguments<__nv_bfloat16, __nv_bfloat16>;
using EmbeddingI8 = EmbeddingArguments<signed char, float>;

KERNEL(embedding_f32, 1024, EmbeddingF32, embedding)
KERNEL(embedding_f16, 1024, EmbeddingF16, embedding)
KERNEL(embedding_bf16, 1024, EmbeddingBf16, embedding)
KERNEL(embedding_i8, 1024, EmbeddingI8, embedding)

LAYOUT(FIELDS(EmbeddingF32, table, table_scales, positions, rows, count, out, d_model, vocab_size, max_positions, scale, bucket,
              pad_id, row_words, vectorized)
       FIELDS(EmbeddingF16, table, table_scales, positions, rows, count, out, d_model, vocab_size, max_positions, scale, bucket,
              pad_id, row_words, vectorized)
       FIELDS(EmbeddingBf16, table, table_scales, positions, rows, count, out, d_model, vocab_size, max_positions, scale, bucket,
              pad_id, row_words, vectorized)
       FIELDS(EmbeddingI8, table, table_scales, positions, rows, count, out, d_model, vocab_size, max_positions, scale, bucket,
              pad_id, row_words, vectorized))
