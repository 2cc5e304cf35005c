#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <new>

#ifdef EMULATED_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// void emulated_switch(void** save, void* load): pushes what the calling convention says a callee keeps, stores the stack
// pointer in *save, continues on the stack `load`. A fresh stack is laid out as if its fiber had called this once.
#if defined(__x86_64__)
asm(R"(
.text
.globl emulated_switch
.hidden emulated_switch
.type emulated_switch, @function
.p2align 4
emulated_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulated_switch, .-emulated_switch
)");
#elif defined(__aarch64__)
asm(R"(
.text
.globl emulated_switch
.hidden emulated_switch
.type emulated_switch, @function
.p2align 4
emulated_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size emulated_switch, .-emulated_switch
)");
#endif
#ifndef EMULATED_UCONTEXT
extern "C" void emulated_switch(void** save, void* load);
#endif

namespace emulated {

namespace {
#ifdef EMULATED_ASAN
constexpr std::size_t STACK_BYTES = 512 * 1024;  // instrumented frames are several times larger
#else
constexpr std::size_t STACK_BYTES = 64 * 1024;
#endif

// Where stacks start differs by this many bytes, up to a page, so that their tops do not all fall into the same cache sets.
constexpr std::size_t STAGGER_BYTES = 320, STAGGERS = 12;

// The fiber that the latest switch left: its stack's bounds become known after the switch only.
__thread Fiber* left = nullptr;

void finish_switch(void* fake_stack) {
#ifdef EMULATED_ASAN
    const void* bottom = nullptr;
    std::size_t size = 0;
    __sanitizer_finish_switch_fiber(fake_stack, &bottom, &size);
    left->stack = const_cast<void*>(bottom);
    left->stack_size = size;
#else
    (void)fake_stack;
#endif
}
}  // namespace

void reset_fiber(Fiber* fiber, void (*entry)()) {
    unpoison(fiber->stack, fiber->stack_size);
    fiber->fake_stack = nullptr;
#ifdef EMULATED_UCONTEXT
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = fiber->stack;
    fiber->context.uc_stack.ss_size = fiber->stack_size;
    fiber->context.uc_link = nullptr;
    makecontext(&fiber->context, entry, 0);
#else
    const std::size_t stagger = fiber->number % STAGGERS * STAGGER_BYTES;
    auto top = reinterpret_cast<std::uint64_t*>(static_cast<char*>(fiber->stack) + fiber->stack_size - stagger);
#if defined(__x86_64__)
    // From the top: a zero where the entry function's return address would be, the address that `ret` takes, six registers.
    // On entry the stack pointer is then 8 below a multiple of 16, as after a call.
    top -= 8;
    for (int i = 0; i < 8; ++i) top[i] = 0;
    top[6] = reinterpret_cast<std::uint64_t>(entry);
#else
    top -= 20;
    for (int i = 0; i < 20; ++i) top[i] = 0;
    top[11] = reinterpret_cast<std::uint64_t>(entry);  // x30
#endif
    fiber->stack_pointer = top;
#endif
}

Fiber* new_fiber(unsigned number, void (*entry)()) {
    const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    void* mapped = mmap(nullptr, STACK_BYTES + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) return nullptr;
    void* memory = std::malloc(sizeof(Fiber));
    if (memory == nullptr || mprotect(mapped, page, PROT_NONE) != 0) {
        std::free(memory);
        munmap(mapped, STACK_BYTES + page);
        return nullptr;
    }
    Fiber* fiber = new (memory) Fiber;
    fiber->stack = static_cast<char*>(mapped) + page;
    fiber->stack_size = STACK_BYTES;
    fiber->number = number;
    reset_fiber(fiber, entry);
    return fiber;
}

void delete_fiber(Fiber* fiber) {
    const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    unpoison(fiber->stack, fiber->stack_size);
    munmap(static_cast<char*>(fiber->stack) - page, fiber->stack_size + page);
    std::free(fiber);
}

void switch_fiber(Fiber* from, Fiber* to) {
    left = from;
#ifdef EMULATED_ASAN
    __sanitizer_start_switch_fiber(&from->fake_stack, to->stack, to->stack_size);
#endif
#ifdef EMULATED_UCONTEXT
    swapcontext(&from->context, &to->context);
#else
    emulated_switch(&from->stack_pointer, to->stack_pointer);
#endif
    finish_switch(from->fake_stack);
}

void fiber_started() { finish_switch(nullptr); }

void poison(const void* begin, std::size_t bytes) {
#ifdef EMULATED_ASAN
    __asan_poison_memory_region(begin, bytes);
#else
    (void)begin, (void)bytes;
#endif
}

void unpoison(const void* begin, std::size_t bytes) {
#ifdef EMULATED_ASAN
    __asan_unpoison_memory_region(begin, bytes);
#else
    (void)begin, (void)bytes;
#endif
}

}  // namespace emulated
