#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "fake.h"

extern "C" void emulated_poison(const void* begin, std::size_t bytes);
extern "C" void emulated_unpoison(const void* begin, std::size_t bytes);

namespace fake {
namespace {

constexpr std::size_t GUARD = 256;
constexpr unsigned char FILL = 0xFF;     // NaN in every floating point type
constexpr unsigned char POISON = 0xFE;   // of freed memory: NaN in pairs, no index
constexpr std::size_t QUARANTINE = 16 << 20;

unsigned char guard_byte(std::size_t i, std::uint64_t id) { return i % 2 == 0 ? 0xC0 | ((i / 2 * 29 + id) % 64) : 0xFF; }

bool is_all(const unsigned char* at, std::size_t bytes, unsigned char value) {
    for (std::size_t i = 0; i < bytes; ++i)
        if (at[i] != value) return false;
    return true;
}

// Whether freed memory is as it was left. A sanitizer watches it itself.
void check_freed(const unsigned char* base, std::size_t bytes) {
#ifndef EMULATED_ASAN
    if (!is_all(base, bytes, POISON))
        fake().broken(ILLEGAL_ADDRESS, "use after free", "something wrote to %zu bytes that were freed", bytes - 2 * GUARD);
#else
    (void)base, (void)bytes, (void)is_all;
#endif
}

}  // namespace

std::uint64_t Memory::allocate(std::size_t bytes, Life life, bool is_pooled) {
    const std::size_t whole = (bytes + 2 * GUARD + GUARD - 1) / GUARD * GUARD;
    auto* base = static_cast<unsigned char*>(std::aligned_alloc(GUARD, whole));
    if (base == nullptr) return 0;
    const std::uint64_t id = ++next_id;
    std::memset(base, FILL, whole);
    for (std::size_t i = 0; i < GUARD; ++i) base[i] = base[GUARD + bytes + i] = guard_byte(i, id);
    emulated_poison(base, GUARD);
    emulated_poison(base + GUARD + bytes, GUARD);
    used += bytes;
    if (is_pooled) {
        pooled += bytes;
        if (pooled > reserved) reserved = pooled;
    }
    const auto address = reinterpret_cast<std::uint64_t>(base + GUARD);
    live[address] = Allocation{base, bytes, id, life, is_pooled};
    return address;
}

void Memory::release(std::uint64_t address) {
    const auto found = live.find(address);
    if (found == live.end()) return;
    const Allocation gone = found->second;
    live.erase(found);
    used -= gone.bytes;
    if (gone.pooled) pooled -= gone.bytes;
    const std::size_t whole = gone.bytes + 2 * GUARD;
    emulated_unpoison(gone.base, whole);
    std::memset(gone.base, POISON, whole);
    emulated_poison(gone.base, whole);
    quarantine.emplace_back(gone.base, whole);
    quarantined += whole;
    while (quarantined > QUARANTINE) {
        const auto [base, bytes] = quarantine.front();
        quarantine.pop_front();
        quarantined -= bytes;
        check_freed(base, bytes);
        emulated_unpoison(base, bytes);
        std::free(base);
    }
}

Allocation* Memory::find(std::uint64_t address, std::size_t bytes) {
    auto next = live.upper_bound(address);
    if (next == live.begin()) return nullptr;
    auto& [start, allocation] = *--next;
    const std::uint64_t offset = address - start;
    return offset <= allocation.bytes && bytes <= allocation.bytes - offset ? &allocation : nullptr;
}

Allocation* Memory::find_id(std::uint64_t address, std::uint64_t id) {
    Allocation* found = find(address, 0);
    return found != nullptr && found->id == id ? found : nullptr;
}

std::string Memory::damage() {
#ifndef EMULATED_ASAN  // which watches both itself
    char text[160];
    for (const auto& [address, allocation] : live)
        for (std::size_t side = 0; side < 2; ++side) {
            const unsigned char* guard = allocation.base + (side == 0 ? 0 : GUARD + allocation.bytes);
            for (std::size_t i = 0; i < GUARD; ++i) {
                if (guard[i] == guard_byte(i, allocation.id)) continue;
                std::snprintf(text, sizeof text, "wrote %s an allocation of %zu bytes", side == 0 ? "before" : "after",
                              allocation.bytes);
                return text;
            }
        }
#endif
    return "";
}

void Memory::forget_quarantine() {
    for (const auto& [base, bytes] : quarantine) {
        check_freed(base, bytes);
        emulated_unpoison(base, bytes);
        std::free(base);
    }
    quarantine.clear();
    quarantined = 0;
}

}  // namespace fake
