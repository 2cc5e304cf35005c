// chosen[row] = the gold token, or the model's pick where the row's coin says so.
//
// The coin keeps gold with schedule->gold_probability; padding is always kept, without a coin. The pick is the token of the
// largest logit, or of the largest logit / temperature + Gumbel noise, ties to the lower id, among all but padding and the start
// token. It is refused, and gold kept, if it is end of sentence and gold is not, if nothing is above -infinity, or if NaN or
// +infinity is among the logits. counts[0] grows by the rows that take a pick, counts[1] by those refused for NaN or +infinity.
//
// Random numbers: Philox4x32-10, key = seed, counter = (update, sentence, position, purpose << 28 | token / 4).
// Shapes: gold, chosen [rows]; places [rows]; logits [rows, stride] of type T; schedule [1]; counts [2].
// Parallelisation: a block per row. A row that keeps gold by its coin reads no logit; the others read each once.
// Numerics: f32; the coin's bits are the CPU's, the noise differs by what the libraries' logarithms do.
// Reference: src/cpu/scheduled_sampling.rs
#include "logits.cuh"
#include "philox.cuh"

// Mirrors `TokenPlace` in src/backend.rs.
struct TokenPlace {
    unsigned sentence, position;
};

// Mirrors `Schedule` in src/backend.rs.
struct Schedule {
    float gold_probability;
    unsigned update;
};

template <typename T>
struct ScheduledSamplingArguments {
    const T* logits;
    const unsigned* gold;
    const TokenPlace* places;
    const Schedule* schedule;
    unsigned* chosen;
    unsigned* counts;
    unsigned vocab_size;
    unsigned stride;  // elements from row to row
    unsigned vectorized;  // stride is a multiple of VECTOR<T>, and the logits' address is of 16 bytes
    unsigned seed_low;
    unsigned seed_high;
    unsigned samples;  // 1: Gumbel noise is added
    float temperature;
    unsigned eos_id;
    unsigned pad_id;
    unsigned decoder_start_id;
};

template <typename T>
__device__ __forceinline__ uint4 random_words(const ScheduledSamplingArguments<T>& a, unsigned update, TokenPlace place,
                                              Purpose purpose, unsigned token) {
    const unsigned last = static_cast<unsigned>(purpose) << 28 | token / 4;
    return philox(a.seed_low, a.seed_high, make_uint4(update, place.sentence, place.position, last));
}

__device__ __forceinline__ float gumbel(unsigned word) { return -logf(-logf(open_uniform(word))); }

// logits / temperature + noise for VECTOR<T> tokens, of which `first` is a multiple of 4.
template <typename T>
__device__ __forceinline__ void add_noise(const ScheduledSamplingArguments<T>& a, unsigned update, TokenPlace place,
                                          unsigned first, float (&logits)[VECTOR<T>]) {
#pragma unroll
    for (unsigned k = 0; k < VECTOR<T>; k += 4) {
        const uint4 words = random_words(a, update, place, NOISE, first + k);
        logits[k] = logits[k] / a.temperature + gumbel(words.x);
        logits[k + 1] = logits[k + 1] / a.temperature + gumbel(words.y);
        logits[k + 2] = logits[k + 2] / a.temperature + gumbel(words.z);
        logits[k + 3] = logits[k + 3] / a.temperature + gumbel(words.w);
    }
}

template <typename T>
__device__ void scheduled_sampling(const ScheduledSamplingArguments<T>& a) {
    constexpr unsigned N = VECTOR<T>;
    SHARED(unsigned long long, scratch, 32);
    const unsigned row = blockIdx.x;
    const unsigned gold = a.gold[row];
    const TokenPlace place = a.places[row];
    const Schedule schedule = *a.schedule;
    const float coin = uniform(random_words(a, schedule.update, place, COIN, 0).x);
    if (gold == a.pad_id || coin < schedule.gold_probability) {
        if (threadIdx.x == 0) a.chosen[row] = gold;
        return;
    }
    const T* logits = a.logits + static_cast<std::size_t>(row) * a.stride;
    unsigned long long best = 0;
    bool broken = false;
    float x[N];
    for (unsigned first = threadIdx.x * N; first < a.vocab_size; first += blockDim.x * N) {
        load_logits(logits, first, a.vocab_size, a.vectorized != 0, x);
        if (a.samples != 0) add_noise(a, schedule.update, place, first, x);
#pragma unroll
        for (unsigned k = 0; k < N; ++k) {
            const unsigned token = first + k;
            if (token == a.pad_id || token == a.decoder_start_id || x[k] == -INFINITY) continue;
            if (x[k] < INFINITY) best = max(best, token_key(x[k], token));
            else broken = true;
        }
    }
    broken = __syncthreads_or(broken) != 0;
    best = block_max_key(best, scratch);
    if (threadIdx.x != 0) return;
    const unsigned pick = key_token(best);
    const bool takes = !broken && best != 0 && (pick != a.eos_id || gold == a.eos_id);
    a.chosen[row] = takes ? pick : gold;
    if (broken) atomicAdd(&a.counts[1], 1u);
    else if (takes) atomicAdd(&a.counts[0], 1u);
}

KERNEL(scheduled_sampling_f32, 1024, ScheduledSamplingArguments<float>, scheduled_sampling)
KERNEL(scheduled_sampling_f16, 1024, ScheduledSamplingArguments<__half>, scheduled_sampling)
KERNEL(scheduled_sampling_bf16, 1024, ScheduledSamplingArguments<__nv_bfloat16>, scheduled_sampling)

LAYOUT(FIELDS(TokenPlace, sentence, position)
       FIELDS(Schedule, gold_probability, update)
       FIELDS(ScheduledSamplingArguments<float>, logits, gold, places, schedule, chosen, counts, vocab_size, stride,
              vectorized, seed_low, seed_high, samples, temperature, eos_id, pad_id, decoder_start_id)
       CONSTANT("Purpose::Coin", COIN)
       CONSTANT("Purpose::Noise", NOISE)
       CONSTANT("Purpose::Draw", DRAW))
