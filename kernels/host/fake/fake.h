// The fake driver: a double of libcuda that runs kernels through the emulator, so that the real device layer (src/cuda/driver.rs,
// cudarc) runs on a machine without a GPU. Written from NVIDIA's documents, and stricter than a GPU: what the documents leave
// undefined, or what works by luck alone, is a broken rule. A broken rule fails the call and is written, by its name, to the file
// that FAKE_CUDA_LOG names.
//
// FAKE_CUDA holds settings, "name=number,...": driver (13000), devices (1), capability (90), memory (bytes), taken (bytes that
// others use), exclusive (1: another process has the device), lose (launches after which the device is lost), seed (order in which
// streams get on).
#pragma once

#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "../emulator.h"

namespace fake {

// CUresult, as cuda.h numbers it.
enum Result : int {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    DEVICE_UNAVAILABLE = 46,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    ECC_UNCORRECTABLE = 214,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    ILLEGAL_ADDRESS = 700,
    LAUNCH_FAILED = 719,
    NOT_SUPPORTED = 801,
    STREAM_CAPTURE_UNSUPPORTED = 900,
    STREAM_CAPTURE_INVALIDATED = 901,
    STREAM_CAPTURE_UNMATCHED = 903,
    STREAM_CAPTURE_IMPLICIT = 906,
    CAPTURED_EVENT = 907,
    STREAM_CAPTURE_WRONG_THREAD = 908,
};

const char* name_of(Result result);

// ---- Memory ----

enum class Life { Unborn, Live, Leaving };

struct Allocation {
    unsigned char* base;  // of the guard before it
    std::size_t bytes;
    std::uint64_t id;     // tells it from others that had its address
    Life life;
    bool pooled;          // from cuMemAllocAsync
};

// A range of device memory that a piece of work touches.
struct Touched {
    std::uint64_t address;
    std::uint64_t id;
};

struct Memory {
    std::map<std::uint64_t, Allocation> live;
    std::deque<std::pair<unsigned char*, std::size_t>> quarantine;  // freed, still poisoned
    std::size_t quarantined = 0;
    std::uint64_t next_id = 0;
    std::uint64_t used = 0, pooled = 0, reserved = 0, threshold = 0;

    // Null if the host has no memory.
    std::uint64_t allocate(std::size_t bytes, Life life, bool pooled);
    void release(std::uint64_t address);
    // The allocation that all of a range lies in, or null.
    Allocation* find(std::uint64_t address, std::size_t bytes);
    Allocation* find_id(std::uint64_t address, std::uint64_t id);
    // What was written outside of allocations; empty if nothing was.
    std::string damage();
    void forget_quarantine();
};

// ---- Streams ----

struct Outcome {
    Result code = SUCCESS;
    const char* rule = nullptr;
    std::string why;
};

// What a stream does.
struct Work {
    const char* name;
    std::function<Outcome()> run;
    std::vector<Touched> memory;
    bool always = false;         // even after a failure: gives memory back, records events
    const void* host = nullptr;  // pinned memory that it reads or writes
};

struct Graph {
    std::vector<Work> nodes;
};

struct Capture {
    Graph graph;
    std::thread::id thread;
    bool valid = true;
};

struct Stream {
    std::deque<Work> queue;
    std::unique_ptr<Capture> capture;
    bool is_busy = false;  // it waits for another one: what is behind has to wait, too
};

struct Event {
    Stream* on = nullptr;         // where it was recorded last
    std::uint64_t recorded = 0;   // times that it was recorded, and that this was reached
    std::uint64_t reached = 0;
    bool captured = false;
};

// ---- Code ----

// A kernel file; build.rs writes the table.
struct Image {
    const char* op;
    std::uint64_t hash;  // of the fatbin; 0 without one
    const emulated::Kernel* (*kernels)();
    const void* (*layout)(std::size_t* count);
};
extern const Image images[];
extern const std::size_t num_images;

struct Module {
    const Image* image;
    std::uint64_t layout = 0;
    std::size_t layout_bytes = 0;
};

struct Function {
    const emulated::Kernel* kernel;
    Module* module;
    unsigned dynamic_limit;
};

// ---- The whole ----

struct Fake {
    std::mutex mutex;
    std::map<std::string, std::uint64_t> settings;
    std::map<std::string, std::uint64_t> counts;
    bool initialized = false;
    unsigned retained = 0;
    Outcome failure;  // the device's first; everything fails from then on
    Memory memory;
    std::set<Stream*> streams;
    std::set<Event*> events;
    std::set<Graph*> graphs;
    std::set<std::shared_ptr<Graph>*> executables;
    std::set<Module*> modules;
    std::map<Module*, std::map<std::string, std::unique_ptr<Function>>> functions;
    std::map<unsigned char*, std::size_t> pinned;
    emulated::Emulator* emulator = nullptr;
    std::uint64_t launches = 0;
    std::uint64_t random = 0;

    Fake();
    std::uint64_t setting(const char* name) const;
    std::uint64_t next_random();
    std::uint64_t capacity() const;

    // A broken rule: written to the log; returns the code.
    Result broken(Result code, const char* rule, const char* format, ...) __attribute__((format(printf, 4, 5)));
    // Puts work on a stream, or into its capture.
    Result enqueue(Stream* stream, Work work);
    void run_one(Stream* stream);
    void drain(Stream* stream);
    // Until the event's so many-th recording, on that stream, has been reached.
    void reach(Event* event, Stream* on, std::uint64_t recording);
    // The stream whose capture forbids the calling thread what could disturb it, or null.
    Stream* capturing_thread();
    Result forbidden_in_capture(const char* call);
    bool is_pinned(const void* at, std::size_t bytes) const;
    void check_leaks();
    void write_counts();
};

Fake& fake();

}  // namespace fake
