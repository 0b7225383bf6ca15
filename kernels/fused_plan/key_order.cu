// The order in which tiles cut the keys (kernels/key_order.py) and the query blocks that each tile touches.
#include "sorting.cuh"

constexpr int THREADS = 512;
constexpr int SLAB = 2048;
constexpr int LEAF = 64;
constexpr int EACH = SLAB / THREADS;
constexpr int WARP_SPAN = 32 * EACH;  // consecutive elements that a warp reduces

__device__ __forceinline__ bool is_live(int position, int evict, int query_offset) {
    return evict > max(position, query_offset);
}

// How many keys of each slab of positions are live. grid (slabs, heads); counts [heads, slabs].
extern "C" __global__ void __launch_bounds__(THREADS)
plan_count_live(const int* __restrict__ evict, int* __restrict__ counts, int T, int query_offset) {
    __shared__ int sums[THREADS / 32];
    const int n = blockIdx.y, begin = blockIdx.x * SLAB;
    evict += (int64_t)n * T;
    int count = 0;
    for (int position = begin + threadIdx.x; position < min(begin + SLAB, T); position += THREADS)
        count += is_live(position, evict[position], query_offset);
    int total;
    sum_before<THREADS>(count, total, sums);
    if (threadIdx.x == 0) counts[(int64_t)n * gridDim.x + blockIdx.x] = total;
}

// Live positions first, then the dead, both ascending. grid (slabs, heads); order [heads, T]; live_count [heads].
extern "C" __global__ void __launch_bounds__(THREADS)
plan_live_first(const int* __restrict__ evict, const int* __restrict__ counts, int* __restrict__ order,
                int* __restrict__ live_count, int T, int query_offset) {
    __shared__ int sums[THREADS / 32];
    const int n = blockIdx.y, slab = blockIdx.x, slabs = gridDim.x, tid = threadIdx.x, begin = slab * SLAB;
    evict += (int64_t)n * T;
    order += (int64_t)n * T;
    counts += (int64_t)n * slabs;
    int earlier = 0, all = 0;
    for (int i = tid; i < slabs; i += THREADS) {
        all += counts[i];
        if (i < slab) earlier += counts[i];
    }
    int live_before, live_total;
    sum_before<THREADS>(earlier, live_before, sums);
    sum_before<THREADS>(all, live_total, sums);
    bool live[EACH];
    int count = 0;
#pragma unroll
    for (int u = 0; u < EACH; ++u) {
        const int position = begin + tid * EACH + u;
        live[u] = position < T && is_live(position, evict[position], query_offset);
        count += live[u];
    }
    int ignored;
    int place = live_before + sum_before<THREADS>(count, ignored, sums);
#pragma unroll
    for (int u = 0; u < EACH; ++u) {
        const int position = begin + tid * EACH + u;
        if (position >= T) continue;
        order[live[u] ? place : live_total + position - place] = position;
        place += live[u];
    }
    if (slab == 0 && tid == 0) live_count[n] = live_total;
}

// Halves each slab of live keys along its wider side (birth or eviction) down to LEAF keys. grid (slabs, heads).
extern "C" __global__ void __launch_bounds__(THREADS)
plan_halve_slabs(const int* __restrict__ evict, const int* __restrict__ live_count, int* __restrict__ order, int T,
                 int query_offset) {
    // A key is evict and position in one number: the order along evict is that of the number, along birth that of its
    // lower half. What is beyond the live keys is all ones and stays last either way.
    __shared__ uint64_t key[SLAB];
    __shared__ int low[2][SLAB / WARP_SPAN], high[2][SLAB / WARP_SPAN];
    __shared__ bool along_birth[SLAB / WARP_SPAN];
    constexpr uint64_t NONE = ~0ull;
    const int n = blockIdx.y, tid = threadIdx.x, begin = blockIdx.x * SLAB;
    const int count = min(live_count[n] - begin, SLAB);
    if (count <= 0) return;
    evict += (int64_t)n * T;
    order += (int64_t)n * T + begin;
    for (int i = tid; i < SLAB; i += THREADS) {
        key[i] = NONE;
        if (i < count) key[i] = (uint64_t)(uint32_t)evict[order[i]] << 32 | (uint32_t)order[i];
    }
    __syncthreads();
    for (int size = SLAB; size > LEAF; size /= 2) {
        int least[2] = {0x7fffffff, 0x7fffffff}, most[2] = {-1, -1};
#pragma unroll
        for (int u = 0; u < EACH; ++u) {
            const uint64_t one = key[tid * EACH + u];
            if (one == NONE) continue;
            const int side[2] = {max((int)(uint32_t)one, query_offset), (int)(one >> 32)};
            for (int d = 0; d < 2; ++d) {
                least[d] = min(least[d], side[d]);
                most[d] = max(most[d], side[d]);
            }
        }
        for (int d = 0; d < 2; ++d) {
            for (int step = 16; step > 0; step /= 2) {
                least[d] = min(least[d], __shfl_xor_sync(0xffffffffu, least[d], step));
                most[d] = max(most[d], __shfl_xor_sync(0xffffffffu, most[d], step));
            }
            if ((tid & 31) == 0) {
                low[d][tid / 32] = least[d];
                high[d][tid / 32] = most[d];
            }
        }
        __syncthreads();
        if (tid < SLAB / size) {
            int width[2];
            for (int d = 0; d < 2; ++d) {
                int from = 0x7fffffff, to = -1;
                for (int w = tid * (size / WARP_SPAN); w < (tid + 1) * (size / WARP_SPAN); ++w) {
                    from = min(from, low[d][w]);
                    to = max(to, high[d][w]);
                }
                width[d] = to - from;
            }
            along_birth[tid] = width[0] >= width[1];
        }
        __syncthreads();
        // Along birth the halves of a key change places for the sort, so that positions decide.
        const auto turn = [&] {
            if (!along_birth[tid * EACH / size]) return;
#pragma unroll
            for (int u = 0; u < EACH; ++u) key[tid * EACH + u] = key[tid * EACH + u] << 32 | key[tid * EACH + u] >> 32;
        };
        turn();
        sort_shared<THREADS, EACH>(key, size, SLAB);
        turn();
        __syncthreads();
    }
    for (int i = tid; i < count; i += THREADS) order[i] = (int)(uint32_t)key[i];
}

// The ranges of make_tiles in kernels/plan.py, a tile a warp. grid (ceil(tiles / warps), heads); ranges
// [4, heads, tiles]: first, last, full_first, full_last.
extern "C" __global__ void plan_tiles(const int* __restrict__ evict, const int* __restrict__ order, int* __restrict__ ranges,
                                      int T, int query_offset, int block_q, int block_k, int tiles) {
    const int n = blockIdx.y, lane = threadIdx.x & 31;
    const int tile = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (tile >= tiles) return;
    evict += (int64_t)n * T;
    order += (int64_t)n * T;
    const int query_len = T - query_offset, never = query_len + block_q;
    int born_first = never, born_last = 0, evicted_first = 0x7fffffff, evicted_last = 0;
    for (int i = tile * block_k + lane; i < (tile + 1) * block_k; i += 32) {
        int born = never, evicted = 0;
        if (i < T) {
            const int position = order[i], until = evict[position];
            if (is_live(position, until, query_offset)) {
                born = max(position, query_offset) - query_offset;
                evicted = until - query_offset;
            }
        }
        born_first = min(born_first, born);
        born_last = max(born_last, born);
        evicted_first = min(evicted_first, evicted);
        evicted_last = max(evicted_last, evicted);
    }
    for (int step = 16; step > 0; step /= 2) {
        born_first = min(born_first, __shfl_xor_sync(0xffffffffu, born_first, step));
        born_last = max(born_last, __shfl_xor_sync(0xffffffffu, born_last, step));
        evicted_first = min(evicted_first, __shfl_xor_sync(0xffffffffu, evicted_first, step));
        evicted_last = max(evicted_last, __shfl_xor_sync(0xffffffffu, evicted_last, step));
    }
    if (lane != 0) return;
    const int last = (evicted_last + block_q - 1) / block_q, first = last == 0 ? 0 : born_first / block_q;
    int full_first = (born_last + block_q - 1) / block_q;
    int full_last = evicted_first >= query_len ? last : evicted_first / block_q;
    if (full_last <= full_first) full_first = full_last = first;
    const int64_t heads = gridDim.y, at = (int64_t)n * tiles + tile;
    ranges[at] = first;
    ranges[heads * tiles + at] = last;
    ranges[2 * heads * tiles + at] = full_first;
    ranges[3 * heads * tiles + at] = full_last;
}
