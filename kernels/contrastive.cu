// out[row, :] = log_softmax(s), s the contrast of an expert's logits e with an amateur's a (divided by the temperature):
//   seed    e - weight * a
//   li      log p_e - weight * log p_a                on V_head
//   obrien  (1 + weight) * log p_e - weight * log p_a on V_head
//   source  log(max(p_e - weight * p_a, 1e-12))       on V_head
// V_head = { v : e(v) - max e >= log_mask }, joined by end of sentence at the length limit
// and by a token that is given; elsewhere, and where e is -infinity,
// so is s. normalizers[row] = log(sum(exp(e))).
//
// Shapes: expert, amateur [bucket, stride] of type T; out [bucket, stride] f32, which may be the amateur; normalizers [bucket] or null;
// options [slots]; rows [bucket]; count [1]. Elements beyond vocab_size are neither read nor written, nor are rows from count on.
// Parallelisation: a block per row, three passes of which the first alone finds the row in memory, the others in L2: the
// expert's maximum and sum (for `source` the amateur's too), those of s, the result. Outside of V_head the amateur is not read.
// Numerics: f32. What is constant in a row cancels in log_softmax: seed, li and obrien use e - max e and a as they are. NaN or
// +infinity in the expert's row makes the row and its normaliser NaN; in the amateur's, the row, where it enters. The order of
// additions depends on vocab_size, alignment and block size alone.
// Reference: src/cpu/contrastive.rs
#include "logits.cuh"
#include "search_state.cuh"

// Mirrors `Row` in src/backend.rs.
struct ContrastiveRow {
    unsigned slot, beam, position, token;
};

template <typename T>
struct ContrastiveArguments {
    const T* expert;
    const T* amateur;
    float* out;
    float* normalizers;
    const SlotOptions* options;
    const ContrastiveRow* rows;
    const unsigned* count;
    const unsigned* prefixes;  // [slots, max_len] or null
    unsigned bucket;
    unsigned slots;
    unsigned vocab_size;
    unsigned stride;  // elements from row to row
    unsigned eos_id;
    unsigned vectorized;  // stride is a multiple of VECTOR<T>, and all addresses are of 16 bytes
    unsigned max_len;
    unsigned scorer;  // rows of slots with another amateur are left alone; 0: none is
};

// What a row's s is computed from, beside the two logits.
struct Terms {
    unsigned form;
    float weight;
    float inverse_temperature;
    float log_mask;
    unsigned joining;           // the token that V_head admits in any case
    Normalizer expert;
    Normalizer amateur;         // of the divided logits; for `source` alone
};

__device__ __forceinline__ bool admits(const Terms& terms, float e, unsigned token) {
    if (e == -INFINITY) return false;
    return terms.form == LOGITS || e - terms.expert.max >= terms.log_mask || token == terms.joining;
}

// s up to a constant of the row, for a token that is admitted.
__device__ __forceinline__ float contrast(const Terms& terms, float e, float a) {
    if (a == INFINITY) return NAN;
    a *= terms.inverse_temperature;
    switch (terms.form) {
        case LOGITS:
        case LI: return (e - terms.expert.max) - terms.weight * a;
        case OBRIEN: return (1.0f + terms.weight) * (e - terms.expert.max) - terms.weight * a;
        case SOURCE: {
            const float difference =
                expf(terms.expert.log_prob(e)) - terms.weight * expf(terms.amateur.log_prob(a));
            return logf(difference < 1e-12f ? 1e-12f : difference);  // not fmaxf, which would turn NaN into the floor
        }
        default: return NAN;
    }
}

// A block's two rows of logits.
template <typename T>
struct Pair {
    const T* expert;
    const T* amateur;
    unsigned vocab_size;
    bool vectorized;

    // s of the VECTOR<T> tokens from `first` on; false if it is -infinity for all of them.
    __device__ __forceinline__ bool contrasts(const Terms& terms, unsigned first, float (&s)[VECTOR<T>]) const {
        constexpr unsigned N = VECTOR<T>;
        load_logits(expert, first, vocab_size, vectorized, s);
        bool any = false;
#pragma unroll
        for (unsigned k = 0; k < N; ++k) {
            if (admits(terms, s[k], first + k)) any = true;
            else s[k] = -INFINITY;
        }
        if (!any) return false;
        float a[N];
        load_logits(amateur, first, vocab_size, vectorized, a);
#pragma unroll
        for (unsigned k = 0; k < N; ++k) {
            if (s[k] != -INFINITY) s[k] = contrast(terms, s[k], a[k]);
        }
        return true;
    }
};

template <unsigned N>
__device__ __forceinline__ void store_row(float* row, unsigned first, unsigned vocab_size, bool vectorized,
                                          const float (&values)[N]) {
    if (vectorized && first + N <= vocab_size) {
#pragma unroll
        for (unsigned k = 0; k < N; k += 4) {
            const Pack<float, 4> pack{{values[k], values[k + 1], values[k + 2], values[k + 3]}};
            store_pack(row + first + k, pack);
        }
    } else {
#pragma unroll
        for (unsigned k = 0; k < N; ++k) {
            if (first + k < vocab_size) row[first + k] = values[k];
        }
    }
}

// The expert's normaliser and, for `source`, the amateur's normaliser.
template <typename T>
__device__ __forceinline__ void read_statistics(const Pair<T>& pair, Terms& terms, float* scratch) {
    constexpr unsigned N = VECTOR<T>;
    float logits[N];
    LogSum expert, amateur;
    for (unsigned first = threadIdx.x * N; first < pair.vocab_size; first += blockDim.x * N) {
        load_logits(pair.expert, first, pair.vocab_size, pair.vectorized, logits);
        expert.add(logits);
    }
    terms.expert = block_log_sum(expert, scratch);
    if (terms.form != SOURCE) return;
    for (unsigned first = threadIdx.x * N; first < pair.vocab_size; first += blockDim.x * N) {
        load_logits(pair.amateur, first, pair.vocab_size, pair.vectorized, logits);
#pragma unroll
        for (unsigned k = 0; k < N; ++k) logits[k] *= terms.inverse_temperature;
        amateur.add(logits);
    }
    terms.amateur = block_log_sum(amateur, scratch);
    if (terms.amateur.max == -INFINITY) terms.amateur.max = 0.0f;
}

template <typename T>
__device__ void contrastive(const ContrastiveArguments<T>& a) {
    constexpr unsigned N = VECTOR<T>;
    SHARED(float, scratch, 32);
    const unsigned row = blockIdx.x;
    if (row >= a.bucket || row >= *a.count) return;
    const ContrastiveRow entry = a.rows[row];
    const std::size_t start = static_cast<std::size_t>(row) * a.stride;
    const Pair<T> pair{a.expert + start, a.amateur + start, a.vocab_size, a.vectorized != 0};

    Terms terms{};
    ContrastiveOptions options{};
    const bool is_there = entry.slot < a.slots;
    unsigned max_len = 0, cut = 0, prefix_len = 0;
    if (is_there) {
        const SlotOptions& slot = a.options[entry.slot];
        options = slot.contrast, max_len = slot.max_len, cut = slot.cut, prefix_len = slot.prefix_len;
    }
    if (a.scorer != 0 && (options.form == NO_CONTRAST || options.scorer != a.scorer)) return;
    terms.form = is_there ? options.form : SOURCE + 1;  // a slot that is not there gives a row of NaN
    terms.weight = options.weight;
    terms.inverse_temperature = 1.0f / options.temperature;
    terms.log_mask = options.log_mask;
    terms.joining = a.vocab_size;
    if (entry.position + 1 >= max_len && cut == 0) terms.joining = a.eos_id;
    else if (entry.position < prefix_len && a.prefixes != nullptr)
        terms.joining = a.prefixes[static_cast<std::size_t>(entry.slot) * a.max_len + entry.position];
    read_statistics(pair, terms, scratch);
    if (threadIdx.x == 0 && a.normalizers != nullptr) a.normalizers[row] = terms.expert.max + terms.expert.log_sum;

    float s[N];
    LogSum sum;
    for (unsigned first = threadIdx.x * N; first < a.vocab_size; first += blockDim.x * N) {
        if (pair.contrasts(terms, first, s)) sum.add(s);
    }
    Normalizer normalizer = block_log_sum(sum, scratch);
    if (normalizer.max == -INFINITY) normalizer.max = 0.0f;
    if (isnan(terms.expert.max)) normalizer.max = NAN;
    for (unsigned first = threadIdx.x * N; first < a.vocab_size; first += blockDim.x * N) {
        pair.contrasts(terms, first, s);
#pragma unroll
        for (unsigned k = 0; k < N; ++k) s[k] = normalizer.log_prob(s[k]);
        store_row(a.out + start, first, a.vocab_size, pair.vectorized, s);
    }
}

KERNEL(contrastive_f32, 1024, ContrastiveArguments<float>, contrastive)
KERNEL(contrastive_f16, 1024, ContrastiveArguments<__half>, contrastive)
KERNEL(contrastive_bf16, 1024, ContrastiveArguments<__nv_bfloat16>, contrastive)

LAYOUT(FIELDS(ContrastiveArguments<float>, expert, amateur, out, normalizers, options, rows, count, prefixes, bucket,
              slots, vocab_size, stride, eos_id, vectorized, max_len, scorer)
       FIELDS(ContrastiveRow, slot, beam, position, token))
