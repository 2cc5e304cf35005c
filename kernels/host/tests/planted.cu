// Kernels with planted faults, and sound ones beside them, for the emulator's own tests. Never compiled for a device.
// Reference: the tests in src/cuda/emulated/tests/
#include "../../common.cuh"
#include "../../tensor_cores.cuh"

struct PlantedArguments {
    const float* in;
    float* out;
    unsigned* counts;
    unsigned n;
    unsigned fault;  // 0: none; others as each kernel says
};

// out[t] = in[n - 1 - t] through shared memory, n threads. Fault 1: no barrier. 2: half the threads return before the barrier.
// 3: the halves meet at different barriers. 4: one place too far, past the end for n = 256.
__device__ void reverse(const PlantedArguments& a) {
    SHARED(float, line, 256);
    const unsigned t = threadIdx.x;
    line[a.fault == 4 ? t + 1 : t] = a.in[t];
    if (a.fault == 2 && t >= a.n / 2) return;
    if (a.fault == 3 && t >= a.n / 2) {
        __syncthreads();
    } else if (a.fault != 1) {
        __syncthreads();
    }
    a.out[t] = line[a.n - 1 - t];
}

// out[t] = sum(in) + 10 * sum(2 * in), both sums through the same shared memory. Fault 1: no barrier between the uses.
__device__ void sum_twice(const PlantedArguments& a) {
    SHARED(float, scratch, 32);
    const unsigned lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE, warps = blockDim.x / WARP_SIZE;
    float total = 0.0f;
    for (unsigned turn = 1; turn <= 2; ++turn) {
        const float part = warp_sum(static_cast<float>(turn) * a.in[threadIdx.x]);
        if (lane == 0) scratch[warp] = part;
        __syncthreads();
        float sum = 0.0f;
        for (unsigned w = 0; w < warps; ++w) sum += scratch[w];
        total += turn == 1 ? sum : 10.0f * sum;
        if (a.fault != 1) __syncthreads();
    }
    a.out[threadIdx.x] = total;
}

// out[i] = 2 * in[i] for i < n. Fault 1: i <= n on writing. 2: reads in[i + 1].
__device__ void twice(const PlantedArguments& a) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < a.n) a.out[i] = 2.0f * __ldg(&a.in[a.fault == 2 ? i + 1 : i]);
    if (a.fault == 1 && i == a.n) a.out[i] = 2.0f;
}

// out[i] = in[i + n] for 12 numbers, four at a time, one four in each way there is. Fault f: the f-th way starts one number late.
__device__ void vectors(const PlantedArguments& a) {
    if (threadIdx.x != 0) return;
    const float* in = a.in + a.n;
    store_pack(a.out, load_pack<4>(in + (a.fault == 1)));
    const float4 read = __ldg(reinterpret_cast<const float4*>(in + 4 + (a.fault == 2)));
    store_pack(a.out + 4, Pack<float, 4>{{read.x, read.y, read.z, read.w}});
    __stcg(reinterpret_cast<float4*>(a.out + 8 + (a.fault == 3)), __ldcs(reinterpret_cast<const float4*>(in + 8)));
}

// Fault 1: reads where no memory is. 2: divides by n, which is 0.
__device__ void wild(const PlantedArguments& a) {
    __syncthreads();
    if (a.fault == 1 && threadIdx.x == 33) a.out[0] = a.in[1ull << 40];
    if (a.fault == 2 && threadIdx.x == 33) a.counts[0] = 7u / a.n;
    __syncthreads();
}

// Fault 1: half a warp takes part in a shuffle of the whole. 2: a lane outside the mask is read. 3: half shuffles, half votes.
// 4: half a warp waits at the barrier, half in a shuffle.
__device__ void exchanges(const PlantedArguments& a) {
    const unsigned lane = threadIdx.x % WARP_SIZE;
    float x = static_cast<float>(lane);
    if (a.fault == 1) {
        if (lane < 16) x = __shfl_xor_sync(FULL_WARP, x, 1);
        else __syncthreads();
    } else if (a.fault == 2) {
        if (lane < 16) x = __shfl_sync(0xFFFFu, x, 20);
    } else if (a.fault == 3) {
        if (lane < 16) x = __shfl_xor_sync(FULL_WARP, x, 1);
        else x = static_cast<float>(__any_sync(FULL_WARP, 1));
    } else if (a.fault == 4) {
        if (lane < 16) __syncthreads();
        else x = __shfl_xor_sync(FULL_WARP, x, 1);
    }
    a.out[threadIdx.x] = x;
}

// One warp; 16 results per lane, in the order of the test.
__device__ void warp_results(const PlantedArguments& a) {
    const unsigned lane = threadIdx.x % WARP_SIZE;
    const float x = a.in[lane];
    unsigned* out = a.counts + lane * 16;
    const unsigned odd_or_even = lane % 2 == 0 ? 0x55555555u : 0xAAAAAAAAu;
    out[0] = __float_as_uint(__shfl_sync(FULL_WARP, x, 5));
    out[1] = __float_as_uint(__shfl_up_sync(FULL_WARP, x, 3));
    out[2] = __float_as_uint(__shfl_down_sync(FULL_WARP, x, 3));
    out[3] = __float_as_uint(__shfl_xor_sync(FULL_WARP, x, 9));
    out[4] = __float_as_uint(__shfl_sync(FULL_WARP, x, 3, 8));
    out[5] = __float_as_uint(__shfl_down_sync(FULL_WARP, x, 2, 8));
    out[6] = __float_as_uint(__shfl_up_sync(FULL_WARP, x, 2, 8));
    out[7] = __ballot_sync(FULL_WARP, lane % 3 == 0);
    out[8] = __ballot_sync(odd_or_even, lane < 10);
    out[9] = static_cast<unsigned>(__any_sync(FULL_WARP, lane == 7)) + 2u * static_cast<unsigned>(__all_sync(FULL_WARP, lane != 7));
    out[10] = __reduce_add_sync(FULL_WARP, lane);
    out[11] = static_cast<unsigned>(__reduce_min_sync(FULL_WARP, static_cast<int>(lane) - 9));
    out[12] = __reduce_max_sync(odd_or_even, lane);
    out[13] = __match_any_sync(FULL_WARP, lane / 4);
    const unsigned long long wide = (static_cast<unsigned long long>(lane) << 40) + lane;
    const unsigned long long moved = __shfl_xor_sync(FULL_WARP, wide, 1);
    out[14] = static_cast<unsigned>(moved >> 40) * 100u + static_cast<unsigned>(moved);
    out[15] = static_cast<unsigned>(__syncthreads_count(lane < 11));
}

// Lanes that returned are excused from a warp's exchanges: each lane sums over those above it that are left.
__device__ void leaving_lanes(const PlantedArguments& a) {
    const unsigned lane = threadIdx.x % WARP_SIZE;
    for (unsigned left = WARP_SIZE; left > 0; --left) {
        if (lane >= left) return;
        a.counts[threadIdx.x] = __popc(__ballot_sync(FULL_WARP, 1)) + a.counts[threadIdx.x];
    }
}

// Counts every thread of every block once, by its own index; any grid.
__device__ void count_threads(const PlantedArguments& a) {
    const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    atomicAdd(&a.counts[block * blockDim.x + threadIdx.x], 1u);
    // The last block to come, by ticket, resets it.
    if (threadIdx.x == 0) atomicInc(&a.counts[a.n], gridDim.x * gridDim.y * gridDim.z - 1);
}

// counts[i] = the i-th warp to run, for n warps in all; counts[n] is the ticket.
__device__ void order(const PlantedArguments& a) {
    if (threadIdx.x % WARP_SIZE != 0) return;
    const unsigned warps = blockDim.x / WARP_SIZE, warp = blockIdx.x * warps + threadIdx.x / WARP_SIZE;
    a.counts[atomicAdd(&a.counts[a.n], 1u)] = warp;
}

// out[0] += n, by one thread: `n` is the step, as a number passed by value or, with fault 0, as counts[0] on the device.
__device__ void add_step(const PlantedArguments& a) {
    if (threadIdx.x != 0) return;
    if (a.fault == 1) {
        a.out[0] += static_cast<float>(a.n);
    } else {
        a.out[0] += static_cast<float>(a.counts[0]++);
    }
}

// counts[i] = bits of the conversion of the i-th f16 and bf16 to f32, and of in[i] to f16 and bf16.
__device__ void convert(const PlantedArguments& a) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= a.n) return;
    const auto bits = static_cast<unsigned short>(i);
    a.counts[4 * i] = __float_as_uint(to_float(__ushort_as_half(bits)));
    a.counts[4 * i + 1] = __float_as_uint(to_float(__ushort_as_bfloat16(bits)));
    a.counts[4 * i + 2] = __half_as_ushort(from_float<__half>(a.in[i]));
    a.counts[4 * i + 3] = __bfloat16_as_ushort(from_float<__nv_bfloat16>(a.in[i]));
}

// What memory holds before anything is written: out from dynamic shared memory, counts from static.
__device__ void uninitialised(const PlantedArguments& a) {
    SHARED(unsigned, fixed, 32);
    DYNAMIC_SHARED(float, dynamic);
    const unsigned t = threadIdx.x;
    a.out[blockIdx.x * blockDim.x + t] = dynamic[t];
    a.counts[blockIdx.x * blockDim.x + t] = fixed[t];
    dynamic[t] = 1.0f;
    fixed[t] = 1u;
}

// out[16, 8] = 1 + in[0..256) as [16, 16] times in[256..384) as [16, 8], of one warp, in f16: each lane's fragments as the document has
// them. Fault 1: half the lanes leave before. 2: half the lanes meet the others in another operation.
__device__ void products(const PlantedArguments& a) {
    SHARED(unsigned, rows, 128);
    const unsigned lane = threadIdx.x, g = lane / 4, t = lane % 4;
    const auto pair = [&](unsigned first, unsigned second) {
        const unsigned low = __half_as_ushort(from_float<__half>(a.in[first])), high = __half_as_ushort(from_float<__half>(a.in[second]));
        return low | high << 16;
    };
    unsigned x[4], weight[2];
    for (unsigned r = 0; r < 4; ++r) {
        const unsigned at = (g + 8 * (r % 2)) * 16 + 2 * t + 8 * (r / 2);
        x[r] = pair(at, at + 1);
    }
    for (unsigned r = 0; r < 2; ++r) {
        const unsigned at = 256 + (2 * t + 8 * r) * 8 + g;
        weight[r] = pair(at, at + 8);
    }
    float sums[4] = {1.0f, 1.0f, 1.0f, 1.0f};
    if (a.fault == 1 && lane >= 16) return;
    if (a.fault == 2 && lane >= 16) load_matrices(rows + lane * 4, x);
    else multiply_add(__half{}, x, weight, sums);
    for (unsigned r = 0; r < 4; ++r) a.out[(g + 8 * (r / 2)) * 8 + 2 * t + r % 2] = sums[r];
}

using FourWords = Pack<unsigned, 4>;
using FourFloats = Pack<float, 4>;

// counts[4 l + i] = what lane l gets of the i-th of four matrices whose words are numbered.
__device__ void matrices(const PlantedArguments& a) {
    SHARED(FourWords, rows, 32);
    const unsigned lane = threadIdx.x;
    for (unsigned word = 0; word < 4; ++word) rows[lane].values[word] = lane * 4 + word;
    __syncthreads();
    unsigned to[4];
    load_matrices(&rows[lane], to);
    for (unsigned i = 0; i < 4; ++i) a.counts[4 * lane + i] = to[i];
}

// out[4 t ..] = in[4 (n - 1 - t) ..] of n threads, through shared memory, by copies that run ahead, every third of them zeros. Fault 1:
// nobody waits. 2: waits for too few. 3: no barrier. 4: starts one number late.
__device__ void copies(const PlantedArguments& a) {
    SHARED(FourFloats, line, 64);
    const unsigned t = threadIdx.x;
    end_copies();
    copy_async(&line[t], a.in + 4 * t + (a.fault == 4), t % 3 == 2);
    end_copies();
    if (a.fault == 2) wait_for_copies<1>();
    else if (a.fault != 1) wait_for_copies<0>();
    if (a.fault != 3) __syncthreads();
    store_pack(a.out + 4 * t, line[a.n - 1 - t]);
    if (a.fault == 2) wait_for_copies<0>();
}

KERNEL(planted_products, 32, PlantedArguments, products)
KERNEL(planted_matrices, 32, PlantedArguments, matrices)
KERNEL(planted_copies, 64, PlantedArguments, copies)
KERNEL(planted_reverse, 256, PlantedArguments, reverse)
KERNEL(planted_sum_twice, 1024, PlantedArguments, sum_twice)
KERNEL(planted_twice, 1024, PlantedArguments, twice)
KERNEL(planted_vectors, 1024, PlantedArguments, vectors)
KERNEL(planted_wild, 1024, PlantedArguments, wild)
KERNEL(planted_exchanges, 1024, PlantedArguments, exchanges)
KERNEL(planted_warp_results, 32, PlantedArguments, warp_results)
KERNEL(planted_leaving_lanes, 1024, PlantedArguments, leaving_lanes)
KERNEL(planted_count_threads, 1024, PlantedArguments, count_threads)
KERNEL(planted_order, 1024, PlantedArguments, order)
KERNEL(planted_add_step, 32, PlantedArguments, add_step)
KERNEL(planted_convert, 1024, PlantedArguments, convert)
KERNEL(planted_uninitialised, 32, PlantedArguments, uninitialised)
