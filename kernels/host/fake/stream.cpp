#include <cstdio>
#include <cstdlib>

#include "fake.h"

extern "C" emulated::Emulator* emulated_new(std::uint64_t seed);

namespace fake {

Fake& fake() {
    static Fake* the = new Fake;  // outlives whatever runs at the end
    return *the;
}

Fake::Fake() {
    settings = {{"driver", 13000}, {"devices", 1}, {"capability", 90}, {"memory", std::uint64_t{64} << 30}, {"taken", 0},
                {"exclusive", 0}, {"lose", 0}, {"seed", 1}};
    const char* given = std::getenv("FAKE_CUDA");
    for (std::string rest = given == nullptr ? "" : given; !rest.empty();) {
        const std::size_t comma = rest.find(','), equals = rest.find('=');
        const std::string name = rest.substr(0, equals);
        if (settings.count(name) == 0) {
            std::fprintf(stderr, "FAKE_CUDA: no setting is called %s\n", name.c_str());
            std::abort();
        }
        settings[name] = std::strtoull(rest.c_str() + equals + 1, nullptr, 10);
        rest = comma == std::string::npos ? "" : rest.substr(comma + 1);
    }
    random = setting("seed");
    emulator = emulated_new(random);
}

std::uint64_t Fake::setting(const char* name) const { return settings.at(name); }

std::uint64_t Fake::next_random() {  // splitmix64
    std::uint64_t z = (random += 0x9E3779B97F4A7C15ull);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

std::uint64_t Fake::capacity() const {
    const std::uint64_t memory = setting("memory"), taken = setting("taken");
    return taken < memory ? memory - taken : 0;
}

Result Fake::broken(Result code, const char* rule, const char* format, ...) {
    char text[512];
    std::va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    const char* path = std::getenv("FAKE_CUDA_LOG");
    std::FILE* log = path == nullptr ? stderr : std::fopen(path, "a");
    if (log != nullptr) {
        std::fprintf(log, "%s%s: %s (%s)\n", path == nullptr ? "fake driver: " : "", rule, text, name_of(code));
        if (path != nullptr) std::fclose(log);
    }
    return code;
}

Stream* Fake::capturing_thread() {
    for (Stream* stream : streams)
        if (stream->capture != nullptr && stream->capture->thread == std::this_thread::get_id()) return stream;
    return nullptr;
}

Result Fake::forbidden_in_capture(const char* call) {
    Stream* stream = capturing_thread();
    if (stream == nullptr) return SUCCESS;
    stream->capture->valid = false;
    return broken(STREAM_CAPTURE_UNSUPPORTED, "capture", "%s while this thread captures", call);
}

bool Fake::is_pinned(const void* at, std::size_t bytes) const {
    auto* address = static_cast<unsigned char*>(const_cast<void*>(at));
    auto next = pinned.upper_bound(address);
    if (next == pinned.begin()) return false;
    const auto& [start, size] = *--next;
    const auto offset = static_cast<std::size_t>(address - start);
    return offset <= size && bytes <= size - offset;
}

Result Fake::enqueue(Stream* stream, Work work) {
    for (const Touched& touched : work.memory) {
        const Allocation* allocation = memory.find_id(touched.address, touched.id);
        if (allocation != nullptr && allocation->life == Life::Leaving)
            return broken(INVALID_VALUE, "use after free", "%s of memory whose free is enqueued already", work.name);
    }
    if (stream->capture != nullptr) {
        if (!stream->capture->valid) return STREAM_CAPTURE_INVALIDATED;
        stream->capture->graph.nodes.push_back(std::move(work));
        return SUCCESS;
    }
    stream->queue.push_back(std::move(work));
    return SUCCESS;
}

void Fake::run_one(Stream* stream) {
    if (stream->queue.empty() || stream->is_busy) return;
    Work work = std::move(stream->queue.front());
    stream->queue.pop_front();
    if (failure.code != SUCCESS && !work.always) return;
    Outcome outcome;
    for (const Touched& touched : work.memory) {
        const Allocation* allocation = memory.find_id(touched.address, touched.id);
        if (allocation == nullptr) outcome = {ILLEGAL_ADDRESS, "use after free", "the memory was freed before this ran"};
        else if (allocation->life == Life::Unborn)
            outcome = {ILLEGAL_ADDRESS, "use before allocation", "the stream that allocates the memory has not come to that"};
        if (outcome.code != SUCCESS) break;
    }
    stream->is_busy = true;
    if (outcome.code == SUCCESS) outcome = work.run();
    stream->is_busy = false;
    if (outcome.code == SUCCESS || failure.code != SUCCESS) return;
    failure = outcome;
    if (outcome.rule != nullptr) broken(outcome.code, outcome.rule, "%s: %s", work.name, outcome.why.c_str());
}

void Fake::drain(Stream* stream) {
    while (!stream->queue.empty()) {
        // The others get on or not, as on a device.
        for (Stream* other : streams)
            if (other != stream && next_random() % 3 == 0) run_one(other);
        run_one(stream);
    }
}

void Fake::reach(Event* event, Stream* on, std::uint64_t recording) {
    while (event->reached < recording && on != nullptr && !on->queue.empty() && !on->is_busy) {
        for (Stream* other : streams)
            if (other != on && next_random() % 3 == 0 && event->reached < recording) run_one(other);
        run_one(on);
    }
}

void Fake::check_leaks() {
    if (failure.code != SUCCESS) return;
    const auto leak = [this](const char* what, std::size_t count) {
        if (count != 0) broken(SUCCESS, "leak", "%zu %s when the context is released", count, what);
    };
    leak("streams", streams.size());
    leak("events", events.size());
    leak("graphs", graphs.size());
    leak("executable graphs", executables.size());
    leak("modules", modules.size());
    leak("pieces of pinned memory", pinned.size());
    leak("allocations", memory.live.size());
    const std::string damage = memory.damage();
    if (!damage.empty()) broken(ILLEGAL_ADDRESS, "memory", "%s", damage.c_str());
}

void Fake::write_counts() {
    const char* path = std::getenv("FAKE_CUDA_COUNTS");
    std::FILE* file = path == nullptr ? nullptr : std::fopen(path, "w");
    if (file == nullptr) return;
    for (const auto& [call, count] : counts) std::fprintf(file, "%s %llu\n", call.c_str(), static_cast<unsigned long long>(count));
    std::fclose(file);
}

}  // namespace fake
