// The largest delta that each query attends to, and the first query of each block: what scores are taken relative to
// (kernels/plan.py).
#include "common.cuh"

constexpr int THREADS = 1024;
constexpr int EACH = 4;
constexpr int BLOCK_Q = 32 * EACH;  // a warp has the positions of one block of queries
constexpr float LOWEST = -3.402823466e38f;

__device__ __forceinline__ float or_zero(float x) { return x > LOWEST && x < -LOWEST ? x : 0.0f; }

// grid (1, heads). delta, evict [heads, T]; references [heads, blocks]; of_rows [heads, T - query_offset] or null.
extern "C" __global__ void __launch_bounds__(THREADS)
plan_references(const float* __restrict__ delta, const int* __restrict__ evict, float* __restrict__ references,
                float* __restrict__ of_rows, int T,
                int query_offset, int blocks) {
    __shared__ float of_warp[THREADS / 32];
    const int n = blockIdx.y, tid = threadIdx.x, warp = tid / 32, lane = tid & 31;
    delta += (int64_t)n * T;
    evict += (int64_t)n * T;
    references += (int64_t)n * blocks;
    if (of_rows != nullptr) of_rows += (int64_t)n * (T - query_offset);
    float before = LOWEST;
    // The first positions may be fewer than a block: those before `-start` do not exist.
    const int shift = (BLOCK_Q - query_offset % BLOCK_Q) % BLOCK_Q;
    for (int start = -shift; start < T; start += THREADS * EACH) {
        const int position = start + tid * EACH;
        float value[EACH], most = LOWEST;
#pragma unroll
        for (int u = 0; u < EACH; ++u) {
            const int j = position + u;
            value[u] = j >= 0 && j < T && evict[j] > j ? delta[j] : LOWEST;
            most = fmaxf(most, value[u]);
        }
        // What the lanes before this one hold, and the whole warp.
        float earlier = __shfl_up_sync(0xffffffffu, most, 1);
        if (lane == 0) earlier = LOWEST;
        for (int step = 1; step < 32; step *= 2) {
            const float other = __shfl_up_sync(0xffffffffu, earlier, step);
            if (lane >= step) earlier = fmaxf(earlier, other);
        }
        if (lane == 31) of_warp[warp] = fmaxf(earlier, most);
        __syncthreads();
        float so_far = before;
        for (int w = 0; w < THREADS / 32; ++w) {
            if (w == warp) earlier = fmaxf(earlier, so_far);
            so_far = fmaxf(so_far, of_warp[w]);
        }
        if (lane == 0 && position >= query_offset && position < T)
            references[(position - query_offset) / BLOCK_Q] = or_zero(fmaxf(earlier, value[0]));
        if (of_rows != nullptr) {
#pragma unroll
            for (int u = 0; u < EACH; ++u) {
                earlier = fmaxf(earlier, value[u]);
                const int row = position + u - query_offset;
                if (row >= 0 && position + u < T) of_rows[row] = or_zero(earlier);
            }
        }
        before = so_far;
        __syncthreads();
    }
}
