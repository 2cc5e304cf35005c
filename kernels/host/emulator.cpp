#include "emulator.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "faults.h"

namespace emulated {

__thread Emulator* active = nullptr;
__thread Thread* self = nullptr;

namespace {

constexpr std::size_t ARENA_BYTES = SHARED_BYTES + (MAX_SHARED_PIECES + 1) * 2 * GUARD_BYTES;
constexpr unsigned char FILL = 0xFF;  // NaN in every floating point type

std::uint64_t next_random(Emulator& e) {  // splitmix64
    std::uint64_t z = (e.random += 0x9E3779B97F4A7C15ull);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

unsigned random_below(Emulator& e, unsigned bound) {
    return static_cast<unsigned>(((next_random(e) >> 32) * bound) >> 32);
}

void shuffle(Emulator& e) {
    for (unsigned i = 0; i < e.num_warps; ++i) {
        const unsigned j = random_below(e, i + 1);
        e.order[i] = e.order[j];
        e.order[j] = static_cast<unsigned char>(i);
    }
    for (unsigned i = 0; i < e.num_warps; ++i) e.position[e.order[i]] = static_cast<unsigned char>(i);
    e.lane_rotation = random_below(e, WARP);
    e.lanes_backwards = random_below(e, 2) == 1;
}

void make_ready(Emulator& e, Warp& warp, std::uint32_t lanes) {
    warp.ready |= lanes;
    if (warp.ready != 0) e.ready_positions |= 1u << e.position[warp.index];
}

// Takes the thread to run next: the first ready warp in the shuffled order, so that a warp gets as far as it can.
Thread* take_ready(Emulator& e) {
    if (e.ready_positions == 0) return nullptr;
    Warp& warp = e.warps[e.order[__builtin_ctz(e.ready_positions)]];
    const unsigned r = e.lane_rotation;
    const std::uint32_t turned = r == 0 ? warp.ready : (warp.ready >> r) | (warp.ready << (WARP - r));
    const unsigned bit = e.lanes_backwards ? WARP - 1 - static_cast<unsigned>(__builtin_clz(turned))
                                           : static_cast<unsigned>(__builtin_ctz(turned));
    const unsigned lane = (bit + r) % WARP;
    warp.ready &= ~(1u << lane);
    if (warp.ready == 0) e.ready_positions &= ~(1u << e.position[warp.index]);
    return &e.threads[warp.index * WARP + lane];
}

// Writes the message of a failure: kernel and block, the thread if one is to blame, and what went wrong.
void record_failure(Emulator& e, const Thread* thread, const char* format, std::va_list arguments) {
    const Index3 b = e.block_index;
    std::size_t used = 0;
    const auto advance = [&](int written) {
        if (written > 0) used += static_cast<std::size_t>(written);
        if (used >= sizeof e.message) used = sizeof e.message - 1;
    };
    advance(std::snprintf(e.message, sizeof e.message, "%s: block (%u, %u, %u)", e.kernel->name, b.x, b.y, b.z));
    if (thread != nullptr) {
        const Index3 t = thread->index;
        advance(std::snprintf(e.message + used, sizeof e.message - used, ", thread (%u, %u, %u)", t.x, t.y, t.z));
    }
    advance(std::snprintf(e.message + used, sizeof e.message - used, ": "));
    std::vsnprintf(e.message + used, sizeof e.message - used, format, arguments);
    e.failed = true;
}

// As `fail`, on the host's own stack; no thread may be to blame.
void fail_on_host(Emulator& e, const Thread* thread, const char* format, ...) __attribute__((format(printf, 3, 4)));
void fail_on_host(Emulator& e, const Thread* thread, const char* format, ...) {
    std::va_list arguments;
    va_start(arguments, format);
    record_failure(e, thread, format, arguments);
    va_end(arguments);
}

// Continues on the host, which sees that the block has failed.
[[noreturn]] void leave(Emulator& e) {
    Fiber* from = e.current;
    e.current = &e.host;
    switch_fiber(from, &e.host);
    std::abort();  // a failed block's fibers are never continued
}

[[noreturn]] void fail_deadlock(Emulator& e) {
    for (unsigned w = 0; w < e.num_warps; ++w) {
        const Warp& warp = e.warps[w];
        if (warp.exchanging == 0) continue;
        const unsigned lane = static_cast<unsigned>(__builtin_ctz(warp.exchanging));
        const Thread& thread = e.threads[w * WARP + lane];
        self = &e.threads[w * WARP + lane];
        fail("divergent warp: the exchange at %s:%d waits for lanes %08x, lanes %08x came", thread.site.file,
             thread.site.line, thread.mask, warp.exchanging);
    }
    fail("divergent barrier: %u of %u threads wait at %s:%d", e.waiting, e.total, e.barrier_site.file, e.barrier_site.line);
}

void worker();

// A fiber ready to start threads; null when memory is short. At most one fiber per thread of a block is ever in use.
Fiber* take_fiber(Emulator& e) {
    if (Fiber* fiber = e.free_fibers) {
        e.free_fibers = fiber->next;
        return fiber;
    }
    Fiber* fiber = e.num_fibers < MAX_THREADS ? new_fiber(e.num_fibers, worker) : nullptr;
    if (fiber != nullptr) e.all_fibers[e.num_fibers++] = fiber;
    return fiber;
}

// Leaves the running thread, which has been put where it waits, and runs others until its turn comes.
void suspend(Emulator& e, Thread* me) {
    Thread* next = take_ready(e);
    if (next == nullptr) fail_deadlock(e);
    if (next == me) return;
    Fiber* from = e.current;
    me->fiber = from;
    Fiber* to = next->fiber != nullptr ? next->fiber : take_fiber(e);
    if (to == nullptr) fail("no memory for the stack of another fiber");
    next->fiber = nullptr;
    self = next;
    e.current = to;
    switch_fiber(from, to);
}

std::uint64_t combine(Exchange kind, std::uint64_t a, std::uint64_t b) {
    const auto ua = static_cast<std::uint32_t>(a), ub = static_cast<std::uint32_t>(b);
    const auto sa = static_cast<std::int32_t>(ua), sb = static_cast<std::int32_t>(ub);
    switch (kind) {
        case Exchange::Sum: return ua + ub;
        case Exchange::Min: return ua < ub ? ua : ub;
        case Exchange::Max: return ua > ub ? ua : ub;
        case Exchange::MinSigned: return sa < sb ? ua : ub;
        case Exchange::MaxSigned: return sa > sb ? ua : ub;
        case Exchange::And: return ua & ub;
        case Exchange::Or: return ua | ub;
        default: return ua ^ ub;
    }
}

template <typename F>
void for_lanes(std::uint32_t lanes, F f) {
    for (; lanes != 0; lanes &= lanes - 1) f(static_cast<unsigned>(__builtin_ctz(lanes)));
}

// What `together` brings to the exchange.
struct Collective {
    void (*work)(void* const* lanes);
    void* mine;
};

void work_together(Thread* lanes) {
    void* brought[WARP];
    const auto* first = reinterpret_cast<const Collective*>(lanes[0].value);
    for (unsigned lane = 0; lane < WARP; ++lane) {
        const auto* of = reinterpret_cast<const Collective*>(lanes[lane].value);
        if (of->work != first->work) fail("divergent warp: lanes meet at %s:%d in different operations", lanes[lane].site.file, lanes[lane].site.line);
        brought[lane] = of->mine;
    }
    first->work(brought);
}

void exchange_values(Thread* lanes, std::uint32_t taking_part, Exchange kind) {
    if (kind == Exchange::Together) {
        if (taking_part != ~0u)
            fail("divergent warp: an operation of the whole warp at %s:%d, lanes %08x came", lanes[__builtin_ctz(taking_part)].site.file,
                 lanes[__builtin_ctz(taking_part)].site.line, taking_part);
        work_together(lanes);
        return;
    }
    if (kind == Exchange::Shuffle || kind == Exchange::Match) {
        std::uint64_t before[WARP];
        for_lanes(taking_part, [&](unsigned lane) { before[lane] = lanes[lane].value; });
        for_lanes(taking_part, [&](unsigned lane) {
            Thread& thread = lanes[lane];
            if (kind == Exchange::Match) {
                thread.value = 0;
                for_lanes(taking_part, [&](unsigned other) {
                    if (before[other] == before[lane]) thread.value |= 1u << other;
                });
                return;
            }
            const auto source = static_cast<unsigned>(thread.source_lane);
            if (source >= WARP || (taking_part >> source & 1u) == 0) {
                self = &thread;
                fail("shuffle at %s:%d reads lane %u, which takes no part in it (mask %08x)", thread.site.file,
                     thread.site.line, source, taking_part);
            }
            thread.value = before[source];
        });
        return;
    }
    const auto first = static_cast<unsigned>(__builtin_ctz(taking_part));
    std::uint64_t result = kind == Exchange::Ballot || kind == Exchange::Sync ? 0 : lanes[first].value;
    for_lanes(taking_part, [&](unsigned lane) {
        if (kind == Exchange::Ballot) result |= static_cast<std::uint64_t>(lanes[lane].value != 0) << lane;
        else if (kind != Exchange::Sync && lane != first) result = combine(kind, result, lanes[lane].value);
    });
    for_lanes(taking_part, [&](unsigned lane) { lanes[lane].value = result; });
}

// Completes the exchange that `thread` waits in if all lanes it names have come; lanes that returned are excused.
void try_exchange(Emulator& e, Thread& thread) {
    Warp& warp = *thread.warp;
    const std::uint32_t needed = thread.mask & warp.alive;
    if ((warp.exchanging & needed) != needed) return;
    Thread* lanes = &e.threads[warp.index * WARP];
    bool complete = true;
    for_lanes(needed, [&](unsigned lane) {
        const Thread& other = lanes[lane];
        if (other.mask != thread.mask) complete = false;
        else if (other.exchange != thread.exchange)
            fail("divergent warp: lanes of mask %08x meet in different exchanges, at %s:%d and %s:%d", thread.mask,
                 thread.site.file, thread.site.line, other.site.file, other.site.line);
    });
    if (!complete) return;
    exchange_values(lanes, needed, thread.exchange);
    warp.exchanging &= ~needed;
    make_ready(e, warp, needed);
}

void thread_returned(Emulator& e, Thread& thread) {
    if (thread.async.count != 0) fail("the thread returned while %u of its copies were under way", thread.async.count);
    Warp& warp = *thread.warp;
    warp.alive &= ~(1u << thread.lane);
    ++e.exited;
    if (e.waiting != 0)
        fail("divergent barrier: the thread returned while %u others wait at %s:%d", e.waiting, e.barrier_site.file,
             e.barrier_site.line);
    for_lanes(warp.exchanging, [&](unsigned lane) {
        if (warp.exchanging >> lane & 1u) try_exchange(e, e.threads[warp.index * WARP + lane]);
    });
}

// What every fiber runs: one thread after the other, until none is left that has not started.
void worker() {
    fiber_started();
    for (;;) {
        Emulator& e = *active;
        e.kernel->entry(e.arguments);
        thread_returned(e, *self);
        Thread* next = take_ready(e);
        if (next != nullptr && next->fiber == nullptr) {
            self = next;
            continue;
        }
        Fiber* from = e.current;
        Fiber* to = &e.host;
        if (next != nullptr) {
            to = next->fiber;
            next->fiber = nullptr;
            self = next;
        } else if (e.exited != e.total) {
            fail_deadlock(e);
        }
        from->next = e.free_fibers;
        e.free_fibers = from;
        e.current = to;
        switch_fiber(from, to);
    }
}

unsigned char* carve(Emulator& e, std::size_t bytes) {
    const std::size_t rounded = (bytes + 15) / 16 * 16;
    unsigned char* data = e.arena + e.arena_used + GUARD_BYTES;
    e.arena_used += rounded + 2 * GUARD_BYTES;
    unpoison(data - GUARD_BYTES, rounded + 2 * GUARD_BYTES);
    std::memset(data - GUARD_BYTES, FILL, rounded + 2 * GUARD_BYTES);
    poison(data - GUARD_BYTES, GUARD_BYTES);
    poison(data + bytes, rounded - bytes + GUARD_BYTES);
    return data;
}

bool intact(const unsigned char* guard, std::size_t bytes) {
    for (std::size_t i = 0; i < bytes; ++i)
        if (guard[i] != FILL) return false;
    return true;
}

void check_shared(Emulator& e) {
#ifndef EMULATED_ASAN  // which watches the guards itself
    for (unsigned i = 0; i < e.num_pieces; ++i) {
        const SharedPiece& piece = e.pieces[i];
        const std::size_t rounded = (piece.bytes + 15) / 16 * 16;
        if (!intact(piece.data - GUARD_BYTES, GUARD_BYTES) ||
            !intact(piece.data + piece.bytes, rounded - piece.bytes + GUARD_BYTES))
            fail_on_host(e, nullptr, "write outside a shared array of %zu bytes", piece.bytes);
    }
#else
    (void)e, (void)intact;
#endif
}

void start_block(Emulator& e) {
    e.exited = e.waiting = 0;
    e.num_pieces = 0;
    e.static_bytes = e.arena_used = 0;
    e.ready_positions = 0;
    shuffle(e);
    for (unsigned w = 0; w < e.num_warps; ++w) {
        const unsigned lanes = e.total - w * WARP;
        Warp& warp = e.warps[w];
        warp = Warp{0, lanes >= WARP ? ~0u : (1u << lanes) - 1u, 0, w};
        make_ready(e, warp, warp.alive);
    }
    // The index does not change from block to block, but is cheap next to what a block does.
    for (unsigned t = 0; t < e.total; ++t) {
        Thread& thread = e.threads[t];
        thread.index = {t % e.block.x, t / e.block.x % e.block.y, t / (e.block.x * e.block.y)};
        thread.lane = t % WARP;
        thread.warp = &e.warps[t / WARP];
        thread.fiber = nullptr;
        thread.async.first = thread.async.count = thread.async.groups = thread.async.open = 0;
    }
}

bool run_block(Emulator& e) {
    start_block(e);
    self = take_ready(e);
    Fiber* first = take_fiber(e);
    if (first == nullptr) {
        fail_on_host(e, nullptr, "no memory for the stack of a fiber");
        return false;
    }
    e.current = first;
    switch_fiber(&e.host, first);
    if (e.fault != nullptr) fail_on_host(e, self, "%s at %p", e.fault, e.fault_address);
    if (!e.failed) check_shared(e);
    return !e.failed;
}

// After a failure the fibers hang in the middle of the kernel: all start afresh.
void reset_fibers(Emulator& e) {
    e.free_fibers = nullptr;
    for (unsigned i = 0; i < e.num_fibers; ++i) {
        reset_fiber(e.all_fibers[i], worker);
        e.all_fibers[i]->next = e.free_fibers;
        e.free_fibers = e.all_fibers[i];
    }
}

unsigned greatest_common_divisor(unsigned a, unsigned b) {
    while (b != 0) a = std::exchange(b, a % b);
    return a;
}

bool run_grid(Emulator& e) {
    e.block_index = {0, 0, 0};
    if (e.total == 0 || e.total > e.kernel->max_threads || e.total > MAX_THREADS) {
        fail_on_host(e, nullptr, "%u threads, expected 1 to %u", e.total, e.kernel->max_threads);
        return false;
    }
    const std::uint64_t blocks = static_cast<std::uint64_t>(e.grid.x) * e.grid.y * e.grid.z;
    if (blocks == 0 || blocks > 0x7FFFFFFFu) {
        fail_on_host(e, nullptr, "a grid of %llu blocks", static_cast<unsigned long long>(blocks));
        return false;
    }
    const auto n = static_cast<unsigned>(blocks);
    // i -> (i * factor + offset) mod n visits every block once if factor and n have no common divisor.
    unsigned factor = n <= 2 ? 1 : 1 + random_below(e, n - 1);
    while (greatest_common_divisor(n, factor) != 1) factor = 1 + factor % (n - 1);
    const unsigned offset = random_below(e, n);
    for (std::uint64_t i = 0; i < n; ++i) {
        const auto b = static_cast<unsigned>((i * factor + offset) % n);
        e.block_index = {b % e.grid.x, b / e.grid.x % e.grid.y, b / (e.grid.x * e.grid.y)};
        if (!run_block(e)) return false;
    }
    return true;
}

}  // namespace

void fail(const char* format, ...) {
    Emulator& e = *active;
    std::va_list arguments;
    va_start(arguments, format);
    record_failure(e, self, format, arguments);
    va_end(arguments);
    leave(e);
}

void fault(const char* what, const void* address) {
    active->fault = what;
    active->fault_address = address;
    leave(*active);
}

int barrier(bool predicate, Site site) {
    Emulator& e = *active;
    Thread* me = self;
    if (e.exited != 0) fail("divergent barrier at %s:%d: %u threads have returned already", site.file, site.line, e.exited);
    if (e.waiting == 0) {
        e.barrier_site = site;
        e.barrier_count = 0;
    } else if (site.line != e.barrier_site.line || std::strcmp(site.file, e.barrier_site.file) != 0) {
        fail("divergent barrier: at %s:%d while others wait at %s:%d", site.file, site.line, e.barrier_site.file,
             e.barrier_site.line);
    }
    e.barrier_count += predicate;
    if (++e.waiting == e.total) {
        e.waiting = 0;
        e.barrier_result = e.barrier_count;
        e.ready_positions = 0;
        shuffle(e);
        for (unsigned w = 0; w < e.num_warps; ++w) make_ready(e, e.warps[w], e.warps[w].alive);
    }
    suspend(e, me);
    return e.barrier_result;
}

std::uint64_t exchange(Exchange kind, std::uint32_t mask, std::uint64_t value, int source_lane, Site site) {
    Emulator& e = *active;
    Thread* me = self;
    if ((mask >> me->lane & 1u) == 0) fail("exchange at %s:%d: mask %08x lacks lane %u itself", site.file, site.line, mask, me->lane);
    me->value = value;
    me->mask = mask;
    me->source_lane = source_lane;
    me->exchange = kind;
    me->site = site;
    me->warp->exchanging |= 1u << me->lane;
    try_exchange(e, *me);
    suspend(e, me);
    return me->value;
}

void together(void (*work)(void* const* lanes), void* mine, Site site) {
    Collective of{work, mine};
    exchange(Exchange::Together, ~0u, reinterpret_cast<std::uint64_t>(&of), 0, site);
}

void copy_async(void* to, const void* from, bool is_zero) {
    AsyncCopies& async = self->async;
    const auto misaligned = [](const void* at) { return reinterpret_cast<std::uintptr_t>(at) % COPY_BYTES != 0; };
    if (misaligned(to) || misaligned(from)) fail("misaligned: a copy of %u bytes from %p to %p", COPY_BYTES, from, to);
    if (async.count == MAX_COPIES) fail("more than %u copies under way", MAX_COPIES);
    auto* target = static_cast<unsigned char*>(to);
    std::memset(target, 0xFF, COPY_BYTES);
    const auto* source = is_zero ? nullptr : static_cast<const unsigned char*>(from);
    async.copies[(async.first + async.count++) % MAX_COPIES] = AsyncCopy{target, source};
    ++async.open;
}

void end_copies() {
    AsyncCopies& async = self->async;
    if (async.groups == MAX_COPY_GROUPS) fail("more than %u groups of copies under way", MAX_COPY_GROUPS);
    async.ended[async.groups++] = async.open;
    async.open = 0;
}

void wait_for_copies(unsigned groups_left) {
    AsyncCopies& async = self->async;
    for (; async.groups > groups_left; --async.groups) {
        for (unsigned i = 0; i < async.ended[0]; ++i, --async.count, async.first = (async.first + 1) % MAX_COPIES) {
            const AsyncCopy& copy = async.copies[async.first];
            if (copy.from == nullptr) std::memset(copy.to, 0, COPY_BYTES);
            else std::memcpy(copy.to, copy.from, COPY_BYTES);
        }
        std::memmove(async.ended, async.ended + 1, (async.groups - 1) * sizeof *async.ended);
    }
}

void* shared(const void* site, std::size_t bytes) {
    Emulator& e = *active;
    for (unsigned i = 0; i < e.num_pieces; ++i)
        if (e.pieces[i].site == site) return e.pieces[i].data;
    if (site != &e) e.static_bytes += bytes;
    if (e.num_pieces == MAX_SHARED_PIECES) fail("more than %u shared arrays", MAX_SHARED_PIECES);
    if (e.static_bytes > STATIC_SHARED_BYTES || e.static_bytes + e.dynamic_bytes > SHARED_BYTES)
        fail("%zu + %zu bytes of static and dynamic shared memory", e.static_bytes, e.dynamic_bytes);
    unsigned char* data = carve(e, bytes);
    e.pieces[e.num_pieces++] = SharedPiece{site, data, bytes};
    return data;
}

void* dynamic_shared() { return shared(active, active->dynamic_bytes); }

}  // namespace emulated

using namespace emulated;

extern "C" {

// A new emulator, to be used by one host thread at a time; null when memory is short.
Emulator* emulated_new(std::uint64_t seed) {
    catch_faults();
    auto* e = static_cast<Emulator*>(std::calloc(1, sizeof(Emulator)));
    if (e == nullptr) return nullptr;
    e->random = seed;
    e->arena = static_cast<unsigned char*>(std::aligned_alloc(128, (ARENA_BYTES + 127) / 128 * 128));
    e->all_fibers = static_cast<Fiber**>(std::calloc(MAX_THREADS + 1, sizeof(Fiber*)));
    if (e->arena != nullptr && e->all_fibers != nullptr) return e;
    std::free(e->arena);
    std::free(e->all_fibers);
    std::free(e);
    return nullptr;
}

void emulated_delete(Emulator* e) {
    for (unsigned i = 0; i < e->num_fibers; ++i) delete_fiber(e->all_fibers[i]);
    unpoison(e->arena, ARENA_BYTES);
    std::free(e->arena);
    std::free(e->all_fibers);
    std::free(e);
}

// Runs a launch to its end. Returns null, or what went wrong, valid until the next launch.
const char* emulated_launch(Emulator* e, const Kernel* kernel, const unsigned* grid, const unsigned* block,
                            std::size_t dynamic_bytes, const void* arguments) {
    e->kernel = kernel;
    e->arguments = arguments;
    e->grid = {grid[0], grid[1], grid[2]};
    e->block = {block[0], block[1], block[2]};
    e->dynamic_bytes = dynamic_bytes;
    e->total = block[0] * block[1] * block[2];
    e->num_warps = (e->total + WARP - 1) / WARP;
    e->failed = false;
    e->fault = nullptr;
    e->current = &e->host;
    Emulator* outer = active;
    active = e;
    const bool passed = run_grid(*e);
    active = outer;
    self = nullptr;
    if (passed) return nullptr;
    reset_fibers(*e);
    return e->message;
}

// Counts the bytes that kernels read through __ldg, __ldcs and the like in [begin, end), from zero.
void emulated_watch(Emulator* e, std::uintptr_t begin, std::uintptr_t end) {
    e->watch_begin = begin;
    e->watch_end = end;
    e->watched_bytes = 0;
}

std::uint64_t emulated_watched_bytes(const Emulator* e) { return e->watched_bytes; }

void emulated_poison(const void* begin, std::size_t bytes) { poison(begin, bytes); }
void emulated_unpoison(const void* begin, std::size_t bytes) { unpoison(begin, bytes); }

}  // extern "C"
