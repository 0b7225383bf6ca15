// The instructions of Hopper alone (sm_90a): products of a warpgroup (wgmma), barriers in shared memory (mbarrier), and
// what orders them. As in primitives.cuh, nothing else is inline PTX, and tests/kernels/cuda_on_cpu has the counterparts.
// Layouts: PTX ISA, "Register fragments and shared memory matrix layouts" of wgmma.mma_async.m64nNk16.
#pragma once
#include "primitives.cuh"

#ifndef CUDA_ON_CPU

using uint64_t = unsigned long long;

// Operands of the accumulators of a thread, and how they are counted: 32 of them for N = 64, 64 for 128.
// As products write them anew ("=f") or add to them ("+f").
#define F4(how, d, i) how(d[i]), how(d[i + 1]), how(d[i + 2]), how(d[i + 3])
#define F16(how, d, i) F4(how, d, i), F4(how, d, i + 4), F4(how, d, i + 8), F4(how, d, i + 12)
#define OPERANDS_32(how, d) F16(how, d, 0), F16(how, d, 16)
#define OPERANDS_64(how, d) OPERANDS_32(how, d), F16(how, d, 32), F16(how, d, 48)
#define NAMES_32                                                                                                     \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29," \
    "%30,%31"
#define NAMES_64                                                                                                      \
    NAMES_32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,"  \
             "%57,%58,%59,%60,%61,%62,%63"

#if BF16
#define WGMMA(n) "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 "
#else
#define WGMMA(n) "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.f16.f16 "
#endif

// d (64 x N) = a b, or d += a b. a: 64 x 16 by rows, b: 16 x N by columns, both in shared memory (K-major).
#define WGMMA_SHARED(n, count, A, B)                                                                              \
    __device__ __forceinline__ void wgmma_first(float (&d)[count], uint64_t a, uint64_t b) {                      \
        asm volatile(WGMMA(n) "{" NAMES_##count "}, %" #A ", %" #B ", 0, 1, 1, 0, 0;"                             \
                     : OPERANDS_##count("=f", d)                                                                  \
                     : "l"(a), "l"(b)                                                                             \
                     : "memory");                                                                                 \
    }                                                                                                             \
    __device__ __forceinline__ void wgmma_more(float (&d)[count], uint64_t a, uint64_t b) {                       \
        asm volatile(WGMMA(n) "{" NAMES_##count "}, %" #A ", %" #B ", 1, 1, 1, 0, 0;"                             \
                     : OPERANDS_##count("+f", d)                                                                  \
                     : "l"(a), "l"(b)                                                                             \
                     : "memory");                                                                                 \
    }
WGMMA_SHARED(64, 32, 32, 33)
WGMMA_SHARED(128, 64, 64, 65)
#undef WGMMA_SHARED

// d += a b. a: 64 x 16, in registers as for mma.m16n8k16, a warp 16 rows; b: 16 x N by rows, in shared memory (MN-major).
#define WGMMA_REGISTERS(n, count, A0, A1, A2, A3, B)                                                              \
    __device__ __forceinline__ void wgmma_registers(float (&d)[count], const uint32_t* a, uint64_t b) {           \
        asm volatile(WGMMA(n) "{" NAMES_##count "}, {%" #A0 ",%" #A1 ",%" #A2 ",%" #A3 "}, %" #B ", 1, 1, 1, 1;"  \
                     : OPERANDS_##count("+f", d)                                                                  \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)                                         \
                     : "memory");                                                                                 \
    }
WGMMA_REGISTERS(64, 32, 32, 33, 34, 35, 36)
WGMMA_REGISTERS(128, 64, 64, 65, 66, 67, 68)
#undef WGMMA_REGISTERS

// Before the first product that uses registers which other instructions have written.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Until at most N groups are under way.
template <int N>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// What a product under way reads or writes is not touched by what stands before this, nor after it too early.
template <int COUNT>
__device__ __forceinline__ void settled(float (&registers)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}
template <int COUNT>
__device__ __forceinline__ void settled(uint32_t (&registers)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) asm volatile("" : "+r"(registers[i])::"memory");
}

// Everything that `never` is computed from is computed before what follows. Of itself the compiler puts arithmetic after
// waits for products, which is where it must not be; a branch it does not move. No one may set `never`.
__device__ __forceinline__ void compute_before(bool never) {
    if (never) asm volatile("brkpt;");
}

// The same number, of which the compiler knows nothing: what is computed from it is computed here, and not kept in
// registers from the last time on.
__device__ __forceinline__ int not_kept(int number) {
    asm volatile("" : "+r"(number));
    return number;
}

// What cp.async and plain stores have written to shared memory, as far as this thread knows of it, wgmma may read.
__device__ __forceinline__ void fence_for_wgmma() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

__device__ __forceinline__ void barrier_init(uint64_t* barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void barrier_arrive(uint64_t* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Arrives, for a thread that is counted, when all cp.async that the thread has started are complete.
__device__ __forceinline__ void barrier_arrive_after_copies(uint64_t* barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Until the phase of this parity (0 for the first, then 1, 0, ...) is complete. Of a new barrier, parity 1 is.
__device__ __forceinline__ void barrier_wait(uint64_t* barrier, uint32_t parity) {
    asm volatile(
        "{.reg .pred done;\n"
        "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;}" ::"r"(shared_address(barrier)),
        "r"(parity)
        : "memory");
}

// Barrier 1..15 of the block, at which `threads` threads wait for one another.
__device__ __forceinline__ void named_barrier_wait(int barrier, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// From here on the threads of this warpgroup have so many registers.
template <int COUNT>
__device__ __forceinline__ void fewer_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT>
__device__ __forceinline__ void more_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

#endif

// Whether all bits of all are ones, which no result of arithmetic has: what `compute_before` may depend on.
template <int COUNT>
__device__ __forceinline__ bool never(const float (&results)[COUNT]) {
    int all = __float_as_int(results[0]);
#pragma unroll
    for (int i = 1; i < COUNT; ++i) all &= __float_as_int(results[i]);
    return all == -1;
}

// Of a tile in shared memory as wgmma reads it: rows of 128 bytes, 8 of them a block of 1024 bytes (aligned to that),
// the 16-byte pieces of a row permuted by its number (128-byte swizzle). `leading`: bytes from one block of 64 columns to the
// next, for matrices that are read along the rows of the tile (MN-major); 1 where it means nothing.
__device__ __forceinline__ uint64_t descriptor(uint32_t address, uint32_t leading) {
    constexpr uint64_t SWIZZLE_128 = 1ull << 62, STRIDE = 1024 >> 4;
    return SWIZZLE_128 | STRIDE << 32 | static_cast<uint64_t>(leading >> 4 & 0x3fff) << 16 | (address >> 4 & 0x3fff);
}

// The same matrix `bytes` further. Of the low half only the address changes, and never so much that it overflows.
__device__ __forceinline__ uint64_t further(uint64_t descriptor, uint32_t bytes) {
    return (descriptor >> 32) << 32 | (static_cast<uint32_t>(descriptor) + (bytes >> 4));
}

// Place and parity of a step in a ring of COUNT stages.
template <int COUNT>
struct Ring {
    int index = 0;
    uint32_t parity = 0;

    __device__ __forceinline__ Ring next() const {
        Ring other;
        other.index = index + 1 == COUNT ? 0 : index + 1;
        other.parity = index + 1 == COUNT ? parity ^ 1 : parity;
        return other;
    }
};
