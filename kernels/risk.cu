// For each source: Q = softmax(alpha * log_probs) over its candidates, R = sum(Q * risks), 1 / sum(Q^2), and for each candidate the
// coefficient -alpha * Q * (risk - R). Source i's candidates are starts[i] .. starts[i + 1].
//
// Shapes: log_probs, risks, coefficients [candidates]; starts [sources + 1]; outcomes [sources] of (R, 1 / sum(Q^2)).
// Parallelisation: a warp per source. Candidates are few; what matters is that their coefficients sum to nothing.
// Numerics: f64, rounded once; then the largest coefficient (the first of equals) takes up what rounding leaves. Equal risks have
// coefficients of exactly 0. A log-probability of -infinity has no part; NaN, +infinity, or nothing but -infinity, or a risk of
// NaN, makes the source's results NaN. No candidates: R and the other are 0.
// Reference: src/cpu/risk.rs
#include "common.cuh"

// Mirrors `ExpectedRisk` in src/cpu/risk.rs.
struct ExpectedRisk {
    float risk, effective_samples;
};

struct RiskArguments {
    const float* log_probs;
    const float* risks;
    const unsigned* starts;
    float* coefficients;
    ExpectedRisk* outcomes;
    unsigned candidates;
    float alpha;
};

__device__ __forceinline__ double warp_sum_f64(double x) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(FULL_WARP, x, distance);
    return x;
}

// -infinity times an alpha of 0 is no NaN: the candidate has no part.
__device__ __forceinline__ double scaled(double alpha, float log_prob) {
    return log_prob == -INFINITY ? -static_cast<double>(INFINITY) : alpha * static_cast<double>(log_prob);
}

__device__ void risk(const RiskArguments& a) {
    const unsigned source = blockIdx.x, lane = threadIdx.x;
    const unsigned begin = a.starts[source], end = min(a.starts[source + 1], a.candidates);
    if (begin >= end) {
        if (lane == 0) a.outcomes[source] = ExpectedRisk{0.0f, 0.0f};
        return;
    }
    const double alpha = a.alpha;
    const float first_risk = a.risks[begin];
    double max = -static_cast<double>(INFINITY);
    bool broken = false, differ = false;
    for (unsigned i = begin + lane; i < end; i += WARP_SIZE) {
        const double mine = scaled(alpha, a.log_probs[i]);
        max = fmax(max, mine);
        broken |= isnan(a.log_probs[i]) || isnan(a.risks[i]) || mine == static_cast<double>(INFINITY);
        differ |= a.risks[i] != first_risk;
    }
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) max = fmax(max, __shfl_xor_sync(FULL_WARP, max, distance));
    broken = __any_sync(FULL_WARP, broken) != 0 || max == -static_cast<double>(INFINITY);
    differ = __any_sync(FULL_WARP, differ) != 0;
    if (broken) {
        for (unsigned i = begin + lane; i < end; i += WARP_SIZE) a.coefficients[i] = NAN;
        if (lane == 0) a.outcomes[source] = ExpectedRisk{NAN, NAN};
        return;
    }
    double sum = 0.0, squares = 0.0, expected = 0.0;
    for (unsigned i = begin + lane; i < end; i += WARP_SIZE) {
        const double weight = exp(scaled(alpha, a.log_probs[i]) - max);
        sum += weight;
        squares += weight * weight;
        expected += weight * static_cast<double>(a.risks[i]);
    }
    sum = warp_sum_f64(sum);
    squares = warp_sum_f64(squares);
    expected = warp_sum_f64(expected) / sum;
    if (lane == 0) {
        a.outcomes[source] =
            ExpectedRisk{differ ? static_cast<float>(expected) : first_risk, static_cast<float>(sum * sum / squares)};
    }
    double left = 0.0;
    float largest = -1.0f, largest_value = 0.0f;
    unsigned largest_at = end;
    for (unsigned i = begin + lane; i < end; i += WARP_SIZE) {
        float coefficient = 0.0f;
        if (differ) {
            const double q = exp(scaled(alpha, a.log_probs[i]) - max) / sum;
            coefficient = static_cast<float>(-alpha * q * (static_cast<double>(a.risks[i]) - expected));
        }
        a.coefficients[i] = coefficient;
        left += static_cast<double>(coefficient);
        if (fabsf(coefficient) > largest) largest = fabsf(coefficient), largest_value = coefficient, largest_at = i;
    }
    left = warp_sum_f64(left);
    // The lane that holds the largest, the lowest place among equals.
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        const float other = __shfl_xor_sync(FULL_WARP, largest, distance);
        const float other_value = __shfl_xor_sync(FULL_WARP, largest_value, distance);
        const unsigned other_at = __shfl_xor_sync(FULL_WARP, largest_at, distance);
        if (other > largest || (other == largest && other_at < largest_at)) {
            largest = other, largest_value = other_value, largest_at = other_at;
        }
    }
    __syncwarp();
    if (lane == 0 && differ) a.coefficients[largest_at] = static_cast<float>(static_cast<double>(largest_value) - left);
}

KERNEL(risk_f32, 32, RiskArguments, risk)

LAYOUT(FIELDS(ExpectedRisk, risk, effective_samples)
       FIELDS(RiskArguments, log_probs, risks, starts, coefficients, outcomes, candidates, alpha))
