#include "faults.h"

#include <csignal>
#include <cstddef>

#include "emulator.h"

namespace emulated {

#ifdef EMULATED_ASAN
void catch_faults() {}
#else
namespace {

constexpr int SIGNALS[] = {SIGSEGV, SIGBUS, SIGFPE};
constexpr const char* NAMES[] = {"access to memory that is not there", "access to memory that is not there", "division by zero"};
constexpr std::size_t COUNT = sizeof SIGNALS / sizeof *SIGNALS;
struct sigaction previous[COUNT];

void on_fault(int signal, siginfo_t* info, void*) {
    std::size_t which = 0;
    while (which + 1 < COUNT && SIGNALS[which] != signal) ++which;
    if (active != nullptr && active->current != &active->host) fault(NAMES[which], info->si_addr);
    // Not a kernel's: the instruction runs again, and meets the handler from before.
    sigaction(signal, &previous[which], nullptr);
}

}  // namespace

void catch_faults() {
    static bool installed = false;
    if (__atomic_exchange_n(&installed, true, __ATOMIC_SEQ_CST)) return;
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    // NODEFER: a kernel's fault leaves the handler by switching fibers, and the next one is to find the signal unblocked.
    // ONSTACK: the stack may be what is not there.
    action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    for (std::size_t i = 0; i < COUNT; ++i) sigaction(SIGNALS[i], &action, &previous[i]);
}
#endif

}  // namespace emulated
