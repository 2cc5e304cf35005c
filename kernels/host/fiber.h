// Fibers: call stacks that one host thread switches between by hand.
//
// The emulator gives each thread of a block that has to wait a fiber. A switch saves the callee-saved registers, swaps the
// stack pointer and returns: a few nanoseconds, no system call. Switches are announced to AddressSanitizer, which would
// otherwise take the change of stack for an overflow.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#define EMULATED_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EMULATED_ASAN 1
#endif
#endif

// Other processors switch through the C library, which makes a system call each time; so does a build that asks for it.
#if !defined(__x86_64__) && !defined(__aarch64__) && !defined(EMULATED_UCONTEXT)
#define EMULATED_UCONTEXT 1
#endif
#ifdef EMULATED_UCONTEXT
#include <ucontext.h>
#endif

namespace emulated {

struct Fiber {
    void* stack_pointer = nullptr;  // saved while the fiber is suspended
    void* stack = nullptr;          // lowest usable address; on the host's own stack known to AddressSanitizer only
    std::size_t stack_size = 0;
    void* fake_stack = nullptr;     // AddressSanitizer's
    unsigned number = 0;            // which of an emulator's fibers it is
    Fiber* next = nullptr;          // in a list of free fibers
#ifdef EMULATED_UCONTEXT
    ucontext_t context;
#endif
};

// Maps a stack, with an inaccessible page below it, and returns a fiber that will start in `entry`; null when memory is short.
// `number` tells it from others.
Fiber* new_fiber(unsigned number, void (*entry)());
// Makes the fiber start in `entry` again, whatever it was doing: what stood on its stack is forgotten.
void reset_fiber(Fiber* fiber, void (*entry)());
void delete_fiber(Fiber* fiber);

// Suspends `from`, which is running, and continues `to`; returns when something switches back to `from`.
void switch_fiber(Fiber* from, Fiber* to);
// The first call in an entry function: completes the switch that started the fiber.
void fiber_started();

// Marks bytes as untouchable (touchable) for AddressSanitizer; nothing otherwise.
void poison(const void* begin, std::size_t bytes);
void unpoison(const void* begin, std::size_t bytes);

}  // namespace emulated
