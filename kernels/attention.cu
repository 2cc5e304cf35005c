// Dot-product attention, out = softmax(q K^T * scale + relative) V per row and head, over three kinds of keys and values, and the
// store that fills the decoder's caches. `relative`, if it is not null, is added by how far the key lies from the query.
//
//   attention_encoder: every row attends to all rows of its own sentence, rows starts[i] .. starts[i + 1].
//   attention_self:    a decoder row attends to positions 0 .. position of its slot; below its own, position t is read from beam
//                      ancestry[slot, beam, t]. Given own_keys and own_values, it first stores its own key and value there, as
//                      attention_store would: only where no row reads what another stores.
//   attention_cross:   a decoder row attends to the source of its slot, options[slot].src_len positions; on request the mean over
//                      heads goes to weights, zero beyond the source.
//   attention_store:   copies each row's key and value to its place in a cache.
//
// Keys and values lie at places, kv_stride elements apart: rows of the encoder's [bucket, 3 * width]; a cache
// [slots, max_len, beam_size, width] (beam_size 1 for the source). Shapes otherwise: rows [bucket, 4] u32 (slot, beam, position,
// token); count [1] u32, how many are live; queries [bucket, query_stride]; out [bucket, width] of type T; width = num_heads *
// head_dim; keys and values of type C, in a cache f32 may be rounded to bf16; bias [width] (attention_self that stores: [3 * width]) f32,
// added to queries, keys and values as they are read, and rounded to T, may be null; relative [num_heads, 2 * max_distance + 1] f32, may be null: by the key's position less the query's,
// from -max_distance on, what lies farther counting as lying so far; starts [slots + 1], ancestry [slots, beam_size, max_len], options of option_words u32 per slot, from
// the first one's src_len on; weights
// [bucket, max_len] f32, may be null.
// Parallelisation: a block per row of the bucket, a warp per head, several heads in turn if there are fewer warps. A lane takes a
// position's score, its key's loads four ahead, then the weighted sum of an element, of two that are 16 bits wide. Shared memory: capacity positions per warp, once more for their places, and
// a query per warp.
// Numerics: f32, rounded once; the maximum is subtracted before exp. A row that names a slot, beam or position that is not there
// gets NaN: it shows, and nothing is read. The order of additions depends on head_dim, alignment and the number of positions
// alone; where activations are f32 it is the CPU's, and so are the bits.
// Reference: src/cpu/attention.rs
#include "lanes.cuh"

template <typename T, typename C>
struct AttentionArguments {
    const T* queries;
    const C* keys;
    const C* values;
    const unsigned* rows;
    const unsigned* count;
    const unsigned* table;  // starts, ancestry or options
    const float* bias;
    const float* relative;
    C* own_keys;    // where keys and values are, if they are stored
    C* own_values;
    float* weights;
    T* out;
    unsigned bucket;
    unsigned num_heads;
    unsigned head_dim;
    unsigned query_stride;
    unsigned kv_stride;
    unsigned slots;         // encoder: sentences
    unsigned max_len;       // positions per slot
    unsigned beam_size;
    unsigned option_words;  // from one slot's src_len to the next one's
    unsigned capacity;      // positions that shared memory has room for
    float scale;
    unsigned max_distance;
    unsigned distances;     // of a head, 2 * max_distance + 1
    unsigned vectorized;    // head_dim is a multiple of VECTOR<C>, and all addresses and strides are of 16 bytes
};

struct Row {
    unsigned slot, beam, position;
};

constexpr unsigned ROW_WORDS = 4;
constexpr unsigned NOWHERE = 0xFFFFFFFFu;

__device__ __forceinline__ Row load_row(const unsigned* rows, unsigned row) {
    const unsigned* entry = rows + static_cast<std::size_t>(row) * ROW_WORDS;
    return {entry[0], entry[1], entry[2]};
}

// q . k over head_dim elements, one lane's work, in the order of the elements.
template <unsigned N, typename C>
__device__ __forceinline__ float dot(const float* query, const C* key, unsigned head_dim) {
    constexpr unsigned AHEAD = N == 1 ? 1 : 4;  // packs under way at a time
    float sum = 0.0f;
    unsigned i = 0;
    for (; i + N * AHEAD <= head_dim; i += N * AHEAD) {
        Pack<C, N> packs[AHEAD];
#pragma unroll
        for (unsigned p = 0; p < AHEAD; ++p) packs[p] = load_pack<N>(key + i + p * N);
#pragma unroll
        for (unsigned p = 0; p < AHEAD; ++p) {
#pragma unroll
            for (unsigned k = 0; k < N; ++k) sum += query[i + p * N + k] * to_float(packs[p].values[k]);
        }
    }
    for (; i < head_dim; i += N) {
        const Pack<C, N> pack = load_pack<N>(key + i);
#pragma unroll
        for (unsigned k = 0; k < N; ++k) sum += query[i + k] * to_float(pack.values[k]);
    }
    return sum;
}

// An element with its bias, rounded as an epilogue of its own would.
template <typename T>
__device__ __forceinline__ T with_bias(T value, const float* bias, unsigned i) {
    return bias != nullptr ? from_float<T>(to_float(value) + bias[i]) : value;
}

// What a score gains by the positions of its query and its key.
template <typename T, typename C>
__device__ __forceinline__ float relative_at(const AttentionArguments<T, C>& a, unsigned head, unsigned position, unsigned key) {
    const unsigned far = a.max_distance;
    const unsigned distance = key + far > position ? min(key + far - position, 2 * far) : 0;
    return a.relative[static_cast<std::size_t>(head) * a.distances + distance];
}

// The same for activations of type T, with packs where alignment allows.
template <typename T, typename C>
__device__ __forceinline__ float product_of(const AttentionArguments<T, C>& a, const float* query, const C* key) {
    if constexpr (AS_ON_CPU<T>) {
        // 8 bytes: more at a time would need more registers than there are.
        return a.vectorized != 0 ? dot_in_lanes<VECTOR<C> / 2>(query, key, a.head_dim) : dot_in_lanes<1>(query, key, a.head_dim);
    } else {
        return a.vectorized != 0 ? dot<VECTOR<C>>(query, key, a.head_dim) : dot<1>(query, key, a.head_dim);
    }
}

// Turns scores[0 .. len) into the softmax of head `head` for a query at `position`, a warp's work. `query`: head_dim floats of
// shared memory.
template <typename T, typename C>
__device__ __forceinline__ void softmax_of_head(const AttentionArguments<T, C>& a, unsigned row, unsigned head, unsigned len,
                                                unsigned position, const unsigned* places, float* query, float* scores) {
    const unsigned lane = threadIdx.x % WARP_SIZE;
    const T* from = a.queries + static_cast<std::size_t>(row) * a.query_stride + head * a.head_dim;
    const float* bias = a.bias != nullptr ? a.bias + head * a.head_dim : nullptr;
    for (unsigned i = lane; i < a.head_dim; i += WARP_SIZE) query[i] = to_float(with_bias(from[i], bias, i));
    __syncwarp();
    float largest = -INFINITY;
    for (unsigned t = lane; t < len; t += WARP_SIZE) {
        float score = NAN;
        if (places[t] != NOWHERE) {
            const C* key = a.keys + static_cast<std::size_t>(places[t]) * a.kv_stride + head * a.head_dim;
            score = __fmul_rn(a.scale, product_of(a, query, key));
            if (a.relative != nullptr) score = __fadd_rn(score, relative_at(a, head, position, t));
        }
        scores[t] = score;
        largest = fmaxf(largest, score);
    }
    largest = warp_max(largest);
    float sum = 0.0f;
    for (unsigned t = lane; t < len; t += WARP_SIZE) {
        const float shifted = scores[t] - largest;
        scores[t] = AS_ON_CPU<T> ? exp_of_lanes(shifted) : expf(shifted);
        sum += scores[t];
    }
    if constexpr (AS_ON_CPU<T>) {
        __syncwarp();
        sum = sum_in_lanes(len, [=](unsigned t) { return scores[t]; }, [](float sum, float x) { return __fadd_rn(sum, x); });
    } else {
        sum = warp_sum(sum);
    }
    const float inverse = __fdiv_rn(1.0f, sum);
    for (unsigned t = lane; t < len; t += WARP_SIZE) scores[t] *= inverse;
    __syncwarp();
}

// out = scores . V for head `head`, a warp's work: N neighbouring elements a lane.
template <unsigned N, typename T, typename C>
__device__ __forceinline__ void weigh_values(const AttentionArguments<T, C>& a, unsigned row, unsigned head, unsigned len,
                                             const unsigned* places, const float* scores) {
    const C* values = a.values + head * a.head_dim;
    T* out = a.out + (static_cast<std::size_t>(row) * a.num_heads + head) * a.head_dim;
    for (unsigned i = threadIdx.x % WARP_SIZE * N; i < a.head_dim; i += WARP_SIZE * N) {
        float sum[N] = {};
#pragma unroll 4
        for (unsigned t = 0; t < len; ++t) {
            // Where there is no place the score is NaN already.
            Pack<C, N> pack{};
            if (places[t] != NOWHERE) pack = load_pack<N>(values + static_cast<std::size_t>(places[t]) * a.kv_stride + i);
#pragma unroll
            for (unsigned k = 0; k < N; ++k) sum[k] = __fmaf_rn(scores[t], to_float(pack.values[k]), sum[k]);
        }
        Pack<T, N> result;
#pragma unroll
        for (unsigned k = 0; k < N; ++k) result.values[k] = from_float<T>(sum[k]);
        store_pack(out + i, result);
    }
}

// The block's row, at `position` of its sequence, attends to the places that `place(t)` names for t < len; no place at all gives
// zeros.
template <typename T, typename C, typename F>
__device__ __forceinline__ void attend(const AttentionArguments<T, C>& a, unsigned row, unsigned len, unsigned position, F place) {
    const unsigned warp = threadIdx.x / WARP_SIZE, warps = blockDim.x / WARP_SIZE;
    DYNAMIC_SHARED(float, memory);
    unsigned* places = reinterpret_cast<unsigned*>(memory);
    float* all_scores = memory + a.capacity;
    float* scores = all_scores + warp * a.capacity;
    float* query = all_scores + warps * a.capacity + warp * a.head_dim;
    for (unsigned t = threadIdx.x; t < len; t += blockDim.x) places[t] = place(t);
    __syncthreads();
    float* weights = a.weights != nullptr ? a.weights + static_cast<std::size_t>(row) * a.max_len : nullptr;
    for (unsigned first = 0; first < a.num_heads; first += warps) {
        if (first + warp < a.num_heads) {
            softmax_of_head(a, row, first + warp, len, position, places, query, scores);
            // Two elements of 16 bits move as one.
            constexpr unsigned PAIR = sizeof(C) == 2 ? 2 : 1;
            if (a.vectorized != 0) weigh_values<PAIR>(a, row, first + warp, len, places, scores);
            else weigh_values<1>(a, row, first + warp, len, places, scores);
        }
        if (weights == nullptr) continue;
        // The mean adds the heads in their order: a position's thread is always the same.
        __syncthreads();
        const unsigned heads = min(warps, a.num_heads - first);
        for (unsigned t = threadIdx.x; t < a.max_len; t += blockDim.x) {
            float sum = first == 0 ? 0.0f : weights[t];
            for (unsigned h = 0; t < len && h < heads; ++h) sum += all_scores[h * a.capacity + t];
            weights[t] = first + heads == a.num_heads ? sum * (1.0f / static_cast<float>(a.num_heads)) : sum;
        }
        __syncthreads();
    }
}

// A row that names what is not there.
template <typename T, typename C>
__device__ __forceinline__ void show(const AttentionArguments<T, C>& a, unsigned row) {
    const std::size_t width = static_cast<std::size_t>(a.num_heads) * a.head_dim;
    for (std::size_t i = threadIdx.x; i < width; i += blockDim.x) a.out[row * width + i] = from_float<T>(NAN);
    if (a.weights == nullptr) return;
    for (unsigned t = threadIdx.x; t < a.max_len; t += blockDim.x)
        a.weights[static_cast<std::size_t>(row) * a.max_len + t] = NAN;
}

template <typename T, typename C>
__device__ void attention_encoder(const AttentionArguments<T, C>& a) {
    const unsigned row = blockIdx.x;
    if (row >= a.bucket || row >= *a.count) return;
    // The last sentence that starts at or before the row.
    unsigned low = 0, high = a.slots;
    while (high - low > 1) {
        const unsigned middle = low + (high - low) / 2;
        if (a.table[middle] <= row) low = middle;
        else high = middle;
    }
    const unsigned first = a.table[low], end = a.table[low + 1];
    if (first > row || end <= row || end > a.bucket || end - first > a.capacity) return show(a, row);
    attend(a, row, end - first, row - first, [=](unsigned t) { return first + t; });
}

template <typename T, typename C>
__device__ void attention_self(const AttentionArguments<T, C>& a) {
    const unsigned row = blockIdx.x;
    if (row >= a.bucket || row >= *a.count) return;
    const Row r = load_row(a.rows, row);
    if (r.slot >= a.slots || r.beam >= a.beam_size || r.position >= a.max_len) return show(a, row);
    if (a.own_keys != nullptr) {
        // The barrier before anything attends also orders these writes.
        const unsigned width = a.num_heads * a.head_dim;
        const T* key = a.queries + static_cast<std::size_t>(row) * a.query_stride + width;
        const std::size_t place = (static_cast<std::size_t>(r.slot) * a.max_len + r.position) * a.beam_size + r.beam;
        const float* key_bias = a.bias != nullptr ? a.bias + width : nullptr;
        const float* value_bias = a.bias != nullptr ? a.bias + 2 * width : nullptr;
        for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
            a.own_keys[place * width + i] = from_float<C>(to_float(with_bias(key[i], key_bias, i)));
            a.own_values[place * width + i] = from_float<C>(to_float(with_bias(key[width + i], value_bias, i)));
        }
    }
    const unsigned* ancestors = a.table + (static_cast<std::size_t>(r.slot) * a.beam_size + r.beam) * a.max_len;
    const unsigned max_len = a.max_len, beam_size = a.beam_size;
    attend(a, row, r.position + 1, r.position, [=](unsigned t) {
        const unsigned beam = t < r.position ? ancestors[t] : r.beam;
        return beam < beam_size ? (r.slot * max_len + t) * beam_size + beam : NOWHERE;
    });
}

template <typename T, typename C>
__device__ void attention_cross(const AttentionArguments<T, C>& a) {
    const unsigned row = blockIdx.x;
    if (row >= a.bucket || row >= *a.count) return;
    const unsigned slot = load_row(a.rows, row).slot;
    if (slot >= a.slots) return show(a, row);
    const unsigned len = a.table[static_cast<std::size_t>(slot) * a.option_words];
    if (len > a.max_len) return show(a, row);
    const unsigned first = slot * a.max_len;
    attend(a, row, len, 0, [=](unsigned t) { return first + t; });
}

template <typename T, typename C>
struct AttentionStoreArguments {
    const T* from;        // [bucket, from_stride]; a row's key starts at key_offset, its value width later
    const unsigned* rows;
    const unsigned* count;
    C* keys;
    C* values;
    unsigned bucket;
    unsigned width;
    unsigned from_stride;
    unsigned key_offset;
    unsigned slots;
    unsigned max_len;
    unsigned beam_size;
    unsigned vectorized;  // width is a multiple of VECTOR<T>, and all addresses and strides are of 16 bytes
};

template <unsigned N, typename T, typename C>
__device__ __forceinline__ void copy(const T* from, C* to, unsigned len) {
    for (unsigned i = threadIdx.x * N; i < len; i += blockDim.x * N) {
        const Pack<T, N> pack = load_pack<N>(from + i);
        Pack<C, N> kept;
#pragma unroll
        for (unsigned k = 0; k < N; ++k) kept.values[k] = from_float<C>(to_float(pack.values[k]));
        store_pack(to + i, kept);
    }
}

template <typename T, typename C>
__device__ void attention_store(const AttentionStoreArguments<T, C>& a) {
    const unsigned row = blockIdx.x;
    if (row >= a.bucket || row >= *a.count) return;
    const Row r = load_row(a.rows, row);
    // There is no place to show this at: what attends to it later shows it.
    if (r.slot >= a.slots || r.beam >= a.beam_size || r.position >= a.max_len) return;
    const T* from = a.from + static_cast<std::size_t>(row) * a.from_stride + a.key_offset;
    const std::size_t place = (static_cast<std::size_t>(r.slot) * a.max_len + r.position) * a.beam_size + r.beam;
    if (a.vectorized != 0) {
        copy<VECTOR<T>>(from, a.keys + place * a.width, a.width);
        copy<VECTOR<T>>(from + a.width, a.values + place * a.width, a.width);
    } else {
        copy<1>(from, a.keys + place * a.width, a.width);
        copy<1>(from + a.width, a.values + place * a.width, a.width);
    }
}

using AttentionF32 = AttentionArguments<float, float>;
using AttentionF16 = AttentionArguments<__half, __half>;
using AttentionBf16 = AttentionArguments<__nv_bfloat16, __nv_bfloat16>;
using AttentionF32OfBf16 = AttentionArguments<float, __nv_bfloat16>;
using AttentionStoreF32 = AttentionStoreArguments<float, float>;
using AttentionStoreF16 = AttentionStoreArguments<__half, __half>;
using AttentionStoreBf16 = AttentionStoreArguments<__nv_bfloat16, __nv_bfloat16>;
using AttentionStoreF32AsBf16 = AttentionStoreArguments<float, __nv_bfloat16>;

// Four blocks of 256 threads a multiprocessor leave registers for four loads under way.
#define ON_CACHES(name, Arguments, StoreArguments)                                        \
    KERNEL_BOUNDED(attention_self_##name, 256, 4, Arguments, attention_self)              \
    KERNEL_BOUNDED(attention_cross_##name, 256, 4, Arguments, attention_cross)            \
    KERNEL(attention_store_##name, 1024, StoreArguments, attention_store)
#define ATTENTION_KERNELS(name, Arguments, StoreArguments)                                \
    KERNEL_BOUNDED(attention_encoder_##name, 256, 4, Arguments, attention_encoder)        \
    ON_CACHES(name, Arguments, StoreArguments)
ATTENTION_KERNELS(f32, AttentionF32, AttentionStoreF32)
ATTENTION_KERNELS(f16, AttentionF16, AttentionStoreF16)
ATTENTION_KERNELS(bf16, AttentionBf16, AttentionStoreBf16)
ON_CACHES(f32_of_bf16, AttentionF32OfBf16, AttentionStoreF32AsBf16)

LAYOUT(FIELDS(AttentionF32, queries, keys, values, rows, count, table, bias, relative, own_keys, own_values, weights, out, bucket,
              num_heads, head_dim, query_stride, kv_stride, slots, max_len, beam_size, option_words, capacity, scale,
              max_distance, distances, vectorized)
       FIELDS(AttentionF16, queries, keys, values, rows, count, table, bias, relative, own_keys, own_values, weights, out, bucket,
              num_heads, head_dim, query_stride, kv_stride, slots, max_len, beam_size, option_words, capacity, scale,
              max_distance, distances, vectorized)
       FIELDS(AttentionBf16, queries, keys, values, rows, count, table, bias, relative, own_keys, own_values, weights, out, bucket,
              num_heads, head_dim, query_stride, kv_stride, slots, max_len, beam_size, option_words, capacity, scale,
              max_distance, distances, vectorized)
       FIELDS(AttentionF32OfBf16, queries, keys, values, rows, count, table, bias, relative, own_keys, own_values, weights, out, bucket,
              num_heads, head_dim, query_stride, kv_stride, slots, max_len, beam_size, option_words, capacity, scale,
              max_distance, distances, vectorized)
       FIELDS(AttentionStoreF32, from, rows, count, keys, values, bucket, width, from_stride, key_offset, slots, max_len,
              beam_size, vectorized)
       FIELDS(AttentionStoreF16, from, rows, count, keys, values, bucket, width, from_stride, key_offset, slots, max_len,
              beam_size, vectorized)
       FIELDS(AttentionStoreBf16, from, rows, count, keys, values, bucket, width, from_stride, key_offset, slots, max_len,
              beam_size, vectorized)
       FIELDS(AttentionStoreF32AsBf16, from, rows, count, keys, values, bucket, width, from_stride, key_offset, slots, max_len,
              beam_size, vectorized)
       CONSTANT("Row::WORDS", ROW_WORDS))
