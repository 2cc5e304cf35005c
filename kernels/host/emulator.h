// The emulator's state: one block at a time, its threads on fibers.
//
// A thread runs on until it has to wait, at a barrier or in a warp exchange; then another one of its block continues. Threads
// that never wait share one fiber and run as a plain loop. The order of blocks, of a block's warps and of a warp's lanes is
// shuffled from a seed, anew at each barrier, and shared memory starts as NaN: code that lacks a barrier reads values that are
// not there yet, or are overwritten already.
//
// What the emulator refuses although some hardware lets it pass, because the programming guide leaves it undefined: a
// barrier that not all threads of the block reach, or reach at different places in the source; reading a lane that takes no
// part in the exchange. Not emulated: blocks that wait for other blocks (they run one after the other).
#pragma once

#include <cstddef>
#include <cstdint>

#include "fiber.h"

namespace emulated {

struct Index3 {
    unsigned x, y, z;
};

// A place in the source, for messages and to tell barriers apart.
struct Site {
    const char* file;
    int line;
};

enum class Exchange : std::uint8_t { Sync, Together, Shuffle, Ballot, Match, Sum, Min, Max, MinSigned, MaxSigned, And, Or, Xor };

struct Warp;

// A copy to shared memory that has begun.
struct AsyncCopy {
    unsigned char* to;
    const unsigned char* from;  // null: zeros
};

constexpr unsigned MAX_COPIES = 64, MAX_COPY_GROUPS = 16, COPY_BYTES = 16;

// A thread's copies under way, the oldest first.
struct AsyncCopies {
    AsyncCopy copies[MAX_COPIES];
    unsigned first, count;               // in `copies`, which is a ring
    unsigned ended[MAX_COPY_GROUPS];     // copies of each group that has ended, the oldest first
    unsigned groups, open;               // how many groups have ended; copies of none yet
};

struct Thread {
    Index3 index;
    unsigned lane;
    Warp* warp;
    Fiber* fiber;  // where it waits; null before it starts and while it runs
    // What it brought to the exchange it waits in; `value` is replaced by what it takes home.
    std::uint64_t value;
    std::uint32_t mask;
    int source_lane;
    Exchange exchange;
    Site site;
    AsyncCopies async;
};

// Masks have one bit per lane.
struct Warp {
    std::uint32_t ready;       // may run, started or not
    std::uint32_t alive;       // has not returned yet
    std::uint32_t exchanging;  // waits in a warp exchange
    unsigned index;
};

struct Kernel {
    const char* name;
    unsigned max_threads;       // as in __launch_bounds__
    const char* argument_type;  // as the kernel's file spells it
    std::size_t argument_bytes; // kernels take one struct
    void (*entry)(const void* arguments);
    const Kernel* next;
};

constexpr unsigned MAX_THREADS = 1024;
constexpr unsigned WARP = 32;
constexpr unsigned MAX_SHARED_PIECES = 16;
constexpr std::size_t GUARD_BYTES = 64;
// What every supported architecture has: 48 KiB declared statically, 99 KiB in all (sm_86, sm_89).
constexpr std::size_t STATIC_SHARED_BYTES = 48 * 1024;
constexpr std::size_t SHARED_BYTES = 99 * 1024;

struct SharedPiece {
    const void* site;
    unsigned char* data;
    std::size_t bytes;
};

struct Emulator {
    // The launch.
    const Kernel* kernel;
    const void* arguments;
    Index3 grid, block, block_index;
    std::size_t dynamic_bytes;

    // The block.
    unsigned total, exited;
    Thread threads[MAX_THREADS];
    Warp warps[MAX_THREADS / WARP];
    unsigned num_warps;
    unsigned char order[MAX_THREADS / WARP];     // position -> warp
    unsigned char position[MAX_THREADS / WARP];  // warp -> position
    std::uint32_t ready_positions;
    unsigned lane_rotation;
    bool lanes_backwards;

    // The barrier that threads wait at.
    unsigned waiting;
    Site barrier_site;
    int barrier_count;   // predicates that were true, so far
    int barrier_result;  // of the last complete barrier

    // Shared memory, handed out piece by piece with guards between.
    SharedPiece pieces[MAX_SHARED_PIECES];
    unsigned num_pieces;
    std::size_t static_bytes, arena_used;
    unsigned char* arena;

    // Fibers.
    Fiber host;
    Fiber* current;
    Fiber* free_fibers;
    Fiber** all_fibers;
    unsigned num_fibers;

    std::uint64_t random;
    // Reads through __ldg, __ldcs and the like that fell into [watch_begin, watch_end).
    std::uintptr_t watch_begin, watch_end;
    std::uint64_t watched_bytes;
    bool failed;
    char message[512];
    // What the processor refused, and where; null if nothing.
    const char* fault;
    const void* fault_address;
};

// The running emulator and its running thread. `__thread` and not `thread_local`, which is reached through a function that might
// have to initialise it.
extern __thread Emulator* active;
extern __thread Thread* self;

// Ends the launch with an error; the message gets kernel, block and thread prepended.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
// Ends the launch with what the processor refused; from a signal handler, whose stack is small: the message is made elsewhere.
[[noreturn]] void fault(const char* what, const void* address);
// Waits for the whole block; returns how many predicates were true.
int barrier(bool predicate, Site site);
// Waits for the lanes in `mask`, then returns what the exchange gives this lane.
std::uint64_t exchange(Exchange kind, std::uint32_t mask, std::uint64_t value, int source_lane, Site site);
// Waits for the whole warp; then `work` is called once, with what each lane brought.
void together(void (*work)(void* const* lanes), void* mine, Site site);
// Begins to copy COPY_BYTES, or zeros; they arrive when the thread waits for them.
void copy_async(void* to, const void* from, bool is_zero);
void end_copies();
void wait_for_copies(unsigned groups_left);
// The block's shared memory declared at `site`; the same site gives the same memory to all threads.
void* shared(const void* site, std::size_t bytes);
void* dynamic_shared();

}  // namespace emulated
