// For each block of 128 queries, the keys that any of them attends to: see kernels/key_lists.py.
//
// A block sees keys that were alive when its chunk began, which plan_evictions lists, and keys of the chunk itself.
#include "common.cuh"

constexpr int BLOCK_Q = 128;
constexpr int THREADS = 256;
constexpr int EACH = 4;
constexpr int MOST_MIXED = 2 * BLOCK_Q;  // a query adds one key and evicts one

struct Lists {
    int mixed[MOST_MIXED];
    int sums[THREADS / 32];
};

struct Found {
    int full, mixed;
};

// Appends those of this thread's keys (position, evict; -1: none) that the queries first..last attend to, in order.
__device__ __forceinline__ void append(Lists& s, Found& found, int* keys, const int* position, const int* evict, int first,
                                       int last) {
    int some[EACH], full[EACH], count = 0;
#pragma unroll
    for (int u = 0; u < EACH; ++u) {
        some[u] = position[u] >= 0 && position[u] <= last && evict[u] > first && evict[u] > position[u];
        full[u] = some[u] && position[u] <= first && evict[u] > last;
        count += full[u] ? 1 : some[u] ? 1 << 16 : 0;
    }
    int total;
    const int before = sum_before<THREADS>(count, total, s.sums);
    int full_place = found.full + (before & 0xffff), mixed_place = found.mixed + (before >> 16);
#pragma unroll
    for (int u = 0; u < EACH; ++u) {
        if (full[u]) keys[full_place++] = position[u];
        else if (some[u]) s.mixed[mixed_place++] = position[u];
    }
    found.full += total & 0xffff;
    found.mixed += total >> 16;
}

// grid (query blocks, heads). evict [heads, T]; alive, alive_count from plan_evictions, whose second numbers are as good
// as evict here; keys [heads, blocks, width]; full, count [heads, blocks].
extern "C" __global__ void __launch_bounds__(THREADS)
plan_key_lists(const int* __restrict__ evict, const int2* __restrict__ alive, const int* __restrict__ alive_count,
               int* __restrict__ keys, int* __restrict__ full, int* __restrict__ count, int T, int window, int shift,
               int query_offset, int chunks, int first_listed, int width) {
    __shared__ Lists s;
    const int block = blockIdx.x, n = blockIdx.y, tid = threadIdx.x;
    const int first = query_offset + block * BLOCK_Q, last = min(first + BLOCK_Q, T) - 1;
    const int k = (first + shift) / CHUNK, begin = chunk_start(k, shift, T);
    const int64_t row = (int64_t)n * gridDim.x + block;
    evict += (int64_t)n * T;
    alive += ((int64_t)n * (chunks - first_listed) + k - first_listed) * window;
    keys += row * width;
    const int listed = alive_count[(int64_t)n * chunks + k];
    Found found = {0, 0};
    for (int start = 0; start < listed; start += THREADS * EACH) {
        int position[EACH], until[EACH];
#pragma unroll
        for (int u = 0; u < EACH; ++u) {
            const int i = start + tid * EACH + u;
            const int2 key = i < listed ? alive[i] : make_int2(-1, -1);
            position[u] = key.x;
            until[u] = key.y;
        }
        append(s, found, keys, position, until, first, last);
    }
    for (int start = begin; start <= last; start += THREADS * EACH) {
        int position[EACH], until[EACH];
#pragma unroll
        for (int u = 0; u < EACH; ++u) {
            position[u] = start + tid * EACH + u;
            if (position[u] > last) position[u] = -1;
            until[u] = position[u] >= 0 ? evict[position[u]] : -1;
        }
        append(s, found, keys, position, until, first, last);
    }
    __syncthreads();
    for (int i = tid; i < found.mixed; i += THREADS) keys[found.full + i] = s.mixed[i];
    if (tid == 0) {
        full[row] = found.full;
        count[row] = found.full + found.mixed;
    }
}
