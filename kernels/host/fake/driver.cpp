// The functions of libcuda that the device layer calls, each with what NVIDIA's driver API reference says of it.
#include <cstdio>
#include <cstring>

#include "fake.h"

using namespace fake;

extern "C" const char* emulated_launch(emulated::Emulator* e, const emulated::Kernel* kernel, const unsigned* grid,
                                       const unsigned* block, std::size_t dynamic_bytes, const void* arguments);

namespace fake {

namespace {
constexpr unsigned PLAIN_SHARED_BYTES = 48 * 1024, MOST_SHARED_BYTES = 99 * 1024;
int the_context;
thread_local const void* current = nullptr;

struct Name {
    Result result;
    const char *name, *text;
};
const Name NAMES[] = {
    {SUCCESS, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {DEVICE_UNAVAILABLE, "CUDA_ERROR_DEVICE_UNAVAILABLE", "CUDA-capable device(s) is/are busy or unavailable"},
    {NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {ECC_UNCORRECTABLE, "CUDA_ERROR_ECC_UNCORRECTABLE", "uncorrectable ECC error encountered"},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {STREAM_CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {STREAM_CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"},
    {STREAM_CAPTURE_UNMATCHED, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "the capture was not initiated in this stream"},
    {STREAM_CAPTURE_IMPLICIT, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT", "disallowed implicit dependency"},
    {CAPTURED_EVENT, "CUDA_ERROR_CAPTURED_EVENT", "operation not permitted on an event last recorded in a capturing stream"},
    {STREAM_CAPTURE_WRONG_THREAD, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD", "attempt to terminate a thread-local capture sequence from another thread"},
};
const Name* find_name(int result) {
    for (const Name& name : NAMES)
        if (name.result == result) return &name;
    return nullptr;
}

}  // namespace

const char* name_of(Result result) {
    const Name* name = find_name(result);
    return name == nullptr ? "unknown" : name->name;
}

namespace {

// Whether a call may go on: the driver is initialised, a context current, the device alive.
Result ready(const char* call) {
    Fake& f = fake::fake();
    ++f.counts[call];
    if (!f.initialized) return f.broken(NOT_INITIALIZED, "initialisation", "%s before cuInit", call);
    if (current == nullptr || f.retained == 0) return f.broken(INVALID_CONTEXT, "context", "%s without a current context", call);
    return f.failure.code;
}

template <typename Handle>
bool is_live(const std::set<Handle*>& handles, const void* handle) {
    return handles.count(static_cast<Handle*>(const_cast<void*>(handle))) != 0;
}

Result dead(const char* call, const char* what) {
    return fake::fake().broken(INVALID_HANDLE, "handle", "%s: no such %s", call, what);
}

// The allocation that a range lies in, or null after naming the broken rule.
Allocation* range(const char* call, std::uint64_t address, std::size_t bytes) {
    Fake& f = fake::fake();
    Allocation* found = f.memory.find(address, bytes);
    if (found == nullptr) f.broken(INVALID_VALUE, "range", "%s: %zu bytes at %#llx lie in no allocation", call, bytes,
                                   static_cast<unsigned long long>(address));
    return found;
}

std::uint64_t hash(const unsigned char* bytes, std::size_t count) {  // FNV-1a
    std::uint64_t h = 0xCBF29CE484222325ull;
    for (std::size_t i = 0; i < count; ++i) h = (h ^ bytes[i]) * 0x100000001B3ull;
    return h;
}

const Image* find_image(const void* data) {
    const auto* bytes = static_cast<const unsigned char*>(data);
    const char prefix[] = "beamfuse kernels for the host: ";
    std::uint32_t magic;
    std::memcpy(&magic, bytes, sizeof magic);
    if (magic == 0xBA55ED50u) {  // a fatbin: magic, version, header's size, size of what follows
        std::uint16_t header;
        std::uint64_t rest;
        std::memcpy(&header, bytes + 6, sizeof header);
        std::memcpy(&rest, bytes + 8, sizeof rest);
        const std::uint64_t sought = hash(bytes, header + rest);
        for (std::size_t i = 0; i < num_images; ++i)
            if (images[i].hash == sought) return &images[i];
        return nullptr;
    }
    if (std::strncmp(static_cast<const char*>(data), prefix, sizeof prefix - 1) != 0) return nullptr;
    const char* op = static_cast<const char*>(data) + sizeof prefix - 1;
    for (std::size_t i = 0; i < num_images; ++i)
        if (std::strcmp(images[i].op, op) == 0) return &images[i];
    return nullptr;
}

}  // namespace
}  // namespace fake

#define ENTER                                         \
    Fake& f = fake::fake();                           \
    const std::lock_guard<std::mutex> lock(f.mutex);  \
    (void)f
#define READY                                                          \
    ENTER;                                                             \
    if (const Result state = ready(__func__); state != SUCCESS) return state
#define LIVE(handles, handle, what) \
    if (!is_live(f.handles, handle)) return dead(__func__, what)
#define NOT_IN_CAPTURE \
    if (const Result state = f.forbidden_in_capture(__func__); state != SUCCESS) return state

extern "C" {

// ---- The machine ----

Result cuInit(unsigned flags) {
    ENTER;
    ++f.counts[__func__];
    if (flags != 0) return INVALID_VALUE;
    if (f.setting("devices") == 0) return NO_DEVICE;
    f.initialized = true;
    return SUCCESS;
}

Result cuDriverGetVersion(int* version) {
    ENTER;
    *version = static_cast<int>(f.setting("driver"));
    return SUCCESS;
}

Result cuGetErrorString(int error, const char** text) {
    const Name* name = find_name(error);
    *text = name == nullptr ? nullptr : name->text;
    return name == nullptr ? INVALID_VALUE : SUCCESS;
}

Result cuGetErrorName(int error, const char** text) {
    const Name* name = find_name(error);
    *text = name == nullptr ? nullptr : name->name;
    return name == nullptr ? INVALID_VALUE : SUCCESS;
}

Result cuDeviceGetCount(int* count) {
    ENTER;
    if (!f.initialized) return f.broken(NOT_INITIALIZED, "initialisation", "%s before cuInit", __func__);
    *count = static_cast<int>(f.setting("devices"));
    return SUCCESS;
}

Result cuDeviceGet(int* device, int ordinal) {
    ENTER;
    if (!f.initialized) return f.broken(NOT_INITIALIZED, "initialisation", "%s before cuInit", __func__);
    if (ordinal < 0 || ordinal >= static_cast<int>(f.setting("devices"))) return INVALID_DEVICE;
    *device = ordinal;
    return SUCCESS;
}

Result cuDeviceGetName(char* name, int length, int) {
    ENTER;
    std::snprintf(name, static_cast<std::size_t>(length), "fake device");
    return SUCCESS;
}

Result cuDeviceGetAttribute(int* value, int attribute, int) {
    ENTER;
    switch (attribute) {
        case 16: *value = 132; return SUCCESS;                                          // multiprocessors
        case 20: *value = f.setting("exclusive") != 0 ? 3 : 0; return SUCCESS;          // compute mode
        case 75: *value = static_cast<int>(f.setting("capability") / 10); return SUCCESS;
        case 76: *value = static_cast<int>(f.setting("capability") % 10); return SUCCESS;
        case 97: *value = static_cast<int>(MOST_SHARED_BYTES); return SUCCESS;
        case 115: *value = 1; return SUCCESS;                                           // memory pools
        default: return f.broken(INVALID_VALUE, "attribute", "%s: %d is not known here", __func__, attribute);
    }
}

Result cuDevicePrimaryCtxRetain(void** context, int device) {
    ENTER;
    if (!f.initialized) return f.broken(NOT_INITIALIZED, "initialisation", "%s before cuInit", __func__);
    if (device < 0 || device >= static_cast<int>(f.setting("devices"))) return INVALID_DEVICE;
    if (f.setting("exclusive") != 0) return DEVICE_UNAVAILABLE;
    if (f.setting("taken") >= f.setting("memory")) return OUT_OF_MEMORY;
    ++f.retained;
    *context = &the_context;
    return SUCCESS;
}

Result cuDevicePrimaryCtxRelease_v2(int) {
    ENTER;
    if (f.retained == 0) return f.broken(INVALID_CONTEXT, "context", "%s once too often", __func__);
    if (--f.retained != 0) return SUCCESS;
    f.check_leaks();
    f.memory.forget_quarantine();
    f.write_counts();
    return SUCCESS;
}

Result cuCtxSetCurrent(const void* context) {
    ENTER;
    if (context != nullptr && (context != &the_context || f.retained == 0)) return dead(__func__, "context");
    current = context;
    return SUCCESS;
}

// ---- Streams and events ----

Result cuStreamCreate(Stream** stream, unsigned) {
    READY;
    *stream = new Stream;
    f.streams.insert(*stream);
    return SUCCESS;
}

Result cuStreamDestroy_v2(Stream* stream) {
    READY;
    LIVE(streams, stream, "stream");
    if (stream->capture != nullptr) f.broken(SUCCESS, "capture", "%s while the stream is capturing", __func__);
    f.drain(stream);
    f.streams.erase(stream);
    for (Event* event : f.events)
        if (event->on == stream) event->on = nullptr;
    delete stream;
    return SUCCESS;
}

Result cuStreamSynchronize(Stream* stream) {
    READY;
    LIVE(streams, stream, "stream");
    if (stream->capture != nullptr) {
        stream->capture->valid = false;
        return f.broken(STREAM_CAPTURE_UNSUPPORTED, "capture", "%s of a stream that is capturing", __func__);
    }
    f.drain(stream);
    if (f.memory.threshold < f.memory.reserved && f.memory.pooled < f.memory.reserved) {
        f.memory.reserved = f.memory.pooled > f.memory.threshold ? f.memory.pooled : f.memory.threshold;
        ++f.counts["pool releases"];
    }
    return f.failure.code;
}

Result cuStreamWaitEvent(Stream* stream, Event* event, unsigned) {
    READY;
    LIVE(streams, stream, "stream");
    LIVE(events, event, "event");
    if (event->recorded == 0) return f.broken(INVALID_VALUE, "event", "%s for an event that was never recorded", __func__);
    if (event->captured || stream->capture != nullptr) {
        if (stream->capture != nullptr) stream->capture->valid = false;
        return f.broken(STREAM_CAPTURE_UNSUPPORTED, "capture", "%s across a capture", __func__);
    }
    Stream* on = event->on;
    const std::uint64_t recording = event->recorded;
    return f.enqueue(stream, Work{"wait for an event", [event, on, recording] {
                                      Fake& f = fake::fake();
                                      if (f.events.count(event) != 0) f.reach(event, on, recording);
                                      return Outcome{};
                                  }, {}, true});
}

Result cuStreamBeginCapture_v2(Stream* stream, int mode) {
    READY;
    LIVE(streams, stream, "stream");
    if (mode != 1) return f.broken(INVALID_VALUE, "capture", "%s: expected the thread-local mode, got %d", __func__, mode);
    if (stream->capture != nullptr) return f.broken(INVALID_VALUE, "capture", "%s of a stream that is capturing", __func__);
    stream->capture = std::make_unique<Capture>();
    stream->capture->thread = std::this_thread::get_id();
    return SUCCESS;
}

Result cuStreamEndCapture(Stream* stream, Graph** graph) {
    READY;
    LIVE(streams, stream, "stream");
    *graph = nullptr;
    if (stream->capture == nullptr)
        return f.broken(STREAM_CAPTURE_UNMATCHED, "capture", "%s of a stream that is not capturing", __func__);
    if (stream->capture->thread != std::this_thread::get_id())
        return f.broken(STREAM_CAPTURE_WRONG_THREAD, "capture", "%s by another thread", __func__);
    const std::unique_ptr<Capture> capture = std::move(stream->capture);
    if (!capture->valid) return STREAM_CAPTURE_INVALIDATED;
    *graph = new Graph(std::move(capture->graph));
    f.graphs.insert(*graph);
    return SUCCESS;
}

Result cuEventCreate(Event** event, unsigned) {
    READY;
    *event = new Event;
    f.events.insert(*event);
    return SUCCESS;
}

Result cuEventDestroy_v2(Event* event) {
    READY;
    LIVE(events, event, "event");
    // The driver lets what waits for it do so.
    f.reach(event, event->on, event->recorded);
    f.events.erase(event);
    delete event;
    return SUCCESS;
}

Result cuEventRecord(Event* event, Stream* stream) {
    READY;
    LIVE(events, event, "event");
    LIVE(streams, stream, "stream");
    event->captured = stream->capture != nullptr;
    if (event->captured) return SUCCESS;
    event->on = stream;
    const std::uint64_t recording = ++event->recorded;
    return f.enqueue(stream, Work{"record an event", [event, recording] {
                                      if (fake::fake().events.count(event) != 0 && event->reached < recording)
                                          event->reached = recording;
                                      return Outcome{};
                                  }, {}, true});
}

Result cuEventSynchronize(Event* event) {
    READY;
    LIVE(events, event, "event");
    if (event->captured) return f.broken(CAPTURED_EVENT, "capture", "%s for an event that was captured", __func__);
    NOT_IN_CAPTURE;
    if (event->recorded == 0) return f.broken(INVALID_VALUE, "event", "%s for an event that was never recorded", __func__);
    f.reach(event, event->on, event->recorded);
    return f.failure.code;
}

// ---- Memory ----

Result cuMemAlloc_v2(std::uint64_t* address, std::size_t bytes) {
    READY;
    NOT_IN_CAPTURE;
    if (bytes == 0) return f.broken(INVALID_VALUE, "empty", "%s of 0 bytes", __func__);
    if (f.memory.used + bytes > f.capacity()) return OUT_OF_MEMORY;
    *address = f.memory.allocate(bytes, Life::Live, false);
    return *address == 0 ? OUT_OF_MEMORY : SUCCESS;
}

Result cuMemFree_v2(std::uint64_t address) {
    READY;
    NOT_IN_CAPTURE;
    if (f.memory.live.count(address) == 0) return dead(__func__, "allocation");
    for (Stream* stream : f.streams) f.drain(stream);
    f.memory.release(address);
    return SUCCESS;
}

Result cuMemAllocAsync(std::uint64_t* address, std::size_t bytes, Stream* stream) {
    READY;
    LIVE(streams, stream, "stream");
    if (stream->capture != nullptr) {
        stream->capture->valid = false;
        return f.broken(NOT_SUPPORTED, "capture", "%s in a capture", __func__);
    }
    if (bytes == 0) return f.broken(INVALID_VALUE, "empty", "%s of 0 bytes", __func__);
    if (f.memory.used + bytes > f.capacity()) f.drain(stream);
    if (f.memory.used + bytes > f.capacity()) return OUT_OF_MEMORY;
    const std::uint64_t reserved = f.memory.reserved;
    const std::uint64_t at = *address = f.memory.allocate(bytes, Life::Unborn, true);
    if (at == 0) return OUT_OF_MEMORY;
    if (f.memory.reserved > reserved) ++f.counts["pool growths"];
    return f.enqueue(stream, Work{"allocate", [at] {
                                      Fake& f = fake::fake();
                                      Allocation* allocation = f.memory.find(at, 0);
                                      if (allocation != nullptr && allocation->life == Life::Unborn) allocation->life = Life::Live;
                                      return Outcome{};
                                  }, {}, true});
}

Result cuMemFreeAsync(std::uint64_t address, Stream* stream) {
    READY;
    LIVE(streams, stream, "stream");
    const auto found = f.memory.live.find(address);
    if (found == f.memory.live.end() || found->second.life == Life::Leaving) return dead(__func__, "allocation");
    if (stream->capture != nullptr) {
        stream->capture->valid = false;
        return f.broken(INVALID_VALUE, "capture", "%s of memory that the capture did not allocate", __func__);
    }
    const std::uint64_t id = found->second.id;
    const Result result = f.enqueue(stream, Work{"free", [address, id, stream] {
        Fake& f = fake::fake();
        for (Stream* other : f.streams)
            for (const Work& work : other->queue)
                for (const Touched& touched : work.memory)
                    if (touched.id == id) {
                        f.memory.release(address);
                        return Outcome{ILLEGAL_ADDRESS, "use after free",
                                       std::string(other == stream ? "this" : "another") + " stream still has to " + work.name};
                    }
        f.memory.release(address);
        return Outcome{};
    }, {}, true});
    if (result == SUCCESS) found->second.life = Life::Leaving;
    return result;
}

Result cuMemHostAlloc(void** at, std::size_t bytes, unsigned) {
    READY;
    NOT_IN_CAPTURE;
    if (bytes == 0) return f.broken(INVALID_VALUE, "empty", "%s of 0 bytes", __func__);
    auto* memory = static_cast<unsigned char*>(std::malloc(bytes));
    if (memory == nullptr) return OUT_OF_MEMORY;
    std::memset(memory, 0xFF, bytes);
    f.pinned[memory] = bytes;
    *at = memory;
    return SUCCESS;
}

Result cuMemFreeHost(void* at) {
    READY;
    NOT_IN_CAPTURE;
    const auto found = f.pinned.find(static_cast<unsigned char*>(at));
    if (found == f.pinned.end()) return dead(__func__, "pinned memory");
    for (const Stream* stream : f.streams)
        for (const Work& work : stream->queue)
            if (work.host >= at && work.host < found->first + found->second)
                f.broken(SUCCESS, "pinned memory", "%s while a stream still has to %s", __func__, work.name);
    f.pinned.erase(found);
    std::free(at);
    return SUCCESS;
}

Result cuMemGetInfo_v2(std::size_t* free, std::size_t* total) {
    READY;
    const std::uint64_t taken = f.memory.used - f.memory.pooled + f.memory.reserved, capacity = f.capacity();
    *free = taken < capacity ? capacity - taken : 0;
    *total = f.setting("memory");
    return SUCCESS;
}

Result cuDeviceGetMemPool(void** pool, int) {
    ENTER;
    *pool = &f.memory;
    return SUCCESS;
}

Result cuMemPoolGetAttribute(void* pool, int attribute, std::uint64_t* value) {
    ENTER;
    if (pool != &f.memory) return dead(__func__, "pool");
    switch (attribute) {
        case 4: *value = f.memory.threshold; return SUCCESS;
        case 5: *value = f.memory.reserved; return SUCCESS;
        case 7: *value = f.memory.pooled; return SUCCESS;
        default: return f.broken(INVALID_VALUE, "attribute", "%s: %d is not known here", __func__, attribute);
    }
}

Result cuMemPoolSetAttribute(void* pool, int attribute, const std::uint64_t* value) {
    ENTER;
    if (pool != &f.memory) return dead(__func__, "pool");
    if (attribute != 4) return f.broken(INVALID_VALUE, "attribute", "%s: %d is not known here", __func__, attribute);
    f.memory.threshold = *value;
    return SUCCESS;
}

Result cuMemcpyHtoDAsync_v2(std::uint64_t to, const void* from, std::size_t bytes, Stream* stream) {
    READY;
    LIVE(streams, stream, "stream");
    if (bytes == 0) return SUCCESS;
    const Allocation* target = range(__func__, to, bytes);
    if (target == nullptr) return INVALID_VALUE;
    // The driver may read pageable memory when the stream comes to it.
    if (!f.is_pinned(from, bytes)) return f.broken(INVALID_VALUE, "pageable memory", "%s reads from it later", __func__);
    const std::uint64_t source = reinterpret_cast<std::uint64_t>(from);
    return f.enqueue(stream, Work{"copy to the device", [to, source, bytes] {
                                      std::memcpy(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(source), bytes);
                                      return Outcome{};
                                  }, {{to, target->id}}, false, from});
}

Result cuMemcpyDtoHAsync_v2(void* to, std::uint64_t from, std::size_t bytes, Stream* stream) {
    READY;
    LIVE(streams, stream, "stream");
    if (bytes == 0) return SUCCESS;
    const Allocation* source = range(__func__, from, bytes);
    if (source == nullptr) return INVALID_VALUE;
    const bool is_pinned = f.is_pinned(to, bytes);
    if (!is_pinned && stream->capture != nullptr) {
        stream->capture->valid = false;
        return f.broken(STREAM_CAPTURE_UNSUPPORTED, "capture", "%s to pageable memory in a capture", __func__);
    }
    const Result result = f.enqueue(stream, Work{"copy from the device", [to, from, bytes] {
                                                     std::memcpy(to, reinterpret_cast<const void*>(from), bytes);
                                                     return Outcome{};
                                                 }, {{from, source->id}}, false, to});
    // To pageable memory the call returns once the copy has been made.
    if (result == SUCCESS && !is_pinned) f.drain(stream);
    return result != SUCCESS ? result : f.failure.code;
}

Result cuMemcpyDtoH_v2(void* to, std::uint64_t from, std::size_t bytes) {
    READY;
    NOT_IN_CAPTURE;
    if (bytes == 0) return SUCCESS;
    if (range(__func__, from, bytes) == nullptr) return INVALID_VALUE;
    std::memcpy(to, reinterpret_cast<const void*>(from), bytes);
    return SUCCESS;
}

Result cuMemcpyDtoDAsync_v2(std::uint64_t to, std::uint64_t from, std::size_t bytes, Stream* stream) {
    READY;
    LIVE(streams, stream, "stream");
    if (bytes == 0) return stream->capture == nullptr ? SUCCESS : f.broken(INVALID_VALUE, "empty", "%s of 0 bytes", __func__);
    const Allocation *target = range(__func__, to, bytes), *source = range(__func__, from, bytes);
    if (target == nullptr || source == nullptr) return INVALID_VALUE;
    if (to < from + bytes && from < to + bytes) return f.broken(INVALID_VALUE, "range", "%s of ranges that overlap", __func__);
    return f.enqueue(stream, Work{"copy on the device", [to, from, bytes] {
                                      std::memcpy(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), bytes);
                                      return Outcome{};
                                  }, {{to, target->id}, {from, source->id}}});
}

Result cuMemsetD8Async(std::uint64_t to, unsigned char byte, std::size_t bytes, Stream* stream) {
    READY;
    LIVE(streams, stream, "stream");
    if (bytes == 0) return f.broken(INVALID_VALUE, "empty", "%s of 0 bytes", __func__);
    const Allocation* target = range(__func__, to, bytes);
    if (target == nullptr) return INVALID_VALUE;
    return f.enqueue(stream, Work{"fill", [to, byte, bytes] {
                                      std::memset(reinterpret_cast<void*>(to), byte, bytes);
                                      return Outcome{};
                                  }, {{to, target->id}}});
}

// ---- Code ----

Result cuModuleLoadData(Module** module, const void* data) {
    READY;
    NOT_IN_CAPTURE;
    if (reinterpret_cast<std::uintptr_t>(data) % 8 != 0) return f.broken(INVALID_VALUE, "image", "%s: not aligned", __func__);
    const Image* image = find_image(data);
    if (image == nullptr) return INVALID_IMAGE;
    std::size_t count = 0;
    const void* layout = image->layout(&count);
    *module = new Module{image};
    f.modules.insert(*module);
    if (count != 0) {
        (*module)->layout_bytes = count * 64;
        (*module)->layout = f.memory.allocate(count * 64, Life::Live, false);
        std::memcpy(reinterpret_cast<void*>((*module)->layout), layout, count * 64);
    }
    return SUCCESS;
}

Result cuModuleUnload(Module* module) {
    READY;
    LIVE(modules, module, "module");
    if (module->layout != 0) f.memory.release(module->layout);
    f.functions.erase(module);
    f.modules.erase(module);
    delete module;
    return SUCCESS;
}

Result cuModuleGetFunction(Function** function, Module* module, const char* name) {
    READY;
    LIVE(modules, module, "module");
    auto& known = f.functions[module][name];
    if (known == nullptr) {
        const emulated::Kernel* kernel = module->image->kernels();
        while (kernel != nullptr && std::strcmp(kernel->name, name) != 0) kernel = kernel->next;
        if (kernel == nullptr) {
            f.functions[module].erase(name);
            return NOT_FOUND;
        }
        known = std::make_unique<Function>(Function{kernel, module, PLAIN_SHARED_BYTES});
    }
    *function = known.get();
    return SUCCESS;
}

Result cuModuleGetGlobal_v2(std::uint64_t* address, std::size_t* bytes, Module* module, const char* name) {
    READY;
    LIVE(modules, module, "module");
    if (std::strcmp(name, "layout") != 0 || module->layout == 0) return NOT_FOUND;
    *address = module->layout;
    *bytes = module->layout_bytes;
    return SUCCESS;
}

static bool is_function(const Fake& f, const Function* function) {
    for (const auto& [module, functions] : f.functions)
        for (const auto& [name, known] : functions)
            if (known.get() == function) return true;
    return false;
}

Result cuFuncGetParamInfo(Function* function, std::size_t index, std::size_t* offset, std::size_t* size) {
    READY;
    if (!is_function(f, function)) return dead(__func__, "function");
    if (index != 0) return INVALID_VALUE;
    *offset = 0;
    if (size != nullptr) *size = function->kernel->argument_bytes;
    return SUCCESS;
}

Result cuFuncSetAttribute(Function* function, int attribute, int value) {
    READY;
    if (!is_function(f, function)) return dead(__func__, "function");
    if (attribute != 8) return f.broken(INVALID_VALUE, "attribute", "%s: %d is not known here", __func__, attribute);
    if (value < 0 || value > static_cast<int>(MOST_SHARED_BYTES))
        return f.broken(INVALID_VALUE, "shared memory", "%s: %d bytes for %s", __func__, value, function->kernel->name);
    function->dynamic_limit = static_cast<unsigned>(value);
    return SUCCESS;
}

Result cuLaunchKernel(Function* function, unsigned x, unsigned y, unsigned z, unsigned block_x, unsigned block_y,
                      unsigned block_z, unsigned shared, Stream* stream, void** parameters, void** extra) {
    READY;
    if (!is_function(f, function)) return dead(__func__, "function");
    LIVE(streams, stream, "stream");
    const emulated::Kernel* kernel = function->kernel;
    const std::uint64_t threads = static_cast<std::uint64_t>(block_x) * block_y * block_z;
    if (x == 0 || y == 0 || z == 0 || x > 0x7FFFFFFFu || y > 65535 || z > 65535 || threads == 0 || threads > kernel->max_threads)
        return f.broken(INVALID_VALUE, "launch", "%s: a grid of %u x %u x %u blocks of %llu threads", kernel->name, x, y, z,
                        static_cast<unsigned long long>(threads));
    if (shared > function->dynamic_limit)
        return f.broken(INVALID_VALUE, "shared memory", "%s: %u bytes, %u are allowed", kernel->name, shared,
                        function->dynamic_limit);
    if (parameters == nullptr || extra != nullptr) return f.broken(INVALID_VALUE, "launch", "%s: no parameters", kernel->name);
    const auto words = std::make_shared<std::vector<std::uint64_t>>((kernel->argument_bytes + 7) / 8);
    std::memcpy(words->data(), parameters[0], kernel->argument_bytes);
    Work work{"launch a kernel", nullptr, {}};
    for (const std::uint64_t word : *words) {
        const Allocation* allocation = f.memory.find(word, 0);
        if (allocation != nullptr) work.memory.push_back({word, allocation->id});
    }
    work.run = [kernel, words, x, y, z, block_x, block_y, block_z, shared] {
        Fake& f = fake::fake();
        if (f.setting("lose") != 0 && ++f.launches > f.setting("lose")) return Outcome{ECC_UNCORRECTABLE, nullptr, ""};
        const unsigned grid[] = {x, y, z}, block[] = {block_x, block_y, block_z};
        const char* failed = emulated_launch(f.emulator, kernel, grid, block, shared, words->data());
        if (failed != nullptr) return Outcome{LAUNCH_FAILED, "kernel", failed};
        const std::string damage = f.memory.damage();
        return damage.empty() ? Outcome{} : Outcome{ILLEGAL_ADDRESS, "memory", std::string(kernel->name) + ": " + damage};
    };
    return f.enqueue(stream, std::move(work));
}

// ---- Graphs ----

Result cuGraphGetNodes(Graph* graph, void** nodes, std::size_t* count) {
    READY;
    LIVE(graphs, graph, "graph");
    if (nodes != nullptr) return f.broken(NOT_SUPPORTED, "graph", "%s of the nodes themselves", __func__);
    *count = graph->nodes.size();
    return SUCCESS;
}

Result cuGraphInstantiateWithFlags(std::shared_ptr<Graph>** executable, Graph* graph, unsigned long long) {
    READY;
    LIVE(graphs, graph, "graph");
    NOT_IN_CAPTURE;
    *executable = new std::shared_ptr<Graph>(std::make_shared<Graph>(*graph));
    f.executables.insert(*executable);
    return SUCCESS;
}

Result cuGraphDestroy(Graph* graph) {
    READY;
    LIVE(graphs, graph, "graph");
    f.graphs.erase(graph);
    delete graph;
    return SUCCESS;
}

Result cuGraphExecDestroy(std::shared_ptr<Graph>* executable) {
    READY;
    LIVE(executables, executable, "executable graph");
    f.executables.erase(executable);
    delete executable;
    return SUCCESS;
}

Result cuGraphLaunch(std::shared_ptr<Graph>* executable, Stream* stream) {
    READY;
    LIVE(executables, executable, "executable graph");
    LIVE(streams, stream, "stream");
    if (stream->capture != nullptr) {
        stream->capture->valid = false;
        return f.broken(NOT_SUPPORTED, "capture", "%s in a capture", __func__);
    }
    f.counts["graph nodes"] += (*executable)->nodes.size();
    Result result = SUCCESS;
    for (const Work& node : (*executable)->nodes)
        if (result == SUCCESS) result = f.enqueue(stream, node);
    return result;
}

}  // extern "C"
