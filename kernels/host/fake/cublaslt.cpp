// The fake driver's double of cuBLASLt: the functions that the device layer calls, from NVIDIA's cuBLAS documentation. It knows few
// algorithms, each good for some shapes only, and now and then none; one splits K, and adds up in an order that changes with the
// number of rows.
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <set>
#include <vector>

#include "../emulated.h"

extern "C" int fake_enqueue_product(void* stream, const std::uint64_t* addresses, const std::size_t* bytes, std::size_t count,
                                    void (*run)(void*), void (*drop)(void*), void* context);
extern "C" int fake_broken(int code, const char* rule, const char* text);
extern "C" std::uint64_t fake_setting(const char* name);

namespace {

enum Status : int { OK = 0, INVALID_VALUE = 7, EXECUTION_FAILED = 13, NOT_SUPPORTED = 15 };
enum Type : int { F32 = 0, F16 = 2, BF16 = 14 };
constexpr int COMPUTE_32F = 68, EPILOGUE_NONE = 1, EPILOGUE_BIAS = 4;
constexpr std::uint64_t MAGIC = 0x0A160A160A16ull;

struct Handle {};
struct Desc {
    int compute, scale;
    int transpose_a = 0, epilogue = EPILOGUE_NONE;
    std::uint64_t bias = 0;
};
struct Layout {
    int type;
    std::uint64_t rows, columns;
    std::int64_t stride;
};
struct Preference {
    std::uint64_t workspace = 0;
    std::uint32_t reductions = 0xFFFFFFFFu, alignment[4] = {256, 256, 256, 256};
};
// The library's own opaque 64 bytes.
struct Algorithm {
    std::uint64_t magic;
    std::uint32_t id, tile, stages, split, reduction, alignment;
    std::uint64_t workspace, unused[3];
};
static_assert(sizeof(Algorithm) == 64);
struct Heuristic {
    Algorithm algorithm;
    std::size_t workspace;
    int state;
    float waves;
    int reserved[4];
};

std::mutex mutex;
std::set<const void*> live;

template <typename T>
T* make(T value) {
    T* made = new T(value);
    live.insert(made);
    return made;
}

Status broken(const char* rule, const char* text) { return static_cast<Status>(fake_broken(INVALID_VALUE, rule, text)); }

template <typename T>
Status destroy(T* handle, const char* call) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (live.erase(handle) == 0) return broken("handle", call);
    delete handle;
    return OK;
}

std::size_t size_of(int type) { return type == F32 ? 4 : 2; }

constexpr Algorithm ALGORITHMS[] = {
    {MAGIC, 66, 20, 15, 4, 2, 16, 1 << 20, {}},  // splits K
    {MAGIC, 21, 18, 16, 1, 0, 16, 0, {}},        // not for the most rows
    {MAGIC, 20, 15, 12, 1, 0, 16, 0, {}},
    {MAGIC, 5, 8, 0, 1, 0, 0, 0, {}},            // for any alignment
};

// Whether an algorithm does a product: out [n, rows] from weight [k, n] and x [k, rows], as the library sees them.
bool does(const Algorithm& algorithm, const Desc& desc, const Layout& a, const Layout& b, const Layout& d) {
    if (fake_setting("algorithms") == 0) return false;
    const std::uint64_t k = a.rows, n = a.columns, rows = b.columns;
    if (n == 1 && k == 1) return false;
    if (algorithm.id == 21 && rows > 2048 && n % 64 != 0) return false;
    if (algorithm.alignment == 0) return desc.epilogue != EPILOGUE_BIAS || n % 2 == 0;
    const std::size_t in = size_of(a.type), out = size_of(d.type);
    return a.stride * in % 16 == 0 && b.stride * in % 16 == 0 && d.stride * out % 16 == 0;
}

Status check(const void* handle, const Desc* desc, const Layout* a, const Layout* b, const Layout* c, const Layout* d) {
    for (const void* known : {handle, static_cast<const void*>(desc), static_cast<const void*>(a), static_cast<const void*>(b),
                              static_cast<const void*>(c), static_cast<const void*>(d)})
        if (live.count(known) == 0) return broken("handle", "a handle or a descriptor is not there");
    if (desc->compute != COMPUTE_32F || desc->scale != F32) return broken("types", "sums are not in f32");
    if (desc->transpose_a != 1) return broken("shapes", "the first matrix is not transposed");
    if (a->type != b->type || c->type != d->type || (d->type != a->type && d->type != F32)) return broken("types", "types of matrices");
    if (a->rows != b->rows || d->rows != a->columns || d->columns != b->columns || c->rows != d->rows || c->columns != d->columns)
        return broken("shapes", "shapes of matrices");
    for (const Layout* layout : {a, b, c, d})
        if (layout->stride < static_cast<std::int64_t>(layout->rows)) return broken("shapes", "a stride below the rows");
    if (desc->epilogue == EPILOGUE_BIAS && desc->bias == 0) return broken("bias", "an epilogue with a null bias");
    return OK;
}

struct Product {
    std::uint32_t algorithm;
    int in, out;
    std::uint64_t n, rows, k, a_stride, b_stride, d_stride, a, b, d, bias;
};

float load(int type, std::uint64_t at, std::size_t i) {
    switch (type) {
        case F16: return __half2float(reinterpret_cast<const __half*>(at)[i]);
        case BF16: return __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(at)[i]);
        default: return reinterpret_cast<const float*>(at)[i];
    }
}

void store(int type, std::uint64_t at, std::size_t i, float value) {
    switch (type) {
        case F16: reinterpret_cast<__half*>(at)[i] = __float2half_rn(value); break;
        case BF16: reinterpret_cast<__nv_bfloat16*>(at)[i] = __float2bfloat16_rn(value); break;
        default: reinterpret_cast<float*>(at)[i] = value;
    }
}

constexpr std::size_t SIDE = 16;

// The place of the t-th product that an algorithm adds: first to last as the emulator has it, or, split, from a start that moves
// with the number of rows.
std::size_t place(const Product& p, std::size_t t) { return p.algorithm == 66 ? (t + p.rows) % p.k : t; }

void multiply(void* context) {
    const Product& p = *static_cast<Product*>(context);
    std::vector<float> panel(p.k * SIDE), row(p.k);
    for (std::size_t first = 0; first < p.n; first += SIDE) {
        const std::size_t count = p.n - first < SIDE ? p.n - first : SIDE;
        for (std::size_t t = 0; t < p.k; ++t)
            for (std::size_t i = 0; i < SIDE; ++i)
                panel[t * SIDE + i] = i < count ? load(p.in, p.a, (first + i) * p.a_stride + place(p, t)) : 0.0f;
        for (std::size_t j = 0; j < p.rows; ++j) {
            for (std::size_t t = 0; t < p.k; ++t) row[t] = load(p.in, p.b, j * p.b_stride + place(p, t));
            float sums[SIDE] = {};
            for (std::size_t t = 0; t < p.k; ++t)
                for (std::size_t i = 0; i < SIDE; ++i) sums[i] += row[t] * panel[t * SIDE + i];
            for (std::size_t i = 0; i < count; ++i) {
                const float sum = p.bias == 0 ? sums[i] : sums[i] + load(F32, p.bias, first + i);
                store(p.out, p.d, j * p.d_stride + first + i, sum);
            }
        }
    }
}

void drop(void* context) { delete static_cast<Product*>(context); }

}  // namespace

extern "C" {

Status cublasLtCreate(Handle** handle) {
    const std::lock_guard<std::mutex> lock(mutex);
    *handle = make(Handle{});
    return OK;
}

Status cublasLtDestroy(Handle* handle) { return destroy(handle, "cublasLtDestroy"); }

Status cublasLtMatmulDescCreate(Desc** desc, int compute, int scale) {
    const std::lock_guard<std::mutex> lock(mutex);
    *desc = make(Desc{compute, scale});
    return OK;
}

Status cublasLtMatmulDescSetAttribute(Desc* desc, int attribute, const void* value, std::size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (live.count(desc) == 0) return broken("handle", "cublasLtMatmulDescSetAttribute");
    void* field = attribute == 3 ? static_cast<void*>(&desc->transpose_a)
                  : attribute == 7 ? static_cast<void*>(&desc->epilogue)
                  : attribute == 8 ? static_cast<void*>(&desc->bias) : nullptr;
    const std::size_t expected = attribute == 8 ? 8 : 4;
    if (field == nullptr || bytes != expected) return broken("attribute", "of a product: unknown, or of another size");
    std::memcpy(field, value, bytes);
    return OK;
}

Status cublasLtMatmulDescDestroy(Desc* desc) { return destroy(desc, "cublasLtMatmulDescDestroy"); }

Status cublasLtMatrixLayoutCreate(Layout** layout, int type, std::uint64_t rows, std::uint64_t columns, std::int64_t stride) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (type != F32 && type != F16 && type != BF16) return NOT_SUPPORTED;
    *layout = make(Layout{type, rows, columns, stride});
    return OK;
}

Status cublasLtMatrixLayoutDestroy(Layout* layout) { return destroy(layout, "cublasLtMatrixLayoutDestroy"); }

Status cublasLtMatmulPreferenceCreate(Preference** preference) {
    const std::lock_guard<std::mutex> lock(mutex);
    *preference = make(Preference{});
    return OK;
}

Status cublasLtMatmulPreferenceSetAttribute(Preference* preference, int attribute, const void* value, std::size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (live.count(preference) == 0) return broken("handle", "cublasLtMatmulPreferenceSetAttribute");
    void* field = attribute == 1 ? static_cast<void*>(&preference->workspace)
                  : attribute == 3 ? static_cast<void*>(&preference->reductions)
                  : attribute >= 5 && attribute <= 8 ? static_cast<void*>(&preference->alignment[attribute - 5]) : nullptr;
    if (field == nullptr || bytes != (attribute == 1 ? 8u : 4u)) return broken("attribute", "of a preference: unknown, or of another size");
    std::memcpy(field, value, bytes);
    return OK;
}

Status cublasLtMatmulPreferenceDestroy(Preference* preference) { return destroy(preference, "cublasLtMatmulPreferenceDestroy"); }

Status cublasLtMatmulAlgoGetHeuristic(Handle* handle, Desc* desc, Layout* a, Layout* b, Layout* c, Layout* d,
                                      Preference* preference, int requested, Heuristic* results, int* returned) {
    const std::lock_guard<std::mutex> lock(mutex);
    *returned = 0;
    if (const Status status = check(handle, desc, a, b, c, d); status != OK) return status;
    if (live.count(preference) == 0) return broken("handle", "cublasLtMatmulAlgoGetHeuristic");
    for (const Algorithm& algorithm : ALGORITHMS) {
        if (*returned == requested) break;
        bool proposed = does(algorithm, *desc, *a, *b, *d) && algorithm.workspace <= preference->workspace;
        proposed = proposed && (algorithm.reduction == 0 || (preference->reductions & algorithm.reduction) != 0);
        for (const std::uint32_t alignment : preference->alignment)
            proposed = proposed && (algorithm.alignment == 0 ? alignment < 16 : alignment >= algorithm.alignment);
        if (proposed) results[(*returned)++] = Heuristic{algorithm, algorithm.workspace, OK, 1.0f, {}};
    }
    return *returned == 0 ? NOT_SUPPORTED : OK;
}

Status cublasLtMatmulAlgoCheck(Handle* handle, Desc* desc, Layout* a, Layout* b, Layout* c, Layout* d,
                               const Algorithm* algorithm, Heuristic* result) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (const Status status = check(handle, desc, a, b, c, d); status != OK) return status;
    if (algorithm->magic != MAGIC) return broken("algorithm", "not one that was proposed");
    if (!does(*algorithm, *desc, *a, *b, *d)) return NOT_SUPPORTED;
    *result = Heuristic{*algorithm, algorithm->workspace, OK, 1.0f, {}};
    return OK;
}

Status cublasLtMatmulAlgoConfigGetAttribute(const Algorithm* algorithm, int attribute, void* value, std::size_t bytes,
                                            std::size_t* written) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (algorithm->magic != MAGIC || bytes != 4) return broken("attribute", "of an algorithm: unknown, or of another size");
    const std::uint32_t* field = attribute == 0 ? &algorithm->id
                                 : attribute == 1 ? &algorithm->tile
                                 : attribute == 2 ? &algorithm->split
                                 : attribute == 3 ? &algorithm->reduction
                                 : attribute == 6 ? &algorithm->stages : nullptr;
    if (field == nullptr) return broken("attribute", "of an algorithm: unknown, or of another size");
    std::memcpy(value, field, bytes);
    if (written != nullptr) *written = bytes;
    return OK;
}

Status cublasLtMatmul(Handle* handle, Desc* desc, const float* alpha, const void* a_at, Layout* a, const void* b_at, Layout* b,
                      const float* beta, const void* c_at, Layout* c, void* d_at, Layout* d, const Algorithm* algorithm,
                      void* workspace, std::size_t workspace_bytes, void* stream) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (const Status status = check(handle, desc, a, b, c, d); status != OK) return status;
    if (*alpha != 1.0f || *beta != 0.0f) return broken("scale", "alpha is not 1, or beta not 0");
    if (algorithm == nullptr || algorithm->magic != MAGIC) return broken("algorithm", "not one that was proposed");
    if (!does(*algorithm, *desc, *a, *b, *d)) return broken("algorithm", "not for this product");
    if (algorithm->workspace > workspace_bytes || (algorithm->workspace != 0 && workspace == nullptr))
        return broken("workspace", "too small");
    if (c_at != d_at) return broken("matrices", "the third is not the result");
    const auto address = [](const void* at) { return reinterpret_cast<std::uint64_t>(at); };
    const std::uint64_t alignment = algorithm->alignment == 0 ? size_of(a->type) : algorithm->alignment;
    for (const void* at : {a_at, b_at, static_cast<const void*>(d_at)})
        if (address(at) % alignment != 0) return broken("alignment", "less than the algorithm needs");
    const std::uint64_t bias = desc->epilogue == EPILOGUE_BIAS ? desc->bias : 0;
    const auto bytes = [](const Layout* layout) {
        return ((layout->columns - 1) * static_cast<std::uint64_t>(layout->stride) + layout->rows) * size_of(layout->type);
    };
    const std::uint64_t addresses[] = {address(a_at), address(b_at), address(d_at), bias};
    const std::size_t sizes[] = {bytes(a), bytes(b), bytes(d), a->columns * 4};
    auto* product = new Product{algorithm->id, a->type, d->type, a->columns, b->columns, a->rows,
                                static_cast<std::uint64_t>(a->stride), static_cast<std::uint64_t>(b->stride),
                                static_cast<std::uint64_t>(d->stride), addresses[0], addresses[1], addresses[2], bias};
    return fake_enqueue_product(stream, addresses, sizes, bias == 0 ? 3 : 4, multiply, drop, product) == 0 ? OK : EXECUTION_FAILED;
}

}  // extern "C"
