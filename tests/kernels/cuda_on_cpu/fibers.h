// The threads of a block as fibers, their scheduler, and barriers of the whole block.
//
// A fiber starts on a stack of its own by makecontext; from then on switches are _setjmp and _longjmp, which make no
// system call. A fiber whose thread has finished waits for the next block.
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <ucontext.h>

extern char __start_cuda_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_cuda_shared[] __attribute__((weak, visibility("hidden")));

namespace cuda_on_cpu {

constexpr int MAX_THREADS = 1024;
constexpr size_t STACK_BYTES = 256 << 10;  // only the pages that are touched take memory
constexpr size_t SHARED_BYTES = 228 << 10;
constexpr uint64_t STACK_END = 0x5afe57ac0ffee000;

alignas(1024) static unsigned char dynamic_shared[SHARED_BYTES];

struct Fiber;
using Combine = void (*)(Fiber* const lanes[32], unsigned mask);
enum class State { READY, AT_BARRIER, IN_WARP, WAITING, DONE };

struct Copy {
    void* to;
    const void* from;  // null: zeros
    int bytes, group;
};

// An arrival at a barrier in shared memory when all copies up to some number have been made.
struct LateArrival {
    void* barrier;
    size_t copies;
};

struct Fiber {
    int index;
    uint3 thread;
    State state = State::DONE;
    bool started = false;
    char* stack;
    jmp_buf resume;
    ucontext_t start;
    // What it waits for, and where.
    const char* what;
    const char* file;
    int line;
    int predicate;     // of a barrier that reduces
    unsigned mask;     // of a warp instruction
    Combine combine;   // computes the results of all its lanes
    void* slot;        // its operands and results
    std::vector<Copy> copies;
    int copy_group = 0;
    size_t copies_made = 0;
    std::vector<LateArrival> arrivals;
    bool (*ready)(const Fiber&);  // of one that is WAITING, and what for
    void* awaited;
    uint64_t awaited_phase;
    uint64_t fenced_at;               // when it last made writes visible to wgmma
    std::vector<size_t> not_visible;  // pieces of shared memory that it has copied since
};

static Fiber fibers[MAX_THREADS];
static Fiber* current;
static jmp_buf scheduler;
static ucontext_t host;
static void (*kernel_call)(void**);
static void** kernel_arguments;
static int block_threads, barrier_sum, barrier_threads;
static char message[2000];

}  // namespace cuda_on_cpu

static uint3 threadIdx, blockIdx;
static dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace cuda_on_cpu {

// Gives the launch up: the message reaches Python as an exception.
inline void fail(const char* format, ...) {
    int used = snprintf(message, sizeof message, "block (%u, %u, %u)", blockIdx.x, blockIdx.y, blockIdx.z);
    if (current != nullptr) {
        const uint3 t = current->thread;
        used += snprintf(message + used, sizeof message - used, ", thread (%u, %u, %u)", t.x, t.y, t.z);
    }
    used += snprintf(message + used, sizeof message - used, ": ");
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message + used, sizeof message - used, format, arguments);
    va_end(arguments);
    _longjmp(scheduler, 2);
}

__attribute__((noinline)) inline void wait() {
    if (_setjmp(current->resume) == 0) _longjmp(scheduler, 1);
}

inline bool try_combine(const Fiber& one);
inline void start_asynchrony(Fiber& fiber);
inline bool complete_an_arrival(Fiber& fiber);

inline void fiber_main() {
    for (;;) {
        kernel_call(kernel_arguments);
        current->state = State::DONE;
        // The lanes that wait for this one in a warp instruction go on without it.
        const int first = current->index & ~31;
        for (int i = first; i < first + 32; ++i)
            if (fibers[i].state == State::IN_WARP) try_combine(fibers[i]);
        wait();
    }
}

// Runs a fiber until it waits; false if the launch has failed.
__attribute__((noinline)) inline bool run(Fiber& fiber) {
    current = &fiber;
    threadIdx = fiber.thread;
    const int came_back = _setjmp(scheduler);
    if (came_back == 0) {
        if (fiber.started) _longjmp(fiber.resume, 1);
        fiber.started = true;
        setcontext(&fiber.start);
    }
    current = nullptr;
    return came_back == 1;
}

inline void prepare(Fiber& fiber, int index) {
    fiber.index = index;
    const unsigned i = index;
    fiber.thread = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
    fiber.state = State::READY;
    fiber.copies.clear();
    start_asynchrony(fiber);
    if (fiber.started) return;
    if (fiber.stack == nullptr) {
        void* stack = mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        fiber.stack = static_cast<char*>(stack);
        *reinterpret_cast<uint64_t*>(fiber.stack) = STACK_END;
    }
    getcontext(&fiber.start);
    fiber.start.uc_stack = {fiber.stack, 0, STACK_BYTES};
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, fiber_main, 0);
}

// Who waits for what, in words: runs of threads that wait at the same place.
inline const char* who_waits() {
    static char text[1500];
    int used = 0;
    for (int i = 0; i < block_threads && used < (int)sizeof text - 300;) {
        const Fiber& one = fibers[i];
        int last = i;
        auto same = [&](const Fiber& other) {
            return other.state == one.state &&
                   (one.state == State::DONE || (other.what == one.what && other.line == one.line && other.mask == one.mask));
        };
        while (last + 1 < block_threads && same(fibers[last + 1])) ++last;
        used += snprintf(text + used, sizeof text - used, "%sthreads %d-%d ", i == 0 ? "" : "; ", i, last);
        if (one.state == State::DONE) used += snprintf(text + used, sizeof text - used, "have finished");
        else used += snprintf(text + used, sizeof text - used, "wait in %s at %.150s:%d", one.what, one.file, one.line);
        if (one.state == State::IN_WARP) used += snprintf(text + used, sizeof text - used, " with mask 0x%08x", one.mask);
        i = last + 1;
    }
    return text;
}

// Lets the barrier's threads go if all that are left have arrived, at one place.
inline bool release_barrier() {
    const Fiber* first = nullptr;
    barrier_sum = barrier_threads = 0;
    for (int i = 0; i < block_threads; ++i) {
        Fiber& fiber = fibers[i];
        if (fiber.state == State::DONE) continue;
        if (fiber.state != State::AT_BARRIER) return false;
        if (first == nullptr) first = &fiber;
        if (fiber.what != first->what || fiber.line != first->line || fiber.file != first->file)
            fail("threads wait at different barriers: %s", who_waits());
        barrier_sum += fiber.predicate != 0;
        ++barrier_threads;
    }
    for (int i = 0; i < block_threads; ++i)
        if (fibers[i].state == State::AT_BARRIER) fibers[i].state = State::READY;
    return first != nullptr;
}

// Runs one block to its end; false if it has failed. All shared memory starts as NaN.
__attribute__((noinline)) inline bool run_block(size_t shared_bytes, bool reversed) {
    memset(dynamic_shared, 0xff, shared_bytes);
    if (__start_cuda_shared != nullptr) memset(__start_cuda_shared, 0xff, __stop_cuda_shared - __start_cuda_shared);
    for (int i = 0; i < MAX_THREADS; ++i)
        if (i < block_threads) prepare(fibers[i], i);
        else fibers[i].state = State::DONE;
    for (bool going = true; going;) {
        going = false;
        for (int i = 0; i < block_threads; ++i) {
            Fiber& fiber = fibers[reversed ? block_threads - 1 - i : i];
            if (fiber.state == State::WAITING && fiber.ready(fiber)) fiber.state = State::READY;
            if (fiber.state != State::READY) continue;
            going = true;
            if (!run(fiber)) return false;
        }
        if (_setjmp(scheduler) != 0) return false;
        bool all_done = true;
        for (int i = 0; i < block_threads; ++i) all_done &= fibers[i].state == State::DONE;
        if (all_done) break;
        if (release_barrier()) going = true;
        // Copies take as long as others have something to do.
        for (int i = 0; i < block_threads && !going; ++i)
            going = complete_an_arrival(fibers[reversed ? block_threads - 1 - i : i]);
        if (!going) fail("nobody can go on: %s", who_waits());
    }
    if (_setjmp(scheduler) != 0) return false;
    for (int i = 0; i < block_threads; ++i)
        if (*reinterpret_cast<uint64_t*>(fibers[i].stack) != STACK_END) fail("thread %d ran out of stack", i);
    const unsigned char* beyond = dynamic_shared + shared_bytes;
    const size_t count = SHARED_BYTES - shared_bytes;
    if (count > 0 && (*beyond != 0xff || memcmp(beyond, beyond + 1, count - 1) != 0))
        fail("wrote beyond the %zu bytes of dynamic shared memory of the launch", shared_bytes);
    return true;
}

inline void wait_until(const char* what, bool (*ready)(const Fiber&), void* awaited, uint64_t phase, const char* file, int line) {
    current->awaited = awaited;
    current->awaited_phase = phase;
    if (ready(*current)) return;
    current->state = State::WAITING;
    current->what = what;
    current->ready = ready;
    current->file = file;
    current->line = line;
    wait();
}

inline void at_barrier(const char* what, int predicate, const char* file, int line) {
    current->state = State::AT_BARRIER;
    current->what = what;
    current->predicate = predicate;
    current->file = file;
    current->line = line;
    wait();
}

}  // namespace cuda_on_cpu

#define WHERE const char *file = __builtin_FILE(), int line = __builtin_LINE()
inline void __syncthreads(WHERE) { cuda_on_cpu::at_barrier("__syncthreads", 0, file, line); }
inline int __syncthreads_count(int predicate, WHERE) {
    cuda_on_cpu::at_barrier("__syncthreads_count", predicate, file, line);
    return cuda_on_cpu::barrier_sum;
}
inline int __syncthreads_or(int predicate, WHERE) {
    cuda_on_cpu::at_barrier("__syncthreads_or", predicate, file, line);
    return cuda_on_cpu::barrier_sum != 0;
}
inline int __syncthreads_and(int predicate, WHERE) {
    cuda_on_cpu::at_barrier("__syncthreads_and", predicate, file, line);
    return cuda_on_cpu::barrier_sum == cuda_on_cpu::barrier_threads;
}
