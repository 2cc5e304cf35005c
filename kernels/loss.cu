// loss_nll: loss[row] = -weight * sum(t * log p), and logits[row, :] = weight * (p - t), with p = softmax(logits) and t =
// 1 - smoothing at the target, smoothing / (vocab_size - 1) elsewhere.
// loss_divergence: loss[row] = weight * temperature^2 * D, and student[row, :] becomes its gradient by the student's logits. With p
// the teacher's and q the student's softmax(logits / temperature), m = beta p + (1 - beta) q and s = weight * temperature:
//   beta 0     D = sum(p log(p / q))                                       gradient s (q - p)
//   beta 1     D = sum(q log(q / p))                                       gradient s q (log(q / p) - D)
//   otherwise  D = beta sum(p log(p / m)) + (1 - beta) sum(q log(q / m))   gradient (1 - beta) s q (log(q / m) - sum(q log(q / m)))
//
// A row whose mask or weight is 0 gives exactly 0 throughout and is not read.
// Shapes: logits, student, teacher [rows, stride] of type T, of which the first vocab_size columns are read and written; targets, mask,
// weights, loss [rows].
// Parallelisation: a block per row. The likelihood and beta 0 read a row twice, the other divergences, whose gradient needs a
// sum over the row first, three times; all but the first time it lies in L2.
// Numerics: f32, gradients rounded to T. Logits are taken relative to their row's maximum before anything is compared, so that
// equal rows have loss and gradient 0 exactly. NaN or +infinity in a row, nothing but -infinity, or a target outside the vocabulary
// give NaN. The order of additions depends on vocab_size, alignment and block size alone.
// Reference: src/cpu/loss.rs
#include "logits.cuh"

template <typename T>
struct NllArguments {
    T* logits;
    const unsigned* targets;
    const unsigned* mask;
    const float* weights;
    float* loss;
    unsigned vocab_size;
    unsigned stride;      // elements from row to row
    unsigned vectorized;  // stride is a multiple of VECTOR<T>, and the logits' address is of 16 bytes
    float on;             // t at the target
    float off;            // t elsewhere
    unsigned unused;
};

template <typename T>
__device__ __forceinline__ void fill_row(T* row, unsigned vocab_size, bool vectorized, float value) {
    constexpr unsigned N = VECTOR<T>;
    float values[N];
#pragma unroll
    for (unsigned k = 0; k < N; ++k) values[k] = value;
    for (unsigned first = threadIdx.x * N; first < vocab_size; first += blockDim.x * N) {
        store_logits(row, first, vocab_size, vectorized, values);
    }
}

template <typename T>
__device__ void loss_nll(const NllArguments<T>& a) {
    constexpr unsigned N = VECTOR<T>;
    SHARED(float, scratch, 32);
    const unsigned row = blockIdx.x, target = a.targets[row];
    const bool vectorized = a.vectorized != 0;
    T* logits = a.logits + static_cast<std::size_t>(row) * a.stride;
    const float weight = a.mask[row] != 0 ? a.weights[row] : 0.0f;
    if (weight == 0.0f) {
        fill_row(logits, a.vocab_size, vectorized, 0.0f);
        if (threadIdx.x == 0) a.loss[row] = 0.0f;
        return;
    }
    // Read before the first barrier, since its place is written behind the last.
    const float gold = target < a.vocab_size ? to_float(logits[target]) : NAN;
    float x[N];
    LogSum sum;
    float from_gold = 0.0f;
    for (unsigned first = threadIdx.x * N; first < a.vocab_size; first += blockDim.x * N) {
        load_logits(logits, first, a.vocab_size, vectorized, x);
        sum.add(x);
        if (a.off == 0.0f) continue;
#pragma unroll
        for (unsigned k = 0; k < N; ++k) {
            if (first + k < a.vocab_size) from_gold += x[k] - gold;
        }
    }
    const Normalizer normalizer = block_log_sum(sum, scratch);
    from_gold = block_sum(from_gold, scratch);
    if (!isfinite(normalizer.max) || isnan(gold)) {
        fill_row(logits, a.vocab_size, vectorized, NAN);
        if (threadIdx.x == 0) a.loss[row] = NAN;
        return;
    }
    if (threadIdx.x == 0) {
        // t sums to 1, so -sum(t * log_prob(z)) is this.
        float nll = -normalizer.log_prob(gold);
        if (a.off > 0.0f && isfinite(nll)) nll -= a.off * from_gold;
        a.loss[row] = weight * nll;
    }
    for (unsigned first = threadIdx.x * N; first < a.vocab_size; first += blockDim.x * N) {
        load_logits(logits, first, a.vocab_size, vectorized, x);
#pragma unroll
        for (unsigned k = 0; k < N; ++k) {
            x[k] = weight * (expf(normalizer.log_prob(x[k])) - (first + k == target ? a.on : a.off));
        }
        store_logits(logits, first, a.vocab_size, vectorized, x);
    }
}

template <typename T>
struct DivergenceArguments {
    T* student;
    const T* teacher;
    const unsigned* mask;
    const float* weights;
    float* loss;
    unsigned vocab_size;
    unsigned stride;
    unsigned vectorized;
    float temperature;
    float beta;
    unsigned unused;
};

// The largest logit, and the sum of exp((z - max) / temperature). NaN and +infinity make the sum NaN.
struct TemperedSum {
    float max = -INFINITY;
    float sum = 0.0f;

    template <unsigned N>
    __device__ __forceinline__ void add(const float (&z)[N], float inverse_temperature) {
        float largest = z[0];
#pragma unroll
        for (unsigned k = 1; k < N; ++k) largest = fmaxf(largest, z[k]);
        if (largest > max) {
            sum *= expf((max - largest) * inverse_temperature);
            max = largest;
        }
        const float shift = max == -INFINITY ? 0.0f : max;
#pragma unroll
        for (unsigned k = 0; k < N; ++k) sum += expf((z[k] - shift) * inverse_temperature);
    }

    // Log-probabilities are (z - max) / temperature minus what this returns; not finite if the row has none.
    __device__ __forceinline__ float finish(float inverse_temperature, float* scratch) {
        const float largest = block_max(max, scratch);
        const float shift = largest == -INFINITY ? 0.0f : largest;
        sum = block_sum(sum * expf((max - shift) * inverse_temperature), scratch);
        max = largest;
        return logf(sum);
    }
};

// log(p / m) and log(q / m) from d = log(p / q): exact near 0, and exactly 0 there.
__device__ __forceinline__ void mixture_ratios(float d, float beta, float& p_to_m, float& q_to_m) {
    if (d <= 0.0f) {
        const float m_to_q = log1pf(beta * expm1f(d));
        p_to_m = d - m_to_q, q_to_m = -m_to_q;
    } else {
        const float m_to_p = log1pf((1.0f - beta) * expm1f(-d));
        p_to_m = -m_to_p, q_to_m = -d - m_to_p;
    }
}

// Both rows of a block and their statistics.
template <typename T>
struct Rows {
    T* student;
    const T* teacher;
    unsigned vocab_size;
    bool vectorized;
    float inverse_temperature;
    float student_max, student_log_sum, teacher_max, teacher_log_sum;

    // Log-probabilities of the VECTOR<T> tokens from `first` on.
    __device__ __forceinline__ void log_probs(unsigned first, float (&log_p)[VECTOR<T>], float (&log_q)[VECTOR<T>]) const {
        load_logits(student, first, vocab_size, vectorized, log_q);
        load_logits(teacher, first, vocab_size, vectorized, log_p);
#pragma unroll
        for (unsigned k = 0; k < VECTOR<T>; ++k) {
            log_q[k] = (log_q[k] - student_max) * inverse_temperature - student_log_sum;
            log_p[k] = (log_p[k] - teacher_max) * inverse_temperature - teacher_log_sum;
        }
    }
};

// log(p / q) of one token, 0 where both are.
__device__ __forceinline__ float log_ratio(float log_p, float log_q) { return log_p == log_q ? 0.0f : log_p - log_q; }

// log(q / m), with m = p for beta 1.
__device__ __forceinline__ float student_ratio(float log_p, float log_q, float beta) {
    const float d = log_ratio(log_p, log_q);
    if (beta == 1.0f) return -d;
    float p_to_m, q_to_m;
    mixture_ratios(d, beta, p_to_m, q_to_m);
    return q_to_m;
}

template <typename T>
__device__ void loss_divergence(const DivergenceArguments<T>& a) {
    constexpr unsigned N = VECTOR<T>;
    SHARED(float, scratch, 32);
    const unsigned row = blockIdx.x;
    const std::size_t start = static_cast<std::size_t>(row) * a.stride;
    const float weight = a.mask[row] != 0 ? a.weights[row] : 0.0f, beta = a.beta;
    Rows<T> rows{};
    rows.student = a.student + start, rows.teacher = a.teacher + start;
    rows.vocab_size = a.vocab_size, rows.vectorized = a.vectorized != 0;
    rows.inverse_temperature = 1.0f / a.temperature;
    if (weight == 0.0f) {
        fill_row(rows.student, a.vocab_size, rows.vectorized, 0.0f);
        if (threadIdx.x == 0) a.loss[row] = 0.0f;
        return;
    }
    float log_p[N], log_q[N];
    TemperedSum student, teacher;
    for (unsigned first = threadIdx.x * N; first < a.vocab_size; first += blockDim.x * N) {
        load_logits(rows.student, first, a.vocab_size, rows.vectorized, log_q);
        load_logits(rows.teacher, first, a.vocab_size, rows.vectorized, log_p);
        student.add(log_q, rows.inverse_temperature);
        teacher.add(log_p, rows.inverse_temperature);
    }
    rows.student_log_sum = student.finish(rows.inverse_temperature, scratch), rows.student_max = student.max;
    rows.teacher_log_sum = teacher.finish(rows.inverse_temperature, scratch), rows.teacher_max = teacher.max;
    if (!isfinite(rows.student_log_sum) || !isfinite(rows.teacher_log_sum)) {
        fill_row(rows.student, a.vocab_size, rows.vectorized, NAN);
        if (threadIdx.x == 0) a.loss[row] = NAN;
        return;
    }
    const float scale = weight * a.temperature;
    float teacher_part = 0.0f, student_part = 0.0f;  // of the sum over the row; 0 times anything is 0
    for (unsigned first = threadIdx.x * N; first < a.vocab_size; first += blockDim.x * N) {
        rows.log_probs(first, log_p, log_q);
#pragma unroll
        for (unsigned k = 0; k < N; ++k) {
            if (first + k >= a.vocab_size) continue;
            const float p = expf(log_p[k]), q = expf(log_q[k]), d = log_ratio(log_p[k], log_q[k]);
            if (beta == 0.0f) {
                if (p > 0.0f) teacher_part += p * d;
                log_q[k] = scale * (q - p);
            } else if (beta == 1.0f) {
                if (q > 0.0f) student_part -= q * d;
            } else {
                float p_to_m, q_to_m;
                mixture_ratios(d, beta, p_to_m, q_to_m);
                if (p > 0.0f) teacher_part += p * p_to_m;
                if (q > 0.0f) student_part += q * q_to_m;
            }
        }
        if (beta == 0.0f) store_logits(rows.student, first, a.vocab_size, rows.vectorized, log_q);
    }
    teacher_part = block_sum(teacher_part, scratch);
    student_part = block_sum(student_part, scratch);
    if (threadIdx.x == 0) {
        const bool mixed = beta > 0.0f && beta < 1.0f;
        const float divergence =
            mixed ? beta * teacher_part + (1.0f - beta) * student_part : teacher_part + student_part;
        a.loss[row] = weight * a.temperature * a.temperature * divergence;
    }
    if (beta == 0.0f) return;
    const float part = beta == 1.0f ? scale : (1.0f - beta) * scale;
    for (unsigned first = threadIdx.x * N; first < a.vocab_size; first += blockDim.x * N) {
        rows.log_probs(first, log_p, log_q);
#pragma unroll
        for (unsigned k = 0; k < N; ++k) {
            const float q = expf(log_q[k]);
            log_q[k] = q == 0.0f ? 0.0f : part * q * (student_ratio(log_p[k], log_q[k], beta) - student_part);
        }
        store_logits(rows.student, first, a.vocab_size, rows.vectorized, log_q);
    }
}

KERNEL(loss_nll_f32, 1024, NllArguments<float>, loss_nll)
KERNEL(loss_nll_f16, 1024, NllArguments<__half>, loss_nll)
KERNEL(loss_nll_bf16, 1024, NllArguments<__nv_bfloat16>, loss_nll)
KERNEL(loss_divergence_f32, 1024, DivergenceArguments<float>, loss_divergence)
KERNEL(loss_divergence_f16, 1024, DivergenceArguments<__half>, loss_divergence)
KERNEL(loss_divergence_bf16, 1024, DivergenceArguments<__nv_bfloat16>, loss_divergence)

LAYOUT(FIELDS(NllArguments<float>, logits, targets, mask, weights, loss, vocab_size, stride, vectorized, on, off,
              unused)
       FIELDS(DivergenceArguments<float>, student, teacher, mask, weights, loss, vocab_size, stride, vectorized,
              temperature, beta, unused))
