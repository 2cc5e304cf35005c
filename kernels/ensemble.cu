// ranked[row, :] = log_softmax(sum over scorers of weight * logits), the log-linear mixture of several models; for the rows of slots
// that rank another distribution than the model's own and contrast nothing. A slot without weights takes scorer 0 as it is.
//
// Shapes: each scorer's logits and ranked [bucket, stride] f32, of which vocab_size elements of a row are read and written.
// Parallelisation: a block per row, two passes of which the second finds the row in L2.
// Numerics: f32; what is constant in a row of logits cancels. A scorer of weight 0 is not read. NaN or +infinity in a scorer that is
// makes the row NaN throughout. The order of additions depends on vocab_size, alignment and block size alone.
// Reference: src/cpu/ensemble.rs
#include "logits.cuh"
#include "search_state.cuh"

struct EnsembleArguments {
    Search search;
    const float* scorers[MAX_SCORERS];  // null where there is none
    float* ranked;
    unsigned bucket;
    unsigned stride;
    unsigned vectorized;  // stride is a multiple of 4, and all addresses are of 16 bytes
    unsigned unused;
};

// The mixture of 4 tokens from `first` on; -infinity beyond the vocabulary.
__device__ __forceinline__ void mix(const EnsembleArguments& a, const float* weights, bool plain, unsigned first, float (&sum)[4]) {
    const std::size_t start = static_cast<std::size_t>(blockIdx.x) * a.stride;
#pragma unroll
    for (unsigned k = 0; k < 4; ++k) sum[k] = first + k < a.search.vocab_size ? 0.0f : -INFINITY;
#pragma unroll 1
    for (unsigned scorer = 0; scorer < MAX_SCORERS; ++scorer) {
        const float weight = plain ? static_cast<float>(scorer == 0) : weights[scorer];
        if (weight == 0.0f) continue;
        float logits[4];
        load_logits(a.scorers[scorer] + start, first, a.search.vocab_size, a.vectorized != 0, logits);
#pragma unroll
        for (unsigned k = 0; k < 4; ++k) {
            if (first + k < a.search.vocab_size) sum[k] += logits[k] == INFINITY ? NAN : weight * logits[k];
        }
    }
}

__device__ void ensemble(const EnsembleArguments& a) {
    SHARED(float, scratch, 32);
    const Search& s = a.search;
    if (blockIdx.x >= a.bucket || blockIdx.x >= *s.row_count) return;
    const SlotOptions& options = s.options[s.rows[blockIdx.x].x];
    if (options.ranked == 0 || options.contrast.form != NO_CONTRAST) return;
    bool plain = true;
    for (unsigned scorer = 0; scorer < MAX_SCORERS; ++scorer) plain &= options.ensemble[scorer] == 0.0f;

    float sum[4];
    LogSum all;
    for (unsigned first = threadIdx.x * 4; first < s.vocab_size; first += blockDim.x * 4) {
        mix(a, options.ensemble, plain, first, sum);
        all.add(sum);
    }
    Normalizer normalizer = block_log_sum(all, scratch);
    if (normalizer.max == -INFINITY) normalizer.max = 0.0f;
    float* ranked = a.ranked + static_cast<std::size_t>(blockIdx.x) * a.stride;
    for (unsigned first = threadIdx.x * 4; first < s.vocab_size; first += blockDim.x * 4) {
        mix(a, options.ensemble, plain, first, sum);
#pragma unroll
        for (unsigned k = 0; k < 4; ++k) {
            if (first + k < s.vocab_size) ranked[first + k] = normalizer.log_prob(sum[k]);
        }
    }
}

KERNEL(ensemble_f32, 1024, EnsembleArguments, ensemble)

LAYOUT(FIELDS(EnsembleArguments, search, scorers, ranked, bucket, stride, vectorized, unused))
