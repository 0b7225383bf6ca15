// Sorting by a block.
#pragma once
#include "common.cuh"

// Sorts `count` numbers in shared memory, at most THREADS * EACH, ascending within each `size` (a power of two) of them: a
// bitonic network whose short steps stay within a thread or a warp. A barrier comes before and after; thread t has numbers
// t * EACH and on.
template <int THREADS, int EACH>
__device__ __forceinline__ void sort_shared(uint64_t* numbers, int size, int count) {
    static_assert(EACH == 1 || EACH == 2 || EACH == 4, "steps within a thread are of 1 and 2");
    const int at = threadIdx.x * EACH;
    uint64_t mine[EACH];
#pragma unroll
    for (int u = 0; u < EACH; ++u) mine[u] = at + u < count ? numbers[at + u] : ~0ull;
#pragma unroll 1
    for (int width = 2; width <= size; width *= 2) {
#pragma unroll 1
        for (int step = width / 2; step > 0; step /= 2) {
            uint64_t other[EACH];
            if (step >= 32 * EACH) {
                __syncthreads();
#pragma unroll
                for (int u = 0; u < EACH; ++u)
                    if (at + u < count) numbers[at + u] = mine[u];
                __syncthreads();
#pragma unroll
                for (int u = 0; u < EACH; ++u) other[u] = at + u < count ? numbers[(at + u) ^ step] : ~0ull;
            } else if (step >= EACH) {
#pragma unroll
                for (int u = 0; u < EACH; ++u) other[u] = __shfl_xor_sync(0xffffffffu, mine[u], step / EACH);
            } else if (step == 1) {
#pragma unroll
                for (int u = 0; u < EACH; ++u) other[u] = mine[u ^ (EACH > 1)];
            } else {
#pragma unroll
                for (int u = 0; u < EACH; ++u) other[u] = mine[u ^ (EACH > 2 ? 2 : 0)];
            }
#pragma unroll
            for (int u = 0; u < EACH; ++u) {
                const bool smaller = ((at + u) & step) == 0, ascending = ((at + u) & (size - 1) & width) == 0;
                if ((other[u] < mine[u]) == (smaller == ascending)) mine[u] = other[u];
            }
        }
    }
    __syncthreads();
#pragma unroll
    for (int u = 0; u < EACH; ++u)
        if (at + u < count) numbers[at + u] = mine[u];
    __syncthreads();
}
