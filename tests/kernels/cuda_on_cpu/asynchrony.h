// What Hopper's threads use to wait for less than the whole block: barriers in shared memory (mbarrier), at which also
// copies arrive, named barriers; and which writes wgmma may see.
#pragma once

namespace cuda_on_cpu {

// Pieces of 16 bytes of dynamic shared memory. When cp.async wrote each; 0: visible to all, wgmma included.
static uint64_t written_at[SHARED_BYTES / 16];
static uint64_t now;

struct NamedBarrier {
    int threads, arrived;
    uint64_t generation;
};
static NamedBarrier named_barriers[16];

inline void start_products(int thread);

// Called for each thread of a block before it starts.
inline void start_asynchrony(Fiber& fiber) {
    fiber.copies_made = 0;
    fiber.arrivals.clear();
    fiber.fenced_at = 0;
    fiber.not_visible.clear();
    start_products(fiber.index);
    if (fiber.index != 0) return;
    memset(written_at, 0, sizeof written_at);
    memset(named_barriers, 0, sizeof named_barriers);
    now = 1;
}

inline size_t place_in_shared(const void* pointer, const char* what) {
    const size_t place = static_cast<const unsigned char*>(pointer) - dynamic_shared;
    if (place >= SHARED_BYTES) fail("%s: the address %p is not in dynamic shared memory", what, pointer);
    return place;
}

inline void copied(Fiber& fiber, const Copy& copy) {
    ++fiber.copies_made;
    const size_t place = static_cast<unsigned char*>(copy.to) - dynamic_shared;
    if (place >= SHARED_BYTES) return;
    written_at[place / 16] = ++now;
    fiber.not_visible.push_back(place / 16);
}

// A barrier's 64 bits: arrivals still missing, those of a phase, and the parity of the phase that is not complete.
struct Barrier {
    uint32_t missing;
    uint32_t arrivals : 20, mark : 11, parity : 1;
};
static_assert(sizeof(Barrier) == 8);
constexpr uint32_t BARRIER_MARK = 0x2a5;

inline Barrier& barrier_at(void* barrier) {
    Barrier& found = *static_cast<Barrier*>(barrier);
    if (found.mark != BARRIER_MARK) fail("no barrier has been made at %p", barrier);
    return found;
}

inline void arrive_at(void* barrier) {
    Barrier& one = barrier_at(barrier);
    if (--one.missing == 0) {
        one.missing = one.arrivals;
        one.parity ^= 1;
    }
}

inline void arrive_where_copied(Fiber& fiber) {
    while (!fiber.arrivals.empty() && fiber.arrivals.front().copies <= fiber.copies_made) {
        arrive_at(fiber.arrivals.front().barrier);
        fiber.arrivals.erase(fiber.arrivals.begin());
    }
}

// Called where nobody can go on: the copies that the thread's next arrival waits for are made.
inline bool complete_an_arrival(Fiber& fiber) {
    if (fiber.arrivals.empty()) return false;
    const size_t count = fiber.arrivals.front().copies - fiber.copies_made;
    for (size_t i = 0; i < count; ++i) make_copy(fiber, fiber.copies[i]);
    fiber.copies.erase(fiber.copies.begin(), fiber.copies.begin() + count);
    arrive_where_copied(fiber);
    return true;
}

inline bool phase_is_complete(const Fiber& fiber) { return barrier_at(fiber.awaited).parity != fiber.awaited_phase; }
inline bool generation_is_over(const Fiber& fiber) {
    return static_cast<NamedBarrier*>(fiber.awaited)->generation != fiber.awaited_phase;
}

inline NamedBarrier& arrive_at_named(int barrier, int threads) {
    if (barrier < 1 || barrier > 15) fail("named barriers are 1 to 15, not %d", barrier);
    if (threads % 32 != 0 || threads > block_threads) fail("a named barrier of %d threads", threads);
    NamedBarrier& one = named_barriers[barrier];
    if (one.arrived > 0 && one.threads != threads) fail("barrier %d: %d threads, and others say %d", barrier, threads, one.threads);
    one.threads = threads;
    if (++one.arrived == threads) {
        one.arrived = 0;
        ++one.generation;
    }
    return one;
}

}  // namespace cuda_on_cpu

// As on a GPU, not from 0 on.
inline uint32_t shared_address(const void* pointer) {
    return 1024 + (uint32_t)cuda_on_cpu::place_in_shared(pointer, "shared_address");
}

inline void barrier_init(uint64_t* barrier, int arrivals) {
    cuda_on_cpu::check_aligned("mbarrier.init", barrier, 8);
    *reinterpret_cast<cuda_on_cpu::Barrier*>(barrier) = {(uint32_t)arrivals, (uint32_t)arrivals, cuda_on_cpu::BARRIER_MARK, 0};
}
// Others have many turns: so what this thread should have done before it arrives is seen to be missing.
inline void barrier_arrive(uint64_t* barrier) {
    cuda_on_cpu::arrive_at(barrier);
    for (int turn = 0; turn < 40; ++turn) cuda_on_cpu::wait();
}
inline void barrier_arrive_after_copies(uint64_t* barrier) {
    cuda_on_cpu::Fiber& fiber = *cuda_on_cpu::current;
    cuda_on_cpu::barrier_at(barrier);
    fiber.arrivals.push_back({barrier, fiber.copies_made + fiber.copies.size()});
}
inline void barrier_wait(uint64_t* barrier, uint32_t parity, WHERE) {
    cuda_on_cpu::wait_until("mbarrier.try_wait", cuda_on_cpu::phase_is_complete, barrier, parity, file, line);
}

inline void named_barrier_wait(int barrier, int threads, WHERE) {
    const uint64_t generation = cuda_on_cpu::named_barriers[barrier & 15].generation;
    cuda_on_cpu::NamedBarrier& one = cuda_on_cpu::arrive_at_named(barrier, threads);
    cuda_on_cpu::wait_until("bar.sync", cuda_on_cpu::generation_is_over, &one, generation, file, line);
}

// All copies that are made are now visible to products that this thread starts; its own, to those of every thread.
inline void fence_for_wgmma() {
    cuda_on_cpu::Fiber& fiber = *cuda_on_cpu::current;
    fiber.fenced_at = cuda_on_cpu::now;
    for (const size_t piece : fiber.not_visible)
        if (cuda_on_cpu::written_at[piece] <= fiber.fenced_at) cuda_on_cpu::written_at[piece] = 0;
    fiber.not_visible.clear();
}

template <int COUNT>
inline void fewer_registers() {}
template <int COUNT>
inline void more_registers() {}
